"""Image vectors: one layer of a pretrained network, or all layers as a Full-Network Embedding.

Sources: DeCAF (Donahue et al. 2014, arXiv:1310.1531), CNN features off-the-shelf (Razavian et al. 2014,
arXiv:1403.6382), Full-Network Embedding (Garcia-Gasulla et al. 2017, arXiv:1705.07706).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np

from embfast import kernels
from embfast.files.durable import FilePath
from embfast.files.scratch import scratch_array
from embfast.files.tensors import TensorFile, row_blocks
from embfast.files.ternary import LOWER, UPPER, TernaryMatrix, levels, thresholds
from embfast.images.estimator import CHUNK, ImageEmbedding
from embfast.images.extract import Extractor, Run
from embfast.images.features import Batch
from embfast.images.pictures import Pictures, Preparation
from embfast.images.progress import ImageProgress, reporting
from embfast.training.loop import first_interrupt
from embfast.training.settings import check_flag, check_float, check_int
from embfast.vectors.moments import Moments
from embfast.vectors.vectors import Vectors


class FullNetworkEmbedding(ImageEmbedding):
    """Every layer of a network in one vector of -1, 0 and 1, which say how unusual each feature is.

    1. Features are the spatial mean of every channel of every convolution, and the outputs of every linear layer except
       the classifier.
    2. They are standardised by the mean and standard deviation (ddof 0) of the images given to fit.
    3. Values above `upper` become 1, values below `lower` become -1, all others 0. A constant feature is 0.

    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3))
    >>> images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    >>> embedding = FullNetworkEmbedding(network, preparation=Preparation(8, 8)).fit(images)
    >>> embedding.transform(images).shape, embedding.transform(images).dtype
    ((6, 9), dtype('int8'))
    >>> embedding.embed(images)
    Vectors(6 keys, dim=9)

    transform returns int8. embed returns Vectors that take two bits per feature and are searched by counting bits. fit
    without `work` keeps only three numbers per feature in memory.

    Settings:
        backbone: "efficientnet_lite0", a name that torchvision or timm knows, or a torch module.
        weights: A .safetensors or .pth file of its weights. None takes the published weights.
        preparation: How images are resized, cropped and standardised, a pictures.Preparation. None takes that of the
            network's training.
        layers: "all", "convs", "linears", names (with * and ?), or numbers in the order of the network.
        at: Where a layer is taken: "after" its non-linearity, "before" it (after batch normalisation), or at its own
            "output". A layer that no non-linearity follows directly is taken at its (normalised) output.
        pool: Pooling over the positions of a map: "mean", "max", "gem", "grid" (2 x 2 cells) or "none".
        lower, upper: Thresholds in standard deviations.
        batch: Images per batch. Memory grows with it.
        precision: "float32", "bfloat16" or "float16".
        device: Where to run the network: "cpu", "cuda", "cuda:1", or "auto" (CUDA where a device is usable, otherwise
            the CPU; the choice is printed).
        workers: Number of processes that read images. 0 reads them in the main process.
        compile: Compile the network by torch.compile.
        errors: "strict" stops at an image that cannot be read; "skip" leaves it out.
    Learned:
        mean_, sd_: Mean and standard deviation of the features of the training images, float64 (dim,).
        n_images_: Number of training images.
        layers_: (name, first, last) of each layer: its columns are first to last - 1.
        broken_: Images that the last call could not read, and why.
    Source: Garcia-Gasulla et al. 2017, arXiv:1705.07706.
    """

    def __init__(
        self,
        backbone: Any = "efficientnet_lite0",
        weights: FilePath | None = None,
        preparation: Preparation | dict[str, Any] | None = None,
        layers: str | int | Sequence[str | int] = "all",
        at: str = "after",
        pool: str = "mean",
        lower: float = LOWER,
        upper: float = UPPER,
        batch: int = 32,
        precision: str = "float32",
        device: str = "cpu",
        workers: int = 0,
        compile: bool = False,
        errors: str = "strict",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.preparation = preparation
        self.layers = layers
        self.at = at
        self.pool = pool
        self.lower = lower
        self.upper = upper
        self.batch = batch
        self.precision = precision
        self.device = device
        self.workers = workers
        self.compile = compile
        self.errors = errors

    def _check(self) -> None:
        check_float("lower", self.lower, -1e6, 1e6)
        check_float("upper", self.upper, self.lower, 1e6)

    def _wanted(self) -> str | int | Sequence[str | int]:
        return self.layers

    def _fit(self, pictures: Pictures, extractor: Extractor, work: FilePath | None, progress: ImageProgress) -> None:
        if work is not None:
            super()._fit(pictures, extractor, work, progress)
            return
        moments = Moments(extractor.dim)
        self.broken_ = {}
        for batch in _watched(extractor, pictures, progress):
            moments.add(batch.rows)
            self.broken_.update((pictures.keys[i], why) for i, why in batch.broken)
        self._set_moments(moments)

    def _learn(self, features: np.ndarray) -> None:
        moments = Moments(features.shape[1])
        for _, rows in row_blocks(features, CHUNK):
            moments.add(rows)
        self._set_moments(moments)

    def _set_moments(self, moments: Moments) -> None:
        if moments.n < 2:
            raise ValueError(
                f"expected at least two images to standardise by, got {moments.n}: all features would be 0"
            )
        self.mean_, self.sd_, self.n_images_ = moments.mean, moments.sd, moments.n

    def _thresholds(self) -> tuple[np.ndarray, np.ndarray]:
        return thresholds(self.mean_, self.sd_, self.lower, self.upper)

    def transform(self, images: Any, *, work: FilePath | None = None, progress: ImageProgress = None) -> np.ndarray:
        """One row per image, int8 (n, dim). With errors="skip", unreadable images have no row; broken_ lists them."""
        if work is not None:
            return super().transform(images, work=work, progress=progress)
        pictures, extractor = self._start(images, progress)
        out = scratch_array(len(pictures) * extractor.dim, np.int8).reshape(len(pictures), -1)
        low, high = self._thresholds()
        n, self.broken_ = 0, {}
        for batch in _watched(extractor, pictures, progress):
            out[n : n + len(batch.rows)] = levels(batch.rows, low, high)
            n += len(batch.rows)
            self.broken_.update((pictures.keys[i], why) for i, why in batch.broken)
        return out[:n]

    def embed(self, images: Any, *, work: FilePath | None = None, progress: ImageProgress = None) -> Vectors:
        """Vectors of two bits per feature, keyed by path relative to the folder, name in the tar, or number."""
        if work is not None:
            return super().embed(images, work=work, progress=progress)
        pictures, extractor = self._start(images, progress)
        planes = kernels.bit_planes(len(pictures), extractor.dim)
        low, high = self._thresholds()
        keys: list[str] = []
        self.broken_ = {}
        for batch in _watched(extractor, pictures, progress):
            here = planes[len(keys) : len(keys) + len(batch.rows)]
            if len(batch.rows):
                TernaryMatrix.from_features(batch.rows, low, high, here)
            keys += [pictures.keys[i] for i in batch.numbers]
            self.broken_.update((pictures.keys[i], why) for i, why in batch.broken)
        return Vectors(keys, TernaryMatrix(planes[: len(keys)], extractor.dim))

    def _rows(self, features: np.ndarray) -> np.ndarray:
        return levels(features, *self._thresholds())

    def _matrix(self, features: np.ndarray) -> TernaryMatrix:
        return TernaryMatrix.from_features(features, *self._thresholds())

    def _tensors(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean_, "sd": self.sd_, "images": np.array([self.n_images_])}

    def _restore(self, file: TensorFile) -> None:
        super()._restore(file)
        dim = self.layers_[-1][2]
        self.mean_, self.sd_ = (file.read(name, "F64", (dim,)) for name in ("mean", "sd"))
        self.n_images_ = int(file.read("images", "I64", (1,))[0])


def _watched(extractor: Extractor, pictures: Pictures, progress: ImageProgress) -> Any:
    """Batches of features, with progress; Ctrl-C stops after the current batch."""
    with first_interrupt() as interrupted, reporting(progress, len(pictures)) as report:
        batch: Batch
        for batch in extractor.stream(pictures):
            yield batch
            report(batch.stop)
            if interrupted():
                raise KeyboardInterrupt


class LayerEmbedding(ImageEmbedding):
    """One layer of a network, or several concatenated, as image vectors.

    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3))
    >>> images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    >>> LayerEmbedding(network, layer=0, preparation=Preparation(8, 8)).fit_transform(images).shape
    (6, 4)

    Features pass through a signed power, L2 normalisation, PCA (with whitening) and L2 normalisation again, each only
    if its setting asks for it. DeCAF is l2=False. CNN features off-the-shelf are l2=True with views="ten"; for
    retrieval, they add power=2, or reduce= and whiten=.

    Settings:
        backbone, weights, preparation: As for FullNetworkEmbedding.
        layer: "penultimate", the input of the classifier; a number in the order of the network, negative from its end;
            the name of a layer or of any module (with * and ?); or a list of these, which are concatenated.
        at, pool: As for FullNetworkEmbedding.
        views: Crops and mirror images made of each image: "one", "flip" (the image and its mirror image), "rotations"
            (four quarter turns), "ten" (corners and middle, and their mirror images).
        combine: Whether the features of the views are averaged ("mean") or concatenated ("stack").
        power: Features become sign(x) * |x| ** power. 1 disables it.
        l2: Scale vectors to length 1.
        reduce: Number of principal components to keep. 0 disables PCA.
        whiten: Scale each component to variance 1.
        batch, precision, device, workers, compile, errors: As for FullNetworkEmbedding.
    Learned:
        components_, center_, variances_: With reduce, the PCA: float32 (reduce, dim), (dim,) and (reduce,).
        layers_, broken_: As for FullNetworkEmbedding.
    """

    def __init__(
        self,
        backbone: Any = "efficientnet_lite0",
        weights: FilePath | None = None,
        preparation: Preparation | dict[str, Any] | None = None,
        layer: str | int | Sequence[str | int] = "penultimate",
        at: str = "after",
        pool: str = "mean",
        views: str = "one",
        combine: str = "mean",
        power: float = 1.0,
        l2: bool = True,
        reduce: int = 0,
        whiten: bool = False,
        batch: int = 32,
        precision: str = "float32",
        device: str = "cpu",
        workers: int = 0,
        compile: bool = False,
        errors: str = "strict",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.preparation = preparation
        self.layer = layer
        self.at = at
        self.pool = pool
        self.views = views
        self.combine = combine
        self.power = power
        self.l2 = l2
        self.reduce = reduce
        self.whiten = whiten
        self.batch = batch
        self.precision = precision
        self.device = device
        self.workers = workers
        self.compile = compile
        self.errors = errors

    def _check(self) -> None:
        check_float("power", self.power, 0, 16, above=True)
        check_flag("l2", self.l2)
        check_flag("whiten", self.whiten)
        check_int("reduce", self.reduce, 0, 1 << 20)
        if self.whiten and not self.reduce:
            raise ValueError("whiten needs reduce, the number of principal components to keep")

    def _wanted(self) -> str | int | Sequence[str | int]:
        return self.layer

    def _pass(self) -> Run:
        common = super()._pass()
        return Run(**{**asdict(common), "views": self.views, "combine": self.combine})

    def _fit(self, pictures: Pictures, extractor: Extractor, work: FilePath | None, progress: ImageProgress) -> None:
        self.broken_ = {}
        if self.reduce:
            super()._fit(pictures, extractor, work, progress)  # without PCA, nothing is learned from the images

    def _learn(self, features: np.ndarray) -> None:
        if not self.reduce:
            return
        try:
            from sklearn.decomposition import IncrementalPCA
        except ImportError:
            raise ImportError("reduce needs scikit-learn: pip install embfast[images]") from None
        n, dim = features.shape
        if self.reduce > min(n, dim):
            raise ValueError(
                f"reduce must be at most {min(n, dim)} with {n} images of {dim} features, got {self.reduce}"
            )
        pca = IncrementalPCA(self.reduce)
        step = min(n, max(self.reduce, 5 * self.reduce, CHUNK // dim))
        edges = [
            *range(0, n - step + 1, step),
            n,
        ]  # no chunk is smaller than reduce
        for lo, hi in pairwise(edges):
            pca.partial_fit(self._scaled(features[lo:hi]))
        self.components_ = pca.components_.astype(np.float32)
        self.center_ = pca.mean_.astype(np.float32)
        self.variances_ = pca.explained_variance_.astype(np.float32)

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        rows = np.array(features, dtype=np.float32)
        if self.power != 1:
            rows = np.sign(rows) * np.abs(rows) ** np.float32(self.power)
        return _unit(rows) if self.l2 else rows

    def _rows(self, features: np.ndarray) -> np.ndarray:
        rows = self._scaled(features)
        self._check_learned()
        if not self.reduce:
            return rows
        rows = (rows - self.center_) @ self.components_.T
        if self.whiten:
            rows /= np.sqrt(np.maximum(self.variances_, np.float32(1e-12)))
        return _unit(rows) if self.l2 else rows

    def _matrix(self, features: np.ndarray) -> np.ndarray:
        return self._transformed(features)

    def _check_learned(self) -> None:
        learned = len(self.components_) if hasattr(self, "components_") else 0
        if self.reduce and self.reduce != learned:
            raise ValueError(f"was fitted with reduce={learned}, but reduce is now {self.reduce}: fit again")

    def _tensors(self) -> dict[str, np.ndarray]:
        if not self.reduce:
            return {}
        return {"components": self.components_, "center": self.center_, "variances": self.variances_}

    def _restore(self, file: TensorFile) -> None:
        super()._restore(file)
        if self.reduce:
            self.center_ = file.read("center", "F32")
            self.components_ = file.read("components", "F32", (self.reduce, len(self.center_)))
            self.variances_ = file.read("variances", "F32", (self.reduce,))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-30))
