"""The system tests against a package that pip installed from the sdist.

    python tests/packages/installed.py SDIST [pytest's arguments]

Owns: a folder of its own outside the tree, with an empty virtual environment, the
sdist installed into it (pip fetches Cython for the build, and the environment ends
without it), and the sdist unpacked beside it with `turnaway/` taken away, so that
what is tested can only be what was installed.  Left out is test_install.py, which
makes such environments itself.  Status: pytest's.  The folder is removed.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

TESTS = ("tests/system", "--ignore=tests/system/test_install.py")


def run(*command: str | Path, cwd: Path) -> None:
    print("+", *command, flush=True)
    subprocess.run(list(map(str, command)), cwd=cwd, check=True)


def main(sdist: Path, *arguments: str) -> int:
    for name in [name for name in os.environ if name.startswith(("PYTHON", "TURNAWAY"))]:
        del os.environ[name]
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="turnaway-installed-"))
    try:
        # The daemon becomes nobody, who must be able to read what it still imports.
        folder.chmod(0o755)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv/bin/python"
        run(python, "-m", "pip", "install", sdist.resolve(), cwd=folder)
        run(python, "-m", "pip", "list", cwd=folder)
        run(folder / "venv/bin/turnaway-fast", "--version", cwd=folder)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (tree,) = folder.glob("turnaway-*/")
        shutil.rmtree(tree / "turnaway")
        # From here on for the tests: pytest and the rest, and the bench's clients.
        run(python, "-m", "pip", "install", "--quiet", "pip>=25.1", cwd=tree)
        run(python, "-m", "pip", "install", "--quiet", "--group=build", "--group=test", cwd=tree)
        run(python, "-m", "bench", "build", cwd=tree)
        where = "import turnaway; print('tested:', turnaway.__file__)"
        run(python, "-c", where, cwd=tree)
        # Through the command, which does not put the folder it runs in on sys.path.
        tested = arguments or TESTS
        return subprocess.run([folder / "venv/bin/pytest", *tested], cwd=tree).returncode
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1]), *sys.argv[2:]))
