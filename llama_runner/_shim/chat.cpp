#include "chat.hpp"

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

}  // namespace

ChatTemplates chat_templates(const llama_model * model, const std::string & override_source) {
    return ChatTemplates(
        common_chat_templates_init(model, override_source).release(), common_chat_templates_free);
}

std::string chat_template_source(const ChatTemplates & templates) {
    return common_chat_templates_source(templates.get());
}

std::string apply_chat_template(const ChatTemplates & templates, const std::string & request) {
    const common_json parsed = common_json::parse(request);

    common_chat_templates_inputs inputs;
    inputs.messages              = common_chat_msgs_parse_oaicompat(parsed.at("messages"));
    inputs.add_generation_prompt = parsed.at("add_generation_prompt").get<bool>();

    const common_chat_params params = common_chat_templates_apply(templates.get(), inputs);

    common_json answer = common_json::object();
    answer["prompt"]   = params.prompt;
    answer["stops"]    = params.additional_stops;
    return answer.dump();
}

}  // namespace llama_runner
