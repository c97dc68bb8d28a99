"""Networks as numbers: packed entries, and disjoint ranges.

Owns: the packing of an entry into one int, by which entries sort as the table
wants them, and the arithmetic of ranges.  An address is an int below 1 << width,
width 32 or 128; a range is (first, last), both in it; "ranges" are sorted,
disjoint and not adjacent unless it is said otherwise.
"""

import socket
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

Range = tuple[int, int]

WIDTH = {4: 32, 6: 128}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

# An entry: its first address, then the length of its prefix, whether it is an
# exclusion, and its line.  So entries sort by address, the wider first, and of
# one network what is listed before what is excluded, the earlier line first.
FIRST_SHIFT = 32
BITS_SHIFT = 24
EXCLUDED = 1 << 23
LINE = EXCLUDED - 1
MOST_LINES = LINE


def pack(first: int, bits: int, line: int, excluded: bool = False) -> int:
    return first << FIRST_SHIFT | bits << BITS_SHIFT | (EXCLUDED if excluded else 0) | line


def networks(first: int, last: int, width: int) -> Iterator[tuple[int, int]]:
    """The fewest networks, as (first, prefix length), that make up a range."""
    while first <= last:
        # As wide as its alignment allows, and as what is left needs.
        bits = width - min((first & -first).bit_length() - 1 if first else width, width)
        while first + (1 << (width - bits)) - 1 > last:
            bits += 1
        yield first, bits
        first += 1 << (width - bits)


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in any order, overlapping or not, as sorted disjoint ones."""
    merged: list[Range] = []
    least, most = 0, -2
    for first, last in sorted(ranges):
        if first <= most + 1:
            if last > most:
                most = last
        else:
            if most >= 0:
                merged.append((least, most))
            least, most = first, last
    if most >= 0:
        merged.append((least, most))
    return merged


def subtract(ranges: Iterable[Range], others: list[Range]) -> list[Range]:
    """What of `ranges`, one by one, is in none of `others`; these sorted and disjoint."""
    left: list[Range] = []
    for first, last in ranges:
        here = bisect_left(others, (first, first))
        if here and others[here - 1][1] >= first:
            here -= 1
        while here < len(others) and others[here][0] <= last:
            if others[here][0] > first:
                left.append((first, others[here][0] - 1))
            first = others[here][1] + 1
            here += 1
        if first <= last:
            left.append((first, last))
    return left


def addresses(ranges: Iterable[Range]) -> int:
    """How many addresses they hold."""
    return sum(last - first + 1 for first, last in ranges)


def text(first: int, bits: int, version: int) -> str:
    """A network as an operator writes it: a lone address without its length."""
    width = WIDTH[version]
    address = socket.inet_ntop(FAMILY[version], first.to_bytes(width // 8))
    return address if bits == width else f"{address}/{bits}"


def cidrs(ranges: Iterable[Range], version: int) -> list[str]:
    """Ranges as texts, the fewest networks."""
    width = WIDTH[version]
    return [
        text(start, bits, version)
        for first, last in ranges
        for start, bits in networks(first, last, width)
    ]


def span_of(entry: int, width: int) -> Range:
    """The range of an entry's network."""
    first = entry >> FIRST_SHIFT
    return first, first | (1 << (width - (entry >> BITS_SHIFT & 0xFF))) - 1


def sweep(
    entries: list[int], width: int, owner: Callable[[int], int] = lambda line: 0
) -> tuple[list[int], list[int]]:
    """Sorted entries as steps: from starts[i] on, lines[i] is what an address is
    listed by, 0 for nothing.  starts[0] is 0.

    Of the networks an address is in, the longest prefix decides, of equal ones the
    earlier line.  An exclusion takes what it holds from its own list alone, whose
    number `owner` tells of a line; a longer prefix of that list brings it back.
    """
    hosts = [(1 << (width - bits)) - 1 for bits in range(width + 1)]
    starts, lines = [0], [0]
    # The networks around the address at hand, the widest first.
    lasts: list[int] = []
    winners: list[int] = []
    begun: list[int] = []  # where their entries begin
    before = -1
    for at, entry in enumerate(entries):
        network = entry >> BITS_SHIFT
        if network == before:
            if entry & EXCLUDED:
                winners[-1] = lines[-1] = _winner(entries, begun, at, owner)
            continue
        before = network
        first = entry >> FIRST_SHIFT
        while lasts and lasts[-1] < first:
            after = lasts.pop() + 1
            del winners[-1], begun[-1]
            line = winners[-1] if winners else 0
            if starts[-1] == after:
                lines[-1] = line
            else:
                starts.append(after)
                lines.append(line)
        begun.append(at)
        line = _winner(entries, begun, at, owner) if entry & EXCLUDED else entry & LINE
        if starts[-1] == first:
            lines[-1] = line
        else:
            starts.append(first)
            lines.append(line)
        lasts.append(first | hosts[network & 0xFF])
        winners.append(line)
    while lasts:
        after = lasts.pop() + 1
        del winners[-1]
        if after >> width:
            continue  # there is nothing behind the last address
        line = winners[-1] if winners else 0
        if starts[-1] == after:
            lines[-1] = line
        else:
            starts.append(after)
            lines.append(line)
    return starts, lines


def _winner(entries: list[int], begun: list[int], last: int, owner: Callable[[int], int]) -> int:
    """The line that counts where something is excluded, up to the entry `last`."""
    without: set[int] = set()
    for at in reversed(begun):
        network = entries[at] >> BITS_SHIFT
        listed = []
        while at <= last and entries[at] >> BITS_SHIFT == network:
            line = entries[at] & LINE
            if entries[at] & EXCLUDED:
                without.add(owner(line))
            else:
                listed.append(line)
            at += 1
        for line in listed:
            if owner(line) not in without:
                return line
    return 0


def resolve(entries: list[int], width: int) -> list[Range]:
    """The entries of one list, in any order, as ranges: what of it is listed."""
    starts, lines = sweep(sorted(entries), width)
    ends = [start - 1 for start in starts[1:]] + [(1 << width) - 1]
    return merge(
        (first, last) for first, last, line in zip(starts, ends, lines, strict=True) if line
    )
