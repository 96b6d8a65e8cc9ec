// The last error line that llama.cpp logged, per thread: the cause behind a bare NULL or -1.
#pragma once

#include <string>

namespace llama_runner {

inline std::string & error_slot() {
    thread_local std::string slot;
    return slot;
}

inline void forget_error() { error_slot().clear(); }

inline void remember_error(const char * text) {
    std::string line(text);
    while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) {
        line.pop_back();
    }
    // The first line names the cause; those after it ("failed to load model") only its consequence.
    if (!line.empty() && error_slot().empty()) {
        error_slot() = line;
    }
}

inline std::string last_error() { return error_slot(); }

}  // namespace llama_runner
