"""The PROXY protocol, versions 1 and 2: who really called, said by a proxy.

Owns: the reading of one header, in as many pieces as it comes (the "PROXY
protocol" document of HAProxy, sections 2.1 and 2.2).  Promises: never more than
a header is taken, for what follows is the client's; a header is at most
PROXY_LINE octets (version 1) or 16 + 65535 (version 2), of which the TLVs are
counted and not kept; what differs from the document in one octet is bad.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy, memset

cdef extern from "<arpa/inet.h>" nogil:
    enum:
        AF_INET
        AF_INET6
    int inet_pton(int family, const char *text, void *address)

cdef enum:
    PROXY_LINE = 107        # version 1, with CRLF
    PROXY_FIXED = 16        # version 2: signature, command, family, length

cdef enum Proxied:
    PROXY_MORE
    PROXY_BAD
    # LOCAL, UNKNOWN, or a family that is not TCP's: the addresses of the connection hold.
    PROXY_ITSELF
    PROXY_KNOWN             # `source` and `called` are set

cdef struct Proxy:
    uint8_t filled
    uint32_t skip           # octets of TLVs that are still to come
    uint8_t known           # 1 once the addresses of version 2 are read
    unsigned char octets[PROXY_LINE + 1]
    unsigned char source[16]    # IPv4 as v4-mapped
    unsigned char called[16]
    uint16_t source_port
    uint16_t called_port


cdef inline void proxy_begin(Proxy *proxy) noexcept nogil:
    proxy.filled = 0
    proxy.skip = 0
    proxy.known = 0


cdef inline uint16_t proxy_port(const unsigned char *at) noexcept nogil:
    return <uint16_t>((at[0] << 8) | at[1])


cdef inline void proxy_four(unsigned char *address, const unsigned char *four) noexcept nogil:
    memset(address, 0, 10)
    address[10] = address[11] = 0xFF
    memcpy(address + 12, four, 4)


cdef inline bint proxy_number(const char **at, char end, uint16_t *port) noexcept nogil:
    """A port in decimal without leading zeros, and `end` behind it."""
    cdef uint32_t number = 0
    cdef int digits = 0
    while 48 <= at[0][0] <= 57 and digits < 5:
        number = number * 10 + <uint32_t>(at[0][0] - 48)
        at[0] += 1
        digits += 1
        if number == 0 and digits == 1 and at[0][0] != end:
            return False
    if digits == 0 or number > 65535 or at[0][0] != end:
        return False
    at[0] += 1
    port[0] = <uint16_t>number
    return True


cdef inline bint proxy_address(
    const char **at, const char *end, int family, unsigned char *address
) noexcept nogil:
    """An address and a blank behind it; inet_pton(3) knows no other notation."""
    cdef char text[46]
    cdef unsigned char four[4]
    cdef const char *blank = <const char *>memchr(at[0], 32, <size_t>(end - at[0]))
    cdef size_t length
    if blank == NULL:
        return False
    length = <size_t>(blank - at[0])
    if length == 0 or length >= sizeof(text) or memchr(at[0], 0, length) != NULL:
        return False
    memcpy(text, at[0], length)
    text[length] = 0
    at[0] = blank + 1
    if family == AF_INET6:
        return inet_pton(AF_INET6, text, address) == 1
    if inet_pton(AF_INET, text, four) != 1:
        return False
    proxy_four(address, four)
    return True


cdef inline Proxied proxy_line(Proxy *proxy) noexcept nogil:
    """A whole line of version 1: its LF was the last octet."""
    cdef const char *at = <const char *>proxy.octets
    cdef const char *end = at + proxy.filled
    cdef int family
    proxy.octets[proxy.filled] = 0
    if proxy.filled < 15 or proxy.octets[proxy.filled - 2] != 13:
        return PROXY_BAD
    if memcmp(at, b"PROXY UNKNOWN", 13) == 0 and (at[13] == 32 or proxy.filled == 15):
        return PROXY_ITSELF
    if memcmp(at, b"PROXY TCP4 ", 11) == 0:
        family = AF_INET
    elif memcmp(at, b"PROXY TCP6 ", 11) == 0:
        family = AF_INET6
    else:
        return PROXY_BAD
    at += 11
    if (
        proxy_address(&at, end, family, proxy.source)
        and proxy_address(&at, end, family, proxy.called)
        and proxy_number(&at, 32, &proxy.source_port)
        and proxy_number(&at, 13, &proxy.called_port)
        and at[0] == 10
    ):
        return PROXY_KNOWN
    return PROXY_BAD


cdef inline uint32_t proxy_wants(const Proxy *proxy) noexcept nogil:
    """Of version 2, with the fixed part read: octets of addresses that we read."""
    if proxy.octets[12] & 0x0F == 0:
        return 0
    if proxy.octets[13] == 0x11:
        return 12
    if proxy.octets[13] == 0x21:
        return 36
    return 0


cdef inline Proxied proxy_fixed(Proxy *proxy) noexcept nogil:
    """The fixed part of version 2 is there."""
    cdef uint32_t length = proxy_port(proxy.octets + 14)
    cdef uint8_t command = proxy.octets[12] & 0x0F
    cdef uint8_t family = proxy.octets[13]
    if proxy.octets[12] >> 4 != 2 or command > 1:
        return PROXY_BAD
    # That of LOCAL is ignored, whatever it is.
    if command == 1 and (family >> 4 > 3 or family & 0x0F > 2):
        return PROXY_BAD
    if length < proxy_wants(proxy):
        return PROXY_BAD
    proxy.skip = length - proxy_wants(proxy)
    return PROXY_MORE


cdef inline Proxied proxy_addresses(Proxy *proxy) noexcept nogil:
    """All of version 2 is there."""
    cdef const unsigned char *at = proxy.octets + PROXY_FIXED
    cdef uint32_t wanted = proxy_wants(proxy)
    if wanted == 0:
        return PROXY_ITSELF
    if wanted == 12:
        proxy_four(proxy.source, at)
        proxy_four(proxy.called, at + 4)
        at += 8
    else:
        memcpy(proxy.source, at, 16)
        memcpy(proxy.called, at + 16, 16)
        at += 32
    proxy.source_port = proxy_port(at)
    proxy.called_port = proxy_port(at + 2)
    return PROXY_KNOWN


cdef inline Proxied proxy_read(
    Proxy *proxy, const unsigned char *octets, size_t length, size_t *taken
) noexcept nogil:
    """Read on; `taken` of these octets belong to the header.

    With PROXY_MORE all of them do, and the next ones are awaited.
    """
    cdef const unsigned char *signature = b"\r\n\r\n\0\r\nQUIT\n"
    cdef const unsigned char *word = b"PROXY "
    cdef bint second
    cdef Proxied told
    cdef size_t step
    taken[0] = 0
    while taken[0] < length:
        if proxy.known:
            step = min(<size_t>proxy.skip, length - taken[0])
            proxy.skip -= <uint32_t>step
            taken[0] += step
            return proxy_addresses(proxy) if proxy.skip == 0 else PROXY_MORE
        proxy.octets[proxy.filled] = octets[taken[0]]
        proxy.filled += 1
        taken[0] += 1
        second = proxy.octets[0] == 13
        if second:
            if proxy.filled <= 12:
                if proxy.octets[proxy.filled - 1] != signature[proxy.filled - 1]:
                    return PROXY_BAD
            elif proxy.filled == PROXY_FIXED:
                told = proxy_fixed(proxy)
                if told != PROXY_MORE:
                    return told
            if (
                proxy.filled >= PROXY_FIXED
                and proxy.filled == PROXY_FIXED + proxy_wants(proxy)
            ):
                proxy.known = 1
                if proxy.skip == 0:
                    return proxy_addresses(proxy)
        else:
            if proxy.filled <= 6:
                if proxy.octets[proxy.filled - 1] != word[proxy.filled - 1]:
                    return PROXY_BAD
            elif proxy.octets[proxy.filled - 1] == 10:
                return proxy_line(proxy)
            if proxy.filled == PROXY_LINE:
                return PROXY_BAD
    return PROXY_MORE
