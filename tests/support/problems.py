"""Small training problems for kernels.train_sequences and its reference. As a script, solves all with the kernel.

EMBFAST_ISA=avx2 python tests/support/problems.py solved.npz
"""

import sys
from dataclasses import dataclass, replace
from itertools import cycle, product

import numpy as np

from embfast import kernels, reference


@dataclass(frozen=True)
class Problem:
    """Settings of a training problem, which also determine everything random in it."""

    dim: int = 8
    words: int = 12
    tokens: int = 80
    window: int = 2
    shrink: bool = True
    cbow: bool = False
    mean: bool = True
    shared: bool = True
    centers: int = 1
    drawn: int = 5
    noise: int = 997  # size of the pool of negatives: less than a problem takes, so that reading wraps around
    scale: float = 1.0
    sampling: bool = True
    hs: bool = False
    subsampled: bool = False
    score: float = 1.0  # standard deviation of the initial scores
    lr: float = 0.05
    seed: int = 1
    period: int = 0  # words repeat after this many tokens, instead of being random
    tags: int = 0  # tags per document: 0 to this many, with concat exactly this many; 0: no documents
    tag_weight: int = 1  # repetitions of each tag
    predict: bool = True  # the words of a window predict, besides the tags
    concat: bool = False

    def arguments(self, dtype=np.float32):
        """New arguments of train_sequences. Weights have this dtype, and values that float32 represents exactly."""
        rng = np.random.default_rng([self.seed, self.dim, self.words, self.tokens])
        spread = self.score**0.5 / self.dim**0.25

        def table(rows):
            weights = kernels.weight_table(rows, self.dim)
            weights[:, : self.dim] = spread * rng.standard_normal((rows, self.dim))
            return weights.astype(dtype) if dtype != np.float32 else weights

        counts = np.sort(rng.integers(1, 1000, self.words))[::-1].astype(np.int64)
        ids = rng.integers(0, self.words, self.tokens).astype(np.int32)
        if self.period:
            ids = np.arange(self.tokens, dtype=np.int32) % np.int32(self.period)
        keep = rng.integers(0, 2**32, self.words, dtype=np.uint32)
        keep[0] = 2**32 - 1
        made_by = kernels if dtype == np.float32 else reference

        def wide(rows):
            """Output rows: one part per part of a hidden row, each with its padding."""
            if not self.concat:
                return table(rows)
            return np.concatenate([table(rows) for _ in range(self.tags + 2 * self.window)], axis=1)

        documents = self.documents(rng, table) if self.tags else {}
        return documents | {
            "w_in": table(self.words + self.concat) if self.predict else None,
            "w_out": aligned(wide(self.words)) if self.sampling else None,
            "w_nodes": aligned(wide(self.words - 1)) if self.hs else None,
            "ids": ids,
            "offsets": self.offsets(),
            "blocks": self.blocks(),
            "first_block": 0,
            "last_block": len(self.blocks()) - 1,
            "keep": keep if self.subsampled else None,
            "noise": made_by.NoiseTable(counts**0.75).sample(self.noise, self.seed, 3) if self.sampling else None,
            "tree": made_by.HuffmanTree(counts) if self.hs else None,
            "window": self.window,
            "shrink": self.shrink,
            "cbow": self.cbow,
            "mean": self.mean,
            "shared": self.shared,
            "centers": self.centers,
            "drawn": self.drawn,
            "scale": self.scale,
            "seed": self.seed,
            "epoch": 3,
            "lr_first": self.lr,
            "lr_last": self.lr / 10,
            "tokens_before": self.tokens,
            "tokens_total": 3 * self.tokens,
            "dim": self.dim,
            "threads": 1,
        }

    def documents(self, rng, table):
        """Rows of tags, the tags of each document, and the settings of documents."""
        n = len(self.offsets()) - 1
        lists = [rng.permutation(2 * n)[: self.tags if self.concat else rng.integers(self.tags + 1)] for _ in range(n)]
        if self.tags == 1:
            lists = [np.array([d]) for d in range(n)]
        lists = [np.repeat(own, self.tag_weight) for own in lists]
        return {
            "w_docs": table(2 * n),
            "tag_offsets": np.cumsum([0, *map(len, lists)]).astype(np.int64),
            "tags": np.concatenate(lists).astype(np.int32),
            "words": self.predict,
            "concat": self.concat,
        }

    def offsets(self):
        """Documents: empty ones at the start, within and at the end; of one token, of two, and of half the text."""
        n = self.tokens
        return np.array([0, 0, 1, 3, 3, n // 4, 3 * n // 4, 3 * n // 4, n, n], np.int64)

    def blocks(self):
        """Blocks that cut documents, one of which is empty and one of which has a single token."""
        n = self.tokens
        return np.array([0, n // 3, n // 3, n // 3 + 1, n], np.int64)

    def solve(self, how, dtype=np.float32):
        """Trains with kernels or reference. Returns the tally and the tables, by name."""
        arguments = self.arguments(dtype)
        tally = train(how, arguments)
        tables = {name: arguments[name] for name in TABLES if arguments.get(name) is not None}
        return {"tally": np.array(tally, np.float64), **tables}

    def infer(self, how, dtype=np.float32, **changed):
        """Fits new rows to the problem's documents. Returns the tally and all tables, by name."""
        arguments = self.arguments(dtype)
        for name in ("tag_offsets", "tags", "words", "shared", "blocks", "first_block", "last_block", "epoch"):
            arguments.pop(name)
        del arguments["tokens_before"], arguments["tokens_total"]
        arguments["w_docs"] = arguments["w_docs"][: len(arguments["offsets"]) - 1]
        how_long = {"epochs": 3, "averaged": 2, "threads": 1}
        arguments |= {"tag_weight": self.tag_weight, **how_long, **changed}
        how_long = {name: arguments.pop(name) for name in how_long}
        tally = how.infer_documents(*job_and_arrays(arguments), **how_long)
        tables = {name: arguments[name] for name in TABLES if arguments[name] is not None}
        return {"tally": np.array(tally, np.float64), **tables}


def job_and_arrays(arguments):
    """Splits a dictionary into the record of settings and the arrays of a call."""
    names = kernels.SEQUENCE_JOB.names
    settings = {name: value for name, value in arguments.items() if name in names}
    return kernels.sequence_job(**settings), {name: arguments[name] for name in arguments if name not in names}


def train(how, arguments):
    """Calls train_sequences of kernels or reference."""
    arguments = dict(arguments)
    calls = {name: arguments.pop(name) for name in ("first_block", "last_block", "threads")}
    return how.train_sequences(*job_and_arrays(arguments), **calls)


TABLES = ("w_in", "w_out", "w_nodes", "w_docs")


def aligned(table):
    """A copy that meets the alignment requirements of kernels."""
    if table.dtype != np.float32:
        return table
    made = kernels.weight_table(len(table), table.shape[1])
    made[:] = table
    return made


WINDOWS = {
    "sg": {"shared": True},
    "pairs": {"shared": False},
    "cbow-mean": {"cbow": True, "mean": True},
    "cbow-sum": {"cbow": True, "mean": False},
}
DOCUMENTS = {
    "dbow": {"predict": False},
    "dbow-words": {},
    "dm-mean": {"cbow": True},
    "dm-sum": {"cbow": True, "mean": False},
    "dm-concat": {"cbow": True, "concat": True, "shrink": False},
}


class Rotation:
    """Settings that problems take in rotation."""

    def __init__(self):
        # The lengths of the cycles are coprime, so that combinations keep changing. Half of the vocabularies are large
        # enough for windows without repeated words, half so small that every negative collides with a center.
        self.drawn = cycle([(5, 1.0), (1, 5.0), (13, 5 / 13), (8, 0.625), (30, 1.0), (11, 0.5), (12, 1.0)])
        self.words = cycle([500, 2, 500, 3, 12])
        self.centers = cycle([1, 2, 4])
        self.extras = cycle(
            [
                {},
                {"subsampled": True},
                {"shrink": False},
                {"score": 4.0, "lr": 0.01},
                {"score": 16.0, "lr": 0.002},
                {"shrink": False, "subsampled": True},
                {"seed": 2**63 + 5},
                {"score": 4.0, "lr": 0.01, "shrink": False},
                {},
                {"seed": 2},
                {"seed": 3, "subsampled": True, "score": 16.0, "lr": 0.002},
            ]
        )


def word_problems(turns):
    """Problems without documents, by name: the product of dims, windows and modes, then special cases."""
    found = {}
    modes = product((1, 7, 8, 16, 100, 300), (1, 2, 5, 12), WINDOWS, ("ns", "hs", "both"))
    for dim, window, kind, output in modes:
        many, scale = (0, 1.0) if output == "hs" else next(turns.drawn)
        together = 1 if output != "ns" or kind == "pairs" else next(turns.centers)
        found[f"{kind}-{output}-dim{dim}-window{window}"] = Problem(
            dim=dim,
            words=next(turns.words),
            tokens=40 if kind == "pairs" else 80,
            window=window,
            centers=together,
            drawn=many,
            scale=scale,
            sampling=output != "hs",
            hs=output != "ns",
            **WINDOWS[kind],
            **next(turns.extras),
        )
    for (kind, how), together in product(WINDOWS.items(), (1, 2, 3, 4, 8, 16)):
        if kind == "pairs" and together > 1:
            continue
        base = Problem(dim=20, words=600, tokens=150, window=5, centers=together, shrink=False, **how)
        found[f"{kind}-fast-path-centers{together}"] = base
        found[f"{kind}-tiny-centers{together}"] = replace(base, words=2, tokens=60, drawn=30, scale=0.2, lr=0.01)
        found[f"{kind}-saturated-centers{together}"] = replace(base, score=25.0, lr=0.002, words=100)
        found[f"{kind}-no-negatives-centers{together}"] = replace(base, drawn=0)
        # The first word of a window recurs as its last, or just outside: the far edge of the search for repetitions.
        for period in (2 * base.window + together - 1, 2 * base.window + together):
            found[f"{kind}-period{period}-centers{together}"] = replace(base, period=period)
    found["window-wider-than-any-document"] = Problem(window=100, tokens=30)
    found["far-saturated"] = Problem(score=900.0, words=100, lr=1e-3)
    found["long-paths"] = Problem(hs=True, words=3000, drawn=20, tokens=60)
    return found


def document_problems(turns):
    """Problems with tags of documents, by name: the product of dims and modes, then special cases."""
    found = {}
    for (dim, kind, output), several in product(
        product((1, 7, 8, 16, 100, 300), DOCUMENTS, ("ns", "hs", "both")), (1, 3)
    ):
        many, scale = (0, 1.0) if output == "hs" else next(turns.drawn)
        name = f"{kind}-{output}-dim{dim}-tags{several}"
        found[name] = Problem(
            dim=dim,
            words=next(turns.words),
            tags=several,
            centers=next(turns.centers) if output == "ns" else 1,
            drawn=many,
            scale=scale,
            sampling=output != "hs",
            hs=output != "ns",
            **{"window": 1 if kind == "dbow" else 3, **next(turns.extras), **DOCUMENTS[kind]},
        )
    for (kind, how), together in product(DOCUMENTS.items(), (1, 4)):
        base = Problem(dim=20, words=600, tokens=150, window=5, tags=1, drawn=8, centers=together, **how)
        found[f"{kind}-fast-path-centers{together}"] = base
        found[f"{kind}-period7-centers{together}"] = replace(base, period=7)
        found[f"{kind}-saturated-centers{together}"] = replace(base, score=25.0, lr=0.002, words=100)
    for kind, together in product(("dm-mean", "dm-sum"), (1, 2)):
        heavy = Problem(dim=20, words=600, tokens=150, window=5, tags=1, drawn=8, centers=together, **DOCUMENTS[kind])
        heavy = replace(heavy, tag_weight=3)
        found[f"{kind}-weight3-centers{together}"] = heavy
        found[f"{kind}-weight3-tags3-centers{together}"] = replace(heavy, tags=3)
        found[f"{kind}-weight3-few-words-centers{together}"] = replace(heavy, words=2, tokens=60, lr=0.01)
        if together == 1:
            found[f"{kind}-weight3-hs"] = replace(heavy, hs=True)
    return found


def every_problem():
    """All problems, by name."""
    turns = Rotation()
    found = word_problems(turns) | document_problems(turns)
    # If few words get many changes in one step, long steps diverge, and amplify rounding errors.
    return {name: replace(p, lr=p.lr / 10) if p.words < 12 and p.window > 1 else p for name, p in found.items()}


def main():
    solved = {"isa": np.array(kernels.isa())}
    for name, problem in every_problem().items():
        for part, values in problem.solve(kernels).items():
            solved[f"{name}/{part}"] = values
        if problem.tags == 1:
            for part, values in problem.infer(kernels).items():
                solved[f"{name}/inferred/{part}"] = values
    np.savez(sys.argv[1], **solved)


if __name__ == "__main__":
    main()
