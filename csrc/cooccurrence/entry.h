// One entry of a co-occurrence matrix, as files and kernels hold it: 12 bytes.
#pragma once

#include "core/scalar.h"

namespace embfast {

struct Entry {
  int32_t row, column;
  float value;
};
static_assert(sizeof(Entry) == 12);

}  // namespace embfast
