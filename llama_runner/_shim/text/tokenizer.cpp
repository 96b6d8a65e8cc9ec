#include "text/tokenizer.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <future>
#include <stdexcept>
#include <string>
#include <system_error>

#include "text/ask_llama.hpp"
#include "llama-vocab.h"

namespace llama_runner {

namespace {

// Bytes between two cuts of KnownTokens, where there are cuts.
constexpr size_t kBlock = 4 * 1024;

// Fewer bytes than this are not worth a thread.
constexpr size_t kBytesPerThread = 32 * 1024;

}  // namespace

size_t common_prefix(const TextToTokenize & a, const TextToTokenize & b) {
    const size_t n = std::min(a.size, b.size);
    if (std::memcmp(a.data, b.data, n) == 0) {
        return n;  // the usual case, and much faster than looking for a difference
    }
    return static_cast<size_t>(std::mismatch(a.data, a.data + n, b.data).first - a.data);
}

const Tables & Tokenizer::tables() {
    std::call_once(once_, [this] {
        const auto type = vocab_->get_type();
        if (vocab_->get_pre_type() == LLAMA_VOCAB_PRE_TYPE_WHITESPACE &&
            vocab_->get_tokenizer_model() != "whitespace") {
            throw std::runtime_error(  // llama.cpp would abort at the first space
                "the pre-tokenizer 'whitespace' needs the tokenizer 'whitespace', not '" +
                vocab_->get_tokenizer_model() + "'");
        }
        tables_.emplace(Tables{
            Boundaries(*vocab_),
            SpecialTokens(*vocab_),
            type == LLAMA_VOCAB_TYPE_SPM && vocab_->get_add_space_prefix(),
            0,
        });
        if (tables_->space_prefix && tables_->boundaries) {
            tables_->n_newline = static_cast<int>(vocab_->tokenize("\n", false, false).size());
        }
    });
    return *tables_;
}

std::shared_ptr<PieceTable> Tokenizer::pieces() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!pieces_ || pieces_->full()) {
        pieces_ = std::make_shared<PieceTable>();
    }
    return pieces_;
}

void Tokenizer::tokenize_part(const TextToTokenize & text, size_t begin, size_t end,
                              TokenizeOptions options, Interrupt & interrupt,
                              std::vector<llama_token> & out) {
    const Tables &                    tables = this->tables();
    const std::shared_ptr<PieceTable> pieces = this->pieces();
    const auto [opening, closing] = options.add_special ? around() : Around{};

    if (begin == 0 && opening) {
        out.push_back(*opening);
    }
    Piecewise(*vocab_, tables, *pieces, text.valid, interrupt, out)
        .run(text.view().substr(begin, end - begin), begin == 0, options.parse_special);
    if (end == text.size && closing) {
        out.push_back(*closing);
    }
}

void Tokenizer::tokenize(const TextToTokenize & text, TokenizeOptions options,
                         CheckSignals check_signals, std::vector<llama_token> & out) {
    Interrupt interrupt(check_signals);
    tokenize_part(text, 0, text.size, options, interrupt, out);
}

void Tokenizer::tokenize_after(const TextToTokenize & known_text, const KnownTokens & known,
                               const TextToTokenize & text, TokenizeOptions options,
                               CheckSignals check_signals, KnownTokens & out) {
    Interrupt    interrupt(check_signals);
    const size_t n_same = common_prefix(known_text, text);
    size_t       n_cuts = known.cuts.size();
    while (n_cuts > 0 && (known.cuts[n_cuts - 1].byte > n_same ||
                          !can_cut(text, known.cuts[n_cuts - 1].byte, options.parse_special))) {
        --n_cuts;
    }
    const KnownTokens::Cut start = n_cuts > 0 ? known.cuts[n_cuts - 1] : KnownTokens::Cut{0, 0};
    out.tokens.assign(known.tokens.data(), known.tokens.data() + start.token);
    out.cuts.assign(known.cuts.data(), known.cuts.data() + n_cuts);
    out.n_reused = start.token;

    size_t begin = start.byte;
    do {
        const size_t end = next_cut(text, begin, options.parse_special);
        tokenize_part(text, begin, end, options, interrupt, out.tokens);
        if (end < text.size) {
            out.cuts.push_back({end, out.tokens.size()});
        }
        begin = end;
    } while (begin < text.size);
}

size_t Tokenizer::next_cut(const TextToTokenize & text, size_t begin, bool parse_special) {
    // Cut in smaller steps towards the end: appending a text may make the last cuts invalid.
    const size_t limit = begin + std::min(kBlock, (text.size - begin) / 2);
    for (size_t at = limit; at > begin; --at) {
        if (can_cut(text, at, parse_special)) {
            return at;
        }
    }
    for (size_t at = limit + 1; at < text.size; ++at) {
        if (can_cut(text, at, parse_special)) {
            return at;
        }
    }
    return text.size;
}

bool Tokenizer::can_cut(const TextToTokenize & text, size_t at, bool parse_special) {
    const Tables & tables = this->tables();
    return text.valid && tables.boundaries.allows(text.view(), at) &&
           !tables.specials.touch(text.view(), at, parse_special);
}

Tokenizer::Around Tokenizer::around() const {
    // llama.cpp would abort.
    const auto checked = [](llama_token token, const char * name) {
        if (token == LLAMA_TOKEN_NULL) {
            throw std::runtime_error(std::string("the vocabulary wants a ") + name +
                                     " token but has none: pass add_special=False");
        }
        return token;
    };
    Around around;
    switch (vocab_->get_type()) {
        case LLAMA_VOCAB_TYPE_SPM:
        case LLAMA_VOCAB_TYPE_BPE:
        case LLAMA_VOCAB_TYPE_UGM:
            if (vocab_->get_add_bos()) {
                around.opening = checked(vocab_->token_bos(), "BOS");
            }
            if (vocab_->get_add_eos()) {
                around.closing = checked(vocab_->token_eos(), "EOS");
            }
            break;
        case LLAMA_VOCAB_TYPE_WPM:
            around.opening = checked(vocab_->token_bos(), "BOS");
            around.closing = checked(vocab_->token_sep(), "SEP");
            break;
        default:
            break;
    }
    return around;
}

void Tokenizer::tokenize_all(const std::vector<TextToTokenize> & texts, TokenizeOptions options,
                             size_t n_threads, CheckSignals check_signals,
                             std::vector<std::vector<llama_token>> & out) {
    out.resize(texts.size());
    size_t n_bytes = 0;
    for (const TextToTokenize & text : texts) {
        n_bytes += text.size;
    }
    std::atomic<size_t> next{0};
    std::atomic<bool>   stopped{false};
    std::exception_ptr  error;
    const auto work = [&](Interrupt interrupt) {
        try {
            for (size_t i; !stopped.load() && (i = next.fetch_add(1)) < texts.size();) {
                interrupt.check();
                tokenize_part(texts[i], 0, texts[i].size, options, interrupt, out[i]);
            }
        } catch (const Interrupted &) {
            throw;
        } catch (...) {
            if (!stopped.exchange(true)) {
                error = std::current_exception();
            }
        }
    };
    const size_t n_useful = std::min({n_threads, texts.size(), 1 + n_bytes / kBytesPerThread});
    std::vector<std::future<void>> others;
    try {
        while (others.size() + 1 < n_useful) {
            others.push_back(std::async(std::launch::async, work, Interrupt(nullptr, &stopped)));
        }
    } catch (const std::system_error &) {
        // No more threads can be started: those that run do the work.
    }
    Interrupt interrupt(check_signals);
    bool      interrupted = false;
    try {
        work(interrupt);
        for (std::future<void> & other : others) {
            while (other.wait_for(Interrupt::kInterval) != std::future_status::ready) {
                interrupt.check();
            }
        }
    } catch (const Interrupted &) {
        interrupted = true;
        stopped.store(true);
    }
    others.clear();  // waits for them
    if (interrupted) {
        throw Interrupted();
    }
    if (error) {
        std::rethrow_exception(error);
    }
}

}  // namespace llama_runner
