"""Fine-tuning: networks that keep their first layers, training on labelled images, and prediction.

Source: Yosinski et al. 2014, arXiv:1411.1792.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from embfast.device.torch import torch_device
from embfast.images.pictures import Pictures, Preparation, open_pictures
from embfast.images.trace import in_mode, tensors_of, trace
from embfast.training.settings import check_float, check_int

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise ImportError("fine-tuning needs torch: pip install embfast[images]") from None


class Transferred(nn.Module):
    """A network that keeps the first n layers of a trained network and reinitialises the others.

    It is called AnB if the kept layers are frozen, AnB+ if they learn too. Frozen layers get no gradient, and their
    batch normalisation stays in eval mode even after train(); otherwise its running means would follow the new images.

    Settings:
        module: The trained network. It is copied, not changed.
        n: Number of layers to keep, counted in the order of the network as Trace.layers has them.
        classes: Number of outputs of a new classifier. None keeps the number of outputs.
        frozen: True for AnB, False for AnB+.
        example: Shape of an image, (channels, height, width).
        seed: Seed of the new weights.
    Source: Yosinski et al. 2014, arXiv:1411.1792.
    """

    def __init__(
        self,
        module: nn.Module,
        n: int,
        classes: int | None = None,
        *,
        frozen: bool = True,
        example: tuple[int, int, int] = (3, 224, 224),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        weights = next(self.module.parameters())
        found = trace(self.module, torch.zeros(1, *example, device=weights.device, dtype=weights.dtype))
        layers = found.layers
        check_int("n", n, 0, len(layers))
        names = list(found.points)
        end = names.index(layers[n].output.name) if n < len(layers) else len(names)
        parts = dict(self.module.named_modules())
        called = list(dict.fromkeys(name.partition("#")[0].partition(":")[0] for name in names))
        kept = {name.partition("#")[0].partition(":")[0] for name in names[:end]}
        units = [name for name, part in parts.items() if _is_unit(name, part, called)]
        self.kept = [name for name in units if _first_of(name, called) in kept]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in units:
                reset = getattr(parts[name], "reset_parameters", getattr(parts[name], "_reset_parameters", None))
                if name not in self.kept and reset is not None:
                    reset()
            if classes is not None:
                self._new_classifier(layers[-1], classes, parts)
        self.frozen = [name for name in self.kept if frozen]
        for name in self.frozen:
            for weights in parts[name].parameters(recurse=False):
                weights.requires_grad_(False)
        self.train()

    def _new_classifier(self, last: Any, classes: int, parts: dict[str, nn.Module]) -> None:
        name = last.output.name
        old = parts.get(name)
        if not last.classifies or not isinstance(old, nn.Linear):
            raise ValueError(f"expected a network that ends in a linear layer, got one that ends in {name}")
        parent, _, own = name.rpartition(".")
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None).to(old.weight)
        setattr(parts[parent] if parent else self.module, own, new)
        self.kept = [kept for kept in self.kept if kept != name]

    def train(self, mode: bool = True) -> Transferred:
        """Sets train or eval mode, except for frozen layers, which stay in eval mode."""
        super().train(mode)
        parts = dict(self.module.named_modules())
        for name in getattr(self, "frozen", ()):
            parts[name].training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The output of the network."""
        return self.module(x)


def _is_unit(name: str, part: nn.Module, called: list[str]) -> bool:
    """Whether a module is kept or reset as a whole: it has no submodules, or never calls them, as torch's attention."""
    return not any(part.children()) or (
        bool(name)
        and next(part.parameters(recurse=False), None) is not None
        and not any(other.startswith(f"{name}.") for other in called)
    )


def _first_of(name: str, called: list[str]) -> str | None:
    """The module by which to order a module: itself if it is called, otherwise the first called one near it."""
    while name not in called and name:
        name = name.rpartition(".")[0]
        found = next((other for other in called if other.startswith(f"{name}." if name else "")), None)
        if found is not None:
            return found
    return name


class _Labelled(torch.utils.data.Dataset):
    """Prepared images with their labels."""

    def __init__(self, pictures: Pictures, codes: np.ndarray, preparation: Preparation) -> None:
        self.pictures, self.codes, self.preparation = pictures, codes, preparation
        self.mean = np.array(preparation.mean, np.float32)
        self.std = np.array(preparation.std, np.float32)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        ready = self.pictures.read_ready(i, self.preparation)[0]
        if ready.dtype == np.uint8:
            ready = ((ready.astype(np.float32) / 255 - self.mean) / self.std).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(ready)), int(self.codes[i])


def _labelled(images: Any, labels: Sequence[int], preparation: Preparation) -> _Labelled:
    if np.asarray(labels).dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got {np.asarray(labels).dtype}")
    pictures, codes = open_pictures(images), np.asarray(labels, np.int64)
    if codes.shape != (len(pictures),):
        raise ValueError(f"expected a label for each of {len(pictures)} images, got {codes.shape}")
    return _Labelled(pictures, codes, preparation)


def fine_tune(
    network: nn.Module,
    images: Any,
    labels: Sequence[int],
    *,
    preparation: Preparation | None = None,
    epochs: int = 10,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch: int = 32,
    workers: int = 0,
    flip: bool = True,
    device: str = "cpu",
    seed: int = 0,
) -> list[float]:
    """Trains a network in place on labelled images, by SGD with momentum; returns the mean loss of each epoch.

    Afterwards every submodule is in train or eval mode as before.

    Settings:
        labels: Numbers of the network's outputs, integers from 0.
        preparation: How images are resized, cropped and standardised.
        epochs: Passes over the images.
        lr: Learning rate of the first batch. It falls to 0 along half a cosine.
        momentum, weight_decay: As for torch.optim.SGD.
        batch: Images per batch.
        workers: Number of processes that read images. 0 reads them in the main process.
        flip: Mirror a random half of the images.
        device: Where to train: "cpu", "cuda", "cuda:1", or "auto" (CUDA where a device is usable, otherwise the CPU;
            the choice is printed).
        seed: Seed of the order and the mirroring.

    Raises:
        ValueError: a label is no output, every layer is frozen, or the loss is no longer finite.
    """
    check_int("epochs", epochs, 1, 1 << 20)
    check_int("batch", batch, 1, 1 << 20)
    check_float("lr", lr, 0, 1e3, above=True)
    labelled = _labelled(images, labels, preparation or Preparation())
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not learning:
        raise ValueError("every layer is frozen: there is nothing to train")
    place = torch_device(device)
    network.to(place)
    draws = torch.Generator().manual_seed(seed)
    loader = torch.utils.data.DataLoader(
        labelled,
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        generator=draws,
        drop_last=len(labelled) > batch and len(labelled) % batch == 1,  # batch normalisation needs two images
    )
    optimiser = torch.optim.SGD(learning, lr, momentum, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(loader))
    losses = []
    with in_mode(network, training=True):
        for epoch in range(epochs):
            total, n = 0.0, 0
            for x, y in loader:
                if flip:
                    mirrored = torch.rand(len(x), 1, 1, 1, generator=draws) < 0.5
                    x = torch.where(mirrored, x.flip(3), x)
                loss = _loss(network, x.to(place, learning[0].dtype), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total, n = total + loss.item() * len(x), n + len(x)
            losses.append(total / n)
            if not math.isfinite(losses[-1]):
                raise ValueError(f"the loss became {losses[-1]} in epoch {epoch + 1}: lower lr, which is {lr:g}")
    return losses


def _loss(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the network's first output; other outputs are not trained."""
    outputs = next(tensors_of(network(x)))
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs.shape[1]:
        raise ValueError(f"labels must be from 0 to {outputs.shape[1] - 1}, got {low} to {high}")
    return nn.functional.cross_entropy(outputs, labels.to(x.device))


def predict(
    network: nn.Module, images: Any, *, preparation: Preparation | None = None, batch: int = 32, workers: int = 0
) -> np.ndarray:
    """The class that the network predicts for each image, int64 (n,). Runs on the network's own device."""
    pictures = open_pictures(images)
    weights = next(network.parameters())
    labelled = _Labelled(pictures, np.zeros(len(pictures), np.int64), preparation or Preparation())
    loader = torch.utils.data.DataLoader(labelled, batch_size=batch, num_workers=workers, generator=torch.Generator())
    with in_mode(network, training=False), torch.inference_mode():
        found = [next(tensors_of(network(x.to(weights)))).argmax(1).cpu() for x, _ in loader]
    return torch.cat(found).numpy()
