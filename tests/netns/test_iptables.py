"""iptables and ipset, as `turnawayctl firewall` prints them, in the kernel.

Owns: the rules of role host on the MX of mail.py, with both back ends of
iptables; and those of the roles router and dsr, between clients and two
diversion hosts that only say which of them they are.
"""

from __future__ import annotations

import os
import re
import shutil
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from namespaces import Lab, Namespace, ended
from running import need

from tests.netns.mail import BOTH, FOUR, SIX, Family, Mail, delivered, turned_away
from turnaway.firewall import iptables, plan
from turnaway.firewall.plan import Plan
from turnaway.lists.ranges import Range

MX = "198.51.100.25,198.51.100.26,2001:db8:25::25,2001:db8:25::26"
HOST = plan.make(
    role="host",
    mx=[MX],
    lists=["spam=spam.txt:2525", "worms=worms.txt:2525"],
    allow=["203.0.113.99"],
)
# 203.0.113.64/26 and 2001:db8:bad::/64, the origins of mail.py.
SPAM: dict[str, tuple[list[Range], list[Range]]] = {
    "spam": (
        [(0xCB007140, 0xCB00717F)],
        [(0x20010DB80BAD0000 << 64, (0x20010DB80BAD0000 << 64) + (1 << 64) - 1)],
    )
}


@pytest.fixture(params=["nft", "legacy"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A PATH where iptables is of one back end."""
    need("iptables", "ipset", "nfct", "conntrack")
    multi = shutil.which(f"xtables-{request.param}-multi")
    assert multi is not None
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("iptables", "ip6tables"):
        for end in ("", "-restore", "-save"):
            (folder / f"{name}{end}").symlink_to(multi)
    return f"{folder}:{os.environ['PATH']}"


def load(where: Namespace, path: str, wanted: Plan) -> None:
    where.run("env", f"PATH={path}", "sh", text=iptables.rules(wanted))


def fill(where: Namespace, wanted: Plan, **sources: tuple[list[Range], list[Range]]) -> None:
    where.run("ipset", "restore", text=iptables.sets(wanted, sources))


def saved(where: Namespace, path: str, family: Family) -> list[str]:
    """The rules, without what counts or changes with the time."""
    command = "iptables-save" if family.name == "4" else "ip6tables-save"
    text = where.run("env", f"PATH={path}", command).stdout
    return [line for line in text.splitlines() if line.startswith("-")]


@BOTH
def test_listed_are_turned_away_and_others_are_not(mail: Mail, family: Family, path: str) -> None:
    load(mail.mx, path, HOST)
    delivered(mail, family.listed, family.called)  # nobody is listed yet
    fill(mail.mx, HOST, **SPAM)
    assert "(554, b'" in turned_away(mail, family.listed, family.called, port=40_025)
    from_ = rf"from=\[{re.escape(family.listed)}\]:40025"
    called = re.escape(family.called)
    to = rf"to=\[{called}\]:25 via=\[{called}\]:2525"
    mail.daemon.syslog.wait_for(f"turned away {from_} {to} ")
    delivered(mail, family.unlisted, family.called)
    fill(mail.mx, HOST)
    delivered(mail, family.listed, family.called)


@BOTH
def test_loaded_again_nothing_is_there_twice(mail: Mail, family: Family, path: str) -> None:
    """And the sources stay, under an open session that must not be touched."""
    with ended(mail.client(family.listed, family.called)) as early:
        assert early.stdout is not None
        assert early.stdout.readline() == "open\n"
        fill(mail.mx, HOST, **SPAM)  # first: conntrack meets the session listed, in its middle
        load(mail.mx, path, HOST)
        once = saved(mail.mx, path, family)
        for _ in range(2):
            load(mail.mx, path, HOST)
        assert saved(mail.mx, path, family) == once
        assert "(554, b'" in turned_away(mail, family.listed, family.called)
        said, complained = early.communicate("go on\n", timeout=20)
    assert (early.returncode, said) == (0, "delivered\n"), complained


@BOTH
def test_what_has_a_lifetime_is_diverted_and_the_allowed_never(
    mail: Mail, family: Family, path: str
) -> None:
    load(mail.mx, path, HOST)
    mail.mx.run("ipset", "add", f"ta-auto{family.name}", family.origin, "timeout", "3600")
    assert "(554, b'" in turned_away(mail, family.listed, family.called)
    both = plan.make(role="host", mx=[MX], lists=["spam=s:2525"], allow=[FOUR.origin, SIX.origin])
    load(mail.mx, path, both)
    delivered(mail, family.listed, family.called)


@BOTH
def test_strangers_do_not_reach_the_daemons_port(mail: Mail, family: Family, path: str) -> None:
    """Also where the policy of INPUT is to drop, which diverted flows pass all the same."""
    command = "iptables" if family.name == "4" else "ip6tables"
    load(mail.mx, path, HOST)
    fill(mail.mx, HOST, **SPAM)
    for own in (family.listed, family.unlisted):
        with pytest.raises(ConnectionRefusedError):
            mail.clients.connect(family.called, 2525, source=own)
    # Neighbour discovery must pass, or no IPv6 does.
    mail.mx.run("env", f"PATH={path}", "ip6tables", "-A", "INPUT", "-p", "icmpv6", "-j", "ACCEPT")
    mail.mx.run("env", f"PATH={path}", command, "-P", "INPUT", "DROP")
    assert "(554, b'" in turned_away(mail, family.listed, family.called)


@BOTH
def test_refused_flows_are_soon_forgotten(mail: Mail, family: Family, path: str) -> None:
    load(mail.mx, path, HOST)
    fill(mail.mx, HOST, **SPAM)
    assert "(554, b'" in turned_away(mail, family.listed, family.called)
    delivered(mail, family.unlisted, family.called)
    listed = mail.mx.run("conntrack", "-L", "-f", f"ipv{family.name}", "-p", "tcp").stdout
    left = {
        own: int(seconds)
        for seconds, state, own in re.findall(r"tcp +6 (\d+) (\S+) src=(\S+)", listed)
        if state == "TIME_WAIT"
    }
    assert left.keys() == {family.listed, family.unlisted}, listed
    assert left[family.listed] <= 5
    assert left[family.unlisted] > 60


# Between clients and hosts


@dataclass
class Crossroads:
    """A router between clients, an MX, and two diversion hosts; each server says its name."""

    router: Namespace
    clients: Namespace
    hosts: list[Namespace]

    def call(self, family: Family, own: str, port: int = 0) -> str:
        """Who answers."""
        with self.clients.connect(family.called, 25, source=own) as one:
            return one.makefile().readline().strip()


class Greeter(socketserver.TCPServer):
    """Says its name, and the address that was called."""

    def __init__(self, where: Namespace, name: str, address: str, port: int) -> None:
        super().__init__((address, port), _Greeting, bind_and_activate=False)
        self.socket.close()
        self.socket = where.listen(address, port)
        self.name = name
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def server_close(self) -> None:
        self.shutdown()
        self._thread.join()
        super().server_close()


class _Greeting(socketserver.StreamRequestHandler):
    server: Greeter

    def handle(self) -> None:
        called, number = self.connection.getsockname()[:2]
        self.wfile.write(f"{self.server.name} {called} {number}\n".encode())


@pytest.fixture
def crossroads() -> Iterator[Crossroads]:
    need("iptables", "ipset", "sysctl")
    servers: list[Greeter] = []
    with Lab() as lab:
        router, clients = lab.namespace("router"), lab.namespace("clients")
        mx, hosts = lab.namespace("mx"), [lab.namespace("one"), lab.namespace("two")]
        lab.link(router, clients, at_one="wan0")
        # Who forwards, or answers from an address of lo, asks for neighbours by a
        # link-local address, which Lab's links have not.
        router.address(
            "wan0", "fe80::1/64", "203.0.113.1/24", "2001:db8:bad::1/64", "2001:db8:900d::1/64"
        )
        clients.address("eth0", "203.0.113.66/24", "203.0.113.10/24", "203.0.113.67/24")
        clients.address(
            "eth0", *(f"2001:db8:{own}/64" for own in ("bad::66", "bad::67", "900d::10"))
        )
        clients.route("203.0.113.1")
        clients.route("2001:db8:bad::1")
        for number, server in enumerate((mx, *hosts)):
            lab.link(router, server, at_one=f"lan{number}")
            router.address(
                f"lan{number}", "fe80::1/64", f"10.66.{number}.1/24", f"fd00:{number}::1/64"
            )
            server.address("eth0", "fe80::31/64", f"10.66.{number}.31/24", f"fd00:{number}::31/64")
            server.route(f"10.66.{number}.1")
            server.route(f"fd00:{number}::1")
            # The hosts own the MX's addresses too, for role dsr.
            server.address("lo", f"{FOUR.called}/32", f"{SIX.called}/128")
        router.route("10.66.0.31", f"{FOUR.called}/32")
        router.route("fd00:0::31", f"{SIX.called}/128")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for server, name in ((mx, "mx"), (hosts[0], "one"), (hosts[1], "two")):
            for address in ("0.0.0.0", "::"):
                servers += [Greeter(server, name, address, port) for port in (25, 2525)]
        try:
            yield Crossroads(router, clients, hosts)
        finally:
            for one in servers:
                one.server_close()


TO = "10.66.1.31,10.66.2.31,fd00:1::31,fd00:2::31"
CALLED = f"{FOUR.called},{SIX.called}"


def test_router_sends_the_listed_to_a_pool(crossroads: Crossroads, path: str) -> None:
    """Loaded again with another plan, the pool is that of the new one."""
    for choose in ("turn", "source"):
        wanted = plan.make(
            role="router", mx=[CALLED], lists=["spam=s:2525"], to=[TO], wan="wan0", choose=choose
        )
        load(crossroads.router, path, wanted)
        fill(crossroads.router, wanted, **SPAM)
        for family in (FOUR, SIX):
            said = [crossroads.call(family, family.listed) for _ in range(6)]
            names = Counter(line.split()[0] for line in said)
            assert all(line.endswith(" 2525") for line in said)
            if choose == "turn":
                assert names == {"one": 3, "two": 3}
            else:
                assert len(names) == 1
                assert names.keys() <= {"one", "two"}
            assert crossroads.call(family, family.unlisted) == f"mx {family.called} 25"
    # Nobody calls a diversion host's own port past the router's decision.
    for host in ("10.66.1.31", "fd00:1::31"):
        with pytest.raises(ConnectionRefusedError):
            crossroads.clients.connect(host, 2525)


def test_router_routes_the_listed_by_a_mark(crossroads: Crossroads, path: str) -> None:
    """Role dsr: the address that was called is the one that the host sees."""
    wanted = plan.make(role="dsr", mx=[CALLED], lists=["spam=s:25"], to=[TO], wan="wan0")
    load(crossroads.router, path, wanted)
    fill(crossroads.router, wanted, **SPAM)
    for family in (FOUR, SIX):  # there are no routes yet
        assert crossroads.call(family, family.listed) == f"mx {family.called} 25"
    for line in iptables.rules(wanted).splitlines():
        if line.startswith(("# ip ", "# sysctl ")):
            crossroads.router.run(*line.split()[1:])
    for family in (FOUR, SIX):
        said = {crossroads.call(family, family.listed) for _ in range(20)}
        assert said == {f"one {family.called} 25", f"two {family.called} 25"}
        assert crossroads.call(family, family.unlisted) == f"mx {family.called} 25"
