"""The word2vec text and binary formats and GloVe text, read and written row by row, each row checked."""

import gzip
import os
import zlib
from typing import BinaryIO

import numpy as np

from embfast import kernels
from embfast.errors import FormatError
from embfast.files.faults import Faults
from embfast.files.tensors import FLOAT, Rows, row_blocks

Stream = BinaryIO | gzip.GzipFile

_MAX_DEFLATE_RATIO = 1032  # no gzip file decompresses to more than this many times its size
_LONGEST_KEY = 1 << 16
_LONGEST_LINE = 1 << 28


def encoded_key(key: str) -> bytes:
    """The key in UTF-8; ValueError for lone surrogates."""
    try:
        return key.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"key {key!r} cannot be written as UTF-8: {error.reason}") from error


def encoded_word(key: str, format: str) -> bytes:
    """The key in UTF-8; ValueError if "bin", "text" or "glove" cannot hold it."""
    word = encoded_key(key)
    # Binary files hold every word of a Corpus; in text files any white space separates fields.
    if not word or (any(c in word for c in b" \t\n") if format == "bin" else word.split() != [word]):
        raise ValueError(
            f"key {key!r} is empty or has white space, which format {format!r} cannot hold; npz and safetensors can"
        )
    if format == "bin" and len(word) >= _LONGEST_KEY:
        raise ValueError(
            f"key {key[:40]!r}... has {len(word):,} bytes; format 'bin' allows at most {_LONGEST_KEY - 1:,}, "
            "npz and safetensors any number"
        )
    return word


def write_rows(stream: Stream, keys: list[bytes], matrix: Rows, name: str) -> None:
    """Writes the first line, except in "glove", and all rows in format `name`."""
    if name != "glove":
        stream.write(b"%d %d\n" % matrix.shape)
    if name != "bin":
        write_lines(stream, keys, matrix, " ")
        return
    for lo, rows in row_blocks(matrix, numbers=1 << 15):
        lines = np.ascontiguousarray(rows, dtype=FLOAT).data.cast("B")
        width = len(lines) // len(rows)
        cells = (lines[i * width : (i + 1) * width] for i in range(len(rows)))
        stream.write(b"".join(p for i, cell in enumerate(cells) for p in (keys[lo + i], b" ", cell, b"\n")))


def write_lines(stream: Stream, keys: list[bytes] | None, matrix: Rows, separator: str) -> None:
    """Writes keys, unless None, and numbers in the fewest characters; chunks of 1 MB of float32 per core."""
    threads = kernels.cores()
    for lo, rows in row_blocks(matrix, numbers=threads << 18):
        block = np.ascontiguousarray(rows, dtype=np.float32)
        stream.write(kernels.format_lines(keys and keys[lo : lo + len(rows)], block, separator, threads))


class _Rows:
    """Collects the keys and rows of a stream in order and checks each."""

    def __init__(self, faults: Faults, encoding: str, dim: int, capacity: int | None) -> None:
        self.faults = faults
        self.encoding = encoding
        self.keys: list[str] = []
        self.seen: dict[str, int] = {}  # first line or byte of each key
        self.grows = capacity is None
        self.matrix = np.empty((capacity or 0, dim), dtype=np.float32)
        self.pending: list[str] = []  # keys of the rows that close_chunk takes next
        self.places: list[int] = []

    def admit(self, raw: bytes, place: int, unit: str) -> bool:
        """Whether the row with key `raw`, at line or byte `place`, is accepted."""
        try:
            key = raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            self.faults.add(
                f"{unit}{place}: expected a key in {self.encoding}, got {raw!r} ({error.reason}). word2vec.c cuts long "
                'words inside a character; errors="replace" reads on.',
                replaceable=True,
            )
            if self.faults.errors == "skip":
                return False
            key = raw.decode(self.encoding, errors="replace")
        if not key:
            self.faults.add(f"{unit}{place}: expected a key, got none")
            return False
        first = self.seen.setdefault(key, place)
        if first != place:
            self.faults.add(
                f"{unit}{place}: expected a new key, got {key!r} again; it was first at {unit}{first}", replaceable=True
            )
            return False
        self.pending.append(key)
        self.places.append(place)
        return True

    def close_chunk(self, values: np.ndarray, unit: str) -> None:
        """Takes the rows of the keys admitted since the last call; they may already be in the matrix."""
        done = len(self.keys)
        finite = np.isfinite(values)
        good = finite.all(axis=1)
        for i in np.flatnonzero(~good):
            self.faults.add(
                f"{unit}{self.places[i]}: expected finite numbers after {self.pending[i]!r}, got "
                f"{values[i][~finite[i]][0]}",
                replaceable=True,
            )
        keys = self.pending
        if not good.all():
            if self.faults.errors == "skip":
                values, keys = values[good], [key for key, fine in zip(keys, good, strict=True) if fine]
            else:
                values = np.where(finite, values, np.float32(0))
        end = done + len(keys)
        if self.grows and end > len(self.matrix):
            self.matrix.resize((end, self.matrix.shape[1]), refcheck=False)
        target = self.matrix[done:end]
        if not np.shares_memory(values, target):
            target[:] = values
        self.keys += keys
        self.pending, self.places = [], []

    def result(self) -> tuple[list[str], np.ndarray]:
        return self.keys, self.matrix[: len(self.keys)]


def read_stream(
    path: str, name: str, limit: int | None, encoding: str, faults: Faults, guess: bool
) -> tuple[list[str], np.ndarray]:
    """Reads a "bin", "text" or "glove" file, plain or gzipped. guess: text that looks like GloVe is read as such."""
    size = os.path.getsize(path)
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"  # no file of these formats starts with it: neither a digit nor UTF-8
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if zipped else raw
        room = size * _MAX_DEFLATE_RATIO if zipped else size
        try:
            if name == "bin":
                return _read_binary(stream, room, limit, encoding, faults)
            return _read_text(stream, room, name, limit, encoding, faults, guess)
        except (gzip.BadGzipFile, zlib.error) as error:
            raise FormatError(f"{path}: the gzip data is damaged: {error}") from error
        except EOFError as error:
            raise FormatError(f"{path}: the gzip data is cut short: {error}") from error


def _header(line: bytes, faults: Faults) -> tuple[int, int]:
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() and len(field) <= 18 for field in fields) or int(fields[1]) == 0:
        shown = line if len(line) <= 60 else line[:60] + b"..."
        if not line:
            raise FormatError(
                f"{faults.path}: expected a first line with the number of rows and of columns; it is empty"
            )
        raise FormatError(
            f"{faults.path}:1: expected two integers, the number of rows and of columns, got {shown!r}. "
            'GloVe files have no such line: format="glove".'
        )
    return int(fields[0]), int(fields[1])


def _capacity(rows: int, dim: int, row_bytes: int, room: int, limit: int | None, faults: Faults) -> int:
    """The number of rows to allocate, limited by the size of the file."""
    wanted = rows if limit is None else min(rows, limit)
    fits = (room + 1) // row_bytes  # the last row may lack its newline
    if wanted > fits:
        faults.add(
            f"1: expected room for {wanted} rows of {dim} numbers, at least {wanted * row_bytes} bytes, "
            f"got a file of at most {room}; it is cut short or its first line is wrong"
        )
    if dim >= 2**31:
        raise FormatError(f"{faults.path}:1: expected rows of fewer than 2**31 numbers, got {dim}")
    return min(wanted, fits)


def _read_binary(
    stream: Stream, room: int, limit: int | None, encoding: str, faults: Faults
) -> tuple[list[str], np.ndarray]:
    line = stream.readline(256)
    n_rows, dim = _header(line, faults)
    width = dim * FLOAT.itemsize
    wanted = _capacity(n_rows, dim, width + 2, room, limit, faults)
    rows = _Rows(faults, encoding, dim, wanted)
    matrix = rows.matrix.reshape(-1).view(np.uint8).data
    admit, unit = rows.admit, " byte "

    data, origin, position, read = b"", len(line), 0, 0
    while read < wanted:
        fresh = stream.read(max(1 << 22, 2 * width))
        data, origin, position = data[position:] + fresh, origin + position, 0
        first = filled = len(rows.keys)
        while read < wanted:
            begin = position + (data[position : position + 1] == b"\n")
            space = data.find(b" ", begin, begin + _LONGEST_KEY)
            if space < 0 and len(data) - begin >= _LONGEST_KEY:
                raise FormatError(
                    f"{faults.path}: byte {origin + begin}: expected a key and a space, got {_LONGEST_KEY} bytes "
                    "without a space; the file is not word2vec binary, or an earlier key contains a space"
                )
            end = space + 1 + width
            if space < 0 or end > len(data):
                break
            if admit(data[begin:space], origin + begin, unit):
                matrix[filled * width : (filled + 1) * width] = data[space + 1 : end]
                filled += 1
            position = end
            read += 1
        rows.close_chunk(rows.matrix[first:filled], unit)
        if not fresh and read < wanted:
            faults.add(
                f" byte {origin + len(data)}: expected {n_rows} rows of {dim} numbers as the first line says, got "
                f"{read} and the end of the file"
            )
            break
    if limit is None and read == n_rows:
        rest = (data[position:] + stream.read(64)).lstrip(b"\n")
        if rest:
            faults.add(
                f" byte {origin + position}: expected the end of the file after {n_rows} rows as the first line says, "
                f"got {rest[:20]!r}"
            )
    return rows.result()


def _read_text(
    stream: Stream, room: int, name: str, limit: int | None, encoding: str, faults: Faults, guess: bool
) -> tuple[list[str], np.ndarray]:
    first = stream.readline(_LONGEST_LINE)
    fields = first.split()
    if name == "text" and guess and len(fields) > 2:
        name = "glove"
    if name == "glove":
        if len(fields) < 2:
            raise FormatError(f"{faults.path}:1: expected a key and its numbers, got {first[:60]!r}")
        n_rows, dim, data, number = None, len(fields) - 1, first, 1
        says = f"line 1 has {dim}"
    else:
        n_rows, dim = _header(first, faults)
        data, number = b"", 2
        says = f"line 1 says {dim}"
    wanted, capacity = limit, None
    if n_rows is not None:
        capacity = _capacity(n_rows, dim, 2 * dim + 2, room, limit, faults)
        if faults.errors == "skip":
            capacity = None
        else:
            wanted = capacity
    rows = _Rows(faults, encoding, dim, capacity)
    threads = kernels.cores()
    chunk = max(threads << 20, 32 * dim)
    longest = (1 << 20) + 64 * dim

    read = 0
    while wanted is None or read < wanted:
        fresh = stream.read(chunk)
        data += fresh
        cut = data.rfind(b"\n") + 1
        if not fresh and cut < len(data):
            data, cut = data + b"\n", len(data) + 1
        if cut == 0:
            if not fresh:
                break
            if len(data) > longest:
                raise FormatError(
                    f"{faults.path}:{number}: expected {dim} numbers, got {len(data)} bytes and no newline"
                )
            continue
        got, lines, end = _take_lines(data[:cut], dim, number, says, rows, threads, wanted and wanted - read)
        read, number, data = read + got, number + lines, data[end:]
    if n_rows is not None and limit is None:
        if read < n_rows:
            faults.add(f"{number}: expected {n_rows} rows as line 1 says, got {read} and the end of the file")
        rest = data.strip() or stream.read(chunk).strip()
        if rest:
            faults.add(f"{number}: expected the end of the file after {n_rows} rows as line 1 says, got {rest[:20]!r}")
    return rows.result()


def _take_lines(
    text: bytes, dim: int, number: int, says: str, rows: _Rows, threads: int, room: int | None
) -> tuple[int, int, int]:
    """Reads complete lines, starting with line `number`, into at most `room` rows.

    Returns the number of rows, good or bad, of lines and of bytes.
    """
    bounds, row, plain, values = kernels.parse_lines(text, dim, threads)
    met, taken, n_lines, end = 0, [], len(row), len(text)
    lines = zip(*bounds.T.tolist(), row.tolist(), plain.tolist(), strict=True)
    for i, (begin, stop, at, is_plain) in enumerate(lines):
        if met == room:
            n_lines, end = i, begin
            break
        key: bytes | None = text[begin:stop]
        if not is_plain:
            if not text[begin:stop].strip():
                continue
            key, numbers = _careful_line(text[begin:stop], dim, number + i, says, rows.faults)
            if key is not None:
                values[at] = numbers
        met += 1
        if key is not None and rows.admit(key, number + i, ""):
            taken.append(at)
    rows.close_chunk(values[taken] if len(taken) < len(values) else values, "")
    return met, n_lines, end


def _careful_line(line: bytes, dim: int, number: int, says: str, faults: Faults) -> tuple[bytes | None, np.ndarray]:
    """The key and the numbers of one line, split into fields; a faulty line is reported and has the key None."""
    key, *tokens = line.split()
    shown = key.decode(errors="replace")
    numbers = np.zeros(dim, np.float32)
    if len(tokens) != dim:
        hint = "a key that contains a space has the same effect" if len(tokens) > dim else "the line is cut short"
        faults.add(f"{number}: expected {dim} numbers after {shown!r}, got {len(tokens)}. {says}; {hint}.")
        return None, numbers
    for i, token in enumerate(tokens):
        try:
            if b"_" in token:  # valid in Python source, not in a file of numbers
                raise ValueError
            with np.errstate(over="ignore"):  # 1e39 becomes inf: a fault, which close_chunk reports
                numbers[i] = float(token)
        except ValueError:
            faults.add(f"{number}: expected {dim} numbers after {shown!r}, got {token[:40]!r} as the {i + 1}th")
            return None, numbers
    return key, numbers
