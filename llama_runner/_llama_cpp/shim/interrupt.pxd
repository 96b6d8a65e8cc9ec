cdef extern from "process/interrupt.hpp" namespace "llama_runner" nogil:
    ctypedef int (* CheckSignals)() except -1
