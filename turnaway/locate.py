"""On which line of a TOML text each value stands.

tomllib keeps no positions, and an error that names file and line is worth more
than one that names a key.  The scanner trusts that tomllib has accepted the
text; on anything else its answer means nothing.
"""

import tomllib

Path = tuple[str | int, ...]


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n") + "\n"
        self.at = 0
        self._counted, self._line = 0, 1  # up to where newlines are counted
        self.found: dict[Path, int] = {}

    def line(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def mention(self, path: Path) -> None:
        """What stands here, and every table that it brings about, if it is the first time."""
        line = self.line()
        for length in range(1, len(path) + 1):
            self.found.setdefault(path[:length], line)

    def blank(self, newlines: bool) -> None:
        """Skip white space and comments, and newlines too if told."""
        while self.at < len(self.text):
            here = self.text[self.at]
            if here == "#":
                self.at = self.text.index("\n", self.at)
            elif here in " \t" or (newlines and here == "\n"):
                self.at += 1
            else:
                return

    def quoted(self) -> None:
        """Skip a string, with the cursor on its first quote."""
        mark = self.text[self.at]
        if self.text.startswith(mark * 3, self.at):
            mark *= 3
        self.at += len(mark)
        while not self.text.startswith(mark, self.at):
            self.at += 2 if self.text[self.at] == "\\" and mark[0] == '"' else 1
        self.at += len(mark)
        while len(mark) == 3 and self.text[self.at] == mark[0]:  # up to two more
            self.at += 1

    def key(self) -> Path:
        """A dotted key, as its parts."""
        parts: list[str] = []
        while True:
            self.blank(newlines=False)
            if self.text[self.at] in "\"'":
                start = self.at
                self.quoted()
                # tomllib, so that an escape means what it means there
                parts.append(tomllib.loads(f"key = {self.text[start : self.at]}")["key"])
            else:
                start = self.at
                while self.text[self.at].isalnum() or self.text[self.at] in "_-":
                    self.at += 1
                parts.append(self.text[start : self.at])
            self.blank(newlines=False)
            if self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def value(self, path: Path) -> None:
        self.mention(path)
        here = self.text[self.at]
        if here in "\"'":
            self.quoted()
        elif here == "[":
            self.members(path, "]")
        elif here == "{":
            self.members(path, "}")
        else:
            while self.text[self.at] not in ",]}#\n":
                self.at += 1

    def members(self, path: Path, end: str) -> None:
        """The elements of an array or of an inline table."""
        self.at += 1
        number = 0
        while True:
            self.blank(newlines=True)
            if self.text[self.at] == end:
                self.at += 1
                return
            if self.text[self.at] == ",":
                self.at += 1
            elif end == "]":
                self.value((*path, number))
                number += 1
            else:
                self.pair(path)

    def pair(self, path: Path) -> None:
        key = (*path, *self.key())
        self.mention(key)
        self.at += 1  # the equals sign
        self.blank(newlines=False)
        self.value(key)

    def document(self) -> dict[Path, int]:
        table: Path = ()
        numbers: dict[Path, int] = {}
        while True:
            self.blank(newlines=True)
            if self.at >= len(self.text):
                return self.found
            if self.text[self.at] != "[":
                self.pair(table)
                continue
            depth = 2 if self.text.startswith("[[", self.at) else 1
            self.at += depth
            named = self.key()
            self.at += depth
            # A table inside an array of tables belongs to its last element.
            table = ()
            for place, part in enumerate(named):
                table += (part,)
                last = place == len(named) - 1
                if last and depth == 2:
                    numbers[table] = numbers.get(table, -1) + 1
                if table in numbers:
                    table += (numbers[table],)
            self.mention(table)


def locate(text: str) -> dict[Path, int]:
    """{("listener", 0, "port"): 12, ...}: the line of every key and element."""
    return _Scanner(text).document()
