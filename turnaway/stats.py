"""Counters of the board, added up; and those of boards that are gone.

Owns: the sums that a reload must not make fall: whoever follows a board through
a Ledger reads counters that only grow for as long as the process lives.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from turnaway import answers
from turnaway._board import COUNTERS, Board
from turnaway.settings import Listener, Settings

AFTER_ACCEPTED = COUNTERS[1:]
# The accept errors stand last, and last of them those that rest a listener.
RESTING = COUNTERS[COUNTERS.index("EMFILE") :]
ERRORS = COUNTERS[COUNTERS.index("rests") + 1 :]
# Each connection that is over moved exactly one of these; one that is accepted
# and still held without an answer has not moved any yet.
OUTCOMES = (
    "sent",
    "short",
    "failed",
    "reset",
    "gone",
    "stranger",
    "headless",
    "misdiverted",
)
# Why somebody was not held who should have been, and the counter.
REFUSALS = {"stress": "held_stressed", "full": "held_full", "source": "held_share"}


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


class Row(NamedTuple):
    """Which counters are added up over reloads: those of one place, name and persona."""

    place: str
    name: str
    persona: str
    protocol: str  # of the banner: smtp, or that of a text


def _sum(one: list[int], other: list[int]) -> list[int]:
    """Item by item; a missing one is 0."""
    return [sum(pair) for pair in zip_longest(one, other, fillvalue=0)]


@dataclass
class Sums:
    """What only grows."""

    rows: dict[Row, Totals] = field(default_factory=dict)
    disposal: list[int] = field(default_factory=list)  # see Board.disposal()
    disposal_micros: int = 0
    turns: list[int] = field(default_factory=list)  # by worker
    stresses: int = 0
    dropped: int = 0  # records
    listed: dict[str, int] = field(default_factory=dict)  # connections by list

    def total(self) -> Totals:
        """Over all listeners there ever were."""
        total = Totals()
        for totals in self.rows.values():
            total = total.plus(totals)
        return total

    def of(self, listener: Listener) -> Totals:
        """Of one listener, as long as its place, name and persona stayed the same."""
        total = Totals()
        for row, totals in self.rows.items():
            if row[:3] == (listener.place, listener.name, listener.persona.name):
                total = total.plus(totals)
        return total

    def at(self, listener: Listener) -> Totals:
        """The same, with whatever personas it had."""
        total = Totals()
        for row, totals in self.rows.items():
            if row[:2] == (listener.place, listener.name):
                total = total.plus(totals)
        return total

    def plus(self, settings: Settings, board: Board) -> "Sums":
        rows = dict(self.rows)
        for index, one in enumerate(settings.listeners):
            row = Row(one.place, one.name, one.persona.name, answers.codes(one)["banner"][0])
            rows[row] = of_listener(board, index).plus(rows.get(row, Totals()))
        listed = dict(self.listed)
        for one_list, count in zip(settings.lists, board.listed(), strict=True):
            listed[one_list.name] = listed.get(one_list.name, 0) + count
        counts, micros = board.disposal()
        states = board.states()
        return Sums(
            rows,
            _sum(self.disposal, counts),
            self.disposal_micros + micros,
            _sum(self.turns, [state[2] for state in states]),
            self.stresses + sum(state[6] for state in states),
            self.dropped + board.dropped(),
            listed,
        )


class Ledger:
    """Every board there ever was, one sum."""

    def __init__(self) -> None:
        self._gone = Sums()
        self._boards: list[tuple[Settings, Board]] = []
        self.reloads = {"done": 0, "failed": 0}

    def follow(self, settings: Settings, board: Board) -> None:
        """These are the settings in force from now on."""
        self._boards.append((settings, board))

    def leave(self, board: Board) -> None:
        """Its loops have ended: what it counted is final."""
        for one in [one for one in self._boards if one[1] is board]:
            self._gone = self._gone.plus(*one)
            self._boards.remove(one)

    @property
    def settings(self) -> Settings:
        return self._boards[-1][0]

    def sums(self) -> Sums:
        sums = self._gone
        for one in self._boards:
            sums = sums.plus(*one)
        return sums

    def held(self) -> int:
        """Sockets that are held now."""
        return sum(state[4] for _, board in self._boards for state in board.states())

    def stressed(self) -> bool:
        return any(state[5] for _, board in self._boards for state in board.states())

    def paused(self) -> dict[str, bool]:
        """The listeners of now, and whether each takes connections."""
        settings, board = self._boards[-1]
        return {one.place: board.paused(index) for index, one in enumerate(settings.listeners)}
