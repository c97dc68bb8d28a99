"""Who is calling, as far as counting goes.

Owns: the key a source is counted under, and the hash of it.  Promises: an IPv6
source is its /64 (RFC 4291 2.5.1: the rest is the caller's to choose), an IPv4
source its address; the hash is keyed, so that nobody can choose addresses that
collide.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy


cdef inline bint source_is_ipv4(const unsigned char *address) noexcept nogil:
    """Whether 16 octets are a v4-mapped address (RFC 4291 2.5.5.2)."""
    return memcmp(address, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0


cdef inline uint64_t source_hash(const unsigned char *address, uint64_t key) noexcept nogil:
    """A keyed hash of 16 octets."""
    cdef uint64_t high, low, mixed
    memcpy(&high, address, 8)
    memcpy(&low, address + 8, 8)
    mixed = (high ^ key) * <uint64_t>0x9E3779B97F4A7C15
    mixed = (mixed ^ (mixed >> 29) ^ low) * <uint64_t>0xBF58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 32) ^ key) * <uint64_t>0x94D049BB133111EB
    return mixed ^ (mixed >> 31)


cdef inline bint source_same(const unsigned char *one, const unsigned char *other) noexcept nogil:
    """Whether two addresses are one source: equal, or of one IPv6 /64."""
    if memcmp(one, other, 8) != 0:
        return False
    if source_is_ipv4(one) or source_is_ipv4(other):
        return memcmp(one + 8, other + 8, 8) == 0
    return True


cdef inline uint64_t source_bucket(const unsigned char *address, uint64_t key) noexcept nogil:
    """The hash of a source: equal for all addresses of one source."""
    cdef unsigned char network[16]
    memcpy(network, address, 16)
    if not source_is_ipv4(address):
        memcpy(network + 8, b"\0\0\0\0\0\0\0\0", 8)
    return source_hash(network, key)
