"""Background start: the parent leaves when the child is ready, with its status.

Owns: the two forks, the new session, and the lifeline between the one who
typed the command and the daemon.  Promises: the parent's exit status is 0 only
after `ready()`; a child that fails, or dies without a word, gives its own.
"""

import os
import signal
import sys
from typing import NoReturn

from turnaway.exits import OS_ERROR, SOFTWARE, Failure


class Lifeline:
    """The daemon's end: `ready()`, or `failed(status)`, once."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        # Opened now: after a chroot there may be no /dev/null.
        self._null = -1 if fd is None else os.open(os.devnull, os.O_RDWR)

    def _send(self, status: int) -> None:
        if self._fd is None:
            return
        try:
            os.write(self._fd, bytes([status]))
        except BrokenPipeError:
            pass  # whoever waited is gone; the daemon need not care
        os.close(self._fd)
        self._fd = None

    def ready(self) -> None:
        """Let the parent go; from now on the terminal is not ours."""
        if self._fd is None:
            return
        for standard in (0, 1, 2):
            os.dup2(self._null, standard)
        os.close(self._null)
        self._send(0)

    def failed(self, status: int) -> None:
        self._send(status)


def foreground() -> Lifeline:
    return Lifeline(None)


def detach() -> Lifeline:
    """Return in the daemon; the caller's process ends with the daemon's status.

    Standard error stays the caller's until `ready()`, so that a failure is read
    by who typed the command.
    """
    try:
        reader, writer = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # None: closed by whoever started us
                stream.flush()
        if os.fork() > 0:
            os.close(writer)
            _leave(reader)
        os.close(reader)
        os.setsid()
        if os.fork() > 0:  # so that the daemon leads no session and gets no terminal
            os._exit(0)
        os.chdir("/")
    except OSError as error:
        raise Failure(OS_ERROR, f"cannot detach: {error.strerror}") from None
    return Lifeline(writer)


def _leave(reader: int) -> NoReturn:
    # The daemon waits with signals until it can act on them; who waits for it
    # may be interrupted as anybody.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        os.wait()
    except ChildProcessError:
        pass  # whoever started us ignores SIGCHLD: the kernel has waited for it
    status = os.read(reader, 1)
    os._exit(status[0] if status else SOFTWARE)
