"""The address that was called, and a real proxy before the daemon: on real firewalls.

Owns: `to=` and `via=` for each way a connection can come (straight, port-only dnat,
redirect, dnat to another address, TPROXY, HAProxy), in both families, known after
the daemon has become an ordinary user; addresses that are not there yet.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from namespaces import Lab, Namespace
from running import Daemon, Syslog, command, need, need_root, read_all, running, until

PORT = 2525


@dataclass(frozen=True)
class Family:
    digit: str
    any: str
    called: str  # an address of the host, but not the one that redirect takes
    first: str  # that one
    beyond: str  # no address of the host, but routed to it
    client: str
    proxy: str
    fwd: str

    def place(self, address: str) -> str:
        return f"[{address}]" if ":" in address else address


FOUR = Family(
    "4",
    "0.0.0.0",
    "198.51.100.26",
    "198.51.100.25",
    "198.51.100.99",
    "203.0.113.66",
    "198.51.100.1",
    "-4",
)
SIX = Family(
    "6",
    "::",
    "2001:db8:25::25",
    "2001:db8:25::26",
    "2001:db8:99::99",
    "2001:db8:bad::66",
    "2001:db8:25::1",
    "-6",
)
BOTH = pytest.mark.parametrize("family", [FOUR, SIX], ids=["ipv4", "ipv6"])


@dataclass
class Host:
    """The host with the daemon, and who calls it."""

    mx: Namespace
    clients: Namespace


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab() as lab:
        mx, clients = lab.namespace("mx"), lab.namespace("clients")
        lab.link(mx, clients)
        mx.address("eth0", "198.51.100.25/24", "198.51.100.26/24")
        mx.address("eth0", "2001:db8:25::25/64", "2001:db8:25::26/64")
        clients.address("eth0", "198.51.100.1/24", "2001:db8:25::1/64")
        clients.address("eth0", "203.0.113.66/24", "2001:db8:bad::66/64")
        for net in ("198.51.100.1", "2001:db8:25::1"):
            mx.route(net)
        clients.route("198.51.100.25", "198.51.100.99/32")
        clients.route("2001:db8:25::25", "2001:db8:99::/64")
        yield Host(mx, clients)


def line(daemon: Daemon, host: Host, family: Family, called: str, port: int = 25) -> str:
    """Call, be turned away; `from=` is the client's in each way.  The `to=` and `via=`."""
    before = len(daemon.syslog.matching("turned away "))
    with host.clients.connect(called, port, source=family.client) as one:
        assert read_all(one).startswith(b"554-mx.example.com ")
    found = until(
        lambda: daemon.syslog.matching("turned away ")[before:], what="the line of the connection"
    )[0]
    said = re.search(rf"from=\[{re.escape(family.client)}\]:\d+ (to=.*) as=", found)
    assert said, found
    return said[1]


def on(
    syslog: Syslog, host: Host, places: list[str], *options: str
) -> contextlib.AbstractContextManager[Daemon]:
    return running(
        syslog,
        *("-p", "blocked", "-w", "1", "--log-connections", "all", *options),
        port=PORT,
        listeners=[f"{place} mx.example.com" for place in places],
        wrapper=host.mx.daemon(),
    )


def nat(family: Family, rule: str) -> str:
    return f"""
table inet turnaway {{
	chain divert {{
		type nat hook prerouting priority dstnat; policy accept;
		meta nfproto ipv{family.digit} tcp dport 25 {rule}
	}}
}}
"""


@BOTH
@pytest.mark.parametrize("bound", ["any", "called"])
def test_port_only_dnat(syslog: Syslog, host: Host, family: Family, bound: str) -> None:
    host.mx.firewall(nat(family, f"dnat to :{PORT}"))
    with on(syslog, host, [f"{family.place(getattr(family, bound))}:{PORT}"]) as daemon:
        called = family.called
        assert line(daemon, host, family, called) == f"to=[{called}]:25 via=[{called}]:{PORT}"
        assert line(daemon, host, family, called, PORT) == f"to=[{called}]:{PORT}"


@BOTH
def test_redirect(syslog: Syslog, host: Host, family: Family) -> None:
    """The kernel puts an address of the interface in place of the one that was called."""
    host.mx.firewall(nat(family, f"redirect to :{PORT}"))
    with on(syslog, host, [f"{family.place(family.any)}:{PORT}"]) as daemon:
        for called in (family.called, family.first, family.beyond):
            said = line(daemon, host, family, called)
            found = re.fullmatch(rf"to=\[{re.escape(called)}\]:25 via=\[(.*)\]:{PORT}", said)
            assert found, said
            assert found[1] in (family.called, family.first)


@BOTH
def test_dnat_to_another_address(syslog: Syslog, host: Host, family: Family) -> None:
    to = f"{family.place(family.first)}:{PORT}"
    host.mx.firewall(nat(family, f"dnat ip{'' if family is FOUR else '6'} to {to}"))
    with on(syslog, host, [f"{family.place(family.first)}:{PORT}"]) as daemon:
        for called in (family.called, family.beyond):
            assert line(daemon, host, family, called) == (
                f"to=[{called}]:25 via=[{family.first}]:{PORT}"
            )


@BOTH
def test_rules_that_come_after_the_daemon(syslog: Syslog, host: Host, family: Family) -> None:
    """What the kernel could not tell at first it is asked again."""
    with on(syslog, host, [f"{family.place(family.any)}:{PORT}"]) as daemon:
        called = family.called
        assert line(daemon, host, family, called, PORT) == f"to=[{called}]:{PORT}"
        host.mx.firewall(nat(family, f"dnat to :{PORT}"))
        until(
            lambda: line(daemon, host, family, called) == f"to=[{called}]:25 via=[{called}]:{PORT}"
        )


def tproxy(host: Host, family: Family) -> None:
    ip = "ip" if family is FOUR else "ip6"
    host.mx.firewall(f"""
table {ip} turnaway {{
	chain divert {{
		type filter hook prerouting priority mangle; policy accept;
		tcp dport 25 tproxy to :{PORT} meta mark set 1 accept
	}}
}}
""")
    host.mx.run("ip", family.fwd, "rule", "add", "fwmark", "1", "lookup", "100")
    host.mx.run(
        *("ip", family.fwd, "route", "add", "local"),
        *("0.0.0.0/0" if family is FOUR else "::/0", "dev", "lo", "table", "100"),
    )


@BOTH
@pytest.mark.parametrize("bound", ["any", "first"])
def test_transparent(syslog: Syslog, host: Host, family: Family, bound: str) -> None:
    """Also addresses that the host does not have.  The capability is used before the
    daemon becomes an ordinary user, and is gone afterwards."""
    need_root()
    tproxy(host, family)
    own = getattr(family, bound)
    with on(syslog, host, [f"{family.place(own)}:{PORT}"], "--bind", "transparent") as daemon:
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        assert re.search(r"^CapPrm:\s+0+$", status, re.M)
        assert not re.search(r"^Uid:\s+0\s", status, re.M)
        for called in (family.called, family.beyond):
            via = called if bound == "any" else own
            assert line(daemon, host, family, called) == f"to=[{called}]:25 via=[{via}]:{PORT}"


@BOTH
def test_transparent_without_the_capability(host: Host, family: Family) -> None:
    place = f"{family.place(family.any)}:{PORT}"
    done = host.mx.run(
        *("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups"),
        *command("-f", "--pidfile", "none", "--control", "none", "--log", "none"),
        *("--bind", "transparent", "Earth", f"{place} mx.example.com"),
        check=False,
    )
    assert done.returncode == 77
    assert done.stderr.endswith(
        f": {place}: bind transparent is not permitted; start as root, or give the process"
        " CAP_NET_ADMIN\n"
    )


@BOTH
def test_freebind(syslog: Syslog, host: Host, family: Family) -> None:
    """An address that comes later, as a floating one of VRRP; `plain` cannot."""
    missing = "198.51.100.77" if family is FOUR else "2001:db8:25::77"
    place = f"{family.place(missing)}:{PORT}"
    plain = host.mx.run(
        *command("-f", "--pidfile", "none", "--control", "none", "--log", "none"),
        *("Earth", f"{place} mx.example.com"),
        check=False,
    )
    assert plain.returncode != 0
    assert f"{place}: no interface of this host has this address" in plain.stderr
    with on(syslog, host, [place], "--bind", "freebind") as daemon:
        with pytest.raises(OSError, match=r"No route to host|timed out"):
            host.clients.connect(missing, PORT)
        host.mx.address("eth0", f"{missing}/{24 if family is FOUR else 64}")
        assert line(daemon, host, family, missing, PORT) == f"to=[{missing}]:{PORT}"


HAPROXY = """
global
	stats socket {tmp}/stats level admin
defaults
	mode tcp
	timeout connect 2s
	timeout client 10s
	timeout server 10s
frontend four
	bind 198.51.100.26:25
	default_backend daemon4
frontend six
	bind [2001:db8:25::25]:25
	default_backend daemon6
backend daemon4
	server d 127.0.0.1:2525 {send} check inter 200
backend daemon6
	server d [::1]:2525 {send} check inter 200
"""


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_haproxy(syslog: Syslog, host: Host, tmp_path: Path, send: str) -> None:
    """Its header, its checks (LOCAL, UNKNOWN), and a mixed pair of families."""
    need("haproxy")
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(tmp=tmp_path, send=send))
    places = [f"127.0.0.1:{PORT}", f"[::1]:{PORT}"]
    with (
        on(syslog, host, places, "--proxy-from", "127.0.0.1,::1") as daemon,
        subprocess.Popen(
            [*host.mx.enter(), "haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")],
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        try:
            until(lambda: answers(host), what="HAProxy")
            for family, by in ((FOUR, "127.0.0.1"), (SIX, "::1")):
                assert proxied(daemon, family) == f"to=[{family.called}]:25 via=[{by}]:{PORT}"
            # Its checks come from itself, twice a second and more, and are answered too.
            own = r"from=\[127\.0\.0\.1\]:\d+ to=\[127\.0\.0\.1\]:2525 as="
            until(lambda: len(syslog.matching(own)) > 3, what="checks")
            # Straight to the daemon goes only who may.
            with host.mx.connect("127.0.0.1", PORT, source="127.0.0.2") as one:
                assert read_all(one) == b""
            until(lambda: daemon.counters().get("stranger") == 1)
        finally:
            process.terminate()
            process.wait(10)
    assert "headless" not in syslog.wait_for("stopped: ")


def answers(host: Host) -> bool:
    for family in (FOUR, SIX):
        try:
            with host.clients.connect(family.called, 25, source=family.client) as one:
                if not read_all(one).startswith(b"554-mx.example.com "):
                    return False
        except OSError:
            return False
    return True


def proxied(daemon: Daemon, family: Family) -> str:
    line = daemon.syslog.wait_for(rf"from=\[{re.escape(family.client)}\]:")
    found = re.search(r"(to=.*) as=", line)
    return found[1] if found else line
