"""The busiest sources, in memory of fixed size.

Owns: a count per source address, by the space-saving rule (Metwally, Agrawal,
El Abbadi 2005) within small sets: an unknown source takes over the smallest
count of its set and goes on from there.  Promises: no allocation, eight
comparisons a record; a source with more than its set's share of all
connections is never missing; a count is never too low, and too high by at most
`error`.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy
from source cimport source_hash

cdef enum:
    TALLY_WAYS = 8
    TALLY_SETS = 128

cdef struct Source:
    unsigned char address[16]
    uint64_t count
    uint64_t error

cdef struct Tally:
    uint64_t key
    Source sources[TALLY_SETS * TALLY_WAYS]


cdef inline void tally_add(Tally *tally, const unsigned char *address) noexcept nogil:
    cdef Source *sources = &tally.sources[
        (source_hash(address, tally.key) % TALLY_SETS) * TALLY_WAYS
    ]
    cdef Source *least = sources
    cdef int way
    for way in range(TALLY_WAYS):
        if sources[way].count > 0 and memcmp(sources[way].address, address, 16) == 0:
            sources[way].count += 1
            return
        if sources[way].count < least.count:
            least = &sources[way]
    memcpy(least.address, address, 16)
    least.error = least.count
    least.count += 1
