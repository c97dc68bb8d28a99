"""How a fault gets into a running daemon: strace, a library before libc, a small disk.

Owns the strace that answers a system call in the kernel's place, and the shim: a shared
library, compiled by the test, whose clock and send(2) a file commands while the daemon
runs.  `Crowd` are the real clients that come meanwhile.  Everything ends with its block.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from namespaces import Namespace
from running import SECONDS, Daemon, need, need_root, until

from bench import blast
from bench.expect import Expect

_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* seconds: added to the calendar; cut: every so many-th send is cut short;
 * cuts: how many were. */
static volatile struct { int64_t seconds, cut, cuts, sends; } *command;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULT_FILE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at != MAP_FAILED)
            command = at;
        close(fd);
    }
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    int done = (int)syscall(SYS_clock_gettime, id, now);
    if (done == 0 && command && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        now->tv_sec += command->seconds;
    return done;
}

time_t time(time_t *to)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to)
        *to = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *to, void *zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    to->tv_sec = now.tv_sec;
    to->tv_usec = now.tv_nsec / 1000;
    return 0;
}

/* Only what is sent with MSG_MORE is a banner. */
ssize_t send(int fd, const void *octets, size_t length, int flags)
{
    if (command && command->cut && (flags & MSG_MORE)
        && __atomic_add_fetch(&command->sends, 1, __ATOMIC_RELAXED) % command->cut == 0) {
        __atomic_add_fetch(&command->cuts, 1, __ATOMIC_RELAXED);
        length = length < 40 ? length : 40;
    }
    return syscall(SYS_sendto, fd, octets, length, flags, (void *)0, 0);
}
"""


class Shim:
    """The library and the file that commands it; `env` is for the daemon."""

    def __init__(self, folder: Path) -> None:
        need("gcc")
        library, source, file = (folder / name for name in ("shim.so", "shim.c", "shim"))
        source.write_text(_SHIM)
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", source, "-o", library, "-ldl"],
            check=True,
        )
        file.write_bytes(bytes(4096))
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), 4096)
        self.env = {**os.environ, "LD_PRELOAD": str(library), "FAULT_FILE": str(file)}

    def _put(self, at: int, number: int) -> None:
        self._memory[at : at + 8] = struct.pack("=q", number)

    def clock(self, seconds: float) -> None:
        """The daemon's calendar is so many seconds ahead of ours."""
        self._put(0, int(seconds))

    def cut(self, every: int) -> None:
        """Cut each so-many-th banner short; 0: none."""
        self._put(8, every)

    @property
    def cuts(self) -> int:
        return int(struct.unpack("=q", self._memory[16:24])[0])


class Injected:
    """What strace did to a process, once it has let go of it."""

    count = 0


@contextlib.contextmanager
def injected(daemon: Daemon, call: str, how: str, *, only: int = 0) -> Iterator[Injected]:
    """Answer a system call of the loops in the kernel's place (strace(1), --inject).

    `only` is one thread; else all threads but the first, which is the shell.
    """
    need_root()
    need("strace")
    tasks = sorted(int(one.name) for one in Path(f"/proc/{daemon.pid}/task").iterdir())
    chosen = [only] if only else [one for one in tasks if one != daemon.pid]
    out = daemon.syslog.path.with_name("strace")
    done = Injected()
    tracer = subprocess.Popen(
        [
            *("strace", "-qq", "-o", out, "-e", f"trace={call}", "-e", f"inject={call}:{how}"),
            *(word for one in chosen for word in ("-p", str(one))),
        ],
        stderr=subprocess.PIPE,
    )
    try:
        until(
            lambda: tracer.poll() is not None or all(_traced(daemon.pid, one) for one in chosen),
            what="strace",
        )
        assert tracer.poll() is None, tracer.stderr and tracer.stderr.read()
        yield done
    finally:
        tracer.terminate()  # it lets go of them
        tracer.communicate(timeout=SECONDS)
    done.count = len(re.findall(r"INJECTED|DELAYED", out.read_text()))


def _traced(pid: int, task: int) -> bool:
    status = Path(f"/proc/{pid}/task/{task}/status").read_text()
    return "TracerPid:\t0\n" not in status


class Crowd(threading.Thread):
    """Silent clients at a fixed rate, whatever the daemon does; it starts at once.

    They read and compare every octet, without the GIL, and wait eight seconds.  Where
    they do not live in the test's own network they are at `home`.
    """

    def __init__(
        self,
        port: int,
        seconds: float = 1.2,
        rate: float = 500,
        *,
        address: str = "127.0.0.1",
        expect: Expect | None = None,
        behaviour: str = "silent",
        sources: int | Sequence[str] = 64,
        home: Namespace | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self._home = home
        self._place = address, port
        self._load = {
            "rate": rate,
            "seconds": seconds,
            "behaviour": behaviour,
            "timeout": 8.0,
            "sources": sources,
        }
        self._expect = expect or Expect.learn(address, port)
        self.start()

    def run(self) -> None:
        if self._home:
            self._home.inhabit()
        self._result = blast.offered(*self._place, expect=self._expect, **self._load)

    def result(self) -> blast.Result:
        """How they fared, once all are through."""
        self.join(60)
        return self._result

    def nobody_was_lost(self) -> blast.Result:
        result = self.result()
        assert result.counts["complete"] + result.counts["reset_after"] == result.started, result
        return result


def rest(seconds: float, began: float) -> None:
    """Until `seconds` after `began`."""
    time.sleep(max(0.0, began + seconds - time.monotonic()))


def descriptors(pid: int) -> int:
    """Open descriptors, over the tables of all threads."""
    tables = Path(f"/proc/{pid}/task").glob("*/fd")
    return sum(len(os.listdir(table)) for table in tables)
