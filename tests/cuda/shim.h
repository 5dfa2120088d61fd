// CUDA C++ on the CPU, for tests only: each thread of a kernel is a fiber, and synchronisation switches fibers.
// Mistakes that a device would answer with wrong numbers or silence are errors here: see shim.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

// Defined after the standard library, which has its own names that begin with two underscores.
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
// One copy for all blocks, in a section that the shim fills with NaN and swaps when it switches blocks.
#define __shared__ static __attribute__((section("shim_shared")))
#define EMBFAST_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(shim::current->dynamic_shared)
#define EMBFAST_UNROLL

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace shim {

enum class Wait { block, warp, shuffle, vote };

struct Where {
  uint3 thread, block;
  dim3 block_size, grid_size;
  void* dynamic_shared;
  unsigned lane;
};
extern Where* current;

// Counts of accesses through the functions below.
struct Counters {
  uint64_t bytes_read, bytes_written, bytes_added, additions, collectives, switches;
};
extern Counters counters;

// Synchronises the lanes of the mask, or all threads of the block. Returns the value that the lane receives.
uint64_t meet(Wait wait, unsigned mask, uint64_t value, int source, const char* file, int line);
void pause();  // at an access that may race: a random schedule may switch threads here
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

template <class T>
uint64_t bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t u = 0;
  std::memcpy(&u, &value, sizeof value);
  return u;
}
template <class T>
T from_bits(uint64_t u) {
  T value;
  std::memcpy(&value, &u, sizeof value);
  return value;
}

}  // namespace shim

#define threadIdx (shim::current->thread)
#define blockIdx (shim::current->block)
#define blockDim (shim::current->block_size)
#define gridDim (shim::current->grid_size)

// ---- synchronisation and exchange ---------------------------------------------------------------------------------

#define SHIM_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SHIM_HERE) { shim::meet(shim::Wait::block, 0, 0, 0, file, line); }
inline int __syncthreads_or(int vote, SHIM_HERE) {
  return static_cast<int>(shim::meet(shim::Wait::block, 0, vote != 0, 0, file, line));
}
inline void __syncwarp(unsigned mask = 0xffffffffu, SHIM_HERE) { shim::meet(shim::Wait::warp, mask, 0, 0, file, line); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SHIM_HERE) {
  const int lane = shim::current->lane, base = lane & ~(width - 1);
  const int from = base | (source & (width - 1));
  return shim::from_bits<T>(shim::meet(shim::Wait::shuffle, mask, shim::bits(value), from, file, line));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = 32, SHIM_HERE) {
  const int lane = shim::current->lane, to = lane ^ flipped;
  const int from = to >= (lane & ~(width - 1)) + width ? lane : to;
  return shim::from_bits<T>(shim::meet(shim::Wait::shuffle, mask, shim::bits(value), from, file, line));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, SHIM_HERE) {
  const int lane = shim::current->lane;
  const int from = (lane & (width - 1)) + static_cast<int>(by) >= width ? lane : lane + static_cast<int>(by);
  return shim::from_bits<T>(shim::meet(shim::Wait::shuffle, mask, shim::bits(value), from, file, line));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, SHIM_HERE) {
  const int lane = shim::current->lane;
  const int from = (lane & (width - 1)) < static_cast<int>(by) ? lane : lane - static_cast<int>(by);
  return shim::from_bits<T>(shim::meet(shim::Wait::shuffle, mask, shim::bits(value), from, file, line));
}
inline unsigned __ballot_sync(unsigned mask, int vote, SHIM_HERE) {
  return static_cast<unsigned>(shim::meet(shim::Wait::vote, mask, vote != 0, 0, file, line));
}
inline int __any_sync(unsigned mask, int vote, SHIM_HERE) {
  return shim::meet(shim::Wait::vote, mask, vote != 0, 0, file, line) != 0;
}
inline int __all_sync(unsigned mask, int vote, SHIM_HERE) {
  return shim::meet(shim::Wait::vote, mask, vote != 0, 0, file, line) == mask;
}

inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }

// ---- global memory that other threads write to --------------------------------------------------------------------

#ifdef __SANITIZE_THREAD__
#define SHIM_COUNT(what, n)  // the counters themselves would race
#else
#define SHIM_COUNT(what, n) (shim::counters.what += (n))
#endif

template <class T>
T __ldcg(const T* p) {
  SHIM_COUNT(bytes_read, sizeof(T));
  shim::pause();
  T value;
  if constexpr (sizeof(T) == 16) {
    const auto* from = reinterpret_cast<const float*>(p);
    auto* to = reinterpret_cast<float*>(&value);
    for (int i = 0; i < 4; ++i) __atomic_load(from + i, to + i, __ATOMIC_RELAXED);
  } else {
    __atomic_load(p, &value, __ATOMIC_RELAXED);
  }
  return value;
}
template <class T>
void __stcg(T* p, T value) {
  SHIM_COUNT(bytes_written, sizeof(T));
  shim::pause();
  if constexpr (sizeof(T) == 16) {
    auto* to = reinterpret_cast<float*>(p);
    auto* from = reinterpret_cast<float*>(&value);
    for (int i = 0; i < 4; ++i) __atomic_store(to + i, from + i, __ATOMIC_RELAXED);
  } else {
    __atomic_store(p, &value, __ATOMIC_RELAXED);
  }
}
template <class T>
T atomicAdd(T* p, T value) {
  SHIM_COUNT(bytes_added, sizeof(T));
  SHIM_COUNT(additions, 1);
  shim::pause();
  T before, after;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  do {
    after = before + value;
  } while (!__atomic_compare_exchange(p, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}
// Keeps the minimum or maximum and returns the previous value.
template <class T, class Better>
T shim_keep(T* p, T value, Better better) {
  SHIM_COUNT(bytes_added, sizeof(T));
  SHIM_COUNT(additions, 1);
  shim::pause();
  T before;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  while (better(value, before) &&
         !__atomic_compare_exchange(p, &before, &value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return before;
}
template <class T>
T atomicMin(T* p, T value) {
  return shim_keep(p, value, [](T a, T b) { return a < b; });
}
template <class T>
T atomicMax(T* p, T value) {
  return shim_keep(p, value, [](T a, T b) { return a > b; });
}
// Loads memory that no thread writes to while the kernel runs.
template <class T>
T __ldg(const T* p) {
  return *p;
}

// ---- arithmetic ---------------------------------------------------------------------------------------------------

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(shim::bits(x)); }
inline float __uint_as_float(unsigned x) { return shim::from_bits<float>(x); }
inline double __longlong_as_double(long long x) { return shim::from_bits<double>(static_cast<uint64_t>(x)); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __saturatef(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
using std::max;
using std::min;

// ---- kernels by name ----------------------------------------------------------------------------------------------

namespace shim {

using Arguments = void**;  // the address of each argument, as in cuLaunchKernel
using Launcher = void (*)(Arguments);
void add_kernel(const char* name, Launcher launcher, std::initializer_list<size_t> sizes);

template <auto kernel>
struct Unpacked;
template <class... P, void (*kernel)(P...)>
struct Unpacked<kernel> {
  static void call(Arguments arguments) { call(arguments, std::index_sequence_for<P...>()); }
  template <size_t... I>
  static void call([[maybe_unused]] Arguments arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
  }
  static void add(const char* name) { add_kernel(name, call, {sizeof(P)...}); }
};

}  // namespace shim

#define SHIM_KERNEL(kernel) static const bool kernel##_added = (shim::Unpacked<kernel>::add(#kernel), true)
