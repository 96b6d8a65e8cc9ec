// llama.cpp's own tokenizer: what ours must agree with.
//
//   tokenize MODEL
//
// Reads texts, each behind a line "ADD_SPECIAL PARSE_SPECIAL BYTES", and prints a line with their
// token ids for each.

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "llama.h"

int main(int, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model_params params = llama_model_default_params();
    params.vocab_only         = true;
    llama_model * model       = llama_model_load_from_file(argv[1], params);
    if (model == nullptr) {
        std::fprintf(stderr, "tokenize: cannot load %s\n", argv[1]);
        return 1;
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    int                 add_special, parse_special, size;
    while (std::cin >> add_special >> parse_special >> size) {
        std::cin.ignore();
        std::string text(size_t(size), 0);
        std::cin.read(&text[0], size);
        std::vector<llama_token> tokens(text.size() + 16);
        const int n = llama_tokenize(vocab, text.data(), size, tokens.data(), int(tokens.size()),
                                     add_special, parse_special);
        if (n < 0) {
            std::fprintf(stderr, "tokenize: more tokens than room for them\n");
            return 1;
        }
        for (int i = 0; i < n; i++) {
            std::cout << tokens[size_t(i)] << ' ';
        }
        std::cout << std::endl;
    }
    llama_model_free(model);
}
