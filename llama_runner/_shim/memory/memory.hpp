// What of a context is not in llama.cpp's public API.
#pragma once

#include <cstddef>
#include <cstdint>

#include "llama.h"

namespace llama_runner {

struct MemoryUse {  // bytes over all devices
    size_t weights = 0;  // each once, in the layout that is computed with
    size_t kv      = 0;
    size_t compute = 0;
    size_t host    = 0;  // how much of all that is in the memory of the machine itself
};

MemoryUse memory_use(const llama_context * context);

struct CellBytes {  // what a sequence's part of the memory takes
    size_t   cell        = 0;  // of each token
    size_t   window_cell = 0;  // of each token as well in the layers with a window,
    uint32_t n_window    = 0;  // which have so many cells at most
    size_t   state       = 0;  // recurrent, whatever its length
};

CellBytes cell_bytes(const llama_context * context);

// What llama.cpp has chosen where it was left the choice, and what a sequence's state depends on.
struct ChosenParams {
    bool     flash_attention = false;
    bool     long_rope       = false;  // the factors for long contexts, in models with two sets
    float    rope_freq_base  = 0;
    float    rope_freq_scale = 0;
};

ChosenParams chosen_params(const llama_context * context);

// How many positions a sequence may have, where the model has learned a vector for each; else 0.
int32_t learned_positions(const llama_model * model);

// How many numbers one of the model's heads has where that is no multiple of the type's block: llama.cpp
// refuses such a context. 0 where all fit. Values are asked for apart from keys.
uint32_t unfit_head(const llama_model * model, ggml_type type, bool of_values);

// Carry out shifts and copies of cells that the next llama_decode would begin with.
void settle_memory(llama_context * context);

}  // namespace llama_runner
