"""Search of matrix rows by cosine: exact, in bounded memory, over float32 or ternary rows; and approximate, by HNSW."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from embfast.files.ternary import TernaryMatrix

_CHUNK_SCORES = 1 << 20  # scores held at once: 4 MB
_CHUNK_NUMBERS = 1 << 22  # numbers of a ternary matrix unpacked to float32 at once: 16 MB
_CHUNK_QUERIES = 256
_MAX_CHUNK_ROWS = 1 << 16
_LOWEST = np.finfo(np.float32).min
_TINY = 1e-37  # a shorter row has no direction in float32


def unit(vectors: np.ndarray) -> np.ndarray:
    """float64, each vector of the last axis scaled to length 1; zero stays zero, a non-finite vector becomes NaN."""
    vectors = np.asarray(vectors, dtype=np.float64)
    lengths = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    with np.errstate(invalid="ignore"):
        return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=~(lengths <= _TINY))


class CosineSearch:
    """Exact nearest neighbours among the rows of a matrix, float32 (n, dim) or ternary.

    All searches return ids int64 (m, k), best first, and scores float32 (m, k), padded with -1 and -inf. Equal scores
    are ordered by row. They take `restrict` (search only the first rows; None for all) and `excluded` (int64, rows
    that are never returned). A zero row scores 0; a row that is not finite is never returned.

    Row norms are computed at the first search and kept.
    """

    def __init__(self, matrix: np.ndarray | TernaryMatrix) -> None:
        self.matrix = matrix
        self._norms: np.ndarray | None = None
        self._inverse: np.ndarray | None = None

    @property
    def norms(self) -> np.ndarray:
        """float32 (n,): the Euclidean norm of each row."""
        if self._norms is None and isinstance(self.matrix, TernaryMatrix):
            self._norms = np.sqrt(self.matrix.nonzeros, dtype=np.float32)
        if self._norms is None:
            norms = np.empty(len(self.matrix), dtype=np.float32)
            step = max(1, _CHUNK_SCORES // max(1, self.matrix.shape[1]))
            for lo in range(0, len(norms), step):
                rows = self.matrix[lo : lo + step].astype(np.float64)
                with np.errstate(invalid="ignore", over="ignore"):
                    norms[lo : lo + step] = np.sqrt(np.einsum("nd,nd->n", rows, rows))
            self._norms = norms
        return self._norms

    def cosines(self, units: np.ndarray, lo: int, hi: int) -> np.ndarray:
        """float32 (m, hi - lo): cosines of m unit vectors, float32 (m, dim), with rows lo to hi."""
        if self._inverse is None:
            self._inverse = np.zeros_like(self.norms)
            np.divide(np.float32(1), self.norms, out=self._inverse, where=self.norms > _TINY)
        with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite: searches drop them
            scores = self._products(units, lo, hi)
            scores *= self._inverse[lo:hi]
        return scores

    def cosines_with_row(self, row: int) -> np.ndarray:
        """float32 (n,): cosines of one row with all rows."""
        n = len(self.matrix)
        if isinstance(self.matrix, TernaryMatrix):
            ids, cosines = self.matrix.top(self.matrix.take([row]), n)
            return cosines[0, np.argsort(ids[0])]
        query = unit(self.matrix[row]).astype(np.float32)[None]
        return np.concatenate([self.cosines(query, lo, hi)[0] for lo, hi in _row_chunks(n, 1)])

    def nearest(
        self, queries: np.ndarray, k: int, restrict: int | None, excluded: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of highest cosine with each query, float (m, dim); ternary queries on ternary rows count bits."""
        if isinstance(self.matrix, TernaryMatrix) and (levels := self._as_ternary(queries)) is not None:
            stop, k = self._within(k, restrict)
            return self.matrix.top(levels, k, stop=stop, excluded=excluded)
        return self._nearest_floats(queries, k, restrict, excluded)

    def nearest_to_rows(
        self, rows: np.ndarray, k: int, restrict: int | None, excluded: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of highest cosine with each given row, int64 (m,), never the row itself."""
        if isinstance(self.matrix, TernaryMatrix):
            stop, k = self._within(k, restrict)
            return self.matrix.top(self.matrix.take(rows), k, stop=stop, excluded=excluded, own=rows)
        return self._nearest_floats(self.matrix[rows], k, restrict, excluded, own=rows)

    def nearest_by_product(
        self, plus: np.ndarray, minus: np.ndarray, k: int, restrict: int | None, excluded: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """3CosMul: rows of highest product of shifted cosines with `plus`, over that with `minus`; one query, m = 1.

        Source: Levy & Goldberg 2014, https://aclanthology.org/W14-1618, eq. 4, with epsilon 1e-6 as in gensim.
        """
        terms = np.concatenate([plus, minus]).astype(np.float32)

        def product(lo: int, hi: int, _: slice) -> np.ndarray:
            shifted = (1 + self.cosines(terms, lo, hi)) / 2
            above, below = shifted[: len(plus)].prod(axis=0), shifted[len(plus) :].prod(axis=0)
            return (above / (below + np.float32(1e-6)))[None]

        return self._top(product, 1, k, restrict, excluded)

    def _nearest_floats(
        self, queries: np.ndarray, k: int, restrict: int | None, excluded: np.ndarray, own: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        units = np.empty(queries.shape, dtype=np.float32)
        for lo in range(0, len(units), _CHUNK_QUERIES):
            units[lo : lo + _CHUNK_QUERIES] = unit(queries[lo : lo + _CHUNK_QUERIES])
        return self._top(lambda lo, hi, part: self.cosines(units[part], lo, hi), len(units), k, restrict, excluded, own)

    def _as_ternary(self, queries: np.ndarray) -> TernaryMatrix | None:
        """The directions of queries (m, dim) as ternary rows, or None unless the matrix and all queries are ternary.

        A query is ternary if all its nonzero numbers have the same absolute value.
        """
        if not isinstance(self.matrix, TernaryMatrix):
            return None
        signs = np.empty(queries.shape, dtype=np.int8)
        for i, query in enumerate(queries):
            sizes = np.abs(query)
            largest = sizes.max(initial=0)
            if not np.all((sizes == largest) | (sizes == 0)) or not np.isfinite(largest):
                return None
            signs[i] = np.sign(query)
        return TernaryMatrix.from_rows(signs)

    def _products(self, queries: np.ndarray, lo: int, hi: int) -> np.ndarray:
        if not isinstance(self.matrix, TernaryMatrix):
            return queries @ self.matrix[lo:hi].T
        products = np.empty((len(queries), hi - lo), dtype=np.float32)
        step = max(1, _CHUNK_NUMBERS // self.matrix.shape[1])
        for begin in range(lo, hi, step):
            end = min(begin + step, hi)
            products[:, begin - lo : end - lo] = queries @ self.matrix[begin:end].astype(np.float32).T
        return products

    def _within(self, k: int, restrict: int | None) -> tuple[int, int]:
        """The row to stop before, and the number of rows that can be returned."""
        if k < 0 or (restrict or 0) < 0:
            raise ValueError(f"k and restrict must be 0 or more, got {k} and {restrict}")
        stop = min(restrict or len(self.matrix), len(self.matrix))
        return stop, min(k, stop)

    def _top(
        self,
        score: Callable[[int, int, slice], np.ndarray],
        m: int,
        k: int,
        restrict: int | None,
        excluded: np.ndarray,
        own: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k highest scores of m queries, never row own[q] for query q.

        score(lo, hi, part) returns float32 (queries in part, hi - lo).
        """
        stop, k = self._within(k, restrict)
        ids, scores = np.full((m, k), -1, dtype=np.int64), np.full((m, k), -np.inf, dtype=np.float32)
        if k == 0:
            return ids, scores
        excluded = np.concatenate([excluded, np.flatnonzero(~np.isfinite(self.norms[:stop]))])
        for lo, hi in _row_chunks(stop, m):
            here = excluded[(excluded >= lo) & (excluded < hi)] - lo
            for first in range(0, m, _CHUNK_QUERIES):
                part = slice(first, min(first + _CHUNK_QUERIES, m))
                found = score(lo, hi, part)
                found[:, here] = -np.inf
                if own is not None:
                    inside = np.flatnonzero((own[part] >= lo) & (own[part] < hi))
                    found[inside, own[part][inside] - lo] = -np.inf
                _merge(found, lo, ids[part], scores[part])
        return ids, scores


def _row_chunks(stop: int, queries: int) -> Iterator[tuple[int, int]]:
    step = min(max(_CHUNK_SCORES // max(1, min(queries, _CHUNK_QUERIES)), 1), _MAX_CHUNK_ROWS)
    return ((lo, min(lo + step, stop)) for lo in range(0, stop, step))


def _merge(found: np.ndarray, lo: int, ids: np.ndarray, scores: np.ndarray) -> None:
    """Merges new scores of rows lo to lo + w, float32 (q, w), into the best so far, (q, k) and best first, in place.

    Rows arrive in rising order, so a later row that ties with the k-th best is dropped. After the first chunk few
    scores exceed the k-th best, and only those are sorted.
    """
    width, k = found.shape[1], scores.shape[1]
    floor = np.nextafter(scores[:, -1], np.float32(np.inf))
    if width > k and not np.isfinite(scores[:, -1]).all():
        kth = np.partition(found, width - k, axis=1)[:, width - k]
        floor = np.maximum(floor, kth)
    floor = np.maximum(floor, _LOWEST)
    passed = np.flatnonzero(found >= floor[:, None])
    if not len(passed):
        return
    query, column = np.divmod(passed, width)
    touched = np.unique(query)
    owner = np.concatenate([np.repeat(touched, k), query])
    new_ids = np.concatenate([ids[touched].ravel(), column + lo])
    new_scores = np.concatenate([scores[touched].ravel(), found.ravel()[passed]])
    order = np.lexsort((new_ids, -new_scores, owner))
    owner = owner[order]
    starts = np.searchsorted(owner, touched)
    order = order[starts[:, None] + np.arange(k)]
    ids[touched] = new_ids[order]
    scores[touched] = new_scores[order]


# ---- approximate search ---------------------------------------------------------------------------------------------


def build_index(search: CosineSearch, dtype: str) -> Any:
    """A usearch Index of all rows that have a direction; see Vectors.build_index."""
    try:
        from usearch.index import Index
    except ImportError as error:
        raise ImportError("an approximate index needs usearch: pip install embfast[index]") from error
    dim = search.matrix.shape[1]
    index = Index(ndim=dim, metric="cos", dtype=dtype)
    usable = np.flatnonzero((search.norms > _TINY) & np.isfinite(search.norms))
    step = max(1, (16 * _CHUNK_SCORES) // max(1, dim))
    for lo in range(0, len(usable), step):
        ids = usable[lo : lo + step]
        index.add(ids.astype(np.uint64), search.matrix[ids].astype(np.float32, copy=False))
    return index


def search_index(
    index: Any, matrix: np.ndarray | TernaryMatrix, query: np.ndarray, k: int, excluded: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ids and scores (1, k) of one query, float (dim,); the scores are exact cosines with rows of the matrix."""
    if index.ndim != matrix.shape[1]:
        raise ValueError(f"the index has {index.ndim} dimensions, the vectors have {matrix.shape[1]}")
    query = unit(query)
    found = index.search(query.astype(np.float32), k + len(excluded))
    ids = np.setdiff1d(np.asarray(found.keys).astype(np.int64), excluded)
    scores = np.array([unit(row) @ query for row in matrix[ids]], dtype=np.float32)
    order = np.argsort(-scores, kind="stable")[:k]
    return ids[order][None], scores[order][None]
