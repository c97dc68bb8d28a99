# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What libFuzzer calls: the readers of client octets, and what holds the clients.

Owns: one function a target (two of them in session.pyx and blocks.pyx), picked by the name the program was started under
(fuzzers.py makes the names).  Promises: no Python is needed or called; every
buffer handed to a reader is exactly as long as it says, so that AddressSanitizer
sees one octet too far; a broken promise of ext/ ends the program by abort(3).

Where a target is split in pieces, the input says how: its first octet has the
number of cuts in its low four bits, that many lengths of pieces follow, and the
rest is what the client sends.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport abort, free, malloc
from libc.string cimport memcmp, memcpy, memset, strcmp, strrchr

from http cimport (
    HTTP_HEAD, HTTP_HTML, HTTP_OCTETS, READING_BAD, READING_DONE, READING_MORE,
    STAGE_EMPTY, STAGE_LINE, Http, Reading, http_begin, http_read,
)
from pool cimport (
    HELD_DRAINING, HELD_FINE, HELD_QUITTING, HELD_SOURCE, HELD_STRESS,
    HELD_TOTAL, NOBODY, Caller, Client, Held, Pool, Refusal, pool_deadline, pool_due,
    pool_hold, pool_init, pool_leave, pool_move,
)
from probe cimport (
    GUESS_HTTP, GUESS_MORE, GUESS_NONE, GUESS_SMTP, GUESS_SOCKS4, GUESS_SOCKS5,
    GUESS_TLS, PROBE_OCTETS, Guess, probe,
)
from proxy cimport (
    PROXY_BAD, PROXY_FIXED, PROXY_ITSELF, PROXY_KNOWN, PROXY_LINE, PROXY_MORE,
    Proxied, Proxy, proxy_begin, proxy_read,
)
from quit cimport (
    COMMAND_MORE, COMMAND_QUIT, QUIT_OTHER, Command, Dialogue, dialogue_octet,
)
from source cimport source_same

cdef extern from *:
    """
    void fuzz_session(const unsigned char *data, size_t size);
    void fuzz_lists(const unsigned char *data, size_t size);

    #include <arpa/inet.h>
    #include <stdio.h>

    /* A header of version 1 with its CRLF; its length. */
    static size_t proxy_written(char *text, size_t room, int six, const unsigned char *source,
                                const unsigned char *called, unsigned port, unsigned other)
    {
        char from[INET6_ADDRSTRLEN], to[INET6_ADDRSTRLEN];
        int family = six ? AF_INET6 : AF_INET;
        inet_ntop(family, source + (six ? 0 : 12), from, sizeof from);
        inet_ntop(family, called + (six ? 0 : 12), to, sizeof to);
        return (size_t)snprintf(text, room, "PROXY TCP%c %s %s %u %u\\r\\n", six ? '6' : '4',
                                from, to, port, other);
    }
    """
    size_t proxy_written(
        char *text, size_t room, bint six, const unsigned char *source,
        const unsigned char *called, unsigned int port, unsigned int other,
    ) noexcept nogil
    void fuzz_lists(const unsigned char *data, size_t size) noexcept nogil
    void fuzz_session(const unsigned char *data, size_t size) noexcept nogil

cdef enum:
    CUTS = 15
    PLACES = 16

ctypedef void (*Target)(const unsigned char *data, size_t size) noexcept nogil

cdef Target target


cdef inline void claim(bint promised) noexcept nogil:
    if not promised:
        abort()


cdef inline unsigned char *exact(const unsigned char *octets, size_t length) noexcept nogil:
    """A copy with nothing behind it; for free()."""
    cdef unsigned char *copy = <unsigned char *>malloc(length)
    if length > 0:
        memcpy(copy, octets, length)
    return copy


cdef inline unsigned char folded(unsigned char octet) noexcept nogil:
    return octet + 32 if c"A" <= octet <= c"Z" else octet


cdef inline bint contains(
    const unsigned char *octets, size_t length, const char *word, size_t word_length
) noexcept nogil:
    """Whether a word (in lower case) is somewhere in there, in either case."""
    cdef size_t start, index
    for start in range(length):
        if start + word_length > length:
            return False
        for index in range(word_length):
            if folded(octets[start + index]) != <unsigned char>word[index]:
                break
        else:
            return True
    return False


# --- probe ----------------------------------------------------------------------------


cdef void fuzz_probe(const unsigned char *data, size_t size) noexcept nogil:
    """An answer is never taken back, and sixteen octets suffice."""
    cdef size_t length
    cdef unsigned char *octets
    cdef Guess guess = GUESS_MORE
    cdef Guess now
    for length in range(min(size, <size_t>PROBE_OCTETS + 4) + 1):
        octets = exact(data, length)
        now = probe(octets, length)
        free(octets)
        claim(guess == GUESS_MORE or now == guess)
        guess = now
        claim(length < PROBE_OCTETS or guess != GUESS_MORE)
    if guess == GUESS_TLS:
        claim(data[0] == 0x16 and data[1] == 3 and data[2] <= 4 and data[5] == 1)
    elif guess == GUESS_SOCKS5:
        claim(data[0] == 5 and data[1] != 0)
    elif guess == GUESS_SOCKS4:
        claim(data[0] == 4 and 1 <= data[1] <= 2)
    elif guess == GUESS_HTTP:
        claim(c"A" <= data[0] <= c"Z" and contains(data, min(size, <size_t>10), b" ", 1))
    elif guess == GUESS_SMTP:
        claim(c"a" <= folded(data[0]) <= c"z" and size > 4)


# --- the HTTP request -----------------------------------------------------------------


cdef inline void http_checked(
    Http *http, Reading *reading, const unsigned char *octets, size_t length
) noexcept nogil:
    """One read, as the loop does it: none after the end."""
    cdef unsigned char *copy
    if reading[0] != READING_MORE:
        return
    copy = exact(octets, length)
    reading[0] = http_read(http, copy, length)
    free(copy)
    claim(http.octets <= HTTP_OCTETS and http.stage <= STAGE_EMPTY)
    claim(http.octets < HTTP_OCTETS or reading[0] != READING_MORE)


cdef inline void http_same(
    const Http *one, Reading reading, const Http *other, Reading other_reading
) noexcept nogil:
    claim(reading == other_reading and one.octets == other.octets)
    claim(one.stage == other.stage and one.matched == other.matched and one.flags == other.flags)


cdef void fuzz_http(const unsigned char *data, size_t size) noexcept nogil:
    """The same whatever the split; `done` at an empty line or at the limit only."""
    cdef Http whole, pieces, single
    cdef Reading whole_reading = READING_MORE
    cdef Reading pieces_reading = READING_MORE
    cdef Reading single_reading = READING_MORE
    cdef size_t cuts, at, length, index
    cdef unsigned char stretched[HTTP_OCTETS + 8]
    cdef const unsigned char *octets
    if size < 1:
        return
    cuts = min(<size_t>(data[0] & CUTS), size - 1)
    octets = data + 1 + cuts
    length = size - 1 - cuts
    if data[0] & 0x80 and 0 < length < sizeof(stretched):
        # Over and over, up to the limit and beyond it.
        for index in range(sizeof(stretched)):
            stretched[index] = octets[index if index < length else length - 1 - index % min(length, <size_t>3)]
        octets = stretched
        length = sizeof(stretched)
    http_begin(&whole)
    http_checked(&whole, &whole_reading, octets, length)
    http_begin(&pieces)
    at = 0
    for index in range(cuts):
        http_checked(&pieces, &pieces_reading, octets + at, min(<size_t>data[1 + index], length - at))
        at += min(<size_t>data[1 + index], length - at)
    http_checked(&pieces, &pieces_reading, octets + at, length - at)
    http_same(&whole, whole_reading, &pieces, pieces_reading)
    if length <= 512:
        http_begin(&single)
        for index in range(length):
            http_checked(&single, &single_reading, octets + index, 1)
        http_same(&whole, whole_reading, &single, single_reading)
    if whole_reading == READING_MORE:
        claim(whole.octets == length)
        return
    claim(0 < whole.octets <= length)
    if whole_reading != READING_DONE:
        return
    at = whole.octets
    if at < HTTP_OCTETS:
        claim(octets[at - 1] == c"\n")
        at -= 2 if octets[at - 2] == c"\r" else 1
        claim(octets[at - 1] == c"\n")
    index = 0
    while octets[index] == c"\r" or octets[index] == c"\n":
        index += 1
    claim(((whole.flags & HTTP_HEAD) != 0) == (memcmp(octets + index, b"HEAD ", 5) == 0))
    while octets[index] != c" ":
        index += 1
    claim(octets[index + 1] > c" ")
    if whole.flags & HTTP_HTML:
        claim(contains(octets, whole.octets, b"text/html", 9))
        claim(contains(octets, whole.octets, b"\naccept:", 8))


# --- the QUIT dialogue ----------------------------------------------------------------


cdef inline bint is_quit(const unsigned char *line, size_t length) noexcept nogil:
    """The same again with a whole line in hand, without its LF."""
    while length > 4 and (
        line[length - 1] == c" " or line[length - 1] == c"\t" or line[length - 1] == c"\r"
    ):
        length -= 1
    return length == 4 and contains(line, 4, b"quit", 4)


cdef void fuzz_quit(const unsigned char *data, size_t size) noexcept nogil:
    """Each line is one command, and is QUIT when the whole line says so."""
    cdef Dialogue dialogue
    cdef Command command
    cdef size_t index
    cdef size_t start = 0
    dialogue.matched = 0
    dialogue.mute = False
    for index in range(size):
        command = dialogue_octet(&dialogue, data[index])
        claim(dialogue.matched <= 5 or dialogue.matched == QUIT_OTHER)
        claim((command == COMMAND_MORE) == (data[index] != c"\n"))
        if command == COMMAND_MORE:
            continue
        claim(dialogue.matched == 0)
        claim((command == COMMAND_QUIT) == is_quit(data + start, index - start))
        if command == COMMAND_QUIT:
            return
        start = index + 1


# --- the PROXY header -----------------------------------------------------------------


cdef inline size_t proxy_checked(
    Proxy *proxy, Proxied *told, const unsigned char *octets, size_t length
) noexcept nogil:
    """One read, as the loop does it: none after the end.  How much was taken."""
    cdef unsigned char *copy
    cdef size_t taken = 0
    if told[0] != PROXY_MORE:
        return 0
    copy = exact(octets, length)
    told[0] = proxy_read(proxy, copy, length, &taken)
    free(copy)
    claim(taken <= length and (taken == length or told[0] != PROXY_MORE))
    claim(proxy.filled <= PROXY_LINE)
    return taken


cdef inline void proxy_same(
    const Proxy *one, Proxied told, size_t taken,
    const Proxy *other, Proxied other_told, size_t other_taken,
) noexcept nogil:
    claim(told == other_told and taken == other_taken)
    if told == PROXY_KNOWN:
        claim(memcmp(one.source, other.source, 16) == 0)
        claim(memcmp(one.called, other.called, 16) == 0)
        claim(one.source_port == other.source_port and one.called_port == other.called_port)


cdef void proxy_line_again(const Proxy *proxy, const unsigned char *octets) noexcept nogil:
    """What version 1 said, written anew in the one form there is, says the same."""
    cdef char text[PROXY_LINE + 1]
    cdef size_t length = proxy_written(
        text, sizeof(text), octets[9] == c"6", proxy.source, proxy.called, proxy.source_port,
        proxy.called_port,
    )
    cdef Proxy again
    cdef size_t taken
    claim(length <= PROXY_LINE)
    claim(octets[9] == c"6" or memcmp(text, octets, length) == 0)
    proxy_begin(&again)
    claim(proxy_read(&again, <const unsigned char *>text, length, &taken) == PROXY_KNOWN)
    proxy_same(proxy, PROXY_KNOWN, length, &again, PROXY_KNOWN, taken)


cdef void fuzz_proxy(const unsigned char *data, size_t size) noexcept nogil:
    """The same whatever the split, and nothing behind the header is taken."""
    cdef Proxy whole, pieces, single
    cdef Proxied whole_told = PROXY_MORE
    cdef Proxied pieces_told = PROXY_MORE
    cdef Proxied single_told = PROXY_MORE
    cdef size_t cuts, at, length, index, piece, whole_taken
    cdef size_t pieces_taken = 0
    cdef size_t single_taken = 0
    cdef const unsigned char *octets
    if size < 1:
        return
    cuts = min(<size_t>(data[0] & CUTS), size - 1)
    octets = data + 1 + cuts
    length = size - 1 - cuts
    proxy_begin(&whole)
    whole_taken = proxy_checked(&whole, &whole_told, octets, length)
    proxy_begin(&pieces)
    at = 0
    for index in range(cuts):
        piece = min(<size_t>data[1 + index], length - at)
        pieces_taken += proxy_checked(&pieces, &pieces_told, octets + at, piece)
        at += piece
    pieces_taken += proxy_checked(&pieces, &pieces_told, octets + at, length - at)
    proxy_same(&whole, whole_told, whole_taken, &pieces, pieces_told, pieces_taken)
    proxy_begin(&single)
    for index in range(length):
        single_taken += proxy_checked(&single, &single_told, octets + index, 1)
    proxy_same(&whole, whole_told, whole_taken, &single, single_told, single_taken)
    if whole_told == PROXY_MORE or whole_told == PROXY_BAD:
        return
    if octets[0] == c"P":
        claim(whole_taken <= PROXY_LINE and memcmp(octets + whole_taken - 2, b"\r\n", 2) == 0)
        if whole_told == PROXY_KNOWN:
            proxy_line_again(&whole, octets)
        return
    claim(whole_taken == PROXY_FIXED + (<size_t>octets[14] << 8 | octets[15]))
    if whole_told == PROXY_ITSELF:
        claim(octets[12] == 0x20 or octets[13] != 0x11)
        return
    claim(octets[12] == 0x21 and (octets[13] == 0x11 or octets[13] == 0x21))
    at = 4 if octets[13] == 0x11 else 16
    claim(memcmp(whole.source + 16 - at, octets + 16, at) == 0)
    claim(memcmp(whole.called + 16 - at, octets + 16 + at, at) == 0)
    claim(whole.source_port == (octets[16 + 2 * at] << 8 | octets[17 + 2 * at]))
    claim(whole.called_port == (octets[18 + 2 * at] << 8 | octets[19 + 2 * at]))


# --- the pool of held sockets ---------------------------------------------------------


cdef void pool_sound(const Pool *pool, int64_t now) noexcept nogil:
    """Every list leads to every socket once, oldest first; nobody has too many."""
    cdef int32_t place, last, other
    cdef int index
    cdef int count = 0
    cdef int share
    cdef int64_t deadline = -1
    for index in range(pool.fifo_count):
        last = NOBODY
        place = pool.fifos[index].oldest
        while place != NOBODY:
            claim(0 <= place < pool.capacity and count < pool.capacity)
            claim(pool.places[place].fd != NOBODY and pool.places[place].queue == index)
            claim(pool.places[place].older == last)
            claim(last == NOBODY or pool.places[last].deadline <= pool.places[place].deadline)
            claim(pool.places[place].deadline <= now + pool.fifos[index].micros)
            if last == NOBODY and (deadline < 0 or pool.places[place].deadline < deadline):
                deadline = pool.places[place].deadline
            last = place
            place = pool.places[place].newer
            count += 1
        claim(pool.fifos[index].newest == last)
    claim(<uint32_t>count == pool.used)
    claim(pool_deadline(pool) == deadline)
    for index in range(pool.bucket_mask + 1):
        last = NOBODY
        place = pool.buckets[index]
        while place != NOBODY:
            claim(0 <= place < pool.capacity and count > 0)
            claim(pool.places[place].fd != NOBODY and pool.places[place].bucket == index)
            claim(pool.places[place].before == last)
            share = 0
            other = pool.buckets[index]
            while other != NOBODY:
                share += source_same(pool.places[other].caller.peer, pool.places[place].caller.peer)
                other = pool.places[other].after
            claim(share <= pool.share)
            last = place
            place = pool.places[place].after
            count -= 1
    claim(count == 0)
    count = <int>pool.used
    place = pool.free
    while place != NOBODY:
        claim(0 <= place < pool.capacity and count < pool.capacity)
        claim(pool.places[place].fd == NOBODY)
        place = pool.places[place].older
        count += 1
    claim(count == pool.fresh <= pool.capacity)
    claim(not pool.stress or pool.used > <uint32_t>pool.low)
    claim(pool.stress or pool.used <= <uint32_t>pool.high)


cdef void fuzz_pool(const unsigned char *data, size_t size) noexcept nogil:
    """Hold, move, leave and expire in any order; two octets are one step."""
    cdef Pool pool
    cdef Client places[PLACES]
    cdef int32_t buckets[4]
    cdef Caller caller
    cdef int64_t now = 0
    cdef int32_t capacity, place
    cdef int fd = 100
    cdef size_t index
    cdef uint8_t step, value
    cdef Refusal refusal
    if size < 2:
        return
    capacity = data[0] % (PLACES + 1)
    memset(&pool, 0, sizeof(pool))
    memset(places, 0, sizeof(places))
    pool_init(&pool, places, capacity, buckets, 4, 1 + data[1] % 5, data[1], 3)
    pool.fifos[0].micros = 10
    pool.fifos[1].micros = 25
    pool.fifos[2].micros = 10
    for index in range(2, size - 1, 2):
        step = data[index] & 3
        value = data[index + 1]
        now += data[index] >> 6
        if step <= 1:
            # Sources that share a /64, that share nothing, and v4-mapped ones.
            memset(&caller, 0, sizeof(caller))
            if value & 0x80:
                caller.peer[10] = caller.peer[11] = 0xFF
            else:
                caller.peer[0] = 0x20
                caller.peer[7] = (value >> 4) & 3
            caller.peer[15] = value & 7
            refusal = pool_hold(
                &pool, fd, 0, &caller, HELD_QUITTING, (data[index] >> 2) % 3, now, &place
            )
            claim((refusal == HELD_STRESS) == pool.stress or refusal == HELD_FINE)
            if refusal == HELD_FINE:
                claim(places[place].fd == fd and memcmp(places[place].caller.peer, caller.peer, 16) == 0)
                fd += 1
            elif refusal == HELD_TOTAL:
                claim(pool.used == <uint32_t>capacity)
            else:
                claim(refusal == HELD_SOURCE or refusal == HELD_STRESS)
        elif pool.fresh > 0 and places[value % pool.fresh].fd != NOBODY:
            place = value % pool.fresh
            if step == 2:
                pool_move(&pool, place, HELD_DRAINING, (data[index] >> 2) % 3, now)
                claim(places[place].state == HELD_DRAINING)
            else:
                fd = places[place].fd
                claim(pool_leave(&pool, place) == fd)
                fd = 1000 + <int>index
        pool_sound(&pool, now)
        place = pool_due(&pool, now)
        while place != NOBODY and value & 0x40:
            claim(places[place].deadline <= now)
            pool_leave(&pool, place)
            pool_sound(&pool, now)
            place = pool_due(&pool, now)


# --- libFuzzer ------------------------------------------------------------------------


cdef public int LLVMFuzzerInitialize(int *count, char ***arguments) noexcept nogil:
    global target
    cdef const char *name = strrchr(arguments[0][0], c"/")
    name = arguments[0][0] if name == NULL else name + 1
    if strcmp(name, b"probe") == 0:
        target = fuzz_probe
    elif strcmp(name, b"http") == 0:
        target = fuzz_http
    elif strcmp(name, b"proxy") == 0:
        target = fuzz_proxy
    elif strcmp(name, b"quit") == 0:
        target = fuzz_quit
    elif strcmp(name, b"pool") == 0:
        target = fuzz_pool
    elif strcmp(name, b"lists") == 0:
        target = fuzz_lists
    elif strcmp(name, b"session") == 0:
        target = fuzz_session
    else:
        abort()
    return 0


cdef public int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) noexcept nogil:
    target(data, size)
    return 0
