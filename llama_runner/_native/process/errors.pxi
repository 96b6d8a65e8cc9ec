# Uses: nothing
#
# Converts native failures to the package's own exceptions.
from cpython.object cimport PyObject

from llama_runner._llama_cpp.shim.guard cimport python_errors
from llama_runner._llama_cpp.shim.handles cimport process_id
from llama_runner._llama_cpp.shim.log cimport forget_error, last_error

from llama_runner.errors import (
    ChatTemplateError,
    ClosedError,
    ContextBusyError,
    ContextFullError,
    DecodeError,
    FileReadError,
    ForkedProcessError,
    InvalidParameterError,
    LlamaRuntimeError,
    ModelLoadError,
    OutOfMemoryError,
    PromptTooLongError,
    TokenizationError,
    UnsupportedModelError,
    raised_by_handler,
)

# C++ borrows the classes for the life of the process: the module's globals keep them alive.
python_errors().out_of_memory = <PyObject *> OutOfMemoryError
python_errors().runtime = <PyObject *> LlamaRuntimeError
python_errors().decode = <PyObject *> DecodeError
python_errors().model_load = <PyObject *> ModelLoadError


cdef object native_line():
    """Return the error line that llama.cpp logged on this thread since forget_error(), or None."""
    cdef bytes line = last_error()
    return line.decode("utf-8", "replace") or None


cdef int pass_on_interrupt(object error) except -1:
    """Raise the error again if it comes from a signal handler and not from the call itself."""
    if raised_by_handler(error):
        raise error
    return 0


cdef int check_process(long owner, str what) except -1:
    if process_id() != owner:
        raise ForkedProcessError(
            f"this {what} was made before fork() and its threads exist only in the parent: "
            "create it in the child, or start workers with the 'spawn' method"
        )
    return 0


cdef str one_line(object error):
    return " ".join(str(error).split())
