"""Which loop these tests run.

Owns: `--loop`, and the marker `loops`.  Every test of this folder is about the
installed command, whatever its loop: with `--loop kqueue` all run over the loop
of the BSDs (loops.py says how), and those marked `loops` do so in every run.
"""

import os
import resource
from collections.abc import Iterator

import loops
import pytest

MANY = 4000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [metafunc.config.getoption("--loop")]
    if chosen == ["epoll"]:
        for marker in metafunc.definition.iter_markers("loops"):
            chosen += marker.args
    if chosen != ["epoll"]:
        metafunc.parametrize("loop", dict.fromkeys(chosen), indirect=True, scope="module")


@pytest.fixture(autouse=True, scope="module")
def loop(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the loop that the command takes, as in loops.LOOPS."""
    name = getattr(request, "param", "epoll")
    with pytest.MonkeyPatch.context() as patch:
        if name != "epoll":
            patch.setenv("PYTHONPATH", str(loops.build(name)), prepend=os.pathsep)
        yield name


@pytest.fixture
def many() -> Iterator[None]:
    """Descriptors for some thousand clients of a test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < MANY:
        reason = f"needs {MANY} descriptors, {hard} are allowed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MANY), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
