"""PROXY headers, as any proxy and any enemy of one may write them.

Owns: ext/proxy.pxd, through turnaway._readers.  The oracle is the package
proxy-protocol; where it takes more than the document allows (its ports may have
signs and zeros, its addresses a zone), the document decides.  No split of the
input may change an answer, and no octet behind a header is taken.
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import SOCK_STREAM

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from proxyprotocol import ProxyProtocolSyntaxError
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from turnaway._readers import proxy

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LINE = 107  # of version 1, section 2.1
FOUR = (IPv4Address("203.0.113.7"), 40025), (IPv4Address("198.51.100.2"), 25)
SIX = (IPv6Address("2001:db8:bad::7"), 1), (IPv6Address("2001:db8:25::25"), 65535)
FULL = (IPv6Address(b"\xfa" * 16), 65535), (IPv6Address(b"\xfb" * 16), 65535)

Told = tuple[str, int, object, object]
Address = IPv4Address | IPv6Address


def packed(address: Address) -> bytes:
    octets = address.packed
    return octets if len(octets) == 16 else bytes(10) + b"\xff\xff" + octets


def written(version: int, pair: tuple[tuple[Address, int], tuple[Address, int]]) -> bytes:
    """A header as the oracle writes it."""
    kind = ProxyResultIPv4 if pair[0][0].version == 4 else ProxyResultIPv6
    pack = ProxyProtocolV1().pack if version == 1 else ProxyProtocolV2().pack
    return pack(kind(*pair, protocol=SOCK_STREAM))  # type: ignore[arg-type]


def known(pair: tuple[tuple[Address, int], tuple[Address, int]]) -> Told:
    return ("known", 0, *((packed(address), port) for address, port in pair))


def second(command: int, family: int, rest: bytes = b"", length: int | None = None) -> bytes:
    """Version 2, with whatever in it."""
    length = len(rest) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, family, length) + rest


def pieces(octets: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted(min(cut, len(octets)) for cut in cuts)
    return [octets[a:b] for a, b in zip([0, *ends], [*ends, len(octets)], strict=True)]


ADDRESSES = struct.pack("!4s4sHH", FOUR[0][0].packed, FOUR[1][0].packed, 40025, 25)
ADDRESSES6 = struct.pack("!16s16sHH", SIX[0][0].packed, SIX[1][0].packed, 1, 65535)
TLVS = b"\3\0\4abcd" + b"\4\0\0" + b"\xe0\0\1x"
WORST = b"PROXY UNKNOWN " + b"f" * (LINE - 16) + b"\r\n"

ITSELF: Told = ("itself", 0, None, None)
GOOD: dict[str, tuple[bytes, Told]] = {
    "v1 IPv4": (written(1, FOUR), known(FOUR)),
    "v1 IPv6": (written(1, SIX), known(SIX)),
    "v1 IPv6, the longest": (written(1, FULL), known(FULL)),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", ITSELF),
    "v1 unknown with addresses": (WORST, ITSELF),
    "v1 ports of 0": (
        b"PROXY TCP4 203.0.113.7 198.51.100.2 0 0\r\n",
        known(((FOUR[0][0], 0), (FOUR[1][0], 0))),
    ),
    "v1 v4-mapped": (
        b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:c633:6402 40025 25\r\n",
        known(FOUR),
    ),
    "v2 IPv4": (written(2, FOUR), known(FOUR)),
    "v2 IPv6": (written(2, SIX), known(SIX)),
    "v2 v4-mapped": (
        second(0x21, 0x21, packed(FOUR[0][0]) + packed(FOUR[1][0]) + struct.pack("!HH", 40025, 25)),
        known(FOUR),
    ),
    "v2 with TLVs": (second(0x21, 0x11, ADDRESSES + TLVS), known(FOUR)),
    "v2, the longest": (second(0x21, 0x21, ADDRESSES6 + b"\4" * (65535 - 36)), known(SIX)),
    "v2 local": (second(0x20, 0), ITSELF),
    "v2 local with TLVs": (second(0x20, 0, TLVS), ITSELF),
    "v2 local, whose family is ignored": (second(0x20, 0xFF, ADDRESSES), ITSELF),
    "v2 local, as HAProxy's checks send it": (second(0x20, 0x11, ADDRESSES), ITSELF),
    "v2 unspecified": (second(0x21, 0), ITSELF),
    "v2 of a unix socket": (second(0x21, 0x31, bytes(216)), ITSELF),
    "v2 of UDP": (second(0x21, 0x12, ADDRESSES), ITSELF),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_headers_however_they_come(name: str) -> None:
    octets, told = GOOD[name]
    behind = b"EHLO spam.example\r\n"
    assert proxy([octets]) == told
    assert proxy([octets + behind]) == (told[0], len(behind), *told[2:])
    assert proxy([octets[at : at + 1] for at in range(len(octets))]) == told
    for cut in range(0, len(octets), 1 + len(octets) // 300):
        assert proxy([octets[:cut]]) == ("more", 0, None, None)
        assert proxy([octets[:cut], octets[cut:] + behind]) == (told[0], len(behind), *told[2:])


BAD = {
    "nothing of the kind": b"EHLO spam.example\r\n",
    "another word": b"PROXY2 TCP4 ",
    "without a blank": b"PROXY\r\n",
    "no family": b"PROXY \r\n",
    "of UDP": b"PROXY UDP4 203.0.113.7 198.51.100.2 1 2\r\n",
    "in lower case": b"proxy TCP4 203.0.113.7 198.51.100.2 1 2\r\n",
    "unknown and more": b"PROXY UNKNOWNS\r\n",
    "unknown and a CR": b"PROXY UNKNOWN\rx\r\n",
    "LF alone": b"PROXY TCP4 203.0.113.7 198.51.100.2 1 2\n",
    "an address alone": b"PROXY TCP4 203.0.113.7\r\n",
    "too few": b"PROXY TCP4 203.0.113.7 198.51.100.2 1\r\n",
    "too many": b"PROXY TCP4 203.0.113.7 198.51.100.2 1 2 3\r\n",
    "blank at the end": b"PROXY TCP4 203.0.113.7 198.51.100.2 1 2 \r\n",
    "two blanks": b"PROXY TCP4  203.0.113.7 198.51.100.2 1 2\r\n",
    "a tab": b"PROXY TCP4 203.0.113.7\t198.51.100.2 1 2\r\n",
    "leading zero": b"PROXY TCP4 203.0.113.7 198.51.100.2 025 25\r\n",
    "two zeros": b"PROXY TCP4 203.0.113.7 198.51.100.2 25 00\r\n",
    "a sign": b"PROXY TCP4 203.0.113.7 198.51.100.2 +25 25\r\n",
    "above 65535": b"PROXY TCP4 203.0.113.7 198.51.100.2 65536 25\r\n",
    "six digits": b"PROXY TCP4 203.0.113.7 198.51.100.2 655350 25\r\n",
    "a name": b"PROXY TCP4 mx.example.com 198.51.100.2 1 2\r\n",
    "short IPv4": b"PROXY TCP4 203.7 198.51.100.2 1 2\r\n",
    "octal IPv4": b"PROXY TCP4 203.0.113.07 198.51.100.2 1 2\r\n",
    "IPv4 as IPv6": b"PROXY TCP6 203.0.113.7 198.51.100.2 1 2\r\n",
    "IPv6 as IPv4": b"PROXY TCP4 ::1 ::1 1 2\r\n",
    "a zone": b"PROXY TCP6 fe80::1%lo ::1 1 2\r\n",
    "a NUL": b"PROXY TCP4 203.0.113.7\0 198.51.100.2 1 2\r\n",
    "an endless line": WORST[:-2] + b"f\r\n",
    "no end at all": b"PROXY UNKNOWN " + b"f" * 200,
    "signature broken": SIGNATURE[:-1] + b"\r" + bytes(4),
    "version 1 in binary": second(0x11, 0x11, ADDRESSES),
    "version 3": second(0x31, 0x11, ADDRESSES),
    "another command": second(0x22, 0x11, ADDRESSES),
    "a fourth family": second(0x21, 0x41, ADDRESSES),
    "a third transport": second(0x21, 0x13, ADDRESSES),
    "short of an octet": second(0x21, 0x11, ADDRESSES, 11),
    "IPv6 in the room of IPv4": second(0x21, 0x21, ADDRESSES, 12),
    "no addresses": second(0x21, 0x11),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_headers_however_they_come(name: str) -> None:
    octets = BAD[name]
    assert proxy([octets])[0] == "bad"
    assert proxy([octets[at : at + 1] for at in range(len(octets))])[0] == "bad"


def oracle(octets: bytes) -> Told:
    """What the package says, and where it says too much, the document."""
    try:
        if SIGNATURE.startswith(octets[:12]) or octets.startswith(SIGNATURE):
            return _second(octets)
        if not (b"PROXY ".startswith(octets[:6]) or octets.startswith(b"PROXY ")):
            return "bad", 0, None, None
        end = octets.find(b"\n") + 1
        if end > LINE or (end == 0 and len(octets) >= LINE):
            return "bad", 0, None, None
        if end == 0:
            return "more", 0, None, None
        line = octets[:end]
        found = ProxyProtocolV1().unpack(line)
        left = len(octets) - end
    except (ProxyProtocolSyntaxError, ValueError):
        return "bad", 0, None, None
    if found.source is None:
        return "itself", left, None, None
    ports = line.split(b" ")[4:]
    if not all(re.fullmatch(rb"(0|[1-9]\d*)(\r\n)?", port) for port in ports) or b"%" in line:
        return "bad", 0, None, None
    return _addresses(found, left)


def _second(octets: bytes) -> Told:
    if len(octets) < 16:
        return "more", 0, None, None
    command, family, length = struct.unpack("!BBH", octets[12:16])
    wanted = {0x11: 12, 0x21: 36}.get(family, 0) if command & 1 else 0
    if command not in (0x20, 0x21) or length < wanted:
        return "bad", 0, None, None
    if command == 0x21 and (family >> 4 > 3 or family & 15 > 2):
        return "bad", 0, None, None
    left = len(octets) - 16 - length
    if left < 0:
        return "more", 0, None, None
    if not wanted:
        return "itself", left, None, None
    # The TLVs are skipped, whatever is in them.
    without = octets[:14] + wanted.to_bytes(2) + octets[16 : 16 + wanted]
    return _addresses(ProxyProtocolV2().unpack(without), left)


def _addresses(found: object, left: int) -> Told:
    source, called = found.source, found.dest  # type: ignore[attr-defined]
    return (
        "known",
        left,
        (packed(ip_address(source[0])), source[1]),
        (packed(ip_address(called[0])), called[1]),
    )


def same(octets: bytes, cuts: list[int]) -> None:
    told = proxy(pieces(octets, cuts))
    expected = oracle(octets)
    # How much of a bad header was read is nobody's concern.
    assert (told if told[0] != "bad" else ("bad", 0, None, None)) == expected


CUTS = st.lists(st.integers(0, 300), max_size=5)
WORDS = st.lists(
    st.sampled_from(
        [
            *(b"PROXY", b" ", b"TCP4", b"TCP6", b"UNKNOWN", b"\r\n", b"\n", b"\r"),
            *(b"PROXY TCP4 ", b"PROXY TCP6 ", b"203.0.113.7", b"::1", b"::ffff:1.2.3.4"),
            *(b"fe80::1%lo", b"0", b"25", b"65535", b"65536", b"025", b"+1", b"1_0"),
            *(b"\0", b"\xff", b"1.2.3", b"x" * 90),
        ]
    ),
    max_size=14,
).map(b"".join)


@given(WORDS, CUTS)
@example(b"PROXY TCP4 203.0.113.7 203.0.113.7 1_0 25\r\n", [7])
def test_any_words_any_split(octets: bytes, cuts: list[int]) -> None:
    same(octets, cuts)


@given(st.binary(max_size=120), CUTS)
def test_any_octets_any_split(octets: bytes, cuts: list[int]) -> None:
    same(octets, cuts)


@given(
    st.sampled_from([octets for octets, _ in GOOD.values() if len(octets) < 300]),
    st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=2),
    st.binary(max_size=20),
    CUTS,
)
def test_a_good_header_with_a_few_octets_changed(
    octets: bytes, changes: list[tuple[int, int]], behind: bytes, cuts: list[int]
) -> None:
    made = bytearray(octets + behind)
    for at, octet in changes:
        made[at % len(made)] = octet
    same(bytes(made), cuts)


@given(
    st.sampled_from([0x20, 0x21, 0x22, 0x11]),
    st.integers(0, 255),
    st.integers(0, 80),
    st.binary(max_size=80),
    CUTS,
)
def test_version_2_of_any_kind_and_length(
    command: int, family: int, length: int, rest: bytes, cuts: list[int]
) -> None:
    same(second(command, family, rest, length), cuts)
