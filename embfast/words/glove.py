"""GloVe: word vectors fitted to the logarithms of co-occurrences.

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
from embfast.training.settings import check_flag, check_float, check_int, check_machine, too_wide_for_devices
from embfast.training.tables import document_means, grown_vocabulary, initial_weights
from embfast.training.threads import ThreadTuner
from embfast.vectors.vectors import Vectors
from embfast.words.cooccurrence import CooccurrenceMatrix

_TILE = 128  # words per side of a tile: the rows of both sides fit into a core's cache
_MOST_TILES = 1 << 22  # above this number tiles grow, since an empty tile costs 8 bytes
_PART = 1 << 10  # entries of a tile trained in a row; a whole tile of frequent words would move them too far
_GROUP = 1 << 14  # entries per random group
_MOST_GROUPS = 1 << 12
_RUN = 64  # entries of one row that a device trains in one run
_DEVICE_PART = 1 << 24  # entries per part; a device holds at least two parts if it cannot hold all entries
_DEVICE_SLICE = 1 << 24  # entries per call on a device: some tenths of a second
_BLOCK = 1 << 16  # entries; a slice is a number of blocks
_SLICE_WORK = 400_000_000  # entries x padded dim per kernel call and thread: about a quarter of a second
_ROWS_OUT = 1 << 40  # rows of w_out are initialised like rows of w_in from this number on


class GloVe(Estimator):
    """Word vectors whose dot products approximate the logarithms of co-occurrences; the model of Stanford's GloVe.

    >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]] * 10)
    >>> model = GloVe(dim=8, epochs=2).fit(corpus)
    >>> model.vectors_.matrix.shape
    (3, 8)
    >>> model
    GloVe(dim=8, epochs=2)

    Settings:
        dim: Vector size, at least 1. Rows hold a bias too and are padded to a multiple of 16, so 15, 31, 47 ... waste
            nothing.
        window: Number of tokens counted on each side, 1 to 1,000. Windows do not cross document boundaries.
        symmetric: Count pairs in both directions. Otherwise the row of a pair is its earlier word.
        distance_weighting: Count 1 / d for a pair at distance d. Otherwise every pair counts 1.
        epochs: Number of passes over the entries of the matrix.
        x_max: Value from which entries have the full weight; smaller values x have the weight (x / x_max) ** alpha. 100
            suits a text of 10^9 words; 10 is better for 10^7.
        alpha: Exponent of the weight.
        lr: Learning rate of the vectors in AdaGrad. Biases move by their full gradient.
        vectors: How the two vectors of a word are combined: "sum", "input" (the row vector only), or "both"
            (concatenated).
        shuffle: Order of training. "tiles" takes up to 1,024 random entries of a tile of 128 x 128 words at a time, in
            random order of tiles and parts. "full" shuffles all entries, which is slower and no better (README,
            Measured).
        memory_gb: Memory limit for counting a corpus, in 10^9 bytes.
        threads: Number of threads. Default: all cores; long runs also try half as many and keep whichever is faster.
        seed: Seed of the first weights and of every random draw, 0 to 2**64 - 1. With one thread, the same seed gives
            the same bits.
        device: Where to train: "cpu", "cuda", "cuda:1", or "auto" (CUDA where a device is usable, otherwise the CPU;
            the choice is printed). CUDA needs CuPy and dim <= 1,024, trains runs of up to 64 entries of a row in random
            order regardless of `shuffle`, thousands of runs at once, and results differ in the last digits.
    Learned:
        vectors_: Vectors, float32 (len(words_), dim), or (len(words_), 2 * dim) for "both". Row i belongs to word i.
        words_, counts_: Vocabulary, and int64 number of occurrences in all training data.
        loss_: Mean loss per entry of each epoch, weight * difference ** 2 / 2 just before each step: J / 2 of the paper
            divided by the number of entries, which Stanford's glove prints as cost.
        device_: Device used for training; with device="auto" also the reason.

    Steps follow glove.c: gradients are clipped to -100..100 by component, sums of squares start at 1, weights start
    uniformly in (-0.5, 0.5) / dim, and biases at 0.

    Memory: 16 * (dim + 1) * words bytes, with dim + 1 rounded up to a multiple of 16; half of them are sums of squares.
    "sum" and "both" allocate another matrix for vectors_. The entries, 12 bytes each, are kept in memory up to 256 MB
    and in a temporary file beyond, sorted by tile or random group. A full shuffle needs no permutation of all entries:
    it distributes them once to groups of about 16,000 (at most 4,096 groups); each epoch shuffles the groups, and each
    group in a buffer of its size. Vocabularies above 262,144 words have larger tiles. A device holds the tables and all
    entries, or 400 MB of them; sorting them into runs temporarily takes 0.7 GB.
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
            data: A Corpus, which is counted first, or a co-occurrence matrix; then window, symmetric and
                distance_weighting are ignored.
            y: Ignored; scikit-learn's pipelines pass it.
            checkpoint: File for the state of the run, replaced every checkpoint_minutes, on Ctrl-C and at the end.
                `load` reads it too. It does not contain the matrix: a corpus is counted again.
            resume: Continue from the checkpoint, or start if the file does not exist. With one thread the result has
                the same bits as an uninterrupted run.
            progress: None shows a bar on a terminal, True also writes lines to a log, False shows nothing. A callable
                receives a training.Status after each slice. Counting is not included.

        Raises:
            ValueError: A setting is invalid, there is nothing to train on, the matrix has an entry that is not positive
                or whose row or column is out of range, or the checkpoint belongs to other data or settings.
            TypeError: `data` is neither a Corpus nor a CooccurrenceMatrix.
            FormatError: The checkpoint is damaged.
            TrainingError: The loss is no longer finite, most often because lr is too high.
            KeyboardInterrupt: Ctrl-C. The model keeps what it has learned so far.
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
        """Continues training on other data for `epochs` passes, keeping the sums of squares. Returns self.

        New words get new rows and counts are added. If there are new words, words_ is sorted by count again and rows
        move with their words. An untrained model is fitted from scratch. dim must not change; other settings may.
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
        """Mean vector of the known words of each document, float32 (len(corpus), vector size); zeros without any."""
        self._check_fitted()
        return document_means(np.asarray(self.vectors_.matrix), self.words_, corpus)

    def fit_transform(self, corpus: Corpus, y: Any = None) -> np.ndarray:
        """Fits the model and transforms the same corpus."""
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
        """The setting that no device kernel supports, or None; "auto" then picks the CPU."""
        return too_wide_for_devices(self.dim)

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
            raise ValueError("no two words co-occur: every document has a single word, or the matrix is empty")
        return matrix

    def _fresh(self, n: int, first: int) -> dict[str, np.ndarray]:
        """Tables for n new words, starting with word number `first` of the model."""
        tables = {name: kernels.weight_table(n, self.dim + 1) for name in ("w_in", "w_out", "sums_in", "sums_out")}
        initial_weights(tables["w_in"], self.dim, self.seed, first)
        initial_weights(tables["w_out"], self.dim, self.seed, _ROWS_OUT + first)
        tables["sums_in"][:] = tables["sums_out"][:] = 1
        return tables

    def _grow(self, matrix: CooccurrenceMatrix) -> None:
        """Adds the words and counts of a matrix to the model."""
        n_old = len(self.words_)
        self.words_, self.counts_, row = grown_vocabulary(self.words_, self.counts_, matrix.words, matrix.counts)
        fresh, tables = self._fresh(len(row) - n_old, n_old), {}  # a new dict, since copy.copy shares the old one
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

    def _job(self) -> np.ndarray:
        """A record with the settings that the kernels read."""
        job = np.zeros((), kernels.GLOVE_JOB)
        for name in ("dim", "x_max", "alpha", "lr", "seed"):
            job[name] = getattr(self, name)
        return job

    def _cpu_step(self, matrix: CooccurrenceMatrix, place: np.ndarray, blocks: np.ndarray, threads: ThreadTuner) -> Any:
        """Returns the grouped entries and a function that trains on blocks first..last of an epoch."""
        state, job = self._progress, self._job()
        groups, entries = group(matrix, place, len(self.words_), self.shuffle, self.seed)
        sizes = np.diff(groups)
        order, ends = np.empty(0, np.int32), np.empty(0, np.int64)  # of epoch `ordered`
        ordered = -1

        def step(epoch: int, first: int, last: int) -> tuple[float, int, int]:
            nonlocal order, ends, ordered
            if ordered != epoch:
                order = kernels.random_order(len(sizes), self.seed, state.before + epoch)
                ends, ordered = np.cumsum(sizes[order]), epoch
            job["epoch"] = state.before + epoch
            job["first"], job["last"] = np.searchsorted(ends, blocks[[first, last]], "right")
            loss, trained = kernels.train_entries(
                job, **self._tables, entries=entries, groups=groups, order=order, threads=threads.now
            )
            return loss, trained, trained

        return entries, step

    def _device_step(self, matrix: CooccurrenceMatrix, place: np.ndarray, blocks: np.ndarray, device: Any) -> Any:
        """Returns the tables on a device, the entries in runs, and a function that trains on blocks first..last."""
        state = self._progress
        entries, parts, runs = make_runs(matrix, place, len(self.words_), self.seed)
        n_parts, sizes = len(parts) - 1, np.diff(runs)
        on_device = kernels.device_entries(device, self._job(), self._tables, entries, parts, runs)
        # Of epoch `ordered`: the order of parts, their edges in the order of runs, and the last entry of each run.
        turns, edges, ends = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64)
        ordered = -1

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
        """Sets vectors_ and loss_ from the current weights."""
        w_in, w_out = (self._tables[name][:, : self.dim] for name in ("w_in", "w_out"))
        if self.vectors == "sum":
            with np.errstate(over="ignore", invalid="ignore"):  # if the run failed
                matrix = w_in + w_out
        else:
            matrix = w_in if self.vectors == "input" else np.hstack([w_in, w_out])
        self.vectors_ = Vectors(self.words_, matrix)
        self.loss_ = list(self._progress.losses)
        self._dim = self.dim

    def _check_learned(self) -> None:
        if self._dim != self.dim:
            raise ValueError(f"dim must stay {self._dim} once trained, got {self.dim}; use fit to train from scratch")

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
    """Sorts entries into parts of tiles or random groups and replaces each id by place[id].

    Returns the edges of the groups, int64 (groups + 1,), and the sorted entries.

    Raises:
        ValueError: An entry is out of range or not positive.
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
    """Sorts entries into runs of up to 64 random entries of a row and replaces each id by place[id].

    Runs are stored in parts of about 16.8 M entries; each part is a random sample of the matrix. Returns the entries,
    the edges of parts in runs, int64 (parts + 1,), and the edges of runs in entries, int64 (runs + 1,).

    Raises:
        ValueError: An entry is out of range or not positive.
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
    """Calls kernels.group_entries; raises an error that names the faulty entry."""
    groups, grouped = np.empty(n_groups + 1, np.int64), scratch_array(len(matrix), kernels.ENTRY)
    entries = np.ascontiguousarray(matrix.entries)
    bad = kernels.group_entries(
        entries, place, n_rows=n_rows, tile=tile, n_groups=n_groups, seed=seed, groups=groups, grouped=grouped
    )
    if bad >= 0:
        matrix._checked(ValueError)
        raise ValueError(f"entry {bad}: expected a positive number within the matrix, got {entries[bad]}")
    forget_read(matrix.entries, 0, len(matrix))
    return groups, grouped


def _parted(edges: np.ndarray, most: int) -> np.ndarray:
    """Splits groups into nearly equal parts of at most `most` entries; drops empty groups. Returns the edges.

    >>> _parted(np.array([0, 2500, 2500, 2507]), 1024).tolist()
    [0, 833, 1666, 2500, 2507]
    """
    sizes = np.diff(edges)
    parts = -(-sizes // most)
    piece = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = np.repeat(edges[:-1], parts) + piece * np.repeat(sizes, parts) // np.repeat(parts, parts)
    return np.append(starts, edges[-1])


def _fingerprint(matrix: CooccurrenceMatrix) -> dict[str, int]:
    """Identifies a matrix by its sizes and a checksum of words, counts and the first entries."""
    crc = zlib.crc32("\0".join(matrix.words).encode("utf-8", "surrogatepass"))
    for array in (matrix.counts, matrix.entries[: 1 << 16]):
        crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, crc)
    return {"words": len(matrix.words), "entries": len(matrix), "crc": crc}
