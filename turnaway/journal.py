"""What the daemon writes down: messages of its own, and lines for connections.

Owns: the words of every message, what was lost of them, and the totals over all
boards there ever were.  Promises: nothing here waits for a log longer than a
tenth of a second a tick for connection lines and a tenth a second for messages;
a log that is absent costs lines and nothing else; what is lost is counted and
told as soon as the log takes lines again; no octet that a client sent appears.

Messages begin with a fixed word: `started`, `stopped`, `reload`, `interval`,
`turned away`, `accept`, `stress`, `log`, `counters`.
"""

import time
from collections import Counter

from turnaway import __version__, stats
from turnaway._board import Board
from turnaway.outlet import ERROR, INFO, NOTICE, WARNING, Json, outlet
from turnaway.settings import Settings
from turnaway.watch import Watch

BUSIEST = 5  # sources named in an interval line
PATIENCE = 0.1  # seconds in which messages may wait for a full log, each second


class Journal:
    """Opened before the detach and the chroot; reads the rings once it follows a board."""

    def __init__(self, settings: Settings) -> None:
        self._log = outlet(settings)
        self._second = 0  # of the patience
        self._patience = PATIENCE  # seconds of it left
        self._lost = 0  # lines, since the log last took one
        self._lost_ever = 0
        self._seen = 0  # connections since the last interval line
        self._lined = 0  # of them, with a line of their own
        self._watches: list[Watch] = []
        self._gone = stats.Totals()  # what boards that are gone had counted
        self._gone_dropped = 0
        self._since = stats.Totals()
        self._since_dropped = 0
        self._began = self._mark = time.monotonic()

    def follow(self, settings: Settings, board: Board) -> None:
        """Read this board from now on; the settings are those in force."""
        self._settings = settings
        self._watches.append(Watch(settings, board))

    def leave(self, board: Board) -> None:
        """The board's loops have ended: read it for the last time."""
        for watch in [one for one in self._watches if one.board is board]:
            self._pull(watch, time.time())
            self._gone = self._gone.plus(watch.totals())
            self._gone_dropped += board.dropped()
            self._watches.remove(watch)

    def reopen(self) -> None:
        """Look for the log anew, as after a restart of the syslog daemon or a rotation."""
        failed = self._log.reopen()
        if failed:
            self.say(WARNING, f"log: {failed}")

    def say(self, severity: int, text: str) -> None:
        """A message of our own, now."""
        self._log.revive()
        if self._write(severity, text):
            self._told()
        else:
            self._lose(1)

    def _write(self, severity: int, text: str) -> bool:
        moment, began = time.time(), time.monotonic()
        if isinstance(self._log, Json):
            taken = self._log.say(severity, moment, text, self._patience)
        else:
            line = self._log.header(severity, moment) + text.encode("ascii", "replace")
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
        for watch in self._watches:
            self._pull(watch, now)
            for severity, text in watch.changes():
                self.say(severity, text)
        # Ticks come once a second: take the one nearest to the interval's end.
        if time.monotonic() - self._mark > self._settings.limits.interval - 0.5:
            self.interval()

    def _pull(self, watch: Watch, now: float) -> None:
        fd = self._log.fileno()
        kind = self._log.kind if fd >= 0 or self._log.kind == "none" else "absent"
        seen, sent, lost, error, _ = watch.pull(fd, kind, self._log.header(INFO, now))
        if isinstance(self._log, Json):
            sent, lost = self._log.deliver(now, PATIENCE)
        self._seen += seen
        self._lined += sent + lost
        if lost:
            self._lose(lost)
            if error and not isinstance(OSError(error, ""), BlockingIOError):
                self._log.hang_up()
        elif sent:
            self._told()

    def totals(self) -> stats.Totals:
        """Since the start, over all boards."""
        totals = self._gone
        for watch in self._watches:
            totals = totals.plus(watch.totals())
        return totals

    def _dropped(self) -> int:
        return self._gone_dropped + sum(watch.board.dropped() for watch in self._watches)

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
        totals = self.totals()
        fresh = totals.since(self._since)
        dropped = self._dropped() - self._since_dropped
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
        busiest = self._busiest()
        if busiest:
            words.append("busiest " + " ".join(f"[{source}]={count}" for source, count in busiest))
        self.say(INFO, " ".join(word for word in words if word))
        for watch in self._watches:
            watch.reader.forget()
        self._since = totals
        self._since_dropped += dropped
        self._mark = now
        self._seen = self._lined = 0

    def _busiest(self) -> list[tuple[str, int]]:
        counts: Counter[str] = Counter()
        for watch in self._watches:
            counts.update(dict(watch.reader.busiest(BUSIEST)))
        return counts.most_common(BUSIEST)

    def counters(self) -> None:
        """Every listener's counters, one line each."""
        for watch in self._watches:
            for index, listener in enumerate(watch.settings.listeners):
                totals = stats.of_listener(watch.board, index)
                self.say(
                    INFO, f"counters: {listener.place} {listener.name} {totals.words() or 'all 0'}"
                )

    def stopped(self, reason: str, clean: bool) -> None:
        totals = self.totals()
        seconds = time.monotonic() - self._began
        self._patience = PATIENCE  # afresh: connection lines may just have filled the log
        self.say(
            NOTICE if clean else ERROR,
            f"stopped: {reason}{'' if clean else ', a loop did not end in time'}; totals:"
            f" {seconds:.0f} s, connections={totals['accepted']}"
            f" {totals.words(stats.AFTER_ACCEPTED)}".rstrip(),
        )
