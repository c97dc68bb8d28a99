"""The busiest sources, in memory of fixed size.

Owns: a count per source address, by the space-saving rule (Metwally, Agrawal,
El Abbadi 2005) within small sets: an unknown source takes over the smallest
count of its set and goes on from there.  Promises: no allocation, eight
comparisons a record; a source with more than its set's share of all
connections is never missing; a count is never too low, and too high by at most
`error`.  The hash is keyed, so that nobody can choose addresses that collide.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

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


cdef inline uint64_t tally_hash(const unsigned char *address, uint64_t key) noexcept nogil:
    cdef uint64_t high, low, mixed
    memcpy(&high, address, 8)
    memcpy(&low, address + 8, 8)
    mixed = (high ^ key) * <uint64_t>0x9E3779B97F4A7C15
    mixed = (mixed ^ (mixed >> 29) ^ low) * <uint64_t>0xBF58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 32) ^ key) * <uint64_t>0x94D049BB133111EB
    return mixed ^ (mixed >> 31)


cdef inline void tally_add(Tally *tally, const unsigned char *address) noexcept nogil:
    cdef Source *sources = &tally.sources[
        (tally_hash(address, tally.key) % TALLY_SETS) * TALLY_WAYS
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
