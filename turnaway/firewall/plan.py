"""What is to be diverted, where to, and who never: a `Plan`, checked as a whole.

Owns: the dataclasses that every generator of rules reads, and all that can be
wrong with them without a look at any firewall.  Everything comes in as the
text an operator wrote; `make` raises Failure (status 64) with every mistake at
once, each saying what would be right.  A made plan holds addresses, networks,
names and numbers only, so whatever a generator prints of it needs no quoting,
apart from the paths of lists.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from typing import Literal, TypeVar, cast

from turnaway.exits import USAGE, Failure
from turnaway.lists.ranges import Range

Role = Literal["host", "router", "dsr"]
Choose = Literal["turn", "source"]
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# Of each list's name: its ranges of IPv4 and of IPv6, sorted and disjoint.
Sources = Mapping[str, tuple[list[Range], list[Range]]]
T = TypeVar("T")

ROLES: tuple[Role, ...] = ("host", "router", "dsr")
CHOICES: tuple[Choose, ...] = ("turn", "source")
SUBMISSION = (465, 587)  # RFC 8314: the mail of one's own users, which is never diverted
MOST_HOSTS = 64
MOST_LISTS = 32
MOST_LIFETIME = 366 * 86400
LIFETIME = "1h"
MARK = 0x19

# Never diverted, whoever lists them.
LOOPBACK4 = IPv4Network("127.0.0.0/8")
LOOPBACK6 = IPv6Network("::1/128")
LINK_LOCAL6 = IPv6Network("fe80::/10")

_LIST_NAME = re.compile(r"[a-z][a-z0-9-]{0,14}")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of sources, and the port whose persona they are told by."""

    name: str  # letters, digits and hyphens: fit for the name of a set
    file: str  # the path as it was written; printable
    port: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is diverted, checked.  Addresses are sorted and unique; an empty tuple of
    one family means that nothing of that family is diverted, and somebody said so."""

    role: Role
    mx4: tuple[IPv4Address, ...]  # the addresses that are called
    mx6: tuple[IPv6Address, ...]
    ports: tuple[int, ...]  # the ports that are called; at least one
    lists: tuple[Listed, ...]  # earlier ones win; at least one
    auto_port: int  # where single addresses with a lifetime (auto4, auto6) are sent
    hosts4: tuple[IPv4Address, ...]  # diversion hosts, in the order given; none for role host
    hosts6: tuple[IPv6Address, ...]
    choose: Choose  # of several hosts: in turn, or by the source address
    wan: str | None  # only what comes in here is diverted; roles router and dsr have one
    allow4: tuple[IPv4Network, ...]  # never diverted; disjoint, own addresses among them
    allow6: tuple[IPv6Network, ...]
    lifetime: int  # seconds: of what the firewall lists by itself, unless told
    mark: int  # of role dsr: firewall mark, and number of the routing table

    @property
    def hosts(self) -> tuple[Address, ...]:
        """The diversion hosts, of both families."""
        return (*self.hosts4, *self.hosts6)

    @property
    def diversion_ports(self) -> tuple[int, ...]:
        """Where the daemon listens: unique, sorted."""
        return tuple(sorted({self.auto_port, *(one.port for one in self.lists)}))


class _Mistakes:
    """What is wrong, gathered, with the option that it stood in."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def add(self, option: str, said: object) -> None:
        self.said.append(f"{option}: {said}")

    def each(self, option: str, texts: Iterable[str], read: Callable[[str], T]) -> list[T]:
        """Those that `read` takes; its ValueErrors are mistakes."""
        found = []
        for text in texts:
            try:
                found.append(read(text))
            except ValueError as error:
                self.add(option, error)
        return found


def _split(texts: Iterable[str]) -> list[str]:
    """Values given several times, or with commas, or both."""
    return [part.strip() for text in texts for part in text.split(",")]


def address(text: str) -> Address:
    """One unicast address, without a port, prefix length or interface."""
    try:
        found = ip_address(text)
    except ValueError:
        raise ValueError(
            f"expected an address such as 198.51.100.25 or 2001:db8::25, got {text!r}"
        ) from None
    if isinstance(found, IPv6Address) and found.scope_id is not None:
        raise ValueError(f"expected an address without an interface, got {text!r}")
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        raise ValueError(f"{text!r} is an IPv4 address; expected {found.ipv4_mapped}")
    if found.is_unspecified or found.is_multicast or found == IPv4Address("255.255.255.255"):
        raise ValueError(f"expected the address of one host, got {text!r}")
    return found


def host_address(text: str) -> Address:
    """The address of a host that others reach, so not loopback."""
    found = address(text)
    if found.is_loopback or found.is_link_local:
        raise ValueError(f"expected an address that others can reach, got {text!r}")
    return found


def network(text: str) -> Network:
    """An address or a prefix, without bits beyond its length."""
    try:
        return ip_network(text)
    except ValueError:
        try:
            meant = ip_network(text, strict=False)
        except ValueError:
            raise ValueError(
                f"expected ADDRESS or ADDRESS/BITS, such as 198.51.100.0/24, got {text!r}"
            ) from None
    raise ValueError(f"{text!r} has bits beyond its length; expected {meant}")


def port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"expected a port, 1..65535, got {text!r}")
    return int(text)


def called_port(text: str) -> int:
    """A port that may be diverted."""
    found = port(text)
    if found in SUBMISSION:
        raise ValueError(
            f"{found} is where your own users submit their mail, and is never diverted;"
            " expected such as 25"
        )
    return found


def listed(text: str) -> Listed:
    """NAME=FILE:PORT."""
    name, equals, rest = text.partition("=")
    file, colon, end = rest.rpartition(":")
    if not (name and equals and file and colon):
        raise ValueError(
            f"expected NAME=FILE:PORT, such as spam=/etc/turnaway/spam.txt:2525, got {text!r}"
        )
    if not _LIST_NAME.fullmatch(name):
        raise ValueError(
            "the name of a list: expected a small letter, then at most 14 small letters, digits"
            f" or hyphens, got {name!r}"
        )
    if name == "auto":
        raise ValueError("auto4 and auto6 have that name already; expected another than 'auto'")
    if not file.isprintable():
        raise ValueError(f"list {name}: expected a path of printable characters, got {file!r}")
    try:
        return Listed(name, file, port(end))
    except ValueError as error:
        raise ValueError(f"list {name}: {error}") from None


def interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text):
        raise ValueError(f"expected the name of an interface, such as eth0, got {text!r}")
    return text


def lifetime(text: str) -> int:
    """90, 90s, 15m, 1h or 7d -> seconds."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd]?)", text)
    seconds = int(found[1]) * _UNITS[found[2] or "s"] if found else 0
    if not 1 <= seconds <= MOST_LIFETIME:
        raise ValueError(f"expected a time up to a year, such as 90s, 15m, 1h or 7d, got {text!r}")
    return seconds


def mark(text: str) -> int:
    """1..252: a firewall mark that is a routing table's number too (ip-route(8))."""
    try:
        found = int(text, 0)
    except ValueError:
        found = 0
    if not 1 <= found <= 252:
        raise ValueError(f"expected 1..252, got {text!r}")
    return found


def make(
    *,
    role: str,
    mx: Sequence[str],
    lists: Sequence[str],
    ports: Sequence[str] = ("25",),
    to: Sequence[str] = (),
    choose: str = "turn",
    wan: str | None = None,
    auto_port: str | None = None,
    allow: Sequence[str] = (),
    allowed: Sequence[Network] = (),
    gateways: Sequence[str] = (),
    ipv4: bool = True,
    ipv6: bool = True,
    lifetime_: str = LIFETIME,
    mark_: str = hex(MARK),
) -> Plan:
    """The plan for these words of an operator.

    `allowed` are networks that were read from files already.  Sequences of
    text may hold several values with commas between them, except `lists`.
    Raises Failure with every mistake.
    """
    wrong = _Mistakes()
    if role not in ROLES:
        wrong.add("--role", f"expected one of {', '.join(ROLES)}, got {role!r}")
    if choose not in CHOICES:
        wrong.add("--choose", f"expected one of {', '.join(CHOICES)}, got {choose!r}")
    called = wrong.each("--mx", _split(mx), host_address)
    hosts = wrong.each("--to", _split(to), host_address)
    called_ports = wrong.each("--port", _split(ports), called_port)
    found_lists = wrong.each("--list", lists, listed)
    allowing = wrong.each("--allow", _split(allow), network)
    ways = wrong.each("--gateway", _split(gateways), address)
    inside = wrong.each("--wan", [] if wan is None else [wan], interface)
    auto = wrong.each("--auto-port", [] if auto_port is None else [auto_port], port)
    seconds = wrong.each("--lifetime", [lifetime_], lifetime)
    marks = wrong.each("--mark", [mark_], mark)

    for everybody in (one for one in (*allowing, *allowed) if one.prefixlen == 0):
        wrong.add("--allow", f"{everybody} is everybody: nobody would be diverted")
    if not mx:
        wrong.add("--mx", "expected the address that is called; of both families if it has both")
    if not called_ports and not wrong.said:
        wrong.add("--port", "expected such as 25")
    if not lists:
        wrong.add("--list", "expected NAME=FILE:PORT, such as spam=/etc/turnaway/spam.txt:2525")
    if len(lists) > MOST_LISTS:
        wrong.add("--list", f"expected at most {MOST_LISTS}, got {len(lists)}")
    names = [one.name for one in found_lists]
    for name in sorted({name for name in names if names.count(name) > 1}):
        wrong.add("--list", f"{name} is there {names.count(name)} times; expected a name each")
    for one in (*found_lists, *(Listed("auto", "", number) for number in auto)):
        if role == "host" and one.port in called_ports:
            wrong.add(
                "--list" if one.file else "--auto-port",
                f"{one.name}: {one.port} is the port that is called, where the mail server is;"
                " expected the daemon's own, such as 2525",
            )
        if role == "dsr" and called_ports and one.port not in called_ports:
            wrong.add(
                "--list" if one.file else "--auto-port",
                f"{one.name}: in role dsr nothing is translated, so the port stays; expected"
                f" {called_ports[0]}, and on the diversion hosts rules of role host that tell the"
                " lists apart",
            )
    if not wrong.said:
        _families(wrong, role, called, hosts, ipv4, ipv6)
    _surroundings(wrong, role, hosts, called, wan)
    if wrong.said:
        raise Failure(USAGE, *wrong.said)

    own = [LOOPBACK4, LOOPBACK6, LINK_LOCAL6, *map(ip_network, (*called, *hosts, *ways))]
    never = [*own, *allowing, *allowed]
    return Plan(
        role=cast(Role, role),
        mx4=tuple(sorted({one for one in called if isinstance(one, IPv4Address)})),
        mx6=tuple(sorted({one for one in called if isinstance(one, IPv6Address)})),
        ports=tuple(sorted(set(called_ports))),
        lists=tuple(found_lists),
        auto_port=auto[0] if auto else found_lists[0].port,
        hosts4=tuple(one for one in hosts if isinstance(one, IPv4Address)),
        hosts6=tuple(one for one in hosts if isinstance(one, IPv6Address)),
        choose=cast(Choose, choose),
        wan=inside[0] if inside else None,
        allow4=tuple(collapse_addresses(one for one in never if isinstance(one, IPv4Network))),
        allow6=tuple(collapse_addresses(one for one in never if isinstance(one, IPv6Network))),
        lifetime=seconds[0],
        mark=marks[0],
    )


def _families(
    wrong: _Mistakes,
    role: str,
    called: Sequence[Address],
    hosts: Sequence[Address],
    ipv4: bool,
    ipv6: bool,
) -> None:
    """Neither family is left undiverted without a word."""
    for version, told, off, other in ((4, ipv4, "--no-ipv4", 6), (6, ipv6, "--no-ipv6", 4)):
        here = [one for one in called if one.version == version]
        if not here and told:
            wrong.add(
                "--mx",
                f"expected an IPv{version} address too, or whoever is refused over IPv{other} walks"
                f" in over IPv{version}; {off} says that the MX has none",
            )
        if here and not told:
            wrong.add(off, f"{here[0]} is an IPv{version} address; expected one or the other")
        there = [one for one in hosts if one.version == version]
        if here and role in ("router", "dsr") and hosts and not there:
            wrong.add("--to", f"expected an IPv{version} address for {here[0]} to be diverted to")
        if there and not here:
            wrong.add("--to", f"{there[0]} is IPv{version}, and no --mx is")


def _surroundings(
    wrong: _Mistakes,
    role: str,
    hosts: Sequence[Address],
    called: Sequence[Address],
    wan: str | None,
) -> None:
    """What a role must have, and what it cannot have."""
    if role == "host" and hosts:
        wrong.add("--to", "role host diverts to this host; expected --role router or no --to")
    if role in ("router", "dsr"):
        if not hosts:
            wrong.add("--to", f"role {role}: expected the addresses of the diversion hosts")
        if wan is None:
            wrong.add(
                "--wan",
                f"role {role}: expected the interface to the Internet; what comes from inside is"
                " not diverted, since the way back would not pass here",
            )
    for one in sorted({one for one in hosts if hosts.count(one) > 1}, key=str):
        wrong.add("--to", f"{one} is there {hosts.count(one)} times; expected a host once")
    for one in hosts:
        if one in called:
            wrong.add("--to", f"{one} is an --mx; expected another host's own address")
    for version in (4, 6):
        if (number := sum(one.version == version for one in hosts)) > MOST_HOSTS:
            wrong.add("--to", f"expected at most {MOST_HOSTS} hosts, got {number}")


def words(plan: Plan) -> list[str]:
    """The options that make this plan, in one order, addresses of the allow list spelt out."""
    found = ["--role", plan.role]
    for option, values in (
        ("--mx", (*plan.mx4, *plan.mx6)),
        ("--port", plan.ports),
        ("--to", (*plan.hosts4, *plan.hosts6)),
        ("--allow", (*plan.allow4, *plan.allow6)),
    ):
        if values:
            found += [option, ",".join(map(str, values))]
    for one in plan.lists:
        found += ["--list", f"{one.name}={one.file}:{one.port}"]
    found += ["--auto-port", str(plan.auto_port)]
    if plan.wan is not None:
        found += ["--wan", plan.wan]
    if not plan.mx4:
        found.append("--no-ipv4")
    if not plan.mx6:
        found.append("--no-ipv6")
    found += ["--choose", plan.choose, "--gateway", "none"]
    return [*found, "--lifetime", str(plan.lifetime), "--mark", hex(plan.mark)]


HEADING = "# plan: "


def heading(plan: Plan) -> str:
    """The plan as one line of comment, by which `check` knows what a file is for."""
    return HEADING + shlex.join(words(plan))


def recover(text: str) -> list[str] | None:
    """The words of the plan that a file was made from; None without a heading."""
    for line in text.splitlines():
        if line.startswith(HEADING):
            try:
                return shlex.split(line[len(HEADING) :])
            except ValueError:
                return None
    return None
