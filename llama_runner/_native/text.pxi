# The text of a request as it grows: stop strings, and how much of it may be shown.
from libcpp.string cimport string

from llama_runner._llama_cpp.shim cimport NativeRequest


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
    """Take the tokens from the stop string on out of the output; returns how many. One that only
    begins with other text stays: there is no token for its first half."""
    cdef size_t n = request.output.size()
    while n > 0 and request.output_starts[n - 1] >= request.text.size():
        n -= 1
    cdef int32_t n_cut = <int32_t> (request.output.size() - n)
    request.output.resize(n)
    request.output_starts.resize(n)
    return n_cut


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
