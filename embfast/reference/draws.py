"""Reference for counter-based draws and the alias table of words: csrc/core/random.h and csrc/core/alias.h."""

from enum import IntEnum

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Purpose(IntEnum):
    """Purpose of a stream of draws; no two purposes share a draw."""

    SUBSAMPLE = 1
    WINDOW = 2
    NEGATIVE = 3
    WEIGHTS = 4
    SHUFFLE = 5
    GROUP = 6
    ORDER = 7
    PLACE = 8
    WALK = 16


@np.errstate(over="ignore")
def mix64(z):
    """The output function of SplitMix64 (Steele, Lea, Flood 2014): a bijection on uint64, for a number or an array.

    >>> hex(mix64(GOLDEN))  # the first output of the generator with seed 0
    '0xe220a8397b1dcdaf'
    """
    z = np.asarray(z, np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Stream:
    """SplitMix64 evaluated at an index: draw i depends only on (seed, epoch, purpose, i)."""

    @np.errstate(over="ignore")
    def __init__(self, seed, epoch, purpose):
        self.key = mix64(mix64(mix64(np.uint64(seed) + GOLDEN) + np.uint64(epoch)) + np.uint64(purpose))

    @np.errstate(over="ignore")
    def __call__(self, i):
        return mix64(self.key + (np.asarray(i, np.uint64) + np.uint64(1)) * GOLDEN)


def below(draw, n):
    """An integer in 0..n-1 from the high 32 bits of a draw."""
    return ((draw >> np.uint64(32)) * np.uint64(n) >> np.uint64(32)).astype(np.int64)


class NoiseTable:
    """Alias table: draws word i with probability weights[i] / sum(weights).

    Each cell returns its own word below a 32-bit threshold and another word, its alias, otherwise.
    Source: Walker 1977; built in linear time as in Vose 1991, from the end of both lists.
    """

    def __init__(self, weights):
        n = len(weights)
        mass = weights / np.cumsum(weights)[-1] * n  # cumsum adds sequentially, sum does not
        small = [i for i in range(n) if mass[i] < 1.0]
        large = [i for i in range(n) if mass[i] >= 1.0]
        self.thresholds = np.full(n, 2**32 - 1, np.uint32)
        self.aliases = np.arange(n, dtype=np.int32)
        while small and large:
            poor, rich = small.pop(), large[-1]
            self.thresholds[poor] = int(mass[poor] * 2**32)
            self.aliases[poor] = rich
            mass[rich] -= 1.0 - mass[poor]
            if mass[rich] < 1.0:
                small.append(large.pop())

    def __len__(self):
        return len(self.thresholds)

    def sample(self, n, seed, epoch, first=0):
        """Draws first, first + 1, ... for this seed and epoch, (n,), as train_sequences expects them."""
        return alias_draw(self, Stream(seed, epoch, Purpose.NEGATIVE)(np.arange(first, first + n)))


def alias_draw(table, draw):
    """The word selected by a draw: the high half chooses the cell, the low half the word or its alias."""
    cell = below(draw, len(table.thresholds))
    low = draw & np.uint64(0xFFFFFFFF)
    return np.where(low < table.thresholds[cell], cell, table.aliases[cell])


def random_order(n, seed, epoch, purpose=Purpose.ORDER, first=0):
    """A random order of 0..n-1 by inside-out Fisher-Yates; step i uses draw first + i."""
    order = np.zeros(n, np.int64)
    for i, draw in enumerate(Stream(seed, epoch, purpose)(first + np.arange(n))):
        j = below(draw, i + 1)
        order[i] = order[j]
        order[j] = i
    return order
