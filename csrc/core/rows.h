// A matrix of float32 rows as the kernels see it; the caller owns the memory.
#pragma once

#include <cstdint>

#include "core/scalar.h"

namespace embfast {

struct Rows {
  float* data;
  int64_t n;
  int64_t dim;  // floats from one row to the next; columns beyond the vector size are zero and stay zero

  EMBFAST_HD float* operator[](int64_t i) const { return data + i * dim; }
};

}  // namespace embfast
