"""Co-occurrences: how often words stand near each other, counted in bounded memory, kept in files, and what they tell.

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

FORMAT, VERSION = "embfast co-occurrences", 1
STANFORD = np.dtype([("row", "<i4"), ("column", "<i4"), ("value", "<f8")])  # cooccurrence.bin; ids from 1

_HEADER = 1 << 12  # bytes before the entries of a file
_CHUNK = 1 << 20  # entries per step of the numpy loops: 12 MB
_BUFFER = 64 << 20  # bytes of counted entries between two writes
_SMALLEST_CHUNK = 1 << 16  # tokens counted at a time; less makes runs that are mostly headers


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
        if len(set(words)) < len(words):
            raise ValueError(f"words: {Counter(words).most_common(1)[0][0]!r} stands there twice")
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

    def save(self, path: FilePath) -> None:
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
    def load(cls, path: FilePath) -> "CooccurrenceMatrix":
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
    def from_stanford(cls, path: FilePath, vocab: FilePath) -> "CooccurrenceMatrix":
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

    def to_stanford(self, path: FilePath, vocab: FilePath | None = None) -> None:
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
        if (n := np.count_nonzero(values > 1e-9 * values[0])) < dim:
            raise ValueError(f"dim must be at most {n}, since no more dimensions have any information, got {dim}")
        left *= np.where(left[np.abs(left).argmax(axis=0), np.arange(dim)] < 0, -1, 1)
        return Vectors(list(self.words), (left * values**power).astype(np.float32))

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
    path: FilePath,
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
