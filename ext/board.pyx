# cython: language_level=3
"""The board, seen from the shell: `turnaway._board`.

Owns: the memory of `listeners.pxd`, from before the first accept until the
last loop has ended, and the only way for Python to reach it: publish a banner,
attach a socket, read counters, say stop.  Setup calls raise; the loops take
the memory through `capsule` and never come back here.
"""

from cpython.exc cimport PyErr_SetFromErrno
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from counters cimport COUNTERS as COUNTER_COUNT
from counters cimport Counters, Policy, counter_of_errno, policy_of
from listeners cimport Board as Memory
from listeners cimport DISPOSAL_BUCKETS, Facts, Listening, Stop, Worker
from libc.errno cimport errno
from net cimport (
    NET_SHARE, net_capabilities, net_cork, net_finwait, net_give_up,
    net_keep_capabilities, net_limit_capabilities, net_load32, net_load64,
    net_no_new_privileges, net_peer_user, net_share, net_store32,
)
from pool cimport FIFOS
from pool cimport QUEUES as QUEUE_COUNT
from pool cimport Client, pool_init
from ring cimport Record
from slot cimport SLOT_MARKS, SLOT_OCTETS, Answer, slot_publish
from slot cimport WORDS as WORDS_COUNT

ANSWER_OCTETS = SLOT_OCTETS
ANSWER_MARKS = SLOT_MARKS

# In the order of the enum in counters.pxd; a test holds the two together.
COUNTERS = (
    "accepted", "sent", "short", "failed", "reset", "early", "parked",
    "park_full", "drain_expired", "held", "held_stressed", "held_full",
    "held_share", "sacrificed", "gone", "expired", "commands_wrong", "quits",
    "answered_http", "answered_tls", "answered_socks", "rests",
    "ECONNABORTED", "EINTR", "EPROTO", "EPERM", "ENETDOWN", "ENETUNREACH",
    "EHOSTDOWN", "EHOSTUNREACH", "ENONET", "ENOPROTOOPT", "EOPNOTSUPP",
    "ECONNRESET", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "other",
)
if len(COUNTERS) != COUNTER_COUNT:
    raise ImportError("the names and the enum of the counters differ in number")

# What can be said; in the order of the enum in slot.pxd.
WORDS = (
    "banner", "wrong", "bye", "late", "plain", "html", "bad", "timeout",
    "tls", "socks5", "socks4",
)
if len(WORDS) != WORDS_COUNT:
    raise ImportError("the names and the enum of the words differ in number")

# Time limits of held sockets; in the order of the enum in pool.pxd.
QUEUES = ("park", "drain", "probe", "request", "quit")
if len(QUEUES) != QUEUE_COUNT:
    raise ImportError("the names and the enum of the queues differ in number")

MANNERS = ("now", "drain", "quit", "reset", "ask")
EXPECTED = ("any", "http", "tls", "socks")
STATES = ("new", "running", "stopped", "broken")
DETAILS = ("none", "capped", "sample", "all")


# When sockets of one address can be made to share its connections evenly.
SHARING = ("never", "before bind", "any time")[<int>NET_SHARE]


cdef bint option_set(int result) except -1:
    if result < 0:
        PyErr_SetFromErrno(OSError)
    return result > 0


def cork(int fd, bint on):
    """Hold back what is sent until the FIN goes with it; False where no option does
    that.  Raises OSError.  All these options are inherited by accepted sockets."""
    return option_set(net_cork(fd, on))


def give_up(int fd, int millis):
    """Give a client up that acknowledges nothing for so long, in whole seconds on some
    systems; False where no option does that.  Raises OSError."""
    return option_set(net_give_up(fd, millis))


def finwait(int fd, int seconds):
    """How long FIN-WAIT-2 lasts, -1 for neither that nor TIME-WAIT; False where no option
    does that.  Raises OSError."""
    return option_set(net_finwait(fd, seconds))


def share(int fd):
    """Share the connections of an address with other such sockets, see SHARING; False
    where no option does that.  Raises OSError."""
    return option_set(net_share(fd))


def peer_user(int fd):
    """The user at the other end of a local socket.  Raises OSError."""
    cdef long long user = net_peer_user(fd)
    if user < 0:
        PyErr_SetFromErrno(OSError)
    return user


def no_new_privileges():
    """From now on nothing this process executes gains privileges.  Raises OSError."""
    if net_no_new_privileges() != 0:
        raise OSError(errno, "no_new_privs")


def capabilities():
    """The permitted capabilities of this thread as bits, capabilities(7); 0 where a
    system has none."""
    return net_capabilities()


def limit_capabilities(uint64_t kept):
    """Give up all capabilities but those of the bits `kept`, and have these in
    effect.  Raises OSError, such as EPERM for one that is not permitted."""
    if net_limit_capabilities(kept) != 0:
        raise OSError(errno, "capset")


def keep_capabilities(bint keep):
    """Whether they stay permitted when this thread becomes an ordinary user.
    Raises OSError."""
    if net_keep_capabilities(keep) != 0:
        raise OSError(errno, "keepcaps")


def accept_policy(int error):
    """(name of the counter, "next" or "rest") for an errno of accept(2)."""
    counter = counter_of_errno(error)
    policy = policy_of(counter)
    return COUNTERS[<int>counter], "rest" if policy == Policy.POLICY_REST else "next"


cdef class Board:
    """Memory for `workers` loops over `listeners` listeners.

    `records` is the size of each worker's ring (rounded up to a power of two,
    1 .. 2**20), `held` how many sockets each worker may hold (0 .. 2**17),
    `share` how many of them for one source (at least 1), `key` 64 random bits,
    `waits` the different time limits in microseconds (1 .. FIFOS of them), which
    behave() names by index.  Raises ValueError outside these ranges, MemoryError.
    """
    cdef Memory memory
    cdef Record *records
    cdef readonly object capsule
    cdef int waits

    def __cinit__(
        self, int workers, int listeners, int records=16384, int held=2048, int share=64,
        unsigned long long key=0, waits=(2_000_000,),
    ):
        cdef int32_t which, index
        cdef Worker *worker
        cdef Listening *listening
        cdef uint32_t ring = 1
        cdef int32_t buckets = 1
        if not 1 <= workers <= 1024:
            raise ValueError(f"workers: expected 1..1024, got {workers}")
        if not 1 <= listeners <= 4096:
            raise ValueError(f"listeners: expected 1..4096, got {listeners}")
        if not 1 <= records <= 1 << 20:
            raise ValueError(f"records: expected 1..{1 << 20}, got {records}")
        if not 0 <= held <= 1 << 17:
            raise ValueError(f"held: expected 0..{1 << 17}, got {held}")
        if share < 1:
            raise ValueError(f"share: expected at least 1, got {share}")
        if not 1 <= len(waits) <= FIFOS or min(waits) < 1:
            raise ValueError(f"waits: expected 1..{FIFOS} times above 0, got {waits!r}")
        while ring < <uint32_t>records:
            ring *= 2
        while buckets < held:
            buckets *= 2
        self.waits = len(waits)
        self.memory.workers = workers
        self.memory.listeners = listeners
        self.memory.bell = -1
        self.memory.worker = <Worker *>calloc(workers, sizeof(Worker))
        self.memory.facts = <Facts *>calloc(listeners, sizeof(Facts))
        self.memory.answers = <Answer *>calloc(listeners * <int>WORDS_COUNT, sizeof(Answer))
        self.memory.counters = <Counters *>calloc(workers * listeners, sizeof(Counters))
        self.memory.listenings = <Listening *>calloc(workers * listeners, sizeof(Listening))
        self.memory.places = <Client *>calloc(workers * held + 1, sizeof(Client))
        self.memory.buckets = <int32_t *>calloc(workers * buckets, sizeof(int32_t))
        self.records = <Record *>calloc(workers * ring, sizeof(Record))
        if (
            self.memory.worker == NULL or self.memory.facts == NULL
            or self.memory.answers == NULL or self.memory.counters == NULL
            or self.memory.listenings == NULL or self.memory.places == NULL
            or self.memory.buckets == NULL or self.records == NULL
        ):
            raise MemoryError()
        for which in range(workers):
            worker = &self.memory.worker[which]
            worker.index = which
            worker.listeners = listeners
            worker.wake = -1
            worker.listening = &self.memory.listenings[which * listeners]
            worker.ring.records = &self.records[which * ring]
            worker.ring.mask = ring - 1
            pool_init(
                &worker.pool, &self.memory.places[which * held], held,
                &self.memory.buckets[which * buckets], buckets, share, key, len(waits),
            )
            for index in range(len(waits)):
                worker.pool.fifos[index].micros = waits[index]
            for index in range(listeners):
                listening = &worker.listening[index]
                listening.fd = -1
                listening.index = index
                listening.facts = &self.memory.facts[index]
                listening.answers = &self.memory.answers[index * <int>WORDS_COUNT]
                listening.counters = &self.memory.counters[which * listeners + index]
        self.capsule = PyCapsule_New(&self.memory, b"turnaway.board", NULL)

    def __dealloc__(self):
        free(self.memory.worker)
        free(self.memory.facts)
        free(self.memory.answers)
        free(self.memory.counters)
        free(self.memory.listenings)
        free(self.memory.places)
        free(self.memory.buckets)
        free(self.records)

    @property
    def workers(self):
        return self.memory.workers

    @property
    def listeners(self):
        return self.memory.listeners

    cdef Worker *worker_at(self, int worker) except NULL:
        if not 0 <= worker < self.memory.workers:
            raise IndexError(f"worker {worker} of {self.memory.workers}")
        return &self.memory.worker[worker]

    cdef int check_listener(self, int listener) except -1:
        if not 0 <= listener < self.memory.listeners:
            raise IndexError(f"listener {listener} of {self.memory.listeners}")
        return listener

    def describe(self, int listener, bytes local, int port, bint wildcard):
        """What records say of a listener: 16 octets of address, and the port.

        With `wildcard` the loop asks getsockname(2) instead, for records that
        become a line.
        """
        self.check_listener(listener)
        if len(local) != 16:
            raise ValueError(f"local: expected 16 octets, got {len(local)}")
        memcpy(self.memory.facts[listener].local, <const char *>local, 16)
        self.memory.facts[listener].port = port
        self.memory.facts[listener].wildcard = wildcard

    def behave(
        self, int listener, str manner, str expected, str blind, str lingers, bint resets,
        fifos=(0, 0, 0, 0, 0),
    ):
        """What happens to the connections of a listener.

        `manner` is one of MANNERS, `expected` (of "ask") one of EXPECTED, `blind`
        of WORDS (said at once, or to who cannot be held or stays silent), `lingers`
        "park" or "drain"; with `resets` nobody is drained; `fifos` are the indices of
        its time limits among the board's `waits`, in the order of QUEUES.
        """
        cdef Facts *facts = &self.memory.facts[self.check_listener(listener)]
        facts.manner = MANNERS.index(manner)
        facts.expected = EXPECTED.index(expected)
        facts.blind = WORDS.index(blind)
        facts.lingers = QUEUES.index(lingers)
        facts.resets = resets
        if len(fifos) != len(QUEUES) or not 0 <= min(fifos) <= max(fifos) < self.waits:
            raise ValueError(f"fifos: expected {len(QUEUES)} of 0..{self.waits - 1}, got {fifos!r}")
        for index, fifo in enumerate(fifos):
            facts.fifo[<int>index] = fifo

    def attach(self, int worker, int listener, int fd):
        """Give a worker its listening socket: bound, listening, non-blocking."""
        self.worker_at(worker).listening[self.check_listener(listener)].fd = fd

    def attach_wake(self, int worker, int fd):
        """Give a worker the descriptor that becomes readable to wake it."""
        self.worker_at(worker).wake = fd

    def attach_bell(self, int fd):
        """The non-blocking descriptor a loop writes to when its ring is half full."""
        self.memory.bell = fd

    def publish(self, int listener, str words, bytes octets, int head=0):
        """Make `octets` what a listener says for `words` (one of WORDS) from now on.

        `head` is the length of an HTTP answer without its body; in the banner a NUL
        is a place for the client's address, ANSWER_MARKS at the most.  Raises
        ValueError when it does not fit ANSWER_OCTETS.
        """
        cdef int which = WORDS.index(words)
        self.check_listener(listener)
        if not 0 <= head <= len(octets) or not slot_publish(
            &self.memory.answers[listener * <int>WORDS_COUNT + which],
            <const char *>octets, len(octets), head, which == 0,
        ):
            raise ValueError(
                f"{words}: at most {SLOT_OCTETS} octets with a head within, got {len(octets)}, {head}"
            )

    def record(self, bint recording):
        """Whether connections are written down at all; else the rings stay empty."""
        self.memory.recording = recording

    def log_connections(self, int listener, str mode, int number, bint own):
        """Which connections of a listener become lines: one of DETAILS and its number.

        `own`: they are counted for this listener alone, not with the others'.
        """
        cdef Facts *facts = &self.memory.facts[self.check_listener(listener)]
        facts.detail_number = number
        facts.detail = DETAILS.index(mode)
        facts.own_detail = own

    def logs_connections(self, int listener):
        """(mode, number, own) as log_connections() set them last."""
        cdef Facts *facts = &self.memory.facts[self.check_listener(listener)]
        return DETAILS[facts.detail], facts.detail_number, bool(facts.own_detail)

    def pause(self, int listener, bint paused):
        """Take no connections on a listener, or take them again; the kernel keeps
        its queue.  Each loop then needs a wakeup."""
        net_store32(&self.memory.facts[self.check_listener(listener)].paused, paused)

    def paused(self, int listener):
        return bool(self.memory.facts[self.check_listener(listener)].paused)

    def stop(self):
        """Tell every loop to stop; each then needs a wakeup."""
        cdef int32_t which
        for which in range(self.memory.workers):
            net_store32(&self.memory.worker[which].stop, Stop.STOP_NOW)

    def retire(self, leaving):
        """Tell every loop to take no more, and to end when nobody is held any
        more; each then needs a wakeup.  `leaving` are the listeners that no other
        loop goes on with: their queues are answered first."""
        cdef int32_t which
        cdef int listener
        for which in range(self.memory.workers):
            for listener in leaving:
                self.memory.worker[which].listening[self.check_listener(listener)].leaves = True
            net_store32(&self.memory.worker[which].stop, Stop.STOP_RETIRE)

    def released(self, int listener):
        """Whether every loop has let go of a listener that leaves: who waited there is
        answered, and its socket may be closed."""
        cdef int32_t which
        self.check_listener(listener)
        for which in range(self.memory.workers):
            if <int>net_load32(<uint32_t *>&self.memory.worker[which].listening[listener].fd) >= 0:
                return False
        return True

    def disposal(self):
        """([connections per bucket of time], sum in microseconds), over all workers.

        Bucket n counts those that took less than 16 << n microseconds and not less
        than the bucket before; the last one the rest.
        """
        cdef int32_t which
        cdef int bucket
        counts = [0] * DISPOSAL_BUCKETS
        micros = 0
        for which in range(self.memory.workers):
            for bucket in range(DISPOSAL_BUCKETS):
                counts[bucket] += net_load64(&self.memory.worker[which].disposal[bucket])
            micros += net_load64(&self.memory.worker[which].disposal_micros)
        return counts, micros

    def states(self):
        """[(state, errno, turns, resting listeners, held sockets, stress, times of
        stress, has descriptors of its own)], one a worker."""
        cdef int32_t which
        states = []
        for which in range(self.memory.workers):
            states.append((
                STATES[net_load32(&self.memory.worker[which].state)],
                self.memory.worker[which].error,
                net_load64(&self.memory.worker[which].turns),
                net_load32(&self.memory.worker[which].resting),
                net_load32(&self.memory.worker[which].pool.used),
                bool(net_load32(&self.memory.worker[which].pool.stress)),
                net_load64(&self.memory.worker[which].pool.stresses),
                bool(self.memory.worker[which].own_table),
            ))
        return states

    def counters(self, int worker, int listener):
        """The counters of one listener in one worker, in the order of COUNTERS."""
        cdef int index
        cdef Listening *listening = &self.worker_at(worker).listening[self.check_listener(listener)]
        counts = [0] * <int>COUNTER_COUNT
        # Last to first: a connection is counted before what becomes of it, so
        # that no look sees more answers than connections.
        for index in range(<int>COUNTER_COUNT - 1, -1, -1):
            counts[index] = net_load64(&listening.counters.count[index])
        return tuple(counts)

    def dropped(self):
        """Records dropped because a ring was full, over all workers."""
        cdef int32_t which
        total = 0
        for which in range(self.memory.workers):
            total += net_load64(&self.memory.worker[which].ring.dropped)
        return total
