"""Training on sequences of ids on a device: tables and chunks of the corpus there, launches of sequences.cu."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from embfast.device.cuda import CELL, LANES, MOST_DIM, Device

CHUNK = 1 << 21  # tokens per chunk: one is trained on while the next is copied to the device
# Fields that struct DeviceJob of csrc/sequences/sequences.cu adds to the settings, and its DeviceTally.
ADDRESSES = [
    *((name, np.uint64) for name in ("w_in", "w_out", "w_nodes", "w_docs", "ids", "offsets", "pieces", "keep")),
    *((name, np.uint64) for name in ("noise", "path_offsets", "path_nodes", "path_codes", "tag_offsets", "tags")),
    *((name, np.uint64) for name in ("seeds", "kept", "kept_document", "n_kept", "rings", "tally")),
    *((name, np.int64) for name in ("first_token", "first_document", "n_documents", "n_pieces")),
    *((name, np.int32) for name in ("pitch", "most_tags")),
]
TALLY = np.dtype([("loss", np.float64), ("examples", np.uint64), ("kept", np.uint64)])
ALIAS_CELL = np.dtype([("threshold", np.uint32), ("alias", np.int32)])


class Shape(NamedTuple):
    """A sequence kernel and its launch."""

    kernel: str
    threads: int  # per thread block
    shared: int  # bytes of dynamic shared memory per thread block
    ring: int  # bytes of global memory per thread block for its ring, 0 if the ring is in shared memory


def sequence_shape(pitch: int, window: int, most_tags: int, *, cbow: bool, documents: bool, shared_most: int) -> Shape:
    """The kernel for rows of `pitch` float4, and its launch. shared_most: limit of shared memory per block, in bytes.

    A thread processes four columns, so rows of up to 128 floats take one warp and rows of 1,024 take eight. The ring
    holds each row of the window twice. It is in global memory if the window is too wide for shared memory.
    """
    warps = -(-pitch // LANES)
    ring = 2 * (2 * window + 1 + most_tags) * pitch * CELL
    partial = 2 * 4 * warps * 4
    wide = ring + (partial if warps > 1 else 0) > shared_most
    kind = "wide" if wide else "warp" if warps == 1 else "warps"
    name = f"{'cbow' if cbow else 'skip_gram'}{'_documents' if documents else ''}_{kind}"
    shared = {"wide": partial, "warp": ring, "warps": ring + partial}[kind]
    return Shape(name, warps * LANES, shared, ring if wide else 0)


def device_job(job: np.ndarray) -> np.ndarray:
    """The argument of a launch: settings (kernels.SEQUENCE_JOB), with fields for the addresses."""
    record = np.zeros(1, np.dtype([*job.dtype.descr, *ADDRESSES]))
    for name in job.dtype.names or ():
        record[name] = job[name]
    return record


class Lane:
    """A CUDA stream with its own buffers on the host and the device, through which one chunk of data passes.

    Enqueued operations run in order. The host buffers may be written again once the stream is synchronized.
    """

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._host: dict[str, np.ndarray] = {}
        self._device: dict[str, Any] = {}

    def room(self, name: str, n: int, dtype: np.dtype | type) -> Any:
        """A device array of at least n entries, which is kept for the next call."""
        if name not in self._device or self._device[name].size < n:
            self._device.pop(name, None)
            self._device[name] = self.cupy.empty(max(n, 1), dtype)
        return self._device[name]

    def send(self, name: str, values: np.ndarray) -> Any:
        """Copies values to pinned memory and enqueues the copy from there to the device."""
        n, dtype = len(values), values.dtype
        if name not in self._host or len(self._host[name]) < n:
            memory = self.cupy.cuda.alloc_pinned_memory(max(n, 1) * dtype.itemsize)
            self._host[name] = np.frombuffer(memory, dtype, max(n, 1))
        self._host[name][:n] = values
        room = self.room(name, n, dtype)
        if n:
            room[:n].set(self._host[name][:n], stream=self.stream)
        return room


class Sequences:
    """Trains tables on a device on sequences of ids: kernels.train_sequences for a whole run.

    Tables are sent once, and fetch copies them back. The corpus may be larger than the memory of the device: it passes
    through two lanes in chunks of about 2.1 M tokens, one being copied while the other is trained on.

    Memory on the device: the tables, 8 bytes per word for the noise, 12 per document for its tags, and 70 MB for the
    lanes.
    """

    def __init__(
        self,
        device: Device,
        job: np.ndarray,
        tables: Mapping[str, np.ndarray | None],
        *,
        keep: np.ndarray | None = None,
        noise: Any = None,
        tree: Any = None,
        tag_offsets: np.ndarray | None = None,
        tags: np.ndarray | None = None,
    ) -> None:
        """job: the settings. If job is frozen, the session serves infer, and tables contains no w_docs."""
        self.device, self._cupy = device, device.cupy
        self._host = {name: table for name, table in tables.items() if table is not None}
        self._job = device_job(job)
        frozen = bool(job["frozen"][0])
        self._documents = frozen or "w_docs" in self._host
        most_tags = int(self._documents)
        if tag_offsets is not None and self._documents and not frozen:
            most_tags = int(np.diff(tag_offsets).max(initial=0))
        columns = next(iter(self._host.values())).shape[1]
        if columns > MOST_DIM:
            dim = int(job["dim"][0])
            raise ValueError(f"device kernels support dim up to {MOST_DIM:,}, got dim={dim:,}; use device='cpu'")
        self._n_words = len(noise) if noise is not None else len(tree) if tree is not None else 0
        small = self._small(keep, noise, tree, tag_offsets, tags)
        self._check_memory({**self._host, **small})
        with device.current():
            self._lanes = [Lane(self._cupy), Lane(self._cupy)]
            arrays = {**self._host, **small}
            uploaded = {id(array): self._upload(array) for array in arrays.values()}  # one table may have two names
            self._arrays = {name: uploaded[id(array)] for name, array in arrays.items()}
            self._tally = self._upload(np.zeros(TALLY.itemsize, np.uint8))
            self._lanes[0].stream.synchronize()
            self._shape = shape = sequence_shape(
                columns // 4,
                int(job["window"][0]),
                most_tags,
                cbow=bool(job["cbow"][0]) or not job["words"][0],
                documents=self._documents,
                shared_most=device.shared_most,
            )
            self._train = device.kernel("sequences", shape.kernel)
            self._keep = device.kernel("sequences", "keep_tokens")
            self._blocks = device.blocks(self._train, shape.threads, shape.shared)
            if shape.ring:  # the rings of each lane take at most an eighth of the free memory
                self._blocks = max(1, min(self._blocks, device.free() // 8 // shape.ring))
        for name, array in {**self._arrays, "tally": self._tally}.items():
            self._job[name] = array.data.ptr
        self._job["n_words"], self._job["pitch"], self._job["most_tags"] = self._n_words, columns // 4, most_tags

    @staticmethod
    def _small(keep: Any, noise: Any, tree: Any, tag_offsets: Any, tags: Any) -> dict[str, np.ndarray]:
        """The arrays besides the tables."""
        small = {"keep": keep, "tag_offsets": tag_offsets, "tags": tags}
        if noise is not None:
            cells = np.empty(len(noise), ALIAS_CELL)
            cells["threshold"], cells["alias"] = noise.thresholds, noise.aliases
            small["noise"] = cells.view(np.uint64)
        if tree is not None:
            small |= {"path_offsets": tree.offsets, "path_nodes": tree.nodes, "path_codes": tree.codes}
        return {name: array for name, array in small.items() if array is not None}

    def _check_memory(self, arrays: dict[str, np.ndarray]) -> None:
        """Raises MemoryError, with the sizes, unless the arrays and the lanes fit into the free memory."""
        lanes = 2 * CHUNK * (4 + 4 + 4 * self._documents) + (8 << 20)
        arrays = {name: array for name, array in {id(array): (name, array) for name, array in arrays.items()}.values()}
        needed, free = sum(array.nbytes for array in arrays.values()) + lanes, self.device.free()
        if needed <= free:
            return
        tables = [
            f"{name} {len(table):,} x {table.shape[1]:,} x 4 B = {table.nbytes / 1e9:.3g} GB"
            for name, table in arrays.items()
            if table.ndim == 2
        ]
        rest = needed - sum(table.nbytes for table in arrays.values() if table.ndim == 2)
        raise MemoryError(
            f"{self.device} has {free / 1e9:.3g} GB free, and training needs {needed / 1e9:.3g} GB: "
            f"{'; '.join(tables)}; the rest {rest / 1e9:.2g} GB. "
            "Lower dim, drop rare words (min_count), or use device='cpu'"
        )

    def _upload(self, values: np.ndarray) -> Any:
        array = self._cupy.empty(values.shape, values.dtype)
        if values.size:
            array.set(np.ascontiguousarray(values), stream=self._lanes[0].stream)
        return array

    def fetch(self) -> None:
        """Copies the tables back to the host arrays they came from."""
        with self.device.current():
            for name, table in self._host.items():
                self._arrays[name].get(stream=self._lanes[0].stream, out=table)

    def train(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        pieces: np.ndarray,
        *,
        epoch: int,
        tokens_before: int,
        tag_offsets: np.ndarray | None = None,
        tags: np.ndarray | None = None,
    ) -> tuple[float, int, int]:
        """Trains on the tokens pieces[0]..pieces[-1], cut at pieces. Returns summed loss, examples and kept tokens.

        tag_offsets, tags: of these documents, if they differ from call to call; a document then has one tag at most.
        reference.device_train_sequences specifies the result.
        """
        self._job["epoch"], self._job["tokens_before"] = epoch, tokens_before
        with self.device.current():
            self._begin()
            first = turn = 0
            while first < len(pieces) - 1:
                last = int(np.searchsorted(pieces, pieces[first] + CHUNK, "right")) - 1
                last = min(max(last, first + 1), len(pieces) - 1)
                lane = self._lanes[turn % 2]
                job = self._send(lane, ids, offsets, pieces[first : last + 1])
                if job is not None:
                    if tag_offsets is not None and tags is not None:
                        self._send_tags(lane, job, tag_offsets, tags)
                    self._launch(lane, job)
                    turn += 1
                first = last
            return self._end()

    def infer(
        self, rows: np.ndarray, ids: np.ndarray, offsets: np.ndarray, epochs: int, averaged: int
    ) -> tuple[float, int, int]:
        """Fits row d of rows, float32 (documents, columns), to document d, ids[offsets[d]:offsets[d + 1]].

        The session must be frozen. reference.device_infer_documents specifies the result.
        """
        rows[:] = 0
        cupy, n, columns = self._cupy, len(offsets) - 1, rows.shape[1]
        self._job["tokens_total"] = epochs
        with self.device.current():
            self._begin()
            lane = self._lanes[0]
            job = self._send(lane, ids, offsets, offsets)
            if job is None:
                return self._end()
            seeds, table = lane.room("seeds", n, np.uint64), cupy.empty(rows.shape, np.float32)
            job["seeds"], job["w_docs"] = seeds.data.ptr, table.data.ptr
            where = lane.room("pieces", n + 1, np.int64)  # edges of all documents, including empty ones
            with lane.stream:
                arguments = (lane.room("ids", 1, np.int32), where, job["first_token"], np.int64(n), job["seed"], seeds)
                self._call("document_seeds", -(-n // 256), 256, arguments)
                arguments = (seeds, where, np.int64(n), np.int32(self._job["dim"][0]), np.int32(columns), table)
                self._call("document_rows", min(-(-n * columns // 256), 1 << 16), 256, arguments)
            for epoch in range(epochs):
                job["epoch"] = job["tokens_before"] = epoch
                self._launch(lane, job.copy())
                if epoch >= epochs - averaged:
                    rows += table.get(stream=lane.stream)
            rows /= averaged
            return self._end()

    def _begin(self) -> None:
        stream = self._lanes[0].stream
        self._tally.set(np.zeros(TALLY.itemsize, np.uint8), stream=stream)
        stream.synchronize()

    def _end(self) -> tuple[float, int, int]:
        for lane in self._lanes:
            lane.stream.synchronize()
        loss, examples, kept = self._tally.get(stream=self._lanes[0].stream).view(TALLY)[0]
        return float(loss), int(examples), int(kept)

    def _send(self, lane: Lane, ids: np.ndarray, offsets: np.ndarray, pieces: np.ndarray) -> np.ndarray | None:
        """Enqueues the tokens of pieces and returns the job; None if there are no tokens."""
        begin, end, n_pieces = int(pieces[0]), int(pieces[-1]), len(pieces) - 1
        if begin == end:
            return None
        lane.stream.synchronize()
        first = int(np.searchsorted(offsets, begin, "right")) - 1
        last = int(np.searchsorted(offsets, end))
        tokens = ids[begin:end]
        if tokens.min() < 0 or (self._n_words and tokens.max() >= self._n_words):
            raise ValueError(f"ids: expected 0 <= id < {self._n_words}, got {tokens.min()} to {tokens.max()}")
        job = self._job.copy()
        job["ids"] = lane.send("ids", tokens).data.ptr
        job["offsets"] = lane.send("offsets", offsets[first : last + 1]).data.ptr
        job["pieces"] = lane.send("pieces", pieces).data.ptr
        job["kept"] = lane.room("kept", end - begin, np.int32).data.ptr
        job["n_kept"] = lane.room("n_kept", n_pieces, np.int32).data.ptr
        if self._documents:
            job["kept_document"] = lane.room("kept_document", end - begin, np.int32).data.ptr
        if self._shape.ring:
            job["rings"] = lane.room("rings", self._blocks * self._shape.ring, np.uint8).data.ptr
        job["first_token"], job["first_document"] = begin, first
        job["n_documents"], job["n_pieces"] = last - first, n_pieces
        return job

    def _send_tags(self, lane: Lane, job: np.ndarray, tag_offsets: np.ndarray, tags: np.ndarray) -> None:
        """Enqueues the tags of the documents of a job."""
        first = int(job["first_document"][0])
        ends = tag_offsets[first : first + int(job["n_documents"][0]) + 1]
        own = tags[ends[0] : ends[-1]]
        n_rows = len(self._host["w_docs"])
        if len(own) and (own.min() < 0 or own.max() >= n_rows or np.diff(ends).max() > 1):
            raise ValueError(f"tags: expected at most one per document, 0 <= tag < {n_rows}")
        job["tag_offsets"] = lane.send("tag_offsets", ends - ends[0]).data.ptr
        job["tags"] = lane.send("tags", own).data.ptr
        job["first_document"] = 0

    def _launch(self, lane: Lane, job: np.ndarray) -> None:
        n, shape = int(job["n_pieces"][0]), self._shape
        with lane.stream:
            self._keep((min(-(-n // 8), 1 << 16),), (256,), (job,))
            self._train((min(n, self._blocks),), (shape.threads,), (job,), shared_mem=shape.shared)

    def _call(self, name: str, grid: int, threads: int, arguments: tuple[Any, ...]) -> None:
        self.device.kernel("sequences", name)((max(grid, 1),), (threads,), arguments)
