"""What went over a wire: the TCP packets that an interface of a lab saw.

Owns: a packet socket (packet(7)) that the kernel fills by itself while the
test goes on, and the reading of IPv4, IPv6 and TCP headers.  No program is
started, so no packet is missed before it listens or lost when it ends.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from dataclasses import dataclass
from types import TracebackType

from namespaces import Namespace
from running import SECONDS

_ALL = 0x0003  # ETH_P_ALL: what leaves is seen as well as what comes
_FLAGS = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x10, "A"))


@dataclass(frozen=True)
class Packet:
    """One TCP segment."""

    source: tuple[str, int]
    target: tuple[str, int]
    flags: str  # of SFRPA, in that order
    octets: bytes  # its payload
    window: int

    def __str__(self) -> str:
        """`FA(274)`: flags and length as in the tables of docs; PSH is not told."""
        flags = self.flags.replace("P", "")
        return f"{flags}({len(self.octets)})" if self.octets else flags


def _tcp(packet: bytes) -> Packet | None:
    """Read a packet that begins with its network header; None if it is not TCP."""
    if packet[0] >> 4 == 4:
        start, end, family = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0], 4
        protocol, source, target = packet[9], packet[12:16], packet[16:20]
    else:
        start, end, family = 40, 40 + struct.unpack_from("!H", packet, 4)[0], 6
        protocol, source, target = packet[6], packet[8:24], packet[24:40]
    if protocol != socket.IPPROTO_TCP:
        return None
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    ports = struct.unpack_from("!HH", packet, start)
    offset, flags, window = struct.unpack_from("!BBH", packet, start + 12)
    return Packet(
        source=(socket.inet_ntop(kind, source), ports[0]),
        target=(socket.inet_ntop(kind, target), ports[1]),
        flags="".join(letter for bit, letter in _FLAGS if flags & bit),
        octets=packet[start + (offset >> 4) * 4 : end],
        window=window,
    )


class Capture:
    """Everything TCP on `interface` of `where`, from the beginning of the block."""

    def __init__(self, where: Namespace, interface: str) -> None:
        self._socket = where.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
        self._socket.bind((interface, _ALL))
        self._seen: list[Packet] = []

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def _read(self, seconds: float) -> bool:
        """Take what comes within `seconds`; False when nothing came."""
        self._socket.settimeout(seconds)
        try:
            packet, place = self._socket.recvfrom(65536)
        except TimeoutError:
            return False
        if place[1] in (0x0800, 0x86DD) and (segment := _tcp(packet)):
            self._seen.append(segment)
        return True

    def of(self, client: tuple[str, int], quiet: float = 0.1) -> list[Packet]:
        """The packets of one client's connection, once it is over.

        Over: a reset, or a FIN each way; and then nothing more for `quiet`.
        """
        end = time.monotonic() + SECONDS
        while True:
            more = self._read(quiet)
            mine = [one for one in self._seen if client in (one.source, one.target)]
            closed = {one.source for one in mine if "F" in one.flags}
            over = len(closed) == 2 or any("R" in one.flags for one in mine)
            if (over and not more) or time.monotonic() > end:
                return mine
