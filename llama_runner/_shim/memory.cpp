#include "memory.hpp"

#include "ggml-backend.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-model.h"

namespace llama_runner {

namespace {

bool on_host(ggml_backend_buffer_type_t type) {
    ggml_backend_dev_t device = ggml_backend_buft_get_device(type);
    return ggml_backend_buft_is_host(type) || device == nullptr ||
           ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

}  // namespace

MemoryUse memory_use(const llama_context * context) {
    MemoryUse sum;
    // Not from the breakdown: in a mapped file it counts everything between the first and the last
    // tensor used in place, also what the CPU backend has copied into another layout.
    for (const auto & [name, tensor] : llama_internal_get_tensor_map(llama_get_model(context))) {
        if (tensor->buffer == nullptr) {
            continue;
        }
        ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(tensor->buffer);
        const size_t size = ggml_backend_buft_get_alloc_size(type, tensor);
        sum.weights += size;
        sum.host += on_host(type) ? size : 0;
    }
    for (const auto & [type, use] : llama_get_memory_breakdown(context)) {
        sum.kv      += use.context;
        sum.compute += use.compute;
        sum.host += on_host(type) ? use.context + use.compute : 0;
    }
    return sum;
}

void settle_memory(llama_context * context) {
    context->memory_update(false);
}

}  // namespace llama_runner
