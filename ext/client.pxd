"""A held client: what it may still say, and what it is told.

Owns: everything between hold and close, for clients that must speak first
(`ask`), that are waited for (`quit`), or that are drained.  Promises: the same
for every platform, for no poller is touched here (a closed descriptor leaves
its poller by itself); each look at a client reads a bounded amount; nothing it
says is kept but the first PROBE_OCTETS octets, until they are recognised.
"""

from libc cimport errno as e
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy
from posix.unistd cimport close
from answer cimport DISCARD_OCTETS, answer_of, count, look, record, say
from counters cimport (
    COMMANDS_WRONG, DRAIN_EXPIRED, EXPIRED, HELD_FULL, HELD_SHARE,
    HELD_STRESSED, QUITS, SACRIFICED,
)
from http cimport (
    HTTP_HEAD, HTTP_HTML, READING_BAD, READING_DONE, READING_MORE, Reading,
    http_begin, http_read,
)
from listeners cimport (
    EXPECTED_ANY, EXPECTED_HTTP, EXPECTED_TLS, MANNER_ASK, MANNER_QUIT,
    SCRATCH_OCTETS, Board, Facts, Listening, Worker, disposal_add,
)
from net cimport (
    net_add64, net_calendar, net_discard, net_forget, net_half_close, net_peek, net_read,
    net_send, net_steady,
)
from pool cimport (
    HELD_DRAINING, HELD_FINE, HELD_PROBING, HELD_PROXYING, HELD_QUITTING, HELD_READING,
    HELD_SOURCE, HELD_TOTAL, QUEUE_DRAIN, QUEUE_PARK, QUEUE_PROBE, QUEUE_QUIT,
    QUEUE_REQUEST, Caller, Client, Held, Queue, Refusal, pool_hold, pool_leave,
    pool_move,
)
from probe cimport (
    GUESS_HTTP, GUESS_MORE, GUESS_NONE, GUESS_SOCKS4, GUESS_SOCKS5, GUESS_TLS,
    PROBE_OCTETS, Guess, probe,
)
from proxy cimport PROXY_BAD, PROXY_KNOWN, PROXY_MORE, Proxied, proxy_read
from quit cimport COMMAND_MORE, COMMAND_QUIT, Command, dialogue_octet
from ring cimport (
    OUTCOME_EARLY, OUTCOME_EXPIRED, OUTCOME_GONE, OUTCOME_HEADLESS, OUTCOME_RESET,
    OUTCOME_SENT, Outcome,
)
from slot cimport (
    WORDS_BAD, WORDS_BANNER, WORDS_BYE, WORDS_HTML, WORDS_LATE, WORDS_PLAIN,
    WORDS_SOCKS4, WORDS_SOCKS5, WORDS_TIMEOUT, WORDS_TLS, WORDS_WRONG, Slot, Words,
)

cdef enum:
    # Reads of one client per turn: one that pours megabytes gets no more of a
    # turn than a batch of others.
    READS = 4


cdef inline int32_t client_hold(
    Worker *worker, Listening *listening, int fd, const Caller *caller, Held state,
    Queue queue, int64_t now,
) noexcept nogil:
    """The place of a client from now on, or -1 (counted) when there is no room.

    One whose PROXY header is awaited was told nothing yet: another who was told gives
    way to it.
    """
    cdef int32_t place = -1
    cdef Refusal refusal = pool_hold(
        &worker.pool, fd, listening.index, caller, state,
        listening.facts.fifo[<int>queue], now, &place
    )
    if refusal == HELD_TOTAL and state == HELD_PROXYING and client_sacrifice(worker):
        refusal = pool_hold(
            &worker.pool, fd, listening.index, caller, state,
            listening.facts.fifo[<int>queue], now, &place
        )
    if refusal == HELD_FINE:
        worker.pool.places[place].dialogue.matched = 0
        worker.pool.places[place].dialogue.mute = False
        http_begin(&worker.pool.places[place].http)
        return place
    if refusal == HELD_SOURCE:
        net_add64(&listening.counters.count[<int>HELD_SHARE], 1)
    elif refusal == HELD_TOTAL:
        net_add64(&listening.counters.count[<int>HELD_FULL], 1)
    else:
        net_add64(&listening.counters.count[<int>HELD_STRESSED], 1)
    return -1


cdef inline void client_move(
    Worker *worker, int32_t place, Held state, Queue queue, int64_t now
) noexcept nogil:
    cdef Client *client = &worker.pool.places[place]
    pool_move(
        &worker.pool, place, state,
        worker.listening[client.listener].facts.fifo[<int>queue], now,
    )


cdef inline void client_close(Worker *worker, int32_t place) noexcept nogil:
    cdef int fd = pool_leave(&worker.pool, place)
    net_forget(worker.wake, fd)
    close(fd)


cdef inline bint client_sacrifice(Worker *worker) noexcept nogil:
    """Close the client that was answered longest ago, for its descriptor; False
    when nobody is left who was answered."""
    cdef int32_t place
    cdef int index
    for index in range(worker.pool.fifo_count):
        place = worker.pool.fifos[index].oldest
        if place != -1 and worker.pool.places[place].state == HELD_DRAINING:
            net_add64(
                &worker.listening[worker.pool.places[place].listener]
                .counters.count[<int>SACRIFICED], 1,
            )
            client_close(worker, place)
            return True
    return False


cdef inline void client_note(
    Board *board, Worker *worker, int32_t place, Outcome outcome, Words words
) noexcept nogil:
    cdef Client *client = &worker.pool.places[place]
    cdef Listening *listening = &worker.listening[client.listener]
    count(listening.counters, outcome, words)
    disposal_add(worker, net_steady() - client.since, 1)
    record(
        board, worker, listening, client.fd, &client.caller, net_calendar(), outcome, words,
    )


cdef inline void client_answer(
    Board *board, Worker *worker, int32_t place, Words words, bint head, bint late, int64_t now
) noexcept nogil:
    """The last words to a client that was not answered yet; then drain or close it.

    `late`: it was silent until its time was over.
    """
    cdef Client *client = &worker.pool.places[place]
    cdef Listening *listening = &worker.listening[client.listener]
    cdef const Facts *facts = listening.facts
    cdef Outcome outcome = say(listening, words, head, not facts.resets, client.fd, &client.caller)
    cdef bint whole = outcome == OUTCOME_SENT
    if whole and late and words != WORDS_BANNER:
        outcome = OUTCOME_EXPIRED
    client_note(board, worker, place, outcome, words)
    if not whole or facts.resets:
        client_close(worker, place)
    elif late and facts.lingers == QUEUE_PARK and look(client.fd, OUTCOME_SENT) != OUTCOME_EARLY:
        client_close(worker, place)
    else:
        client_move(worker, place, HELD_DRAINING, <Queue>facts.lingers, now)


cdef inline bint client_failed(
    Board *board, Worker *worker, int32_t place, ssize_t heard
) noexcept nogil:
    """After a read that gave nothing: True when the client is over and closed."""
    if heard < 0 and (errno == e.EAGAIN or errno == e.EINTR):
        return False
    client_note(
        board, worker, place, OUTCOME_RESET if heard < 0 else OUTCOME_GONE,
        <Words>worker.listening[worker.pool.places[place].listener].facts.blind,
    )
    client_close(worker, place)
    return True


cdef inline void client_headless(Board *board, Worker *worker, int32_t place) noexcept nogil:
    """No good PROXY header: nobody knows whom to answer, so nobody is."""
    client_note(
        board, worker, place, OUTCOME_HEADLESS,
        <Words>worker.listening[worker.pool.places[place].listener].facts.blind,
    )
    client_close(worker, place)


cdef inline bint client_header(Board *board, Worker *worker, int32_t place) noexcept nogil:
    """More of a PROXY header; True when it is whole and the caller known.

    What stands behind it is left in the socket.
    """
    cdef Client *client = &worker.pool.places[place]
    cdef ssize_t heard = net_peek(client.fd, worker.scratch, SCRATCH_OCTETS)
    cdef size_t taken
    cdef Proxied told
    if heard <= 0:
        client_failed(board, worker, place, heard)
        return False
    told = proxy_read(&client.proxy, worker.scratch, <size_t>heard, &taken)
    if told == PROXY_BAD or net_read(client.fd, worker.scratch, taken) != <ssize_t>taken:
        client_headless(board, worker, place)
        return False
    if told == PROXY_KNOWN:
        memcpy(client.caller.peer, client.proxy.source, 16)
        client.caller.port = client.proxy.source_port
        memcpy(client.caller.called, client.proxy.called, 16)
        client.caller.called_port = client.proxy.called_port
        client.caller.told = True
    client.caller.proxied = told != PROXY_MORE
    return client.caller.proxied


cdef inline void client_drain(Worker *worker, int32_t place) noexcept nogil:
    """Answered: throw away what comes, close at EOF."""
    cdef int fd = worker.pool.places[place].fd
    cdef ssize_t heard = 1
    cdef int turn
    for turn in range(READS):
        heard = net_discard(fd, DISCARD_OCTETS)
        if heard <= 0:
            break
    if heard > 0 or (heard < 0 and (errno == e.EAGAIN or errno == e.EINTR)):
        return
    client_close(worker, place)


cdef inline void client_request(
    Board *board, Worker *worker, int32_t place, const unsigned char *octets, size_t length,
    int64_t now,
) noexcept nogil:
    """More of an HTTP request; answer when enough of it is known."""
    cdef Client *client = &worker.pool.places[place]
    cdef Reading reading = http_read(&client.http, octets, length)
    if reading == READING_DONE:
        client_answer(
            board, worker, place,
            WORDS_HTML if client.http.flags & HTTP_HTML else WORDS_PLAIN,
            (client.http.flags & HTTP_HEAD) != 0, False, now,
        )
    elif reading == READING_BAD:
        client_answer(board, worker, place, WORDS_BAD, False, False, now)


cdef inline void client_probe(Board *board, Worker *worker, int32_t place, size_t length, int64_t now) noexcept nogil:
    """`length` octets more are in the scratch: recognise them, answer in kind."""
    cdef Client *client = &worker.pool.places[place]
    cdef const Facts *facts = worker.listening[client.listener].facts
    cdef size_t before = client.first_length
    cdef size_t more = min(length, <size_t>PROBE_OCTETS - before)
    cdef Guess guess
    memcpy(client.first + before, worker.scratch, more)
    client.first_length = <uint8_t>(before + more)
    if facts.expected == EXPECTED_TLS:
        guess = GUESS_TLS
    elif facts.expected == EXPECTED_ANY:
        guess = probe(client.first, client.first_length)
    else:
        guess = GUESS_SOCKS4 if client.first[0] == 4 else GUESS_SOCKS5
    if guess == GUESS_MORE and client.first_length < PROBE_OCTETS:
        return
    if guess == GUESS_HTTP:
        client_move(worker, place, HELD_READING, QUEUE_REQUEST, now)
        http_read(&client.http, client.first, before)
        client_request(board, worker, place, worker.scratch, length, now)
    elif guess == GUESS_TLS:
        client_answer(board, worker, place, WORDS_TLS, False, False, now)
    elif guess == GUESS_SOCKS4:
        client_answer(board, worker, place, WORDS_SOCKS4, False, False, now)
    elif guess == GUESS_SOCKS5:
        client_answer(board, worker, place, WORDS_SOCKS5, False, False, now)
    else:
        client_answer(board, worker, place, WORDS_BANNER, False, False, now)


cdef inline void client_reply(
    Worker *worker, Client *client, const Slot *slot, int times
) noexcept nogil:
    """The same reply to each of several commands, in as few sends as it takes.

    A client that does not read its replies is not told any more.
    """
    cdef size_t filled
    while times > 0 and not client.dialogue.mute:
        filled = 0
        while times > 0 and filled + slot.length <= SCRATCH_OCTETS:
            memcpy(worker.scratch + filled, slot.octets, slot.length)
            filled += slot.length
            times -= 1
        if net_send(client.fd, <const char *>worker.scratch, filled) != <ssize_t>filled:
            client.dialogue.mute = True


cdef inline bint client_hang_up(Worker *worker, Client *client, Words words) noexcept nogil:
    """The last words of a dialogue, and the FIN; whether they were taken.

    Who did not read its replies may have half a one: nothing may follow it.
    """
    if not client.dialogue.mute and say(
        &worker.listening[client.listener], words, False, True, client.fd, &client.caller
    ) == OUTCOME_SENT:
        return True
    net_half_close(client.fd)
    return False


cdef inline void client_commands(Board *board, Worker *worker, int32_t place, size_t length, int64_t now) noexcept nogil:
    """`length` octets of commands are in the scratch."""
    cdef Client *client = &worker.pool.places[place]
    cdef Listening *listening = &worker.listening[client.listener]
    cdef Command command = COMMAND_MORE
    cdef int wrong = 0
    cdef size_t index
    for index in range(length):
        command = dialogue_octet(&client.dialogue, worker.scratch[index])
        if command == COMMAND_QUIT:
            break
        if command != COMMAND_MORE:
            wrong += 1
    if wrong > 0:
        net_add64(&listening.counters.count[<int>COMMANDS_WRONG], <unsigned long long>wrong)
        client_reply(worker, client, answer_of(listening, &client.caller, WORDS_WRONG), wrong)
    if command == COMMAND_QUIT:
        net_add64(&listening.counters.count[<int>QUITS], 1)
        client_hang_up(worker, client, WORDS_BYE)
        client_move(worker, place, HELD_DRAINING, QUEUE_PARK, now)


cdef inline void client_readable(Board *board, Worker *worker, int32_t place, int64_t now) noexcept nogil:
    """A held client spoke or hung up."""
    cdef Client *client = &worker.pool.places[place]
    cdef ssize_t heard
    cdef int turn
    for turn in range(READS):
        if client.fd < 0:
            return
        if client.state == HELD_DRAINING:
            client_drain(worker, place)
            return
        heard = net_read(client.fd, worker.scratch, SCRATCH_OCTETS)
        if heard > 0:
            if client.state == HELD_PROBING:
                client_probe(board, worker, place, <size_t>heard, now)
            elif client.state == HELD_READING:
                client_request(board, worker, place, worker.scratch, <size_t>heard, now)
            else:
                client_commands(board, worker, place, <size_t>heard, now)
        elif heard < 0 and (errno == e.EAGAIN or errno == e.EINTR):
            return
        elif client.state == HELD_QUITTING:
            client_close(worker, place)  # it was greeted; that is written down
            return
        elif heard == 0 and client.state == HELD_PROBING:
            # It only half-closed, perhaps, and reads on.
            client_answer(
                board, worker, place,
                <Words>worker.listening[client.listener].facts.blind, False, False, now,
            )
            return
        elif heard == 0 and client.http.octets > 0:
            client_answer(board, worker, place, WORDS_BAD, False, False, now)
            return
        else:
            client_failed(board, worker, place, heard)
            return


cdef inline void client_due(Board *board, Worker *worker, int32_t place, int64_t now) noexcept nogil:
    """The time of a held client is over."""
    cdef Client *client = &worker.pool.places[place]
    cdef Listening *listening = &worker.listening[client.listener]
    if client.state == HELD_DRAINING:
        net_add64(&listening.counters.count[<int>DRAIN_EXPIRED], 1)
        client_close(worker, place)
    elif client.state == HELD_PROXYING:
        client_headless(board, worker, place)
    elif client.state == HELD_PROBING:
        client_answer(board, worker, place, <Words>listening.facts.blind, False, True, now)
    elif client.state == HELD_READING:
        client_answer(board, worker, place, WORDS_TIMEOUT, False, True, now)
    else:
        net_add64(&listening.counters.count[<int>EXPIRED], 1)
        if (
            client_hang_up(worker, client, WORDS_LATE)
            and look(client.fd, OUTCOME_SENT) == OUTCOME_EARLY
        ):
            client_move(worker, place, HELD_DRAINING, QUEUE_PARK, now)
        else:
            client_close(worker, place)
