// CBOW batches of full windows: sums, scores and updates in registers.
// Source: Mikolov et al. 2013, arXiv:1301.3781 (CBOW); shared negatives as in passes.h.
#pragma once

#include "sequences/passes.h"

namespace embfast::EMBFAST_ISA {

// A batch of `cbow_centers` neighbouring centers with full windows. m.in: the n_in = cbow_centers + 2 * radius input
// rows around them; m.center: output rows of the centers; m.out: output rows of the negatives. m.weight and m.label
// hold one entry per hidden row for each negative in turn, then one per hidden row for its center. A hidden row is
// hidden_scale * (sum of the window); each row of a window moves by delta_scale * (gradient of the hidden row). The
// n_tags rows after the n_in belong to all windows; only they move if the rest is frozen.
constexpr int cbow_centers = 2;

struct Cbow : Product {
  float* const* center;
  int radius, n_tags;
  float hidden_scale, delta_scale;
};

template <int J, bool frozen>
EMBFAST_INLINE V train_cbow(const Cbow& windows) {
  const Cbow m = windows;
  constexpr int pairs = cbow_centers * (J + 1), n = (pairs + W - 1) / W * W;
  const int width = 2 * m.radius;
  float* const* tags = m.in + m.n_in;
  float *hidden[cbow_centers], *out[J], *center[cbow_centers];
  unrolled<cbow_centers>(EMBFAST_UNROLLED { hidden[i] = m.delta + i * m.dim, center[i] = m.center[i]; });
  unrolled<J>(EMBFAST_UNROLLED { out[i] = m.out[i]; });
#pragma GCC unroll 1
  for (int64_t d = 0; d < m.dim; d += W) {
    V sum = load(m.in[0] + d);  // sum of a window and its center, which slides along
    for (int p = 1; p <= width; ++p) sum += load(m.in[p] + d);
    for (int p = 0; p < m.n_tags; ++p) sum += load(tags[p] + d);
    unrolled<cbow_centers>(EMBFAST_UNROLLED {
      if constexpr (i > 0) sum += load(m.in[width + i] + d) - load(m.in[i - 1] + d);
      store(hidden[i] + d, (sum - load(m.in[m.radius + i] + d)) * m.hidden_scale);
    });
  }
  alignas(V) float step[n];
  V loss = zero();
  unrolled<n / W>(EMBFAST_UNROLLED {
    constexpr int first = i * W;
    V acc[W];
    unrolled<W>(EMBFAST_UNROLLED { acc[i] = zero(); });
#pragma GCC unroll 1
    for (int64_t d = 0; d < m.dim; d += W) {
      unrolled<W>(EMBFAST_UNROLLED {
        constexpr int p = first + i, row = p % cbow_centers;
        if constexpr (p < cbow_centers * J) acc[i] += load(hidden[row] + d) * load(out[p / cbow_centers] + d);
        if constexpr (p >= cbow_centers * J && p < pairs) acc[i] += load(hidden[row] + d) * load(center[row] + d);
      });
    }
    const V weight = load_unaligned(m.weight + first), label = load_unaligned(m.label + first);
    store(step + first, logistic(transposed_sums(acc), weight, label, m.lr, loss));
  });
#pragma GCC unroll 1
  for (int64_t d = 0; d < m.dim; d += W) {
    V y[J], dy[J], delta[cbow_centers], before[cbow_centers + 1];  // before[i]: sum of the deltas before i
    unrolled<J>(EMBFAST_UNROLLED {
      if constexpr (W == 16) y[i] = load(out[i] + d);
      dy[i] = zero();
    });
    before[0] = zero();
    unrolled<cbow_centers>(EMBFAST_UNROLLED {
      constexpr int row = i;
      const V x = load(hidden[row] + d);
      V moved[2] = {splat(step[cbow_centers * J + row]) * load(center[row] + d), zero()};
      unrolled<J>(EMBFAST_UNROLLED {
        const V g = splat(step[i * cbow_centers + row]);
        moved[i % 2] += g * (W == 16 ? y[i] : load(out[i] + d));
        dy[i] += g * x;
      });
      delta[row] = (moved[0] + moved[1]) * m.delta_scale;
      before[row + 1] = before[row] + delta[row];
    });
    // The row at p belongs to the windows of centers p - width .. p, except to that of center p - radius: itself.
    const auto add = [&](float* row, V by) __attribute__((always_inline)) { store(row + d, load(row + d) + by); };
    const auto move = [&](int p, V by) __attribute__((always_inline)) { add(m.in[p], by); };
    m.queue->prefetch_column(d);
    const V all = before[cbow_centers];
    for (int p = 0; p < m.n_tags; ++p) add(tags[p], all);
    if constexpr (frozen) continue;
    // Loaded again: a word may occur twice, and both steps count.
    unrolled<J>(EMBFAST_UNROLLED { add(out[i], dy[i]); });
    unrolled<cbow_centers>(
        EMBFAST_UNROLLED { add(center[i], splat(step[cbow_centers * J + i]) * load(hidden[i] + d)); });
    unrolled<cbow_centers - 1>(EMBFAST_UNROLLED { move(i, before[i + 1]); });
    for (int p = cbow_centers - 1; p <= width; ++p) move(p, all);
    unrolled<cbow_centers - 1>(EMBFAST_UNROLLED { move(width + 1 + i, all - before[i + 1]); });
    unrolled<cbow_centers>(EMBFAST_UNROLLED { move(m.radius + i, -delta[i]); });
  }
  m.queue->n = 0;
  return loss;
}

template <bool frozen, int... J>
constexpr Losses<Cbow> each_cbow(std::integer_sequence<int, J...>) {
  return {{[](const Cbow& m) { return train_cbow<J + 1, frozen>(m); }...}};
}
constexpr auto cbow_windows = each_cbow<false>(Each{}), frozen_cbow_windows = each_cbow<true>(Each{});

}  // namespace embfast::EMBFAST_ISA
