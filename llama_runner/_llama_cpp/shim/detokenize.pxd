from libc.stdint cimport int64_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.string_view cimport string_view
from libcpp.vector cimport vector

from llama_runner._llama_cpp.llama cimport llama_token, llama_vocab, set_python_error

cdef extern from "text/detokenize.hpp" namespace "llama_runner" nogil:
    int64_t detokenize(
        const llama_vocab * vocab, const llama_token * tokens, size_t n, bool strip_prefix,
        bool remove_special, bool unparse_special, string & out) except +set_python_error
    vector[int64_t] token_ends(
        const llama_vocab * vocab, const vector[llama_token] & tokens, size_t begin, size_t end,
        string_view text, string_view skip) except +set_python_error
