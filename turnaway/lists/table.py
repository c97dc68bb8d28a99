"""Several lists as one table, in the form the loops look addresses up in.

Owns: the layout of the block of memory that ext/lists.pxd reads, and the way
back from an address to the list and the line.  Of all networks that hold an
address, the longest prefix decides; of equal ones, the earlier list.

The block is in the machine's own byte order:

    uint64      MAGIC, how many lists, how many steps of IPv4, of IPv6; then zeros,
                64 octets in all
    steps 4     uint32: an address at which another list begins to count
    steps 6     the same as two uint64, the higher halves of an array before the lower
    numbers     uint8 a step, of IPv4 and then of IPv6: the list from there on,
                counted from 1; 0 for none

Steps come as a ladder of arrays: all of them, each 16th of these, each 16th of
those, down to 16 at most; each array is filled up to a multiple of 16 with the
highest address.  A search reads 16 neighbours of every array, the shortest first.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from turnaway.lists import Listed
from turnaway.lists.ranges import MOST_LINES, WIDTH, sweep

MAGIC = int.from_bytes(b"turnlist")
RUNG = 16
MOST_LISTS = 64  # a number fits an octet, and who reads a configuration sees them all

_HALF = (1 << 64) - 1


class Table:
    """The lists in their order, each read without a mistake."""

    def __init__(self, lists: Sequence[Listed]) -> None:
        self._lists = tuple(lists)
        self._before: list[int] = []  # lines of the lists before each
        lines = 0
        for one in lists:
            self._before.append(lines)
            lines += one.lines
        if lines > MOST_LINES or len(lists) > MOST_LISTS:
            raise ValueError(f"at most {MOST_LISTS} lists and {MOST_LINES} lines are possible")
        self._four = self._steps(4)
        self._six = self._steps(6)
        # What was read is in the steps now, and takes a tenth of the room.
        for one in self._lists:
            one.forget()

    def __len__(self) -> int:
        """How many lists there are."""
        return len(self._lists)

    def _steps(self, version: int) -> "_Steps":
        entries: list[int] = []
        for before, one in zip(self._before, self._lists, strict=True):
            packed = one.packed[version]
            entries += [entry + before for entry in packed] if before else packed
        entries.sort()
        starts, lines = sweep(entries, WIDTH[version], self._owner)
        return (_Steps if version == 4 else _WideSteps)(starts, lines, self._owner)

    def _owner(self, line: int) -> int:
        """The list that a line, counted over all lists, belongs to."""
        return bisect_right(self._before, line - 1) - 1

    def block(self) -> bytes:
        """What the board takes; see above."""
        steps = len(self._four.lines), len(self._six.lines)
        head = array("Q", (MAGIC, len(self), *steps, 0, 0, 0, 0))
        return b"".join(
            (
                head.tobytes(),
                *self._four.ladder(),
                *self._six.ladder(),
                self._four.numbers,
                self._six.numbers,
            )
        )

    def find(self, address: bytes) -> tuple[int, str] | None:
        """The list of an address of 16 octets (IPv4 as v4-mapped), and the file:line;
        None when it is on none."""
        number = int.from_bytes(address)
        mapped = number >> 32 == 0xFFFF
        line = self._four.line(number & 0xFFFFFFFF) if mapped else self._six.line(number)
        if not line:
            return None
        owner = self._owner(line)
        return owner, self._lists[owner].where(line - self._before[owner])


class _Steps:
    """The steps of one family, as arrays."""

    def __init__(self, starts: list[int], lines: list[int], owner: Callable[[int], int]) -> None:
        self.lines = array("I", lines)
        self.numbers = bytes(owner(line) + 1 if line else 0 for line in lines)
        self.starts = array("I", starts)

    def line(self, address: int) -> int:
        """What an address is listed by, 0 for nothing."""
        return self.lines[bisect_right(self.starts, address) - 1]

    def ladder(self) -> Iterator[bytes]:
        rung = self.starts
        while True:
            yield (rung + array("I", [0xFFFFFFFF] * (-len(rung) % RUNG))).tobytes()
            if len(rung) <= RUNG:
                return
            rung = rung[::RUNG]


class _WideSteps(_Steps):
    """The same where an address is two halves."""

    def __init__(self, starts: list[int], lines: list[int], owner: Callable[[int], int]) -> None:
        super().__init__([], lines, owner)
        self.high = array("Q", [start >> 64 for start in starts])
        self.low = array("Q", [start & _HALF for start in starts])

    def line(self, address: int) -> int:
        steps = range(len(self.lines))
        at = bisect_right(steps, address, key=lambda at: self.high[at] << 64 | self.low[at])
        return self.lines[at - 1]

    def ladder(self) -> Iterator[bytes]:
        high, low = self.high, self.low
        while True:
            fill = array("Q", [_HALF] * (-len(high) % RUNG))
            yield (high + fill + low + fill).tobytes()
            if len(high) <= RUNG:
                return
            high, low = high[::RUNG], low[::RUNG]
