"""Several diversion hosts: one fails, and comes back; how many clients got no banner.

Owns: the recipes of contrib/firewall for more than one host, run as they are,
with only paths and ports put in.  The programs are the real ones.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Daemon, Syslog, need, running, until
from street import FAMILIES, PORTS, Street, real, street, told_by

pytestmark = pytest.mark.failover

CONTRIB = Path(__file__).parents[2] / "contrib/firewall"
SLOTS = "198.51.100.41,198.51.100.42,2001:db8:25::41,2001:db8:25::42"


class Clients:
    """Listed clients of both families, one after another, without end; what each was told."""

    def __init__(self, made: Street, places: dict[int, str] | None = None) -> None:
        self.street = made
        self.places = places or {family.version: family.called for family in FAMILIES}
        self.told: Counter[str] = Counter()
        self.last: list[str] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(number,), daemon=True) for number in range(4)
        ]

    def _call(self, number: int) -> None:
        family = FAMILIES[number % 2]
        while not self._over.is_set():
            for source in range(9):
                said = self.street.greeting(
                    family.source("listed", source), self.places[family.version]
                )
                kind = "banner" if told_by(said) else "MX" if real(said) else said or "nothing"
                self.told[kind] += 1
                self.last = [*self.last[-39:], kind]
                time.sleep(0.01)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)

    def settle(self, seconds: float = 20.0) -> float:
        """Wait until 40 in a row got their banner; how long that took."""
        begun = time.monotonic()
        self.last = []
        until(lambda: len(self.last) == 40 and set(self.last) == {"banner"}, seconds, "banners")
        return time.monotonic() - begun


@contextlib.contextmanager
def keepalived(made: Street, number: int, port: int) -> Iterator[None]:
    """The recipe's file on a host, with this tree's script and the daemon's port."""
    text = (CONTRIB / "keepalived.conf").read_text()
    found = text.replace(
        "/usr/local/libexec/turnaway-banner 127.0.0.1 2525",
        f"{CONTRIB}/turnaway-banner 127.0.0.1 {port}",
    )
    assert found != text
    where = made.hosts[number]
    file = made.tmp / f"keepalived{number}.conf"
    file.write_text(found)
    file.chmod(0o644)
    argv = ["keepalived", "--vrrp", "--dont-fork", "--log-console", "--log-detail"]
    argv += ["--use-file", str(file), "--config-id", f"host{number + 1}"]
    for what in ("pid", "vrrp_pid"):
        argv += [f"--{what}", str(made.tmp / f"{what}{number}")]
    with (made.tmp / f"keepalived{number}.log").open("w") as log:
        process = subprocess.Popen([*where.enter(), *argv], stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)


def daemon(
    made: Street, number: int, ports: dict[str, int], *options: str, detail: str = "none"
) -> contextlib.AbstractContextManager[Daemon]:
    """turnaway-fast on a host, to be ended by itself."""
    where = made.hosts[number]
    where.run("sysctl", "-qw", "net.ipv4.ip_unprivileged_port_start=0")
    places = [
        f"{place}:{port} {name}.host{number}"
        for name, port in ports.items()
        for place in ("0.0.0.0", "[::]")
    ]
    return running(
        made.syslog,
        *("-p", "spammer", "-w", "1", "--log-connections", detail, *options),
        port=1,
        listeners=places,
        wrapper=where.daemon(),
    )


@pytest.mark.parametrize("role", ["router", "dsr"])
def test_a_host_fails_and_comes_back(
    role: str, syslog: Syslog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slots of a pool, or next hops of several equal routes, that move with VRRP."""
    need("keepalived", "nc")
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(street(syslog, tmp_path, 2))
        ports = PORTS if role == "router" else {"spam": 25, "bogons": 25}
        heard = PORTS if role == "router" else {"spam": 25}
        if role == "dsr":
            for host in made.hosts:
                host.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
                host.run("sysctl", "-qw", "net.ipv4.conf.all.arp_announce=2")
                for family in FAMILIES:
                    bits = 32 if family.version == 4 else 128
                    host.address("lo", *(f"{one}/{bits}" for one in family.mx))
        words = made.plan("--role", role, "--wan", "wan0", "--to", SLOTS, ports=ports)
        made.apply(made.router, words, commands=True)
        made.refuse(made.router, words)
        first = contextlib.ExitStack()
        stack.enter_context(daemon(made, 1, heard))
        killed = first.enter_context(daemon(made, 0, heard))
        for number in range(2):
            stack.enter_context(keepalived(made, number, next(iter(heard.values()))))
        until(lambda: _slots(made, 0) == ["41"] and _slots(made, 1) == ["42"], 20, "the slots")
        with Clients(made) as clients:
            clients.settle()
            before = clients.told.copy()
            killed.process.kill()
            seconds = clients.settle()
            assert _slots(made, 1) == ["41", "42"]
            failed = clients.told - before
            first.close()
            stack.enter_context(daemon(made, 0, heard))
            before = clients.told.copy()
            until(lambda: _slots(made, 0) == ["41"], 20, "its slot to come home")
            clients.settle()
            back = clients.told - before
        assert clients.told["MX"] == 0  # fails closed
        # Half of the clients, for as long as two checks and an advertisement take.
        assert 0 < failed["banner"] < sum(failed.values())
        assert seconds < 10
        lost = sum(count for kind, count in back.items() if kind != "banner")
        assert lost * 20 < back["banner"]
        with capsys.disabled():
            print(
                f"\n{role}: host killed: {dict(failed)} until all had a banner again, {seconds:.1f} s;"
                f" host back: {dict(back)}"
            )


def test_haproxy_diverts_and_a_host_fails(
    syslog: Syslog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By list, with PROXY v2: the daemon knows both addresses; a dead host costs nobody a banner."""
    need("haproxy")
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(street(syslog, tmp_path, 2))
        proxy = made.lab.namespace("proxy")
        made.plug(proxy, "eth0", "198.51.100.20/24", "2001:db8:25::20/64")
        proxy.route("198.51.100.1")
        proxy.route("2001:db8:25::1")
        listed = tmp_path / "spam.txt"
        listed.write_text("# spam\n" + "\n".join(one.lists["spam"] for one in FAMILIES) + "\n")
        text = (CONTRIB / "haproxy.cfg").read_text()
        text = text.replace("/run/haproxy/admin.sock", str(tmp_path / "admin.sock"))
        text = text.replace("/etc/turnaway/spam.txt", str(listed))
        file = tmp_path / "haproxy.cfg"
        file.write_text(text)
        options = ("--proxy-from", "198.51.100.20,2001:db8:25::20")
        killed = daemon(made, 0, {"spam": 2525}, *options, detail="all")
        first = contextlib.ExitStack()
        process = first.enter_context(killed).process
        stack.enter_context(daemon(made, 1, {"spam": 2525}, *options, detail="all"))
        with (tmp_path / "haproxy.log").open("w") as log:
            argv = [*proxy.enter(), "haproxy", "-db", "-f", str(file)]
            haproxy = subprocess.Popen(argv, stdout=log, stderr=log)
        stack.callback(haproxy.wait, 10)
        stack.callback(haproxy.terminate)
        places = {4: "198.51.100.20", 6: "2001:db8:25::20"}
        for family in FAMILIES:
            place, source = places[family.version], family.source("listed")

            def told(place: str = place, source: str = source) -> bool:
                return told_by(made.greeting(source, place)) == "spam"

            until(told, 15, "HAProxy")
            assert real(made.greeting(family.source("unlisted"), place))
            # The client's address and the one it called, not HAProxy's.
            from_, to = re.escape(f"from=[{source}]"), re.escape(f"to=[{place}]")
            syslog.wait_for(rf"turned away {from_}:\d+ {to}:25 ")
        with Clients(made, places) as clients:
            clients.settle()
            before = clients.told.copy()
            process.kill()
            clients.settle()
            until(lambda: "host1 is DOWN" in (tmp_path / "haproxy.log").read_text(), what="DOWN")
            failed = clients.told - before
            first.close()
            stack.enter_context(daemon(made, 0, {"spam": 2525}, *options, detail="all"))
            before = clients.told.copy()
            until(lambda: "host1 is UP" in (tmp_path / "haproxy.log").read_text(), what="UP")
            clients.settle()
            back = clients.told - before
        assert clients.told["MX"] == 0  # fails closed
        with capsys.disabled():
            print(f"\nhaproxy: host killed: {dict(failed)}; host back: {dict(back)}")
        # Those whose answer was on its way when the host died.
        assert failed["banner"] > 20 * (sum(failed.values()) - failed["banner"])
        assert set(back) == {"banner"}


def _slots(made: Street, number: int) -> list[str]:
    """The slots that a host has, in both families."""
    listed = made.hosts[number].run("ip", "-o", "address", "show", "dev", "eth0").stdout
    four = re.findall(r" 198\.51\.100\.(4\d)/", listed)
    six = re.findall(r" 2001:db8:25::(4\d)/", listed)
    return sorted(set(four) & set(six))
