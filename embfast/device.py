"""Training on a CUDA device through CuPy: tables and slices of the corpus there, launches of csrc/*.cu.

Only embfast.kernels imports this module, and only when a device is asked for.
"""

from typing import NamedTuple

import numpy as np

# struct SequenceJob of csrc/sequences.cu, and its DeviceTally.
SEQUENCE_JOB = np.dtype(
    [
        *((name, np.uint64) for name in ("w_in", "w_out", "w_nodes", "w_docs", "ids", "offsets", "pieces", "keep")),
        *((name, np.uint64) for name in ("noise", "path_offsets", "path_nodes", "path_codes", "tag_offsets", "tags")),
        *((name, np.uint64) for name in ("seeds", "kept", "kept_document", "n_kept", "rings", "tally")),
        *((name, np.uint64) for name in ("seed", "epoch")),
        *((name, np.int64) for name in ("first_token", "first_document", "n_documents", "n_pieces")),
        *((name, np.int64) for name in ("tokens_before", "tokens_total")),
        *((name, np.int32) for name in ("n_words", "pitch", "window", "most_tags")),
        *((name, np.int32) for name in ("shrink", "words", "mean", "frozen", "drawn")),
        *((name, np.float32) for name in ("lr_first", "lr_last")),
        ("unused", np.int32),
    ]
)
TALLY = np.dtype([("loss", np.float64), ("examples", np.uint64), ("kept", np.uint64)])
ALIAS_CELL = np.dtype([("threshold", np.uint32), ("alias", np.int32)])
LANES = 32


class Shape(NamedTuple):
    """How a sequence kernel is launched."""

    kernel: str
    threads: int  # of a block
    shared: int  # bytes of dynamic shared memory of a block
    ring: int  # bytes of global memory of a block for its ring, 0 where it is in shared memory


def sequence_shape(pitch: int, window: int, most_tags: int, *, cbow: bool, documents: bool, shared_most: int) -> Shape:
    """The kernel for rows of `pitch` float4, and its launch; shared_most: bytes a block may have of shared memory.

    A thread has four numbers of a row, so that rows of up to 128 numbers take one warp and 1,024 take eight. The ring
    holds each row of the window twice; a window too wide for shared memory has it in global memory.
    """
    warps = -(-pitch // LANES)
    ring = 2 * (2 * window + 1 + most_tags) * pitch * 16
    partial = 2 * 4 * warps * 4
    wide = ring + (partial if warps > 1 else 0) > shared_most
    kind = "wide" if wide else "warp" if warps == 1 else "warps"
    name = f"{'cbow' if cbow else 'skip_gram'}{'_documents' if documents else ''}_{kind}"
    shared = {"wide": partial, "warp": ring, "warps": ring + partial}[kind]
    return Shape(name, warps * LANES, shared, ring if wide else 0)


# ---- GloVe ----------------------------------------------------------------------------------------------------------

# struct RunJob of csrc/glove.cu.
RUN_JOB = np.dtype(
    [
        *((name, np.uint64) for name in ("w_in", "w_out", "sums_in", "sums_out", "entries", "runs", "order", "loss")),
        *((name, np.uint64) for name in ("seed", "epoch")),
        *((name, np.int64) for name in ("first", "last", "first_entry")),
        *((name, np.int32) for name in ("dim", "pitch", "longest")),
        *((name, np.float32) for name in ("x_max", "alpha", "lr")),
    ]
)
RUN_WARPS = 4  # of a block where a warp takes a run
MAX_RUN = 1024  # entries of a run at most: 4 bytes of shared memory each


class RunShape(NamedTuple):
    """How a GloVe kernel is launched."""

    kernel: str
    threads: int  # of a block
    shared: int  # bytes of dynamic shared memory of a block
    teams: int  # runs that a block trains at a time


def run_shape(pitch: int, longest: int) -> RunShape:
    """The kernel for rows of `pitch` float4 and runs of `longest` entries at most, and its launch."""
    if pitch <= LANES:
        return RunShape("train_runs_warp", RUN_WARPS * LANES, RUN_WARPS * longest * 4, RUN_WARPS)
    warps = -(-pitch // LANES)
    return RunShape("train_runs_warps", warps * LANES, longest * 4 + 2 * 4 * warps * 4, 1)


# ---- walks ----------------------------------------------------------------------------------------------------------

# struct WalkJob of csrc/walks.cu.
WALK_JOB = np.dtype(
    [
        *((name, np.uint64) for name in ("offsets", "neighbours", "weights", "alias", "strengths", "thresholds")),
        *((name, np.uint64) for name in ("members", "pattern", "starts", "steps", "lengths", "seed", "repetition")),
        *((name, np.float64) for name in ("inverse_p", "inverse_q", "restart")),
        *((name, np.int64) for name in ("n_walks", "n_nodes")),
        *((name, np.int32) for name in ("length", "returns", "n_types", "n_pattern")),
    ]
)
