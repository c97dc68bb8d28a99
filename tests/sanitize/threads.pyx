# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Workers, renderer and drainer at once, for ThreadSanitizer: a program of its own.

Owns: real loops (epoll.pyx, included as it is) in threads, the shell's half of slots,
rings and counters beside them, and clients that check what they are told.
Promises: no Python is needed or called; 0 when every promise held, abort(3) else.
What ThreadSanitizer thinks of it is its own exit status.

    threads SECONDS PAUSE

PAUSE is how many milliseconds the renderer lets pass between two renewals.  A slot
comes round again after seven: what says that nobody reads it any more is that the
loops have turned since (`turns`, released by the loop and acquired by the shell).
With 0 there are 64 renewals in a row, so nothing says so, and ThreadSanitizer must
complain: that is how to see whether it is looking.
"""

include "../../ext/epoll.pyx"

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport abort, atoi, calloc
from libc.string cimport memset

from counters cimport ACCEPTED, SENT, Counters
from listeners cimport (
    DETAIL_SAMPLE, EXPECTED_ANY, MANNER_ASK, MANNER_QUIT, Board, Facts,
    Listening, State, Stop, Worker,
)
from net cimport (
    net_add64, net_load32, net_load64, net_sleep, net_steady, net_store32,
)
from pool cimport Client, pool_init
from ring cimport (
    Record, Ring, ring_claim, ring_commit, ring_peek, ring_release,
    ring_waiting,
)
from slot cimport WORDS, Answer, slot_publish

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <pthread.h>
    #include <sys/eventfd.h>

    /* A listening socket of 127.0.0.1 on *port (0: any, and told). */
    static int threads_listen(unsigned short *port)
    {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(*port)};
        socklen_t size = sizeof at;
        int on = 1;
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
        if (bind(fd, (struct sockaddr *)&at, sizeof at) != 0 || listen(fd, 128) != 0)
            abort();
        getsockname(fd, (struct sockaddr *)&at, &size);
        *port = ntohs(at.sin_port);
        return fd;
    }

    /* What a listener says to one client; how many octets, -1 when it is out of reach. */
    static long threads_ask(unsigned short port, const char *words, size_t length,
                            char *told, size_t most)
    {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
        struct timeval wait = {20, 0};
        size_t got = 0;
        ssize_t more;
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
        if (connect(fd, (struct sockaddr *)&at, sizeof at) != 0) {
            close(fd);
            return -1;
        }
        (void)send(fd, words, length, MSG_NOSIGNAL);
        while (got < most && (more = recv(fd, told + got, most - got, 0)) > 0)
            got += (size_t)more;
        close(fd);
        return (long)got;
    }
    """
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, void *attributes, void *(*call)(void *) noexcept nogil, void *of) nogil
    int pthread_join(pthread_t thread, void **result) nogil
    int eventfd(unsigned int value, int flags) nogil
    int threads_listen(unsigned short *port) nogil
    long threads_ask(unsigned short port, const char *words, size_t length, char *told, size_t most) nogil
    ssize_t threads_wake "write" (int fd, const void *octets, size_t length) nogil

cdef enum:
    WORKERS = 2
    LISTENERS = 3       # one that answers at once, `auto`, `quit`
    CLIENTS = 3         # a thread for each listener
    RECORDS = 64
    HELD = 32
    BUCKETS = 32
    OCTETS = 900        # of each answer
    SEQUENCE = 200_000  # records of the ring alone

cdef Board board
cdef Worker *workers
cdef Facts facts[LISTENERS]
cdef Answer *answers
cdef Counters counters[WORKERS * LISTENERS]
cdef Listening listenings[WORKERS * LISTENERS]
cdef Client places[WORKERS * HELD]
cdef int32_t buckets[WORKERS * BUCKETS]
cdef Record records[WORKERS * RECORDS]
cdef unsigned short ports[LISTENERS]
cdef uint32_t over
cdef uint64_t asked[CLIENTS]

cdef Ring alone
cdef Record alone_records[RECORDS]
cdef Counters alone_counters
cdef uint32_t alone_over


cdef inline void claim(bint promised) noexcept nogil:
    if not promised:
        abort()


# --- a ring and a counter, as fast as they go --------------------------------------------


cdef void *produce(void *unused) noexcept nogil:
    cdef int64_t index
    cdef Record *record
    for index in range(SEQUENCE):
        record = ring_claim(&alone)
        net_add64(&alone_counters.count[<int>ACCEPTED], 1)
        if record != NULL:
            memset(record, <int>(index & 0xFF), sizeof(Record))
            record.moment = index
            ring_commit(&alone)
            net_add64(&alone_counters.count[<int>SENT], 1)
    net_store32(&alone_over, 1)
    return NULL


cdef void consume() noexcept nogil:
    """Every record once, in order, whole; what was dropped is counted."""
    cdef pthread_t producer
    cdef int64_t last = -1
    cdef uint64_t seen = 0
    cdef uint64_t sent
    cdef uint32_t waiting, index
    cdef const Record *record
    cdef bint ended = False
    alone.records = alone_records
    alone.mask = RECORDS - 1
    claim(pthread_create(&producer, NULL, produce, NULL) == 0)
    while True:
        ended = net_load32(&alone_over) != 0
        waiting = ring_waiting(&alone)
        claim(waiting <= RECORDS)
        for index in range(waiting):
            record = ring_peek(&alone, index)
            claim(record.moment > last and record.peer[0] == <uint8_t>(record.moment & 0xFF))
            claim(record.peer[15] == record.peer[0] and record.words == record.peer[0])
            last = record.moment
        seen += waiting
        ring_release(&alone, waiting)
        sent = net_load64(&alone_counters.count[<int>SENT])
        claim(sent <= net_load64(&alone_counters.count[<int>ACCEPTED]))
        if ended and waiting == 0:
            break
    pthread_join(producer, NULL)
    claim(seen + net_load64(&alone.dropped) == SEQUENCE)
    claim(seen == net_load64(&alone_counters.count[<int>SENT]))


# --- the loops, and the shell beside them -------------------------------------------------


cdef void publish(int round) noexcept nogil:
    """Every answer anew: one letter, so that a mixture would show."""
    cdef char octets[OCTETS]
    cdef int index
    memset(octets, 65 + round % 26, OCTETS)
    for index in range(LISTENERS * <int>WORDS):
        claim(slot_publish(&answers[index], octets, OCTETS, OCTETS, False))


cdef void prepare() noexcept nogil:
    global workers, answers
    cdef int which, index
    cdef Worker *worker
    cdef Listening *listening
    workers = <Worker *>calloc(WORKERS, sizeof(Worker))
    answers = <Answer *>calloc(LISTENERS * <int>WORDS, sizeof(Answer))
    board.workers = WORKERS
    board.listeners = LISTENERS
    board.recording = True
    board.bell = eventfd(0, 0o4000)
    board.worker = workers
    facts[1].manner = MANNER_ASK
    facts[1].expected = EXPECTED_ANY
    facts[2].manner = MANNER_QUIT
    for index in range(LISTENERS):
        facts[index].detail = DETAIL_SAMPLE
        facts[index].detail_number = 2
        facts[index].wildcard = True
    for which in range(WORKERS):
        worker = &workers[which]
        worker.index = which
        worker.listeners = LISTENERS
        worker.wake = eventfd(0, 0o4000)
        worker.listening = &listenings[which * LISTENERS]
        worker.ring.records = &records[which * RECORDS]
        worker.ring.mask = RECORDS - 1
        pool_init(
            &worker.pool, &places[which * HELD], HELD, &buckets[which * BUCKETS], BUCKETS,
            HELD, 7, 1,
        )
        worker.pool.fifos[0].micros = 200_000
        for index in range(LISTENERS):
            listening = &worker.listening[index]
            listening.fd = threads_listen(&ports[index])
            listening.index = index
            listening.facts = &facts[index]
            listening.answers = &answers[index * <int>WORDS]
            listening.counters = &counters[which * LISTENERS + index]
    publish(0)


cdef void *run_worker(void *worker) noexcept nogil:
    work(&board, <Worker *>worker)
    return NULL


cdef void *ask(void *number) noexcept nogil:
    """One client after another; each is told one letter at a time."""
    cdef int index = <int><size_t>number
    cdef char told[16 * OCTETS]
    cdef int turn = 0
    cdef long length, at
    cdef const char *words
    while not net_load32(&over):
        turn += 1
        words = b"NOOP\r\nNOOP\r\nQUIT\r\n"
        if index < 2:
            words = b"HEAD / HTTP/1.1\r\n\r\n" if turn % 3 else b"EHLO all\r\n        "
        length = threads_ask(ports[index], words, 18, told, sizeof(told))
        claim(length >= OCTETS and length % OCTETS == 0)
        for at in range(length):
            claim(told[at] == told[at - at % OCTETS])
        asked[index] += 1
    return NULL


cdef uint64_t drain() noexcept nogil:
    """As the shell does once a second: rings, counters, states."""
    cdef int which, index
    cdef uint32_t waiting, ahead
    cdef uint64_t sent, seen = 0
    cdef const Record *record
    for which in range(WORKERS):
        waiting = ring_waiting(&workers[which].ring)
        for ahead in range(waiting):
            record = ring_peek(&workers[which].ring, ahead)
            claim(record.listener < LISTENERS and record.words < <int>WORDS)
            claim(record.peer[12] == 127)
        ring_release(&workers[which].ring, waiting)
        seen += waiting + net_load64(&workers[which].ring.dropped)
        net_load64(&workers[which].turns)
        net_load32(&workers[which].resting)
        net_load32(<uint32_t *>&workers[which].pool.used)
        net_load32(<uint32_t *>&workers[which].pool.stress)
        net_load64(&workers[which].pool.stresses)
        for index in range(LISTENERS):
            sent = net_load64(&workers[which].listening[index].counters.count[<int>SENT])
            claim(sent <= net_load64(
                &workers[which].listening[index].counters.count[<int>ACCEPTED]
            ))
    return seen


cdef void shell(int seconds, int pause) noexcept nogil:
    cdef pthread_t loops[WORKERS]
    cdef pthread_t clients[CLIENTS]
    cdef int64_t until
    cdef int64_t due = 0
    cdef int which, index
    cdef int round = 0
    cdef uint64_t one = 1
    cdef uint64_t total = 0
    cdef uint64_t accepted = 0
    for which in range(WORKERS):
        claim(pthread_create(&loops[which], NULL, run_worker, &workers[which]) == 0)
    for which in range(WORKERS):
        while net_load32(&workers[which].state) == <uint32_t>State.STATE_NEW:
            net_sleep(1000)
        claim(net_load32(&workers[which].state) == <uint32_t>State.STATE_RUNNING)
    for which in range(CLIENTS):
        claim(pthread_create(&clients[which], NULL, ask, <void *><size_t>which) == 0)
    until = net_steady() + seconds * 1_000_000
    while net_steady() < until:
        drain()
        if net_steady() >= due:
            for index in range(1 if pause else 64):
                round += 1
                publish(round)
            due = net_steady() + pause * 1000
            net_store32(&board.overheard, round & 1)
            # A pause of one listener now and then, as a reload or turnawayctl makes.
            net_store32(&facts[0].paused, round % 8 == 7)
            for which in range(WORKERS):
                threads_wake(workers[which].wake, &one, 8)
        net_sleep(min(pause, 2) * 1000)
    net_store32(&facts[0].paused, 0)
    for which in range(WORKERS):
        threads_wake(workers[which].wake, &one, 8)
    net_store32(&over, 1)
    for which in range(CLIENTS):
        pthread_join(clients[which], NULL)
        total += asked[which]
    for which in range(WORKERS):
        net_store32(&workers[which].stop, Stop.STOP_NOW)
        threads_wake(workers[which].wake, &one, 8)
    for which in range(WORKERS):
        pthread_join(loops[which], NULL)
        claim(net_load32(&workers[which].state) == <uint32_t>State.STATE_STOPPED)
    drain()
    for index in range(WORKERS * LISTENERS):
        accepted += counters[index].count[<int>ACCEPTED]
    claim(accepted == total and total > 0)


cdef public int one_table(int flags) noexcept nogil:
    """In place of unshare(2): ThreadSanitizer takes one number in two tables of
    descriptors for one descriptor."""
    return -1


cdef public int main(int count, char **arguments) noexcept nogil:
    claim(count == 3)
    consume()
    prepare()
    shell(atoi(arguments[1]), atoi(arguments[2]))
    return 0
