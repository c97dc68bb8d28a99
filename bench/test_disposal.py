"""What it costs to be rid of a connection, as benchmarks that can be compared.

Owns two measures, each with thousands of connections in a round: the drain of
a full accept queue, whose time is the server's alone, and disposal in a closed
loop, where the client takes part. Every answer is verified octet by octet; one
that is not whole fails the benchmark. Beside the times, `extra_info` holds the
server's CPU per connection by the kernel's own account.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import blast
from bench.drain import SETTLE_SECONDS, full_queue
from bench.peers import FLOOR, PLAIN, TURNAWAY, NotReady, Peer, Running

DRAINS = 12
LOOPS = 8
CONNECTIONS = 5000
CONCURRENCY = 64
SOURCES = 64


@pytest.fixture(scope="module", params=[TURNAWAY, PLAIN, FLOOR], ids=lambda peer: peer.name)
def server(
    request: pytest.FixtureRequest, server_cores: set[int], client_cores: set[int]
) -> Iterator[Running]:
    """Each server in its turn, on a core of its own."""
    yield from _up(request.param, server_cores, client_cores)


@pytest.fixture(scope="module")
def turnaway(server_cores: set[int], client_cores: set[int]) -> Iterator[Running]:
    """Turnaway alone, for what the yardsticks cannot do."""
    yield from _up(TURNAWAY, server_cores, client_cores)


def _up(peer: Peer, server_cores: set[int], client_cores: set[int]) -> Iterator[Running]:
    try:
        running = peer.start(cores=server_cores, client_cores=client_cores)
    except NotReady as error:
        pytest.skip(str(error))
    yield running
    running.stop()


class Account:
    """What the rounds of one benchmark came to."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self._before = 0
        self._cpu_us: list[float] = []
        self.result = blast.Result()

    def begin(self) -> None:
        """From here on the server's CPU counts."""
        self._before = self._server.cpu_ns()

    def end(self, result: blast.Result | None = None) -> int:
        """Up to here; the server goes to sleep by itself first."""
        time.sleep(SETTLE_SECONDS)
        spent = self._server.cpu_ns() - self._before
        if result is not None:
            self.add(result, spent)
        return spent

    def add(self, result: blast.Result, spent: int) -> None:
        self._cpu_us.append(spent / 1000 / max(1, result.started))
        self.result += result

    def note(self, benchmark: BenchmarkFixture, *, latency: bool) -> None:
        """Into the benchmark's record; and nobody may have been turned away badly."""
        counts = self.result.counts
        benchmark.extra_info.update(
            connections=self.result.started,
            cpu_us_min=min(self._cpu_us),
            cpu_us_median=statistics.median(self._cpu_us),
            client_cpu_us=self.result.cpu_us,
            **{name: counts[name] for name in blast.OUTCOMES if counts[name]},
        )
        if latency:
            benchmark.extra_info["p50_us"] = self.result.percentile(50)
            benchmark.extra_info["p99_us"] = self.result.percentile(99)
        # Always there, so that a comparison can look for it.
        benchmark.extra_info["short"] = self.result.short
        assert self.result.complete == self.result.started, repr(self.result)


@pytest.mark.benchmark(group="drain of a full queue")
@pytest.mark.usefixtures("on_client_cores")
def test_drain(benchmark: BenchmarkFixture, server: Running) -> None:
    """The server is stopped, its queue filled; timed is from its going on to
    the end of the last connection."""
    account = Account(server)

    def fill() -> tuple[tuple[blast.Fill], dict[str, object]]:
        server.signal(signal.SIGSTOP)
        time.sleep(SETTLE_SECONDS)
        try:
            queue = blast.Fill(
                server.address,
                server.port,
                connections=full_queue(),
                sources=SOURCES,
                expect=server.expect,
            )
        except BaseException:
            server.signal(signal.SIGCONT)
            raise
        account.begin()
        return (queue,), {}

    def drain(queue: blast.Fill) -> float:
        queue.mark()
        # Not `server.signal`: looking for its children would be timed too.
        os.kill(server.pid, signal.SIGCONT)
        return queue.wait()

    def judge(queue: blast.Fill) -> None:
        spent = account.end()
        account.add(queue.finish(), spent)

    benchmark.pedantic(drain, setup=fill, teardown=judge, rounds=DRAINS, warmup_rounds=1)
    if account.result.started:
        # No latency: what was drained is read only afterwards.
        account.note(benchmark, latency=False)


@pytest.mark.benchmark(group="closed loop")
@pytest.mark.usefixtures("on_client_cores")
def test_closed_loop(benchmark: BenchmarkFixture, server: Running) -> None:
    """Sixty-four at once, the next when one is done."""
    _closed(benchmark, server, "silent")


@pytest.mark.benchmark(group="closed loop, other manners")
@pytest.mark.usefixtures("on_client_cores")
@pytest.mark.parametrize("behaviour", ["early", "quit"])
def test_other_manners(benchmark: BenchmarkFixture, turnaway: Running, behaviour: str) -> None:
    """Those who talk before the greeting, and those who take their leave."""
    _closed(benchmark, turnaway, behaviour)


def _closed(benchmark: BenchmarkFixture, server: Running, behaviour: str) -> None:
    account = Account(server)
    results: list[blast.Result] = []

    def begin() -> None:
        results.clear()
        account.begin()

    def dispose() -> None:
        results.append(
            blast.closed(
                server.address,
                server.port,
                connections=CONNECTIONS,
                concurrency=CONCURRENCY,
                behaviour=behaviour,
                sources=SOURCES,
                expect=server.expect,
            )
        )

    def end() -> None:
        account.end(results[0])

    benchmark.pedantic(dispose, setup=begin, teardown=end, rounds=LOOPS, warmup_rounds=1)
    if account.result.started:
        account.note(benchmark, latency=True)
