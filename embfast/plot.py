"""A picture of vectors: their keys on a plane, near each other where the vectors have a high cosine.

PCA keeps the directions of largest variance (K. Pearson 1901), t-SNE the neighbours of each key (L. van der Maaten and
G. Hinton 2008), UMAP neighbours at several scales (L. McInnes et al. 2018, arXiv:1802.03426).
"""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from embfast.formats import replacing
from embfast.vectors import Vectors

METHODS = ("pca", "tsne", "umap")


def plot(
    vectors: Vectors,
    path: str | os.PathLike[str],
    keys: Iterable[str] | None = None,
    n: int = 200,
    method: str = "pca",
    seed: int = 0,
    clusters: int = 0,
) -> dict[str, tuple[float, float]]:
    """Draws keys as labelled points to a file, and returns where they are.

    Settings:
        path: the extension says the format: png, svg, pdf and what else matplotlib can write.
        keys: which to draw; the first n when None, which are the most frequent words of a trained model.
        method: "pca", "tsne", or "umap" (which needs umap-learn).
        seed: of "tsne", "umap" and clusters.
        clusters: colours so many clusters of the drawn keys, found by k-means of the directions of their vectors; 0 for
            one colour.

    Raises:
        KeyError: a key is not there.
        ImportError: matplotlib, scikit-learn or umap-learn is missing; says what to install.
        ValueError: fewer than 3 keys (4 for "umap"), fewer than 2 numbers per vector, more clusters than
            keys, no such method or format.
    """
    extension = Path(path).suffix.removeprefix(".").lower()
    formats = _figure().canvas.get_supported_filetypes()
    if extension not in formats:
        raise ValueError(f"{os.fspath(path)}: expected a picture's extension, one of {', '.join(sorted(formats))}")
    shown = vectors.keys[: max(n, 0)] if keys is None else list(dict.fromkeys(keys))
    rows = vectors[shown] if shown else np.empty((0, vectors.dim), np.float32)
    places = project(rows, method, seed)
    groups = cluster(rows, clusters, seed) if clusters else None
    with replacing(path) as stream:
        _draw(shown, places, groups, stream, extension)
    return dict(zip(shown, map(tuple, places.tolist()), strict=True))


def project(rows: np.ndarray, method: str = "pca", seed: int = 0) -> np.ndarray:
    """Rows, float32 (n, dim), as points on a plane, float64 (n, 2), by their directions: lengths do not count.

    Raises:
        ImportError, ValueError: as plot does.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    (n, dim), least = rows.shape, 4 if method == "umap" else 3
    if n < least or dim < 2:
        raise ValueError(f"a plane needs at least {least} vectors of at least 2 numbers, got {n} of {dim}")
    units = _units(rows)
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise ImportError("method='umap' needs umap-learn: pip install umap-learn") from None
        return UMAP(n_neighbors=min(15, n - 1), random_state=seed, n_jobs=1).fit_transform(units).astype(np.float64)
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError:
        raise ImportError("plots need scikit-learn: pip install embfast[plot]") from None
    if method == "pca":
        return PCA(2, svd_solver="full").fit_transform(units).astype(np.float64)
    around = min(30.0, (n - 1) / 3)  # neighbours that count; fewer than there are
    return TSNE(2, perplexity=around, init="pca", random_state=seed).fit_transform(units).astype(np.float64)


def cluster(rows: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """The cluster of each row, int32 (n,), by k-means of their directions, ten times from other beginnings.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: not 1 to n clusters.
    """
    if not 1 <= clusters <= len(rows):
        raise ValueError(f"clusters must be from 1 to the {len(rows)} vectors, got {clusters}")
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise ImportError("clusters need scikit-learn: pip install embfast[plot]") from None
    return KMeans(clusters, n_init=10, random_state=seed).fit_predict(_units(rows)).astype(np.int32)


def _units(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-30))


def _figure(**options: Any) -> Any:
    """A figure that belongs to no window, so that none opens and no display is needed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install embfast[plot]") from None
    return Figure(**options)


def _draw(keys: list[str], places: np.ndarray, groups: np.ndarray | None, stream: Any, extension: str) -> None:
    side = float(np.clip(0.8 * len(keys) ** 0.5, 6, 30))  # inches, so that labels of 7 points have room
    figure = _figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    colours = (
        {"color": "tab:blue"} if groups is None else {"c": groups, "cmap": "tab10" if groups.max() < 10 else "hsv"}
    )
    axes.scatter(places[:, 0], places[:, 1], s=6 if groups is None else 20, linewidths=0, **colours)
    for key, place in zip(keys, places, strict=True):
        label = {"xytext": (2, 2), "textcoords": "offset points", "fontsize": 7, "parse_math": False}
        axes.annotate(key, place, **label)  # a key may hold a $, which is no formula here
    axes.set_xticks([])
    axes.set_yticks([])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(stream, format=extension, dpi=150)
    missing = [str(warning.message) for warning in caught if "missing from" in str(warning.message)]
    for warning in caught:
        if str(warning.message) not in missing:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:
        warnings.warn(
            f"{len(set(missing))} characters are not in matplotlib's font and show as boxes; name another font as "
            f"font.family in a matplotlibrc. The first: {missing[0]}",
            stacklevel=3,
        )
