"""Cuts a corpus into blocks for threads, slices for kernel calls, and pieces for a device."""

import mmap

import numpy as np

from embfast import kernels

BLOCK = 4096  # tokens that one thread takes at a time
SNAP = 1024  # a block ends with a document when one ends this near
DEVICE_SLICE = 4096  # blocks of one call of a device: about 16.8 M tokens, a tenth of a second or so
CHAPTER = 4096  # blocks, about 16.8 M tokens, that take their negatives from one pool of draws
_SLICE_WORK = 150_000  # blocks x padded dim x window of one kernel call and thread: about a quarter of a second


def make_blocks(offsets: np.ndarray, block: int = BLOCK, snap: int = SNAP) -> np.ndarray:
    """Edges of blocks of about `block` tokens, int64 (n_blocks + 1,).

    An edge moves to the nearest end of a document within `snap` tokens. If there is none, the block ends inside a
    document, and windows do not cross that cut: in a document much longer than a block, about one token in 400 has a
    truncated window at window=5. Memory: 50 bytes per block; mapped offsets are searched in place.
    """
    first, last = int(offsets[0]), int(offsets[-1])
    targets = np.arange(first + block, last, block, dtype=np.int64)
    after = np.searchsorted(offsets, targets)
    before, behind = offsets[after - 1], offsets[after]
    nearest = np.where(targets - before <= behind - targets, before, behind)
    cuts = np.where(np.abs(nearest - targets) <= snap, nearest, targets)
    return np.unique(np.concatenate([[first], cuts, [last]]).astype(np.int64))


def make_pieces(offsets: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Edges of the pieces that thread blocks of a device take, int64: blocks cut into about 1,024 tokens each.

    Smaller pieces give a device thousands of thread blocks at a time. One token in 100 of a long document has a
    truncated window; word2vec.c, which cuts at 1,000 words, has as many.
    """
    return np.unique(np.concatenate([make_blocks(offsets, BLOCK // 4, SNAP // 4), blocks]))


def blocks_per_slice(dim: int, window: int, threads: int) -> int:
    """Blocks of one kernel call: about a quarter of a second of work, and the same number on every machine."""
    return max(1, threads * _SLICE_WORK // (kernels.padded(dim) * window))


def forget_read(ids: np.ndarray, begin: int, end: int) -> None:
    """Releases the pages of ids[begin:end] if they are mapped from a file; reading them again is possible."""
    memory = getattr(ids, "_mmap", None)  # a copy or an unpickled array has none
    if memory is None or getattr(ids, "mode", None) == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = ids.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    lo = -(-(start + begin * ids.itemsize) // mmap.PAGESIZE) * mmap.PAGESIZE
    hi = (start + end * ids.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
    if hi > lo:
        memory.madvise(mmap.MADV_DONTNEED, lo, hi - lo)
