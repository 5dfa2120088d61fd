"""Text, sentences and table columns become a Corpus: a vocabulary and the same text as ids; and their tags.

Source of the reading rules and of the order of words: word2vec.c (Mikolov et al. 2013).
"""

from __future__ import annotations

import hashlib
import operator
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embfast import kernels
from embfast.errors import FormatError
from embfast.files import scratch
from embfast.files.durable import FilePath, replacing
from embfast.files.scratch import scratch_array
from embfast.text import sources, storage
from embfast.text.sources import ReadProgress

__all__ = ["Corpus", "read_vocab"]

_CHUNK = 1 << 20  # tokens or documents per step of the numpy loops


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
    newline is a document too (word2vec.c drops its last word). A byte order mark at the start of a file is no part of
    its first word. Words are kept whole (word2vec.c cuts them at 98 bytes) and as they are written. The token `</s>`
    stands for a newline in vocabulary files and is dropped from texts.

    Memory while reading: 55 to 110 bytes per distinct word and thread, half as much again for a moment when a table
    grows, the bytes of words longer than 16, and 2 bytes a token (4 of words that came after 32,766 others), up to
    256 MB; what does not fit goes to a temporary file in tempfile.gettempdir() or in `cache`. All of it is given back
    while the result is written: words and counts, and 4 bytes a token plus 8 a document, in a temporary file that
    disappears with the corpus once they pass 256 MB.
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
        for lo in range(0, len(offsets), 1 << 20):
            part = offsets[lo : lo + (1 << 20) + 1]
            if (part[1:] < part[:-1]).any():
                raise ValueError(
                    f"offsets must rise, got some that fall between documents {lo} and {lo + len(part) - 1}"
                )
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
                seen once, then twice, ... each time the table is full; never those of keep), in one thread; a further
                pass then encodes. Pipes cannot be read again.
            progress: called with (bytes done, bytes in all), of the files as they lie on disk.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no file in the directory, no word in the files, or none that occurs min_count times; or cache is
                a directory that `save` wrote.
            FormatError: a damaged compressed file, or bytes that are not text: file, line and offset are named.
        """
        given = read_options(min_count, max_vocab, keep, vocab, max_sentence, threads, errors, max_distinct)
        paths = sources.find_files(path)
        if cache is None:
            return encode_source(sources.Files(paths, progress), given)
        fingerprint = _fingerprint(paths, given)
        try:
            return storage.load_corpus(Path(cache), fingerprint, cls)
        except (FormatError, FileNotFoundError):  # damaged, or of another text: made anew
            pass
        with storage.CorpusDirectory(Path(cache)) as directory:
            corpus = encode_source(sources.Files(paths, progress), given, directory)
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
        given = read_options(min_count, max_vocab, keep, vocab, max_sentence, threads, errors, max_distinct)
        return encode_source(sources.Sentences(sentences), given)

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
        """Encodes a column of Parquet files; each row is a document, a null is an empty one.

        A column of strings is split at spaces, tabs and newlines; a column of lists of strings holds the tokens
        themselves. Options as in `from_file`, but that `progress` counts rows.

        Raises:
            ImportError: pyarrow is missing.
            KeyError: there is no such column.
            TypeError: the column holds neither strings nor lists of strings.
        """
        given = read_options(min_count, max_vocab, keep, vocab, max_sentence, threads, errors, max_distinct)
        return encode_source(sources.Parquet(sources.find_files(path), column, progress), given)

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

    def save(self, directory: FilePath) -> None:
        """Writes the corpus to a directory, in place of one saved there before.

        The directory is complete at any moment: either the old corpus or the new one, also after a crash.
        """
        with storage.CorpusDirectory(Path(directory)) as target:
            for name in ("ids", "offsets"):
                source = getattr(self, name)
                array = target.array(name, len(source), source.dtype)
                for start in range(0, len(source), _CHUNK):
                    array[start : start + _CHUNK] = source[start : start + _CHUNK]
            target.commit(self, None)

    @classmethod
    def load(cls, directory: FilePath) -> Corpus:
        """Opens a saved corpus, or a `cache`; ids and offsets are memory-mapped.

        Raises:
            FileNotFoundError: no corpus was saved there.
            FormatError: a file of it is damaged.
        """
        return storage.load_corpus(Path(directory), None, cls)

    def save_vocab(self, path: FilePath) -> None:
        """Writes words and counts as word2vec.c's -save-vocab does: `</s>` and the newlines first, then a word a line.

        Raises:
            ValueError: a word holds a space, a tab or a newline, which this format cannot tell from its own.
        """
        check_words(self.words, path)
        lines = [f"</s> {self._n_newlines}"]
        lines += (f"{word} {count}" for word, count in zip(self.words, self.counts.tolist(), strict=True))
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


def check_is_corpus(given: Any) -> None:
    """TypeError unless it is a Corpus."""
    if not isinstance(given, Corpus):
        raise TypeError(f"expected a Corpus, got {type(given).__name__}; see Corpus.from_file and from_sentences")


def check_words(words: Iterable[str], path: FilePath) -> None:
    """ValueError for a word that a text, or a vocabulary file, cannot tell from its own white space."""
    for word in words:
        if not word or any(c in word for c in " \t\n\r"):
            raise ValueError(f"{os.fspath(path)}: cannot hold {word!r}, which is empty or holds white space")


def read_vocab(path: FilePath) -> tuple[list[str], np.ndarray]:
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


# Options --------------------------------------------------------------------------------------------------------------


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


def read_options(
    min_count: int,
    max_vocab: int | None,
    keep: Iterable[str] | None,
    vocab: Iterable[str] | FilePath | None,
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
        if value is not None and operator.index(value) < (0 if name == "min_count" else 1):
            raise ValueError(f"{name} must be positive, got {value}")
    if threads is not None and threads > 4096:
        raise ValueError(f"threads must be at most 4,096, got {threads}")
    if max_distinct > 2**30:
        raise ValueError(f"max_distinct is at most 2**30, since ids are int32; got {max_distinct}")
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
            raise ValueError(f"vocab holds {len(vocab) - len(set(vocab))} words twice")
    threads = threads or kernels.cores()
    for name, words in (("keep", keep), ("vocab", vocab)):
        wrong = next((word for word in words or () if not isinstance(word, str)), None)
        if wrong is not None:
            raise TypeError(f"{name}: expected words of type str, got {wrong!r}")
    return _Options(
        int(min_count),
        int(max_vocab or 0),
        sorted(keep),
        vocab,
        None if max_sentence is None else int(max_sentence),
        int(threads),
        errors,
        int(max_distinct),
    )


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


# Encoding -------------------------------------------------------------------------------------------------------------


def encode_source(source: Any, options: _Options, directory: storage.CorpusDirectory | None = None) -> Corpus:
    with tempfile.TemporaryFile(dir=directory and directory.data) as spill:

        def encoder(words: list[str] | None, pruning: bool = False) -> Any:
            made = kernels.TextEncoder(
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
                made.set_words(words)
            try:
                source.feed(made, options.threads)
            except sources.TooManyWords:
                return None
            return made

        def selected(encoded: Any) -> Any:
            return encoded.select(max(options.min_count, 1), options.max_vocab, options.keep, fixed)

        fixed = options.vocab is not None
        encoded = encoder(options.vocab)
        found = encoded and selected(encoded)
        if not found or (not fixed and found[3] > options.max_distinct):
            encoded = found = None  # gives back its memory
            pruned = None if source.once else encoder(None, pruning=True)
            if pruned is None or not pruned.n_documents:
                raise ValueError(
                    f"more than max_distinct={options.max_distinct:,} distinct words, and {source.once or source} "
                    "cannot be read twice: raise max_distinct (about 110 bytes of memory each), or pass something "
                    "to read again"
                )
            survivors, _, _, *seen = pruned.select(options.min_count, 0, options.keep, False)
            del pruned
            encoded = encoder([*survivors, *sorted(set(options.keep).difference(survivors))])
            found = [*selected(encoded)[:3], *seen]
        words, counts, n_tokens, n_distinct, largest = found
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
        if not encoded.write(ids, offsets):
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


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def by_count(corpus: Corpus) -> Corpus:
    """The corpus itself, or one whose words are sorted by count, as a Huffman tree wants them."""
    if (np.diff(corpus.counts) <= 0).all():
        return corpus
    return corpus.with_words([corpus.words[i] for i in np.argsort(-corpus.counts, kind="stable")])


def fingerprint(corpus: Corpus) -> dict[str, int]:
    """What tells a corpus from another: sizes, and a checksum of words, counts and the first ids and offsets."""
    crc = zlib.crc32("\0".join(corpus.words).encode("utf-8", "surrogatepass"))
    for array in (corpus.counts, corpus.offsets[: 1 << 16], corpus.ids[: 1 << 16]):
        crc = zlib.crc32(np.ascontiguousarray(array), crc)
    return {"words": len(corpus.words), "documents": len(corpus), "tokens": corpus.n_tokens, "crc": crc}
