# cython: language_level=3
"""The load generator: opens connections, judges every octet, keeps the time.

Owns the client's side of a measurement. A whole run is `nogil` and keeps all
its state in one block taken before the first connection, so several threads
may each run one. Three shapes of load:

- `closed`: N at once, the next when one is done. Reads them in the order they
  were opened and, when the oldest is not ready, sleeps on the middle one: one
  wakeup for half of N, so that the client costs little and disturbs little.
  Its latencies are therefore those of a crowd; for latency use
- `offered`: a fixed rate on a schedule that does not wait for the server.
  Latency counts from the *intended* start, noticed through epoll at once.
- `Fill`: completes handshakes and reads nothing until told.

Promises: every connection ends as exactly one of `OUTCOMES`; every loop is
bounded by count and time. Fails with OSError only for what the client itself
cannot do (no descriptors, no epoll); everything the server does is counted.
"""

from libc.errno cimport (
    EAGAIN, ECONNABORTED, ECONNREFUSED, ECONNRESET, EINPROGRESS, EINTR,
    ENOTCONN, EPIPE, ETIMEDOUT, errno,
)
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <time.h>
    #include <unistd.h>
    #include <poll.h>
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <sys/epoll.h>
    #include <sys/prctl.h>
    #include <sys/socket.h>

    #ifndef IP_BIND_ADDRESS_NO_PORT
    #define IP_BIND_ADDRESS_NO_PORT 24
    #endif

    static inline int64_t blast_clock(clockid_t id)
    {
        struct timespec t;
        clock_gettime(id, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }

    /* The index of an HDR histogram with three digits: 2048 linear steps, then
       1024 per doubling. Values beyond the last bucket fall into it. */
    #define BLAST_BUCKETS (18 * 1024)
    static inline int blast_bucket(uint64_t value)
    {
        int shift, at;
        if (value >= (1ULL << 27))
            return BLAST_BUCKETS - 1;
        shift = 64 - __builtin_clzll(value | 2047) - 11;
        at = (shift << 10) + (int)(value >> shift);
        return at;
    }

    static inline uint64_t blast_value(int at)
    {
        int shift = (at >> 10) - 1;
        if (shift <= 0)
            return at;
        return ((uint64_t)(at - (shift << 10))) << shift;
    }

    /* Sleep until something happens or `ns` have passed: epoll_wait counts in
       milliseconds, which is longer than the gap between two connections. */
    static inline int blast_wait(int loop, struct epoll_event *events, int room, int64_t ns)
    {
        struct timespec t;
        if (ns <= 0)
            return epoll_wait(loop, events, room, 0);
        t.tv_sec = ns / 1000000000;
        t.tv_nsec = ns % 1000000000;
        return epoll_pwait2(loop, events, room, &t, NULL);
    }

    static inline int blast_socket(int family)
    {
        return socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    }

    static inline int blast_from(int fd, uint32_t source)
    {
        struct sockaddr_in a;
        int on = 1;
        memset(&a, 0, sizeof a);
        a.sin_family = AF_INET;
        a.sin_addr.s_addr = htonl(source);
        /* The port is picked at connect, when the whole address pair is known:
           otherwise one source could serve only one port once. */
        if (setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on) < 0)
            return -1;
        return bind(fd, (struct sockaddr *)&a, sizeof a);
    }

    static int blast_target(struct sockaddr_storage *to, const char *text, int port)
    {
        struct sockaddr_in *four = (struct sockaddr_in *)to;
        struct sockaddr_in6 *six = (struct sockaddr_in6 *)to;
        memset(to, 0, sizeof *to);
        if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
            four->sin_family = AF_INET;
            four->sin_port = htons(port);
            return sizeof *four;
        }
        if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
            six->sin6_family = AF_INET6;
            six->sin6_port = htons(port);
            return sizeof *six;
        }
        return 0;
    }

    static inline int blast_connect(int fd, struct sockaddr_storage *to, int size)
    {
        return connect(fd, (struct sockaddr *)to, size);
    }

    static inline int blast_error(int fd)
    {
        int error = 0;
        socklen_t size = sizeof error;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
            return errno;
        return error;
    }

    static inline int blast_poll(int fd, int events, int64_t ns)
    {
        struct pollfd p;
        struct timespec t;
        p.fd = fd;
        p.events = events;
        p.revents = 0;
        if (ns < 0)
            ns = 0;
        t.tv_sec = ns / 1000000000;
        t.tv_nsec = ns % 1000000000;
        return ppoll(&p, 1, &t, NULL) > 0 ? p.revents : 0;
    }

    static inline int blast_add(int loop, int fd, uint32_t events, uint64_t tag)
    {
        struct epoll_event e;
        e.events = events;
        e.data.u64 = tag;
        return epoll_ctl(loop, EPOLL_CTL_ADD, fd, &e);
    }

    static inline void blast_fine_timers(void)
    {
        /* 50 us of slack would be the latency of the schedule. */
        prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    }
    """
    int64_t blast_clock(int) nogil
    int blast_bucket(uint64_t) nogil
    uint64_t blast_value(int) nogil
    int blast_socket(int) nogil
    int blast_from(int, uint32_t) nogil
    int blast_target(sockaddr_storage*, const char*, int) nogil
    int blast_connect(int, sockaddr_storage*, int) nogil
    int blast_error(int) nogil
    int blast_poll(int, int, int64_t) nogil
    int blast_add(int, int, uint32_t, uint64_t) nogil
    void blast_fine_timers() nogil
    ctypedef struct epoll_data_t:
        uint64_t u64
    ctypedef struct epoll_event "struct epoll_event":
        uint32_t events
        epoll_data_t data
    int blast_wait(int, epoll_event*, int, int64_t) nogil
    ctypedef struct sockaddr_storage "struct sockaddr_storage":
        unsigned short ss_family
    ssize_t recv(int, void*, size_t, int) nogil
    ssize_t send(int, const void*, size_t, int) nogil
    int close(int) nogil
    int epoll_create1(int) nogil
    enum: AF_INET
    enum: BLAST_BUCKETS
    enum: MSG_DONTWAIT
    enum: MSG_NOSIGNAL
    enum: EPOLL_CLOEXEC
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLLRDHUP
    enum: EPOLLERR
    enum: EPOLLHUP
    enum: EPOLLET
    enum: POLLIN
    enum: POLLOUT
    enum: POLLRDHUP
    enum: CLOCK_MONOTONIC
    enum: CLOCK_THREAD_CPUTIME_ID

# What became of a connection. PENDING is none of them: it goes on.
cdef enum Outcome:
    PENDING = -1
    COMPLETE = 0       # the whole answer, then the end of the stream
    SHORT = 1          # the end of the stream before the whole answer
    RESET_BEFORE = 2   # reset before the whole answer had come
    RESET_AFTER = 3    # reset after the whole answer
    REFUSED = 4        # nobody listens
    TIMED_OUT = 5      # neither end nor reset in time
    WRONG = 6          # an octet that is not the expected one, or one too many
    LOCAL = 7          # the client could not open it: no descriptor, no port
    OUTCOME_COUNT = 8

OUTCOMES = (
    "complete", "short", "reset_before", "reset_after",
    "refused", "timed_out", "wrong", "local",
)

cdef enum Behaviour:
    SILENT = 0    # reads and closes
    EARLY = 1     # talks as soon as the handshake is done
    QUIT = 2      # reads the whole answer, then sends QUIT
    NEVER = 3     # reads to the end and does not close

BEHAVIOURS = {"silent": SILENT, "early": EARLY, "quit": QUIT, "never": NEVER}
EHLO = b"EHLO early.example.net\r\n"
EHLO_4K = EHLO + b"MAIL FROM:<early@example.net>\r\n" * 132

cdef const char* FAREWELL = b"QUIT\r\n"

cdef enum:
    SCRATCH = 65536
    EVENTS = 256
    # How long before a due start the schedule stops sleeping and spins: a
    # wakeup on an idle virtual machine takes tens of microseconds.
    SPIN_NS = 200000
    # How long an answer that is due is awaited spinning, for the same reason:
    # what the server pays is the same, and the figure is the server's.
    AWAIT_NS = 1500000

cdef struct Spot:
    int fd
    uint32_t got
    uint32_t generation
    uint8_t talked
    uint8_t parted       # QUIT is sent
    uint8_t judged       # latency is recorded
    int64_t start        # intended
    int64_t deadline

cdef struct Run:
    sockaddr_storage target
    int target_size
    int family
    int behaviour
    int timeout_ms
    const char* talk
    uint32_t talk_size
    const uint8_t* template
    const uint8_t* freedom
    uint32_t size
    uint32_t* sources
    uint32_t source_count
    uint32_t next_source
    # The octets before and after the part that may change: two memcmp and a
    # short loop cost less than one judgement per octet.
    uint32_t free_from
    uint32_t free_to
    uint64_t started
    uint64_t outcomes[8]
    int last_local
    int* held            # never closers: descriptors kept to the end
    uint32_t hold
    uint64_t held_count
    int64_t began
    int64_t ended
    int64_t cpu
    int64_t latest       # the worst delay of the schedule itself
    uint64_t* buckets
    uint64_t samples
    uint64_t sum_us
    uint64_t max_us
    uint8_t scratch[SCRATCH]


cdef bint same(Run* r, uint32_t at, ssize_t n) noexcept nogil:
    """Whether n octets in scratch are what the template says from `at` on."""
    cdef uint32_t end = at + <uint32_t>n
    cdef uint32_t i, stop
    cdef uint8_t c, kind
    if end > r.size:
        return False
    if at < r.free_from:
        stop = end if end < r.free_from else r.free_from
        if memcmp(r.scratch, r.template + at, stop - at) != 0:
            return False
    i = at if at > r.free_from else r.free_from
    stop = end if end < r.free_to else r.free_to
    while i < stop:
        c = r.scratch[i - at]
        kind = r.freedom[i]
        if kind == 0:
            if c != r.template[i]:
                return False
        elif kind == 1:
            if c < c"0" or c > c"9":
                return False
        else:
            if not (c"A" <= c <= c"Z" or c"a" <= c <= c"z"):
                return False
        i += 1
    if end > r.free_to:
        i = at if at > r.free_to else r.free_to
        if memcmp(r.scratch + (i - at), r.template + i, end - i) != 0:
            return False
    return True


cdef void record(Run* r, Spot* s) noexcept nogil:
    cdef int64_t ns = blast_clock(CLOCK_MONOTONIC) - s.start
    cdef uint64_t us
    if s.judged:
        return
    s.judged = 1
    us = <uint64_t>((ns + 500) // 1000) if ns > 0 else 0
    r.buckets[blast_bucket(us)] += 1
    r.samples += 1
    r.sum_us += us
    if us > r.max_us:
        r.max_us = us


cdef int talk(Run* r, Spot* s) noexcept nogil:
    """Say what an early talker says, once the handshake is done."""
    cdef ssize_t n
    if s.talked:
        return PENDING
    n = send(s.fd, r.talk, r.talk_size, MSG_DONTWAIT | MSG_NOSIGNAL)
    if n >= 0:
        s.talked = 1
    elif errno != EAGAIN and errno != ENOTCONN:
        # Closed or reset already. Reading will say which.
        s.talked = 1
    return PENDING


cdef int begin(Run* r, Spot* s, int64_t start) noexcept nogil:
    """Open the next connection. PENDING, or how it ended at once."""
    r.started += 1
    s.got = 0
    s.talked = 0
    s.parted = 0
    s.judged = 0
    s.generation += 1
    s.start = start
    s.deadline = start + <int64_t>r.timeout_ms * 1000000
    s.fd = blast_socket(r.family)
    if s.fd < 0:
        r.last_local = errno
        return LOCAL
    if r.source_count:
        if blast_from(s.fd, r.sources[r.next_source]) < 0:
            r.last_local = errno
            return LOCAL
        r.next_source += 1
        if r.next_source == r.source_count:
            r.next_source = 0
    if blast_connect(s.fd, &r.target, r.target_size) < 0 and errno != EINPROGRESS:
        return trouble(r, s, errno)
    if r.behaviour == EARLY:
        return talk(r, s)
    return PENDING


cdef int trouble(Run* r, Spot* s, int error) noexcept nogil:
    if error == ECONNREFUSED:
        return REFUSED
    if error == ETIMEDOUT:
        return TIMED_OUT
    if error == ECONNRESET or error == EPIPE or error == ECONNABORTED:
        if s.got == r.size and r.size:
            return RESET_AFTER
        return RESET_BEFORE
    r.last_local = error
    return LOCAL


cdef int hear(Run* r, Spot* s, bint ended) noexcept nogil:
    """Read what has come. `ended`: the FIN is known to be here already, so
    that one recv takes all there will ever be."""
    cdef ssize_t n
    while True:
        n = recv(s.fd, r.scratch, SCRATCH, MSG_DONTWAIT)
        if n > 0:
            if s.parted:
                # Whatever a server says to QUIT is not the greeting.
                continue
            if not same(r, s.got, n):
                return WRONG
            s.got += <uint32_t>n
            if s.got == r.size:
                record(r, s)
                if r.behaviour == QUIT:
                    send(s.fd, FAREWELL, 6, MSG_DONTWAIT | MSG_NOSIGNAL)
                    s.parted = 1
                    continue
            if not ended or n == SCRATCH:
                continue
            n = 0
        if n == 0:
            if s.got != r.size:
                return SHORT
            record(r, s)
            return COMPLETE
        if errno == EAGAIN:
            return PENDING
        if errno != EINTR:
            return trouble(r, s, errno)


cdef void finish(Run* r, Spot* s, int outcome) noexcept nogil:
    r.outcomes[outcome] += 1
    if s.fd < 0:
        return
    if r.behaviour == NEVER and outcome == COMPLETE and r.hold:
        # Bounded: the oldest makes room.
        if r.held_count >= r.hold:
            close(r.held[r.held_count % r.hold])
        r.held[r.held_count % r.hold] = s.fd
        r.held_count += 1
    else:
        close(s.fd)
    s.fd = -1


cdef void run_closed(Run* r, Spot* spots, uint32_t crowd, uint64_t count,
                     int64_t until) noexcept nogil:
    cdef uint64_t opened = 0, done = 0
    cdef Spot* s
    cdef Spot* middle
    cdef int outcome
    cdef bint woken = False
    cdef int64_t now = r.began
    while True:
        while opened - done < crowd and opened < count and now < until:
            s = &spots[opened % crowd]
            now = blast_clock(CLOCK_MONOTONIC)
            outcome = begin(r, s, now)
            opened += 1
            if outcome != PENDING:
                finish(r, s, outcome)
        if done == opened:
            return
        s = &spots[done % crowd]
        if s.fd >= 0:
            if r.behaviour == EARLY:
                talk(r, s)
            outcome = hear(r, s, False)
            if outcome == PENDING:
                now = blast_clock(CLOCK_MONOTONIC)
                if now >= s.deadline:
                    outcome = TIMED_OUT
                else:
                    # Sleep until half of those behind it are ready too, unless
                    # that was tried and this one is the straggler.
                    middle = &spots[(done + (opened - done) // 2) % crowd]
                    if woken or middle.fd < 0:
                        middle = s
                    woken = blast_poll(middle.fd, POLLIN | POLLRDHUP, 1000000) != 0
                    continue
            finish(r, s, outcome)
        woken = False
        done += 1


cdef void run_offered(Run* r, Spot* spots, uint32_t crowd, uint64_t count,
                      double gap, int loop, uint32_t* empty) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef uint64_t opened = 0, done = 0
    cdef uint32_t empties = crowd, index, flags
    cdef int n, i, outcome
    cdef int64_t now, due = r.began, rest, sweep = r.began + 10000000
    cdef int64_t youngest = r.began
    cdef Spot* s
    for index in range(crowd):
        empty[index] = crowd - 1 - index
    while done < count:
        now = blast_clock(CLOCK_MONOTONIC)
        while opened < count and due <= now and empties:
            empties -= 1
            index = empty[empties]
            s = &spots[index]
            if now - due > r.latest:
                r.latest = now - due
            youngest = now
            outcome = begin(r, s, due)
            if outcome == PENDING:
                flags = EPOLLIN | EPOLLRDHUP | EPOLLET
                if r.behaviour == EARLY and not s.talked:
                    flags |= EPOLLOUT
                if blast_add(loop, s.fd, flags,
                             (<uint64_t>s.generation << 32) | index) < 0:
                    r.last_local = errno
                    outcome = LOCAL
            opened += 1
            due = r.began + <int64_t>(opened * gap)
            if outcome != PENDING:
                finish(r, s, outcome)
                done += 1
                empty[empties] = index
                empties += 1
            now = blast_clock(CLOCK_MONOTONIC)
        rest = due - now if opened < count and empties else 2000000
        if rest > 2000000:
            rest = 2000000
        if opened > done and now - youngest < AWAIT_NS:
            rest = 0
        n = blast_wait(loop, events, EVENTS, rest - SPIN_NS)
        for i in range(n):
            index = <uint32_t>events[i].data.u64
            s = &spots[index]
            if s.fd < 0 or s.generation != <uint32_t>(events[i].data.u64 >> 32):
                continue
            flags = events[i].events
            if flags & EPOLLOUT and r.behaviour == EARLY:
                talk(r, s)
            if not flags & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP):
                continue
            outcome = hear(r, s, (flags & (EPOLLRDHUP | EPOLLERR | EPOLLHUP)) == EPOLLRDHUP)
            if outcome != PENDING:
                finish(r, s, outcome)
                done += 1
                empty[empties] = index
                empties += 1
        if now >= sweep:
            sweep = now + 10000000
            for index in range(crowd):
                s = &spots[index]
                if s.fd >= 0 and s.deadline <= now:
                    finish(r, s, TIMED_OUT)
                    done += 1
                    empty[empties] = index
                    empties += 1


cdef class Result:
    """What came of one run: counts, latencies, time and cost. Adds up with +."""

    cdef readonly dict counts
    cdef readonly uint64_t started
    cdef readonly double elapsed
    cdef readonly double cpu_seconds
    cdef readonly double latest
    cdef readonly int last_local
    cdef readonly uint64_t samples
    cdef readonly uint64_t max_us
    cdef uint64_t sum_us
    cdef bytes buckets

    def __init__(self):
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self.buckets = bytes(BLAST_BUCKETS * sizeof(uint64_t))

    def __getattr__(self, name):
        try:
            return self.counts[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def answered(self):
        """Connections that got the whole answer, however they ended."""
        return self.counts["complete"] + self.counts["reset_after"]

    @property
    def finished(self):
        return sum(self.counts.values())

    @property
    def rate(self):
        return self.finished / self.elapsed if self.elapsed else 0.0

    @property
    def cpu_us(self):
        """Microseconds of this client's CPU per connection."""
        return self.cpu_seconds * 1e6 / self.started if self.started else 0.0

    @property
    def mean_us(self):
        return self.sum_us / self.samples if self.samples else 0.0

    def percentile(self, double percent):
        """Latency in microseconds, connect (or intended start) to the last octet."""
        cdef const uint64_t* b = <const uint64_t*><const char*>self.buckets
        cdef uint64_t wanted, seen = 0
        cdef int at
        if not self.samples:
            return 0
        wanted = <uint64_t>(self.samples * percent / 100.0 + 0.5)
        if wanted < 1:
            wanted = 1
        elif wanted > self.samples:
            wanted = self.samples
        for at in range(BLAST_BUCKETS):
            seen += b[at]
            if seen >= wanted:
                return min(blast_value(at), self.max_us)
        return self.max_us

    def values(self):
        """Pairs (microseconds, count) of every bucket that is not empty."""
        cdef const uint64_t* b = <const uint64_t*><const char*>self.buckets
        cdef int at
        return [(blast_value(at), b[at]) for at in range(BLAST_BUCKETS) if b[at]]

    def histogram(self):
        """The same as an `hdrh.histogram.HdrHistogram` in microseconds."""
        from hdrh.histogram import HdrHistogram

        made = HdrHistogram(1, 1 << 27, 3)
        for value, count in self.values():
            made.record_value(max(value, 1), count)
        return made

    def __add__(self, Result other):
        cdef Result both = Result()
        cdef int at
        cdef bytearray room = bytearray(self.buckets)
        cdef uint64_t* sums = <uint64_t*><char*>room
        cdef const uint64_t* more = <const uint64_t*><const char*>other.buckets
        for at in range(BLAST_BUCKETS):
            sums[at] += more[at]
        both.buckets = bytes(room)
        both.counts = {name: self.counts[name] + other.counts[name] for name in OUTCOMES}
        both.started = self.started + other.started
        both.elapsed = self.elapsed + other.elapsed
        both.cpu_seconds = self.cpu_seconds + other.cpu_seconds
        both.latest = max(self.latest, other.latest)
        both.last_local = other.last_local or self.last_local
        both.samples = self.samples + other.samples
        both.sum_us = self.sum_us + other.sum_us
        both.max_us = max(self.max_us, other.max_us)
        return both

    def as_dict(self):
        """For JSON: everything but the buckets."""
        return {
            **self.counts,
            "started": self.started,
            "elapsed": self.elapsed,
            "rate": self.rate,
            "client_cpu_us": self.cpu_us,
            "latest_start_us": self.latest * 1e6,
            "mean_us": self.mean_us,
            "p50_us": self.percentile(50),
            "p99_us": self.percentile(99),
            "p999_us": self.percentile(99.9),
            "max_us": self.max_us,
        }

    def __repr__(self):
        counts = " ".join(f"{name}={n}" for name, n in self.counts.items() if n)
        return (
            f"<{counts or 'nothing'} rate={self.rate:.0f}/s p50={self.percentile(50)}us "
            f"p99={self.percentile(99)}us client={self.cpu_us:.1f}us/conn>"
        )


cdef class _Plan:
    """The block of one run and the Python objects its pointers look into."""

    cdef Run* run
    cdef Spot* spots
    cdef uint32_t crowd
    cdef object template, freedom, words
    cdef object sources

    def __cinit__(self, str address, int port, uint32_t crowd, str behaviour,
                  object sources, object expect, double timeout, bytes words, uint32_t hold):
        cdef Run* r
        cdef bytes place = address.encode()
        cdef uint32_t i
        if behaviour not in BEHAVIOURS:
            raise ValueError(f"behaviour {behaviour!r}: one of {', '.join(BEHAVIOURS)}")
        if not 0 < port < 65536 or crowd < 1 or timeout <= 0:
            raise ValueError("port, concurrency and timeout must be positive")
        self.run = r = <Run*>calloc(1, sizeof(Run))
        self.spots = <Spot*>calloc(crowd, sizeof(Spot))
        if r == NULL or self.spots == NULL:
            raise MemoryError
        self.crowd = crowd
        for i in range(crowd):
            self.spots[i].fd = -1
        r.buckets = <uint64_t*>calloc(BLAST_BUCKETS, sizeof(uint64_t))
        r.target_size = blast_target(&r.target, place, port)
        if r.buckets == NULL:
            raise MemoryError
        if r.target_size == 0:
            raise ValueError(f"not an address: {address!r}")
        r.family = r.target.ss_family
        r.behaviour = BEHAVIOURS[behaviour]
        r.timeout_ms = max(1, int(timeout * 1000))
        self.template = expect.template
        self.freedom = expect.freedom
        self.words = words
        if len(self.template) != len(self.freedom):
            raise ValueError("template and freedom differ in length")
        r.template = <const uint8_t*><const char*>(<bytes>self.template)
        r.freedom = <const uint8_t*><const char*>(<bytes>self.freedom)
        r.size = len(self.template)
        free_octets = [i for i, kind in enumerate(self.freedom) if kind]
        r.free_from = min(free_octets) if free_octets else r.size
        r.free_to = max(free_octets) + 1 if free_octets else r.size
        r.talk = <const char*>(<bytes>self.words)
        r.talk_size = len(self.words)
        if r.behaviour == NEVER:
            r.hold = hold
            r.held = <int*>calloc(hold, sizeof(int))
            if r.held == NULL:
                raise MemoryError
        numbers = source_numbers(sources) if r.family == AF_INET else []
        if numbers:
            r.sources = <uint32_t*>calloc(len(numbers), sizeof(uint32_t))
            if r.sources == NULL:
                raise MemoryError
            for i, number in enumerate(numbers):
                r.sources[i] = number
            r.source_count = len(numbers)

    def __dealloc__(self):
        cdef uint32_t i
        if self.spots != NULL:
            for i in range(self.crowd):
                if self.spots[i].fd >= 0:
                    close(self.spots[i].fd)
            free(self.spots)
        if self.run != NULL:
            self.release()
            free(self.run.buckets)
            free(self.run.sources)
            free(self.run.held)
            free(self.run)

    cdef void release(self):
        cdef uint64_t i, n = min(self.run.held_count, <uint64_t>self.run.hold)
        for i in range(n):
            close(self.run.held[i])
        self.run.held_count = 0

    cdef Result result(self):
        cdef Result made = Result()
        cdef Run* r = self.run
        for at, name in enumerate(OUTCOMES):
            made.counts[name] = r.outcomes[at]
        made.started = r.started
        made.elapsed = (r.ended - r.began) / 1e9
        made.cpu_seconds = r.cpu / 1e9
        made.latest = r.latest / 1e9
        made.last_local = r.last_local
        made.samples = r.samples
        made.sum_us = r.sum_us
        made.max_us = r.max_us
        made.buckets = (<char*>r.buckets)[:BLAST_BUCKETS * sizeof(uint64_t)]
        return made


def source_numbers(sources):
    """Source addresses as numbers: a count of 127.1.x.y, or the addresses."""
    import socket as sockets

    if isinstance(sources, int):
        if not 0 <= sources <= 60_000:
            raise ValueError("sources: 0 to 60000")
        return [(127 << 24) + (1 << 16) + (i // 250 << 8) + i % 250 + 1 for i in range(sources)]
    return [int.from_bytes(sockets.inet_aton(a), "big") for a in sources or ()]


def closed(str address, int port, *, uint64_t connections=0, uint32_t concurrency=64,
           str behaviour="silent", sources=64, expect, double timeout=5.0,
           double seconds=0.0, bytes words=EHLO, uint32_t hold=1024):
    """Keep `concurrency` connections going until `connections` have been
    started or `seconds` have passed, whichever is given and comes first."""
    cdef _Plan plan
    cdef Run* r
    cdef uint64_t count
    cdef int64_t until
    if not connections and not seconds:
        raise ValueError("give connections or seconds")
    plan = _Plan(address, port, concurrency, behaviour, sources, expect, timeout, words, hold)
    r = plan.run
    with nogil:
        count = connections if connections else <uint64_t>-1
        r.cpu = blast_clock(CLOCK_THREAD_CPUTIME_ID)
        r.began = blast_clock(CLOCK_MONOTONIC)
        until = r.began + (<int64_t>(seconds * 1e9) if seconds else <int64_t>3600 * 1000000000)
        run_closed(r, plan.spots, concurrency, count, until)
        r.ended = blast_clock(CLOCK_MONOTONIC)
        r.cpu = blast_clock(CLOCK_THREAD_CPUTIME_ID) - r.cpu
    plan.release()
    return plan.result()


def offered(str address, int port, *, double rate, double seconds,
            uint32_t concurrency=4096, str behaviour="silent", sources=64, expect,
            double timeout=5.0, bytes words=EHLO, uint32_t hold=1024):
    """Start `rate` connections a second for `seconds`, on a schedule that is
    kept whatever the server does; at most `concurrency` are open at once, and
    what has to wait for that still counts from when it should have started."""
    cdef _Plan plan
    cdef Run* r
    cdef uint64_t count
    cdef double gap
    cdef int loop
    cdef uint32_t* empty
    if rate <= 0 or seconds <= 0:
        raise ValueError("rate and seconds must be positive")
    plan = _Plan(address, port, concurrency, behaviour, sources, expect, timeout, words, hold)
    r = plan.run
    count = max(1, int(rate * seconds))
    gap = 1e9 / rate
    loop = epoll_create1(EPOLL_CLOEXEC)
    if loop < 0:
        raise OSError(errno, "epoll_create1")
    empty = <uint32_t*>calloc(concurrency, sizeof(uint32_t))
    if empty == NULL:
        close(loop)
        raise MemoryError
    with nogil:
        blast_fine_timers()
        r.cpu = blast_clock(CLOCK_THREAD_CPUTIME_ID)
        r.began = blast_clock(CLOCK_MONOTONIC)
        run_offered(r, plan.spots, concurrency, count, gap, loop, empty)
        r.ended = blast_clock(CLOCK_MONOTONIC)
        r.cpu = blast_clock(CLOCK_THREAD_CPUTIME_ID) - r.cpu
        close(loop)
        free(empty)
    plan.release()
    return plan.result()


cdef class Fill:
    """Completed handshakes that nobody has read: a full accept queue.

    `Fill(...)` returns when all are ESTABLISHED (`opened` says how many; the
    rest have their outcome already). `wait()` says when the last of them got
    its end; `finish()` reads and judges all. Latencies count from `mark()`, or
    else from each connection's own start."""

    cdef _Plan plan
    cdef uint64_t count
    cdef readonly uint64_t opened

    def __init__(self, str address, int port, *, uint64_t connections, str behaviour="silent",
                 sources=64, expect, double timeout=5.0, bytes words=EHLO, uint32_t hold=1024):
        cdef Run* r
        cdef Spot* s
        cdef uint64_t i
        cdef int outcome, ready
        if not 0 < connections < 1000000:
            raise ValueError("connections: 1 to 999999")
        self.count = connections
        self.plan = _Plan(address, port, <uint32_t>connections, behaviour, sources, expect,
                          timeout, words, hold)
        r = self.plan.run
        with nogil:
            r.cpu = blast_clock(CLOCK_THREAD_CPUTIME_ID)
            r.began = blast_clock(CLOCK_MONOTONIC)
            for i in range(connections):
                s = &self.plan.spots[i]
                outcome = begin(r, s, blast_clock(CLOCK_MONOTONIC))
                if outcome == PENDING:
                    ready = blast_poll(s.fd, POLLOUT, s.deadline - blast_clock(CLOCK_MONOTONIC))
                    if not ready:
                        outcome = TIMED_OUT
                    elif ready & ~POLLOUT:
                        ready = blast_error(s.fd)
                        if ready:
                            outcome = trouble(r, s, ready)
                    if outcome == PENDING and r.behaviour == EARLY:
                        talk(r, s)
                if outcome == PENDING:
                    self.opened += 1
                else:
                    finish(r, s, outcome)
                    if outcome == TIMED_OUT or outcome == LOCAL:
                        # The queue is full, or we are: the rest would only wait.
                        break
            r.cpu = blast_clock(CLOCK_THREAD_CPUTIME_ID) - r.cpu

    def mark(self):
        """Latencies count from now, and timeouts too."""
        cdef int64_t now = blast_clock(CLOCK_MONOTONIC)
        cdef uint64_t i
        for i in range(self.count):
            self.plan.spots[i].start = now
            self.plan.spots[i].deadline = now + <int64_t>self.plan.run.timeout_ms * 1000000
        self.plan.run.began = now

    def wait(self):
        """Seconds from `mark()` until every one had its end, by looking from
        the youngest back: servers go from the oldest on, so one sleep is
        usually all, and the server pays for no other wakeup of ours."""
        cdef Run* r = self.plan.run
        cdef Spot* s
        cdef uint64_t i
        cdef int64_t last
        cdef int got
        with nogil:
            last = r.began
            for i in range(self.count):
                s = &self.plan.spots[self.count - 1 - i]
                if s.fd < 0:
                    continue
                # Only the end counts, not the first octet of the answer.
                got = blast_poll(s.fd, POLLRDHUP, 0)
                if got == 0:
                    blast_poll(s.fd, POLLRDHUP, s.deadline - blast_clock(CLOCK_MONOTONIC))
                    last = blast_clock(CLOCK_MONOTONIC)
        return (last - r.began) / 1e9

    def finish(self):
        """Read and judge all, close them, and say what came of it."""
        cdef Run* r = self.plan.run
        cdef Spot* s
        cdef uint64_t i
        cdef int outcome
        cdef int64_t cpu
        with nogil:
            cpu = blast_clock(CLOCK_THREAD_CPUTIME_ID)
            for i in range(self.count):
                s = &self.plan.spots[i]
                while s.fd >= 0:
                    outcome = hear(r, s, False)
                    if outcome == PENDING:
                        if blast_poll(s.fd, POLLIN | POLLRDHUP,
                                      s.deadline - blast_clock(CLOCK_MONOTONIC)):
                            continue
                        if blast_clock(CLOCK_MONOTONIC) < s.deadline:
                            continue
                        outcome = TIMED_OUT
                    finish(r, s, outcome)
            r.ended = blast_clock(CLOCK_MONOTONIC)
            r.cpu += blast_clock(CLOCK_THREAD_CPUTIME_ID) - cpu
        self.plan.release()
        return self.plan.result()
