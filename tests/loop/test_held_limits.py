"""Who may be held, how many, and what the others are told: the bounds.

Owns: --max-held, --max-held-source, the high and low water marks, their log
lines, and the sum of the counters.  Hostile here: five thousand clients that
send an octet a second, one source that takes all it can, and descriptors that
run out.
"""

from __future__ import annotations

import contextlib
import random
import re
import resource
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Daemon, Syslog, free_port, read_all, running, until

SLOW = 5000


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Room for the clients of a test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < SLOW + 500:
        pytest.skip(f"needs {SLOW + 500} descriptors, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, SLOW + 500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def come(port: int, source: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10, (source, 0))


def sources(count: int) -> list[str]:
    """Different addresses of 127/8."""
    return [f"127.{1 + n // 62500}.{n // 250 % 250}.{1 + n % 250}" for n in range(count)]


# A daemon of two kinds of listeners, which one command line cannot have: the
# listeners of the second line join the settings of the first.
TWO_KINDS = """#!{python}
import dataclasses, sys
from turnaway import cli, daemon
settings = cli.parse(sys.argv).settings
more = cli.parse(["turnawaymail", "Somecity, Earth", "127.0.0.2:{port} mx.example.com"]).settings
both = dataclasses.replace(settings, listeners=settings.listeners + more.listeners)
sys.exit(daemon.run(both))
"""


@pytest.mark.parametrize(
    ("protocol", "close", "start"), [("http", "now", b"GET /"), ("smtp", "quit", b"NOOP\r")]
)
def test_five_thousand_slow_clients_do_not_stop_the_rest(
    syslog: Syslog, tmp_path: Path, descriptors: None, protocol: str, close: str, start: bytes
) -> None:
    """Slowloris, an octet a second from 5,000 addresses, in the same loops as a
    `now` listener: whoever comes there is answered at once, and memory stays."""
    port = free_port("127.0.0.2")
    program = tmp_path / "two-kinds"
    program.write_text(TWO_KINDS.format(python=sys.executable, port=port))
    program.chmod(0o755)
    options = ("-p", "worm", "--protocol", protocol, "--close", close)
    with running(syslog, *options, program=program) as daemon:
        for _ in range(100):  # what it takes once
            daemon.connect().close()
            socket.create_connection(("127.0.0.2", port)).close()
        time.sleep(1.1)
        before = daemon.memory()
        ones = []
        for source in sources(SLOW):
            one = come(daemon.port, source)
            one.setblocking(False)
            ones.append(one)
        grown = 0
        patience = []
        for octet in start:
            began = time.monotonic()
            for one in ones:
                with contextlib.suppress(OSError):
                    one.send(bytes([octet]))
            while time.monotonic() - began < 1:
                moment = time.monotonic()
                with socket.create_connection(("127.0.0.2", port), 10) as other:
                    assert read_all(other).startswith(b"421-mx.example.com ")
                patience.append(time.monotonic() - moment)
                time.sleep(0.02)
            grown = max(grown, daemon.memory() - before)
        for one in ones:
            one.close()
        counters = daemon.settled()
    print(f"{protocol}: {before} KiB, {grown} KiB more; {counters['held']} were held")
    assert len(patience) > 100
    assert sorted(patience)[len(patience) // 2] < 0.05
    assert max(patience) < 1
    assert grown < 4096, f"{grown} KiB"
    assert 3000 < counters["held"] <= 4096 + 100  # up to the high-water mark
    assert counters["held_stressed"] > 100


@pytest.mark.loops("kqueue")
def test_stress_begins_once_and_ends_once(syslog: Syslog) -> None:
    """High water at seven eighths, low water at a half; between them nobody is held."""
    options = ("-p", "blocked", "--close", "drain", "-w", "1", "--max-held", "64")
    with running(syslog, *options, "--max-held-source", "999") as daemon:
        ones = []
        for _ in range(57):  # one over 56, the mark
            one = daemon.connect()
            assert read_all(one).startswith(b"554-")
            ones.append(one)
        syslog.wait_for(r"stress: 57 sockets are held, of 64 at the most")
        for _ in range(20):  # closed at once, and told all the same
            assert daemon.banner().startswith(b"554-")
        for one in ones[:20]:  # 37 are left, more than the low mark
            one.close()
        time.sleep(0.3)
        assert daemon.banner().startswith(b"554-")
        until(lambda: daemon.counters().get("held_stressed") == 21)
        assert daemon.counters()["held"] == 57
        for one in ones[20:]:
            one.close()
        line = syslog.wait_for("stress is over")
        assert int(re.search(r"over: (\d+) sockets", line)[1]) <= 32  # type: ignore[index]
        with daemon.connect() as one:
            read_all(one)
            until(lambda: daemon.counters()["held"] == 58, what="a place again")
        assert len(syslog.matching("stress: ")) == 1
        assert len(syslog.matching("stress is over")) == 1
        daemon.settled()


@pytest.mark.parametrize("held", ["0", "1", "2"])
def test_with_hardly_any_room_everybody_is_told(syslog: Syslog, held: str) -> None:
    for policy in ("drain", "quit"):
        options = ("-p", "blocked", "--close", policy, "-w", "1", "--max-held", held)
        with running(syslog, *options) as daemon:
            ones = [daemon.connect() for _ in range(20)]
            for one in ones:
                with one:
                    one.sendall(b"QUIT\r\n")
                    assert one.recv(4096).startswith(b"554-")
            counters = daemon.settled(20)
            assert counters["accepted"] == counters["sent"] == 20


@pytest.mark.parametrize("protocol", ["http", "tls", "socks", "auto"])
def test_who_cannot_be_asked_is_told_blind(syslog: Syslog, protocol: str) -> None:
    options = ("-p", "worm", "--protocol", protocol, "--max-held", "0")
    starts = {"http": b"HTTP/1.1 403", "tls": b"\x15\3\3", "socks": b"\5\xff", "auto": b"554-"}
    with running(syslog, *options) as daemon:
        for _ in range(20):
            began = time.monotonic()
            assert daemon.banner().startswith(starts[protocol])
            assert time.monotonic() - began < 0.25
        counters = daemon.settled(20)
        assert counters["held_full"] == counters["sent"] == 20


@pytest.mark.loops("kqueue")
def test_one_source_takes_its_share_and_no_more(syslog: Syslog) -> None:
    options = ("-p", "blocked", "--close", "quit", "-w", "1", "--max-held-source", "8")
    with running(syslog, *options) as daemon:
        greedy = [come(daemon.port, "127.0.0.1") for _ in range(50)]
        for one in greedy:
            assert one.recv(4096).startswith(b"554-")
        until(lambda: daemon.counters().get("held_share") == 42)
        for source in sources(100):  # others have their dialogue
            with come(daemon.port, source) as one:
                one.sendall(b"NOOP\r\nQUIT\r\n")
                assert read_all(one).endswith(b"221 mx.example.com Closing connection\r\n")
        counters = daemon.counters()
        assert (counters["held"], counters["quits"]) == (108, 100)
        greedy[0].close()  # a place is free again, for this source too
        until(lambda: _has_dialogue(daemon), what="a place")
        for one in greedy:
            one.close()
        daemon.settled()
    assert not syslog.matching("stress")


def _has_dialogue(daemon: Daemon) -> bool:
    with come(daemon.port, "127.0.0.1") as one:
        one.sendall(b"QUIT\r\n")
        return b"221 " in read_all(one)


def test_a_network_of_ipv6_is_one_source(syslog: Syslog) -> None:
    """The loopback has one IPv6 address only: ::1 is counted as a source at all."""
    options = ("-p", "blocked", "--close", "quit", "-w", "1", "--max-held-source", "3")
    with running(syslog, *options, address="::1") as daemon:
        ones = [daemon.connect() for _ in range(10)]
        for one in ones:
            assert one.recv(4096).startswith(b"554-")
        until(lambda: daemon.counters().get("held_share") == 7)
        for one in ones:
            one.close()


def test_counters_add_up_after_everything_at_once(syslog: Syslog) -> None:
    """Two thousand clients of every kind, many cut off, few places."""
    rng = random.Random(4)
    talk = (b"", b"GET / HTTP/1.1\r\n\r\n", b"GET /", b"EHLO a\r\n", b"\5\1\0", b"\x16\3\1", b"\0")
    options = ("-p", "worm", "--protocol", "auto", "--max-held", "100", "--max-held-source", "50")
    with running(syslog, *options) as daemon:
        ones: list[socket.socket] = []
        for source in sources(2000):
            one = come(daemon.port, source if rng.random() < 0.5 else "127.0.0.1")
            one.setblocking(False)
            with contextlib.suppress(OSError):
                one.send(rng.choice(talk))
            what = rng.random()
            if what < 0.2:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                one.close()
            elif what < 0.3:
                one.close()
            elif what < 0.5:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_WR)
                ones.append(one)
            else:
                ones.append(one)
            while len(ones) > 200:
                ones.pop(rng.randrange(len(ones))).close()
        for one in ones:
            one.close()
        counters = daemon.settled(2000)
        stumbled = sum(count for name, count in counters.items() if name.startswith("E"))
        assert counters["accepted"] + stumbled == 2000
        assert set(counters) >= {"held", "sent", "reset", "answered_http", "answered_socks"}


@pytest.mark.loops("kqueue")
def test_out_of_descriptors_the_held_give_way_and_nobody_hangs(syslog: Syslog) -> None:
    """A hard limit lower than --max-held is told at the start, and survived."""
    options = ("-p", "blocked", "--close", "quit", "-w", "1", "--max-held-source", "9999")
    with running(syslog, *options, wrapper=("prlimit", "--nofile=300:300")) as daemon:
        syslog.wait_for("descriptors: the limits need .* 300 are allowed")
        ones = [daemon.connect() for _ in range(400)]
        until(lambda: daemon.counters().get("EMFILE", 0) > 0, what="the last descriptor")
        syslog.wait_for("accept on .* fails")
        for one in ones[:200]:
            one.close()
        readable = 0
        end = time.monotonic() + 10
        waiting = ones[200:]
        while waiting and time.monotonic() < end:
            ready, _, _ = select.select(waiting, [], [], 1)
            for one in ready:
                assert one.recv(4096).startswith(b"554-")
                waiting.remove(one)
                one.close()
                readable += 1
        assert readable == 200
        daemon.settled()
