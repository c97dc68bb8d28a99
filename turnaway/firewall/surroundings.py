"""The host that rules are for: whatever on it would keep them from working.

Owns: the reading, never the changing, of nftables' other tables, addresses,
routes, kernel settings, conntrack and listening sockets, and what is said about them in
plain words.  Each look is a function from a plan to findings; one that needs
root finds that it was not done, and says so.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_address
from typing import Any, Literal

from turnaway.exits import NO_PERMISSION, Failure
from turnaway.firewall import live, programs
from turnaway.firewall.nftables import TABLE, families, routes
from turnaway.firewall.plan import Address, Plan

PRIORITY = -105  # of our chain of NAT: dstnat - 5
LASTING = 7  # seconds that conntrack knows a refused flow: the handshake, the close, TIME_WAIT
FULL = 80  # percent of conntrack's table that may be in use
PROBE = 3.0  # seconds for a diversion host's banner
UNICAST6 = IPv6Network("2000::/3")  # RFC 4291 2.4
LISTEN = "0A"  # proc_net_tcp

State = Literal["well", "wrong", "unseen"]


@dataclass(frozen=True, slots=True)
class Finding:
    state: State
    said: str


def well(said: str) -> Finding:
    return Finding("well", said)


def wrong(said: str) -> Finding:
    return Finding("wrong", said)


def unseen(said: str) -> Finding:
    return Finding("unseen", said)


def look(plan: Plan, rate: int) -> Iterator[Finding]:
    """Everything, in order; `rate` is of refused connections a second."""
    looks: list[Callable[[Plan], Iterable[Finding]]] = [addresses, interfaces]
    if plan.role == "host":
        looks += [listeners]
    else:
        looks += [forwarding, ways, hosts]
    if plan.role == "dsr":
        looks += [marked]
    else:
        looks += [earlier_chains]
    for one in [*looks, dropping, lambda plan: capacity(plan, rate), answers]:
        try:
            yield from one(plan)
        except Failure as failure:
            if failure.status != NO_PERMISSION:
                raise
            name = (one.__doc__ or "conntrack").partition("\n")[0].rstrip(".")
            yield unseen(f"not looked at, needs root: {name}")


def _ip(*arguments: str) -> list[dict[str, Any]]:
    """What ip(8) has, as JSON; nothing where it complains."""
    done = programs.run("ip", "-json", *arguments)
    if done.returncode != 0 or not done.stdout.strip():
        return []
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _sysctl(name: str) -> int | None:
    try:
        with open(f"/proc/sys/{name.replace('.', '/')}") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _own() -> set[Address]:
    """The addresses of this host."""
    return {
        ip_address(one["local"])
        for interface in _ip("address", "show")
        for one in interface.get("addr_info", ())
        if "local" in one
    }


def gateways() -> list[str]:
    """The next hops of this host's default routes."""
    found = []
    if not programs.there("ip"):  # no Linux: rules may be made anywhere
        return []
    for family in ("-4", "-6"):
        for route in _ip(family, "route", "show", "default"):
            for hop in (route, *route.get("nexthops", ())):
                if "gateway" in hop:
                    found.append(hop["gateway"])
    return sorted(set(found))


# Role host


def addresses(plan: Plan) -> Iterator[Finding]:
    """The addresses that are called."""
    own = _own()
    for one in (*plan.mx4, *plan.mx6):
        if plan.role == "host" and one not in own:
            yield wrong(
                f"{one} (--mx) is no address of this host; expected one that it has, or the role"
                " router"
            )
        elif plan.role != "host" and one in own:
            yield wrong(f"{one} (--mx) is this host's own; expected the role host")
    reachable = [one for one in own if one in UNICAST6]
    if plan.role == "host" and not plan.mx6 and reachable:
        yield wrong(
            f"this host has the IPv6 address {min(reachable)}, and --no-ipv6 leaves it undiverted:"
            " whoever is refused over IPv4 walks in there; expected it in --mx"
        )


def interfaces(plan: Plan) -> Iterator[Finding]:
    """The interface to the Internet."""
    if plan.wan is None:
        return
    if plan.wan not in os.listdir("/sys/class/net") and not any(
        one.get("ifname") == plan.wan for one in _ip("link", "show")
    ):
        yield wrong(f"there is no interface {plan.wan} (--wan): nothing would be diverted")


def listeners(plan: Plan) -> Iterator[Finding]:
    """The daemon's sockets."""
    bound = {4: set(_listening("tcp")), 6: set(_listening("tcp6"))}
    for version in families(plan):
        everywhere = ip_address("0.0.0.0" if version == 4 else "::")
        for port in plan.diversion_ports:
            there = {one for one, number in bound[version] if number == port}
            mx: tuple[Address, ...] = plan.mx4 if version == 4 else plan.mx6
            missing = [one for one in mx if one not in there and everywhere not in there]
            place = f"0.0.0.0:{port}" if version == 4 else f"[::]:{port}"
            if not missing:
                yield well(f"port {port} is listened on for IPv{version}")
            elif there and all(one.is_loopback for one in there):
                yield wrong(
                    f"port {port} is listened on at {min(there)} alone, where no diverted flow"
                    f" arrives; expected {place}"
                )
            else:
                yield wrong(
                    f"nobody listens on port {port} for {missing[0]}: diverted clients would be"
                    f" refused without a word; expected the daemon on {place}"
                )


def _listening(table: str) -> Iterator[tuple[Address, int]]:
    """Who is listened for, of /proc/net/tcp or tcp6."""
    try:
        with open(f"/proc/net/{table}") as file:
            lines = file.readlines()[1:]
    except OSError:
        return
    for line in lines:
        words = line.split()
        if words[3] == LISTEN:
            text, port = words[1].split(":")
            # Words of 32 bits in the machine's order.
            octets = b"".join(
                int(text[at : at + 8], 16).to_bytes(4, sys.byteorder)
                for at in range(0, len(text), 8)
            )
            yield ip_address(octets), int(port, 16)


# Roles router and dsr


def forwarding(plan: Plan) -> Iterator[Finding]:
    """Whether this host forwards."""
    for version in families(plan):
        name = "net.ipv4.ip_forward" if version == 4 else "net.ipv6.conf.all.forwarding"
        if _sysctl(name) == 0:
            yield wrong(f"{name} is 0: IPv{version} is not forwarded; expected 1")
        else:
            yield well(f"IPv{version} is forwarded")


def ways(plan: Plan) -> Iterator[Finding]:
    """The ways to the diversion hosts, and so back."""
    for one in plan.hosts:
        found = _ip("route", "get", str(one))
        if not found:
            yield wrong(f"there is no route to {one} (--to)")
            continue
        route = found[0]
        if route.get("type") == "local":
            yield wrong(f"{one} (--to) is this host's own; expected the role host")
        elif route.get("dev") == plan.wan:
            yield wrong(
                f"{one} (--to) is reached by {plan.wan}, the way to the Internet: its answers need"
                " not come back here; expected a host on another interface"
            )
        elif "gateway" in route:
            yield wrong(
                f"{one} (--to) is behind {route['gateway']}: its answers come back here only if"
                " that gateway sends them; expected a neighbour, or see `status` for answers"
            )


def hosts(plan: Plan) -> Iterator[Finding]:
    """What the diversion hosts say."""
    for one in plan.hosts:
        for port in plan.diversion_ports:
            place = f"[{one}]:{port}" if one.version == 6 else f"{one}:{port}"
            said = _banner(one, port)
            if said is None:
                yield wrong(
                    f"{place} does not answer: what is sent there is refused without a word, or"
                    " waits; expected the daemon there"
                )
            elif said[:1] not in (b"4", b"5"):
                yield wrong(f"{place} says {said[:40]!r}; expected a 4yz or 5yz greeting")
            else:
                yield well(f"{place} turns away")


def _banner(one: Address, port: int) -> bytes | None:
    try:
        with socket.create_connection((str(one), port), PROBE) as made:
            return made.recv(512)
    except OSError:
        return None


def marked(plan: Plan) -> Iterator[Finding]:
    """The rules and routes of marked flows."""
    for version in families(plan):
        commands = [" ".join(words) for words in routes(plan) if words[1] == f"-{version}"]
        rules = _ip(f"-{version}", "rule", "show")
        ours = [one for one in rules if _number(one.get("fwmark")) == plan.mark]
        table = str(plan.mark)
        if not any(one.get("table") == table for one in ours):
            yield wrong(
                f"IPv{version}: no rule sends the mark {plan.mark:#x} to table {table}; expected"
                f" `{commands[0]}`"
            )
        for one in ours:
            if one.get("table") != table:
                yield wrong(
                    f"IPv{version}: a rule sends the mark {plan.mark:#x} to table"
                    f" {one.get('table')}; expected another --mark"
                )
        if not _ip(f"-{version}", "route", "show", "table", table):
            yield wrong(
                f"IPv{version}: table {table} has no route: everybody reaches the MX; expected"
                f" `{commands[1]}`"
            )


def _number(text: Any) -> int | None:
    try:
        return int(str(text), 0)
    except ValueError:
        return None


# The rest of the firewall


def earlier_chains(plan: Plan) -> Iterator[Finding]:
    """Other chains of destination NAT."""
    found = False
    for one in _foreign("chain"):
        if one.get("hook") == "prerouting" and one.get("type") == "nat" and one["prio"] <= PRIORITY:
            found = True
            yield wrong(
                f"chain {one['name']} of table {one['family']} {one['table']} translates before us"
                f" (priority {one['prio']}): what it takes never comes here; expected above"
                f" {PRIORITY}"
            )
    if not found:
        yield well("no other destination NAT comes first")


def dropping(plan: Plan) -> Iterator[Finding]:
    """Other chains that drop."""
    hook = "input" if plan.role == "host" else "forward"
    ports = ", ".join(map(str, plan.diversion_ports))
    rules = list(_foreign("rule"))
    for one in _foreign("chain"):
        if one.get("hook") != hook or one.get("policy") != "drop":
            continue
        where = (one["family"], one["table"])
        text = json.dumps([rule for rule in rules if (rule["family"], rule["table"]) == where])
        if '"dnat"' in text or all(str(port) in text for port in plan.diversion_ports):
            continue
        yield wrong(
            f"chain {one['name']} of table {one['family']} {one['table']} drops what it does not"
            f" know, and an accept of ours does not change that; expected `tcp dport {ports} ct"
            " status dnat accept` in it"
        )


def _foreign(kind: str) -> Iterator[dict[str, Any]]:
    """Chains or rules of the tables that are not ours."""
    for one in programs.listed():
        if kind in one and (one[kind]["family"], one[kind]["table"]) != ("inet", TABLE):
            yield one[kind]


def capacity(plan: Plan, rate: int) -> Iterator[Finding]:
    """Room in conntrack."""
    found = live.conntrack()
    if found is None:
        yield unseen("conntrack is not in use yet: its room shows once the rules are loaded")
        return
    now, most = found
    expected = now + rate * LASTING
    if expected * 100 > most * FULL:
        yield wrong(
            f"{rate} refused connections a second make {expected} flows with the {now} known now,"
            f" and conntrack has room for {most}: when it is full, good mail is dropped too;"
            f" expected net.netfilter.nf_conntrack_max = {2 * expected}"
        )
    else:
        yield well(f"conntrack: {now} flows of {most}, {expected} at {rate} a second")


def answers(plan: Plan) -> Iterator[Finding]:
    """Whether diverted flows were answered."""
    if plan.role == "host" or not programs.loaded():
        return
    counts = live.answered()
    for version in families(plan):
        if version not in counts:  # what is loaded is of another role
            continue
        sent = sum(count for (_, number), count in live.packets().items() if number == version)
        back = counts[version]
        if sent and not back:
            yield wrong(
                f"IPv{version}: {sent} connections were diverted and none was answered by way of"
                " this router; on the diversion hosts, expected the way back to go by it"
            )
        elif sent:
            yield well(f"IPv{version}: {back} of {sent} diverted connections were answered")
