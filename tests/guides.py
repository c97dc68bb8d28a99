"""Pages of docs/ and the README, as something that can be done.

Owns: reading a page's marked blocks and doing what they say, so that text and
test cannot part.  What is marked, by a comment on the line before the fence:

    <!-- run -->          a session: `$ COMMAND` on the one host of a page, or
                          `mx# COMMAND`, `listed$ COMMAND`, `other$ COMMAND` in
                          a guide, and below each what it prints.  `...` in a
                          line stands for any text, on a line of its own for
                          any lines; a date in a greeting stands for any date,
                          a port of a client and a pid for any.  Every command
                          must end with status 0.
    <!-- file: PATH -->   a file of that host, or of the MX

A reader sees neither comment.  The host, or `mx`, has its own /etc, /run,
/var/lib and /var/log, and its processes end with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from namespaces import Lab, Namespace
from running import need, need_root

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs" / "divert"
SECONDS = 40.0  # for one command

_FENCE = re.compile(
    r"^<!-- (?P<what>run|file: (?P<path>\S+)) -->\n```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
_PROMPT = re.compile(r"(?:(?P<host>mx|listed|other)[#$]|\$) (?P<command>.*)")
# What is another each time, and yet must look as shown.
_DATE = r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}(?: \(\w+\))?"
_NUMBER = r"(?<=from=\[127\.0\.0\.1\]:)\d+|(?<=pid )\d+|(?<=turnaway-fast\[)\d+"
_VARIES = re.compile(f"(?P<any>\\.\\.\\.)|(?P<date>{_DATE})|(?P<number>{_NUMBER})")

# Directories that a page may write to, private to the MX of a test.
_OWN_DIRECTORIES = """
set -e
mount -t tmpfs none /mnt
for one in etc var/lib var/log; do
	mkdir -p "/mnt/$one" "/mnt/work/$one"
	mount -t overlay none -o "lowerdir=/$one,upperdir=/mnt/$one,workdir=/mnt/work/$one" "/$one"
done
mount -t tmpfs none /run
set +e
"""


@dataclass(frozen=True)
class Step:
    """One command of a page, or one file of it."""

    line: int  # where it stands in the page
    host: str
    command: str
    prints: tuple[str, ...] = ()
    path: str = ""  # of a file, whose text is `command`


def steps(text: str) -> list[Step]:
    """What a page says is to be done, in order."""
    found = []
    for block in _FENCE.finditer(text):
        line = text.count("\n", 0, block.start("text")) + 1
        if block["path"]:
            found.append(Step(line, "mx", block["text"], path=block["path"]))
        else:
            found += _session(block["text"].splitlines(), line)
    return found


def _session(lines: Sequence[str], line: int) -> list[Step]:
    found: list[Step] = []
    at = 0
    while at < len(lines):
        prompt = _PROMPT.fullmatch(lines[at])
        assert prompt is not None, f"line {line + at}: expected a prompt, got {lines[at]!r}"
        begun, command = at, prompt["command"]
        while command.endswith("\\"):
            at += 1
            command += "\n" + lines[at]
        at += 1
        prints = []
        while at < len(lines) and not _PROMPT.fullmatch(lines[at]):
            prints.append(lines[at])
            at += 1
        found.append(Step(line + begun, prompt["host"] or "here", command, tuple(prints)))
    return found


def matches(expected: Sequence[str], printed: str) -> bool:
    """Whether that was printed, `...` standing for anything."""
    pattern = ""
    for line in expected:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += _pattern(line.rstrip()) + r"[ \t]*\n"
    return re.fullmatch(pattern, printed) is not None


def _pattern(line: str) -> str:
    pattern, at = "", 0
    for varies in _VARIES.finditer(line):
        pattern += re.escape(line[at : varies.start()])
        pattern += {"any": r"[^\n]*", "date": _DATE, "number": r"\d+"}[str(varies.lastgroup)]
        at = varies.end()
    return pattern + re.escape(line[at:])


class Shell:
    """A shell on one host, which keeps its directory and variables, as a terminal does."""

    def __init__(self, name: str, argv: Sequence[str], begin: str = "") -> None:
        self.name = name
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={
                "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C",
            },
        )
        self._left = b""
        status, said = self.run(begin or ":")
        if status != 0:
            self.close()
            pytest.fail(f"{name}: {said}") if os.environ.get("CI") else pytest.skip(said)

    def run(self, command: str) -> tuple[int, str]:
        """(status, everything printed)"""
        pipe, out = self._process.stdin, self._process.stdout
        assert pipe is not None
        assert out is not None
        pipe.write(f"{{ {command}\n}} </dev/null\nprintf '\\n::%d::\\n' $?\n".encode())
        pipe.flush()
        end = time.monotonic() + SECONDS
        while not (over := re.search(rb"\n::(\d+)::\n", self._left)):
            ready, _, _ = select.select([out], [], [], max(0.0, end - time.monotonic()))
            more = os.read(out.fileno(), 65536) if ready else b""
            if not more:
                said = self._left.decode(errors="replace")
                pytest.fail(f"{self.name}: no end of {command!r} within {SECONDS} s: {said}")
            self._left += more
        printed, self._left = self._left[: over.start()], self._left[over.end() :]
        text = printed.decode(errors="replace").replace("\r\n", "\n")  # SMTP's lines
        return int(over[1]), text if not text or text.endswith("\n") else text + "\n"

    def close(self) -> None:
        # The shell of the MX is process 1 of its own; all that it left running
        # ends with it.
        self._process.kill()
        self._process.communicate()


class Hosts:
    """Hosts with a shell each; what a page says is done in them."""

    main = "mx"  # whose files a page writes

    def __init__(self) -> None:
        self.hosts: dict[str, Namespace] = {}
        self.shells: dict[str, Shell] = {}

    def open(self) -> None:
        for name, host in self.hosts.items():
            argv = [*host.enter(), "bash"]
            if name == self.main:
                own = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
                argv = [*host.enter(), *own, "--", "bash"]
            begin = _OWN_DIRECTORIES if name == self.main else ""
            self.shells[name] = Shell(name, argv, begin)

    def close(self) -> None:
        for shell in self.shells.values():
            shell.close()

    def follow(self, page: Path) -> int:
        """Do what the page says; how many steps that were."""
        done = steps(page.read_text())
        for step in done:
            where = f"{page.relative_to(ROOT)}:{step.line}"
            if step.path:
                self._write(step.path, step.command)
                continue
            status, printed = self.shells[step.host].run(step.command)
            if status != 0 or not matches(step.prints, printed):
                expected = "\n".join(step.prints)
                pytest.fail(
                    f"{where}: {step.host}: {step.command}\n"
                    f"--- the page says\n{expected}\n--- it printed (status {status})\n{printed}",
                    pytrace=False,
                )
        return len(done)

    def _write(self, path: str, text: str) -> None:
        quoted = text.replace("'", "'\\''")
        command = f"mkdir -p {os.path.dirname(path) or '.'} && printf %s '{quoted}' >{path}"
        assert self.shells[self.main].run(command) == (0, "")


class Street(Hosts):
    """The MX, a listed client and another, each with a shell, on one wire."""

    ADDRESSES = (
        ("mx", "198.51.100.25", "2001:db8:25::25"),
        ("listed", "203.0.113.66", "2001:db8:bad::66"),
        ("other", "203.0.113.10", "2001:db8:900d::10"),
    )

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        wire = lab.namespace("wire")
        wire.ip("link add br0 type bridge", "link set br0 up")
        for name, four, six in self.ADDRESSES:
            host = self.hosts[name] = lab.namespace(name)
            lab.link(wire, host, at_one=name)
            wire.ip(f"link set {name} master br0")
            host.address("eth0", f"{four}/32", f"{six}/128")
            host.ip("route add 0.0.0.0/0 dev eth0", "route add ::/0 dev eth0")


class Alone(Hosts):
    """One host with nothing but its loopback, and an empty directory to work in."""

    main = "here"

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.hosts["here"] = lab.namespace("here")

    def open(self) -> None:
        super().open()
        assert self.shells["here"].run("mkdir /run/work && cd /run/work") == (0, "")


H = TypeVar("H", Street, Alone)


@contextlib.contextmanager
def hosts(kind: type[H]) -> Iterator[H]:
    """`Street` or `Alone`, and its shells."""
    need_root()
    need("unshare", "mount", "nc")
    with Lab() as lab:
        made = kind(lab)
        try:
            made.open()
            yield made
        finally:
            made.close()
