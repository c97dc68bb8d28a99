"""Counters of the board, added up."""

from collections.abc import Iterable

from turnaway._board import COUNTERS, Board
from turnaway.settings import Listener

AFTER_ACCEPTED = COUNTERS[1:]
# The accept errors stand last, and last of them those that rest a listener.
RESTING = COUNTERS[COUNTERS.index("EMFILE") :]


# What a listener is counted under, from one reload to the next.
Key = tuple[str, str, str]


def key(listener: Listener) -> Key:
    return listener.place, listener.name, listener.persona.name


class Totals(dict[str, int]):
    """A sum of counters by name; a missing one is 0."""

    def __missing__(self, name: str) -> int:
        return 0

    def since(self, before: "Totals") -> "Totals":
        return Totals({name: count - before[name] for name, count in self.items()})

    def plus(self, other: "Totals") -> "Totals":
        return Totals({name: self[name] + other[name] for name in COUNTERS})

    def words(self, names: Iterable[str] = COUNTERS) -> str:
        """`sent=12 early=3`: those that are not 0."""
        return " ".join(f"{name}={self[name]}" for name in names if self[name])


def of_listener(board: Board, listener: int) -> Totals:
    rows = [board.counters(worker, listener) for worker in range(board.workers)]
    return Totals(zip(COUNTERS, map(sum, zip(*rows, strict=True)), strict=True))


def of_all(board: Board) -> Totals:
    rows = [of_listener(board, listener) for listener in range(board.listeners)]
    return Totals({name: sum(row[name] for row in rows) for name in COUNTERS})
