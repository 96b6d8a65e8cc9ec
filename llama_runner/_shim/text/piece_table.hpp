// Remembers the tokens of short pieces of text.
//
// A table of fixed size in which a piece is written once and never changed, so readers take no
// lock. A table that has become full is replaced by an empty one; a thread that still reads it keeps it.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>

#include "llama.h"

namespace llama_runner {

class PieceTable {
  public:
    static constexpr size_t kLongestPiece = 48;  // bytes
    static constexpr size_t kMostTokens   = 18;

    using Words = std::array<uint64_t, kLongestPiece / 8>;

    // A piece, padded with zeros, and its hash.
    struct Key {
        Words    words{};
        uint64_t hash;

        explicit Key(std::string_view piece) {
            std::memcpy(words.data(), piece.data(), piece.size());
            uint64_t mixed = piece.size();
            for (size_t i = 0; i * 8 < piece.size(); ++i) {
                mixed = (mixed ^ words[i]) * 0x9E3779B97F4A7C15u;
                mixed ^= mixed >> 32;
            }
            hash = mixed << 16 | piece.size() << 8;
        }
    };

    struct alignas(64) Slot {
        std::atomic<uint64_t>                tag{kFree};  // a hash and, in its low byte, the count
        Words                                words;
        std::array<llama_token, kMostTokens> tokens;

        size_t size() const { return tag.load(std::memory_order_relaxed) & 0xFF; }
    };

    // The slot that holds the piece, or null.
    const Slot * find(const Key & key) const {
        for (size_t probe = 0; probe < kProbes; ++probe) {
            const Slot &   slot = slots_[index(key, probe)];
            const uint64_t tag  = slot.tag.load(std::memory_order_acquire);
            if ((tag & ~uint64_t{0xFF}) == key.hash && slot.words == key.words) {
                return &slot;
            }
            if (tag == kFree) {
                return nullptr;
            }
        }
        return nullptr;
    }

    // Keep the tokens of a piece if there is room.
    void insert(const Key & key, const llama_token * tokens, size_t n) {
        for (size_t probe = 0; probe < kProbes; ++probe) {
            Slot &   slot = slots_[index(key, probe)];
            uint64_t free = kFree;
            if (slot.tag.compare_exchange_strong(free, kBusy, std::memory_order_acquire)) {
                slot.words = key.words;
                std::copy_n(tokens, n, slot.tokens.begin());
                slot.tag.store(key.hash | n, std::memory_order_release);
                n_used_.fetch_add(1, std::memory_order_relaxed);
                return;
            }
            if ((free & ~uint64_t{0xFF}) == key.hash && slot.words == key.words) {
                return;  // another thread was faster
            }
        }
        n_refused_.fetch_add(1, std::memory_order_relaxed);
    }

    bool full() const {
        return n_used_.load(std::memory_order_relaxed) > kSlots / 4 * 3 ||
               n_refused_.load(std::memory_order_relaxed) > kSlots / 4;
    }

  private:
    static constexpr size_t   kSlots  = 1 << 15;
    static constexpr size_t   kProbes = 8;
    static constexpr uint64_t kFree   = 0;
    static constexpr uint64_t kBusy   = 1;  // no hash: that of a piece has a size

    static size_t index(const Key & key, size_t probe) {
        return ((key.hash >> 16) + probe) & (kSlots - 1);
    }

    std::unique_ptr<Slot[]> slots_{new Slot[kSlots]};
    std::atomic<size_t>     n_used_{0};
    std::atomic<size_t>     n_refused_{0};
};

}  // namespace llama_runner
