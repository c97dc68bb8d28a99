"""`python -m bench`: build, compare, guard, soak.

Owns the command line of the bench and nothing else. Exits 0 when all was
measured, 1 when a chosen server gave a wrong answer or could not be measured,
2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="compile the load generator and the yardsticks")
    building.add_argument("--force", action="store_true")
    comparing = commands.add_parser("compare", help="Turnaway and its peers in one run")
    comparing.add_argument("--peers", help="names, separated by commas (default: all)")
    comparing.add_argument("--columns", help="what to measure, separated by commas (default: all)")
    comparing.add_argument("--rounds", type=int)
    comparing.add_argument("--drains", type=int, help="drains of each peer in a round")
    comparing.add_argument("--seconds", type=float, help="length of each timed load")
    comparing.add_argument("--rates", help="offered rates, separated by commas")
    comparing.add_argument("--quick", action="store_true", help="within a minute")
    comparing.add_argument("--soak", type=int, default=0, metavar="N",
                           help="also watch the memory of turnaway over N connections")  # fmt: skip
    comparing.add_argument("--output", type=Path, help="folder for JSON, HTML and SVG")
    guarding = commands.add_parser("guard", help="system calls and packets per connection")
    guarding.add_argument("--peers", default="turnaway")
    soaking = commands.add_parser("soak", help="millions of connections: what grows, what is lost")
    soaking.add_argument("--connections", type=int, default=10_000_000)
    soaking.add_argument("--workers", type=int, default=2)
    soaking.add_argument("--clients", type=int, default=2, help="threads that connect")
    soaking.add_argument("--write", action="store_true", help="the table of docs/reliability.md")
    chosen = parser.parse_args(arguments)
    if chosen.command == "build":
        from bench.build import build

        build(force=chosen.force)
        return 0
    if chosen.command == "soak":
        return _soak(chosen)
    try:
        return _compare(chosen) if chosen.command == "compare" else _guard(chosen)
    except ValueError as error:
        parser.error(str(error))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _compare(chosen: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from bench import compare, report

    options = compare.Options.quick() if chosen.quick else compare.Options()
    changes: dict[str, Any] = {
        name: getattr(chosen, name)
        for name in ("rounds", "drains", "seconds")
        if getattr(chosen, name) is not None
    }
    if chosen.peers:
        changes["peers"] = _names(chosen.peers)
    if chosen.columns:
        changes["columns"] = _names(chosen.columns)
        unknown = set(_names(chosen.columns)) - set(compare.COLUMNS)
        if unknown:
            raise ValueError(f"no column {', '.join(unknown)}: of {', '.join(compare.COLUMNS)}")
    if chosen.rates:
        changes["rates"] = tuple(int(rate) for rate in _names(chosen.rates))
    options = dataclasses.replace(options, soak=chosen.soak, **changes)
    list(compare.chosen(options))
    console = Console()
    with Progress(
        TextColumn("{task.description}", style="cyan"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), console=Console(stderr=True), transient=True,
        # Drawn only when something was finished: a thread that draws would
        # take the client's core in the middle of a measurement.
        auto_refresh=False,
    ) as bar:  # fmt: skip
        task = bar.add_task("compare", total=compare.steps(options))

        def progress(what: str) -> None:
            bar.update(task, advance=1, description=f"{what:<36}", refresh=True)

        run = compare.compare(options, progress)
    report.print_run(run, console)
    folder = chosen.output or compare.RESULTS
    stem = "compare-" + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    paths = [compare.write_json(run, folder, stem), *report.write(run, folder, stem)]
    console.print("written:", *(str(path) for path in paths[:2]), soft_wrap=True)
    wrong = sum(sums["wrong"] for book in run.books.values() for sums in book.outcomes.values())
    return 1 if wrong or run.troubles else 0


def _guard(chosen: argparse.Namespace) -> int:
    from bench import counts, peers

    known = {**peers.PEERS, **peers.VARIANTS}
    failed = 0
    for name in _names(chosen.peers):
        if name not in known:
            raise ValueError(f"no peer {name!r}: one of {', '.join(known)}")
        try:
            with known[name].running() as server:
                calls = counts.syscalls_per_connection(server)
                packets = counts.packets_per_connection(server)
        except (peers.NotReady, counts.CannotCount) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = 1
            continue
        print(f"{name}: {calls.per_connection:.2f} system calls {calls.kinds}")
        print(f"{name}: {packets.per_connection:.2f} packets {packets.kinds}")
    return failed


def _soak(chosen: argparse.Namespace) -> int:
    from bench import peers, reliability, soak

    peer = peers.turnaway("turnaway", "soak", *peers.CAPPED, workers=chosen.workers)
    with peer.running() as server:
        before = soak.counters(server, 1)["accepted"]
        told = [0, time.monotonic()]

        def progress(count: int) -> None:
            told[0] += count
            if time.monotonic() - told[1] > 10:
                told[1] = time.monotonic()
                print(f"{told[0]:,} connections", file=sys.stderr, flush=True)

        done = soak.soak(server, chosen.connections, progress, chosen.clients)
        done.extra = before
        done.counters = soak.counters(server, done.connections + before)
    for name, figure in done.figures().items():
        print(f"{name}: {figure}")
    if chosen.write:
        said = f"make soak (python -m bench soak --connections {chosen.connections})"
        rows = [{"what": name, "figure": figure} for name, figure in done.figures().items()]
        reliability.record("soak", said, rows, done.as_dict())
    for trouble in done.troubles():
        print(trouble, file=sys.stderr)
    return 1 if done.troubles() else 0


if __name__ == "__main__":
    sys.exit(main())
