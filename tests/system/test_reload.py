"""A reload under load, and a restart with sockets of a supervisor: nobody is lost.

Owns: SIGHUP with a configuration file, LISTEN_FDS, and when the watchdog is fed.
The load is the closed model of bench.blast, on loopback; where a client must speak,
threads of this process.  One worker is stopped alone by ptrace(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import COMMAND, SECONDS, Daemon, Syslog, free_port, read_all, until

from tests.system.background import answer, status_of, threads

blast = pytest.importorskip("bench.blast", reason="needs make bench's extension")
from bench.expect import Expect  # noqa: E402

RELOADS = 20
BINDS = "--keep-bind"  # also ports that had no listener at the start
# Hands its listening sockets to the command, as a supervisor does: from 3 on.
HAND_IN = (
    "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid());"
    " os.execv(sys.argv[1], sys.argv[1:])"
)


def written(file: Path, *ports: int, top: str = "workers = 2", listener: str = "") -> None:
    """A configuration with one listener a port, whole at any moment."""
    text = f'location = "Somecity, Earth"\npersona = "mail"\n{top}\n'
    for port in ports:
        text += f'[[listener]]\naddress = "127.0.0.1:{port}"\nname = "mx.example.com"\n{listener}'
    new = file.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o644)
    new.rename(file)


@contextlib.contextmanager
def configured(
    syslog: Syslog, file: Path, port: int, *options: str, **popen: object
) -> Iterator[Daemon]:
    begun = len(syslog.matching("started:"))
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", HAND_IN, COMMAND, "-f", "-c", file, "--pidfile", "none"),
            *("--control", "none", "--log", f"syslog:{syslog.path}", *options),
        ],
        stderr=subprocess.PIPE,
        text=True,
        **popen,  # type: ignore[call-overload]
    )
    try:
        until(
            lambda: len(syslog.matching("started:")) > begun or process.poll() is not None,
            what="the start",
        )
        assert process.poll() is None, process.stderr.read()
        yield Daemon(process, "127.0.0.1", port, syslog)
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()


def reload(daemon: Daemon, said: str = "reloaded: ") -> None:
    before = len(daemon.syslog.matching(said))
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: len(daemon.syslog.matching(said)) > before, what=f"{said!r}")


def descriptors(pid: int) -> int:
    return sum(len(list(task.iterdir())) for task in Path(f"/proc/{pid}/task").glob("*/fd"))


def refuses(port: int) -> bool:
    try:
        answer(port)
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it came between the queue's end and the socket's
    return False


def counters(daemon: Daemon, port: int) -> dict[str, int]:
    """Of one listener, by SIGUSR1 and the log."""
    said = rf"counters: 127\.0\.0\.1:{port} "
    before = len(daemon.syslog.matching(said))
    daemon.process.send_signal(signal.SIGUSR1)
    until(lambda: len(daemon.syslog.matching(said)) > before, what="the counters")
    (line,) = daemon.syslog.matching(said)[before:]
    return {name: int(count) for name, count in re.findall(r"([A-Za-z_]+)=(\d+)", line)}


class Load(threading.Thread):
    """Clients of one address until the block ends; `result` says how they fared."""

    def __init__(self, port: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.seconds = seconds
        self.expect = Expect.reply(answer(port))

    def run(self) -> None:
        self.result = blast.closed(
            *("127.0.0.1", self.port),
            seconds=self.seconds,
            concurrency=32,
            sources=16,
            expect=self.expect,
        )

    def nobody_was_lost(self) -> None:
        self.join(60)
        counts = self.result.as_dict()
        wrong = ("short", "reset_before", "refused", "timed_out", "wrong")
        assert {name: getattr(self.result, name) for name in wrong} == dict.fromkeys(wrong, 0), (
            counts
        )
        assert self.result.complete > 1000


def test_twenty_reloads_under_load_lose_nobody(syslog: Syslog, tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    stays, others = free_port(), [free_port() for _ in range(3)]
    written(file, stays)
    with configured(syslog, file, stays, BINDS) as daemon:
        load = Load(stays, 8.0)
        load.start()
        began = time.monotonic()
        counts: dict[str, int] = {}
        for number in range(RELOADS):
            here = others[: number % 4]
            # Added, removed, moved to another place of the order, and changed.
            listed = [*here, stays] if number % 2 else [stays, *here]
            written(file, *listed, top=f"workers = 2\nmax-held = {64 + number}")
            reload(daemon)
            for port in here:
                assert answer(port).startswith(b"421-mx.example.com ")
            for port in set(others) - set(here):
                until(lambda port=port: refuses(port), what="the end of who was removed")
            now = counters(daemon, stays)
            assert [name for name, count in counts.items() if now.get(name, 0) < count] == []
            counts = now
            time.sleep(max(0.0, began + number * 0.35 - time.monotonic()))
        load.nobody_was_lost()
        written(file, stays)
        reload(daemon)
        until(lambda: len(threads(daemon.pid)) == 3, what="the old loops to end")
        assert len(syslog.matching("reloaded: ")) == RELOADS + 1
        daemon.stop()
        total = re.search(r"connections=(\d+)", syslog.wait_for("stopped: "))
        assert total
        assert int(total[1]) >= load.result.complete  # of all loops there were


KINDS = {
    "ipv6": ("", b"", rb"421-mx\.example\.com .*Closing connection\.\r\n"),
    "http": ('protocol = "http"\n', b"GET / HTTP/1.0\r\n\r\n", rb"HTTP/1\.1 403 .*"),
    "quit": ('close = "quit"\n', b"QUIT\r\n", rb"421-mx\..*\r\n221 mx\.example\.com .*\r\n"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_reloads_lose_nobody_of_any_kind(syslog: Syslog, tmp_path: Path, kind: str) -> None:
    """Clients that must be waited for, and those of the other family."""
    more, says, whole = KINDS[kind]
    address = "[::1]" if kind == "ipv6" else "127.0.0.1"
    file, port = tmp_path / "t.toml", free_port()
    text = 'location = "Earth"\nworkers = 2\n[[listener]]\nname = "mx.example.com"\n'
    file.write_text(f'{text}address = "{address}:{port}"\n{more}')
    wrong: list[object] = []
    answered = [0] * 8
    over = threading.Event()

    def come(number: int) -> None:
        while not over.is_set():
            try:
                with socket.create_connection((address.strip("[]"), port), SECONDS) as one:
                    one.sendall(says) if kind == "http" else None
                    heard = one.recv(65536) if kind == "quit" else b""
                    one.sendall(says) if kind == "quit" else None
                    heard += read_all(one)
            except OSError as error:
                wrong.append(error)
                continue
            if not re.fullmatch(whole, heard, re.S):
                wrong.append(heard)
            answered[number] += 1

    with configured(syslog, file, port) as daemon:
        ones = [threading.Thread(target=come, args=(at,), daemon=True) for at in range(8)]
        for one in ones:
            one.start()
        for number in range(RELOADS):
            file.write_text(f'max-held = {64 + number}\n{text}address = "{address}:{port}"\n{more}')
            reload(daemon)
            time.sleep(0.05)
        over.set()
        for one in ones:
            one.join(SECONDS)
        assert wrong == []
        assert sum(answered) > 500
        assert len(syslog.matching("reloaded: ")) == RELOADS


def test_twenty_reloads_leave_no_descriptors_and_no_threads(syslog: Syslog, tmp_path: Path) -> None:
    file, stays, other = tmp_path / "t.toml", free_port(), free_port()
    written(file, stays)
    with configured(syslog, file, stays, BINDS) as daemon:
        before = descriptors(daemon.pid)
        for number in range(RELOADS):
            written(file, stays, *[other][number % 2 :])
            reload(daemon)
            assert daemon.banner() != b""
        until(lambda: len(threads(daemon.pid)) == 3, what="the old loops to end")
        # An old loop's ends of pipes go with the tick after its end.
        until(lambda: descriptors(daemon.pid) <= before, what=f"{before} descriptors again")


def test_a_bad_file_changes_nothing_and_is_told(syslog: Syslog, tmp_path: Path) -> None:
    file, port, other = tmp_path / "t.toml", free_port(), free_port()
    written(file, port)
    with configured(syslog, file, port, BINDS) as daemon:
        written(file, port, other, top="worker = 2\nmax-held = -1")
        reload(daemon, "reload: nothing was changed")
        assert syslog.matching(rf"reload: {file}:3: worker: unknown key; did you mean workers\?")
        assert syslog.matching(rf"reload: {file}:4: max-held: expected 0..131072, got -1")
        assert daemon.banner().startswith(b"421-mx.example.com ")
        with pytest.raises(ConnectionRefusedError):
            answer(other)
        file.unlink()
        reload(daemon, "reload: nothing was changed")
        written(file, port, other)
        reload(daemon)
        assert answer(other) != b""


def test_what_needs_a_restart_is_told(syslog: Syslog, tmp_path: Path) -> None:
    file, port = tmp_path / "t.toml", free_port()
    written(file, port)
    with (
        configured(syslog, file, port, BINDS) as daemon,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        there = taken.getsockname()[1]
        written(file, port, there, top="workers = 3")
        reload(daemon)
        assert syslog.matching("reload: workers needs a restart, it stays 2")
        assert syslog.matching(f"needs a restart: 127.0.0.1:{there}: address in use")
        assert syslog.matching(rf"reloaded: listeners \[127\.0\.0\.1:{port}\]")
        assert daemon.banner() != b""
        until(lambda: len(threads(daemon.pid)) == 3, what="the old loops to end")


def test_who_is_held_is_served_after_the_reload(syslog: Syslog, tmp_path: Path) -> None:
    file, port = tmp_path / "t.toml", free_port()
    written(file, port, listener='close = "quit"\n')
    with configured(syslog, file, port) as daemon:
        ones = [daemon.connect() for _ in range(10)]
        for one in ones:
            while not one.recv(65536).endswith(b"Closing connection.\r\n"):
                pass
        written(file, port)
        reload(daemon)
        assert daemon.banner() != b""
        for one in ones:
            one.sendall(b"EHLO spam.example\r\n")
            assert one.recv(4096).startswith(b"503 mx.example.com ")
            one.sendall(b"QUIT\r\n")
            assert read_all(one) == b"221 mx.example.com Closing connection\r\n"
            one.close()
        until(lambda: len(threads(daemon.pid)) == 3, what="the old loops to end")
        assert counters(daemon, port)["quits"] == 10


# --- under a supervisor -------------------------------------------------------------------


def handed_in(held: socket.socket, file: Path, *options: str) -> subprocess.Popen[bytes]:
    """The command, with the listening socket as its descriptor 3."""
    number = f"import os; os.dup2({held.fileno()}, 3); os.set_inheritable(3, True); "
    return subprocess.Popen(
        [
            *(sys.executable, "-c", number + HAND_IN, COMMAND, "-f", "-c", file),
            *("--pidfile", "none", "--control", "none", *options),
        ],
        env={**os.environ, "LISTEN_FDS": "1"},
        pass_fds=(held.fileno(),),
    )


def test_a_restart_with_sockets_handed_in_refuses_nobody(syslog: Syslog, tmp_path: Path) -> None:
    """A supervisor holds the listening socket and starts one daemon after another."""
    file = tmp_path / "t.toml"
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as held:
        port = held.getsockname()[1]
        written(file, port)
        load = None
        for number in range(1, 7):
            process = handed_in(held, file, "--log", f"syslog:{syslog.path}")
            try:
                until(
                    lambda number=number: len(syslog.matching("started:")) == number,
                    what="the start",
                )
                if load is None:
                    load = Load(port, 5.0)
                    load.start()
                time.sleep(0.4)
                if number == 6:
                    load.nobody_was_lost()
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(SECONDS) == 0


def named_sockets(
    names: str, places: list[tuple[str, int]], *options: str
) -> subprocess.Popen[str]:
    """The command with new listening sockets from descriptor 3 on, by these names."""
    make = f"import os, socket; ones = [socket.create_server(place) for place in {places!r}]; "
    make += "[os.dup2(one.fileno(), 30 + at) for at, one in enumerate(ones)]; "
    make += "[os.dup2(30 + at, 3 + at) for at in range(len(ones))]; "
    make += "[os.set_inheritable(3 + at, True) for at in range(len(ones))]; "
    env = {**os.environ, "LISTEN_FDS": str(len(places)), "LISTEN_FDNAMES": names}
    line = [COMMAND, "-f", "--pidfile", "none", "--log", "none", *options]
    return subprocess.Popen(
        [sys.executable, "-c", make + HAND_IN, *line], env=env, stderr=subprocess.PIPE, text=True
    )


def test_names_of_sockets_are_in_status_and_errors(tmp_path: Path) -> None:
    one, two, other, door = free_port(), free_port(), free_port(), tmp_path / "ctl"
    both = [("127.0.0.1", one), ("127.0.0.1", two)]
    places = [f"127.0.0.1:{one}", "mx.example.com", f"127.0.0.1:{two}", "mx.example.com"]
    third = [f"127.0.0.1:{other}", "mx.example.com"]

    def status(names: str) -> list[str]:
        process = named_sockets(names, both, "--control", str(door), "Earth", *places, *third)
        try:
            until(lambda: door.exists(), what="the control socket")
            done = subprocess.run(
                [COMMAND.with_name("turnawayctl"), "-s", door, "status"],
                capture_output=True,
                text=True,
                check=True,
            )
            lines = done.stdout.partition(" SOCKET\n")[2].splitlines()
            assert answer(one) == answer(two) != b""
            return [line.split()[-1] for line in lines]
        finally:
            process.terminate()
            process.communicate()
            door.unlink(missing_ok=True)

    assert status("smtp:submission") == ["smtp", "submission", "own"]
    assert status("smtp") == ["unknown", "unknown", "own"]  # not one for each
    assert status("\x1b[2J:submission") == ["unknown", "submission", "own"]
    process = named_sockets("smtp:lost", both, "--control", "none", "Earth", *places[:2])
    assert f"127.0.0.1:{two} (lost) was handed in, and no listener" in process.communicate()[1]
    assert process.returncode == os.EX_CONFIG


def test_a_listener_of_the_supervisors_that_is_left_is_told(syslog: Syslog, tmp_path: Path) -> None:
    file, stays = tmp_path / "t.toml", free_port()
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        written(file, stays, port)
        process = handed_in(held, file, "--log", f"syslog:{syslog.path}")
        try:
            syslog.wait_for("started:")
            written(file, stays)
            process.send_signal(signal.SIGHUP)
            syslog.wait_for(
                rf"reload: 127\.0\.0\.1:{port} is left, but the supervisor holds its socket"
            )
            syslog.wait_for("reloaded: ")
        finally:
            process.terminate()
            assert process.wait(SECONDS) == 0


# ptrace(2), of one thread; WALL: also one that is not our child.
SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000


@contextlib.contextmanager
def stopped(task: int) -> Iterator[None]:
    """This thread of another process, and no other, stands still."""
    libc = ctypes.CDLL(None, use_errno=True)

    def ptrace(request: int) -> None:
        assert libc.ptrace(request, task, None, None) == 0, os.strerror(ctypes.get_errno())

    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    ptrace(SEIZE)
    ptrace(INTERRUPT)
    os.waitpid(task, WALL)
    try:
        yield
    finally:
        ptrace(DETACH)


def test_a_worker_that_hangs_starves_the_watchdog(syslog: Syslog, tmp_path: Path) -> None:
    """The other worker and the shell go on: only the supervisor is told nothing."""
    file, port = tmp_path / "t.toml", free_port()
    written(file, port)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        (tmp_path / "notify").chmod(0o666)
        env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}

        def feeds(seconds: float) -> int:
            """Times that the watchdog is fed from now on."""
            notify.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while notify.recv(4096):
                    pass
            end, fed = time.monotonic() + seconds, 0
            while (left := end - time.monotonic()) > 0:
                notify.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    fed += b"WATCHDOG=1" in notify.recv(4096)
            return fed

        with configured(syslog, file, port, env=env) as daemon:
            notify.settimeout(SECONDS)
            assert notify.recv(4096).startswith(b"READY=1\n")
            loops = [
                task
                for task in threads(daemon.pid)
                if Path(f"/proc/{daemon.pid}/task/{task}/comm").read_text() == "turnaway-loop\n"
            ]
            assert len(loops) == 2
            with stopped(loops[1]):
                feeds(1.2)  # what was on its way
                daemon.process.send_signal(signal.SIGUSR1)
                assert feeds(2.4) == 0
                assert syslog.matching("counters: ")  # the shell lives
            assert feeds(2.4) >= 1


def test_the_watchdog_is_fed_while_the_loops_turn(syslog: Syslog, tmp_path: Path) -> None:
    file, port = tmp_path / "t.toml", free_port()
    written(file, port)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        (tmp_path / "notify").chmod(0o666)
        notify.settimeout(SECONDS)
        env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        with configured(syslog, file, port, env=env) as daemon:
            assert "State" in status_of(daemon.pid)
            said = ""
            while said.count("WATCHDOG=1\n") < 3:
                said += notify.recv(4096).decode()
            assert said.startswith("READY=1\n")
            reload(daemon)
            said = ""
            while said.count("WATCHDOG=1\n") < 3:
                said += notify.recv(4096).decode()
            assert re.search(r"RELOADING=1\nMONOTONIC_USEC=\d+\n(.*\n)*READY=1\n", said)


def test_bind_needs_a_restart(syslog: Syslog, tmp_path: Path) -> None:
    """A reload says so, and what is there goes on as it was."""
    file, port, other = tmp_path / "turnaway.toml", free_port(), free_port()
    written(file, port, listener='bind = "freebind"\n')
    with configured(syslog, file, port) as daemon:
        written(file, port)
        reload(daemon)
        syslog.wait_for(rf"reload: 127\.0\.0\.1:{port}: bind needs a restart, it stays freebind")
        reload(daemon)  # told again, for it is wanted still
        assert len(syslog.matching("bind needs a restart")) == 2
        written(file, port, other, listener='bind = "transparent"\n')
        reload(daemon)
        syslog.wait_for(
            rf"reload: needs a restart: 127\.0\.0\.1:{other}: bind transparent is not permitted"
        )
        assert daemon.banner().startswith(b"421-mx.example.com ")
        assert refuses(other)
