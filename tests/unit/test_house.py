"""The house rules: who imports whom, what is loaded, typed, hinted, written down.

Owns: the order of design.md's tree, held against the sources; what a running
daemon has loaded; Cython's hints as errors; the stubs; the README's commands.  Options
and exit statuses stand in the manual pages, held by test_manuals.py.
"""

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from running import need_module

import turnaway

ROOT = Path(__file__).parents[2]
PACKAGE = Path(turnaway.__file__).parent
EXT = ROOT / "ext"

# Who may import whom: from a later row into an earlier one, never back.
ROWS: tuple[set[str], ...] = (
    {
        "turnaway",
        "settings",
        "exits",
        "locate",
        "notify",
        "poller",
        "_board",
        "_journal",
        "_epoll",
        "_kqueue",
    },
    {"tables", "banner", "control", "detach", "dump", "outlet", "privileged"},
    {"page", "personas", "units", "values", "lists"},
    {"answers", "firewall"},
    {"draft", "engine", "lint", "sandbox", "stats"},
    {"config", "metrics", "watch"},
    {"cli", "journal"},
    {"orders"},
    {"daemon"},
    {"__main__", "ctl"},
)
# It stands alone: a client of the socket, which the daemon never loads.
APART = {"ctl"}
EXT_ROWS: tuple[set[str], ...] = (
    {"net", "sandbox"},
    {"slot", "ring", "counters", "source", "probe", "http", "quit", "proxy"},
    {"pool", "tally", "line", "lists"},
    {"listeners"},
    {"answer"},
    {"client"},
    {"turn"},
    {"epoll", "kqueue", "board", "journal", "readers"},  # each an extension; none cimports another
)


def row(name: str, rows: tuple[set[str], ...]) -> int:
    for number, names in enumerate(rows):
        if name in names:
            return number
    pytest.fail(f"{name} has no row: give it one in design.md and here")


def modules() -> dict[str, Path]:
    """Every module of the package by its short name: "cli", "personas", "firewall.nftables"."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix("__init__").removesuffix(".") or "turnaway"] = path
    return found


def imports(path: Path) -> set[str]:
    """Short names of Turnaway's modules that a module imports, at its top or anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "turnaway" and is_module(rest):
                found.add(rest.partition(".")[0] or "turnaway")
    return found


def is_module(name: str) -> bool:
    head = name.partition(".")[0]
    return head in ("", *(one.partition(".")[0] for one in modules())) or (
        head.startswith("_") and (PACKAGE / f"{head}.pyi").exists()
    )


@pytest.mark.parametrize("name", modules())
def test_imports_point_one_way(name: str) -> None:
    own = name.partition(".")[0]
    for other in imports(modules()[name]) - {own}:
        assert row(other, ROWS) < row(own, ROWS), f"{own} may not import {other}"


def test_the_test_sees_imports() -> None:
    assert {"answers", "cli", "daemon", "exits"} <= imports(modules()["__main__"])
    assert {"_board", "settings"} <= imports(modules()["engine"])


@pytest.mark.parametrize("alone", ["__main__", *APART])
def test_nobody_imports_what_stands_at_an_end(alone: str) -> None:
    assert [name for name, path in modules().items() if alone in imports(path)] == []


def test_every_row_names_modules_that_are_there() -> None:
    tops = {name.partition(".")[0] for name in modules()}
    extensions = {path.stem for path in PACKAGE.glob("_*.pyi")}
    named = [name for names in ROWS for name in names]
    assert len(named) == len(set(named))
    assert set(named) <= tops | extensions


def test_no_drawers() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
    names = {path.stem for folder in (PACKAGE, EXT) for path in folder.rglob("*.p[yx]*")}
    assert not names & drawers


@pytest.mark.parametrize(
    "path", sorted([*EXT.glob("*.pyx"), *EXT.glob("*.pxd")]), ids=lambda path: path.name
)
def test_cimports_point_one_way(path: Path) -> None:
    own = row(path.stem, EXT_ROWS)
    text = path.read_text()
    named = set(re.findall(r"^\s*from\s+(\S+)\s+cimport\b", text, re.M))
    named |= set(re.findall(r"^\s*cimport\s+(\S+)", text, re.M))
    ours = {name for name in named if (EXT / f"{name}.pxd").exists()}
    assert {name.partition(".")[0] for name in named - ours} <= {"libc", "posix", "cpython"}
    for name in ours:
        assert row(name, EXT_ROWS) < own, f"{path.name} may not cimport {name}"


def test_no_shared_declaration_is_named_as_an_extension() -> None:
    """Cython would take it for the extension's own (cython#2452)."""
    extensions = {path.stem for path in EXT.glob("*.pyx")}
    assert not extensions & {path.stem for path in EXT.glob("*.pxd")}
    assert not (EXT / "__init__.py").exists()
    assert not (EXT / "__init__.pxd").exists()


def test_platforms_are_told_apart_in_net_h_alone() -> None:
    for path in (*EXT.glob("*.pyx"), *EXT.glob("*.pxd")):
        assert not re.search(r"^\s*(IF|ELIF|DEF)\s|^\s*#\s*if", path.read_text(), re.M), path


WRITTEN_C = {
    "tests/kqueue/kqueue.c",
    "tests/loop/allocations.c",
}  # by hand


def test_no_generated_c_in_the_tree() -> None:
    if (ROOT / ".git").exists():
        tracked = subprocess.run(
            ["git", "-C", ROOT, "ls-files", "*.c", "*.so", "*.o"],
            capture_output=True,
            text=True,
            check=True,
        )
        found = set(tracked.stdout.splitlines())
        assert found <= WRITTEN_C
        assert not any("Generated by Cython" in (ROOT / path).read_text()[:200] for path in found)


FORBIDDEN = {
    "logging",
    "asyncio",
    "ctypes",
    "http",
    "email",
    "ssl",
    "multiprocessing",
    "subprocess",
}


def test_what_is_loaded_is_the_standard_library_and_turnaway() -> None:
    """Everything the daemon imports, without site-packages and their hooks."""
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import turnaway.__main__
from turnaway import banner, cli
made = cli.parse(["turnawayworm", "-w", "1", "Earth", "127.0.0.1:2525 mx.example.com"])
banner.render(made.settings.listeners[0], banner.date_text(0))
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(PACKAGE.parent)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    tops = {name.partition(".")[0] for name in json.loads(ended.stdout)}
    # Cython's modules share their types under names of their own, without a file.
    foreign = {name for name in tops if not re.match(r"_cython_|cython_runtime$", name)}
    assert foreign - sys.stdlib_module_names == {"turnaway"}
    assert not tops & FORBIDDEN
    ours = {name.split(".")[1] for name in json.loads(ended.stdout) if name.startswith("turnaway.")}
    assert {"config", "control", "daemon", "draft", "engine", "journal", "orders"} <= ours
    assert not ours & {"ctl", "dump", "firewall", "lint"}


@pytest.mark.parametrize("name", sorted({name.replace("turnaway", "") for name in modules()}))
def test_every_module_stands_alone(name: str) -> None:
    """Imported first and by itself, with warnings as errors: no circle, no debt."""
    code = f"import turnaway{'.' + name if name else ''}"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


# --- Cython -------------------------------------------------------------------


def cythonize(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "cython", "-3", "-Werror", "-I", str(EXT)),
            *("-o", str(folder / f"{source.stem}.c"), str(source)),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("source", sorted(EXT.glob("*.pyx")), ids=lambda path: path.name)
def test_cython_has_nothing_to_say(source: Path, tmp_path: Path) -> None:
    need_module("Cython")
    ended = cythonize(source, tmp_path)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert "warning" not in said
    assert "performance hint" not in said


def test_a_performance_hint_would_be_seen(tmp_path: Path) -> None:
    """The test above is worth something only if hints are on."""
    source = tmp_path / "slow.pyx"
    source.write_text(
        "cdef void slow(int *one) nogil:\n    one[0] = 1\n\n"
        "def run():\n    cdef int one\n    with nogil:\n        slow(&one)\n"
    )
    ended = cythonize(source, tmp_path)
    assert "performance hint" in ended.stdout + ended.stderr


# --- types --------------------------------------------------------------------


EXTENSIONS = ("_board", "_journal", "_epoll", "_readers")


def test_stubs_say_what_the_extensions_have(tmp_path: Path) -> None:
    need_module("mypy")
    # Cython's own leavings, which no stub should offer.
    leavings = tmp_path / "leavings"
    leavings.write_text(r"turnaway\._\w+\.__(reduce_cython|setstate_cython|test)__" + "\n")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "mypy.stubtest", "--concise", "--ignore-unused-allowlist"),
            *("--allowlist", str(leavings)),
            *(f"turnaway.{name}" for name in EXTENSIONS),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MYPY_CACHE_DIR": str(tmp_path)},
        timeout=110,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("name", EXTENSIONS)
def test_every_extension_has_its_stub(name: str) -> None:
    module = importlib.import_module(f"turnaway.{name}")
    assert module.__file__ is not None
    assert (PACKAGE / f"{name}.pyi").is_file()
    assert (PACKAGE / "py.typed").is_file()


# --- written down ---------------------------------------------------------------


def test_the_readme_has_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert [name for name in commands if f"`{name}`" not in readme] == []


def test_first_lines_say_what_a_file_owns() -> None:
    for path in (*PACKAGE.rglob("*.py"), *EXT.glob("*.p*"), *(ROOT / "tests").rglob("*.py")):
        text = re.sub(r"^#[^\n]*\n", "", path.read_text())
        assert re.match(r'"""\S', text), f"{path} begins without a word on what it owns"
