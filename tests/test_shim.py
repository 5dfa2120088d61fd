"""The CUDA shim: small kernels with each of the faults that it must detect."""

import textwrap

import numpy as np
import pytest
import shim
from numpy.testing import assert_array_equal

KERNELS = """
#include "shim.h"

extern "C" __global__ void numbers(unsigned* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = i + 1000 * blockDim.x + 1000000 * gridDim.x;
}
extern "C" __global__ void neighbour(int* out) {
  EMBFAST_DYNAMIC_SHARED(int, shared);
  __shared__ int other[64];
  shared[threadIdx.x] = threadIdx.x + 10 * blockIdx.x;
  other[threadIdx.x] = 2 * threadIdx.x;
  __syncthreads();
  const unsigned next = (threadIdx.x + 1) % blockDim.x;
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[next] + 100 * other[next];
}
extern "C" __global__ void no_barrier(int* out) {
  EMBFAST_DYNAMIC_SHARED(int, shared);
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}
extern "C" __global__ void no_syncwarp(int* out) {
  EMBFAST_DYNAMIC_SHARED(int, shared);
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[threadIdx.x ^ 1] + __shfl_sync(0xffffffffu, 1, 0);
}
extern "C" __global__ void unwritten(float* out) {
  EMBFAST_DYNAMIC_SHARED(float, shared);
  __shared__ float other[32];
  if (threadIdx.x != 5) shared[threadIdx.x] = other[threadIdx.x] = 1.0f;
  out[threadIdx.x] = shared[threadIdx.x];
  out[32 + threadIdx.x] = other[threadIdx.x];
}
extern "C" __global__ void past_shared(float* out) {
  EMBFAST_DYNAMIC_SHARED(float, shared);
  shared[threadIdx.x + 1] = 1.0f;
  out[threadIdx.x] = 0.0f;
}
extern "C" __global__ void shuffles(int* out) {
  const int lane = threadIdx.x;
  out[lane] = __shfl_xor_sync(0xffffffffu, lane, 5);
  out[32 + lane] = __shfl_down_sync(0xffffffffu, lane, 3);
  out[64 + lane] = __shfl_up_sync(0xffffffffu, lane, 3, 8);
  out[96 + lane] = __shfl_sync(0xffffffffu, lane, 11, 8);
  out[128 + lane] = __ballot_sync(0xffffffffu, lane % 3 == 0);
  if (lane < 7) out[160 + lane] = __ballot_sync(0x7fu, lane > 2);
}
extern "C" __global__ void not_in_mask(int* out) { out[threadIdx.x] = __shfl_sync(0xffffu, 1, 0); }
extern "C" __global__ void from_outside(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1, 16);
}
extern "C" __global__ void two_places(int* out) {
  if (threadIdx.x < 16) {
    out[0] = __shfl_sync(0xffffffffu, 1, 0);
  } else {
    out[1] = __shfl_sync(0xffffffffu, 1, 0);
  }
}
extern "C" __global__ void lane_returned(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
}
extern "C" __global__ void thread_returned(int*) {
  if (threadIdx.x == 3) return;
  __syncthreads();
}
extern "C" __global__ void two_barriers(int*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
extern "C" __global__ void crossed(int*) {
  if (threadIdx.x == 0) __syncwarp();
  else __syncthreads();
}
extern "C" __global__ void plain_sum(float* out) { out[0] += 1.0f; }
extern "C" __global__ void racy_sum(float* out) { __stcg(out, __ldcg(out) + 1.0f); }
extern "C" __global__ void sum(float* out) { atomicAdd(out, 1.0f); }

SHIM_KERNEL(numbers);
SHIM_KERNEL(neighbour);
SHIM_KERNEL(no_barrier);
SHIM_KERNEL(no_syncwarp);
SHIM_KERNEL(unwritten);
SHIM_KERNEL(past_shared);
SHIM_KERNEL(shuffles);
SHIM_KERNEL(not_in_mask);
SHIM_KERNEL(from_outside);
SHIM_KERNEL(two_places);
SHIM_KERNEL(lane_returned);
SHIM_KERNEL(thread_returned);
SHIM_KERNEL(two_barriers);
SHIM_KERNEL(crossed);
SHIM_KERNEL(plain_sum);
SHIM_KERNEL(racy_sum);
SHIM_KERNEL(sum);
"""


@pytest.fixture(scope="module")
def library():
    return shim.Shim(shim.build("faults", kernels=KERNELS))


@pytest.fixture(params=shim.SCHEDULES)
def scheduled(request, library):
    library.schedule(request.param, seed=7)
    return library


def test_numbers_of_threads_and_blocks(scheduled):
    out = np.zeros(96, np.uint32)
    scheduled.launch("numbers", 3, 32, [out])
    assert_array_equal(out, np.arange(96) + 32_000 + 3_000_000)


@pytest.mark.parametrize("resident", [1, 3])
def test_a_barrier_shows_what_others_wrote(scheduled, resident):
    """Also for static shared memory, of which each block has its own."""
    scheduled.schedule("random", 3, resident)
    out = np.zeros(192, np.int32)
    scheduled.launch("neighbour", 3, 64, [out], shared=256)
    following = (np.arange(64) + 1) % 64
    assert_array_equal(out.reshape(3, 64), 201 * following + 10 * np.arange(3)[:, None])


def test_shuffles_and_votes(scheduled):
    out, lane = np.full(192, -1, np.int32), np.arange(32)
    scheduled.launch("shuffles", 1, 32, [out])
    assert_array_equal(out[:32], lane ^ 5)
    assert_array_equal(out[32:64], np.where(lane + 3 < 32, lane + 3, lane))
    assert_array_equal(out[64:96], np.where(lane % 8 >= 3, lane - 3, lane))
    assert_array_equal(out[96:128], lane // 8 * 8 + 3)
    assert_array_equal(out[128:160].view(np.uint32), sum(1 << n for n in range(0, 32, 3)))
    assert_array_equal(out[160:], [0x78] * 7 + [-1] * 25)


@pytest.mark.parametrize(
    ("kernel", "threads", "message"),
    [
        ("not_in_mask", 32, "is not in its mask 0000ffff"),
        ("from_outside", 32, "reads lane 16, outside mask 0000ffff"),
        ("two_places", 32, "lanes of a warp synchronise at different places"),
        ("lane_returned", 32, "names lane 3, which has returned"),
        ("two_places", 16, "beyond the end of the block"),
        ("thread_returned", 64, "others have returned"),
        ("two_barriers", 64, "different __syncthreads"),
        ("crossed", 32, "deadlock"),
        ("numbers", 2048, "1 to 1,024 threads, got 2048"),
        ("nothing", 32, "no kernel is named nothing"),
    ],
)
def test_a_fault_is_named(kernel, threads, message, scheduled):
    with pytest.raises(shim.ShimError, match=message):
        scheduled.launch(kernel, 1, threads, [np.zeros(2048, np.int32)])
    out = np.zeros(32, np.uint32)
    scheduled.launch("numbers", 1, 32, [out])
    assert out[31] == 1_032_031, "the next launch is unaffected"


def test_too_much_shared_memory_is_named(library):
    with pytest.raises(shim.ShimError, match="at most 232448 bytes of shared memory"):
        library.launch("numbers", 1, 32, [np.zeros(32, np.uint32)], shared=300_000)


def test_a_wrong_number_of_arguments_is_named(library):
    with pytest.raises(shim.ShimError, match=r"numbers: takes arguments of \[8\] bytes, got \[8, 4\]"):
        library.launch("numbers", 1, 32, [np.zeros(32, np.uint32), np.int32(1)])


def test_unwritten_shared_memory_is_nan(scheduled):
    out = np.zeros(64, np.float32)
    scheduled.launch("unwritten", 2, 32, [out], shared=128)
    assert_array_equal(np.flatnonzero(np.isnan(out)), [5, 37])


def test_schedules_tell_a_missing_barrier(library):
    results = []
    for policy in shim.SCHEDULES:
        library.schedule(policy)
        out = np.zeros(64, np.int32)
        library.launch("no_barrier", 1, 64, [out], shared=256)
        results.append(out.tolist())
    assert results[0] != results[1]


def test_accessors_count_and_lose_nothing_that_is_atomic(library):
    library.schedule("random", 5)
    out = np.zeros(1, np.float32)
    library.counters()
    library.launch("sum", 4, 64, [out])
    assert out[0] == 256
    counted = library.counters()
    assert counted["additions"] == 256
    assert counted["bytes_added"] == 1024
    out[0] = 0
    library.launch("racy_sum", 4, 64, [out])
    assert 0 < out[0] < 256, "additions that are not atomic are lost"
    counted = library.counters()
    assert (counted["bytes_read"], counted["bytes_written"]) == (1024, 1024)


def under(sanitizer, *kernels, shared=256):
    """Launches kernels in a separate process with a sanitizer. Returns the completed process."""
    script = f"""
        import numpy as np, shim
        library = shim.Shim({str(shim.build("faults", kernels=KERNELS, sanitizer=sanitizer))!r})
        for kernel in {kernels!r}:
            library.launch(kernel, 1, 32, [np.zeros(256, np.float32)], shared={shared})
            print(kernel, "returned")
    """
    return shim.run_sanitized(sanitizer, textwrap.dedent(script))


def test_address_sanitizer_sees_past_the_end_of_shared_memory():
    done = under("address", "neighbour", "past_shared", shared=128)
    assert done.stdout == "neighbour returned\n", done.stderr
    assert "heap-buffer-overflow" in done.stderr


def test_thread_sanitizer_sees_what_no_barrier_orders():
    done = under("thread", "no_barrier", "no_syncwarp", "plain_sum")
    for kernel in ("no_barrier", "no_syncwarp", "plain_sum"):
        assert f"#0 {kernel} " in done.stderr
    assert done.stderr.count("WARNING: ThreadSanitizer: data race") >= 3
    assert done.returncode == 66


def test_thread_sanitizer_accepts_ordered_access():
    done = under("thread", "neighbour", "sum", "shuffles", "racy_sum")
    assert done.stdout.count("returned") == 4, done.stderr
    assert "data race" not in done.stderr
    assert done.returncode == 0
