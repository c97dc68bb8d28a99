"""What is left to a running daemon: tried from inside, and everything else goes on.

Owns: --sandbox, held against the running process: each forbidden call is made by
each of its threads (tests/injected.py), and what the configuration needs is used
after the start.  Kernels that cannot are played by strace, which answers the
system call with their errno.  What pledge and Capsicum do was never run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from injected import inet, puppet, tasks, unix
from running import (
    COMMAND,
    LOCATION,
    NAME,
    SECONDS,
    Daemon,
    Syslog,
    free_port,
    need,
    need_root,
    running,
    until,
)

from tests.system.background import answer, as_nobody, started, status_of
from turnaway import personas

HERE = -100  # AT_FDCWD
FORCED = "landlock ABI 7"
CTL = COMMAND.with_name("turnawayctl")
FASTOPEN = 0x20000000
FORBIDS = (
    *("open", "read a folder", "make a file", "make a folder", "remove", "rename", "shorten"),
    *("bind", "connect", "abstract socket", "signal", "execute"),
)


@pytest.fixture(autouse=True)
def landlocked() -> None:
    """Everything here needs a kernel with Landlock; CI's has it."""
    need_root()
    abi = int(
        subprocess.run(
            [
                *(sys.executable, "-c"),
                "from turnaway import _board; print(_board.landlock_abi())",
            ],
            capture_output=True,
            text=True,
        ).stdout
        or 0
    )
    if abi < 7:
        pytest.fail("needs Landlock ABI 7") if os.environ.get("CI") else pytest.skip("needs ABI 7")


def toml(file: Path, *places: str, top: str = "", more: str = "") -> None:
    """A configuration, whole at any moment."""
    text = f'location = "{LOCATION}"\nworkers = 2\n{top}\n'
    for place in places:
        text += f'[[listener]]\naddress = "{place}"\nname = "{NAME}"\n'
    new = file.with_suffix(".new")
    new.write_text(text + more)
    new.chmod(0o644)
    new.rename(file)


@contextlib.contextmanager
def configured(
    file: Path, log: Syslog, port: int, *options: str, wrapper: Sequence[str] = (), **popen: object
) -> Iterator[Daemon]:
    """turnaway-fast -c FILE in the foreground."""
    begun = len(log.matching("started:"))
    process = subprocess.Popen(
        [*wrapper, str(COMMAND), "-f", "-c", str(file), *options],
        stderr=subprocess.PIPE,
        text=True,
        **popen,  # type: ignore[call-overload]
    )
    try:
        until(
            lambda: len(log.matching("started:")) > begun or process.poll() is not None,
            30,
            "the start",
        )
        assert process.poll() is None, process.stderr.read()
        yield Daemon(process, "127.0.0.1", port, log)
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()


def hang_up(daemon: Daemon, said: str = "reloaded: ") -> str:
    before = len(daemon.syslog.matching(said))
    daemon.process.send_signal(signal.SIGHUP)
    return until(lambda: daemon.syslog.matching(said)[before:], 30, said)[-1]


class Prey:
    """What a daemon that somebody got into would like to have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "open to all"
        self.folder.mkdir()
        self.folder.chmod(0o777)
        self.file = self.folder / "file"
        self.fill()
        self.port = free_port()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0{folder}")
        self.abstract.listen()
        nobody = as_nobody()
        self.other = subprocess.Popen([*nobody, "sleep", "60"])
        until(lambda: status_of(self.other.pid)["Uid"].split()[0] != "0")

    def fill(self) -> None:
        self.file.write_text("text")
        self.file.chmod(0o666)

    def end(self) -> None:
        self.other.kill()
        self.other.wait()
        self.server.close()
        self.abstract.close()

    def tried(self, tid: int) -> dict[str, str]:
        """What the thread can do: for each attempt "done" or the error."""
        path, folder = (os.fsencode(one) + b"\0" for one in (self.file, self.folder))
        made, other = (os.fsencode(self.folder / name) + b"\0" for name in ("new", "other"))
        with puppet(tid) as thread:
            said = {
                "open": thread.said("openat", HERE, path, os.O_RDONLY),
                "read a folder": thread.said("openat", HERE, folder, os.O_RDONLY | os.O_DIRECTORY),
                "make a file": thread.said("openat", HERE, made, os.O_CREAT | os.O_RDWR, 0o600),
                "make a folder": thread.said("mkdir", other, 0o700),
                "shorten": thread.said("truncate", path, 0),
                "rename": thread.said("rename", path, made),
                "remove": thread.said("unlink", made if self.moved() else path),
                "signal": thread.said("kill", self.other.pid, 0),
            }
            one = thread.call("socket", socket.AF_INET, socket.SOCK_STREAM, 0)
            said["bind"] = thread.said("bind", one, inet(self.port), 16)
            there = inet(self.server.getsockname()[1])
            said["connect"] = thread.said("connect", one, there, 16)
            thread.call("close", one)
            one = thread.call("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0)
            name = unix(self.abstract.getsockname().decode().replace("\0", "@"))
            said["abstract socket"] = thread.said("connect", one, name, len(name))
            thread.call("close", one)
            for regain in ("setuid", "setgid"):
                said[regain] = thread.said(regain, 0)
            said["setgroups"] = thread.said("setgroups", 0, 0)
        self.whole = self.file.exists() and self.file.read_text() == "text"
        self.fill()
        return said

    def moved(self) -> bool:
        return not self.file.exists()


@pytest.fixture
def prey(syslog: Syslog, tmp_path: Path) -> Iterator[Prey]:
    made = Prey(tmp_path)
    yield made
    made.end()


def test_nothing_is_left_to_any_thread(syslog: Syslog, prey: Prey) -> None:
    with running(syslog, "-w", "2") as daemon:
        threads = tasks(daemon.pid)
        assert sorted(threads.values()) == ["turnaway-fast", "turnaway-loop", "turnaway-loop"]
        for tid in threads:
            said = prey.tried(tid)
            with puppet(tid) as thread:
                said["execute"] = thread.said("execve", b"/bin/true\0", 0, 0)
            expected = dict.fromkeys((*FORBIDS, "connect"), "EACCES")
            expected |= {"abstract socket": "EPERM", "signal": "EPERM"}
            assert said == {**expected, "setuid": "EPERM", "setgid": "EPERM", "setgroups": "EPERM"}
            assert prey.whole
        assert daemon.banner().startswith(b"421-")
        assert daemon.settled(1)["sent"] == 1
        assert daemon.stop() == 0


def test_the_threads_of_a_reload_have_no_more(syslog: Syslog, prey: Prey, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file, port = tmp_path / "etc" / "t.toml", free_port()
    toml(file, f"127.0.0.1:{port}", top=f'log = "syslog:{syslog.path}"')
    none = ("--pidfile", "none", "--control", "none")
    with configured(file, syslog, port, *none) as daemon:
        old = set(tasks(daemon.pid))
        hang_up(daemon)
        new = until(lambda: set(tasks(daemon.pid)) - old, what="new loops")
        for tid in sorted(new):
            said = prey.tried(tid)
            assert {said[name] for name in ("open", "make a file", "bind", "connect")} == {"EACCES"}
        assert daemon.banner().startswith(b"421-")


def test_without_the_sandbox_all_of_it_is_left(syslog: Syslog, prey: Prey) -> None:
    """So that the test above is worth something."""
    with running(syslog, "--sandbox", "off", "-w", "1") as daemon:
        for tid in tasks(daemon.pid):
            said = prey.tried(tid)
            for name in ("new", "other"):
                found = prey.folder / name
                found.rmdir() if found.is_dir() else found.unlink(missing_ok=True)
            regains = {said.pop(name) for name in ("setuid", "setgid", "setgroups")}
            assert (set(said.values()), regains) == ({"done"}, {"EPERM"})
            prey.port = free_port()
        with puppet(daemon.pid) as thread:
            assert thread.said("execve", b"/bin/true\0", 0, 0) == "done"
        assert daemon.process.wait(SECONDS) == 0  # /bin/true's


# --- what the configuration needs -----------------------------------------------------


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_what_the_configuration_needs_goes_on(syslog: Syslog, tmp_path: Path, user: str) -> None:
    """Answers, reload with persona and list, rotation, textfile, control, the end."""
    pytest.importorskip("prometheus_client")
    folders = {name: tmp_path / name for name in ("etc", "lines", "run", "prom")}
    for folder in folders.values():
        folder.mkdir()
        folder.chmod(0o777)
    port, file, lines = free_port(), folders["etc"] / "t.toml", folders["lines"] / "lines"
    prom, pidfile, door = (
        folders["prom"] / "t.prom",
        folders["run"] / "pid",
        folders["run"] / "ctl",
    )
    persona, listed = folders["etc"] / "own.toml", folders["etc"] / "listed"
    listed.write_text("203.0.113.0/24\n")
    own = '[personas.own]\nfile = "own.toml"\n[[list]]\nname = "listed"\nfiles = ["listed"]\n'
    top = (
        f'persona = "own"\ninterval = 1\nlog = "json:{lines}"\nmetrics = "file:{prom}"\n'
        f'pidfile = "{pidfile}"\ncontrol = "{door}"\nlog-connections = "all"'
    )

    def say(text: str) -> None:
        persona.write_text(f'code = 554\nclose = "now"\nlines = ["{text}"]\nsingle = "{text}"\n')

    def logged(event: str) -> list[str]:
        if not lines.exists():
            return []
        text = lines.read_text()
        whole = text[: text.rfind("\n") + 1].splitlines()
        return [one["message"] for one in map(json.loads, whole) if one["event"] == event]

    say("{name} at {date}: first, in {location}")
    toml(file, f"127.0.0.1:{port}", top=top, more=own)
    wrapper = as_nobody() if user == "nobody" else []
    process = subprocess.Popen([*wrapper, str(COMMAND), "-f", "-c", str(file)])
    try:
        until(lambda: logged("started") or process.poll() is not None, what="the start")
        assert logged("started")[0].endswith(f", sandbox {FORCED}")
        assert b": first" in answer(port)
        # A reload reads what an editor put in place of the file, and a drop-in.
        say("{name} at {date}: second, in {location}")
        (folders["etc"] / "t.toml.d").mkdir()
        (folders["etc"] / "t.toml.d" / "more.toml").write_text('contact = "x"\n')
        listed.write_text("203.0.113.0/25\n")
        toml(file, f"127.0.0.1:{port}", f"127.0.0.2:{port}", top=top, more=own)
        lines.rename(lines.with_suffix(".1"))
        process.send_signal(signal.SIGHUP)
        until(lambda: logged("reloaded"), what="the reload, in a new file")
        for address in ("127.0.0.1", "127.0.0.2"):
            assert b": second" in answer(port, address)
        # A wrong one is told, and what is unreadable.
        persona.unlink()
        process.send_signal(signal.SIGHUP)
        until(lambda: logged("reload"), what="the refusal")
        assert any("own.toml: No such file" in one for one in logged("reload"))
        was = prom.stat().st_ino
        until(lambda: prom.stat().st_ino != was, what="the textfile")
        assert 'turnaway_build_info{version="' in prom.read_text()
        status = subprocess.run([CTL, "-s", door, "status"], capture_output=True, text=True)
        assert f"sandbox   {FORCED}\n" in status.stdout
    finally:
        process.terminate()
        assert process.wait(SECONDS) == 0
    assert logged("stopped")
    left = [one.name for name in ("run", "prom") for one in folders[name].iterdir()]
    until(lambda: not [*folders["run"].iterdir(), *folders["prom"].iterdir()], what=f"{left} to go")


def test_syslog_is_found_again(syslog: Syslog) -> None:
    with running(syslog, "--interval", "1") as daemon:
        syslog.close()
        time.sleep(1.5)
        syslog.open()
        syslog.wait_for(r"log: \d+ lines? (was|were) lost")
        assert daemon.banner() != b""


def test_a_supervisor_by_an_abstract_socket_is_told(tmp_path: Path, syslog: Syslog) -> None:
    """$NOTIFY_SOCKET of systemd in a container: connected to before, and used after."""
    port, file = free_port(), tmp_path / "t.toml"
    toml(file, f"127.0.0.1:{port}", top=f'log = "syslog:{syslog.path}"')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(f"\0{tmp_path}")
        supervisor.settimeout(SECONDS)
        env = {**os.environ, "NOTIFY_SOCKET": f"@{tmp_path}"}
        none = ("--pidfile", "none", "--control", "none")
        with configured(file, syslog, port, *none, env=env) as daemon:
            assert supervisor.recv(99) == b"READY=1\n"
            hang_up(daemon)
            assert supervisor.recv(99).startswith(b"RELOADING=1\n")
            assert supervisor.recv(99) == b"READY=1\n"


def test_a_chroot_has_the_same(syslog: Syslog, tmp_path: Path) -> None:
    """The log is outside of it, the configuration inside at the same path."""
    root, port = tmp_path / "root", free_port()
    file, lines = tmp_path / "t.toml", tmp_path / "lines" / "lines"
    inside = root / tmp_path.relative_to("/")
    for folder in (inside, lines.parent):
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    text = f'log = "json:{lines}"\nchroot = "{root}"\npidfile = "none"\ncontrol = "none"\n'
    for one in (file, inside / "t.toml"):
        toml(one, f"127.0.0.1:{port}", top=f'{text}user = "nobody"\n[personas.mail]\n{OWN}')
    process = subprocess.Popen([COMMAND, "-f", "-c", file])
    try:
        until(lambda: lines.exists() and "started" in lines.read_text(), what="the start")
        assert FORCED in lines.read_text()
        lines.rename(tmp_path / "lines" / "old")
        process.send_signal(signal.SIGHUP)
        until(lambda: lines.exists() and "reloaded: " in lines.read_text(), what="the reload")
        assert answer(port).startswith(b"421 ")
    finally:
        process.terminate()
        process.wait(SECONDS)


OWN = 'code = 421\nclose = "now"\nlines = ["{name} {date} {location}"]\nsingle = "{name}"\n'


def test_another_port_at_a_reload_needs_a_restart(syslog: Syslog, tmp_path: Path) -> None:
    port, other, file = free_port(), free_port(), tmp_path / "t.toml"
    top = f'log = "syslog:{syslog.path}"\npidfile = "none"\ncontrol = "none"'
    toml(file, f"127.0.0.1:{port}", top=top)
    with configured(file, syslog, port) as daemon:
        toml(file, f"127.0.0.1:{port}", f"127.0.0.1:{other}", f"127.0.0.3:{port}", top=top)
        said = hang_up(daemon)
        assert syslog.matching(f"needs a restart: 127.0.0.1:{other}: not permitted any more; with")
        assert f"[127.0.0.1:{port}, 127.0.0.3:{port}]" in said
        assert answer(port, "127.0.0.3").startswith(b"421-")
    # But for who has said that a reload shall bind.
    toml(file, f"127.0.0.1:{port}", top=f"{top}\nkeep-bind = true")
    with configured(file, syslog, port) as daemon:
        assert FORCED in syslog.matching("started: ")[-1]
        toml(file, f"127.0.0.1:{port}", f"127.0.0.1:{other}", top=f"{top}\nkeep-bind = true")
        hang_up(daemon)
        assert answer(other).startswith(b"421-")


def test_what_a_reload_cannot_look_up_needs_a_restart(syslog: Syslog, tmp_path: Path) -> None:
    """The accounts and the package of metrics are out of reach by then."""
    port, file = free_port(), tmp_path / "t.toml"
    top = f'log = "syslog:{syslog.path}"\npidfile = "none"\ncontrol = "none"\n'
    toml(file, f"127.0.0.1:{port}", top=f'{top}user = "nobody"')
    with configured(file, syslog, port) as daemon:
        more = 'user = "daemon"\nmetrics = "127.0.0.1:9"\nsandbox = "off"'
        toml(file, f"127.0.0.1:{port}", top=top + more)
        hang_up(daemon)
        for name in ("user", "metrics", "sandbox"):
            assert syslog.matching(f"reload: {name} needs a restart, it stays "), name
        assert daemon.banner() != b""


# --- what is in force -------------------------------------------------------------------


def answered_with(error: str) -> list[str]:
    """A kernel whose landlock_create_ruleset(2) fails so."""
    need("strace")
    wrapper = ["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-e", f"trace={CREATE}"]
    return [*wrapper, "-e", f"inject={CREATE}:error={error}"]


CREATE = "landlock_create_ruleset"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ENOSYS", "none: kernel without Landlock"),
        ("EOPNOTSUPP", "none: Landlock is not among the kernel's lsm="),
        ("EPERM", "none: landlock_create_ruleset: Operation not permitted"),
    ],
)
def test_a_kernel_that_cannot(
    syslog: Syslog, tmp_path: Path, prey: Prey, error: str, said: str
) -> None:
    door = tmp_path / "ctl"
    with running(syslog, "--control", str(door), wrapper=answered_with(error)) as daemon:
        assert syslog.wait_for("started:").endswith(f", sandbox {said}")
        assert daemon.banner().startswith(b"421-")
        status = subprocess.run([CTL, "-s", door, "status"], capture_output=True, text=True)
        assert f"sandbox   {said}\n" in status.stdout
    begun = time.monotonic()
    refused = subprocess.run(
        [
            *(*answered_with(error), COMMAND, "-f", "--sandbox", "require", "--log", "none"),
            *("--pidfile", str(tmp_path / "pid"), "--control", "none", LOCATION),
            *(f"127.0.0.1:{free_port()}", NAME),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert time.monotonic() - begun < SECONDS
    why = said.removeprefix("none: ")
    assert refused.returncode == os.EX_CONFIG
    assert refused.stderr == (
        f"turnaway-fast: --sandbox require: {why}; expected Linux 5.13 or newer with landlock"
        " among its lsm=, or --sandbox on, which goes on without\n"
    )
    assert not (tmp_path / "pid").exists()


def test_the_parent_has_the_status_of_require(syslog: Syslog, tmp_path: Path) -> None:
    with started(
        tmp_path / "pid", "--sandbox", "require", wrapper=answered_with("ENOSYS")
    ) as start:
        assert start.status == os.EX_CONFIG
        assert "kernel without Landlock" in start.stderr
        start.gone()
        assert not start.pidfile.exists()


def test_older_kernels_cover_less_and_it_is_said(syslog: Syslog, prey: Prey) -> None:
    """strace answers the question for the version; the rulesets are real."""
    need("strace")
    for abi, lacks in ((3, " (files only)"), (5, " (files and TCP)")):
        wrapper = ["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-e", f"trace={CREATE}"]
        wrapper += ["-e", f"inject={CREATE}:retval={abi}:when=1"]
        with running(syslog, wrapper=wrapper) as daemon:
            assert syslog.matching("started:")[-1].endswith(f", sandbox landlock ABI {abi}{lacks}")
            assert daemon.banner().startswith(b"421-")


@pytest.mark.parametrize(("how", "said"), [("require", FORCED), ("on", FORCED), ("off", "off")])
def test_it_says_what_is_in_force(syslog: Syslog, how: str, said: str) -> None:
    with running(syslog, "--sandbox", how):
        assert syslog.wait_for("started:").endswith(f", sandbox {said}")


# --- cores, and who may look in -------------------------------------------------------


@pytest.mark.parametrize(("how", "cores"), [("on", 0), ("off", 1)])
def test_no_core_is_written(syslog: Syslog, tmp_path: Path, how: str, cores: int) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if "/" in pattern or "|" in pattern:
        pytest.skip("cores are not written where the process is")
    folder = tmp_path / "cwd"
    folder.mkdir()
    folder.chmod(0o777)

    with running(
        syslog,
        *("--sandbox", how),
        wrapper=["prlimit", "--core=unlimited", *as_nobody()],
        cwd=folder,
    ) as daemon:
        limits = Path(f"/proc/{daemon.pid}/limits").read_text()
        owner = os.stat(f"/proc/{daemon.pid}/environ").st_uid
        daemon.process.send_signal(signal.SIGSEGV)
        daemon.process.wait(SECONDS)
    assert len(list(folder.iterdir())) == cores
    assert bool(re.search(r"Max core file size +0 +0 ", limits)) == (cores == 0)
    assert (owner == 0) == (cores == 0)


# --- imported, and opened, before -------------------------------------------------------


def test_nothing_is_imported_after_the_start(tmp_path: Path, syslog: Syslog) -> None:
    """Every path is gone at once by a daemon under strace; what it then opens is
    what a reload reads, and the log.

    Its only listener is handed in, so that the first one it binds is a reload's.
    """
    need("strace")
    pytest.importorskip("prometheus_client")
    port, metrics, trace = free_port(), free_port(), tmp_path / "trace"
    file, door, lines = tmp_path / "t.toml", tmp_path / "ctl", tmp_path / "log.d" / "lines"
    lines.parent.mkdir()
    lines.parent.chmod(0o777)
    (tmp_path / "listed").write_text("203.0.113.0/24\n")
    top = (
        f'log = "json:{lines}"\nmetrics = "127.0.0.1:{metrics}"\npidfile = "none"\n'
        f'control = "{door}"\nprotocol = "auto"\ninterval = 1'
    )
    more = '[[list]]\nname = "listed"\nfiles = ["listed"]\n'
    toml(file, f"127.0.0.1:{port}", top=top, more=more)
    hand_in = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid());"
    with socket.create_server(("127.0.0.1", port), backlog=64) as held:
        hand_in += f" os.dup2({held.fileno()}, 3); os.execv(sys.argv[1], sys.argv[1:])"
        process = subprocess.Popen(
            [
                *("strace", "-f", "-qq", "-o", trace),
                *("-e", "trace=open,openat,execve,connect,landlock_restrict_self"),
                *(sys.executable, "-c", hand_in, COMMAND, "-f", "-c", file),
            ],
            env={**os.environ, "LISTEN_FDS": "1"},
            pass_fds=(held.fileno(),),
        )
    try:
        until(lambda: lines.exists() and "started" in lines.read_text(), 30, "the start")
        pid = json.loads(lines.read_text().splitlines()[0])["pid"]
        for octets in (
            b"EHLO x\r\n",
            b"GET / HTTP/1.1\r\nAccept: text/html\r\n\r\n",
            b"\x05\x01\0",
        ):
            with socket.create_connection(("127.0.0.1", port), SECONDS) as one:
                one.sendall(octets)
                assert one.recv(4096)
        assert answer(port).startswith(b"421-")
        for path in ("metrics", "nothing"):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{metrics}/{path}", timeout=SECONDS).read()
        for words in (
            *("status", "stats --json", "top -n 1", "loglevel sample:3", "pause x", "tail -n 0"),
            *(f"pause 127.0.0.1:{port}", f"resume 127.0.0.1:{port}", "reload"),
        ):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run([CTL, "-s", door, *words.split()], timeout=1, capture_output=True)
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(door))
            one.sendall(b"nonsense \xff\n")
            assert b"one JSON object" in one.recv(4096)
        toml(file, f"127.0.0.1:{port}", f"127.0.0.4:{port}", top=f"wokers = 1\n{top}", more=more)
        os.kill(pid, signal.SIGHUP)
        until(lambda: "did you mean" in lines.read_text(), 30, "the refusal")
        lines.rename(tmp_path / "log.d" / "old")
        toml(file, f"127.0.0.1:{port}", f"127.0.0.4:{port}", top=top, more=more)
        os.kill(pid, signal.SIGHUP)
        until(lambda: lines.exists() and "reloaded" in lines.read_text(), 30, "the reload")
        assert answer(port, "127.0.0.4").startswith(b"421-")
        os.kill(pid, signal.SIGUSR1)
        until(lambda: "counters: " in lines.read_text(), 30, "the counters")
    finally:
        os.kill(pid, signal.SIGTERM)
        assert process.wait(30) == 0
    text = trace.read_text()
    assert re.search(rf"^{pid} +landlock_restrict_self", text, re.M)
    after = text[text.index("landlock_restrict_self") :]
    opened = set(re.findall(r'open(?:at)?\([^"]*"([^"]*)"', after))
    assert opened - {str(personas.HOME / "mail.toml")} == {
        str(file),
        str(tmp_path / "listed"),
        "lines",
    }
    assert "execve(" not in after
    assert "connect(" not in after
