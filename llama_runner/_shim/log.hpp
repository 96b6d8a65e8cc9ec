// The last error line that llama.cpp logged, per thread: the cause behind a bare NULL or -1.
#pragma once

#include <string>
#include <utility>
#include <vector>

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

// How many monitors this thread holds. While it holds one it must not wait for the GIL, whose owner
// may wait for the monitor: its log lines are put off.
inline int & monitors_held() {
    thread_local int held = 0;
    return held;
}

using LogLine = std::pair<int, std::string>;

inline std::vector<LogLine> & deferred_log() {
    thread_local std::vector<LogLine> lines;
    return lines;
}

inline bool defer_log(int level, const char * text) {
    if (monitors_held() == 0) {
        return false;
    }
    if (deferred_log().size() < 256) {
        deferred_log().emplace_back(level, text);
    }
    return true;
}

inline std::string last_error() { return error_slot(); }

}  // namespace llama_runner
