"""What is said: the words of 2003, the five personas, and the rules of a reply.

Owns: turnaway/banner.py and the shipped persona files.  The 2003 page's texts
stand here as literals; only the version shown differs.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import turnaway
from turnaway import banner, cli, personas
from turnaway.exits import DATA, Failure
from turnaway.settings import Line, Listener, Page, Persona

MAIL_2003 = """\
421-example.com TurnAway v0.1.3 (not) ready at Mon, 01 Sep 2003 07:30:17 -0600 (MDT);
421-in Somecity, Earth.  Incoming mail services are not
421-available at this IP:port.  Please use proper MX or SRV lookups.
421 Your mail software MAY be broken.  Closing connection.
"""
BLOCKED_2003 = """\
554-example.com ESMTP TurnAway v0.1.6 at Mon, 01 Sep 2003 07:31:23 -0600 (MDT);
554-in Somecity, Earth.  Your mailserver connection is being denied.  Abusive
554-forwarding of viri and/or bogus virus reports and/or bounces from this host
554-are the reason.  You have been running a common, but broken mail setup.
554-Please do NOT send these to forged addresses.  Rather, reject such
554 while the ACTUAL forger is still connected.  Closing connection.
"""
# Moments of the two examples, seconds since 1970.
MAIL_MOMENT = 1062423017
BLOCKED_MOMENT = 1062423083

DATE = "Mon, 01 Sep 2003 07:30:17 -0600 (MDT)"
# Why, by persona: these words in the first line and again in the last.
REASONS = {
    "mail": (r"\(not\) ready", r"mail software MAY be broken"),
    "blocked": (r"ESMTP TurnAway", r"ACTUAL forger"),  # the words of 2003, as they are
    "spammer": (r"blocked as a spam source", r"blocked as a spam source"),
    "abused": (r"open proxy or relay", r"open proxy or relay"),
    "worm": (r"infected", r"infected"),
}
THREE_NUMBERS = re.compile(r"\d+\.\d+\.\d+")


@pytest.fixture
def denver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/Denver")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def listener(persona: Persona | str, **changed: object) -> Listener:
    made = personas.shipped(persona) if isinstance(persona, str) else persona
    values: dict[str, object] = {
        "address": "192.0.2.1",
        "port": 25,
        "name": "example.com",
        "location": "Somecity, Earth",
        "persona": made,
        "code": made.code,
    }
    return Listener(**(values | changed))  # type: ignore[arg-type]


def speaking(name: str, lines: tuple[Line, ...]) -> Persona:
    return Persona(name, 554, lines, lines[0], "now", "smtp", Page(lines[0], lines), ())


def follows_the_rules(octets: bytes, code: int) -> None:
    assert len(octets) <= 1000
    assert octets.endswith(b"\r\n")
    lines = octets.split(b"\r\n")[:-1]
    for number, line in enumerate(lines):
        assert len(line) + 2 <= 512
        assert re.fullmatch(rb"[ -~]+", line)
        separator = b" " if number == len(lines) - 1 else b"-"
        assert line.startswith(str(code).encode() + separator)
        assert len(line) > 4


@pytest.mark.parametrize(
    ("persona", "moment", "text"),
    [("mail", MAIL_MOMENT, MAIL_2003), ("blocked", BLOCKED_MOMENT, BLOCKED_2003)],
)
def test_the_words_of_2003(denver: None, persona: str, moment: int, text: str) -> None:
    expected = re.sub(r"v0\.1\.\d", f"v{banner.VERSION}", text).replace("\n", "\r\n").encode()
    assert banner.render(listener(persona), banner.date_text(moment)) == expected


def test_version_shown_is_two_numbers_of_ours() -> None:
    assert re.fullmatch(r"\d+\.\d+", banner.VERSION)
    assert turnaway.__version__.startswith(f"{banner.VERSION}.")


def test_personas_shipped_are_those_named() -> None:
    assert sorted(path.stem for path in personas.HOME.glob("*.toml")) == sorted(personas.NAMES)
    assert {name: personas.shipped(name).code for name in personas.NAMES} == {
        "mail": 421,
        "blocked": 554,
        "spammer": 554,
        "abused": 554,
        "worm": 554,
    }


@pytest.mark.parametrize("single", [False, True], ids=["lines", "single"])
@pytest.mark.parametrize("name", personas.NAMES)
class TestEveryPersona:
    def test_rules(self, name: str, single: bool) -> None:
        one = listener(name, single_line=single)
        assert banner.mistakes(one) == []
        octets = banner.render(one, DATE)
        follows_the_rules(octets, one.code)
        assert octets.count(b"\r\n") == (1 if single else len(one.persona.lines))

    def test_another_code_on_every_line(self, name: str, single: bool) -> None:
        one = listener(name, single_line=single, code=450)
        assert banner.mistakes(one) == []
        follows_the_rules(banner.render(one, DATE), 450)

    def test_reason_in_first_and_last_line(self, name: str, single: bool) -> None:
        lines = banner.render(listener(name, single_line=single), DATE).decode().splitlines()
        first, last = REASONS[name]
        if single:
            pattern = {"mail": "no incoming mail services", "blocked": "connection denied"}
            assert re.search(pattern.get(name, first), lines[0])
        else:
            assert re.search(first, lines[0])
            assert re.search(last, lines[-1])
        assert lines[-1].endswith("  Closing connection.")

    def test_no_three_dotted_numbers(self, name: str, single: bool) -> None:
        """nullmailer(7) takes them for a status code and cannot write its bounce."""
        assert not THREE_NUMBERS.search(
            banner.render(listener(name, single_line=single), DATE).decode()
        )

    def test_as_long_as_host_names_get(self, name: str, single: bool) -> None:
        """64 octets of name and of location fit every persona, at any moment."""
        one = listener(name, single_line=single, name="n" * 64, location="L" * 64)
        assert banner.mistakes(one) == []
        follows_the_rules(
            banner.render(one, "Wed, 30 Sep 2026 23:59:59 +1245 (ABCDEFGH)"), one.code
        )


def test_no_three_dotted_numbers_in_any_shipped_text() -> None:
    for path in personas.HOME.glob("*.toml"):
        assert not THREE_NUMBERS.search(path.read_text("ascii"))


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)


@given(
    name=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z]{1,40}){0,5}", fullmatch=True),
    location=PRINTABLE.filter(str.strip),
    persona=st.sampled_from(personas.NAMES),
    code=st.integers(400, 599).filter(banner.refuses),
    single=st.booleans(),
)
def test_whatever_was_not_refused_follows_the_rules(
    name: str, location: str, persona: str, code: int, single: bool
) -> None:
    one = listener(persona, name=name, location=location, code=code, single_line=single)
    if not banner.mistakes(one):
        octets = banner.render(one, DATE)
        follows_the_rules(octets, code)
        assert name in octets.decode()
        if not single:
            assert f"in {location}.  " in octets.decode()


@given(st.lists(st.text(), min_size=1, max_size=8))
def test_any_text_of_a_persona_is_refused_or_follows_the_rules(texts: list[str]) -> None:
    lines = tuple(Line(text, f"any.toml:{n}") for n, text in enumerate(texts, 1))
    one = listener(speaking("any", lines))
    wrong = banner.mistakes(one)
    if not wrong:
        follows_the_rules(banner.render(one, DATE), 554)
    assert all(re.match(r"any\.toml:\d+: ", said) for said in wrong)


def test_a_field_in_name_or_location_is_no_field() -> None:
    """What an administrator writes is put in once and not read again."""
    one = listener("mail", location="{name} {0} {version")
    assert banner.mistakes(one) == []
    assert b"in {name} {0} {version.  Incoming" in banner.render(one, DATE)


def test_codes_that_may_stand_for_the_220() -> None:
    for code in range(1000):
        may = re.fullmatch("[45][0-5][0-9]", f"{code:03}") is not None
        assert banner.refuses(code) is may
        assert (banner.mistakes(listener("mail", code=code)) == []) is may


def test_longest_line_and_longest_reply_to_the_octet() -> None:
    def reply(*lengths: int) -> list[str]:
        lines = tuple(Line("x" * length, f"p.toml:{n}") for n, length in enumerate(lengths, 3))
        return banner.mistakes(listener(speaking("p", lines)))

    assert reply(506) == []  # 554, separator, 506, CR and LF: 512
    assert "p.toml:3: the line may be 513 octets long" in reply(507)[0]
    assert reply(494, 494) == []  # 1000
    (wrong,) = reply(494, 495)
    assert wrong.startswith("p.toml:3: the reply for example.com may be 1001 octets long")


def test_a_banner_fits_the_slot_it_is_published_in() -> None:
    from turnaway import _board

    assert banner.TOTAL_OCTETS <= _board.ANSWER_OCTETS


def test_show_banner_is_what_render_makes(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from turnaway.__main__ import main

    monkeypatch.setattr(time, "time", lambda: float(MAIL_MOMENT))
    words = ["/x/turnawayspammer", "--show-banner", "Somecity, Earth", "192.0.2.1 example.com"]
    assert main(words) == 0
    one = cli.parse(words).settings.listeners[0]
    assert capfdbinary.readouterr().out == banner.render(one, banner.date_text(MAIL_MOMENT))


# --- persona files ------------------------------------------------------------

GOOD = """\
# A persona.
code = 554
close = "now"
lines = [
    "{name} says no at {date};",
    "no, from {location}, with TurnAway v{version}.",
]
single = "{name} says no."
"""


def mistakes(tmp_path: Path, text: str | bytes, single: bool = False) -> list[str]:
    """Every mistake of a persona file, each without the folder it stands in."""
    path = tmp_path / "odd.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        told = banner.mistakes(listener(personas.read(path), single_line=single))
    except Failure as failure:
        told = list(failure.reasons)
    return [said.replace(f"{tmp_path}/", "") for said in told]


def test_a_good_persona_file(tmp_path: Path) -> None:
    assert mistakes(tmp_path, GOOD) == []
    assert mistakes(tmp_path, GOOD, single=True) == []
    assert personas.read(tmp_path / "odd.toml").name == "odd"
    assert mistakes(tmp_path, GOOD.replace("\n", "\r\n")) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("code = 554", 'code = "554"', 'odd.toml:2: code: expected 400..599, got "554"'),
        ("code = 554", "code = true", "odd.toml:2: code: expected 400..599, got true"),
        ("code = 554", "code = 554.0", "odd.toml:2: code: expected 400..599, got 554.0"),
        ("code = 554\n", "", "odd.toml:1: code: expected 400..599, got nothing"),
        ("code = 554", "code = 250", "odd.toml:2: code: expected 400..599, got 250"),
        (
            "code = 554",
            "code = 464",
            "odd.toml:2: code: expected 4yz or 5yz (RFC 5321 4.2), got 464",
        ),
        ('close = "now"', 'close = "later"', "odd.toml:3: close: expected one of now"),
        ('close = "now"', "close = 1979-05-27", "odd.toml:3: close: expected one of now"),
        ('close = "now"', 'close = "now"\ncolour = "red"', "odd.toml:4: colour: unknown key"),
        ('close = "now"', 'close = "now"\na.b.c = 1', "odd.toml:4: a: unknown key"),
        ('"{name} says no."', '["{name} says no."]', "odd.toml:8: single: expected a string"),
        ('    "{name} says', '    5, "{name} says', "odd.toml:5: lines[0]: expected a string"),
        ("v{version}.", "v{version}, {reason}", "odd.toml:6: unknown field {reason}; known are"),
        ("v{version}.", "v{ version }", "odd.toml:6: unknown field { version }"),
        ("v{version}.", "v{version}. }", "odd.toml:6: a brace outside a field"),
        ("v{version}.", "{{version}}", "odd.toml:6: a brace outside a field"),
        ("no, from", "nö, from", "odd.toml:6: only printable ASCII may be sent"),
        ("no, from", "no\\r\\n, from", "odd.toml:6: only printable ASCII may be sent"),
        ("no, from", "no\\u0000, from", "odd.toml:6: only printable ASCII may be sent"),
        ("no, from", "no\\t, from", "odd.toml:6: only printable ASCII may be sent"),
        ("no, from", "x" * 500, "odd.toml:6: the line may be "),
        ('"no, from {location}, with TurnAway v{version}."', '""', "odd.toml:6: an empty line"),
    ],
)
def test_a_bad_persona_file_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    assert GOOD.count(old) == 1
    (said,) = mistakes(tmp_path, GOOD.replace(old, new))
    assert said.startswith(told)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD.replace('"now"', "now"), 3),
        (GOOD.replace("]\n", ""), 7),
        (GOOD + "single = 'again'\n", 9),
        (GOOD + "code\n", 9),
        (GOOD + '"', 9),
        (GOOD + "x = '''\n\n", None),
    ],
)
def test_a_syntax_error_is_told_with_its_line(tmp_path: Path, text: str, line: int | None) -> None:
    found = mistakes(tmp_path, text)
    (said,) = found
    assert re.match(r"odd\.toml:\d+: \S", said)
    assert line is None or said.startswith(f"odd.toml:{line}: ")


def test_a_file_that_is_no_utf8(tmp_path: Path) -> None:
    octets = GOOD.encode().replace(b"no, from", b"n\xf6, from")
    assert mistakes(tmp_path, octets)[0].startswith("odd.toml:6: expected UTF-8")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        personas.read(tmp_path / "none.toml")
    assert caught.value.status == DATA == 65
    assert caught.value.reasons == (f"{tmp_path}/none.toml: No such file or directory",)
    with pytest.raises(Failure) as caught:
        personas.read(tmp_path)
    assert caught.value.reasons == (f"{tmp_path}: Is a directory",)


def test_an_empty_file_and_no_lines(tmp_path: Path) -> None:
    assert len(mistakes(tmp_path, "")) == 4
    assert mistakes(tmp_path, GOOD.replace('"{name} says no at {date};",', "").replace(
        '"no, from {location}, with TurnAway v{version}.",', ""
    )) == ["odd.toml:4: lines: expected at least one string"]  # fmt: skip


def test_every_mistake_of_a_file_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("554", "'x'").replace('"now"', "1").replace("single", "sin\u0261le")
    text = text.replace("sin\u0261le", "singel").replace('"{name} says no at', '2, "')
    found = mistakes(tmp_path, text)
    assert sorted(int(said.split(":")[1]) for said in found) == [1, 2, 3, 5, 8]


def test_every_mistake_of_the_text_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("{name} says no at", "{nome} }").replace("no, from", "nö")
    found = mistakes(tmp_path, text)
    assert [said.split(": ")[0] for said in found] == ["odd.toml:5"] * 2 + ["odd.toml:6"]


def test_the_total_counts_the_longest_date_there_can_be(tmp_path: Path) -> None:
    """Refused at the start, not at the hour when the zone's name is longer."""
    filler = "".join(f'    "{"x" * 450}",\n' for _ in range(2))
    text = GOOD.replace("lines = [\n", "lines = [\n" + filler)
    (said,) = mistakes(tmp_path, text)
    assert re.match(r"odd\.toml:5: the reply for example\.com may be \d+ octets long", said)
