"""Ranking losses on a CUDA device: launches of csrc/ranking/ranking.cu.

Only embfast.kernels imports this module, and only when a device is used.
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
TILE = 64  # images, and captions, per thread block
SHARED = 2 * TILE * 33 * 4 + TILE * (TILE + 1) * 4 + 2 * TILE * 4 + 2 * TILE * 8  # bytes of struct Tile in the source
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

    images, captions: CuPy arrays on the device, float32 (n, dim) and (m, dim) in C order. CuPy's from_dlpack makes them
    from torch tensors without a copy. The gradients are such arrays too. Extra memory: 28 bytes per row, and the
    gradients themselves.
    """
    (n, dim), m = images.shape, captions.shape[0]
    for name, rows in (("images", images), ("captions", captions)):
        if rows.dtype != np.float32 or not rows.flags.c_contiguous or rows.shape[1] != dim:
            raise ValueError(f"{name}: expected float32 (rows, {dim}) in C order, got {rows.dtype} {rows.shape}")
    if mode not in ("sum", "max", "semihard"):
        raise ValueError(f"mode: a device supports sum, max and semihard, got {mode!r}")
    with device.current():  # on the caller's stream, on which the rows may still be being written
        arrays = _arrays(device.cupy, images, captions, similarity == "cosine", groups)
        job = np.zeros(1, RANKING_JOB)
        for name, array in arrays.items():
            job[name] = array.data.ptr
        job["n_images"], job["n_captions"], job["n_pairs"], job["dim"] = n, m, min(n, m), dim
        job["first_image"] = offset if direction == "images" else 0
        job["first_caption"] = offset if direction == "captions" else 0
        job["of_images"], job["of_captions"] = direction != "captions", direction != "images"
        job["order"], job["semihard"], job["margin"] = similarity == "order", mode == "semihard", margin
        _launch(device, job, arrays, mode)
        loss = float(arrays["loss"].get()[0])
    return loss, arrays["to_images"], arrays["to_captions"]


def _arrays(cupy: Any, images: Any, captions: Any, cosine: bool, groups: np.ndarray | None) -> dict[str, Any]:
    """The arrays that a RankingJob points to, by field."""

    def zeros(shape: Any, dtype: type) -> Any:
        array = cupy.empty(shape, dtype)
        array.fill(0)
        return array

    (n, dim), m = images.shape, captions.shape[0]
    pairs = min(n, m)
    arrays = {"images": images, "captions": captions, "paired": cupy.empty(pairs, np.float32)}
    arrays |= {"to_images": zeros((n, dim), np.float32), "to_captions": zeros((m, dim), np.float32)}
    arrays |= {"active": zeros(pairs, np.int32), "loss": zeros(1, np.float64)}
    arrays |= {"best_captions": zeros(pairs, np.uint64), "best_images": zeros(pairs, np.uint64)}
    if cosine:
        arrays |= {"image_scales": cupy.empty(n, np.float32), "caption_scales": cupy.empty(m, np.float32)}
    if groups is not None:
        arrays["groups"] = cupy.empty(len(groups), np.int64)
        arrays["groups"].set(np.ascontiguousarray(groups, np.int64))
    return arrays


def _launch(device: Device, job: np.ndarray, arrays: dict[str, Any], mode: str) -> None:
    """Fills loss and gradients of a job."""

    def call(name: str, grid: tuple[int, ...], arguments: tuple[Any, ...], shared: int = 0) -> None:
        device.kernel("ranking", name)(grid, (THREADS,), arguments, shared_mem=shared)

    def blocks(n_rows: int) -> tuple[int]:
        return (min(-(-n_rows // (THREADS // LANES)), 1 << 16),)

    n, m, pairs, dim = (int(job[name][0]) for name in ("n_images", "n_captions", "n_pairs", "dim"))
    sides = [("images", "image_scales", "to_images"), ("captions", "caption_scales", "to_captions")]
    scaled = [[arrays[name] for name in side] for side in sides if side[1] in arrays]
    for rows, scales, _ in scaled:
        call("ranking_scales", blocks(rows.shape[0]), (rows, np.int64(rows.shape[0]), np.int64(dim), scales))
    call("ranking_pairs", blocks(pairs), (job,))
    tiled, single = ("sum", "add_pairs") if mode == "sum" else ("hardest", "add_hardest")
    order = "_order" if job["order"][0] else ""
    call(f"ranking_{tiled}{order}", (-(-m // TILE), -(-n // TILE)), (job,), SHARED)
    call(f"ranking_{single}", blocks(pairs), (job,))
    for rows, scales, gradient in scaled:
        arguments = (rows, scales, np.int64(rows.shape[0]), np.int64(dim), gradient)
        call("ranking_finish", blocks(rows.shape[0]), arguments)
