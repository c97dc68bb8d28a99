"""The files of lists: what is read of each format, what is said of the rest; ranges."""

from __future__ import annotations

import os
from ipaddress import collapse_addresses, ip_address, ip_network
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnaway import lists
from turnaway.lists import formats
from turnaway.lists.files import openable
from turnaway.lists.ranges import addresses, cidrs, merge, networks, resolve, subtract, sweep, text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "list"


def read(file: Path, octets: str | bytes, format: str | None = None) -> lists.Listed:
    file.write_bytes(octets.encode() if isinstance(octets, str) else octets)
    return lists.read(str(file), format)


def listed(found: lists.Listed) -> list[str]:
    """All that is on it, as texts."""
    assert found.mistakes == []
    return cidrs(found.ranges(4), 4) + cidrs(found.ranges(6), 6)


# --- the formats ---------------------------------------------------------------

ZONE = """\
$SOA 3000 ns.example.com hostmaster.example.com 0 600 300 86400 300
$NS 3000 ns.example.com
:127.0.0.2:Listed, see http://example.com/?$
127.16-31            ; octets left out: 127.16.0.0 - 127.31.255.255
127.0.1
10.1/16              # a net
!10.1.2.3
!10.1.4/22 :3:with a value
10.1.5.0/24
203.0.113.7-9 :3:text
198.51.100.4:127.0.0.3:no blank before the value
:127.0.0.4:another
2001:db8:1:2
2001:db8:3::/127
!2001:db8:3::1
::5
"""
ZONE_LISTED = [
    *("10.1.0.0/23", "10.1.2.0/31", "10.1.2.2", "10.1.2.4/30", "10.1.2.8/29", "10.1.2.16/28"),
    *("10.1.2.32/27", "10.1.2.64/26", "10.1.2.128/25", "10.1.3.0/24", "10.1.5.0/24"),
    *("10.1.8.0/21", "10.1.16.0/20", "10.1.32.0/19", "10.1.64.0/18", "10.1.128.0/17"),
    *("127.0.1.0/24", "127.16.0.0/12", "198.51.100.4", "203.0.113.7", "203.0.113.8/31"),
    *("::5", "2001:db8:1:2::/64", "2001:db8:3::"),
]
STATUS = """\
Status for the jail: postfix
|- Filter
|  |- Currently failed:\t1
|  `- File list:\t/var/log/mail.log
`- Actions
   |- Currently banned:\t2
   `- Banned IP list:\t203.0.113.5 2001:db8::5
"""
ALERTS = """\
[
 {"capacity": 0, "decisions": [
   {"duration": "3h", "scope": "Ip", "simulated": false, "type": "ban", "value": "203.0.113.5"},
   {"scope": "Country", "type": "ban", "value": "DE"},
   {"scope": "Ip", "type": "captcha", "value": "203.0.113.6"},
   {"scope": "Ip", "simulated": true, "type": "ban", "value": "203.0.113.7"},
   {"scope": "Range", "type": "ban", "value": "2001:db8::/64"}],
  "source": {"scope": "Ip", "value": "203.0.113.8"}},
 {"decisions": null}
]
"""
RAW = """\
id,source,ip,reason,action,country,as,events_count,expiration,simulated,alert_id
1,crowdsec,Ip:203.0.113.5,a/ssh-bf,ban,US,"64496 Some, Inc.",6,3h59m,false,1
2,CAPI,Range:2001:db8::/64,a/b,ban,,,,3h,false,2
3,CAPI,Country:DE,a/b,ban,,,,3h,false,2
4,cscli,Ip:203.0.113.7,a/b,captcha,,,,3h,false,3
5,cscli,Ip:203.0.113.8,a/b,ban,,,,3h,true,3
"""
FIVE = ["203.0.113.5", "2001:db8::5"]
READS = {
    "plain": (
        "plain",
        "\ufeff# head\r\n203.0.113.0/24 ; SBL123\r\n\r\n203.0.114.7\tsome words - here\r\n"
        "; note\n2001:db8::/32#x\n203.0.115.0 - 203.0.115.2\n::ffff:203.0.116.0/120\n",
        [
            *("203.0.113.0/24", "203.0.114.7", "203.0.115.0/31", "203.0.115.2"),
            *("203.0.116.0/24", "2001:db8::/32"),
        ],
    ),
    "plain v6": ("plain", "::1\n::/0\n", ["::/0"]),
    "empty": ("plain", "", []),
    "words": ("plain", "# nothing\n; at all\n", []),
    "DROP text": ("plain", "; Spamhaus\n203.0.113.0/24 ; SBL1\n", ["203.0.113.0/24"]),
    "DROP": (
        "drop",
        '{"cidr":"203.0.113.0/24","sblid":"SBL1","rir":"x"}\n{"cidr":"2001:db8::/32"}\n'
        '{"type":"metadata","timestamp":1,"size":2,"records":2}\n',
        ["203.0.113.0/24", "2001:db8::/32"],
    ),
    "DROP of none": ("drop", '{"type":"metadata","records":0}\n', []),
    "zone": ("rbldnsd", ZONE, ZONE_LISTED),
    "banned": ("fail2ban", "[{'a': ['203.0.113.5']}, {'b': ['2001:db8::5']}, {'c': []}]\n", FIVE),
    "banip": ("fail2ban", "203.0.113.5 2001:db8::5 \n", FIVE),
    "banip lines": ("plain", "203.0.113.5\n2001:db8::5\n", FIVE),
    "banip times": (
        "plain",
        "203.0.113.5 \t2026-01-01 12:00:00 + 600 = 2026-01-01 12:10:00\n2001:db8::5 \t2026-01-01"
        " 12:00:00 + 600 = 2026-01-01 12:10:00\n",
        FIVE,
    ),
    "jail": ("fail2ban", STATUS, FIVE),
    "cscli json": ("crowdsec", ALERTS, ["203.0.113.5", "2001:db8::/64"]),
    "cscli none": ("crowdsec", "[]\n", []),
    "cscli null": ("crowdsec", "null\n", []),
    "decisions": ("crowdsec", '[{"scope":"ip","value":"203.0.113.5"}]', ["203.0.113.5"]),
    "stream": ("crowdsec", '{"new":[{"scope":"Ip","value":"::5"}],"deleted":null}', ["::5"]),
    "cscli raw": ("crowdsec", RAW, ["203.0.113.5", "2001:db8::/64"]),
    "import": ("crowdsec", "duration,scope,value\n1h,ip,203.0.113.5\n", ["203.0.113.5"]),
    "DShield": (
        "dshield",
        "# DShield\nStart\tEnd\tNetmask\tAttacks\n203.0.113.0\t203.0.113.255\t24\t9\tX\tZZ\n",
        ["203.0.113.0/24"],
    ),
}


@pytest.mark.parametrize("name", READS)
def test_each_format_is_recognised_and_read(file: Path, name: str) -> None:
    format, octets, wanted = READS[name]
    found = read(file, octets)
    assert found.formats == (format,)
    assert listed(found) == wanted
    if octets:
        assert listed(read(file, octets, format)) == wanted


@pytest.mark.parametrize("name", lists.FORMATS)
def test_every_format_is_in_a_test(name: str) -> None:
    assert name == "spamd.conf" or name in {format for format, _, _ in READS.values()}


def test_spamd_conf(tmp_path: Path) -> None:
    (tmp_path / "black").write_text("203.0.113.0/24\n198.51.100.1 - 198.51.100.6\n::/64\n")
    (tmp_path / "white").write_text("203.0.113.128/25\n198.51.100.3\n::/65\n")
    (tmp_path / "other").write_text("203.0.113.129\n")
    conf = tmp_path / "spamd.conf"
    text = (
        "# lists\nall:\\\n\t:nixspam:override:last:\n"
        'nixspam:\\\n\t:black:\\\n\t:msg="SPAM. Your address %A is listed":\\\n'
        f"\t:method=file:\\\n\t:file={tmp_path}/black:\n"
        "override:\\\n\t:white:\\\n\t:method=file:\\\n\t:file=white:\n"
        "last:\\\n\t:black:\\\n\t:method=file:\\\n\t:file=other:\n"
        "unused:\\\n\t:black:\\\n\t:method=exec:\\\n\t:file=/bin/false:\n"
    )
    conf.write_text(text)
    found = lists.read(str(conf))
    assert found.formats == ("spamd.conf",)
    assert listed(found) == [
        *("198.51.100.1", "198.51.100.2", "198.51.100.4/31", "198.51.100.6"),
        *("203.0.113.0/25", "203.0.113.129", "::8000:0:0:0/65"),
    ]
    assert {found.where(entry.line) for entry in found.entries(4)} == {
        *(f"{tmp_path}/black:1", f"{tmp_path}/black:2", f"{tmp_path}/other:1")
    }
    conf.write_text(text.replace(":last:", ":absent:unused:"))
    (tmp_path / "black").write_text("x\n")
    assert lists.read(str(conf)).mistakes == [
        f'{tmp_path}/black:1: expected an address or network, got "x"',
        f'{conf}:2: expected the name of a list, got "absent"',
        f'{conf}:17: expected method=file and a file, got "method=exec"; fetch it first',
    ]


# --- where it stood ------------------------------------------------------------


def test_lines_are_told_over_several_files(tmp_path: Path) -> None:
    for name, said in (("a", "# x\n203.0.113.1\n"), ("b", ""), ("c", "203.0.113.2\n203.0.113.3")):
        (tmp_path / name).write_text(said)
    found = lists.read([str(tmp_path / name) for name in "abc"])
    assert [found.where(entry.line) for entry in found.entries(4)] == [
        *(f"{tmp_path}/a:2", f"{tmp_path}/c:1", f"{tmp_path}/c:2")
    ]
    assert len(found) == 3


def test_lines_of_json_are_told(file: Path) -> None:
    found = read(file, ALERTS)
    where = [found.where(one.line) for version in (4, 6) for one in found.entries(version)]
    assert where == [f"{file}:3", f"{file}:7"]


# --- what is wrong -------------------------------------------------------------

NETWORK = "expected an address or network"
WRONG = {
    "203.0.113.5/24": f"{NETWORK}, got {{}}; the network is 203.0.113.0/24, the address alone is"
    " 203.0.113.5",
    "2001:db8::1/32": f"{NETWORK}, got {{}}; the network is 2001:db8::/32, the address alone is"
    " 2001:db8::1",
    "::ffff:203.0.113.5/120": f"{NETWORK}, got {{}}; the network is ::ffff:203.0.113.0/120, the"
    " address alone is ::ffff:203.0.113.5",
    "203.0.113.0/33": f"{NETWORK} with a prefix length of 0..32, got {{}}",
    "203.0.113.0/": f"{NETWORK} with a prefix length of 0..32, got {{}}",
    "203.0.113.0/024": f"{NETWORK} with a prefix length of 0..32, got {{}}",
    "2001:db8::/129": f"{NETWORK} with a prefix length of 0..128, got {{}}",
    "203.0.113.0/255.255.255.0": f"{NETWORK}, got {{}}; write 203.0.113.0/24",
    "203.0.113.0 255.255.255.0": "expected one address or network a line, got {}; write"
    " 203.0.113.0/24",
    "203.0.113.1 203.0.113.2": "expected one address or network a line, got {}",
    "203.0.113.9-203.0.113.1": "expected the first and the last address of a range, got {}",
    "203.0.113.9-2001:db8::1": "expected the first and the last address of a range, got {}",
    **dict.fromkeys(
        ("203.0.113", "203.0.113.256", "0x7f.1.1.1", "mx.example.com", "/", "/24", "fe80::1%eth0"),
        f"{NETWORK}, got {{}}",
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_line(file: Path, said: str) -> None:
    found = read(file, f"203.0.112.1\n{said}\n")
    assert found.mistakes == [f"{file}:2: " + WRONG[said].format(f'"{said}"')]


@pytest.mark.parametrize(
    ("octets", "got"),
    [
        (b"\0\0", r"\x00\x00"),
        (b"203.0.113.1\0", r"203.0.113.1\x00"),
        (b"\xff\xfe\xfd", r"\xff\xfe\xfd"),
        ("\u202e203.0.113.1".encode(), r"\xe2\x80\xae203.0.113.1"),
        (b"\x1b[31m", r"\x1b[31m"),
    ],
)
def test_octets_that_are_no_text(file: Path, octets: bytes, got: str) -> None:
    found = read(file, b"203.0.112.1\n" + octets + b"\n")
    assert found.mistakes == [f'{file}:2: {NETWORK}, got "{got}"']


@pytest.mark.parametrize("letter", [b"1", b"-", b" ", b"a-", b":", b"\0", b"[", b"{", b"("])
@pytest.mark.parametrize("format", [*lists.FORMATS, None])
@pytest.mark.timeout(20)
def test_a_line_of_ten_megabytes(file: Path, format: str | None, letter: bytes) -> None:
    # A blank line is none; zone values begin with a colon; who bans nobody says nothing.
    line = letter * (10_000_000 // len(letter))
    found = read(file, b"x\n" + line + b"\n", format)
    assert all(len(said) < len(str(file)) + 250 for said in found.mistakes)
    assert found.mistakes or format == "fail2ban"


def test_mistakes_are_told_up_to_a_number(file: Path) -> None:
    found = read(file, "x\n" * (formats.MOST_MISTAKES + 7) + "203.0.113.1\n")
    assert len(found.mistakes) == formats.MOST_MISTAKES + 1
    assert found.mistakes[-1] == f"{file}: and 7 more such lines"


@pytest.mark.parametrize(
    ("format", "octets", "said"),
    [
        ("drop", "{x\n", '1: expected a JSON object with "cidr", got "{x"'),
        ("drop", "[]\n", '1: expected a JSON object with "cidr", got "[]"'),
        ("drop", '{"cidr": 5}\n', '1: expected a JSON object with "cidr", got'),
        ("drop", '{"cidr": "x"}\n', f'1: {NETWORK}, got "x"'),
        ("rbldnsd", "$DATASET dnset @\n", "1: expected a data set of ip4set, ip4trie, "),
        ("rbldnsd", "!\n", f'1: {NETWORK}, got "!"'),
        ("rbldnsd", "1.2-3/8\n", f'1: {NETWORK}, got "1.2-3/8"'),
        ("rbldnsd", "1.9-3\n", "1: expected the first and the last address of a range, got"),
        ("rbldnsd", "10.1.1/16\n", f'1: {NETWORK}, got "10.1.1/16"; the network is 10.1.0.0/16'),
        ("fail2ban", "[{'a': ['x']}]", f'1: {NETWORK}, got "x"'),
        (
            "crowdsec",
            "[\n{]\n",
            "2: expected JSON (Expecting property name enclosed in double quotes)",
        ),
        ("crowdsec", "[" * 100_000, "1: expected JSON"),
        ("crowdsec", '[\n{"value": "x"}]', f'2: {NETWORK}, got "x"'),
        ("crowdsec", '["x", 5]', f'1: {NETWORK}, got "x"'),
        ("crowdsec", "value\nx\n", f'2: {NETWORK}, got "x"'),
        ("dshield", "203.0.113.0 203.0.113.9 24\n", "1: expected first address, last address and"),
        ("dshield", "203.0.113.0\n", "1: expected first address, last address and prefix length"),
        ("spamd.conf", "x\n", '1: expected a record all with the lists in order, got "x"'),
    ],
)
def test_a_wrong_file(file: Path, format: str, octets: str, said: str) -> None:
    found = read(file, octets, format)
    assert found.mistakes
    assert found.mistakes[0].startswith(f"{file}:{said}")


@pytest.mark.parametrize("format", lists.FORMATS)
@given(octets=st.binary(max_size=200))
def test_any_octets_are_read_or_told(
    tmp_path_factory: pytest.TempPathFactory, format: str, octets: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / f"octets-{format}"
    for found in (read(file, octets, format), read(file, octets)):
        assert all(said.startswith(str(file)) for said in found.mistakes)
        found.ranges(4)


# --- files ---------------------------------------------------------------------


def test_what_is_no_list_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "open").write_text("203.0.113.1\n")
    (tmp_path / "open").chmod(0o646)
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\x08")
    (tmp_path / "wide").write_text("203.0.113.1\n", encoding="utf-16")
    for name, said in (
        ("absent", "No such file or directory"),
        ("fifo", "expected a regular file"),
        (".", "Is a directory"),
        ("open", f"anybody may write to it, so it is not read; chmod o-w {tmp_path}/open"),
        ("packed", "is compressed; expected text, unpack it first"),
        ("wide", "is UTF-16; expected ASCII or UTF-8"),
    ):
        path = f"{tmp_path}/{name}"
        assert lists.read(path).mistakes == [f"{path}: {said}"]


def test_more_lines_than_a_number_can_tell(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnaway.lists.files.MOST_LINES", 3)
    monkeypatch.setattr("turnaway.lists.files.MOST_OCTETS", 9)
    assert read(file, "::1\n\n").mistakes == []
    assert read(file, "::1\n\n\n").mistakes == [f"{file}: expected at most 3 lines in all lists"]
    assert read(file, "203.0.113.1").mistakes == [f"{file}: expected at most 9 octets"]


def test_whom_a_file_is_open_to(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.touch()
    folder = tmp_path
    while folder != Path("/"):  # pytest keeps its own to itself
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)
        folder = folder.parent
    uid, gid = os.getuid(), file.stat().st_gid
    for mode, wanted in ((0o400, (True, False, False)), (0o040, (False, True, False))):
        file.chmod(mode)
        who = ((uid, gid), (uid + 1, gid), (uid + 1, gid + 1))
        assert tuple(openable(str(file), *one) for one in who) == wanted
    file.chmod(0o004)
    assert openable(str(file), uid + 1, gid + 1)
    tmp_path.chmod(0o700)
    assert not openable(str(file), uid + 1, gid + 1)


# --- ranges --------------------------------------------------------------------

RANGES = st.lists(
    st.tuples(st.integers(0, 300), st.integers(0, 40)).map(lambda one: (one[0], sum(one))),
    max_size=12,
)


def numbers(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


@given(RANGES, RANGES)
def test_ranges_are_sets(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    merged = merge(one)
    assert numbers(merged) == numbers(one)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(merged))
    assert numbers(subtract(merged, merge(other))) == numbers(one) - numbers(other)
    assert merge(subtract(merged, merge(other))) == subtract(merged, merge(other))
    assert addresses(merged) == len(numbers(one))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_range_is_the_fewest_networks(one: int, other: int) -> None:
    first, last = sorted((one, other))
    found = [ip_network(text(*network, 4)) for network in networks(first, last, 32)]
    assert found == list(collapse_addresses(found))
    assert (found[0][0], found[-1][-1]) == (ip_address(first), ip_address(last))
    assert sum(network.num_addresses for network in found) == last - first + 1


def test_all_addresses_are_a_network() -> None:
    assert cidrs([(0, 2**32 - 1)], 4) == ["0.0.0.0/0"]
    assert cidrs([(0, 2**128 - 1)], 6) == ["::/0"]
    assert sweep([], 32) == ([0], [0])
    assert resolve([], 32) == []
