"""The board: all memory that the shell and the loops share, and the rest list.

Owns: the layout of board, worker and listener, and how a listener rests and
comes back.  Promises: everything here is taken before the first accept.  A
field has one writer: the shell before the loops start, the worker afterwards,
except those marked [shell], which the shell may change at any time.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from counters cimport (
    ERR_EINTR, RESTS, Counter, Counters, Policy, counter_of_errno, policy_of,
)
from lists cimport LISTS_MOST, Lists
from net cimport net_add64, net_store32
from pool cimport QUEUES, Caller, Client, Pool
from ring cimport Ring
from slot cimport Answer

cdef enum:
    # A rested listener is tried again after this long: soon enough that the
    # kernel's queue survives it, seldom enough to cost nothing.
    REST_MICROS = 500_000

    # Accepts per listener and turn: long enough that the wakeup is paid for,
    # short enough that the first of a batch does not wait for its close, nor a
    # second listener for its turn, much longer than a millisecond.
    BATCH = 128
    # One read of a held client, or one burst of replies to it.
    SCRATCH_OCTETS = 4096
    # Networks of proxies, of one listener.
    PROXIES = 32
    # How long a connection took, from the turn it was accepted in to its close
    # (or, for a held client, to its answer): bucket n counts those below
    # 16 << n microseconds, the last one the rest.
    DISPOSAL_BUCKETS = 24

cdef enum Detail:
    DETAIL_NONE     # no connection lines
    DETAIL_CAPPED   # the first N of every second
    DETAIL_SAMPLE   # every Nth
    DETAIL_ALL

cdef enum Stop:
    STOP_NOT
    STOP_RETIRE     # take no more; end when nobody is held any more
    STOP_NOW

cdef enum State:
    STATE_NEW
    STATE_RUNNING
    STATE_STOPPED
    STATE_BROKEN    # could not start; `error` says why

# What happens to a connection after accept.  The shell has the names in the
# same order.
cdef enum Manner:
    MANNER_NOW      # say, look, close; park who talked
    MANNER_DRAIN    # say, then drain everybody
    MANNER_QUIT     # greet, then the dialogue until QUIT
    MANNER_RESET    # say and close: SO_LINGER on the listener makes it a reset
    MANNER_ASK      # let the client speak first

# Of MANNER_ASK: what is expected.
cdef enum Expected:
    EXPECTED_ANY    # auto: recognise it, or greet who stays silent
    EXPECTED_HTTP
    EXPECTED_TLS
    EXPECTED_SOCKS

cdef struct Network:
    unsigned char octets[16]    # IPv4 as v4-mapped
    uint32_t bits               # 0..128, of the v4-mapped form

cdef struct Facts:
    # What every worker knows of a listener.  Written by the shell before start.
    unsigned char local[16]
    uint32_t port
    bint asks           # the address that a client came to is asked of its socket
    bint wildcard       # bound to all addresses
    bint transparent    # IP_TRANSPARENT: the socket has the address that was called
    uint32_t proxies    # from these networks a PROXY header comes first; 0: from none
    Network proxy[PROXIES]
    uint32_t manner     # enum Manner
    uint32_t expected   # enum Expected
    uint32_t blind      # enum Words: said to who cannot be held, or stays silent
    uint32_t lingers    # enum Queue: how long who talked is drained
    uint8_t fifo[QUEUES]    # the FIFO of the pool for each enum Queue
    uint32_t paused     # [shell] take no connections for now
    bint own_detail     # lines are counted for this listener alone
    uint32_t detail     # enum Detail
    uint32_t detail_number
    bint resets         # nobody is drained: the close is a reset

cdef struct Budget:
    # Lines left for connections.
    int64_t second
    uint32_t left

cdef struct Listening:
    # One listener of one worker.
    int fd
    int32_t index
    bint resting
    bint paused         # out of the poller because the shell said so
    int64_t retry       # steady clock; when to come back from resting
    bint leaves         # [shell] retire: no other loop goes on with it
    int64_t untracked   # calendar; the kernel follows no connections: not asked before
    Budget budget
    const Facts *facts
    const Answer *answers   # [groups][WORDS]; the first for who is on no list
    Counters *counters

cdef struct Batch:
    # The connections of one turn of one listener, between `say` and `look`.
    int fd[BATCH]
    uint8_t outcome[BATCH]
    Caller caller[BATCH]
    int32_t held[BATCH]     # places in the pool of those to be watched from now on
    int holds

cdef struct Worker:
    int32_t index
    int32_t listeners
    int wake            # readable when the shell wants the loop to look up; or
                        # its kqueue, which can be woken
    bint own_table      # its descriptors are its own, not the process's
    uint32_t stop       # [shell] enum Stop
    uint32_t state
    int32_t error
    uint32_t resting    # how many listeners rest
    uint64_t turns      # grows while the loop turns; for a watchdog
    Budget budget
    uint64_t disposal[DISPOSAL_BUCKETS]     # connections by time, see below
    uint64_t disposal_micros                # their sum
    uint64_t listed[LISTS_MOST + 1]         # connections by list, from 1
    Listening *listening
    Ring ring
    Pool pool
    Batch batch
    unsigned char scratch[SCRATCH_OCTETS]
    char apart[64]

cdef struct Board:
    int32_t workers
    int32_t listeners
    int32_t groups          # of answers: one for each list, and one for who is on none
    Lists lists             # who is on which
    uint8_t allow[LISTS_MOST + 1]   # by list, from 1: its clients are wanted elsewhere
    bint recording      # records are wanted at all
    uint32_t overheard  # [shell] somebody reads the records as they come
    int bell            # written to when a ring is half full; -1 for nobody
    Worker *worker
    Facts *facts
    Answer *answers         # [listeners * groups * WORDS]
    Counters *counters
    Listening *listenings
    Client *places
    int32_t *buckets


cdef inline void listener_rest(Worker *worker, Listening *listening, int64_t now) noexcept nogil:
    """Leave a listener alone; the caller takes it out of its poller until `retry`."""
    net_add64(&listening.counters.count[<int>Counter.RESTS], 1)
    listening.resting = True
    listening.retry = now + REST_MICROS
    net_store32(&worker.resting, worker.resting + 1)


cdef inline Policy listener_stumble(
    Worker *worker, Listening *listening, int error, int64_t now
) noexcept nogil:
    """Count an accept error and do what its policy says.

    When the answer is POLICY_REST the caller takes the listener out of its
    poller until `listening.retry`.
    """
    cdef Counter counter = counter_of_errno(error)
    net_add64(&listening.counters.count[<int>counter], 1)
    if policy_of(counter) == Policy.POLICY_REST:
        listener_rest(worker, listening, now)
        return Policy.POLICY_REST
    return Policy.POLICY_NEXT


cdef inline void listener_rise(Worker *worker, Listening *listening) noexcept nogil:
    """The rest is over; the caller puts the listener back into its poller."""
    listening.resting = False
    net_store32(&worker.resting, worker.resting - 1)


cdef inline void disposal_add(Worker *worker, int64_t micros, uint64_t connections) noexcept nogil:
    """Count how long some connections took."""
    cdef int bucket = 0
    while bucket < DISPOSAL_BUCKETS - 1 and micros >= (<int64_t>16 << bucket):
        bucket += 1
    net_add64(&worker.disposal[bucket], connections)
    net_add64(&worker.disposal_micros, <uint64_t>max(micros, 0) * connections)
