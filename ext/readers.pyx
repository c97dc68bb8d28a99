# cython: language_level=3
"""What the loops read, one call each: `turnaway._readers`.

Owns: a way for Python (tests, fuzzers, a person with a question) to reach the
pure functions of probe.pxd, http.pxd, quit.pxd, proxy.pxd and lists.pxd.  The loops
use those directly and never come here; the daemon does not import this.
"""

from http cimport HTTP_HEAD, HTTP_HTML, READING_MORE, Http, http_begin, http_read
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from lists cimport Lists, lists_find, lists_load
from probe cimport probe as probe_octets
from proxy cimport PROXY_KNOWN, PROXY_MORE, Proxy, proxy_begin, proxy_read
from quit cimport COMMAND_MORE, COMMAND_QUIT, Dialogue, dialogue_octet

GUESSES = ("more", "none", "smtp", "http", "tls", "socks4", "socks5")
READINGS = ("more", "done", "bad")
PROXIED = ("more", "bad", "itself", "known")


def probe(bytes octets):
    """One of GUESSES for the first octets of a connection."""
    return GUESSES[<int>probe_octets(<const unsigned char *><const char *>octets, len(octets))]


def http(chunks):
    """(one of READINGS, is HEAD, accepts HTML, octets left unread) for a request
    that comes in these pieces."""
    cdef Http state
    cdef bytes chunk
    cdef int reading = READING_MORE
    cdef int before
    left = 0
    http_begin(&state)
    for chunk in chunks:
        if reading != READING_MORE:
            left += len(chunk)
            continue
        before = state.octets
        reading = http_read(&state, <const unsigned char *><const char *>chunk, len(chunk))
        if reading != READING_MORE:
            left += len(chunk) - (state.octets - before)
    return (
        READINGS[reading], bool(state.flags & HTTP_HEAD), bool(state.flags & HTTP_HTML), left
    )


def dialogue(chunks):
    """["wrong", ..., "quit"]: the commands in these pieces, up to QUIT."""
    cdef Dialogue state
    cdef bytes chunk
    cdef unsigned char octet
    cdef int command
    state.matched = 0
    state.mute = False
    commands = []
    for chunk in chunks:
        for octet in chunk:
            command = dialogue_octet(&state, octet)
            if command == COMMAND_QUIT:
                return [*commands, "quit"]
            if command != COMMAND_MORE:
                commands.append("wrong")
    return commands


def proxy(chunks):
    """(one of PROXIED, octets left unread, (source, port), (called, port)) for a PROXY
    header that comes in these pieces; addresses of 16 octets, None unless known."""
    cdef Proxy state
    cdef bytes chunk
    cdef int told = PROXY_MORE
    cdef size_t taken
    left = 0
    proxy_begin(&state)
    for chunk in chunks:
        taken = 0
        if told == PROXY_MORE:
            told = proxy_read(
                &state, <const unsigned char *><const char *>chunk, len(chunk), &taken
            )
        left += len(chunk) - taken
    if told != PROXY_KNOWN:
        return PROXIED[told], left, None, None
    return (
        PROXIED[told], left, (<bytes>state.source[:16], state.source_port),
        (<bytes>state.called[:16], state.called_port),
    )


def find(bytes block, addresses):
    """The list of each address of 16 octets, -1 for none, by the block of a
    turnaway.lists.table.Table.  Raises ValueError for another block or address."""
    cdef Lists lists
    cdef bytes address
    cdef size_t length = len(block)
    # Of this length exactly, so that a reading beyond its end can be seen.
    cdef unsigned char *copy = <unsigned char *>malloc(length if length else 1)
    if copy == NULL:
        raise MemoryError()
    memcpy(copy, <const char *>block, length)
    found = []
    try:
        if not lists_load(&lists, copy, length):
            raise ValueError("block: not made by this version's Table")
        for address in addresses:
            if len(address) != 16:
                raise ValueError("address: 16 octets")
            found.append(lists_find(&lists, <const unsigned char *><const char *>address))
    finally:
        free(copy)
    return found
