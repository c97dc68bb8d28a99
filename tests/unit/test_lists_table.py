"""The table of all lists, its block, and the search in it, against a plain oracle."""

from __future__ import annotations

import ipaddress
import random
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnaway import lists
from turnaway._readers import find
from turnaway.lists.formats import Reading
from turnaway.lists.table import MAGIC, MOST_LISTS, RUNG, Table

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Entry = tuple[Network, bool]  # and whether it is excluded

MAPPED = bytes(10) + b"\xff\xff"
HEAD = 64


def sixteen(address: Address) -> bytes:
    return MAPPED + address.packed if address.version == 4 else address.packed


def made(*entries: list[Entry]) -> Table:
    """A table of these lists, each from a file of its own with an entry a line."""
    found = []
    for number, ones in enumerate(entries):
        reading = Reading()
        start = reading.begin(f"/list{number}", max(len(ones), 1))
        for at, (network, excluded) in enumerate(ones, start):
            reading.add(int(network[0]), int(network[-1]), network.version, at, excluded)
        found.append(lists.Listed(reading, (None,)))
    return Table(found)


def oracle(entries: tuple[list[Entry], ...], address: Address) -> tuple[int, str] | None:
    """Each list's longest prefix decides for it; of those, the longest, then the first."""
    best: tuple[int, int, int] | None = None
    for number, ones in enumerate(entries):
        holding = [
            (-network.prefixlen, not excluded, at)
            for at, (network, excluded) in enumerate(ones, 1)
            if address.version == network.version and address in network
        ]
        if holding and min(holding)[1]:
            length, _, at = min(holding)
            best = min(best or (length, number, at), (length, number, at))
    return None if best is None else (best[1], f"/list{best[1]}:{best[2]}")


def network(base: int, bits: int, version: int) -> Network:
    width = 32 if version == 4 else 128
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    return kind(((base >> (width - bits) << (width - bits)) if bits else 0, bits))


# Few addresses, near each other and at both ends, so that networks meet.
ENDS4 = (0, 0x0A000000, 0x0A0000F0, 0xCB007100, 0xFFFFFF00)
ENDS6 = (0, 0x20010DB8 << 96, (0x20010DB8 << 96) + (1 << 64) - 256, (1 << 128) - 256)
BASES = {
    4: st.builds(int.__add__, st.sampled_from(ENDS4), st.integers(0, 255)),
    6: st.builds(int.__add__, st.sampled_from(ENDS6), st.integers(0, 255)),
}
ENTRY = st.sampled_from((4, 6)).flatmap(
    lambda version: st.tuples(
        st.builds(
            network,
            BASES[version],
            st.one_of(
                st.integers(0, 32 if version == 4 else 128),
                st.integers(24, 32) if version == 4 else st.integers(60, 128),
            ),
            st.just(version),
        ),
        st.sampled_from((False, False, False, True)),
    )
)
LISTS = st.lists(st.lists(ENTRY, max_size=30), min_size=1, max_size=4).map(tuple)


def edges(entries: tuple[list[Entry], ...]) -> list[Address]:
    """The addresses where anything could change, and the two ends."""
    found: set[Address] = set()
    for version, kind in ((4, ipaddress.IPv4Address), (6, ipaddress.IPv6Address)):
        most = (1 << (32 if version == 4 else 128)) - 1
        places = {0, 1, most - 1, most}
        for ones in entries:
            for one, _ in ones:
                if one.version == version:
                    first, last = int(one[0]), int(one[-1])
                    places |= {first - 1, first, first + 1, last - 1, last, last + 1}
        found |= {kind(place) for place in places if 0 <= place <= most}
    # Here IPv6 would be IPv4.
    return [one for one in found if one.version == 4 or one.ipv4_mapped is None]


@given(LISTS)
def test_the_table_is_the_oracle(entries: tuple[list[Entry], ...]) -> None:
    table = made(*entries)
    asked = edges(entries)
    octets = [sixteen(one) for one in asked]
    wanted = [oracle(entries, one) for one in asked]
    assert [table.find(one) for one in octets] == wanted
    assert find(table.block(), octets) == [-1 if one is None else one[0] for one in wanted]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("count", [1, 7, 8, 15, 16, 17, 127, 128, 129, 255, 2047, 2048, 40_000])
def test_ladders_of_any_length(version: int, count: int) -> None:
    """Steps that fill the arrays of the ladder and their last sixteen in every way."""
    rng = random.Random(count)
    width = 32 if version == 4 else 128
    # Of IPv6 many with the higher half in common, too.
    choices = {rng.getrandbits(width - 1) << 1 for _ in range(count)}
    if version == 6:
        choices = {one % (1 << (66 + count % 3)) & ~1 for one in choices}
    entries: list[Entry] = [(network(one, width, version), False) for one in choices]
    table = made([], entries)
    asked = [int(one[0]) + more for one, _ in entries for more in (0, 1)]
    asked += [rng.getrandbits(width) for _ in range(100)] + [0, (1 << width) - 1]
    if version == 6:
        asked = [one for one in asked if one >> 32 != 0xFFFF]
    octets = [MAPPED + one.to_bytes(4) if version == 4 else one.to_bytes(16) for one in asked]
    assert find(table.block(), octets) == [1 if one in choices else -1 for one in asked]


def test_without_lists_nobody_is_on_one() -> None:
    assert find(Table([]).block(), [bytes(16), sixteen(ipaddress.IPv4Address(1))]) == [-1, -1]


def test_the_highest_address() -> None:
    high4, high6 = b"\xff" * 4, b"\xff" * 16
    entries: list[Entry] = [
        (ipaddress.ip_network("255.255.255.255/32"), False),
        (ipaddress.ip_network("ffff:ffff:ffff:ffff::/64"), False),
    ]
    block = made(entries).block()
    below = (2**128 - 2**64 - 1).to_bytes(16)
    asked = [MAPPED + high4, MAPPED + b"\xff\xff\xff\xfe", high6, below]
    assert find(block, asked) == [0, -1, 0, -1]
    assert find(made([]).block(), asked) == [-1] * 4


def test_the_earlier_list_and_the_longer_prefix(tmp_path: Path) -> None:
    read = []
    for number, text in enumerate(
        ("203.0.113.0/24\n203.0.113.0/24\n", "203.0.113.64/26\n", "203.0.113.0/24\n203.0.113.70\n")
    ):
        (tmp_path / str(number)).write_text(text)
        read.append(lists.read(str(tmp_path / str(number))))
    table = Table(read)
    for address, wanted in (
        ("203.0.113.1", (0, "0:1")),
        ("203.0.113.65", (1, "1:1")),
        ("203.0.113.70", (2, "2:2")),
    ):
        number, where = wanted
        found = table.find(sixteen(ipaddress.ip_address(address)))
        assert found == (number, f"{tmp_path}/{where}")
    assert table.find(sixteen(ipaddress.ip_address("203.0.112.255"))) is None


def test_an_exclusion_is_of_its_own_list() -> None:
    net, part = ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("10.1.0.0/16")
    table = made([(net, False), (part, True)], [(net, False)])
    block = table.block()
    asked = [sixteen(ipaddress.ip_address(one)) for one in ("10.0.0.1", "10.1.0.1", "10.2.0.1")]
    assert find(block, asked) == [0, 1, 0]


def test_as_many_lists_as_there_may_be() -> None:
    each: list[list[Entry]] = [
        [(ipaddress.ip_network(f"203.0.113.{number}"), False)] for number in range(MOST_LISTS)
    ]
    asked = [MAPPED + bytes((203, 0, 113, number)) for number in range(MOST_LISTS + 1)]
    assert find(made(*each).block(), asked) == [*range(MOST_LISTS), -1]
    with pytest.raises(ValueError, match="at most 64 lists"):
        made(*each, [])


def test_a_table_is_arrays(tmp_path: Path) -> None:
    """What was read goes: an entry of IPv4 is two steps of 9 octets."""
    file = tmp_path / "list"
    count = 20_000
    file.write_text("".join(f"10.{at >> 8}.{at & 255}.4/31\n" for at in range(count)))
    tracemalloc.start()
    try:
        table = Table([lists.read(str(file))])
        octets, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == 1
    assert 18 * count < octets < 25 * count


# --- a block that is none ------------------------------------------------------


@pytest.fixture(scope="module")
def block() -> bytes:
    entries: list[Entry] = [
        (ipaddress.ip_network(f"10.0.{number}.0/25"), False) for number in range(20)
    ]
    entries += [(ipaddress.ip_network(f"2001:db8:{number:x}::/64"), False) for number in range(20)]
    return made(entries).block()


def refused(block: bytes) -> None:
    with pytest.raises(ValueError, match="block"):
        find(block, [bytes(16)])


def test_another_length(block: bytes) -> None:
    assert len(block) % 8
    for length in (0, 8, HEAD - 1, HEAD, len(block) - 1):
        refused(block[:length])
    refused(block + b"\0")


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, MAGIC ^ 1), (1, MOST_LISTS + 1), (2, 0), (3, 0), (2, 2**63), (3, 2**28 + 1), (2, 2**28)],
)
def test_another_head(block: bytes, at: int, value: int) -> None:
    refused(block[: at * 8] + struct.pack("=Q", value) + block[at * 8 + 8 :])


def test_every_octet_counts(block: bytes) -> None:
    """What is changed is refused, or leads nowhere but to a list that there is."""
    rng = random.Random(1)
    asked = [rng.randbytes(16) for _ in range(20)] + [MAPPED + rng.randbytes(4) for _ in range(20)]
    taken = 0
    for at in range(len(block)):
        changed = bytearray(block)
        changed[at] ^= 1 << rng.randrange(8)
        try:
            found = find(bytes(changed), asked)
        except ValueError:
            continue
        taken += 1
        # Another number of lists, zeros that nobody reads, the low end of a lone step.
        assert all(-1 <= one < MOST_LISTS for one in found), at
    assert taken < len(block) // 2


def test_what_a_search_relies_on(block: bytes) -> None:
    """Steps ascend, and nobody is on a list that there is not."""
    four, six = HEAD, HEAD + (48 + 16) * 4
    low, numbers = six + 48 * 8, six + (48 + 16) * 16
    for at in (four + 4, four + 40 * 4, six + 8, six + 40 * 8):  # the second, the last
        size = 4 if at < six else 8
        refused(block[:at] + bytes(size) + block[at + size :])
    # Of equal higher halves the lower ones count: none may come twice.
    refused(block[: six + 8] + block[six + 16 : six + 24] + block[six + 16 :])
    assert block[low : low + 41 * 8] == bytes(41 * 8)
    for at in (numbers, numbers + 40, numbers + 41, numbers + 81):
        refused(block[:at] + b"\2" + block[at + 1 :])


@given(st.binary(max_size=400))
def test_any_octets_are_refused(octets: bytes) -> None:
    refused(octets)


def test_addresses_are_sixteen_octets(block: bytes) -> None:
    with pytest.raises(ValueError, match="16 octets"):
        find(block, [bytes(4)])


def test_the_arrays_begin_at_a_line_of_the_cache(block: bytes) -> None:
    _, count, steps4, steps6, *zeros = struct.unpack_from("=8Q", block)
    assert (count, steps4, steps6, zeros) == (1, 41, 41, [0] * 4)
    assert RUNG == 16
    ladder = (48 + 16) * 4 + (48 + 16) * 16
    assert len(block) == HEAD + ladder + steps4 + steps6
