from libcpp cimport bool

from llama_runner._llama_cpp.llama cimport llama_context, llama_pos, llama_seq_id, set_python_error

cdef extern from "memory/finite.hpp" namespace "llama_runner" nogil:
    cdef cppclass KvTensors:
        pass
    KvTensors kv_tensors(const llama_context * context) except +set_python_error
    bool cells_are_finite(const KvTensors & tensors, llama_seq_id sequence, llama_pos p0,
                          llama_pos p1) noexcept
    void zero_cells(const KvTensors & tensors, llama_seq_id sequence, llama_pos p0,
                    llama_pos p1) noexcept
