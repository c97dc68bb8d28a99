"""The loops: one per worker, each in a thread that never takes the GIL.

Owns: the choice of the loop for this platform, the threads, and the descriptors
by which the shell wakes the loops.  Promises: `start` returns only when
every loop runs, or raises Failure; `stop` returns when every loop has ended or
the time is over.
"""

import os
import socket
import threading
import time
from collections.abc import Callable

from turnaway import _board, answers
from turnaway.exits import OS_ERROR, Failure
from turnaway.settings import Listener, Settings

# There is the loop that setup.py built for this platform.
try:
    from turnaway._epoll import run

    LOOP = "epoll"
    open_wake: Callable[[], tuple[int, ...]] = os.pipe

    def wake(fd: int) -> None:
        os.write(fd, b"\0")

except ImportError:
    from turnaway._kqueue import open_wake, run, wake

    LOOP = "kqueue"

START_SECONDS = 5.0
STOP_SECONDS = 0.8


def _sixteen(address: str) -> bytes:
    """An address as 16 octets, IPv4 as v4-mapped (RFC 4291 2.5.5.2)."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return bytes(10) + b"\xff\xff" + socket.inet_pton(socket.AF_INET, address)


def _network(text: str) -> tuple[bytes, int]:
    """ADDRESS/BITS as 16 octets and how many of their bits."""
    address, _, bits = text.partition("/")
    return _sixteen(address), int(bits) + (0 if ":" in address else 96)


def _micros(listener: Listener) -> list[int]:
    """A listener's time limits in microseconds, in the order of the board's QUEUES."""
    waits = listener.waits
    return [
        int(seconds * 1_000_000)
        for seconds in (
            waits.park,
            waits.drain,
            waits.probe,
            waits.request,
            waits.quit,
            waits.proxy,
        )
    ]


def descriptors_of(settings: Settings) -> int:
    """Descriptors that the limits need in one table: those of the process, of a
    batch, and of every socket that may be held."""
    return settings.limits.held + 256 + 2 * len(settings.listeners) * settings.workers


class Engine:
    """The loops over `sockets` ([worker][listener], bound and listening).

    `ring` is the descriptor that, written to, wakes the shell.
    """

    def __init__(self, settings: Settings, sockets: list[list[socket.socket]], ring: int) -> None:
        limits = settings.limits
        self.settings = settings
        workers = len(sockets)
        # Equal time limits share a FIFO, whichever listener they belong to.
        waits = sorted({micros for one in settings.listeners for micros in _micros(one)})
        self.board = _board.Board(
            workers,
            len(settings.listeners),
            limits.records,
            # Connections are spread over the workers: each has its part.
            -(-limits.held // workers),
            -(-limits.share // workers),
            int.from_bytes(os.urandom(8)),
            waits,
            len(settings.lists),
        )
        if settings.lookup is not None:
            self.board.consult(settings.lookup.block(), [one.allow for one in settings.lists])
        self.sockets = sockets
        self._wakes: list[tuple[int, ...]] = []
        self._threads: list[threading.Thread] = []
        self.board.attach_bell(ring)
        self.board.record(settings.log != "none")
        for index, listener in enumerate(settings.listeners):
            self.board.describe(
                index,
                _sixteen(listener.address),
                listener.port,
                listener.wildcard,
                listener.bind == "transparent",
                [_network(one) for one in listener.proxy_from],
            )
            how = answers.behaviour(listener)
            fifos = [waits.index(micros) for micros in _micros(listener)]
            self.board.behave(
                index, how.manner, how.expected, how.blind, how.lingers, how.resets, fifos
            )
            detail, number = listener.detail or (settings.detail, settings.detail_number)
            self.board.log_connections(index, detail, number, listener.detail is not None)
        for worker, row in enumerate(sockets):
            for index, one in enumerate(row):
                self.board.attach(worker, index, one.fileno())
            wakes = open_wake()
            self.board.attach_wake(worker, wakes[0])
            self._wakes.append(wakes)

    def start(self) -> None:
        """Answers must have been published.  Raises Failure."""
        threading.stack_size(256 * 1024)
        for worker in range(self.board.workers):
            thread = threading.Thread(target=run, args=(self.board, worker), daemon=True)
            thread.start()
            self._threads.append(thread)
        until = time.monotonic() + START_SECONDS
        while any(state[0] == "new" for state in self.board.states()):
            if time.monotonic() > until:
                raise Failure(OS_ERROR, f"a loop did not start within {START_SECONDS:.0f} s")
            time.sleep(0.0005)
        for worker, (state, error, *_) in enumerate(self.board.states()):
            if state == "broken":
                raise Failure(OS_ERROR, f"worker {worker}: {os.strerror(error)}")

    def wake(self) -> None:
        """Make every loop turn once."""
        for wakes in self._wakes:
            wake(wakes[-1])

    def pause(self, listener: int, paused: bool) -> None:
        """Take no connections on a listener, or take them again."""
        self.board.pause(listener, paused)
        self.wake()

    def stop(self) -> bool:
        """Tell the loops to end; True when all did within STOP_SECONDS."""
        self.board.stop()
        self.wake()
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def retire(self, leaving: list[int]) -> None:
        """Take no more connections, and end when nobody is held any more.

        `leaving` are the listeners that no other loops go on with: their queues
        are answered, then they are closed.  A loop with descriptors of its own closes
        those itself, so ours can be closed at once; else when it has let go of them.
        """
        self.board.retire(leaving)
        self.wake()
        if all(state[7] for state in self.board.states()) or self._released(leaving):
            for row in self.sockets:
                for index in leaving:
                    row[index].close()

    def _released(self, leaving: list[int]) -> bool:
        """Wait until no loop has these listeners any more; False when one is stuck."""
        until = time.monotonic() + STOP_SECONDS
        while not all(self.board.released(index) for index in leaving):
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        return True

    def ended(self) -> bool:
        """Whether all loops have ended; then what they left is closed."""
        if any(thread.is_alive() for thread in self._threads):
            return False
        for wakes in self._wakes:
            for fd in wakes:
                os.close(fd)
        self._wakes.clear()
        return True
