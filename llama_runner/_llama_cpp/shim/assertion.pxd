cdef extern from "process/assertion.hpp" namespace "llama_runner" nogil:
    void throw_assertion(const char * message)
