"""Arrays for a moment: in memory while small, else in a temporary file."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

MEMORY_BYTES = 256 << 20  # arrays up to this size stay in memory; larger ones go to a temporary file


def scratch_array(n: int, dtype: type, name: str = "") -> np.ndarray:
    """Uninitialised memory, or a temporary file without a name when it is large: it goes when the array goes."""
    if n * np.dtype(dtype).itemsize <= MEMORY_BYTES or n == 0:
        return np.empty(n, dtype)
    with tempfile.TemporaryFile() as file:
        reserve(file, n * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, mode="r+", shape=(n,))


def reserve(file: Any, size: int) -> None:
    """Takes the space now, so that a full disk is an error here and not a SIGBUS in the mapping."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        os.ftruncate(file.fileno(), size)
