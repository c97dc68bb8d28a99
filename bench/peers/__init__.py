"""The servers that are compared, and how each is started, known and stopped.

Owns one `Peer` for each kind and the `Running` server it becomes. A peer says
itself whether it is installed; what it needs on disk goes into a directory of
its own below the temporary one. A running server is stopped by its own
process id only. `ready()` fails with `NotReady`, which carries what the
server had to say on stderr.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import accounts
from bench.expect import Expect
from bench.peers.serve import BACKLOG, banner
from bench.peers.syslog import Syslog

ROOT = Path(__file__).resolve().parent.parent.parent
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
START_SECONDS = 10.0
STOP_SECONDS = 5.0


class NotReady(RuntimeError):
    """A server that did not answer in time, or ended."""


@dataclass
class Running:
    """One server that runs: where it is, whose CPU counts, what it answers."""

    name: str
    address: str
    port: int
    process: subprocess.Popen[bytes]
    folder: Path
    began: float
    expect: Expect = field(default_factory=Expect.nothing)
    syslog: Syslog | None = None
    first_banner_ms: float = 0.0

    @property
    def pid(self) -> int:
        """The process that was started; its descendants count with it."""
        return self.process.pid

    def cpu_ns(self) -> int:
        """Nanoseconds of CPU the server has used."""
        return accounts.cpu_ns(self.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the server and its workers."""
        for member in accounts.family(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, number)

    def pin(self, cores: set[int]) -> None:
        """Keep the server on these cores."""
        accounts.pin(self.pid, cores)

    def complaint(self) -> str:
        """The end of what it wrote to stderr."""
        try:
            return (self.folder / "stderr").read_text(errors="replace")[-2000:]
        except OSError:
            return ""

    def ready(self, *, silent: bool) -> None:
        """Wait until it answers; learn the answer."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None:
                raise NotReady(
                    f"{self.name} ended with {self.process.returncode}: {self.complaint()}"
                )
            try:
                self.expect = Expect.learn(self.address, self.port)
            except (ConnectionError, TimeoutError):
                pass
            else:
                if silent or self.expect.template:
                    self.first_banner_ms = (time.monotonic() - self.began) * 1000
                    return
            if time.monotonic() > deadline:
                raise NotReady(f"{self.name} does not answer: {self.complaint()}")
            time.sleep(0.001)

    def stop(self) -> None:
        """End it: by asking, then by force; its workers too."""
        members = accounts.family(self.pid)
        self.signal(signal.SIGCONT)
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
            self.process.wait(STOP_SECONDS)
        if self.syslog is not None:
            self.syslog.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Peer:
    """One kind of server. `command(port, folder)` says how to start it."""

    name: str
    about: str
    command: Callable[[int, Path], list[str]]
    missing: Callable[[], str]
    silent: bool = False
    wants_syslog: bool = False
    workers: int = 1

    def start(
        self, *, cores: set[int] | None = None, client_cores: set[int] | None = None
    ) -> Running:
        """Start it on a free port of 127.0.0.1 and wait for its first answer."""
        why = self.missing()
        if why:
            raise NotReady(f"{self.name}: {why}")
        folder = Path(tempfile.mkdtemp(prefix=f"bench-{self.name.split()[0]}-"))
        folder.chmod(0o755)
        port = free_port()
        syslog = Syslog(folder / "log", client_cores) if self.wants_syslog else None
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        command = self.command(port, folder)
        before = None
        if cores is not None:
            chosen = cores

            def before() -> None:
                os.sched_setaffinity(0, chosen)

        with (folder / "stderr").open("wb") as stderr:
            began = time.monotonic()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": path},
                cwd=ROOT,
                preexec_fn=before,
            )
        running = Running(self.name, "127.0.0.1", port, process, folder, began, syslog=syslog)
        try:
            running.ready(silent=self.silent)
        except BaseException:
            running.stop()
            raise
        if cores is not None:
            running.pin(cores)
        return running

    @contextlib.contextmanager
    def running(
        self, *, cores: set[int] | None = None, client_cores: set[int] | None = None
    ) -> Iterator[Running]:
        """The server for the time of a `with`."""
        made = self.start(cores=cores, client_cores=client_cores)
        try:
            yield made
        finally:
            made.stop()


def free_port() -> int:
    """A port nobody has at the moment, outside the range of the clients' own."""
    low = int((accounts.PROC / "sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    start = os.getpid() % 7919
    for step in range(5000):
        port = 10_000 + (start + step * 37) % max(1, low - 10_000)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise NotReady("no free port")


# A port that was used has TIME-WAIT sockets, which a later peer's count of
# what it leaves behind must not contain: no port serves twice in one process.
_given: set[int] = set()


def _tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") or ""


# --- nginx ---------------------------------------------------------------


def _nginx_missing() -> str:
    if not _tool("nginx"):
        return "nginx is not installed (Debian: nginx-light)"
    if not STREAM_MODULE.exists():
        return "the stream module is not installed (Debian: libnginx-mod-stream)"
    return ""


def _nginx(multi: bool) -> Callable[[int, Path], list[str]]:
    def command(port: int, folder: Path) -> list[str]:
        text = banner().decode("ascii").replace("\r\n", "\\r\\n")
        # A fixed text is the cheapest nginx can do: a variable would be
        # evaluated for each connection, and none has the form of a mail date.
        configuration = f"""
            load_module {STREAM_MODULE};
            daemon off;
            user {"root" if os.geteuid() == 0 else "nobody"};
            worker_processes 1;
            worker_rlimit_nofile 16384;
            pid {folder}/pid;
            error_log {folder}/error warn;
            events {{
                worker_connections 8192;
                use epoll;
                multi_accept {"on" if multi else "off"};
            }}
            stream {{
                access_log off;
                server {{
                    listen 127.0.0.1:{port} backlog={BACKLOG};
                    return "{text}";
                }}
            }}
        """
        (folder / "nginx.conf").write_text(configuration)
        return [
            _tool("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"),
            "-e", str(folder / "error"),
        ]  # fmt: skip

    return command


# --- HAProxy -------------------------------------------------------------


def _haproxy_missing() -> str:
    tool = _tool("haproxy")
    if not tool:
        return "haproxy is not installed (Debian: haproxy)"
    told = subprocess.run([tool, "-vv"], capture_output=True, text=True, check=False).stdout
    return "" if "USE_LUA=1" in told else "this haproxy has no Lua, and a banner needs it"


def _haproxy(port: int, folder: Path) -> list[str]:
    text = banner().decode("ascii").replace("\r\n", "\\r\\n")
    (folder / "banner.lua").write_text(
        f'core.register_service("banner", "tcp", function(applet) applet:send("{text}") end)\n'
    )
    (folder / "haproxy.cfg").write_text(
        f"""
global
    nbthread 1
    maxconn 8000
    lua-load {folder}/banner.lua
defaults
    mode tcp
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend banner
    bind 127.0.0.1:{port} backlog {BACKLOG}
    tcp-request content use-service lua.banner
"""
    )
    return [_tool("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]


# --- written here --------------------------------------------------------


def _serve(which: str) -> Callable[[int, Path], list[str]]:
    def command(port: int, folder: Path) -> list[str]:
        return [sys.executable, "-m", "bench.peers.serve", which, "--port", str(port)]

    return command


def _built(which: str) -> Callable[[], str]:
    def missing() -> str:
        if importlib.util.find_spec(f"bench.peers.{which}") is None:
            return "not built: python -m bench build"
        return ""

    return missing


# --- Turnaway ------------------------------------------------------------


def _turnaway_missing() -> str:
    if not (Path(sys.executable).parent / "turnaway-fast").exists():
        return f"no turnaway-fast beside {sys.executable}: pip install -e ."
    return ""


def _turnaway(*options: str, workers: int = 1) -> Callable[[int, Path], list[str]]:
    def command(port: int, folder: Path) -> list[str]:
        return [
            str(Path(sys.executable).parent / "turnaway-fast"),
            "-f", "--pidfile", "none", "--control", "none", "--log", f"syslog:{folder}/log",
            *options, "-w", str(workers), "-p", "blocked",
            "Somecity, Earth", f"127.0.0.1:{port} mx.example.com",
        ]  # fmt: skip

    return command


CAPPED = ("--log-connections", "capped:20")
LOG_ALL = ("--log-connections", "all")


def turnaway(name: str, about: str, *options: str, workers: int = 1) -> Peer:
    """A Turnaway with options of its own."""
    return Peer(
        name,
        about,
        _turnaway(*options, workers=workers),
        _turnaway_missing,
        wants_syslog=True,
        workers=workers,
    )


TURNAWAY = turnaway("turnaway", "one worker, interval logging", *CAPPED)
LOGGING = turnaway("turnaway log", "every connection logged", *LOG_ALL)
TWO = turnaway("turnaway two", "two workers", *CAPPED, workers=2)
NGINX = Peer("nginx", "stream return", _nginx(False), _nginx_missing)
NGINX_MULTI = Peer("nginx multi", "the same, multi_accept on", _nginx(True), _nginx_missing)
HAPROXY = Peer("haproxy", "a Lua service", _haproxy, _haproxy_missing)
ASYNCIO = Peer("asyncio", "start_server", _serve("asyncio"), lambda: "")
PLAIN = Peer("plain", "accept4, send, close", _serve("plain"), _built("plain"))
FLOOR = Peer("floor", "accept4, close", _serve("floor"), _built("floor"), silent=True)

PEERS = {peer.name: peer for peer in (TURNAWAY, NGINX, NGINX_MULTI, HAPROXY, ASYNCIO, PLAIN, FLOOR)}
VARIANTS = {peer.name: peer for peer in (LOGGING, TWO)}
