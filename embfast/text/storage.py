"""A corpus on disk: corpus.json and the directory of arrays and words that it names; arrays too large for memory."""

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

_DATA = re.compile("data-[0-9a-f]{8}")
_FILES = {"ids.npy", "offsets.npy", "counts.npy", "words"}
# What np.load raises where a header is damaged.
_DAMAGED = (ValueError, TypeError, OverflowError, MemoryError, EOFError, OSError, SyntaxError, TokenError)


class CorpusDirectory:
    """A corpus on its way to disk: data-*/ is filled first, then corpus.json is replaced and names it."""

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
        return self.array(name, n, dtype)

    def array(self, name: str, n: int, dtype: Any) -> np.ndarray:
        path = self.data / f"{name}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=(n,))
        with open(path, "r+b") as file:
            reserve(file, path.stat().st_size)
        return array

    def commit(self, corpus: Any, source: dict[str, Any] | None) -> None:
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
            if (
                old != self.data
                and _is_ours(old)
                and (old.name == before or old.stat().st_mtime < time.time() - 86_400)
            ):
                shutil.rmtree(old, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    """Whether a directory is called as those of a corpus are, and holds nothing else: it may be the user's own."""
    return bool(_DATA.fullmatch(path.name)) and path.is_dir() and {file.name for file in path.iterdir()} <= _FILES


def holds_corpus(directory: Path) -> bool:
    """Whether a corpus was saved there."""
    return (directory / "corpus.json").is_file() and any(map(_is_ours, directory.glob("data-*")))


def load_corpus(directory: Path, fingerprint: dict[str, Any] | None, make: Callable[..., Made]) -> Made:
    """make(words, counts, ids, offsets, n_newlines) of what was committed; ids and offsets are memory-mapped.

    Raises:
        FileNotFoundError: no corpus was saved there.
        FormatError: a file of it is damaged, or its source is not what the fingerprint says.
        ValueError: there is a fingerprint, but the corpus is no cache.
    """
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
    if fingerprint is not None and meta.get("source") is None:
        raise ValueError(f"{directory}: expected a cache or nothing, got a corpus that was saved; it stays as it is")
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
        except _DAMAGED as error:
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
    if len(words) != n["counts"] or len(set(words)) != n["counts"]:
        raise FormatError(f"{data / 'words'}: expected {n['counts']} distinct words, got {len(set(words))}")
    ids, counts = arrays["ids"], arrays["counts"]
    if (counts < 0).any() or counts.sum() != n["ids"]:
        raise FormatError(f"{data / 'counts'}.npy: expected counts that add up to {n['ids']:,} tokens; they do not")
    for lo in range(0, len(ids), 1 << 20):
        part = ids[lo : lo + (1 << 20)]
        if part.min() < 0 or part.max() >= len(words):
            raise FormatError(
                f"{data / 'ids'}.npy: expected ids from 0 to {len(words) - 1}, got {part.min()} to {part.max()} among "
                f"tokens {lo} to {lo + len(part) - 1}"
            )
    try:
        return make(words, arrays["counts"], arrays["ids"], arrays["offsets"], n_newlines)
    except ValueError as error:
        raise FormatError(f"{data / 'offsets'}.npy: {error}") from None
