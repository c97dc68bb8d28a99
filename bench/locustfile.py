"""Locust users that are turned away: `locust -f bench/locustfile.py --headless -t 10s`.

Owns four kinds of user and the honest account of them: every connection is one
request in locust's statistics, and everything but the whole answer followed by
the end of the stream is a failure. Locust rounds to milliseconds, in which
nearly all disposals are 0; so microseconds are kept beside it, in HDR
histograms that workers send to the master, printed at the end and written to
`bench/results`.

Without --host it starts a turnaway-fast of its own on 127.0.0.1, headless only
for as long as --run-time says, and at the end compares what the server counted
with what the users did. Latencies are those of a closed model: each user waits
for its answers. The open model is `python -m bench compare`.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import re
import smtplib
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections import Counter, deque
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from hdrh.histogram import HdrHistogram
from locust import User, constant, constant_pacing, events, task
from locust import stats as locust_stats
from locust.exception import StopUser
from locust.runners import WorkerRunner
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
# At the end: locust takes the first place away again after loading this file.
sys.path.append(str(ROOT))

from bench import blast, compare, peers  # noqa: E402
from bench.expect import DIGIT, EQUAL, Expect  # noqa: E402
from turnaway.values import place  # noqa: E402

if TYPE_CHECKING:
    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment
    from locust.stats import RequestStats, StatsEntry

TIMEOUT = 5.0
# Users finish what they have begun, or their last connections would be lost to
# the statistics. A burst takes a small part of a second.
STOP_SECONDS = 6.0
EARLY_BURST = 50
# So many never closed, at fifty a second, are five seconds: longer than the
# server's kernel waits for a FIN (TCP_LINGER2, three seconds).
HELD = 256
PACE = 0.02
LARGEST_US = 1 << 27
PERCENTILES = (50.0, 90.0, 99.0, 99.9)

# With a whole answer there is a time to tell, even where a reset came after it.
ANSWERED = ("complete", "reset_after")
FAILURES = {
    "short": "short: the end before the whole answer",
    "reset_before": "reset before the whole answer",
    "reset_after": "reset after the whole answer",
    "refused": "refused",
    "timed_out": "timed out",
    "wrong": "wrong: not the expected octets",
    "local": "this client could not open a connection",
}


class NotTurnedAwayError(Exception):
    """A connection that did not end as it should; its text says how."""


class Target(NamedTuple):
    """Who is asked, from how many source addresses, and what has to come."""

    address: str
    port: int
    sources: int
    expect: Expect
    smtp: Expect


# --- what an answer is -----------------------------------------------------------


def judge(expect: Expect, answer: bytes) -> str:
    """The outcome of an answer that was read in Python."""
    if len(answer) > len(expect.template):
        return "wrong"
    for octet, wanted, kind in zip(answer, expect.template, expect.freedom, strict=False):
        if kind == EQUAL:
            right = octet == wanted
        elif kind == DIGIT:
            right = chr(octet).isdigit()
        else:
            right = octet < 128 and chr(octet).isalpha()
        if not right:
            return "wrong"
    return "complete" if len(answer) == len(expect.template) else "short"


def as_smtplib_sees(code: int, text: bytes) -> bytes:
    """A reply put together again from what smtplib leaves of it."""
    lines = text.split(b"\n")
    return b"".join(
        b"%d%s%s\r\n" % (code, b" " if number == len(lines) else b"-", line)
        for number, line in enumerate(lines, 1)
    )


def outcome_of(error: BaseException) -> str:
    """The outcome for what a socket or smtplib raised."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "refused"
        if isinstance(cause, ConnectionError):
            return "reset_before"
        if isinstance(cause, TimeoutError):
            return "timed_out"
        cause = cause.__context__
    return "short" if isinstance(error, smtplib.SMTPServerDisconnected) else "local"


@lru_cache(maxsize=8)
def learn(host: str) -> Target:
    """Take the template from one plain connection; once in each process."""
    address, port = place(host.rpartition("://")[2].rstrip("/"))
    LEDGER.probes += 1
    expect = Expect.learn(address, port, timeout=TIMEOUT)
    if not expect.template:
        raise ValueError(f"{host} closes without a word")
    lines = expect.template.splitlines()
    stripped = b"\n".join(line[4:].strip(b" \t") for line in lines)
    smtp = Expect.reply(as_smtplib_sees(int(lines[0][:3]), stripped))
    return Target(address, port, 64 if address.startswith("127.") else 0, expect, smtp)


# --- the account -----------------------------------------------------------------


def log_burst(
    stats: RequestStats, method: str, name: str, result: blast.Result, octets: int
) -> None:
    """Every connection of a burst into locust's statistics, as if each had been
    logged alone at this moment: one at a time would cost more than the
    connections (4.6 us each)."""
    now = time.time()
    # Locust's own rounding, so that its percentiles mean what they always do.
    rounded: Counter[int] = Counter()
    samples = result.values()
    for micros, count in samples:
        rounded[locust_stats.bucket_response_time(micros / 1000)] += count
    for entry in (stats.total, stats.entries[(name, method)]):
        _log_many(entry, now, result, rounded)
        entry.total_content_length += octets
        if samples:
            least = samples[0][0] / 1000
            known = entry.min_response_time
            entry.min_response_time = least if known is None else min(known, least)
            entry.max_response_time = max(entry.max_response_time, result.max_us / 1000)
    for outcome, said in FAILURES.items():
        count = result.counts[outcome]
        if not count:
            continue
        for entry in (stats.total, stats.entries[(name, method)]):
            entry.num_failures += count
            entry.num_fail_per_sec[int(now)] += count
        key = locust_stats.StatsError.create_key(method, name, said)
        known_error = stats.errors.setdefault(key, locust_stats.StatsError(method, name, said))
        known_error.occurred()
        known_error.occurrences += count - 1


def _log_many(entry: StatsEntry, now: float, result: blast.Result, rounded: Counter[int]) -> None:
    last = entry.last_request_timestamp
    if entry.use_response_times_cache and last and int(now) > int(last):
        entry._cache_response_times(int(now) - 1)
    entry.num_requests += result.finished
    # Who got nothing has no time; locust counts such requests apart.
    entry.num_none_requests += result.finished - result.samples
    entry.num_reqs_per_sec[int(now)] += result.finished
    entry.last_request_timestamp = now
    entry.total_response_time += result.mean_us * result.samples / 1000
    for millis, count in rounded.items():
        entry.response_times[millis] += count


class Ledger:
    """Microseconds and outcomes by the kind of user, of this process or, in the
    master, of all workers."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """A new test begins."""
        self.histograms: dict[str, HdrHistogram] = {}
        self.outcomes: dict[str, Counter[str]] = {}
        self.client_seconds = 0.0
        self.bursts = 0  # connections in bursts, to which that time belongs
        self.probes = 0  # connections that only learnt the answer

    def _of(self, name: str) -> tuple[HdrHistogram, Counter[str]]:
        if name not in self.histograms:
            self.histograms[name] = HdrHistogram(1, LARGEST_US, 3)
            self.outcomes[name] = Counter()
        return self.histograms[name], self.outcomes[name]

    def add_burst(self, name: str, result: blast.Result) -> None:
        """All of a burst."""
        histogram, outcomes = self._of(name)
        for micros, count in result.values():
            histogram.record_value(max(micros, 1), count)
        outcomes.update({kind: count for kind, count in result.counts.items() if count})
        self.client_seconds += result.cpu_seconds
        self.bursts += result.started

    def add_one(self, name: str, seconds: float, outcome: str) -> None:
        """One connection; its time counts if it got the whole answer, as in bursts."""
        histogram, outcomes = self._of(name)
        outcomes[outcome] += 1
        if outcome in ANSWERED:
            histogram.record_value(max(1, round(seconds * 1e6)))

    def take(self) -> dict[str, Any]:
        """What a worker sends to the master; it begins anew."""
        parcel = {
            "histograms": {name: one.encode() for name, one in self.histograms.items()},
            "outcomes": {name: dict(one) for name, one in self.outcomes.items()},
            "client_seconds": self.client_seconds,
            "bursts": self.bursts,
            "probes": self.probes,
        }
        self.clear()
        return parcel

    def merge(self, parcel: dict[str, Any]) -> None:
        """What a master does with it."""
        for name, encoded in parcel["histograms"].items():
            histogram, outcomes = self._of(name)
            histogram.decode_and_add(encoded)
            outcomes.update(parcel["outcomes"][name])
        self.client_seconds += parcel["client_seconds"]
        self.bursts += parcel["bursts"]
        self.probes += parcel["probes"]

    @property
    def connections(self) -> int:
        """All that were opened."""
        return sum(sum(one.values()) for one in self.outcomes.values())


LEDGER = Ledger()
# The first user learns for all of its process.
LEARNING = threading.Lock()


# --- the users -------------------------------------------------------------------


class TurnedAway(User):
    """Knows the target, and reports what became of a connection."""

    abstract = True
    method = ""
    title = ""

    def on_start(self) -> None:
        """Learn the answer. A target that cannot be learnt from is a failure."""
        try:
            with LEARNING:
                self.target = learn(self.environment.host or "")
        except (OSError, ValueError) as error:
            self.environment.events.request.fire(
                request_type=self.method, name=self.title, response_time=None, response_length=0,
                exception=NotTurnedAwayError(f"no answer to learn from: {error}"), context={},
            )  # fmt: skip
            raise StopUser from error

    def burst(self, behaviour: str, connections: int, concurrency: int) -> None:
        """A burst in a native thread, without the GIL: other users go on."""
        target = self.target
        job = gevent.get_hub().threadpool.spawn(
            blast.closed,
            target.address,
            target.port,
            connections=connections,
            concurrency=concurrency,
            behaviour=behaviour,
            sources=target.sources,
            expect=target.expect,
            timeout=TIMEOUT,
        )
        killed: gevent.GreenletExit | None = None
        result: blast.Result | None = None
        while result is None:
            try:
                result = job.get()
            except gevent.GreenletExit as error:
                # The thread cannot be stopped, and what it does counts.
                killed = error
        octets = result.answered * len(target.expect.template)
        log_burst(self.environment.stats, self.method, self.title, result, octets)
        LEDGER.add_burst(self.title, result)
        if killed is not None:
            raise killed

    def report(self, began: float, outcome: str, octets: int) -> None:
        """One connection, the way locust's own users report theirs."""
        spent = time.perf_counter() - began
        LEDGER.add_one(self.title, spent, outcome)
        self.environment.events.request.fire(
            request_type=self.method, name=self.title,
            response_time=spent * 1000 if outcome in ANSWERED else None, response_length=octets,
            exception=None if outcome == "complete" else NotTurnedAwayError(FAILURES[outcome]),
            context={},
        )  # fmt: skip


class SilentBurst(TurnedAway):
    """Reads and closes, hundreds in a burst: as many of these users as are left
    when the others have their one."""

    method = "burst"
    title = "silent reader"
    wait_time = constant(0)

    @task
    def read(self) -> None:
        """One burst."""
        options = self.environment.parsed_options
        self.burst("silent", options.burst, options.crowd)


class EarlyTalker(TurnedAway):
    """Says EHLO before the greeting and still wants its answer."""

    method = "burst"
    title = "early talker"
    fixed_count = 1
    wait_time = constant_pacing(EARLY_BURST / 500)

    @task
    def talk(self) -> None:
        """One small burst."""
        self.burst("early", EARLY_BURST, 16)


class SmtpClient(TurnedAway):
    """The standard library's SMTP client, which must understand the refusal."""

    method = "smtplib"
    title = "smtplib client"
    fixed_count = 1
    wait_time = constant_pacing(PACE)

    @task
    def connect(self) -> None:
        """To be refused with code and text is success."""
        target = self.target
        answer = b""
        began = time.perf_counter()
        try:
            with smtplib.SMTP(
                target.address, target.port, local_hostname="client.example.net", timeout=TIMEOUT
            ):
                # Welcomed, by a server that is to turn away.
                outcome = "wrong"
        except smtplib.SMTPConnectError as refusal:
            error = refusal.smtp_error
            text = error if isinstance(error, bytes) else error.encode("latin-1")
            answer = as_smtplib_sees(refusal.smtp_code, text)
            outcome = judge(target.smtp, answer)
        except OSError as error:
            outcome = outcome_of(error)
        self.report(began, outcome, len(answer))


class NeverCloser(TurnedAway):
    """Reads to the end and keeps its half of the connection open."""

    method = "plain"
    title = "never closer"
    fixed_count = 1
    wait_time = constant_pacing(PACE)

    def on_start(self) -> None:
        """Nothing is held yet."""
        self.held: deque[socket.socket] = deque()
        super().on_start()

    def on_stop(self) -> None:
        """Not even this user may keep descriptors for ever."""
        while self.held:
            self.held.popleft().close()

    @task
    def stay(self) -> None:
        """Bounded: the oldest makes room."""
        answer = bytearray()
        outcome = ""
        began = time.perf_counter()
        try:
            made = socket.create_connection((self.target.address, self.target.port), TIMEOUT)
            self.held.append(made)
            while piece := made.recv(4096):
                answer += piece
        except OSError as error:
            outcome = outcome_of(error)
            whole = judge(self.target.expect, bytes(answer)) == "complete"
            if outcome == "reset_before" and whole:
                outcome = "reset_after"
        self.report(began, outcome or judge(self.target.expect, bytes(answer)), len(answer))
        if len(self.held) > HELD:
            self.held.popleft().close()


# --- a server of our own ---------------------------------------------------------


class Own:
    """The turnaway-fast that is started when nobody names a target."""

    def __init__(self, workers: int) -> None:
        def command(port: int, folder: Path) -> list[str]:
            return [
                str(Path(sys.executable).parent / "turnaway-fast"),
                "-f", "--pidfile", "none", "--control", "none", "--log", "stderr", "--log-connections", "none",
                "-w", str(workers), "-p", "blocked",
                "Somecity, Earth", f"127.0.0.1:{port} mx.example.com",
            ]  # fmt: skip

        # On stderr, for the totals it tells at its end.
        peer = dataclasses.replace(
            peers.TURNAWAY, command=command, wants_syslog=False, workers=workers
        )
        self._server = peer.start()
        self.host = f"{self._server.address}:{self._server.port}"
        self._cpu = self._server.cpu_ns()
        atexit.register(self.stop)

    def cpu_ns(self) -> int:
        """What it has used since it was ready."""
        return self._server.cpu_ns() - self._cpu

    def stop(self) -> str:
        """End it. The last totals it told, or nothing the second time."""
        atexit.unregister(self.stop)
        if self._server.process.poll() is None:
            self._server.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.process.wait(peers.STOP_SECONDS)
        said = self._server.complaint().splitlines()
        self._server.stop()
        return next((line for line in reversed(said) if "totals" in line), "")


# --- locust's events -------------------------------------------------------------


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """What only these users know."""
    group = parser.add_argument_group("turned away")
    group.add_argument("--burst", type=int, default=500, help="connections in a burst")
    group.add_argument("--crowd", type=int, default=64, help="how many of them at once")
    group.add_argument(
        "--server-workers", type=int, default=1, help="of the own server, without --host"
    )


@events.init.add_listener
def begin(environment: Environment, **_: object) -> None:
    """Set up one process: master, worker or both in one."""
    options = environment.parsed_options
    if not environment.stop_timeout:
        environment.stop_timeout = STOP_SECONDS
    environment.events.test_start.add_listener(lambda **_: LEDGER.clear())
    environment.events.reset_stats.add_listener(LEDGER.clear)
    if isinstance(environment.runner, WorkerRunner):
        environment.events.report_to_master.add_listener(send)
        return
    environment.events.worker_report.add_listener(receive)
    own: Own | None = None
    if not environment.host:
        if options.headless and not options.run_time:
            raise SystemExit("locustfile: without --host a headless run needs --run-time")
        try:
            own = Own(options.server_workers)
        except (peers.NotReady, OSError) as error:
            raise SystemExit(f"locustfile: {error}") from error
        environment.host = own.host
    environment.events.quit.add_listener(lambda **_: end(environment, options, own))


def send(client_id: str, data: dict[str, Any]) -> None:
    """A worker's histograms go with its statistics."""
    data["turned_away"] = LEDGER.take()


def receive(client_id: str, data: dict[str, Any]) -> None:
    """And come to the master's."""
    LEDGER.merge(data.get("turned_away") or Ledger().take())


def end(environment: Environment, options: Namespace, own: Own | None) -> None:
    """Print the microseconds, and keep them."""
    server: dict[str, Any] = {"target": environment.host}
    console = Console()
    if not console.is_terminal:
        console.width = 110
    connections = LEDGER.connections
    rows = [row(name, environment.stats) for name in sorted(LEDGER.histograms)]
    table = Table(title=f"{connections:,} connections to {environment.host}, microseconds")
    headings = ("", "connections", "per s", "failures",
                *(f"p{percent:g}" for percent in PERCENTILES), "max")  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for one in rows:
        table.add_row(
            one["name"], f"{one['connections']:,}", f"{one['rate']:,.0f}", str(one["failures"]),
            *(f"{one[f'p{percent:g}_us']:,}" for percent in PERCENTILES), f"{one['max_us']:,}",
        )  # fmt: skip
    console.print(table)
    if LEDGER.bursts:
        client = LEDGER.client_seconds * 1e6 / LEDGER.bursts
        server["client_cpu_us"] = client
        console.print(f"client: {client:.1f} us of CPU a connection in bursts")
    if own is not None:
        server["cpu_us"] = own.cpu_ns() / 1000 / max(1, connections)
        server["totals"] = own.stop()
        counted = re.search(r"connections=(\d+)", server["totals"])
        server["connections"] = int(counted[1]) if counted else 0
        # One more made sure that it was up.
        server["not_ours"] = server["connections"] - connections - LEDGER.probes - 1
        console.print(f"server: {server['cpu_us']:.1f} us of CPU a connection")
        console.print(f"server: {server['totals']}", markup=False, soft_wrap=True)
        console.print(
            f"server: {server['connections']:,} connections = {connections:,} of the users"
            f" + {LEDGER.probes + 1} to learn the answer {server['not_ours']:+} unaccounted"
        )
    if not connections:
        return
    path = compare.RESULTS / time.strftime("locust-%Y%m%dT%H%M%SZ.json", time.gmtime())
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {
        "machine": compare.machine(),
        "options": {
            "users": options.num_users, "run_time": options.run_time, "burst": options.burst,
            "crowd": options.crowd, "processes": options.processes,
            "workers": getattr(environment.runner, "worker_count", 0),
        },
        "server": server,
        "connections": connections,
        "rate": environment.stats.total.total_rps,
        "failures": environment.stats.total.num_failures,
        "users": rows,
    }  # fmt: skip
    path.write_text(json.dumps(written, indent=1) + "\n")
    console.print(f"written: {path}", soft_wrap=True)


def row(name: str, stats: RequestStats) -> dict[str, Any]:
    """One kind of user: counts, rate as locust sees it, microseconds."""
    histogram = LEDGER.histograms[name]
    outcomes = LEDGER.outcomes[name]
    connections = sum(outcomes.values())
    entry = next((one for (title, _), one in stats.entries.items() if title == name), None)
    return {
        "name": name,
        "connections": connections,
        "failures": connections - outcomes["complete"],
        "outcomes": dict(outcomes),
        "rate": entry.total_rps if entry else 0.0,
        **{
            f"p{percent:g}_us": histogram.get_value_at_percentile(percent)
            for percent in PERCENTILES
        },
        "max_us": histogram.get_max_value(),
        # Whole, so that runs can be added up and plotted later.
        "hdr": histogram.encode().decode("ascii"),
    }
