"""What the daemon writes down: messages of its own, and lines for connections.

Owns: the words of every message, and what was lost of them.  Promises: nothing here waits longer than a tenth of a
second for a log that takes nothing, nor than 0.4 s a tick for one that is slow, and
a tenth a second for messages; a log that is absent costs lines and nothing else; what is lost is counted and
told as soon as the log takes lines again; no octet that a client sent appears.

Messages begin with a fixed word: `started`, `stopped`, `reload`, `interval`,
`turned away`, `misdiverted`, `accept`, `stress`, `log`, `counters`, `control`.
"""

import time
from collections import Counter
from dataclasses import replace

from turnaway import __version__, stats
from turnaway._board import Board
from turnaway.outlet import ERROR, INFO, NOTICE, WARNING, Json, outlet
from turnaway.settings import Detail, Settings
from turnaway.watch import Watch

BUSIEST = 5  # sources named in an interval line
SOURCES = 1024  # all that the tally of a board holds
PATIENCE = 0.1  # seconds in which messages may wait for a full log, each second


class Journal:
    """Opened before the detach and the chroot; reads the rings once it follows a board."""

    def __init__(self, settings: Settings, ledger: stats.Ledger) -> None:
        self._ledger = ledger
        self._log = outlet(settings)
        self._second = 0  # of the patience
        self._patience = PATIENCE  # seconds of it left
        self._lost = 0  # lines, since the log last took one
        self._lost_ever = 0
        self._seen = 0  # connections since the last interval line
        self._lined = 0  # of them, with a line of their own
        self._watches: list[Watch] = []
        self._since = stats.Totals()
        self._since_dropped = 0
        self._began = self._mark = time.monotonic()
        self._heard = False  # somebody wants records, whatever the log wants
        self._wanted = 0  # records to keep as text, from one `overhear` to the next
        self._text: list[str] = []
        self._unheard = 0  # records that were read and not kept as text
        # The busiest of the interval before this one, and when it began.
        self._before: Counter[str] = Counter()
        self._before_mark = self._mark

    def follow(self, settings: Settings, board: Board) -> None:
        """Read this board from now on; the settings are those in force."""
        self._settings = settings
        self._watches.append(Watch(settings, board))

    def leave(self, board: Board) -> None:
        """The board's loops have ended: read it for the last time."""
        for watch in [one for one in self._watches if one.board is board]:
            self._pull(watch, time.time())
            for severity, text in watch.changes():
                self.say(severity, text)
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
            watch.board.record(self._heard or self._settings.log != "none")
            self._pull(watch, now)
            for severity, text in watch.changes():
                self.say(severity, text)
        # Ticks come once a second: take the one nearest to the interval's end.
        if time.monotonic() - self._mark > self._settings.limits.interval - 0.5:
            self.interval()

    def _pull(self, watch: Watch, now: float) -> None:
        fd = self._log.fileno()
        kind = self._log.kind if fd >= 0 or self._log.kind == "none" else "absent"
        wanted = max(0, self._wanted - len(self._text))
        seen, sent, lost, error, text = watch.pull(fd, kind, self._log.header(INFO, now), wanted)
        self._text += text
        self._unheard += seen - len(text)
        if isinstance(self._log, Json):
            sent, fewer = self._log.deliver(PATIENCE)
            lost += fewer
        self._seen += seen
        self._lined += sent + lost
        if lost:
            self._lose(lost)
            if error and not isinstance(OSError(error, ""), BlockingIOError):
                self._log.hang_up()
        elif sent:
            self._told()

    def overhear(self, heard: bool, wanted: int) -> tuple[list[str], int]:
        """The records since the last call as text, and how many there were besides.

        From now on `wanted` of them are kept; with `heard` there are records, and a
        tally of their sources, even where no log wants any.
        """
        text, unheard = self._text, self._unheard
        self._text, self._unheard = [], 0
        self._heard, self._wanted = heard, wanted
        return text, unheard

    def sources(self) -> tuple[Counter[str], float]:
        """Connections by source, and over how many seconds: this interval and the one before."""
        counts = Counter(self._before)
        for watch in self._watches:
            counts.update(dict(watch.reader.busiest(SOURCES)))
        return counts, time.monotonic() - self._before_mark

    def lost(self) -> int:
        """Lines that the log did not take, since the start."""
        return self._lost_ever

    def started(self, user: str, loop: str, sandbox: str) -> None:
        settings = self._settings
        listeners = ", ".join(
            f"{one.place} {one.name} {one.persona.name} {one.code}" for one in settings.listeners
        )
        self.say(
            NOTICE,
            f"started: version {__version__}, listeners [{listeners}],"
            f" workers {settings.workers} ({loop}), user {user},"
            f" sandbox {sandbox}",
        )

    def interval(self) -> None:
        now = time.monotonic()
        seconds = max(now - self._mark, 0.001)
        sums = self._ledger.sums()
        totals = sums.total()
        fresh = totals.since(self._since)
        dropped = sums.dropped - self._since_dropped
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
        self._before = Counter()
        self._before_mark = self._mark
        for watch in self._watches:
            self._before.update(dict(watch.reader.busiest(SOURCES)))
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

    def log_connections(self, detail: Detail, number: int) -> None:
        """Another --log-connections for every listener, until the next reload."""
        for watch in self._watches:
            watch.log_connections(detail, number)
        self._settings = replace(self._settings, detail=detail, detail_number=number)

    def counters(self) -> None:
        """Every listener's counters since the start, one line each; no reload makes them fall."""
        sums = self._ledger.sums()
        for listener in self._settings.listeners:
            totals = sums.at(listener)  # the line has no persona
            self.say(
                INFO, f"counters: {listener.place} {listener.name} {totals.words() or 'all 0'}"
            )

    def stopped(self, reason: str, clean: bool) -> None:
        totals = self._ledger.sums().total()
        seconds = time.monotonic() - self._began
        self._patience = PATIENCE  # afresh: connection lines may just have filled the log
        self.say(
            NOTICE if clean else ERROR,
            f"stopped: {reason}{'' if clean else ', a loop did not end in time'}; totals:"
            f" {seconds:.0f} s, connections={totals['accepted']}"
            f" {totals.words(stats.AFTER_ACCEPTED)}".rstrip(),
        )
