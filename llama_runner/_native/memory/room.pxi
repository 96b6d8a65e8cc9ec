# Uses: state, cells, parking
#
# Room in the KV memory: a slot and free cells for a sequence, and which others give way to it.
#
# Everything here must be called by the holder of the loop.
from libc.stdint cimport int32_t, uint64_t

from llama_runner._llama_cpp.llama cimport llama_seq_id
from llama_runner._llama_cpp.shim.handles cimport ContextBox
from llama_runner._llama_cpp.shim.state cimport Engine, NativeSequence, SequencePtr


cdef bint make_room(Engine * engine, ContextBox * box, SequencePtr & wanting, uint64_t arrival,
                    int32_t n, NativeSequence * donor=NULL) noexcept nogil:
    """Reserve a slot and n cells. Evict idle sequences first, then those of younger requests; none
    if that would not be enough.

    donor: the last of the idle ones to evict.
    """
    cdef NativeSequence * sequence = wanting.get()
    cdef size_t i
    if sequence.slot >= 0 and free_cells(engine, sequence) >= n:
        return True
    if not can_make_room(engine, sequence, arrival, n):
        return False
    while sequence.slot < 0:
        for i in range(engine.slots.size()):
            if not engine.slots[i]:
                engine.slots[i] = wanting
                sequence.slot = <llama_seq_id> i
                break
        if sequence.slot < 0 and not evict_one(engine, box, sequence, arrival, donor):
            return False
    while free_cells(engine, sequence) < n:
        if not evict_one(engine, box, sequence, arrival, donor):
            return False
    return True


cdef bint can_make_room(Engine * engine, NativeSequence * wanting, uint64_t arrival,
                        int32_t n) noexcept nogil:
    """Return whether there would be a slot and n cells if all sequences that may leave did."""
    cdef NativeSequence * sequence
    cdef size_t i, j
    cdef int32_t most
    cdef int32_t room = engine.traits.n_ctx
    cdef bint has_slot = wanting.slot >= 0
    for i in range(engine.slots.size()):
        sequence = engine.slots[i].get()
        if sequence is not NULL:
            sequence.stays = not may_leave(engine, sequence, wanting, arrival)
        has_slot = has_slot or sequence is NULL or not sequence.stays
    if not has_slot or not engine.traits.unified:
        return has_slot and engine.traits.n_ctx_seq - wanting.n_kv >= n
    for i in range(engine.shares.size()):
        room -= engine.shares[i].n_tokens
    for i in range(engine.slots.size()):
        if not engine.slots[i] or not engine.slots[i].get().stays:
            continue
        most = 0
        for j in range(i):
            if engine.slots[j] and engine.slots[j].get().stays:
                most = max(most, shared_cells(engine, <llama_seq_id> i, <llama_seq_id> j)[0])
        room -= engine.slots[i].get().n_kv - most
    return room >= n


cdef bint may_leave(Engine * engine, NativeSequence * sequence, NativeSequence * wanting,
                    uint64_t arrival) noexcept nogil:
    """Return whether a sequence may be evicted for another: not if its request came earlier or is
    in the current batch.

    An operation, whose arrival is 0, never evicts a generating sequence.
    """
    cdef size_t i
    if sequence == wanting or (arrival == 0 and is_wanted(engine, sequence)):
        return False
    for i in range(engine.working.size()):
        if engine.working[i].sequence.get() == sequence:
            return engine.working[i].arrival > arrival and not engine.working[i].in_batch
    return True


cdef int32_t free_cells(Engine * engine, NativeSequence * sequence) noexcept nogil:
    cdef size_t i
    cdef int32_t planned = 0
    if not engine.traits.unified:
        return engine.traits.n_ctx_seq - sequence.n_kv
    for i in range(engine.shares.size()):
        planned += engine.shares[i].n_tokens
    return engine.traits.n_ctx - used_cells(engine) - planned


cdef int32_t used_cells(Engine * engine) noexcept nogil:
    cdef size_t i
    cdef int32_t used = 0
    for i in range(engine.slots.size()):
        if engine.slots[i]:
            used += engine.slots[i].get().n_kv
            used -= most_shared(engine, <llama_seq_id> i, <llama_seq_id> i)
    return used


cdef bint evict_one(Engine * engine, ContextBox * box, NativeSequence * wanting,
                    uint64_t arrival, NativeSequence * donor) noexcept nogil:
    """Evict one other sequence: the idle one that leaves_before() the others, else that of the
    youngest request. So the oldest request always advances."""
    cdef NativeSequence * victim = NULL
    cdef NativeSequence * sequence
    cdef uint64_t youngest = 0
    cdef uint64_t came
    cdef size_t i, j
    for i in range(engine.slots.size()):
        sequence = engine.slots[i].get()
        if sequence is NULL or not may_leave(engine, sequence, wanting, arrival):
            continue
        came = 0
        for j in range(engine.working.size()):
            if engine.working[j].sequence.get() == sequence:
                came = engine.working[j].arrival
        if victim is NULL or (came == 0 and youngest > 0) or (
                leaves_before(sequence, victim, donor) if came == youngest == 0
                else came > youngest > 0):
            victim = sequence
            youngest = came
    if victim is NULL:
        return False
    park_cells(engine, box, victim)
    return True


cdef bint leaves_before(NativeSequence * a, NativeSequence * b,
                        NativeSequence * donor) noexcept nogil:
    """Return whether ``a`` is evicted before ``b``: least recently used first, then those that are
    kept warm, the donor last."""
    if a == donor or b == donor:
        return b == donor
    if a.warm != b.warm:
        return b.warm
    return a.last_used < b.last_used
