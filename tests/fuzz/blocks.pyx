# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Blocks of lists, sound and broken, and what is found in them.

Owns: the fuzz target over lists.pxd.  Promises: a block that is refused leaves
nobody on any list; from one that is accepted nothing beyond its end is read, and
every address is on the list that a search from the first step to the last says.

Input: what to do (bit 0: the rest is the block itself; bit 1: one octet of a sound
block is changed), how many steps of IPv4 and of IPv6, which octet and how, then two
octets a step; all of it is also asked for, as addresses.
"""

from libc.stdint cimport UINT32_MAX, UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport abort, free, malloc
from libc.string cimport memcpy, memset

from lists cimport (
    LISTS_FIRST, LISTS_HEAD, LISTS_RUNG, LISTS_SECOND, Lists, lists_big,
    lists_filled, lists_find, lists_load, lists_octets,
)
from source cimport source_is_ipv4

cdef enum:
    MOST_STEPS = 300    # three rungs
    LISTS = 5
    INTRO = 7


cdef inline void claim(bint promised) noexcept nogil:
    if not promised:
        abort()


cdef inline uint64_t grown(uint64_t last, uint8_t by, uint8_t shift, uint64_t most) noexcept nogil:
    """A number above the last one, by a little or by much; `most` at the most."""
    cdef uint64_t more = 1 + (<uint64_t>by << (shift % 60))
    return last + more if more < most - last else most


cdef unsigned char *ladder(
    unsigned char *at, const uint64_t *steps, size_t count, size_t width
) noexcept nogil:
    """One array of numbers as every sixteenth, and so on; behind it."""
    cdef size_t index, every
    cdef uint64_t number
    every = 1
    while True:
        for index in range(lists_filled(count)):
            number = steps[index * every] if index < count else UINT64_MAX
            memcpy(at, &number, width)
            at += width
        if width == 8:
            # The lower halves: the same numbers again.
            for index in range(lists_filled(count)):
                number = steps[index * every] if index < count else UINT64_MAX
                memcpy(at, &number, width)
                at += width
        if count <= LISTS_RUNG:
            return at
        count = lists_filled(count) // LISTS_RUNG
        every *= LISTS_RUNG


cdef unsigned char *sound(
    const unsigned char *data, size_t size, size_t *length
) noexcept nogil:
    """A block that is right, of as many steps as the input says and has octets for."""
    cdef uint64_t head[LISTS_HEAD]
    cdef uint64_t four[MOST_STEPS]
    cdef uint64_t six[MOST_STEPS]
    cdef size_t four_count = 1 + (data[1] | (data[2] & 1) << 8) % MOST_STEPS
    cdef size_t six_count = 1 + (data[3] | (data[2] & 2) << 7) % MOST_STEPS
    cdef size_t index, spot
    cdef unsigned char *block
    cdef unsigned char *at
    four[0] = six[0] = 0
    for index in range(1, four_count):
        spot = INTRO + (2 * index) % (size - INTRO - 1)
        four[index] = grown(four[index - 1], data[spot], data[spot + 1] % 24, UINT32_MAX)
        if four[index] >= UINT32_MAX:
            four_count = index
            break
    for index in range(1, six_count):
        spot = INTRO + (2 * index + 1) % (size - INTRO - 1)
        six[index] = grown(six[index - 1], data[spot], data[spot + 1], UINT64_MAX)
        if six[index] == UINT64_MAX:
            six_count = index
            break
    memset(head, 0, sizeof(head))
    head[0] = <uint64_t>LISTS_FIRST << 32 | LISTS_SECOND
    head[1] = LISTS
    head[2] = four_count
    head[3] = six_count
    length[0] = sizeof(head) + lists_octets(four_count, 4) + lists_octets(six_count, 16)
    block = <unsigned char *>malloc(length[0])
    memcpy(block, head, sizeof(head))
    at = ladder(block + sizeof(head), four, four_count, 4)
    at = ladder(at, six, six_count, 8)
    for index in range(four_count + six_count):
        at[index] = data[INTRO + index % (size - INTRO)] % (LISTS + 1)
    claim(at + four_count + six_count == block + length[0])
    return block


cdef int slowly(const Lists *lists, const unsigned char *address) noexcept nogil:
    """The list of an address, step by step."""
    cdef size_t step, last = 0
    cdef uint64_t high = lists_big(address, 8)
    cdef uint64_t low = lists_big(address + 8, 8)
    if source_is_ipv4(address):
        for step in range(lists.steps4):
            if lists.four[0][step] <= <uint32_t>low:
                last = step
        return lists.numbers4[last] - 1
    for step in range(lists.steps6):
        if lists.high[0][step] < high or (
            lists.high[0][step] == high and lists.low[0][step] <= low
        ):
            last = step
    return lists.numbers6[last] - 1


cdef void asked(const Lists *lists, uint64_t high, uint64_t low) noexcept nogil:
    """One address, and those beside it."""
    cdef unsigned char address[16]
    cdef int beside, index
    cdef int found
    cdef uint64_t here
    for beside in range(-1, 2):
        here = low + <uint64_t>beside
        for index in range(8):
            address[index] = <unsigned char>(high >> (56 - 8 * index))
            address[8 + index] = <unsigned char>(here >> (56 - 8 * index))
        found = lists_find(lists, address)
        claim(-1 <= found < <int>lists.lists or found == -1)
        claim(found == (slowly(lists, address) if lists.lists else -1))


cdef public void fuzz_lists(const unsigned char *data, size_t size) noexcept nogil:
    cdef Lists lists
    cdef unsigned char *block
    cdef size_t length, index
    cdef bint loaded
    cdef uint64_t high, low
    if size < INTRO + 2:
        return
    memset(&lists, 0xEE, sizeof(lists))
    if data[0] & 1:
        length = size - 1
        block = <unsigned char *>malloc(length)
        memcpy(block, data + 1, length)
    else:
        block = sound(data, size, &length)
        if data[0] & 2:
            block[(data[4] | <size_t>data[5] << 8) % length] ^= data[6]
    loaded = lists_load(&lists, block, length)
    claim(loaded or lists.lists == 0)
    claim(loaded or data[0] & 3)
    asked(&lists, 0, 0)
    asked(&lists, UINT64_MAX, UINT64_MAX)
    asked(&lists, 0, 0xFFFFFFFFFFFFULL)
    for index in range(INTRO, min(size, <size_t>64) - 1):
        high = low = 0
        memcpy(&high, data + index, min(size - index, <size_t>8))
        memcpy(&low, data + index, 2)
        asked(&lists, high, low)
        asked(&lists, 0, 0xFFFF00000000ULL | (high & UINT32_MAX))
        if loaded:
            asked(&lists, 0, 0xFFFF00000000ULL | lists.four[0][high % lists.steps4])
            asked(
                &lists, lists.high[0][high % lists.steps6], lists.low[0][high % lists.steps6]
            )
    free(block)
