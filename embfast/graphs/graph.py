"""A Graph: named nodes and sorted rows of neighbours (CSR), read from edge lists, matrices and graph libraries."""

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
from embfast.files.texts import Texts
from embfast.text import sources
from embfast.text.sources import ReadProgress

__all__ = ["Graph"]

FORMAT, VERSION = "embfast graph", 1
_ROWS = 1 << 16  # per step of the numpy loops
_MATRIX_MARKET = b"%%MatrixMarket"


class Graph:
    """Nodes with names, and of each node the sorted neighbours that its edges lead to.

    >>> graph = Graph.from_edges([0, 1, 2], [1, 2, 0], names=["a", "b", "c"])
    >>> graph
    Graph(3 nodes, 3 edges)
    >>> graph.offsets.tolist(), graph.neighbours.tolist()
    ([0, 2, 4, 6], [1, 2, 0, 2, 0, 1])

    Made by `from_edges`, `from_file`, `from_parquet`, `from_scipy`, `from_networkx`, `from_igraph`, `from_pyg`, `load`.

    Attributes:
        names: a sequence of str, one of each node; in files the order of first occurrence. A list, or of a file Texts,
            which makes a str when it is asked for one: list(graph.names) is faster than name by name.
        offsets: int64 (len(graph) + 1,); the row of node v is offsets[v] to offsets[v + 1].
        neighbours: int32 (entries,), ascending in each row, none twice. An edge that is not directed stands in the rows
            of both its ends, a self loop once.
        weights: float32 (entries,), above 0, or None: all weigh 1. All arrays are read-only, and mapped after `load`.
        directed: whether rows hold the edges that leave a node, or all.

    Edges that are listed more than once are, by the option `duplicates`, one edge of the summed weights ("sum"; without
    weights each counts 1, and where all come out alike there are no weights again), the first one ("first"), or an
    error ("reject"). Self loops stay, and so do nodes without an edge.

    Memory: 8 bytes a node and 4 an entry, 8 with weights, and the names: 8 bytes and their letters of a file, some 70
    each as a list. While a list of edges is read: 8 bytes an edge (12 with weights) twice, and about 60 a node for the
    table of names.
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
            raise ValueError(f"offsets must rise from 0 to the {entries} neighbours in {n} rows; they do not")
        if weights is not None and len(weights) != entries:
            raise ValueError(f"expected a weight for each of {entries} neighbours, got {len(weights)}")
        for name, array in (("offsets", offsets), ("neighbours", neighbours)):
            if array.dtype.kind not in "iu":
                raise TypeError(f"{name}: expected whole numbers, got {array.dtype}")
        if entries and not (neighbours.min() >= 0 and neighbours.max() < n):
            raise ValueError(f"expected neighbours from 0 to {n - 1}, got {neighbours.min()} to {neighbours.max()}")
        if isinstance(names, list | tuple):
            wrong = next((name for name in names if not isinstance(name, str)), None)
            if wrong is not None:
                raise TypeError(f"names: expected str, got {wrong!r}")
            if len(set(names)) < n:
                raise ValueError(f"names: {Counter(names).most_common(1)[0][0]!r} stands there twice")
        self.names, self.directed = names, bool(directed)
        self.offsets = _read_only(offsets, np.int64)
        self.neighbours = _read_only(neighbours, np.int32)
        self.weights = None if weights is None else _read_only(weights, np.float32)
        self._check_rows()

    def _check_rows(self) -> None:
        """ValueError unless neighbours rise in each row, an undirected edge stands in the rows of both its nodes, and
        weights are above 0 and finite; reads all once."""
        at = 0
        one_way = 0  # modulo 2**64, the hashes of edges from lower to higher nodes less those of the others
        for rows, ids in self._entries():
            wrong = np.flatnonzero((ids[1:] <= ids[:-1]) & (rows[1:] == rows[:-1]))
            if len(wrong):
                row = rows[wrong[0]]
                raise ValueError(
                    f"neighbours must rise in each row, with none twice; those of node {row} do not "
                    "(Graph.from_edges and Graph.from_scipy take any order)"
                )
            if not self.directed:
                hashes = _hashes(np.minimum(rows, ids), np.maximum(rows, ids))
                one_way += int(hashes[ids > rows].sum()) - int(hashes[ids < rows].sum())
            if self.weights is not None:
                weights = self.weights[at : at + len(ids)]
                wrong = np.flatnonzero(~((weights > 0) & (weights < np.inf)))
                if len(wrong):
                    row, weight = rows[wrong[0]], weights[wrong[0]]
                    raise ValueError(f"expected weights above 0 and finite, got {weight} of an edge of node {row}")
            at += len(ids)
        if one_way % 2**64:
            raise ValueError(
                "an undirected edge stands in the rows of both its nodes; some of these stand in one row alone "
                "(directed=True?)"
            )

    # ---- made of -------------------------------------------------------------------------------------------------

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
        """Edges from sources[i] to targets[i]: numbers of nodes, or their names.

        Args:
            names: of the nodes by number; "0", "1", ... by default.
            n_nodes: how many there are, if the last of them have no edge.

        >>> Graph.from_edges(["x", "y"], ["y", "z"], [1.0, 0.5]).names
        ['x', 'y', 'z']

        Raises:
            ValueError: numbers that are no nodes, or weights that are not above 0 and finite: the first is named.
        """
        sources, targets = np.asarray(sources), np.asarray(targets)
        if sources.ndim != 1 or sources.shape != targets.shape:
            raise ValueError(f"expected as many sources as targets, got {sources.shape} and {targets.shape}")
        if sources.dtype.kind in "OUST" or targets.dtype.kind in "OUST":
            if names is not None or n_nodes is not None:
                raise ValueError("names and n_nodes are of edges between numbers; these are between names already")
            index: dict[str, int] = {}
            sources, targets = (
                np.fromiter((index.setdefault(_name(x), len(index)) for x in ends), np.int64, len(ends))
                for ends in _by_turns(sources, targets, index)
            )
            names = list(index)
        else:
            n = _n_nodes(sources, targets, names, n_nodes)
            sources, targets = _numbers("sources", sources, n), _numbers("targets", targets, n)
            names = [str(i) for i in range(n)] if names is None else list(names)
        return _build(cls, sources, targets, weights, names, directed, duplicates, "the edges")

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
        """Reads an edge list, a Matrix Market file or a scipy.sparse .npz; gz, bz2, xz and zst of the texts.

        Edge lists are lines of two node names, and a weight if there is a third column, with spaces or tabs between;
        lines that begin with # or % and empty ones are passed over. All lines have as many columns as the first.

        Args:
            directed: edges lead from the first node to the second only. By default not, but for a Matrix Market file
                that calls itself general. False for such a file, or for .npz, asks for a symmetric matrix.
            weighted: True insists on weights, False passes over them; by default as the file has them.
            nodes: names of nodes that may have no edge.
            progress: called with (bytes done, bytes in all), of the file as it lies on disk.

        Raises:
            FormatError: a line that is no edge, or whose weight is not above 0 and finite: file and line are named.
        """
        path, extra = Path(path), list(dict.fromkeys(nodes))
        if not path.is_file() and not path.exists():
            raise FileNotFoundError(f"{path}: no such file or directory")
        if not all(isinstance(name, str) for name in extra):
            raise TypeError(f"nodes: expected names of type str, got {extra!r:.80}")
        if path.suffix == ".npz":
            _no_more(path, extra)
            return cls.from_scipy(_load_npz(path), directed=directed, duplicates=duplicates, weighted=weighted)
        chunks = sources.plain_chunks(path, progress)
        head = _head(chunks)
        if head.startswith(_MATRIX_MARKET):
            _no_more(path, extra)
            return _from_matrix_market(cls, path, head, chunks, directed, weighted, duplicates)
        reader = kernels.EdgeReader(weights=_WEIGHTS[weighted], numbered=0, first_line=1)
        edges = _read(path, reader, _chain(head, chunks))
        names: Sequence[str] = Texts.of_lines(reader.names())
        if extra:
            known = set(names)
            names = [*names, *(name for name in extra if name not in known)]
        return _build(cls, *edges, names, bool(directed), duplicates, str(path), FormatError)

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
        """Edges from columns of Parquet files: node names or numbers, which become names, and perhaps weights.

        Raises:
            ImportError: pyarrow is missing.
            KeyError: there is no such column.
            ValueError: a null, or a weight that is not above 0 and finite.
        """
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ImportError("reading Parquet needs pyarrow: pip install embfast[parquet]") from None
        columns = [source, target] + ([] if weight is None else [weight])
        tables = []
        for file in sources.find_files(path):
            try:
                schema = pyarrow.parquet.read_schema(file)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowIOError) as error:
                raise FormatError(f"{file}: expected a Parquet file, got: {error}") from None
            for column in columns:
                if column not in schema.names:
                    raise KeyError(f"{file}: no column {column!r}; there are {', '.join(map(repr, schema.names))}")
            table = pyarrow.parquet.read_table(file, columns=columns)
            for column in columns:
                kind = table[column].type
                if pyarrow.types.is_nested(kind):
                    raise ValueError(f"{file}: column {column!r}: expected names or numbers, got {kind}")
                if table[column].null_count:
                    raise ValueError(f"{file}: column {column!r} holds {table[column].null_count} nulls")
            tables.append(table)
        ends = [table[column].cast(pyarrow.large_string()).combine_chunks()
                for column in (source, target) for table in tables]  # fmt: skip
        coded = pyarrow.chunked_array(ends, pyarrow.large_string()).dictionary_encode().unify_dictionaries()
        names = coded.chunk(0).dictionary.to_pylist() if coded.num_chunks else []
        ids = np.concatenate([np.asarray(chunk.indices) for chunk in coded.chunks] or [np.empty(0, np.int32)])
        half = len(ids) // 2
        weights = None
        if weight is not None:
            weights = np.concatenate([table[weight].to_numpy() for table in tables])
        from_ids, to_ids = (np.ascontiguousarray(part, np.int32) for part in (ids[:half], ids[half:]))
        where = f"columns {source!r} and {target!r}"
        return _build(cls, from_ids, to_ids, weights, names, directed, duplicates, where)

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

        directed=False wants a symmetric matrix; by default the graph is directed where the matrix is not symmetric. A
        matrix of ones, or of truth values, gives a graph without weights.
        """
        if not hasattr(matrix, "tocoo"):
            raise TypeError(f"expected a sparse matrix of scipy, got {type(matrix).__name__}; scipy.sparse makes one")
        if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"expected a square matrix, got {' x '.join(map(str, matrix.shape))}")
        entries = matrix.tocoo(copy=matrix.dtype == bool or weighted is False)
        if weighted and entries.dtype == bool:
            raise ValueError("weighted=True, but the matrix holds truth values")
        if entries.dtype == bool or weighted is False:
            entries.eliminate_zeros()  # entries that are stored and yet say that there is no edge
        weights = None if entries.dtype == bool or weighted is False else entries.data
        if weights is not None and weighted is None and (np.asarray(weights) == 1).all():
            weights = None
        n = matrix.shape[0]
        names = [str(i) for i in range(n)] if names is None else list(names)
        rows, columns = (_numbers(name, getattr(entries, name), n) for name in ("row", "col"))
        return _mirrored(_build(cls, rows, columns, weights, names, True, duplicates, "the matrix"), directed)

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
        """PyTorch Geometric's edge_index (2, edges), a tensor on the CPU or an array; it lists both directions.

        directed as in `from_scipy`.
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
        """A networkx graph of any kind, directed as it is; names are str(node).

        weight: the attribute of edges that holds it; edges without weigh 1, and where none has it there are no weights.
        """
        nodes = list(graph)
        index = {node: i for i, node in enumerate(nodes)}
        n = graph.number_of_edges()
        ends = np.empty((2, n), np.int32)
        weights = np.ones(n)
        found = False
        for i, (a, b, value) in enumerate(graph.edges(data=weight, default=None)):
            ends[:, i] = index[a], index[b]
            if value is not None and weight is not None:
                weights[i] = value
                found = True
        names = [str(node) for node in nodes]
        return _build(cls, ends[0].copy(), ends[1].copy(), weights if found else None, names, graph.is_directed(),
                      duplicates, "the edges")  # fmt: skip

    @classmethod
    def from_igraph(cls, graph: Any, weight: str | None = "weight", *, duplicates: str = "sum") -> Graph:
        """An igraph.Graph, directed as it is; names are the vertices' "name", or their numbers."""
        edges = np.array(graph.get_edgelist(), np.int32).reshape(-1, 2)
        names = graph.vs["name"] if "name" in graph.vs.attributes() else range(graph.vcount())
        weights = graph.es[weight] if weight is not None and weight in graph.es.attributes() else None
        return _build(cls, edges[:, 0].copy(), edges[:, 1].copy(), weights, [str(name) for name in names],
                      graph.is_directed(), duplicates, "the edges")  # fmt: skip

    # ---- asked -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_self_loops(self) -> int:
        """Nodes with an edge to themselves."""
        return sum(int((ids == rows).sum()) for rows, ids in self._entries())

    @property
    def n_edges(self) -> int:
        """Edges, each once, self loops among them."""
        n = len(self.neighbours)
        return n if self.directed else (n + self.n_self_loops) // 2

    @property
    def degrees(self) -> np.ndarray:
        """int64 (len(graph),): entries in each row."""
        return np.diff(self.offsets)

    def _entries(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers of rows, and neighbours, of some rows at a time."""
        for lo in range(0, len(self), _ROWS):
            offsets = self.offsets[lo : lo + _ROWS + 1]
            rows = np.repeat(np.arange(lo, lo + len(offsets) - 1), np.diff(offsets))
            yield rows, self.neighbours[offsets[0] : offsets[-1]]

    def __repr__(self) -> str:
        kinds = [kind for kind, has in (("directed", self.directed), ("weighted", self.weights is not None)) if has]
        return f"Graph({len(self):,} nodes, {self.n_edges:,} edges{''.join(', ' + kind for kind in kinds)})"

    def fingerprint(self) -> dict[str, int]:
        """What tells a graph from another: sizes, and a checksum of names, offsets and the first entries."""
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
        """Writes one safetensors file, whole at any moment: the old one stays until the new one is on disk."""
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
        """Opens what `save` wrote; the arrays stay in the file, memory-mapped, and are read once to check them.

        Raises:
            FormatError: the file is cut short or damaged, or holds something else.
        """
        with TensorFile(path) as file:
            if file.metadata.get("format") != FORMAT:
                raise FormatError(f"{path}: expected a saved Graph, got a safetensors file of something else")
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
    """A hash, uint64, of each pair of nodes."""
    mixed = lower.astype(np.uint64) << np.uint64(32) | higher.astype(np.uint64)
    for _ in range(2):
        mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)
    return mixed


# ---- reading files ---------------------------------------------------------------------------------------------------

_WEIGHTS = {None: "as_found", True: "read", False: "ignored"}


def _head(chunks: Iterator[bytes]) -> bytes:
    """Enough of a text to see what it is; of a Matrix Market file, up to and with the line of sizes."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= len(_MATRIX_MARKET) and not (head.startswith(_MATRIX_MARKET) and _size_line(head) is None):
            break
    return head


def _size_line(head: bytes) -> tuple[int, int, int] | None:
    """Where the first line that is no comment begins and ends, and its number; None if it is not all there."""
    begin, number = 0, 1
    while (end := head.find(b"\n", begin)) >= 0:
        line = head[begin:end].strip()
        if line and not line.startswith(b"%"):
            return begin, end, number
        begin, number = end + 1, number + 1
    return None


def _chain(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from chunks


def _read(path: Path, reader: Any, chunks: Iterator[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Sources, targets and weights of all lines; faults become errors that name file and line."""
    parts = []
    for chunk in chunks:
        _check(path, reader.add_bytes(chunk))
        parts.append(reader.take())
    _check(path, reader.end())
    parts.append(reader.take())
    columns = []
    for i in range(3 if reader.weighted else 2):
        columns.append(np.concatenate([part[i] for part in parts]))
        parts = [(*part[:i], None, *part[i + 1 :]) for part in parts]  # the pieces of this column can go
    return columns[0], columns[1], columns[2] if reader.weighted else None


def _check(path: Path, fault: tuple[str, int, int, int, bytes] | None) -> None:
    if fault is None:
        return
    kind, line, found, expected, text = fault
    what = {
        "columns": f"expected {expected or 'two or three'} columns (node, node"
        f"{'' if expected == 2 else ', weight'}), got {found}: {text!r}",
        "weight": f"expected a weight above 0 and finite, got {text!r}",
        "name": f"expected the name of a node in UTF-8, got {text!r}. Is this text?",
        "number": f"expected the number of a node, 1 to {expected}, got {text!r}",
        "too_many_nodes": f"more than 2**31 - 1 nodes: {text!r}",
    }[kind]
    raise FormatError(f"{path}:{line}: {what}")


def _from_matrix_market(
    cls: type[Graph],
    path: Path,
    head: bytes,
    chunks: Iterator[bytes],
    directed: bool | None,
    weighted: bool | None,
    duplicates: str,
) -> Graph:
    """Source of the format: https://math.nist.gov/MatrixMarket/formats.html."""
    fields = head[: head.find(b"\n")].decode("ascii", "replace").lower().split()
    if len(fields) != 5 or fields[1:3] != ["matrix", "coordinate"] or fields[3] not in ("real", "integer", "pattern"):
        raise FormatError(f"{path}:1: expected a sparse matrix (coordinate, of real, integer or pattern), got {fields}")
    if fields[4] not in ("general", "symmetric"):
        raise FormatError(f"{path}:1: expected a general or symmetric matrix, got {fields[4]}")
    place = _size_line(head)
    sizes = head[place[0] : place[1]].split() if place else []
    if place is None or len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise FormatError(f"{path}:{place[2] if place else 1}: expected rows, columns and entries, got {sizes}")
    n, n_columns, n_entries = map(int, sizes)
    if n != n_columns or not 0 < n < 2**31:
        raise FormatError(f"{path}:{place[2]}: expected a square matrix of up to 2**31 - 1 rows, got {n} x {n_columns}")
    if weighted and fields[3] == "pattern":
        raise FormatError(f"{path}:1: expected weights, got a matrix that calls itself a pattern")
    use = weighted is not False and fields[3] != "pattern"
    which = "ignored" if weighted is False or fields[3] == "pattern" else "read"
    reader = kernels.EdgeReader(weights=which, numbered=n, first_line=place[2] + 1)
    edges = _read(path, reader, _chain(head[place[1] + 1 :], chunks))
    if len(edges[0]) != n_entries:
        raise FormatError(f"{path}: expected {n_entries:,} entries, got {len(edges[0]):,}; was it cut short?")
    names = [str(i + 1) for i in range(n)]
    weights = edges[2] if use else None
    symmetric = fields[4] == "symmetric"
    if symmetric and directed:
        raise ValueError(f"{path}: directed=True, but the matrix calls itself symmetric")
    graph = _build(cls, *edges[:2], weights, names, not symmetric, duplicates, str(path), FormatError)
    return graph if symmetric or directed is not False else _mirrored(graph, False)


def _load_npz(path: Path) -> Any:
    try:
        from scipy.sparse import load_npz
    except ImportError:
        raise ImportError("reading .npz needs scipy: pip install embfast[scipy]") from None
    try:
        return load_npz(path)
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise FormatError(f"{path}: expected a matrix that scipy.sparse.save_npz wrote, got: {error}") from None


# ---- building --------------------------------------------------------------------------------------------------------


def _build(
    cls: type[Graph],
    sources: np.ndarray,
    targets: np.ndarray,
    weights: Any,
    names: Sequence[str],
    directed: bool,
    duplicates: str,
    where: str,
    error: type[ValueError] = ValueError,
) -> Graph:
    """Edges between int32 numbers, which are nodes, as a graph."""
    if duplicates not in ("sum", "first", "reject"):
        raise ValueError(f'duplicates must be "sum", "first" or "reject", got {duplicates!r}')
    if not isinstance(names, Texts) and len(set(names)) != len(names):  # those of a file are distinct
        raise ValueError(f"expected distinct names of nodes, got {len(names) - len(set(names))} twice")
    if not len(sources):
        raise error(f"no edges in {where}")
    if weights is not None:
        weights = _weights(weights, len(sources))
    offsets, neighbours, summed, n_repeated, (a, b) = kernels.csr(
        _numbers("sources", sources, len(names)), _numbers("targets", targets, len(names)), weights,
        n_nodes=len(names), both_ways=not directed, keep_first=duplicates == "first",
    )  # fmt: skip
    if n_repeated and duplicates == "reject":
        raise error(
            f'{where}: an edge from {names[a]!r} to {names[b]!r} is there more than once; duplicates="sum" adds up '
            'weights, and "first" keeps one'
        )
    if summed is not None and not np.isfinite(summed).all():
        raise error(f"{where}: the summed weight of an edge is beyond float32")
    if weights is None and summed is not None and (summed == summed[0]).all():
        summed = None
    return cls(names, offsets, neighbours, summed, directed)


def _mirrored(graph: Graph, directed: bool | None) -> Graph:
    """A graph of both directions of every edge as one that is not directed, if that is what was asked for."""
    if directed:
        return graph
    entry = kernels.asymmetric_entry(graph.offsets, graph.neighbours, graph.weights)
    if entry is None:
        return Graph(graph.names, graph.offsets, graph.neighbours, graph.weights, False)
    if directed is None:
        return graph
    a, b = (graph.names[i] for i in entry)
    raise ValueError(
        f"directed=False, but the edge from {a!r} to {b!r} has no counterpart of the same weight: pass directed=True, "
        "or the matrix plus its transpose"
    )


def _n_nodes(sources: np.ndarray, targets: np.ndarray, names: Any, n_nodes: int | None) -> int:
    if names is not None:
        if n_nodes not in (None, len(names)):
            raise ValueError(f"n_nodes is {n_nodes}, but there are {len(names)} names")
        return len(names)
    if n_nodes is not None:
        return int(n_nodes)
    return 1 + max((int(ends.max()) for ends in (sources, targets) if len(ends)), default=-1)


def _numbers(name: str, ends: np.ndarray, n_nodes: int) -> np.ndarray:
    """Contiguous int32, all of them nodes."""
    if ends.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected whole numbers of nodes or names, got {ends.dtype}")
    if len(ends) and not (ends.min() >= 0 and ends.max() < n_nodes):
        wrong = int(np.flatnonzero((ends < 0) | (ends >= n_nodes))[0])
        raise ValueError(f"{name}[{wrong}]: expected a node from 0 to {n_nodes - 1}, got {ends[wrong]}")
    if n_nodes > 2**31 - 1:
        raise ValueError(f"expected at most 2**31 - 1 nodes, got {n_nodes}")
    return np.ascontiguousarray(ends, np.int32)


def _weights(weights: Any, n: int) -> np.ndarray:
    """float32 (n,), above 0 and finite."""
    given = np.asarray(weights)
    if given.shape != (n,) or given.dtype.kind not in "iufb":
        raise ValueError(f"expected {n} weights, numbers, got {given.dtype} {given.shape}")
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(given, np.float32)
    fine = (found > 0) & np.isfinite(found)
    if not fine.all():
        wrong = int(np.flatnonzero(~fine)[0])
        raise ValueError(f"weights[{wrong}]: expected a weight above 0 and finite in float32, got {given[wrong]}")
    return found


def _by_turns(sources: np.ndarray, targets: np.ndarray, index: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Both ends, once the names of source and target of each edge are in the index in this order."""
    for a, b in zip(sources, targets, strict=True):
        index.setdefault(_name(a), len(index))
        index.setdefault(_name(b), len(index))
    return sources, targets


def _no_more(path: Path, nodes: list[str]) -> None:
    if nodes:
        raise ValueError(f"{path}: nodes= is of lists of edges; a matrix has its nodes, with or without edges")


def _name(node: Any) -> str:
    if node is None or node != node:
        raise ValueError(f"expected names or numbers of nodes, got {node!r}")
    return node.decode() if isinstance(node, bytes) else str(node)


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
