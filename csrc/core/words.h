// Hash table from words to ids and counts, used for corpora and for named nodes.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace embfast {

// Open addressing, linear probing, 32 bytes per slot, load factor at most 0.6.
class WordTable {
 public:
  struct Slot {
    uint64_t lo, hi;  // a word of up to 16 bytes, zero-padded; for longer words its hash and its offset in the arena
    uint64_t count;
    int32_t id;       // kNewline, kDropped, or the number of the word in order of first occurrence
    uint32_t length;  // bytes; 0 is an empty slot
  };
  struct Key {
    uint64_t lo, hi, hash;
    const char* bytes;
    int64_t position;  // offset of the token in its region, for messages
    uint32_t length;
  };
  static constexpr uint32_t kInline = 16;

  WordTable();
  ~WordTable();
  WordTable(const WordTable&) = delete;
  WordTable& operator=(const WordTable&) = delete;
  void swap(WordTable& other);

  // Reads 16 bytes from `bytes` for any length: the caller pads its buffers.
  static Key key(const char* bytes, uint32_t length);
  Slot* find(const Key& key) const;          // nullptr: missing
  Slot* insert(const Key& key, int32_t id);  // the key must be missing
  void prefetch(uint64_t hash) const { __builtin_prefetch(slots_ + (hash >> shift_)); }
  std::string_view word(const Slot& slot) const;
  Key key(const Slot& slot) const;  // to look up in another table; valid until this table changes
  void reserve(int64_t n_words);
  Slot* begin() const { return slots_; }
  Slot* end() const { return slots_ + capacity_; }
  int32_t n_words = 0;  // number of ids assigned

 private:
  void grow_to(uint64_t capacity);
  Slot* slots_ = nullptr;
  uint64_t capacity_ = 0, used_ = 0;
  int shift_ = 0;
  std::string arena_;  // words that do not fit in a slot
};

namespace hashing {

constexpr uint64_t kMix1 = 0x9E3779B97F4A7C15u, kMix2 = 0xC2B2AE3D27D4EB4Fu;

inline uint64_t load(const char* bytes) {
  uint64_t value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// Folds both halves of a 128-bit product: every input bit affects the top bits, which select the slot.
inline uint64_t fold(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t of_short(uint64_t lo, uint64_t hi) { return fold(fold(lo ^ kMix1, hi ^ kMix2), kMix1); }
uint64_t of_long(const char* bytes, uint32_t length);

// Mask: the 16 bytes from kKeep + 16 - length keep the first `length` bytes of a word.
constexpr char kKeep[33] =
    "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"
    "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

}  // namespace hashing

// Always inlined: a key that goes through memory stalls when it is read back in other widths.
[[gnu::always_inline]] inline WordTable::Key WordTable::key(const char* bytes, uint32_t length) {
  if (length > kInline) [[unlikely]] {
    const uint64_t hash = hashing::of_long(bytes, length);
    return {hash, 0, hash, bytes, 0, length};
  }
  const char* keep = hashing::kKeep + kInline - length;
  const uint64_t lo = hashing::load(bytes) & hashing::load(keep);
  const uint64_t hi = hashing::load(bytes + 8) & hashing::load(keep + 8);
  return {lo, hi, hashing::of_short(lo, hi), bytes, 0, length};
}

inline WordTable::Slot* WordTable::find(const Key& key) const {
  const uint64_t mask = capacity_ - 1;
  if (key.length <= kInline) [[likely]] {
    for (uint64_t i = key.hash >> shift_;; i = (i + 1) & mask) {
      Slot& slot = slots_[i];
      if (slot.lo == key.lo && slot.hi == key.hi && slot.length == key.length) return &slot;
      if (!slot.length) return nullptr;
    }
  }
  for (uint64_t i = key.hash >> shift_;; i = (i + 1) & mask) {
    Slot& slot = slots_[i];
    if (slot.lo == key.lo && slot.length == key.length &&
        !std::memcmp(arena_.data() + slot.hi, key.bytes, key.length)) {
      return &slot;
    }
    if (!slot.length) return nullptr;
  }
}

}  // namespace embfast
