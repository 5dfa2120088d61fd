// Multiply-adds and reads with no other work, compiled once per instruction set.
#include "core/roofline.h"

#include <ctime>

#include "core/simd.h"

namespace embfast::EMBFAST_ISA {

namespace {

// Calls work() for this many seconds; each call does `units`. Returns the best rate in units per second.
template <class F>
double best_rate(double seconds, double units, F&& work) {
  const auto now = [] {  // CPU seconds of this thread
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  double best = 0.0;
  for (const double end = now() + seconds; now() < end;) {
    const double begin = now();
    work();
    const double rate = units / (now() - begin);
    if (rate > best) best = rate;
  }
  return best;
}

constexpr int chains = 12;  // two FMA units with a latency of 4 cycles need 8; 16 registers leave room for at most 13

}  // namespace

double fma_peak(double seconds) {
  constexpr int64_t rounds = 1 << 19;
  volatile float half = 0.5f, one = 1.0f;  // volatile, or the compiler would merge the identical chains
  const V a = splat(half), b = splat(one);
  V acc[chains];
  unrolled<chains>(EMBFAST_UNROLLED { acc[i] = splat(one); });
  volatile double kept = 0.0;
  return best_rate(seconds, 2.0 * W * chains * rounds, [&] {
#pragma GCC unroll 1
    for (int64_t r = 0; r < rounds; ++r) unrolled<chains>(EMBFAST_UNROLLED { acc[i] = acc[i] * a + b; });
    unrolled<chains>(EMBFAST_UNROLLED { kept = kept + sum(acc[i]); });
  });
}

double read_bandwidth(const float* numbers, int64_t n, double seconds) {
  const int64_t passes = n < (1 << 20) ? (1 << 20) / n * 4 : 1;
  volatile double kept = 0.0;
  return best_rate(seconds, 4.0 * static_cast<double>(n * passes), [&] {
    V acc[8] = {};
    for (int64_t pass = 0; pass < passes; ++pass) {
#pragma GCC unroll 1
      for (int64_t d = 0; d < n; d += 8 * W) {
        unrolled<8>(EMBFAST_UNROLLED { acc[i] += load_unaligned(numbers + d + i * W); });
      }
    }
    unrolled<8>(EMBFAST_UNROLLED { kept = kept + sum(acc[i]); });
  });
}

}  // namespace embfast::EMBFAST_ISA
