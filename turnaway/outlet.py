"""Where the log goes: the local syslog daemon, standard error, or nowhere.

Owns: the socket to syslog and the form of a line's header.  Promises: `write`
waits no longer than it is told, and never raises: a log that is absent or full
costs the line.
"""

import os
import select
import socket
import time

# syslog(3): facility mail, and the severities used.
FACILITY = 2 << 3
ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _writable(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return any(event & select.POLLOUT for _, event in poller.poll(max(0.0, seconds * 1000)))


class Syslog:
    """Datagrams to the local syslog daemon, RFC 3164 as its socket expects them."""

    kind = "datagram"

    def __init__(self, program: str, path: str) -> None:
        self._tag = program
        self._path = path
        self._socket: socket.socket | None = None
        self.revive()

    def revive(self) -> None:
        """Connect, if not connected: the daemon may be absent, or come back."""
        if self._socket is not None:
            return
        try:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError:
            return  # no descriptor left
        made.setblocking(False)
        try:
            made.connect(self._path)
        except OSError:
            made.close()
        else:
            self._socket = made

    def hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def header(self, severity: int, moment: float) -> bytes:
        local = time.localtime(moment)
        return (
            f"<{FACILITY | severity}>{_MONTHS[local.tm_mon - 1]} {local.tm_mday:2}"
            f" {local.tm_hour:02}:{local.tm_min:02}:{local.tm_sec:02}"
            f" {self._tag[:40]}[{os.getpid()}]: "
        ).encode("ascii", "replace")

    def write(self, line: bytes, patience: float) -> bool:
        if self._socket is None:
            return False
        try:
            try:
                self._socket.send(line)
            except BlockingIOError:
                # The queue is short (unix(7), often 10): full is normal for a moment.
                if not _writable(self._socket.fileno(), patience):
                    return False
                self._socket.send(line)
        except BlockingIOError:
            return False
        except OSError:
            self.hang_up()
            return False
        return True


class Stderr:
    """Lines on standard error, for a terminal or a supervisor that keeps them."""

    kind = "stream"

    def __init__(self, program: str) -> None:
        self._tag = program

    def revive(self) -> None:
        pass

    def hang_up(self) -> None:
        pass

    def fileno(self) -> int:
        return 2

    def header(self, severity: int, moment: float) -> bytes:
        return f"{self._tag[:40]}[{os.getpid()}]: ".encode("ascii", "replace")

    def write(self, line: bytes, patience: float) -> bool:
        try:
            # A pipe that nobody reads would hold up the tick, and signals with it.
            return _writable(2, patience) and os.write(2, line + b"\n") > 0
        except OSError:
            return False


class Nowhere:
    kind = "none"

    def revive(self) -> None:
        pass

    def hang_up(self) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def header(self, severity: int, moment: float) -> bytes:
        return b""

    def write(self, line: bytes, patience: float) -> bool:
        return True


Outlet = Syslog | Stderr | Nowhere


def outlet(target: str, program: str, path: str) -> Outlet:
    """The outlet for a --log TARGET."""
    if target == "syslog":
        return Syslog(program, path)
    return Stderr(program) if target == "stderr" else Nowhere()
