"""Corpus: a vocabulary and documents encoded as ids of its words, made from text, sentences or table columns.

Source of the reading rules and of the word order: word2vec.c (Mikolov et al. 2013).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embfast.errors import FormatError
from embfast.files.durable import FilePath
from embfast.files.scratch import scratch_array
from embfast.text import sources, storage
from embfast.text.encoding import encode, files_fingerprint, read_options
from embfast.text.sources import ReadProgress
from embfast.text.vocabulary import write_vocab

__all__ = ["Corpus"]

_CHUNK_DOCUMENTS = 1 << 20
_CHUNK_TOKENS = 1 << 20


class Corpus:
    """Documents encoded as word ids, and the vocabulary that the ids index.

    >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]])
    >>> corpus
    Corpus(2 documents, 5 tokens, 3 words)
    >>> corpus.words, corpus.counts.tolist(), corpus.ids.tolist(), corpus.offsets.tolist()
    (['a', 'b', 'c'], [2, 2, 1], [0, 1, 0, 1, 2], [0, 3, 5])
    >>> corpus[1]
    ['b', 'c']

    Create one with `from_file`, `from_sentences`, `from_parquet` or `load`.

    Attributes:
        words: list of str, most frequent first, ties by first occurrence: word2vec.c's order without `</s>`.
        counts: int64 (len(words),), occurrences in this corpus.
        ids: int32 (n_tokens,), indices into words; rare words are dropped. Read-only, memory-mapped when large.
        offsets: int64 (len(corpus) + 1,); document d is ids[offsets[d]:offsets[d + 1]]. Empty documents are kept, so
            line k of a file stays document k.

    Rules for text: space, tab and newline end a token, CR is ignored, and a newline ends a document. A last line
    without a newline is a document too (word2vec.c drops its last word). A byte order mark at the start of a file is
    skipped. Words are not shortened (word2vec.c cuts them at 98 bytes) and not normalised. The token `</s>`, which
    stands for a newline in vocabulary files, is dropped from texts.

    Memory while reading: 55 to 110 bytes per distinct word and thread, briefly half as much again when a table grows;
    the bytes of words longer than 16; and 2 bytes per token (4 for words that came after 32,766 others), up to 256 MB.
    Tokens beyond that go to a temporary file in tempfile.gettempdir() or in `cache`. Reading frees all of it while it
    writes the result: words, counts, and 4 bytes per token plus 8 per document. Above 256 MB each of these arrays is a
    temporary file that disappears with the corpus.
    """

    def __init__(
        self,
        words: list[str],
        counts: np.ndarray,
        ids: np.ndarray,
        offsets: np.ndarray,
        n_newlines: int | None = None,
    ) -> None:
        if len(words) != len(counts):
            raise ValueError(f"expected one count per word, got {len(words)} words and {len(counts)} counts")
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(ids):
            raise ValueError(f"offsets must run from 0 to the {len(ids)} ids, got {offsets[:1]} to {offsets[-1:]}")
        for lo in range(0, len(offsets), _CHUNK_DOCUMENTS):
            part = offsets[lo : lo + _CHUNK_DOCUMENTS + 1]
            if (part[1:] < part[:-1]).any():
                raise ValueError(f"offsets must not decrease; they do between documents {lo} and {lo + len(part) - 1}")
        self.words = words
        self.counts = _read_only(np.asarray(counts, np.int64))
        self.ids = _read_only(ids if ids.dtype == np.int32 else ids.astype(np.int32))
        self.offsets = _read_only(offsets if offsets.dtype == np.int64 else offsets.astype(np.int64))
        self._n_newlines = len(offsets) - 1 if n_newlines is None else n_newlines

    @classmethod
    def from_file(
        cls,
        path: FilePath | Iterable[FilePath],
        *,
        min_count: int = 5,
        max_vocab: int | None = None,
        keep: Iterable[str] | None = None,
        vocab: Iterable[str] | FilePath | None = None,
        max_sentence: int | None = None,
        threads: int | None = None,
        cache: FilePath | None = None,
        errors: str = "strict",
        max_distinct: int = 2**27,
        progress: ReadProgress | None = None,
    ) -> Corpus:
        """Reads one or several text files, or all files of a directory (recursively, by name, hidden ones skipped).

        gzip, bzip2, xz and zstd files are recognised by their first bytes and decompressed as streams.

        Args:
            min_count: Words with fewer occurrences are dropped.
            max_vocab: Maximum vocabulary size; the most frequent words are kept.
            keep: Words to keep regardless of their count, if they occur at all.
            vocab: Fixed vocabulary, in this order: a list of words, or the path of a vocabulary file of word2vec.c.
                min_count, max_vocab and keep then have no effect.
            max_sentence: Maximum document length. Longer lines are split into documents of at most this many kept
                tokens; word2vec.c splits at 1,000.
            threads: Number of threads. Default: all cores. The result does not depend on it.
            cache: Directory in which the corpus is kept. It is reused while all options and the size and modification
                time of every file stay the same, and rewritten otherwise.
            errors: Handling of words that are not UTF-8 or contain a NUL: "strict" raises, "replace" substitutes U+FFFD
                for the bad bytes, "skip" drops the word.
            max_distinct: Maximum number of distinct words held while counting. Above it, one thread counts again and
                drops rare words as word2vec.c does (those seen once, then twice, ... each time the table is full; never
                those in keep), and a further pass encodes. Pipes cannot be read again.
            progress: Function called with (bytes read, bytes in all) of the files as stored on disk.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: the directory has no files, the files have no words or none that occurs min_count times, or
                `cache` is a directory written by `save`.
            FormatError: a compressed file is damaged, or bytes are not text; the message names file, line and offset.
        """
        options = read_options(min_count, max_vocab, keep, vocab, max_sentence, threads, errors, max_distinct)
        paths = sources.find_files(path)
        if cache is None:
            return cls(*encode(sources.Files(paths, progress), options))
        fingerprint = files_fingerprint(paths, options)
        try:
            return storage.load_corpus(Path(cache), fingerprint, cls)
        except (FormatError, FileNotFoundError):  # none yet, damaged, or made from another text: encode again
            pass
        with storage.CorpusDirectory(Path(cache)) as directory:
            corpus = cls(*encode(sources.Files(paths, progress), options, directory))
            directory.commit(corpus, fingerprint)
        return cls.load(cache)

    @classmethod
    def from_sentences(
        cls,
        sentences: Iterable[Iterable[str]],
        *,
        min_count: int = 1,
        max_vocab: int | None = None,
        keep: Iterable[str] | None = None,
        vocab: Iterable[str] | FilePath | None = None,
        max_sentence: int | None = None,
        threads: int | None = None,
        errors: str = "strict",
        max_distinct: int = 2**27,
    ) -> Corpus:
        """Encodes an iterable of lists of tokens, each list one document. Options as in `from_file`.

        Lists are consumed one at a time. Tokens may contain spaces. Empty tokens are dropped.

        >>> Corpus.from_sentences([["New York", "is", "large"]]).words
        ['New York', 'is', 'large']

        Raises:
            TypeError: a sentence is a str, or a token is not a str.
            ValueError: no word is left, or a generator has more than max_distinct distinct words (a list may).
            FormatError: a token contains a NUL or a lone surrogate.
        """
        if isinstance(sentences, str | bytes):
            raise TypeError(
                f"expected lists of tokens, got one {type(sentences).__name__}; see Corpus.from_file for text"
            )
        options = read_options(min_count, max_vocab, keep, vocab, max_sentence, threads, errors, max_distinct)
        return cls(*encode(sources.Sentences(sentences), options))

    @classmethod
    def from_parquet(
        cls,
        path: FilePath | Iterable[FilePath],
        column: str,
        *,
        min_count: int = 5,
        max_vocab: int | None = None,
        keep: Iterable[str] | None = None,
        vocab: Iterable[str] | FilePath | None = None,
        max_sentence: int | None = None,
        threads: int | None = None,
        errors: str = "strict",
        max_distinct: int = 2**27,
        progress: ReadProgress | None = None,
    ) -> Corpus:
        """Encodes a column of Parquet files; each row is a document, and a null is an empty document.

        Strings are split at spaces, tabs and newlines; lists of strings are taken as tokens. Options as in `from_file`,
        except that `progress` counts rows.

        Raises:
            ImportError: pyarrow is not installed.
            KeyError: a file has no such column.
            TypeError: the column holds neither strings nor lists of strings.
        """
        options = read_options(min_count, max_vocab, keep, vocab, max_sentence, threads, errors, max_distinct)
        return cls(*encode(sources.Parquet(sources.find_files(path), column, progress), options))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all documents, without dropped words."""
        return len(self.ids)

    def __getitem__(self, document: int) -> list[str]:
        n = len(self)
        if not -n <= document < n:
            raise IndexError(f"document {document} of {n}")
        document %= n
        ids = self.ids[self.offsets[document] : self.offsets[document + 1]]
        return [self.words[i] for i in ids]

    def __iter__(self) -> Iterator[list[str]]:
        return (self[document] for document in range(len(self)))

    def __repr__(self) -> str:
        return f"Corpus({len(self):,} documents, {self.n_tokens:,} tokens, {len(self.words):,} words)"

    def save(self, directory: FilePath) -> None:
        """Writes the corpus to a directory and replaces a corpus saved there before.

        The directory holds a complete corpus at any moment, the old one or the new one, even after a crash.
        """
        with storage.CorpusDirectory(Path(directory)) as target:
            for name in ("ids", "offsets"):
                source = getattr(self, name)
                array = target.array(name, len(source), source.dtype)
                for start in range(0, len(source), _CHUNK_TOKENS):
                    array[start : start + _CHUNK_TOKENS] = source[start : start + _CHUNK_TOKENS]
            target.commit(self, None)

    @classmethod
    def load(cls, directory: FilePath) -> Corpus:
        """Opens a corpus written by `save` or kept as a `cache`; ids and offsets are memory-mapped.

        Raises:
            FileNotFoundError: the directory holds no corpus.
            FormatError: a file of the corpus is damaged.
        """
        return storage.load_corpus(Path(directory), None, cls)

    def save_vocab(self, path: FilePath) -> None:
        """Writes a vocabulary file as word2vec.c's -save-vocab does: `</s>` and the newlines first, then a word a line.

        Raises:
            ValueError: a word contains a space, a tab or a line break, which separate fields in this format.
        """
        write_vocab(path, self.words, self.counts, self._n_newlines)

    def with_words(self, words: Iterable[str]) -> Corpus:
        """Encodes the same documents with the vocabulary `words`; other words are dropped. Counts may be 0.

        >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]]).with_words(["c", "d", "a"])
        >>> corpus.ids.tolist(), corpus.offsets.tolist(), corpus.counts.tolist()
        ([2, 2, 0], [0, 2, 3], [1, 0, 2])
        """
        words = list(words)
        index = {word: i for i, word in enumerate(words)}
        if len(index) != len(words):
            raise ValueError(f"expected distinct words, got {len(words) - len(index)} repeated")
        new_id = np.array([index.get(word, -1) for word in self.words], np.int32)
        counts = np.zeros(len(words), np.int64)
        known = new_id >= 0
        counts[new_id[known]] = self.counts[known]
        ids = scratch_array(int(counts.sum()), np.int32)
        offsets = scratch_array(len(self.offsets), np.int64)
        offsets[0] = 0
        n_kept = 0
        document = 1  # the next offset to translate
        for start in range(0, self.n_tokens, _CHUNK_TOKENS):
            chunk = new_id[self.ids[start : start + _CHUNK_TOKENS]]
            kept = chunk >= 0
            before = n_kept + np.concatenate([[0], np.cumsum(kept)])
            stop = int(np.searchsorted(self.offsets, start + len(chunk), "right"))
            offsets[document:stop] = before[self.offsets[document:stop] - start]
            ids[n_kept : before[-1]] = chunk[kept]
            n_kept, document = int(before[-1]), stop
        offsets[document:] = n_kept
        return Corpus(words, counts, ids, offsets, self._n_newlines)

    def fingerprint(self) -> dict[str, int]:
        """Sizes, and a checksum of words, counts and the first 65,536 ids and offsets, to recognise the corpus by."""
        crc = zlib.crc32("\0".join(self.words).encode("utf-8", "surrogatepass"))
        for array in (self.counts, self.offsets[: 1 << 16], self.ids[: 1 << 16]):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return {"words": len(self.words), "documents": len(self), "tokens": self.n_tokens, "crc": crc}


def check_is_corpus(given: Any) -> None:
    """Raises TypeError unless `given` is a Corpus."""
    if not isinstance(given, Corpus):
        raise TypeError(f"expected a Corpus, got {type(given).__name__}; see Corpus.from_file and from_sentences")


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def by_count(corpus: Corpus) -> Corpus:
    """The corpus with its words sorted by falling count, as a Huffman tree needs them; itself if they are."""
    if (np.diff(corpus.counts) <= 0).all():
        return corpus
    return corpus.with_words([corpus.words[i] for i in np.argsort(-corpus.counts, kind="stable")])
