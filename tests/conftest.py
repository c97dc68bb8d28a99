"""Fixtures for all tests; what they are made of stands in running.py."""

from collections.abc import Iterator
from pathlib import Path

import loops
import pytest
from running import Daemon, Syslog, running


def pytest_addoption(parser: pytest.Parser) -> None:
    """See loop/conftest.py; options must be known before a folder is looked into."""
    parser.addoption("--loop", choices=loops.LOOPS, default="epoll", help="the loop of tests/loop")


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[Syslog]:
    made = Syslog(tmp_path / "log")
    # Started as root the daemon becomes nobody, who must reach the socket.
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    yield made
    made.close()


@pytest.fixture
def daemon(syslog: Syslog) -> Iterator[Daemon]:
    """turnaway-fast with its defaults, on a free port of 127.0.0.1."""
    with running(syslog) as one:
        yield one
