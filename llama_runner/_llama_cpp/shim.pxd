# llama_runner's own C++, in _shim/
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport FILE
from libcpp cimport bool
from libcpp.atomic cimport atomic
from libcpp.memory cimport shared_ptr, weak_ptr
from libcpp.random cimport mt19937
from libcpp.string cimport string
from libcpp.string_view cimport string_view
from libcpp.utility cimport pair
from libcpp.vector cimport vector

from llama_runner._llama_cpp.ggml cimport ggml_threadpool, ggml_type
from llama_runner._llama_cpp.llama cimport (
    llama_adapter_lora,
    llama_batch,
    llama_context,
    llama_model,
    llama_pos,
    llama_sampler,
    llama_seq_id,
    llama_token,
    llama_token_data,
    llama_token_data_array,
    llama_vocab,
    set_load_error,
    set_python_error,
)

cdef extern from "guard.hpp" namespace "llama_runner" nogil:
    const int32_t kThrew
    const int32_t kNoMemory
    cdef cppclass PythonErrors:
        PyObject * out_of_memory
        PyObject * runtime
        PyObject * decode
        PyObject * model_load
    PythonErrors & python_errors()
    int32_t decode(llama_context * ctx, const llama_batch & batch, string & error)
    int32_t settle(llama_context * ctx, string & error)
    bool apply_sampler(llama_sampler * sampler, llama_token_data_array * candidates)
    int32_t append_piece(
        const llama_vocab * vocab, llama_token token, bool special, string & out, string & error)

cdef extern from "assertion.hpp" namespace "llama_runner" nogil:
    void throw_assertion(const char * message)

cdef extern from "log.hpp" namespace "llama_runner" nogil:
    void remember_error(const char * text)
    const char * last_error()
    void forget_error()
    bool defer_log(int level, const char * text)
    ctypedef pair[int, string] LogLine
    vector[LogLine] * take_deferred_log()

cdef extern from "detokenize.hpp" namespace "llama_runner" nogil:
    int64_t detokenize(
        const llama_vocab * vocab, const llama_token * tokens, size_t n, bool strip_prefix,
        bool remove_special, bool unparse_special, string & out) except +set_python_error
    vector[int64_t] token_ends(
        const llama_vocab * vocab, const vector[llama_token] & tokens, size_t begin, size_t end,
        string_view text, string_view skip) except +set_python_error

cdef extern from "interrupt.hpp" namespace "llama_runner" nogil:
    ctypedef int (* CheckSignals)() except -1

cdef extern from "tokenizer.hpp" namespace "llama_runner" nogil:
    cdef struct TokenizeOptions:
        bool add_special
        bool parse_special
    cdef struct TextToTokenize:
        const char * data
        size_t size
        bool valid
    cdef cppclass KnownTokens:
        vector[llama_token] tokens
        size_t n_reused
    size_t common_prefix(const TextToTokenize & a, const TextToTokenize & b)
    cdef cppclass Tokenizer:
        void tokenize(
            const TextToTokenize & text, TokenizeOptions options, CheckSignals check_signals,
            vector[llama_token] & out) except +set_python_error
        void tokenize_after(
            const TextToTokenize & known_text, const KnownTokens & known,
            const TextToTokenize & text, TokenizeOptions options, CheckSignals check_signals,
            KnownTokens & out) except +set_python_error
        vector[size_t] inside_control(const TextToTokenize & text) except +set_python_error
        void tokenize_all(
            const vector[TextToTokenize] & texts, TokenizeOptions options, size_t n_threads,
            CheckSignals check_signals, vector[vector[llama_token]] & out) except +set_python_error

cdef extern from "handles.hpp" namespace "llama_runner" nogil:
    long process_id()
    cdef cppclass ModelBox:
        llama_model * model
        long owner
        Tokenizer tokenizer
    cdef cppclass ContextBox:
        shared_ptr[ModelBox] model
        llama_context * context
        ggml_threadpool * threadpool
        llama_batch batch
        long owner
    shared_ptr[ModelBox] own_model(llama_model * loaded) except +set_python_error
    shared_ptr[ContextBox] own_context(
        shared_ptr[ModelBox] parent, llama_context * created, int n_threads,
    ) except +set_python_error

cdef extern from "parking.hpp" namespace "llama_runner" nogil:
    cdef cppclass ParkedState:
        int32_t n_tokens
        size_t size
        bool dropped()
    ctypedef shared_ptr[ParkedState] ParkedPtr
    cdef cppclass Parking:
        size_t ram_limit
        size_t disk_limit
        string directory
        const ParkedState * coming_in
    void drop_all(Parking & parking)
    size_t save_state(
        llama_context * context, llama_seq_id slot, uint32_t flags, vector[uint8_t] & out)
    bool restore_state(
        llama_context * context, llama_seq_id slot, uint32_t flags, const uint8_t * data,
        size_t size)
    ParkedPtr park_state(
        Parking & parking, llama_context * context, llama_seq_id slot, int32_t n_tokens)
    ParkedPtr adopt_state(Parking & parking, const uint8_t * data, size_t size,
                          int32_t n_tokens) except +set_python_error
    bool unpark_state(
        const ParkedState & parked, llama_context * context, llama_seq_id slot)
    bool read_parked(const ParkedState & parked, vector[uint8_t] & out)

cdef extern from "finite.hpp" namespace "llama_runner" nogil:
    cdef cppclass KvTensors:
        pass
    KvTensors kv_tensors(const llama_context * context) except +set_python_error
    bool cells_are_finite(const KvTensors & tensors, llama_seq_id sequence, llama_pos p0,
                          llama_pos p1) noexcept
    void zero_cells(const KvTensors & tensors, llama_seq_id sequence, llama_pos p0,
                    llama_pos p1) noexcept

cdef extern from "state.hpp" namespace "llama_runner" nogil:
    int64_t now_us()

    cdef cppclass Monitor:
        void lock()
        void unlock()
        void notify_all()
        void wait_ms(int ms)

    cdef struct SamplerRecipe:
        float temperature
        int32_t top_k
        float top_p
        float min_p
        float repeat_penalty
        float frequency_penalty
        float presence_penalty
        int32_t penalty_last_n
        uint32_t seed

    cdef struct Candidate:
        float logit
        float p
        llama_token id

    cdef struct Patch:
        llama_token id
        float logit

    cdef cppclass SamplerState:
        SamplerRecipe recipe
        mt19937 rng
        vector[llama_token] suppressed
        vector[llama_token] window
        vector[float] block_max
        vector[float] block_max_scratch
        vector[Candidate] candidates
        vector[Patch] patches
        vector[llama_token_data] chain_data
        llama_sampler * chain
        bool use_chain

    cdef cppclass Adapter:
        llama_adapter_lora * weights
        float scale
        bool operator==(const Adapter & other)

    void forget_adapter(vector[Adapter] & adapters, const llama_adapter_lora * weights)

    cdef cppclass NativeSequence "llama_runner::Sequence":
        vector[llama_token] tokens
        int32_t n_kv
        int32_t n_exact
        llama_seq_id slot
        uint64_t last_used
        const void * user
        ParkedPtr parked
        int32_t n_parked
        bool orphan
        bool warm
        bool stays
        vector[Adapter] adapters
    ctypedef shared_ptr[NativeSequence] SequencePtr
    ctypedef weak_ptr[NativeSequence] WeakSequencePtr

    cdef enum class Phase:
        Prefill
        Decode
        Done

    cdef enum class Finish:
        None "None"
        Stop
        Length
        Cancelled
        Failed

    cdef cppclass NativeRequest "llama_runner::Request":
        SequencePtr sequence
        SamplerState sampler
        vector[string] stops
        size_t longest_stop
        int32_t max_tokens
        bool temporary
        int32_t pause_at
        bool probe
        bool streaming
        atomic[bool] cancelled
        bool in_batch
        bool suspect
        bool begun
        Phase phase
        Finish finish
        int32_t failure
        string error
        uint64_t arrival
        bool paused
        vector[llama_token] output
        vector[size_t] output_starts
        string text
        size_t released
        size_t taken
        size_t tokens_taken
        int32_t stop_index
        vector[float] logits
        int32_t stop_at
        size_t kept_from
        int32_t n_prompt
        int32_t n_reused
        int32_t n_shared
        int32_t n_prefilled
        int64_t t_first
        int64_t prefill_us
        int64_t decode_us
    ctypedef shared_ptr[NativeRequest] RequestPtr

    cdef struct Share:
        NativeRequest * request
        int32_t n_tokens
        int32_t output_index
        llama_token token

    cdef struct Traits:
        const llama_vocab * vocab
        int32_t n_vocab
        int32_t n_swa
        bool recurrent
        bool can_shift
        bool unified
        int32_t n_ctx
        int32_t n_ctx_seq
        int32_t n_ubatch

    cdef cppclass Engine:
        Traits traits
        Monitor monitor
        vector[NativeRequest *] active
        vector[SequencePtr] slots
        vector[int32_t] shared
        bool unsettled
        bool settling
        KvTensors cells
        Parking parking
        vector[WeakSequencePtr] parked
        bool has_orphans
        vector[NativeRequest *] working
        vector[Share] shares
        vector[llama_token] suppressed
        bool running
        bool closed
        atomic[bool] broken
        string broken_by
        int32_t exclusive_waiting
        size_t turn
        uint64_t clock
        uint64_t arrivals
        atomic[bool] abort
        NativeRequest * leader
        unsigned long leader_thread
        bool checks_signals
        uint32_t polls
        int64_t next_signal_check
        int64_t settle_us
        int64_t prefill_us
        int32_t prefill_tokens
        void * interrupt

    void break_context(Engine & engine, const string & error)
    vector[llama_token] spliced(const vector[llama_token] & tokens, size_t start, size_t stop,
                                const vector[llama_token] & added) except +set_python_error
    void append_tokens(Engine & engine, NativeSequence & sequence,
                       const vector[llama_token] & added) except +set_python_error
    void forget_unparked(vector[WeakSequencePtr] & sequences)
    void note_parked(Engine & engine, const SequencePtr & sequence)
    void set_text(string & text, const string & value)
    string text_of(Engine & engine, const NativeRequest & request) except +set_python_error
    vector[llama_token] tokens_of(
        Engine & engine, const NativeSequence & sequence) except +set_python_error
    vector[llama_token] output_of(
        Engine & engine, const NativeRequest & request) except +set_python_error
    bool add_active(Engine & engine, NativeRequest * request)
    bool has_room_for_turn(Engine & engine)
    bool remove_in_memory(
        Engine & engine, llama_context * context, llama_seq_id slot, int32_t begin, int32_t end)
    int32_t first_in_memory(Engine & engine, llama_context * context, llama_seq_id slot)
    int32_t last_in_memory(Engine & engine, llama_context * context, llama_seq_id slot)
    void share_in_memory(
        Engine & engine, llama_context * context, llama_seq_id source, llama_seq_id target,
        int32_t begin, int32_t end)
    void move_in_memory(
        Engine & engine, llama_context * context, llama_seq_id slot, int32_t begin, int32_t end,
        int32_t delta)
    void sort_by_arrival(vector[NativeRequest *] & requests)
    void keep_same_adapters(vector[NativeRequest *] & requests)
    int32_t compute_with(Engine & engine, llama_context * context,
                         const vector[Adapter] & adapters, string & error)

cdef extern from "chat.hpp" namespace "llama_runner" nogil:
    cdef cppclass ChatTemplates:
        ChatTemplates()
        bool operator bool()
    ChatTemplates chat_templates(
        const llama_model * model, const string & override_source,
        CheckSignals check_signals) except +set_python_error
    string chat_template_source(const ChatTemplates & templates) except +set_python_error
    string apply_chat_template(
        const ChatTemplates & templates, const string & messages,
        bint add_generation_prompt,
        CheckSignals check_signals) except +set_python_error

cdef extern from "adapters.hpp" namespace "llama_runner" nogil:
    llama_adapter_lora * load_adapter(
        llama_model * model, FILE * file) except +set_load_error

cdef extern from "memory.hpp" namespace "llama_runner" nogil:
    cdef struct MemoryUse:
        size_t weights
        size_t kv
        size_t compute
        size_t host
    MemoryUse memory_use(const llama_context * context) except +set_python_error
    cdef struct CellBytes:
        size_t cell
        size_t window_cell
        uint32_t n_window
        size_t state
    CellBytes cell_bytes(const llama_context * context) except +set_python_error
    cdef struct ChosenParams:
        bool flash_attention
        bool long_rope
        float rope_freq_base
        float rope_freq_scale
    int32_t learned_positions(const llama_model * model)
    ChosenParams chosen_params(const llama_context * context) except +set_python_error
    uint32_t unfit_head(
        const llama_model * model, ggml_type kind, bool of_values) except +set_python_error
