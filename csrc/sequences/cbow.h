// CBOW batches whose windows are all complete, trained in one pass over the columns.
// Source: Mikolov et al. 2013, arXiv:1301.3781 (CBOW); shared negatives as in passes.h.
#pragma once

#include "sequences/passes.h"

namespace embfast::EMBFAST_ISA {

// CBOW, in one go: the windows of `together` neighbouring centers, all of them whole. b.in are the n_in = together + 2
// * radius rows around them, own their centers' output rows, b.out the drawn ones; b.weight and b.label count the
// hidden rows against each drawn word in turn, then against their own. Hidden rows are hidden_scale * (sum of the
// window), and each row of a window moves by delta_scale * (gradient of the hidden row). The n_tags rows behind the
// n_in are in all windows; they alone move when the rest is frozen.
constexpr int together = 2;

struct Cbow : Block {
  float* const* own;
  int radius, n_tags;
  float hidden_scale, delta_scale;
};

template <int J, bool frozen>
EMBFAST_INLINE V train_cbow(const Cbow& windows) {
  const Cbow b = windows;
  constexpr int pairs = together * (J + 1), n = (pairs + W - 1) / W * W;
  const int width = 2 * b.radius;
  float* const* tags = b.in + b.n_in;
  float *hidden[together], *out[J], *own[together];
  unrolled<together>(EMBFAST_UNROLLED { hidden[i] = b.delta + i * b.dim, own[i] = b.own[i]; });
  unrolled<J>(EMBFAST_UNROLLED { out[i] = b.out[i]; });
#pragma GCC unroll 1
  for (int64_t d = 0; d < b.dim; d += W) {
    V sum = load(b.in[0] + d);  // of a window and its center; it slides on
    for (int p = 1; p <= width; ++p) sum += load(b.in[p] + d);
    for (int p = 0; p < b.n_tags; ++p) sum += load(tags[p] + d);
    unrolled<together>(EMBFAST_UNROLLED {
      if constexpr (i > 0) sum += load(b.in[width + i] + d) - load(b.in[i - 1] + d);
      store(hidden[i] + d, (sum - load(b.in[b.radius + i] + d)) * b.hidden_scale);
    });
  }
  alignas(V) float step[n];
  V loss = zero();
  unrolled<n / W>(EMBFAST_UNROLLED {
    constexpr int first = i * W;
    V acc[W];
    unrolled<W>(EMBFAST_UNROLLED { acc[i] = zero(); });
#pragma GCC unroll 1
    for (int64_t d = 0; d < b.dim; d += W) {
      unrolled<W>(EMBFAST_UNROLLED {
        constexpr int p = first + i, row = p % together;
        if constexpr (p < together * J) acc[i] += load(hidden[row] + d) * load(out[p / together] + d);
        if constexpr (p >= together * J && p < pairs) acc[i] += load(hidden[row] + d) * load(own[row] + d);
      });
    }
    const V weight = load_unaligned(b.weight + first), label = load_unaligned(b.label + first);
    store(step + first, logistic(transposed_sums(acc), weight, label, b.lr, loss));
  });
#pragma GCC unroll 1
  for (int64_t d = 0; d < b.dim; d += W) {
    V y[J], dy[J], delta[together], before[together + 1];  // before: the sum of the deltas before each
    unrolled<J>(EMBFAST_UNROLLED {
      if constexpr (W == 16) y[i] = load(out[i] + d);
      dy[i] = zero();
    });
    before[0] = zero();
    unrolled<together>(EMBFAST_UNROLLED {
      constexpr int row = i;
      const V x = load(hidden[row] + d);
      V moved[2] = {splat(step[together * J + row]) * load(own[row] + d), zero()};
      unrolled<J>(EMBFAST_UNROLLED {
        const V g = splat(step[i * together + row]);
        moved[i % 2] += g * (W == 16 ? y[i] : load(out[i] + d));
        dy[i] += g * x;
      });
      delta[row] = (moved[0] + moved[1]) * b.delta_scale;
      before[row + 1] = before[row] + delta[row];
    });
    // The row at p stands in the windows of centers p - width .. p, save its own.
    const auto add = [&](float* row, V by) __attribute__((always_inline)) { store(row + d, load(row + d) + by); };
    const auto move = [&](int p, V by) __attribute__((always_inline)) { add(b.in[p], by); };
    b.ahead->prefetch_column(d);
    const V all = before[together];
    for (int p = 0; p < b.n_tags; ++p) add(tags[p], all);
    if constexpr (frozen) continue;
    // Loaded again: the same word may stand twice, and both steps count.
    unrolled<J>(EMBFAST_UNROLLED { add(out[i], dy[i]); });
    unrolled<together>(EMBFAST_UNROLLED { add(own[i], splat(step[together * J + i]) * load(hidden[i] + d)); });
    unrolled<together - 1>(EMBFAST_UNROLLED { move(i, before[i + 1]); });
    for (int p = together - 1; p <= width; ++p) move(p, all);
    unrolled<together - 1>(EMBFAST_UNROLLED { move(width + 1 + i, all - before[i + 1]); });
    unrolled<together>(EMBFAST_UNROLLED { move(b.radius + i, -delta[i]); });
  }
  b.ahead->n = 0;
  return loss;
}

template <bool frozen, int... J>
constexpr Losses<Cbow> each_cbow(std::integer_sequence<int, J...>) {
  return {{[](const Cbow& b) { return train_cbow<J + 1, frozen>(b); }...}};
}
constexpr auto cbow_windows = each_cbow<false>(Each{}), frozen_cbow_windows = each_cbow<true>(Each{});

}  // namespace embfast::EMBFAST_ISA
