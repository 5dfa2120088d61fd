// One register of floats, written with the compiler's vector extensions: the same source for every instruction set.
// EMBFAST_ISA is the namespace, EMBFAST_WIDTH the number of floats per register. CMake compiles each file once per set.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <cstdint>
#include <type_traits>
#include <utility>

#define EMBFAST_INLINE __attribute__((always_inline)) inline

namespace embfast::EMBFAST_ISA {

constexpr int W = EMBFAST_WIDTH;

typedef float V __attribute__((vector_size(4 * W), may_alias));
typedef float Unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * W), may_alias));
typedef int32_t UnalignedInts __attribute__((vector_size(4 * W), aligned(4), may_alias));

EMBFAST_INLINE V load(const float* p) { return *reinterpret_cast<const V*>(p); }
EMBFAST_INLINE void store(float* p, V x) { *reinterpret_cast<V*>(p) = x; }
EMBFAST_INLINE V load_unaligned(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
EMBFAST_INLINE void store_unaligned(float* p, V x) { *reinterpret_cast<Unaligned*>(p) = x; }
EMBFAST_INLINE V zero() { return V{}; }
// Broadcasts a number to every lane with a single load. V{} + x would compile to an addition because of x = -0.
EMBFAST_INLINE V splat(float x) {
#if EMBFAST_WIDTH == 16
  return V{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif EMBFAST_WIDTH == 8
  return V{x, x, x, x, x, x, x, x};
#else
  return V{x, x, x, x};
#endif
}

// Keeps the compiler from repeating a load for each of its uses.
EMBFAST_INLINE V in_register(V x) {
#if EMBFAST_WIDTH == 16 && defined(__AVX512F__)
  asm("" : "+v"(x));
#endif
  return x;
}

// Calls f(0), f(1), ... f(N-1) with compile-time indices, so that arrays of V stay in registers.
template <int N, class F>
EMBFAST_INLINE void unrolled(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}
#define EMBFAST_UNROLLED [&](auto i) __attribute__((always_inline))

// Reduces W accumulators to one register that holds their W sums in order: log2(W) rounds of shuffle and add.
#if EMBFAST_WIDTH == 16
#define EMBFAST_LOW_PS 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define EMBFAST_HIGH_PS 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define EMBFAST_LOW_PD 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define EMBFAST_HIGH_PD 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define EMBFAST_EVEN 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define EMBFAST_ODD 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#elif EMBFAST_WIDTH == 8
#define EMBFAST_LOW_PS 0, 8, 1, 9, 4, 12, 5, 13
#define EMBFAST_HIGH_PS 2, 10, 3, 11, 6, 14, 7, 15
#define EMBFAST_LOW_PD 0, 1, 8, 9, 4, 5, 12, 13
#define EMBFAST_HIGH_PD 2, 3, 10, 11, 6, 7, 14, 15
#define EMBFAST_EVEN 0, 1, 2, 3, 8, 9, 10, 11
#define EMBFAST_ODD 4, 5, 6, 7, 12, 13, 14, 15
#else
#define EMBFAST_LOW_PS 0, 4, 1, 5
#define EMBFAST_HIGH_PS 2, 6, 3, 7
#define EMBFAST_LOW_PD 0, 1, 4, 5
#define EMBFAST_HIGH_PD 2, 3, 6, 7
#endif

EMBFAST_INLINE V transposed_sums(const V* acc) {
  V pairs[W / 2], quads[W / 4];
  unrolled<W / 2>(EMBFAST_UNROLLED {
    const V x = acc[2 * i], y = acc[2 * i + 1];
    pairs[i] = __builtin_shufflevector(x, y, EMBFAST_LOW_PS) + __builtin_shufflevector(x, y, EMBFAST_HIGH_PS);
  });
  unrolled<W / 4>(EMBFAST_UNROLLED {
    const V x = pairs[2 * i], y = pairs[2 * i + 1];
    quads[i] = __builtin_shufflevector(x, y, EMBFAST_LOW_PD) + __builtin_shufflevector(x, y, EMBFAST_HIGH_PD);
  });
#if EMBFAST_WIDTH == 4
  return quads[0];
#else
  const auto lanes = [](V x, V y) __attribute__((always_inline)) {
    return __builtin_shufflevector(x, y, EMBFAST_EVEN) + __builtin_shufflevector(x, y, EMBFAST_ODD);
  };
  const V left = lanes(quads[0], quads[1]);
#if EMBFAST_WIDTH == 8
  return left;
#else
  return lanes(left, lanes(quads[2], quads[3]));
#endif
#endif
}

EMBFAST_INLINE Ints iota() {
  return Ints{0,  1,  2,  3,
#if EMBFAST_WIDTH > 4
              4,  5,  6,  7,
#endif
#if EMBFAST_WIDTH > 8
              8,  9,  10, 11, 12,
              13, 14, 15
#endif
  };
}

#ifdef __AVX512BF16__
// Two bfloat16 numbers per lane; bfloat16 is the upper half of a float32. The CPU multiplies two registers of pairs in
// the time of one register of floats and accumulates the products in float32.
typedef uint32_t Pairs __attribute__((vector_size(4 * W), may_alias));

// Pairs of neighbours in x, then pairs of neighbours in y.
EMBFAST_INLINE Pairs pair_neighbours(V x, V y) {
  return reinterpret_cast<Pairs>(_mm512_cvtne2ps_pbh(__m512(y), __m512(x)));
}

// (x, y) in each lane. Ties are rounded away from 0, whereas pair_neighbours rounds to even. NaNs give undefined
// values.
EMBFAST_INLINE Pairs pair_up(V x, V y) {
  const Pairs low = reinterpret_cast<Pairs>(x) + 0x8000u, high = reinterpret_cast<Pairs>(y) + 0x8000u;
  return (low >> 16) | (high & 0xffff0000u);
}

EMBFAST_INLINE Pairs splat(uint32_t pair) { return reinterpret_cast<Pairs>(_mm512_set1_epi32(static_cast<int>(pair))); }

// sum + x.first * y.first + x.second * y.second
EMBFAST_INLINE V add_products(V sum, Pairs x, Pairs y) {
  return V(_mm512_dpbf16_ps(__m512(sum), reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(y)));
}
#endif

// Whether any lane of a comparison is true.
EMBFAST_INLINE bool any(Ints mask) {
  typedef int64_t Longs __attribute__((vector_size(4 * W), may_alias));
  const Longs x = reinterpret_cast<Longs>(mask);
  int64_t bits = 0;
  for (int i = 0; i < W / 2; ++i) bits |= x[i];
  return bits != 0;
}

EMBFAST_INLINE double sum(V x) {
  double total = 0.0;
  for (int i = 0; i < W; ++i) total += x[i];
  return total;
}

// The sum of all lanes, by repeated halving.
EMBFAST_INLINE float total(V x) {
#if EMBFAST_WIDTH == 16
  x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
#elif EMBFAST_WIDTH == 8
  x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
#endif
  return (x[0] + x[2]) + (x[1] + x[3]);
}

// Maximum and minimum; if either operand is NaN, the result is the second.
EMBFAST_INLINE V larger(V x, V y) {
#if EMBFAST_WIDTH == 16 && defined(__AVX512F__)
  return V(_mm512_max_ps(__m512(x), __m512(y)));
#elif EMBFAST_WIDTH == 8 && defined(__AVX2__)
  return V(_mm256_max_ps(__m256(x), __m256(y)));
#else
  return x > y ? x : y;
#endif
}
EMBFAST_INLINE V smaller(V x, V y) {
#if EMBFAST_WIDTH == 16 && defined(__AVX512F__)
  return V(_mm512_min_ps(__m512(x), __m512(y)));
#elif EMBFAST_WIDTH == 8 && defined(__AVX2__)
  return V(_mm256_min_ps(__m256(x), __m256(y)));
#else
  return x < y ? x : y;
#endif
}

// 1 / x for normal x, accurate to one or two units in the last place.
EMBFAST_INLINE V reciprocal(V x) {
#if EMBFAST_WIDTH == 16 && defined(__AVX512F__)
  const V r = V(_mm512_rcp14_ps(__m512(x)));
  return r + r * (1.0f - x * r);
#else
  return 1.0f / x;
#endif
}

// 1 / sqrt(x) for normal x > 0, accurate to one or two units in the last place: hardware estimate and a Newton step.
EMBFAST_INLINE V inverse_root(V x) {
#if EMBFAST_WIDTH == 16 && defined(__AVX512F__)
  const V r = V(_mm512_rsqrt14_ps(__m512(x)));
#elif EMBFAST_WIDTH == 8 && defined(__AVX2__)
  const V r = V(_mm256_rsqrt_ps(__m256(x)));
#elif defined(__SSE2__)
  const V r = V(_mm_rsqrt_ps(__m128(x)));
#else
  V r;
  for (int i = 0; i < W; ++i) r[i] = 1.0f / __builtin_sqrtf(x[i]);
#endif
  return r * (1.5f - 0.5f * x * r * r);
}

// e^-x with x clamped to -80..80; relative error 4e-6.
EMBFAST_INLINE V exp_minus(V x) {
  constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  const V t = smaller(splat(115.0f), larger(splat(-115.0f), x * -1.44269504f));
  const V shifted = t + round;
  const V f = t - (shifted - round);
  V p = f * 1.3333558e-3f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return reinterpret_cast<V>(reinterpret_cast<Ints>(p) + (reinterpret_cast<Ints>(shifted) << 23));
}

// log x for normal x > 0; absolute error 5e-7. x = 2^k * m with m in sqrt(1/2)..sqrt(2), then a polynomial in m - 1.
EMBFAST_INLINE V log_positive(V x) {
  const Ints bits = reinterpret_cast<Ints>(x);
  const Ints k = (bits - 0x3f3504f3) >> 23;
  const V z = reinterpret_cast<V>(bits - (k << 23)) - 1.0f;
  V p = z * 0.11827479f - 0.18901980f;
  p = p * z + 0.20604673f;
  p = p * z - 0.24881339f;
  p = p * z + 0.33303300f;
  p = p * z - 0.50001967f;
  p = p * z + 1.0000032f;
  return p * z + __builtin_convertvector(k, V) * 0.693147181f;
}

}  // namespace embfast::EMBFAST_ISA
