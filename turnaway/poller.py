"""One wait for everything the shell listens to: poll(2), and who is called.

Owns: the table of descriptors and what to do when one is ready.  Whoever
watches a descriptor forgets it before closing it.
"""

import select
from collections.abc import Callable

READ, WRITE = select.POLLIN, select.POLLOUT


class Poller:
    def __init__(self) -> None:
        self._poll = select.poll()
        self._calls: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, call: Callable[[], None], events: int = READ) -> None:
        """Call `call` whenever `fd` is ready (or has failed); again with other
        events replaces the first."""
        self._calls[fd] = call
        self._poll.register(fd, events)

    def forget(self, fd: int) -> None:
        if self._calls.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def wait(self, seconds: float) -> None:
        """Until something is ready, at most so long; then call who watches it."""
        for fd, _ in self._poll.poll(max(1, int(seconds * 1000))):
            if fd in self._calls:  # not forgotten by a call before it
                self._calls[fd]()
