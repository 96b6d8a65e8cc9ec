# Uses: nothing
#
# Requests as they stand: which callers wait, and which have what they asked for.
from llama_runner._llama_cpp.shim.state cimport Engine, NativeRequest, NativeSequence, Phase


cdef bint is_ready(NativeRequest * request) noexcept nogil:
    return (request.phase == Phase.Done or request.paused
            or (request.streaming and request.released > request.taken))


cdef bint is_active(Engine * engine, NativeRequest * request) noexcept nogil:
    cdef size_t i
    for i in range(engine.active.size()):
        if engine.active[i] == request:
            return True
    return False


cdef bint is_other_ready(Engine * engine, NativeRequest * leader) noexcept nogil:
    cdef size_t i
    for i in range(engine.active.size()):
        if engine.active[i] != leader and is_ready(engine.active[i]):
            return True
    return False


cdef bint is_wanted(Engine * engine, NativeSequence * sequence) noexcept nogil:
    """Return whether a caller waits for a generation on this sequence."""
    cdef size_t i
    cdef bint found = False
    engine.monitor.lock()
    for i in range(engine.active.size()):
        if engine.active[i].sequence.get() == sequence and not is_ready(engine.active[i]):
            found = True
    engine.monitor.unlock()
    return found


cdef bint let_go(NativeRequest * request) noexcept nogil:
    """Free the request's sequence for other uses; False where it was not the request's."""
    cdef NativeSequence * sequence = request.sequence.get()
    if sequence.user != <const void *> request:
        return False
    sequence.user = NULL
    return True
