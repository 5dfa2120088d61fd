"""Scores of word vectors: analogies and word similarity.

Sources: compute-accuracy (Mikolov et al. 2013) and gensim.
"""

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embfast.errors import FormatError
from embfast.vectors.vectors import Vectors

Question = tuple[str, str, str, str]

_COSINES_PER_CHUNK = 1 << 22  # 16 MB
_QUESTIONS_PER_PASS = 256  # answered together in a chunk of rows


@dataclass(frozen=True)
class Section:
    """Questions of one kind: the number asked, answered correctly, and skipped because of an unknown word."""

    name: str
    correct: int
    total: int
    skipped: int

    @property
    def accuracy(self) -> float:
        """correct / total; NaN if no question was asked."""
        return self.correct / self.total if self.total else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """A dict for JSON; accuracy is None if no question was asked."""
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
        """The sections whose name does not begin with "gram": the first five in questions-words.txt."""
        return self._sum("semantic", (s for s in self.sections if not s.name.startswith("gram")))

    @property
    def syntactic(self) -> Section:
        """The sections whose name begins with "gram": nine in questions-words.txt."""
        return self._sum("syntactic", (s for s in self.sections if s.name.startswith("gram")))

    @property
    def accuracy(self) -> float:
        """Accuracy over all questions asked; NaN if none was."""
        return self.total.accuracy

    def as_dict(self) -> dict[str, Any]:
        """A dict for JSON."""
        totals = {name: getattr(self, name).as_dict() for name in ("total", "semantic", "syntactic")}
        return {"sections": [section.as_dict() for section in self.sections], **totals}

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.sections, self.semantic, self.syntactic, self.total)))


@dataclass(frozen=True)
class Similarity:
    """Correlation of cosines with human judgements over `pairs` word pairs.

    spearman and pearson are NaN for fewer than two pairs, or if all judgements or all cosines are equal. `unknown`
    of the `listed` pairs have a word without a vector.
    """

    spearman: float
    pearson: float
    pairs: int
    unknown: int
    listed: int

    @property
    def oov(self) -> float:
        """Ratio of the listed pairs that have an unknown word, 0..1."""
        return self.unknown / self.listed if self.listed else 0.0

    def as_dict(self) -> dict[str, Any]:
        """A dict for JSON; an undefined correlation is None."""
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
        questions: File like questions-words.txt (lines ": section", then four words per line), or
            {section: [(a, b, c, expected), ...]}.
        restrict: Number of leading keys to use, for questions and answers. None or 0 uses all. compute-accuracy is
            usually run with 30000; gensim's default is 300000.
        fold_case: Compare words in upper case; among keys that become equal the first counts.
        count_unknown: Count a question with an unknown word as wrong (gensim's dummy4unknown) instead of skipping it.
        method: "add" (3CosAdd) or "mul" (3CosMul).

    The question's own three words are excluded as answers, in any case if fold_case is set. For keys that differ only
    by case this is gensim's rule; compute-accuracy excludes only the first of them. Everything else equals both.

    The cosines of all rows with each distinct question word are computed once, a chunk of rows at a time, and each
    question adds three of them: 19,544 questions on 905 words cost 905 dot products per row. Working memory is about
    64 MB for any number of rows.

    >>> rows = np.array([[1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]], dtype=np.float32)
    >>> royal = Vectors(["man", "woman", "king", "queen"], rows)
    >>> print(analogies(royal, {"family": [("man", "woman", "king", "queen")]}).total)
    100.00 %  (1 / 1, 0 skipped)  total

    Raises:
        FormatError: a line is neither a section nor four words, or a question precedes the first section.
    Source: Mikolov et al. 2013, arXiv:1301.3781; Levy & Goldberg 2014, https://aclanthology.org/W14-1618.
    """
    if method not in ("add", "mul"):
        raise ValueError(f'method must be "add" or "mul", got {method!r}')
    sections = questions if isinstance(questions, Mapping) else _read_questions(questions)
    stop = _first(vectors, restrict)
    fold = str.upper if fold_case else str
    rows_of: dict[str, list[int]] = {}  # folded key -> its rows; the first one counts
    for row, key in enumerate(vectors.keys[:stop]):
        rows_of.setdefault(fold(key), []).append(row)
    asked, section_of, skipped = _known_questions(sections, fold, rows_of)
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
            for i, name in enumerate(sections)
        )
    )


def _known_questions(
    sections: Mapping[str, Iterable[Question]], fold: Callable[[str], str], known: Container[str]
) -> tuple[list[list[str]], list[int], list[int]]:
    """Folded questions whose words are all known, the section of each, and each section's number of others."""
    asked, section_of, skipped = [], [], []
    for number, group in enumerate(sections.values()):
        skipped.append(0)
        for question in group:
            if len(question) != 4:
                raise ValueError(f"expected questions with four words, got {question!r}")
            folded = [fold(word) for word in question]
            if all(word in known for word in folded):
                asked.append(folded)
                section_of.append(number)
            else:
                skipped[number] += 1
    return asked, section_of, skipped


def _answer(vectors: Vectors, stop: int, terms: np.ndarray, rows_of: list[list[int]], method: str) -> np.ndarray:
    """int64 (q,): the best of the first `stop` rows for each question, or -1.

    terms (q, 3): each question's words a, b, c as indices into rows_of, which lists the rows of each word.
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
    cuts = np.unique(np.concatenate([cuts, np.arange(0, len(terms), _QUESTIONS_PER_PASS), [len(terms)]]))
    spelled = [(row, place) for place, rows in enumerate(rows_of) for row in rows]
    spelled_rows, spelled_places = (np.array(column) for column in zip(*spelled, strict=True))

    step = max(_COSINES_PER_CHUNK // len(units), 256)
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
    """Number and stripped text of each line that is not blank."""
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
    """Correlates the cosines of word pairs with human judgements, such as WordSim353, SimLex-999 and MEN.

    Settings:
        pairs: File with two words and a number per line, without header ("#" begins a comment line), or
            (word, word, number) triples.
        restrict: Number of leading keys to use. None or 0 uses all.
        delimiter: Separator of the fields. None: any white space.
        fold_case: Compare words in upper case; among keys that become equal the first counts.
        count_unknown: Give a pair with an unknown word cosine 0 (gensim's dummy4unknown) instead of skipping it.

    >>> vectors = Vectors(["a", "b", "c"], np.array([[1, 0], [1, 1], [0, 1]], dtype=np.float32))
    >>> similarity(vectors, [("a", "b", 9.0), ("a", "c", 1.0), ("a", "?", 5.0)]).spearman
    1.0

    Raises:
        FormatError: a line is not two words and a number.
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
            raise ValueError(f"expected finite judgements, got {judgement!r} for {a!r} and {b!r}")
    x, y = np.array(cosines), np.array(judgements)
    if not np.isfinite(x).all():  # rows with non-finite values have no rank either
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
    """Ranks 1..n; equal values get the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _first(vectors: Vectors, restrict: int | None) -> int:
    """Number of leading keys to use."""
    if (restrict or 0) < 0:
        raise ValueError(f"restrict must be 0 or more, got {restrict}")
    return min(restrict or len(vectors), len(vectors))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    lengths = np.sqrt((x @ x) * (y @ y))
    return float(np.clip((x @ y) / lengths, -1, 1)) if lengths > 0 else float("nan")
