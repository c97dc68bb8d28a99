"""What the single parts of the hot path and of the second's work cost.

Owns one benchmark for each part, of the daemon's own code: the inline
functions of `ext/*.pxd` through `bench.parts`, the rest as the daemon calls
it. Parts that take nanoseconds are called many times in one round; the
summary's `ns_each` is the smallest round divided by that number.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.parts import Lookup, Parts
from bench.peers.syslog import Syslog
from turnaway import banner, lists, personas
from turnaway._board import WORDS, Board
from turnaway._journal import Reader
from turnaway.lists.table import Table
from turnaway.settings import Detail, Limits, Listener

T = TypeVar("T")

TIMES = 1_000_000
ROUNDS = 20
# As many as the daemon's own ring holds by default.
RECORDS = Limits().records
LINES = 2000
MOMENT = 1_062_423_017.0
HEADER = b"<22>Sep  1 07:30:17 turnawayblocked[4711]: "
TAIL = b" as=mx.example.com persona=blocked code=554"
LOCAL = bytes(10) + b"\xff\xff" + socket.inet_aton("198.51.100.2")
FAMILIES = pytest.mark.parametrize("six", [False, True], ids=["v4", "v6"])


@pytest.fixture
def listener() -> Listener:
    """A listener as the command line makes it."""
    persona = personas.read(personas.HOME / "blocked.toml")
    return Listener("198.51.100.2", 25, "mx.example.com", "Somecity, Earth", persona, persona.code)


@pytest.fixture
def board() -> Board:
    """A board that writes every connection down for a line of its own."""
    made = Board(1, 1, RECORDS, 0)
    made.describe(0, LOCAL, 25, False)
    made.record(True)
    made.log_connections(0, "all", 0, False)
    return made


@pytest.fixture
def parts(board: Board) -> Parts:
    """The parts on that board, with IPv4 sources."""
    return Parts(board, RECORDS)


def many(
    benchmark: BenchmarkFixture,
    target: Callable[..., T],
    *arguments: object,
    times: int,
    setup: Callable[[], object] | None = None,
) -> T:
    """Time a target that does its work `times` times, and note what once costs."""

    def prepare() -> tuple[tuple[object, ...], dict[str, object]]:
        if setup is not None:
            setup()
        return arguments, {}

    got = benchmark.pedantic(target, setup=prepare, rounds=ROUNDS, warmup_rounds=2)
    if benchmark.stats is not None:
        data = benchmark.stats.stats.data
        benchmark.extra_info.update(
            times=times,
            ns_each=min(data) / times * 1e9,
            ns_each_median=statistics.median(data) / times * 1e9,
        )
    return got


# --- once a second, in Python --------------------------------------------------


@pytest.mark.benchmark(group="once a second", max_time=0.5)
def test_date_text(benchmark: BenchmarkFixture) -> None:
    """The date of the banner."""
    assert b"2003" in benchmark(banner.date_text, MOMENT).encode()


@pytest.mark.benchmark(group="once a second", max_time=0.5)
def test_banner_render(benchmark: BenchmarkFixture, listener: Listener) -> None:
    """A listener and a date become octets."""
    rendered = benchmark(banner.render, listener, banner.date_text(MOMENT))
    assert rendered.startswith(b"554-mx.example.com ")


@pytest.mark.benchmark(group="once a second", max_time=0.5)
def test_board_publish(benchmark: BenchmarkFixture, board: Board, listener: Listener) -> None:
    """The octets go to the loops, through the Python call."""
    benchmark(board.publish, 0, "banner", banner.render(listener, banner.date_text(MOMENT)))


# --- for each connection, in C -------------------------------------------------


@pytest.mark.benchmark(group="slot")
def test_slot_publish(benchmark: BenchmarkFixture, parts: Parts, listener: Listener) -> None:
    """The same without the Python call."""
    octets = banner.render(listener, banner.date_text(MOMENT))
    assert many(benchmark, parts.publish, octets, TIMES, times=TIMES) == TIMES


@pytest.mark.benchmark(group="slot")
def test_slot_current(benchmark: BenchmarkFixture, parts: Parts) -> None:
    """What an answer pays for its banner."""
    parts.publish(b"554 no\r\n", 1)
    assert many(benchmark, parts.current, TIMES, times=TIMES) == 8 * TIMES


@pytest.mark.benchmark(group="counters")
def test_count(benchmark: BenchmarkFixture, parts: Parts) -> None:
    """What an answer pays for being counted."""
    many(benchmark, parts.counted, TIMES, times=TIMES)


@FAMILIES
@pytest.mark.parametrize("detail", ["none", "capped", "all"])
@pytest.mark.benchmark(group="record into the ring")
def test_record(benchmark: BenchmarkFixture, board: Board, detail: Detail, six: bool) -> None:
    """The loop writes a connection down; `detail` is how many get a line."""
    board.log_connections(0, detail, 20, True)
    parts = Parts(board, RECORDS, six)
    assert many(benchmark, parts.fill, RECORDS, times=RECORDS, setup=parts.clear) == RECORDS
    assert board.dropped() == 0


@pytest.mark.benchmark(group="record into the ring")
def test_record_full(benchmark: BenchmarkFixture, parts: Parts, board: Board) -> None:
    """The same when nobody reads: dropped and counted."""
    parts.fill(RECORDS)
    many(benchmark, parts.fill, TIMES, times=TIMES)
    assert board.dropped() >= TIMES


@pytest.mark.benchmark(group="ring to text")
def test_ring_drain(benchmark: BenchmarkFixture, parts: Parts) -> None:
    """The reader looks at each record and gives its room back."""

    def refill() -> None:
        parts.clear()
        parts.fill(RECORDS)

    records, _ = many(benchmark, parts.walk, times=RECORDS, setup=refill)
    assert records == RECORDS


@FAMILIES
@pytest.mark.benchmark(group="ring to text")
def test_ring_drain_and_format(benchmark: BenchmarkFixture, board: Board, six: bool) -> None:
    """The same, and each becomes a line."""
    parts = Parts(board, RECORDS, six)
    start = b"turned away from=[2001:db8::1]" if six else b"turned away from=[203.0.113.1]"
    assert parts.line(TAIL) == start + b":32769 to=[198.51.100.2]:25" + TAIL + b" outcome=sent"

    def refill() -> None:
        parts.clear()
        parts.fill(RECORDS)

    records, _ = many(benchmark, parts.format, TAIL, times=RECORDS, setup=refill)
    assert records == RECORDS


@FAMILIES
@pytest.mark.benchmark(group="ring to text")
def test_address_to_text(benchmark: BenchmarkFixture, board: Board, six: bool) -> None:
    """An address alone."""
    parts = Parts(board, RECORDS, six)
    many(benchmark, parts.address, TIMES // 10, times=TIMES // 10)


@pytest.mark.benchmark(group="busiest sources")
@pytest.mark.parametrize("sources", [1, 256])
def test_tally_add(benchmark: BenchmarkFixture, parts: Parts, sources: int) -> None:
    """A source is counted, one or many taking turns."""
    many(benchmark, parts.tallied, TIMES, sources, times=TIMES, setup=parts.forget)


# --- the journal's whole way ---------------------------------------------------


@pytest.fixture
def log(tmp_path: Path, client_cores: set[int]) -> Iterator[tuple[Syslog, socket.socket]]:
    """A log socket that somebody reads, and this end of it."""
    syslog = Syslog(tmp_path / "log", client_cores)
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    ours.connect(str(syslog.path))
    yield syslog, ours
    ours.close()
    syslog.close()


@pytest.mark.benchmark(group="journal")
def test_pull_tally_only(benchmark: BenchmarkFixture, board: Board, parts: Parts) -> None:
    """Reader.pull when no connection gets a line: read and tally."""
    reader = Reader(board, [TAIL] * len(WORDS), [b""] * len(WORDS), 7)

    def refill() -> None:
        parts.clear()
        parts.fill(RECORDS)

    got = many(benchmark, reader.pull, -1, "none", b"", [0, 0], times=RECORDS, setup=refill)
    assert got == (RECORDS, 0, 0, 0, [0, 0], [])


@pytest.mark.benchmark(group="journal")
def test_pull_to_syslog(
    benchmark: BenchmarkFixture, board: Board, parts: Parts, log: tuple[Syslog, socket.socket]
) -> None:
    """Reader.pull when every connection gets a line: read, tally, format, send.

    The reading end is Python and sets the pace, so the time is that of both;
    `cpu_ns_each` is this thread's own CPU."""
    syslog, ours = log
    reader = Reader(board, [TAIL] * len(WORDS), [b""] * len(WORDS), 7)
    cpu: list[int] = []
    lost: list[int] = []

    def refill() -> None:
        parts.clear()
        parts.fill(LINES)

    def pull() -> None:
        before = time.thread_time_ns()
        seen, sent, gone, _, _, _ = reader.pull(ours.fileno(), "datagram", HEADER, [LINES, 0])
        cpu.append(time.thread_time_ns() - before)
        lost.append(gone)
        assert seen == sent + gone == LINES

    many(benchmark, pull, times=LINES, setup=refill)
    benchmark.extra_info.update(
        cpu_ns_each=min(cpu) / LINES, lines=LINES * len(cpu), lost=sum(lost)
    )
    # A busy machine may keep the reading end from its core for longer than the
    # daemon is patient. That is noted above; silence would be an error.
    assert sum(lost) < LINES * len(cpu)
    deadline = time.monotonic() + 2.0
    while syslog.datagrams < LINES * len(cpu) - sum(lost) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert syslog.datagrams == LINES * len(cpu) - sum(lost)
    assert syslog.last.startswith(HEADER + b"turned away from=[203.0.113."), os.fsdecode(
        syslog.last
    )


# --- lists ---------------------------------------------------------------------

PREFIXES = 500_000
LOOKUPS = 200_000
# Where IPv6 senders are, and how long the prefixes of lists are.
BLOCKS6 = (0x2001, 0x2400, 0x2600, 0x2A00, 0x2A01)
LENGTHS = {4: (32, 32, 32, 32, 28, 24, 24, 22), 6: (128, 128, 64, 64, 64, 56, 48, 48)}


def somewhere(rng: random.Random, version: int) -> int:
    """Any address of the public Internet, more or less."""
    if version == 4:
        return rng.randrange(1 << 24, 224 << 24)
    return rng.choice(BLOCKS6) << 112 | rng.getrandbits(112)


def networks(version: int, count: int) -> list[tuple[int, int]]:
    """So many prefixes, as (first address, length), the same ones each time."""
    rng = random.Random(version)
    width = 32 if version == 4 else 128
    found = []
    for _ in range(count):
        bits = rng.choice(LENGTHS[version])
        found.append((somewhere(rng, version) >> (width - bits) << (width - bits), bits))
    return found


def written(path: Path, version: int, count: int) -> Path:
    """A plain list file of them."""
    family, octets = (socket.AF_INET, 4) if version == 4 else (socket.AF_INET6, 16)
    with path.open("w") as file:
        for first, bits in networks(version, count):
            file.write(f"{socket.inet_ntop(family, first.to_bytes(octets))}/{bits}\n")
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Table]:
    """A table of PREFIXES of one family, for each."""
    folder = tmp_path_factory.mktemp("lists")
    return {
        version: Table([lists.read(str(written(folder / str(version), version, PREFIXES)))])
        for version in (4, 6)
    }


@FAMILIES
@pytest.mark.parametrize("hit", [False, True], ids=["miss", "hit"])
@pytest.mark.benchmark(group="which list, of 500,000 prefixes")
def test_lists_find(
    benchmark: BenchmarkFixture, tables: dict[int, Table], six: bool, hit: bool
) -> None:
    """Where a client is listed, each from somewhere else: what the caches have of the
    table is what lookups before it left there. Of the misses a few are hits."""
    version = 6 if six else 4
    rng = random.Random(1)
    width = 128 if six else 32
    held = networks(version, PREFIXES)
    asked = []
    for _ in range(LOOKUPS):
        address = somewhere(rng, version)
        if hit:
            first, bits = rng.choice(held)
            address = first | address & ((1 << (width - bits)) - 1)
        asked.append(address.to_bytes(16) if six else LOCAL[:12] + address.to_bytes(4))
    lookup = Lookup(tables[version].block())
    many_of, listed = many(benchmark, lookup.find, b"".join(asked), times=LOOKUPS)
    assert many_of == LOOKUPS
    assert listed == LOOKUPS if hit else listed < LOOKUPS // 10


@pytest.mark.benchmark(group="which list, of 500,000 prefixes")
def test_lists_load(benchmark: BenchmarkFixture, tables: dict[int, Table]) -> None:
    """The block is checked and taken, as a reload's end does it."""
    block = tables[6].block()
    benchmark.pedantic(Lookup, args=(block,), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="a reload of lists")
def test_lists_read(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """500,000 prefixes, half of each family and in two lists: from files to a block."""
    paths = [str(written(tmp_path / str(one), one, PREFIXES // 2)) for one in (4, 6)]

    def read() -> bytes:
        return Table([lists.read(path) for path in paths]).block()

    assert len(benchmark.pedantic(read, rounds=3)) > PREFIXES
