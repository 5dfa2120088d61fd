"""GloVe: vectors fitted to the logarithms of co-occurrences.

Source: Pennington, Socher, Manning 2014, https://aclanthology.org/D14-1162, and their programs shuffle and glove.
"""

import zlib
from itertools import pairwise
from typing import Any

import numpy as np

from embfast import kernels
from embfast.files.durable import FilePath
from embfast.files.scratch import scratch_array
from embfast.files.tensors import TensorFile
from embfast.text.corpus import Corpus
from embfast.training.blocks import forget_read
from embfast.training.estimator import Estimator, FitRun
from embfast.training.loop import choose_device
from embfast.training.progress import ProgressOption
from embfast.training.settings import check_flag, check_float, check_int, check_machine
from embfast.training.tables import document_means, grown_vocabulary, initial_weights
from embfast.training.threads import ThreadTuner
from embfast.vectors.vectors import Vectors
from embfast.words.cooccurrence import CooccurrenceMatrix

_TILE = 128  # words of each side of a tile: the rows of both fit into a core's cache
_MOST_TILES = 1 << 22  # of more, tiles grow: a tile without entries costs 8 bytes
_PART = 1 << 10  # entries of a tile that are trained together; a whole tile of frequent words would pull them too far
_GROUP = 1 << 14  # entries of a random group
_MOST_GROUPS = 1 << 12
_RUN = 64  # entries of a row that a device trains in one run
_DEVICE_PART = 1 << 24  # entries that lie on a device at least, where they do not all fit
_DEVICE_SLICE = 1 << 24  # entries of one call of a device: some tenths of a second
_DEVICE_DIM = 1024
_BLOCK = 1 << 16  # entries that are trained together, at least
_SLICE_WORK = 400_000_000  # entries x padded dim of one kernel call and thread: about a quarter of a second
_ROWS_OUT = 1 << 40  # the first weights of w_out are those of rows from here on


class GloVe(Estimator):
    """Word vectors whose products are the logarithms of co-occurrences, the model of Stanford's GloVe.

    >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]] * 10)
    >>> model = GloVe(dim=8, epochs=2).fit(corpus)
    >>> model.vectors_.matrix.shape
    (3, 8)
    >>> model
    GloVe(dim=8, epochs=2)

    Settings:
        dim: numbers per vector, 1 or more; multiples of 16 less one waste nothing.
        window: tokens on each side that are counted, 1 to 1,000; windows do not leave a document.
        symmetric: count both sides; otherwise a pair has the earlier word as its row and the later one as its column.
        distance_weighting: a pair at distance d counts 1 / d; otherwise 1.
        epochs: passes over the entries of the matrix.
        x_max: entries of this value and above have the full weight; smaller x have (x / x_max) ** alpha. Good for a
            text of 10^9 words; 10 is better for 10^7.
        alpha: the power of the weight.
        lr: step of the vectors in AdaGrad; the biases move by their whole gradient.
        vectors: what becomes of the two vectors of a word: "sum", "input" (the row's alone), or "both" side by side.
        shuffle: "tiles" trains on up to 1,024 random entries of a tile of 128 x 128 words at a time, tiles and parts in
            random order; "full" on all entries in random order, which is slower and no better (README, Measured).
        memory_gb: 10^9 bytes that counting a corpus may take.
        threads: by default all cores, or as many of them as a longer run finds to pay (training.Threads). One gives the
            same bits every time; more differ in the last digits.
        seed: 0 to 2**64 - 1, of first weights and all orders.
        device: "cpu"; "cuda" or "cuda:1", which needs CuPy and dim <= 1,024; or "auto", such a device where there is
            one. There the entries are trained in runs of up to 64 of one row, in random order whatever `shuffle` says,
            thousands of runs at once, and additions meet in any order, so that runs differ in the last digits.
    Learned:
        vectors_: Vectors, float32 (len(words_), dim), or (len(words_), 2 * dim) of "both"; row i belongs to word i.
        words_, counts_: the vocabulary, and int64 occurrences in all that was trained on.
        loss_: mean loss of each epoch per entry, weight * difference ** 2 / 2 just before each step: the paper's J / 2
            over the number of entries, which is what Stanford's glove prints as cost.
        device_: what it was trained on, and with device="auto" why.

    The steps are those of glove.c: gradients held in -100..100 by component, sums of squares that start at 1, weights
    that start uniformly in (-0.5, 0.5) / dim (biases at 0).

    Memory: 16 * (dim + 1) * words bytes, dim + 1 rounded up to a multiple of 16, half of them sums of squares; "sum"
    and "both" make a copy for vectors_. The entries, 12 bytes each, lie in memory up to 256 MB, then in a temporary
    file, in the order of their tiles or random groups. A full shuffle needs no permutation of them all: it deals them
    out once, to groups of some 16,000 (at most 4,096 groups), and in each epoch shuffles the groups, and each group in
    a buffer of its size. Tiles of vocabularies above 262,144 words are larger. A device holds the tables, and all
    entries or 400 MB of them; sorting them into runs takes 0.7 GB for a while.
    Source: Pennington, Socher, Manning 2014, https://aclanthology.org/D14-1162.
    """

    def __init__(
        self,
        dim: int = 100,
        window: int = 15,
        symmetric: bool = True,
        distance_weighting: bool = True,
        epochs: int = 25,
        x_max: float = 100.0,
        alpha: float = 0.75,
        lr: float = 0.05,
        vectors: str = "sum",
        shuffle: str = "tiles",
        memory_gb: float = 2.0,
        threads: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.dim = dim
        self.window = window
        self.symmetric = symmetric
        self.distance_weighting = distance_weighting
        self.epochs = epochs
        self.x_max = x_max
        self.alpha = alpha
        self.lr = lr
        self.vectors = vectors
        self.shuffle = shuffle
        self.memory_gb = memory_gb
        self.threads = threads
        self.seed = seed
        self.device = device

    def fit(
        self,
        data: Corpus | CooccurrenceMatrix,
        y: Any = None,
        *,
        checkpoint: FilePath | None = None,
        checkpoint_minutes: float = 10.0,
        resume: bool = False,
        progress: ProgressOption = None,
    ) -> "GloVe":
        """Trains from scratch, or from a checkpoint, and returns self.

        Args:
            data: a Corpus, which is counted first, or a matrix that was counted before; then window, symmetric and
                distance_weighting are not looked at.
            y: not looked at; scikit-learn's pipelines pass it.
            checkpoint: a file for the state of the run, written every checkpoint_minutes, on Ctrl-C and at the end, in
                place of the one before. `load` reads it too. The matrix is not in it: a corpus is counted again.
            resume: continue from the checkpoint; from the start if the file is not there yet. On one thread the result
                has the bits of a run that was never interrupted.
            progress: None shows a bar on a terminal, True also writes lines to a log, False nothing; a callable gets a
                training.Status after each slice. All of the training alone.

        Raises:
            ValueError: a setting makes no sense, there is nothing to train on, an entry of the matrix is not a positive
                number at a place of the matrix, or the checkpoint is of other data or settings.
            TypeError: data is neither.
            FormatError: the checkpoint is damaged.
            TrainingError: the loss stopped being finite, most often since lr is too high.
            KeyboardInterrupt: Ctrl-C; the model holds what was learned so far.
        """
        run = self._begin(checkpoint, checkpoint_minutes, resume, progress)
        matrix = self._matrix(data)
        if not self._resumed(run, _fingerprint(matrix)):
            self._tables = self._fresh(len(matrix.words), 0)
            self.words_, self.counts_ = list(matrix.words), np.array(matrix.counts)
        return self._train(matrix, run)

    def partial_fit(
        self, data: Corpus | CooccurrenceMatrix, y: Any = None, *, progress: ProgressOption = None
    ) -> "GloVe":
        """Continues with other data: `epochs` passes over it, with the sums of squares so far. Returns self.

        Words not met before get new rows, and counts add up; when there are any, words_ is sorted by count anew, and
        rows move with their words. Untrained, it does what fit does. dim must stay; other settings may have changed.
        """
        if not hasattr(self, "vectors_"):
            return self.fit(data, progress=progress)
        self._ready()
        self._check_learned()
        matrix = self._matrix(data)
        self._grow(matrix)
        self._continue()
        return self._train(matrix, FitRun(progress=progress))

    def transform(self, corpus: Corpus) -> np.ndarray:
        """The mean vector of the known words of each document, float32 (len(corpus), numbers of a vector); or zeros."""
        self._check_fitted()
        return document_means(self.vectors_.matrix, self.words_, corpus)

    def fit_transform(self, corpus: Corpus, y: Any = None) -> np.ndarray:
        """fit, then transform."""
        return self.fit(corpus).transform(corpus)

    def _check(self) -> None:
        check_int("dim", self.dim, 1, 100_000)
        check_int("window", self.window, 1, 1000)
        check_flag("symmetric", self.symmetric)
        check_flag("distance_weighting", self.distance_weighting)
        check_int("epochs", self.epochs, 1, 2**31 - 1)
        check_float("x_max", self.x_max, 1e-30, 1e30)
        check_float("alpha", self.alpha, 0, 10)
        check_float("lr", self.lr, 0, 100, above=True)
        for name, choices in (("vectors", ("sum", "input", "both")), ("shuffle", ("tiles", "full"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        check_float("memory_gb", self.memory_gb, 0, 1e6, above=True)
        check_machine(self.threads, self.seed, self.device, self._cpu_only())

    def _cpu_only(self) -> str | None:
        """What in the settings a device does not have."""
        return f"dim={self.dim:,}, above 1,024," if self.dim > _DEVICE_DIM else None

    def _matrix(self, data: Corpus | CooccurrenceMatrix) -> CooccurrenceMatrix:
        if isinstance(data, CooccurrenceMatrix):
            matrix = data
        elif isinstance(data, Corpus):
            matrix = CooccurrenceMatrix.from_corpus(
                data,
                window=self.window,
                symmetric=self.symmetric,
                distance_weighting=self.distance_weighting,
                memory_gb=self.memory_gb,
                threads=self.threads,
            )
        else:
            raise TypeError(f"expected a Corpus or a CooccurrenceMatrix, got {type(data).__name__}")
        if len(matrix.words) < 2:
            raise ValueError(f"need at least 2 distinct words to train on, got {len(matrix.words)}")
        if not len(matrix):
            raise ValueError("no two words stand together: every document is one word long, or the matrix is empty")
        return matrix

    def _fresh(self, n: int, first: int) -> dict[str, np.ndarray]:
        """Tables of n new words, the first of which is word `first` of the model."""
        tables = {name: kernels.weight_table(n, self.dim + 1) for name in ("w_in", "w_out", "sums_in", "sums_out")}
        initial_weights(tables["w_in"], self.dim, self.seed, first)
        initial_weights(tables["w_out"], self.dim, self.seed, _ROWS_OUT + first)
        tables["sums_in"][:] = tables["sums_out"][:] = 1
        return tables

    def _grow(self, matrix: CooccurrenceMatrix) -> None:
        """Takes the words and counts of a matrix into the model."""
        n_old = len(self.words_)
        self.words_, self.counts_, row = grown_vocabulary(self.words_, self.counts_, matrix.words, matrix.counts)
        fresh, tables = self._fresh(len(row) - n_old, n_old), {}  # a new dict: copy.copy shares the old one
        for name, before in self._tables.items():
            tables[name] = table = kernels.weight_table(len(row), self.dim + 1)
            table[row[:n_old]], table[row[n_old:]] = before, fresh[name]
        self._tables = tables

    def _train(self, matrix: CooccurrenceMatrix, run: FitRun) -> "GloVe":
        n, threads = len(matrix), ThreadTuner(self.threads)
        index = {word: i for i, word in enumerate(self.words_)}
        place = np.array([index[word] for word in matrix.words], np.int32)
        blocks = np.append(np.arange(0, n, _BLOCK), n)
        device, self.device_ = choose_device(self.device, run.progress, self._cpu_only())
        on_device = None
        if device is None:
            entries, step = self._cpu_step(matrix, place, blocks, threads)
            per_slice = max(1, threads.most * _SLICE_WORK // kernels.padded(self.dim + 1) // _BLOCK)
        else:
            on_device, entries, step = self._device_step(matrix, place, blocks, device)
            per_slice = _DEVICE_SLICE // _BLOCK

        self._run(
            run,
            step,
            blocks,
            lr=self.lr,
            min_lr=self.lr,
            per_slice=per_slice,
            threads=threads if on_device is None else None,
            after_slice=lambda begin, end: forget_read(entries, 0, n),
            unit="entries",
            sessions=[] if on_device is None else [on_device],
        )
        return self

    def _cpu_step(self, matrix: CooccurrenceMatrix, place: np.ndarray, blocks: np.ndarray, threads: ThreadTuner) -> Any:
        """The entries in groups, and what trains on blocks first..last of an epoch."""
        state = self._progress
        groups, entries = group(matrix, place, len(self.words_), self.shuffle, self.seed)
        sizes = np.diff(groups)
        order, ends, ordered = None, None, -1  # of one epoch

        def step(epoch: int, first: int, last: int) -> tuple[float, int, int]:
            nonlocal order, ends, ordered
            if ordered != epoch:
                order = kernels.random_order(len(sizes), self.seed, state.before + epoch)
                ends, ordered = np.cumsum(sizes[order]), epoch
            lo, hi = np.searchsorted(ends, blocks[[first, last]], "right")
            loss, trained = kernels.train_entries(
                self._tables["w_in"],
                self._tables["w_out"],
                self._tables["sums_in"],
                self._tables["sums_out"],
                self.dim,
                entries,
                groups,
                order,
                int(lo),
                int(hi),
                x_max=self.x_max,
                alpha=self.alpha,
                lr=self.lr,
                seed=self.seed,
                epoch=state.before + epoch,
                threads=threads.now,
            )
            return loss, trained, trained

        return entries, step

    def _device_step(self, matrix: CooccurrenceMatrix, place: np.ndarray, blocks: np.ndarray, device: Any) -> Any:
        """The tables on a device, the entries in runs, and what trains on blocks first..last of an epoch."""
        state = self._progress
        entries, parts, runs = make_runs(matrix, place, len(self.words_), self.seed)
        n_parts, sizes = len(parts) - 1, np.diff(runs)
        on_device = kernels.device_entries(
            device,
            self._tables,
            entries,
            parts,
            runs,
            dim=self.dim,
            x_max=self.x_max,
            alpha=self.alpha,
            lr=self.lr,
            seed=self.seed,
        )
        turns, edges, ends, ordered = None, None, None, -1  # of one epoch: parts, and their edges in the order of runs

        def step(epoch: int, first: int, last: int) -> tuple[float, int, int]:
            nonlocal turns, edges, ends, ordered
            number = state.before + epoch
            if ordered != epoch:
                turns = kernels.random_order(n_parts, self.seed, number)
                order = np.concatenate([
                    parts[p] + kernels.random_order(int(parts[p + 1] - parts[p]), self.seed, number * n_parts + int(p))
                    for p in turns
                ]).astype(np.int32)  # fmt: skip
                edges = np.concatenate([[0], np.cumsum(np.diff(parts)[turns])])
                ends, ordered = np.cumsum(sizes[order]), epoch
                on_device.set_order(order)
            lo, hi = map(int, np.searchsorted(ends, blocks[[first, last]], "right"))
            spans = [
                (int(part), max(lo, int(begin)), min(hi, int(end)))
                for part, begin, end in zip(turns, edges[:-1], edges[1:], strict=True)
                if max(lo, begin) < min(hi, end)
            ]
            loss = on_device.train(spans, epoch=number, before=epoch * len(sizes) + lo)
            trained = int(ends[hi - 1] if hi else 0) - int(ends[lo - 1] if lo else 0)
            return loss, trained, trained

        return on_device, entries, step

    def _show(self) -> None:
        """vectors_ and loss_, from the weights as they are now."""
        w_in, w_out = (self._tables[name][:, : self.dim] for name in ("w_in", "w_out"))
        if self.vectors == "sum":
            with np.errstate(over="ignore", invalid="ignore"):  # of a run that failed
                matrix = w_in + w_out
        else:
            matrix = w_in if self.vectors == "input" else np.hstack([w_in, w_out])
        self.vectors_ = Vectors(self.words_, matrix)
        self.loss_ = list(self._progress.losses)
        self._dim = self.dim

    def _check_learned(self) -> None:
        if self._dim != self.dim:
            raise ValueError(f"dim must stay {self._dim} once trained, got {self.dim}; train anew with fit")

    def _tensors(self) -> dict[str, np.ndarray]:
        return {name: table[:, : self.dim + 1] for name, table in self._tables.items()}  # a vector and its bias

    def _restore(self, file: TensorFile) -> None:
        self._check()
        names = ("w_in", "w_out", "sums_in", "sums_out")
        self._tables = {name: file.read_table(name, len(self.words_), self.dim + 1) for name in names}
        for name in ("sums_in", "sums_out"):
            if not (self._tables[name][:, : self.dim + 1] > 0).all():
                raise ValueError(f"expected {name} to be positive, as sums of squares are")
            self._tables[name][:, self.dim + 1 :] = 1
        self._show()


def group(
    matrix: CooccurrenceMatrix, place: np.ndarray, n_rows: int, shuffle: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The entries in parts of tiles or in random groups: edges int64 (groups + 1,), and entries with ids place[id].

    Raises:
        ValueError: an entry is outside the matrix, or not a positive number.
    """
    if shuffle == "tiles":
        tile = _TILE
        while (-(-n_rows // tile)) ** 2 > _MOST_TILES:
            tile *= 2
        n_groups = (-(-n_rows // tile)) ** 2
    else:
        tile, n_groups = 0, min(_MOST_GROUPS, -(-len(matrix) // _GROUP))
    groups, grouped = _grouped(matrix, place, n_rows, tile, n_groups, seed)
    return _parted(groups, _PART) if tile else groups, grouped


def make_runs(
    matrix: CooccurrenceMatrix, place: np.ndarray, n_rows: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries with ids place[id] in runs of one row, up to 64 of them, drawn from the row at random.

    Runs are in parts of about 16.8 M entries, each a random sample of all. Returns entries, edges of parts in runs,
    int64 (parts + 1,), and edges of runs in entries, int64 (runs + 1,).

    Raises:
        ValueError: an entry is outside the matrix, or not a positive number.
    """
    n_parts = -(-len(matrix) // _DEVICE_PART)
    groups, entries = _grouped(matrix, place, n_rows, 0, n_parts, seed)
    rng = np.random.default_rng(seed)
    runs, parts = [], [0]
    for begin, end in pairwise(groups):
        part = entries[begin:end]
        order = rng.permutation(len(part))
        order = order[np.argsort(part["row"][order], kind="stable")]
        part[:] = part[order]
        rows = np.append(np.flatnonzero(np.diff(part["row"], prepend=-1)), len(part))
        runs.append(begin + _parted(rows, _RUN)[:-1])
        parts.append(parts[-1] + len(runs[-1]))
    return entries, np.array(parts, np.int64), np.concatenate([*runs, [len(entries)]]).astype(np.int64)


def _grouped(
    matrix: CooccurrenceMatrix, place: np.ndarray, n_rows: int, tile: int, n_groups: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """kernels.group_entries, with an error that names a faulty entry."""
    groups, grouped = np.empty(n_groups + 1, np.int64), scratch_array(len(matrix), kernels.ENTRY)
    entries = np.ascontiguousarray(matrix.entries)
    bad = kernels.group_entries(
        entries, place, n_rows=n_rows, tile=tile, n_groups=n_groups, seed=seed, groups=groups, grouped=grouped
    )
    if bad >= 0:
        matrix._checked(ValueError)
        raise ValueError(f"entry {bad}: expected a positive number at a place of the matrix, got {entries[bad]}")
    forget_read(matrix.entries, 0, len(matrix))
    return groups, grouped


def _parted(edges: np.ndarray, most: int) -> np.ndarray:
    """Edges of parts of at most `most` entries, as equal as can be; groups without entries fall away.

    >>> _parted(np.array([0, 2500, 2500, 2507]), 1024).tolist()
    [0, 833, 1666, 2500, 2507]
    """
    sizes = np.diff(edges)
    parts = -(-sizes // most)
    piece = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = np.repeat(edges[:-1], parts) + piece * np.repeat(sizes, parts) // np.repeat(parts, parts)
    return np.append(starts, edges[-1])


def _fingerprint(matrix: CooccurrenceMatrix) -> dict[str, int]:
    """What tells a matrix from another: sizes, and a checksum of words, counts and the first entries."""
    crc = zlib.crc32("\0".join(matrix.words).encode("utf-8", "surrogatepass"))
    for array in (matrix.counts, matrix.entries[: 1 << 16]):
        crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8), crc)
    return {"words": len(matrix.words), "entries": len(matrix), "crc": crc}
