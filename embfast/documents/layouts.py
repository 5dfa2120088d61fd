"""Tables of PV-DM and of PV-DBOW: their shapes, initial values, and growth."""

import math
from typing import NamedTuple

import numpy as np

from embfast import kernels
from embfast.training.sampling import NegativeSharing
from embfast.training.tables import initial_weights

Tables = dict[str, np.ndarray]


class Layout(NamedTuple):
    """One of the two models that Doc2Vec may train, as its settings describe it."""

    name: str  # prefix of its tables: "dm" or "dbow"
    cbow: bool
    words: bool  # the words of the window are trained
    concat: bool
    tag_weight: int
    seed: int
    sharing: NegativeSharing
    dim: int
    pieces: int  # rows concatenated in a hidden row
    negatives: bool
    hs: bool

    def shapes(self, n_words: int, n_tags: int) -> dict[str, tuple[int, int]]:
        """Rows and padded columns of the tables."""
        dim = kernels.padded(self.dim)
        shapes = {"w_docs": (n_tags, dim)}
        if self.words:
            shapes["w_in"] = (n_words + self.concat, dim)
        if self.negatives:
            shapes["w_out"] = (n_words, dim * self.pieces)
        if self.hs:
            shapes["w_nodes"] = (n_words - 1, dim * self.pieces)
        return shapes

    def first_tables(self, n_words: int, n_tags: int) -> Tables:
        """Tables of an untrained model, by prefixed name."""
        tables = {
            f"{self.name}_{name}": kernels.weight_table(n, columns)
            for name, (n, columns) in self.shapes(n_words, n_tags).items()
        }
        if self.words:
            initial_weights(tables[f"{self.name}_w_in"][:n_words], self.dim, self.seed)
        self._fill_tags(tables[f"{self.name}_w_docs"], 0)
        return tables

    def with_words(self, tables: Tables, row: np.ndarray, n_old: int) -> Tables:
        """Tables for a larger vocabulary: known word i moves to row[i]; new words reset the node weights to zero."""
        grown = {}
        for name, (n, columns) in self.shapes(len(row), 0).items():
            if name == "w_docs":
                continue
            table, old = kernels.weight_table(n, columns), tables[f"{self.name}_{name}"]
            if name != "w_nodes":
                table[row[:n_old]] = old[:n_old]
                table[len(row) :] = old[n_old:]
            if name == "w_in":
                fresh = kernels.weight_table(len(row) - n_old, self.dim)
                initial_weights(fresh, self.dim, self.seed, first=n_old)
                table[row[n_old:]] = fresh
            grown[f"{self.name}_{name}"] = table
        return grown

    def with_tags(self, tables: Tables, n_tags: int) -> Tables:
        """The rows of tags, with initial rows for new tags after the known ones."""
        old, table = tables[f"{self.name}_w_docs"], kernels.weight_table(n_tags, self.dim)
        table[: len(old)] = old
        self._fill_tags(table[len(old) :], len(old))
        return {f"{self.name}_w_docs": table}

    def _fill_tags(self, table: np.ndarray, first: int) -> None:
        """Fills the rows of tags first, first + 1, ... uniform in (-0.5, 0.5) / sqrt(dim), or / dim for PV-DM.

        Outputs start at zero and move by the rows, so with rows as small as those of words both stand still for long.
        In PV-DM, tags larger than words would take over the words' part. Held-out IMDB reviews (PV-DBOW, dim=100, 20
        epochs, three folds, inference as it is now): 88.78 % instead of 88.58 %.
        """
        reach = 0.5 if self.cbow else 0.5 * math.sqrt(self.dim)
        initial_weights(table, self.dim, (self.seed + 2**63) % 2**64, first, reach)  # not the seed of the words' rows
