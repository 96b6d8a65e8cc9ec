// The decode loop's state: plain data that many threads reach without the GIL.
//
// Access: `Engine::monitor` guards `active`, the orphans, the `running` and `closed` flags and
// every field of a Request that its caller reads. Sequence contents, the batch and llama_context
// belong to the holder of the loop (`running == true`). The owner of an idle sequence may append to
// its tokens at any time, so the holder of the loop reads them with the monitor held. The holder
// appends to the tokens of a generating sequence, also with the monitor held.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "memory/finite.hpp"
#include "llama.h"
#include "process/log.hpp"
#include "memory/parking.hpp"

namespace llama_runner {

inline int64_t now_us() {
    using namespace std::chrono;
    return duration_cast<microseconds>(steady_clock::now().time_since_epoch()).count();
}

class Monitor {
  public:
    void lock() {
        mutex_.lock();
        ++monitors_held();
    }
    void unlock() {
        --monitors_held();
        mutex_.unlock();
    }
    void notify_all() { changed_.notify_all(); }
    // Called with the lock held; returns with it held.
    void wait_ms(int ms) {
        std::unique_lock<std::mutex> held(mutex_, std::adopt_lock);
        changed_.wait_for(held, std::chrono::milliseconds(ms));
        held.release();
    }

  private:
    std::mutex              mutex_;
    std::condition_variable changed_;
};

// The recipe of one request's sampling; fields as in GenerationParams.
struct SamplerRecipe {
    float    temperature       = 0.0f;
    int32_t  top_k             = 0;
    float    top_p             = 1.0f;
    float    min_p             = 0.0f;
    float    repeat_penalty    = 1.0f;
    float    frequency_penalty = 0.0f;
    float    presence_penalty  = 0.0f;
    int32_t  penalty_last_n    = 0;
    uint32_t seed              = 0;
};

struct Candidate {
    float       logit;
    float       p;
    llama_token id;
};

struct Patch {  // a logit that was changed in place and must be restored
    llama_token id;
    float       logit;
};

struct SamplerState {
    SamplerRecipe                 recipe;
    std::mt19937                  rng;
    std::vector<llama_token>      suppressed;  // never sampled
    std::vector<llama_token>      window;      // the tokens under penalty, sorted
    std::vector<float>            block_max;
    std::vector<float>            block_max_scratch;
    std::vector<Candidate>        candidates;
    std::vector<Patch>            patches;
    std::vector<llama_token_data> chain_data;  // only for the fallback chain
    llama_sampler *               chain     = nullptr;
    bool                          use_chain = false;

    SamplerState() = default;
    SamplerState(const SamplerState &) = delete;
    ~SamplerState() {
        if (chain) {
            llama_sampler_free(chain);
        }
    }
};

struct Adapter {
    llama_adapter_lora * weights;
    float                scale;

    bool operator==(const Adapter & other) const {
        return weights == other.weights && scale == other.scale;
    }
};

inline void forget_adapter(std::vector<Adapter> & adapters, const llama_adapter_lora * weights) {
    const auto same = [&](const Adapter & adapter) { return adapter.weights == weights; };
    adapters.erase(std::remove_if(adapters.begin(), adapters.end(), same), adapters.end());
}

// One conversation: its ledger, and the part of it that need not be computed again.
//
// In the memory (slot >= 0): tokens[0:n_kv] have cells at positions 0..n_kv-1; the rest must still
// be decoded. Evicted (slot < 0, n_kv == 0): tokens[0:n_parked] are the first ones of the parked
// state, if there is one; the rest must still be decoded. Lowering either number is always safe.
struct Sequence {
    std::vector<llama_token> tokens;
    llama_seq_id             slot      = -1;
    int32_t                  n_kv      = 0;
    ParkedPtr                parked;               // may have been dropped for others
    int32_t                  n_parked  = 0;
    int32_t                  n_exact   = INT32_MAX;  // cells from here on depend on removed tokens
    std::vector<Adapter>     adapters;             // that its cells are computed with
    const void *             user      = nullptr;  // the request or memory operation that has it
    uint64_t                 last_used = 0;        // engine's clock: the oldest is evicted first
    bool                     orphan    = false;    // closed: the holder of the loop frees its slot
    bool                     warm      = false;    // after those that are not
    bool                     stays     = false;    // not to be evicted now; see can_make_room()
};

using SequencePtr = std::shared_ptr<Sequence>;
using WeakSequencePtr = std::weak_ptr<Sequence>;

enum class Phase { Prefill, Decode, Done };
enum class Finish { None, Stop, Length, Cancelled, Failed };

struct Request {
    SequencePtr              sequence;
    SamplerState             sampler;
    std::vector<std::string> stops;
    size_t                   longest_stop = 0;
    int32_t                  max_tokens   = 1;
    bool                     temporary    = false;  // a stateless call: its sequence dies with it
    bool                     streaming    = false;  // its caller waits for text, not for the end
    int32_t                  pause_at     = 0;      // ledger length to rest at; 0 is never
    bool                     probe        = false;  // wants the next logits, no token

    std::atomic<bool> cancelled{false};
    bool              in_batch = false;
    bool              suspect  = false;  // a batch with it failed: decode it alone once
    bool              begun    = false;  // a turn has looked for its tokens in the memory
    Phase             phase    = Phase::Prefill;
    Finish            finish   = Finish::None;
    int32_t           failure  = 0;  // llama_decode's return code, or one of turn.pxi's
    std::string       error;
    uint64_t          arrival = 0;
    bool              paused  = false;

    std::vector<llama_token> output;         // generated tokens, without the one that ended it
    std::vector<size_t>      output_starts;  // where each begins in `text`
    std::string              text;           // bytes generated so far
    size_t                   released = 0;   // text[0:released] may be shown: whole characters,
    size_t                   taken    = 0;   // no possible stop string; [0:taken] was shown
    size_t                   tokens_taken = 0;
    int32_t                  stop_index   = -1;
    std::vector<float>       logits;         // of a probe
    int32_t                  stop_at = -1;   // where its owner is to end the ledger, or -1
    size_t                   kept_from = 0;  // and the text from here on, to be tokenised again

    int32_t n_prompt = 0;  // ledger length when the request began
    int32_t n_reused = 0;  // of those, already in the memory
    int32_t n_shared = 0;  // taken over from another sequence
    int32_t n_prefilled = 0;  // ledger tokens decoded for this request before its first output
    int64_t t_first  = 0;      // when the first token was there
    int64_t prefill_us = 0;    // that callers waited for it
    int64_t decode_us  = 0;    // and for what came after it
};

using RequestPtr = std::shared_ptr<Request>;

// One sequence's part of the batch in flight.
struct Share {
    Request * request;
    int32_t   n_tokens;
    int32_t   output_index;  // batch index whose logits are wanted, or -1
    llama_token token = -1;  // sampled from them
};

// Facts about the model and the context for the loop; fixed when the context is made.
struct Traits {
    const llama_vocab * vocab     = nullptr;
    int32_t             n_vocab   = 0;
    int32_t             n_swa     = 0;      // sliding window in tokens, 0 without one
    bool                recurrent = false;  // a state that cannot be rewound
    bool                can_shift = false;
    bool                unified   = true;
    int32_t             n_ctx     = 0;
    int32_t             n_ctx_seq = 0;
    int32_t             n_ubatch  = 0;
};

struct Engine {
    Traits                   traits;
    Monitor                  monitor;
    std::vector<Request *>   active;     // requests whose callers wait for them
    KvTensors                cells;      // for checking what was written
    Parking                  parking;
    std::vector<SequencePtr> slots;      // by llama_seq_id; null where free
    std::vector<int32_t>     shared;     // [slot, slot]: number of leading cells in common
    bool                     unsettled = false;  // a shift or copy of cells is deferred
    bool                     settling  = false;  // it is being carried out
    std::vector<WeakSequencePtr> parked; // with a parked state, or had one before
    bool                     has_orphans = false;  // a sequence was closed while the loop ran
    std::vector<Request *>   working;    // the active requests of the turn in hand
    std::vector<Share>       shares;
    std::vector<llama_token> suppressed; // the model's own suppress list
    std::vector<Adapter>     adapters;   // that llama.cpp uses now
    bool                     running           = false;
    bool                     closed            = false;
    std::atomic<bool>        broken{false};  // an exception left the context undefined
    std::string              broken_by;      // what it said; written once, before `broken` is set
    int32_t                  exclusive_waiting = 0;
    size_t                   turn              = 0;
    uint64_t                 clock             = 0;
    uint64_t                 arrivals          = 0;

    std::atomic<bool> abort{false};
    Request *         leader            = nullptr;  // whose caller runs the loop
    unsigned long     leader_thread     = 0;
    bool              checks_signals    = false;  // the loop runs on Python's main thread
    uint32_t          polls             = 0;
    int64_t           next_signal_check = 0;
    int64_t           settle_us         = 0;  // what the last shift or copy took
    int64_t           prefill_us        = 0;  // and the last batch of a prompt
    int32_t           prefill_tokens    = 0;
    void *            interrupt = nullptr;     // PyObject*: what a signal handler raised
};

// After an exception, llama.cpp guarantees nothing about a context: it can only be closed.
inline void break_context(Engine & engine, const std::string & error) noexcept {
    if (!engine.broken) {
        keep_text(engine.broken_by, error.c_str());
        engine.broken = true;
    }
}

inline std::vector<llama_token> spliced(const std::vector<llama_token> & tokens,
                                        size_t start, size_t stop,
                                        const std::vector<llama_token> & added) {
    std::vector<llama_token> all;
    all.reserve(start + added.size() + tokens.size() - stop);
    all.insert(all.end(), tokens.begin(), tokens.begin() + start);
    all.insert(all.end(), added.begin(), added.end());
    all.insert(all.end(), tokens.begin() + stop, tokens.end());
    return all;
}

// Not in place: the holder of the loop may be comparing these tokens with others'.
inline void append_tokens(Engine & engine, Sequence & sequence,
                          const std::vector<llama_token> & added) {
    const size_t n = sequence.tokens.size();
    auto all = spliced(sequence.tokens, n, n, added);
    engine.monitor.lock();
    sequence.tokens.swap(all);
    engine.monitor.unlock();
}

inline void forget_unparked(std::vector<WeakSequencePtr> & sequences) {
    const auto back = [](const WeakSequencePtr & weak) {
        const SequencePtr sequence = weak.lock();
        return !sequence || !sequence->parked || sequence->parked->dropped();
    };
    sequences.erase(std::remove_if(sequences.begin(), sequences.end(), back), sequences.end());
}

// ---- for the loop, which has no caller to throw to ------------------------------------------------

// Let others take over from a sequence's parked state; without memory for the note, they do not.
inline void note_parked(Engine & engine, const SequencePtr & sequence) noexcept {
    forget_unparked(engine.parked);
    try {
        engine.parked.push_back(sequence);
    } catch (const std::bad_alloc &) {
    }
}

inline void set_text(std::string & text, const std::string & value) noexcept {
    keep_text(text, value.c_str());
}

// Call with the monitor held. Returns false if there is no memory.
inline bool add_active(Engine & engine, Request * request) noexcept {
    try {
        engine.active.push_back(request);
        return true;
    } catch (const std::bad_alloc &) {
        return false;
    }
}

template <typename Items>
void have_room(Items & items, size_t n_more) {
    if (items.capacity() - items.size() < n_more) {
        items.reserve(2 * items.size() + n_more);
    }
}

// Reserve what a turn may append, with the monitor held, because a turn cannot be undone in the
// middle. Returns false if there is no memory.
inline bool has_room_for_turn(Engine & engine) noexcept {
    constexpr size_t kLongestPiece = 1024;  // append_piece() says so where one is longer
    try {
        engine.working.reserve(engine.active.size());
        engine.shares.reserve(engine.active.size());
        for (Request * request : engine.active) {
            have_room(request->sequence->tokens, 1);
            have_room(request->output, 1);
            have_room(request->output_starts, 1);
            have_room(request->text, kLongestPiece);
        }
        return true;
    } catch (const std::bad_alloc &) {
        return false;
    }
}

// Mark the engine as broken if the call throws: when llama.cpp throws while changing or reading its
// cells, their state is unknown.
template <typename Call>
void or_break(Engine & engine, Call && call) noexcept {
    std::string error;
    const auto  all = [&] {
        call();
        return 0;
    };
    if (guarded(error, all) != 0) {
        break_context(engine, error);
    }
}

inline bool remove_in_memory(Engine & engine, llama_context * context, llama_seq_id slot,
                             int32_t begin, int32_t end) noexcept {
    bool done = false;
    or_break(engine, [&] {
        done = llama_memory_seq_rm(llama_get_memory(context), slot, begin, end);
    });
    return done;
}

// Returns -1 if the slot does not have any cells.
inline int32_t first_in_memory(Engine & engine, llama_context * context,
                               llama_seq_id slot) noexcept {
    int32_t first = -1;
    or_break(engine, [&] { first = llama_memory_seq_pos_min(llama_get_memory(context), slot); });
    return first;
}

inline int32_t last_in_memory(Engine & engine, llama_context * context,
                              llama_seq_id slot) noexcept {
    int32_t last = -1;
    or_break(engine, [&] { last = llama_memory_seq_pos_max(llama_get_memory(context), slot); });
    return last;
}

inline void share_in_memory(Engine & engine, llama_context * context, llama_seq_id source,
                            llama_seq_id target, int32_t begin, int32_t end) noexcept {
    or_break(engine, [&] {
        llama_memory_seq_cp(llama_get_memory(context), source, target, begin, end);
    });
}

inline void move_in_memory(Engine & engine, llama_context * context, llama_seq_id slot,
                           int32_t begin, int32_t end, int32_t delta) noexcept {
    or_break(engine, [&] {
        llama_memory_seq_add(llama_get_memory(context), slot, begin, end, delta);
    });
}

// ---- what other threads may ask for meanwhile ----------------------------------------------------

inline std::string text_of(Engine & engine, const Request & request) {
    const std::lock_guard<Monitor> held(engine.monitor);
    return request.text;
}

inline std::vector<llama_token> tokens_of(Engine & engine, const Sequence & sequence) {
    const std::lock_guard<Monitor> held(engine.monitor);
    return sequence.tokens;
}

inline std::vector<llama_token> output_of(Engine & engine, const Request & request) {
    const std::lock_guard<Monitor> held(engine.monitor);
    return request.output;
}

inline void sort_by_arrival(std::vector<Request *> & requests) {
    const auto older = [](const Request * a, const Request * b) { return a->arrival < b->arrival; };
    std::sort(requests.begin(), requests.end(), older);
}

// Adapters are the context's, not a sequence's: one turn computes with one set of them, the first
// request's.
inline void keep_same_adapters(std::vector<Request *> & requests) {
    const auto differs = [&](const Request * request) {
        return !(request->sequence->adapters == requests.front()->sequence->adapters);
    };
    requests.erase(std::remove_if(requests.begin(), requests.end(), differs), requests.end());
}

// Returns 0, kThrew or kNoMemory.
inline int32_t compute_with(Engine & engine, llama_context * context,
                            const std::vector<Adapter> & adapters, std::string & error) noexcept {
    if (engine.adapters == adapters) {
        return 0;  // changing them makes llama.cpp plan its graphs again
    }
    return guarded(error, [&] {
        std::vector<llama_adapter_lora *> weights;
        std::vector<float> scales;
        for (const Adapter & adapter : adapters) {
            weights.push_back(adapter.weights);
            scales.push_back(adapter.scale);
        }
        llama_set_adapters_lora(context, weights.data(), weights.size(), scales.data());
        engine.adapters = adapters;
        return 0;
    });
}

}  // namespace llama_runner
