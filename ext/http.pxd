"""A request, read only as far as it takes to refuse it.

Owns: the state of one HTTP/1 request (RFC 9112 2 to 5) between two reads.
Promises: octet by octet, whatever the split; keeps no text of the client, only
whether the method is HEAD and whether the Accept field names text/html; never
reads more than HTTP_OCTETS.  Not a parser: it says `done` at the empty line,
or when that many octets have come without one (an answer is all we have to
give, and it does not depend on the rest), and `bad` as soon as something
cannot be HTTP/1.
"""

from libc.stdint cimport uint8_t, uint16_t

cdef enum:
    HTTP_OCTETS = 8192
    HTTP_METHOD_OCTETS = 20

cdef enum Reading:
    READING_MORE
    READING_DONE
    READING_BAD

cdef enum Stage:
    STAGE_START         # empty lines before the request line (RFC 9112 2.2)
    STAGE_METHOD
    STAGE_TARGET
    STAGE_VERSION
    STAGE_VERSION_END   # optional CR seen or not, LF must come
    STAGE_LINE          # at the beginning of a field line
    STAGE_NAME
    STAGE_VALUE
    STAGE_EMPTY         # CR of the empty line seen

cdef enum:
    HTTP_HEAD = 1       # the method so far is a beginning of HEAD, or is HEAD
    HTTP_ACCEPT = 2     # the field name so far is a beginning of Accept, or is it
    HTTP_HTML = 4       # Accept named text/html

cdef struct Http:
    uint16_t octets
    uint8_t stage
    uint8_t matched     # octets of the current word or target, capped
    uint8_t flags


cdef inline bint http_token(unsigned char octet) noexcept nogil:
    """tchar of RFC 9110 5.6.2."""
    if c"a" <= octet <= c"z" or c"A" <= octet <= c"Z" or c"0" <= octet <= c"9":
        return True
    return (
        octet == c"!" or octet == c"#" or octet == c"$" or octet == c"%" or octet == c"&"
        or octet == c"'" or octet == c"*" or octet == c"+" or octet == c"-" or octet == c"."
        or octet == c"^" or octet == c"_" or octet == c"`" or octet == c"|" or octet == c"~"
    )


cdef inline void http_begin(Http *http) noexcept nogil:
    http.octets = 0
    http.stage = STAGE_START
    http.matched = 0
    http.flags = HTTP_HEAD


cdef inline Reading http_octet(Http *http, unsigned char octet) noexcept nogil:
    cdef const char *head = b"HEAD"
    cdef const char *version = b"HTTP/1.1"
    cdef const char *accept = b"accept"
    cdef const char *html = b"text/html"
    cdef unsigned char folded = octet
    if c"A" <= octet <= c"Z":
        folded = octet + 32
    if http.stage == STAGE_START:
        if octet == c"\r" or octet == c"\n":
            return READING_MORE
        http.stage = STAGE_METHOD
    if http.stage == STAGE_METHOD:
        if octet == c" ":
            if http.matched == 0:
                return READING_BAD
            if http.matched != 4:
                http.flags &= ~HTTP_HEAD
            http.stage = STAGE_TARGET
            http.matched = 0
            return READING_MORE
        if not http_token(octet) or http.matched >= HTTP_METHOD_OCTETS:
            return READING_BAD
        if http.matched >= 4 or octet != <unsigned char>head[http.matched]:
            http.flags &= ~HTTP_HEAD
        http.matched += 1
        return READING_MORE
    if http.stage == STAGE_TARGET:
        if octet == c" ":
            if http.matched == 0:
                return READING_BAD
            http.stage = STAGE_VERSION
            http.matched = 0
            return READING_MORE
        http.matched = 1
        return READING_MORE if octet > 32 and octet != 127 else READING_BAD
    if http.stage == STAGE_VERSION:
        # HTTP/1.0, 1.1, and whatever else two digits say: the answer is HTTP/1.1.
        if http.matched == 5 or http.matched == 7:
            if not c"0" <= octet <= c"9":
                return READING_BAD
        elif octet != <unsigned char>version[http.matched]:
            return READING_BAD
        http.matched += 1
        if http.matched == 8:
            http.stage = STAGE_VERSION_END
        return READING_MORE
    if http.stage == STAGE_VERSION_END:
        if octet == c"\n":
            http.stage = STAGE_LINE
            return READING_MORE
        if octet != c"\r" or http.matched != 8:
            return READING_BAD
        http.matched += 1
        return READING_MORE
    if http.stage == STAGE_EMPTY:
        return READING_DONE if octet == c"\n" else READING_BAD
    if http.stage == STAGE_LINE:
        if octet == c"\n":
            return READING_DONE
        if octet == c"\r":
            http.stage = STAGE_EMPTY
            return READING_MORE
        http.matched = 0
        if octet == c" " or octet == c"\t":
            # obs-fold (RFC 9112 5.2): more of the last field's value.
            http.stage = STAGE_VALUE
            return READING_MORE
        http.flags |= HTTP_ACCEPT
        http.stage = STAGE_NAME
    if http.stage == STAGE_NAME:
        if octet == c":":
            if http.matched == 0:
                return READING_BAD
            if http.matched != 6:
                http.flags &= ~HTTP_ACCEPT
            http.stage = STAGE_VALUE
            http.matched = 0
            return READING_MORE
        if not http_token(octet):
            return READING_BAD
        if http.matched >= 6 or folded != <unsigned char>accept[http.matched]:
            http.flags &= ~HTTP_ACCEPT
        if http.matched < 255:
            http.matched += 1
        return READING_MORE
    # STAGE_VALUE
    if octet == c"\n":
        http.stage = STAGE_LINE
        return READING_MORE
    if octet == 0 or (octet < 32 and octet != c"\t" and octet != c"\r"):
        return READING_BAD
    if http.flags & HTTP_ACCEPT:
        # After a mismatch it starts over, with this octet perhaps its first:
        # misses only words such as textext/html, which nobody sends.
        if folded != <unsigned char>html[http.matched]:
            http.matched = 0
        if folded == <unsigned char>html[http.matched]:
            http.matched += 1
            if http.matched == 9:
                http.flags |= HTTP_HTML
                http.matched = 0
    return READING_MORE


cdef inline Reading http_read(
    Http *http, const unsigned char *octets, size_t length
) noexcept nogil:
    """Read on; what is known after these octets."""
    cdef size_t index
    cdef Reading reading
    for index in range(length):
        reading = http_octet(http, octets[index])
        http.octets += 1
        if reading != READING_MORE:
            return reading
        if http.octets >= HTTP_OCTETS:
            return READING_DONE if http.stage >= STAGE_LINE else READING_BAD
    return READING_MORE
