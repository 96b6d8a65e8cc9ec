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

// Append llama.cpp's tokens of a text, which has places to cut at `stretch` bytes apart at most.
// On a stack of its own where a long stretch needs it. Throws what std::exception describes.
void ask_llama(const llama_vocab & vocab, const std::string & text, size_t stretch,
               TokenizeOptions options, std::vector<llama_token> & out);

}  // namespace llama_runner
