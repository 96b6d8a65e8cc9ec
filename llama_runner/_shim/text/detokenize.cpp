#include "text/detokenize.hpp"

#include <string_view>

#include "llama-vocab.h"

namespace llama_runner {

int64_t detokenize(const llama_vocab * vocab, const llama_token * tokens, size_t n,
                   bool strip_prefix, bool remove_special, bool unparse_special,
                   std::string & out) {
    constexpr int kControl = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;
    for (size_t i = 0; i < n; ++i) {
        if (static_cast<uint32_t>(tokens[i]) >= vocab->n_tokens()) {
            return static_cast<int64_t>(i);
        }
    }
    size_t i = 0;
    if (remove_special && n > 0 && tokens[0] == vocab->token_bos() && vocab->get_add_bos()) {
        ++i;
    }
    if (remove_special && n > i && tokens[n - 1] == vocab->token_eos() && vocab->get_add_eos()) {
        --n;
    }
    const bool prefixed =
        vocab->get_add_space_prefix() || vocab->get_type() == LLAMA_VOCAB_TYPE_WPM;
    for (bool strip = strip_prefix && prefixed; i < n; ++i, strip = false) {
        if (!unparse_special && vocab->token_get_attr(tokens[i]) & kControl) {
            continue;
        }
        const std::string & piece = vocab->token_to_piece(tokens[i]);
        out.append(piece, strip && piece[0] == ' ' ? 1 : 0);
    }
    return -1;
}

namespace {

constexpr std::string_view kEscapedSpace = "\xe2\x96\x81";  // U+2581

// Does the vocabulary write spaces as U+2581, so that it cannot tell the two apart?
bool escapes_spaces(const llama_vocab * vocab) {
    switch (vocab->get_type()) {
        case LLAMA_VOCAB_TYPE_SPM:
        case LLAMA_VOCAB_TYPE_UGM: return true;
        case LLAMA_VOCAB_TYPE_BPE: return vocab->get_escape_whitespaces();
        default:                   return false;
    }
}

// How many bytes of text a piece stands for; npos where it does not begin the text.
size_t n_spelled(std::string_view piece, std::string_view text, bool escaped) {
    size_t at = 0;
    for (char byte : piece) {
        if (at < text.size() && text[at] == byte) {
            ++at;
        } else if (escaped && byte == ' ' && text.substr(at, kEscapedSpace.size()) == kEscapedSpace) {
            at += kEscapedSpace.size();
        } else {
            return std::string_view::npos;
        }
    }
    return at;
}

}  // namespace

std::vector<int64_t> token_ends(const llama_vocab * vocab, const std::vector<llama_token> & tokens,
                                size_t begin, size_t end, std::string_view text,
                                std::string_view skip) {
    constexpr size_t kNone    = std::string_view::npos;
    constexpr int    kSpecial = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED;
    const bool       escaped  = escapes_spaces(vocab);

    const auto follows_special = [&](size_t i) {
        return i == 0 || vocab->token_get_attr(tokens[i - 1]) & kSpecial;
    };
    // Where the text goes on after token i, if the token stands at `at`.
    const auto after = [&](size_t i, size_t at, bool without_space) {
        const std::string_view piece = vocab->token_to_piece(tokens[i]);
        if (text.size() - at > skip.size() && text.substr(at, skip.size()) == skip) {
            at += skip.size();
        }
        if (without_space && (piece.empty() || piece.front() != ' ')) {
            return kNone;
        }
        const size_t n = n_spelled(piece.substr(without_space), text.substr(at), escaped);
        return n == kNone ? kNone : at + n;
    };

    std::vector<int64_t> ends;
    size_t               at     = 0;
    size_t               choice = end;  // the last token whose space may not be the text's
    size_t               after_choice = kNone;
    for (size_t i = begin; i < end && at < text.size(); ++i) {
        size_t next = after(i, at, false);
        if (follows_special(i)) {
            const size_t without_space = after(i, at, true);
            if (next == kNone) {
                next = without_space;
            } else if (without_space != kNone) {
                choice       = i;
                after_choice = without_space;
            }
        }
        if (next == kNone && choice < i) {
            // The text begins with spaces of its own: take them for those of later tokens.
            ends.resize(choice - begin);
            i      = choice;
            next   = after_choice;
            choice = end;
        }
        if (next == kNone) {
            break;
        }
        at = next;
        ends.push_back(static_cast<int64_t>(at));
    }
    return ends;
}

}  // namespace llama_runner
