"""The configuration files: read, joined, settled, printed, and every mistake in them.

Owns: turnaway/config.py, draft.py and dump.py through cli.parse, as the command
sees them.  Files are real; only whether we are root is said by the test.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import socket
import string
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import COMMAND, SECONDS, free_port, need_root

from turnaway import answers, cli, personas
from turnaway.exits import CONFIGURATION, USAGE, Failure
from turnaway.settings import CLOSES, Exposition, Limits, Settings, Waits

MOST = """\
location = "Somecity, Earth"
[[listener]]
address = "127.0.0.1:2525"
name = "mx.example.com"
"""
OWN = """\
code = 454
close = "drain"
protocol = "smtp"
lines = ["{name} does not know {client}.", "Ask {contact}."]
single = "{name}: ask {contact}"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "turnaway.toml"


def parse(
    file: Path, line: str = "", root: bool = False, program: str = "turnaway-fast"
) -> Settings:
    return cli.parse([program, "-c", str(file), *shlex.split(line)], root).settings


def written(file: Path, text: str, line: str = "", **how: object) -> Settings:
    file.write_text(text)
    return parse(file, line, **how)  # type: ignore[arg-type]


def refused(act: Callable[[], object]) -> tuple[int, list[str]]:
    with pytest.raises(Failure) as caught:
        act()
    return caught.value.status, list(caught.value.reasons)


def mistakes(file: Path, text: str, line: str = "") -> list[str]:
    """What is said of a wrong file, without its own name; the status is 78."""
    status, reasons = refused(lambda: written(file, text, line))
    assert status == CONFIGURATION
    assert all(reason.startswith(f"{file}:") for reason in reasons)
    return [reason.removeprefix(f"{file}:") for reason in reasons]


# --- mistakes -------------------------------------------------------------------


MISTYPED = """\
location = "Somecity, Earth"
worker = 2
max-held = 9999999
log-connections = "some"
[[listener]]
address = "127.0.0.1"
port = "25x"
name = "mx.example.com"
[[listener]]
address = ["127.0.0.1:{port}", "localhost"]
port = 70000
name = "bad name"
clsoe = "now"
[[listener]]
adress = "127.0.0.1"
name = "mx.example.com"
code = 250
[personas.listed]
code = 554
close = "never"
linse = []
single = "no"
"""
SAID = [
    '7: listener[0].port: expected 1..65535, got "25x"',
    "11: listener[1].port: expected 1..65535, got 70000",
    "2: worker: unknown key; did you mean workers?",
    "13: listener[1].clsoe: unknown key; did you mean close?",
    "15: listener[2].adress: unknown key; did you mean address?",
    "21: personas.listed.linse: unknown key; did you mean lines?",
    "3: max-held: expected 0..131072, got 9999999",
]


def test_all_mistakes_of_a_file_are_told_together(file: Path) -> None:
    said = mistakes(file, MISTYPED)
    assert set(SAID) <= set(said)
    starts = {one.partition(":")[0] + one.partition(":")[2].partition(":")[0] for one in said}
    assert starts == {
        *("2 worker", "3 max-held", "4 log-connections"),
        *("7 listener[0].port", "10 listener[1].address", "11 listener[1].port"),
        *("12 listener[1].name", "13 listener[1].clsoe"),
        *("14 listener[2].address", "15 listener[2].adress", "17 listener[2].code"),
        *("18 personas.listed.lines", "20 personas.listed.close", "21 personas.listed.linse"),
    }


@pytest.mark.parametrize("options", [("--check",), ("-f", "--pidfile", "none"), ()])
def test_a_mistyped_file_ends_the_command_with_78_and_binds_nothing(
    file: Path, options: tuple[str, ...]
) -> None:
    port = free_port()
    file.write_text(MISTYPED.replace("{port}", str(port)))
    file.chmod(0o600)
    with socket.create_server(("127.0.0.1", port)) as there:  # a bind would be told instead
        ended = subprocess.run(
            [COMMAND, *options, "-c", file], capture_output=True, text=True, timeout=SECONDS
        )
        there.setblocking(False)
    assert ended.returncode == CONFIGURATION
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 14
    for said in SAID:
        assert f"turnaway-fast: {file}:{said}" in lines


def test_files_and_the_line_are_told_together(file: Path) -> None:
    status, reasons = refused(lambda: written(file, "worker = 1\n" + MOST, "--code 250 --close x"))
    assert status == CONFIGURATION
    assert {one.partition(": ")[0] for one in reasons} == {"--code", "--close", f"{file}:1"}


def test_text_that_is_no_toml(file: Path) -> None:
    (said,) = mistakes(file, "location = \n")
    assert said.startswith("1:")


@pytest.mark.parametrize("text", ["", "workers = 1\n", 'location = "Earth"\n'])
def test_a_file_without_a_listener(file: Path, text: str) -> None:
    status, (said,) = refused(lambda: written(file, text))
    assert status in (USAGE, CONFIGURATION)
    assert "[[listener]]" in said


def test_a_file_that_is_not_there(file: Path) -> None:
    status, (said,) = refused(lambda: parse(file))
    assert (status, said) == (CONFIGURATION, f"{file}: No such file or directory")


@pytest.mark.parametrize("lines", ["", "name = 7\n", 'name = "a b"\n', 'name = ""\n'])
def test_a_listener_needs_a_name(file: Path, lines: str) -> None:
    (said,) = mistakes(
        file, f'location = "Earth"\n[[listener]]\naddress = "127.0.0.1:2525"\n{lines}'
    )
    assert "listener[0].name: expected a" in said


def test_a_listener_needs_a_location(file: Path) -> None:
    (said,) = mistakes(file, MOST.partition("\n")[2])
    assert "location: expected a text" in said


def test_a_place_that_is_given_twice(file: Path, tmp_path: Path) -> None:
    (said,) = mistakes(file, MOST + MOST.partition("\n")[2])
    assert "127.0.0.1:2525 is given twice" in said
    assert said.startswith("5: listener[1]")
    assert f"{file}:2: listener[0]" in said


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        *[(f"workers = {value}", "workers") for value in ('"4"', 0, 65, -1, 1.5, "true")],
        *[(f"interval = {value}", "interval") for value in (0, 86401, "1.5")],
        *[(f"max-held = {value}", "max-held") for value in (-1, 131073)],
        *[(f"max-held-source = {value}", "max-held-source") for value in (0, 131073)],
        *[(f"records = {value}", "records") for value in (63, (1 << 20) + 1)],
        *[(f"code = {value}", "code") for value in (399, 460, 499, 600, '"554"')],
        *[(f"close = {value}", "close") for value in ('"NOW"', '""', 1)],
        *[(f"protocol = {value}", "protocol") for value in ('"smpt"', '"text:"')],
        *[(f"single-line = {value}", "single-line") for value in ('"yes"', 1)],
        *[(f"timewait = {value}", "timewait") for value in ('"no"', 0)],
        *[(f"contact = {value}", "contact") for value in ('" "', '"caf\u00e9"', r'"a\r\nb"')],
        *[(f"log = {value}", "log") for value in ('"syslog:x"', '"json:x"', '"file"')],
        *[(f"log-connections = {value}", "log-connections") for value in ('"capped:0"', '"x"')],
        *[(f"metrics = {value}", "metrics") for value in ('"9125"', '"file:/x"', '"unix:x"')],
        *[(f"{key} = {value}", key) for key in ("pidfile", "control") for value in ('"x"', 1)],
        ('chroot = "x"', "chroot"),
        *[
            (f"waits = {{ {key} = {value} }}", f"waits.{key}")
            for key in ("park", "drain", "probe", "request", "quit")
            for value in ("0", "0.009", "600.1", "nan", "inf", '"1"', "true")
        ],
        ("waits = { qiut = 1 }", "waits.qiut"),
        ("waits = 5", "waits"),
        ("listener = 5", "listener"),
        ("personas = 5", "personas"),
    ],
)
def test_values_out_of_range_are_told_with_their_line(file: Path, line: str, wrong: str) -> None:
    text = MOST if wrong != "listener" else 'location = "Earth"\n'
    status, reasons = refused(lambda: written(file, f"# first\n{line}\n{text}"))
    assert status in ((CONFIGURATION, USAGE) if wrong == "listener" else (CONFIGURATION,))
    assert [one for one in reasons if one.startswith(f"{file}:2: {wrong}: ")]


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("workers = 1", "workers", 1),
        ("workers = 64", "workers", 64),
        ("interval = 86400", "limits", Limits(interval=86400)),
        ("max-held = 0", "limits", Limits(held=0)),
        ("max-held-source = 131072", "limits", Limits(share=131072)),
        ("records = 64", "limits", Limits(records=64)),
        ('log = "none"', "log", "none"),
        ('log = "syslog:/x"', "syslog_socket", "/x"),
        ('log = "json:/x.log"', "json_path", "/x.log"),
        ('pidfile = "none"', "pidfile", None),
        ('pidfile = "/x.pid"', "pidfile", "/x.pid"),
        ('control = "none"', "control", None),
        ('control = "/x.ctl"', "control", "/x.ctl"),
        ('metrics = "none"', "metrics", None),
        ('log-connections = "sample:9999999"', "detail_number", 9999999),
    ],
)
def test_values_at_their_ends(file: Path, line: str, field: str, value: object) -> None:
    assert getattr(written(file, f"{line}\n{MOST}"), field) == value


# --- drop-ins ---------------------------------------------------------------------


def drop_in(file: Path, name: str, text: str) -> Path:
    folder = file.with_name(file.name + ".d")
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_drop_ins_are_read_in_the_order_of_names(file: Path) -> None:
    file.write_text("workers = 1\ninterval = 5\nlog = 'none'\n" + MOST)
    drop_in(file, "20-b.toml", "workers = 3\ninterval = 7\n")
    drop_in(file, "10-a.toml", "workers = 2\nrecords = 64\n")
    drop_in(file, "30-no.toml.bak", "workers = 9\n")
    settings = parse(file)
    assert settings.workers == 3
    assert settings.limits == Limits(interval=7, records=64)
    assert settings.log == "none"


def test_listeners_of_drop_ins_are_added_and_personas_replaced(file: Path) -> None:
    file.write_text(MOST + f"persona = 'own'\n[personas.own]\n{OWN}[personas.kept]\n{OWN}")
    drop_in(file, "a.toml", f"contact = 'x'\n[personas.own]\n{OWN.replace('454', '455')}")
    drop_in(
        file,
        "b.toml",
        "[[listener]]\naddress = '[::1]:2525'\nname = 'b.example.com'\npersona = 'kept'\n",
    )
    settings = parse(file)
    assert [one.place for one in settings.listeners] == ["127.0.0.1:2525", "[::1]:2525"]
    assert [one.code for one in settings.listeners] == [455, 454]
    assert {one.contact for one in settings.listeners} == {"x"}


def test_mistakes_of_all_files_are_told_together(file: Path) -> None:
    file.write_text("workers = 0\n" + MOST)
    first = drop_in(file, "a.toml", "\nrecords = 0\n")
    second = drop_in(file, "b.toml", "not toml")
    _, reasons = refused(lambda: parse(file))
    assert [reason.partition(": ")[0] for reason in reasons] == [
        f"{file}:1",
        f"{first}:2",
        f"{second}:1",
    ]


# --- personas -----------------------------------------------------------------------


def test_a_persona_inline(file: Path) -> None:
    settings = written(
        file, f'contact = "a@b.example"\n{MOST}persona = "own"\n[personas.own]\n{OWN}'
    )
    (one,) = settings.listeners
    assert (one.persona.name, one.code, one.close) == ("own", 454, "drain")
    assert [line.text for line in one.lines] == [
        "{name} does not know {client}.",
        "Ask {contact}.",
    ]
    assert one.lines[0].where == f"{file}:11"


def test_a_persona_in_a_file_beside(file: Path) -> None:
    (file.parent / "own.txt").write_text(OWN)
    settings = written(
        file, f'contact = "x"\npersona = "p"\n{MOST}[personas.p]\nfile = "own.txt"\n'
    )
    (one,) = settings.listeners
    assert (one.persona.name, one.code) == ("p", 454)
    assert one.lines[0].where == f"{file.parent / 'own.txt'}:4"


def test_a_persona_of_ones_own_stands_before_a_shipped_one(file: Path) -> None:
    settings = written(file, f'contact = "x"\n{MOST}[personas.mail]\n{OWN}', program="turnawaymail")
    assert settings.listeners[0].code == 454
    assert settings.listeners[0].persona != personas.shipped("mail")
    assert written(file, MOST).listeners[0].persona == personas.shipped("mail")


def test_a_persona_whose_file_is_not_there(file: Path) -> None:
    status, reasons = refused(
        lambda: written(file, f'persona = "p"\n{MOST}[personas.p]\nfile = "own.txt"\n')
    )
    assert f"{file.parent / 'own.txt'}: No such file or directory" in reasons
    assert status == CONFIGURATION


def test_a_persona_that_nobody_knows(file: Path) -> None:
    (said,) = mistakes(file, f"{MOST}persona = 'worms'\n")
    assert "listener[0]: persona: expected one of mail" in said
    (said,) = mistakes(file, f"persona = 'worms'\n{MOST}[personas.own]\n{OWN}")
    assert said.startswith("1: persona: expected one of mail")
    assert "own, got 'worms'" in said


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a b", '"a b"'),
        ("x\\nturned", '"x\\x0aturned"'),  # it would be a line of the log of its own
        ("\u00fc", '"\\xfc"'),
        ("-", "-"),  # who is on an allow list
        ("p" * 41, "p" * 41),
    ],
)
def test_a_name_that_would_spoil_the_log(file: Path, name: str, shown: str) -> None:
    (said,) = mistakes(file, f'{MOST}[personas."{name}"]\n{OWN.replace("{contact}", "us")}')
    assert f" personas.{shown}: as its name expected 1..40 letters" in said


def test_a_persona_with_a_mistake_is_no_unknown_one(file: Path) -> None:
    own = OWN.replace("454", "250").replace("{contact}", "us")
    (said,) = mistakes(file, f'{MOST}persona = "own"\n[personas.own]\n{own}')
    assert said.endswith(": personas.own.code: expected 400..599, got 250")


def test_a_contact_that_is_said_must_be_set(file: Path) -> None:
    text = f'{MOST}persona = "own"\n[personas.own]\n{OWN}'
    status, reasons = refused(lambda: written(file, text))
    assert status == CONFIGURATION
    assert reasons
    assert all("{contact} is not set" in reason for reason in reasons)
    assert written(file, text, "--contact https://x.example/").listeners[0].contact


def test_more_places_for_the_client_than_an_answer_has(file: Path) -> None:
    own = OWN.replace("{client}", "{client} " * 5)
    status, (said,) = refused(
        lambda: written(file, f'contact="x"\n{MOST}persona = "own"\n[personas.own]\n{own}')
    )
    assert status == CONFIGURATION
    assert "{client} more than 4 times" in said


# --- who may write to it --------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o664, 0o646])
@pytest.mark.parametrize("which", ["file", "drop-in", "persona", "folder"])
def test_root_reads_no_file_that_others_may_write(file: Path, mode: int, which: str) -> None:
    """Nor does what was root at the start, and is somebody else by the time of a reload."""
    file.write_text(f'{MOST}persona = "own"\n[personas.own]\nfile = "own"\n')
    own = file.parent / "own"
    own.write_text(OWN.replace("Ask {contact}", "No").replace("ask {contact}", "no"))
    drop = drop_in(file, "a.toml", "workers = 1\n")
    wrong = {"file": file, "drop-in": drop, "persona": own, "folder": drop.parent}[which]
    for one in (file, own, drop, drop.parent):
        one.chmod(0o700)
    assert parse(file, root=True).workers == 1
    wrong.chmod(mode | 0o700)
    assert parse(file, root=False).workers == 1
    status, reasons = refused(lambda: parse(file, root=True))
    assert status == CONFIGURATION
    assert reasons[0].startswith(f"{wrong}: others than its owner may write to it")
    assert f"chmod go-w {wrong}" in reasons[0]


# --- what is no file of ours -----------------------------------------------------------


def test_what_is_no_file_is_refused_at_once(file: Path) -> None:
    """A pipe would keep the daemon waiting, a device without end would fill its memory."""
    file.write_text(MOST)
    for number, make in enumerate(
        (
            os.mkdir,
            os.mkfifo,
            lambda path: os.symlink("/dev/zero", path),
            lambda path: os.symlink("nowhere", path),
        )
    ):
        drop = drop_in(file, f"{number}.toml", "")
        drop.unlink()
        make(drop)
        status, (reason,) = refused(lambda: parse(file))
        assert status == CONFIGURATION
        said = "expected a file, got something else"
        said = {0: "Is a directory", 3: "No such file or directory"}.get(number, said)
        assert reason == f"{drop}: {said}"
        drop.rmdir() if number == 0 else drop.unlink()
    assert parse(file).listeners


def test_a_file_longer_than_any_configuration(file: Path) -> None:
    file.write_text(f"{MOST}# {'x' * (4 << 20)}\n")
    _, (reason,) = refused(lambda: parse(file))
    assert reason.endswith("octets; at most 4194304 are read")


def test_a_link_is_followed_and_a_file_of_an_editor_is_not_read(file: Path, tmp_path: Path) -> None:
    """As under /etc/turnaway/turnaway.toml.d: links by the package, leavings of editors."""
    file.write_text(MOST)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("workers = 3\n")
    drop_in(file, "10.toml", "workers = 2\n")
    drop_in(file, "9.toml", "workers = 9\n")  # by name: after 10 and 20
    (tmp_path / f"{file.name}.d/20.toml").symlink_to(elsewhere)
    (tmp_path / f"{file.name}.d/.#9.toml").symlink_to("somebody@host.4711")
    drop_in(file, "99.toml~", "no TOML at all")
    drop_in(file, ".99.toml", "neither")
    assert parse(file).workers == 9
    (tmp_path / f"{file.name}.d/9.toml").unlink()
    assert parse(file).workers == 3


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (MOST.encode("utf-16"), ":1: expected UTF-8"),
        (MOST.encode() + b"# \xff\n", ":5: expected UTF-8"),
        (b"\xef\xbb\xbf" + MOST.encode(), ":1: Invalid statement"),
        (MOST.encode() + b"\0\n", ":5: "),
        (MOST.encode()[:-3], ":4: "),  # half written
        (MOST.encode() + b"x = " + b"[" * 5000 + b"\n", ": nested too deep"),
        (MOST.encode() + b"x = " + b"[" * 300 + b"]" * 300 + b"\n", ":5: listener[0].x: unknown"),
        (MOST.encode() + b"x = " + b"9" * 5000 + b"\n", ": a number has too many digits"),
        (b"max-held = " + b"9" * 4000 + b"\n" + MOST.encode(), ":1: max-held: expected 0..131072"),
    ],
)
def test_what_is_no_toml(file: Path, octets: bytes, said: str) -> None:
    file.write_bytes(octets)
    status, (reason,) = refused(lambda: parse(file))
    assert status == CONFIGURATION
    assert reason.startswith(f"{file}{said}")
    assert len(reason) < 500


@pytest.mark.parametrize(
    "line",
    [
        *('pidfile = "/a\\u0000"', 'control = "/a\\u0000"', 'log = "json:/a\\u0000"'),
        *('log = "syslog:/a\\u0000"', 'metrics = "unix:/a\\u0000"', 'chroot = "/a\\u0000"'),
        'metrics = "file:/a\\u0000.prom"',
    ],
)
def test_no_path_has_a_nul(file: Path, line: str) -> None:
    (said,) = mistakes(file, f"{line}\n{MOST}")
    assert said.startswith(f"1: {line.split()[0]}: expected ")


def test_as_many_listeners_as_there_may_be_are_read_in_a_second_or_two(file: Path) -> None:
    """Twenty times as long would be a daemon that stands still in a reload."""
    text = 'location = "Earth"\n' + "".join(
        f'[[listener]]\naddress = "127.0.{n >> 8}.{n & 255}:2525"\nname = "mx{n}.example"\n'
        for n in range(4096)
    )
    assert len(written(file, text).listeners) == 4096
    (said,) = mistakes(file, text + "clsoe = 1\n")
    assert said == "12290: listener[4095].clsoe: unknown key; did you mean close?"


# --- what stands before what ------------------------------------------------------------


def test_the_listeners_own_value_then_the_line_then_the_top_then_the_persona(file: Path) -> None:
    persona = personas.shipped("worm")
    assert (persona.code, persona.close, persona.protocol) == (554, "now", "auto")
    bare = "[[listener]]\naddress = '127.0.0.1:1'\nname = 'a'\n"
    own = (
        "[[listener]]\naddress = '127.0.0.1:2'\nname = 'b'\ncode = 454\nclose = 'drain'\n"
        "protocol = 'smtp'\nlocation = 'Own'\ncontact = 'own'\ntimewait = true\n"
    )
    top = (
        "persona = 'worm'\nlocation = 'Top'\ncode = 555\nclose = 'quit'\nprotocol = 'smtp'\n"
        "contact = 'top'\ntimewait = false\nworkers = 2\nmax-held = 10\n"
    )
    line = "--code 550 --close reset --protocol http --contact line --timewait yes -w 3"

    def told(settings: Settings) -> list[tuple[object, ...]]:
        return [
            (one.location, one.code, one.close, one.protocol, one.contact, one.timewait)
            for one in settings.listeners
        ]

    least = "persona = 'worm'\nlocation = 'Top'\n"
    mine = ("Own", 454, "drain", "smtp", "own", True)
    assert told(written(file, least + bare + own)) == [
        ("Top", 554, "now", "auto", "", True),
        mine,
    ]
    assert told(written(file, top + bare + own)) == [
        ("Top", 555, "quit", "smtp", "top", False),
        mine,
    ]
    settings = written(file, top + bare + own, line)
    assert told(settings) == [("Top", 550, "reset", "http", "line", True), mine]
    assert (settings.workers, settings.limits.held) == (3, 10)
    assert written(file, top + bare).workers == 2


def test_listeners_of_the_line_stand_before_those_of_the_file(file: Path) -> None:
    settings = written(file, "workers = 1\n" + MOST, "Here '127.0.0.1:99 x.example.com'")
    assert [(one.place, one.location) for one in settings.listeners] == [("127.0.0.1:99", "Here")]
    assert settings.workers == 1


def test_log_connections_of_its_own(file: Path) -> None:
    settings = written(file, f'log-connections = "all"\n{MOST}log-connections = "capped:3"\n')
    assert (settings.detail, settings.detail_number) == ("all", 0)
    assert settings.listeners[0].detail == ("capped", 3)
    assert written(file, MOST).listeners[0].detail is None


def test_waits_of_all_and_of_one(file: Path) -> None:
    one = "[[listener]]\naddress = '127.0.0.1:{}'\nname = 'a'\n{}"
    settings = written(
        file,
        'location = "Earth"\n[waits]\npark = 1\nquit = 600\n'
        + one.format(1, "")
        + one.format(2, "waits = { park = 0.01, probe = 0.5 }\n"),
    )
    assert [listener.waits for listener in settings.listeners] == [
        Waits(park=1, quit=600),
        Waits(park=0.01, quit=600, probe=0.5),
    ]


@pytest.mark.parametrize(
    ("address", "places"),
    [
        ('"127.0.0.1"', ["127.0.0.1:25"]),
        ('["127.0.0.1", "::1"]', ["127.0.0.1:25", "[::1]:25"]),
        ('["127.0.0.1", "127.0.0.1:587"]\nport = 26', ["127.0.0.1:26", "127.0.0.1:587"]),
        (
            '["127.0.0.1:25", "[::1]:25", "::1"]\nport = 26',
            ["127.0.0.1:25", "[::1]:25", "[::1]:26"],
        ),
        ('"::25"\nport = 26', ["[::25]:26"]),
    ],
)
def test_several_addresses(file: Path, address: str, places: list[str]) -> None:
    settings = written(file, f"location = 'E'\n[[listener]]\nname = 'a'\naddress = {address}\n")
    assert [one.place for one in settings.listeners] == places
    assert len({one.name for one in settings.listeners}) == 1


# --- lists ------------------------------------------------------------------------


LISTED = """\
[[list]]
name = "drop"
files = ["drop.txt", "sub/more.txt"]
persona = "listed"
contact = "https://example.com/drop"
[[list]]
name = "wanted"
files = ["wanted.txt"]
allow = true
[personas.listed]
code = 554
close = "quit"
lines = ["{name}: {client} is on {list}, see {contact}"]
single = "{list}"
[personas.listed.http]
title = "{list}"
text = ["{list}"]
"""
V4 = bytes(10) + b"\xff\xff" + bytes((203, 0, 113))


@pytest.fixture
def list_files(file: Path) -> Path:
    (file.parent / "sub").mkdir()
    for name, line in (
        ("drop.txt", "203.0.113.0/24"),
        ("sub/more.txt", "# more\n2001:db8::/32"),
        ("wanted.txt", "203.0.113.7"),
    ):
        (file.parent / name).write_text(line + "\n")
    return file.parent


def test_lists_and_who_is_on_them(file: Path, list_files: Path) -> None:
    settings = written(file, MOST + LISTED)
    drop, wanted = settings.lists
    assert (drop.name, drop.format, drop.contact) == ("drop", None, "https://example.com/drop")
    assert drop.persona is not None
    assert drop.persona.name == "listed"
    assert drop.files == (f"{list_files}/drop.txt", f"{list_files}/sub/more.txt")
    assert (wanted.name, wanted.allow, wanted.persona) == ("wanted", True, None)
    assert settings.lookup is not None
    assert settings.lookup.find(V4 + b"\1") == (0, f"{list_files}/drop.txt:1")
    assert settings.lookup.find(V4 + b"\7") == (1, f"{list_files}/wanted.txt:1")
    assert settings.lookup.find(V4[:-1] + b"\0\0") is None
    assert settings.lookup.find(bytes.fromhex("20010db8") + bytes(12)) == (
        0,
        f"{list_files}/sub/more.txt:2",
    )
    assert written(file, MOST).lookup is None


def test_the_list_speaks_in_the_listeners_manner(file: Path, list_files: Path) -> None:
    settings = written(file, MOST + 'close = "drain"\ncode = 450\nsingle-line = true\n' + LISTED)
    listener = settings.listeners[0]
    told = answers.told(listener, settings.lists[0])
    assert (told.code, told.close, told.single_line) == (554, "drain", True)
    assert answers.render(told, 0.0)["banner"] == (b"554 drop\r\n", 0)
    # Without words of its own the list has the listener's, and its code.
    plain = dataclasses.replace(settings.lists[0], persona=None, contact="")
    assert answers.told(listener, plain) == dataclasses.replace(listener, listed="drop")


def test_drop_ins_add_lists(file: Path, list_files: Path) -> None:
    file.write_text(MOST + LISTED)
    folder = drop_in(file, "a.toml", '[[list]]\nname = "drop"\nfiles = ["drop.txt"]\n').parent
    status, reasons = refused(lambda: parse(file))
    assert (status, reasons) == (
        CONFIGURATION,
        [
            f"{folder}/a.toml:1: list[0].name: drop is given twice (also at {file}:5: list[0]);"
            " expected one [[list]] with all the files",
            f"{folder}/drop.txt: No such file or directory",
        ],
    )
    (folder / "a.toml").write_text('[[list]]\nname = "more"\nfiles = ["../drop.txt"]\n')
    assert [one.name for one in parse(file).lists] == ["drop", "wanted", "more"]


@pytest.mark.parametrize(
    ("good", "bad", "wrong"),
    [
        ('"drop"', '"a b"', "6: list[0].name: expected 1..40 letters, digits, dots, hyphens"),
        ('"drop"', f'"{"a" * 41}"', "6: list[0].name: expected 1..40 letters, digits, dots"),
        ('"drop"', "5", "6: list[0].name: expected a string, got 5"),
        ('name = "drop"\n', "", "5: list[0].name: expected a name, such as spamhaus-drop, got"),
        ('["wanted.txt"]', "[]", "12: list[1].files: expected at least one path"),
        ('["wanted.txt"]', '[""]', '12: list[1].files: expected the path of a file, got ""'),
        ('["wanted.txt"]', '"x"', '12: list[1].files: expected a list of paths, got "x"'),
        ('files = ["wanted.txt"]\n', "", "10: list[1].files: expected a list of paths, got noth"),
        ('["wanted.txt"]', '["wanted.txt", 5]', "12: list[1].files[1]: expected a path, got 5"),
        ("allow", "alow", "13: list[1].alow: unknown key; did you mean allow?"),
        ("allow = true", 'format = "dorp"', "13: list[1].format: expected one of plain, drop, rb"),
        ("allow = true", "allow = 1", "13: list[1].allow: expected true or false, got 1"),
        ("allow = true", 'persona = "wurm"', "10: list[1].persona: expected one of mail, blocked"),
        ("allow = true", 'contact = "\u00fc"', "13: list[1].contact: expected printable ASCII"),
        ("allow = true", 'allow = true\npersona = "mail"', "14: list[1].persona: an allow list an"),
        ("allow = true", 'allow = true\ncontact = "x"', "14: list[1].contact: an allow list answ"),
    ],
)
def test_a_wrong_list(file: Path, list_files: Path, good: str, bad: str, wrong: str) -> None:
    text = MOST + LISTED.replace(good, bad, 1)
    found = mistakes(file, text)
    assert any(one.startswith(wrong) for one in found), found


def test_what_a_list_says_is_checked_for_every_listener(file: Path, list_files: Path) -> None:
    long = LISTED.replace("see {contact}", "x" * 460)
    found = mistakes(file, MOST + long)
    assert len(found) == 1
    assert "17: the line may be 5" in found[0]
    assert written(file, MOST + long.replace("x" * 460, "x" * 300))
    found = mistakes(file, MOST + LISTED.replace('contact = "https://example.com/drop"\n', ""))
    assert found == ["16: {contact} is not set; set contact in the configuration, or --contact"]
    found = mistakes(
        file,
        MOST + LISTED + '[[listener]]\naddress = "::1"\nname = "x"\nport = 9\n'
        'persona = "listed"\ncontact = "x"\n',
    )
    assert found == [
        "17: {list} is for the persona of a [[list]], which no listener has for itself"
    ]
    _, reasons = refused(lambda: written(file, MOST + 'protocol = "text:pop3"\n' + LISTED))
    assert reasons == [
        "127.0.0.1:2525: persona listed has no words for text:pop3 there; it has none"
    ]


def test_what_is_wrong_in_a_list_file_is_the_configurations(file: Path, list_files: Path) -> None:
    (list_files / "drop.txt").write_text("203.0.113.0/24\n203.0.113.1/24\n")
    (list_files / "wanted.txt").unlink()
    status, reasons = refused(lambda: written(file, MOST + LISTED + "[personas.worm]\n"))
    assert status == CONFIGURATION
    assert reasons[-2:] == [
        f'{list_files}/drop.txt:2: expected an address or network, got "203.0.113.1/24"; the'
        " network is 203.0.113.0/24, the address alone is 203.0.113.1",
        f"{list_files}/wanted.txt: No such file or directory",
    ]
    assert reasons[0].startswith(f"{file}:")


def test_more_lists_than_there_may_be(file: Path, list_files: Path) -> None:
    each = '[[list]]\nname = "a{}"\nfiles = ["drop.txt"]\n'
    assert len(written(file, MOST + "".join(map(each.format, range(64)))).lists) == 64
    assert mistakes(file, MOST + "".join(map(each.format, range(65)))) == [
        "197: list[64]: 65 lists; at most 64 are possible"
    ]


def test_check_warns_of_a_file_that_a_reload_could_not_read(file: Path, list_files: Path) -> None:
    need_root()
    file.write_text(MOST + LISTED)
    file.chmod(0o600)
    folder = list_files
    while folder != Path("/"):  # pytest keeps its own to itself
        folder.chmod(folder.stat().st_mode | 0o011)
        folder = folder.parent
    (list_files / "drop.txt").chmod(0o600)
    ended = subprocess.run(
        [COMMAND, "-c", file, "-u", "nobody", "--check"], capture_output=True, text=True
    )
    assert ended.returncode == 0
    assert [line for line in ended.stderr.splitlines() if "reload" in line] == [
        f"turnaway-fast: warning: {list_files}/drop.txt: nobody may not read it, which a reload does"
    ]


# --- printed, and read back -----------------------------------------------------------------


def read_back(settings: Settings, folder: Path, line: str = "", root: bool = False) -> Settings:
    path = folder / "printed.toml"
    path.write_text(cli.Command(settings).configuration())
    path.chmod(0o600)
    return parse(path, line, root, settings.program)


@pytest.mark.parametrize("name", [*personas.NAMES, "-fast"])
def test_what_the_line_says_reads_back_the_same(name: str, tmp_path: Path) -> None:
    settings = cli.parse(
        [f"turnaway{name}", "Somecity, Earth", "0.0.0.0", "a.example.com", "[::]:25 b"], False
    ).settings
    assert read_back(settings, tmp_path) == settings


def test_everything_that_can_be_set_reads_back_the_same(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    text = f"""\
location = "Top"
contact = 'a "quoted" \\\\ contact'
persona = "own.one"
code = 550
single-line = true
timewait = false
log = "json:/var/log/t \u00fc\U0001f600.log"
metrics = "[::1]:9125"
interval = 7
max-held = 11
max-held-source = 3
records = 128
sandbox = "require"
workers = 5
keep-bind = true
pidfile = "/x/\\u007f\U0001f600.pid"
control = "/x/c.ctl"
log-connections = "sample:9"
waits = {{ park = 0.01, drain = 600, probe = 0.123456789, request = 3, quit = 4.5 }}
[[listener]]
address = ["127.0.0.1:2525", "[fe80::1%eth0]:25", "::"]
name = "[192.0.2.1]"
close = "drain"
log-connections = "none"
waits = {{ park = 1e-1 }}
[[listener]]
address = "127.0.0.1:110"
name = "pop.example.com"
persona = "mail"
single-line = false
protocol = "text:pop3"
code = 421
[personas."own.one"]
{OWN}
[personas."own.one".text.pop3]
ports = [110, 995]
line = "-ERR {{client}}"
[personas.listed]
{OWN}
[personas.listed.text.pop3]
ports = [110]
line = "-ERR {{list}}"
[personas."own.one".http]
title = "No"
text = ["<one>", "{{name}} two"]
[[list]]
name = "one"
files = ["a.txt", "b \u00fc.txt"]
format = "rbldnsd"
persona = "listed"
contact = "who"
[[list]]
name = "wanted"
files = ["c.txt"]
allow = true
"""
    for name in ("a.txt", "b \u00fc.txt", "c.txt"):
        (file.parent / name).write_text("203.0.113.7\n")
    settings = written(file, text)
    assert settings.lists[0].files == (
        str(file.parent / "a.txt"),
        str(file.parent / "b \u00fc.txt"),
    )
    assert read_back(settings, tmp_path) == settings
    assert settings.metrics == Exposition("tcp", "::1", 9125)
    default = written(file, MOST)
    same = [
        field.name
        for field in dataclasses.fields(Settings)
        if getattr(settings, field.name) == getattr(default, field.name)
    ]
    # The first is the line's, the others root's, the fourth the other log's.
    assert set(same) <= {"program", "foreground", "identity", "chroot", "syslog_socket"}


def test_user_group_and_root_directory_read_back_the_same(tmp_path: Path) -> None:
    need_root()
    settings = cli.parse(
        shlex.split(f"turnaway-fast -u daemon -g mail --chroot {tmp_path} Earth 127.0.0.1:1 a"),
        True,
    ).settings
    assert settings.identity is not None
    assert read_back(settings, tmp_path, root=True) == settings


PRINTABLE = st.text(string.printable[:95], min_size=1, max_size=30).filter(str.strip)
SECONDS_OF_WAITS = st.floats(0.01, 600)


@given(
    location=PRINTABLE,
    contact=PRINTABLE,
    code=st.integers(400, 459) | st.integers(500, 559),
    close=st.sampled_from(CLOSES),
    protocol=st.sampled_from(["smtp", "http", "tls", "socks", "text:pop3"]),
    single=st.booleans(),
    timewait=st.booleans(),
    waits=st.builds(Waits, *[SECONDS_OF_WAITS] * 5),
    detail=st.none() | st.just(("all", 0)) | st.tuples(st.just("capped"), st.integers(1, 9999999)),
    pidfile=st.none() | st.text(st.characters(exclude_categories=("Cs",), min_codepoint=1)),
    held=st.integers(0, 1 << 17),
)
def test_any_settings_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    location: str,
    contact: str,
    code: int,
    close: str,
    protocol: str,
    single: bool,
    timewait: bool,
    waits: Waits,
    detail: tuple[str, int] | None,
    pidfile: str | None,
    held: int,
) -> None:
    if close == "quit":
        protocol = "smtp"
    made = cli.parse(["turnaway-fast", "Earth", "127.0.0.1", "a"], False).settings
    one = dataclasses.replace(
        made.listeners[0],
        location=location,
        contact=contact,
        code=code,
        close=close,
        protocol=protocol,
        single_line=single,
        timewait=timewait,
        waits=waits,
        detail=detail,
    )
    settings = dataclasses.replace(
        made,
        listeners=(one, dataclasses.replace(one, port=2525, waits=Waits())),
        pidfile=None if pidfile is None else f"/{pidfile}",
        limits=Limits(held=held),
    )
    assert read_back(settings, tmp_path_factory.getbasetemp()) == settings


def test_the_command_prints_what_it_reads(file: Path) -> None:
    file.write_text("workers = 3\nlog = 'none'\n" + MOST)
    file.chmod(0o600)
    printed = subprocess.run(
        [COMMAND, "-c", file, "--print-config"], capture_output=True, check=True, timeout=SECONDS
    ).stdout
    again = file.with_name("again.toml")
    again.write_bytes(printed)
    again.chmod(0o600)
    second = subprocess.run(
        [COMMAND, "-c", again, "--print-config"], capture_output=True, check=True, timeout=SECONDS
    )
    assert second.stdout == printed
    root = os.geteuid() == 0
    assert parse(again, root=root) == parse(file, root=root)
