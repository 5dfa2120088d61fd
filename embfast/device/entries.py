"""GloVe on a CUDA device: entries in runs of one row, tables there, launches of csrc/glove/glove.cu.

Only embfast.kernels imports this module, and only when a device is asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from embfast.device.cuda import LANES, MOST_DIM, Device
from embfast.device.sequences import Lane

MOST_WARPS = 4  # of a block where a warp takes a run

# All runs at work read rows of w_out that the others have not moved yet. At the start the sums of squares are small and
# steps are long: too many at once add up to a leap that AdaGrad does not come back from.
RUNS_BEFORE = 16  # runs trained before, for each that may be at work
WORDS_EACH = 2  # words of the vocabulary, for each run at work


class RunShape(NamedTuple):
    """How a GloVe kernel is launched."""

    kernel: str
    threads: int  # of a block
    shared: int  # bytes of dynamic shared memory of a block
    runs: int  # that a block trains at a time


def run_shape(pitch: int, longest: int, most: int = MOST_WARPS) -> RunShape:
    """The kernel for rows of `pitch` float4 and runs of up to `longest` entries, `most` of them at a time in a block.

    >>> run_shape(32, 64), run_shape(33, 64)  # a warp takes a run; two warps take one
    (RunShape(kernel='train_runs_warp', threads=128, shared=1024, runs=4), \
RunShape(kernel='train_runs_warps', threads=64, shared=272, runs=1))
    """
    if pitch <= LANES:
        warps = min(MOST_WARPS, max(1, most))
        return RunShape("train_runs_warp", warps * LANES, warps * longest * 4, warps)
    warps = -(-pitch // LANES)
    return RunShape("train_runs_warps", warps * LANES, longest * 4 + 2 * warps * 4, 1)


class Entries:
    """Tables of GloVe on a device, trained on entries in runs: kernels.train_entries for a whole fit.

    Tables go there once, and come back with fetch. The entries are in parts; those that do not fit beside the tables
    pass through two lanes of one part each, one being copied while the other is trained on.

    Memory on the device: the tables, 12 bytes a run, and 12 bytes an entry, or of two parts where all are too many.
    """

    def __init__(
        self,
        device: Device,
        job: np.ndarray,
        tables: dict[str, np.ndarray],
        entries: np.ndarray,
        parts: np.ndarray,
        runs: np.ndarray,
    ) -> None:
        dim = int(job["dim"])
        if dim > MOST_DIM:
            raise ValueError(f"a device takes vectors of up to {MOST_DIM:,} numbers, got dim={dim:,}; use device='cpu'")
        self.device, self._cupy, self._host = device, device.cupy, tables
        self._entries, self._parts, self._runs = entries, parts, runs
        self._n_words, columns = tables["w_in"].shape
        self._pitch, self._longest = columns // 4, int(np.diff(runs).max(initial=1))
        largest = int(np.diff(runs[parts]).max(initial=0))
        fixed = sum(table.nbytes for table in tables.values()) + 12 * len(runs)
        self._whole = fixed + 12 * len(entries) <= device.free() or len(parts) == 2
        needed = fixed + (12 * len(entries) if self._whole else 2 * 12 * largest)
        if needed > device.free():
            raise MemoryError(
                f"{device} has {device.free() / 1e9:.3g} GB free, and training needs {needed / 1e9:.3g} GB: four "
                f"tables of {self._n_words:,} x {columns:,} x 4 B = {4 * tables['w_in'].nbytes / 1e9:.3g} GB; the "
                f"rest {(needed - 4 * tables['w_in'].nbytes) / 1e9:.2g} GB. "
                "Lower dim, leave out rare words (min_count), or use device='cpu'"
            )
        with device.current():
            self._lanes = [Lane(self._cupy), Lane(self._cupy)]
            self._stream = self._lanes[0].stream
            self._tables = {name: self._upload(table) for name, table in tables.items()}
            self._edges = self._upload(runs)
            self._order = self._cupy.empty(len(runs), np.int32)
            self._loss = self._cupy.empty(1, np.float64)
            self._held = self._upload(entries.view(np.int32)) if self._whole else None
            self._stream.synchronize()
        self._job = job.reshape(1).copy()
        for name, array in {**self._tables, "groups": self._edges, "order": self._order, "loss": self._loss}.items():
            self._job[name] = array.data.ptr
        self._job["pitch"], self._job["longest"] = self._pitch, self._longest
        self._sent = [-1, -1]  # the part in each lane

    def _upload(self, values: np.ndarray) -> Any:
        array = self._cupy.empty(values.shape, values.dtype)
        if values.size:
            array.set(np.ascontiguousarray(values), stream=self._stream)
        return array

    def fetch(self) -> None:
        """Copies the tables back to where they came from."""
        with self.device.current():
            for name, table in self._host.items():
                self._tables[name].get(stream=self._stream, out=table)

    def set_order(self, order: np.ndarray) -> None:
        """Runs in the order of an epoch, int32 (runs,)."""
        with self.device.current():
            for lane in self._lanes:
                lane.stream.synchronize()
            self._order[: len(order)].set(order, stream=self._stream)
            self._stream.synchronize()

    def train(self, spans: list[tuple[int, int, int]], *, epoch: int, before: int) -> float:
        """Trains on places first..last of the order, of each (part, first, last). Returns the summed loss.

        before: runs trained before these, in all epochs.
        """
        with self.device.current():
            self._loss.set(np.zeros(1), stream=self._stream)
            self._stream.synchronize()
            for turn, (part, first, last) in enumerate(spans):
                lane = self._lanes[turn % 2] if not self._whole else self._lanes[0]
                job = self._job.copy()
                job["epoch"] = epoch
                job["entries"], job["first_entry"] = self._part(lane, part)
                self._launch(lane, job, first, last, before)
                before += last - first
            for lane in self._lanes:
                lane.stream.synchronize()
            return float(self._loss.get(stream=self._stream)[0])

    def _part(self, lane: Lane, part: int) -> tuple[int, int]:
        """Where the entries of a part are on the device, and the number of the first that is there."""
        if self._held is not None:
            return self._held.data.ptr, 0
        which = self._lanes.index(lane)
        begin, end = (int(self._runs[self._parts[part + i]]) for i in (0, 1))
        if self._sent[which] != part:
            lane.stream.synchronize()
            lane.send("entries", self._entries[begin:end].view(np.int32))
            self._sent[which] = part
        return lane.room("entries", 1, np.int32).data.ptr, begin

    def _launch(self, lane: Lane, job: np.ndarray, first: int, last: int, before: int) -> None:
        """As many runs at a time as the device has room for, and as have been trained enough before."""
        while first < last:
            most = max(1, min(self._n_words // WORDS_EACH, before // RUNS_BEFORE))
            shape = run_shape(self._pitch, self._longest, most)
            kernel = self.device.kernel("glove", shape.kernel)
            full = self.device.blocks(kernel, shape.threads, shape.shared)
            blocks = min(full, most // shape.runs)
            end = last if blocks == full else min(last, first + 2 * blocks * shape.runs)
            if most == self._n_words // WORDS_EACH:
                end = last
            job["first"], job["last"] = first, end
            with lane.stream:
                kernel((blocks,), (shape.threads,), (job.copy(),), shared_mem=shape.shared)
            before += end - first
            first = end
