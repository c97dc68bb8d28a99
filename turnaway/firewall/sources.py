"""The sources of a plan's lists: read, made safe, told apart, compared with earlier ones.

Owns: what stands in a list and must not be diverted, and how much a list may
change at once.  Of the lists a source is on, the longest prefix counts, then
the earlier list, so each source is in one list at most.  Nothing is printed
or loaded here.

Raises Failure (65) with `file:line` of each entry that is refused.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from turnaway import lists
from turnaway.exits import DATA, Failure
from turnaway.firewall.plan import Network, Plan
from turnaway.lists.ranges import (
    EXCLUDED,
    LINE,
    WIDTH,
    Range,
    addresses,
    cidrs,
    merge,
    span_of,
    subtract,
    sweep,
    text,
)

Both = tuple[list[Range], list[Range]]

LEAST_BITS = {4: 8, 6: 19}  # a wider prefix is a mistake: no registry gives one out
TOLD = 20  # entries named one by one; the rest is counted
MOST_CHANGE = 50  # percent
# A change this small needs no permission, whatever its percentage.
FEW_NETWORKS = 16
FEW_ADDRESSES = 1 << 16  # of IPv4; of IPv6, networks of /64

# Nobody calls from these over the Internet: the special-purpose registries
# (RFC 6890), multicast and the reserved.  The networks of documentation
# (RFC 5737, 3849) harm nobody.
PRIVATE: dict[int, tuple[Network, ...]] = {
    4: tuple(
        map(
            IPv4Network,
            (
                *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
                *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15"),
                "224.0.0.0/3",
            ),
        )
    ),
    6: tuple(map(IPv6Network, ("::/3", "4000::/2", "8000::/1"))),  # all but 2000::/3
}


@dataclass(frozen=True, slots=True)
class Size:
    networks: int = 0
    addresses: int = 0  # of IPv6: networks of /64, rounded up

    def __str__(self) -> str:
        return f"{self.networks} networks, {self.addresses} addresses"


@dataclass
class Gathered:
    """What is to be diverted, by list, and what was left out on the way."""

    ranges: dict[str, Both] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def gather(plan: Plan, leave_out: bool = False) -> Gathered:
    """Read the files of the plan.

    Entries that are too wide, private or our own are refused; with
    `leave_out` they are left out and noted instead.
    """
    read = {one.name: lists.read(one.file) for one in plan.lists}
    mistakes = [f"list {name}: {said}" for name, listed in read.items() for said in listed.mistakes]
    if mistakes:
        raise Failure(DATA, *mistakes)
    found = Gathered()
    for version in (4, 6):
        apart, unfit = _apart(plan, read, version)
        if unfit and not leave_out:
            mistakes += [*unfit[:TOLD], *([f"and {len(unfit) - TOLD} more"] * (len(unfit) > TOLD))]
        elif unfit:
            found.notes.append(
                f"IPv{version}: {len(unfit)} entries left out, wholly or in part; the first:"
                f" {unfit[0]}"
            )
        allow = merge(map(_span, plan.allow4 if version == 4 else plan.allow6))
        for name, ranges in apart.items():
            left = subtract(ranges, allow)
            if taken := addresses(ranges) - addresses(left):
                found.notes.append(f"list {name}: {taken} IPv{version} addresses are allowed")
            found.ranges.setdefault(name, ([], []))[0 if version == 4 else 1].extend(left)
    if mistakes:
        raise Failure(
            DATA,
            *mistakes,
            "expected lists without these; --leave-out goes on without them",
        )
    return found


def _apart(
    plan: Plan, read: Mapping[str, lists.Listed], version: int
) -> tuple[dict[str, list[Range]], list[str]]:
    """(each list's ranges, disjoint over all lists; what is unfit, line by line)."""
    width, least = WIDTH[version], LEAST_BITS[version]
    private = merge(map(_span, PRIVATE[version]))
    own = merge(
        (int(one), int(one))
        for one in (*plan.mx4, *plan.mx6, *plan.hosts4, *plan.hosts6)
        if one.version == version
    )
    unfit: list[str] = []
    bad = merge([*private, *own])
    entries: list[int] = []
    begins: list[int] = []  # of each list: the last number before its lines
    total = 0
    for listed in read.values():
        begins.append(total)
        total += listed.lines
        if total > LINE:
            raise Failure(DATA, f"expected at most {LINE} lines in all lists together")
        for entry in listed.packed[version]:
            bits = entry >> 24 & 0xFF
            wide = bits < least
            if entry & EXCLUDED:
                pass
            elif wide or _overlaps(bad, *span_of(entry, width)):
                first, last = span_of(entry, width)
                where = f"{listed.where(entry & LINE)}: {text(first, bits, version)}"
                if wide:
                    unfit.append(f"{where}: expected /{least} or longer for IPv{version}")
                    continue
                kind = "one of our own" if _overlaps(own, first, last) else "private or reserved"
                unfit.append(f"{where}: holds {kind} addresses")
            entries.append(entry + begins[-1])
    entries.sort()
    starts, lines = sweep(entries, width, lambda line: bisect_right(begins, line - 1))
    ends = [start - 1 for start in starts[1:]] + [(1 << width) - 1]
    names = list(read)
    parts: dict[str, list[Range]] = {name: [] for name in names}
    for first, last, line in zip(starts, ends, lines, strict=True):
        if line:
            parts[names[bisect_right(begins, line - 1) - 1]].append((first, last))
    return {name: subtract(merge(ranges), bad) for name, ranges in parts.items()}, unfit


def _span(network: Network) -> Range:
    return int(network.network_address), int(network.broadcast_address)


def _overlaps(ranges: list[Range], first: int, last: int) -> bool:
    at = bisect_right(ranges, (last, 1 << 128))
    return at > 0 and ranges[at - 1][1] >= first


# How large a list is, and was


def size(ranges: Iterable[Range], version: int) -> Size:
    found = list(ranges)
    count = sum(1 for _ in cidrs(found, version))
    if version == 4:
        return Size(count, addresses(found))
    return Size(count, addresses(merge((first >> 64, last >> 64) for first, last in found)))


_SUMMARY = re.compile(r"# list ([a-z0-9-]+): IPv([46]): (\d+) networks, (\d+) addresses")


def summary(sources: Mapping[str, Both]) -> list[str]:
    """Comments that tell how large each list is, for whoever replaces it later."""
    return [
        f"# list {name}: IPv{version}: {size(ranges, version)}"
        for name, both in sources.items()
        for version, ranges in ((4, both[0]), (6, both[1]))
    ]


def earlier(written: str) -> dict[tuple[str, int], Size]:
    """The sizes that an earlier file's comments tell, by list and family."""
    return {
        (found[1], int(found[2])): Size(int(found[3]), int(found[4]))
        for found in _SUMMARY.finditer(written)
    }


def changes(
    sources: Mapping[str, Both], before: Mapping[tuple[str, int], Size], percent: int
) -> list[str]:
    """What changes by more than `percent`; lists that were not there before do not."""
    said = []
    for name, both in sources.items():
        for version, ranges in ((4, both[0]), (6, both[1])):
            was, now = before.get((name, version)), size(ranges, version)
            if was is None or was.networks == 0:
                continue
            few = (
                abs(now.networks - was.networks) <= FEW_NETWORKS
                and abs(now.addresses - was.addresses) <= FEW_ADDRESSES
            )
            much = any(
                abs(new - old) * 100 > old * percent
                for new, old in ((now.networks, was.networks), (now.addresses, was.addresses))
            )
            if now.networks == 0 or (much and not few):
                said.append(f"list {name}: IPv{version}: {was} before, {now} now")
    return said
