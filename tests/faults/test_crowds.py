"""More clients than there is room for, and clients of the shell that never read.

Sixty-five thousand sockets held at once, a listen queue that runs over, and those who
ask the control and the metrics socket and do not take the answer.
"""

from __future__ import annotations

import contextlib
import math
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from namespaces import Lab
from running import Syslog, free_port, need_root, read_all, running, until

from bench import reliability
from bench.expect import Expect
from tests.faults.catalogue import Told
from tests.faults.inject import Crowd, descriptors

MANY = 65_000
FEWER = 10_000  # in the short form


# Clients of another process: so many connections, kept until its input ends.
CLIENTS = """
import resource, sys
from bench import blast
from bench.expect import Expect
port, count, first = map(int, sys.argv[1:])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
sources = [f"127.{first}.{n // 250}.{n % 250 + 1}" for n in range(1000)]
held = blast.Fill("127.0.0.1", port, connections=count, sources=sources, expect=Expect.nothing())
print(held.opened, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held_clients(port: int, count: int, each: int) -> Iterator[int]:
    """`count` connections, `each` to a process at the most; how many were made."""
    processes = []
    try:
        for number, done in enumerate(range(0, count, each)):
            argv = [str(port), str(min(each, count - done)), str(10 + number)]
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", CLIENTS, *argv],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    cwd=reliability.ROOT,
                )
            )
        yield sum(int(one.stdout.readline()) for one in processes if one.stdout)
    finally:
        for one in processes:
            one.communicate(timeout=20)


def test_sixty_five_thousand_descriptors(syslog: Syslog, told: Told, full: bool) -> None:
    """Who comes then has the whole dialogue, and nothing is allocated.

    Each worker has a table of its own: where one process may have fewer than 65,000
    descriptors, there are so many workers that they have room.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = MANY if full else FEWER
    room = min(hard - 500, many)
    workers = math.ceil(many * 1.2 / room)
    limits = ("--max-held", str(int(many * 1.2)), "--max-held-source", "80000")
    with running(syslog, "-w", str(workers), "--close", "quit", *limits) as daemon:
        expect = Expect.reply(whole_greeting(daemon.port))
        before = daemon.memory()
        with held_clients(daemon.port, many, room) as made:
            assert made == many
            until(lambda: descriptors(daemon.pid) > many, 20, "all to be held")
            grown = daemon.memory() - before
            others = Crowd(daemon.port, 0.6, expect=expect, behaviour="quit")
            result = others.nobody_was_lost()
            assert descriptors(daemon.pid) > many
        until(lambda: descriptors(daemon.pid) < 200, 20, "all to have left")
        assert daemon.counters()["held"] >= many
    # Half a KiB for each, of what was reserved before the first of them came.
    assert grown < many / 2
    told(
        "65,000 descriptors in use", result, logged=[],
        lost=f"nobody; of what was reserved at the start {grown:,} KiB more are in use",
    )  # fmt: skip


def whole_greeting(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 5) as one:
        said = b""
        while not re.search(rb"(?:^|\n)\d{3} .*\r\n$", said):
            said += one.recv(4096)
        return said


def metric(text: bytes, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$".encode(), text, re.M)
    assert found, name
    return float(found[1])


def test_listen_queue_overflow(syslog: Syslog, told: Told) -> None:
    """Who finds the queue full is asked by its own TCP to come again a second later."""
    need_root()
    port = 2525
    with Lab() as lab:
        host = lab.namespace("host")
        # Cookies would be another story: a client whose cookie finds the queue full
        # is forgotten by the kernel, and waits for a banner that nobody owes it.
        host.run("sysctl", "-qw", "net.core.somaxconn=16", "net.ipv4.tcp_syncookies=0")
        options = ("-w", "1", "--metrics", "127.0.0.1:9")
        with running(syslog, *options, port=port, wrapper=host.daemon()) as daemon:

            def scrape() -> bytes:
                with host.connect("127.0.0.1", 9) as one:
                    one.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                    return read_all(one)

            assert metric(scrape(), "turnaway_listen_overflows_total") == 0
            with host.connect("127.0.0.1", port) as one:
                expect = Expect.reply(read_all(one))
            crowd = Crowd(port, 0.8, 250, expect=expect, home=host)
            time.sleep(0.2)
            daemon.pause()
            time.sleep(0.5)
            daemon.resume()
            result = crowd.nobody_was_lost()
            time.sleep(0.3)
            overflows = metric(scrape(), "turnaway_listen_overflows_total")
            assert daemon.settled()["sent"] == result.started + 1
    assert overflows > 30
    told(
        "listen queue overflow", result, logged=[],
        lost=f"nobody; `turnaway_listen_overflows_total` says {overflows:.0f}",
    )  # fmt: skip


def test_control_clients_that_never_read(syslog: Syslog, tmp_path: Path, told: Told) -> None:
    """Their memory is bounded, and who asks meanwhile is answered."""
    path = tmp_path / "ctl"
    with contextlib.ExitStack() as stack:
        options = ("--control", str(path), "--log-connections", "all")
        daemon = stack.enter_context(running(syslog, *options))
        before = daemon.memory()
        for _ in range(8):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            one.connect(str(path))
            one.sendall(b'{"v":1,"do":"tail"}\n')
        result = Crowd(daemon.port, 1.0, 2000).nobody_was_lost()
        began = time.monotonic()
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(5)
            other.connect(str(path))
            other.sendall(b'{"v":1,"do":"status"}\n')
            assert b'"ok":true' in other.recv(100)
        took = time.monotonic() - began
        grown = daemon.memory() - before
    assert took < 1
    assert grown < 2048
    told(
        "control client never reads", result, logged=[],
        lost=f"records of the tails, told to them; {grown:,} KiB more memory,"
        f" `status` after {took * 1000:.0f} ms",
    )  # fmt: skip


def test_metrics_clients_that_never_read(syslog: Syslog, told: Told) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running(syslog, "--metrics", f"127.0.0.1:{port}"))
        for _ in range(16):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            one.connect(("127.0.0.1", port))
            one.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        crowd = Crowd(daemon.port, 1.0, 500)
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), 8) as other:
            other.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"turnaway_build_info" in read_all(other)
        took = time.monotonic() - began
        result = crowd.nobody_was_lost()
    assert took < 6
    told(
        "metrics client never reads", result, logged=[],
        lost=f"nobody; a scrape behind them took {took:.1f} s",
    )  # fmt: skip
