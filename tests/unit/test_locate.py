"""Which line a value stands on, against documents whose lines the test knows.

Owns: turnaway/locate.py.  A document is built line by line, and with it the
line of each key; tomllib, another reader of the same text, must find exactly
the keys that locate() does.
"""

import string
import tomllib
from collections.abc import Iterator

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from turnaway.locate import Path, locate

BARE = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=6)
COMMENTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12).map(
    lambda text: f"# {text}"
)
BLANKS = st.sampled_from(["", " ", "\t ", "   "])
# Inside strings: everything that looks like syntax, and is none there.
INSIDE = st.text(st.sampled_from("ab [],={}#.'é\U0001f525"), max_size=10)


def basic(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


SCALARS = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda number: f"{number:.3f}"),
    st.sampled_from(
        ["true", "false", "inf", "1979-05-27", "1979-05-27 07:32:00Z", "07:32:00", "0xff", "1_0"]
    ),
    INSIDE.map(basic),
    INSIDE.map(lambda text: basic(text + '\\ "' + text)),
    INSIDE.filter(lambda text: "'" not in text).map(lambda text: f"'{text}\\'"),
)
LONG = st.one_of(
    st.lists(INSIDE, min_size=1, max_size=4).map(
        lambda lines: '"""' + "\n".join(lines) + ' \\""" ""\\\n  x""""'
    ),
    st.lists(INSIDE.filter(lambda text: "'" not in text), min_size=1, max_size=4).map(
        lambda lines: "'''" + "\n".join(lines) + " = [ # ''x'''"
    ),
    st.just('""""""'),
    st.just("''''''"),
    st.just('"""""two more at the end"""""'),
)


# A document is shrunk for minutes, and is short enough to be read as it is.
WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)


class Document:
    """A TOML text in the making, and the line of everything in it so far."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[Path, int] = {}
        self.tables: dict[str, int] = {}  # arrays of tables, and how many elements

    @property
    def line(self) -> int:
        return self.text.count("\n") + 1

    def mention(self, path: Path) -> None:
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], self.line)

    def blank(self) -> str:
        return self.draw(BLANKS)

    def gap(self) -> None:
        """What may stand between the elements of an array."""
        for _ in range(self.draw(st.integers(0, 2))):
            self.text += self.draw(
                st.one_of(BLANKS, COMMENTS.map(lambda one: f" {one}\n"), st.just("\n"))
            )

    def key(self, *parts: str) -> None:
        dot = f"{self.blank()}.{self.blank()}"
        self.text += dot.join(self.written(part) for part in parts)

    def written(self, part: str) -> str:
        bare = part.isascii() and part.replace("_", "a").replace("-", "a").isalnum()
        quotes = [basic(part)]
        if "'" not in part and "\n" not in part:
            quotes.append(f"'{part}'")
        return self.draw(st.sampled_from([*quotes, *([part] if bare else [])]))

    def fresh(self, path: Path) -> str:
        """A key that is not in `path` yet."""
        taken = {
            one[len(path)]
            for one in self.lines
            if one[: len(path)] == path and len(one) > len(path)
        }
        names = BARE | st.sampled_from(
            ["a b", "a.b", "é", 'q"q', "=", "#", "", "[x]", "n\nn", "\\"]
        )
        return self.draw(names.filter(lambda name: name not in taken))

    def value(self, path: Path, depth: int) -> None:
        kinds = ["scalar", "scalar", "long"] + (["array", "table"] if depth < 3 else [])
        kind = self.draw(st.sampled_from(kinds))
        if kind == "array":
            self.text += "["
            count = self.draw(st.integers(0, 3))
            for number in range(count):
                self.gap()
                self.mention((*path, number))
                self.value((*path, number), depth + 1)
                self.gap()
                if number < count - 1 or self.draw(st.booleans()):
                    self.text += ","
            self.gap()
            self.text += "]"
        elif kind == "table":
            self.text += "{"
            for number in range(self.draw(st.integers(0, 3))):
                self.text += "," if number else ""
                self.text += self.blank()
                self.pair(path, depth + 1)
            self.text += self.blank() + "}"
        else:
            self.text += self.draw(SCALARS if kind == "scalar" else LONG)

    def pair(self, table: Path, depth: int = 0) -> None:
        parts = [self.fresh(table)]
        while self.draw(st.integers(0, 3)) == 0:
            parts.append(self.draw(BARE))
        path = (*table, *parts)
        self.mention(path)
        self.key(*parts)
        self.text += f"{self.blank()}={self.blank()}"
        self.value(path, depth)
        self.text += self.blank()

    def end_line(self) -> None:
        self.text += self.draw(BLANKS) + self.draw(st.just("") | COMMENTS) + "\n"

    def header(self) -> Path:
        """[table], [a.table], [[array]] or [array.table]: a path for what follows."""
        kind = self.draw(st.sampled_from(["table", "array", "again", "inside"]))
        if kind in ("again", "inside") and self.tables:
            name = self.draw(st.sampled_from(sorted(self.tables)))
        else:
            name = self.fresh(())
        if kind == "table" or (kind == "inside" and name not in self.tables):
            parts = [name, *self.draw(st.lists(BARE, max_size=2))]
            path: Path = tuple(parts)
            self.mention(path)
            self.text += f"[{self.blank()}"
            self.key(*parts)
            self.text += f"{self.blank()}]"
        elif kind == "inside":
            base: Path = (name, self.tables[name])
            inner = self.fresh(base)
            path = (*base, inner)
            self.mention(path)
            self.text += f"[{self.blank()}"
            self.key(name, inner)
            self.text += f"{self.blank()}]"
        else:
            self.tables[name] = self.tables.get(name, -1) + 1
            path = (name, self.tables[name])
            self.mention(path)
            self.text += f"[[{self.blank()}"
            self.key(name)
            self.text += f"{self.blank()}]]"
        self.end_line()
        return path


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[Path, int]]:
    made = Document(draw)
    table: Path = ()
    for _ in range(draw(st.integers(0, 12))):
        what = draw(st.sampled_from(["pair", "pair", "pair", "header", "blank", "comment"]))
        if what == "header":
            table = made.header()
        elif what == "pair":
            made.text += made.blank()
            made.pair(table)
            made.end_line()
        elif what == "comment":
            made.text += draw(COMMENTS) + "\n"
        else:
            made.text += made.blank() + "\n"
    text = made.text if draw(st.booleans()) else made.text.removesuffix("\n")
    return text, made.lines


def paths(value: object, path: Path = ()) -> Iterator[Path]:
    """Every key and element of what tomllib read."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from paths(inner, (*path, number))


@settings(phases=WITHOUT_SHRINKING)
@given(documents())
def test_every_key_on_its_line(document: tuple[str, dict[Path, int]]) -> None:
    text, lines = document
    assert set(paths(tomllib.loads(text))) == set(lines)  # the test knows what it wrote
    assert locate(text) == lines


@settings(phases=WITHOUT_SHRINKING)
@given(documents())
def test_line_ends_of_another_system(document: tuple[str, dict[Path, int]]) -> None:
    text, lines = document
    assert locate(text.replace("\n", "\r\n")) == lines


def test_nothing() -> None:
    assert locate("") == {}
    assert locate("# only a comment") == {}
    assert locate("\n\n  \n") == {}


# The shape that a configuration of listeners has.
CONFIGURATION = '''\
# comment with = and [brackets]
location = "Somecity, Earth"   # another

[[listener]]
address = "0.0.0.0"
names = [
    "a", # one
    "b",

    { x = 1, y = [2,
        3] },
]
text = """
[[listener]]
port = 99 "quoted" \\
"""
[listener.limits]
rate.second = 5
"odd key".'x' = 'C:\\'

[[listener]]
port = 587
[[listener.peer]]
name = "p0"
[[listener.peer]]
name = "p1"
[other.deep]
at = 1979-05-27T07:32:00Z
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("location",), 2),
        (("listener",), 4),
        (("listener", 0), 4),
        (("listener", 0, "address"), 5),
        (("listener", 0, "names"), 6),
        (("listener", 0, "names", 0), 7),
        (("listener", 0, "names", 1), 8),
        (("listener", 0, "names", 2, "x"), 10),
        (("listener", 0, "names", 2, "y", 1), 11),
        (("listener", 0, "text"), 13),
        (("listener", 0, "limits"), 17),
        (("listener", 0, "limits", "rate"), 18),
        (("listener", 0, "limits", "rate", "second"), 18),
        (("listener", 0, "limits", "odd key", "x"), 19),
        (("listener", 1), 21),
        (("listener", 1, "port"), 22),
        (("listener", 1, "peer", 0, "name"), 24),
        (("listener", 1, "peer", 1), 25),
        (("listener", 1, "peer", 1, "name"), 26),
        (("other",), 27),
        (("other", "deep", "at"), 28),
    ],
)
def test_a_configuration(path: Path, line: int) -> None:
    assert locate(CONFIGURATION)[path] == line


def test_the_configuration_is_whole() -> None:
    assert set(locate(CONFIGURATION)) == set(paths(tomllib.loads(CONFIGURATION)))
