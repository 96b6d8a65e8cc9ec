#include "chat/chat.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <stdexcept>

#include "chat.h"
#include "json.h"
#include "log.h"

namespace llama_runner {

namespace {

// common/log.h starts a writer thread at its first message and prints to the user's stderr.
const bool log_is_silent = [] {
    common_log_set_verbosity_thold(-1);
    return true;
}();

// A second or two of work. Of llama.cpp's own collection, no template needs a hundredth of it.
constexpr int64_t kStepsToLoad   = 20'000'000;
constexpr int64_t kStepsToRender = 40'000'000;

#ifdef JINJA_BUDGET  // which patches bring in: a tree from elsewhere has no limits

// Runs a template with limits, some 100 MB among them. Messages add to what it may do: most
// templates take 100 steps for a byte of short messages, but of 2,000 messages one takes 16,000,
// since it looks through all of them for each.
template <typename Call>
auto limited(
        int64_t steps, size_t n_input, std::atomic<bool> & leaks, CheckSignals check_signals,
        Call && call) {
    const char    here   = 0;
    const int64_t n      = static_cast<int64_t>(n_input);
    const int64_t values = 400'000 + 20 * n;

    jinja::budget & budget = jinja::the_budget;
    struct End {  // a signal handler may render in the midst of another template
        const jinja::budget outer = jinja::the_budget;
        ~End() { jinja::the_budget = outer; }
    } end;
    budget         = {};
    budget.steps   = steps + 20'000 * n;
    budget.text    = 32'000'000 + 50 * n;
    budget.values  = values;
    budget.stack   = &here;
    budget.n_stack = 192 * 1024;  // a sixth of it is used, and any thread has that much
    if (check_signals) {
        budget.check_signals = check_signals;
        budget.next_check    = budget.steps - jinja::steps_between_checks;
    }

    // Values that are left after a run refer to themselves and would never be freed.
    const auto check = [&] {
        leaks = leaks || budget.values != values;
        jinja::require(true, "");
        jinja::require(!leaks, "it puts a list or a namespace into itself");
    };
    try {
        check();
        auto result = call();
        check();
        return result;
    } catch (const std::exception & error) {
        check();  // the cause, before what llama.cpp made of it
        if (std::strstr(error.what(), "std::bad_alloc")) {
            throw std::bad_alloc();
        }
        throw;
    }
}

#else

template <typename Call>
auto limited(int64_t, size_t, std::atomic<bool> &, CheckSignals, Call && call) {
    return call();
}

#endif

// The JSON library takes any depth apart, but copies it by recursion. And it makes a float of an
// integer of more than 64 bits, which a template would then show otherwise than it was given.
void require_simple(const std::string & json) {
    constexpr size_t kDeepest  = 200;
    constexpr size_t kLongest  = 18;
    size_t           depth     = 0;
    bool             in_text   = false;
    const auto       is_digit  = [](char c) { return c >= '0' && c <= '9'; };
    for (size_t i = 0; i < json.size(); ++i) {
        const char c = json[i];
        if (in_text && c == '\\') {
            ++i;
        } else if (c == '"') {
            in_text = !in_text;
        } else if (!in_text && is_digit(c)) {
            const auto   start = json.begin() + static_cast<std::ptrdiff_t>(i);
            const size_t end   = std::min(json.find_first_not_of("0123456789+-.eE", i), json.size());
            const bool   whole = std::all_of(start, start + static_cast<std::ptrdiff_t>(end - i), is_digit);
            if (whole && end - i > kLongest) {
                throw std::runtime_error(
                    "they have an integer of more than " + std::to_string(kLongest) + " digits");
            }
            i = end - 1;
        } else if (!in_text && (c == '[' || c == '{') && ++depth > kDeepest) {
            throw std::runtime_error(
                "they have JSON nested more than " + std::to_string(kDeepest) + " deep");
        } else if (!in_text && (c == ']' || c == '}') && depth > 0) {
            --depth;
        }
    }
}

}  // namespace

struct Templates {
    common_chat_templates_ptr native;
    std::atomic<bool>         leaks{false};
};

ChatTemplates chat_templates(
        const llama_model * model, const std::string & override_source,
        CheckSignals check_signals) {
    const auto templates = std::make_shared<Templates>();
    templates->native    = limited(kStepsToLoad, 0, templates->leaks, check_signals, [&] {
        return common_chat_templates_init(model, override_source);
    });
    return templates;
}

std::string chat_template_source(const ChatTemplates & templates) {
    return common_chat_templates_source(templates->native.get());
}

std::string apply_chat_template(
        const ChatTemplates & templates, const std::string & messages, bool add_generation_prompt,
        CheckSignals check_signals) {
    require_simple(messages);

    common_chat_templates_inputs inputs;
    inputs.messages = common_chat_msgs_parse_oaicompat(common_json::parse(messages));
    for (const common_chat_msg & message : inputs.messages) {
        for (const common_chat_tool_call & call : message.tool_calls) {
            require_simple(call.arguments);
        }
    }
    inputs.add_generation_prompt = add_generation_prompt;

    const common_chat_params params =
        limited(kStepsToRender, messages.size(), templates->leaks, check_signals, [&] {
            return common_chat_templates_apply(templates->native.get(), inputs);
        });

    common_json answer = common_json::object();
    answer["prompt"]   = params.prompt;
    answer["stops"]    = params.additional_stops;
    return answer.dump();
}

}  // namespace llama_runner
