"""Plots of vectors: keys on a plane, close to each other if their vectors have a high cosine.

PCA preserves the directions of largest variance (K. Pearson 1901), t-SNE the neighbours of each key (L. van der Maaten
and G. Hinton 2008), and UMAP neighbours at several scales (L. McInnes et al. 2018, arXiv:1802.03426).
"""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from embfast.files.durable import replacing
from embfast.vectors.vectors import Vectors

METHODS = ("pca", "tsne", "umap")

_LABELS = 400  # above this number of keys, labels that would overlap are dropped


def plot(
    vectors: Vectors,
    path: str | os.PathLike[str],
    keys: Iterable[str] | None = None,
    n: int = 200,
    method: str = "pca",
    seed: int = 0,
    clusters: int = 0,
) -> dict[str, tuple[float, float]]:
    """Plots keys as labelled points to a file, and returns the coordinates of each key.

    Above 400 keys, labels that would overlap the label of an earlier key are dropped.

    Args:
        path: Output file. Its extension selects the format: png, svg, pdf or another format of matplotlib.
        keys: Keys to plot. Default: the first n, which are the most frequent words of a trained model.
        n: Number of keys to plot if `keys` is None.
        method: Projection: "pca", "tsne", or "umap" (needs umap-learn).
        seed: Seed of "tsne", "umap" and clusters.
        clusters: Number of clusters to colour, found by k-means on the directions of the plotted vectors; a legend
            lists the size and the first keys of each. 0 plots in one colour.

    Raises:
        KeyError: a key is missing.
        ImportError: matplotlib, scikit-learn or umap-learn is missing; the message says what to install.
        ValueError: fewer than 3 keys (4 for "umap"), a vector size below 2, more clusters than keys, or an unknown
            method or format.
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
    """Projects the directions of rows, float32 (n, dim), to a plane: float64 (n, 2). Row norms have no effect.

    Raises:
        ImportError, ValueError: as plot does.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    (n, dim), least = rows.shape, 4 if method == "umap" else 3
    if n < least or dim < 2:
        raise ValueError(f"a plot needs at least {least} vectors of size 2 or more, got {n} of size {dim}")
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
    if np.ptp(units, axis=0).max() < 1e-6:  # t-SNE fails on identical rows
        return np.zeros((n, 2))
    perplexity = min(30.0, (n - 1) / 3)  # effective number of neighbours, must be below n
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(units).astype(np.float64)


def cluster(rows: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """Cluster of each row, int32 (n,), by k-means on the directions of the rows, the best of ten initialisations.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: `clusters` is not from 1 to n.
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
    """A matplotlib figure without a window, which needs no display."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install embfast[plot]") from None
    return Figure(**options)


def _draw(keys: list[str], places: np.ndarray, groups: np.ndarray | None, stream: Any, extension: str) -> None:
    crowded = len(keys) > _LABELS
    side = float(np.clip(0.8 * len(keys) ** 0.5, 6, 16))  # inches, so that labels of 7 points have room
    figure = _figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(frame_on=False)
    axes.set_xticks([])
    axes.set_yticks([])
    size = 6 if groups is None else 10 if crowded else 20
    if groups is None:
        axes.scatter(places[:, 0], places[:, 1], s=size, linewidths=0, color="tab:blue")
    else:
        for group, colour in enumerate(_colours(int(groups.max()) + 1)):
            members = np.flatnonzero(groups == group)
            first = [keys[i] if len(keys[i]) <= 20 else keys[i][:19] + "\u2026" for i in members[:3]]
            text = f"{len(members):,}: {', '.join([*first, chr(0x2026)][: len(members)])}"
            axes.scatter(*places[members].T, s=size, linewidths=0, color=[colour], label=text)
        box = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
        for entry in axes.legend(**box, fontsize=8, markerscale=(40 / size) ** 0.5).get_texts():
            entry.set_parse_math(False)
    label = {"xytext": (2, 2), "textcoords": "offset points", "fontsize": 7, "parse_math": False}
    for i in _apart(keys, places, 0.8 * 72 * side) if crowded else range(len(keys)):  # 20 %: margins, legend
        axes.annotate(keys[i], places[i], **label)  # a key may contain a $, which must not start a formula
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(stream, format=extension, dpi=150)
    missing = [str(warning.message) for warning in caught if "missing from" in str(warning.message)]
    for warning in caught:
        if str(warning.message) not in missing:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:
        warnings.warn(
            f"{len(set(missing))} characters are not in matplotlib's font and appear as boxes; set another font as "
            f"font.family in a matplotlibrc. The first: {missing[0]}",
            stacklevel=3,
        )


def _colours(n: int) -> np.ndarray:
    """n distinguishable colours, (n, 4)."""
    from matplotlib import colormaps

    if n <= 20:
        return colormaps["tab10" if n <= 10 else "tab20"](np.arange(n))
    return colormaps["turbo"]((np.arange(n) + 0.5) / n)


def _apart(keys: list[str], places: np.ndarray, side: float) -> list[int]:
    """Indices of keys whose 7 pt labels do not overlap on a square of `side` points; earlier keys take precedence."""
    span = np.maximum(places.max(axis=0) - places.min(axis=0), 1e-30)
    corners = (places - places.min(axis=0)) / span * side
    chosen: list[int] = []
    boxes = np.empty((len(keys), 4))  # left, bottom, right, top
    for i, (key, (left, bottom)) in enumerate(zip(keys, corners.tolist(), strict=True)):
        box = (left, bottom, left + 4.5 * len(key) + 4, bottom + 9)
        taken = boxes[: len(chosen)]
        if not ((taken[:, :2] < box[2:]) & (taken[:, 2:] > box[:2])).all(axis=1).any():
            boxes[len(chosen)] = box
            chosen.append(i)
    return chosen
