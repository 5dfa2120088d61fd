"""Encoding: a source of text becomes a vocabulary, ids and offsets, with the options that all readers share."""

from __future__ import annotations

import hashlib
import operator
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embfast import kernels
from embfast.files import scratch
from embfast.files.durable import FilePath
from embfast.files.scratch import scratch_array
from embfast.text import sources, storage
from embfast.text.vocabulary import read_vocab

_CHUNK_DOCUMENTS = 1 << 20


@dataclass(frozen=True)
class Options:
    """Options of Corpus.from_file, checked; max_vocab is 0 for no limit."""

    min_count: int
    max_vocab: int
    keep: list[str]
    vocab: list[str] | None
    max_sentence: int | None
    threads: int
    errors: str
    max_distinct: int


class Encoded(NamedTuple):
    """Encoded text: the arguments of Corpus."""

    words: list[str]
    counts: np.ndarray
    ids: np.ndarray
    offsets: np.ndarray
    n_newlines: int


def read_options(
    min_count: int,
    max_vocab: int | None,
    keep: Iterable[str] | None,
    vocab: Iterable[str] | FilePath | None,
    max_sentence: int | None,
    threads: int | None,
    errors: str,
    max_distinct: int,
) -> Options:
    """Checks the options of Corpus.from_file and reads the vocabulary file, if one is named.

    Raises:
        ValueError, TypeError: an option is invalid.
        FormatError: the vocabulary file is damaged.
    """
    for name, value in (
        ("min_count", min_count),
        ("max_vocab", max_vocab),
        ("max_sentence", max_sentence),
        ("threads", threads),
        ("max_distinct", max_distinct),
    ):
        if value is not None and operator.index(value) < (0 if name == "min_count" else 1):
            raise ValueError(f"{name} must be positive, got {value}")
    if threads is not None and threads > 4096:
        raise ValueError(f"threads must be at most 4,096, got {threads}")
    if max_distinct > 2**30:
        raise ValueError(f"max_distinct must be at most 2**30, since ids are int32; got {max_distinct}")
    if errors not in ("strict", "replace", "skip"):
        raise ValueError(f'errors must be "strict", "replace" or "skip", got {errors!r}')
    if isinstance(keep, str):
        raise TypeError("keep must be a list of words, got one str")
    keep = [] if keep is None else list(keep)
    if isinstance(vocab, str | os.PathLike):
        vocab = read_vocab(vocab)[0]
    if vocab is not None:
        vocab = list(vocab)
        if len(set(vocab)) != len(vocab):
            raise ValueError(f"vocab must hold distinct words, got {len(vocab) - len(set(vocab))} repeated")
    threads = threads or kernels.cores()
    for name, words in (("keep", keep), ("vocab", vocab)):
        wrong = next((word for word in words or () if not isinstance(word, str)), None)
        if wrong is not None:
            raise TypeError(f"{name}: expected words of type str, got {wrong!r}")
    return Options(
        int(min_count),
        int(max_vocab or 0),
        sorted(keep),
        vocab,
        None if max_sentence is None else int(max_sentence),
        int(threads),
        errors,
        int(max_distinct),
    )


def files_fingerprint(paths: list[Path], options: Options) -> dict[str, Any]:
    """Everything a cached corpus depends on: path, size and modification time of each file, and the options.

    The number of threads is not included, since it does not change the result.

    Raises:
        ValueError: a path is not a regular file.
    """
    status = [(path, path.stat()) for path in paths]
    for path, s in status:
        if not stat.S_ISREG(s.st_mode):
            raise ValueError(f"{path}: only regular files can be cached; a change in a pipe cannot be detected")
    names = {
        name: getattr(options, name) for name in ("min_count", "max_vocab", "max_sentence", "errors", "max_distinct")
    }
    for name in ("keep", "vocab"):
        words = getattr(options, name)
        names[name] = None if words is None else hashlib.sha256("\0".join(words).encode("utf-8", "replace")).hexdigest()
    return {"files": [[str(path.resolve()), s.st_size, s.st_mtime_ns] for path, s in status], "options": names}


_Selection = tuple[list[str], np.ndarray, int, int, int]  # words, counts, n_tokens, n_distinct and the largest count


def encode(source: Any, options: Options, directory: storage.CorpusDirectory | None = None) -> Encoded:
    """Encodes a source of text; ids and offsets go to the directory, or to scratch arrays.

    Raises:
        ValueError: no word is left, or a source that cannot be read twice exceeds max_distinct.
        OSError: the temporary file of ids cannot be read back.
    """
    fixed = options.vocab is not None
    with tempfile.TemporaryFile(dir=None if directory is None else directory.data) as spill:
        encoded = _fed_encoder(source, options, spill, options.vocab)
        found = encoded and _selected(encoded, options)
        if not found or (not fixed and found[3] > options.max_distinct):
            encoded = found = None  # frees its memory
            encoded, found = _encode_pruned(source, options, spill)
        words, counts, n_tokens, n_distinct, largest = found
        if n_tokens == 0:
            if options.vocab is not None:
                raise ValueError(f"none of the {len(options.vocab)} words of vocab occurs in {source}")
            if n_distinct == 0:
                raise ValueError(f"no words in {source}")
            raise ValueError(
                f"no word occurs min_count={options.min_count} times in {source}: of {n_distinct:,} distinct words "
                f"the most frequent occurs {largest} times"
            )
        allocate = scratch_array if directory is None else directory.array_of
        ids = allocate(n_tokens, np.int32, "ids")
        longest = options.max_sentence
        offsets = (allocate if longest is None else scratch_array)(encoded.n_documents + 1, np.int64, "offsets")
        if not encoded.write(ids, offsets):
            raise OSError("cannot read back the ids written to a temporary file")
        if longest is not None:
            offsets = _cut(offsets, longest, allocate)
    return Encoded(words if options.vocab is None else options.vocab, counts, ids, offsets, encoded.n_newlines)


def _fed_encoder(source: Any, options: Options, spill: Any, words: list[str] | None, pruning: bool = False) -> Any:
    """An encoder that has read the source, or None if the source has more than max_distinct words."""
    encoder = kernels.TextEncoder(
        n_threads=options.threads,
        block_bytes=sources.BLOCK_BYTES,
        memory_bytes=scratch.MEMORY_BYTES,
        spill_fd=spill.fileno(),
        errors=options.errors,
        max_distinct=options.max_distinct,
        tokens=source.tokens,
        pruning=pruning,
    )
    if words is not None:
        encoder.set_words(words)
    try:
        source.feed(encoder, options.threads)
    except sources.TooManyWords:
        return None
    return encoder


def _selected(encoder: kernels.TextEncoder, options: Options) -> _Selection:
    """words, counts, n_tokens, n_distinct and the largest count."""
    fixed = options.vocab is not None
    return encoder.select(max(options.min_count, 1), options.max_vocab, options.keep, fixed)


def _encode_pruned(source: Any, options: Options, spill: Any) -> tuple[Any, _Selection]:
    """An encoder limited to the words that survive pruning, and what _selected gives: two more passes."""
    pruned = None if source.once else _fed_encoder(source, options, spill, None, pruning=True)
    if pruned is None or not pruned.n_documents:
        raise ValueError(
            f"more than max_distinct={options.max_distinct:,} distinct words, and {source.once or source} "
            "cannot be read twice: raise max_distinct (about 110 bytes of memory each), or pass something "
            "to read again"
        )
    survivors, _, _, *seen = pruned.select(options.min_count, 0, options.keep, False)
    del pruned
    encoder = _fed_encoder(source, options, spill, [*survivors, *sorted(set(options.keep).difference(survivors))])
    return encoder, (*_selected(encoder, options)[:3], *seen)


def _cut(offsets: np.ndarray, longest: int, allocate: Callable[..., np.ndarray]) -> np.ndarray:
    """Offsets of documents cut at `longest` tokens; an empty document stays one document."""

    def pieces(start: int) -> np.ndarray:
        lengths = np.diff(offsets[start : start + _CHUNK_DOCUMENTS + 1])
        return np.maximum(-(-lengths // longest), 1)

    starts = range(0, len(offsets) - 1, _CHUNK_DOCUMENTS)
    result = allocate(sum(int(pieces(start).sum()) for start in starts) + 1, np.int64, "offsets")
    n = 0
    for start in starts:
        counts = pieces(start)
        first = np.cumsum(counts) - counts  # index of each document's first piece
        piece = np.arange(counts.sum()) - np.repeat(first, counts)
        result[n : n + len(piece)] = np.repeat(offsets[start : start + len(counts)], counts) + piece * longest
        n += len(piece)
    result[n] = offsets[-1]
    return result
