"""npz and safetensors files of vectors: the arrays matrix (or planes and dim), keys_offsets and keys_utf8."""

import os
import zipfile
from io import BufferedReader
from itertools import pairwise
from tokenize import TokenError
from typing import BinaryIO

import numpy as np

from embfast.errors import FormatError
from embfast.files.faults import Faults
from embfast.files.tensors import ALIGNMENT, DTYPES, FLOAT, read_header, row_blocks, write_array
from embfast.files.ternary import TernaryMatrix

_Members = dict[str, tuple[np.dtype, int]]  # type and number of axes of each array
_KEYS: _Members = {"keys_offsets": (np.dtype("<i8"), 1), "keys_utf8": (np.dtype("u1"), 1)}
_MEMBERS: _Members = {"matrix": (FLOAT, 2), **_KEYS}
_TERNARY_MEMBERS: _Members = {"planes": (np.dtype("<u8"), 3), "dim": (np.dtype("<i8"), 1), **_KEYS}


def write_npz(stream: BinaryIO, tensors: dict[str, np.ndarray]) -> None:
    """Writes an uncompressed npz file, each array aligned to 64 bytes (zipalign's padding field) for memory-mapping."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in tensors.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            zip64 = 20  # bytes added to the local header by force_zip64
            begin = stream.tell() + 30 + len(member.filename) + zip64 + 4
            padding = -begin % ALIGNMENT
            member.extra = b"\x35\xd9" + padding.to_bytes(2, "little") + b"\0" * padding
            with archive.open(member, "w", force_zip64=True) as out:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(out, header)
                write_array(out, array)


def read_tensors(
    path: str, name: str, mmap: bool, limit: int | None, faults: Faults
) -> tuple[list[str], np.ndarray | TernaryMatrix]:
    """Reads keys and matrix of an "npz" or "safetensors" file; see formats.read."""
    if os.path.getsize(path) == 0:
        raise FormatError(f"{path}: expected {name} data, got an empty file")
    with open(path, "rb") as stream:
        places = (_npz_places if name == "npz" else _safetensors_places)(stream, path)
        ternary = "planes" in places
        _check_members(places, _TERNARY_MEMBERS if ternary else _MEMBERS, path)
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
    keys, kept = _read_keys(utf8, offsets[: wanted + 1].tolist(), faults)
    if mmap:
        if len(kept) < wanted:
            raise FormatError(f"{path}: has faulty rows, the first: {faults.first}; it cannot be mapped, only read")
        return keys, TernaryMatrix(matrix, dim) if ternary else matrix
    fine = _level_rows(matrix, dim, faults) if ternary else _finite_rows(matrix, faults)
    if len(kept) < wanted or not fine.all():
        keys = [key for key, row in zip(keys, kept, strict=True) if fine[row]]
        matrix = matrix[[row for row in kept if fine[row]]]
    return keys, TernaryMatrix(matrix, dim) if ternary else matrix


def _check_members(places: dict[str, "_Place"], members: _Members, path: str) -> None:
    for member, (dtype, ndim) in members.items():
        if member not in places:
            raise FormatError(f"{path}: expected arrays {', '.join(members)}, got {', '.join(places) or 'none'}")
        found = places[member]
        if found.dtype != dtype or len(found.shape) != ndim:
            raise FormatError(
                f"{path}: expected {member} to be {dtype} with {ndim} axes, got {found.dtype} {found.shape}"
            )


def _read_keys(utf8: bytes, bounds: list[int], faults: Faults) -> tuple[list[str], list[int]]:
    """The valid keys and their row numbers."""
    keys, kept = [], []
    seen: dict[str, int] = {}
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
    return keys, kept


def _finite_rows(matrix: np.ndarray, faults: Faults) -> np.ndarray:
    """bool (n,): which rows are finite; the others are faults, whose numbers become 0 under "replace"."""
    fine = np.ones(len(matrix), dtype=bool)
    for lo, rows in row_blocks(matrix, numbers=1 << 20):
        finite = np.isfinite(rows)
        for i in np.flatnonzero(~finite.all(axis=1)):
            faults.add(f" row {lo + i}: expected finite numbers, got {rows[i][~finite[i]][0]}", replaceable=True)
            if faults.errors == "replace":
                rows[i][~finite[i]] = 0
            else:
                fine[lo + i] = False
    return fine


def _ternary_dim(shape: tuple[int, ...], dim: np.ndarray, path: str) -> int:
    """The number of columns that the file states, checked against the shape of planes."""
    if dim.shape != (1,) or dim[0] < 1 or shape[1:] != (2, -(-int(dim[0]) // 512) * 8):
        raise FormatError(
            f"{path}: expected dim to be one number, and planes of shape (n, 2, words) with 8 words for every 512 of "
            f"dim, got dim {dim.tolist()} and planes {shape}"
        )
    return int(dim[0])


def _level_rows(planes: np.ndarray, dim: int, faults: Faults) -> np.ndarray:
    """bool (n,): which rows hold only levels; the others are faults."""
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
    """Position of an array in a file: C order, starting at byte `begin`."""

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...], begin: int) -> None:
        self.dtype, self.shape, self.begin = dtype, shape, begin

    def read(self, stream: BufferedReader, path: str, rows: int | None = None) -> np.ndarray:
        array = np.empty(self.shape if rows is None else (rows, *self.shape[1:]), dtype=self.dtype)
        stream.seek(self.begin)
        got = stream.readinto(array.reshape(-1).view(np.uint8).data)
        if got != array.nbytes:
            raise FormatError(f"{path}: byte {self.begin}: expected {array.nbytes} bytes, got {got}")
        return array

    def map(self, path: str, rows: int) -> np.ndarray:
        if self.begin % self.dtype.itemsize:
            raise FormatError(
                f"{path}: the matrix begins at byte {self.begin}, which is not a multiple of {self.dtype.itemsize}; "
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
                # The local header repeats the name, and its extra field may differ from that in the directory.
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
