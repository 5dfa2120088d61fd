// Alias table: samples a word in proportion to its weight with one draw and one comparison, for any vocabulary size.
// Source: Walker 1977; built in linear time as in Vose 1991.
#pragma once

#include <cstdint>
#include <vector>

#include "core/random.h"

namespace embfast {

// Weights are >= 0 and have a positive, finite sum. The probability of word i is exact to 2^-32 / n.
inline std::vector<AliasCell> alias_table(const double* weights, int64_t n) {
  double total = 0.0;
  for (int64_t i = 0; i < n; ++i) total += weights[i];
  std::vector<double> mass(n);
  std::vector<int32_t> small, large;
  for (int64_t i = 0; i < n; ++i) {
    mass[i] = weights[i] / total * static_cast<double>(n);
    (mass[i] < 1.0 ? small : large).push_back(static_cast<int32_t>(i));
  }
  std::vector<AliasCell> cells(n);
  while (!small.empty() && !large.empty()) {
    const int32_t s = small.back(), l = large.back();
    small.pop_back();
    cells[s] = {static_cast<uint32_t>(mass[s] * 4294967296.0), l};
    mass[l] -= 1.0 - mass[s];
    if (mass[l] < 1.0) {
      large.pop_back();
      small.push_back(l);
    }
  }
  // Cells left over by rounding always return their own word.
  for (const auto* rest : {&small, &large}) {
    for (const int32_t i : *rest) cells[i] = {0xffffffffu, i};
  }
  return cells;
}

}  // namespace embfast
