"""The fuzz targets of targets.pyx, session.pyx and blocks.pyx: built, run, replayed, minimised.

Owns: how they are compiled (Cython, then clang with libFuzzer, AddressSanitizer
and UndefinedBehaviorSanitizer), how often each is run, and the corpus in
corpus/NAME.  Raises subprocess.CalledProcessError when a compiler refuses.

    python tests/fuzz/fuzzers.py run [--times N] [NAME ...]    make fuzz
    python tests/fuzz/fuzzers.py merge [NAME ...]              keep what is new, few files
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "fuzz"
CORPUS = HERE / "corpus"
WORDS = HERE / "words.dict"
SOURCES = ("targets", "session", "blocks")
SANITIZERS = "-fsanitize=fuzzer,address,undefined"


@dataclass(frozen=True)
class Target:
    """`executions` of one round, and how long an input may be, in octets."""

    executions: int
    longest: int


# A round lasts about a minute on two cores; ten of them are over 50 million.
TARGETS = {
    "probe": Target(2_000_000, 24),
    "http": Target(1_000_000, 300),
    "quit": Target(2_000_000, 120),
    "proxy": Target(1_000_000, 150),
    "session": Target(100_000, 300),
    "lists": Target(100_000, 120),
    "pool": Target(200_000, 200),
}
# No leaks are looked for: that needs ptrace(2), which a container may not have.
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=8"}


def build(folder: Path) -> None:
    """Compile all targets into one program in `folder`, under a name for each."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for name in SOURCES:
        c, o = folder / f"{name}.c", folder / f"{name}.o"
        cython = (sys.executable, "-m", "cython", "-3", "-Werror", "-I", ROOT / "ext")
        subprocess.run([*cython, "-o", c, HERE / f"{name}.pyx"], check=True)
        includes = ("-I", ROOT / "ext", "-I", sysconfig.get_path("include"))
        flags = ("-g", "-O1", "-w", SANITIZERS, "-fno-sanitize-recover=all")
        subprocess.run(["clang", *flags, *includes, "-c", c, "-o", o], check=True)
        # The module around the targets is never initialised: there is no Python in
        # the program, and what it would call may be missing.
        weak = ("--weaken-symbol=Py*", "--weaken-symbol=_Py*")
        subprocess.run(["objcopy", "--wildcard", *weak, o], check=True)
        objects.append(o)
    subprocess.run(["clang", SANITIZERS, *objects, "-o", folder / "targets"], check=True)
    for name in TARGETS:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("targets")


def fuzz(
    folder: Path, name: str, *arguments: str | Path, limit: float | None = None
) -> subprocess.CompletedProcess[str]:
    """One target with libFuzzer's arguments; a crash leaves its input in `folder`."""
    return subprocess.run(
        [
            *(folder / name, f"-max_len={TARGETS[name].longest}", f"-dict={WORDS}"),
            *(f"-artifact_prefix={folder}/{name}-", "-print_final_stats=1", *arguments),
        ],
        capture_output=True,
        text=True,
        errors="replace",
        env=ENVIRONMENT,
        timeout=limit,
    )


def executions(said: str) -> int:
    """How many inputs were run, as libFuzzer says at its end."""
    stated = re.search(r"stat::number_of_executed_units:\s+(\d+)", said)
    return int(stated[1]) if stated else 0


def run(names: Sequence[str], times: int) -> int:
    """`times` rounds of each; what is found stays in build/.  1 if any crashed."""
    build(FOLDER)

    def one(name: str) -> tuple[str, subprocess.CompletedProcess[str], float]:
        found = FOLDER / "found" / name
        found.mkdir(parents=True, exist_ok=True)
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        runs = f"-runs={TARGETS[name].executions * times}"
        began = time.monotonic()
        return name, fuzz(FOLDER, name, runs, found, CORPUS / name), time.monotonic() - began

    status = 0
    total = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, ended, seconds in pool.map(one, names):
            covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", ended.stderr)
            total += executions(ended.stderr)
            print(
                f"{name:8} {executions(ended.stderr):>11,} executions in {seconds:5.0f} s,"
                f" edges, features, inputs: {', '.join(covered[-1]) if covered else 'none'}"
            )
            if ended.returncode != 0:
                status = 1
                print(ended.stderr[-4000:])
    print(f"{'all':8} {total:>11,} executions")
    return status


def merge(names: Sequence[str]) -> int:
    """Replace each corpus by the fewest inputs that reach the same, of it and of what
    was found."""
    build(FOLDER)
    for name in names:
        small = FOLDER / "small" / name
        shutil.rmtree(small, ignore_errors=True)
        small.mkdir(parents=True)
        (FOLDER / "found" / name).mkdir(parents=True, exist_ok=True)
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        ended = fuzz(
            # By edges alone: counting how often each is taken keeps five times as many.
            *(FOLDER, name, "-merge=1", "-use_counters=0", small),
            *(CORPUS / name, FOLDER / "found" / name),
        )
        if ended.returncode != 0:
            print(ended.stderr[-4000:])
            return 1
        shutil.rmtree(CORPUS / name)
        shutil.copytree(small, CORPUS / name)
        print(f"{name:8} {len(list(small.iterdir())):4} inputs")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "merge"))
    parser.add_argument("--times", type=int, default=1, help="rounds (default: 1)")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TARGETS)}")
    given = parser.parse_args()
    chosen = given.names or list(TARGETS)
    sys.exit(run(chosen, given.times) if given.what == "run" else merge(chosen))
