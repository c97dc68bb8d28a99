"""FreeBSD's ipfw: a plan, and the sources of its lists, as scripts for sh(1).

Owns: rules of one set of rules (25), and the tables `turnaway-*`, which are all
that these scripts make or change.  `fwd` hands a packet to a local socket, or
to a next hop, and changes nothing in it, so the daemon knows who was called.

Promises: new rules are put into a set that is off, and swapped in at once; so
are the sources.  Only a first packet is decided (`setup`), and its flow keeps
the decision (`keep-state`).  A table holds both families.

Not run in our tests, which have no ipfw.  Source: ipfw(8) of FreeBSD 13 and later.
"""

from ipaddress import IPv4Address, IPv6Address

from turnaway.exits import USAGE, Failure
from turnaway.firewall.iptables import cidrs_of
from turnaway.firewall.nftables import families, prefix
from turnaway.firewall.plan import Plan, Sources, heading

SET = 25  # ipfw has the sets 0..31
SPARE = 24
FIRST = 900  # the number of the first rule: before those that let mail, or what is established, in
FLOW = ":turnaway"  # the name of our dynamic rules: no other rule's are asked


def table(name: str) -> str:
    """The table of a list's sources."""
    return f"turnaway-{name}"


def rules(plan: Plan) -> str:
    """The whole script.  Run again, it keeps the sources."""
    if plan.role == "router":
        raise Failure(
            USAGE,
            "--for ipfw: role router is not made, since fwd translates nothing; expected --role dsr,"
            " and the MX's addresses on the diversion hosts",
        )
    if plan.choose == "source" and max(len(plan.hosts4), len(plan.hosts6)) > 1:
        raise Failure(USAGE, "--for ipfw: expected --choose turn; it chooses by chance")
    names = [*(one.name for one in plan.lists), "auto"]
    lines = [
        "#!/bin/sh",
        "# Turnaway.  Running it again keeps the sources, and never touches other rules.",
        heading(plan),
        "set -eu",
        *(f"ipfw -q table {table(name)} create type addr missing" for name in ("allow", *names)),
        *_swapped("allow", [*map(prefix, plan.allow4), *map(prefix, plan.allow6)]),
        f"ipfw -q delete set {SPARE} 2>/dev/null || :",
        f"ipfw -q set disable {SPARE}",
        "ipfw -q /dev/stdin <<'END'",
        *(f"add {FIRST + number} set {SPARE} {rule}" for number, rule in enumerate(_rules(plan))),
        "END",
        f"ipfw -q set swap {SPARE} {SET}",
        f"ipfw -q set enable {SET}",
        f"ipfw -q delete set {SPARE} 2>/dev/null || :",
    ]
    return "\n".join([*lines, ""])


def sets(plan: Plan, sources: Sources) -> str:
    """The script that replaces every list's sources."""
    lines = [
        "#!/bin/sh",
        "# Sources that are diverted.  Each table is swapped in whole, never empty between.",
        "set -eu",
    ]
    for one in plan.lists:
        lines += _swapped(one.name, cidrs_of(plan, sources, one.name))
    return "\n".join([*lines, ""])


def _swapped(name: str, networks: list[str]) -> list[str]:
    old, new = table(name), f"{table(name)}-new"
    return [
        "ipfw -q /dev/stdin <<'END'",
        f"table {old} create type addr missing",
        f"table {new} create type addr or-flush",
        *(f"table {new} add {one}" for one in networks),
        f"table {old} swap {new}",
        f"table {new} destroy",
        "END",
    ]


def _rules(plan: Plan) -> list[str]:
    """The rules after their number and set, in order."""
    called = [(4, mx) for mx in plan.mx4] + [(6, mx) for mx in plan.mx6]
    ports = ",".join(map(str, plan.ports))
    inside = f"in recv {plan.wan}" if plan.wan else "in"
    found = [f"check-state {FLOW}"]
    decided = []
    for one in (*plan.lists, None):
        name, port = (one.name, one.port) if one else ("auto", plan.auto_port)
        for version, mx in called:
            match = (
                f"tcp from table({table(name)}) to {mx} {ports} {inside} setup keep-state {FLOW}"
            )
            decided += [f"{way}{match}" for way in _ways(plan, version, port)]
    skip = [f"tcp from table({table('allow')}) to {mx} {ports} {inside} setup" for _, mx in called]
    after = FIRST + len(found) + len(skip) + len(decided)
    found += [f"skipto {after} {one}" for one in skip]
    return [*found, *decided, *_guard(plan)]


def _ways(plan: Plan, version: int, port: int) -> list[str]:
    """`fwd` to here, or to each host by its share of those that are left."""
    if plan.role == "host":
        return [f"fwd {'127.0.0.1' if version == 4 else '::1'},{port} "]
    hosts: tuple[IPv4Address | IPv6Address, ...] = plan.hosts4 if version == 4 else plan.hosts6
    left = len(hosts)
    return [
        f"prob {1 / (left - number):.4f} fwd {host} " if number < left - 1 else f"fwd {host} "
        for number, host in enumerate(hosts)
    ]


def _guard(plan: Plan) -> list[str]:
    """Nobody reaches the daemon's ports unless diverted: what is diverted still says port 25."""
    if plan.role != "host":
        return []
    ports = ",".join(map(str, plan.diversion_ports))
    own = [("reset", "me") if version == 4 else ("reset6", "me6") for version in families(plan)]
    return [f"{reset} tcp from any to {me} {ports} in not recv lo0" for reset, me in own]
