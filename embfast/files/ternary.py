"""Ternary matrices, two bits per number: made from features by thresholds, searched exactly by counting bits."""

from typing import Any

import numpy as np

from embfast import kernels

LOWER, UPPER = -0.25, 0.15  # in standard deviations from the mean

_CHUNK_NUMBERS = 1 << 22  # levels unpacked, or features read, at once
_CHUNK_QUERIES = 256
_CHUNK_ROWS = 1 << 16
_CHUNK_WORDS = 1 << 30  # 64-bit words compared in one kernel call: a fraction of a second


def thresholds(
    mean: np.ndarray, sd: np.ndarray, lower: float = LOWER, upper: float = UPPER
) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds low and high, float32 (dim,), that ternarize features without standardising them.

    With z = (x - mean) / sd in float64, x > high exactly if z > upper, and x < low exactly if z < lower, for every
    float32 x except NaN. A feature with sd 0 gets -inf and inf: its level is always 0.

    >>> low, high = thresholds(np.array([10.0, 3.0]), np.array([2.0, 0.0]), -0.25, 0.125)
    >>> low.tolist(), high.tolist()
    ([9.5, -inf], [10.25, inf])

    Args:
        mean, sd: Mean and standard deviation of each feature, float64 (dim,).
        lower, upper: Thresholds in standard deviations from the mean.

    Raises:
        ValueError: lower is greater than upper, an sd is negative, or a number is not finite.
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
    """float32 (dim,): the largest x for which passes(x) is false; passes is false at -inf and rises to true once."""
    infinity = np.int64(0x7F800000)
    fails, succeeds = np.full(dim, -infinity), np.full(dim, infinity)
    for _ in range(32):  # bisects the ordered float32 numbers
        middle = (fails + succeeds) >> 1
        high = passes(_number(middle).astype(np.float64))
        fails, succeeds = np.where(high, fails, middle), np.where(high, middle, succeeds)
    return _number(fails)


def _number(place: np.ndarray) -> np.ndarray:
    """The float32 at a position in the order of all float32 numbers; 0 is at position 0."""
    magnitude = np.abs(place).astype(np.int32).view(np.float32)
    return np.where(place < 0, -magnitude, magnitude)


def levels(features: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Ternarizes features: int8 (n, dim), 1 above the high threshold, -1 below the low one, otherwise 0.

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
        raise ValueError(f"features must not be NaN, got NaN in row {first + row}, column {column}")


class TernaryMatrix:
    """A matrix (n, dim) of -1, 0 and 1, packed in two bits per number; Vectors accepts it as matrix.

    >>> rows = TernaryMatrix.from_rows(np.array([[1, 0, -1], [0, 0, 1], [1, 1, -1]], dtype=np.int8))
    >>> rows.shape, rows[0].tolist(), rows[1:].tolist()
    ((3, 3), [1, 0, -1], [[0, 0, 1], [1, 1, -1]])
    >>> ids, cosines = rows.top(rows.take([0]), k=2)
    >>> ids.tolist(), [round(cosine, 4) for cosine in cosines[0].tolist()]
    ([[0, 2]], [1.0, 0.8165])

    Indexing unpacks only the selected rows, as int8. Only to_float32 unpacks the whole matrix.

    Attributes:
        planes: uint64 (n, 2, words), the bits of the 1s and of the -1s, in the layout of kernels.bit_planes. It is used
            as given, so it may be memory-mapped.
        dim: Number of columns.
    """

    dtype = np.dtype(np.int8)
    ndim = 2

    def __init__(self, planes: np.ndarray, dim: int) -> None:
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
        """Packs a matrix (n, dim) of any dtype that only holds -1, 0 and 1, chunk by chunk.

        Raises:
            ValueError: the array holds another number, or is not a matrix.
        """
        if rows.ndim != 2 or not rows.shape[1]:
            raise ValueError(f"expected a matrix with at least one column, got shape {rows.shape}")
        n, dim = rows.shape
        planes = kernels.bit_planes(n, dim)
        half = np.full(dim, 0.5, dtype=np.float32)
        for lo, hi in _chunks(n, dim):
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
        """Ternarizes features with two thresholds per column: see thresholds and levels.

        Args:
            features: float32 (n, dim), possibly memory-mapped; read once, 16 MB at a time. On a device also a
                C-contiguous CuPy array, which stays there.
            low, high: Thresholds, float32 (dim,).
            planes: Array for the result, for example a memory-mapped file. Default: a new one.
            device: Where to pack: "cpu", "cuda", "cuda:1" or "auto", as in Word2Vec. All give the same bits.

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
            wrong = [packer.pack(features[lo:hi], planes[lo:hi], lo) for lo, hi in _chunks(n, dim)]
            for first, row in filter(None, [*wrong, packer.finish()]):
                column = int(np.isnan(packer.row(features, first + row)).argmax())
                raise ValueError(f"features must not be NaN, got NaN in row {first + row}, column {column}")
            return cls(planes, dim)
        for lo, hi in _chunks(n, dim):
            block = np.ascontiguousarray(features[lo:hi], dtype=np.float32)
            _refuse_nan(kernels.ternary_pack(block, low, high, planes[lo:hi]), block, lo)
        return cls(planes, dim)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.planes), self.dim

    @property
    def nbytes(self) -> int:
        """Size of the planes in bytes."""
        return self.planes.nbytes

    def __len__(self) -> int:
        return len(self.planes)

    def __repr__(self) -> str:
        return f"TernaryMatrix({len(self)} rows, dim={self.dim})"

    def __getitem__(self, rows: Any) -> np.ndarray:
        """One row, int8 (dim,), or the rows of a slice, of row numbers or of a mask, int8 (m, dim)."""
        if isinstance(rows, tuple):
            raise TypeError("expected row numbers; a TernaryMatrix cannot be indexed by column")
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
            f"a TernaryMatrix does not convert implicitly; unpack rows with matrix[a:b] (int8), or all of it with "
            f"matrix.to_float32(), which takes {4 * self.dim * len(self) / 2**20:,.0f} MB"
        )

    def take(self, rows: Any) -> "TernaryMatrix":
        """The selected rows, still packed: a view for a slice, otherwise a copy."""
        return TernaryMatrix(self.planes[rows], self.dim)

    def to_float32(self) -> np.ndarray:
        """The whole matrix as float32 (n, dim), which takes 16 times the memory."""
        out = np.empty(self.shape, dtype=np.float32)
        for lo, hi in _chunks(*self.shape):
            out[lo:hi] = self[lo:hi]
        return out

    @property
    def nonzeros(self) -> np.ndarray:
        """int32 (n,): the number of nonzeros in each row; counted at first use and kept."""
        if self._nonzeros is None:
            counts = np.empty(len(self), dtype=np.int32)
            for lo in range(0, len(self), _CHUNK_ROWS):
                kernels.ternary_nonzeros(self.planes[lo : lo + _CHUNK_ROWS], counts[lo : lo + _CHUNK_ROWS])
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
        """The k rows of highest cosine for each query, exact; rows with equal cosines are ordered by row number.

        Args:
            queries: m rows with the same number of columns.
            stop: Search only the rows before this one.
            excluded: Row numbers that are never returned.
            own: int64 (m,), one row per query that is not returned for it, or -1.
            threads: Number of threads. Default: all cores. The result does not depend on it.
        Returns:
            ids int64 (m, k), best first, and cosines float32 (m, k). If fewer than k rows qualify the rest is -1 and
            -inf. The cosine with a zero row is 0.

        Every 256 queries read the planes once, front to back. Besides the answer the search holds 16 * 256 * k bytes
        per thread.
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
        step = max(1, min(_CHUNK_ROWS, _CHUNK_WORDS // (words * max(1, min(m, _CHUNK_QUERIES)))))
        for lo in range(0, stop, step):
            hi = min(lo + step, stop)
            for first in range(0, m, _CHUNK_QUERIES):
                part = slice(first, first + _CHUNK_QUERIES)
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


def _chunks(n: int, dim: int) -> list[tuple[int, int]]:
    step = max(1, _CHUNK_NUMBERS // dim)
    return [(lo, min(lo + step, n)) for lo in range(0, n, step)]
