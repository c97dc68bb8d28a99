"""What Turnaway is told to do, once it is parsed and checked.

Plain frozen data; whoever makes one has checked it.  This module imports
nothing of Turnaway's, and everything may import it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

LogTarget = Literal["syslog", "stderr", "json", "none"]
Detail = Literal["none", "capped", "sample", "all"]

Sandboxing = Literal["off", "on", "require"]

Close = Literal["now", "drain", "quit", "reset"]

DEFAULT_PORT = 25
SANDBOXES: tuple[Sandboxing, ...] = ("off", "on", "require")
Bind = Literal["plain", "freebind", "transparent"]
BINDS: tuple[Bind, ...] = ("plain", "freebind", "transparent")
CLOSES: tuple[Close, ...] = ("now", "drain", "quit", "reset")
# `text` is whatever refusal the persona has for the listener's port.
PROTOCOLS = ("smtp", "http", "tls", "socks", "auto", "text")
SYSLOG_SOCKET = "/dev/log"
# What --metrics says where its one dependency is not there.
PROMETHEUS = (
    "expected the Python package prometheus-client, which is not installed;"
    " pip install 'turnaway[metrics]', or Debian's python3-prometheus-client"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a persona's text, without reply code, and where it stands."""

    text: str
    where: str = field(compare=False)  # file:line, for messages


@dataclass(frozen=True, slots=True)
class Page:
    """The same as an HTTP answer."""

    title: Line
    text: tuple[Line, ...]  # paragraphs


@dataclass(frozen=True, slots=True)
class Refusal:
    """The same for another protocol whose server speaks first, in its own syntax."""

    kind: str
    ports: tuple[int, ...]
    line: Line


@dataclass(frozen=True, slots=True)
class Persona:
    """Why a client is turned away, and in which words."""

    name: str
    code: int
    lines: tuple[Line, ...]
    single: Line
    close: Close
    protocol: str
    page: Page
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Waits:
    """Time limits of held sockets, in seconds."""

    park: float = 2.0  # an early talker is drained
    drain: float = 5.0  # everybody is drained, with close policy `drain`
    probe: float = 0.3  # `auto` waits for the first octets
    request: float = 10.0  # a client must say what it wants
    quit: float = 20.0  # the dialogue of `quit`
    proxy: float = 5.0  # a PROXY header


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
    close: Close = "now"
    protocol: str = "smtp"  # of PROTOCOLS, or text:KIND
    timewait: bool = True
    contact: str = ""
    detail: tuple[Detail, int] | None = None  # its own --log-connections
    waits: Waits = field(default_factory=lambda: Waits())
    # To an address that this host does not have: ip(7) IP_FREEBIND, IP_TRANSPARENT.
    bind: Bind = "plain"
    # Networks (ADDRESS/BITS) that send a PROXY header first; then only they are answered.
    proxy_from: tuple[str, ...] = ()
    listed: str = ""  # the list it speaks to the clients of; see answers.told()
    # Key -> file:line: key, for messages; what no file gave is not there.
    wheres: Mapping[str, str] = field(default_factory=dict, compare=False)

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
    def refusal(self) -> Refusal | None:
        """Of protocol `text`: what is said here, if the persona knows."""
        kind = self.protocol.partition(":")[2]
        for one in self.persona.refusals:
            if one.kind == kind or (not kind and self.port in one.ports):
                return one
        return None

    @property
    def lines(self) -> tuple[Line, ...]:
        return (self.persona.single,) if self.single_line else self.persona.lines


@dataclass(frozen=True, slots=True)
class List:
    """Whose addresses it has, and what they are told."""

    name: str
    files: tuple[str, ...]  # absolute paths
    format: str | None = None  # of all its files; None: each is recognised
    persona: Persona | None = None  # None: the listener's
    contact: str = ""  # "": the listener's
    allow: bool = False  # nobody on it should have come here: no answer


class Lookup(Protocol):
    """The lists' addresses; see lists/table.py."""

    def find(self, address: bytes) -> tuple[int, str] | None:
        """The number of the list that 16 octets are on, and the file:line."""

    def block(self) -> bytes:
        """The same, as the loops look it up."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Memory taken at start, and seconds between interval lines."""

    records: int = 16384  # connection records per worker waiting for the journal
    held: int = 4096  # sockets that outlive their turn, over all workers
    share: int = 64  # of them, for one source: an address, or an IPv6 /64
    interval: float = 60.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom to become after root's work is done."""

    user: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Exposition:
    """Where Prometheus finds the counters."""

    kind: Literal["tcp", "unix", "file"]
    where: str  # a numeric address without brackets, or an absolute path
    port: int = 0

    @property
    def text(self) -> str:
        """As an operator writes it."""
        if self.kind != "tcp":
            return f"{self.kind}:{self.where}"
        return f"[{self.where}]:{self.port}" if ":" in self.where else f"{self.where}:{self.port}"


@dataclass(frozen=True, slots=True)
class Settings:
    program: str  # the command's own name: tag in the log
    listeners: tuple[Listener, ...]
    workers: int
    foreground: bool = False
    identity: Identity | None = None  # None: not root, stay who we are
    keep_bind: bool = False  # keep CAP_NET_BIND_SERVICE after the start
    chroot: str | None = None
    pidfile: str | None = None
    control: str | None = None  # the control socket
    sandbox: Sandboxing = "on"
    log: LogTarget = "syslog"
    syslog_socket: str = SYSLOG_SOCKET
    json_path: str = "-"  # of the log target json; "-": standard error
    metrics: Exposition | None = None
    detail: Detail = "capped"
    detail_number: int = 20
    limits: Limits = field(default_factory=Limits)
    lists: tuple[List, ...] = ()
    lookup: Lookup | None = field(default=None, compare=False, repr=False)  # None: no lists
