"""GloVe: co-occurrences of words counted into a matrix, and vectors fitted to its logarithms.

Source: Pennington, Socher, Manning 2014, https://aclanthology.org/D14-1162, and their programs cooccur, shuffle, glove.
"""

import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np

from embfast import kernels
from embfast.corpus import Corpus, read_vocab
from embfast.errors import FormatError
from embfast.estimator import Estimator, FitRun, Path, check_corpus, check_flag, check_float, check_int, check_machine
from embfast.formats import replacing
from embfast.storage import scratch_array
from embfast.tensors import TensorFile, tensor_header, word_tensors
from embfast.training import (
    ProgressOption,
    choose_device,
    cores,
    document_means,
    forget_read,
    grown_vocabulary,
    initial_weights,
)
from embfast.vectors import Vectors

FORMAT, VERSION = "embfast co-occurrences", 1
STANFORD = np.dtype([("row", "<i4"), ("column", "<i4"), ("value", "<f8")])  # cooccurrence.bin; ids from 1

_HEADER = 1 << 12  # bytes before the entries of a file
_CHUNK = 1 << 20  # entries per step of the numpy loops: 12 MB
_BUFFER = 64 << 20  # bytes of counted entries between two writes
_SMALLEST_CHUNK = 1 << 16  # tokens counted at a time; less makes runs that are mostly headers
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


class CooccurrenceMatrix:
    """How often words stand near each other: entries (row, column, value) above 0, in order of row, then column.

    >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]])
    >>> matrix = CooccurrenceMatrix.from_corpus(corpus, window=2)
    >>> matrix
    CooccurrenceMatrix(3 words, 5 entries)
    >>> matrix.entries.tolist()  # a with itself: at distance 2, seen from either side
    [(0, 0, 1.0), (0, 1, 2.0), (1, 0, 2.0), (1, 2, 1.0), (2, 1, 1.0)]

    Made by `from_corpus`, `load`, `from_scipy` and `from_stanford`.

    Attributes:
        words: list of str. Rows and columns are indices into it; tiles of training are best when it is sorted by count.
        counts: int64 (len(words),), occurrences in the text.
        entries: structured (len(matrix),), fields row int32, column int32, value float32; memory-mapped when it comes
            from a file or a corpus.
        rows, columns, values: views on the fields.
        settings: window, symmetric and distance_weighting where they are known.
    """

    def __init__(
        self,
        words: list[str],
        counts: np.ndarray,
        entries: np.ndarray,
        settings: dict[str, Any] | None = None,
        name: str = "matrix",
    ) -> None:
        if len(words) != len(counts):
            raise ValueError(f"expected one count per word, got {len(words)} words and {len(counts)} counts")
        if entries.dtype != kernels.ENTRY or entries.ndim != 1:
            raise ValueError(f"expected entries of {kernels.ENTRY}, got {entries.dtype} {entries.shape}")
        self.words = words
        self.counts = np.asarray(counts, np.int64)
        self.entries = entries
        self.settings = dict(settings or {})
        self._name = name

    @property
    def rows(self) -> np.ndarray:
        """int32 (len(self),)"""
        return self.entries["row"]

    @property
    def columns(self) -> np.ndarray:
        """int32 (len(self),)"""
        return self.entries["column"]

    @property
    def values(self) -> np.ndarray:
        """float32 (len(self),)"""
        return self.entries["value"]

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"CooccurrenceMatrix({len(self.words):,} words, {len(self):,} entries)"

    # ---- counting -------------------------------------------------------------------------------------------------

    @classmethod
    def from_corpus(
        cls,
        corpus: Corpus,
        *,
        window: int = 15,
        symmetric: bool = True,
        distance_weighting: bool = True,
        memory_gb: float = 2.0,
        threads: int | None = None,
        path: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> "CooccurrenceMatrix":
        """Counts the pairs of words within `window` tokens of each other in a document.

        The result is the same to the bit whatever the memory and the threads.

        Args:
            window: tokens on each side, 1 to 1,000.
            symmetric: a pair counts in both directions; otherwise once, the row being the word that comes first (as
                Stanford's -symmetric 0).
            distance_weighting: a pair at distance d counts 1 / d; otherwise 1.
            memory_gb: 10^9 bytes that counting may take. What does not fit is written in sorted runs, 12 bytes an
                entry, to a temporary file without a name, beside `path` or in tempfile.gettempdir(), and merged.
            threads: all cores by default.
            path: the file to keep the matrix in, 12 bytes an entry; a temporary file by default, which goes with the
                matrix.
            progress: called with (words done, words in all) of the counting, then of the merge.

        Raises:
            ValueError: an argument makes no sense, the corpus has no words, or memory_gb is too little for its words.
            OSError: a disk is full, or a file cannot be written. No part of a file stays.
        """
        check_int("window", window, 1, 1000)
        check_flag("symmetric", symmetric)
        check_flag("distance_weighting", distance_weighting)
        check_float("memory_gb", memory_gb, 0, 1e6, above=True)
        check_machine(threads, 0)
        check_corpus(corpus)
        threads = threads or cores()
        buffer, chunk = _plan(corpus.n_tokens, len(corpus.words), threads, memory_gb)
        settings = {
            "window": int(window),
            "symmetric": bool(symmetric),
            "distance_weighting": bool(distance_weighting),
        }

        def write(stream: BinaryIO, begin: int) -> int:
            directory = None if path is None else os.path.dirname(os.path.abspath(path))
            return count_pairs(
                corpus.ids,
                corpus.offsets,
                len(corpus.words),
                **settings,
                threads=threads,
                buffer=buffer,
                chunk=chunk,
                stream=stream,
                begin=begin,
                directory=directory,
                progress=progress,
            )

        if path is not None:
            _write_matrix(path, corpus.words, corpus.counts, settings, write)
            return cls.load(path)
        with tempfile.TemporaryFile() as stream:
            n = write(stream, 0)
            return cls(list(corpus.words), np.array(corpus.counts), _mapped(stream, n), settings)

    # ---- files ----------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes a safetensors file; the old one stays until the new one is whole.

        Its tensors are entries (U8, 12 bytes each as above, little-endian), words_utf8, words_offsets and counts.
        """

        def write(stream: BinaryIO, begin: int) -> int:
            stream.seek(begin)
            for lo in range(0, len(self), _CHUNK):
                stream.write(np.ascontiguousarray(self.entries[lo : lo + _CHUNK]).view(np.uint8).data)
                forget_read(self.entries, lo, min(lo + _CHUNK, len(self)))
            return len(self)

        _write_matrix(path, self.words, self.counts, self.settings, write)

    @classmethod
    def load(cls, path: Path) -> "CooccurrenceMatrix":
        """Opens what save wrote; the entries are memory-mapped.

        Raises:
            FileNotFoundError: there is no such file.
            FormatError: the file is cut short or damaged, or holds something else.
        """
        with TensorFile(path) as file:
            if file.metadata.get("format") != FORMAT:
                raise FormatError(
                    f"{path}: expected a saved CooccurrenceMatrix, got a safetensors file of something else"
                )
            version = file.json("version")
            if not isinstance(version, int) or version > VERSION:
                raise FormatError(f"{path}: expected version {VERSION} or older, got {version}; update embfast")
            words = file.read_words()
            counts = file.read("counts", "I64", (len(words),))
            data = file.map("entries")
            if len(data) % kernels.ENTRY.itemsize:
                raise FormatError(f"{path}: expected entries of {kernels.ENTRY.itemsize} bytes, got {len(data)} in all")
            return cls(words, counts, data.view(kernels.ENTRY), file.json("settings"), os.fspath(path))

    @classmethod
    def from_stanford(cls, path: Path, vocab: Path) -> "CooccurrenceMatrix":
        """Reads cooccurrence.bin of Stanford's cooccur, and the vocabulary file that it was made with.

        Memory: the entries, 12 bytes each, in a temporary file once they pass 256 MB.

        Raises:
            FormatError: the file is cut short, its ids are not of the vocabulary, its values are no counts, or it is in
                another order than that of cooccur (shuffle's output is).
        """
        words, counts = read_vocab(vocab)
        with open(vocab, "rb") as file:
            n_lines = sum(1 for _ in file)
        if n_lines != len(words):
            raise FormatError(f"{vocab}: holds </s>, which Stanford's programs number like a word; count the text anew")
        size = os.path.getsize(path)
        if size % STANFORD.itemsize:
            raise FormatError(f"{path}: expected records of {STANFORD.itemsize} bytes, got {size:,}; was it cut short?")
        entries = scratch_array(size // STANFORD.itemsize, kernels.ENTRY)
        with open(path, "rb") as file:
            for lo in range(0, len(entries), _CHUNK):
                records = np.fromfile(file, STANFORD, min(_CHUNK, len(entries) - lo))
                part = entries[lo : lo + len(records)]
                part["row"], part["column"] = records["row"] - 1, records["column"] - 1
                with np.errstate(over="ignore"):
                    part["value"] = records["value"]
        return cls(words, counts, entries, name=os.fspath(path))._checked(FormatError, first_id=1)

    def to_stanford(self, path: Path, vocab: Path | None = None) -> None:
        """Writes cooccurrence.bin for Stanford's shuffle and glove, and their vocabulary file, `word count` a line."""
        if vocab is not None:
            for word in self.words:
                if not word or any(mark in word for mark in " \t\r\n"):
                    raise ValueError(f"{word!r} cannot be written to a vocabulary file: it is empty or has white space")
            with replacing(vocab) as stream:
                pairs = zip(self.words, self.counts.tolist(), strict=True)
                stream.write("".join(f"{word} {count}\n" for word, count in pairs).encode())
        with replacing(path) as stream:
            for part in self.chunks():
                records = np.empty(len(part), STANFORD)
                records["row"], records["column"] = part["row"] + 1, part["column"] + 1
                records["value"] = part["value"]
                stream.write(records.view(np.uint8).data)

    # ---- scipy ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_scipy(cls, matrix: Any, words: list[str], counts: np.ndarray | None = None) -> "CooccurrenceMatrix":
        """Takes a square sparse matrix of scipy; entries at the same place are added up.

        counts: of the words; by default the row sums, rounded.

        Raises:
            ValueError: it is not square with a row for each word, or an entry is not a positive number.
        """
        if matrix.ndim != 2 or matrix.shape != (len(words), len(words)):
            raise ValueError(
                f"expected a matrix of shape {(len(words), len(words))}, one row per word, got {matrix.shape}"
            )
        rows = matrix.tocsr(copy=True)
        rows.sum_duplicates()
        entries = np.empty(rows.nnz, kernels.ENTRY)
        entries["row"] = np.repeat(np.arange(len(words), dtype=np.int32), np.diff(rows.indptr))
        with np.errstate(over="ignore"):
            entries["column"], entries["value"] = rows.indices, rows.data
        cls(list(words), np.zeros(len(words), np.int64), entries)._checked(ValueError)
        if counts is None:
            counts = np.rint(np.bincount(entries["row"], entries["value"], len(words)))
        return cls(list(words), counts, entries)

    def to_scipy(self) -> Any:
        """A scipy.sparse coo_array of float32 (len(words), len(words)): a copy, 12 bytes an entry."""
        sparse = _scipy()
        places = (np.array(self.rows), np.array(self.columns))
        return sparse.coo_array((np.array(self.values), places), shape=(len(self.words), len(self.words)))

    def ppmi(self, shift: float = 1.0, smoothing: float = 0.75) -> Any:
        """Positive pointwise mutual information, a scipy.sparse csr_array of float32 (len(words), len(words)).

        An entry is max(0, log(p(row, column) / (p(row) p(column))) - log(shift)); those that are 0 are left out.

        Args:
            shift: 1 is PPMI; k is the shifted PPMI that skip-gram with k negatives factorises.
            smoothing: columns have probabilities in proportion to (column sum) ** smoothing; 1 for none.

        Memory: about 40 bytes an entry of the matrix.
        Sources: Levy & Goldberg 2014, arXiv:1402.3722 (shift); Levy, Goldberg, Dagan 2015,
        https://aclanthology.org/Q15-1016 (smoothing).
        """
        check_float("shift", shift, 0, 1e9, above=True)
        check_float("smoothing", smoothing, 0, 10)
        sparse = _scipy()
        n = len(self.words)
        of_row, of_column = np.zeros(n), np.zeros(n)
        for part in self.chunks():
            of_row += np.bincount(part["row"], part["value"], n)
            of_column += np.bincount(part["column"], part["value"], n)
        share = of_column**smoothing
        kept = []
        with np.errstate(divide="ignore"):
            # log(x * sum / (row * column)), where the columns' shares add up to 1
            by_row, by_column = -np.log(of_row), math.log(share[of_column > 0].sum() or 1.0) - np.log(share)
        for part in self.chunks():
            pmi = np.log(part["value"].astype(np.float64)) + by_row[part["row"]] + by_column[part["column"]]
            pmi -= math.log(shift)
            above = pmi > 0
            kept.append((part["row"][above], part["column"][above], pmi[above].astype(np.float32)))
        rows, columns, values = (np.concatenate(arrays) for arrays in zip(*kept, strict=True)) if kept else ([], [], [])
        return sparse.csr_array((values, (rows, columns)), shape=(n, n), dtype=np.float32)

    def svd(
        self, dim: int = 100, *, shift: float = 1.0, smoothing: float = 0.75, power: float = 0.5, seed: int = 0
    ) -> Vectors:
        """Vectors by a truncated singular value decomposition of ppmi(shift, smoothing): U S ** power.

        power: 0.5 and 0 are better than 1 on most tasks.
        seed: of the first vector of the iteration (ARPACK); signs are chosen so that the largest number of each
            dimension is positive.

        Raises:
            ValueError: dim is not below the number of words, or fewer dimensions have any information.
        Source: Levy, Goldberg, Dagan 2015, https://aclanthology.org/Q15-1016.
        """
        check_int("dim", dim, 1, 100_000)
        check_float("power", power, -1, 1)
        check_int("seed", seed, 0, 2**64 - 1)
        _scipy()
        from scipy.sparse.linalg import svds

        information = self.ppmi(shift, smoothing)
        if dim >= len(self.words):
            raise ValueError(f"dim must be below the number of words, {len(self.words)}, got {dim}")
        if not information.nnz:
            raise ValueError(f"no pair of words has a pointwise mutual information above log({shift:g})")
        start = np.random.default_rng(seed).standard_normal(len(self.words))
        left, values, _ = svds(information.astype(np.float64), k=int(dim), v0=start, return_singular_vectors="u")
        order = np.argsort(-values)
        left, values = left[:, order], np.maximum(values[order], 0)
        left *= np.where(left[np.abs(left).argmax(axis=0), np.arange(dim)] < 0, -1, 1)
        with np.errstate(divide="ignore"):
            scale = np.where(values > 1e-9 * values[0], values**power, 0)
        return Vectors(list(self.words), (left * scale).astype(np.float32))

    # ---- reading --------------------------------------------------------------------------------------------------

    def chunks(self) -> Iterator[np.ndarray]:
        """The entries in parts of about a million, in order; ValueError at the first that cannot be one."""
        yield from self._parts(ValueError, 0)

    def _parts(self, kind: type[ValueError], first_id: int) -> Iterator[np.ndarray]:
        n, last = len(self.words), -1
        for lo in range(0, len(self), _CHUNK):
            part = self.entries[lo : lo + _CHUNK]
            rows, columns, values = part["row"], part["column"], part["value"]
            known = (rows >= 0) & (rows < n) & (columns >= 0) & (columns < n)
            fine = known & (values >= np.finfo(np.float32).tiny) & (values < np.inf)
            places = rows.astype(np.int64) * n + columns
            rising = np.diff(places, prepend=last) > 0
            if not (fine & rising).all():
                i = int(np.argmin(fine & rising))
                row, column = int(rows[i]) + first_id, int(columns[i]) + first_id
                if not known[i]:
                    fault = f"expected ids from {first_id} to {n - 1 + first_id}, got {row} and {column}"
                elif not fine[i]:
                    fault = f"expected a positive number at {row}, {column}, got {values[i]}"
                else:
                    fault = f"expected a row and column after those before, got {row}, {column}: not sorted, or twice"
                raise kind(f"{self._name}: entry {lo + i}: {fault}")
            last = int(places[-1])
            yield part
            forget_read(self.entries, lo, lo + len(part))

    def _checked(self, kind: type[ValueError], first_id: int = 0) -> "CooccurrenceMatrix":
        for _ in self._parts(kind, first_id):
            pass
        return self


def _scipy() -> Any:
    try:
        from scipy import sparse
    except ImportError:
        raise ImportError("this needs scipy: pip install embfast[scipy]") from None
    return sparse


def _mapped(stream: BinaryIO, n: int) -> np.ndarray:
    return np.memmap(stream, kernels.ENTRY, "r", shape=(n,)) if n else np.empty(0, kernels.ENTRY)


def _write_matrix(
    path: Path,
    words: list[str],
    counts: np.ndarray,
    settings: dict[str, Any],
    write: Callable[[BinaryIO, int], int],
) -> None:
    """A file of entries, which write(stream, begin) puts there and counts, and of the vocabulary after them."""
    with replacing(path) as stream:
        if not stream.seekable():
            raise ValueError(f"{path}: expected a regular file, since its header is written last")
        stream.write(bytes(_HEADER))
        stream.flush()
        n = write(stream, _HEADER)
        stream.seek(_HEADER + n * kernels.ENTRY.itemsize)
        vocabulary = {**word_tensors(words), "counts": np.asarray(counts, np.int64)}
        for tensor in vocabulary.values():
            stream.write(tensor.tobytes())
        metadata = {"format": FORMAT, "version": json.dumps(VERSION), "settings": json.dumps(settings)}
        entries = np.broadcast_to(np.uint8(0), n * kernels.ENTRY.itemsize)  # takes no memory
        stream.seek(0)
        stream.write(tensor_header(metadata, {"entries": entries, **vocabulary}, _HEADER))


def _plan(n_tokens: int, n_words: int, threads: int, memory_gb: float) -> tuple[int, int]:
    """Bytes of the buffer and tokens of a chunk, so that counting stays within the memory."""
    memory = int(memory_gb * 1e9)
    counter = kernels.CooccurrenceCounter
    fixed = counter.bytes_of_words(n_words) + threads * counter.bytes_per_thread(n_words)
    buffer = max(min(_BUFFER, memory // 8), 16 * (n_words + 1))
    least = fixed + 16 * (n_words + 1) + min(n_tokens, _SMALLEST_CHUNK) * counter.bytes_per_token
    chunk = (memory - fixed - buffer) // counter.bytes_per_token
    if memory < least:
        raise ValueError(
            f"memory_gb={memory_gb:g} is too little to count {n_words:,} words on {threads} thread(s): expected at "
            f"least {least / 1e9:.3f}"
        )
    return buffer, max(1, min(max(chunk, _SMALLEST_CHUNK), n_tokens, 2**32 - 1))


def count_pairs(
    ids: np.ndarray,
    offsets: np.ndarray,
    n_words: int,
    *,
    window: int,
    symmetric: bool,
    distance_weighting: bool,
    threads: int,
    buffer: int,
    chunk: int,
    stream: BinaryIO,
    begin: int = 0,
    directory: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes the sorted entries of a corpus to a file from byte `begin` on, and returns how many they are.

    The corpus is counted `chunk` tokens at a time. Where these are several, their sums go through a temporary file
    without a name in `directory`.
    """
    n_tokens = len(ids)
    chunks = [(lo, min(lo + chunk, n_tokens)) for lo in range(0, n_tokens, chunk)]
    rounds = len(chunks) + (len(chunks) > 1)
    done = 0

    def rows(step: Callable[[int], int]) -> None:
        nonlocal done
        first = 0
        while first < n_words:
            first = step(first)
            if progress:
                progress(done + first, rounds * n_words)
        done += n_words

    with tempfile.TemporaryFile(dir=directory) as spill:
        try:
            counter = kernels.CooccurrenceCounter(
                ids,
                offsets,
                n_words=n_words,
                window=window,
                symmetric=symmetric,
                distance_weighting=distance_weighting,
                threads=threads,
                buffer_bytes=buffer,
                spill_fd=spill.fileno(),
                out_fd=stream.fileno(),
                out_begin=begin,
            )
            for lo, hi in chunks:
                counter.start(lo, hi, len(chunks) == 1)
                rows(counter.count)
                forget_read(ids, lo, hi)
            if len(chunks) > 1:
                rows(counter.merge)
        except OSError as error:
            where = directory or tempfile.gettempdir()
            raise OSError(error.errno, f"cannot write co-occurrences in {where}: {os.strerror(error.errno)}") from None
    return counter.n_entries


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
        threads: all cores by default. One gives the same bits every time; more differ in the last digits.
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
        checkpoint: Path | None = None,
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
        self._check()
        if self._tables["w_in"].shape[1] != kernels.padded(self.dim + 1) or self._dim != self.dim:
            raise ValueError(f"dim must stay {self._dim} in partial_fit, got {self.dim}")
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
        check_machine(self.threads, self.seed, self.device, self._of_cpu())

    def _of_cpu(self) -> str | None:
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
        fresh = self._fresh(len(row) - n_old, n_old)
        for name, before in self._tables.items():
            table = kernels.weight_table(len(row), self.dim + 1)
            table[row[:n_old]], table[row[n_old:]] = before, fresh[name]
            self._tables[name] = table

    def _train(self, matrix: CooccurrenceMatrix, run: FitRun) -> "GloVe":
        n, threads = len(matrix), self.threads or cores()
        index = {word: i for i, word in enumerate(self.words_)}
        place = np.array([index[word] for word in matrix.words], np.int32)
        blocks = np.append(np.arange(0, n, _BLOCK), n)
        device, self.device_ = choose_device(self.device, run.progress, self._of_cpu())
        on_device = None
        if device is None:
            entries, step = self._cpu_step(matrix, place, blocks, threads)
            per_slice = max(1, threads * _SLICE_WORK // kernels.padded(self.dim + 1) // _BLOCK)
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
            after_slice=lambda begin, end: forget_read(entries, 0, n),
            unit="entries",
            sessions=[] if on_device is None else [on_device],
        )
        return self

    def _cpu_step(self, matrix: CooccurrenceMatrix, place: np.ndarray, blocks: np.ndarray, threads: int) -> Any:
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
                threads=threads,
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
