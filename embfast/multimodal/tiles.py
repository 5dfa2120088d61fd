"""Tiles of the matrix of similarities between images and captions, and their gradients.

The matrix is never in memory: a tile of it is computed, used, and replaced by the next one. Products are torch's;
order similarity has kernels on the CPU (csrc/ranking/ranking.h).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from embfast import kernels

SIMILARITIES = ("cosine", "dot", "order")
DIRECTIONS = ("both", "images", "captions")

DIFFERENCES = 1 << 22  # per chunk of columns that order similarity computes without a kernel

_INF = float("inf")
_CHUNK = 512  # pairs, rows or entries

# ---- pairs and tiles ----------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """Which inputs need a gradient."""

    images: bool
    captions: bool
    temperature: bool


class Tile(NamedTuple):
    """Rows of both sides: those of a tile of the matrix, or those of all pairs."""

    image: slice
    caption: slice


@dataclass(frozen=True)
class TiledBatch:
    """The pairs and the negatives of a batch.

    Image i has number first_image + i, caption j has number first_caption + j; a pair has equal numbers.
    """

    n_images: int
    n_captions: int
    first_image: int
    first_caption: int
    groups: Tensor | None  # by number
    similarity: str
    direction: str
    tile: int

    @property
    def pairs(self) -> Tile:
        """The images and the captions whose counterpart is in the batch, in order."""
        n = min(self.n_images, self.n_captions)
        return Tile(slice(self.first_caption, self.first_caption + n), slice(self.first_image, self.first_image + n))

    @property
    def axes(self) -> tuple[int, ...]:
        """The directions that the loss sums over: 0 for images, 1 for captions."""
        return {"both": (0, 1), "images": (0,), "captions": (1,)}[self.direction]

    def tiles(self) -> Iterator[Tile]:
        """All tiles of the matrix, row by row."""
        for i in range(0, self.n_images, self.tile):
            for j in range(0, self.n_captions, self.tile):
                yield Tile(slice(i, min(i + self.tile, self.n_images)), slice(j, min(j + self.tile, self.n_captions)))

    def exclude(self, scores: Tensor, tile: Tile, paired: Tensor | None = None) -> None:
        """Sets the scores of pairs, and of images and captions in one group, to -inf.

        With `paired`, one number per pair in order, the scores of pairs are set to these instead.
        """
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


def checked_batch(
    images: Tensor,
    captions: Tensor,
    similarity: str,
    groups: Tensor | None,
    direction: str,
    offset: int,
    tile: int,
) -> TiledBatch:
    """The batch that the arguments of a loss describe; ValueError or TypeError unless they are valid."""
    _check_rows(images, captions)
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity: expected one of {', '.join(SIMILARITIES)}, got {similarity!r}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction: expected one of {', '.join(DIRECTIONS)}, got {direction!r}")
    if not isinstance(tile, Integral) or tile < 1:
        raise ValueError(f"tile: expected an integer of 1 or more, got {tile!r}")
    n, m = len(images), len(captions)
    if direction == "both" and (n != m or offset):
        raise ValueError(
            f"expected equal numbers of images and captions and offset=0, got {n}, {m} and offset={offset}. "
            'If one side has more rows, sum over the other: direction="images" or "captions".'
        )
    few, many = (m, n) if direction == "captions" else (n, m)
    if not isinstance(offset, Integral) or not 0 <= offset <= many - few:
        raise ValueError(
            f'offset: none is valid for direction="{direction}", {n} images and {m} captions, got {offset!r}'
            if few > many
            else f"offset: expected an integer in 0..{many - few}, got {offset!r}"
        )
    if groups is not None:
        _check_groups(groups, many)
        groups = groups.to(images.device)
    return TiledBatch(
        n_images=n,
        n_captions=m,
        first_image=offset if direction == "images" else 0,
        first_caption=offset if direction == "captions" else 0,
        groups=groups,
        similarity=similarity,
        direction=direction,
        tile=tile,
    )


def _check_rows(images: Tensor, captions: Tensor) -> None:
    for name, rows in (("images", images), ("captions", captions)):
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"{name}: expected a floating-point torch tensor, got {kind}")
        if rows.dim() != 2 or 0 in rows.shape:
            raise ValueError(f"{name}: expected a matrix (rows, dim), neither of them 0, got {tuple(rows.shape)}")
    if images.shape[1] != captions.shape[1]:
        raise ValueError(f"images have {images.shape[1]} columns, captions {captions.shape[1]}: expected equal numbers")
    if images.device != captions.device:
        raise ValueError(f"images are on {images.device}, captions on {captions.device}: expected one device")


def _check_groups(groups: Tensor, n: int) -> None:
    if not isinstance(groups, Tensor) or groups.is_floating_point() or groups.is_complex():
        kind = groups.dtype if isinstance(groups, Tensor) else type(groups).__name__
        raise TypeError(f"groups: expected a torch tensor of integers, got {kind}")
    if groups.shape != (n,):
        raise ValueError(f"groups: expected {n} integers, one for each pair, got shape {tuple(groups.shape)}")


# ---- similarities -------------------------------------------------------------------------------------------------


class Side:
    """The rows of one side as the similarity uses them: divided by their norms for cosine."""

    def __init__(self, rows: Tensor, scale: Tensor | None) -> None:
        self.rows, self.scale = rows, scale

    @classmethod
    def checked(cls, rows: Tensor, name: str, unit: bool) -> "Side":
        """A side of finite rows; ValueError names the first row that is not."""
        norms = torch.linalg.vector_norm(rows, dim=1)
        if not bool(norms.isfinite().all()):
            row = int(norms.isfinite().logical_not().nonzero()[0])
            raise ValueError(f"{name}: row {row} has a NaN, an infinity, or numbers too large to square")
        return cls(rows, torch.where(norms > torch.finfo(rows.dtype).tiny, 1 / norms, 0) if unit else None)

    def __getitem__(self, where: slice | Tensor) -> Tensor:
        return self.rows[where] if self.scale is None else self.rows[where] * self.scale[where, None]

    def finish(self, gradient: Tensor, upstream: Tensor) -> Tensor:
        """Turns the gradient by the rows that the similarity uses into upstream times that by the original rows."""
        if self.scale is not None:
            for lo in range(0, len(gradient), _CHUNK):
                part, unit = gradient[lo : lo + _CHUNK], self[lo : lo + _CHUNK]
                part.addcmul_(unit, (part * unit).sum(1, keepdim=True), value=-1)
                part.mul_(self.scale[lo : lo + _CHUNK, None])
        return gradient if has_kernels(gradient) and upstream.item() == 1 else gradient.mul_(upstream)


class Products:
    """Dot products; cosines, if the sides are divided by their norms."""

    def __init__(self, images: Side, captions: Side) -> None:
        self.images, self.captions = images, captions
        self.dtype, self.device = images.rows.dtype, images.rows.device

    def _pairs(self, pairs: Tile) -> Iterator[tuple[slice, Tile]]:
        """Chunks of the pairs: their positions among the pairs, and their rows."""
        n = pairs.image.stop - pairs.image.start
        for lo in range(0, n, _CHUNK):
            part = slice(lo, min(lo + _CHUNK, n))
            yield part, Tile(*(slice(side.start + part.start, side.start + part.stop) for side in pairs))

    def of_pairs(self, pairs: Tile) -> Tensor:
        """The similarity of each pair."""
        parts = (rows for _, rows in self._pairs(pairs))
        return torch.cat([self._beside(self.images[rows.image], self.captions[rows.caption]) for rows in parts])

    def add_pairs(self, pairs: Tile, weights: Tensor, to: "Gradients") -> None:
        """Adds the gradient of the sum of weights * similarities of the pairs."""
        for part, rows in self._pairs(pairs):
            self._add_beside(self.images[rows.image], self.captions[rows.caption], weights[part, None], to, rows)

    def _beside(self, images: Tensor, captions: Tensor) -> Tensor:
        return (images * captions).sum(1)

    def _add_beside(self, images: Tensor, captions: Tensor, weights: Tensor, to: "Gradients", rows: Tile) -> None:
        if to.images is not None:
            to.images[rows.image].addcmul_(captions, weights)
        if to.captions is not None:
            to.captions[rows.caption].addcmul_(images, weights)

    def scores(self, images: Tensor, captions: Tensor) -> Tensor:
        """The similarities of a tile."""
        return images @ captions.T

    def add_tile(self, weights: Tensor, images: Tensor, captions: Tensor, to: "Gradients", tile: Tile) -> None:
        """Adds the gradient of the sum of weights * scores over a tile."""
        if to.images is not None:
            to.images[tile.image].addmm_(weights, captions)
        if to.captions is not None:
            to.captions[tile.caption].addmm_(weights.T, images)

    def add_entries(self, image: Tensor, caption: Tensor, weights: Tensor, to: "Gradients") -> None:
        """Adds the gradient of the sum of weights * scores over single entries (image[e], caption[e])."""
        sides = (to.images, image, caption, self.captions), (to.captions, caption, image, self.images)
        for gradient, row, column, other in sides:
            if gradient is not None:
                scaled = weights if other.scale is None else weights * other.scale[column]
                place, shape = torch.stack([row, column]), (len(gradient), len(other.rows))
                gradient.addmm_(torch.sparse_coo_tensor(place, scaled, shape, check_invariants=False), other.rows)


class Order(Products):
    """Order similarity, -|max(0, caption - image)|^2."""

    def _beside(self, images: Tensor, captions: Tensor) -> Tensor:
        return (captions - images).clamp_(min=0).square_().sum(1).neg_()

    def _add_beside(self, images: Tensor, captions: Tensor, weights: Tensor, to: "Gradients", rows: Tile) -> None:
        moves = (captions - images).clamp_(min=0).mul_(2 * weights)
        if to.images is not None:
            to.images[rows.image] += moves
        if to.captions is not None:
            to.captions[rows.caption] -= moves

    def scores(self, images: Tensor, captions: Tensor) -> Tensor:
        scores = images.new_zeros(len(images), len(captions))
        if has_kernels(images):
            kernels.order_scores(_array(images), _array(captions), scores.numpy(), threads=torch.get_num_threads())
        else:
            for _, outside in self._parts(images, captions):
                scores -= outside.square_().sum(2)
        return scores

    def add_tile(self, weights: Tensor, images: Tensor, captions: Tensor, to: "Gradients", tile: Tile) -> None:
        to_images = None if to.images is None else to.images[tile.image]
        to_captions = None if to.captions is None else to.captions[tile.caption]
        if has_kernels(images):
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
        """max(0, caption - image) for all entries of a tile, in chunks of columns; for devices without a kernel."""
        step = max(1, DIFFERENCES // (len(images) * len(captions)))
        for lo in range(0, images.shape[1], step):
            columns = slice(lo, lo + step)
            yield columns, (captions[None, :, columns] - images[:, None, columns]).clamp_(min=0)

    def add_entries(self, image: Tensor, caption: Tensor, weights: Tensor, to: "Gradients") -> None:
        for lo in range(0, len(image), _CHUNK):
            row, column = image[lo : lo + _CHUNK], caption[lo : lo + _CHUNK]
            outside = (self.captions[column] - self.images[row]).clamp_(min=0)
            outside *= 2 * weights[lo : lo + _CHUNK, None]
            if to.images is not None:
                to.images.index_add_(0, row, outside)
            if to.captions is not None:
                to.captions.index_add_(0, column, outside, alpha=-1)


def has_kernels(rows: Tensor) -> bool:
    return rows.device.type == "cpu"


def _array(rows: Tensor) -> np.ndarray:
    """An array for kernels; a copy if the tensor is not contiguous."""
    return rows.contiguous().numpy()


def common_dtype(images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in the dtype of the computation: float64 if one side has it, float32 otherwise."""
    dtype = torch.promote_types(torch.promote_types(images.dtype, captions.dtype), torch.float32)
    return images.detach().to(dtype), captions.detach().to(dtype)


class Gradients:
    """The gradients of a loss, for the inputs that need one."""

    def __init__(self, of: Products, wanted: Wanted) -> None:
        self.images = of.images.rows.new_zeros(of.images.rows.shape) if wanted.images else None
        self.captions = of.captions.rows.new_zeros(of.captions.rows.shape) if wanted.captions else None
        self.temperature: Tensor | None = None
        self.wanted = any(wanted)


def sweep(batch: TiledBatch, of: Products) -> Iterator[tuple[Tile, Tensor, Tensor, Tensor]]:
    """Yields each tile with its rows and its similarities."""
    last = None
    for tile in batch.tiles():
        if tile.image != last:
            last, images = tile.image, of.images[tile.image]
        captions = of.captions[tile.caption]
        yield tile, images, captions, of.scores(images, captions)
