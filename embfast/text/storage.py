"""Saved corpora: corpus.json names a data directory, which holds the arrays and the words."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeVar

import numpy as np

from embfast.errors import FormatError
from embfast.files.durable import replacing, sync
from embfast.files.scratch import reserve

Made = TypeVar("Made")

_CHUNK_TOKENS = 1 << 20
_DATA = re.compile("data-[0-9a-f]{8}")
_FILES = {"ids.npy", "offsets.npy", "counts.npy", "words"}
# Raised by np.load for a damaged header.
_DAMAGED = (ValueError, TypeError, OverflowError, MemoryError, EOFError, OSError, SyntaxError, TokenError)


class CorpusDirectory:
    """Writes a corpus: data-*/ is filled first, then corpus.json is replaced and names it.

    Used as a context manager; without commit, data-*/ is removed at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / f"data-{secrets.token_hex(4)}"
        self.committed = False

    def __enter__(self) -> CorpusDirectory:
        self.data.mkdir(parents=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.committed:
            shutil.rmtree(self.data, ignore_errors=True)

    def array_of(self, n: int, dtype: type, name: str) -> np.ndarray:
        """`array` with the arguments of scratch_array."""
        return self.array(name, n, dtype)

    def array(self, name: str, n: int, dtype: Any) -> np.ndarray:
        """A new memory-mapped array, stored as name.npy."""
        path = self.data / f"{name}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=(n,))
        with open(path, "r+b") as file:
            reserve(file, path.stat().st_size)
        return array

    def commit(self, corpus: Any, source: dict[str, Any] | None) -> None:
        """Completes the directory with words and counts, and replaces the corpus saved before.

        `source` is the fingerprint of a cache; None for Corpus.save.
        """
        for word in corpus.words:
            if "\0" in word:
                raise ValueError(f"{word!r} contains a NUL, which separates words in a saved corpus")
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
        with replacing(self.path / "corpus.json") as stream:
            stream.write(json.dumps(meta, indent=1).encode("utf-8"))
        self.committed = True
        for old in self.path.glob("data-*"):
            # Older than a day and not named: left by a killed process. Younger: another process may be writing it.
            if (
                old != self.data
                and _is_ours(old)
                and (old.name == before or old.stat().st_mtime < time.time() - 86_400)
            ):
                shutil.rmtree(old, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    """Whether a data directory was written by embfast: it has our name, and holds only our files."""
    return bool(_DATA.fullmatch(path.name)) and path.is_dir() and {file.name for file in path.iterdir()} <= _FILES


def holds_corpus(directory: Path) -> bool:
    """Whether the directory holds a saved corpus."""
    return (directory / "corpus.json").is_file() and any(map(_is_ours, directory.glob("data-*")))


def load_corpus(directory: Path, fingerprint: dict[str, Any] | None, make: Callable[..., Made]) -> Made:
    """make(words, counts, ids, offsets, n_newlines) of a saved corpus; ids and offsets are memory-mapped.

    Raises:
        FileNotFoundError: the directory holds no corpus.
        FormatError: a file is damaged, or the corpus was made from another source than the fingerprint says.
        ValueError: a fingerprint is given, but the corpus is not a cache.
    """
    data, sizes, source, n = _read_index(directory)
    if fingerprint is not None and source is None:
        raise ValueError(f"{directory}: expected a cache or nothing, got a corpus written by Corpus.save; it is kept")
    if fingerprint is not None and source != fingerprint:
        raise FormatError(f"{directory / 'corpus.json'}: made from another text or with other options")
    for name, size in sizes.items():
        if not (data / name).is_file():
            raise FormatError(f"{data / name}: expected a file of {size:,} bytes, got none")
        if (got := (data / name).stat().st_size) != size:
            raise FormatError(f"{data / name}: expected {size:,} bytes, got {got:,}; was it cut short?")
    ids = _load_array(data, "ids", np.int32, n["ids"], mmap=True)
    offsets = _load_array(data, "offsets", np.int64, n["offsets"], mmap=True)
    counts = _load_array(data, "counts", np.int64, n["counts"], mmap=False)
    try:
        text = (data / "words").read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{data / 'words'}: expected UTF-8, got {error}") from None
    words = text.split("\0") if text or n["counts"] else []
    if len(words) != n["counts"] or len(set(words)) != n["counts"]:
        raise FormatError(f"{data / 'words'}: expected {n['counts']} distinct words, got {len(set(words))}")
    if (counts < 0).any() or counts.sum() != n["ids"]:
        raise FormatError(f"{data / 'counts'}.npy: expected counts that add up to {n['ids']:,} tokens; they do not")
    for lo in range(0, len(ids), _CHUNK_TOKENS):
        part = ids[lo : lo + _CHUNK_TOKENS]
        if part.min() < 0 or part.max() >= len(words):
            raise FormatError(
                f"{data / 'ids'}.npy: expected ids from 0 to {len(words) - 1}, got {part.min()} to {part.max()} among "
                f"tokens {lo} to {lo + len(part) - 1}"
            )
    try:
        return make(words, counts, ids, offsets, n["newlines"])
    except ValueError as error:
        raise FormatError(f"{data / 'offsets'}.npy: {error}") from None


def _read_index(directory: Path) -> tuple[Path, dict[str, int], Any, dict[str, Any]]:
    """From corpus.json: the data directory, the sizes of its files, the source, and the lengths of the arrays."""
    index = directory / "corpus.json"
    try:
        meta = json.loads(index.read_text(encoding="utf-8"))
        data, sizes = directory / meta["data"], {name: int(size) for name, size in meta["bytes"].items()}
        n_newlines, format = meta["n_newlines"], meta["format"]
        n = {"ids": meta["n_tokens"], "offsets": meta["n_documents"] + 1, "counts": meta["n_words"]}
    except FileNotFoundError:
        raise FileNotFoundError(f"{index}: not there; is {directory} a directory written by Corpus.save?") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{index}: expected the index of a corpus, got {error!r}") from None
    if format != 1:
        raise FormatError(f"{index}: expected format 1, got {format!r}")
    return data, sizes, meta.get("source"), {**n, "newlines": n_newlines}


def _load_array(data: Path, name: str, dtype: type, n: int, mmap: bool) -> np.ndarray:
    try:
        array = np.load(data / f"{name}.npy", mmap_mode="r" if mmap else None)
    except _DAMAGED as error:
        raise FormatError(f"{data / name}.npy: expected a numpy file, got {error}") from None
    if array.dtype != dtype or array.shape != (n,):
        raise FormatError(f"{data / name}.npy: expected {np.dtype(dtype)} ({n},), got {array.dtype} {array.shape}")
    return array
