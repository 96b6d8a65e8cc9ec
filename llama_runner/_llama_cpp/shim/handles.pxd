from libcpp.memory cimport shared_ptr

from llama_runner._llama_cpp.ggml cimport ggml_threadpool
from llama_runner._llama_cpp.llama cimport llama_batch, llama_context, llama_model, set_python_error
from llama_runner._llama_cpp.shim.tokenizer cimport Tokenizer

cdef extern from "model/handles.hpp" namespace "llama_runner" nogil:
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
