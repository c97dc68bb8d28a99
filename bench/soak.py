"""Millions of connections through one daemon: what grows, and whether both sides count the same.

Owns the soak. Connections come in chunks, all of them verified; between two chunks
nothing is going on, and then the daemon's resident memory, its descriptors and threads
and the kernel's orphans are looked at. The daemon's own counters come from its log.
Bounded by the count.
"""

from __future__ import annotations

import contextlib
import math
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from bench import accounts, blast
from bench.peers import Running
from bench.peers.syslog import Syslog

WARM = 100_000  # connections before the first look: what is taken once is taken
CHUNK = 20_000
CONCURRENCY = 512
OVER = ("sent", "short", "failed", "reset", "gone")  # each connection ends as one of these


@dataclass(frozen=True)
class Look:
    """The daemon between two chunks."""

    connections: int
    rss_kib: int
    descriptors: int
    threads: int
    orphans: int


@dataclass
class Soak:
    """A whole run; `counters` are the daemon's own, empty when it was not asked."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(blast.OUTCOMES, 0))
    looks: list[Look] = field(default_factory=list)
    seconds: float = 0.0
    p99_us: list[int] = field(default_factory=list)
    extra: int = 0  # connections to the daemon that are in no outcome
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def connections(self) -> int:
        """All that were started."""
        return sum(self.outcomes.values())

    @property
    def grown_kib(self) -> int:
        """Resident memory of the last look, less that of the first."""
        return self.looks[-1].rss_kib - self.looks[0].rss_kib

    def troubles(self) -> list[str]:
        """What must not be, as sentences; none when all is well."""
        found = [
            f"{name}: {count}"
            for name, count in self.outcomes.items()
            if count and name not in ("complete", "reset_after")
        ]
        for name in ("descriptors", "threads"):
            first, last = (getattr(self.looks[at], name) for at in (0, -1))
            if last > first:
                found.append(f"{name}: {first} at first, {last} at last")
        if self.grown_kib > 512:
            found.append(f"memory: {self.grown_kib} KiB more")
        if self.counters:
            here = self.connections + self.extra
            for name in ("accepted", "sent"):
                if self.counters.get(name, 0) != here:
                    found.append(f"{name}: {self.counters.get(name, 0)} there, {here} here")
        return found

    def figures(self) -> dict[str, str]:
        """For the table, in words."""
        first, last = self.looks[0], self.looks[-1]
        most = max(one.orphans for one in self.looks)
        here = self.connections + self.extra
        return {
            "connections": f"{here:,}",
            "a second": f"{self.connections / self.seconds:,.0f}",
            "whole banners, read by the clients": f"{self.outcomes['complete'] + self.extra:,}",
            "short, reset, refused or late": f"{here - self.outcomes['complete'] - self.extra:,}",
            "accepted, by the daemon's counters": f"{self.counters.get('accepted', 0):,}",
            "sent, by the daemon's counters": f"{self.counters.get('sent', 0):,}",
            "resident memory": f"{first.rss_kib:,} KiB after the first {first.connections:,},"
            f" {last.rss_kib:,} KiB at the end",
            "descriptors": f"{first.descriptors}, {last.descriptors} at the end",
            "threads": f"{first.threads}, {last.threads} at the end",
            "orphans": f"{most} at most between chunks, {last.orphans} at the end",
            "worst p99 of a chunk": f"{max(self.p99_us) / 1000:,.1f} ms,"
            f" {CONCURRENCY} connections at once",
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON; of the looks, some fifty."""
        return {
            "connections": self.connections,
            "seconds": self.seconds,
            "outcomes": self.outcomes,
            "counters": self.counters,
            "extra": self.extra,
            "worst_p99_us": max(self.p99_us, default=0),
            "grown_kib": self.grown_kib,
            "looks": [vars(one) for one in self.looks[:: max(1, len(self.looks) // 50)]],
            "troubles": self.troubles(),
        }


def descriptors(pid: int) -> int:
    """Open descriptors of a process, over all tables of its threads."""
    count = 0
    for task in (accounts.PROC / str(pid) / "task").iterdir():
        # A thread may end while we look.
        with contextlib.suppress(OSError):
            count += len(list((task / "fd").iterdir()))
    return count


def look(pid: int, connections: int) -> Look:
    """The process and the kernel as they are now."""
    tasks = list((accounts.PROC / str(pid) / "task").iterdir())
    rss = accounts.resident_bytes(pid)[0] // 1024
    return Look(connections, rss, descriptors(pid), len(tasks), accounts.orphans())


def counters(server: Running, expected: int, seconds: float = 10.0) -> dict[str, int]:
    """The daemon's counters by SIGUSR1, once `expected` connections are over in them."""
    assert isinstance(server.syslog, Syslog)
    until = time.monotonic() + seconds
    found: dict[str, int] = {}
    while time.monotonic() < until:
        before = server.syslog.datagrams
        server.process.send_signal(signal.SIGUSR1)
        said = b""
        while b"counters: " not in said and time.monotonic() < until:
            time.sleep(0.01)
            said = server.syslog.last if server.syslog.datagrams > before else b""
        words = re.findall(rb"([A-Za-z_]+)=(\d+)", said)
        found = {name.decode(): int(count) for name, count in words}
        if sum(found.get(name, 0) for name in OVER) >= expected:
            break
    return found


def soak(
    server: Running,
    connections: int,
    step: Callable[[int], None] | None = None,
    clients: int = 1,
) -> Soak:
    """`connections` after WARM, from `clients` threads at once."""
    done = Soak()
    total = connections + WARM
    part = math.ceil(CHUNK / clients)
    began = time.monotonic()

    def one(count: int) -> blast.Result:
        return blast.closed(
            server.address, server.port, connections=count, concurrency=CONCURRENCY // clients,
            sources=250, expect=server.expect,
        )  # fmt: skip

    with ThreadPoolExecutor(clients) as pool:
        while done.connections < total:
            rest = total - done.connections
            for result in pool.map(one, [min(part, math.ceil(rest / clients))] * clients):
                for outcome, number in result.counts.items():
                    done.outcomes[outcome] += number
                done.p99_us.append(result.percentile(99))
            if done.connections >= WARM:
                done.looks.append(look(server.pid, done.connections))
            if step is not None:
                step(part * clients)
    done.seconds = time.monotonic() - began
    time.sleep(0.5)  # what was held has gone, and the last batch is counted
    done.looks.append(look(server.pid, done.connections))
    return done
