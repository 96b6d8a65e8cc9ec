// Facts about a context that llama.cpp's public API does not tell.
#pragma once

#include <cstddef>
#include <cstdint>

#include "llama.h"

namespace llama_runner {

struct MemoryUse {  // bytes over all devices
    size_t weights = 0;  // each counted once, in the layout used for computing
    size_t kv      = 0;
    size_t compute = 0;
    size_t host    = 0;  // the part of the total that is in the machine's main memory
};

MemoryUse memory_use(const llama_context * context);

struct CellBytes {  // memory that a sequence takes, in bytes
    size_t   cell        = 0;  // of each token
    size_t   window_cell = 0;  // also of each token, in the layers with a window,
    uint32_t n_window    = 0;  // which have at most this many cells
    size_t   state       = 0;  // recurrent; does not depend on the length
};

CellBytes cell_bytes(const llama_context * context);

// Parameters that llama.cpp has chosen itself, and on which a sequence's state depends.
struct ChosenParams {
    bool     flash_attention = false;
    bool     long_rope       = false;  // the factors for long contexts, in models with two sets
    float    rope_freq_base  = 0;
    float    rope_freq_scale = 0;
};

ChosenParams chosen_params(const llama_context * context);

// Returns the most positions of a sequence if the model has a learned vector for each, else 0.
int32_t learned_positions(const llama_model * model);

// Returns the size of a head, in numbers, that is not a multiple of the type's block, or 0 if all
// fit: llama.cpp refuses such a context. Keys and values are checked separately.
uint32_t unfit_head(const llama_model * model, ggml_type type, bool of_values);

// Carry out shifts and copies of cells that the next llama_decode would begin with.
void settle_memory(llama_context * context);

}  // namespace llama_runner
