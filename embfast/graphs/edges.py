"""Edges as they are listed: read from files, matrices and graph libraries, and sorted into the rows of a Graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embfast import kernels
from embfast.errors import FormatError
from embfast.files.durable import FilePath
from embfast.files.texts import Texts
from embfast.text import sources
from embfast.text.sources import ReadProgress

_MATRIX_MARKET = b"%%MatrixMarket"
_WEIGHTS = {None: "as_found", True: "read", False: "ignored"}  # EdgeReader's word for each value of `weighted`


class Edges(NamedTuple):
    """Edges between numbered nodes, in any order."""

    sources: np.ndarray  # integers (edges,)
    targets: np.ndarray  # integers (edges,)
    weights: Any  # numbers (edges,), or None
    names: Sequence[str]  # name of each node
    where: str = "the edges"  # for messages
    error: type[ValueError] = ValueError  # raised for faults

    def rows(self, directed: bool, duplicates: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Sorted rows: offsets, neighbours and weights of a Graph."""
        if duplicates not in ("sum", "first", "reject"):
            raise ValueError(f'duplicates must be "sum", "first" or "reject", got {duplicates!r}')
        names, n = self.names, len(self.names)
        if not isinstance(names, Texts) and len(set(names)) != n:  # names read from a file are distinct
            raise ValueError(f"node names must be distinct, got {n - len(set(names))} repeated names")
        if not len(self.sources):
            raise self.error(f"no edges in {self.where}")
        weights = None if self.weights is None else _edge_weights(self.weights, len(self.sources))
        offsets, neighbours, weights, n_repeated, (a, b) = kernels.csr(
            node_numbers("sources", self.sources, n), node_numbers("targets", self.targets, n), weights,
            n_nodes=n, both_ways=not directed, keep_first=duplicates == "first",
        )  # fmt: skip
        if n_repeated and duplicates == "reject":
            raise self.error(
                f"{self.where}: the edge from {names[a]!r} to {names[b]!r} is listed more than once; "
                'duplicates="sum" adds the weights, duplicates="first" keeps the first'
            )
        if weights is not None and not np.isfinite(weights).all():
            raise self.error(f"{self.where}: the summed weight of an edge exceeds float32")
        if self.weights is None and weights is not None and (weights == weights[0]).all():
            weights = None
        return offsets, neighbours, weights


def node_numbers(name: str, ends: np.ndarray, n_nodes: int) -> np.ndarray:
    """Contiguous int32, checked to be from 0 to n_nodes - 1."""
    if ends.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected node numbers (integers) or names, got {ends.dtype}")
    if len(ends) and not (ends.min() >= 0 and ends.max() < n_nodes):
        wrong = int(np.flatnonzero((ends < 0) | (ends >= n_nodes))[0])
        raise ValueError(f"{name}[{wrong}]: expected a node from 0 to {n_nodes - 1}, got {ends[wrong]}")
    if n_nodes > 2**31 - 1:
        raise ValueError(f"expected at most 2**31 - 1 nodes, got {n_nodes}")
    return np.ascontiguousarray(ends, np.int32)


def _edge_weights(weights: Any, n: int) -> np.ndarray:
    """float32 (n,), checked to be above 0 and finite."""
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


# ---- from arrays ----------------------------------------------------------------------------------------------------


def edges_of_arrays(
    sources: Any, targets: Any, weights: Any, names: Sequence[str] | None, n_nodes: int | None
) -> Edges:
    """Edges from sources[i] to targets[i], node numbers or names."""
    sources, targets = np.asarray(sources), np.asarray(targets)
    if sources.ndim != 1 or sources.shape != targets.shape:
        raise ValueError(f"sources and targets must have the same length, got {sources.shape} and {targets.shape}")
    if sources.dtype.kind in "OUST" or targets.dtype.kind in "OUST":
        if names is not None or n_nodes is not None:
            raise ValueError("names and n_nodes require edges between node numbers; these edges are between names")
        index: dict[str, int] = {}
        for a, b in zip(sources, targets, strict=True):
            index.setdefault(_name(a), len(index))
            index.setdefault(_name(b), len(index))
        sources, targets = (
            np.fromiter((index[_name(x)] for x in ends), np.int64, len(ends)) for ends in (sources, targets)
        )
        return Edges(sources, targets, weights, list(index))
    n_nodes = _count_nodes(sources, targets, names, n_nodes)
    sources, targets = node_numbers("sources", sources, n_nodes), node_numbers("targets", targets, n_nodes)
    return Edges(sources, targets, weights, numbered_names(n_nodes) if names is None else list(names))


def numbered_names(n: int) -> list[str]:
    """Names of nodes without names: "0", "1", ..."""
    return [str(i) for i in range(n)]


def _count_nodes(sources: np.ndarray, targets: np.ndarray, names: Any, n_nodes: int | None) -> int:
    if names is not None:
        if n_nodes not in (None, len(names)):
            raise ValueError(f"n_nodes is {n_nodes}, but there are {len(names)} names")
        return len(names)
    if n_nodes is not None:
        return int(n_nodes)
    return 1 + max((int(ends.max()) for ends in (sources, targets) if len(ends)), default=-1)


def _name(node: Any) -> str:
    if node is None or node != node:
        raise ValueError(f"expected node names or numbers, got {node!r}")
    return node.decode() if isinstance(node, bytes) else str(node)


# ---- from other libraries -------------------------------------------------------------------------------------------


def edges_of_scipy(matrix: Any, names: Sequence[str] | None, weighted: bool | None) -> Edges:
    """The entries of a square sparse matrix, as directed edges."""
    if not hasattr(matrix, "tocoo"):
        raise TypeError(f"expected a sparse matrix from scipy.sparse, got {type(matrix).__name__}")
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"expected a square matrix, got {' x '.join(map(str, matrix.shape))}")
    entries = matrix.tocoo(copy=matrix.dtype == bool or weighted is False)
    if weighted and entries.dtype == bool:
        raise ValueError("weighted=True requires a numeric matrix, got a boolean one")
    if entries.dtype == bool or weighted is False:
        entries.eliminate_zeros()  # explicitly stored zeros are not edges
    weights = None if entries.dtype == bool or weighted is False else entries.data
    if weights is not None and weighted is None and (np.asarray(weights) == 1).all():
        weights = None
    n = matrix.shape[0]
    names = numbered_names(n) if names is None else list(names)
    rows, columns = (node_numbers(name, getattr(entries, name), n) for name in ("row", "col"))
    return Edges(rows, columns, weights, names, "the matrix")


def edges_of_networkx(graph: Any, weight: str | None) -> Edges:
    """The edges of a networkx graph, between nodes named str(node)."""
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
    return Edges(ends[0].copy(), ends[1].copy(), weights if found else None, [str(node) for node in nodes])


def edges_of_igraph(graph: Any, weight: str | None) -> Edges:
    """The edges of an igraph.Graph, between nodes with the vertices' "name" or number."""
    edges = np.array(graph.get_edgelist(), np.int32).reshape(-1, 2)
    names = graph.vs["name"] if "name" in graph.vs.attributes() else range(graph.vcount())
    weights = graph.es[weight] if weight is not None and weight in graph.es.attributes() else None
    return Edges(edges[:, 0].copy(), edges[:, 1].copy(), weights, [str(name) for name in names])


# ---- from files -----------------------------------------------------------------------------------------------------


def check_no_nodes(path: Path, nodes: list[str]) -> None:
    """ValueError if nodes are given beside a matrix."""
    if nodes:
        raise ValueError(f"{path}: nodes= is for edge lists only; a matrix defines all of its nodes")


def read_edges(
    path: Path, weighted: bool | None, nodes: list[str], progress: ReadProgress | None
) -> tuple[Edges, bool | None]:
    """The edges in an edge list or a Matrix Market file, and whether the latter says that they are directed."""
    chunks = sources.plain_chunks(path, progress)
    head = _head(chunks)
    if head.startswith(_MATRIX_MARKET):
        check_no_nodes(path, nodes)
        return _read_matrix_market(path, head, chunks, weighted)
    reader = kernels.EdgeReader(weights=_WEIGHTS[weighted], numbered=0, first_line=1)
    columns = _read_columns(path, reader, _chain(head, chunks))
    names: Sequence[str] = Texts.of_lines(reader.names())
    if nodes:
        known = set(names)
        names = [*names, *(name for name in nodes if name not in known)]
    return Edges(*columns, names, str(path), FormatError), None


def _head(chunks: Iterator[bytes]) -> bytes:
    """Enough bytes to recognise the format; for a Matrix Market file, everything up to the line with the sizes."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= len(_MATRIX_MARKET) and not (head.startswith(_MATRIX_MARKET) and _size_line(head) is None):
            break
    return head


def _size_line(head: bytes) -> tuple[int, int, int] | None:
    """Begin, end and number of the first line that is not a comment; None if it is incomplete."""
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


def _read_columns(path: Path, reader: Any, chunks: Iterator[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Sources, targets and weights of all lines; faults become errors with file and line."""
    parts = []
    for chunk in chunks:
        _check_fault(path, reader.add_bytes(chunk))
        parts.append(reader.take())
    _check_fault(path, reader.end())
    parts.append(reader.take())
    columns = []
    for i in range(3 if reader.weighted else 2):
        columns.append(np.concatenate([part[i] for part in parts]))
        parts = [(*part[:i], None, *part[i + 1 :]) for part in parts]  # frees the pieces of this column
    return columns[0], columns[1], columns[2] if reader.weighted else None


def _check_fault(path: Path, fault: tuple[str, int, int, int, bytes] | None) -> None:
    if fault is None:
        return
    kind, line, found, expected, text = fault
    what = {
        "columns": f"expected {expected or 'two or three'} columns (node, node"
        f"{'' if expected == 2 else ', weight'}), got {found}: {text!r}",
        "weight": f"expected a weight above 0 and finite, got {text!r}",
        "name": f"expected a node name in UTF-8, got {text!r}. Is this a text file?",
        "number": f"expected a node number from 1 to {expected}, got {text!r}",
        "too_many_nodes": f"more than 2**31 - 1 nodes: {text!r}",
    }[kind]
    raise FormatError(f"{path}:{line}: {what}")


def _read_matrix_market(
    path: Path, head: bytes, chunks: Iterator[bytes], weighted: bool | None
) -> tuple[Edges, bool | None]:
    """Source of the format: https://math.nist.gov/MatrixMarket/formats.html."""
    fields = head[: head.find(b"\n")].decode("ascii", "replace").lower().split()
    if len(fields) != 5 or fields[1:3] != ["matrix", "coordinate"] or fields[3] not in ("real", "integer", "pattern"):
        raise FormatError(f"{path}:1: expected a sparse matrix (coordinate; real, integer or pattern), got {fields}")
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
        raise FormatError(f"{path}:1: weighted=True requires weights, but the matrix is a pattern")
    use = weighted is not False and fields[3] != "pattern"
    reader = kernels.EdgeReader(weights="read" if use else "ignored", numbered=n, first_line=place[2] + 1)
    rows, columns, weights = _read_columns(path, reader, _chain(head[place[1] + 1 :], chunks))
    if len(rows) != n_entries:
        raise FormatError(f"{path}: expected {n_entries:,} entries, got {len(rows):,}; was the file cut short?")
    names = [str(i + 1) for i in range(n)]
    return Edges(rows, columns, weights if use else None, names, str(path), FormatError), fields[4] == "general"


def load_npz(path: Path) -> Any:
    """A matrix that scipy.sparse.save_npz wrote."""
    try:
        from scipy.sparse import load_npz
    except ImportError:
        raise ImportError("reading .npz needs scipy: pip install embfast[scipy]") from None
    try:
        return load_npz(path)
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise FormatError(f"{path}: expected a matrix that scipy.sparse.save_npz wrote, got: {error}") from None


def read_parquet(path: FilePath | Iterable[FilePath], source: str, target: str, weight: str | None) -> Edges:
    """Edges from columns of Parquet files."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError("reading Parquet needs pyarrow: pip install embfast[parquet]") from None
    columns = [source, target] + ([] if weight is None else [weight])
    tables = [_read_parquet_columns(file, columns) for file in sources.find_files(path)]
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
    return Edges(from_ids, to_ids, weights, names, f"columns {source!r} and {target!r}")


def _read_parquet_columns(file: Path, columns: list[str]) -> Any:
    """A pyarrow.Table without nulls and nested values."""
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowIOError) as error:
        raise FormatError(f"{file}: expected a Parquet file, got: {error}") from None
    for column in columns:
        if column not in schema.names:
            raise KeyError(f"{file}: no column {column!r}; it has the columns {', '.join(map(repr, schema.names))}")
    table = pyarrow.parquet.read_table(file, columns=columns)
    for column in columns:
        kind = table[column].type
        if pyarrow.types.is_nested(kind):
            raise ValueError(f"{file}: column {column!r}: expected names or numbers, got {kind}")
        if table[column].null_count:
            raise ValueError(f"{file}: column {column!r} has {table[column].null_count} nulls")
    return table
