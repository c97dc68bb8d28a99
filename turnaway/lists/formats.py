"""The lines of an address file, in the formats administrators really have -> entries.

Owns: what each format looks like, and what is said of a line that does not.
Every mistake is told as `file:line: expected an address or network, got "..."`,
as many of a file as one can read, the rest counted.

    plain       an address, network or range a line; `#` and `;` begin comments
    drop        Spamhaus DROP, one JSON object a line
    rbldnsd     a zone of rbldnsd(8): ip4set, ip4trie, ip4tset, ip6trie, ip6tset
    fail2ban    what fail2ban-client says: banned, status JAIL, get JAIL banip
    crowdsec    cscli decisions list -o json, or -o raw
    dshield     first, last and prefix length of a network, between tabs

spamd.conf(5), which names files, is files.py's.
"""

import csv
import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any

from turnaway.lists.ranges import BITS_SHIFT, EXCLUDED, networks
from turnaway.tables import shown

MOST_MISTAKES = 20  # told of one file
_MOST_LETTERS = 1000  # of a line that are looked at

_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96, RFC 4291 2.5.5.2
# A prefix length as it is written -> (what pack() makes of it, the host's bits).
_LENGTHS4 = {str(n): (n << BITS_SHIFT, (1 << (32 - n)) - 1) for n in range(33)}
_LENGTHS6 = {str(n): (n << BITS_SHIFT, (1 << (128 - n)) - 1) for n in range(129)}
_ALONE4 = 32 << BITS_SHIFT
_ALONE6 = 128 << BITS_SHIFT

EXPECTED = "expected an address or network"


class Wrong(ValueError):
    """What is wrong with a text: `expected ...`, to be followed by what was got."""

    def __init__(self, expected: str = EXPECTED, hint: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.hint = hint


class Reading:
    """The entries of one list while its files are read.

    Lines are counted over all files, so that one number says both.
    """

    def __init__(self) -> None:
        self.entries: dict[int, list[int]] = {4: [], 6: []}
        self.mistakes: list[str] = []
        self.lines = 0
        self.paths: list[str] = []
        self._before: list[int] = []  # lines before each file
        self._wrong: dict[str, int] = {}

    def begin(self, path: str, lines: int) -> int:
        """A file of so many lines; the number of its first one."""
        self.paths.append(path)
        self._before.append(self.lines)
        self.lines += lines
        return self._before[-1] + 1

    def place(self, line: int) -> tuple[str, int]:
        """The path of the file, and the line in it."""
        at = bisect_left(self._before, line) - 1
        return self.paths[at], line - self._before[at]

    def wrong(self, line: int, text: str, reason: Wrong) -> None:
        path, at = self.place(line)
        self._wrong[path] = self._wrong.get(path, 0) + 1
        if self._wrong[path] <= MOST_MISTAKES:
            got = shown(text[:200].strip())
            self.mistakes.append(f"{path}:{at}: {reason.expected}, got {got}{reason.hint}")

    def end(self) -> None:
        """Count the mistakes that were not told."""
        for path, count in self._wrong.items():
            if count > MOST_MISTAKES:
                self.mistakes.append(f"{path}: and {count - MOST_MISTAKES} more such lines")

    def add(self, first: int, last: int, version: int, line: int, excluded: bool = False) -> None:
        tail = line | (EXCLUDED if excluded else 0)
        width = 32 if version == 4 else 128
        for start, bits in networks(first, last, width):
            self.entries[version].append(start << 32 | bits << BITS_SHIFT | tail)


# One address, network or range


def number(text: str) -> tuple[int, int]:
    """An address as (version, number); a v4-mapped one is IPv4.  Raises Wrong."""
    try:
        if ":" not in text:
            return 4, int.from_bytes(inet_pton(AF_INET, text))
        found = int.from_bytes(inet_pton(AF_INET6, text))
    except (OSError, ValueError):
        raise Wrong from None
    return (4, found & 0xFFFFFFFF) if found >> 32 == 0xFFFF else (6, found)


def span(text: str) -> tuple[int, int, int]:
    """ADDRESS, ADDRESS/BITS or ADDRESS-ADDRESS as (version, first, last).  Raises Wrong."""
    if "-" in text:
        least, _, most = text.partition("-")
        version, first = number(least.strip())
        other, last = number(most.strip())
        if version != other or first > last:
            raise Wrong("expected the first and the last address of a range")
        return version, first, last
    address, slash, bits = text.partition("/")
    version, first = number(address)
    if not slash:
        return version, first, first
    spelt6 = ":" in address
    length = (_LENGTHS6 if spelt6 else _LENGTHS4).get(bits)
    if length is None:
        if not spelt6 and (mask := netmask(bits)) is not None:
            raise Wrong(EXPECTED, f"; write {address}/{mask}")
        raise Wrong(f"{EXPECTED} with a prefix length of 0..{128 if spelt6 else 32}")
    packed, host = length
    whole = _MAPPED | first if spelt6 and version == 4 else first
    if spelt6 and version == 4 and packed >> BITS_SHIFT < 96:
        version = 6
    if whole & host:
        base = whole & ~host
        right = inet_ntop(AF_INET6, base.to_bytes(16)) if spelt6 else _dotted(base)
        raise Wrong(
            EXPECTED,
            f"; the network is {right}/{bits}, the address alone is {address}",
        )
    if version == 6:
        return 6, whole, whole | host
    return 4, first, first | host


def _dotted(address: int) -> str:
    return inet_ntop(AF_INET, address.to_bytes(4))


def netmask(text: str) -> int | None:
    """255.255.255.0 -> 24; None for what is no netmask."""
    try:
        mask = int.from_bytes(inet_pton(AF_INET, text))
    except (OSError, ValueError):
        return None
    host = mask ^ 0xFFFFFFFF
    return 32 - host.bit_length() if mask and host & (host + 1) == 0 else None


def is_address(text: str) -> bool:
    try:
        number(text)
    except Wrong:
        return False
    return True


def _uncommented(line: str) -> str:
    return line.partition("#")[0].partition(";")[0].strip()


def _with_words(text: str) -> tuple[int, int, int]:
    """What stands before other words, which say why it is listed.  Raises Wrong."""
    found = re.fullmatch(r"(\S+)\s*-\s*(\S+)(?:\s.*)?", text, re.S)
    if found and is_address(found[1]) and is_address(found[2]):
        return span(f"{found[1]}-{found[2]}")
    words = text.split(None, 2)
    if len(words) > 1 and is_address(words[1]):
        mask = netmask(words[1])
        hint = f"; write {words[0]}/{mask}" if mask and is_address(words[0]) else ""
        raise Wrong("expected one address or network a line", hint)
    return span(words[0])


# The formats


def plain(reading: Reading, lines: list[str], start: int) -> None:
    four, six = reading.entries[4], reading.entries[6]
    from_bytes = int.from_bytes
    for at, line in enumerate(lines, start):
        if "#" in line or ";" in line:
            line = _uncommented(line)
        address, slash, bits = line.strip().partition("/")
        if not address:
            if slash:
                reading.wrong(at, line, Wrong())
            continue
        try:
            if ":" not in address:
                first = from_bytes(inet_pton(AF_INET, address))
                if slash:
                    tail, host = _LENGTHS4[bits]
                    if not first & host:
                        four.append(first << 32 | tail | at)
                        continue
                else:
                    four.append(first << 32 | _ALONE4 | at)
                    continue
            else:
                first = from_bytes(inet_pton(AF_INET6, address))
                if first >> 32 != 0xFFFF:
                    if slash:
                        tail, host = _LENGTHS6[bits]
                        if not first & host:
                            six.append(first << 32 | tail | at)
                            continue
                    else:
                        six.append(first << 32 | _ALONE6 | at)
                        continue
        except (OSError, ValueError, KeyError):
            pass
        try:
            version, first, last = _with_words(line.strip()[:_MOST_LETTERS])
        except Wrong as wrong:
            reading.wrong(at, line, wrong)
        else:
            reading.add(first, last, version, at)


def drop(reading: Reading, lines: list[str], start: int) -> None:
    for at, line in enumerate(lines, start):
        if not line.strip() or line.lstrip()[0] in "#;":
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            reading.wrong(at, line, Wrong('expected a JSON object with "cidr"'))
            continue
        if isinstance(record, dict) and record.get("type") == "metadata":
            continue
        cidr = record.get("cidr") if isinstance(record, dict) else None
        if not isinstance(cidr, str):
            reading.wrong(at, line, Wrong('expected a JSON object with "cidr"'))
            continue
        _take(reading, cidr, at)


def _take(reading: Reading, text: str, line: int) -> None:
    """One address, network or range with nothing beside it."""
    try:
        version, first, last = span(text.strip())
    except Wrong as wrong:
        reading.wrong(line, text, wrong)
    else:
        reading.add(first, last, version, line)


# The data sets of a zone that hold addresses; others hold names.
_DATASETS = ("ip4set", "ip4trie", "ip4tset", "ip6trie", "ip6tset")
VALUE = re.compile(r":[0-9]{1,3}(?:\.[0-9]{1,3}){0,3}(?::|\s|$)")


def rbldnsd(reading: Reading, lines: list[str], start: int) -> None:
    for at, line in enumerate(lines, start):
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        if text[0] == ":" and not is_address(text.split()[0].partition("/")[0]):
            continue  # a value for what follows; in a set of IPv6, ::1 is an entry
        if text[0] == "$":
            found = re.match(r"\$DATASET\s+([^\s:]+)", text, re.I)
            if found and found[1].lower() not in _DATASETS:
                reading.wrong(at, text, Wrong(f"expected a data set of {', '.join(_DATASETS)}"))
            continue
        excluded = text[0] == "!"
        words = _uncommented(text[excluded:].lstrip()).split(None, 1)
        entry = words[0] if words else ""
        if found := re.match(r"([0-9]+[./-][0-9./-]*):", entry):
            entry = found[1]  # its value follows without a space
        try:
            version, first, last = _zone_span(entry)
        except Wrong as wrong:
            reading.wrong(at, text, wrong)
        else:
            reading.add(first, last, version, at, excluded)


def _zone_span(text: str) -> tuple[int, int, int]:
    """rbldnsd(8): octets may be left out at the end, of the last address of a range too."""
    if ":" in text:
        address, slash, bits = text.partition("/")
        words = address.rstrip(":").split(":")
        if "::" not in address and len(words) < 8:
            bits = bits if slash else str(16 * len(words))
            return span(f"{':'.join(words)}::/{bits}")
        return span(text)
    least, dash, most = text.partition("-")
    if dash:
        if "." not in most and "." in least:  # 127.16-31: the last octet that was given
            most = f"{least.rpartition('.')[0]}.{most}"
        if "/" in text:
            raise Wrong
        first, last = _octets(least, "0"), _octets(most, "255")
        if first > last:
            raise Wrong("expected the first and the last address of a range")
        return 4, first, last
    address, slash, bits = text.partition("/")
    octets = address.count(".") + 1
    if slash and octets < 4:
        _octets(address, "0")
        return span(f"{address}{'.0' * (4 - octets)}/{bits}")
    return span(text) if slash else (4, _octets(address, "0"), _octets(address, "255"))


def _octets(text: str, missing: str) -> int:
    version, found = number(f"{text}{f'.{missing}' * (3 - text.count('.'))}")
    return found if version == 4 else 0


def fail2ban(reading: Reading, lines: list[str], start: int) -> None:
    for at, line in enumerate(lines, start):
        if line.lstrip().startswith("["):  # banned: [{'sshd': ['203.0.113.5']}, ...]
            for found in re.finditer(r"'([^']*)'(\s*:)?", line):
                if not found[2]:
                    _take(reading, found[1], at)
            continue
        _, said, banned = line.partition("Banned IP list:")  # status JAIL
        if said:
            line = banned
        elif re.match(r"Status\b|\s*[|`]", line):
            continue
        words = line.split()
        if len(words) > 1 and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", words[1]):
            del words[1:]  # get JAIL banip --with-time
        for word in words:
            _take(reading, word, at)


def crowdsec(reading: Reading, lines: list[str], start: int) -> None:
    text = "\n".join(lines)
    if text.lstrip()[:1] not in ("[", "{", "n"):  # null: none
        _crowdsec_raw(reading, lines, start)
        return
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        got = lines[error.lineno - 1] if error.lineno <= len(lines) else ""
        reading.wrong(start + error.lineno - 1, got, Wrong(f"expected JSON ({error.msg})"))
        return
    except (ValueError, RecursionError):
        reading.wrong(start, text[:200], Wrong("expected JSON"))
        return
    # The parser does not say where a value stood: each is looked for after the one before.
    place, line = 0, start
    for value in _decisions(found):
        there = text.find(json.dumps(value, ensure_ascii=False), place)
        if there >= 0:
            line += text.count("\n", place, there)
            place = there
        _take(reading, value, line)


def _decisions(found: Any) -> Iterator[str]:
    """The addresses and networks in alerts with their decisions, or in decisions."""
    if isinstance(found, dict):  # one alert, or the stream of the local API
        found = found.get("new", [found])
    for alert in found if isinstance(found, list) else ():
        within = alert.get("decisions", [alert]) if isinstance(alert, dict) else [alert]
        for one in within if isinstance(within, list) else ():
            if not isinstance(one, dict):
                yield str(one)
            elif _bans(one.get("scope"), one.get("type"), one.get("simulated")):
                yield str(one.get("value", ""))


def _bans(scope: Any, kind: Any, simulated: Any) -> bool:
    """Whether a decision is about an address or a network, and keeps it out."""
    return (
        str(scope or "ip").lower() in ("ip", "range")
        and str(kind or "ban").lower() == "ban"
        and str(simulated or "false").lower() != "true"
    )


def _crowdsec_raw(reading: Reading, lines: list[str], start: int) -> None:
    """The columns are named: id,source,ip,reason,action,... or value,scope,..."""
    columns: list[str] = []
    for at, line in enumerate(lines, start):
        try:
            cells = next(csv.reader([line]), [])
        except csv.Error:
            reading.wrong(at, line, Wrong("expected comma-separated values"))
            continue
        if not cells:
            continue
        if not columns:
            columns = [cell.strip().lower() for cell in cells]
            continue
        row = dict(zip(columns, cells, strict=False))
        scope, colon, value = row.get("ip", "").partition(":")  # Ip:203.0.113.5
        if not colon or scope.lower() not in ("ip", "range", "country", "as", "username"):
            scope, value = row.get("scope", ""), row.get("ip") or row.get("value", "")
        if _bans(scope, row.get("action", row.get("type")), row.get("simulated")):
            _take(reading, value, at)


def dshield(reading: Reading, lines: list[str], start: int) -> None:
    for at, line in enumerate(lines, start):
        words = _uncommented(line).split(None, 3)
        if not words or words[0].lower() == "start":
            continue
        try:
            if len(words) < 3:
                raise Wrong("expected first address, last address and prefix length")
            version, first, last = span(f"{words[0]}/{words[2]}")
            if (version, last) != number(words[1]):
                raise Wrong("expected first address, last address and prefix length")
        except Wrong as wrong:
            reading.wrong(at, line, wrong)
        else:
            reading.add(first, last, version, at)
