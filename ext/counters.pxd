"""What is counted, per worker and listener, and the policy for accept's errnos.

Owns: the list of counters and, for each errno that accept(2) can return, which
counter it moves and what the loop does next.  Promises: one writer a counter
(its worker), any readers, no lock.

The policy, in the order of the enum:
  next   the connection is gone or was refused to us: take the next one
         (accept(2): Linux passes pending network errors of the new socket);
  rest   the system is out of something: leave the listener alone for a while,
         else a level-triggered poller would spin.
"""

from libc cimport errno as e
from libc.stdint cimport uint64_t
from net cimport ENONET, EPROTO

cdef enum Counter:
    ACCEPTED        # connections taken from the queue
    SENT            # answers handed to the kernel whole
    SHORT           # the kernel took only a part of the answer
    FAILED          # the kernel took none of it, and the client had not reset
    RESET           # the client had reset the connection
    EARLY           # talked before the greeting
    PARKED          # early talkers held until EOF or the time limit
    PARK_FULL       # early talkers closed at once, for want of room
    DRAIN_EXPIRED   # answered, and still open at the time limit
    HELD            # held for another reason: their turn to speak, or `drain`
    HELD_STRESSED   # not held: over the high-water mark
    HELD_FULL       # not held: no place left
    HELD_SHARE      # not held: their source has its share
    SACRIFICED      # closed before EOF, for their descriptor
    GONE            # left before they were answered
    STRANGER        # not a proxy of ours, where one must be
    HEADLESS        # no good PROXY header
    MISDIVERTED     # on an allow list
    PROXIED         # PROXY headers read
    EXPIRED         # did not finish their request, or the dialogue, in time
    COMMANDS_WRONG  # 503 in the dialogue of `quit`
    QUITS           # 221 in the dialogue of `quit`
    ANSWERED_HTTP   # 403, 400 and 408
    ANSWERED_TLS
    ANSWERED_SOCKS
    RESTS           # times a listener was rested
    # accept errors: next
    ERR_ECONNABORTED
    ERR_EINTR
    ERR_EPROTO
    ERR_EPERM
    ERR_ENETDOWN
    ERR_ENETUNREACH
    ERR_EHOSTDOWN
    ERR_EHOSTUNREACH
    ERR_ENONET
    ERR_ENOPROTOOPT
    ERR_EOPNOTSUPP
    ERR_ECONNRESET
    ERR_ETIMEDOUT
    # accept errors: rest
    ERR_EMFILE
    ERR_ENFILE
    ERR_ENOBUFS
    ERR_ENOMEM
    ERR_OTHER
    COUNTERS

cdef enum Policy:
    POLICY_NEXT
    POLICY_REST

cdef struct Counters:
    uint64_t count[COUNTERS]


cdef inline Counter counter_of_errno(int error) noexcept nogil:
    """The counter that an errno of accept4 moves; an unknown one is OTHER."""
    if error == e.ECONNABORTED:
        return ERR_ECONNABORTED
    elif error == e.EINTR:
        return ERR_EINTR
    elif error == EPROTO:
        return ERR_EPROTO
    elif error == e.EPERM:
        return ERR_EPERM
    elif error == e.ENETDOWN:
        return ERR_ENETDOWN
    elif error == e.ENETUNREACH:
        return ERR_ENETUNREACH
    elif error == e.EHOSTDOWN:
        return ERR_EHOSTDOWN
    elif error == e.EHOSTUNREACH:
        return ERR_EHOSTUNREACH
    elif error == ENONET:
        return ERR_ENONET
    elif error == e.ENOPROTOOPT:
        return ERR_ENOPROTOOPT
    elif error == e.EOPNOTSUPP:
        return ERR_EOPNOTSUPP
    elif error == e.ECONNRESET:
        return ERR_ECONNRESET
    elif error == e.ETIMEDOUT:
        return ERR_ETIMEDOUT
    elif error == e.EMFILE:
        return ERR_EMFILE
    elif error == e.ENFILE:
        return ERR_ENFILE
    elif error == e.ENOBUFS:
        return ERR_ENOBUFS
    elif error == e.ENOMEM:
        return ERR_ENOMEM
    return ERR_OTHER


cdef inline Policy policy_of(Counter counter) noexcept nogil:
    """What to do after an accept error.  An unknown error rests the listener:
    nothing that the kernel can say ends the loop or makes it spin."""
    if counter >= ERR_EMFILE:
        return POLICY_REST
    return POLICY_NEXT


cdef inline Policy policy_of_errno(int error) noexcept nogil:
    return policy_of(counter_of_errno(error))
