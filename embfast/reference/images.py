"""Specification of full-network embeddings (embfast/images/embeddings.py) and ternary rows (csrc/ternary/ternary.h)."""

import numpy as np


def full_network_embedding(
    train: list[np.ndarray], test: list[np.ndarray], lower: float = -0.25, upper: float = 0.15
) -> np.ndarray:
    """FullNetworkEmbedding fitted to train and applied to test, int8 (n, dim), from maps (n, channels[, h, w])."""
    fitted, asked = (
        np.concatenate([m.reshape(*m.shape[:2], -1).mean(axis=2) for m in maps], 1) for maps in (train, test)
    )
    mean, sd = fitted.mean(axis=0), fitted.std(axis=0)
    out = np.zeros(asked.shape, np.int8)
    for row, features in zip(out, asked, strict=True):
        for d in np.flatnonzero(sd):
            z = (features[d] - mean[d]) / sd[d]
            row[d] = 1 if z > upper else -1 if z < lower else 0
    return out


# ---- ternary rows: csrc/ternary/ternary.h -------------------------------------------------------------------------


def ternary_levels(features, low, high, levels):
    """kernels.ternary_levels: fills levels, int8 (n, dim). Returns the first row with a NaN, where it stops, or -1."""
    for i, row in enumerate(features):
        if np.isnan(row).any():
            return i
        levels[i] = np.where(row > high, 1, np.where(row < low, -1, 0))
    return -1


def ternary_pack(features, low, high, planes):
    """kernels.ternary_pack: fills planes, uint64 (n, 2, words). Returns the same as ternary_levels."""
    levels = np.zeros((len(features), planes.shape[2] * 64), np.int8)
    bad = ternary_levels(features, low, high, levels[:, : features.shape[1]])
    done = len(features) if bad < 0 else bad
    for plane, level in enumerate((1, -1)):
        planes[:done, plane] = np.packbits(levels[:done] == level, axis=1, bitorder="little").view(np.uint64)
    return bad


def ternary_unpack(planes, levels):
    """kernels.ternary_unpack: fills levels, int8 (n, dim)."""
    bits = np.unpackbits(planes.view(np.uint8), axis=2, count=levels.shape[1], bitorder="little").astype(np.int8)
    levels[:] = bits[:, 0] - bits[:, 1]


def ternary_nonzeros(planes, nonzeros):
    """kernels.ternary_nonzeros: fills nonzeros, int32 (n,)."""
    levels = np.zeros((len(planes), planes.shape[2] * 64), np.int8)
    ternary_unpack(planes, levels)
    nonzeros[:] = np.count_nonzero(levels, axis=1)


def ternary_top(queries, planes, nonzeros, *, excluded, own, first, ids, keys, threads):
    """kernels.ternary_top: updates ids and keys, the k best rows so far, by the rows of planes."""
    rows, asked = (np.zeros((len(p), p.shape[2] * 64), np.int8) for p in (planes, queries))
    ternary_unpack(planes, rows)
    ternary_unpack(queries, asked)
    numbers = first + np.arange(len(rows))
    for q, query in enumerate(asked):
        dots = (rows.astype(np.int64) @ query.astype(np.int64)).astype(np.float64)
        key = dots * np.abs(dots) / np.maximum(nonzeros, 1)
        allowed = np.ones(len(rows), bool) if excluded is None else excluded == 0
        if own is not None:
            allowed &= numbers != own[q]
        all_ids = np.concatenate([ids[q], numbers[allowed]])
        all_keys = np.concatenate([keys[q], key[allowed]])
        order = np.lexsort((all_ids, -all_keys))[: len(ids[q])]
        ids[q], keys[q] = all_ids[order], all_keys[order]
