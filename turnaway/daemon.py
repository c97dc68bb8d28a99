"""The life of the process: the order of start, the tick, signals, stop.

Owns: the order in design.md's "Start", and what happens once a second after
it.  Promises: by the time `ready` is said every listener answers, root is gone
and the pidfile is written; a signal only sets a byte in a pipe, and straight
code acts on it; SIGTERM ends the process within a second.
"""

import os
import select
import signal
import time
from socket import socket
from types import FrameType

from turnaway import answers, privileged
from turnaway.detach import Lifeline, detach, foreground
from turnaway.engine import LOOP, Engine, descriptors_of
from turnaway.exits import OS_ERROR, Failure
from turnaway.journal import INFO, WARNING, Journal
from turnaway.notify import Supervisor
from turnaway.settings import Settings

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def _noted(number: int, frame: FrameType | None) -> None:
    """The signal's number is in the wakeup pipe already; see serve()."""


def run(settings: Settings) -> int:
    """From checked settings to the end of the process; returns the exit status.

    Raises Failure when it cannot start.  In the background the caller's own
    process never returns from here.
    """
    for listener in settings.listeners:
        answers.render(listener, time.time())
    # A signal that comes while we start waits until serve() looks for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    pidfile = privileged.Pidfile(settings.pidfile) if settings.pidfile else None
    try:
        sockets = privileged.bind(settings.listeners, settings.workers)
        journal = Journal(settings)
        time.tzset()  # reads the zone now; a chroot may have none
        lifeline = foreground() if settings.foreground else detach()
    except Failure:
        if pidfile:
            pidfile.remove()
        raise
    try:
        try:
            return _start(settings, pidfile, sockets, journal, lifeline)
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


def _start(
    settings: Settings,
    pidfile: privileged.Pidfile | None,
    sockets: list[list[socket]],
    journal: Journal,
    lifeline: Lifeline,
) -> int:
    user = str(os.geteuid())
    descriptors = descriptors_of(settings)
    allowed = privileged.allow_descriptors(descriptors)
    supervisor = Supervisor()
    if pidfile:
        pidfile.write(os.getpid())
        if settings.identity:
            pidfile.leave_to_janitor()
    if settings.chroot:
        privileged.enter_chroot(settings.chroot)
    if settings.identity:
        privileged.drop(settings.identity)
        user = settings.identity.user
    engine = Engine(settings, sockets)
    signal.set_wakeup_fd(engine.ring, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _noted)
    publish(settings, engine)
    journal.open(engine.board)
    engine.start()
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
    reason = serve(settings, engine, journal)
    supervisor.notify("STOPPING=1\n")
    ended = engine.stop()
    journal.tick(time.time())
    journal.stopped(reason, ended)
    if pidfile:
        pidfile.remove()
    return 0 if ended else OS_ERROR


def publish(settings: Settings, engine: Engine) -> None:
    """Every listener's answers for this second."""
    moment = time.time()
    for index, listener in enumerate(settings.listeners):
        for words, (octets, head) in answers.render(listener, moment).items():
            engine.board.publish(index, words, octets, head)


def serve(settings: Settings, engine: Engine, journal: Journal) -> str:
    """The tick, until a signal says stop; returns its name."""
    poller = select.poll()
    poller.register(engine.bell, select.POLLIN)
    second = int(time.time())
    while True:
        # To the beginning of the next second of the calendar, by which banners
        # go; a clock that is set is followed within a second.
        now = time.time()
        poller.poll(max(1, 1000 - int(now % 1 * 1000)))
        if int(time.time()) != second:
            second = int(time.time())
            publish(settings, engine)
        try:
            woken = os.read(engine.bell, 4096)
        except BlockingIOError:
            woken = b""
        journal.tick(time.time())
        for number in woken:
            if number in (signal.SIGTERM, signal.SIGINT):
                return signal.Signals(number).name
            if number == signal.SIGUSR1:
                journal.counters()
            elif number == signal.SIGHUP:
                journal.say(INFO, "SIGHUP: nothing to reload, there is no configuration file")
