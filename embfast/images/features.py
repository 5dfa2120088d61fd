"""Features of images: batches, and storage in memory or in a folder that a later run resumes from."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embfast.errors import FormatError
from embfast.files.durable import replacing, sync
from embfast.files.scratch import scratch_array

SAVE_SECONDS = 30.0  # between two saves of the progress of a run
_FORMAT = 1


class Batch(NamedTuple):
    """Features of consecutive images.

    numbers: Images that were read. Row i, float32 (n, dim), holds the features of image numbers[i].
    broken: Images that could not be read, and why.
    stop: The number after the last image of the batch.
    """

    numbers: list[int]
    rows: np.ndarray
    broken: list[tuple[int, str]]
    stop: int


class Features(NamedTuple):
    """Keys and features, float32 (n, dim), of the images that could be read; broken says why others could not."""

    keys: list[str]
    matrix: np.ndarray
    broken: dict[str, str]


class ScratchFeatures:
    """Features that last as long as the process: in memory, or in an unnamed temporary file if the matrix is large."""

    def __init__(self, n: int, dim: int) -> None:
        self.rows = scratch_array(n * dim, np.float32).reshape(n, dim)
        self.n = self.stop = 0
        self.broken: list[tuple[int, str]] = []

    def __enter__(self) -> ScratchFeatures:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def add(self, batch: Batch) -> None:
        self.rows[self.n : self.n + len(batch.rows)] = batch.rows
        self.n += len(batch.rows)
        self.stop = batch.stop
        self.broken += batch.broken

    def save(self) -> None:
        pass  # nothing to resume from

    def finish(self) -> np.ndarray:
        return self.rows[: self.n]


class FolderFeatures:
    """Features in a folder: features.f32 holds the rows, progress.json the number of valid rows and the fingerprint."""

    def __init__(self, folder: Path, dim: int, fingerprint: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.record, self.dim = folder / "features.f32", folder / "progress.json", dim
        self.fingerprint, self.n, self.stop = fingerprint, 0, 0
        self.broken: list[tuple[int, str]] = []
        if self.record.exists():
            self._resume()
        self.stream = open(self.path, "r+b" if self.path.exists() else "w+b")  # noqa: SIM115
        self.stream.truncate(self.n * self.dim * 4)
        self.stream.seek(0, os.SEEK_END)
        self.saved = time.monotonic()

    def __enter__(self) -> FolderFeatures:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stream.close()

    def _resume(self) -> None:
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            was, self.n, self.stop = found["fingerprint"], int(found["rows"]), int(found["stop"])
            self.broken = [(int(i), str(why)) for i, why in found["broken"]]
            if found["format"] != _FORMAT:
                raise FormatError(f"{self.record}: expected format {_FORMAT}, got {found['format']!r}")
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FormatError(f"{self.record}: expected the record of an extraction, got {error!r}") from None
        changed = [
            f"{name} was {was.get(name)!r}, is {value!r}"
            for name, value in self.fingerprint.items()
            if was.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{self.record.parent}: has the features of another run: {'; '.join(changed)}. Name another folder, or "
                "remove this one"
            )
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self.n * self.dim * 4:
            raise FormatError(f"{self.path}: expected {self.n * self.dim * 4:,} bytes at least, got {size:,}")

    def add(self, batch: Batch) -> None:
        self.stream.write(np.ascontiguousarray(batch.rows).data)
        self.n += len(batch.rows)
        self.stop = batch.stop
        self.broken += batch.broken
        if time.monotonic() - self.saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        self.stream.flush()
        sync(self.path)
        with replacing(self.record) as stream:
            found = {"format": _FORMAT, "rows": self.n, "stop": self.stop, "broken": self.broken}
            stream.write(json.dumps(found | {"fingerprint": self.fingerprint}, indent=1).encode())
        self.saved = time.monotonic()

    def finish(self) -> np.ndarray:
        self.save()
        if self.n == 0:
            return np.empty((0, self.dim), np.float32)
        return np.memmap(self.path, np.float32, "r", shape=(self.n, self.dim))
