"""Keys and their matrix to files and back: word2vec binary and text, fastText .vec, GloVe text, npz, safetensors.

Word2vec's formats are those of word2vec.c (its binary ends each row with a newline, gensim's does not: both read);
in npz and safetensors the matrix, float32 or ternary, is aligned, so that it can be mapped.
"""

import gzip
import os
from pathlib import Path

import numpy as np

from embfast.files.archives import FLOAT, read_tensors, write_npz
from embfast.files.durable import replacing
from embfast.files.faults import ERRORS, Faults
from embfast.files.lines import encoded_key, encoded_word, read_stream, write_lines, write_rows
from embfast.files.tensors import joined, write_tensors
from embfast.files.ternary import TernaryMatrix

FORMATS = ("bin", "text", "glove", "npz", "safetensors")

_BY_EXTENSION = {".bin": "bin", ".txt": "text", ".vec": "text", ".npz": "npz", ".safetensors": "safetensors"}


def format_of(path: str | os.PathLike, format: str | None = None) -> str:
    """The format to use for `path`: `format` if given, else by extension, with or without .gz.

    >>> format_of("vectors.vec.gz")
    'text'

    Raises:
        ValueError: no such format, or an extension that names none.
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


# ---- writing ----------------------------------------------------------------------------------------------------


def write(
    path: str | os.PathLike, keys: list[str], matrix: np.ndarray | TernaryMatrix, format: str | None = None
) -> None:
    """Writes keys and their rows, float32 or ternary (n, dim), in blocks: no copy of the matrix is made.

    Formats: "bin" (word2vec binary), "text" (word2vec text, the same as fastText's .vec), "glove" (text without the
    first line), "npz" and "safetensors" (members matrix, keys_utf8, keys_offsets). Text holds the fewest
    characters that read back to the same float32. A path that ends in .gz is compressed (bin, text and glove).
    npz and safetensors keep a ternary matrix packed (members planes and dim in place of matrix); the others unpack it.

    Raises:
        ValueError: no such format, or a key that the format cannot hold.
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
    path: str | os.PathLike,
    format: str | None = None,
    *,
    mmap: bool = False,
    limit: int | None = None,
    errors: str = "strict",
    encoding: str = "utf-8",
) -> tuple[list[str], np.ndarray | TernaryMatrix]:
    """Reads keys and their rows, float32 (n, dim), or ternary where they were written so.

    Settings:
        format: one of FORMATS; by extension when None. A text file whose first line has more than two fields is
            GloVe's. .gz is unpacked on the way (bin, text and glove).
        mmap: map the matrix of an .npz or .safetensors file instead of reading it, read-only; its numbers are then
            not checked to be finite, or levels.
        limit: read the first `limit` rows only, and look no further.
        errors: "strict" raises at the first fault. "replace" puts U+FFFD for bytes that are not in `encoding`, keeps
            the first of duplicate keys and puts 0 for a number that is not finite. "skip" leaves out every row with
            a fault, also a cut last one, and takes a wrong row count. Both warn with the number of faults.
        encoding: of the keys, in bin, text and glove.

    Raises:
        FormatError: the file does not parse; names the place, what was expected and what came.
        OSError: the file is missing or cannot be read.
        ValueError: a setting that makes no sense.
    """
    name = format_of(path, format)
    if errors not in ERRORS:
        raise ValueError(f"errors must be one of {', '.join(ERRORS)}, got {errors!r}")
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be 0 or more rows, got {limit}")
    try:
        "".encode(encoding)  # codecs.lookup knows hex, base64 and others, which are not of text
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


# ---- npz and safetensors: three arrays with known names -----------------------------------------------------------


# ---- writing for others -------------------------------------------------------------------------------------------


def write_projector(directory: str | os.PathLike, keys: list[str], matrix: np.ndarray) -> None:
    """Writes tensors.tsv and metadata.tsv (one key a line) as https://projector.tensorflow.org loads them.

    Raises:
        ValueError: a key has a tab or a line break in it.
    """
    for key in keys:
        if not key or any(mark in key for mark in "\t\r\n"):
            raise ValueError(f"key {key!r} is empty or has a tab or line break in it, which the projector cannot show")
    encoded = [encoded_key(key) for key in keys]
    Path(directory).mkdir(parents=True, exist_ok=True)
    with replacing(Path(directory) / "tensors.tsv") as stream:
        write_lines(stream, None, matrix, "\t")
    with replacing(Path(directory) / "metadata.tsv") as stream:
        stream.write(b"".join(key + b"\n" for key in encoded))
