// Counter-based random numbers: draw i of a stream depends only on (seed, epoch, purpose, i), so every thread, every
// device and the numpy reference make the same draws.
// Source: SplitMix64 (Steele, Lea, Flood 2014), evaluated at an index instead of in sequence.
#pragma once

#include "core/scalar.h"

namespace embfast {

enum class Purpose : uint64_t {
  subsample = 1,
  window = 2,
  negative = 3,
  weights = 4,
  shuffle = 5,
  group = 6,
  order = 7,
  place = 8,
  walk = 16  // drawn in embfast/graphs
};

EMBFAST_HD inline uint64_t mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

struct Stream {
  static constexpr uint64_t golden = 0x9E3779B97F4A7C15ull;
  uint64_t key;

  EMBFAST_HD Stream(uint64_t seed, uint64_t epoch, Purpose purpose)
      : key(mix64(mix64(mix64(seed + golden) + epoch) + static_cast<uint64_t>(purpose))) {}
  EMBFAST_HD uint64_t operator()(uint64_t i) const { return mix64(key + (i + 1) * golden); }
};

// An integer in 0..n-1 from the high 32 bits of a draw.
EMBFAST_HD inline uint32_t below(uint64_t draw, uint32_t n) {
  return static_cast<uint32_t>(((draw >> 32) * static_cast<uint64_t>(n)) >> 32);
}

// One cell of an alias table (Walker 1977; Vose 1991): its own word below the threshold, the alias otherwise.
struct alignas(8) AliasCell {
  uint32_t threshold;
  int32_t alias;
};

EMBFAST_HD inline int32_t alias_draw(const AliasCell* cells, uint32_t n, uint64_t draw) {
  const auto cell = static_cast<int32_t>(below(draw, n));
  const AliasCell c = cells[cell];
  const int32_t self =
      -static_cast<int32_t>(static_cast<uint32_t>(draw) < c.threshold);  // a branch here would be unpredictable
  return (cell & self) | (c.alias & ~self);
}

}  // namespace embfast
