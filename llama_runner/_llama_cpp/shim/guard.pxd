from cpython.object cimport PyObject
from libc.stdint cimport int32_t
from libcpp cimport bool
from libcpp.string cimport string

from llama_runner._llama_cpp.llama cimport (
    llama_batch,
    llama_context,
    llama_sampler,
    llama_token,
    llama_token_data_array,
    llama_vocab,
)

cdef extern from "process/guard.hpp" namespace "llama_runner" nogil:
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
