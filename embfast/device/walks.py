"""Random walks on a CUDA device: uploads the graph and launches csrc/graph/walks.cu.

Only embfast.kernels imports this module, and only when a device is requested.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from embfast.device.cuda import Device

# struct WalkJob of csrc/graph/walks.cu.
WALK_JOB = np.dtype(
    [
        *((name, np.uint64) for name in ("offsets", "neighbours", "weights", "alias", "strengths", "thresholds")),
        *((name, np.uint64) for name in ("members", "pattern", "starts", "steps", "lengths", "seed", "repetition")),
        *((name, np.float64) for name in ("inverse_p", "inverse_q", "restart")),
        *((name, np.int64) for name in ("n_walks", "n_nodes")),
        *((name, np.int32) for name in ("length", "returns", "n_types", "n_pattern")),
    ]
)
THREADS = 256
TILE = 32  # walks and steps that a block of pack_walks transposes


class DeviceWalks:
    """Draws the walks of graphs.walks.Walks on a device, with the same ids.

    Device memory: `arrays`, and 8 bytes per node of the walks drawn at once.
    """

    def __init__(self, device: Device, arrays: dict[str, np.ndarray | None], settings: dict[str, Any]) -> None:
        """arrays: what the pointers of WALK_JOB point to, and label; settings: its numbers. See Walks.device_job."""
        self.device, self._cupy = device, device.cupy
        given = {name: array for name, array in arrays.items() if array is not None}
        needed, free = sum(array.nbytes for array in given.values()), device.free()
        if needed > free:
            sizes = ", ".join(f"{name} {array.nbytes / 1e9:.3g} GB" for name, array in given.items())
            raise MemoryError(
                f"{device} has {free / 1e9:.3g} GB free, but walks on this graph need {needed / 1e9:.3g} GB: {sizes}; "
                "use device='cpu'"
            )
        with device.current():
            self._stream = self._cupy.cuda.Stream(non_blocking=True)
            self._arrays = {name: self._upload(array) for name, array in given.items()}
            self._stream.synchronize()
        self._job = np.zeros(1, WALK_JOB)
        for name, array in self._arrays.items():
            if name != "label":
                self._job[name] = array.data.ptr
        for name, value in settings.items():
            self._job[name] = value

    def _upload(self, values: np.ndarray) -> Any:
        if values.ndim > 1:  # cells with two numbers
            values = np.ascontiguousarray(values).reshape(-1)
        array = self._cupy.empty(values.shape, values.dtype)
        if values.size:
            array.set(np.ascontiguousarray(values), stream=self._stream)
        return array

    def read(self, kernel: str, repetition: int, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Walks from these nodes in a repetition: labels, int32 (n,), and lengths, int64 (len(starts),)."""
        n, length = len(starts), int(self._job["length"][0])
        with self.device.current(), self._stream:
            nodes = self._upload(starts)
            steps = self._cupy.empty(n * length, np.int32)
            lengths = self._cupy.empty(n, np.int32)
            job = self._job.copy()
            job["starts"], job["steps"], job["lengths"] = (array.data.ptr for array in (nodes, steps, lengths))
            job["repetition"], job["n_walks"] = repetition, n
            walk = self.device.kernel("walks", kernel)
            blocks = min(-(-n // THREADS), self.device.blocks(walk, THREADS, 0))
            walk((blocks,), (THREADS,), (job,))
            found = lengths.get(stream=self._stream).astype(np.int64)
            offsets = np.zeros(n + 1, np.int64)
            np.cumsum(found, out=offsets[1:])
            ids = self._cupy.empty(int(offsets[-1]), np.int32)
            where = self._upload(offsets)
            arguments = (steps, where, self._arrays["label"], np.int64(n), np.int32(length), ids)
            grid = (-(-n // TILE), -(-length // TILE))
            pack = self.device.kernel("walks", "pack_walks")
            pack(grid, (TILE, 8), arguments, shared_mem=TILE * (TILE + 1) * 4)
            return ids.get(stream=self._stream), found
