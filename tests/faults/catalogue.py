"""Every fault that is injected, and what is written down of each.

Owns the list of faults in the order of docs/reliability.md, and `Told`, which takes one
row for each while the tests run.  A fault without a row, or a row without a fault, is a
failure: test_page.py, and conftest.py when the page is written.
"""

from __future__ import annotations

import re

from bench import blast

# The fault, and how it is brought about.
FAULTS = {
    "accept4: EMFILE": "strace, every call for 0.6 s",
    "accept4: ENFILE": "strace, every call for 0.6 s",
    "accept4: ENOBUFS": "strace, every call for 0.6 s",
    "accept4: ENOMEM": "strace, every call for 0.6 s",
    "accept4: ECONNABORTED": "strace, every call for 0.6 s",
    "epoll_wait: EINTR": "strace, every second call",
    "close_range: EPERM": "strace, every call, as an old seccomp filter would",
    "send takes a part": "a library put before libc: every tenth banner is cut to 40 octets",
    "send: EPIPE": "strace, every tenth banner",
    "send: ENOBUFS": "strace, every tenth banner",
    "65,000 descriptors in use": "65,000 clients of close policy quit that stay",
    "listen queue overflow": "a queue of 16, stopped for half a second",
    "clock a day forward": "a library put before libc",
    "clock a day back": "a library put before libc",
    "summer time ends": "a library put before libc sets the clock to the last second of it",
    "summer time begins": "a library put before libc sets the clock to the second before it",
    "time zone's file removed": "the file of TZ unlinked, then the clock put over a change",
    "syslog socket gone": "closed and unlinked, and there again",
    "syslog never reads": "a bound socket with a full queue",
    "disk full, JSON log": "a tmpfs of 64 KiB, full, then emptied",
    "disk full, metrics file": "the same tmpfs",
    "disk full, pidfile": "a start on a full tmpfs",
    "control client never reads": "eight tails that read nothing, log-connections all",
    "metrics client never reads": "16 clients with a receive buffer of 1 octet",
    "a worker stuck": "strace holds one of two loops for a second",
    "kill -9, the supervisor holds the socket": "SIGKILL and a new start, five times",
    "kill -9, nobody holds the socket": "SIGKILL and a new start",
    "SIGHUP storm": "600 SIGHUP in two seconds, the file is read anew",
}

GOOD = ("complete", "reset_after")


class Told:
    """The rows of this run: `told(fault, result, lost=..., logged=...)` adds one."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, str]] = {}

    def __call__(
        self, fault: str, result: blast.Result | None, *, lost: str, logged: str | list[str]
    ) -> None:
        """`logged` are lines of the log, of which the header is left out."""
        assert fault in FAULTS, f"{fault!r} is not in the catalogue"
        lines = [logged] if isinstance(logged, str) else logged
        row = {
            "fault": fault,
            "injected by": FAULTS[fault],
            "clients": "-",
            "told": "-",
            "p99 ms": "-",
            "lost": lost,
            "in the log": "; ".join(f"`{message(line)}`" for line in lines) or "nothing",
        }
        if result is not None:
            row["clients"] = f"{result.started:,}"
            row["told"] = share(result)
            row["p99 ms"] = f"{result.percentile(99) / 1000:,.1f}"
        self.rows[fault] = row
        print(row)


def share(result: blast.Result) -> str:
    """How many of the clients read their whole banner, in percent; rounded down."""
    good = sum(result.counts[name] for name in GOOD)
    return f"{good * 1000 // result.started / 10:.1f} %" if good < result.started else "100 %"


def message(line: str) -> str:
    """A line of the log as it stands behind time, program and pid, with no port of a test."""
    words = re.sub(r"^<\d+>.*?\]: ", "", line)
    return re.sub(r"(127\.0\.0\.1\]?|198\.51\.100\.\d+\]?):\d+", r"\1:25", words)
