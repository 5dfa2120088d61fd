// Ranking losses between images and captions on a device, with their gradients. Each thread block keeps one tile of the
// matrix of similarities in registers; the matrix is never in memory. Sources and definitions:
// embfast/multimodal/ranking.py.
#include "core/device.h"

namespace embfast {

// Arguments of a launch. Image i has number first_image + i, caption j has number first_caption + j. A pair has equal
// numbers: pair p is image first_caption + p with caption first_image + p.
struct RankingJob {
  const float *images, *captions;              // (n_images, dim) and (n_captions, dim)
  const float *image_scales, *caption_scales;  // factors of the rows (cosine), or null
  const int64_t* groups;                       // by number; rows of one group are not negatives of each other; or null
  float* paired;                               // similarity of each pair
  float *to_images, *to_captions;              // gradients are added here, unless null
  int32_t* active;                             // number of positive hinges of each pair
  unsigned long long *best_captions, *best_images;  // of each image and caption with a pair: hardest_key
  double* loss;
  int64_t n_images, n_captions, n_pairs, dim, first_image, first_caption;
  int32_t of_images, of_captions;  // sides that the loss sums over: either or both
  int32_t order, semihard;
  float margin;
  int32_t unused;
};

namespace ranking {

constexpr int tile = 64;          // images, and captions, per thread block
constexpr int depth = 32;         // columns in shared memory at a time
constexpr int pitch = depth + 1;  // so that rows begin in different banks
constexpr int side = 16;          // threads along each side of a tile; each computes tile / side rows and columns
constexpr int each = tile / side;
constexpr int wide = tile + 1;

// Shared memory of a thread block.
struct Tile {
  float left[tile * pitch], right[tile * pitch];  // `depth` columns of the images, and of the captions
  float weights[tile * wide];                     // derivative of the loss by each similarity
  int active[2][tile];
  unsigned long long best[2][tile];
};

// Orders by similarity, then by lower place: the largest key is the hardest negative.
__device__ inline unsigned long long hardest_key(float similarity, int64_t place) {
  const unsigned bits = __float_as_uint(similarity), ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(ordered) << 32 | (0xffffffffu - static_cast<unsigned>(place));
}
__device__ inline float key_similarity(unsigned long long key) {
  const auto ordered = static_cast<unsigned>(key >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}
__device__ inline int64_t key_place(unsigned long long key) {
  return 0xffffffffu - static_cast<unsigned>(key & 0xffffffffu);
}

// Adds the contribution of one column to a similarity.
template <bool order>
__device__ inline float meet(float image, float caption, float sum) {
  if (!order) return fmaf(image, caption, sum);
  const float outside = fmaxf(0.0f, caption - image);
  return fmaf(-outside, outside, sum);
}
// The derivative of a similarity by an element of the image, and by one of the caption.
template <bool order>
__device__ inline float image_slope(float image, float caption) {
  return order ? 2.0f * fmaxf(0.0f, caption - image) : caption;
}
template <bool order>
__device__ inline float caption_slope(float image, float caption) {
  return order ? -2.0f * fmaxf(0.0f, caption - image) : image;
}

template <bool order>
struct Block {
  const RankingJob& job;
  Tile& shared;
  int64_t image, caption;  // the first of the tile
  int row, column;         // of this thread: rows row, row + side, ..., columns likewise
  float score[each][each];

  __device__ Block(const RankingJob& job, Tile& shared)
      : job(job),
        shared(shared),
        image(int64_t{blockIdx.y} * tile),
        caption(int64_t{blockIdx.x} * tile),
        row(static_cast<int>(threadIdx.x) / side),
        column(static_cast<int>(threadIdx.x) % side) {}

  // Reads columns first..first + depth of all rows of the tile, scaled; 0 beyond the matrix.
  __device__ void read(const float* rows, const float* scales, int64_t begin, int64_t n, int64_t first,
                       float* to) const {
    for (int i = static_cast<int>(threadIdx.x); i < tile * depth; i += static_cast<int>(blockDim.x)) {
      const int64_t r = begin + i / depth, d = first + i % depth;
      float x = 0.0f;
      if (r < n && d < job.dim) x = __ldg(rows + r * job.dim + d) * (scales ? __ldg(scales + r) : 1.0f);
      to[i / depth * pitch + i % depth] = x;
    }
  }
  __device__ void read(int64_t first) const {
    __syncthreads();  // all have done with what was there
    read(job.images, job.image_scales, image, job.n_images, first, shared.left);
    read(job.captions, job.caption_scales, caption, job.n_captions, first, shared.right);
    __syncthreads();
  }

  __device__ void similarities() {
    EMBFAST_UNROLL
    for (int a = 0; a < each; ++a) {
      EMBFAST_UNROLL
      for (int b = 0; b < each; ++b) score[a][b] = 0.0f;
    }
    for (int64_t first = 0; first < job.dim; first += depth) {
      read(first);
      for (int d = 0; d < depth; ++d) {
        float x[each], y[each];
        EMBFAST_UNROLL
        for (int a = 0; a < each; ++a) {
          x[a] = shared.left[(row + a * side) * pitch + d];
          y[a] = shared.right[(column + a * side) * pitch + d];
        }
        EMBFAST_UNROLL
        for (int a = 0; a < each; ++a) {
          EMBFAST_UNROLL
          for (int b = 0; b < each; ++b) score[a][b] = meet<order>(x[a], y[b], score[a][b]);
        }
      }
    }
  }

  __device__ bool negatives(int64_t i, int64_t j) const {
    if (i >= job.n_images || j >= job.n_captions) return false;
    const int64_t a = job.first_image + i, b = job.first_caption + j;
    return a != b && !(job.groups && job.groups[a] == job.groups[b]);
  }

  // Adds the tile's part of the loss, of `active`, and of the gradients by the scaled rows.
  __device__ void sum() {
    similarities();
    if (threadIdx.x < tile) shared.active[0][threadIdx.x] = shared.active[1][threadIdx.x] = 0;
    __syncthreads();
    float loss = 0.0f;
    bool any = false;
    for (int a = 0; a < each; ++a) {
      for (int b = 0; b < each; ++b) {
        const int r = row + a * side, c = column + b * side;
        float weight = 0.0f;
        if (negatives(image + r, caption + c)) {
          if (job.of_images) {
            const float hinge = job.margin + score[a][b] - job.paired[image + r - job.first_caption];
            if (hinge > 0.0f) loss += hinge, weight += 1.0f, atomicAdd(&shared.active[0][r], 1);
          }
          if (job.of_captions) {
            const float hinge = job.margin + score[a][b] - job.paired[caption + c - job.first_image];
            if (hinge > 0.0f) loss += hinge, weight += 1.0f, atomicAdd(&shared.active[1][c], 1);
          }
        }
        shared.weights[r * wide + c] = weight;
        any |= weight > 0.0f;
      }
    }
    if (!__syncthreads_or(any)) return;
    const int lane = static_cast<int>(threadIdx.x % lanes), t = static_cast<int>(threadIdx.x);
    for (int by = lanes / 2; by > 0; by /= 2) loss += __shfl_xor_sync(all_lanes, loss, by);
    if (lane == 0) atomicAdd(job.loss, static_cast<double>(loss));
    if (t < tile && shared.active[0][t]) atomicAdd(job.active + image + t - job.first_caption, shared.active[0][t]);
    if (t < tile && shared.active[1][t]) atomicAdd(job.active + caption + t - job.first_image, shared.active[1][t]);
    if (!job.to_images && !job.to_captions) return;
    for (int64_t first = 0; first < job.dim; first += depth) {
      read(first);
      gradients(first + lane);
    }
  }

  // Each warp handles rows of the tile, each lane one column.
  __device__ void gradients(int64_t d) const {
    const int lane = static_cast<int>(threadIdx.x % lanes), warp = static_cast<int>(threadIdx.x / lanes);
    const int warps = static_cast<int>(blockDim.x / lanes);
    for (int r = warp; r < tile; r += warps) {
      float image_sum = 0.0f, caption_sum = 0.0f;
      for (int i = 0; i < tile; ++i) {
        const float x = shared.left[r * pitch + lane], y = shared.right[i * pitch + lane];
        image_sum = fmaf(shared.weights[r * wide + i], image_slope<order>(x, y), image_sum);
        const float other = shared.left[i * pitch + lane], own = shared.right[r * pitch + lane];
        caption_sum = fmaf(shared.weights[i * wide + r], caption_slope<order>(other, own), caption_sum);
      }
      if (d >= job.dim) continue;
      if (job.to_images && image + r < job.n_images) atomicAdd(job.to_images + (image + r) * job.dim + d, image_sum);
      if (job.to_captions && caption + r < job.n_captions) {
        atomicAdd(job.to_captions + (caption + r) * job.dim + d, caption_sum);
      }
    }
  }

  // Merges the hardest negatives of the tile's images and captions into those of the batch.
  __device__ void hardest() {
    similarities();
    if (threadIdx.x < tile) shared.best[0][threadIdx.x] = shared.best[1][threadIdx.x] = 0;
    __syncthreads();
    for (int a = 0; a < each; ++a) {
      for (int b = 0; b < each; ++b) {
        const int r = row + a * side, c = column + b * side;
        const int64_t i = image + r, j = caption + c;
        if (!negatives(i, j)) continue;
        const float s = score[a][b];
        if (job.of_images && !(job.semihard && s >= job.paired[i - job.first_caption])) {
          atomicMax(&shared.best[0][r], hardest_key(s, j));
        }
        if (job.of_captions && !(job.semihard && s >= job.paired[j - job.first_image])) {
          atomicMax(&shared.best[1][c], hardest_key(s, i));
        }
      }
    }
    __syncthreads();
    const int t = static_cast<int>(threadIdx.x);
    if (t >= tile) return;
    if (shared.best[0][t]) atomicMax(job.best_captions + image + t - job.first_caption, shared.best[0][t]);
    if (shared.best[1][t]) atomicMax(job.best_images + caption + t - job.first_image, shared.best[1][t]);
  }
};

struct Warp {
  int64_t first, stride;
  int lane;
  __device__ Warp()
      : first(int64_t{blockIdx.x} * (blockDim.x / lanes) + threadIdx.x / lanes),
        stride(int64_t{gridDim.x} * (blockDim.x / lanes)),
        lane(static_cast<int>(threadIdx.x % lanes)) {}
};

__device__ inline float warp_sum(float x) {
  EMBFAST_UNROLL
  for (int by = lanes / 2; by > 0; by /= 2) x += __shfl_xor_sync(all_lanes, x, by);
  return x;
}

__device__ inline float scaled(const float* rows, const float* scales, int64_t row, int64_t dim, int64_t d) {
  return __ldg(rows + row * dim + d) * (scales ? __ldg(scales + row) : 1.0f);
}

// Adds the gradient of weight * similarity of image i and caption j; called by a whole warp.
__device__ inline void add_entry(const RankingJob& job, int64_t i, int64_t j, float weight, int lane) {
  for (int64_t d = lane; d < job.dim; d += lanes) {
    const float x = scaled(job.images, job.image_scales, i, job.dim, d);
    const float y = scaled(job.captions, job.caption_scales, j, job.dim, d);
    const float to_x = job.order ? image_slope<true>(x, y) : image_slope<false>(x, y);
    const float to_y = job.order ? caption_slope<true>(x, y) : caption_slope<false>(x, y);
    if (job.to_images) atomicAdd(job.to_images + i * job.dim + d, weight * to_x);
    if (job.to_captions) atomicAdd(job.to_captions + j * job.dim + d, weight * to_y);
  }
}

}  // namespace ranking

// 1 / norm of each row, 0 for a row of zeros. One warp per row, here and below.
extern "C" __global__ void __launch_bounds__(256)
    ranking_scales(const float* rows, int64_t n, int64_t dim, float* scales) {
  const ranking::Warp warp;
  for (int64_t row = warp.first; row < n; row += warp.stride) {
    float sum = 0.0f;
    for (int64_t d = warp.lane; d < dim; d += lanes) sum = fmaf(rows[row * dim + d], rows[row * dim + d], sum);
    sum = ranking::warp_sum(sum);
    if (warp.lane == 0) scales[row] = sum > 0.0f ? 1.0f / sqrtf(sum) : 0.0f;
  }
}

// Fills `paired`.
extern "C" __global__ void __launch_bounds__(256) ranking_pairs(const RankingJob job) {
  const ranking::Warp warp;
  for (int64_t p = warp.first; p < job.n_pairs; p += warp.stride) {
    const int64_t i = job.first_caption + p, j = job.first_image + p;
    float sum = 0.0f;
    for (int64_t d = warp.lane; d < job.dim; d += lanes) {
      const float x = ranking::scaled(job.images, job.image_scales, i, job.dim, d);
      const float y = ranking::scaled(job.captions, job.caption_scales, j, job.dim, d);
      sum = job.order ? ranking::meet<true>(x, y, sum) : ranking::meet<false>(x, y, sum);
    }
    sum = ranking::warp_sum(sum);
    if (warp.lane == 0) job.paired[p] = sum;
  }
}

// All hinges: loss, active, and the gradients except those of the pairs. One thread block per tile, captions along x.
extern "C" __global__ void __launch_bounds__(256, 1) ranking_sum(const RankingJob job) {
  EMBFAST_DYNAMIC_SHARED(ranking::Tile, shared);
  ranking::Block<false>(job, *shared).sum();
}
extern "C" __global__ void __launch_bounds__(256, 1) ranking_sum_order(const RankingJob job) {
  EMBFAST_DYNAMIC_SHARED(ranking::Tile, shared);
  ranking::Block<true>(job, *shared).sum();
}

// Adds the gradients of the pairs after ranking_sum: each active hinge counts against its pair.
extern "C" __global__ void __launch_bounds__(256) ranking_add_pairs(const RankingJob job) {
  const ranking::Warp warp;
  for (int64_t p = warp.first; p < job.n_pairs; p += warp.stride) {
    const int32_t active = job.active[p];
    if (active) {
      ranking::add_entry(job, job.first_caption + p, job.first_image + p, -static_cast<float>(active), warp.lane);
    }
  }
}

// Fills best_captions and best_images, which must be 0.
extern "C" __global__ void __launch_bounds__(256, 1) ranking_hardest(const RankingJob job) {
  EMBFAST_DYNAMIC_SHARED(ranking::Tile, shared);
  ranking::Block<false>(job, *shared).hardest();
}
extern "C" __global__ void __launch_bounds__(256, 1) ranking_hardest_order(const RankingJob job) {
  EMBFAST_DYNAMIC_SHARED(ranking::Tile, shared);
  ranking::Block<true>(job, *shared).hardest();
}

// Adds loss and gradients of the hinges of the hardest negatives.
extern "C" __global__ void __launch_bounds__(256) ranking_add_hardest(const RankingJob job) {
  const ranking::Warp warp;
  for (int64_t p = warp.first; p < job.n_pairs; p += warp.stride) {
    const int64_t i = job.first_caption + p, j = job.first_image + p;
    double loss = 0.0;
    for (int side = 0; side < 2; ++side) {
      if (!(side == 0 ? job.of_images : job.of_captions)) continue;
      const unsigned long long best = side == 0 ? job.best_captions[p] : job.best_images[p];
      if (best == 0) continue;  // no negatives
      const float hinge = job.margin + ranking::key_similarity(best) - job.paired[p];
      if (!(hinge > 0.0f)) continue;
      loss += hinge;
      const int64_t other = ranking::key_place(best);
      ranking::add_entry(job, side == 0 ? i : other, side == 0 ? other : j, 1.0f, warp.lane);
      ranking::add_entry(job, i, j, -1.0f, warp.lane);
    }
    if (warp.lane == 0 && loss > 0.0) atomicAdd(job.loss, loss);
  }
}

// Turns the gradient by normalised rows into that by the rows themselves, in place.
extern "C" __global__ void __launch_bounds__(256)
    ranking_finish(const float* rows, const float* scales, int64_t n, int64_t dim, float* gradient) {
  const ranking::Warp warp;
  for (int64_t row = warp.first; row < n; row += warp.stride) {
    const float scale = scales[row];
    float along = 0.0f;
    for (int64_t d = warp.lane; d < dim; d += lanes) {
      along = fmaf(gradient[row * dim + d], rows[row * dim + d] * scale, along);
    }
    along = ranking::warp_sum(along);
    for (int64_t d = warp.lane; d < dim; d += lanes) {
      const float unit = rows[row * dim + d] * scale;
      gradient[row * dim + d] = scale * (gradient[row * dim + d] - along * unit);
    }
  }
}

}  // namespace embfast
