"""The life of the process: the order of start, the tick, signals, reload, stop.

Owns: the order in design.md's "Start", and what happens once a second after
it.  Promises: by the time `ready` is said every listener answers, root is gone
and the pidfile is written; a signal only sets a byte in a pipe, and straight
code acts on it; SIGTERM ends the process within a second; a reload that cannot
be done whole is not done at all.
"""

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from socket import socket
from types import FrameType

from turnaway import answers, metrics, privileged
from turnaway._board import no_new_privileges
from turnaway.detach import Lifeline, detach, foreground
from turnaway.engine import LOOP, Engine, descriptors_of
from turnaway.exits import OS_ERROR, Failure
from turnaway.journal import Journal
from turnaway.notify import Supervisor
from turnaway.outlet import ERROR, INFO, NOTICE, WARNING
from turnaway.poller import Poller
from turnaway.settings import Settings
from turnaway.stats import Ledger

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

# What a reload cannot change: it was used as root, or others hold on to it.
FIXED = (
    "workers",
    "identity",
    "chroot",
    "pidfile",
    "control",
    "log",
    "syslog_socket",
    "json_path",
    "metrics",
)

Reread = Callable[[], Settings]


def _noted(number: int, frame: FrameType | None) -> None:
    """The signal's number is in the wakeup pipe already; see serve()."""


def run(settings: Settings, reread: Reread | None = None) -> int:
    """From checked settings to the end of the process; returns the exit status.

    `reread` reads the settings again, for a reload, and raises Failure; None
    when they came from the command line alone.  Raises Failure when the daemon
    cannot start.  In the background the caller's own process never returns.
    """
    for listener in settings.listeners:
        answers.render(listener, time.time())
    # A signal that comes while we start waits until serve() looks for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if not settings.foreground:
        privileged.close_inherited()
    pidfile = privileged.Pidfile(settings.pidfile) if settings.pidfile else None
    try:
        inherited = privileged.Inherited()
        inherited.unclaimed(settings.listeners)
        sockets = privileged.bind(settings.listeners, settings.workers, inherited)
        journal = Journal(settings)
        ledger = Ledger()
        sight = metrics.opened(settings, ledger, journal.lost)
        time.tzset()  # reads the zone now; a chroot may have none
        lifeline = foreground() if settings.foreground else detach()
    except Failure:
        if pidfile:
            pidfile.remove()
        raise
    try:
        try:
            daemon = _start(settings, pidfile, sockets, journal, ledger, sight, lifeline)
        except (OSError, RuntimeError) as error:  # such as out of descriptors, of threads
            raise Failure(OS_ERROR, f"cannot start: {error}") from None
    except Failure as failure:
        if pidfile:
            pidfile.remove()
        if settings.foreground:
            raise
        for reason in failure.reasons:
            os.write(2, f"{settings.program}: {reason}\n".encode(errors="backslashreplace"))
        lifeline.failed(failure.status)
        return failure.status
    return daemon.live(reread)


def _start(
    settings: Settings,
    pidfile: privileged.Pidfile | None,
    sockets: list[list[socket]],
    journal: Journal,
    ledger: Ledger,
    sight: metrics.Metrics | None,
    lifeline: Lifeline,
) -> "_Daemon":
    user = str(os.geteuid())
    supervisor = Supervisor()
    descriptors = descriptors_of(settings)
    allowed = privileged.allow_descriptors(descriptors)
    if pidfile:
        pidfile.write(os.getpid())
        if settings.identity:
            pidfile.leave_to_janitor()
    if settings.chroot:
        privileged.enter_chroot(settings.chroot)
    if settings.identity:
        privileged.drop(settings.identity)
        user = settings.identity.user
    no_new_privileges()
    daemon = _Daemon(settings, pidfile, journal, ledger, sight, supervisor)
    signal.set_wakeup_fd(daemon.ring, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _noted)
    daemon.begin(settings, sockets)
    if sight:
        sight.begin(daemon.poller)
    # After the loops, so that they never see a signal; whatever mask the caller left.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    journal.started(user, LOOP)
    if allowed < descriptors:
        journal.say(
            WARNING,
            f"descriptors: the limits need {descriptors}, {allowed} are allowed; raise"
            " RLIMIT_NOFILE (ulimit -Hn) or lower --max-held",
        )
    supervisor.notify("READY=1\n")
    lifeline.ready()
    return daemon


class _Daemon:
    """The process once root is gone: the loops of now, those that retire, the log."""

    def __init__(
        self,
        settings: Settings,
        pidfile: privileged.Pidfile | None,
        journal: Journal,
        ledger: Ledger,
        sight: metrics.Metrics | None,
        supervisor: Supervisor,
    ) -> None:
        self.settings = settings
        self.pidfile = pidfile
        self.journal = journal
        self.ledger = ledger
        self.sight = sight
        self.supervisor = supervisor
        self.retired: list[Engine] = []
        self.poller = Poller()
        # Loops and signals wake the tick through one pipe.
        self.bell, self.ring = os.pipe()
        os.set_blocking(self.bell, False)
        os.set_blocking(self.ring, False)

    def begin(self, settings: Settings, sockets: list[list[socket]]) -> None:
        """Loops for these settings, beside those there are.  Raises Failure."""
        engine = Engine(settings, sockets, self.ring)
        _publish(settings, engine)
        engine.start()
        self.journal.follow(settings, engine.board)
        self.ledger.follow(settings, engine.board)
        self.engine = engine
        self.settings = settings
        self._turns: list[int] | None = None

    def live(self, reread: Reread | None) -> int:
        """Until a signal says stop; returns the exit status."""
        reason = self.serve(reread)
        self.supervisor.notify("STOPPING=1\n")
        ended = not [one for one in (*self.retired, self.engine) if not one.stop()]
        self.journal.tick(time.time())
        self.journal.stopped(reason, ended)
        if self.sight:
            self.sight.end()
        if self.pidfile:
            self.pidfile.remove()
        return 0 if ended else OS_ERROR

    def serve(self, reread: Reread | None) -> str:
        """The tick, until a signal says stop; returns its name."""
        self.poller.watch(self.bell, lambda: None)
        second = int(time.time())
        while True:
            # To the beginning of the next second of the calendar, by which banners
            # go; a clock that is set is followed within a second.
            now = time.time()
            self.poller.wait(1 - now % 1)
            self._prove_life()
            if int(time.time()) != second:
                second = int(time.time())
                for engine in (*self.retired, self.engine):
                    _publish(engine.settings, engine)
            try:
                woken = os.read(self.bell, 4096)
            except BlockingIOError:
                woken = b""
            self.journal.tick(time.time())
            if self.sight:
                for severity, text in self.sight.tick():
                    self.journal.say(severity, text)
            self._bury()
            for number in woken:
                if number in (signal.SIGTERM, signal.SIGINT):
                    return signal.Signals(number).name
                if number == signal.SIGUSR1:
                    self.journal.counters()
                elif number == signal.SIGHUP:
                    self.reload(reread)

    def _prove_life(self) -> None:
        """Feed the supervisor's watchdog, but only when every loop has turned since
        it was last woken for this; else say nothing, and let it act."""
        if not self.supervisor.watches:
            return
        turns = [state[2] for state in self.engine.board.states()]
        if self._turns is None or all(
            now != before for now, before in zip(turns, self._turns, strict=True)
        ):
            self.supervisor.notify("WATCHDOG=1\n")
            self._turns = turns
            self.engine.wake()

    def _bury(self) -> None:
        """Retired loops that have ended: their counters stay, their memory goes."""
        for engine in [one for one in self.retired if one.ended()]:
            self.journal.leave(engine.board)
            self.ledger.leave(engine.board)
            self.retired.remove(engine)

    def reload(self, reread: Reread | None) -> bool:
        """Read, check and render everything anew, then change over to it.

        Listeners that stay keep their sockets and with them their queues: the
        new loops take over while the old ones still answer whom they hold.
        """
        self.journal.reopen()
        if reread is None:
            self.journal.say(INFO, "SIGHUP: nothing to reload, there is no configuration file")
            return False
        self.supervisor.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\n")
        try:
            settings = self._allowed(reread())
            sockets, settings = self._sockets(settings)
            if not settings.listeners:
                raise Failure(OS_ERROR, "no listener is left that could be bound")
            old, leaving = self.engine, self._leaving(settings)
            self.begin(settings, sockets)
        except (Failure, OSError, RuntimeError) as error:
            reasons = error.reasons if isinstance(error, Failure) else (str(error),)
            for reason in reasons:
                self.journal.say(ERROR, f"reload: {reason}")
            self.journal.say(ERROR, "reload: nothing was changed")
            self.ledger.reloads["failed"] += 1
            self.supervisor.notify("READY=1\n")
            return False
        old.retire(leaving)
        self.retired.append(old)
        self.ledger.reloads["done"] += 1
        self.journal.say(
            NOTICE, f"reloaded: listeners [{', '.join(one.place for one in settings.listeners)}]"
        )
        self.supervisor.notify("READY=1\n")
        return True

    def _allowed(self, settings: Settings) -> Settings:
        """The settings without what only a restart can change; that is told."""
        kept = {}
        for name in FIXED:
            now, wanted = getattr(self.settings, name), getattr(settings, name)
            if now != wanted:
                self.journal.say(WARNING, f"reload: {name} needs a restart, it stays {now}")
                kept[name] = now
        return dataclasses.replace(settings, foreground=self.settings.foreground, **kept)

    def _sockets(self, settings: Settings) -> tuple[list[list[socket]], Settings]:
        """[worker][listener]: those that stay, and new ones as far as permitted."""
        rows: list[list[socket]] = [[] for _ in range(settings.workers)]
        able = []
        places = {one.place: index for index, one in enumerate(self.settings.listeners)}
        for listener in settings.listeners:
            if listener.place in places:
                column = [row[places[listener.place]] for row in self.engine.sockets]
                for one in column:
                    privileged.tune(one, listener)
            else:
                try:
                    bound = privileged.bind((listener,), settings.workers)
                except Failure as failure:
                    self.journal.say(WARNING, f"reload: needs a restart: {failure.reasons[0]}")
                    continue
                column = [row[0] for row in bound]
            able.append(listener)
            for row, one in zip(rows, column, strict=True):
                row.append(one)
        return rows, dataclasses.replace(settings, listeners=tuple(able))

    def _leaving(self, settings: Settings) -> list[int]:
        """The listeners of now that are not among the new ones."""
        staying = {one.place for one in settings.listeners}
        return [
            index for index, one in enumerate(self.settings.listeners) if one.place not in staying
        ]


def _publish(settings: Settings, engine: Engine) -> None:
    """Every listener's answers for this second."""
    moment = time.time()
    for index, listener in enumerate(settings.listeners):
        for words, (octets, head) in answers.render(listener, moment).items():
            engine.board.publish(index, words, octets, head)
