"""The one door to compiled code: nothing else imports embfast._cpu."""

import mmap

import numpy as np

try:
    from embfast import _cpu
except ImportError as error:
    raise ImportError(
        f"embfast's compiled module did not load ({error}). Install the package with a C++ compiler at hand: "
        "`pip install .` in a checkout, or `pip install embfast`."
    ) from error

# Text to ids (csrc/text.h): used by embfast.corpus, which turns its faults into errors with a file and a line.
TextEncoder = _cpu.TextEncoder

NoiseTable = _cpu.NoiseTable
HuffmanTree = _cpu.HuffmanTree
MAX_CENTERS = _cpu.max_centers
isa = _cpu.isa
train_sequences = _cpu.train_sequences
infer_documents = _cpu.infer_documents
fma_peak = _cpu.fma_peak
read_bandwidth = _cpu.read_bandwidth


def padded(dim: int) -> int:
    """Columns of a weight table for vectors of dim numbers: the next multiple of 16, the widest SIMD register."""
    return -(-dim // 16) * 16


def weight_table(n: int, dim: int) -> np.ndarray:
    """Zeros, float32 (n, padded(dim)), on huge pages where the system has them; kernels change it in place.

    The vectors are table[:, :dim]; the columns beyond hold zeros, and training keeps them so.
    """
    memory = mmap.mmap(-1, max(n * padded(dim) * 4, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.float32, n * padded(dim)).reshape(n, padded(dim))
