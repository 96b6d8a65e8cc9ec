from libc.stdio cimport FILE

from llama_runner._llama_cpp.llama cimport llama_adapter_lora, llama_model, set_load_error

cdef extern from "model/adapters.hpp" namespace "llama_runner" nogil:
    llama_adapter_lora * load_adapter(
        llama_model * model, FILE * file) except +set_load_error
