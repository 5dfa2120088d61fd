"""LINE: what each order tells apart, edges drawn by weight, the same bits again, checkpoints, the command line."""

import json

import numpy as np
import pytest
import saved
from test_node2vec import two_cliques
from typer.testing import CliRunner

from embfast import LINE, Graph, kernels, reference
from embfast.cli import app
from embfast.graphs.line import BUFFER, _Edges, _seed
from embfast.training.sampling import NegativePool, noise_weights
from embfast.training.tables import NODE_REACH, initial_weights
from embfast.vectors.vectors import Vectors

SMALL = {"dim": 16, "epochs": 60, "lr": 0.05, "threads": 1}


@pytest.mark.parametrize("order", ["1", "2", 1, "both"])
@pytest.mark.parametrize("threads", [1, 2])
def test_communities_are_told_apart(order, threads):
    model = LINE(**{**SMALL, "order": order, "threads": threads}).fit(two_cliques())
    assert model.vectors_.matrix.shape == (25, 32 if order == "both" else 16)
    for word in ("a3", "b3"):
        assert all(other[0] == word[0] for other, _ in model.vectors_.most_similar(word, k=8))
    assert model.loss_[-1] < model.loss_[0]
    assert model.words_[-1] == "alone"
    assert model.counts_.tolist() == [12, 12] + 22 * [11] + [0]
    if order == "both":
        np.testing.assert_allclose(np.linalg.norm(model.vectors_.matrix.reshape(25, 2, 16), axis=2), 1, rtol=1e-5)


def test_orders_differ_on_a_bipartite_graph():
    """Nodes of one side are not neighbours but have the same ones: the second order puts them together."""
    edges = [(f"{g}{i}", f"{g.upper()}{j}") for g in "ab" for i in range(8) for j in range(8)]
    graph = Graph.from_edges(*zip(*edges, strict=True))
    second = LINE(**SMALL, order="2").fit(graph).vectors_
    assert all(other[0] == "a" for other, _ in second.most_similar("a0", k=7))
    first = LINE(**SMALL, order="1").fit(graph).vectors_
    assert {other[0] for other, _ in first.most_similar("a0", k=15)} <= {"a", "A"}
    assert first.similarity("a0", "A3") > second.similarity("a0", "A3") + 0.2


def test_direction_counts_in_the_second_order():
    """s0..s9 point to t, and t points to u alone: as sources they are alike, and t is not."""
    graph = Graph.from_edges([f"s{i}" for i in range(10)] + ["t", "u"], ["t"] * 10 + ["u", "s0"], directed=True)
    model = LINE(**{**SMALL, "epochs": 300}, order="2").fit(graph)
    assert model.words_[0] == "t"
    assert model.counts_[0] == 10
    near = model.vectors_.most_similar("s3", k=9)
    assert {key for key, _ in near} == {f"s{i}" for i in range(10)} - {"s3"}
    for order in ("1", "both"):
        with pytest.raises(ValueError, match="undirected edges"):
            LINE(**SMALL, order=order).fit(graph)


@pytest.mark.parametrize("order", ["1", "2"])
def test_training_is_skip_gram_on_drawn_edges(order):
    """Against the numbers: one step of logistic regression for the target and for each drawn node, edge by edge."""
    nodes, negatives, seed = (100, 1, 32) if order == "1" else (12, 3, 4)
    ring = np.arange(nodes)
    graph = Graph.from_edges(np.append(ring, ring[:5]), np.append((ring + 1) % nodes, ring[:5] + nodes // 2))
    settings = {"dim": 7, "epochs": 2 if order == "2" else 1, "negatives": negatives, "lr": 0.5, "seed": seed}
    model = LINE(**settings, order=order, threads=1).fit(graph)
    row_of = {word: i for i, word in enumerate(model.words_)}
    edges = _Edges(graph, np.array([row_of[name] for name in graph.names], np.int32))
    table = kernels.weight_table(nodes, 7)
    initial_weights(table, 7, _seed(seed, order), reach=NODE_REACH)
    w_in = table[:, :7].astype(np.float64)
    before = w_in.copy()
    w_out = w_in if order == "1" else np.zeros_like(w_in)
    pool = NegativePool(noise_weights(model.counts_, 0.75), negatives, BUFFER * negatives, _seed(seed, order))
    for epoch in range(settings["epochs"]):
        drawn = edges.draw(len(edges), _seed(seed, "edges " + order), epoch)
        sources, targets = drawn.tags, drawn.ids
        noise = pool(epoch, 0)
        lr = 0.5 + (0.5 / 10_000 - 0.5) * epoch / settings["epochs"]  # an epoch is one block
        place = reference.Stream(_seed(seed, order), epoch, reference.Purpose.PLACE)(0)
        place = int(reference.below(place, len(noise)))
        for a, b in zip(sources, targets, strict=True):
            if place + negatives > len(noise):
                place = 0
            outs = [b, *noise[place : place + negatives]]
            place += negatives
            assert order == "2" or a not in outs  # then two moves would meet in one row; this seed has none
            moves = []
            for k, x in enumerate(outs):
                if not k or x != b:
                    moves.append((x, lr * ((k == 0) - 1 / (1 + np.exp(-w_in[a] @ w_out[x])))))
            gradient = sum(error * w_out[x] for x, error in moves)
            old = w_in[a].copy()
            w_in[a] += gradient
            for x, error in moves:
                w_out[x] += error * old
    rounded = kernels.isa() == "avx512bf16"  # factors have 8 bits there
    trained = saved.tensors(model)[f"w_in_{order}"]
    np.testing.assert_allclose(trained, w_in, rtol=1e-3, atol=5e-3 if rounded else 1e-5)
    assert np.abs(w_in - before).max() > 0.05


def test_edges_are_drawn_by_weight_in_both_directions():
    graph = Graph.from_edges([0, 1, 2, 2], [1, 2, 0, 2], [1.0, 2.0, 3.0, 50.0])
    edges = _Edges(graph, np.array([0, 1, 2], np.int32))
    drawn = edges.draw(120_000, 1, 0)
    sources, targets = drawn.tags, drawn.ids
    seen = np.zeros((3, 3))
    np.add.at(seen, (sources, targets), 1 / 120_000)
    expected = np.array([[0, 1, 3], [1, 0, 2], [3, 2, 0]]) / 12  # not the self loop
    np.testing.assert_allclose(seen, expected, atol=0.006)
    with pytest.raises(ValueError, match="no edge between two nodes"):
        LINE(**SMALL).fit(Graph.from_edges([0, 1], [0, 1]))


def test_walks_follow_weights():
    n = 20
    pairs = [(i, j) for i in range(n) for j in range(i)]
    weights = [1.0 if i % 2 == j % 2 else 0.02 for i, j in pairs]
    for order in ("1", "2"):
        model = LINE(**SMALL, order=order).fit(Graph.from_edges(*np.array(pairs).T, weights))
        found = [int(other) for other, _ in model.vectors_.most_similar("6", k=9)]
        assert sum(other % 2 == 0 for other in found) >= 8


def test_one_thread_gives_the_same_bits_again(tmp_path):
    a, b = (LINE(**SMALL, seed=7).fit(two_cliques()) for _ in range(2))
    assert (a.vectors_.matrix == b.vectors_.matrix).all()
    assert (LINE(**SMALL, seed=8).fit(two_cliques()).vectors_.matrix != a.vectors_.matrix).any()
    a.save(tmp_path / "m.safetensors")
    loaded = LINE.load(tmp_path / "m.safetensors")
    assert loaded.get_params() == a.get_params()
    assert (loaded.vectors_.matrix == a.vectors_.matrix).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_resumes_where_it_was_interrupted(tmp_path, monkeypatch, threads):
    from embfast.graphs import line

    monkeypatch.setattr(line, "BUFFER", 100)
    settings = {**SMALL, "epochs": 5, "threads": threads}
    whole = LINE(**settings).fit(two_cliques())
    n = 0

    def stop(status):
        nonlocal n
        n += 1
        if n == 7:
            raise KeyboardInterrupt

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        LINE(**settings).fit(two_cliques(), checkpoint=path, checkpoint_minutes=0, progress=stop)
    resumed = LINE(**settings).fit(two_cliques(), checkpoint=path, resume=True)
    assert len(resumed.loss_) == 5
    if threads == 1:
        assert (resumed.vectors_.matrix == whole.vectors_.matrix).all()
    with pytest.raises(ValueError, match=r"lr was 0\.05, is 0\.1"):
        LINE(**{**settings, "lr": 0.1}).fit(two_cliques(), checkpoint=path, resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"order": 3}, "order must be"), ({"negatives": 0}, "negatives must be"), ({"lr": 0}, "lr must be"),
     ({"epochs": 0}, "epochs must be"), ({"dim": 0}, "dim must be")],
)  # fmt: skip
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        LINE(**{**SMALL, **settings}).fit(two_cliques())


def test_command_line(tmp_path):
    edges = tmp_path / "edges.tsv"
    edges.write_text("".join(f"{g}{i}\t{g}{j}\n" for g in "ab" for i in range(9) for j in range(i)))
    arguments = ["line", str(edges), "-o", str(tmp_path / "n.bin"), "--dim", "8", "--json", "-q", "--epochs", "2"]
    result = CliRunner().invoke(app, [*arguments, "--save-model", str(tmp_path / "m.safetensors")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["settings"]["order"] == "both"
    assert Vectors.load(tmp_path / "n.bin").matrix.shape == (18, 16)
    result = CliRunner().invoke(app, ["neighbors", str(tmp_path / "m.safetensors"), "a0", "--json"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, [*arguments, "--directed"])
    assert result.exit_code == 2
    assert "undirected" in result.stderr


def test_a_self_loop_is_never_drawn_and_does_not_count():
    graph = Graph.from_edges(["a", "a"], ["b", "a"], [1.0, 1000.0])
    model = LINE(dim=4, epochs=1, threads=1).fit(graph)
    assert model.counts_[0] == model.counts_[1]
