"""The pure readers of what clients send: probe, HTTP request, QUIT dialogue.

Owns: ext/probe.pxd, ext/http.pxd and ext/quit.pxd, through turnaway._readers.
Hostile here: any octets, in any pieces; what looks like a protocol and is not;
text that never ends.  No split of the input may change an answer.
"""

import re
import socket
import ssl
import string

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from turnaway._readers import GUESSES, READINGS, dialogue, http, probe

PROBE_OCTETS = 16
HTTP_OCTETS = 8192


def client_hello() -> bytes:
    """What OpenSSL really says first."""
    ours = ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ours, server_hostname="a.b")
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return ours.read()


# Whole beginnings of real sessions: (octets, what they are).
SAMPLES: list[tuple[bytes, str]] = [
    (b"GET / HTTP/1.1\r\nHost: mx.example.com\r\n\r\n", "http"),
    (b"GET http://victim.example/ HTTP/1.0\r\n\r\n", "http"),
    (b"HEAD / HTTP/1.1\r\n\r\n", "http"),
    (b"POST /x HTTP/1.1\r\nContent-Length: 200000\r\n\r\n", "http"),
    (b"PUT /shell.php HTTP/1.1\r\n\r\n", "http"),
    (b"CONNECT smtp.example:25 HTTP/1.0\r\n\r\n", "http"),
    (b"OPTIONS * HTTP/1.1\r\n\r\n", "http"),
    (b"DELETE /x HTTP/1.1\r\n\r\n", "http"),
    (b"TRACE / HTTP/1.1\r\n\r\n", "http"),
    (b"PATCH /x HTTP/1.1\r\n\r\n", "http"),
    (b"PROPFIND / HTTP/1.1\r\n\r\n", "http"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http"),
    (client_hello(), "tls"),
    (bytes.fromhex("16 03 01 02 00 01 00 01 fc 03 03") + bytes(32), "tls"),
    (bytes.fromhex("16 03 00 00 2f 01 00 00 2b 03 00") + bytes(32), "tls"),
    (b"\5\1\0", "socks5"),
    (b"\5\2\0\2" + b"\5\1\0\1\x7f\0\0\1\0\x19", "socks5"),
    (b"\4\1\0\x19\xc0\0\2\1root\0", "socks4"),
    (b"\4\2\0\x19\0\0\0\1root\0mx.example.com\0", "socks4"),
    (b"EHLO spam.example\r\n", "smtp"),
    (b"ehlo spam.example\r\n", "smtp"),
    (b"HeLo spam.example\r\n", "smtp"),
    (b"LHLO spam.example\r\n", "smtp"),
    (b"MAIL FROM:<>\r\n", "smtp"),
    (b"RCPT TO:<root>\r\n", "smtp"),
    (b"DATA\r\n", "smtp"),
    (b"BDAT 1000 LAST\r\n", "smtp"),
    (b"RSET\r\n", "smtp"),
    (b"NOOP\n", "smtp"),
    (b"QUIT\r\n", "smtp"),
    (b"VRFY root\r\n", "smtp"),
    (b"EXPN list\r\n", "smtp"),
    (b"HELP\r\n", "smtp"),
    (b"AUTH LOGIN\r\n", "smtp"),
    (b"ETRN example.com\r\n", "smtp"),
    (b"STARTTLS\r\n", "smtp"),
    (b"XCLIENT ADDR=127.0.0.1\r\n", "smtp"),
    (b"XFORWARD NAME=spike\r\n", "smtp"),
]
# What has the look of one of them, and is none.
STRANGERS = [
    b"get / http/1.1\r\n\r\n",  # methods are upper case
    b"GETTING / HTTP/1.1\r\n\r\n",
    b"PRI * HTTPS/2.0",
    b"\r\nGET / HTTP/1.1\r\n\r\n",
    b" EHLO spam.example\r\n",
    b"EHLOX spam.example\r\n",
    b"QUITE a lot\r\n",
    b"STARTTLSX\r\n",
    b"USER anonymous\r\n",
    b"\5\0",  # SOCKS5 with no methods
    b"\4\3\0\x19",
    b"\6\1\0",
    bytes.fromhex("16 03 01 00 2f 02 00 00 2b 03 00"),  # a ServerHello
    bytes.fromhex("16 02 01 00 2f 01"),
    bytes.fromhex("16 03 05 00 2f 01"),
    bytes.fromhex("15 03 03 00 02 02 31"),  # our own alert
    bytes.fromhex("80 2e 01 00 02"),  # SSLv2
    b"\0" * 20,
    b"\xff" * 20,
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x03\0\0\x13\x0e\xe0",  # RDP
]


def decided_at(octets: bytes) -> int:
    """How many octets it took until the answer was no longer "more"."""
    return next((n for n in range(len(octets) + 1) if probe(octets[:n]) != "more"), len(octets) + 1)


@pytest.mark.parametrize(("octets", "what"), SAMPLES)
def test_every_beginning_of_every_sample(octets: bytes, what: str) -> None:
    first = decided_at(octets)
    assert 1 < first <= PROBE_OCTETS
    for length in range(len(octets) + 1):
        assert probe(octets[:length]) == ("more" if length < first else what)


@pytest.mark.parametrize("octets", STRANGERS)
def test_what_is_none_of_them(octets: bytes) -> None:
    first = decided_at(octets)
    assert first <= PROBE_OCTETS
    assert probe(octets) == "none"
    assert all(probe(octets[:length]) == "none" for length in range(first, len(octets)))


def test_nothing_at_all_is_too_little() -> None:
    assert probe(b"") == "more"


STARTS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([octets for octets, _ in SAMPLES] + STRANGERS).flatmap(
        lambda octets: st.tuples(st.integers(0, 20), st.binary(max_size=20)).map(
            lambda cut: octets[: cut[0]] + cut[1]
        )
    ),
)


@given(STARTS)
def test_an_answer_is_never_taken_back(octets: bytes) -> None:
    answers = [probe(octets[:length]) for length in range(len(octets) + 1)]
    assert set(answers) <= set(GUESSES)
    first = decided_at(octets)
    assert first <= max(PROBE_OCTETS, 0) or len(octets) < first
    assert len(set(answers[first:])) <= 1


@given(STARTS.filter(lambda octets: len(octets) >= PROBE_OCTETS))
def test_sixteen_octets_always_suffice(octets: bytes) -> None:
    assert probe(octets[:PROBE_OCTETS]) != "more"


@given(st.binary(max_size=40))
def test_what_is_recognised_looks_like_it(octets: bytes) -> None:
    """The other way round, by expressions written for this test."""
    signs = {
        "http": rb"(GET|HEAD|POST|PUT|CONNECT|OPTIONS|DELETE|TRACE|PATCH|PROPFIND|PRI) ",
        "tls": rb"\x16\x03[\x00-\x04]..\x01",
        "socks5": rb"\x05[^\x00]",
        "socks4": rb"\x04[\x01\x02]",
        "smtp": rb"(?i)[a-z]{4,8}[ \r\n]",
    }
    guess = probe(octets)
    if guess in signs:
        assert re.match(signs[guess], octets, re.S)


# --- the HTTP request --------------------------------------------------------------

BROWSER = (
    b"GET /index.html HTTP/1.1\r\nHost: mx.example.com\r\n"
    b"Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nCookie: a=b\r\n\r\n"
)
# (request, outcome, HEAD, HTML)
REQUESTS: list[tuple[bytes, str, bool, bool]] = [
    (b"GET / HTTP/1.0\r\n\r\n", "done", False, False),
    (b"GET / HTTP/1.1\n\n", "done", False, False),
    (b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", "done", False, False),
    (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "done", True, False),
    (b"HEAD / HTTP/1.1\r\nACCEPT:TEXT/HTML\r\n\r\n", "done", True, True),
    (b"HEA / HTTP/1.1\r\n\r\n", "done", False, False),
    (b"HEADS / HTTP/1.1\r\n\r\n", "done", False, False),
    (b"head / HTTP/1.1\r\n\r\n", "done", False, False),
    (BROWSER, "done", False, True),
    (b"GET / HTTP/1.1\r\nX-Accept: text/html\r\n\r\n", "done", False, False),
    (b"GET / HTTP/1.1\r\nAccept-X: text/html\r\n\r\n", "done", False, False),
    (b"GET / HTTP/1.1\r\nAccep: text/html\r\n\r\n", "done", False, False),
    (b"GET / HTTP/1.1\r\nAccept: */*\r\nHost: text/html\r\n\r\n", "done", False, False),
    (b"GET / HTTP/1.1\r\nAccept: ttext/html\r\n\r\n", "done", False, True),
    (b"GET / HTTP/1.1\r\nAccept: text/text/html\r\n\r\n", "done", False, True),
    (b"GET / HTTP/1.1\r\nAccept: text/plain, text/html\r\n\r\n", "done", False, True),
    (b"GET / HTTP/1.1\r\nAccept: text/\r\nA: html\r\n\r\n", "done", False, False),
    (b"GET / HTTP/1.1\r\nAccept: */*,\r\n text/html\r\n\r\n", "done", False, True),
    (b"CONNECT smtp.example:25 HTTP/1.1\r\n\r\n", "done", False, False),
    (b"GET http://victim.example/ HTTP/1.1\r\n\r\n", "done", False, False),
    (b"GET /\xc3\xb6 HTTP/1.1\r\nX: \xff\r\n\r\n", "done", False, False),
    (b"BREW /pot HTCPCP/1.0\r\n\r\n", "bad", False, False),
    (b"GET /\r\n", "bad", False, False),  # HTTP/0.9
    (b"GET / HTTP/1.1 \r\n\r\n", "bad", False, False),
    (b"GET / HTTP/1.1\r\r\n\r\n", "bad", False, False),
    (b"GET  / HTTP/1.1\r\n\r\n", "bad", False, False),
    (b"GET / HTTP/1,1\r\n\r\n", "bad", False, False),
    (b"GET / HTTP/x.1\r\n\r\n", "bad", False, False),
    (b"GET / http/1.1\r\n\r\n", "bad", False, False),
    (b"GET /\0 HTTP/1.1\r\n\r\n", "bad", False, False),
    (b"GET / HTTP/1.1\r\n\0: a\r\n\r\n", "bad", False, False),
    (b"GET / HTTP/1.1\r\nA: \0\r\n\r\n", "bad", False, False),
    (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", "bad", False, False),
    (b"GET / HTTP/1.1\r\n: b\r\n\r\n", "bad", False, False),
    (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", "bad", False, False),
    (b"GET / HTTP/1.1\r\n\rX", "bad", False, False),
    (b" GET / HTTP/1.1\r\n\r\n", "bad", False, False),
    (b"A" * 21 + b" / HTTP/1.1\r\n\r\n", "bad", False, False),
    (b"EHLO spam.example\r\n", "bad", False, False),
    (b"\x16\3\1\2\0\1", "bad", False, False),
    (b"\5\1\0", "bad", False, False),
]


@pytest.mark.parametrize(("request_", "reading", "head", "html"), REQUESTS)
def test_a_request_in_every_two_pieces_and_octet_by_octet(
    request_: bytes, reading: str, head: bool, html: bool
) -> None:
    whole = http([request_])
    assert whole[0] == reading
    if reading == "done":
        assert whole[1:] == (head, html, 0)
    for cut in range(len(request_) + 1):
        assert http([request_[:cut], request_[cut:]]) == whole
    assert http([bytes([octet]) for octet in request_]) == whole


@given(st.lists(st.binary(max_size=60), max_size=12))
@example([BROWSER])
def test_no_split_changes_what_any_octets_are(chunks: list[bytes]) -> None:
    whole = http([b"".join(chunks)])
    assert whole[0] in READINGS
    assert http(chunks) == whole


@given(st.sampled_from([one for one, *_ in REQUESTS]), st.binary(max_size=40))
def test_once_known_more_octets_change_nothing(request_: bytes, more: bytes) -> None:
    before = http([request_])
    if before[0] != "more":
        after = http([request_ + more])
        assert after[:3] == before[:3]
        assert after[3] == before[3] + len(more)


TOKEN = st.text(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=20)
VALUE = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)


@given(TOKEN, st.text(string.ascii_letters + "/:?&=%", min_size=1), st.dictionaries(TOKEN, VALUE))
def test_whatever_h11_takes_is_a_request(method: str, target: str, fields: dict[str, str]) -> None:
    octets = f"{method} {target} HTTP/1.1\r\nHost: a\r\n".encode()
    octets += b"".join(f"{name}: {value}\r\n".encode() for name, value in fields.items())
    octets += b"\r\n"
    server = h11.Connection(h11.SERVER)
    server.receive_data(octets)
    try:
        event = server.next_event()
    except h11.RemoteProtocolError:
        return  # two Host fields, a wrong Content-Length: we do not look at these
    assert isinstance(event, h11.Request)
    reading, head, html, left = http([octets])
    assert (reading, head, left) == ("done", method == "HEAD", 0)
    wanted = any(
        name.lower() == "accept" and "text/html" in value.lower() for name, value in fields.items()
    )
    assert html == wanted


@pytest.mark.parametrize("one", [b"a", b"a: b\r\n", b"a: " + b"b" * 100 + b"\r\n"])
def test_fields_without_an_end_are_answered_at_eight_kilobytes(one: bytes) -> None:
    start = b"GET / HTTP/1.1\r\n"
    octets = (start + one * HTTP_OCTETS)[: HTTP_OCTETS - 1]
    assert http([octets])[0] == "more"
    reading, _, _, left = http([octets + b"bbb"])
    assert (reading, left) == ("done", 2)


@pytest.mark.parametrize(
    "octets", [b"\r\n" * HTTP_OCTETS, b"GET /" + b"a" * HTTP_OCTETS, b"\n" * HTTP_OCTETS]
)
def test_no_request_line_within_eight_kilobytes_is_not_http(octets: bytes) -> None:
    assert http([octets[: HTTP_OCTETS - 1]])[0] == "more"
    assert http([octets])[0] == "bad"


# --- the QUIT dialogue ----------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [b"QUIT\r\n", b"quit\r\n", b"QuIt\n", b"QUIT \r\n", b"QUIT\t \t\r\n", b"QUIT\r\r\n"],
)
def test_quit_in_any_case_with_white_space_behind(line: bytes) -> None:
    assert dialogue([line]) == ["quit"]


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"\r\n",
        b"QUI\r\n",
        b"QUITS\r\n",
        b"QUIT now\r\n",
        b"QUIT\0\r\n",
        b" QUIT\r\n",
        b"QU IT\r\n",
        b"NOQUIT\r\n",
        b"\xd1UIT\r\n",
        b"QUIT\rX\r\n",
        b"EHLO spam.example\r\n",
        b"x" * 100_000 + b"\r\n",
        b"x" * 600 + b"QUIT\r\n",  # over 512 octets, and one command still
    ],
)
def test_anything_else_is_one_wrong_command(line: bytes) -> None:
    assert dialogue([line]) == ["wrong"]
    assert dialogue([line, b"QUIT\r\n"]) == ["wrong", "quit"]


@pytest.mark.parametrize("octets", [b"QUIT", b"QUIT\r", b"", b"x" * 100_000])
def test_a_line_without_end_is_no_command_yet(octets: bytes) -> None:
    assert dialogue([octets]) == []


def test_what_follows_quit_is_not_read() -> None:
    assert dialogue([b"NOOP\r\nQUIT\r\nNOOP\r\nQUIT\r\n"]) == ["wrong", "quit"]


DIALOGUES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"EHLO a\r\n",
                b"NOOP\n",
                b"QUIT",
                b"\r\n",
                b"qui",
                b"t",
                b"\n",
                b" ",
                b"\r",
                b"QUIT x",
            ]
        ),
        st.binary(max_size=20),
    ),
    max_size=20,
)


def by_lines(octets: bytes) -> list[str]:
    """The same again, with a whole line in hand."""
    told = []
    for line in octets.split(b"\n")[:-1]:
        if re.fullmatch(rb"(?i:quit)[ \t\r]*", line):
            return [*told, "quit"]
        told.append("wrong")
    return told


@given(DIALOGUES)
def test_no_split_changes_a_dialogue(chunks: list[bytes]) -> None:
    octets = b"".join(chunks)
    assert dialogue(chunks) == dialogue([octets]) == by_lines(octets)
    assert dialogue([bytes([octet]) for octet in octets]) == by_lines(octets)


@pytest.mark.parametrize("wrong", ["text", None, [1], [None], ["text"]])
def test_readers_take_octets_only(wrong: object) -> None:
    with pytest.raises(TypeError):
        http(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        dialogue(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        probe(wrong)  # type: ignore[arg-type]


def test_octets_with_a_nul_are_read_to_their_end() -> None:
    assert probe(b"\4\1" + socket.inet_aton("0.0.0.1")) == "socks4"
    assert dialogue([b"\0\n\0\n"]) == ["wrong", "wrong"]
