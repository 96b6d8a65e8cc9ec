// Token ids to text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
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

// Returns the ends, in the text, of the whole tokens of tokens[begin:end] that spell its beginning.
//
// A token's leading space that is not in the text is forgiven at the very beginning and after a
// control token: SentencePiece vocabularies put one there. If a vocabulary writes spaces as U+2581,
// a U+2581 in the text also counts as a space. `skip` may stand between two tokens and is passed
// over; a token never reaches across it.
std::vector<int64_t> token_ends(const llama_vocab * vocab, const std::vector<llama_token> & tokens,
                                size_t begin, size_t end, std::string_view text,
                                std::string_view skip);

}  // namespace llama_runner
