// The output layer. Scores of input rows and output rows are one small matrix product; after the logistic step, two
// rank updates change both. All use the values before the step: one step of gradient descent on the summed loss of the
// batch.
// Source: Ji et al. 2016, arXiv:1604.04661 (shared negatives, level-3 blocks); the loss is Mikolov et al. 2013,
// arXiv:1310.4546, eq. 4. The sigmoid is exact; word2vec.c reads it from a table cut off at 6.
#pragma once

#include "core/simd.h"
#include "sequences/sequences.h"

namespace embfast::EMBFAST_ISA {

// Where a pass puts the gradient of input row i.
enum class GradientTo { row, delta, delta_add };  // row += gradient; delta = gradient; delta += gradient

// Rows that later batches need. A core that requests more cache lines than it can have in flight (about 24) stalls, so
// the passes below request them gradually: one row after every few scores, then column d of the others while they
// process column d themselves.
struct PrefetchQueue {
  float** row;
  int n;

  // Requested for writing: a line that another core holds is then transferred once, not again at the store.
  EMBFAST_INLINE void prefetch_column(int64_t d) const {
    if (d % 16 != 0) return;  // this line has been requested
    for (int i = 0; i < n; ++i) __builtin_prefetch(row[i] + d, 1, 3);
  }
  EMBFAST_INLINE void prefetch_last(int64_t dim) {
    if (n == 0) return;
    --n;
    for (int64_t d = 0; d < dim; d += 16) __builtin_prefetch(row[n] + d, 1, 3);
  }
};

// A product of input rows and output rows. The pair of input row i and output row j has entry i * n_out + j of weight
// (how often it counts, 0 for never) and label (1 for a center, 0 for a negative).
struct Product {
  float* const* in;
  int n_in;
  float* const* out;
  int n_out;
  const float* weight;  // weight and label are padded with W zeros
  const float* label;
  float* delta;  // n_in rows of dim floats for GradientTo::delta
  float* step;   // working memory: n_in * n_out + 2 W floats
  float* pairs;  // working memory: max_tile rows, and 16 (n_in + 1) floats
  int64_t dim;   // a multiple of W
  float lr;
  PrefetchQueue* queue;
};

#ifdef __AVX512BF16__

// Packs the output rows into pairs of neighbouring columns: J registers for each 2 W columns.
template <int J>
EMBFAST_INLINE void pair_outputs(const Product& m) {
  float* pairs = m.pairs;
#pragma GCC unroll 1
  for (int64_t d = 0; d + 2 * W <= m.dim; d += 2 * W, pairs += J * W) {
    unrolled<J>(EMBFAST_UNROLLED {
      store(pairs + i * W, reinterpret_cast<V>(pair_neighbours(load(m.out[i] + d), load(m.out[i] + d + W))));
    });
  }
}

#endif

// I x J scores at once, for the input rows from `first` on: each row is loaded once per tile.
template <int I, int J>
EMBFAST_INLINE void dots(const Product& m, int first) {
  constexpr int n = (I * J + W - 1) / W * W;
  float* const* in = m.in + first;
  V acc[n];
  unrolled<n>(EMBFAST_UNROLLED { acc[i] = zero(); });
  int64_t d = 0;
#ifdef __AVX512BF16__
  const float* pairs = m.pairs;
#pragma GCC unroll 1
  for (; d + 2 * W <= m.dim; d += 2 * W, pairs += J * W) {
    Pairs x[I];
    unrolled<I>(EMBFAST_UNROLLED { x[i] = pair_neighbours(load(in[i] + d), load(in[i] + d + W)); });
    unrolled<J>(EMBFAST_UNROLLED {
      constexpr int column = i;
      const Pairs y = reinterpret_cast<Pairs>(load(pairs + column * W));
      unrolled<I>(EMBFAST_UNROLLED { acc[i * J + column] = add_products(acc[i * J + column], x[i], y); });
    });
  }
#endif
#pragma GCC unroll 1
  for (; d < m.dim; d += W) {
    V y[J];
    unrolled<J>(EMBFAST_UNROLLED { y[i] = in_register(load(m.out[i] + d)); });
    unrolled<I>(EMBFAST_UNROLLED {
      constexpr int row = i;
      const V x = load(in[row] + d);
      unrolled<J>(EMBFAST_UNROLLED { acc[row * J + i] += x * y[i]; });
    });
  }
  unrolled<n / W>(EMBFAST_UNROLLED { store_unaligned(m.step + first * J + i * W, transposed_sums(acc + i * W)); });
}

// Turns scores into steps, lr * weight * (label - sigmoid(score)), and adds the weighted losses.
EMBFAST_INLINE V logistic(V score, V weight, V label, float lr, V& loss) {
  const V denominator = exp_minus(score) + 1.0f;
  // the log of the denominator is below -score only where exp_minus is clamped
  loss += weight * (larger(log_positive(denominator), -score) + (score - label * score));
  return (label - reciprocal(denominator)) * (weight * lr);
}

// Computes the scores of J output rows, fills m.step and returns the loss.
template <int J>
EMBFAST_INLINE V score_rows(const Product& m) {
#ifdef __AVX512BF16__
  constexpr int I = J == 7 ? 3 : W / J > 4 ? 4 : W / J;
  pair_outputs<J>(m);
#else
  constexpr int I = J >= W ? 1 : W / J > 4 ? 4 : W / J;
#endif
  int i = 0;
  for (; i + I <= m.n_in; i += I) {
    dots<I, J>(m, i);
    m.queue->prefetch_last(m.dim);
  }
  if constexpr (I > 1) {
    for (; i < m.n_in; ++i) dots<1, J>(m, i);
  }
  V loss = zero();
  for (int p = 0; p < m.n_in * J; p += W) {
    const V weight = load_unaligned(m.weight + p), label = load_unaligned(m.label + p);
    store_unaligned(m.step + p, logistic(load_unaligned(m.step + p), weight, label, m.lr, loss));
  }
  return loss;
}

// Start value and destination of the gradient of input row i at column d, in an update pass.
template <GradientTo to>
struct GradientTarget {
  const Product& m;
  int64_t d;
  EMBFAST_INLINE float* address(int i) const { return to == GradientTo::row ? m.in[i] + d : m.delta + i * m.dim + d; }
  EMBFAST_INLINE V start(int i, V x) const {
    return to == GradientTo::row ? x : to == GradientTo::delta ? zero() : load(address(i));
  }
};

// Updates rows by the steps in m.step, in one sweep over the registers of a row: each row is loaded and stored once.
// Frozen output rows contribute to the gradients of the inputs and do not change.
template <int J, GradientTo to, bool frozen>
EMBFAST_INLINE void update_rows(const Product& product) {
  const Product m = product;  // copied, since the compiler must assume that a store to a row changes *product
  float* out[J];
  unrolled<J>(EMBFAST_UNROLLED { out[i] = m.out[i]; });
#ifdef __AVX512BF16__
  // Two input rows at a time, since products come in pairs: the gradient of an input sums over two outputs, that of an
  // output over the two inputs. The steps are paired to match: within the first row, within the second, and across.
  constexpr int halves = (J + 1) / 2;
  auto* const steps = reinterpret_cast<uint32_t*>(m.pairs);
  for (int row = 0; row < m.n_in; row += 2) {
    constexpr __mmask16 columns = (1u << J) - 1;
    const V first = V(_mm512_maskz_loadu_ps(columns, m.step + row * J));
    const V second = V(_mm512_maskz_loadu_ps(row + 1 < m.n_in ? columns : __mmask16{0}, m.step + (row + 1) * J));
    *reinterpret_cast<Pairs*>(steps + row * W) = pair_neighbours(first, second);
    *reinterpret_cast<Pairs*>(steps + (row + 1) * W) = pair_up(first, second);
  }
#endif
#pragma GCC unroll 1
  for (int64_t d = 0; d < m.dim; d += W) {
    const GradientTarget<to> target{m, d};
    V dy[J];
    unrolled<J>(EMBFAST_UNROLLED { dy[i] = zero(); });
#ifdef __AVX512BF16__
    Pairs y[halves];
    unrolled<halves>(EMBFAST_UNROLLED {
      constexpr int second = 2 * i + 1;
      y[i] = pair_up(load(out[2 * i] + d), second < J ? load(out[second < J ? second : 0] + d) : zero());
    });
    const auto move = [&](int row, V x, const uint32_t* step) __attribute__((always_inline)) {
      V moved[2] = {target.start(row, x), zero()};  // two chains, half as long
      unrolled<halves>(EMBFAST_UNROLLED { moved[i % 2] = add_products(moved[i % 2], splat(step[i]), y[i]); });
      store(target.address(row), moved[0] + moved[1]);
    };
    const auto move_outputs = [&](V x0, V x1, const uint32_t* step) __attribute__((always_inline)) {
      if constexpr (frozen) return;
      const Pairs x = pair_up(x0, x1);
      unrolled<J>(EMBFAST_UNROLLED { dy[i] = add_products(dy[i], splat(step[i]), x); });
    };
    const uint32_t* step = steps;
    int row = 0;
#pragma GCC unroll 1
    for (; row + 1 < m.n_in; row += 2, step += 2 * W) {
      const V x0 = load(m.in[row] + d), x1 = load(m.in[row + 1] + d);
      move(row, x0, step);
      move(row + 1, x1, step + W / 2);
      move_outputs(x0, x1, step + W);
    }
    if (row < m.n_in) {
      const V x = load(m.in[row] + d);
      move(row, x, step);
      move_outputs(x, zero(), step + W);
    }
#else
    V y[J];
    if constexpr (W == 16) {  // 32 registers can hold them; with 16 registers they are read again below
      unrolled<J>(EMBFAST_UNROLLED { y[i] = load(out[i] + d); });
    }
    const float* step = m.step;
#pragma GCC unroll 1
    for (int row = 0; row < m.n_in; ++row, step += J) {
      const V x = load(m.in[row] + d);
      V moved[2] = {target.start(row, x), zero()};  // two chains, half as long
      unrolled<J>(EMBFAST_UNROLLED {
        const V g = splat(step[i]);
        moved[i % 2] += g * (W == 16 ? y[i] : load(out[i] + d));
        if constexpr (!frozen) dy[i] += g * x;
      });
      store(target.address(row), moved[0] + moved[1]);
    }
#endif
    m.queue->prefetch_column(d);
    // Loaded again: a word may occur twice among the outputs, and both steps count.
    if constexpr (!frozen) unrolled<J>(EMBFAST_UNROLLED { store(out[i] + d, load(out[i] + d) + dy[i]); });
  }
  m.queue->n = 0;
}

// Both passes for one input row with distinct output rows. The steps stay in registers, and the update loads and stores
// each row once, without accumulators.
template <int J, bool frozen>
EMBFAST_INLINE V train_pair(const Product& m) {
  constexpr int n = (J + W - 1) / W * W;
  float* const in = m.in[0];
  float* out[J];
  V acc[n];
  unrolled<J>(EMBFAST_UNROLLED { out[i] = m.out[i]; });
  unrolled<n>(EMBFAST_UNROLLED { acc[i] = zero(); });
#pragma GCC unroll 1
  for (int64_t d = 0; d < m.dim; d += W) {
    const V x = in_register(load(in + d));
    unrolled<J>(EMBFAST_UNROLLED { acc[i] += x * load(out[i] + d); });
  }
  alignas(V) float step[n];
  V loss = zero();
  unrolled<n / W>(EMBFAST_UNROLLED {
    const V weight = load_unaligned(m.weight + i * W), label = load_unaligned(m.label + i * W);
    store(step + i * W, logistic(transposed_sums(acc + i * W), weight, label, m.lr, loss));
  });
  V g[J];
  unrolled<J>(EMBFAST_UNROLLED { g[i] = splat(step[i]); });
#pragma GCC unroll 1
  for (int64_t d = 0; d < m.dim; d += W) {
    const V x = load(in + d);
    V moved[2] = {x, zero()};
    unrolled<J>(EMBFAST_UNROLLED {
      const V y = load(out[i] + d);
      moved[i % 2] += g[i] * y;
      if constexpr (!frozen) store(out[i] + d, y + g[i] * x);
    });
    store(in + d, moved[0] + moved[1]);
    m.queue->prefetch_column(d);
  }
  m.queue->n = 0;
  return loss;
}

// The passes above, instantiated for each number of output rows up to max_tile; the instance is chosen at run time.
template <class Argument>
struct Losses {
  V (*of[max_tile])(const Argument&);
  EMBFAST_INLINE V operator()(const Argument& m) const { return of[m.n_out - 1](m); }
};
struct Moves {
  void (*of[max_tile])(const Product&);
  EMBFAST_INLINE void operator()(const Product& m) const { of[m.n_out - 1](m); }
};
template <int... J>
constexpr Losses<Product> each_score(std::integer_sequence<int, J...>) {
  return {{[](const Product& m) { return score_rows<J + 1>(m); }...}};
}
template <GradientTo to, bool frozen, int... J>
constexpr Moves each_update(std::integer_sequence<int, J...>) {
  return {{[](const Product& m) { update_rows<J + 1, to, frozen>(m); }...}};
}
template <bool frozen, int... J>
constexpr Losses<Product> each_pair(std::integer_sequence<int, J...>) {
  return {{[](const Product& m) { return train_pair<J + 1, frozen>(m); }...}};
}
using Each = std::make_integer_sequence<int, max_tile>;
constexpr auto score = each_score(Each{});
constexpr auto pair = each_pair<false>(Each{}), frozen_pair = each_pair<true>(Each{});

// Update passes by destination of the gradient; one set for outputs that are trained, one for frozen outputs.
struct Updates {
  Moves row, delta, delta_add;
  EMBFAST_INLINE void operator()(const Product& m, GradientTo to) const {
    (to == GradientTo::row ? row : to == GradientTo::delta ? delta : delta_add)(m);
  }
};
template <bool frozen>
constexpr Updates each_updates() {
  return {each_update<GradientTo::row, frozen>(Each{}), each_update<GradientTo::delta, frozen>(Each{}),
          each_update<GradientTo::delta_add, frozen>(Each{})};
}
constexpr Updates trained_updates = each_updates<false>(), frozen_updates = each_updates<true>();

// N registers of scale * (sum of n rows): each row pointer is read once for all of them.
template <int N>
EMBFAST_INLINE void sum_registers(float* dst, float* const* rows, int n, int64_t d, float scale) {
  V acc[N];
  unrolled<N>(EMBFAST_UNROLLED { acc[i] = load(rows[0] + d + i * W); });
  for (int r = 1; r < n; ++r) {
    unrolled<N>(EMBFAST_UNROLLED { acc[i] += load(rows[r] + d + i * W); });
  }
  unrolled<N>(EMBFAST_UNROLLED { store(dst + d + i * W, acc[i] * scale); });
}

// dst = scale * (the sum of n rows), n >= 1.
EMBFAST_INLINE void sum_rows(float* dst, float* const* rows, int n, int64_t dim, float scale) {
  int64_t d = 0;
  for (; d + 8 * W <= dim; d += 8 * W) sum_registers<8>(dst, rows, n, d, scale);
  if (d + 4 * W <= dim) {
    sum_registers<4>(dst, rows, n, d, scale);
    d += 4 * W;
  }
  if (dim - d == 3 * W) sum_registers<3>(dst, rows, n, d, scale);
  if (dim - d == 2 * W) sum_registers<2>(dst, rows, n, d, scale);
  if (dim - d == W) sum_registers<1>(dst, rows, n, d, scale);
}

template <int N>
EMBFAST_INLINE void add_n_rows(float* dst, float* const* rows, int64_t dim) {
  for (int64_t d = 0; d < dim; d += W) {
    V acc = load(dst + d);
    unrolled<N>(EMBFAST_UNROLLED { acc += load(rows[i] + d); });
    store(dst + d, acc);
  }
}

// dst += the sum of n rows.
EMBFAST_INLINE void add_rows(float* dst, float* const* rows, int n, int64_t dim) {
  for (; n >= 4; n -= 4, rows += 4) add_n_rows<4>(dst, rows, dim);
  if (n == 3) add_n_rows<3>(dst, rows, dim);
  if (n == 2) add_n_rows<2>(dst, rows, dim);
  if (n == 1) add_n_rows<1>(dst, rows, dim);
}

// Trains on n_out output rows in tiles of at most max_tile. All tiles are scored before any row changes, so the rows
// must be distinct. fill(begin, width) writes the weights and labels of the columns from begin on to the tile's arrays;
// step is working memory for all tiles.
template <class Fill>
EMBFAST_INLINE V sweep_tiles(Product tile, float* const* out, int n_out, float* step, GradientTo to,
                             const Updates& update, Fill&& fill) {
  const int tiles = (n_out + max_tile - 1) / max_tile;
  V loss = zero();
  for (const bool updating : {false, true}) {
    tile.step = step;
    for (int t = 0; t < tiles; ++t) {
      const int begin = n_out * t / tiles, width = n_out * (t + 1) / tiles - begin;
      tile.out = out + begin, tile.n_out = width;
      if (!updating) {
        fill(begin, width);
        loss += score(tile);
      } else {
        update(tile, tiles == 1 ? to : t == 0 ? GradientTo::delta : GradientTo::delta_add);
      }
      tile.step += tile.n_in * width + 2 * W;
    }
  }
  if (to == GradientTo::row && tiles > 1) {
    for (int i = 0; i < tile.n_in; ++i) {
      float* delta = tile.delta + i * tile.dim;
      add_rows(tile.in[i], &delta, 1, tile.dim);
    }
  }
  return loss;
}

// Working memory of train_tiles: weights and labels of one tile, steps of all tiles, distinct output rows.
struct Tiles {
  float *weight, *label, *step;
  float** out;
  int* column;
};

// Trains on any number of outputs, in tiles. Columns with the same output row are merged first; otherwise a later tile
// would see the row changed.
[[gnu::noinline]] static V train_tiles(const Product& m, float* weight, float* label, GradientTo to,
                                       const Updates& update, const Tiles& memory) {
  int n_out = 0;
  for (int j = 0; j < m.n_out; ++j) {
    int twin = 0;
    while (twin < n_out && memory.out[twin] != m.out[j]) ++twin;
    if (twin == n_out) {
      memory.column[n_out] = j;
      memory.out[n_out++] = m.out[j];
      continue;
    }
    for (int i = 0; i < m.n_in; ++i) {  // weight w + v with the weighted mean label: same steps, same loss
      float *w = weight + i * m.n_out + memory.column[twin], *l = label + i * m.n_out + memory.column[twin];
      const float v = weight[i * m.n_out + j], total = *w + v;
      if (total > 0.0f) *l = (*w * *l + v * label[i * m.n_out + j]) / total;
      *w = total;
    }
  }
  Product tile = m;
  tile.weight = memory.weight, tile.label = memory.label;
  return sweep_tiles(tile, memory.out, n_out, memory.step, to, update, [&](int begin, int width) {
    for (int i = 0; i < m.n_in; ++i) {
      for (int j = 0; j < width; ++j) {
        memory.weight[i * width + j] = weight[i * m.n_out + memory.column[begin + j]];
        memory.label[i * width + j] = label[i * m.n_out + memory.column[begin + j]];
      }
    }
    for (int p = 0; p < W; ++p) memory.weight[m.n_in * width + p] = memory.label[m.n_in * width + p] = 0.0f;
  });
}

}  // namespace embfast::EMBFAST_ISA
