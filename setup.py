"""Builds the extension: the sources in ext/ become modules of turnaway/.

Everything else about the package stands in pyproject.toml.  Two switches, both
environment variables, both for developers:

    TURNAWAY_STRICT=1    C warnings and Cython's performance hints are errors
    TURNAWAY_COVERAGE=1  line tracing for coverage.py (not abi3, C beside .pyx)
"""

import contextlib
import io
import os
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup

STRICT = os.environ.get("TURNAWAY_STRICT") == "1"
COVERAGE = os.environ.get("TURNAWAY_COVERAGE") == "1"
# One binary for CPython 3.11 and later; not where the build has no GIL (no
# limited API there before 3.15) nor with line tracing (not in a limited API).
ABI3 = not COVERAGE and not sysconfig.get_config_var("Py_GIL_DISABLED")

LOOPS = {"linux": "epoll"}
SHARED = [str(path) for path in sorted(Path("ext").glob("*.pxd"))] + ["ext/net.h", "ext/sandbox.h"]

Options.warning_errors = True


def extension(name: str) -> Extension:
    macros: list[tuple[str, str | None]] = []
    if ABI3:
        macros.append(("Py_LIMITED_API", "0x030b0000"))
    if COVERAGE:
        macros.append(("CYTHON_TRACE_NOGIL", "1"))
    flags = ["-O2"]
    if STRICT:
        # What Cython generates compares and leaves unused as it likes.
        flags += [
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unused-parameter",
            "-Wno-unused-function",
            "-Wno-missing-field-initializers",
        ]
    return Extension(
        f"turnaway._{name}",
        [f"ext/{name}.pyx"],
        include_dirs=["ext"],
        depends=SHARED,
        define_macros=macros,
        extra_compile_args=flags,
        py_limited_api=ABI3,
    )


def generate(extensions: list[Extension]) -> list[Extension]:
    """cythonize, and in a strict build refuse what Cython only hints at."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            return cythonize(
                extensions,
                include_path=["ext"],
                build_dir=None if COVERAGE else "build/cython",
                force=STRICT,
                compiler_directives={"linetrace": COVERAGE, "freethreading_compatible": True},
            )
        finally:
            print(said.getvalue(), end="", file=sys.__stderr__)
            if STRICT and "performance hint" in said.getvalue():
                raise SystemExit("setup.py: performance hints are errors (see above)")


loop = LOOPS.get(sys.platform)
if loop is None:
    raise SystemExit(f"setup.py: no loop for {sys.platform}: Turnaway runs on Linux")

setup(
    ext_modules=generate([extension(name) for name in ("board", "journal", "readers", loop)]),
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
