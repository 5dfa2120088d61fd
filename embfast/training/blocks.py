"""How a corpus is cut for threads, for calls of a kernel, and for a device."""

import mmap

import numpy as np

from embfast import kernels

BLOCK = 4096  # tokens that one thread takes at a time
SNAP = 1024  # a block ends with a document when one ends this near
DEVICE_SLICE = 4096  # blocks of one call of a device: about 16.8 M tokens, a tenth of a second or so
CHAPTER = 4096  # blocks, about 16.8 M tokens, that take their negatives from one pool of draws
_SLICE_WORK = 150_000  # blocks x padded dim x window of one kernel call and thread: about a quarter of a second


def make_blocks(offsets: np.ndarray, block: int = BLOCK, snap: int = SNAP) -> np.ndarray:
    """Edges of blocks of about 4,096 tokens, int64 (n_blocks + 1,); or of `block`, snapped within `snap`.

    An edge is moved to the nearest end of a document within 1,024 tokens. Where there is none the block ends inside a
    document, and windows do not cross that cut: of a document much longer than a block, one token in about 400 sees a
    window that is cut short at window=5. Memory: 50 bytes a block; mapped offsets are searched where they lie.
    """
    first, last = int(offsets[0]), int(offsets[-1])
    targets = np.arange(first + block, last, block, dtype=np.int64)
    after = np.searchsorted(offsets, targets)
    before, behind = offsets[after - 1], offsets[after]
    nearest = np.where(targets - before <= behind - targets, before, behind)
    cuts = np.where(np.abs(nearest - targets) <= snap, nearest, targets)
    return np.unique(np.concatenate([[first], cuts, [last]]).astype(np.int64))


def make_pieces(offsets: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Edges of what one block of threads of a device takes, int64: blocks cut into about 1,024 tokens each.

    There the device has work for thousands at a time. Windows are cut short beside one token in 100 of a long document,
    as those of word2vec.c are, which cuts at 1,000 words.
    """
    return np.unique(np.concatenate([make_blocks(offsets, BLOCK // 4, SNAP // 4), blocks]))


def blocks_per_slice(dim: int, window: int, threads: int) -> int:
    """Blocks of one kernel call: about a quarter of a second of work, and the same number on any machine."""
    return max(1, threads * _SLICE_WORK // (kernels.padded(dim) * window))


def forget_read(ids: np.ndarray, begin: int, end: int) -> None:
    """Gives back the memory of ids[begin:end] where they are mapped from a file; the kernel can read them again."""
    memory = getattr(ids, "_mmap", None)  # of a copy, or one that was pickled, there is none
    if memory is None or ids.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = ids.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    lo = -(-(start + begin * ids.itemsize) // mmap.PAGESIZE) * mmap.PAGESIZE
    hi = (start + end * ids.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
    if hi > lo:
        memory.madvise(mmap.MADV_DONTNEED, lo, hi - lo)
