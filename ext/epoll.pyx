# cython: language_level=3
"""The loop for Linux: `turnaway._epoll`.

Owns: a worker's turn, from epoll_wait to epoll_wait (epoll(7)).  Promises:
once `run` has let go of the GIL nothing here calls Python, allocates, or ends
the loop but the board's stop flag.  Failures are counted by kind.

The order of a turn: wait; take what each ready listener has, at most BATCH a
listener; look at held clients that spoke or hung up; deal with those whose time
is over; bring rested listeners back; and, while connections come fast, let
them gather for at most a millisecond.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from posix.unistd cimport close, dup2, read

from listeners cimport (
    BATCH, Batch, Board, Listening, State, Stop, Worker, listener_rise,
    listener_stumble,
)
from net cimport (
    net_add64, net_close_range, net_load32, net_name_thread,
    net_own_descriptors, net_sleep, net_steady, net_store32,
)
from turn cimport (
    GATHER_MICROS, LAST_ACCEPTS, LAST_MICROS, deadline, expire, farewell,
    gathers, hear, turn_away,
)

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLLIN
        EPOLLRDHUP
        EPOLLEXCLUSIVE
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int poller, int operation, int fd, epoll_event *event)
    int epoll_wait(int poller, epoll_event *events, int most, int millis)

cdef enum:
    EVENTS = 64

cdef enum:
    # A socket that a supervisor handed in is shared: wake one worker, not all.
    LISTENER_EVENTS = EPOLLIN | EPOLLEXCLUSIVE

# What an event's 64 bits of data mean: a kind and an index.
cdef enum Kind:
    KIND_LISTENER
    KIND_CLIENT
    KIND_WAKE


cdef inline int watch(int poller, int fd, Kind kind, int32_t index, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.u64 = (<uint64_t>kind << 32) | <uint32_t>index
    return epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)


cdef inline void unwatch(int poller, int fd) noexcept nogil:
    cdef epoll_event unused
    epoll_ctl(poller, EPOLL_CTL_DEL, fd, &unused)


cdef inline bint serve(
    Board *board, int poller, Worker *worker, Listening *listening, int64_t now, int *served
) noexcept nogil:
    """Turn away up to a batch; True when none are left waiting."""
    cdef bint emptied = turn_away(board, worker, listening, BATCH, now, served)
    cdef const Batch *batch = &worker.batch
    cdef int index
    if listening.resting:
        unwatch(poller, listening.fd)
    for index in range(batch.holds):
        watch(
            poller, worker.pool.places[batch.held[index]].fd, Kind.KIND_CLIENT,
            batch.held[index], EPOLLIN | EPOLLRDHUP,
        )
    return emptied


cdef inline void rouse(int poller, Worker *worker, int64_t now) noexcept nogil:
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
            if watch(poller, listening.fd, Kind.KIND_LISTENER, index, LISTENER_EVENTS) != 0:
                listener_stumble(worker, listening, errno, now)


cdef inline void obey(int poller, Worker *worker, int64_t now) noexcept nogil:
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
            unwatch(poller, listening.fd)
        elif watch(poller, listening.fd, Kind.KIND_LISTENER, index, LISTENER_EVENTS) != 0:
            listener_stumble(worker, listening, errno, now)
        listening.paused = paused


cdef inline int patience(const Worker *worker, int64_t now) noexcept nogil:
    """Milliseconds until the next deadline, or -1 for none (epoll_wait(2))."""
    cdef int64_t next = deadline(worker)
    if next < 0:
        return -1
    if next <= now:
        return 0
    return <int>((next - now + 999) // 1000)


cdef void retire(Board *board, int poller, Worker *worker) noexcept nogil:
    """Take no more connections: those of a listener that leaves are answered to
    the last, the others are left to the loop that goes on with it."""
    cdef int64_t until = net_steady() + LAST_MICROS
    cdef int32_t index
    cdef int taken = 0
    cdef Listening *listening
    for index in range(worker.listeners):
        listening = &worker.listening[index]
        if listening.resting:
            listener_rise(worker, listening)
        else:
            unwatch(poller, listening.fd)
        while listening.leaves and taken < LAST_ACCEPTS and net_steady() < until:
            if serve(board, poller, worker, listening, until, &taken):
                break
        if worker.own_table:
            close(listening.fd)  # else the shell does
        net_store32(<uint32_t *>&listening.fd, <uint32_t>-1)


cdef void turn_until_stopped(Board *board, int poller, Worker *worker) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef int64_t now = net_steady()
    cdef int64_t before
    cdef int ready, which, taken, clients
    cdef int32_t index
    cdef uint64_t note
    cdef bint emptied
    cdef bint retired = False
    while net_load32(&worker.stop) != <uint32_t>Stop.STOP_NOW:
        if net_load32(&worker.stop) == <uint32_t>Stop.STOP_RETIRE:
            if not retired:
                retired = True
                retire(board, poller, worker)
                now = net_steady()
            if worker.pool.used == 0:
                return
        ready = epoll_wait(poller, events, EVENTS, patience(worker, now))
        before = now
        now = net_steady()
        taken = 0
        clients = 0
        emptied = True
        for which in range(ready):
            index = <int32_t><uint32_t>events[which].data.u64
            if (events[which].data.u64 >> 32) == <uint64_t>Kind.KIND_LISTENER:
                if not serve(board, poller, worker, &worker.listening[index], now, &taken):
                    emptied = False
            elif (events[which].data.u64 >> 32) == <uint64_t>Kind.KIND_CLIENT:
                clients += 1
                hear(board, worker, index, now)
            else:
                read(worker.wake, &note, sizeof(note))
                obey(poller, worker, now)
        # Only now: whoever sees that the loop has turned may wake it again, and that
        # wakeup must not be among those just read.
        net_add64(&worker.turns, 1)
        if worker.pool.used > 0:
            expire(board, worker, now)
        if worker.resting > 0:
            rouse(poller, worker, now)
        if emptied and clients == 0 and gathers(worker, taken, before, now):
            net_sleep(GATHER_MICROS)


cdef void close_others(Board *board, Worker *worker, int poller) noexcept nogil:
    """In a table of our own: close all but our listeners, poller, wakeup, bell.

    Else a listener that another worker or the shell closes would live on here,
    and so would the terminal.  The standard three become the end of a pipe that
    cannot be written to, so that nothing ever takes a client for stderr.
    """
    cdef int32_t index
    cdef int keep, fd
    cdef int floor = 3
    for fd in range(3):
        dup2(worker.wake, fd)
    while True:
        keep = -1
        for index in range(worker.listeners + 3):
            if index < worker.listeners:
                fd = worker.listening[index].fd
            elif index == worker.listeners:
                fd = worker.wake
            elif index == worker.listeners + 1:
                fd = board.bell
            else:
                fd = poller
            if fd >= floor and (keep < 0 or fd < keep):
                keep = fd
        if keep < 0:
            net_close_range(<unsigned int>floor, 0xFFFFFFFF)
            return
        if keep > floor and net_close_range(<unsigned int>floor, <unsigned int>(keep - 1)) != 0:
            for fd in range(floor, keep):
                close(fd)
        floor = keep + 1


cdef void work(Board *board, Worker *worker) noexcept nogil:
    cdef int32_t index
    cdef int poller
    net_name_thread(b"turnaway-loop")
    # First the table: what is made before it would stay in the one we leave.
    worker.own_table = net_own_descriptors() == 0
    poller = epoll_create1(EPOLL_CLOEXEC)
    if poller < 0:
        worker.error = errno
        net_store32(&worker.state, State.STATE_BROKEN)
        return
    if worker.own_table:
        close_others(board, worker, poller)
    if watch(poller, worker.wake, Kind.KIND_WAKE, 0, EPOLLIN) != 0:
        worker.error = errno
    for index in range(worker.listeners):
        if net_load32(&worker.listening[index].facts.paused):
            worker.listening[index].paused = True
            continue
        if watch(
            poller, worker.listening[index].fd, Kind.KIND_LISTENER, index, LISTENER_EVENTS
        ) != 0:
            worker.error = errno
    if worker.error:
        close(poller)
        net_store32(&worker.state, State.STATE_BROKEN)
        return
    net_store32(&worker.state, State.STATE_RUNNING)
    turn_until_stopped(board, poller, worker)
    farewell(board, worker)
    close(poller)
    net_store32(&worker.state, State.STATE_STOPPED)


def run(board, int worker):
    """Run worker number `worker` of `board` until the board says stop.

    Call it in a thread of its own: it lets go of the GIL at once and takes it
    back only to return.  The board must have a descriptor for each listener
    of this worker.  Raises IndexError for a worker the board does not have;
    for all else `board.states()` tells how it went.
    """
    cdef Board *memory = <Board *>PyCapsule_GetPointer(board.capsule, b"turnaway.board")
    if not 0 <= worker < memory.workers:
        raise IndexError(f"worker {worker} of {memory.workers}")
    with nogil:
        work(memory, &memory.worker[worker])
