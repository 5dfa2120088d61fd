"""Node classification and link prediction."""

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
    """F1 of predicted labels at one share of labelled nodes: means over the splits, and their standard deviations."""

    train: float
    macro: float
    micro: float
    macro_deviation: float
    micro_deviation: float
    splits: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
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
    """Predicts the labels of nodes from their vectors, for each share of nodes whose labels are known.

    The protocol of DeepWalk and node2vec: one logistic regression for each label against all others; of a node known to
    have k labels, the k most probable ones count; shuffled splits. Nodes without labels are left out.

    Args:
        labels: of each node, or a file of lines `node label label ...`, plain or compressed.
        train: the share of nodes to learn from, or several: 0.1 to 0.9 in the papers.

    Raises:
        ImportError: scikit-learn is missing.
        KeyError: a labelled node has no vector.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import f1_score
    except ImportError:
        raise ImportError("node classification needs scikit-learn: pip install scikit-learn") from None
    given = labels if isinstance(labels, Mapping) else read_labels(labels)
    known = {node: {names} if isinstance(names, str) else set(names) for node, names in given.items()}
    nodes = [node for node, names in known.items() if names]
    classes = sorted({name for node in nodes for name in known[node]})
    if len(nodes) < 2 or len(classes) < 2:
        raise ValueError(f"expected 2 labelled nodes and 2 labels or more, got {len(nodes)} and {len(classes)}")
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
            learn, ask = order[:cut], order[cut:]
            probable = np.full((len(ask), len(classes)), -np.inf)
            for c in range(len(classes)):
                has = truth[learn, c]
                if has.all() or not has.any():
                    probable[:, c] = np.inf if has.all() else -np.inf
                    continue
                classifier = LogisticRegression(solver="liblinear").fit(features[learn], has)
                probable[:, c] = classifier.decision_function(features[ask])
            wanted = truth[ask].sum(1)
            place = np.argsort(np.argsort(-probable, axis=1, kind="stable"), axis=1, kind="stable")
            predicted = place < wanted[:, None]
            scores.append(
                [f1_score(truth[ask], predicted, average=kind, zero_division=0) for kind in ("macro", "micro")]
            )
        (macro, micro), (macro_deviation, micro_deviation) = np.mean(scores, 0).tolist(), np.std(scores, 0).tolist()
        results.append(NodeClassification(share, macro, micro, macro_deviation, micro_deviation, splits))
    return results


def read_labels(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Lines `node label label ...`, plain or compressed; a node may have none."""
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
            raise FormatError(f"{path}:{number}: node {fields[0]!r} came before")
        labels[fields[0]] = fields[1:]
    return labels


_OPERATORS = {
    "hadamard": lambda a, b: a * b,
    "average": lambda a, b: (a + b) / 2,
    "l1": lambda a, b: np.abs(a - b),
    "l2": lambda a, b: (a - b) ** 2,
}


def edge_vectors(vectors: Vectors, edges: Iterable[tuple[str, str]], operator: str = "hadamard") -> np.ndarray:
    """Vectors of pairs of nodes, float32 (edges, dim): hadamard, average, l1 or l2 of the vectors of both ends.

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
    """A graph without some of its edges, those edges, and as many pairs of nodes that have none."""

    graph: Graph
    removed: list[tuple[str, str]]
    absent: list[tuple[str, str]]


def split_edges(graph: Graph, share: float = 0.5, seed: int = 0) -> EdgeSplit:
    """Takes edges away at random for link prediction, but those of a random spanning forest: no component falls apart.

    Of a graph that is not directed. Self loops stay; absent pairs are drawn alike among all without an edge.

    Raises:
        ImportError: scipy is missing.
        ValueError: the graph is directed, or too many of its edges hold it together.
    """
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import minimum_spanning_tree
    except ImportError:
        raise ImportError("splitting edges needs scipy: pip install embfast[scipy]") from None
    if graph.directed:
        raise ValueError("expected a graph that is not directed")
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
        raise ValueError(f"the graph lacks {n_pairs - len(a)} edges; expected {n_removed} or more")
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
    """How well vectors of split.graph tell its removed edges from absent ones: the area under the ROC curve.

    A logistic regression on edge_vectors of a `train` share of both, asked about the others.

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
