"""Walks follow the enumerated probabilities, equal the plain reference, and do not depend on the number of threads."""

from itertools import pairwise

import numpy as np
import pytest

from embfast import Graph, reference

pytest.importorskip("numba")
from numba import njit

from embfast.graphs.walk_kernels import member_word
from embfast.graphs.walks import Walks, next_draw


@njit
def _word(begin, degree, n_nodes, x):
    return member_word(begin, degree, n_nodes, x)


SETTINGS = [(1, 1), (0.25, 4), (4, 0.25), (1, 0.5), (1e-3, 1e3), (1e3, 1e-3)]


def small_graph(kind):
    """18 nodes: a clique, a ring, a star that joins them, self loops, one isolated node; with dead ends if directed."""
    ring = [(i, i % 6 + 6) for i in range(6, 12)]
    clique = [(i, j) for i in range(6) for j in range(i)]
    edges = [*clique, *ring, *[(12, i) for i in range(0, 17, 2) if i != 12], (0, 0), (7, 7), (13, 8), (15, 16)]
    edges += [(5, 13), (5, 15), *edges[3:9:2]]  # the last ones repeat
    sources, targets = np.array(edges).T
    weights = None
    if "weighted" in kind:
        weights = np.random.default_rng(5).uniform(0.1, 4, len(edges))
    return Graph.from_edges(sources, targets, weights, n_nodes=18, directed="directed" in kind,
                            duplicates="sum" if "sum" in kind or weights is not None else "first")  # fmt: skip


def wide_graph(weighted):
    """300 nodes in a ring, each with its next three and one chosen at random: rows have fewer bits than nodes."""
    rng = np.random.default_rng(8)
    a = np.repeat(np.arange(300), 4)
    b = (a + np.tile([1, 2, 3, 0], 300) + np.where(np.arange(1200) % 4 == 3, rng.integers(4, 290, 1200), 0)) % 300
    return Graph.from_edges(a, b, rng.uniform(0.1, 2, 1200) if weighted else None, duplicates="first")


KINDS = ["plain", "weighted", "directed", "directed weighted", "sum"]


def deviation(graph, walks, p, q, thresholds=None):
    """The p-value of all transitions against the enumerated probabilities, and the number of impossible ones."""
    chi2 = pytest.importorskip("scipy.stats").chi2
    ids, offsets = walks.read(0, 0, len(walks))
    n = len(graph)
    inner = np.ones(len(ids), bool)
    inner[offsets[:-1]] = False
    second = inner.copy()
    second[np.minimum(offsets[:-1] + 1, len(ids) - 1)] = False
    places = np.flatnonzero(second)
    firsts = np.flatnonzero(inner & ~second)
    seen = np.zeros((n + 1, n, n), np.int64)
    np.add.at(seen, (ids[places - 2], ids[places - 1], ids[places]), 1)
    np.add.at(seen, (np.full(len(firsts), n), ids[firsts - 1], ids[firsts]), 1)
    statistic, freedom, impossible = 0.0, 0, 0
    for previous, current in np.argwhere(seen.sum(2)):
        got = seen[previous, current]
        row = graph.neighbours[graph.offsets[current] : graph.offsets[current + 1]]
        came = -1 if previous == n else previous
        expected = np.zeros(n)
        expected[row] = got.sum() * reference.transition_probabilities(graph, came, current, p, q, thresholds)
        impossible += int(got[expected == 0].sum())
        common = expected >= 5
        rest = expected[~common].sum()
        statistic += ((got[common] - expected[common]) ** 2 / expected[common]).sum()
        freedom += int(common.sum()) - 1
        if rest >= 5:
            statistic += (got[~common].sum() - rest) ** 2 / rest
            freedom += 1
    return chi2.sf(statistic, max(freedom, 1)), impossible


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "q"), SETTINGS)
def test_transitions_have_the_probabilities_of_node2vec(kind, p, q):
    graph = small_graph(kind)
    walks = Walks(graph, length=30, per_node=600, p=p, q=q, seed=3)
    value, impossible = deviation(graph, walks, p, q)
    assert impossible == 0
    assert 1e-4 < value < 1 - 1e-6


@pytest.mark.parametrize("kind", ["plain", "weighted", "directed"])
def test_swapped_p_and_q_are_seen(kind):
    graph = small_graph(kind)
    walks = Walks(graph, length=30, per_node=600, p=0.25, q=4, seed=3)
    assert deviation(graph, walks, 4, 0.25)[0] < 1e-9


@pytest.mark.parametrize(("p", "q"), [(0.25, 4), (4, 0.25), (1, 0.5)])
def test_transitions_have_the_probabilities_of_node2vec_plus(p, q):
    graph = small_graph("weighted")
    thresholds = reference.noise_thresholds(graph, 0.5)
    walks = Walks(graph, length=30, per_node=600, p=p, q=q, plus=True, gamma=0.5, seed=3)
    value, impossible = deviation(graph, walks, p, q, thresholds)
    assert impossible == 0
    assert 1e-4 < value < 1 - 1e-6
    assert deviation(graph, walks, p, q)[0] < 1e-9  # which differ from node2vec's


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "q"), SETTINGS)
def test_walks_are_those_of_the_reference(kind, p, q):
    graph = small_graph(kind)
    for restart, plus in ((0, False), (0.2, False), (0, True)):
        if plus and graph.weights is None:
            continue
        thresholds = reference.noise_thresholds(graph, 0.25) if plus else None
        walks = Walks(graph, length=12, per_node=2, p=p, q=q, restart=restart, plus=plus, gamma=0.25, seed=2**63 + 7)
        ids, offsets = walks.read(0, len(walks) // 2, len(walks))  # the second repetition
        assert len(offsets) == len(walks.starts) + 1
        for begin, end in pairwise(offsets):
            expected = reference.random_walk(graph, int(ids[begin]), 1, length=12, p=p, q=q, restart=restart,
                                             thresholds=thresholds, seed=2**63 + 7)  # fmt: skip
            assert ids[begin:end].tolist() == expected


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("p", "q"), [(0.25, 4), (4, 0.25)])
def test_rows_with_fewer_bits_than_nodes_are_searched_where_bits_leave_it_open(weighted, p, q):
    graph = wide_graph(weighted)
    for plus in (False, True) if weighted else (False,):
        thresholds = reference.noise_thresholds(graph, 0) if plus else None
        walks = Walks(graph, length=25, per_node=1, p=p, q=q, plus=plus, seed=3)
        assert walks.device_job()[1]["members"] is not None
        ids, offsets = walks.read(0, 0, len(walks))  # more walks than one group holds
        for begin, end in list(pairwise(offsets))[::3]:
            expected = reference.random_walk(graph, int(ids[begin]), 0, length=25, p=p, q=q, thresholds=thresholds,
                                             seed=3)  # fmt: skip
            assert ids[begin:end].tolist() == expected


def test_every_neighbour_has_its_bit():
    """Few other nodes have one, and none where the row has a bit for each node."""
    graph = wide_graph(False)
    # 30 more neighbours for node 0 and some for ten others: the bits of these rows number about the nodes.
    more = [(0, x) for x in range(100, 130)] + [(v, x) for v in range(10, 20) for x in range(200, 196 + v)]
    rows = np.repeat(np.arange(300), graph.degrees)
    hub = Graph.from_edges(*np.hstack([(rows, graph.neighbours), np.array(more).T]), duplicates="first")
    table = Walks(hub, q=2).device_job()[1]["members"]
    wrong = 0
    for v in range(300):
        begin, degree = int(hub.offsets[v]), int(hub.degrees[v])
        has = []
        for x in range(300):
            word, bits = _word(begin, degree, 300, x)
            assert begin // 4 <= word < -(-(begin + degree) // 4)
            has.append(table[word] & bits == bits)
        neighbours = hub.neighbours[begin : begin + degree]
        assert all(has[x] for x in neighbours)
        wrong += sum(has) - degree
        if degree * 16 >= 300 + 128:
            assert sum(has) == degree
    assert hub.degrees.max() * 16 >= 300 + 128
    assert (np.abs(hub.degrees * 16 - 300) < 64).sum() >= 8
    assert 16 * np.median(hub.degrees) < 300
    assert wrong < 300 * 300 / 30


TYPES = np.array([0, 1, 1, 2, 0, 1, 2, 0, 1, 0, 2, 1, 1, 0, 2, 1, 0, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metapath", [(0, 1, 0), (0, 1, 2, 1, 0), (1, 1), (2, 1, 2)])
def test_metapaths_are_those_of_the_reference(kind, metapath):
    graph = small_graph(kind)
    walks = Walks(graph, length=12, per_node=3, types=TYPES, metapath=metapath, seed=5)
    ids, offsets = walks.read(0, len(walks.starts), 2 * len(walks.starts))
    wanted = [metapath[step % (len(metapath) - 1)] for step in range(12)]
    for begin, end in pairwise(offsets):
        walk = ids[begin:end].tolist()
        assert TYPES[walk].tolist() == wanted[: len(walk)]
        assert walk == reference.random_walk(graph, walk[0], 1, length=12, types=TYPES, metapath=metapath, seed=5)
    assert walks.read(0, 0, len(walks), threads=2)[0].tolist() == walks.read(0, 0, len(walks))[0].tolist()


def test_metapaths_draw_by_weight():
    graph = Graph.from_edges([0, 0, 0, 0], [1, 2, 3, 4], [1.0, 2.0, 5.0, 100.0])
    walks = Walks(graph, length=401, per_node=50, types=np.array([0, 1, 1, 1, 2]), metapath=(0, 1, 0), seed=1)
    rows = walks.read(0, 0, len(walks))[0].reshape(-1, 401)
    counts = np.bincount(rows[:, 1::2].ravel(), minlength=5)
    assert counts[[0, 4]].tolist() == [0, 0]
    np.testing.assert_allclose(counts[1:4] / counts.sum(), [1 / 8, 2 / 8, 5 / 8], atol=0.015)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metapath": (0, 1, 0)}, "requires the types"),
        ({"types": TYPES[:3], "metapath": (0, 1, 0)}, "types: expected 18 integers, 0 or more"),
        ({"types": TYPES - 1, "metapath": (0, 1, 0)}, "types: expected 18 integers, 0 or more"),
        ({"types": TYPES, "metapath": (0, 1)}, "types that end with the first type"),
        ({"types": TYPES, "metapath": (0, 3, 0)}, "types from 0 to 2"),
        ({"types": TYPES, "metapath": (0, 1, 0), "q": 2}, "cannot be combined with p, q"),
        ({"types": TYPES, "metapath": (0, 1, 0), "restart": 0.1}, "cannot be combined with p, q"),
        ({"types": np.where(TYPES == 1, 0, TYPES) * (np.arange(18) != 17) + 4 * (np.arange(18) == 17),
          "metapath": (4, 2, 4)}, "no edge leads from the first type"),
    ],
)  # fmt: skip
def test_invalid_metapaths_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Walks(small_graph("plain"), **options)


@pytest.mark.parametrize(("kind", "p", "q"), [("directed", 1, 1), ("plain", 0.25, 4), ("weighted", 4, 0.25)])
def test_threads_and_pieces_do_not_change_the_walks(kind, p, q):
    graph = small_graph(kind)
    walks = Walks(graph, length=9, per_node=60, p=p, q=q, seed=1)
    ids, offsets = walks.read(1, 0, len(walks))
    again, cuts = walks.read(1, 0, len(walks), threads=3)
    assert again.tolist() == ids.tolist()
    assert cuts.tolist() == offsets.tolist()
    parts = [walks.read(1, lo, min(lo + 37, len(walks)))[0] for lo in range(0, len(walks), 37)]
    assert np.concatenate(parts).tolist() == ids.tolist()
    assert walks.read(0, 0, len(walks))[0].tolist() != ids.tolist()


def test_every_node_with_an_edge_starts_its_walks():
    graph = small_graph("directed")
    walks = Walks(graph, length=7, per_node=3)
    ids, offsets = walks.read(0, 0, len(walks))
    starts, counts = np.unique(ids[offsets[:-1]], return_counts=True)
    assert starts.tolist() == np.flatnonzero(graph.degrees).tolist()
    assert set(counts.tolist()) == {3}
    ends = ids[offsets[1:] - 1][np.diff(offsets) < 7]
    assert len(ends)  # only dead ends end walks early
    assert (graph.degrees[ends] == 0).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_hubs_and_extreme_settings_end(weighted):
    """A step that favours leaving a clique rejects nearly all candidates; a return is a rare candidate."""
    n = 300
    clique = np.array([(i, j) for i in range(n) for j in range(i)] + [(0, n)]).T
    graph = Graph.from_edges(*clique, np.ones(len(clique[0])) if weighted else None)
    for p, q in ((1e6, 1e-6), (1e-6, 1e6), (1e6, 1e6)):
        ids, _ = Walks(graph, length=20, per_node=1, p=p, q=q).read(0, 0, 300)
        assert len(ids) == 20 * 300
        rows = ids.reshape(300, 20)
        back = (rows[:, 2:] == rows[:, :-2]).mean()
        assert (back > 0.99) == (p < 1)


def test_walks_restart_with_the_given_probability():
    graph = Graph.from_edges(np.arange(1000), (np.arange(1000) + 1) % 1000, directed=True)
    walks = Walks(graph, length=50, per_node=4, restart=0.3)
    rows = walks.read(0, 0, len(walks))[0].reshape(-1, 50)
    share = (rows[:, 1:] == rows[:, :1]).mean()
    assert abs(share - 0.3) < 0.01


def test_transition_of_the_user():
    @njit
    def odd_only(offsets, neighbours, weights, start, previous, current, step, draw):
        n = offsets[current + 1] - offsets[current]
        for _ in range(1000):
            x = neighbours[offsets[current] + np.int64(draw % np.uint64(n))]
            if x % 2 or x == start:
                return x
            draw = next_draw(draw)
        return -1

    n = 21
    graph = Graph.from_edges(*np.array([(i, j) for i in range(n) for j in range(i)]).T)
    walks = Walks(graph, length=40, per_node=2, transition=odd_only, seed=4)
    ids, offsets = walks.read(0, 0, len(walks))
    for begin, end in pairwise(offsets):
        assert all(x % 2 or x == ids[begin] for x in ids[begin:end])
    assert len(np.unique(ids)) == n
    assert walks.read(0, 0, len(walks), threads=2)[0].tolist() == ids.tolist()


def test_transition_that_leaves_the_graph_is_an_error():
    @njit
    def astray(offsets, neighbours, weights, start, previous, current, step, draw):
        return 99

    with pytest.raises(ValueError, match="neither a node nor -1"):
        Walks(small_graph("plain"), transition=astray).read(0, 0, 3)


def test_node2vec_plus_requires_weights():
    with pytest.raises(ValueError, match="needs a graph with weights"):
        Walks(small_graph("plain"), plus=True)


@pytest.mark.parametrize(
    "wrong",
    [{"p": -1}, {"p": np.nan}, {"q": np.inf}, {"restart": 2}, {"length": 0}, {"per_node": 0}, {"seed": -1}],
    ids=str,
)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Walks(Graph.from_edges([0, 1], [1, 2]), **wrong)


def test_walks_out_of_range_are_refused():
    walks = Walks(Graph.from_edges([0, 1], [1, 2]), length=4, per_node=2)
    for asked in ((0, 0, 7), (0, -1, 2), (0, 3, 2), (-1, 0, 2)):
        with pytest.raises(ValueError, match="expected walks from 0 to 6"):
            walks.read(*asked)
    with pytest.raises(TypeError, match=r"compiled with numba\.njit"):
        Walks(Graph.from_edges([0, 1], [1, 2]), transition=lambda *_: 0)
