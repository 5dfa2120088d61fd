"""Scores of word vectors on analogies and similarity, of node vectors on labels and missing edges, of retrieval.

Sources: compute-accuracy (Mikolov et al. 2013) and gensim; DeepWalk (Perozzi et al. 2014) and node2vec (Grover and
Leskovec 2016); recall at 1, 5, 10 and median rank as in Kiros et al. 2014.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embfast.errors import FormatError
from embfast.vectors.vectors import Vectors

Question = tuple[str, str, str, str]

_CELLS = 1 << 22  # cosines held at once: 16 MB
_TOGETHER = 256  # questions answered by one pass over a block


@dataclass(frozen=True)
class Section:
    """Questions of one kind: how many were asked, answered rightly, and left out for an unknown word."""

    name: str
    correct: int
    total: int
    skipped: int

    @property
    def accuracy(self) -> float:
        """correct / total; NaN when no question was asked."""
        return self.correct / self.total if self.total else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: accuracy is None when no question was asked."""
        return {**asdict(self), "accuracy": self.accuracy if self.total else None}

    def __str__(self) -> str:
        share = f"{100 * self.accuracy:6.2f} %" if self.total else "     - %"
        return f"{share}  ({self.correct} / {self.total}, {self.skipped} skipped)  {self.name}"


@dataclass(frozen=True)
class Analogies:
    """The answers to a set of analogy questions, section by section."""

    sections: tuple[Section, ...]

    def _sum(self, name: str, sections: Iterable[Section]) -> Section:
        sections = list(sections)
        return Section(name, *(sum(getattr(s, field) for s in sections) for field in ("correct", "total", "skipped")))

    @property
    def total(self) -> Section:
        """All sections together."""
        return self._sum("total", self.sections)

    @property
    def semantic(self) -> Section:
        """The sections whose name does not begin with "gram": in questions-words.txt the first five."""
        return self._sum("semantic", (s for s in self.sections if not s.name.startswith("gram")))

    @property
    def syntactic(self) -> Section:
        """The sections whose name begins with "gram", as nine do in questions-words.txt."""
        return self._sum("syntactic", (s for s in self.sections if s.name.startswith("gram")))

    @property
    def accuracy(self) -> float:
        """Of all questions asked; NaN when none was."""
        return self.total.accuracy

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        totals = {name: getattr(self, name).as_dict() for name in ("total", "semantic", "syntactic")}
        return {"sections": [section.as_dict() for section in self.sections], **totals}

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.sections, self.semantic, self.syntactic, self.total)))


@dataclass(frozen=True)
class Similarity:
    """Agreement with human judgements: correlations of cosines and judgements over `pairs` word pairs.

    spearman and pearson are NaN for fewer than two pairs, or when all judgements or all cosines are equal. `unknown`
    pairs had a word that the vectors lack.
    """

    spearman: float
    pearson: float
    pairs: int
    unknown: int
    listed: int

    @property
    def oov(self) -> float:
        """The share of the listed pairs that had an unknown word, 0..1."""
        return self.unknown / self.listed if self.listed else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a correlation that is not defined is None."""
        numbers = {name: None if np.isnan(value) else value for name, value in asdict(self).items()}
        return {**numbers, "oov": self.oov}

    def __str__(self) -> str:
        return (
            f"spearman {self.spearman:.4f}  pearson {self.pearson:.4f}  ({self.pairs} pairs; "
            f"{self.unknown} of {self.listed} with an unknown word)"
        )


def analogies(
    vectors: Vectors,
    questions: str | os.PathLike[str] | Mapping[str, Iterable[Question]],
    *,
    restrict: int | None = 30_000,
    fold_case: bool = True,
    count_unknown: bool = False,
    method: str = "add",
) -> Analogies:
    """Asks "a is to b as c is to ?" and counts how often the best of all other keys is the expected one.

    Settings:
        questions: a file like questions-words.txt (": section" lines, then four words a line), or
            {section: [(a, b, c, expected), ...]}.
        restrict: use the first `restrict` keys only, for questions and answers alike; None or 0 for all.
            compute-accuracy is mostly run with 30000, gensim's default is 300000.
        fold_case: compare words in upper case; of keys that fold together the first counts.
        count_unknown: count a question with an unknown word as answered wrongly (gensim's dummy4unknown); else skip it.
        method: "add" (3CosAdd) or "mul" (3CosMul).

    The question's three words, in any case when fold_case, are no answers. Where keys differ by case alone this is
    gensim's rule; compute-accuracy rules out only the first of them. All else equals both.

    The cosines of all rows with each distinct question word are computed once, a block of rows at a time, and a
    question adds up three of them: 19,544 questions on 905 words cost 905 scalar products per row. Working memory is
    about 64 MB, whatever the number of rows.

    >>> rows = np.array([[1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]], dtype=np.float32)
    >>> royal = Vectors(["man", "woman", "king", "queen"], rows)
    >>> print(analogies(royal, {"family": [("man", "woman", "king", "queen")]}).total)
    100.00 %  (1 / 1, 0 skipped)  total

    Raises:
        FormatError: a line that is neither a section nor four words, or a question before the first section.
    Source: Mikolov et al. 2013, arXiv:1301.3781; Levy & Goldberg 2014, https://aclanthology.org/W14-1618.
    """
    if method not in ("add", "mul"):
        raise ValueError(f'method must be "add" or "mul", got {method!r}')
    sections = questions.items() if isinstance(questions, Mapping) else _read_questions(questions).items()
    stop = _first(vectors, restrict)
    fold = str.upper if fold_case else str
    rows_of: dict[str, list[int]] = {}  # folded key -> its rows, the first counts
    for row, key in enumerate(vectors.keys[:stop]):
        rows_of.setdefault(fold(key), []).append(row)

    asked, section_of, skipped = [], [], []
    for number, (_, group) in enumerate(sections):
        skipped.append(0)
        for question in group:
            if len(question) != 4:
                raise ValueError(f"expected questions of four words, got {question!r}")
            folded = [fold(word) for word in question]
            if all(word in rows_of for word in folded):
                asked.append(folded)
                section_of.append(number)
            else:
                skipped[number] += 1
    words = sorted({word for question in asked for word in question[:3]}, key=lambda word: rows_of[word][0])
    place = {word: i for i, word in enumerate(words)}
    terms = np.array([[place[word] for word in question[:3]] for question in asked], dtype=np.int64).reshape(-1, 3)
    answers = _answer(vectors, stop, terms, [rows_of[word] for word in words], method)
    right = np.array([row in rows_of[q[3]] for row, q in zip(answers.tolist(), asked, strict=True)], dtype=bool)

    correct = np.bincount(np.array(section_of, dtype=np.int64)[right], minlength=len(skipped))
    total = np.bincount(np.array(section_of, dtype=np.int64), minlength=len(skipped))
    return Analogies(
        tuple(
            Section(name, int(correct[i]), int(total[i]) + (skipped[i] if count_unknown else 0), skipped[i])
            for i, (name, _) in enumerate(sections)
        )
    )


def _answer(vectors: Vectors, stop: int, terms: np.ndarray, rows_of: list[list[int]], method: str) -> np.ndarray:
    """int64 (q,): the best of the first `stop` rows for each question; -1 for none.

    terms (q, 3) are the question's words a, b, c, by place in rows_of, which lists the rows that spell each word.
    """
    answers = np.full(len(terms), -1, dtype=np.int64)
    if not len(terms):
        return answers
    best = np.full(len(terms), -np.inf, dtype=np.float32)
    firsts = np.array([rows[0] for rows in rows_of])
    rows = vectors.matrix[firsts].astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    with np.errstate(invalid="ignore"):
        units = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths != 0).astype(np.float32)

    order = np.lexsort((terms[:, 2], terms[:, 1], terms[:, 0]))
    terms = terms[order]
    cuts = np.flatnonzero((terms[1:, :2] != terms[:-1, :2]).any(axis=1)) + 1
    cuts = np.unique(np.concatenate([cuts, np.arange(0, len(terms), _TOGETHER), [len(terms)]]))
    spelled = [(row, place) for place, rows in enumerate(rows_of) for row in rows]
    spelled_rows, spelled_places = (np.array(column) for column in zip(*spelled, strict=True))

    step = max(_CELLS // len(units), 256)
    for lo in range(0, stop, step):
        hi = min(lo + step, stop)
        table = vectors.cosines(units, lo, hi)
        if method == "mul":
            table = (1 + table) / 2
        bad = ~np.isfinite(vectors.norms[lo:hi])
        table[:, bad] = 0
        here = (spelled_rows >= lo) & (spelled_rows < hi)
        own: dict[int, list[int]] = {}
        for place, row in zip(spelled_places[here].tolist(), spelled_rows[here].tolist(), strict=True):
            own.setdefault(place, []).append(row - lo)
        for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            a, b, _ = terms[begin].tolist()
            c = terms[begin:end, 2]
            scores = table[c]
            if method == "add":
                pair = table[b] - table[a]
                scores += pair
            else:
                pair = table[b] / (table[a] + np.float32(1e-6))
                scores *= pair
            scores[:, bad] = -np.inf
            scores[:, own.get(a, [])] = -np.inf
            scores[:, own.get(b, [])] = -np.inf
            for i, place in enumerate(c.tolist()):
                if place in own:
                    scores[i, own[place]] = -np.inf
            column = scores.argmax(axis=1)
            value = scores[np.arange(len(c)), column]
            better = value > best[begin:end]
            best[begin:end][better] = value[better]
            answers[order[begin:end][better]] = column[better] + lo
    return answers


def _read_questions(path: str | os.PathLike[str]) -> dict[str, list[Question]]:
    sections: dict[str, list[Question]] = {}
    group = None
    for number, line in _lines(path):
        if line.startswith(":"):
            group = sections.setdefault(line[1:].strip(), [])
            continue
        words = line.split()
        if group is None:
            raise FormatError(
                f'{os.fspath(path)}:{number}: expected ": section" before the first question, got {line!r}'
            )
        if len(words) != 4:
            raise FormatError(f'{os.fspath(path)}:{number}: expected four words or ": section", got {line!r}')
        group.append((words[0], words[1], words[2], words[3]))
    return sections


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank, stripped."""
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise FormatError(
                    f"{os.fspath(path)}:{number}: expected UTF-8, got {raw!r} ({error.reason})"
                ) from error
            if line:
                yield number, line


def similarity(
    vectors: Vectors,
    pairs: str | os.PathLike[str] | Iterable[tuple[str, str, float]],
    *,
    restrict: int | None = None,
    delimiter: str | None = None,
    fold_case: bool = True,
    count_unknown: bool = False,
) -> Similarity:
    """Correlates the cosines of word pairs with human judgements, such as those of WordSim353, SimLex-999 and MEN.

    Settings:
        pairs: a file with two words and a number a line, no header ("#" begins a comment line), or (word, word, number)
            triples.
        restrict: use the first `restrict` keys only; None or 0 for all.
        delimiter: what parts the fields; any white space when None.
        fold_case: compare words in upper case; of keys that fold together the first counts.
        count_unknown: give a pair with an unknown word cosine 0 (gensim's dummy4unknown); else leave it out.

    >>> vectors = Vectors(["a", "b", "c"], np.array([[1, 0], [1, 1], [0, 1]], dtype=np.float32))
    >>> similarity(vectors, [("a", "b", 9.0), ("a", "c", 1.0), ("a", "?", 5.0)]).spearman
    1.0

    Raises:
        FormatError: a line that is not two words and a number.
    """
    listed = list(_read_pairs(pairs, delimiter)) if isinstance(pairs, (str, os.PathLike)) else list(pairs)
    fold = str.upper if fold_case else str
    first: dict[str, str] = {}
    for key in vectors.keys[: _first(vectors, restrict)]:
        first.setdefault(fold(key), key)
    cosines, judgements, unknown = [], [], 0
    for a, b, judgement in listed:
        key_a, key_b = first.get(fold(a)), first.get(fold(b))
        if key_a is None or key_b is None:
            unknown += 1
            if not count_unknown:
                continue
        cosines.append(0.0 if key_a is None or key_b is None else vectors.similarity(key_a, key_b))
        judgements.append(float(judgement))
        if not np.isfinite(judgements[-1]):
            raise ValueError(f"expected judgements that are finite, got {judgement!r} of {a!r} and {b!r}")
    x, y = np.array(cosines), np.array(judgements)
    if not np.isfinite(x).all():  # of rows that are not: they have no rank either
        return Similarity(float("nan"), float("nan"), len(x), unknown, len(listed))
    return Similarity(_pearson(_ranks(x), _ranks(y)), _pearson(x, y), len(x), unknown, len(listed))


def _read_pairs(path: str | os.PathLike[str], delimiter: str | None) -> Iterator[tuple[str, str, float]]:
    for number, line in _lines(path):
        if line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split(delimiter)]
        try:
            a, b, written = fields
            judgement = float(written)
            if not np.isfinite(judgement):
                raise ValueError
        except ValueError:
            raise FormatError(f"{os.fspath(path)}:{number}: expected two words and a number, got {line!r}") from None
        yield a, b, judgement


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1..n; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _first(vectors: Vectors, restrict: int | None) -> int:
    """How many of the first keys count."""
    if (restrict or 0) < 0:
        raise ValueError(f"restrict must be 0 or more, got {restrict}")
    return min(restrict or len(vectors), len(vectors))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    lengths = np.sqrt((x @ x) * (y @ y))
    return float(np.clip((x @ y) / lengths, -1, 1)) if lengths > 0 else float("nan")


# ---- nodes --------------------------------------------------------------------------------------------------------


# ---- retrieval between images and captions ------------------------------------------------------------------------
