# cython: language_level=3
"""The parts of the hot path, one at a time: `bench.parts`.

Owns the loops that call the inline functions of `ext/*.pxd` often enough to be
timed; the functions themselves are the daemon's own, not copies. Every method
does its work `times` times in C and returns a sum of what it saw, so that the
compiler can leave nothing out. Raises ValueError for a wrong number, and
RuntimeError when the board was compiled from other headers than this module.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.stdlib cimport posix_memalign
from libc.string cimport memcpy, memset

from answer cimport count, record
from counters cimport Counter
from lists cimport Lists, lists_find, lists_load
from line cimport INET6_ADDRSTRLEN, LINE_OCTETS, put_address, put_record
from listeners cimport Board as Memory
from net cimport net_load64, net_unpack, sockaddr_storage
from pool cimport Caller
from ring cimport (
    OUTCOME_SENT, Record, Ring, ring_peek, ring_release, ring_waiting,
)
from slot cimport (
    SLOT_OCTETS, WORDS_BANNER, Answer, Slot, slot_current, slot_publish,
)
from tally cimport Tally, tally_add

cdef extern from *:
    """
    #include <string.h>
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <sys/socket.h>

    /* Source number `n` of a documentation network (RFC 5737, RFC 3849). */
    static void parts_peer(struct sockaddr_storage *to, int six, unsigned n)
    {
        memset(to, 0, sizeof *to);
        if (six) {
            struct sockaddr_in6 *a = (struct sockaddr_in6 *)to;
            a->sin6_family = AF_INET6;
            a->sin6_port = htons((unsigned short)(32768 + n));
            a->sin6_addr.s6_addr[0] = 0x20;
            a->sin6_addr.s6_addr[1] = 0x01;
            a->sin6_addr.s6_addr[2] = 0x0d;
            a->sin6_addr.s6_addr[3] = 0xb8;
            a->sin6_addr.s6_addr[14] = (unsigned char)(n >> 8);
            a->sin6_addr.s6_addr[15] = (unsigned char)n;
        } else {
            struct sockaddr_in *a = (struct sockaddr_in *)to;
            a->sin_family = AF_INET;
            a->sin_port = htons((unsigned short)(32768 + n));
            a->sin_addr.s_addr = htonl(0xcb007100u | (n & 0xff));
        }
    }
    """
    void parts_peer(sockaddr_storage *to, int six, unsigned int n) nogil

cdef enum:
    PEERS = 256             # different sources, a power of two
    TAIL_OCTETS = 400
    MOMENT = 1_062_423_017  # a second of 2003
    # As ext/journal.pyx does: room goes back to the loop as reading goes on.
    GIVEN_BACK = 256


cdef class Parts:
    """The memory the parts work on; `board` is a `turnaway._board.Board`.

    `six`: sources are IPv6. Records go into the ring of worker 0 as listener 0.
    """
    cdef object board
    cdef Memory *memory
    cdef Answer *banner
    cdef Tally *tally
    cdef sockaddr_storage *peers
    cdef Record *lines
    cdef char text[LINE_OCTETS + TAIL_OCTETS]

    def __cinit__(self, board, int records, bint six=False):
        cdef int index
        cdef Ring *ring
        self.board = board
        self.memory = <Memory *>PyCapsule_GetPointer(board.capsule, b"turnaway.board")
        ring = &self.memory.worker[0].ring
        if (
            self.memory.workers != board.workers or self.memory.listeners != board.listeners
            or ring.mask != <uint32_t>(records - 1)
        ):
            raise RuntimeError("board and parts were built from different sources, or `records`"
                               " is not the size of its rings: python -m bench build --force")
        self.banner = <Answer *>calloc(1, sizeof(Answer))
        self.tally = <Tally *>calloc(1, sizeof(Tally))
        self.peers = <sockaddr_storage *>calloc(PEERS, sizeof(sockaddr_storage))
        self.lines = <Record *>calloc(PEERS, sizeof(Record))
        if self.banner == NULL or self.tally == NULL or self.peers == NULL or self.lines == NULL:
            raise MemoryError()
        self.tally.key = 0x5DEECE66D
        for index in range(PEERS):
            parts_peer(&self.peers[index], six, <unsigned int>index)
        # Addresses in the records' form, made by the daemon's own function.
        self.clear()
        self.fill(PEERS)
        for index in range(PEERS):
            memcpy(&self.lines[index], ring_peek(ring, index), sizeof(Record))
        self.clear()

    def __dealloc__(self):
        free(self.banner)
        free(self.tally)
        free(self.peers)
        free(self.lines)

    def publish(self, bytes octets, int times):
        """Make `octets` the banner."""
        cdef const char *text = octets
        cdef size_t length = len(octets)
        cdef uint64_t seen = 0
        cdef int turn
        if length > SLOT_OCTETS:
            raise ValueError(f"banner: at most {SLOT_OCTETS} octets")
        with nogil:
            for turn in range(times):
                seen += slot_publish(self.banner, text, length, 0, True)
        return seen

    def current(self, int times):
        """Look up the banner of now, as every answer does."""
        cdef const Slot *slot
        cdef uint64_t seen = 0
        cdef int turn
        with nogil:
            for turn in range(times):
                slot = slot_current(self.banner)
                seen += slot.length
        return seen

    def counted(self, int times):
        """Count an outcome."""
        cdef int turn
        with nogil:
            for turn in range(times):
                count(
                    self.memory.worker[0].listening[0].counters, OUTCOME_SENT, WORDS_BANNER
                )
        return net_load64(
            &self.memory.worker[0].listening[0].counters.count[<int>Counter.SENT]
        )

    def fill(self, int times):
        """Write connections down, as the loop does it. What finds no room is
        dropped, which is another measure: `clear()` first."""
        cdef int64_t moment = <int64_t>MOMENT * 1_000_000
        cdef Caller caller
        cdef int turn
        # What was left of the second's lines belongs to an earlier round.
        self.memory.worker[0].budget.second = 0
        memset(&caller, 0, sizeof(caller))
        with nogil:
            for turn in range(times):
                caller.port = net_unpack(&self.peers[turn & (PEERS - 1)], caller.peer)
                record(
                    self.memory, &self.memory.worker[0], &self.memory.worker[0].listening[0],
                    -1, &caller, moment + turn, OUTCOME_SENT, WORDS_BANNER,
                )
        return ring_waiting(&self.memory.worker[0].ring)

    def clear(self):
        """Forget what waits in the ring; how many that were."""
        cdef uint32_t waiting = ring_waiting(&self.memory.worker[0].ring)
        ring_release(&self.memory.worker[0].ring, waiting)
        return waiting

    def walk(self):
        """Read every record that waits and give its room back: (records, sum)."""
        cdef Ring *ring = &self.memory.worker[0].ring
        cdef uint32_t waiting = ring_waiting(ring)
        cdef uint32_t index, kept = 0
        cdef uint64_t seen = 0
        with nogil:
            for index in range(waiting):
                seen += ring_peek(ring, kept).peer_port
                kept += 1
                if kept == GIVEN_BACK:
                    ring_release(ring, kept)
                    kept = 0
            ring_release(ring, kept)
        return waiting, seen

    def format(self, bytes tail):
        """The same, and write each as a line of the log: (records, octets)."""
        cdef Ring *ring = &self.memory.worker[0].ring
        cdef uint32_t waiting = ring_waiting(ring)
        cdef uint32_t index, kept = 0
        cdef uint64_t seen = 0
        cdef const char *words = tail
        cdef size_t length = len(tail)
        if length > TAIL_OCTETS:
            raise ValueError(f"tail: at most {TAIL_OCTETS} octets")
        with nogil:
            for index in range(waiting):
                seen += put_record(self.text, ring_peek(ring, kept), words, length) - self.text
                kept += 1
                if kept == GIVEN_BACK:
                    ring_release(ring, kept)
                    kept = 0
            ring_release(ring, kept)
        return waiting, seen

    def line(self, bytes tail):
        """One record as text, to see that the parts do what the daemon does."""
        cdef char *end
        if len(tail) > TAIL_OCTETS:
            raise ValueError(f"tail: at most {TAIL_OCTETS} octets")
        end = put_record(self.text, &self.lines[1], <const char *>tail, len(tail))
        return self.text[:end - self.text]

    def address(self, int times):
        """An address as text."""
        cdef char text[INET6_ADDRSTRLEN]
        cdef uint64_t seen = 0
        cdef int turn
        with nogil:
            for turn in range(times):
                seen += put_address(text, self.lines[turn & (PEERS - 1)].peer) - text
        return seen

    def tallied(self, int times, int sources=PEERS):
        """Count a source among the busiest; `sources` is how many there are."""
        cdef int turn, at = 0
        if not 1 <= sources <= PEERS:
            raise ValueError(f"sources: 1 to {PEERS}")
        with nogil:
            for turn in range(times):
                tally_add(self.tally, self.lines[at].peer)
                at = at + 1 if at + 1 < sources else 0
        return times

    def forget(self):
        """No source has been counted."""
        memset(self.tally.sources, 0, sizeof(self.tally.sources))


cdef class Lookup:
    """The search of lists.pxd in `block`, as the board holds it."""
    cdef unsigned char *block
    cdef Lists lists

    def __cinit__(self, bytes block):
        cdef void *memory = NULL
        if posix_memalign(&memory, 64, len(block)):
            raise MemoryError()
        self.block = <unsigned char *>memory
        memcpy(self.block, <const char *>block, len(block))
        if not lists_load(&self.lists, self.block, len(block)):
            raise ValueError("block: not made by this version's Table")

    def __dealloc__(self):
        free(self.block)

    def find(self, bytes addresses):
        """Look up each address of 16 octets, one after the other: the next waits for
        the one before, as a connection does: (how many, how many on a list)."""
        cdef const unsigned char *all = addresses
        cdef Py_ssize_t many = len(addresses) // 16
        cdef Py_ssize_t at
        cdef unsigned char address[16]
        cdef int found = 0
        cdef uint64_t listed = 0
        with nogil:
            for at in range(many):
                memcpy(address, all + 16 * at, 16)
                # Without effect, but nothing of this search starts before the last has ended.
                address[15] ^= <unsigned char>(found == 1000)
                found = lists_find(&self.lists, address)
                listed += found >= 0
        return many, listed
