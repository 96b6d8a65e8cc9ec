# ggml.h, ggml-cpu.h
from libc.stdint cimport int32_t
from libcpp cimport bool

cdef extern from "ggml.h" nogil:
    cdef enum ggml_log_level:
        GGML_LOG_LEVEL_NONE
        GGML_LOG_LEVEL_DEBUG
        GGML_LOG_LEVEL_INFO
        GGML_LOG_LEVEL_WARN
        GGML_LOG_LEVEL_ERROR
        GGML_LOG_LEVEL_CONT

    cdef enum ggml_type:
        GGML_TYPE_F32
        GGML_TYPE_F16
        GGML_TYPE_BF16
        GGML_TYPE_Q8_0
        GGML_TYPE_Q4_0
        GGML_TYPE_Q4_1
        GGML_TYPE_IQ4_NL
        GGML_TYPE_Q5_0
        GGML_TYPE_Q5_1

    ctypedef void (*ggml_log_callback)(
        ggml_log_level level, const char * text, void * user_data) noexcept
    ctypedef bool (*ggml_abort_callback)(void * data) noexcept

    ctypedef void (*ggml_abort_callback_t)(const char * error_message)
    ggml_abort_callback_t ggml_set_abort_callback(ggml_abort_callback_t callback)

    cdef struct ggml_threadpool:
        pass

cdef extern from "ggml-backend.h" nogil:
    ctypedef struct ggml_backend_device:
        pass
    ctypedef ggml_backend_device * ggml_backend_dev_t

    cdef enum ggml_backend_dev_type:
        GGML_BACKEND_DEVICE_TYPE_CPU
        GGML_BACKEND_DEVICE_TYPE_GPU
        GGML_BACKEND_DEVICE_TYPE_IGPU
        GGML_BACKEND_DEVICE_TYPE_ACCEL

    size_t ggml_backend_dev_count()
    ggml_backend_dev_t ggml_backend_dev_get(size_t index)
    const char * ggml_backend_dev_name(ggml_backend_dev_t device)
    const char * ggml_backend_dev_description(ggml_backend_dev_t device)
    void ggml_backend_dev_memory(ggml_backend_dev_t device, size_t * free, size_t * total)
    ggml_backend_dev_type ggml_backend_dev_type_of "ggml_backend_dev_type"(
        ggml_backend_dev_t device)
