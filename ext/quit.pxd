"""The dialogue of `quit`: every command is wrong, but QUIT.

Owns: the state of one client's command lines between two reads (RFC 5321 3.1:
after a 554 greeting the server waits for QUIT and answers anything else 503).
Promises: octet by octet, whatever the split; keeps no text of the client, only
how much of the word QUIT the line so far is; lines of any length are one
command.
"""

from libc.stdint cimport uint8_t

cdef enum:
    QUIT_OTHER = 255    # this line is not QUIT

cdef enum Command:
    COMMAND_MORE        # the line has not ended
    COMMAND_OTHER
    COMMAND_QUIT

cdef struct Dialogue:
    uint8_t matched     # octets of QUIT, 4 the word, 5 a space after it
    uint8_t mute        # it does not read its replies


cdef inline Command dialogue_octet(Dialogue *dialogue, unsigned char octet) noexcept nogil:
    cdef const char *word = b"QUIT"
    cdef Command command
    if octet == c"\n":
        command = (
            COMMAND_QUIT if 4 <= dialogue.matched <= 5 else COMMAND_OTHER
        )
        dialogue.matched = 0
        return command
    if c"a" <= octet <= c"z":
        octet -= 32
    if dialogue.matched < 4:
        if octet == <unsigned char>word[dialogue.matched]:
            dialogue.matched += 1
        else:
            dialogue.matched = QUIT_OTHER
    elif dialogue.matched <= 5:
        # RFC 5321 4.1.1: trailing white space is tolerated, QUIT has no argument.
        if octet == c" " or octet == c"\t" or octet == c"\r":
            dialogue.matched = 5
        else:
            dialogue.matched = QUIT_OTHER
    return COMMAND_MORE
