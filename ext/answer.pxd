"""The answer to one connection: what the hot path does between accept and close.

Owns: the two halves of an answer, and what is written down of it.  Promises:
banner and FIN leave in one segment, and no client loses the banner by talking
before the greeting.

`say` hands over the banner, held back by MSG_MORE, and half-closes: only now
both leave, together.  `look`, later, throws away what the client has sent.
Why so (tcp(7), RFC 2525 2.17): a close with unread input sends RST, and what
is still held back then is never sent; so the shutdown must come before the
close, or an early talker whose data lands in the last microsecond gets
nothing (measured: docs/performance.md).  And the later the look, the more
talkers it sees and can save from a RST.
"""

from libc cimport errno as e
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy
from posix.unistd cimport write
from counters cimport (
    ANSWERED_HTTP, ANSWERED_SOCKS, ANSWERED_TLS, EXPIRED, FAILED, GONE,
    HEADLESS, MISDIVERTED, RESET, SENT, SHORT, STRANGER, Counters,
)
from line cimport INET6_ADDRSTRLEN, put, put_address
from listeners cimport Board, Budget, Detail, Facts, Listening, Worker
from net cimport (
    net_add64, net_discard, net_half_close, net_load32, net_local, net_original,
    net_send, net_send_held, net_unpack, sockaddr_storage,
)
from pool cimport Caller
from ring cimport (
    OUTCOME_EARLY, OUTCOME_EXPIRED, OUTCOME_FAILED, OUTCOME_GONE,
    OUTCOME_HEADLESS, OUTCOME_MISDIVERTED, OUTCOME_RESET, OUTCOME_SENT,
    OUTCOME_SHORT, OUTCOME_STRANGER, RECORD_DETAILED, RECORD_VIA, Outcome, Record,
    ring_claim, ring_commit,
)
from source cimport source_is_ipv4
from slot cimport (
    SLOT_MARKS, SLOT_OCTETS, WORDS, WORDS_PLAIN, WORDS_SOCKS5, WORDS_TLS, Slot, Words,
    slot_current,
)

cdef enum:
    # How much input one look throws away; a talker with more is parked anyway.
    DISCARD_OCTETS = 1 << 20
    # Where the kernel follows no connections, ask again after this long: a firewall
    # may be loaded after us.
    UNTRACKED_MICROS = 1_000_000


cdef inline size_t address_client(const Slot *slot, const unsigned char *peer, char *text) noexcept nogil:
    """An answer with the client's address in its places; its length.

    `text` has room for SLOT_OCTETS and SLOT_MARKS addresses.
    """
    cdef char *end = text
    cdef uint32_t done = 0
    cdef uint32_t index
    for index in range(slot.marks):
        end = put(end, slot.octets + done, slot.mark[index] - done)
        done = slot.mark[index]
        end = put_address(end, peer)
    end = put(end, slot.octets + done, slot.length - done)
    return <size_t>(end - text)


cdef inline const Slot *answer_of(
    const Listening *listening, const Caller *caller, Words words
) noexcept nogil:
    """What is said here to this caller: its list has answers of its own."""
    return slot_current(&listening.answers[caller.list * <int>WORDS + <int>words])


cdef inline Outcome say(
    const Listening *listening, Words words, bint head, bint fin, int fd, const Caller *caller
) noexcept nogil:
    """Send an answer (of HTTP perhaps the head only), and with `fin` the FIN too.

    OUTCOME_SENT when the kernel took it whole.
    """
    cdef const Slot *slot = answer_of(listening, caller, words)
    cdef const char *octets = &slot.octets[0]
    cdef size_t length = slot.head if head else slot.length
    cdef char addressed[SLOT_OCTETS + SLOT_MARKS * INET6_ADDRSTRLEN]
    cdef ssize_t said
    if slot.marks > 0:
        length = address_client(slot, caller.peer, addressed)
        octets = addressed
    if fin:
        said = net_send_held(fd, octets, length)
    else:
        said = net_send(fd, octets, length)
    if said == <ssize_t>length:
        if fin:
            net_half_close(fd)
        return OUTCOME_SENT
    if said >= 0:
        return OUTCOME_SHORT
    if errno == e.ECONNRESET or errno == e.EPIPE:
        return OUTCOME_RESET
    return OUTCOME_FAILED


cdef inline Outcome look(int fd, Outcome outcome) noexcept nogil:
    """Throw away what the client has sent by now; what became of the connection.

    OUTCOME_EARLY: it had talked, and is worth draining until its EOF.
    """
    cdef ssize_t heard
    if outcome != OUTCOME_SENT:
        return outcome
    heard = net_discard(fd, DISCARD_OCTETS)
    if heard > 0:
        return OUTCOME_EARLY
    if heard < 0 and errno == e.ECONNRESET:
        return OUTCOME_RESET
    return OUTCOME_SENT


cdef inline void count(Counters *counters, Outcome outcome, Words words) noexcept nogil:
    """Count what was said, and how it went."""
    if outcome == OUTCOME_RESET:
        net_add64(&counters.count[<int>RESET], 1)
        return
    if outcome == OUTCOME_SHORT:
        net_add64(&counters.count[<int>SHORT], 1)
        return
    if outcome == OUTCOME_FAILED:
        net_add64(&counters.count[<int>FAILED], 1)
        return
    if outcome == OUTCOME_GONE:
        net_add64(&counters.count[<int>GONE], 1)
        return
    if outcome == OUTCOME_STRANGER:
        net_add64(&counters.count[<int>STRANGER], 1)
        return
    if outcome == OUTCOME_HEADLESS:
        net_add64(&counters.count[<int>HEADLESS], 1)
        return
    if outcome == OUTCOME_MISDIVERTED:
        net_add64(&counters.count[<int>MISDIVERTED], 1)
        return
    net_add64(&counters.count[<int>SENT], 1)
    if outcome == OUTCOME_EXPIRED:
        net_add64(&counters.count[<int>EXPIRED], 1)
    if words >= WORDS_SOCKS5:
        net_add64(&counters.count[<int>ANSWERED_SOCKS], 1)
    elif words == WORDS_TLS:
        net_add64(&counters.count[<int>ANSWERED_TLS], 1)
    elif words >= WORDS_PLAIN:
        net_add64(&counters.count[<int>ANSWERED_HTTP], 1)


cdef inline bint wants_detail(Worker *worker, Listening *listening, int64_t moment) noexcept nogil:
    """Whether this connection gets a line of its own in the log."""
    cdef const Facts *facts = listening.facts
    cdef Budget *budget = &listening.budget if facts.own_detail else &worker.budget
    if facts.detail == <uint32_t>Detail.DETAIL_ALL:
        return True
    if facts.detail == <uint32_t>Detail.DETAIL_NONE:
        return False
    if facts.detail == <uint32_t>Detail.DETAIL_CAPPED:
        if moment // 1_000_000 != budget.second:
            budget.second = moment // 1_000_000
            budget.left = facts.detail_number
        if budget.left == 0:
            return False
        budget.left -= 1
        return True
    if budget.left == 0:
        budget.left = facts.detail_number
    budget.left -= 1
    return budget.left == 0


cdef inline void where(
    Record *line, Listening *listening, int fd, const Caller *caller
) noexcept nogil:
    """The address that was called; and, where it differs, the one it came by.

    A proxy tells it in its header.  A firewall that changes only the port leaves
    the address in the socket and the port in the kernel's table of connections; one
    that redirects leaves both there; TPROXY leaves both in the socket.
    """
    cdef const Facts *facts = listening.facts
    cdef sockaddr_storage asked
    if facts.asks and net_local(fd, &asked) == 0:
        line.local_port = net_unpack(&asked, line.local)
    memcpy(line.via, line.local, 16)
    line.via_port = line.local_port
    if caller.told:
        memcpy(line.local, caller.called, 16)
        line.local_port = caller.called_port
    elif facts.transparent:
        line.via_port = <uint16_t>facts.port
        if not facts.wildcard:
            memcpy(line.via, facts.local, 16)
    elif line.moment >= listening.untracked:
        if net_original(fd, not source_is_ipv4(caller.peer), &asked) == 0:
            line.local_port = net_unpack(&asked, line.local)
        elif errno == e.ENOPROTOOPT:
            listening.untracked = line.moment + UNTRACKED_MICROS
    if line.via_port != line.local_port or memcmp(line.via, line.local, 16) != 0:
        line.flags |= RECORD_VIA


cdef inline void record(
    Board *board, Worker *worker, Listening *listening, int fd, const Caller *caller,
    int64_t moment, Outcome outcome, Words words,
) noexcept nogil:
    """Write the connection down, if anything reads the ring.

    The called address is asked of the kernel only when somebody reads it.
    """
    cdef Record *line
    if not board.recording:
        return
    line = ring_claim(&worker.ring)
    if line == NULL:
        return
    line.moment = moment
    memcpy(line.peer, caller.peer, 16)
    line.peer_port = caller.port
    line.listener = <uint16_t>listening.index
    line.outcome = <uint8_t>outcome
    line.words = <uint8_t>words
    line.list = caller.list
    line.local_port = <uint16_t>listening.facts.port
    memcpy(line.local, listening.facts.local, 16)
    line.flags = 0
    if wants_detail(worker, listening, moment):
        line.flags = RECORD_DETAILED
    if line.flags or net_load32(&board.overheard):
        where(line, listening, fd, caller)
    if ring_commit(&worker.ring) and board.bell >= 0:
        write(board.bell, b"\0", 1)
