"""Builds the compiled parts of the bench in place.

Owns how `bench/**/*.pyx` become modules: the shared object goes beside its
source, generated C under `build/`, and a warning of Cython or of the compiler
is an error. Fails by the exception or exit of setuptools.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "bench/blast.pyx",
    "bench/parts.pyx",
    "bench/peers/plain.pyx",
    "bench/peers/floor.pyx",
)
C_FLAGS = ["-O2", "-Wall", "-Werror", "-Wno-unreachable-code", "-Wno-unused-function"]


def build(*, force: bool = False) -> None:
    """Compile what is older than its source (everything, with `force`)."""
    import os

    from Cython.Build import cythonize
    from Cython.Compiler import Options
    from setuptools import Extension, setup

    Options.warning_errors = True
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        extensions = [
            Extension(
                source.removesuffix(".pyx").replace("/", "."),
                [source],
                # The daemon's own parts, for bench/parts.pyx.
                include_dirs=["ext"],
                depends=["ext/net.h"],
                extra_compile_args=C_FLAGS,
            )
            for source in SOURCES
            if Path(source).exists()
        ]
        setup(
            name="turnaway-bench",
            packages=[],
            ext_modules=cythonize(
                extensions,
                include_path=["ext"],
                build_dir="build/bench",
                force=force,
                quiet=True,
                compiler_directives={
                    "language_level": 3,
                    "boundscheck": False,
                    "wraparound": False,
                    "cdivision": True,
                },
            ),
            script_args=["-q", "build_ext", "--inplace", "--build-temp", "build/bench/objects"]
            + (["--force"] if force else []),
        )
    finally:
        os.chdir(here)


if __name__ == "__main__":
    build(force="--force" in sys.argv[1:])
