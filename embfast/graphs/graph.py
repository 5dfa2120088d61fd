"""A Graph: named nodes and sorted rows of neighbours (CSR)."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embfast import kernels
from embfast.errors import FormatError
from embfast.files.durable import FilePath, replacing
from embfast.files.tensors import TensorFile, word_tensors, write_tensors
from embfast.graphs.edges import (
    Edges,
    check_no_nodes,
    edges_of_arrays,
    edges_of_igraph,
    edges_of_networkx,
    edges_of_scipy,
    load_npz,
    read_edges,
    read_parquet,
)
from embfast.text.sources import ReadProgress

__all__ = ["Graph"]

FORMAT, VERSION = "embfast graph", 1
_ROWS_PER_CHUNK = 1 << 16


class Graph:
    """Named nodes, and for each node the sorted neighbours that its edges lead to.

    >>> graph = Graph.from_edges([0, 1, 2], [1, 2, 0], names=["a", "b", "c"])
    >>> graph
    Graph(3 nodes, 3 edges)
    >>> graph.offsets.tolist(), graph.neighbours.tolist()
    ([0, 2, 4, 6], [1, 2, 0, 2, 0, 1])

    Constructors: `from_edges`, `from_file`, `from_parquet`, `from_scipy`, `from_networkx`, `from_igraph`, `from_pyg`
    and `load`.

    Attributes:
        names: Sequence of str, the name of each node; in files, by first occurrence. A list, or for graphs from files a
            Texts, which creates each str on access: list(graph.names) is faster than access name by name.
        offsets: int64 (len(graph) + 1,); the row of node v is offsets[v] to offsets[v + 1].
        neighbours: int32 (entries,), ascending in each row, without repeats. An undirected edge is in the rows of both
            its ends, a self loop once.
        weights: float32 (entries,), above 0; None if all are 1. All arrays are read-only, and memory-mapped after
            `load`.
        directed: Whether rows hold only the edges that lead away from a node.

    `duplicates` decides about edges that are listed more than once: "sum" adds their weights (unweighted edges count 1
    each; if all sums are equal the graph stays unweighted), "first" keeps the first, "reject" raises an error. Self
    loops and nodes without edges are kept.

    Memory: 8 bytes per node, 4 per entry (8 with weights), and the names: 8 bytes each plus their letters if read from
    a file, about 70 bytes each in a list. Reading an edge list takes twice 8 bytes per edge (12 with weights), and
    about 60 bytes per node for the table of names.
    """

    def __init__(
        self,
        names: Sequence[str],
        offsets: np.ndarray,
        neighbours: np.ndarray,
        weights: np.ndarray | None = None,
        directed: bool = False,
    ) -> None:
        offsets, neighbours = np.asarray(offsets), np.asarray(neighbours)
        weights = None if weights is None else np.asarray(weights)
        n, entries = len(names), len(neighbours)
        if len(offsets) != n + 1 or offsets[0] != 0 or offsets[-1] != entries or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(f"offsets must ascend from 0 to {entries}, the number of neighbours, in {n} rows")
        if weights is not None and len(weights) != entries:
            raise ValueError(f"expected a weight for each of {entries} neighbours, got {len(weights)}")
        for name, array in (("offsets", offsets), ("neighbours", neighbours)):
            if array.dtype.kind not in "iu":
                raise TypeError(f"{name}: expected integers, got {array.dtype}")
        if entries and not (neighbours.min() >= 0 and neighbours.max() < n):
            raise ValueError(f"expected neighbours from 0 to {n - 1}, got {neighbours.min()} to {neighbours.max()}")
        if isinstance(names, list | tuple):
            wrong = next((name for name in names if not isinstance(name, str)), None)
            if wrong is not None:
                raise TypeError(f"names: expected str, got {wrong!r}")
            if len(set(names)) < n:
                raise ValueError(f"names: {Counter(names).most_common(1)[0][0]!r} is repeated")
        self.names, self.directed = names, bool(directed)
        self.offsets = _read_only(offsets, np.int64)
        self.neighbours = _read_only(neighbours, np.int32)
        self.weights = None if weights is None else _read_only(weights, np.float32)
        self._check_rows()

    def _check_rows(self) -> None:
        """ValueError unless neighbours ascend in each row, undirected edges are in the rows of both their nodes, and
        weights are above 0 and finite. Reads every array once."""
        at = 0
        one_way = 0  # modulo 2**64: sum of the hashes of entries to a higher node minus those to a lower node
        for rows, ids in self._entries():
            wrong = np.flatnonzero((ids[1:] <= ids[:-1]) & (rows[1:] == rows[:-1]))
            if len(wrong):
                row = rows[wrong[0]]
                raise ValueError(
                    f"neighbours must ascend in each row without repeats; those of node {row} do not "
                    "(Graph.from_edges and Graph.from_scipy accept any order)"
                )
            if not self.directed:
                hashes = _hashes(np.minimum(rows, ids), np.maximum(rows, ids))
                one_way += int(hashes[ids > rows].sum()) - int(hashes[ids < rows].sum())
            if self.weights is not None:
                weights = self.weights[at : at + len(ids)]
                wrong = np.flatnonzero(~((weights > 0) & (weights < np.inf)))
                if len(wrong):
                    row, weight = rows[wrong[0]], weights[wrong[0]]
                    raise ValueError(f"expected weights above 0 and finite, got {weight} for an edge of node {row}")
            at += len(ids)
        if one_way % 2**64:
            raise ValueError(
                "undirected edges must be in the rows of both their nodes; some edges are in one row only "
                "(directed=True?)"
            )

    # ---- made from -----------------------------------------------------------------------------------------------

    @classmethod
    def from_edges(
        cls,
        sources: Any,
        targets: Any,
        weights: Any = None,
        *,
        names: Sequence[str] | None = None,
        n_nodes: int | None = None,
        directed: bool = False,
        duplicates: str = "sum",
    ) -> Graph:
        """Edges from sources[i] to targets[i], given as node numbers or names.

        Args:
            names: Name of each numbered node. Default: "0", "1", ...
            n_nodes: Number of nodes, if the last ones have no edge.

        >>> Graph.from_edges(["x", "y"], ["y", "z"], [1.0, 0.5]).names
        ['x', 'y', 'z']

        Raises:
            ValueError: a number is not a node, or a weight is not above 0 and finite; the message names the first.
        """
        return cls._of_edges(edges_of_arrays(sources, targets, weights, names, n_nodes), directed, duplicates)

    @classmethod
    def from_file(
        cls,
        path: FilePath,
        *,
        directed: bool | None = None,
        weighted: bool | None = None,
        nodes: Iterable[str] = (),
        duplicates: str = "sum",
        progress: ReadProgress | None = None,
    ) -> Graph:
        """Reads an edge list, a Matrix Market file or a scipy.sparse .npz; text may be compressed (gz, bz2, xz, zst).

        Lines of an edge list hold two node names, and a weight if there is a third column, separated by spaces or tabs.
        Empty lines and lines that begin with # or % are skipped. All lines must have the same number of columns.

        Args:
            directed: Whether edges lead only from the first node to the second. Default: False, except for a Matrix
                Market file declared "general". For such a file and for .npz, False requires a symmetric matrix.
            weighted: True requires weights, False ignores them. Default: as the file has them.
            nodes: Names of nodes that may have no edge.
            progress: Called with (bytes done, bytes in total) of the file on disk.

        Raises:
            FormatError: a line is not an edge, or its weight is not above 0 and finite; the message has file and line.
        """
        path, extra = Path(path), list(dict.fromkeys(nodes))
        if not path.is_file() and not path.exists():
            raise FileNotFoundError(f"{path}: no such file or directory")
        if not all(isinstance(name, str) for name in extra):
            raise TypeError(f"nodes: expected names of type str, got {extra!r:.80}")
        if path.suffix == ".npz":
            check_no_nodes(path, extra)
            return cls.from_scipy(load_npz(path), directed=directed, duplicates=duplicates, weighted=weighted)
        edges, general = read_edges(path, weighted, extra, progress)
        if general is None:
            return cls._of_edges(edges, bool(directed), duplicates)
        if directed and not general:
            raise ValueError(f"{path}: directed=True, but the matrix is declared symmetric")
        graph = cls._of_edges(edges, general, duplicates)
        return _mirrored(graph, False) if general and directed is False else graph

    @classmethod
    def from_parquet(
        cls,
        path: FilePath | Iterable[FilePath],
        source: str = "source",
        target: str = "target",
        weight: str | None = None,
        *,
        directed: bool = False,
        duplicates: str = "sum",
    ) -> Graph:
        """Edges from columns of Parquet files: node names, or numbers, which become names; and optionally weights.

        Raises:
            ImportError: pyarrow is missing.
            KeyError: a column is missing.
            ValueError: a value is null, or a weight is not above 0 and finite.
        """
        return cls._of_edges(read_parquet(path, source, target, weight), directed, duplicates)

    @classmethod
    def from_scipy(
        cls,
        matrix: Any,
        *,
        names: Sequence[str] | None = None,
        directed: bool | None = None,
        weighted: bool | None = None,
        duplicates: str = "sum",
    ) -> Graph:
        """A square sparse matrix: entry (i, j) is the weight of an edge from i to j.

        directed=False requires a symmetric matrix; by default the graph is directed if the matrix is not symmetric. A
        matrix of ones, or a boolean one, gives an unweighted graph.
        """
        return _mirrored(cls._of_edges(edges_of_scipy(matrix, names, weighted), True, duplicates), directed)

    @classmethod
    def from_pyg(
        cls,
        edge_index: Any,
        edge_weight: Any = None,
        *,
        n_nodes: int | None = None,
        names: Sequence[str] | None = None,
        directed: bool | None = None,
        duplicates: str = "sum",
    ) -> Graph:
        """PyTorch Geometric's edge_index (2, edges), a CPU tensor or an array, which lists both directions.

        directed: as in `from_scipy`.
        """
        edge_index, edge_weight = (x.detach() if hasattr(x, "detach") else x for x in (edge_index, edge_weight))
        index = np.asarray(edge_index)
        if index.ndim != 2 or index.shape[0] != 2:
            raise ValueError(f"expected edge_index of shape (2, edges), got {index.shape}")
        graph = cls.from_edges(
            index[0], index[1], None if edge_weight is None else np.asarray(edge_weight), names=names, n_nodes=n_nodes,
            directed=True, duplicates=duplicates,
        )  # fmt: skip
        return _mirrored(graph, directed)

    @classmethod
    def from_networkx(cls, graph: Any, weight: str | None = "weight", *, duplicates: str = "sum") -> Graph:
        """Any networkx graph, directed if it is; names are str(node).

        weight: Edge attribute with the weight. Edges without it weigh 1; if no edge has it the graph is unweighted.
        """
        return cls._of_edges(edges_of_networkx(graph, weight), graph.is_directed(), duplicates)

    @classmethod
    def from_igraph(cls, graph: Any, weight: str | None = "weight", *, duplicates: str = "sum") -> Graph:
        """An igraph.Graph, directed if it is; names are the vertices' "name", or their numbers."""
        return cls._of_edges(edges_of_igraph(graph, weight), graph.is_directed(), duplicates)

    @classmethod
    def _of_edges(cls, edges: Edges, directed: bool, duplicates: str) -> Graph:
        return cls(edges.names, *edges.rows(directed, duplicates), directed)

    # ---- properties ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_self_loops(self) -> int:
        """Number of nodes with an edge to themselves."""
        return sum(int((ids == rows).sum()) for rows, ids in self._entries())

    @property
    def n_edges(self) -> int:
        """Number of edges, including self loops; undirected edges count once."""
        n = len(self.neighbours)
        return n if self.directed else (n + self.n_self_loops) // 2

    @property
    def degrees(self) -> np.ndarray:
        """int64 (len(graph),): number of entries in each row."""
        return np.diff(self.offsets)

    def _entries(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row and neighbour of each entry, a chunk of rows at a time."""
        for lo in range(0, len(self), _ROWS_PER_CHUNK):
            offsets = self.offsets[lo : lo + _ROWS_PER_CHUNK + 1]
            rows = np.repeat(np.arange(lo, lo + len(offsets) - 1), np.diff(offsets))
            yield rows, self.neighbours[offsets[0] : offsets[-1]]

    def __repr__(self) -> str:
        kinds = [kind for kind, has in (("directed", self.directed), ("weighted", self.weights is not None)) if has]
        return f"Graph({len(self):,} nodes, {self.n_edges:,} edges{''.join(', ' + kind for kind in kinds)})"

    def fingerprint(self) -> dict[str, int]:
        """Sizes, and a checksum of names, offsets and the first 2**18 entries, to recognise the graph by."""
        crc = zlib.crc32("\0".join(self.names).encode("utf-8", "surrogatepass"))
        for array in (
            self.offsets,
            self.neighbours[: 1 << 18],
            () if self.weights is None else self.weights[: 1 << 18],
        ):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return {"nodes": len(self), "entries": len(self.neighbours), "directed": int(self.directed), "crc": crc}

    # ---- on disk ---------------------------------------------------------------------------------------------------

    def save(self, path: FilePath) -> None:
        """Writes one safetensors file, atomically: the old file is replaced once the new one is on disk."""
        words = word_tensors(self.names)
        tensors = {"offsets": self.offsets, "words_offsets": words["words_offsets"], "neighbours": self.neighbours}
        if self.weights is not None:
            tensors["weights"] = self.weights
        tensors["words_utf8"] = words["words_utf8"]
        metadata = {"format": FORMAT, "version": json.dumps(VERSION), "directed": json.dumps(self.directed)}
        with replacing(Path(path)) as stream:
            write_tensors(stream, tensors, metadata)

    @classmethod
    def load(cls, path: FilePath) -> Graph:
        """Opens a graph written by `save`. The arrays are memory-mapped, and read once to check them.

        Raises:
            FormatError: the file is truncated, damaged, or not a saved Graph.
        """
        with TensorFile(path) as file:
            if file.metadata.get("format") != FORMAT:
                raise FormatError(f"{path}: expected a saved Graph, got another kind of safetensors file")
            version, directed = file.json("version"), file.json("directed")
            if not isinstance(version, int) or version > VERSION:
                raise FormatError(f"{path}: expected version {VERSION} or older, got {version}; update embfast")
            names = file.map_words()
            weights = file.map("weights", "F32") if "weights" in file else None
            try:
                return cls(names, file.map("offsets", "I64"), file.map("neighbours", "I32"), weights, directed)
            except ValueError as error:
                raise error if isinstance(error, FormatError) else FormatError(f"{path}: {error}") from None


def _hashes(lower: np.ndarray, higher: np.ndarray) -> np.ndarray:
    """A uint64 hash of each pair of nodes."""
    mixed = lower.astype(np.uint64) << np.uint64(32) | higher.astype(np.uint64)
    for _ in range(2):
        mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)
    return mixed


def _mirrored(graph: Graph, directed: bool | None) -> Graph:
    """A directed graph as an undirected one if every edge has its counterpart; directed=False requires that."""
    if directed:
        return graph
    entry = kernels.asymmetric_entry(graph.offsets, graph.neighbours, graph.weights)
    if entry is None:
        return Graph(graph.names, graph.offsets, graph.neighbours, graph.weights, False)
    if directed is None:
        return graph
    a, b = (graph.names[i] for i in entry)
    raise ValueError(
        f"directed=False, but the edge from {a!r} to {b!r} has no counterpart with the same weight: "
        "pass directed=True, or the matrix plus its transpose"
    )


def _read_only(array: np.ndarray, dtype: type) -> np.ndarray:
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view


def check_graph(graph: Any) -> None:
    """TypeError unless it is a Graph; ValueError when there is nothing in it to learn from."""
    if not isinstance(graph, Graph):
        kind = f"{type(graph).__module__}.{type(graph).__qualname__}"
        raise TypeError(f"expected an embfast.Graph, got a {kind}; see Graph.from_file, from_edges and from_networkx")
    if len(graph) < 2:
        raise ValueError(f"need at least 2 nodes to train on, got {len(graph)}")
