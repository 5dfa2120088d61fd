"""safetensors files (https://github.com/huggingface/safetensors): named arrays after a JSON header.

Arrays are written and read in chunks of rows, so that no table is copied and padded tables are filled directly.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import IO, Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from embfast import kernels
from embfast.errors import FormatError
from embfast.files.texts import Texts, joined

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "U64": np.dtype("<u8"),
}
FLOAT = DTYPES["F32"]
ALIGNMENT = 64  # bytes; aligned arrays can be memory-mapped

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Rows(Protocol):
    """A matrix that is read by slices of rows: an array, or a TernaryMatrix, whose slices are int8."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


def row_blocks(array: Rows, numbers: int = 1 << 18) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the rows of an array in chunks of about `numbers` numbers, each with the index of its first row."""
    step = max(1, numbers // max(1, math.prod(array.shape[1:])))
    for lo in range(0, len(array), step):
        yield lo, array[lo : lo + step]


def write_array(stream: IO[bytes], array: np.ndarray) -> None:
    """Writes the numbers of an array in C order, for any strides, one chunk of rows at a time."""
    for _, rows in row_blocks(array):
        stream.write(np.ascontiguousarray(rows).view(np.uint8).data)


def tensor_header(metadata: dict[str, str], tensors: dict[str, np.ndarray], multiple: int = ALIGNMENT) -> bytes:
    """The header of a file, padded to a multiple of `multiple` bytes; the arrays must follow in this order.

    Every array must have one of DTYPES.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.size * array.dtype.itemsize
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % multiple)
    return len(text).to_bytes(8, "little") + text


def write_tensors(stream: BinaryIO, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes a complete file; every array must have one of DTYPES."""
    stream.write(tensor_header(metadata or {}, tensors))
    for array in tensors.values():
        write_array(stream, array)


def word_tensors(words: Sequence[str], name: str = "words") -> dict[str, np.ndarray]:
    """A vocabulary, or other strings, as the two tensors that TensorFile.read_words reads under this name."""
    offsets, utf8 = (
        (words.offsets, words.utf8) if isinstance(words, Texts) else joined([word.encode() for word in words])
    )
    return {f"{name}_utf8": utf8, f"{name}_offsets": offsets}


class Entry(NamedTuple):
    """Header entry of an array; begin and end are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(stream: BinaryIO, path: str) -> tuple[dict[str, str], dict[str, Entry]]:
    """Metadata and entries of a file, checked against the file size, so that every array can be read.

    Raises:
        FormatError: the file is not a safetensors file, or is truncated.
    """
    size = os.fstat(stream.fileno()).st_size
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        raise FormatError(
            f"{path}: byte 0: expected a safetensors file, which begins with the length of its header, at most "
            f"{max(size - 8, 0)}, got {length}; was it cut short?"
        )
    data = 8 + length
    try:
        header = json.loads(stream.read(length))
        metadata = dict(header.pop("__metadata__", {}))
        entries = {}
        for name, entry in header.items():
            begin, end = map(int, entry["data_offsets"])
            entries[name] = Entry(entry["dtype"], tuple(map(int, entry["shape"])), data + begin, data + end)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: byte 8: expected a safetensors header of {length} bytes: {error!r}") from None
    for name, (dtype, shape, begin, end) in entries.items():
        n_bytes = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else end - begin
        if min(shape, default=0) < 0 or begin < data or end > size or end - begin != n_bytes:
            raise FormatError(
                f"{path}: expected {name} {shape} in {n_bytes} bytes of the {size - data} after the header, "
                f"got bytes {begin - data} to {end - data}; was it cut short?"
            )
    expected = max((entry.end for entry in entries.values()), default=data)
    if size != expected:
        raise FormatError(f"{path}: expected {expected:,} bytes, got {size:,}; was it cut short?")
    return metadata, entries


class TensorFile:
    """A safetensors file opened for reading; every fault is a FormatError that names the file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._stream = open(path, "rb")  # noqa: SIM115
        try:
            self.metadata, self._entries = read_header(self._stream, self.path)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def json(self, name: str) -> Any:
        """Decodes a JSON entry of the metadata."""
        try:
            return json.loads(self.metadata[name])
        except (KeyError, TypeError, ValueError):
            raise FormatError(f"{self.path}: expected {name!r} in the metadata of a model, got none") from None

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str, dtype: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Reads a tensor of this shape, or of any one-dimensional shape, into a new array."""
        array = np.empty(self._entry(name, dtype, shape).shape, DTYPES[dtype])
        self._fill(name, array)
        return array

    def map(self, name: str, dtype: str = "U8") -> np.ndarray:
        """Memory-maps a one-dimensional tensor, read-only."""
        entry = self._entry(name, dtype, None)
        if entry.shape == (0,):
            return np.empty(0, DTYPES[dtype])
        return np.memmap(self.path, DTYPES[dtype], "r", entry.begin, entry.shape)

    def read_words(self, name: str = "words") -> list[str]:
        """Reads the strings written by word_tensors."""
        return list(self.map_words(name))

    def map_words(self, name: str = "words") -> Texts:
        """Memory-maps the strings written by word_tensors, after checking all of them."""
        words = Texts(self.map(f"{name}_offsets", "I64"), self.map(f"{name}_utf8"))
        ends, size = words.offsets, len(words.utf8)
        if len(ends) < 1 or ends[0] != 0 or ends[-1] != size or (ends[1:] < ends[:-1]).any():
            raise FormatError(f"{self.path}: expected {name}_offsets to rise from 0 to {size}; they do not")
        try:
            for _ in words:
                pass
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.path}: expected {name} in UTF-8, got {error.object!r}") from None
        return words

    def read_table(self, name: str, n: int, dim: int, pieces: int = 1) -> np.ndarray:
        """Reads a float32 (n, dim) tensor into a padded weight table, or (n, pieces, dim) with each piece padded."""
        self._entry(name, "F32", (n, dim) if pieces == 1 else (n, pieces, dim))
        table = kernels.weight_table(n, pieces * kernels.padded(dim))
        self._fill(name, table[:, :dim] if pieces == 1 else table.reshape(n, pieces, -1)[:, :, :dim])
        return table

    def _entry(self, name: str, dtype: str, shape: tuple[int, ...] | None) -> Entry:
        if name not in self._entries:
            raise FormatError(f"{self.path}: expected a tensor {name}, got {', '.join(self._entries) or 'none'}")
        found = self._entries[name]
        if found.dtype != dtype or (len(found.shape) != 1 if shape is None else found.shape != shape):
            wanted = "one axis" if shape is None else str(shape)
            raise FormatError(
                f"{self.path}: expected {name} to be {dtype} with {wanted}, got {found.dtype} {found.shape}"
            )
        return found

    def _fill(self, name: str, array: np.ndarray) -> None:
        self._stream.seek(self._entries[name].begin)
        for lo, rows in row_blocks(array):
            data = np.frombuffer(self._stream.read(rows.nbytes), array.dtype)
            if data.size != rows.size:
                raise FormatError(f"{self.path}: expected {array.nbytes} bytes of {name}; the file ends before")
            array[lo : lo + len(rows)] = data.reshape(rows.shape)
