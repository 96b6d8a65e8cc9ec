# Uses: errors, token_ids, cells, parking, sharing, loop
#
# Sequence: one conversation's ledger of tokens, as Python holds it.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy
from libcpp.algorithm cimport equal
from libcpp.string_view cimport string_view

from llama_runner._llama_cpp.llama cimport (
    LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY,
    llama_get_memory,
    llama_memory_seq_pos_max,
    llama_memory_seq_pos_min,
    llama_memory_t,
    llama_token,
)
from llama_runner._llama_cpp.shim.detokenize cimport token_ends
from llama_runner._llama_cpp.shim.parking cimport adopt_state
from llama_runner._llama_cpp.shim.state cimport append_tokens, spliced, tokens_of


@cython.no_gc_clear  # __dealloc__ needs the context
cdef class Sequence:
    """One conversation's tokens: what is in the KV memory, and what waits to be decoded.

    Made by :meth:`Context.new_sequence`. Not in the memory until first used; when other sequences
    need the room, an idle one leaves and is decoded again on its next use.
    """

    def __init__(self):
        raise TypeError("a Sequence comes from Context.new_sequence()")

    # Returns a share, to be held as long as the sequence is used: another thread may close it
    # whenever the GIL is released, as Python code and the wait for a lock do.
    cdef SequencePtr alive(self) except *:
        self.context.alive()
        if not self.native:
            raise ClosedError("this conversation is closed: make another session")
        return self.native

    cdef SequencePtr idle(self) except *:
        cdef SequencePtr held = self.alive()
        if held.get().user is not NULL:
            raise ContextBusyError(
                "this conversation is generating: finish, close or cancel its stream first"
            )
        return held

    def _held(self):
        return _Exclusive(self.context, False, self)

    def __len__(self):
        cdef size_t n
        cdef Engine * engine = self.context.engine
        cdef SequencePtr native = self.native
        if not native:
            return 0
        if process_id() != self.context.owner:
            return native.get().tokens.size()  # a thread of the parent may have the monitor
        with nogil:
            engine.monitor.lock()
            n = native.get().tokens.size()
            engine.monitor.unlock()
        return n

    @property
    def closed(self):
        """True if it or its context was closed."""
        return not self.native or self.context.closed

    @property
    def n_cached(self):
        """How many of the tokens, from the first, are in the KV memory."""
        return self.native.get().n_kv if self.native else 0

    @property
    def kv_bytes(self):
        """What its tokens take in the KV memory now; cells that it shares with others in full."""
        cdef CellBytes bytes = self.context.cell_bytes
        cdef size_t n = self.n_cached
        if n == 0:
            return 0
        return n * bytes.cell + min(n, bytes.n_window) * bytes.window_cell + bytes.state

    @property
    def n_shared(self):
        """How many of the tokens, from the first, have cells that are another sequence's, too."""
        cdef Engine * engine = self.context.engine
        cdef llama_seq_id slot = self.native.get().slot if self.native else -1
        if slot < 0:
            return 0
        return most_shared(engine, slot, <llama_seq_id> engine.slots.size())

    @property
    def busy(self):
        """True if a generation on this sequence was begun and is not yet done or closed."""
        return self.native.get().user is not NULL if self.native else False

    @property
    def tokens(self):
        """The whole ledger: numpy int32 array, shape (n,), a copy."""
        cdef Engine * engine = self.context.engine
        cdef SequencePtr held = self.alive()
        cdef vector[llama_token] tokens
        with nogil:
            tokens = tokens_of(deref(engine), deref(held.get()))
        return new_token_array(tokens.data(), tokens.size())

    def token_at(self, Py_ssize_t index):
        """One token id of the ledger."""
        cdef Engine * engine = self.context.engine
        cdef SequencePtr held = self.alive()
        cdef Py_ssize_t n
        cdef llama_token token = -1
        with nogil:
            engine.monitor.lock()
            n = <Py_ssize_t> held.get().tokens.size()
            if 0 <= index < n:
                token = held.get().tokens[index]
            engine.monitor.unlock()
        if not 0 <= index < n:
            raise IndexError(f"no token {index} in a sequence of {n}")
        return token

    def common_prefix(self, tokens):
        """How many tokens, from the first, the ledger has in common with others."""
        cdef vector[llama_token] others, ledger
        cdef size_t i = 0
        cdef Engine * engine = self.context.engine
        cdef SequencePtr held = self.alive()
        read_tokens(tokens, others)
        with nogil:
            ledger = tokens_of(deref(engine), deref(held.get()))
        while i < others.size() and i < ledger.size() and ledger[i] == others[i]:
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
        cdef int last = self.context.engine.traits.n_vocab - 1
        cdef SequencePtr held = self.idle()  # first: what is closed takes nothing, right or wrong
        read_tokens(tokens, added, last)
        for i in range(added.size()):
            if not 0 <= added[i] <= last:
                raise no_such_token(added[i], i, last)
        held = self.idle()  # reading them may have run Python code
        with nogil:
            append_tokens(self.context.engine[0], held.get()[0], added)

    def truncate(self, Py_ssize_t n):
        """Forget all but the first n tokens."""
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        cdef Engine * engine = self.context.engine
        if not 0 <= n <= <Py_ssize_t> native.tokens.size():
            raise InvalidParameterError(
                f"n: must be between 0 and {native.tokens.size()} (got {n})", field="n")
        if n < max(native.n_kv, native.n_parked):
            with self._held():
                trim_cells(self.context.engine, self.context.box.get(), native, <int32_t> n)
        elif n <= native.n_exact:
            native.n_exact = INT_MAX  # what is left is exact, and what is to come will be
        with nogil:
            engine.monitor.lock()
            native.tokens.resize(n)
            engine.monitor.unlock()

    def remove(self, Py_ssize_t start, Py_ssize_t stop):
        """Remove tokens[start:stop] and close the gap.

        Returns:
            "shift" if what follows stayed in the memory at lower positions, else "rebuild": it
            will be decoded again.
        """
        cdef bint shifted
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        cdef Engine * engine = self.context.engine
        cdef ContextBox * box = self.context.box.get()
        if not 0 <= start < stop <= <Py_ssize_t> native.tokens.size():
            raise InvalidParameterError(
                f"start, stop: no tokens {start}:{stop} in a sequence of {native.tokens.size()}",
                field="start")
        with self._held():
            with nogil:
                shifted = remove_cells(engine, box, native, <int32_t> start, <int32_t> stop)
        return "shift" if shifted else "rebuild"

    def graft(self, Sequence branch not None, Py_ssize_t start, Py_ssize_t stop):
        """Replace tokens[start:stop] by a branch's tokens, and move what follows.

        Args:
            branch: A fork that kept the first ``start`` tokens and has others after them, all
                of them decoded. The caller closes it.

        Returns:
            False if the memory does not have what it takes, and nothing has changed: both
            sequences' cells in the unified layout of plain attention, and what follows not shared.
        """
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        cdef SequencePtr held_branch = branch.idle()
        cdef NativeSequence * other = held_branch.get()
        cdef Engine * engine = self.context.engine
        cdef ContextBox * box = self.context.box.get()
        cdef vector[llama_token] added, tokens
        cdef bint grafted
        if (not 0 <= start <= stop <= <Py_ssize_t> native.tokens.size()
                or branch is self
                or branch.context is not self.context
                or start > <Py_ssize_t> other.tokens.size()
                or not equal(native.tokens.begin(), native.tokens.begin() + start,
                             other.tokens.begin())):
            raise InvalidParameterError(
                f"start, stop: no tokens {start}:{stop} that a branch could replace",
                field="start")
        added.assign(other.tokens.begin() + start, other.tokens.end())
        tokens = spliced(native.tokens, start, stop, added)
        with self._held():
            with nogil:
                grafted = graft_cells(engine, box, native, other, <int32_t> start, <int32_t> stop,
                                      tokens)
        return grafted

    def check(self):
        """Raise ClosedError or ForkedProcessError where it cannot be used."""
        self.alive()

    def check_idle(self):
        """Raise ContextBusyError, ClosedError or ForkedProcessError where it cannot be changed."""
        self.idle()

    def forget_from(self, Py_ssize_t n):
        """Remove tokens from index n on from the memory; they are decoded again when needed."""
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        with self._held():
            trim_cells(self.context.engine, self.context.box.get(), native, <int32_t> max(0, n))

    def n_left_of(self, int n):
        """How many tokens the memory would keep if it had to be cut to the first n."""
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        with self._held():
            return n_left_of(self.context.engine, self.context.box.get(), native, n)

    def evict(self):
        """Evict it from the memory: park its state if there is room, or decode it again later."""
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        cdef Engine * engine = self.context.engine
        cdef ContextBox * box = self.context.box.get()
        with self._held():
            with nogil:
                park_cells(engine, box, native)

    def bring_in(self):
        """Restore it into the memory, if it is parked and there is room."""
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        cdef Engine * engine = self.context.engine
        cdef ContextBox * box = self.context.box.get()
        if native.n_kv == 0 and native.parked:
            with self._held():
                with nogil:
                    bring_in(engine, box, self.native, 0)

    def fork(self):
        """A second sequence that begins with the same tokens and, where it can, the same cells.

        In the unified layout of a model without recurrent state this copies no cell.
        """
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        cdef Sequence child = self.context.new_sequence()
        cdef Engine * engine = self.context.engine
        cdef ContextBox * box = self.context.box.get()
        cdef bint shared = False
        with self._held():
            child.native.get().tokens.assign(native.tokens.begin(), native.tokens.end())
            child.native.get().adapters.assign(native.adapters.begin(), native.adapters.end())
            engine.clock += 1
            # Both: what makes room for one of them should not move the other out.
            native.last_used = child.native.get().last_used = engine.clock
            if native.n_kv > 0:
                with nogil:
                    shared = share_cells(engine, box, native, child.native, 0, native.n_kv)
            if not shared and native.parked:
                # Not in the memory, or moved out of the only slot.
                child.native.get().parked = native.parked
                child.native.get().n_parked = native.n_parked
                child.native.get().n_exact = native.n_exact
                note_parked(deref(engine), child.native)
        return child

    def decoding(self):
        """A :class:`Request` that decodes what waits and generates nothing.

        Raises:
            As :class:`Request`.
        """
        return Request(self)

    def next_logits(self):
        """Decode what waits and return the logits of the token that would come next.

        Returns:
            numpy float32 array, shape (n_vocab,), a copy.

        Raises:
            As :class:`Request`.
        """
        import numpy
        cdef Request request = self.decoding()
        request.run()
        logits = numpy.empty(request.native.get().logits.size(), dtype=numpy.float32)
        cdef float[::1] view = logits
        memcpy(&view[0], request.native.get().logits.data(),
               request.native.get().logits.size() * sizeof(float))
        return logits

    def save_state(self, *, bint partial=False):
        """Copy the cells of the tokens in memory, or parked, as bytes; b"" if there are none.

        Args:
            partial: Only what cannot be rewound: a recurrent state, a window cache.

        Returns:
            (state, n): llama.cpp's bytes, and of how many tokens. They fit the same model with
            the same context settings only, and llama.cpp does not check that.
        """
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        cdef vector[uint8_t] state
        cdef int32_t n
        cdef ContextBox * box = self.context.box.get()
        cdef Engine * engine = self.context.engine
        cdef uint32_t flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        with self._held():
            with nogil:
                n = copy_state(engine, box, self.native, flags, state)
        if n > 0 and state.empty():
            raise DecodeError("llama.cpp cannot save this sequence's state", native=native_line())
        return (<char *> state.data())[:state.size()], n

    def rewind_state(self, const uint8_t[::1] state not None, Py_ssize_t n):
        """Go back to the first n tokens of the ledger where the memory cannot be rewound.

        Args:
            state: What ``save_state(partial=True)`` gave for these tokens. What is not part of it
                must still be in the memory.
            n: Of how many tokens.

        Returns:
            False where it is not, and nothing has changed.

        Raises:
            DecodeError: llama.cpp refuses the state; the cells are gone, the ledger stays.
        """
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        cdef Engine * engine = self.context.engine
        cdef ContextBox * box = self.context.box.get()
        cdef bint rewound
        check_state(native, state.shape[0], n)
        with self._held():
            if native.n_kv < n:
                return False
            with nogil:
                rewound = rewind_cells(engine, box, native, &state[0], state.shape[0], <int32_t> n)
        if not rewound:
            raise DecodeError("llama.cpp refuses this state: it was made with another model or "
                              "other context settings", native=native_line())
        return True

    def adopt_state(self, const uint8_t[::1] state not None, Py_ssize_t n, Py_ssize_t n_exact):
        """Park cells that :meth:`save_state` gave; the next use restores them.

        If llama.cpp then refuses them, the tokens are decoded again.

        Args:
            state: From a context with the same model and settings, not partial.
            n: Of how many tokens; the ledger has them already.
            n_exact: How many of them do not depend on tokens that are no longer in the ledger.
        """
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        cdef Engine * engine = self.context.engine
        check_state(native, state.shape[0], n)
        with self._held():
            drop_cells(engine, self.context.box.get(), native)
            with nogil:
                native.parked = adopt_state(engine.parking, &state[0], state.shape[0], <int32_t> n)
            native.n_parked = <int32_t> n
            native.n_exact = INT_MAX if n_exact >= n else <int32_t> max(0, n_exact)
            note_parked(deref(engine), self.native)

    @property
    def n_exact(self):
        """How many tokens' cells do not depend on tokens that are no longer in the ledger."""
        return min(len(self), self.alive().get().n_exact)

    def keep_warm(self):
        """Until its next use, evict it only after all sequences that are not kept warm."""
        self.idle().get().warm = True

    @property
    def adapters(self):
        """The LoRA adapters that it computes with: tuple of (name, scale)."""
        cdef size_t i
        cdef SequencePtr held = self.alive()
        cdef NativeSequence * native = held.get()
        names = {address: name for name, address in self.context.adapters.items()}
        return tuple([(names[<size_t> native.adapters[i].weights], native.adapters[i].scale)
                      for i in range(native.adapters.size())])

    def use_adapters(self, adapters):
        """Compute with these LoRA adapters from now on; with others, the tokens are decoded again.

        Args:
            adapters: Pairs of a name and a scale.

        Raises:
            InvalidParameterError: No adapter of this name is loaded.
        """
        cdef vector[Adapter] wanted
        cdef SequencePtr held = self.idle()
        cdef NativeSequence * native = held.get()
        self.context.find_adapters(adapters, wanted)
        if wanted == native.adapters:
            return
        with self._held():
            wanted.clear()
            self.context.find_adapters(adapters, wanted)  # one may have been unloaded meanwhile
            trim_cells(self.context.engine, self.context.box.get(), native, 0)
            native.adapters = wanted

    cdef bint computes_with(self, const llama_adapter_lora * adapter):
        cdef size_t i
        for i in range(self.native.get().adapters.size() if self.native else 0):
            if self.native.get().adapters[i].weights == adapter:
                return True
        return False

    @property
    def positions(self):
        """(pos_min, pos_max) as llama.cpp sees this sequence; (-1, -1) when not in the memory."""
        cdef llama_memory_t memory
        cdef SequencePtr held = self.alive()
        cdef NativeSequence * native = held.get()
        with self.context._exclusive():
            if native.slot < 0:
                return -1, -1
            memory = llama_get_memory(self.context.box.get().context)
            return (llama_memory_seq_pos_min(memory, native.slot),
                    llama_memory_seq_pos_max(memory, native.slot))

    def match_text(self, Py_ssize_t start, bytes text not None, *, bytes skip=b""):
        """Find how far the tokens from ``start`` on spell this text.

        A token's leading space that is not in the text is forgiven at the beginning of the ledger
        and after a special token: SentencePiece vocabularies put one there. To a vocabulary that
        writes spaces as U+2581, a U+2581 in the text is a space.

        Args:
            start: Index of the first token to compare.
            text: UTF-8.
            skip: What of the text is passed over between two tokens.

        Returns:
            numpy int64 array, shape (n,): for each token that matches, where it ends in the text.
        """
        cdef shared_ptr[ContextBox] box = self.context.alive()
        cdef SequencePtr held = self.alive()
        cdef Engine * engine = self.context.engine
        cdef vector[llama_token] tokens
        with nogil:
            tokens = tokens_of(deref(engine), deref(held.get()))
        cdef size_t n = tokens.size()
        cdef size_t begin = min(<size_t> max(0, start), n)
        cdef string_view data = string_view(<const char *> text, len(text))
        cdef string_view passed = string_view(<const char *> skip, len(skip))
        cdef vector[int64_t] ends
        cdef int64_t[::1] view
        with nogil:
            ends = token_ends(engine.traits.vocab, tokens, begin, n, data, passed)
        import numpy
        found = numpy.empty(ends.size(), dtype=numpy.int64)
        if ends.size():
            view = found
            memcpy(&view[0], ends.data(), ends.size() * sizeof(int64_t))
        return found

    def close(self):
        """Forget everything and give the slot back."""
        if not self.native:
            return
        # A broken context has no slots to give.
        if (process_id() == self.context.owner and not self.context.closed
                and not self.context.engine.broken.load()):
            self.idle()
            try:
                with self._held():
                    drop_cells(self.context.engine, self.context.box.get(), self.native.get())
            except ClosedError:
                pass  # another thread has just closed it, and its slot is gone
        self.native.reset()

    def __dealloc__(self):
        cdef Engine * engine
        cdef ContextBox * box
        if self.native and self.context.box and process_id() == self.context.owner:
            engine, box = self.context.engine, self.context.box.get()
            with nogil:
                give_up_slot(engine, box, self.native)

    def __repr__(self):
        return f"<Sequence {len(self)} tokens, {self.n_cached} in memory>"


cdef int check_state(NativeSequence * sequence, Py_ssize_t n_bytes, Py_ssize_t n) except -1:
    """Refuse bytes that cannot be the state of the first n tokens of this ledger."""
    if not 0 < n <= <Py_ssize_t> sequence.tokens.size() or n_bytes == 0:
        raise InvalidParameterError(
            f"state, n: {n_bytes} bytes cannot be the state of the first {n} of "
            f"{sequence.tokens.size()} tokens", field="n")
    return 0
