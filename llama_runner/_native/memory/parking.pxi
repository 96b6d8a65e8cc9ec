# Uses: cells
#
# Parking: a sequence leaves the memory, and its state is kept outside of it.
#
# Everything here must be called by the holder of the loop.
from cython.operator cimport dereference as deref
from libc.stdint cimport int32_t

from llama_runner._llama_cpp.shim.handles cimport ContextBox
from llama_runner._llama_cpp.shim.parking cimport park_state
from llama_runner._llama_cpp.shim.state cimport Engine, NativeSequence, SequencePtr, note_parked


cdef void park_cells(Engine * engine, ContextBox * box, NativeSequence * sequence) noexcept nogil:
    """Remove a sequence from the memory, and park its state if there is room for it."""
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
            note_parked(deref(engine), held)
    drop_cells(engine, box, sequence)
    if sequence.parked:
        sequence.n_exact = exact


cdef bint is_kept_aside(NativeSequence * sequence) noexcept nogil:
    """Return whether a sequence is out of the memory and has a state to restore."""
    return (sequence.n_kv == 0 and sequence.n_parked > 0 and <bint> sequence.parked
            and not sequence.parked.get().dropped())
