"""The syslog daemon of a bench.

Owns: a datagram socket such as /dev/log, and the thread that reads it away and
counts.  Promises: the queue of the socket is that of a host under systemd, where
this process may make it so; `queue` says what it is.
"""

import ctypes
import os
import socket
import threading
from pathlib import Path

# net.unix.max_dgram_qlen: systemd sets 512 when it starts a machine, where the
# kernel's own default of 10 still stands.  A container often has the 10.
QUEUE = 512
QUEUE_FILE = Path("/proc/sys/net/unix/max_dgram_qlen")
CLONE_NEWNET = 0x40000000  # unshare(2)


class Syslog(threading.Thread):
    """Costs the machine what a syslog daemon's reading costs, and no more; on the
    client's core, never on the server's."""

    def __init__(self, path: Path, cores: set[int] | None = None) -> None:
        super().__init__(name="syslog", daemon=True)
        self.path = path
        self.queue = 0  # datagrams
        self.datagrams = 0
        self._cores = cores
        self._buffer = bytearray(65_536)
        self._length = 0
        self._ready = threading.Event()
        self._over = threading.Event()
        self.start()
        self._ready.wait()

    @property
    def last(self) -> bytes:
        """The newest datagram."""
        return bytes(self._buffer[: self._length])

    def _open(self) -> socket.socket:
        # The length of the queue belongs to the network namespace in which the socket
        # is made, and a namespace to a thread: this one goes into a new one for it.
        # The socket's path is found from everywhere.
        if ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0:
            QUEUE_FILE.write_text(str(QUEUE))
        self.queue = int(QUEUE_FILE.read_text())
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        one.bind(str(self.path))
        self.path.chmod(0o666)
        one.settimeout(0.2)
        return one

    def run(self) -> None:
        """Read until `close()`."""
        try:
            reader = self._open()
        finally:
            self._ready.set()
        if self._cores:
            os.sched_setaffinity(0, self._cores)
        with reader:
            while not self._over.is_set():
                try:
                    self._length = reader.recv_into(self._buffer)
                    self.datagrams += 1
                except TimeoutError:
                    continue
                except OSError:
                    return

    def close(self) -> None:
        """Stop reading."""
        self._over.set()
        self.join(2.0)
        self.path.unlink(missing_ok=True)
