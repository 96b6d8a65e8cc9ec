// Signal handlers, now and then, while text is tokenised.
#pragma once

#include <atomic>
#include <chrono>

namespace llama_runner {

// A signal handler raised; the exception waits where the handlers are called.
struct Interrupted {};

// Lets Python run its signal handlers; true if one raised. NULL on the threads where it runs none.
using CheckSignals = bool (*)();

// Asked between two calls of llama.cpp whether to go on.
class Interrupt {
  public:
    // stopped: set by another thread when there is no use in going on.
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
        if (check_signals_()) {
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
