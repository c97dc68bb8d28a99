"""Signals, and the end: within a second, under load, with true totals.

The load is bounded; it comes from threads of this process over loopback.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from running import COMMAND, LOCATION, NAME, SECONDS, Daemon, Syslog, free_port, running, until

from tests.system.background import SOON, WHOLE, answer, load

BLOCKING = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK,"
    " {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP});"
    " os.execv(sys.argv[1], sys.argv[1:])"
)
IGNORING = (
    "import os, signal, sys;"
    " [signal.signal(one, signal.SIG_IGN) for one in (signal.SIGTERM, signal.SIGINT,"
    " signal.SIGUSR1, signal.SIGHUP)]; os.execv(sys.argv[1], sys.argv[1:])"
)


def stop_within_a_second(daemon: Daemon, number: int) -> None:
    began = time.monotonic()
    daemon.process.send_signal(number)
    assert daemon.process.wait(SECONDS) == 0
    assert time.monotonic() - began < SOON


def totals(syslog: Syslog) -> dict[str, int]:
    line = syslog.wait_for("stopped: ")
    return {name: int(count) for name, count in re.findall(r"([A-Za-z_]+)=(\d+)", line)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("detail", ["capped:20", "all"])
def test_stops_under_load(syslog: Syslog, number: signal.Signals, detail: str) -> None:
    with running(syslog, "--log-connections", detail) as daemon:
        with load(daemon.port, clients=8) as whole:
            until(lambda: sum(whole) > 500, what="load")
            stop_within_a_second(daemon, number)
        counts = totals(syslog)
        assert syslog.matching(rf"stopped: {number.name}; totals: \d+ s, ")
        # Whoever had a whole banner was counted.  A few more may have been
        # answered and not have read it by then.
        assert sum(whole) <= counts["sent"] <= counts["connections"]
        assert counts["connections"] <= sum(whole) + 200


def test_whoever_is_in_the_queue_is_answered_at_the_end(syslog: Syslog) -> None:
    """SIGTERM comes while twenty wait: they were let in, so they are told."""
    with running(syslog) as daemon:
        freeze(daemon)
        ones = [daemon.connect() for _ in range(20)]
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        for one in ones:
            with one:
                octets = b""
                while more := one.recv(4096):
                    octets += more
                assert WHOLE.fullmatch(octets)
        assert daemon.process.wait(SECONDS) == 0
        assert totals(syslog)["sent"] == 20


def freeze(daemon: Daemon) -> None:
    """SIGSTOP, and wait until every thread has stopped."""
    daemon.process.send_signal(signal.SIGSTOP)
    tasks = [task / "stat" for task in Path(f"/proc/{daemon.pid}/task").iterdir()]
    until(lambda: all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks))


def test_stops_with_parked_talkers_and_closes_them(daemon: Daemon, syslog: Syslog) -> None:
    freeze(daemon)
    ones = [daemon.connect() for _ in range(50)]
    for one in ones:
        one.sendall(b"EHLO spam.example\r\n")
    daemon.process.send_signal(signal.SIGCONT)
    for one in ones:
        octets = b""
        while more := one.recv(4096):
            octets += more
        assert WHOLE.fullmatch(octets)
    # They have the banner and stay; the park would hold them two seconds.
    stop_within_a_second(daemon, signal.SIGTERM)
    assert totals(syslog)["parked"] > 0
    for one in ones:
        one.close()


def test_second_signal_does_not_hurt(daemon: Daemon, syslog: Syslog) -> None:
    with load(daemon.port, clients=4) as whole:
        until(lambda: sum(whole) > 100)
        for _ in range(50):
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(SECONDS) == 0
    assert len(syslog.matching("stopped: ")) == 1


def test_storm_of_signals_ends_nothing(daemon: Daemon, syslog: Syslog) -> None:
    with load(daemon.port, clients=2) as whole:
        for _ in range(1000):
            daemon.process.send_signal(signal.SIGUSR1)
            daemon.process.send_signal(signal.SIGHUP)
        before = sum(whole)
        until(lambda: sum(whole) > before + 50, what="answers")
    assert daemon.process.poll() is None
    syslog.wait_for("counters: ")
    syslog.wait_for("SIGHUP")
    stop_within_a_second(daemon, signal.SIGTERM)


@pytest.mark.parametrize("connections", [1, 7, 600])
def test_counters_agree_with_the_clients(daemon: Daemon, connections: int) -> None:
    each, rest = divmod(connections, 3)
    whole: list[bool] = []

    def come(times: int) -> None:
        for _ in range(times):
            whole.append(WHOLE.fullmatch(answer(daemon.port)) is not None)

    ones = [
        threading.Thread(target=come, args=(each + (rest if number == 0 else 0),))
        for number in range(3)
    ]
    for one in ones:
        one.start()
    for one in ones:
        one.join()
    assert sum(whole) == connections
    # The loop counts after it has closed, a moment later than the client knows.
    until(lambda: daemon.counters().get("accepted", 0) >= connections)
    assert daemon.counters() == {"accepted": connections, "sent": connections}


def test_counters_by_listener(syslog: Syslog) -> None:
    port = free_port()
    listeners = [f"127.0.0.1:{port} one.example", f"127.0.0.2:{port} two.example"]
    with running(syslog, port=port, listeners=listeners) as daemon:
        for number in range(9):
            answer(port, "127.0.0.1" if number % 3 else "127.0.0.2")
        until(lambda: daemon.counters()["sent"] == 9)
        assert syslog.matching(rf"counters: 127\.0\.0\.1:{port} one\.example accepted=6 sent=6$")
        assert syslog.matching(rf"counters: 127\.0\.0\.2:{port} two\.example accepted=3 sent=3$")


def test_hangup_is_survived_and_said(daemon: Daemon, syslog: Syslog) -> None:
    for _ in range(3):
        daemon.process.send_signal(signal.SIGHUP)
        syslog.wait_for("SIGHUP: ")
        assert daemon.banner()
    assert daemon.process.poll() is None


@pytest.mark.parametrize("hostile", [BLOCKING, IGNORING], ids=["blocked", "ignored"])
def test_signals_that_the_caller_blocked_or_ignored(syslog: Syslog, hostile: str) -> None:
    """A mask is inherited through exec; SIGTERM must work all the same."""
    with running(syslog, wrapper=[sys.executable, "-c", hostile]) as daemon:
        assert daemon.banner()
        daemon.process.send_signal(signal.SIGUSR1)
        try:
            syslog.wait_for("counters: ", 3)
            stop_within_a_second(daemon, signal.SIGTERM)
        finally:
            daemon.process.kill()


def test_stopped_and_continued_goes_on(daemon: Daemon) -> None:
    freeze(daemon)
    time.sleep(1.1)
    daemon.process.send_signal(signal.SIGCONT)
    banner = daemon.banner()
    assert WHOLE.fullmatch(banner)
    until(
        lambda: abs(int(time.time()) % 60 - int(daemon.banner().split(b":")[2][:2])) <= 1,
        what="the date to be right again",
    )


def test_interrupt_while_it_starts_leaves_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C between the pidfile and the first answer: it ends, without a word of Python."""
    for step in range(12):
        command = [str(COMMAND), "-f", "--pidfile", str(tmp_path / "pid"), "--log", "none"]
        process = subprocess.Popen(
            [*command, LOCATION, f"127.0.0.1:{free_port()}", NAME], stderr=subprocess.PIPE
        )
        until((tmp_path / "pid").exists, what="the pidfile")
        time.sleep(step * 0.001)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=SECONDS)[1]
        assert b"Traceback" not in said, (step, said)
        until(lambda: not (tmp_path / "pid").exists(), what="the pidfile to go")


def test_nobody_is_let_in_after_the_end(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((daemon.address, daemon.port), 1)
