"""Temporary arrays: in memory if small, otherwise in a temporary file."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

MEMORY_BYTES = 256 << 20  # larger arrays go to a temporary file


def scratch_array(n: int, dtype: np.dtype | type, name: str = "") -> np.ndarray:
    """An uninitialised array; above MEMORY_BYTES, an unnamed temporary file that disappears with the array.

    `name` is unused: CorpusDirectory.array_of, which has the same arguments, names its file by it.
    """
    if n * np.dtype(dtype).itemsize <= MEMORY_BYTES or n == 0:
        return np.empty(n, dtype)
    with tempfile.TemporaryFile() as file:
        reserve(file, n * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, mode="r+", shape=(n,))


def reserve(file: Any, size: int) -> None:
    """Allocates the space of a file now, so that a full disk raises here and is not a SIGBUS in the mapping."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        os.ftruncate(file.fileno(), size)
