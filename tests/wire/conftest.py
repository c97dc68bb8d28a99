"""A server, a client and one cable: made for each wire test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from namespaces import Lab
from running import Syslog, running
from wire.cable import PORT, Cable


@pytest.fixture
def cable(syslog: Syslog) -> Iterator[Cable]:
    """turnaway-fast on both families of eth0, and a client at the other end."""
    with Lab() as lab:
        server, client = lab.namespace("server"), lab.namespace("client")
        lab.link(server, client)
        server.address("eth0", "198.51.100.25/24", "2001:db8:25::25/64")
        client.address("eth0", "198.51.100.66/24", "2001:db8:25::66/64")
        places = [f"{place}:{PORT} mx.example.com" for place in ("0.0.0.0", "[::]")]
        with running(
            syslog, "-w", "1", port=PORT, listeners=places, wrapper=server.daemon()
        ) as daemon:
            yield Cable(server, client, daemon)
