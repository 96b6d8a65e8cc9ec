# Uses: errors
#
# Token ids: read from Python objects, and returned as numpy arrays.
from cpython.buffer cimport PyBUF_CONTIG, PyBuffer_Release, PyObject_GetBuffer
from libc.limits cimport INT_MAX, INT_MIN
from libc.string cimport memcpy
from libcpp.vector cimport vector

from llama_runner._llama_cpp.llama cimport llama_token

from operator import index as _index
from reprlib import repr as _shown


cdef object new_token_array(const llama_token * tokens, size_t n):
    """Return a copy of the tokens as a numpy int32 array, shape (n,)."""
    # Import numpy on first use: that takes longer than importing the rest of the package.
    import numpy
    cdef Py_buffer buffer
    array = numpy.empty(n, dtype=numpy.int32)
    PyObject_GetBuffer(array, &buffer, PyBUF_CONTIG)
    memcpy(buffer.buf, tokens, n * sizeof(llama_token))
    PyBuffer_Release(&buffer)
    return array


def token_array(tokens):
    """Return a copy of token ids, given in any accepted form, as a numpy int32 array.

    Raises:
        TokenizationError: They are not integers, or one of them does not fit int32.
    """
    cdef vector[llama_token] copy
    read_tokens(tokens, copy)
    return new_token_array(copy.data(), copy.size())


cdef int read_tokens(object source, vector[llama_token] & out, int last=INT_MAX) except -1:
    """Copy token ids from a buffer of int32 or int64, or from an iterable of ints.

    A buffer is read without a Python object for each token. Ids that do not fit int32 are refused;
    the caller checks that they are in the range 0 to `last`.
    """
    cdef const int32_t[:] narrow
    cdef const int64_t[:] wide
    cdef Py_ssize_t i
    check_source(source)
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
                if not INT_MIN <= wide[i] <= INT_MAX:
                    raise no_such_token(wide[i], i, last)
                out[i] = <llama_token> wide[i]
            return 0
    try:
        items = iter(source)
    except TypeError:
        raise not_token_ids(source) from None
    for item in items:
        out.push_back(read_token(item, out.size(), last))
    return 0


cdef llama_token read_token(object item, object index, int last) except? -1:
    """Return one token id, given as any integer type."""
    cdef int64_t token
    try:
        if isinstance(item, bool):
            raise TypeError
        number = _index(item)
    except TypeError:
        raise TokenizationError(
            f"token ids must be integers (got {one_line(_shown(item))} of type "
            f"{type(item).__name__})"
        ) from None
    try:
        token = number
    except OverflowError:
        raise no_such_token(f"of {number.bit_length()} bits", index, last) from None
    if not INT_MIN <= token <= INT_MAX:
        raise no_such_token(number, index, last)
    return <llama_token> token


cdef int check_source(object source) except -1:
    """Refuse objects that could be read as token ids but are something else."""
    # Bytes are text. None would be read as an empty view.
    if source is None or isinstance(source, (str, bytes, bytearray)):
        raise not_token_ids(source)
    if isinstance(source, (list, tuple)):
        return 0
    if hides_values(source):
        raise not_token_ids(source)
    return 0


cdef bint hides_values(object source):
    """Return whether this is a structured or masked numpy array, whose buffer looks plain."""
    dtype = getattr(source, "dtype", None)
    is_masked = hasattr(source, "mask") and hasattr(source, "fill_value")
    return is_masked or getattr(dtype, "names", None) is not None


cdef object not_token_ids(object source):
    return TokenizationError(
        f"token ids must be a sequence of integers (got {type(source).__name__})"
    )


cdef object no_such_token(object token, object index, int last):
    place = "" if index is None else f" at index {index}"
    return TokenizationError(f"token id {token}{place} is out of range: ids are 0 to {last}")


cdef class _TokenIds:
    # Token ids: a view of the caller's int32 array, or else a copy.
    cdef const int32_t[::1] view
    cdef vector[llama_token] copy
    cdef const llama_token * data
    cdef size_t size


cdef _TokenIds token_ids(object source, int last):
    cdef _TokenIds ids = _TokenIds.__new__(_TokenIds)
    check_source(source)
    if not isinstance(source, (list, tuple)):
        try:
            ids.view = source
        except (TypeError, ValueError, BufferError):
            pass
        else:
            ids.size = ids.view.shape[0]
            ids.data = &ids.view[0] if ids.size else NULL
            return ids
    read_tokens(source, ids.copy, last)
    ids.data = ids.copy.data()
    ids.size = ids.copy.size()
    return ids
