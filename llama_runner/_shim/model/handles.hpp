// Owning boxes for llama.cpp's objects.
//
// A box embeds a share of its parent, so the holder of a ContextBox also keeps the weights alive
// and the freeing order (context, then threadpool, then model) cannot go wrong. After fork() the
// child owns nothing: the worker threads that a destructor would join exist only in the parent.
#pragma once

#include <memory>
#include <new>

#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "ggml-cpu.h"
#include "llama.h"
#include "text/tokenizer.hpp"

namespace llama_runner {

inline long process_id() {
    return getpid();
}

struct ModelBox {
    llama_model * const model;
    const long          owner = process_id();
    Tokenizer           tokenizer;

    explicit ModelBox(llama_model * loaded)
        : model(loaded), tokenizer(llama_model_get_vocab(loaded)) {}
    ModelBox(const ModelBox &) = delete;
    ~ModelBox() {
        if (process_id() == owner) {
            llama_model_free(model);
#ifdef __GLIBC__
            // Loading takes buffers of tens of megabytes, and glibc keeps such sizes on its heap
            // after it has seen them freed once: return the unused pages to the system.
            malloc_trim(0);
#endif
        }
    }
};

struct ContextBox {
    const std::shared_ptr<ModelBox> model;
    llama_context * const           context;
    ggml_threadpool * const         threadpool;
    llama_batch                     batch;
    const long                      owner = process_id();

    // Takes ownership of `created` and `pool`; `n_batch` tokens of one sequence each fit the batch.
    ContextBox(std::shared_ptr<ModelBox> parent, llama_context * created, ggml_threadpool * pool,
               int32_t n_batch)
        : model(std::move(parent)), context(created), threadpool(pool),
          batch(llama_batch_init(n_batch, 0, 1)) {
        llama_attach_threadpool(context, threadpool, threadpool);
    }
    ContextBox(const ContextBox &) = delete;
    ~ContextBox() {
        if (process_id() == owner) {
            llama_free(context);
            ggml_threadpool_free(threadpool);
            llama_batch_free(batch);
        }
    }
};

// Takes ownership of `loaded`, also where it throws.
inline std::shared_ptr<ModelBox> own_model(llama_model * loaded) {
    std::unique_ptr<llama_model, decltype(&llama_model_free)> kept(loaded, llama_model_free);
    auto box = std::make_shared<ModelBox>(loaded);
    kept.release();
    return box;
}

// One pool serves both thread counts: a graph may use fewer threads than its pool has.
// No cpumask and no strict placement: which cores to use stays the process's own decision.
inline ggml_threadpool * new_threadpool(int n_threads) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    return ggml_threadpool_new(&params);
}

// Takes ownership of `created`, also where it throws. Null where so many threads cannot be had.
inline std::shared_ptr<ContextBox> own_context(
        std::shared_ptr<ModelBox> parent, llama_context * created, int n_threads) {
    std::unique_ptr<ggml_threadpool, decltype(&ggml_threadpool_free)> pool(
        nullptr, ggml_threadpool_free);
    std::unique_ptr<llama_context, decltype(&llama_free)> context(created, llama_free);
    pool.reset(new_threadpool(n_threads));
    if (!pool) {
        return nullptr;
    }
    auto box = std::make_shared<ContextBox>(
        std::move(parent), created, pool.get(), (int32_t) llama_n_batch(created));
    context.release();
    pool.release();
    return box;
}

}  // namespace llama_runner
