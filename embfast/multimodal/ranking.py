"""Ranking losses between images and captions, computed in tiles: the matrix of similarities is never in memory.

Sources: Kiros et al. 2014, arXiv:1411.2539 (sum of hinges); Faghri et al. 2018, arXiv:1707.05612 (hardest negative);
Schroff et al. 2015, arXiv:1503.03832 (semi-hard); Vendrov et al. 2016, arXiv:1511.06361 (order); van den Oord et al.
2018, arXiv:1807.03748 (InfoNCE).

S_ij is the similarity of image i and caption j, d that of a pair. All losses are sums over the batch, not means:
divide the loss by the batch size to scale its gradients too.
"""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from embfast import kernels
from embfast.multimodal.tiles import (
    Gradients,
    Order,
    Products,
    Side,
    TiledBatch,
    Wanted,
    checked_batch,
    common_dtype,
    has_kernels,
    sweep,
)

MODES = ("sum", "max", "semihard", "topk")

_INF = float("inf")


def ranking_loss(
    images: Tensor,
    captions: Tensor,
    *,
    mode: str = "sum",
    similarity: str = "cosine",
    margin: float = 0.2,
    k: int | None = None,
    groups: Tensor | None = None,
    direction: str = "both",
    offset: int = 0,
    tile: int = 512,
) -> Tensor:
    """Hinge loss over negatives, [margin + S_ij - d]+, summed over images and over captions.

    >>> images, captions = torch.eye(3), torch.eye(3)
    >>> captions[2] = torch.tensor([0.0, 0.9, 0.1])  # nearer to image 1 than to its own
    >>> round(ranking_loss(images, captions, mode="max").item(), 2)
    1.37

    Arguments:
        images, captions: floating-point tensors (n, dim) and (m, dim) on one device; row i of one and row i of the
            other are a pair. bfloat16 and float16 rows are copied to float32 for the computation, and the loss is then
            float32.
        mode: the negatives of a pair that count. "sum": all. "max": the hardest. "topk": the k hardest. "semihard": the
            hardest of those less similar than the pair itself, if any. Among equally hard negatives "max" and
            "semihard" take the first, "topk" any.
        similarity: "cosine"; "dot", for rows already normalised; or "order", -|max(0, caption - image)|^2, without
            normalisation. The authors of order embeddings take absolute values of normalised rows and a margin of 0.05.
            A row of zeros has cosine 0 with every other row, and no gradient.
        groups: int64 (n,), the group of each pair. Rows of one group, such as several captions of one image, are not
            negatives of each other.
        direction: "images" sums over images, each against all captions; "captions" sums over captions, each against
            all images; "both" adds the two.
        offset: with direction="images" and more captions than images, image i pairs with caption offset + i; with
            direction="captions" the reverse. groups then has an entry for each row of the longer side. With the rows of
            all processes gathered, the sum of both directions over all processes is the loss of the whole batch.
        tile: number of rows of each side in a tile.

    Returns:
        A scalar tensor with an exact gradient. Extra memory: the gradients themselves, and about four times
        tile * max(tile, dim) numbers. "max", "topk" and "semihard" take one matrix product and keep k entries per row.
        "sum" computes its gradient along with the loss and takes three products, fewer if a tile has no active hinge. A
        second backward pass through the same loss costs "sum" the same as the first pass. Second derivatives are not
        available.

    Raises:
        ValueError: shapes do not match, a setting is unknown, or a row has a number that is not finite.
        TypeError: images or captions are no floating-point tensors, or groups are not integers.

    On the CPU, matrix products are torch's, and order similarity, hinges and the search for the hardest negatives are
    kernels for float32 and float64. On other devices every tile is computed by torch's operations; this path
    has not been run on a GPU yet.
    """
    batch = checked_batch(images, captions, similarity, groups, direction, offset, tile)
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if (k is not None) != (mode == "topk"):
        raise ValueError(f'k: expected a number with mode="topk" and None otherwise, got {k!r} with mode={mode!r}')
    if k is not None and (isinstance(k, bool) or not isinstance(k, Integral) or k < 1):
        raise ValueError(f"k: expected an integer of 1 or more, got {k!r}")
    if not 0 <= margin < _INF:
        raise ValueError(f"margin: expected a finite number of 0 or more, got {margin!r}")
    loss = _Sum(batch, margin) if mode == "sum" else _Hardest(batch, margin, k or 1, mode == "semihard")
    return _apply(loss, images, captions, None)


def info_nce(
    images: Tensor,
    captions: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    similarity: str = "cosine",
    groups: Tensor | None = None,
    direction: str = "both",
    offset: int = 0,
    tile: int = 512,
) -> Tensor:
    """Cross-entropy, in nats, of a pair among its negatives under the softmax of S / temperature.

    The loss is summed over the batch and over both directions: CLIP's loss is this divided by 2 n. It takes one matrix
    product, and its gradient three. Arguments, memory and errors are those of ranking_loss, and also:

        temperature: a positive number, or a scalar tensor, which receives a gradient if it requires one.
    """
    batch = checked_batch(images, captions, similarity, groups, direction, offset, tile)
    if not isinstance(temperature, Tensor):
        temperature = torch.tensor(float(temperature), dtype=torch.float64, device=images.device)
    if temperature.dim() or not 0 < temperature.item() < _INF:
        raise ValueError(f"temperature: expected one positive number, got {temperature!r}")
    return _apply(_Softmax(batch), images, captions, temperature)


# ---- losses -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sum:
    """All hinges. The forward pass computes the gradients too; the backward pass returns them."""

    batch: TiledBatch
    margin: float

    def forward(self, of: Products, temperature: Tensor | None, wanted: Wanted) -> tuple[Tensor, Any]:
        batch, to = self.batch, Gradients(of, wanted)
        bounds = self.margin - of.of_pairs(batch.pairs)
        active = torch.zeros_like(bounds)
        total = torch.zeros((), dtype=torch.float64, device=of.device)
        for tile, images, captions, scores in sweep(batch, of):
            batch.exclude(scores, tile)
            sides = {axis: (bounds[tile[axis]], torch.zeros_like(bounds[tile[axis]])) for axis in batch.axes}
            total += self._hinges(scores, sides.get(0), sides.get(1))
            for axis, (_, counted) in sides.items():
                active[tile[axis]] += counted
            # Without kernels, the question whether a hinge is active would wait for the device.
            if to.wanted and (not has_kernels(scores) or any(bool(counted.any()) for _, counted in sides.values())):
                of.add_tile(scores, images, captions, to, tile)
        if to.wanted:
            of.add_pairs(batch.pairs, active.neg_(), to)
        return total, [to] if to.wanted else None

    def _hinges(self, scores: Tensor, *sides: tuple[Tensor, Tensor] | None) -> Tensor | float:
        """The sum of the hinges. Replaces each score by the number of its active hinges.

        sides: for images and for captions the bounds, margin - d, and the counts of active hinges, which are increased.
        """
        if has_kernels(scores):
            arrays = [None if side is None else side[what].numpy() for what in (0, 1) for side in sides]
            return kernels.hinges(scores.numpy(), *arrays)
        total, weights = 0.0, torch.zeros_like(scores)
        for axis, side in enumerate(sides):
            if side is not None:
                hinges = (scores + side[0].unsqueeze(1 - axis)).clamp_(min=0)
                total += hinges.sum(dtype=torch.float64)
                side[1].add_(hinges.sign_().sum(1 - axis))
                weights += hinges
        scores.copy_(weights)
        return total

    def backward(self, of: Products, temperature: Tensor | None, state: Any, wanted: Wanted) -> Gradients:
        if not state:  # an earlier backward pass took them
            _, state = self.forward(of, temperature, wanted)
        return state.pop()


@dataclass(frozen=True)
class _Hardest:
    """The k hardest negatives of each row. The backward pass touches only their entries."""

    batch: TiledBatch
    margin: float
    k: int
    semihard: bool

    def forward(self, of: Products, temperature: Tensor | None, wanted: Wanted) -> tuple[Tensor, Any]:
        batch = self.batch
        paired = of.of_pairs(batch.pairs)
        best = {axis: paired.new_full((len(paired), self.k), -_INF) for axis in batch.axes}
        found = {axis: torch.zeros_like(best[axis], dtype=torch.int64) for axis in batch.axes}
        for tile, _, _, scores in sweep(batch, of):
            batch.exclude(scores, tile)
            for axis in batch.axes:
                rows, first = tile[axis], tile[1 - axis].start
                below = paired[rows] if self.semihard else None
                self._merge(best[axis][rows], found[axis][rows], scores, axis, below, first)
        total = torch.zeros((), dtype=torch.float64, device=of.device)
        image: list[Tensor] = []
        caption: list[Tensor] = []
        weights: list[Tensor] = []
        for axis in batch.axes:
            hinges = (best[axis] + (self.margin - paired)[:, None]).clamp_(min=0)
            total += hinges.sum(dtype=torch.float64)
            row, place = (hinges > 0).nonzero(as_tuple=True)
            other, own = found[axis][row, place], row + batch.pairs[1 - axis].start
            image += (row, row) if axis == 0 else (other, own)
            caption += (other, own) if axis == 0 else (row, row)
            weights += paired.new_ones(len(row)), paired.new_full((len(row),), -1)
        return total, tuple(map(torch.cat, (image, caption, weights)))

    def _merge(self, best: Tensor, found: Tensor, scores: Tensor, axis: int, below: Tensor | None, first: int) -> None:
        """Updates the best scores of the rows (axis 0) or columns (axis 1) of a tile, and their places."""
        if self.k == 1 and has_kernels(scores):
            limit = None if below is None else below.numpy()
            kernels.hardest(scores.numpy(), axis, limit, first, best.view(-1).numpy(), found.view(-1).numpy())
            return
        candidates = scores if axis == 0 else scores.T
        if below is not None:
            candidates = torch.where(candidates < below[:, None], candidates, -_INF)
        if self.k == 1:
            values, places = candidates.max(1, keepdim=True)
            better = values > best
            best.copy_(torch.where(better, values, best))
            found.copy_(torch.where(better, places.add_(first), found))
            return
        values, places = candidates.topk(min(self.k, candidates.shape[1]), 1)
        values, order = torch.cat([best, values], 1).topk(self.k, 1)
        best.copy_(values)
        found.copy_(torch.cat([found, places.add_(first)], 1).gather(1, order))

    def backward(self, of: Products, temperature: Tensor | None, state: Any, wanted: Wanted) -> Gradients:
        to = Gradients(of, wanted)
        image, caption, weights = state
        of.add_entries(image, caption, weights, to)
        return to


@dataclass(frozen=True)
class _Softmax:
    """Cross-entropy. The forward pass keeps the logarithms of the softmax sums; the backward pass recomputes scores."""

    batch: TiledBatch

    def forward(self, of: Products, temperature: Tensor | None, wanted: Wanted) -> tuple[Tensor, Any]:
        batch = self.batch
        paired = of.of_pairs(batch.pairs)
        sums = {axis: torch.full_like(paired, -_INF) for axis in batch.axes}
        for tile, _, _, scores in sweep(batch, of):
            batch.exclude(scores, tile, paired)
            scores /= temperature
            for axis in batch.axes:
                part = sums[axis][tile[axis]]
                torch.logaddexp(part, scores.logsumexp(1 - axis), out=part)
        total = sum((sums[axis] - paired / temperature).sum(dtype=torch.float64) for axis in batch.axes)
        return total, (paired, sums)

    def backward(self, of: Products, temperature: Tensor | None, state: Any, wanted: Wanted) -> Gradients:
        batch, to = self.batch, Gradients(of, wanted)
        paired, sums = state
        slope = torch.zeros((), dtype=torch.float64, device=of.device)
        for tile, images, captions, scores in sweep(batch, of):
            batch.exclude(scores, tile, paired)
            scores /= temperature
            softmax = sum((scores - sums[axis][tile[axis]].unsqueeze(1 - axis)).exp_() for axis in batch.axes)
            if wanted.temperature:
                slope += torch.where(softmax > 0, softmax * scores, 0).sum(dtype=torch.float64)
            of.add_tile(softmax.div_(temperature), images, captions, to, tile)
        of.add_pairs(batch.pairs, torch.full_like(paired, -len(batch.axes)).div_(temperature), to)
        slope -= len(batch.axes) * paired.sum(dtype=torch.float64) / temperature
        to.temperature = -slope / temperature if wanted.temperature else None
        return to


class _Tiled(torch.autograd.Function):
    """Connects a loss to autograd."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, captions: Tensor, temperature: Tensor | None, loss: Any, wanted: Wanted
    ) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            unit = loss.batch.similarity == "cosine"
            names = zip(common_dtype(images, captions), ("images", "captions"), strict=True)
            sides = [Side.checked(rows, name, unit) for rows, name in names]
            of = (Order if loss.batch.similarity == "order" else Products)(*sides)
            total, ctx.state = loss.forward(of, temperature, wanted)
        ctx.loss, ctx.kind, ctx.scales = loss, type(of), [side.scale for side in sides]
        ctx.save_for_backward(images, captions, temperature)
        return total.to(of.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("create_graph=True: ranking losses have no second derivatives")
        images, captions, temperature = ctx.saved_tensors
        with torch.autocast(images.device.type, enabled=False):
            of = ctx.kind(*map(Side, common_dtype(images, captions), ctx.scales))
            to = ctx.loss.backward(of, temperature, ctx.state, Wanted(*ctx.needs_input_grad[:3]))
            if to.images is not None:
                to.images = of.images.finish(to.images, upstream).to(images.dtype)
            if to.captions is not None:
                to.captions = of.captions.finish(to.captions, upstream).to(captions.dtype)
            if to.temperature is not None:
                to.temperature = (to.temperature * upstream).to(temperature.dtype)
        return to.images, to.captions, to.temperature, None, None


def _apply(loss: Any, images: Tensor, captions: Tensor, temperature: Tensor | None) -> Tensor:
    wants = (torch.is_grad_enabled() and x is not None and x.requires_grad for x in (images, captions, temperature))
    return _Tiled.apply(images, captions, temperature, loss, Wanted(*wants))
