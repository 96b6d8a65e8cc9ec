from libc.stdint cimport int32_t, uint32_t
from libcpp cimport bool

from llama_runner._llama_cpp.ggml cimport ggml_type
from llama_runner._llama_cpp.llama cimport llama_context, llama_model, set_python_error

cdef extern from "memory/memory.hpp" namespace "llama_runner" nogil:
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
