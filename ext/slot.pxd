"""The answers of this second, published by index and read without a lock.

Owns: eight slots for each answer of a listener.  The shell renders into the
slot after the current one and then moves the index; every loop reads the index
and sends from that slot.  Promises: a reader never sees half an answer,
because a slot comes round again only after seven more renewals (seven
seconds), and one send lasts microseconds.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memchr, memcpy
from net cimport net_load32, net_store32

cdef enum:
    SLOTS = 8
    SLOT_OCTETS = 4064
    SLOT_MARKS = 4      # places for the client's address in one answer

# What can be said to a client.  The shell has the names in the same order.
cdef enum Words:
    WORDS_BANNER        # the greeting of SMTP, or the line of a text protocol
    WORDS_WRONG         # 503, to a command that is not QUIT
    WORDS_BYE           # 221, to QUIT
    WORDS_LATE          # 421, at the time limit of the dialogue
    WORDS_PLAIN         # HTTP 403, plain text
    WORDS_HTML          # HTTP 403, a page
    WORDS_BAD           # HTTP 400
    WORDS_TIMEOUT       # HTTP 408
    WORDS_TLS           # the alert
    WORDS_SOCKS5
    WORDS_SOCKS4
    WORDS

cdef struct Slot:
    uint32_t length
    uint32_t head       # octets up to the body of an HTTP answer, for HEAD
    uint32_t marks      # how many places take the client's address
    uint32_t mark[SLOT_MARKS]   # where, in octets; in order
    char octets[SLOT_OCTETS]

cdef struct Answer:
    uint32_t current
    Slot slots[SLOTS]


cdef inline const Slot *slot_current(const Answer *answer) noexcept nogil:
    return &answer.slots[net_load32(&answer.current)]


cdef inline bint slot_publish(
    Answer *answer, const char *octets, size_t length, size_t head, bint marked
) noexcept nogil:
    """Make `octets` the answer from now on.  One thread only may publish.

    If `marked`, a NUL in them is a place for the client's address.  False, and nothing
    changed, when they do not fit a slot or have too many places.
    """
    cdef uint32_t following = (answer.current + 1) % SLOTS
    cdef Slot *slot = &answer.slots[following]
    cdef const char *rest = octets
    cdef const char *end = octets + length
    cdef const char *place
    if length > SLOT_OCTETS or head > length:
        return False
    slot.length = 0
    slot.marks = 0
    while True:
        place = NULL
        if marked:
            place = <const char *>memchr(rest, 0, <size_t>(end - rest))
        if place == NULL:
            place = end
        memcpy(slot.octets + slot.length, rest, <size_t>(place - rest))
        slot.length += <uint32_t>(place - rest)
        if place == end:
            break
        if slot.marks == SLOT_MARKS:
            return False
        slot.mark[slot.marks] = slot.length
        slot.marks += 1
        rest = place + 1
    slot.head = <uint32_t>head
    net_store32(&answer.current, following)
    return True
