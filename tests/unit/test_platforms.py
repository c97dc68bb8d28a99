"""What other systems have instead: compiled here, and where it can be, run here.

Owns: ext/net.h and the kqueue loop compiled as on FreeBSD, OpenBSD, NetBSD and
macOS (tests/kqueue/platforms.h), the choice of the loop in setup.py, and the
ways that turnaway/ takes where Linux's own are missing.  None of it is a run on
such a system.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import loops
import pytest
from running import free_port, need, need_module, need_root

from turnaway import _board, cli, lint, outlet, privileged, values
from turnaway.exits import UNAVAILABLE, Failure
from turnaway.settings import Listener

ROOT = Path(__file__).parents[2]
SYSTEMS = ("FREEBSD", "OPENBSD", "NETBSD", "MACOS", "BARE")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    for name in ("board", "kqueue"):
        loops.run(
            *(sys.executable, "-m", "cython", "-3", "-I", "ext"),
            *("-o", folder / f"{name}.c", f"ext/{name}.pyx"),
        )
    return folder


def compiled(source: Path, *flags: str) -> str:
    """What gcc has to say, with setup.py's warnings as errors."""
    ended = subprocess.run(
        [
            *("gcc", "-fsyntax-only", "-fPIC", "-O0", "-Wall", "-Wextra", "-Werror"),
            *("-Wno-unused-parameter", "-Wno-unused-function", "-Wno-missing-field-initializers"),
            *("-DPy_LIMITED_API=0x030b0000", "-DTURNAWAY_KQUEUE=1", *flags),
            *("-Iext", "-Itests/kqueue", f"-I{sysconfig.get_paths()['include']}", str(source)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ended.returncode == 0 or ended.stderr
    return ended.stderr


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", ["board", "kqueue"])
def test_it_compiles_as_on(system: str, name: str, generated: Path) -> None:
    need("gcc")
    flags = ("-include", "Python.h", "-include", "tests/kqueue/platforms.h", f"-DAS_{system}")
    assert compiled(generated / f"{name}.c", *flags) == ""


def test_it_would_be_seen_if_it_did_not_compile(generated: Path) -> None:
    need("gcc")
    assert "as what?" in compiled(
        generated / "board.c", "-include", "Python.h", "-include", "tests/kqueue/platforms.h"
    )


# --- setup.py -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("kqueue", r"TURNAWAY_LOOP=kqueue needs libkqueue on Linux, and pkg-config does not find"),
        ("select", r"TURNAWAY_LOOP=select: expected epoll or kqueue on linux"),
    ],
)
def test_a_loop_that_cannot_be_built_is_one_line(wanted: str, said: str, tmp_path: Path) -> None:
    need("pkg-config")
    ended = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={
            **os.environ,
            "TURNAWAY_LOOP": wanted,
            "PKG_CONFIG_PATH": "",
            "PKG_CONFIG_LIBDIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert re.fullmatch(rf"setup\.py: {said}[^\n]*\n", ended.stderr), ended.stderr


@pytest.mark.parametrize(
    ("platform", "loop"),
    [("freebsd14", "kqueue"), ("openbsd7", "kqueue"), ("netbsd10", "kqueue"), ("darwin", "kqueue")],
)
def test_the_loop_of_a_platform(platform: str, loop: str) -> None:
    code = (
        "import sys; exec(open('setup.py').read().partition('\\nsetup(')[0]);"
        "sys.platform = sys.argv[1]; made = extension(loop()); print(made.name, made.sources, made.extra_link_args)"
    )
    said = loops.run(sys.executable, "-c", code, platform, TURNAWAY_LOOP="")
    assert said == f"turnaway._{loop} ['ext/{loop}.pyx'] []\n"


def test_a_platform_without_a_loop() -> None:
    code = (
        "import sys; exec(open('setup.py').read().partition('\\nsetup(')[0]);"
        "sys.platform = 'sunos5'; loop()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("setup.py: no loop for sunos5: Turnaway runs on Linux, FreeBSD")


# --- the loop's own module --------------------------------------------------------


def in_package(*words: str, name: str = "kqueue") -> str:
    return loops.run(sys.executable, *words, PYTHONPATH=str(loops.build(name)))


def test_the_stub_says_what_the_kqueue_loop_has(tmp_path: Path) -> None:
    need_module("mypy")
    leavings = tmp_path / "leavings"
    leavings.write_text(r"turnaway\._\w+\.__(reduce_cython|setstate_cython|test)__" + "\n")
    in_package(
        *("-P", "-m", "mypy.stubtest", "--concise", "--ignore-unused-allowlist"),
        *("--allowlist", str(leavings), "turnaway._kqueue"),
    )


@pytest.mark.parametrize(("name", "descriptors"), [("kqueue", 1), ("kqueue-bare", 3)])
def test_what_wakes_a_kqueue(name: str, descriptors: int) -> None:
    """One descriptor with EVFILT_USER, and a pipe besides without it."""
    code = f"""
import errno, os, socket, threading, time
from turnaway import _board, _kqueue
fds = _kqueue.open_wake()
assert len(fds) == {descriptors}, fds
assert not any(os.get_inheritable(fd) for fd in fds)
for _ in range(100_000):
    _kqueue.wake(fds[-1])  # a pipe that is full is no trouble
board = _board.Board(1, 1)
try:
    _kqueue.run(board, 1)
except IndexError as error:
    assert str(error) == "worker 1 of 1"
with socket.create_server(("127.0.0.1", 0)) as listener:
    listener.setblocking(False)
    board.attach(0, 0, listener.fileno())
    board.attach_wake(0, fds[0])
    board.publish(0, "banner", b"421 no\\r\\n")
    turns = lambda: board.states()[0][2]
    loop = threading.Thread(target=_kqueue.run, args=(board, 0), daemon=True)
    loop.start()
    until = time.monotonic() + 10
    while turns() < 1 and time.monotonic() < until:
        time.sleep(0.01)
    for _ in range(3):
        before = turns()
        _kqueue.wake(fds[-1])
        while turns() == before and time.monotonic() < until:
            time.sleep(0.01)
    time.sleep(0.1)
    before = turns()
    assert before >= 4, before
    time.sleep(0.3)
    assert turns() == before, "it spins"
    board.stop()
    _kqueue.wake(fds[-1])
    loop.join(10)
    assert not loop.is_alive()
for fd in fds:
    os.close(fd)
try:
    _kqueue.wake(fds[-1])
except OSError as error:
    assert error.errno == errno.EBADF
else:
    raise AssertionError("woken, though it is closed")
"""
    in_package("-P", "-c", code, name=name)


# --- turnaway/ --------------------------------------------------------------------


def listener() -> Listener:
    made = cli.parse(["turnaway-fast", "Earth", f"127.0.0.1:{free_port()} mx.example.com"])
    return made.settings.listeners[0]


@pytest.mark.parametrize(
    ("sharing", "sockets"), [("never", 1), ("before bind", 3), ("any time", 3)]
)
def test_how_workers_share_an_address(
    sharing: str, sockets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privileged, "SHARING", sharing)
    one = listener()
    bound = privileged.bind((one,), 3)
    try:
        assert len({row[0].fileno() for row in bound}) == sockets
        with socket.create_connection((one.address, one.port), 10):
            accepted = []
            for row in bound:
                try:
                    accepted.append(row[0].accept()[0])
                except BlockingIOError:
                    continue
            assert len(accepted) == 1
            accepted[0].close()
        with pytest.raises(Failure) as caught:
            privileged.bind((one,), 3)
        assert caught.value.status == UNAVAILABLE
    finally:
        for row in bound:
            row[0].close()


def test_the_options_of_a_listener() -> None:
    with socket.socket() as one:
        fd = one.fileno()
        assert _board.SHARING == "any time"
        for act, option, value in (
            (lambda: _board.cork(fd, True), socket.TCP_CORK, 1),
            (lambda: _board.cork(fd, False), socket.TCP_CORK, 0),
            (lambda: _board.give_up(fd, 10_000), socket.TCP_USER_TIMEOUT, 10_000),
            (lambda: _board.finwait(fd, 3), socket.TCP_LINGER2, 3),
        ):
            assert act()
            assert one.getsockopt(socket.IPPROTO_TCP, option) == value
        assert _board.share(fd)
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
    for refused in (
        lambda: _board.cork(-1, True),
        lambda: _board.give_up(-1, 1),
        lambda: _board.finwait(-1, 1),
        lambda: _board.share(-1),
        lambda: _board.peer_user(-1),
    ):
        with pytest.raises(OSError, match="Bad file descriptor"):
            refused()


def test_who_is_at_the_other_end() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert _board.peer_user(one.fileno()) == os.geteuid()


def test_a_file_nowhere_without_memfd_create(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    fd = outlet._nowhere()
    try:
        os.write(fd, b"line")
        assert os.pread(fd, 9, 0) == b"line"
        assert os.fstat(fd).st_nlink == 0
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_timewait_no_where_no_option_does_that(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["turnaway-fast", "--timewait", "no", "Earth", "127.0.0.1:2525 mx.example.com"]
    settings = cli.parse(words).settings
    assert lint.warnings(settings) == []
    monkeypatch.delattr(socket, "TCP_LINGER2")
    (said,) = lint.warnings(settings)
    assert said.endswith("timewait no has no effect on this system")


def test_as_many_workers_as_processors_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert 1 <= values.workers("auto") <= os.cpu_count()


def test_root_is_dropped_without_setresuid() -> None:
    need_root()
    code = """
import os
told = os.getresuid, os.getresgid
del os.setresuid, os.setresgid, os.getresuid, os.getresgid
from turnaway import privileged
from turnaway.settings import Identity
privileged.drop(Identity("nobody", 65534, 65534))
assert [tell() for tell in told] == [(65534,) * 3] * 2
assert os.getgroups() == []
"""
    loops.run(sys.executable, "-c", code)
