"""The kernels of ranking.cu, executed on the CPU by the shim, against the reference and torch's gradients."""

import sys
from itertools import product

import numpy as np
import pytest
import shim
import standin
from numpy.testing import assert_allclose

from embfast import kernels, reference
from embfast.device import cuda as device
from embfast.device.ranking import RANKING_JOB, SHARED, TILE


@pytest.fixture(scope="module")
def library():
    return shim.Shim(shim.build())


def batch(n_images, n_captions, dim, groups, seed=0):
    """Rows similar to those of their pair; one row of zeros; random groups."""
    rng = np.random.default_rng([seed, n_images, n_captions, dim])
    most = max(n_images, n_captions)
    shared = rng.standard_normal((most, dim))
    images = (shared + rng.standard_normal((most, dim)))[:n_images].astype(np.float32)
    captions = (shared + rng.standard_normal((most, dim)))[:n_captions].astype(np.float32)
    images, captions = images / np.float32(dim**0.5), captions / np.float32(dim**0.5)
    images[n_images // 2] = 0
    return images, captions, rng.integers(0, most // 3 + 1, most) if groups else None


def solve(library, images, captions, *, mode, similarity, margin, groups=None, direction="both", offset=0, finish=True):
    """Loss and gradients by the kernels."""
    (n, dim), m = images.shape, len(captions)
    pairs = min(n, m)
    arrays = {
        "images": images,
        "captions": captions,
        "image_scales": np.full(n, np.nan, np.float32) if similarity == "cosine" else None,
        "caption_scales": np.full(m, np.nan, np.float32) if similarity == "cosine" else None,
        "groups": None if groups is None else groups.astype(np.int64),
        "paired": np.full(pairs, np.nan, np.float32),
        "to_images": np.zeros_like(images),
        "to_captions": np.zeros_like(captions),
        "active": np.zeros(pairs, np.int32),
        "best_captions": np.zeros(pairs, np.uint64),
        "best_images": np.zeros(pairs, np.uint64),
        "loss": np.zeros(1),
    }
    job = np.zeros((), RANKING_JOB)
    for name, array in arrays.items():
        job[name] = 0 if array is None else array.ctypes.data
    job["n_images"], job["n_captions"], job["n_pairs"], job["dim"] = n, m, pairs, dim
    job["first_image"] = offset if direction == "images" else 0
    job["first_caption"] = offset if direction == "captions" else 0
    job["of_images"], job["of_captions"] = direction != "captions", direction != "images"
    job["order"], job["semihard"], job["margin"] = similarity == "order", mode == "semihard", margin
    job = job[()]
    sides = ((images, "image_scales", "to_images"), (captions, "caption_scales", "to_captions"))
    if similarity == "cosine":
        for rows, scales, _ in sides:
            library.launch("ranking_scales", 2, 64, [rows, np.int64(len(rows)), np.int64(dim), arrays[scales]])
    library.launch("ranking_pairs", 2, 64, [job])
    grid = (-(-m // TILE), -(-n // TILE))
    tiled, single = ("sum", "add_pairs") if mode == "sum" else ("hardest", "add_hardest")
    library.launch(f"ranking_{tiled}{'_order' if similarity == 'order' else ''}", grid, 256, [job], SHARED)
    library.launch(f"ranking_{single}", 2, 64, [job])
    if similarity == "cosine":
        for rows, scales, to in sides:
            arguments = [rows, arrays[scales], np.int64(len(rows)), np.int64(dim), arrays[to]]
            library.launch("ranking_finish", 2, 64, arguments)
    return arrays["loss"][0], arrays["to_images"], arrays["to_captions"]


def expected(images, captions, *, groups=None, **settings):
    """Loss and gradients of embfast.multimodal.ranking in float64; its own tests hold them to calculus."""
    import torch

    from embfast.multimodal.ranking import ranking_loss

    sides = [torch.tensor(rows, dtype=torch.float64, requires_grad=True) for rows in (images, captions)]
    loss = ranking_loss(*sides, groups=None if groups is None else torch.tensor(groups), tile=50, **settings)
    loss.backward()
    return loss.item(), sides[0].grad.numpy(), sides[1].grad.numpy()


SHAPES = [(20, 20, 3), (70, 70, 40), (64, 64, 32), (65, 65, 100)]  # below, at and above the size of a tile


@pytest.mark.parametrize(("mode", "similarity"), [*product(("sum", "max", "semihard"), ("cosine", "dot", "order"))])
def test_losses_and_gradients_are_those_of_ranking(mode, similarity, library):
    for (n, m, dim), groups, policy in zip(SHAPES, (True, False, True, True), (*shim.SCHEDULES, "random"), strict=True):
        images, captions, group = batch(n, m, dim, groups)
        settings = {"mode": mode, "similarity": similarity, "margin": 0.3}
        library.schedule(policy, seed=n, resident=2)
        loss, *gradients = solve(library, images, captions, groups=group, **settings)
        slow, *slopes = expected(images, captions, groups=group, **settings)
        assert loss == pytest.approx(slow, rel=1e-5)
        assert slow > 0.1
        for found, slope in zip(gradients, slopes, strict=True):
            scale = np.abs(slope).max()
            assert scale > 0.01
            assert_allclose(found, slope, atol=2e-6 * scale + 1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_one_side_against_more_rows_of_the_other(mode, library):
    library.schedule("reverse")
    for direction, n, m in (("images", 30, 100), ("captions", 100, 30)):
        images, captions, groups = batch(n, m, 20, True)
        settings = {"mode": mode, "similarity": "cosine", "margin": 0.3, "direction": direction, "offset": 40}
        loss, *gradients = solve(library, images, captions, groups=groups, **settings)
        slow, *slopes = expected(images, captions, groups=groups, **settings)
        assert loss == pytest.approx(slow, rel=1e-5)
        for found, slope in zip(gradients, slopes, strict=True):
            assert_allclose(found, slope, atol=2e-6 * np.abs(slope).max() + 1e-6, rtol=1e-5)


def test_losses_are_those_of_the_plain_loops(library):
    library.schedule()
    images, captions, groups = batch(12, 12, 5, True)
    for mode, similarity in product(("sum", "max", "semihard"), ("cosine", "dot", "order")):
        settings = {"mode": mode, "similarity": similarity, "margin": 0.5, "groups": groups}
        slow = reference.ranking_loss(images.astype(np.float64), captions.astype(np.float64), **settings)
        assert solve(library, images, captions, **settings)[0] == pytest.approx(slow, rel=1e-5)


def test_of_equally_hard_negatives_the_first_counts(library):
    """As in torch, the gradient of the other is zero."""
    images = np.eye(3, 4, dtype=np.float32)
    captions = np.array([[1, 0.6, 0.6, 0], [0.6, 1, 0, 0], [0.6, 0, 1, 0]], np.float32)
    for policy in shim.SCHEDULES:
        library.schedule(policy)
        settings = {"mode": "max", "similarity": "dot", "margin": 0.7, "direction": "images"}
        _, _, to_captions = solve(library, images, captions, **settings)
        assert to_captions[1, 0] == 1
        assert to_captions[2, 0] == 0


def test_the_job_is_laid_out_as_in_the_source(library):
    assert library.arguments("ranking_sum") == [RANKING_JOB.itemsize]
    assert shim.fields("ranking.cu", "RankingJob") == list(RANKING_JOB.names)


@pytest.mark.parametrize("mode", ["sum", "max", "semihard"])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "order"])
def test_rows_on_a_device(mode, similarity, library, monkeypatch):
    """The host code on a stand-in for CuPy makes the same launches."""
    monkeypatch.setitem(sys.modules, "cupy", standin)
    monkeypatch.setattr(device.Device, "built", lambda self: "fatbin")
    images, captions, groups = batch(70, 70, 40, True)
    settings = {"mode": mode, "similarity": similarity, "margin": 0.3, "groups": groups}
    rows = []
    for side in (images, captions):
        rows.append(standin.empty(side.shape, np.float32))
        rows[-1].set(side)
    library.schedule()
    loss, *gradients = kernels.device_ranking_loss(device.find(), *rows, **settings)
    slow, *slopes = expected(images, captions, **settings)
    assert loss == pytest.approx(slow, rel=1e-5)
    for found, slope in zip(gradients, slopes, strict=True):
        assert_allclose(found.get(), slope, atol=2e-6 * np.abs(slope).max() + 1e-6, rtol=1e-5)


def test_invalid_rows_and_modes_are_errors_on_a_device(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", standin)
    rows = standin.empty((4, 5), np.float32)
    with pytest.raises(ValueError, match="captions: expected float32"):
        kernels.device_ranking_loss(device.find(), rows, standin.empty((4, 5), np.float64))
    with pytest.raises(ValueError, match="sum, max and semihard, got 'topk'"):
        kernels.device_ranking_loss(device.find(), rows, rows, mode="topk")
