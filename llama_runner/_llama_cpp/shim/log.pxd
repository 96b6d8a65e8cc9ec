from libcpp cimport bool
from libcpp.string cimport string
from libcpp.utility cimport pair
from libcpp.vector cimport vector

cdef extern from "process/log.hpp" namespace "llama_runner" nogil:
    void remember_error(const char * text)
    const char * last_error()
    void forget_error()
    bool defer_log(int level, const char * text)
    ctypedef pair[int, string] LogLine
    vector[LogLine] * take_deferred_log()
