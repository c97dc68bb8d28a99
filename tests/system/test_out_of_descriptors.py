"""Out of file descriptors: rest, say so once, do not spin, and come back whole.

Clients that are waited for (close policy `quit`) hold a descriptor each until
their time is over; with a low limit a hundred of them take all there are.  Who
was answered already, and is only drained, gives way to a new client instead.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Daemon, Syslog, need, running, until

from tests.system.background import SOON, WHOLE
from tests.system.test_signals_and_stop import freeze, stop_within_a_second

LIMIT = 48
TALKERS = 110


POOR = ["prlimit", f"--nofile={LIMIT}"]


@pytest.fixture
def poor(syslog: Syslog, tmp_path: Path) -> Iterator[Daemon]:
    """One worker that may have 48 descriptors, and waits two seconds for QUIT."""
    need("prlimit")
    short = tmp_path / "waits.toml"
    short.write_text("[waits]\nquit = 2\n")
    short.chmod(0o644)
    options = ["-w", "1", "-c", str(short), "--close", "quit"]
    with running(syslog, *options, wrapper=POOR) as daemon:
        yield daemon


def waiters(daemon: Daemon) -> list[socket.socket]:
    """Silent clients, who are waited for."""
    freeze(daemon)
    ones = [daemon.connect() for _ in range(TALKERS)]
    daemon.process.send_signal(signal.SIGCONT)
    return ones


def talkers(daemon: Daemon, number: int = TALKERS) -> list[socket.socket]:
    """Clients that have talked before they were accepted, and stay."""
    freeze(daemon)
    ones = [daemon.connect() for _ in range(number)]
    for one in ones:
        one.sendall(b"EHLO spam.example\r\n")
    daemon.process.send_signal(signal.SIGCONT)
    return ones


def read_banners(ones: list[socket.socket]) -> None:
    for one in ones:
        octets = b""
        while more := one.recv(4096):
            octets += more
        assert WHOLE.match(octets)


def greeted(daemon: Daemon) -> bool:
    """Whether a client that says QUIT is greeted and let go."""
    with daemon.connect() as one:
        one.sendall(b"QUIT\r\n")
        octets = b""
        while more := one.recv(4096):
            octets += more
        return WHOLE.match(octets) is not None


def processor_seconds(pid: int) -> float:
    """User and system time so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_rests_says_so_once_and_recovers(poor: Daemon, syslog: Syslog) -> None:
    place = rf"accept on 127\.0\.0\.1:{poor.port}"
    for bout in (1, 2):
        ones = waiters(poor)
        syslog.wait_for(f"{place} fails: EMFILE")
        before = processor_seconds(poor.pid)
        began = time.monotonic()
        read_banners(ones)  # as descriptors come free, everybody gets the banner
        waited = time.monotonic() - began
        assert waited > 1  # there was something to wait for
        assert processor_seconds(poor.pid) - before < 0.2 * waited
        for one in ones:
            one.close()
        # Well again: at once, without a rest between.
        until(lambda: greeted(poor), what="an answer")
        until(
            lambda bout=bout: (
                greeted(poor) and len(syslog.matching(f"{place} works again")) == bout
            ),
            what="the word that it works again",
        )
        began = time.monotonic()
        for _ in range(100):
            assert greeted(poor)
        assert time.monotonic() - began < 5 * SOON
        # One line for each transition, and none for every failure.
        assert len(syslog.matching("accept on .* fails")) == bout
        assert len(syslog.matching("accept on .* works again")) == bout
    counters = poor.counters()
    assert counters["EMFILE"] == counters["rests"]
    assert counters["sent"] == counters["accepted"]
    assert counters["held"] >= 2 * TALKERS
    assert poor.stop() == 0


def test_stops_within_a_second_all_the_same(poor: Daemon, syslog: Syslog) -> None:
    ones = waiters(poor)
    syslog.wait_for("fails: EMFILE")
    stop_within_a_second(poor, signal.SIGTERM)
    syslog.wait_for("stopped: SIGTERM; totals: .* EMFILE=")
    for one in ones:
        one.close()


def test_nothing_of_a_limit_is_used_up_for_good(poor: Daemon) -> None:
    """As many descriptors after as before, in every thread's table."""

    def tables() -> list[int]:
        return sorted(
            len(list((task / "fd").iterdir())) for task in Path(f"/proc/{poor.pid}/task").iterdir()
        )

    assert greeted(poor)
    time.sleep(0.2)  # that connection is closed
    before = tables()
    ones = waiters(poor)
    read_banners(ones)
    for one in ones:
        one.close()
    until(lambda: tables() == before, what=f"the descriptors {before}")


def test_shell_under_the_same_limit_keeps_its_tick(poor: Daemon, syslog: Syslog) -> None:
    """The banner is renewed and the syslog socket reopened while accept fails."""
    ones = waiters(poor)
    syslog.wait_for("fails: EMFILE")
    syslog.close()
    time.sleep(0.5)
    syslog.open()
    # The first of these lines finds the old socket gone, and is lost.
    until(
        lambda: poor.process.send_signal(signal.SIGUSR1) or syslog.matching("counters: .* EMFILE="),
        what="the counters",
    )
    read_banners(ones)
    for one in ones:
        one.close()


def test_early_talkers_that_stay_give_way_to_new_clients(syslog: Syslog) -> None:
    """They have their banner: their descriptors go to who has none yet."""
    need("prlimit")
    with running(syslog, "-w", "1", wrapper=POOR) as daemon:
        ones = talkers(daemon)
        began = time.monotonic()
        for _ in range(20):
            assert WHOLE.fullmatch(daemon.banner())
        assert time.monotonic() - began < 2 * SOON
        read_banners(ones)
        for one in ones:
            one.close()
        counters = daemon.counters()
        assert counters["sacrificed"] > 0
        assert counters["sent"] == counters["accepted"] == TALKERS + 20
        assert "rests" not in counters
