// Where the state of a sequence waits while others use its cells: in RAM, else in a file.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "guard.hpp"
#include "handles.hpp"
#include "llama.h"

namespace llama_runner {

// A sequence's cells as bytes, so that they need not be computed again.
struct ParkedState {
    int32_t              n_tokens = 0;
    std::vector<uint8_t> bytes;   // empty when in `path`
    std::string          path;    // a file of our own, removed with the state
    size_t               size = 0;
    const long           owner = process_id();
    // The tier's bytes in use, given back at the end; the context outlives its sequences.
    std::atomic<size_t> * account = nullptr;

    ParkedState() = default;
    ParkedState(const ParkedState &) = delete;
    ~ParkedState() {
        if (account) {
            *account -= size;
        }
        if (!path.empty() && process_id() == owner) {  // a forked child must leave it alone
            std::remove(path.c_str());
        }
    }
};

using ParkedPtr = std::shared_ptr<ParkedState>;

// Limits in bytes; a tier of 0 is not used.
struct Parking {
    size_t      ram_limit  = 0;
    size_t      disk_limit = 0;
    std::string directory;
    // A state may end in any thread: with the sequence that has it.
    std::atomic<size_t> ram_used{0};
    std::atomic<size_t> disk_used{0};
};

inline size_t save_state(
        llama_context * context, llama_seq_id slot, uint32_t flags, std::vector<uint8_t> & out) noexcept {
    std::string error;
    size_t      written = 0;
    guarded(error, [&] {
        const size_t size = llama_state_seq_get_size_ext(context, slot, flags);
        out.resize(size);
        written = llama_state_seq_get_data_ext(context, out.data(), size, slot, flags);
        out.resize(written);
        return 0;
    });
    return written;
}

inline bool restore_state(
        llama_context * context, llama_seq_id slot, uint32_t flags, const uint8_t * data,
        size_t size) noexcept {
    std::string error;
    bool        restored = false;
    guarded(error, [&] {
        restored = llama_state_seq_set_data_ext(context, data, size, slot, flags) == size;
        return 0;
    });
    return restored;
}

inline bool write_file(const std::string & path, const std::vector<uint8_t> & bytes) noexcept {
    std::FILE * file = std::fopen(path.c_str(), "wb");
    if (!file) {
        return false;
    }
    const bool whole  = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
    const bool closed = std::fclose(file) == 0;
    if (!whole || !closed) {
        std::remove(path.c_str());
    }
    return whole && closed;
}

inline bool read_file(const std::string & path, std::vector<uint8_t> & bytes) noexcept {
    std::FILE * file = std::fopen(path.c_str(), "rb");
    if (!file) {
        return false;
    }
    const bool whole = std::fread(bytes.data(), 1, bytes.size(), file) == bytes.size();
    std::fclose(file);
    return whole;
}

// Null where no tier has room, or the state cannot be had.
inline ParkedPtr park_state(
        Parking & parking, llama_context * context, llama_seq_id slot, int32_t n_tokens) noexcept {
    ParkedPtr   parked;
    std::string error;
    guarded(error, [&] {
        const size_t size = llama_state_seq_get_size_ext(context, slot, 0);
        const bool   in_ram  = parking.ram_used + size <= parking.ram_limit;
        const bool   on_disk = !in_ram && parking.disk_used + size <= parking.disk_limit;
        if (size == 0 || (!in_ram && !on_disk)) {
            return 0;
        }
        auto state      = std::make_shared<ParkedState>();
        state->n_tokens = n_tokens;
        state->size     = size;
        if (save_state(context, slot, 0, state->bytes) != size) {
            return 0;
        }
        if (on_disk) {
            // A new file that only this user can read: other contexts may use the directory, too.
            std::string path       = parking.directory + "/llama_runner.XXXXXX";
            const int   descriptor = mkstemp(path.data());
            if (descriptor < 0) {
                return 0;
            }
            close(descriptor);
            if (!write_file(path, state->bytes)) {
                return 0;
            }
            state->path = path;
            std::vector<uint8_t>().swap(state->bytes);
        }
        state->account = in_ram ? &parking.ram_used : &parking.disk_used;
        *state->account += size;
        parked = std::move(state);
        return 0;
    });
    return parked;
}

// A state that the caller has; counted on no tier.
inline ParkedPtr adopt_state(const uint8_t * data, size_t size, int32_t n_tokens) {
    auto state      = std::make_shared<ParkedState>();
    state->n_tokens = n_tokens;
    state->size     = size;
    state->bytes.assign(data, data + size);
    return state;
}

inline bool unpark_state(
        const ParkedState & parked, llama_context * context, llama_seq_id slot) noexcept {
    if (parked.path.empty()) {
        return restore_state(context, slot, 0, parked.bytes.data(), parked.bytes.size());
    }
    std::string error;
    bool        restored = false;
    guarded(error, [&] {
        std::vector<uint8_t> bytes(parked.size);
        restored = read_file(parked.path, bytes)
            && restore_state(context, slot, 0, bytes.data(), bytes.size());
        return 0;
    });
    return restored;
}

}  // namespace llama_runner
