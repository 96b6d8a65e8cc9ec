from libc.stdint cimport int32_t, uint32_t, uint8_t
from libcpp cimport bool
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from llama_runner._llama_cpp.llama cimport llama_context, llama_seq_id, set_python_error

cdef extern from "memory/parking.hpp" namespace "llama_runner" nogil:
    cdef cppclass ParkedState:
        int32_t n_tokens
        size_t size
        bool dropped()
    ctypedef shared_ptr[ParkedState] ParkedPtr
    cdef cppclass Parking:
        size_t ram_limit
        size_t disk_limit
        string directory
        const ParkedState * coming_in
    void drop_all(Parking & parking)
    size_t save_state(
        llama_context * context, llama_seq_id slot, uint32_t flags, vector[uint8_t] & out)
    bool restore_state(
        llama_context * context, llama_seq_id slot, uint32_t flags, const uint8_t * data,
        size_t size)
    ParkedPtr park_state(
        Parking & parking, llama_context * context, llama_seq_id slot, int32_t n_tokens)
    ParkedPtr adopt_state(Parking & parking, const uint8_t * data, size_t size,
                          int32_t n_tokens) except +set_python_error
    bool unpark_state(
        const ParkedState & parked, llama_context * context, llama_seq_id slot)
    bool read_parked(const ParkedState & parked, vector[uint8_t] & out)
