"""Messages to the supervisor: sd_notify(3), without its library."""

import os
import socket


class Supervisor:
    """Whoever listens on $NOTIFY_SOCKET.  Made before a chroot: its path ends there.

    Never fails: a supervisor that does not listen is not the daemon's trouble.
    """

    def __init__(self) -> None:
        self._socket = _connected()

    def notify(self, message: str) -> None:
        """Send `message`, such as READY=1."""
        if self._socket is not None:
            try:
                self._socket.send(message.encode())
            except OSError:
                pass


def _connected() -> socket.socket | None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return None
    if address[0] == "@":  # an abstract socket, unix(7)
        address = "\0" + address[1:]
    try:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.setblocking(False)
        one.connect(address)
    except OSError:
        return None
    return one
