"""Ranking losses against loops in numpy, their gradients against calculus and plain torch, and their memory."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.utils._python_dispatch import TorchDispatchMode

import embfast
from embfast import reference
from embfast.multimodal import ranking, tiles
from embfast.multimodal.ranking import info_nce, ranking_loss

MODES = ("sum", "max", "semihard", "topk", "nce")
MARGIN = 1.0
SIMILARITIES = ("cosine", "dot", "order")
# direction, offset, images, captions
SHAPES = {
    "square": ("both", 0, 7, 7),
    "images": ("images", 3, 4, 8),
    "captions": ("captions", 2, 7, 5),
    "square-one-way": ("captions", 0, 5, 5),
}


def rows(n_images, n_captions, dim=5, dtype=torch.float64, seed=12):
    """Random rows; some pairs are similar and some are not."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(n_images, dim, generator=draw, dtype=torch.float64)
    captions = torch.randn(n_captions, dim, generator=draw, dtype=torch.float64)
    n = min(n_images, n_captions)
    captions[:n] += images[:n]
    return images.to(dtype).requires_grad_(), captions.to(dtype).requires_grad_()


def some_groups(n, seed=0):
    return torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed))


def loss_of(mode, images, captions, **settings):
    if mode == "nce":
        return info_nce(images, captions, temperature=0.5, **settings)
    return ranking_loss(images, captions, mode=mode, margin=MARGIN, k=3 if mode == "topk" else None, **settings)


def looped(mode, images, captions, **settings):
    """The same loss by the reference, on numpy arrays."""
    settings = {name: np.asarray(value) if name == "groups" else value for name, value in settings.items()}
    if mode == "nce":
        return reference.info_nce(images, captions, temperature=0.5, **settings)
    return reference.ranking_loss(images, captions, mode=mode, margin=MARGIN, k=3, **settings)


def naive(mode, images, captions, similarity="cosine", groups=None):
    """The same loss in torch, with the whole matrix of similarities."""
    if similarity == "cosine":
        images, captions = (torch.nn.functional.normalize(x, dim=1) for x in (images, captions))
    if similarity == "order":
        scores = -(captions - images[:, None]).clamp(min=0).square().sum(2)
    else:
        scores = images @ captions.T
    groups = torch.arange(len(images)) if groups is None else groups
    same, pair = groups[:, None] == groups, torch.eye(len(images), dtype=torch.bool)
    total = 0
    for matrix in (scores, scores.T):
        paired = matrix.diagonal()
        if mode == "nce":
            logits = (matrix / 0.5).masked_fill(same & ~pair, -torch.inf)
            total = total + (logits.logsumexp(1) - paired / 0.5).sum()
            continue
        negatives = matrix.masked_fill(same, -torch.inf)
        if mode == "semihard":
            negatives = negatives.masked_fill(negatives >= paired[:, None], -torch.inf)
        hinges = (negatives + (MARGIN - paired)[:, None]).clamp(min=0)
        total = total + hinges.topk({"sum": len(images), "topk": min(3, len(images))}.get(mode, 1), 1).values.sum()
    return total


def slopes(f, *points, h=1e-6):
    """Central differences of f with respect to every number of every array."""
    found = [np.zeros_like(x) for x in points]
    for x, slope in zip(points, found, strict=True):
        for place in np.ndindex(x.shape):
            middle = x[place]
            x[place] = middle + h
            above = f(*points)
            x[place] = middle - h
            slope[place] = (above - f(*points)) / (2 * h)
            x[place] = middle
    return found


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradient_match_the_reference(mode, similarity, shape, grouped):
    direction, offset, n, m = SHAPES[shape]
    images, captions = rows(n, m)
    settings = {"similarity": similarity, "direction": direction, "offset": offset}
    if grouped:
        settings["groups"] = some_groups(max(n, m))
    points = images.detach().clone().numpy(), captions.detach().clone().numpy()
    slow = looped(mode, *points, **settings)
    slope = slopes(lambda i, c: looped(mode, i, c, **settings), *points)
    assert slow > 0.1
    for tile in (1, 4, 512):
        fast = loss_of(mode, images, captions, tile=tile, **settings)
        assert_allclose(fast.item(), slow, rtol=1e-12)
        for found, expected in zip(torch.autograd.grad(fast, (images, captions)), slope, strict=True):
            assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("mode", MODES)
def test_results_without_kernels_are_equal(mode, similarity, shape, monkeypatch):
    """The path that tensors on a GPU take: torch's operations alone."""
    direction, offset, n, m = SHAPES[shape]
    images, captions = rows(n, m)
    settings = {"similarity": similarity, "direction": direction, "offset": offset, "groups": some_groups(max(n, m))}
    loss = loss_of(mode, images, captions, tile=3, **settings)
    expected = torch.autograd.grad(loss, (images, captions))
    with monkeypatch.context() as patch:
        for module in (ranking, tiles):
            patch.setattr(module, "has_kernels", lambda rows: False)
        patch.setattr(tiles, "DIFFERENCES", 20)  # two columns per chunk
        again = loss_of(mode, images, captions, tile=3, **settings)
        found = torch.autograd.grad(again, (images, captions))
    assert_allclose(again.item(), loss.item(), rtol=1e-12)
    for other, gradient in zip(found, expected, strict=True):
        assert_allclose(other, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode, similarity, grouped):
    images, captions = rows(6, 6, 4)
    groups = some_groups(6) if grouped else None
    assert torch.autograd.gradcheck(
        lambda i, c: loss_of(mode, i, c, similarity=similarity, groups=groups, tile=4), (images, captions)
    )


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_same_as_whole_matrices_in_torch(mode, similarity, dtype, close):
    images, captions = ((x.detach() / 33**0.5).requires_grad_() for x in rows(70, 70, 33, dtype))
    groups = torch.arange(70) // 3
    fast = loss_of(mode, images, captions, similarity=similarity, groups=groups, tile=32)
    slow = naive(mode, images, captions, similarity, groups)
    assert fast.dtype == dtype
    assert_allclose(fast.item(), slow.item(), rtol=close)
    gradients = torch.autograd.grad(fast, (images, captions))
    for found, expected in zip(gradients, torch.autograd.grad(slow, (images, captions)), strict=True):
        assert_allclose(found, expected, rtol=close, atol=close * expected.abs().max().item())


def test_a_learned_temperature_gets_its_gradient():
    images, captions = rows(6, 6, 4)
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def loss(i, c, t):
        return info_nce(i, c, temperature=t, groups=torch.tensor([0, 0, 1, 2, 3, 3]), tile=4)

    assert torch.autograd.gradcheck(loss, (images, captions, temperature))
    assert torch.autograd.gradcheck(lambda t: loss(images.detach(), captions.detach(), t), (temperature,))


@pytest.mark.parametrize("mode", MODES)
def test_data_parallel_parts_add_up_to_the_whole(mode):
    """Three processes that gather each other's rows: losses and gradients are summed."""
    images, captions = rows(12, 12)
    groups = torch.arange(12) // 2
    whole = loss_of(mode, images, captions, groups=groups)
    parts = 0
    for first in (0, 4, 8):
        own = slice(first, first + 4)
        common = {"groups": groups, "offset": first, "tile": 3}
        parts += loss_of(mode, images[own], captions, direction="images", **common)
        parts += loss_of(mode, images, captions[own], direction="captions", **common)
    assert_allclose(parts.item(), whole.item(), rtol=1e-12)
    expected = torch.autograd.grad(whole, (images, captions))
    for found, wanted in zip(torch.autograd.grad(parts, (images, captions)), expected, strict=True):
        assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "order"])
@pytest.mark.parametrize("mode", MODES)
def test_backward_works_in_every_way_autograd_calls_it(mode, similarity):
    images, captions = rows(7, 7)
    expected = torch.autograd.grad(loss_of(mode, images, captions, similarity=similarity), (images, captions))

    def check(found, wanted, factor=1.0):
        assert_allclose(found, factor * wanted, rtol=1e-12, atol=1e-13)

    # scaled from above, twice through one loss, and added up in .grad
    loss = loss_of(mode, images, captions, similarity=similarity)
    (3 * loss).backward(retain_graph=True)
    (2 * loss).backward()
    check(images.grad, expected[0], 5)
    check(captions.grad, expected[1], 5)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()

    # one side frozen, or both
    check(torch.autograd.grad(loss_of(mode, images, captions.detach(), similarity=similarity), images)[0], expected[0])
    check(
        torch.autograd.grad(loss_of(mode, images.detach(), captions, similarity=similarity), captions)[0], expected[1]
    )
    assert not loss_of(mode, images.detach(), captions.detach(), similarity=similarity).requires_grad
    with torch.no_grad():
        assert loss_of(mode, images, captions, similarity=similarity).item() == loss.item()

    # the same rows on both sides, and rows that are not contiguous
    wide = torch.randn(5, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).T
    wide = wide[::2].detach().requires_grad_()
    twice = torch.autograd.grad(loss_of(mode, wide, wide.flip(0), similarity=similarity), wide)[0]
    dense = wide.detach().contiguous().requires_grad_()
    check(twice, torch.autograd.grad(naive(mode, dense, dense.flip(0), similarity), dense)[0])

    # inputs changed in between
    changed = [x.detach().clone().requires_grad_() for x in (images, captions)]
    loss = loss_of(mode, changed[0] * 1, changed[1], similarity=similarity)
    with torch.no_grad():
        changed[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()

    # the gradient of the gradient
    loss = loss_of(mode, images, captions, similarity=similarity)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, images, create_graph=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(mode, dtype):
    images, captions = rows(20, 20, 16, dtype)
    loss = loss_of(mode, images, captions, tile=8)
    found = torch.autograd.grad(loss, (images, captions))
    wide = [x.detach().float().requires_grad_() for x in (images, captions)]
    expected = torch.autograd.grad(loss_of(mode, *wide), wide)
    assert loss.dtype == torch.float32
    assert_allclose(loss.item(), loss_of(mode, *wide).item(), rtol=1e-6)
    for half, full in zip(found, expected, strict=True):
        assert half.dtype == dtype
        assert_allclose(half.float(), full, rtol=0.01, atol=0.01 * full.abs().max().item())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss_of(mode, *wide)
        again = torch.autograd.grad(inside, wide)
    assert inside.item() == loss_of(mode, *wide).item()
    for a, b in zip(again, expected, strict=True):
        assert torch.equal(a, b)


def test_of_equally_hard_negatives_the_first_counts():
    images = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    # Image 0 scores its own caption 0.5 and all others equally; the gradient shows which one was taken.
    for mode, others, tile in product(("max", "semihard"), (0.4, 0.5), (1, 2, 3, 512)):
        captions = torch.tensor([[0.5, 0.0], [others, 1.0], [others, -1.0], [others, 0.0]]).requires_grad_()
        loss = ranking_loss(images, captions, mode=mode, similarity="dot", margin=0.2, direction="images", tile=tile)
        loss.backward()
        beside = 0.0 if mode == "semihard" and others == 0.5 else 1.0  # a score equal to the pair's is not below it
        assert captions.grad[:, 0].tolist() == [-beside, beside, 0.0, 0.0]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("mode", MODES)
def test_without_negatives_there_is_no_loss(mode, similarity):
    for n, groups in [(1, None), (1, torch.tensor([5])), (6, torch.zeros(6, dtype=torch.int32))]:
        images, captions = rows(n, n)
        loss = loss_of(mode, images, captions, similarity=similarity, groups=groups, tile=4)
        assert abs(loss.item()) < 1e-12
        for gradient in torch.autograd.grad(loss, (images, captions)):
            assert gradient.abs().max() < 1e-12


def test_topk_with_more_than_all_negatives_takes_them_all():
    images, captions = rows(6, 6)
    groups = torch.tensor([0, 0, 1, 2, 3, 4])
    for tile in (2, 512):
        many = ranking_loss(images, captions, mode="topk", k=50, groups=groups, tile=tile)
        every = ranking_loss(images, captions, mode="sum", groups=groups)
        assert_allclose(many.item(), every.item(), rtol=1e-12)
        gradients = torch.autograd.grad(every, (images, captions))
        for found, wanted in zip(torch.autograd.grad(many, (images, captions)), gradients, strict=True):
            assert_allclose(found, wanted, atol=1e-12)


def test_a_row_of_zeros_has_cosine_0_and_no_gradient():
    images, captions = rows(4, 4)
    with torch.no_grad():
        images[2] = 0
    loss = ranking_loss(images, captions, margin=MARGIN)
    points = images.detach().numpy(), captions.detach().numpy()
    assert_allclose(loss.item(), looped("sum", *points, similarity="cosine"), rtol=1e-12)
    loss.backward()
    assert (images.grad[2] == 0).all()
    assert images.grad.isfinite().all()
    assert captions.grad.isfinite().all()


def test_numbers_that_are_not_finite_are_errors():
    for value, similarity in product((float("nan"), float("inf"), 1e200), SIMILARITIES):
        images, captions = rows(5, 5)
        with torch.no_grad():
            captions[3, 2] = value
        for loss in (lambda **kw: ranking_loss(images, captions, **kw), lambda **kw: info_nce(images, captions, **kw)):  # noqa: B023
            with pytest.raises(ValueError, match="captions: row 3 has a NaN, an infinity, or numbers too large"):
                loss(similarity=similarity)


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"mode": "hardest"}, ValueError, "mode: expected one of sum, max, semihard, topk, got 'hardest'"),
        ({"similarity": "l2"}, ValueError, "similarity: expected one of cosine, dot, order, got 'l2'"),
        ({"margin": -0.1}, ValueError, "margin: expected a finite number of 0 or more"),
        ({"margin": float("nan")}, ValueError, "margin: expected a finite number of 0 or more"),
        ({"mode": "topk"}, ValueError, "k: expected a number with"),
        ({"k": 3}, ValueError, "k: expected a number with"),
        ({"mode": "topk", "k": 0}, ValueError, "k: expected an integer of 1 or more, got 0"),
        ({"tile": 0}, ValueError, "tile: expected an integer of 1 or more, got 0"),
        ({"direction": "up"}, ValueError, "direction: expected one of both, images, captions"),
        ({"offset": 1}, ValueError, "expected equal numbers of images and captions and offset=0"),
        (
            {"images": torch.ones(4, 5)},
            ValueError,
            "equal numbers of images and captions and offset=0, got 4, 6",
        ),
        ({"direction": "captions", "images": torch.ones(4, 5)}, ValueError, "offset: none is valid for"),
        ({"direction": "images", "images": torch.ones(4, 5), "offset": 3}, ValueError, r"integer in 0\.\.2, got 3"),
        ({"images": torch.ones(6, 4)}, ValueError, "images have 4 columns, captions 5"),
        ({"images": torch.ones(6)}, ValueError, r"images: expected a matrix \(rows, dim\).*got \(6,\)"),
        ({"captions": torch.ones(0, 5)}, ValueError, r"captions: expected a matrix .* got \(0, 5\)"),
        (
            {"images": torch.ones(6, 5, dtype=torch.int64)},
            TypeError,
            "images: .* floating-point .* got torch.int64",
        ),
        ({"images": np.ones((6, 5))}, TypeError, "images: expected a floating-point torch tensor, got ndarray"),
        ({"captions": torch.ones(6, 5, device="meta")}, ValueError, "images are on cpu, captions on meta"),
        ({"groups": torch.ones(6)}, TypeError, "groups: expected a torch tensor of integers, got torch.float32"),
        ({"groups": [0] * 6}, TypeError, "groups: expected a torch tensor of integers, got list"),
        ({"groups": torch.arange(5)}, ValueError, r"groups: expected 6 integers.*got shape \(5,\)"),
    ],
)
def test_invalid_arguments_are_errors(changed, error, told):
    arguments = {"images": torch.ones(6, 5), "captions": torch.ones(6, 5), **changed}
    with pytest.raises(error, match=told):
        ranking_loss(arguments.pop("images"), arguments.pop("captions"), **arguments)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), torch.ones(2)])
def test_a_temperature_is_one_positive_number(temperature):
    with pytest.raises(ValueError, match="temperature: expected one positive number"):
        info_nce(torch.ones(2, 3), torch.ones(2, 3), temperature=temperature)


class Largest(TorchDispatchMode):
    """Records the size in bytes of the largest tensor that torch makes."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        for x in torch.utils._pytree.tree_leaves(made):
            if isinstance(x, torch.Tensor) and x.layout == torch.strided:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("mode", MODES)
def test_no_tensor_is_larger_than_a_tile_or_a_gradient(mode, similarity):
    images, captions = rows(600, 600, 16, torch.float32)
    with Largest() as largest:
        loss_of(mode, images, captions, similarity=similarity, groups=torch.arange(600) // 2, tile=64).backward()
    # 600 rows of 16 numbers; entries of a sparse gradient, two int64 each; the whole matrix has 600 * 600 * 4 bytes
    assert 64 * 64 * 4 <= largest.bytes <= 600 * 4 * 3 * 2 * 2 * 8
    assert largest.bytes < 600 * 600


PEAK = """
import sys, torch
from embfast.multimodal.ranking import info_nce, ranking_loss

def memory(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10

def run(n, mode, similarity):
    rows = [torch.nn.functional.normalize(torch.randn(n, 64), dim=1).requires_grad_() for _ in range(2)]
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = memory("VmRSS")
    if mode == "nce":
        loss = info_nce(*rows, similarity=similarity)
    else:
        loss = ranking_loss(*rows, mode=mode, similarity=similarity, k=2 if mode == "topk" else None)
    loss.backward()
    return memory("VmHWM") - before

for setting in sys.argv[1:]:
    run(64, *setting.split("-"))  # warm-up: libraries and allocations that happen once
    print(setting, run(4096, *setting.split("-")))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_far_below_the_matrix_of_similarities():
    settings = ["sum-cosine", "max-cosine", "topk-cosine", "nce-cosine", "sum-order"]
    environment = {**os.environ, "PYTHONPATH": str(Path(embfast.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *settings], env=environment, capture_output=True, text=True, check=True
    )
    peaks = {name: int(amount) for name, amount in map(str.split, done.stdout.splitlines())}
    matrix = 4096 * 4096 * 4
    assert list(peaks) == settings
    for name, amount in peaks.items():
        assert amount < matrix / 2, (name, amount, matrix)


def test_numpy_integers_are_accepted():
    a, b = torch.rand(6, 4), torch.rand(6, 4)
    assert ranking_loss(a, b, tile=np.int64(2)) == pytest.approx(float(ranking_loss(a, b, tile=2)))
    offset = {"direction": "images", "offset": 1}
    plain_offset = float(ranking_loss(a[:3], b, **offset))
    assert float(ranking_loss(a[:3], b, direction="images", offset=np.int64(1))) == plain_offset
