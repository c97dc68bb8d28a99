"""The installed command, running: started, watched and ended by tests.

Owns: starting `turnaway-fast` in the foreground or background with a syslog
socket of the test's own, waiting for what it says, and ending it.  Nothing is
mocked: the process is the installed one, the sockets are real.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

COMMAND = Path(sys.executable).parent / "turnaway-fast"
NAME = "mx.example.com"
LOCATION = "Somecity, Earth"
T = TypeVar("T")
# Each connection ends in one of these.
OVER = ("sent", "short", "failed", "reset", "gone", "stranger", "headless", "misdiverted")
SECONDS = 10.0  # patience with anything that should happen at once


def need(*tools: str) -> None:
    """Skip when a tool is missing; in CI that is a failure."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"missing in CI: {', '.join(missing)}")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def need_module(name: str) -> None:
    """Skip where a Python module is not installed; in CI that is a failure."""
    if importlib.util.find_spec(name) is None:
        reason = f"needs {name}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def need_root() -> None:
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("this test needs root, and CI has it")
        pytest.skip("needs root")


def free_port(address: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as one:
        one.bind((address, 0))
        return int(one.getsockname()[1])


def until(condition: Callable[[], T], seconds: float = SECONDS, what: str = "it") -> T:
    """Wait until `condition()` is true, and return what it returned."""
    end = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds} s for {what}")
        time.sleep(0.005)


class Syslog:
    """A syslog daemon for one test: a datagram socket and what came in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self._socket: socket.socket | None = None
        self.open()

    def open(self) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.bind(str(self.path))
        self.path.chmod(0o666)
        self._socket = made
        threading.Thread(target=self._read, args=(made,), daemon=True).start()

    def _read(self, from_socket: socket.socket) -> None:
        with from_socket:
            while line := from_socket.recv(65536):
                if line == b"close":
                    return
                self.lines.append(line.decode("ascii"))

    def close(self) -> None:
        """Go away as a stopped daemon does: socket closed, file gone."""
        if self._socket is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(b"close", str(self.path))
        until(lambda: self._socket.fileno() < 0, what="the syslog socket to close")
        self._socket = None
        self.path.unlink()

    def matching(self, pattern: str) -> list[str]:
        return [line for line in list(self.lines) if re.search(pattern, line)]

    def wait_for(self, pattern: str, seconds: float = SECONDS) -> str:
        return until(lambda: self.matching(pattern), seconds, f"the log line {pattern!r}")[-1]


class Daemon:
    """A running turnaway-fast in the foreground."""

    def __init__(
        self, process: subprocess.Popen[str], address: str, port: int, syslog: Syslog
    ) -> None:
        self.process = process
        self.pid = process.pid
        self.address = address
        self.port = port
        self.syslog = syslog

    def connect(self, address: str | None = None, timeout: float = SECONDS) -> socket.socket:
        return socket.create_connection((address or self.address, self.port), timeout)

    def banner(self, address: str | None = None) -> bytes:
        """The whole answer to one silent client, to the end of file."""
        with self.connect(address) as one:
            return read_all(one)

    def counters(self) -> dict[str, int]:
        """Every counter, over all listeners, by SIGUSR1 and the log."""
        time.sleep(0.1)  # a loop counts a moment after the client has its answer
        before = len(self.syslog.matching("counters: "))
        listeners = self.syslog.matching("started:")[-1].partition(", workers")[0].count(", ")
        self.process.send_signal(signal.SIGUSR1)
        until(
            lambda: len(self.syslog.matching("counters: ")) >= before + listeners,
            what="the counters",
        )
        totals: dict[str, int] = {}
        for line in self.syslog.matching("counters: ")[before:]:
            for name, count in re.findall(r"([A-Za-z_]+)=(\d+)", line):
                totals[name] = totals.get(name, 0) + int(count)
        return totals

    def settled(self, accepted: int = 0) -> dict[str, int]:
        """The counters, once at least `accepted` connections are counted and every one
        of them has ended somehow.

        A client sees its end of file before it is counted, and so may the next few,
        while a batch lasts.
        """

        def ended() -> dict[str, int] | None:
            counters = self.counters()
            total = counters.get("accepted", 0)
            told = sum(counters.get(name, 0) for name in OVER)
            return counters if total == told and total >= accepted else None

        return until(ended, 30, "every connection to be counted")  # type: ignore[return-value]

    def memory(self, field: str = "VmRSS") -> int:
        """KiB, from /proc/PID/status."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.M)[1])  # type: ignore[index]

    def pause(self) -> None:
        """SIGSTOP, and wait until every thread has stopped: clients may gather."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = list(Path(f"/proc/{self.pid}/task").glob("*/stat"))
        until(
            lambda: all(task.read_text().rpartition(") ")[2][0] in "Tt" for task in tasks),
            what="the threads to stop",
        )

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(SECONDS)


def read_all(one: socket.socket) -> bytes:
    """Everything up to the end of file, or to a reset.

    A reset after the last octet loses nothing (a client that talks late gets
    one); a reset before it shows as missing octets.
    """
    octets = b""
    with contextlib.suppress(ConnectionResetError):
        while more := one.recv(65536):
            octets += more
    return octets


def command(*arguments: str, program: Path | str = COMMAND) -> list[str]:
    return [str(program), *arguments]


@contextlib.contextmanager
def running(
    syslog: Syslog,
    *options: str,
    address: str = "127.0.0.1",
    port: int = 0,
    listeners: Sequence[str] = (),
    name: str = NAME,
    program: Path | str = COMMAND,
    wrapper: Sequence[str] = (),
    file: Path | None = None,
    **popen: object,
) -> Iterator[Daemon]:
    """turnaway-fast on one listener (or on `listeners`, or those of the configuration
    `file`), until the block ends.

    Foreground, without a pidfile, logging to `syslog`; `options` come last and
    so win.  `wrapper` is put before the command (unshare, strace, taskset).
    """
    port = port or free_port(address)
    place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    process = subprocess.Popen(
        [
            *wrapper,
            *command("-f", "--pidfile", "none", "--control", "none", program=program),
            *("--log", f"syslog:{syslog.path}"),
            *options,
            *(["-c", str(file)] if file else [LOCATION, *(listeners or [f"{place} {name}"])]),
        ],
        stderr=subprocess.PIPE,
        text=True,
        **popen,  # type: ignore[call-overload]
    )
    begun = len(syslog.matching("started:"))
    try:
        until(
            lambda: len(syslog.matching("started:")) > begun or process.poll() is not None,
            what="the start",
        )
        if process.poll() is not None:
            pytest.fail(f"turnaway-fast ended with {process.returncode}: {process.stderr.read()}")
        yield Daemon(process, address, port, syslog)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stderr.close()
