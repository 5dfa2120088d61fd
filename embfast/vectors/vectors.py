"""Vectors: keys and their rows, with lookup, exact nearest neighbours, analogies, files and exports."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from embfast.files import formats
from embfast.files.ternary import TernaryMatrix

_SCORES = 1 << 20  # scores held at once by a search: 4 MB
_UNPACKED = 1 << 22  # numbers of a ternary matrix held as float32 at once: 16 MB
_QUERIES = 256
_LOWEST = np.finfo(np.float32).min
_TINY = 1e-37  # a shorter row has no direction in float32


class Vectors:
    """Keys (words, documents, nodes, images) and one row of numbers for each; row i belongs to key i.

    >>> vectors = Vectors(["king", "queen", "apple"], np.array([[1, 1], [1, 0.9], [-1, 0.2]], dtype=np.float32))
    >>> vectors.most_similar("king", k=1)[0][0]
    'queen'
    >>> "pear" in vectors, len(vectors), vectors.dim
    (False, 3, 2)

    The matrix is used as given: it may be memory-mapped, read-only, or a view on wider rows, and no normalised copy is
    made. The length of each row is computed at the first search and kept; make new Vectors once the rows have changed.

    Rows of -1, 0 and 1 may come as a TernaryMatrix of two bits a number. They read as int8. A query that is ternary
    too, as every key is, searches by counting bits; others, as the mean of several keys is, by unpacking 16 MB at a
    time.

    Learned or given:
        keys: list of distinct strings; most frequent first where `restrict` is to mean "the most frequent".
        matrix: float32 (len(keys), dim), or a TernaryMatrix of this shape.
    """

    def __init__(self, keys: Iterable[str], matrix: np.ndarray | TernaryMatrix):
        self.keys = keys if isinstance(keys, list) else list(keys)
        self.matrix = matrix if isinstance(matrix, TernaryMatrix) else np.asarray(matrix, dtype=np.float32)
        if self.matrix.ndim != 2 or len(self.matrix) != len(self.keys):
            raise ValueError(f"expected a matrix of {len(self.keys)} rows, one per key, got shape {self.matrix.shape}")
        self._index = {key: i for i, key in enumerate(self.keys)}
        self._norms: np.ndarray | None = None
        self._inverse: np.ndarray | None = None
        for key in self._index:
            if not isinstance(key, str):
                raise TypeError(f"keys are strings, got {key!r} ({type(key).__name__})")
        if len(self._index) < len(self.keys):
            i, key = next((i, key) for i, key in enumerate(self.keys) if self._index[key] != i)
            raise ValueError(f"keys must differ: {key!r} is at {i} and at {self._index[key]}")

    # ---- lookup ---------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Numbers per row."""
        return self.matrix.shape[1]

    @property
    def norms(self) -> np.ndarray:
        """float32 (n,): the Euclidean length of each row."""
        if self._norms is None and isinstance(self.matrix, TernaryMatrix):
            self._norms = np.sqrt(self.matrix.nonzeros, dtype=np.float32)
        if self._norms is None:
            norms = np.empty(len(self.keys), dtype=np.float32)
            step = max(1, _SCORES // max(1, self.dim))
            for lo in range(0, len(norms), step):
                rows = self.matrix[lo : lo + step].astype(np.float64)
                with np.errstate(invalid="ignore", over="ignore"):
                    norms[lo : lo + step] = np.sqrt(np.einsum("nd,nd->n", rows, rows))
            self._norms = norms
        return self._norms

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __repr__(self) -> str:
        return f"Vectors({len(self.keys)} keys, dim={self.dim})"

    def index_of(self, key: str) -> int:
        """The row of `key`. KeyError when there is none."""
        try:
            return self._index[key]
        except KeyError:
            raise KeyError(f"{key!r} is not among the {len(self.keys)} keys") from None

    def __getitem__(self, keys: str | Iterable[str]) -> np.ndarray:
        """The row of a key, (dim,), a view; or the rows of several keys, (m, dim), a copy. Ternary rows are int8."""
        if isinstance(keys, str):
            return self.matrix[self.index_of(keys)]
        if not isinstance(keys, Iterable):
            raise TypeError(f"expected a key or a list of keys, got {keys!r}")
        return self.matrix[self._indices(keys)]

    def get(self, key: str, default: Any = None) -> Any:
        """The row of `key`, or `default`."""
        i = self._index.get(key)
        return default if i is None else self.matrix[i]

    def _indices(self, keys: str | Iterable[str]) -> np.ndarray:
        keys = [keys] if isinstance(keys, str) else keys
        return np.fromiter((self.index_of(key) for key in keys), dtype=np.int64)

    # ---- similarity -----------------------------------------------------------------------------------------------

    def similarity(self, a: str, b: str) -> float:
        """The cosine of two keys; 0 when a row is zero, NaN when one is not finite.

        >>> vectors = Vectors(["a", "b"], np.array([[1, 0], [1, 1]], dtype=np.float32))
        >>> round(vectors.similarity("a", "b"), 6)
        0.707107
        """
        return float(_unit(self[a]) @ _unit(self[b]))

    def n_similarity(self, a: Iterable[str], b: Iterable[str]) -> float:
        """The cosine between the mean rows of two sets of keys."""
        means = []
        for keys in (a, b):
            rows = self[[keys] if isinstance(keys, str) else keys]
            if not len(rows):
                raise ValueError("expected at least one key on each side, got none")
            means.append(_unit(rows.mean(axis=0, dtype=np.float64)))
        return float(means[0] @ means[1])

    def doesnt_match(self, keys: Iterable[str]) -> str:
        """The key whose row points furthest from the mean direction of all given keys."""
        keys = list(keys)
        if len(keys) < 2:
            raise ValueError(f"expected at least two keys to choose from, got {len(keys)}")
        units = np.stack([_unit(row) for row in self[keys]])
        if wrong := [key for key, unit in zip(keys, units, strict=True) if not np.isfinite(unit).all()]:
            raise ValueError(f"expected rows that are finite, got NaN or infinity in {wrong[0]!r}")
        return keys[int(np.argmin(units @ units.mean(axis=0)))]

    def rank(self, a: str, b: str) -> int:
        """1 when no key but `a` itself is nearer to `a` than `b` is, 2 when one is, and so on."""
        own, other = self.index_of(a), self.index_of(b)
        if isinstance(self.matrix, TernaryMatrix):
            ids, cosines = self.matrix.top(self.matrix.take([own]), len(self))
            scores = cosines[0, np.argsort(ids[0])]
        else:
            query = _unit(self[a]).astype(np.float32)[None]
            scores = np.concatenate([self.cosines(query, lo, hi)[0] for lo, hi in self._row_blocks(len(self), 1)])
        if not np.isfinite(scores[other]):
            raise ValueError(f"expected rows that are finite, got NaN or infinity between {a!r} and {b!r}")
        scores[own] = -np.inf if own != other else scores[own]
        return int(np.count_nonzero(scores > scores[other])) + 1

    def cosines(self, units: np.ndarray, lo: int, hi: int) -> np.ndarray:
        """float32 (m, hi - lo): the cosines of m queries of length 1, float32 (m, dim), with the rows lo..hi."""
        if self._inverse is None:
            self._inverse = np.zeros_like(self.norms)
            np.divide(np.float32(1), self.norms, out=self._inverse, where=self.norms > _TINY)
        with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite: searches leave them out
            scores = self._products(units, lo, hi)
            scores *= self._inverse[lo:hi]
        return scores

    def _products(self, queries: np.ndarray, lo: int, hi: int) -> np.ndarray:
        if not isinstance(self.matrix, TernaryMatrix):
            return queries @ self.matrix[lo:hi].T
        products = np.empty((len(queries), hi - lo), dtype=np.float32)
        step = max(1, _UNPACKED // self.dim)
        for begin in range(lo, hi, step):
            end = min(begin + step, hi)
            products[:, begin - lo : end - lo] = queries @ self.matrix[begin:end].astype(np.float32).T
        return products

    # ---- search ---------------------------------------------------------------------------------------------------

    def most_similar(
        self,
        positive: Any = None,
        negative: Any = None,
        *,
        k: int = 10,
        restrict: int | None = None,
        exclude: str | Iterable[str] = (),
        method: str = "add",
        index: Any = None,
    ) -> list[tuple[str, float]]:
        """The k keys that are most like all of `positive` and least like `negative`, best first, with their scores.

        Settings:
            positive, negative: a key, a vector float (dim,), or a list of keys, vectors and (key or vector, weight).
                Each counts with length 1 times its weight (gensim takes free vectors at their own length).
            k: how many; fewer come back when there are no more.
            restrict: search the first `restrict` keys only.
            exclude: keys never to return; the query's own keys are never returned either.
            method: "add" scores by the cosine with the mean of the weighted unit vectors (3CosAdd); "mul" by the
                product of the shifted cosines of positive over that of negative (3CosMul; weights must be 1).
            index: what build_index returned, for an approximate answer in less time ("add", without restrict).

        >>> rows = np.array([[1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]], dtype=np.float32)
        >>> Vectors(["man", "woman", "king", "queen"], rows).most_similar(["woman", "king"], ["man"], k=1)[0][0]
        'queen'

        Raises:
            KeyError: a query key is missing.
            ValueError: an empty query, a vector of the wrong size, or settings that do not go together.
        Source: Levy & Goldberg 2014, https://aclanthology.org/W14-1618, eqs. 3 and 4 (with epsilon 1e-6 as in gensim).
        """
        if method not in ("add", "mul"):
            raise ValueError(f'method must be "add" or "mul", got {method!r}')
        plus, plus_weights, plus_keys = self._terms(positive)
        minus, minus_weights, minus_keys = self._terms(negative)
        if not len(plus) + len(minus):
            raise ValueError("expected at least one key or vector to search for, got none")
        excluded = np.concatenate([plus_keys, minus_keys, self._indices(exclude)])
        if index is not None:
            if method != "add" or restrict:
                raise ValueError('an index answers method="add" over all keys; leave index out, or method and restrict')
            query = plus_weights @ plus - minus_weights @ minus
            ids, scores = self._search_index(index, query, k, excluded)
        elif method == "add":
            direction = (plus_weights @ plus - minus_weights @ minus)[None]
            if (levels := self._levels(direction)) is not None:
                ids, scores = self._top_levels(levels, k, restrict, excluded)
            else:
                query = _unit(direction).astype(np.float32)
                ids, scores = self._top(lambda lo, hi, _: self.cosines(query, lo, hi), 1, k, restrict, excluded)
        else:
            if not len(plus):
                raise ValueError('method="mul" needs at least one positive key or vector')
            if not (np.all(plus_weights == 1) and np.all(minus_weights == 1)):
                raise ValueError('method="mul" takes no weights')
            terms = np.concatenate([plus, minus]).astype(np.float32)

            def product(lo: int, hi: int, _: slice) -> np.ndarray:
                shifted = (1 + self.cosines(terms, lo, hi)) / 2
                above, below = shifted[: len(plus)].prod(axis=0), shifted[len(plus) :].prod(axis=0)
                return (above / (below + np.float32(1e-6)))[None]

            ids, scores = self._top(product, 1, k, restrict, excluded)
        return [(self.keys[i], s) for i, s in zip(ids[0].tolist(), scores[0].tolist(), strict=True) if i >= 0]

    def analogy(self, a: str, b: str, c: str, k: int = 1) -> list[tuple[str, float]]:
        """The k best answers to "a is to b as c is to ?", with their scores: most_similar([b, c], [a])."""
        return self.most_similar([b, c], [a], k=k)

    def nearest(
        self,
        queries: np.ndarray | Iterable[str],
        k: int = 10,
        restrict: int | None = None,
        exclude: str | Iterable[str] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k rows of highest cosine for each query, exactly; of equal scores the lower row comes first.

        Settings:
            queries: float (m, dim), or m keys; a key is not its own neighbour.
            k, restrict, exclude: as in most_similar.
        Returns:
            ids int64 (m, k), rows of the matrix, best first, and scores float32 (m, k), cosines. Where fewer than k
            rows may be returned the rest is -1 and -inf. A zero row scores 0, a row that is not finite never returns.

        Works in blocks: beside the answer and the queries it holds about 32 MB, whatever the number of rows. The matrix
        is read once, front to back, so one that is larger than memory may be mapped.

        >>> vectors = Vectors(["a", "b", "c"], np.array([[1, 0], [1, 1], [0, 1]], dtype=np.float32))
        >>> vectors.nearest(["a", "c"], k=1)[0].tolist()
        [[1], [1]]
        """
        own = None
        if not isinstance(queries, np.ndarray):
            own = self._indices(queries)
            if isinstance(self.matrix, TernaryMatrix):
                return self._top_levels(self.matrix.take(own), k, restrict, self._indices(exclude), own)
            queries = self.matrix[own]
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"expected queries of shape (m, {self.dim}), got {queries.shape}")
        if (levels := self._levels(queries)) is not None:
            return self._top_levels(levels, k, restrict, self._indices(exclude))
        units = np.empty(queries.shape, dtype=np.float32)
        for lo in range(0, len(units), _QUERIES):
            units[lo : lo + _QUERIES] = _unit(queries[lo : lo + _QUERIES])
        return self._top(
            lambda lo, hi, part: self.cosines(units[part], lo, hi), len(units), k, restrict, self._indices(exclude), own
        )

    def _terms(self, given: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What most_similar was asked for: unit vectors float64 (t, dim), weights (t,), and the rows of the keys."""
        if given is None:
            given = []
        elif isinstance(given, str) or (isinstance(given, np.ndarray) and given.ndim == 1):
            given = [given]
        units, weights, rows = [], [], []
        for term in given:
            weight = 1.0
            if isinstance(term, tuple) and len(term) == 2:
                term, weight = term
            if isinstance(term, str):
                rows.append(self.index_of(term))
                term = self.matrix[rows[-1]]
            vector = np.asarray(term, dtype=np.float64)
            if vector.shape != (self.dim,):
                raise ValueError(f"expected a key or a vector of {self.dim} numbers, got {term!r}")
            if not np.isfinite(vector).all():
                raise ValueError("expected a vector that is finite, got one with NaN or infinity")
            units.append(_unit(vector))
            weights.append(float(weight))
        shape = (len(units), self.dim)
        return np.array(units).reshape(shape), np.array(weights), np.array(rows, dtype=np.int64)

    def _levels(self, queries: np.ndarray) -> TernaryMatrix | None:
        """Queries (m, dim) as ternary rows of their directions, if the matrix is ternary and all of them are too.

        A query is ternary where all its numbers that are not 0 have one absolute value.
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

    def _top_levels(
        self,
        queries: TernaryMatrix,
        k: int,
        restrict: int | None,
        excluded: np.ndarray,
        own: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What _top finds for the cosines of ternary queries with ternary rows, by counting bits."""
        stop, k = self._within(k, restrict)
        return self.matrix.top(queries, k, stop=stop, excluded=excluded, own=own)

    def _within(self, k: int, restrict: int | None) -> tuple[int, int]:
        """The row to stop before, and how many can come back."""
        if k < 0 or (restrict or 0) < 0:
            raise ValueError(f"k and restrict must be 0 or more, got {k} and {restrict}")
        stop = min(restrict or len(self), len(self))
        return stop, min(k, stop)

    def _row_blocks(self, stop: int, queries: int) -> Iterator[tuple[int, int]]:
        step = min(max(_SCORES // max(1, min(queries, _QUERIES)), 1), 1 << 16)
        return ((lo, min(lo + step, stop)) for lo in range(0, stop, step))

    def _top(
        self,
        score: Callable[[int, int, slice], np.ndarray],
        m: int,
        k: int,
        restrict: int | None,
        excluded: np.ndarray,
        own: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k highest scores of m queries: score(lo, hi, part) gives float32 (queries in part, hi - lo).

        Rows in `excluded` are left out for all, row own[q] for query q.
        """
        stop, k = self._within(k, restrict)
        ids, scores = np.full((m, k), -1, dtype=np.int64), np.full((m, k), -np.inf, dtype=np.float32)
        if k == 0:
            return ids, scores
        excluded = np.concatenate([excluded, np.flatnonzero(~np.isfinite(self.norms[:stop]))])
        for lo, hi in self._row_blocks(stop, m):
            here = excluded[(excluded >= lo) & (excluded < hi)] - lo
            for first in range(0, m, _QUERIES):
                part = slice(first, min(first + _QUERIES, m))
                found = score(lo, hi, part)
                found[:, here] = -np.inf
                if own is not None:
                    inside = np.flatnonzero((own[part] >= lo) & (own[part] < hi))
                    found[inside, own[part][inside] - lo] = -np.inf
                _merge(found, lo, ids[part], scores[part])
        return ids, scores

    # ---- approximate search ---------------------------------------------------------------------------------------

    def build_index(self, dtype: str = "f32") -> Any:
        """An approximate index of all rows by cosine, for most_similar(index=...): a usearch Index (HNSW graph).

        It holds its own copy of the rows: "f32", or smaller as "f16" or "i8"; scores are computed from the matrix
        whichever is taken. Its own save and restore keep it in a file.

        Raises:
            ImportError: usearch is not installed.
        Source: Malkov & Yashunin 2016, arXiv:1603.09320.
        """
        try:
            from usearch.index import Index
        except ImportError as error:
            raise ImportError("an approximate index needs usearch: pip install embfast[index]") from error
        index = Index(ndim=self.dim, metric="cos", dtype=dtype)
        usable = np.flatnonzero((self.norms > _TINY) & np.isfinite(self.norms))
        step = max(1, (16 * _SCORES) // max(1, self.dim))
        for lo in range(0, len(usable), step):
            ids = usable[lo : lo + step]
            index.add(ids.astype(np.uint64), self.matrix[ids].astype(np.float32, copy=False))
        return index

    def _search_index(self, index: Any, query: np.ndarray, k: int, excluded: np.ndarray):
        if index.ndim != self.dim:
            raise ValueError(f"the index is of {index.ndim} dimensions, the vectors of {self.dim}")
        query = _unit(query)
        found = index.search(query.astype(np.float32), k + len(excluded))
        ids = np.setdiff1d(np.asarray(found.keys).astype(np.int64), excluded)
        scores = np.array([_unit(row) @ query for row in self.matrix[ids]], dtype=np.float32)
        order = np.argsort(-scores, kind="stable")[:k]
        return ids[order][None], scores[order][None]

    # ---- files ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike, format: str | None = None) -> None:
        """Writes a file in the format of its extension, or in `format`: see formats.write.

        .bin is word2vec binary, .txt and .vec word2vec and fastText text, .npz and .safetensors what they say;
        format="glove" is text without a first line. npz and safetensors keep a ternary matrix as it is; load then
        gives one back. The old file stays as it was until the new one is whole.

        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     Vectors(["a"], np.ones((1, 3), dtype=np.float32)).save(f"{directory}/a.txt")
        ...     print(Path(directory, "a.txt").read_text(), end="")
        ...     Vectors.load(f"{directory}/a.txt")
        1 3
        a 1 1 1
        Vectors(1 keys, dim=3)
        """
        formats.write(path, self.keys, self.matrix, format)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        format: str | None = None,
        *,
        mmap: bool = False,
        limit: int | None = None,
        errors: str = "strict",
        encoding: str = "utf-8",
    ) -> "Vectors":
        """Reads what save wrote, and the files of word2vec.c, gensim, fastText (.vec) and GloVe: see formats.read.

        Settings:
            mmap: map the matrix of an .npz or .safetensors file read-only instead of reading it.
            limit: the first `limit` rows only.
            errors: "strict" raises FormatError at the first fault, "replace" mends what it can, "skip" leaves faulty
                rows out.
            encoding: of the keys.
        """
        return cls(*formats.read(path, format, mmap=mmap, limit=limit, errors=errors, encoding=encoding))

    def save_projector(self, directory: str | os.PathLike) -> None:
        """Writes tensors.tsv and metadata.tsv for TensorBoard's embedding projector into `directory`."""
        formats.write_projector(directory, self.keys, self.matrix)

    # ---- other libraries ------------------------------------------------------------------------------------------

    def to_gensim(self) -> Any:
        """A gensim KeyedVectors on the same matrix, not a copy of it."""
        try:
            from gensim.models import KeyedVectors
        except ImportError as error:
            raise ImportError("to_gensim needs gensim: pip install embfast[gensim]") from error
        keyed = KeyedVectors(self.dim)
        keyed.index_to_key = list(self.keys)
        keyed.key_to_index = dict(self._index)
        keyed.vectors = self._floats("to_gensim")
        return keyed

    def _floats(self, purpose: str) -> np.ndarray:
        """The matrix, for what can take float32 alone."""
        if isinstance(self.matrix, TernaryMatrix):
            raise ValueError(
                f"{purpose} needs float32 rows, got ternary ones; Vectors(vectors.keys, vectors.matrix.to_float32()) "
                f"has them, in {4 * self.dim * len(self) / 2**20:,.0f} MB"
            )
        return self.matrix

    @classmethod
    def from_gensim(cls, keyed: Any) -> "Vectors":
        """Vectors on the matrix of a gensim KeyedVectors, or of a model that has one as `wv`; keys become strings."""
        keyed = getattr(keyed, "wv", keyed)
        return cls([str(key) for key in keyed.index_to_key], keyed.vectors)

    def to_pandas(self) -> Any:
        """A pandas DataFrame, one row per key (the index), one float32 column per dimension."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(self._floats("to_pandas"), index=self.keys, copy=False)

    def to_arrow(self) -> Any:
        """A pyarrow Table of `key` (string) and `vector` (fixed-size list of dim floats).

        A matrix whose rows follow each other without gaps is not copied.
        """
        try:
            import pyarrow
        except ImportError as error:
            raise ImportError("to_arrow needs pyarrow: pip install embfast[parquet]") from error
        numbers = pyarrow.array(np.ascontiguousarray(self._floats("to_arrow")).reshape(-1))
        vectors = pyarrow.FixedSizeListArray.from_arrays(numbers, self.dim)
        return pyarrow.table({"key": pyarrow.array(self.keys, pyarrow.string()), "vector": vectors})


def _unit(vectors: np.ndarray) -> np.ndarray:
    """float64, each vector of the last axis at length 1; zero stays zero, what is not finite becomes NaN."""
    vectors = np.asarray(vectors, dtype=np.float64)
    lengths = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    with np.errstate(invalid="ignore"):
        return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=~(lengths <= _TINY))


def _merge(found: np.ndarray, lo: int, ids: np.ndarray, scores: np.ndarray) -> None:
    """Takes float32 (q, w) new scores of rows lo..lo+w into the best so far, (q, k), best first; in place.

    Rows come in rising order, so a later row that ties with the k-th best stays out. After the first block few scores
    pass the k-th best, and only those are sorted.
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
