"""Ranking losses on a CUDA device: launches of csrc/ranking.cu.

Only embfast.kernels imports this module, and only when a device is asked for.
"""

from __future__ import annotations

import numpy as np

# struct RankingJob of csrc/ranking.cu.
RANKING_JOB = np.dtype(
    [
        *((name, np.uint64) for name in ("images", "captions", "image_scales", "caption_scales", "groups", "paired")),
        *((name, np.uint64) for name in ("to_images", "to_captions", "active", "best_captions", "best_images", "loss")),
        *((name, np.int64) for name in ("n_images", "n_captions", "n_pairs", "dim", "first_image", "first_caption")),
        *((name, np.int32) for name in ("of_images", "of_captions", "order", "semihard")),
        ("margin", np.float32),
        ("unused", np.int32),
    ]
)
TILE = 64  # images, and captions, of a block
SHARED = 2 * TILE * 33 * 4 + TILE * (TILE + 1) * 4 + 2 * TILE * 4 + 2 * TILE * 8  # bytes: struct Tile of the source
THREADS = 256
