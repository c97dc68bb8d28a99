"""What can be counted instead of timed: system calls and packets.

Owns the two figures of the guard that do not depend on the machine's mood;
tests import them. Both raise `CannotCount` with the reason where the machine
does not allow it (no strace, no ptrace, no CAP_NET_RAW), so that a test can
skip by that and fail by everything else.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench import accounts, blast
from bench.expect import Expect

ATTACH_SECONDS = 10.0
QUIET_SECONDS = 0.3


class CannotCount(RuntimeError):
    """This machine does not let us look."""


class Server(Protocol):
    """What is needed of a server: `bench.peers.Running` has it."""

    address: str
    port: int
    expect: Expect

    @property
    def pid(self) -> int: ...


@dataclass(frozen=True)
class Counted:
    """A count per kind, over so many connections."""

    connections: int
    kinds: dict[str, int]
    result: blast.Result

    @property
    def per_connection(self) -> float:
        """All kinds together, per connection."""
        return sum(self.kinds.values()) / self.connections

    def of(self, kind: str) -> float:
        """One kind, per connection."""
        return self.kinds.get(kind, 0) / self.connections


def syscalls_per_connection(
    server: Server,
    *,
    connections: int = 4000,
    concurrency: int = 256,
    behaviour: str = "silent",
) -> Counted:
    """System calls by name while a crowd is turned away.

    A traced server is slow, so its queue is never empty: this is the figure at
    saturation. What a server does by the clock is counted with the rest; over
    some thousands of connections it is nothing."""
    tool = shutil.which("strace")
    if tool is None:
        raise CannotCount("strace is not installed")
    with tempfile.TemporaryDirectory(prefix="bench-strace-") as folder:
        table = Path(folder) / "table"
        members = accounts.family(server.pid)
        command = [tool, "-f", "-c", "-U", "calls,name", "-o", str(table)]
        for member in members:
            command += ["-p", str(member)]
        tracer = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            if not _attached(members, tracer):
                tracer.kill()
                told = (tracer.stderr.read() if tracer.stderr else b"").decode(errors="replace")
                raise CannotCount(f"strace did not attach: {told.strip()[:300]}")
            result = blast.closed(
                server.address,
                server.port,
                connections=connections,
                concurrency=concurrency,
                behaviour=behaviour,
                expect=server.expect,
                timeout=20.0,
            )
            time.sleep(0.05)
        finally:
            # Interrupted, it detaches, writes its table and goes.
            if tracer.poll() is None:
                tracer.send_signal(signal.SIGINT)
            try:
                tracer.wait(10.0)
            except subprocess.TimeoutExpired:
                tracer.kill()
                tracer.wait(5.0)
            if tracer.stderr:
                tracer.stderr.close()
        kinds: dict[str, int] = {}
        for line in table.read_text().splitlines():
            found = re.match(r"\s*(\d+)\s+(\w+)\s*$", line)
            if found and found[2] != "total":
                kinds[found[2]] = int(found[1])
    if not kinds:
        raise CannotCount("strace counted nothing")
    return Counted(result.started, kinds, result)


def _attached(members: list[int], tracer: subprocess.Popen[bytes]) -> bool:
    """Whether every thread of them is traced by this tracer."""
    deadline = time.monotonic() + ATTACH_SECONDS
    while time.monotonic() < deadline and tracer.poll() is None:
        tracers = set()
        for member in members:
            for status in (accounts.PROC / str(member) / "task").glob("*/status"):
                try:
                    found = re.search(r"^TracerPid:\t(\d+)$", status.read_text(), re.MULTILINE)
                except OSError:
                    continue
                tracers.add(int(found[1]) if found else 0)
        if tracers == {tracer.pid}:
            return True
        time.sleep(0.01)
    return False


ETH_P_ALL = 3
PACKET_OUTGOING = 4
SO_RCVBUFFORCE = 33
FLAGS = ((0x02, "S"), (0x10, "A"), (0x08, "P"), (0x01, "F"), (0x04, "R"))


def packets_per_connection(
    server: Server,
    *,
    connections: int = 300,
    behaviour: str = "silent",
    rate: float = 1500.0,
) -> Counted:
    """Packets on the loopback by kind (`S`, `SA`, `A`, `AF+`: `+` = with data),
    both directions, counted on the interface."""
    try:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    except (PermissionError, AttributeError) as error:
        raise CannotCount(f"no packet socket: {error}") from None
    kinds: Counter[str] = Counter()
    over = threading.Event()
    with tap:
        tap.bind(("lo", ETH_P_ALL))
        try:
            tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        except PermissionError:
            tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        tap.settimeout(0.05)

        def count() -> None:
            quiet_since = time.monotonic()
            while True:
                try:
                    packet, origin = tap.recvfrom(256)
                except TimeoutError:
                    pass
                else:
                    # The loopback shows each packet going out and coming in.
                    kind = _kind(packet, server.port) if origin[2] != PACKET_OUTGOING else ""
                    if kind:
                        kinds[kind] += 1
                        quiet_since = time.monotonic()
                if not over.is_set():
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since > QUIET_SECONDS:
                    return

        counter = threading.Thread(target=count, name="packets", daemon=True)
        counter.start()
        try:
            result = blast.offered(
                server.address,
                server.port,
                rate=rate,
                seconds=connections / rate,
                behaviour=behaviour,
                expect=server.expect,
            )
        finally:
            over.set()
            counter.join(30.0)
        dropped = struct.unpack("=II", tap.getsockopt(263, 6, 8))[1]
        if dropped:
            raise CannotCount(f"the tap lost {dropped} packets")
    return Counted(result.started, dict(kinds), result)


def _kind(packet: bytes, port: int) -> str:
    """What kind of TCP packet this is, or nothing if it is not this port's."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 40 and packet[9] == socket.IPPROTO_TCP:
        start = (packet[0] & 15) * 4
        size = struct.unpack_from("!H", packet, 2)[0]
    elif version == 6 and len(packet) >= 60 and packet[6] == socket.IPPROTO_TCP:
        start = 40
        size = 40 + struct.unpack_from("!H", packet, 4)[0]
    else:
        return ""
    if len(packet) < start + 14:
        return ""
    if port not in struct.unpack_from("!HH", packet, start):
        return ""
    flags = packet[start + 13]
    data = size - start - (packet[start + 12] >> 4) * 4
    return "".join(letter for bit, letter in FLAGS if flags & bit) + ("+" if data > 0 else "")
