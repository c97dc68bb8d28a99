"""What each protocol's client is told: http, tls, socks, auto, text.

Owns: the protocols other than `smtp`, on a real server over loopback.  h11
reads every HTTP answer.  Hostile here: requests in single octets, requests
that never end, NULs, uploads, half-closers, and silence.
"""

from __future__ import annotations

import calendar
import re
import socket
import time
from collections.abc import Callable, Iterator

import h11
import pytest
from running import Daemon, Syslog, read_all, running, until

ALERT = bytes.fromhex("15 03 03 00 02 02 31")
SOCKS5 = b"\5\xff"
SOCKS4 = b"\0\x5b" + bytes(6)
BANNER = re.compile(rb"(554-[^\r\n]+\r\n)+554 [^\r\n]+\r\n")
HELLO = bytes.fromhex("16 03 01 00 fa 01 00 00 f6 03 03") + bytes(244)
ALL = ("--max-held-source", "9999")


@pytest.fixture
def speak(syslog: Syslog) -> Iterator[Callable[..., Daemon]]:
    """A daemon of persona worm for a protocol; one a test."""
    begun = []

    def start(protocol: str, *options: str) -> Daemon:
        block = running(syslog, "-p", "worm", "--protocol", protocol, *ALL, *options)
        begun.append(block)
        return block.__enter__()

    yield start
    for block in begun:
        block.__exit__(None, None, None)


def ask(daemon: Daemon, octets: bytes, *, close: bool = False, slowly: float = 0.0) -> bytes:
    """What one client is told that says this (octet by octet with `slowly`)."""
    with daemon.connect() as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if slowly:
            for octet in octets:
                one.send(bytes([octet]))
                time.sleep(slowly)
        else:
            one.sendall(octets)
        if close:
            one.shutdown(socket.SHUT_WR)
        return read_all(one)


def read_http(octets: bytes, method: str = "GET") -> tuple[int, dict[str, str], str]:
    """(status, fields, body), by h11; the answer is whole and ends the connection."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(octets)
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response), response
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data == (b"", True)
    fields = {name.decode(): value.decode() for name, value in response.headers}
    assert fields["connection"] == "close"
    assert fields["cache-control"] == "no-store"
    return response.status_code, fields, body.decode("ascii")


# --- http --------------------------------------------------------------------------

GET = b"GET / HTTP/1.1\r\nHost: mx.example.com\r\n\r\n"
REASON = "one that a worm or a bot has taken over"


def test_a_reason_as_text_and_as_a_page(speak: Callable[..., Daemon]) -> None:
    daemon = speak("http")
    status, fields, body = read_http(ask(daemon, GET))
    assert (status, fields["content-type"]) == (403, "text/plain; charset=us-ascii")
    assert REASON in body
    page = b"GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html;q=0.9\r\n\r\n"
    status, fields, body = read_http(ask(daemon, page))
    assert (status, fields["content-type"]) == (403, "text/html; charset=us-ascii")
    assert REASON in body
    counters = daemon.settled(2)
    assert counters["answered_http"] == counters["sent"] == counters["accepted"] == 2


def test_the_date_is_of_this_second(speak: Callable[..., Daemon]) -> None:
    daemon = speak("http")
    for _ in range(12):
        _, fields, _ = read_http(ask(daemon, GET))
        then = calendar.timegm(time.strptime(fields["date"], "%a, %d %b %Y %H:%M:%S GMT"))
        assert abs(then - time.time()) < 2.5
        time.sleep(0.1)


def test_head_gets_the_same_head_and_no_body(speak: Callable[..., Daemon]) -> None:
    daemon = speak("http")
    answer = ask(daemon, GET.replace(b"GET", b"HEAD"))
    assert answer.endswith(b"\r\n\r\n")
    assert read_http(answer, "HEAD")[2] == ""
    length = int(read_http(answer, "HEAD")[1]["content-length"])
    assert length == len(read_http(ask(daemon, GET))[2])


@pytest.mark.parametrize(
    "octets",
    [
        b"CONNECT smtp.example:25 HTTP/1.1\r\nHost: smtp.example:25\r\n\r\n",
        b"GET http://victim.example/ HTTP/1.1\r\nHost: victim.example\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n\r\nGET / HTTP/1.0\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 50,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_every_request_is_forbidden(speak: Callable[..., Daemon], octets: bytes) -> None:
    daemon = speak("http")
    assert read_http(ask(daemon, octets))[0] == 403
    assert read_http(ask(daemon, octets, close=True))[0] == 403
    assert read_http(ask(daemon, octets[:200], slowly=0.001))[0] == 403


@pytest.mark.parametrize(
    "octets",
    [
        b"GET /\r\n",
        b"EHLO spam.example\r\n",
        HELLO,
        b"\5\1\0",
        b"\0",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"x" * 100_000,
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"\r\n" * 5000,
    ],
)
def test_what_is_not_http_is_told_so(speak: Callable[..., Daemon], octets: bytes) -> None:
    daemon = speak("http")
    status, _, body = read_http(ask(daemon, octets))
    assert status == 400
    assert body.startswith("This is not HTTP.")
    assert daemon.settled(1)["answered_http"] == 1


def test_a_request_cut_off_by_the_end_is_no_request(speak: Callable[..., Daemon]) -> None:
    daemon = speak("http")
    assert read_http(ask(daemon, b"GET / HTT", close=True))[0] == 400
    assert ask(daemon, b"", close=True) == b""
    counters = daemon.settled(2)
    assert (counters["accepted"], counters["sent"], counters["gone"]) == (2, 1, 1)


def test_fields_beyond_eight_kilobytes_are_not_waited_for(speak: Callable[..., Daemon]) -> None:
    daemon = speak("http")
    start = b"GET / HTTP/1.1\r\n"
    long = start + b"Cookie: " + b"a" * 20_000
    assert read_http(ask(daemon, long))[0] == 403
    with daemon.connect() as one:
        one.sendall(long[:8191])
        one.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.recv(1)
        one.settimeout(5)
        one.sendall(b"a")
        assert read_http(read_all(one))[0] == 403


@pytest.mark.parametrize("size", [200_000, 20_000_000])
def test_an_upload_sees_its_answer_and_no_broken_pipe(
    speak: Callable[..., Daemon], size: int
) -> None:
    """A client that writes all before it reads."""
    daemon = speak("http")
    head = f"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode()
    for _ in range(3):
        status, _, body = read_http(ask(daemon, head + b"x" * size))
        assert status == 403
        assert REASON in body


def test_408_after_ten_seconds_for_the_silent_and_the_slow(
    speak: Callable[..., Daemon], syslog: Syslog
) -> None:
    """An octet a second buys no time."""
    daemon = speak("http", "--log-connections", "all")
    began = time.monotonic()
    with daemon.connect(timeout=20) as silent, daemon.connect(timeout=20) as slow:
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in GET[:9]:
            slow.send(bytes([octet]))
            time.sleep(1)
        for one in (silent, slow):
            status, _, body = read_http(read_all(one))
            assert status == 408
            assert REASON in body
    assert 9.5 < time.monotonic() - began < 13
    counters = daemon.settled(2)
    assert counters["expired"] == counters["sent"] == 2
    until(lambda: len(syslog.matching("proto=http code=408 outcome=expired")) == 2)


@pytest.mark.loops("kqueue")
def test_a_stop_answers_who_is_still_asking(speak: Callable[..., Daemon], syslog: Syslog) -> None:
    daemon = speak("http")
    ones = [daemon.connect() for _ in range(20)]
    for one in ones:
        one.sendall(b"GET / HTTP/1.1\r\n")
    until(lambda: daemon.counters().get("held") == 20)
    assert daemon.stop() == 0
    for one in ones:
        with one:
            assert read_http(read_all(one))[0] == 408
    assert "connections=20 sent=20" in syslog.wait_for("stopped: ")


# --- tls, socks, text -----------------------------------------------------------------


@pytest.mark.parametrize("octets", [HELLO, HELLO[:1], b"EHLO a\r\n", HELLO + b"x" * 100_000])
def test_tls_gets_the_alert(speak: Callable[..., Daemon], octets: bytes) -> None:
    daemon = speak("tls")
    assert ask(daemon, octets) == ALERT
    assert ask(daemon, octets, close=True) == ALERT
    assert daemon.settled(2)["answered_tls"] == 2


@pytest.mark.parametrize(
    ("octets", "told"),
    [
        (b"\5\1\0", SOCKS5),
        (b"\5", SOCKS5),
        (b"\4\1\0\x19\x7f\0\0\1root\0", SOCKS4),
        (b"\4", SOCKS4),
        (b"GET / HTTP/1.1\r\n\r\n", SOCKS5),
    ],
)
def test_socks_gets_its_refusal(speak: Callable[..., Daemon], octets: bytes, told: bytes) -> None:
    daemon = speak("socks")
    assert ask(daemon, octets) == told
    assert ask(daemon, octets, close=True) == told
    assert daemon.settled(2)["answered_socks"] == 2


@pytest.mark.parametrize("protocol", ["tls", "socks"])
def test_the_silent_are_told_after_ten_seconds(speak: Callable[..., Daemon], protocol: str) -> None:
    daemon = speak(protocol)
    began = time.monotonic()
    with daemon.connect(timeout=20) as one:
        assert read_all(one) == {"tls": ALERT, "socks": SOCKS5}[protocol]
    assert 9.5 < time.monotonic() - began < 13
    assert daemon.settled(1)["expired"] == 1


@pytest.mark.parametrize(
    ("kind", "line"),
    [("pop3", rb"-ERR [ -~]+\r\n"), ("imap", rb"\* BYE [ -~]+\r\n"), ("ftp", rb"421 [ -~]+\r\n")],
)
@pytest.mark.parametrize("close", ["now", "drain"])
def test_text_is_one_line_in_the_ports_own_syntax(
    speak: Callable[..., Daemon], syslog: Syslog, kind: str, line: bytes, close: str
) -> None:
    daemon = speak(f"text:{kind}", "--close", close)
    for talk in (b"", b"USER root\r\n"):
        answer = ask(daemon, talk)
        assert re.fullmatch(line, answer)
        assert b"mx.example.com" in answer
        assert b"infected" in answer
    syslog.wait_for(rf"proto={kind} code=- outcome=")


# --- auto -----------------------------------------------------------------------------

KINDS = [
    (GET, "http"),
    (b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n", "http"),
    (b"CONNECT a:25 HTTP/1.0\r\n\r\n", "http"),
    (HELLO, "tls"),
    (b"\5\1\0", "socks5"),
    (b"\4\1\0\x19\x7f\0\0\1\0", "socks4"),
    (b"EHLO spam.example\r\n", "smtp"),
    (b"quit\n", "smtp"),
    (b"SSH-2.0-x\r\n", "smtp"),  # unknown: the banner says why, as well as anything
    (b"\0" * 20, "smtp"),
]


def is_kind(answer: bytes, kind: str) -> bool:
    if kind == "http":
        return read_http(answer)[0] == 403
    if kind == "smtp":
        return BANNER.fullmatch(answer) is not None
    return answer == {"tls": ALERT, "socks5": SOCKS5, "socks4": SOCKS4}[kind]


@pytest.mark.loops("kqueue")
@pytest.mark.parametrize(("octets", "kind"), KINDS)
def test_auto_answers_in_kind_whole_cut_and_half_closed(
    speak: Callable[..., Daemon], octets: bytes, kind: str
) -> None:
    daemon = speak("auto")
    assert is_kind(ask(daemon, octets), kind)
    assert is_kind(ask(daemon, octets, close=True), kind)
    assert is_kind(ask(daemon, octets[:60], slowly=0.004), kind)
    for cut in range(1, min(len(octets), 17)):
        with daemon.connect() as one:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.send(octets[:cut])
            time.sleep(0.01)
            one.send(octets[cut:])
            assert is_kind(read_all(one), kind)
    counters = daemon.settled()
    assert counters["accepted"] == counters["sent"]


@pytest.mark.loops("kqueue")
def test_auto_takes_silence_for_smtp_after_a_moment(speak: Callable[..., Daemon]) -> None:
    daemon = speak("auto")
    for _ in range(5):
        began = time.monotonic()
        assert BANNER.fullmatch(daemon.banner())
        assert 0.28 < time.monotonic() - began < 0.6
    counters = daemon.settled(5)
    assert counters["accepted"] == counters["sent"] == 5
    assert "expired" not in counters  # silence is what it waits for


def test_auto_takes_a_half_close_for_silence(speak: Callable[..., Daemon]) -> None:
    daemon = speak("auto")
    for octets in (b"", b"GE", b"\x16", b"\5", b"EH"):
        assert BANNER.fullmatch(ask(daemon, octets, close=True))


def test_auto_goes_on_with_a_request_longer_than_the_moment(speak: Callable[..., Daemon]) -> None:
    """Once HTTP is recognised the time is that of a request."""
    daemon = speak("auto")
    with daemon.connect() as one:
        one.sendall(GET[:20])
        time.sleep(0.7)
        one.sendall(GET[20:])
        assert is_kind(read_all(one), "http")


def test_auto_tells_the_persona_in_each_kind(syslog: Syslog) -> None:
    """One of each, and the log has what was said."""
    with running(syslog, "-p", "abused", *ALL, "--log-connections", "all") as daemon:
        assert b"open proxy or relay" in daemon.banner()
        assert b"Refused: open proxy or relay" in ask(daemon, GET)
        for octets in (HELLO, b"\5\1\0", b"\4\1\0\x19\x7f\0\0\1\0", b"x / y\r\n\r\n"):
            ask(daemon, octets)
        for said in (
            "persona=abused code=554 outcome=sent",
            "persona=abused proto=http code=403 outcome=sent",
            "persona=abused proto=tls code=49 outcome=sent",
            "persona=abused proto=socks5 code=255 outcome=sent",
            "persona=abused proto=socks4 code=91 outcome=sent",
        ):
            syslog.wait_for(said)


@pytest.mark.loops("kqueue")
def test_resets_and_departures_before_the_answer_are_counted(speak: Callable[..., Daemon]) -> None:
    daemon = speak("http")
    for _ in range(10):
        with daemon.connect() as one:
            one.sendall(b"GET /")
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        daemon.connect().close()
    until(lambda: daemon.counters().get("gone", 0) == 10)
    counters = daemon.settled(20)
    assert counters["accepted"] == 20
    assert counters["reset"] + counters["gone"] == 20
