from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp cimport bool
from libcpp.atomic cimport atomic
from libcpp.memory cimport shared_ptr, weak_ptr
from libcpp.random cimport mt19937
from libcpp.string cimport string
from libcpp.vector cimport vector

from llama_runner._llama_cpp.llama cimport (
    llama_adapter_lora,
    llama_context,
    llama_sampler,
    llama_seq_id,
    llama_token,
    llama_token_data,
    llama_vocab,
    set_python_error,
)
from llama_runner._llama_cpp.shim.finite cimport KvTensors
from llama_runner._llama_cpp.shim.parking cimport ParkedPtr, Parking

cdef extern from "decode/state.hpp" namespace "llama_runner" nogil:
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
