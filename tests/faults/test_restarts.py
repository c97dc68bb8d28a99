"""The process is killed without a word, or told to read its configuration all the time.

Both under load.  An orderly restart loses nobody: tests/system/test_reload.py.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from running import Daemon, Syslog, free_port, read_all, running, until

from bench.expect import Expect
from tests.faults.catalogue import Told
from tests.faults.inject import Crowd, descriptors
from tests.system.background import answer, threads
from tests.system.test_reload import configured, handed_in, written
from turnaway.daemon import RETIRED

KILLS = 5
STORM = 600  # in two seconds


def ended(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.process.wait(10)


def test_killed_while_the_supervisor_holds_the_socket(
    syslog: Syslog, tmp_path: Path, told: Told, full: bool
) -> None:
    """The queue outlives the process: lost is at most who was being answered just then."""
    kills = KILLS if full else 2
    file = tmp_path / "t.toml"
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as held:
        port = held.getsockname()[1]
        written(file, port)
        crowd = None
        for number in range(1, kills + 2):
            process = handed_in(held, file, "--log", f"syslog:{syslog.path}")
            try:
                until(
                    lambda number=number: len(syslog.matching("started:")) == number,
                    what="the start",
                )
                crowd = crowd or Crowd(port, 0.5 * kills, 1000)
                time.sleep(0.25)
                if number == kills + 1:
                    result = crowd.result()
            finally:
                process.send_signal(signal.SIGKILL if number <= kills else signal.SIGTERM)
                process.wait(10)
    lost = result.started - result.counts["complete"]
    assert result.counts["refused"] == result.counts["timed_out"] == 0
    assert lost <= kills * 8
    told(
        "kill -9, the supervisor holds the socket", result, logged=[],
        lost=f"{lost} of {result.started}, who were being answered; none was refused",
    )  # fmt: skip


def test_killed_and_nobody_holds_the_socket(syslog: Syslog, tmp_path: Path, told: Told) -> None:
    """The kernel refuses until the new one listens; nothing left behind hinders it."""
    port, pidfile, control = free_port(), tmp_path / "pid", tmp_path / "ctl"
    options = ("--pidfile", str(pidfile), "--control", str(control))
    with running(syslog, *options, port=port) as first:
        crowd = Crowd(port, 1.3, 500)
        time.sleep(0.3)
        ended(first)
        began = time.monotonic()
        assert pidfile.exists()
        with running(syslog, *options, port=port) as second:
            answer(port)
            took = time.monotonic() - began
            result = crowd.result()
            assert pidfile.read_text() == f"{second.pid}\n"
            assert second.settled()["sent"] > 0
    lost = result.started - result.counts["complete"]
    assert lost <= 500 * took + 20
    told(
        "kill -9, nobody holds the socket", result, logged=[],
        lost=f"{lost} of {result.started}, in the {took:.2f} s until the new one answered",
    )  # fmt: skip


def asked(door: Path, what: str) -> str:
    """What the control socket answers."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(10)
        one.connect(str(door))
        one.sendall(b'{"v":1,"do":"%b"}\n' % what.encode())
        return read_all(one).decode()


def test_a_storm_of_reloads_beside_clients_that_stay(syslog: Syslog, tmp_path: Path) -> None:
    """Each of the earlier loops has a client to wait for: they are few, and whoever asks
    for one more reload by the control socket is told so."""
    file, port, door = tmp_path / "t.toml", free_port(), tmp_path / "ctl"
    written(file, port, listener='close = "quit"\n')
    with configured(syslog, file, port, "--control", str(door)) as daemon:
        ones = []
        told = ""
        for _ in range(4 * RETIRED):
            ones.append(daemon.connect())
            assert ones[-1].recv(100)  # it is held by the loops of now, or those before
            told = asked(door, "reload")
            if "earlier loops" in told:
                break
        assert "16 earlier loops still hold clients; try again" in told
        assert len(threads(daemon.pid)) <= 1 + 2 * (RETIRED + 1)
        before = asked(door, "status")
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        for one in ones:
            one.close()
        # The reload that was asked for and had to wait.
        until(
            lambda: (
                '"ok":true' in (now := asked(door, "status")).partition("reload")[2]
                and now != before
            ),
            what="the last reload",
        )
        until(lambda: len(threads(daemon.pid)) == 3, what="the old loops to end")


def test_a_storm_of_reloads(syslog: Syslog, tmp_path: Path, told: Told, full: bool) -> None:
    storm = STORM if full else STORM // 4
    file, port = tmp_path / "t.toml", free_port()
    written(file, port)
    with configured(syslog, file, port) as daemon:
        for _ in range(3):  # what a reload takes once is taken
            before = len(syslog.matching("reloaded: "))
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda before=before: len(syslog.matching("reloaded: ")) > before)
        until(lambda: len(threads(daemon.pid)) == 3, what="the old loops to end")
        before, memory = descriptors(daemon.pid), daemon.memory()
        crowd = Crowd(port, storm / 300 + 0.2, 500, expect=Expect.learn("127.0.0.1", port))
        began = time.monotonic()
        for number in range(storm):
            daemon.process.send_signal(signal.SIGHUP)
            time.sleep(max(0.0, began + number / 300 - time.monotonic()))
        result = crowd.nobody_was_lost()
        until(lambda: len(threads(daemon.pid)) == 3, what="the old loops to end")
        until(lambda: descriptors(daemon.pid) <= before, what=f"{before} descriptors again")
        reloads = len(syslog.matching("reloaded: ")) - 3
        grown = daemon.memory() - memory
        line = syslog.matching("reloaded: ")[-1]
        assert not syslog.matching("nothing was changed")
        assert daemon.stop() == 0
        syslog.wait_for("stopped: SIGTERM")
    assert reloads > 10
    assert grown < 32768  # sixteen earlier loops at once, of a megabyte each
    told(
        "SIGHUP storm", result, logged=line,
        lost=f"nobody; {reloads} reloads were done, {grown:,} KiB more memory",
    )  # fmt: skip
