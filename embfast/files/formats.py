"""File formats of vectors: word2vec binary and text, fastText .vec, GloVe text, npz and safetensors.

The word2vec formats are those of word2vec.c (its binary ends each row with a newline, gensim's does not; both are
read). In npz and safetensors the matrix, float32 or ternary, is aligned for memory-mapping.
"""

import gzip
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from embfast.files.archives import read_tensors, write_npz
from embfast.files.durable import replacing
from embfast.files.faults import ERRORS, Faults
from embfast.files.lines import encoded_key, encoded_word, read_stream, write_lines, write_rows
from embfast.files.tensors import FLOAT, Rows, write_tensors
from embfast.files.ternary import TernaryMatrix
from embfast.files.texts import joined

FORMATS = ("bin", "text", "glove", "npz", "safetensors")

_BY_EXTENSION = {".bin": "bin", ".txt": "text", ".vec": "text", ".npz": "npz", ".safetensors": "safetensors"}


def format_of(path: str | os.PathLike[str], format: str | None = None) -> str:
    """The format of `path`: `format` if given, otherwise that of the extension, with or without .gz.

    >>> format_of("vectors.vec.gz")
    'text'

    Raises:
        ValueError: the format or the extension is unknown.
    """
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
        return format
    suffixes = [s.lower() for s in Path(path).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    found = _BY_EXTENSION.get(suffixes[-1] if suffixes else "")
    if found is None:
        raise ValueError(
            f"{os.fspath(path)}: cannot tell the format from the extension; use one of {', '.join(_BY_EXTENSION)} "
            f"or pass format= one of {', '.join(FORMATS)}"
        )
    if found in ("npz", "safetensors") and os.fspath(path).lower().endswith(".gz"):
        raise ValueError(f"{os.fspath(path)}: {found} files are not gzipped")
    return found


def check_keys(keys: Iterable[str], format: str) -> None:
    """Raises ValueError for a key that the format cannot hold."""
    for key in keys:
        if format in ("npz", "safetensors"):
            encoded_key(key)
        else:
            encoded_word(key, format)


# ---- writing ----------------------------------------------------------------------------------------------------


def write(
    path: str | os.PathLike[str], keys: list[str], matrix: np.ndarray | TernaryMatrix, format: str | None = None
) -> None:
    """Writes keys and their rows, float32 or ternary (n, dim), in chunks, without a copy of the matrix.

    Formats: "bin" (word2vec binary), "text" (word2vec text, the same as fastText's .vec), "glove" (text without the
    first line), "npz" and "safetensors" (arrays matrix, keys_utf8, keys_offsets). Text formats write the fewest
    characters that read back to the same float32. A path that ends in .gz is compressed (bin, text and glove).
    npz and safetensors store a ternary matrix packed (arrays planes and dim instead of matrix); the others unpack it.

    Raises:
        ValueError: the format is unknown, or cannot hold a key.
    """
    name = format_of(path, format)
    zipped = os.fspath(path).lower().endswith(".gz")
    if name in ("npz", "safetensors"):
        if zipped:
            raise ValueError(f"{os.fspath(path)}: {name} files are not gzipped")
        offsets, utf8 = joined([encoded_key(key) for key in keys])
        if isinstance(matrix, TernaryMatrix):
            rows = {"planes": matrix.planes, "dim": np.array([matrix.dim], dtype="<i8")}
        else:
            rows = {"matrix": np.asarray(matrix, dtype=FLOAT)}
        tensors = {**rows, "keys_offsets": offsets, "keys_utf8": utf8}
        with replacing(path) as stream:
            (write_npz if name == "npz" else write_tensors)(stream, tensors)
        return
    encoded = [encoded_word(key, name) for key in keys]
    with replacing(path) as stream:
        if zipped:
            with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6, mtime=0, filename="") as packed:
                write_rows(packed, encoded, matrix, name)
        else:
            write_rows(stream, encoded, matrix, name)


# ---- reading ----------------------------------------------------------------------------------------------------


def read(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    mmap: bool = False,
    limit: int | None = None,
    errors: str = "strict",
    encoding: str = "utf-8",
) -> tuple[list[str], np.ndarray | TernaryMatrix]:
    """Reads keys and their rows, float32 (n, dim), or ternary if they were stored packed.

    Args:
        format: One of FORMATS. Default: by extension; a text file whose first line has more than two fields is read
            as GloVe. gzip is decompressed on the fly (bin, text and glove).
        mmap: Memory-map the matrix of an .npz or .safetensors file, read-only. Its numbers are then not checked to be
            finite, or levels.
        limit: Read only the first `limit` rows, and check no others.
        errors: "strict" raises at the first fault. "replace" substitutes U+FFFD for bytes that are not in `encoding`
            and 0 for non-finite numbers, and keeps the first of duplicate keys. "skip" drops every faulty row,
            including a truncated last one, and accepts a wrong row count. Both warn with the number of faults.
        encoding: Encoding of the keys in bin, text and glove.

    Raises:
        FormatError: the file does not parse; the message names the place, what was expected and what was found.
        OSError: the file is missing or cannot be read.
        ValueError: a setting is invalid.
    """
    name = format_of(path, format)
    if errors not in ERRORS:
        raise ValueError(f"errors must be one of {', '.join(ERRORS)}, got {errors!r}")
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be 0 or more rows, got {limit}")
    try:
        "".encode(encoding)  # codecs.lookup also accepts hex, base64 and others that do not encode text
    except LookupError as error:
        raise ValueError(f"encoding: {error}") from None
    path = os.fspath(path)
    if mmap and name not in ("npz", "safetensors"):
        raise ValueError(f"{path}: format {name!r} cannot be memory-mapped; save it as .npz or .safetensors first")
    faults = Faults(path, errors)
    if name in ("npz", "safetensors"):
        keys, matrix = read_tensors(path, name, mmap, limit, faults)
    else:
        keys, matrix = read_stream(path, name, limit, encoding, faults, guess=format is None)
    faults.warn()
    return keys, matrix


# ---- export -------------------------------------------------------------------------------------------------------


def write_projector(directory: str | os.PathLike[str], keys: list[str], matrix: Rows) -> None:
    """Writes tensors.tsv and metadata.tsv (one key per line) for https://projector.tensorflow.org.

    Raises:
        ValueError: a key is empty or contains a tab or a line break.
    """
    for key in keys:
        if not key or any(mark in key for mark in "\t\r\n"):
            raise ValueError(f"key {key!r} is empty or contains a tab or line break, which the projector cannot show")
    encoded = [encoded_key(key) for key in keys]
    Path(directory).mkdir(parents=True, exist_ok=True)
    with replacing(Path(directory) / "tensors.tsv") as stream:
        write_lines(stream, None, matrix, "\t")
    with replacing(Path(directory) / "metadata.tsv") as stream:
        stream.write(b"".join(key + b"\n" for key in encoded))
