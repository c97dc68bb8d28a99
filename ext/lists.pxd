"""Which list an address is on.

Owns: the reading of the block that turnaway/lists/table.py makes, whose layout
is told there, and the search in it.  Promises: no lock, no allocation, nothing
written after `lists_load`; what that has accepted is never read beyond its end,
whatever is asked.

A search goes down the ladder: of 16 neighbouring steps it takes the last that
is not above the address, without a branch that could be guessed wrong, and goes
on with the 16 that this step stands for.  At 500,000 networks that is five
arrays, of which the first three stay in the cache.
"""

from libc.stdint cimport UINT32_MAX, uint8_t, uint32_t, uint64_t, uintptr_t
from source cimport source_is_ipv4

cdef extern from *:
    # The compilers that build CPython's extensions on a Unix have it: gcc and clang.
    void lists_fetch "__builtin_prefetch"(const void *memory) nogil

cdef enum:
    LISTS_MOST = 64
    LISTS_RUNG = 16
    LISTS_RUNGS = 7         # 16 ** 7 is LISTS_STEPS
    LISTS_STEPS = 1 << 28   # of one family
    LISTS_HEAD = 8          # uint64 before the ladders: a line of the cache
    LISTS_FIRST = 0x7475726E    # the magic: "turn", "list"
    LISTS_SECOND = 0x6C697374

cdef struct Lists:
    uint32_t lists          # how many; 0: nobody is on any
    int rungs4              # arrays of the ladder
    int rungs6
    uint32_t steps4
    uint32_t steps6
    const uint32_t *four[LISTS_RUNGS]   # [0] has all steps, the last the fewest
    const uint64_t *high[LISTS_RUNGS]
    const uint64_t *low[LISTS_RUNGS]
    const uint8_t *numbers4
    const uint8_t *numbers6


cdef inline size_t lists_filled(size_t steps) noexcept nogil:
    """As many, up to a multiple of LISTS_RUNG."""
    return (steps + LISTS_RUNG - 1) & ~<size_t>(LISTS_RUNG - 1)


cdef inline bint lists_ladder4(Lists *lists, const unsigned char **at) noexcept nogil:
    """Find the arrays of IPv4 and check what they promise; `at` goes behind them."""
    cdef size_t steps = lists.steps4
    cdef size_t step
    cdef int rung = 0
    while True:
        lists.four[rung] = <const uint32_t *>at[0]
        for step in range(steps):
            if rung > 0:
                if lists.four[rung][step] != lists.four[rung - 1][step * LISTS_RUNG]:
                    return False
            elif step == 0:
                if lists.four[0][0]:
                    return False
            elif lists.four[0][step] <= lists.four[0][step - 1]:
                return False
        for step in range(steps, lists_filled(steps)):
            if lists.four[rung][step] != UINT32_MAX:
                return False
        at[0] += 4 * lists_filled(steps)
        rung += 1
        if steps <= LISTS_RUNG:
            break
        steps = lists_filled(steps) // LISTS_RUNG
    lists.rungs4 = rung
    return True


cdef inline bint lists_ladder6(Lists *lists, const unsigned char **at) noexcept nogil:
    """The same of IPv6."""
    cdef size_t steps = lists.steps6
    cdef size_t step
    cdef const uint64_t *high
    cdef const uint64_t *low
    cdef int rung = 0
    while True:
        high = lists.high[rung] = <const uint64_t *>at[0]
        low = lists.low[rung] = high + lists_filled(steps)
        for step in range(steps):
            if rung > 0:
                if high[step] != lists.high[rung - 1][step * LISTS_RUNG]:
                    return False
                if low[step] != lists.low[rung - 1][step * LISTS_RUNG]:
                    return False
            elif step == 0:
                if high[0] or low[0]:
                    return False
            elif high[step] < high[step - 1]:
                return False
            elif high[step] == high[step - 1] and low[step] <= low[step - 1]:
                return False
        for step in range(steps, lists_filled(steps)):
            if ~(high[step] & low[step]):
                return False
        at[0] += 16 * lists_filled(steps)
        rung += 1
        if steps <= LISTS_RUNG:
            break
        steps = lists_filled(steps) // LISTS_RUNG
    lists.rungs6 = rung
    return True


cdef inline size_t lists_octets(size_t steps, size_t width) noexcept nogil:
    """What the ladder of so many steps takes, and their numbers."""
    cdef size_t octets = steps
    while True:
        octets += width * lists_filled(steps)
        if steps <= LISTS_RUNG:
            return octets
        steps = lists_filled(steps) // LISTS_RUNG


cdef inline bint lists_load(
    Lists *lists, const unsigned char *block, size_t length
) noexcept nogil:
    """Look addresses up in `block` from now on; False when it is none of table.py's,
    and then nobody is on any list.

    The block stays the caller's: it must not change nor go while `lists` is used.
    It begins at a multiple of 8; at a multiple of 64 a search reads fewer lines of
    the cache.
    """
    cdef const uint64_t *head = <const uint64_t *>block
    cdef const unsigned char *at = block + LISTS_HEAD * 8
    cdef uint32_t step
    lists.lists = 0
    if length < LISTS_HEAD * 8 or <uintptr_t>block % 8:
        return False
    if head[0] != (<uint64_t>LISTS_FIRST << 32 | LISTS_SECOND) or head[1] > LISTS_MOST:
        return False
    if not (1 <= head[2] <= LISTS_STEPS and 1 <= head[3] <= LISTS_STEPS):
        return False
    if length != LISTS_HEAD * 8 + lists_octets(head[2], 4) + lists_octets(head[3], 16):
        return False
    lists.steps4 = <uint32_t>head[2]
    lists.steps6 = <uint32_t>head[3]
    if not lists_ladder4(lists, &at) or not lists_ladder6(lists, &at):
        return False
    lists.numbers4 = at
    lists.numbers6 = at + lists.steps4
    for step in range(lists.steps4):
        if lists.numbers4[step] > head[1]:
            return False
    for step in range(lists.steps6):
        if lists.numbers6[step] > head[1]:
            return False
    lists.lists = <uint32_t>head[1]
    return True


cdef inline uint64_t lists_big(const unsigned char *octets, int count) noexcept nogil:
    """Octets in the order of the net as a number."""
    cdef uint64_t number = 0
    cdef int at
    for at in range(count):
        number = number << 8 | octets[at]
    return number


cdef inline size_t lists_step4(const Lists *lists, uint32_t address) noexcept nogil:
    """The last step not above an address."""
    cdef const uint32_t *near
    cdef size_t step = 0
    cdef size_t here
    cdef int rung
    if address == UINT32_MAX:   # as high as what the arrays are filled up with
        return lists.steps4 - 1
    for rung in range(lists.rungs4 - 1, -1, -1):
        step *= LISTS_RUNG
        near = lists.four[rung] + step
        if rung == 0:
            lists_fetch(lists.numbers4 + step)
        here = <size_t>(near[8] <= address) << 3
        here += <size_t>(near[here + 4] <= address) << 2
        here += <size_t>(near[here + 2] <= address) << 1
        here += <size_t>(near[here + 1] <= address)
        step += here
    return step


cdef inline size_t lists_step6(
    const Lists *lists, uint64_t high, uint64_t low
) noexcept nogil:
    """The same for IPv6.  The lower halves are read only where a higher one is met,
    so what a search reads is half as large."""
    cdef const uint64_t *near
    cdef size_t step = 0
    cdef size_t here
    cdef int rung, other
    if ~(high & low) == 0:
        return lists.steps6 - 1
    for rung in range(lists.rungs6 - 1, -1, -1):
        step *= LISTS_RUNG
        near = lists.high[rung] + step
        if rung == 0:
            # What may be wanted next comes from memory at the same time.
            lists_fetch(lists.numbers6 + step)
            lists_fetch(lists.low[0] + step)
            lists_fetch(lists.low[0] + step + LISTS_RUNG // 2)
        here = 0
        for other in range(1, LISTS_RUNG):
            here += near[other] < high
        while (
            here < LISTS_RUNG - 1 and near[here + 1] == high
            and lists.low[rung][step + here + 1] <= low
        ):
            here += 1
        step += here
    return step


cdef inline int lists_find(const Lists *lists, const unsigned char *address) noexcept nogil:
    """The list that 16 octets are on (IPv4 as v4-mapped), counted from 0; -1 for none."""
    if lists.lists == 0:
        return -1
    if source_is_ipv4(address):
        return lists.numbers4[lists_step4(lists, <uint32_t>lists_big(address + 12, 4))] - 1
    return lists.numbers6[
        lists_step6(lists, lists_big(address, 8), lists_big(address + 8, 8))
    ] - 1
