// llama.cpp's own tokenizer.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "llama.h"

namespace llama_runner {

struct TokenizeOptions {
    bool add_special;    // BOS and EOS where the vocabulary wants them
    bool parse_special;  // read control tokens written out in the text
};

// Bytes without a place to cut at that a stack is made for.
constexpr size_t kLongestStretch = 4 * 1024 * 1024;

bool too_long_for_llama(const llama_vocab & vocab, size_t stretch);

// Append llama.cpp's tokens of a text, which has places to cut at `stretch` bytes apart at most,
// and is not too long for it.
// On a stack of its own where a long stretch needs it. Throws what std::exception describes.
void ask_llama(const llama_vocab & vocab, const std::string & text, size_t stretch,
               TokenizeOptions options, std::vector<llama_token> & out);

}  // namespace llama_runner
