"""Matrices of -1, 0 and 1 in two bits a number: from features by thresholds, and exact search by counting bits."""

from typing import Any

import numpy as np

from embfast import kernels

LOWER, UPPER = -0.25, 0.15  # in standard deviations from the mean

_NUMBERS = 1 << 22  # levels unpacked, or features read, at once
_QUERIES = 256
_ROWS = 1 << 16
_WORK = 1 << 30  # words of planes met in one call of the search: a fraction of a second


def thresholds(
    mean: np.ndarray, sd: np.ndarray, lower: float = LOWER, upper: float = UPPER
) -> tuple[np.ndarray, np.ndarray]:
    """What each feature is compared with, float32 (dim,) low and high, to get its level without standardising it.

    With z = (x - mean) / sd in float64, x > high exactly where z > upper, and x < low exactly where z < lower, for
    every float32 x but NaN. A feature of sd 0 gets -inf and inf: its level is always 0.

    >>> low, high = thresholds(np.array([10.0, 3.0]), np.array([2.0, 0.0]), -0.25, 0.125)
    >>> low.tolist(), high.tolist()
    ([9.5, -inf], [10.25, inf])

    Settings:
        mean, sd: float64 (dim,), of the features.
        lower, upper: in standard deviations.

    Raises:
        ValueError: lower is above upper, sd is negative, or a number is not finite.
    Source: Garcia-Gasulla et al. 2017, arXiv:1705.07706, section 3.3, for -0.25 and 0.15.
    """
    mean, sd = np.asarray(mean, dtype=np.float64), np.asarray(sd, dtype=np.float64)
    if mean.ndim != 1 or mean.shape != sd.shape:
        raise ValueError(f"expected one mean and one sd for each feature, got shapes {mean.shape} and {sd.shape}")
    if not np.isfinite([lower, upper]).all() or lower > upper:
        raise ValueError(f"expected finite thresholds, lower <= upper, got {lower} and {upper}")
    wrong = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(sd) & (sd >= 0)))
    if len(wrong):
        i = wrong[0]
        raise ValueError(f"expected a finite mean and an sd of 0 or more, got {mean[i]} and {sd[i]} for feature {i}")
    varies = sd > 0
    low, high = np.full(mean.shape, -np.inf, np.float32), np.full(mean.shape, np.inf, np.float32)
    mean, sd = mean[varies], sd[varies]
    with np.errstate(over="ignore"):
        high[varies] = _last_below(lambda x: (x - mean) / sd > upper, len(mean))
        low[varies] = -_last_below(lambda x: (-x - mean) / sd < lower, len(mean))
    return low, high


def _last_below(passes: Any, dim: int) -> np.ndarray:
    """float32 (dim,): the largest numbers at which passes(x), false at -inf and true from somewhere on, is false."""
    infinity = np.int64(0x7F800000)
    fails, succeeds = np.full(dim, -infinity), np.full(dim, infinity)
    for _ in range(32):  # halves the float32 numbers between them, counted in their order
        middle = (fails + succeeds) >> 1
        high = passes(_number(middle).astype(np.float64))
        fails, succeeds = np.where(high, fails, middle), np.where(high, middle, succeeds)
    return _number(fails)


def _number(place: np.ndarray) -> np.ndarray:
    """The float32 at a place in the order of all float32 numbers; 0 is at 0."""
    magnitude = np.abs(place).astype(np.int32).view(np.float32)
    return np.where(place < 0, -magnitude, magnitude)


def levels(features: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """int8 (n, dim): 1 where a feature is above its high threshold, -1 where it is below its low one, else 0.

    >>> levels(np.array([[9, 10, 11]], np.float32), np.full(3, 9.5, np.float32), np.full(3, 10.3, np.float32)).tolist()
    [[-1, 0, 1]]

    Raises:
        ValueError: a feature is NaN.
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    out = np.empty(features.shape, dtype=np.int8)
    _refuse_nan(kernels.ternary_levels(features, low, high, out), features, 0)
    return out


def _refuse_nan(row: int, features: np.ndarray, first: int) -> None:
    if row >= 0:
        column = int(np.argmax(np.isnan(features[row])))
        raise ValueError(f"expected features that are numbers, got NaN in row {first + row}, column {column}")


class TernaryMatrix:
    """An int8 matrix (n, dim) of -1, 0 and 1, kept in two bits a number; give it to Vectors as its matrix.

    >>> rows = TernaryMatrix.from_rows(np.array([[1, 0, -1], [0, 0, 1], [1, 1, -1]], dtype=np.int8))
    >>> rows.shape, rows[0].tolist(), rows[1:].tolist()
    ((3, 3), [1, 0, -1], [[0, 0, 1], [1, 1, -1]])
    >>> ids, cosines = rows.top(rows.take([0]), k=2)
    >>> ids.tolist(), [round(cosine, 4) for cosine in cosines[0].tolist()]
    ([[0, 2]], [1.0, 0.8165])

    Reading rows unpacks these rows alone; nothing turns the whole into an array but to_float32.

    Learned or given:
        planes: uint64 (n, 2, words), as kernels.bit_planes makes it; used as given, so it may be memory-mapped.
        dim: numbers per row.
    """

    dtype = np.dtype(np.int8)
    ndim = 2

    def __init__(self, planes: np.ndarray, dim: int):
        words = -(-dim // 512) * 8
        if planes.dtype != np.uint64 or planes.ndim != 3 or planes.shape[1:] != (2, words) or dim < 1:
            raise ValueError(
                f"expected uint64 planes of shape (n, 2, {words}) for {dim} numbers a row, got {planes.dtype} "
                f"{planes.shape}"
            )
        self.planes = planes if planes.flags.c_contiguous else np.ascontiguousarray(planes)
        self.dim = dim
        self._nonzeros: np.ndarray | None = None

    @classmethod
    def from_rows(cls, rows: np.ndarray) -> "TernaryMatrix":
        """Packs a matrix (n, dim) of any type that holds -1, 0 and 1 and nothing else, a block at a time.

        Raises:
            ValueError: another number, or no matrix.
        """
        if rows.ndim != 2 or not rows.shape[1]:
            raise ValueError(f"expected a matrix with at least one column, got shape {rows.shape}")
        n, dim = rows.shape
        planes = kernels.bit_planes(n, dim)
        half = np.full(dim, 0.5, dtype=np.float32)
        for lo, hi in _blocks(n, dim):
            block = np.asarray(rows[lo:hi])
            wrong = np.argwhere(~((block == 0) | (block == 1) | (block == -1)))
            if len(wrong):
                row, column = wrong[0].tolist()
                raise ValueError(f"expected -1, 0 and 1, got {block[row, column]} in row {lo + row}, column {column}")
            kernels.ternary_pack(block.astype(np.float32), -half, half, planes[lo:hi])
        return cls(planes, dim)

    @classmethod
    def from_features(
        cls,
        features: Any,
        low: np.ndarray,
        high: np.ndarray,
        planes: np.ndarray | None = None,
        *,
        device: str = "cpu",
    ) -> "TernaryMatrix":
        """Compares each feature with its two thresholds: see thresholds, and levels.

        Settings:
            features: float32 (n, dim), which may be mapped; read once, 16 MB at a time. With a device also a
                CuPy's array on it, in C order, which never leaves it.
            low, high: float32 (dim,).
            planes: where the result goes, say a mapped file; new memory when None.
            device: "cpu", or "cuda", "cuda:1", "auto" as in Word2Vec: where rows are packed, to the same bits.

        Raises:
            ValueError: a feature is NaN.
        """
        if features.ndim != 2 or not features.shape[1]:
            raise ValueError(f"expected a matrix with at least one column, got shape {features.shape}")
        n, dim = features.shape
        planes = kernels.bit_planes(n, dim) if planes is None else planes
        found, _ = kernels.device(device)
        if found is not None:
            packer = kernels.device_packer(found, low, high)
            wrong = [packer.pack(features[lo:hi], planes[lo:hi], lo) for lo, hi in _blocks(n, dim)]
            for first, row in filter(None, [*wrong, packer.finish()]):
                column = int(np.isnan(packer.row(features, first + row)).argmax())
                raise ValueError(f"expected features that are numbers, got NaN in row {first + row}, column {column}")
            return cls(planes, dim)
        for lo, hi in _blocks(n, dim):
            block = np.ascontiguousarray(features[lo:hi], dtype=np.float32)
            _refuse_nan(kernels.ternary_pack(block, low, high, planes[lo:hi]), block, lo)
        return cls(planes, dim)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.planes), self.dim

    @property
    def nbytes(self) -> int:
        """Bytes of the planes."""
        return self.planes.nbytes

    def __len__(self) -> int:
        return len(self.planes)

    def __repr__(self) -> str:
        return f"TernaryMatrix({len(self)} rows, dim={self.dim})"

    def __getitem__(self, rows: Any) -> np.ndarray:
        """int8 (dim,) of one row, or (m, dim) of a slice, of row numbers, or of a mask."""
        if isinstance(rows, tuple):
            raise TypeError("expected row numbers; columns cannot be taken from bit planes")
        planes = np.ascontiguousarray(self.planes[rows])
        if planes.ndim == 2:
            return self._unpacked(planes[None])[0]
        return self._unpacked(planes)

    def _unpacked(self, planes: np.ndarray) -> np.ndarray:
        out = np.empty((len(planes), self.dim), dtype=np.int8)
        kernels.ternary_unpack(planes, out)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError(
            f"a TernaryMatrix is not unpacked unasked: matrix[a:b] is int8, matrix.to_float32() all of it in "
            f"{4 * self.dim * len(self) / 2**20:,.0f} MB"
        )

    def take(self, rows: Any) -> "TernaryMatrix":
        """These rows, still packed: a view for a slice, else a copy."""
        return TernaryMatrix(self.planes[rows], self.dim)

    def to_float32(self) -> np.ndarray:
        """The whole as float32 (n, dim), 16 times the memory."""
        out = np.empty(self.shape, dtype=np.float32)
        for lo, hi in _blocks(*self.shape):
            out[lo:hi] = self[lo:hi]
        return out

    @property
    def nonzeros(self) -> np.ndarray:
        """int32 (n,): how many numbers of each row are not 0; counted once."""
        if self._nonzeros is None:
            counts = np.empty(len(self), dtype=np.int32)
            for lo in range(0, len(self), _ROWS):
                kernels.ternary_nonzeros(self.planes[lo : lo + _ROWS], counts[lo : lo + _ROWS])
            self._nonzeros = counts
        return self._nonzeros

    def top(
        self,
        queries: "TernaryMatrix",
        k: int,
        *,
        stop: int | None = None,
        excluded: np.ndarray | None = None,
        own: np.ndarray | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k rows of highest cosine for each query, exactly; of equal cosines the lower row comes first.

        Settings:
            queries: m rows of the same dim.
            stop: search the rows before it only.
            excluded: row numbers that are never returned.
            own: int64 (m,), for each query a row that is not returned to it, or -1.
            threads: all cores when None; the answer does not depend on them.
        Returns:
            ids int64 (m, k), best first, and float32 (m, k), the cosines; -1 and -inf where rows run out. The cosine
            with a row of zeros is 0.

        Reads the planes once, front to back, for every 256 queries. Beside the answer it holds 16 bytes for each of k
        rows, 256 queries and thread.
        """
        if queries.dim != self.dim:
            raise ValueError(f"expected queries of {self.dim} numbers, got {queries.dim}")
        stop = len(self) if stop is None else min(stop, len(self))
        m, words = len(queries), self.planes.shape[2]
        ids, keys = np.full((m, k), -1, dtype=np.int64), np.full((m, k), -np.inf)
        left_out = None
        if excluded is not None and len(excluded):
            left_out = np.zeros(len(self), dtype=np.uint8)
            left_out[excluded] = 1
        step = max(1, min(_ROWS, _WORK // (words * max(1, min(m, _QUERIES)))))
        for lo in range(0, stop, step):
            hi = min(lo + step, stop)
            for first in range(0, m, _QUERIES):
                part = slice(first, first + _QUERIES)
                kernels.ternary_top(
                    queries.planes[part],
                    self.planes[lo:hi],
                    self.nonzeros[lo:hi],
                    excluded=None if left_out is None else left_out[lo:hi],
                    own=None if own is None else own[part],
                    first=lo,
                    ids=ids[part],
                    keys=keys[part],
                    threads=kernels.cores() if threads is None else threads,
                )
        lengths = np.maximum(queries.nonzeros, 1)[:, None]
        return ids, (np.sign(keys) * np.sqrt(np.abs(keys) / lengths)).astype(np.float32)


def _blocks(n: int, dim: int) -> list[tuple[int, int]]:
    step = max(1, _NUMBERS // dim)
    return [(lo, min(lo + step, n)) for lo in range(0, n, step)]
