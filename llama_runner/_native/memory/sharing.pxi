# Uses: cells, parking, room
#
# Having cells without computing them: a sequence's parked state comes back, or it takes over what
# another one has computed already.
#
# Everything here must be called by the holder of the loop.
from cython.operator cimport dereference as deref
from libc.limits cimport INT_MAX
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from llama_runner._llama_cpp.llama cimport llama_seq_id
from llama_runner._llama_cpp.shim.handles cimport ContextBox
from llama_runner._llama_cpp.shim.parking cimport (
    ParkedPtr,
    read_parked,
    save_state,
    unpark_state,
)
from llama_runner._llama_cpp.shim.state cimport (
    Engine,
    NativeSequence,
    SequencePtr,
    first_in_memory,
    forget_unparked,
    last_in_memory,
    note_parked,
    share_in_memory,
)


cdef int32_t bring_in(Engine * engine, ContextBox * box, SequencePtr & wanting,
                      uint64_t arrival) noexcept nogil:
    """Bring in as much of a sequence as possible without computing: its own cells or parked state,
    or the shared beginning of another sequence, in memory or parked, if that is longer.

    If there is no room now, the parked state stays parked. Returns how many tokens were taken over
    from another sequence.
    """
    cdef NativeSequence * sequence = wanting.get()
    cdef ParkedPtr own = sequence.parked
    cdef ParkedPtr others
    cdef int32_t n_own = n_of_own(engine, sequence)
    cdef int32_t exact = sequence.n_exact
    cdef NativeSequence * donor
    cdef int32_t n_donor, n_parked
    donor = best_donor(engine, box, sequence, &n_donor)
    others = best_parked(engine, sequence, &n_parked)
    if sequence.n_kv > 0 and max(n_donor, n_parked) < sequence.n_kv + MIN_SHARED:
        return 0  # not worth giving up its own cells
    drop_cells(engine, box, sequence)
    sequence.parked.reset()
    sequence.n_parked = 0
    if n_donor > n_own and share_cells(engine, box, donor, wanting, arrival, n_donor):
        return n_donor
    others = best_parked(engine, sequence, &n_parked)  # the donor may have had to leave
    if (n_parked > n_own and make_room_for(engine, box, others, wanting, arrival)
            and unpark_cells(engine, box, others, wanting, n_parked)):
        return n_parked
    if n_own == 0:
        return 0
    if not make_room_for(engine, box, own, wanting, arrival):
        if 2 * n_own >= own.get().n_tokens:  # worth waiting for: it comes back whole
            sequence.parked = own
            sequence.n_parked = n_own
            sequence.n_exact = exact
    elif unpark_cells(engine, box, own, wanting, n_own) and exact < sequence.n_kv:
        sequence.n_exact = exact
    return 0


cdef int32_t n_of_own(Engine * engine, NativeSequence * sequence) noexcept nogil:
    """Count the tokens that a sequence could restore from its own parked state."""
    cdef int32_t n = sequence.n_parked
    cdef int32_t n_cells
    if not sequence.parked or sequence.parked.get().dropped():
        return 0
    n_cells = sequence.parked.get().n_tokens
    return n if can_cut(engine, n_cells, n, oldest_saved(engine, n_cells)) else 0


cdef inline int32_t oldest_saved(Engine * engine, int32_t n) noexcept nogil:
    """Return the position from which on a saved state of n tokens has all cells: of a window,
    llama.cpp saves what the last token sees."""
    return max(0, n - engine.traits.n_swa) if engine.traits.n_swa > 0 else 0


cdef bint make_room_for(Engine * engine, ContextBox * box, ParkedPtr & parked,
                        SequencePtr & wanting, uint64_t arrival) noexcept nogil:
    """Find a slot and cells for a parked state."""
    cdef bint found
    engine.parking.coming_in = parked.get()
    found = make_room(engine, box, wanting, arrival, parked.get().n_tokens)
    engine.parking.coming_in = NULL
    if not found:
        drop_cells(engine, box, wanting.get())  # it may have got a slot
    return found


cdef bint unpark_cells(Engine * engine, ContextBox * box, ParkedPtr & parked,
                       SequencePtr & wanting, int32_t n) noexcept nogil:
    """Restore a parked state, and keep its first n tokens."""
    cdef NativeSequence * sequence = wanting.get()
    if (not unpark_state(parked.get()[0], box.context, sequence.slot)
            or last_in_memory(deref(engine), box.context, sequence.slot)
            != parked.get().n_tokens - 1):
        drop_cells(engine, box, sequence)
        return False
    sequence.n_kv = parked.get().n_tokens
    trim_cells(engine, box, sequence, n)
    return sequence.n_kv > 0


cdef int32_t copy_state(Engine * engine, ContextBox * box, SequencePtr & wanted, uint32_t flags,
                        vector[uint8_t] & state) noexcept nogil:
    """Copy a sequence's state as bytes, from the memory or from its parked state.

    Returns the number of its tokens, 0 if there is none. No bytes: llama.cpp cannot save it.
    """
    cdef NativeSequence * sequence = wanted.get()
    if (is_kept_aside(sequence) and flags == 0
            and sequence.n_parked == sequence.parked.get().n_tokens
            and read_parked(sequence.parked.get()[0], state)):
        return sequence.n_parked
    if sequence.n_kv == 0:
        bring_in(engine, box, wanted, 0)
    if sequence.n_kv > 0:
        settle_cells(engine, box)
    if sequence.n_kv > 0 and not engine.broken.load():
        save_state(box.context, sequence.slot, flags, state)
    return sequence.n_kv


cdef int32_t n_in_common(Engine * engine, NativeSequence * sequence, NativeSequence * other,
                         int32_t n_known, int32_t n_cells, int32_t oldest) noexcept nogil:
    """Count the cells that a sequence could take over from another, 0 if not worth it.

    Of the other's n_cells, the first n_known still are those of its tokens; of layers with a
    window, only cells from the position ``oldest`` on are there.
    """
    cdef int32_t n = 0
    cdef int32_t limit = min(n_known, other.n_exact)
    limit = min(limit, <int32_t> sequence.tokens.size() - 1)  # the last one's logits are needed
    if not (other.adapters == sequence.adapters):
        return 0
    engine.monitor.lock()
    while n < limit and other.tokens[n] == sequence.tokens[n]:
        n += 1
    engine.monitor.unlock()
    return n if n >= MIN_SHARED and can_cut(engine, n_cells, n, oldest) else 0


cdef NativeSequence * best_donor(Engine * engine, ContextBox * box, NativeSequence * sequence,
                                 int32_t * n_common) noexcept nogil:
    """Return the sequence in memory with the longest shared beginning, NULL if not worth it."""
    cdef NativeSequence * best = NULL
    cdef NativeSequence * other
    cdef size_t i
    cdef int32_t n
    n_common[0] = 0
    for i in range(engine.slots.size()):
        other = engine.slots[i].get()
        if other is NULL or other == sequence:
            continue
        n = n_in_common(engine, sequence, other, other.n_kv, other.n_kv,
                        first_in_memory(deref(engine), box.context, other.slot))
        if n > n_common[0]:
            n_common[0] = n
            best = other
    return best


cdef ParkedPtr best_parked(Engine * engine, NativeSequence * sequence,
                           int32_t * n_common) noexcept nogil:
    """Return the parked state with the longest shared beginning, null if not worth it."""
    cdef ParkedPtr best
    cdef SequencePtr other
    cdef size_t i
    cdef int32_t n, n_cells
    n_common[0] = 0
    forget_unparked(engine.parked)
    for i in range(engine.parked.size()):
        other = engine.parked[i].lock()
        if not other or other.get() == sequence:
            continue
        n_cells = other.get().parked.get().n_tokens
        n = n_in_common(engine, sequence, other.get(), other.get().n_parked, n_cells,
                        oldest_saved(engine, n_cells))
        # It comes back whole and needs room for all of it.
        if n > n_common[0] and 2 * n >= n_cells:
            n_common[0] = n
            best = other.get().parked
    return best


cdef bint share_cells(Engine * engine, ContextBox * box, NativeSequence * donor,
                      SequencePtr & taker, uint64_t arrival, int32_t n) noexcept nogil:
    """Give a sequence that is not in the memory the first n cells of one that is."""
    cdef NativeSequence * sequence = taker.get()
    cdef SequencePtr held = engine.slots[donor.slot]  # the slot may be the last that has it
    if not make_room(engine, box, taker, arrival, 0, donor) or donor.slot < 0:
        return False  # it needs a slot, and there was no other than the donor's
    sequence.n_exact = donor.n_exact if donor.n_exact < n else INT_MAX
    if not engine.traits.unified or engine.traits.recurrent:
        # Another stream or a recurrent state can be had whole only.
        share_in_memory(deref(engine), box.context, donor.slot, sequence.slot, -1, -1)
        engine.unsettled = True
        settle_cells(engine, box)  # before either's cells change
        sequence.n_kv = donor.n_kv
        if engine.traits.unified:  # a hybrid model's attention cells
            note_sharing(engine, donor.slot, sequence.slot, donor.n_kv)
        trim_cells(engine, box, sequence, n)
        return sequence.n_kv > 0
    share_in_memory(deref(engine), box.context, donor.slot, sequence.slot, 0, n)
    sequence.n_kv = n
    note_sharing(engine, donor.slot, sequence.slot, n)
    return True


cdef void note_sharing(Engine * engine, llama_seq_id donor, llama_seq_id taker,
                       int32_t n) noexcept nogil:
    """Note that a slot shares its first n cells with another, and with all that share those."""
    cdef llama_seq_id other
    for other in range(<llama_seq_id> engine.slots.size()):
        if other != taker:
            shared_cells(engine, taker, other)[0] = min(n, shared_cells(engine, donor, other)[0])
            shared_cells(engine, other, taker)[0] = shared_cells(engine, taker, other)[0]
    shared_cells(engine, taker, donor)[0] = n
    shared_cells(engine, donor, taker)[0] = n
