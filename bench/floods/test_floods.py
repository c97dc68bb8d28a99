"""Those who come too often, beside 300 well-behaved clients a second.

Owns the floods and what must hold in each: how many of the guests are told, and that
memory, descriptors and orphans are afterwards what they were before.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from running import Daemon, Syslog, running

from bench.blast import Result
from bench.floods.field import PORT, Field

WHEREVER = [f"0.0.0.0:{PORT} mx.example.com"]
OPTIONS = ("--interval", "5")

# What the mob never hears again once its handshake is done.
VANISHED = """
table inet gone {
	chain input {
		type filter hook input priority 0; policy accept;
		tcp flags & (fin | psh) != 0 drop
	}
	chain output {
		type filter hook output priority 0; policy accept;
		tcp flags & (fin | rst) != 0 drop
	}
}
"""


def stress(daemon: Daemon) -> str:
    """How many could not be held, and were told and closed at once."""
    counters = daemon.counters()
    refused = sum(counters.get(name, 0) for name in ("held_stressed", "held_share", "held_full"))
    return f"{counters['held']:,} were held, {refused:,} told and closed for want of a place"


def all_were_told(result: Result) -> None:
    assert result.complete + result.reset_after == result.started, result


def test_no_flood(syslog: Syslog, ground: Field) -> None:
    """What the figures below are to be held against."""
    with running(
        syslog, *OPTIONS, port=PORT, listeners=WHEREVER, wrapper=ground.host.daemon()
    ) as daemon:
        all_were_told(ground.flood("none", daemon, "", 0, 4))


@pytest.mark.parametrize(
    ("cookies", "strangers", "name"),
    [
        (True, True, "300,000 SYNs in 6 s, SYN cookies"),
        (False, True, "300,000 SYNs in 6 s, no SYN cookies"),
        (False, False, "300,000 SYNs in 6 s, no SYN cookies, guests the kernel has met before"),
    ],
    ids=["cookies", "no cookies", "no cookies, met before"],
)
def test_syns(syslog: Syslog, ground: Field, cookies: bool, strangers: bool, name: str) -> None:
    """From addresses where nobody is, so that no handshake is ever completed.

    Without cookies the kernel keeps a part of its queue for peers it has met before
    (tcp_max_syn_backlog, ip-sysctl): whether guests are such makes all the difference.
    """
    ground.host.run("sysctl", "-qw", f"net.ipv4.tcp_syncookies={int(cookies)}")
    ground.mob.run("ip", "route", "add", "blackhole", "203.0.113.0/24")
    with running(
        syslog, *OPTIONS, port=PORT, listeners=WHEREVER, wrapper=ground.host.daemon()
    ) as daemon:
        result = ground.flood(name, daemon, "syn", 300_000, 6, lead=-1 if strangers else 1)
        accepted = daemon.settled()["accepted"]
        assert accepted < result.started + 200  # of the mob nobody
        if cookies:
            all_were_told(result)


def test_clients_that_never_close(syslog: Syslog, ground: Field) -> None:
    ground.inhabited()
    with running(
        syslog, *OPTIONS, port=PORT, listeners=WHEREVER, wrapper=ground.host.daemon()
    ) as daemon:
        result = ground.flood("20,000 that never close", daemon, "stay", 20_000, 6, programs=2)
        all_were_told(result)


def test_dialogues_that_never_end(syslog: Syslog, ground: Field) -> None:
    ground.inhabited()
    options = (*OPTIONS, "--close", "quit")
    with running(
        syslog, *options, port=PORT, listeners=WHEREVER, wrapper=ground.host.daemon()
    ) as daemon:
        result = ground.flood(
            "20,000 that never say QUIT, close policy quit",
            daemon, "stay", 20_000, 6, programs=2, behaviour="quit",
            also=lambda: stress(daemon),
        )  # fmt: skip
        all_were_told(result)


def test_clients_that_vanish(syslog: Syslog, ground: Field) -> None:
    ground.inhabited()
    ground.mob.firewall(VANISHED)
    with running(
        syslog, *OPTIONS, port=PORT, listeners=WHEREVER, wrapper=ground.host.daemon()
    ) as daemon:
        all_were_told(
            ground.flood("10,000 that vanish after the handshake", daemon, "stay", 10_000, 6)
        )


def test_talkers(syslog: Syslog, ground: Field) -> None:
    ground.inhabited()
    with running(
        syslog, *OPTIONS, port=PORT, listeners=WHEREVER, wrapper=ground.host.daemon()
    ) as daemon:
        result = ground.flood(
            "early talkers, 200 at once, 4 MiB each", daemon, "pour", 200, 6,
            also=lambda: f"parked {daemon.counters()['parked']:,} times",
        )  # fmt: skip
        all_were_told(result)


def test_churn_of_one_source(syslog: Syslog, ground: Field) -> None:
    ground.inhabited()
    with running(
        syslog, *OPTIONS, port=PORT, listeners=WHEREVER, wrapper=ground.host.daemon()
    ) as daemon:
        all_were_told(ground.flood("one source, 256 connections at once", daemon, "churn", 256, 6))


@pytest.mark.parametrize(("what", "protocol"), [("HTTP", "http"), ("QUIT", "smtp")])
def test_slowloris(syslog: Syslog, ground: Field, tmp_path: Path, what: str, protocol: str) -> None:
    """On a listener that waits for its clients, in the same loops as the guests' one."""
    ground.inhabited()
    file = tmp_path / "t.toml"
    file.write_text(
        f"""location = "Somecity, Earth"
[[listener]]
address = "0.0.0.0:{PORT}"
name = "mx.example.com"
[[listener]]
address = "0.0.0.0:2580"
name = "www.example.com"
persona = "worm"
protocol = "{protocol}"
close = "{"now" if protocol == "http" else "quit"}"
"""
    )
    file.chmod(0o644)
    with running(syslog, *OPTIONS, port=PORT, file=file, wrapper=ground.host.daemon()) as daemon:
        result = ground.flood(
            f"{what} slowloris, 10,000 clients, an octet a second",
            daemon, "drip", 10_000, 8, port=2580, also=lambda: stress(daemon),
        )  # fmt: skip
        all_were_told(result)
