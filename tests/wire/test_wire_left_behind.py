"""What a hostile client leaves in the server's kernel, and for how long.

Owns: the time limits that accepted sockets inherit from their listener
(TCP_LINGER2, TCP_USER_TIMEOUT; tcp(7)), seen where they act: in the table of
the server's namespace.
"""

from __future__ import annotations

import signal
import time

from namespaces import Connection
from running import read_all, until
from wire.cable import Cable

DROP_ALL = """
table inet gone {
	chain input { type filter hook input priority 0; policy drop; }
	chain output { type filter hook output priority 0; policy drop; }
}
"""


def _orphans(cable: Cable, state: str) -> list[Connection]:
    left = cable.server.connections(cable.port)
    return [one for one in left if one.orphan and one.state == state]


def test_client_that_never_closes_holds_three_seconds(cable: Cable) -> None:
    """FIN-WAIT-2 would last 60 s (tcp_fin_timeout): with TCP_LINGER2 it is 3."""
    ones = [cable.client.connect(address, cable.port) for address in cable.addresses]
    for one in ones:
        assert read_all(one).startswith(b"421-mx.example.com ")
    until(lambda: len(_orphans(cable, "FIN-WAIT-2")) == 2, 1, "FIN-WAIT-2 of both")
    began = time.monotonic()
    until(lambda: not cable.server.connections(cable.port), 8, "both to be forgotten")
    assert time.monotonic() - began > 1.5
    for one in ones:
        one.close()


def test_client_that_vanishes_holds_ten_seconds(cable: Cable) -> None:
    """Gone after the handshake, it would hold a full orphan for minutes.

    This is the cheapest attack on a server that closes first: the banner is
    never acknowledged and sent again and again.  TCP_USER_TIMEOUT ends it.
    """
    cable.daemon.process.send_signal(signal.SIGSTOP)
    ones = [cable.client.connect(address, cable.port) for address in cable.addresses]
    cable.client.firewall(DROP_ALL)
    cable.daemon.process.send_signal(signal.SIGCONT)
    until(lambda: len(_orphans(cable, "FIN-WAIT-1")) == 2, 5, "the orphans")
    began = time.monotonic()
    until(lambda: not cable.server.connections(cable.port), 20, "the orphans to be given up")
    assert 5 < time.monotonic() - began < 16
    for one in ones:
        one.close()


def test_client_that_closes_leaves_no_orphan(cable: Cable) -> None:
    """The ordinary end: only a TIME-WAIT stays, and that holds no socket."""
    for address in cable.addresses:
        with cable.client.connect(address, cable.port) as one:
            read_all(one)
    until(
        lambda: [one.state for one in cable.server.connections(cable.port)] == ["TIME-WAIT"] * 2,
        2,
        "TIME-WAIT of both",
    )
