// Loads LoRA adapters and checks that they can be used.
#pragma once

#include <cstdio>

#include "llama.h"

namespace llama_runner {

// Returns null if llama.cpp refuses the file or cannot compute with the adapter; the last error
// line says why. Only building a graph shows whether it can, so that is tried here, before the
// adapter reaches a context that is in use.
llama_adapter_lora * load_adapter(llama_model * model, std::FILE * file);

}  // namespace llama_runner
