"""Phrase detection: frequent collocations become one word, "new york" -> "new_york".

Source: Mikolov et al. 2013, arXiv:1310.4546, section 4, and word2phrase.c; normalised pointwise mutual information
after Bouma 2009, "Normalized (pointwise) mutual information in collocation extraction"; connector words as in gensim.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from embfast.files.scratch import scratch_array
from embfast.text.corpus import Corpus, check_is_corpus

__all__ = ["ENGLISH_CONNECTORS", "Phrases"]

ENGLISH_CONNECTORS = frozenset(
    ("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with", "without")
)

_CHUNK_TOKENS = 1 << 21


class Phrases:
    """Joins pairs of adjacent words that occur together more often than by chance.

    >>> text = [["new", "york", "is", "a", "city"], ["a", "new", "york"], ["is", "a", "city", "new"], ["a", "is"]] * 10
    >>> corpus = Corpus.from_sentences(text)
    >>> phrases = Phrases(min_count=5, threshold=3)
    >>> phrases.fit_transform(corpus)[0]
    ['new_york', 'is', 'a', 'city']
    >>> phrases.phrases_
    {('new', 'york'): 3.5}

    One pass forms pairs. For longer phrases fit and transform the result again, usually with a lower threshold. As with
    word2phrase, start from a corpus with min_count=1 and drop the rare words at the end:
    `corpus.with_words([word for word, count in zip(corpus.words, corpus.counts) if count >= 5])`.

    Settings:
        min_count: Minimum count of a pair and of its words; also the discount in the default score.
        threshold: Pairs with a higher score are joined.
        scoring: "default", (count(ab) - min_count) * n_tokens / (count(a) * count(b)), 0 or more; or "npmi",
            log(p(ab) / (p(a) p(b))) / -log p(ab), from -1 to 1.
        delimiter: String between the words of a phrase.
        connectors: Words that may occur inside a phrase, in any number, but not at its start or end: "bank of america".
            ENGLISH_CONNECTORS are gensim's.
    Learned:
        phrases_: dict from the words of a phrase, a tuple, to its score, highest score first.

    Words are joined from left to right within a document, and a word belongs to at most one phrase. Pairs never cross
    documents; word2phrase.c also counts the last word of a line and the first of the next as a pair.

    Memory of fit: 16 bytes per distinct pair of words that both occur min_count times, briefly up to three times that.
    """

    def __init__(
        self,
        min_count: int = 5,
        threshold: float = 100.0,
        scoring: str = "default",
        delimiter: str = "_",
        connectors: Iterable[str] = frozenset(),
    ) -> None:
        self.min_count = min_count
        self.threshold = threshold
        self.scoring = scoring
        self.delimiter = delimiter
        self.connectors = connectors if isinstance(connectors, str) else frozenset(connectors)

    def fit(self, corpus: Corpus) -> Phrases:
        """Counts the pairs of the corpus and keeps those with a score above the threshold; returns self.

        Raises:
            TypeError: `corpus` is not a Corpus.
            ValueError: a setting is invalid.
        """
        self._check()
        check_is_corpus(corpus)
        links = _Links(corpus, self.connectors)
        frequent = (corpus.counts >= self.min_count) & ~links.is_connector
        keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        n_waiting = 0
        for chunk in links.chunks():
            both = np.flatnonzero(chunk.linked & frequent[chunk.words[:-1]] & frequent[chunk.words[1:]])
            new = np.sort(links.keys(chunk, both, learn=True))
            starts = np.flatnonzero(np.diff(new, prepend=-1))
            waiting.append((new[starts], np.diff(starts, append=len(new))))
            n_waiting += len(starts)
            if n_waiting > max(len(keys), 1 << 22):
                keys, counts = _merged([(keys, counts), *waiting])
                waiting, n_waiting = [], 0
        keys, counts = _merged([(keys, counts), *waiting])

        enough = counts >= self.min_count
        keys, counts = keys[enough], counts[enough]
        gap, first, last = links.parts(keys)
        score = self._score(counts, corpus.counts[first], corpus.counts[last], corpus.n_tokens)
        best = np.flatnonzero(score > self.threshold)
        best = best[np.argsort(-score[best], kind="stable")]
        between = links.gaps()
        words = corpus.words
        self.phrases_ = {
            (words[a], *(words[w] for w in between[g]), words[b]): s
            for a, g, b, s in zip(
                first[best].tolist(), gap[best].tolist(), last[best].tolist(), score[best].tolist(), strict=True
            )
        }
        return self

    def transform(self, corpus: Corpus) -> Corpus:
        """Returns the corpus with its phrases joined; it need not be the corpus that was fitted.

        The words of the result are sorted again; words that only occur in phrases are dropped.
        """
        if not hasattr(self, "phrases_"):
            raise ValueError("fit first: no phrases yet")
        check_is_corpus(corpus)
        links = _Links(corpus, self.connectors)
        words, keys, new_ids = self._joined_words(links)
        _, first, last = links.parts(keys)
        begins, ends = np.zeros((2, len(corpus.words)), bool)
        begins[first] = True
        ends[last] = True

        ids = scratch_array(corpus.n_tokens, np.int32)
        offsets = scratch_array(len(corpus.offsets), np.int64)
        offsets[0] = 0
        counts = np.zeros(len(words), np.int64)
        first_seen = np.full(len(words), corpus.n_tokens, np.int64)
        n, document = 0, 1
        for chunk in links.chunks():
            likely = np.flatnonzero(chunk.linked & begins[chunk.words[:-1]] & ends[chunk.words[1:]])
            place, found = _find(keys, links.keys(chunk, likely, learn=False))
            taken = _every_second(likely[found])
            joints = likely[found][taken]
            left, right = chunk.positions[joints], chunk.positions[joints + 1]

            n_tokens = chunk.n_tokens
            consumed = len(right) > 0 and right[-1] == n_tokens - 1
            if not (chunk.is_last or consumed):
                n_tokens -= 1  # the last word may begin a phrase with the first of the next chunk
            links.next = chunk.start + n_tokens
            text = np.array(corpus.ids[chunk.start : chunk.start + n_tokens])
            text[left] = new_ids[place[found][taken]]
            inside = np.zeros(n_tokens + 1, np.int32)
            inside[left + 1] += 1
            inside[right + 1] -= 1
            kept = np.cumsum(inside[:-1]) == 0
            before = n + np.concatenate([[0], np.cumsum(kept)])
            stop = int(np.searchsorted(corpus.offsets, chunk.start + n_tokens, "right"))
            offsets[document:stop] = before[corpus.offsets[document:stop] - chunk.start]
            document = stop

            text = text[kept]
            ids[n : n + len(text)] = text
            counts += np.bincount(text, minlength=len(words))
            unseen = np.flatnonzero(first_seen[text] == corpus.n_tokens)[::-1]
            first_seen[text[unseen]] = n + unseen  # in reverse: the first occurrence is assigned last
            n += len(text)
        offsets[document:] = n

        order = np.lexsort([first_seen, -counts])
        order = order[: np.count_nonzero(counts)]
        rank = np.zeros(len(words), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        for start in range(0, n, _CHUNK_TOKENS):
            stop = min(start + _CHUNK_TOKENS, n)
            ids[start:stop] = rank[ids[start:stop]]
        return Corpus([words[i] for i in order], counts[order], ids[:n], offsets, corpus._n_newlines)

    def _joined_words(self, links: _Links) -> tuple[list[str], np.ndarray, np.ndarray]:
        """The words of the corpus followed by the new ones, sorted keys of phrases, and the ids of their words."""
        words = list(links.corpus.words)
        index = {word: i for i, word in enumerate(words)}
        joined: list[tuple[int, int]] = []  # key, id of the joined word
        for phrase in self.phrases_:
            parts = [index.get(word, -1) for word in phrase]
            if not all(0 <= part < len(links.corpus.words) for part in parts):  # also not a word joined just now
                continue
            word = self.delimiter.join(phrase)
            if word not in index:  # it may already be in the text, or be joined from other parts, ("a_b", "c")
                index[word] = len(words)
                words.append(word)
            joined.append((links.key(parts), index[word]))
        joined.sort()
        return words, np.array([key for key, _ in joined], np.int64), np.array([i for _, i in joined], np.int32)

    def fit_transform(self, corpus: Corpus) -> Corpus:
        """Finds phrases in a corpus and joins them in the same corpus."""
        return self.fit(corpus).transform(corpus)

    def _check(self) -> None:
        if self.min_count < 1:
            raise ValueError(f"min_count must be positive, got {self.min_count}")
        if not isinstance(self.delimiter, str) or self.delimiter.split() != [self.delimiter]:
            raise ValueError(f"delimiter must be a non-empty string without white space, got {self.delimiter!r}")
        if self.scoring not in ("default", "npmi"):
            raise ValueError(f'scoring must be "default" or "npmi", got {self.scoring!r}')
        lowest, highest = (0.0, np.inf) if self.scoring == "default" else (-1.0, 1.0)
        if not lowest <= self.threshold <= highest:
            raise ValueError(f"{self.scoring} threshold must be from {lowest:g} to {highest:g}, got {self.threshold}")
        if isinstance(self.connectors, str):
            raise TypeError("connectors must be a collection of words, got one str")

    def _score(self, together: np.ndarray, first: np.ndarray, last: np.ndarray, n_tokens: int) -> np.ndarray:
        together, first, last = (counts.astype(np.float64) for counts in (together, first, last))
        if self.scoring == "default":
            return (together - self.min_count) / first / last * n_tokens
        return np.log(together / first / last * n_tokens) / -np.log(together / n_tokens)


class _Chunk:
    """Tokens [start, start + n_tokens) of a corpus: words, with connectors between them."""

    def __init__(self, start: int, ids: np.ndarray, positions: np.ndarray, linked: np.ndarray, is_last: bool) -> None:
        self.start, self.n_tokens, self.ids, self.is_last = start, len(ids), ids, is_last
        self.positions = positions  # of the words other than connectors
        self.words = ids[positions]
        self.linked = linked  # word k and word k + 1 belong to the same document


class _Links:
    """Pairs of adjacent words, ignoring connectors between them, as int64 keys (gap, first, last).

    A gap numbers a run of connectors; 0 is the empty run.
    """

    def __init__(self, corpus: Corpus, connectors: Collection[str]) -> None:
        self.corpus = corpus
        self.is_connector = np.array([word in connectors for word in corpus.words], bool)
        self.with_connectors = bool(self.is_connector.any())
        self.n_words = len(corpus.words)
        self.nodes: dict[tuple[int, int], int] = {}  # a trie of gaps: (gap, connector) -> longer gap
        self.next = 0

    def chunks(self) -> Iterator[_Chunk]:
        """Yields chunks that overlap by one word, so that every pair is in one. `next` is where the next begins."""
        corpus, n = self.corpus, self.corpus.n_tokens
        self.next = 0
        while self.next < n:
            start = self.next
            stop = min(start + _CHUNK_TOKENS, n)
            if self.with_connectors:
                while stop < n and self.is_connector[corpus.ids[stop - 1]]:
                    stop += 1
            ids = np.asarray(corpus.ids[start:stop])
            positions = np.flatnonzero(~self.is_connector[ids]) if self.with_connectors else np.arange(len(ids))
            a, b = np.searchsorted(corpus.offsets, [start + 1, stop])
            document = np.zeros(len(ids), np.int32)
            np.add.at(document, corpus.offsets[a:b] - start, 1)
            document = np.cumsum(document)[positions]
            self.next = stop if stop == n else stop - 1
            yield _Chunk(start, ids, positions, document[:-1] == document[1:], stop == n)

    def keys(self, chunk: _Chunk, links: np.ndarray, learn: bool) -> np.ndarray:
        """Keys of the links of a chunk; -1 if the connectors between the words do not occur in a known phrase."""
        gap = np.zeros(len(links), np.int64)
        if self.with_connectors:
            left = chunk.positions[links]
            length = chunk.positions[links + 1] - left - 1
            depth = 0
            while (longer := np.flatnonzero((length > depth) & (gap >= 0))).size:
                depth += 1
                steps, which = np.unique(
                    gap[longer] * self.n_words + chunk.ids[left[longer] + depth], return_inverse=True
                )
                nodes = [self._node(*divmod(int(step), self.n_words), learn) for step in steps]
                gap[longer] = np.array(nodes, np.int64)[which]
        return np.where(gap < 0, -1, (gap * self.n_words + chunk.words[links]) * self.n_words + chunk.words[links + 1])

    def key(self, phrase: list[int]) -> int:
        """The key of a phrase, given as word ids."""
        gap = 0
        for connector in phrase[1:-1]:
            gap = self._node(gap, connector, learn=True)
        return (gap * self.n_words + phrase[0]) * self.n_words + phrase[-1]

    def parts(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """gap, first and last of each key."""
        rest, last = np.divmod(keys, max(self.n_words, 1))
        return (*np.divmod(rest, max(self.n_words, 1)), last)

    def gaps(self) -> dict[int, tuple[int, ...]]:
        """The connectors of each gap."""
        runs: dict[int, tuple[int, ...]] = {0: ()}
        for (run, connector), node in self.nodes.items():  # shorter runs were inserted before longer ones
            runs[node] = (*runs[run], connector)
        return runs

    def _node(self, run: int, connector: int, learn: bool) -> int:
        if not learn:
            return self.nodes.get((run, connector), -1)
        node = self.nodes.setdefault((run, connector), len(self.nodes) + 1)
        if (node + 1) * self.n_words**2 >= 2**63:
            raise ValueError(
                f"{node:,} different runs of connectors times {self.n_words:,} words squared exceed 2**63: "
                "use fewer connectors or a higher min_count of the corpus"
            )
        return node


def _every_second(links: np.ndarray) -> np.ndarray:
    """bool: which of the rising links to join. In a run of adjacent links every second one, starting with the first."""
    starts_run = np.diff(links, prepend=-2) > 1
    run_start = np.maximum.accumulate(np.where(starts_run, np.arange(len(links)), 0))
    return (np.arange(len(links)) - run_start) % 2 == 0


def _merged(runs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct keys with the sums of their counts."""
    keys, counts = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    order = np.argsort(keys, kind="stable")  # timsort merges runs that are already sorted
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The position of each wanted key in the sorted keys, and whether it is present."""
    place = np.searchsorted(keys, wanted)
    if len(keys) == 0:
        return place, np.zeros(len(wanted), bool)
    place = np.minimum(place, len(keys) - 1)
    return place, keys[place] == wanted
