# The process: start, exit, and what this build and machine offer.
import atexit as _atexit
import time as _time

from llama_runner._llama_cpp.ggml cimport (
    GGML_BACKEND_DEVICE_TYPE_ACCEL,
    GGML_BACKEND_DEVICE_TYPE_CPU,
    GGML_BACKEND_DEVICE_TYPE_GPU,
    GGML_BACKEND_DEVICE_TYPE_IGPU,
    ggml_backend_dev_count,
    ggml_backend_dev_description,
    ggml_backend_dev_get,
    ggml_backend_dev_memory,
    ggml_backend_dev_name,
    ggml_backend_dev_t,
    ggml_backend_dev_type_of,
    ggml_set_abort_callback,
)
from llama_runner._llama_cpp.llama cimport (
    llama_backend_init,
    llama_print_system_info,
    llama_version,
)
from llama_runner._llama_cpp.shim cimport throw_assertion

DEF MOST_SECONDS_AT_EXIT = 3

ggml_set_abort_callback(throw_assertion)
llama_backend_init()


def _stop_all_loops():
    # Daemon threads may still compute. Let them end their turn before C++ destroys the backends
    # they use; the contexts themselves die with the process.
    cdef Context context
    process_exits.store(True)
    deadline = _time.monotonic() + MOST_SECONDS_AT_EXIT
    try:
        # A callback may wait for what no longer comes: then its thread is given up.
        while n_calls_into_python.load() > 0 and _time.monotonic() < deadline:
            _time.sleep(0.001)
    finally:
        for context in list(_live_contexts):
            if not context.closed and process_id() == context.owner:
                try:
                    with context._exclusive():
                        pass
                except ClosedError:
                    pass  # by another thread, just now


_atexit.register(_stop_all_loops)


def native_version():
    """Version of the llama.cpp that this module carries."""
    return llama_version().decode()


def system_info():
    """What the CPU backend was built for and found: dict of feature name to value."""
    cdef dict found = {}
    for part in llama_print_system_info().decode().split("|"):
        name, _, value = part.rpartition("=")
        if name:
            found[name.rpartition(":")[2].strip()] = value.strip()
    return found


def devices():
    """The compute devices: list of dicts with name, description, kind, memory_free, memory_total.

    Memory in bytes; kind is "cpu", "gpu", "igpu" or "accel".
    """
    cdef dict kinds = {
        <int> GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
        <int> GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
        <int> GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
        <int> GGML_BACKEND_DEVICE_TYPE_ACCEL: "accel",
    }
    cdef size_t i, free_bytes, total_bytes
    cdef ggml_backend_dev_t device
    cdef list found = []
    for i in range(ggml_backend_dev_count()):
        device = ggml_backend_dev_get(i)
        ggml_backend_dev_memory(device, &free_bytes, &total_bytes)
        found.append({
            "name": ggml_backend_dev_name(device).decode("utf-8", "replace"),
            "description": ggml_backend_dev_description(device).decode("utf-8", "replace"),
            "kind": kinds.get(<int> ggml_backend_dev_type_of(device), "other"),
            "memory_free": free_bytes,
            "memory_total": total_bytes,
        })
    return found
