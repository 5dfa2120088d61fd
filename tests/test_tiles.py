"""The kernels of ranking losses against the reference, the reference against calculus, and invalid arguments."""

from functools import cache

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tile_problems import TileProblem, every_problem

from embfast import kernels, reference

PROBLEMS = every_problem()


@pytest.fixture(scope="session", params=["baseline", "avx2", "avx512"])
def solved(request, solve_on):
    """Results of every problem on one instruction set; a process selects its instruction set once."""
    return solve_on(request.param, "tile_problems.py")


@cache
def expected(name):
    return PROBLEMS[name].solve(reference, np.float64)


@pytest.mark.parametrize("name", PROBLEMS)
def test_kernels_match_reference(name, solved):
    for part, slow in expected(name).items():
        assert_allclose(solved[f"{name}/float32/{part}"], slow, rtol=2e-6, atol=2e-5, err_msg=part)
        assert_allclose(solved[f"{name}/float64/{part}"], slow, rtol=1e-13, atol=1e-13, err_msg=part)


def test_reference_follows_the_gradient_of_its_scores():
    images, captions, weights, _, _ = TileProblem(3, 4, 5).arguments(np.float64)

    def total():
        scores = np.empty_like(weights)
        reference.order_scores(images, captions, scores)
        return np.sum(weights * scores)

    found = np.zeros_like(images), np.zeros_like(captions)
    reference.add_order_gradients(images, captions, weights, *found)
    for rows, gradient in zip((images, captions), found, strict=True):
        slope = np.zeros_like(rows)
        for place in np.ndindex(rows.shape):
            middle, h = rows[place], 1e-6
            rows[place] = middle + h
            above = total()
            rows[place] = middle - h
            slope[place] = (above - total()) / (2 * h)
            rows[place] = middle
        assert_allclose(gradient, slope, rtol=1e-6, atol=1e-8)


def test_threads_do_not_change_a_bit():
    one, many = TileProblem(70, 40, 200), TileProblem(70, 40, 200, threads=4)
    for part, values in one.solve(kernels, np.float32).items():
        assert_array_equal(values, many.solve(kernels, np.float32)[part], err_msg=part)


def test_invalid_arguments_are_errors():
    images, captions, weights, to_images, to_captions = TileProblem(3, 4, 5).arguments(np.float32)
    scores = np.empty_like(weights)
    frozen = scores.copy()
    frozen.flags.writeable = False
    for arguments, told in [
        ((images, captions[:, :4].copy(), scores), "captions: expected 5 columns"),
        ((images, captions.astype(np.float64), scores), "captions: expected .* the images' dtype, got float64"),
        ((images.astype(np.int32), captions, scores), "images: expected .* float32 or float64, got int32"),
        ((images[:, ::2], captions, scores), "not C-contiguous"),
        ((images[0], captions, scores), "images: expected"),
        ((images, captions, scores.T.copy()), r"scores: expected a writable matrix \(3, 4\), got float32 \(4, 3\)"),
        ((images, captions, scores.T), "scores: .* not C-contiguous"),
        ((images, captions, frozen), "scores: expected a writable matrix"),
    ]:
        with pytest.raises(ValueError, match=told):
            kernels.order_scores(*arguments, threads=1)
    for arguments, told in [
        ((weights.T.copy(), to_images, to_captions), "weights: expected a number for each image and caption"),
        ((weights, to_images[:2], to_captions), r"to_images: expected a writable matrix \(3, 5\)"),
        ((weights, to_images, to_captions.astype(np.float64)), "to_captions: .*got float64"),
    ]:
        with pytest.raises(ValueError, match=told):
            kernels.add_order_gradients(images, captions, *arguments, threads=1)
    for threads in (0, 5000):
        with pytest.raises(ValueError, match=r"threads: expected 1\.\.4096"):
            kernels.order_scores(images, captions, scores, threads=threads)


def test_invalid_arguments_of_hinges_and_hardest_are_errors():
    scores, by_row, by_column = np.ones((3, 4)), np.ones(3), np.ones(4)
    places = np.zeros(3, np.int64)
    frozen = by_row.copy()
    frozen.flags.writeable = False
    for arguments, told in [
        ((scores.T, by_column, None, by_column, None), "scores: .*not C-contiguous"),
        ((scores.astype(np.int64), by_row, None, by_row, None), "scores: expected .* got int64"),
        ((scores, by_column, None, by_row, None), "row_bounds: expected 3 entries"),
        ((scores, None, by_row, None, by_column), "column_bounds: expected 4 entries"),
        ((scores, by_row, None, by_column, None), "row_active: expected 3 entries"),
        ((scores, by_row, None, frozen, None), "row_active: expected a writable array"),
        ((scores, by_row.astype(np.float32), None, by_row, None), "row_bounds: .*got float32"),
        ((scores, by_row, by_column, by_row, None), "expected bounds and active, or None for both"),
    ]:
        with pytest.raises(ValueError, match=told):
            kernels.hinges(*arguments)
    for arguments, told in [
        ((scores, 2, None, 0, by_row, places), "axis: expected 0 for rows or 1 for columns"),
        ((scores, 0, by_column, 0, by_row, places), "below: expected 3 entries"),
        ((scores, 1, None, 0, by_row, places), "best: expected 4 entries"),
        ((scores, 0, None, 0, frozen, places), "best: expected a writable array"),
        ((scores, 0, None, 0, by_row, places.astype(np.int32)), "found: .*got int32"),
        ((scores, 0, None, 0, by_row, places[:2]), "found: expected 3 entries"),
    ]:
        with pytest.raises(ValueError, match=told):
            kernels.hardest(*arguments)


def test_empty_sides_and_rows_are_allowed():
    for n, m, dim in [(0, 4, 5), (3, 0, 5), (3, 4, 0)]:
        images, captions, weights = np.ones((n, dim)), np.ones((m, dim)), np.ones((n, m))
        scores, found = np.full((n, m), 7.0), np.ones((n, dim))
        kernels.order_scores(images, captions, scores, threads=2)
        kernels.add_order_gradients(images, captions, weights, found, None, threads=2)
        assert (scores == 0).all()
        by_row, by_column, best, places = np.ones(n), np.ones(m), np.ones(n), np.zeros(n, np.int64)
        assert kernels.hinges(scores, by_row, by_column, by_row.copy(), by_column.copy()) == n * m * 2
        kernels.hardest(scores, 0, None, 0, best, places)
        assert (best == np.where(m, np.maximum(1, scores.max(1, initial=-1)), 1)).all()
        assert (found == 1).all()
