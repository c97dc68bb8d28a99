"""What stands beside the daemon: units, rc scripts, rotation, fail2ban, CrowdSec.

Owns: that every file of contrib/ and turnaway/units/ is accepted by the program
it is made for, and true of the daemon: the sandbox of the unit allows what the
daemon does, and the filters match the lines that it writes.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import COMMAND, NAME, SECONDS, Syslog, free_port, need, need_root, read_all, until

from tests.system.background import answer
from turnaway import exits, units

ROOT = Path(__file__).parents[2]
CONTRIB = ROOT / "contrib"


def run(
    *words: str | Path, env: dict[str, str] | None = None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)),
        capture_output=True,
        text=True,
        input=text,
        env={**os.environ, **(env or {})},
        timeout=60,
    )


def good(*words: str | Path, env: dict[str, str] | None = None, text: str = "") -> str:
    """What the command says; it must say that all is well."""
    done = run(*words, env=env, text=text)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# Printed units


@pytest.mark.parametrize("kind", units.KINDS)
def test_a_printed_unit_has_the_path_of_the_command_that_was_asked(kind: str) -> None:
    text = units.print_unit(kind, str(COMMAND))
    assert "/usr/local/bin/turnaway-fast" not in text
    assert (str(COMMAND) in text) == (kind != "systemd-socket")


def test_a_printed_unit_has_the_name_of_the_command_that_was_asked() -> None:
    text = units.print_unit("systemd", "/opt/x/turnawayspammer")
    assert "ExecStart=/opt/x/turnawayspammer " in text
    assert "RuntimeDirectory=turnawayspammer\n" in text
    assert "man:turnaway-fast(8)" in text  # one manual page for all names
    assert 'name="turnawayspammer"' in units.print_unit("freebsd", "/opt/x/turnawayspammer")


def test_python_m_prints_the_command_beside_python() -> None:
    text = units.print_unit("systemd", "/somewhere/turnaway/__main__.py")
    assert f"ExecStart={COMMAND} " in text


def test_every_unit_of_the_package_can_be_printed() -> None:
    there = {path.name for path in units.HOME.iterdir() if path.suffix not in (".py", "")}
    assert there == set(units.KINDS.values())


# systemd


@pytest.fixture
def unit_files(tmp_path: Path) -> Path:
    """The printed units in a folder, and the manual pages where man(1) finds them."""
    folder = tmp_path / "units"
    folder.mkdir()
    for kind in ("systemd", "systemd-socket"):
        (folder / units.KINDS[kind]).write_text(units.print_unit(kind, str(COMMAND)))
    for page in (ROOT / "man").glob("*.[58]"):
        home = tmp_path / f"man/man{page.suffix[1:]}"
        home.mkdir(parents=True, exist_ok=True)
        (home / page.name).write_bytes(page.read_bytes())
    return folder


def test_systemd_verifies_the_units(unit_files: Path, tmp_path: Path) -> None:
    need("systemd-analyze", "man")
    said = good(
        *("systemd-analyze", "verify", *unit_files.iterdir()), env={"MANPATH": f"{tmp_path}/man"}
    )
    assert said == ""


def test_the_exposure_of_the_unit_is_at_most_1_6(unit_files: Path) -> None:
    need("systemd-analyze")
    unit = unit_files / "turnaway-fast.service"
    good("systemd-analyze", "security", "--offline=yes", "--threshold=16", unit)


def settings_of(kind: str) -> dict[str, list[str]]:
    """Every KEY=VALUE of a unit."""
    found: dict[str, list[str]] = {}
    for line in units.print_unit(kind, str(COMMAND)).splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_what_cannot_mend_itself_is_not_restarted() -> None:
    (said,) = settings_of("systemd")["RestartPreventExitStatus"]
    assert {int(word) for word in said.split()} == {
        *(exits.USAGE, exits.DATA, exits.NO_USER, exits.NO_PERMISSION, exits.CONFIGURATION)
    }


def systemd_set(name: str) -> set[str]:
    """The system calls of one of systemd's sets."""
    calls: set[str] = set()
    for line in good("systemd-analyze", "syscall-filter", name).splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            calls |= systemd_set(word)
        elif word and not word.startswith("#"):
            calls.add(word)
    return calls


def allowed_calls() -> set[str]:
    allowed: set[str] = set()
    for line in settings_of("systemd")["SystemCallFilter"]:
        for name in line.lstrip("~").split():
            allowed = allowed - systemd_set(name) if line[0] == "~" else allowed | systemd_set(name)
    return allowed | systemd_set("@default")


@pytest.fixture
def traced(tmp_path: Path) -> str:
    """The system calls of a whole life: start, all kinds of clients, reload, stop."""
    need("strace", "unshare", "systemd-analyze")
    # An ordinary user from the first instruction on, as in the unit.
    user = ["unshare", "-U", "--map-user=1234", "--map-group=1234"]
    if run(*user, "true").returncode != 0:
        pytest.skip("user namespaces are refused here")
    port = free_port()
    config = tmp_path / "turnaway.toml"
    config.write_text(
        f'location = "Earth"\n[[listener]]\naddress = "127.0.0.1:{port}"\nname = "{NAME}"\n'
        f'[[listener]]\naddress = "[::1]:{port}"\nname = "{NAME}"\nprotocol = "auto"\n'
    )
    trace, syslog = tmp_path / "trace", Syslog(tmp_path / "log")
    options = shlex.split(settings_of("systemd")["ExecStart"][0].replace("%t", str(tmp_path)))[1:]
    (tmp_path / "turnaway-fast").mkdir()
    options[options.index("--config") + 1] = str(config)
    pid = tmp_path / "pid"
    # The shell writes down the number by which the daemon is then called.
    shell = ["sh", "-c", 'echo $$ >"$1"; shift; exec "$@"', "sh", str(pid)]
    process = subprocess.Popen(
        [
            *("strace", "-f", "-qq", "-o", str(trace), *user, *shell),
            *(str(COMMAND), *options, "--log", f"syslog:{syslog.path}"),
        ],
        stderr=subprocess.PIPE,
    )
    try:
        syslog.wait_for("started: ", 30)
        daemon = int(pid.read_text())
        answer(port)
        answer(port, "::1")
        with_words(port, b"EHLO x\r\n")
        with_words(port, b"GET / HTTP/1.0\r\n\r\n", "::1")
        for number, said in ((signal.SIGHUP, "reloaded"), (signal.SIGUSR1, "counters")):
            os.kill(daemon, number)
            syslog.wait_for(f"{said}: ", 30)
        answer(port)
        time.sleep(1.1)  # the loops of before the reload end
        os.kill(daemon, signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
        assert process.stderr is not None
        process.stderr.close()
        syslog.close()
    text = trace.read_text()
    return text[text.index(f'execve("{COMMAND}"') :]


def with_words(port: int, octets: bytes, address: str = "127.0.0.1") -> bytes:
    with socket.create_connection((address, port), SECONDS) as one:
        one.sendall(octets)
        return read_all(one)


def test_the_sandbox_of_the_unit_allows_what_the_daemon_does(traced: str) -> None:
    # A line may be the end of a call that another thread interrupted.
    calls = set(re.findall(r"^\d+ +([a-z_0-9]+)\(", traced, re.M))
    assert {"accept4", "close_range", "bind", "unshare"} <= calls
    assert calls - allowed_calls() == set()
    families = set(re.findall(r"socket\((AF_[A-Z0-9]+)", traced))
    (permitted,) = settings_of("systemd")["RestrictAddressFamilies"]
    assert families <= set(permitted.split())
    # RestrictNamespaces, MemoryDenyWriteExecute
    assert set(re.findall(r"unshare\(([A-Z_|]+)", traced)) == {"CLONE_FILES"}
    assert not re.search(r"mmap\([^)]*PROT_WRITE\|PROT_EXEC|mprotect\([^)]*PROT_EXEC", traced)


def test_sysusers_and_tmpfiles_make_what_the_unit_needs(tmp_path: Path) -> None:
    need("systemd-sysusers", "systemd-tmpfiles")
    need_root()
    (tmp_path / "etc").mkdir()
    good("systemd-sysusers", f"--root={tmp_path}", CONTRIB / "systemd/sysusers.conf")
    assert re.search(r"^turnaway:", (tmp_path / "etc/passwd").read_text(), re.M)
    assert settings_of("systemd")["User"] == ["turnaway"]
    good("systemd-tmpfiles", "--create", f"--root={tmp_path}", CONTRIB / "systemd/tmpfiles.conf")
    assert (tmp_path / "etc/turnaway/turnaway.toml.d").is_dir()
    assert (tmp_path / "var/log/turnaway").stat().st_mode & 0o777 == 0o750


@pytest.mark.xfail(reason="the daemon does not feed a watchdog yet")
def test_the_daemon_feeds_the_watchdog_that_the_unit_sets(tmp_path: Path) -> None:
    assert settings_of("systemd")["WatchdogSec"] == ["30"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(3)
        process = subprocess.Popen(
            [
                COMMAND,
                "--pidfile",
                "none",
                "--log",
                "none",
                "Earth",
                f"127.0.0.1:{free_port()}",
                NAME,
            ],
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "WATCHDOG_USEC": "2000000",
            },
        )
        try:
            said = ""
            end = time.monotonic() + 5
            while "WATCHDOG=1" not in said and time.monotonic() < end:
                said += supervisor.recv(4096).decode()
        finally:
            process.terminate()
            process.wait(SECONDS)
        assert "WATCHDOG=1" in said


# rc scripts


@pytest.mark.parametrize("kind", ["freebsd", "openbsd"])
def test_shellcheck_is_content_with_the_rc_scripts(kind: str, tmp_path: Path) -> None:
    need("shellcheck")
    script = tmp_path / kind
    script.write_text(units.print_unit(kind, str(COMMAND)))
    assert good("shellcheck", "--severity=style", script) == ""


def sourced(kind: str, tmp_path: Path, rc_subr: str, config: Path, ask: str) -> str:
    """The rc script as far as its variables, with an rc.subr that only notes."""
    subr = tmp_path / "rc.subr"
    subr.write_text(rc_subr)
    script = tmp_path / kind
    text = units.print_unit(kind, str(COMMAND))
    text = re.sub(r"/etc/rc(\.d/rc)?\.subr", str(subr), text)
    script.write_text(re.sub(r"/\S*/turnaway\.toml", str(config), text))
    return good("sh", "-euc", f'. "$0"; {ask}', script, "start")


@pytest.fixture
def background(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """A configuration, and the words of a process that runs by it."""
    config = tmp_path / "turnaway.toml"
    config.write_text(
        f'location = "Earth"\nlog = "none"\npidfile = "{tmp_path}/pid"\n'
        f'[[listener]]\naddress = "127.0.0.1:{free_port()}"\nname = "{NAME}"\n'
    )
    environment = {key: word for key, word in os.environ.items() if key != "NOTIFY_SOCKET"}
    subprocess.run([COMMAND, "--config", config], env=environment, check=True, timeout=SECONDS)
    pid = int((tmp_path / "pid").read_text())
    try:
        yield config, Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    finally:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not (tmp_path / "pid").exists(), what="the end of the daemon")


def test_freebsd_finds_the_process_by_its_interpreter(
    background: tuple[Path, list[str]], tmp_path: Path
) -> None:
    config, words = background
    subr = "load_rc_config() { :; }\nrun_rc_command() { :; }\n"
    ask = 'printf "%s\\n" "$command_interpreter" "$command" "$pidfile"; turnaway_fast_configtest'
    interpreter, command, pidfile = sourced("freebsd", tmp_path, subr, config, ask).splitlines()
    assert [*interpreter.split(), command] == words[: len(interpreter.split()) + 1]
    assert pidfile == "/var/run/turnaway-fast.pid"


def test_openbsd_finds_the_process_by_its_line(
    background: tuple[Path, list[str]], tmp_path: Path
) -> None:
    config, words = background
    said = sourced("openbsd", tmp_path, "rc_cmd() { :; }\n", config, 'echo "$pexp"; rc_pre')
    assert re.fullmatch(said.rstrip("\n"), " ".join(words))  # pgrep -xf


@pytest.mark.parametrize(
    ("kind", "ask"), [("freebsd", "turnaway_fast_configtest"), ("openbsd", "rc_pre")]
)
def test_a_wrong_configuration_is_not_started(kind: str, ask: str, tmp_path: Path) -> None:
    config = tmp_path / "turnaway.toml"
    config.write_text("wrong = 1\n")
    subr = "load_rc_config() { :; }\nrun_rc_command() { :; }\nrc_cmd() { :; }\n"
    said = sourced(kind, tmp_path, subr, config, f'{ask} && echo started || echo "status $?"')
    assert "status 78" in said
    assert "wrong: unknown key" in said


# logrotate


def test_logrotate_understands_its_file(tmp_path: Path) -> None:
    need("logrotate")
    need_root()
    copy = tmp_path / "turnaway"
    # The user may not exist here, and the folder is the test's.
    text = (CONTRIB / "logrotate/turnaway").read_text()
    copy.write_text(
        text.replace("/var/log/turnaway", str(tmp_path)).replace("turnaway turnaway", "root root")
    )
    copy.chmod(0o644)
    (tmp_path / "turnaway.json").write_text("{}\n")
    said = good("logrotate", "--debug", "--force", "--state", tmp_path / "state", copy)
    assert "error" not in said.lower()
    assert "log needs rotating" in said
