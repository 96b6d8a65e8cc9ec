# Uses: nothing
#
# Scans the long arrays of a GGUF header without making a Python object for each element.
#
# The bytes are not trusted: each length is checked against the size of the header before it is
# used. Everything here is little-endian, like the files that llama.cpp loads.
import os as _os

from libc.stdint cimport UINT32_MAX, int32_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy
from libcpp.vector cimport vector

cdef extern from "<cstring>" nogil:
    const void * memchr(const void * data, int byte, size_t size)

cdef extern from *:
    """
    // The prime 2^61 - 1: reducing a product modulo it does not need a division.
    static const uint64_t MERSENNE_61 = ((uint64_t) 1 << 61) - 1;
    static const uint64_t EACH_BYTE = 0x0101010101010101;
    static const uint64_t EACH_TAG = 0x0001000100010001;
    """
    const uint64_t MERSENNE_61
    const uint64_t EACH_BYTE
    const uint64_t EACH_TAG
    ctypedef unsigned long long uint128_t "unsigned __int128"
    bint unlikely(bint condition) nogil
    void prefetch "__builtin_prefetch"(const void * address) nogil

cdef enum:
    HASHED_AT_ONCE = 7  # bytes of a text to hash at a time
    HEAD_SIZE = 2 * HASHED_AT_ONCE
    HEAD_LOADED = HASHED_AT_ONCE + 8  # bytes to load for a head
    LONGEST_STAND_IN = 24  # "[EMPTY_4294967295]" and its NUL fit
    PREFETCH_AHEAD = 16
    COMPARED_AT_ONCE = 32


cdef inline bint length_at(const char * header, size_t size, size_t position,
                           uint64_t * length) noexcept nogil:
    """Read the length of the string at a position; False if it reaches past the header."""
    if position > size or size - position < 8:
        return False
    memcpy(length, header + position, 8)
    return length[0] <= size - position - 8


cdef struct StringHead:  # the first bytes of a text as two numbers, zeros after its end
    uint64_t low
    uint64_t high
    bint has_nul


cdef inline uint64_t lowest_bytes(size_t count) noexcept nogil:
    """Return a mask for the lowest `count` bytes, 7 at most."""
    return (<uint64_t> 1 << (8 * count)) - 1


cdef inline uint64_t zero_bytes(uint64_t word) noexcept nogil:
    """Return a non-zero number if a byte of the word is 0, else 0."""
    return (word - EACH_BYTE) & ~word & (EACH_BYTE << 7)


cdef inline uint64_t equal_tags(uint64_t bucket, uint64_t tag) noexcept nogil:
    """Return a non-zero number if one of the four tags in a bucket equals this one, else 0."""
    cdef uint64_t different = bucket ^ tag * EACH_TAG
    return (different - EACH_TAG) & ~different & (EACH_TAG << 15)


cdef inline StringHead head_of(const unsigned char * data, size_t size) noexcept nogil:
    """Return the first 14 bytes of a text, or all if shorter. Always loads 15 bytes."""
    cdef StringHead head
    cdef uint64_t low_bits = lowest_bytes(min(size, <size_t> HASHED_AT_ONCE))
    cdef uint64_t high_bits = lowest_bytes(
        min(max(size, <size_t> HASHED_AT_ONCE), <size_t> HEAD_SIZE) - HASHED_AT_ONCE)
    memcpy(&head.low, data, 8)
    memcpy(&head.high, data + HASHED_AT_ONCE, 8)
    head.has_nul = (
        zero_bytes(head.low | ~low_bits) | zero_bytes(head.high | ~high_bits)
    ) != 0
    head.low &= low_bits
    head.high &= high_bits
    return head


cdef inline bint has_early_gap(StringView text) noexcept nogil:
    """Return whether the head of a text has a space after its first byte."""
    cdef StringHead head = head_of(text.data, text.size)
    head.low |= 0xFF
    return (zero_bytes(head.low ^ EACH_BYTE * 32) | zero_bytes(head.high ^ EACH_BYTE * 32)) != 0


cdef inline uint64_t fold_61(uint128_t product) noexcept nogil:
    """Reduce a product modulo 2^61 - 1; the result may exceed it by a small multiple."""
    return (<uint64_t> product & MERSENNE_61) + <uint64_t> (product >> 61)


cdef inline uint64_t multiply_61(uint64_t a, uint64_t b) noexcept nogil:
    return fold_61(fold_61(<uint128_t> a * b))


cdef inline uint64_t hash_head(uint64_t size, StringHead head, HashKey key) noexcept nogil:
    """Hash a text of at most two pieces: ``((size + low) * key + high) * key``."""
    return fold_61(<uint128_t> (size + head.low) * key.squared + <uint128_t> head.high * key.once)


cdef inline uint32_t mix_bits(uint64_t value) noexcept nogil:
    return <uint32_t> (value * <uint64_t> 0x9E3779B97F4A7C15 >> 32)


cdef uint32_t hash_string(StringView text, HashKey key) noexcept nogil:
    """Hash a text as a polynomial with its pieces of 7 bytes as coefficients, at a random point.

    This way an attacker cannot choose texts that collide (Carter and Wegman, "Universal classes of
    hash functions", 1979). The bits are mixed at the end, because the table uses only some of them.
    """
    cdef unsigned char[HEAD_LOADED] start
    cdef uint64_t piece, value
    cdef size_t done = HEAD_SIZE
    memcpy(start, text.data, min(text.size, <size_t> HEAD_SIZE))
    value = hash_head(text.size, head_of(start, text.size), key)
    while done + 8 <= text.size:  # whole words are faster to read; the eighth byte is masked
        memcpy(&piece, text.data + done, 8)
        value = multiply_61(value + (piece & lowest_bytes(HASHED_AT_ONCE)), key.once)
        done += HASHED_AT_ONCE
    while done < text.size:
        piece = 0
        memcpy(&piece, text.data + done, min(<size_t> HASHED_AT_ONCE, text.size - done))
        value = multiply_61(value + piece, key.once)
        done += HASHED_AT_ONCE
    return mix_bits(value)


def find_int32(bytes header, size_t start, size_t count, int32_t value, size_t first):
    """Return the index, from ``first`` on, of a value in an array of 32-bit integers, or None."""
    cdef const char * numbers = _numbers_at(header, start, count)
    cdef size_t index = first
    cdef size_t i
    cdef int32_t number
    cdef bint found = False
    with nogil:
        while not found and index < count and count - index >= COMPARED_AT_ONCE:
            # There is no break here, so that the compiler can vectorise the comparison.
            for i in range(<size_t> COMPARED_AT_ONCE):
                memcpy(&number, numbers + 4 * (index + i), 4)
                found |= number == value
            index += COMPARED_AT_ONCE
        if found:
            index -= COMPARED_AT_ONCE
        while index < count:
            memcpy(&number, numbers + 4 * index, 4)
            if number == value:
                break
            index += 1
    return index if index < count else None


def find_nan(bytes header, size_t start, size_t count):
    """Return the index of the first NaN in an array of 32-bit floats, or None."""
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


@cython.final
@cython.auto_pickle(False)
cdef class StringArray:
    """The strings of an array in a GGUF header, as a sequence that makes bytes objects on demand.

    It is empty until `read` has found the strings.

    Args:
        start: Position in the header of the length of the first string.
    """

    def __cinit__(self):
        self.starts.push_back(0)

    def __init__(self, uint32_t start):
        self.starts.assign(1, start)

    def read(self, bytes header, size_t count):
        """Find more strings until there are ``count`` or the header ends.

        Args:
            header: The header, or the part that was read so far; later calls may pass more of it.
            count: Total number of strings in the array.

        Raises:
            ValueError: The header ends before the strings that were found earlier, or is too large.
        """
        cdef const char * data = header
        cdef size_t size = len(header)
        cdef size_t position = self.starts.back()
        cdef uint64_t length
        if not position <= size < UINT32_MAX:
            raise ValueError(f"a header of {size} bytes cannot have strings at {position}")
        self.header = header
        self.data = data
        with nogil:
            self.starts.reserve(min(count, size // 8) + 1)
            while self.starts.size() <= count and length_at(data, size, position, &length):
                position += 8 + length
                self.starts.push_back(<uint32_t> position)

    @property
    def end(self):
        """Position in the header at which the next string would start."""
        return self.starts.back()

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
        """Return the index of the first token that equals an earlier one for llama.cpp, or None.

        llama.cpp cuts a token at a NUL, and replaces an empty token at index 5 by ``[EMPTY_5]``.
        """
        cdef size_t n = self.starts.size() - 1
        cdef size_t found
        cdef size_t n_buckets = 8
        cdef HashKey key
        key.once = int.from_bytes(_os.urandom(8), "little") % MERSENNE_61
        key.squared = fold_61(<uint128_t> key.once * key.once)
        while 2 * n_buckets < n:
            n_buckets *= 2
        cdef vector[uint32_t] hashes = vector[uint32_t](n + PREFETCH_AHEAD)
        cdef vector[uint64_t] buckets = vector[uint64_t](n_buckets)
        with nogil:
            self.hash_all(hashes.data(), key)
            found = self.first_duplicate(hashes.data(), buckets.data(), n_buckets - 1)
        return found if found < n else None

    def find_without_gap(self):
        """Return the index of the first string without a space after its first byte, or None.

        A merge is two pieces with a space between them, and the first piece may begin with one.
        """
        cdef size_t i = 0
        cdef size_t n = self.starts.size() - 1
        cdef size_t n_heads = self.n_heads()
        cdef StringView text
        with nogil:
            while i < n:
                text = self.raw(i)
                if unlikely(i >= n_heads or not has_early_gap(text)):
                    if text.size < 2 or memchr(text.data + 1, b" ", text.size - 1) is NULL:
                        break
                i += 1
        return i if i < n else None

    def find_dead_end(self):
        """Return the first byte of an RWKV token that is not itself a token, or None.

        RWKV's tokenizer takes the longest token that matches, and would loop forever on that byte.
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

    cdef StringView raw(self, size_t index) noexcept nogil:
        cdef StringView text
        text.data = <const unsigned char *> self.data + self.starts[index] + 8
        text.size = self.starts[index + 1] - self.starts[index] - 8
        return text

    cdef StringView text(self, size_t index, char * stand_in) noexcept nogil:
        """Return a token as llama.cpp reads it; write the name of an empty one to ``stand_in``."""
        cdef StringView text = self.raw(index)
        cdef const void * end = memchr(text.data, 0, text.size) if text.size else NULL
        if end is not NULL:
            text.size = <const unsigned char *> end - text.data
        if text.size == 0:
            text.data = <const unsigned char *> stand_in
            text.size = snprintf(stand_in, LONGEST_STAND_IN, b"[EMPTY_%u]", <unsigned int> index)
        return text

    cdef size_t n_heads(self) noexcept nogil:
        """Count the strings whose head can be loaded before the array's end."""
        cdef size_t n = self.starts.size() - 1
        while n and self.starts[n - 1] + 8 + HEAD_LOADED > self.starts.back():
            n -= 1
        return n

    cdef void hash_all(self, uint32_t * hashes, HashKey key) noexcept nogil:
        cdef size_t i
        cdef size_t n_heads = self.n_heads()
        cdef StringHead head
        cdef StringView raw
        cdef char[LONGEST_STAND_IN] stand_in
        for i in range(self.starts.size() - 1):
            raw = self.raw(i)
            # Empty texts (raw.size - 1 wraps round) and longer ones are rare.
            if not unlikely(i >= n_heads or raw.size - 1 >= HEAD_SIZE):
                head = head_of(raw.data, raw.size)
                if not unlikely(head.has_nul):
                    hashes[i] = mix_bits(hash_head(raw.size, head, key))
                    continue
            hashes[i] = hash_string(self.text(i, stand_in), key)

    cdef size_t first_duplicate(self, const uint32_t * hashes, uint64_t * buckets,
                                size_t mask) noexcept nogil:
        """Return the index of the first token that equals an earlier one, or the number of tokens.

        A bucket has room for four tags: halves of hashes, never 0. If it is full, the next bucket
        is used. When tags are equal, the tokens are compared: by chance that happens some twenty
        times in the largest vocabulary, and less than once among 50,000 tokens.
        """
        cdef size_t i, place
        cdef size_t n = self.starts.size() - 1
        cdef uint64_t tag
        for i in range(n):
            prefetch(&buckets[hashes[i + PREFETCH_AHEAD] & mask])
            tag = max(hashes[i] >> 16, <uint32_t> 1)
            place = hashes[i] & mask
            while True:
                if unlikely(equal_tags(buckets[place], tag) != 0) and self.is_repeated(hashes, i):
                    return i
                if not unlikely(buckets[place] >> 48 != 0):
                    break
                place = (place + 1) & mask
            buckets[place] = buckets[place] << 16 | tag
        return n

    cdef bint is_repeated(self, const uint32_t * hashes, size_t index) noexcept nogil:
        cdef size_t i
        cdef char[LONGEST_STAND_IN] stand_in
        cdef char[LONGEST_STAND_IN] other_stand_in
        cdef StringView one = self.text(index, stand_in)
        cdef StringView other
        for i in range(index):
            if hashes[i] == hashes[index]:
                other = self.text(i, other_stand_in)
                if other.size == one.size and memcmp(other.data, one.data, one.size) == 0:
                    return True
        return False


cdef int first_unescaped(StringView text, bint * single) noexcept nogil:
    """Unescape an RWKV token; return its first byte or -1. ``single``: it has only that byte."""
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
