// One block of tokens: subsample, cut into batches, draw ahead, prefetch, train. Compiled once per instruction set.
#include "sequences/windows.h"

namespace embfast::EMBFAST_ISA {

namespace {

constexpr int near_root = 1024;  // as many nodes, from the root down, come by so often that they never leave the caches

// Keeps each token of the block with its word's probability; returns how many, and how many sentences hold them.
EMBFAST_INLINE int subsample(const Job& job, int64_t begin, int64_t end, const Scratch& s, int* n_sentences) {
  const Stream draw(job.seed, job.epoch, Purpose::subsample);
  // The document that holds the first token: the last offset at or before it.
  int64_t low = 0, high = job.n_documents;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (job.offsets[middle] <= begin ? low : high) = middle;
  }
  int n = 0, sentences = 0;
  int64_t p = begin;
  for (int64_t document = low; document < job.n_documents && p < end; ++document) {
    const int64_t stop = job.offsets[document + 1] < end ? job.offsets[document + 1] : end;
    const int before = n;
    if (job.keep) {
      for (; p < stop; ++p) {
        s.token[n] = job.ids[p];
        n += static_cast<uint32_t>(draw(p) >> 32) <= job.keep[job.ids[p]];
      }
    } else {
      for (; p < stop; ++p) s.token[n++] = job.ids[p];
    }
    if (n > before) {
      s.document[sentences] = document;
      s.sentence_end[sentences++] = n;
    }
  }
  *n_sentences = sentences;
  return n;
}

// For each kept token how far back the same word stands, when no window is too narrow to hold both.
EMBFAST_INLINE void find_repeats(const Job& job, int n, const Scratch& s) {
  const int reach = 2 * job.window + job.centers - 1;
  for (int p = 0; p < n; p += W) {
    const Ints token = *reinterpret_cast<const UnalignedInts*>(s.token + p);
    Ints back = Ints{} + reach + 1;
    for (int r = reach; r > 0; --r) {
      const Ints same = token == *reinterpret_cast<const UnalignedInts*>(s.token + p - r);
      back = (same & r) | (~same & back);
    }
    *reinterpret_cast<UnalignedInts*>(s.repeat + p) = back;
  }
}

// Cuts the sentences of a block into batches, in order, and hands each its draws.
struct Planner {
  const Job& job;
  const Scratch& s;
  int64_t begin;
  int n_sentences;
  Stream width;
  int64_t next_draw;
  int sentence = 0, first = 0, center = 0;

  EMBFAST_INLINE Planner(const Job& job, const Scratch& s, int64_t begin, int n_sentences)
      : job(job),
        s(s),
        begin(begin),
        n_sentences(n_sentences),
        width(job.seed, job.epoch, Purpose::window),
        next_draw(below(Stream(job.seed, job.epoch, Purpose::place)(begin), static_cast<uint32_t>(job.n_noise))) {}

  EMBFAST_INLINE bool pairs() const { return !job.shared && !job.cbow; }

  // Asks for the center's path, which fetch reads, and for where the path of a later center stands.
  EMBFAST_INLINE void look_up_paths() const {
    const int last = s.sentence_end[n_sentences - 1] - 1, later = center + batches_in_flight;
    __builtin_prefetch(job.path_offsets + s.token[later < last ? later : last]);
    const int64_t path = job.path_offsets[s.token[center]];
    __builtin_prefetch(job.path_nodes + path);
    __builtin_prefetch(job.path_nodes + path + 16);
    __builtin_prefetch(job.path_codes + path);
  }

  // The next batch, into b; false at the end of the block.
  EMBFAST_INLINE bool plan(Batch& b) {
    if (sentence == n_sentences) return false;
    b.first = first, b.last = s.sentence_end[sentence], b.center = center, b.n_tags = 0;
    if (job.w_docs.data) {
      const int64_t* ends = job.tag_offsets + s.document[sentence];
      b.tags = job.tags + ends[0], b.n_tags = static_cast<int>(ends[1] - ends[0]);
    }
    b.n_centers = b.last - center < job.centers ? b.last - center : job.centers;
    // Kept tokens never outrun raw ones, so the place is unique in the corpus.
    b.radius = job.shrink ? 1 + static_cast<int>(below(width(begin + center), job.window)) : job.window;
    const int64_t draws = int64_t{job.drawn} * (pairs() ? right(b, center) - left(b, center) - 1 : 1);
    if (next_draw + draws > job.n_noise) next_draw = 0;
    b.drawn = job.noise + next_draw;
    next_draw += draws;
    if (job.w_nodes.data) look_up_paths();
    center += b.n_centers;
    if (center == b.last) {
      first = center;
      ++sentence;
    }
    return true;
  }

  // The rows that a batch is the first to need. Each kept token enters the windows once, on the right; tags with the
  // first batch.
  EMBFAST_INLINE void fetch(const Batch& b, Ahead& ahead) const {
    for (int k = 0; !pairs() && k < job.drawn; ++k) soon(ahead, job.w_out[b.drawn[k]], job.w_out.dim);
    for (int i = 0; b.center == b.first && i < b.n_tags; ++i) soon(ahead, job.w_docs[b.tags[i]], job.width);
    for (int t = 0; t < b.n_centers; ++t) {
      const int32_t word = s.token[b.center + t];
      if (job.w_out.data) soon(ahead, job.w_out[word], job.w_out.dim);
      if (job.w_nodes.data) {
        for (int64_t j = job.path_offsets[word]; j < job.path_offsets[word + 1]; ++j) {
          const int32_t node = job.path_nodes[j];
          if (job.path_nodes[0] - node >= near_root) soon(ahead, node_row(job, s, node), job.w_nodes.dim);
        }
      }
      if (job.words) soon(ahead, job.w_in[s.token[b.center + t + job.window]], job.width);
    }
  }
};

// The top of the tree, which every path goes through, would travel between the cores at each step. Each thread changes
// copies of its own, and adds what changed to the shared rows: the nearer to the root the more often, so that each row
// takes about top_steps steps in between, and all rows at the end of a block.
struct Top {
  const Job& job;
  const Scratch& s;
  int64_t turn = 0;

  EMBFAST_INLINE Top(const Job& job, const Scratch& s) : job(job), s(s) {
    each(s.n_top, [&](float* shared, float* copy, float* before) __attribute__((always_inline)) {
      store(copy, load(shared));
      store(before, load(shared));
    });
  }

  // The first n rows from the root downwards.
  EMBFAST_INLINE void merge(int64_t n) const {
    each(n, [&](float* shared, float* copy, float* before) __attribute__((always_inline)) {
      const V now = load(shared) + (load(copy) - load(before));
      store(shared, now);
      store(copy, now);
      store(before, now);
    });
  }

  EMBFAST_INLINE void step() {
    if (s.n_top == 0 || ++turn % s.top_steps != 0) return;
    const int64_t n = turn / s.top_steps;
    merge((n & -n) < s.n_top ? n & -n : s.n_top);
  }

  template <class F>
  EMBFAST_INLINE void each(int64_t n, F&& f) const {
    for (int64_t i = 0; i < n; ++i) {
      float* const shared = job.w_nodes[job.path_nodes[0] - i];
      const int64_t begin = i * job.hidden_width;
      for (int64_t d = 0; d < job.hidden_width; d += W) f(shared + d, s.top + begin + d, s.top_before + begin + d);
    }
  }
};

}  // namespace

void train_block(const Job& job, int64_t block, const Scratch& s, Tally& tally) {
  const int64_t begin = job.blocks[block], end = job.blocks[block + 1];
  int n_sentences = 0;
  const int n = subsample(job, begin, end, s, &n_sentences);
  for (int p = 0; p < job.window + max_centers; ++p) s.token[n + p] = 0;
  find_repeats(job, n, s);
  const double done = static_cast<double>(job.tokens_before + begin) / static_cast<double>(job.tokens_total);
  Ahead later{s.ahead, 0};
  Trainer trainer{job, s, later, linear_decay(job.lr_first, job.lr_last, done), zero(), 0};
  Planner planner(job, s, begin, n_sentences);
  Top top(job, s);
  int64_t planned = 0, fetched = 0, trained = 0;
  bool more = true;
  while (true) {
    if (more && planned - trained <= batches_ahead) {
      while (planned - trained < batches_in_flight && (more = planner.plan(s.flight[planned % batches_in_flight]))) {
        ++planned;
      }
    }
    for (; fetched < planned && fetched <= trained + batches_ahead; ++fetched) {
      planner.fetch(s.flight[fetched % batches_in_flight], later);
    }
    if (trained == planned) break;
    const Batch& b = s.flight[trained++ % batches_in_flight];
    if (job.cbow) {
      trainer.cbow(b);
    } else if (job.shared) {
      trainer.skip_gram(b);
    } else {
      trainer.skip_gram_pairs(b);
    }
    while (later.n > 0) later.prefetch_last(job.width);  // nothing was trained that would have asked for them
    top.step();
  }
  top.merge(s.n_top);
  tally.loss += sum(trainer.loss);
  tally.examples += trainer.examples;
  tally.kept += n;
}

}  // namespace embfast::EMBFAST_ISA
