"""Started as root, in the background: what the parent promises, and what is left of root.

The parent's status is the administrator's only word: 0 may be said only when
the daemon listens, is nobody any more and can be found by its pidfile.
"""

from __future__ import annotations

import grp
import os
import pty
import pwd
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import COMMAND, LOCATION, NAME, SECONDS, Syslog, free_port, need, need_root, until

from tests.system.background import (
    WHOLE,
    Start,
    alive,
    answer,
    as_nobody,
    started,
    status_of,
    threads,
)

IGNORING = (
    "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
    " os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of root's that others may only look into."""
    need_root()
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    return tmp_path


def ids(start: Start) -> set[tuple[str, str, str]]:
    return {
        (status["Uid"], status["Gid"], status["Groups"])
        for status in (status_of(start.pid, task) for task in threads(start.pid))
    }


def expected(user: str, group: str = "") -> set[tuple[str, str, str]]:
    entry = pwd.getpwnam(user)
    gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    return {("\t".join([str(entry.pw_uid)] * 4), "\t".join([str(gid)] * 4), "")}


def default_user() -> str:
    try:
        return pwd.getpwnam("turnaway").pw_name
    except KeyError:
        return "nobody"


def test_parent_says_0_only_when_all_is_done(place: Path) -> None:
    with started(place / "pid", "-w", "2") as start:
        # Not a moment is given: what is promised holds now.
        assert (start.status, start.stdout, start.stderr) == (0, "", "")
        assert start.pidfile.read_text() == f"{start.pid}\n"
        assert alive(start.pid)
        assert ids(start) == expected(default_user())
        assert WHOLE.fullmatch(answer(start.port))


def test_every_thread_has_lost_root(place: Path) -> None:
    with started(place / "pid", "-w", "3") as start:
        names = [
            Path(f"/proc/{start.pid}/task/{task}/comm").read_text() for task in threads(start.pid)
        ]
        assert names.count("turnaway-loop\n") == 3
        for task in threads(start.pid):
            status = status_of(start.pid, task)
            for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                assert int(status[kind], 16) == 0, (task, kind)
            assert "0" not in status["Uid"].split() + status["Gid"].split()


@pytest.mark.parametrize(
    ("options", "user", "group"),
    [(["-u", "daemon"], "daemon", ""), (["-u", "daemon", "-g", "mail"], "daemon", "mail")],
)
def test_becomes_whom_it_is_told(place: Path, options: list[str], user: str, group: str) -> None:
    with started(place / "pid", *options) as start:
        assert start.status == 0, start.stderr
        assert ids(start) == expected(user, group)


def test_group_alone_keeps_the_default_user(place: Path) -> None:
    with started(place / "pid", "--group", "mail") as start:
        assert ids(start) == expected(default_user(), "mail")


def test_groups_of_the_caller_are_dropped(place: Path) -> None:
    """Root's supplementary groups (disk, shadow) would be a way back."""
    need("setpriv")
    with started(place / "pid", wrapper=["setpriv", "--groups", "0,4,6,42"]) as start:
        assert start.status == 0, start.stderr
        assert ids(start) == expected(default_user())


def test_capabilities_that_survive_setuid_are_given_up(place: Path) -> None:
    """With no_setuid_fixup the kernel leaves all of them: root could be regained."""
    need("setpriv")
    wrapper = ["setpriv", "--securebits", "+no_setuid_fixup"]
    with started(place / "pid", wrapper=wrapper) as start:
        assert start.status == 0, start.stderr
        for task in threads(start.pid):
            status = status_of(start.pid, task)
            assert {int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapInh")} == {0}
        assert ids(start) == expected(default_user())


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["-u", "root"], os.EX_USAGE, "refusing to serve as root"),
        (["-u", "daemon", "-g", "root"], os.EX_USAGE, "refusing to serve as root"),
        (["-u", "no-such-user"], os.EX_NOUSER, "no-such-user"),
        (["-g", "no-such-group"], os.EX_NOUSER, "no-such-group"),
    ],
)
def test_whom_it_must_not_become(place: Path, options: list[str], status: int, said: str) -> None:
    with started(place / "pid", *options) as start:
        assert (start.status, start.stdout) == (status, "")
        assert said in start.stderr
        assert not start.pidfile.exists()
        assert start.processes() == []


def test_taken_port_is_the_parents_status(place: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with started(place / "pid", port=port) as start:
            assert start.status == os.EX_UNAVAILABLE
            assert f"127.0.0.1:{port}: address in use" in start.stderr
            assert not start.pidfile.exists()
            assert start.processes() == []


def test_port_of_another_turnaway_is_taken(place: Path) -> None:
    """SO_REUSEPORT must not let two of them share an address quietly."""
    with (
        started(place / "one") as first,
        started(place / "two", port=first.port) as second,
    ):
        assert second.status == os.EX_UNAVAILABLE
        assert f":{first.port}: address in use" in second.stderr
        assert not second.pidfile.exists()
        assert WHOLE.fullmatch(answer(first.port))


@pytest.mark.parametrize("address", ["192.0.2.1", "[2001:db8::1]"])
def test_address_of_another_host(place: Path, address: str) -> None:
    with started(place / "pid", place=f"{address}:{free_port()}") as start:
        assert start.status == os.EX_UNAVAILABLE
        assert address in start.stderr
        assert "no interface of this host" in start.stderr
        assert not start.pidfile.exists()


def test_second_listener_fails_and_the_first_is_let_go(place: Path) -> None:
    port = free_port()
    with started(
        place / "pid", "Earth", f"127.0.0.1:{port} a.example", place="192.0.2.1:25"
    ) as one:
        assert one.status != 0
        with pytest.raises(ConnectionRefusedError):
            answer(port)


def test_wildcard_and_one_address_of_the_same_port(place: Path) -> None:
    port = free_port()
    arguments = ["-p", "mail", "Earth", f"0.0.0.0:{port} all.example", f"127.0.0.7:{port}", "seven"]
    command = [
        str(COMMAND),
        "-f",
        "--pidfile",
        "none",
        "--control",
        "none",
        "--log",
        "stderr",
        *arguments,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "started:" in process.stderr.readline()
            assert answer(port, "127.0.0.7").startswith(b"421-seven ")
            assert answer(port, "127.0.0.8").startswith(b"421-all.example ")
        finally:
            process.terminate()


def test_port_below_1024_needs_root_and_says_so(place: Path) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 25:
        pytest.skip("this machine gives every port to everybody")
    with started("none", wrapper=as_nobody(), place="127.0.0.1") as start:
        assert start.status == os.EX_NOPERM
        assert "127.0.0.1:25: not permitted" in start.stderr
        assert "root" in start.stderr
        assert "1023" in start.stderr


def test_ordinary_user_simply_runs(place: Path) -> None:
    mine = place / "mine"
    mine.mkdir()
    os.chown(mine, pwd.getpwnam("nobody").pw_uid, -1)
    with started(mine / "pid", wrapper=as_nobody()) as start:
        assert start.status == 0, start.stderr
        assert WHOLE.fullmatch(answer(start.port))
        assert len(start.processes()) == 1
        start.end()
        assert not start.pidfile.exists()


def test_ordinary_users_default_pidfile_is_in_the_runtime_folder(place: Path) -> None:
    os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)
    with started(None, wrapper=as_nobody(), env={"XDG_RUNTIME_DIR": str(place)}) as start:
        assert start.status == 0, start.stderr
        start.pidfile = place / "turnaway-fast.pid"
        assert start.processes() == [start.pid]


def test_ordinary_user_cannot_become_another(place: Path) -> None:
    with started("none", "-u", "daemon", wrapper=as_nobody()) as start:
        assert start.status == os.EX_NOPERM
        assert "only root" in start.stderr


def test_holds_nothing_of_the_callers(place: Path) -> None:
    """No thread has the caller's standard descriptors, folder, session or terminal.

    That the run ends at all shows it for its output: it is read to the end of file.
    """
    reader, writer = os.pipe()
    ours = os.readlink(f"/proc/self/fd/{reader}")
    with started(place / "pid", "-w", "2", cwd=place, stdin=reader) as start:
        os.close(reader)
        assert os.readlink(f"/proc/{start.pid}/cwd") == "/"
        for pid in start.processes():  # the janitor too
            for task in threads(pid):
                held = {
                    entry.name: os.readlink(entry)
                    for entry in Path(f"/proc/{pid}/task/{task}/fd").iterdir()
                }
                assert ours not in held.values()
                for fd in ("0", "1", "2"):
                    assert held[fd] == "/dev/null" or held[fd].startswith("pipe:")
                sockets = [target for target in held.values() if target.startswith("socket:")]
                assert pid == start.pid or sockets == []
        fields = Path(f"/proc/{start.pid}/stat").read_text().rpartition(")")[2].split()
        session, terminal = int(fields[3]), int(fields[4])
        assert terminal == 0
        assert session not in (os.getsid(0), start.pid)
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"anybody?")
    os.close(writer)


def test_survives_the_hangup_of_its_terminal(place: Path) -> None:
    port, pidfile = free_port(), place / "pid"
    child, terminal = pty.fork()
    if child == 0:
        command = [
            str(COMMAND),
            "--pidfile",
            str(pidfile),
            *("--control", "none", "--log", "none"),
            LOCATION,
        ]
        os.execv(command[0], [*command, f"127.0.0.1:{port}", NAME])
    assert os.waitpid(child, 0)[1] == 0
    pid = int(pidfile.read_text())
    try:
        os.close(terminal)
        time.sleep(0.2)
        assert alive(pid)
        assert WHOLE.fullmatch(answer(port))
    finally:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not alive(pid), what="the end")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "<&- >&-"])
def test_closed_standard_descriptors_do_no_harm(place: Path, closed: str) -> None:
    wrapper = ["sh", "-c", f'exec "$0" "$@" {closed}']
    with started(place / "pid", wrapper=wrapper) as start:
        assert start.status == 0, start.stderr
        for _ in range(5):
            assert WHOLE.fullmatch(answer(start.port))
        start.end()


def test_caller_that_ignores_children(place: Path) -> None:
    """An ignored SIGCHLD is inherited, and then there is nobody to wait for."""
    wrapper = [sys.executable, "-c", IGNORING]
    with started(place / "pid", wrapper=wrapper) as start:
        assert (start.status, start.stderr) == (0, "")
        start.end()
        assert not start.pidfile.exists()
    with started(place / "pid", place="192.0.2.1", wrapper=wrapper) as start:
        assert start.status == os.EX_UNAVAILABLE


def test_who_waits_goes_away_and_the_daemon_stays(place: Path) -> None:
    """The caller's shell is killed while the daemon starts."""
    port, pidfile = free_port(), place / "pid"
    command = [
        str(COMMAND),
        "--pidfile",
        str(pidfile),
        *("--control", "none", "--log", "none"),
        LOCATION,
    ]
    with started(pidfile, port=port) as unused:  # only so that whatever is left is ended
        unused.end()
        env = {**os.environ, "TURNAWAY_TEST_MARK": unused.mark}
        with subprocess.Popen([*command, f"127.0.0.1:{port}", NAME], env=env) as parent:
            until(lambda: pidfile.exists() and pidfile.read_text(), what="the pidfile")
            parent.kill()
        until(lambda: alive(int(pidfile.read_text())))
        assert WHOLE.fullmatch(answer(port))
        unused.end()


def test_python_m_turnaway_is_turnaway_fast(place: Path) -> None:
    with started(place / "pid", program=sys.executable, wrapper=[]) as refused:
        assert refused.status != 0  # python itself does not know our options
    wrapper = [sys.executable, "-m"]
    with started(place / "pid", program="turnaway", wrapper=wrapper, cwd="/") as start:
        assert start.status == 0, start.stderr
        assert WHOLE.fullmatch(answer(start.port))


def test_start_line_names_version_listeners_workers_and_user(place: Path, syslog: Syslog) -> None:
    with started(place / "pid", "-w", "2", log=f"syslog:{syslog.path}") as start:
        line = syslog.wait_for("started:")
        assert f" turnaway-fast[{start.pid}]: started: version " in line
        assert f"listeners [127.0.0.1:{start.port} {NAME} mail 421]" in line
        assert f"workers 2 (epoll), user {default_user()}" in line


def test_twenty_starts_and_stops_leave_nothing(place: Path) -> None:
    """The same port and pidfile, at once after the end: no wait, no 69, no 75."""
    port, pidfile = free_port(), place / "pid"
    mark = "20-" + os.urandom(8).hex()
    for number in range(20):
        with started(pidfile, port=port, mark=mark) as start:
            assert start.status == 0, (number, start.stderr)
            assert WHOLE.fullmatch(answer(port))
            pid = start.pid
            os.kill(pid, signal.SIGTERM)
            until(lambda pid=pid: not alive(pid), SECONDS, "the end")
            assert not pidfile.exists()
    until(lambda: not start.processes(), what="the end of all")
    assert list(place.iterdir()) == []
