# Uses: nothing
#
# Information about this build and the machine.
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
)
from llama_runner._llama_cpp.llama cimport llama_print_system_info, llama_version


def native_version():
    """Return the version of the llama.cpp that is linked into this module."""
    return llama_version().decode()


def system_info():
    """Return the features of the compiled backends, as a dict of name to value."""
    cdef dict found = {}
    for part in llama_print_system_info().decode().split("|"):
        name, _, value = part.rpartition("=")
        if name:
            found[name.rpartition(":")[2].strip()] = value.strip()
    return found


def devices():
    """Return the compute devices, as a list of dicts.

    The keys are name, description, kind, memory_free and memory_total. Memory is in bytes; kind is
    "cpu", "gpu", "igpu", "accel" or "other".
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
