"""A street of hosts to try diversions in: clients, a router, an MX, diversion hosts.

Owns: the namespaces of tests that divert, and what runs in them: a real SMTP
server (aiosmtpd) on the MX, turnaway-fast where the role wants it, and clients
with as many source addresses as a test can think of.

    clients -- wan0 router lan0 -- (a switch) -- mx, host1, host2, ...

The switch is a namespace of its own: a bridge in the router would hide a wrong
way back.  Nothing outside the namespaces is touched.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from namespaces import Lab, Namespace
from running import Daemon, Syslog, running, until

CTL = str(Path(sys.executable).parent / "turnawayctl")
PORTS = {"spam": 2525, "bogons": 2526}  # lists, and where the daemon tells them why
IPV6_FREEBIND = 78  # linux/in6.h


@dataclass(frozen=True)
class Family:
    """The addresses of one family.

    The MX has two, and is called by the one that a `redirect` would not have
    named.
    """

    version: int
    mx: tuple[str, str]
    called: str
    listed: str  # a format: sources of the list spam, from 0 on
    other: str  # the same of the list bogons
    unlisted: str
    lists: dict[str, str]  # what an administrator lists

    def source(self, kind: str, number: int = 0) -> str:
        return str(getattr(self, kind)).format(number)


FOUR = Family(
    version=4,
    mx=("198.51.100.25", "198.51.100.26"),
    called="198.51.100.26",
    listed="203.0.113.6{}",
    other="203.0.113.13{}",
    unlisted="203.0.113.2{}",
    lists={"spam": "203.0.113.60/30\n203.0.113.64/27", "bogons": "203.0.113.128/25"},
)
SIX = Family(
    version=6,
    mx=("2001:db8:25::25", "2001:db8:25::26"),
    called="2001:db8:25::25",
    listed="2001:db8:bad::6{}",
    other="2001:db8:bad:1::6{}",
    unlisted="2001:db8:bad:d::6{}",
    lists={"spam": "2001:db8:bad::/64", "bogons": "2001:db8:bad:1::/64"},
)
FAMILIES = (FOUR, SIX)
RECIPES = ("host", "router", "pool", "dsr")

# The MX: a server that speaks all of SMTP, on port 25 of both families.
MX = """
import asyncio, sys
from aiosmtpd.handlers import Sink
from aiosmtpd.smtp import SMTP

async def main():
    loop = asyncio.get_running_loop()
    for place in ("0.0.0.0", "::"):
        await loop.create_server(
            lambda: SMTP(Sink(), hostname="mx.example.com", ident="the real one"), place, 25,
            backlog=1024)
    print("here", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


@dataclass
class Session:
    """A dialogue with whoever answered."""

    socket: socket.socket
    greeting: str

    def say(self, line: str) -> str:
        """The whole reply (RFC 5321 4.2.1: its last line has no hyphen)."""
        self.socket.sendall(f"{line}\r\n".encode())
        reply = ""
        while not re.search(r"^\d\d\d .*\r\n\Z", reply, re.M):
            octets = self.socket.recv(4096)
            if not octets:
                break
            reply += octets.decode()
        return reply

    def close(self) -> None:
        self.socket.close()


@dataclass
class Street:
    """What the roles have in common."""

    lab: Lab
    syslog: Syslog
    tmp: Path
    clients: Namespace
    router: Namespace
    switch: Namespace
    mx: Namespace
    hosts: list[Namespace] = field(default_factory=list)
    daemons: list[Daemon] = field(default_factory=list)
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    ports: int = 0  # of the switch

    # Making it

    def plug(self, one: Namespace, interface: str, *addresses: str) -> None:
        """Connect a namespace to the switch."""
        self.ports += 1
        end = f"p{self.ports}"
        self.lab.link(one, self.switch, interface, end)
        self.switch.ip(f"link set {end} master br0")
        # Neighbour discovery for a foreign packet wants an address of the link.
        one.address(interface, f"fe80::{self.ports}/64", *addresses)

    def add_host(self) -> Namespace:
        """A diversion host: 198.51.100.31 and 2001:db8:25::31 is the first."""
        number = 31 + len(self.hosts)
        one = self.lab.namespace(f"host{number}")
        self.plug(one, "eth0", f"198.51.100.{number}/24", f"2001:db8:25::{number}/64")
        one.route("198.51.100.1")
        one.route("2001:db8:25::1")
        self.hosts.append(one)
        return one

    def daemon(self, where: Namespace, name: str, ports: dict[str, int]) -> Daemon:
        """turnaway-fast in a namespace: its banner names the list, and the host."""
        # Without root the daemon is nobody there, who may not bind port 25.
        where.run("sysctl", "-qw", "net.ipv4.ip_unprivileged_port_start=0")
        places = [
            f"{place}:{port} {listed}.{name}"
            for listed, port in ports.items()
            for place in ("0.0.0.0", "[::]")
        ]
        made = self.closing.enter_context(
            running(
                self.syslog,
                *("-p", "spammer", "-w", "1", "--log-connections", "all"),
                port=next(iter(ports.values())),
                listeners=places,
                wrapper=where.daemon(),
            )
        )
        self.daemons.append(made)
        return made

    # turnawayctl

    def ctl(
        self, where: Namespace, *words: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """`turnawayctl firewall` in a namespace."""
        return where.run(CTL, "firewall", *words, check=check)

    def plan(self, *more: str, ports: dict[str, int] = PORTS) -> list[str]:
        """The options of a plan for this street."""
        words = ["--mx", ",".join([*FOUR.mx, *SIX.mx]), *more]
        for name, port in ports.items():
            words += ["--list", f"{name}={self.list_file(name)}:{port}"]
        return words

    def list_file(self, name: str) -> Path:
        path = self.tmp / f"{name}.txt"
        if not path.exists():
            path.write_text("# nobody yet\n192.88.99.1\n2001:db8:f::1\n")
        return path

    def apply(self, where: Namespace, words: Sequence[str], commands: bool = False) -> Path:
        """Make the rules and load them; with `commands` also those that stand in their comments."""
        text = self.ctl(where, "rules", *words).stdout
        path = self.tmp / "rules.nft"
        path.write_text(text)
        self.ctl(where, "apply", "--confirm-within", "0", str(path))
        for line in re.findall(r"^#   (\S.*)$", text, re.M) if commands else ():
            where.run(*line.split())
        return path

    def refuse(self, where: Namespace, words: Sequence[str]) -> Path:
        """Write the lists, make the sets of them and load those."""
        for name in PORTS:
            self.list_file(name).write_text(
                "\n".join(family.lists[name] for family in FAMILIES) + "\n"
            )
        path = self.tmp / "sets.nft"
        path.write_text(self.ctl(where, "sets", *words, "--any-change").stdout)
        self.ctl(where, "apply", "--confirm-within", "0", str(self.tmp / "rules.nft"), str(path))
        return path

    # Calling

    def call(self, source: str, called: str, port: int = 25, seconds: float = 5.0) -> Session:
        """Connect from a source address and read the greeting, empty if there is none."""
        family = socket.AF_INET6 if ":" in called else socket.AF_INET
        made = self.clients.open_socket(family)
        made.settimeout(seconds)
        try:
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            made.bind((source, 0))
            made.connect((called, port))
            return Session(made, made.recv(4096).decode())
        except BaseException:
            made.close()
            raise

    def greeting(self, source: str, called: str, port: int = 25) -> str:
        """What a client is told first, then hang up; or why it is told nothing."""
        try:
            session = self.call(source, called, port)
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "timeout"
        except OSError as error:  # reset, or no route while an address moves
            return str(error.strerror).lower()
        session.close()
        return session.greeting


def real(greeting: str) -> bool:
    """Whether the MX spoke."""
    return greeting.startswith("220 mx.example.com the real one")


def told_by(greeting: str) -> str:
    """Which list's name the daemon gave; nothing when it did not speak."""
    found = re.match(r"5\d\d[- ](\w+)\.", greeting)
    return found[1] if found else ""


@contextlib.contextmanager
def street(syslog: Syslog, tmp: Path, hosts: int = 0) -> Iterator[Street]:
    """The whole street, without rules or daemons; `hosts` diversion hosts."""
    if importlib.util.find_spec("aiosmtpd") is None:
        reason = "needs aiosmtpd"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with Lab() as lab:
        names = ("clients", "router", "switch", "mx")
        made = Street(lab, syslog, tmp, *(lab.namespace(name) for name in names))
        with made.closing:
            # Without snooping, which would want MLD reports before it passes on
            # neighbour discovery.
            made.switch.ip("link add br0 type bridge mcast_snooping 0", "link set br0 up")
            lab.link(made.clients, made.router, "eth0", "wan0")
            made.clients.address("eth0", "fe80::c/64", "203.0.113.2/30", "2001:db8:ca11::2/64")
            made.router.address("wan0", "fe80::a/64", "203.0.113.1/30", "2001:db8:ca11::1/64")
            made.plug(made.router, "lan0", "198.51.100.1/24", "2001:db8:25::1/64")
            made.plug(
                *(made.mx, "eth0"),
                *(f"{one}/{24 if ':' not in one else 64}" for one in (*FOUR.mx, *SIX.mx)),
            )
            made.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
            made.router.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
            # All of these are the clients': the kernel takes whatever goes there.
            made.router.route("203.0.113.2", "203.0.113.0/24")
            made.router.route("2001:db8:ca11::2", "2001:db8:bad::/48")
            made.clients.ip("route add local 203.0.113.0/24 dev lo")
            made.clients.ip("route add local 2001:db8:bad::/48 dev lo")
            for one in (made.clients, made.mx):
                gateway = "203.0.113.1" if one is made.clients else "198.51.100.1"
                one.route(gateway)
                one.route("2001:db8:ca11::1" if one is made.clients else "2001:db8:25::1")
            for _ in range(hosts):
                made.add_host()
            server = made.mx.start(sys.executable, "-W", "ignore", "-c", MX)
            made.closing.callback(_end, server)
            assert server.stdout is not None
            assert server.stdout.readline() == "here\n", server.stderr
            until(lambda: real(made.greeting("203.0.113.20", FOUR.called)), what="the MX")
            yield made


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@dataclass
class Recipe:
    """A street with the daemons of a role, and the rules still to be made."""

    name: str
    street: Street
    where: Namespace  # that the rules are for
    words: list[str]
    daemons: tuple[str, ...]  # how their banners end the name of a list


def begun(name: str, made: Street) -> Recipe:
    """The daemons of a recipe, and the options of its rules."""
    if name == "host":
        made.daemon(made.mx, "mx", PORTS)
        return Recipe(name, made, made.mx, made.plan(), ("mx",))
    addresses = [f"198.51.100.{number},2001:db8:25::{number}" for number in (31, 32)]
    used = addresses[:1] if name == "router" else addresses
    where = ["--wan", "wan0", "--to", ",".join(used)]
    if name == "dsr":
        # The hosts own the MX's addresses and answer for nobody else; nothing
        # is translated, so one port, and the first list's name, is all there is.
        for number, host in enumerate(made.hosts):
            host.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
            host.run("sysctl", "-qw", "net.ipv4.conf.all.arp_announce=2")
            host.address("lo", *(f"{one}/{128 if ':' in one else 32}" for one in _mx()))
            made.daemon(host, f"host{number}", {"spam": 25})
        ports = {"spam": 25, "bogons": 25}
        words = made.plan("--role", "dsr", *where, ports=ports)
        return Recipe(name, made, made.router, words, ("host0", "host1"))
    for number in range(len(used)):
        made.daemon(made.hosts[number], f"host{number}", PORTS)
    words = made.plan("--role", "router", *where)
    return Recipe(name, made, made.router, words, tuple(f"host{n}" for n in range(len(used))))


def _mx() -> list[str]:
    return [one for family in FAMILIES for one in family.mx]
