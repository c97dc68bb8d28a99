"""What the daemon writes down: messages of its own, and lines for connections.

Owns: the way to syslog or stderr, and the words of every message.  Promises:
nothing here ever waits for a log longer than a tenth of a second a tick for
connection lines and a tenth a second for messages, a log that is absent costs lines and nothing else, what is lost is counted and told
as soon as the log takes lines again, and no octet that a client sent appears.

Messages begin with a fixed word: `started`, `stopped`, `totals`, `interval`,
`turned away`, `accept`, `stress`, `log`, `counters`.
"""

import os
import select
import socket
import time

from turnaway import __version__, answers, stats
from turnaway._board import WORDS, Board
from turnaway._journal import Reader
from turnaway.settings import Listener, Settings

# syslog(3): facility mail, and the severities used.
FACILITY = 2 << 3
ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6

BUSIEST = 5  # sources named in an interval line
PATIENCE = 0.1  # seconds in which messages may wait for a full log, each second
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


def _tails(listener: Listener) -> list[bytes]:
    """The end of a connection line, for each of the words of the board."""
    codes = answers.codes(listener)
    tails = []
    for words in WORDS:
        protocol, code = codes[words]
        proto = "" if protocol == "smtp" else f" proto={protocol}"
        tails.append(
            f" as={listener.name} persona={listener.persona.name}{proto} code={code}".encode()
        )
    return tails


class Journal:
    """Opened before the detach and the chroot; reads the rings once it has a board."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log: Syslog | Stderr | Nowhere
        if settings.log == "syslog":
            self._log = Syslog(settings.program, settings.syslog_socket)
        elif settings.log == "stderr":
            self._log = Stderr(settings.program)
        else:
            self._log = Nowhere()
        self._lost = 0  # lines, since the log last took one
        self._lost_ever = 0
        self._second = 0  # of the cap, and of the patience
        self._patience = PATIENCE  # seconds of it left
        self._unsampled = 0  # connections without a log since the last sample
        self._allowed = 0  # lines left in this second
        self._seen = 0  # connections since the last interval line
        self._lined = 0  # of them, with a line of their own
        self._stumbled: dict[int, str] = {}  # listeners whose accept fails, and why
        self._errors: list[stats.Totals] = []
        self._stressed = False
        self._stresses = 0

    def open(self, board: Board) -> None:
        self._board = board
        self._reader = Reader(
            board,
            [tail for one in self._settings.listeners for tail in _tails(one)],
            int.from_bytes(os.urandom(8)),
        )
        self._since = stats.of_all(board)
        self._dropped = 0
        self._errors = [stats.of_listener(board, one) for one in range(board.listeners)]
        self._began = self._mark = time.monotonic()

    def say(self, severity: int, text: str) -> None:
        """A message of our own, now."""
        self._log.revive()
        if self._write(severity, text):
            self._told()
        else:
            self._lose(1)

    def _write(self, severity: int, text: str) -> bool:
        line = self._log.header(severity, time.time()) + text.encode("ascii", "replace")
        began = time.monotonic()
        taken = self._log.write(line, self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - began))
        return taken

    def _lose(self, lines: int) -> None:
        self._lost += lines
        self._lost_ever += lines

    def _told(self) -> None:
        """The log took a line: tell what it missed before."""
        if self._lost:
            lost, self._lost = self._lost, 0
            if not self._write(WARNING, f"log: {lost} lines were lost while it was away or full"):
                self._lost += lost

    def tick(self, now: float) -> None:
        """Read the rings: connection lines, and the tally.  At least once a second."""
        self._log.revive()
        if int(now) != self._second:
            self._second = int(now)
            self._patience = PATIENCE
            capped = self._settings.detail == "capped"
            self._allowed = self._settings.detail_number if capped else 1 << 62
        fd = self._log.fileno()
        seen, sent, lost, error = self._reader.pull(
            fd, self._log.kind if fd >= 0 else "none", self._log.header(INFO, now), self._allowed
        )
        if fd < 0 and self._log.kind != "none" and self._settings.detail != "none":
            # No log at all: what the cap or the sample would have let through is lost.
            lost = min(seen, self._allowed)
            if self._settings.detail == "sample":
                self._unsampled += seen
                lost, self._unsampled = divmod(self._unsampled, self._settings.detail_number)
        self._allowed -= sent + lost
        self._seen += seen
        self._lined += sent + lost
        if lost:
            self._lose(lost)
            if error and not isinstance(OSError(error, ""), BlockingIOError):
                self._log.hang_up()
        elif sent:
            self._told()
        self._stumbles()
        self._stress()
        # Ticks come once a second: take the one nearest to the interval's end.
        if time.monotonic() - self._mark > self._settings.limits.interval - 0.5:
            self.interval()

    def _stumbles(self) -> None:
        """One line when a listener begins to fail at accept, one when it is well again."""
        for index, before in enumerate(self._errors):
            now = stats.of_listener(self._board, index)
            fresh = [
                f"{name} {now[name] - before[name]} times"
                for name in stats.RESTING
                if now[name] != before[name]
            ]
            place = self._settings.listeners[index].place
            if fresh and index not in self._stumbled:
                self._stumbled[index] = fresh[0]
                self.say(
                    ERROR,
                    f"accept on {place} fails: {', '.join(fresh)}; resting it and trying again",
                )
            elif not fresh and index in self._stumbled and now["accepted"] != before["accepted"]:
                del self._stumbled[index]
                self.say(NOTICE, f"accept on {place} works again")
            self._errors[index] = now

    def _stress(self) -> None:
        """One line when too many sockets are held, one when it is over."""
        states = self._board.states()
        stressed = any(state[5] for state in states)
        stresses = sum(state[6] for state in states)
        held = sum(state[4] for state in states)
        if not self._stressed and stresses != self._stresses:
            self._stressed = True
            self.say(
                WARNING,
                f"stress: {held} sockets are held, of {self._settings.limits.held} at the most;"
                " whoever would be held is now closed at once",
            )
        if self._stressed and not stressed:
            self._stressed = False
            self.say(NOTICE, f"stress is over: {held} sockets are held")
        self._stresses = stresses

    def started(self, user: str, loop: str) -> None:
        settings = self._settings
        listeners = ", ".join(
            f"{one.place} {one.name} {one.persona.name} {one.code}" for one in settings.listeners
        )
        self.say(
            NOTICE,
            f"started: version {__version__}, listeners [{listeners}],"
            f" workers {settings.workers} ({loop}), user {user}",
        )

    def interval(self) -> None:
        now = time.monotonic()
        seconds = max(now - self._mark, 0.001)
        totals = stats.of_all(self._board)
        fresh = totals.since(self._since)
        dropped = self._board.dropped() - self._dropped
        words = [
            f"interval: {seconds:.0f} s, connections={fresh['accepted']}",
            f"rate={fresh['accepted'] / seconds:.1f}/s",
            fresh.words(stats.AFTER_ACCEPTED),
            f"suppressed={self._seen - self._lined}",
        ]
        if dropped:
            words.append(f"records-dropped={dropped}")
        if self._lost_ever:
            words.append(f"lines-lost={self._lost_ever}")
        busiest = self._reader.busiest(BUSIEST)
        if busiest:
            words.append("busiest " + " ".join(f"[{source}]={count}" for source, count in busiest))
        self.say(INFO, " ".join(word for word in words if word))
        self._reader.forget()
        self._since = totals
        self._dropped += dropped
        self._mark = now
        self._seen = self._lined = 0

    def counters(self) -> None:
        """Every listener's counters, one line each."""
        for index, listener in enumerate(self._settings.listeners):
            totals = stats.of_listener(self._board, index)
            self.say(
                INFO, f"counters: {listener.place} {listener.name} {totals.words() or 'all 0'}"
            )

    def stopped(self, reason: str, clean: bool) -> None:
        totals = stats.of_all(self._board)
        seconds = time.monotonic() - self._began
        self._patience = PATIENCE  # afresh: connection lines may just have filled the log
        self.say(
            NOTICE if clean else ERROR,
            f"stopped: {reason}{'' if clean else ', a loop did not end in time'}; totals:"
            f" {seconds:.0f} s, connections={totals['accepted']}"
            f" {totals.words(stats.AFTER_ACCEPTED)}".rstrip(),
        )
