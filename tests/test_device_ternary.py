"""The CUDA kernels of csrc/ternary/ternary.cu, run on the CPU by the shim, give the same bits as the CPU kernels."""

import sys

import numpy as np
import pytest
import shim
import standin
from numpy.testing import assert_array_equal

from embfast import kernels
from embfast.device import cuda as device
from embfast.device.ternary import BEST_THREADS, FOUND, MOST_BEST, best_size
from embfast.files import ternary
from embfast.files.ternary import TernaryMatrix, levels, thresholds

NONE = 2**64 - 1


@pytest.fixture(scope="module")
def library():
    return shim.Shim(shim.build())


def problem(n, dim, seed=0):
    """Features and thresholds; some features equal a threshold, and one is constant."""
    rng = np.random.default_rng([seed, n, dim])
    features = rng.standard_normal((n, dim)).astype(np.float32)
    features[:, dim // 2] = 3
    low, high = thresholds(features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64))
    features[0] = low
    features[-1] = high
    features[n // 2, ::3] = np.nextafter(high, np.float32(np.inf))[::3]
    return features, low, high


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 511, 512, 513, 1024, 1500])
@pytest.mark.parametrize("policy", shim.SCHEDULES)
def test_levels_and_planes_equal_the_cpus(dim, policy, library):
    features, low, high = problem(9, dim)
    with np.errstate(invalid="ignore"):
        features[~np.isfinite(features)] = 0
    expected = kernels.bit_planes(9, dim)
    assert kernels.ternary_pack(features, low, high, expected) == -1
    library.schedule(policy, seed=dim)
    planes, unordered = np.full_like(expected, 0xDEAD), np.array([NONE], np.uint64)
    sizes = [np.int64(n) for n in (9, dim, planes.shape[2])]
    library.launch("ternary_pack", 2, 64, [features, low, high, *sizes, planes, unordered])
    assert_array_equal(planes, expected)
    rows = np.full((9, dim), 5, np.int8)
    library.launch("ternary_levels", 2, 64, [features, low, high, *sizes[:2], rows, unordered])
    assert_array_equal(rows, levels(features, low, high))
    assert unordered[0] == NONE
    assert dim < 31 or set(np.unique(rows)) == {-1, 0, 1}
    counts = np.full(9, -1, np.int32)
    library.launch("ternary_nonzeros", 2, 64, [planes, np.int64(9), sizes[2], counts])
    assert_array_equal(counts, np.abs(rows).sum(1))


@pytest.mark.parametrize("kernel", ["ternary_pack", "ternary_levels"])
def test_the_first_row_with_a_nan_is_found(kernel, library):
    features, low, high = problem(9, 70)
    features[~np.isfinite(features)] = 0
    features[7, 3] = features[4, 69] = features[4, 1] = np.nan
    for policy in shim.SCHEDULES:
        library.schedule(policy)
        unordered = np.array([NONE], np.uint64)
        out = kernels.bit_planes(9, 70) if kernel == "ternary_pack" else np.empty((9, 70), np.int8)
        sizes = [np.int64(n) for n in ((9, 70, 16) if kernel == "ternary_pack" else (9, 70))]
        library.launch(kernel, 2, 64, [features, low, high, *sizes, out, unordered])
        assert unordered[0] == 4


def rows_of(n, dim, seed):
    rng = np.random.default_rng([seed, n, dim])
    rows = rng.choice(np.array([-1, 0, 1], np.int8), (n, dim))
    rows[n // 3] = 0
    rows[n // 2] = rows[1]  # equal cosines
    return rows


def search(library, queries, rows, k, *, first=0, excluded=None, own=None, ids=None, keys=None, threads=BEST_THREADS):
    """ternary_dots and ternary_best; returns the dot products, and ids and keys as kernels.ternary_top has them."""
    m, n, words = len(queries), len(rows), rows.planes.shape[2]
    dots = np.full((m, n), -(2**31), np.int32)
    sizes = [np.int64(m), np.int64(n)]
    library.launch("ternary_dots", (2, 2), 64, [queries.planes, sizes[0], rows.planes, sizes[1], np.int64(words), dots])
    ids = np.full((m, k), -1, np.int64) if ids is None else ids
    keys = np.full((m, k), -np.inf) if keys is None else keys
    size = best_size(k)
    arguments = [dots, *sizes, rows.nonzeros, excluded, own, np.int64(first), np.int32(k), np.int32(size), ids, keys]
    library.launch("ternary_best", 2, threads, arguments, size * FOUND.itemsize)
    return dots, ids, keys


@pytest.mark.parametrize(("dim", "k"), [(1, 1), (64, 5), (700, 40), (2600, 3)])
def test_search_equals_the_cpus(dim, k, library):
    rows = TernaryMatrix.from_rows(rows_of(600 if k == 5 else 50, dim, 1))
    queries = TernaryMatrix.from_rows(np.concatenate([rows_of(5, dim, 2), rows[:2]]))
    m, n = len(queries), len(rows)
    excluded = (np.arange(n) % 7 == 3).astype(np.uint8)
    own = np.array([-1, 0, 1, -1, 4, 0, 1], np.int64)
    for policy, left_out, self_ in zip(shim.SCHEDULES, (None, excluded, excluded), (None, None, own), strict=True):
        library.schedule(policy, seed=k)
        threads = 64 if policy == "random" else BEST_THREADS
        dots, ids, keys = search(library, queries, rows, k, excluded=left_out, own=self_, threads=threads)
        assert_array_equal(dots, queries[:].astype(np.int32) @ rows[:].astype(np.int32).T)
        expected_ids, expected_keys = np.full((m, k), -1, np.int64), np.full((m, k), -np.inf)
        kernels.ternary_top(queries.planes, rows.planes, rows.nonzeros, excluded=left_out, own=self_, first=0,
                            ids=expected_ids, keys=expected_keys, threads=1)  # fmt: skip
        assert_array_equal(ids, expected_ids)
        assert_array_equal(keys, expected_keys)


def test_search_continues_with_more_rows(library):
    rows = TernaryMatrix.from_rows(rows_of(90, 130, 3))
    queries = TernaryMatrix.from_rows(rows_of(4, 130, 4))
    library.schedule()
    _, ids, keys = search(library, queries, rows, 60)
    own = np.array([70, -1, -1, 2], np.int64)
    for whole in (True, False):
        answers = []
        for cut in ((0, 90),) if whole else ((0, 40), (40, 90)):
            begin, end = cut
            part = rows.take(slice(begin, end))
            ids, keys = answers[-1] if answers else (None, None)
            answers.append(search(library, queries, part, 60, first=begin, own=own, ids=ids, keys=keys)[1:])
        if whole:
            expected = answers[-1]
    assert_array_equal(answers[-1][0], expected[0])
    assert_array_equal(answers[-1][1], expected[1])


def test_a_search_of_most_best_rows(library):
    rows = TernaryMatrix.from_rows(rows_of(900, 20, 5))
    queries = TernaryMatrix.from_rows(rows_of(2, 20, 6).take([1], axis=0))
    library.schedule()
    assert best_size(MOST_BEST) == 1024
    _, ids, keys = search(library, queries, rows, MOST_BEST)
    expected_ids, expected_keys = np.full((1, MOST_BEST), -1, np.int64), np.full((1, MOST_BEST), -np.inf)
    kernels.ternary_top(queries.planes, rows.planes, rows.nonzeros, excluded=None, own=None, first=0,
                        ids=expected_ids, keys=expected_keys, threads=1)  # fmt: skip
    assert_array_equal(ids, expected_ids)
    assert_array_equal(keys, expected_keys)


# ---- the host side, on a stand-in for CuPy --------------------------------------------------------------------------


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", standin)
    monkeypatch.setattr(device.Device, "built", lambda self: "fatbin")
    return standin


def on_device(features):
    array = standin.empty(features.shape, np.float32)
    array.set(features)  # the copy is asynchronous
    return array


@pytest.mark.parametrize("where", ["host", "device"])
def test_packing_on_a_device_equals_the_cpus(where, cupy, monkeypatch):
    monkeypatch.setattr(ternary, "_CHUNK_NUMBERS", 7 * 70)  # seven rows at a time
    features, low, high = problem(40, 70)
    features[~np.isfinite(features)] = 0
    expected = TernaryMatrix.from_features(features, low, high)
    given = features if where == "host" else on_device(features)
    assert_array_equal(TernaryMatrix.from_features(given, low, high, device="cuda").planes, expected.planes)


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("row", [0, 20, 39])
def test_a_nan_is_named_with_its_place(row, where, cupy, monkeypatch):
    monkeypatch.setattr(ternary, "_CHUNK_NUMBERS", 7 * 70)
    features, low, high = problem(40, 70)
    features[~np.isfinite(features)] = 0
    features[row, 69] = np.nan
    given = features if where == "host" else on_device(features)
    with pytest.raises(ValueError, match=f"NaN in row {row}, column 69"):
        TernaryMatrix.from_features(given, low, high, device="cuda")


def test_device_features_must_be_float32(cupy):
    array = standin.empty((4, 9), np.float64)
    with pytest.raises(ValueError, match="expected float32 in C order, got float64"):
        TernaryMatrix.from_features(array, np.zeros(9), np.ones(9), device="cuda")
