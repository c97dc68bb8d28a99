# cython: language_level=3
"""The board, seen from the shell: `turnaway._board`.

Owns: the memory of `listeners.pxd`, from before the first accept until the
last loop has ended, and the only way for Python to reach it: publish a banner,
attach a socket, read counters, say stop.  Setup calls raise; the loops take
the memory through `capsule` and never come back here.  Beside it stand the calls
of sandbox.h, which sandbox.py makes once.
"""

from cpython.exc cimport PyErr_SetFromErrno
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.stdlib cimport posix_memalign

from counters cimport COUNTERS as COUNTER_COUNT
from counters cimport Counters, Policy, counter_of_errno, policy_of
from listeners cimport Board as Memory
from listeners cimport DISPOSAL_BUCKETS, Facts, Listening, Stop, Worker
from listeners cimport PROXIES as PROXY_COUNT
from libc.errno cimport errno
from lists cimport LISTS_MOST, lists_load
from net cimport (
    NET_SHARE, net_cork, net_finwait, net_give_up, net_load32, net_load64, net_peer_user,
    net_share, net_store32, net_whole_blocks,
)
from pool cimport FIFOS
from pool cimport QUEUES as QUEUE_COUNT
from pool cimport Client, pool_init
from posix.unistd cimport close
from ring cimport Record
from sandbox cimport (
    SANDBOX_MAKE, SANDBOX_READ, SANDBOX_REMOVE, SANDBOX_WRITE,
    sandbox_capabilities, sandbox_capability_mode, sandbox_keep_capabilities,
    sandbox_landlock_abi, sandbox_landlock_begin, sandbox_landlock_end, sandbox_landlock_path,
    sandbox_landlock_port, sandbox_limit_capabilities, sandbox_no_new_privileges,
    sandbox_pledge, sandbox_undumpable, sandbox_unveil,
)
from slot cimport SLOT_MARKS, SLOT_OCTETS, Answer, slot_publish
from slot cimport WORDS as WORDS_COUNT

ANSWER_OCTETS = SLOT_OCTETS
ANSWER_MARKS = SLOT_MARKS
PROXIES = PROXY_COUNT
LISTS = LISTS_MOST

# In the order of the enum in counters.pxd; a test holds the two together.
COUNTERS = (
    "accepted", "sent", "short", "failed", "reset", "early", "parked",
    "park_full", "drain_expired", "held", "held_stressed", "held_full",
    "held_share", "sacrificed", "gone", "stranger", "headless", "misdiverted", "proxied", "expired", "commands_wrong", "quits",
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
QUEUES = ("park", "drain", "probe", "request", "quit", "proxy")
if len(QUEUES) != QUEUE_COUNT:
    raise ImportError("the names and the enum of the queues differ in number")

MANNERS = ("now", "drain", "quit", "reset", "ask")
EXPECTED = ("any", "http", "tls", "socks")
STATES = ("new", "running", "stopped", "broken")
DETAILS = ("none", "capped", "sample", "all")


# Before any settings are read.
net_whole_blocks()


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


# What landlock() may leave of a file, or beneath a directory; added together.
MAY_READ = SANDBOX_READ
MAY_WRITE = SANDBOX_WRITE
MAY_MAKE = SANDBOX_MAKE
MAY_REMOVE = SANDBOX_REMOVE


cdef int done(int result, str call) except -1:
    """`result` of a call of sandbox.h.  Raises OSError with its errno when it is -1."""
    if result < 0:
        raise OSError(errno, call)
    return result


def no_new_privileges():
    """From now on nothing this process executes gains privileges.  Raises OSError."""
    done(sandbox_no_new_privileges(), "no_new_privs")


def undumpable():
    """No core of this process, and none but root may trace it.  Raises OSError."""
    done(sandbox_undumpable(), "undumpable")


def landlock_abi():
    """The version of Landlock that can be used here, 1..7; raises OSError where none can."""
    return done(sandbox_landlock_abi(), "landlock_create_ruleset")


def landlock(int abi, rules, ports):
    """Forbid what version `abi` of Landlock can forbid, for this thread and those it starts.

    But for `rules`, [(descriptor of a file or directory, MAY_*)], and for bind(2)
    to the TCP `ports` (None: to any).  Needs no_new_privileges().  Raises OSError,
    and then nothing was forbidden.
    """
    cdef int ruleset = done(sandbox_landlock_begin(abi, ports is None), "landlock_create_ruleset")
    try:
        for fd, may in rules:
            done(sandbox_landlock_path(ruleset, abi, fd, may), "landlock_add_rule")
        # Before version 4 there is no rule for ports, and bind(2) is not forbidden.
        for port in (ports or ()) if abi >= 4 else ():
            done(sandbox_landlock_port(ruleset, port), "landlock_add_rule")
        done(sandbox_landlock_end(ruleset), "landlock_restrict_self")
    finally:
        close(ruleset)


def unveil(path, str permissions):
    """unveil(2) of OpenBSD; path None: no more of them.  Raises OSError."""
    if path is None:
        done(sandbox_unveil(NULL, NULL), "unveil")
    else:
        done(sandbox_unveil(<bytes>path, permissions.encode("ascii")), "unveil")


def pledge(str promises):
    """pledge(2) of OpenBSD.  Raises OSError."""
    done(sandbox_pledge(promises.encode("ascii")), "pledge")


def capability_mode():
    """cap_enter(2) of FreeBSD.  Raises OSError."""
    done(sandbox_capability_mode(), "cap_enter")


def capabilities():
    """The permitted capabilities of this thread as bits, capabilities(7); 0 where a
    system has none."""
    return sandbox_capabilities()


def limit_capabilities(uint64_t kept):
    """Give up all capabilities but those of the bits `kept`, and have these in
    effect.  Raises OSError, such as EPERM for one that is not permitted."""
    done(sandbox_limit_capabilities(kept), "capset")


def keep_capabilities(bint keep):
    """Whether they stay permitted when this thread becomes an ordinary user.
    Raises OSError."""
    done(sandbox_keep_capabilities(keep), "keepcaps")


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
    behave() names by index, `lists` how many lists have answers of their own
    (0 .. LISTS).  Raises ValueError outside these ranges, MemoryError.
    """
    cdef Memory memory
    cdef Record *records
    cdef void *block
    cdef readonly object capsule
    cdef int waits

    def __cinit__(
        self, int workers, int listeners, int records=16384, int held=2048, int share=64,
        unsigned long long key=0, waits=(2_000_000,), int lists=0,
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
        if not 0 <= lists <= LISTS_MOST:
            raise ValueError(f"lists: expected 0..{LISTS_MOST}, got {lists}")
        self.waits = len(waits)
        self.memory.groups = lists + 1
        self.memory.workers = workers
        self.memory.listeners = listeners
        self.memory.bell = -1
        self.memory.worker = <Worker *>calloc(workers, sizeof(Worker))
        self.memory.facts = <Facts *>calloc(listeners, sizeof(Facts))
        self.memory.answers = <Answer *>calloc(
            <size_t>listeners * (lists + 1) * <int>WORDS_COUNT, sizeof(Answer)
        )
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
                listening.answers = &self.memory.answers[
                    index * self.memory.groups * <int>WORDS_COUNT
                ]
                listening.counters = &self.memory.counters[which * listeners + index]
        self.capsule = PyCapsule_New(&self.memory, b"turnaway.board", NULL)

    def __dealloc__(self):
        free(self.memory.worker)
        free(self.memory.facts)
        free(self.memory.answers)
        free(self.memory.counters)
        free(self.memory.listenings)
        free(self.memory.places)
        free(self.block)
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

    def describe(
        self, int listener, bytes local, int port, bint wildcard, bint transparent=False,
        proxies=(),
    ):
        """Where a listener is, and who comes to it by another way.

        `local` is its address as 16 octets; with `wildcard` or `transparent` the loop
        asks getsockname(2) instead, for records that become a line, and with
        `transparent` (IP_TRANSPARENT) that is the address that was called.  From
        `proxies`, [(16 octets, bits of them)], PROXIES at the most, a PROXY header
        must come first; when there are any, nobody else is answered.
        """
        cdef Facts *facts = &self.memory.facts[self.check_listener(listener)]
        if len(local) != 16:
            raise ValueError(f"local: expected 16 octets, got {len(local)}")
        if len(proxies) > PROXY_COUNT:
            raise ValueError(f"proxies: at most {PROXY_COUNT}, got {len(proxies)}")
        memcpy(facts.local, <const char *>local, 16)
        facts.port = port
        facts.asks = wildcard or transparent
        facts.wildcard = wildcard
        facts.transparent = transparent
        facts.proxies = 0
        for octets, bits in proxies:
            if len(octets) != 16 or not 0 <= bits <= 128:
                raise ValueError(f"proxies: expected 16 octets and 0..128, got {octets!r}, {bits}")
            memcpy(facts.proxy[facts.proxies].octets, <const char *><bytes>octets, 16)
            facts.proxy[facts.proxies].bits = bits
            facts.proxies += 1

    def behave(
        self, int listener, str manner, str expected, str blind, str lingers, bint resets,
        fifos=(0, 0, 0, 0, 0, 0),
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

    def consult(self, bytes block, allow):
        """Look every client up in the lists of `block` (see lists/table.py); once, before
        the loops start.  `allow`: for each list, whether its clients get no answer.

        Raises ValueError for what is no such block, for a second one, or for one of
        more lists.
        """
        cdef int index
        if len(allow) != self.memory.groups - 1:
            raise ValueError(f"lists: expected {self.memory.groups - 1}, got {len(allow)}")
        if self.block != NULL:
            raise ValueError("lists: expected one block, got a second")
        if posix_memalign(&self.block, 64, max(64, len(block))) != 0:
            self.block = NULL
            raise MemoryError()
        memcpy(self.block, <const char *>block, len(block))
        if not lists_load(&self.memory.lists, <const unsigned char *>self.block, len(block)):
            raise ValueError("lists: expected the block of a table")
        if self.memory.lists.lists > <uint32_t>len(allow):
            self.memory.lists.lists = 0
            raise ValueError(f"lists: expected a block of at most {len(allow)}")
        for index in range(len(allow)):
            self.memory.allow[index + 1] = bool(allow[index])

    def listed(self):
        """[connections from each list], over all workers."""
        cdef int32_t which
        cdef int index
        counts = [0] * (self.memory.groups - 1)
        for which in range(self.memory.workers):
            for index in range(self.memory.groups - 1):
                counts[index] += net_load64(&self.memory.worker[which].listed[index + 1])
        return counts

    def publish(self, int listener, str words, bytes octets, int head=0, int group=0):
        """Make `octets` what a listener says for `words` (one of WORDS) from now on, to
        the clients of list number `group`, counted from 1, or of none.

        `head` is the length of an HTTP answer without its body; in the banner a NUL
        is a place for the client's address, ANSWER_MARKS at the most.  Raises
        ValueError when it does not fit ANSWER_OCTETS.
        """
        cdef int which = WORDS.index(words)
        self.check_listener(listener)
        if not 0 <= group < self.memory.groups:
            raise IndexError(f"list {group} of {self.memory.groups - 1}")
        if not 0 <= head <= len(octets) or not slot_publish(
            &self.memory.answers[
                (listener * self.memory.groups + group) * <int>WORDS_COUNT + which
            ],
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
