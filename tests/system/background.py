"""Daemons in the background, and what they leave behind.

Owns: starting the installed command without `-f`, finding every process that
came of one start (they carry a mark in their environment), and ending them by
pid.  What happens in the foreground is in tests/running.py.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from running import COMMAND, LOCATION, NAME, SECONDS, Syslog, free_port, need, read_all, until

MARK = "TURNAWAY_TEST_MARK"
WHOLE = re.compile(rb"(?:421-[ -~]+\r\n){3}421 [ -~]+\r\n")
SOON = 2.0  # for what the issue promises within a second


class Start:
    """One run of the command in the background: what the parent said, and the daemon."""

    def __init__(
        self, mark: str, run: subprocess.CompletedProcess[str], pidfile: Path, port: int
    ) -> None:
        self.mark = mark
        self.status = run.returncode
        self.stdout = run.stdout
        self.stderr = run.stderr
        self.pidfile = pidfile
        self.port = port

    @property
    def pid(self) -> int:
        return int(self.pidfile.read_text())

    def processes(self) -> list[int]:
        return marked(self.mark)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End the daemon, and wait until nothing of it is left."""
        os.kill(self.pid, number)
        self.gone()

    def gone(self) -> None:
        until(lambda: not self.processes(), what=f"the end of {self.processes()}")


def marked(mark: str) -> list[int]:
    """Every living process that was started with this mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return sorted(found)


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    try:
        return status_of(pid)["State"][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def status_of(pid: int, task: int | None = None) -> dict[str, str]:
    """/proc/PID/status, or that of one thread, by field."""
    path = f"/proc/{pid}/status" if task is None else f"/proc/{pid}/task/{task}/status"
    lines = Path(path).read_text().splitlines()
    return {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines}


def threads(pid: int) -> list[int]:
    return sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())


@contextlib.contextmanager
def started(
    pidfile: Path | str | None,
    *options: str,
    port: int = 0,
    place: str = "",
    program: Path | str = COMMAND,
    wrapper: Sequence[str] = (),
    log: str = "none",
    mark: str = "",
    env: dict[str, str] | None = None,
    **run: object,
) -> Iterator[Start]:
    """The command in the background; whatever is left of it at the end is ended.

    `pidfile` None leaves the choice to the program (and the caller says where
    to look, by setting `pidfile` of what is yielded).
    """
    mark = mark or uuid.uuid4().hex
    port = port or free_port()
    said = ["--control", "none", *(["--pidfile", str(pidfile)] if pidfile else [])]
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    options_of_run: dict[str, object] = {"stdin": subprocess.DEVNULL, "capture_output": True}
    options_of_run.update(run)
    try:
        done = subprocess.run(
            [
                *[*wrapper, str(program), *said, "--log", log, *options, LOCATION],
                *[place or f"127.0.0.1:{port}", NAME],
            ],
            env={**environment, **(env or {}), MARK: mark},
            text=True,
            timeout=SECONDS,
            **options_of_run,  # type: ignore[call-overload]
        )
        yield Start(mark, done, Path(str(pidfile)), port)
    finally:
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def answer(port: int, address: str = "127.0.0.1", source: str = "") -> bytes:
    """What one silent client is told."""
    here = (source, 0) if source else None
    with socket.create_connection((address, port), SECONDS, source_address=here) as one:
        return read_all(one)


def as_nobody() -> list[str]:
    """A wrapper by which an ordinary user runs the command."""
    need("setpriv")
    entry = pwd.getpwnam("nobody")
    wrapper = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    if subprocess.run([*wrapper, str(COMMAND), "-V"], capture_output=True).returncode != 0:
        pytest.skip("this installation cannot be read by an ordinary user")
    return wrapper


@contextlib.contextmanager
def load(port: int, clients: int = 4, most: int = 20_000) -> Iterator[list[int]]:
    """Clients that come again and again, at most `most` times; the list counts whole banners."""
    whole = [0] * clients
    over = threading.Event()

    def come(number: int) -> None:
        for _ in range(most // clients):
            if over.is_set():
                return
            try:
                whole[number] += WHOLE.fullmatch(answer(port)) is not None
            except OSError:
                if over.wait(0.01):
                    return

    ones = [threading.Thread(target=come, args=(number,), daemon=True) for number in range(clients)]
    for one in ones:
        one.start()
    try:
        yield whole
    finally:
        over.set()
        for one in ones:
            one.join(SECONDS)


def connection_lines(syslog: Syslog) -> list[str]:
    return syslog.matching(r"\]: turned away ")
