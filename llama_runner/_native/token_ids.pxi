# Token ids that come from Python and go there.
from cpython.buffer cimport PyBUF_CONTIG, PyBuffer_Release, PyObject_GetBuffer
from libc.limits cimport INT_MAX, INT_MIN
from libc.string cimport memcpy
from libcpp.vector cimport vector

from llama_runner._llama_cpp.llama cimport llama_token

from operator import index as _index
from reprlib import repr as _shown


cdef object new_token_array(const llama_token * tokens, size_t n):
    """A numpy int32 array of its own memory, shape (n,)."""
    # numpy takes longer to import than the rest of the package together: only on first use.
    import numpy
    cdef Py_buffer buffer
    array = numpy.empty(n, dtype=numpy.int32)
    PyObject_GetBuffer(array, &buffer, PyBUF_CONTIG)
    memcpy(buffer.buf, tokens, n * sizeof(llama_token))
    PyBuffer_Release(&buffer)
    return array


cdef int read_tokens(object source, vector[llama_token] & out) except -1:
    """Copy token ids from a buffer of int32 or int64 (no Python per token) or an iterable of ints.

    What does not fit int32 becomes -1, which no vocabulary has.
    """
    cdef const int32_t[:] narrow
    cdef const int64_t[:] wide
    cdef Py_ssize_t i
    cdef int64_t token
    # Bytes would pass for a sequence of integers, but who has bytes has text.
    if source is None or isinstance(source, (str, bytes, bytearray)):
        raise not_token_ids(source)
    out.clear()
    if not isinstance(source, (list, tuple)):
        try:
            narrow = source
        except (TypeError, ValueError, BufferError):
            pass
        else:
            out.resize(narrow.shape[0])
            for i in range(narrow.shape[0]):
                out[i] = narrow[i]
            return 0
        try:
            wide = source
        except (TypeError, ValueError, BufferError):
            pass
        else:
            out.resize(wide.shape[0])
            for i in range(wide.shape[0]):
                out[i] = <llama_token> wide[i] if INT_MIN <= wide[i] <= INT_MAX else -1
            return 0
    try:
        items = iter(source)
    except TypeError:
        raise not_token_ids(source) from None
    for item in items:
        try:
            if isinstance(item, bool):
                raise TypeError
            token = _index(item)
        except TypeError:
            raise TokenizationError(
                f"token ids must be integers (got {one_line(_shown(item))} of type "
                f"{type(item).__name__})"
            ) from None
        except OverflowError:
            token = -1
        out.push_back(<llama_token> token if INT_MIN <= token <= INT_MAX else -1)
    return 0


cdef object not_token_ids(object source):
    return TokenizationError(
        f"token ids must be a sequence of integers (got {type(source).__name__})"
    )


cdef class _TokenIds:
    # Token ids to read where they lie, if that is an int32 array, else a copy of them.
    cdef const int32_t[::1] view
    cdef vector[llama_token] copy
    cdef const llama_token * data
    cdef size_t size


cdef _TokenIds token_ids(object source):
    cdef _TokenIds ids = _TokenIds.__new__(_TokenIds)
    # None would pass for a view of nothing.
    if not (source is None or isinstance(source, (list, tuple))):
        try:
            ids.view = source
        except (TypeError, ValueError, BufferError):
            pass
        else:
            ids.size = ids.view.shape[0]
            ids.data = &ids.view[0] if ids.size else NULL
            return ids
    read_tokens(source, ids.copy)
    ids.data = ids.copy.data()
    ids.size = ids.copy.size()
    return ids
