"""Ranking losses between images and captions, in tiles: the matrix of all similarities is never in memory.

Sources: Kiros et al. 2014, arXiv:1411.2539 (sum of hinges); Faghri et al. 2018, arXiv:1707.05612 (hardest negative);
Schroff et al. 2015, arXiv:1503.03832 (semi-hard); Vendrov et al. 2016, arXiv:1511.06361 (order); van den Oord et al.
2018, arXiv:1807.03748 (InfoNCE).

S is the similarity of image i and caption j, d that of a pair. All losses are sums over the batch, not means:
divide by its size, if you like, and the gradients follow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from embfast import kernels

MODES = ("sum", "max", "semihard", "topk")
SIMILARITIES = ("cosine", "dot", "order")
DIRECTIONS = ("both", "images", "captions")

_INF = float("inf")
_TOGETHER = 512  # entries of a sparse gradient, or rows, whose vectors are gathered at once
_NUMBERS = 1 << 22  # of the differences that order similarity holds at once on a GPU


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
    """A hinge for each negative that comes within margin of the pair: [margin + S_ij - d]+, over images and captions.

    >>> images, captions = torch.eye(3), torch.eye(3)
    >>> captions[2] = torch.tensor([0.0, 0.9, 0.1])  # nearer to image 1 than to its own
    >>> round(ranking_loss(images, captions, mode="max").item(), 2)
    1.37

    Arguments:
        images, captions: floating point (n, dim) and (m, dim), on one device. Row i of one belongs to row i of the
            other. bfloat16 and float16 are computed in float32, of which a copy is made; the loss is then float32.
        mode: which negatives of a pair count. "sum": all. "max": the hardest. "topk": the k hardest. "semihard": the
            hardest of those that are less similar than the pair itself; where there is none, nothing. Of equally
            hard ones "max" and "semihard" take the first, "topk" any.
        similarity: "cosine"; "dot", for rows already normalised; or "order", -|max(0, caption - image)|^2, of rows as
            they come. Its authors take absolute values of normalised rows, and a margin of .05. A row of zeros has
            cosine 0 with all others, and no gradient.
        groups: int64 (n,), of each pair: rows of one group, say several captions of one image, are not negatives of
            each other.
        direction: "images" sums over images, each against all captions; "captions" over captions, each against all
            images; "both" adds the two up.
        offset: for "images", where there are more captions than images: image i belongs to caption offset + i. For
            "captions" the other way round. groups then has an entry for each row of the longer side. With the rows of
            the other processes gathered, the sum of both directions over all processes is the loss of the whole
            batch.
        tile: rows of either side that meet at once.

    Returns:
        A tensor without dimensions, with an exact gradient. Extra memory: the gradients themselves, and some four
        times tile * max(tile, dim) numbers. "max", "topk" and "semihard" multiply once and keep k entries a row. "sum"
        takes its gradient with the loss and multiplies three times, less where a tile has no active hinge. A second
        backward pass through the same loss costs "sum" as much as the first. There is no gradient of the gradient.

    Raises:
        ValueError: shapes that do not fit, settings that there are not, or a row with a number that is not finite.
        TypeError: not tensors of floating point, or groups that are not integers.

    On CPUs products are torch's, and order similarity, hinges and the search for the hardest are kernels, for float32
    and float64. On other devices all is made of torch's operations, tile by tile; not yet run on a GPU by us.
    """
    batch = _batch(images, captions, similarity, groups, direction, offset, tile)
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if (k is not None) != (mode == "topk"):
        raise ValueError(f'k: expected a number with mode="topk" and none otherwise, got {k!r} with mode={mode!r}')
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
    """Cross-entropy, in nats, of finding a pair among its negatives by the softmax of S / temperature.

    A sum over the batch and over both directions: CLIP's loss is this divided by 2 n. Takes a matrix product for the
    loss and three for its gradient. Arguments, memory and errors are those of ranking_loss, and

        temperature: a positive number, or a tensor without dimensions, which gets a gradient where it wants one.
    """
    batch = _batch(images, captions, similarity, groups, direction, offset, tile)
    if not isinstance(temperature, Tensor):
        temperature = torch.tensor(float(temperature), dtype=torch.float64, device=images.device)
    if temperature.dim() or not 0 < temperature.item() < _INF:
        raise ValueError(f"temperature: expected one positive number, got {temperature!r}")
    return _apply(_Softmax(batch), images, captions, temperature)


# What meets what ------------------------------------------------------------------------------------------------------


class _Wanted(NamedTuple):
    """Whose gradient."""

    images: bool
    captions: bool
    temperature: bool


class _Tile(NamedTuple):
    image: slice
    caption: slice


@dataclass(frozen=True)
class _Batch:
    """Which rows belong together: image i is number first_image + i, caption j number first_caption + j."""

    n_images: int
    n_captions: int
    first_image: int
    first_caption: int
    groups: Tensor | None  # by number
    similarity: str
    direction: str
    tile: int

    @property
    def pairs(self) -> _Tile:
        """The images and the captions that have their pair here, in order."""
        n = min(self.n_images, self.n_captions)
        return _Tile(slice(self.first_caption, self.first_caption + n), slice(self.first_image, self.first_image + n))

    @property
    def axes(self) -> tuple[int, ...]:
        """Directions that the loss sums over: 0 for images, 1 for captions."""
        return {"both": (0, 1), "images": (0,), "captions": (1,)}[self.direction]

    def tiles(self) -> Iterator[_Tile]:
        """All of the matrix, image by image and within it caption by caption."""
        for i in range(0, self.n_images, self.tile):
            for j in range(0, self.n_captions, self.tile):
                yield _Tile(slice(i, min(i + self.tile, self.n_images)), slice(j, min(j + self.tile, self.n_captions)))

    def exclude(self, scores: Tensor, tile: _Tile, paired: Tensor | None = None) -> None:
        """Fills in -inf where an image and a caption are of one group; a pair's own score, in order, if given."""
        if self.groups is not None:
            image, caption = (
                self.groups[first + side.start : first + side.stop]
                for side, first in zip(tile, (self.first_image, self.first_caption), strict=True)
            )
            scores.masked_fill_(image[:, None] == caption, -_INF)
        shift = (tile.image.start + self.first_image) - (tile.caption.start + self.first_caption)
        if -scores.shape[0] < shift < scores.shape[1]:
            diagonal = scores.diagonal(shift)
            if paired is None:
                diagonal.fill_(-_INF)
            else:
                first = tile.image.start + max(0, -shift) - self.pairs.image.start
                diagonal.copy_(paired[first : first + len(diagonal)])


def _batch(
    images: Tensor,
    captions: Tensor,
    similarity: str,
    groups: Tensor | None,
    direction: str,
    offset: int,
    tile: int,
) -> _Batch:
    for name, rows in (("images", images), ("captions", captions)):
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"{name}: expected a torch tensor of floating point, got {kind}")
        if rows.dim() != 2 or 0 in rows.shape:
            raise ValueError(f"{name}: expected a matrix (rows, dim), neither of them 0, got {tuple(rows.shape)}")
    if images.shape[1] != captions.shape[1]:
        raise ValueError(f"images have {images.shape[1]} columns, captions {captions.shape[1]}: expected as many")
    if images.device != captions.device:
        raise ValueError(f"images are on {images.device}, captions on {captions.device}: expected one device")
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity: expected one of {', '.join(SIMILARITIES)}, got {similarity!r}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction: expected one of {', '.join(DIRECTIONS)}, got {direction!r}")
    if not isinstance(tile, Integral) or tile < 1:
        raise ValueError(f"tile: expected an integer of 1 or more, got {tile!r}")
    n, m = len(images), len(captions)
    if direction == "both" and (n != m or offset):
        raise ValueError(
            f"expected as many images as captions and offset=0, got {n}, {m} and offset={offset}. "
            'For more rows on one side, sum over the other: direction="images" or "captions".'
        )
    few, many = (m, n) if direction == "captions" else (n, m)
    if not isinstance(offset, Integral) or not 0 <= offset <= many - few:
        raise ValueError(
            f'offset: with direction="{direction}", {n} images and {m} captions there is none, got {offset!r}'
            if few > many
            else f"offset: expected an integer in 0..{many - few}, got {offset!r}"
        )
    if groups is not None:
        if not isinstance(groups, Tensor) or groups.is_floating_point() or groups.is_complex():
            kind = groups.dtype if isinstance(groups, Tensor) else type(groups).__name__
            raise TypeError(f"groups: expected a torch tensor of integers, got {kind}")
        if groups.shape != (many,):
            raise ValueError(f"groups: expected {many} integers, one for each pair, got shape {tuple(groups.shape)}")
        groups = groups.to(images.device)
    return _Batch(
        n_images=n,
        n_captions=m,
        first_image=offset if direction == "images" else 0,
        first_caption=offset if direction == "captions" else 0,
        groups=groups,
        similarity=similarity,
        direction=direction,
        tile=tile,
    )


# Similarities ---------------------------------------------------------------------------------------------------------


class _Side:
    """The rows of one side as the similarity sees them, divided by their norms for cosine."""

    def __init__(self, rows: Tensor, scale: Tensor | None) -> None:
        self.rows, self.scale = rows, scale

    @classmethod
    def checked(cls, rows: Tensor, name: str, unit: bool) -> "_Side":
        """Of rows that are all finite; the others are an error."""
        norms = torch.linalg.vector_norm(rows, dim=1)
        if not bool(norms.isfinite().all()):
            row = int(norms.isfinite().logical_not().nonzero()[0])
            raise ValueError(f"{name}: row {row} has a NaN, an infinity, or numbers too large to be squared")
        return cls(rows, torch.where(norms > torch.finfo(rows.dtype).tiny, 1 / norms, 0) if unit else None)

    def __getitem__(self, where: slice | Tensor) -> Tensor:
        return self.rows[where] if self.scale is None else self.rows[where] * self.scale[where, None]

    def finish(self, gradient: Tensor, upstream: Tensor) -> Tensor:
        """The gradient for rows as the similarity sees them becomes upstream times that for the rows that came."""
        if self.scale is not None:
            for lo in range(0, len(gradient), _TOGETHER):
                part, unit = gradient[lo : lo + _TOGETHER], self[lo : lo + _TOGETHER]
                part.addcmul_(unit, (part * unit).sum(1, keepdim=True), value=-1)
                part.mul_(self.scale[lo : lo + _TOGETHER, None])
        return gradient if _has_kernels(gradient) and upstream.item() == 1 else gradient.mul_(upstream)


class _Products:
    """Dot products, or cosines."""

    def __init__(self, images: _Side, captions: _Side) -> None:
        self.images, self.captions = images, captions
        self.dtype, self.device = images.rows.dtype, images.rows.device

    def _pairs(self, pairs: _Tile) -> Iterator[tuple[slice, _Tile]]:
        """Some of the pairs at a time, by their number and by their rows."""
        n = pairs.image.stop - pairs.image.start
        for lo in range(0, n, _TOGETHER):
            part = slice(lo, min(lo + _TOGETHER, n))
            yield part, _Tile(*(slice(side.start + part.start, side.start + part.stop) for side in pairs))

    def of_pairs(self, pairs: _Tile) -> Tensor:
        """The similarity of each image with the caption beside it."""
        parts = (rows for _, rows in self._pairs(pairs))
        return torch.cat([self._beside(self.images[rows.image], self.captions[rows.caption]) for rows in parts])

    def add_pairs(self, pairs: _Tile, weights: Tensor, to: "_Gradients") -> None:
        """Adds the gradient of the sum of weights * similarities of the pairs."""
        for part, rows in self._pairs(pairs):
            self._add_beside(self.images[rows.image], self.captions[rows.caption], weights[part, None], to, rows)

    def _beside(self, images: Tensor, captions: Tensor) -> Tensor:
        return (images * captions).sum(1)

    def _add_beside(self, images: Tensor, captions: Tensor, weights: Tensor, to: "_Gradients", rows: _Tile) -> None:
        if to.images is not None:
            to.images[rows.image].addcmul_(captions, weights)
        if to.captions is not None:
            to.captions[rows.caption].addcmul_(images, weights)

    def scores(self, images: Tensor, captions: Tensor) -> Tensor:
        """A tile of similarities."""
        return images @ captions.T

    def add_tile(self, weights: Tensor, images: Tensor, captions: Tensor, to: "_Gradients", tile: _Tile) -> None:
        """Adds the gradient of the sum of weights * scores of a tile."""
        if to.images is not None:
            to.images[tile.image].addmm_(weights, captions)
        if to.captions is not None:
            to.captions[tile.caption].addmm_(weights.T, images)

    def add_entries(self, image: Tensor, caption: Tensor, weights: Tensor, to: "_Gradients") -> None:
        """Adds the gradient of the sum of weights * scores of single entries, image[e] with caption[e]."""
        sides = (to.images, image, caption, self.captions), (to.captions, caption, image, self.images)
        for gradient, row, column, other in sides:
            if gradient is not None:
                scaled = weights if other.scale is None else weights * other.scale[column]
                place, shape = torch.stack([row, column]), (len(gradient), len(other.rows))
                gradient.addmm_(torch.sparse_coo_tensor(place, scaled, shape, check_invariants=False), other.rows)


class _Order(_Products):
    """Minus the squared distance by which a caption lies outside the orthant below its image."""

    def _beside(self, images: Tensor, captions: Tensor) -> Tensor:
        return (captions - images).clamp_(min=0).square_().sum(1).neg_()

    def _add_beside(self, images: Tensor, captions: Tensor, weights: Tensor, to: "_Gradients", rows: _Tile) -> None:
        moves = (captions - images).clamp_(min=0).mul_(2 * weights)
        if to.images is not None:
            to.images[rows.image] += moves
        if to.captions is not None:
            to.captions[rows.caption] -= moves

    def scores(self, images: Tensor, captions: Tensor) -> Tensor:
        scores = images.new_zeros(len(images), len(captions))
        if _has_kernels(images):
            kernels.order_scores(_array(images), _array(captions), scores.numpy(), threads=torch.get_num_threads())
        else:
            for _, outside in self._parts(images, captions):
                scores -= outside.square_().sum(2)
        return scores

    def add_tile(self, weights: Tensor, images: Tensor, captions: Tensor, to: "_Gradients", tile: _Tile) -> None:
        to_images = None if to.images is None else to.images[tile.image]
        to_captions = None if to.captions is None else to.captions[tile.caption]
        if _has_kernels(images):
            kernels.add_order_gradients(
                *map(_array, (images, captions, weights)),
                *(None if to is None else to.numpy() for to in (to_images, to_captions)),
                threads=torch.get_num_threads(),
            )
            return
        for columns, outside in self._parts(images, captions):
            outside *= 2 * weights[:, :, None]
            if to_images is not None:
                to_images[:, columns] += outside.sum(1)
            if to_captions is not None:
                to_captions[:, columns] -= outside.sum(0)

    def _parts(self, images: Tensor, captions: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """max(0, caption - image) of all entries of a tile, some columns at a time: where there is no kernel."""
        step = max(1, _NUMBERS // (len(images) * len(captions)))
        for lo in range(0, images.shape[1], step):
            columns = slice(lo, lo + step)
            yield columns, (captions[None, :, columns] - images[:, None, columns]).clamp_(min=0)

    def add_entries(self, image: Tensor, caption: Tensor, weights: Tensor, to: "_Gradients") -> None:
        for lo in range(0, len(image), _TOGETHER):
            row, column = image[lo : lo + _TOGETHER], caption[lo : lo + _TOGETHER]
            outside = (self.captions[column] - self.images[row]).clamp_(min=0)
            outside *= 2 * weights[lo : lo + _TOGETHER, None]
            if to.images is not None:
                to.images.index_add_(0, row, outside)
            if to.captions is not None:
                to.captions.index_add_(0, column, outside, alpha=-1)


def _has_kernels(rows: Tensor) -> bool:
    return rows.device.type == "cpu"


def _array(rows: Tensor) -> np.ndarray:
    """What kernels read; a copy where rows do not lie one after the other."""
    return rows.contiguous().numpy()


def _computed(images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in the dtype that is computed in: float32, or float64 where one side is."""
    dtype = torch.promote_types(torch.promote_types(images.dtype, captions.dtype), torch.float32)
    return images.detach().to(dtype), captions.detach().to(dtype)


# Losses ---------------------------------------------------------------------------------------------------------------


class _Gradients:
    """Of the loss, for the sides that want one."""

    def __init__(self, of: _Products, wanted: _Wanted) -> None:
        self.images = of.images.rows.new_zeros(of.images.rows.shape) if wanted.images else None
        self.captions = of.captions.rows.new_zeros(of.captions.rows.shape) if wanted.captions else None
        self.temperature: Tensor | None = None
        self.wanted = any(wanted)


def _sweep(batch: _Batch, of: _Products) -> Iterator[tuple[_Tile, Tensor, Tensor, Tensor]]:
    """Each tile with its rows and its similarities."""
    last = None
    for tile in batch.tiles():
        if tile.image != last:
            last, images = tile.image, of.images[tile.image]
        captions = of.captions[tile.caption]
        yield tile, images, captions, of.scores(images, captions)


@dataclass(frozen=True)
class _Sum:
    """All hinges. The gradients are taken on the way: what remains for the backward pass is to hand them over."""

    batch: _Batch
    margin: float

    def forward(self, of: _Products, temperature: Tensor | None, wanted: _Wanted) -> tuple[Tensor, Any]:
        batch, to = self.batch, _Gradients(of, wanted)
        bounds = self.margin - of.of_pairs(batch.pairs)
        active = torch.zeros_like(bounds)
        total = torch.zeros((), dtype=torch.float64, device=of.device)
        for tile, images, captions, scores in _sweep(batch, of):
            batch.exclude(scores, tile)
            sides = {axis: (bounds[tile[axis]], torch.zeros_like(bounds[tile[axis]])) for axis in batch.axes}
            total += self._hinges(scores, sides.get(0), sides.get(1))
            for axis, (_, counted) in sides.items():
                active[tile[axis]] += counted
            # Where there are no kernels, to ask would be to wait for the device.
            if to.wanted and (not _has_kernels(scores) or any(bool(counted.any()) for _, counted in sides.values())):
                of.add_tile(scores, images, captions, to, tile)
        if to.wanted:
            of.add_pairs(batch.pairs, active.neg_(), to)
        return total, [to] if to.wanted else None

    def _hinges(self, scores: Tensor, *sides: tuple[Tensor, Tensor] | None) -> Tensor | float:
        """Their sum. Each score becomes the number of its hinges. Of a side: bounds, and active ones, to be counted."""
        if _has_kernels(scores):
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

    def backward(self, of: _Products, temperature: Tensor | None, state: Any, wanted: _Wanted) -> _Gradients:
        if not state:  # handed over before
            _, state = self.forward(of, temperature, wanted)
        return state.pop()


@dataclass(frozen=True)
class _Hardest:
    """The k hardest negatives of each row: the backward pass touches these entries alone."""

    batch: _Batch
    margin: float
    k: int
    semihard: bool

    def forward(self, of: _Products, temperature: Tensor | None, wanted: _Wanted) -> tuple[Tensor, Any]:
        batch = self.batch
        paired = of.of_pairs(batch.pairs)
        best = {axis: paired.new_full((len(paired), self.k), -_INF) for axis in batch.axes}
        found = {axis: torch.zeros_like(best[axis], dtype=torch.int64) for axis in batch.axes}
        for tile, _, _, scores in _sweep(batch, of):
            batch.exclude(scores, tile)
            for axis in batch.axes:
                rows, first = tile[axis], tile[1 - axis].start
                below = paired[rows] if self.semihard else None
                self._merge(best[axis][rows], found[axis][rows], scores, axis, below, first)
        total = torch.zeros((), dtype=torch.float64, device=of.device)
        image, caption, weights = [], [], []
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
        """Takes a tile into the best scores of its rows, or of its columns, and where they were found."""
        if self.k == 1 and _has_kernels(scores):
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

    def backward(self, of: _Products, temperature: Tensor | None, state: Any, wanted: _Wanted) -> _Gradients:
        to = _Gradients(of, wanted)
        of.add_entries(*state, to)
        return to


@dataclass(frozen=True)
class _Softmax:
    """Cross-entropy: the forward pass takes the sums of exponentials, the backward pass the similarities once more."""

    batch: _Batch

    def forward(self, of: _Products, temperature: Tensor | None, wanted: _Wanted) -> tuple[Tensor, Any]:
        batch = self.batch
        paired = of.of_pairs(batch.pairs)
        sums = {axis: torch.full_like(paired, -_INF) for axis in batch.axes}
        for tile, _, _, scores in _sweep(batch, of):
            batch.exclude(scores, tile, paired)
            scores /= temperature
            for axis in batch.axes:
                part = sums[axis][tile[axis]]
                torch.logaddexp(part, scores.logsumexp(1 - axis), out=part)
        total = sum((sums[axis] - paired / temperature).sum(dtype=torch.float64) for axis in batch.axes)
        return total, (paired, sums)

    def backward(self, of: _Products, temperature: Tensor | None, state: Any, wanted: _Wanted) -> "_Gradients":
        batch, to = self.batch, _Gradients(of, wanted)
        paired, sums = state
        slope = torch.zeros((), dtype=torch.float64, device=of.device)
        for tile, images, captions, scores in _sweep(batch, of):
            batch.exclude(scores, tile, paired)
            scores /= temperature
            shares = sum((scores - sums[axis][tile[axis]].unsqueeze(1 - axis)).exp_() for axis in batch.axes)
            if wanted.temperature:
                slope += torch.where(shares > 0, shares * scores, 0).sum(dtype=torch.float64)
            of.add_tile(shares.div_(temperature), images, captions, to, tile)
        of.add_pairs(batch.pairs, torch.full_like(paired, -len(batch.axes)).div_(temperature), to)
        slope -= len(batch.axes) * paired.sum(dtype=torch.float64) / temperature
        to.temperature = -slope / temperature if wanted.temperature else None
        return to


class _Tiled(torch.autograd.Function):
    """A loss above, as autograd sees it."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, captions: Tensor, temperature: Tensor | None, loss: Any, wanted: _Wanted
    ) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            unit = loss.batch.similarity == "cosine"
            names = zip(_computed(images, captions), ("images", "captions"), strict=True)
            sides = [_Side.checked(rows, name, unit) for rows, name in names]
            of = (_Order if loss.batch.similarity == "order" else _Products)(*sides)
            total, ctx.state = loss.forward(of, temperature, wanted)
        ctx.loss, ctx.kind, ctx.scales = loss, type(of), [side.scale for side in sides]
        ctx.save_for_backward(images, captions, temperature)
        return total.to(of.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("create_graph=True: the gradient of a ranking loss has no gradient of its own")
        images, captions, temperature = ctx.saved_tensors
        with torch.autocast(images.device.type, enabled=False):
            of = ctx.kind(*map(_Side, _computed(images, captions), ctx.scales))
            to = ctx.loss.backward(of, temperature, ctx.state, _Wanted(*ctx.needs_input_grad[:3]))
            if to.images is not None:
                to.images = of.images.finish(to.images, upstream).to(images.dtype)
            if to.captions is not None:
                to.captions = of.captions.finish(to.captions, upstream).to(captions.dtype)
            if to.temperature is not None:
                to.temperature = (to.temperature * upstream).to(temperature.dtype)
        return to.images, to.captions, to.temperature, None, None


def _apply(loss: Any, images: Tensor, captions: Tensor, temperature: Tensor | None) -> Tensor:
    wants = (torch.is_grad_enabled() and x is not None and x.requires_grad for x in (images, captions, temperature))
    return _Tiled.apply(images, captions, temperature, loss, _Wanted(*wants))
