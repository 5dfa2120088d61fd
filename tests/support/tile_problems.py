"""Small problems for the kernels of ranking losses and their reference; as a script, solves all with the kernels.

EMBFAST_ISA=avx2 python tests/support/tile_problems.py solved.npz
"""

import sys
from dataclasses import dataclass
from itertools import cycle, product

import numpy as np

from embfast import kernels


@dataclass(frozen=True)
class TileProblem:
    """The size of a tile, which seeds all random numbers."""

    n_images: int
    n_captions: int
    dim: int
    threads: int = 1
    zeros: float = 0.3  # fraction of the weights that are 0

    def arguments(self, dtype):
        """Images, captions, weights and nonzero initial gradients, in this dtype."""
        rng = np.random.default_rng([self.n_images, self.n_captions, self.dim])
        images, to_images = rng.standard_normal((2, self.n_images, self.dim)).astype(np.float32)
        captions, to_captions = rng.standard_normal((2, self.n_captions, self.dim)).astype(np.float32)
        weights = rng.standard_normal((self.n_images, self.n_captions)).astype(np.float32)
        weights[rng.random(weights.shape) < self.zeros] = 0
        weights[: self.n_images // 2, -1] = 0  # a caption that no image of a block has a weight for
        return [part.astype(dtype) for part in (images, captions, weights, to_images, to_captions)]

    def rank(self, how, dtype):
        """Results of hinges and hardest for a tile of integers, many equal, some -inf."""
        rng = np.random.default_rng([self.n_images, self.n_captions, self.dim, 1])
        sizes = self.n_images * (1 + self.dim % 3), self.n_captions + self.dim
        tile = rng.integers(-4, 5, sizes).astype(dtype)
        tile[rng.random(sizes) < 0.1] = -np.inf
        bounds = [rng.integers(-3, 3, n).astype(dtype) / 4 for n in sizes]
        found = {}
        for name, used in {"both": (True, True), "rows": (True, False), "columns": (False, True)}.items():
            scores, active = tile.copy(), [np.ones(n, dtype) if on else None for n, on in zip(sizes, used, strict=True)]
            given = [x if on else None for x, on in zip(bounds, used, strict=True)]
            found[f"hinges-{name}"] = np.array(how.hinges(scores, *given, *active))
            found[f"weights-{name}"] = scores
            found |= {f"active-{name}-{i}": x for i, x in enumerate(active) if x is not None}
        for axis, semihard in product((0, 1), (False, True)):
            best, place = np.full(sizes[axis], 2, dtype), np.full(sizes[axis], -7)
            best[::2] = -np.inf
            how.hardest(tile, axis, bounds[axis] if semihard else None, 1000, best, place)
            found |= {f"best-{axis}-{semihard}": best, f"found-{axis}-{semihard}": place}
        return found

    def solve(self, how, dtype):
        """Results of kernels or reference: order scores, gradients (together and alone), hinges and hardest."""
        images, captions, weights, to_images, to_captions = self.arguments(dtype)
        scores = np.full(weights.shape, np.nan, dtype)
        how.order_scores(images, captions, scores, threads=self.threads)
        alone = to_images.copy(), to_captions.copy()
        how.add_order_gradients(images, captions, weights, alone[0], None, threads=self.threads)
        how.add_order_gradients(images, captions, weights, None, alone[1], threads=self.threads)
        how.add_order_gradients(images, captions, weights, to_images, to_captions, threads=self.threads)
        return {
            **self.rank(how, dtype),
            "scores": scores,
            "to_images": to_images,
            "to_captions": to_captions,
            "to_images_alone": alone[0],
            "to_captions_alone": alone[1],
        }


def every_problem():
    """Problems by name: full and partial blocks of rows, columns below, at and above the width of a register."""
    threads = cycle([1, 2, 5])
    found = {}
    for (n, m), dim in product([(1, 1), (3, 5), (4, 4), (9, 6), (2, 11)], [1, 7, 8, 16, 31, 32, 33, 100]):
        found[f"{n}x{m}-dim{dim}"] = TileProblem(n, m, dim, next(threads))
    found["many-rows"] = TileProblem(70, 41, 40, 3)
    found["no-weight"] = TileProblem(5, 5, 20, 1, 1.0)
    return found


def main():
    solved = {"isa": np.array(kernels.isa())}
    for name, problem in every_problem().items():
        for dtype in ("float32", "float64"):
            for part, values in problem.solve(kernels, dtype).items():
                solved[f"{name}/{dtype}/{part}"] = values
    np.savez(sys.argv[1], **solved)


if __name__ == "__main__":
    main()
