"""Who gets the banner: every kind of client, on a real server over loopback.

In every case the banner is whole and no reset comes before it.
"""

import contextlib
import re
import socket
import struct
import time
from pathlib import Path

import pytest
from running import Daemon, Syslog, free_port, read_all, running, until

WHOLE = re.compile(
    rb"421-mx\.example\.com TurnAway v\d+\.\d+ \(not\) ready at "
    rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}( \([A-Za-z0-9+-]{1,8}\))?;\r\n"
    rb"421-in Somecity, Earth\.  Incoming mail services are not\r\n"
    rb"421-available at this IP:port\.  Please use proper MX or SRV lookups\.\r\n"
    rb"421 Your mail software MAY be broken\.  Closing connection\.\r\n"
)


pytestmark = pytest.mark.loops("kqueue-bare")


def test_the_loop_is_the_one_asked_for(syslog: Syslog, daemon: Daemon, loop: str) -> None:
    assert f" ({loop.removeprefix('lib').removesuffix('-bare')}), user " in syslog.wait_for(
        "started:"
    )


def test_silent_reader(daemon: Daemon) -> None:
    assert WHOLE.fullmatch(daemon.banner())
    until(lambda: daemon.counters().get("sent") == 1)


@pytest.mark.parametrize("octets", [b"EHLO spam.example\r\n", b"x" * 4096])
def test_early_talker(daemon: Daemon, octets: bytes) -> None:
    for _ in range(50):
        with daemon.connect() as one:
            one.sendall(octets)
            assert WHOLE.fullmatch(read_all(one))
    counters = daemon.settled(50)
    assert counters["sent"] == counters["accepted"] == 50
    assert counters.get("park_full", 0) == 0


@pytest.mark.parametrize("octets", [b"EHLO spam.example\r\n", b"x" * 4096, b"x" * 100_000])
def test_early_talker_before_accept(daemon: Daemon, octets: bytes) -> None:
    """The data is there before accept: the loop is stopped meanwhile."""
    daemon.pause()
    ones = [daemon.connect() for _ in range(20)]
    for one in ones:
        one.setblocking(False)
        one.send(octets)  # as much as the two buffers take
        one.settimeout(10)
    daemon.resume()
    for one in ones:
        with one:
            assert WHOLE.fullmatch(read_all(one))
    counters = daemon.settled(20)
    assert counters["early"] == counters["parked"] == 20


def test_quits_after_the_banner(daemon: Daemon) -> None:
    for _ in range(50):
        with daemon.connect() as one:
            assert WHOLE.fullmatch(read_all(one))
            one.send(b"QUIT\r\n")


def test_half_closer(daemon: Daemon) -> None:
    with daemon.connect() as one:
        one.shutdown(socket.SHUT_WR)
        assert WHOLE.fullmatch(read_all(one))


def test_half_closer_who_talked(daemon: Daemon) -> None:
    with daemon.connect() as one:
        one.sendall(b"EHLO spam.example\r\n")
        with contextlib.suppress(OSError):  # reset already: it talked after the close
            one.shutdown(socket.SHUT_WR)
        assert WHOLE.fullmatch(read_all(one))


def test_never_closer_holds_nothing(daemon: Daemon) -> None:
    ones = [daemon.connect() for _ in range(100)]
    for one in ones:
        assert WHOLE.fullmatch(read_all(one))
    assert daemon.banner()  # and the next is served
    for one in ones:
        one.close()


def test_never_closer_who_talks_is_let_go_after_two_seconds(daemon: Daemon) -> None:
    daemon.pause()
    with daemon.connect() as one:
        one.sendall(b"EHLO spam.example\r\n")
        daemon.resume()
        assert WHOLE.fullmatch(read_all(one))
        began = time.monotonic()
        until(lambda: daemon.counters().get("drain_expired", 0) == 1, 5, "the time limit")
        assert time.monotonic() - began < 4


def test_slow_reader(daemon: Daemon) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        one.settimeout(10)
        one.connect((daemon.address, daemon.port))
        octets = b""
        while more := one.recv(7):
            octets += more
            time.sleep(0.001)
        assert WHOLE.fullmatch(octets)


def test_reset_by_the_client_is_counted_and_harmless(daemon: Daemon) -> None:
    daemon.pause()
    ones = [daemon.connect() for _ in range(5)]
    for one in ones:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    daemon.resume()
    assert WHOLE.fullmatch(daemon.banner())
    counters = daemon.settled()
    assert counters.get("reset", 0) + counters.get("ECONNABORTED", 0) == 5


def test_park_full_closes_at_once_and_counts(syslog: Syslog) -> None:
    """1,100 early talkers that stay, and 1,024 places: the rest are served too."""
    with running(syslog, "-w", "1", "--max-held", "1024", "--max-held-source", "9999") as daemon:
        ones = []
        for _ in range(1100):
            one = daemon.connect()
            one.sendall(b"x")
            ones.append(one)
        for one in ones:
            assert WHOLE.fullmatch(read_all(one))
        counters = daemon.settled(1100)
        assert counters["accepted"] == counters["sent"] == 1100
        assert counters["parked"] + counters.get("park_full", 0) == counters["early"]
        assert 0 < counters["park_full"] == counters["held_stressed"]
        syslog.wait_for("stress: 8.. sockets are held")
        for one in ones:
            one.close()
        syslog.wait_for("stress is over")


def test_the_date_changes_within_a_second(daemon: Daemon) -> None:
    dates = set()
    end = time.time() + 2.2
    while time.time() < end:
        banner = daemon.banner()
        now = time.time()
        clock = re.search(rb"\d\d:\d\d:(\d\d)", banner)
        assert clock is not None
        assert (int(now) - int(clock[1])) % 60 <= 1
        dates.add(clock[0])
        time.sleep(0.01)
    assert len(dates) >= 3


def test_two_workers_share_the_work(syslog: Syslog, loop: str) -> None:
    with running(syslog, "-w", "2") as daemon:
        tasks = [task.read_text() for task in Path(f"/proc/{daemon.pid}/task").glob("*/comm")]
        if loop == "kqueue-bare":  # its threads have no name of their own
            assert len(tasks) == 3
        else:
            assert tasks.count("turnaway-loop\n") == 2
        for _ in range(400):
            assert WHOLE.fullmatch(daemon.banner())
        assert daemon.settled(400)["sent"] == 400


def test_ipv6_and_ipv4_stand_side_by_side(syslog: Syslog) -> None:
    port = free_port("::1")
    listeners = [f"0.0.0.0:{port} four.example.com", f"[::]:{port}", "six.example.com"]
    with running(syslog, port=port, listeners=listeners) as daemon:
        assert b"421-four.example.com " in daemon.banner("127.0.0.1")
        assert b"421-six.example.com " in daemon.banner("::1")
