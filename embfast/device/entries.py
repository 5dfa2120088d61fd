"""GloVe on a CUDA device: uploads tables and runs of entries, launches the kernels of csrc/glove/glove.cu.

Only embfast.kernels imports this module, and only if a device is requested.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from embfast.device.cuda import LANES, MOST_DIM, Device
from embfast.device.sequences import Lane

MOST_WARPS = 4  # per block, if a warp trains a run

# Concurrent runs read rows of w_out before the others have updated them. At first the sums of squares are small and
# steps are long: too many concurrent steps add up to a jump from which AdaGrad does not recover.
RUNS_BEFORE = 16  # completed runs required per concurrent run
WORDS_EACH = 2  # words in the vocabulary required per concurrent run


class RunShape(NamedTuple):
    """Launch configuration of a GloVe kernel."""

    kernel: str
    threads: int  # per block
    shared: int  # bytes of dynamic shared memory per block
    runs: int  # trained at a time by a block


def run_shape(pitch: int, longest: int, most: int = MOST_WARPS) -> RunShape:
    """Chooses the kernel for rows of `pitch` float4, with at most `most` runs of up to `longest` entries per block.

    >>> run_shape(32, 64), run_shape(33, 64)  # one warp per run; two warps per run
    (RunShape(kernel='train_runs_warp', threads=128, shared=1024, runs=4), \
RunShape(kernel='train_runs_warps', threads=64, shared=272, runs=1))
    """
    if pitch <= LANES:
        warps = min(MOST_WARPS, max(1, most))
        return RunShape("train_runs_warp", warps * LANES, warps * longest * 4, warps)
    warps = -(-pitch // LANES)
    return RunShape("train_runs_warps", warps * LANES, longest * 4 + 2 * warps * 4, 1)


class Entries:
    """GloVe's tables on a device, trained on runs of entries: the counterpart of kernels.train_entries.

    The tables are uploaded once and copied back by `fetch`. Entries are divided into parts. If they do not fit beside
    the tables, parts pass through two lanes: one part is copied while the other is trained on.

    Memory on the device: the tables, 12 bytes per run, and 12 bytes per entry, of all entries or of two parts.
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
            raise ValueError(f"devices support dim up to {MOST_DIM:,}, got dim={dim:,}; use device='cpu'")
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
                f"{device} has {device.free() / 1e9:.3g} GB free, but training needs {needed / 1e9:.3g} GB: four "
                f"tables of {self._n_words:,} x {columns:,} x 4 B = {4 * tables['w_in'].nbytes / 1e9:.3g} GB, and "
                f"{(needed - 4 * tables['w_in'].nbytes) / 1e9:.2g} GB for entries. "
                "Lower dim, drop rare words (min_count), or use device='cpu'"
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
        self._sent = [-1, -1]  # the part held by each lane

    def _upload(self, values: np.ndarray) -> Any:
        array = self._cupy.empty(values.shape, values.dtype)
        if values.size:
            array.set(np.ascontiguousarray(values), stream=self._stream)
        return array

    def fetch(self) -> None:
        """Copies the tables back into the host arrays."""
        with self.device.current():
            for name, table in self._host.items():
                self._tables[name].get(stream=self._stream, out=table)

    def set_order(self, order: np.ndarray) -> None:
        """Sets the order of runs for an epoch, int32 (runs,)."""
        with self.device.current():
            for lane in self._lanes:
                lane.stream.synchronize()
            self._order[: len(order)].set(order, stream=self._stream)
            self._stream.synchronize()

    def train(self, spans: list[tuple[int, int, int]], *, epoch: int, before: int) -> float:
        """Trains on positions first..last of the order for each (part, first, last). Returns the summed loss.

        before: Number of runs trained so far, over all epochs.
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
        """The address of entries on the device, and the index of the first entry at that address."""
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
        """Launches with as many concurrent runs as the device holds and RUNS_BEFORE and WORDS_EACH allow."""
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
