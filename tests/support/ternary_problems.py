"""Small problems for the ternary kernels and their reference. As a script, solves all of them with the kernels:

EMBFAST_ISA=avx2 python tests/support/ternary_problems.py solved.npz
"""

import sys
from dataclasses import dataclass
from itertools import cycle, product

import numpy as np

from embfast import kernels


def moved(array, by):
    """A copy that starts `by` bytes after the start of a cache line."""
    memory = np.zeros(array.nbytes + 128, np.uint8)
    begin = -memory.ctypes.data % 64 + by
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


@dataclass(frozen=True)
class TernaryProblem:
    """Settings of a problem. They determine all random values."""

    n: int = 9
    dim: int = 100
    m: int = 5
    k: int = 4
    zeros: float = 0.2  # ratio of levels that are 0
    plus: float = 0.5  # ratio of 1 among the nonzero levels
    nan: int = -1  # a row that holds a NaN
    offset: int = 0  # bytes between the start of a cache line and the start of every array
    excluded: bool = False
    own: bool = False
    first: int = 0
    before: int = 0  # rows found by an earlier call
    threads: int = 1
    seed: int = 0

    def features(self):
        rng = np.random.default_rng([self.seed, self.n, self.dim])
        low = rng.normal(-0.3, 0.2, self.dim).astype(np.float32)
        high = np.maximum(low, rng.normal(0.2, 0.2, self.dim).astype(np.float32))
        dead = rng.random(self.dim) < 0.1
        low[dead], high[dead] = -np.inf, np.inf
        level = np.where(rng.random((self.n, self.dim)) < self.zeros, 0, np.where(
            rng.random((self.n, self.dim)) < self.plus, 1, -1))  # fmt: skip
        above = np.nextafter(high, np.float32(np.inf))
        below = np.nextafter(low, np.float32(-np.inf))
        between = np.where(rng.random((self.n, self.dim)) < 0.5, low, high)
        between[:, dead] = rng.choice([0, -1e30, np.inf, -np.inf], (self.n, dead.sum()))
        x = np.where(level == 1, above, np.where(level == -1, below, between)).astype(np.float32)
        x[:, dead] = between[:, dead]
        far = rng.random(x.shape) < 0.1
        x[far & (level == 1) & ~dead] = np.inf
        if self.nan >= 0:
            x[self.nan, rng.integers(self.dim)] = np.nan
        return x, low, high

    def solve(self, made_by):
        x, low, high = (moved(array, self.offset) for array in self.features())
        levels = moved(np.full((self.n, self.dim), 9, np.int8), self.offset)
        planes = moved(np.full_like(kernels.bit_planes(self.n, self.dim), 2**64 - 1), self.offset & ~7)
        bad = made_by.ternary_levels(x, low, high, levels), made_by.ternary_pack(x, low, high, planes)
        if self.nan >= 0:
            return {"bad": np.array(bad), "levels": levels[: self.nan], "planes": planes[: self.nan]}
        unpacked = np.full_like(levels, 9)
        made_by.ternary_unpack(planes, unpacked)
        nonzeros = np.full(self.n, -1, np.int32)
        made_by.ternary_nonzeros(planes, nonzeros)
        return {"bad": np.array(bad), "levels": levels, "planes": planes, "unpacked": unpacked, "nonzeros": nonzeros,
                **self.search(made_by, planes, nonzeros)}  # fmt: skip

    def search(self, made_by, planes, nonzeros):
        rng = np.random.default_rng(self.seed)
        queries = moved(planes[rng.integers(0, self.n, self.m)], self.offset & ~7)
        ids = np.full((self.m, self.k), -1, np.int64)
        keys = np.full((self.m, self.k), -np.inf)
        known = min(self.before, self.k)
        ids[:, :known] = rng.permutation(self.first)[:known]
        keys[:, :known] = np.sort(rng.normal(0, self.dim / 4, (self.m, known)))[:, ::-1]
        made_by.ternary_top(
            queries, planes, nonzeros,
            excluded=(rng.random(self.n) < 0.3).astype(np.uint8) if self.excluded else None,
            own=self.first + rng.integers(-1, self.n, self.m) if self.own else None,
            first=self.first, ids=ids, keys=keys, threads=self.threads,
        )  # fmt: skip
        return {"ids": ids, "keys": keys}


def every_problem():
    found = {}
    extras = cycle(
        [
            {},
            {"excluded": True, "m": 1},
            {"own": True, "k": 30, "m": 4},
            {"first": 50, "before": 3, "m": 3},
            {"offset": 8, "m": 7},
            {"excluded": True, "own": True, "first": 9, "before": 9, "k": 6, "m": 8},
            {"offset": 4, "threads": 3},
        ]
    )
    for dim, n in product((1, 7, 63, 64, 65, 128, 511, 512, 513, 1000, 4096, 4160, 5000), (1, 2, 5, 12)):
        found[f"dim{dim}-n{n}"] = TernaryProblem(dim=dim, n=n, **next(extras))
    for extra in range(3):
        found[f"ties{extra}"] = TernaryProblem(dim=3 + extra, n=200, k=17, m=9, own=extra > 0, zeros=0.4, seed=extra)
    # Byte counters overflow after 31 registers: 15,872 levels at 512 bits.
    found["all-alike"] = TernaryProblem(dim=40_000, n=6, zeros=0, plus=1)
    found["opposite"] = TernaryProblem(dim=40_000, n=6, zeros=0, plus=0.001)
    found["long"] = TernaryProblem(dim=33_000, n=9, m=6)
    found["all-zero"] = TernaryProblem(zeros=1, n=20)
    for nan in (0, 1, 4, 8):
        found[f"nan{nan}"] = TernaryProblem(dim=300, nan=nan)
    found["nan-alone"] = TernaryProblem(dim=1, n=1, nan=0)
    return found


def main():
    solved = {"isa": np.array(kernels.isa())}
    for name, problem in every_problem().items():
        for part, values in problem.solve(kernels).items():
            solved[f"{name}/{part}"] = values
    np.savez(sys.argv[1], **solved)


if __name__ == "__main__":
    main()
