"""Plans: what may be asked of a firewall, and what is said of the rest.

Owns: the checks of turnaway.firewall.plan, and that a plan's heading makes the
plan again.
"""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from turnaway.exits import USAGE, Failure
from turnaway.firewall import command, plan
from turnaway.firewall.plan import Plan

MX = ["198.51.100.25,2001:db8:25::25"]
SPAM = ["spam=/etc/turnaway/spam.txt:2525"]


def made(**words: object) -> Plan:
    chosen: dict[str, object] = {"role": "host", "mx": MX, "lists": SPAM, **words}
    return plan.make(**chosen)  # type: ignore[arg-type]


def said(**words: object) -> tuple[str, ...]:
    with pytest.raises(Failure) as failure:
        made(**words)
    assert failure.value.status == USAGE
    return failure.value.reasons


def test_own_addresses_are_allowed_without_being_asked() -> None:
    one = made(
        role="router",
        wan="wan0",
        to=["198.51.100.31,2001:db8:25::31"],
        gateways=["198.51.100.1", "fe80::1"],
        allow=["203.0.113.0/24"],
    )
    assert [str(net) for net in one.allow4] == [
        *("127.0.0.0/8", "198.51.100.1/32", "198.51.100.25/32", "198.51.100.31/32"),
        "203.0.113.0/24",
    ]
    assert [str(net) for net in one.allow6] == [
        *("::1/128", "2001:db8:25::25/128", "2001:db8:25::31/128", "fe80::/10")
    ]


def test_what_is_asked_for_twice_is_there_once() -> None:
    one = made(mx=[*MX, *MX], ports=["25,26", "25"], allow=["203.0.113.0/25,203.0.113.128/25"])
    assert (len(one.mx4), len(one.mx6), one.ports) == (1, 1, (25, 26))
    assert "203.0.113.0/24" in map(str, one.allow4)


def test_single_addresses_go_where_the_first_list_goes() -> None:
    assert made().auto_port == 2525
    assert made(auto_port="2530").diversion_ports == (2525, 2530)


def test_neither_family_is_left_undiverted_without_a_word() -> None:
    (reason,) = said(mx=["198.51.100.25"])
    assert "expected an IPv6 address too" in reason
    assert "--no-ipv6" in reason
    (reason,) = said(mx=["2001:db8:25::25"])
    assert "expected an IPv4 address too" in reason
    assert made(mx=["198.51.100.25"], ipv6=False).mx6 == ()
    (reason,) = said(ipv6=False)
    assert reason.startswith("--no-ipv6: 2001:db8:25::25 is an IPv6 address")
    (reason,) = said(role="router", wan="wan0", to=["198.51.100.31"])
    assert reason.startswith("--to: expected an IPv6 address for 2001:db8:25::25")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"role": "bridge"}, "--role: expected one of host, router, dsr, got 'bridge'"),
        ({"mx": ()}, "--mx: expected the address that is called"),
        ({"mx": ["mx.example.com"]}, "--mx: expected an address such as 198.51.100.25"),
        ({"mx": ["127.0.0.1"]}, "--mx: expected an address that others can reach"),
        ({"mx": ["0.0.0.0"]}, "--mx: expected the address of one host"),
        ({"mx": ["::ffff:198.51.100.25"]}, "is an IPv4 address; expected 198.51.100.25"),
        ({"mx": ["fe80::1%eth0"]}, "without an interface"),
        ({"lists": ()}, "--list: expected NAME=FILE:PORT"),
        ({"lists": ["spam"]}, "--list: expected NAME=FILE:PORT"),
        ({"lists": ["spam=/x:"]}, "list spam: expected a port, 1..65535, got ''"),
        ({"lists": ["spam=/x:0"]}, "list spam: expected a port, 1..65535, got '0'"),
        ({"lists": ["a b=/x:2525"]}, "the name of a list: expected a small letter"),
        ({"lists": ['a"}=/x:2525']}, "the name of a list: expected a small letter"),
        ({"lists": ["auto=/x:2525"]}, "expected another than 'auto'"),
        ({"lists": ["spam=/x\n:2525"]}, "list spam: expected a path of printable characters"),
        ({"lists": [*SPAM, *SPAM]}, "--list: spam is there 2 times; expected a name each"),
        ({"lists": [f"a{n}=/x:2525" for n in range(33)]}, "--list: expected at most 32, got 33"),
        ({"lists": ["spam=/x:25"]}, "spam: 25 is the port that is called"),
        ({"auto_port": "25"}, "--auto-port: auto: 25 is the port that is called"),
        ({"ports": ["587"]}, "587 is where your own users submit their mail"),
        ({"ports": ["25,465"]}, "465 is where your own users submit their mail"),
        ({"ports": ["smtp"]}, "--port: expected a port, 1..65535, got 'smtp'"),
        ({"to": ["198.51.100.31"]}, "--to: role host diverts to this host"),
        ({"role": "router", "wan": "wan0"}, "--to: role router: expected the addresses"),
        ({"role": "dsr", "to": ["198.51.100.31"]}, "--wan: role dsr: expected the interface"),
        ({"wan": 'eth0" accept'}, "--wan: expected the name of an interface"),
        ({"wan": "a" * 16}, "--wan: expected the name of an interface"),
        ({"allow": ["198.51.100.1/24"]}, "has bits beyond its length; expected 198.51.100.0/24"),
        ({"allow": ["0.0.0.0/0"]}, "--allow: 0.0.0.0/0 is everybody"),
        ({"allow": ["everybody"]}, "--allow: expected ADDRESS or ADDRESS/BITS"),
        ({"lifetime_": "0"}, "--lifetime: expected a time up to a year"),
        ({"lifetime_": "367d"}, "--lifetime: expected a time up to a year"),
        ({"mark_": "0"}, "--mark: expected 1..252, got '0'"),
        ({"mark_": "253"}, "--mark: expected 1..252"),
        ({"choose": "best"}, "--choose: expected one of turn, source, got 'best'"),
    ],
)
def test_what_is_wrong_is_said(words: dict[str, object], reason: str) -> None:
    assert any(reason in one for one in said(**words)), said(**words)


def test_diversion_hosts_that_cannot_be() -> None:
    router = {"role": "router", "wan": "wan0"}
    both = "198.51.100.31,2001:db8:25::31"
    assert "--to: 198.51.100.31 is there 2 times; expected a host once" in said(
        **router, to=[both, "198.51.100.31"]
    )
    assert "--to: 198.51.100.25 is an --mx; expected another host's own address" in said(
        **router, to=[both, "198.51.100.25"]
    )
    many = ",".join(f"198.51.101.{n}" for n in range(1, 66))
    assert "--to: expected at most 64 hosts, got 65" in said(**router, to=["2001:db8::1", many])


def test_where_nothing_is_translated_the_port_stays() -> None:
    (reason,) = said(role="dsr", wan="wan0", to=["198.51.100.31,2001:db8::31"])
    assert "the port stays; expected 25" in reason


def test_every_mistake_is_said_at_once() -> None:
    reasons = said(role="x", mx=["y"], lists=["z"], ports=["587"], wan="a b", allow=["b"])
    assert [reason.partition(":")[0] for reason in reasons] == [
        *("--role", "--mx", "--port", "--list", "--allow", "--wan")
    ]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("366d", 31622400)]
)
def test_lifetimes(text: str, seconds: int) -> None:
    assert plan.lifetime(text) == seconds


four = some.ip_addresses(v=4, network="198.51.100.0/24").map(str)
six = some.ip_addresses(v=6, network="2001:db8::/32").map(str)
path = some.text(string.printable.replace("\n", "").replace("\r", ""), min_size=1, max_size=20)


@settings(max_examples=60)
@given(
    role=some.sampled_from(plan.ROLES),
    mx=some.tuples(four, six),
    hosts=some.tuples(some.lists(four, min_size=1, max_size=3, unique=True), six),
    file=path.filter(str.isprintable),
    choose=some.sampled_from(plan.CHOICES),
    seconds=some.integers(1, plan.MOST_LIFETIME),
    mark=some.integers(1, 252),
)
def test_a_heading_makes_its_plan_again(
    role: str,
    mx: tuple[str, str],
    hosts: tuple[list[str], str],
    file: str,
    choose: str,
    seconds: int,
    mark: int,
) -> None:
    others = [one for one in (*hosts[0], hosts[1]) if one not in mx]
    there = {one.count(":") > 0 for one in others}
    if role != "host" and there != {True, False}:
        return
    one = plan.make(
        role=role,
        mx=mx,
        lists=[f"spam={file}:{25 if role == 'dsr' else 2525}"],
        to=[] if role == "host" else others,
        wan="wan0",
        choose=choose,
        lifetime_=str(seconds),
        mark_=str(mark),
        gateways=["198.51.100.1"],
    )
    heading = plan.heading(one)
    assert "\n" not in heading
    words = plan.recover(f"#!/usr/sbin/nft -f\n{heading}\ntable inet turnaway {{\n}}\n")
    assert words is not None
    assert command.planned(command.told(words)) == one


def test_a_file_without_a_heading_has_no_plan() -> None:
    assert plan.recover("table inet turnaway {\n}\n") is None
    assert plan.recover("# plan: --mx 'unclosed\n") is None
