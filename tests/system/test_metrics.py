"""The metrics of a running daemon: what is counted, how it is asked for, who may hinder it.

Hostile here: clients of the metrics that say nothing, read nothing, or talk
nonsense; a directory that cannot be written; a library that is not there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families
from running import (
    LOCATION,
    NAME,
    SECONDS,
    Daemon,
    Syslog,
    command,
    free_port,
    need,
    need_root,
    read_all,
    running,
    until,
)

ROOT = Path(__file__).parents[2]
# The beginning of a ClientHello, RFC 8446 4.1.2.
HELLO = bytes.fromhex("16 03 01 00 a5 01 00 00 a1 03 03")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def ask(port: int, method: str = "GET", path: str = "/metrics") -> tuple[int, dict[str, str], str]:
    one = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    with contextlib.closing(one):
        one.request(method, path)
        answer = one.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()


def scrape(port: int) -> Samples:
    status, _, text = ask(port)
    assert status == 200
    return samples(text)


def total(found: Samples, name: str, **labels: str) -> float:
    """The sum over all series of that name with these labels."""
    return sum(
        value for (one, have), value in found.items() if one == name and set(labels.items()) <= have
    )


def promtool(text: str) -> None:
    need("promtool")
    ended = subprocess.run(
        ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.fixture
def watched(syslog: Syslog) -> Iterator[tuple[Daemon, int]]:
    port = free_port()
    with running(syslog, "--metrics", f"127.0.0.1:{port}", "-p", "blocked") as daemon:
        yield daemon, port


def test_promtool_has_nothing_to_say(watched: tuple[Daemon, int]) -> None:
    daemon, port = watched
    daemon.banner()
    status, fields, text = ask(port)
    assert status == 200
    assert fields["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    promtool(text)


def test_outcomes_add_up_to_the_accepted(syslog: Syslog) -> None:
    """Silent ones, early talkers, resets, HTTP, TLS, and some who never speak."""
    port, web, metrics = free_port(), free_port(), free_port()
    places = [f"127.0.0.1:{port} {NAME}", f"127.0.0.1:{web} www.example.com"]
    options = ["--metrics", f"127.0.0.1:{metrics}", "--protocol", "auto"]
    with running(syslog, *options, port=port, listeners=places):
        hellos = {
            port: [b"", b"EHLO there\r\n", b"GET / HTTP/1.1\r\n\r\n", HELLO],
            web: [b"GET / HTTP/1.0\r\n\r\n", b"\x05\x01\x00"],
        }
        for to, many in hellos.items():
            for hello in many * 3:
                with socket.create_connection(("127.0.0.1", to), SECONDS) as one:
                    one.sendall(hello)
                    read_all(one)
        for _ in range(5):
            one = socket.create_connection(("127.0.0.1", port), SECONDS)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        found = until(
            lambda: settled(scrape(metrics), 23), what="all 23 connections to have an outcome"
        )
        assert total(found, "turnaway_connections_total", outcome="sent") >= 18
        answers = {
            protocol: total(found, "turnaway_answers_total", protocol=protocol)
            for protocol in ("smtp", "http", "tls", "socks")
        }
        assert answers["http"] == 6
        assert answers["tls"] == answers["socks"] == 3
        assert sum(answers.values()) == total(found, "turnaway_connections_total", outcome="sent")
        assert total(found, "turnaway_connections_total", listener=f"127.0.0.1:{web}") == 6


def test_the_disposal_of_a_held_client_is_counted_once(syslog: Syslog) -> None:
    port = free_port()
    with running(syslog, "--metrics", f"127.0.0.1:{port}", "--protocol", "http") as daemon:
        with daemon.connect() as one:
            one.sendall(b"GET / HTTP/1.0\r\n\r\n")
            read_all(one)
        found = until(lambda: settled(scrape(port), 1), what="the connection")
        assert found["turnaway_disposal_seconds_count", frozenset()] == 1


def settled(found: Samples, accepted: int) -> Samples | None:
    over = total(found, "turnaway_connections_total")
    return (
        found if over == total(found, "turnaway_accepted_connections_total") == accepted else None
    )


def test_no_counter_falls_while_listeners_are_reloaded(syslog: Syslog, tmp_path: Path) -> None:
    port, other, metrics = free_port(), free_port(), free_port()
    file = tmp_path / "turnaway.toml"

    def write(persona: str, *ports: int) -> None:
        tables = "".join(
            f'[[listener]]\naddress = "127.0.0.1:{one}"\nname = "{NAME}"\n' for one in ports
        )
        file.write_text(
            f'location = "Somecity"\npersona = "{persona}"\nmetrics = "127.0.0.1:{metrics}"\n'
            + tables
        )

    write("mail", port, other)
    with started(syslog, "-c", str(file)) as process:
        come = [0]
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                with socket.create_connection(("127.0.0.1", port), SECONDS) as one:
                    assert read_all(one)
                come[0] += 1

        thread = threading.Thread(target=load)
        thread.start()
        before: Samples = {}
        try:
            for number in range(6):
                write(("blocked", "mail")[number % 2], *(port, other)[: 1 + number % 2])
                process.send_signal(1)
                until(
                    lambda done=number: (
                        total(scrape(metrics), "turnaway_reloads_total", result="done") > done
                    ),
                    what="the reload",
                )
                for _ in range(4):
                    now = scrape(metrics)
                    for key, value in before.items():
                        if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
                            assert now[key] >= value, key
                    before = now
                    time.sleep(0.06)
        finally:
            stop.set()
            thread.join()
        found = until(lambda: settled(scrape(metrics), come[0]), what="every connection counted")
        personas = {
            persona: total(found, "turnaway_connections_total", persona=persona)
            for persona in ("mail", "blocked")
        }
        assert all(personas.values())
        file.write_text("nonsense = 1\n")
        process.send_signal(1)
        until(
            lambda: total(scrape(metrics), "turnaway_reloads_total", result="failed") == 1,
            what="the reload that fails",
        )


@contextlib.contextmanager
def started(syslog: Syslog, *options: str) -> Iterator[subprocess.Popen[str]]:
    """turnaway-fast from a configuration file, until the block ends."""
    process = subprocess.Popen(
        [
            *command("-f", "--pidfile", "none", "--control", "none"),
            *("--log", f"syslog:{syslog.path}", *options),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: syslog.matching("started:") or process.poll() is not None, what="the start")
        assert process.poll() is None, process.stderr.read()
        yield process
    finally:
        process.terminate()
        process.wait(SECONDS)
        process.stderr.close()


# --- who asks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/metrics?x=1", 200),
        ("HEAD", "/metrics", 200),
        ("HEAD", "/", 200),
        ("GET", "/metrics/", 404),
        ("GET", "/../etc/passwd", 404),
        ("POST", "/nothing", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/", 405),
    ],
)
def test_answers(watched: tuple[Daemon, int], method: str, path: str, status: int) -> None:
    got, fields, body = ask(watched[1], method, path)
    assert got == status
    assert fields["Connection"] == "close"
    assert (body == "") == (method == "HEAD")
    if status == 405:
        assert fields["Allow"] == "GET, HEAD"
    if path == "/" and method == "GET":
        assert 'href="/metrics"' in body


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"EHLO there\r\n\r\n", b"400"),
        (b"\0\xff\n\n", b"400"),
        (b"GET /metrics HTTP/2.0\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 20000, b"431"),
        (b"GET http://turnaway.example/metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"\r\nGET /metrics HTTP/1.0\n\n", b"200"),
    ],
)
def test_what_a_client_may_say(watched: tuple[Daemon, int], octets: bytes, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", watched[1]), SECONDS) as one:
        one.sendall(octets)
        one.shutdown(socket.SHUT_WR)
        assert read_all(one).split(b" ")[1] == status


def test_silent_and_deaf_clients_hinder_nobody(watched: tuple[Daemon, int]) -> None:
    daemon, port = watched
    with contextlib.ExitStack() as stack:
        for number in range(24):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), SECONDS))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            if number % 3 == 1:
                one.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            elif number % 3 == 2:
                one.sendall(b"GET /metrics HT")
        began = time.monotonic()
        assert scrape(port)
        assert time.monotonic() - began < 6
        assert daemon.banner().startswith(b"554")
        began = time.monotonic()
        daemon.counters()  # the tick goes on
        assert time.monotonic() - began < 2


def test_a_silent_client_is_closed(watched: tuple[Daemon, int]) -> None:
    with socket.create_connection(("127.0.0.1", watched[1]), 9) as one:
        assert one.recv(1) == b""


def test_clients_never_make_descriptors_grow(watched: tuple[Daemon, int]) -> None:
    daemon, port = watched
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    for octets in (b"", b"GET", b"GET /metrics HTTP/1.1\r\n\r\n") * 20:
        one = socket.create_connection(("127.0.0.1", port), SECONDS)
        one.sendall(octets)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before, what="descriptors back")


# --- where --------------------------------------------------------------------


def ask_unix(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(SECONDS)
        one.connect(str(path))
        one.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        return read_all(one)


def test_a_unix_socket_replaces_a_stale_one(syslog: Syslog, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    tmp_path.chmod(0o777)  # so that the user of the daemon may remove it
    with running(syslog, "--metrics", f"unix:{path}"):
        text = ask_unix(path)
        assert text.startswith(b"HTTP/1.1 200 OK\r\n")
        assert path.stat().st_mode & 0o777 == 0o666
        promtool(text.partition(b"\r\n\r\n")[2].decode())
        assert refused("--metrics", f"unix:{path}") == (69, f"unix:{path}: address in use")
    assert not path.exists()


def test_ipv6(syslog: Syslog) -> None:
    port = free_port("::1")
    url = f"http://[::1]:{port}/metrics"
    with (
        running(syslog, "--metrics", f"[::1]:{port}"),
        urllib.request.urlopen(url, timeout=SECONDS) as answer,
    ):
        assert b"turnaway_build_info" in answer.read()


def refused(*options: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and reason of a daemon that must not start."""
    words = command("-f", "--pidfile", "none", "--control", "none", "--log", "none", *options)
    ended = subprocess.run(
        [*words, LOCATION, f"127.0.0.1:{free_port()} {NAME}"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **(env or {})},
    )
    return ended.returncode, ended.stderr.strip().removeprefix("turnaway-fast: --metrics ")


def test_an_address_in_use(watched: tuple[Daemon, int]) -> None:
    place = f"127.0.0.1:{watched[1]}"
    assert refused("--metrics", place) == (69, f"{place}: address in use")


def test_a_file_for_the_textfile_collector(syslog: Syslog, tmp_path: Path) -> None:
    folder = tmp_path / "collector"
    folder.mkdir()
    folder.chmod(0o777)
    file = folder / "turnaway.prom"
    with running(syslog, "--metrics", f"file:{file}", "--interval", "1") as daemon:
        assert file.stat().st_mode & 0o777 == 0o644
        promtool(file.read_text())
        first = file.stat().st_ino
        daemon.banner()
        until(
            lambda: total(samples(file.read_text()), "turnaway_connections_total") == 1,
            what="the next writing",
        )
        assert file.stat().st_ino != first  # renamed, never half written
        # What the collector reads is whole at any moment.
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            assert "turnaway_start_time_seconds" in file.read_text()
        assert [one.name for one in folder.iterdir() if one.suffix == ".prom"] == [file.name]
        if os.geteuid() == 0:
            folder.chmod(0o755)
            syslog.wait_for("metrics: .*cannot be written: Permission denied")
            folder.chmod(0o777)
            syslog.wait_for("metrics: .*is written again")
    assert list(folder.iterdir()) == []


def test_a_file_that_cannot_be(tmp_path: Path) -> None:
    missing = f"file:{tmp_path}/nowhere/turnaway.prom"
    assert refused("--metrics", missing) == (73, f"{missing}: No such file or directory")
    if os.geteuid() == 0:
        file = f"file:{tmp_path}/turnaway.prom"
        status, reason = refused("--metrics", file)
        assert status == 73
        assert reason.startswith(f"{file}: Permission denied; the user of the daemon must")


def test_after_chroot_and_drop_everything_is_still_there(syslog: Syslog, tmp_path: Path) -> None:
    need_root()
    empty = tmp_path / "empty"
    empty.mkdir()
    port = free_port()
    with running(syslog, "--metrics", f"127.0.0.1:{port}", "--chroot", str(empty)):
        found = scrape(port)
        kernel = dict(
            zip(
                *(
                    line.split()
                    for line in Path("/proc/net/netstat").read_text().splitlines()
                    if line.startswith("TcpExt:")
                ),
                strict=True,
            )
        )
        shown = found["turnaway_listen_overflows_total", frozenset()]
        assert 0 <= int(kernel["ListenOverflows"]) - shown <= 1000
        assert ("turnaway_listen_drops_total", frozenset()) in found


def test_without_the_library(tmp_path: Path) -> None:
    """Status 78 and what to install; nothing else needs it."""
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('broken on purpose')\n")
    status, reason = refused("--metrics", "127.0.0.1:9125", env={"PYTHONPATH": str(tmp_path)})
    assert status == 78
    assert "pip install 'turnaway[metrics]'" in reason
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from turnaway import cli
from turnaway.exits import Failure
line = ["turnaway-fast", "Earth", "127.0.0.1:2525 mx.example.com"]
cli.parse(line, root=False)
try:
    cli.parse([*line, "--metrics", "127.0.0.1:9125"], root=False)
except Failure as failure:
    print(failure.status, *failure.reasons)
"""
    import turnaway

    # By itself: where it is installed the library may lie beside it.
    home = tmp_path / "alone"
    home.mkdir()
    (home / "turnaway").symlink_to(Path(turnaway.__file__).parent)
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, home], capture_output=True, text=True, check=True
    )
    assert ended.stdout.startswith("78 --metrics: expected the Python package prometheus-client")


def test_without_metrics_the_library_is_not_loaded(daemon: Daemon) -> None:
    assert "prometheus" not in Path(f"/proc/{daemon.pid}/maps").read_text()
    with contextlib.suppress(PermissionError):
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) < 40


# --- the dashboard, asked of a Prometheus -------------------------------------


def queries() -> list[str]:
    made = json.loads((ROOT / "contrib/grafana/turnaway.json").read_text())
    found = [target["expr"] for panel in made["panels"] for target in panel["targets"]]
    return found + [one["expr"] for one in made["annotations"]["list"] if "expr" in one]


@contextlib.contextmanager
def prometheus(tmp_path: Path, target: int) -> Iterator[int]:
    """A Prometheus of one test on loopback that scrapes `target` each second."""
    need("prometheus")
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        f"  - {{job_name: turnaway, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}\n"
    )
    with (tmp_path / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                shutil.which("prometheus") or "prometheus",
                f"--config.file={tmp_path}/prometheus.yml",
                f"--storage.tsdb.path={tmp_path}/tsdb",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(SECONDS)


def asked(port: int, query: str) -> list[dict[str, object]] | None:
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            said = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 503:  # it is not ready yet
            return None
        pytest.fail(f"{query}: {error.read().decode()}")
    except OSError:
        return None
    assert said["status"] == "success"
    return said["data"]["result"]


def test_every_query_of_the_dashboard_finds_something(syslog: Syslog, tmp_path: Path) -> None:
    metrics, called = free_port(), free_port()
    (tmp_path / "us.txt").write_text("127.0.0.0/8\n")
    file = tmp_path / "turnaway.toml"
    file.write_text(
        f"location = 'Earth'\npersona = 'blocked'\nmetrics = '127.0.0.1:{metrics}'\n"
        f"[[listener]]\naddress = '127.0.0.1:{called}'\nname = '{NAME}'\n"
        "[[list]]\nname = 'us'\nfiles = ['us.txt']\n"
    )
    with (
        running(syslog, file=file, port=called) as daemon,
        prometheus(tmp_path, metrics) as port,
    ):
        until(lambda: asked(port, 'up{job="turnaway"} == 1'), 30, "the first scrape")
        for _ in range(40):
            daemon.banner()
            time.sleep(0.1)
        for query in queries():
            concrete = query.replace("$__rate_interval", "4s")
            concrete = concrete.replace("$job", "turnaway").replace("$instance", ".*")
            assert "$" not in concrete
            found = asked(port, concrete)
            # An annotation marks starts, and in these seconds there was none.
            assert found or re.match(r"changes\(", query), query
        rate = asked(port, "sum(rate(turnaway_connections_total[4s]))")
        assert rate is not None
        assert 2 < float(rate[0]["value"][1]) < 30  # type: ignore[index]
