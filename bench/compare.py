"""Turnaway and its peers in one run, interleaved.

Owns the order of measurement and the sums. All servers run side by side, idle
unless measured; each round measures every one of them, starting with another
one each time, so that a busy minute of the machine falls on all alike. The
server is pinned to one core and this process to another. A figure is the
median over the rounds, kept together with all its values. Every connection of
every measurement is verified; what went wrong is in the result.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import accounts, blast, counts, reliability, soak
from bench.drain import drain, full_queue
from bench.peers import PEERS, VARIANTS, NotReady, Peer, Running

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

COLUMNS = (
    "drain", "logged", "closed", "offered", "early",
    "syscalls", "packets", "memory", "sockets", "start",
)  # fmt: skip
LEFT_BEHIND = 1000
LOG_SECONDS = 1.3


@dataclass(frozen=True)
class Options:
    """What to measure and for how long."""

    peers: tuple[str, ...] = tuple(PEERS) + tuple(VARIANTS)
    columns: tuple[str, ...] = COLUMNS
    rounds: int = 5
    drains: int = 3
    seconds: float = 1.0
    rates: tuple[int, ...] = (100, 2000, 5000, 15000)
    early: int = 2000
    traced: int = 4000
    tapped: int = 300
    starts: int = 5
    soak: int = 0
    # How long to wait for the TIME-WAIT sockets of an earlier run to go.
    patience: float = 70.0
    server_cores: tuple[int, ...] = (0,)
    client_cores: tuple[int, ...] = (1,)

    @classmethod
    def quick(cls, **changes: Any) -> Options:
        """The form that ends within a minute."""
        short: dict[str, Any] = {
            "rounds": 2, "drains": 2, "seconds": 0.3, "rates": (100, 5000, 15000),
            "early": 300, "traced": 1000, "tapped": 150, "starts": 1, "patience": 0.0,
        }  # fmt: skip
        return cls(**{**short, **changes})


Progress = Callable[[str], None]


@dataclass
class Book:
    """All values of one peer, by figure, in the order they came."""

    values: dict[str, list[float]] = field(default_factory=dict)
    latencies: dict[str, blast.Result] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, figure: str, value: float) -> None:
        """One more value of a figure."""
        self.values.setdefault(figure, []).append(value)

    def median(self, figure: str) -> float | None:
        """The median of a figure, if it was measured."""
        values = self.values.get(figure)
        return statistics.median(values) if values else None

    def judge(self, behaviour: str, result: blast.Result) -> None:
        """Keep account of what became of every connection."""
        sums = self.outcomes.setdefault(behaviour, dict.fromkeys(blast.OUTCOMES, 0))
        for outcome, number in result.counts.items():
            sums[outcome] += number

    def answered(self, behaviour: str) -> float | None:
        """Percent of the connections of one behaviour that got the whole answer."""
        sums = self.outcomes.get(behaviour)
        if not sums:
            return None
        return 100.0 * (sums["complete"] + sums["reset_after"]) / max(1, sum(sums.values()))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "figures": {
                figure: {
                    "median": statistics.median(values),
                    "min": min(values),
                    "max": max(values),
                    "values": values,
                }
                for figure, values in self.values.items()
            },
            "latency": {
                rate: {**result.as_dict(), "buckets": result.values()}
                for rate, result in self.latencies.items()
            },
            "answered_percent": {name: self.answered(name) for name in self.outcomes},
            "outcomes": self.outcomes,
            **self.notes,
        }


def _crowd(peer: Peer) -> int:
    return full_queue(peer.workers)


def _settled_cpu(server: Running) -> int:
    """CPU when the server has gone to sleep and its account is complete."""
    time.sleep(0.01)
    return server.cpu_ns()


def measure_drain(peer: Peer, server: Running, book: Book, options: Options) -> None:
    """CPU per connection where the client plays no part."""
    for _ in range(options.drains):
        done = drain(server, connections=_crowd(peer))
        book.add("drain_cpu_us", done.cpu_us)
        book.add("drain_rate", done.rate)
        book.judge("silent", done.result)


def measure_logged(peer: Peer, server: Running, book: Book, options: Options) -> None:
    """The same with what is done about it later: the log is written once a
    second, so the account is taken when that second is surely over."""
    syslog = server.syslog
    if syslog is None or peer.workers > 1:
        return
    time.sleep(LOG_SECONDS)
    lines, before = syslog.datagrams, server.cpu_ns()
    done = drain(server, connections=_crowd(peer))
    time.sleep(LOG_SECONDS)
    book.add("logged_cpu_us", (server.cpu_ns() - before) / 1000 / max(1, done.connections))
    book.add("logged_lines", (syslog.datagrams - lines) / max(1, done.connections))
    book.judge("silent", done.result)


def measure_closed(peer: Peer, server: Running, book: Book, options: Options) -> None:
    """Disposals per second with a crowd that never ends."""
    before = _settled_cpu(server)
    result = blast.closed(
        server.address, server.port, seconds=options.seconds, concurrency=512,
        sources=200, expect=server.expect,
    )  # fmt: skip
    book.add("closed_rate", result.rate)
    book.add("closed_cpu_us", (_settled_cpu(server) - before) / 1000 / max(1, result.started))
    book.add("client_cpu_us", result.cpu_us)
    book.judge("silent", result)


def measure_offered(peer: Peer, server: Running, book: Book, options: Options) -> None:
    """Latency and CPU where the schedule, not the server, sets the pace."""
    for rate in options.rates:
        seconds = options.seconds if rate > 500 else max(options.seconds, 0.6)
        before = _settled_cpu(server)
        result = blast.offered(
            server.address, server.port, rate=rate, seconds=seconds,
            sources=200, expect=server.expect,
        )  # fmt: skip
        spent = _settled_cpu(server) - before
        book.add(f"offered_{rate}_cpu_us", spent / 1000 / max(1, result.started))
        # How late this client itself was at worst: where it is milliseconds,
        # the machine was busy and the percentiles beside it are not the server's.
        book.add(f"offered_{rate}_late_us", result.latest * 1e6)
        book.add(f"offered_{rate}_p50_us", result.percentile(50))
        book.add(f"offered_{rate}_p99_us", result.percentile(99))
        book.add(f"offered_{rate}_p999_us", result.percentile(99.9))
        book.judge("silent", result)
        known = book.latencies.get(str(rate))
        book.latencies[str(rate)] = known + result if known is not None else result


def measure_early(peer: Peer, server: Running, book: Book, options: Options) -> None:
    """Whether those who talk first get their answer too."""
    for name, words in (("early", blast.EHLO), ("early 4k", blast.EHLO_4K)):
        result = blast.closed(
            server.address, server.port, connections=options.early, concurrency=64,
            behaviour="early", words=words, expect=server.expect, timeout=3.0,
        )  # fmt: skip
        book.judge(name, result)
    book.judge(
        "quit",
        blast.closed(
            server.address, server.port, connections=options.early, concurrency=64,
            behaviour="quit", expect=server.expect, timeout=3.0,
        ),
    )  # fmt: skip


EACH_ROUND = {
    "drain": measure_drain,
    "logged": measure_logged,
    "closed": measure_closed,
    "offered": measure_offered,
    "early": measure_early,
}

# Not for a server that works on the client's core as well.
NEED_BOTH_CORES = ("closed", "offered", "logged")


def count_sockets(peer: Peer, server: Running, book: Book, options: Options) -> None:
    """What a thousand turned away leave in the kernel's tables. Needs a server
    nobody has talked to yet: the tables know ports, not times."""
    deadline = time.monotonic() + options.patience
    while accounts.time_wait_room() < 2 * LEFT_BEHIND:
        if time.monotonic() > deadline:
            raise counts.CannotCount("the kernel's TIME-WAIT table is full; wait a minute")
        time.sleep(1.0)
    result = blast.closed(
        server.address, server.port, connections=LEFT_BEHIND, expect=server.expect
    )
    book.judge("silent", result)
    time.sleep(0.2)
    states = accounts.sockets(server.port)
    states.pop("LISTEN", None)
    book.notes["sockets_per_1000"] = states
    for state in ("TIME-WAIT", "FIN-WAIT-1", "FIN-WAIT-2"):
        book.add(f"sockets_{state}", states.get(state, 0))


def count_packets(peer: Peer, server: Running, book: Book, options: Options) -> None:
    """Packets on the wire, the client's included."""
    counted = counts.packets_per_connection(server, connections=options.tapped)
    book.add("packets", counted.per_connection)
    book.notes["packet_kinds"] = counted.kinds
    book.judge("silent", counted.result)


def count_syscalls(peer: Peer, server: Running, book: Book, options: Options) -> None:
    """System calls at saturation. Not judged with the rest: a traced server is
    not the server that is measured."""
    counted = counts.syscalls_per_connection(server, connections=options.traced)
    book.add("syscalls", counted.per_connection)
    book.notes["syscall_kinds"] = counted.kinds


def note_memory(peer: Peer, server: Running, book: Book, options: Options) -> None:
    """Resident memory after all that load."""
    rss, pss = accounts.resident_bytes(server.pid)
    book.add("rss_mib", rss / 2**20)
    book.add("pss_mib", pss / 2**20)


def note_soak(
    server: Running, book: Book, connections: int, step: Callable[[int], None] | None = None
) -> None:
    """Growth of resident memory from after the warming up to after so many."""
    done = soak.soak(server, connections, step)
    sums = book.outcomes.setdefault("silent", dict.fromkeys(blast.OUTCOMES, 0))
    for outcome, number in done.outcomes.items():
        sums[outcome] += number
    book.add("growth_mib", done.grown_kib / 1024)
    book.notes["soak_connections"] = connections


def machine() -> dict[str, Any]:
    """Where and when this was measured, and under what load."""
    return {
        **reliability.machine(),
        "load_average": os.getloadavg(),
        "somaxconn": accounts.queue_limit(),
    }


@dataclass
class Comparison:
    """A whole run: where, what, who was missing, and every value."""

    options: Options
    place: dict[str, Any]
    books: dict[str, Book] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def median(self, peer: str, figure: str) -> float | None:
        """The median of one figure of one peer, if there is one."""
        book = self.books.get(peer)
        return book.median(figure) if book else None

    def ratio(self, peer: str, other: str, figure: str, other_figure: str = "") -> float | None:
        """The median over the rounds of one peer's figure to another's of the
        same round: what disturbs the machine for a while disturbs both."""
        mine, theirs = self.books.get(peer), self.books.get(other)
        if mine is None or theirs is None:
            return None
        left = mine.values.get(figure, [])
        right = theirs.values.get(other_figure or figure, [])
        if not left or len(left) != len(right):
            return None
        return statistics.median(a / b for a, b in zip(left, right, strict=True) if b)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "machine": self.place,
            "options": {name: getattr(self.options, name) for name in Options.__dataclass_fields__},
            "missing": self.missing,
            "troubles": self.troubles,
            "targets": [target.as_dict() for target in targets(self)],
            "peers": {name: book.as_dict() for name, book in self.books.items()},
        }


@dataclass(frozen=True)
class Target:
    """One line of what must be shown, and what was."""

    figure: str
    must: float
    hoped: float
    got: float | None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """`hoped`, `met`, `missed` or `not measured`."""
        if self.got is None:
            return "not measured"
        # Rounded as it is printed: 1.104 is 1.10.
        got = -round(self.got, 2) if self.at_least else round(self.got, 2)
        sign = -1 if self.at_least else 1
        if got <= self.hoped * sign:
            return "hoped"
        return "met" if got <= self.must * sign else "missed"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "figure": self.figure, "must": self.must, "hoped": self.hoped,
            "got": self.got, "verdict": self.verdict,
        }  # fmt: skip


def targets(run: Comparison, me: str = "turnaway") -> list[Target]:
    """What the comparison must show, with what it showed."""
    book = run.books.get(me, Book())

    def milli(figure: str) -> float | None:
        value = book.median(figure)
        return None if value is None else value / 1000

    # What was sent to a server that runs: everything it got counts as silent.
    heard = [p for b in ("silent", "early", "early 4k") if (p := book.answered(b)) is not None]
    return [
        Target("drain CPU to nginx", 0.65, 0.55, run.ratio(me, "nginx", "drain_cpu_us")),
        Target("drain CPU to floor", 1.10, 1.00, run.ratio(me, "floor", "drain_cpu_us")),
        Target("CPU at 15,000/s to nginx", 0.45, 0.35,
               run.ratio(me, "nginx", "offered_15000_cpu_us")),
        Target("CPU at 5,000/s to nginx", 0.75, 0.60,
               run.ratio(me, "nginx", "offered_5000_cpu_us")),
        Target("every connection logged to interval logging", 1.25, 1.10,
               run.ratio("turnaway log", me, "logged_cpu_us")),
        Target("two workers to one", 1.10, 1.00, run.ratio("turnaway two", me, "drain_cpu_us")),
        Target("system calls per connection", 5.0, 4.0, book.median("syscalls")),
        Target("packets per connection", 6.0, 6.0, book.median("packets")),
        Target("resident memory MiB", 24.0, 18.0, book.median("rss_mib")),
        Target("growth MiB (soak)", 0.5, 0.0, book.median("growth_mib")),
        Target("answers complete %", 100.0, 100.0, min(heard) if heard else None, at_least=True),
        Target("median ms at 15,000/s", 1.5, 1.0, milli("offered_15000_p50_us")),
        Target("median ms at 100/s", 0.2, 0.1, milli("offered_100_p50_us")),
        Target("start to first banner ms", 200.0, 100.0, book.median("start_ms")),
    ]  # fmt: skip


def chosen(options: Options) -> Iterator[Peer]:
    """The peers of this run, in order."""
    known = {**PEERS, **VARIANTS}
    for name in options.peers:
        if name not in known:
            raise ValueError(f"no peer {name!r}: one of {', '.join(known)}")
        yield known[name]


def steps(options: Options) -> int:
    """How often `compare` will call its progress, at most."""
    rounds = options.rounds * sum(column in EACH_ROUND for column in options.columns)
    return len(options.peers) * (1 + rounds + 1) + (1 if options.soak else 0)


def compare(options: Options, progress: Progress = lambda _: None) -> Comparison:
    """Measure. Ends every server it started, however it ends itself."""
    run = Comparison(options, machine())
    client = set(options.client_cores)
    before = os.sched_getaffinity(0)
    up: dict[str, tuple[Peer, Running]] = {}
    try:
        os.sched_setaffinity(0, client)
        for peer in chosen(options):
            progress(f"start {peer.name}")
            try:
                _start(run, peer, up)
            except NotReady as error:
                run.missing[peer.name] = str(error)
        names = list(up)
        for number in range(options.rounds):
            turn = number % len(names) if names else 0
            # One kind of measurement over all peers, then the next: what is
            # compared with each other happens within the same few seconds.
            for column, measure in EACH_ROUND.items():
                if column not in options.columns:
                    continue
                for name in names[turn:] + names[:turn]:
                    peer, server = up[name]
                    if peer.workers > 1 and column in NEED_BOTH_CORES:
                        continue
                    progress(f"round {number + 1}: {column} {name}")
                    _guarded(run, name, column, measure, peer, server)
        for name in names:
            progress(f"count {name}")
            peer, server = up[name]
            for column, measure in (
                ("memory", note_memory), ("packets", count_packets), ("syscalls", count_syscalls),
            ):  # fmt: skip
                if column in options.columns:
                    _guarded(run, name, column, measure, peer, server)
        if options.soak and "turnaway" in up:
            progress("soak turnaway")
            note_soak(up["turnaway"][1], run.books["turnaway"], options.soak)
        for name in names:
            server = up[name][1]
            if server.syslog is not None:
                run.books[name].notes["log_datagrams"] = server.syslog.datagrams
    finally:
        for _, server in up.values():
            server.stop()
        os.sched_setaffinity(0, before)
    return run


def _start(run: Comparison, peer: Peer, up: dict[str, tuple[Peer, Running]]) -> None:
    """Start one, several times when starts are measured; keep the last."""
    options = run.options
    cores = set(options.server_cores)
    if peer.workers > 1:
        # Only here does the server get the client's core: in a drain the
        # client sleeps.
        cores |= set(options.client_cores)
    book = run.books.setdefault(peer.name, Book())
    book.notes["about"] = peer.about
    times = options.starts if "start" in options.columns else 1
    for again in range(times):
        try:
            server = peer.start(cores=cores, client_cores=set(options.client_cores))
        except NotReady:
            del run.books[peer.name]
            raise
        book.add("start_ms", server.first_banner_ms)
        if again < times - 1:
            server.stop()
    up[peer.name] = (peer, server)
    if "sockets" in options.columns:
        _guarded(run, peer.name, "sockets", count_sockets, peer, server)


def _guarded(
    run: Comparison,
    name: str,
    column: str,
    measure: Callable[[Peer, Running, Book, Options], None],
    peer: Peer,
    server: Running,
) -> None:
    """One measurement. What fails is named in the result and does not end it."""
    if server.process.poll() is not None:
        run.troubles.append(f"{name}: ended with {server.process.returncode} before {column}")
        return
    try:
        measure(peer, server, run.books[name], run.options)
    except (counts.CannotCount, OSError) as error:
        run.troubles.append(f"{name}: {column}: {error}")


def write_json(run: Comparison, folder: Path, stem: str) -> Path:
    """The whole run with every value."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(run.as_dict(), indent=1) + "\n")
    return path
