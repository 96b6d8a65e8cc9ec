# The extension types of _core: a piece may name one before the piece that defines it.
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libcpp.memory cimport shared_ptr
from libcpp.vector cimport vector

from llama_runner._llama_cpp.llama cimport (
    llama_adapter_lora,
    llama_model,
    llama_token,
    llama_vocab,
)
from llama_runner._llama_cpp.shim.chat cimport ChatTemplates
from llama_runner._llama_cpp.shim.handles cimport ContextBox, ModelBox
from llama_runner._llama_cpp.shim.memory cimport CellBytes
from llama_runner._llama_cpp.shim.state cimport Adapter, Engine, RequestPtr, SequencePtr


cdef struct StringView:  # bytes that another object keeps alive
    const unsigned char * data
    size_t size


cdef struct HashKey:  # a random number and its square
    uint64_t once
    uint64_t squared


cdef class StringArray:
    cdef bytes header
    cdef const char * data  # of the header
    cdef vector[uint32_t] starts  # of each string's length, and the end of the last one
    cdef StringView raw(self, size_t index) noexcept nogil
    cdef StringView text(self, size_t index, char * stand_in) noexcept nogil
    cdef size_t n_heads(self) noexcept nogil
    cdef void hash_all(self, uint32_t * hashes, HashKey key) noexcept nogil
    cdef size_t first_duplicate(self, const uint32_t * hashes, uint64_t * buckets,
                                size_t mask) noexcept nogil
    cdef bint is_repeated(self, const uint32_t * hashes, size_t index) noexcept nogil


cdef class Model:
    cdef shared_ptr[ModelBox] box
    cdef readonly str path
    cdef readonly str fingerprint
    cdef readonly bint vocab_only
    cdef readonly bint no_alloc
    cdef shared_ptr[ModelBox] alive(self) except *


cdef class Vocab:
    cdef Model model
    cdef readonly int n_tokens
    cdef int _read_from(self, Model model) except -1
    cdef shared_ptr[ModelBox] alive(self) except *
    cdef llama_token one_of_mine(self, object item) except -1
    cdef int _tokenize_into(self, text, bint add_special, bint parse_special,
                            vector[llama_token] & out) except -1


cdef class ChatTemplate:
    cdef ChatTemplates native


cdef class Context:
    cdef shared_ptr[ContextBox] box
    cdef Engine * engine
    cdef long owner  # the process that made it: its threads and locks exist only there
    cdef readonly Model model
    cdef readonly int n_ctx
    cdef readonly int n_ctx_seq
    cdef readonly int n_batch
    cdef readonly int n_ubatch
    cdef readonly int n_seq_max
    cdef readonly size_t weights_bytes  # on all devices together, as are the next two
    cdef readonly size_t kv_bytes
    cdef readonly size_t compute_bytes
    cdef readonly size_t host_bytes  # what of the three is in the machine's own memory
    cdef CellBytes cell_bytes  # of the KV memory, for one sequence
    cdef readonly str memory_kind
    cdef readonly bint unified
    cdef readonly dict state_format  # what else than the model a sequence's cells depend on
    cdef readonly dict adapter_fingerprints  # by name
    cdef dict adapters  # LoRA adapters by name: addresses of what is freed with the model at last
    cdef object sequences  # those that may compute with them
    cdef object __weakref__
    cdef shared_ptr[ContextBox] alive(self) except *
    cdef llama_adapter_lora * _adapter(self, name, str field) except NULL
    cdef int find_adapters(self, pairs, vector[Adapter] & found) except -1
    cdef int _learn_traits(self, const llama_model * model) except -1


cdef class Sequence:
    cdef readonly Context context
    cdef SequencePtr native
    cdef object __weakref__
    cdef SequencePtr alive(self) except *
    cdef SequencePtr idle(self) except *
    cdef bint computes_with(self, const llama_adapter_lora * adapter)


cdef class Request:
    cdef readonly Sequence sequence
    cdef RequestPtr native
    cdef int raise_failure(self) except -1
    cdef Engine * _shared_engine(self) except NULL
    cdef bint _cancel(self)
