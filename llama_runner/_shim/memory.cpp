#include "memory.hpp"

#include "llama-ext.h"

namespace llama_runner {

MemoryUse memory_use(const llama_context * context) {
    MemoryUse sum;
    for (const auto & [buffer_type, use] : llama_get_memory_breakdown(context)) {
        sum.weights += use.model;
        sum.kv      += use.context;
        sum.compute += use.compute;
    }
    return sum;
}

}  // namespace llama_runner
