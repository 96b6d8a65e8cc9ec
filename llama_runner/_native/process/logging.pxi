# Uses: signals
#
# Passes llama.cpp's log lines to Python's `logging` on request; by default, drops them.
import logging as _logging

from cython.operator cimport dereference as deref
from libcpp cimport bool as cpp_bool
from libcpp.atomic cimport atomic
from libcpp.vector cimport vector

from llama_runner._llama_cpp.ggml cimport (
    GGML_LOG_LEVEL_CONT,
    GGML_LOG_LEVEL_DEBUG,
    GGML_LOG_LEVEL_ERROR,
    GGML_LOG_LEVEL_INFO,
    GGML_LOG_LEVEL_WARN,
    ggml_log_level,
)
from llama_runner._llama_cpp.llama cimport llama_log_set
from llama_runner._llama_cpp.shim.log cimport LogLine, defer_log, remember_error, take_deferred_log

_native_logger = _logging.getLogger("llama_runner.native")
_LEVELS = {
    <int> GGML_LOG_LEVEL_DEBUG: _logging.DEBUG,
    <int> GGML_LOG_LEVEL_INFO: _logging.INFO,
    <int> GGML_LOG_LEVEL_WARN: _logging.WARNING,
    <int> GGML_LOG_LEVEL_ERROR: _logging.ERROR,
}
cdef enum:
    LOG_OFF = 1000
cdef atomic[int] log_threshold  # a ggml_log_level; read on ggml's threads, without the GIL
log_threshold.store(LOG_OFF)


cdef void on_native_log(ggml_log_level level, const char * text, void * data) noexcept nogil:
    if level == GGML_LOG_LEVEL_ERROR:
        remember_error(text)
    if level == GGML_LOG_LEVEL_CONT or <int> level < log_threshold.load():
        return
    if not defer_log(<int> level, text) and enter_python():
        log_line(<int> level, text)
        leave_python()


# A separate function, because Cython takes the GIL on entry if any part of a function needs it.
cdef void log_line(int level, const char * text) noexcept with gil:
    cdef bint in_main_thread = PyThread_get_thread_ident() == main_thread
    if in_main_thread and raised_while_logging is not None:
        return  # running Python code here would raise that exception
    try:
        PyErr_CheckSignals()  # now: logging would swallow an exception raised inside a handler
    except BaseException as error:
        raise_after_logging(error)
        return
    try:
        line = (<bytes> text).decode("utf-8", "replace").rstrip()
        if line:
            _native_logger.log(_LEVELS.get(level, _logging.INFO), "%s", line)
    except BaseException as error:  # must not unwind through llama.cpp's frames
        # An error in a log handler must not end the call.
        if in_main_thread and (not isinstance(error, Exception) or raised_by_handler(error)):
            raise_after_logging(error)


cdef void emit_deferred_log() noexcept:
    """Log the lines that this thread deferred while holding a monitor."""
    cdef vector[LogLine] * lines = take_deferred_log()
    cdef size_t i
    if lines is NULL:
        return
    for i in range(lines.size()):
        log_line(deref(lines)[i].first, deref(lines)[i].second.c_str())
    del lines


def set_log_level(level=None):
    """Send llama.cpp's log lines to the logger ``llama_runner.native``.

    Lines below the level are dropped without taking the GIL.

    Args:
        level: "debug", "info", "warning", "error", or any level of :mod:`logging`; None (the
            default) turns logging off.

    Raises:
        InvalidParameterError: The level is not one of these.
    """
    names = _logging.getLevelNamesMapping()
    number = names.get(level.upper()) if isinstance(level, str) else level
    if level is None:
        log_threshold.store(LOG_OFF)
    elif isinstance(number, int) and not isinstance(number, bool):
        enough = [native for native, python in _LEVELS.items() if python >= number]
        log_threshold.store(min(enough, default=LOG_OFF))
    else:
        raise InvalidParameterError(
            "level: must be one of debug, info, warning, error, a level of logging, or None "
            f"(got {level!r})", field="level"
        )


llama_log_set(on_native_log, NULL)
