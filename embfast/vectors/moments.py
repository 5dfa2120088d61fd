"""Mean and standard deviation of every column, in one pass over blocks of rows."""

import numpy as np

_NUMBERS = 1 << 18  # of a block that is worked on at once: 2 MB in float64


class Moments:
    """The number of rows, mean and standard deviation (ddof 0) of columns whose rows come in blocks.

    >>> moments = Moments(2)
    >>> for block in ([[1, 7], [2, 7]], [[6, 7]]):
    ...     moments.add(np.array(block, dtype=np.float32))
    >>> moments.n, moments.mean.tolist(), moments.sd.round(6).tolist()
    (3, [3.0, 7.0], [2.160247, 0.0])

    Every number is taken relative to the first row, in float64: a column that never changes has an sd of exactly 0, and
    a large offset costs no digits. Holds three numbers a column and 2 MB beside the caller's block.
    Source: Chan, Golub, LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances.
    """

    def __init__(self, dim: int):
        self.n = 0
        self._origin = np.zeros(dim)  # the first row
        self._mean = np.zeros(dim)  # of the rows less the origin
        self._squares = np.zeros(dim)  # summed, of their distances from that mean

    def add(self, rows: np.ndarray) -> None:
        """Takes in rows, (n, dim) of any float or integer type.

        Raises:
            ValueError: rows of another size, or a number that is not finite; nothing of these rows is taken in.
        """
        dim = len(self._mean)
        if rows.ndim != 2 or rows.shape[1] != dim:
            raise ValueError(f"expected rows of {dim} numbers, got shape {rows.shape}")
        if not len(rows):
            return
        added = Moments(dim)
        added._origin = self._origin if self.n else rows[0].astype(np.float64)
        step = max(1, _NUMBERS // max(1, dim))
        with np.errstate(invalid="ignore", over="ignore"):
            for lo in range(0, len(rows), step):
                block = rows[lo : lo + step].astype(np.float64)
                block -= added._origin
                mean = block.mean(axis=0)
                block -= mean
                added._combine(len(block), mean, np.einsum("nd,nd->d", block, block))
        if not np.isfinite(added._squares).all():
            row, column = _first_not_finite(rows)
            raise ValueError(
                f"expected finite numbers, got {rows[row, column]} in row {self.n + row}, column {column}"
                if row >= 0
                else "expected numbers whose squares a float64 can hold, got larger ones"
            )
        self._origin = added._origin
        self._combine(added.n, added._mean, added._squares)

    def merge(self, other: "Moments") -> None:
        """Takes in the rows that another has seen.

        Raises:
            ValueError: the other is of another number of columns.
        """
        if len(other._mean) != len(self._mean):
            raise ValueError(f"expected moments of {len(self._mean)} columns, got {len(other._mean)}")
        if not self.n:
            self._origin = other._origin
        if other.n:
            self._combine(other.n, other._mean + (other._origin - self._origin), other._squares)

    def _combine(self, n: int, mean: np.ndarray, squares: np.ndarray) -> None:
        apart = mean - self._mean
        share = n / (self.n + n)
        self._squares = self._squares + squares + apart**2 * (self.n * share)
        self._mean = self._mean + apart * share
        self.n += n

    @property
    def mean(self) -> np.ndarray:
        """float64 (dim,). ValueError before the first row."""
        self._need_rows()
        return self._origin + self._mean

    @property
    def sd(self) -> np.ndarray:
        """float64 (dim,): the standard deviation, with ddof 0. ValueError before the first row."""
        self._need_rows()
        return np.sqrt(self._squares / self.n)

    def _need_rows(self) -> None:
        if not self.n:
            raise ValueError("expected at least one row, got none")


def _first_not_finite(rows: np.ndarray) -> tuple[int, int]:
    step = max(1, _NUMBERS // max(1, rows.shape[1]))
    for lo in range(0, len(rows), step):
        wrong = np.argwhere(~np.isfinite(rows[lo : lo + step]))
        if len(wrong):
            return lo + int(wrong[0, 0]), int(wrong[0, 1])
    return -1, -1
