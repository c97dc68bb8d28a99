"""Types of ext/board.pyx; what its names mean stands there."""

from collections.abc import Sequence
from typing import Final, Literal, Self

from typing_extensions import disjoint_base

ANSWER_OCTETS: Final = 4064
ANSWER_MARKS: Final = 4
PROXIES: Final = 32
LISTS: Final = 64
COUNTERS: Final[tuple[str, ...]]
WORDS: Final[tuple[str, ...]]
QUEUES: Final = ("park", "drain", "probe", "request", "quit", "proxy")
MANNERS: Final = ("now", "drain", "quit", "reset", "ask")
EXPECTED: Final = ("any", "http", "tls", "socks")
STATES: Final = ("new", "running", "stopped", "broken")
DETAILS: Final = ("none", "capped", "sample", "all")

def no_new_privileges() -> None: ...
def capabilities() -> int: ...
def limit_capabilities(kept: int) -> None: ...
def keep_capabilities(keep: bool) -> None: ...
def accept_policy(error: int) -> tuple[str, Literal["next", "rest"]]: ...

@disjoint_base
class Board:
    @property
    def capsule(self) -> object: ...
    @property
    def workers(self) -> int: ...
    @property
    def listeners(self) -> int: ...
    def __new__(
        cls,
        workers: int,
        listeners: int,
        records: int = 16384,
        held: int = 2048,
        share: int = 64,
        key: int = 0,
        waits: Sequence[int] = (2_000_000,),
        lists: int = 0,
    ) -> Self: ...
    def describe(
        self,
        listener: int,
        local: bytes,
        port: int,
        wildcard: bool,
        transparent: bool = False,
        proxies: Sequence[tuple[bytes, int]] = (),
    ) -> None: ...
    def behave(
        self,
        listener: int,
        manner: str,
        expected: str,
        blind: str,
        lingers: str,
        resets: bool,
        fifos: Sequence[int] = (0, 0, 0, 0, 0, 0),
    ) -> None: ...
    def attach(self, worker: int, listener: int, fd: int) -> None: ...
    def attach_wake(self, worker: int, fd: int) -> None: ...
    def attach_bell(self, fd: int) -> None: ...
    def consult(self, block: bytes, allow: Sequence[bool]) -> None: ...
    def listed(self) -> list[int]: ...
    def publish(
        self, listener: int, words: str, octets: bytes, head: int = 0, group: int = 0
    ) -> None: ...
    def record(self, recording: bool) -> None: ...
    def log_connections(
        self,
        listener: int,
        mode: Literal["none", "capped", "sample", "all"],
        number: int,
        own: bool,
    ) -> None: ...
    def logs_connections(
        self, listener: int
    ) -> tuple[Literal["none", "capped", "sample", "all"], int, bool]: ...
    def pause(self, listener: int, paused: bool) -> None: ...
    def paused(self, listener: int) -> bool: ...
    def retire(self, leaving: Sequence[int]) -> None: ...
    def disposal(self) -> tuple[list[int], int]: ...
    def stop(self) -> None: ...
    def states(
        self,
    ) -> list[
        tuple[Literal["new", "running", "stopped", "broken"], int, int, int, int, bool, int, bool]
    ]: ...
    def counters(self, worker: int, listener: int) -> tuple[int, ...]: ...
    def dropped(self) -> int: ...
