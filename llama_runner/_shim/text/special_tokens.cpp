#include "text/special_tokens.hpp"

#include <algorithm>

#include "llama-vocab.h"

namespace llama_runner {

namespace {

size_t first_two(std::string_view text, size_t at) {
    return static_cast<unsigned char>(text[at]) << 8 | static_cast<unsigned char>(text[at + 1]);
}

// As C's isspace() has it in the locales that Python runs in.
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Bytes of the UTF-8 character that begins with this one.
size_t character_size(char first) {
    const auto byte = static_cast<unsigned char>(first);
    return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

}  // namespace

SpecialTokens::SpecialTokens(const llama_vocab & vocab) {
    constexpr int kControl = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;
    constexpr int kSpecial = kControl | LLAMA_TOKEN_ATTR_USER_DEFINED;
    const auto    data     = [&](llama_token id) -> const llama_vocab::token_data & {
        return vocab.get_token_data(id);
    };
    std::vector<llama_token> order;
    for (llama_token id = 0; id < static_cast<llama_token>(vocab.n_tokens()); ++id) {
        if (data(id).attr & kSpecial) {
            order.push_back(id);
        }
    }
    // Sort the same list in the same way as llama.cpp. The sort is not stable, and this way tokens
    // of one length end up in the same order.
    std::sort(order.begin(), order.end(), [&](llama_token a, llama_token b) {
        return data(a).text.size() > data(b).text.size();
    });
    for (size_t rank = 0; rank < order.size(); ++rank) {
        const auto & [text, score, attr] = data(order[rank]);
        const bool left  = attr & LLAMA_TOKEN_ATTR_LSTRIP;
        const bool right = attr & LLAMA_TOKEN_ATTR_RSTRIP;
        strips_ |= left || right;
        by_text_.emplace(text, Special{order[rank], rank, (attr & kControl) != 0, left, right});
        if (lengths_.empty() || lengths_.back() != text.size()) {
            lengths_.push_back(text.size());
        }
        if (text.size() > 1) {
            starts_.set(first_two(text, 0));
        } else {
            for (size_t second = 0; second < 256; ++second) {
                starts_.set(static_cast<unsigned char>(text[0]) << 8 | second);
            }
        }
    }
}

bool SpecialTokens::may_start(std::string_view text, size_t at) const {
    // The last byte has no second one: any token of one byte could be there.
    return at + 1 < text.size() ? starts_.test(first_two(text, at)) : !lengths_.empty();
}

const SpecialTokens::Special * SpecialTokens::look_up(
        std::string_view text, size_t at, size_t length, bool parse_control) const {
    if (at + length > text.size()) {
        return nullptr;
    }
    const auto entry = by_text_.find(text.substr(at, length));
    const bool found = entry != by_text_.end() && (parse_control || !entry->second.control);
    return found ? &entry->second : nullptr;
}

void SpecialTokens::find(
        std::string_view text, bool parse_control, std::vector<Match> & found) const {
    found.clear();
    std::vector<size_t> places;
    for (size_t at = 0; at < text.size(); ++at) {
        if (may_start(text, at)) {
            places.push_back(at);
        }
    }
    if (places.empty()) {
        return;
    }
    struct Candidate {
        size_t          at;
        const Special * special;
    };
    std::vector<Candidate> candidates;
    std::vector<bool>      taken(text.size());
    // Match one token after the other, each from left to right in the text that is not taken yet.
    for (size_t length : lengths_) {
        candidates.clear();
        for (size_t at : places) {
            if (taken[at]) {
                continue;
            }
            if (const Special * special = look_up(text, at, length, parse_control)) {
                candidates.push_back({at, special});
            }
        }
        std::stable_sort(candidates.begin(), candidates.end(),
                         [](const Candidate & a, const Candidate & b) {
                             return a.special->rank < b.special->rank;
                         });
        for (const auto & [at, special] : candidates) {
            // Matches so far are at least as long: one that overlaps this covers one of its ends.
            if (taken[at] || taken[at + length - 1]) {
                continue;
            }
            Match match{at, at + length, special->token};
            if (special->strips_left) {
                while (match.start > 0 && !taken[match.start - 1] &&
                       is_space(text[match.start - 1])) {
                    --match.start;
                }
            }
            if (special->strips_right) {
                while (match.end < text.size() && !taken[match.end] && is_space(text[match.end])) {
                    ++match.end;
                }
            }
            std::fill(taken.begin() + static_cast<std::ptrdiff_t>(match.start),
                      taken.begin() + static_cast<std::ptrdiff_t>(match.end), true);
            found.push_back(match);
        }
    }
    std::sort(found.begin(), found.end(),
              [](const Match & a, const Match & b) { return a.start < b.start; });
}

std::vector<size_t> SpecialTokens::inside_control(std::string_view text) const {
    std::vector<size_t> places;
    for (size_t at = 0; at < text.size(); ++at) {
        if (!may_start(text, at)) {
            continue;
        }
        const size_t after = at + character_size(text[at]);
        for (size_t length : lengths_) {
            const Special * special = look_up(text, at, length, true);
            if (special && special->control && after < at + length) {
                places.push_back(after);
                break;
            }
        }
    }
    return places;
}

bool SpecialTokens::touch(std::string_view text, size_t at, bool parse_control) const {
    if (lengths_.empty()) {
        return false;
    }
    if (strips_ && is_space(text[at - 1])) {
        return true;
    }
    const size_t last = std::min(at + 1, text.size() - 1);
    for (size_t start = at - std::min(at, lengths_.front()); start <= last; ++start) {
        if (!may_start(text, start)) {
            continue;
        }
        for (size_t length : lengths_) {
            if (start + length >= at && look_up(text, start, length, parse_control)) {
                return true;
            }
        }
    }
    return false;
}

}  // namespace llama_runner
