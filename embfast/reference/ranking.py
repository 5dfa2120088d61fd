"""Ranking losses and their kernels, one pair at a time: csrc/ranking/ranking.h, embfast/multimodal/ranking.py."""

import numpy as np


def similarity(image, caption, kind):
    """The similarity of one image and one caption."""
    if kind == "order":
        return -float(np.sum(np.maximum(0, caption - image) ** 2))
    if kind == "cosine":
        norms = np.sqrt(image @ image) * np.sqrt(caption @ caption)
        return float(image @ caption / norms) if norms else 0.0
    return float(image @ caption)


def order_scores(images, captions, scores, *, threads=1):
    """kernels.order_scores, one pair at a time. Fills scores (images, captions)."""
    for i, image in enumerate(images):
        for j, caption in enumerate(captions):
            scores[i, j] = similarity(image, caption, "order")


def add_order_gradients(images, captions, weights, to_images, to_captions, *, threads=1):
    """kernels.add_order_gradients: adds the gradient of the sum of weights * scores, except to a side that is None."""
    for i, image in enumerate(images):
        for j, caption in enumerate(captions):
            move = 2 * weights[i, j] * np.maximum(0, caption - image)
            if to_images is not None:
                to_images[i] += move
            if to_captions is not None:
                to_captions[j] -= move


def hinges(scores, row_bounds, column_bounds, row_active, column_active):
    """kernels.hinges: the sum of max(0, score + bound) over the bounds of rows and of columns; None omits a side.

    Replaces each score by the number of its positive terms, and adds these numbers up in row_active and column_active.
    """
    loss = 0.0
    for i, j in np.ndindex(scores.shape):
        score, scores[i, j] = scores[i, j], 0
        for bounds, active, k in ((row_bounds, row_active, i), (column_bounds, column_active, j)):
            if bounds is not None and score + bounds[k] > 0:
                loss += float(score + bounds[k])
                scores[i, j] += 1
                active[k] += 1
    return loss


def hardest(scores, axis, below, first, best, found):
    """kernels.hardest: updates best and found by the largest score of each row, or with axis 1 of each column.

    found is its position + first. Among equal scores the first is kept. With `below`, only scores less than below[i]
    count for row i.
    """
    for i, row in enumerate(scores.T if axis else scores):
        for j, score in enumerate(row):
            if score > best[i] and (below is None or score < below[i]):
                best[i], found[i] = score, first + j


def rankings(images, captions, kind, groups=None, direction="both", offset=0):
    """Yields for each image, then for each caption, the similarity of its pair and those of its negatives in order."""
    for side in ("images", "captions"):
        if direction not in ("both", side):
            continue
        queries, others = (images, captions) if side == "images" else (captions, images)
        for i, query in enumerate(queries):
            own = offset + i
            pairs = [(query, other) if side == "images" else (other, query) for other in others]
            scores = [similarity(image, caption, kind) for image, caption in pairs]
            negatives = [
                score
                for j, score in enumerate(scores)
                if j != own and (groups is None or groups[j] != groups[own])
            ]  # fmt: skip
            yield scores[own], negatives


def ranking_loss(images, captions, *, mode, similarity, margin, k=None, groups=None, direction="both", offset=0):
    """embfast.multimodal.ranking.ranking_loss, without gradients."""
    loss = 0.0
    for paired, negatives in rankings(images, captions, similarity, groups, direction, offset):
        hardest = sorted(negatives, reverse=True)
        if mode == "semihard":
            hardest = [score for score in hardest if score < paired]
        count = {"sum": len(hardest), "topk": k}.get(mode, 1)
        loss += sum(max(0.0, margin + score - paired) for score in hardest[:count])
    return loss


def info_nce(images, captions, *, temperature, similarity, groups=None, direction="both", offset=0):
    """embfast.multimodal.ranking.info_nce, without gradients."""
    loss = 0.0
    for paired, negatives in rankings(images, captions, similarity, groups, direction, offset):
        loss += np.logaddexp.reduce(np.array([paired, *negatives]) / temperature) - paired / temperature
    return loss
