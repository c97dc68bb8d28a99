"""A syslog daemon that is gone or deaf, and a disk that is full.

What is lost are lines, and it is told how many.  The finer points (half a line, the
order of what comes after) stand in tests/system/test_log_lines.py and test_json_log.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from running import COMMAND, Syslog, free_port, need, need_root, running, until

from tests.faults.catalogue import Told
from tests.faults.inject import Crowd
from tests.system.background import answer
from tests.system.test_json_log import Lines, answers

# Makes a tmpfs of 64 KiB of its own, says so, and is the command from then on.
SMALL_DISK = 'mount -t tmpfs -o size=64k,mode=1777 turnaway "$0" && exec "$@"'


# What stands last in the file of metrics.
WHOLE_FILE = "\nturnaway_start_time_seconds "


def small_disk(place: Path) -> tuple[str, ...]:
    """A wrapper: the command sees a tmpfs of 64 KiB at `place`, in its own namespace."""
    need_root()
    need("unshare", "mount")
    return ("unshare", "-m", "sh", "-c", SMALL_DISK, str(place))


def seen_by(process: subprocess.Popen[str], place: Path) -> Path:
    """`place` as the process sees it."""
    return Path(f"/proc/{process.pid}/root{place}")


def fill(place: Path) -> Path:
    """Take all the room there is."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(512)):
            pass
    return filler


def lines_lost(lines: list[str]) -> int:
    found = (re.search(r"log: (\d+) lines were lost", line) for line in lines)
    return sum(int(one[1]) for one in found if one)


def test_syslog_gone(syslog: Syslog, told: Told) -> None:
    with running(syslog, "--log-connections", "all") as daemon:
        crowd = Crowd(daemon.port, 1.8, 200)
        time.sleep(0.3)
        syslog.close()
        time.sleep(1.2)
        syslog.open()
        result = crowd.nobody_was_lost()
        said = syslog.wait_for("log: .* lines were lost")
        accepted = daemon.settled(result.started)["accepted"]
        until(
            lambda: len(syslog.matching("turned away ")) + lines_lost(syslog.lines) >= accepted,
            what="every line to be written or told",
        )
    lost = lines_lost(syslog.lines)
    assert 0 < lost < accepted
    told("syslog socket gone", result, lost=f"{lost} of {accepted} lines, told", logged=said)


@contextlib.contextmanager
def on_this_port(*argv: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """A daemon that does not log to a socket which is read."""
    process = subprocess.Popen(
        [*argv, "Somecity, Earth", f"127.0.0.1:{port} mx.example.com"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: process.poll() is not None or answers("127.0.0.1", port), what="the start")
        assert process.poll() is None, process.stderr and process.stderr.read()
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(10)
        if process.stderr:
            process.stderr.close()


def foreground(*options: str) -> list[str]:
    return [str(COMMAND), "-f", "--pidfile", "none", "--control", "none", *options]


def test_syslog_that_never_reads(tmp_path: Path, told: Told) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    path = tmp_path / "log"
    port = free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(path))
        path.chmod(0o666)
        argv = foreground("--log", f"syslog:{path}", "--log-connections", "all")
        with on_this_port(*argv, port=port) as process:
            crowd = Crowd(port, 1.2, 500)
            result = crowd.nobody_was_lost()
            began = time.monotonic()
            process.terminate()
            assert process.wait(10) == 0
            ended = time.monotonic() - began
        deaf.setblocking(False)
        kept = []
        with contextlib.suppress(BlockingIOError):
            while True:
                kept.append(deaf.recv(65536).decode())
    assert ended < 2
    assert len(kept) < 100
    told(
        "syslog never reads", result, logged=[],
        lost=f"all lines but the {len(kept)} that the socket's queue holds; SIGTERM took {ended:.1f} s",
    )  # fmt: skip


def test_a_full_disk_under_the_json_log(tmp_path: Path, told: Told) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    port = free_port()
    target = f"json:{disk}/turnaway.json"
    argv = [*small_disk(disk), *foreground("--log", target, "--log-connections", "all")]
    with on_this_port(*argv, port=port) as process:
        lines = Lines(seen_by(process, disk) / "turnaway.json")
        filler = lines.path.with_name("filler")
        filler.write_bytes(bytes(40 << 10))
        result = Crowd(port, 1.4, 700).nobody_was_lost()  # 200 octets a line: room for 120
        until(lambda: lines.path.stat().st_size > 16 << 10, what="the disk to be full")
        time.sleep(1.2)  # the next tick loses the last of them: else they would fill it again
        filler.unlink()
        assert answer(port)
        said = lines.wait_for("log")[0]["message"]

        def all_told() -> bool:
            told = [one["message"] for one in lines.of("log")]
            return lines_lost(told) + len(lines.of("turned away")) >= result.started

        until(all_told, what="every line to be written or told")
        process.send_signal(signal.SIGUSR1)
        lines.wait_for("counters")
    assert lines_lost([said]) > 500
    told(
        "disk full, JSON log", result, logged=said,
        lost=f"{lines_lost([said])} of {result.started} lines, told when there is room again",
    )  # fmt: skip


def test_a_full_disk_under_the_metrics_file(syslog: Syslog, tmp_path: Path, told: Told) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ("--metrics", f"file:{disk}/turnaway.prom", "--interval", "1")
    with running(syslog, *options, wrapper=small_disk(disk)) as daemon:
        file = seen_by(daemon.process, disk) / "turnaway.prom"
        assert WHOLE_FILE in file.read_text()
        filler = fill(file.parent)
        crowd = Crowd(daemon.port, 1.2, 200)
        syslog.wait_for("metrics: .* cannot be written: No space left on device")
        assert WHOLE_FILE in file.read_text()  # never half of one
        filler.unlink()
        syslog.wait_for("metrics: .* is written again")
        result = crowd.nobody_was_lost()
        lines = syslog.matching("metrics: ")
    assert len(lines) == 2
    told(
        "disk full, metrics file", result, lost="nobody; the last file whole stays",
        logged=[re.sub(r"/\S*/", "/", line.partition("]: ")[2]) for line in lines],
    )  # fmt: skip


def test_a_full_disk_under_the_pidfile(tmp_path: Path, told: Told) -> None:
    """Nothing is started, and nothing is left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"head -c 65536 /dev/zero >{disk}/filler; " + 'exec "$@"'
    port = free_port()
    done = subprocess.run(
        [
            *small_disk(disk), *("sh", "-c", script, "sh"), str(COMMAND),
            *("--pidfile", f"{disk}/pid", "--control", "none", "--log", "none"),
            *("Somecity, Earth", f"127.0.0.1:{port} mx.example.com"),
        ],
        capture_output=True, text=True, timeout=10,
    )  # fmt: skip
    assert done.returncode == os.EX_CANTCREAT, done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
    assert not answers("127.0.0.1", port)
    said = re.sub(r"/\S*/", "/", done.stderr.strip().partition(": ")[2])
    told(
        "disk full, pidfile", None, logged=said,
        lost=f"the start: status {done.returncode}, nothing is served",
    )  # fmt: skip
