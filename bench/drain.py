"""The full-queue drain: the measure that does not depend on the client.

The server is stopped, its accept queue filled with completed handshakes, then
the server continues; what it then spends is its own work and nothing else.
Owns that procedure; leaves the server running. Every answer is verified.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass

from bench import accounts, blast
from bench.peers import Running

# Left free in the queue: the kernel refuses at the limit, not before it, and
# connections that are not ours must not turn into timeouts.
SPARE = 96
SETTLE_SECONDS = 0.005


@dataclass(frozen=True)
class Drained:
    """What one drain cost."""

    connections: int
    seconds: float
    cpu_ns: int
    result: blast.Result

    @property
    def cpu_us(self) -> float:
        """Server CPU per connection in microseconds."""
        return self.cpu_ns / 1000 / self.connections if self.connections else 0.0

    @property
    def rate(self) -> float:
        """Connections disposed of per second of the drain."""
        return self.connections / self.seconds if self.seconds else 0.0


def full_queue(workers: int = 1) -> int:
    """How many connections fill the queues of so many workers.

    Several queues share by hash, not evenly: three quarters of all of them
    is what they surely hold."""
    limit = max(64, accounts.queue_limit() - SPARE)
    return limit if workers == 1 else limit * workers * 3 // 4


def drain(
    server: Running,
    *,
    connections: int = 0,
    behaviour: str = "silent",
    sources: int = 64,
    timeout: float = 10.0,
) -> Drained:
    """One drain of a full queue (or of `connections`)."""
    wanted = connections or full_queue()
    server.signal(signal.SIGSTOP)
    try:
        time.sleep(SETTLE_SECONDS)
        fill = blast.Fill(
            server.address,
            server.port,
            connections=wanted,
            sources=sources,
            expect=server.expect,
            timeout=timeout,
            behaviour=behaviour,
        )
        before = server.cpu_ns()
        fill.mark()
    finally:
        server.signal(signal.SIGCONT)
    seconds = fill.wait()
    # The server goes to sleep by itself; only then are its accounts complete.
    time.sleep(SETTLE_SECONDS)
    spent = server.cpu_ns() - before
    return Drained(fill.opened, seconds, spent, fill.finish())
