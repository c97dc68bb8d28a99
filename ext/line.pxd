"""A connection record as text: the stable grammar of the log.

Owns: how an address and a record are written.  Promises: only addresses and
ports that the kernel supplied and words of our own appear, never an octet that
a client sent; v4-mapped addresses are written as IPv4; nothing is allocated.

    turned away from=[192.0.2.9]:51322 to=[198.51.100.2]:25 as=NAME persona=P code=N outcome=O

Where the connection came by another address than the one that was called (a
firewall's dnat, a proxy), that one stands as ` via=[...]:2525` behind `to=`.  What stands from ` as=` to `code=N` is the listener's tail for what was said, made
by the shell; where that was not SMTP it has ` proto=P` before the code.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, strlen
from ring cimport (
    OUTCOME_EARLY, OUTCOME_EXPIRED, OUTCOME_FAILED, OUTCOME_FULL, OUTCOME_GONE,
    OUTCOME_HEADLESS, OUTCOME_MISDIVERTED, OUTCOME_RESET, OUTCOME_SENT,
    OUTCOME_STRANGER, RECORD_VIA, Record,
)
from source cimport source_is_ipv4

cdef extern from "<arpa/inet.h>" nogil:
    enum:
        AF_INET6
        INET6_ADDRSTRLEN
    const char *inet_ntop(int family, const void *source, char *text, unsigned int size)

cdef enum:
    # "turned away from=[" + v6 + "]:65535 to=[" + v6 + "]:65535" + " outcome=failed"
    LINE_OCTETS = 18 + 46 + 13 + 46 + 14 + 46 + 7 + 20
    # What the names of JSON's members take beyond that.
    JSON_OCTETS = 96
    STAMP_OCTETS = 19   # 2026-11-22T19:05:00


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


cdef inline const char *outcome_name(uint8_t outcome) noexcept nogil:
    if outcome == OUTCOME_SENT:
        return b"sent"
    elif outcome == OUTCOME_EARLY:
        return b"early"
    elif outcome == OUTCOME_FULL:
        return b"full"
    elif outcome == OUTCOME_RESET:
        return b"reset"
    elif outcome == OUTCOME_FAILED:
        return b"failed"
    elif outcome == OUTCOME_EXPIRED:
        return b"expired"
    elif outcome == OUTCOME_GONE:
        return b"gone"
    elif outcome == OUTCOME_STRANGER:
        return b"stranger"
    elif outcome == OUTCOME_HEADLESS:
        return b"headless"
    elif outcome == OUTCOME_MISDIVERTED:
        return b"misdiverted"
    return b"short"


cdef inline char *put_word(char *at, const char *word) noexcept nogil:
    return put(at, word, strlen(word))


cdef inline char *put_three(char *at, uint32_t number) noexcept nogil:
    """Three digits."""
    at[0] = <char>(48 + number // 100 % 10)
    at[1] = <char>(48 + number // 10 % 10)
    at[2] = <char>(48 + number % 10)
    return at + 3


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
    if record.flags & RECORD_VIA:
        at = put(at, b" via=[", 6)
        at = put_address(at, record.via)
        at = put(at, b"]:", 2)
        at = put_number(at, record.via_port)
    at = put(at, tail, tail_length)
    at = put(at, b" outcome=", 9)
    return put_word(at, outcome_name(record.outcome))


cdef inline char *put_record_json(
    char *at, const Record *record, const char *stamp, const char *tail, size_t tail_length
) noexcept nogil:
    """The same as a JSON object; `stamp` is its second, `tail` members of JSON.

    Needs room for LINE_OCTETS + JSON_OCTETS and the tail.
    """
    at = put(at, b'{"ts":"', 7)
    at = put(at, stamp, STAMP_OCTETS)
    at[0] = c"."
    at = put_three(at + 1, <uint32_t>(record.moment // 1000 % 1000))
    at = put(at, b'Z","event":"turned away","from":"', 33)
    at = put_address(at, record.peer)
    at = put(at, b'","from_port":', 14)
    at = put_number(at, record.peer_port)
    at = put(at, b',"to":"', 7)
    at = put_address(at, record.local)
    at = put(at, b'","to_port":', 12)
    at = put_number(at, record.local_port)
    if record.flags & RECORD_VIA:
        at = put(at, b',"via":"', 8)
        at = put_address(at, record.via)
        at = put(at, b'","via_port":', 13)
        at = put_number(at, record.via_port)
    at[0] = c","
    at = put(at + 1, tail, tail_length)
    at = put(at, b',"outcome":"', 12)
    at = put_word(at, outcome_name(record.outcome))
    return put(at, b'"}', 2)
