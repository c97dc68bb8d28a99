"""The warnings of --check, by the installed command: what is told, where, and when not.

Owns: turnaway/lint.py.  Code against close policy is tests/unit/test_answers.py's.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from running import COMMAND, SECONDS

from turnaway import lint, personas

EXAMPLE = Path(__file__).parents[2] / "contrib/turnaway.toml"
LISTENER = '[[listener]]\naddress = "127.0.0.1:2525"\nname = "mx.example.com"\npersona = "own"\n'
WHY = "{name} refuses you, see https://example.com/why"


def check(*arguments: str) -> list[str]:
    """The warnings; the status is 0 whatever they say."""
    ended = subprocess.run(
        [str(COMMAND), "--check", "--pidfile", "none", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ended.returncode == 0, ended.stderr
    assert "all is well" in ended.stdout
    prefix = "turnaway-fast: warning: "
    assert all(line.startswith(prefix) for line in ended.stderr.splitlines())
    return [line.removeprefix(prefix) for line in ended.stderr.splitlines()]


def check_file(file: Path, lines: list[str], more: str = "", top: str = "") -> list[str]:
    said = "".join(f"    '{line}',\n" for line in lines)
    file.write_text(
        f"location = 'Earth'\n{top}{LISTENER}[personas.own]\ncode = 421\nclose = 'now'\n"
        f"lines = [\n{said}]\nsingle = '{WHY}'\n{more}"
    )
    return [line.replace(f"{file}:", "") for line in check("-c", str(file))]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "turnaway.toml"


@pytest.mark.parametrize("name", personas.NAMES)
def test_what_is_shipped_is_clean(name: str) -> None:
    """Also of 554 and `now`: nobody is warned of what the documents recommend."""
    assert not check("-p", name, "Somecity, Earth", "127.0.0.1:2525 mx.example.com", "[::]:25 mx")


def test_a_persona_of_ones_own_is_warned_of(file: Path) -> None:
    """Under another name, or under that of a shipped one."""
    text = (Path(personas.__file__).parent / "spammer.toml").read_text()
    (file.parent / "listed.toml").write_text(text.replace("Trying again", "A retry"))
    for name in ("listed", "spammer"):
        file.write_text(
            f'location = "Earth"\n{LISTENER.replace("own", name)}'
            f'[personas.{name}]\nfile = "listed.toml"\n'
        )
        (said,) = check("-c", str(file))
        assert "after a 554 greeting a server waits for QUIT" in said


def test_the_example_file_is_clean() -> None:
    assert check("-c", str(EXAMPLE)) == []


def test_the_words_are_told_apart() -> None:
    """The words of 2003 are left as they are, and only they need it."""
    for name in personas.NAMES:
        persona = personas.shipped(name)
        assert lint.says_why(persona.single)
        assert lint.says_why(persona.lines[-1])
        assert lint.says_why(persona.lines[0]) == (name != "blocked")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([WHY, WHY], []),
        ([WHY, "Closing connection.", WHY], []),
        (["{name}: spam source", "x", "See {contact}"], []),
        (["{name} ESMTP TurnAway v{version} ready at {date};", "blocked", WHY], ["11: the first"]),
        ([WHY, "blocked", "Closing connection."], ["13: the last line does not say why"]),
        (
            ["{name} ESMTP", "You are blocked", "Goodbye, {client}."],
            ["11: the first", "13: the last"],
        ),
        (["{name} ESMTP ready"], ["11: the first line does not say why"]),
    ],
)
def test_the_reason_is_in_the_first_and_in_the_last_line(
    file: Path, lines: list[str], said: list[str]
) -> None:
    found = check_file(file, lines, top="contact = 'a@example.com'\n")
    found = [one for one in found if "IPv4 address" not in one]
    assert len(found) == len(said)
    assert all(one.startswith(there) for one, there in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{name}: TurnAway v1.2 blocks spam, 10.0 and 1.2.x"], []),
        (["{name}: TurnAway v1.2.3 blocks spam"], ["10: 1.2.3 in what"]),
        (["{name}: ask 192.0.2.77 why"], ["10: 192.0.2.77 in what"]),
        (["5.7.1 {name}: ask 192.0.2.77 why"], []),  # a status code of its own is understood
        (["{name}: {client} is listed"], ["10: {client} is an IPv4 address"]),
    ],
)
def test_three_dotted_numbers_in_a_text(file: Path, lines: list[str], said: list[str]) -> None:
    found = check_file(file, lines)
    assert len(found) == len(said)
    assert all(one.startswith(there) for one, there in zip(found, said, strict=True))


def test_three_dotted_numbers_in_name_and_location(file: Path) -> None:
    arguments = ("--contact", "10.0.0.1", "Room 1.2.3", "127.0.0.1:2525 mx.example.com")
    said = check(*arguments, "[::1]:2525", "[192.0.2.1]")
    assert [one.partition(" in what")[0] for one in said] == [
        "127.0.0.1:2525: location: 1.2.3",  # no persona there says {contact}
        "[::1]:2525: name: 192.0.2.1",
        "[::1]:2525: location: 1.2.3",
    ]
    assert check("-p", "worm", "--protocol", "http", *arguments) == []
    file.write_text(
        'location = "1.2.3"\n[[listener]]\nname = "[192.0.2.1]"\naddress = "127.0.0.1:2525"\n'
    )
    assert [one.partition(" in what")[0] for one in check("-c", str(file))] == [
        f"{file}:3: listener[0].name: 192.0.2.1",
        f"{file}:1: location: 1.2.3",
    ]


@pytest.mark.parametrize(("letters", "warned"), [(700, 0), (1100, 1)])
def test_an_answer_over_one_segment(file: Path, letters: int, warned: int) -> None:
    page = f"[personas.own.http]\ntitle = 'No'\ntext = ['{'x' * letters}']\n"
    said = check_file(file, [WHY], page, top="protocol = 'http'\n")
    assert len(said) == warned
    assert all("15: the answer in plain text may be 1" in one for one in said)


def test_a_wildcard_beside_one_of_its_addresses(file: Path) -> None:
    overlapping = ("127.0.0.7:2525", "seven.example", "0.0.0.0:2525", "all.example")
    apart = ("[::]:2525", "six.example", "127.0.0.7:2526", "other.example")
    assert check("Earth", *overlapping, *apart) == [
        "127.0.0.7:2525: 127.0.0.7:2525 and 0.0.0.0:2525 are both listeners; connections to"
        " 127.0.0.7 get 127.0.0.7:2525 (seven.example), all others 0.0.0.0:2525 (all.example)"
    ]
    assert check("Earth", *apart) == []
    file.write_text(
        'location = "Earth"\n[[listener]]\nname = "mx.example.com"\n'
        'address = ["[::]:2525", "[::1]:2525", "0.0.0.0:2525"]\n'
    )
    (said,) = check("-c", str(file))
    assert said.startswith(f"{file}:4: listener[0].address: [::1]:2525 and [::]:2525 are both")


def test_where_code_and_policy_stand_in_a_file(file: Path) -> None:
    file.write_text(
        'location = "Earth"\n[[listener]]\nname = "mx.example.com"\naddress = "127.0.0.1:2525"\n'
        'code = 554\n[[listener]]\nname = "mx"\naddress = "127.0.0.1:2526"\npersona = "blocked"\n'
        'close = "drain"\n'
    )
    assert [one.partition(" after a 554")[0] for one in check("-c", str(file))] == [
        f"{file}:5: listener[0].code:",
        f"{file}:10: listener[1].close:",
    ]
