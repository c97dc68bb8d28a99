"""The row of each fault, and `--write-page`, which puts them into docs/reliability.md.

The page wants every fault in its full form; `make test` runs some in a shorter one.
"""

from pathlib import Path

import pytest

from bench import build

build.build()  # the clients are bench.blast

from bench import reliability  # noqa: E402
from tests.faults.catalogue import FAULTS, Told  # noqa: E402
from tests.faults.inject import Shim  # noqa: E402

_TOLD = Told()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-page", action="store_true", help="write the table of docs/reliability.md"
    )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not session.config.getoption("--write-page", default=False) or exitstatus != 0:
        return
    missing = [fault for fault in FAULTS if fault not in _TOLD.rows]
    if missing:
        pytest.exit(f"the page is not written, no row for: {', '.join(missing)}", 1)
    reliability.record("faults", "make faults", [_TOLD.rows[fault] for fault in FAULTS])


@pytest.fixture(scope="session")
def told() -> Told:
    return _TOLD


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the page is being written; else a fault may have a shorter form."""
    return bool(request.config.getoption("--write-page", default=False))


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    return Shim(tmp_path)
