"""Node vectors: what a model learns, the same bits again, checkpoints, and the command line."""

import copy
import json

import numpy as np
import pytest
import saved
from typer.testing import CliRunner

from embfast import Graph, Node2Vec
from embfast.cli import app
from embfast.errors import FormatError
from embfast.vectors.vectors import Vectors

pytest.importorskip("numba")

from embfast.graphs.walks import Walks


def two_cliques(n=12, weights=None):
    """Nodes a0.. and b0.., one edge between the groups, and a node without an edge."""
    edges = [(f"{g}{i}", f"{g}{j}") for g in "ab" for i in range(n) for j in range(i)] + [("a0", "b0")]
    graph = Graph.from_edges(*zip(*edges, strict=True), weights)
    return Graph([*graph.names, "alone"], np.append(graph.offsets, graph.offsets[-1]), graph.neighbours, graph.weights)


SMALL = {"dim": 16, "walk_length": 20, "walks_per_node": 20, "window": 4, "epochs": 2, "lr": 0.05, "threads": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"p": 0.25, "q": 0.5},
        {"hs": True, "negatives": 0},
        {"hs": True},
        {"restart": 0.2},
        {"sample": 0.01},
        {"negatives_shared": False},
        {"threads": 2},
    ],
)
def test_communities_are_told_apart(settings):
    model = Node2Vec(**{**SMALL, **settings}).fit(two_cliques())
    assert sorted(model.words_) == sorted(two_cliques().names)
    nearest = {word: [other for other, _ in model.vectors_.most_similar(word, k=8)] for word in ("a3", "b3")}
    for word, found in nearest.items():
        assert all(other[0] == word[0] for other in found)
    assert model.loss_[1] < model.loss_[0]


def test_walks_follow_weights():
    """A complete graph whose weights alone make the groups."""
    n = 20
    edges = [(i, j) for i in range(n) for j in range(i)]
    weights = [1.0 if i % 2 == j % 2 else 0.02 for i, j in edges]
    graph = Graph.from_edges(*np.array(edges).T, weights)
    for settings in ({}, {"p": 0.5, "q": 2}, {"q": 0.5, "plus": True}):
        model = Node2Vec(**SMALL, **settings).fit(graph)
        found = [int(other) for other, _ in model.vectors_.most_similar("6", k=9)]
        assert sum(other % 2 == 0 for other in found) >= 8


def test_nodes_stand_in_the_order_of_visits():
    graph = two_cliques()
    model = Node2Vec(**SMALL).fit(graph)
    assert set(model.words_[:2]) == {"a0", "b0"}
    assert model.words_[-1] == "alone"
    assert model.counts_[-1] == 0
    degrees = dict(zip(graph.names, graph.degrees, strict=True))
    expected = np.array([degrees[word] for word in model.words_])
    total = 24 * 20 * 20
    np.testing.assert_allclose(model.counts_, total * expected / expected.sum(), atol=0.51)
    estimated = Node2Vec(**SMALL, p=0.5, q=0.5).fit(graph)  # counted in walks: not the same, but near
    assert estimated.words_[-1] == "alone"
    assert abs(estimated.counts_.sum() - total) < 20
    assert 0.5 < estimated.counts_[:24].min() / estimated.counts_[:24].mean() < 1


def test_one_thread_gives_the_same_bits_again():
    a, b = (Node2Vec(**SMALL, p=0.5, seed=7).fit(two_cliques()) for _ in range(2))
    assert (a.vectors_.matrix == b.vectors_.matrix).all()
    other = Node2Vec(**SMALL, p=0.5, seed=8).fit(two_cliques())
    assert (a.vectors_.matrix != other.vectors_.matrix).any()


def test_many_buffers_train_on_all_walks(monkeypatch):
    """Buffers of 5 walks, so that each thread of walks and of training meets its ends."""
    from embfast.graphs import node2vec

    seen = []

    def record(status):
        seen.append(status)

    monkeypatch.setattr(node2vec, "BUFFER", 100)
    model = Node2Vec(**{**SMALL, "threads": 2}).fit(two_cliques(), progress=record)
    assert len(seen) == 2 * 24 * 20 // 5
    assert seen[-1].done == 1
    assert [status.lr for status in seen] == sorted((status.lr for status in seen), reverse=True)
    nearest = [word for word, _ in model.vectors_.most_similar("a3", k=8)]
    assert all(word[0] == "a" for word in nearest)


@pytest.mark.parametrize("threads", [1, 2])
def test_resumes_where_it_was_interrupted(tmp_path, monkeypatch, threads):
    from embfast.graphs import node2vec

    monkeypatch.setattr(node2vec, "BUFFER", 2000)
    settings = {**SMALL, "threads": threads, "q": 0.5}
    whole = Node2Vec(**settings).fit(two_cliques())
    n = 0

    def stop(status):
        nonlocal n
        n += 1
        if n == 7:
            raise KeyboardInterrupt

    path = tmp_path / "run.safetensors"
    stopped = Node2Vec(**settings)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(two_cliques(), checkpoint=path, checkpoint_minutes=0, progress=stop)
    resumed = Node2Vec(**settings).fit(two_cliques(), checkpoint=path, resume=True)
    assert resumed.words_ == whole.words_
    if threads == 1:
        assert (resumed.vectors_.matrix == whole.vectors_.matrix).all()
    with pytest.raises(ValueError, match=r"q was 0\.5, is 2"):
        Node2Vec(**{**settings, "q": 2}).fit(two_cliques(), checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="another"):
        Node2Vec(**settings).fit(two_cliques(13), checkpoint=path, resume=True)


def test_saved_models_come_back(tmp_path):
    for settings in ({}, {"hs": True, "negatives": 0}):
        model = Node2Vec(**SMALL, **settings).fit(two_cliques())
        model.save(tmp_path / "m.safetensors")
        loaded = Node2Vec.load(tmp_path / "m.safetensors")
        assert loaded.get_params() == model.get_params()
        assert (loaded.vectors_.matrix == model.vectors_.matrix).all()
        assert loaded.words_ == model.words_
    from embfast import Word2Vec

    with pytest.raises(FormatError, match="expected a Word2Vec, got a Node2Vec"):
        Word2Vec.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("settings", [{}, {"hs": True, "negatives": 0}])
def test_partial_fit_learns_new_nodes_beside_the_old(settings):
    """The first graph lacks a3 and b7; the second has them and b12, and lacks the node without an edge."""
    whole = two_cliques()
    left_out = {whole.names.index(name) for name in ("a3", "b7")}
    ends = np.repeat(np.arange(len(whole)), whole.degrees), whole.neighbours
    kept = [(whole.names[a], whole.names[b]) for a, b in zip(*ends, strict=True) if not {a, b} & left_out and a < b]
    model = Node2Vec(**SMALL, **settings).fit(Graph.from_edges(*zip(*kept, strict=True)))
    assert "a3" not in model.words_
    counts = dict(zip(model.words_, model.counts_.tolist(), strict=True))
    model.partial_fit(whole)
    assert set(model.words_) == set(whole.names)
    assert (np.diff(model.counts_) <= 0).all()
    added = dict(zip(model.words_, model.counts_.tolist(), strict=True))
    assert all(added[name] > n for name, n in counts.items())
    assert len(model.loss_) == 4
    for word in ("a3", "b7", "a5"):
        assert all(other[0] == word[0] for other, _ in model.vectors_.most_similar(word, k=8))


def test_partial_fit_goes_on_with_fresh_walks_and_leaves_missing_nodes_alone():
    model = Node2Vec(**SMALL, hs=True).fit(two_cliques())
    words, nodes, counts = list(model.words_), saved.tensors(model)["w_nodes"], model.counts_.copy()
    before = {word: model.vectors_[word].copy() for word in words}
    part = Graph.from_edges(["a1", "a2", "a3"], ["a2", "a3", "a1"])
    model.partial_fit(part)
    assert model.words_ == words
    assert (model.counts_ == counts).all()  # with hs the tree stays
    assert (saved.tensors(model)["w_nodes"] != nodes).any()
    moved = {word for word in words if (model.vectors_[word] != before[word]).any()}
    assert moved == {"a1", "a2", "a3"}
    first = Node2Vec(**SMALL).partial_fit(two_cliques())  # untrained: as fit
    again = Node2Vec(**SMALL).fit(two_cliques())
    assert (first.vectors_.matrix == again.vectors_.matrix).all()
    assert (first.partial_fit(two_cliques()).loss_[2:]) != again.loss_


def test_a_saved_model_continues_with_the_same_bits(tmp_path):
    model = Node2Vec(**SMALL).fit(two_cliques())
    model.save(tmp_path / "m.safetensors")
    other = Node2Vec.load(tmp_path / "m.safetensors")
    grown = two_cliques(13)
    assert (model.partial_fit(grown).vectors_.matrix == other.partial_fit(grown).vectors_.matrix).all()
    assert model.loss_ == other.loss_


def test_partial_fit_refuses_another_shape():
    model = Node2Vec(**SMALL).fit(two_cliques())
    for changed, message in (
        ({"dim": 17}, "dim must stay 16"),
        ({"hs": True}, "hs cannot be switched on"),
        ({"hs": False, "negatives": 0}, "leave nothing to learn from"),
    ):
        with pytest.raises(ValueError, match=message):
            copy.copy(model).set_params(**changed).partial_fit(two_cliques())


def authors_and_papers():
    """Two groups of authors, each with papers of its own; both groups share the venue."""
    edges = [(f"{g}a{i}", f"{g}p{(i + j) % 8}") for g in "xy" for i in range(8) for j in range(4)]
    edges += [(f"{g}p{i}", "venue") for g in "xy" for i in range(8)]
    graph = Graph.from_edges(*zip(*edges, strict=True))
    return graph, {
        name: "venue" if name == "venue" else "author" if name[1] == "a" else "paper" for name in graph.names
    }


def test_metapaths_visit_the_types_that_they_name():
    graph, types = authors_and_papers()
    model = Node2Vec(**SMALL, metapath="author,paper,author").fit(graph, types=types)
    counts = dict(zip(model.words_, model.counts_.tolist(), strict=True))
    assert counts["venue"] == 0
    assert all(counts[name] > 0 for name in graph.names if name != "venue")
    nearest = [other for other, _ in model.vectors_.most_similar("xa3", k=12)]
    assert all(other[0] == "x" for other in nearest)
    listed = Node2Vec(**SMALL, metapath="author,paper,author").fit(graph, types=[types[name] for name in graph.names])
    assert (listed.vectors_.matrix == model.vectors_.matrix).all()
    with_venue = Node2Vec(**SMALL, metapath="author,paper,venue,paper,author").fit(graph, types=types)
    assert dict(zip(with_venue.words_, with_venue.counts_.tolist(), strict=True))["venue"] > 0


@pytest.mark.parametrize(
    ("metapath", "types", "message"),
    [
        ("author", {}, "metapath must be node types separated by commas"),
        ("author,paper", {}, "metapath must be node types separated by commas"),
        ("author,,author", {}, "metapath must be node types separated by commas"),
        ("author,paper,author", None, "needs types="),
        ("author,paper,author", {"xa0": "author"}, "types: node 'xp0' has no type"),
        ("author,paper,author", ["author"], "expected one for each of 33 nodes, got 1"),
        ("author,book,author", "all", "no node has the type 'book'; there are author, paper, venue"),
        (None, "all", "types are used with a metapath only"),
    ],
)
def test_metapaths_that_make_no_sense(metapath, types, message):
    graph, all_types = authors_and_papers()
    with pytest.raises(ValueError, match=message):
        Node2Vec(**SMALL, metapath=metapath).fit(graph, types=all_types if types == "all" else types)


def test_a_metapath_resumes_with_the_same_types_alone(tmp_path):
    graph, types = authors_and_papers()
    settings = {**SMALL, "metapath": "author,paper,author"}
    path = tmp_path / "run.safetensors"
    Node2Vec(**settings).fit(graph, types=types, checkpoint=path)
    Node2Vec(**settings).fit(graph, types=types, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="types was"):
        Node2Vec(**settings).fit(graph, types={**types, "venue": "paper"}, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 0}, "p must be"),
        ({"q": float("nan")}, "q must be"),
        ({"walk_length": 1}, "walk_length must be"),
        ({"walks_per_node": 0}, "walks_per_node must be"),
        ({"negatives": 0}, "leave nothing to learn from"),
        ({"restart": 1.5}, "restart must be"),
        ({"plus": True}, "needs a graph with weights"),
        ({"window": 0}, "window must be"),
        ({"lr": 0}, "lr must be"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        Node2Vec(**{**SMALL, **settings}).fit(two_cliques())


def test_what_is_no_graph():
    with pytest.raises(TypeError, match=r"expected an embfast\.Graph, got a builtins\.list"):
        Node2Vec().fit([(0, 1)])
    with pytest.raises(ValueError, match="at least 2 nodes"):
        Node2Vec().fit(Graph.from_edges([0], [0]))


def test_command_line(tmp_path):
    edges = tmp_path / "edges.tsv"
    edges.write_text("".join(f"{g}{i}\t{g}{j}\t{1 + i}\n" for g in "ab" for i in range(9) for j in range(i)))
    arguments = ["node2vec", str(edges), "-o", str(tmp_path / "n.bin"), "--p", "0.5", "--dim", "8", "--json", "-q",
                 "--walk-length", "10", "--walks-per-node", "3", "--window", "2", "--threads", "1"]  # fmt: skip
    graph = tmp_path / "graph.safetensors"
    result = CliRunner().invoke(app, [*arguments, "--save-graph", str(graph)])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["nodes"], said["edges"], said["weighted"], said["directed"]) == (18, 72, True, False)
    first = Vectors.load(tmp_path / "n.bin")
    assert first.matrix.shape == (18, 8)
    arguments[1] = str(graph)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (Vectors.load(tmp_path / "n.bin").matrix == first.matrix).all()
    arguments[1] = str(edges)
    result = CliRunner().invoke(app, [*arguments, "--no-weighted", "--directed"])
    said = json.loads(result.stdout)
    assert (said["weighted"], said["directed"]) == (False, True)
    edges.write_text("a b\nb\n")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "edges.tsv:2: expected 2 columns" in result.stderr


def test_command_line_of_metapaths(tmp_path):
    graph, types = authors_and_papers()
    edges, file = tmp_path / "edges.tsv", tmp_path / "types.tsv"
    rows = np.repeat(np.arange(len(graph)), graph.degrees)
    pairs = zip(rows, graph.neighbours, strict=True)
    edges.write_text("".join(f"{graph.names[a]} {graph.names[b]}\n" for a, b in pairs if a < b))
    file.write_text("".join(f"{name} {kind}\n" for name, kind in types.items()))
    arguments = ["node2vec", str(edges), "-o", str(tmp_path / "n.bin"), "--dim", "8", "--walk-length", "10", "-q",
                 "--metapath", "author,paper,author"]  # fmt: skip
    result = CliRunner().invoke(app, [*arguments, "--types", str(file)])
    assert result.exit_code == 0, result.output
    assert Vectors.load(tmp_path / "n.bin").keys[-1] == "venue"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--metapath and --types FILE must be given together" in result.stderr
    file.write_text("xa0 author paper\n")
    result = CliRunner().invoke(app, [*arguments, "--types", str(file)])
    assert "expected one type for node 'xa0'" in result.stderr


def test_visits_are_those_of_walks_that_end_early():
    """Three nodes lead to a fourth one, which no edge leaves."""
    model = Node2Vec(dim=4, epochs=1, threads=1, sample=0).fit(Graph.from_edges([0, 1, 2], [3, 3, 3], directed=True))
    assert dict(zip(model.words_, model.counts_.tolist(), strict=True)) == {"3": 30, "0": 10, "1": 10, "2": 10}


@pytest.mark.parametrize("changed", [{"dim": 8}, {"dim": 20}, {"hs": True}], ids=str)
def test_settings_that_shape_a_trained_model_stay(tmp_path, changed):
    model = Node2Vec(dim=16, epochs=1, threads=1).fit(two_cliques()).set_params(**changed)
    with pytest.raises(ValueError, match="once trained"):
        model.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_command_line_says_early_what_it_cannot_do(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"source": ["a", "c d", "a"], "target": ["b", "b", "c d"], "weight": [1.0, 2.0, 3.0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "e.parquet")
    edges, out = str(tmp_path / "e.parquet"), str(tmp_path / "o.npz")
    quick = ["--dim", "4", "--epochs", "1", "--threads", "1", "--json"]
    result = CliRunner().invoke(
        app, ["node2vec", edges, "-o", out, *quick, "--save-graph", str(tmp_path / "g.safetensors")]
    )
    assert json.loads(result.stdout)["weighted"]
    result = CliRunner().invoke(app, ["node2vec", edges, "-o", out, *quick, "--no-weighted"])
    assert not json.loads(result.stdout)["weighted"]
    result = CliRunner().invoke(app, ["node2vec", edges, "-o", str(tmp_path / "o.bin"), *quick])
    assert (result.exit_code, "c d" in result.stderr, (tmp_path / "o.bin").exists()) == (2, True, False)
    result = CliRunner().invoke(app, ["node2vec", str(tmp_path / "g.safetensors"), "-o", out, *quick, "--no-weighted"])
    assert (result.exit_code, "cannot change a saved graph" in result.stderr) == (2, True)


def test_visits_are_those_of_each_component():
    """Pairs, a clique and a node alone: a walk never leaves where it began."""
    pairs = [(f"p{i}", f"q{i}") for i in range(40)]
    clique = [(f"c{i}", f"c{j}") for i in range(10) for j in range(i)]
    graph = Graph.from_edges(*zip(*pairs, *clique, strict=True))
    model = Node2Vec(dim=4, walk_length=30, walks_per_node=10, epochs=1, threads=1).fit(graph)
    counts = dict(zip(model.words_, model.counts_.tolist(), strict=True))
    assert {counts[name] for pair in pairs for name in pair} == {300}
    assert {counts[f"c{i}"] for i in range(10)} == {300}


def test_components_are_those_of_scipy():
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    graph = Graph.from_edges(*rng.integers(0, 300, (2, 220)), n_nodes=300)
    matrix = sparse.csr_array((np.ones(len(graph.neighbours)), graph.neighbours, graph.offsets), shape=(300, 300))
    n, label = sparse.csgraph.connected_components(matrix)
    found = Walks(graph).components()
    assert len(np.unique(found)) == n
    for part in np.unique(label):
        assert set(found[label == part]) == {np.flatnonzero(label == part)[0]}


def test_types_in_a_generator_are_refused():
    with pytest.raises(TypeError, match="expected a list or a dict with the types of all nodes, got generator"):
        Node2Vec(metapath="x,x").fit(two_cliques(), types=("x" for _ in range(25)))


def test_the_program_does_not_write_over_the_types(tmp_path):
    (tmp_path / "e.txt").write_text("a b\nb a\n")
    (tmp_path / "t.txt").write_text("a x\nb y\n")
    given = [tmp_path / "e.txt", "--types", tmp_path / "t.txt", "--metapath", "x,y,x", "-o", tmp_path / "t.txt"]
    result = CliRunner().invoke(app, ["node2vec", *map(str, given)])
    assert result.exit_code == 2
    assert "would overwrite an input" in result.stderr
    assert (tmp_path / "t.txt").read_text() == "a x\nb y\n"
