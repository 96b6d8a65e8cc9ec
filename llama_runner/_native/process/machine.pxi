# Uses: nothing
#
# What this build and machine offer.
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
