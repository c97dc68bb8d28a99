"""What a release says of itself, in every place that says it.

Owns: the version in its three places, the layout in CONTRIBUTING.md against the
tree, the files that installing has to find, the icon's sizes.  What the built
archives have is in tests/system/test_install.py.
"""

import re
import struct
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import turnaway
from turnaway import personas

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
PNG = b"\x89PNG\r\n\x1a\n"


def read(name: str) -> str:
    return (ROOT / name).read_text()


def tracked() -> list[str]:
    """Paths of the tree that git knows; in an unpacked sdist, those that are there."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True
        )
        return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]
    return [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]


def test_the_version_is_the_same_everywhere() -> None:
    """It stands in turnaway/__init__.py; the two changelogs have to follow."""
    assert re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", read("CHANGELOG.md"), re.M)[:1] == [
        turnaway.__version__
    ]
    first = read("contrib/debian/changelog").partition("\n")[0]
    assert re.match(rf"turnaway \({re.escape(turnaway.__version__)}-\d+\) ", first), first


def test_contributing_has_the_layout_of_the_tree() -> None:
    block = re.search(r"## Layout\n\n```\n(.*?)```", read("CONTRIBUTING.md"), re.S)
    assert block is not None
    told = {line.split()[0].rstrip("/"): line.split()[1:] for line in block[1].splitlines()}
    paths = tracked()
    if (ROOT / ".git").exists():
        assert set(told) == {name.partition("/")[0] for name in paths}
    assert not [name for name in told if name != ".gitignore" and not (ROOT / name).exists()]
    folders = {name.split("/")[1] for name in paths if re.match(r"tests/[^/]+/(?!__)", name)}
    # Without .c beside .py there is only what the tests are run over.
    folders -= {"kqueue"}
    if (ROOT / ".git").exists():
        assert {word.rstrip(",") for word in told["tests"]} == folders


def test_contributing_names_files_that_are_there() -> None:
    text = read("CONTRIBUTING.md")
    names = set(re.findall(r"`([\w.-]+/[\w./-]+)`", text)) - {"docs/_build"}
    made_up = {name for name in names if "NAME" in name}
    assert made_up
    assert len(names) > 25
    assert [name for name in names - made_up if not (ROOT / name).exists()] == []
    targets = set(re.findall(r"`make ([\w-]+)", text))
    assert targets <= set(re.findall(r"^([\w-]+):", read("Makefile"), re.M)), targets


def test_every_target_of_make_is_told_at_its_top() -> None:
    makefile = read("Makefile")
    told = set(re.findall(r"make ([\w-]+)", makefile.partition("\n\n")[0]))
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M)
    assert phony is not None
    assert told == set(phony[1].split())


def test_everything_in_contrib_and_man_is_installed_or_packaging() -> None:
    """A new file needs its line in pyproject.toml."""
    installed = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["data-files"]
    patterns = [pattern for rows in installed.values() for pattern in rows]
    ours = [name for name in tracked() if name.startswith(("contrib/", "man/"))]
    assert ours
    left = {name for name in ours if not any(fnmatch(name, one) for one in patterns)}
    assert {name for name in left if not name.startswith("contrib/debian/")} == {
        "contrib/completions/make.py"
    }
    for pattern in patterns:
        assert [name for name in ours if fnmatch(name, pattern)], f"{pattern} matches nothing"


def test_every_persona_has_its_command_in_both_packages() -> None:
    scripts = set(tomllib.loads(read("pyproject.toml"))["project"]["scripts"])
    assert scripts == {f"turnaway{name}" for name in ("-fast", "ctl", *personas.NAMES)}
    names = re.search(r"^NAMES\s*:=\s*(.*)$", read("contrib/debian/rules"), re.M)
    assert names is not None
    assert names[1].split() == list(personas.NAMES)
    for name in personas.NAMES:
        assert f"man8/turnaway{name}.8\n" in read("contrib/debian/turnaway.links")


def test_the_notice_has_a_copy_of_the_terms_of_2003() -> None:
    words = " ".join(read("NOTICE").split())
    assert "`mail` and `blocked`" in words
    for part in (
        "free for use, in original or modified format",
        "not allowing outgoing spam, including bounce spam (outscatter)",
        "accepting BSD-License style disclaimers of responsibility",
        "the version distributed is reasonably current and a a copy of these terms is included",
        "No support is guaranteed",
        '"use at your own risk" ware',
    ):
        assert part in words, part


@pytest.mark.parametrize("size", [16, 32, 48, 128, 512])
def test_the_icon_in_each_size(size: int) -> None:
    octets = (IMAGES / f"turnaway-{size}.png").read_bytes()
    assert octets.startswith(PNG)
    assert struct.unpack(">II", octets[16:24]) == (size, size)  # IHDR
    assert octets[25] & 4, "no alpha: the ground would not be the page's"


def test_the_icon_for_browsers() -> None:
    octets = (IMAGES / "turnaway.ico").read_bytes()
    kind, count = struct.unpack("<HH", octets[2:6])
    assert (kind, count) == (1, 3)
    assert [octets[6 + 16 * at] for at in range(count)] == [16, 32, 48]
    drawn = read("docs/images/turnaway.svg")
    assert "<image" not in drawn
    assert len(drawn) < 2000
    assert "docs/images/turnaway.svg" in read("README.md")
