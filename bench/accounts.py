"""What the kernel wrote down about a process: CPU, memory, sockets.

Owns the reading of /proc. Times are nanoseconds from the scheduler's own
accounting (`schedstat`), because `stat` counts in steps of ten milliseconds.
A process that is gone counts as nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def family(pid: int) -> list[int]:
    """The process and all its descendants: a master and its workers."""
    found = [pid]
    for parent in found:
        for task in _tasks(parent):
            try:
                children = (task / "children").read_text().split()
            except OSError:
                continue
            found.extend(int(child) for child in children if int(child) not in found)
    return found


def _tasks(pid: int) -> list[Path]:
    try:
        return list((PROC / str(pid) / "task").iterdir())
    except OSError:
        return []


def cpu_ns(pid: int) -> int:
    """Nanoseconds on a CPU of a process, its threads and its descendants."""
    total = 0
    for member in family(pid):
        for task in _tasks(member):
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except (OSError, IndexError):
                continue
    return total


def pin(pid: int, cores: set[int]) -> None:
    """Keep all threads of a process and its descendants on these cores."""
    for member in family(pid):
        for task in _tasks(member):
            try:
                os.sched_setaffinity(int(task.name), cores)
            except OSError:
                continue


def resident_bytes(pid: int) -> tuple[int, int]:
    """(RSS, PSS) of a process and its descendants: PSS counts shared pages once."""
    rss = pss = 0
    for member in family(pid):
        try:
            lines = (PROC / str(member) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, rest = line.partition(":")
            if key == "Rss":
                rss += int(rest.split()[0]) * 1024
            elif key == "Pss":
                pss += int(rest.split()[0]) * 1024
    return rss, pss


STATES = {
    "01": "ESTABLISHED",
    "02": "SYN-SENT",
    "03": "SYN-RECV",
    "04": "FIN-WAIT-1",
    "05": "FIN-WAIT-2",
    "06": "TIME-WAIT",
    "07": "CLOSE",
    "08": "CLOSE-WAIT",
    "09": "LAST-ACK",
    "0A": "LISTEN",
    "0B": "CLOSING",
}


def sockets(port: int) -> dict[str, int]:
    """How many sockets whose own end is `port` are in each state."""
    counts: dict[str, int] = {}
    wanted = f"{port:04X}"
    for table in ("tcp", "tcp6"):
        try:
            with (PROC / "net" / table).open() as lines:
                next(lines, None)
                for line in lines:
                    fields = line.split(None, 4)
                    if fields[1].endswith(":" + wanted):
                        state = STATES.get(fields[3], fields[3])
                        counts[state] = counts.get(state, 0) + 1
        except OSError:
            continue
    return counts


def time_wait_room() -> int:
    """How many more TIME-WAIT sockets the kernel will keep. Beyond that it
    forgets at once, which harms nobody but a count of them."""
    limit = int((PROC / "sys/net/ipv4/tcp_max_tw_buckets").read_text())
    for line in (PROC / "net/sockstat").read_text().splitlines():
        fields = line.split()
        if fields and fields[0] == "TCP:":
            return limit - int(fields[fields.index("tw") + 1])
    return 0


def orphans() -> int:
    """Sockets of TCP that no process holds any more (sockstat, in this namespace)."""
    for line in (PROC / "net/sockstat").read_text().splitlines():
        fields = line.split()
        if fields and fields[0] == "TCP:":
            return int(fields[fields.index("orphan") + 1])
    return 0


def queue_limit() -> int:
    """The longest accept queue the kernel grants."""
    return int((PROC / "sys/net/core/somaxconn").read_text())


def listen_drops() -> int:
    """Connections the kernel itself threw away at a full queue so far."""
    names: list[str] = []
    for line in (PROC / "net/netstat").read_text().splitlines():
        if line.startswith("TcpExt:"):
            fields = line.split()[1:]
            if not names:
                names = fields
            else:
                return int(fields[names.index("ListenDrops")])
    return 0
