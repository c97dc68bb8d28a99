"""The pidfile: the lock is the truth, and what the file says is only for people.

Hostile here: a second start, a kill -9, files that are no pidfiles, and a
supervisor that ends every process of the daemon at once.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import COMMAND, Syslog, free_port, need, need_root, running, until

from tests.system.background import SOON, WHOLE, alive, answer, started


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of root's that others may only look into."""
    need_root()
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    return tmp_path


@pytest.fixture
def links(place: Path) -> Iterator[list[Path]]:
    """Two links to the command; their names decide their pidfiles in /var/run."""
    made = [place / f"turnaway-{word}-{os.getpid()}" for word in ("left", "right")]
    for link in made:
        link.symlink_to(COMMAND)
    yield made
    for link in made:
        Path(f"/var/run/{link.name}.pid").unlink(missing_ok=True)


def test_second_start_names_the_running_pid(place: Path) -> None:
    with started(place / "pid") as first, started(place / "pid") as second:
        assert first.status == 0
        assert second.status == os.EX_TEMPFAIL
        assert f"already running, pid {first.pid} " in second.stderr
        assert str(place / "pid") in second.stderr
        assert first.pidfile.read_text() == f"{first.pid}\n"
        assert WHOLE.fullmatch(answer(first.port))


def test_second_start_with_the_same_port_too(place: Path) -> None:
    """75 and not 69: that it runs already says more than that a port is taken."""
    with started(place / "pid") as first, started(place / "pid", port=first.port) as second:
        assert second.status == os.EX_TEMPFAIL
        assert f"pid {first.pid} " in second.stderr


def test_second_start_while_one_is_in_the_foreground(place: Path, syslog: Syslog) -> None:
    pidfile = str(place / "fore")
    with running(syslog, "--pidfile", pidfile) as first, started(pidfile) as second:
        assert second.status == os.EX_TEMPFAIL
        assert f"pid {first.pid} " in second.stderr
        assert first.banner()
    assert not Path(pidfile).exists()


def test_five_starts_at_once_and_one_runs(place: Path) -> None:
    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor() as pool:
        starts = list(
            pool.map(lambda _: stack.enter_context(started(place / "pid", "-w", "1")), range(5))
        )
        assert sorted(start.status for start in starts) == [0] + [os.EX_TEMPFAIL] * 4
        running_one = next(start for start in starts if start.status == 0)
        assert WHOLE.fullmatch(answer(running_one.port))


def test_killed_without_a_word_never_blocks_the_next(place: Path) -> None:
    """kill -9, and the next start the very moment that the process is gone."""
    port = free_port()
    for _ in range(5):
        with started(place / "pid", port=port) as start:
            assert start.status == 0, start.stderr
            pid = start.pid
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not alive(pid))
            with started(place / "pid", port=port) as after:
                assert after.status == 0, after.stderr
                assert after.pid != pid
                assert WHOLE.fullmatch(answer(port))
                after.end()
            assert not start.pidfile.exists()


def test_killed_without_a_word_leaves_no_process(place: Path) -> None:
    with started(place / "pid") as start:
        assert len(start.processes()) == 2  # the daemon and its janitor
        os.kill(start.pid, signal.SIGKILL)
        start.gone()


def test_stale_file_with_the_pid_of_a_stranger(place: Path) -> None:
    (place / "pid").write_text(f"{os.getpid()}\n")
    with started(place / "pid") as start:
        assert start.status == 0, start.stderr
        assert start.pid != os.getpid()


def test_longer_stale_content_leaves_no_rest(place: Path) -> None:
    (place / "pid").write_text("999999999\n")
    with started(place / "pid") as start:
        assert start.pidfile.read_text() == f"{start.pid}\n"


def test_removed_on_a_clean_stop_from_roots_folder(place: Path) -> None:
    """By then the daemon is nobody and may not remove it itself."""
    with started(place / "pid") as start:
        pid = start.pid
        os.kill(pid, signal.SIGTERM)
        until(lambda: not alive(pid))
        assert list(place.iterdir()) == []  # at once: the next may be started now
        start.gone()


def test_pidfile_of_a_successor_is_not_removed(place: Path) -> None:
    """Somebody has removed the file by hand, and a second one runs with a new file."""
    with started(place / "pid") as first:
        one = first.pid
        (place / "pid").unlink()
        with started(place / "pid") as second:
            assert second.status == 0, second.stderr
            os.kill(one, signal.SIGTERM)
            until(lambda: not alive(one))
            until(lambda: first.processes() == [])
            assert alive(second.pid)


def test_default_pidfile_is_named_after_the_link(links: list[Path]) -> None:
    left, right = links
    with started(None, program=left) as one, started(None, program=right) as two:
        for start, link in ((one, left), (two, right)):
            assert start.status == 0, start.stderr
            start.pidfile = Path(f"/var/run/{link.name}.pid")
            assert WHOLE.fullmatch(answer(start.port))
        assert one.pid != two.pid
        one.end()
        two.end()
        assert not one.pidfile.exists()
        assert not two.pidfile.exists()


def test_link_collides_with_itself_only(links: list[Path]) -> None:
    with started(None, program=links[0]) as one, started(None, program=links[0]) as again:
        one.pidfile = Path(f"/var/run/{links[0].name}.pid")
        assert again.status == os.EX_TEMPFAIL
        assert f"pid {one.pid} " in again.stderr


@pytest.mark.parametrize("persona", ["mail", "blocked", "spammer", "abused", "worm"])
def test_persona_by_the_beginning_of_the_links_name(
    place: Path, persona: str, syslog: Syslog
) -> None:
    link = place / f"turnaway{persona}-x"
    link.symlink_to(COMMAND)
    with running(syslog, program=link) as daemon:
        line = syslog.matching("started:")[-1]
        assert f" turnaway{persona}-x[{daemon.pid}]: " in line
        assert f" {persona} " in line
        assert daemon.banner()[:4] in (b"421-", b"554-")
        syslog.wait_for(f"turned away .* persona={persona} ")


@pytest.mark.parametrize("where", ["missing/pid", "", "file/pid"])
def test_place_where_no_file_can_be(place: Path, where: str) -> None:
    (place / "file").touch()
    with started(place / where) as start:
        assert start.status == os.EX_CANTCREAT
        assert "cannot create the pidfile" in start.stderr
        assert "--pidfile" in start.stderr
        assert start.processes() == []
        with pytest.raises(ConnectionRefusedError):
            answer(start.port)


def test_link_in_the_place_of_the_pidfile_is_not_followed(place: Path) -> None:
    """In a folder that others may write to, a link would let them choose what root empties."""
    (place / "precious").write_text("precious")
    (place / "pid").symlink_to(place / "precious")
    with started(place / "pid") as start:
        assert start.status == os.EX_CANTCREAT
        assert (place / "precious").read_text() == "precious"


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.1"])
def test_device_in_the_place_of_the_pidfile_is_kept(place: Path, address: str) -> None:
    """`--pidfile /dev/null` must not remove /dev/null, not even when the start fails."""
    os.mknod(place / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with started(place / "null", place=f"{address}:{free_port()}") as start:
        assert start.status == os.EX_CANTCREAT
        assert "not a regular file" in start.stderr
        assert "Traceback" not in start.stderr
        assert stat.S_ISCHR((place / "null").stat().st_mode)


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_no_file_in_the_place_of_the_pidfile(place: Path, kind: str) -> None:
    os.mknod(place / "it", 0o666 | (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK))
    with started(place / "it") as start:
        assert start.status == os.EX_CANTCREAT
        assert "Traceback" not in start.stderr
        assert (place / "it").exists()


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.1"])
def test_file_that_is_no_pidfile_is_neither_emptied_nor_removed(place: Path, address: str) -> None:
    """`--pidfile /etc/turnaway.toml`, typed by mistake."""
    (place / "precious").write_text("[precious]\n")
    with started(place / "precious", place=f"{address}:{free_port()}") as start:
        assert start.status == os.EX_CANTCREAT
        assert "something else than a pid" in start.stderr
        assert (place / "precious").read_text() == "[precious]\n"


def test_full_disk_is_told(place: Path) -> None:
    """A pidfile that can be made but not written."""
    need("prlimit")
    with started(place / "pid", wrapper=["prlimit", "--fsize=0"]) as start:
        assert start.status == os.EX_CANTCREAT
        assert "cannot write the pidfile" in start.stderr
        assert "Traceback" not in start.stderr
        assert start.processes() == []
        assert not start.pidfile.exists()


def test_supervisor_that_ends_all_processes_at_once(place: Path) -> None:
    """systemd sends SIGTERM to every process of the unit; the file is removed all the same."""
    with started(place / "pid") as start:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for pid in start.processes():
                if pid != start.pid:
                    os.kill(pid, number)
        time.sleep(0.05)
        assert len(start.processes()) == 2
        os.kill(start.pid, signal.SIGTERM)
        start.gone()
        assert not start.pidfile.exists()


def test_janitor_killed_costs_the_file_and_nothing_else(place: Path) -> None:
    with started(place / "pid") as start:
        pid = start.pid
        (janitor,) = (one for one in start.processes() if one != pid)
        os.kill(janitor, signal.SIGKILL)
        until(lambda: not alive(janitor))
        assert WHOLE.fullmatch(answer(start.port))
        with started(place / "pid") as second:  # the daemon itself holds the lock too
            assert second.status == os.EX_TEMPFAIL
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        until(lambda: not alive(pid))
        assert time.monotonic() - began < SOON
        with started(place / "pid") as after:
            assert after.status == 0, after.stderr


def test_janitor_is_told_when_the_start_fails_late(place: Path) -> None:
    """The chroot fails after the pidfile is written: nothing is left, and the status is told."""
    (place / "pit").mkdir()
    need("setpriv")
    wrapper = ["setpriv", "--bounding-set", "-sys_chroot", "--inh-caps", "-sys_chroot"]
    with started(place / "pid", "--chroot", str(place / "pit"), wrapper=wrapper) as start:
        assert start.status == os.EX_OSERR
        assert "chroot" in start.stderr
        start.gone()
        assert not start.pidfile.exists()


def test_umask_of_the_caller_does_not_open_the_pidfile(place: Path) -> None:
    wrapper = ["sh", "-c", 'umask 0; exec "$0" "$@"']
    with started(place / "pid", wrapper=wrapper) as start:
        assert stat.S_IMODE(start.pidfile.stat().st_mode) == 0o644
        assert start.pidfile.stat().st_uid == 0
