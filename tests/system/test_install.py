"""From a clean copy to an sdist, into an empty environment, to a banner read.

Owns: what is in the sdist and the wheel, and that the installed commands run
from anywhere.  The copy has only what git tracks, so that no leftover of a
build can hide a missing file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from running import LOCATION, NAME, Syslog, need, running

ROOT = Path(__file__).parents[2]
COMMANDS = (
    *("turnaway-fast", "turnawaymail", "turnawayblocked"),
    *("turnawayspammer", "turnawayabused", "turnawayworm"),
)
EPOCH = "1000000000"

pytestmark = pytest.mark.timeout(580)  # pip fetches and compiles


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In an environment that knows nothing of this one."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    environment["SOURCE_DATE_EPOCH"] = EPOCH
    ended = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    return ended


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cc")
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "copy"
    if (ROOT / ".git").exists():
        need("git")
        for name in tracked():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    else:  # these tests came in an sdist themselves
        junk = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=junk)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder / "dist", cwd=copy)
    assert not list((copy / "ext").glob("*.c"))
    (made,) = (folder / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the sdist, by pip, in isolation."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    pip = folder / "venv/bin/python"
    run(pip, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder / "dist", sdist, cwd=folder)
    (made,) = (folder / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an empty environment into which the sdist was installed."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    run(python, "-m", "pip", "install", sdist, cwd=folder)
    # The daemon becomes nobody, who must be able to read what it still imports.
    for above in (folder, folder.parent, folder.parent.parent):
        above.chmod(0o755)
    return folder / "venv/bin"


def test_the_sdist_has_all_sources_and_nothing_made_of_them(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getnames()
    names = {name.partition("/")[2] for name in members}
    for folder, pattern in (
        *(("ext", "*.pyx"), ("ext", "*.pxd"), ("ext", "*.h")),
        *(("turnaway", "*.py"), ("turnaway", "*.pyi"), ("turnaway/personas", "*.toml")),
        *(("tests", "*.py"), ("tests/unit", "*.py"), ("tests/system", "*.py")),
    ):
        sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob(pattern)}
        if (ROOT / ".git").exists():
            sources &= set(tracked())
        assert sources
        assert sources <= names, sources - names
    top = {"setup.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "MANIFEST.in"}
    assert top | {"Makefile", "turnaway/py.typed"} <= names
    # Everything that is tracked: whoever has the sdist can build, test and package.
    if (ROOT / ".git").exists():
        assert set(tracked()) - names == {".gitignore"}
    made = re.compile(
        r"^(ext|bench|turnaway)/.*\.c$|\.(cpp|so|o|pyc|pyd)$|__pycache__|(^|/)\.git/|(^|/)(build|\.venv)/"
    )
    assert [name for name in names if made.search(name)] == []


def test_the_same_files_make_the_same_sdist(sdist: Path, tmp_path: Path) -> None:
    """Octet for octet: another time, another folder, another umask, no Cython."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (copy,) = tmp_path.iterdir()
    # What making an sdist adds.
    for name in ("setup.cfg", "PKG-INFO"):
        (copy / name).unlink()
    shutil.rmtree(copy / "turnaway.egg-info")
    for path in copy.rglob("*"):
        os.utime(path, (0, 0))
    code = "import setuptools.build_meta as b; b.build_sdist('dist')"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "TURNAWAY_CYTHON": "no"},
        umask=0o077,
        check=True,
        capture_output=True,
    )
    assert (copy / "dist" / sdist.name).read_bytes() == sdist.read_bytes()


def test_the_wheel_has_types_and_personas_and_no_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"turnaway/py.typed", "turnaway/_board.pyi", "turnaway/_journal.pyi"} <= names
    assert "turnaway/_epoll.pyi" in names
    for persona in ("mail", "blocked", "spammer", "abused", "worm"):
        assert f"turnaway/personas/{persona}.toml" in names
    folders = {re.sub(r"turnaway-[\d.]+\.", "", name.partition("/")[0]) for name in names}
    # The package, its metadata, and what goes into share: no tests, no ext.
    assert folders == {"turnaway", "dist-info", "data"}
    assert not [name for name in names if name.endswith((".c", ".pyx", ".pxd", ".h"))]
    extensions = sorted(name for name in names if name.endswith(".so"))
    # All of them but the loop of other systems.
    modules = {f"_{path.stem}" for path in (ROOT / "ext").glob("*.pyx")} - {"_kqueue"}
    assert {Path(name).name.partition(".")[0] for name in extensions} == modules
    assert len(extensions) == len(modules)
    if "abi3" in wheel.name:
        assert "-cp311-abi3-" in wheel.name
        assert all(name.endswith(".abi3.so") for name in extensions)


def test_what_is_installed_beside_the_package(installed: Path) -> None:
    share = installed.parent / "share"
    for name in (
        *("man/man8/turnaway-fast.8", "man/man8/turnawayctl.8", "man/man5/turnaway.toml.5"),
        "bash-completion/completions/turnaway-fast",
        "zsh/site-functions/_turnawayctl",
        "fish/vendor_completions.d/turnawayctl.fish",
        *("turnaway/turnaway.toml", "turnaway/README.md", "turnaway/logrotate/turnaway"),
        "turnaway/fail2ban/filter.d/turnaway.conf",
    ):
        assert (share / name).is_file(), name
    # contrib as it is in the tree: each file but the packaging and the completions.
    tree = {path.relative_to(ROOT / "contrib") for path in (ROOT / "contrib").rglob("*.*")}
    tree = {path for path in tree if path.parts[0] not in ("debian", "completions")}
    there = {path.relative_to(share / "turnaway") for path in (share / "turnaway").rglob("*.*")}
    assert {path for path in tree if (ROOT / "contrib" / path).is_file()} <= there


def test_the_six_commands_are_there_and_say_their_version(installed: Path, tmp_path: Path) -> None:
    for command in COMMANDS:
        assert run(installed / command, "-V", cwd=tmp_path).stdout.startswith("turnaway ")


def test_nothing_else_was_installed(installed: Path, tmp_path: Path) -> None:
    """No dependency at run time."""
    listed = run(installed / "python", "-m", "pip", "list", "--format=json", cwd=tmp_path)
    names = {one["name"] for one in json.loads(listed.stdout)}
    assert names - {"pip", "setuptools", "wheel"} == {"turnaway"}


def test_the_installed_command_turns_a_client_away(
    installed: Path, tmp_path: Path, syslog: Syslog
) -> None:
    with running(syslog, program=installed / "turnaway-fast", cwd=tmp_path) as daemon:
        banner = daemon.banner()
        assert daemon.stop() == 0
    assert banner.startswith(f"421-{NAME} TurnAway v".encode())
    assert f"\r\n421-in {LOCATION}.  ".encode() in banner
    assert banner.endswith(b"\r\n421 Your mail software MAY be broken.  Closing connection.\r\n")


def test_the_installed_command_chooses_its_persona(installed: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [installed / "turnawayblocked", "--show-banner", LOCATION, f"192.0.2.1 {NAME}"],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == 0
    lines = ended.stdout.split(b"\r\n")
    assert [line[:4] for line in lines] == [b"554-"] * 5 + [b"554 ", b""]
    assert lines[0].startswith(f"554-{NAME} ESMTP TurnAway v".encode())


def test_a_link_with_another_name(installed: Path, tmp_path: Path) -> None:
    link = tmp_path / "turnawayworm-dmz"
    link.symlink_to(installed / "turnaway-fast")
    ended = run(link, "--show-banner", LOCATION, f"192.0.2.1 {NAME}", cwd=tmp_path)
    assert "infected host" in ended.stdout


def test_starting_is_quick(installed: Path, tmp_path: Path) -> None:
    """A supervisor restarts it: far below a second, imports and all."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        run(installed / "turnaway-fast", "--check", LOCATION, f"192.0.2.1 {NAME}", cwd=tmp_path)
        took.append(time.monotonic() - began)
    assert min(took) < 2.0
