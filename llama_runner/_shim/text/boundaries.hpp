// Where a text can be cut so that the tokens of its parts are the tokens of the whole.
//
// A byte-level BPE vocabulary first splits text into pieces by a regular expression and never
// merges across them. These expressions are made of runs of one kind of character, so between most
// kinds a piece is sure to end, whatever stands around: a table of pairs says between which. It
// need not know every end of a piece, only be sure of those that it names.
//
// SentencePiece vocabularies merge whatever gives a token. There a cut is safe between characters
// that no token (or merge) has side by side.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "llama.h"

namespace llama_runner {

class Boundaries {
  public:
    explicit Boundaries(const llama_vocab & vocab);

    // Does this vocabulary have places to cut at?
    explicit operator bool() const { return rule_ != Rule::Nowhere; }

    // Can `text`, valid UTF-8, be cut at byte `at`?
    bool allows(std::string_view text, size_t at) const;

    // The first cut after `start`, itself a cut or the beginning; the end of the text if none.
    size_t next(std::string_view text, size_t start) const;

  private:
    enum class Rule { Nowhere, Kinds, Joints };

    void read_joints(const llama_vocab & vocab);
    void add_joints(std::string_view token);
    int  kind_at(std::string_view text, size_t at, size_t & length) const;
    bool kinds_allow(std::string_view text, size_t at, int before, int after) const;
    bool joints_allow(std::string_view text, size_t at) const;

    Rule rule_ = Rule::Nowhere;

    // Kinds. Bit k of entry j: a piece ends between a character of kind j and one of kind k.
    std::array<uint8_t, 7> ends_{};
    bool                   words_only_ = false;

    // Joints. Which last byte of a character stands before which first byte in a token.
    std::bitset<65536> joints_;
    bool               after_newline_ = false;  // cut only what could follow a line break, too
};

}  // namespace llama_runner
