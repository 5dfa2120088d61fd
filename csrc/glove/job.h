// One call of GloVe's kernel, on the CPU or on a device. Python fills the settings by name (kernels.GLOVE_JOB); the
// pointers are set by the binding on the CPU, and by embfast/device/entries.py on a device.
#pragma once

#include "cooccurrence/entry.h"
#include "core/scalar.h"

namespace embfast {

struct GloveJob {
  // Tables with rows of `pitch` float4, 16 bytes each. Column `dim` of w_in and w_out holds the bias, and the columns
  // after it are zero. The sums of squares have the same layout and are positive everywhere.
  float *w_in, *w_out, *sums_in, *sums_out;

  // Entries are sorted into groups: parts of tiles of the matrix or random groups on the CPU, runs of entries that
  // share their row on a device. Groups are trained in a given order, the entries of each in a random order that
  // changes with the epoch.
  const Entry* entries;
  const int64_t* groups;  // n_groups + 1 edges
  const int32_t* order;   // indices of groups
  double* loss;           // device: the summed loss is added here; the CPU returns it

  uint64_t seed, epoch;
  int64_t first, last;  // range of `order` to train on
  int64_t first_entry;  // device: index of entries[0] in the matrix
  int32_t dim, pitch;
  int32_t longest;     // entries of the longest group
  float x_max, alpha;  // an entry x has the weight min(1, (x / x_max)^alpha)
  float lr;

  EMBFAST_HD float* row(float* table, int64_t i) const { return table + 4 * i * pitch; }
};

}  // namespace embfast
