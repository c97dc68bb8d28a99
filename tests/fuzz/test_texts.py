"""What a person writes, mangled: configuration, personas, lists, the command line.

Owns: that any file at all becomes Settings, a Persona or a list, or mistakes that
name a line of it, and nothing else; that what is taken reads back the same after
--print-config.  Real files are the beginning: words are dropped, doubled, swapped
and replaced, so that most of a text stays right.
"""

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnaway import cli, dump, lists, personas
from turnaway.exits import CONFIGURATION, DATA, NO_PERMISSION, NO_USER, USAGE, Failure

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
# Every key of the example, not commented out.
EXAMPLE = re.sub(
    r"^#(?=\S)", "", (ROOT / "contrib" / "turnaway.toml").read_text(), flags=re.MULTILINE
)
PERSONAS = [path.read_text() for path in sorted(personas.HOME.glob("*.toml"))]
LISTS = [
    "203.0.113.7\n2001:db8::/32 # a comment\n\n!203.0.113.0/30\n198.51.100.1-198.51.100.9\n",
    "; Spamhaus DROP\n203.0.113.0/24 ; SBL1\n198.51.100.0/25 ; SBL2\n",
    '{"cidr":"203.0.113.0/24","sblid":"SBL1","rir":"ripencc"}\n{"type":"metadata","records":1}\n',
    ":127.0.0.2:$ is listed\n203.0.113.4\n!203.0.113.5\n$SOA 0 a b 0 600 300 604800 600\n",
    "Start\tEnd\tNetmask\tAttacks\n203.0.113.0\t203.0.113.255\t24\t100\n",
    "10.0.0/24\n203.0.113\n192.0.2.4\\/31\n",
]
WORDS = st.sampled_from(
    [
        *('"', "'", "[", "]", "[[", "]]", "{", "}", "=", ",", ".", "#", "\n", "\r", "\t", "\0"),
        *('"""', "\\u0000", "\\ud800", "\x7f", "\ufeff", "\u2028", "0", "-1", "1e999", "0x19"),
        *("nan", "inf", "true", "1979-05-27", "99999999999999999999", "[::1]", "::ffff:1.2.3.4"),
        *("{name}", "{client}", "{}", "{{", "%s", "/", "..", "/dev/null", "!", ";", "::/0"),
        *("0.0.0.0/0", "255.255.255.255", "203.0.113.7/33", "2001:db8::-2001:db8::9", "1.2.3"),
    ]
)
SPLIT = re.compile(r"(\s+|[\[\]{}=,\"#;/:]|\w+)")
ALLOWED = {USAGE, DATA, NO_USER, NO_PERMISSION, CONFIGURATION}


@st.composite
def mangled(draw: st.DrawFn, texts: Sequence[str]) -> str:
    """One of the texts with a few of its words dropped, doubled, moved or replaced."""
    words = SPLIT.split(draw(st.sampled_from(texts)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(words) - 1))
        how = draw(st.integers(0, 4))
        other = draw(st.integers(0, len(words) - 1))
        if how == 0:
            words[at] = ""
        elif how == 1:
            words[at] *= 2
        elif how == 2:
            words[at], words[other] = words[other], words[at]
        elif how == 3:
            words[at] = draw(WORDS | st.text(max_size=6))
        else:
            del words[min(at, other) : max(at, other)]
            words = words or [""]
    return "".join(words)


def octets(texts: Sequence[str]) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=60) | mangled(texts).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("texts")
    for name in ("allow.txt", "drop_v4.json", "drop_v6.json"):
        (made / name).write_text("203.0.113.7\n")
    return made


def told(reasons: Sequence[str], file: Path, lines: int) -> None:
    """Each reason names a line that the file has, and is one line itself."""
    for reason in reasons:
        stated = re.match(rf"{re.escape(str(file))}:(\d+): \S", reason)
        assert stated, reason
        assert 1 <= int(stated[1]) <= max(lines, 1), reason


def lines_of(text: bytes) -> int:
    """How many lines there are, the one after the last LF too."""
    return text.count(b"\n") + 1


def outcome(act: Callable[[], T]) -> T | Failure:
    """What it returns, or the one exception that it may raise."""
    try:
        return act()
    except Failure as failure:
        return failure


@given(octets([EXAMPLE]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_configuration_is_settings_or_mistakes_with_their_line(
    folder: Path, text: bytes
) -> None:
    file = folder / "turnaway.toml"
    file.write_bytes(text)
    made = outcome(lambda: cli.parse(["turnaway-fast", "-c", str(file)], True).settings)
    if isinstance(made, Failure):
        assert made.status in ALLOWED
        assert made.reasons
        for reason in made.reasons:
            # What the file lacks, or what this host lacks, has no line.
            if reason.startswith(f"{file}:") and not reason.startswith(f"{file}: "):
                told([reason], file, lines_of(text))
        return
    again = folder / "again.toml"
    again.write_text(dump.dump(made))
    read = cli.parse(["turnaway-fast", "-c", str(again)], True).settings
    assert dump.dump(read) == dump.dump(made)


@given(octets(PERSONAS))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_persona_file_is_a_persona_or_mistakes_with_their_line(
    folder: Path, text: bytes
) -> None:
    file = folder / "persona.toml"
    file.write_bytes(text)
    made = outcome(lambda: personas.read(file))
    if isinstance(made, Failure):
        assert made.status == DATA
        assert made.reasons
        told(made.reasons, file, lines_of(text))
    else:
        assert made.name == "persona"
        # It may still not fit a reply; that is told, with its line, by the command.
        with contextlib.suppress(Failure):
            line = ["turnaway-fast", "-p", str(file), "Earth", "127.0.0.1:2525 a"]
            assert cli.parse(line, False).settings.listeners


@given(octets(LISTS), st.sampled_from([None, *lists.FORMATS]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_list_file_is_a_list_or_mistakes_with_their_line(
    folder: Path, text: bytes, form: str | None
) -> None:
    file = folder / "list.txt"
    file.write_bytes(text)
    made = lists.read(str(file), form)
    if made.mistakes:
        # Of the whole file: that its form is not known, or how many more there are.
        whole = re.compile(rf"{re.escape(str(file))}: \S")
        lined = [one for one in made.mistakes if not whole.match(one)]
        told(lined, file, lines_of(text))
        return
    for version, width in ((4, 32), (6, 128)):
        last = -2
        for first, end in made.ranges(version):
            assert last + 1 < first <= end < 1 << width
            last = end
        for entry in made.entries(version):
            told([f"{made.where(entry.line)}: x"], file, lines_of(text))
