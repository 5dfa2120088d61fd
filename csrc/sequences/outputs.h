// The outputs of a batch, with weights and labels for each input row: one definition for every kind of window, as in
// reference.Model.step.
#pragma once

#include "core/scalar.h"

namespace embfast {

// The outputs in order: the Huffman path of the first center, the centers, the negatives.
struct Outputs {
  const uint8_t* codes;  // codes of the path
  int n_path;
  const int32_t* center;
  int n_centers;  // 0 without negative sampling
  const int32_t* drawn;
  int n_drawn;
  float scale;  // weight of a negative

  EMBFAST_HD int n() const { return n_path + n_centers + n_drawn; }

  // Weights and labels of one input row, n() of each. share[t]: how often the row occurs in the window of center t. A
  // negative that equals a center has weight 0 for it.
  EMBFAST_HD void weigh(const float* share, int n_shares, float* weight, float* label) const {
    float all = 0.0f;
    for (int t = 0; t < n_shares; ++t) all += share[t];
    for (int j = 0; j < n_path; ++j) *weight++ = all, *label++ = 1.0f - codes[j];
    for (int t = 0; t < n_centers; ++t) *weight++ = share[t], *label++ = 1.0f;
    for (int k = 0; k < n_drawn; ++k) {
      float own = 0.0f;
      for (int t = 0; t < n_shares; ++t) own += drawn[k] == center[t] ? share[t] : 0.0f;
      *weight++ = scale * (all - own), *label++ = 0.0f;
    }
  }
};

// Adds 1 to share[t] for each center, at position center + t, whose window contains position p: at most radius
// away and not the center itself. Returns the number of such centers.
EMBFAST_HD inline int add_shares(int p, int center, int n_centers, int radius, float* share) {
  int n = 0;
  for (int t = 0; t < n_centers; ++t) {
    const int distance = p - center - t;
    if (distance == 0 || distance > radius || -distance > radius) continue;
    share[t] += 1.0f;
    ++n;
  }
  return n;
}

}  // namespace embfast
