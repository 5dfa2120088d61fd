"""Fine-tuning: networks whose first layers are kept, training on labelled images, and prediction.

Source: Yosinski et al. 2014, arXiv:1411.1792.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from embfast.images.extract import Run
from embfast.images.pictures import Pictures, Preparation, open_pictures
from embfast.images.trace import in_mode, tensors_of, trace
from embfast.training.settings import check_float, check_int

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise ImportError("fine-tuning needs torch: pip install embfast[images]") from None


class Transferred(nn.Module):
    """A network whose first n layers come from a trained one and whose others start anew: AnB, or AnB+ when not frozen.

    Frozen layers have no gradient, and their batch normalisation stays in eval mode whatever train() says: its running
    means would otherwise follow the new pictures.

    Settings:
        module: the trained network; it is copied, not changed.
        n: layers that are kept, in the order of the network, of a Trace's layers.
        classes: outputs of a new classifying layer; None keeps their number.
        frozen: AnB (True), or AnB+ (False), where kept layers learn too.
        example: shape of a picture, (channels, height, width).
        seed: of new weights.
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
        """As of any module, but that frozen layers stay in eval mode."""
        super().train(mode)
        parts = dict(self.module.named_modules())
        for name in getattr(self, "frozen", ()):
            parts[name].training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        """What the network answers."""
        return self.module(x)


def _is_unit(name: str, part: nn.Module, called: list[str]) -> bool:
    """Whether a module learns or not as one: it has no parts, or none that run on their own, as torch's attention."""
    return not any(part.children()) or (
        bool(name)
        and next(part.parameters(recurse=False), None) is not None
        and not any(other.startswith(f"{name}.") for other in called)
    )


def _first_of(name: str, called: list[str]) -> str | None:
    """The place of a module in the course of a network: itself, or the first to run of those that it stands among."""
    while name not in called and name:
        name = name.rpartition(".")[0]
        found = next((other for other in called if other.startswith(f"{name}." if name else "")), None)
        if found is not None:
            return found
    return name


class _Labelled(torch.utils.data.Dataset):
    """Prepared pictures with their labels."""

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
    device: str | None = None,
    seed: int = 0,
) -> list[float]:
    """Trains a network on labelled pictures in place, by SGD with momentum; returns the mean loss of each epoch.

    Afterwards each part is in train or eval mode as it was before.

    Settings:
        labels: whole numbers from 0, the outputs of the network.
        preparation: how pictures are made ready.
        lr: falls to 0 along half a cosine.
        flip: show half of the pictures mirrored.
        seed: of the order and of the mirroring.

    Raises:
        ValueError: labels that are no outputs, nothing to learn, or a loss that is not finite any more.
    """
    check_int("epochs", epochs, 1, 1 << 20)
    check_int("batch", batch, 1, 1 << 20)
    check_float("lr", lr, 0, 1e3, above=True)
    if np.asarray(labels).dtype.kind not in "iu":
        raise TypeError(f"labels: expected whole numbers, got {np.asarray(labels).dtype}")
    pictures, codes = open_pictures(images), np.asarray(labels, np.int64)
    if codes.shape != (len(pictures),):
        raise ValueError(f"expected a label for each of {len(pictures)} pictures, got {codes.shape}")
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not learning:
        raise ValueError("every layer is frozen: there is nothing to learn")
    place = Run(device=device).place
    network.to(place)
    kind = learning[0].dtype
    draws = torch.Generator().manual_seed(seed)
    loader = torch.utils.data.DataLoader(
        _Labelled(pictures, codes, preparation or Preparation()),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        generator=draws,
        drop_last=len(pictures) > batch and len(pictures) % batch == 1,  # batch normalisation cannot train on one
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
                outputs = next(tensors_of(network(x.to(place, kind))))  # other heads behind it are not trained
                if int(y.min()) < 0 or int(y.max()) >= outputs.shape[1]:
                    raise ValueError(
                        f"labels must be from 0 to {outputs.shape[1] - 1}, got {int(y.min())} to {int(y.max())}"
                    )
                loss = nn.functional.cross_entropy(outputs, y.to(place))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total, n = total + loss.item() * len(x), n + len(x)
            losses.append(total / n)
            if not math.isfinite(losses[-1]):
                raise ValueError(f"the loss became {losses[-1]} in epoch {epoch + 1}: lower lr, which is {lr:g}")
    return losses


def predict(
    network: nn.Module, images: Any, *, preparation: Preparation | None = None, batch: int = 32, workers: int = 0
) -> np.ndarray:
    """The class that a network answers for each picture, int64 (n,)."""
    pictures = open_pictures(images)
    weights = next(network.parameters())
    labelled = _Labelled(pictures, np.zeros(len(pictures), np.int64), preparation or Preparation())
    loader = torch.utils.data.DataLoader(labelled, batch_size=batch, num_workers=workers, generator=torch.Generator())
    with in_mode(network, training=False), torch.inference_mode():
        found = [next(tensors_of(network(x.to(weights)))).argmax(1).cpu() for x, _ in loader]
    return torch.cat(found).numpy()
