// llama.cpp's chat templates (common/chat.h) as functions on strings of JSON.
#pragma once

#include <memory>
#include <string>

#include "process/interrupt.hpp"
#include "llama.h"

namespace llama_runner {

struct Templates;
using ChatTemplates = std::shared_ptr<Templates>;

// The template in the model's metadata, or `override_source` if that is not empty. llama.cpp runs
// it with a few messages of its own, to find out which features it has.
ChatTemplates chat_templates(
    const llama_model * model, const std::string & override_source,
    CheckSignals check_signals);

std::string chat_template_source(const ChatTemplates & templates);

// `messages`: a JSON array. Returns {"prompt": str, "stops": [str, ...]}.
std::string apply_chat_template(
    const ChatTemplates & templates, const std::string & messages, bool add_generation_prompt,
    CheckSignals check_signals);

}  // namespace llama_runner
