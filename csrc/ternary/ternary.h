// Rows of levels -1, 0 and 1 in two bit planes: made from features by two thresholds each, read back, and searched by
// counting bits. Source of the levels: Garcia-Gasulla et al. 2017, arXiv:1705.07706, section 3.
#pragma once

#include <cstdint>

namespace embfast {

// A row is `words` words of its plus plane, then as many of its minus plane; words is a multiple of 8. Bit d % 64 of
// word d / 64 says in the plus plane that level d is 1, in the minus plane that it is -1. All other bits are 0.

// Compiled once per instruction set: ternary_rows.cpp.
#define EMBFAST_TERNARY                                                                                               \
  /* Level d of a row is 1 where its feature d > high[d], -1 where it is < low[d], else 0. Fills planes, or levels of \
   */                                                                                                                 \
  /* dim bytes a row; the other is null. Returns the first row with a NaN in it, up to which all is done, or -1. */   \
  int64_t discretise(const float* features, int64_t n, int64_t dim, const float* low, const float* high,              \
                     uint64_t* planes, int64_t words, int8_t* levels);                                                \
  /* The levels of n rows, dim bytes each. */                                                                         \
  void unpack(const uint64_t* planes, int64_t n, int64_t words, int64_t dim, int8_t* levels);                         \
  /* How many levels of each row are not 0. */                                                                        \
  void count_nonzeros(const uint64_t* planes, int64_t n, int64_t words, int32_t* nonzeros);                           \
  /* dots[q * n + r]: the dot product of query q and row r. A query is its plus | minus plane, then its minus plane.  \
   */                                                                                                                 \
  void dots(const uint64_t* queries, int64_t m, const uint64_t* planes, int64_t n, int64_t words, int32_t* dots);

namespace baseline {
EMBFAST_TERNARY
}
namespace avx2 {
EMBFAST_TERNARY
}
namespace avx512 {
EMBFAST_TERNARY
}
namespace avx512popcnt {
EMBFAST_TERNARY
}

// The best k rows for each of m queries so far, taken further by n rows.
struct TernarySearch {
  const uint64_t* queries;  // m rows of planes
  int64_t m;
  const uint64_t* planes;
  int64_t n, words;
  const int32_t* nonzeros;  // of the n rows
  const uint8_t* excluded;  // of the n rows: not 0 where a row is never returned; or null
  const int64_t* own;       // of each query, a row not returned to it, or -1; null: none
  int64_t first;            // the number of the first of the n rows; own and ids count alike
  int64_t k;
  // (m, k), best first: rows, and dot * |dot| / nonzeros of the row, which is in the order of the cosines. Equal
  // cosines have equal bits, and different ones differ: squares are whole numbers and the division is rounded once, so
  // that two cosines of less than 2^17 levels cannot fall together. -1 and -infinity where there are not so many rows.
  int64_t* ids;
  double* keys;
};

// Of equal cosines the lower row comes first. The result does not depend on the threads.
void ternary_top(const TernarySearch& search, int threads);

}  // namespace embfast
