"""Ranking losses on a CUDA device: launches of csrc/ranking/ranking.cu.

Only embfast.kernels imports this module, and only when a device is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from embfast.device.cuda import LANES, Device

# struct RankingJob of csrc/ranking/ranking.cu.
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


def ranking_loss(
    device: Device,
    images: Any,
    captions: Any,
    *,
    mode: str = "sum",
    similarity: str = "cosine",
    margin: float = 0.2,
    groups: np.ndarray | None = None,
    direction: str = "both",
    offset: int = 0,
) -> tuple[float, Any, Any]:
    """The loss of embfast.multimodal.ranking.ranking_loss for modes "sum", "max" and "semihard", and its two gradients.

    images, captions: arrays of CuPy on the device, float32 (n, dim) and (m, dim) in C order; its from_dlpack makes them
    of tensors of torch without a copy. The gradients are such arrays too. Extra memory: 28 bytes a row, and the
    gradients themselves.
    """
    (n, dim), m = images.shape, captions.shape[0]
    for name, rows in (("images", images), ("captions", captions)):
        if rows.dtype != np.float32 or not rows.flags.c_contiguous or rows.shape[1] != dim:
            raise ValueError(f"{name}: expected float32 (rows, {dim}) in C order, got {rows.dtype} {rows.shape}")
    if mode not in ("sum", "max", "semihard"):
        raise ValueError(f"mode: a device has sum, max and semihard, got {mode!r}")
    cupy, pairs, order = device.cupy, min(n, m), similarity == "order"
    with device.current():  # on the caller's stream, which the rows may still be on their way on

        def zeros(shape: Any, dtype: type) -> Any:
            array = cupy.empty(shape, dtype)
            array.fill(0)
            return array

        arrays = {"images": images, "captions": captions, "paired": cupy.empty(pairs, np.float32)}
        arrays |= {"to_images": zeros((n, dim), np.float32), "to_captions": zeros((m, dim), np.float32)}
        arrays |= {"active": zeros(pairs, np.int32), "loss": zeros(1, np.float64)}
        arrays |= {"best_captions": zeros(pairs, np.uint64), "best_images": zeros(pairs, np.uint64)}
        if similarity == "cosine":
            arrays |= {"image_scales": cupy.empty(n, np.float32), "caption_scales": cupy.empty(m, np.float32)}
        if groups is not None:
            arrays["groups"] = cupy.empty(len(groups), np.int64)
            arrays["groups"].set(np.ascontiguousarray(groups, np.int64))
        job = np.zeros(1, RANKING_JOB)
        for name, array in arrays.items():
            job[name] = array.data.ptr
        job["n_images"], job["n_captions"], job["n_pairs"], job["dim"] = n, m, pairs, dim
        job["first_image"] = offset if direction == "images" else 0
        job["first_caption"] = offset if direction == "captions" else 0
        job["of_images"], job["of_captions"] = direction != "captions", direction != "images"
        job["order"], job["semihard"], job["margin"] = order, mode == "semihard", margin

        def call(name: str, grid: tuple[int, ...], arguments: tuple[Any, ...], shared: int = 0) -> None:
            device.kernel("ranking", name)(grid, (THREADS,), arguments, shared_mem=shared)

        def rows(n_rows: int) -> tuple[int]:
            return (min(-(-n_rows // (THREADS // LANES)), 1 << 16),)

        sides = [(images, "image_scales", "to_images"), (captions, "caption_scales", "to_captions")]
        if similarity == "cosine":
            for side, scales, _ in sides:
                call("ranking_scales", rows(side.shape[0]),
                     (side, np.int64(side.shape[0]), np.int64(dim), arrays[scales]))  # fmt: skip
        call("ranking_pairs", rows(pairs), (job,))
        tiled, single = ("sum", "add_pairs") if mode == "sum" else ("hardest", "add_hardest")
        call(f"ranking_{tiled}{'_order' * order}", (-(-m // TILE), -(-n // TILE)), (job,), SHARED)
        call(f"ranking_{single}", rows(pairs), (job,))
        if similarity == "cosine":
            for side, scales, to in sides:
                call("ranking_finish", rows(side.shape[0]),
                     (side, arrays[scales], np.int64(side.shape[0]), np.int64(dim), arrays[to]))  # fmt: skip
        loss = float(arrays["loss"].get()[0])
    return loss, arrays["to_images"], arrays["to_captions"]
