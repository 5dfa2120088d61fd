"""Small GloVe problems for comparing kernels.train_entries with its reference.

Run as a script, it solves all of them with the kernel of one instruction set:
EMBFAST_ISA=avx2 python tests/support/entry_problems.py solved.npz
"""

import sys
from dataclasses import dataclass, replace
from itertools import cycle, product

import numpy as np

from embfast import kernels, reference

TABLES = ("w_in", "w_out", "sums_in", "sums_out")


def changed(job, **settings):
    """A copy of a job with other settings."""
    job = job.copy()
    for name, value in settings.items():
        job[name] = value
    return job


@dataclass(frozen=True)
class EntryProblem:
    """Settings of a problem; all of its random data is derived from them."""

    dim: int = 8
    words: int = 12
    n: int = 80
    tile: int = 4  # 0 for random groups
    spread: float = 1.0  # standard deviation of the dot product of two vectors
    x_max: float = 10.0
    alpha: float = 0.75
    lr: float = 0.05
    seed: int = 1
    epoch: int = 3

    def entries(self):
        """Sorted entries with values far below and far above x_max."""
        rng = np.random.default_rng([self.seed, self.dim, self.words, self.n])
        places = np.sort(rng.choice(self.words**2, min(self.n, self.words**2), replace=False))
        entries = np.empty(len(places), kernels.ENTRY)
        entries["row"], entries["column"] = places // self.words, places % self.words
        entries["value"] = self.x_max * np.exp(2 * rng.standard_normal(len(places)))
        entries["value"][::7] = self.x_max
        return entries

    def arguments(self, dtype=np.float32):
        """New arguments for train_entries with weights of this dtype, rounded to float32 for any dtype."""
        rng = np.random.default_rng([self.seed, self.dim, self.words])
        tables = {}
        for name in TABLES:
            table = kernels.weight_table(self.words, self.dim + 1)
            numbers = rng.standard_normal((self.words, self.dim + 1))
            if name.startswith("sums"):
                table[:] = 1
                numbers = 1 + numbers**2
            else:
                numbers[:, : self.dim] *= self.spread**0.5 / self.dim**0.25
            table[:, : self.dim + 1] = numbers
            tables[name] = table.astype(dtype) if dtype != np.float32 else table
        n_groups = (-(-self.words // self.tile)) ** 2 if self.tile else 5
        place = rng.permutation(self.words).astype(np.int32)
        groups, entries = reference.group_entries(
            self.entries(), place, n_rows=self.words, tile=self.tile, n_groups=n_groups, seed=self.seed
        )
        job = np.zeros((), kernels.GLOVE_JOB)
        for name in ("dim", "x_max", "alpha", "lr", "seed", "epoch"):
            job[name] = getattr(self, name)
        job["last"] = n_groups
        order = rng.permutation(n_groups).astype(np.int32)
        return {"job": job, **tables, "entries": entries, "groups": groups, "order": order, "threads": 1}

    def solve(self, how, dtype=np.float32):
        """Trains with kernels or reference. Returns the tally and the tables, by name."""
        arguments = self.arguments(dtype)
        tally = how.train_entries(**arguments)
        return {"tally": np.array(tally, np.float64), **{name: arguments[name] for name in TABLES}}


def every_problem():
    """Problems by name: dims and groupings combined with varying other settings, then special cases."""
    found = {}
    extras = cycle(
        [
            {},
            {"x_max": 100.0, "alpha": 1.0},
            {"alpha": 0.0, "seed": 2},
            {"spread": 4.0, "lr": 0.1},
            {"words": 3, "n": 9},
            {"x_max": 1e-3, "epoch": 0},
            {"seed": 2**63 + 5, "lr": 0.2, "words": 30},
        ]
    )
    for dim, tile in product((1, 7, 8, 15, 16, 31, 100, 300), (1, 4, 0)):
        found[f"dim{dim}-tile{tile}"] = EntryProblem(dim=dim, tile=tile, **next(extras))
    plain = EntryProblem(dim=20, words=40, n=500)
    found["many-in-a-tile"] = replace(plain, tile=64)
    # Gradients stay beyond 100 in many components even after the first step.
    found["clipped"] = replace(plain, spread=2e4, lr=1e-3, n=60)
    found["smallest-values"] = replace(plain, x_max=1e-30, n=60)
    found["largest-values"] = replace(plain, x_max=1e30, n=60)
    return found


def main():
    solved = {"isa": np.array(kernels.isa())}
    for name, problem in every_problem().items():
        for part, values in problem.solve(kernels).items():
            solved[f"{name}/{part}"] = values
    np.savez(sys.argv[1], **solved)


if __name__ == "__main__":
    main()
