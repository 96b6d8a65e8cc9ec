// The plainest loop over llama.cpp's own functions: what our greedy decoding must agree with.
//
//   greedy MODEL N_CTX N_THREADS N_PREDICT < ids of the prompt
//
// Prints a line for each generated token: its id, and by how much its logit beats the runner-up's.
// The margin tells a test whether another order of additions could choose another token.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "llama.h"

static void quiet(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

static void check(bool fine, const char * what) {
    if (!fine) {
        std::fprintf(stderr, "greedy: %s failed\n", what);
        std::exit(1);
    }
}

// Decodes `tokens` behind what the context holds, in calls of at most n_batch.
static void decode(llama_context * ctx, std::vector<llama_token> & tokens) {
    const size_t n_batch = llama_n_batch(ctx);
    for (size_t i = 0; i < tokens.size(); i += n_batch) {
        const size_t n = std::min(n_batch, tokens.size() - i);
        check(llama_decode(ctx, llama_batch_get_one(&tokens[i], int32_t(n))) == 0, "llama_decode");
    }
}

int main(int argc, char ** argv) {
    check(argc == 5, "reading the arguments");
    std::vector<llama_token> tokens;
    for (llama_token token; std::cin >> token;) {
        tokens.push_back(token);
    }
    check(!tokens.empty(), "reading the prompt");
    llama_log_set(quiet, nullptr);
    llama_backend_init();

    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    check(model != nullptr, "loading the model");
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = std::atoi(argv[2]);
    params.n_batch         = 2048;
    params.n_ubatch        = 512;
    params.n_seq_max       = 1;
    params.n_threads       = std::atoi(argv[3]);
    params.n_threads_batch = params.n_threads;
    llama_context * ctx = llama_init_from_model(model, params);
    check(ctx != nullptr, "creating the context");

    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (int n_left = std::atoi(argv[4]); n_left > 0; n_left--) {
        decode(ctx, tokens);
        const float * logits = llama_get_logits_ith(ctx, -1);
        llama_token   best   = 0;
        float         second = -INFINITY;
        for (llama_token token = 1; token < n_vocab; token++) {
            if (logits[token] > logits[best]) {
                second = logits[best];
                best   = token;
            } else {
                second = std::max(second, logits[token]);
            }
        }
        std::printf("%d %g\n", best, logits[best] - second);
        tokens.assign(1, best);
    }
    llama_free(ctx);
    llama_model_free(model);
}
