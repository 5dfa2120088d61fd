"""Ternary rows on a CUDA device: launches the kernels of csrc/ternary/ternary.cu.

Only embfast.kernels imports this module, and only if a device is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from embfast.device.cuda import LANES, Device
from embfast.device.sequences import Lane

FOUND = np.dtype([("key", np.float64), ("row", np.int64)])  # result of a search
BEST_THREADS = 256  # per block of ternary_best
MOST_BEST = 768  # rows per search: with a block's candidates, they fit into 16 KB of shared memory
THREADS = 256
NONE = 2**64 - 1


def best_size(k: int) -> int:
    """Slots of shared memory that ternary_best needs for k rows: a power of 2."""
    return 1 << (k + BEST_THREADS - 1).bit_length()


class Packer:
    """Packs features to bit planes on a device, by two thresholds per feature, as kernels.ternary_pack.

    Features pass through two lanes: one is copied while the other is packed. Features that are on the device already
    are packed in place. Device memory: two chunks and their planes.
    """

    def __init__(self, device: Device, low: np.ndarray, high: np.ndarray) -> None:
        self.device, cupy = device, device.cupy
        with device.current():
            self._lanes = [Lane(cupy), Lane(cupy)]
            stream = self._lanes[0].stream
            self._low, self._high = (cupy.empty(len(low), np.float32) for _ in range(2))
            self._low.set(np.ascontiguousarray(low, np.float32), stream=stream)
            self._high.set(np.ascontiguousarray(high, np.float32), stream=stream)
            stream.synchronize()
        self._waiting: list[Any] = [None, None]  # per lane: planes to fill, and the number of their first row
        self._turn = 0

    def pack(self, features: Any, planes: np.ndarray, first: int) -> tuple[int, int] | None:
        """Enqueues features (n, dim), rows from number `first` on. The next call but one fills their planes.

        Returns None, or (first, row) of the chunk enqueued two calls ago: its `first`, and its first row with a NaN.
        """
        which = self._turn % 2
        self._turn += 1
        found = self._finish(which)
        lane, (n, dim), words = self._lanes[which], features.shape, planes.shape[2]
        with self.device.current():
            if isinstance(features, np.ndarray):
                rows = lane.send("features", np.ascontiguousarray(features, np.float32).reshape(-1))
            else:
                rows = features
                if rows.dtype != np.float32 or not rows.flags.c_contiguous:
                    raise ValueError(f"features on a device: expected float32 in C order, got {rows.dtype}")
                self.device.cupy.cuda.get_current_stream().synchronize()  # wait until they are computed
            bits = lane.room("planes", planes.size, np.uint64)
            unordered = lane.send("unordered", np.array([NONE], np.uint64))
            kernel = self.device.kernel("ternary", "ternary_pack")
            blocks = min(-(-n // (THREADS // LANES)), self.device.blocks(kernel, THREADS, 0))
            with lane.stream:
                arguments = (rows, self._low, self._high, np.int64(n), np.int64(dim), np.int64(words), bits, unordered)
                kernel((max(blocks, 1),), (THREADS,), arguments)
        self._waiting[which] = (planes, first)
        return found

    def _finish(self, which: int) -> tuple[int, int] | None:
        if self._waiting[which] is None:
            return None
        (planes, first), lane = self._waiting[which], self._lanes[which]
        self._waiting[which] = None
        with self.device.current():
            bits = lane.room("planes", 1, np.uint64)[: planes.size].get(stream=lane.stream)
            planes[:] = bits.reshape(planes.shape)
            row = int(lane.room("unordered", 1, np.uint64)[:1].get(stream=lane.stream)[0])
        return None if row == NONE else (first, row)

    def finish(self) -> tuple[int, int] | None:
        """Fills the remaining planes; returns (first, row) of the first chunk with a NaN, or None."""
        found = [self._finish((self._turn + i) % 2) for i in range(2)]
        return next((f for f in found if f is not None), None)

    def row(self, features: Any, row: int) -> np.ndarray:
        """One row on the CPU, float32 (dim,)."""
        values = features[row : row + 1]
        return np.asarray(values if isinstance(values, np.ndarray) else values.get(), np.float32)[0]
