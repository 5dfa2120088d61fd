"""Recall of captions by images and of images by captions."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embfast import kernels

_CELLS = 1 << 22  # similarities held at once: 16 MB
_EQUAL = 1e-6  # scores of retrieval that differ by less: an absolute difference of cosines, a relative one of others


@dataclass(frozen=True)
class Ranking:
    """How early the right answers came, over all queries; recalls and mAP are shares, 0..1.

    r1, r5, r10: queries with a right answer among the first 1, 5, 10. median, mean: of the rank of the first right
    answer, from 1. map: mean average precision over all right answers.
    """

    r1: float
    r5: float
    r10: float
    median: float
    mean: float
    map: float
    queries: int

    def __str__(self) -> str:
        return (
            f"R@1 {100 * self.r1:5.1f}  R@5 {100 * self.r5:5.1f}  R@10 {100 * self.r10:5.1f}  "
            f"median rank {self.median:g}  mean rank {self.mean:.1f}  mAP {100 * self.map:.1f}  "
            f"({self.queries} queries)"
        )


@dataclass(frozen=True)
class Retrieval:
    """Captions found for images, and images found for captions."""

    captions: Ranking
    images: Ranking

    @property
    def recall_sum(self) -> float:
        """The six recalls added up, in percent, 0..600: by this, validation chooses an epoch."""
        return 100 * sum(r for side in (self.captions, self.images) for r in (side.r1, side.r5, side.r10))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "recall_sum": self.recall_sum}

    def __str__(self) -> str:
        return f"captions of an image  {self.captions}\nimage of a caption    {self.images}"


def retrieval(
    images: np.ndarray,
    captions: np.ndarray,
    owners: np.ndarray,
    similarity: str = "cosine",
    folds: int = 1,
) -> Retrieval:
    """Ranks all captions for each image, and all images for each caption.

    Settings:
        images, captions: float (n, dim) and (m, dim), in one space.
        owners: int (m,), to which image a caption belongs; an image may have any number of captions. One without any
            is only a candidate.
        similarity: "cosine", "dot" or, for order embeddings, "order".
        folds: 5 with 5,000 images is COCO's "1k": each fifth of the images, in order, with its captions, on its own,
            and the mean of the five.

    A wrong answer that scores the same as the right one, within 1e-6 for what rounding does, comes before it, so that
    vectors that are all alike gain nothing. Works in blocks of at most 16 MB of scores, however many images and
    captions there are.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, or an owner that there is not.
    """
    images, captions, owners = np.asarray(images), np.asarray(captions), np.asarray(owners)
    if images.ndim != 2 or captions.ndim != 2 or images.shape[1] != captions.shape[1]:
        raise ValueError(f"expected two matrices of equally many columns, got {images.shape} and {captions.shape}")
    if similarity not in ("cosine", "dot", "order"):
        raise ValueError(f"similarity must be one of 'cosine', 'dot', 'order', got {similarity!r}")
    if owners.shape != (len(captions),) or owners.dtype.kind not in "iu":
        raise ValueError(f"expected whole numbers ({len(captions)},) as owners, got {owners.dtype} {owners.shape}")
    if not len(owners) or not 0 <= owners.min() <= owners.max() < len(images):
        raise ValueError(f"owners must be rows of the {len(images)} images, and at least one caption is needed")
    if isinstance(folds, bool) or not isinstance(folds, int) or not 1 <= folds <= len(images):
        raise ValueError(f"folds must be a whole number from 1 to {len(images)}, the images, got {folds!r}")
    images, captions = _comparable(images, similarity, "images"), _comparable(captions, similarity, "captions")
    results = []
    for fold in np.array_split(np.arange(len(images)), folds):
        mine = np.flatnonzero((owners >= fold[0]) & (owners <= fold[-1]))
        if not len(mine):
            raise ValueError(f"no caption belongs to the images {fold[0]} to {fold[-1]}, a fold of {folds}")
        x, y, own = images[fold[0] : fold[-1] + 1], captions[mine], owners[mine] - fold[0]
        rows = np.arange(len(x))
        results.append((_ranking(x, y, rows, own, similarity, False), _ranking(y, x, own, rows, similarity, True)))
    return Retrieval(*(_mean_ranking(side) for side in zip(*results, strict=True)))


def similarities(images: np.ndarray, captions: np.ndarray, similarity: str) -> np.ndarray:
    """float32 (images, captions): dot products, or for "order" minus the squared length of max(0, caption - image)."""
    if similarity != "order":
        return images @ captions.T
    scores = np.empty((len(images), len(captions)), np.float32)
    images, captions = (np.ascontiguousarray(rows, np.float32) for rows in (images, captions))
    kernels.order_scores(images, captions, scores, threads=kernels.cores())
    return scores


def _comparable(rows: np.ndarray, similarity: str, name: str) -> np.ndarray:
    rows = rows.astype(np.float32, copy=False)
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    if not np.isfinite(lengths).all():
        raise ValueError(f"{name}: row {int(np.flatnonzero(~np.isfinite(lengths))[0])} has a number that is not finite")
    if similarity != "cosine":
        return rows
    return rows / np.where(lengths > 0, lengths, 1)[:, None].astype(np.float32)


def _ranking(
    queries: np.ndarray, items: np.ndarray, groups: np.ndarray, item_groups: np.ndarray, similarity: str, flip: bool
) -> Ranking:
    """Ranks the items of a query's own group among all others; flip: queries are captions."""
    by_group = np.argsort(item_groups, kind="stable")
    first, last = (np.searchsorted(item_groups[by_group], groups, side) for side in ("left", "right"))
    ranks, precision = [], []
    step = max(1, _CELLS // len(items))
    for lo in range(0, len(queries), step):
        block = queries[lo : lo + step]
        scores = similarities(items, block, similarity).T if flip else similarities(block, items, similarity)
        for q in range(lo, lo + len(block)):
            own = by_group[first[q] : last[q]]
            if not len(own):
                continue
            row = scores[q - lo]
            mine = -np.sort(-row[own])
            others = row.copy()
            others[own] = -np.inf
            ahead = mine - _EQUAL * (1 if similarity == "cosine" else np.abs(mine))
            places = np.array([np.count_nonzero(others >= score) for score in ahead]) + np.arange(1, len(own) + 1)
            ranks.append(places[0])
            precision.append(np.mean(np.arange(1, len(own) + 1) / places))
    found = np.array(ranks)
    r1, r5, r10 = (float(np.mean(found <= k)) for k in (1, 5, 10))
    return Ranking(r1, r5, r10, float(np.median(found)), float(found.mean()), float(np.mean(precision)), len(found))


def _mean_ranking(folds: tuple[Ranking, ...]) -> Ranking:
    means = {
        name: float(np.mean([getattr(one, name) for one in folds]))
        for name in ("r1", "r5", "r10", "median", "mean", "map")
    }
    return Ranking(queries=sum(one.queries for one in folds), **means)
