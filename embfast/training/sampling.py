"""Negatives and subsampling: weights, thresholds, draws made ahead, and who shares them."""

from typing import NamedTuple

import numpy as np

from embfast import kernels
from embfast.training.blocks import CHAPTER


class NegativePool:
    """Words drawn ahead as negatives, int32: one pool for each chapter of each epoch, whatever the number of threads.

    Reading words in order costs the kernels a tenth of drawing them one by one from an alias table, which lies all over
    the cache. A pool holds 2^16 to 2^21 draws (at most 8 MB), about as many as the chapter asks for; a chapter that
    asks for more reads some of them again, beside other words: each block begins at a place of its own. at_once is what
    a batch takes in one piece, needed what a chapter takes.
    """

    def __init__(self, weights: np.ndarray, at_once: int, needed: int, seed: int) -> None:
        self._table = kernels.NoiseTable(weights)
        self._size = max(min(max(needed, 1 << 16), 1 << 21), at_once)
        self._seed, self._key = seed, (-1, -1)
        self._words = np.empty(0, np.int32)

    def __call__(self, epoch: int, block: int) -> np.ndarray:
        key = (epoch, block // CHAPTER)
        if key != self._key:
            self._words = self._table.sample(self._size, self._seed, epoch, key[1] * self._size)
            self._key = key
        return self._words


class NegativeSharing(NamedTuple):
    """How the kernel groups centers and draws negatives for them."""

    shared: bool
    centers: int
    drawn: int
    scale: float


def negative_sharing(
    cbow: bool, hs: bool, negatives: int, negatives_shared: bool, window: int, nodes: bool = False
) -> NegativeSharing:
    """How many neighbouring centers share how many drawn words; the one place that decides it.

    Sharing among centers saves arithmetic as long as enough words are drawn for each: skip-gram wants 2.5 (with 2,
    SimLex falls by a point; walks over nodes are content), CBOW 3 (with 2.5, the analogies do). A drawn word weighs
    negatives / drawn, so the objective stays that of `negatives` words. Hierarchical softmax has a path of its own for
    each center and takes them one by one.

    A batch of skip-gram moves its output rows once, by the sum over all its pairs. In wide windows that step grows too
    long: above 15 tokens a center goes alone, and above 50 each pair has its own draws, since the loss diverges near
    100 (4 M tokens of Wikipedia, dim=100, one seed: analogies 5.1 % with two centers and 5.7 % with one at 20).
    """
    shared = negatives_shared and (cbow or window <= 50)
    if not negatives:
        return NegativeSharing(shared, 1, 0, 1.0)
    centers, drawn = 1, negatives
    if shared and not hs:
        if cbow and negatives >= 5:
            centers, drawn = 2, -(-6 * negatives // 5)
        elif not cbow and negatives >= 5 and window <= 15:
            centers = 2
            drawn = -(-4 * negatives // 5) if nodes else negatives
    return NegativeSharing(shared, centers, drawn, negatives / drawn)


def keep_thresholds(counts: np.ndarray, sample: float) -> np.ndarray | None:
    """uint32 (words,): a token is kept when its 32-bit draw is at most this; None keeps all.

    word2vec.c keeps a word that is a share f of the text with probability (sqrt(f / sample) + 1) * sample / f, which is
    1 or more for rare words.
    """
    if sample == 0:
        return None
    share = np.maximum(counts, 1) / counts.sum()
    kept = np.minimum((np.sqrt(share / sample) + 1) * sample / share, 1.0)
    return np.clip(np.round(kept * 2.0**32) - 1, 0, 2**32 - 1).astype(np.uint32)


def noise_weights(counts: np.ndarray, exponent: float) -> np.ndarray:
    """float64 (words,): count ** exponent over the largest; words that do not occur are not drawn."""
    logs = exponent * np.log(np.maximum(counts, 1))
    return np.where(counts > 0, np.exp(logs - logs[counts > 0].max()), 0.0)
