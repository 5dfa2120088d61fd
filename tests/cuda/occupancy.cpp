// Prints the number of resident warps per multiprocessor, from NVIDIA's occupancy calculator; needs no device.
// Usage: occupancy ARCHITECTURE THREADS REGISTERS SHARED_BYTES, with threads and shared memory per block.
#include <cuda_occupancy.h>

#include <cstdio>
#include <cstdlib>

struct Limits {
  int architecture, threads, shared_of_processor, shared_of_block;
};
constexpr Limits known[] = {
    {75, 1024, 65536, 65536},   {80, 2048, 167936, 166912},  {86, 1536, 102400, 101376},  {89, 1536, 102400, 101376},
    {90, 2048, 233472, 232448}, {100, 2048, 233472, 232448}, {120, 1536, 102400, 101376},
};

int main(int, char** arguments) {
  const int architecture = std::atoi(arguments[1]), threads = std::atoi(arguments[2]);
  for (const Limits& limits : known) {
    if (limits.architecture != architecture) continue;
    cudaOccDeviceProp device{};
    device.computeMajor = architecture / 10;
    device.computeMinor = architecture % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = limits.threads;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 49152;
    device.sharedMemPerMultiprocessor = limits.shared_of_processor;
    device.sharedMemPerBlockOptin = limits.shared_of_block;
    device.reservedSharedMemPerBlock = architecture >= 80 ? 1024 : 0;
    device.numSms = 1;
    cudaOccFuncAttributes kernel{};
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = std::atoi(arguments[3]);
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = limits.shared_of_block;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state{};
    state.cacheConfig = CACHE_PREFER_SHARED;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result{};
    const size_t shared = std::strtoul(arguments[4], nullptr, 10);
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared)) return 1;
    std::printf("%d\n", result.activeBlocksPerMultiprocessor * threads / 32);
    return 0;
  }
  return 1;
}
