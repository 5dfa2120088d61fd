"""Transfer studies: accuracy by layer, number of training images and dimension, and retrieval by distance.

Sources: layer by layer, Yosinski et al. 2014 (arXiv:1411.1792) and Azizpour et al. 2014 (arXiv:1406.5774); a linear SVM
on features, Razavian et al. 2014 (arXiv:1403.6382).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from embfast.files.durable import FilePath
from embfast.images.backbones import load_backbone
from embfast.images.extract import Extractor, Run
from embfast.images.pictures import Preparation, open_pictures
from embfast.images.progress import ImageProgress
from embfast.training.settings import check_float, check_int

try:
    from torch import nn
except ImportError:
    raise ImportError("transfer studies need torch: pip install embfast[images]") from None
try:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import pairwise_distances
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.svm import LinearSVC
except ImportError:
    raise ImportError("transfer studies need scikit-learn: pip install embfast[images]") from None

SCALING = ("l2", "standard", "none")
CLASSIFIERS = ("svm", "logistic")
C_TRIED = tuple(10.0**power for power in range(-3, 4))

_CHUNK = 1 << 22  # distances in memory at once: 32 MB in float64

Split = tuple[np.ndarray, np.ndarray]


# ---- scores with intervals ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """One figure, measured on several splits or with several seeds.

    >>> print(Score((0.5, 0.6, 0.7)))
    0.600 ± 0.248 (3)
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return math.fsum(self.values) / len(self.values)

    @property
    def interval(self) -> float:
        """Half the width of the 95% confidence interval of the mean, by Student's t; infinite for a single value.

        Splits of one data set share images, so the interval covers the choice of the split, not of the data set.
        """
        n = len(self.values)
        if n < 2:
            return math.inf
        from scipy.stats import t  # scikit-learn depends on scipy

        variance = math.fsum((value - self.mean) ** 2 for value in self.values) / (n - 1)
        return float(t.ppf(0.975, n - 1)) * math.sqrt(variance / n)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.interval:.3f} ({len(self.values)})"


def few_shot_splits(
    labels: Sequence[Any], per_class: int, seeds: Iterable[int] = range(5), test_per_class: int | None = None
) -> Iterator[Split]:
    """One split per seed: per_class training images of each class, and the others, or test_per_class, to test on.

    Yields ascending row numbers, int64.

    Raises:
        ValueError: a class has no image left to test on.
    """
    check_int("per_class", per_class, 1, 1 << 40)
    codes, names = _codes(labels)
    for seed in seeds:
        random = np.random.default_rng(seed)
        train, test = [], []
        for code, name in enumerate(names):
            rows = random.permutation(np.flatnonzero(codes == code))
            rest = len(rows) - per_class if test_per_class is None else test_per_class
            if rest < 1 or len(rows) < per_class + rest:
                raise ValueError(
                    f"class {name!r}: expected {per_class} images to train on and {max(rest, 1)} to test on, "
                    f"got {len(rows)}"
                )
            train.append(rows[:per_class])
            test.append(rows[per_class : per_class + rest])
        yield np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def _codes(labels: Sequence[Any]) -> tuple[np.ndarray, list[Any]]:
    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"expected labels of at least 2 classes, got {len(names)}")
    return codes.reshape(-1), names.tolist()


# ---- classification -----------------------------------------------------------------------------------------------


def classify(
    train: np.ndarray,
    train_labels: Sequence[Any] | np.ndarray,
    test: np.ndarray,
    test_labels: Sequence[Any] | np.ndarray,
    *,
    classifier: str = "svm",
    scaling: str = "l2",
    C: float | None = 1.0,
    seed: int = 0,
) -> float:
    """Test accuracy of a linear classifier.

    Settings:
        train, test: Features, (n, dim), of any numeric dtype.
        classifier: "svm" (LinearSVC) or "logistic".
        scaling: "l2" scales each row to length 1; "standard" uses mean and standard deviation of train; "none" suits
            rows of -1, 0 and 1.
        C: Inverse regularisation strength. None chooses among 0.001 to 1000 by cross-validation on train.
        seed: Seed of the classifier and of the folds.
    """
    if classifier not in CLASSIFIERS or scaling not in SCALING:
        raise ValueError(
            f"classifier must be one of {', '.join(CLASSIFIERS)} and scaling one of {', '.join(SCALING)}, got "
            f"{classifier!r} and {scaling!r}"
        )
    if C is not None:
        check_float("C", C, 0, math.inf, above=True)
    rows, others = _scaled(train, test, scaling)
    dual = rows.shape[0] <= rows.shape[1]  # there, the primal solver may run for minutes without converging
    rows, others = _rotated(rows, others)
    made = (
        LinearSVC(C=1.0 if C is None else C, dual=dual, max_iter=20_000, random_state=seed)
        if classifier == "svm"
        else LogisticRegression(C=1.0 if C is None else C, max_iter=5_000)
    )
    if C is None:
        smallest = int(np.unique(np.asarray(train_labels), return_counts=True)[1].min())
        folds = StratifiedKFold(max(2, min(5, smallest)), shuffle=True, random_state=seed)
        made = GridSearchCV(made, {"C": C_TRIED}, cv=folds)
    return float(made.fit(rows, np.asarray(train_labels)).score(others, np.asarray(test_labels)))


def _scaled(train: np.ndarray, test: np.ndarray, scaling: str) -> tuple[np.ndarray, np.ndarray]:
    train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    if scaling == "none":
        return train, test
    if scaling == "l2":
        train, test = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30) for rows in (train, test))
        return train, test
    mean, sd = train.mean(axis=0), train.std(axis=0)
    with np.errstate(divide="ignore"):
        scale = np.where(sd > 1e-12 * np.maximum(np.abs(mean), 1e-300), 1 / sd, 0)
    return (train - mean) * scale, (test - mean) * scale


def _rotated(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows rotated into fewer dimensions if dim exceeds the number of rows, with the same linear classifier.

    The weights of a linear classifier with an L2 penalty lie in the span of the training rows. In an orthonormal basis
    of the span, the classifier is the same and training is faster.
    """
    if train.shape[1] <= train.shape[0]:
        return train, test
    squares, turn = np.linalg.eigh(train @ train.T)
    kept = squares > squares[-1] * 1e-12
    if not kept.any():  # all rows are 0
        return train[:, :1], test[:, :1]
    basis = turn[:, kept] / np.sqrt(squares[kept])
    return turn[:, kept] * np.sqrt(squares[kept]), (test @ train.T) @ basis


def scores(rows: np.ndarray, labels: Sequence[Any] | np.ndarray, splits: Iterable[Split], **options: Any) -> Score:
    """Runs classify on each split of one matrix, with the options of classify."""
    labels = np.asarray(labels)
    found = [classify(rows[train], labels[train], rows[test], labels[test], **options) for train, test in splits]
    if not found:
        raise ValueError("expected at least one split, got none; an iterator yields its splits only once")
    return Score(tuple(found))


# ---- layers -------------------------------------------------------------------------------------------------------


class LayerScore(NamedTuple):
    """Accuracy of a linear classifier on one layer: the layer's name, number of features, and accuracy."""

    layer: str
    dim: int
    accuracy: Score


def sweep_layers(
    images: Any,
    labels: Sequence[Any],
    backbone: str | nn.Module = "efficientnet_lite0",
    layers: str | int | Sequence[str | int] = "all",
    *,
    at: str = "after",
    pool: str = "mean",
    splits: Iterable[Split] | None = None,
    weights: FilePath | None = None,
    preparation: Preparation | None = None,
    run: Run | None = None,
    work: FilePath | None = None,
    progress: ImageProgress = None,
    **options: Any,
) -> list[LayerScore]:
    """Scores every layer by a linear classifier, in one pass of the images through the network.

    Settings:
        backbone, layers, at, pool, weights, preparation: As for FullNetworkEmbedding.
        splits: Pairs of row numbers to train and test on, such as few_shot_splits. Default: five folds.
        run: Batch size, device, workers and so on, an extract.Run.
        work: Folder that keeps the features, as in FullNetworkEmbedding.fit.
        options: Options of classify.
    """
    pictures = open_pictures(images)
    if len(labels) != len(pictures):
        raise ValueError(f"expected a label for each of {len(pictures)} images, got {len(labels)}")
    codes, _ = _codes(labels)
    run = run or Run()
    if run.errors == "skip":
        raise ValueError('labels are matched to images by position, which needs errors="strict"')
    extractor = Extractor(load_backbone(backbone, weights, preparation), pictures, layers, at, pool, run, progress)
    features = extractor.features(pictures, work, progress).matrix
    if splits is None:
        splits = StratifiedKFold(5, shuffle=True, random_state=0).split(codes, codes)
    splits = list(splits)
    return [
        LayerScore(point.name, last - first, scores(features[:, first:last], codes, splits, **options))
        for point, (first, last) in zip(extractor.points, extractor.columns, strict=True)
    ]


def sweep_dims(
    train: np.ndarray,
    train_labels: Sequence[Any] | np.ndarray,
    test: np.ndarray,
    test_labels: Sequence[Any] | np.ndarray,
    dims: Iterable[int],
    *,
    whiten: bool = False,
    **options: Any,
) -> dict[int, float]:
    """Accuracy with the first `dim` principal components of train, for each dim; PCA is computed once."""
    from sklearn.decomposition import PCA

    dims = sorted(set(dims))
    most = min(np.shape(train))
    if not dims or dims[0] < 1 or dims[-1] > most:
        raise ValueError(f"dims must be from 1 to {most}, got {dims}")
    scaling = options.pop("scaling", "l2")
    train, test = _scaled(train, test, scaling)
    pca = PCA(dims[-1], whiten=whiten, svd_solver="full").fit(train)
    train, test = pca.transform(train), pca.transform(test)
    return {
        dim: classify(train[:, :dim], train_labels, test[:, :dim], test_labels, scaling="none", **options)
        for dim in dims
    }


# ---- neighbours ---------------------------------------------------------------------------------------------------


def retrieval_by_labels(
    rows: np.ndarray, labels: Sequence[Any], metrics: Iterable[str] = ("cosine", "euclidean"), queries: Any = None
) -> dict[str, float]:
    """Mean average precision of retrieving the images with a query's label, under each distance.

    Rows at equal distance are ranked by row number. Keeps 32 MB of distances in memory at a time. For recall between
    images and captions, see evaluate.retrieval.

    Settings:
        metrics: Names of scikit-learn's pairwise distances: "cosine", "euclidean", "manhattan", "hamming", ...
        queries: Row numbers of the queries. None takes all rows. A query whose label no other row has is left out.

    Raises:
        ValueError: no query has another row with its label.
    """
    codes, _ = _codes(labels)
    rows = np.asarray(rows)
    rows = rows if rows.dtype.kind == "f" else rows.astype(np.float32)
    asking = np.arange(len(rows)) if queries is None else np.asarray(queries)
    asking = asking[np.bincount(codes)[codes[asking]] > 1]
    if not len(asking):
        raise ValueError("no query has another row with its label")
    found = {}
    for metric in metrics:
        precisions = []
        step = max(1, _CHUNK // len(rows))
        for lo in range(0, len(asking), step):
            part = asking[lo : lo + step]
            distances = pairwise_distances(rows[part], rows, metric=metric)
            distances[np.arange(len(part)), part] = np.inf  # the query itself comes last and is cut off
            order = np.argsort(distances, axis=1, kind="stable")[:, :-1]
            relevant = codes[order] == codes[part][:, None]
            at_rank = np.cumsum(relevant, axis=1) / np.arange(1, order.shape[1] + 1)
            precisions += (np.where(relevant, at_rank, 0).sum(axis=1) / relevant.sum(axis=1)).tolist()
        found[metric] = math.fsum(precisions) / len(precisions)
    return found


def nearest_neighbours(
    train: np.ndarray,
    train_labels: Sequence[Any] | np.ndarray,
    test: np.ndarray,
    test_labels: Sequence[Any] | np.ndarray,
    *,
    k: int = 5,
    metric: str = "cosine",
) -> float:
    """Test accuracy of a majority vote among the k nearest training rows."""
    from sklearn.neighbors import KNeighborsClassifier

    check_int("k", k, 1, len(train))
    voting = KNeighborsClassifier(k, metric=metric).fit(np.asarray(train, np.float32), np.asarray(train_labels))
    return float(voting.score(np.asarray(test, np.float32), np.asarray(test_labels)))


# ---- fine-tuning --------------------------------------------------------------------------------------------------
