"""pf, in the dialects of OpenBSD and FreeBSD: a plan and its sources as text.

Owns: rules for a file of their own, and the tables `turnaway_*` in it.  OpenBSD
diverts to a local socket (divert-to: packets unchanged, so the daemon knows
who was called) or redirects to other hosts (rdr-to).  FreeBSD's pf translates
(rdr) before it filters; each MX address keeps itself and changes the port, so
that the daemon knows who was called there too.  `sets` is a script for sh(1)
that replaces each table at once (pfctl -T replace).

Promises: a state decides before any rule, so open sessions stay.  A table
holds both families.  Lifetimes are not pf's: `pfctl -T expire` ends them.

Not run in our tests, which have no pf.  Sources: pf.conf(5) and pfctl(8) of
OpenBSD and of FreeBSD, sbin/pfctl/pfctl_radix.c ("-" is standard input).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from turnaway.exits import USAGE, Failure
from turnaway.firewall.iptables import cidrs_of
from turnaway.firewall.nftables import families, prefix
from turnaway.firewall.plan import Plan, Sources, heading

PER_LINE = 8  # addresses
ANCHOR = "turnaway"  # FreeBSD
# A banner and a close take one or two round trips; pf's own defaults are 45 and 90 s.
STATE = "flags S/SA keep state (tcp.finwait 10, tcp.closed 5)"


def table(name: str) -> str:
    """The table of a list's sources, at most 31 octets long."""
    return f"turnaway_{name}"


@dataclass(frozen=True, slots=True)
class OpenBSD:
    """Rules to be included in pf.conf before its own for the MX."""

    name: str = "pf-openbsd"

    def rules(self, plan: Plan) -> str:
        _not_dsr(plan, self.name)
        wan = plan.wan or "egress"
        ports = _list(plan.ports)
        lines = [
            "# Turnaway.  In pf.conf, before the rules that let mail in:",
            '#     include "/etc/turnaway/turnaway.pf"',
            heading(plan),
            *_tables(plan),
        ]
        if plan.role == "host":
            lines.append("# The daemon listens on 127.0.0.1 and ::1, where no stranger gets to.")
        lines += [
            "# The state of a flow decides after its first packet, so what is open stays open.",
            f"anchor in on {wan} proto tcp from ! <{table('allow')}> to any port {ports} {{",
        ]
        for name, port in _named(plan):
            for version in families(plan):
                inet = "inet" if version == 4 else "inet6"
                mx = _list(plan.mx4 if version == 4 else plan.mx6)
                lines.append(
                    f"\tpass in quick {inet} proto tcp from <{name}> to {mx} port {ports}"
                    f" {STATE} {self._target(plan, version, port)}"
                )
        lines.append("}")
        guard = _guard(plan, f"on {wan}") if plan.role == "router" else []
        return "\n".join([*lines, *guard, ""])

    def _target(self, plan: Plan, version: int, port: int) -> str:
        hosts = plan.hosts4 if version == 4 else plan.hosts6
        if hosts:
            return f"rdr-to {_pool(plan, hosts, port)}"
        return f"divert-to {'127.0.0.1' if version == 4 else '::1'} port {port}"

    def sets(self, plan: Plan, sources: Sources) -> str:
        return _replaced(plan, sources, "pfctl -q")


@dataclass(frozen=True, slots=True)
class FreeBSD:
    """Rules for an anchor, since pf.conf has translation and filter apart."""

    name: str = "pf-freebsd"

    def rules(self, plan: Plan) -> str:
        _not_dsr(plan, self.name)
        on = f"on {plan.wan} " if plan.wan else ""
        ports = _list(plan.ports)
        lines = [
            "# Turnaway.  In pf.conf, each line at the head of its section:",
            f'#     rdr-anchor "{ANCHOR}"    # translation',
            f'#     anchor "{ANCHOR}"        # filter',
            f'#     load anchor "{ANCHOR}" from "/usr/local/etc/turnaway/turnaway.pf"',
            heading(plan),
            *_tables(plan),
            "# The first rule that matches wins.",
        ]
        for version in families(plan):
            inet = "inet" if version == 4 else "inet6"
            mx = _list(plan.mx4 if version == 4 else plan.mx6)
            lines.append(
                f"no rdr {on}{inet} proto tcp from <{table('allow')}> to {mx} port {ports}"
            )
        for name, port in _named(plan):
            for version in families(plan):
                inet = "inet" if version == 4 else "inet6"
                called = plan.mx4 if version == 4 else plan.mx6
                hosts = plan.hosts4 if version == 4 else plan.hosts6
                match = f"rdr pass {on}{inet} proto tcp from <{name}> to"
                if hosts:
                    target = _pool(plan, hosts, port)
                    lines.append(f"{match} {_list(called)} port {ports} -> {target}")
                    continue
                lines += [f"{match} {mx} port {ports} -> {mx} port {port}" for mx in called]
        guard = f"on {plan.wan}" if plan.wan else "on ! lo0"
        return "\n".join([*lines, *_guard(plan, guard), ""])

    def sets(self, plan: Plan, sources: Sources) -> str:
        return _replaced(plan, sources, f"pfctl -q -a {ANCHOR}")


OPENBSD = OpenBSD()
FREEBSD = FreeBSD()


def _not_dsr(plan: Plan, name: str) -> None:
    if plan.role == "dsr":
        raise Failure(USAGE, f"--for {name}: role dsr is not made; expected host or router")


def _named(plan: Plan) -> list[tuple[str, int]]:
    """(table, the daemon's port), in the order they are tried."""
    return [*((table(one.name), one.port) for one in plan.lists), (table("auto"), plan.auto_port)]


def _tables(plan: Plan) -> list[str]:
    """The allowed are told here; sources stay as they are when rules are loaded again."""
    lines = [f"table <{table('allow')}> persist {{"]
    allow = [*map(prefix, plan.allow4), *map(prefix, plan.allow6)]
    for at in range(0, len(allow), PER_LINE):
        lines.append(f"\t{', '.join(allow[at : at + PER_LINE])}")
    return [*lines, "}", *(f"table <{name}> persist" for name, _ in _named(plan))]


def _guard(plan: Plan, where: str) -> list[str]:
    """Nobody reaches the daemon's ports unless diverted there."""
    ports = _list(plan.diversion_ports)
    lines = []
    for version in families(plan):
        hosts: tuple[object, ...] = plan.hosts4 if version == 4 else plan.hosts6
        if not hosts and plan.role == "host":
            hosts = plan.mx4 if version == 4 else plan.mx6
        inet = "inet" if version == 4 else "inet6"
        lines.append(
            f"block return in quick {where} {inet} proto tcp from any to {_list(hosts)} port {ports}"
        )
    return ["# The daemon's ports are for diverted flows, not for the whole world.", *lines]


def _pool(plan: Plan, hosts: tuple[object, ...], port: int) -> str:
    """Several addresses allow no other choice than round-robin."""
    if len(hosts) == 1:
        return f"{hosts[0]} port {port}"
    sticky = " sticky-address" if plan.choose == "source" else ""
    return f"{_list(hosts)} port {port} round-robin{sticky}"


def _list(values: Iterable[object]) -> str:
    found = list(map(str, values))
    return found[0] if len(found) == 1 else f"{{ {', '.join(found)} }}"


def _replaced(plan: Plan, sources: Sources, pfctl: str) -> str:
    lines = [
        "#!/bin/sh",
        "# Sources that are diverted.  Each table is replaced at once, never empty between.",
        "set -eu",
    ]
    for one in plan.lists:
        lines.append(f"{pfctl} -t {table(one.name)} -T replace -f - <<'END'")
        lines += cidrs_of(plan, sources, one.name)
        lines.append("END")
    return "\n".join([*lines, ""])
