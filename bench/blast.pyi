from collections.abc import Sequence
from typing import Any

from bench.expect import Expect

OUTCOMES: tuple[str, ...]
BEHAVIOURS: dict[str, int]
EHLO: bytes
EHLO_4K: bytes

class Result:
    counts: dict[str, int]
    started: int
    elapsed: float
    cpu_seconds: float
    latest: float
    last_local: int
    samples: int
    max_us: int
    complete: int
    short: int
    reset_before: int
    reset_after: int
    refused: int
    timed_out: int
    wrong: int
    local: int
    @property
    def answered(self) -> int: ...
    @property
    def finished(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def cpu_us(self) -> float: ...
    @property
    def mean_us(self) -> float: ...
    def percentile(self, percent: float) -> int: ...
    def values(self) -> list[tuple[int, int]]: ...
    def histogram(self) -> Any: ...
    def __add__(self, other: Result) -> Result: ...
    def as_dict(self) -> dict[str, Any]: ...

def source_numbers(sources: int | Sequence[str] | None) -> list[int]: ...
def closed(
    address: str,
    port: int,
    *,
    connections: int = 0,
    concurrency: int = 64,
    behaviour: str = "silent",
    sources: int | Sequence[str] = 64,
    expect: Expect,
    timeout: float = 5.0,
    seconds: float = 0.0,
    words: bytes = ...,
    hold: int = 1024,
) -> Result: ...
def offered(
    address: str,
    port: int,
    *,
    rate: float,
    seconds: float,
    concurrency: int = 4096,
    behaviour: str = "silent",
    sources: int | Sequence[str] = 64,
    expect: Expect,
    timeout: float = 5.0,
    words: bytes = ...,
    hold: int = 1024,
) -> Result: ...

class Fill:
    opened: int
    def __init__(
        self,
        address: str,
        port: int,
        *,
        connections: int,
        behaviour: str = "silent",
        sources: int | Sequence[str] = 64,
        expect: Expect,
        timeout: float = 5.0,
        words: bytes = ...,
        hold: int = 1024,
    ) -> None: ...
    def mark(self) -> None: ...
    def wait(self) -> float: ...
    def finish(self) -> Result: ...
