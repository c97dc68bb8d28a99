"""The network of the wire tests: what they are given."""

from __future__ import annotations

from dataclasses import dataclass

from namespaces import Namespace
from running import Daemon

PORT = 2525


@dataclass
class Cable:
    """The daemon in one namespace, its client in another, a cable between them."""

    server: Namespace
    client: Namespace
    daemon: Daemon
    port: int = PORT
    addresses: tuple[str, str] = ("198.51.100.25", "2001:db8:25::25")  # of the server
