"""How a connection ends: drain, quit and reset, and no TIME-WAIT.

Owns: the close policies other than `now`, on a real server over loopback.
Hostile here: clients that never close, never read, pipeline without end, send
lines without end, or cut their QUIT in pieces.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import NAME, Daemon, Syslog, read_all, running, until

GREETING = re.compile(rb"(554-[^\r\n]+\r\n)+554 [^\r\n]+\r\n")
WRONG = b"503 mx.example.com Bad sequence of commands; you are refused, see the greeting\r\n"
BYE = b"221 mx.example.com Closing connection\r\n"
LATE = b"421 mx.example.com Timeout or shutdown; closing connection\r\n"
ALL = ("--max-held-source", "9999")  # these tests are one source


def greeting(one: socket.socket) -> bytes:
    """The whole greeting of a server that does not close after it."""
    octets = b""
    while not GREETING.fullmatch(octets):
        more = one.recv(4096)
        assert more, octets
        octets += more
    return octets


def exactly(one: socket.socket, count: int) -> bytes:
    octets = b""
    while len(octets) < count and (more := one.recv(min(65536, count - len(octets)))):
        octets += more
    return octets


def ended_by_reset(one: socket.socket) -> bool:
    """Wait for the end of a connection: true for a RST, false for a FIN."""
    try:
        while one.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


# --- drain -----------------------------------------------------------------------


@pytest.fixture
def draining(syslog: Syslog) -> Iterator[Daemon]:
    with running(syslog, "-p", "blocked", "--close", "drain", *ALL) as one:
        yield one


@pytest.mark.loops("kqueue")
def test_drain_half_closes_and_reads_on_until_the_client_closes(draining: Daemon) -> None:
    with draining.connect() as one:
        assert GREETING.fullmatch(read_all(one))
        for _ in range(20):  # after the end of file; no reset answers these
            one.sendall(b"EHLO spam.example\r\n" * 1000)
            time.sleep(0.01)
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""
    until(lambda: draining.counters().get("held") == 1)
    assert "drain_expired" not in draining.counters()


@pytest.mark.parametrize("talk", [b"", b"EHLO spam.example\r\n", b"x" * 100_000])
def test_drain_of_who_talks_first_or_not_at_all(draining: Daemon, talk: bytes) -> None:
    for _ in range(30):
        with draining.connect() as one:
            one.sendall(talk)
            assert GREETING.fullmatch(read_all(one))
            one.shutdown(socket.SHUT_WR)
            assert not ended_by_reset(one)
    counters = draining.settled(30)
    assert counters["accepted"] == counters["sent"] == 30


def test_drain_lets_go_after_five_seconds(draining: Daemon) -> None:
    ones = [draining.connect() for _ in range(50)]
    began = time.monotonic()
    for one in ones:
        assert GREETING.fullmatch(read_all(one))
    until(lambda: draining.counters().get("drain_expired") == 50, 8, "the time limit")
    assert 4.5 < time.monotonic() - began < 7
    for one in ones:
        one.close()


@pytest.mark.loops("kqueue")
def test_drain_of_half_closers(draining: Daemon) -> None:
    for _ in range(30):
        with draining.connect() as one:
            one.shutdown(socket.SHUT_WR)
            assert GREETING.fullmatch(read_all(one))
    assert "drain_expired" not in draining.counters()


def test_drain_of_one_who_pours(draining: Daemon) -> None:
    """Megabytes are thrown away; others are answered meanwhile; it ends in time."""
    with draining.connect() as one:
        one.setblocking(False)
        began = time.monotonic()
        poured = 0
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while time.monotonic() - began < 9:
                select.select([], [one], [], 1)
                with contextlib.suppress(BlockingIOError):
                    poured += one.send(b"x" * 65536)
                if poured % (100 * 65536) == 0:
                    with draining.connect() as other:
                        assert GREETING.fullmatch(read_all(other))
        assert 4.5 < time.monotonic() - began < 8
        assert poured > 1 << 20


# --- quit ------------------------------------------------------------------------


@pytest.fixture
def quitting(syslog: Syslog) -> Iterator[Daemon]:
    with running(syslog, "-p", "blocked", "--close", "quit", *ALL) as one:
        yield one


@pytest.mark.loops("kqueue")
def test_the_letter_of_rfc_5321(quitting: Daemon) -> None:
    with quitting.connect() as one:
        greeting(one)
        for line in (b"EHLO a\r\n", b"MAIL FROM:<>\r\n", b"\r\n", b"QUITX\r\n", b"quit now\r\n"):
            one.sendall(line)
            assert exactly(one, len(WRONG)) == WRONG
        one.sendall(b"quit\r\n")
        assert read_all(one) == BYE
    counters = quitting.settled(1)
    assert (counters["commands_wrong"], counters["quits"], counters["held"]) == (5, 1, 1)
    assert counters["accepted"] == counters["sent"] == 1


def test_nobody_is_hung_up_on_before_quit(quitting: Daemon) -> None:
    with quitting.connect() as one:
        greeting(one)
        one.settimeout(1)
        with pytest.raises(TimeoutError):
            one.recv(1)


def test_quit_octet_by_octet(quitting: Daemon) -> None:
    with quitting.connect() as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting(one)
        for octet in b"NOOP\r\nQU":
            one.send(bytes([octet]))
            time.sleep(0.005)
        assert exactly(one, len(WRONG)) == WRONG
        for octet in b"IT\r\n":
            one.send(bytes([octet]))
            time.sleep(0.005)
        assert read_all(one) == BYE


@pytest.mark.loops("kqueue")
def test_quit_before_the_greeting_could_be_read(quitting: Daemon) -> None:
    quitting.pause()
    ones = [quitting.connect() for _ in range(20)]
    for one in ones:
        one.sendall(b"EHLO a\r\nQUIT\r\nNOOP\r\n")
    quitting.resume()
    for one in ones:
        with one:
            octets = read_all(one)
            assert octets.endswith(WRONG + BYE)
            assert GREETING.fullmatch(octets.removesuffix(WRONG + BYE))


def test_ten_thousand_commands_at_once(quitting: Daemon) -> None:
    """Pipelined by one who reads as it writes: every one is answered, in order."""
    with quitting.connect() as one:
        greeting(one)
        commands = memoryview(b"NOOP\r\n" * 10_000 + b"QUIT\r\n")
        wanted = WRONG * 10_000 + BYE
        got = b""
        one.setblocking(False)
        while got != wanted:
            readable, writable, _ = select.select([one], [one] if commands else [], [], 10)
            assert readable or writable, len(got)
            if readable:
                more = one.recv(1 << 20)
                got += more
                assert more or got == wanted, len(got)
            if writable:
                commands = commands[one.send(commands[:1200]) :]
    counters = quitting.settled()
    assert (counters["commands_wrong"], counters["quits"]) == (10_000, 1)


def replies(octets: bytes) -> tuple[list[bytes], bytes]:
    """The whole lines, and what is left."""
    lines = octets.split(b"\r\n")
    return [line + b"\r\n" for line in lines[:-1]], lines[-1]


@pytest.mark.parametrize("last", [b"QUIT\r\n", b"NOOP\r\n"])
def test_who_does_not_read_replies_gets_no_torn_ones(quitting: Daemon, last: bytes) -> None:
    """A small window fills up with 503s.  What comes through later are whole
    replies and perhaps a beginning of one; never another glued to half a one."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.settimeout(30)
        one.connect((quitting.address, quitting.port))
        for _ in range(100):
            one.sendall(b"NOOP\r\n" * 1000)
        until(lambda: quitting.counters().get("commands_wrong") == 100_000)
        got = b""
        one.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while more := one.recv(65536):
                got += more
        one.sendall(last)
        one.settimeout(30)
        got += read_all(one)
    lines, rest = replies(got)
    lines = [line for line in lines if not line.startswith(b"554")]
    assert set(lines) <= {WRONG, BYE, LATE}
    assert len(lines) < 100_000
    assert WRONG.startswith(rest)
    assert quitting.connect().close() is None  # and the server is well


def test_a_line_that_never_ends_is_read_and_forgotten(quitting: Daemon) -> None:
    before = quitting.memory()
    with quitting.connect() as one:
        greeting(one)
        for _ in range(2000):
            one.sendall(b"x" * 4096)
        one.sendall(b"\r\nQUIT\r\n")
        assert read_all(one) == WRONG + BYE
    assert quitting.memory() - before < 512


@pytest.mark.parametrize("length", [510, 511, 512, 513, 4095, 4096, 4097, 65536])
def test_lines_over_512_octets_are_one_command(quitting: Daemon, length: int) -> None:
    with quitting.connect() as one:
        greeting(one)
        one.sendall(b"x" * (length - 2) + b"\r\nQUIT\r\n")
        assert read_all(one) == WRONG + BYE


def test_the_client_hangs_up_or_resets(quitting: Daemon) -> None:
    for linger in (0, 1):
        for _ in range(10):
            one = quitting.connect()
            greeting(one)
            one.sendall(b"NOOP\r\nQUI")
            if linger:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
    counters = quitting.settled(20)
    assert counters["accepted"] == counters["sent"] == counters["held"] == 20
    assert GREETING.match(quitting.connect().recv(4096))


def test_half_closer_after_quit_and_before(quitting: Daemon) -> None:
    with quitting.connect() as one:
        one.sendall(b"QUIT\r\n")
        one.shutdown(socket.SHUT_WR)
        assert read_all(one).endswith(BYE)
    with quitting.connect() as one:
        one.shutdown(socket.SHUT_WR)  # nothing can come any more: no time limit is waited for
        one.settimeout(5)
        assert GREETING.fullmatch(read_all(one))


def test_421_at_the_time_limit_for_the_silent_and_the_talkative(
    quitting: Daemon, syslog: Syslog
) -> None:
    """Twenty seconds in all, however busy the client: a command buys no time."""
    began = time.monotonic()
    silent, busy = quitting.connect(timeout=30), quitting.connect(timeout=30)
    with silent, busy:
        greeting(silent)
        greeting(busy)
        busy.setblocking(False)
        got = b""
        while LATE not in got:
            assert time.monotonic() - began < 25
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                busy.send(b"NOOP\r\n")
            select.select([busy], [], [], 0.5)
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                got += busy.recv(65536)
        assert 19 < time.monotonic() - began < 23
        assert got.removesuffix(LATE) == WRONG * (len(got) // len(WRONG))
        assert read_all(silent) == LATE
    assert quitting.counters()["expired"] == 2


def test_a_stop_tells_who_is_in_a_dialogue(syslog: Syslog) -> None:
    """RFC 5321 3.8: 421, and then close."""
    with running(syslog, "-p", "blocked", "--close", "quit", *ALL) as daemon:
        ones = [daemon.connect() for _ in range(10)]
        for one in ones:
            greeting(one)
        assert daemon.stop() == 0
        for one in ones:
            with one:
                assert read_all(one) == LATE


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [b"EHLO a\r\n", b"NOOP\n", b"QUIT", b"\r\n", b"qui", b"t", b"\n", b"QUIT\r\nNOOP\r\n"]
        ),
        st.binary(min_size=1, max_size=600),
    ),
    max_size=8,
)


@pytest.mark.loops("kqueue")
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=PIECES)
def test_any_dialogue(quitting: Daemon, pieces: list[bytes]) -> None:
    """Against the dialogue as whole lines: a 503 for each, until QUIT."""
    octets = b"".join(pieces) + b"\r\nQUIT\r\n"
    lines = octets.split(b"\n")[:-1]
    last = next(n for n, line in enumerate(lines) if re.fullmatch(rb"(?i:quit)[ \t\r]*", line))
    with quitting.connect() as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting(one)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                one.sendall(piece)
            one.sendall(b"\r\nQUIT\r\n")
        assert read_all(one) == WRONG * last + BYE


@pytest.mark.loops("kqueue")
def test_refused_a_place_quit_is_now_and_counted_once(syslog: Syslog) -> None:
    options = ("-p", "blocked", "--close", "quit", "-w", "1", "--max-held-source", "1")
    with running(syslog, *options) as daemon, daemon.connect() as first:
        greeting(first)
        for talk in (b"", b"EHLO a\r\n"):
            daemon.pause()
            with daemon.connect() as one:
                one.sendall(talk)
                daemon.resume()
                assert GREETING.fullmatch(read_all(one))  # and the end of file
        counters = daemon.settled(3)
        assert counters["accepted"] == counters["sent"] == 3
        assert (counters["held"], counters["held_share"]) == (1, 2)


# --- reset -----------------------------------------------------------------------


@pytest.mark.loops("kqueue")
@pytest.mark.parametrize("talk", [b"", b"EHLO a\r\n"])
def test_reset_ends_with_a_reset(syslog: Syslog, talk: bytes) -> None:
    with running(syslog, "-p", "worm", "--protocol", "smtp", "--close", "reset") as daemon:
        resets = 0
        for _ in range(50):
            try:
                with daemon.connect() as one:
                    if talk:
                        one.sendall(talk)
                    resets += ended_by_reset(one)
            except (ConnectionResetError, BrokenPipeError):
                resets += 1  # even connect() may see it
        assert resets == 50
        until(lambda: daemon.counters().get("accepted") == 50)
        assert states_of(daemon.port) == []


def test_reset_of_a_client_that_was_asked(syslog: Syslog) -> None:
    with running(syslog, "-p", "worm", "--protocol", "http", "--close", "reset") as daemon:
        with daemon.connect() as one:
            one.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert ended_by_reset(one)
        assert states_of(daemon.port) == []


# --- TIME-WAIT ---------------------------------------------------------------------

ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, TIME_WAIT, LISTEN = "01", "04", "05", "06", "0A"


def states_of(port: int) -> list[str]:
    """The states of all sockets whose own port is this, but for listeners."""
    states = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].rpartition(":")[2], 16) == port and words[3] != LISTEN:
            states.append(words[3])
    return states


@pytest.mark.parametrize("policy", ["now", "drain", "quit"])
def test_time_wait_is_left_by_default(syslog: Syslog, policy: str) -> None:
    with running(syslog, "-p", "blocked", "--close", policy, *ALL) as daemon:
        for _ in range(20):
            with daemon.connect() as one:
                if policy == "quit":
                    greeting(one)
                    one.sendall(b"QUIT\r\n")
                    assert read_all(one) == BYE
                else:
                    assert GREETING.fullmatch(read_all(one))
        until(lambda: states_of(daemon.port).count(TIME_WAIT) > 10, what="TIME-WAIT")


def test_no_time_wait_is_left_with_timewait_no(syslog: Syslog) -> None:
    """Clients as far away as real ones: their FIN does not overtake our close."""
    with running(syslog, "-p", "blocked", "--timewait", "no") as daemon:
        for _ in range(20):
            with daemon.connect() as one:
                assert GREETING.fullmatch(read_all(one))
                time.sleep(0.02)
        until(lambda: states_of(daemon.port) == [], what="all sockets to go")
        time.sleep(0.2)
        assert states_of(daemon.port) == []


def test_never_closers_leave_nothing_without_time_wait(syslog: Syslog) -> None:
    with running(syslog, "--timewait", "no") as daemon:
        ones = [daemon.connect() for _ in range(20)]
        for one in ones:
            assert NAME.encode() in read_all(one)
        until(lambda: states_of(daemon.port) == [], what="all sockets to go")
        for one in ones:
            one.close()
