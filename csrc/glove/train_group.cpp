// Trains on one group of entries: shuffle, take logarithms, prefetch, train. Compiled once per instruction set.
#include "core/random.h"
#include "core/simd.h"
#include "glove/glove.h"

namespace embfast::EMBFAST_ISA {

namespace {

constexpr int ahead = 3;  // entries between the prefetch of a row and its use

EMBFAST_INLINE void prefetch(const float* row, int64_t dim) {
  for (int64_t d = 0; d < dim; d += 16) __builtin_prefetch(row + d, 1, 3);
}

EMBFAST_INLINE V clipped(V x, float limit) { return smaller(splat(limit), larger(splat(-limit), x)); }

// Inside-out Fisher-Yates, directly from the mapped entries.
EMBFAST_INLINE void shuffle(const GloveJob& job, int64_t begin, int64_t n, Entry* shuffled) {
  const Stream draw(job.seed, job.epoch, Purpose::shuffle);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t j = below(draw(begin + i), static_cast<uint32_t>(i + 1));
    shuffled[i] = shuffled[j];
    shuffled[j] = job.entries[begin + i];
  }
}

EMBFAST_INLINE void weigh(const GloveJob& job, int64_t n, const GloveScratch& s) {
  for (int64_t i = 0; i < n; ++i) s.log[i] = s.entry[i].value;
  for (int64_t i = n; i < (n + W - 1) / W * W; ++i) s.log[i] = 1.0f;
  const V log_x_max = log_positive(splat(job.x_max));
  for (int64_t i = 0; i < n; i += W) {
    const V log = log_positive(load_unaligned(s.log + i));
    store_unaligned(s.log + i, log);
    store_unaligned(s.weight + i, exp_minus(larger(zero(), (log_x_max - log) * job.alpha)));
  }
}

struct Trainer {
  const GloveJob& job;
  int64_t plain;  // columns in full registers; the register after them holds the bias and the rest of the row
  Ints is_bias;
  V rate;  // learning rates in that register
  double loss = 0.0;

  EMBFAST_INLINE explicit Trainer(const GloveJob& job)
      : job(job), plain(job.dim / W * W), is_bias(iota() == static_cast<int32_t>(job.dim % W)) {
    // As in glove.c, lr applies to the vectors only; the bias moves by its full gradient.
    rate = reinterpret_cast<V>((is_bias & reinterpret_cast<Ints>(splat(1.0f))) |
                               (~is_bias & reinterpret_cast<Ints>(splat(job.lr))));
  }

  // The other row's last register, with 1 instead of its bias: the derivative of the score with respect to the bias
  // is 1.
  EMBFAST_INLINE V with_one(V x) const {
    return reinterpret_cast<V>((is_bias & reinterpret_cast<Ints>(splat(1.0f))) |
                               (~is_bias & reinterpret_cast<Ints>(x)));
  }

  EMBFAST_INLINE void train(const Entry& entry, float log, float weight) {
    float *in = job.row(job.w_in, entry.row), *out = job.row(job.w_out, entry.column);
    float *sums_in = job.row(job.sums_in, entry.row), *sums_out = job.row(job.sums_out, entry.column);
    V a = load(in + plain) * with_one(load(out + plain)), b = zero(), c = zero(), d = zero();
    int64_t k = 0;
    for (; k + 4 * W <= plain; k += 4 * W) {
      a += load(in + k) * load(out + k);
      b += load(in + k + W) * load(out + k + W);
      c += load(in + k + 2 * W) * load(out + k + 2 * W);
      d += load(in + k + 3 * W) * load(out + k + 3 * W);
    }
    for (; k < plain; k += W) b += load(in + k) * load(out + k);
    const float difference = total((a + b) + (c + d)) + out[job.dim] - log;
    const float gradient = weight * difference;
    loss += 0.5 * gradient * difference;

    const float limit = clip * job.lr;
    const V step = splat(gradient * job.lr);
    for (k = 0; k < plain; k += W) {
      move(clipped(step * load(out + k), limit), clipped(step * load(in + k), limit), in + k, out + k, sums_in + k,
           sums_out + k);
    }
    const V last_in = load(in + plain), last_out = load(out + plain);
    move(clipped(gradient * with_one(last_out), clip) * rate, clipped(gradient * with_one(last_in), clip) * rate,
         in + plain, out + plain, sums_in + plain, sums_out + plain);
  }

  EMBFAST_INLINE void move(V step_in, V step_out, float* in, float* out, float* sums_in, float* sums_out) {
    V x = load(in), y = load(out), x_sum = load(sums_in), y_sum = load(sums_out);
    adagrad(step_in, inverse_root(x_sum), &x, &x_sum);
    adagrad(step_out, inverse_root(y_sum), &y, &y_sum);
    store(in, x);
    store(out, y);
    store(sums_in, x_sum);
    store(sums_out, y_sum);
  }
};

}  // namespace

void train_group(const GloveJob& job, int64_t group, const GloveScratch& s, GloveTally& tally) {
  const int64_t begin = job.groups[group], n = job.groups[group + 1] - begin;
  shuffle(job, begin, n, s.entry);
  weigh(job, n, s);
  Trainer trainer(job);
  const int64_t width = job.dim + 1;
  const auto fetch = [&](const Entry& e) __attribute__((always_inline)) {
    prefetch(job.row(job.w_in, e.row), width);
    prefetch(job.row(job.sums_in, e.row), width);
    prefetch(job.row(job.w_out, e.column), width);
    prefetch(job.row(job.sums_out, e.column), width);
  };
  for (int64_t i = 0; i < ahead && i < n; ++i) fetch(s.entry[i]);
  for (int64_t i = 0; i < n; ++i) {
    if (i + ahead < n) fetch(s.entry[i + ahead]);
    trainer.train(s.entry[i], s.log[i], s.weight[i]);
  }
  tally.loss += trainer.loss;
  tally.entries += n;
}

}  // namespace embfast::EMBFAST_ISA
