"""What protocol does a client speak, by its first octets?

Owns: the recognition of HTTP, TLS, SOCKS4, SOCKS5 and SMTP.  Promises: a pure
function of the octets so far; three answers only: this, need more, none of
them; at most PROBE_OCTETS are ever needed; an answer other than "need more"
is not changed by further octets.

The signs: TLS by a handshake record with a ClientHello (RFC 8446 5.1, 4); SOCKS5
by version and number of methods (RFC 1928 3); SOCKS4 by version and command;
HTTP by a method and a space (RFC 9112 3.1, methods are upper case); SMTP by a
command word and what may follow it (RFC 5321 2.4: in either case).
"""


cdef enum:
    PROBE_OCTETS = 16

cdef enum Guess:
    GUESS_MORE
    GUESS_NONE
    GUESS_SMTP
    GUESS_HTTP
    GUESS_TLS
    GUESS_SOCKS4
    GUESS_SOCKS5


cdef inline Guess probe_word(
    const unsigned char *octets, size_t length, const char *word, size_t word_length, bint fold
) noexcept nogil:
    """GUESS_MORE while `octets` are a beginning of `word`, GUESS_NONE when they
    differ from it, anything else when they begin with the whole of it."""
    cdef size_t index
    cdef unsigned char octet
    for index in range(word_length):
        if index >= length:
            return GUESS_MORE
        octet = octets[index]
        if fold and c"a" <= octet <= c"z":
            octet -= 32
        if octet != <unsigned char>word[index]:
            return GUESS_NONE
    return GUESS_SMTP if fold else GUESS_HTTP


cdef inline Guess probe_text(const unsigned char *octets, size_t length) noexcept nogil:
    """HTTP methods with their space; SMTP commands with what may follow."""
    cdef const char *methods[11]
    cdef const char *commands[18]
    cdef size_t method_lengths[11]
    cdef size_t command_lengths[18]
    cdef int index
    cdef Guess guess
    cdef Guess best = GUESS_NONE
    cdef unsigned char next
    methods[:] = [
        b"GET ", b"HEAD ", b"POST ", b"PUT ", b"CONNECT ", b"OPTIONS ", b"DELETE ",
        b"TRACE ", b"PATCH ", b"PROPFIND ", b"PRI * HTTP/",
    ]
    method_lengths[:] = [4, 5, 5, 4, 8, 8, 7, 6, 6, 9, 11]
    commands[:] = [
        b"EHLO", b"HELO", b"LHLO", b"MAIL", b"RCPT", b"DATA", b"BDAT", b"RSET", b"NOOP",
        b"QUIT", b"VRFY", b"EXPN", b"HELP", b"AUTH", b"ETRN", b"STARTTLS", b"XCLIENT",
        b"XFORWARD",
    ]
    command_lengths[:] = [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 8, 7, 8]
    for index in range(11):
        guess = probe_word(octets, length, methods[index], method_lengths[index], False)
        if guess == GUESS_HTTP:
            return guess
        if guess == GUESS_MORE:
            best = guess
    for index in range(18):
        guess = probe_word(octets, length, commands[index], command_lengths[index], True)
        if guess == GUESS_SMTP:
            if length == command_lengths[index]:
                return GUESS_MORE
            next = octets[command_lengths[index]]
            if next == c" " or next == c"\r" or next == c"\n":
                return guess
        elif guess == GUESS_MORE:
            best = guess
    return best


cdef inline Guess probe(const unsigned char *octets, size_t length) noexcept nogil:
    """What the first octets of a connection say."""
    if length == 0:
        return GUESS_MORE
    if octets[0] == 0x16:
        if length >= 2 and octets[1] != 3:
            return GUESS_NONE
        if length >= 3 and octets[2] > 4:
            return GUESS_NONE
        if length < 6:
            return GUESS_MORE
        return GUESS_TLS if octets[5] == 1 else GUESS_NONE
    if octets[0] == 5:
        if length < 2:
            return GUESS_MORE
        return GUESS_SOCKS5 if octets[1] > 0 else GUESS_NONE
    if octets[0] == 4:
        if length < 2:
            return GUESS_MORE
        return GUESS_SOCKS4 if octets[1] == 1 or octets[1] == 2 else GUESS_NONE
    return probe_text(octets, length)
