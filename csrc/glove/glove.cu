// GloVe on a device: the steps of glove.h on runs, groups of entries that share their row.
// A warp trains a run; rows too long for a warp take a block. The row of w_in and its sums of squares stay in registers
// during the run, and their change is added to the tables at its end. Rows of w_out are read and updated at every
// entry. The bias is an element of its row, and only the thread that owns it reads or updates it.
// Source: glove.h.
#include "core/device.h"
#include "glove/job.h"

namespace embfast {

namespace glove {

constexpr float clip = 100.0f;  // as in glove.h

__device__ inline float clipped(float x) { return fminf(fmaxf(x, -clip), clip); }

// Four elements of a row and their sums of squares.
struct Part {
  float w[4], sums[4];
};

template <bool several>
struct Trainer {
  const GloveJob& job;
  Team<several> team;
  int32_t* order;  // shared memory: training order of the entries of the run
  int column;      // of this thread, in float4
  bool mine;       // whether the row has this column
  int bias;        // index of the bias among the four elements of this thread; other values: not here
  double loss = 0.0;

  __device__ Trainer(const GloveJob& job, float* partial, int32_t* order)
      : job(job),
        team(partial),
        order(order),
        column(several ? static_cast<int>(threadIdx.x) : team.lane),
        mine(column < job.pitch),
        bias(mine ? job.dim - 4 * column : -1) {}

  __device__ void meet() const { several ? __syncthreads() : __syncwarp(); }

  // The sum over all threads of the team; all receive the same bits.
  __device__ float sum(float s) {
    EMBFAST_UNROLL
    for (int by = lanes / 2; by > 0; by /= 2) s += __shfl_xor_sync(all_lanes, s, by);
    if (!several) return s;
    float* const sums = team.partial + team.turn;
    if (team.lane == 0) sums[team.warp] = s;
    __syncthreads();
    float total = 0.0f;
    for (int w = 0; w < team.n_warps; ++w) total += sums[w];
    team.turn = team.turn ? 0 : team.n_warps;  // slow warps may still be reading: the next sums use the other buffer
    return total;
  }

  __device__ static float4* cells(float* table) { return reinterpret_cast<float4*>(table); }

  __device__ Part read(float* w, float* sums, int64_t row) const {
    Part p{{0.0f, 0.0f, 0.0f, 0.0f}, {1.0f, 1.0f, 1.0f, 1.0f}};
    if (mine) {
      const int64_t at = row * job.pitch + column;
      const float4 x = load(cells(w) + at), s = load(cells(sums) + at);
      p = {{x.x, x.y, x.z, x.w}, {s.x, s.y, s.z, s.w}};
    }
    return p;
  }
  __device__ void move(float* w, float* sums, int64_t row, const Part& by) const {
    if (!mine) return;
    const int64_t at = row * job.pitch + column;
    add(cells(w) + at, make_float4(by.w[0], by.w[1], by.w[2], by.w[3]));
    add(cells(sums) + at, make_float4(by.sums[0], by.sums[1], by.sums[2], by.sums[3]));
  }

  // Shuffles the entries of a run by inside-out Fisher-Yates, as train_group.cpp does.
  __device__ void shuffle(int64_t begin, int n) const {
    const Stream draw(job.seed, job.epoch, Purpose::shuffle);
    meet();  // all have read the order of the previous run
    for (int i = column; i < n; i += several ? static_cast<int>(blockDim.x) : lanes) {
      order[i] = static_cast<int32_t>(below(draw(static_cast<uint64_t>(begin + i)), static_cast<uint32_t>(i + 1)));
    }
    meet();
    if (column == 0) {
      for (int i = 0; i < n; ++i) {
        const int32_t j = order[i];
        order[i] = order[j];
        order[j] = i;
      }
    }
    meet();
  }

  // One AdaGrad step on the row of the run and on a row of w_out, which has been read into y.
  __device__ void step(Part& x, const Part& y, int64_t row, float log, float weight) {
    float score = 0.0f;
    EMBFAST_UNROLL
    for (int i = 0; i < 4; ++i) score += i == bias ? x.w[i] + y.w[i] : x.w[i] * y.w[i];
    const float difference = sum(score) - log, gradient = weight * difference;
    loss += 0.5 * gradient * difference;
    Part by{};
    EMBFAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float rate = i == bias ? 1.0f : job.lr;
      const float in = clipped(gradient * (i == bias ? 1.0f : y.w[i])) * rate;
      const float out = clipped(gradient * (i == bias ? 1.0f : x.w[i])) * rate;
      adagrad(in, rsqrtf(x.sums[i]), &x.w[i], &x.sums[i]);
      adagrad(out, rsqrtf(y.sums[i]), &by.w[i], &by.sums[i]);
    }
    move(job.w_out, job.sums_out, row, by);
  }

  __device__ void run(int64_t begin, int n) {
    shuffle(begin, n);
    const Entry* const entries = job.entries + (begin - job.first_entry);
    const int64_t row = entries[0].row;
    Part x = read(job.w_in, job.sums_in, row);
    const Part before = x;
    const float log_x_max = logf(job.x_max);
    for (int chunk = 0; chunk < n; chunk += lanes) {
      const int m = n - chunk < lanes ? n - chunk : lanes;
      int32_t columns = 0;  // one entry per lane
      float logs = 0.0f, weights = 0.0f;
      if (team.lane < m) {
        const Entry entry = entries[order[chunk + team.lane]];
        columns = entry.column;
        logs = logf(entry.value);
        weights = expf(fminf(0.0f, job.alpha * (logs - log_x_max)));
      }
      int32_t next = __shfl_sync(all_lanes, columns, 0);
      Part y = read(job.w_out, job.sums_out, next);
      for (int e = 0; e < m; ++e) {
        const int32_t now = next;
        const float log = __shfl_sync(all_lanes, logs, e), weight = __shfl_sync(all_lanes, weights, e);
        next = __shfl_sync(all_lanes, columns, (e + 1) % lanes);
        Part y_next = y;
        const bool more = e + 1 < m;
        if (more && next != now) y_next = read(job.w_out, job.sums_out, next);  // in flight during this step
        step(x, y, now, log, weight);
        if (more && next == now) y_next = read(job.w_out, job.sums_out, next);
        y = y_next;
      }
    }
    EMBFAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      x.w[i] -= before.w[i];
      x.sums[i] -= before.sums[i];
    }
    move(job.w_in, job.sums_in, row, x);
  }

  __device__ void train(int64_t number, int64_t teams) {
    for (int64_t i = job.first + number; i < job.last; i += teams) {
      const int64_t begin = job.groups[job.order[i]];
      run(begin, static_cast<int>(job.groups[job.order[i] + 1] - begin));
    }
    if (column == 0) atomicAdd(job.loss, loss);
  }
};

}  // namespace glove

// Rows of up to 128 floats including the bias, one warp per run. Shared memory: `longest` int32 per warp.
extern "C" __global__ void __launch_bounds__(128) train_runs_warp(const GloveJob job) {
  EMBFAST_DYNAMIC_SHARED(int32_t, shared);
  const int warp = static_cast<int>(threadIdx.x / lanes), warps = static_cast<int>(blockDim.x / lanes);
  glove::Trainer<false> trainer(job, nullptr, shared + warp * job.longest);
  trainer.train(int64_t{blockIdx.x} * warps + warp, int64_t{gridDim.x} * warps);
}

// One block per run. Shared memory: `longest` int32, and 2 floats per warp.
extern "C" __global__ void __launch_bounds__(288) train_runs_warps(const GloveJob job) {
  EMBFAST_DYNAMIC_SHARED(int32_t, shared);
  glove::Trainer<true> trainer(job, reinterpret_cast<float*>(shared + job.longest), shared);
  trainer.train(blockIdx.x, gridDim.x);
}

}  // namespace embfast
