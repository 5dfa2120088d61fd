"""What a network computes on the way to its answer: found once, then taken from every batch as it passes.

A place is found by running one black picture and watching every call; the features of a layer are the spatial mean (or
maximum, ...) of its output, taken the moment it is there, so that no map of activations outlives its layer.
"""

from __future__ import annotations

import json
import os
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
    """How pictures are sent through a network; none of it changes what is computed but for rounding, views apart.

    Settings:
        batch: pictures at once; what memory grows with.
        precision: "float32", or "bfloat16" or "float16" by autocast; means are taken in float32 whichever it is.
        device: "cpu", "cuda", "cuda:1", ...; by default CUDA where there is one.
        workers: processes that read and prepare pictures meanwhile; 0 does it in between.
        compile: let torch.compile have the network; pays on long runs.
        errors: "strict" stops at a picture that cannot be read, "skip" leaves it out and reports it.
        views, combine: pictures made of each, as Preparation has them, and whether their features are averaged ("mean")
            or put one after the other ("stack").
    """

    batch: int = 32
    precision: str = "float32"
    device: str | None = None
    workers: int = 0
    compile: bool = False
    errors: str = "strict"
    views: str = "one"
    combine: str = "mean"

    def check(self) -> None:
        """ValueError unless all settings make sense."""
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
        torch_device(self.device)

    @property
    def place(self) -> torch.device:
        """The device, chosen where none was named."""
        return torch_device(self.device)


class _Batches(torch.utils.data.Dataset):
    """Prepared pictures of first, first + 1, ... in batches, for any process to read."""

    def __init__(self, pictures: Pictures, preparation: Preparation, run: Run, first: int) -> None:
        self.pictures, self.preparation, self.run = pictures, preparation, run
        self.together = max(1, run.batch // VIEWS[run.views])
        self.begins = range(first, len(pictures), self.together)

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, b: int) -> tuple[list[int], Tensor | None, list[tuple[int, str]], int]:
        begin = self.begins[b]
        stop = min(begin + self.together, len(self.pictures))
        numbers, ready, broken = [], [], []
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
    """Features of chosen layers of one network, for any number of pictures; memory grows with the batch alone.

    The network is moved to the device and to channels_last; a module of the caller's too. It is given pictures in the
    type of its weights.

    Attributes:
        points: where features are taken, in order; point i gives columns[i] = (first, last) of a row.
        dim: features of a picture, all views together.
    """

    def __init__(
        self,
        backbone: Backbone,
        pictures: Pictures,
        layers: str | int | Sequence[str | int] = "all",
        at: str = "after",
        pool: str = "mean",
        run: Run = Run(),
    ) -> None:
        run.check()
        self.backbone, self.run, self.at, self.pool = backbone, run, at, pool
        size = backbone.preparation.size
        shape = (3, size, size)
        try:
            first = pictures.read_ready(0, backbone.preparation)
            shape = first.shape[1:] if first.dtype == np.float32 else shape
        except FormatError:
            if run.errors == "strict":
                raise
        self.module = backbone.module.to(run.place)
        if all(weights.ndim != 5 for weights in self.module.parameters()):  # of volumes
            self.module.to(memory_format=torch.channels_last)
        floats = (weights.dtype for weights in self.module.parameters() if weights.is_floating_point())
        self.dtype = next(floats, torch.float32)
        self.trace = trace(self.module, torch.zeros(1, *shape, device=run.place, dtype=self.dtype))
        self.points = self.trace.select(layers, at)
        self.tapped = Tapped(self.module, self.points, pool)
        ends = np.cumsum([0, *(dim_of(point, pool) for point in self.points)]).tolist()
        self.columns = list(pairwise(ends))
        self.dim = self.tapped.dim * (VIEWS[run.views] if run.combine == "stack" else 1)
        std = np.array(backbone.preparation.std, np.float32)
        mean = np.array(backbone.preparation.mean, np.float32)
        self._scale = torch.from_numpy(1 / (255 * std)).to(run.place)
        self._shift = torch.from_numpy(-mean / std).to(run.place)

    def stream(self, pictures: Pictures, first: int = 0) -> Iterator[Batch]:
        """Features of pictures first, first + 1, ..., a batch at a time.

        Raises:
            FormatError: a picture cannot be read, with errors="strict".
        """
        run, place = self.run, self.run.place
        loader = torch.utils.data.DataLoader(
            _Batches(pictures, self.backbone.preparation, run, first),
            batch_size=None,
            num_workers=run.workers,
            generator=torch.Generator(),  # its seeds are drawn from there, and not from torch's own
            pin_memory=place.type == "cuda",
        )
        autocast = torch.autocast(place.type, PRECISIONS[run.precision], enabled=run.precision != "float32")
        with self.tapped as network:
            network.compiled = run.compile
            compute = torch.compile(network) if run.compile else network
            for numbers, ready, broken, stop in loader:
                if broken and run.errors == "strict":
                    raise FormatError(broken[0][1])
                rows = np.empty((0, self.dim), np.float32)
                if ready is not None:
                    with torch.inference_mode(), autocast:
                        features = compute(self._for_network(ready.to(place, non_blocking=True)))
                        features = features.float().unflatten(0, (len(numbers), -1))
                        features = features.mean(1) if run.combine == "mean" else features.flatten(1)
                        rows = features.cpu().numpy()
                    finite = np.isfinite(rows).all(axis=1)
                    if not finite.all():
                        wrong = [numbers[i] for i in np.flatnonzero(~finite).tolist()]
                        why = (
                            "expected features that are finite, got NaN or infinity: of the picture, or of the network"
                        )
                        broken += [(i, f"{pictures.place(i)}: {why}") for i in wrong]
                        if run.errors == "strict":
                            raise FormatError(broken[-len(wrong)][1])
                        numbers, rows = [i for i in numbers if i not in wrong], rows[finite]
                yield Batch(numbers, rows, broken, stop)

    def _for_network(self, ready: Tensor) -> Tensor:
        """uint8 (n, height, width, 3) as the network was trained to read them, channels_last in memory."""
        if ready.dtype != torch.uint8:
            return ready.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return torch.addcmul(self._shift, ready.float(), self._scale).permute(0, 3, 1, 2).to(self.dtype)

    def features(
        self, pictures: Pictures, work: str | os.PathLike[str] | None = None, progress: ImageProgress = None
    ) -> Features:
        """Features of all pictures; large ones lie in a file that is mapped, not in memory.

        Settings:
            work: a folder that keeps features as they come, and from which a run that was stopped or killed goes on:
                Ctrl-C loses nothing, a killed process at most half a minute. Done once, it answers again at once.
            progress: True or False for a bar with pictures per second, or a callable that gets (done, in all); by
                default a bar when stderr is a terminal.

        Raises:
            ValueError: the folder has features of other pictures, layers or weights.
        """
        if work is None:
            made = ScratchFeatures(len(pictures), self.dim)
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
        """A checksum of the network's weights."""
        crc = 0
        for tensor in self.module.state_dict().values():
            crc = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), crc)
        return crc

    def fingerprint(self, pictures: Pictures) -> dict[str, Any]:
        """What features depend on: pictures, layers, weights, preparation."""
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
