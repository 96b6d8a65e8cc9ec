// Token ids to text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "llama.h"

namespace llama_runner {

// Append the text of tokens to `out`. Returns the index of the first one that is out of range,
// or -1.
//   strip_prefix: leave out the space that tokenising puts before a text.
//   remove_special: leave out the BOS and EOS that tokenising puts around a text.
//   unparse_special: write control tokens as text.
int64_t detokenize(const llama_vocab * vocab, const llama_token * tokens, size_t n,
                   bool strip_prefix, bool remove_special, bool unparse_special,
                   std::string & out);

struct Spelling {
    size_t n_tokens;
    size_t n_bytes;  // of the text
};

// How many whole tokens, of tokens[begin:end], spell the beginning of a text.
//
// A token's leading space that is not in the text is forgiven at the very beginning and behind a
// control token: SentencePiece vocabularies put one there. `skip` is passed over between two
// tokens; none reaches across it.
Spelling spelling(const llama_vocab * vocab, const std::vector<llama_token> & tokens, size_t begin,
                  size_t end, const char * text, size_t n_text, const char * skip, size_t n_skip);

}  // namespace llama_runner
