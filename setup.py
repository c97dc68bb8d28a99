"""Builds the extension: the sources in ext/ become modules of turnaway/.

The loop is that of the platform: epoll on Linux, kqueue on FreeBSD, OpenBSD,
NetBSD and macOS.  Everything else about the package stands in pyproject.toml.
Four switches, all environment variables, all for developers and packagers:

    TURNAWAY_STRICT=1    C warnings and Cython's performance hints are errors
    TURNAWAY_COVERAGE=1  line tracing for coverage.py (not abi3, C beside .pyx)
    TURNAWAY_LOOP=kqueue on Linux, the loop of the BSDs over the libkqueue that
                         pkg-config finds; a daemon takes it where it finds no other
    TURNAWAY_CYTHON=no   compile the C that lies beside the sources: for a system
                         whose Cython is older than ours (contrib/debian)

With SOURCE_DATE_EPOCH set, the same files make the same sdist, octet for octet.
"""

import contextlib
import gzip
import io
import os
import shlex
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

STRICT = os.environ.get("TURNAWAY_STRICT") == "1"
COVERAGE = os.environ.get("TURNAWAY_COVERAGE") == "1"
CYTHON = os.environ.get("TURNAWAY_CYTHON") != "no"
EPOCH = os.environ.get("SOURCE_DATE_EPOCH")
# One binary for CPython 3.11 and later; not where the build has no GIL (no
# limited API there before 3.15) nor with line tracing (not in a limited API).
ABI3 = not COVERAGE and not sysconfig.get_config_var("Py_GIL_DISABLED")

LOOPS = {
    "linux": ("epoll", "kqueue"),
    "freebsd": ("kqueue",),
    "openbsd": ("kqueue",),
    "netbsd": ("kqueue",),
    "darwin": ("kqueue",),
}
SHARED = [str(path) for path in sorted(Path("ext").glob("*.pxd"))] + ["ext/net.h", "ext/sandbox.h"]


def loop() -> str:
    """The loop to build: the first that the platform has, or TURNAWAY_LOOP."""
    # The BSDs have their version at the end of the name: freebsd14.
    able = next((have for name, have in LOOPS.items() if sys.platform.startswith(name)), None)
    if able is None:
        raise SystemExit(
            f"setup.py: no loop for {sys.platform}: Turnaway runs on Linux, FreeBSD, OpenBSD,"
            " NetBSD and macOS"
        )
    wanted = os.environ.get("TURNAWAY_LOOP") or able[0]
    if wanted not in able:
        raise SystemExit(
            f"setup.py: TURNAWAY_LOOP={wanted}: expected {' or '.join(able)} on {sys.platform}"
        )
    return wanted


def libkqueue(question: str) -> list[str]:
    """What pkg-config says of the system's libkqueue; nothing where kqueue is its own."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        return shlex.split(
            subprocess.run(
                ["pkg-config", question, "libkqueue"], check=True, text=True, capture_output=True
            ).stdout
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip().partition("\n")[0]
        raise SystemExit(
            "setup.py: TURNAWAY_LOOP=kqueue needs libkqueue on Linux, and pkg-config does not"
            f" find it: {reason}"
        ) from None


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
    libraries: list[str] = []
    if name == "kqueue":
        macros.append(("TURNAWAY_KQUEUE", "1"))
        flags += libkqueue("--cflags")
        libraries = libkqueue("--libs")
        if libraries:
            # At the exit libkqueue ends a thread of its own, and pthread_cancel(3)
            # loads this library, which the sandbox forbids by then.
            libraries += ["-Wl,--push-state,--no-as-needed", "-lgcc_s", "-Wl,--pop-state"]
    return Extension(
        f"turnaway._{name}",
        [f"ext/{name}.pyx" if CYTHON else f"ext/{name}.c"],
        include_dirs=["ext"],
        depends=SHARED,
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=libraries,
        py_limited_api=ABI3,
    )


def generate(extensions: list[Extension]) -> list[Extension]:
    """cythonize, and in a strict build refuse what Cython only hints at."""
    if not CYTHON:
        return extensions
    # Here, because it is not everywhere.
    from Cython.Build import cythonize
    from Cython.Compiler import Options

    Options.warning_errors = True
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


class Archive(sdist):
    """An sdist that tells nothing of when, where and by whom it was made."""

    def make_archive(
        self,
        base_name: str,
        format: str,
        root_dir: str | os.PathLike[str] | None = None,
        base_dir: str | None = None,
        owner: str | None = None,
        group: str | None = None,
    ) -> str:
        if EPOCH is None or format != "gztar" or root_dir is not None or base_dir is None:
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)

        def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime = int(EPOCH)
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.mode & 0o100 else 0o644
            return member

        name = f"{base_name}.tar.gz"
        with (
            gzip.GzipFile(name, "wb", mtime=int(EPOCH)) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.add(base_dir, filter=plain)  # in the order of the names
        return name


setup(
    cmdclass={"sdist": Archive},
    ext_modules=generate([extension(name) for name in ("board", "journal", "readers", loop())]),
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
