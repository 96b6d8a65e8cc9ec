# llama.h: names verbatim, only what is used. `except +` marks what can throw.
from libc.stdint cimport int8_t, int32_t, int64_t, uint32_t, uint64_t
from libc.stdio cimport FILE
from libcpp cimport bool

from llama_runner._llama_cpp.ggml cimport ggml_abort_callback, ggml_log_callback, ggml_type

cdef extern from "process/guard.hpp" namespace "llama_runner" nogil:
    void set_python_error()
    void set_load_error()

cdef extern from "llama.h" nogil:
    const uint32_t LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY

    ctypedef int32_t llama_token
    ctypedef int32_t llama_pos
    ctypedef int32_t llama_seq_id

    cdef struct llama_model:
        pass
    cdef struct llama_context:
        pass
    cdef struct llama_vocab:
        pass
    cdef struct llama_memory_i:
        pass
    ctypedef llama_memory_i * llama_memory_t
    cdef struct llama_sampler:
        pass

    cdef enum llama_load_mode:
        LLAMA_LOAD_MODE_AUTO
        LLAMA_LOAD_MODE_NONE
        LLAMA_LOAD_MODE_MMAP
        LLAMA_LOAD_MODE_MLOCK
        LLAMA_LOAD_MODE_MMAP_MLOCK
        LLAMA_LOAD_MODE_DIRECT_IO

    cdef enum llama_split_mode:
        LLAMA_SPLIT_MODE_NONE
        LLAMA_SPLIT_MODE_LAYER
        LLAMA_SPLIT_MODE_ROW

    cdef enum llama_flash_attn_type:
        LLAMA_FLASH_ATTN_TYPE_AUTO
        LLAMA_FLASH_ATTN_TYPE_DISABLED
        LLAMA_FLASH_ATTN_TYPE_ENABLED

    cdef enum llama_vocab_type_t "llama_vocab_type":
        LLAMA_VOCAB_TYPE_NONE

    cdef enum llama_rope_type:
        LLAMA_ROPE_TYPE_MROPE
        LLAMA_ROPE_TYPE_IMROPE

    ctypedef bool (*llama_progress_callback)(float progress, void * user_data) noexcept

    cdef struct llama_model_params:
        int32_t n_gpu_layers
        llama_split_mode split_mode
        llama_load_mode load_mode
        int32_t main_gpu
        llama_progress_callback progress_callback
        void * progress_callback_user_data
        bool vocab_only
        bool check_tensors
        bool use_extra_bufts
        bool no_alloc

    cdef struct llama_context_params:
        uint32_t n_ctx
        uint32_t n_batch
        uint32_t n_ubatch
        uint32_t n_seq_max
        uint32_t n_outputs_max
        int32_t n_threads
        int32_t n_threads_batch
        llama_flash_attn_type flash_attn_type
        float rope_freq_base
        float rope_freq_scale
        ggml_type type_k
        ggml_type type_v
        ggml_abort_callback abort_callback
        void * abort_callback_data
        bool offload_kqv
        bool no_perf
        bool swa_full
        bool kv_unified

    cdef struct llama_adapter_lora:
        pass

    ctypedef struct llama_batch:
        int32_t n_tokens
        llama_token * token
        llama_pos * pos
        int32_t * n_seq_id
        llama_seq_id ** seq_id
        int8_t * logits

    ctypedef struct llama_token_data:
        llama_token id
        float logit
        float p

    ctypedef struct llama_token_data_array:
        llama_token_data * data
        size_t size
        int64_t selected
        bool sorted

    ctypedef struct llama_sampler_chain_params:
        bool no_perf

    const char * llama_version()
    const char * llama_print_system_info()
    void llama_backend_init()
    void llama_log_set(ggml_log_callback callback, void * user_data)

    llama_model_params llama_model_default_params()
    llama_context_params llama_context_default_params()

    llama_model * llama_model_load_from_file(
        const char * path, llama_model_params params) except +set_load_error
    llama_model * llama_model_load_from_file_ptr(
        FILE * file, llama_model_params params) except +set_load_error
    const llama_vocab * llama_model_get_vocab(const llama_model * model)
    llama_rope_type llama_model_rope_type(const llama_model * model)
    int32_t llama_model_n_ctx_train(const llama_model * model)
    int32_t llama_model_n_embd(const llama_model * model)
    int32_t llama_model_n_layer(const llama_model * model)
    int32_t llama_model_n_swa(const llama_model * model)
    uint64_t llama_model_size(const llama_model * model)
    uint64_t llama_model_n_params(const llama_model * model)
    int32_t llama_model_desc(const llama_model * model, char * buf, size_t size)
    int32_t llama_model_meta_count(const llama_model * model)
    int32_t llama_model_meta_key_by_index(
        const llama_model * model, int32_t i, char * buf, size_t size)
    int32_t llama_model_meta_val_str_by_index(
        const llama_model * model, int32_t i, char * buf, size_t size)
    const char * llama_model_chat_template(const llama_model * model, const char * name)
    bool llama_model_has_encoder(const llama_model * model)
    bool llama_model_has_decoder(const llama_model * model)
    bool llama_model_is_recurrent(const llama_model * model)
    bool llama_model_is_hybrid(const llama_model * model)
    bool llama_model_is_diffusion(const llama_model * model)

    void llama_adapter_lora_free(llama_adapter_lora * adapter)

    llama_context * llama_init_from_model(
        llama_model * model, llama_context_params params) except +set_load_error
    uint32_t llama_n_ctx(const llama_context * ctx)
    uint32_t llama_n_ctx_seq(const llama_context * ctx)
    uint32_t llama_n_batch(const llama_context * ctx)
    uint32_t llama_n_ubatch(const llama_context * ctx)
    uint32_t llama_n_seq_max(const llama_context * ctx)
    int32_t llama_n_threads(llama_context * ctx)
    int32_t llama_n_threads_batch(llama_context * ctx)
    void llama_free(llama_context * ctx)
    llama_memory_t llama_get_memory(const llama_context * ctx)
    float * llama_get_logits_ith(llama_context * ctx, int32_t i)

    bool llama_memory_seq_rm(llama_memory_t mem, llama_seq_id seq, llama_pos p0, llama_pos p1)
    void llama_memory_seq_cp(
        llama_memory_t mem, llama_seq_id source, llama_seq_id target, llama_pos p0, llama_pos p1)
    void llama_memory_seq_add(
        llama_memory_t mem, llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta)
    llama_pos llama_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq)
    llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq)
    bool llama_memory_can_shift(llama_memory_t mem)

    llama_vocab_type_t llama_vocab_type(const llama_vocab * vocab)
    int32_t llama_vocab_n_tokens(const llama_vocab * vocab)
    bool llama_vocab_is_eog(const llama_vocab * vocab, llama_token token)
    bool llama_vocab_is_control(const llama_vocab * vocab, llama_token token)
    llama_token llama_vocab_bos(const llama_vocab * vocab)
    llama_token llama_vocab_eos(const llama_vocab * vocab)
    llama_token llama_vocab_eot(const llama_vocab * vocab)
    llama_token llama_vocab_sep(const llama_vocab * vocab)
    llama_token llama_vocab_nl(const llama_vocab * vocab)
    llama_token llama_vocab_pad(const llama_vocab * vocab)
    llama_token llama_vocab_mask(const llama_vocab * vocab)
    llama_token llama_vocab_fim_pre(const llama_vocab * vocab)
    llama_token llama_vocab_fim_suf(const llama_vocab * vocab)
    llama_token llama_vocab_fim_mid(const llama_vocab * vocab)
    llama_token llama_vocab_fim_pad(const llama_vocab * vocab)
    llama_token llama_vocab_fim_rep(const llama_vocab * vocab)
    llama_token llama_vocab_fim_sep(const llama_vocab * vocab)
    bool llama_vocab_get_add_bos(const llama_vocab * vocab)
    bool llama_vocab_get_add_eos(const llama_vocab * vocab)
    const llama_token * llama_vocab_get_suppress_tokens(const llama_vocab * vocab, int32_t * n)

    llama_sampler_chain_params llama_sampler_chain_default_params()
    llama_sampler * llama_sampler_chain_init(
        llama_sampler_chain_params params) except +set_python_error
    void llama_sampler_chain_add(
        llama_sampler * chain, llama_sampler * sampler) except +set_python_error
    llama_sampler * llama_sampler_init_dist(uint32_t seed) except +set_python_error
    llama_sampler * llama_sampler_init_top_k(int32_t k) except +set_python_error
    llama_sampler * llama_sampler_init_top_p(float p, size_t min_keep) except +set_python_error
    llama_sampler * llama_sampler_init_min_p(float p, size_t min_keep) except +set_python_error
    llama_sampler * llama_sampler_init_temp(float t) except +set_python_error
