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

    def __init__(self, made: Street) -> None:
        self.street = made
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
                said = self.street.greeting(family.source("listed", source), family.called)
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
    made: Street, number: int, ports: dict[str, int]
) -> contextlib.AbstractContextManager[Daemon]:
    places = [
        f"{place}:{port} {name}.host{number}"
        for name, port in ports.items()
        for place in ("0.0.0.0", "[::]")
    ]
    return running(
        made.syslog,
        *("-p", "spammer", "-w", "1", "--log-connections", "none"),
        port=1,
        listeners=places,
        wrapper=made.hosts[number].daemon(),
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
        assert failed["refused"] + failed["timeout"] > 0
        assert failed["banner"] > 0
        assert seconds < 10
        lost = sum(count for kind, count in back.items() if kind != "banner")
        assert lost * 20 < back["banner"]
        with capsys.disabled():
            print(
                f"\n{role}: host killed: {dict(failed)} until all had a banner again, {seconds:.1f} s;"
                f" host back: {dict(back)}"
            )


def _slots(made: Street, number: int) -> list[str]:
    """The slots that a host has, in both families."""
    listed = made.hosts[number].run("ip", "-o", "address", "show", "dev", "eth0").stdout
    four = re.findall(r" 198\.51\.100\.(4\d)/", listed)
    six = re.findall(r" 2001:db8:25::(4\d)/", listed)
    return sorted(set(four) & set(six))
