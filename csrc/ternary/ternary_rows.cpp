// Packs features to planes, unpacks planes, and computes dot products of planes. Compiled once per instruction set.
#include <cstring>

#include "core/simd.h"
#include "ternary/ternary.h"

namespace embfast::EMBFAST_ISA {

namespace {

// Bits of a comparison ------------------------------------------------------------------------------------------------

// Bit i is set if x[i] > y[i].
EMBFAST_INLINE uint64_t above(V x, V y) {
#if EMBFAST_WIDTH == 16 && defined(__AVX512F__)
  return _mm512_cmp_ps_mask(__m512(x), __m512(y), _CMP_GT_OQ);
#elif EMBFAST_WIDTH == 8 && defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(__m256(x), __m256(y), _CMP_GT_OQ)));
#elif EMBFAST_WIDTH == 4 && defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps(__m128(x), __m128(y))));
#else
  uint64_t bits = 0;
  for (int i = 0; i < W; ++i) bits |= static_cast<uint64_t>(x[i] > y[i]) << i;
  return bits;
#endif
}

// Nonzero if a lane of x or y is a NaN.
EMBFAST_INLINE uint64_t unordered(V x, V y) {
#if EMBFAST_WIDTH == 16 && defined(__AVX512F__)
  return _mm512_cmp_ps_mask(__m512(x), __m512(y), _CMP_UNORD_Q);
#elif EMBFAST_WIDTH == 8 && defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(__m256(x), __m256(y), _CMP_UNORD_Q)));
#elif EMBFAST_WIDTH == 4 && defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpunord_ps(__m128(x), __m128(y))));
#else
  return any((x != x) | (y != y));
#endif
}

constexpr int block = 64;  // features per word

struct Word {
  uint64_t plus, minus, unordered;
};

EMBFAST_INLINE Word word_of(const float* features, const float* low, const float* high) {
  Word word{};
  unrolled<block / W / 2>(EMBFAST_UNROLLED {
    constexpr int a = 2 * i * W, b = a + W;
    const V x = load_unaligned(features + a), y = load_unaligned(features + b);
    word.plus |= above(x, load_unaligned(high + a)) << a | above(y, load_unaligned(high + b)) << b;
    word.minus |= above(load_unaligned(low + a), x) << a | above(load_unaligned(low + b), y) << b;
    word.unordered |= unordered(x, y);
  });
  return word;
}

// Writes 64 levels, one byte each.
EMBFAST_INLINE void spread(uint64_t plus, uint64_t minus, int8_t* levels) {
#if EMBFAST_WIDTH == 16 && defined(__AVX512BW__)
  _mm512_storeu_si512(levels, _mm512_mask_set1_epi8(_mm512_maskz_set1_epi8(plus, 1), minus, -1));
#else
  // Copies 8 bits to every byte of a word, keeps bit i of byte i, and turns every nonzero byte into 1.
  const auto bytes = [](uint64_t bits) __attribute__((always_inline)) {
    const uint64_t kept = (bits * 0x0101010101010101u) & 0x8040201008040201u;
    return ((kept + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
  };
  for (int i = 0; i < block; i += 8) {
    const uint64_t eight = bytes((plus >> i) & 0xff) | (bytes((minus >> i) & 0xff) * 0xff);
    std::memcpy(levels + i, &eight, 8);
  }
#endif
}

// Unpacks `dim` levels of a row.
EMBFAST_INLINE void unpack_words(const uint64_t* plus, const uint64_t* minus, int64_t dim, int8_t* levels) {
  const int64_t whole = dim / block, rest = dim % block;
  for (int64_t w = 0; w < whole; ++w) spread(plus[w], minus[w], levels + w * block);
  if (rest) {
    int8_t bytes[block];
    spread(plus[whole], minus[whole], bytes);
    std::memcpy(levels + whole * block, bytes, static_cast<size_t>(rest));
  }
}

// Copies to memory that is not read soon: whole cache lines bypass the caches where the CPU supports it.
EMBFAST_INLINE void put_out(void* to, const void* from, int64_t bytes) {
#if EMBFAST_WIDTH == 16 && defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(to) % 64 == 0 && bytes % 64 == 0) {
    for (int64_t b = 0; b < bytes; b += 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(static_cast<char*>(to) + b),
                          _mm512_loadu_si512(static_cast<const char*>(from) + b));
    }
    return;
  }
#endif
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

constexpr int64_t stretch = 64;  // words of a row that are computed before they are written

// Computes one word of each of R rows, `stretch` words apart. Returns nonzero if a row has a NaN.
template <int R>
EMBFAST_INLINE uint64_t words_of_rows(const float* features, int64_t dim, const float* low, const float* high,
                                      uint64_t* plus, uint64_t* minus) {
#if EMBFAST_WIDTH == 16 && defined(__AVX512F__)
  typedef uint16_t Mask __attribute__((may_alias));  // masks are stored directly, without assembling a word
  __mmask16 wrong = 0;
  unrolled<block / W>([&](auto part) __attribute__((always_inline)) {
    const __m512 below = _mm512_loadu_ps(low + part * W), above = _mm512_loadu_ps(high + part * W);
    unrolled<R>(EMBFAST_UNROLLED {
      const __m512 x = _mm512_loadu_ps(features + i * dim + part * W);
      reinterpret_cast<Mask*>(plus + i * stretch)[part] = _mm512_cmp_ps_mask(x, above, _CMP_GT_OQ);
      reinterpret_cast<Mask*>(minus + i * stretch)[part] = _mm512_cmp_ps_mask(x, below, _CMP_LT_OQ);
      wrong = _kor_mask16(wrong, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q));
    });
  });
  return wrong;
#else
  uint64_t wrong = 0;
  unrolled<R>(EMBFAST_UNROLLED {
    const Word word = word_of(features + i * dim, low, high);
    plus[i * stretch] = word.plus;
    minus[i * stretch] = word.minus;
    wrong |= word.unordered;
  });
  return wrong;
#endif
}

// Packs R rows together, so that thresholds are read once for all of them, and prefetches the next R. Returns true if
// none has a NaN.
template <int R>
EMBFAST_INLINE bool discretise_rows(const float* features, int64_t dim, const float* low, const float* high,
                                    uint64_t* planes, int64_t words, int8_t* levels) {
  uint64_t wrong = 0;
  alignas(64) uint64_t plus[R][stretch], minus[R][stretch];
  for (int64_t begin = 0; begin * block < dim || (planes && begin < words); begin += stretch) {
    const int64_t end =
        planes ? (words - begin < stretch ? words : begin + stretch)
               : ((dim + block - 1) / block - begin < stretch ? (dim + block - 1) / block : begin + stretch);
    const int64_t whole = dim / block < end ? dim / block : end;
    int64_t w = begin;
    for (; w < whole; ++w) {
      const float* x = features + w * block;
      unrolled<R * block / 16>(
          EMBFAST_UNROLLED { __builtin_prefetch(x + (R + i * 16 / block) * dim + i * 16 % block, 0, 2); });
      wrong |=
          words_of_rows<R>(x, dim, low + w * block, high + w * block, plus[0] + (w - begin), minus[0] + (w - begin));
    }
    for (; w < end; ++w) {
      const int64_t rest = dim - w * block;
      float last_low[block] = {}, last_high[block] = {};
      if (rest > 0) {
        std::memcpy(last_low, low + w * block, static_cast<size_t>(rest) * sizeof(float));
        std::memcpy(last_high, high + w * block, static_cast<size_t>(rest) * sizeof(float));
      }
      for (int r = 0; r < R; ++r) {
        float last[block] = {};
        if (rest > 0) std::memcpy(last, features + r * dim + w * block, static_cast<size_t>(rest) * sizeof(float));
        const Word word = word_of(last, last_low, last_high);
        plus[r][w - begin] = word.plus;
        minus[r][w - begin] = word.minus;
        wrong |= word.unordered;
      }
    }
    for (int r = 0; r < R; ++r) {
      if (planes) {
        put_out(planes + 2 * r * words + begin, plus[r], (end - begin) * 8);
        put_out(planes + (2 * r + 1) * words + begin, minus[r], (end - begin) * 8);
      } else {
        unpack_words(plus[r], minus[r],
                     (dim - begin * block < stretch * block ? dim : stretch * block + begin * block) - begin * block,
                     levels + r * dim + begin * block);
      }
    }
  }
  return wrong == 0;
}

// Bits counted --------------------------------------------------------------------------------------------------------

typedef uint64_t Bits __attribute__((vector_size(4 * W), may_alias));
typedef uint64_t UnalignedBits __attribute__((vector_size(4 * W), aligned(8), may_alias));
constexpr int lanes = W / 2;

EMBFAST_INLINE Bits load_bits(const uint64_t* p) { return *reinterpret_cast<const UnalignedBits*>(p); }

// ones() counts the bits of each byte, or of each word where the CPU can. Up to most_ones counts can be added before a
// byte overflows; words_of() then widens the sums to words.
#if EMBFAST_WIDTH == 16 && defined(__AVX512VPOPCNTDQ__)
constexpr int64_t most_ones = INT64_MAX / lanes;
EMBFAST_INLINE Bits ones(Bits x) { return Bits(_mm512_popcnt_epi64(__m512i(x))); }
EMBFAST_INLINE Bits words_of(Bits x) { return x; }
#else
constexpr int64_t most_ones = 31;
#if EMBFAST_WIDTH == 16 && defined(__AVX512BW__)
EMBFAST_INLINE Bits ones(Bits x) {
  const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i nibble = _mm512_set1_epi8(15), bits = __m512i(x);
  return Bits(_mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(bits, nibble)),
                              _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi64(bits, 4), nibble))));
}
EMBFAST_INLINE Bits words_of(Bits x) { return Bits(_mm512_sad_epu8(__m512i(x), _mm512_setzero_si512())); }
#elif EMBFAST_WIDTH == 8 && defined(__AVX2__)
EMBFAST_INLINE Bits ones(Bits x) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m256i nibble = _mm256_set1_epi8(15), bits = __m256i(x);
  return Bits(_mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(bits, nibble)),
                              _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi64(bits, 4), nibble))));
}
EMBFAST_INLINE Bits words_of(Bits x) { return Bits(_mm256_sad_epu8(__m256i(x), _mm256_setzero_si256())); }
#else
EMBFAST_INLINE Bits ones(Bits x) {
  x -= (x >> 1) & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
  return (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
}
EMBFAST_INLINE Bits words_of(Bits x) {
  x = (x & 0x00ff00ff00ff00ffu) + ((x >> 8) & 0x00ff00ff00ff00ffu);
  x += x >> 16;
  return (x + (x >> 32)) & 0xffffu;
}
#endif
#endif

EMBFAST_INLINE int64_t sum_of(Bits x) {
  uint64_t sum = 0;
  for (int i = 0; i < lanes; ++i) sum += x[i];
  return static_cast<int64_t>(sum);
}

// Dot products of Q queries and R rows: the number of positions where both levels are nonzero, minus twice the number
// where they have opposite signs.
template <int Q, int R>
EMBFAST_INLINE void dot_tile(const uint64_t* queries, const uint64_t* planes, int64_t words, int32_t* dots, int64_t n) {
  Bits sum[Q * R] = {};
  for (int64_t w = 0; w < words;) {
    const int64_t stop = words - w > most_ones * lanes ? w + most_ones * lanes : words;
    Bits both[Q * R] = {}, opposite[Q * R] = {};
    for (; w < stop; w += lanes) {
      Bits nonzero[R], minus[R];
      unrolled<R>(EMBFAST_UNROLLED {
        minus[i] = load_bits(planes + (2 * i + 1) * words + w);
        nonzero[i] = load_bits(planes + 2 * i * words + w) | minus[i];
      });
      unrolled<Q>([&](auto q) __attribute__((always_inline)) {
        const Bits query = load_bits(queries + 2 * q * words + w), sign = load_bits(queries + (2 * q + 1) * words + w);
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
          const Bits met = query & nonzero[r];
          both[q * R + r] += ones(met);
          opposite[q * R + r] += ones(met & (sign ^ minus[r]));
        });
      });
    }
    unrolled<Q * R>(EMBFAST_UNROLLED { sum[i] += words_of(both[i]) - 2 * words_of(opposite[i]); });
  }
  for (int q = 0; q < Q; ++q) {
    for (int r = 0; r < R; ++r) dots[q * n + r] = static_cast<int32_t>(sum_of(sum[q * R + r]));
  }
}

// Dot products of Q queries and all rows, R rows at a time.
template <int Q, int R>
EMBFAST_INLINE void dot_rows(const uint64_t* queries, const uint64_t* planes, int64_t n, int64_t words, int32_t* dots) {
  int64_t r = 0;
  for (; r + R <= n; r += R) dot_tile<Q, R>(queries, planes + 2 * words * r, words, dots + r, n);
  for (; r < n; ++r) dot_tile<Q, 1>(queries, planes + 2 * words * r, words, dots + r, n);
}

// Dot product of one query and one row, plane after plane: sequential reads are the fastest.
EMBFAST_INLINE int32_t dot_row(const uint64_t* query, const uint64_t* planes, int64_t words) {
  const uint64_t* sign = query + words;
  const auto product = [&](const uint64_t* plane) __attribute__((always_inline)) {
    Bits sum{};
    for (int64_t w = 0; w < words;) {
      const int64_t stop = words - w > most_ones * lanes ? w + most_ones * lanes : words;
      Bits plus{}, minus{};
#pragma GCC unroll 5
      for (; w < stop; w += lanes) {
        const Bits met = load_bits(plane + w), negative = load_bits(sign + w);
        plus += ones(met & load_bits(query + w) & ~negative);
        minus += ones(met & negative);
      }
      sum += words_of(plus) - words_of(minus);
    }
    return sum;
  };
  return static_cast<int32_t>(sum_of(product(planes) - product(planes + words)));
}

constexpr int tall = W == 16 ? 4 : 2;  // queries per tile, so that all sums stay in registers

}  // namespace

int64_t discretise(const float* features, int64_t n, int64_t dim, const float* low, const float* high, uint64_t* planes,
                   int64_t words, int8_t* levels) {
  constexpr int together = W == 16 ? 4 : 2;
  int64_t r = 0;
  const auto from = [&](auto rows) __attribute__((always_inline)) {
    return discretise_rows<rows>(features + r * dim, dim, low, high, planes ? planes + r * 2 * words : nullptr, words,
                                 levels ? levels + r * dim : nullptr);
  };
  for (; r + together <= n; r += together) {
    if (!from(std::integral_constant<int, together>())) break;
  }
  for (; r < n; ++r) {
    if (!from(std::integral_constant<int, 1>())) return r;
  }
  return -1;
}

void unpack(const uint64_t* planes, int64_t n, int64_t words, int64_t dim, int8_t* levels) {
  for (int64_t r = 0; r < n; ++r) {
    const uint64_t* plus = planes + 2 * r * words;
    unpack_words(plus, plus + words, dim, levels + r * dim);
  }
}

void count_nonzeros(const uint64_t* planes, int64_t n, int64_t words, int32_t* nonzeros) {
  for (int64_t r = 0; r < n; ++r) {
    const uint64_t *plus = planes + 2 * r * words, *minus = plus + words;
    Bits sum{};
    for (int64_t w = 0; w < words; w += lanes) sum += words_of(ones(load_bits(plus + w) | load_bits(minus + w)));
    nonzeros[r] = static_cast<int32_t>(sum_of(sum));
  }
}

void dots(const uint64_t* queries, int64_t m, const uint64_t* planes, int64_t n, int64_t words, int32_t* dots) {
  int64_t q = 0;
  for (; q + tall <= m; q += tall) dot_rows<tall, 2>(queries + 2 * words * q, planes, n, words, dots + q * n);
  for (; q < m; ++q) {
    for (int64_t r = 0; r < n; ++r) {
      dots[q * n + r] = dot_row(queries + 2 * words * q, planes + 2 * words * r, words);
    }
  }
}

}  // namespace embfast::EMBFAST_ISA
