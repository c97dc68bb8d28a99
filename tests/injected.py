"""System calls made by a running process because a test wants it to: ptrace(2).

Owns: holding one thread of another process, making it call what it is told with
its own rights, and letting it go on as if nothing had been.  Root's alone, and
for x86_64 alone: the registers are its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import need_root

# ptrace(2)
SINGLESTEP, GETREGS, SETREGS, DETACH, SEIZE, INTERRUPT = 9, 12, 13, 17, 0x4206, 0x4207
WALL = 0x40000000  # waitpid(2): threads too
SYSCALL = b"\x0f\x05"
BELOW = 8192  # octets under the stack pointer that nobody uses
ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")

# /usr/include/x86_64-linux-gnu/asm/unistd_64.h
NUMBERS = {
    "close": 3,
    "socket": 41,
    "connect": 42,
    "sendto": 44,
    "bind": 49,
    "execve": 59,
    "kill": 62,
    "truncate": 76,
    "rename": 82,
    "mkdir": 83,
    "unlink": 87,
    "symlink": 88,
    "setuid": 105,
    "setgid": 106,
    "setgroups": 116,
    "openat": 257,
}


class Registers(ctypes.Structure):
    """struct user_regs_struct of sys/user.h."""

    _fields_ = tuple(
        (name, ctypes.c_ulonglong)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx"),
            *("rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base"),
            *("gs_base", "ds", "es", "fs", "gs"),
        )
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _ptrace(request: int, tid: int, data: object = None) -> None:
    if _libc.ptrace(request, tid, None, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request} of {tid}: {os.strerror(number)}")


class Puppet:
    """One thread, held in a system call of its own."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._memory = os.open(f"/proc/{tid}/mem", os.O_RDWR)
        self._saved = self._registers()
        self._free = self._saved.rsp - BELOW
        self._is_another = False  # another program runs in it now

    def in_call(self) -> bool:
        """Whether it waits in the kernel: the instruction that brought it there can be
        used again, and none of the program's is changed."""
        return os.pread(self._memory, 2, self._saved.rip - 2) == SYSCALL

    def _registers(self) -> Registers:
        registers = Registers()
        _ptrace(GETREGS, self.tid, ctypes.byref(registers))
        return registers

    def _put(self, octets: bytes) -> int:
        """Where the thread finds these octets, until it goes on."""
        where = self._free
        os.pwrite(self._memory, octets, where)
        self._free += -(-len(octets) // 16) * 16
        return where

    def call(self, name: str, *arguments: int | bytes) -> int:
        """What the call returned; -errno when it failed.  Octets become a pointer."""
        self._free = self._saved.rsp - BELOW
        registers = Registers.from_buffer_copy(self._saved)
        for register, argument in zip(ARGUMENTS, arguments, strict=False):
            value = self._put(argument) if isinstance(argument, bytes) else argument
            setattr(registers, register, value & (1 << 64) - 1)
        registers.rip -= len(SYSCALL)
        registers.rax = NUMBERS[name]
        registers.orig_rax = (1 << 64) - 1  # nothing is to be restarted now
        _ptrace(SETREGS, self.tid, ctypes.byref(registers))
        _ptrace(SINGLESTEP, self.tid)
        _, status = os.waitpid(self.tid, WALL)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(f"{self.tid} ended in {name}")
        result = ctypes.c_longlong(self._registers().rax).value
        self._is_another = name == "execve" and result == 0
        return result

    def said(self, name: str, *arguments: int | bytes) -> str:
        """The same as a word: the name of the error, or "done"."""
        result = self.call(name, *arguments)
        return errno.errorcode[-result] if result < 0 else "done"

    def let_go(self) -> None:
        with contextlib.suppress(OSError):
            if not self._is_another:
                _ptrace(SETREGS, self.tid, ctypes.byref(self._saved))
            _ptrace(DETACH, self.tid)
        os.close(self._memory)


@contextlib.contextmanager
def puppet(tid: int) -> Iterator[Puppet]:
    """The thread `tid` until the block ends."""
    need_root()
    if platform.machine() != "x86_64":
        pytest.skip("injects system calls on x86_64 only")
    for _ in range(100):
        _ptrace(SEIZE, tid)
        _ptrace(INTERRUPT, tid)
        os.waitpid(tid, WALL)
        held = Puppet(tid)
        if held.in_call():
            break
        held.let_go()
        time.sleep(0.01)
    else:
        pytest.fail(f"thread {tid} never waits")
    try:
        yield held
    finally:
        held.let_go()


def tasks(pid: int) -> dict[int, str]:
    """Every thread and its name."""
    return {
        int(task.name): (task / "comm").read_text().strip()
        for task in sorted(Path(f"/proc/{pid}/task").iterdir())
    }


def inet(port: int) -> bytes:
    """struct sockaddr_in of 127.0.0.1."""
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, b"\x7f\0\0\1")


def unix(path: str) -> bytes:
    """struct sockaddr_un; `@` begins an abstract name."""
    return struct.pack("=H", socket.AF_UNIX) + re.sub(b"^@", b"\0", path.encode())
