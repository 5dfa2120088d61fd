"""Weight tables: initial values, growth with the vocabulary, and means of rows."""

from collections.abc import Sequence

import numpy as np

from embfast import kernels
from embfast.text.corpus import Corpus

NODE_REACH = 4.0  # of the first weights of nodes: from word2vec.c's 0.5, nodes seen some hundred times learn late
_CELLS = 1 << 18  # numbers per step of the numpy loops over tables: 1 MB


def initial_weights(table: np.ndarray, dim: int, seed: int, first: int = 0, reach: float = 0.5) -> None:
    """Fills a padded table in place with initial input weights, uniform in (-reach, reach) / dim (word2vec.c: 0.5).

    Row i becomes row first + i of the model. It depends only on seed, dim and that number, so a vocabulary can grow.
    """
    width = table.shape[1]
    philox = np.random.Philox(key=seed)
    philox.advance(first * width // 8)  # one step of Philox-4x64 makes 8 float32
    generator = np.random.Generator(philox)
    step = max(1, _CELLS // width)
    for lo in range(0, len(table), step):
        rows = table[lo : lo + step]
        generator.random(dtype=np.float32, out=rows)
        rows -= np.float32(0.5)
        rows *= np.float32(2 * reach)
        rows /= np.float32(dim)
        rows[:, dim:] = 0


def grown_vocabulary(
    words: list[str], counts: np.ndarray, more: Sequence[str], more_counts: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Merges words into a vocabulary: all words, their counts, and the row of each old word, then of each new one.

    If there are new words, all are sorted by count; otherwise the order stays.
    """
    index = {word: i for i, word in enumerate(words)}
    place = np.array([index.setdefault(word, len(index)) for word in more], np.int64)
    total = np.append(counts, np.zeros(len(index) - len(words), np.int64))
    total[place] += more_counts
    if len(index) == len(words):
        return words, total, np.arange(len(words))
    order, known = np.argsort(-total, kind="stable"), list(index)
    row = np.empty(len(order), np.int64)
    row[order] = np.arange(len(order))
    return [known[i] for i in order], total[order], row


def for_kernels(table: np.ndarray) -> np.ndarray:
    """The table itself, or an aligned, writable copy if pickle or copy made it otherwise."""
    if table.ctypes.data % 64 == 0 and table.flags.c_contiguous and table.flags.writeable:
        return table
    copied = kernels.weight_table(len(table), table.shape[1])
    copied[:] = table
    return copied


def document_means(matrix: np.ndarray, words: list[str], corpus: Corpus) -> np.ndarray:
    """Mean vector of each document, float32 (len(corpus), dim); zeros where no word is known.

    words: the words that the rows of matrix belong to.

    Raises:
        TypeError: corpus is not a Corpus.
    """
    if not isinstance(corpus, Corpus):
        raise TypeError(f"expected a Corpus, got {type(corpus).__name__}; see Corpus.from_sentences")
    index = {word: i for i, word in enumerate(words)}
    rows = np.array([index.get(word, -1) for word in corpus.words], np.int64)
    sums = np.zeros((len(corpus), matrix.shape[1]), np.float32)
    known = np.zeros(len(corpus), np.int64)
    step = max(1, 4 * _CELLS // matrix.shape[1])
    for lo in range(0, corpus.n_tokens, step):
        row = rows[corpus.ids[lo : lo + step]]
        place = np.flatnonzero(row >= 0)
        if not len(place):
            continue
        document = np.searchsorted(corpus.offsets, lo + place, "right") - 1
        starts = np.flatnonzero(np.diff(document, prepend=-1))
        sums[document[starts]] += np.add.reduceat(matrix[row[place]], starts, axis=0)
        known[document[starts]] += np.diff(starts, append=len(place))
    sums /= np.maximum(known, 1)[:, None].astype(np.float32)
    return sums
