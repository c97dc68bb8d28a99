"""What every benchmark run shares: where results go, the cores, the summary.

Owns the defaults of pytest-benchmark for this folder: every run is saved below
`bench/results`, so that `--benchmark-compare` always has something to compare
with; what the command line says stays. `make test` never comes here (testpaths
in pyproject.toml); where the bench is not built or pytest-benchmark is not
installed, nothing here is collected.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parent / "results"
NEEDED = ("pytest_benchmark", "bench.blast", "bench.parts", "bench.peers.plain")

MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_configure(config: pytest.Config) -> None:
    """Comes before pytest-benchmark reads its options: that hook is `trylast`."""
    option = config.option
    if not hasattr(option, "benchmark_autosave"):
        return
    # What it warns of (nothing ran, nothing to compare with) it also prints; as
    # an error it would end the run after all is measured. Both: its hooks run
    # inside pytest's own filters and outside of them.
    logger = importlib.import_module("pytest_benchmark.logger")
    warnings.filterwarnings("ignore", category=logger.PytestBenchmarkWarning)
    config.addinivalue_line(
        "filterwarnings", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning"
    )
    if option.benchmark_storage == "file://./.benchmarks":
        option.benchmark_storage = f"file://{RESULTS}"
    if not option.benchmark_save and not option.collectonly:
        option.benchmark_autosave = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    if not option.benchmark_columns:
        # The minimum is what the code costs, the mean what the machine did
        # meanwhile.
        option.benchmark_columns = ["min", "median", "iqr", "max", "rounds"]


def pytest_report_header() -> str:
    """Say why there is nothing, when there is nothing."""
    if MISSING:
        return f"bench: nothing to run, missing: {', '.join(MISSING)} (make bench installs it)"
    return f"bench: results go to {os.path.relpath(RESULTS)}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """A round is thousands of connections or operations: print what one costs."""
    session = getattr(config, "_benchmarksession", None)
    noted = [one for one in getattr(session, "benchmarks", ()) if one.extra_info]
    if not noted:
        return
    terminalreporter.section("for each one")
    width = max(len(one.name) for one in noted)
    for one in noted:
        figures = " ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in one.extra_info.items()
        )
        terminalreporter.write_line(f"{one.name:<{width}}  {figures}")


@pytest.fixture(scope="session")
def server_cores() -> set[int]:
    """The core a measured server gets for itself, when there are two."""
    return {min(os.sched_getaffinity(0))}


@pytest.fixture(scope="session")
def client_cores(server_cores: set[int]) -> set[int]:
    """All the others; the same one where there is but one."""
    return os.sched_getaffinity(0) - server_cores or server_cores


@pytest.fixture
def on_client_cores(client_cores: set[int]) -> Iterator[None]:
    """Keep this process off the server's core for the time of a test."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, client_cores)
    yield
    os.sched_setaffinity(0, before)
