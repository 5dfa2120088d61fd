"""Rows for new documents: words and outputs are frozen, and each document fits a row, in slices of about a second."""

from typing import Any

import numpy as np

from embfast import kernels
from embfast.text.corpus import Corpus
from embfast.training.sequences import Part

_DRAWS = 1 << 18  # a pool of 1 MB, the same for every call: a document's row must not depend on the other documents
_WORK = 50_000_000  # tokens x epochs x padded dim of one kernel call and thread: under a second
_DEVICE_THREADS = 32  # a device takes the work of this many threads at once


class Inference:
    """A part of a trained model, ready to fit rows to documents on the CPU or on a device."""

    def __init__(self, part: Part, dim: int, keep: np.ndarray | None, device: Any, threads: int) -> None:
        self._dim, self._threads = dim, threads if device is None else _DEVICE_THREADS
        self._job = part.job(dim, on_device=device is not None)
        self._job["frozen"] = True
        noise, tree = part.outputs.noise_table(), part.outputs.tree()
        self._session = None
        if device is not None:
            self._session = kernels.device_sequences(device, self._job, part.tables, keep=keep, noise=noise, tree=tree)
            return
        drawn = None if noise is None else noise.sample(max(_DRAWS, part.outputs.sharing.drawn), part.seed, 0)
        self._arrays = {**part.tables, "keep": keep, "noise": drawn, "tree": tree}

    def run(self, corpus: Corpus, epochs: int, averaged: int, result: np.ndarray) -> None:
        """Fills result, float32 (documents, dim), for the first documents of a corpus.

        A row is the mean of its values after each of the last `averaged` epochs.
        """
        step, n, lo = max(1, self._threads * _WORK // (epochs * kernels.padded(self._dim))), len(result), 0
        while lo < n:
            begin = int(corpus.offsets[lo])
            hi = int(np.searchsorted(corpus.offsets, begin + step, "right")) - 1
            hi = min(max(hi, lo + 1), lo + step, n)
            rows = kernels.weight_table(hi - lo, self._dim)
            ids, offsets = corpus.ids[begin : int(corpus.offsets[hi])], corpus.offsets[lo : hi + 1] - begin
            if self._session is not None:
                self._session.infer(rows, ids, offsets, epochs, averaged)
            else:
                arrays = {**self._arrays, "w_docs": rows, "ids": ids, "offsets": offsets}
                kernels.infer_documents(self._job, arrays, epochs, averaged, self._threads)
            result[lo:hi] = rows[:, : self._dim]
            lo = hi
