"""What is left of root's capabilities: none, or with --keep-bind exactly one.

Owns: --keep-bind, by the kernel's word on every thread, and what a reload may then
bind.  The ports below 1024 are the kernel's business, so that each test looks for
one that nobody has.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import COMMAND, Daemon, Syslog, free_port, need, need_root, until

from tests.system.background import answer, status_of, threads
from tests.system.test_reload import configured, counters, reload, written

BIND = 1 << 10  # CAP_NET_BIND_SERVICE, capabilities(7)
KINDS = ("CapInh", "CapPrm", "CapEff", "CapAmb")
CTL = COMMAND.with_name("turnawayctl")


@pytest.fixture(autouse=True)
def low_ports_are_roots() -> None:
    need_root()
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 1024:
        pytest.fail("this machine gives ports below 1024 to everybody")


@pytest.fixture
def low() -> Iterator[int]:
    """A port below 1024 that nobody has."""
    for port in range(1023, 600, -1):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
        return
    pytest.fail("every port is taken")


def capabilities(pid: int) -> set[tuple[int, ...]]:
    """(inheritable, permitted, effective, ambient), of every thread."""
    each = (status_of(pid, task) for task in threads(pid))
    return {tuple(int(status[kind], 16) for kind in KINDS) for status in each}


def said_by_status(door: Path) -> str:
    return subprocess.run(
        [CTL, "-s", door, "status"], capture_output=True, text=True, check=True
    ).stdout


def test_a_reload_binds_a_low_port_when_asked_to(syslog: Syslog, tmp_path: Path, low: int) -> None:
    file, high, door = tmp_path / "t.toml", free_port(), tmp_path / "ctl"
    written(file, high, top="workers = 2\nkeep-bind = true")
    with configured(syslog, file, high, "--control", str(door)) as daemon:
        assert len(threads(daemon.pid)) == 3
        assert capabilities(daemon.pid) == {(0, BIND, BIND, 0)}
        assert set(status_of(daemon.pid)["Uid"].split()) == {str(os.stat(door).st_uid)} != {"0"}
        assert syslog.matching(r"started: .*, user \w+ with CAP_NET_BIND_SERVICE, sandbox ")
        assert re.search(r", user \w+ with CAP_NET_BIND_SERVICE\n", said_by_status(door))
        written(file, high, low, top="workers = 2\nkeep-bind = true")
        reload(daemon)
        assert answer(low).startswith(b"421-mx.example.com ")
        until(lambda: len(threads(daemon.pid)) == 3, what="the old loops to end")
        assert capabilities(daemon.pid) == {(0, BIND, BIND, 0)}
        assert counters(daemon, low)["sent"] == 1
        assert syslog.matching("needs a restart") == []


def test_without_it_a_low_port_needs_a_restart(syslog: Syslog, tmp_path: Path, low: int) -> None:
    file, high, door = tmp_path / "t.toml", free_port(), tmp_path / "ctl"
    written(file, high)
    with configured(syslog, file, high, "--control", str(door)) as daemon:
        assert capabilities(daemon.pid) == {(0, 0, 0, 0)}
        assert syslog.matching(r"started: .*, user \w+, sandbox ")
        assert "CAP_" not in said_by_status(door)
        written(file, high, low, top="workers = 2\nkeep-bind = true")
        reload(daemon)
        assert syslog.matching(rf"reload: needs a restart: 127\.0\.0\.1:{low}: not permitted")
        assert syslog.matching("reload: keep-bind needs a restart, it stays false")
        assert daemon.banner() != b""
        with pytest.raises(ConnectionRefusedError):
            answer(low)
        assert capabilities(daemon.pid) == {(0, 0, 0, 0)}


@pytest.mark.parametrize("option", ["", "--keep-bind"])
def test_what_a_supervisor_gave_an_ordinary_user(
    syslog: Syslog, tmp_path: Path, low: int, option: str
) -> None:
    """As the unit does: never root, ambient capabilities, and here one too many."""
    need("setpriv")
    wrapper = [
        *("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"),
        *("--inh-caps=+net_bind_service,+net_raw", "--ambient-caps=+net_bind_service,+net_raw"),
    ]
    line = [*wrapper, str(COMMAND), "-f", "--pidfile", "none", "--control", "none"]
    line += ["--log", f"syslog:{syslog.path}", *option.split()]
    with subprocess.Popen([*line, "Earth", f"127.0.0.1:{low}", "mx.example.com"]) as process:
        try:
            syslog.wait_for("started:")
            kept = BIND if option else 0
            assert capabilities(process.pid) == {(0, kept, kept, 0)}
            assert answer(low).startswith(b"421-mx.example.com ")
        finally:
            process.terminate()


def test_there_may_be_nothing_to_keep(syslog: Syslog, tmp_path: Path) -> None:
    need("setpriv")
    wrapper = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    line = [*wrapper, str(COMMAND), "-f", "--pidfile", "none", "--control", "none", "--keep-bind"]
    line += ["--log", f"syslog:{syslog.path}", "Earth", f"127.0.0.1:{free_port()}", "mx"]
    with subprocess.Popen(line) as process:
        try:
            syslog.wait_for("keep-bind: there is no CAP_NET_BIND_SERVICE to keep; start as root")
            assert capabilities(process.pid) == {(0, 0, 0, 0)}
        finally:
            process.terminate()


def test_another_user_or_group_needs_a_restart(syslog: Syslog, tmp_path: Path) -> None:
    file, port = tmp_path / "t.toml", free_port()
    written(file, port, top='workers = 2\nuser = "nobody"')

    def owner(daemon: Daemon) -> str:
        return status_of(daemon.pid)["Uid"] + status_of(daemon.pid)["Gid"]

    with configured(syslog, file, port) as daemon:
        before = owner(daemon)
        for changed in ('user = "daemon"', 'user = "nobody"\ngroup = "mail"'):
            written(file, port, top=f"workers = 2\n{changed}")
            reload(daemon)
        stays = r"reload: user needs a restart, it stays nobody \(uid \d+, gid \d+\)$"
        assert len(syslog.matching(stays)) == 2
        # The accounts are out of reach by now: whether there is such a user is not asked.
        written(file, port, top='workers = 2\nuser = "no-such-user"')
        reload(daemon)
        assert len(syslog.matching(stays)) == 3
        assert owner(daemon) == before
        assert daemon.banner() != b""
