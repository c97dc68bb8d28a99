"""iptables and ipset: a plan, and the sources of its lists, as text.

Owns: the chains TURNAWAY*, one jump to each, and the sets `ta-*`, which are
all that these rules make or change.  `rules` is a script for sh(1), since two
tables of two families cannot be one transaction; each chain is replaced as a
whole (iptables-restore(8) --noflush), so it may be run again at any time.
`sets` is a file for `ipset restore`, which fills a new set and swaps it in.

Promises: those of `nftables`.  The sources and what `add` listed stay when the
rules are loaded again; the chains' own counters do not.  The short memory of
conntrack needs nfct(8) and is left out where that is missing.

Sources: ipset(8), iptables-extensions(8) of iptables 1.8, nfct(8).
"""

from collections.abc import Iterable

from turnaway.exits import USAGE, Failure
from turnaway.firewall.nftables import SEED, families, prefix, routes
from turnaway.firewall.plan import Plan, Sources, heading
from turnaway.lists.ranges import cidrs

PREFIX = "ta"  # of sets; with a list's name it stays within ipset's 31 octets
MOST_ENTRIES = 4194304  # ipset's own default is 65536; room is taken as entries come
MOST_PORTS = 15  # of one multiport match
MOST_NODES = 32  # of the cluster match
TIMEOUTS = (
    "syn_sent 20 syn_recv 20 established 120 fin_wait 10 close_wait 10 last_ack 10 time_wait 5"
    " close 2"
)

_TABLES = {"host": "nat", "router": "nat", "dsr": "mangle"}
_TITLES = {
    "host": "Turnaway on the MX itself: listed sources get the daemon on this host.",
    "router": "Turnaway on the router before the MX: listed sources get the diversion hosts.\n"
    "# Their way back to the Internet must pass this router.",
    "dsr": "Turnaway on the router before the MX: listed sources are routed to hosts that own\n"
    "# the MX's addresses too.  Their way back to the Internet must pass this router.",
}


def refuse_set(version: int, name: str) -> str:
    """The set of a list's sources."""
    return f"{PREFIX}-refuse-{name}{version}"


def rules(plan: Plan) -> str:
    """The whole script.  Run again, it keeps the sources."""
    if plan.choose == "source" and max(len(plan.hosts4), len(plan.hosts6)) > MOST_NODES:
        raise Failure(
            USAGE, f"--for iptables: expected at most {MOST_NODES} hosts with --choose source"
        )
    lines = [
        "#!/bin/sh",
        f"# {_TITLES[plan.role]}",
        "# Running it again keeps the sources, and never touches other chains.  ta-refuse-*:",
        "# filled by `turnawayctl firewall sets --for iptables`; ta-auto4, ta-auto6: what has a",
        "# lifetime (ipset add, fail2ban, CrowdSec).",
        heading(plan),
        "set -eu",
        *(["# " + " ".join(words) for words in routes(plan)] if plan.role == "dsr" else []),
        "ipset restore <<'END'",
    ]
    for version in families(plan):
        allow = plan.allow4 if version == 4 else plan.allow6
        lines += _replaced(f"{PREFIX}-allow{version}", version, map(prefix, allow))
        lines += [_created(refuse_set(version, one.name), version) for one in plan.lists]
        lines.append(_created(f"{PREFIX}-auto{version}", version, f" timeout {plan.lifetime}"))
    lines.append("END")
    for version in families(plan):
        lines += _family(plan, version)
    return "\n".join([*lines, ""])


def sets(plan: Plan, sources: Sources) -> str:
    """The file for `ipset restore` that replaces every list's sources.

    A list that `sources` does not have becomes empty.
    """
    lines = ["# Sources that are diverted, for `ipset restore`.  Each set is swapped in whole."]
    for one in plan.lists:
        four, six = sources.get(one.name, ([], []))
        for version, found in ((4, four), (6, six)):
            if version in families(plan):
                name = refuse_set(version, one.name)
                lines += _replaced(name, version, cidrs(found, version))
    return "\n".join([*lines, ""])


def cidrs_of(plan: Plan, sources: Sources, name: str) -> list[str]:
    """A list's networks, of the families that are diverted: for tables that hold both."""
    found = sources.get(name, ([], []))
    return [
        one for version in families(plan) for one in cidrs(found[0 if version == 4 else 1], version)
    ]


def _created(name: str, version: int, more: str = "") -> str:
    family = "inet" if version == 4 else "inet6"
    return f"create {name} hash:net family {family} maxelem {MOST_ENTRIES}{more} -exist"


def _replaced(name: str, version: int, networks: Iterable[str]) -> list[str]:
    """The set with these elements and no others, at once."""
    new = f"{name}-new"
    return [
        _created(name, version),
        _created(new, version),
        f"flush {new}",
        *(f"add {new} {one}" for one in networks),
        f"swap {new} {name}",
        f"destroy {new}",
    ]


def _family(plan: Plan, version: int) -> list[str]:
    command = "iptables" if version == 4 else "ip6tables"
    hook = "INPUT" if plan.role == "host" else "FORWARD"
    table = _TABLES[plan.role]
    return [
        f"{command}-restore --wait 5 --noflush <<'END'",
        f"*{table}",
        *(_marking(plan, version) if plan.role == "dsr" else _translating(plan, version)),
        "COMMIT",
        "*filter",
        *_guarding(plan, version),
        "COMMIT",
        "END",
        _jump(command, table, "PREROUTING", "-p tcp -j TURNAWAY"),
        _jump(command, "filter", hook, "-p tcp -j TURNAWAY-GUARD"),
        "# Refused flows are forgotten by conntrack in seconds, not two minutes.  The name is short:",
        "# iptables-save of 1.8.9 prints four characters of it.",
        "if command -v nfct >/dev/null; then",
        f"nfct get timeout ta{version} >/dev/null 2>&1 ||",
        f"\tnfct add timeout ta{version} {'inet' if version == 4 else 'inet6'} tcp {TIMEOUTS}",
        f"{command}-restore --wait 5 --noflush <<'END'",
        "*raw",
        *_forgetting(plan, version),
        "COMMIT",
        "END",
        _jump(command, "raw", "PREROUTING", "-p tcp -j TURNAWAY"),
        "fi",
    ]


def _jump(command: str, table: str, hook: str, rule: str) -> str:
    """A rule that is there once, before all others."""
    own = f"{command} --wait 5 --table {table}"
    return f"{own} --check {hook} {rule} 2>/dev/null || {own} --insert {hook} {rule}"


def _calling(plan: Plan, version: int, then: str) -> list[str]:
    """Who calls the MX, by a first packet from where the Internet is."""
    lines = [":TURNAWAY - [0:0]", ":TURNAWAY-LISTS - [0:0]"]
    inside = f"-i {plan.wan} " if plan.wan else ""
    for mx in plan.mx4 if version == 4 else plan.mx6:
        for ports in _ports(plan.ports):
            lines.append(f"-A TURNAWAY {inside}-d {mx} -p tcp {ports} --syn {then}")
    lines.append(f"-A TURNAWAY-LISTS -m set --match-set {PREFIX}-allow{version} src -j RETURN")
    return lines


def _sources(plan: Plan, version: int) -> list[tuple[str, int]]:
    """(match, the daemon's port), in the order they are tried."""
    found = [(refuse_set(version, one.name), one.name, one.port) for one in plan.lists]
    found.append((f"{PREFIX}-auto{version}", "auto", plan.auto_port))
    return [
        (f"-p tcp -m set --match-set {name} src -m comment --comment turnaway-{label}", port)
        for name, label, port in found
    ]


def _translating(plan: Plan, version: int) -> list[str]:
    """Roles host and router: the first packet of a flow is given another destination."""
    hosts = plan.hosts4 if version == 4 else plan.hosts6
    pools = plan.diversion_ports if len(hosts) > 1 else ()
    lines = [f":TURNAWAY-{port} - [0:0]" for port in pools]
    lines += _calling(plan, version, "-j TURNAWAY-LISTS")
    for match, port in _sources(plan, version):
        target = f"TURNAWAY-{port}" if pools else _destination(hosts, port)
        lines.append(f"-A TURNAWAY-LISTS {match} -j {target}")
    for port in pools:
        for number in range(len(hosts)):
            choice = _choice(plan, number, len(hosts))
            target = _destination(hosts[number : number + 1], port)
            lines.append(f"-A TURNAWAY-{port} -p tcp {choice}-j {target}")
    return lines


def _destination(hosts: Iterable[object], port: int) -> str:
    """The port alone changes on this host; else the address too, and then it is one."""
    host = "".join(f"[{one}]" if ":" in str(one) else str(one) for one in hosts)
    return f"DNAT --to-destination {host}:{port}"


def _choice(plan: Plan, number: int, hosts: int) -> str:
    """One host of those that are left: the last one takes whoever comes so far."""
    if number == hosts - 1:
        return ""
    if plan.choose == "turn":
        return f"-m statistic --mode nth --every {hosts - number} --packet 0 "
    return (
        f"-m cluster --cluster-total-nodes {hosts} --cluster-local-node {number + 1}"
        f" --cluster-hash-seed {SEED} "
    )


def _marking(plan: Plan, version: int) -> list[str]:
    """Role dsr: the flow is marked once, its packets are routed by the mark."""
    mark = f"{plan.mark:#x}"
    lines = _calling(plan, version, "-m conntrack --ctstate NEW -j TURNAWAY-LISTS")
    for match, _ in _sources(plan, version):
        lines.append(f"-A TURNAWAY-LISTS {match} -j CONNMARK --set-mark {mark}")
    lines.append(f"-A TURNAWAY -i {plan.wan} -m connmark --mark {mark} -j MARK --set-mark {mark}")
    return lines


def _guarding(plan: Plan, version: int) -> list[str]:
    """Nobody reaches the daemon's ports unless diverted there."""
    lines = [":TURNAWAY-GUARD - [0:0]"]
    for ports in _ports(plan.diversion_ports):
        if plan.role == "host":
            # Before what an INPUT chain with the policy DROP would do to them.
            diverted = "-m conntrack --ctstate DNAT -j ACCEPT"
            lines.append(f"-A TURNAWAY-GUARD -p tcp {ports} {diverted}")
            lines.append(f"-A TURNAWAY-GUARD ! -i lo -p tcp {ports} -j {_REJECT}")
            continue
        for host in plan.hosts4 if version == 4 else plan.hosts6:
            stranger = f"-m conntrack ! --ctstate DNAT -j {_REJECT}"
            lines.append(f"-A TURNAWAY-GUARD -i {plan.wan} -d {host} -p tcp {ports} {stranger}")
    return lines


_REJECT = "REJECT --reject-with tcp-reset"


def _forgetting(plan: Plan, version: int) -> list[str]:
    lines = _calling(plan, version, "-j TURNAWAY-LISTS")
    for match, _ in _sources(plan, version):
        lines.append(f"-A TURNAWAY-LISTS {match} -j CT --timeout ta{version}")
    return lines


def _ports(numbers: tuple[int, ...]) -> list[str]:
    """Matches that together are these ports."""
    if len(numbers) == 1:
        return [f"--dport {numbers[0]}"]
    return [
        f"-m multiport --dports {','.join(map(str, numbers[at : at + MOST_PORTS]))}"
        for at in range(0, len(numbers), MOST_PORTS)
    ]
