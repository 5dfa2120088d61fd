"""Text, sentences and table columns become a Corpus: a vocabulary and the same text as ids; and their tags.

Source of the reading rules and of the order of words: word2vec.c (Mikolov et al. 2013).
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import zlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from embfast import kernels
from embfast.errors import FormatError
from embfast.formats import replacing, sync

__all__ = ["Corpus", "Tags", "read_tagged", "read_vocab"]

Progress = Callable[[int, int], None]
Paths = str | os.PathLike[str]

_BLOCK_BYTES = 1 << 20  # what one thread takes at a time: fits in L2 with the table's busy part
_SLICE_BYTES = 64 << 20  # between two reports of progress, and the longest that Ctrl-C waits for
_MEMORY_BYTES = 256 << 20  # arrays up to this size stay in memory; larger ones go to a temporary file
_CHUNK = 1 << 20  # tokens or documents per step of the numpy loops
_MAGIC = {  # longer than file(1) needs, since a text may well start with "BZh"
    "gz": re.compile(rb"\x1f\x8b\x08"),
    "bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", re.DOTALL),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "zst": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL),  # or a skippable frame, as pzstd starts
}


class Corpus:
    """Documents as ids of words, with the vocabulary they refer to.

    >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]])
    >>> corpus
    Corpus(2 documents, 5 tokens, 3 words)
    >>> corpus.words, corpus.counts.tolist(), corpus.ids.tolist(), corpus.offsets.tolist()
    (['a', 'b', 'c'], [2, 2, 1], [0, 1, 0, 1, 2], [0, 3, 5])
    >>> corpus[1]
    ['b', 'c']

    Made by `from_file`, `from_sentences`, `from_parquet` and `load`.

    Attributes:
        words: list of str, most frequent first, ties by first occurrence: word2vec.c's order without `</s>`.
        counts: int64 (len(words),), occurrences in this corpus.
        ids: int32 (n_tokens,), indices into words; rare words are left out. Read-only, memory-mapped when large.
        offsets: int64 (len(corpus) + 1,); document d is ids[offsets[d]:offsets[d + 1]]. Empty documents are kept, so
            line k of a file stays document k.

    Reading text: space, tab and newline end a token, CR is ignored, a newline ends a document; a last line without
    newline is a document too (word2vec.c drops its last word). Words are kept whole (word2vec.c cuts them at 98 bytes)
    and as they are written. The token `</s>` stands for a newline in vocabulary files and is dropped from texts.

    Memory while reading: 55 to 110 bytes per distinct word and thread, half as much again for a moment when a table
    grows, the bytes of words longer than 16, and up to 256 MB of ids, twice; what does not fit goes to a temporary
    file, 4 bytes a token, in tempfile.gettempdir() or in `cache`. Afterwards: words and counts, and 4 bytes a token
    plus 8 a document, in a temporary file that disappears with the corpus once they pass 256 MB.
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
        self.words = words
        self.counts = _read_only(np.asarray(counts, np.int64))
        self.ids = _read_only(ids if ids.dtype == np.int32 else ids.astype(np.int32))
        self.offsets = _read_only(offsets if offsets.dtype == np.int64 else offsets.astype(np.int64))
        self._n_newlines = len(offsets) - 1 if n_newlines is None else n_newlines

    @classmethod
    def from_file(
        cls,
        path: Paths | Iterable[Paths],
        *,
        min_count: int = 5,
        max_vocab: int | None = None,
        keep: Collection[str] | None = None,
        vocab: Collection[str] | Paths | None = None,
        max_sentence: int | None = None,
        threads: int | None = None,
        cache: Paths | None = None,
        errors: str = "strict",
        max_distinct: int = 2**27,
        progress: Progress | None = None,
    ) -> Corpus:
        """Reads one text file, several, or all of a directory (by name, recursively, hidden ones skipped).

        gzip, bzip2, xz and zstd are recognised by their first bytes and read as streams.

        Args:
            min_count: words with fewer occurrences are left out.
            max_vocab: at most this many words, the most frequent.
            keep: words to keep whatever their count, if they occur at all.
            vocab: encode with just these words, in this order: a list, or the path of a file in word2vec.c's
                vocabulary format. min_count, max_vocab and keep do not apply then.
            max_sentence: lines are cut into documents of at most this many kept tokens; word2vec.c cuts at 1,000.
            threads: of this machine's cores, all by default. The result is the same for any number.
            cache: a directory that keeps this corpus. It is used again while the size and the time of change of every
                source and all options stay the same, and written anew otherwise.
            errors: what to do about words that are not UTF-8 or hold a NUL: "strict" raises, "replace" puts U+FFFD in
                place of bad bytes, "skip" drops the word.
            max_distinct: above this many distinct words, rare ones are dropped while counting as word2vec.c does (those
                seen once, then twice, ... each time the table is full), in one thread; a second pass then encodes.
            progress: called with (bytes done, bytes in all), of the files as they lie on disk.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no file in the directory, no word in the files, or none that occurs min_count times.
            FormatError: a damaged compressed file, or bytes that are not text: file, line and offset are named.
        """
        options = _options(min_count, max_vocab, keep, vocab, max_sentence, threads, errors, max_distinct)
        paths = _files(path)
        if cache is None:
            return _encode(_Files(paths, progress), options)
        fingerprint = _fingerprint(paths, options)
        try:
            return cls._load(Path(cache), fingerprint)
        except (FormatError, FileNotFoundError):  # damaged, or of another text: made anew
            pass
        with _CorpusDirectory(Path(cache)) as directory:
            corpus = _encode(_Files(paths, progress), options, directory)
            directory.commit(corpus, fingerprint)
        return cls.load(cache)

    @classmethod
    def from_sentences(
        cls,
        sentences: Iterable[Iterable[str]],
        *,
        min_count: int = 1,
        max_vocab: int | None = None,
        keep: Collection[str] | None = None,
        vocab: Collection[str] | Paths | None = None,
        max_sentence: int | None = None,
        threads: int | None = None,
        errors: str = "strict",
        max_distinct: int = 2**27,
    ) -> Corpus:
        """Encodes lists of tokens as they come, one at a time; each is a document. Options as in `from_file`.

        Tokens may hold spaces. Empty tokens are dropped.

        >>> Corpus.from_sentences([["New York", "is", "large"]]).words
        ['New York', 'is', 'large']

        Raises:
            TypeError: a sentence is a str, or a token is not one.
            ValueError: no word is left; or a generator has more than max_distinct distinct words (a list may).
            FormatError: a token holds a NUL or a lone surrogate.
        """
        if isinstance(sentences, str | bytes):
            raise TypeError(
                f"expected lists of tokens, got one {type(sentences).__name__}; see Corpus.from_file for text"
            )
        options = _options(min_count, max_vocab, keep, vocab, max_sentence, threads, errors, max_distinct)
        return _encode(_Sentences(sentences), options)

    @classmethod
    def from_parquet(
        cls,
        path: Paths | Iterable[Paths],
        column: str,
        *,
        min_count: int = 5,
        max_vocab: int | None = None,
        keep: Collection[str] | None = None,
        vocab: Collection[str] | Paths | None = None,
        max_sentence: int | None = None,
        threads: int | None = None,
        errors: str = "strict",
        max_distinct: int = 2**27,
        progress: Progress | None = None,
    ) -> Corpus:
        """Encodes a column of Parquet files; each row is a document, a null is an empty one.

        A column of strings is split at spaces, tabs and newlines; a column of lists of strings holds the tokens
        themselves. Options as in `from_file`, but that `progress` counts rows.

        Raises:
            ImportError: pyarrow is missing.
            KeyError: there is no such column.
            TypeError: the column holds neither strings nor lists of strings.
        """
        options = _options(min_count, max_vocab, keep, vocab, max_sentence, threads, errors, max_distinct)
        return _encode(_Parquet(_files(path), column, progress), options)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens in all documents, rare words left out."""
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

    def save(self, directory: Paths) -> None:
        """Writes the corpus to a directory, in place of one saved there before.

        The directory is complete at any moment: either the old corpus or the new one, also after a crash.
        """
        with _CorpusDirectory(Path(directory)) as target:
            for name in ("ids", "offsets"):
                source = getattr(self, name)
                array = target.array(name, len(source), source.dtype)
                for start in range(0, len(source), _CHUNK):
                    array[start : start + _CHUNK] = source[start : start + _CHUNK]
            target.commit(self, None)

    @classmethod
    def load(cls, directory: Paths) -> Corpus:
        """Opens a saved corpus, or a `cache`; ids and offsets are memory-mapped.

        Raises:
            FileNotFoundError: no corpus was saved there.
            FormatError: a file of it is damaged.
        """
        return cls._load(Path(directory), None)

    @classmethod
    def _load(cls, directory: Path, fingerprint: dict[str, Any] | None) -> Corpus:
        index = directory / "corpus.json"
        try:
            meta = json.loads(index.read_text(encoding="utf-8"))
            data, sizes = directory / meta["data"], meta["bytes"]
            n = {"ids": meta["n_tokens"], "offsets": meta["n_documents"] + 1, "counts": meta["n_words"]}
            if meta["format"] != 1:
                raise FormatError(f"{index}: expected format 1, got {meta['format']!r}")
        except FileNotFoundError:
            raise FileNotFoundError(f"{index}: not there; is {directory} a directory written by Corpus.save?") from None
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FormatError(f"{index}: expected the index of a corpus, got {error!r}") from None
        if fingerprint is not None and meta.get("source") != fingerprint:
            raise FormatError(f"{index}: made from another text or with other options")
        for name, size in sizes.items():
            if not (data / name).is_file():
                raise FormatError(f"{data / name}: expected a file of {size:,} bytes, got none")
            if (got := (data / name).stat().st_size) != size:
                raise FormatError(f"{data / name}: expected {size:,} bytes, got {got:,}; was it cut short?")
        arrays = {}
        for name, dtype in (("ids", np.int32), ("offsets", np.int64), ("counts", np.int64)):
            try:
                array = np.load(data / f"{name}.npy", mmap_mode=None if name == "counts" else "r")
            except (ValueError, EOFError, OSError) as error:
                raise FormatError(f"{data / name}.npy: expected a numpy file, got {error}") from None
            if array.dtype != dtype or array.shape != (n[name],):
                raise FormatError(
                    f"{data / name}.npy: expected {np.dtype(dtype)} ({n[name]},), got {array.dtype} {array.shape}"
                )
            arrays[name] = array
        try:
            text = (data / "words").read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{data / 'words'}: expected UTF-8, got {error}") from None
        words = text.split("\0") if text or n["counts"] else []
        if len(words) != n["counts"]:
            raise FormatError(f"{data / 'words'}: expected {n['counts']} words, got {len(words)}")
        try:
            return cls(words, arrays["counts"], arrays["ids"], arrays["offsets"], meta["n_newlines"])
        except ValueError as error:
            raise FormatError(f"{data / 'offsets'}.npy: {error}") from None

    def save_vocab(self, path: Paths) -> None:
        """Writes words and counts as word2vec.c's -save-vocab does: `</s>` and the newlines first, then a word a line.

        Raises:
            ValueError: a word holds a space, a tab or a newline, which this format cannot tell from its own.
        """
        path = Path(path)
        lines = [f"</s> {self._n_newlines}"]
        for word, count in zip(self.words, self.counts.tolist(), strict=True):
            if not word or any(c in word for c in " \t\n\r"):
                raise ValueError(f"{word!r} cannot be written to a vocabulary file: it is empty or holds white space")
            lines.append(f"{word} {count}")
        with replacing(path) as file:
            file.write(("\n".join(lines) + "\n").encode("utf-8"))

    def with_words(self, words: Iterable[str]) -> Corpus:
        """The same documents with ids of `words`; tokens of other words are left out. Counts may be 0.

        >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]]).with_words(["c", "d", "a"])
        >>> corpus.ids.tolist(), corpus.offsets.tolist(), corpus.counts.tolist()
        ([2, 2, 0], [0, 2, 3], [1, 0, 2])
        """
        words = list(words)
        index = {word: i for i, word in enumerate(words)}
        if len(index) != len(words):
            raise ValueError(f"expected distinct words, got {len(words) - len(index)} twice")
        new_id = np.array([index.get(word, -1) for word in self.words], np.int32)
        counts = np.zeros(len(words), np.int64)
        known = new_id >= 0
        counts[new_id[known]] = self.counts[known]
        ids = scratch_array(int(counts.sum()), np.int32)
        offsets = scratch_array(len(self.offsets), np.int64)
        offsets[0] = 0
        n_kept = 0
        document = 1  # the next offset to translate
        for start in range(0, self.n_tokens, _CHUNK):
            chunk = new_id[self.ids[start : start + _CHUNK]]
            kept = chunk >= 0
            before = n_kept + np.concatenate([[0], np.cumsum(kept)])
            stop = int(np.searchsorted(self.offsets, start + len(chunk), "right"))
            offsets[document:stop] = before[self.offsets[document:stop] - start]
            ids[n_kept : before[-1]] = chunk[kept]
            n_kept, document = int(before[-1]), stop
        offsets[document:] = n_kept
        return Corpus(words, counts, ids, offsets, self._n_newlines)


def read_vocab(path: Paths) -> tuple[list[str], np.ndarray]:
    """Reads a vocabulary file of word2vec.c (-save-vocab), `word count` a line: words and int64 counts, without `</s>`.

    Raises:
        FormatError: a line that is not a word and a count, or a word that came before.
    """
    path = Path(path)
    words: list[str] = []
    counts: list[int] = []
    seen: dict[str, int] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, 1):
        fields = line.rstrip(b"\r").split(b" ")
        if len(fields) != 2 or not fields[0] or not fields[1].isdigit():
            raise FormatError(f"{path}:{number}: expected a word, a space and a count, got {line[:80]!r}")
        try:
            word = fields[0].decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{path}:{number}: expected UTF-8, got {fields[0][:80]!r}") from None
        count = int(fields[1])
        if count > np.iinfo(np.int64).max:
            raise FormatError(f"{path}:{number}: expected a count below 2**63, got {count}")
        if word in seen:
            raise FormatError(f"{path}:{number}: {word!r} is on line {seen[word]} already")
        seen[word] = number
        if word != "</s>":
            words.append(word)
            counts.append(count)
    return words, np.array(counts, np.int64)


# Tags of documents --------------------------------------------------------------------------------------------------


class Tags:
    """Which tags each document has; a tag may stand at several documents, and a document may have several or none.

    >>> tags = Tags.of(["x", ["y", "x"]], 2)
    >>> tags.keys, tags.offsets.tolist(), tags.ids.tolist()
    (['x', 'y'], [0, 1, 3], [0, 1, 0])

    Attributes:
        keys: list of str, the distinct tags by first occurrence.
        ids: int32, indices into keys; document d has ids[offsets[d]:offsets[d + 1]], no tag twice.
        offsets: int64 (documents + 1,).

    Memory: 4 bytes a tag of a document and 8 a document, and about 150 bytes for each distinct tag.
    """

    def __init__(self, keys: list[str], offsets: np.ndarray, ids: np.ndarray) -> None:
        self.keys, self.offsets, self.ids = keys, offsets, ids

    @classmethod
    def of(cls, given: Tags | Iterable[str] | Iterable[Iterable[str]] | None, n: int, first: int = 0) -> Tags:
        """The tags of n documents: Tags as they are, a str or a list of str for each, or, of None, their numbers.

        Numbers count from `first`.

        Raises:
            ValueError: there are not n.
            TypeError: a tag is not a str.
        """
        if given is None:
            numbers = np.arange(n + 1, dtype=np.int64)
            return cls([str(i) for i in range(first, first + n)], numbers, numbers[:n].astype(np.int32))
        if not isinstance(given, Tags):
            if isinstance(given, str | bytes):
                raise TypeError(f"tags: expected a str or a list of str for each document, got one {given!r}")
            builder = _TagsBuilder()
            for number, own in enumerate(given):
                own = [own] if isinstance(own, str) else own
                if isinstance(own, bytes) or not isinstance(own, Iterable):
                    raise TypeError(f"tags: expected a str or a list of str for document {number}, got {own!r}")
                own = list(own)
                if not all(isinstance(tag, str) for tag in own):
                    raise TypeError(f"tags: expected tags of type str for document {number}, got {own!r}")
                builder.add(own)
            given = builder.tags()
        if len(given) != n:
            raise ValueError(f"tags: expected those of {n:,} documents, got those of {len(given):,}")
        return given

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Tags({len(self):,} documents, {len(self.keys):,} tags)"


class _TagsBuilder:
    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.ids, self.ends = array("i"), array("q", [0])

    def add(self, tags: Iterable[str]) -> None:
        """The tags of the next document."""
        index = self.index
        self.ids.extend(dict.fromkeys(index.setdefault(tag, len(index)) for tag in tags))
        self.ends.append(len(self.ids))

    def tags(self) -> Tags:
        return Tags(list(self.index), np.array(self.ends, np.int64), np.array(self.ids, np.int32))


def read_tagged(
    path: Paths | Iterable[Paths],
    column: str | None = None,
    tag_column: str | None = None,
    *,
    min_count: int = 5,
    max_vocab: int | None = None,
    keep: Collection[str] | None = None,
    vocab: Collection[str] | Paths | None = None,
    threads: int | None = None,
    errors: str = "strict",
    max_distinct: int = 2**27,
    progress: Progress | None = None,
) -> tuple[Corpus, Tags]:
    """Reads documents with their tags: the Corpus and the Tags of its documents.

    Text files, also compressed, hold a document a line: its tags, with spaces between, a tab, and the text. Of Parquet
    files `column` is the text, as in Corpus.from_parquet, and tag_column holds the tags, whole: strings, lists of
    strings, or numbers, which become strings; a null is no tag. The other options are those of Corpus.from_file.

    Raises:
        FileNotFoundError, KeyError, TypeError, ImportError, ValueError: as Corpus.from_file and from_parquet.
        FormatError: a line without a tab, or tags that are not UTF-8: file and line are named.
    """
    if (column is None) != (tag_column is None):
        raise ValueError("column and tag_column go together: both name columns of Parquet files")
    options = _options(min_count, max_vocab, keep, vocab, None, threads, errors, max_distinct)
    if column is None:
        source: Any = _TaggedFiles(_files(path), progress)
    else:
        source = _Parquet(_files(path), column, progress, tag_column)
    corpus = _encode(source, options)
    return corpus, source.builder.tags()


# Options and sources ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    min_count: int
    max_vocab: int
    keep: list[str]
    vocab: list[str] | None
    max_sentence: int | None
    threads: int
    errors: str
    max_distinct: int


def _options(
    min_count: int,
    max_vocab: int | None,
    keep: Collection[str] | None,
    vocab: Collection[str] | Paths | None,
    max_sentence: int | None,
    threads: int | None,
    errors: str,
    max_distinct: int,
) -> _Options:
    for name, value in (
        ("min_count", min_count),
        ("max_vocab", max_vocab),
        ("max_sentence", max_sentence),
        ("threads", threads),
        ("max_distinct", max_distinct),
    ):
        if value is not None and value < (0 if name == "min_count" else 1):
            raise ValueError(f"{name} must be positive, got {value}")
    if max_distinct > 2**30:
        raise ValueError(f"max_distinct is at most 2**30, since ids are int32; got {max_distinct}")
    if errors not in ("strict", "replace", "skip"):
        raise ValueError(f'errors must be "strict", "replace" or "skip", got {errors!r}')
    if isinstance(keep, str):
        raise TypeError("keep must be a list of words, got one str")
    if isinstance(vocab, str | os.PathLike):
        vocab = read_vocab(vocab)[0]
    if vocab is not None:
        vocab = list(vocab)
        if len(set(vocab)) != len(vocab):
            raise ValueError(f"vocab holds {len(vocab) - len(set(vocab))} words twice")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _Options(
        min_count, max_vocab or 0, sorted(keep or ()), vocab, max_sentence, threads or cores, errors, max_distinct
    )


def _files(path: Paths | Iterable[Paths]) -> list[Path]:
    paths = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(p) for p in path]
    files: list[Path] = []
    for start in paths:
        if not start.exists():
            raise FileNotFoundError(f"{start}: no such file or directory")
        if not start.is_dir():
            files.append(start)
            continue
        inside = [
            p
            for p in start.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(start).parts)
        ]
        if not inside:
            raise ValueError(f"{start}: a directory without files (hidden ones are skipped)")
        files += sorted(inside, key=lambda p: p.relative_to(start).parts)
    if not files:
        raise ValueError("expected at least one file, got none")
    return files


def _fingerprint(paths: list[Path], options: _Options) -> dict[str, Any]:
    """What a cached corpus depends on; the number of threads is not of it."""
    status = [(path, path.stat()) for path in paths]
    for path, s in status:
        if not stat.S_ISREG(s.st_mode):
            raise ValueError(f"{path}: only regular files can be cached, since a pipe cannot be seen to change")
    names = {
        name: getattr(options, name) for name in ("min_count", "max_vocab", "max_sentence", "errors", "max_distinct")
    }
    for name in ("keep", "vocab"):
        words = getattr(options, name)
        names[name] = None if words is None else hashlib.sha256("\0".join(words).encode("utf-8", "replace")).hexdigest()
    return {"files": [[str(path.resolve()), s.st_size, s.st_mtime_ns] for path, s in status], "options": names}


class _TooManyWords(Exception):
    """More distinct words than max_distinct: count again, pruning."""


def _check(fault: tuple[str, int, int, int, bytes] | None, name: str, place: Callable[[int], str]) -> None:
    """Turns a fault of the encoder into an exception; `place` names a document by its number in all sources."""
    if fault is None:
        return
    kind, offset, document, error, token = fault
    if kind == "too_many_words":
        raise _TooManyWords
    if kind == "bad_bytes":
        what = "a NUL" if b"\0" in token else "bytes that are not UTF-8"
        raise FormatError(
            f"{place(document)}: {what} in the token {token!r}, at byte {offset:,} of the text. "
            f'Is this text, in UTF-8? errors="replace" or errors="skip" reads on.'
        )
    if kind == "long_token":
        raise FormatError(
            f"{name}: a token of more than 2**30 bytes around byte {offset:,}, near {token!r}. Is this text?"
        )
    if kind == "shrank":
        raise OSError(f"{name}: the file became shorter while it was read; it ends at byte {offset:,} now")
    if kind == "spill_failed":
        raise OSError(error, f"{os.strerror(error)}: cannot write ids to a temporary file (TMPDIR chooses where)")
    raise OSError(error, os.strerror(error), name)


@dataclass
class _Files:
    paths: list[Path]
    progress: Progress | None
    tokens = False
    again = True

    def __str__(self) -> str:
        return str(self.paths[0]) if len(self.paths) == 1 else f"{self.paths[0]} and {len(self.paths) - 1} more files"

    def feed(self, encoder: Any, threads: int) -> None:
        total = sum(path.stat().st_size for path in self.paths)
        done = 0
        for path in self.paths:
            first = encoder.n_documents

            def place(document: int, path: Path = path, first: int = first) -> str:
                return f"{path}:{document - first + 1}"

            with open(path, "rb", buffering=0) as file:
                regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                size = os.fstat(file.fileno()).st_size
                start = b""
                while len(start) < 10 and (more := file.read(10 - len(start))):  # a pipe gives what it has
                    start += more
                if regular and _kind(start) is None:
                    step = max(_SLICE_BYTES // _BLOCK_BYTES, 1) * _BLOCK_BYTES
                    for begin in range(0, size, step):
                        end = min(begin + step, size)
                        _check(encoder.add_file(file.fileno(), begin, end, size), str(path), place)
                        if self.progress:
                            self.progress(done + end, total)
                else:
                    batch = bytearray()
                    for chunk in _plain_bytes(path, file, start):
                        batch += chunk
                        if len(batch) < threads * _BLOCK_BYTES:
                            continue
                        _check(encoder.add_bytes(batch), str(path), place)
                        batch.clear()
                        if self.progress:
                            self.progress(done + (file.tell() if regular else 0), total)
                    _check(encoder.add_bytes(batch), str(path), place)
                    _check(encoder.end_source(), str(path), place)
                    if self.progress:
                        self.progress(done + size, total)
                done += size


@dataclass
class _TaggedFiles(_Files):
    """Lines of tags, a tab and text: the text goes to the encoder, the tags to the builder."""

    def feed(self, encoder: Any, threads: int) -> None:
        self.builder = _TagsBuilder()  # anew, since a text may be read twice
        total = sum(path.stat().st_size for path in self.paths)
        done = 0
        for path in self.paths:
            first = encoder.n_documents
            with open(path, "rb", buffering=0) as file:
                start = b""
                while len(start) < 10 and (more := file.read(10 - len(start))):
                    start += more
                rest: list[bytes] = []
                for chunk in _plain_bytes(path, file, start):
                    head, newline, tail = chunk.rpartition(b"\n")
                    if newline:
                        self._add(encoder, path, first, b"".join([*rest, head]).split(b"\n"))
                        rest = []
                    rest.append(tail)
                    if self.progress and file.seekable():
                        self.progress(done + file.tell(), total)
                if last := b"".join(rest):
                    self._add(encoder, path, first, [last])
            done += path.stat().st_size

    def _add(self, encoder: Any, path: Path, first: int, lines: list[bytes]) -> None:
        texts = []
        before = encoder.n_documents - first
        for number, line in enumerate(lines, before + 1):
            tags, tab, text = line.partition(b"\t")
            if not tab:
                raise FormatError(f"{path}:{number}: expected tags, a tab and a text, got no tab in {line[:80]!r}")
            try:
                self.builder.add(tags.decode("utf-8").split(" ") if tags else [])
            except UnicodeDecodeError:
                raise FormatError(f"{path}:{number}: expected tags in UTF-8, got {tags[:80]!r}") from None
            texts.append(text)
        texts.append(b"")
        _check(encoder.add_bytes(b"\n".join(texts)), str(path), lambda document: f"{path}:{document - first + 1}")


@dataclass
class _Sentences:
    sentences: Iterable[Iterable[str]]
    tokens = True

    def __str__(self) -> str:
        return "the sentences"

    @property
    def again(self) -> bool:
        return iter(self.sentences) is not self.sentences

    def feed(self, encoder: Any, threads: int) -> None:
        iterator = iter(self.sentences)
        exhausted = False
        while not exhausted:
            n = encoder.n_documents
            exhausted, fault = encoder.add_sentences(iterator, n, threads * _BLOCK_BYTES)
            _check(fault, "the sentences", lambda document: f"sentence {document}")


@dataclass
class _Parquet:
    paths: list[Path]
    column: str
    progress: Progress | None
    tag_column: str | None = None
    again = True

    def __post_init__(self) -> None:
        try:
            import pyarrow
            import pyarrow.compute
            import pyarrow.parquet
        except ImportError:
            raise ImportError("reading Parquet needs pyarrow: pip install embfast[parquet]") from None
        self.arrow = pyarrow
        self.files = []
        kinds = set()
        for path in self.paths:
            try:
                file = pyarrow.parquet.ParquetFile(path)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowIOError) as error:
                raise FormatError(f"{path}: expected a Parquet file, got: {error}") from None
            schema = file.schema_arrow
            for name in (self.column, self.tag_column):
                if name is not None and name not in schema.names:
                    raise KeyError(f"{path}: no column {name!r}; there are {', '.join(map(repr, schema.names))}")
            kind = schema.field(self.column).type
            is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
            kinds.add(is_list)
            inner = kind.value_type if is_list else kind
            if pyarrow.types.is_dictionary(inner):
                inner = inner.value_type
            if not (pyarrow.types.is_string(inner) or pyarrow.types.is_large_string(inner)):
                raise TypeError(f"{path}: column {self.column!r} holds {kind}; expected strings or lists of strings")
            self.files.append(file)
        if len(kinds) != 1:
            raise TypeError(f"column {self.column!r} holds strings in some files and lists in others")
        self.tokens = kinds.pop()

    def __str__(self) -> str:
        return f"column {self.column!r} of {_Files(self.paths, None)}"

    def feed(self, encoder: Any, threads: int) -> None:
        self.builder = _TagsBuilder()
        columns = [self.column] if self.tag_column is None else [self.column, self.tag_column]
        total = sum(file.metadata.num_rows for file in self.files)
        for path, file in zip(self.paths, self.files, strict=True):
            first = encoder.n_documents

            def place(document: int, path: Path = path, first: int = first) -> str:
                return f"{path}, row {document - first}"

            for batch in file.iter_batches(batch_size=8192, columns=columns):
                text = self._joined(batch.column(self.column))
                _check(encoder.add_bytes(text), str(path), place)
                if self.tag_column is not None:
                    for tags in batch.column(self.tag_column).to_pylist():
                        tags = [] if tags is None else tags if isinstance(tags, list) else [tags]
                        self.builder.add(str(tag) for tag in tags)
                if self.progress:
                    self.progress(encoder.n_documents, total)

    def _joined(self, rows: Any) -> Any:
        """The rows as one buffer, ended by the bytes that the encoder takes for ends."""
        pa, compute = self.arrow, self.arrow.compute
        if self.tokens:
            rows = rows.cast(pa.large_list(pa.large_string())).fill_null([])
            tokens = rows.flatten().fill_null("").cast(pa.large_binary())
            lengths = compute.list_value_length(rows).to_numpy(zero_copy_only=False)
            lists = pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), tokens)
            texts, end = compute.binary_join(lists, pa.scalar(b"\xfe", pa.large_binary())), b"\xff"
        else:
            texts = rows.cast(pa.large_string()).fill_null("").cast(pa.large_binary())
            texts, end = compute.replace_substring(texts, b"\n", b" "), b"\n"
        whole = pa.LargeListArray.from_arrays(np.array([0, len(texts)], np.int64), texts)
        joined = compute.binary_join(whole, pa.scalar(end, pa.large_binary()))[0].as_buffer()
        return bytes(joined) + end


# Compressed files ---------------------------------------------------------------------------------------------------


def _kind(start: bytes) -> str | None:
    return next((kind for kind, magic in _MAGIC.items() if magic.match(start)), None)


_OPENERS = {"gz": lambda file: gzip.GzipFile(fileobj=file, mode="rb"), "bz2": bz2.BZ2File, "xz": lzma.LZMAFile}


def _plain_bytes(path: Path, file: Any, start: bytes) -> Iterator[bytes]:
    """The decompressed text in bounded chunks. `start` was read from the file already (and a pipe cannot go back)."""
    kind = _kind(start)
    source = _Unread(file, start)
    try:
        if kind == "zst":
            yield from _zstd_bytes(path, source)
        elif kind is None:
            while chunk := source.read(1 << 20):
                yield chunk
        else:
            with closing(_OPENERS[kind](source)) as opened:
                while chunk := opened.read(1 << 20):
                    yield chunk
    except EOFError:
        raise FormatError(f"{path}: the {kind} data end in the middle; was the file cut short?") from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise FormatError(f"{path}: expected {kind} data, got: {error}") from None
    except OSError as error:
        if error.errno is None:  # bz2 says "Invalid data stream" so
            raise FormatError(f"{path}: expected {kind} data, got: {error}") from None
        raise


def _zstd_bytes(path: Path, source: _Unread) -> Iterator[bytes]:
    """Frame after frame: zstandard's stream_reader takes a file cut short for one that ends."""
    unpacker, untouched = zstandard.ZstdDecompressor().decompressobj(), True
    batch: list[bytes] = []
    size = 0
    rest = b""
    while data := rest or source.read(4096):  # small, since 4 bytes of zstd may hold 128 KB of text
        text = unpacker.decompress(data)
        rest, untouched = b"", False
        batch.append(text)
        size += len(text)
        if size >= 1 << 20:
            yield b"".join(batch)
            batch, size = [], 0
        if unpacker.eof:
            rest = unpacker.unused_data
            unpacker, untouched = zstandard.ZstdDecompressor().decompressobj(), True
    yield b"".join(batch)
    if not untouched:
        raise EOFError


class _Unread:
    """A file whose first bytes were read already, for the decompressors."""

    def __init__(self, file: Any, start: bytes) -> None:
        self.file, self.start = file, start

    def read(self, n: int = -1) -> bytes:
        if self.start:
            head, self.start = (self.start, b"") if n < 0 else (self.start[:n], self.start[n:])
            return head if n >= 0 else head + self.file.read()
        return self.file.read(n)

    def seekable(self) -> bool:
        return False

    def readable(self) -> bool:
        return True


# Encoding and storage -----------------------------------------------------------------------------------------------


def _encode(source: Any, options: _Options, directory: _CorpusDirectory | None = None) -> Corpus:
    with tempfile.TemporaryFile(dir=directory and directory.data) as spill:

        def encoder(words: list[str] | None, pruning: bool = False) -> Any:
            made = kernels.TextEncoder(
                n_threads=options.threads,
                block_bytes=_BLOCK_BYTES,
                memory_bytes=_MEMORY_BYTES,
                spill_fd=spill.fileno(),
                errors=options.errors,
                max_distinct=options.max_distinct,
                tokens=source.tokens,
                pruning=pruning,
            )
            if words is not None:
                made.set_words(words)
            source.feed(made, options.threads)
            return made

        try:
            encoded = encoder(options.vocab)
        except _TooManyWords:
            if not source.again:
                raise ValueError(
                    f"more than max_distinct={options.max_distinct:,} distinct words, and an iterator cannot be read "
                    "twice: raise max_distinct (about 110 bytes of memory each), or pass something to iterate again"
                ) from None
            survivors = encoder(None, pruning=True).select(options.min_count, 0, options.keep, False)[0]
            encoded = encoder(survivors)
        fixed = options.vocab is not None
        words, counts, n_tokens, n_distinct, largest = encoded.select(
            options.min_count, options.max_vocab, options.keep, fixed
        )
        if n_tokens == 0:
            if fixed:
                raise ValueError(f"none of the {len(options.vocab)} words of vocab occurs in {source}")
            if n_distinct == 0:
                raise ValueError(f"no words in {source}")
            raise ValueError(
                f"no word occurs min_count={options.min_count} times in {source}: of {n_distinct:,} distinct words "
                f"the most frequent occurs {largest} times"
            )
        allocate = scratch_array if directory is None else directory.array_of
        ids = allocate(n_tokens, np.int32, "ids")
        cut = options.max_sentence is not None
        offsets = (scratch_array if cut else allocate)(encoded.n_documents + 1, np.int64, "offsets")
        if not encoded.write(ids, offsets, n_tokens):
            raise OSError("cannot read back the ids written to a temporary file")
        if cut:
            offsets = _cut(offsets, options.max_sentence, allocate)
    return Corpus(options.vocab if fixed else words, counts, ids, offsets, encoded.n_newlines)


def _cut(offsets: np.ndarray, longest: int, allocate: Callable[..., np.ndarray]) -> np.ndarray:
    """Offsets of documents of at most `longest` tokens; an empty document stays one."""

    def pieces(start: int) -> np.ndarray:
        lengths = np.diff(offsets[start : start + _CHUNK + 1])
        return np.maximum(-(-lengths // longest), 1)

    starts = range(0, len(offsets) - 1, _CHUNK)
    result = allocate(sum(int(pieces(start).sum()) for start in starts) + 1, np.int64, "offsets")
    n = 0
    for start in starts:
        counts = pieces(start)
        first = np.cumsum(counts) - counts  # the place of each document's first piece
        piece = np.arange(counts.sum()) - np.repeat(first, counts)
        result[n : n + len(piece)] = np.repeat(offsets[start : start + len(counts)], counts) + piece * longest
        n += len(piece)
    result[n] = offsets[-1]
    return result


def scratch_array(n: int, dtype: type, name: str = "") -> np.ndarray:
    """Uninitialised memory, or a temporary file without a name when it is large: it goes when the array goes."""
    if n * np.dtype(dtype).itemsize <= _MEMORY_BYTES or n == 0:
        return np.empty(n, dtype)
    with tempfile.TemporaryFile() as file:
        _reserve(file, n * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, mode="r+", shape=(n,))


def _reserve(file: Any, size: int) -> None:
    """Takes the space now, so that a full disk is an error here and not a SIGBUS in the mapping."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        os.ftruncate(file.fileno(), size)


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


class _CorpusDirectory:
    """A corpus on its way to disk: data-*/ is filled first, then corpus.json is replaced and names it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / f"data-{secrets.token_hex(4)}"
        self.committed = False

    def __enter__(self) -> _CorpusDirectory:
        self.data.mkdir(parents=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.committed:
            shutil.rmtree(self.data, ignore_errors=True)

    def array_of(self, n: int, dtype: type, name: str) -> np.ndarray:
        return self.array(name, n, dtype)

    def array(self, name: str, n: int, dtype: Any) -> np.ndarray:
        path = self.data / f"{name}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=(n,))
        with open(path, "r+b") as file:
            _reserve(file, path.stat().st_size)
        return array

    def commit(self, corpus: Corpus, source: dict[str, Any] | None) -> None:
        for word in corpus.words:
            if "\0" in word:
                raise ValueError(f"{word!r} holds a NUL, which ends a word in a saved corpus")
        np.save(self.data / "counts.npy", corpus.counts)
        (self.data / "words").write_bytes("\0".join(corpus.words).encode("utf-8"))
        for file in self.data.iterdir():
            sync(file)
        sync(self.data)
        meta = {
            "format": 1,
            "data": self.data.name,
            "bytes": {file.name: file.stat().st_size for file in sorted(self.data.iterdir())},
            "n_words": len(corpus.words),
            "n_tokens": corpus.n_tokens,
            "n_documents": len(corpus),
            "n_newlines": corpus._n_newlines,
            "source": source,
        }
        try:
            before = json.loads((self.path / "corpus.json").read_text(encoding="utf-8"))["data"]
        except (OSError, ValueError, KeyError, TypeError):
            before = None
        with replacing(self.path / "corpus.json") as file:
            file.write(json.dumps(meta, indent=1).encode("utf-8"))
        self.committed = True
        for old in self.path.glob("data-*"):
            # A day old and not named: left by a process that was killed. Younger: perhaps being written at this moment.
            if old != self.data and (old.name == before or old.stat().st_mtime < time.time() - 86_400):
                shutil.rmtree(old, ignore_errors=True)
