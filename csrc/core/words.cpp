#include "core/words.h"

#include <bit>
#include <utility>

#include "core/pages.h"

namespace embfast {

uint64_t hashing::of_long(const char* bytes, uint32_t length) {
  uint64_t hash = length;
  for (uint32_t i = 0; i + 16 < length; i += 16) hash = fold(load(bytes + i) ^ hash, load(bytes + i + 8) ^ kMix2);
  const char* last = bytes + length - 16;  // may overlap bytes already hashed, never passes the end
  return fold(fold(load(last) ^ hash, load(last + 8) ^ kMix2), kMix1);
}

WordTable::WordTable() { grow_to(1 << 12); }

WordTable::~WordTable() { release(slots_, capacity_ * sizeof(Slot)); }

void WordTable::swap(WordTable& other) {
  std::swap(slots_, other.slots_);
  std::swap(capacity_, other.capacity_);
  std::swap(used_, other.used_);
  std::swap(shift_, other.shift_);
  std::swap(arena_, other.arena_);
  std::swap(n_words, other.n_words);
}

WordTable::Slot* WordTable::insert(const Key& key, int32_t id) {
  if ((used_ + 1) * 10 > capacity_ * 6) grow_to(capacity_ * 2);
  ++used_;
  uint64_t i = key.hash >> shift_;
  while (slots_[i].length) i = (i + 1) & (capacity_ - 1);
  uint64_t hi = key.hi;
  if (key.length > kInline) {
    hi = arena_.size();
    arena_.append(key.bytes, key.length);
  }
  slots_[i] = {key.lo, hi, 0, id, key.length};
  return slots_ + i;
}

std::string_view WordTable::word(const Slot& slot) const {
  if (slot.length > kInline) return {arena_.data() + slot.hi, slot.length};
  return {reinterpret_cast<const char*>(&slot), slot.length};  // lo and hi are the first members
}

WordTable::Key WordTable::key(const Slot& slot) const {
  if (slot.length > kInline) return {slot.lo, 0, slot.lo, arena_.data() + slot.hi, 0, slot.length};
  return {slot.lo, slot.hi, hashing::of_short(slot.lo, slot.hi), word(slot).data(), 0, slot.length};
}

void WordTable::reserve(int64_t n_words) {
  uint64_t capacity = capacity_;
  while (static_cast<uint64_t>(n_words) * 10 > capacity * 6) capacity *= 2;
  if (capacity > capacity_) grow_to(capacity);
}

void WordTable::grow_to(uint64_t capacity) {
  const size_t bytes = capacity * sizeof(Slot);
  void* memory = allocate(bytes);
  if (bytes < huge_page) std::memset(memory, 0, bytes);
  auto* slots = static_cast<Slot*>(memory);
  const int shift = 64 - std::countr_zero(capacity);
  for (uint64_t old = 0; old < capacity_; ++old) {
    const Slot& slot = slots_[old];
    if (!slot.length) continue;
    uint64_t i = (slot.length > kInline ? slot.lo : hashing::of_short(slot.lo, slot.hi)) >> shift;
    while (slots[i].length) i = (i + 1) & (capacity - 1);
    slots[i] = slot;
  }
  release(slots_, capacity_ * sizeof(Slot));
  slots_ = slots;
  capacity_ = capacity;
  shift_ = shift;
}

}  // namespace embfast
