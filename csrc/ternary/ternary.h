// Rows of levels -1, 0 and 1 in two bit planes: packed from features by two thresholds each, unpacked, and searched by
// counting bits. Source of the levels: Garcia-Gasulla et al. 2017, arXiv:1705.07706, section 3.
#pragma once

#include <cstdint>

namespace embfast {

// A row is the `words` words of its plus plane, then the `words` words of its minus plane; words is a multiple of 8.
// Bit d % 64 of word d / 64 is set in the plus plane if level d is 1, in the minus plane if it is -1. Other bits are 0.

// Compiled once per instruction set: ternary_rows.cpp.
#define EMBFAST_TERNARY                                                                                               \
  /* Level d of a row is 1 where its feature d > high[d], -1 where it is < low[d], else 0. Fills planes, or levels of \
   */                                                                                                                 \
  /* dim bytes a row; the other is null. Returns the first row with a NaN in it, up to which all is done, or -1. */   \
  int64_t discretise(const float* features, int64_t n, int64_t dim, const float* low, const float* high,              \
                     uint64_t* planes, int64_t words, int8_t* levels);                                                \
  /* Unpacks the levels of n rows, dim bytes each. */                                                                 \
  void unpack(const uint64_t* planes, int64_t n, int64_t words, int64_t dim, int8_t* levels);                         \
  /* Number of nonzero levels of each row. */                                                                         \
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

// The best k rows of each of m queries so far, and n further rows to search.
struct TernarySearch {
  const uint64_t* queries;  // planes of m rows
  int64_t m;
  const uint64_t* planes;
  int64_t n, words;
  const int32_t* nonzeros;  // for each of the n rows
  const uint8_t* excluded;  // for each of the n rows: nonzero if it is never returned; or null
  const int64_t* own;       // for each query: a row not returned to it, or -1; or null
  int64_t first;            // number of the first of the n rows, in the numbering of own and ids
  int64_t k;
  // (m, k), best first: rows, and dot * |dot| / nonzeros of the row, which orders rows as the cosine does. Equal
  // cosines have equal keys and different cosines different keys: squares are integers and the division is rounded
  // once, so that rounding cannot merge two cosines of fewer than 2^17 levels. Unused entries are -1 and -infinity.
  int64_t* ids;
  double* keys;
};

// Rows with equal cosines are ordered by row number. The result does not depend on the number of threads.
void ternary_top(const TernarySearch& search, int threads);

}  // namespace embfast
