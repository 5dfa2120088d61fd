// Training on sequences of ids on a device: the windows and outputs of sequences.h, one center at a time.
// A thread block takes a piece of the text. It reads each input row once, when its word enters the window, trains a
// copy in a ring of rows, and adds the change to the table when the word leaves. Each output row is read once per
// center, and its change is added once. The rows of a window are processed in sequence, in groups of four. Sources:
// sequences.h; reuse of rows along a sentence as in FULL-W2V (Randall et al. 2023, arXiv:2312.07743).
#include "core/device.h"
#include "sequences/job.h"

namespace embfast {

// One launch: the settings, and the addresses on the device (device/sequences.py has them in this order). Tables have
// `pitch` float4 per row; tokens, documents and pieces are numbered from the first one of the chunk that was sent.
struct DeviceJob : SequenceJob {
  float4 *w_in, *w_out, *w_nodes, *w_docs;  // as in Job of sequences.h
  const int32_t* ids;
  const int64_t* offsets;  // offsets of documents in the corpus; the first is at or before the first token
  const int64_t* pieces;   // edges of the pieces in the corpus
  const uint32_t* keep;    // as in Job
  const AliasCell* noise;  // n_words cells
  const int64_t* path_offsets;
  const int32_t* path_nodes;
  const uint8_t* path_codes;
  const int64_t* tag_offsets;  // for all documents of the corpus; null: document d has the tag d
  const int32_t* tags;
  const uint64_t* seeds;   // one per piece, which then draws and decays like a separate corpus; or null
  int32_t* kept;           // one per token: those of a piece that are kept; ~id where a document begins
  int32_t* kept_document;  // document of a token that begins one, less first_document; null without w_docs
  int32_t* n_kept;         // kept tokens of each piece
  float4* rings;           // rows x 2 x pitch per thread block, if shared memory is too small; or null
  struct DeviceTally* tally;
  int64_t first_token, first_document, n_documents, n_pieces;
  int32_t pitch, most_tags;
};

struct DeviceTally {
  double loss;
  unsigned long long examples, kept;
};

// Centers after which the change of a tag's row is added to the table: other thread blocks change the row too.
constexpr int tag_centers = 16;

// Fills kept, kept_document and n_kept: one warp per piece, one lane per token.
extern "C" __global__ void keep_tokens(const DeviceJob job) {
  const int lane = static_cast<int>(threadIdx.x % lanes);
  const int64_t warps = int64_t{gridDim.x} * (blockDim.x / lanes);
  for (int64_t piece = int64_t{blockIdx.x} * (blockDim.x / lanes) + threadIdx.x / lanes; piece < job.n_pieces;
       piece += warps) {
    const int64_t begin = job.pieces[piece], end = job.pieces[piece + 1];
    const Stream draw(job.seeds ? job.seeds[piece] : job.seed, job.epoch, Purpose::subsample);
    const int64_t origin = job.seeds ? begin : 0;
    // The document of the first token: the last offset at or before it.
    int64_t document = 0, high = job.n_documents;
    while (high - document > 1) {
      const int64_t middle = (document + high) / 2;
      (job.offsets[middle] <= begin ? document : high) = middle;
    }
    int64_t before = -1;  // document of the last token that was kept
    int n = 0;
    for (int64_t first = begin; first < end; first += lanes) {
      const int64_t p = first + lane;
      bool kept = p < end;
      int32_t id = 0;
      if (kept) {
        id = job.ids[p - job.first_token];
        if (job.keep) kept = static_cast<uint32_t>(draw(static_cast<uint64_t>(p - origin)) >> 32) <= job.keep[id];
        while (job.offsets[document + 1] <= p) ++document;
      }
      const unsigned mask = __ballot_sync(all_lanes, kept), below = mask & ((1u << lane) - 1);
      const int64_t neighbour = __shfl_sync(all_lanes, document, below ? 31 - __clz(static_cast<int>(below)) : 0);
      if (kept) {
        const bool begins = document != (below ? neighbour : before);
        const int64_t at = begin - job.first_token + n + __popc(below);
        job.kept[at] = begins ? ~id : id;
        if (begins && job.kept_document) job.kept_document[at] = static_cast<int32_t>(document);
      }
      const int64_t last = __shfl_sync(all_lanes, document, mask ? 31 - __clz(static_cast<int>(mask)) : 0);
      if (mask) before = last;
      document = __shfl_sync(all_lanes, document, end - first < lanes ? static_cast<int>(end - first) - 1 : lanes - 1);
      n += __popc(mask);
    }
    if (lane == 0) {
      job.n_kept[piece] = n;
      atomicAdd(&job.tally->kept, static_cast<unsigned long long>(n));
    }
  }
}

// Computes the seed of each document from its ids and the job's seed.
extern "C" __global__ void document_seeds(const int32_t* ids, const int64_t* offsets, int64_t first_token, int64_t n,
                                          uint64_t seed, uint64_t* seeds) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t d = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; d < n; d += stride) {
    uint64_t own = seed;
    for (int64_t p = offsets[d]; p < offsets[d + 1]; ++p) {
      own = mix64(own + Stream::golden + static_cast<uint64_t>(ids[p - first_token]));
    }
    seeds[d] = own;
  }
}

// Initial rows of new documents, as in infer_documents of sequences.h; zeros for a document without tokens.
extern "C" __global__ void document_rows(const uint64_t* seeds, const int64_t* offsets, int64_t n, int32_t dim,
                                         int32_t columns, float* rows) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n * columns; i += stride) {
    const int64_t d = i / columns, column = i % columns;
    float x = 0.0f;
    if (column < dim && offsets[d + 1] > offsets[d]) {
      const uint64_t draw = Stream(seeds[d], 0, Purpose::weights)(static_cast<uint64_t>(column));
      x = (static_cast<float>(draw >> 40) * 0x1p-24f - 0.5f) / static_cast<float>(dim);
    }
    rows[i] = x;
  }
}

// ---- a thread block -----------------------------------------------------------------------------------------------

// Shared memory, in order: the rows of the ring, their values when they were read, partial sums of several warps. Slots
// 0..2 * window hold words by position in the sentence, the slots after them hold the tags.
template <bool several, bool in_global, bool documents>
struct Trainer {
  const DeviceJob& job;
  Team<several> team;
  float4 *ring, *before;  // at the column of this thread
  int column;             // in float4
  bool mine;              // the rows have this column
  int width;              // of the ring without tags: 2 * window + 1
  int n_tags = 0;
  int64_t first_tag = 0;  // index into job.tags, or the tag itself
  Stream widths, negatives;
  float lr = 0.0f, loss = 0.0f;
  int64_t examples = 0;

  __device__ Trainer(const DeviceJob& job, float4* shared)
      : job(job),
        team(reinterpret_cast<float*>(shared + (in_global ? 0 : 2 * rows(job) * job.pitch))),
        column(static_cast<int>(threadIdx.x)),
        mine(column < job.pitch),
        width(2 * job.window + 1),
        widths(0, 0, Purpose::window),
        negatives(0, 0, Purpose::negative) {
    ring = (in_global ? job.rings + int64_t{blockIdx.x} * 2 * rows(job) * job.pitch : shared) + column;
    before = ring + rows(job) * job.pitch;
  }

  __device__ static int64_t rows(const DeviceJob& job) {
    return 2 * int64_t{job.window} + 1 + (documents ? job.most_tags : 0);
  }

  // ---- rows

  __device__ int64_t at(int slot) const { return int64_t{slot} * job.pitch; }
  __device__ float4 row(const float4* table, int64_t i) const {
    return mine ? load(table + i * job.pitch + column) : zero4();
  }
  __device__ void move(float4* table, int64_t i, float4 by) const {
    if (mine) add(table + i * job.pitch + column, by);
  }
  __device__ void take(const float4* table, int64_t i, int slot) {
    if (mine) ring[at(slot)] = before[at(slot)] = load(table + i * job.pitch + column);
  }
  __device__ void give(float4* table, int64_t i, int slot) const {
    if (mine) add(table + i * job.pitch + column, plus(ring[at(slot)], -1.0f, before[at(slot)]));
  }
  __device__ float4 held(int slot) const { return mine ? ring[at(slot)] : zero4(); }

  __device__ int64_t tag(int i) const { return job.tags ? job.tags[first_tag + i] : first_tag; }
  __device__ void take_tags() {
    for (int i = 0; i < n_tags; ++i) take(job.w_docs, tag(i), width + i);
  }
  __device__ void give_tags() const {
    for (int i = 0; i < n_tags; ++i) give(job.w_docs, tag(i), width + i);
  }

  // ---- the rows (members) of a window: the tags, then the words in order

  struct Members {
    int n;              // number of members
    int slot;           // slot of the first member
    int center, first;  // slots of the center and of the window's first word
  };

  __device__ int after(int slot) const { return slot + 1 == width ? 0 : slot + 1; }
  // The slot of the next member. After the last member it has no meaning, but is a valid slot.
  __device__ int next(const Members& m, int slot) const {
    if (documents && slot >= width) {
      if (slot + 1 < width + n_tags) return slot + 1;
      return m.first == m.center ? after(m.first) : m.first;
    }
    slot = after(slot);
    return slot == m.center ? after(slot) : slot;
  }
  // Members of the window of center c of n tokens, which is in slot `center`; place indexes the draws of the center.
  __device__ Members members(int c, int n, int center, uint64_t place) const {
    const int radius = job.shrink ? 1 + static_cast<int>(below(widths(place), job.window)) : job.window;
    const int left = c < radius ? c : radius, right = n - 1 - c < radius ? n - 1 - c : radius;
    Members m{left + right, 0, center, center - left};
    if (m.first < 0) m.first += width;
    if (documents) m.n = n_tags + (job.words ? m.n : 0);
    m.slot = documents && n_tags > 0 ? width : left == 0 ? after(center) : m.first;
    return m;
  }

  // ---- outputs: path, center, negatives

  __device__ int path_length(int32_t word) const {
    return job.w_nodes ? static_cast<int>(job.path_offsets[word + 1] - job.path_offsets[word]) : 0;
  }
  // Output t of a center: a node of the path, or ~node if its label is 0; or a word, or -1 for a negative that equals
  // the center.
  __device__ int32_t draw(int t, int n_path, int32_t word, uint64_t place) const {
    if (t < n_path) {
      const int64_t i = job.path_offsets[word] + t;
      return job.path_codes[i] ? ~job.path_nodes[i] : job.path_nodes[i];
    }
    if (t == n_path) return word;
    const uint64_t i = place * static_cast<uint64_t>(job.drawn) + static_cast<uint64_t>(t - n_path - 1);
    const int32_t drawn = alias_draw(job.noise, job.n_words, negatives(i));
    return drawn == word ? -1 : drawn;
  }
  struct Output {
    float4* table;
    int32_t row;  // -1: none
    bool label;
  };
  __device__ Output output(int t, int n_path, int32_t drawn) const {
    if (t < n_path) return {job.w_nodes, drawn < 0 ? ~drawn : drawn, drawn >= 0};
    return {job.w_out, drawn, t == n_path};
  }

  // ---- skip-gram and CBOW

  // Each member predicts the center.
  __device__ void skip_gram(const Members& m, int32_t word, uint64_t place) {
    const int n_path = path_length(word), n_out = n_path + (job.w_out ? 1 + job.drawn : 0);
    for (int chunk = 0; chunk < n_out; chunk += lanes) {
      const int n = n_out - chunk < lanes ? n_out - chunk : lanes;
      const int32_t drawn = team.lane < n ? draw(chunk + team.lane, n_path, word, place) : -1;
      const auto pick = [&](int t) { return output(chunk + t, n_path, __shfl_sync(all_lanes, drawn, t)); };
      Output out = pick(0);
      float4 y = out.row < 0 ? zero4() : row(out.table, out.row);
      for (int t = 0; t < n; ++t) {
        const Output now = out;
        const float4 y_before = y;
        float4 y_next = zero4();
        if (t + 1 < n) {
          out = pick(t + 1);
          if (out.row >= 0) y_next = row(out.table, out.row);  // loads while the current row is processed
        }
        if (now.row >= 0) {
          y = meet(m, y, now.label);
          if (!job.frozen) move(now.table, now.row, plus(y, -1.0f, y_before));
        }
        y = y_next;
      }
    }
    examples += m.n;
  }

  // Trains an output row with the members, four at a time. Changes the members; returns the new output row.
  __device__ float4 meet(const Members& m, float4 y, bool label) {
    int slot = m.slot;
    for (int k = 0; k < m.n; k += 4) {
      float4 x[4];
      int64_t place[4];
      float score[4];
      EMBFAST_UNROLL
      for (int i = 0; i < 4; ++i) {
        place[i] = at(slot);
        x[i] = mine ? ring[place[i]] : zero4();
        score[i] = dot(x[i], y, 0.0f);
        if (k + i + 1 < m.n) slot = next(m, slot);
      }
      const Logistic l = logistic(team.sums(score), label);
      const float step = lr * ((label ? 1.0f : 0.0f) - l.p);
      if (k + sum_of(team.lane) < m.n) loss += l.loss;
      float4 y_next = y;
      EMBFAST_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float s = __shfl_sync(all_lanes, step, lane_of(i));
        if (k + i < m.n) {
          if (mine) ring[place[i]] = plus(x[i], s, y);
          y_next = plus(y_next, s, x[i]);
        }
      }
      if (!job.frozen) y = y_next;
    }
    return y;
  }

  // The members predict the center together.
  __device__ void cbow(const Members& m, int32_t word, uint64_t place) {
    float4 hidden = zero4();
    int slot = m.slot;
    const auto tag_weight = static_cast<float>(job.tag_weight);
    const auto weight = [&](int k) { return documents && k < n_tags ? tag_weight : 1.0f; };
    for (int k = 0; k < m.n; ++k, slot = next(m, slot)) hidden = plus(hidden, weight(k), held(slot));
    float count = static_cast<float>(m.n);
    if (documents) count += (tag_weight - 1.0f) * static_cast<float>(n_tags);
    const float share = 1.0f / count;
    if (job.mean) hidden = plus(zero4(), share, hidden);
    const float4 delta = predict(hidden, word, place);
    slot = m.slot;
    for (int k = 0; k < m.n; ++k, slot = next(m, slot)) {
      if (mine) ring[at(slot)] = plus(ring[at(slot)], job.mean ? weight(k) : weight(k) * share, delta);
    }
  }

  // Trains the outputs of a center with one hidden row, four at a time. Returns the change of the hidden row, which the
  // caller applies.
  __device__ float4 predict(float4 hidden, int32_t word, uint64_t place) {
    const int n_path = path_length(word), n_out = n_path + (job.w_out ? 1 + job.drawn : 0);
    float4 delta = zero4();
    for (int chunk = 0; chunk < n_out; chunk += lanes) {
      const int n = n_out - chunk < lanes ? n_out - chunk : lanes;
      const int32_t drawn = team.lane < n ? draw(chunk + team.lane, n_path, word, place) : -1;
      for (int t = 0; t < n; t += 4) {
        Output out[4];
        float4 y[4];
        float score[4];
        EMBFAST_UNROLL
        for (int i = 0; i < 4; ++i) {
          out[i] = output(chunk + t + i, n_path, __shfl_sync(all_lanes, drawn, (t + i) % lanes));
          if (t + i >= n) out[i].row = -1;
          y[i] = out[i].row < 0 ? zero4() : row(out[i].table, out[i].row);
          score[i] = dot(hidden, y[i], 0.0f);
        }
        const int own = sum_of(team.lane);
        const bool label = own == 0 ? out[0].label : own == 1 ? out[1].label : own == 2 ? out[2].label : out[3].label;
        const bool there = (own == 0 ? out[0].row : own == 1 ? out[1].row : own == 2 ? out[2].row : out[3].row) >= 0;
        const Logistic l = logistic(team.sums(score), label);
        const float step = there ? lr * ((label ? 1.0f : 0.0f) - l.p) : 0.0f;
        if (there) loss += l.loss;
        EMBFAST_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float s = __shfl_sync(all_lanes, step, lane_of(i));
          if (out[i].row < 0) continue;
          delta = plus(delta, s, y[i]);
          if (!job.frozen) move(out[i].table, out[i].row, plus(zero4(), s, hidden));
        }
      }
    }
    ++examples;
    return delta;
  }

  // ---- pieces, sentences, centers

  // Trains on all pieces of this thread block; center(members, word, place) trains on one center.
  template <class Center>
  __device__ void train(Center center) {
    for (int64_t piece = blockIdx.x; piece < job.n_pieces; piece += gridDim.x) {
      const int64_t begin = job.pieces[piece], origin = job.seeds ? 0 : begin;
      const uint64_t seed = job.seeds ? job.seeds[piece] : job.seed;
      const double total = static_cast<double>(job.tokens_total);
      lr = linear_decay(job.lr_first, job.lr_last, static_cast<double>(job.tokens_before + origin) / total);
      widths = Stream(seed, job.epoch, Purpose::window);
      negatives = Stream(seed, job.epoch, Purpose::negative);
      const int32_t* const token = job.kept + (begin - job.first_token);
      const int n = job.n_kept[piece];
      for (int first = 0; first < n;) {
        const int last = sentence_end(token, first, n);
        if (documents) find_tags(begin - job.first_token + first);
        sentence(token + first, last - first, static_cast<uint64_t>(origin) + static_cast<uint64_t>(first), center);
        first = last;
      }
      tally();
    }
  }

  __device__ static int32_t id(int32_t token) { return token < 0 ? ~token : token; }

  // One past the last token of the sentence that begins at `first`.
  __device__ int sentence_end(const int32_t* token, int first, int n) const {
    for (int p = first + 1; p < n; p += lanes) {
      const unsigned begins = __ballot_sync(all_lanes, p + team.lane < n && token[p + team.lane] < 0);
      if (begins) return p + __ffs(static_cast<int>(begins)) - 1;
    }
    return n;
  }

  __device__ void find_tags(int64_t at) {
    const int64_t document = job.first_document + job.kept_document[at];
    first_tag = job.tags ? job.tag_offsets[document] : document;
    n_tags = job.tags ? static_cast<int>(job.tag_offsets[document + 1] - first_tag) : 1;
  }

  template <class Center>
  __device__ void sentence(const int32_t* token, int n, uint64_t place, Center center) {
    const int window = job.window;
    const bool words = !documents || job.words;
    if (documents) take_tags();
    for (int p = 0; words && p < window && p < n; ++p) take(job.w_in, id(token[p]), p);
    int slot = 0;  // slot of the center
    for (int c = 0; c < n; ++c) {
      if (words && c + window < n) take(job.w_in, id(token[c + window]), (slot + window) % width);
      const Members m = members(c, n, slot, place + static_cast<uint64_t>(c));
      if (m.n > 0) center(m, id(token[c]), place + static_cast<uint64_t>(c));
      if (words && !job.frozen && c >= window) give(job.w_in, id(token[c - window]), (slot + window + 1) % width);
      if (documents && c % tag_centers == tag_centers - 1 && c + 1 < n) {
        give_tags();
        take_tags();
      }
      slot = after(slot);
    }
    if (documents) give_tags();
    if (!words || job.frozen) return;
    for (int p = n < window ? 0 : n - window; p < n; ++p) give(job.w_in, id(token[p]), p % width);
  }

  // Each of four lanes holds the loss of every fourth row; all warps hold the same values.
  __device__ void tally() {
    float total = loss;
    total += __shfl_xor_sync(all_lanes, total, 16);
    total += __shfl_xor_sync(all_lanes, total, 8);
    if (threadIdx.x == 0) {
      atomicAdd(&job.tally->loss, static_cast<double>(total));
      atomicAdd(&job.tally->examples, static_cast<unsigned long long>(examples));
    }
    loss = 0.0f, examples = 0;
  }
};

template <bool several, bool in_global, bool documents>
__device__ inline void train_skip_gram(const DeviceJob& job) {
  EMBFAST_DYNAMIC_SHARED(float4, shared);
  using Work =
      Trainer<several, in_global, documents>;  // named below, since NVRTC compiles generic lambdas as host code
  Work trainer(job, shared);
  trainer.train([&](const typename Work::Members& members, int32_t word, uint64_t place) {
    trainer.skip_gram(members, word, place);
  });
}

template <bool several, bool in_global, bool documents>
__device__ inline void train_cbow(const DeviceJob& job) {
  EMBFAST_DYNAMIC_SHARED(float4, shared);
  using Work = Trainer<several, in_global, documents>;
  Work trainer(job, shared);
  trainer.train([&](const typename Work::Members& members, int32_t word, uint64_t place) {
    if (documents && !job.words) {  // PV-DBOW: each tag separately
      for (int i = 0; i < members.n; ++i) {
        const float4 delta = trainer.predict(trainer.held(trainer.width + i), word, place);
        if (trainer.mine) {
          float4* const row = trainer.ring + trainer.at(trainer.width + i);
          *row = plus(*row, 1.0f, delta);
        }
      }
    } else {
      trainer.cbow(members, word, place);
    }
  });
}

}  // namespace embfast

// ---- kernels ------------------------------------------------------------------------------------------------------

// _warp: one warp, rows of up to 128 floats, the ring in shared memory. _warps: several warps. _wide: the ring in
// global memory. _documents: with tags. The launch bounds request only one block per multiprocessor, so that no
// register spills; shared memory limits how many actually run.
#define EMBFAST_KERNELS(model)                                                                                 \
  extern "C" __global__ void __launch_bounds__(32, 1) model##_warp(const embfast::DeviceJob job) {             \
    embfast::train_##model<false, false, false>(job);                                                          \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(256, 1) model##_warps(const embfast::DeviceJob job) {           \
    embfast::train_##model<true, false, false>(job);                                                           \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(256, 1) model##_wide(const embfast::DeviceJob job) {            \
    embfast::train_##model<true, true, false>(job);                                                            \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(32, 1) model##_documents_warp(const embfast::DeviceJob job) {   \
    embfast::train_##model<false, false, true>(job);                                                           \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(256, 1) model##_documents_warps(const embfast::DeviceJob job) { \
    embfast::train_##model<true, false, true>(job);                                                            \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(256, 1) model##_documents_wide(const embfast::DeviceJob job) {  \
    embfast::train_##model<true, true, true>(job);                                                             \
  }

EMBFAST_KERNELS(skip_gram)
EMBFAST_KERNELS(cbow)
