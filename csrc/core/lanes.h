// One register of floats or doubles, for kernels that support both.
#pragma once

#include "core/simd.h"

namespace embfast::EMBFAST_ISA {

template <class T>
struct Lanes {
  static constexpr int n = 4 * W / static_cast<int>(sizeof(T));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index;
  typedef T V __attribute__((vector_size(4 * W), may_alias));
  typedef T Unaligned __attribute__((vector_size(4 * W), aligned(sizeof(T)), may_alias));
  typedef Index I __attribute__((vector_size(4 * W), may_alias));

  static EMBFAST_INLINE V load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static EMBFAST_INLINE void store(T* p, V x) { *reinterpret_cast<Unaligned*>(p) = x; }
  static EMBFAST_INLINE V filled(T x) {
    V v;
    for (int i = 0; i < n; ++i) v[i] = x;
    return v;
  }
  // 0, 1, ... n - 1.
  static EMBFAST_INLINE I numbered() {
    I v;
    for (int i = 0; i < n; ++i) v[i] = i;
    return v;
  }
};

EMBFAST_INLINE V positive(V x) { return larger(x, zero()); }
EMBFAST_INLINE Lanes<double>::V positive(Lanes<double>::V x) { return x > 0.0 ? x : Lanes<double>::V{}; }

EMBFAST_INLINE double total(Lanes<double>::V x) {
  double sum = 0.0;
  for (int i = 0; i < Lanes<double>::n; ++i) sum += x[i];
  return sum;
}

}  // namespace embfast::EMBFAST_ISA
