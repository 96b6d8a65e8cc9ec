#include "text/ask_llama.hpp"

#include <pthread.h>
#include <sys/mman.h>

#include <exception>
#include <functional>
#include <new>

#include "llama-vocab.h"

namespace llama_runner {

namespace {

// Most pre-tokenizers are a std::regex, which recurses for each character of a run; this is more
// than it was seen to take.
constexpr size_t kStackPerByte = 1024;
constexpr size_t kStackBase    = 1024 * 1024;
constexpr size_t kSmallStretch = 512;  // bytes that the stack of any thread has room for

struct Job {
    const std::function<void()> & call;
    std::exception_ptr            error;

    void run() noexcept {
        try {
            call();
        } catch (...) {
            error = std::current_exception();
        }
    }
};

// Address space; a page of it becomes memory when it is first touched.
struct Stack {
    const size_t bytes;
    void * const base;

    explicit Stack(size_t size)
        : bytes(size), base(mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
        if (base == MAP_FAILED) {
            throw std::bad_alloc();
        }
        constexpr size_t kGuard = 64 * 1024;  // an overflow ends here, not in another's memory
        mprotect(base, kGuard, PROT_NONE);
    }
    Stack(const Stack &) = delete;
    ~Stack() { munmap(base, bytes); }
};

// Returns when the call has returned, and rethrows its exceptions.
void run_on_stack(size_t bytes, const std::function<void()> & call) {
    Job job{call, nullptr};
    constexpr size_t kPage = 64 * 1024;
    const Stack      stack((bytes + kPage - 1) / kPage * kPage);
    pthread_attr_t   attributes;
    pthread_t        thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, stack.base, stack.bytes);
    const int failed = pthread_create(
        &thread, &attributes,
        [](void * data) -> void * {
            static_cast<Job *>(data)->run();
            return nullptr;
        },
        &job);
    pthread_attr_destroy(&attributes);
    if (failed) {
        throw std::bad_alloc();
    }
    pthread_join(thread, nullptr);
    if (job.error) {
        std::rethrow_exception(job.error);
    }
}

}  // namespace

bool too_long_for_llama(const llama_vocab & vocab, size_t stretch) {
    return vocab.get_type() == LLAMA_VOCAB_TYPE_BPE && stretch > kLongestStretch;
}

void ask_llama(const llama_vocab & vocab, const std::string & text, size_t stretch,
               TokenizeOptions options, std::vector<llama_token> & out) {
    std::vector<llama_token> tokens;
    const auto               ask = [&] {
        tokens = vocab.tokenize(text, options.add_special, options.parse_special);
    };
    if (vocab.get_type() != LLAMA_VOCAB_TYPE_BPE || stretch <= kSmallStretch) {
        ask();
    } else {
        run_on_stack(kStackBase + stretch * kStackPerByte, ask);
    }
    out.insert(out.end(), tokens.begin(), tokens.end());
}

}  // namespace llama_runner
