"""A ring of connection records: one producer (a loop), one consumer (the shell).

Owns: the record of one connection and the queue that carries it.  Promises:
nothing is overwritten (when the ring is full the record is dropped and
counted), nothing is allocated after start, and neither side ever waits.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from net cimport net_add64, net_load32, net_store32

cdef enum Outcome:
    OUTCOME_SENT    # answer handed over whole
    OUTCOME_EARLY   # talked first; answer handed over whole, then drained
    OUTCOME_FULL    # not held though it should be, for there was no room
    OUTCOME_RESET   # the client had reset the connection
    OUTCOME_SHORT   # the kernel took a part of the answer only
    OUTCOME_FAILED  # the kernel took none of it
    OUTCOME_EXPIRED # was answered when its time to speak was over
    OUTCOME_GONE    # left before it was answered
    OUTCOME_STRANGER    # not a proxy of ours, where one must be: closed at once
    OUTCOME_HEADLESS    # no good PROXY header: closed without a word
    OUTCOME_MISDIVERTED # on an allow list: nobody to turn away, closed
    OUTCOMES
    OUTCOME_WAITS   # not over yet: never in a record

cdef enum:
    RECORD_DETAILED = 1  # `local` and `local_port` are filled; wants a line
    RECORD_VIA = 2       # so are `via` and `via_port`: it came by another address

cdef struct Record:
    int64_t moment          # microseconds since 1970, UTC
    unsigned char peer[16]  # IPv4 as v4-mapped
    unsigned char local[16] # the address that was called
    unsigned char via[16]   # and the one it came to, where they differ
    uint16_t peer_port
    uint16_t local_port
    uint16_t via_port
    uint16_t listener
    uint8_t outcome
    uint8_t flags
    uint8_t words           # enum Words: what was said
    uint8_t list            # the list its client is on, counted from 1; 0: on none

cdef struct Ring:
    Record *records
    uint32_t mask
    char apart0[52]         # producer and consumer on lines of their own
    uint32_t head           # next to write; moved by the producer alone
    uint32_t tail_seen      # the producer's last look at `tail`
    uint64_t dropped
    char apart1[48]
    uint32_t tail           # next to read; moved by the consumer alone
    char apart2[60]


cdef inline Record *ring_claim(Ring *ring) noexcept nogil:
    """The record to fill next, or NULL (and one more dropped) when full."""
    if ring.head - ring.tail_seen > ring.mask:
        ring.tail_seen = net_load32(&ring.tail)
        if ring.head - ring.tail_seen > ring.mask:
            net_add64(&ring.dropped, 1)
            return NULL
    return &ring.records[ring.head & ring.mask]


cdef inline bint ring_commit(Ring *ring) noexcept nogil:
    """Hand the claimed record over.

    True once for every half of the ring that was filled: time to ring the
    consumer's bell, if it should not wait for its own clock.
    """
    net_store32(&ring.head, ring.head + 1)
    return (ring.head & (ring.mask >> 1)) == 0


cdef inline uint32_t ring_waiting(const Ring *ring) noexcept nogil:
    return net_load32(&ring.head) - ring.tail


cdef inline const Record *ring_peek(const Ring *ring, uint32_t ahead) noexcept nogil:
    return &ring.records[(ring.tail + ahead) & ring.mask]


cdef inline void ring_release(Ring *ring, uint32_t count) noexcept nogil:
    """Give `count` records back to the producer."""
    net_store32(&ring.tail, ring.tail + count)
