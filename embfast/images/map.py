"""Maps of images: thumbnails on a plane, placed by the images' vectors."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from embfast.files.durable import FilePath, replacing
from embfast.vectors.plot import project
from embfast.vectors.vectors import Vectors


def plot_images(
    vectors: Vectors,
    images: Any,
    path: FilePath,
    keys: Iterable[str] | None = None,
    n: int = 400,
    method: str = "tsne",
    seed: int = 0,
    width: int = 2000,
    thumbnail: int = 64,
) -> dict[str, tuple[float, float]]:
    """Projects image vectors to a plane, draws a thumbnail at each position, and returns the positions by key.

    Settings:
        images: The images of the vectors: a folder, files, a tar and so on, see pictures.open_pictures.
        path: File to write. Its extension determines the format: png, jpg, webp or another one that Pillow can write.
        keys: Keys of the images to draw. None draws n images, evenly spaced.
        method, seed: As for plot.
        width: Side of the drawing, in pixels.
        thumbnail: Longer side of a thumbnail, in pixels.

    Raises:
        KeyError: a key has no vector or no image.
        ImportError, ValueError: as for plot.
    """
    from embfast.images.pictures import encoder_of, open_pictures, thumbnail_of

    if not 1 <= thumbnail < width <= 1 << 15:
        raise ValueError(f"expected 1 <= thumbnail < width <= {1 << 15}, got thumbnail={thumbnail}, width={width}")
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
        bottom = width - thumbnail - top + down  # the y axis points up, as in plot
        sheet[bottom : bottom + small.shape[0], left + across : left + across + small.shape[1]] = small
    with replacing(path) as stream:
        encoder(sheet, stream)
    return dict(zip(shown, map(tuple, places.tolist()), strict=True))
