"""Kernel settings of a diversion host: values, and the reason for each.

Owns: the profile.  None of it is needed below some thousand connections a
second; each says what it costs.  Read-only: who wants them puts what is printed
into /etc/sysctl.d.
"""

from collections.abc import Iterator
from dataclasses import dataclass

ROOT = "/proc/sys"


@dataclass(frozen=True, slots=True)
class Sysctl:
    name: str
    value: int
    why: str  # one or more lines
    least: bool = False  # more than `value` is as well

    @property
    def path(self) -> str:
        return f"{ROOT}/{self.name.replace('.', '/')}"

    def now(self) -> int | None:
        """What is in force; None when this kernel, or this namespace, has no such thing."""
        try:
            with open(self.path) as file:
                return int(file.read())
        except (OSError, ValueError):
            return None

    def fits(self, now: int) -> bool:
        return now >= self.value if self.least else now == self.value


PROFILE = (
    Sysctl(
        "net.core.somaxconn",
        65535,
        "Clamps the queue of connections that wait to be accepted; when it is full,\n"
        "clients wait and try again.  Turnaway asks for as much as this allows.",
        least=True,
    ),
    Sysctl(
        "net.ipv4.tcp_max_syn_backlog",
        65535,
        "Half-open connections before SYN cookies begin (IPv6 too).",
        least=True,
    ),
    Sysctl(
        "net.ipv4.tcp_syncookies",
        1,
        "A flood of SYNs that fills the queue locks nobody out (IPv6 too).  1: only then.",
    ),
    Sysctl(
        "net.ipv4.tcp_orphan_retries",
        2,
        "A client that vanishes before it acknowledges the banner costs seconds of\n"
        "memory instead of two minutes.",
    ),
    Sysctl(
        "net.ipv4.tcp_fin_timeout",
        15,
        "A client that never closes its side is forgotten after 15 s instead of 60.\n"
        "It does not shorten TIME-WAIT, which is 60 s whatever is set.",
    ),
    Sysctl(
        "net.ipv4.tcp_max_orphans",
        262144,
        "Closed connections whose banner is still on its way, about 3 kB each; above it\n"
        "the kernel resets them and their clients never see the banner.",
        least=True,
    ),
    Sysctl(
        "net.ipv4.tcp_max_tw_buckets",
        262144,
        "Connections in TIME-WAIT, 256 octets each.  More are dropped, which harms\n"
        "nobody but is counted as an overflow.",
        least=True,
    ),
    Sysctl(
        "net.netfilter.nf_conntrack_max",
        1048576,
        "Only where NAT or conntrack is on this host: flows it may know.  When it is\n"
        "full, good mail is dropped with the bad.  Only the host's own network\n"
        "namespace can set it.",
        least=True,
    ),
)


def text() -> str:
    """A file for /etc/sysctl.d."""
    lines = ["# Kernel settings of a Turnaway diversion host; see turnawayctl(8)."]
    for one in PROFILE:
        lines += ["", *(f"# {line}" for line in one.why.splitlines())]
        lines.append(f"{one.name} = {one.value}")
    return "\n".join([*lines, ""])


def differing() -> Iterator[tuple[Sysctl, int]]:
    """Those that are not as the profile has them, and what they are."""
    for one in PROFILE:
        now = one.now()
        if now is not None and not one.fits(now):
            yield one, now
