"""Vectors: keys and their rows, with lookup, nearest neighbours, analogies, files and exports."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from embfast.files import formats
from embfast.files.ternary import TernaryMatrix
from embfast.vectors.search import CosineSearch, build_index, search_index, unit


class Vectors:
    """Embeddings: keys (words, documents, nodes, images) and a matrix whose row i is the vector of key i.

    >>> vectors = Vectors(["king", "queen", "apple"], np.array([[1, 1], [1, 0.9], [-1, 0.2]], dtype=np.float32))
    >>> vectors.most_similar("king", k=1)[0][0]
    'queen'
    >>> "pear" in vectors, len(vectors), vectors.dim
    (False, 3, 2)

    The matrix is used as given: it may be memory-mapped, read-only, or a view on wider rows, and no normalised copy is
    made. Row norms are computed at the first search and kept; create new Vectors if the rows change.

    Vectors of -1, 0 and 1 can be a TernaryMatrix, which takes two bits per number. Its rows read as int8. Ternary
    queries, such as a single key, are searched by counting bits; other queries, such as the mean of several keys,
    unpack the matrix 16 MB at a time.

    Attributes:
        keys: list of distinct strings; most frequent first if `restrict` is to select the most frequent.
        matrix: float32 (len(keys), dim), or a TernaryMatrix of this shape.
    """

    def __init__(self, keys: Iterable[str], matrix: np.ndarray | TernaryMatrix) -> None:
        self.keys = keys if isinstance(keys, list) else list(keys)
        self.matrix = matrix if isinstance(matrix, TernaryMatrix) else np.asarray(matrix, dtype=np.float32)
        if self.matrix.ndim != 2 or len(self.matrix) != len(self.keys):
            raise ValueError(f"expected a matrix of {len(self.keys)} rows, one per key, got shape {self.matrix.shape}")
        self._index = {key: i for i, key in enumerate(self.keys)}
        self._search = CosineSearch(self.matrix)
        for key in self._index:
            if not isinstance(key, str):
                raise TypeError(f"keys must be strings, got {key!r} ({type(key).__name__})")
        if len(self._index) < len(self.keys):
            i, key = next((i, key) for i, key in enumerate(self.keys) if self._index[key] != i)
            raise ValueError(f"keys must be distinct: {key!r} is at {i} and at {self._index[key]}")

    # ---- lookup ---------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Vector size."""
        return self.matrix.shape[1]

    @property
    def norms(self) -> np.ndarray:
        """float32 (n,): the Euclidean norm of each row."""
        return self._search.norms

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __repr__(self) -> str:
        return f"Vectors({len(self.keys)} keys, dim={self.dim})"

    def index_of(self, key: str) -> int:
        """Row number of `key`; KeyError if it is missing."""
        try:
            return self._index[key]
        except KeyError:
            raise KeyError(f"{key!r} is not among the {len(self.keys)} keys") from None

    def __getitem__(self, keys: str | Iterable[str]) -> np.ndarray:
        """Vector of a key, (dim,), a view; or vectors of several keys, (m, dim), a copy. Ternary rows are int8."""
        if isinstance(keys, str):
            return self.matrix[self.index_of(keys)]
        if not isinstance(keys, Iterable):
            raise TypeError(f"expected a key or a list of keys, got {keys!r}")
        return self.matrix[self._indices(keys)]

    def get(self, key: str, default: Any = None) -> Any:
        """Vector of `key`, or `default` if the key is missing."""
        i = self._index.get(key)
        return default if i is None else self.matrix[i]

    def _indices(self, keys: str | Iterable[str]) -> np.ndarray:
        keys = [keys] if isinstance(keys, str) else keys
        return np.fromiter((self.index_of(key) for key in keys), dtype=np.int64)

    # ---- similarity -----------------------------------------------------------------------------------------------

    def similarity(self, a: str, b: str) -> float:
        """Cosine similarity of two keys; 0 if a row is zero, NaN if a row is not finite.

        >>> vectors = Vectors(["a", "b"], np.array([[1, 0], [1, 1]], dtype=np.float32))
        >>> round(vectors.similarity("a", "b"), 6)
        0.707107
        """
        return float(unit(self[a]) @ unit(self[b]))

    def n_similarity(self, a: Iterable[str], b: Iterable[str]) -> float:
        """Cosine similarity of the mean rows of two sets of keys."""
        means = []
        for keys in (a, b):
            rows = self[[keys] if isinstance(keys, str) else keys]
            if not len(rows):
                raise ValueError("expected at least one key on each side, got none")
            means.append(unit(rows.mean(axis=0, dtype=np.float64)))
        return float(means[0] @ means[1])

    def doesnt_match(self, keys: Iterable[str]) -> str:
        """The key of lowest cosine with the mean direction of all given keys."""
        keys = list(keys)
        if len(keys) < 2:
            raise ValueError(f"expected at least two keys to choose from, got {len(keys)}")
        units = np.stack([unit(row) for row in self[keys]])
        if wrong := [key for key, unit in zip(keys, units, strict=True) if not np.isfinite(unit).all()]:
            raise ValueError(f"expected finite rows, got NaN or infinity in the row of {wrong[0]!r}")
        return keys[int(np.argmin(units @ units.mean(axis=0)))]

    def rank(self, a: str, b: str) -> int:
        """Rank of `b` among the neighbours of `a`: 1 plus the number of keys except `a` that are nearer to `a`."""
        own, other = self.index_of(a), self.index_of(b)
        scores = self._search.cosines_with_row(own)
        if not np.isfinite(scores[other]):
            raise ValueError(f"expected finite rows, got NaN or infinity between {a!r} and {b!r}")
        scores[own] = -np.inf if own != other else scores[own]
        return int(np.count_nonzero(scores > scores[other])) + 1

    def cosines(self, units: np.ndarray, lo: int, hi: int) -> np.ndarray:
        """float32 (m, hi - lo): cosines of m unit vectors, float32 (m, dim), with rows lo to hi."""
        return self._search.cosines(units, lo, hi)

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
        """The k keys most similar to all of `positive` and least similar to `negative`, best first, with their scores.

        Args:
            positive, negative: A key, a vector float (dim,), or a list of keys, vectors and (key or vector, weight).
                Each is scaled to length 1 times its weight (gensim keeps the length of vectors that are not keys).
            k: Number of keys to return; fewer if fewer exist.
            restrict: Search only the first `restrict` keys.
            exclude: Keys never to return. The query's own keys are always excluded.
            method: "add" scores by the cosine with the mean of the weighted unit vectors (3CosAdd); "mul" by the
                product of the shifted cosines of positive, divided by that of negative (3CosMul; weights must be 1).
            index: Result of build_index, for a faster approximate answer (method "add" without restrict).

        >>> rows = np.array([[1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]], dtype=np.float32)
        >>> Vectors(["man", "woman", "king", "queen"], rows).most_similar(["woman", "king"], ["man"], k=1)[0][0]
        'queen'

        Raises:
            KeyError: a query key is missing.
            ValueError: the query is empty, a vector has the wrong size, or settings contradict each other.
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
                raise ValueError('an index only supports method="add" without restrict; drop index, or the other two')
            query = plus_weights @ plus - minus_weights @ minus
            ids, scores = search_index(index, self.matrix, query, k, excluded)
        elif method == "add":
            direction = plus_weights @ plus - minus_weights @ minus
            ids, scores = self._search.nearest(direction[None], k, restrict, excluded)
        else:
            if not len(plus):
                raise ValueError('method="mul" needs at least one positive key or vector')
            if not (np.all(plus_weights == 1) and np.all(minus_weights == 1)):
                raise ValueError('method="mul" takes no weights')
            ids, scores = self._search.nearest_by_product(plus, minus, k, restrict, excluded)
        return [(self.keys[i], s) for i, s in zip(ids[0].tolist(), scores[0].tolist(), strict=True) if i >= 0]

    def analogy(self, a: str, b: str, c: str, k: int = 1) -> list[tuple[str, float]]:
        """The k best answers to "a is to b as c is to ?", with scores: most_similar([b, c], [a])."""
        return self.most_similar([b, c], [a], k=k)

    def nearest(
        self,
        queries: np.ndarray | Iterable[str],
        k: int = 10,
        restrict: int | None = None,
        exclude: str | Iterable[str] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k rows of highest cosine for each query, exact; rows with equal scores are ordered by row number.

        Args:
            queries: float (m, dim), or m keys; a key is not its own neighbour.
            k, restrict, exclude: As in most_similar.
        Returns:
            ids int64 (m, k), row numbers, best first, and scores float32 (m, k), cosines. If fewer than k rows qualify
            the rest is -1 and -inf. A zero row scores 0; a row that is not finite is never returned.

        The search works in chunks: besides queries and answer it holds about 32 MB, for any number of rows. It reads
        the matrix once, front to back, so a matrix larger than memory can be memory-mapped.

        >>> vectors = Vectors(["a", "b", "c"], np.array([[1, 0], [1, 1], [0, 1]], dtype=np.float32))
        >>> vectors.nearest(["a", "c"], k=1)[0].tolist()
        [[1], [1]]
        """
        if not isinstance(queries, np.ndarray):
            rows = self._indices(queries)
            return self._search.nearest_to_rows(rows, k, restrict, self._indices(exclude))
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"expected queries of shape (m, {self.dim}), got {queries.shape}")
        return self._search.nearest(queries, k, restrict, self._indices(exclude))

    def _terms(self, given: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Terms of a query: unit vectors float64 (t, dim), weights float64 (t,), and the row numbers of its keys."""
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
                raise ValueError("expected a finite vector, got NaN or infinity in it")
            units.append(unit(vector))
            weights.append(float(weight))
        shape = (len(units), self.dim)
        return np.array(units).reshape(shape), np.array(weights), np.array(rows, dtype=np.int64)

    # ---- approximate search ---------------------------------------------------------------------------------------

    def build_index(self, dtype: str = "f32") -> Any:
        """Builds an approximate index of all rows by cosine, for most_similar(index=...): a usearch Index (HNSW graph).

        The index holds a copy of the rows, as "f32", or smaller as "f16" or "i8". Scores are computed from the matrix
        in any case. `save` and `restore` of the index keep it in a file.

        Raises:
            ImportError: usearch is not installed.
        Source: Malkov & Yashunin 2016, arXiv:1603.09320.
        """
        return build_index(self._search, dtype)

    # ---- files ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], format: str | None = None) -> None:
        """Writes a file in the format of its extension, or in `format`: see formats.write.

        .bin is word2vec binary, .txt and .vec are word2vec and fastText text, .npz and .safetensors are archives of
        arrays; format="glove" is text without a first line. npz and safetensors store a ternary matrix packed, and
        load returns it packed. An existing file is replaced only once the new file is complete.

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
        path: str | os.PathLike[str],
        format: str | None = None,
        *,
        mmap: bool = False,
        limit: int | None = None,
        errors: str = "strict",
        encoding: str = "utf-8",
    ) -> "Vectors":
        """Reads files written by save, word2vec.c, gensim, fastText (.vec) and GloVe: see formats.read.

        Args:
            mmap: Memory-map the matrix of an .npz or .safetensors file, read-only.
            limit: Read only the first `limit` rows.
            errors: "strict" raises FormatError at the first fault, "replace" repairs what it can, "skip" drops faulty
                rows.
            encoding: Encoding of the keys.
        """
        return cls(*formats.read(path, format, mmap=mmap, limit=limit, errors=errors, encoding=encoding))

    def save_projector(self, directory: str | os.PathLike[str]) -> None:
        """Writes tensors.tsv and metadata.tsv for TensorBoard's embedding projector to `directory`."""
        formats.write_projector(directory, self.keys, self.matrix)

    # ---- other libraries ------------------------------------------------------------------------------------------

    def to_gensim(self) -> Any:
        """A gensim KeyedVectors that shares the matrix."""
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
        """The matrix if it is float32; raises ValueError for a ternary one."""
        if isinstance(self.matrix, TernaryMatrix):
            raise ValueError(
                f"{purpose} needs float32 rows, got ternary ones; convert with Vectors(vectors.keys, "
                f"vectors.matrix.to_float32()), which takes {4 * self.dim * len(self) / 2**20:,.0f} MB"
            )
        return self.matrix

    @classmethod
    def from_gensim(cls, keyed: Any) -> "Vectors":
        """Vectors that share the matrix of a gensim KeyedVectors, or of a model's `wv`; keys become strings."""
        keyed = getattr(keyed, "wv", keyed)
        return cls([str(key) for key in keyed.index_to_key], keyed.vectors)

    def to_pandas(self) -> Any:
        """A pandas DataFrame with one row per key (the index) and one float32 column per dimension."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(self._floats("to_pandas"), index=self.keys, copy=False)

    def to_arrow(self) -> Any:
        """A pyarrow Table with columns `key` (string) and `vector` (fixed-size list of dim floats).

        A C-contiguous matrix is not copied.
        """
        try:
            import pyarrow
        except ImportError as error:
            raise ImportError("to_arrow needs pyarrow: pip install embfast[parquet]") from error
        numbers = pyarrow.array(np.ascontiguousarray(self._floats("to_arrow")).reshape(-1))
        vectors = pyarrow.FixedSizeListArray.from_arrays(numbers, self.dim)
        return pyarrow.table({"key": pyarrow.array(self.keys, pyarrow.string()), "vector": vectors})
