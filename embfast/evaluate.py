"""Scores of word vectors on analogies and similarity, of node vectors on labels and missing edges, of retrieval.

Sources: compute-accuracy (Mikolov et al. 2013) and gensim; DeepWalk (Perozzi et al. 2014) and node2vec (Grover and
Leskovec 2016); recall at 1, 5, 10 and median rank as in Kiros et al. 2014.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embfast import kernels, sources
from embfast.errors import FormatError
from embfast.graph import Graph
from embfast.vectors import Vectors

Question = tuple[str, str, str, str]

_CELLS = 1 << 22  # cosines held at once: 16 MB
_EQUAL = 1e-6  # scores of retrieval that differ by less: an absolute difference of cosines, a relative one of others
_TOGETHER = 256  # questions answered by one pass over a block


@dataclass(frozen=True)
class Section:
    """Questions of one kind: how many were asked, answered rightly, and left out for an unknown word."""

    name: str
    correct: int
    total: int
    skipped: int

    @property
    def accuracy(self) -> float:
        """correct / total; NaN when no question was asked."""
        return self.correct / self.total if self.total else float("nan")

    def as_dict(self) -> dict:
        """For JSON: accuracy is None when no question was asked."""
        return {**asdict(self), "accuracy": self.accuracy if self.total else None}

    def __str__(self) -> str:
        share = f"{100 * self.accuracy:6.2f} %" if self.total else "     - %"
        return f"{share}  ({self.correct} / {self.total}, {self.skipped} skipped)  {self.name}"


@dataclass(frozen=True)
class Analogies:
    """The answers to a set of analogy questions, section by section."""

    sections: tuple[Section, ...]

    def _sum(self, name: str, sections: Iterable[Section]) -> Section:
        sections = list(sections)
        return Section(name, *(sum(getattr(s, field) for s in sections) for field in ("correct", "total", "skipped")))

    @property
    def total(self) -> Section:
        """All sections together."""
        return self._sum("total", self.sections)

    @property
    def semantic(self) -> Section:
        """The sections whose name does not begin with "gram": in questions-words.txt the first five."""
        return self._sum("semantic", (s for s in self.sections if not s.name.startswith("gram")))

    @property
    def syntactic(self) -> Section:
        """The sections whose name begins with "gram", as nine do in questions-words.txt."""
        return self._sum("syntactic", (s for s in self.sections if s.name.startswith("gram")))

    @property
    def accuracy(self) -> float:
        """Of all questions asked; NaN when none was."""
        return self.total.accuracy

    def as_dict(self) -> dict:
        """For JSON."""
        totals = {name: getattr(self, name).as_dict() for name in ("total", "semantic", "syntactic")}
        return {"sections": [section.as_dict() for section in self.sections], **totals}

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.sections, self.semantic, self.syntactic, self.total)))


@dataclass(frozen=True)
class Similarity:
    """Agreement with human judgements: correlations of cosines and judgements over `pairs` word pairs.

    spearman and pearson are NaN for fewer than two pairs, or when all judgements or all cosines are equal. `unknown`
    pairs had a word that the vectors lack.
    """

    spearman: float
    pearson: float
    pairs: int
    unknown: int
    listed: int

    @property
    def oov(self) -> float:
        """The share of the listed pairs that had an unknown word, 0..1."""
        return self.unknown / self.listed if self.listed else 0.0

    def as_dict(self) -> dict:
        """For JSON: a correlation that is not defined is None."""
        numbers = {name: None if np.isnan(value) else value for name, value in asdict(self).items()}
        return {**numbers, "oov": self.oov}

    def __str__(self) -> str:
        return (
            f"spearman {self.spearman:.4f}  pearson {self.pearson:.4f}  ({self.pairs} pairs; "
            f"{self.unknown} of {self.listed} with an unknown word)"
        )


def analogies(
    vectors: Vectors,
    questions: str | os.PathLike | Mapping[str, Iterable[Question]],
    *,
    restrict: int | None = 30_000,
    fold_case: bool = True,
    count_unknown: bool = False,
    method: str = "add",
) -> Analogies:
    """Asks "a is to b as c is to ?" and counts how often the best of all other keys is the expected one.

    Settings:
        questions: a file like questions-words.txt (": section" lines, then four words a line), or
            {section: [(a, b, c, expected), ...]}.
        restrict: use the first `restrict` keys only, for questions and answers alike; None or 0 for all.
            compute-accuracy is mostly run with 30000, gensim's default is 300000.
        fold_case: compare words in upper case; of keys that fold together the first counts.
        count_unknown: count a question with an unknown word as answered wrongly (gensim's dummy4unknown); else skip it.
        method: "add" (3CosAdd) or "mul" (3CosMul).

    The question's three words, in any case when fold_case, are no answers. Where keys differ by case alone this is
    gensim's rule; compute-accuracy rules out only the first of them. All else equals both.

    The cosines of all rows with each distinct question word are computed once, a block of rows at a time, and a
    question adds up three of them: 19,544 questions on 905 words cost 905 scalar products per row. Working memory is
    about 64 MB, whatever the number of rows.

    >>> rows = np.array([[1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]], dtype=np.float32)
    >>> royal = Vectors(["man", "woman", "king", "queen"], rows)
    >>> print(analogies(royal, {"family": [("man", "woman", "king", "queen")]}).total)
    100.00 %  (1 / 1, 0 skipped)  total

    Raises:
        FormatError: a line that is neither a section nor four words, or a question before the first section.
    Source: Mikolov et al. 2013, arXiv:1301.3781; Levy & Goldberg 2014, https://aclanthology.org/W14-1618.
    """
    if method not in ("add", "mul"):
        raise ValueError(f'method must be "add" or "mul", got {method!r}')
    sections = questions.items() if isinstance(questions, Mapping) else _read_questions(questions).items()
    stop = _first(vectors, restrict)
    fold = str.upper if fold_case else str
    rows_of: dict[str, list[int]] = {}  # folded key -> its rows, the first counts
    for row, key in enumerate(vectors.keys[:stop]):
        rows_of.setdefault(fold(key), []).append(row)

    asked, section_of, skipped = [], [], []
    for number, (_, group) in enumerate(sections):
        skipped.append(0)
        for question in group:
            if len(question) != 4:
                raise ValueError(f"expected questions of four words, got {question!r}")
            folded = [fold(word) for word in question]
            if all(word in rows_of for word in folded):
                asked.append(folded)
                section_of.append(number)
            else:
                skipped[number] += 1
    words = sorted({word for question in asked for word in question[:3]}, key=lambda word: rows_of[word][0])
    place = {word: i for i, word in enumerate(words)}
    terms = np.array([[place[word] for word in question[:3]] for question in asked], dtype=np.int64).reshape(-1, 3)
    answers = _answer(vectors, stop, terms, [rows_of[word] for word in words], method)
    right = np.array([row in rows_of[q[3]] for row, q in zip(answers.tolist(), asked, strict=True)], dtype=bool)

    correct = np.bincount(np.array(section_of, dtype=np.int64)[right], minlength=len(skipped))
    total = np.bincount(np.array(section_of, dtype=np.int64), minlength=len(skipped))
    return Analogies(
        tuple(
            Section(name, int(correct[i]), int(total[i]) + (skipped[i] if count_unknown else 0), skipped[i])
            for i, (name, _) in enumerate(sections)
        )
    )


def _answer(vectors: Vectors, stop: int, terms: np.ndarray, rows_of: list[list[int]], method: str) -> np.ndarray:
    """int64 (q,): the best of the first `stop` rows for each question; -1 for none.

    terms (q, 3) are the question's words a, b, c, by place in rows_of, which lists the rows that spell each word.
    """
    answers = np.full(len(terms), -1, dtype=np.int64)
    if not len(terms):
        return answers
    best = np.full(len(terms), -np.inf, dtype=np.float32)
    firsts = np.array([rows[0] for rows in rows_of])
    rows = vectors.matrix[firsts].astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    with np.errstate(invalid="ignore"):
        units = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths != 0).astype(np.float32)

    order = np.lexsort((terms[:, 2], terms[:, 1], terms[:, 0]))
    terms = terms[order]
    cuts = np.flatnonzero((terms[1:, :2] != terms[:-1, :2]).any(axis=1)) + 1
    cuts = np.unique(np.concatenate([cuts, np.arange(0, len(terms), _TOGETHER), [len(terms)]]))
    spelled = [(row, place) for place, rows in enumerate(rows_of) for row in rows]
    spelled_rows, spelled_places = (np.array(column) for column in zip(*spelled, strict=True))

    step = max(_CELLS // len(units), 256)
    for lo in range(0, stop, step):
        hi = min(lo + step, stop)
        table = vectors.cosines(units, lo, hi)
        if method == "mul":
            table = (1 + table) / 2
        bad = ~np.isfinite(vectors.norms[lo:hi])
        table[:, bad] = 0
        here = (spelled_rows >= lo) & (spelled_rows < hi)
        own: dict[int, list[int]] = {}
        for place, row in zip(spelled_places[here].tolist(), spelled_rows[here].tolist(), strict=True):
            own.setdefault(place, []).append(row - lo)
        for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            a, b, _ = terms[begin].tolist()
            c = terms[begin:end, 2]
            scores = table[c]
            if method == "add":
                pair = table[b] - table[a]
                scores += pair
            else:
                pair = table[b] / (table[a] + np.float32(1e-6))
                scores *= pair
            scores[:, bad] = -np.inf
            scores[:, own.get(a, [])] = -np.inf
            scores[:, own.get(b, [])] = -np.inf
            for i, place in enumerate(c.tolist()):
                if place in own:
                    scores[i, own[place]] = -np.inf
            column = scores.argmax(axis=1)
            value = scores[np.arange(len(c)), column]
            better = value > best[begin:end]
            best[begin:end][better] = value[better]
            answers[order[begin:end][better]] = column[better] + lo
    return answers


def _read_questions(path: str | os.PathLike) -> dict[str, list[Question]]:
    sections: dict[str, list[Question]] = {}
    group = None
    for number, line in _lines(path):
        if line.startswith(":"):
            group = sections.setdefault(line[1:].strip(), [])
            continue
        words = line.split()
        if group is None:
            raise FormatError(
                f'{os.fspath(path)}:{number}: expected ": section" before the first question, got {line!r}'
            )
        if len(words) != 4:
            raise FormatError(f'{os.fspath(path)}:{number}: expected four words or ": section", got {line!r}')
        group.append(tuple(words))
    return sections


def _lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank, stripped."""
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise FormatError(
                    f"{os.fspath(path)}:{number}: expected UTF-8, got {raw!r} ({error.reason})"
                ) from error
            if line:
                yield number, line


def similarity(
    vectors: Vectors,
    pairs: str | os.PathLike | Iterable[tuple[str, str, float]],
    *,
    restrict: int | None = None,
    delimiter: str | None = None,
    fold_case: bool = True,
    count_unknown: bool = False,
) -> Similarity:
    """Correlates the cosines of word pairs with human judgements, such as those of WordSim353, SimLex-999 and MEN.

    Settings:
        pairs: a file with two words and a number a line, no header ("#" begins a comment line), or (word, word, number)
            triples.
        restrict: use the first `restrict` keys only; None or 0 for all.
        delimiter: what parts the fields; any white space when None.
        fold_case: compare words in upper case; of keys that fold together the first counts.
        count_unknown: give a pair with an unknown word cosine 0 (gensim's dummy4unknown); else leave it out.

    >>> vectors = Vectors(["a", "b", "c"], np.array([[1, 0], [1, 1], [0, 1]], dtype=np.float32))
    >>> similarity(vectors, [("a", "b", 9.0), ("a", "c", 1.0), ("a", "?", 5.0)]).spearman
    1.0

    Raises:
        FormatError: a line that is not two words and a number.
    """
    listed = list(_read_pairs(pairs, delimiter)) if isinstance(pairs, (str, os.PathLike)) else list(pairs)
    fold = str.upper if fold_case else str
    first: dict[str, str] = {}
    for key in vectors.keys[: _first(vectors, restrict)]:
        first.setdefault(fold(key), key)
    cosines, judgements, unknown = [], [], 0
    for a, b, judgement in listed:
        a, b = first.get(fold(a)), first.get(fold(b))
        if a is None or b is None:
            unknown += 1
            if not count_unknown:
                continue
        cosines.append(0.0 if a is None or b is None else vectors.similarity(a, b))
        judgements.append(float(judgement))
        if not np.isfinite(judgements[-1]):
            raise ValueError(f"expected judgements that are finite, got {judgement!r} of {a!r} and {b!r}")
    x, y = np.array(cosines), np.array(judgements)
    if not np.isfinite(x).all():  # of rows that are not: they have no rank either
        return Similarity(float("nan"), float("nan"), len(x), unknown, len(listed))
    return Similarity(_pearson(_ranks(x), _ranks(y)), _pearson(x, y), len(x), unknown, len(listed))


def _read_pairs(path: str | os.PathLike, delimiter: str | None) -> Iterator[tuple[str, str, float]]:
    for number, line in _lines(path):
        if line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split(delimiter)]
        try:
            a, b, judgement = fields
            judgement = float(judgement)
            if not np.isfinite(judgement):
                raise ValueError
        except ValueError:
            raise FormatError(f"{os.fspath(path)}:{number}: expected two words and a number, got {line!r}") from None
        yield a, b, judgement


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1..n; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _first(vectors: Vectors, restrict: int | None) -> int:
    """How many of the first keys count."""
    if (restrict or 0) < 0:
        raise ValueError(f"restrict must be 0 or more, got {restrict}")
    return min(restrict or len(vectors), len(vectors))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    lengths = np.sqrt((x @ x) * (y @ y))
    return float(np.clip((x @ y) / lengths, -1, 1)) if lengths > 0 else float("nan")


# ---- nodes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeClassification:
    """F1 of predicted labels at one share of labelled nodes: means over the splits, and their standard deviations."""

    train: float
    macro: float
    micro: float
    macro_deviation: float
    micro_deviation: float
    splits: int

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{100 * self.train:.0f} % labelled: Macro-F1 {self.macro:.4f} +- {self.macro_deviation:.4f}, "
            f"Micro-F1 {self.micro:.4f} +- {self.micro_deviation:.4f} ({self.splits} splits)"
        )


def node_classification(
    vectors: Vectors,
    labels: Mapping[str, Iterable[str]] | str | os.PathLike,
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


def read_labels(path: str | os.PathLike) -> dict[str, list[str]]:
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


# ---- retrieval between images and captions ------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """How early the right answers came, over all queries; recalls and mAP are shares, 0..1.

    r1, r5, r10: queries with a right answer among the first 1, 5, 10. median, mean: of the rank of the first right
    answer, from 1. map: mean average precision over all right answers.
    """

    r1: float
    r5: float
    r10: float
    median: float
    mean: float
    map: float
    queries: int

    def __str__(self) -> str:
        return (
            f"R@1 {100 * self.r1:5.1f}  R@5 {100 * self.r5:5.1f}  R@10 {100 * self.r10:5.1f}  "
            f"median rank {self.median:g}  mean rank {self.mean:.1f}  mAP {100 * self.map:.1f}  "
            f"({self.queries} queries)"
        )


@dataclass(frozen=True)
class Retrieval:
    """Captions found for images, and images found for captions."""

    captions: Ranking
    images: Ranking

    @property
    def recall_sum(self) -> float:
        """The six recalls added up, in percent, 0..600: by this, validation chooses an epoch."""
        return 100 * sum(r for side in (self.captions, self.images) for r in (side.r1, side.r5, side.r10))

    def as_dict(self) -> dict:
        """For JSON."""
        return {**asdict(self), "recall_sum": self.recall_sum}

    def __str__(self) -> str:
        return f"captions of an image  {self.captions}\nimage of a caption    {self.images}"


def retrieval(
    images: np.ndarray,
    captions: np.ndarray,
    owners: np.ndarray,
    similarity: str = "cosine",
    folds: int = 1,
) -> Retrieval:
    """Ranks all captions for each image, and all images for each caption.

    Settings:
        images, captions: float (n, dim) and (m, dim), in one space.
        owners: int (m,), to which image a caption belongs; an image may have any number of captions. One without any
            is only a candidate.
        similarity: "cosine", "dot" or, for order embeddings, "order".
        folds: 5 with 5,000 images is COCO's "1k": each fifth of the images, in order, with its captions, on its own,
            and the mean of the five.

    A wrong answer that scores the same as the right one, within 1e-6 for what rounding does, comes before it, so that
    vectors that are all alike gain nothing. Works in blocks of at most 16 MB of scores, however many images and
    captions there are.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, or an owner that there is not.
    """
    images, captions, owners = np.asarray(images), np.asarray(captions), np.asarray(owners)
    if images.ndim != 2 or captions.ndim != 2 or images.shape[1] != captions.shape[1]:
        raise ValueError(f"expected two matrices of equally many columns, got {images.shape} and {captions.shape}")
    if similarity not in ("cosine", "dot", "order"):
        raise ValueError(f"similarity must be one of 'cosine', 'dot', 'order', got {similarity!r}")
    if owners.shape != (len(captions),) or owners.dtype.kind not in "iu":
        raise ValueError(f"expected whole numbers ({len(captions)},) as owners, got {owners.dtype} {owners.shape}")
    if not len(owners) or not 0 <= owners.min() <= owners.max() < len(images):
        raise ValueError(f"owners must be rows of the {len(images)} images, and at least one caption is needed")
    if isinstance(folds, bool) or not isinstance(folds, int) or not 1 <= folds <= len(images):
        raise ValueError(f"folds must be a whole number from 1 to {len(images)}, the images, got {folds!r}")
    images, captions = _comparable(images, similarity, "images"), _comparable(captions, similarity, "captions")
    results = []
    for fold in np.array_split(np.arange(len(images)), folds):
        mine = np.flatnonzero((owners >= fold[0]) & (owners <= fold[-1]))
        if not len(mine):
            raise ValueError(f"no caption belongs to the images {fold[0]} to {fold[-1]}, a fold of {folds}")
        x, y, own = images[fold[0] : fold[-1] + 1], captions[mine], owners[mine] - fold[0]
        rows = np.arange(len(x))
        results.append((_ranking(x, y, rows, own, similarity, False), _ranking(y, x, own, rows, similarity, True)))
    return Retrieval(*(_mean_ranking(side) for side in zip(*results, strict=True)))


def similarities(images: np.ndarray, captions: np.ndarray, similarity: str) -> np.ndarray:
    """float32 (images, captions): dot products, or for "order" minus the squared length of max(0, caption - image)."""
    if similarity != "order":
        return images @ captions.T
    scores = np.empty((len(images), len(captions)), np.float32)
    images, captions = (np.ascontiguousarray(rows, np.float32) for rows in (images, captions))
    kernels.order_scores(images, captions, scores, threads=kernels.cores())
    return scores


def _comparable(rows: np.ndarray, similarity: str, name: str) -> np.ndarray:
    rows = rows.astype(np.float32, copy=False)
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    if not np.isfinite(lengths).all():
        raise ValueError(f"{name}: row {int(np.flatnonzero(~np.isfinite(lengths))[0])} has a number that is not finite")
    if similarity != "cosine":
        return rows
    return rows / np.where(lengths > 0, lengths, 1)[:, None].astype(np.float32)


def _ranking(
    queries: np.ndarray, items: np.ndarray, groups: np.ndarray, item_groups: np.ndarray, similarity: str, flip: bool
) -> Ranking:
    """Ranks the items of a query's own group among all others; flip: queries are captions."""
    by_group = np.argsort(item_groups, kind="stable")
    first, last = (np.searchsorted(item_groups[by_group], groups, side) for side in ("left", "right"))
    ranks, precision = [], []
    step = max(1, _CELLS // len(items))
    for lo in range(0, len(queries), step):
        block = queries[lo : lo + step]
        scores = similarities(items, block, similarity).T if flip else similarities(block, items, similarity)
        for q in range(lo, lo + len(block)):
            own = by_group[first[q] : last[q]]
            if not len(own):
                continue
            row = scores[q - lo]
            mine = -np.sort(-row[own])
            others = row.copy()
            others[own] = -np.inf
            ahead = mine - _EQUAL * (1 if similarity == "cosine" else np.abs(mine))
            places = np.array([np.count_nonzero(others >= score) for score in ahead]) + np.arange(1, len(own) + 1)
            ranks.append(places[0])
            precision.append(np.mean(np.arange(1, len(own) + 1) / places))
    found = np.array(ranks)
    within = [float(np.mean(found <= k)) for k in (1, 5, 10)]
    return Ranking(*within, float(np.median(found)), float(found.mean()), float(np.mean(precision)), len(found))


def _mean_ranking(folds: tuple[Ranking, ...]) -> Ranking:
    names = ("r1", "r5", "r10", "median", "mean", "map")
    return Ranking(*(float(np.mean([getattr(one, n) for one in folds])) for n in names), sum(f.queries for f in folds))
