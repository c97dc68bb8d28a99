"""Real loops, renderer and drainer at once under the sanitizers, in short.

Owns: the short form of `make sanitize` (threads.pyx says what runs): no data race,
no memory error, and ThreadSanitizer looks at all.
"""

import subprocess
from pathlib import Path

import pytest
from running import need
from sanitize import sanitizers


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("clang", "objcopy")
    return sanitizers.threads(tmp_path_factory.mktemp("thread"), sanitizers.THREAD)


def test_no_data_race(raced: Path) -> None:
    ended = run(raced, "3", "50")
    assert ended.returncode == 0, ended.stderr[-8000:]


def test_a_renderer_that_overtakes_the_loops_is_seen(raced: Path) -> None:
    """Without a pause nothing says that a slot is not being read any more.

    Whether two threads meet within a second is chance: one of three runs must show it.
    """
    for _ in range(3):
        ended = run(raced, "1", "0")
        if "data race" in ended.stderr:
            return
    pytest.fail("ThreadSanitizer saw nothing")


def test_no_memory_error(tmp_path: Path) -> None:
    need("clang", "objcopy")
    ended = run(sanitizers.threads(tmp_path, sanitizers.MEMORY), "3", "50")
    assert ended.returncode == 0, ended.stderr[-8000:]
