"""Co-occurrence matrices: counting, files, conversion to SciPy and Stanford's format, PPMI and SVD.

Source: Pennington, Socher, Manning 2014, https://aclanthology.org/D14-1162, and their program cooccur.
"""

import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from embfast import kernels
from embfast.errors import FormatError
from embfast.files.durable import FilePath, replacing
from embfast.files.scratch import scratch_array
from embfast.files.tensors import TensorFile, tensor_header, word_tensors
from embfast.text.corpus import Corpus
from embfast.text.vocabulary import read_vocab
from embfast.training.blocks import forget_read
from embfast.training.estimator import check_corpus
from embfast.training.settings import check_flag, check_float, check_int, check_machine
from embfast.training.threads import cores
from embfast.vectors.vectors import Vectors
from embfast.words.counting import count_pairs, plan_counting

FORMAT, VERSION = "embfast co-occurrences", 1
STANFORD = np.dtype([("row", "<i4"), ("column", "<i4"), ("value", "<f8")])  # cooccurrence.bin; ids from 1

_HEADER = 1 << 12  # bytes before the entries in a file
_CHUNK = 1 << 20  # entries per step of the numpy loops: 12 MB


class CooccurrenceMatrix:
    """Sparse matrix of word co-occurrences: entries (row, column, value > 0), sorted by row, then column.

    >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]])
    >>> matrix = CooccurrenceMatrix.from_corpus(corpus, window=2)
    >>> matrix
    CooccurrenceMatrix(3 words, 5 entries)
    >>> matrix.entries.tolist()  # "a" with itself: distance 2, counted in both directions
    [(0, 0, 1.0), (0, 1, 2.0), (1, 0, 2.0), (1, 2, 1.0), (2, 1, 1.0)]

    Created by `from_corpus`, `load`, `from_scipy` or `from_stanford`.

    Attributes:
        words: list of str, indexed by rows and columns. GloVe's tiles work best if it is sorted by count.
        counts: int64 (len(words),), number of occurrences in the text.
        entries: structured array (len(matrix),) with fields row int32, column int32, value float32; memory-mapped if it
            comes from a file or a corpus.
        rows, columns, values: Views of the fields.
        settings: window, symmetric and distance_weighting, if known.
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
        if len(set(words)) < len(words):
            raise ValueError(f"words: {Counter(words).most_common(1)[0][0]!r} is listed more than once")
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
        path: FilePath | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> "CooccurrenceMatrix":
        """Counts pairs of words within `window` tokens of each other in a document.

        The result has the same bits for any memory limit and number of threads.

        Args:
            window: Number of tokens on each side, 1 to 1,000.
            symmetric: Count pairs in both directions. Otherwise each pair counts once, and its row is the earlier word
                (Stanford's -symmetric 0).
            distance_weighting: Count 1 / d for a pair at distance d. Otherwise every pair counts 1.
            memory_gb: Memory limit in 10^9 bytes. Counts that do not fit are written as sorted runs, 12 bytes per
                entry, to an unnamed temporary file beside `path` or in tempfile.gettempdir(), and merged.
            threads: Number of threads. Default: all cores.
            path: File that keeps the matrix, 12 bytes per entry. Default: a temporary file that is deleted with the
                matrix.
            progress: Called with (words done, total words), over the counting of all chunks and their merge.

        Raises:
            ValueError: An argument is invalid, the corpus has no words, or memory_gb is too small for its vocabulary.
            OSError: The disk is full or a file cannot be written. Incomplete files are removed.
        """
        check_int("window", window, 1, 1000)
        check_flag("symmetric", symmetric)
        check_flag("distance_weighting", distance_weighting)
        check_float("memory_gb", memory_gb, 0, 1e6, above=True)
        check_machine(threads, 0)
        check_corpus(corpus)
        settings: dict[str, Any] = {
            "window": int(window),
            "symmetric": bool(symmetric),
            "distance_weighting": bool(distance_weighting),
        }
        plan = plan_counting(corpus, memory_gb=memory_gb, threads=threads or cores(), **settings)
        directory = None if path is None else os.path.dirname(os.path.abspath(path))

        def write(stream: BinaryIO, begin: int) -> int:
            return count_pairs(corpus, plan, stream, begin=begin, directory=directory, progress=progress)

        if path is not None:
            _write_matrix(path, corpus.words, corpus.counts, settings, write)
            return cls.load(path)
        with tempfile.TemporaryFile() as stream:
            n = write(stream, 0)
            return cls(list(corpus.words), np.array(corpus.counts), _mapped(stream, n), settings)

    # ---- files ----------------------------------------------------------------------------------------------------

    def save(self, path: FilePath) -> None:
        """Writes a safetensors file; an existing file is replaced only once the new one is complete.

        Its tensors are entries (U8, 12 little-endian bytes each, as above), words_utf8, words_offsets and counts.
        """

        def write(stream: BinaryIO, begin: int) -> int:
            stream.seek(begin)
            for lo in range(0, len(self), _CHUNK):
                stream.write(np.ascontiguousarray(self.entries[lo : lo + _CHUNK]).view(np.uint8).data)
                forget_read(self.entries, lo, min(lo + _CHUNK, len(self)))
            return len(self)

        _write_matrix(path, self.words, self.counts, self.settings, write)

    @classmethod
    def load(cls, path: FilePath) -> "CooccurrenceMatrix":
        """Opens a file written by `save`; the entries are memory-mapped.

        Raises:
            FileNotFoundError: The file does not exist.
            FormatError: The file is truncated or damaged, or holds something else.
        """
        with TensorFile(path) as file:
            if file.metadata.get("format") != FORMAT:
                raise FormatError(f"{path}: expected a saved CooccurrenceMatrix, got another kind of safetensors file")
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
    def from_stanford(cls, path: FilePath, vocab: FilePath) -> "CooccurrenceMatrix":
        """Reads cooccurrence.bin of Stanford's cooccur and the vocabulary file it was counted with.

        Memory: 12 bytes per entry, in a temporary file above 256 MB.

        Raises:
            FormatError: The file is truncated, an id is not in the vocabulary, a value is not positive, or the entries
                are not sorted as cooccur writes them (the output of shuffle is not).
        """
        words, counts = read_vocab(vocab)
        with open(vocab, "rb") as file:
            n_lines = sum(1 for _ in file)
        if n_lines != len(words):
            raise FormatError(
                f"{vocab}: contains </s>, which Stanford's tools number like a word; count the text again"
            )
        size = os.path.getsize(path)
        if size % STANFORD.itemsize:
            raise FormatError(f"{path}: expected records of {STANFORD.itemsize} bytes, got {size:,}; is it truncated?")
        entries = scratch_array(size // STANFORD.itemsize, kernels.ENTRY)
        with open(path, "rb") as file:
            for lo in range(0, len(entries), _CHUNK):
                records = np.fromfile(file, STANFORD, min(_CHUNK, len(entries) - lo))
                part = entries[lo : lo + len(records)]
                part["row"], part["column"] = records["row"] - 1, records["column"] - 1
                with np.errstate(over="ignore"):
                    part["value"] = records["value"]
        return cls(words, counts, entries, name=os.fspath(path))._checked(FormatError, first_id=1)

    def to_stanford(self, path: FilePath, vocab: FilePath | None = None) -> None:
        """Writes cooccurrence.bin for Stanford's shuffle and glove, and their vocabulary file of `word count` lines."""
        if vocab is not None:
            for word in self.words:
                if not word or any(mark in word for mark in " \t\r\n"):
                    raise ValueError(f"{word!r} cannot be written to a vocabulary file: it is empty or has whitespace")
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
        """Converts a square SciPy sparse matrix; duplicate entries are summed.

        Args:
            counts: Word counts. Default: the rounded row sums.

        Raises:
            ValueError: The matrix does not have one row and one column per word, or an entry is not positive.
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
        """Returns a copy as a scipy.sparse coo_array, float32 (len(words), len(words)), 12 bytes per entry."""
        sparse = _scipy()
        places = (np.array(self.rows), np.array(self.columns))
        return sparse.coo_array((np.array(self.values), places), shape=(len(self.words), len(self.words)))

    def ppmi(self, shift: float = 1.0, smoothing: float = 0.75) -> Any:
        """Positive pointwise mutual information, a scipy.sparse csr_array, float32 (len(words), len(words)).

        An entry is max(0, log(p(row, column) / (p(row) p(column))) - log(shift)); zeros are not stored.

        Args:
            shift: 1 gives PPMI; k gives the shifted PPMI that skip-gram with k negatives factorises.
            smoothing: Context distribution smoothing: p(column) is proportional to (column sum) ** smoothing. 1
                disables it.

        Memory: about 40 bytes per entry of the matrix.
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
            # log(x * sum / (row * column)); smoothed columns are normalised to 1
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
        """Word vectors U S ** power from a truncated singular value decomposition of ppmi(shift, smoothing).

        Args:
            power: Exponent of the singular values. 0.5 and 0 are better than 1 on most tasks.
            seed: Seed of the start vector of the iteration (ARPACK). Signs are chosen so that the largest component of
                each dimension is positive.

        Raises:
            ValueError: dim is not below the number of words, or the matrix has a lower rank.
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
        if (n := np.count_nonzero(values > 1e-9 * values[0])) < dim:
            raise ValueError(f"dim must be at most {n}, the numerical rank of the PPMI matrix, got {dim}")
        left *= np.where(left[np.abs(left).argmax(axis=0), np.arange(dim)] < 0, -1, 1)
        return Vectors(list(self.words), (left * values**power).astype(np.float32))

    # ---- reading --------------------------------------------------------------------------------------------------

    def chunks(self) -> Iterator[np.ndarray]:
        """Yields the entries in order, about a million at a time. Raises ValueError at the first invalid entry."""
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
                    fault = f"expected entries sorted by row and column, got {row}, {column} out of order or twice"
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
        raise ImportError("SciPy is not installed: pip install embfast[scipy]") from None
    return sparse


def _mapped(stream: BinaryIO, n: int) -> np.ndarray:
    return np.memmap(stream, kernels.ENTRY, "r", shape=(n,)) if n else np.empty(0, kernels.ENTRY)


def _write_matrix(
    path: FilePath,
    words: list[str],
    counts: np.ndarray,
    settings: dict[str, Any],
    write: Callable[[BinaryIO, int], int],
) -> None:
    """Writes a matrix file: entries by write(stream, begin), which returns their number, then the vocabulary."""
    with replacing(path) as stream:
        if not stream.seekable():
            raise ValueError(f"{path}: expected a regular file, because its header is written last")
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
