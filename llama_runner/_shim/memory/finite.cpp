#include "memory/finite.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#include "ggml-backend.h"
#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-model.h"

namespace llama_runner {

namespace {

std::vector<const llama_kv_cache *> attention_caches(const llama_memory_i * memory) {
    if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid *>(memory)) {
        return {hybrid->get_mem_attn()};
    }
    if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid_iswa *>(memory)) {
        memory = hybrid->get_mem_attn();
    }
    if (const auto * both = dynamic_cast<const llama_kv_cache_iswa *>(memory)) {
        return {both->get_base(), both->get_swa()};
    }
    if (const auto * one = dynamic_cast<const llama_kv_cache *>(memory)) {
        return {one};
    }
    return {};
}

// Calls `use` with a tensor, and offset and size of a run of bytes in it, until it returns false:
// all that the tensors hold of a sequence's positions.
template <typename Use>
bool for_each_run(const KvTensors & tensors, llama_seq_id sequence, llama_pos p0, llama_pos p1,
                  Use && use) {
    for (const auto & part : tensors.parts) {
        const llama_kv_cells & cells  = part.cache->get_cells(sequence);
        const size_t           stream = part.cache->get_stream(sequence);
        const auto is_one = [&](uint32_t i) {
            return cells.pos_in(i, p0, p1) && cells.seq_has(i, sequence);
        };
        for (uint32_t i = 0; i < cells.size(); ++i) {
            if (!is_one(i)) {
                continue;
            }
            const uint32_t first = i;
            while (i + 1 < cells.size() && is_one(i + 1)) {
                ++i;
            }
            const size_t n = i + 1 - first;
            for (const auto & [k, v] : part.layers) {
                if (!use(k, stream * k->nb[2] + first * k->nb[1], n * k->nb[1])) {
                    return false;
                }
                if (v == nullptr) {
                    continue;
                }
                if (tensors.flash_attention) {  // otherwise they are transposed
                    if (!use(v, stream * v->nb[2] + first * v->nb[1], n * v->nb[1])) {
                        return false;
                    }
                    continue;
                }
                for (int64_t row = 0; row < v->ne[0]; ++row) {
                    const size_t at = size_t(row * v->ne[1] + first) * v->nb[0];
                    if (!use(v, stream * v->nb[2] + at, n * v->nb[0])) {
                        return false;
                    }
                }
            }
        }
    }
    return true;
}

// Is one of these floats, `step` bytes from the next, as large as `limit` or no number? Without
// their signs, floats compare as the integers that their bits are.
template <typename Bits>
bool reaches(const char * data, size_t size, size_t step, Bits limit) {
    constexpr Bits kNoSign = static_cast<Bits>(~Bits{0}) >> 1;
    bool           found   = false;
    for (size_t at = 0; at < size; at += step) {
        Bits bits;
        std::memcpy(&bits, data + at, sizeof bits);
        found |= (bits & kNoSign) >= limit;
    }
    return found;
}

constexpr uint32_t kInfinite       = 0x7f800000;
constexpr uint32_t kInfiniteAsHalf = 0x477ff000;  // 65520: it is rounded up
constexpr uint16_t kInfiniteHalf   = 0x7c00;
constexpr uint16_t kInfiniteBrain  = 0x7f80;

bool is_finite(ggml_type type, const char * data, size_t size, bool as_halves) {
    const size_t step = ggml_type_size(type);
    switch (type) {
        case GGML_TYPE_F32:
            return !reaches(data, size, step, as_halves ? kInfiniteAsHalf : kInfinite);
        case GGML_TYPE_BF16:
            return !reaches(data, size, step, kInfiniteBrain);
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_1:  // a scale and a minimum begin each block
            return !reaches(data, size, step, kInfiniteHalf) &&
                   !reaches(data + sizeof(uint16_t), size - sizeof(uint16_t), step, kInfiniteHalf);
        default:  // half floats, and blocks that begin with one as their scale
            return !reaches(data, size, step, kInfiniteHalf);
    }
}

}  // namespace

KvTensors kv_tensors(const llama_context * context) {
    KvTensors             found;
    const llama_hparams & hparams = llama_get_model(context)->hparams;
    found.flash_attention         = context->get_cparams().flash_attn;
    // A view names the tensor that it is of; nothing else does.
    const ggml_init_params          scratch = {ggml_tensor_overhead(), nullptr, true};
    const llama_kv_cache::slot_info first   = {0, 0, {}, {}};
    for (const llama_kv_cache * cache : attention_caches(llama_get_memory(context))) {
        KvTensors::Part part{cache, {}};
        for (const uint32_t layer : cache->get_layer_ids()) {
            ggml_tensor * values = nullptr;
            if (!hparams.is_mla()) {  // which has them in its keys
                const std::unique_ptr<ggml_context, decltype(&ggml_free)> views(ggml_init(scratch),
                                                                               ggml_free);
                values = cache->get_v(views.get(), layer, 1, first)->view_src;
            }
            part.layers.emplace_back(cache->get_k_storage(layer), values);
        }
        found.parts.push_back(std::move(part));
    }
    return found;
}

bool cells_are_finite(const KvTensors & tensors, llama_seq_id sequence, llama_pos p0,
                      llama_pos p1) noexcept {
    return for_each_run(
        tensors, sequence, p0, p1, [&](const ggml_tensor * tensor, size_t offset, size_t size) {
            return !ggml_backend_buffer_is_host(tensor->buffer) ||
                   is_finite(tensor->type, static_cast<const char *>(tensor->data) + offset, size,
                             tensors.flash_attention);
        });
}

void zero_cells(const KvTensors & tensors, llama_seq_id sequence, llama_pos p0,
                llama_pos p1) noexcept {
    for_each_run(tensors, sequence, p0, p1, [](ggml_tensor * tensor, size_t offset, size_t size) {
        ggml_backend_tensor_memset(tensor, 0, offset, size);
        return true;
    });
}

}  // namespace llama_runner
