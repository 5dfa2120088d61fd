// What one core can do at most, measured in seconds of its own time: the scale for the speed of a kernel.
#pragma once

#include <cstdint>

#define EMBFAST_ROOFLINE                                                                                      \
  /* The best FLOP/s of a stretch of a few milliseconds, out of `seconds`; a multiply-add counts as two. */   \
  double fma_peak(double seconds);                                                                            \
  /* The best bytes/s of reading numbers[0..n) again and again, out of `seconds`; n is a multiple of 1024. */ \
  double read_bandwidth(const float* numbers, int64_t n, double seconds);

namespace embfast {
namespace baseline {
EMBFAST_ROOFLINE
}
namespace avx2 {
EMBFAST_ROOFLINE
}
namespace avx512 {
EMBFAST_ROOFLINE
}
}  // namespace embfast
