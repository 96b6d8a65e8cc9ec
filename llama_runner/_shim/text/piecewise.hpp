// One text, tokenised piece by piece.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/boundaries.hpp"
#include "process/interrupt.hpp"
#include "llama.h"
#include "text/piece_table.hpp"
#include "text/special_tokens.hpp"

namespace llama_runner {

// The facts about a vocabulary.
struct Tables {
    Boundaries    boundaries;
    SpecialTokens specials;
    bool          space_prefix;  // the tokens of a text are those of a space and the text
    int           n_newline;     // tokens of a space and a line break, if space_prefix
};

class Piecewise {
  public:
    // valid: whether the text is valid UTF-8.
    Piecewise(const llama_vocab & vocab, const Tables & tables, PieceTable & known, bool valid,
              Interrupt & interrupt, std::vector<llama_token> & out)
        : vocab_(vocab), tables_(tables), known_(known), valid_(valid), interrupt_(interrupt),
          out_(out) {}

    // Append the tokens of a text, or of a part of one up to a cut.
    //   opens: the part is the text's first.
    // Throws Interrupted, and exceptions derived from std::exception.
    void run(std::string_view text, bool opens, bool parse_special);

  private:
    // Bytes of text between two looks at what is new: the first new words are soon needed again.
    static constexpr size_t kFirstWindow = 1024;
    static constexpr size_t kLastWindow  = 16 * 1024;

    // What comes next in the output: a known piece, or a token, or the missing piece `-1 - token`.
    struct Item {
        const PieceTable::Slot * slot;
        llama_token              token;
    };

    struct Span {
        size_t start;
        size_t end;

        size_t size() const { return end - start; }
    };

    void fragment(std::string_view text, bool opens);
    void piece(std::string_view text);
    void join(std::string_view text);
    void resolve();
    bool resolve_together();
    void ask(const std::string & text, size_t stretch);
    void ask_for(const std::string & text, size_t stretch, std::vector<llama_token> & out);
    void emit();

    const llama_vocab &        vocab_;
    const Tables &             tables_;
    PieceTable &               known_;
    const bool                 valid_;
    Interrupt &                interrupt_;
    std::vector<llama_token> & out_;

    std::vector<Item> plan_;
    size_t            n_planned_ = 0;  // bytes
    size_t            window_    = kFirstWindow;

    size_t                            n_missing_ = 0;  // pieces in the plan
    std::vector<llama_token>          tokens_;         // of those
    std::vector<Span>                 spans_;          // the tokens of each
    std::string                       missing_;        // the pieces not asked for yet
    std::vector<Span>                 missing_spans_;  // where each stands there
    std::vector<SpecialTokens::Match> matches_;
};

}  // namespace llama_runner
