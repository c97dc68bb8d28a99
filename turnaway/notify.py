"""Messages to the supervisor: sd_notify(3), without its library."""

import os
import socket


def notify(message: str) -> None:
    """Send `message` (such as READY=1) to $NOTIFY_SOCKET, if there is one.

    Never fails: a supervisor that does not listen is not the daemon's trouble.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address[0] == "@":  # an abstract socket, unix(7)
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.setblocking(False)
            one.sendto(message.encode(), address)
    except OSError:
        pass
