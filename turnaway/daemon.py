"""The life of the process: the order of start, the tick, signals, reload, stop.

Owns: the order in design.md's "Start", and what happens once a second after
it.  Promises: by the time `ready` is said every listener answers, root is gone
and the pidfile is written; a signal only sets a byte in a pipe, and straight
code acts on it; SIGTERM ends the process within a second; a reload that cannot
be done whole is not done at all.
"""

import dataclasses
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from socket import socket
from types import FrameType
from typing import Any

from turnaway import answers, metrics, orders, privileged
from turnaway._board import Board, no_new_privileges
from turnaway.control import RECORDS, Choice, Control, Door
from turnaway.detach import Lifeline, detach, foreground
from turnaway.engine import LOOP, Engine, descriptors_of
from turnaway.exits import NO_PERMISSION, OS_ERROR, Failure
from turnaway.journal import Journal
from turnaway.notify import Supervisor
from turnaway.outlet import ERROR, INFO, NOTICE, WARNING
from turnaway.poller import Poller
from turnaway.sandbox import Sandbox
from turnaway.settings import Detail, Exposition, Identity, Listener, Settings
from turnaway.stats import Ledger

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

# What a reload cannot change: it was used as root, or others hold on to it.
FIXED = (
    "workers",
    "identity",
    "keep_bind",
    "chroot",
    "pidfile",
    "control",
    "sandbox",
    "log",
    "syslog_socket",
    "json_path",
    "metrics",
)

# Of them, what an operator calls otherwise.
NAMES = {
    "identity": "user",
    "keep_bind": "keep-bind",
    "syslog_socket": "log",
    "json_path": "log",
}

# Earlier loops that still hold clients; each has its threads and its memory.
RETIRED = 16

Reread = Callable[[], Settings]


def _noted(number: int, frame: FrameType | None) -> None:
    """The signal's number is in the wakeup pipe already; see serve()."""


def run(settings: Settings, reread: Reread | None = None, sources: list[str] | None = None) -> int:
    """From checked settings to the end of the process; returns the exit status.

    `reread` reads the settings again, for a reload, and raises Failure, `sources`
    are the files that it reads; None when they came from the command line alone.
    Raises Failure when the daemon cannot start.  In the background the caller's own
    process never returns.
    """
    for listener in settings.listeners:
        answers.render(listener, time.time())
    # A signal that comes while we start waits until serve() looks for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if not settings.foreground:
        privileged.close_inherited()
    pidfile = privileged.Pidfile(settings.pidfile) if settings.pidfile else None
    door = None
    try:
        inherited = privileged.Inherited()
        inherited.unclaimed(settings.listeners)
        sockets = privileged.bind(settings.listeners, settings.workers, inherited)
        door = Door(settings.control) if settings.control else None
        ledger = Ledger()
        journal = Journal(settings, ledger)
        sight = metrics.opened(settings, ledger, journal.lost)
        time.tzset()  # reads the zone now; a chroot may have none
        sandbox = Sandbox(settings, sources)
        lifeline = foreground() if settings.foreground else detach()
    except Failure:
        _remove(door, pidfile)
        raise
    try:
        try:
            daemon = _start(
                settings, pidfile, door, sockets, journal, ledger, sight, lifeline, reread, sandbox
            )
            daemon.handed_in = inherited.names
        except (OSError, RuntimeError) as error:  # such as out of descriptors, of threads
            raise Failure(OS_ERROR, f"cannot start: {error}") from None
    except Failure as failure:
        _remove(door, pidfile)
        if settings.foreground:
            raise
        for reason in failure.reasons:
            os.write(2, f"{settings.program}: {reason}\n".encode(errors="backslashreplace"))
        lifeline.failed(failure.status)
        return failure.status
    return daemon.live()


def _remove(door: Door | None, pidfile: privileged.Pidfile | None) -> None:
    if door:
        door.remove()
    if pidfile:
        pidfile.remove()


def _start(
    settings: Settings,
    pidfile: privileged.Pidfile | None,
    door: Door | None,
    sockets: list[list[socket]],
    journal: Journal,
    ledger: Ledger,
    sight: metrics.Metrics | None,
    lifeline: Lifeline,
    reread: Reread | None,
    sandbox: Sandbox,
) -> "_Daemon":
    user = str(os.geteuid())
    supervisor = Supervisor()
    descriptors = descriptors_of(settings)
    allowed = privileged.allow_descriptors(descriptors)
    if pidfile:
        pidfile.write(os.getpid())
        if settings.identity:
            pidfile.leave_to_janitor(door.path if door else "")
    if door and settings.identity:
        door.give(settings.identity)
    if settings.chroot:
        privileged.enter_chroot(settings.chroot)
    told = []
    if settings.identity:
        privileged.drop(settings.identity, settings.keep_bind)
        user = settings.identity.user
    else:
        try:
            privileged.shed(settings.keep_bind)
        except OSError as error:  # a supervisor's filter of system calls
            told.append(f"capabilities: cannot give them up: {error.strerror}")
    no_new_privileges()
    left = privileged.named_capabilities()
    if settings.keep_bind and not left:
        told.append(
            "keep-bind: there is no CAP_NET_BIND_SERVICE to keep; start as root, or give the"
            " process that capability"
        )
    sandbox.close()  # for every thread that is started from now on, too
    daemon = _Daemon(
        settings, pidfile, door, journal, ledger, sight, supervisor, user, reread, sandbox
    )
    signal.set_wakeup_fd(daemon.ring, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _noted)
    daemon.begin(settings, sockets)
    if sight:
        sight.begin(daemon.poller)
    # After the loops, so that they never see a signal; whatever mask the caller left.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    journal.started(" with ".join([user, *left]), LOOP, sandbox.in_force)
    for text in told:
        journal.say(WARNING, text)
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
        door: Door | None,
        journal: Journal,
        ledger: Ledger,
        sight: metrics.Metrics | None,
        supervisor: Supervisor,
        user: str,
        reread: Reread | None,
        sandbox: Sandbox,
    ) -> None:
        self.settings = settings
        self.pidfile = pidfile
        self.door = door
        self.journal = journal
        self.ledger = ledger
        self.sight = sight
        self.supervisor = supervisor
        self.user = user
        self.sandbox = sandbox
        self.reread = reread
        self.began = time.monotonic()
        self.handed_in: dict[str, str] = {}  # place -> name a supervisor gave its socket
        self.reloaded: dict[str, Any] | None = None  # how the last reload went
        self.told: list[str] = []  # by the reload that goes on
        self.paused: set[str] = set()  # places of listeners; a reload keeps them
        self.retired: list[Engine] = []
        self.asked = False  # SIGHUP came, and the reload has still to be done
        self.poller = Poller()
        self.control = Control(door, self.poller, self.obey) if door else None
        # Loops and signals wake the tick through one pipe.
        self._second = 0  # of the answers
        self._noticed = b""  # signals that came during a reload
        self._reading: threading.Thread | None = None  # the files, for the last reload
        self.bell, self.ring = os.pipe()
        os.set_blocking(self.bell, False)
        os.set_blocking(self.ring, False)

    def begin(self, settings: Settings, sockets: list[list[socket]]) -> None:
        """Loops for these settings, beside those there are.  Raises Failure."""
        engine = Engine(settings, sockets, self.ring)
        _publish(settings, engine)
        for index, listener in enumerate(settings.listeners):
            engine.board.pause(index, listener.place in self.paused)
        engine.start()
        self.paused &= {one.place for one in settings.listeners}
        self.journal.follow(settings, engine.board)
        self.ledger.follow(settings, engine.board)
        self.engine = engine
        self.settings = settings
        self._turns: list[int] | None = None

    def live(self) -> int:
        """Until a signal says stop; returns the exit status."""
        reason = self.serve()
        self.supervisor.notify("STOPPING=1\n")
        ended = not [one for one in (*self.retired, self.engine) if not one.stop()]
        self.tick()
        self.journal.stopped(reason, ended)
        if self.sight:
            self.sight.end()
        if self.control:
            self.control.close()
        _remove(self.door, self.pidfile)
        status = 0 if ended else OS_ERROR
        if self._reading is not None and self._reading.is_alive():
            # It cannot be ended: for that glibc would load a library, which the sandbox
            # forbids, and abort.
            os._exit(status)
        return status

    def serve(self) -> str:
        """The tick, until a signal says stop; returns its name."""
        self.poller.watch(self.bell, lambda: None)
        while True:
            # To the beginning of the next second of the calendar, by which banners
            # go; a clock that is set is followed within a second.
            now = time.time()
            seconds = 0.0 if self._noticed else 1 - now % 1
            self.poller.wait(self.control.patience(seconds) if self.control else seconds)
            self._prove_life()
            self._renew()
            woken, self._noticed = self._noticed + self._woken(), b""
            self.tick()
            if self.sight:
                for severity, text in self.sight.tick():
                    self.journal.say(severity, text)
            self._bury()
            # A signal that came many times since the last look is obeyed once: what it
            # asks for is done after the last of them.
            for number in dict.fromkeys(woken):
                if number in (signal.SIGTERM, signal.SIGINT):
                    return signal.Signals(number).name
                if number == signal.SIGUSR1:
                    self.journal.counters()
                elif number == signal.SIGHUP:
                    self.asked = True
            # With as many loops as may be, it waits until the oldest have ended.
            if self.asked and len(self.retired) < RETIRED:
                self.asked = False
                _, told = self.reload()
                if self.reread is None:
                    self.journal.say(INFO, f"SIGHUP: {told[0]}")

    def _renew(self) -> None:
        """The answers of this second, once in it."""
        if int(time.time()) != self._second:
            self._second = int(time.time())
            for engine in (*self.retired, self.engine):
                _publish(engine.settings, engine)

    def _woken(self) -> bytes:
        """The numbers of the signals that came, and zeros of the loops."""
        try:
            return os.read(self.bell, 4096)
        except BlockingIOError:
            return b""

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

    def tick(self) -> None:
        """Read the rings, for the log and for whoever watches."""
        self.journal.tick(time.time())
        if self.control:
            watched = self.control.watched()
            tails = bool(self.control.tails)
            self.control.tick(*self.journal.overhear(watched, RECORDS if tails else 0))

    # What the control socket may ask for; see orders.py.

    @property
    def boards(self) -> list[Board]:
        return [one.board for one in (*self.retired, self.engine)]

    def obey(self, request: dict[str, Any], who: str) -> tuple[dict[str, Any], Choice | None]:
        reply, choice = orders.obey(self, request, who)
        if choice is not None:
            self.tick()  # what came before it asked is not a tail's
            self.journal.overhear(True, RECORDS)
        return reply, choice

    def pause(self, listener: int, paused: bool) -> None:
        place = self.settings.listeners[listener].place
        self.paused = self.paused | {place} if paused else self.paused - {place}
        self.engine.pause(listener, paused)

    def log_connections(self, detail: Detail, number: int, places: Collection[str] = ()) -> None:
        """Another --log-connections until a reload: of the listeners at these places as
        their own, else of all that have none of their own."""
        if not places:
            self.journal.log_connections(detail, number)
            self.settings = dataclasses.replace(self.settings, detail=detail, detail_number=number)
        for engine in (*self.retired, self.engine):
            for index, listener in enumerate(engine.settings.listeners):
                if listener.place in places:
                    engine.board.log_connections(index, detail, number, True)

    def _bury(self) -> None:
        """Retired loops that have ended: their counters stay, their memory goes."""
        for engine in [one for one in self.retired if one.ended()]:
            self.journal.leave(engine.board)
            self.ledger.leave(engine.board)
            self.retired.remove(engine)
            # The parsers of the files are cycles, and hold the lists of then.
            del engine
            gc.collect()

    def _tell(self, severity: int, text: str) -> None:
        """About the reload that goes on: to the log, and to who asked for it."""
        self.journal.say(severity, f"reload: {text}")
        self.told.append(text)

    def reload(self) -> tuple[bool, list[str]]:
        """Reload, and say whether it was done and what there was to tell."""
        self.told = []
        done = False
        if len(self.retired) < RETIRED:
            done = self._reload()
        else:
            self.told.append(f"{RETIRED} earlier loops still hold clients; try again")
        self.reloaded = {"at": int(time.time()), "ok": done, "told": self.told}
        return done, self.told

    def _reload(self) -> bool:
        """Read, check and render everything anew, then change over to it.

        Listeners that stay keep their sockets and with them their queues: the
        new loops take over while the old ones still answer whom they hold.
        """
        self.journal.reopen()
        if self.reread is None:
            self.told.append("nothing to reload, there is no configuration file")
            return False
        self.supervisor.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\n")
        try:
            settings = self._allowed(self._read_anew(self.reread))
            sockets, settings = self._sockets(settings)
            if not settings.listeners:
                raise Failure(OS_ERROR, "no listener is left that could be bound")
            old, leaving = self.engine, self._leaving(settings)
            self.begin(settings, sockets)
        except (Failure, OSError, RuntimeError, ValueError) as error:
            reasons = error.reasons if isinstance(error, Failure) else (str(error),)
            for reason in reasons:
                self._tell(ERROR, reason)
            self._tell(ERROR, "nothing was changed")
            self.ledger.reloads["failed"] += 1
            self.supervisor.notify("READY=1\n")
            return False
        for index in leaving:
            place = old.settings.listeners[index].place
            if (name := self.handed_in.pop(place, None)) is not None:
                self._tell(
                    WARNING,
                    f"{place} is left, but the supervisor holds its socket ({name}): clients"
                    " wait there unanswered until it closes it",
                )
        old.retire(leaving)
        self.retired.append(old)
        self.ledger.reloads["done"] += 1
        self.journal.say(
            NOTICE, f"reloaded: listeners [{', '.join(one.place for one in settings.listeners)}]"
        )
        self.supervisor.notify("READY=1\n")
        return True

    def _read_anew(self, reread: Reread) -> Settings:
        """The settings, read in a thread of its own: half a million addresses take
        seconds, in which the answers' date, the log and the watchdog go on."""
        found: list[Settings | Exception] = []

        def read() -> None:
            try:
                found.append(reread())
            except Exception as error:
                found.append(error)

        threading.stack_size(0)  # the engine's is made for loops
        self._reading = threading.Thread(target=read, name="turnaway-read", daemon=True)
        self._reading.start()
        while self._reading.is_alive():
            self._reading.join(0.1)
            self._prove_life()
            self._renew()
            self.journal.tick(time.time())
            self._noticed += self._woken().replace(b"\0", b"")
            if signal.SIGTERM in self._noticed or signal.SIGINT in self._noticed:
                raise Failure(OS_ERROR, "not finished, for the order to stop came")
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def _allowed(self, settings: Settings) -> Settings:
        """The settings without what only a restart can change; that is told."""
        kept = {}
        for name in FIXED:
            now, wanted = getattr(self.settings, name), getattr(settings, name)
            if now != wanted:
                self._tell(
                    WARNING, f"{NAMES.get(name, name)} needs a restart, it stays {_text(now)}"
                )
                kept[name] = now
        return dataclasses.replace(settings, foreground=self.settings.foreground, **kept)

    def _sockets(self, settings: Settings) -> tuple[list[list[socket]], Settings]:
        """[worker][listener]: those that stay, and new ones as far as permitted."""
        rows: list[list[socket]] = [[] for _ in range(settings.workers)]
        able = []
        places = {one.place: index for index, one in enumerate(self.settings.listeners)}
        for listener in settings.listeners:
            if listener.place in places:
                now = self.settings.listeners[places[listener.place]].bind
                if listener.bind != now:
                    self._tell(WARNING, f"{listener.place}: bind needs a restart, it stays {now}")
                    listener = dataclasses.replace(listener, bind=now)
                column = [row[places[listener.place]] for row in self.engine.sockets]
                for one in column:
                    privileged.tune(one, listener)
            else:
                try:
                    bound = privileged.bind((listener,), settings.workers)
                except Failure as failure:
                    self._tell(WARNING, f"needs a restart: {_unbound(listener, failure)}")
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


def _text(value: object) -> str:
    """A setting as an operator writes it."""
    if isinstance(value, Identity):
        return f"{value.user} (uid {value.uid}, gid {value.gid})"
    if isinstance(value, Exposition):
        return value.text
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _unbound(listener: Listener, failure: Failure) -> str:
    """Why a listener that a reload brings is not there."""
    if failure.status == NO_PERMISSION and listener.bind != "transparent":
        return f"{listener.place}: not permitted any more; with keep-bind a reload may bind it"
    return failure.reasons[0]


def _publish(settings: Settings, engine: Engine) -> None:
    """Every listener's answers for this second."""
    moment = time.time()
    for index, listener in enumerate(settings.listeners):
        for group, speaks in enumerate(answers.groups(listener, settings.lists)):
            if speaks is None:
                continue
            for words, (octets, head) in answers.render(speaks, moment).items():
                engine.board.publish(index, words, octets, head, group)
