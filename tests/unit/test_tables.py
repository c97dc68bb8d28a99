"""A file that a person writes, read key by key; every mistake with its line.

Owns: turnaway/tables.py.  Hostile here: values of every other type, keys that
nobody knows, texts that are no TOML, and control characters that a terminal
would obey.
"""

from __future__ import annotations

import re
import string
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnaway.exits import DATA, Failure
from turnaway.tables import Document, Table, dotted, nearest, shown

VALUES = {
    '"x"': '"x"',
    "7": "7",
    "7.5": "7.5",
    "true": "true",
    "1979-05-27": "1979-05-27",
    "[1, 2]": "a list",
    "{ a = 1 }": "a table",
}


def document(text: str) -> Document:
    return Document("t.toml", text.encode(), DATA)


def told(made: Document) -> list[str]:
    try:
        made.finish()
    except Failure as failure:
        return list(failure.reasons)
    return []


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    ("reader", "takes", "expected"),
    [
        (lambda root: root.string("key"), {'"x"'}, "a string"),
        (lambda root: root.boolean("key"), {"true"}, "true or false"),
        (lambda root: root.number("key", 1, 9), {"7"}, "1..9"),
        (lambda root: root.choice("key", ("x", "y")), {'"x"'}, "one of x, y"),
        (lambda root: root.list_of("key", int, "number"), {"[1, 2]"}, "a list of numbers"),
        (lambda root: root.table("key"), {"{ a = 1 }"}, "a table"),
        (lambda root: root.array("key"), set(), "tables [[key]]"),
    ],
)
def test_a_value_of_each_type_to_each_reader(
    value: str, reader: object, takes: set[str], expected: str
) -> None:
    made = document(f"\n\nkey = {value}\n")
    got = reader(made.root)  # type: ignore[operator]
    if value in takes:
        assert got is not None
        if value == "{ a = 1 }":
            assert got.number("a", 0, 1) == 1
        assert told(made) == []
    elif value == "[1, 2]" and expected == "tables [[key]]":
        assert got == []
        assert [line.split(": expected ")[1] for line in told(made)] == [
            "a table, got 1",
            "a table, got 2",
        ]
    else:
        assert not got
        assert told(made) == [f"t.toml:3: key: expected {expected}, got {VALUES[value]}"]


def test_a_boolean_is_no_number_and_a_number_no_boolean() -> None:
    made = document("a = true\nb = 1\n")
    assert made.root.number("a", 0, 1) is None
    assert made.root.boolean("b") is None
    assert told(made) == [
        "t.toml:1: a: expected 0..1, got true",
        "t.toml:2: b: expected true or false, got 1",
    ]


def test_what_is_missing_is_told_only_where_it_is_required() -> None:
    made = document("[a.b]\n")
    inner = made.root.table("a").table("b")  # type: ignore[union-attr]
    assert isinstance(inner, Table)
    assert inner.string("x") is None
    assert inner.string("y", required=True) is None
    assert inner.array("z") == []
    assert told(made) == ["t.toml:1: a.b.y: expected a string, got nothing"]


@pytest.mark.parametrize("number", [-1, 0, 10, 1 << 70, -(1 << 70)])
def test_numbers_out_of_range(number: int) -> None:
    made = document(f"key = {number}")
    assert made.root.number("key", 1, 9) is None
    assert told(made) == [f"t.toml:1: key: expected 1..9, got {number}"]


def test_lists() -> None:
    made = document('good = ["a", "b"]\nempty = []\nbad = [\n  "a",\n  2,\n  ["c"],\n]\n')
    assert made.root.list_of("good", str, "string") == ["a", "b"]
    assert made.root.list_of("empty", str, "string") is None
    assert made.root.list_of("bad", str, "string") is None
    assert told(made) == [
        "t.toml:2: empty: expected at least one string",
        "t.toml:5: bad[1]: expected a string, got 2",
        "t.toml:6: bad[2]: expected a string, got a list",
    ]


def test_true_is_no_number_in_a_list_either() -> None:
    made = document("ports = [25, true]")
    assert made.root.list_of("ports", int, "number") is None
    assert told(made) == ["t.toml:1: ports[1]: expected a number, got true"]


def test_the_nearest_name_is_offered() -> None:
    made = document('protcol = "http"\nzzz = 1\nclose = "dran"\n')
    made.root.string("protocol")
    made.root.choice("close", ("now", "drain", "quit", "reset"))
    assert told(made) == [
        't.toml:3: close: expected one of now, drain, quit, reset, got "dran"; did you mean drain?',
        "t.toml:1: protcol: unknown key; did you mean protocol?",
        "t.toml:2: zzz: unknown key; known are close, protocol",
    ]


def test_every_mistake_in_every_table_at_once() -> None:
    text = """\
a = 1
[one]
b = 2
[[many]]
c = "x"
[[many]]
c = 3
d = 4
"""
    made = document(text)
    one = made.root.table("one")
    assert one is not None
    one.string("b")
    many = made.root.array("many")
    assert [table.string("c") for table in many] == ["x", None]
    assert told(made) == [
        "t.toml:3: one.b: expected a string, got 2",
        "t.toml:7: many[1].c: expected a string, got 3",
        "t.toml:1: a: unknown key; known are many, one",
        "t.toml:8: many[1].d: unknown key; known are c",
    ]


def test_a_table_that_nobody_asked_for_is_one_unknown_key() -> None:
    made = document("[web]\na = 1\nb = 2\n")
    made.root.table("http")
    assert told(made) == ["t.toml:1: web: unknown key; known are http"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb = \n", 2),
        ("a = 1\na = 2\n", 2),
        ("a = 1\n\n[t\n", 3),
        ("a = '''\n\n", None),
        ('a = "\x1b[2J"', 1),
        ("= 1", 1),
    ],
)
def test_a_syntax_error_has_its_line_and_stands_alone(text: str, line: int | None) -> None:
    with pytest.raises(Failure) as caught:
        document(text)
    (said,) = caught.value.reasons
    assert re.match(r"t\.toml:\d+: [ -~]+$", said)
    assert line is None or said.startswith(f"t.toml:{line}: ")


@pytest.mark.parametrize("octets", [b"a = 1\nb = '\xff'\n", b"\xff\xfea\0"])
def test_octets_that_are_no_utf8(octets: bytes) -> None:
    with pytest.raises(Failure, match=r"t\.toml:[12]: expected UTF-8, got invalid start byte"):
        Document("t.toml", octets, DATA)


HOSTILE = ["\x1b[2J", "\r\nforged: line", "\0", "\x7f", "\u202e", "n\xf6", '"', "\\", "x" * 500]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_values_are_shown_on_one_plain_line(text: str) -> None:
    for value in (text, [text], {text: text}):
        assert re.fullmatch(r"[ -~]{1,60}", shown(value))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_values_in_mistakes(text: str) -> None:
    escaped = "".join(f"\\U{ord(letter):08x}" for letter in text)
    made = document(f'a = "{escaped}"\nb = "{escaped}"\n"{escaped}" = 1\n')
    made.root.number("a", 1, 2)
    made.root.choice("b", ("now", "quit"))
    found = told(made)
    assert len(found) == 3
    for said in found:
        assert re.fullmatch(r"t\.toml:[123]: [ -~]+", said), said
        assert len(said) < 200


JSON = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**80), 2**80), st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(JSON)
def test_whatever_the_value_it_is_shown_in_sixty_letters(value: object) -> None:
    assert re.fullmatch(r"[ -~]{1,60}", shown(value))


KEY = st.text(string.ascii_lowercase, min_size=1, max_size=4)


@given(st.dictionaries(KEY, st.integers(0, 99), max_size=6), st.lists(KEY, max_size=6))
def test_exactly_the_keys_nobody_asked_for_are_told(data: dict[str, int], asked: list[str]) -> None:
    made = document("".join(f"{key} = {value}\n" for key, value in data.items()))
    for key in asked:
        assert made.root.number(key, 0, 99) == data.get(key)
    found = told(made)
    lines = {key: number for number, key in enumerate(data, 1)}
    assert {said.split(": ")[1] for said in found} == set(data) - set(asked)
    for said in found:
        place, key, rest = said.split(": ", 2)
        assert place == f"t.toml:{lines[key]}"
        assert rest.startswith("unknown key")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(Failure, match=r"^t\.toml:\d+: ") as caught:
            document(text)
        assert caught.value.status == DATA
    else:
        assert document(text).root.data == data


def test_paths_are_written_as_a_person_would() -> None:
    assert dotted(("listener", 2, "port")) == "listener[2].port"
    assert dotted(("a",)) == "a"
    assert dotted(("a", 0, 1)) == "a[0][1]"
    assert dotted(("text", "pop 3", "line")) == 'text."pop 3".line'


def test_nothing_near_is_nothing_said() -> None:
    assert nearest("zzz", ("port", "name")) == ""
    assert nearest("prot", ("port", "name")) == "; did you mean port?"
    assert nearest("x", ()) == ""
