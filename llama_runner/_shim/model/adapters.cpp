#include "model/adapters.hpp"

#include <exception>
#include <memory>
#include <new>

#include "process/log.hpp"

namespace llama_runner {

namespace {

// Decode one token with the adapter, in a context of its own that is as small as it can be.
bool can_compute_with(llama_model * model, llama_adapter_lora * adapter) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = 1;
    params.n_threads = params.n_threads_batch = 1;
    params.no_perf                            = true;

    const std::unique_ptr<llama_context, decltype(&llama_free)> context(
        llama_init_from_model(model, params), llama_free);
    float       scale = 1;
    llama_token token = 0;
    return context && llama_set_adapters_lora(context.get(), &adapter, 1, &scale) == 0 &&
           llama_decode(context.get(), llama_batch_get_one(&token, 1)) == 0;
}

}  // namespace

llama_adapter_lora * load_adapter(llama_model * model, std::FILE * file) {
    std::unique_ptr<llama_adapter_lora, decltype(&llama_adapter_lora_free)> adapter(
        llama_adapter_lora_init_from_file_ptr(model, file), llama_adapter_lora_free);
    try {
        if (adapter && can_compute_with(model, adapter.get())) {
            return adapter.release();
        }
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & error) {
        remember_error(error.what());
    }
    return nullptr;
}

}  // namespace llama_runner
