// Distributes blocks over threads and chooses the instruction set.
#include "sequences/sequences.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "core/isa.h"
#include "core/threads.h"
#include "sequences/outputs.h"

namespace embfast {

namespace {

constexpr int64_t copied_floats = 1 << 18;  // a thread's copies of nodes: 1 MB, and the same for their values before
constexpr int merge_steps = 16;  // unmerged steps of all threads together: they add up, and too many overshoot
constexpr int pad = 32;          // floats past the end that a whole-register store may touch

// One allocation for all arrays of a thread; each array starts on a cache line.
class Arena {
 public:
  template <class T>
  void claim(T** pointer, int64_t n) {
    requests_.push_back({reinterpret_cast<void**>(pointer), size_});
    size_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
  void allocate() {
    memory_.reset(static_cast<char*>(::operator new(size_, std::align_val_t{64})));
    std::fill_n(memory_.get(), size_, 0);
    for (const Request& r : requests_) *r.pointer = memory_.get() + r.offset;
  }

 private:
  struct Request {
    void** pointer;
    int64_t offset;
  };
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::vector<Request> requests_;
  int64_t size_ = 0;
  std::unique_ptr<char, Free> memory_;
};

struct Thread {
  ThreadMemory memory{};
  Arena arena;
  Tally tally;

  explicit Thread(const Job& job, int threads) {
    const int64_t n_in = job.centers + 2 * int64_t{job.window} + job.most_tags;
    const int64_t n_out = job.longest_path + job.centers + job.drawn;
    const int64_t pairs = n_in * n_out + pad, steps = n_in * n_out + (n_out + 1) * pad;
    if (threads > 1 && job.w_nodes.data && !job.frozen) {
      memory.merge_interval = std::max(1, merge_steps / threads);
      memory.n_copies = std::min<int64_t>(copied_floats / job.hidden_width, job.path_nodes[0] + 1);
      arena.claim(&memory.node_copy, memory.n_copies * job.hidden_width);
      arena.claim(&memory.node_before, memory.n_copies * job.hidden_width);
    }
    const int64_t tokens = job.longest_block + 2 * (2 * int64_t{job.window} + max_centers + pad);
    arena.claim(&memory.token, tokens);
    arena.claim(&memory.repeat, tokens);
    arena.claim(&memory.flight, batches_in_flight);
    arena.claim(&memory.sentence_end, job.longest_block);
    arena.claim(&memory.document, job.longest_block);
    arena.claim(&memory.word, n_in);
    arena.claim(&memory.column, n_out);
    arena.claim(&memory.in, n_in);
    arena.claim(&memory.out, n_out);
    arena.claim(&memory.rows, std::max(n_in, n_out));
    for (float** p : {&memory.weight, &memory.label, &memory.tile_weight, &memory.tile_label}) arena.claim(p, pairs);
    for (float** p : {&memory.step, &memory.tile_step}) arena.claim(p, steps);
    arena.claim(&memory.hidden, job.centers * job.hidden_width);
    arena.claim(&memory.delta, std::max(n_in * job.width, job.centers * job.hidden_width));
    arena.claim(&memory.pairs, std::max(max_tile * job.hidden_width / 2, 16 * (n_in + 1)));
    arena.claim(&memory.prefetch_rows,
                (batches_ahead + 1) * (job.centers * (job.longest_path + 2) + job.drawn + job.most_tags));
    arena.allocate();
    memory.token += 2 * job.window + max_centers;
  }
};

// Weights and labels of full batches: all centers present, no window cut by the end of a sentence, no negative equal to
// a center, and one row per position. Skip-gram with shared negatives has one set per radius (first most_tags rows for
// tags, then the words), CBOW one set (all hidden rows against each negative, then against their centers), and pairs
// have one.
struct FullBatchWeights {
  std::vector<float> label;
  std::vector<std::vector<float>> weight;
  std::vector<const float*> by_radius;

  explicit FullBatchWeights(const Job& job) {
    const int widest = job.centers + 2 * job.window, n_out = job.centers + job.drawn;
    const int64_t tag_entries = job.most_tags * n_out;
    label.assign(tag_entries + widest * n_out + pad, 0.0f);
    weight.assign(job.window + 1, std::vector<float>());
    if (job.cbow) {
      weight[0].assign(job.centers * job.drawn, job.scale);
      weight[0].resize(job.centers * (job.drawn + 1), 1.0f);
      weight[0].resize(job.centers * (job.drawn + 1) + pad, 0.0f);
      std::fill_n(label.begin() + job.centers * job.drawn, job.centers, 1.0f);
    } else if (!job.shared) {
      weight[0].assign(n_out, job.scale);
      weight[0].resize(n_out + pad, 0.0f);
      weight[0][0] = label[0] = 1.0f;
    } else {
      const std::vector<int32_t> center(job.centers, 0), drawn(job.drawn, -1);  // no negative equals a center
      const Outputs outputs{nullptr, 0, center.data(), job.centers, drawn.data(), job.drawn, job.scale};
      for (int radius = 1; radius <= job.window; ++radius) {
        weight[radius].assign(tag_entries + widest * n_out + pad, 0.0f);
        float *w = weight[radius].data(), *l = label.data();
        const auto add_row = [&](const std::vector<float>& share) {
          outputs.weigh(share.data(), job.centers, w, l);
          w += n_out, l += n_out;
        };
        for (int64_t i = 0; i < job.most_tags; ++i) add_row(std::vector<float>(job.centers, 1.0f));
        for (int p = 0; job.words && p < job.centers + 2 * radius; ++p) {
          std::vector<float> share(job.centers, 0.0f);
          if (add_shares(p, radius, job.centers, radius, share.data()) > 0) add_row(share);
        }
      }
    }
    for (const auto& w : weight) by_radius.push_back(w.data());
  }
};

}  // namespace

// Runs steps first..last of a job; each is taken by the next free thread.
template <class Step>
static Tally on_threads(const Job& job, int threads, int64_t first, int64_t last, Step&& step) {
  std::unique_ptr<FullBatchWeights> full;
  if (job.w_out.data) full = std::make_unique<FullBatchWeights>(job);
  std::atomic<int64_t> next{first};
  std::vector<std::unique_ptr<Thread>> workers;
  for (int t = 0; t < threads; ++t) {
    workers.push_back(std::make_unique<Thread>(job, threads));
    if (full) {
      workers.back()->memory.full_label = full->label.data();
      workers.back()->memory.full_weight = full->by_radius.data();
    }
  }
  in_threads(threads, [&](int t) {
    Thread& mine = *workers[t];
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < last;) step(i, mine.memory, mine.tally);
  });
  Tally total;
  for (const auto& worker : workers) {
    total.loss += worker->tally.loss;
    total.examples += worker->tally.examples;
    total.kept += worker->tally.kept;
  }
  return total;
}

// The job with rows trimmed to the registers of this machine that `dim` floats fill. With concat, rows keep their
// padding.
static Job trimmed(Job job) {
  const int64_t width = isa::width();
  if (!job.concat) job.width = job.hidden_width = (job.dim + width - 1) / width * width;
  return job;
}

Tally train_sequences(const Job& given, int threads) {
  const Job job = trimmed(given);
  const TrainBlock train = EMBFAST_CHOOSE_BF16(train_block);
  return on_threads(job, threads, job.first_block, job.last_block,
                    [&](int64_t block, const ThreadMemory& memory, Tally& tally) { train(job, block, memory, tally); });
}

Tally infer_documents(const Job& given, int epochs, int averaged, int threads) {
  const Job job = trimmed(given);
  const TrainBlock train = EMBFAST_CHOOSE_BF16(train_block);
  const std::vector<int32_t> tags(job.most_tags);  // all are tag 0
  return on_threads(job, threads, 0, job.n_documents, [&](int64_t document, const ThreadMemory& memory, Tally& tally) {
    float* const row = job.w_docs[document];
    std::fill_n(row, job.width, 0.0f);
    const int64_t n = job.offsets[document + 1] - job.offsets[document];
    if (n == 0) return;
    // A corpus that consists of this document alone, with its own seed.
    const int64_t ends[] = {0, n}, tag_ends[] = {0, job.most_tags};
    Job one = job;
    one.ids = job.ids + job.offsets[document];
    one.offsets = one.blocks = ends, one.n_documents = 1, one.longest_block = n;
    one.tag_offsets = tag_ends, one.tags = tags.data();
    one.w_docs.data = row, one.w_docs.n = 1;
    for (int64_t p = 0; p < n; ++p) one.seed = mix64(one.seed + Stream::golden + static_cast<uint64_t>(one.ids[p]));
    const Stream draw(one.seed, 0, Purpose::weights);
    for (int64_t i = 0; i < job.dim; ++i) {
      const auto uniform = static_cast<float>(draw(i) >> 40) * 0x1p-24f;
      row[i] = (uniform - 0.5f) / static_cast<float>(job.dim);
    }
    std::vector<float> sum(job.width);
    one.tokens_total = epochs * n;
    for (int epoch = 0; epoch < epochs; ++epoch) {
      one.epoch = epoch, one.tokens_before = epoch * n;
      train(one, 0, memory, tally);
      for (int64_t i = 0; epoch >= epochs - averaged && i < job.width; ++i) sum[i] += row[i];
    }
    for (int64_t i = 0; i < job.width; ++i) row[i] = sum[i] / static_cast<float>(averaged);
  });
}

}  // namespace embfast
