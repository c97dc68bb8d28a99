"""The control socket and turnawayctl, from outside: the real daemon, real clients, bad ones.

Started as root the daemon becomes nobody; some tests are a user's from the start.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pty
import pwd
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from running import (
    COMMAND,
    SECONDS,
    Daemon,
    Syslog,
    free_port,
    need_root,
    read_all,
    running,
    until,
)

from tests.system.background import WHOLE, as_nobody, load

CTL = COMMAND.with_name("turnawayctl")


def ctl(door: Path, *arguments: str, **run: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CTL), "-s", str(door), *arguments],
        capture_output=True,
        text=True,
        timeout=3 * SECONDS,
        **run,
    )


def connected(door: Path) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.settimeout(SECONDS)
    one.connect(str(door))
    return one


def told(door: Path, octets: bytes) -> list[dict[str, Any]]:
    """What is answered to these octets, up to the end."""
    with connected(door) as one:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            one.sendall(octets)
        return [json.loads(line) for line in read_all(one).splitlines()]


def ask(door: Path, **request: Any) -> dict[str, Any]:
    return told(door, json.dumps({"v": 1, **request}).encode() + b"\n")[0]


@pytest.fixture
def door(tmp_path: Path) -> Path:
    return tmp_path / "ctl"


@pytest.fixture
def controlled(syslog: Syslog, door: Path) -> Iterator[Daemon]:
    with running(syslog, "--control", str(door), "--log-connections", "all") as one:
        yield one


@contextlib.contextmanager
def configured(
    syslog: Syslog, door: Path, *options: str, count: int = 2, wrapper: Sequence[str] = ()
) -> Iterator[tuple[Path, list[int], subprocess.Popen[bytes]]]:
    """The daemon with a configuration file and `count` listeners: mx1, mx2, ..."""
    ports = [free_port() for _ in range(count)]
    file = door.parent / "turnaway.toml"
    text = 'location = "Somecity, Earth"\n'
    for number, port in enumerate(ports, 1):
        text += f'[[listener]]\naddress = "127.0.0.1:{port}"\nname = "mx{number}.example.com"\n'
    file.write_text(text)
    begun = len(syslog.matching("started:"))
    process = subprocess.Popen(
        [
            *[*wrapper, str(COMMAND), "-f", "--pidfile", "none", "--control", str(door)],
            *["--log", f"syslog:{syslog.path}", "-c", str(file), *options],
        ]
    )
    try:
        until(lambda: len(syslog.matching("started:")) > begun, what="the start")
        yield file, ports, process
    finally:
        process.terminate()
        process.wait(SECONDS)


def banner(port: int, source: str = "127.0.0.1") -> bytes:
    with socket.create_connection(("127.0.0.1", port), SECONDS, source_address=(source, 0)) as one:
        return read_all(one)


# --- the file, and who may -----------------------------------------------------


def test_file_is_the_users_own_and_goes(controlled: Daemon, door: Path) -> None:
    found = door.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    assert found.st_uid == user
    assert controlled.stop() == 0


def test_janitor_removes_the_file_of_a_daemon_that_was_root(
    syslog: Syslog, door: Path, tmp_path: Path
) -> None:
    need_root()
    with running(syslog, "--control", str(door), "--pidfile", str(tmp_path / "pid")) as daemon:
        assert door.exists()
        assert daemon.stop() == 0
    until(lambda: not door.exists(), what="the file to go")


@contextlib.contextmanager
def being(uid: int) -> Iterator[None]:
    """This process, for a moment, as somebody else: so the socket's peer sees it."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_foreign_user_is_refused(controlled: Daemon, door: Path) -> None:
    need_root()
    with being(12345), pytest.raises(PermissionError):
        connected(door)
    door.chmod(0o666)  # so that only the peer's credentials stand between
    with being(12345):
        answers = told(door, b'{"v":1,"do":"status"}\n')
    assert [one["status"] for one in answers] == [os.EX_NOPERM]
    assert answers[0]["reasons"] == ["only root and the daemon's user may ask"]
    with being(pwd.getpwnam("nobody").pw_uid):
        assert ask(door, do="status")["ok"] is True


def test_daemon_of_an_ordinary_user(syslog: Syslog, door: Path) -> None:
    need_root()
    door = door.parent / "run" / "ctl"
    door.parent.mkdir()
    os.chown(door.parent, pwd.getpwnam("nobody").pw_uid, -1)
    with running(syslog, "--control", str(door), wrapper=as_nobody()) as daemon:
        assert ctl(door, "status").returncode == 0  # root may always
        done = subprocess.run(
            [*as_nobody(), str(CTL), "-s", str(door), "status"], capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert daemon.stop() == 0
    assert not door.exists()


def test_killed_daemon_never_blocks_the_next(syslog: Syslog, door: Path) -> None:
    with running(syslog, "--control", str(door)) as daemon:
        daemon.process.kill()
        daemon.process.wait()
    assert door.exists()
    assert ctl(door, "status").returncode == os.EX_UNAVAILABLE
    with running(syslog, "--control", str(door)) as daemon:
        assert ask(door, do="status")["pid"] == daemon.pid


def start_that_fails(door: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [
            *[str(COMMAND), "-f", "--pidfile", "none", "--control", str(door), "--log", "none"],
            *["Earth", f"127.0.0.1:{free_port()}", "mx.example.com"],
        ],
        capture_output=True,
        timeout=SECONDS,
    )


def test_socket_of_a_living_daemon_is_left_alone(controlled: Daemon, door: Path) -> None:
    done = start_that_fails(door)
    assert done.returncode == os.EX_TEMPFAIL
    assert b"another daemon has this control socket" in done.stderr
    assert ask(door, do="status")["pid"] == controlled.pid


def test_file_that_is_no_socket_is_left_alone(door: Path) -> None:
    door.write_text("precious")
    done = start_that_fails(door)
    assert done.returncode == os.EX_CANTCREAT
    assert door.read_text() == "precious"


@pytest.mark.parametrize("path", ["missing/ctl", "x" * 120])
def test_place_where_no_socket_can_be(tmp_path: Path, path: str) -> None:
    done = start_that_fails(tmp_path / path)
    assert done.returncode == os.EX_CANTCREAT
    assert b"see --control PATH|none" in done.stderr


# --- hostile clients -------------------------------------------------------------


HOSTILE = [
    b"GET / HTTP/1.0\r\n\r\n",
    b"\x00\xff\xfe\n",
    b"\n",
    b"[]\n",
    b"null\n",
    b"[" * 4000 + b"\n",
    b"1" * 4090 + b"\n",
    b'{"v":1}\n',
    b'{"v":2,"do":"status"}\n',
    b'{"v":true,"do":"status"}\n',
    b'{"v":1,"do":"shutdown"}\n',
    b'{"v":1,"do":["status"]}\n',
    b'{"v":1,"do":"status","more":1}\n',
    b'{"v":1,"do":"pause"}\n',
    b'{"v":1,"do":"pause","listener":7}\n',
    b'{"v":1,"do":"pause","listener":"\\u001b[2Jsecret"}\n',
    b'{"v":1,"do":"tail","source":"10.0.0.0/33"}\n',
    b'{"v":1,"do":"tail","source":"1.2.3.4\\u0000"}\n',
    b'{"v":1,"do":"tail","source":"\\ud800"}\n',
    b'{"v":1,"do":"tail","persona":"secret"}\n',
    b'{"v":1,"do":"loglevel","how":"secret"}\n',
    b"x" * 4097,
    b"x" * 100_000 + b"\n",
]


@pytest.mark.parametrize("octets", HOSTILE, ids=lambda octets: repr(octets[:24]))
def test_hostile_input_gets_one_clear_error(controlled: Daemon, door: Path, octets: bytes) -> None:
    answers = told(door, octets)
    assert len(answers) == 1
    assert answers[0]["ok"] is False
    assert answers[0]["status"] == os.EX_USAGE
    assert len(answers[0]["reasons"]) == 1
    assert "secret" not in answers[0]["reasons"][0]
    assert ask(door, do="status")["ok"] is True
    assert controlled.process.poll() is None


def test_half_a_line(controlled: Daemon, door: Path) -> None:
    """In two pieces it is one; without its end it is a mistake; nothing comes: time is up."""
    with connected(door) as one:
        one.sendall(b'{"v":1,"do":')
        time.sleep(0.05)
        one.sendall(b'"status"}\n')
        assert json.loads(read_all(one))["ok"] is True
    with connected(door) as one:
        one.sendall(b'{"v":1,"do":')
        one.shutdown(socket.SHUT_WR)
        assert "before its newline" in json.loads(read_all(one))["reasons"][0]
    with connected(door) as one:
        one.sendall(b'{"v":1,"do":')
        assert "within 5 s" in json.loads(read_all(one))["reasons"][0]


def test_hundred_at_once(controlled: Daemon, door: Path) -> None:
    """Those who say nothing have sixteen places and five seconds; whoever asks asks again."""
    ones = [connected(door) for _ in range(100)]
    assert WHOLE.fullmatch(controlled.banner())
    refused = 0
    for one in ones:
        readable, _, _ = select.select([one], [], [], 0.05)
        if readable:
            assert json.loads(read_all(one))["status"] == os.EX_TEMPFAIL
            refused += 1
    assert refused == 84
    for one in ones:
        one.close()
    until(lambda: ask(door, do="status")["ok"], what="a place")
    with concurrent.futures.ThreadPoolExecutor(24) as many:
        done = list(many.map(lambda _: ctl(door, "status").returncode, range(48)))
    assert done == [0] * 48
    assert len(os.listdir(f"/proc/{controlled.pid}/fd")) < 40


def test_client_that_never_reads_slows_nobody(controlled: Daemon, door: Path) -> None:
    """20,000 connections are turned away while a tail does not read; then it is told
    how many records it has lost."""
    with connected(door) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.sendall(b'{"v":1,"do":"tail"}\n')
        before = controlled.memory()
        with load(controlled.port, clients=8, most=20_000) as whole:
            until(lambda: sum(whole) >= 20_000, 60, "20,000 answers")
        assert controlled.memory() - before < 4096
        assert ask(door, do="stats")["total"]["accepted"] == 20_000
        time.sleep(1.2)
        one.settimeout(2)
        lines = b""
        with contextlib.suppress(TimeoutError):
            while more := one.recv(1 << 16):
                lines += more
        messages = [json.loads(line) for line in lines.splitlines()[1:]]
        records = sum("record" in one for one in messages)
        assert records + sum(one.get("lost", 0) for one in messages) == 20_000
        assert 0 < records < 20_000


def test_tails_leave_places_to_others(controlled: Daemon, door: Path) -> None:
    ones = [connected(door) for _ in range(8)]
    for one in ones:
        one.sendall(b'{"v":1,"do":"tail"}\n')
        assert one.recv(100) == b'{"v":1,"ok":true}\n'
    assert ask(door, do="tail")["status"] == os.EX_TEMPFAIL
    assert ctl(door, "status").returncode == 0
    for one in ones:
        one.close()


# --- commands ---------------------------------------------------------------------


def test_status_and_stats(controlled: Daemon, door: Path) -> None:
    for _ in range(3):
        controlled.banner()
    done = ctl(door, "status")
    assert done.returncode == 0
    assert f"pid {controlled.pid}, user " in done.stdout
    assert re.search(
        rf"^127\.0\.0\.1:{controlled.port} +mx\.example\.com +mail +smtp", done.stdout, re.M
    )
    until(lambda: ask(door, do="stats")["total"]["sent"] == 3)
    counts = json.loads(ctl(door, "stats", "--json").stdout)
    assert counts["total"]["accepted"] == 3
    assert counts["listeners"][0]["counters"]["accepted"] == 3
    assert re.search(r"^accepted +3 +3$", ctl(door, "stats").stdout, re.M)


def test_stats_outlive_reloads(syslog: Syslog, door: Path) -> None:
    with configured(syslog, door) as (_, ports, _):
        for _ in range(3):
            banner(ports[0])
            banner(ports[1])
            assert ctl(door, "reload").returncode == 0
        counts = ask(door, do="stats")
        assert [one["counters"]["accepted"] for one in counts["listeners"]] == [3, 3]
        assert counts["total"]["accepted"] == 6


def test_reload_waits_and_tells(syslog: Syslog, door: Path) -> None:
    with configured(syslog, door) as (file, ports, _):
        good = file.read_text()
        file.write_text(good.replace("mx1", "other"))
        assert ctl(door, "reload").stdout == "reloaded\n"
        assert banner(ports[0]).startswith(b"421-other.example.com ")
        file.write_text(good + 'port = "25x"\nclsoe = "now"\n')
        done = ctl(door, "reload")
        assert done.returncode == os.EX_CONFIG
        assert f"turnawayctl: {file}:" in done.stderr
        assert "did you mean close?" in done.stderr
        assert "nothing was changed" in done.stderr
        assert banner(ports[0]).startswith(b"421-other.example.com ")
        assert "REFUSED" in ctl(door, "status").stdout


def test_reload_without_a_file(controlled: Daemon, door: Path) -> None:
    done = ctl(door, "reload")
    assert done.returncode == os.EX_CONFIG
    assert "there is no configuration file" in done.stderr


def test_lookup(syslog: Syslog, door: Path) -> None:
    """Which list, by which line, and the words of the list; as it was loaded."""
    drop = door.parent / "drop.txt"
    drop.write_text("203.0.113.0/24\n2001:db8::/32\n")
    with configured(syslog, door) as (file, ports, _):
        places = ", ".join(f"127.0.0.1:{port}" for port in ports)
        assert ctl(door, "lookup", "203.0.113.7").stdout.startswith("203.0.113.7 is on no list\n")
        file.write_text(
            file.read_text().replace("mx2", "mx1")
            + '[[list]]\nname = "drop"\nfiles = ["drop.txt"]\npersona = "own"\n'
            + '[[list]]\nname = "wanted"\nfiles = ["wanted.txt"]\nallow = true\n'
            + '[personas.own]\ncode = 554\nclose = "now"\nsingle = "no"\n'
            + 'lines = ["{name}: {client} is on {list}.", "Go."]\n'
        )
        (door.parent / "wanted.txt").write_text("# ours\n203.0.113.9\n")
        assert ctl(door, "reload").returncode == 0
        drop.write_text("what is not loaded does not count\n")
        for address in ("203.0.113.7", "::ffff:203.0.113.7"):
            assert ctl(door, "lookup", address).stdout == (
                f"203.0.113.7 is on list drop: {drop}:1\n"
                f"{places} mx1.example.com as own, smtp 554:\n"
                "    554-mx1.example.com: 203.0.113.7 is on drop.\n"
                "    554 Go.\n"
            )
        assert ctl(door, "lookup", "203.0.113.9").stdout == (
            f"203.0.113.9 is on allow list wanted: {door.parent}/wanted.txt:2\n"
            "It is wanted, and is told nothing; a connection from it was diverted by mistake.\n"
        )
        said = ctl(door, "lookup", "198.51.100.1").stdout
        assert said.startswith(f"198.51.100.1 is on no list\n{places} mx1.example.com as mail, ")
        assert "    421 Your mail software MAY be broken." in said
        assert ctl(door, "lookup", "2001:DB8:0:0::1").stdout == (
            f"2001:db8::1 is on list drop: {drop}:2\nNo listener takes IPv6.\n"
        )
        for wrong in ("203.0.113.0/24", "mx.example.com", "fe80::1%lo", "\x1b"):
            done = ctl(door, "lookup", wrong)
            assert done.returncode == os.EX_USAGE
            assert done.stderr == "turnawayctl: address: expected an IPv4 or IPv6 address\n"
        assert ask(door, do="lookup", address=5)["ok"] is False
        assert ask(door, do="lookup")["status"] == os.EX_USAGE


def test_lookup_of_what_is_no_text(syslog: Syslog, door: Path) -> None:
    with running(syslog, "--control", str(door), "--protocol", "tls") as one:
        assert ctl(door, "lookup", "203.0.113.7").stdout == (
            f"203.0.113.7 is on no list\n127.0.0.1:{one.port} mx.example.com as mail, tls 49:\n"
        )


def test_paused_listener_keeps_its_queue(syslog: Syslog, door: Path) -> None:
    with configured(syslog, door) as (_, ports, _):
        assert ctl(door, "pause", "mx1.example.com").stdout == f"paused 127.0.0.1:{ports[0]}\n"
        ones = [socket.create_connection(("127.0.0.1", ports[0]), SECONDS) for _ in range(10)]
        assert WHOLE.fullmatch(banner(ports[1]))
        assert select.select(ones, [], [], 0.3)[0] == []
        assert ctl(door, "resume", f"127.0.0.1:{ports[0]}").returncode == 0
        for one in ones:
            with one:
                assert WHOLE.fullmatch(read_all(one))
        syslog.wait_for(rf"control: pause 127\.0\.0\.1:{ports[0]} \(uid {os.getuid()}\)")
        assert ctl(door, "pause", "nowhere").returncode == os.EX_USAGE


def test_pause_outlives_a_reload(syslog: Syslog, door: Path) -> None:
    with configured(syslog, door) as (file, ports, _):
        assert ctl(door, "pause", "mx1.example.com").returncode == 0
        ones = [socket.create_connection(("127.0.0.1", ports[0]), SECONDS) for _ in range(10)]
        file.write_text(file.read_text().replace("mx2", "other"))
        assert ctl(door, "reload").returncode == 0
        assert banner(ports[1]).startswith(b"421-other.example.com ")
        assert [one["paused"] for one in ask(door, do="status")["listeners"]] == [True, False]
        assert select.select(ones, [], [], 0.3)[0] == []
        assert ctl(door, "resume", "mx1.example.com").returncode == 0
        for one in ones:
            with one:
                assert WHOLE.fullmatch(read_all(one))


def test_loglevel_until_a_reload(syslog: Syslog, door: Path) -> None:
    with configured(syslog, door) as (_, ports, _):
        assert ctl(door, "loglevel").stdout == "capped:20\n"
        assert ctl(door, "loglevel", "none").stdout == "none\n"
        banner(ports[0])
        assert ctl(door, "loglevel", "all").stdout == "all\n"
        banner(ports[0])
        syslog.wait_for("turned away")
        assert len(syslog.matching("turned away")) == 1
        assert ctl(door, "loglevel", "some").returncode == os.EX_USAGE
        assert ctl(door, "reload").returncode == 0
        assert ctl(door, "loglevel").stdout == "capped:20\n"


def test_loglevel_of_one_listener(syslog: Syslog, door: Path) -> None:
    """A listener's own setting is left alone; one can be given to a listener."""
    with configured(syslog, door, count=3) as (file, ports, _):
        places = [f"127.0.0.1:{port}" for port in ports]
        text = file.read_text().replace(
            'name = "mx2.example.com"\n', 'name = "mx2.example.com"\nlog-connections = "none"\n'
        )
        file.write_text(text)
        assert ctl(door, "reload").returncode == 0

        def lines() -> list[int]:
            """Connection lines of each listener, after one client each."""
            before = [len(syslog.matching(f"turned away .* to=.*:{port} ")) for port in ports]
            for port in ports:
                banner(port)
            ctl(door, "loglevel")
            time.sleep(1.2)  # a tick, and the beginning of a second
            after = [len(syslog.matching(f"turned away .* to=.*:{port} ")) for port in ports]
            return [now - then for then, now in zip(before, after, strict=True)]

        assert ctl(door, "loglevel").stdout == f"capped:20\n{places[1]}  none\n"
        assert ctl(door, "loglevel", "all").stdout == f"all\n{places[1]}  none\n"
        assert lines() == [1, 0, 1]
        assert ctl(door, "loglevel", "none").returncode == 0
        assert ctl(door, "loglevel", "all", "mx2.example.com").stdout == f"{places[1]}  all\n"
        assert lines() == [0, 1, 0]
        assert ctl(door, "loglevel", "sample:1", places[2]).stdout == f"{places[2]}  sample:1\n"
        assert lines() == [0, 1, 1]
        assert re.search(r" STATE +LOG\n(.*\n)*.*mx2.* open +all\n", ctl(door, "status").stdout)
        syslog.wait_for(rf"control: loglevel sample:1 {places[2]} \(uid \d+\)")
        done = ctl(door, "loglevel", "all", "nowhere")
        assert (done.returncode, done.stdout) == (os.EX_USAGE, "")
        assert ctl(door, "reload").returncode == 0
        assert ctl(door, "loglevel").stdout == f"capped:20\n{places[1]}  none\n"
        assert lines() == [1, 0, 1]


# --- without -s ----------------------------------------------------------------------


@contextlib.contextmanager
def by_hand(*options: str, program: Path, **popen: Any) -> Iterator[subprocess.Popen[str]]:
    """A daemon in the foreground by the name of `program`, on some port."""
    line = [str(program), "-f", "--log", "stderr", *options]
    process = subprocess.Popen(
        [*line, "Earth", f"127.0.0.1:{free_port()} mx.example.com"],
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )
    try:
        process.first = process.stderr.readline()  # type: ignore[union-attr, attr-defined]
        yield process
    finally:
        process.terminate()
        process.wait(SECONDS)
        process.stderr.close()  # type: ignore[union-attr]


@pytest.fixture
def called(tmp_path: Path) -> Path:
    """The command by a name that nobody else has."""
    made = tmp_path / f"turnaway-test-{os.getpid()}"
    made.symlink_to(COMMAND)
    return made


def named(program: Path, *arguments: str, wrapper: Sequence[str] = (), **run: Any) -> Any:
    line = [*wrapper, str(CTL), "--name", program.name, *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=3 * SECONDS, **run)


def test_the_socket_of_a_daemon_that_was_started_as_root(called: Path) -> None:
    need_root()
    nobody = named(called, "status")
    assert nobody.returncode == os.EX_UNAVAILABLE
    assert f"no {called.name} answers at /var/run/{called.name}.ctl or /run/" in nobody.stderr
    with by_hand("--pidfile", "none", program=called) as first:
        assert "started:" in first.first  # type: ignore[attr-defined]
        assert f"pid {first.pid}, " in named(called, "status").stdout
        with by_hand("--pidfile", "none", program=called) as second:
            # One name, one socket: the second is told so and does not start.
            assert second.wait(SECONDS) == os.EX_TEMPFAIL
            assert "another daemon has this control socket" in second.first  # type: ignore[attr-defined]
        assert f"pid {first.pid}, " in named(called, "status").stdout
        assert named(called, "status", wrapper=as_nobody()).returncode == 0  # its own user
        daemon = ["setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups"]
        other = named(called, "status", wrapper=daemon)
        assert other.returncode == os.EX_NOPERM
        assert "not permitted; be root or the daemon's user" in other.stderr
    Path(f"/var/run/{called.name}.ctl").unlink(missing_ok=True)


def test_the_socket_of_the_unit_is_found(called: Path) -> None:
    """By the very ExecStart= that the unit has, with the directory that systemd makes."""
    need_root()
    unit = subprocess.run(
        [called, "--print-unit", "systemd"], capture_output=True, text=True, check=True
    ).stdout
    folder = Path("/run") / re.search(r"^RuntimeDirectory=(.*)$", unit, re.M)[1]  # type: ignore[index]
    line = re.search(r"^ExecStart=(.*)$", unit, re.M)[1].replace("%t", "/run").split()  # type: ignore[index]
    control = line[line.index("--control") + 1]
    folder.mkdir()
    os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    try:
        with (
            by_hand("--pidfile", "none", "--control", control, program=called) as one,
        ):
            for wrapper in ((), as_nobody()):
                assert f"pid {one.pid}, " in named(called, "status", wrapper=wrapper).stdout
            with by_hand("--pidfile", "none", program=called) as two:
                assert "started:" in two.first  # type: ignore[attr-defined]
                done = named(called, "status")
                assert done.returncode == os.EX_USAGE
                assert f"two daemons answer, at /var/run/{called.name}.ctl and {control};" in (
                    done.stderr
                )
                assert f"pid {one.pid}, " in named(called, "-s", control, "status").stdout
            # What the second leaves behind answers nobody and is passed over.
            assert f"pid {one.pid}, " in named(called, "status").stdout
    finally:
        Path(control).unlink(missing_ok=True)
        Path(f"/var/run/{called.name}.ctl").unlink(missing_ok=True)
        folder.rmdir()


@contextlib.contextmanager
def tailing(door: Path, *arguments: str) -> Iterator[list[str]]:
    """The lines of a running `turnawayctl tail`."""
    lines: list[str] = []
    process = subprocess.Popen(
        [str(CTL), "-s", str(door), "tail", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )

    def read_each() -> None:
        for line in process.stdout:  # type: ignore[union-attr]
            lines.append(line)

    reader = threading.Thread(target=read_each, daemon=True)
    reader.start()
    time.sleep(0.5)  # to connect
    try:
        yield lines
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
        reader.join(SECONDS)


def test_tail_chooses(syslog: Syslog, door: Path) -> None:
    with (
        configured(syslog, door, "--log-connections", "all") as (_, ports, _),
        tailing(door) as everything,
        tailing(door, "--source", "127.0.9.0/24") as network,
        tailing(door, "--listener", "mx2.example.com") as by_name,
        tailing(door, "--listener", f"127.0.0.1:{ports[0]}") as by_place,
        tailing(door, "--persona", "mail", "--source", "127.0.0.1") as persona,
    ):
        banner(ports[0])
        banner(ports[1])
        banner(ports[1], "127.0.9.9")
        until(lambda: len(everything) == 3, what="three records")
        assert any(
            re.fullmatch(
                r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d turned away from=\[127\.0\.0\.1\]:\d+ to=\[127\.0\.0\.1\]:\d+"
                r" as=mx1\.example\.com persona=mail code=421 outcome=sent\n",
                line,
            )
            for line in list(everything)
        )
        until(lambda: len(network) == 1 and len(by_name) == 2, what="the chosen")
        until(lambda: len(by_place) == 1 and len(persona) == 2, what="the chosen")


def test_tail_ends_with_the_daemon(syslog: Syslog, door: Path) -> None:
    with configured(syslog, door) as (_, ports, process):
        one = subprocess.Popen(
            [str(CTL), "-s", str(door), "tail"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(0.5)
        banner(ports[0])
        assert "turned away" in one.stdout.readline()  # type: ignore[union-attr]
        process.terminate()
        assert one.wait(SECONDS) == os.EX_UNAVAILABLE
        assert "the daemon ended" in one.stderr.read()  # type: ignore[union-attr]
        one.stdout.close()  # type: ignore[union-attr]
        one.stderr.close()  # type: ignore[union-attr]


@pytest.mark.parametrize("log", ["none", "syslog:/nowhere/at/all"])
def test_tail_needs_no_log(door: Path, log: str) -> None:
    """Records come although nobody writes them down, and the tally of `top` too."""
    port = free_port()
    line = [str(COMMAND), "-f", "--pidfile", "none", "--control", str(door), "--log", log]
    with subprocess.Popen([*line, "Earth", f"127.0.0.1:{port}", "mx.example.com"]) as process:
        try:
            until(lambda: door.exists() and ctl(door, "status").returncode == 0, what="the start")
            with tailing(door) as lines:
                assert WHOLE.fullmatch(banner(port, "127.0.7.7"))
                until(lambda: lines, what="a record")
            assert "turned away from=[127.0.7.7]:" in lines[0]
            assert lines[0].endswith(" as=mx.example.com persona=mail code=421 outcome=sent\n")
            assert ask(door, do="top")["sources"] == [["127.0.7.7", 1]]
            done = ctl(door, "loglevel", "all")
            assert done.returncode == (os.EX_UNAVAILABLE if log == "none" else 0)
        finally:
            process.terminate()


def test_top_in_a_pipe(controlled: Daemon, door: Path) -> None:
    with load(controlled.port, clients=2, most=100_000) as whole:
        until(lambda: sum(whole) > 100)
        done = ctl(door, "top", "-i", "0.5", "-n", "3")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    found = re.fullmatch(
        r"\d\d:\d\d:\d\d connections=([\d.]+)/s sent=[\d.]+/s early=[\d.]+/s errors=0\.0/s held=\d+"
        r"(?: busiest-source=\[127\.0\.0\.1\]:[\d.]+/s busiest-network=\[127\.0\.0\.0/24\]:[\d.]+/s)?",
        lines[-1],
    )
    assert found
    assert float(found[1]) > 10


def on_a_terminal(*command: str) -> str:
    """What a command writes to a terminal of 120 columns."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="120", LINES="40")
        os.execv(command[0], command)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    octets = b""
    with contextlib.suppress(OSError):  # EIO: the end
        while more := os.read(terminal, 65536):
            octets += more
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return octets.decode()


def test_top_on_a_terminal(controlled: Daemon, door: Path) -> None:
    pytest.importorskip("rich")
    with load(controlled.port, clients=2, most=100_000) as whole:
        until(lambda: sum(whole) > 100)
        seen = on_a_terminal(str(CTL), "-s", str(door), "top", "-i", "0.5", "-n", "3")
    assert "\x1b[" in seen
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert re.search(r"turnawayctl \d\d:\d\d:\d\d +[\d,.]+ connections/s", text)
    last = text[text.rindex("by listener") :]
    assert re.search(
        rf"127\.0\.0\.1:{controlled.port} +mx\.example\.com +mail +open +[\d,]+\.\d", last
    )
    assert re.search(r"127\.0\.0\.1 +[\d,]+ .*127\.0\.0\.0/24 +[\d,]+", last)


def test_head_may_close_the_pipe(controlled: Daemon, door: Path) -> None:
    process = subprocess.Popen(
        [str(CTL), "-s", str(door), "top", "-i", "0.1", "-n", "10"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert "connections=" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(SECONDS) == 0
    assert process.stderr.read() == ""
    process.stderr.close()
