"""The banner of this second, published by index and read without a lock.

Owns: eight slots for one listener's banner.  The shell renders into the slot
after the current one and then moves the index; every loop reads the index and
sends from that slot.  Promises: a reader never sees half a banner, because a
slot comes round again only after seven more renewals (seven seconds), and one
send lasts microseconds.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memcpy
from net cimport net_load32, net_store32

cdef enum:
    SLOTS = 8
    SLOT_OCTETS = 1000  # the longest banner: longer ones are cut by dma(8)

cdef struct Slot:
    uint32_t length
    char octets[SLOT_OCTETS]

cdef struct Banner:
    uint32_t current
    Slot slots[SLOTS]


cdef inline const Slot *slot_current(const Banner *banner) noexcept nogil:
    return &banner.slots[net_load32(&banner.current)]


cdef inline bint slot_publish(
    Banner *banner, const char *octets, size_t length
) noexcept nogil:
    """Make `octets` the banner from now on.  One thread only may publish.

    False, and nothing changed, when they do not fit a slot.
    """
    cdef uint32_t following = (banner.current + 1) % SLOTS
    if length > SLOT_OCTETS:
        return False
    memcpy(banner.slots[following].octets, octets, length)
    banner.slots[following].length = <uint32_t>length
    net_store32(&banner.current, following)
    return True
