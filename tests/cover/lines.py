"""Which lines of ext/ and turnaway/ the tests run: `make coverage`.

Owns: a copy of the tree compiled for it in build/coverage, the tests run there, and
the report.  Cython's own tracing sees no function that runs without the GIL in a
thread of ours, so the C compiler counts (clang's source-based coverage), into
files that are memory-mapped from the start: a daemon that is confined, or killed,
still counts.  The comments that Cython leaves in the C say which line of which
.pyx or .pxd a line of it stands for; a line counts as run when any C of it was.

    python tests/cover/lines.py [run | more] [report | page] [PYTEST'S WORDS ...]

    run     build, forget what was counted, run the tests (default: all of them)
    more    run more tests in what `run` built, and count on
    report  the tables
    page    the same, and the table of docs/coverage.md

Without a command: run and report.  `run` and `more` return what pytest returned;
`report` is 1 when a line of ext/ was not run that spared.txt does not name, or when a
line that it names is gone; one that was run after all is told.  ext/kqueue.pyx is not
counted: it is the loop of other systems, and the tests build it their own way.  It needs clang, llvm and libclang-rt-dev.
"""

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from sanitize.sanitizers import install  # noqa: E402

FOLDER = ROOT / "build" / "coverage"
TREE = FOLDER / "tree"
RAW = FOLDER / "raw"
WORDS = FOLDER / "words.txt"  # what was run
SPARED = HERE / "spared.txt"
COMPILER = {
    "CC": "clang",
    "LDSHARED": "clang -shared",
    "CFLAGS": (
        "-O1 -w -fprofile-instr-generate -fcoverage-mapping -mllvm -runtime-counter-relocation"
    ),
    "LDFLAGS": "-fprofile-instr-generate",
}
COMMANDS = ("run", "more", "report", "page")
PAGE = ROOT / "docs" / "coverage.md"
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"
# They count system calls, allocations, packets and memory, or run other programs.
LEFT_OUT = (
    *("tests/fuzz", "tests/sanitize", "tests/loop/test_guard.py"),
    *("tests/system/test_chromium.py", "tests/system/test_install.py"),
)

Lines = dict[str, dict[int, bool]]  # {file of ext/: {line: was it run}}


def prepare() -> Path:
    """The environment, with follow.py in every Python of it; the Python."""
    python = install(FOLDER, COMPILER)
    pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
    subprocess.run([*pip, "coverage>=7.6"], check=True)
    site = next((FOLDER / "venv" / "lib").glob("python*/site-packages"))
    shutil.copyfile(HERE / "follow.py", site / "turnaway_cover.py")
    (site / "turnaway_cover.pth").write_text("import turnaway_cover\n")
    return python


def run(words: Sequence[str], more: bool) -> int:
    if more:
        python = FOLDER / "venv" / "bin" / "python"
        shutil.copytree(ROOT / "tests", TREE / "tests", dirs_exist_ok=True)
    else:
        python = prepare()
        shutil.rmtree(RAW, ignore_errors=True)
        RAW.mkdir()
        RAW.chmod(0o1777)  # the daemon is nobody by then
    with WORDS.open("a" if more else "w") as file:
        file.write(f"{shlex.join(['more' if more else 'run', *words])}\n")
    return subprocess.run(
        [
            *(python, "-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(f"--ignore={name}" for name in LEFT_OUT),
            "--timeout=300",
            *(words or ["tests"]),
        ],
        cwd=TREE,
        env={
            **os.environ,
            "TURNAWAY_COVER": str(RAW),
            "TURNAWAY_COVERED": f"{TREE}/turnaway/*",
            "LLVM_PROFILE_FILE": f"{RAW}/%p-%m%c.profraw",
        },
    ).returncode


# --- ext/ --------------------------------------------------------------------------------

MARK = re.compile(r'\s*/\* "(?:ext/)?([\w.]+)":(\d+)$')
# What stands between the statements of one line and belongs to none.
BETWEEN = re.compile(r"[{}].*|#.*|\w+:;?|goto \w+;|break;|else \{|/\*.*\*/|(__Pyx_|__PYX_)\w+;?")


def places(c: str) -> dict[int, tuple[str, int]]:
    """{line of the C: (file, line of Cython)} of what is a statement in both."""
    found = {}
    mark: tuple[str, int] | None = None
    comment = False
    for number, text in enumerate(c.splitlines(), 1):
        line = text.strip()
        if comment:
            comment = not line.endswith("*/")
        elif (stated := MARK.match(text)) is not None:
            mark = stated[1], int(stated[2])
            comment = True
        elif text == "}" or line == "/* function exit code */":
            mark = None
        elif line.startswith("/*") and not line.endswith("*/"):
            comment = True
        elif mark is not None and line and not BETWEEN.fullmatch(line):
            found[number] = mark
    return found


def active(header: Path) -> set[int]:
    """Lines of a header that are statements and meant for this platform."""
    told = subprocess.run(
        ["clang", "-E", header], capture_output=True, text=True, check=True
    ).stdout
    found = set()
    inside, number = False, 0
    for line in told.splitlines():
        if (stated := re.match(r'# (\d+) "([^"]*)"', line)) is not None:
            inside, number = stated[2] == str(header), int(stated[1])
            continue
        if inside and not re.fullmatch(r"\s*([{}].*|static .*\)|)", line):
            found.add(number)
        number += 1
    return found


def compiled() -> Lines:
    """What the C compiler counted, by lines of ext/."""
    data = FOLDER / "all.profdata"
    names = FOLDER / "raw.txt"
    names.write_text("".join(f"{path}\n" for path in RAW.glob("*.profraw")))
    subprocess.run(
        [
            "llvm-profdata",
            "merge",
            "-sparse",
            "-failure-mode=all",
            f"--input-files={names}",
            "-o",
            data,
        ],
        check=True,
    )
    ran: Lines = {}
    for library in sorted((TREE / "turnaway").glob("_*.so")):
        counted = subprocess.run(
            ["llvm-cov", "export", "-format=lcov", "-instr-profile", data, library],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for record in counted.split("end_of_record"):
            source = re.search(r"^SF:(.*)$", record, re.M)
            if source is None or not source[1].startswith(str(TREE)):
                continue
            path = Path(source[1])
            counts = {
                int(line): int(count)
                for line, count in re.findall(r"^DA:(\d+),(\d+)", record, re.M)
            }
            text = path.read_text()
            if path.suffix == ".c":
                where = places(text)
            else:
                where = {number: (path.name, number) for number in active(path)}
            for line, count in counts.items():
                if line in where:
                    file, number = where[line]
                    lines = ran.setdefault(file, {})
                    lines[number] = lines.get(number, False) or count > 0
    return ran


def spared() -> dict[str, str]:
    """{file and function and text of the line: why it is not run}."""
    found = {}
    for line in SPARED.read_text().splitlines():
        if line and not line.startswith("#"):
            place, _, why = line.partition("  ## ")
            found[place] = why
    return found


def place(file: str, source: list[str], line: int) -> str:
    """FILE FUNCTION: TEXT; no number, which the next change would make wrong."""
    heads = [
        stated[1]
        for text in source[:line]
        if (stated := re.match(r"(?:    )?(?:c?def|static)\b[^=(]*?(\w+)\(", text))
    ]
    return f"{file} {heads[-1] if heads else ''}: {source[line - 1].strip()}"


# --- turnaway/ ---------------------------------------------------------------------------


def interpreted() -> dict[str, tuple[int, list[int]]]:
    """{module: (statements, lines not run)}."""
    import coverage

    seen: dict[str, set[int]] = {}
    for path in RAW.glob("*.lines"):
        # A line for each process that ended with this file open; none for one that
        # was killed, perhaps half a one.
        for text in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                for file, lines in json.loads(text).items():
                    seen.setdefault(file, set()).update(lines)
    data = coverage.CoverageData(basename=str(FOLDER / "python.coverage"))
    data.erase()
    data.add_lines(seen)
    data.write()
    told = coverage.Coverage(data_file=str(FOLDER / "python.coverage"), config_file=False)
    told.load()
    found = {}
    for path in sorted((TREE / "turnaway").rglob("*.py")):
        _, statements, _, missing, _ = told.analysis2(str(path))
        found[str(path.relative_to(TREE))] = len(statements), list(missing)
    return found


# --- the report --------------------------------------------------------------------------


def spans(lines: Iterable[int]) -> str:
    """1, 2, 3, 7 as "1-3 7"."""
    found: list[list[int]] = []
    for line in sorted(lines):
        if found and line == found[-1][1] + 1:
            found[-1][1] = line
        else:
            found.append([line, line])
    return " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)


def row(name: str, lines: int, missed: int, which: str = "") -> str:
    share = 100 * (lines - missed) / lines if lines else 100
    return f"{name:32} {lines:6} {missed:6} {share:7.1f} %  {which}".rstrip()


def report(page: bool) -> int:
    print(f"{'file':32} {'lines':>6} {'missed':>6} {'run':>9}  missed lines")
    named = spared()
    files = []  # (name, lines, missed, of those named)
    left = []
    known = set()
    for file, lines in sorted(compiled().items()):
        source = (TREE / "ext" / file).read_text().splitlines()
        known |= {place(file, source, line) for line in lines}
        these = sorted(line for line, ran in lines.items() if not ran)
        places = [place(file, source, line) for line in these]
        print(row(f"ext/{file}", len(lines), len(these), spans(these)))
        files.append((f"ext/{file}", len(lines), len(these), sum(one in named for one in places)))
        left += zip(places, these, strict=True)
    everything = "ext/", *(sum(one[at] for one in files) for at in (1, 2, 3))
    print(row(*everything[:3]))
    statements = missed = 0
    for file, (all_of_it, numbers) in interpreted().items():
        print(row(file, all_of_it, len(numbers), spans(numbers)))
        statements += all_of_it
        missed += len(numbers)
    python = "turnaway/", statements, missed
    print(row(*python))
    unnamed = [f"{line}: {one}" for one, line in left if one not in named]
    gone = sorted(named.keys() - known)
    for one in unnamed:
        print(f"not run, and not in {SPARED.name}: {one}")
    for one in sorted((named.keys() & known) - {one for one, _ in left}):
        print(f"run, and in {SPARED.name}: {one}")
    for one in gone:
        print(f"gone, and in {SPARED.name}: {one}")
    if page:
        write([*files, everything], python, Counter(named[one] for one, _ in left if one in named))
    return 1 if unnamed or gone else 0


def write(
    files: Sequence[tuple[str, int, int, int]], python: tuple[str, int, int], whys: Counter[str]
) -> None:
    """The part of docs/coverage.md that is measured."""

    def share(lines: int, missed: int) -> str:
        return f"{100 * (lines - missed) / lines:.1f} %"

    lines = [
        f"On {date.today()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}:",
        *("", "<!-- elsewhere: tests/cover/lines.py -->", "```sh"),
        *(f"python tests/cover/lines.py {words}" for words in WORDS.read_text().splitlines()),
        "```",
        *("", "| file | lines | run | not run | of those named |", "|---|---:|---:|---:|---:|"),
        *(
            f"| `{name}` | {all_of_it} | {share(all_of_it, missed)} | {missed} | {reason} |"
            for name, all_of_it, missed, reason in files
        ),
        f"| `{python[0]}` (Python) | {python[1]} | {share(*python[1:])} | {python[2]} | |",
        *("", "| lines of `ext/` not run | why |", "|---:|---|"),
        *(f"| {times} | {why} |" for why, times in whys.most_common()),
    ]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text("\n".join((before + BEGIN, *lines, END + after)))


if __name__ == "__main__":
    commands = [word for word in sys.argv[1:] if word in COMMANDS] or ["run", "report"]
    words = [word for word in sys.argv[1:] if word not in COMMANDS]
    status = 0
    for command in ("run", "more"):
        if command in commands:
            status = run(words, command == "more")
    if "report" in commands or "page" in commands:
        status = report("page" in commands) or status
    sys.exit(status)
