"""The compiled parts under the sanitizers and valgrind: `make sanitize`.

Owns: three runs, each in a folder of its own in build/sanitize, and what counts as
a finding in them.

    threads   real loops, renderer and drainer at once: ThreadSanitizer, then
              AddressSanitizer and UndefinedBehaviorSanitizer (threads.pyx)
    tests     the extensions compiled with AddressSanitizer and
              UndefinedBehaviorSanitizer, installed, and the tests that use them
    memcheck  the tests of the parts under valgrind

    python tests/sanitize/sanitizers.py [NAME ...]

It needs gcc, clang, libclang-rt-dev, binutils and valgrind.  Any report is a failure,
whatever the tests say: reports go to files, for a daemon's standard error may be closed
by then.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "sanitize"
MEMORY = "-fsanitize=address,undefined"
THREAD = "-fsanitize=thread"

# Left out: what brings its own memory allocator or runtime, and what counts system
# calls, allocations, packets or megabytes, which are others here.
TESTS = (
    *("tests/unit/test_board.py", "tests/unit/test_readers.py", "tests/loop", "tests/wire"),
    *("tests/system", "tests/netns"),
)
LEFT_OUT = (
    *("tests/loop/test_guard.py", "tests/loop/test_twenty_thousand.py"),
    *("tests/system/test_chromium.py", "tests/system/test_contrib.py"),
    *("tests/system/test_install.py",),
)
# What the interpreter and the libraries of others do is not ours to mend; leaks
# cannot be told from what it keeps until it ends.
ADDRESS_OPTIONS = "detect_leaks=0:exitcode=99:quarantine_size_mb=16"


def threads(folder: Path, sanitizers: str) -> Path:
    """Compile threads.pyx, in a folder; the program."""
    folder.mkdir(parents=True, exist_ok=True)
    c, o, program = (folder / name for name in ("threads.c", "threads.o", "threads"))
    cython = (sys.executable, "-m", "cython", "-3", "-Werror", "-I", ROOT / "ext")
    subprocess.run([*cython, "-o", c, HERE / "threads.pyx"], check=True)
    includes = ("-I", ROOT / "ext", "-I", sysconfig.get_path("include"))
    flags = ("-g", "-O1", "-w", sanitizers, "-fno-sanitize-recover=all")
    subprocess.run(["clang", *flags, *includes, "-c", c, "-o", o], check=True)
    # No Python is in the program: see fuzzers.py.
    weak = ["--wildcard", "--weaken-symbol=Py*", "--weaken-symbol=_Py*"]
    if sanitizers == THREAD:
        weak.append("--redefine-sym=unshare=one_table")
    subprocess.run(["objcopy", *weak, o], check=True)
    subprocess.run(["clang", sanitizers, o, "-pthread", "-o", program], check=True)
    return program


def run_threads() -> int:
    status = 0
    for sanitizers in (THREAD, MEMORY):
        program = threads(FOLDER / sanitizers.partition("=")[2], sanitizers)
        ended = subprocess.run([program, "10", "50"], capture_output=True, text=True, timeout=120)
        print(f"threads {sanitizers}: status {ended.returncode}")
        if ended.returncode != 0:
            print(ended.stderr[-8000:])
            status = 1
    return status


def library(name: str) -> str:
    """Where the C compiler keeps a run-time library."""
    ended = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return str(Path(ended.stdout.strip()).resolve())


def install(folder: Path, compiler: dict[str, str]) -> Path:
    """A copy of the tree in `folder`, installed in an environment of its own, its
    extensions compiled with these variables of the environment; the Python to use."""
    tree = folder / "tree"
    if not (folder / "venv").exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
    subprocess.run([*pip, "pip>=25.1"], check=True)
    subprocess.run([*pip, "--group", f"{ROOT}/pyproject.toml:build"], check=True)
    subprocess.run([*pip, "--group", f"{ROOT}/pyproject.toml:test"], check=True)
    subprocess.run([*pip, "hdrhistogram", "pygal"], check=True)
    shutil.rmtree(tree, ignore_errors=True)
    left = shutil.ignore_patterns("build", ".*", "*.so", "__pycache__", "results", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=left)
    subprocess.run(
        [*pip, "--no-build-isolation", "--no-deps", "--editable", "."],
        cwd=tree,
        env={**os.environ, **compiler},
        check=True,
    )
    # The load generator of some tests: it needs none of that.
    subprocess.run([python, "-m", "bench.build"], cwd=tree, check=True)
    return python


def run_tests(more: Sequence[str] = ()) -> int:
    folder = FOLDER / "tests"
    flags = f"-O1 -g -fno-omit-frame-pointer {MEMORY} -fno-sanitize-recover=all"
    python = install(folder, {"CC": "gcc", "CFLAGS": flags, "LDFLAGS": MEMORY})
    reports = folder / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    reports.chmod(0o1777)  # the daemon is nobody by then
    environment = {
        **os.environ,
        "PYTHONMALLOC": "malloc",
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        "ASAN_OPTIONS": f"{ADDRESS_OPTIONS}:log_path={reports}/report",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={reports}/report",
    }
    ended = subprocess.run(
        [
            *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=300"),
            *(f"--ignore={name}" for name in LEFT_OUT),
            *(more or TESTS),
        ],
        cwd=folder / "tree",
        env=environment,
    )
    found = sorted(reports.iterdir())
    for one in found:
        print(one.read_text(errors="replace")[:4000])
    print(f"tests: status {ended.returncode}, {len(found)} reports")
    return 1 if found or ended.returncode else 0


def run_memcheck() -> int:
    """The parts of the hot path and the board, under memcheck."""
    log = FOLDER / "memcheck.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    ended = subprocess.run(
        [
            *("valgrind", "--quiet", "--error-exitcode=99", f"--log-file={log}"),
            *(f"--suppressions={HERE / 'python.supp'}", sys.executable),
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable"),
            # The tables of half a million entries take too long here.
            *("-k", "not list", "-o", "faulthandler_timeout=0"),
            *("--timeout=900", "tests/unit/test_readers.py", "bench/test_parts.py"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONMALLOC": "malloc"},
    )
    print(log.read_text()[:8000])
    print(f"memcheck: status {ended.returncode}")
    return 1 if ended.returncode else 0


RUNS = {"threads": run_threads, "tests": run_tests, "memcheck": run_memcheck}

if __name__ == "__main__":
    sys.exit(max([RUNS[name]() for name in sys.argv[1:] or RUNS]))
