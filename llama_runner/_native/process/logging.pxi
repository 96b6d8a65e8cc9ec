# Uses: signals
#
# llama.cpp's log lines: silent by default, to Python's `logging` on request.
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
cdef atomic[int] log_threshold  # as ggml_log_level; read on ggml's threads, without the GIL
log_threshold.store(LOG_OFF)


cdef void on_native_log(ggml_log_level level, const char * text, void * data) noexcept nogil:
    if level == GGML_LOG_LEVEL_ERROR:
        remember_error(text)
    if level == GGML_LOG_LEVEL_CONT or <int> level < log_threshold.load():
        return
    if not defer_log(<int> level, text) and enter_python():
        log_line(<int> level, text)
        leave_python()


# A function of its own: Cython takes the GIL on entry to one that needs it anywhere.
cdef void log_line(int level, const char * text) noexcept with gil:
    cdef bint in_main_thread = PyThread_get_thread_ident() == main_thread
    if in_main_thread and raised_while_logging is not None:
        return  # Python code would raise it here
    try:
        PyErr_CheckSignals()  # not in the handler, where logging takes care of exceptions
    except BaseException as error:
        raise_after_logging(error)
        return
    try:
        line = (<bytes> text).decode("utf-8", "replace").rstrip()
        if line:
            _native_logger.log(_LEVELS.get(level, _logging.INFO), "%s", line)
    except BaseException as error:  # must not unwind through llama.cpp's frames
        # A broken log handler must not end the call.
        if in_main_thread and (not isinstance(error, Exception) or raised_by_handler(error)):
            raise_after_logging(error)


cdef void emit_deferred_log() noexcept:
    """Log the lines that this thread deferred while it held a monitor."""
    cdef vector[LogLine] * lines = take_deferred_log()
    cdef size_t i
    if lines is NULL:
        return
    for i in range(lines.size()):
        log_line(deref(lines)[i].first, deref(lines)[i].second.c_str())
    del lines


def set_log_level(level=None):
    """Send llama.cpp's log lines to the logger ``llama_runner.native``.

    Lines below the level are dropped before the GIL is taken.

    Args:
        level: "debug", "info", "warning" or "error", or a level as :mod:`logging` has it; None
            sends nothing (the default).

    Raises:
        InvalidParameterError: Another level.
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
