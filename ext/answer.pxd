"""The answer to one connection: the four calls of the hot path.

Owns: what happens between accept and the end of a connection, and what is
written down of it.  Promises: a silent client costs send, recv and close, and
banner and FIN leave in one segment; a client that talked before the greeting
is never reset before it could read the banner, for its input is thrown away
and it is left to the caller to be parked.

Why so (tcp(7), RFC 2525 2.17): close with unread input sends RST, and what
MSG_MORE still holds back is then never sent.  So the input is looked at after
the banner was handed over: the later the look, the more talkers are seen.
"""

from libc cimport errno as e
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy, memset
from posix.unistd cimport write
from counters cimport EARLY, FAILED, RESET, SENT, SHORT
from listeners cimport Board, Detail, Facts, Listening, Worker
from net cimport (
    net_add64, net_discard, net_half_close, net_load32, net_local,
    net_send_held, net_unpack, sockaddr_storage,
)
from ring cimport (
    OUTCOME_EARLY, OUTCOME_FAILED, OUTCOME_RESET, OUTCOME_SENT, OUTCOME_SHORT,
    RECORD_DETAILED, Outcome, Record, ring_claim, ring_commit,
)
from slot cimport Slot, slot_current

cdef enum:
    # How much input one look throws away; a talker with more is parked anyway.
    DISCARD_OCTETS = 1 << 20


cdef inline Outcome answer(Listening *listening, int fd) noexcept nogil:
    """Say the banner.  The descriptor is still open afterwards.

    OUTCOME_EARLY: the client had talked; this end is half-closed, and the
    caller parks it.  Every other outcome: the caller closes it, and that
    sends what is held back.
    """
    cdef const Slot *slot = slot_current(listening.banner)
    cdef ssize_t said = net_send_held(fd, slot.octets, slot.length)
    cdef ssize_t heard
    if said != <ssize_t>slot.length:
        if said >= 0:
            net_add64(&listening.counters.count[<int>SHORT], 1)
            return OUTCOME_SHORT
        if errno == e.ECONNRESET or errno == e.EPIPE:
            net_add64(&listening.counters.count[<int>RESET], 1)
            return OUTCOME_RESET
        net_add64(&listening.counters.count[<int>FAILED], 1)
        return OUTCOME_FAILED
    heard = net_discard(fd, DISCARD_OCTETS)
    if heard > 0:
        net_half_close(fd)
        net_add64(&listening.counters.count[<int>SENT], 1)
        net_add64(&listening.counters.count[<int>EARLY], 1)
        return OUTCOME_EARLY
    if heard < 0 and errno == e.ECONNRESET:
        net_add64(&listening.counters.count[<int>RESET], 1)
        return OUTCOME_RESET
    net_add64(&listening.counters.count[<int>SENT], 1)
    return OUTCOME_SENT


cdef inline bint wants_detail(Board *board, Worker *worker, int64_t moment) noexcept nogil:
    """Whether this connection gets a line of its own in the log."""
    cdef uint32_t mode = board.detail
    if mode == <uint32_t>Detail.DETAIL_ALL:
        return True
    if mode == <uint32_t>Detail.DETAIL_NONE:
        return False
    if mode == <uint32_t>Detail.DETAIL_CAPPED:
        if moment // 1_000_000 != worker.detail_second:
            worker.detail_second = moment // 1_000_000
            worker.detail_left = board.detail_number
        if worker.detail_left == 0:
            return False
        worker.detail_left -= 1
        return True
    if worker.detail_left == 0:
        worker.detail_left = board.detail_number
    worker.detail_left -= 1
    return worker.detail_left == 0


cdef inline void record(
    Board *board, Worker *worker, Listening *listening, int fd,
    const sockaddr_storage *peer, int64_t moment, Outcome outcome,
) noexcept nogil:
    """Write the connection down, if anything reads the ring.

    The called address is asked of the kernel only for a line in the log, and
    only where the listener is bound to all addresses.
    """
    cdef Record *line
    cdef sockaddr_storage local
    cdef const Facts *facts = listening.facts
    if not board.recording:
        return
    line = ring_claim(&worker.ring)
    if line == NULL:
        return
    line.moment = moment
    line.peer_port = net_unpack(peer, line.peer)
    line.listener = <unsigned short>listening.index
    line.outcome = <unsigned char>outcome
    line.flags = 0
    if wants_detail(board, worker, moment):
        line.flags = RECORD_DETAILED
        line.local_port = <unsigned short>facts.port
        if not facts.wildcard:
            memcpy(line.local, facts.local, 16)
        elif net_local(fd, &local) == 0:
            line.local_port = net_unpack(&local, line.local)
        else:
            memset(line.local, 0, 16)
    if ring_commit(&worker.ring) and board.bell >= 0:
        write(board.bell, b"\0", 1)
