"""Moments compared with numpy in float64."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from embfast.vectors import moments as module
from embfast.vectors.moments import Moments


def added(rows, sizes):
    moments = Moments(rows.shape[1])
    lo = 0
    for size in [*sizes, len(rows)]:
        moments.add(rows[lo : lo + size])
        lo += size
    return moments


@given(
    sizes=st.lists(st.integers(0, 9), max_size=6),
    n=st.integers(1, 40),
    dim=st.integers(1, 5),
    offset=st.sampled_from([0.0, 1.0, -1e4, 1e8, 1e-6]),
    scale=st.sampled_from([1e-8, 1.0, 1e6]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 999),
)
@settings(max_examples=100, deadline=None)
def test_moments_are_those_of_numpy(sizes, n, dim, offset, scale, dtype, seed):
    rows = (np.random.default_rng(seed).normal(offset, scale, (n, dim))).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_NUMBERS", 7 * dim)
        moments = added(rows, sizes)
    distances = rows.astype(np.longdouble) - rows[0]  # np.longdouble itself has too few digits at 1e8
    mean = (rows[0] + distances.mean(axis=0)).astype(np.float64)
    sd = distances.std(axis=0).astype(np.float64)
    assert moments.n == n
    assert_allclose(moments.mean, mean, rtol=1e-12, atol=1e-12 * float(sd.max()))
    assert_allclose(moments.sd, sd, rtol=1e-12, atol=1e-12 * float(sd.max()))


def test_a_large_offset_costs_no_digits():
    noise = np.random.default_rng(0).normal(0, 1, (5000, 3))
    rows = noise + 1e12
    distance = rows - 1e12  # exact
    moments = added(rows, [1, 700, 1300])
    assert_allclose(moments.sd, distance.std(axis=0), rtol=1e-12)
    assert_allclose(moments.mean - 1e12, distance.mean(axis=0), atol=2e-4)  # a float64 near 1e12 has that step


@pytest.mark.parametrize("value", [0.1, 1 / 3, -7e22, 1e-30, 0.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_has_no_deviation(value, dtype):
    rows = np.full((1001, 2), value, dtype)
    rows[:, 1] = np.arange(1001)
    moments = added(rows, [3, 1, 500])
    assert moments.sd[0] == 0.0
    assert moments.mean[0] == np.float64(dtype(value))
    assert moments.sd[1] > 0


def test_an_outlier_in_the_first_row_costs_no_digits():
    rows = np.random.default_rng(0).normal(0, 1, (3000, 2))
    rows[0] = 1e6
    moments = added(rows, [1, 99])
    assert_allclose(moments.sd, rows.astype(np.longdouble).std(axis=0).astype(np.float64), rtol=1e-12)


def test_merged_moments_are_those_of_all_rows():
    rows = np.random.default_rng(0).normal(3, 2, (100, 4))
    rows[:, 3] = 0.1
    parts = [added(rows[:30], [4]), Moments(4), added(rows[30:], [])]
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        whole = Moments(4)
        for part in order:
            whole.merge(parts[part])
        assert whole.n == 100
        assert_allclose(whole.mean, rows.mean(axis=0), rtol=1e-13)
        assert_allclose(whole.sd, rows.std(axis=0), rtol=1e-13, atol=1e-15)
        assert whole.sd[3] == 0.0
    assert [part.n for part in parts] == [30, 0, 70]
    copy = pickle.loads(pickle.dumps(whole))
    copy.add(rows)
    assert (copy.n, whole.n) == (200, 100)
    with pytest.raises(ValueError, match="moments of 4 columns, got 3"):
        whole.merge(Moments(3))


def test_integers_count_exactly():
    rows = np.array([[255, 0], [0, 0]], np.uint8)
    moments = added(rows, [])
    assert (moments.mean.tolist(), moments.sd.tolist()) == ([127.5, 0.0], [127.5, 0.0])


def test_bad_rows_change_nothing():
    moments = Moments(3)
    for ask in (lambda: moments.mean, lambda: moments.sd):
        with pytest.raises(ValueError, match="at least one row"):
            ask()
    moments.add(np.ones((2, 3)))
    for bad in (np.nan, np.inf, -np.inf):
        rows = np.ones((5, 3), np.float32)
        rows[3, 1] = bad
        with pytest.raises(ValueError, match=f"expected finite numbers, got {bad} in row 5, column 1"):
            moments.add(rows)
    with pytest.raises(ValueError, match="whose squares fit in a float64"):
        moments.add(np.array([[1e200, 0, 0]]))
    with pytest.raises(ValueError, match=r"rows of 3 numbers, got shape \(2, 4\)"):
        moments.add(np.ones((2, 4)))
    moments.add(np.empty((0, 3)))
    assert moments.n == 2
    assert_array_equal(moments.sd, 0)
    assert_array_equal(moments.mean, 1)
