"""The command line: what is taken, what is refused, and in which words.

Owns: turnaway/cli.py, without a socket: the grammar of listeners against
generated text, every option's mistakes, statuses by kind, and what the
command's own name decides.
"""

import ipaddress
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from turnaway import cli, personas, values
from turnaway.exits import CONFIGURATION, DATA, NO_PERMISSION, NO_USER, USAGE, Failure
from turnaway.settings import DEFAULT_PORT, SYSLOG_SOCKET, Settings

PROGRAM = "/usr/local/sbin/turnaway-fast"
PLACE = "Somecity, Earth"
ONE = "192.0.2.25 mx.example.com"


def settings(*words: str, program: str = PROGRAM) -> Settings:
    return cli.parse([program, *words]).settings


def outcome(call: Callable[[], object]) -> object:
    """What it returned, or the exception it ended with."""
    try:
        return call()
    except (ValueError, Failure, SystemExit) as error:
        return error


def refused(*words: str, program: str = PROGRAM) -> Failure:
    with pytest.raises(Failure) as caught:
        cli.parse([program, *words])
    return caught.value


@pytest.fixture(params=[0, 1000], ids=["root", "user"])
def anyone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(os, "geteuid", lambda: request.param)
    return int(request.param)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


# --- listeners -------------------------------------------------------------

PORTS = st.integers(1, 65535)
FOUR = st.ip_addresses(v=4).map(str)
SIX = st.ip_addresses(v=6).filter(lambda one: one.ipv4_mapped is None).map(str)
LABEL = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,20}[A-Za-z0-9])?", fullmatch=True)
NAMES = st.lists(LABEL, min_size=1, max_size=4).map(".".join)


@st.composite
def places(draw: st.DrawFn) -> tuple[str, str, int]:
    """(as written, address, port) of a listener that is right."""
    port = draw(st.none() | PORTS)
    if draw(st.booleans()):
        address = draw(FOUR)
        written = address if port is None else f"{address}:{port}"
    else:
        address = draw(SIX)
        written = f"[{address}]" if port is None else f"[{address}]:{port}"
        if port is None and draw(st.booleans()):
            written = address
    return written, address, DEFAULT_PORT if port is None else port


@given(places())
def test_place_round_trip(place: tuple[str, str, int]) -> None:
    written, address, port = place
    assert values.place(written) == (str(ipaddress.ip_address(address)), port)


@given(places())
def test_place_as_written_back_is_the_same_place(place: tuple[str, str, int]) -> None:
    (one,) = settings(PLACE, f"{place[0]} mx").listeners
    assert values.place(one.place) == (one.address, one.port)


@given(
    st.lists(
        st.tuples(places(), NAMES, st.booleans()),
        min_size=1,
        max_size=6,
        unique_by=lambda one: (one[0][1], one[0][2]),
    )
)
def test_one_and_two_arguments_mixed(
    listeners: list[tuple[tuple[str, str, int], str, bool]],
) -> None:
    words: list[str] = []
    for (written, _, _), name, together in listeners:
        words += [f"{written} {name}"] if together else [written, name]
    assert [(one.address, one.port, one.name) for one in settings(PLACE, *words).listeners] == [
        (address, port, name) for (_, address, port), name, _ in listeners
    ]


def _right(text: str) -> bool:
    """An oracle of its own: is this text ADDRESS[:PORT]?"""

    def six(host: str) -> bool:
        host, percent, zone = host.partition("%")
        if percent and not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", zone):
            return False
        try:
            return ipaddress.IPv6Address(host).ipv4_mapped is None
        except ValueError:
            return False

    def four(host: str) -> bool:
        octets = host.split(".")
        return len(octets) == 4 and all(
            re.fullmatch("0|[1-9][0-9]{0,2}", one) and int(one) < 256 for one in octets
        )

    def port(digits: str) -> bool:
        return bool(re.fullmatch("[0-9]{1,5}", digits)) and 0 < int(digits) < 65536

    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        return bool(bracket) and six(host) and (rest == "" or (rest[0] == ":" and port(rest[1:])))
    if six(text):
        return True
    host, colon, rest = text.partition(":")
    return four(host) and (not colon or port(rest))


# Text that looks like a place, and text that looks like nothing: control
# characters, other scripts' digits, halves of surrogates.
NEARLY = st.text(st.sampled_from("0123456789abcdef.:[]%/ \t\n\r\0\x1b-+x٣２é\udc80\ud800"))
ANYTHING = st.text(st.characters(exclude_categories=()))


@given(NEARLY | ANYTHING)
@example("")
@example("[]")
@example("[::1]:")
@example("[::1]:25\n")
@example("192.0.2.1:25\n")
@example("192.0.2.1:٢٥")
@example("192.0.2.01")
@example("[192.0.2.1]:25")
@example("::ffff:192.0.2.1")
@example("fe80::1%eth0")
@example("fe80::1%\n")
@example("fe80::1%]:25")
@example("[fe80::1%eth0]:25")
@example("2001:db8::1:25:")
@example("192.0.2.1:65536")
@example("192.0.2.1:0")
@example("192.0.2.1:-1")
@example("localhost:25")
@example("\ud800")
def test_place_of_any_text_is_right_or_one_clear_error(text: str) -> None:
    made = outcome(lambda: values.place(text))
    assert _right(text) is isinstance(made, tuple)
    if isinstance(made, tuple):
        address, port = made
        assert 1 <= port <= 65535
        assert address.isascii()
        assert address.isprintable()
    else:
        assert not isinstance(made, UnicodeError)
        assert "expected" in str(made)


@given(NEARLY | ANYTHING)
def test_a_wrong_place_is_told_once_and_named(text: str) -> None:
    place = text.strip(" \t").replace("\t", " ").partition(" ")[0]
    assume(not text.startswith("-"))  # would be an option
    assume(not _right(place) and " " not in text.strip(" \t") and "\t" not in text.strip(" \t"))
    failure = refused(PLACE, text, "mx.example.com")
    assert failure.status == USAGE
    assert len(failure.reasons) == 1
    assert failure.reasons[0].startswith(f"LISTENER argument 1 {text!r}: ")


@given(NEARLY | ANYTHING)
def test_a_wrong_name_is_told_once_and_named(text: str) -> None:
    assume(not text.startswith("-") and " " not in text and "\t" not in text)
    label = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
    assume(not re.fullmatch(rf"{label}(\.{label})*\.?|\[[A-Za-z0-9:.]+\]", text))
    failure = refused(PLACE, "192.0.2.1", text)
    assert failure.status == USAGE
    assert len(failure.reasons) == 1
    assert "LISTENER argument " in failure.reasons[0]
    assert "expected" in failure.reasons[0]


@given(ANYTHING | NEARLY)
def test_a_location_that_cannot_be_sent_is_told_once(text: str) -> None:
    assume(not text.startswith("-"))
    assume(not text.strip() or not all(" " <= letter <= "~" for letter in text))
    failure = refused(text, ONE)
    assert failure.status == USAGE
    assert len(failure.reasons) == 1
    assert failure.reasons[0].startswith(f"LOCATION {text!r}: expected ")


@given(st.lists(NEARLY | ANYTHING | st.sampled_from(["-w", "--code", "--", "-p", "-ft", "--log="])))
def test_no_words_at_all_make_a_traceback(words: list[str]) -> None:
    assume(not any("\0" in word for word in words))  # execve(2) passes none
    made = outcome(lambda: cli.parse([PROGRAM, *words]))
    if isinstance(made, Failure):
        assert made.status in (USAGE, DATA, NO_USER, NO_PERMISSION, CONFIGURATION)
        assert made.reasons
    elif isinstance(made, SystemExit):  # -h or -V among them
        assert made.code == 0
    else:
        assert isinstance(made, cli.Command)


def test_a_tab_separates_as_a_space_does() -> None:
    (one,) = settings(PLACE, " 192.0.2.1:26 \t mx.example.com\t").listeners
    assert (one.place, one.name) == ("192.0.2.1:26", "mx.example.com")


def test_a_listener_without_name_does_not_eat_the_next() -> None:
    failure = refused(PLACE, "192.0.2.1", "[::1]:26 mx.example.com", "192.0.2.999 b")
    assert len(failure.reasons) == 2
    assert "argument 1 '192.0.2.1': its NAME is missing" in failure.reasons[0]
    assert "argument 3 '192.0.2.999 b'" in failure.reasons[1]


def test_the_same_place_twice() -> None:
    failure = refused(PLACE, "[2001:db8::1]:25 a", "2001:DB8:0::1", "b")
    assert len(failure.reasons) == 1
    assert "[2001:db8::1]:25 is given twice" in failure.reasons[0]


def test_ipv4_and_ipv6_wildcards_side_by_side() -> None:
    four, six = settings(PLACE, "0.0.0.0 a", "[::]:25 b").listeners
    assert four.wildcard
    assert six.wildcard
    assert (four.ipv6, six.ipv6) == (False, True)


# --- options ---------------------------------------------------------------


@pytest.mark.parametrize("gap", range(4))
def test_options_between_positionals(gap: int) -> None:
    words = [PLACE, "192.0.2.1", "a.example", "[::1]:26 b.example"]
    words[gap:gap] = ["--code", "450", "-w", "3", "--single-line"]
    made = settings(*words)
    assert [one.place for one in made.listeners] == ["192.0.2.1:25", "[::1]:26"]
    assert {one.code for one in made.listeners} == {450}
    assert all(one.single_line for one in made.listeners)
    assert made.workers == 3


def test_a_value_with_an_equals_sign_and_one_glued_on() -> None:
    made = settings("--code=450", "-w2", PLACE, ONE, "-pblocked")
    assert (made.listeners[0].code, made.workers) == (450, 2)
    assert made.listeners[0].persona.name == "blocked"


def test_words_after_two_hyphens_are_no_options() -> None:
    assert settings("-w", "1", "--", PLACE, ONE).listeners[0].location == PLACE


def test_an_option_may_not_be_shortened() -> None:
    assert "--work=2: unknown option" in refused(PLACE, ONE, "--work=2").reasons[0]


def test_what_stands_when_nothing_is_said(root: None) -> None:
    made = settings(PLACE, ONE)
    assert made.program == "turnaway-fast"
    assert made.listeners[0].persona.name == "mail"
    assert made.listeners[0].code == 421
    assert made.workers == len(os.sched_getaffinity(0))
    assert made.pidfile == "/var/run/turnaway-fast.pid"
    assert (made.log, made.syslog_socket) == ("syslog", SYSLOG_SOCKET)
    assert (made.detail, made.detail_number) == ("capped", 20)
    assert made.identity is not None
    assert made.identity.user in ("turnaway", "nobody")
    assert made.identity.uid
    assert made.identity.gid
    assert made.chroot is None


def test_the_supervisor_keeps_it_in_the_foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not settings(PLACE, ONE).foreground
    assert settings(PLACE, ONE, "-f").foreground
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    assert settings(PLACE, ONE).foreground


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("none", ("none", 0)),
        ("all", ("all", 0)),
        ("capped:1", ("capped", 1)),
        ("sample:1000", ("sample", 1000)),
    ],
)
def test_which_connections_get_a_line(text: str, made: tuple[str, int]) -> None:
    one = settings(PLACE, ONE, "--log-connections", text)
    assert (one.detail, one.detail_number) == made


WRONG = [
    ("--persona", "nobody"),
    ("--persona", ""),
    ("--persona", "../mail"),
    ("--code", "220"),
    ("--code", "354"),
    ("--code", "600"),
    ("--code", "462"),
    ("--code", "42"),
    ("--code", "4210"),
    ("--code", "-421"),
    ("--code", "４２１"),
    ("--code", "421\n"),
    ("--workers", "0"),
    ("--workers", "65"),
    ("--workers", "two"),
    ("--workers", "1.0"),
    ("--workers", ""),
    ("--log", "file"),
    ("--log", "syslog:"),
    ("--log", "syslog:relative"),
    ("--log", "syslog:/" + "x" * 107),
    ("--log", "stderr:/x"),
    ("--log-connections", "capped"),
    ("--log-connections", "capped:0"),
    ("--log-connections", "sample:-1"),
    ("--log-connections", "all:1"),
    ("--interval", "0"),
    ("--interval", "86401"),
    ("--interval", "1e3"),
    ("--pidfile", ""),
    ("--user", "nobody-of-this-name"),
    ("--user", "\udc80"),
    ("--user", "root"),
    ("--group", "nobody-of-this-name"),
    ("--chroot", "relative"),
    ("--chroot", "/no/such/directory"),
]


@pytest.mark.parametrize(("option", "value"), WRONG)
def test_a_wrong_value_is_told_once_and_named(root: None, option: str, value: str) -> None:
    failure = refused(PLACE, ONE, f"{option}={value}")
    assert len(failure.reasons) == 1
    assert option in failure.reasons[0]


def test_all_mistakes_of_a_line_at_once(root: None) -> None:
    failure = refused(
        *("Łódź", "192.0.2.1:0 a", "--code", "220", "nonsense", "b", "--what", "192.0.2.1"),
        *("--workers", "0", "--log=x", "--interval", "-", "--log-connections", "x", "--persona"),
    )
    assert failure.status == USAGE
    told = "\n".join(failure.reasons)
    for word in (
        *("LOCATION", "argument 1", "argument 2", "argument 4", "--code", "--what", "--workers"),
        *("--log:", "--interval", "--log-connections", "--persona"),
    ):
        assert told.count(word) == 1, word
    assert len(failure.reasons) == 11


@pytest.mark.parametrize(
    "words",
    [
        ["--code", "-f", PLACE, ONE],
        [PLACE, "--code", "--foreground", ONE],
        [PLACE, ONE, "--code"],
        ["--code", "421", PLACE, ONE, "--code"],
    ],
)
def test_an_option_without_its_value_takes_nothing_with_it(words: list[str]) -> None:
    failure = refused(*words)
    assert failure.reasons == ("argument --code: expected one argument",)


def test_letters_together_of_which_the_last_lacks_its_value() -> None:
    failure = refused(PLACE, ONE, "-fw")
    assert failure.reasons == ("argument -w/--workers: expected one argument",)


def test_nothing_at_all() -> None:
    (reason,) = refused().reasons
    assert "LOCATION is missing, and a LISTENER" in reason
    (reason,) = refused(PLACE).reasons
    assert "a LISTENER is missing" in reason


# --- statuses --------------------------------------------------------------

TOO_LONG = "x" * 600


def test_statuses_by_kind(root: None) -> None:
    assert refused(PLACE, ONE, "--code", "220").status == USAGE == 64
    assert refused(TOO_LONG, ONE).status == DATA == 65
    assert refused(PLACE, ONE, "--user", "nobody-of-this-name").status == NO_USER == 67
    assert refused(PLACE, ONE, "--group", "nobody-of-this-name").status == NO_USER


def test_what_only_root_can(user: None) -> None:
    for words in (("--user", "nobody"), ("--group", "nogroup"), ("--chroot", "/")):
        failure = refused(PLACE, ONE, *words)
        assert failure.status == NO_PERMISSION == 77
        assert "start as root" in failure.reasons[0]


def test_mistakes_of_several_kinds_are_a_usage_error(root: None) -> None:
    failure = refused(TOO_LONG, ONE, "--user", "nobody-of-this-name")
    assert failure.status == USAGE
    assert len(failure.reasons) == 2


def test_banner_that_may_grow_too_long_names_the_persona_and_its_line() -> None:
    reason = refused(TOO_LONG, ONE, "-p", "blocked").reasons[0]
    assert re.search(r"personas/blocked\.toml:7: the line may be \d+ octets long", reason)


def test_what_an_argument_says_stays_on_one_line_and_commands_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failure = refused(PLACE, ONE, "--user\x1b[2J\n=\udc80\x00\x9b")
    assert cli.report("turnaway-fast", failure) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("turnaway-fast: ")
    assert line.isprintable()


# --- what the command's name decides ----------------------------------------

NAMED = [
    ("turnaway-fast", "mail", 421),
    ("turnawaymail", "mail", 421),
    ("turnawayblocked", "blocked", 554),
    ("turnawayspammer", "spammer", 554),
    ("turnawayabused", "abused", 554),
    ("turnawayworm", "worm", 554),
    ("turnawayblocked-dmz", "blocked", 554),
    ("turnawayworm2", "worm", 554),
    ("anything", "mail", 421),
]


@pytest.mark.parametrize(("name", "persona", "code"), NAMED)
def test_program_name_chooses_persona_and_pidfile(
    root: None, name: str, persona: str, code: int
) -> None:
    made = settings(PLACE, ONE, program=f"/usr/local/sbin/{name}")
    assert made.program == name
    assert made.listeners[0].persona.name == persona
    assert made.listeners[0].code == code
    assert made.pidfile == f"/var/run/{name}.pid"


def test_every_persona_has_its_command() -> None:
    assert {persona for name, persona, _ in NAMED if name != "turnaway-fast"} == set(personas.NAMES)


@pytest.mark.parametrize("argv0", ["/x/turnaway/__main__.py", "-m", "-c", ""])
def test_python_m_turnaway_is_turnaway_fast(argv0: str) -> None:
    assert settings(PLACE, ONE, program=argv0).program == "turnaway-fast"


def test_an_option_wins_over_the_name(anyone: int) -> None:
    made = settings(PLACE, ONE, "-p", "worm", "--pidfile=none", program="turnawaymail")
    assert made.listeners[0].persona.name == "worm"
    assert made.pidfile is None


def test_pidfile_of_an_ordinary_user(user: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    made = settings(PLACE, ONE, program="turnawaymail")
    assert made.pidfile == "/run/user/1000/turnawaymail.pid"
    assert made.identity is None
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")  # not valid, says the specification
    assert settings(PLACE, ONE).pidfile is None
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert settings(PLACE, ONE).pidfile is None


def test_a_pidfile_is_found_again_from_the_root_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings(PLACE, ONE, "--pidfile", "one.pid").pidfile == str(tmp_path / "one.pid")


# --- what ends at once --------------------------------------------------------


def run(*words: str, module: str = "turnaway") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", module, *words], capture_output=True, timeout=60)


def test_check_says_all_is_well() -> None:
    ended = run("-t", "--log", "none", PLACE, "192.0.2.1:1 mx.example.com")
    assert ended.returncode == 0
    assert ended.stdout == b"turnaway-fast: all is well: 192.0.2.1:1 mx.example.com\n"
    assert ended.stderr == b""


def test_check_says_what_is_wrong() -> None:
    ended = run("--check", PLACE, "192.0.2.1:0 mx.example.com", "--code", "999")
    assert ended.returncode == USAGE
    assert ended.stdout == b""
    assert len(ended.stderr.splitlines()) == 2
    assert b"Traceback" not in ended.stderr


def test_show_banner_prints_each_listener_and_nothing_else() -> None:
    ended = run("--show-banner", "-p", "blocked", PLACE, "192.0.2.1 a", "[::1]:26", "b")
    assert ended.returncode == 0
    assert ended.stdout.count(b"554-a ESMTP TurnAway v") == 1
    assert ended.stdout.count(b"554-b ESMTP TurnAway v") == 1
    assert ended.stdout.count(b"\r\n") == 12
    assert ended.stderr.startswith(b"192.0.2.1:25 a: ")


@pytest.mark.parametrize(
    ("option", "word"), [("-V", b"turnaway "), ("--help", b"--log-connections")]
)
def test_version_and_help_end_well(option: str, word: bytes) -> None:
    ended = run(option)
    assert ended.returncode == 0
    assert word in ended.stdout


def test_octets_that_are_no_text_make_no_traceback() -> None:
    words = b"-t \xff\xfe 192.0.2.1:\xff -u \xff --pidfile /\xff --what\xff".split()
    ended = subprocess.run(
        [sys.executable.encode(), b"-m", b"turnaway", *words], capture_output=True, timeout=60
    )
    assert ended.returncode == USAGE
    assert b"Traceback" not in ended.stderr
    assert ended.stderr.isascii()


def test_the_example_in_the_message_works() -> None:
    words = shlex.split(cli.EXAMPLE)
    assert cli.parse(words).settings.listeners[0].name == "mx.example.com"


def test_every_option_has_its_help() -> None:
    actions = cli.parser("turnaway-fast")._actions
    assert all(action.help for action in actions)
    flags = list(itertools.chain.from_iterable(action.option_strings for action in actions))
    assert len(flags) == len(set(flags))
