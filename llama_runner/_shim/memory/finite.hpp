// Checks that a batch wrote finite numbers into the KV memory.
//
// Attention also reads the cells of other sequences, and multiplies those it must not see by zero.
// An infinite key or value, for example one that is too large for the memory's type, turns that
// into a NaN for every sequence and for the next user of the cell. So such cells are found at once
// and zeroed.
#pragma once

#include <utility>
#include <vector>

#include "llama.h"

struct ggml_tensor;
class llama_kv_cache;

namespace llama_runner {

// The tensors of a context's attention memory. A recurrent memory does not have any.
struct KvTensors {
    struct Part {
        const llama_kv_cache *                              cache;
        std::vector<std::pair<ggml_tensor *, ggml_tensor *>> layers;  // keys, and values or null
    };
    std::vector<Part> parts;
    bool              flash_attention = false;  // which computes with float32 as half floats
};

KvTensors kv_tensors(const llama_context * context);

// Are the keys and values of a sequence at positions p0 to p1 - 1 finite? Those that are not in
// this machine's own memory are taken for finite: fetching them would cost more than computing them.
bool cells_are_finite(const KvTensors & tensors, llama_seq_id sequence, llama_pos p0,
                      llama_pos p1) noexcept;

// Make zeros of them.
void zero_cells(const KvTensors & tensors, llama_seq_id sequence, llama_pos p0,
                llama_pos p1) noexcept;

}  // namespace llama_runner
