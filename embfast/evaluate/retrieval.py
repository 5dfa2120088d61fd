"""Retrieval between images and captions: recall, median rank and mean average precision.

Source: recall at 1, 5 and 10 and median rank as in Kiros et al. 2014, arXiv:1411.2539.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embfast import kernels

_SCORES_PER_CHUNK = 1 << 22  # 16 MB
_TIE_TOLERANCE = 1e-6  # scores that differ by less are tied: an absolute difference for cosines, relative otherwise


@dataclass(frozen=True)
class Ranking:
    """Ranks of the right answers over all queries.

    r1, r5, r10: recall at 1, 5 and 10, 0..1: ratio of queries with a right answer among the first 1, 5, 10.
    median, mean: median and mean rank of the first right answer, from 1. map: mean average precision over all right
    answers, 0..1. queries: number of queries.
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
    """Rankings of captions for images, and of images for captions."""

    captions: Ranking
    images: Ranking

    @property
    def recall_sum(self) -> float:
        """Sum of the six recalls in percent, 0..600. Validation selects the epoch by it."""
        return 100 * sum(r for side in (self.captions, self.images) for r in (side.r1, side.r5, side.r10))

    def as_dict(self) -> dict[str, Any]:
        """A dict for JSON."""
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
        images, captions: Vectors in a shared space, float (n, dim) and (m, dim).
        owners: Image that each caption belongs to, int (m,). An image may have any number of captions; one without
            captions is only a candidate.
        similarity: "cosine", "dot", or "order" for order embeddings.
        folds: Number of equal parts of the images, in order, that are ranked separately with their captions and
            averaged. 5 with 5,000 images is COCO's "1k" protocol.

    Ties count against the right answer: a wrong answer with the same score (within 1e-6, for rounding) ranks before it,
    so identical vectors gain nothing. Scores are computed in chunks of at most 16 MB.

    Raises:
        ValueError: shapes do not match, a number is not finite, or an owner is not a row of images.
    """
    images, captions, owners = np.asarray(images), np.asarray(captions), np.asarray(owners)
    if images.ndim != 2 or captions.ndim != 2 or images.shape[1] != captions.shape[1]:
        raise ValueError(
            "images and captions must be matrices with the same number of columns, "
            f"got {images.shape} and {captions.shape}"
        )
    if similarity not in ("cosine", "dot", "order"):
        raise ValueError(f"similarity must be one of 'cosine', 'dot', 'order', got {similarity!r}")
    if owners.shape != (len(captions),) or owners.dtype.kind not in "iu":
        raise ValueError(f"owners: expected integers ({len(captions)},), got {owners.dtype} {owners.shape}")
    if not len(owners) or not 0 <= owners.min() <= owners.max() < len(images):
        raise ValueError(f"owners must be rows of the {len(images)} images, and at least one caption is needed")
    if isinstance(folds, bool) or not isinstance(folds, int) or not 1 <= folds <= len(images):
        raise ValueError(f"folds must be an integer from 1 to {len(images)}, the number of images, got {folds!r}")
    images, captions = _comparable(images, similarity, "images"), _comparable(captions, similarity, "captions")
    results = []
    for fold in np.array_split(np.arange(len(images)), folds):
        mine = np.flatnonzero((owners >= fold[0]) & (owners <= fold[-1]))
        if not len(mine):
            raise ValueError(f"images {fold[0]} to {fold[-1]}, one of {folds} folds, have no captions")
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
        raise ValueError(f"{name}: row {int(np.flatnonzero(~np.isfinite(lengths))[0])} has a non-finite value")
    if similarity != "cosine":
        return rows
    return rows / np.where(lengths > 0, lengths, 1)[:, None].astype(np.float32)


def _ranking(
    queries: np.ndarray, items: np.ndarray, groups: np.ndarray, item_groups: np.ndarray, similarity: str, flip: bool
) -> Ranking:
    """Ranks the items in each query's group among all others. flip: the queries are captions."""
    by_group = np.argsort(item_groups, kind="stable")
    first, last = (np.searchsorted(item_groups[by_group], groups, side) for side in ("left", "right"))
    ranks, precision = [], []
    step = max(1, _SCORES_PER_CHUNK // len(items))
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
            ahead = mine - _TIE_TOLERANCE * (1 if similarity == "cosine" else np.abs(mine))
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
