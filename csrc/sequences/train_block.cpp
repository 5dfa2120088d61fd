// One block of tokens: subsample, cut into batches, assign negatives, prefetch, train. Compiled once per instruction
// set.
#include "sequences/windows.h"

namespace embfast::EMBFAST_ISA {

namespace {

constexpr int near_root = 1024;  // nodes nearest to the root: used so often that they stay in the caches

// Keeps each token of the block with the probability of its word. Returns the number of kept tokens, and of sentences.
EMBFAST_INLINE int subsample(const Job& job, int64_t begin, int64_t end, const ThreadMemory& memory, int* n_sentences) {
  const Stream draw(job.seed, job.epoch, Purpose::subsample);
  // The document of the first token: the last offset at or before it.
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
        memory.token[n] = job.ids[p];
        n += static_cast<uint32_t>(draw(p) >> 32) <= job.keep[job.ids[p]];
      }
    } else {
      for (; p < stop; ++p) memory.token[n++] = job.ids[p];
    }
    if (n > before) {
      memory.document[sentences] = document;
      memory.sentence_end[sentences++] = n;
    }
  }
  *n_sentences = sentences;
  return n;
}

// For each kept token, the distance back to the same word, if one batch can contain both.
EMBFAST_INLINE void find_repeats(const Job& job, int n, const ThreadMemory& memory) {
  const int reach = 2 * job.window + job.centers - 1;
  for (int p = 0; p < n; p += W) {
    const Ints token = *reinterpret_cast<const UnalignedInts*>(memory.token + p);
    Ints back = Ints{} + reach + 1;
    for (int r = reach; r > 0; --r) {
      const Ints same = token == *reinterpret_cast<const UnalignedInts*>(memory.token + p - r);
      back = (same & r) | (~same & back);
    }
    *reinterpret_cast<UnalignedInts*>(memory.repeat + p) = back;
  }
}

// Cuts the sentences of a block into batches, in order, and assigns negatives to each.
struct Planner {
  const Job& job;
  const ThreadMemory& memory;
  int64_t begin;
  int n_sentences;
  Stream width;
  int64_t next_draw;
  int sentence = 0, first = 0, center = 0;

  EMBFAST_INLINE Planner(const Job& job, const ThreadMemory& memory, int64_t begin, int n_sentences)
      : job(job),
        memory(memory),
        begin(begin),
        n_sentences(n_sentences),
        width(job.seed, job.epoch, Purpose::window),
        next_draw(below(Stream(job.seed, job.epoch, Purpose::place)(begin), static_cast<uint32_t>(job.n_noise))) {}

  EMBFAST_INLINE bool pairs() const { return !job.shared && !job.cbow; }

  // Prefetches the path of the center, which fetch() reads, and the path offset of a later center.
  EMBFAST_INLINE void look_up_paths() const {
    const int last = memory.sentence_end[n_sentences - 1] - 1, later = center + batches_in_flight;
    __builtin_prefetch(job.path_offsets + memory.token[later < last ? later : last]);
    const int64_t path = job.path_offsets[memory.token[center]];
    __builtin_prefetch(job.path_nodes + path);
    __builtin_prefetch(job.path_nodes + path + 16);
    __builtin_prefetch(job.path_codes + path);
  }

  // Writes the next batch to b; returns false at the end of the block.
  EMBFAST_INLINE bool plan(Batch& b) {
    if (sentence == n_sentences) return false;
    b.first = first, b.last = memory.sentence_end[sentence], b.center = center, b.n_tags = 0;
    if (job.w_docs.data) {
      const int64_t* ends = job.tag_offsets + memory.document[sentence];
      b.tags = job.tags + ends[0], b.n_tags = static_cast<int>(ends[1] - ends[0]);
    }
    b.n_centers = b.last - center < job.centers ? b.last - center : job.centers;
    // No more tokens are kept than read, so the index begin + center is unique in the corpus.
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

  // Queues the rows that a batch is the first to need. Each kept token enters the windows once, on the right; tags
  // enter with the first batch.
  EMBFAST_INLINE void fetch(const Batch& b, PrefetchQueue& queue) const {
    for (int k = 0; !pairs() && k < job.drawn; ++k) enqueue(queue, job.w_out[b.drawn[k]], job.w_out.dim);
    for (int i = 0; b.center == b.first && i < b.n_tags; ++i) enqueue(queue, job.w_docs[b.tags[i]], job.width);
    for (int t = 0; t < b.n_centers; ++t) {
      const int32_t word = memory.token[b.center + t];
      if (job.w_out.data) enqueue(queue, job.w_out[word], job.w_out.dim);
      if (job.w_nodes.data) {
        for (int64_t j = job.path_offsets[word]; j < job.path_offsets[word + 1]; ++j) {
          const int32_t node = job.path_nodes[j];
          if (job.path_nodes[0] - node >= near_root) enqueue(queue, node_row(job, memory, node), job.w_nodes.dim);
        }
      }
      if (job.words) enqueue(queue, job.w_in[memory.token[b.center + t + job.window]], job.width);
    }
  }
};

// Every path passes the nodes near the root, so their rows would travel between the cores at each step. Each thread
// therefore trains its own copies and adds their changes to the shared rows: more often the nearer to the root, so that
// each row takes about merge_interval steps between merges; and all rows at the end of a block.
struct RootCopies {
  const Job& job;
  const ThreadMemory& memory;
  int64_t steps = 0;

  EMBFAST_INLINE RootCopies(const Job& job, const ThreadMemory& memory) : job(job), memory(memory) {
    each(memory.n_copies, [&](float* shared, float* copy, float* before) __attribute__((always_inline)) {
      store(copy, load(shared));
      store(before, load(shared));
    });
  }

  // Merges the first n rows, from the root down.
  EMBFAST_INLINE void merge(int64_t n) const {
    each(n, [&](float* shared, float* copy, float* before) __attribute__((always_inline)) {
      const V now = load(shared) + (load(copy) - load(before));
      store(shared, now);
      store(copy, now);
      store(before, now);
    });
  }

  EMBFAST_INLINE void step() {
    if (memory.n_copies == 0 || ++steps % memory.merge_interval != 0) return;
    const int64_t n = steps / memory.merge_interval;
    merge((n & -n) < memory.n_copies ? n & -n : memory.n_copies);
  }

  template <class F>
  EMBFAST_INLINE void each(int64_t n, F&& f) const {
    for (int64_t i = 0; i < n; ++i) {
      float* const shared = job.w_nodes[job.path_nodes[0] - i];
      const int64_t begin = i * job.hidden_width;
      for (int64_t d = 0; d < job.hidden_width; d += W)
        f(shared + d, memory.node_copy + begin + d, memory.node_before + begin + d);
    }
  }
};

}  // namespace

void train_block(const Job& job, int64_t block, const ThreadMemory& memory, Tally& tally) {
  const int64_t begin = job.blocks[block], end = job.blocks[block + 1];
  int n_sentences = 0;
  const int n = subsample(job, begin, end, memory, &n_sentences);
  for (int p = 0; p < job.window + max_centers; ++p) memory.token[n + p] = 0;
  find_repeats(job, n, memory);
  const double done = static_cast<double>(job.tokens_before + begin) / static_cast<double>(job.tokens_total);
  PrefetchQueue queue{memory.prefetch_rows, 0};
  Trainer trainer{job, memory, queue, linear_decay(job.lr_first, job.lr_last, done), zero(), 0};
  Planner planner(job, memory, begin, n_sentences);
  RootCopies copies(job, memory);
  int64_t planned = 0, fetched = 0, trained = 0;
  bool more = true;
  while (true) {
    if (more && planned - trained <= batches_ahead) {
      while (planned - trained < batches_in_flight &&
             (more = planner.plan(memory.flight[planned % batches_in_flight]))) {
        ++planned;
      }
    }
    for (; fetched < planned && fetched <= trained + batches_ahead; ++fetched) {
      planner.fetch(memory.flight[fetched % batches_in_flight], queue);
    }
    if (trained == planned) break;
    const Batch& b = memory.flight[trained++ % batches_in_flight];
    if (job.cbow) {
      trainer.cbow(b);
    } else if (job.shared) {
      trainer.skip_gram(b);
    } else {
      trainer.skip_gram_pairs(b);
    }
    while (queue.n > 0) queue.prefetch_last(job.width);  // no pass has requested them
    copies.step();
  }
  copies.merge(memory.n_copies);
  tally.loss += sum(trainer.loss);
  tally.examples += trainer.examples;
  tally.kept += n;
}

}  // namespace embfast::EMBFAST_ISA
