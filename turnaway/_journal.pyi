"""Types of ext/journal.pyx; what its names mean stands there."""

from collections.abc import Sequence
from typing import Final, Self

from typing_extensions import disjoint_base

from turnaway._board import Board

KINDS: Final = ("none", "datagram", "stream", "absent", "json")

@disjoint_base
class Reader:
    def __new__(
        cls,
        board: Board,
        tails: Sequence[bytes],
        members: Sequence[bytes],
        key: int,
        untold: Sequence[tuple[bytes, bytes]] = (),
    ) -> Self: ...
    def pull(
        self, fd: int, kind: str, header: bytes, allowed: Sequence[int], wanted: int = 0
    ) -> tuple[int, int, int, int, list[int], list[str]]: ...
    def misdiverted(self) -> tuple[int, str, int] | None: ...
    def busiest(self, most: int) -> list[tuple[str, int]]: ...
    def forget(self) -> None: ...
