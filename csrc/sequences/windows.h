// Windows over the kept tokens of a block: they pair input rows with output rows.
// Sources: Mikolov et al. 2013, arXiv:1301.3781 (skip-gram, CBOW) and arXiv:1310.4546; Ji et al. 2016,
// arXiv:1604.04661 (the pairs of a window share their negatives). Here all centers of a batch share them.
// Tags of documents: Le & Mikolov 2014, arXiv:1405.4053.
#pragma once

#include "sequences/cbow.h"
#include "sequences/outputs.h"
#include "sequences/passes.h"

namespace embfast::EMBFAST_ISA {

EMBFAST_INLINE int left(const Batch& b, int center) {
  return center - b.radius > b.first ? center - b.radius : b.first;
}
EMBFAST_INLINE int right(const Batch& b, int center) {
  return center + b.radius + 1 < b.last ? center + b.radius + 1 : b.last;
}

// The row of an inner node, or the thread's copy of it. The root has the largest number.
EMBFAST_INLINE float* node_row(const Job& job, const ThreadMemory& memory, int32_t node) {
  const int64_t below = job.path_nodes[0] - node;
  return below < memory.n_copies ? memory.node_copy + below * job.hidden_width : job.w_nodes[node];
}

// Queues a row for prefetching. L1 cannot hold a batch of long rows (PV-DM with concatenation): for these, one line in
// four is prefetched into L2 at once, and the hardware prefetcher loads the rest.
EMBFAST_INLINE void enqueue(PrefetchQueue& queue, float* row, int64_t dim) {
  if (dim <= 512) {
    queue.row[queue.n++] = row;
  } else {
    for (int64_t d = 0; d < dim; d += 64) __builtin_prefetch(row + d, 0, 2);
  }
}

struct Trainer {
  const Job& job;
  const ThreadMemory& memory;
  PrefetchQueue& queue;
  float lr;
  V loss;
  int64_t examples;

  EMBFAST_INLINE Product product(int n_in, int n_out) const {
    return {memory.in,   n_in,         memory.out, n_out, memory.weight, memory.label, memory.delta,
            memory.step, memory.pairs, job.width,  lr,    &queue};
  }

  EMBFAST_INLINE const Updates& update() const { return job.frozen ? frozen_updates : trained_updates; }

  EMBFAST_INLINE void train(const Product& m, GradientTo to) {
    if (m.n_out > max_tile) {
      const Tiles tiles{memory.tile_weight, memory.tile_label, memory.tile_step, memory.rows, memory.column};
      loss += train_tiles(m, memory.weight, memory.label, to, update(), tiles);
    } else {
      loss += score(m);
      update()(m, to);
    }
  }

  EMBFAST_INLINE void pad(int n) const {
    for (int p = 0; p < W; ++p) memory.weight[n + p] = memory.label[n + p] = 0.0f;
  }

  EMBFAST_INLINE int path_length(int32_t word) const {
    return job.w_nodes.data ? static_cast<int>(job.path_offsets[word + 1] - job.path_offsets[word]) : 0;
  }

  // The outputs of a batch; fills memory.out with their rows.
  EMBFAST_INLINE Outputs gather_outputs(const int32_t* center, int n_centers, const int32_t* drawn) const {
    const bool sampling = job.w_out.data != nullptr;
    const int n_path = path_length(*center);
    const int64_t path = n_path ? job.path_offsets[*center] : 0;
    int n = 0;
    for (int j = 0; j < n_path; ++j) memory.out[n++] = node_row(job, memory, job.path_nodes[path + j]);
    for (int t = 0; sampling && t < n_centers; ++t) memory.out[n++] = job.w_out[center[t]];
    for (int k = 0; sampling && k < job.drawn; ++k) memory.out[n++] = job.w_out[drawn[k]];
    return {job.path_codes + path,    n_path,   center, sampling ? n_centers : 0, drawn,
            sampling ? job.drawn : 0, job.scale};
  }

  // Whether the kept tokens first..last are distinct words.
  EMBFAST_INLINE bool distinct(int first, int last) const {
    Ints again{};
    for (int p = first; p < last; p += W) {
      const Ints at = iota() + (p - first);
      const Ints back = *reinterpret_cast<const UnalignedInts*>(memory.repeat + p);
      again |= (back <= at) & (at < last - first);
    }
    return !any(again);
  }

  // Whether a negative equals one of the centers.
  EMBFAST_INLINE bool collide(const int32_t* center, int n_centers, const int32_t* drawn) const {
    bool same = false;  // one by one: whole registers would read past the end of the noise pool
    for (int k = 0; k < job.drawn; ++k) {
      for (int t = 0; t < n_centers; ++t) same |= drawn[k] == center[t];
    }
    return same;
  }

  EMBFAST_INLINE bool distinct_draws(const int32_t* drawn) const {
    bool twice = false;
    for (int k = 1; k < job.drawn; ++k) {
      for (int j = 0; j < k; ++j) twice |= drawn[j] == drawn[k];
    }
    return !twice;
  }

  // Puts the rows of the batch's tags first among the input rows. Returns their number.
  EMBFAST_INLINE int gather_tags(const Batch& b) const {
    for (int i = 0; i < b.n_tags; ++i) memory.in[i] = job.w_docs[b.tags[i]];
    return b.n_tags;
  }

  // Appends to the n input rows those of the kept tokens first..last, except the one at position `skipped`. A word that
  // occurs twice gets one row. For token i, counted from n, put(row, i) is called if its row is new, and add(row, i) if
  // it is not. Returns the new number of rows.
  template <class Put, class Add>
  EMBFAST_INLINE int gather_inputs(int n, int first, int last, int skipped, Put&& put, Add&& add) const {
    int i = n;
    for (int p = first; p < last; ++p) {
      const int twin = p - memory.repeat[p];
      int row = twin >= first ? memory.word[twin - first] : -1;
      if (p != skipped) {
        if (row < 0) {
          memory.in[row = n++] = job.w_in[memory.token[p]];
          put(row, i);
        } else {
          add(row, i);
        }
        ++i;
      }
      memory.word[p - first] = row;
    }
    return n;
  }

  // The window of one center against its path. The weight of a row is the number of occurrences of its word.
  EMBFAST_INLINE void skip_gram_path(const Batch& b, int first, int last, int n_path) {
    float* const occurrences = memory.tile_weight;
    const auto put = [&](int row, int) __attribute__((always_inline)) { occurrences[row] = 1.0f; };
    const auto add = [&](int row, int) __attribute__((always_inline)) { occurrences[row] += 1.0f; };
    for (int i = 0; i < b.n_tags; ++i) occurrences[i] = 1.0f;
    const int n_in = gather_inputs(gather_tags(b), first, last, b.center, put, add);
    if (n_in == 0) return;
    examples += b.n_tags + (job.words ? last - first - 1 : 0);
    const uint8_t* codes = job.path_codes + job.path_offsets[memory.token[b.center]];
    loss += sweep_tiles(product(n_in, 0), memory.out, n_path, memory.tile_step, GradientTo::row, update(),
                        [&](int begin, int width) {
                          float label[max_tile + W];
                          for (int j = 0; j < width; ++j) label[j] = 1.0f - codes[begin + j];
                          // Whole registers: the next row overwrites what passes the end of this one.
                          for (int row = 0; row < n_in; ++row) {
                            for (int j = 0; j < width; j += W) {
                              store_unaligned(memory.weight + row * width + j, splat(occurrences[row]));
                              store_unaligned(memory.label + row * width + j, load_unaligned(label + j));
                            }
                          }
                          pad(n_in * width);
                        });
  }

  EMBFAST_INLINE void skip_gram(const Batch& b) {
    const int first = job.words ? left(b, b.center) : b.center;
    const int last = job.words ? right(b, b.center + b.n_centers - 1) : first;
    const int32_t* center = memory.token + b.center;
    const Outputs outputs = gather_outputs(center, b.n_centers, b.drawn);
    const int n_path = outputs.n_path, n_out = outputs.n();
    const bool is_full = b.n_centers == job.centers && (!job.words || last - first == b.n_centers + 2 * b.radius);
    const int skipped = b.n_centers > 1 ? -1 : b.center;  // several centers are in each other's windows
    if (is_full && n_path == 0 && n_out <= max_tile && !collide(center, b.n_centers, b.drawn)) {
      Product full = product(gather_tags(b), n_out);
      full.label = memory.full_label;
      const float* weight = memory.full_weight[b.radius] + (job.most_tags - b.n_tags) * n_out;
      examples += (b.n_tags + (job.words ? 2 * b.radius : 0)) * b.n_centers;
      if (!job.words) {
        if (b.n_tags == 0) return;
        full.weight = weight;
        if (b.n_tags == 1 && distinct(b.center, b.center + b.n_centers) && distinct_draws(b.drawn)) {
          loss += (job.frozen ? frozen_pair : pair)(full);
          return;
        }
      } else if (distinct(first, last)) {
        for (int p = first; p < last; ++p) {
          if (p != skipped) memory.in[full.n_in++] = job.w_in[memory.token[p]];
        }
        full.weight = weight;
      } else {
        const auto put = [&](int row, int i) __attribute__((always_inline)) {
          for (int j = 0; j < n_out; j += W) {
            store_unaligned(memory.weight + row * n_out + j, load_unaligned(weight + i * n_out + j));
          }
        };
        const auto add = [&](int row, int i) __attribute__((always_inline)) {
          for (int j = 0; j < n_out; ++j) memory.weight[row * n_out + j] += weight[i * n_out + j];
        };
        for (int i = 0; i < b.n_tags; ++i) put(i, i);
        full.n_in = gather_inputs(b.n_tags, first, last, skipped, put, add);
        pad(full.n_in * n_out);
      }
      train(full, GradientTo::row);
      return;
    }
    if (n_path > 0 && !job.w_out.data) return skip_gram_path(b, first, last, n_path);
    const int n_in = weigh_window(b, outputs, first, last);
    if (n_in == 0) return;
    pad(n_in * n_out);
    train(product(n_in, n_out), GradientTo::row);
  }

  // Input rows, weights and labels of any skip-gram window: the tags, then the words of the kept tokens first..last. A
  // word gets one row, with the summed weights of its occurrences. Returns the number of rows.
  EMBFAST_INLINE int weigh_window(const Batch& b, const Outputs& outputs, int first, int last) {
    const int n_centers = b.n_centers, n_out = outputs.n();
    float* const shares = memory.tile_weight;
    int n = gather_tags(b);
    examples += n * n_centers;
    for (int i = 0; i < n * n_centers; ++i) shares[i] = 1.0f;
    for (int p = first; p < last; ++p) {
      int row = b.n_tags;
      while (row < n && memory.word[row - b.n_tags] != memory.token[p]) ++row;
      float* const share = shares + row * n_centers;
      for (int t = 0; row == n && t < n_centers; ++t) share[t] = 0.0f;
      const int pairs = add_shares(p, b.center, n_centers, b.radius, share);
      examples += pairs;
      if (row == n && pairs > 0) {
        memory.word[n - b.n_tags] = memory.token[p];
        memory.in[n++] = job.w_in[memory.token[p]];
      }
    }
    for (int i = 0; i < n; ++i) {
      outputs.weigh(shares + i * n_centers, n_centers, memory.weight + i * n_out, memory.label + i * n_out);
    }
    return n;
  }

  // The order of word2vec.c: each (center, context) pair has its own negatives and updates the rows before the next
  // pair.
  EMBFAST_INLINE void skip_gram_pairs(const Batch& b) {
    const int first = left(b, b.center), last = right(b, b.center);
    const int32_t* center = memory.token + b.center;
    const int32_t* drawn = b.drawn;
    for (int p = first; p < last; ++p) {
      if (p == b.center) continue;
      // Negatives are contiguous, so those of the next batch follow, except where reading wraps around the pool.
      const int32_t* later = drawn + pairs_ahead * job.drawn;
      if (later + job.drawn <= job.noise + job.n_noise) {
        for (int k = 0; k < job.drawn; ++k) enqueue(queue, job.w_out[later[k]], job.w_out.dim);
      }
      memory.in[0] = job.w_in[memory.token[p]];
      const Outputs outputs = gather_outputs(center, 1, drawn);
      Product one = product(1, outputs.n());
      if (outputs.n_path == 0 && one.n_out <= max_tile && distinct_draws(drawn) && !collide(center, 1, drawn)) {
        one.weight = memory.full_weight[0], one.label = memory.full_label;
        loss += pair(one);
      } else {
        const float share = 1.0f;
        outputs.weigh(&share, 1, memory.weight, memory.label);
        pad(one.n_out);
        train(one, GradientTo::row);
      }
      drawn += job.drawn;
    }
    examples += last - first - 1;
  }

  EMBFAST_INLINE void cbow(const Batch& b) {
    if (job.concat) return cbow_concat(b);
    const int first = left(b, b.center), last = right(b, b.center + b.n_centers - 1);
    const int32_t* word = memory.token + b.center;
    if (b.n_centers == cbow_centers && last - first == cbow_centers + 2 * b.radius && !job.w_nodes.data &&
        job.drawn > 0 && job.drawn <= max_tile && job.centers == cbow_centers &&
        !collide(word, cbow_centers, b.drawn)) {
      const float share = 1.0f / static_cast<float>(2 * b.radius + b.n_tags);
      Cbow windows{product(last - first, job.drawn), memory.rows, b.radius, b.n_tags, job.mean ? share : 1.0f,
                   job.mean ? 1.0f : share};
      windows.weight = memory.full_weight[0], windows.label = memory.full_label;
      for (int p = first; p < last; ++p) memory.in[p - first] = job.w_in[memory.token[p]];
      for (int i = 0; i < b.n_tags; ++i) memory.in[last - first + i] = job.w_docs[b.tags[i]];
      for (int k = 0; k < job.drawn; ++k) memory.out[k] = job.w_out[b.drawn[k]];
      for (int t = 0; t < cbow_centers; ++t) memory.rows[t] = job.w_out[word[t]];
      loss += (job.frozen ? frozen_cbow_windows : cbow_windows)(windows);
      examples += cbow_centers;
    } else {
      cbow_piecewise(b);
    }
  }

  // CBOW with any windows. Each hidden row predicts one center; the other centers are columns of weight 0.
  EMBFAST_INLINE void cbow_piecewise(const Batch& b) {
    const int64_t dim = job.width;
    int center[max_centers], n = 0;
    float share[max_centers];
    for (int c = b.center; c < b.center + b.n_centers; ++c) {
      int n_rows = 0;
      for (int i = 0; i < b.n_tags; ++i) memory.rows[n_rows++] = job.w_docs[b.tags[i]];
      for (int p = left(b, c); p < right(b, c); ++p) {
        if (p != c) memory.rows[n_rows++] = job.w_in[memory.token[p]];
      }
      if (n_rows == 0) continue;
      share[n] = 1.0f / static_cast<float>(n_rows);
      memory.in[n] = memory.hidden + n * dim;
      sum_rows(memory.in[n], memory.rows, n_rows, dim, job.mean ? share[n] : 1.0f);
      center[n++] = c;
    }
    if (n == 0) return;
    train(hidden_product(b, center, n), GradientTo::delta);
    if (!job.mean) {
      for (int r = 0; r < n; ++r) {
        float* delta = memory.delta + r * dim;
        sum_rows(delta, &delta, 1, dim, share[r]);
      }
    }
    for (int r = 0; r < n; ++r) memory.rows[r] = memory.delta + r * dim;
    for (int i = 0; i < b.n_tags; ++i) add_rows(job.w_docs[b.tags[i]], memory.rows, n, dim);
    if (job.frozen) return;
    for (int p = left(b, b.center); p < right(b, b.center + b.n_centers - 1); ++p) {
      int n_rows = 0;
      for (int r = 0; r < n; ++r) {
        const int distance = p - center[r];
        if (distance != 0 && distance <= b.radius && -distance <= b.radius)
          memory.rows[n_rows++] = memory.delta + r * dim;
      }
      add_rows(job.w_in[memory.token[p]], memory.rows, n_rows, dim);
    }
  }

  // The n hidden rows in memory.in, one per center, against the outputs of the batch.
  EMBFAST_INLINE Product hidden_product(const Batch& b, const int* center, int n) {
    examples += n;
    const int32_t* word = memory.token + b.center;
    const Outputs outputs = gather_outputs(word, b.n_centers, b.drawn);
    const int n_out = outputs.n();
    for (int r = 0; r < n; ++r) {
      float share[max_centers] = {};
      share[center[r] - b.center] = 1.0f;
      outputs.weigh(share, b.n_centers, memory.weight + r * n_out, memory.label + r * n_out);
    }
    pad(n * n_out);
    return product(n, n_out);
  }

  // A hidden row concatenates the rows of the tags and of the words around a center; each row gets its part of the
  // gradient.
  EMBFAST_INLINE void cbow_concat(const Batch& b) {
    const int64_t dim = job.width;
    const int n_parts = b.n_tags + 2 * job.window;
    const auto part = [&](int c, int i) __attribute__((always_inline)) {
      if (i < b.n_tags) return job.w_docs[b.tags[i]];
      const int o = i - b.n_tags, p = c - job.window + o + (o >= job.window);
      return job.w_in[p < b.first || p >= b.last ? job.w_in.n - 1 : memory.token[p]];
    };
    int center[max_centers];
    for (int t = 0; t < b.n_centers; ++t) {
      center[t] = b.center + t;
      memory.in[t] = memory.hidden + t * job.hidden_width;
      for (int i = 0; i < n_parts; ++i) {
        float* row = part(center[t], i);
        sum_rows(memory.in[t] + i * dim, &row, 1, dim, 1.0f);
      }
    }
    Product wide = hidden_product(b, center, b.n_centers);
    wide.dim = job.hidden_width;
    train(wide, GradientTo::delta);
    for (int t = 0; t < b.n_centers; ++t) {
      float* delta = memory.delta + t * job.hidden_width;
      for (int i = 0; i < (job.frozen ? b.n_tags : n_parts); ++i, delta += dim) {
        add_rows(part(center[t], i), &delta, 1, dim);
      }
    }
  }
};

}  // namespace embfast::EMBFAST_ISA
