# The KV memory's cells: which sequence has how many, who gives way to whom, what is kept aside.
#
# Ledger: tokens[0:n_kv] of a sequence are in the memory at positions 0..n_kv-1, tokens[n_kv:] wait
# to be decoded. So forgetting cells is always safe: lower n_kv, and they are decoded again.
#
# Sharing: in the unified layout two sequences can have the same physical cells for their first
# tokens. engine.shared says how many, for each pair of slots; llama.cpp moves a cell for all that
# have it, so a shared one is never shifted, and it is counted once.
#
# Everything here must be called by whoever holds the loop.
from libc.limits cimport INT_MAX
from libc.stdint cimport int32_t, int64_t, uint64_t

from llama_runner._llama_cpp.llama cimport (
    llama_get_memory,
    llama_memory_seq_add,
    llama_memory_seq_cp,
    llama_memory_seq_pos_max,
    llama_memory_seq_pos_min,
    llama_memory_seq_rm,
    llama_memory_t,
    llama_seq_id,
)
from llama_runner._llama_cpp.shim cimport (
    NativeSequence,
    ParkedPtr,
    SequencePtr,
    WeakSequencePtr,
    forget_unparked,
    kThrew,
    now_us,
    park_state,
    settle,
    unpark_state,
)

# Less than this is decoded sooner than copied, and not worth tying sequences together.
cdef int32_t MIN_SHARED = 32


cdef inline int32_t * shared_cells(Engine * engine, llama_seq_id a, llama_seq_id b) noexcept nogil:
    return &engine.shared[a * <int32_t> engine.slots.size() + b]


cdef void limit_sharing(Engine * engine, llama_seq_id slot, int32_t n) noexcept nogil:
    """From now on a slot has at most its first n cells in common with others."""
    cdef llama_seq_id other
    for other in range(<llama_seq_id> engine.slots.size()):
        if other != slot and shared_cells(engine, slot, other)[0] > n:
            shared_cells(engine, slot, other)[0] = n
            shared_cells(engine, other, slot)[0] = n


cdef int32_t most_shared(Engine * engine, llama_seq_id slot, llama_seq_id below) noexcept nogil:
    """Cells that a slot has in common with any slot of a lower number than ``below``."""
    cdef llama_seq_id other
    cdef int32_t most = 0
    for other in range(below):
        if other != slot:
            most = max(most, shared_cells(engine, slot, other)[0])
    return most


cdef void drop_cells(Engine * engine, ContextBox * box, NativeSequence * sequence) noexcept nogil:
    """Take a sequence out of the memory; its ledger stays, to be decoded again."""
    cdef llama_seq_id slot = sequence.slot
    sequence.slot = -1
    sequence.n_kv = 0
    sequence.n_exact = INT_MAX
    if slot >= 0:
        llama_memory_seq_rm(llama_get_memory(box.context), slot, -1, -1)
        limit_sharing(engine, slot, 0)
        engine.slots[slot].reset()  # frees a sequence that nobody else holds any more


cdef void limit_parked(NativeSequence * sequence, int32_t n) noexcept nogil:
    """Of the state kept aside, at most the first n tokens still are this ledger's."""
    sequence.n_parked = min(sequence.n_parked, n)
    if sequence.n_parked <= 0:
        sequence.parked.reset()


cdef inline int32_t oldest_needed(Engine * engine, int32_t n) noexcept nogil:
    """The position from which on the cells must be there to go on behind the first n tokens."""
    return max(0, n - engine.traits.n_swa + 1) if engine.traits.n_swa > 0 else 0


cdef void trim_cells(Engine * engine, ContextBox * box, NativeSequence * sequence,
                     int32_t n) noexcept nogil:
    """Keep at most the first n tokens in the memory; all or nothing where it cannot rewind."""
    cdef llama_memory_t memory = llama_get_memory(box.context)
    limit_parked(sequence, n)
    if sequence.n_kv <= n:
        return
    if n == 0 or not llama_memory_seq_rm(memory, sequence.slot, n, -1):
        drop_cells(engine, box, sequence)
        return
    # A window cache says yes even when the cells before n are gone: look.
    if (llama_memory_seq_pos_max(memory, sequence.slot) != n - 1
            or llama_memory_seq_pos_min(memory, sequence.slot) > oldest_needed(engine, n)):
        drop_cells(engine, box, sequence)
        return
    limit_sharing(engine, sequence.slot, n)
    sequence.n_kv = n
    if n <= sequence.n_exact:
        sequence.n_exact = INT_MAX


cdef bint remove_cells(Engine * engine, ContextBox * box, NativeSequence * sequence,
                       int32_t start, int32_t stop) noexcept nogil:
    """Remove tokens[start:stop] from ledger and memory; True if what follows was shifted."""
    cdef llama_memory_t memory = llama_get_memory(box.context)
    cdef bint shifted = False
    if (engine.traits.can_shift and sequence.n_kv > stop and most_shared(
            engine, sequence.slot, <llama_seq_id> engine.slots.size()) <= stop):
        llama_memory_seq_rm(memory, sequence.slot, start, stop)
        llama_memory_seq_add(memory, sequence.slot, stop, sequence.n_kv, start - stop)
        limit_sharing(engine, sequence.slot, start)
        sequence.n_kv -= stop - start
        sequence.n_exact = min(sequence.n_exact, start)
        engine.unsettled = True
        shifted = True
    else:
        trim_cells(engine, box, sequence, start)
    limit_parked(sequence, start)
    sequence.tokens.erase(sequence.tokens.begin() + start, sequence.tokens.begin() + stop)
    return shifted


cdef void settle_cells(Engine * engine, ContextBox * box) noexcept nogil:
    """Carry out shifts and copies that llama.cpp has put off.

    Until then a saved state would have the old keys; and an abort in the middle of a decode that
    begins with it would leave some of the keys moved, and all of them due to be moved again.
    """
    cdef string error
    cdef int64_t started
    if engine.unsettled:
        started = now_us()
        engine.settling = True
        if settle(box.context, error) == kThrew:
            engine.broken.store(True)
        engine.settling = False
        engine.unsettled = False
        engine.settle_us = now_us() - started


# ---- room --------------------------------------------------------------------------------------

cdef bint make_room(Engine * engine, ContextBox * box, SequencePtr & wanting, uint64_t arrival,
                    int32_t n, NativeSequence * donor=NULL) noexcept nogil:
    """Find a slot and n cells, moving out who is idle, then who came later.

    donor: of those who are idle, it leaves last.
    """
    cdef NativeSequence * sequence = wanting.get()
    cdef size_t i
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
    """Move one other sequence out of the memory: of the idle ones whoever leaves_before() the
    others, else the youngest request that is not in this turn's batch yet. The oldest request so
    always gets on."""
    cdef NativeSequence * victim = NULL
    cdef NativeSequence * sequence
    cdef NativeRequest * youngest = NULL
    cdef size_t i, j
    cdef bint works
    for i in range(engine.slots.size()):
        sequence = engine.slots[i].get()
        if sequence is NULL or sequence == wanting:
            continue
        works = False
        for j in range(engine.working.size()):
            if engine.working[j].sequence.get() == sequence:
                works = True
                if (engine.working[j].arrival > arrival and not engine.working[j].in_batch
                        and (youngest is NULL or engine.working[j].arrival > youngest.arrival)):
                    youngest = engine.working[j]
        if not works and (victim is NULL or leaves_before(sequence, victim, donor)):
            victim = sequence
    if victim is NULL and youngest is not NULL:
        victim = youngest.sequence.get()
    if victim is NULL:
        return False
    park_cells(engine, box, victim)
    return True


cdef bint leaves_before(NativeSequence * a, NativeSequence * b,
                        NativeSequence * donor) noexcept nogil:
    """Who was used longest ago, but for those that are kept warm, and for the donor."""
    if a == donor or b == donor:
        return b == donor
    if a.warm != b.warm:
        return b.warm
    return a.last_used < b.last_used


# ---- leaving and coming back -------------------------------------------------------------------

cdef void park_cells(Engine * engine, ContextBox * box, NativeSequence * sequence) noexcept nogil:
    """Take a sequence out of the memory, keeping its state aside where there is room for it."""
    cdef int32_t exact = sequence.n_exact
    cdef SequencePtr held
    if sequence.slot >= 0:
        held = engine.slots[sequence.slot]  # the slot may be the last that has it
    if sequence.n_kv >= MIN_SHARED:
        settle_cells(engine, box)
        if not engine.broken.load():
            sequence.parked = park_state(engine.parking, box.context, sequence.slot, sequence.n_kv)
        sequence.n_parked = sequence.n_kv if sequence.parked else 0
        if sequence.parked:
            note_parked(engine, held)
    drop_cells(engine, box, sequence)
    if sequence.parked:
        sequence.n_exact = exact


cdef void note_parked(Engine * engine, SequencePtr & sequence) noexcept nogil:
    """Others may take over from a sequence's state that is kept aside."""
    forget_unparked(engine.parked)
    engine.parked.push_back(<WeakSequencePtr> sequence)


cdef int32_t bring_in(Engine * engine, ContextBox * box, SequencePtr & wanting,
                      uint64_t arrival) noexcept nogil:
    """Have as much of a sequence in the memory as can be had without computing it: what is there
    already or was kept aside, unless another, there or kept aside, has more in common with it.

    Returns how many tokens it took over from another.
    """
    cdef NativeSequence * sequence = wanting.get()
    cdef ParkedPtr own = sequence.parked
    cdef ParkedPtr others
    cdef int32_t n_own = sequence.n_parked if own and not own.get().dropped() else 0
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
    if n_parked > n_own and unpark_cells(engine, box, others, wanting, arrival, n_parked):
        return n_parked
    if n_own > 0 and unpark_cells(engine, box, own, wanting, arrival, n_own):
        sequence.n_exact = exact
    return 0


cdef bint unpark_cells(Engine * engine, ContextBox * box, ParkedPtr & parked,
                       SequencePtr & wanting, uint64_t arrival, int32_t n) noexcept nogil:
    """Put a state that was kept aside into the memory, and keep its first n tokens."""
    cdef NativeSequence * sequence = wanting.get()
    if not make_room(engine, box, wanting, arrival, parked.get().n_tokens):
        return False
    if (not unpark_state(parked.get()[0], box.context, sequence.slot)
            or llama_memory_seq_pos_max(llama_get_memory(box.context), sequence.slot)
            != parked.get().n_tokens - 1):
        drop_cells(engine, box, sequence)
        return False
    sequence.n_kv = parked.get().n_tokens
    trim_cells(engine, box, sequence, n)
    return sequence.n_kv > 0


cdef int32_t n_in_common(Engine * engine, NativeSequence * sequence, NativeSequence * other,
                         int32_t n_known, int32_t n_cells, int32_t oldest) noexcept nogil:
    """How many of another's first cells a sequence could have, 0 if not worth taking over.

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
    if n < n_cells and (engine.traits.recurrent or oldest > oldest_needed(engine, n)):
        return 0  # what is there cannot be cut to these
    return n if n >= MIN_SHARED else 0


cdef NativeSequence * best_donor(Engine * engine, ContextBox * box, NativeSequence * sequence,
                                 int32_t * n_common) noexcept nogil:
    """The sequence in memory with the longest beginning in common, NULL if not worth it."""
    cdef llama_memory_t memory = llama_get_memory(box.context)
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
                        llama_memory_seq_pos_min(memory, other.slot))
        if n > n_common[0]:
            n_common[0] = n
            best = other
    return best


cdef ParkedPtr best_parked(Engine * engine, NativeSequence * sequence,
                           int32_t * n_common) noexcept nogil:
    """The state kept aside with the longest beginning in common, null if not worth it."""
    cdef ParkedPtr best
    cdef SequencePtr other
    cdef size_t i
    cdef int32_t n, n_cells, oldest
    n_common[0] = 0
    forget_unparked(engine.parked)
    for i in range(engine.parked.size()):
        other = engine.parked[i].lock()
        if not other or other.get() == sequence:
            continue
        n_cells = other.get().parked.get().n_tokens
        # llama.cpp saves of a window what its last token sees.
        oldest = max(0, n_cells - engine.traits.n_swa) if engine.traits.n_swa > 0 else 0
        n = n_in_common(engine, sequence, other.get(), other.get().n_parked, n_cells, oldest)
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
        llama_memory_seq_cp(llama_get_memory(box.context), donor.slot, sequence.slot, -1, -1)
        engine.unsettled = True
        settle_cells(engine, box)  # before either's cells change
        sequence.n_kv = donor.n_kv
        if engine.traits.unified:  # a hybrid model's attention cells
            note_sharing(engine, donor.slot, sequence.slot, donor.n_kv)
        trim_cells(engine, box, sequence, n)
        return sequence.n_kv > 0
    llama_memory_seq_cp(llama_get_memory(box.context), donor.slot, sequence.slot, 0, n)
    sequence.n_kv = n
    note_sharing(engine, donor.slot, sequence.slot, n)
    return True


cdef void note_sharing(Engine * engine, llama_seq_id donor, llama_seq_id taker,
                       int32_t n) noexcept nogil:
    """The first n cells of a slot are those of another, and of all who have these."""
    cdef llama_seq_id other
    for other in range(<llama_seq_id> engine.slots.size()):
        if other != taker:
            shared_cells(engine, taker, other)[0] = min(n, shared_cells(engine, donor, other)[0])
            shared_cells(engine, other, taker)[0] = shared_cells(engine, taker, other)[0]
    shared_cells(engine, taker, donor)[0] = n
    shared_cells(engine, donor, taker)[0] = n
