"""What stands beside the daemon: units, rc scripts, rotation, fail2ban, CrowdSec.

Owns: that every file of contrib/ and turnaway/units/ is accepted by the program
it is made for, and true of the daemon: the sandbox of the unit allows what the
daemon does, and the filters match the lines that it writes.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import (
    COMMAND,
    NAME,
    SECONDS,
    Daemon,
    Syslog,
    free_port,
    need,
    need_module,
    need_root,
    read_all,
    until,
)

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


def test_the_socket_unit_listens_where_the_example_file_does() -> None:
    example = tomllib.loads((CONTRIB / "turnaway.toml").read_text())
    (listener,) = example["listener"]
    assert settings_of("systemd-socket")["ListenStream"] == listener["address"]


def test_a_socket_of_a_supervisor_is_served_as_the_unit_says(tmp_path: Path) -> None:
    need("systemd-socket-activate")
    port = free_port()
    process = subprocess.Popen(
        [
            *("systemd-socket-activate", "--listen", f"127.0.0.1:{port}", "--fdname=turnaway"),
            *(str(COMMAND), "-f", "--pidfile", "none", "--control", "none", "--log", "none"),
            *("Earth", f"127.0.0.1:{port} {NAME}"),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        # The first client has it started, and waits in the queue meanwhile.
        assert until(lambda: told(port), what="the supervisor").startswith(b"421-")
        assert answer(port).startswith(b"421-")
    finally:
        process.terminate()
        assert process.wait(SECONDS) == 0


def told(port: int) -> bytes:
    try:
        return answer(port)
    except ConnectionRefusedError:
        return b""


def systemd_set(name: str) -> set[str]:
    """The system calls of one of systemd's sets; a call stands for itself."""
    if not name.startswith("@"):
        return {name}
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
            calls = systemd_set(name) if name[0] == "@" else {name}
            allowed = allowed - calls if line[0] == "~" else allowed | calls
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


def test_the_daemon_feeds_the_watchdog_that_the_unit_sets(tmp_path: Path) -> None:
    assert settings_of("systemd")["WatchdogSec"] == ["30"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(3)
        process = subprocess.Popen(
            [
                *(COMMAND, "--pidfile", "none", "--control", "none", "--log", "none"),
                *("Earth", f"127.0.0.1:{free_port()}", NAME),
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


def test_shellcheck_is_content_with_the_health_check() -> None:
    need("shellcheck")
    assert good("shellcheck", "--severity=style", str(CONTRIB / "firewall/turnaway-banner")) == ""


def test_the_health_check_reads_one_real_banner(daemon: Daemon) -> None:
    """And is not content with a greeting that lets clients in, nor with silence."""
    need("nc")

    def checked(port: int) -> int:
        argv = [str(CONTRIB / "firewall/turnaway-banner"), "127.0.0.1", str(port)]
        return subprocess.run(argv, capture_output=True, timeout=20, check=False).returncode

    assert checked(daemon.port) == 0
    for greeting in (b"220 mx.example.com ESMTP\r\n", b""):
        with socket.create_server(("127.0.0.1", 0)) as other:

            def greet(other: socket.socket = other, greeting: bytes = greeting) -> None:
                with other.accept()[0] as one:
                    one.sendall(greeting)
                    one.recv(1)

            threading.Thread(target=greet, daemon=True).start()
            assert checked(other.getsockname()[1]) != 0
    daemon.stop()
    assert checked(daemon.port) != 0


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
        f'location = "Earth"\nlog = "none"\npidfile = "{tmp_path}/pid"\ncontrol = "none"\n'
        f'[[listener]]\naddress = "127.0.0.1:{free_port()}"\nname = "{NAME}"\n'
    )
    environment = {key: word for key, word in os.environ.items() if key != "NOTIFY_SOCKET"}
    subprocess.run(
        [COMMAND, "--config", config],
        env=environment,
        check=True,
        timeout=SECONDS,
    )
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


# fail2ban and CrowdSec


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a running daemon says of seven clients, and of itself: header and text."""
    folder = tmp_path_factory.mktemp("lines")
    syslog = Syslog(folder / "log")
    ports = [free_port() for _ in range(3)]
    config = folder / "turnaway.toml"
    config.write_text(
        f'location = "Earth"\nlog = "syslog:{syslog.path}"\n'
        f'[[listener]]\naddress = ["127.0.0.1:{ports[0]}", "[::1]:{ports[0]}"]\n'
        f'name = "{NAME}"\npersona = "blocked"\n'
        f'[[listener]]\naddress = ["127.0.0.1:{ports[1]}", "[::1]:{ports[1]}"]\n'
        f'name = "{NAME}"\nprotocol = "auto"\n'
        f'[[listener]]\naddress = "[::1]:{ports[2]}"\nname = "{NAME}"\nprotocol = "text:pop3"\n'
    )
    process = subprocess.Popen(
        [COMMAND, "-f", "--pidfile", "none", "--control", "none", "--config", config]
    )
    try:
        syslog.wait_for("started: ")
        for address in ("127.0.0.1", "::1"):
            answer(ports[0], address)
            with_words(ports[0], b"EHLO x\r\n", address)
            with_words(ports[1], b"GET / HTTP/1.0\r\n\r\n", address)
        answer(ports[2], "::1")
        until(lambda: len(syslog.matching("turned away ")) == CLIENTS, what="the lines")
        os.kill(process.pid, signal.SIGUSR1)
        syslog.wait_for("counters: ")
    finally:
        process.terminate()
        process.wait(SECONDS)
        syslog.wait_for("stopped: ")
        syslog.close()
    return syslog.lines


CLIENTS = 7
_HEADER = re.compile(r"<\d+>(?P<date>\w{3} [ \d]\d [\d:]{8}) (?P<rest>.*)", re.S)
ISO = "2026-11-22T17:47:03.512345+00:00"
# As the syslog daemons write them into a file, and fail2ban makes them of the journal.
PREFIXES = {
    "rsyslog, traditional": r"\g<date> mx \g<rest>",
    "rsyslog, ISO 8601": ISO + r" mx \g<rest>",
    "FreeBSD, syslogd -v": r"\g<date> <2.6> mx \g<rest>",
    "journal": r"2026-11-22T17:47:03.512345 mx \g<rest>",
}


@pytest.fixture
def fail2ban(tmp_path: Path) -> Path:
    """fail2ban's own configuration with our files in it."""
    need("fail2ban-regex", "fail2ban-server")
    home = tmp_path / "fail2ban"
    shutil.copytree("/etc/fail2ban", home)
    (home / "jail.d/defaults-debian.conf").unlink(missing_ok=True)
    shutil.copytree(CONTRIB / "fail2ban", home, dirs_exist_ok=True)
    return home


def hosts(home: Path, text: str, filter_: str) -> list[str]:
    """The addresses that fail2ban takes from the lines."""
    log = home / "some.log"
    log.write_text(text)
    return good("fail2ban-regex", "-c", home, "-o", "<ip>", log, filter_).split()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_fail2ban_finds_the_sources_of_real_lines(
    prefix: str, lines: list[str], fail2ban: Path
) -> None:
    text = "".join(_HEADER.sub(PREFIXES[prefix], line) + "\n" for line in lines)
    assert "proto=http code=403" in text
    assert "proto=pop3 code=-" in text
    options = "[logtype=journal]" if prefix == "journal" else ""
    found = hosts(fail2ban, text, f"turnaway{options}")
    assert sorted(found) == ["127.0.0.1"] * 3 + ["::1"] * 4
    only = options.replace("]", ",") or "["
    assert sorted(hosts(fail2ban, text, f'turnaway{only}persona="blocked"]')) == [
        *("127.0.0.1", "127.0.0.1", "::1", "::1")
    ]


@pytest.mark.parametrize("name", ["turnaway", "turnaway-json"])
def test_the_samples_of_the_filters_are_what_they_say(name: str, fail2ban: Path) -> None:
    text = (CONTRIB / f"fail2ban/filter.d/{name}.conf").read_text().splitlines()
    samples = 0
    for before, line in itertools.pairwise(text):
        if before.startswith("# failJSON: "):
            said = json.loads(before.removeprefix("# failJSON: "))
            found = hosts(fail2ban, line.removeprefix("# ") + "\n", name)
            assert found == ([said["host"]] if said["match"] else []), line
            samples += 1
    assert samples >= 3


def test_fail2ban_adds_sources_to_the_diversion_sets(
    lines: list[str], fail2ban: Path, tmp_path: Path
) -> None:
    need("nft", "unshare")
    if run("unshare", "-rn", "nft", "list", "tables").returncode != 0:
        pytest.skip("user namespaces are refused here")
    log = tmp_path / "mail.log"
    log.write_text("")
    now = time.strftime("%b %d %H:%M:%S")
    text = "".join(_HEADER.sub(rf"{now} mx \g<rest>", line) + "\n" for line in lines)
    elsewhere = text.replace("from=[127.0.0.1]", "from=[192.0.2.9]")
    (tmp_path / "new").write_text(elsewhere.replace("from=[::1]", "from=[2001:db8::9]"))
    jail = (fail2ban / "jail.d/turnaway.conf").read_text()
    jail = re.sub(r"^backend = systemd", f"backend = polling\nlogpath = {log}", jail, flags=re.M)
    jail = jail.replace("enabled = false", "enabled = true").replace("maxretry = 5", "maxretry = 3")
    (fail2ban / "jail.d/turnaway.conf").write_text(jail)
    sets = "".join(f"set auto{n} {{ type ipv{n}_addr; flags timeout; }}; " for n in (4, 6))
    script = f"""
        nft 'table inet turnaway {{ {sets} }}'
        nft 'add element inet turnaway auto4 {{ 192.0.2.9 timeout 60s }}'  # by hand, before
        fail2ban-server -c {fail2ban} -s {tmp_path}/f2b.sock -p {tmp_path}/f2b.pid --loglevel INFO \\
            --logtarget {tmp_path}/f2b.log --syslogsocket none -f start >/dev/null 2>&1 &
        server=$!
        for try in $(seq 100); do fail2ban-client -s {tmp_path}/f2b.sock ping >/dev/null 2>&1 && break; sleep 0.1; done
        cat {tmp_path}/new >>{log}
        for try in $(seq 100); do nft list set inet turnaway auto6 | grep -q elements && break; sleep 0.1; done
        sleep 0.5
        nft list table inet turnaway
        fail2ban-client -s {tmp_path}/f2b.sock unban 192.0.2.9
        nft list set inet turnaway auto4
        kill $server; wait $server
    """
    (fail2ban / "fail2ban.local").write_text(f"[Definition]\ndbfile = {tmp_path}/f2b.sqlite3\n")
    banned, _, unbanned = good("unshare", "-rn", "sh", "-c", script).partition("\n}\n")
    report = banned + (tmp_path / "f2b.log").read_text()
    assert re.search(r"192\.0\.2\.9 timeout 1d expires 23h59m", banned), report
    assert re.search(r"2001:db8::9 timeout 1d expires 23h59m", banned), report
    assert "192.0.2.9" not in unbanned


# The words of grok that we use.
GROK = {
    "IP": r"[0-9A-Fa-f.:]+",
    "INT": r"[+-]?[0-9]+",
    "NOTSPACE": r"\S+",
    "WORD": r"\b\w+\b",
    "DATA": r".*?",
}


def crowdsec(name: str) -> dict[str, object]:
    need_module("yaml")
    import yaml

    found = yaml.safe_load((CONTRIB / "crowdsec" / name).read_text())
    assert isinstance(found, dict)
    return found


def test_crowdsec_finds_the_sources_of_real_lines(lines: list[str]) -> None:
    parser = crowdsec("turnaway-logs.yaml")
    (node,) = parser["nodes"]  # type: ignore[misc,index]
    pattern = re.sub(
        r"%\{([A-Z]+):(\w+)\}",
        lambda found: f"(?P<{found[2]}>{GROK[found[1]]})",
        node["grok"]["pattern"],
    )
    assert "%{" not in pattern
    messages = [line.partition("]: ")[2] for line in lines]
    found = [one.groupdict() for line in messages if (one := re.search(pattern, line))]
    assert sorted(one["source_ip"] for one in found) == ["127.0.0.1"] * 3 + ["::1"] * 4
    assert {one["protocol"] for one in found} == {None, "http", "pop3"}
    assert {one["persona"] for one in found} == {"blocked", "mail"}
    # Diverted, and on a list.
    line = next(line for line in messages if re.search(pattern, line))
    line = line.replace(" as=", " via=[192.0.2.1]:2525 as=").replace(" code=", " list=a code=")
    more = re.search(pattern, line)
    assert more is not None, line
    assert (more["via_port"], more["list"]) == ("2525", "a")
    # What is taken over exists.
    for static in parser["statics"]:  # type: ignore[attr-defined]
        if "expression" in static:
            assert static["expression"].removeprefix("evt.Parsed.") in found[0]
    program = re.search(r"startsWith '(\w+)'", str(parser["filter"]))
    assert program
    assert all(line.split()[3].startswith(program[1]) for line in lines)


def test_the_crowdsec_scenario_asks_for_what_the_parser_makes() -> None:
    metas = {one["meta"]: one for one in crowdsec("turnaway-logs.yaml")["statics"]}  # type: ignore[attr-defined]
    scenario = crowdsec("turnaway-many.yaml")
    assert scenario["groupby"] == "evt.Meta.source_ip"
    assert "source_ip" in metas
    assert scenario["filter"] == (
        f"evt.Meta.log_type == '{metas['log_type']['value']}' && evt.Meta.persona != '-'"
        " && evt.Meta.outcome not in ['headless', 'stranger']"
    )
    assert {"persona", "outcome"} <= set(metas)
    assert crowdsec("acquis.yaml")["labels"] == {"type": "syslog"}
