"""What every loop does in a turn: accept, greet, look, hold or close.

Owns: the way of a connection from the listener's queue to its close or its
place in the pool, and the end of a loop's life.  Promises: no poller is
touched here.  Whoever must be watched from now on stands in the batch, and a
listener that must be left alone has `resting` set; the loop acts on both.
"""

from libc.errno cimport EAGAIN, EMFILE, ENFILE, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp
from posix.unistd cimport close

from answer cimport count, look, record, say
from client cimport (
    client_close, client_due, client_header, client_hold, client_readable,
    client_sacrifice,
)
from counters cimport (
    ACCEPTED, EARLY, HELD, PARK_FULL, PARKED, PROXIED, Policy, policy_of_errno,
)
from listeners cimport (
    BATCH, EXPECTED_HTTP, MANNER_ASK, MANNER_DRAIN, MANNER_NOW, MANNER_QUIT,
    MANNER_RESET, Batch, Board, Facts, Listening, Network, Worker, disposal_add,
    listener_rest, listener_stumble,
)
from lists cimport lists_find
from net cimport (
    net_accept, net_add64, net_calendar, net_close_range, net_forget, net_half_close,
    net_steady, net_unpack, sockaddr_storage,
)
from pool cimport (
    HELD_DRAINING, HELD_PROBING, HELD_PROXYING, HELD_QUITTING, HELD_READING,
    NOBODY, QUEUE_DRAIN, QUEUE_PARK, QUEUE_PROBE, QUEUE_PROXY, QUEUE_QUIT,
    QUEUE_REQUEST, Caller, pool_deadline, pool_due, pool_leave,
)
from ring cimport (
    OUTCOME_EARLY, OUTCOME_FULL, OUTCOME_HEADLESS, OUTCOME_MISDIVERTED,
    OUTCOME_SENT, OUTCOME_STRANGER, OUTCOME_WAITS, Outcome,
)
from slot cimport WORDS_BANNER, Words
from source cimport source_is_ipv4

cdef enum:
    # While connections come fast the loop lets them gather this long.
    GATHER_MICROS = 1000
    # Accepts after the order to stop, so that who is already in the queue is
    # answered; bounded, for new ones keep coming.
    LAST_ACCEPTS = 65536
    LAST_MICROS = 250_000
    # Bits that all v4-mapped addresses have in common (RFC 4291 2.5.5.2).
    MAPPED_BITS = 96


cdef inline bint trusted(const Facts *facts, const unsigned char *peer) noexcept nogil:
    """Whether this is one of our proxies."""
    cdef uint32_t index
    cdef const Network *network
    cdef uint32_t whole
    for index in range(facts.proxies):
        network = &facts.proxy[index]
        # The v4-mapped form lies in ::/80; that is nobody's word for all of IPv4.
        if network.bits < MAPPED_BITS and source_is_ipv4(peer):
            continue
        whole = network.bits // 8
        if memcmp(peer, network.octets, whole) == 0 and (
            network.bits % 8 == 0
            or (peer[whole] ^ network.octets[whole]) >> (8 - network.bits % 8) == 0
        ):
            return True
    return False


cdef inline Outcome greet(
    const Board *board, Worker *worker, const Listening *listening, int fd, Caller *caller
) noexcept nogil:
    """What is said to a connection the moment it is accepted, or its caller known."""
    cdef const Facts *facts = listening.facts
    if not caller.proxied:
        return OUTCOME_WAITS if trusted(facts, caller.peer) else OUTCOME_STRANGER
    if board.lists.lists > 0:
        caller.list = <uint8_t>(lists_find(&board.lists, caller.peer) + 1)
        if caller.list > 0:
            net_add64(&worker.listed[caller.list], 1)
            if board.allow[caller.list]:
                return OUTCOME_MISDIVERTED
    if facts.manner == MANNER_NOW or facts.manner == MANNER_DRAIN:
        return say(listening, WORDS_BANNER, False, True, fd, caller)
    if facts.manner == MANNER_ASK:
        return OUTCOME_WAITS
    return say(listening, WORDS_BANNER, False, False, fd, caller)


cdef inline bint take(
    const Board *board, Worker *worker, Listening *listening, int most, int64_t now, int *taken
) noexcept nogil:
    """Accept `most`, at most a batch, and greet each at once if it is to be greeted.

    True when the queue was found empty, or when the listener went to rest.
    """
    cdef Batch *batch = &worker.batch
    cdef sockaddr_storage peer
    cdef Caller *caller
    cdef int tries
    cdef int fd
    taken[0] = 0
    for tries in range(BATCH):
        if taken[0] == most:
            return False
        fd = net_accept(listening.fd, &peer)
        if fd >= 0:
            caller = &batch.caller[taken[0]]
            caller.port = net_unpack(&peer, caller.peer)
            caller.told = False
            caller.list = 0
            caller.proxied = listening.facts.proxies == 0
            batch.fd[taken[0]] = fd
            batch.outcome[taken[0]] = <uint8_t>greet(board, worker, listening, fd, caller)
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
            return True
    if taken[0] == 0:
        # Nothing but errors, whatever their policy: a whole batch of them does
        # not go away by itself, and a level-triggered poller would spin.
        listener_rest(worker, listening, now)
        return True
    return False


cdef inline Outcome settle(
    Worker *worker, Listening *listening, int fd, const Caller *caller, Outcome outcome,
    int32_t *place, int64_t now,
) noexcept nogil:
    """Hold a connection if it must be; what became of it, or OUTCOME_WAITS.

    `place` is where it is held, or NOBODY, and then the caller closes it.
    """
    cdef const Facts *facts = listening.facts
    cdef bint refused = False
    place[0] = NOBODY
    if outcome == OUTCOME_STRANGER or outcome == OUTCOME_MISDIVERTED:
        return outcome
    if not caller.proxied:
        place[0] = client_hold(
            worker, listening, fd, caller, HELD_PROXYING, QUEUE_PROXY, now
        )
        return OUTCOME_WAITS if place[0] != NOBODY else OUTCOME_HEADLESS
    if facts.manner == MANNER_RESET:
        return outcome
    if facts.manner == MANNER_ASK:
        place[0] = client_hold(
            worker, listening, fd, caller,
            HELD_READING if facts.expected == EXPECTED_HTTP else HELD_PROBING,
            QUEUE_PROBE if facts.blind == WORDS_BANNER else QUEUE_REQUEST, now,
        )
        if place[0] != NOBODY:
            net_add64(&listening.counters.count[<int>HELD], 1)
            return OUTCOME_WAITS
        outcome = say(listening, <Words>facts.blind, False, not facts.resets, fd, caller)
        outcome = look(fd, outcome)
        return OUTCOME_FULL if outcome == OUTCOME_EARLY else outcome
    if facts.manner == MANNER_QUIT and outcome == OUTCOME_SENT:
        place[0] = client_hold(
            worker, listening, fd, caller, HELD_QUITTING, QUEUE_QUIT, now
        )
        if place[0] != NOBODY:
            net_add64(&listening.counters.count[<int>HELD], 1)
            return outcome
        refused = True
        net_half_close(fd)
    outcome = look(fd, outcome)
    if outcome == OUTCOME_EARLY:
        net_add64(&listening.counters.count[<int>EARLY], 1)
    if facts.manner == MANNER_DRAIN and (outcome == OUTCOME_SENT or outcome == OUTCOME_EARLY):
        place[0] = client_hold(
            worker, listening, fd, caller, HELD_DRAINING, QUEUE_DRAIN, now
        )
        if place[0] != NOBODY:
            net_add64(&listening.counters.count[<int>HELD], 1)
            return outcome
    elif outcome == OUTCOME_EARLY and not refused:
        place[0] = client_hold(
            worker, listening, fd, caller, HELD_DRAINING, QUEUE_PARK, now
        )
        if place[0] != NOBODY:
            net_add64(&listening.counters.count[<int>PARKED], 1)
            return outcome
    if outcome == OUTCOME_EARLY:
        net_add64(&listening.counters.count[<int>PARK_FULL], 1)
        return OUTCOME_FULL
    return outcome


cdef inline void let_go(
    Board *board, Worker *worker, Listening *listening, int taken, int64_t now
) noexcept nogil:
    """Look at each connection of the batch, write it down, and close or hold it.

    Descriptors are given out lowest first, so those of a batch stand in a row,
    and in a table of our own nobody else's is among them: one call closes them.
    """
    cdef Batch *batch = &worker.batch
    cdef int64_t moment = net_calendar()
    cdef Outcome outcome
    cdef const Caller *caller
    cdef int32_t place
    cdef int waiting = 0
    cdef int first = NOBODY
    cdef int last = NOBODY
    cdef int index, fd
    # First, so that no look at the counters sees more answers than connections.
    net_add64(&listening.counters.count[<int>ACCEPTED], <uint64_t>taken)
    for index in range(taken):
        fd = batch.fd[index]
        caller = &batch.caller[index]
        outcome = settle(
            worker, listening, fd, caller, <Outcome>batch.outcome[index], &place, now
        )
        if outcome == OUTCOME_WAITS:
            waiting += 1
        else:
            count(listening.counters, outcome, <Words>listening.facts.blind)
            record(
                board, worker, listening, fd, caller, moment, outcome,
                <Words>listening.facts.blind,
            )
        if place != NOBODY:
            batch.held[batch.holds] = place
            batch.holds += 1
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


cdef inline bint turn_away(
    Board *board, Worker *worker, Listening *listening, int most, int64_t now, int *served
) noexcept nogil:
    """Turn away `most`, at most a batch; True when none are left waiting.

    Afterwards the loop takes the listener out of its poller if it is resting, and
    watches the clients held: `holds` places in `held` of the batch.  Whom it cannot
    watch is dealt with all the same, when its time is over.
    """
    cdef int taken
    cdef bint emptied
    worker.batch.holds = 0
    emptied = take(board, worker, listening, most, now, &taken)
    if taken > 0:
        let_go(board, worker, listening, taken, now)
        served[0] += taken
    return emptied


cdef inline void hear(Board *board, Worker *worker, int32_t place, int64_t now) noexcept nogil:
    """A held client spoke or hung up.

    Once its PROXY header is whole it is dealt with as one that was just accepted.
    If it is held further, then in the same place: the one that was left last.
    """
    cdef Listening *listening
    cdef Caller caller
    cdef Outcome outcome
    cdef int fd
    if worker.pool.places[place].fd < 0 or worker.pool.places[place].state != HELD_PROXYING:
        client_readable(board, worker, place, now)
        return
    if not client_header(board, worker, place):
        return
    listening = &worker.listening[worker.pool.places[place].listener]
    caller = worker.pool.places[place].caller
    fd = pool_leave(&worker.pool, place)
    net_add64(&listening.counters.count[<int>PROXIED], 1)
    outcome = greet(board, worker, listening, fd, &caller)
    outcome = settle(worker, listening, fd, &caller, outcome, &place, now)
    if outcome != OUTCOME_WAITS:
        count(listening.counters, outcome, <Words>listening.facts.blind)
        disposal_add(worker, net_steady() - now, 1)
        record(
            board, worker, listening, fd, &caller, net_calendar(), outcome,
            <Words>listening.facts.blind,
        )
    if place == NOBODY:
        net_forget(worker.wake, fd)
        close(fd)


cdef inline void expire(Board *board, Worker *worker, int64_t now) noexcept nogil:
    """Deal with every held client whose time is over."""
    cdef int32_t place = pool_due(&worker.pool, now)
    while place != NOBODY:
        client_due(board, worker, place, now)
        place = pool_due(&worker.pool, now)


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


cdef inline bint gathers(const Worker *worker, int taken, int64_t since, int64_t now) noexcept nogil:
    """Whether the next connections should gather before the loop looks again.

    A wakeup costs more than a connection.  When this turn brought several, or
    one within a millisecond of the last turn, let the next ones gather; but not
    when a deadline needs the loop sooner.
    """
    return (
        (taken > 1 or (taken == 1 and now - since < GATHER_MICROS))
        and (deadline(worker) < 0 or deadline(worker) > now + GATHER_MICROS)
    )


cdef inline void farewell(Board *board, Worker *worker) noexcept nogil:
    """Answer who is already queued or held, and let go of them."""
    cdef int64_t until = net_steady() + LAST_MICROS
    cdef int32_t index
    cdef int taken
    cdef Listening *listening
    for index in range(worker.listeners):
        listening = &worker.listening[index]
        taken = 0
        while listening.fd >= 0 and taken < LAST_ACCEPTS and net_steady() < until:
            if turn_away(board, worker, listening, BATCH, until, &taken):
                break
    for index in range(worker.pool.fresh):
        if worker.pool.places[index].fd == NOBODY:
            continue
        if worker.pool.places[index].state != HELD_DRAINING:
            client_due(board, worker, index, until)
        if worker.pool.places[index].fd != NOBODY:
            client_close(worker, index)
