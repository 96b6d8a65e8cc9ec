# Uses: nothing
#
# Runs Python's signal handlers while llama.cpp is working.
#
# Python runs its signal handlers in the main thread, between two bytecode instructions. So native
# code that takes long must run them from time to time, and end early if one raises:
#
# - Code that works only for its caller (tokenizing, templates, loading) returns the exception.
# - The decode loop also computes for other threads and continues for them: engine.interrupt
#   keeps the exception until the main thread's own call returns.
# - A log line runs Python code above llama.cpp's frames. An exception raised there waits in
#   `raised_while_logging` for the first of these, or for the next Python instruction.
import os as _os
import threading as _threading

from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp cimport bool as cpp_bool
from libcpp.atomic cimport atomic

from llama_runner._llama_cpp.shim.interrupt cimport CheckSignals
from llama_runner._llama_cpp.shim.state cimport Engine

cdef extern from "Python.h" nogil:
    unsigned long PyThread_get_thread_ident()
    int Py_AddPendingCall(int (* call)(void *) except -1 with gil, void * data)

cdef atomic[cpp_bool] process_exits
cdef atomic[int] n_calls_into_python


cdef bint enter_python() noexcept nogil:
    """Return whether this thread may take the GIL above llama.cpp's frames, until leave_python().

    At exit Python ends the threads that ask for it by unwinding their stacks, and a `catch (...)`
    in llama.cpp's frames turns that into an abort. So threads must not ask for it once the exit
    has begun, and the exit waits for those that already have it or wait for it (exit.pxi).
    """
    n_calls_into_python.fetch_add(1)
    if process_exits.load():
        leave_python()
        return False
    return True


cdef void leave_python() noexcept nogil:
    n_calls_into_python.fetch_sub(1)


cdef unsigned long main_thread = _threading.main_thread().ident
cdef object raised_while_logging = None


def _learn_main_thread():
    global main_thread
    main_thread = PyThread_get_thread_ident()
    n_calls_into_python.store(0)  # the calling threads exist only in the parent


# In a forked child, the thread that forked is the main one.
_os.register_at_fork(after_in_child=_learn_main_thread)


cdef int check_signals() except -1 with gil:
    """Run Python's signal handlers; raise the exception of one, or one kept while logging."""
    raise_what_logging_raised(NULL)
    return PyErr_CheckSignals()


cdef CheckSignals signal_check() noexcept nogil:
    """Return the check for native code to call in this thread; NULL outside the main thread."""
    if PyThread_get_thread_ident() == main_thread:
        return check_signals
    return NULL


cdef int raise_what_logging_raised(void * unused) except -1 with gil:
    global raised_while_logging
    error = raised_while_logging
    if error is not None and PyThread_get_thread_ident() == main_thread:
        raised_while_logging = None
        raise error
    return 0


cdef void raise_after_logging(object error) noexcept:
    global raised_while_logging
    raised_while_logging = error
    Py_AddPendingCall(raise_what_logging_raised, NULL)


cdef bint interrupted(Engine * engine) noexcept with gil:
    """Run Python's signal handlers; return whether one raised. Its error is kept in the engine."""
    try:
        check_signals()
    except BaseException as error:
        if engine.interrupt is NULL:
            Py_INCREF(error)
            engine.interrupt = <void *> error
        return True
    return False


cdef int raise_interrupt(Engine * engine) except -1:
    if engine.interrupt is NULL:
        return 0
    error = <object> engine.interrupt
    engine.interrupt = NULL
    Py_DECREF(error)
    raise error
