#include "text/boundaries.hpp"

#include <string>

#include "../src/unicode.h"  // common/ has another unicode.h
#include "llama-vocab.h"

namespace llama_runner {

namespace {

enum Kind { kLetter, kNumber, kPunctuation, kQuote, kSpace, kBreak, kOther };

constexpr uint8_t bits() { return 0; }
template <typename... More>
constexpr uint8_t bits(Kind kind, More... more) {
    return static_cast<uint8_t>(1 << kind | bits(more...));
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S), also after \p{N}.
constexpr std::array<uint8_t, 7> kGpt2Ends = {
    bits(kNumber, kPunctuation, kQuote, kSpace, kBreak),  // after a letter
    bits(kLetter, kPunctuation, kQuote, kSpace, kBreak),  // after a number
    bits(kLetter, kNumber, kSpace, kBreak),               // after punctuation
    bits(kNumber, kSpace, kBreak),                        // after a quote, which may open 's
    bits(), bits(), bits(),
};

// [^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ and numbers apart:
// a letter takes one character before it, punctuation the line breaks after it, and a word may
// take the 's that follows.
constexpr std::array<uint8_t, 7> kLlama3Ends = {
    bits(kNumber, kPunctuation, kSpace, kBreak),
    bits(kLetter, kPunctuation, kQuote, kSpace, kBreak),
    bits(kNumber, kSpace),
    bits(kNumber, kSpace),
    bits(), bits(), bits(),
};

// All that the rest have in common: nothing goes on from a word to the space after it.
constexpr std::array<uint8_t, 7> kWordEnds = {
    bits(kSpace), bits(kSpace), bits(), bits(), bits(), bits(), bits(),
};

Kind kind_of_ascii(unsigned char c) {
    if ((c | 32) >= 'a' && (c | 32) <= 'z') return kLetter;
    if (c >= '0' && c <= '9') return kNumber;
    if (c == ' ') return kSpace;
    if (c >= '\t' && c <= '\r') return kBreak;
    if (c == '\'') return kQuote;
    return c > ' ' && c < 127 ? kPunctuation : kOther;
}

struct AsciiKinds {
    std::array<uint8_t, 128> kind;
    AsciiKinds() {
        for (size_t c = 0; c < kind.size(); ++c) {
            kind[c] = kind_of_ascii(static_cast<unsigned char>(c));
        }
    }
};
const AsciiKinds kAscii;

constexpr std::string_view kEscapedSpace = "\xe2\x96\x81";

// The first and the last byte of the character at and before `at`, of a space where it is escaped.
size_t first_byte(std::string_view text, size_t at) {
    return text.compare(at, 3, kEscapedSpace) == 0 ? ' ' : static_cast<unsigned char>(text[at]);
}

size_t last_byte(std::string_view text, size_t at) {
    const bool escaped = at >= 3 && text.compare(at - 3, 3, kEscapedSpace) == 0;
    return escaped ? ' ' : static_cast<unsigned char>(text[at - 1]);
}

bool inside_character(std::string_view text, size_t at) { return (text[at] & 0xC0) == 0x80; }

}  // namespace

Boundaries::Boundaries(const llama_vocab & vocab) {
    const auto type = vocab.get_type();
    if (type == LLAMA_VOCAB_TYPE_SPM || (type == LLAMA_VOCAB_TYPE_BPE && vocab.get_escape_whitespaces())) {
        read_joints(vocab);
        return;
    }
    const std::string model = vocab.get_tokenizer_model();
    if (type != LLAMA_VOCAB_TYPE_BPE || model == "hybriddna" || model == "whitespace") {
        return;
    }
    rule_ = Rule::Kinds;
    switch (vocab.get_pre_type()) {
        case LLAMA_VOCAB_PRE_TYPE_CODESHELL:
        case LLAMA_VOCAB_PRE_TYPE_COMMAND_R:
        case LLAMA_VOCAB_PRE_TYPE_EXAONE:
        case LLAMA_VOCAB_PRE_TYPE_GPT2:
        case LLAMA_VOCAB_PRE_TYPE_GRANITE_DOCLING:
        case LLAMA_VOCAB_PRE_TYPE_JAIS:
        case LLAMA_VOCAB_PRE_TYPE_MELLUM2:
        case LLAMA_VOCAB_PRE_TYPE_MINERVA:
        case LLAMA_VOCAB_PRE_TYPE_MPT:
        case LLAMA_VOCAB_PRE_TYPE_OLMO:
        case LLAMA_VOCAB_PRE_TYPE_REFACT:
        case LLAMA_VOCAB_PRE_TYPE_SMOLLM:
        case LLAMA_VOCAB_PRE_TYPE_STARCODER:
        case LLAMA_VOCAB_PRE_TYPE_TRILLION:
            ends_ = kGpt2Ends;
            break;
        case LLAMA_VOCAB_PRE_TYPE_BAILINGMOE:
        case LLAMA_VOCAB_PRE_TYPE_CHATGLM4:
        case LLAMA_VOCAB_PRE_TYPE_DBRX:
        case LLAMA_VOCAB_PRE_TYPE_DEEPSEEK3_LLM:
        case LLAMA_VOCAB_PRE_TYPE_GPT4O:
        case LLAMA_VOCAB_PRE_TYPE_GRANITE_EMB_MULTI:
        case LLAMA_VOCAB_PRE_TYPE_GROK_2:
        case LLAMA_VOCAB_PRE_TYPE_HUNYUAN:
        case LLAMA_VOCAB_PRE_TYPE_HUNYUAN_DENSE:
        case LLAMA_VOCAB_PRE_TYPE_HY_V4:
        case LLAMA_VOCAB_PRE_TYPE_JOYAI_LLM:
        case LLAMA_VOCAB_PRE_TYPE_KIMI_K2:
        case LLAMA_VOCAB_PRE_TYPE_LAGUNA:
        case LLAMA_VOCAB_PRE_TYPE_LLAMA3:
        case LLAMA_VOCAB_PRE_TYPE_MINICPM5:
        case LLAMA_VOCAB_PRE_TYPE_MINIMAX_M2:
        case LLAMA_VOCAB_PRE_TYPE_QWEN2:
        case LLAMA_VOCAB_PRE_TYPE_QWEN35:
        case LLAMA_VOCAB_PRE_TYPE_SEED_CODER:
        case LLAMA_VOCAB_PRE_TYPE_SMAUG:
        case LLAMA_VOCAB_PRE_TYPE_SOLAR_OPEN:
        case LLAMA_VOCAB_PRE_TYPE_SPARK2_5:
        case LLAMA_VOCAB_PRE_TYPE_STABLELM2:
        case LLAMA_VOCAB_PRE_TYPE_TEKKEN:
        case LLAMA_VOCAB_PRE_TYPE_UFAKZEKA:
        case LLAMA_VOCAB_PRE_TYPE_YOUTU:
            ends_ = kLlama3Ends;
            break;
        case LLAMA_VOCAB_PRE_TYPE_AFMOE:
        case LLAMA_VOCAB_PRE_TYPE_BLOOM:
        case LLAMA_VOCAB_PRE_TYPE_CHAMELEON:
        case LLAMA_VOCAB_PRE_TYPE_DEEPSEEK_CODER:
        case LLAMA_VOCAB_PRE_TYPE_DEEPSEEK_LLM:
        case LLAMA_VOCAB_PRE_TYPE_DEFAULT:
        case LLAMA_VOCAB_PRE_TYPE_FALCON:
        case LLAMA_VOCAB_PRE_TYPE_GPT3_FINNISH:
        case LLAMA_VOCAB_PRE_TYPE_JAIS2:
        case LLAMA_VOCAB_PRE_TYPE_PORO:
        case LLAMA_VOCAB_PRE_TYPE_TINY_AYA:
        case LLAMA_VOCAB_PRE_TYPE_VIKING:
            ends_       = kWordEnds;
            words_only_ = true;
            break;
        default:
            rule_ = Rule::Nowhere;  // pieces of several words, or an expression not looked at
    }
}

void Boundaries::read_joints(const llama_vocab & vocab) {
    const bool spm = vocab.get_type() == LLAMA_VOCAB_TYPE_SPM;
    for (uint32_t id = 0; id < vocab.n_tokens(); ++id) {
        add_joints(vocab.get_token_data(static_cast<llama_token>(id)).text);
    }
    if (!spm) {
        for (std::string & merge : vocab.get_bpe_merges()) {
            add_joints(merge.erase(merge.find(' '), 1));
        }
    }
    // Tokenizer puts a line break before a piece where llama.cpp puts a space before all.
    after_newline_ = spm && vocab.get_add_space_prefix();
    const bool has_newline = vocab.text_to_token("\n") != LLAMA_TOKEN_NULL ||
                             vocab.text_to_token("<0x0A>") != LLAMA_TOKEN_NULL;
    const bool can_follow  = has_newline && !joints_.test('\n' << 8 | ' ');
    rule_ = after_newline_ && !can_follow ? Rule::Nowhere : Rule::Joints;
}

void Boundaries::add_joints(std::string_view token) {
    for (size_t at = 1; at < token.size(); ++at) {
        if (!inside_character(token, at)) {
            joints_.set(last_byte(token, at) << 8 | first_byte(token, at));
        }
    }
}

// The kind of the character at `at`; `length` becomes its size in bytes.
int Boundaries::kind_at(std::string_view text, size_t at, size_t & length) const {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
    if (byte(0) < 0x80) {
        length = 1;
        return kAscii.kind[byte(0)];
    }
    uint32_t code;
    if (byte(0) < 0xE0) {
        length = 2;
        code   = (byte(0) & 0x1Fu) << 6 | (byte(1) & 0x3Fu);
    } else if (byte(0) < 0xF0) {
        length = 3;
        code   = (byte(0) & 0x0Fu) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
    } else {
        length = 4;
        code   = (byte(0) & 0x07u) << 18 | (byte(1) & 0x3Fu) << 12 | (byte(2) & 0x3Fu) << 6 |
               (byte(3) & 0x3Fu);
    }
    if (words_only_) {
        return kOther;  // some expressions name their letters, others leave some out
    }
    const unicode_cpt_flags flags = unicode_cpt_flags_from_cpt(code);
    return flags.category_flag() == unicode_cpt_flags::LETTER ? kLetter : kOther;
}

bool Boundaries::kinds_allow(std::string_view text, size_t at, int before, int after) const {
    if (ends_[before] >> after & 1) {
        return true;
    }
    // " x" is cut off the spaces before it; not so if an earlier expression has set x apart, which
    // some do with numbers and with the letters of some scripts.
    if (words_only_ || after != kSpace || (before != kSpace && before != kBreak) ||
        at + 1 == text.size() || static_cast<unsigned char>(text[at + 1]) >= 0x80) {
        return false;
    }
    size_t length;
    return bits(kLetter, kPunctuation, kQuote) >> kind_at(text, at + 1, length) & 1;
}

bool Boundaries::joints_allow(std::string_view text, size_t at) const {
    const size_t after = first_byte(text, at);
    return !inside_character(text, at) && !joints_.test(last_byte(text, at) << 8 | after) &&
           !(after_newline_ && joints_.test('\n' << 8 | after));
}

bool Boundaries::allows(std::string_view text, size_t at) const {
    if (rule_ == Rule::Nowhere || at == 0 || at >= text.size()) {
        return false;
    }
    if (rule_ == Rule::Joints) {
        return joints_allow(text, at);
    }
    if (inside_character(text, at)) {
        return false;
    }
    size_t before = at - 1;
    while (inside_character(text, before)) {
        --before;
    }
    size_t length;
    const int kind = kind_at(text, before, length);
    return kinds_allow(text, at, kind, kind_at(text, at, length));
}

size_t Boundaries::next(std::string_view text, size_t start) const {
    if (rule_ == Rule::Joints) {
        size_t at = start + 1;
        while (at < text.size() && !joints_allow(text, at)) {
            ++at;
        }
        return at;
    }
    size_t length;
    int    before = kind_at(text, start, length);
    for (size_t at = start + length; at < text.size(); at += length) {
        const int kind = kind_at(text, at, length);
        if (kinds_allow(text, at, before, kind)) {
            return at;
        }
        before = kind;
    }
    return text.size();
}

}  // namespace llama_runner
