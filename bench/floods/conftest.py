"""The field for each flood, and `--write-page` for docs/reliability.md; make floods runs it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Syslog

from bench import reliability
from bench.floods.field import ROWS, Field, field_of_three


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-page", action="store_true", help="write the table of docs/reliability.md"
    )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption("--write-page", default=False) and exitstatus == 0:
        reliability.record("floods", "make floods", list(ROWS.values()))


@pytest.fixture
def ground() -> Iterator[Field]:
    with field_of_three() as made:
        yield made


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[Syslog]:
    made = Syslog(tmp_path / "log")
    # Started as root the daemon becomes nobody, who must reach the socket.
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    yield made
    made.close()
