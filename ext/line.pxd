"""A connection record as text: the stable grammar of the log.

Owns: how an address and a record are written.  Promises: only addresses and
ports that the kernel supplied and words of our own appear, never an octet that
a client sent; v4-mapped addresses are written as IPv4; nothing is allocated.

    turned away from=[192.0.2.9]:51322 to=[198.51.100.2]:25 as=NAME persona=P code=N outcome=O

What stands from ` as=` to `code=N` is the listener's tail for what was said, made
by the shell; where that was not SMTP it has ` proto=P` before the code.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memcpy, strlen
from ring cimport (
    OUTCOME_EARLY, OUTCOME_EXPIRED, OUTCOME_FAILED, OUTCOME_FULL, OUTCOME_GONE,
    OUTCOME_RESET, OUTCOME_SENT, Record,
)
from source cimport source_is_ipv4

cdef extern from "<arpa/inet.h>" nogil:
    enum:
        AF_INET6
        INET6_ADDRSTRLEN
    const char *inet_ntop(int family, const void *source, char *text, unsigned int size)

cdef enum:
    # "turned away from=[" + v6 + "]:65535 to=[" + v6 + "]:65535" + " outcome=failed"
    LINE_OCTETS = 18 + 46 + 13 + 46 + 7 + 16


cdef inline char *put(char *at, const char *words, size_t length) noexcept nogil:
    memcpy(at, words, length)
    return at + length


cdef inline char *put_number(char *at, uint32_t number) noexcept nogil:
    """Decimal, without leading zeros."""
    cdef char digits[10]
    cdef int count = 0
    while True:
        digits[count] = <char>(48 + number % 10)
        count += 1
        number //= 10
        if number == 0:
            break
    while count > 0:
        count -= 1
        at[0] = digits[count]
        at += 1
    return at


cdef inline char *put_address(char *at, const unsigned char *address) noexcept nogil:
    """16 octets as text: dotted IPv4 when v4-mapped, else RFC 5952.

    Needs room for INET6_ADDRSTRLEN octets.
    """
    cdef int index
    if source_is_ipv4(address):
        for index in range(12, 16):
            at = put_number(at, address[index])
            at[0] = c"."
            at += 1
        return at - 1
    inet_ntop(AF_INET6, address, at, INET6_ADDRSTRLEN)
    return at + strlen(at)


cdef inline char *put_record(
    char *at, const Record *record, const char *tail, size_t tail_length
) noexcept nogil:
    """The whole line, without header or line end.

    Needs room for LINE_OCTETS and the tail.
    """
    at = put(at, b"turned away from=[", 18)
    at = put_address(at, record.peer)
    at = put(at, b"]:", 2)
    at = put_number(at, record.peer_port)
    at = put(at, b" to=[", 5)
    at = put_address(at, record.local)
    at = put(at, b"]:", 2)
    at = put_number(at, record.local_port)
    at = put(at, tail, tail_length)
    if record.outcome == OUTCOME_SENT:
        return put(at, b" outcome=sent", 13)
    elif record.outcome == OUTCOME_EARLY:
        return put(at, b" outcome=early", 14)
    elif record.outcome == OUTCOME_FULL:
        return put(at, b" outcome=full", 13)
    elif record.outcome == OUTCOME_RESET:
        return put(at, b" outcome=reset", 14)
    elif record.outcome == OUTCOME_FAILED:
        return put(at, b" outcome=failed", 15)
    elif record.outcome == OUTCOME_EXPIRED:
        return put(at, b" outcome=expired", 16)
    elif record.outcome == OUTCOME_GONE:
        return put(at, b" outcome=gone", 13)
    return put(at, b" outcome=short", 14)
