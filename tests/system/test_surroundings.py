"""Where the daemon lives: a chroot, a supervisor, a zone, a host that gives it little."""

from __future__ import annotations

import datetime
import os
import re
import signal
import socket
import subprocess
import time
import zoneinfo
from pathlib import Path

import pytest
from running import COMMAND, LOCATION, NAME, SECONDS, Syslog, free_port, need, need_root, running

from tests.system.background import WHOLE, answer, started

ELSEWHERE = "America/Denver"


def need_zone(name: str) -> None:
    try:
        zoneinfo.ZoneInfo(name)
    except zoneinfo.ZoneInfoNotFoundError:
        if os.environ.get("CI"):
            pytest.fail("missing in CI: tzdata")
        pytest.skip("needs tzdata")


def is_dated(banner: bytes, zone: str) -> bool:
    """Whether the banner has the date of now, as it is written in that zone."""
    now = datetime.datetime.now(zoneinfo.ZoneInfo(zone))
    moments = (now - datetime.timedelta(seconds=back) for back in range(3))
    return any(one.strftime("%H:%M:%S %z (%Z)").encode() in banner for one in moments)


def test_chroot_banner_log_and_signals_go_on(tmp_path: Path, syslog: Syslog) -> None:
    need_root()
    need_zone(ELSEWHERE)
    pit = tmp_path / "pit"
    pit.mkdir()
    env = {**os.environ, "TZ": ELSEWHERE}
    pidfile = tmp_path / "pid"
    options = ["--chroot", str(pit), "--interval", "1", "--pidfile", str(pidfile)]
    with running(syslog, *options, env=env) as daemon:
        assert os.readlink(f"/proc/{daemon.pid}/root") == str(pit)
        assert os.readlink(f"/proc/{daemon.pid}/cwd") == str(pit)
        for _ in range(2):
            assert is_dated(daemon.banner(), ELSEWHERE)
            time.sleep(1.1)
        syslog.wait_for("turned away ")
        syslog.wait_for(r"interval: .*busiest \[127\.0\.0\.1\]")
        daemon.process.send_signal(signal.SIGHUP)
        syslog.wait_for("SIGHUP")
        assert daemon.counters()["sent"] == 2
        assert daemon.stop() == 0
        syslog.wait_for("stopped: SIGTERM")
    assert not pidfile.exists()
    assert list(pit.iterdir()) == []


def test_reload_in_a_chroot(tmp_path: Path, syslog: Syslog) -> None:
    """The file is there at the same path; no persona, no user and no such folder is."""
    need_root()
    pit, port = tmp_path / "pit", free_port()
    inside = pit / str(tmp_path).lstrip("/") / "turnaway.toml"
    inside.parent.mkdir(parents=True)
    for folder in (tmp_path, *inside.parents):
        if folder.is_relative_to(tmp_path.parent.parent):
            folder.chmod(0o755)
    text = (
        f'location = "Earth"\nchroot = "{pit}"\n[[listener]]\naddress = "127.0.0.1:{port}"\n'
        'name = "mx.example.com"\n'
    )
    for file in (tmp_path / inside.name, inside):
        file.write_text(text)
        file.chmod(0o644)
    line = [str(COMMAND), "-f", "-c", str(tmp_path / inside.name), "--pidfile", "none"]
    line += ["--control", "none", "--log", f"syslog:{syslog.path}"]
    with subprocess.Popen(line) as process:
        try:
            syslog.wait_for("started:")
            inside.write_text(text.replace("mx.", "other.") + 'persona = "blocked"\n')
            process.send_signal(signal.SIGHUP)
            syslog.wait_for("reloaded: ")
            assert answer(port).startswith(b"554-other.example.com ")
            assert syslog.matching("needs a restart") == []
        finally:
            process.terminate()


def test_chroot_keeps_the_zone_of_the_host(tmp_path: Path, syslog: Syslog) -> None:
    """Without TZ the zone stands in /etc/localtime, which the chroot does not have."""
    need_root()
    need("unshare", "mount")
    need_zone("Asia/Tokyo")
    pit = tmp_path / "pit"
    pit.mkdir()
    file = "/usr/share/zoneinfo/Asia/Tokyo"
    script = f'mount --bind {file} /etc/localtime && exec "$@"'
    wrapper = ["unshare", "-m", "sh", "-c", script, "sh"]
    env = {name: value for name, value in os.environ.items() if name != "TZ"}
    with running(syslog, "--chroot", str(pit), wrapper=wrapper, env=env) as daemon:
        for _ in range(3):
            assert is_dated(daemon.banner(), "Asia/Tokyo")
            time.sleep(0.6)


@pytest.mark.parametrize("chroot", [False, True], ids=["plain", "chroot"])
@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_supervisor_is_told_ready_and_stopping(
    tmp_path: Path, chroot: bool, abstract: bool
) -> None:
    """NOTIFY_SOCKET: it stays in the foreground, and says both words, from a chroot too."""
    need_root()
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    (tmp_path / "pit").mkdir()
    port = free_port()
    options = ["--chroot", str(tmp_path / "pit")] if chroot else []
    name = f"turnaway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.settimeout(3)
        if abstract:
            supervisor.bind("\0" + name)
        else:
            supervisor.bind(str(tmp_path / "notify"))
            (tmp_path / "notify").chmod(0o666)
        env = {**os.environ, "NOTIFY_SOCKET": f"@{name}" if abstract else str(tmp_path / "notify")}
        command = [
            str(COMMAND),
            "--pidfile",
            "none",
            "--control",
            "none",
            "--log",
            "none",
            *options,
            LOCATION,
        ]
        process = subprocess.Popen([*command, f"127.0.0.1:{port}", NAME], env=env)
        try:
            assert b"READY=1" in supervisor.recv(4096).split(b"\n")
            assert process.poll() is None
            assert WHOLE.fullmatch(answer(port))
            process.terminate()
            assert b"STOPPING=1" in supervisor.recv(4096).split(b"\n")
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
            process.wait()


def test_supervisor_that_does_not_listen_is_no_trouble(syslog: Syslog) -> None:
    env = {**os.environ, "NOTIFY_SOCKET": "/no/such/socket"}
    with running(syslog, env=env) as daemon:
        assert daemon.banner()
        assert daemon.stop() == 0


def test_user_without_a_thread_to_spare(tmp_path: Path) -> None:
    """The loops cannot be started: 71 and why, not a traceback."""
    need_root()
    need("prlimit")
    wrapper = ["prlimit", "--nproc=1"]
    with started(tmp_path / "pid", "-w", "2", wrapper=wrapper) as start:
        assert start.status == os.EX_OSERR, start.stderr
        assert "Traceback" not in start.stderr
        start.gone()
        assert not start.pidfile.exists()


def test_namespace_where_root_is_not_root(tmp_path: Path) -> None:
    """`unshare -r`: uid 0, but nobody else to become.  71, and nothing is served."""
    need("unshare")
    if subprocess.run(["unshare", "-r", "true"], capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here")
    with started(tmp_path / "pid", wrapper=["unshare", "-r"]) as start:
        assert start.status == os.EX_OSERR
        assert re.search("cannot become [a-z]+", start.stderr)
        assert "Traceback" not in start.stderr
        start.gone()
        assert not start.pidfile.exists()
        with pytest.raises(ConnectionRefusedError):
            answer(start.port)
