"""Scores against a plain numpy twin, scipy, gensim and the original compute-accuracy."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from embfast import Graph, evaluate
from embfast.errors import FormatError
from embfast.evaluate import words as words_module
from embfast.vectors.vectors import Vectors


@pytest.fixture
def world():
    """300 words among which some analogies hold, and questions in three sections, some with unknown words."""
    rng = np.random.default_rng(0)
    stems, endings = rng.normal(size=(60, 12)), rng.normal(size=(5, 12))
    rows = (stems[:, None] + endings + 0.5 * rng.normal(size=(60, 5, 12))).reshape(300, 12).astype(np.float32)
    keys = [f"s{i}e{j}" for i in range(60) for j in range(5)]
    order = rng.permutation(300)
    vectors = Vectors([keys[i] for i in order], rows[order])
    sections = {name: [] for name in ("capital", "family", "gram1-plural")}
    for name in sections:
        for _ in range(150):
            (i, j), (e, f) = rng.integers(64, size=2), rng.choice(5, size=2, replace=False)
            sections[name].append((f"s{i}e{e}", f"s{i}e{f}", f"s{j}e{e}", f"s{j}e{f}"))
    return vectors, sections


def slow_analogies(vectors, sections, restrict, method="add"):
    """Correct, total and skipped questions of each section, computed one question at a time."""
    counts = []
    for questions in sections.values():
        correct = total = skipped = 0
        known = set(vectors.keys[: restrict or None])
        for a, b, c, expected in questions:
            if not {a, b, c, expected} <= known:
                skipped += 1
                continue
            total += 1
            found = vectors.most_similar([b, c], [a], k=1, restrict=restrict, method=method)
            correct += found[0][0] == expected
        counts.append((correct, total, skipped))
    return counts


def write_questions(path, sections):
    lines = [f": {name}\n" + "".join(" ".join(q) + "\n" for q in questions) for name, questions in sections.items()]
    path.write_text("".join(lines))
    return path


def counts(result):
    return [(s.correct, s.total, s.skipped) for s in result.sections]


@pytest.mark.parametrize("restrict", [0, 200])
@pytest.mark.parametrize("method", ["add", "mul"])
def test_answers_are_those_of_most_similar(world, monkeypatch, restrict, method):
    vectors, sections = world
    expected = slow_analogies(vectors, sections, restrict, method)
    assert 10 < sum(c for c, _, _ in expected) < sum(t for _, t, _ in expected) - 20
    assert counts(evaluate.analogies(vectors, sections, restrict=restrict, method=method)) == expected
    monkeypatch.setattr(words_module, "_COSINES_PER_CHUNK", 1)
    monkeypatch.setattr(words_module, "_QUESTIONS_PER_PASS", 7)
    assert counts(evaluate.analogies(vectors, sections, restrict=restrict, method=method)) == expected


def test_totals_and_json(world, tmp_path):
    vectors, sections = world
    result = evaluate.analogies(vectors, write_questions(tmp_path / "q.txt", sections))
    assert counts(result) == counts(evaluate.analogies(vectors, sections))
    capital, family, plural = result.sections
    assert result.semantic.correct == capital.correct + family.correct
    assert (result.syntactic.correct, result.syntactic.total) == (plural.correct, plural.total)
    assert result.accuracy == result.total.correct / result.total.total
    assert json.loads(json.dumps(result.as_dict()))["total"]["skipped"] == result.total.skipped
    assert str(result).splitlines()[-1].endswith("total")
    strict = evaluate.analogies(vectors, sections, count_unknown=True)
    assert strict.total.total == 450
    assert strict.total.correct == result.total.correct
    nothing = evaluate.analogies(Vectors(["x"], np.ones((1, 2), np.float32)), sections)
    assert nothing.as_dict()["total"] == {"name": "total", "correct": 0, "total": 0, "skipped": 450, "accuracy": None}


def test_case_is_folded_on_request():
    rows = np.array([[1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1], [0, 1.01, -1], [1, 0, 1.1]], np.float32)
    vectors = Vectors(["man", "woman", "king", "Queen", "QUEEN", "Man"], rows)
    question = {"family": [("man", "Woman", "king", "queen")]}
    assert counts(evaluate.analogies(vectors, question)) == [(1, 1, 0)]
    assert counts(evaluate.analogies(vectors, question, fold_case=False)) == [(0, 0, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b c d\n", r"q\.txt:1: expected \": section\" before the first question"),
        (": one\na b c d\n\na b c\n", r"q\.txt:4: expected four words or \": section\", got 'a b c'"),
        (": one\na b c d e\n", r"q\.txt:2: expected four words"),
    ],
)
def test_a_malformed_question_is_named(tmp_path, make_vectors, text, message):
    (tmp_path / "q.txt").write_text(text)
    with pytest.raises(FormatError, match=message):
        evaluate.analogies(make_vectors(3, 2), tmp_path / "q.txt")


def test_invalid_utf8_is_refused(tmp_path, make_vectors):
    (tmp_path / "q.txt").write_bytes(b": one\n\xff b c d\n")
    with pytest.raises(FormatError, match=r"q\.txt:2: expected UTF-8"):
        evaluate.analogies(make_vectors(3, 2), tmp_path / "q.txt")


@pytest.mark.parametrize("threshold", [0, 150])
def test_the_original_compute_accuracy_agrees(world, tmp_path, original, threshold):
    vectors, sections = world
    vectors.save(tmp_path / "v.bin")
    questions = write_questions(tmp_path / "q.txt", sections)
    command = [original("word2vec-compute-accuracy"), str(tmp_path / "v.bin"), *([str(threshold)] if threshold else [])]
    with open(questions) as stream:
        printed = subprocess.run(command, stdin=stream, capture_output=True, text=True, check=True).stdout
    theirs = [(int(c), int(t)) for c, t in re.findall(r"TOP1: .*\((\d+) / (\d+)\)", printed)]
    assert theirs == [(c, t) for c, t, _ in counts(evaluate.analogies(vectors, questions, restrict=threshold))]


@pytest.mark.parametrize("dummy", [False, True])
def test_gensim_agrees_on_analogies(world, tmp_path, dummy):
    pytest.importorskip("gensim.models", reason="gensim is not installed: pip install embfast[gensim]")
    vectors, sections = world
    cased = Vectors([*vectors.keys, "S1E1", "S2E2", "S3E3"], np.concatenate([vectors.matrix, vectors.matrix[:3]]))
    questions = write_questions(tmp_path / "q.txt", sections)
    for theirs_fold in (False, True):
        accuracy, theirs = cased.to_gensim().evaluate_word_analogies(
            str(questions), restrict_vocab=250, case_insensitive=theirs_fold, dummy4unknown=dummy
        )
        ours = evaluate.analogies(cased, questions, restrict=250, fold_case=theirs_fold, count_unknown=dummy)
        assert ours.accuracy == pytest.approx(accuracy)
        for section, other in zip((*ours.sections, ours.total), theirs, strict=True):
            assert section.correct == len(other["correct"])
            assert section.total == len(other["correct"]) + len(other["incorrect"])


def test_the_whole_google_set(data, make_vectors):
    path = data("eval/questions-words.txt")
    words = sorted({word.lower() for line in path.read_text().splitlines() if line[0] != ":" for word in line.split()})
    rows = np.random.default_rng(0).normal(size=(len(words), 5)).astype(np.float32)
    result = evaluate.analogies(Vectors(words, rows), path)
    assert (len(result.sections), result.total.total) == (14, 19_544)
    assert (result.semantic.total, result.syntactic.total) == (8_869, 10_675)


# ---- similarity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judgements", ["distinct", "tied"])
def test_correlations_are_those_of_scipy(make_vectors, judgements):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    vectors = make_vectors(100, 3)
    rng = np.random.default_rng(1)
    scores = rng.normal(size=80) if judgements == "distinct" else rng.integers(0, 5, size=80).astype(float)
    pairs = [(f"w{a}", f"W{b}", float(s)) for (a, b), s in zip(rng.integers(110, size=(80, 2)), scores, strict=True)]
    result = evaluate.similarity(vectors, pairs)
    known = [(vectors.similarity(a, b.lower()), s) for a, b, s in pairs if a in vectors and b.lower() in vectors]
    assert result.pairs == len(known) == 80 - result.unknown
    assert result.oov == result.unknown / 80 > 0
    assert_allclose(result.spearman, stats.spearmanr(*zip(*known, strict=True)).statistic, rtol=1e-9)
    assert_allclose(result.pearson, stats.pearsonr(*zip(*known, strict=True)).statistic, rtol=1e-9)


def test_undefined_correlations_are_nan(make_vectors):
    vectors = make_vectors(3, 2)
    for pairs in ([], [("w0", "w1", 1.0)], [("w0", "w1", 1.0), ("w0", "w2", 1.0)]):
        result = evaluate.similarity(vectors, pairs)
        assert np.isnan(result.spearman)
        assert json.loads(json.dumps(result.as_dict()))["pearson"] is None


@pytest.mark.parametrize("dummy", [False, True])
def test_gensim_agrees_on_similarity(data, dummy):
    pytest.importorskip("gensim.models", reason="gensim is not installed: pip install embfast[gensim]")
    path = data("eval/EN-WS-353-ALL.txt")
    words = sorted({word for line in path.read_text().splitlines() for word in line.split("\t")[:2]})[20:]
    vectors = Vectors(words, np.random.default_rng(0).normal(size=(len(words), 5)).astype(np.float32))
    pearson, spearman, oov = vectors.to_gensim().evaluate_word_pairs(str(path), dummy4unknown=dummy)
    ours = evaluate.similarity(vectors, path, count_unknown=dummy)
    assert_allclose([ours.pearson, ours.spearman], [pearson[0], spearman[0]], atol=1e-4)
    assert ours.oov == pytest.approx(oov / 100)


@pytest.mark.parametrize("line", ["a b", "a b c d", "a b high", "a b nan"])
def test_a_malformed_pair_is_named(tmp_path, make_vectors, line):
    (tmp_path / "p.txt").write_text(f"# words and a number\n\nw0 w1 2.5\n{line}\n")
    with pytest.raises(FormatError, match=rf"p\.txt:4: expected two words and a number, got '{line}'"):
        evaluate.similarity(make_vectors(3, 2), tmp_path / "p.txt")


def test_delimiter_and_restrict(tmp_path, make_vectors):
    (tmp_path / "p.csv").write_text("w0, w1, 1\nw0, w2, 2\nw0, w3, 3\n")
    assert evaluate.similarity(make_vectors(5, 2), tmp_path / "p.csv", delimiter=",").pairs == 3
    assert evaluate.similarity(make_vectors(5, 2), tmp_path / "p.csv", delimiter=",", restrict=3).unknown == 1


def test_every_similarity_set_at_hand_reads(data, make_vectors):
    files = sorted(data("eval").glob("EN-*.txt"))
    assert len(files) == 13
    for path in files:
        assert evaluate.similarity(make_vectors(2, 2), path).listed >= 30


def test_evaluate_runs_without_scipy():
    code = "import sys; sys.modules['scipy'] = None; import embfast.evaluate"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- nodes -----------------------------------------------------------------------------------------------------------


def labelled_nodes(n=120, noise=0.3):
    """Three groups around three corners; every fourth node is in two groups and lies between both corners."""
    rng = np.random.default_rng(3)
    corners = np.eye(3, 6)
    labels, rows = {}, []
    for i in range(n):
        groups = [i % 3, (i + 1) % 3] if i % 4 == 0 else [i % 3]
        labels[f"n{i}"] = [f"g{g}" for g in groups]
        rows.append(corners[groups].mean(0) + noise * rng.normal(size=6))
    return Vectors(list(labels), np.array(rows, np.float32)), labels


def test_node_classification(tmp_path):
    vectors, labels = labelled_nodes()
    low, high = evaluate.node_classification(vectors, {**labels, "none": []}, train=[0.1, 0.8], splits=4)
    assert (low.train, high.train, high.splits) == (0.1, 0.8, 4)
    assert 0.5 < low.micro < high.micro < 1
    assert high.macro > 0.8
    path = tmp_path / "labels"
    path.write_text("".join(f"{node}\t{' '.join(names)}\n" for node, names in labels.items()))
    assert evaluate.node_classification(vectors, path, train=0.8, splits=4) == [high]
    blind = Vectors(vectors.keys, np.random.default_rng(0).normal(size=(120, 6)))
    assert evaluate.node_classification(blind, labels)[0].micro < 0.55
    assert "80 % labelled: Macro-F1" in str(high)


def test_node_classification_predicts_the_true_number_of_labels():
    """With the labels themselves as vectors all predictions are right for nodes with one, two or three labels."""
    rng = np.random.default_rng(1)
    has = rng.random((200, 5)) < 0.4
    has[~has.any(1), 0] = True
    labels = {f"n{i}": [f"l{j}" for j in np.flatnonzero(row)] for i, row in enumerate(has)}
    found = evaluate.node_classification(Vectors(list(labels), has.astype(np.float32)), labels, splits=2)[0]
    assert found.macro == found.micro == 1.0


def test_invalid_node_labels_are_refused(tmp_path):
    vectors, labels = labelled_nodes(12)
    with pytest.raises(KeyError, match="nobody"):
        evaluate.node_classification(vectors, {**labels, "nobody": ["g1"]})
    with pytest.raises(ValueError, match="at least 2 labelled nodes and 2 labels"):
        evaluate.node_classification(vectors, {"n1": ["a"], "n2": ["a"]})
    with pytest.raises(ValueError, match="train must be"):
        evaluate.node_classification(vectors, labels, train=1.0)
    (tmp_path / "l").write_text("a 1\nb 2\na 3\n")
    with pytest.raises(FormatError, match=r"l:3: node 'a' is listed twice"):
        evaluate.read_labels(tmp_path / "l")


def test_edges_are_split_without_breaking_the_graph():
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    from scipy.sparse import csr_array

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 30, (2, 150))
    a, b = np.concatenate([a, 32 + a % 9, [3]]), np.concatenate([b, 32 + b % 9, [3]])  # two components and loners
    graph = Graph.from_edges(a, b, np.full(len(a), 2.0), n_nodes=43)

    def parts(g):
        return csgraph.connected_components(csr_array((g.weights, g.neighbours, g.offsets), (len(g), len(g))))[0]

    split = evaluate.split_edges(graph, 0.5, seed=1)
    proper = graph.n_edges - graph.n_self_loops
    assert len(split.removed) == len(split.absent) == round(0.5 * proper)
    assert split.graph.n_edges == graph.n_edges - len(split.removed)
    assert split.graph.n_self_loops == graph.n_self_loops
    assert split.graph.names == graph.names
    assert parts(split.graph) == parts(graph)

    def edges(g):
        rows = np.repeat(np.arange(len(g)), g.degrees)
        return {(g.names[i], g.names[j]) for i, j in zip(rows, g.neighbours, strict=True)}

    assert set(split.removed) <= edges(graph) - edges(split.graph)
    assert not set(split.absent) & edges(graph)
    assert len(set(split.absent)) == len(split.absent)
    with pytest.raises(ValueError, match="outside a spanning forest"):
        evaluate.split_edges(graph, 0.95)
    with pytest.raises(ValueError, match="expected an undirected graph"):
        evaluate.split_edges(Graph.from_edges([0], [1], directed=True))


def test_link_prediction():
    """Two groups with edges only inside: vectors near their corners tell edges from missing ones, noise does not."""
    edges = np.array([(i, j) for i in range(40) for j in range(i) if i % 2 == j % 2]).T
    split = evaluate.split_edges(Graph.from_edges(*edges), 0.4)
    rng = np.random.default_rng(0)
    rows = np.eye(2)[np.arange(40) % 2] * 2 - 1 + 0.3 * rng.normal(size=(40, 2))
    vectors = Vectors([str(i) for i in range(40)], rows)
    for operator in ("hadamard", "l1", "l2"):
        assert evaluate.link_prediction(vectors, split, operator=operator) > 0.95
    blind = Vectors(vectors.keys, rng.normal(size=(40, 2)))
    assert evaluate.link_prediction(blind, split) < 0.65
    with pytest.raises(ValueError, match="operator must be one of"):
        evaluate.link_prediction(vectors, split, operator="sum")


def test_edge_vectors():
    vectors = Vectors(["a", "b"], np.array([[1, 2], [3, -4]], np.float32))
    expected = {"hadamard": [3, -8], "average": [2, -1], "l1": [2, 6], "l2": [4, 36]}
    for operator, row in expected.items():
        assert evaluate.edge_vectors(vectors, [("a", "b"), ("b", "a")], operator).tolist() == [row, row]


# ---- retrieval ----------------------------------------------------------------------------------------------------


def naive_retrieval(images, captions, owners, similarity):
    """Ranks by sorting lists of Python numbers, with wrong answers before right ones of the same score."""

    def score(image, caption):
        if similarity == "order":
            return -sum(max(0.0, c - i) ** 2 for i, c in zip(image, caption, strict=True))
        dot = sum(i * c for i, c in zip(image, caption, strict=True))
        if similarity == "dot":
            return dot
        lengths = sum(i * i for i in image) ** 0.5 * sum(c * c for c in caption) ** 0.5
        return round(dot / lengths, 5) if lengths else 0.0

    def ranks(queries):
        first, precision = [], []
        for scored in queries:
            if any(right for _, right in scored):
                scored = sorted(scored, key=lambda pair: (-pair[0], pair[1]))
                places = [place for place, (_, right) in enumerate(scored, 1) if right]
                first.append(places[0])
                precision.append(sum(n / place for n, place in enumerate(places, 1)) / len(places))
        n = len(first)
        recalls = [sum(rank <= k for rank in first) / n for k in (1, 5, 10)]
        return [*recalls, float(np.median(first)), sum(first) / n, sum(precision) / n, n]

    of_images = [
        [(score(x, y), own == i) for y, own in zip(captions, owners, strict=True)] for i, x in enumerate(images)
    ]
    of_captions = [
        [(score(x, y), own == i) for i, x in enumerate(images)] for y, own in zip(captions, owners, strict=True)
    ]
    return ranks(of_images), ranks(of_captions)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "order"])
@pytest.mark.parametrize("block", [1 << 22, 40])
def test_retrieval_matches_sorting(similarity, block, monkeypatch):
    """Small integers, so that many scores are equal; images with no caption, one, and several."""
    monkeypatch.setattr(sys.modules["embfast.evaluate.retrieval"], "_SCORES_PER_CHUNK", block)
    rng = np.random.default_rng(3)
    images, captions = rng.integers(-1, 2, (17, 4)), rng.integers(-1, 2, (50, 4))
    captions[:17] = images  # some are right
    owners = np.concatenate([np.arange(17), rng.integers(0, 12, 33)])
    owners[owners == 5] = 6
    found = evaluate.retrieval(images.astype(np.float32), captions.astype(np.float32), owners, similarity)
    expected = naive_retrieval(images.tolist(), captions.tolist(), owners.tolist(), similarity)
    for side, numbers in zip((found.captions, found.images), expected, strict=True):
        np.testing.assert_allclose([*vars(side).values()], numbers, rtol=1e-12)
    assert found.captions.queries == 16
    assert found.recall_sum == pytest.approx(100 * sum(sum(numbers[:3]) for numbers in expected))


def test_identical_vectors_retrieve_nothing():
    same = np.ones((40, 3), np.float32)
    found = evaluate.retrieval(same[:20], same, np.arange(40) // 2)
    assert (found.captions.r10, found.images.r10) == (0, 0)
    assert (found.captions.median, found.images.median) == (39, 20)


def test_folds_are_means_of_their_parts():
    """Five folds of 20 images; COCO's 1k protocol has five of 1,000."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(100, 6)).astype(np.float32)
    owners = np.repeat(np.arange(100), 3)
    captions = images[owners] + rng.normal(size=(300, 6)).astype(np.float32)
    parts = [
        evaluate.retrieval(images[lo : lo + 20], captions[3 * lo : 3 * lo + 60], owners[3 * lo : 3 * lo + 60] - lo)
        for lo in range(0, 100, 20)
    ]
    found = evaluate.retrieval(images, captions, owners, folds=5)
    for side in ("captions", "images"):
        for name in ("r1", "r5", "r10", "median", "mean", "map"):
            mean = np.mean([getattr(getattr(part, side), name) for part in parts])
            assert getattr(getattr(found, side), name) == pytest.approx(mean)
    assert found.images.queries == 300
    assert found.images.r1 > evaluate.retrieval(images, captions, owners).images.r1
    assert json.loads(json.dumps(found.as_dict()))["recall_sum"] == pytest.approx(found.recall_sum)


def test_retrieval_validates_its_arguments():
    rows = np.ones((3, 2), np.float32)
    for images, captions, owners, options, says in (
        (rows, rows[:, :1], [0, 1, 2], {}, "same number of columns"),
        (rows, rows, [0, 1, 3], {}, "owners must be rows of the 3 images"),
        (rows, rows, [0, 1], {}, "owners: expected integers"),
        (rows, rows, [0, 1, 2], {"similarity": "l2"}, "similarity must be one of"),
        (rows, rows, [0, 1, 2], {"folds": 4}, "folds must be an integer from 1 to 3"),
        (rows, rows, [0, 0, 0], {"folds": 3}, "images 1 to 1, one of 3 folds, have no captions"),
        (rows * np.nan, rows, [0, 1, 2], {}, "images: row 0 has a non-finite value"),
        (rows, rows[:0], np.empty(0, int), {}, "at least one caption"),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate.retrieval(images, captions, owners, **options)


def test_a_string_is_one_label():
    pytest.importorskip("sklearn")
    vectors = Vectors([str(i) for i in range(60)], np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32))
    labels = {str(i): "red" if i % 2 else "blue" for i in range(60)}
    one = evaluate.node_classification(vectors, labels)
    assert one == evaluate.node_classification(vectors, {node: [label] for node, label in labels.items()})


@pytest.mark.parametrize("method", ["add", "mul"])
@pytest.mark.parametrize("wrong", [[np.nan, 1, 0], [np.inf, 1, 0], [3e38, 3e38, 0]], ids=str)
def test_analogies_skip_rows_with_non_finite_values(wrong, method):
    rows = np.array([[1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1], wrong], np.float32)
    vectors = Vectors(["man", "woman", "king", "queen", "wrong"], rows)
    asked = {"family": [("man", "woman", "king", "queen"), ("man", "king", "woman", "queen")]}
    assert evaluate.analogies(vectors, asked, method=method).total.correct == 2
    if not np.isfinite(wrong).all():
        assert evaluate.analogies(vectors, {"s": [("man", "wrong", "king", "queen")]}, method=method).total.correct == 0


def test_undefined_correlations_and_invalid_arguments():
    rows = np.array([[1, 0], [1, 1], [0, 1], [np.inf, 1]], np.float32)
    vectors = Vectors(["a", "b", "c", "far"], rows)
    alike = evaluate.similarity(vectors, [("a", "b", 0.1), ("a", "c", 0.1), ("b", "c", 0.1)])
    assert np.isnan([alike.spearman, alike.pearson]).all()
    for wrong in (np.inf, np.nan):
        vectors.matrix[3, 0] = wrong
        far = evaluate.similarity(vectors, [("a", "b", 1), ("a", "c", 2), ("a", "far", 3)])
        assert np.isnan([far.spearman, far.pearson]).all()
    with pytest.raises(ValueError, match="expected finite judgements"):
        evaluate.similarity(vectors, [("a", "b", np.nan), ("b", "c", 1)])
    for wrong in (
        lambda: evaluate.similarity(vectors, [], restrict=-2),
        lambda: evaluate.analogies(vectors, {}, restrict=-5),
    ):
        with pytest.raises(ValueError, match="restrict must be 0 or more"):
            wrong()
    with pytest.raises(ValueError, match="questions with four words"):
        evaluate.analogies(vectors, {"s": [("a", "b", "c")]})


def test_a_byte_order_mark_is_not_part_of_a_word(tmp_path):
    (tmp_path / "pairs.txt").write_text("a b 1\na c 2\n", encoding="utf-8-sig")
    vectors = Vectors(["a", "b", "c"], np.eye(3, dtype=np.float32))
    assert evaluate.similarity(vectors, tmp_path / "pairs.txt").unknown == 0
