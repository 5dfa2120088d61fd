// Peak rates of one core, measured in CPU time: the reference for the speed of a kernel.
#pragma once

#include <cstdint>

#define EMBFAST_ROOFLINE                                                                                  \
  /* Best FLOP/s of any interval of a few milliseconds within `seconds`; a multiply-add counts as two. */ \
  double fma_peak(double seconds);                                                                        \
  /* Best bytes/s of reading numbers[0..n) repeatedly for `seconds`; n is a multiple of 1024. */          \
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
