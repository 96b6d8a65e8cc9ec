#include "memory/memory.hpp"

#include <stdexcept>

#include "ggml-backend.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

namespace llama_runner {

namespace {

bool on_host(ggml_backend_buffer_type_t type) {
    ggml_backend_dev_t device = ggml_backend_buft_get_device(type);
    return ggml_backend_buft_is_host(type) || device == nullptr ||
           ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

size_t total(const llama_memory_i & memory) {
    size_t sum = 0;
    for (const auto & [type, size] : memory.memory_breakdown()) {
        sum += size;
    }
    return sum;
}

const llama_memory_recurrent * recurrent_part(const llama_memory_i * memory) {
    if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid *>(memory)) {
        return hybrid->get_mem_recr();
    }
    if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid_iswa *>(memory)) {
        return hybrid->get_mem_recr();
    }
    return dynamic_cast<const llama_memory_recurrent *>(memory);
}

const llama_kv_cache * window_part(const llama_memory_i * memory) {
    if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid_iswa *>(memory)) {
        memory = hybrid->get_mem_attn();
    }
    const auto * both = dynamic_cast<const llama_kv_cache_iswa *>(memory);
    return both ? both->get_swa() : nullptr;
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

CellBytes cell_bytes(const llama_context * context) {
    CellBytes              bytes;
    const llama_memory_i * memory = llama_get_memory(context);
    size_t                 rest   = total(*memory);
    if (const auto * recurrent = recurrent_part(memory)) {
        const size_t size = total(*recurrent);
        bytes.state       = size / recurrent->size;
        rest -= size;
    }
    if (const auto * window = window_part(memory)) {
        const size_t size = total(*window);
        bytes.n_window    = window->get_size();
        bytes.window_cell = size / (size_t(window->get_size()) * window->get_n_stream());
        rest -= size;
    }
    bytes.cell = rest / llama_n_ctx(context);
    return bytes;
}

ChosenParams chosen_params(const llama_context * context) {
    const llama_cparams & params = context->get_cparams();
    const llama_model &   model  = *llama_get_model(context);
    ChosenParams          chosen;
    chosen.flash_attention = params.flash_attn;
    chosen.rope_freq_base  = params.rope_freq_base;
    chosen.rope_freq_scale = params.rope_freq_scale;
    chosen.long_rope = !model.layers.empty() && model.layers[0].rope_long != nullptr &&
                       params.n_ctx_seq > model.hparams.n_ctx_orig_yarn;
    return chosen;
}

int32_t learned_positions(const llama_model * model) {
    return model->pos_embd ? static_cast<int32_t>(model->pos_embd->ne[1]) : 0;
}

uint32_t unfit_head(const llama_model * model, ggml_type type, bool of_values) {
    const llama_hparams & hparams = model->hparams;
    for (uint32_t layer = 0; layer < hparams.n_layer(); ++layer) {
        const uint32_t size = of_values ? hparams.n_embd_head_v(layer) : hparams.n_embd_head_k(layer);
        if (size % ggml_blck_size(type) != 0) {
            return size;
        }
    }
    return 0;
}

void settle_memory(llama_context * context) {
    context->memory_update(false);  // where that fails, it is only logged
    const auto left = llama_get_memory(context)->init_update(context, false);
    if (left->get_status() != LLAMA_MEMORY_STATUS_NO_UPDATE) {
        throw std::runtime_error("llama.cpp could not move the cells of this memory");
    }
}

}  // namespace llama_runner
