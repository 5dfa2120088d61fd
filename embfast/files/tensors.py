"""safetensors files, as https://github.com/huggingface/safetensors has them: named arrays behind a header in JSON.

Written and read by hand, in blocks of rows, so that no copy of a table is made and a padded table can be filled.
"""

import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from embfast import kernels
from embfast.errors import FormatError

DTYPES = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "U64": np.dtype("<u8"),
}
ALIGNMENT = 64  # of the first array, in bytes: the file can be mapped

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def row_blocks(array: np.ndarray, numbers: int = 1 << 18) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of an array in blocks of about so many numbers, each with the index of its first row."""
    step = max(1, numbers // max(1, math.prod(array.shape[1:])))
    for lo in range(0, len(array), step):
        yield lo, array[lo : lo + step]


def write_array(stream: BinaryIO, array: np.ndarray) -> None:
    """Writes the numbers of an array, in C order whatever its strides, a block of rows at a time."""
    for _, rows in row_blocks(array):
        stream.write(np.ascontiguousarray(rows).view(np.uint8).data)


def tensor_header(metadata: dict[str, str], tensors: dict[str, np.ndarray], multiple: int = ALIGNMENT) -> bytes:
    """The first bytes of a file, a multiple of some number; the arrays, each of one of DTYPES, follow in this order."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.size * array.dtype.itemsize
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % multiple)
    return len(text).to_bytes(8, "little") + text


def write_tensors(stream: BinaryIO, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes a whole file of arrays, each of one of DTYPES."""
    stream.write(tensor_header(metadata or {}, tensors))
    for array in tensors.values():
        write_array(stream, array)


def joined(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as offsets, int64 (n + 1,), and all their bytes, uint8, of which text i is offsets[i] to offsets[i + 1]."""
    offsets = np.zeros(len(texts) + 1, DTYPES["I64"])
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return offsets, np.frombuffer(b"".join(texts), np.uint8)


class Texts(Sequence):
    """Strings, kept in UTF-8 one after the other: uint8 bytes and int64 offsets (n + 1,).

    >>> texts = Texts.of(["a", "bc"])
    >>> texts[1], list(texts), texts == ["a", "bc"]
    ('bc', ['a', 'bc'], True)
    """

    __hash__ = None  # as a list

    def __init__(self, offsets: np.ndarray, utf8: np.ndarray) -> None:
        self.offsets, self.utf8 = np.asarray(offsets), np.asarray(utf8)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Raises TypeError where one is no string."""
        stream, ends = io.BytesIO(), [0]
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"texts are strings, got {text!r} ({type(text).__name__})")
            ends.append(ends[-1] + stream.write(text.encode("utf-8", "replace")))
        return cls(np.array(ends, np.int64), np.frombuffer(stream.getvalue(), np.uint8))

    @classmethod
    def of_lines(cls, lines: bytes) -> "Texts":
        """Lines of UTF-8, each with a newline at its end."""
        numbers = np.frombuffer(lines, np.uint8)
        is_end = numbers == ord("\n")
        ends = np.flatnonzero(is_end)
        offsets = np.zeros(len(ends) + 1, np.int64)
        offsets[1:] = ends - np.arange(len(ends))
        return cls(offsets, numbers[~is_end])

    @classmethod
    def joined(cls, parts: "list[Texts]") -> "Texts":
        lengths = np.concatenate([np.diff(part.offsets) for part in parts] or [np.empty(0, np.int64)])
        utf8 = np.concatenate([part.utf8 for part in parts] or [np.empty(0, np.uint8)])
        return cls(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), utf8)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self.utf8[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for lo in range(0, len(self), 1 << 14):
            ends = (self.offsets[lo : lo + (1 << 14) + 1] - self.offsets[lo]).tolist()
            utf8 = self.utf8[self.offsets[lo] : self.offsets[lo] + ends[-1]].tobytes()
            yield from [utf8[begin:end].decode() for begin, end in pairwise(ends)]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list | Texts):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Texts({len(self):,}: {', '.join(map(repr, self[:3]))}{', ...' if len(self) > 3 else ''})"

    def take(self, rows: np.ndarray) -> "Texts":
        offsets, utf8 = joined([self.utf8[self.offsets[i] : self.offsets[i + 1]].tobytes() for i in rows.tolist()])
        return Texts(offsets, utf8)


def word_tensors(words: Sequence[str], name: str = "words") -> dict[str, np.ndarray]:
    """A vocabulary, or other strings of that name, as the two tensors that TensorFile.read_words reads."""
    offsets, utf8 = (
        (words.offsets, words.utf8) if isinstance(words, Texts) else joined([word.encode() for word in words])
    )
    return {f"{name}_utf8": utf8, f"{name}_offsets": offsets}


class Entry(NamedTuple):
    """What a header says of an array; begin and end are bytes of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(stream: BinaryIO, path: str) -> tuple[dict[str, str], dict[str, Entry]]:
    """The metadata and the arrays of a file, held against its size: what the entries say can be read.

    Raises:
        FormatError: no safetensors file, or one that was cut short.
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
    """A safetensors file, open for reading; every fault is a FormatError that names the file."""

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
        """An entry of the metadata, decoded."""
        try:
            return json.loads(self.metadata[name])
        except (KeyError, TypeError, ValueError):
            raise FormatError(f"{self.path}: expected {name!r} in the metadata of a model, got none") from None

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str, dtype: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A tensor; a new array of this shape, or of any one-dimensional shape."""
        array = np.empty(self._entry(name, dtype, shape).shape, DTYPES[dtype])
        self._fill(name, array)
        return array

    def map(self, name: str, dtype: str = "U8") -> np.ndarray:
        """The numbers of a tensor of one axis where they lie in the file, read-only."""
        entry = self._entry(name, dtype, None)
        if entry.shape == (0,):
            return np.empty(0, DTYPES[dtype])
        return np.memmap(self.path, DTYPES[dtype], "r", entry.begin, entry.shape)

    def read_words(self, name: str = "words") -> list[str]:
        """What word_tensors made of a vocabulary."""
        return list(self.map_words(name))

    def map_words(self, name: str = "words") -> Texts:
        """What word_tensors made of a vocabulary, where it lies in the file; all of it is checked."""
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
        """A float32 (n, dim) tensor in the padded table that kernels want, or (n, pieces, dim), each piece padded."""
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
