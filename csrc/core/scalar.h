// Scalar functions shared by host and device code.
#pragma once

#ifdef __CUDACC_RTC__  // NVRTC has no standard library
using int8_t = signed char;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif

// Always inlined on the host: a file compiled for one instruction set must not emit a copy that others would call.
#ifdef __CUDACC__
#define EMBFAST_HD __host__ __device__
#else
#define EMBFAST_HD __attribute__((always_inline))
#endif

namespace embfast {

// The learning rate falls linearly from first to last as progress goes from 0 to 1.
EMBFAST_HD inline float linear_decay(float first, float last, double progress) {
  return static_cast<float>(first + (static_cast<double>(last) - first) * progress);
}

// One AdaGrad step: the weight moves by step / sqrt(sum of squares of all previous steps). Real is a float or a
// register of floats. Source: Duchi, Hazan, Singer 2011, https://jmlr.org/papers/v12/duchi11a.html, as in GloVe's code.
template <class Real>
EMBFAST_HD inline void adagrad(Real step, Real inverse_root_of_sum, Real* weight, Real* sum) {
  *weight -= step * inverse_root_of_sum;
  *sum += step * step;
}

}  // namespace embfast
