"""Ternary rows: kernels compared with the reference, thresholds with the definition, searches with a full sort."""

import json
import tracemalloc
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from ternary_problems import TernaryProblem, every_problem
from typer.testing import CliRunner

from embfast import cli, kernels, reference
from embfast.errors import FormatError
from embfast.evaluate import words as evaluate
from embfast.files import ternary
from embfast.files.formats import write
from embfast.files.ternary import TernaryMatrix, levels, thresholds
from embfast.vectors import search
from embfast.vectors.vectors import Vectors

PROBLEMS = every_problem()
INFINITY = np.float32(np.inf)

# ---- kernels and reference ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["baseline", "avx2", "avx512", "avx512popcnt"])
def solved(request, solve_on):
    """Results of all problems on one instruction set; a process selects it once."""
    return solve_on(request.param, "ternary_problems.py")


@cache
def expected(name):
    return PROBLEMS[name].solve(reference)


def test_kernels_match_reference(solved):
    for name in PROBLEMS:
        for part, slow in expected(name).items():
            assert_array_equal(solved[f"{name}/{part}"], slow, err_msg=f"{name}/{part}")


def test_problems_cover_what_they_should():
    searched = [name for name, problem in PROBLEMS.items() if problem.nan < 0]
    assert any((expected(name)["keys"][:, 1:] == expected(name)["keys"][:, :-1]).any() for name in searched)
    assert any((expected(name)["ids"] < 0).any() for name in searched)
    assert any((expected(name)["keys"] < 0).any() for name in searched)
    assert max(expected("all-alike")["nonzeros"]) > 31 * 512


def random_levels(n, dim, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, (n, dim)).astype(np.int8)


def test_reference_orders_by_the_exact_cosine():
    """Compared with fractions: sign(dot) * dot^2 / (nonzeros of both) is the signed square of the cosine."""
    rows = random_levels(60, 9)
    rows[:3] = [[0], [1], [-1]]
    planes = TernaryMatrix.from_rows(rows).planes
    nonzeros = np.count_nonzero(rows, axis=1).astype(np.int32)
    for q in range(0, 60, 7):
        ids, keys = np.full((1, 60), -1), np.full((1, 60), -np.inf)
        reference.ternary_top(
            planes[q : q + 1], planes, nonzeros, excluded=None, own=None, first=0, ids=ids, keys=keys, threads=1
        )
        dots = [sum(a * b for a, b in zip(row, rows[q].tolist(), strict=True)) for row in rows.tolist()]
        squares = [Fraction(d * abs(d), max(1, int(nonzeros[i]) * int(nonzeros[q]))) for i, d in enumerate(dots)]
        assert ids[0].tolist() == sorted(range(60), key=lambda i: (-squares[i], i))


def row_of(dot, nonzeros, dim):
    """Levels whose product with a row of ones is dot."""
    row = np.zeros(dim, np.int8)
    row[: (nonzeros + dot) // 2] = 1
    row[(nonzeros + dot) // 2 : nonzeros] = -1
    return row


def test_cosines_closer_than_float32_are_told_apart_and_equal_ones_tie():
    """344^2 / 119714 and 343^2 / 119019 differ in the tenth digit; 3^2 / 27 and 5^2 / 75 in none."""
    dim = 120_000
    pairs = [(3, 27), (344, 119_714), (343, 119_019), (5, 75), (-343, 119_019), (-344, 119_714)]
    matrix = TernaryMatrix.from_rows(np.stack([row_of(*pair, dim) for pair in pairs]))
    ids, cosines = matrix.top(TernaryMatrix.from_rows(np.ones((1, dim), np.int8)), 6)
    assert ids.tolist() == [[2, 1, 0, 3, 5, 4]]
    assert cosines[0, 0] == cosines[0, 1] > cosines[0, 2] == cosines[0, 3]
    assert_allclose(cosines[0, ::5], [343 / (119_019 * dim) ** 0.5, -343 / (119_019 * dim) ** 0.5], rtol=1e-7)


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        ("features", {"features": np.zeros((3, 70))}),
        ("features", {"features": np.zeros((3, 140), np.float32)[:, ::2]}),
        ("low", {"low": np.zeros(69, np.float32)}),
        ("high", {"high": np.zeros(70)}),
        ("planes", {"planes": np.zeros((3, 2, 1), np.uint64)}),
        ("planes", {"planes": np.zeros((2, 2, 8), np.uint64)}),
        ("planes", {"planes": np.zeros((3, 3, 8), np.uint64)}),
        ("planes", {"planes": np.zeros((3, 2, 8), np.int64)}),
        ("features", {"features": np.zeros((3, 600), np.float32), "low": np.zeros(600, np.float32)}),
    ],
    ids=str,
)
def test_bad_arguments_of_packing_are_refused_by_name(named, changed):
    plain = np.zeros(70, np.float32)
    arguments = {"features": np.zeros((3, 70), np.float32), "low": plain, "high": plain,
                 "planes": kernels.bit_planes(3, 70), **changed}  # fmt: skip
    with pytest.raises(ValueError, match=f"{named}: expected" if "600" not in str(changed) else "expected"):
        kernels.ternary_pack(**arguments)


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        ("queries", {"queries": kernels.bit_planes(2, 600)}),
        ("planes", {"planes": kernels.bit_planes(4, 70)[::2]}),
        ("nonzeros", {"nonzeros": np.zeros(3, np.int32)}),
        ("nonzeros", {"nonzeros": np.zeros(4, np.int64)}),
        ("excluded", {"excluded": np.zeros(3, np.uint8)}),
        ("own", {"own": np.zeros(3, np.int64)}),
        ("first", {"first": -1}),
        ("first", {"first": 2**63 - 2}),
        ("ids", {"ids": np.zeros((3, 2), np.int64)}),
        ("ids", {"ids": np.zeros((2, 2), np.int32)}),
        ("keys", {"keys": np.zeros((2, 3))}),
        ("keys", {"keys": np.broadcast_to(np.zeros(1), (2, 2))}),
        ("threads", {"threads": 0}),
    ],
    ids=str,
)
def test_bad_arguments_of_the_search_are_refused_by_name(named, changed):
    arguments = {
        "queries": kernels.bit_planes(2, 70), "planes": kernels.bit_planes(4, 70), "nonzeros": np.zeros(4, np.int32),
        "excluded": None, "own": None, "first": 0, "ids": np.zeros((2, 2), np.int64), "keys": np.zeros((2, 2)),
        "threads": 1, **changed,
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"{named}: expected"):
        kernels.ternary_top(**arguments)


def test_read_only_arrays_are_refused():
    planes, out = kernels.bit_planes(2, 70), np.zeros((2, 70), np.int8)
    planes.flags.writeable = out.flags.writeable = False
    low = np.zeros(70, np.float32)
    with pytest.raises(ValueError, match="planes: expected a writable array"):
        kernels.ternary_pack(np.zeros((2, 70), np.float32), low, low, planes)
    with pytest.raises(ValueError, match="levels: expected a writable array"):
        kernels.ternary_levels(np.zeros((2, 70), np.float32), low, low, out)
    with pytest.raises(ValueError, match="levels: expected a writable array"):
        kernels.ternary_unpack(planes, out)
    with pytest.raises(ValueError, match="levels: expected at most 512 columns"):
        kernels.ternary_unpack(planes, np.zeros((2, 513), np.int8))


# ---- thresholds ---------------------------------------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)
numbers32 = st.floats(width=32, allow_nan=False)


def around(x):
    """x and the adjacent float32 numbers."""
    with np.errstate(over="ignore"):
        return [x, np.nextafter(x, INFINITY), np.nextafter(x, -INFINITY)]


@given(
    mean=finite,
    sd=st.one_of(st.floats(0, 1e308, exclude_min=True), st.floats(1e-6, 1e6)),
    bounds=st.one_of(st.just((-0.25, 0.15)), st.tuples(finite, finite).map(sorted)),
    others=st.lists(numbers32, max_size=5),
)
@example(mean=-0.15, sd=1.0, bounds=(-0.25, 0.15), others=[])  # upper threshold at 0, where float32 is finest
@example(mean=0.25 * 3, sd=3.0, bounds=(-0.25, 0.15), others=[])
@example(mean=1e9, sd=1e-3, bounds=(-0.25, 0.15), others=[1e9])  # only one float32 within a million sd
@example(mean=0.0, sd=5e-324, bounds=(-0.25, 0.15), others=[])
@example(mean=1e308, sd=1e308, bounds=(-0.25, 0.15), others=[])
@settings(max_examples=300, deadline=None)
def test_thresholds_decide_as_the_definition(mean, sd, bounds, others):
    lower, upper = bounds
    low, high = thresholds(np.array([mean]), np.array([sd]), lower, upper)
    assert low.dtype == high.dtype == np.float32
    near = [y for x in (low[0], high[0]) for y in around(x)]
    x = np.array([*near, *others, 0.0, -0.0, np.inf, -np.inf], np.float32)[:, None]
    with np.errstate(over="ignore"):
        z = (x.astype(np.float64) - mean) / sd
    assert_array_equal(levels(x, low, high), np.where(z > upper, 1, np.where(z < lower, -1, 0)))


def test_thresholds_of_many_features():
    rng = np.random.default_rng(0)
    x = (rng.normal(0, 1, (200, 3000)) * rng.lognormal(0, 4, 3000) + rng.normal(0, 100, 3000)).astype(np.float32)
    mean, sd = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    z = (x - mean) / sd
    got = levels(x, *thresholds(mean, sd))
    assert_array_equal(got, (z > 0.15).astype(np.int8) - (z < -0.25).astype(np.int8))
    assert 0.1 < (got == 0).mean() < 0.2


def test_a_constant_feature_is_always_zero():
    low, high = thresholds(np.array([5.0, 5.0]), np.array([0.0, 1.0]))
    x = np.array([[5, 5], [6, 6], [-np.inf, 4], [np.inf, 5]], np.float32)
    assert levels(x, low, high).tolist() == [[0, 0], [0, 1], [0, -1], [0, 0]]


@pytest.mark.parametrize(
    ("mean", "sd", "bounds", "message"),
    [
        ([1.0, 2.0], [1.0], (-0.25, 0.15), "one mean and one sd for each feature"),
        ([1.0], [-1.0], (-0.25, 0.15), "an sd of 0 or more, got 1.0 and -1.0 for feature 0"),
        ([1.0, np.nan], [1.0, 1.0], (-0.25, 0.15), "for feature 1"),
        ([1.0, 1.0], [1.0, np.inf], (-0.25, 0.15), "for feature 1"),
        ([1.0], [1.0], (0.2, 0.1), "lower <= upper, got 0.2 and 0.1"),
        ([1.0], [1.0], (np.nan, 0.1), "finite thresholds"),
    ],
)
def test_bad_thresholds(mean, sd, bounds, message):
    with pytest.raises(ValueError, match=message):
        thresholds(np.array(mean), np.array(sd), *bounds)


# ---- TernaryMatrix ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch):
    """Splits a few rows into many chunks."""
    monkeypatch.setattr(ternary, "_CHUNK_NUMBERS", 64)
    monkeypatch.setattr(ternary, "_CHUNK_QUERIES", 3)
    monkeypatch.setattr(ternary, "_CHUNK_ROWS", 7)
    monkeypatch.setattr(search, "_CHUNK_NUMBERS", 64)
    monkeypatch.setattr(search, "_CHUNK_SCORES", 64)


@pytest.mark.parametrize("dim", [1, 40, 512, 700])
def test_rows_round_trip(dim, small_blocks):
    rows = random_levels(20, dim)
    matrix = TernaryMatrix.from_rows(rows)
    assert (matrix.shape, len(matrix), matrix.dim, matrix.dtype, matrix.ndim) == ((20, dim), 20, dim, np.int8, 2)
    assert repr(matrix) == f"TernaryMatrix(20 rows, dim={dim})"
    assert matrix.nbytes == 20 * 16 * 8 * -(-dim // 512)
    mask = np.arange(20) % 3 == 0
    for part in (slice(None), slice(3, 9), slice(0, 20, 4), slice(5, 5), [4, 4, 0], np.array([], int), mask, 7, -1):
        assert matrix[part].dtype == np.int8
        assert_array_equal(matrix[part], rows[part])
    for part in (slice(2, 20, 3), [5, 1]):
        assert_array_equal(matrix.take(part)[:], rows[part])
    assert_array_equal(matrix.nonzeros, np.count_nonzero(rows, axis=1))
    floats = matrix.to_float32()
    assert floats.dtype == np.float32
    assert_array_equal(floats, rows)
    assert_array_equal(TernaryMatrix.from_rows(floats).planes, matrix.planes)
    assert_array_equal(TernaryMatrix.from_rows(rows.astype(np.int64)[:, :]).planes, matrix.planes)


def test_features_become_rows(small_blocks, tmp_path):
    x = np.random.default_rng(0).normal(0, 1, (30, 70)).astype(np.float32)
    low, high = thresholds(np.zeros(70), np.ones(70))
    rows = levels(x, low, high)
    assert_array_equal(TernaryMatrix.from_features(x, low, high)[:], rows)
    assert_array_equal(TernaryMatrix.from_features(np.asfortranarray(x), low, high)[:], rows)
    mapped = np.memmap(tmp_path / "planes", np.uint64, "w+", shape=(30, 2, 8))
    assert TernaryMatrix.from_features(x, low, high, planes=mapped).planes is mapped
    assert_array_equal(TernaryMatrix(np.memmap(tmp_path / "planes", np.uint64, "r", shape=(30, 2, 8)), 70)[:], rows)
    x[21, 3] = np.nan
    for make in (levels, TernaryMatrix.from_features):
        with pytest.raises(ValueError, match="got NaN in row 21, column 3"):
            make(x, low, high)


def test_rows_that_are_not_ternary_are_refused():
    with pytest.raises(ValueError, match="expected -1, 0 and 1, got 2 in row 1, column 2"):
        TernaryMatrix.from_rows(np.array([[1, 0, -1], [0, 0, 2]]))
    with pytest.raises(ValueError, match="got nan in row 0, column 0"):
        TernaryMatrix.from_rows(np.array([[np.nan]]))
    for shape in ((3,), (3, 0)):
        with pytest.raises(ValueError, match="a matrix with at least one column"):
            TernaryMatrix.from_rows(np.zeros(shape, np.int8))
    with pytest.raises(ValueError, match=r"planes of shape \(n, 2, 16\) for 513 numbers"):
        TernaryMatrix(kernels.bit_planes(3, 512), 513)
    with pytest.raises(ValueError, match="uint64 planes"):
        TernaryMatrix(kernels.bit_planes(3, 512).view(np.int64), 512)
    with pytest.raises(ValueError, match="queries of 5 numbers, got 6"):
        TernaryMatrix.from_rows(random_levels(2, 5)).top(TernaryMatrix.from_rows(random_levels(1, 6)), 1)


def test_no_implicit_conversion_to_an_array():
    matrix = TernaryMatrix.from_rows(random_levels(20, 5))
    with pytest.raises(TypeError, match="does not convert implicitly"):
        np.asarray(matrix)
    with pytest.raises(TypeError, match="does not convert implicitly"):
        np.asarray(matrix, dtype=np.float32)
    with pytest.raises(TypeError, match="cannot be indexed by column"):
        matrix[:, 2]


@pytest.mark.parametrize(
    ("package", "export"), [("gensim", "to_gensim"), ("pandas", "to_pandas"), ("pyarrow", "to_arrow")]
)
def test_exports_ask_for_floats(package, export, both):
    pytest.importorskip(package)
    with pytest.raises(ValueError, match=f"{export} needs float32 rows, got ternary ones"):
        getattr(both[0], export)()


# ---- search -------------------------------------------------------------------------------------------------------


def slow_top(rows, queries, k, forbidden=()):
    """The k best rows of each query and their cosines by exact integers, ties by row."""
    rows, queries = rows.astype(np.int64), queries.astype(np.int64)
    ids = np.full((len(queries), k), -1)
    cosines = np.full((len(queries), k), -np.inf)
    for q, query in enumerate(queries):

        def square(i, query=query):
            dot = int(rows[i] @ query)
            return Fraction(dot * abs(dot), max(1, int((rows[i] ** 2).sum()) * int((query**2).sum())))

        allowed = [i for i in range(len(rows)) if (q, i) not in forbidden]
        best = sorted(allowed, key=lambda i: (-square(i), i))[:k]
        ids[q, : len(best)] = best
        cosines[q, : len(best)] = [np.sign(s := float(square(i))) * np.sqrt(abs(s)) for i in best]
    return ids, cosines


@given(
    n=st.integers(1, 60),
    m=st.integers(0, 8),
    dim=st.integers(1, 6),
    k=st.integers(0, 70),
    stop=st.one_of(st.none(), st.integers(0, 70)),
    excluded=st.sets(st.integers(0, 59), max_size=5),
    own=st.booleans(),
    threads=st.integers(1, 3),
    small=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=150, deadline=None)
def test_top_is_the_full_sort(n, m, dim, k, stop, excluded, own, threads, small, seed):
    rows, queries = random_levels(n, dim, seed), random_levels(m, dim, seed + 1)
    excluded = np.array([i for i in excluded if i < n], dtype=np.int64)
    owned = np.random.default_rng(seed).integers(-1, n, m) if own else None
    end = n if stop is None else min(stop, n)
    forbidden = {(q, i) for q in range(m) for i in excluded.tolist()}
    if own:
        forbidden |= set(enumerate(owned.tolist()))
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(ternary, "_CHUNK_QUERIES", 3)
            patch.setattr(ternary, "_CHUNK_ROWS", 7)
        ids, cosines = TernaryMatrix.from_rows(rows).top(
            TernaryMatrix.from_rows(queries), k, stop=stop, excluded=excluded, own=owned, threads=threads
        )
    slow_ids, slow_cosines = slow_top(rows[:end], queries, k, forbidden)
    assert_array_equal(ids, slow_ids)
    assert_allclose(cosines, slow_cosines, rtol=1e-6)
    assert cosines.dtype == np.float32


def test_the_answer_does_not_depend_on_threads_or_blocks(monkeypatch):
    matrix = TernaryMatrix.from_rows(random_levels(5000, 12))
    queries = TernaryMatrix.from_rows(random_levels(300, 12, seed=1))
    ids, cosines = matrix.top(queries, 20, threads=1)
    assert (np.diff(cosines, axis=1) == 0).any(axis=1).all()  # ties, in every query
    for rows, together in ((1 << 16, 256), (1 << 16, 100_000), (777, 10)):
        monkeypatch.setattr(ternary, "_CHUNK_ROWS", rows)
        monkeypatch.setattr(ternary, "_CHUNK_QUERIES", together)
        for threads in (1, 2, 7):
            again = matrix.top(queries, 20, threads=threads)
            assert_array_equal(again[0], ids)
            assert_array_equal(again[1], cosines)


@pytest.fixture
def both():
    """The same rows as ternary and as float32 Vectors; w7 is zero, w8 and w9 are equal."""
    rows = random_levels(80, 70)
    rows[7] = 0
    rows[9] = rows[8]
    keys = [f"w{i}" for i in range(80)]
    return Vectors(keys, TernaryMatrix.from_rows(rows)), Vectors(keys, rows.astype(np.float32))


def assert_alike(packed, floats):
    """Compares lists of (key, score); keys whose scores differ by rounding may be swapped."""
    assert_allclose([s for _, s in packed], [s for _, s in floats], atol=1e-6)
    scores = dict(floats)
    assert_allclose([scores[key] for key, _ in packed[:-1]], [s for _, s in packed[:-1]], atol=1e-6)


@pytest.mark.parametrize(
    "asked",
    [
        {"positive": "w1"},
        {"positive": ["w1"], "restrict": 30},
        {"positive": "w8", "exclude": ["w9", "w3"]},
        {"positive": "w7"},
        {"negative": "w1"},
        {"positive": [("w1", 2.0)]},
        {"positive": ["w1", "w2"]},
        {"positive": ["w1", "w2"], "negative": ["w3"]},
        {"positive": [("w1", 2.0), ("w2", 0.5)], "restrict": 50},
        {"positive": ["w1", "w2"], "negative": ["w3"], "method": "mul"},
        {"positive": np.linspace(-1, 1, 70)},
        {"positive": random_levels(1, 70, seed=3)[0] * 0.25},
    ],
    ids=str,
)
def test_ternary_searches_equal_float_searches(both, asked, small_blocks):
    packed, floats = both
    assert_alike(packed.most_similar(**asked, k=12), floats.most_similar(**asked, k=12))


def test_keys_are_searched_by_counting_bits(both, monkeypatch):
    packed, floats = both
    expected = floats.nearest(packed.keys, k=5)
    monkeypatch.delattr(Vectors, "cosines")
    ids, cosines = packed.nearest(packed.keys, k=5)
    assert_allclose(cosines, expected[1], atol=1e-6)
    slow = slow_top(packed.matrix[:], packed.matrix[:], 5, {(i, i) for i in range(80)})
    assert_array_equal(ids, slow[0])
    assert packed.most_similar("w8", k=1) == [("w9", 1.0)]
    for queries in (packed.matrix[:10], packed.matrix[:10] * np.float64(-0.3), packed.matrix[:10].astype(np.float32)):
        ids, cosines = packed.nearest(queries, k=3, restrict=40, exclude=["w0"])
        slow = slow_top(packed.matrix[:40], np.sign(queries), 3, {(q, 0) for q in range(10)})
        assert_array_equal(ids, slow[0])
        assert_allclose(cosines, slow[1], rtol=1e-6)


def test_the_rest_of_vectors(both, small_blocks):
    packed, floats = both
    assert_array_equal(packed.norms, floats.norms)
    assert packed["w3"].dtype == np.int8
    assert_array_equal(packed["w3"], floats["w3"])
    assert_array_equal(packed[["w3", "w1"]], floats[["w3", "w1"]])
    assert_array_equal(packed.get("w5"), floats.get("w5"))
    assert packed.similarity("w1", "w2") == floats.similarity("w1", "w2")
    assert packed.n_similarity(["w1", "w2"], ["w3"]) == floats.n_similarity(["w1", "w2"], ["w3"])
    assert packed.doesnt_match(["w1", "w2", "w3"]) == floats.doesnt_match(["w1", "w2", "w3"])
    queries = np.random.default_rng(0).normal(size=(9, 70))
    ids, cosines = packed.nearest(queries, k=6)
    again = floats.nearest(queries, k=6)
    assert_allclose(cosines, again[1], atol=1e-6)
    assert_array_equal(ids, again[0])
    questions = {"all": [(f"w{i}", f"w{i + 1}", f"w{i + 2}", f"w{i + 3}") for i in range(60)]}
    assert evaluate.analogies(packed, questions).accuracy == evaluate.analogies(floats, questions).accuracy
    with pytest.raises(ValueError, match="queries of shape"):
        packed.nearest(np.ones((2, 71)))
    with pytest.raises(ValueError, match="k and restrict must be 0 or more"):
        packed.nearest(["w1"], k=-1)
    assert packed.nearest([], k=3)[0].shape == (0, 3)
    assert packed.nearest(["w1"], k=0)[0].shape == (1, 0)


def test_rank_counts_strictly_nearer_keys(both):
    packed, _ = both
    ids, _ = slow_top(packed.matrix[:], packed.matrix[:], 80)
    for a in (1, 7, 8):
        others = [i for i in ids[a].tolist() if i != a]
        dots = packed.matrix[:].astype(int) @ packed.matrix[a].astype(int)
        squares = [Fraction(int(d * abs(d)), max(1, int(z))) for d, z in zip(dots, packed.matrix.nonzeros, strict=True)]
        for b in others[::9]:
            assert packed.rank(f"w{a}", f"w{b}") == 1 + sum(squares[i] > squares[b] for i in others)
    assert packed.rank("w1", "w1") == 1


def test_an_index_of_ternary_rows(both):
    pytest.importorskip("usearch")
    packed, floats = both
    found = packed.most_similar("w8", k=3, index=packed.build_index())
    assert_alike(found, floats.most_similar("w8", k=3))


def test_float_queries_unpack_little_at_once(monkeypatch):
    monkeypatch.setattr(search, "_CHUNK_NUMBERS", 1 << 17)
    vectors = Vectors([f"w{i}" for i in range(4000)], TernaryMatrix.from_rows(random_levels(4000, 2000)))
    tracemalloc.start()
    vectors.most_similar(["w1", "w2"], k=3)
    vectors.most_similar("w1", k=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20  # as float32 the rows are 32 MB


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["npz", "safetensors"])
@pytest.mark.parametrize("mmap", [False, True])
def test_files_keep_the_planes(extension, mmap, both, tmp_path):
    path = tmp_path / f"v.{extension}"
    both[0].save(path)
    assert path.stat().st_size < 80 * 128 + 4096
    back = Vectors.load(path, mmap=mmap)
    assert isinstance(back.matrix, TernaryMatrix)
    assert isinstance(back.matrix.planes, np.memmap) == mmap
    assert (back.keys, back.dim) == (both[0].keys, 70)
    assert_array_equal(back.matrix.planes, both[0].matrix.planes)
    assert back.most_similar("w1") == both[0].most_similar("w1")
    assert back.matrix.planes.ctypes.data % 64 == 0 or not mmap
    few = Vectors.load(path, mmap=mmap, limit=9)
    assert few.keys == back.keys[:9]
    assert_array_equal(few.matrix[:], back.matrix[:9])


def test_other_formats_unpack(both, tmp_path, small_blocks):
    for name in ("v.bin", "v.txt", "v.vec.gz"):
        both[0].save(tmp_path / name)
        back = Vectors.load(tmp_path / name)
        assert_array_equal(back.matrix, both[1].matrix)
    both[0].save_projector(tmp_path / "projector")
    lines = (tmp_path / "projector" / "tensors.tsv").read_text().splitlines()
    assert [float(x) for x in lines[3].split("\t")] == both[1]["w3"].tolist()


def test_safetensors_of_others_reads_the_planes(both, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    both[0].save(tmp_path / "v.safetensors")
    tensors = numpy.load_file(tmp_path / "v.safetensors")
    assert_array_equal(tensors["planes"], both[0].matrix.planes)
    assert tensors["dim"].tolist() == [70]


@pytest.mark.parametrize("extension", ["npz", "safetensors"])
def test_files_with_invalid_levels(extension, tmp_path):
    keys = [f"w{i}" for i in range(6)]
    path = tmp_path / f"v.{extension}"
    for place, bit in ((0, 1), (1, 1 << 6)):  # both 1 and -1; beyond 70 numbers
        planes = kernels.bit_planes(6, 70)
        planes[:, 0, 0], planes[:, 1, 0] = 1, 2
        planes[4, 1, place] = bit
        write(path, keys, TernaryMatrix(planes, 70))
        with pytest.raises(FormatError, match="row 4: expected no number to be both 1 and -1 and no bit set beyond 70"):
            Vectors.load(path)
        with pytest.warns(UserWarning, match="dropped 1 faults"):
            back = Vectors.load(path, errors="skip")
        assert back.keys == ["w0", "w1", "w2", "w3", "w5"]
        assert_array_equal(back.matrix.planes, planes[[0, 1, 2, 3, 5]])
    for dim in (0, 1, 512, 513, -1, 2**40):
        planes = kernels.bit_planes(6, 70) if dim not in (1, 512) else np.zeros((6, 2, 16), np.uint64)
        matrix = TernaryMatrix(kernels.bit_planes(6, 70), 70)
        matrix.planes, matrix.dim = planes, dim
        write(path, keys, matrix)
        with pytest.raises(FormatError, match="8 words for every 512 of dim"):
            Vectors.load(path, mmap=True)


def test_a_cut_file_is_named(both, tmp_path):
    path = tmp_path / "v.safetensors"
    both[0].save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"v\.safetensors: expected"):
        Vectors.load(path)


def test_the_command_line_reads_them(both, tmp_path):
    both[0].save(tmp_path / "v.npz")
    result = CliRunner().invoke(cli.app, ["neighbors", str(tmp_path / "v.npz"), "w8", "-k", "2", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["w8"] == [list(pair) for pair in both[0].most_similar("w8", k=2)]
    result = CliRunner().invoke(cli.app, ["convert", str(tmp_path / "v.npz"), str(tmp_path / "v.safetensors"), "-q"])
    assert result.exit_code == 0, result.output
    assert_array_equal(Vectors.load(tmp_path / "v.safetensors").matrix.planes, both[0].matrix.planes)


def test_threads_of_a_large_search():
    """Enough work for every thread to get a part; the result equals the reference."""
    problem = TernaryProblem(dim=2000, n=1500, m=12, k=9, own=True, excluded=True, seed=4)
    x, low, high = problem.features()
    matrix = TernaryMatrix.from_features(x, low, high)
    slow = problem.search(reference, matrix.planes, matrix.nonzeros)
    for threads in (1, 2, 5):
        fast = TernaryProblem(**{**vars(problem), "threads": threads}).search(kernels, matrix.planes, matrix.nonzeros)
        assert_array_equal(fast["ids"], slow["ids"])
        assert_array_equal(fast["keys"], slow["keys"])
