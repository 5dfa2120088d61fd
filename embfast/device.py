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
