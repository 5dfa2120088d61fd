"""Mean and standard deviation of every column in one pass over chunks of rows.

Source: Chan, Golub, LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances.
"""

import numpy as np

_CHUNK_NUMBERS = 1 << 18  # 2 MB in float64


class Moments:
    """Count, mean and standard deviation (ddof 0) of columns whose rows arrive in chunks.

    >>> moments = Moments(2)
    >>> for rows in ([[1, 7], [2, 7]], [[6, 7]]):
    ...     moments.add(np.array(rows, dtype=np.float32))
    >>> moments.n, moments.mean.tolist(), moments.sd.round(6).tolist()
    (3, [3.0, 7.0], [2.160247, 0.0])

    The first row is subtracted from every row, in float64: a constant column has an sd of exactly 0, and a large offset
    costs no digits. Memory: three numbers per column, and 2 MB besides the caller's rows.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self._origin = np.zeros(dim)  # the first row
        self._mean = np.zeros(dim)  # mean of the rows minus the origin
        self._squares = np.zeros(dim)  # summed squares of the deviations from that mean

    def add(self, rows: np.ndarray) -> None:
        """Adds rows, (n, dim) of any float or integer dtype.

        Raises:
            ValueError: the rows have another size or a number that is not finite. None of them is added then.
        """
        dim = len(self._mean)
        if rows.ndim != 2 or rows.shape[1] != dim:
            raise ValueError(f"expected rows of {dim} numbers, got shape {rows.shape}")
        if not len(rows):
            return
        added = Moments(dim)
        added._origin = self._origin if self.n else rows[0].astype(np.float64)
        step = max(1, _CHUNK_NUMBERS // max(1, dim))
        with np.errstate(invalid="ignore", over="ignore"):
            for lo in range(0, len(rows), step):
                chunk = rows[lo : lo + step].astype(np.float64)
                chunk -= added._origin
                mean = chunk.mean(axis=0)
                chunk -= mean
                added._combine(len(chunk), mean, np.einsum("nd,nd->d", chunk, chunk))
        if not np.isfinite(added._squares).all():
            row, column = _first_not_finite(rows)
            raise ValueError(
                f"expected finite numbers, got {rows[row, column]} in row {self.n + row}, column {column}"
                if row >= 0
                else "expected numbers whose squares fit in a float64, got larger ones"
            )
        self._origin = added._origin
        self._combine(added.n, added._mean, added._squares)

    def merge(self, other: "Moments") -> None:
        """Adds all rows that `other` has seen.

        Raises:
            ValueError: the numbers of columns differ.
        """
        if len(other._mean) != len(self._mean):
            raise ValueError(f"expected moments of {len(self._mean)} columns, got {len(other._mean)}")
        if not self.n:
            self._origin = other._origin
        if other.n:
            self._combine(other.n, other._mean + (other._origin - self._origin), other._squares)

    def _combine(self, n: int, mean: np.ndarray, squares: np.ndarray) -> None:
        difference = mean - self._mean
        ratio = n / (self.n + n)
        self._squares = self._squares + squares + difference**2 * (self.n * ratio)
        self._mean = self._mean + difference * ratio
        self.n += n

    @property
    def mean(self) -> np.ndarray:
        """Mean of each column, float64 (dim,). ValueError before the first row."""
        self._need_rows()
        return self._origin + self._mean

    @property
    def sd(self) -> np.ndarray:
        """Standard deviation of each column with ddof 0, float64 (dim,). ValueError before the first row."""
        self._need_rows()
        return np.sqrt(self._squares / self.n)

    def _need_rows(self) -> None:
        if not self.n:
            raise ValueError("expected at least one row, got none")


def _first_not_finite(rows: np.ndarray) -> tuple[int, int]:
    """Row and column of the first number that is not finite, or (-1, -1)."""
    step = max(1, _CHUNK_NUMBERS // max(1, rows.shape[1]))
    for lo in range(0, len(rows), step):
        wrong = np.argwhere(~np.isfinite(rows[lo : lo + step]))
        if len(wrong):
            return lo + int(wrong[0, 0]), int(wrong[0, 1])
    return -1, -1
