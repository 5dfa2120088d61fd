// A matrix of float32 rows as the kernels see it: memory that somebody else owns.
#pragma once

#include <cstdint>

#include "core/scalar.h"

namespace embfast {

struct Rows {
  float* data;
  int64_t n;
  int64_t dim;  // floats from one row to the next; columns past the caller's own dim hold zeros and keep them

  EMBFAST_HD float* operator[](int64_t i) const { return data + i * dim; }
};

}  // namespace embfast
