# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A whole session of a held client, from its first octet to the close.

Owns: the fuzz target over client.pxd: the loop's own functions on a real pair
of sockets, once with all that the client says in one piece and once in pieces.
Promises: what the client is told, what is counted and what is written down are
the same; every client is told something, once, and its descriptor is closed.

Input: the low three bits of the first octet are the number of cuts, the next one
whether the client comes through a proxy (and its header is the first that comes),
the next three the listener, the last one whether the client hangs up or falls silent;
then the lengths of the pieces, then what the client says.
"""

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport abort, calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport close

from answer cimport say
from client cimport client_due, client_hold
from counters cimport (
    ANSWERED_HTTP, ANSWERED_SOCKS, ANSWERED_TLS, COUNTERS, DRAIN_EXPIRED,
    EXPIRED, GONE, HEADLESS, PROXIED, QUITS, SENT, Counters,
)
from line cimport LINE_OCTETS, put_record
from listeners cimport (
    EXPECTED_ANY, EXPECTED_HTTP, EXPECTED_SOCKS, EXPECTED_TLS, MANNER_ASK,
    MANNER_QUIT, Board, Facts, Listening, Worker,
)
from pool cimport (
    HELD_PROBING, HELD_PROXYING, HELD_QUITTING, HELD_READING, NOBODY,
    QUEUE_DRAIN, QUEUE_PARK, QUEUE_PROBE, QUEUE_PROXY, QUEUE_QUIT, Caller,
    Client, Held, Queue, pool_init,
)
from ring cimport OUTCOME_HEADLESS, Record, ring_peek, ring_release, ring_waiting
from slot cimport (
    WORDS, WORDS_BANNER, WORDS_PLAIN, WORDS_SOCKS5, WORDS_TLS, Answer, Words,
    slot_publish,
)
from turn cimport hear

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_UNIX
        MSG_DONTWAIT
        MSG_NOSIGNAL
        SHUT_WR
        SOCK_NONBLOCK
        SOCK_STREAM
    int shutdown(int fd, int how)
    int socketpair(int family, int kind, int protocol, int *pair)
    ssize_t recv(int fd, void *octets, size_t most, int flags)
    ssize_t send(int fd, const void *octets, size_t length, int flags)

cdef enum:
    CUTS = 7
    VIA = 8
    HEARD_OCTETS = 1 << 16
    PLACES = 2
    RECORDS = 4
    MOST = 8000

cdef struct Told:
    size_t length
    int records
    Words words
    int outcome
    Counters counters
    unsigned char octets[HEARD_OCTETS]

cdef Board board
cdef Worker worker
cdef Facts facts
cdef Listening listening
cdef Answer answers[<int>WORDS]
cdef Client places[PLACES]
cdef int32_t buckets[PLACES]
cdef Record records[RECORDS]
cdef Told whole
cdef Told pieces
cdef bint ready = False


cdef inline void claim(bint promised) noexcept nogil:
    if not promised:
        abort()


cdef void prepare() noexcept nogil:
    """What the shell does before the start."""
    global ready
    cdef int words
    cdef char text[8]
    ready = True
    memset(text, 0, sizeof(text))
    for words in range(<int>WORDS):
        # One letter each; the banner has a place for the client's address.
        text[0] = <char>(65 + words)
        text[1] = 0 if words == <int>WORDS_BANNER else c"="
        text[2] = c"\n"
        slot_publish(&answers[words], text, 3, 2, words == <int>WORDS_BANNER)
    board.workers = board.listeners = 1
    board.bell = -1
    board.recording = True
    board.worker = &worker
    worker.listeners = 1
    worker.listening = &listening
    worker.ring.records = records
    worker.ring.mask = RECORDS - 1
    listening.facts = &facts
    listening.answers = answers


cdef Held listen(int kind) noexcept nogil:
    """Make the listener of this kind; the state its clients are held in."""
    memset(&facts, 0, sizeof(facts))
    facts.manner = MANNER_ASK
    facts.lingers = QUEUE_DRAIN if kind & 1 else QUEUE_PARK
    facts.resets = kind == 7
    kind //= 2
    if kind == 3:
        facts.manner = MANNER_QUIT
        facts.resets = False
        return HELD_QUITTING
    if kind == 0:
        facts.expected = EXPECTED_ANY
        facts.blind = WORDS_BANNER
    elif kind == 1:
        facts.expected = EXPECTED_HTTP
        facts.blind = WORDS_PLAIN
        return HELD_READING
    elif facts.lingers == QUEUE_PARK:
        facts.expected = EXPECTED_TLS
        facts.blind = WORDS_TLS
    else:
        facts.expected = EXPECTED_SOCKS
        facts.blind = WORDS_SOCKS5
    return HELD_PROBING


cdef void turn(int rounds, int64_t now) noexcept nogil:
    """As many looks at the client as its input can need."""
    while rounds > 0 and places[0].fd != NOBODY:
        hear(&board, &worker, 0, now)
        rounds -= 1


cdef void read_back(Told *told) noexcept nogil:
    """What was written down, as text that fits its room."""
    cdef char *text
    cdef char *end
    cdef const Record *record
    told.records = <int>ring_waiting(&worker.ring)
    claim(told.records <= 1)
    if told.records == 1:
        record = ring_peek(&worker.ring, 0)
        told.words = <Words>record.words
        told.outcome = record.outcome
        text = <char *>malloc(LINE_OCTETS + 5)
        end = put_record(text, record, b" as=x", 5)
        claim(end - text <= LINE_OCTETS + 5)
        free(text)
        ring_release(&worker.ring, 1)


cdef void talk(
    int kind, bint via, bint hangs_up, const unsigned char *octets, size_t length,
    const unsigned char *cuts, size_t count, Told *told,
) noexcept nogil:
    """One client from hold to close; `count` lengths of pieces, then the rest."""
    cdef int pair[2]
    cdef Caller caller
    cdef size_t index, piece
    cdef ssize_t heard
    cdef int32_t place
    cdef int64_t now = 1000
    cdef Held state = listen(kind)
    cdef Queue queue = QUEUE_PROBE
    memset(told, 0, sizeof(Told) - HEARD_OCTETS)
    memset(&caller, 0, sizeof(caller))
    caller.peer[10] = caller.peer[11] = 0xFF
    caller.peer[15] = 1
    caller.port = 4711
    caller.proxied = not via
    claim(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0)
    listening.counters = &told.counters
    pool_init(&worker.pool, places, PLACES, buckets, PLACES, PLACES, 7, 1)
    worker.pool.fifos[0].micros = 50
    if via:
        state = HELD_PROXYING
        queue = QUEUE_PROXY
    elif state == HELD_QUITTING:
        say(&listening, WORDS_BANNER, False, False, pair[0], &caller)
        queue = QUEUE_QUIT
    place = client_hold(&worker, &listening, pair[0], &caller, state, queue, now)
    claim(place == 0)
    for index in range(count + 1):
        piece = length
        if index < count:
            piece = min(<size_t>cuts[index], length)
        if piece > 0 and places[0].fd != NOBODY:
            claim(send(pair[1], octets, piece, MSG_NOSIGNAL) == <ssize_t>piece)
            turn(6, now)
        octets += piece
        length -= piece
    if hangs_up:
        shutdown(pair[1], SHUT_WR)
        turn(6, now)
    else:
        # Its time is over, and then perhaps that of draining it.
        for index in range(2):
            if places[0].fd != NOBODY:
                client_due(&board, &worker, 0, now + 50)
    claim(places[0].fd == NOBODY and worker.pool.used == 0)
    while told.length < HEARD_OCTETS:
        heard = recv(pair[1], told.octets + told.length, HEARD_OCTETS - told.length, MSG_DONTWAIT)
        if heard <= 0:
            break
        told.length += <size_t>heard
    close(pair[1])
    read_back(told)


cdef public void fuzz_session(const unsigned char *data, size_t size) noexcept nogil:
    cdef size_t cuts, length
    cdef int kind, index
    cdef bint hangs_up, via
    cdef const unsigned char *octets
    if size < 1:
        return
    if not ready:
        prepare()
    cuts = min(<size_t>(data[0] & CUTS), size - 1)
    kind = (data[0] >> 4) & 7
    via = (data[0] & VIA) != 0
    hangs_up = (data[0] & 0x80) == 0
    octets = data + 1 + cuts
    length = min(size - 1 - cuts, <size_t>MOST)
    talk(kind, via, hangs_up, octets, length, data + 1, 0, &whole)
    talk(kind, via, hangs_up, octets, length, data + 1, cuts, &pieces)
    claim(whole.length == pieces.length < HEARD_OCTETS)
    claim(memcmp(whole.octets, pieces.octets, whole.length) == 0)
    claim(whole.records == pieces.records)
    claim(whole.words == pieces.words and whole.outcome == pieces.outcome)
    for index in range(<int>COUNTERS):
        # recv(2) with MSG_TRUNC into nothing is of TCP alone: here it fails, and ends
        # the draining of who says more after its answer.
        if index == DRAIN_EXPIRED:
            continue
        claim(whole.counters.count[index] == pieces.counters.count[index])
    if via:
        # With a good header it is greeted, without one it is told nothing.
        claim(whole.records == 1)
        if whole.outcome == OUTCOME_HEADLESS:
            claim(whole.counters.count[<int>HEADLESS] == 1)
            claim(whole.counters.count[<int>PROXIED] == 0)
        claim(whole.length == 0 or whole.counters.count[<int>PROXIED] == 1)
        return
    # Told something, and once; who said nothing of HTTP and left is not.
    if kind >= 6:
        claim(whole.records == 0 and whole.length >= 9)
        claim(whole.counters.count[<int>QUITS] + whole.counters.count[<int>EXPIRED] <= 1)
        return
    claim(whole.records == 1)
    claim(whole.counters.count[<int>SENT] + whole.counters.count[<int>GONE] == 1)
    claim((whole.length > 0) == (whole.counters.count[<int>SENT] == 1))
    claim(whole.length == 0 or whole.octets[0] == 65 + <int>whole.words)
    claim(whole.length == 0 or whole.octets[whole.length - 1] == (
        c"=" if whole.length == 2 else c"\n"
    ))
    claim(
        whole.counters.count[<int>ANSWERED_HTTP] + whole.counters.count[<int>ANSWERED_TLS]
        + whole.counters.count[<int>ANSWERED_SOCKS]
        == (1 if whole.length > 0 and whole.words != WORDS_BANNER else 0)
    )
