"""Pictures drawn where their vectors lie."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from embfast.files.durable import replacing
from embfast.vectors.plot import project
from embfast.vectors.vectors import Vectors


def plot_images(
    vectors: Vectors,
    images: Any,
    path: str | os.PathLike[str],
    keys: Iterable[str] | None = None,
    n: int = 400,
    method: str = "tsne",
    seed: int = 0,
    width: int = 2000,
    thumbnail: int = 64,
) -> dict[str, tuple[float, float]]:
    """Draws thumbnails of images where their vectors lie, to a file, and returns these places.

    Settings:
        images: a folder, files, a tar, ...: what the vectors were made of; see pictures.open_pictures.
        path: the extension says the format: png, jpg, webp and what else Pillow can write.
        keys: which to draw; n of them, spread evenly, when None.
        method, seed: as plot has them.
        width, thumbnail: pixels of each side of the picture, and of the longer side of a thumbnail.

    Raises:
        KeyError: a key is not there, or has no image.
        ImportError, ValueError: as plot does.
    """
    from embfast.images.pictures import encoder_of, open_pictures, thumbnail_of

    if not 1 <= thumbnail < width <= 1 << 15:
        raise ValueError(f"width must be at most {1 << 15} and thumbnail smaller, got {width} and {thumbnail}")
    encoder = encoder_of(path)
    pictures = open_pictures(images)
    number = {key: i for i, key in enumerate(pictures.keys)}
    if keys is None:
        spread = np.linspace(0, max(len(vectors) - 1, 0), min(max(n, 1), len(vectors))).round().astype(int)
        keys = [vectors.keys[i] for i in spread.tolist()]
    shown = list(dict.fromkeys(keys))
    if missing := [key for key in shown if key not in number]:
        raise KeyError(f"{missing[0]!r} is not among the {len(number)} images")
    rows = vectors[shown] if shown else np.empty((0, vectors.dim), np.float32)
    places = project(np.asarray(rows, np.float32), method, seed)
    low, high = places.min(axis=0), places.max(axis=0)
    corners = ((places - low) / np.maximum(high - low, 1e-30) * (width - thumbnail)).round().astype(int)
    sheet = np.full((width, width, 3), 255, np.uint8)
    for key, (left, top) in zip(shown, corners.tolist(), strict=True):
        small = thumbnail_of(pictures, number[key], thumbnail)
        down, across = (thumbnail - small.shape[0]) // 2, (thumbnail - small.shape[1]) // 2
        bottom = width - thumbnail - top + down  # the second axis points up, as in plot
        sheet[bottom : bottom + small.shape[0], left + across : left + across + small.shape[1]] = small
    with replacing(path) as stream:
        encoder(sheet, stream)
    return dict(zip(shown, map(tuple, places.tolist()), strict=True))
