"""The calls of sandbox.h through `turnaway._board`, each in a process of its own.

What they do to the running daemon is in tests/system/test_sandbox.py.
"""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from turnaway import _board

BEGIN = """
import errno, os, socket, sys
from turnaway import _board
def said(call, *arguments):
    try:
        return call(*arguments) and "done" or "done"
    except OSError as error:
        return errno.errorcode[error.errno]
def bound(port):
    with socket.socket() as one:
        one.bind(("127.0.0.1", port))
_board.no_new_privileges()
abi = _board.landlock_abi()
"""


def run(code: str, *arguments: object) -> list[str]:
    """What a new process prints."""
    ended = subprocess.run(
        [sys.executable, "-c", BEGIN + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_the_rules_are_all_that_is_left(tmp_path: Path) -> None:
    for name in ("read", "write", "none"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    code = """
top = sys.argv[1]
rules = [(os.open(f"{top}/read", os.O_PATH), _board.MAY_READ)]
rules += [(os.open(f"{top}/write", os.O_PATH), _board.MAY_WRITE | _board.MAY_MAKE)]
_board.landlock(abi, rules, [int(sys.argv[2])])
for name in ("read", "write", "none"):
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_TRUNC):
        print(said(os.open, f"{top}/{name}/file", flags))
    print(said(os.open, f"{top}/{name}/new", os.O_WRONLY | os.O_CREAT))
    print(said(os.unlink, f"{top}/{name}/file"))
for port in sys.argv[2:]:
    print(said(bound, int(port)))
"""
    ports = []
    for _ in range(2):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
    no = "EACCES"
    assert run(code, tmp_path, *ports) == [
        *("done", no, no, no),
        *(no, "done", "done", no),
        *(no, no, no, no),
        *("done", no),
    ]


def test_what_may_go_and_not_come(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    code = """
top = sys.argv[1]
_board.landlock(abi, [(os.open(top, os.O_PATH), _board.MAY_REMOVE)], [])
print(said(os.open, f"{top}/file", os.O_RDONLY), said(os.unlink, f"{top}/file"))
print(said(os.open, f"{top}/new", os.O_WRONLY | os.O_CREAT))
"""
    assert run(code, tmp_path) == ["EACCES", "done", "EACCES"]


def test_any_port(tmp_path: Path) -> None:
    code = '_board.landlock(abi, [], None); print(said(bound, 0), said(os.open, "/etc/passwd", 0))'
    assert run(code) == ["done", "EACCES"]


@pytest.mark.parametrize("rules", ["[(-1, 1)]", "[(99, 1)]"])
def test_a_wrong_rule_forbids_nothing(rules: str) -> None:
    code = f"print(said(_board.landlock, abi, {rules}, []), said(os.open, '/etc/passwd', 0))"
    assert run(code) == ["EBADF", "done"]


def test_a_file_takes_no_rule_for_folders(tmp_path: Path) -> None:
    """Whatever is asked for: the kernel would refuse it."""
    (tmp_path / "file").write_text("x")
    code = """
fd = os.open(sys.argv[1], os.O_PATH)
_board.landlock(abi, [(fd, 15), (fd, _board.MAY_REMOVE)], [])
print(said(os.open, sys.argv[1], os.O_RDWR), said(os.unlink, sys.argv[1]))
"""
    assert run(code, tmp_path / "file") == ["done", "EACCES"]


def test_other_systems_calls_say_that_they_are_not_here() -> None:
    for call in (
        lambda: _board.unveil(b"/", "r"),
        lambda: _board.unveil(None, ""),
        lambda: _board.pledge("stdio"),
        _board.capability_mode,
    ):
        with pytest.raises(OSError) as raised:  # noqa: PT011  # its number is looked at
            call()
        assert raised.value.errno == errno.ENOSYS
