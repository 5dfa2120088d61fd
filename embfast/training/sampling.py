"""Negative sampling and subsampling: noise weights, keep thresholds, pools of negatives, and how batches share them."""

from typing import NamedTuple

import numpy as np

from embfast import kernels
from embfast.training.blocks import CHAPTER


class NegativePool:
    """Negatives drawn in advance, int32: one pool per chapter and epoch, independent of the number of threads.

    Reading negatives in order costs the kernels a tenth of drawing each from an alias table, whose cells are scattered
    over the cache. A pool holds 2^16 to 2^21 draws (at most 8 MB), about as many as the chapter needs. A chapter that
    needs more reads some draws again, next to other words, because each block starts at a random place of the pool.

    weights: float64 (words,), the noise distribution. at_once: negatives that a batch reads in one piece. needed:
    negatives that a chapter reads.
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
    """How many centers form a batch, and how many negatives they share, each with weight `scale`."""

    shared: bool
    centers: int
    drawn: int
    scale: float


def negative_sharing(
    cbow: bool, hs: bool, negatives: int, negatives_shared: bool, window: int, nodes: bool = False
) -> NegativeSharing:
    """Decides how many neighbouring centers share how many negatives.

    Sharing saves arithmetic as long as enough negatives are drawn per center: skip-gram needs 2.5 (with 2, SimLex falls
    by a point; random walks are less sensitive), CBOW 3 (with 2.5, the analogies fall). A negative weighs
    negatives / drawn, so the objective is still that of `negatives` samples. With hierarchical softmax every center has
    its own path, so batches have one center.

    A batch of skip-gram moves its output rows once, by the sum over all its pairs. In wide windows that step becomes
    too long: above 15 tokens a batch has one center, and above 50 every pair has its own negatives, because the loss
    diverges near 100 (4 M tokens of Wikipedia, dim=100, one seed: analogies 5.1 % with two centers and 5.7 % with one
    at window 20).
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
    """Keep thresholds, uint32 (words,): a token is kept if its 32-bit draw is at most this. None keeps all tokens.

    word2vec.c keeps a word of relative frequency f with probability (sqrt(f / sample) + 1) * sample / f, which is at
    least 1 for rare words.
    """
    if sample == 0:
        return None
    share = np.maximum(counts, 1) / counts.sum()
    kept = np.minimum((np.sqrt(share / sample) + 1) * sample / share, 1.0)
    return np.clip(np.round(kept * 2.0**32) - 1, 0, 2**32 - 1).astype(np.uint32)


def noise_weights(counts: np.ndarray, exponent: float) -> np.ndarray:
    """Noise distribution, float64 (words,): count ** exponent, divided by the largest; words with count 0 get 0."""
    logs = exponent * np.log(np.maximum(counts, 1))
    return np.where(counts > 0, np.exp(logs - logs[counts > 0].max()), 0.0)
