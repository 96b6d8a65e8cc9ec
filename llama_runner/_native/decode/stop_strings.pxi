# Uses: nothing
#
# The text of a request as it grows: stop strings, and how much of it may be shown.
from libcpp.string cimport string

from llama_runner._llama_cpp.shim.state cimport NativeRequest


cdef bint meets_stop(NativeRequest * request, size_t old_size) noexcept nogil:
    """Does a stop string end in the text since old_size? Cuts the text before the first one."""
    cdef size_t i, begin, at
    cdef size_t first = <size_t> -1
    if request.longest_stop == 0:
        return False
    begin = old_size - min(old_size, request.longest_stop - 1)
    for i in range(request.stops.size()):
        at = request.text.find(request.stops[i], begin)
        if at < first:
            first = at
            request.stop_index = <int32_t> i
    if request.stop_index < 0:
        return False
    request.text.resize(first)
    return True


cdef int32_t cut_at_stop(NativeRequest * request) noexcept nogil:
    """Take the tokens from the stop string on out of the output; returns how many the ledger loses.

    A token that only begins with other text stays in the output. The ledger loses it all the same:
    it holds what was shown, and the kept part gets tokens of its own, from ``kept_from`` on.
    """
    cdef size_t size = request.text.size()
    cdef size_t n_all = request.output.size()
    cdef size_t n = n_all
    while n > 0 and request.output_starts[n - 1] >= size:
        n -= 1
    cdef size_t n_whole = n
    if n > 0 and (n == n_all or request.output_starts[n] > size):
        n_whole = n - 1
        # Half a character cannot be tokenised: its first bytes come from tokens before this one.
        while n_whole > 0 and is_inside_character(request.text[request.output_starts[n_whole]]):
            n_whole -= 1
        request.kept_from = request.output_starts[n_whole]
    else:
        request.kept_from = size
    request.output.resize(n)
    request.output_starts.resize(n)
    return <int32_t> (n_all - n_whole)


cdef inline bint is_inside_character(unsigned char byte) noexcept nogil:
    return 0x80 <= byte < 0xC0  # UTF-8 begins no character with these


cdef size_t showable(NativeRequest * request) noexcept nogil:
    """Length of the text without a half character or what may become a stop string."""
    cdef size_t i, length, longest
    cdef size_t held = 0
    for i in range(request.stops.size()):
        longest = min(request.stops[i].size() - 1, request.text.size())
        for length in range(longest, held, -1):
            if request.text.compare(request.text.size() - length, length,
                                    request.stops[i], 0, length) == 0:
                held = length
                break
    return whole_characters(request.text, request.text.size() - held)


cdef size_t whole_characters(const string & text, size_t end) noexcept nogil:
    """The largest length <= end that does not split a UTF-8 character (RFC 3629)."""
    cdef size_t back, needed
    cdef unsigned char byte
    for back in range(1, min(<size_t> 4, end) + 1):
        byte = text[end - back]
        if byte < 0x80:
            return end
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return end - back if back < needed else end
    return end  # four continuation bytes: no character will come of it
