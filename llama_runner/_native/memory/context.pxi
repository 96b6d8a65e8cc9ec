# Uses: errors, signals, machine, model, cells, room, loop, engine
#
# Context: one KV memory and the threads that compute on it.
from libc.stdlib cimport free
from libcpp.memory cimport make_shared

from llama_runner._llama_cpp.ggml cimport (
    GGML_TYPE_BF16,
    GGML_TYPE_F16,
    GGML_TYPE_F32,
    GGML_TYPE_IQ4_NL,
    GGML_TYPE_Q4_0,
    GGML_TYPE_Q4_1,
    GGML_TYPE_Q5_0,
    GGML_TYPE_Q5_1,
    GGML_TYPE_Q8_0,
    ggml_type,
)
from llama_runner._llama_cpp.llama cimport (
    LLAMA_FLASH_ATTN_TYPE_AUTO,
    LLAMA_FLASH_ATTN_TYPE_DISABLED,
    LLAMA_FLASH_ATTN_TYPE_ENABLED,
    llama_adapter_lora,
    llama_adapter_lora_free,
    llama_context,
    llama_context_default_params,
    llama_context_params,
    llama_flash_attn_type,
    llama_get_memory,
    llama_init_from_model,
    llama_memory_can_shift,
    llama_model,
    llama_model_get_vocab,
    llama_model_is_diffusion,
    llama_model_n_swa,
    llama_n_batch,
    llama_n_ctx,
    llama_n_ctx_seq,
    llama_n_seq_max,
    llama_n_threads,
    llama_n_threads_batch,
    llama_n_ubatch,
    llama_token,
    llama_vocab_get_suppress_tokens,
    llama_vocab_n_tokens,
)
from llama_runner._llama_cpp.shim.adapters cimport load_adapter
from llama_runner._llama_cpp.shim.finite cimport kv_tensors
from llama_runner._llama_cpp.shim.handles cimport ContextBox, own_context
from llama_runner._llama_cpp.shim.memory cimport (
    ChosenParams,
    MemoryUse,
    cell_bytes,
    chosen_params,
    learned_positions,
    memory_use,
    unfit_head,
)
from llama_runner._llama_cpp.shim.parking cimport drop_all
from llama_runner._llama_cpp.shim.state cimport (
    Adapter,
    Engine,
    NativeSequence,
    compute_with,
    forget_adapter,
)

import warnings as _warnings
import weakref as _weakref

_KV_TYPES = {
    "f32": <int> GGML_TYPE_F32,
    "f16": <int> GGML_TYPE_F16,
    "bf16": <int> GGML_TYPE_BF16,
    "q8_0": <int> GGML_TYPE_Q8_0,
    "q4_0": <int> GGML_TYPE_Q4_0,
    "q4_1": <int> GGML_TYPE_Q4_1,
    "iq4_nl": <int> GGML_TYPE_IQ4_NL,
    "q5_0": <int> GGML_TYPE_Q5_0,
    "q5_1": <int> GGML_TYPE_Q5_1,
}
_FLASH_ATTENTION = {
    "auto": <int> LLAMA_FLASH_ATTN_TYPE_AUTO,
    False: <int> LLAMA_FLASH_ATTN_TYPE_DISABLED,
    True: <int> LLAMA_FLASH_ATTN_TYPE_ENABLED,
}


cdef class Context:
    """A KV memory with ``n_seq_max`` sequences, and the threads that compute on it.

    Any number of threads may use one context: their requests are decoded together in one batch,
    and operations on the memory take turns with them.

    Args:
        model: The weights; kept alive by the context. On a model with ``no_alloc`` the context
            allocates nothing either: it is closed from the start, and its sizes in bytes are
            what they would be.
        n_ctx: Tokens of KV memory, for all sequences together; 0 is what the model was trained
            with. Rounded up to a multiple of 256. A sequence of a model with learned positions
            holds no more tokens than those.
        n_seq_max: Sequences that can be in the memory at once.
        n_threads: Threads that compute a single token.
        n_threads_batch: Threads that compute a prompt.
        n_batch, n_ubatch: Most tokens per llama.cpp call and per computation.
        flash_attention: "auto", True or False.
        kv_type: Storage type of keys and values, "f16" or another of llama.cpp's.
        unified: One pool of cells for all sequences, instead of an equal share for each.
        swa_full: Keep all positions of sliding-window layers, so that they can be rewound.
        offload_kqv: Keep the KV memory on the accelerator.
        rope_freq_base, rope_freq_scale: RoPE overrides; 0.0 is what the model says.
        parking_ram, parking_disk: Bytes for the states of sequences that had to leave the memory.
        parking_dir: The directory for those on disk.

    Raises:
        InvalidParameterError: A parameter is out of range, or not for this model; ``n_ctx`` lets a
            sequence go beyond the learned positions.
        OutOfMemoryError: llama.cpp could not allocate the context.
        UnsupportedModelError: The model cannot generate text.
        ClosedError: The model is closed.
    """

    def __cinit__(self):
        self.engine = new Engine()
        self.adapters = {}
        self.adapter_fingerprints = {}
        self.sequences = _weakref.WeakSet()
        self.owner = process_id()

    def __init__(self, Model model not None, *, int n_ctx=2048, int n_seq_max=1,
                 int n_threads=1, int n_threads_batch=1, int n_batch=2048, int n_ubatch=512,
                 flash_attention="auto", str kv_type="f16", bint unified=True,
                 bint swa_full=True, bint offload_kqv=True, float rope_freq_base=0,
                 float rope_freq_scale=0, size_t parking_ram=0, size_t parking_disk=0,
                 parking_dir=None):
        cdef shared_ptr[ModelBox] weights = model.alive()
        if model.vocab_only:
            raise UnsupportedModelError(
                "this model was loaded with vocab_only=True: it can tokenize but not generate"
            )
        self.memory_kind = memory_kind_of(weights.get().model)
        if self.memory_kind == "none" or llama_model_is_diffusion(weights.get().model):
            raise self._unsupported()

        for name, value in [("n_batch", n_batch), ("n_ubatch", n_ubatch), ("n_seq_max", n_seq_max),
                            ("n_threads", n_threads), ("n_threads_batch", n_threads_batch)]:
            if value < 1:  # llama.cpp would divide by it, or abort
                raise InvalidParameterError(f"{name}={value}: must be at least 1", field=name)
        if n_batch < n_seq_max:  # llama.cpp would abort
            raise InvalidParameterError(
                f"n_batch={n_batch}: must be at least n_seq_max={n_seq_max}", field="n_batch")
        if n_ctx < 0:
            raise InvalidParameterError(f"n_ctx={n_ctx}: must not be negative", field="n_ctx")
        cdef int32_t n_positions = learned_positions(weights.get().model)
        if n_positions and (n_ctx if unified else n_ctx // n_seq_max) > n_positions:
            raise InvalidParameterError(
                f"n_ctx={n_ctx}: this model has learned {n_positions} positions and knows no "
                f"others; give at most n_ctx={n_positions if unified else n_positions * n_seq_max}",
                field="n_ctx")

        cdef llama_context_params params = llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = n_batch
        params.n_ubatch = n_ubatch
        params.n_seq_max = n_seq_max
        # Only the last token of each sequence is ever asked for its logits.
        params.n_outputs_max = n_seq_max
        params.n_threads = n_threads
        params.n_threads_batch = n_threads_batch
        params.flash_attn_type = <llama_flash_attn_type> <int> _FLASH_ATTENTION[flash_attention]
        params.type_k = params.type_v = <ggml_type> <int> _KV_TYPES[kv_type]
        params.rope_freq_base = rope_freq_base
        params.rope_freq_scale = rope_freq_scale
        params.offload_kqv = offload_kqv
        params.swa_full = swa_full
        params.kv_unified = unified
        params.no_perf = True
        params.abort_callback = should_abort
        params.abort_callback_data = self.engine

        for keys_or_values, of_values in (("keys", False), ("values", True)):
            size = unfit_head(weights.get().model, params.type_k, of_values)
            if size:
                raise InvalidParameterError(
                    f"kv_type={kv_type!r}: stores numbers in blocks of 32, and the "
                    f"{keys_or_values} of this model's heads have {size}; use f32, f16 or bf16",
                    field="kv_type")

        cdef llama_context * created
        forget_error()
        with nogil:
            created = llama_init_from_model(weights.get().model, params)
        native = native_line() if created is NULL else None
        if native and "failed assertion at" in native:
            raise ModelLoadError(
                "llama.cpp cannot compute with this model: take another version of it, or other "
                "options", native=native)
        if created is NULL:
            raise OutOfMemoryError(
                f"llama.cpp cannot create a context of {n_ctx or 'the trained number of'} tokens: "
                "try a smaller n_ctx, another kv_type or flash_attention='auto'",
                native=native,
            )
        with nogil:
            self.box = own_context(weights, created, max(n_threads, n_threads_batch))
        if not self.box:
            raise OutOfMemoryError(
                f"cannot start {max(n_threads, n_threads_batch)} threads: give a smaller n_threads "
                "or n_threads_batch, or allow this process more")
        self.model = model
        if llama_get_memory(created) is NULL:
            self.box.reset()
            raise self._unsupported()
        self.n_ctx = llama_n_ctx(created)
        self.n_ctx_seq = llama_n_ctx_seq(created)
        if n_positions:  # llama.cpp rounds up
            self.n_ctx_seq = min(self.n_ctx_seq, n_positions)
        self.n_batch = llama_n_batch(created)
        self.n_ubatch = llama_n_ubatch(created)
        self.n_seq_max = llama_n_seq_max(created)
        self.unified = unified
        self.state_format = {"llama.cpp": native_version(), "memory_kind": self.memory_kind}
        cdef ChosenParams chosen = chosen_params(created)
        if self.memory_kind != "recurrent":
            # Not swa_full: of layers with a window, a state has what the window shows.
            self.state_format |= {
                "n_streams": 1 if unified else self.n_seq_max,
                "kv_type": kv_type,
                "flash_attention": chosen.flash_attention,
                "long_rope": chosen.long_rope,
                "rope_freq_base": chosen.rope_freq_base,
                "rope_freq_scale": chosen.rope_freq_scale,
            }
        self.engine.parking.ram_limit = parking_ram
        if parking_dir is not None:
            self.engine.parking.disk_limit = parking_disk
            self.engine.parking.directory = _os.fsencode(parking_dir)
        cdef MemoryUse use = memory_use(created)
        self.weights_bytes, self.kv_bytes, self.compute_bytes = use.weights, use.kv, use.compute
        self.host_bytes = use.host
        self.cell_bytes = cell_bytes(created)
        if model.no_alloc:
            self.box.reset()
            return
        self.engine.slots.resize(n_seq_max)
        self.engine.shared.resize(n_seq_max * n_seq_max)
        self._learn_traits(weights.get().model)
        _live_contexts.add(self)

    def _unsupported(self):
        return UnsupportedModelError(
            "this model does not generate text from left to right (it is an encoder, an "
            "encoder-decoder or a diffusion model): llama_runner runs decoder-only models"
        )

    cdef int _learn_traits(self, const llama_model * model) except -1:
        cdef int32_t n_suppressed = 0
        cdef const llama_token * suppressed = llama_vocab_get_suppress_tokens(
            llama_model_get_vocab(model), &n_suppressed)
        cdef Engine * engine = self.engine
        engine.suppressed.assign(suppressed, suppressed + n_suppressed)
        engine.traits.vocab = llama_model_get_vocab(model)
        engine.traits.n_vocab = llama_vocab_n_tokens(engine.traits.vocab)
        engine.traits.n_swa = llama_model_n_swa(model)
        engine.traits.recurrent = self.memory_kind in ("recurrent", "hybrid")
        engine.traits.can_shift = self.memory_kind == "plain" and llama_memory_can_shift(
            llama_get_memory(self.box.get().context))
        engine.traits.unified = self.unified
        engine.traits.n_ctx = self.n_ctx
        engine.traits.n_ctx_seq = self.n_ctx_seq
        engine.traits.n_ubatch = min(self.n_ubatch, self.n_batch)
        engine.cells = kv_tensors(self.box.get().context)
        return 0

    cdef shared_ptr[ContextBox] alive(self) except *:
        if self.closed:
            raise ClosedError("this runner is closed: create another")
        check_process(self.owner, "context")
        if self.engine.broken.load():
            raise broken_context(self.engine)
        return self.box

    def close(self):
        """Stop what runs on the context and free it. Calls that wait for it raise ClosedError.

        In a forked child, only forget it: it belongs to the parent.
        """
        cdef shared_ptr[ContextBox] last
        if process_id() != self.owner:
            self.box.reset()
        if not self.box:
            return
        with self._exclusive(to_close=True):
            drop_all(self.engine.parking)
            self.box.swap(last)
        with nogil:
            last.reset()

    @property
    def closed(self):
        return self.engine.closed or not self.box

    @property
    def n_threads(self):
        cdef shared_ptr[ContextBox] box = self.alive()
        return llama_n_threads(box.get().context)

    @property
    def n_threads_batch(self):
        cdef shared_ptr[ContextBox] box = self.alive()
        return llama_n_threads_batch(box.get().context)

    @property
    def can_shift(self):
        """True if tokens can be removed from the middle without recomputing the rest."""
        return self.engine.traits.can_shift

    @property
    def speeds(self):
        """(prompt tokens per second, milliseconds of a shift or copy) as last seen; 0.0 if never.
        """
        cdef Engine * engine = self.engine
        rate = engine.prefill_tokens * 1e6 / engine.prefill_us if engine.prefill_us else 0.0
        return rate, engine.settle_us / 1e3

    @property
    def n_resident(self):
        """Cells of the KV memory that are in use; one that sequences share counts once."""
        self.alive()
        with self._exclusive():
            return used_cells(self.engine)

    def load_adapter(self, str name not None, path, file, str fingerprint=""):
        """Load a LoRA adapter, which requests can then ask for by name.

        Args:
            name: What to call it.
            path: Names the file; it is not opened.
            file: The file, open for reading bytes.
            fingerprint: What tells it from others; kept, not looked at.

        Raises:
            InvalidParameterError: The name is taken.
            ModelLoadError: llama.cpp refused the file, or cannot compute with it.
        """
        cdef shared_ptr[ContextBox] box = self.alive()
        cdef llama_model * model = box.get().model.get().model
        cdef FILE * stream
        cdef llama_adapter_lora * adapter = NULL
        if name in self.adapters:
            raise InvalidParameterError(
                f"name: there is an adapter {name!r} already; choose another name", field="name")
        forget_error()
        # A graph that is planned meanwhile would look at the model's list of adapters.
        with self._exclusive():
            stream = _new_stream(file, path)
            try:
                with nogil:
                    adapter = load_adapter(model, stream)
            finally:
                fclose(stream)
        if adapter is NULL:
            raise ModelLoadError(
                f"llama.cpp cannot compute with the adapter {_os.fsdecode(path)}: it was not made "
                "for this model", native=native_line())
        self.adapters[name] = <size_t> adapter
        self.adapter_fingerprints[name] = fingerprint

    def unload_adapter(self, str name not None):
        """Free a LoRA adapter. Sequences that it computed go on without it, and start anew.

        Raises:
            InvalidParameterError: No adapter has this name.
            ContextBusyError: A sequence is generating with it.
        """
        cdef shared_ptr[ContextBox] box = self.alive()
        cdef vector[Adapter] nothing
        cdef Sequence sequence
        cdef llama_adapter_lora * adapter
        cdef string error
        with self._exclusive():  # until it ends, no sequence takes up an adapter
            adapter = self._adapter(name, "name")
            users = [sequence for sequence in self.sequences if sequence.computes_with(adapter)]
            for sequence in users:
                sequence.idle()
            for sequence in users:
                trim_cells(self.engine, box.get(), sequence.native.get(), 0)
                forget_adapter(sequence.native.get().adapters, adapter)
            if compute_with(self.engine[0], box.get().context, nothing, error) != 0:
                raise OutOfMemoryError("there is no memory to go on without the adapter")
            del self.adapters[name], self.adapter_fingerprints[name]
            with nogil:
                llama_adapter_lora_free(adapter)

    cdef llama_adapter_lora * _adapter(self, name, str field) except NULL:
        if name not in self.adapters:
            raise InvalidParameterError(
                f"{field}: no adapter {name!r} is loaded; loaded are "
                f"{', '.join(map(repr, self.adapters)) or 'none'}", field=field)
        return <llama_adapter_lora *> <size_t> self.adapters[name]

    cdef int find_adapters(self, pairs, vector[Adapter] & found) except -1:
        cdef Adapter adapter
        for name, scale in pairs:
            adapter.weights = self._adapter(name, "lora")
            adapter.scale = scale
            found.push_back(adapter)
        return 0

    def check(self):
        """Raise ClosedError or ForkedProcessError where the context cannot be used."""
        self.alive()

    def new_sequence(self):
        """A new, empty :class:`Sequence`. It takes a slot in the memory when it is first used."""
        self.alive()
        cdef Sequence sequence = Sequence.__new__(Sequence)
        sequence.context = self
        sequence.native = make_shared[NativeSequence]()
        self.sequences.add(sequence)
        return sequence

    def _allow_unknown_positions(self):
        """For tests: let sequences grow beyond learned positions, which fails an assertion of ggml.
        """
        self.n_ctx_seq = self.engine.traits.n_ctx_seq = self.n_ctx

    def _exclusive(self, bint to_close=False):
        return _Exclusive(self, to_close, None)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __del__(self):
        # What lives until the process ends was not forgotten: the process itself closes it.
        if self.box and process_id() == self.owner and not process_exits.load():
            _warnings.warn(f"{self!r} was never closed: use close() or 'with'", ResourceWarning,
                           stacklevel=2, source=self)

    def __dealloc__(self):
        if process_id() != self.owner:
            return  # destroying its monitor would wait for threads that only the parent has
        with nogil:
            self.box.reset()
        del self.engine

    def __repr__(self):
        return (f"<Context n_ctx={self.n_ctx} n_seq_max={self.n_seq_max} "
                f"{'closed' if self.closed else self.memory_kind}>")


cdef object broken_context(Engine * engine):
    return DecodeError(
        "llama.cpp gave up in an earlier call, which leaves this context undefined: close this "
        "runner and create another",
        native=engine.broken_by.decode("utf-8", "replace") or None)


# Contexts to stop before the interpreter exits; see exit.pxi.
_live_contexts = _weakref.WeakSet()
