"""From the path of an address file to its entries.

Owns: how such a file is opened, by what its format is recognised, and OpenBSD's
spamd.conf(5), which names other files.  Promises: what is no regular file, or
too large, or could be written by anybody, is not read.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator

from turnaway.lists import formats
from turnaway.lists.formats import Reading, Wrong, is_address, netmask
from turnaway.lists.ranges import (
    LINE,
    MOST_LINES,
    WIDTH,
    networks,
    pack,
    resolve,
    span_of,
    subtract,
)

MOST_OCTETS = 1 << 28  # of one file
_HEAD = 64  # lines that are looked at to recognise a format


def octets(path: str) -> bytes:
    """What is in a file.  Raises OSError, or ValueError with what is wrong with it."""
    # A FIFO is not waited for, nor a device.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(file, "rb") as opened:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("expected a regular file")
        if status.st_mode & stat.S_IWOTH:
            raise ValueError(f"anybody may write to it, so it is not read; chmod o-w {path}")
        found = opened.read(MOST_OCTETS + 1)
    if len(found) > MOST_OCTETS:
        raise ValueError(f"expected at most {MOST_OCTETS} octets")
    if found.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise ValueError("is compressed; expected text, unpack it first")
    if found.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("is UTF-16; expected ASCII or UTF-8")
    return found.removeprefix(b"\xef\xbb\xbf")


def openable(path: str, uid: int, gid: int) -> bool:
    """Whether this user, of this group alone, may read a file: by the modes of the
    file and of the directories above it."""
    path, bit = os.path.realpath(path), stat.S_IROTH
    while True:
        status = os.stat(path)
        # The bits of the first that fits count, path_resolution(7).
        shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
        if not status.st_mode & (bit << shift):
            return False
        if path == "/":
            return True
        path, bit = os.path.dirname(path), stat.S_IXOTH


def read(path: str, format: str | None, reading: Reading) -> str | None:
    """Add a file's entries to `reading`, and its mistakes; the format it is in."""
    try:
        found = octets(path)
    except OSError as error:
        reading.mistakes.append(f"{path}: {error.strerror}")
        return None
    except ValueError as error:
        reading.mistakes.append(f"{path}: {error}")
        return None
    # Whatever the octets are, each is a letter: only in a message does it matter.
    lines = found.decode("latin-1").split("\n")
    if reading.lines + len(lines) > MOST_LINES:
        reading.mistakes.append(f"{path}: expected at most {MOST_LINES} lines in all lists")
        return None
    kind = format or recognise(lines)
    FORMATS[kind](reading, lines, reading.begin(path, len(lines)))
    return kind


def recognise(lines: list[str]) -> str:
    """The name of the format of these lines: plain when nothing else fits."""
    head: list[str] = []
    for line in lines:
        text = line[:1000].strip()
        if text and text[0] not in "#;":
            head.append(text)
            if len(head) == _HEAD:
                break
    if not head:
        return "plain"
    first = head[0]
    if first[0] == "{":
        return "drop" if re.search(r'"cidr"|"metadata"', first) else "crowdsec"
    if first[0] == "[":
        return "fail2ban" if re.match(r"\[\s*[\[{]?\s*'", first) else "crowdsec"
    if first == "null":
        return "crowdsec"
    columns = {column.strip() for column in first.lower().split(",")}
    if "value" in columns or {"ip", "action"} <= columns:
        return "crowdsec"
    if any("Banned IP list:" in line for line in head):
        return "fail2ban"
    if any(re.match(r"all:\\?$|all:\\?\s*:|all:[\w:-]+:\\?$", line) for line in head):
        return "spamd.conf"
    if any(line[0] in "$!" or formats.VALUE.match(line) for line in head):
        return "rbldnsd"
    words = (head[1] if first.lower().startswith("start") and len(head) > 1 else first).split()
    if len(words) > 1 and is_address(words[0]) and is_address(words[1]):
        if len(words) > 2 and re.fullmatch("[0-9]{1,3}", words[2]):
            return "dshield"
        if netmask(words[1]) is None:
            return "fail2ban"
    return "plain"


def _spamd_conf(reading: Reading, lines: list[str], start: int) -> None:
    """The files of its lists in the order of `all`; a white one takes from the black before it."""
    folder = os.path.dirname(reading.place(start)[0])
    records: dict[str, tuple[int, list[str]]] = {}
    for at, record in _records(lines, start):
        name, *fields = record.split(":")
        records[name.strip()] = at, [field.strip() for field in fields if field.strip()]
    if "all" not in records:
        reading.wrong(start, lines[0], Wrong("expected a record all with the lists in order"))
        return
    top, order = records["all"]
    black: dict[int, list[int]] = {4: [], 6: []}  # of the black list before
    done: dict[int, list[int]] = {4: [], 6: []}
    for name in order:
        if name not in records:
            reading.wrong(top, name, Wrong("expected the name of a list"))
            continue
        at, fields = records[name]
        values = dict(field.partition("=")[::2] for field in fields)
        file = values.get("file", "").strip('"')
        if values.get("method", "") != "file" or not file:
            got = f"method={values.get('method', '')}"
            reading.wrong(at, got, Wrong("expected method=file and a file", "; fetch it first"))
            continue
        reading.entries = {4: [], 6: []}
        path = os.path.join(folder, file)
        read(path, "plain", reading)
        if "white" in fields:
            for version in (4, 6):
                white = reading.entries[version]
                black[version] = list(_without(black[version], white, WIDTH[version]))
        else:
            for version in (4, 6):
                done[version] += black[version]
            black = reading.entries
    for version in (4, 6):
        done[version] += black[version]
    reading.entries = done


def _records(lines: list[str], start: int) -> Iterator[tuple[int, str]]:
    """cgetent(3): a backslash at its end goes on with the line."""
    text, begun = "", start
    for at, line in enumerate(lines, start):
        if not text:
            if not line.strip() or line.lstrip()[0] == "#":
                continue
            begun = at
        text += line.strip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            yield begun, text
            text = ""
    if text:
        yield begun, text


def _without(black: list[int], white: list[int], width: int) -> Iterator[int]:
    """The entries of a black list, less whatever a white one has of them."""
    gone = resolve(white, width)
    for entry in black:
        one = span_of(entry, width)
        for first, last in subtract([one], gone):
            for start, bits in networks(first, last, width):
                yield pack(start, bits, entry & LINE)


FORMATS: dict[str, Callable[[Reading, list[str], int], None]] = {
    "plain": formats.plain,
    "drop": formats.drop,
    "rbldnsd": formats.rbldnsd,
    "spamd.conf": _spamd_conf,
    "fail2ban": formats.fail2ban,
    "crowdsec": formats.crowdsec,
    "dshield": formats.dshield,
}
