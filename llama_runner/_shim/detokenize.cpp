#include "detokenize.hpp"

#include <string_view>

#include "llama-vocab.h"

namespace llama_runner {

int64_t detokenize(const llama_vocab * vocab, const llama_token * tokens, size_t n,
                   bool strip_prefix, bool remove_special, bool unparse_special,
                   std::string & out) {
    constexpr int kControl = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;
    for (size_t i = 0; i < n; ++i) {
        if (static_cast<uint32_t>(tokens[i]) >= vocab->n_tokens()) {
            return static_cast<int64_t>(i);
        }
    }
    size_t i = 0;
    if (remove_special && n > 0 && tokens[0] == vocab->token_bos() && vocab->get_add_bos()) {
        ++i;
    }
    if (remove_special && n > i && tokens[n - 1] == vocab->token_eos() && vocab->get_add_eos()) {
        --n;
    }
    const bool prefixed =
        vocab->get_add_space_prefix() || vocab->get_type() == LLAMA_VOCAB_TYPE_WPM;
    for (bool strip = strip_prefix && prefixed; i < n; ++i, strip = false) {
        if (!unparse_special && vocab->token_get_attr(tokens[i]) & kControl) {
            continue;
        }
        const std::string & piece = vocab->token_to_piece(tokens[i]);
        out.append(piece, strip && piece[0] == ' ' ? 1 : 0);
    }
    return -1;
}

Spelling spelling(const llama_vocab * vocab, const std::vector<llama_token> & tokens, size_t begin,
                  size_t end, const char * text, size_t n_text, const char * skip, size_t n_skip) {
    const std::string_view passed(skip, n_skip);
    std::string_view       rest(text, n_text);
    bool   at_start = begin == 0 || llama_vocab_is_control(vocab, tokens[begin - 1]);
    size_t i        = begin;
    for (; i < end && !rest.empty(); ++i) {
        std::string_view behind = rest;
        if (n_skip > 0 && behind.size() > n_skip && behind.substr(0, n_skip) == passed) {
            behind.remove_prefix(n_skip);
        }
        std::string_view piece = vocab->token_to_piece(tokens[i]);
        if (at_start && !piece.empty() && piece.front() == ' ' && behind.front() != ' ') {
            piece.remove_prefix(1);
        }
        if (behind.substr(0, piece.size()) != piece) {
            break;
        }
        rest     = behind.substr(piece.size());
        at_start = llama_vocab_is_control(vocab, tokens[i]);
    }
    return {i - begin, n_text - rest.size()};
}

}  // namespace llama_runner
