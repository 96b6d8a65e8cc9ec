// Loading LoRA adapters, and trying them out.
#pragma once

#include <cstdio>

#include "llama.h"

namespace llama_runner {

// Null where llama.cpp refuses the file or cannot compute with the adapter; the last error line says
// why. Whether it can is only known when a graph is built, which must not happen first in a context
// that is in use.
llama_adapter_lora * load_adapter(llama_model * model, std::FILE * file);

}  // namespace llama_runner
