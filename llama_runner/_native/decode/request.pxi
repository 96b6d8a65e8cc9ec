# Uses: errors, signals, logging, sampler, state, loop, turn, engine, context, sequence
#
# Request: one generation on one sequence, from its parameters to its text.
from libcpp.memory cimport make_shared
from llama_runner._llama_cpp.llama cimport llama_token, llama_vocab_is_eog
from llama_runner._llama_cpp.shim.state cimport SamplerState, output_of, text_of

_FINISH_REASONS = {
    <int> Finish.Stop: "stop",
    <int> Finish.Length: "length",
    <int> Finish.Cancelled: "cancelled",
}


@cython.no_gc_clear  # __dealloc__ needs the sequence and, through it, the context
cdef class Request:
    """A generation that continues a sequence's tokens.

    Nothing is computed before :meth:`run` or the first :meth:`read`. Between them it rests: only
    a caller that waits for its text makes it advance. Until it is done or closed, the sequence
    can be used for nothing else.

    Args:
        sequence: With at least one token; prompt and output stay in its ledger.
        sampler: GenerationParams with a seed; None to decode what waits and generate nothing.
        max_tokens: Tokens to generate at most; negative for no limit but the context's.
        stops: Strings that end the generation.
        temporary: Take the sequence out of the memory when done.

    Raises:
        PromptTooLongError: The sequence leaves no room for one more token.
        InvalidParameterError: The sequence is empty.
        ContextBusyError: The sequence is generating already.
    """

    def __init__(self, Sequence sequence not None, *, sampler=None, int max_tokens=-1, stops=(),
                 bint temporary=False):
        cdef SequencePtr held = sequence.idle()
        self.sequence = sequence
        self.native = make_shared[NativeRequest]()
        self.native.get().sequence = held
        held.get().user = self.native.get()  # from here on only this request changes it
        try:
            self._prepare(sequence, sampler, max_tokens, stops, temporary)
        except BaseException:
            self.close()
            raise

    def _prepare(self, Sequence sequence, sampler, int max_tokens, stops, bint temporary):
        cdef Engine * engine = sequence.context.engine
        cdef NativeRequest * native = self.native.get()
        # Another thread may close the context meanwhile, and the vocabulary goes with the model.
        cdef shared_ptr[ContextBox] box = sequence.context.alive()
        n_tokens, room = native.sequence.get().tokens.size(), sequence.context.n_ctx_seq
        if n_tokens == 0:
            raise InvalidParameterError(
                "prompt: there is no token to begin from (the prompt is empty)", field="prompt")
        if n_tokens >= room:
            raise PromptTooLongError(
                f"the prompt has {n_tokens:,} tokens, but a sequence of this context holds "
                f"{room:,}, one of them for the answer: shorten it by {n_tokens - room + 1:,} "
                "tokens or raise n_ctx"
            )
        native.temporary = temporary
        native.max_tokens = INT_MAX if max_tokens < 0 else max_tokens
        native.n_prompt = n_tokens
        if sampler is None:
            native.probe = True
            native.logits.reserve(engine.traits.n_vocab)
        else:
            self._prepare_sampler(sampler)
        for stop in stops:
            native.stops.push_back(stop.encode())
            native.longest_stop = max(native.longest_stop, native.stops.back().size())
        with nogil:
            engine.monitor.lock()
            engine.arrivals += 1
            native.arrival = engine.arrivals
            engine.monitor.unlock()

    def _prepare_sampler(self, params):
        cdef Engine * engine = self.sequence.context.engine
        cdef SamplerState * state = &self.native.get().sampler
        cdef llama_token token
        prepare_sampler(
            state[0], read_recipe(params), False, engine.traits.n_vocab, engine.traits.n_ctx)
        state.suppressed.assign(engine.suppressed.begin(), engine.suppressed.end())
        if params.ignore_eos:
            for token in range(engine.traits.n_vocab):
                if llama_vocab_is_eog(engine.traits.vocab, token):
                    state.suppressed.push_back(token)
        state.patches.reserve(state.window.capacity() + state.suppressed.size())

    def run(self):
        """Generate to the end.

        Raises:
            ContextFullError, DecodeError, OutOfMemoryError: This request failed; others go on.
            ClosedError: The context was closed meanwhile.
            KeyboardInterrupt: Or whatever else a signal handler raised.
        """
        self._advance(False)

    def check(self):
        """Find out whether the request can be used in this process.

        Raises:
            ForkedProcessError: Another process made it.
        """
        check_process(self.sequence.context.owner, "request")

    def read(self, after=None):
        """Generate until there is text after what was read before.

        Args:
            after: What was read before, as that call said; by default, what the last call gave. A
                signal handler may raise before the caller received it; then the caller asks again.

        Returns:
            (text, tokens, read): the new text, whole characters only, the list of new token ids,
            and what is read with them. Both are empty, or the rest, when :attr:`done`.
        """
        cdef NativeRequest * native = self.native.get()
        cdef Engine * engine = self.sequence.context.engine
        cdef size_t start, n_start, n, end
        cdef string text
        cdef vector[llama_token] tokens
        if after is not None:
            native.taken, native.tokens_taken = after
        self._advance(True)
        with nogil:
            engine.monitor.lock()  # another thread may be reading, too, which makes it go on
            start, n_start = native.taken, native.tokens_taken
            n = native.output.size()
            if native.phase != Phase.Done:
                # A token whose text is held back may yet turn out to be part of a stop string.
                while n > n_start and native.output_starts[n - 1] >= native.released:
                    n -= 1
            native.taken, native.tokens_taken = native.released, n
            if start < native.released:
                text = native.text.substr(start, native.released - start)
            if n_start < n:
                tokens.assign(native.output.begin() + n_start, native.output.begin() + n)
            end = native.released
            engine.monitor.unlock()
        return text.decode("utf-8", "replace"), tokens, (end, n)

    def _advance(self, bint streaming):
        cdef Engine * engine = self.sequence.context.engine
        cdef NativeRequest * native = self.native.get()
        cdef shared_ptr[ContextBox] box
        cdef bint ran = True
        cdef int64_t started
        if native.phase != Phase.Done:
            box = self.sequence.context.alive()
            with nogil:
                started = now_us()
                ran = advance(engine, box.get(), native, streaming)
                if ran:
                    count_time(native, started)
        emit_deferred_log()
        if not ran:
            raise ContextBusyError(
                "this generation is being computed: another thread waits for it, or this call "
                "comes from a signal handler or callback inside it"
            )
        if PyThread_get_thread_ident() == main_thread:
            raise_interrupt(engine)
        self.raise_failure()

    cdef int raise_failure(self) except -1:
        cdef NativeRequest * native = self.native.get()
        cdef int32_t code = native.failure
        if native.finish != Finish.Failed:
            return 0
        cdef str cause = native.error.decode("utf-8", "replace") or None
        if code == CONTEXT_CLOSED:
            raise ClosedError("the context was closed while this request was generating")
        if code == NO_FINITE_LOGIT:
            raise DecodeError(
                "the model's largest logit is not finite: its weights are broken, or the KV type "
                "is too coarse for it"
            )
        if code == OUT_OF_RANGE:
            kv_type = self.sequence.context.state_format["kv_type"]
            raise DecodeError(
                f"keys or values of this sequence are too large for kv_type={kv_type!r}, or not "
                "numbers: take kv_type='bf16', or 'f32' with flash_attention=False; if that does "
                "not help, the weights are broken"
            )
        if code == kThrew:
            raise DecodeError(
                "llama.cpp gave up while decoding, which leaves its context undefined: close this "
                "runner and create another", native=cause)
        if code == kNoMemory:
            raise OutOfMemoryError(
                "there is no memory for decoding this batch, and llama.cpp's context is undefined "
                "now: close this runner and create another, with a smaller n_ctx or n_ubatch",
                native=cause)
        if code == CONTEXT_BROKEN:
            raise broken_context(self.sequence.context.engine)
        if code == NO_ROOM:
            raise ContextFullError(
                "the KV memory has no room for this sequence: clear a conversation or raise n_ctx")
        if code == -2:
            raise OutOfMemoryError(
                "llama.cpp could not allocate what this batch needs: try a smaller n_ubatch",
                native=cause)
        raise DecodeError(f"llama.cpp could not decode this batch (code {code})", native=cause)

    def cancel(self):
        """Stop as soon as possible, from any thread; what was generated so far stays."""
        self._cancel()

    cdef bint _cancel(self):
        # Returns whether a caller waits for the request; only then is an abort worth it.
        cdef Engine * engine = self.sequence.context.engine
        cdef bint waited_for
        self.native.get().cancelled.store(True)
        if process_id() != self.sequence.context.owner:
            return False  # the monitor may be held by a thread that only the parent has
        with nogil:
            engine.monitor.lock()
            waited_for = is_active(engine, self.native.get())
            if waited_for:
                engine.abort.store(True)
            engine.monitor.unlock()
        return waited_for

    def close(self, *, bint full=False):
        """Stop, and free the sequence for other uses.

        If another thread waits for this request, that thread's call ends.

        Args:
            full: Give the length as the reason, because no room could be made; not the caller.
        """
        cdef NativeRequest * native = self.native.get()
        cdef Engine * engine = self.sequence.context.engine
        cdef ContextBox * box
        if native.phase == Phase.Done or process_id() != self.sequence.context.owner:
            return
        if self._cancel():
            return
        native.phase = Phase.Done
        native.finish = Finish.Length if full else Finish.Cancelled
        native.released = native.text.size()
        if let_go(native) and native.temporary and self.sequence.context.box:
            box = self.sequence.context.box.get()
            with nogil:
                give_up_slot(engine, box, native.sequence)

    def __dealloc__(self):
        if self.native:
            self.close()

    @property
    def paused(self):
        """True if it is paused because the sequence reached ``pause_at`` (see :meth:`resume`) and
        was not closed since."""
        return self.native.get().paused and not self.done

    def lend(self):
        """Let the sequence be changed while the request is paused, until it is resumed or closed.

        The caller must keep others away from it.
        """
        if self.paused:
            let_go(self.native.get())

    def resume(self, int pause_at=0):
        """Let a paused request go on, or set its mark before it begins.

        Args:
            pause_at: Ledger length at which to pause (again); 0 is never.

        Raises:
            ContextBusyError: It was lent, and something else has the sequence now.
            ClosedError: The sequence was closed meanwhile.
        """
        cdef NativeRequest * native = self.native.get()
        if native.phase == Phase.Done:
            return
        if self.sequence.alive().get().user != <const void *> native:
            self.sequence.idle()
        if native.sequence.get().tokens.empty():
            raise InvalidParameterError("the sequence is empty: there is nothing to go on from")
        native.sequence.get().user = native
        native.pause_at = pause_at
        native.paused = False

    cdef Engine * _shared_engine(self) except NULL:
        # Whose monitor may be waited for: not that of another process.
        check_process(self.sequence.context.owner, "request")
        return self.sequence.context.engine

    @property
    def done(self):
        return self.native.get().phase == Phase.Done

    @property
    def text(self):
        """Everything generated so far, whole or not; may be read while another thread computes."""
        cdef Engine * engine = self._shared_engine()
        cdef string text
        with nogil:
            text = text_of(deref(engine), deref(self.native.get()))
        return text.decode("utf-8", "replace")

    @property
    def tokens(self):
        """Tuple of the generated token ids, without the one that ended the generation.

        May be read while another thread computes.
        """
        cdef Engine * engine = self._shared_engine()
        cdef vector[llama_token] output
        with nogil:
            output = output_of(deref(engine), deref(self.native.get()))
        return tuple(output)

    @property
    def finish_reason(self):
        """"stop", "length", "cancelled", or None while generating or after a failure."""
        return _FINISH_REASONS.get(<int> self.native.get().finish)

    @property
    def stop_index(self):
        """Which of the stop strings ended the generation, or None."""
        return None if self.native.get().stop_index < 0 else self.native.get().stop_index

    @property
    def stop_at(self):
        """Where the ledger's owner is to end it, without the stop string that ended the generation.

        None where there is nothing to do. It must be done where the stop string began inside a
        token (see :attr:`kept_text`), and where the model has a recurrent state, which knows of
        these tokens already: before the sequence is used again it is truncated, from a copy of an
        earlier state if there is one.
        """
        return None if self.native.get().stop_at < 0 else self.native.get().stop_at

    @property
    def kept_text(self):
        """Bytes of text to tokenise and append where the ledger ends at :attr:`stop_at`.

        They were shown, but their last token went on with the stop string. Empty where the string
        began with a token.
        """
        cdef NativeRequest * native = self.native.get()
        if native.stop_at < 0:
            return b""
        return <bytes> native.text.substr(native.kept_from)

    @property
    def counts(self):
        """(prompt, reused, shared, prefilled): ledger tokens at the start; those of them found in
        the memory; those taken over from another sequence; and those decoded for this request
        before its first output."""
        cdef NativeRequest * native = self.native.get()
        return native.n_prompt, native.n_reused, native.n_shared, native.n_prefilled

    @property
    def times_us(self):
        """(prefill, decode): how long callers waited for the first token, and for the others."""
        cdef NativeRequest * native = self.native.get()
        return native.prefill_us, native.decode_us


cdef void count_time(NativeRequest * request, int64_t started) noexcept nogil:
    """Add the time of one call: to the prefill until the first token, to the decoding after it."""
    cdef int64_t ended = now_us()
    cdef int64_t first = max(started, request.t_first) if request.t_first > 0 else ended
    request.prefill_us += first - started
    request.decode_us += ended - first
