// Token ids to text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

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

}  // namespace llama_runner
