"""A TOML file read key by key: typed values, and every mistake with its line.

Owns: the reading of files that a person writes, and the form of what is said
about them, `file:line: key: expected ..., got ...`.  Whoever reads a file asks
for what it knows; `finish` then names the keys that nobody asked for and raises
Failure with all mistakes together.
"""

import difflib
import os
import pathlib
import re
import stat
import tomllib
from collections.abc import Collection
from typing import Any

from turnaway.exits import Failure
from turnaway.locate import Path, locate

MOST_OCTETS = 4 << 20  # of a file; the daemon stands still while it reads one


def octets_of(path: pathlib.Path, status: int, guarded: bool) -> bytes:
    """What a file holds.  `guarded`: root was to read it, so nobody else may write to it.

    Raises Failure for that, for what is no file (a pipe would never end) and for one
    that is longer than any configuration.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise Failure(status, f"{path}: expected a file, got something else")
            if guarded and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise Failure(
                    status,
                    f"{path}: others than its owner may write to it, so root does not read it;"
                    f" chmod go-w {path}",
                )
            if found.st_size > MOST_OCTETS:
                raise Failure(
                    status, f"{path}: {found.st_size} octets; at most {MOST_OCTETS} are read"
                )
            return file.read(MOST_OCTETS)
    except OSError as error:
        raise Failure(status, f"{path}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise Failure(status, f"{str(path)!r}: {error}") from None


class Document:
    """One file.  `status` is the exit status of its mistakes."""

    def __init__(self, name: str, octets: bytes, status: int) -> None:
        self.name = name
        self.status = status
        self.mistakes: list[str] = []
        try:
            text = octets.decode("utf-8")
            data = tomllib.loads(text)
        except UnicodeDecodeError as error:
            line = octets.count(b"\n", 0, error.start) + 1
            raise Failure(status, f"{name}:{line}: expected UTF-8, got {error.reason}") from None
        except tomllib.TOMLDecodeError as error:
            # "Invalid value (at line 3, column 8)", or "(at end of document)"
            said, _, place = str(error).removesuffix(")").rpartition(" (at ")
            stated = re.match(r"line (\d+)", place)
            line = int(stated[1]) if stated else text.count("\n") + 1
            raise Failure(status, f"{name}:{line}: {said or place}") from None
        except RecursionError:
            raise Failure(status, f"{name}: nested too deep") from None
        except ValueError:  # of int(), which tomllib lets through
            raise Failure(status, f"{name}: a number has too many digits") from None
        try:
            self.lines = locate(text)
        except RecursionError:
            raise Failure(status, f"{name}: nested too deep") from None
        self.root = Table(self, (), data)

    def where(self, path: Path) -> str:
        """file:line of a key, or of the table it is missing from."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines.get(path, 1)}"

    def wrong(self, path: Path, said: str) -> None:
        self.mistakes.append(f"{self.where(path)}: {dotted(path)}: {said}")

    def finish(self) -> None:
        """Raise Failure if anything was wrong."""
        self.root.finish()
        if self.mistakes:
            raise Failure(self.status, *self.mistakes)


class Table:
    """A table of the document, at `path`."""

    def __init__(self, document: Document, path: Path, data: dict[str, Any]) -> None:
        self.document = document
        self.path = path
        self.data = data
        self.asked: set[str] = set()
        self.tables: list[Table] = []

    def wrong(self, key: str, said: str) -> None:
        self.document.wrong((*self.path, key), said)

    def where(self, key: str, *more: str | int) -> str:
        return self.document.where((*self.path, key, *more))

    def take(self, key: str, kinds: tuple[type, ...], expected: str, required: bool) -> Any:
        """The value of a key if it is of one of `kinds`, else None and a mistake."""
        self.asked.add(key)
        if key not in self.data:
            if required:
                self.wrong(key, f"expected {expected}, got nothing")
            return None
        value = self.data[key]
        if type(value) not in kinds:
            self.wrong(key, f"expected {expected}, got {shown(value)}")
            return None
        return value

    def string(self, key: str, required: bool = False) -> str | None:
        value: str | None = self.take(key, (str,), "a string", required)
        return value

    def boolean(self, key: str) -> bool | None:
        value: bool | None = self.take(key, (bool,), "true or false", False)
        return value

    def choice(self, key: str, choices: Collection[str], required: bool = False) -> str | None:
        expected = f"one of {', '.join(choices)}"
        value: str | None = self.take(key, (str,), expected, required)
        if value is not None and value not in choices:
            self.wrong(key, f"expected {expected}, got {shown(value)}{nearest(value, choices)}")
            return None
        return value

    def number(self, key: str, least: int, most: int, required: bool = False) -> int | None:
        expected = f"{least}..{most}"
        value: int | None = self.take(key, (int,), expected, required)
        if value is not None and not least <= value <= most:
            self.wrong(key, f"expected {expected}, got {shown(value)}")
            return None
        return value

    def list_of(
        self, key: str, kind: type, expected: str, required: bool = False, empty: bool = False
    ) -> list[Any] | None:
        """The elements of an array; None when it is missing or any is wrong."""
        value: list[Any] | None = self.take(key, (list,), f"a list of {expected}s", required)
        if value is None:
            return None
        if not value and not empty:
            self.wrong(key, f"expected at least one {expected}")
            return None
        good = True
        for number, element in enumerate(value):
            if type(element) is not kind:
                said = f"expected a {expected}, got {shown(element)}"
                self.document.wrong((*self.path, key, number), said)
                good = False
        return value if good else None

    def table(self, key: str, required: bool = False) -> "Table | None":
        value = self.take(key, (dict,), "a table", required)
        return None if value is None else self._sub((*self.path, key), value)

    def array(self, key: str) -> "list[Table]":
        """The tables of an array of tables, [[key]]."""
        value = self.take(key, (list,), f"tables [[{key}]]", False) or []
        made = []
        for number, element in enumerate(value):
            if isinstance(element, dict):
                made.append(self._sub((*self.path, key, number), element))
            else:
                said = f"expected a table, got {shown(element)}"
                self.document.wrong((*self.path, key, number), said)
        return made

    def _sub(self, path: Path, data: dict[str, Any]) -> "Table":
        made = Table(self.document, path, data)
        self.tables.append(made)
        return made

    def finish(self) -> None:
        """Name the keys that nobody asked for, here and below."""
        for key in self.data:
            if key not in self.asked:
                known = ", ".join(sorted(self.asked))
                self.wrong(key, f"unknown key{nearest(key, self.asked) or f'; known are {known}'}")
        for table in self.tables:
            table.finish()


def dotted(path: Path) -> str:
    """("listener", 2, "port") -> "listener[2].port"; a key that is not bare is quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]{1,60}", part) is not None
            text += ("." if text else "") + (part if bare else shown(part))
    return text


def shown(value: object) -> str:
    """A value in TOML's own spelling, short."""
    if isinstance(value, str):
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, dict):
        text = "a table"
    elif isinstance(value, list):
        text = "a list"
    else:
        text = str(value)
    text = text.encode("ascii", "backslashreplace").decode()
    text = re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(word: str, known: Collection[str]) -> str:
    """`; did you mean port?`, or nothing."""
    close = difflib.get_close_matches(word, sorted(known), 1)
    return f"; did you mean {close[0]}?" if close else ""
