# The long arrays of a GGUF header, scanned without a Python object for each element.
#
# The bytes are a stranger's: no length is believed before it was compared with what is there. Like
# the files that llama.cpp loads, everything here is little-endian.
import os as _os

from libc.stdint cimport UINT32_MAX, int32_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy
from libcpp.vector cimport vector

cdef extern from "<cstring>" nogil:
    const void * memchr(const void * data, int byte, size_t size)

cdef extern from *:
    ctypedef unsigned long long Product "unsigned __int128"
    void prefetch "__builtin_prefetch"(const void * address) nogil

# The prime 2^61 - 1, modulo which a product needs no division.
cdef uint64_t MERSENNE = (<uint64_t> 1 << 61) - 1
cdef uint64_t LOW_7_BYTES = (<uint64_t> 1 << 56) - 1
cdef uint64_t HIGH_4_BYTES = ~<uint64_t> UINT32_MAX
cdef enum:
    LONGEST_STAND_IN = 24  # "[EMPTY_4294967295]" and its end
    AHEAD = 16


cdef inline bint length_at(const char * header, size_t size, size_t position,
                           uint64_t * length) noexcept nogil:
    """The length of the string at a position; False if it reaches past the header."""
    if position > size or size - position < 8:
        return False
    memcpy(length, header + position, 8)
    return length[0] <= size - position - 8


cdef inline uint64_t times(uint64_t a, uint64_t b) noexcept nogil:
    """a * b modulo 2^61 - 1, or little more than that."""
    cdef Product product = <Product> a * b
    cdef uint64_t folded = <uint64_t> (product & MERSENNE) + <uint64_t> (product >> 61)
    return (folded & MERSENNE) + (folded >> 61)


cdef inline uint64_t hash_of(Text text, uint64_t key) noexcept nogil:
    """The text as a polynomial of its pieces of 7 bytes, at a point that nobody can foresee.

    So nobody can choose texts that collide (Carter and Wegman, "Universal classes of hash
    functions", 1979). The bits are mixed once more for the table, which takes some of them.
    """
    cdef uint64_t value = text.size
    cdef uint64_t piece
    cdef size_t done = 0
    while done + 8 <= text.size:  # whole words are faster to read; the eighth byte is the next's
        memcpy(&piece, text.data + done, 8)
        value = times(value + (piece & LOW_7_BYTES), key)
        done += 7
    while done < text.size:
        piece = 0
        memcpy(&piece, text.data + done, min(<size_t> 7, text.size - done))
        value = times(value + piece, key)
        done += 7
    value ^= value >> 32
    value *= <uint64_t> 0x9E3779B97F4A7C15
    return value ^ (value >> 29)


def step_over_strings(bytes header, size_t position, size_t count):
    """Step over the strings of an array, as far as they lie in the header.

    Returns:
        How many were passed, and where the next one starts.
    """
    cdef const char * data = header
    cdef size_t size = len(header)
    cdef size_t passed = 0
    cdef uint64_t length
    with nogil:
        while passed < count and length_at(data, size, position, &length):
            position += 8 + length
            passed += 1
    return passed, position


def find_int32(bytes header, size_t start, size_t count, int32_t value, size_t first):
    """The index, from ``first`` on, of a value in an array of 32-bit integers, or None."""
    cdef const char * numbers = _numbers_at(header, start, count)
    cdef size_t index = first
    cdef int32_t number
    with nogil:
        while index < count:
            memcpy(&number, numbers + 4 * index, 4)
            if number == value:
                break
            index += 1
    return index if index < count else None


def find_nan(bytes header, size_t start, size_t count):
    """The index of the first value in an array of 32-bit floats that is not a number, or None."""
    cdef const char * numbers = _numbers_at(header, start, count)
    cdef size_t index = 0
    cdef float number
    with nogil:
        while index < count:
            memcpy(&number, numbers + 4 * index, 4)
            if number != number:
                break
            index += 1
    return index if index < count else None


cdef const char * _numbers_at(bytes header, size_t start, size_t count) except NULL:
    cdef size_t size = len(header)
    if start > size or count > (size - start) // 4:
        raise ValueError(f"{count} numbers from byte {start} on reach past {size} bytes")
    return <const char *> header + start


@cython.auto_pickle(False)
cdef class StringArray:
    """The strings of an array in a GGUF header: a sequence of bytes objects, made when asked for.

    Args:
        header: The header.
        start: Where the first string's length is.
        count: How many strings there are.

    Raises:
        ValueError: They reach past the header.
    """

    def __cinit__(self):
        self.starts.push_back(0)  # no strings

    def __init__(self, bytes header, size_t start, size_t count):
        cdef const char * data = header
        cdef size_t size = len(header)
        cdef size_t position = start
        cdef uint64_t length
        cdef vector[uint32_t] starts
        if size >= UINT32_MAX or count > size // 8:
            raise ValueError(f"{count} strings in {size} bytes are too many")
        starts.reserve(count + 1)
        with nogil:
            starts.push_back(<uint32_t> position)
            while starts.size() <= count and length_at(data, size, position, &length):
                position += 8 + length
                starts.push_back(<uint32_t> position)
        if starts.size() <= count:
            raise ValueError(f"string {starts.size() - 1} reaches past the header")
        self.header = header
        self.data = data
        self.starts.swap(starts)

    def __len__(self):
        return self.starts.size() - 1

    def __getitem__(self, Py_ssize_t index):
        if not 0 <= index < <Py_ssize_t> (self.starts.size() - 1):
            raise IndexError(f"there is no string {index}")
        return self.header[self.starts[index] + 8:self.starts[index + 1]]

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    @property
    def longest(self):
        """The length of the longest string, in bytes."""
        cdef size_t i
        cdef size_t found = 0
        with nogil:
            for i in range(self.starts.size() - 1):
                found = max(found, self.raw(i).size)
        return found

    def find_duplicate(self):
        """The index of the first token that an earlier one equals in llama.cpp's eyes, or None.

        llama.cpp cuts a token at a NUL, and calls the empty one with the index 5 ``[EMPTY_5]``.
        """
        cdef uint64_t key = int.from_bytes(_os.urandom(8), "little") % MERSENNE
        cdef size_t n = self.starts.size() - 1
        cdef size_t found
        cdef size_t n_slots = 16
        while n_slots < 2 * n:
            n_slots *= 2
        # A slot is half a hash and, one more than, the index of the token that it stands for.
        cdef vector[uint64_t] slots = vector[uint64_t](n_slots)
        with nogil:
            found = self.first_duplicate(slots, key)
        return found if found < n else None

    def find_without_gap(self):
        """The index of the first string with no space behind its first byte, or None.

        A merge is two pieces with a space between them, and the first piece may begin with one.
        """
        cdef size_t i = 0
        cdef size_t n = self.starts.size() - 1
        cdef Text text
        with nogil:
            while i < n:
                text = self.raw(i)
                if text.size < 2 or memchr(text.data + 1, b" ", text.size - 1) is NULL:
                    break
                i += 1
        return i if i < n else None

    def find_dead_end(self):
        """The first byte of an RWKV token that is no token by itself, or None.

        RWKV's tokenizer, which takes the longest token it finds, never ends on such a byte.
        """
        cdef bint[256] begins
        cdef bint[256] alone
        cdef size_t i
        cdef int byte
        cdef bint single
        cdef char[LONGEST_STAND_IN] stand_in
        with nogil:
            for byte in range(256):
                begins[byte] = alone[byte] = False
            for i in range(self.starts.size() - 1):
                byte = first_unescaped(self.text(i, stand_in), &single)
                if byte >= 0:
                    begins[byte] = True
                    alone[byte] = alone[byte] or single
        for byte in range(256):
            if begins[byte] and not alone[byte]:
                return bytes((byte,))
        return None

    cdef Text raw(self, size_t index) noexcept nogil:
        cdef Text text
        text.data = <const unsigned char *> self.data + self.starts[index] + 8
        text.size = self.starts[index + 1] - self.starts[index] - 8
        return text

    cdef Text text(self, size_t index, char * stand_in) noexcept nogil:
        """A token as llama.cpp reads it; where it is empty, ``stand_in`` takes its text."""
        cdef Text text = self.raw(index)
        cdef const void * end = memchr(text.data, 0, text.size) if text.size else NULL
        if end is not NULL:
            text.size = <const unsigned char *> end - text.data
        if text.size == 0:
            text.data = <const unsigned char *> stand_in
            text.size = snprintf(stand_in, LONGEST_STAND_IN, b"[EMPTY_%u]", <unsigned int> index)
        return text

    cdef size_t first_duplicate(self, vector[uint64_t] & slots, uint64_t key) noexcept nogil:
        cdef size_t i, slot
        cdef size_t n = self.starts.size() - 1
        cdef size_t mask = slots.size() - 1
        cdef uint64_t hashed, tag
        cdef Text one, other
        cdef uint64_t[AHEAD] hashes  # of the next tokens, whose slots are on their way from memory
        cdef char[LONGEST_STAND_IN] stand_in
        cdef char[LONGEST_STAND_IN] other_stand_in
        for i in range(n + AHEAD):
            hashed = hashes[i % AHEAD]
            if i < n:
                hashes[i % AHEAD] = hash_of(self.text(i, stand_in), key)
                prefetch(&slots[hashes[i % AHEAD] & mask])
            if i < AHEAD:
                continue
            one = self.text(i - AHEAD, stand_in)
            tag = hashed & HIGH_4_BYTES
            slot = hashed & mask
            while slots[slot]:
                if slots[slot] & HIGH_4_BYTES == tag:
                    other = self.text((slots[slot] & UINT32_MAX) - 1, other_stand_in)
                    if other.size == one.size and memcmp(other.data, one.data, one.size) == 0:
                        return i - AHEAD
                slot = (slot + 1) & mask
            slots[slot] = tag | (i - AHEAD + 1)
        return n


cdef int first_unescaped(Text text, bint * single) noexcept nogil:
    """The first byte of an RWKV token, its escapes undone, or -1; ``single`` if it has no other."""
    cdef size_t i
    cdef int first = -1
    cdef int hex_digits = 0
    cdef bint escaped = False
    cdef unsigned char byte = 0
    cdef unsigned char c
    for i in range(text.size):
        c = text.data[i]
        if hex_digits:
            byte = <unsigned char> (byte * 16 + (c - 87 if c >= 97 and c < 128 else c - 48))
            hex_digits -= 1
            if hex_digits:
                continue
        elif escaped:
            escaped = False
            if c == b"x":
                hex_digits = 2
                byte = 0
                continue
            byte = 9 if c == b"t" else 10 if c == b"n" else 13 if c == b"r" else c
        elif c == b"\\":
            escaped = True
            continue
        else:
            byte = c
        if first >= 0:
            single[0] = False
            return first
        first = byte
    single[0] = first >= 0
    return first
