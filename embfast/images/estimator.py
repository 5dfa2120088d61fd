"""The base class of image embeddings: scikit-learn's methods, the network, and model files."""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from embfast.errors import FormatError
from embfast.files.durable import FilePath
from embfast.files.scratch import scratch_array
from embfast.files.tensors import TensorFile, row_blocks
from embfast.images.backbones import Backbone, load_backbone
from embfast.images.extract import Extractor, Run
from embfast.images.features import Features
from embfast.images.pictures import Pictures, Preparation, open_pictures
from embfast.images.progress import ImageProgress
from embfast.training.estimator import Estimator
from embfast.training.model_file import write_model
from embfast.training.progress import Progress
from embfast.training.settings import plain
from embfast.vectors.vectors import Vectors

CHUNK = 1 << 22  # features processed at once: 16 MB


_Embedding = TypeVar("_Embedding", bound="ImageEmbedding")


class ImageEmbedding(Estimator):
    """Base class of LayerEmbedding and FullNetworkEmbedding: features of chosen layers of one network.

    Learned:
        layers_: (name, first, last) of each layer: its columns of an image's features are first to last - 1.
        broken_: Images that the last call could not read, with errors="skip", and why.
    """

    backbone: Any
    weights: FilePath | None
    preparation: Preparation | dict[str, Any] | None
    at: str
    pool: str
    batch: int
    precision: str
    device: str
    workers: int
    compile: bool
    errors: str
    layers_: list[tuple[str, int, int]]
    broken_: dict[str, str]

    words_: list[str] = []
    counts_ = np.empty(0, np.int64)
    loss_: list[float] = []
    _progress = Progress()
    _fingerprint: dict[str, Any] | None = None
    _loaded: tuple[tuple[Any, Any, Any], Backbone] | None = None

    # ---- defined by each class ------------------------------------------------------------------------------------

    @abstractmethod
    def _check(self) -> None:
        """ValueError if a setting is invalid."""

    @abstractmethod
    def _wanted(self) -> str | int | Sequence[str | int]:
        """The layers to take, for Trace.select."""

    @abstractmethod
    def _learn(self, features: np.ndarray) -> None:
        """Learns from the features of all training images, (n, dim)."""

    @abstractmethod
    def _rows(self, features: np.ndarray) -> np.ndarray:
        """Transforms a chunk of features."""

    @abstractmethod
    def _matrix(self, features: np.ndarray) -> Any:
        """Transforms all features to the matrix of Vectors."""

    def _pass(self) -> Run:
        return Run(self.batch, self.precision, self.device, self.workers, self.compile, self.errors)

    # ---- scikit-learn's methods -----------------------------------------------------------------------------------

    def fit(
        self: _Embedding, images: Any, y: Any = None, *, work: FilePath | None = None, progress: ImageProgress = None
    ) -> _Embedding:
        """Learns from the training images and returns self.

        Settings:
            images: A folder, files, tars, arrays or a data set; see pictures.open_pictures.
            y: Ignored; scikit-learn's pipelines pass it.
            work: Folder that keeps the features. A stopped run resumes from it, and embed and transform of the same
                images with the same folder read their features from it.
            progress: True or False for a bar or none, or a callable that gets (done, total).

        Raises:
            FormatError: an image cannot be read, with errors="strict".
            ValueError: a setting is invalid, there are no images, or the folder holds other features.
            ImportError: torch, Pillow or the library of the backbone is missing; the message says what to install.
        """
        pictures, extractor = self._start(images, progress, fitting=True)
        self._fit(pictures, extractor, work, progress)
        self._accept(extractor)
        return self

    def transform(self, images: Any, *, work: FilePath | None = None, progress: ImageProgress = None) -> np.ndarray:
        """One row per image. With errors="skip", images that cannot be read have no row; broken_ lists them."""
        pictures, extractor = self._start(images, progress)
        return self._transformed(self._features(pictures, extractor, work, progress).matrix)

    def fit_transform(
        self, images: Any, y: Any = None, *, work: FilePath | None = None, progress: ImageProgress = None
    ) -> np.ndarray:
        """Fits to the images and transforms them in one pass through the network."""
        return self._transformed(self._fit_features(images, work, progress).matrix)

    def embed(self, images: Any, *, work: FilePath | None = None, progress: ImageProgress = None) -> Vectors:
        """Vectors of the images, keyed by path relative to the folder, name in the tar, or number."""
        pictures, extractor = self._start(images, progress)
        features = self._features(pictures, extractor, work, progress)
        return Vectors(features.keys, self._matrix(features.matrix))

    def fit_embed(self, images: Any, *, work: FilePath | None = None, progress: ImageProgress = None) -> Vectors:
        """Fits to the images and embeds them in one pass through the network."""
        features = self._fit_features(images, work, progress)
        return Vectors(features.keys, self._matrix(features.matrix))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "layers_")

    def _check_fitted(self) -> None:
        if not hasattr(self, "layers_"):
            raise ValueError(f"this {type(self).__name__} is not trained yet: call fit first")

    # ---- running --------------------------------------------------------------------------------------------------

    def network(self) -> Backbone:
        """The network, its name and its preparation of images; loaded at the first call."""
        asked = (self.backbone, self.weights, self.preparation)
        if self._loaded is None or any(was is not now for was, now in zip(self._loaded[0], asked, strict=True)):
            preparation = self.preparation
            if isinstance(preparation, dict):
                fields: dict[str, Any] = {
                    name: tuple(value) if isinstance(value, list) else value for name, value in preparation.items()
                }
                preparation = Preparation(**fields)
            if self.backbone is None:
                raise ValueError(
                    "the file does not hold the network, a torch module: pass it as load(path, backbone=...)"
                )
            self._loaded = asked, load_backbone(self.backbone, self.weights, preparation)
        return self._loaded[1]

    def _start(self, images: Any, progress: ImageProgress, fitting: bool = False) -> tuple[Pictures, Extractor]:
        if not fitting:
            self._check_fitted()
        self._check()
        self._pass().check()
        pictures = open_pictures(images)
        extractor = Extractor(self.network(), pictures, self._wanted(), self.at, self.pool, self._pass(), progress)
        if fitting:
            return pictures, extractor
        layers = _columns(extractor)
        if layers != self.layers_:
            raise ValueError(
                f"was fitted to {len(self.layers_)} layers with {self.layers_[-1][2]} features per image, but the "
                f"network now gives {len(layers)} with {layers[-1][2]}: network, settings or image size have changed"
            )
        now = self._of_features(extractor)
        changed = [name for name in now if (self._fingerprint or {}).get(name) != now[name]]
        if changed:
            raise ValueError(f"was fitted to the same network with other {', '.join(changed)}; fit again")
        return pictures, extractor

    def _accept(self, extractor: Extractor) -> None:
        self.layers_, self._fingerprint = _columns(extractor), self._of_features(extractor)

    def _of_features(self, extractor: Extractor) -> dict[str, Any]:
        """Everything but the layers that determines the features."""
        run = extractor.run
        preparation = plain(asdict(extractor.backbone.preparation))
        given = {"at": self.at, "pool": self.pool, "views": run.views, "combine": run.combine}
        return {"weights": extractor.weights, **given, "preparation": preparation}

    def _features(
        self, pictures: Pictures, extractor: Extractor, work: FilePath | None, progress: ImageProgress
    ) -> Features:
        features = extractor.features(pictures, work, progress)
        self.broken_ = features.broken
        return features

    def _fit_features(self, images: Any, work: FilePath | None, progress: ImageProgress) -> Features:
        pictures, extractor = self._start(images, progress, fitting=True)
        features = self._features(pictures, extractor, work, progress)
        self._learn(_not_empty(features.matrix))
        self._accept(extractor)
        return features

    def _fit(self, pictures: Pictures, extractor: Extractor, work: FilePath | None, progress: ImageProgress) -> None:
        features = self._features(pictures, extractor, work, progress)
        self._learn(_not_empty(features.matrix))

    def _transformed(self, features: np.ndarray) -> np.ndarray:
        out = None
        for lo, rows in row_blocks(features, CHUNK):
            made = self._rows(rows)
            if out is None:
                out = scratch_array(len(features) * made.shape[1], made.dtype.type).reshape(len(features), -1)
            out[lo : lo + len(rows)] = made
        return self._rows(features) if out is None else out

    # ---- files ----------------------------------------------------------------------------------------------------

    def save(self, path: FilePath) -> None:
        """Writes the settings and what was learned, without the network: load it by its name, or pass a module to load.

        Raises:
            ValueError: the model is not trained yet, or reduce has changed since.
        """
        self._check_fitted()
        self._check_learned()
        saved = copy.copy(self)
        saved.backbone = self.backbone if isinstance(self.backbone, str) else None
        saved.weights = None if self.weights is None else os.fspath(self.weights)
        if isinstance(self.preparation, Preparation):
            saved.preparation = asdict(self.preparation)
        saved._fingerprint = {**(self._fingerprint or {}), "layers": self.layers_}
        write_model(path, saved)

    @classmethod
    def load(cls: type[_Embedding], path: FilePath, backbone: Any = None) -> _Embedding:
        """Reads a model that save wrote. A model whose backbone was a torch module needs it as `backbone`.

        Raises:
            FileNotFoundError: the file does not exist.
            FormatError: the file is truncated or damaged, or holds another class.
        """
        model = super().load(path)
        if backbone is not None:
            model.backbone = backbone
        return model

    def _restore(self, file: TensorFile) -> None:
        found = dict(self._fingerprint or {})
        try:
            self.layers_ = [(str(name), int(first), int(last)) for name, first, last in found.pop("layers")]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{file.path}: expected the layers of an image embedding: {error!r}") from None
        self._fingerprint = found


def _columns(extractor: Extractor) -> list[tuple[str, int, int]]:
    return [(point.name, *columns) for point, columns in zip(extractor.points, extractor.columns, strict=True)]


def _not_empty(features: np.ndarray) -> np.ndarray:
    if not len(features):
        raise ValueError("expected at least one image that can be read, got none")
    return features
