# Uses: signals, context
#
# The process: its start and its exit.
import atexit as _atexit
import time as _time

from llama_runner._llama_cpp.ggml cimport ggml_set_abort_callback
from llama_runner._llama_cpp.llama cimport llama_backend_init
from llama_runner._llama_cpp.shim.assertion cimport throw_assertion

cdef enum:
    MOST_SECONDS_AT_EXIT = 3

ggml_set_abort_callback(throw_assertion)
llama_backend_init()


def _stop_all_loops():
    # Daemon threads may still be computing. Let them finish their turn before C++ destroys the
    # backends that they use. The contexts themselves end with the process.
    cdef Context context
    process_exits.store(True)
    deadline = _time.monotonic() + MOST_SECONDS_AT_EXIT
    try:
        # A callback may never return, so limit how long to wait for it.
        while n_calls_into_python.load() > 0 and _time.monotonic() < deadline:
            _time.sleep(0.001)
    finally:
        for context in list(_live_contexts):
            if not context.closed and process_id() == context.owner:
                try:
                    with context._exclusive():
                        pass
                except ClosedError:
                    pass  # another thread has just closed it


_atexit.register(_stop_all_loops)
