"""Scores of node vectors: node classification and link prediction.

Sources: DeepWalk (Perozzi et al. 2014) and node2vec (Grover and Leskovec 2016).
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embfast.errors import FormatError
from embfast.graphs.graph import Graph
from embfast.text import sources
from embfast.vectors.vectors import Vectors


@dataclass(frozen=True)
class NodeClassification:
    """F1 of predicted labels for one ratio of training nodes: mean and standard deviation over the splits."""

    train: float
    macro: float
    micro: float
    macro_deviation: float
    micro_deviation: float
    splits: int

    def as_dict(self) -> dict[str, Any]:
        """A dict for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{100 * self.train:.0f} % labelled: Macro-F1 {self.macro:.4f} +- {self.macro_deviation:.4f}, "
            f"Micro-F1 {self.micro:.4f} +- {self.micro_deviation:.4f} ({self.splits} splits)"
        )


def node_classification(
    vectors: Vectors,
    labels: Mapping[str, Iterable[str]] | str | os.PathLike[str],
    *,
    train: float | Iterable[float] = 0.5,
    splits: int = 10,
    seed: int = 0,
) -> list[NodeClassification]:
    """Predicts the labels of nodes from their vectors, for one or more ratios of training nodes.

    The protocol of DeepWalk and node2vec: one-vs-rest logistic regression; for a test node with k labels, the k most
    probable labels are predicted; random splits. Nodes without labels are ignored.

    Args:
        labels: Labels of each node, or a file with lines `node label label ...`, plain or compressed.
        train: Ratio of training nodes, between 0 and 1, or several ratios. The papers use 0.1 to 0.9.
        splits: Number of random splits per ratio.
        seed: Seed of the splits.

    Raises:
        ImportError: scikit-learn is missing.
        KeyError: a labelled node has no vector.
    """
    try:
        from sklearn.metrics import f1_score
    except ImportError:
        raise ImportError("node classification needs scikit-learn: pip install scikit-learn") from None
    given = labels if isinstance(labels, Mapping) else read_labels(labels)
    known = {node: {names} if isinstance(names, str) else set(names) for node, names in given.items()}
    nodes = [node for node, names in known.items() if names]
    classes = sorted({name for node in nodes for name in known[node]})
    if len(nodes) < 2 or len(classes) < 2:
        raise ValueError(f"expected at least 2 labelled nodes and 2 labels, got {len(nodes)} and {len(classes)}")
    features = vectors[nodes]
    column = {name: i for i, name in enumerate(classes)}
    truth = np.zeros((len(nodes), len(classes)), bool)
    for i, node in enumerate(nodes):
        truth[i, [column[name] for name in known[node]]] = True
    results = []
    for share in [train] if isinstance(train, int | float) else train:
        if not 0 < share < 1:
            raise ValueError(f"train must be between 0 and 1, got {share}")
        scores = []
        for split in range(splits):
            order = np.random.default_rng([seed, split]).permutation(len(nodes))
            cut = min(max(1, round(share * len(nodes))), len(nodes) - 1)
            test = order[cut:]
            predicted = _predict_labels(features, truth, order[:cut], test)
            scores.append(
                [f1_score(truth[test], predicted, average=kind, zero_division=0) for kind in ("macro", "micro")]
            )
        (macro, micro), (macro_deviation, micro_deviation) = np.mean(scores, 0).tolist(), np.std(scores, 0).tolist()
        results.append(NodeClassification(share, macro, micro, macro_deviation, micro_deviation, splits))
    return results


def _predict_labels(features: np.ndarray, truth: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """bool (len(test), labels): each test node gets its true number of labels, the most probable ones."""
    from sklearn.linear_model import LogisticRegression

    probable = np.full((len(test), truth.shape[1]), -np.inf)
    for c in range(truth.shape[1]):
        has = truth[train, c]
        if has.all() or not has.any():
            probable[:, c] = np.inf if has.all() else -np.inf
            continue
        classifier = LogisticRegression(solver="liblinear").fit(features[train], has)
        probable[:, c] = classifier.decision_function(features[test])
    place = np.argsort(np.argsort(-probable, axis=1, kind="stable"), axis=1, kind="stable")
    return place < truth[test].sum(1)[:, None]


def read_labels(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Labels of each node from lines `node label label ...`, plain or compressed; a node may have no label."""
    text = b"".join(sources.plain_chunks(Path(path), None))
    labels: dict[str, list[str]] = {}
    for number, line in enumerate(text.split(b"\n"), 1):
        try:
            fields = line.decode().split()
        except UnicodeDecodeError:
            raise FormatError(f"{path}:{number}: expected UTF-8, got {line[:80]!r}") from None
        if not fields:
            continue
        if fields[0] in labels:
            raise FormatError(f"{path}:{number}: node {fields[0]!r} is listed twice")
        labels[fields[0]] = fields[1:]
    return labels


_OPERATORS = {
    "hadamard": lambda a, b: a * b,
    "average": lambda a, b: (a + b) / 2,
    "l1": lambda a, b: np.abs(a - b),
    "l2": lambda a, b: (a - b) ** 2,
}


def edge_vectors(vectors: Vectors, edges: Iterable[tuple[str, str]], operator: str = "hadamard") -> np.ndarray:
    """Vectors of node pairs, float32 (edges, dim): the "hadamard", "average", "l1" or "l2" of the vectors of both ends.

    >>> pairs = Vectors(["a", "b"], np.array([[1, 2], [3, 5]], np.float32))
    >>> edge_vectors(pairs, [("a", "b")], "l1").tolist()
    [[2.0, 3.0]]
    """
    if operator not in _OPERATORS:
        raise ValueError(f"operator must be one of {', '.join(_OPERATORS)}, got {operator!r}")
    edges = list(edges)
    return _OPERATORS[operator](vectors[[a for a, _ in edges]], vectors[[b for _, b in edges]])


@dataclass(frozen=True)
class EdgeSplit:
    """A graph without some of its edges, the removed edges, and an equal number of node pairs without an edge."""

    graph: Graph
    removed: list[tuple[str, str]]
    absent: list[tuple[str, str]]


def split_edges(graph: Graph, share: float = 0.5, seed: int = 0) -> EdgeSplit:
    """Removes random edges from an undirected graph for link prediction.

    The edges of a random spanning forest are kept, so every component stays connected. Self loops are kept too. Absent
    pairs are drawn uniformly from all pairs without an edge.

    Args:
        share: Ratio of the edges to remove, between 0 and 1.
        seed: Seed of the forest and the draws.

    Raises:
        ImportError: scipy is missing.
        ValueError: the graph is directed, or too few of its edges lie outside a spanning forest.
    """
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import minimum_spanning_tree
    except ImportError:
        raise ImportError("splitting edges needs scipy: pip install embfast[scipy]") from None
    if graph.directed:
        raise ValueError("expected an undirected graph")
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    rng = np.random.default_rng(seed)
    n = len(graph)
    rows = np.repeat(np.arange(n), graph.degrees)
    once = np.flatnonzero(rows < graph.neighbours)
    a, b = rows[once], graph.neighbours[once].astype(np.int64)
    cost = rng.permutation(len(a)) + 1.0
    forest = minimum_spanning_tree(coo_array((cost, (a, b)), shape=(n, n)).tocsr()).data
    free = np.setdiff1d(np.arange(len(a)), np.argsort(cost)[forest.astype(np.int64) - 1])
    n_removed = round(share * len(a))
    if not 0 < n_removed <= len(free):
        raise ValueError(f"cannot remove {n_removed} of {len(a)} edges: {len(free)} lie outside a spanning forest")
    removed = rng.choice(free, n_removed, replace=False)
    n_pairs = n * (n - 1) // 2
    if n_pairs - len(a) < n_removed:
        raise ValueError(f"only {n_pairs - len(a)} node pairs have no edge; expected {n_removed} or more")
    taken = np.sort(a * n + b)
    absent: np.ndarray = np.empty(0, np.int64)
    while len(absent) < n_removed:
        x, y = rng.integers(0, n, (2, 2 * n_removed))
        keys = np.minimum(x, y) * n + np.maximum(x, y)
        keys = keys[(x != y) & (taken[np.minimum(np.searchsorted(taken, keys), len(taken) - 1)] != keys)]
        _, first = np.unique(np.concatenate([absent, keys]), return_index=True)
        absent = np.concatenate([absent, keys])[np.sort(first)]
    absent = absent[:n_removed]
    kept = np.ones(len(a), bool)
    kept[removed] = False
    loops = np.flatnonzero(rows == graph.neighbours)
    entries = np.concatenate([once[kept], loops])
    rest = Graph.from_edges(
        rows[entries],
        graph.neighbours[entries],
        None if graph.weights is None else graph.weights[entries],
        names=graph.names,
    )

    def named(x: np.ndarray, y: np.ndarray) -> list[tuple[str, str]]:
        return [(graph.names[i], graph.names[j]) for i, j in zip(x.tolist(), y.tolist(), strict=True)]

    return EdgeSplit(rest, named(a[removed], b[removed]), named(absent // n, absent % n))


def link_prediction(
    vectors: Vectors, split: EdgeSplit, *, operator: str = "hadamard", train: float = 0.5, seed: int = 0
) -> float:
    """Area under the ROC curve for telling removed edges from absent ones, by vectors trained on split.graph.

    Fits a logistic regression on the edge_vectors of a ratio `train` of the pairs and scores the others.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ImportError("link prediction needs scikit-learn: pip install scikit-learn") from None
    if not 0 < train < 1:
        raise ValueError(f"train must be between 0 and 1, got {train}")
    features = edge_vectors(vectors, [*split.removed, *split.absent], operator)
    truth = np.repeat([True, False], [len(split.removed), len(split.absent)])
    order = np.random.default_rng(seed).permutation(len(truth))
    cut = round(train * len(truth))
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(features[order[:cut]], truth[order[:cut]])
    return float(roc_auc_score(truth[order[cut:]], model.decision_function(features[order[cut:]])))
