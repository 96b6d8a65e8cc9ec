# Uses: nothing
#
# The KV memory's cells: which sequence has how many, and which are the same.
#
# Ledger: tokens[0:n_kv] of a sequence are in the memory at positions 0..n_kv-1, tokens[n_kv:] wait
# to be decoded. So forgetting cells is always safe: lower n_kv, and they are decoded again.
#
# Sharing: in the unified layout two sequences can have the same physical cells for their first
# tokens. engine.shared says how many, for each pair of slots; llama.cpp moves a cell for all that
# have it, so a shared one is never shifted, and it is counted once.
#
# Everything here must be called by the holder of the loop.
from cython.operator cimport dereference as deref
from libc.limits cimport INT_MAX
from libc.stdint cimport int32_t, int64_t, uint8_t
from libcpp.vector cimport vector

from llama_runner._llama_cpp.llama cimport (
    LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY,
    llama_seq_id,
    llama_token,
)
from llama_runner._llama_cpp.shim.guard cimport settle
from llama_runner._llama_cpp.shim.parking cimport restore_state
from llama_runner._llama_cpp.shim.state cimport (
    Engine,
    NativeSequence,
    break_context,
    first_in_memory,
    last_in_memory,
    move_in_memory,
    now_us,
    remove_in_memory,
    share_in_memory,
)

# Fewer cells are decoded sooner than copied, and not worth sharing.
cdef enum:
    MIN_SHARED = 32


cdef inline int32_t * shared_cells(Engine * engine, llama_seq_id a, llama_seq_id b) noexcept nogil:
    return &engine.shared[a * <int32_t> engine.slots.size() + b]


cdef void limit_sharing(Engine * engine, llama_seq_id slot, int32_t n) noexcept nogil:
    """Note that a slot shares at most its first n cells with others from now on."""
    cdef llama_seq_id other
    for other in range(<llama_seq_id> engine.slots.size()):
        if other != slot and shared_cells(engine, slot, other)[0] > n:
            shared_cells(engine, slot, other)[0] = n
            shared_cells(engine, other, slot)[0] = n


cdef int32_t most_shared(Engine * engine, llama_seq_id slot, llama_seq_id below) noexcept nogil:
    """Count the cells that a slot shares with any slot of a lower number than ``below``."""
    cdef llama_seq_id other
    cdef int32_t most = 0
    for other in range(below):
        if other != slot:
            most = max(most, shared_cells(engine, slot, other)[0])
    return most


cdef void drop_cells(Engine * engine, ContextBox * box, NativeSequence * sequence) noexcept nogil:
    """Remove a sequence from the memory; its ledger stays and is decoded again when needed."""
    cdef llama_seq_id slot = sequence.slot
    sequence.slot = -1
    sequence.n_kv = 0
    sequence.n_exact = INT_MAX
    if slot >= 0:
        if not engine.broken.load():
            remove_in_memory(deref(engine), box.context, slot, -1, -1)
        limit_sharing(engine, slot, 0)
        engine.slots[slot].reset()  # frees a sequence without another holder


cdef void limit_parked(NativeSequence * sequence, int32_t n) noexcept nogil:
    """Note that at most the first n tokens of the parked state still match this ledger."""
    sequence.n_parked = min(sequence.n_parked, n)
    if sequence.n_parked <= 0:
        sequence.parked.reset()


cdef inline int32_t oldest_needed(Engine * engine, int32_t n) noexcept nogil:
    """Return the first position whose cell is needed to continue after the first n tokens."""
    return max(0, n - engine.traits.n_swa + 1) if engine.traits.n_swa > 0 else 0


cdef inline bint can_cut(Engine * engine, int32_t n_cells, int32_t n,
                         int32_t oldest) noexcept nogil:
    """Do the first n of so many cells serve by themselves? ``oldest``: from where on a window has
    them."""
    return n >= n_cells or not (engine.traits.recurrent or oldest > oldest_needed(engine, n))


cdef int32_t n_left_of(Engine * engine, ContextBox * box, NativeSequence * sequence,
                       int32_t n) noexcept nogil:
    """Count the tokens that the memory would keep if it was cut to the first n."""
    if sequence.n_kv <= n:
        return sequence.n_kv
    # A window cache says yes even when the cells before n are gone: look.
    return n if can_cut(engine, sequence.n_kv, n, first_in_memory(
        deref(engine), box.context, sequence.slot)) else 0


cdef void trim_cells(Engine * engine, ContextBox * box, NativeSequence * sequence,
                     int32_t n) noexcept nogil:
    """Keep at most the first n tokens in the memory; none where it cannot be rewound to them."""
    limit_parked(sequence, n)
    if sequence.n_kv <= n:
        return
    if (n_left_of(engine, box, sequence, n) == 0
            or not remove_in_memory(deref(engine), box.context, sequence.slot, n, -1)
            or last_in_memory(deref(engine), box.context, sequence.slot) != n - 1):
        drop_cells(engine, box, sequence)
    else:
        keep_cells(engine, sequence, n)


cdef bint rewind_cells(Engine * engine, ContextBox * box, NativeSequence * sequence,
                       const uint8_t * state, size_t size, int32_t n) noexcept nogil:
    """Go back to the first n tokens with a copy of the part that cannot be rewound, as it was then.

    False if llama.cpp refuses it; then all cells are removed.
    """
    # The part that can be rewound still has the later cells.
    if (not restore_state(box.context, sequence.slot, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY, state,
                          size)
            or not remove_in_memory(deref(engine), box.context, sequence.slot, n, -1)
            or last_in_memory(deref(engine), box.context, sequence.slot) != n - 1):
        drop_cells(engine, box, sequence)
        return False
    keep_cells(engine, sequence, n)
    return True


cdef void keep_cells(Engine * engine, NativeSequence * sequence, int32_t n) noexcept nogil:
    """Note that the memory has the first n tokens of a sequence and no more."""
    limit_sharing(engine, sequence.slot, n)
    limit_parked(sequence, n)
    sequence.n_kv = n
    if n <= sequence.n_exact:
        sequence.n_exact = INT_MAX


cdef bint remove_cells(Engine * engine, ContextBox * box, NativeSequence * sequence,
                       int32_t start, int32_t stop) noexcept nogil:
    """Remove tokens[start:stop] from ledger and memory; True if what follows was shifted."""
    cdef bint shifted = False
    if (engine.traits.can_shift and sequence.n_kv > stop and most_shared(
            engine, sequence.slot, <llama_seq_id> engine.slots.size()) <= stop):
        remove_in_memory(deref(engine), box.context, sequence.slot, start, stop)
        move_in_memory(
            deref(engine), box.context, sequence.slot, stop, sequence.n_kv, start - stop)
        limit_sharing(engine, sequence.slot, start)
        sequence.n_kv -= stop - start
        sequence.n_exact = min(sequence.n_exact, start)
        engine.unsettled = True
        shifted = True
    else:
        trim_cells(engine, box, sequence, start)
    limit_parked(sequence, start)
    engine.monitor.lock()
    sequence.tokens.erase(sequence.tokens.begin() + start, sequence.tokens.begin() + stop)
    engine.monitor.unlock()
    return shifted


cdef bint graft_cells(Engine * engine, ContextBox * box, NativeSequence * sequence,
                      NativeSequence * branch, int32_t start, int32_t stop,
                      vector[llama_token] & tokens) noexcept nogil:
    """Replace tokens[start:stop] by what a branch has from ``start`` on. False if the memory does
    not have the cells for it; then nothing has changed.

    tokens: the ledger as it is then.
    """
    cdef int32_t n_branch = <int32_t> branch.tokens.size()
    cdef int32_t shift = n_branch - stop
    if (not engine.traits.can_shift or not engine.traits.unified
            or sequence.n_kv <= stop or branch.slot < 0 or branch.n_kv < n_branch
            or not (sequence.adapters == branch.adapters)
            or most_shared(engine, sequence.slot, <llama_seq_id> engine.slots.size()) > stop
            # What others have of the branch would not be among the first cells of the sequence.
            or most_shared(engine, branch.slot, <llama_seq_id> engine.slots.size()) > start):
        return False
    remove_in_memory(deref(engine), box.context, sequence.slot, start, stop)
    move_in_memory(deref(engine), box.context, sequence.slot, stop, sequence.n_kv, shift)
    share_in_memory(
        deref(engine), box.context, branch.slot, sequence.slot, start, n_branch)
    drop_cells(engine, box, branch)  # or it would share cells that are not its first ones
    limit_sharing(engine, sequence.slot, start)
    limit_parked(sequence, start)
    sequence.n_kv += shift
    sequence.n_exact = min(sequence.n_exact, n_branch)
    engine.unsettled = True
    engine.monitor.lock()
    sequence.tokens.swap(tokens)
    engine.monitor.unlock()
    return True


cdef void settle_cells(Engine * engine, ContextBox * box) noexcept nogil:
    """Carry out shifts and copies that llama.cpp has postponed.

    Until then a saved state would have the old keys; and an abort in the middle of a decode that
    begins with it would leave some of the keys moved, and all of them due to be moved again.
    """
    cdef string error
    cdef int64_t started
    if engine.unsettled:
        started = now_us()
        engine.settling = True
        if settle(box.context, error) != 0:
            break_context(deref(engine), error)
        engine.settling = False
        engine.unsettled = False
        engine.settle_us = now_us() - started

cdef void drop_orphans(Engine * engine, ContextBox * box) noexcept nogil:
    cdef size_t i
    if not engine.has_orphans:
        return
    engine.has_orphans = False
    for i in range(engine.slots.size()):
        if engine.slots[i] and engine.slots[i].get().orphan:
            drop_cells(engine, box, engine.slots[i].get())
