"""Keys and their matrix to files and back: word2vec binary and text, fastText .vec, GloVe text, npz, safetensors.

Word2vec's formats are those of word2vec.c (its binary ends each row with a newline, gensim's does not: both read);
in npz and safetensors the matrix, float32 or ternary, is aligned, so that it can be mapped.
"""

import fcntl
import gzip
import os
import re
import secrets
import stat
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO

import numpy as np

from embfast import kernels
from embfast.errors import FormatError
from embfast.tensors import ALIGNMENT, DTYPES, joined, read_header, row_blocks, write_array, write_tensors
from embfast.ternary import TernaryMatrix

FORMATS = ("bin", "text", "glove", "npz", "safetensors")
ERRORS = ("strict", "replace", "skip")

_BY_EXTENSION = {".bin": "bin", ".txt": "text", ".vec": "text", ".npz": "npz", ".safetensors": "safetensors"}
_FLOAT = np.dtype("<f4")
_KEYS = {"keys_offsets": (np.dtype("<i8"), 1), "keys_utf8": (np.dtype("u1"), 1)}
_MEMBERS = {"matrix": (_FLOAT, 2), **_KEYS}
_TERNARY_MEMBERS = {"planes": (np.dtype("<u8"), 3), "dim": (np.dtype("<i8"), 1), **_KEYS}
_DEFLATE_AT_BEST = 1032  # no gzip file unpacks to more than this many times its size
_LONGEST_KEY = 1 << 16
_LONGEST_LINE = 1 << 28


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


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` when the block ends well, and vanishes when it does not.

    The bytes go to a temporary file beside `path`, reach the disk (fsync), and are then renamed. A reader sees the old
    file or the new one, never a part. What a killed process left of an earlier attempt is removed first. A path that
    is no regular file, and one of an open file (/dev/stdout), is written straight.
    """
    if (descriptor := descriptor_of(path)) is not None:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            yield stream
        return
    mode = None
    if os.path.exists(path):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{os.fspath(path)} is a directory")
        if not stat.S_ISREG(mode):
            with open(path, "wb") as stream:
                yield stream
            return
    target = os.path.realpath(path)
    directory, name = os.path.split(target)
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"{os.fspath(path)}: there is no directory {directory}")
    _remove_abandoned(directory, name)
    stream, temporary = _open_temporary(directory, name)
    try:
        with stream:
            yield stream
            stream.flush()
            if mode is not None:
                os.fchmod(stream.fileno(), stat.S_IMODE(mode))
            os.fsync(stream.fileno())
            os.replace(temporary, target)  # before the stream closes: without its lock the file would look abandoned
    except BaseException:  # Ctrl-C too
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(directory)


def descriptor_of(path: str | os.PathLike) -> int | None:
    """The number of the open file that /dev/stdout, /dev/fd/1 or a link to them stands for; None for other paths."""
    here = os.path.abspath(path)
    while os.path.exists(here):
        directory, name = os.path.split(here)
        directory = os.path.realpath(directory)
        if directory in ("/dev/fd", os.path.realpath("/proc/self/fd")) and name.isdecimal():
            return int(name)
        if not os.path.islink(here):
            return None
        here = os.path.join(directory, os.readlink(here))
    return None


def _stem(name: str) -> str:
    """As many characters of the name as leave room for what is added to them: names end at 255 bytes."""
    return os.fsencode(name)[:200].decode(sys.getfilesystemencoding(), "ignore")


def _open_temporary(directory: str, name: str) -> tuple[BinaryIO, str]:
    """A new file to become `name`, locked (flock) as long as it is open, and its path."""
    while True:
        temporary = os.path.join(directory, f".{_stem(name)}.{secrets.token_hex(4)}.tmp")
        stream = open(temporary, "xb")  # noqa: SIM115
        with suppress(OSError):  # a file system without locks: then nobody can take the file for abandoned either
            fcntl.flock(stream, fcntl.LOCK_EX)
        if os.path.exists(temporary):  # or another process has taken it for abandoned, before it was locked
            return stream, temporary
        stream.close()


def _remove_abandoned(directory: str, name: str) -> None:
    """Removes what writers of `name` that were killed have left: temporary files that no living process has locked."""
    ours = re.compile(rf"\.{re.escape(_stem(name))}\.[0-9a-f]{{8}}\.tmp")
    left = []
    with suppress(OSError), os.scandir(directory) as entries:
        left = [entry.path for entry in entries if ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]
    for path in left:
        with suppress(OSError), open(path, "r+b") as stream:  # locked by its writer, or gone, or not ours to remove
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


def sync(path: str | os.PathLike) -> None:
    """Waits until a file, or a directory's list of names, has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        offsets, utf8 = joined([_encoded(key) for key in keys])
        if isinstance(matrix, TernaryMatrix):
            rows = {"planes": matrix.planes, "dim": np.array([matrix.dim], dtype="<i8")}
        else:
            rows = {"matrix": np.asarray(matrix, dtype=_FLOAT)}
        tensors = {**rows, "keys_offsets": offsets, "keys_utf8": utf8}
        with replacing(path) as stream:
            (_write_npz if name == "npz" else write_tensors)(stream, tensors)
        return
    encoded = [_encoded_word(key, name) for key in keys]
    with replacing(path) as stream:
        if zipped:
            with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6, mtime=0, filename="") as packed:
                _write_rows(packed, encoded, matrix, name)
        else:
            _write_rows(stream, encoded, matrix, name)


def check_keys(keys: Iterable[str], format: str) -> None:
    """ValueError for a key that the format cannot hold."""
    for key in keys:
        if format in ("npz", "safetensors"):
            _encoded(key)
        else:
            _encoded_word(key, format)


def _encoded(key: str) -> bytes:
    try:
        return key.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"key {key!r} cannot be written as UTF-8: {error.reason}") from error


def _encoded_word(key: str, format: str) -> bytes:
    word = _encoded(key)
    # Binary files hold whatever a Corpus takes for a word; in text any white space parts fields.
    if not word or (any(c in word for c in b" \t\n") if format == "bin" else word.split() != [word]):
        raise ValueError(
            f"key {key!r} is empty or has white space in it, which format {format!r} cannot hold; "
            "npz and safetensors can"
        )
    if format == "bin" and len(word) >= _LONGEST_KEY:
        raise ValueError(
            f"key {key[:40]!r}... has {len(word):,} bytes, of which format 'bin' holds {_LONGEST_KEY - 1:,} at most; "
            "npz and safetensors hold any"
        )
    return word


def _write_rows(stream: BinaryIO, keys: list[bytes], matrix: np.ndarray, name: str) -> None:
    if name != "glove":
        stream.write(b"%d %d\n" % matrix.shape)
    if name != "bin":
        _write_lines(stream, keys, matrix, " ")
        return
    for lo, rows in row_blocks(matrix, numbers=1 << 15):
        lines = memoryview(np.ascontiguousarray(rows, dtype=_FLOAT)).cast("B")
        width = len(lines) // len(rows)
        cells = (lines[i * width : (i + 1) * width] for i in range(len(rows)))
        stream.write(b"".join(p for i, cell in enumerate(cells) for p in (keys[lo + i], b" ", cell, b"\n")))


def _write_lines(stream: BinaryIO, keys: list[bytes] | None, matrix: np.ndarray, separator: str) -> None:
    """Each key, if there are any, and its numbers in the fewest characters; 1 MB of float32 per core at a time."""
    threads = kernels.cores()
    for lo, rows in row_blocks(matrix, numbers=threads << 18):
        block = np.ascontiguousarray(rows, dtype=np.float32)
        stream.write(kernels.format_lines(keys and keys[lo : lo + len(rows)], block, separator, threads))


def _write_npz(stream: BinaryIO, tensors: dict[str, np.ndarray]) -> None:
    """Uncompressed, each array on a multiple of 64 bytes (zipalign's padding field), so that it can be mapped."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in tensors.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            zip64 = 20  # bytes that force_zip64 adds to the local header
            begin = stream.tell() + 30 + len(member.filename) + zip64 + 4
            padding = -begin % ALIGNMENT
            member.extra = b"\x35\xd9" + padding.to_bytes(2, "little") + b"\0" * padding
            with archive.open(member, "w", force_zip64=True) as out:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(out, header)
                write_array(out, array)


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
    faults = _Faults(path, errors)
    if name in ("npz", "safetensors"):
        keys, matrix = _read_tensors(path, name, mmap, limit, faults)
    else:
        keys, matrix = _read_stream(path, name, limit, encoding, faults, guess=format is None)
    faults.warn()
    return keys, matrix


class _Faults:
    """What to do about a fault in a file: raise, or count it and go on."""

    def __init__(self, path: str, errors: str):
        self.path = path
        self.errors = errors
        self.count = 0
        self.first = ""

    def add(self, message: str, *, replaceable: bool = False) -> None:
        """Raises FormatError unless the policy passes over this fault. `message` begins with its place."""
        message = f"{self.path}:{message}"
        if self.errors == "strict" or (self.errors == "replace" and not replaceable):
            raise FormatError(message)
        self.count += 1
        self.first = self.first or message

    def warn(self) -> None:
        if self.count:
            did = "replaced or left out" if self.errors == "replace" else "left out"
            warnings.warn(f"{did} {self.count} faults; the first: {self.first}", stacklevel=4)


class _Rows:
    """Collects keys and rows of a stream, in order, each checked."""

    def __init__(self, faults: _Faults, encoding: str, dim: int, capacity: int | None):
        self.faults = faults
        self.encoding = encoding
        self.keys: list[str] = []
        self.seen: dict[str, str] = {}
        self.grows = capacity is None
        self.matrix = np.empty((capacity or 0, dim), dtype=np.float32)
        self.pending: list[str] = []  # keys of rows handed to close_block next
        self.places: list[int] = []

    def admit(self, raw: bytes, place: int, unit: str) -> bool:
        """Whether the row named `raw`, at line or byte `place`, goes in."""
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

    def close_block(self, values: np.ndarray, unit: str) -> None:
        """Takes the rows of the keys admitted since the last call; they may already lie in the matrix."""
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


def _read_stream(path: str, name: str, limit: int | None, encoding: str, faults: _Faults, guess: bool):
    size = os.path.getsize(path)
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"  # neither a digit nor UTF-8
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if zipped else raw
        room = size * _DEFLATE_AT_BEST if zipped else size
        try:
            if name == "bin":
                return _read_binary(stream, room, limit, encoding, faults)
            return _read_text(stream, room, name, limit, encoding, faults, guess)
        except (gzip.BadGzipFile, zlib.error) as error:
            raise FormatError(f"{path}: the gzip data is damaged: {error}") from error
        except EOFError as error:
            raise FormatError(f"{path}: the gzip data is cut short: {error}") from error


def _header(line: bytes, faults: _Faults) -> tuple[int, int]:
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


def _capacity(rows: int, dim: int, row_bytes: int, room: int, limit: int | None, faults: _Faults) -> int:
    """How many rows to make room for, held against the size of the file before anything is allocated."""
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


def _read_binary(stream: BinaryIO, room: int, limit: int | None, encoding: str, faults: _Faults):
    line = stream.readline(256)
    n_rows, dim = _header(line, faults)
    width = dim * _FLOAT.itemsize
    wanted = _capacity(n_rows, dim, width + 2, room, limit, faults)
    rows = _Rows(faults, encoding, dim, wanted)
    matrix = memoryview(rows.matrix.reshape(-1).view(np.uint8))
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
                    "without a space; the file is not word2vec binary or a key before has a space in it"
                )
            end = space + 1 + width
            if space < 0 or end > len(data):
                break
            if admit(data[begin:space], origin + begin, unit):
                matrix[filled * width : (filled + 1) * width] = data[space + 1 : end]
                filled += 1
            position = end
            read += 1
        rows.close_block(rows.matrix[first:filled], unit)
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


def _read_text(stream, room: int, name: str, limit: int | None, encoding: str, faults: _Faults, guess: bool):
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
    """Reads whole lines, the first of them line `number`, into rows, `room` at most.

    Returns how many rows it met, good or bad, how many lines, and how many bytes.
    """
    bounds, row, plain, values = kernels.parse_lines(text, dim, threads)
    met, taken, n_lines, end = 0, [], len(row), len(text)
    lines = zip(*bounds.T.tolist(), row.tolist(), plain.tolist(), strict=True)
    for i, (begin, stop, at, is_plain) in enumerate(lines):
        if met == room:
            n_lines, end = i, begin
            break
        key = text[begin:stop]
        if not is_plain:
            if not key.strip():
                continue
            key, numbers = _careful_line(key, dim, number + i, says, rows.faults)
            if key is not None:
                values[at] = numbers
        met += 1
        if key is not None and rows.admit(key, number + i, ""):
            taken.append(at)
    rows.close_block(values[taken] if len(taken) < len(values) else values, "")
    return met, n_lines, end


def _careful_line(line: bytes, dim: int, number: int, says: str, faults: _Faults) -> tuple[bytes | None, np.ndarray]:
    """The key and the numbers of one line, split by fields; no key, after saying why, when it is faulty."""
    key, *tokens = line.split()
    shown = key.decode(errors="replace")
    numbers = np.zeros(dim, np.float32)
    if len(tokens) != dim:
        hint = "a word written with a space in it looks like this too" if len(tokens) > dim else "the line is cut short"
        faults.add(f"{number}: expected {dim} numbers after {shown!r}, got {len(tokens)}. {says}; {hint}.")
        return None, numbers
    for i, token in enumerate(tokens):
        try:
            if b"_" in token:  # Python's source may group digits so, a file of numbers may not
                raise ValueError
            with np.errstate(over="ignore"):  # 1e39 is inf: a fault, which close_block reports
                numbers[i] = float(token)
        except ValueError:
            faults.add(f"{number}: expected {dim} numbers after {shown!r}, got {token[:40]!r} as the {i + 1}th")
            return None, numbers
    return key, numbers


# ---- npz and safetensors: three arrays with known names -----------------------------------------------------------


def _read_tensors(path: str, name: str, mmap: bool, limit: int | None, faults: _Faults):
    if os.path.getsize(path) == 0:
        raise FormatError(f"{path}: expected {name} data, got an empty file")
    with open(path, "rb") as stream:
        places = (_npz_places if name == "npz" else _safetensors_places)(stream, path)
        ternary = "planes" in places
        members = _TERNARY_MEMBERS if ternary else _MEMBERS
        for member, (dtype, ndim) in members.items():
            if member not in places:
                raise FormatError(f"{path}: expected arrays {', '.join(members)}, got {', '.join(places) or 'none'}")
            found = places[member]
            if found.dtype != dtype or len(found.shape) != ndim:
                raise FormatError(
                    f"{path}: expected {member} to be {dtype} with {ndim} axes, got {found.dtype} {found.shape}"
                )
        at = places["planes" if ternary else "matrix"]
        n_rows = at.shape[0]
        dim = _ternary_dim(at.shape, places["dim"].read(stream, path), path) if ternary else at.shape[1]
        offsets = places["keys_offsets"].read(stream, path)
        utf8 = places["keys_utf8"].read(stream, path).tobytes()
        if len(offsets) != n_rows + 1 or offsets[0] != 0 or offsets[-1] != len(utf8) or (np.diff(offsets) < 0).any():
            raise FormatError(
                f"{path}: expected keys_offsets to rise from 0 to {len(utf8)} in {n_rows + 1} steps, one per row of "
                "matrix and one more; they do not"
            )
        wanted = n_rows if limit is None else min(n_rows, limit)
        matrix = at.map(path, wanted) if mmap else at.read(stream, path, wanted)
    keys, kept = [], []
    seen: dict[str, int] = {}
    bounds = offsets[: wanted + 1].tolist()
    for row, (lo, hi) in enumerate(pairwise(bounds)):
        try:
            key = utf8[lo:hi].decode()
        except UnicodeDecodeError as error:
            faults.add(f" row {row}: expected a key in utf-8, got {utf8[lo:hi]!r} ({error.reason})", replaceable=True)
            if faults.errors == "skip":
                continue
            key = utf8[lo:hi].decode(errors="replace")
        if seen.setdefault(key, row) != row:
            again = f" row {row}: expected a new key, got {key!r} again; it was first at row {seen[key]}"
            faults.add(again, replaceable=True)
            continue
        keys.append(key)
        kept.append(row)
    if mmap:
        if len(kept) < wanted:
            raise FormatError(f"{path}: has faulty rows, the first: {faults.first}; it cannot be mapped, only read")
        return keys, TernaryMatrix(matrix, dim) if ternary else matrix
    if ternary:
        fine = _level_rows(matrix, dim, faults)
        if len(kept) < wanted or not fine.all():
            keys = [key for key, row in zip(keys, kept, strict=True) if fine[row]]
            matrix = matrix[[row for row in kept if fine[row]]]
        return keys, TernaryMatrix(matrix, dim)
    finite_rows = np.ones(wanted, dtype=bool)
    for lo, rows in row_blocks(matrix, numbers=1 << 20):
        finite = np.isfinite(rows)
        for i in np.flatnonzero(~finite.all(axis=1)):
            faults.add(f" row {lo + i}: expected finite numbers, got {rows[i][~finite[i]][0]}", replaceable=True)
            if faults.errors == "replace":
                rows[i][~finite[i]] = 0
            else:
                finite_rows[lo + i] = False
    if len(kept) == wanted and finite_rows.all():
        return keys, matrix
    keys = [key for key, row in zip(keys, kept, strict=True) if finite_rows[row]]
    return keys, matrix[[row for row in kept if finite_rows[row]]]


def _ternary_dim(shape: tuple[int, ...], dim: np.ndarray, path: str) -> int:
    """The numbers of a row of planes of this shape, held against what the file says."""
    if dim.shape != (1,) or dim[0] < 1 or shape[1:] != (2, -(-int(dim[0]) // 512) * 8):
        raise FormatError(
            f"{path}: expected dim to be one number, and planes of shape (n, 2, words) with 8 words for every 512 of "
            f"dim, got dim {dim.tolist()} and planes {shape}"
        )
    return int(dim[0])


def _level_rows(planes: np.ndarray, dim: int, faults: _Faults) -> np.ndarray:
    """bool (n,): which rows hold nothing but levels; the others are faults."""
    inside = np.packbits(np.arange(planes.shape[2] * 64) < dim, bitorder="little").view("<u8")
    fine = np.ones(len(planes), dtype=bool)
    for lo, rows in row_blocks(planes):
        plus, minus = rows[:, 0], rows[:, 1]
        wrong = ((plus & minus) | ((plus | minus) & ~inside)).any(axis=1)
        for i in np.flatnonzero(wrong):
            faults.add(f" row {lo + i}: expected no number to be both 1 and -1 and no bit set beyond {dim} numbers")
            fine[lo + i] = False
    return fine


class _Place:
    """Where an array lies in a file: C order, from byte `begin`."""

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...], begin: int):
        self.dtype, self.shape, self.begin = dtype, shape, begin

    def read(self, stream: BinaryIO, path: str, rows: int | None = None) -> np.ndarray:
        array = np.empty(self.shape if rows is None else (rows, *self.shape[1:]), dtype=self.dtype)
        stream.seek(self.begin)
        got = stream.readinto(memoryview(array.reshape(-1).view(np.uint8)))
        if got != array.nbytes:
            raise FormatError(f"{path}: byte {self.begin}: expected {array.nbytes} bytes, got {got}")
        return array

    def map(self, path: str, rows: int) -> np.ndarray:
        if self.begin % self.dtype.itemsize:
            raise FormatError(
                f"{path}: the matrix begins at byte {self.begin}, which is no multiple of {self.dtype.itemsize}; "
                "it cannot be mapped, only read"
            )
        shape = (rows, *self.shape[1:])
        if 0 in shape:
            return np.empty(shape, dtype=self.dtype)
        return np.memmap(path, dtype=self.dtype, mode="r", offset=self.begin, shape=shape)


def _npz_places(stream: BinaryIO, path: str) -> dict[str, _Place]:
    places = {}
    size = os.fstat(stream.fileno()).st_size
    try:
        with zipfile.ZipFile(stream) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise FormatError(f"{path}: expected {member.filename} uncompressed (np.savez), got it compressed")
                # The local header repeats the name; its extra field may differ from the directory's.
                stream.seek(member.header_offset + 26)
                lengths = stream.read(4)
                begin = (
                    member.header_offset
                    + 30
                    + int.from_bytes(lengths[:2], "little")
                    + int.from_bytes(lengths[2:], "little")
                )
                stream.seek(begin)
                version = np.lib.format.read_magic(stream)
                reader = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = reader(stream)
                if fortran and len(shape) > 1:
                    raise FormatError(f"{path}: expected {member.filename} in C order, got Fortran order")
                here = stream.tell()
                expected = here - begin + int(np.prod(shape, dtype=object)) * dtype.itemsize
                if expected != member.file_size or begin + member.file_size > size:
                    raise FormatError(
                        f"{path}: byte {begin}: expected {member.filename} to hold {shape} {dtype}, {expected} bytes, "
                        f"got {member.file_size}"
                    )
                places[member.filename.removesuffix(".npy")] = _Place(dtype, shape, here)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, SyntaxError, TokenError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: expected an npz archive: {error}") from error
    return places


def _safetensors_places(stream: BinaryIO, path: str) -> dict[str, _Place]:
    _, entries = read_header(stream, path)
    other = np.dtype("V1")
    return {name: _Place(DTYPES.get(entry.dtype, other), entry.shape, entry.begin) for name, entry in entries.items()}


# ---- writing for others -------------------------------------------------------------------------------------------


def write_projector(directory: str | os.PathLike, keys: list[str], matrix: np.ndarray) -> None:
    """Writes tensors.tsv and metadata.tsv (one key a line) as https://projector.tensorflow.org loads them.

    Raises:
        ValueError: a key has a tab or a line break in it.
    """
    for key in keys:
        if not key or any(mark in key for mark in "\t\r\n"):
            raise ValueError(f"key {key!r} is empty or has a tab or line break in it, which the projector cannot show")
    encoded = [_encoded(key) for key in keys]
    Path(directory).mkdir(parents=True, exist_ok=True)
    with replacing(Path(directory) / "tensors.tsv") as stream:
        _write_lines(stream, None, matrix, "\t")
    with replacing(Path(directory) / "metadata.tsv") as stream:
        stream.write(b"".join(key + b"\n" for key in encoded))
