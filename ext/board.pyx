# cython: language_level=3
"""The board, seen from the shell: `turnaway._board`.

Owns: the memory of `listeners.pxd`, from before the first accept until the
last loop has ended, and the only way for Python to reach it: publish a banner,
attach a socket, read counters, say stop.  Setup calls raise; the loops take
the memory through `capsule` and never come back here.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from counters cimport COUNTERS as COUNTER_COUNT
from counters cimport Counters, Policy, counter_of_errno, policy_of
from listeners cimport Board as Memory
from listeners cimport Detail, Facts, Listening, Worker
from net cimport net_load32, net_load64, net_store32
from pool cimport Parked, pool_init
from ring cimport Record
from slot cimport SLOT_OCTETS, Banner, slot_publish

BANNER_OCTETS = SLOT_OCTETS

# In the order of the enum in counters.pxd; a test holds the two together.
COUNTERS = (
    "accepted", "sent", "short", "failed", "reset", "early", "parked",
    "park_full", "park_expired", "rests",
    "ECONNABORTED", "EINTR", "EPROTO", "EPERM", "ENETDOWN", "ENETUNREACH",
    "EHOSTDOWN", "EHOSTUNREACH", "ENONET", "ENOPROTOOPT", "EOPNOTSUPP",
    "ECONNRESET", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "other",
)
if len(COUNTERS) != COUNTER_COUNT:
    raise ImportError("the names and the enum of the counters differ in number")

STATES = ("new", "running", "stopped", "broken")
DETAILS = ("none", "capped", "sample", "all")


def accept_policy(int error):
    """(name of the counter, "next" or "rest") for an errno of accept(2)."""
    counter = counter_of_errno(error)
    policy = policy_of(counter)
    return COUNTERS[<int>counter], "rest" if policy == Policy.POLICY_REST else "next"


cdef class Board:
    """Memory for `workers` loops over `listeners` listeners.

    `records` is the size of each worker's ring (rounded up to a power of two,
    1 .. 2**20), `parked` how many early talkers each worker may hold (0 ..
    65536).  Raises ValueError outside these ranges, MemoryError.
    """
    cdef Memory memory
    cdef Record *records
    cdef readonly object capsule

    def __cinit__(self, int workers, int listeners, int records=16384, int parked=1024):
        cdef int32_t which, index
        cdef Worker *worker
        cdef Listening *listening
        cdef uint32_t ring = 1
        if not 1 <= workers <= 1024:
            raise ValueError(f"workers: expected 1..1024, got {workers}")
        if not 1 <= listeners <= 4096:
            raise ValueError(f"listeners: expected 1..4096, got {listeners}")
        if not 1 <= records <= 1 << 20:
            raise ValueError(f"records: expected 1..{1 << 20}, got {records}")
        if not 0 <= parked <= 65536:
            raise ValueError(f"parked: expected 0..65536, got {parked}")
        while ring < <uint32_t>records:
            ring *= 2
        self.memory.workers = workers
        self.memory.listeners = listeners
        self.memory.bell = -1
        self.memory.worker = <Worker *>calloc(workers, sizeof(Worker))
        self.memory.facts = <Facts *>calloc(listeners, sizeof(Facts))
        self.memory.banners = <Banner *>calloc(listeners, sizeof(Banner))
        self.memory.counters = <Counters *>calloc(workers * listeners, sizeof(Counters))
        self.memory.listenings = <Listening *>calloc(workers * listeners, sizeof(Listening))
        self.memory.places = <Parked *>calloc(workers * parked + 1, sizeof(Parked))
        self.records = <Record *>calloc(workers * ring, sizeof(Record))
        if (
            self.memory.worker == NULL or self.memory.facts == NULL
            or self.memory.banners == NULL or self.memory.counters == NULL
            or self.memory.listenings == NULL or self.memory.places == NULL
            or self.records == NULL
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
            pool_init(&worker.pool, &self.memory.places[which * parked], parked)
            for index in range(listeners):
                listening = &worker.listening[index]
                listening.fd = -1
                listening.index = index
                listening.facts = &self.memory.facts[index]
                listening.banner = &self.memory.banners[index]
                listening.counters = &self.memory.counters[which * listeners + index]
        self.capsule = PyCapsule_New(&self.memory, b"turnaway.board", NULL)

    def __dealloc__(self):
        free(self.memory.worker)
        free(self.memory.facts)
        free(self.memory.banners)
        free(self.memory.counters)
        free(self.memory.listenings)
        free(self.memory.places)
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

    def attach(self, int worker, int listener, int fd):
        """Give a worker its listening socket: bound, listening, non-blocking."""
        self.worker_at(worker).listening[self.check_listener(listener)].fd = fd

    def attach_wake(self, int worker, int fd):
        """Give a worker the descriptor that becomes readable to wake it."""
        self.worker_at(worker).wake = fd

    def attach_bell(self, int fd):
        """The non-blocking descriptor a loop writes to when its ring is half full."""
        self.memory.bell = fd

    def publish(self, int listener, bytes banner):
        """Make `banner` the answer of a listener from now on.

        Raises ValueError when it is longer than BANNER_OCTETS.
        """
        self.check_listener(listener)
        if not slot_publish(
            &self.memory.banners[listener], <const char *>banner, len(banner)
        ):
            raise ValueError(f"banner: at most {SLOT_OCTETS} octets, got {len(banner)}")

    def log_connections(self, str mode, int number, bint recording):
        """Which connections become lines: one of DETAILS and its number.

        `recording` false: no records at all, the ring stays empty.
        """
        self.memory.detail_number = number
        self.memory.detail = DETAILS.index(mode)
        self.memory.recording = recording

    def stop(self):
        """Tell every loop to stop; each then needs a wakeup."""
        cdef int32_t which
        for which in range(self.memory.workers):
            net_store32(&self.memory.worker[which].stop, 1)

    def states(self):
        """[(state, errno, turns, resting listeners, parked sockets)], one a worker."""
        cdef int32_t which
        states = []
        for which in range(self.memory.workers):
            states.append((
                STATES[net_load32(&self.memory.worker[which].state)],
                self.memory.worker[which].error,
                net_load64(&self.memory.worker[which].turns),
                self.memory.worker[which].resting,
                self.memory.worker[which].pool.used,
            ))
        return states

    def counters(self, int worker, int listener):
        """The counters of one listener in one worker, in the order of COUNTERS."""
        cdef int index
        cdef Listening *listening = &self.worker_at(worker).listening[self.check_listener(listener)]
        return tuple([
            net_load64(&listening.counters.count[index])
            for index in range(<int>COUNTER_COUNT)
        ])

    def dropped(self):
        """Records dropped because a ring was full, over all workers."""
        cdef int32_t which
        total = 0
        for which in range(self.memory.workers):
            total += net_load64(&self.memory.worker[which].ring.dropped)
        return total
