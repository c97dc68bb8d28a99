"""Twenty thousand connections: none short, and both sides count the same."""

import socket

from running import Daemon, until
from test_banner_delivery import WHOLE


def _one(daemon: Daemon, talk: bytes) -> bytes:
    with socket.socket() as one:
        one.connect((daemon.address, daemon.port))
        if talk:
            one.send(talk)
        octets = b""
        try:
            while more := one.recv(2048):
                octets += more
        except ConnectionResetError:
            pass  # who talks after the close is reset, and has the banner by then
        return octets


def test_twenty_thousand_and_none_short(daemon: Daemon) -> None:
    short = 0
    for number in range(20_000):
        # Every tenth talks at once: the race between its data and our close.
        octets = _one(daemon, b"EHLO spam.example\r\n" if number % 10 == 0 else b"")
        short += WHOLE.fullmatch(octets) is None
    assert short == 0
    until(lambda: daemon.counters()["accepted"] == 20_000, what="the count")
    counters = daemon.counters()
    assert counters["sent"] == 20_000
    assert set(counters) <= {"accepted", "sent", "early", "parked"}
