"""Vectors compared with numpy twins and with gensim; memory and errors of searches."""

import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from embfast.vectors import search
from embfast.vectors.vectors import Vectors


def slow_cosines(queries, matrix):
    """float64 (m, n); 0 if a row or a query is zero."""
    queries, matrix = queries.astype(np.float64), matrix.astype(np.float64)
    lengths = np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(matrix, axis=1))
    return np.divide(queries @ matrix.T, lengths, out=np.zeros(lengths.shape), where=lengths > 0)


def slow_nearest(scores, k, forbidden=()):
    """The k best columns of each row of scores, ties by column, without the (row, column) in forbidden."""
    scores = scores.copy()
    for q, i in forbidden:
        scores[q, i] = -np.inf
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(scores, ids, axis=1)


@pytest.fixture
def small_blocks(monkeypatch):
    """Splits a search of a few rows into many chunks."""
    monkeypatch.setattr(search, "_CHUNK_SCORES", 64)
    monkeypatch.setattr(search, "_CHUNK_QUERIES", 3)


# ---- lookup -------------------------------------------------------------------------------------------------------


def test_lookup(make_vectors):
    vectors = make_vectors(5, 3)
    assert (len(vectors), vectors.dim, list(vectors), repr(vectors)) == (
        5, 3, ["w0", "w1", "w2", "w3", "w4"], "Vectors(5 keys, dim=3)",
    )  # fmt: skip
    assert "w3" in vectors
    assert 3 not in vectors
    assert_array_equal(vectors["w3"], vectors.matrix[3])
    assert_array_equal(vectors[["w3", "w0", "w3"]], vectors.matrix[[3, 0, 3]])
    assert vectors[[]].shape == (0, 3)
    assert vectors.index_of("w4") == 4
    assert vectors.get("pear") is None
    assert vectors.get("pear", 1) == 1
    assert_array_equal(vectors.get("w1"), vectors.matrix[1])


def test_a_missing_key_is_named(make_vectors):
    vectors = make_vectors(5, 3)
    for ask in (
        lambda: vectors["pear"],
        lambda: vectors[["w1", "pear"]],
        lambda: vectors.index_of("pear"),
        lambda: vectors.most_similar("pear"),
        lambda: vectors.most_similar("w1", exclude=["pear"]),
        lambda: vectors.similarity("w1", "pear"),
    ):
        with pytest.raises(KeyError, match="'pear' is not among the 5 keys"):
            ask()
    with pytest.raises(TypeError, match="a key or a list of keys"):
        vectors[3]


def test_keys_and_rows_must_fit():
    rows = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="matrix of 3 rows"):
        Vectors(["a", "b", "c"], rows)
    with pytest.raises(ValueError, match="'a' is at 0 and at 1"):
        Vectors(["a", "a"], rows)
    with pytest.raises(TypeError, match="keys must be strings, got 1"):
        Vectors(["a", 1], rows)
    with pytest.raises(ValueError, match="matrix of 1 rows"):
        Vectors(["a"], np.ones(3, np.float32))


def test_the_matrix_is_never_copied():
    wide = np.ones((4, 16), np.float32)
    wide.flags.writeable = False
    vectors = Vectors(list("abcd"), wide[:, :10])
    vectors.most_similar("a")
    assert np.shares_memory(vectors.matrix, wide)
    assert np.shares_memory(vectors["b"], wide)


# ---- search -------------------------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 60),
    m=st.integers(0, 8),
    dim=st.integers(1, 4),
    k=st.integers(0, 70),
    restrict=st.one_of(st.none(), st.integers(0, 70)),
    excluded=st.sets(st.integers(0, 59), max_size=5),
    seed=st.integers(0, 999),
)
@settings(max_examples=200, deadline=None)
def test_nearest_is_the_full_sort(n, m, dim, k, restrict, excluded, seed):
    """Small integers give many ties and zero rows; they are exact in float32 if norms are powers of two."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n, dim), np.float32)
    rows[np.arange(n), rng.integers(dim, size=n)] = rng.choice([-2, -1, 0, 1, 4], size=n)
    queries = np.zeros((m, dim), np.float32)
    queries[np.arange(m), rng.integers(dim, size=m)] = rng.choice([0, 1, 8], size=m)
    vectors = Vectors([str(i) for i in range(n)], rows)
    excluded = {i for i in excluded if i < n}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_CHUNK_SCORES", 16)
        patch.setattr(search, "_CHUNK_QUERIES", 3)
        ids, scores = vectors.nearest(queries, k, restrict, [str(i) for i in excluded])
    stop = min(restrict or n, n)
    forbidden = [(q, i) for q in range(m) for i in excluded if i < stop]
    slow_ids, slow_scores = slow_nearest(slow_cosines(queries, rows[:stop]), min(k, stop), forbidden)
    assert ids.dtype == np.int64
    assert scores.dtype == np.float32
    assert_array_equal(scores, slow_scores)
    assert_array_equal(ids, np.where(np.isinf(slow_scores), -1, slow_ids))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [1, 5, 100])
def test_nearest_of_keys_excludes_each_key(make_vectors, k):
    vectors = make_vectors(80, 6)
    keys = ["w3", "w70", "w3", "w11", "w12"]
    ids, scores = vectors.nearest(keys, k)
    slow = slow_cosines(vectors[keys], vectors.matrix)
    slow_ids, slow_scores = slow_nearest(slow, min(k, 80), list(enumerate(vectors.index_of(key) for key in keys)))
    assert_allclose(scores, slow_scores, rtol=1e-5, atol=1e-6)
    assert_array_equal(ids, np.where(np.isinf(slow_scores), -1, slow_ids))


def test_most_similar_is_the_mean_of_unit_vectors(make_vectors):
    vectors = make_vectors(300, 8)
    unit = vectors.matrix / np.linalg.norm(vectors.matrix, axis=1, keepdims=True)
    free = np.arange(8.0)
    query = unit[1] + 2 * unit[2] + free / np.linalg.norm(free) - unit[3]
    expected = slow_cosines(query[None], vectors.matrix)
    ids, scores = slow_nearest(expected, 7, [(0, 1), (0, 2), (0, 3), (0, 9)])
    found = vectors.most_similar(["w1", ("w2", 2), free], "w3", k=7, exclude="w9")
    assert [key for key, _ in found] == [f"w{i}" for i in ids[0]]
    assert_allclose([score for _, score in found], scores[0], rtol=1e-5)


def test_multiplied_similarity(make_vectors):
    vectors = make_vectors(300, 8)
    cosines = slow_cosines(vectors[["w1", "w2", "w3"]], vectors.matrix)
    expected = ((1 + cosines[0]) / 2 * (1 + cosines[1]) / 2 / ((1 + cosines[2]) / 2 + 1e-6))[None]
    ids, scores = slow_nearest(expected, 5, [(0, 1), (0, 2), (0, 3)])
    found = vectors.most_similar(["w1", "w2"], ["w3"], k=5, method="mul")
    assert [key for key, _ in found] == [f"w{i}" for i in ids[0]]
    assert_allclose([score for _, score in found], scores[0], rtol=1e-4)


def test_search_skips_rows_that_are_not_finite():
    rows = np.array([[1, 0], [np.nan, 1], [0, 0], [np.inf, 1], [3e38, 3e38], [1e-45, 0], [1, 1]], np.float32)
    vectors = Vectors(list("abcdefg"), rows)
    found = vectors.most_similar("a", k=10)
    assert [key for key, _ in found] == ["g", "c", "f"] or [key for key, _ in found] == ["e", "g", "c", "f"]
    assert dict(found)["c"] == 0


def test_fewer_answers_than_asked_for(make_vectors):
    vectors = make_vectors(4, 3)
    assert len(vectors.most_similar("w0", k=10)) == 3
    assert [key for key, _ in vectors.most_similar("w0", k=10, restrict=2)] == ["w1"]
    assert vectors.most_similar("w0", k=0) == []
    ids, scores = vectors.nearest(["w0"], k=4)
    assert ids[0, -1] == -1
    assert scores[0, -1] == -np.inf


def test_invalid_settings(make_vectors):
    vectors = make_vectors(4, 3)
    for ask, message in [
        (lambda: vectors.most_similar(), "at least one key or vector"),
        (lambda: vectors.most_similar("w0", method="max"), "method must be"),
        (lambda: vectors.most_similar(negative="w0", method="mul"), "needs at least one positive"),
        (lambda: vectors.most_similar([("w0", 2)], method="mul"), "takes no weights"),
        (lambda: vectors.most_similar(np.ones(4)), "a vector of 3 numbers"),
        (lambda: vectors.most_similar("w0", k=-1), "0 or more"),
        (lambda: vectors.nearest(np.ones((2, 4), np.float32)), r"shape \(m, 3\), got \(2, 4\)"),
        (lambda: vectors.doesnt_match(["w0"]), "at least two"),
        (lambda: vectors.n_similarity([], ["w0"]), "at least one key on each side"),
    ]:
        with pytest.raises(ValueError, match=message):
            ask()


def test_analogy_similarity_rank_and_the_odd_one_out(make_vectors):
    vectors = make_vectors(50, 4)
    assert vectors.analogy("w1", "w2", "w3", k=4) == vectors.most_similar(["w2", "w3"], ["w1"], k=4)
    cosines = slow_cosines(vectors.matrix, vectors.matrix)
    assert vectors.similarity("w4", "w9") == pytest.approx(cosines[4, 9])
    assert vectors.rank("w4", "w9") == 1 + sum(cosines[4, i] > cosines[4, 9] for i in range(50) if i not in (4, 9))
    assert vectors.rank("w4", vectors.most_similar("w4", k=1)[0][0]) == 1
    assert vectors.rank("w4", "w4") == 1
    means = np.stack([vectors[["w1", "w2"]].mean(axis=0), vectors["w3"]])
    assert vectors.n_similarity(["w1", "w2"], ["w3"]) == pytest.approx(slow_cosines(means, means)[0, 1])
    rows = np.array([[1, 0.1], [1, 0], [1, -0.1], [0, 1]], np.float32)
    assert Vectors(["cat", "dog", "cow", "tax"], rows).doesnt_match(["cat", "tax", "dog", "cow"]) == "tax"


def test_search_memory_is_bounded():
    """1,000 queries on 100,000 rows: all scores would take 400 MB, the matrix takes 25.6 MB, the answer 0.1 MB."""
    rows = np.random.default_rng(0).normal(size=(100_000, 64)).astype(np.float32)
    vectors = Vectors([f"w{i}" for i in range(len(rows))], rows)
    tracemalloc.start()
    vectors.nearest(rows[:1000], k=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32e6


def test_search_in_a_mapped_file(tmp_path, make_vectors):
    vectors = make_vectors(500, 10)
    vectors.save(tmp_path / "v.npz")
    mapped = Vectors.load(tmp_path / "v.npz", mmap=True)
    assert mapped.most_similar("w7") == vectors.most_similar("w7")


# ---- approximate search -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_index_finds_most_neighbours_with_exact_scores(make_vectors, dtype):
    pytest.importorskip("usearch", reason="usearch is not installed: pip install embfast[index]")
    vectors = make_vectors(2000, 16)
    index = vectors.build_index(dtype)
    hits = 0
    for i in range(50):
        found, exact = vectors.most_similar(f"w{i}", index=index), vectors.most_similar(f"w{i}")
        assert len(found) == 10
        assert found[0][1] <= exact[0][1] + 1e-6
        hits += len(dict(found).keys() & dict(exact).keys())
        for key, score in found:
            assert score == pytest.approx(vectors.similarity(key, f"w{i}"), abs=1e-6)
    assert hits > 450
    with pytest.raises(ValueError, match="an index only supports"):
        vectors.most_similar("w0", index=index, restrict=5)
    with pytest.raises(ValueError, match="index has 16 dimensions, the vectors have 3"):
        make_vectors(5, 3).most_similar("w0", index=index)


@pytest.mark.parametrize(
    ("module_name", "method", "message"),
    [
        ("usearch.index", "build_index", r"pip install embfast\[index\]"),
        ("gensim.models", "to_gensim", r"pip install embfast\[gensim\]"),
        ("pandas", "to_pandas", "pip install pandas"),
        ("pyarrow", "to_arrow", r"pip install embfast\[parquet\]"),
    ],
)
def test_a_missing_library_is_named(make_vectors, monkeypatch, module_name, method, message):
    monkeypatch.setitem(sys.modules, module_name, None)
    with pytest.raises(ImportError, match=message):
        getattr(make_vectors(2, 2), method)()


def test_import_needs_numpy_alone():
    code = (
        "import sys, embfast.evaluate; print([m for m in ('scipy', 'gensim', 'pandas', 'usearch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---- other libraries ----------------------------------------------------------------------------------------------


def test_pandas(make_vectors):
    pytest.importorskip("pandas", reason="pandas is not installed")
    vectors = make_vectors(4, 3)
    frame = vectors.to_pandas()
    assert list(frame.index) == vectors.keys
    assert_array_equal(frame.loc["w2"].to_numpy(), vectors["w2"])
    assert frame.dtypes.unique().tolist() == [np.float32]


def test_arrow(make_vectors):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    vectors = make_vectors(4, 3)
    table = vectors.to_arrow()
    assert table["key"].to_pylist() == vectors.keys
    assert table["vector"].type.list_size == 3
    assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), vectors.matrix)
    column = table["vector"].chunk(0).values.to_numpy(zero_copy_only=True)
    assert np.shares_memory(column, vectors.matrix)
    padded = Vectors(vectors.keys, np.pad(vectors.matrix, ((0, 0), (0, 5)))[:, :3])
    assert padded.to_arrow().equals(table)


class TestGensim:
    """embfast and gensim give the same answers."""

    @pytest.fixture
    def both(self, make_vectors):
        pytest.importorskip("gensim.models", reason="gensim is not installed: pip install embfast[gensim]")
        ours = make_vectors(400, 10)
        return ours, ours.to_gensim()

    def test_shares_the_matrix_both_ways(self, both):
        ours, theirs = both
        assert theirs.vectors is ours.matrix
        back = Vectors.from_gensim(theirs)
        assert np.shares_memory(back.matrix, ours.matrix)
        assert back.keys == ours.keys

    @pytest.mark.parametrize(
        ("positive", "negative", "restrict"),
        [("w1", None, None), (["w1", "w2"], ["w3"], None), ([("w1", 0.5), "w2"], [], 100), (["w300"], ["w301"], 50)],
    )
    def test_most_similar(self, both, positive, negative, restrict):
        ours, theirs = both
        found = ours.most_similar(positive, negative, k=12, restrict=restrict)
        expected = theirs.most_similar(positive, negative, topn=12, restrict_vocab=restrict)
        assert [key for key, _ in found] == [key for key, _ in expected]
        assert_allclose([s for _, s in found], [s for _, s in expected], rtol=1e-5, atol=1e-6)

    def test_most_similar_to_a_vector(self, both):
        ours, theirs = both
        free = np.arange(10, dtype=np.float32)
        free /= np.linalg.norm(free)  # gensim does not normalise vectors that are not keys
        found = ours.most_similar([free, "w5"])
        assert [key for key, _ in found] == [key for key, _ in theirs.most_similar([free, "w5"])]

    def test_multiplied(self, both):
        ours, theirs = both
        found = ours.most_similar(["w1", "w2"], ["w3"], method="mul")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # raised by gensim about its own init_sims
            expected = theirs.most_similar_cosmul(["w1", "w2"], ["w3"])
        assert [key for key, _ in found] == [key for key, _ in expected]
        assert_allclose([s for _, s in found], [s for _, s in expected], rtol=1e-4)

    def test_the_rest(self, both):
        ours, theirs = both
        assert ours.similarity("w1", "w2") == pytest.approx(theirs.similarity("w1", "w2"), abs=1e-6)
        sets = (["w1", "w2", "w3"], ["w4", "w5"])
        assert ours.n_similarity(*sets) == pytest.approx(theirs.n_similarity(*sets), abs=1e-6)
        for i in range(0, 100, 5):
            keys = [f"w{i + j}" for j in range(5)]
            assert ours.doesnt_match(keys) == theirs.doesnt_match(keys)
            assert ours.rank(keys[0], keys[1]) == theirs.rank(keys[0], keys[1])


def test_queries_that_are_not_finite():
    vectors = Vectors(["a", "b", "n"], np.array([[1, 0], [1, 1], [np.nan, 1]], np.float32))
    for ask in (lambda: vectors.most_similar(np.full(2, np.nan)), lambda: vectors.most_similar("n")):
        with pytest.raises(ValueError, match="expected a finite vector"):
            ask()
    with pytest.raises(ValueError, match="expected finite rows"):
        vectors.rank("a", "n")
    with pytest.raises(ValueError, match="finite rows, got NaN or infinity in the row of 'n'"):
        vectors.doesnt_match(["a", "b", "n"])
    assert np.isnan([vectors.similarity("a", "n"), vectors.n_similarity(["a"], ["n"])]).all()
    ids, scores = vectors.nearest(["a", "n"], k=1)
    assert ids.tolist() == [[1], [-1]]
    assert scores[1, 0] == -np.inf
    assert vectors.rank("a", "b") == 1
