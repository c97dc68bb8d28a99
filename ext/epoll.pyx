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
from libc.errno cimport EAGAIN, EMFILE, ENFILE, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from posix.unistd cimport close, dup2, read

from answer cimport count, look, record, say
from client cimport (
    client_close, client_due, client_hold, client_readable, client_sacrifice,
)
from counters cimport (
    ACCEPTED, EARLY, HELD, PARK_FULL, PARKED, Policy, policy_of_errno,
)
from listeners cimport (
    BATCH, EXPECTED_HTTP, MANNER_ASK, MANNER_DRAIN, MANNER_NOW, MANNER_QUIT,
    MANNER_RESET, Batch, Board, Facts, Listening, State, Stop, Worker,
    disposal_add, listener_rest, listener_rise, listener_stumble,
)
from net cimport (
    net_accept, net_add64, net_calendar, net_close_range, net_half_close,
    net_load32, net_name_thread, net_own_descriptors, net_sleep, net_steady,
    net_store32, net_unpack, sockaddr_storage,
)
from pool cimport (
    HELD_DRAINING, HELD_PROBING, HELD_QUITTING, HELD_READING, NOBODY,
    QUEUE_DRAIN, QUEUE_PARK, QUEUE_PROBE, QUEUE_QUIT, QUEUE_REQUEST, Held,
    Queue, pool_deadline, pool_due, pool_leave,
)
from ring cimport (
    OUTCOME_EARLY, OUTCOME_FULL, OUTCOME_SENT, OUTCOME_WAITS, Outcome,
)
from slot cimport WORDS_BANNER, Words, slot_current

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
    # While connections come fast the loop lets them gather this long.
    GATHER_MICROS = 1000
    # Accepts after the order to stop, so that who is already in the queue is
    # answered; bounded, for new ones keep coming.
    LAST_ACCEPTS = 65536
    LAST_MICROS = 250_000

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


cdef inline bint hold(
    int poller, Worker *worker, Listening *listening, int fd, const unsigned char *peer,
    unsigned short port, Held state, Queue queue, int64_t now,
) noexcept nogil:
    """Keep a client for later; False when it cannot be, and the caller closes it."""
    cdef int32_t place = client_hold(worker, listening, fd, peer, port, state, queue, now)
    if place == NOBODY:
        return False
    if watch(poller, fd, Kind.KIND_CLIENT, place, EPOLLIN | EPOLLRDHUP) == 0:
        return True
    pool_leave(&worker.pool, place)
    return False


cdef inline Outcome greet(
    const Listening *listening, int fd, const sockaddr_storage *address
) noexcept nogil:
    """What is said to a connection the moment it is accepted."""
    cdef const Facts *facts = listening.facts
    cdef unsigned char peer[16]
    if slot_current(&listening.answers[<int>WORDS_BANNER]).marks > 0:
        net_unpack(address, peer)
    if facts.manner == MANNER_NOW or facts.manner == MANNER_DRAIN:
        return say(listening, WORDS_BANNER, False, True, fd, peer)
    if facts.manner == MANNER_ASK:
        return OUTCOME_WAITS
    return say(listening, WORDS_BANNER, False, False, fd, peer)


cdef inline bint take(
    int poller, Worker *worker, Listening *listening, int64_t now, int *taken
) noexcept nogil:
    """Accept up to a batch, and greet each at once if it is to be greeted.

    True when the queue was found empty, or when the listener went to rest.
    """
    cdef Batch *batch = &worker.batch
    cdef int tries
    cdef int fd
    taken[0] = 0
    for tries in range(BATCH):
        fd = net_accept(listening.fd, &batch.peer[taken[0]])
        if fd >= 0:
            batch.fd[taken[0]] = fd
            batch.outcome[taken[0]] = <uint8_t>greet(
                listening, fd, &batch.peer[taken[0]]
            )
            taken[0] += 1
        elif errno == EAGAIN:
            return True
        elif policy_of_errno(errno) == Policy.POLICY_REST and taken[0] > 0:
            # Perhaps short of what this very batch holds: close it and come
            # back; the listener is still readable.
            return False
        elif (errno == EMFILE or errno == ENFILE) and client_sacrifice(worker):
            # A client that was answered is worth less than a new one.
            continue
        elif listener_stumble(worker, listening, errno, now) == Policy.POLICY_REST:
            unwatch(poller, listening.fd)
            return True
    if taken[0] == 0:
        # Nothing but errors, whatever their policy: a whole batch of them does
        # not go away by itself, and a level-triggered poller would spin.
        listener_rest(worker, listening, now)
        unwatch(poller, listening.fd)
        return True
    return False


cdef inline Outcome settle(
    int poller, Worker *worker, Listening *listening, int fd, const unsigned char *peer,
    unsigned short port, Outcome outcome, bint *held, int64_t now,
) noexcept nogil:
    """Hold a connection if it must be; what became of it, or OUTCOME_WAITS."""
    cdef const Facts *facts = listening.facts
    cdef bint refused = False
    held[0] = False
    if facts.manner == MANNER_RESET:
        return outcome
    if facts.manner == MANNER_ASK:
        held[0] = hold(
            poller, worker, listening, fd, peer, port,
            HELD_READING if facts.expected == EXPECTED_HTTP else HELD_PROBING,
            QUEUE_PROBE if facts.blind == WORDS_BANNER else QUEUE_REQUEST, now,
        )
        if held[0]:
            net_add64(&listening.counters.count[<int>HELD], 1)
            return OUTCOME_WAITS
        outcome = say(listening, <Words>facts.blind, False, not facts.resets, fd, peer)
        outcome = look(fd, outcome)
        return OUTCOME_FULL if outcome == OUTCOME_EARLY else outcome
    if facts.manner == MANNER_QUIT and outcome == OUTCOME_SENT:
        held[0] = hold(
            poller, worker, listening, fd, peer, port, HELD_QUITTING, QUEUE_QUIT, now
        )
        if held[0]:
            net_add64(&listening.counters.count[<int>HELD], 1)
            return outcome
        refused = True
        net_half_close(fd)
    outcome = look(fd, outcome)
    if outcome == OUTCOME_EARLY:
        net_add64(&listening.counters.count[<int>EARLY], 1)
    if facts.manner == MANNER_DRAIN and (outcome == OUTCOME_SENT or outcome == OUTCOME_EARLY):
        held[0] = hold(
            poller, worker, listening, fd, peer, port, HELD_DRAINING, QUEUE_DRAIN, now
        )
        if held[0]:
            net_add64(&listening.counters.count[<int>HELD], 1)
            return outcome
    elif outcome == OUTCOME_EARLY and not refused:
        held[0] = hold(
            poller, worker, listening, fd, peer, port, HELD_DRAINING, QUEUE_PARK, now
        )
        if held[0]:
            net_add64(&listening.counters.count[<int>PARKED], 1)
            return outcome
    if outcome == OUTCOME_EARLY:
        net_add64(&listening.counters.count[<int>PARK_FULL], 1)
        return OUTCOME_FULL
    return outcome


cdef inline void let_go(
    Board *board, int poller, Worker *worker, Listening *listening, int taken, int64_t now
) noexcept nogil:
    """Look at each connection of the batch, write it down, and close or hold it.

    Descriptors are given out lowest first, so those of a batch stand in a row,
    and in a table of our own nobody else's is among them: one call closes them.
    """
    cdef Batch *batch = &worker.batch
    cdef int64_t moment = net_calendar()
    cdef Outcome outcome
    cdef unsigned char peer[16]
    cdef unsigned short port
    cdef bint held
    cdef int waiting = 0
    cdef int first = NOBODY
    cdef int last = NOBODY
    cdef int index, fd
    # First, so that no look at the counters sees more answers than connections.
    net_add64(&listening.counters.count[<int>ACCEPTED], <uint64_t>taken)
    for index in range(taken):
        fd = batch.fd[index]
        port = net_unpack(&batch.peer[index], peer)
        outcome = settle(
            poller, worker, listening, fd, peer, port, <Outcome>batch.outcome[index], &held, now
        )
        if outcome == OUTCOME_WAITS:
            waiting += 1
        else:
            count(listening.counters, outcome, <Words>listening.facts.blind)
            record(
                board, worker, listening, fd, peer, port, moment, outcome,
                <Words>listening.facts.blind,
            )
        if held:
            continue
        if worker.own_table and first != NOBODY and fd == last + 1:
            last = fd
            continue
        close_run(first, last)
        first = last = fd
    close_run(first, last)
    disposal_add(worker, net_steady() - now, <uint64_t>(taken - waiting))


cdef inline void close_run(int first, int last) noexcept nogil:
    cdef int fd
    if first == NOBODY:
        return
    if last > first and net_close_range(<unsigned int>first, <unsigned int>last) == 0:
        return
    for fd in range(first, last + 1):
        close(fd)


cdef inline bint serve(
    Board *board, int poller, Worker *worker, Listening *listening, int64_t now, int *served
) noexcept nogil:
    """Turn away up to a batch; True when none are left waiting."""
    cdef int taken
    cdef bint emptied = take(poller, worker, listening, now, &taken)
    if taken > 0:
        let_go(board, poller, worker, listening, taken, now)
        served[0] += taken
    return emptied


cdef inline void expire(Board *board, Worker *worker, int64_t now) noexcept nogil:
    """Deal with every held client whose time is over."""
    cdef int32_t place = pool_due(&worker.pool, now)
    while place != NOBODY:
        client_due(board, worker, place, now)
        place = pool_due(&worker.pool, now)


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


cdef inline int64_t deadline(const Worker *worker) noexcept nogil:
    """When the loop must turn again by itself, on the steady clock, or -1."""
    cdef int64_t next = pool_deadline(&worker.pool) if worker.pool.used > 0 else -1
    cdef int32_t index
    if worker.resting > 0:
        for index in range(worker.listeners):
            if worker.listening[index].resting and (
                next < 0 or worker.listening[index].retry < next
            ):
                next = worker.listening[index].retry
    return next


cdef inline int patience(const Worker *worker, int64_t now) noexcept nogil:
    """Milliseconds until the next deadline, or -1 for none (epoll_wait(2))."""
    cdef int64_t next = deadline(worker)
    if next < 0:
        return -1
    if next <= now:
        return 0
    return <int>((next - now + 999) // 1000)


cdef void farewell(Board *board, int poller, Worker *worker) noexcept nogil:
    """Answer who is already queued or held, then close every descriptor of ours."""
    cdef int64_t until = net_steady() + LAST_MICROS
    cdef int32_t index
    cdef int taken
    cdef Listening *listening
    for index in range(worker.listeners):
        listening = &worker.listening[index]
        taken = 0
        while listening.fd >= 0 and taken < LAST_ACCEPTS and net_steady() < until:
            if serve(board, poller, worker, listening, until, &taken):
                break
    for index in range(worker.pool.capacity):
        if worker.pool.places[index].fd == NOBODY:
            continue
        if worker.pool.places[index].state != HELD_DRAINING:
            client_due(board, worker, index, until)
        if worker.pool.places[index].fd != NOBODY:
            client_close(worker, index)
    close(poller)


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
        if worker.own_table or listening.leaves:
            close(listening.fd)
        listening.fd = -1


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
        net_add64(&worker.turns, 1)
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
                client_readable(board, worker, index, now)
            else:
                read(worker.wake, &note, sizeof(note))
                obey(poller, worker, now)
        if worker.pool.used > 0:
            expire(board, worker, now)
        if worker.resting > 0:
            rouse(poller, worker, now)
        # A wakeup costs more than a connection.  When this turn brought
        # several, or came within a millisecond of the last, let the next ones
        # gather; but not when a deadline or a held client needs the loop sooner.
        if (
            emptied and clients == 0
            and (taken > 1 or (taken == 1 and now - before < GATHER_MICROS))
            and (deadline(worker) < 0 or deadline(worker) > now + GATHER_MICROS)
        ):
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
    farewell(board, poller, worker)
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
