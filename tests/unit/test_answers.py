"""Everything a listener may say, as bytes: h11, a parser of XML and the RFCs judge.

Owns: turnaway/answers.py, turnaway/page.py, the [http] and [text] parts of the
persona files, and the warnings of --check.  Hostile here: names and locations
full of mark-up, pages that do not fit, policies that a protocol cannot have.
"""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import re
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import COMMAND

from turnaway import _board, answers, banner, page, personas
from turnaway.settings import CLOSES, PROTOCOLS, Line, Listener, Page, Persona

NOW = 1795368862.5  # Sun, 22 Nov 2026 17:34:22 UTC
WEB = ("plain", "html", "bad", "timeout")
STATUS = {"plain": 403, "html": 403, "bad": 400, "timeout": 408}
HOSTILE = '<script>alert(\'&"x")</script> {name} {0} %s --> ]]>'


def listener(persona: Persona | str = "worm", **changed: object) -> Listener:
    made = personas.shipped(persona) if isinstance(persona, str) else persona
    values: dict[str, object] = {
        "address": "192.0.2.1",
        "port": 25,
        "name": "mx.example.com",
        "location": "Somecity, Earth",
        "persona": made,
        "code": made.code,
        "close": made.close,
        "protocol": made.protocol,
    }
    return Listener(**(values | changed))  # type: ignore[arg-type]


def read(octets: bytes, method: str = "GET") -> tuple[h11.Response, bytes]:
    """h11's reading of an answer that ends with the connection."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(octets)
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data == (b"", True)
    return response, body


def fields(response: h11.Response) -> dict[str, str]:
    assert len({name for name, _ in response.headers}) == len(list(response.headers))
    return {name.decode(): value.decode() for name, value in response.headers}


# --- HTTP ----------------------------------------------------------------------------


@pytest.mark.parametrize("persona", personas.NAMES)
@pytest.mark.parametrize("words", WEB)
def test_every_http_answer_by_h11(persona: str, words: str) -> None:
    octets, head = answers.render(listener(persona, protocol="http"), NOW)[words]
    response, body = read(octets)
    told = fields(response)
    assert response.status_code == STATUS[words]
    assert response.http_version == b"1.1"
    assert set(told) == {
        *("date", "content-type", "content-length"),
        *("cache-control", "connection"),
    }
    assert told["connection"] == "close"
    assert told["cache-control"] == "no-store"
    kind = "text/html" if words == "html" else "text/plain"
    assert told["content-type"] == f"{kind}; charset=us-ascii"
    assert int(told["content-length"]) == len(body) > 0
    # HEAD: the same head, and nothing after it (RFC 9110 9.3.2).
    same, none = read(octets[:head], "HEAD")
    assert list(same.headers) == list(response.headers)
    assert none == b""
    assert octets[:head].endswith(b"\r\n\r\n")
    assert octets[head:] == body
    assert b"Proxy-Authenticate" not in octets
    assert body.decode("ascii").isprintable() or b"\n" in body
    assert re.fullmatch(rb"[ -~\n]+", body)


@given(st.integers(0, 253402300799))
def test_dates_are_imf_fixdate(moment: int) -> None:
    text = page.http_date(moment + 0.999)
    assert re.fullmatch(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", text)
    told = email.utils.parsedate_to_datetime(text)
    assert told == datetime.datetime.fromtimestamp(moment, datetime.UTC)
    assert text.startswith(told.strftime("%a, "))


def test_the_date_is_of_the_moment_and_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    octets, _ = answers.render(listener(), NOW)["plain"]
    assert fields(read(octets)[0])["date"] == "Sun, 22 Nov 2026 17:34:22 GMT"


class Elements(HTMLParser):
    """What a browser's parser sees: elements and text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(one: Listener) -> str:
    return read(answers.render(one, NOW)["html"][0])[1].decode("ascii")


@pytest.mark.parametrize("persona", personas.NAMES)
@pytest.mark.parametrize("location", ["Somecity, Earth", HOSTILE, "&amp;&#0;", "<!--", "a<b>c"])
def test_the_page_is_well_formed_whatever_the_location(persona: str, location: str) -> None:
    one = listener(persona, location=location, protocol="http")
    assert answers.mistakes(one) == []
    text = page_of(one)
    closed = re.sub(r"<!DOCTYPE html>|(<meta [^>]*)>", lambda m: f"{m[1]}/>" if m[1] else "", text)
    tree = ET.fromstring(closed)
    assert tree.tag == "html"
    assert tree.attrib == {"lang": "en"}
    title = tree.findtext("head/title")
    assert title == tree.findtext("body/h1") == banner.fill(one.persona.page.title.text, one, "")
    assert location in (tree.findtext("body/footer") or "")
    assert location in "".join(tree.itertext())
    seen = Elements()
    seen.feed(text)
    paragraphs = ["p"] * len(one.persona.page.text)
    assert seen.elements == [
        *("html", "head", "meta", "meta", "title", "style", "body", "h1"),
        *paragraphs,
        "footer",
    ]
    assert seen.text.count(location) >= 2  # in the text and in the footer, as it is


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=60))
def test_any_location_stands_in_the_page_as_it_is(location: str) -> None:
    one = listener(location=location)
    seen = Elements()
    seen.feed(page_of(one))
    assert location in seen.text
    assert "script" not in seen.elements
    plain = read(answers.render(one, NOW)["plain"][0])[1].decode()
    assert location in plain


def test_a_persona_with_mark_up_in_its_words() -> None:
    made = dataclasses.replace(
        personas.shipped("worm"),
        page=Page(Line("<b>{name}</b>", "p.toml:1"), (Line("a & b </p><script>", "p.toml:2"),)),
    )
    seen = Elements()
    text = page_of(listener(made))
    seen.feed(text)
    assert "script" not in seen.elements
    assert "<b>mx.example.com</b>" in seen.text
    assert "a &amp; b &lt;/p&gt;&lt;script&gt;" in text


def paged(*paragraphs: str, title: str = "No") -> Persona:
    return dataclasses.replace(
        personas.shipped("worm"),
        page=Page(
            Line(title, "p.toml:3"),
            tuple(Line(text, f"p.toml:{at}") for at, text in enumerate(paragraphs, 5)),
        ),
    )


def test_a_page_fits_its_slot_to_the_octet() -> None:
    assert page.ANSWER_OCTETS == _board.ANSWER_OCTETS
    empty = max(
        len(octets)
        for octets, _ in page.render(listener(paged("")), NOW, banner.LONGEST_DATE).values()
    )
    room = page.ANSWER_OCTETS - empty - 2  # the Content-Length has two digits more
    for length in range(room - 3, room + 4):
        one = listener(paged("x" * length))
        longest = max(
            len(octets) for octets, _ in page.render(one, NOW, banner.LONGEST_DATE).values()
        )
        told = page.mistakes(one)
        assert bool(told) is (longest > page.ANSWER_OCTETS)
        if told:
            assert told == [
                f"p.toml:3: the page for mx.example.com may be {longest} octets long;"
                " at most 4064 are allowed"
            ]


@given(st.text(st.sampled_from("&<>\"'ab "), min_size=800, max_size=2500))
def test_whatever_was_not_refused_fits(text: str) -> None:
    """Escapes make text up to six times longer."""
    one = listener(paged(text))
    if not page.mistakes(one):
        for octets, _ in answers.render(one, NOW).values():
            assert len(octets) <= _board.ANSWER_OCTETS


@pytest.mark.parametrize("persona", personas.NAMES)
def test_the_longest_name_and_a_long_location_fit(persona: str) -> None:
    label = "n" * 63
    name = ".".join([label] * 4)[:255]
    one = listener(persona, name=name, location="L" * 200, protocol="http")
    assert answers.mistakes(one) == []


@pytest.mark.parametrize(
    ("title", "text", "told"),
    [
        ("n\xf6", "a", "p.toml:3: only printable ASCII may be sent"),
        ("a", "\r\nX-Forged: 1", "p.toml:5: only printable ASCII may be sent"),
        ("a", "\0", "p.toml:5: only printable ASCII may be sent"),
        ("a", "{reason}", "p.toml:5: unknown field {reason}; known are"),
        ("a }", "a", "p.toml:3: a brace outside a field"),
    ],
)
def test_a_page_that_may_not_be_sent(title: str, text: str, told: str) -> None:
    (said,) = answers.mistakes(listener(paged(text, title=title)))
    assert said.startswith(told)


# --- the fixed ones ------------------------------------------------------------------------


def test_the_alert_and_the_refusals_to_the_octet() -> None:
    said = answers.render(listener(protocol="auto"), NOW)
    assert said["tls"] == (b"\x15\x03\x03\x00\x02\x02\x31", 0)
    assert said["socks5"] == (b"\x05\xff", 0)
    assert said["socks4"] == (b"\x00\x5b\0\0\0\0\0\0", 0)


def test_the_dialogue_to_the_octet() -> None:
    said = answers.render(listener("blocked", close="quit"), NOW)
    assert said["wrong"][0] == (
        b"503 mx.example.com Bad sequence of commands; you are refused, see the greeting\r\n"
    )
    assert said["bye"][0] == b"221 mx.example.com Closing connection\r\n"
    assert said["late"][0] == b"421 mx.example.com Timeout or shutdown; closing connection\r\n"
    longest = answers.render(listener("blocked", close="quit", name="n" * 255), NOW)
    assert all(len(octets) <= 512 for words, (octets, _) in longest.items() if words != "banner")


# RFC 1939 3, RFC 3501 7.1.5 (and 9), RFC 959 5.4.
SYNTAX = {
    "pop3": (110, rb"-ERR [!-~][ -~]*\r\n"),
    "imap": (143, rb"\* BYE [!-Z^-~][ -~]*\r\n"),  # a text, not a [response code]
    "ftp": (21, rb"421 [!-~][ -~]*\r\n"),
}


@pytest.mark.parametrize("persona", personas.NAMES)
@pytest.mark.parametrize("kind", SYNTAX)
def test_text_refusals_have_the_syntax_of_their_port(persona: str, kind: str) -> None:
    port, syntax = SYNTAX[kind]
    for one in (
        listener(persona, port=port, protocol="text"),
        listener(persona, port=2525, protocol=f"text:{kind}"),
    ):
        assert answers.mistakes(one) == []
        ((octets, head),) = answers.render(one, NOW).values()
        assert re.fullmatch(syntax, octets)
        assert head == 0
        assert len(octets) <= 512  # RFC 2449 4: with a CRLF
        assert b" mx.example.com " in octets
        assert answers.codes(one)["banner"] == (kind, "-")


@pytest.mark.parametrize(
    ("port", "protocol"), [(25, "text"), (2525, "text"), (110, "text:nntp"), (1, "text:POP3")]
)
def test_text_without_words_is_told_with_what_there_is(port: int, protocol: str) -> None:
    (said,) = answers.mistakes(listener(port=port, protocol=protocol))
    assert said == (
        f"192.0.2.1:{port}: persona worm has no words for {protocol} there; it has"
        " text:pop3 (port 110), text:imap (port 143), text:ftp (port 21)"
    )


# --- the personas ----------------------------------------------------------------------------


@pytest.mark.parametrize("persona", personas.NAMES)
def test_each_persona_reads_well_as_text(persona: str) -> None:
    """Sentences, a title of a few words, the host and why; and every kind of port."""
    made = personas.shipped(persona)
    text = [line.text for line in made.page.text]
    assert 2 <= len(made.page.title.text.split()) <= 6
    assert not made.page.title.text.endswith(".")
    assert "{name}" in text[0]
    for paragraph in text:
        assert re.fullmatch(r"[A-Z].*[.]", paragraph)
        assert "  " not in paragraph.replace(".  ", ". ")
    assert {one.kind: one.ports for one in made.refusals} == {
        "pop3": (110,),
        "imap": (143,),
        "ftp": (21,),
    }
    for one in made.refusals:
        assert one.line.text.endswith("Closing connection.")
        assert len(one.line.text) < 160


def test_abused_and_worm_speak_anything() -> None:
    assert {name for name in personas.NAMES if personas.shipped(name).protocol == "auto"} == {
        "abused",
        "worm",
    }


# --- how a listener behaves ------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "text:pop3"])
@pytest.mark.parametrize("close", CLOSES)
def test_whatever_may_be_said_is_rendered(protocol: str, close: str) -> None:
    """The loop never sends an answer that nobody published."""
    one = listener("blocked", protocol=protocol, close=close, port=110)
    if answers.mistakes(one):
        assert close == "quit"
        assert protocol != "smtp"
        return
    how = answers.behaviour(one)
    said = set(answers.render(one, NOW))
    needs = {how.blind}
    if how.manner == "quit":
        needs |= {"wrong", "bye", "late"}
    if how.manner == "ask":
        needs |= {
            "http": set(WEB),
            "tls": {"tls"},
            "socks": {"socks4", "socks5"},
            "any": {*WEB, "banner", "tls", "socks4", "socks5"},
        }[how.expected]
    assert needs <= said <= set(_board.WORDS)
    assert set(answers.codes(one)) == set(_board.WORDS)
    assert how.manner in _board.MANNERS
    assert how.expected in _board.EXPECTED
    assert how.lingers == ("drain" if close == "drain" else "park")
    assert how.resets is (close == "reset")
    board = _board.Board(1, 1)
    board.behave(0, how.manner, how.expected, how.blind, how.lingers, how.resets)
    for words, (octets, head) in answers.render(one, NOW).items():
        board.publish(0, words, octets, head)


# --- what --check says -----------------------------------------------------------------------


def check(*options: str, port: int = 2525) -> tuple[int, str]:
    ended = subprocess.run(
        [COMMAND, *options, "--check", "Earth", f"127.0.0.1:{port} mx.example.com"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (("-p", "mail"), []),
        (("-p", "mail", "--code", "521"), []),  # a host that never takes mail
        (("-p", "blocked", "--close", "quit"), []),
        (("-p", "worm", "--protocol", "http"), []),
        (("-p", "worm", "--protocol", "text:pop3"), []),
        (("-p", "blocked"), []),  # as it is shipped
        (("-p", "mail", "--code", "554"), ["after a 554 greeting a server waits for QUIT"]),
        (("-p", "worm"), []),
        (("-p", "blocked", "--close", "drain"), ["close policy drain does not"]),
        (("-p", "spammer", "--code", "521"), ["521 is for hosts that never accept mail"]),
        (("-p", "mail", "--close", "reset"), ["close policy reset loses messages"]),
        (
            ("-p", "blocked", "--close", "reset"),
            ["after a 554 greeting", "close policy reset loses messages"],
        ),
        (("-p", "mail", "--close", "drain", "--timewait", "no"), ["timewait no spares only"]),
        (("-p", "mail", "--timewait", "no"), []),
    ],
)
def test_check_warns_where_code_and_policy_disagree(
    options: tuple[str, ...], warned: list[str]
) -> None:
    """It is the operator's choice: the status stays 0."""
    status, said = check(*options)
    assert status == 0
    lines = said.splitlines()
    assert len(lines) == len(warned)
    for line, words in zip(lines, warned, strict=True):
        assert line.startswith("turnaway-fast: warning: 127.0.0.1:2525: ")
        assert words in line


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (("--protocol", "http", "--close", "quit"), 65, "close policy quit is a dialogue of SMTP"),
        (("-p", "worm", "--close", "quit"), 65, "expected protocol smtp, got auto"),
        (("--protocol", "text", "--close", "quit"), 65, "got text"),
        (("--protocol", "text"), 65, "persona mail has no words for text there"),
        (("--protocol", "text:nntp"), 65, "it has text:pop3 (port 110)"),
        (("--protocol", "gopher"), 64, "--protocol: expected one of smtp, http, tls"),
        (("--protocol", "text:"), 64, "--protocol: expected one of"),
        (("--protocol", "HTTP"), 64, "--protocol: expected one of"),
        (("--close", "later"), 64, "--close: expected one of now, drain, quit, reset"),
        (("--timewait", "maybe"), 64, "--timewait: expected yes or no, got 'maybe'"),
        (("--max-held", "-1"), 64, "--max-held"),
        (("--max-held", "131073"), 64, "--max-held: expected 0..131072, got '131073'"),
        (("--max-held-source", "0"), 64, "--max-held-source: expected 1..131072, got '0'"),
    ],
)
def test_check_refuses_what_cannot_be(options: tuple[str, ...], status: int, told: str) -> None:
    ended, said = check(*options)
    assert ended == status
    assert told in said


def test_a_refusal_that_may_not_be_sent(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = personas.shipped("worm")
    bad = tuple(
        dataclasses.replace(one, line=Line("-ERR \r\nno {colour}", "p.toml:9"))
        for one in made.refusals
    )
    one = listener(dataclasses.replace(made, refusals=bad), port=110, protocol="text")
    assert answers.mistakes(one)[0].startswith("p.toml:9: unknown field {colour}")
