# cython: language_level=3
"""The loop for FreeBSD, OpenBSD, NetBSD and macOS: `turnaway._kqueue`.

Owns: a worker's turn, from kevent to kevent (kqueue(2)).  Promises: once `run`
has let go of the GIL nothing here calls Python, allocates, or ends the loop but
the board's stop flag.  Failures are counted by kind.

It has never run on a BSD or on macOS.  What is known of it is from Linux, where
the tests run it over a kqueue of their own (tests/kqueue/), and from manuals.

The order of a turn is that of the loop for Linux.  What is different:

- The event of a listening socket says how many connections wait: exactly so
  many are accepted, and no accept is spent on finding the queue empty.  (macOS
  counts those in the middle of their handshake too; then one finds it empty.)
- All clients of a batch that must be watched are handed over in one call.
- Rests and deadlines are the time limit of the wait.  EVFILT_TIMER would need a
  change whenever the nearest deadline moves, and its unit differs from system
  to system; the time limit costs nothing and is as fine.
- The descriptors are the process's: there is no unshare(2).  A connection is
  closed by a call of its own, and a listener by the shell.
- Connections gather in a sleep, where one of a millisecond can be had: a wait
  for no event returns at once (FreeBSD), and for a readable listener too.
"""

from cpython.exc cimport PyErr_SetFromErrno
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, int64_t, intptr_t, uint32_t, uintptr_t

from listeners cimport (
    BATCH, Batch, Board, Listening, State, Stop, Worker, listener_rise,
    listener_stumble,
)
from net cimport (
    net_add64, net_load32, net_name_thread, net_sleep, net_steady, net_store32,
)
from turn cimport (
    GATHER_MICROS, LAST_ACCEPTS, LAST_MICROS, deadline, expire, farewell,
    gathers, hear, turn_away,
)

cdef extern from "net.h" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    cdef struct kevent_t "kevent":
        uintptr_t ident
        intptr_t data
    enum:
        EVFILT_READ
        EV_ADD
        EV_DELETE
        NET_QUEUE_FDS
        NET_SHORT_SLEEPS
    int kevent(
        int queue, const kevent_t *changes, int changing, kevent_t *events, int most,
        const timespec *limit,
    )
    void net_change(kevent_t *change, int fd, int filter, int flags, uint32_t mark)
    uint32_t net_mark(const kevent_t *event)
    int net_queue_open(int *fds, uint32_t mark)
    int net_queue_wake(int fd)
    void net_queue_woken(const kevent_t *event)

cdef enum:
    EVENTS = 64

# What the mark of an event means: a kind, and above its two bits an index.
cdef enum Kind:
    KIND_LISTENER
    KIND_CLIENT
    KIND_WAKE
    KINDS_BITS = 2


cdef inline void change(kevent_t *into, int fd, Kind kind, int32_t index) noexcept nogil:
    net_change(into, fd, EVFILT_READ, EV_ADD, (<uint32_t>index << <int>KINDS_BITS) | kind)


cdef inline int watch(int queue, const Listening *listening) noexcept nogil:
    cdef kevent_t one
    change(&one, listening.fd, Kind.KIND_LISTENER, listening.index)
    return kevent(queue, &one, 1, NULL, 0, NULL)


cdef inline void unwatch(int queue, const Listening *listening) noexcept nogil:
    cdef kevent_t one
    net_change(&one, listening.fd, EVFILT_READ, EV_DELETE, 0)
    kevent(queue, &one, 1, NULL, 0, NULL)


cdef inline void watch_held(int queue, const Worker *worker) noexcept nogil:
    """Watch the clients that the last batch left in the pool."""
    cdef kevent_t changes[BATCH]
    cdef const Batch *batch = &worker.batch
    cdef int index
    for index in range(batch.holds):
        change(
            &changes[index], worker.pool.places[batch.held[index]].fd, Kind.KIND_CLIENT,
            batch.held[index],
        )
    if kevent(queue, changes, batch.holds, NULL, 0, NULL) != 0:
        # The call ends at the first that fails; the others are not to pay for it.
        for index in range(batch.holds):
            kevent(queue, &changes[index], 1, NULL, 0, NULL)


cdef inline bint serve(
    Board *board, int queue, Worker *worker, Listening *listening, intptr_t waiting,
    int64_t now, int *served,
) noexcept nogil:
    """Turn away those who wait, at most a batch; True when none are left.

    With none said to wait: until the queue is found empty.
    """
    cdef int most = <int>waiting if 0 < waiting < BATCH else BATCH
    cdef bint emptied = turn_away(board, worker, listening, most, now, served)
    if listening.resting:
        unwatch(queue, listening)
    if worker.batch.holds > 0:
        watch_held(queue, worker)
    return emptied or most < BATCH


cdef inline void rouse(int queue, Worker *worker, int64_t now) noexcept nogil:
    """Bring back every listener whose rest is over."""
    cdef int32_t index
    cdef Listening *listening
    for index in range(worker.listeners):
        listening = &worker.listening[index]
        if listening.resting and listening.retry <= now:
            listener_rise(worker, listening)
            if net_load32(&listening.facts.paused):
                listening.paused = True
                continue
            if watch(queue, listening) != 0:
                listener_stumble(worker, listening, errno, now)


cdef inline void obey(int queue, Worker *worker, int64_t now) noexcept nogil:
    """The shell woke us: pause or resume listeners as it said.

    A paused listener keeps its queue; who waits there is answered afterwards.
    """
    cdef int32_t index
    cdef Listening *listening
    cdef bint paused
    for index in range(worker.listeners):
        listening = &worker.listening[index]
        paused = net_load32(&listening.facts.paused) != 0
        if paused == listening.paused or listening.resting or listening.fd < 0:
            continue
        if paused:
            unwatch(queue, listening)
        elif watch(queue, listening) != 0:
            listener_stumble(worker, listening, errno, now)
        listening.paused = paused


cdef inline int wait(int queue, const Worker *worker, kevent_t *events, int64_t now) noexcept nogil:
    """Wait for events, or for the next deadline; how many came, or -1."""
    cdef int64_t next = deadline(worker)
    cdef timespec limit
    if next < 0:
        return kevent(queue, NULL, 0, events, EVENTS, NULL)
    next = max(next - now, 0)
    limit.tv_sec = <long>(next // 1_000_000)
    limit.tv_nsec = <long>(next % 1_000_000) * 1000
    return kevent(queue, NULL, 0, events, EVENTS, &limit)


cdef void retire(Board *board, int queue, Worker *worker) noexcept nogil:
    """Take no more connections: those of a listener that leaves are answered to
    the last, the others are left to the loop that goes on with it.

    The shell closes the listeners: other workers may have the same descriptor.
    """
    cdef int64_t until = net_steady() + LAST_MICROS
    cdef int32_t index
    cdef int taken = 0
    cdef Listening *listening
    for index in range(worker.listeners):
        listening = &worker.listening[index]
        if listening.resting:
            listener_rise(worker, listening)
        else:
            unwatch(queue, listening)
        while listening.leaves and taken < LAST_ACCEPTS and net_steady() < until:
            if serve(board, queue, worker, listening, 0, until, &taken):
                break
        if listening.resting:
            listener_rise(worker, listening)
        net_store32(<uint32_t *>&listening.fd, <uint32_t>-1)


cdef void turn_until_stopped(Board *board, int queue, Worker *worker) noexcept nogil:
    cdef kevent_t events[EVENTS]
    cdef const kevent_t *event
    cdef int64_t now = net_steady()
    cdef int64_t before
    cdef int ready, which, taken, clients
    cdef int32_t index
    cdef uint32_t kind
    cdef bint emptied
    cdef bint retired = False
    while net_load32(&worker.stop) != <uint32_t>Stop.STOP_NOW:
        if net_load32(&worker.stop) == <uint32_t>Stop.STOP_RETIRE:
            if not retired:
                retired = True
                retire(board, queue, worker)
                now = net_steady()
            if worker.pool.used == 0:
                return
        ready = wait(queue, worker, events, now)
        if ready < 0 and errno != EINTR:
            net_sleep(GATHER_MICROS)  # whatever it is: no spinning
        before = now
        now = net_steady()
        taken = 0
        clients = 0
        emptied = True
        for which in range(ready):
            event = &events[which]
            index = <int32_t>(net_mark(event) >> <int>KINDS_BITS)
            kind = net_mark(event) & <uint32_t>((1 << <int>KINDS_BITS) - 1)
            if kind == <uint32_t>Kind.KIND_LISTENER:
                if not serve(
                    board, queue, worker, &worker.listening[index], event.data, now, &taken
                ):
                    emptied = False
            elif kind == <uint32_t>Kind.KIND_CLIENT:
                clients += 1
                hear(board, worker, index, now)
            else:
                net_queue_woken(event)
                obey(queue, worker, now)
        if worker.pool.used > 0:
            expire(board, worker, now)
        if worker.resting > 0:
            rouse(queue, worker, now)
        # Not before the wakeup was heard: a wakeup that comes now must bring another
        # turn, for whoever waits to see one (a watchdog).
        net_add64(&worker.turns, 1)
        if (
            NET_SHORT_SLEEPS and emptied and clients == 0
            and gathers(worker, taken, before, now)
        ):
            net_sleep(GATHER_MICROS)


cdef void work(Board *board, Worker *worker) noexcept nogil:
    cdef int32_t index
    cdef Listening *listening
    net_name_thread(b"turnaway-loop")
    for index in range(worker.listeners):
        listening = &worker.listening[index]
        if net_load32(&listening.facts.paused):
            listening.paused = True
        elif watch(worker.wake, listening) != 0:
            worker.error = errno
    if worker.error:
        net_store32(&worker.state, State.STATE_BROKEN)
        return
    net_store32(&worker.state, State.STATE_RUNNING)
    turn_until_stopped(board, worker.wake, worker)
    farewell(board, worker)
    net_store32(&worker.state, State.STATE_STOPPED)


def open_wake():
    """Descriptors for one worker: the first is its kqueue, for the board's
    attach_wake; the last is for `wake`.  Close all when its loop has ended.
    Raises OSError.  Not inherited by a child of fork(2): call it after."""
    cdef int fds[NET_QUEUE_FDS]
    cdef int made = net_queue_open(fds, <uint32_t>Kind.KIND_WAKE)
    cdef int index
    if made < 0:
        PyErr_SetFromErrno(OSError)
    return tuple([fds[index] for index in range(made)])


def wake(int fd):
    """Make the loop turn once whose `open_wake` ended with `fd`.  Raises OSError."""
    if net_queue_wake(fd) != 0:
        PyErr_SetFromErrno(OSError)


def run(board, int worker):
    """Run worker number `worker` of `board` until the board says stop.

    Call it in a thread of its own: it lets go of the GIL at once and takes it
    back only to return.  The board must have a descriptor for each listener
    of this worker, and the first of `open_wake` to wake it.  Raises IndexError
    for a worker the board does not have; for all else `board.states()` tells
    how it went.
    """
    cdef Board *memory = <Board *>PyCapsule_GetPointer(board.capsule, b"turnaway.board")
    if not 0 <= worker < memory.workers:
        raise IndexError(f"worker {worker} of {memory.workers}")
    with nogil:
        work(memory, &memory.worker[worker])
