"""What Turnaway is told to do, once it is parsed and checked.

Plain frozen data; whoever makes one has checked it.  This module imports
nothing of Turnaway's, and everything may import it.
"""

from dataclasses import dataclass, field
from typing import Literal

LogTarget = Literal["syslog", "stderr", "none"]
Detail = Literal["none", "capped", "sample", "all"]

DEFAULT_PORT = 25
SYSLOG_SOCKET = "/dev/log"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a persona's text, without reply code, and where it stands."""

    text: str
    where: str  # file:line, for messages


@dataclass(frozen=True, slots=True)
class Persona:
    """Why a client is turned away, and in which words."""

    name: str
    code: int
    lines: tuple[Line, ...]
    single: Line
    close: str


@dataclass(frozen=True, slots=True)
class Listener:
    """One address that is listened on, and what is said there."""

    address: str  # numeric, without brackets
    port: int
    name: str  # the host name in the greeting
    location: str
    persona: Persona
    code: int
    single_line: bool = False

    @property
    def ipv6(self) -> bool:
        return ":" in self.address

    @property
    def wildcard(self) -> bool:
        return self.address in ("0.0.0.0", "::")

    @property
    def place(self) -> str:
        """ADDRESS:PORT as an operator writes it."""
        host = f"[{self.address}]" if self.ipv6 else self.address
        return f"{host}:{self.port}"

    @property
    def lines(self) -> tuple[Line, ...]:
        return (self.persona.single,) if self.single_line else self.persona.lines


@dataclass(frozen=True, slots=True)
class Limits:
    """Memory taken at start, and times."""

    records: int = 16384  # connection records per worker waiting for the journal
    parked: int = 1024  # early talkers held per worker
    interval: float = 60.0  # seconds between interval lines


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom to become after root's work is done."""

    user: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Settings:
    program: str  # the command's own name: tag in the log
    listeners: tuple[Listener, ...]
    workers: int
    foreground: bool = False
    identity: Identity | None = None  # None: not root, stay who we are
    chroot: str | None = None
    pidfile: str | None = None
    log: LogTarget = "syslog"
    syslog_socket: str = SYSLOG_SOCKET
    detail: Detail = "capped"
    detail_number: int = 20
    limits: Limits = field(default_factory=Limits)
