// Building blocks of the device kernels: rows distributed over threads, sums across threads, and atomic row updates.
// Global memory that several blocks write to is accessed only through load and add; all other memory has one writer.
#pragma once

#ifdef EMBFAST_SHIM  // the tests run these sources on the CPU: tests/cuda/shim.h
#include "shim.h"
#else
#define EMBFAST_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#define EMBFAST_UNROLL _Pragma("unroll")
#endif

#include "core/random.h"
#include "core/scalar.h"

namespace embfast {

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int lanes = 32;

__device__ inline float4 zero4() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }

// sum + a . b
__device__ inline float dot(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// y + s * x
__device__ inline float4 plus(float4 y, float s, float4 x) {
  return make_float4(fmaf(s, x.x, y.x), fmaf(s, x.y, y.y), fmaf(s, x.z, y.z), fmaf(s, x.w, y.w));
}

// Bypasses the L1 cache, which does not see additions by other multiprocessors.
__device__ inline float4 load(const float4* p) { return __ldcg(p); }

// *p += x, atomically for each component.
__device__ inline void add(float4* p, float4 x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  atomicAdd(p, x);
#else
  float* const f = reinterpret_cast<float*>(p);
  atomicAdd(f, x.x);
  atomicAdd(f + 1, x.y);
  atomicAdd(f + 2, x.z);
  atomicAdd(f + 3, x.w);
#endif
}

// Sums four numbers over the lanes of a warp in six shuffles; each lane receives sum number sum_of(lane).
__device__ inline int sum_of(int lane) { return (lane >> 4 & 1) | (lane >> 2 & 2); }
__device__ inline int lane_of(int sum) { return (sum & 1) << 4 | (sum & 2) << 2; }  // the first lane that has it
__device__ inline float sums4(float s0, float s1, float s2, float s3, int lane) {
  const bool high = lane & 16, odd = lane & 8;
  float a = high ? s1 : s0, b = high ? s3 : s2;
  a += __shfl_xor_sync(all_lanes, high ? s0 : s1, 16);
  b += __shfl_xor_sync(all_lanes, high ? s2 : s3, 16);
  float c = odd ? b : a;
  c += __shfl_xor_sync(all_lanes, odd ? a : b, 8);
  c += __shfl_xor_sync(all_lanes, c, 4);
  c += __shfl_xor_sync(all_lanes, c, 2);
  return c + __shfl_xor_sync(all_lanes, c, 1);
}

// The threads that share a row. Thread i owns elements 4i to 4i + 3 of every row that the block works on; no other
// thread of the block touches them, so rows need no barrier. With `several` warps, sums synchronise the block.
template <bool several>
struct Team {
  float* partial;  // shared memory, with several warps: 2 x 4 sums for each
  int lane, warp, n_warps, turn;

  __device__ explicit Team(float* partial)
      : partial(partial),
        lane(static_cast<int>(threadIdx.x % lanes)),
        warp(static_cast<int>(threadIdx.x / lanes)),
        n_warps(static_cast<int>(blockDim.x / lanes)),
        turn(0) {}

  // Four sums over all threads, in the order of sums4. All warps receive the same bits.
  __device__ float sums(const float (&s)[4]) {
    const float own = sums4(s[0], s[1], s[2], s[3], lane);
    if (!several) return own;
    float* const sums = partial + turn;
    if ((lane & 7) == 0) sums[4 * warp + sum_of(lane)] = own;
    __syncthreads();
    float total = 0.0f;
    for (int w = 0; w < n_warps; ++w) total += sums[4 * w + sum_of(lane)];
    turn = turn ? 0 : 4 * n_warps;  // slow warps may still be reading: the next four sums use the other buffer
    return total;
  }
};

// A logistic step: p = sigmoid(score), and the loss -log p for label 1 or -log(1 - p) for label 0.
struct Logistic {
  float p, loss;
};
__device__ inline Logistic logistic(float score, bool label) {
  const float e = __expf(-fabsf(score)), p = __fdividef(1.0f, 1.0f + e);
  return {score < 0.0f ? e * p : p, __logf(1.0f + e) + fmaxf(label ? -score : score, 0.0f)};
}

}  // namespace embfast
