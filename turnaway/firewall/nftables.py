"""nftables: a plan, and the sources of its lists, as text for nft(8).

Owns: `table inet turnaway`, which is all that these rules make or change.
`rules` declares it, empties what is decided by the plan and fills it anew, in
one transaction; the sets of sources (`refuse*`, `auto*`) and the counters stay
as they are.  `sets` replaces the sources, again in one transaction, so there
is no moment with an empty list.

Promises, and why (each was seen to fail otherwise):
- the SYN alone decides, so a session that is open is never decided again;
- `dnat to :PORT` changes the port alone, so the daemon knows who was called;
- refused flows are forgotten by conntrack in seconds, not the two minutes of
  TIME_WAIT that fill its table;
- a chain of ours comes before other destination NAT, which sits at dstnat;
- nothing with a lifetime stands in an interval set, and none is merged by nft.

Text for nft 1.0.6 and later: a brace closes on a line of its own, and `dnat`
has its match of the port in the same rule.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from turnaway.firewall.plan import Plan, Sources, heading
from turnaway.lists.ranges import cidrs

TABLE = "turnaway"  # family inet
SYN = "tcp flags syn / fin,syn,rst,ack"
SEED = "0x7a11"  # of the hash that chooses a host: any number, the same on every load
PER_LINE = 8  # elements
# Seconds, by state: a banner and a close take one or two round trips.
TIMEOUTS = (
    "syn_sent : 20, syn_recv : 20, established : 120, fin_wait : 10, close_wait : 10,"
    " last_ack : 10, time_wait : 5, close : 2"
)
PREFIX64 = "ffff:ffff:ffff:ffff::"

_TITLES = {
    "host": "Turnaway on the MX itself: listed sources get the daemon on this host.",
    "router": "Turnaway on the router before the MX: listed sources get the diversion hosts.\n"
    "# Their way back to the Internet must pass this router.",
    "dsr": "Turnaway on the router before the MX: listed sources are routed to hosts that own\n"
    "# the MX's addresses too.  Their way back to the Internet must pass this router.",
}


def families(plan: Plan) -> tuple[int, ...]:
    """4, 6 or both: of what is diverted."""
    return tuple(version for version, mx in ((4, plan.mx4), (6, plan.mx6)) if mx)


def refuse_set(version: int, name: str) -> str:
    """The set of a list's sources."""
    return f"refuse{version}_{name}"


def rules(plan: Plan) -> str:
    """The whole file.  Loading it again keeps sources and counters."""
    return "\n".join(
        [
            "#!/usr/sbin/nft -f",
            f"# {_TITLES[plan.role]}",
            "# One transaction.  Loading it again keeps the sources and the counters, and never",
            "# touches other tables.  refuse*: filled by `turnawayctl firewall sets`; auto4, auto6:",
            "# single addresses with a lifetime (`turnawayctl firewall add`, fail2ban, CrowdSec).",
            heading(plan),
            *(_routes(plan) if plan.role == "dsr" else []),
            f"table inet {TABLE} {{",
            *_declared(plan),
            "}",
            *_emptied(plan),
            *_filled(plan),
            f"table inet {TABLE} {{",
            *(_marking(plan) if plan.role == "dsr" else _translating(plan)),
            *_guarding(plan),
            "}",
            "",
        ]
    )


def _declared(plan: Plan) -> list[str]:
    lines = []
    for version in families(plan):
        kind = f"type ipv{version}_addr;"
        lines += [
            f"\tset mx{version} {{ {kind} }}",
            f"\tset allow{version} {{ {kind} flags interval; }}",
            f"\tset auto{version} {{ {kind} flags timeout; }}",
            f"\tcounter auto_refused{version} {{ }}",
        ]
        for one in plan.lists:
            name = refuse_set(version, one.name)
            lines.append(f"\tset {name} {{ {kind} flags interval; }}")
            lines.append(f"\tcounter {_counter(version, one.name)} {{ }}")
        if hosts := _hosts(plan, version):
            lines.append(f"\tset hosts{version} {{ {kind} }}")
            lines.append(f"\tcounter answered{version} {{ }}")
            if len(hosts) > 1 and plan.role == "router":
                daddr = "ip daddr" if version == 4 else "ip6 daddr"
                lines.append(
                    f"\tmap pool{version} {{ typeof numgen inc mod {len(hosts)} : {daddr}; }}"
                )
        lines += [
            f"\tct timeout goaway{version} {{",
            "\t\tprotocol tcp",
            f"\t\tl3proto {'ip' if version == 4 else 'ip6'}",
            f"\t\tpolicy = {{ {TIMEOUTS} }}",
            "\t}",
        ]
    if plan.role == "dsr":
        lines.append("\tchain divert { type filter hook prerouting priority mangle; }")
        lines.append("\tchain choose { }")
    else:
        lines.append("\tchain divert { type nat hook prerouting priority dstnat - 5; }")
    hook = "input" if plan.role == "host" else "forward"
    lines.append(f"\tchain guard {{ type filter hook {hook} priority filter - 5; }}")
    return lines


def hooks(plan: Plan) -> dict[str, tuple[str, str]]:
    """(type, hook) of each base chain; a chain that is loaded can change neither."""
    return {
        "divert": ("filter" if plan.role == "dsr" else "nat", "prerouting"),
        "guard": ("filter", "input" if plan.role == "host" else "forward"),
    }


def _emptied(plan: Plan) -> list[str]:
    lines = [f"flush chain inet {TABLE} divert", f"flush chain inet {TABLE} guard"]
    if plan.role == "dsr":
        lines.append(f"flush chain inet {TABLE} choose")
    for version in families(plan):
        lines.append(f"flush set inet {TABLE} mx{version}")
        lines.append(f"flush set inet {TABLE} allow{version}")
        if hosts := _hosts(plan, version):
            lines.append(f"flush set inet {TABLE} hosts{version}")
            if len(hosts) > 1 and plan.role == "router":
                lines.append(f"flush map inet {TABLE} pool{version}")
    return lines


def _filled(plan: Plan) -> list[str]:
    lines = []
    for version in families(plan):
        mx = plan.mx4 if version == 4 else plan.mx6
        allow = plan.allow4 if version == 4 else plan.allow6
        lines += _elements(f"mx{version}", map(str, mx))
        lines += _elements(f"allow{version}", map(prefix, allow))
        if hosts := _hosts(plan, version):
            lines += _elements(f"hosts{version}", hosts)
            if len(hosts) > 1 and plan.role == "router":
                slots = (f"{number} : {host}" for number, host in enumerate(hosts))
                lines += _elements(f"pool{version}", slots)
    return lines


def _translating(plan: Plan) -> list[str]:
    """Roles host and router: the first packet of a flow is given another destination."""
    lines = [
        "\t# The SYN alone decides, so a session that is open is never decided again.",
        "\tchain divert {",
        *([f'\t\tiifname != "{plan.wan}" return'] if plan.wan else []),
        f"\t\ttcp dport != {_ports(plan.ports)} return",
        "\t\ttcp flags & (fin | syn | rst | ack) != syn return",
        *_passing(plan),
    ]
    called = f"tcp dport {_ports(plan.ports)}"
    for version, source, counter, number in _sources(plan):
        lines.append(
            f"\t\t{source} {called} counter name {counter}"
            f' ct timeout set "goaway{version}" dnat {_destination(plan, version, number)}'
        )
    return [*lines, "\t}"]


def _marking(plan: Plan) -> list[str]:
    """Role dsr: the flow is marked once, its packets are routed by the mark."""
    mark = f"{plan.mark:#x}"
    lines = [
        "\t# Routes are chosen packet by packet: the flow's mark keeps the choice of its SYN.",
        "\tchain divert {",
        f'\t\tiifname != "{plan.wan}" return',
        f"\t\ttcp dport {_ports(plan.ports)} {SYN} ct state new jump choose",
        f"\t\tct mark {mark} meta mark set {mark}",
        "\t}",
        "\tchain choose {",
        *_passing(plan),
    ]
    for version, source, counter, _ in _sources(plan):
        lines.append(
            f'\t\t{source} counter name {counter} ct timeout set "goaway{version}"'
            f" ct mark set {mark} return"
        )
    return [*lines, "\t}"]


def _guarding(plan: Plan) -> list[str]:
    """Nobody reaches the daemon's ports unless diverted there."""
    lines = [
        "\t# The daemon's ports are for diverted flows, not for the whole world.",
        "\tchain guard {",
    ]
    ports = _ports(plan.diversion_ports)
    stranger = "ct status & dnat == 0 reject with tcp reset"
    if plan.role == "host":
        lines.append(f'\t\ttcp dport {ports} iifname != "lo" {stranger}')
        return [*lines, "\t}"]
    for version in families(plan):
        daddr = _field(version, "daddr")
        lines.append(
            f'\t\tiifname "{plan.wan}" {daddr} @hosts{version} tcp dport {ports} {stranger}'
        )
    # A SYN-ACK on its way out: a diversion host is alive, and its way back passes here.
    ours = "ct status & dnat != 0" if plan.role == "router" else f"ct mark {plan.mark:#x}"
    for version in families(plan):
        saddr = f"{_field(version, 'saddr')} @{'hosts' if plan.role == 'router' else 'mx'}{version}"
        lines.append(
            f"\t\t{saddr} tcp flags & (syn | ack) == (syn | ack) ct direction reply {ours}"
            f" counter name answered{version}"
        )
    return [*lines, "\t}"]


def _passing(plan: Plan) -> list[str]:
    """What is not ours: other addresses, and who is allowed."""
    lines = []
    # In role dsr each test decides for its own family; a family that is not
    # diverted has no rule that could match.
    for version in families(plan):
        lines.append(f"\t\t{_field(version, 'daddr')} != @mx{version} return")
    for version in families(plan):
        lines.append(f"\t\t{_field(version, 'saddr')} @allow{version} return")
    return lines


def _sources(plan: Plan) -> list[tuple[int, str, str, int]]:
    """(family, match, counter, the daemon's port), in the order they are tried."""
    found = []
    for one in plan.lists:
        for version in families(plan):
            saddr = _field(version, "saddr")
            match = f"{saddr} @{refuse_set(version, one.name)}"
            found.append((version, match, _counter(version, one.name), one.port))
    for version in families(plan):
        counter = f"auto_refused{version}"
        saddr = _field(version, "saddr")
        found.append((version, f"{saddr} @auto{version}", counter, plan.auto_port))
        if version == 6:
            # An element whose last 64 bits are 0 stands for its /64: no host has
            # that address (RFC 4291 2.6.1), and a set with lifetimes holds no ranges.
            match = f"ip6 saddr & {PREFIX64} @auto6"
            found.append((version, match, counter, plan.auto_port))
    return found


def _destination(plan: Plan, version: int, number: int) -> str:
    hosts = _hosts(plan, version)
    if not hosts:
        return f"to :{number}"
    ip = "ip" if version == 4 else "ip6"
    if len(hosts) == 1:
        host = hosts[0] if version == 4 else f"[{hosts[0]}]"
        return f"{ip} to {host}:{number}"
    if plan.choose == "turn":
        slot = f"numgen inc mod {len(hosts)}"
    else:
        slot = f"jhash {ip} saddr mod {len(hosts)} seed {SEED}"
    return f"{ip} to {slot} map @pool{version}:{number}"


def _routes(plan: Plan) -> list[str]:
    """The commands that role dsr needs besides, as comments."""
    return [
        "# These rules mark; the routes are the network's own, kept by what configures it:",
        *(f"#   {' '.join(words)}" for words in routes(plan)),
    ]


def routes(plan: Plan) -> list[list[str]]:
    """Role dsr: the words of each ip(8) and sysctl(8) command, to be run by whoever may.

    The more specific table comes first; while it is empty, the main one, and
    so the real MX, is what is left.
    """
    mark, table = f"{plan.mark:#x}", str(plan.mark)
    found = []
    for version in families(plan):
        ip = ["ip", f"-{version}"]
        hosts = _hosts(plan, version)
        found.append([*ip, "rule", "add", "pref", "100", "fwmark", mark, "lookup", table])
        ways = [["nexthop", "via", host] for host in hosts] if len(hosts) > 1 else []
        one = ["via", hosts[0]] if len(hosts) == 1 else []
        found.append(
            [
                *ip,
                "route",
                "replace",
                "default",
                "table",
                table,
                *one,
                *(w for way in ways for w in way),
            ]
        )
        if ways:
            # Layer 4, so that a source's connections spread too.
            key = f"net.ipv{version}.fib_multipath_hash_policy=1"
            found.append(["sysctl", "-w", key])
    return found


def sets(plan: Plan, sources: Sources) -> str:
    """The file that replaces every list's sources.

    A list that `sources` does not have becomes empty.
    """
    lines = [
        "#!/usr/sbin/nft -f",
        "# Sources that are diverted.  One transaction: all or nothing, never an empty list.",
    ]
    for one in plan.lists:
        four, six = sources.get(one.name, ([], []))
        for version, found in ((4, four), (6, six)):
            if version in families(plan):
                name = refuse_set(version, one.name)
                lines.append(f"flush set inet {TABLE} {name}")
                lines += _elements(name, cidrs(found, version))
    return "\n".join([*lines, ""])


def prefix(network: IPv4Network | IPv6Network) -> str:
    """A network as nft writes it: one address without its length."""
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return str(network)


def _hosts(plan: Plan, version: int) -> tuple[str, ...]:
    return tuple(map(str, plan.hosts4 if version == 4 else plan.hosts6))


def _counter(version: int, name: str) -> str:
    return f"refused{version}_{name}"


def _field(version: int, name: str) -> str:
    return f"{'ip' if version == 4 else 'ip6'} {name}"


def _ports(numbers: tuple[int, ...]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{{ {', '.join(map(str, numbers))} }}"


def _elements(name: str, elements: Iterable[str]) -> list[str]:
    """`add element`, or nothing for no elements, which nft would not take."""
    found = list(elements)
    if not found:
        return []
    lines = [f"add element inet {TABLE} {name} {{"]
    for at in range(0, len(found), PER_LINE):
        lines.append(f"\t{', '.join(found[at : at + PER_LINE])},")
    return [*lines, "}"]
