// Rows of levels -1, 0 and 1 on a device: the bit planes of ternary.h, made from features by two thresholds each, and
// their search. Source: ternary.h.
#include "core/device.h"

namespace embfast {

namespace ternary {

using Word = unsigned long long;

struct Warp {
  int64_t first, stride;
  int lane;
  __device__ Warp()
      : first(int64_t{blockIdx.x} * (blockDim.x / lanes) + threadIdx.x / lanes),
        stride(int64_t{gridDim.x} * (blockDim.x / lanes)),
        lane(static_cast<int>(threadIdx.x % lanes)) {}
};

// The level of one feature per lane.
struct Level {
  bool plus, minus, unordered;
};
__device__ inline Level level(const float* features, const float* low, const float* high, int64_t row, int64_t dim,
                              int64_t d) {
  if (d >= dim) return {false, false, false};
  const float x = __ldg(features + row * dim + d), a = __ldg(low + d), b = __ldg(high + d);
  return {x > b, x < a, x != x || a != a || b != b};
}

__device__ inline void note_unordered(bool any, int64_t row, Word* first_unordered, int lane) {
  if (__any_sync(all_lanes, any) && lane == 0) atomicMin(first_unordered, static_cast<Word>(row));
}

}  // namespace ternary

// Packs features (n, dim) to planes of n rows, `words` words each, as discretise of ternary.h. A warp takes a row,
// 1,024 features at a time: lane i collects the bits of features 32 * i to 32 * i + 31, and the warp writes all of them
// at once. first_unordered, initially the largest number, becomes the first row with a NaN.
extern "C" __global__ void __launch_bounds__(256)
    ternary_pack(const float* features, const float* low, const float* high, int64_t n, int64_t dim, int64_t words,
                 uint32_t* planes, unsigned long long* first_unordered) {
  const ternary::Warp warp;
  const int64_t halves = 2 * words;
  for (int64_t row = warp.first; row < n; row += warp.stride) {
    bool wrong = false;
    for (int64_t half = 0; half < halves; half += lanes) {
      unsigned plus = 0, minus = 0;
      for (int i = 0; i < lanes; ++i) {
        const ternary::Level l = ternary::level(features, low, high, row, dim, (half + i) * 32 + warp.lane);
        const unsigned pluses = __ballot_sync(all_lanes, l.plus), minuses = __ballot_sync(all_lanes, l.minus);
        if (i == warp.lane) plus = pluses, minus = minuses;
        wrong |= l.unordered;
      }
      if (half + warp.lane < halves) {
        planes[2 * row * halves + half + warp.lane] = plus;
        planes[(2 * row + 1) * halves + half + warp.lane] = minus;
      }
    }
    ternary::note_unordered(wrong, row, first_unordered, warp.lane);
  }
}

// Levels (n, dim), one byte each.
extern "C" __global__ void __launch_bounds__(256)
    ternary_levels(const float* features, const float* low, const float* high, int64_t n, int64_t dim, int8_t* levels,
                   unsigned long long* first_unordered) {
  const ternary::Warp warp;
  for (int64_t row = warp.first; row < n; row += warp.stride) {
    bool wrong = false;
    for (int64_t d = warp.lane; d < dim; d += lanes) {
      const ternary::Level l = ternary::level(features, low, high, row, dim, d);
      levels[row * dim + d] = static_cast<int8_t>(l.plus - l.minus);
      wrong |= l.unordered;
    }
    __syncwarp();
    ternary::note_unordered(wrong, row, first_unordered, warp.lane);
  }
}

// Number of nonzero levels of each row.
extern "C" __global__ void __launch_bounds__(256)
    ternary_nonzeros(const unsigned long long* planes, int64_t n, int64_t words, int32_t* nonzeros) {
  const ternary::Warp warp;
  for (int64_t row = warp.first; row < n; row += warp.stride) {
    const unsigned long long *plus = planes + 2 * row * words, *minus = plus + words;
    int sum = 0;
    for (int64_t w = warp.lane; w < words; w += lanes) sum += __popcll(__ldg(plus + w) | __ldg(minus + w));
    for (int by = lanes / 2; by > 0; by /= 2) sum += __shfl_xor_sync(all_lanes, sum, by);
    if (warp.lane == 0) nonzeros[row] = sum;
  }
}

// dots[q * n + r] becomes the dot product of query q and row r, both as planes. A warp takes a row and its lanes the
// words. Four queries use each word of the row from a register. Blocks along y divide the queries.
extern "C" __global__ void __launch_bounds__(256)
    ternary_dots(const unsigned long long* queries, int64_t m, const unsigned long long* planes, int64_t n,
                 int64_t words, int32_t* dots) {
  constexpr int together = 4;
  const ternary::Warp warp;
  for (int64_t row = warp.first; row < n; row += warp.stride) {
    const unsigned long long *plus = planes + 2 * row * words, *minus = plus + words;
    for (int64_t q = int64_t{blockIdx.y} * together; q < m; q += int64_t{gridDim.y} * together) {
      int sum[together] = {0, 0, 0, 0};
      for (int64_t w = warp.lane; w < words; w += lanes) {
        const unsigned long long negative = __ldg(minus + w), nonzero = __ldg(plus + w) | negative;
        EMBFAST_UNROLL
        for (int i = 0; i < together; ++i) {
          const unsigned long long* const query = queries + 2 * (q + i < m ? q + i : q) * words;
          const unsigned long long other = __ldg(query + words + w), met = nonzero & (__ldg(query + w) | other);
          sum[i] += __popcll(met) - 2 * __popcll(met & (negative ^ other));
        }
      }
      EMBFAST_UNROLL
      for (int i = 0; i < together; ++i) {
        for (int by = lanes / 2; by > 0; by /= 2) sum[i] += __shfl_xor_sync(all_lanes, sum[i], by);
        if (warp.lane == i && q + i < m) dots[(q + i) * n + row] = sum[i];
      }
    }
  }
}

namespace ternary {

struct Found {
  double key;
  int64_t row;
};
__device__ inline bool better(const Found& a, const Found& b) {
  return a.key > b.key || (a.key == b.key && a.row < b.row);
}

// Bitonic sort of `size` entries, a power of 2, best first, by all threads of a block. Begins and ends with a barrier.
__device__ inline void sort(Found* found, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int by = run / 2; by > 0; by /= 2) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x)) {
        const int j = i ^ by;
        if (j <= i) continue;
        const Found a = found[i], b = found[j];
        if ((i & run) == 0 ? better(b, a) : better(a, b)) found[i] = b, found[j] = a;
      }
    }
  }
  __syncthreads();
}

}  // namespace ternary

// Updates the best k rows of each query by n rows, as ternary_top of ternary.h, from their dot products. A block takes
// a query. Shared memory: `size` Found, a power of 2 of at least k + blockDim.x.
extern "C" __global__ void __launch_bounds__(256)
    ternary_best(const int32_t* dots, int64_t m, int64_t n, const int32_t* nonzeros, const unsigned char* excluded,
                 const int64_t* own, int64_t first, int32_t k, int32_t size, int64_t* ids, double* keys) {
  using ternary::Found;
  EMBFAST_DYNAMIC_SHARED(Found, found);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const Found none{-__longlong_as_double(0x7ff0000000000000ll), 0x7fffffffffffffffll};  // minus infinity
  for (int64_t q = blockIdx.x; q < m; q += gridDim.x) {
    for (int i = thread; i < size; i += threads) {
      const bool known = i < k && keys[q * k + i] > none.key;
      found[i] = known ? Found{keys[q * k + i], ids[q * k + i]} : none;
    }
    __syncthreads();
    // Rows better than the worst so far enter the free slots, blockDim.x rows at a time.
    for (int64_t r = 0; r < n; r += threads) {
      const int64_t row = r + thread;
      const Found worst = found[k - 1];
      bool enters = row < n && !(excluded && excluded[row]) && !(own && own[q] == first + row);
      Found mine = none;
      if (enters) {
        const double dot = dots[q * n + row], nonzero = nonzeros[row];
        mine = {nonzero > 0.0 ? dot * fabs(dot) / nonzero : 0.0, first + row};
        enters = ternary::better(mine, worst);
      }
      if (!__syncthreads_or(enters)) continue;
      found[size - threads + thread] = enters ? mine : none;
      ternary::sort(found, size);
      for (int i = k + thread; i < size; i += threads) found[i] = none;
      __syncthreads();
    }
    for (int i = thread; i < k; i += threads) {
      const bool known = found[i].key > none.key;
      ids[q * k + i] = known ? found[i].row : -1;
      keys[q * k + i] = found[i].key;
    }
    __syncthreads();
  }
}

}  // namespace embfast
