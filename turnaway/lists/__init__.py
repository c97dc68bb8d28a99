"""Lists of addresses, as administrators have them: read, merged, looked up.

Owns: one list, from its files to its entries.  formats.py knows the files,
ranges.py the arithmetic.  A list is read whole or not at all.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from turnaway.lists.files import FORMATS as FORMATS
from turnaway.lists.files import read as read_file
from turnaway.lists.formats import Reading
from turnaway.lists.ranges import BITS_SHIFT, EXCLUDED, FIRST_SHIFT, LINE, WIDTH, Range, resolve


class Entry(NamedTuple):
    """One line's network, or a part of the range it gave."""

    first: int
    bits: int
    line: int  # counted over all files of the list; where() tells it
    excluded: bool  # the address is taken from the list, not put on it


class Listed:
    """What the files of one list say.

    `packed` has the entries by IP version, as ranges.pack() makes them, sorted.
    """

    def __init__(self, reading: Reading, formats: tuple[str | None, ...]) -> None:
        self.packed = reading.entries
        self.formats = formats  # of each file
        self.mistakes = reading.mistakes
        self.lines = reading.lines
        self.place = reading.place  # of a line: the path of its file, the line in it
        for entries in self.packed.values():
            entries.sort()

    def forget(self) -> None:
        """Keep only what where() needs."""
        for entries in self.packed.values():
            entries.clear()

    def __len__(self) -> int:
        """How many entries there are, of both families."""
        return sum(map(len, self.packed.values()))

    def entries(self, version: int) -> Iterator[Entry]:
        """As they were written, sorted by address; version 4 or 6."""
        for packed in self.packed[version]:
            yield Entry(
                packed >> FIRST_SHIFT,
                packed >> BITS_SHIFT & 0xFF,
                packed & LINE,
                bool(packed & EXCLUDED),
            )

    def where(self, line: int) -> str:
        """file:line of an entry's line."""
        path, at = self.place(line)
        return f"{path}:{at}"

    def ranges(self, version: int) -> list[Range]:
        """All that is listed, as sorted disjoint ranges (first, last)."""
        return resolve(self.packed[version], WIDTH[version])


def read(paths: str | Iterable[str], format: str | None = None) -> Listed:
    """One list from one file or several, each in the format of that name, or else
    in the one it is recognised by.  What is wrong stands in its `mistakes`, each
    as `file:line: expected ..., got ...`; then do not use the rest.
    """
    reading = Reading()
    each = (paths,) if isinstance(paths, str) else tuple(paths)
    formats = tuple(read_file(path, format, reading) for path in each)
    reading.end()
    return Listed(reading, formats)
