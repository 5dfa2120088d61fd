"""Ternary rows on a CUDA device: launches of csrc/ternary.cu.

Only embfast.kernels imports this module, and only when a device is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from embfast.device import Device, Lane

FOUND = np.dtype([("key", np.float64), ("row", np.int64)])  # of a search
BEST_THREADS = 256  # of a block of ternary_best
MAX_BEST = 768  # rows that one search returns: with those of a block they fit into 16 KB of shared memory
THREADS = 256
NONE = 2**64 - 1


def best_size(k: int) -> int:
    """Places that ternary_best needs for k rows: a power of 2."""
    return 1 << (k + BEST_THREADS - 1).bit_length()


class Packer:
    """Makes bit planes of features on a device, by two thresholds each: kernels.ternary_pack.

    Features pass through two lanes, one being copied while the other is packed; those that are on the device already,
    a cupy.ndarray or what has its interface, are packed where they lie. Memory on the device: two blocks and their
    planes.
    """

    def __init__(self, device: Device, low: np.ndarray, high: np.ndarray) -> None:
        self.device, self._cupy, self._dim = device, device.cupy, len(low)
        with device.current():
            self._lanes = [Lane(self._cupy), Lane(self._cupy)]
            stream = self._lanes[0].stream
            self._low, self._high = (self._cupy.empty(len(low), np.float32) for _ in range(2))
            self._low.set(np.ascontiguousarray(low, np.float32), stream=stream)
            self._high.set(np.ascontiguousarray(high, np.float32), stream=stream)
            stream.synchronize()
        self._waiting: list[Any] = [None, None]
        self._turn = 0

    def pack(self, features: Any, planes: np.ndarray, first: int) -> tuple[int, int] | None:
        """Enqueues features (n, dim), whose planes will be in `planes`. Returns what finish returns for its lane."""
        which = self._turn % 2
        self._turn += 1
        found = self._finish(which)
        lane, (n, dim) = self._lanes[which], features.shape
        words = planes.shape[2]
        with self.device.current():
            if isinstance(features, np.ndarray):
                rows = lane.send("features", np.ascontiguousarray(features, np.float32).reshape(-1))
            else:
                rows = features
            bits = lane.room("planes", planes.size, np.uint64)
            unordered = lane.send("unordered", np.array([NONE], np.uint64))
            arguments = (*(rows, self._low, self._high, np.int64(n), np.int64(dim), np.int64(words), bits, unordered),)
            kernel = self.device.kernel("ternary", "ternary_pack")
            blocks = min(-(-n // (THREADS // 32)), 8 * self.device.blocks(kernel, THREADS, 0))
            with lane.stream:
                kernel((max(blocks, 1),), (THREADS,), arguments)
        self._waiting[which] = (planes, first)
        return found

    def _finish(self, which: int) -> tuple[int, int] | None:
        """Waits for a lane. Returns (first, row) of the block where a row has a NaN, or None."""
        if self._waiting[which] is None:
            return None
        planes, first = self._waiting[which]
        self._waiting[which] = None
        lane = self._lanes[which]
        with self.device.current():
            bits = lane.room("planes", 1, np.uint64)[: planes.size].get(stream=lane.stream)
            planes[:] = bits.reshape(planes.shape)
            row = int(lane.room("unordered", 1, np.uint64)[:1].get(stream=lane.stream)[0])
        return None if row == NONE else (first, row)

    def finish(self) -> tuple[int, int] | None:
        """Waits for all; the first block with a NaN, as _finish returns it."""
        found = [self._finish((self._turn + i) % 2) for i in range(2)]
        return next((f for f in found if f is not None), None)
