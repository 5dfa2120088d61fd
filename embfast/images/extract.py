"""Extraction of features: images pass through a network in batches, and chosen layers become rows of float32."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from embfast.device.torch import torch_device
from embfast.errors import FormatError
from embfast.files.durable import FilePath
from embfast.images.backbones import Backbone
from embfast.images.features import Batch, Features, FolderFeatures, ScratchFeatures
from embfast.images.pictures import VIEWS, Pictures, Preparation
from embfast.images.pooling import Tapped, dim_of
from embfast.images.progress import ImageProgress, reporting
from embfast.images.trace import trace
from embfast.training.loop import first_interrupt
from embfast.training.settings import check_flag, check_int

try:
    import torch
    from torch import Tensor
except ImportError:
    raise ImportError("networks need torch: pip install embfast[images]") from None


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ERRORS = ("strict", "skip")
COMBINING = ("mean", "stack")


@dataclass(frozen=True)
class Run:
    """How images pass through a network. Apart from views and combine, settings change features only by rounding.

    Settings:
        batch: Images per batch. Memory grows with it.
        precision: "float32", or "bfloat16" or "float16" by autocast. Means are always taken in float32.
        device: Where to run the network: "cpu", "cuda", "cuda:1", or "auto" (CUDA where a device is usable, otherwise
            the CPU; the choice is printed).
        workers: Number of processes that read and prepare images. 0 reads them in the main process, between batches.
        compile: Compile the network by torch.compile, which pays off on long runs.
        errors: "strict" stops at an image that cannot be read; "skip" leaves it out and reports it.
        views: Crops and mirror images made of each image: "one", "flip", "rotations" or "ten", as in Preparation.
        combine: Whether the features of the views are averaged ("mean") or concatenated ("stack").
    """

    batch: int = 32
    precision: str = "float32"
    device: str = "cpu"
    workers: int = 0
    compile: bool = False
    errors: str = "strict"
    views: str = "one"
    combine: str = "mean"

    def check(self) -> None:
        """ValueError if a setting is invalid or the device is missing."""
        check_int("batch", self.batch, 1, 1 << 20)
        check_int("workers", self.workers, 0, 1024)
        check_flag("compile", self.compile)
        for name, among in (
            ("precision", PRECISIONS),
            ("errors", ERRORS),
            ("views", VIEWS),
            ("combine", COMBINING),
        ):
            if getattr(self, name) not in among:
                raise ValueError(f"{name} must be one of {', '.join(among)}, got {getattr(self, name)!r}")
        torch_device(self.device, progress=False)


class _Batches(torch.utils.data.Dataset):
    """Batches of prepared images, from number `first` on; any process may read any batch."""

    def __init__(self, pictures: Pictures, preparation: Preparation, run: Run, first: int) -> None:
        self.pictures, self.preparation, self.run = pictures, preparation, run
        self.together = max(1, run.batch // VIEWS[run.views])
        self.begins = range(first, len(pictures), self.together)

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, b: int) -> tuple[list[int], Tensor | None, list[tuple[int, str]], int]:
        begin = self.begins[b]
        stop = min(begin + self.together, len(self.pictures))
        numbers: list[int] = []
        ready: list[np.ndarray | Tensor] = []
        broken: list[tuple[int, str]] = []
        for i in range(begin, stop):
            try:
                picture = self.pictures.read_ready(i, self.preparation, self.run.views)
            except FormatError as error:
                broken.append((i, str(error)))
                continue
            if ready and picture.shape != ready[0].shape:
                here, there = picture.shape[1:], ready[0].shape[1:]
                broken.append((i, f"{self.pictures.place(i)}: expected shape {there} as the one before, got {here}"))
                continue
            numbers.append(i)
            ready.append(picture)
        return numbers, torch.from_numpy(np.concatenate(ready)) if ready else None, broken, stop


class Extractor:
    """Features of chosen layers of one network, for any number of images; memory grows with the batch alone.

    The network, even one that the caller passed as a module, is moved to the device and to channels_last. Its input has
    the dtype of its weights.

    Attributes:
        points: Where features are taken, in the order of the network. Point i gives the columns first to last - 1 of a
            row, where columns[i] = (first, last).
        dim: Features per image, all views together.
        device: The torch device chosen by run.device; progress=False silences the line that "auto" prints.
    """

    def __init__(
        self,
        backbone: Backbone,
        pictures: Pictures,
        layers: str | int | Sequence[str | int] = "all",
        at: str = "after",
        pool: str = "mean",
        run: Run = Run(),
        progress: ImageProgress = None,
    ) -> None:
        run.check()
        self.backbone, self.run, self.at, self.pool = backbone, run, at, pool
        shape = self._shape_of_input(pictures)
        self.device = torch_device(run.device, progress=progress)
        self.module = backbone.module.to(self.device)
        if all(weights.ndim != 5 for weights in self.module.parameters()):  # channels_last does not fit Conv3d
            self.module.to(memory_format=torch.channels_last)
        floats = (weights.dtype for weights in self.module.parameters() if weights.is_floating_point())
        self.dtype = next(floats, torch.float32)
        self.trace = trace(self.module, torch.zeros(1, *shape, device=self.device, dtype=self.dtype))
        self.points = self.trace.select(layers, at)
        self.tapped = Tapped(self.module, self.points, pool)
        ends = np.cumsum([0, *(dim_of(point, pool) for point in self.points)]).tolist()
        self.columns = list(pairwise(ends))
        self.dim = self.tapped.dim * (VIEWS[run.views] if run.combine == "stack" else 1)
        std = np.array(backbone.preparation.std, np.float32)
        mean = np.array(backbone.preparation.mean, np.float32)
        self._scale = torch.from_numpy(1 / (255 * std)).to(self.device)
        self._shift = torch.from_numpy(-mean / std).to(self.device)

    def _shape_of_input(self, pictures: Pictures) -> tuple[int, ...]:
        """(channels, height, width): that of floats, which come ready for the network, or of the preparation."""
        size = self.backbone.preparation.size
        try:
            first = pictures.read_ready(0, self.backbone.preparation)
        except FormatError:
            if self.run.errors == "strict":
                raise
            return 3, size, size
        return first.shape[1:] if first.dtype == np.float32 else (3, size, size)

    def stream(self, pictures: Pictures, first: int = 0) -> Iterator[Batch]:
        """Features of images first, first + 1, ..., one batch at a time.

        Raises:
            FormatError: an image cannot be read, with errors="strict".
        """
        run = self.run
        loader = torch.utils.data.DataLoader(
            _Batches(pictures, self.backbone.preparation, run, first),
            batch_size=None,
            num_workers=run.workers,
            generator=torch.Generator(),  # seeds of workers come from here, so that torch's global state is unchanged
            pin_memory=self.device.type == "cuda",
        )
        autocast = torch.autocast(self.device.type, PRECISIONS[run.precision], enabled=run.precision != "float32")
        with self.tapped as network:
            network.compiled = run.compile
            compute = torch.compile(network) if run.compile else network
            for numbers, ready, broken, stop in loader:
                if broken and run.errors == "strict":
                    raise FormatError(broken[0][1])
                rows = np.empty((0, self.dim), np.float32)
                if ready is not None:
                    with torch.inference_mode(), autocast:
                        features = compute(self._for_network(ready.to(self.device, non_blocking=True)))
                        features = features.float().unflatten(0, (len(numbers), -1))
                        features = features.mean(1) if run.combine == "mean" else features.flatten(1)
                        rows = features.cpu().numpy()
                    numbers, rows, wrong = self._finite(pictures, numbers, rows)
                    broken += wrong
                yield Batch(numbers, rows, broken, stop)

    def _for_network(self, ready: Tensor) -> Tensor:
        """Standardises uint8 (n, height, width, 3) to the network's input (n, 3, height, width), channels_last."""
        if ready.dtype != torch.uint8:
            return ready.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return torch.addcmul(self._shift, ready.float(), self._scale).permute(0, 3, 1, 2).to(self.dtype)

    def _finite(
        self, pictures: Pictures, numbers: list[int], rows: np.ndarray
    ) -> tuple[list[int], np.ndarray, list[tuple[int, str]]]:
        """Images whose features are finite, their rows, and the others with the reason; an error if errors="strict"."""
        finite = np.isfinite(rows).all(axis=1)
        if finite.all():
            return numbers, rows, []
        why = "expected finite features, got NaN or infinity; the image or the network holds such values"
        wrong = [(numbers[i], f"{pictures.place(numbers[i])}: {why}") for i in np.flatnonzero(~finite).tolist()]
        if self.run.errors == "strict":
            raise FormatError(wrong[0][1])
        return [numbers[i] for i in np.flatnonzero(finite).tolist()], rows[finite], wrong

    def features(self, pictures: Pictures, work: FilePath | None = None, progress: ImageProgress = None) -> Features:
        """Features of all images. A large matrix is memory-mapped.

        Settings:
            work: Folder that keeps the features as they are computed. A run that was stopped or killed resumes from it:
                Ctrl-C loses nothing, a killed process at most 30 seconds. A finished run returns its features at once.
            progress: True for a bar with images per second, False for none, or a callable that gets (done, total).
                Default: a bar if stderr is a terminal.

        Raises:
            ValueError: the folder holds features of other images, layers or weights.
        """
        if work is None:
            made: ScratchFeatures | FolderFeatures = ScratchFeatures(len(pictures), self.dim)
        else:
            made = FolderFeatures(Path(work), self.dim, self.fingerprint(pictures))
        with (
            made as sink,
            first_interrupt() as interrupted,
            reporting(progress, len(pictures), sink.stop) as report,
        ):
            for batch in self.stream(pictures, sink.stop) if sink.stop < len(pictures) else ():
                sink.add(batch)
                report(batch.stop)
                if interrupted():
                    sink.save()
                    raise KeyboardInterrupt
            matrix = sink.finish()
        lost = {i for i, _ in sink.broken}
        keys = [key for i, key in enumerate(pictures.keys) if i not in lost]
        return Features(keys, matrix, {pictures.keys[i]: why for i, why in sink.broken})

    @cached_property
    def weights(self) -> int:
        """CRC-32 of the network's weights."""
        crc = 0
        for tensor in self.module.state_dict().values():
            crc = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), crc)
        return crc

    def fingerprint(self, pictures: Pictures) -> dict[str, Any]:
        """Everything that determines the features: images, layers, weights, preparation and settings."""
        return {
            "pictures": len(pictures),
            "contents": pictures.checksum(),
            "keys": zlib.crc32("\0".join(pictures.keys).encode("utf-8", "surrogatepass")),
            "layers": zlib.crc32(repr(self.points).encode()),
            "dim": self.dim,
            "pool": self.pool,
            "weights": self.weights,
            "preparation": json.loads(json.dumps(asdict(self.backbone.preparation))),
            "views": self.run.views,
            "combine": self.run.combine,
            "precision": self.run.precision,
            "errors": self.run.errors,
        }
