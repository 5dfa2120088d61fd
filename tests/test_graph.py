"""Graphs from every source; error messages have file and line."""

import gzip
import lzma
import mmap
import pickle

import numpy as np
import pytest
import zstandard

from embfast import Graph
from embfast.errors import FormatError
from embfast.files.texts import Texts


def rows(graph):
    """Neighbours by name, with weights if the graph has them."""
    found = {}
    for v, name in enumerate(graph.names):
        row = slice(graph.offsets[v], graph.offsets[v + 1])
        names = [graph.names[x] for x in graph.neighbours[row]]
        found[name] = names if graph.weights is None else dict(zip(names, graph.weights[row].tolist(), strict=True))
    return found


def is_mapped(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# ---- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_those_of_a_dense_matrix(directed, weighted, seed):
    rng = np.random.default_rng(seed)
    n, n_edges = 40, 300
    a, b = rng.integers(0, n - 2, (2, n_edges))
    w = rng.uniform(0.1, 3, n_edges).astype(np.float32) if weighted else None
    dense = np.zeros((n, n))
    for i in range(n_edges):
        dense[a[i], b[i]] += 1 if w is None else w[i]
        if not directed and a[i] != b[i]:
            dense[b[i], a[i]] += 1 if w is None else w[i]
    graph = Graph.from_edges(a, b, w, n_nodes=n, directed=directed)
    for v in range(n):
        row = slice(graph.offsets[v], graph.offsets[v + 1])
        assert graph.neighbours[row].tolist() == np.flatnonzero(dense[v]).tolist()
        np.testing.assert_allclose(graph.weights[row], dense[v][dense[v] > 0], rtol=1e-6)
    entries = (dense > 0).sum()
    loops = (np.diag(dense) > 0).sum()
    assert graph.n_self_loops == loops
    assert graph.n_edges == (entries if directed else (entries + loops) // 2)
    assert graph.degrees[-2:].tolist() == [0, 0]


def test_edges_listed_twice():
    a, b = ["x", "y", "y"], ["y", "x", "z"]
    assert rows(Graph.from_edges(a, b)) == {"x": {"y": 2}, "y": {"x": 2, "z": 1}, "z": {"y": 1}}
    first = Graph.from_edges(a, b, [5, 6, 7], duplicates="first")
    assert rows(first) == {"x": {"y": 5}, "y": {"x": 5, "z": 7}, "z": {"y": 7}}
    assert Graph.from_edges(["x", "y"], ["y", "x"]).weights is None  # both directions listed: all sums are equal
    with pytest.raises(ValueError, match="the edge from 'x' to 'y' is listed more than once"):
        Graph.from_edges(a, b, duplicates="reject")
    assert Graph.from_edges(a, b, directed=True, duplicates="reject").n_edges == 3


@pytest.mark.parametrize("seed", range(3))
def test_the_first_of_edges_listed_twice_is_the_first_listed(seed):
    """In unsorted rows that are too long for insertion sort."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 12, (2, 1000))
    w = rng.uniform(1, 2, 1000).astype(np.float32)
    graph = Graph.from_edges(a, b, w, n_nodes=12, directed=True, duplicates="first")
    first = {}
    for edge in zip(a.tolist(), b.tolist(), w.tolist(), strict=True):
        first.setdefault(edge[:2], edge[2])
    ends = zip(np.repeat(np.arange(12), graph.degrees).tolist(), graph.neighbours.tolist(), strict=True)
    assert dict(zip(ends, graph.weights.tolist(), strict=True)) == first


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), 1e-60, 1e60])
def test_bad_weights_are_named(bad):
    with pytest.raises(ValueError, match=r"weights\[1\]: expected a weight above 0"):
        Graph.from_edges([0, 1], [1, 2], [1.0, bad])


def test_invalid_edges_are_refused():
    for a, b, options, message in [
        ([0, -1], [1, 1], {}, r"sources\[1\]: expected a node from 0"),
        ([0, 5], [1, 1], {"n_nodes": 3}, r"sources\[1\]: expected a node from 0 to 2, got 5"),
        ([0], [1, 1], {}, "sources and targets must have the same length"),
        ([0.0], [1.0], {}, "node numbers .integers. or names"),
        ([0], [1], {"names": ["a", "a"]}, "names must be distinct"),
        ([0], [1], {"duplicates": "keep"}, "duplicates must be"),
        ([0], [1], {"weights": [1.0, 2.0]}, "expected 1 weights"),
        (np.empty(0, int), np.empty(0, int), {"n_nodes": 3}, "no edges"),
    ]:
        with pytest.raises(ValueError, match=message):
            Graph.from_edges(a, b, **options)
    with pytest.raises(ValueError, match="exceeds float32"):
        Graph.from_edges([0, 0], [1, 1], [3e38, 3e38])


# ---- files -----------------------------------------------------------------------------------------------------------

TEXT = "# a comment\n% another\n\nb a 1.5\r\na\tc  +2e0 \n  c c .25\nlong-name-of-more-than-16-bytes ä 1"
EXPECTED = {
    "b": {"a": 1.5},
    "a": {"b": 1.5, "c": 2.0},
    "c": {"a": 2.0, "c": 0.25},
    "long-name-of-more-than-16-bytes": {"ä": 1.0},
    "ä": {"long-name-of-more-than-16-bytes": 1.0},
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, zstandard.ZstdCompressor().compress])
def test_edge_lists(tmp_path, pack):
    path = write(tmp_path / "edges", pack(TEXT.encode()))
    reports = []
    graph = Graph.from_file(path, nodes=["alone", "a"], progress=lambda done, total: reports.append((done, total)))
    assert rows(graph) == {**EXPECTED, "alone": {}}
    assert list(rows(graph)) == [*EXPECTED, "alone"]
    assert reports[-1] == (path.stat().st_size,) * 2
    assert rows(Graph.from_file(path, weighted=False))["a"] == ["b", "c"]
    assert rows(Graph.from_file(path, directed=True))["a"] == {"c": 2.0}
    with pytest.raises(FormatError, match=r"edges:4: expected 3 columns.*got 2: b'b a"):
        Graph.from_file(write(tmp_path / "edges", TEXT.replace(" 1.5", "")), weighted=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a", "expected 3 columns"),
        ("a b", "expected 3 columns .*got 2"),
        ("a b 1 2", "expected 3 columns .*got 4"),
        ("a b x", "expected a weight above 0 and finite, got b'x'"),
        ("a b 1x", "expected a weight"),
        ("a b -1", "expected a weight"),
        ("a b 0", "expected a weight"),
        ("a b nan", "expected a weight"),
        ("a b inf", "expected a weight"),
        ("a b 1e99", "expected a weight"),
        (b"a \xff\xfe 1", "expected a node name in UTF-8"),
        (b"a b\0 1", "expected a node name in UTF-8"),
    ],
)
def test_broken_lines_are_named_far_into_a_file(tmp_path, line, message):
    good = b"some thing 1\n" * 200_000
    bad = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(FormatError, match=f"edges:200001: {message}"):
        Graph.from_file(write(tmp_path / "edges", good + bad + b"\n" + good))


def test_a_broken_line_is_named_ten_million_lines_into_a_file(tmp_path):
    block = b"a b 1\n" * 100_000
    with open(tmp_path / "edges", "wb") as file:
        for _ in range(100):
            file.write(block)
        file.write(b"a b -1\n" + block)
    with pytest.raises(FormatError, match=r"edges:10000001: expected a weight above 0 and finite, got b'-1'"):
        Graph.from_file(tmp_path / "edges")


def test_columns_are_those_of_the_first_line(tmp_path):
    with pytest.raises(FormatError, match=r"e:1: expected two or three columns .*got 5"):
        Graph.from_file(write(tmp_path / "e", "1 2 3 4 5\n"))
    with pytest.raises(FormatError, match=r"e:2: expected 2 columns .*got 3"):
        Graph.from_file(write(tmp_path / "e", "1 2\n2 3 1\n"))
    with pytest.raises(FormatError, match="no edges in"):
        Graph.from_file(write(tmp_path / "e", "# nothing\n"))
    with pytest.raises(FormatError, match="more than once"):
        Graph.from_file(write(tmp_path / "e", "1 2\n2 1\n"), duplicates="reject")
    with pytest.raises(FileNotFoundError):
        Graph.from_file(tmp_path / "none")
    with pytest.raises(FormatError, match="cut short"):
        Graph.from_file(write(tmp_path / "e", gzip.compress(b"a b\n" * 1000)[:-9]))


MARKET = "%%MatrixMarket matrix coordinate real general\n% by hand\n3 3 2\n1 2 0.5\n3 1 2\n"


def test_matrix_market(tmp_path):
    path = write(tmp_path / "m.mtx", MARKET)
    graph = Graph.from_file(path)
    assert graph.directed
    assert rows(graph) == {"1": {"2": 0.5}, "2": {}, "3": {"1": 2.0}}
    with pytest.raises(ValueError, match="edge from '1' to '2' has no counterpart"):
        Graph.from_file(path, directed=False)
    graph = Graph.from_file(write(path, MARKET.replace("general", "symmetric")))
    assert rows(graph) == {"1": {"2": 0.5, "3": 2.0}, "2": {"1": 0.5}, "3": {"1": 2.0}}
    pattern = MARKET.replace("real", "pattern").replace(" 0.5", "").replace("1 2\n", "1\n")
    assert rows(Graph.from_file(write(path, pattern.replace("1\n3", "1 2\n3")))) == {"1": ["2"], "2": [], "3": ["1"]}
    for old, new, message in [
        ("real", "complex", "m.mtx:1: expected a sparse matrix"),
        ("general", "skew-symmetric", "m.mtx:1: expected a general or symmetric"),
        ("3 3 2", "3 4 2", "m.mtx:3: expected a square matrix"),
        ("3 3 2", "3 3", "m.mtx:3: expected rows, columns and entries"),
        ("3 3 2", "3 3 4", "expected 4 entries, got 2"),
        ("3 1 2", "4 1 2", "m.mtx:5: expected a node number from 1 to 3, got b'4'"),
        ("3 1 2", "3 0 2", "m.mtx:5: expected a node number"),
        ("3 1 2", "3 1 -2", "m.mtx:5: expected a weight"),
    ]:
        with pytest.raises(FormatError, match=message):
            Graph.from_file(write(path, MARKET.replace(old, new)))


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"from": [7, 8], "to": [8, 9], "w": [0.5, 2.0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"from": [9], "to": [7], "w": [1.0]}), tmp_path / "b.parquet")
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    graph = Graph.from_parquet(paths, "from", "to", "w")
    assert rows(graph) == {"7": {"8": 0.5, "9": 1.0}, "8": {"7": 0.5, "9": 2.0}, "9": {"8": 2.0, "7": 1.0}}
    assert Graph.from_parquet(paths, "from", "to").weights is None
    with pytest.raises(KeyError, match="no column 'source'"):
        Graph.from_parquet(paths)
    pq.write_table(pa.table({"source": ["a", None], "target": ["b", "c"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="has 1 nulls"):
        Graph.from_parquet(tmp_path / "c.parquet")
    with pytest.raises(FormatError, match="expected a Parquet file"):
        Graph.from_parquet(write(tmp_path / "d.parquet", "no"))


# ---- libraries -------------------------------------------------------------------------------------------------------


def test_scipy(tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.csr_matrix(np.array([[0, 2, 0], [2, 0, 1], [0, 1, 3.0]]))
    graph = Graph.from_scipy(matrix, names=list("abc"))
    assert not graph.directed
    assert graph.n_self_loops == 1
    assert rows(graph) == {"a": {"b": 2}, "b": {"a": 2, "c": 1}, "c": {"b": 1, "c": 3}}
    sparse.save_npz(tmp_path / "m.npz", matrix)
    assert rows(Graph.from_file(tmp_path / "m.npz")) == rows(Graph.from_scipy(matrix))
    assert Graph.from_scipy(sparse.triu(matrix)).directed
    with pytest.raises(ValueError, match="edge from '0' to '1' has no counterpart"):
        Graph.from_scipy(sparse.triu(matrix), directed=False)
    assert Graph.from_scipy(matrix > 0).weights is None
    with pytest.raises(ValueError, match="square"):
        Graph.from_scipy(matrix[:2])
    with pytest.raises(ValueError, match=r"weights\[0\]"):
        Graph.from_scipy(-matrix)
    with pytest.raises(FormatError, match=r"save_npz wrote"):
        Graph.from_file(write(tmp_path / "bad.npz", "no"))


def test_symmetric_matrices_are_undirected():
    """In a directed ring, every node has equal in- and out-degree, but the matrix is not symmetric."""
    ring = np.array([[0, 1, 2], [1, 2, 0]])
    assert Graph.from_pyg(ring).directed
    both = np.hstack([ring, ring[::-1]])
    assert not Graph.from_pyg(both).directed
    assert not Graph.from_pyg(both, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]).directed
    uneven = Graph.from_pyg(both, [1.0, 2.0, 3.0, 1.0, 2.0, 4.0])
    assert uneven.directed
    with pytest.raises(ValueError, match="edge from '0' to '2' has no counterpart with the same weight"):
        Graph.from_pyg(both, [1.0, 2.0, 3.0, 1.0, 2.0, 4.0], directed=False)


def test_edge_index():
    graph = Graph.from_pyg(np.array([[0, 1, 1, 2], [1, 0, 2, 1]]), [2.0, 2.0, 1.0, 1.0], n_nodes=4)
    assert not graph.directed
    assert rows(graph) == {"0": {"1": 2}, "1": {"0": 2, "2": 1}, "2": {"1": 1}, "3": {}}
    assert Graph.from_pyg(np.array([[0, 1], [1, 2]])).directed
    with pytest.raises(ValueError, match="edge_index of shape"):
        Graph.from_pyg(np.zeros((3, 2), int))


def test_networkx():
    networkx = pytest.importorskip("networkx")
    given = networkx.Graph([("a", "b", {"weight": 2.0}), ("b", "c")])
    given.add_node("d")
    assert rows(Graph.from_networkx(given)) == {"a": {"b": 2}, "b": {"a": 2, "c": 1}, "c": {"b": 1}, "d": {}}
    assert Graph.from_networkx(given, weight=None).weights is None
    twice = networkx.MultiDiGraph([(1, 2), (1, 2), (2, 3)])
    assert rows(Graph.from_networkx(twice)) == {"1": {"2": 2}, "2": {"3": 1}, "3": {}}


def test_igraph():
    igraph = pytest.importorskip("igraph")
    given = igraph.Graph(n=3, edges=[(0, 1)], directed=True)
    given.vs["name"] = ["x", "y", "z"]
    given.es["weight"] = [0.5]
    assert rows(Graph.from_igraph(given)) == {"x": {"y": 0.5}, "y": {}, "z": {}}


# ---- saved -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0]])
def test_a_saved_graph_is_mapped(tmp_path, weights):
    graph = Graph.from_edges(["é", "b", "c"], ["b", "c", "é"], weights, directed=True)
    graph.save(tmp_path / "g.safetensors")
    loaded = Graph.load(tmp_path / "g.safetensors")
    assert rows(loaded) == rows(graph)
    assert loaded.directed
    assert is_mapped(loaded.neighbours)
    assert is_mapped(loaded.offsets)
    assert loaded.fingerprint() == graph.fingerprint()
    assert is_mapped(loaded.names.utf8)
    assert loaded.names == graph.names == list(loaded.names)
    assert loaded.names != ["é", "b", "d"]
    assert (loaded.names[0], loaded.names[-1], loaded.names[1:]) == ("é", "c", ["b", "c"])
    with pytest.raises(ValueError, match="read-only"):
        loaded.neighbours[0] = 1


def test_names_of_a_file_are_kept_as_text(tmp_path):
    names = [f"{'é' * (i % 40)}{i}" for i in range(40_000)]
    text = "".join(f"{a} {b}\n" for a, b in zip(names[::2], names[1::2], strict=True))
    graph = Graph.from_file(write(tmp_path / "edges", text))
    assert isinstance(graph.names, Texts)
    assert graph.names == names
    assert [graph.names[i] for i in (0, 16_384, 39_999)] == [names[i] for i in (0, 16_384, 39_999)]
    graph.save(tmp_path / "graph")
    assert pickle.loads(pickle.dumps(Graph.load(tmp_path / "graph"))).names == names
    assert repr(graph.names) == "Texts(40,000: '0', 'é1', 'éé2', ...)"
    more = Graph.from_file(tmp_path / "edges", nodes=["0", "alone"])
    assert more.names == [*names, "alone"]


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "g.safetensors"
    Graph.from_edges([0, 1], [1, 2]).save(path)
    whole = path.read_bytes()
    with pytest.raises(FormatError, match="cut short"):
        Graph.load(write(path, whole[:-3]))
    with pytest.raises(FormatError, match="expected words in UTF-8"):
        Graph.load(write(path, whole[:-1] + b"\xc3"))
    graph = Graph.from_edges([0, 1], [1, 2])
    place = whole.rfind(graph.neighbours.tobytes())
    with pytest.raises(FormatError, match="expected neighbours from 0 to 2"):
        Graph.load(write(path, whole[:place] + b"\x09" + whole[place + 1 :]))
    with pytest.raises(FormatError, match="offsets must ascend"):
        Graph.load(write(path, whole.replace(graph.offsets.tobytes(), graph.offsets[::-1].tobytes())))


# ---- invalid graphs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"neighbours": np.array([2, 1, 0, 0])}, ValueError, "neighbours must ascend in each row.*node 0"),
        ({"neighbours": np.array([1, 1, 0, 0])}, ValueError, "without repeats; those of node 0"),
        ({"neighbours": np.array([1, 2, 0, 0.5])}, TypeError, "neighbours: expected integers, got float64"),
        ({"neighbours": np.array([1, 2, 2, 0])}, ValueError, "in the rows of both their nodes"),
        ({"weights": np.array([1, 1, -1, 1], np.float32)}, ValueError, "above 0 and finite, got -1.0 for an edge"),
        ({"weights": np.array([1, np.nan, 1, 1], np.float32)}, ValueError, "got nan for an edge of node 0"),
        ({"names": ["a", "b", "a"]}, ValueError, "'a' is repeated"),
        ({"names": ["a", "b", 3]}, TypeError, "expected str, got 3"),
    ],
    ids=str,
)  # fmt: skip
def test_arrays_that_are_not_a_graph(changed, error, says):
    arrays = {"names": ["a", "b", "c"], "offsets": np.array([0, 2, 3, 4]), "neighbours": np.array([1, 2, 0, 0])}
    Graph(**arrays)
    with pytest.raises(error, match=says):
        Graph(**{**arrays, **changed})


def test_stored_zeros_are_not_edges():
    sparse = pytest.importorskip("scipy.sparse")
    places = ([0, 0, 1, 2], [1, 2, 0, 1])
    kept = Graph.from_scipy(sparse.coo_array(([True, False, True, True], places), shape=(3, 3)))
    assert (kept.n_edges, kept.neighbours.tolist()) == (3, [1, 0, 1])
    assert Graph.from_scipy(sparse.coo_array(([1.0, 0.0, 2.0, 3.0], places), shape=(3, 3)), weighted=False).n_edges == 3
    own = sparse.coo_array(([True, False], ([0, 1], [1, 0])), shape=(2, 2))
    Graph.from_scipy(own)
    assert own.nnz == 2
    with pytest.raises(ValueError, match="requires a numeric matrix, got a boolean one"):
        Graph.from_scipy(sparse.coo_array(([True] * 4, places), shape=(3, 3)), weighted=True)


def test_invalid_node_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got None"):
        Graph.from_edges(["a", None], ["b", "a"])
    (tmp_path / "m.mtx").write_text("%%MatrixMarket matrix coordinate pattern symmetric\n2 2 1\n2 1\n")
    with pytest.raises(ValueError, match="nodes= is for edge lists only"):
        Graph.from_file(tmp_path / "m.mtx", nodes=["q"])
    (tmp_path / "e.txt").write_text("1 2\n")
    with pytest.raises(TypeError, match="names of type str"):
        Graph.from_file(tmp_path / "e.txt", nodes=[1])


def test_a_byte_order_mark_is_not_part_of_a_name(tmp_path):
    (tmp_path / "e.txt").write_bytes("\ufeff# made by hand\na b\n".encode())
    assert list(Graph.from_file(tmp_path / "e.txt").names) == ["a", "b"]
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress("\ufeffa b\n".encode()))
    assert list(Graph.from_file(tmp_path / "e.txt.gz").names) == ["a", "b"]


def test_objects_of_other_libraries():
    with pytest.raises(TypeError, match=r"expected a sparse matrix from scipy\.sparse, got ndarray"):
        Graph.from_scipy(np.eye(3))
    assert Graph(["a", "b"], [0, 1, 2], [1, 0]).n_edges == 1
    torch = pytest.importorskip("torch")
    learned = torch.rand(2, requires_grad=True)
    graph = Graph.from_pyg(torch.tensor([[0, 1], [1, 0]]), learned, directed=True)
    np.testing.assert_array_equal(graph.weights, learned.detach().numpy())
