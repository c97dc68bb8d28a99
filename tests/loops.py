"""The other loop, built for the tests: ext/kqueue.pyx over tests/kqueue/.

Owns: a folder under build/ with a package of its own, whose Python is the tree's
and whose loop is kqueue's; and the environment in which the installed command
takes that package.  The build goes the way of a developer who has libkqueue:
`TURNAWAY_LOOP=kqueue`, with tests/kqueue/ made into what pkg-config finds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import turnaway

ROOT = Path(__file__).parents[1]
PACKAGE = Path(turnaway.__file__).parent
SHIM = ROOT / "tests" / "kqueue"
FOLDER = ROOT / "build" / "kqueue"
SHARED = ("_board", "_journal", "_readers")  # the same for every loop

# As setup.py builds it on Linux, and three ways of building kqueue's; `kqueue-bare` is
# what the least of the systems has, see platforms.h; `libkqueue` is the library that
# pkg-config finds, and no part of the tests that must be there.
BARE = f"-DNO_EVFILT_USER -include Python.h -include {SHIM / 'platforms.h'} -DAS_BARE"
DEFINES = {"kqueue": "", "kqueue-bare": BARE}
LOOPS = ("epoll", *DEFINES, "libkqueue")


def need(*tools: str) -> None:
    """Skip when a tool is missing; in CI that is a failure."""
    for tool in tools:
        if shutil.which(tool) is None:
            reason = f"the kqueue loop needs {tool}"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def run(*words: str | Path, **environment: str) -> str:
    """A command in the tree; what it wrote.  Fails the test with that if it fails."""
    ended = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def build(name: str) -> Path:
    """The folder to be put before others in PYTHONPATH; built when anything changed."""
    need("gcc", "ar", "pkg-config")
    if name not in DEFINES and subprocess.run(["pkg-config", "--exists", name]).returncode != 0:
        pytest.skip(f"pkg-config finds no {name}")
    folder = FOLDER / name
    stamp = folder / "stamp"
    sources = [*(ROOT / "ext").iterdir(), *SHIM.rglob("*.[ch]"), ROOT / "setup.py", PACKAGE]
    newest = max(one.stat().st_mtime for one in sources)
    if not stamp.exists() or stamp.stat().st_mtime < newest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if name in DEFINES:
            _library(folder, DEFINES[name])
            _package(folder, PKG_CONFIG_PATH=str(folder))
        else:
            _package(folder)
        stamp.touch()
    return folder / "package"


def _library(folder: Path, defines: str) -> None:
    """libkqueue.a and libkqueue.pc, of tests/kqueue/."""
    made = folder / "kqueue.o"
    flags = ["-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{SHIM}"]
    flags += ["-DNO_EVFILT_USER"] if "NO_EVFILT_USER" in defines else []
    run("gcc", *flags, "-c", SHIM / "kqueue.c", "-o", made)
    run("ar", "rc", folder / "libkqueue.a", made)
    (folder / "libkqueue.pc").write_text(
        "Name: libkqueue\nDescription: kqueue(2) for the tests\nVersion: 0\n"
        f"Cflags: -I{SHIM} {defines}\nLibs: -L{folder} -lkqueue\n"
    )


def _package(folder: Path, **environment: str) -> None:
    """turnaway/ with the kqueue loop; its Python and the rest are the tree's."""
    package = folder / "package" / "turnaway"
    package.mkdir(parents=True)
    for one in PACKAGE.iterdir():
        if one.suffix == ".so":
            if one.name.partition(".")[0] in SHARED:
                shutil.copy(one, package)  # newer than its sources: not built again
        elif one.name != "__pycache__":
            (package / one.name).symlink_to(one)
    # An editable installation would find the tree's own.
    (package / "_epoll.py").write_text('raise ImportError("here the loop is kqueue")\n')
    run(
        *(sys.executable, "setup.py", "-q", "build_ext"),
        *("--build-lib", package.parent, "--build-temp", folder / "temp"),
        TURNAWAY_LOOP="kqueue",
        TURNAWAY_STRICT="0",
        **environment,
    )
