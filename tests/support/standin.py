"""Replaces the parts of CuPy that embfast.device uses by numpy; its kernels are the .cu files run by the shim.

It checks arguments as strictly as CuPy. Work enqueued on a stream is delayed until the stream is synchronised, so that
premature use of a buffer changes the result.
"""

import threading
import types

import numpy as np
import shim

DRIVER = 13000


class CUDARuntimeError(RuntimeError):
    pass


class PinnedMemory(np.ndarray):
    """Memory that copies read when they run, not when they are enqueued."""


def is_pinned(array):
    while array is not None:
        if isinstance(array, PinnedMemory):
            return True
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return False


class Pointer:
    def __init__(self, ptr):
        self.ptr = ptr


class Array:
    """cupy.ndarray: device memory, which numpy cannot access by accident."""

    def __init__(self, memory):
        self._memory = memory
        self.shape, self.dtype, self.size, self.nbytes = memory.shape, memory.dtype, memory.size, memory.nbytes
        self.ndim, self.flags = memory.ndim, memory.flags
        self.data = Pointer(memory.ctypes.data)

    def __getitem__(self, key):
        assert isinstance(key, slice)
        return Array(self._memory[key])

    def __setitem__(self, key, other):
        assert isinstance(other, Array)
        Stream.current.enqueue(lambda: np.copyto(self._memory[key], other._memory))

    def set(self, arr, stream=None):
        assert isinstance(arr, np.ndarray)
        assert arr.flags.c_contiguous
        assert (arr.dtype, arr.shape) == (self.dtype, self.shape), "CuPy copies between equal shapes and dtypes"
        source = arr if is_pinned(arr) else arr.copy()
        (stream or Stream.current).enqueue(lambda: np.copyto(self._memory, source))

    def fill(self, value):
        Stream.current.enqueue(lambda: self._memory.fill(value))

    def get(self, stream=None, order="C", out=None, blocking=True):
        assert blocking
        (stream or Stream.current).synchronize()
        if out is None:
            return self._memory.copy()
        assert out.dtype == self.dtype
        assert out.shape == self.shape
        assert out.flags.c_contiguous
        np.copyto(out, self._memory)
        return out


def empty(shape, dtype=float, order="C"):
    dtype = np.dtype(dtype)
    assert dtype.kind in "iufb", "CuPy has no structured arrays"
    n = int(np.prod(shape)) * dtype.itemsize
    if n > cuda.runtime.memGetInfo()[0]:
        raise MemoryError(f"out of memory allocating {n:,} bytes")
    return Array(np.frombuffer(np.full(max(n, 1), 0xFF, np.uint8), dtype, int(np.prod(shape))).reshape(shape))


class CurrentStream(type):
    """The current stream; each thread has its own, as in CuPy."""

    @property
    def current(cls):
        return getattr(THREAD, "stream", DEFAULT)

    @current.setter
    def current(cls, stream):
        THREAD.stream = stream


class Stream(metaclass=CurrentStream):
    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self._queue, self._outer = [], []

    def enqueue(self, work):
        self._queue.append(work)

    def synchronize(self):
        while self._queue:
            self._queue.pop(0)()

    def __enter__(self):
        self._outer.append(Stream.current)
        Stream.current = self
        return self

    def __exit__(self, *exception):
        Stream.current = self._outer.pop()


THREAD, DEFAULT = threading.local(), Stream(null=True)


class CudaDevice:
    def __init__(self, device=None):
        assert device in range(runtime.getDeviceCount())
        self.id = device

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def synchronize(self):
        Stream.current.synchronize()


class RawKernel:
    def __init__(self, library, name):
        self._library, self._name = library, name
        self.kernel = Pointer(1)
        self.max_dynamic_shared_size_bytes = 48 << 10
        library.arguments(name)

    def __call__(self, grid, block, args, *, shared_mem=0):
        assert isinstance(grid, tuple)
        assert isinstance(block, tuple)
        assert min(grid) > 0, "CuPy would launch one block instead of none"
        assert shared_mem <= self.max_dynamic_shared_size_bytes, "more shared memory than the kernel has opted in to"
        values = []
        for a in args:
            if isinstance(a, Array):
                values.append(np.uint64(a.data.ptr))
            elif isinstance(a, np.ndarray):
                if a.size != 1:
                    raise TypeError("Only numpy.ndarrays of size one can be passed by value")
                values.append(a.copy().reshape(-1)[0])
            else:
                assert isinstance(a, np.generic), "a Python number is passed as 8 bytes"
                values.append(a)
        Stream.current.enqueue(lambda: self._library.launch(self._name, grid, block, values, shared_mem))


class RawModule:
    made = []  # code or path of each module

    def __init__(self, code=None, *, path=None, options=(), backend="nvrtc", translate_cucomplex=False,
                 enable_cooperative_groups=False, name_expressions=None, jitify=None):  # fmt: skip
        assert (code is None) != (path is None)
        assert isinstance(options, tuple)
        RawModule.made.append(path if code is None else code)
        self._library = shim.Shim(shim.build())

    def get_function(self, name):
        return RawKernel(self._library, name)


def alloc_pinned_memory(size):
    return np.full(size, 0xA5, np.uint8).view(PinnedMemory)


FREE = [16 << 30]
PROPERTIES = {
    "name": b"Stand-in",
    "major": 8,
    "minor": 0,
    "multiProcessorCount": 2,
    "sharedMemPerBlockOptin": 166_912,
    "totalGlobalMem": 16 << 30,
    "clockRate": 1_410_000,
    "memoryClockRate": 1_215_000,
    "memoryBusWidth": 5120,
}
runtime = types.SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDeviceCount=lambda: 1,
    getDeviceProperties=lambda device: PROPERTIES,
    memGetInfo=lambda: (FREE[0], 16 << 30),
    driverGetVersion=lambda: DRIVER,
    runtimeGetVersion=lambda: 13020,
)
driver = types.SimpleNamespace(
    occupancyMaxActiveBlocksPerMultiprocessor=lambda func, blockSize, dynamicSMemSize: 1,
)
cuda = types.SimpleNamespace(
    runtime=runtime,
    driver=driver,
    Stream=Stream,
    Device=CudaDevice,
    alloc_pinned_memory=alloc_pinned_memory,
    get_current_stream=lambda: Stream.current,
)
__version__ = "14.0.0"
