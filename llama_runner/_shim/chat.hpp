// llama.cpp's chat templates (common/chat.h) behind strings of JSON.
#pragma once

#include <memory>
#include <string>

#include "llama.h"

struct common_chat_templates;

namespace llama_runner {

using ChatTemplates = std::shared_ptr<common_chat_templates>;

// The template in the model's metadata, or `override_source` where that is not empty.
ChatTemplates chat_templates(const llama_model * model, const std::string & override_source);

std::string chat_template_source(const ChatTemplates & templates);

// `request`: {"messages": [...], "add_generation_prompt": bool}.
// Returns {"prompt": str, "stops": [str, ...]}.
std::string apply_chat_template(const ChatTemplates & templates, const std::string & request);

}  // namespace llama_runner
