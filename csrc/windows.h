// Windows over the kept tokens of a block: which input rows meet which output rows.
// Sources: Mikolov et al. 2013, arXiv:1301.3781 (skip-gram, CBOW) and arXiv:1310.4546; Ji et al. 2016,
// arXiv:1604.04661 (one window's pairs share their negatives). Here a batch of neighbouring centers shares them.
#pragma once

#include "output.h"
#include "sequences.h"

namespace embfast::EMBFAST_ISA {

EMBFAST_INLINE int left(const Batch& b, int center) {
  return center - b.radius > b.first ? center - b.radius : b.first;
}
EMBFAST_INLINE int right(const Batch& b, int center) {
  return center + b.radius + 1 < b.last ? center + b.radius + 1 : b.last;
}

struct Trainer {
  const Job& job;
  const Scratch& s;
  float lr;
  V loss;
  int64_t examples;

  EMBFAST_INLINE Block block(int n_in, int n_out) const {
    return {s.in, n_in, s.out, n_out, s.weight, s.label, nullptr, s.delta, s.step, s.own_step, job.w_in.dim, lr};
  }

  EMBFAST_INLINE void train(const Block& b, To to) {
    if (b.n_out > max_tile) {
      loss += train_tiles(b, s.weight, s.label, to, {s.tile_weight, s.tile_label, s.tile_step, s.rows, s.column});
    } else {
      loss += score(b);
      (to == To::row ? move_rows : set_delta)(b);
    }
  }

  EMBFAST_INLINE void pad(int n) const {
    for (int p = 0; p < W; ++p) s.weight[n + p] = s.label[n + p] = 0.0f;
  }

  EMBFAST_INLINE int path_length(int32_t word) const {
    return job.w_nodes.data ? static_cast<int>(job.path_offsets[word + 1] - job.path_offsets[word]) : 0;
  }

  // Output rows in the order of skip_gram_weights: path, centers, negatives. Returns their number.
  EMBFAST_INLINE int gather_outputs(const int32_t* center, int n_centers, int n_path, const int32_t* drawn) const {
    int n = 0;
    for (int j = 0; j < n_path; ++j) s.out[n++] = job.w_nodes[job.path_nodes[job.path_offsets[center[0]] + j]];
    if (!job.w_out.data) return n;
    for (int t = 0; t < n_centers; ++t) s.out[n++] = job.w_out[center[t]];
    for (int k = 0; k < job.drawn; ++k) s.out[n++] = job.w_out[drawn[k]];
    return n;
  }

  // No two of the kept tokens first..last are the same word.
  EMBFAST_INLINE bool distinct(int first, int last) const {
    Ints again{};
    for (int p = first; p < last; p += W) {
      const Ints at = iota() + (p - first);
      const Ints back = *reinterpret_cast<const UnalignedInts*>(s.repeat + p);
      again |= (back <= at) & (at < last - first);
    }
    return !any(again);
  }

  // One of the centers is among the drawn words.
  EMBFAST_INLINE bool collide(const int32_t* center, int n_centers, const int32_t* drawn) const {
    Ints same{};
    for (int k = 0; k < job.drawn; k += W) {
      const Ints word = *reinterpret_cast<const UnalignedInts*>(drawn + k);
      const Ints lane = iota() < job.drawn - k;
      for (int t = 0; t < n_centers; ++t) same |= (word == center[t]) & lane;
    }
    return any(same);
  }

  EMBFAST_INLINE bool distinct_draws(const int32_t* drawn) const {
    bool twice = false;
    for (int k = 1; k < job.drawn; ++k) {
      for (int j = 0; j < k; ++j) twice |= drawn[j] == drawn[k];
    }
    return !twice;
  }

  // A window of distinct words against the path of its center: all weights are 1, and all rows share their labels.
  EMBFAST_INLINE void skip_gram_path(const Batch& b, int first, int last, int n_path) {
    int n_in = 0;
    for (int p = first; p < last; ++p) {
      if (p != b.center) s.in[n_in++] = job.w_in[s.token[p]];
    }
    if (n_in == 0) return;
    examples += n_in;
    const uint8_t* codes = job.path_codes + job.path_offsets[s.token[b.center]];
    loss += sweep_tiles(block(n_in, 0), s.out, n_path, s.tile_step, To::row, [&](int begin, int width) {
      for (int p = 0; p < n_in * width; p += W) store_unaligned(s.weight + p, splat(1.0f));
      float label[max_tile];
      for (int j = 0; j < width; ++j) label[j] = 1.0f - codes[begin + j];
      for (int row = 0; row < n_in; ++row) {
        for (int j = 0; j < width; ++j) s.label[row * width + j] = label[j];
      }
      pad(n_in * width);
    });
  }

  EMBFAST_INLINE void skip_gram(const Batch& b) {
    const int first = left(b, b.center), last = right(b, b.center + b.n_centers - 1);
    const int32_t* center = s.token + b.center;
    const int n_path = path_length(*center);
    const int n_out = gather_outputs(center, b.n_centers, n_path, b.drawn);
    const bool whole = last - first == b.n_centers + 2 * b.radius && b.n_centers == job.centers;
    if (whole && n_path == 0 && n_out <= max_tile && !collide(center, b.n_centers, b.drawn) && distinct(first, last)) {
      int n_in = 0;
      for (int p = first; p < last; ++p) {
        if (b.n_centers > 1 || p != b.center) s.in[n_in++] = job.w_in[s.token[p]];
      }
      Block plain = block(n_in, n_out);
      plain.weight = s.plain_weight[b.radius], plain.label = s.plain_label;
      loss += score(plain);
      move_rows(plain);
      examples += 2 * b.radius * b.n_centers;
      return;
    }
    if (n_path > 0 && !job.w_out.data && distinct(first, last)) return skip_gram_path(b, first, last, n_path);
    const uint8_t* codes = n_path ? job.path_codes + job.path_offsets[*center] : nullptr;
    const int n_in = skip_gram_weights(s.token, first, last, b.center, b.n_centers, b.radius, n_path, codes,
                                       job.w_out.data != nullptr, b.drawn, job.drawn, job.scale, s.word, s.weight,
                                       s.label, &examples);
    if (n_in == 0) return;
    for (int i = 0; i < n_in; ++i) s.in[i] = job.w_in[s.word[i]];
    pad(n_in * n_out);
    train(block(n_in, n_out), To::row);
  }

  // word2vec.c's own order: each (center, context) pair has its own draws and moves the rows before the next looks.
  EMBFAST_INLINE void skip_gram_pair(const Batch& b) {
    const int32_t* center = s.token + b.center;
    const int n_path = path_length(*center);
    const int n_out = gather_outputs(center, 1, n_path, b.drawn);
    s.in[0] = job.w_in[s.token[b.context]];
    ++examples;
    Block pair = block(1, n_out);
    if (n_path == 0 && n_out <= max_tile && !collide(center, 1, b.drawn) && distinct_draws(b.drawn)) {
      pair.weight = s.plain_weight[0], pair.label = s.plain_label;
      loss += score(pair);
      move_pair(pair);
    } else {
      single_weights(*center, n_path, b.drawn);
      pad(n_out);
      train(pair, To::row);
    }
  }

  // Weights and labels of one input row.
  EMBFAST_INLINE void single_weights(int32_t center, int n_path, const int32_t* drawn) const {
    int n = 0;
    const uint8_t* codes = n_path ? job.path_codes + job.path_offsets[center] : nullptr;
    for (int j = 0; j < n_path; ++j, ++n) s.weight[n] = 1.0f, s.label[n] = 1.0f - codes[j];
    if (!job.w_out.data) return;
    s.weight[n] = s.label[n] = 1.0f;
    ++n;
    for (int k = 0; k < job.drawn; ++k, ++n) {
      s.weight[n] = drawn[k] == center ? 0.0f : job.scale;
      s.label[n] = 0.0f;
    }
  }

  EMBFAST_INLINE void cbow(const Batch& b) {
    const int64_t dim = job.w_in.dim;
    int center[max_centers], n = 0;
    float share[max_centers];
    for (int c = b.center; c < b.center + b.n_centers; ++c) {
      int n_rows = 0;
      for (int p = left(b, c); p < right(b, c); ++p) {
        if (p != c) s.rows[n_rows++] = job.w_in[s.token[p]];
      }
      if (n_rows == 0) continue;
      share[n] = 1.0f / static_cast<float>(n_rows);
      s.in[n] = s.hidden + n * dim;
      sum_rows(s.in[n], s.rows, n_rows, dim, job.mean ? share[n] : 1.0f);
      center[n++] = c;
    }
    if (n == 0) return;
    examples += n;
    const int32_t* word = s.token + b.center;
    const int n_path = path_length(*word);
    const bool sampling = job.w_out.data != nullptr;
    if (n_path == 0 && job.drawn > 0 && job.drawn <= max_tile && !collide(word, b.n_centers, b.drawn) &&
        distinct(b.center, b.center + b.n_centers)) {
      for (int k = 0; k < job.drawn; ++k) s.out[k] = job.w_out[b.drawn[k]];
      for (int r = 0; r < n; ++r) s.rows[r] = job.w_out[s.token[center[r]]];
      Block own = block(n, job.drawn);
      own.own = s.rows;
      own.label = s.plain_label;
      if (n == job.centers) {
        own.weight = s.plain_weight[0];
      } else {
        for (int p = 0; p < n * job.drawn; ++p) s.weight[p] = job.scale;
        for (int p = 0; p < W; ++p) s.weight[n * job.drawn + p] = 0.0f;
      }
      loss += score_with_own(own);
      set_delta_with_own(own);
    } else {
      // Each hidden row has one center of its own; the other centers are columns of weight 0.
      const int n_out = gather_outputs(word, b.n_centers, n_path, b.drawn);
      for (int r = 0; r < n; ++r) {
        float *w = s.weight + r * n_out, *l = s.label + r * n_out;
        const uint8_t* codes = n_path ? job.path_codes + job.path_offsets[*word] : nullptr;
        for (int j = 0; j < n_path; ++j) *w++ = 1.0f, *l++ = 1.0f - codes[j];
        if (!sampling) continue;
        for (int t = 0; t < b.n_centers; ++t) *w++ = b.center + t == center[r] ? 1.0f : 0.0f, *l++ = 1.0f;
        for (int k = 0; k < job.drawn; ++k) *w++ = b.drawn[k] == s.token[center[r]] ? 0.0f : job.scale, *l++ = 0.0f;
      }
      pad(n * n_out);
      train(block(n, n_out), To::delta);
    }
    if (!job.mean) {
      for (int r = 0; r < n; ++r) {
        float* delta = s.delta + r * dim;
        sum_rows(delta, &delta, 1, dim, share[r]);
      }
    }
    for (int p = left(b, b.center); p < right(b, b.center + b.n_centers - 1); ++p) {
      int n_rows = 0;
      for (int r = 0; r < n; ++r) {
        const int distance = p - center[r];
        if (distance != 0 && distance <= b.radius && -distance <= b.radius) s.rows[n_rows++] = s.delta + r * dim;
      }
      add_rows(job.w_in[s.token[p]], s.rows, n_rows, dim);
    }
  }
};

}  // namespace embfast::EMBFAST_ISA
