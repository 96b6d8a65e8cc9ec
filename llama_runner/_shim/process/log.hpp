// The last error line that llama.cpp logged, per thread: the cause of a bare NULL or -1.
#pragma once

#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace llama_runner {

// Plain data, here and below: where a thread's variables have a destructor, their first use takes
// memory, and the process ends where there is none.
inline char (&error_slot())[1024] {
    thread_local char slot[1024];
    return slot;
}

inline void forget_error() { error_slot()[0] = '\0'; }

inline void remember_error(const char * text) {
    auto & slot = error_slot();
    // The first line names the cause; those after it ("failed to load model") only its consequence.
    if (slot[0] != '\0') {
        return;
    }
    snprintf(slot, sizeof slot, "%s", text);
    size_t n = strlen(slot);
    while (n > 0 && (slot[n - 1] == '\n' || slot[n - 1] == ' ')) {
        slot[--n] = '\0';
    }
}

// The number of monitors that this thread holds. While it holds one it must not wait for the GIL,
// because the thread with the GIL may be waiting for the monitor. So its log lines are deferred.
inline int & monitors_held() {
    thread_local int held = 0;
    return held;
}

using LogLine = std::pair<int, std::string>;

inline std::vector<LogLine> *& deferred_log() {
    thread_local std::vector<LogLine> * lines = nullptr;
    return lines;
}

// Returns null if there are none; otherwise the caller must delete the lines.
inline std::vector<LogLine> * take_deferred_log() {
    return std::exchange(deferred_log(), nullptr);
}

inline bool defer_log(int level, const char * text) {
    if (monitors_held() == 0) {
        return false;
    }
    auto *& lines = deferred_log();
    try {
        if (lines == nullptr) {
            lines = new std::vector<LogLine>;
        }
        if (lines->size() < 256) {
            lines->emplace_back(level, text);
        }
    } catch (const std::bad_alloc &) {
        // the line is lost
    }
    return true;
}

inline const char * last_error() { return error_slot(); }

}  // namespace llama_runner
