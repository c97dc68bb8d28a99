"""The log as JSON, and the priorities of the systemd journal.

Hostile here: a disk that is full, a file that is a name of another file, a
rotation that leaves nothing to write to.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import (
    LOCATION,
    NAME,
    SECONDS,
    command,
    free_port,
    need,
    need_root,
    until,
)

from tests.system.background import answer

FIELDS = [
    "ts", "event", "from", "from_port", "to", "to_port",
    "as", "persona", "proto", "code", "outcome",
]  # fmt: skip


class Lines:
    """A file of JSON lines that a daemon writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        text = self.path.read_text()
        # The last line may be on its way.
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.all() if one["event"] == event]

    def wait_for(self, event: str, number: int = 1) -> list[dict[str, Any]]:
        return until(
            lambda: found if len(found := self.of(event)) >= number else None,
            what=f"{number} of {event}",
        )


@contextlib.contextmanager
def logging(
    target: str,
    *options: str,
    address: str = "127.0.0.1",
    wrapper: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    stderr: Any = subprocess.PIPE,
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """turnaway-fast with --log TARGET; its process and port."""
    port = free_port(address)
    place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    process = subprocess.Popen(
        [
            *wrapper,
            *command("-f", "--pidfile", "none", "--control", "none", "--log", target),
            *("--log-connections", "all", *options, LOCATION, f"{place} {NAME}"),
        ],
        stderr=stderr,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        until(lambda: process.poll() is not None or answers(address, port), what="the start")
        assert process.poll() is None, process.stderr and process.stderr.read()
        yield process, port
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(SECONDS)


def answers(address: str, port: int) -> bool:
    try:
        return bool(answer(port, address))
    except OSError:
        return False


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    """A file that is not there yet, where root writes and everybody looks."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    return Lines(tmp_path / "turnaway.json")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_fields_are_those_of_the_text(lines: Lines, address: str) -> None:
    with logging(f"json:{lines.path}", "-p", "blocked", address=address) as (process, port):
        one = lines.wait_for("turned away")[0]
        assert list(one) == FIELDS
        moment = datetime.datetime.fromisoformat(one["ts"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["ts"])
        age = datetime.datetime.now(datetime.UTC) - moment
        assert abs(age.total_seconds()) < 10
        assert one["from"] == one["to"] == address
        assert 0 < one["from_port"] < 65536
        assert one["to_port"] == port
        assert (one["as"], one["persona"], one["proto"]) == (NAME, "blocked", "smtp")
        assert (one["code"], one["outcome"]) == (554, "sent")
        process.send_signal(signal.SIGUSR1)
        counters = lines.wait_for("counters")[0]
        assert list(counters) == ["ts", "event", "severity", "program", "pid", "message"]
        assert counters["pid"] == process.pid
    assert [one["severity"] for one in lines.of("started") + lines.of("stopped")] == ["notice"] * 2
    assert lines.path.stat().st_mode & 0o777 == 0o640


def test_a_protocol_without_a_code(lines: Lines) -> None:
    with logging(f"json:{lines.path}", "--protocol", "text:pop3"):
        one = lines.wait_for("turned away")[0]
        assert (one["proto"], one["code"]) == ("pop3", None)


def test_every_connection_has_its_line(lines: Lines) -> None:
    with logging(f"json:{lines.path}") as (_, port):
        begun = len(lines.wait_for("turned away"))
        for _ in range(500):
            answer(port)
        lines.wait_for("turned away", begun + 500)
    assert len(lines.of("turned away")) == begun + 500


@pytest.mark.parametrize("target", ["json", "json:-"])
def test_on_standard_error(tmp_path: Path, target: str) -> None:
    lines = Lines(tmp_path / "stderr")
    with lines.path.open("w") as file, logging(target, stderr=file):
        lines.wait_for("turned away")
    assert [one["event"] for one in lines.all()][0::2]
    assert lines.of("stopped")


def test_the_background_has_no_standard_error() -> None:
    ended = subprocess.run(
        [*command("--log", "json"), LOCATION, f"127.0.0.1:{free_port()} {NAME}"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ended.returncode == 64
    assert "--log json: a daemon in the background has no standard error" in ended.stderr


# --- rotation -----------------------------------------------------------------


def rotate(lines: Lines, process: subprocess.Popen[str], create: bool) -> Lines:
    """As logrotate does; returns the old file."""
    status = lines.path.stat()
    old = Lines(lines.path.with_suffix(".1"))
    lines.path.rename(old.path)
    if create:
        lines.path.touch(0o640)
        os.chown(lines.path, status.st_uid, status.st_gid)
    process.send_signal(signal.SIGHUP)
    return old


def test_reopened_after_a_rotation(lines: Lines) -> None:
    with logging(f"json:{lines.path}") as (process, port):
        lines.wait_for("turned away")
        old = rotate(lines, process, create=True)
        lines.wait_for("sighup")
        before = len(old.all())
        answer(port)
        lines.wait_for("turned away")
        assert len(old.all()) == before


def test_reopened_beyond_a_chroot(lines: Lines, tmp_path: Path) -> None:
    need_root()
    empty = tmp_path / "empty"
    empty.mkdir()
    with logging(f"json:{lines.path}", "--chroot", str(empty)) as (process, _):
        lines.wait_for("turned away")
        rotate(lines, process, create=True)
        lines.wait_for("sighup")


def test_without_a_new_file_the_old_is_kept_and_that_is_told(lines: Lines) -> None:
    need_root()  # else we could make a new one
    with logging(f"json:{lines.path}") as (process, port):
        lines.wait_for("turned away")
        old = rotate(lines, process, create=False)
        said = old.wait_for("log")[0]
        assert said["severity"] == "warning"
        assert "Permission denied; the old file is kept" in said["message"]
        begun = len(old.of("turned away"))
        answer(port)
        old.wait_for("turned away", begun + 1)


# --- what may go wrong --------------------------------------------------------


def test_a_full_disk_costs_lines_and_they_are_told(lines: Lines) -> None:
    """RLIMIT_FSIZE stands for the disk: the write ends within a line."""
    need("prlimit")
    wrapper = ("prlimit", "--fsize=3000", "--")
    with logging(f"json:{lines.path}", wrapper=wrapper) as (_, port):
        lines.wait_for("turned away")
        for _ in range(60):
            assert answer(port)
        until(lambda: lines.path.stat().st_size > 2600, what="the disk to fill")
        kept = len(lines.of("turned away"))
        assert 0 < kept < 20  # and each line parses
        os.truncate(lines.path, 0)
        assert answer(port)
        said = lines.wait_for("log")[0]
        lost = int(re.search(r"(\d+) lines were lost", said["message"])[1])  # type: ignore[index]
        until(lambda: kept + lost + len(lines.of("turned away")) >= 61, what="all written or told")


def test_a_full_device_never_stops_the_answers() -> None:
    with logging("json:/dev/full") as (process, port):
        for _ in range(50):
            assert answer(port)
        process.send_signal(signal.SIGHUP)
        assert answer(port)


@pytest.mark.parametrize("kind", ["symbolic", "hard", "directory", "missing"])
def test_files_that_are_refused(lines: Lines, kind: str) -> None:
    """Whoever may write to the directory must not choose what root writes to."""
    other = lines.path.with_name("shadow")
    other.write_text("")
    path = lines.path
    if kind == "symbolic":
        path.symlink_to(other)
    elif kind == "hard":
        path.hardlink_to(other)
    elif kind == "directory":
        path.mkdir()
    else:
        path = path / "nowhere" / "x.json"
    ended = subprocess.run(
        [
            *command("-f", "--pidfile", "none", "--control", "none", "--log", f"json:{path}"),
            LOCATION,
            f"127.0.0.1:{free_port()} {NAME}",
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ended.returncode == 73
    assert f"--log json:{path}: cannot write there: " in ended.stderr
    assert other.read_text() == ""


# --- the journal of systemd ---------------------------------------------------


@pytest.mark.parametrize("target", ["stderr", "json"])
def test_priorities_when_the_journal_reads_standard_error(tmp_path: Path, target: str) -> None:
    path = tmp_path / "journal"
    with path.open("w") as file:
        status = os.fstat(file.fileno())
        env = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        with logging(target, stderr=file, env=env):
            until(lambda: "turned away" in path.read_text(), what="a line")
    text = path.read_text().splitlines()
    if target == "stderr":
        assert re.fullmatch(r"<5>started: version .*", text[0])
        assert any(re.match(r"<6>turned away from=\[127\.0\.0\.1\]:\d+ to=", one) for one in text)
    for one in text:
        assert re.match(r"<[3-6]>", one)
        if target == "json":
            json.loads(one[3:])


def test_no_priorities_for_anybody_else(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere"
    with path.open("w") as file, logging("stderr", stderr=file, env={"JOURNAL_STREAM": "1:2"}):
        until(lambda: "turned away" in path.read_text(), what="a line")
    assert re.match(r"turnaway-fast\[\d+\]: started: ", path.read_text())
