"""Parked sockets: a fixed pool, and one FIFO since they all wait equally long.

Owns: the descriptors of early talkers between the answer and their EOF.
Promises: never more than the pool was made for, no allocation, every
operation takes the same few steps; the head of the FIFO is always the next
to expire, so there is no heap and one deadline to look at.
"""

from libc.stdint cimport int32_t, int64_t

cdef enum:
    NOBODY = -1

cdef struct Parked:
    int fd
    int32_t listener
    int32_t older       # neighbours in the FIFO, or the next free one
    int32_t newer
    int64_t deadline    # microseconds of the steady clock

cdef struct Pool:
    Parked *places
    int32_t capacity
    int32_t used
    int32_t free
    int32_t oldest
    int32_t newest


cdef inline void pool_init(Pool *pool, Parked *places, int32_t capacity) noexcept nogil:
    cdef int32_t place
    pool.places = places
    pool.capacity = capacity
    pool.used = 0
    pool.oldest = pool.newest = NOBODY
    pool.free = 0 if capacity > 0 else NOBODY
    for place in range(capacity):
        places[place].fd = NOBODY
        places[place].older = place + 1 if place + 1 < capacity else NOBODY


cdef inline int32_t pool_park(
    Pool *pool, int fd, int32_t listener, int64_t deadline
) noexcept nogil:
    """The place taken, or NOBODY when the pool is full."""
    cdef int32_t place = pool.free
    cdef Parked *parked
    if place == NOBODY:
        return NOBODY
    parked = &pool.places[place]
    pool.free = parked.older
    parked.fd = fd
    parked.listener = listener
    parked.deadline = deadline
    parked.older = pool.newest
    parked.newer = NOBODY
    if pool.newest != NOBODY:
        pool.places[pool.newest].newer = place
    else:
        pool.oldest = place
    pool.newest = place
    pool.used += 1
    return place


cdef inline int pool_leave(Pool *pool, int32_t place) noexcept nogil:
    """Give the place back; returns the descriptor that was parked there."""
    cdef Parked *parked = &pool.places[place]
    cdef int fd = parked.fd
    if parked.older != NOBODY:
        pool.places[parked.older].newer = parked.newer
    else:
        pool.oldest = parked.newer
    if parked.newer != NOBODY:
        pool.places[parked.newer].older = parked.older
    else:
        pool.newest = parked.older
    parked.fd = NOBODY
    parked.older = pool.free
    pool.free = place
    pool.used -= 1
    return fd
