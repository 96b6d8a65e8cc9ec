// Text to token ids: exactly llama.cpp's, several times faster.
//
// llama.cpp spends its time on building, hashing and comparing a string for every pair of symbols
// of every word, each time it meets the word. Here the text is cut where that is sure to change
// nothing (boundaries.hpp), and what a piece was tokenised to is remembered (piece_table.hpp).
// llama.cpp itself tokenises the pieces that are new, many in one call. A text that cannot be cut
// goes to it as it is.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <vector>

#include "text/ask_llama.hpp"
#include "process/interrupt.hpp"
#include "llama.h"
#include "text/piece_table.hpp"
#include "text/piecewise.hpp"

namespace llama_runner {

struct TextToTokenize {
    const char * data;
    size_t       size;
    bool         valid;  // is it UTF-8?

    std::string_view view() const { return {data, size}; }
};

// Bytes that two texts begin with both.
size_t common_prefix(const TextToTokenize & a, const TextToTokenize & b);

// The tokens of a text and places where both can be cut, in order.
struct KnownTokens {
    struct Cut {
        size_t byte;
        size_t token;
    };

    std::vector<llama_token> tokens;
    std::vector<Cut>         cuts;
    size_t                   n_reused = 0;  // tokens that came from a text known before
};

// Any number of threads may use one at once. All members throw exceptions derived from
// std::exception, and Interrupted if check_signals says so.
class Tokenizer {
  public:
    explicit Tokenizer(const llama_vocab * vocab) : vocab_(vocab) {}

    // Append the tokens of a text to `out`.
    void tokenize(const TextToTokenize & text, TokenizeOptions options, CheckSignals check_signals,
                  std::vector<llama_token> & out);

    // Replace `out` by the tokens of a text, reusing those of one that may begin like it.
    void tokenize_after(const TextToTokenize & known_text, const KnownTokens & known,
                        const TextToTokenize & text, TokenizeOptions options,
                        CheckSignals check_signals, KnownTokens & out);

    // Return where to cut a text so that it no longer spells control tokens.
    std::vector<size_t> inside_control(const TextToTokenize & text) {
        return tables().specials.inside_control(text.view());
    }

    // Tokenise each text into its place in `out`, on this thread and up to n_threads - 1 others.
    void tokenize_all(const std::vector<TextToTokenize> & texts, TokenizeOptions options,
                      size_t n_threads, CheckSignals check_signals,
                      std::vector<std::vector<llama_token>> & out);

  private:
    // The tokens that add_special puts around a text.
    struct Around {
        std::optional<llama_token> opening;
        std::optional<llama_token> closing;
    };

    // Append the tokens of text[begin:end], each an end of the text or a cut.
    void tokenize_part(const TextToTokenize & text, size_t begin, size_t end,
                       TokenizeOptions options, Interrupt & interrupt,
                       std::vector<llama_token> & out);

    // Are the tokens of text[:at] and of text[at:] those of the text?
    bool can_cut(const TextToTokenize & text, size_t at, bool parse_special);

    // The last cut of a block, or else the first one after it, or the end of the text.
    size_t next_cut(const TextToTokenize & text, size_t begin, bool parse_special);

    const Tables &              tables();
    std::shared_ptr<PieceTable> pieces();
    Around                      around() const;

    const llama_vocab * const   vocab_;
    std::once_flag              once_;
    std::optional<Tables>       tables_;
    std::mutex                  mutex_;
    std::shared_ptr<PieceTable> pieces_;
};

}  // namespace llama_runner
