# cython: language_level=3
"""From the rings to the log, at the speed of connections: `turnaway._journal`.

Owns: the consumer's end of every ring, the tally of the busiest sources, and
the writing of connection lines to a datagram socket (syslog) or a stream
(stderr).  Promises: reading the rings never waits for the log; when the log
does not take lines for PATIENCE_MILLIS, or has not taken all after LONGEST_MILLIS,
the rest of the lines are counted as lost and the records are still read.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, ENOTCONN, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from libc.time cimport strftime, time_t, tm
from posix.unistd cimport write

from line cimport (
    INET6_ADDRSTRLEN, JSON_OCTETS, LINE_OCTETS, STAMP_OCTETS, put, put_address,
    put_record, put_record_json,
)
from listeners cimport Board as Memory
from listeners cimport Worker
from net cimport (
    NET_DATAGRAMS, iovec, net_send_datagrams, net_sleep, net_steady,
    net_store32, net_writable,
)
from ring cimport (
    OUTCOME_HEADLESS, OUTCOME_MISDIVERTED, OUTCOME_STRANGER, RECORD_DETAILED, Record, Ring,
    ring_peek, ring_release, ring_waiting,
)
from slot cimport WORDS as WORDS_COUNT
from tally cimport TALLY_SETS, TALLY_WAYS, Source, Tally, tally_add

cdef extern from "<time.h>" nogil:
    tm *gmtime_r(const time_t *moment, tm *parts)

cdef enum:
    HEADER_OCTETS = 128
    TAIL_OCTETS = 500
    ROOM = HEADER_OCTETS + LINE_OCTETS + JSON_OCTETS + TAIL_OCTETS + 1
    # write(2) of up to this many octets into a pipe that poll(2) called
    # writable does not block (POSIX PIPE_BUF on Linux; 512 at the least).
    STREAM_OCTETS = 4096
    PATIENCE_MILLIS = 100
    LONGEST_MILLIS = 400
    # While the queue of a datagram socket is full: a nap in which its reader gets
    # on with several.  Trying again at once costs as much as a line each time, and
    # poll(2) wakes for every single one that is read.
    NAP_MICROS = 50
    NAP_MICROS_MOST = 1600
    NAP_WORTH = 5       # lines taken after a nap; for fewer the next is longer
    COPIES_OCTETS = 1 << 18

KINDS = ("none", "datagram", "stream", "absent", "json")
# What there is of everything that can be said: for each listener, in it for who is
# on no list and for each list, and in it for each of the board's WORDS.

cdef struct Tail:
    uint32_t length
    char octets[TAIL_OCTETS]

cdef struct Outlet:
    int fd
    int kind            # index of KINDS
    uint32_t header_length
    int pending         # lines gathered and not yet sent
    size_t filled       # octets of them, for a stream
    long long until     # steady clock; patience ends
    long long latest    # and is never prolonged beyond this
    long long nap       # microseconds
    int error           # why lines are lost, 0 while they are not
    uint64_t sent
    uint64_t lost
    int64_t second      # what `stamp` says
    char stamp[STAMP_OCTETS + 1]
    char header[HEADER_OCTETS]
    iovec datagrams[NET_DATAGRAMS]
    char lines[NET_DATAGRAMS * ROOM]


cdef inline int millis_left(Outlet *outlet) noexcept nogil:
    cdef long long left = (outlet.until - net_steady()) // 1000
    return <int>left if left > 0 else 0


cdef inline void progress(Outlet *outlet) noexcept nogil:
    """The log took something: be patient with it again."""
    outlet.until = min(net_steady() + PATIENCE_MILLIS * 1000, outlet.latest)


cdef void flush_datagrams(Outlet *outlet) noexcept nogil:
    cdef int done = 0
    cdef int taken
    cdef bint rested = False
    while done < outlet.pending and outlet.error == 0:
        taken = net_send_datagrams(
            outlet.fd, &outlet.datagrams[done], outlet.pending - done
        )
        if taken < 0:
            if errno == EINTR:
                continue
            # The queue of a unix datagram socket is short (unix(7), often 10):
            # full is normal for a moment, and only for a moment.
            if errno != EAGAIN and errno != ENOBUFS:
                outlet.error = errno
                break
            taken = 0
        if not rested:
            # Whatever came before was taken, however long ago that is.
            progress(outlet)
        done += taken
        if rested and done < outlet.pending:
            if taken < NAP_WORTH:
                outlet.nap = min(outlet.nap * 2, <long long>NAP_MICROS_MOST)
            else:
                outlet.nap = NAP_MICROS
        if taken > 0 and rested:
            progress(outlet)
        if done < outlet.pending:
            if millis_left(outlet) == 0:
                outlet.error = EAGAIN
            else:
                net_sleep(outlet.nap)
                rested = True
    outlet.sent += done
    outlet.lost += outlet.pending - done
    outlet.pending = 0


cdef void flush_stream(Outlet *outlet) noexcept nogil:
    cdef size_t done = 0
    cdef ssize_t taken
    while done < outlet.filled and outlet.error == 0:
        if not net_writable(outlet.fd, millis_left(outlet)):
            outlet.error = EAGAIN
            break
        taken = write(outlet.fd, outlet.lines + done, outlet.filled - done)
        if taken >= 0:
            done += <size_t>taken
            progress(outlet)
        elif errno != EINTR:
            outlet.error = errno
    if done == outlet.filled:
        outlet.sent += outlet.pending
    else:
        outlet.lost += outlet.pending
    outlet.pending = 0
    outlet.filled = 0


cdef void stamp(Outlet *outlet, int64_t second) noexcept nogil:
    """The second in UTC, as ISO 8601; most records share it with the one before."""
    cdef tm parts
    cdef time_t moment = <time_t>second
    if second == outlet.second and outlet.stamp[0] != 0:
        return
    outlet.second = second
    gmtime_r(&moment, &parts)
    strftime(outlet.stamp, sizeof(outlet.stamp), b"%Y-%m-%dT%H:%M:%S", &parts)


cdef inline void say(Outlet *outlet, const Record *record, const Tail *tail) noexcept nogil:
    """One more line; sends what is gathered when there is no room for it."""
    cdef char *start
    cdef char *end
    if outlet.error != 0:
        outlet.lost += 1
        return
    if outlet.kind == 1:
        start = outlet.lines + <size_t>outlet.pending * ROOM
    else:
        start = outlet.lines + outlet.filled
    end = put(start, outlet.header, outlet.header_length)
    if outlet.kind == 4:
        stamp(outlet, record.moment // 1_000_000)
        end = put_record_json(end, record, outlet.stamp, tail.octets, tail.length)
    else:
        end = put_record(end, record, tail.octets, tail.length)
    if outlet.kind == 1:
        outlet.datagrams[outlet.pending].iov_base = start
        outlet.datagrams[outlet.pending].iov_len = <size_t>(end - start)
        outlet.pending += 1
        if outlet.pending == NET_DATAGRAMS:
            flush_datagrams(outlet)
    else:
        end[0] = c"\n"
        outlet.filled += <size_t>(end + 1 - start)
        outlet.pending += 1
        if outlet.filled + ROOM > STREAM_OCTETS:
            flush_stream(outlet)


cdef class Reader:
    """Reads the rings of `board`; `tails` are the end of a line, one for everything
    that can be said, and `members` the same as members of a JSON object.  `untold` has
    (text, members) of each listener for who was told nothing, for no PROXY header
    came; without it such a line ends as that of the listener's own words.

    Raises ValueError for one longer than TAIL_OCTETS or a wrong number.
    """
    cdef Memory *memory
    cdef object board
    cdef Tail *tails
    cdef Tail *members
    cdef int untold         # where in both those of `untold` begin, 0 for nowhere
    cdef int groups
    cdef uint64_t misdirected   # connections since `misdiverted` was last asked
    cdef Record misdirected_last
    cdef Tally *tally
    cdef Outlet *outlet
    cdef long long *allowed
    cdef char *copies
    cdef size_t copied
    cdef int wanted

    def __cinit__(self, board, tails, members, unsigned long long key, untold=()):
        cdef int count
        self.board = board
        self.memory = <Memory *>PyCapsule_GetPointer(board.capsule, b"turnaway.board")
        self.groups = self.memory.groups
        count = self.memory.listeners * self.groups * <int>WORDS_COUNT
        if untold:
            self.untold = count
            count += self.memory.listeners
            tails = [*tails, *(text for text, _ in untold)]
            members = [*members, *(json for _, json in untold)]
        self.tails = <Tail *>calloc(count, sizeof(Tail))
        self.members = <Tail *>calloc(count, sizeof(Tail))
        self.tally = <Tally *>calloc(1, sizeof(Tally))
        self.outlet = <Outlet *>calloc(1, sizeof(Outlet))
        self.allowed = <long long *>calloc(self.memory.listeners + 1, sizeof(long long))
        if (
            self.tails == NULL or self.members == NULL or self.tally == NULL or self.outlet == NULL
            or self.allowed == NULL
        ):
            raise MemoryError()
        self.tally.key = key
        self.keep(self.tails, tails, count)
        self.keep(self.members, members, count)

    cdef int keep(self, Tail *kept, tails, int count) except -1:
        cdef bytes words
        cdef int index
        if len(tails) != count:
            raise ValueError(f"tails: expected {count}, got {len(tails)}")
        for index in range(count):
            words = tails[index]
            if len(words) > TAIL_OCTETS:
                raise ValueError(f"tail: at most {TAIL_OCTETS} octets, got {len(words)}")
            memcpy(kept[index].octets, <const char *>words, len(words))
            kept[index].length = <uint32_t>len(words)
        return 0

    def __dealloc__(self):
        free(self.tails)
        free(self.members)
        free(self.tally)
        free(self.outlet)
        free(self.allowed)
        free(self.copies)

    def pull(self, int fd, str kind, bytes header, allowed, int wanted=0):
        """Read every record that waits; write lines, at most `allowed`: [for all
        listeners that have no count of their own, for listener 0, for 1, ...].

        `kind` is one of KINDS; to an absent log every line is lost.  Returns (records read, lines sent, lines lost,
        errno of the loss or 0, what is left of `allowed`, the first `wanted` records
        as text).  Never raises for what the log does.
        """
        cdef uint64_t seen = 0
        cdef int worker
        if len(header) > HEADER_OCTETS:
            raise ValueError(f"header: at most {HEADER_OCTETS} octets, got {len(header)}")
        memcpy(self.outlet.header, <const char *>header, len(header))
        self.outlet.header_length = <uint32_t>len(header)
        self.outlet.fd = fd
        self.outlet.kind = KINDS.index(kind)
        self.outlet.error = 0
        self.outlet.sent = self.outlet.lost = 0
        if len(allowed) != self.memory.listeners + 1:
            raise ValueError(f"allowed: expected {self.memory.listeners + 1}, got {len(allowed)}")
        for index, count in enumerate(allowed):
            self.allowed[<int>index] = count
        self.wanted = wanted
        net_store32(&self.memory.overheard, wanted > 0)
        self.copied = 0
        if wanted > 0 and self.copies == NULL:
            # Only who watches pays for it, and only once.
            self.copies = <char *>calloc(1, COPIES_OCTETS)
            if self.copies == NULL:
                raise MemoryError()
        # The stamp of a clock that was set back is not trusted.
        self.outlet.stamp[0] = 0
        if kind == "absent":
            self.outlet.error = ENOTCONN
        with nogil:
            self.outlet.latest = net_steady() + LONGEST_MILLIS * 1000
            self.outlet.nap = NAP_MICROS
            progress(self.outlet)
            for worker in range(self.memory.workers):
                seen += self.read(&self.memory.worker[worker].ring)
            if self.outlet.kind == 1:
                flush_datagrams(self.outlet)
            elif self.outlet.kind != 0:
                flush_stream(self.outlet)
        left = [self.allowed[index] for index in range(self.memory.listeners + 1)]
        text = self.copies[:self.copied].decode("ascii").splitlines() if self.copied else []
        return seen, self.outlet.sent, self.outlet.lost, self.outlet.error, left, text

    cdef void copy(self, const Record *record, const Tail *tail) noexcept nogil:
        """One more record as text, for who asked for them."""
        cdef char *end
        if self.copied + ROOM > COPIES_OCTETS:
            return
        end = put_record(self.copies + self.copied, record, tail.octets, tail.length)
        end[0] = c"\n"
        self.copied = <size_t>(end + 1 - self.copies)
        self.wanted -= 1

    cdef uint64_t read(self, Ring *ring) noexcept nogil:
        cdef uint32_t waiting = ring_waiting(ring)
        cdef uint32_t index
        cdef uint32_t kept = 0
        cdef const Record *record
        cdef int said
        cdef long long *allowed
        for index in range(waiting):
            record = ring_peek(ring, kept)
            kept += 1
            tally_add(self.tally, record.peer)
            said = (
                (record.listener * self.groups + record.list) * <int>WORDS_COUNT + record.words
            )
            if self.untold > 0 and (
                record.outcome == OUTCOME_STRANGER or record.outcome == OUTCOME_HEADLESS
            ):
                said = self.untold + record.listener
            if record.outcome == OUTCOME_MISDIVERTED:
                self.misdirected += 1
                self.misdirected_last = record[0]
            if self.wanted > 0:
                self.copy(record, &self.tails[said])
            if record.flags & RECORD_DETAILED and self.outlet.kind != 0:
                allowed = &self.allowed[0]
                if self.memory.facts[record.listener].own_detail:
                    allowed = &self.allowed[record.listener + 1]
                if allowed[0] > 0:
                    allowed[0] -= 1
                    say(
                        self.outlet, record,
                        &self.members[said] if self.outlet.kind == 4 else &self.tails[said],
                    )
            # Give room back as we go: a loop at full rate needs it.
            if kept == 256:
                ring_release(ring, kept)
                kept = 0
        ring_release(ring, kept)
        return waiting

    def misdiverted(self):
        """(connections from allow lists since this was last asked, address of the last,
        its list counted from 1); None when there are none."""
        cdef char text[INET6_ADDRSTRLEN]
        cdef char *end
        if self.misdirected == 0:
            return None
        end = put_address(text, self.misdirected_last.peer)
        found = self.misdirected, text[:end - text].decode("ascii"), self.misdirected_last.list
        self.misdirected = 0
        return found

    def busiest(self, int most):
        """[(address as text, connections at the most)], the busiest first."""
        cdef int index
        cdef Source *source
        cdef char text[INET6_ADDRSTRLEN]
        cdef char *end
        found = []
        for index in range(TALLY_SETS * TALLY_WAYS):
            if self.tally.sources[index].count > 0:
                found.append((self.tally.sources[index].count, index))
        found.sort(reverse=True)
        busiest = []
        for count, which in found[:most]:
            end = put_address(text, self.tally.sources[<int>which].address)
            busiest.append((text[:end - text].decode("ascii"), count))
        return busiest

    def forget(self):
        """Begin a new interval: no source has any connections."""
        memset(self.tally.sources, 0, sizeof(self.tally.sources))
