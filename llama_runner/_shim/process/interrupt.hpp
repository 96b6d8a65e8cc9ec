// Python's signal handlers, while native code runs.
#pragma once

#include <atomic>
#include <chrono>

namespace llama_runner {

// Lets Python run its signal handlers. Not 0 if one raised: its exception is then set as this
// thread's Python error. NULL on threads where Python does not run signal handlers.
using CheckSignals = int (*)();

// A signal handler raised; see set_python_error().
struct Interrupted {};

// Asked between two calls of llama.cpp whether to go on.
class Interrupt {
  public:
    // stopped: set by another thread when it is pointless to continue.
    explicit Interrupt(CheckSignals check_signals, const std::atomic<bool> * stopped = nullptr)
        : check_signals_(check_signals), stopped_(stopped) {}

    // Throws Interrupted.
    void check() {
        if (stopped_ && stopped_->load()) {
            throw Interrupted();
        }
        if (!check_signals_ || Clock::now() < next_) {
            return;  // the question needs the GIL, which another thread may have to give up
        }
        if (check_signals_() != 0) {
            throw Interrupted();
        }
        next_ = Clock::now() + kInterval;
    }

    static constexpr std::chrono::milliseconds kInterval{30};

  private:
    using Clock = std::chrono::steady_clock;

    const CheckSignals              check_signals_;
    const std::atomic<bool> * const stopped_;
    Clock::time_point               next_ = Clock::now() + kInterval;
};

}  // namespace llama_runner
