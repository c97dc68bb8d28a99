"""The fuzz targets in short: the corpus of each, then some thousand inputs more.

Owns: that every input that was ever worth keeping, and every one that once broke
something, still passes; that a broken promise would be seen.  `make fuzz` goes on
for longer.
"""

import subprocess
from pathlib import Path

import pytest
from fuzz import fuzzers
from running import need

SHORT = {
    "probe": 30_000,
    "http": 10_000,
    "quit": 30_000,
    "proxy": 10_000,
    "session": 3_000,
    "lists": 2_000,
    "pool": 3_000,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("clang", "objcopy")
    folder = tmp_path_factory.mktemp("fuzz")
    fuzzers.build(folder)
    return folder


@pytest.mark.parametrize("name", fuzzers.TARGETS)
def test_the_corpus_passes(built: Path, name: str) -> None:
    inputs = list((fuzzers.CORPUS / name).iterdir())
    assert 10 <= len(inputs) <= 150
    ended = fuzzers.fuzz(built, name, *inputs)  # files, not folders: nothing is made up
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert ended.stderr.count("\nExecuted ") == len(inputs)


@pytest.mark.parametrize("name", fuzzers.TARGETS)
def test_some_inputs_more(built: Path, name: str, tmp_path: Path) -> None:
    runs = f"-runs={SHORT[name]}"
    ended = fuzzers.fuzz(built, name, runs, "-seed=1", tmp_path, fuzzers.CORPUS / name)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert fuzzers.executions(ended.stderr) >= SHORT[name]


def test_every_corpus_has_a_target() -> None:
    assert {path.name for path in fuzzers.CORPUS.iterdir()} == set(fuzzers.TARGETS) == set(SHORT)


def test_a_program_under_another_name_has_no_target(built: Path) -> None:
    """A misspelt name must not pass for a target that finds nothing."""
    (built / "prob").symlink_to("targets")
    ended = subprocess.run([built / "prob", "-runs=1"], capture_output=True, timeout=60)
    assert ended.returncode != 0
