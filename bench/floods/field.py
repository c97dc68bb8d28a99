"""The field of a flood: three namespaces, who comes there, and what is looked at.

Owns the namespaces of the daemon, of the guests (well-behaved) and of the mob, whose
packets come by a cable of its own; and the rows that the floods of a run have written.
Only root may make it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from namespaces import Lab, Namespace
from running import Daemon, need_root, read_all, until

from bench import blast, reliability
from bench.expect import Expect
from bench.floods.mob import SOURCES
from bench.soak import Look, look
from tests.faults.catalogue import share
from tests.faults.inject import Crowd

HOST, GATE = "198.51.100.25", "198.51.100.129"  # the daemon, for guests and for the mob
PORT = 2525
GUESTS = [f"198.51.100.{host}" for host in range(31, 91)]
RATE = 300  # guests a second

# The rows of this run, by the name of the flood.
ROWS: dict[str, dict[str, str]] = {}


# Of a line of /proc/net/tcp: FIN-WAIT-1, FIN-WAIT-2, LAST-ACK and CLOSING, which only the
# kernel still knows.  (What sockstat counts as orphans is of all namespaces together.)
_KERNELS_OWN = re.compile(rb"^ *\d+: (\S+ \S+) (?:04|05|09|0B) ", re.M)


class Watch(threading.Thread):
    """Looks at the daemon, and at what the kernel of its host keeps, twice a second."""

    def __init__(self, pid: int, host: Namespace) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self._table = Path(f"/proc/{host.pid}/net/tcp")
        self.before = self.look()
        self.looks: list[Look] = []
        self._over = threading.Event()
        self.start()

    def look(self) -> Look:
        # A set: a table that changes while it is read may show a socket twice.
        orphans = len(set(_KERNELS_OWN.findall(self._table.read_bytes())))
        return dataclasses.replace(look(self.pid, 0), orphans=orphans)

    def run(self) -> None:
        while not self._over.wait(0.5):
            try:
                self.looks.append(self.look())
            except OSError:
                return  # it has ended

    def most(self, figure: str) -> int:
        return max(getattr(one, figure) for one in self.looks)

    def end(self) -> Look:
        """The last look, when what the flood left in the kernel has gone."""
        until(
            lambda: (
                (now := self.look()).orphans <= self.before.orphans + 5
                and now.descriptors <= self.before.descriptors
            ),
            40,
            "what the flood left to go",
        )
        self._over.set()
        self.join()
        return self.look()


@dataclass
class Field:
    """Three namespaces; `flood` runs one and writes its row."""

    host: Namespace
    guests: Namespace
    mob: Namespace
    expect: dict[int, Expect] = field(default_factory=dict)

    def inhabited(self) -> None:
        """The mob has all its addresses, and answers."""
        self.mob.address("eth0", *(f"{one}/24" for one in SOURCES))

    def learn(self, port: int = PORT) -> Expect:
        if port not in self.expect:
            with self.guests.connect(HOST, port) as one:
                one.sendall(b"QUIT\r\n")
                answer = read_all(one)
            lines = answer.splitlines(keepends=True)
            last = next(at for at, line in enumerate(lines) if line[3:4] == b" ")
            self.expect[port] = Expect.reply(b"".join(lines[: last + 1]))
        return self.expect[port]

    @contextlib.contextmanager
    def program(self, kind: str, count: int, seconds: float, port: int = PORT) -> Iterator[dict[str, float]]:  # fmt: skip
        """The mob, ready; what it did is in the dictionary after the block."""
        did: dict[str, float] = {}
        process = subprocess.Popen(
            [
                *self.mob.enter(), sys.executable, "-m", "bench.floods.mob",
                kind, GATE, str(port), str(count), str(seconds),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=reliability.ROOT,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield did
            said, _ = process.communicate(timeout=90)
            did.update(json.loads(said))
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def flood(
        self,
        name: str,
        daemon: Daemon,
        kind: str,
        count: int,
        seconds: float,
        *,
        programs: int = 1,
        port: int = PORT,
        behaviour: str = "silent",
        lead: float = 0,
        also: Callable[[], str] = str,
    ) -> blast.Result:
        """Guests come all the while, the mob of `count` clients (see mob.py) in so many
        programs; returns how the guests fared.  They come `lead` seconds before the mob,
        or below 0 after it.  `also` is said of it, too."""
        expect = self.learn()
        watch = Watch(daemon.pid, self.host)
        with contextlib.ExitStack() as mobs:
            guests = partial(
                Crowd, PORT, seconds + 1.5, RATE, address=HOST, sources=GUESTS, expect=expect,
                behaviour=behaviour, home=self.guests,
            )  # fmt: skip
            crowd = None if lead < 0 else guests()
            time.sleep(max(0, lead))
            all_did = [
                mobs.enter_context(self.program(kind, count // programs, seconds, port))
                for _ in range(programs if kind else 0)
            ]
            result = (crowd or guests()).result()
        more = also()
        after = watch.end()
        words = [
            f"{sum(one[what] for one in all_did):,} {what}"
            for what in (all_did[0] if all_did else ())
        ]
        before = watch.before
        rss = [one / 1024 for one in (before.rss_kib, watch.most("rss_kib"), after.rss_kib)]
        ROWS[name] = {
            "flood": name,
            "clients": f"{result.started:,}",
            "told": share(result),
            "p99 ms": f"{result.percentile(99) / 1000:,.1f}",
            "memory MiB": ", ".join(f"{one:.1f}" for one in rss),
            "descriptors": f"{before.descriptors}, {watch.most('descriptors'):,}, {after.descriptors}",
            "orphans": f"{before.orphans}, {watch.most('orphans'):,}, {after.orphans}",
            "what else": "; ".join(filter(None, [*words, more])),
        }
        print(ROWS[name])
        return result


@contextlib.contextmanager
def field_of_three() -> Iterator[Field]:
    """The daemon has two cables; what the mob sends never crosses the guests'."""
    need_root()
    with Lab() as lab:
        host, guests, mob = (lab.namespace(name) for name in ("host", "guests", "mob"))
        lab.link(host, guests)
        lab.link(host, mob, at_one="eth1")
        host.address("eth0", f"{HOST}/25")
        host.address("eth1", f"{GATE}/25")
        guests.address("eth0", "198.51.100.30/25", *(f"{one}/25" for one in GUESTS))
        mob.address("eth0", "198.51.100.130/25")
        host.route("198.51.100.130", "203.0.113.0/24")
        yield Field(host, guests, mob)
