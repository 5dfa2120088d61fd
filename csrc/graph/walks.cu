// Random walks on a device: the same walks as embfast/graphs/walk_kernels.py, one thread per walk.
// Each iteration of the loop is one try of a step, so that a lane whose candidates are rejected does not delay the
// others. Steps are written step-major (length x walks), so that neighbouring lanes write neighbouring addresses;
// pack_walks transposes them. Sums and products of doubles are rounded separately, as on the CPU: a fused operation
// would make another walk.
// Sources: embfast/graphs/walks.py; rejection sampling as in KnightKing (Yang et al. 2019).
#include "core/device.h"

namespace embfast {

// One launch. The graph is stored as rows of sorted neighbours (CSR).
struct WalkJob {
  const int64_t* offsets;
  const int32_t* neighbours;
  const float* weights;      // per entry of neighbours; null: all 1
  const AliasCell* alias;    // per entry, aliases relative to the beginning of the row; null without weights
  const double* strengths;   // per node: sum of the row's weights; null without weights
  const double* thresholds;  // per node: node2vec+; or null
  const uint64_t* members;   // bits that tell which nodes may be in a row: see perhaps_member
  const int64_t* pattern;    // the metapath's types, repeated along a walk, if a node has one row per type
  const int32_t* starts;     // n_walks nodes
  int32_t* steps;            // length x n_walks nodes
  int32_t* lengths;          // n_walks
  uint64_t seed, repetition;
  double inverse_p, inverse_q, restart;
  int64_t n_walks, n_nodes;
  int32_t length;
  int32_t returns;  // each edge also leads back
  int32_t n_types, n_pattern;
};

namespace walks {

constexpr int try_bits = 24;  // low bits of a draw's number, which count the tries of a step
constexpr uint64_t restart_try = (1u << try_bits) - 1;
constexpr int64_t last_try = 1 << 16;

__device__ inline double unit(uint64_t draw) { return static_cast<double>(draw >> 11) * 0x1p-53; }
__device__ inline double low_unit(uint64_t draw) { return static_cast<double>(draw & 0xffffffffu) * 0x1p-32; }

struct Row {
  int64_t begin, degree;
};
__device__ inline Row row_of(const int64_t* offsets, int64_t node) {
  const int64_t begin = __ldg(offsets + node);
  return {begin, __ldg(offsets + node + 1) - begin};
}

// The place of a neighbour drawn by weight.
__device__ inline int64_t candidate(const AliasCell* alias, Row row, uint64_t draw) {
  const auto cell = static_cast<int64_t>(below(draw, static_cast<uint32_t>(row.degree)));
  if (!alias) return row.begin + cell;
  const AliasCell c = alias[row.begin + cell];
  return row.begin + (static_cast<uint32_t>(mix64(draw)) < c.threshold ? cell : static_cast<int64_t>(c.alias));
}

// The place of x in a row, or -1.
__device__ inline int64_t find(const int32_t* neighbours, Row row, int32_t x) {
  int64_t begin = row.begin, n = row.degree;
  while (n > 1) {
    const int64_t half = n / 2;
    if (__ldg(neighbours + begin + half - 1) < x) begin += half;
    n -= half;
  }
  return n > 0 && __ldg(neighbours + begin) == x ? begin : -1;
}

// The words of the table of members that belong to this row alone, 64 bits for four entries: own_words of
// embfast/graphs/walk_kernels.py. They hold one bit per node if they are enough; otherwise x has three hashed bits in
// one of the words that the row touches.
__device__ inline int64_t first_own(Row row) { return (row.begin + 3) >> 2; }
__device__ inline bool all_bits(const WalkJob& job, Row row) {
  return (((row.begin + row.degree) >> 2) - first_own(row)) * 64 >= job.n_nodes;
}
// False: x is not in the row. True: x is in the row if the row has a bit per node, and may be in it otherwise.
__device__ inline bool perhaps_member(const WalkJob& job, Row row, int32_t x) {
  if (all_bits(job, row)) return __ldg(job.members + first_own(row) + (x >> 6)) >> (x & 63) & 1;
  const uint64_t hashed = static_cast<uint64_t>(x) * Stream::golden;
  const uint64_t three =
      uint64_t{1} << (hashed >> 14 & 63) | uint64_t{1} << (hashed >> 20 & 63) | uint64_t{1} << (hashed >> 26 & 63);
  const int64_t low = row.begin >> 2, span = ((row.begin + row.degree + 3) >> 2) - low;
  const auto word = static_cast<int64_t>((hashed >> 32) * static_cast<uint64_t>(span) >> 32);
  return (__ldg(job.members + low + word) & three) == three;
}

// The factor on the weight of the edge at `place` from current to x, for a walk that came from the node with the row
// `back`, which is not x.
__device__ inline double bias(const WalkJob& job, Row back, int64_t place, int32_t x, int32_t current) {
  bool member = perhaps_member(job, back, x);
  int64_t found = -1;
  if (member && (job.thresholds || !all_bits(job, back))) {
    found = find(job.neighbours, back, x);
    member = found >= 0;
  }
  if (!job.thresholds) return member ? 1.0 : job.inverse_q;
  const double weight = member ? static_cast<double>(__ldg(job.weights + found)) : 0.0;
  const double strong = __ldg(job.thresholds + x);
  if (member && weight >= strong) return 1.0;
  if (static_cast<double>(__ldg(job.weights + place)) < __ldg(job.thresholds + current)) {
    return fmin(1.0, job.inverse_q);
  }
  const double share = member ? weight / strong : 0.0;
  return __dadd_rn(job.inverse_q, __dmul_rn(__dadd_rn(1.0, -job.inverse_q), share));
}

// The place of an edge of current, drawn from the enumerated probabilities.
__device__ inline int64_t enumerated(const WalkJob& job, Row row, Row back, int32_t previous, int32_t current,
                                     uint64_t draw) {
  double total = 0.0;
  for (int again = 0; again < 2; ++again) {
    const double target = __dmul_rn(unit(draw), total);
    total = 0.0;
    for (int64_t place = row.begin; place < row.begin + row.degree; ++place) {
      const int32_t x = __ldg(job.neighbours + place);
      double mass = x == previous ? job.inverse_p : bias(job, back, place, x, current);
      if (job.weights) mass = __dmul_rn(mass, static_cast<double>(__ldg(job.weights + place)));
      total = __dadd_rn(total, mass);
      if (again && target < total) return place;
    }
  }
  return row.begin + row.degree - 1;
}

struct Thread {
  int64_t first, stride;
  __device__ Thread()
      : first(int64_t{blockIdx.x} * blockDim.x + threadIdx.x), stride(int64_t{gridDim.x} * blockDim.x) {}
};

}  // namespace walks

// p = q = 1: a step depends on the current node alone. Node v has n_types rows; step s is drawn from the row for type
// pattern[s % n_pattern].
extern "C" __global__ void __launch_bounds__(256) walk_first_order(const WalkJob job) {
  using namespace walks;
  const Thread thread;
  const Stream stream(job.seed, job.repetition, Purpose::walk);
  for (int64_t walk = thread.first; walk < job.n_walks; walk += thread.stride) {
    const int32_t start = __ldg(job.starts + walk);
    Stream own = stream;
    own.key = stream(static_cast<uint64_t>(start));
    int32_t current = start, step = 1;
    job.steps[walk] = start;
    for (; step < job.length; ++step) {
      const int64_t type = job.n_types > 1 ? __ldg(job.pattern + step % job.n_pattern) : 0;
      const Row row = row_of(job.offsets, int64_t{current} * job.n_types + type);
      if (row.degree == 0) break;
      const uint64_t number = static_cast<uint64_t>(step) << try_bits;
      if (job.restart > 0.0 && unit(own(number | restart_try)) < job.restart) {
        current = start;
      } else {
        current = __ldg(job.neighbours + candidate(job.alias, row, own(number)));
      }
      job.steps[int64_t{step} * job.n_walks + walk] = current;
    }
    job.lengths[walk] = step;
  }
}

// node2vec's and node2vec+'s walks.
extern "C" __global__ void __launch_bounds__(256, 1) walk_second_order(const WalkJob job) {
  using namespace walks;
  const Thread thread;
  const Stream stream(job.seed, job.repetition, Purpose::walk);
  const double least = fmin(1.0, job.inverse_q), most = fmax(1.0, job.inverse_q);
  const double excess = fmax(0.0, __dadd_rn(job.inverse_p, -most));
  Stream own = stream;
  int32_t start = 0, previous = -1, current = 0, step = 0;  // step 0: a walk begins
  int64_t tried = 0;
  Row row{0, 0}, back{0, 0};
  double extra = 0.0;  // mass of the return above the envelope of all other edges
  for (int64_t walk = thread.first; walk < job.n_walks;) {
    if (step == 0) {
      start = current = __ldg(job.starts + walk);
      own.key = stream(static_cast<uint64_t>(start));
      job.steps[walk] = start;
      previous = -1, step = 1, tried = 0, extra = 0.0;
      row = row_of(job.offsets, start);
    }
    if (step >= job.length || row.degree == 0) {
      job.lengths[walk] = step;
      walk += thread.stride;
      step = 0;
      continue;
    }
    const uint64_t number = static_cast<uint64_t>(step) << try_bits;
    if (tried == 0 && job.restart > 0.0 && unit(own(number | restart_try)) < job.restart) {
      job.steps[int64_t{step} * job.n_walks + walk] = start;
      previous = -1, current = start, extra = 0.0;
      row = row_of(job.offsets, start);
      ++step;
      continue;
    }
    const uint64_t draw = own(number | static_cast<uint64_t>(tried));
    const double mass = job.strengths ? __ldg(job.strengths + current) : static_cast<double>(row.degree);
    const double envelope = __dmul_rn(mass, most), height = __dmul_rn(low_unit(draw), __dadd_rn(envelope, extra));
    const bool returned = previous >= 0 && height >= envelope;
    int64_t place = -1;  // of the edge that is taken
    int32_t x = previous;
    bool accepted = returned;
    if (!returned) {
      place = candidate(job.alias, row, draw);
      x = __ldg(job.neighbours + place);
      const double level = height / mass;
      accepted = previous < 0 ||
                 (x == previous ? level < job.inverse_p : level < least || level < bias(job, back, place, x, current));
    }
    ++tried;
    if (!accepted) {
      const int64_t most_tries = row.degree + 16 < last_try ? row.degree + 16 : last_try;
      if (tried < most_tries) continue;
      place = enumerated(job, row, back, previous, current, own(number | static_cast<uint64_t>(tried)));
      x = __ldg(job.neighbours + place);
    }
    job.steps[int64_t{step} * job.n_walks + walk] = x;
    back = row;
    row = row_of(job.offsets, x);
    if (excess > 0.0) {
      // The return needs an edge: in undirected graphs it is the edge just walked, with the same weight.
      if (!job.returns) place = find(job.neighbours, row, current);
      if (job.returns && returned) {
        // back over the same edge: extra stays
      } else if (place < 0) {
        extra = 0.0;
      } else {
        extra = job.weights ? __dmul_rn(excess, static_cast<double>(__ldg(job.weights + place))) : excess;
      }
    }
    previous = current;
    current = x;
    tried = 0;
    ++step;
  }
}

// Concatenates walks: ids[offsets[w]..] is walk w, with each node's label. A block of 32 x 8 threads takes 32 walks and
// 32 steps.
extern "C" __global__ void __launch_bounds__(256)
    pack_walks(const int32_t* steps, const int64_t* offsets, const int32_t* label, int64_t n_walks, int32_t length,
               int32_t* ids) {
  EMBFAST_DYNAMIC_SHARED(int32_t, tile);  // 32 rows of 33, so that columns fall into different banks
  const int64_t walk = int64_t{blockIdx.x} * lanes;
  const int32_t step = static_cast<int32_t>(blockIdx.y) * lanes;
  for (int i = static_cast<int>(threadIdx.y); i < lanes; i += static_cast<int>(blockDim.y)) {
    const int64_t w = walk + threadIdx.x;
    const bool there = w < n_walks && step + i < length && step + i < offsets[w + 1] - offsets[w];
    tile[i * (lanes + 1) + threadIdx.x] = there ? label[steps[int64_t{step + i} * n_walks + w]] : -1;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.y); i < lanes; i += static_cast<int>(blockDim.y)) {
    const int64_t w = walk + i;
    const int32_t s = step + static_cast<int32_t>(threadIdx.x);
    if (w < n_walks && s < offsets[w + 1] - offsets[w]) ids[offsets[w] + s] = tile[threadIdx.x * (lanes + 1) + i];
  }
}

}  // namespace embfast
