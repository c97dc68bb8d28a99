"""What ends at once: wrong command lines, --check and --show-banner.

Promised: all mistakes are told in one go, each naming its argument, and nothing
is bound, written or detached by any of these.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from running import COMMAND, LOCATION, NAME, Syslog, free_port, need, running

from tests.system.background import answer, marked, started


def run(*arguments: str, wrapper: list[str] | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*(wrapper or []), str(COMMAND), *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=10,
    )


def test_all_mistakes_of_a_line_in_one_go(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    port = free_port()
    arguments = [
        *["--workers", "0", "--code", "220", "--persona", "nasty", "--log", "paper"],
        *["--log-connections", "some", "--pidfile", str(pidfile), "--interval", "never"],
        *["Som\tecity", f"127.0.0.1:{port} ok.example", "256.0.0.1 a.example"],
        *["127.0.0.1:70000 b.example", "[::1]:x c.example", "127.0.0.2 bad_-name-"],
        *["[127.0.0.3] d.example", "127.0.0.4"],
    ]
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))  # a start that gets as far as bind says 69
        done = run(*arguments)
    said = done.stderr.decode()
    assert done.returncode == os.EX_USAGE
    assert done.stdout == b""
    assert "Traceback" not in said
    for words in (
        *["--workers", "--code", "--persona", "--log:", "--log-connections", "--interval"],
        *["LOCATION", "256.0.0.1", "70000", "'x'", "bad_-name-", "127.0.0.3", "127.0.0.4"],
    ):
        assert words in said, words
    assert all(line.startswith("turnaway-fast: ") for line in said.splitlines())
    assert not pidfile.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [LOCATION],
        [LOCATION, "127.0.0.1:0 a.example"],
        [LOCATION, "::1:25:x a.example"],
        [LOCATION, "mx.example.com:25 a.example"],
        [LOCATION, "127.0.0.1:4025 a.example", "127.0.0.1:4025 b.example"],
        ["", "127.0.0.1 a.example"],
        ["Some\r\ncity", "127.0.0.1 a.example"],
        [LOCATION, "127.0.0.1 a.example\r\nRCPT"],
        [LOCATION, "127.0.0.1", "b\xe9.example"],
        ["--no-such-option", LOCATION, "127.0.0.1 a.example"],
        [LOCATION, "127.0.0.1 a.example", "--workers"],
        ["--pidfile"],
        ["-f", "-f", "--log", "syslog:relative/path", LOCATION, "127.0.0.1 a.example"],
        ["--log-connections", "capped:0", LOCATION, "127.0.0.1 a.example"],
        ["--chroot", "/no/such/folder", LOCATION, "127.0.0.1 a.example"],
    ],
)
def test_wrong_lines_are_usage(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode in (os.EX_USAGE, os.EX_NOPERM)
    assert done.returncode == os.EX_USAGE or "--chroot" in arguments
    assert done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


def test_octets_that_are_no_text_are_refused_in_words() -> None:
    """The shell may hand over anything; what is printed of it is printable."""
    done = subprocess.run(
        [os.fsencode(COMMAND), b"Some\xff\xfecity", b"127.0.0.1 a\x1b[2J.example", b"-p\xff"],
        capture_output=True,
        timeout=10,
    )
    assert done.returncode == os.EX_USAGE
    assert b"Traceback" not in done.stderr
    assert all(octet == 10 or 32 <= octet < 127 for octet in done.stderr), done.stderr


def test_mistake_in_the_background_detaches_nothing(tmp_path: Path) -> None:
    with started(tmp_path / "pid", "--workers", "many") as start:
        assert start.status == os.EX_USAGE
        assert "--workers: expected 1..64 or auto, got 'many'" in start.stderr
        assert not start.pidfile.exists()
        assert marked(start.mark) == []


@pytest.mark.parametrize("place", ["[::ffff:127.0.0.1]:4025", "[::ffff:192.0.2.1]:25"])
def test_mapped_address_is_a_mistake_of_the_line(place: str) -> None:
    """An IPv6 listener is IPv6 only, so this can never work: say how it is written."""
    done = run("-f", "--log", "none", "--pidfile", "none", LOCATION, f"{place} {NAME}")
    assert done.returncode == os.EX_USAGE, done.stderr
    assert b"Invalid argument" not in done.stderr


@pytest.mark.parametrize("option", ["-t", "--check"])
def test_check_binds_and_writes_nothing(tmp_path: Path, option: str) -> None:
    pidfile = tmp_path / "pid"
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]  # taken, and the check does not mind
        done = run(option, "--pidfile", str(pidfile), LOCATION, f"127.0.0.1:{port}", NAME)
    assert done.returncode == 0, done.stderr
    assert f"127.0.0.1:{port} {NAME}".encode() in done.stdout
    assert not pidfile.exists()


def test_check_says_by_its_status_what_is_wrong() -> None:
    assert run("-t", LOCATION, "127.0.0.1 -bad-").returncode == os.EX_USAGE
    long_name = ".".join(["a" * 60] * 4)
    long_place = "x" * 480
    done = run("-t", long_place, f"127.0.0.1 {long_name}")
    assert done.returncode == os.EX_DATAERR
    assert re.search(rb"mail\.toml:\d+: ", done.stderr)
    assert done.stdout == b""


def undated(banner: bytes) -> bytes:
    return re.sub(rb"\d\d:\d\d:\d\d", b"TIME", banner)


@pytest.mark.parametrize("persona", ["mail", "blocked", "spammer", "abused", "worm"])
@pytest.mark.parametrize("form", [[], ["--single-line"], ["--code", "450"]])
def test_shown_banner_is_what_the_socket_sends(
    syslog: Syslog, persona: str, form: list[str]
) -> None:
    options = ["-p", persona, *form]
    with running(syslog, *options) as daemon:
        sent = daemon.banner()
        done = run("--show-banner", *options, LOCATION, f"127.0.0.1:{daemon.port} {NAME}")
    assert done.returncode == 0, done.stderr
    assert undated(done.stdout) == undated(sent)
    assert done.stdout.endswith(b"\r\n")
    assert len(sent) <= 1000
    if form == ["--single-line"]:
        assert sent.count(b"\r\n") == 1
    if "--code" in form:
        assert all(line.startswith(b"450") for line in sent.splitlines())


def test_shown_banner_of_several_listeners() -> None:
    done = run("--show-banner", LOCATION, "127.0.0.1 a.example", "[::1]:587", "b.example")
    assert done.returncode == 0
    assert re.search(rb"^421-a\.example .*^421-b\.example ", done.stdout, re.M | re.S)
    assert done.stdout.count(b"\r\n") == 8
    assert b"127.0.0.1:25 a.example: " in done.stderr
    assert b"[::1]:587 b.example: " in done.stderr


@pytest.mark.parametrize("output", ["/dev/full", "&-"])
def test_shown_banner_that_cannot_be_shown(output: str) -> None:
    """A full disk is a status and words, not a traceback; a closed output is nobody's loss."""
    wrapper = ["sh", "-c", f'exec "$0" "$@" >{output}']
    done = run("--show-banner", LOCATION, "127.0.0.1 a.example", wrapper=wrapper)
    assert (done.returncode != 0) == (output == "/dev/full")
    assert b"Traceback" not in done.stderr


def test_show_banner_needs_no_rights_and_binds_nothing() -> None:
    port = free_port()
    assert run("--show-banner", LOCATION, f"127.0.0.1:{port} a.example").returncode == 0
    with pytest.raises(ConnectionRefusedError):
        answer(port)


@pytest.mark.parametrize("option", ["-V", "--version", "-h", "--help"])
def test_version_and_help_need_nothing_else(option: str) -> None:
    done = run(option)
    assert done.returncode == 0
    assert b"turnaway" in done.stdout
    assert done.stderr == b""


def test_log_to_stderr_in_the_background_is_told(tmp_path: Path) -> None:
    """A daemon in the background has no standard error: every line would be lost in silence."""
    with started(tmp_path / "pid", log="stderr") as start:
        assert start.status == os.EX_USAGE
        assert "--log" in start.stderr


def test_descriptor_limits_at_start_are_told_in_words(tmp_path: Path) -> None:
    """Whatever the limit: it runs, or says 71 and why; never a traceback, and nothing is left."""
    need("prlimit")
    ran = 0
    for limit in range(6, 34):
        wrapper = ["prlimit", f"--nofile={limit}"]
        pidfile = tmp_path / f"pid{limit}"
        with started(pidfile, "-w", "2", wrapper=wrapper) as start:
            assert "Traceback" not in start.stderr, (limit, start.stderr)
            assert start.status in (0, os.EX_OSERR, os.EX_CANTCREAT), (limit, start.stderr)
            if start.status == 0:
                ran += 1
                assert answer(start.port)
                start.end()
            start.gone()
            # With fewer than twelve the janitor's shell cannot read the file.
            assert limit < 12 or not pidfile.exists()
    assert ran > 0
