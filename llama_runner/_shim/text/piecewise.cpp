#include "text/piecewise.hpp"

#include <algorithm>
#include <cstddef>
#include <stdexcept>

#include "text/ask_llama.hpp"
#include "llama-vocab.h"

namespace llama_runner {

namespace {

// llama.cpp reads bytes that are no UTF-8 as U+FFFD, but four that spell a number above U+10FFFF as
// that number, which it cannot write: here they are U+FFFD, too.
std::string without_large_codepoints(const std::string & text) {
    constexpr std::string_view kReplacement = "\xef\xbf\xbd";

    const auto byte = [&](size_t at) { return static_cast<unsigned char>(text[at]); };
    const auto continues = [&](size_t at) { return (byte(at) & 0xC0) == 0x80; };
    std::string mended;
    for (size_t at = 0; at < text.size(); ++at) {
        const bool large = at + 3 < text.size() && continues(at + 1) && continues(at + 2) &&
            continues(at + 3) && byte(at) <= 0xF7 &&
            (byte(at) > 0xF4 || (byte(at) == 0xF4 && byte(at + 1) > 0x8F));
        if (!large) {
            mended += text[at];
            continue;
        }
        for (int i = 0; i < 4; ++i) {
            mended += kReplacement;
        }
        at += 3;
    }
    return mended;
}

}  // namespace

void Piecewise::run(std::string_view text, bool opens, bool parse_special) {
    std::vector<SpecialTokens::Match> specials;
    tables_.specials.find(text, parse_special, specials);
    size_t start = 0;
    for (const SpecialTokens::Match & match : specials) {
        fragment(text.substr(start, match.start - start), opens);
        plan_.push_back({nullptr, match.token});
        start = match.end;
        opens = true;
    }
    fragment(text.substr(start), opens);
    emit();
}

void Piecewise::fragment(std::string_view text, bool opens) {
    if (text.empty()) {
        return;
    }
    if (!valid_ || !tables_.boundaries) {
        emit();
        ask_for(std::string(text), text.size(), out_);
        return;
    }
    std::string prefixed;
    if (tables_.space_prefix && opens) {
        prefixed.reserve(text.size() + 1);
        prefixed = ' ';
        prefixed += text;
        text = prefixed;
    }
    for (size_t start = 0; start < text.size();) {
        const size_t end = tables_.boundaries.next(text, start);
        piece(text.substr(start, end - start));
        start = end;
    }
}

void Piecewise::piece(std::string_view text) {
    const PieceTable::Slot * slot = nullptr;
    if (text.size() <= PieceTable::kLongestPiece) {
        slot = known_.find(PieceTable::Key(text));
    }
    if (slot) {
        plan_.push_back({slot, 0});
    } else {
        join(text);
        plan_.push_back({nullptr, -1 - static_cast<llama_token>(n_missing_++)});
    }
    n_planned_ += text.size();
    if (n_planned_ > window_) {
        emit();
    }
}

// Add a piece to the missing ones so that it can be cut off again, with something in between
// where it cannot stand beside the last one.
void Piecewise::join(std::string_view text) {
    const size_t joint = missing_.size();
    for (std::string_view between : {"", "\n", " a", " a1"}) {
        missing_ += between;
        const size_t start = missing_.size();
        missing_ += text;
        if (joint == 0 || (tables_.boundaries.allows(missing_, joint) &&
                           tables_.boundaries.allows(missing_, start))) {
            missing_spans_.push_back({start, missing_.size()});
            return;
        }
        missing_.resize(joint);
    }
    resolve();
    missing_ = text;
    missing_spans_.push_back({0, text.size()});
}

// Tokenise the missing pieces together and find the tokens of each; if they cannot be told apart,
// tokenise the pieces one by one.
void Piecewise::resolve() {
    if (missing_spans_.empty()) {
        return;
    }
    const size_t n_tokens = tokens_.size();
    const size_t n_spans  = spans_.size();
    if (!resolve_together()) {
        tokens_.resize(n_tokens);
        spans_.resize(n_spans);
        for (const Span & piece : missing_spans_) {
            const size_t start = tokens_.size();
            ask(missing_.substr(piece.start, piece.size()), piece.size());
            spans_.push_back({start, tokens_.size()});
        }
    }
    for (size_t i = 0; i < missing_spans_.size(); ++i) {
        const Span & piece  = missing_spans_[i];
        const Span & tokens = spans_[n_spans + i];
        if (piece.size() <= PieceTable::kLongestPiece &&
            tokens.size() <= PieceTable::kMostTokens) {
            const std::string_view text(missing_.data() + piece.start, piece.size());
            known_.insert(PieceTable::Key(text), tokens_.data() + tokens.start, tokens.size());
        }
    }
    missing_.clear();
    missing_spans_.clear();
}

bool Piecewise::resolve_together() {
    tables_.specials.find(missing_, false, matches_);
    if (missing_spans_.size() == 1 || !matches_.empty()) {
        return false;
    }
    size_t longest = 0;
    for (const Span & piece : missing_spans_) {
        longest = std::max(longest, piece.size());
    }
    size_t next = tokens_.size();
    size_t at   = 0;
    ask(missing_, longest);
    // Step over the tokens that spell missing_[at:end].
    const auto pass = [&](size_t end) {
        while (at < end && next < tokens_.size()) {
            const std::string & text = vocab_.token_to_piece(tokens_[next++]);
            if (text.empty() || missing_.compare(at, text.size(), text) != 0) {
                return false;
            }
            at += text.size();
        }
        return at == end;
    };
    for (const Span & piece : missing_spans_) {
        if (!pass(piece.start)) {
            return false;
        }
        const size_t start = next;
        if (!pass(piece.end)) {
            return false;
        }
        spans_.push_back({start, next});
    }
    return next == tokens_.size();
}

// Append the tokens of pieces to tokens_. Where llama.cpp would put a space before them, it gets a
// line break, from which any piece can be cut off, and the tokens of the two are taken away.
void Piecewise::ask(const std::string & text, size_t stretch) {
    if (!tables_.space_prefix) {
        ask_for(text, stretch, tokens_);
        return;
    }
    const auto n_before = static_cast<std::ptrdiff_t>(tokens_.size());
    ask_for('\n' + text, stretch, tokens_);
    tokens_.erase(tokens_.begin() + n_before, tokens_.begin() + n_before + tables_.n_newline);
}

void Piecewise::ask_for(const std::string & text, size_t stretch,
                        std::vector<llama_token> & out) {
    interrupt_.check();
    if (too_long_for_llama(vocab_, stretch)) {
        const char * why = !valid_ ? "and some are no UTF-8, so that it cannot be cut: mend them"
                           : !tables_.boundaries
                               ? "and with this vocabulary a text cannot be cut: shorten it"
                               : "without a place where it can be cut: break it up with spaces";
        throw std::runtime_error("it has " + std::to_string(stretch) + " bytes " + why +
                                 ", or tokenize parts of up to " +
                                 std::to_string(kLongestStretch) + " bytes");
    }
    try {
        ask_llama(vocab_, text, stretch, {false, false}, out);
    } catch (const std::invalid_argument &) {
        if (valid_) {
            throw;
        }
        ask_llama(vocab_, without_large_codepoints(text), stretch, {false, false}, out);
    }
}

// Write the planned output.
void Piecewise::emit() {
    interrupt_.check();
    resolve();
    for (const Item & item : plan_) {
        if (item.slot) {
            const llama_token * tokens = item.slot->tokens.data();
            out_.insert(out_.end(), tokens, tokens + item.slot->size());
        } else if (item.token >= 0) {
            out_.push_back(item.token);
        } else {
            const Span & span = spans_[static_cast<size_t>(-1 - item.token)];
            const llama_token * tokens = tokens_.data() + span.start;
            out_.insert(out_.end(), tokens, tokens + span.size());
        }
    }
    plan_.clear();
    tokens_.clear();
    spans_.clear();
    n_missing_ = 0;
    n_planned_ = 0;
    window_    = std::min(2 * window_, kLastWindow);
}

}  // namespace llama_runner
