// Keeps the parked state of a sequence while others use its cells: in RAM, else in a file.
//
// The newest state is worth most. To make room for it, those parked longest ago are moved from RAM
// to the disk, and dropped from the disk: then their tokens must be decoded again.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "process/guard.hpp"
#include "llama.h"

namespace llama_runner {

// A file that no other process can open, and that disappears with this one however it ends.
class NamelessFile {
  public:
    NamelessFile() = default;
    NamelessFile(const NamelessFile &) = delete;
    ~NamelessFile() { close(); }

    // Returns false if the disk or the process does not have room for it.
    bool write(const std::string & directory, const std::vector<uint8_t> & bytes) {
        std::string path = directory + "/llama_runner.XXXXXX";
        descriptor_      = mkstemp(path.data());
        if (descriptor_ < 0) {
            return false;
        }
        unlink(path.c_str());
        fcntl(descriptor_, F_SETFD, FD_CLOEXEC);
        const bool whole = transfer(bytes.size(), [&](size_t at, size_t n) {
            return pwrite(descriptor_, bytes.data() + at, n, static_cast<off_t>(at));
        });
        if (!whole) {
            close();
        }
        return whole;
    }

    bool read(std::vector<uint8_t> & bytes) const {
        return transfer(bytes.size(), [&](size_t at, size_t n) {
            return pread(descriptor_, bytes.data() + at, n, static_cast<off_t>(at));
        });
    }

    bool is_open() const { return descriptor_ >= 0; }

    void close() {
        if (is_open()) {
            ::close(descriptor_);
            descriptor_ = -1;
        }
    }

  private:
    template <typename Call>
    static bool transfer(size_t size, Call && call) {
        constexpr size_t most = size_t(1) << 30;  // of what systems take at once
        for (size_t done = 0; done < size;) {
            const ssize_t n = call(done, std::min(size - done, most));
            if (n <= 0 && !(n < 0 && errno == EINTR)) {
                return false;
            }
            done += n > 0 ? n : 0;
        }
        return true;
    }

    int descriptor_ = -1;
};

// A sequence's cells as bytes, so that they need not be computed again.
struct ParkedState {
    const int32_t        n_tokens;
    const size_t         size;
    std::vector<uint8_t> bytes;  // empty when in `file`
    NamelessFile         file;
    // The tier's bytes in use, given back at the end; null once dropped. The context outlives its
    // sequences.
    std::atomic<size_t> * account = nullptr;

    ParkedState(int32_t n, size_t n_bytes) : n_tokens(n), size(n_bytes) {}
    ParkedState(const ParkedState &) = delete;
    ~ParkedState() { drop(); }

    bool dropped() const { return account == nullptr; }

    void count_on(std::atomic<size_t> & tier) {
        if (account) {
            *account -= size;
        }
        account = &tier;
        *account += size;
    }

    // Its sequences may have it still; there is nothing in it for them any more.
    void drop() {
        if (account) {
            *account -= size;
        }
        account = nullptr;
        std::vector<uint8_t>().swap(bytes);
        file.close();
    }
};

using ParkedPtr = std::shared_ptr<ParkedState>;

// Limits in bytes; a tier with limit 0 is not used. Only the holder of the loop changes this,
// except for the bytes in use: a state may be freed in any thread, with the sequence that has it.
struct Parking {
    size_t      ram_limit  = 0;
    size_t      disk_limit = 0;
    std::string directory;
    std::atomic<size_t> ram_used{0};
    std::atomic<size_t> disk_used{0};
    std::vector<std::weak_ptr<ParkedState>> states;  // in the order in which they were parked
    // The state that is being restored. A sequence that is evicted for it must not displace it here.
    const ParkedState * coming_in = nullptr;

    // Bytes of a tier in use, without those of the state that is being restored.
    size_t in_use(const std::atomic<size_t> & tier) const {
        return tier - (coming_in && coming_in->account == &tier ? coming_in->size : 0);
    }
};

inline void drop_all(Parking & parking) {
    for (const std::weak_ptr<ParkedState> & weak : parking.states) {
        if (const ParkedPtr state = weak.lock()) {
            state->drop();
        }
    }
    parking.states.clear();
}

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

// Returns the state of a tier that was parked longest ago, or null if the tier is empty.
inline ParkedPtr oldest_on(Parking & parking, const std::atomic<size_t> & tier) {
    for (const std::weak_ptr<ParkedState> & weak : parking.states) {
        ParkedPtr state = weak.lock();
        if (state && state->account == &tier && state.get() != parking.coming_in) {
            return state;
        }
    }
    return nullptr;
}

// Moves a state from RAM to the disk, dropping older ones there for room; false if it stays in RAM.
inline bool move_to_disk(Parking & parking, ParkedState & state) {
    if (state.size > parking.disk_limit) {
        return false;
    }
    while (parking.in_use(parking.disk_used) + state.size > parking.disk_limit) {
        const ParkedPtr oldest = oldest_on(parking, parking.disk_used);
        if (!oldest) {
            return false;
        }
        oldest->drop();
    }
    if (!state.file.write(parking.directory, state.bytes)) {
        return false;
    }
    state.count_on(parking.disk_used);
    std::vector<uint8_t>().swap(state.bytes);
    return true;
}

// Makes room in RAM for `size` bytes, or empties it if that is not enough.
inline void make_ram_room(Parking & parking, size_t size) {
    while (parking.in_use(parking.ram_used) + size > parking.ram_limit) {
        const ParkedPtr oldest = oldest_on(parking, parking.ram_used);
        if (!oldest) {
            return;
        }
        if (!move_to_disk(parking, *oldest)) {
            oldest->drop();
        }
    }
}

inline void book(Parking & parking, const ParkedPtr & state) {
    const auto ended = [](const std::weak_ptr<ParkedState> & weak) {
        const ParkedPtr known = weak.lock();
        return !known || known->dropped();
    };
    auto & states = parking.states;
    states.erase(std::remove_if(states.begin(), states.end(), ended), states.end());
    states.push_back(state);
}

// Returns null if no tier is large enough, or the state cannot be saved.
inline ParkedPtr park_state(
        Parking & parking, llama_context * context, llama_seq_id slot, int32_t n_tokens) noexcept {
    ParkedPtr   parked;
    std::string error;
    guarded(error, [&] {
        const size_t size = llama_state_seq_get_size_ext(context, slot, 0);
        if (size == 0 || size > std::max(parking.ram_limit, parking.disk_limit)) {
            return 0;
        }
        const auto state  = std::make_shared<ParkedState>(n_tokens, size);
        const bool in_ram = size <= parking.ram_limit;
        if (in_ram) {
            make_ram_room(parking, size);
        }
        if (save_state(context, slot, 0, state->bytes) != size) {
            return 0;
        }
        if (in_ram) {
            state->count_on(parking.ram_used);
        } else if (!move_to_disk(parking, *state)) {
            return 0;
        }
        book(parking, state);
        parked = state;
        return 0;
    });
    return parked;
}

// Adds a copy of a given state. It is kept at any size, until the next one is parked.
inline ParkedPtr adopt_state(
        Parking & parking, const uint8_t * data, size_t size, int32_t n_tokens) {
    auto state = std::make_shared<ParkedState>(n_tokens, size);
    state->bytes.assign(data, data + size);
    if (size <= parking.ram_limit || !move_to_disk(parking, *state)) {
        make_ram_room(parking, size);
        state->count_on(parking.ram_used);
    }
    book(parking, state);
    return state;
}

// Returns false, with `out` empty, if it cannot be read.
inline bool read_parked(const ParkedState & parked, std::vector<uint8_t> & out) noexcept {
    std::string error;
    bool        whole = false;
    guarded(error, [&] {
        if (parked.file.is_open()) {
            out.resize(parked.size);
            whole = parked.file.read(out);
        } else {
            out   = parked.bytes;
            whole = out.size() == parked.size;
        }
        return 0;
    });
    if (!whole) {
        out.clear();
    }
    return whole;
}

inline bool unpark_state(
        const ParkedState & parked, llama_context * context, llama_seq_id slot) noexcept {
    if (!parked.file.is_open()) {
        return restore_state(context, slot, 0, parked.bytes.data(), parked.bytes.size());
    }
    std::vector<uint8_t> bytes;
    return read_parked(parked, bytes)
        && restore_state(context, slot, 0, bytes.data(), bytes.size());
}

}  // namespace llama_runner
