# Sequence: one conversation's ledger of tokens and its place in the KV memory.
#
# Ledger: tokens[0:n_kv] are in the memory at positions 0..n_kv-1, tokens[n_kv:] wait to be decoded.
# So forgetting cells is always safe: lower n_kv, and the next turn decodes them again.
# The functions on native sequences must be called by whoever holds the loop.
from libc.string cimport memcmp

from llama_runner._llama_cpp.llama cimport (
    llama_get_memory,
    llama_memory_seq_add,
    llama_memory_seq_pos_max,
    llama_memory_seq_pos_min,
    llama_memory_seq_rm,
    llama_memory_t,
    llama_token,
    llama_vocab,
    llama_vocab_is_control,
)


cdef void drop_cells(Engine * engine, ContextBox * box, NativeSequence * sequence) noexcept nogil:
    """Take a sequence out of the memory; its ledger stays, to be decoded again."""
    if sequence.slot >= 0:
        llama_memory_seq_rm(llama_get_memory(box.context), sequence.slot, -1, -1)
        engine.slots[sequence.slot].reset()
        sequence.slot = -1
    sequence.n_kv = 0


cdef void trim_cells(Engine * engine, ContextBox * box, NativeSequence * sequence,
                     int32_t n) noexcept nogil:
    """Keep at most the first n tokens in the memory; all or nothing where it cannot rewind."""
    cdef llama_memory_t memory = llama_get_memory(box.context)
    cdef int32_t oldest_needed = 0
    if sequence.n_kv <= n:
        return
    if n == 0 or not llama_memory_seq_rm(memory, sequence.slot, n, -1):
        drop_cells(engine, box, sequence)
        return
    # A window cache says yes even when the cells before n are gone: look.
    if engine.traits.n_swa > 0:
        oldest_needed = max(0, n - engine.traits.n_swa)
    if (llama_memory_seq_pos_max(memory, sequence.slot) != n - 1
            or llama_memory_seq_pos_min(memory, sequence.slot) > oldest_needed):
        drop_cells(engine, box, sequence)
        return
    sequence.n_kv = n


cdef bint remove_cells(Engine * engine, ContextBox * box, NativeSequence * sequence,
                       int32_t start, int32_t stop) noexcept nogil:
    """Remove tokens[start:stop] from ledger and memory; True if what follows was shifted."""
    cdef llama_memory_t memory = llama_get_memory(box.context)
    cdef bint shifted = False
    if engine.traits.can_shift and sequence.n_kv > stop:
        llama_memory_seq_rm(memory, sequence.slot, start, stop)
        llama_memory_seq_add(memory, sequence.slot, stop, sequence.n_kv, start - stop)
        sequence.n_kv -= stop - start
        shifted = True
    else:
        trim_cells(engine, box, sequence, start)
    sequence.tokens.erase(sequence.tokens.begin() + start, sequence.tokens.begin() + stop)
    return shifted


@cython.no_gc_clear  # __dealloc__ needs the context
cdef class Sequence:
    """One conversation's tokens: what is in the KV memory, and what waits to be decoded.

    Made by :meth:`Context.new_sequence`. Not in the memory until first used; when other sequences
    need the room, an idle one leaves and is decoded again on its next use.
    """

    def __init__(self):
        raise TypeError("a Sequence comes from Context.new_sequence()")

    cdef NativeSequence * alive(self) except NULL:
        self.context.alive()
        if not self.native:
            raise ClosedError("this sequence is closed: make another")
        return self.native.get()

    cdef NativeSequence * idle(self) except NULL:
        cdef NativeSequence * native = self.alive()
        if native.busy:
            raise ContextBusyError(
                "this conversation is generating: finish, close or cancel its stream first"
            )
        return native

    def __len__(self):
        return self.native.get().tokens.size() if self.native else 0

    @property
    def n_cached(self):
        """How many of the tokens, from the first, are in the KV memory."""
        return self.native.get().n_kv if self.native else 0

    @property
    def busy(self):
        """Is a generation on this sequence begun and not yet done or closed?"""
        return self.native.get().busy if self.native else False

    @property
    def tokens(self):
        """The whole ledger: numpy int32 array, shape (n,), a copy."""
        cdef NativeSequence * native = self.alive()
        return new_token_array(native.tokens.data(), native.tokens.size())

    def token_at(self, Py_ssize_t index):
        """One token id of the ledger."""
        if not 0 <= index < len(self):
            raise IndexError(f"no token {index} in a sequence of {len(self)}")
        return self.native.get().tokens[index]

    def common_prefix(self, tokens):
        """How many tokens, from the first, the ledger has in common with others."""
        cdef vector[llama_token] others
        cdef size_t i = 0
        cdef NativeSequence * native = self.alive()
        read_tokens(tokens, others)
        while i < others.size() and i < native.tokens.size() and native.tokens[i] == others[i]:
            i += 1
        return i

    def append(self, tokens):
        """Add tokens to be decoded with the next generation.

        Raises:
            TokenizationError: An id out of range; nothing was added.
            ContextBusyError: The sequence is generating.
        """
        cdef vector[llama_token] added
        cdef size_t i
        cdef NativeSequence * native = self.idle()
        read_tokens(tokens, added)
        for i in range(added.size()):
            if not 0 <= added[i] < self.context.engine.traits.n_vocab:
                raise TokenizationError(
                    f"token id at index {i} is out of range: this vocabulary has ids 0 to "
                    f"{self.context.engine.traits.n_vocab - 1}"
                )
        native.tokens.insert(native.tokens.end(), added.begin(), added.end())

    def truncate(self, Py_ssize_t n):
        """Forget all but the first n tokens."""
        cdef NativeSequence * native = self.idle()
        if not 0 <= n <= <Py_ssize_t> native.tokens.size():
            raise InvalidParameterError(
                f"n: must be between 0 and {native.tokens.size()} (got {n})", field="n")
        if n < native.n_kv:
            with self.context._exclusive():
                trim_cells(self.context.engine, self.context.box.get(), native, <int32_t> n)
        native.tokens.resize(n)

    def remove(self, Py_ssize_t start, Py_ssize_t stop):
        """Remove tokens[start:stop] and close the gap.

        Returns:
            "shift" if what follows stayed in the memory at lower positions, else "rebuild": it
            will be decoded again.
        """
        cdef bint shifted
        cdef NativeSequence * native = self.idle()
        if not 0 <= start < stop <= <Py_ssize_t> native.tokens.size():
            raise InvalidParameterError(
                f"start, stop: no tokens {start}:{stop} in a sequence of {native.tokens.size()}",
                field="start")
        with self.context._exclusive():
            shifted = remove_cells(self.context.engine, self.context.box.get(), native,
                                   <int32_t> start, <int32_t> stop)
        return "shift" if shifted else "rebuild"

    def evict(self):
        """Leave the KV memory; the ledger stays and is decoded again on the next use."""
        cdef NativeSequence * native = self.idle()
        with self.context._exclusive():
            drop_cells(self.context.engine, self.context.box.get(), native)

    @property
    def positions(self):
        """(pos_min, pos_max) as llama.cpp sees this sequence; (-1, -1) when not in the memory."""
        cdef llama_memory_t memory
        cdef NativeSequence * native = self.alive()
        with self.context._exclusive():
            if native.slot < 0:
                return -1, -1
            memory = llama_get_memory(self.context.box.get().context)
            return (llama_memory_seq_pos_min(memory, native.slot),
                    llama_memory_seq_pos_max(memory, native.slot))

    def match_text(self, Py_ssize_t start, bytes text not None):
        """How far the tokens from ``start`` on spell this text.

        A token's leading space that is not in the text is forgiven at the start and behind a
        control token: SentencePiece vocabularies put one there.

        Args:
            start: Index of the first token to compare.
            text: UTF-8.

        Returns:
            (n_tokens, n_bytes): whole tokens that match, and the bytes of text they stand for.
        """
        cdef shared_ptr[ContextBox] box = self.context.alive()
        cdef NativeSequence * native = self.alive()
        cdef const llama_vocab * vocab = self.context.engine.traits.vocab
        cdef const char * data = text
        cdef size_t size = len(text)
        cdef size_t offset = 0
        cdef size_t i = max(0, start)
        cdef size_t skip
        cdef bint at_start = True
        cdef string piece, error
        with nogil:
            while i < native.tokens.size() and offset < size:
                piece.clear()
                append_piece(vocab, native.tokens[i], True, piece, error)
                skip = 0
                if at_start and piece.size() > 1 and piece[0] == b" " and data[offset] != b" ":
                    skip = 1
                if (piece.size() - skip > size - offset
                        or memcmp(piece.data() + skip, data + offset, piece.size() - skip) != 0):
                    break
                offset += piece.size() - skip
                at_start = llama_vocab_is_control(vocab, native.tokens[i])
                i += 1
        return i - max(0, start), offset

    def close(self):
        """Forget everything and give the slot back."""
        if not self.native:
            return
        if not self.context.closed:
            self.evict()
        self.native.reset()

    def __dealloc__(self):
        if (self.native and self.native.get().slot >= 0 and self.context.box
                and process_id() == self.context.owner):
            give_up_slot(self.context.engine, self.context.box.get(), self.native.get())

    def __repr__(self):
        return f"<Sequence {len(self)} tokens, {self.n_cached} in memory>"
