"""What reaches the syslog daemon, and what becomes of what does not.

Hostile here: a syslog daemon that is not there yet, goes away, comes back, or
takes nothing; a standard error that nobody reads.
"""

from __future__ import annotations

import re
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from running import (
    COMMAND,
    LOCATION,
    NAME,
    SECONDS,
    Daemon,
    Syslog,
    free_port,
    read_all,
    running,
    until,
)

from tests.system.background import SOON, WHOLE, answer, connection_lines, load

HEADER = r"<22>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d turnaway-fast\[\d+\]: "
LINE = re.compile(
    HEADER + r"turned away from=\[(?P<source>[0-9a-f.:]+)\]:(?P<port>\d{1,5})"
    r" to=\[(?P<called>[0-9a-f.:]+)\]:(?P<to>\d{1,5}) as=(?P<name>[a-z.]+)"
    r" persona=(?P<persona>[a-z]+) code=(?P<code>\d{3})"
    r" outcome=(?P<outcome>sent|early|full|reset|short|failed)"
)


def come(daemon: Daemon, times: int, source: str = "127.0.0.1") -> None:
    for _ in range(times):
        assert WHOLE.fullmatch(answer(daemon.port, daemon.address, source))


def intervals(syslog: Syslog, word: str) -> int:
    """The sum of `word=` over all interval lines."""
    found = (re.search(rf" {word}=(\d+)", line) for line in syslog.matching(r"\]: interval: "))
    return sum(int(one[1]) for one in found if one)


@pytest.mark.parametrize(
    ("listen", "call", "called"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.5", "127.0.0.5", "127.0.0.5"),
        ("0.0.0.0", "127.0.0.5", "127.0.0.5"),
        ("[::1]", "::1", "::1"),
        ("[::]", "::1", "::1"),
    ],
)
def test_grammar_of_a_connection_line(syslog: Syslog, listen: str, call: str, called: str) -> None:
    port = free_port()
    place = f"{listen}:{port} {NAME}"
    with running(syslog, "-p", "blocked", port=port, address=call, listeners=[place]) as daemon:
        with daemon.connect() as one:
            source, source_port = one.getsockname()[:2]
            read_all(one)
        line = LINE.fullmatch(syslog.wait_for("turned away "))
        assert line is not None, syslog.lines
        assert line.groupdict() == {
            "source": source,
            "port": str(source_port),
            "called": called,
            "to": str(port),
            "name": NAME,
            "persona": "blocked",
            "code": "554",
            "outcome": "sent",
        }


def test_nothing_a_client_sent_is_in_the_log(daemon: Daemon, syslog: Syslog) -> None:
    for octets in (b"EHLO evil%s\r\nForged: line\x1b[2J\r\n", b"\0" * 4096, b"\xff<0>"):
        with daemon.connect() as one:
            one.sendall(octets)
            read_all(one)
    until(lambda: len(connection_lines(syslog)) == 3, what="three lines")
    daemon.stop()
    for line in syslog.lines:
        assert re.fullmatch(r"<\d+>[ -~]+", line)
        assert not re.search("evil|Forged|<0>", line)
    assert all(LINE.fullmatch(line) for line in connection_lines(syslog))


def test_capped_lines_and_how_many_were_suppressed(syslog: Syslog) -> None:
    with running(syslog, "--log-connections", "capped:5", "--interval", "2") as daemon:
        until(lambda: time.time() % 1 < 0.2)
        first = int(time.time())
        come(daemon, 60)
        seconds = int(time.time()) - first + 1
        until(lambda: intervals(syslog, "connections") == 60, what="the interval lines")
        lines = len(connection_lines(syslog))
        assert 5 <= lines <= 5 * (seconds + 1)
        assert intervals(syslog, "suppressed") == 60 - lines


def test_one_line_of_ten(syslog: Syslog) -> None:
    options = ["-w", "1", "--log-connections", "sample:10", "--interval", "2"]
    with running(syslog, *options) as daemon:
        come(daemon, 100)
        until(lambda: intervals(syslog, "connections") == 100, what="the interval lines")
        assert len(connection_lines(syslog)) == 10
        assert intervals(syslog, "suppressed") == 90


def test_a_line_for_each(syslog: Syslog) -> None:
    with running(syslog, "--log-connections", "all", "--interval", "2") as daemon:
        come(daemon, 300)
        until(lambda: intervals(syslog, "connections") == 300, what="the interval lines")
        lost = sum(int(line.split("log: ")[1].split()[0]) for line in syslog.matching("log: "))
        assert len(connection_lines(syslog)) + lost == 300
        assert intervals(syslog, "suppressed") == 0


def test_no_lines_at_all(syslog: Syslog) -> None:
    with running(syslog, "--log-connections", "none", "--interval", "1") as daemon:
        come(daemon, 30)
        until(lambda: intervals(syslog, "connections") == 30, what="the interval lines")
        assert connection_lines(syslog) == []


def test_interval_line_names_the_five_busiest(syslog: Syslog) -> None:
    options = ["--log-connections", "none", "--interval", "3"]
    with running(syslog, *options, address="127.0.0.1") as daemon:
        until(lambda: syslog.matching("interval: "), what="the first interval")
        for host in range(2, 9):  # 127.0.0.2 .. .8, with 20, 30, .. 80 connections
            come(daemon, host * 10, f"127.0.0.{host}")
        total = sum(range(20, 90, 10))
        until(lambda: intervals(syslog, "connections") == total, what="the interval lines")
        (line,) = syslog.matching(r"interval: .*busiest")
        busiest = " ".join(f"[127.0.0.{host}]={host * 10}" for host in (8, 7, 6, 5, 4))
        assert line.endswith(f" busiest {busiest}")
        assert re.search(rf"interval: 3 s, connections={total} rate=\d+\.\d/s sent={total} ", line)


def test_interval_of_nothing_has_no_busiest(syslog: Syslog) -> None:
    with running(syslog, "--interval", "1"):
        line = syslog.wait_for("interval: ")
        assert re.fullmatch(HEADER + r"interval: 1 s, connections=0 rate=0\.0/s suppressed=0", line)


def test_every_message_is_mail_facility_with_the_programs_name(
    daemon: Daemon, syslog: Syslog
) -> None:
    come(daemon, 1)
    daemon.counters()
    daemon.stop()
    assert syslog.wait_for("stopped: ")
    for line in syslog.lines:
        found = re.match(r"<(\d+)>\w{3} [ \d]\d [\d:]{8} turnaway-fast\[(\d+)\]: ", line)
        assert found is not None, line
        assert int(found[1]) >> 3 == 2
        assert int(found[2]) == daemon.pid


class Late:
    """A daemon whose syslog socket does not exist yet."""

    def __init__(self, path: Path, *options: str) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [
                *[
                    str(COMMAND),
                    "-f",
                    "--pidfile",
                    "none",
                    "--control",
                    "none",
                    "--log",
                    f"syslog:{path}",
                    *options,
                ],
                *[LOCATION, f"127.0.0.1:{self.port}", NAME],
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        until(self.answers, what="the start")

    def answers(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"it ended: {self.process.stderr.read()}")
        try:
            return WHOLE.fullmatch(answer(self.port)) is not None
        except ConnectionRefusedError:
            return False

    def __enter__(self) -> Late:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()


def lost_lines(syslog: Syslog) -> int:
    told = (re.search(r"log: (\d+) lines were lost", line) for line in list(syslog.lines))
    return sum(int(one[1]) for one in told if one)


def place_of(tmp_path: Path) -> Path:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    return tmp_path / "log"


def test_syslog_that_appears_later(tmp_path: Path) -> None:
    with Late(place_of(tmp_path), "--log-connections", "all") as daemon:
        for _ in range(9):
            assert daemon.answers()
        time.sleep(1.2)  # a tick has read them
        syslog = Syslog(tmp_path / "log")
        daemon.process.send_signal(signal.SIGUSR1)
        until(lambda: lost_lines(syslog), what="what was lost")
        assert lost_lines(syslog) == 11  # the start line, the first answer and nine
        assert daemon.answers()
        syslog.wait_for("turned away ")
        daemon.process.terminate()
        syslog.wait_for("stopped: SIGTERM")
        syslog.close()


def test_lost_lines_of_a_sample_are_counted_as_the_sample(tmp_path: Path) -> None:
    """Ninety of a hundred were never going to be lines, so they are not lost."""
    options = ["-w", "1", "--log-connections", "sample:10"]
    with Late(place_of(tmp_path), *options) as daemon:
        for _ in range(99):
            assert daemon.answers()
        time.sleep(1.2)
        syslog = Syslog(tmp_path / "log")
        daemon.process.send_signal(signal.SIGUSR1)
        until(lambda: lost_lines(syslog), what="what was lost")
        assert lost_lines(syslog) == 1 + 10
        syslog.close()


def test_syslog_goes_away_and_comes_back(daemon: Daemon, syslog: Syslog) -> None:
    come(daemon, 1)
    syslog.wait_for("turned away ")
    for _ in range(2):
        syslog.close()
        come(daemon, 3)
        time.sleep(1.1)
        before = len(syslog.lines)
        syslog.open()
        daemon.process.send_signal(signal.SIGUSR1)
        until(lambda before=before: len(syslog.lines) >= before + 2, what="its return")
        told = [line for line in syslog.lines[before:] if "lines were lost" in line]
        assert len(told) == 1
        assert int(told[0].split("log: ")[1].split()[0]) == 3
        come(daemon, 1)
        until(lambda before=before: any("turned away" in line for line in syslog.lines[before:]))
    assert daemon.counters()["sent"] == 9


def test_syslog_that_takes_nothing_does_not_stop_the_answering(tmp_path: Path) -> None:
    """Its queue is full for ever; banners go on, are renewed, and the end is as quick."""
    path = place_of(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(path))
        path.chmod(0o666)
        with Late(path, "--log-connections", "all") as daemon:
            with load(daemon.port, clients=2, most=6000) as whole:
                dates = set()
                end = time.monotonic() + 3.5
                while time.monotonic() < end:
                    began = time.monotonic()
                    banner = answer(daemon.port)
                    assert time.monotonic() - began < SOON
                    assert WHOLE.fullmatch(banner)
                    clock = re.search(rb"(\d\d):(\d\d):(\d\d) ", banner)
                    assert clock is not None
                    assert (int(time.time()) - int(clock[3])) % 60 <= 2
                    dates.add(clock[0])
                    time.sleep(0.02)
            assert len(dates) >= 3
            assert sum(whole) > 0
            for _ in range(20):
                daemon.process.send_signal(signal.SIGUSR1)
            began = time.monotonic()
            daemon.process.terminate()
            assert daemon.process.wait(SECONDS) == 0
            assert time.monotonic() - began < SOON


def test_slow_syslog_gets_the_stop_line_with_totals(tmp_path: Path) -> None:
    """A queue filled with connection lines must not cost the one line with totals."""
    path = place_of(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as slow:
        slow.bind(str(path))
        path.chmod(0o666)
        with Late(path, "--log-connections", "all") as daemon:
            for _ in range(100):
                assert daemon.answers()
            daemon.process.terminate()
            lines = []
            while daemon.process.poll() is None or select.select([slow], [], [], 0)[0]:
                if select.select([slow], [], [], 0.01)[0]:
                    lines.append(slow.recv(65536).decode())
                    time.sleep(0.002)
            assert any("stopped: SIGTERM; totals:" in line for line in lines), lines[-3:]


def test_counters_of_fifty_listeners_all_arrive(syslog: Syslog) -> None:
    """More lines at once than the socket's queue takes (often ten)."""
    port = free_port()
    listeners = [f"127.0.1.{host}:{port} h{host}.example" for host in range(1, 51)]
    with running(syslog, "-w", "1", port=port, listeners=listeners) as daemon:
        daemon.process.send_signal(signal.SIGUSR1)
        until(lambda: len(syslog.matching("counters: ")) == 50, what="fifty lines")
        assert answer(port, "127.0.1.50").startswith(b"421-h50.example ")
        syslog.wait_for(r"turned away .* to=\[127\.0\.1\.50\]:\d+ as=h50\.example ")


def test_stderr_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    port = free_port()
    command = [str(COMMAND), "-f", "--pidfile", "none", "--control", "none", "--log", "stderr"]
    command += ["--log-connections", "all", LOCATION, f"127.0.0.1:{port}", NAME]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        assert b"started:" in process.stderr.readline()
        dates = set()
        with load(port, clients=2, most=6000):
            end = time.monotonic() + 3.5
            while time.monotonic() < end:
                dates.add(re.search(rb"\d\d:\d\d:\d\d", answer(port))[0])  # type: ignore[index]
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.01)
        assert len(dates) >= 3
        for _ in range(20):
            process.send_signal(signal.SIGUSR1)
        began = time.monotonic()
        process.terminate()
        assert process.wait(SECONDS) == 0
        assert time.monotonic() - began < SOON
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_stderr_that_was_closed_stops_nothing() -> None:
    port = free_port()
    command = [str(COMMAND), "-f", "--pidfile", "none", "--control", "none", "--log", "stderr"]
    command += [LOCATION, f"127.0.0.1:{port}", NAME]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        assert b"started:" in process.stderr.readline()
        process.stderr.close()
        for _ in range(3):
            assert WHOLE.fullmatch(answer(port))
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.1)
        time.sleep(1.1)
        assert process.poll() is None
        process.terminate()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
