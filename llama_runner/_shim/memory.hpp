// What of a context is not in llama.cpp's public API.
#pragma once

#include <cstddef>

#include "llama.h"

namespace llama_runner {

struct MemoryUse {  // bytes over all devices
    size_t weights = 0;  // each once, in the layout that is computed with
    size_t kv      = 0;
    size_t compute = 0;
    size_t host    = 0;  // how much of all that is in the memory of the machine itself
};

MemoryUse memory_use(const llama_context * context);

// Carry out shifts and copies of cells that the next llama_decode would begin with.
void settle_memory(llama_context * context);

}  // namespace llama_runner
