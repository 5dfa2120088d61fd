"""Sources of a corpus: plain and compressed files, lists of tokens, and columns of Parquet files.

Each source feeds a kernels.TextEncoder and turns its faults into errors that name file and line.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from embfast.errors import FormatError
from embfast.files.durable import FilePath
from embfast.text.storage import holds_corpus
from embfast.text.tags import TagsBuilder

ReadProgress = Callable[[int, int], None]  # called by readers with (bytes read, bytes in all)

BLOCK_BYTES = 1 << 20  # text that a thread takes at a time: fits in L2 with the busy part of the word table
SLICE_BYTES = 64 << 20  # text between two progress reports, and the most that Ctrl-C waits for
_MAGIC_BYTES = 10  # the longest of _MAGIC
_MAGIC = {  # longer than in file(1), since a text may well start with "BZh"
    "gz": re.compile(rb"\x1f\x8b\x08"),
    "bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", re.DOTALL),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "zst": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL),  # or pzstd's skippable frame
}


def find_files(path: FilePath | Iterable[FilePath]) -> list[Path]:
    """The given files, and those in given directories, by name, without hidden files and saved corpora."""
    paths = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(p) for p in path]
    files: list[Path] = []
    for start in paths:
        if not start.exists():
            raise FileNotFoundError(f"{start}: no such file or directory")
        if not start.is_dir():
            files.append(start)
            continue
        saved = {p.parent for p in start.rglob("corpus.json") if holds_corpus(p.parent)}
        inside = [
            p
            for p in start.rglob("*")
            if p.is_file()
            and not any(part.startswith(".") for part in p.relative_to(start).parts)
            and saved.isdisjoint(p.parents)
        ]
        if not inside:
            raise ValueError(f"{start}: no files in this directory (hidden files and saved corpora are skipped)")
        files += sorted(inside, key=lambda p: p.relative_to(start).parts)
    if not files:
        raise ValueError("expected at least one file, got none")
    return files


class TooManyWords(Exception):
    """The text has more distinct words than max_distinct; it must be counted again with pruning."""


def _check(fault: tuple[str, int, int, int, bytes] | None, name: str, place: Callable[[int], str]) -> None:
    """Raises a fault of the encoder as an exception; `place` names a document by its number in all sources."""
    if fault is None:
        return
    kind, offset, document, error, token = fault
    if kind == "too_many_words":
        raise TooManyWords
    if kind == "bad_bytes":
        what = "a NUL" if b"\0" in token else "bytes that are not UTF-8"
        raise FormatError(
            f"{place(document)}: {what} in the token {token!r}, at byte {offset:,} of the text. "
            f'Is this UTF-8 text? errors="replace" or errors="skip" continues.'
        )
    if kind == "long_token":
        raise FormatError(
            f"{name}: a token of more than 2**30 bytes around byte {offset:,}, near {token!r}. Is this text?"
        )
    if kind == "shrank":
        raise OSError(f"{name}: the file was truncated while it was read; it now ends at byte {offset:,}")
    if kind == "spill_failed":
        raise OSError(error, f"{os.strerror(error)}: cannot write ids to a temporary file (TMPDIR chooses where)")
    raise OSError(error, os.strerror(error), name)


@dataclass
class Files:
    """Text files; each line is a document."""

    paths: list[Path]
    progress: ReadProgress | None
    tokens = False

    @property
    def once(self) -> str:
        """The first path that cannot be read twice; empty if all can."""
        return next((str(path) for path in self.paths if not path.is_file()), "")

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
                start = _first_bytes(file)
                if regular and _kind(start) is None:
                    step = max(SLICE_BYTES // BLOCK_BYTES, 1) * BLOCK_BYTES
                    for begin in range(0, size, step):
                        end = min(begin + step, size)
                        _check(encoder.add_file(file.fileno(), begin, end, size), str(path), place)
                        if self.progress:
                            self.progress(done + end, total)
                else:
                    batch = bytearray()
                    for chunk in _plain_bytes(path, file, start):
                        batch += chunk
                        if len(batch) < threads * BLOCK_BYTES:
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
class TaggedFiles(Files):
    """Lines of tags, a tab and text; the text goes to the encoder, the tags to `builder`."""

    def feed(self, encoder: Any, threads: int) -> None:
        self.builder = TagsBuilder()  # a new one, since a text may be read twice
        total = sum(path.stat().st_size for path in self.paths)
        done = 0
        for path in self.paths:
            first = encoder.n_documents
            with open(path, "rb", buffering=0) as file:
                start = _first_bytes(file)
                rest: list[bytes] = []
                for chunk in _without_mark(_plain_bytes(path, file, start)):
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
                self.builder.add(filter(None, tags.decode("utf-8").split(" ")))
            except UnicodeDecodeError:
                raise FormatError(f"{path}:{number}: expected tags in UTF-8, got {tags[:80]!r}") from None
            texts.append(text)
        texts.append(b"")
        _check(encoder.add_bytes(b"\n".join(texts)), str(path), lambda document: f"{path}:{document - first + 1}")


@dataclass
class Sentences:
    """Lists of tokens, consumed one at a time."""

    sentences: Iterable[Iterable[str]]
    tokens = True

    def __str__(self) -> str:
        return "the sentences"

    @property
    def once(self) -> str:
        return "an iterator" if iter(self.sentences) is self.sentences else ""

    def feed(self, encoder: Any, threads: int) -> None:
        iterator = iter(self.sentences)
        exhausted = False
        while not exhausted:
            n = encoder.n_documents
            exhausted, fault = encoder.add_sentences(iterator, n, threads * BLOCK_BYTES)
            _check(fault, "the sentences", lambda document: f"sentence {document}")


@dataclass
class Parquet:
    """A Parquet column of strings or of lists of strings; each row is a document."""

    paths: list[Path]
    column: str
    progress: ReadProgress | None
    tag_column: str | None = None
    once = ""

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
                    raise KeyError(f"{path}: no column {name!r}; the file has {', '.join(map(repr, schema.names))}")
            kind = schema.field(self.column).type
            is_list, inner = self._inner(kind)
            kinds.add(is_list)
            if not (pyarrow.types.is_string(inner) or pyarrow.types.is_large_string(inner)):
                raise TypeError(f"{path}: column {self.column!r} holds {kind}; expected strings or lists of strings")
            if self.tag_column is not None and "binary" in str(self._inner(schema.field(self.tag_column).type)[1]):
                kind = schema.field(self.tag_column).type
                raise TypeError(f"{path}: column {self.tag_column!r} holds {kind}; expected tags as strings or numbers")
            self.files.append(file)
        if len(kinds) != 1:
            raise TypeError(f"column {self.column!r} holds strings in some files and lists in others")
        self.tokens = kinds.pop()

    def __str__(self) -> str:
        return f"column {self.column!r} of {Files(self.paths, None)}"

    def feed(self, encoder: Any, threads: int) -> None:
        self.builder = TagsBuilder()
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
                        tags = tags if isinstance(tags, list) else [tags]
                        self.builder.add(str(tag) for tag in tags if tag not in (None, ""))
                if self.progress:
                    self.progress(encoder.n_documents, total)

    def _inner(self, kind: Any) -> tuple[bool, Any]:
        """Whether a column of this type holds lists, and the type of its values or of the values in its lists."""
        types = self.arrow.types
        is_list = types.is_list(kind) or types.is_large_list(kind)
        inner = kind.value_type if is_list else kind
        return is_list, inner.value_type if types.is_dictionary(inner) else inner

    def _joined(self, rows: Any) -> Any:
        """The rows as one buffer, with the bytes that end tokens and documents for the encoder."""
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


def plain_chunks(path: str | os.PathLike[str], progress: ReadProgress | None) -> Iterator[bytes]:
    """Yields the text of one file, plain or compressed, in chunks of about a megabyte."""
    with open(path, "rb", buffering=0) as file:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        size = os.fstat(file.fileno()).st_size
        start = _first_bytes(file)
        for chunk in _without_mark(_plain_bytes(path, file, start)):
            yield chunk
            if progress and regular:
                progress(file.tell(), size)


def _without_mark(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Removes the UTF-8 byte order mark that may start a text."""
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= len(codecs.BOM_UTF8):
            break
    yield start.removeprefix(codecs.BOM_UTF8)
    yield from chunks


# Compressed files ---------------------------------------------------------------------------------------------------


def _first_bytes(file: Any) -> bytes:
    """The bytes that tell the kind of a file; a pipe returns them piece by piece."""
    start = b""
    while len(start) < _MAGIC_BYTES and (more := file.read(_MAGIC_BYTES - len(start))):
        start += more
    return start


def _kind(start: bytes) -> str | None:
    """The compression of a file that starts with these bytes, a key of _MAGIC, or None."""
    return next((kind for kind, magic in _MAGIC.items() if magic.match(start)), None)


_OPENERS: dict[str, Callable[[Any], Any]] = {
    "gz": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}


def _plain_bytes(path: str | os.PathLike[str], file: Any, start: bytes) -> Iterator[bytes]:
    """Yields the decompressed text in bounded chunks. `start` was already read: a pipe cannot seek back."""
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
        raise FormatError(f"{path}: the {kind} data are truncated; was the file cut short?") from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise FormatError(f"{path}: expected {kind} data, got: {error}") from None
    except OSError as error:
        if error.errno is None:  # bz2 reports "Invalid data stream" this way
            raise FormatError(f"{path}: expected {kind} data, got: {error}") from None
        raise


def _zstd_bytes(path: str | os.PathLike[str], source: _Unread) -> Iterator[bytes]:
    """Decompresses frame by frame; zstandard's stream_reader does not notice a truncated file."""
    unpacker, untouched = zstandard.ZstdDecompressor().decompressobj(), True
    batch: list[bytes] = []
    size = 0
    rest = b""
    while data := rest or source.read(4096):  # small, since 4 bytes of zstd may expand to 128 KB of text
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
    """A file whose first bytes were already read, as the decompressors need it."""

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
