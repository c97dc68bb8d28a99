"""Held sockets: a fixed pool, a FIFO for each time limit, a count per source.

Owns: every descriptor that outlives its turn, from hold to close, with the
little that is known of its client.  Promises: never more than the pool was
made for, nor more of one source than its share; no allocation; hold, move and
leave take the same few steps however many are held (counting a source walks
its own sockets, which are bounded).  Sockets in one FIFO wait equally long, so
its head is always the next to expire: no heap.
"""

from libc.stdint cimport (
    int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from http cimport Http
from net cimport net_add64, net_store32
from probe cimport PROBE_OCTETS
from proxy cimport Proxy, proxy_begin
from quit cimport Dialogue
from source cimport source_bucket, source_same

cdef enum:
    NOBODY = -1

# Why a socket waits.  Each listener has a time limit for each, and equal limits
# share a FIFO.
cdef enum Queue:
    QUEUE_PARK          # an early talker, drained after the answer
    QUEUE_DRAIN         # `drain`: anybody, drained after the answer
    QUEUE_PROBE         # `auto`: silent so far
    QUEUE_REQUEST       # a client that must speak first, or finish its request
    QUEUE_QUIT          # `quit`: the dialogue
    QUEUE_PROXY         # a PROXY header
    QUEUES

cdef enum:
    FIFOS = 64          # different time limits; listeners may have their own

cdef enum Held:
    HELD_DRAINING       # answered and half-closed: input is thrown away
    HELD_PROXYING       # not answered: a PROXY header is being read
    HELD_PROBING        # not answered: its first octets decide how
    HELD_READING        # not answered: an HTTP request is being read
    HELD_QUITTING       # greeted: commands are answered until QUIT

cdef struct Caller:
    # Who called, and whom.
    unsigned char peer[16]      # IPv4 as v4-mapped
    uint16_t port
    uint16_t called_port
    uint8_t list                # the list it is on, counted from 1; 0: on none
    bint proxied                # its PROXY header was read, or none is needed
    bint told                   # by a proxy, with `called` and its port; else ask the kernel
    unsigned char called[16]

cdef enum Refusal:
    HELD_FINE
    HELD_STRESS         # over the high-water mark, and not yet below the low
    HELD_TOTAL          # no place left
    HELD_SOURCE         # this source has its share

cdef struct Client:
    int fd
    int32_t listener
    int32_t older       # neighbours in the FIFO; `older` links the free ones
    int32_t newer
    int32_t before      # neighbours in the chain of the source's bucket
    int32_t after
    int32_t bucket
    uint8_t queue       # its FIFO
    uint8_t state
    uint8_t first_length
    uint8_t spare
    int64_t deadline    # microseconds of the steady clock
    int64_t since
    Caller caller
    unsigned char first[PROBE_OCTETS]
    Proxy proxy
    Http http
    Dialogue dialogue

cdef struct Fifo:
    int32_t oldest
    int32_t newest
    int64_t micros      # how long its sockets wait

cdef struct Pool:
    Client *places
    int32_t *buckets
    int32_t capacity
    int32_t bucket_mask
    int32_t high        # above: stress begins
    int32_t low         # at or below: it ends
    int32_t share       # of one source
    uint32_t used       # this and the next two are the shell's to look at
    uint32_t stress     # whether there is any
    uint64_t stresses   # times that it began
    int32_t free        # places that were left
    int32_t fresh       # those from here on were never taken, nor is their memory touched
    uint64_t key
    int32_t fifo_count
    Fifo fifos[FIFOS]


cdef inline void pool_init(
    Pool *pool, Client *places, int32_t capacity, int32_t *buckets, int32_t bucket_count,
    int32_t share, uint64_t key, int32_t fifo_count,
) noexcept nogil:
    """`bucket_count` is a power of two."""
    cdef int32_t index
    pool.places = places
    pool.buckets = buckets
    pool.capacity = capacity
    pool.bucket_mask = bucket_count - 1
    pool.high = capacity - capacity // 8
    pool.low = capacity // 2
    pool.share = share
    pool.used = 0
    pool.stress = False
    pool.stresses = 0
    pool.key = key
    pool.free = NOBODY
    pool.fresh = 0
    for index in range(bucket_count):
        buckets[index] = NOBODY
    pool.fifo_count = fifo_count
    for index in range(fifo_count):
        pool.fifos[index].oldest = pool.fifos[index].newest = NOBODY


cdef inline void fifo_append(Pool *pool, int32_t place, int queue, int64_t now) noexcept nogil:
    cdef Client *client = &pool.places[place]
    cdef Fifo *fifo = &pool.fifos[queue]
    client.queue = <uint8_t>queue
    client.deadline = now + fifo.micros
    client.older = fifo.newest
    client.newer = NOBODY
    if fifo.newest != NOBODY:
        pool.places[fifo.newest].newer = place
    else:
        fifo.oldest = place
    fifo.newest = place


cdef inline void fifo_remove(Pool *pool, int32_t place) noexcept nogil:
    cdef Client *client = &pool.places[place]
    cdef Fifo *fifo = &pool.fifos[client.queue]
    if client.older != NOBODY:
        pool.places[client.older].newer = client.newer
    else:
        fifo.oldest = client.newer
    if client.newer != NOBODY:
        pool.places[client.newer].older = client.older
    else:
        fifo.newest = client.older


cdef inline bint pool_has_share(const Pool *pool, int32_t bucket, const unsigned char *peer) noexcept nogil:
    """Whether one more socket of this source is within its share."""
    cdef int32_t place = pool.buckets[bucket]
    cdef int32_t count = 0
    while place != NOBODY:
        if source_same(pool.places[place].caller.peer, peer):
            count += 1
            if count >= pool.share:
                return False
        place = pool.places[place].after
    return True


cdef inline Refusal pool_hold(
    Pool *pool, int fd, int32_t listener, const Caller *caller, Held state, int queue,
    int64_t now, int32_t *place,
) noexcept nogil:
    """Take a place for a socket, or say why there is none.

    One whose PROXY header is awaited counts for no source: it is not known yet.  Nor
    was it answered, so that it is taken under stress, while there is a place.
    """
    cdef int32_t bucket = NOBODY
    cdef Client *client
    if pool.stress and state != HELD_PROXYING:
        return HELD_STRESS
    if pool.free == NOBODY and pool.fresh == pool.capacity:
        return HELD_TOTAL
    if state != HELD_PROXYING:
        bucket = <int32_t>(source_bucket(caller.peer, pool.key) & <uint64_t>pool.bucket_mask)
        if not pool_has_share(pool, bucket, caller.peer):
            return HELD_SOURCE
    if pool.free != NOBODY:
        place[0] = pool.free
        pool.free = pool.places[place[0]].older
    else:
        place[0] = pool.fresh
        pool.fresh += 1
    client = &pool.places[place[0]]
    client.fd = fd
    client.since = now
    client.listener = listener
    client.state = <uint8_t>state
    client.first_length = 0
    client.caller = caller[0]
    proxy_begin(&client.proxy)
    client.bucket = bucket
    client.before = client.after = NOBODY
    if bucket != NOBODY:
        client.after = pool.buckets[bucket]
        if client.after != NOBODY:
            pool.places[client.after].before = place[0]
        pool.buckets[bucket] = place[0]
    fifo_append(pool, place[0], queue, now)
    net_store32(&pool.used, pool.used + 1)
    if pool.used > <uint32_t>pool.high and not pool.stress:
        net_store32(&pool.stress, True)
        net_add64(&pool.stresses, 1)
    return HELD_FINE


cdef inline void pool_move(
    Pool *pool, int32_t place, Held state, int queue, int64_t now
) noexcept nogil:
    """The same socket in another state, with another time limit from now on."""
    pool.places[place].state = <uint8_t>state
    fifo_remove(pool, place)
    fifo_append(pool, place, queue, now)


cdef inline int pool_leave(Pool *pool, int32_t place) noexcept nogil:
    """Give the place back; returns the descriptor that was held there."""
    cdef Client *client = &pool.places[place]
    cdef int fd = client.fd
    fifo_remove(pool, place)
    if client.before != NOBODY:
        pool.places[client.before].after = client.after
    elif client.bucket != NOBODY:
        pool.buckets[client.bucket] = client.after
    if client.after != NOBODY:
        pool.places[client.after].before = client.before
    client.fd = NOBODY
    client.older = pool.free
    pool.free = place
    net_store32(&pool.used, pool.used - 1)
    if pool.stress and pool.used <= <uint32_t>pool.low:
        net_store32(&pool.stress, False)
    return fd


cdef inline int32_t pool_due(const Pool *pool, int64_t now) noexcept nogil:
    """A place whose time is over, or NOBODY."""
    cdef int index
    cdef int32_t oldest
    for index in range(pool.fifo_count):
        oldest = pool.fifos[index].oldest
        if oldest != NOBODY and pool.places[oldest].deadline <= now:
            return oldest
    return NOBODY


cdef inline int64_t pool_deadline(const Pool *pool) noexcept nogil:
    """The next deadline on the steady clock, or -1."""
    cdef int64_t next = -1
    cdef int index
    cdef int32_t oldest
    for index in range(pool.fifo_count):
        oldest = pool.fifos[index].oldest
        if oldest != NOBODY and (next < 0 or pool.places[oldest].deadline < next):
            next = pool.places[oldest].deadline
    return next
