// Tokens that are read before all others where their text stands in a text: "<|im_end|>" and such.
#pragma once

#include <bitset>
#include <cstddef>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "llama.h"

namespace llama_runner {

class SpecialTokens {
  public:
    // A token and the text that it takes the place of, with the white space that it may swallow.
    struct Match {
        size_t      start;
        size_t      end;
        llama_token token;
    };

    explicit SpecialTokens(const llama_vocab & vocab);

    // The tokens that llama.cpp reads in a text, in order, in place of `found`. Control tokens only
    // with `parse_control`.
    void find(std::string_view text, bool parse_control, std::vector<Match> & found) const;

    // Return where to cut a text so that it no longer spells control tokens. Those of a single
    // character cannot be cut.
    std::vector<size_t> inside_control(std::string_view text) const;

    // Return whether a special token could reach a cut before byte `at`, or the byte after it.
    bool touch(std::string_view text, size_t at, bool parse_control) const;

  private:
    struct Special {
        llama_token token;
        size_t      rank;  // llama.cpp looks for those with a low one first
        bool        control;
        bool        strips_left;
        bool        strips_right;
    };

    // Could one start here, by its first two bytes?
    bool may_start(std::string_view text, size_t at) const;

    // The one of this length that stands here, or null.
    const Special * look_up(
        std::string_view text, size_t at, size_t length, bool parse_control) const;

    std::unordered_map<std::string_view, Special> by_text_;
    std::vector<size_t>                           lengths_;  // longest first
    std::bitset<65536>                            starts_;
    bool                                          strips_ = false;
};

}  // namespace llama_runner
