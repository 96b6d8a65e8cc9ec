from libcpp cimport bool
from libcpp.vector cimport vector

from llama_runner._llama_cpp.llama cimport llama_token, set_python_error
from llama_runner._llama_cpp.shim.interrupt cimport CheckSignals

cdef extern from "text/tokenizer.hpp" namespace "llama_runner" nogil:
    cdef struct TokenizeOptions:
        bool add_special
        bool parse_special
    cdef struct TextToTokenize:
        const char * data
        size_t size
        bool valid
    cdef cppclass KnownTokens:
        vector[llama_token] tokens
        size_t n_reused
    size_t common_prefix(const TextToTokenize & a, const TextToTokenize & b)
    cdef cppclass Tokenizer:
        void tokenize(
            const TextToTokenize & text, TokenizeOptions options, CheckSignals check_signals,
            vector[llama_token] & out) except +set_python_error
        void tokenize_after(
            const TextToTokenize & known_text, const KnownTokens & known,
            const TextToTokenize & text, TokenizeOptions options, CheckSignals check_signals,
            KnownTokens & out) except +set_python_error
        vector[size_t] inside_control(const TextToTokenize & text) except +set_python_error
        void tokenize_all(
            const vector[TextToTokenize] & texts, TokenizeOptions options, size_t n_threads,
            CheckSignals check_signals, vector[vector[llama_token]] & out) except +set_python_error
