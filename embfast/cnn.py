"""What a network computes on the way to its answer: found once, then taken from every batch as it passes.

A place is found by running one black picture and watching every call; the features of a layer are the spatial mean (or
maximum, ...) of its output, taken the moment it is there, so that no map of activations outlives its layer.
"""

from __future__ import annotations

import fnmatch
import json
import math
import numbers
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from embfast.backbones import Backbone
from embfast.errors import FormatError
from embfast.estimator import check_flag, check_int
from embfast.formats import replacing, sync
from embfast.pictures import VIEWS, Pictures, Preparation
from embfast.processes import choose_device
from embfast.storage import scratch_array
from embfast.training import first_interrupt

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode
except ImportError:
    raise ImportError("networks need torch: pip install embfast[images]") from None

AT = ("after", "before", "output")
POOLING = ("mean", "max", "gem", "grid", "none")
GEM_POWER = 3.0  # Radenovic et al. 2018, arXiv:1711.02512
GRID = 2  # cells along each side of pool="grid"

_CONVOLUTIONS = {f"conv{transposed}{d}d" for d in (1, 2, 3) for transposed in ("", "_transpose")}
_NORMS = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}
_ACTIVATIONS = {
    *("relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "softsign", "threshold", "logsigmoid", "hardshrink"),
    *("softshrink", "tanhshrink", "glu"),
}
_HEADS = {"sigmoid", "logsigmoid", "hardsigmoid", "tanh", "softsign"}  # that a classifying layer may end in
_SAME = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "contiguous"}
_WATCHED = _CONVOLUTIONS | _NORMS | _ACTIVATIONS | {"linear"}
_BLOCK = 1 << 18  # half-precision numbers widened at once: they and their copy fit into a cache


# ---- places -------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """One tensor of a forward pass: what a module, or a function called by one, returned or was given.

    name: of the module, or "module:relu" and the like for a function that it calls itself; "#2" at the second call.
    """

    name: str
    module: str  # the module whose hook sees it
    call: int  # which of its calls, from 0
    function: int  # or, when at least 0, which of the watched functions called in a forward pass
    given: bool  # its first argument rather than what it returns
    channels: int  # the axis of the channels: 1 for maps, -1 for tokens
    shape: tuple[int, ...]  # of one picture


@dataclass
class Layer:
    """A convolution or linear layer: its own output, what the non-linearity is given, and what comes out of that.

    Where no normalisation follows, `before` is `output`; where no non-linearity follows directly (the last convolution
    of a bottleneck, whose output is added to another), `after` is `before`.
    """

    kind: str  # "conv" or "linear"
    output: Point
    normalised: Point | None = None
    activated: Point | None = None
    classifies: bool = False  # its output is the network's
    rectified: bool = False  # the non-linearity is one of inner layers

    @property
    def name(self) -> str:
        """That of its module; "#2" for the second call of one module."""
        return self.output.name

    def at(self, place: str) -> Point:
        """The point after the non-linearity, before it, or the layer's own output."""
        before = self.normalised or self.output
        return {"output": self.output, "before": before, "after": self.activated or before}[place]


@dataclass
class Trace:
    """Every place of a network, in the order in which it computes."""

    layers: list[Layer] = field(default_factory=list)
    points: dict[str, Point] = field(default_factory=dict)
    penultimate: Point | None = None  # what the classifying layer is given; the network's output where there is none

    def select(self, layers: str | int | Sequence[str | int] = "all", at: str = "after") -> list[Point]:
        """The points that settings name, each once, in the order of the network.

        Settings:
            layers: "all" convolutions and linear layers but the classifying one; "convs", "linears"; "penultimate";
                names of layers or of any module, with * and ?; numbers among the layers, from the end when negative; or
                a list of such.
            at: "after" the non-linearity, "before" it, or the layer's own "output".

        Raises:
            ValueError: there is no such layer; says which there are.
        """
        if at not in AT:
            raise ValueError(f"at must be one of {', '.join(AT)}, got {at!r}")
        chosen: dict[Point, None] = {}
        hidden = [layer for layer in self.layers if not layer.classifies]
        for wanted in [layers] if isinstance(layers, str | numbers.Integral) else layers:
            if isinstance(wanted, numbers.Integral) and not isinstance(wanted, bool):
                if not -len(hidden) <= wanted < len(hidden):
                    raise ValueError(f"layer {wanted}: there are {len(hidden)}, 0 to {len(hidden) - 1}")
                found = [hidden[wanted].at(at)]
            elif wanted == "penultimate":
                found = [self.penultimate] if self.penultimate else []
            elif wanted in ("all", "convs", "linears"):
                found = [layer.at(at) for layer in hidden if wanted == "all" or f"{layer.kind}s" == wanted]
            else:
                found = [layer.at(at) for layer in self.layers if fnmatch.fnmatchcase(layer.name, str(wanted))]
                found = found or [p for name, p in self.points.items() if fnmatch.fnmatchcase(name, str(wanted))]
            if not found:
                names = [layer.name for layer in self.layers]
                shown = ", ".join(names if len(names) <= 12 else [*names[:6], "...", *names[-5:]])
                raise ValueError(f"there is no layer {wanted!r}; there are {shown}, and modules by their names")
            chosen.update(dict.fromkeys(found))
        if not chosen:
            raise ValueError("expected at least one layer, got none")
        order = {point: i for i, point in enumerate(self.points.values())}
        return sorted(chosen, key=lambda point: order.get(point, len(order)))


class _Watch(TorchFunctionMode):
    """Sees every call of a watched function: its number, its name, its first argument, which version of it, its result.

    The version of a tensor rises when it is changed in place, so that what went in is told from what came out.
    """

    def __init__(self, see: Callable[[int, str, Any, int, Any], None]) -> None:
        super().__init__()
        self.see, self.number = see, 0

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Calls the function, and tells of it."""
        name = getattr(function, "__name__", "").rstrip("_")
        if name not in _WATCHED and name not in _SAME:
            return function(*args, **(kwargs or {}))
        first = _first(args, kwargs or {})
        version = _version(first)
        result = function(*args, **(kwargs or {}))
        self.see(self.number if name in _WATCHED else -1, name, first, version, result)
        self.number += name in _WATCHED
        return result


def _first(args: tuple, named: dict[str, Any]) -> Any:
    """What a function or a module is given."""
    return args[0] if args else named.get("input")


def _version(tensor: Any) -> int:
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0


_LOCKS: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_LOCKS_LOCK = RLock()


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Inside, the network is in train or eval mode, all parts of it; afterwards each part is as it was.

    Threads that share a network take turns: others wait before they come in.
    """
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(module, RLock())
    with lock:
        before = [(part, part.training) for part in module.modules()]
        module.train(training)
        try:
            yield
        finally:
            for part, was in before:
                part.training = was


def trace(module: nn.Module, example: Tensor) -> Trace:
    """Finds all places of a network by running it on one picture, float (1, channels, height, width).

    Layers are found by the functions they call (conv2d, linear, batch_norm, relu, ...), so that it does not matter
    whether a network calls them as modules. A module that is called twice is two layers. Attention of torch's own is
    taken for one function: the linear layers inside are not seen.

    Raises:
        ValueError: it calls no convolution and no linear layer.
    """
    tracer = _Tracer()
    with in_mode(module, training=False), ExitStack() as hooks:
        for name, part in module.named_modules():
            if name:
                hooks.callback(part.register_forward_pre_hook(tracer.enter(name), with_kwargs=True).remove)
                hooks.callback(part.register_forward_hook(tracer.leave).remove)
        with torch.no_grad(), _Watch(tracer.see):
            result = module(example)
    if not tracer.layers:
        raise ValueError(f"{type(module).__name__} calls no convolution and no linear layer; there is nothing to take")
    return tracer.finish(result)


class _Tracer:
    """Joins what _Watch sees of functions with what hooks see of modules."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.order: list[Point] = []
        self._inputs: list[Point] = []  # of layers
        self._given: list[tuple[int, int]] = []  # (id, version) of what each layer's function was given
        self._stages: dict[tuple[int, int], tuple[Layer, str]] = {}  # (id, version) of a tensor: whose output it is
        self._channels: dict[tuple[int, int], int] = {}
        self._functions: dict[tuple[int, int], tuple[int, Layer | None, str]] = {}  # that may turn out to be a module
        self._stack: list[tuple[str, int, tuple[int, int]]] = []  # modules that run: name, call, what they were given
        self._calls: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._held: list[Any] = []  # tensors, so that no id is given twice
        self._last: tuple[int, int] | None = None  # the tensor of the last point

    def see(self, number: int, name: str, first: Any, version: int, result: Any) -> None:
        if not isinstance(first, Tensor) or not isinstance(result, Tensor):
            return
        self._held += [first, result]
        given, made = (id(first), version), (id(result), result._version)
        source, part = self._stages.get(given, (None, ""))
        if number < 0:
            if source is not None:
                self._stages[made] = source, part
            return
        owner, call, _ = self._stack[-1] if self._stack else ("", 0, given)
        label = f"{owner}:{name}"
        self._labels[label] += 1
        if self._labels[label] > 1:
            label += f"#{self._labels[label]}"
        if name in _CONVOLUTIONS:
            channels = 1
        elif name in ("linear", "layer_norm"):
            channels = -1
        else:
            channels = self._axis(first, given)
        point = Point(label, owner, call, number, False, channels, tuple(result.shape[1:]))
        layer, role = None, ""
        if name in _CONVOLUTIONS or name == "linear":
            layer, role = Layer("linear" if name == "linear" else "conv", point), "output"
            self.layers.append(layer)
            shape = tuple(first.shape[1:])
            self._inputs.append(point._replace(name="penultimate", given=True, shape=shape))
            self._given.append(given)
        elif source is not None and name in _NORMS and part == "output" and source.normalised is None:
            layer, role = source, "normalised"
        elif source is not None and name in _ACTIVATIONS and part != "activated" and source.activated is None:
            layer, role = source, "activated"
            layer.rectified = name not in _HEADS
        if layer is not None:
            setattr(layer, role, point)
            self._stages[made] = layer, role
        self._channels[made] = channels
        self._functions[made] = len(self.order), layer, role
        self.order.append(point)
        self._last = made

    def enter(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, named: dict[str, Any]) -> None:
            first = _first(args, named)
            self._held.append(first)
            self._stack.append((name, self._calls[name], (id(first), _version(first))))
            self._calls[name] += 1

        return hook

    def leave(self, _: nn.Module, args: tuple, result: Any) -> None:
        name, call, given = self._stack.pop()
        if not isinstance(result, Tensor) or result.ndim < 2:
            return
        self._held.append(result)
        made = id(result), result._version
        channels = self._axis(result, made)
        label = name if call == 0 else f"{name}#{call + 1}"
        point = Point(label, name, call, -1, False, channels, tuple(result.shape[1:]))
        place, layer, role = self._functions.pop(made, (len(self.order), None, ""))
        if place >= len(self.order) - 1:
            self._last = made
        self.order[place : place + 1] = [point]
        if layer is not None:
            setattr(layer, role, point)
        if role == "output":
            i = next(i for i, other in enumerate(self.layers) if other is layer)
            if self._given[i] == given:  # and not what the module made of it first
                self._inputs[i] = self._inputs[i]._replace(module=name, call=call, function=-1)

    def finish(self, result: Any) -> Trace:
        points: dict[str, Point] = {}
        for point in self.order:
            points.setdefault(point.name, point)
        last, penultimate = self.layers[-1], self.order[-1]
        shapes = {tuple(tensor.shape[1:]) for tensor in tensors_of(result)}
        if last.kind == "linear" and last.output.shape in shapes and not last.rectified:
            last.classifies = True
            penultimate = self._inputs[-1]
        elif isinstance(result, Tensor) and result.ndim > 1 and self._last != (id(result), result._version):
            axis = self._axis(result, (id(result), result._version))
            penultimate = Point("output", "", 0, -1, False, axis, tuple(result.shape[1:]))
        return Trace(self.layers, points, penultimate)

    def _axis(self, tensor: Tensor, key: tuple[int, int]) -> int:
        """The axis of its channels: as it was made, or as in the last place of such a shape."""
        if key not in self._channels and tensor.ndim == 4:
            for point in reversed(self.order):
                if point.shape == tuple(tensor.shape[1:]):
                    return point.channels
        return self._channels.get(key, _usual_axis(tensor))


def tensors_of(result: Any) -> Iterator[Tensor]:
    """What a network returned, alone or in tuples, lists and dicts."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list | dict):
        for part in result.values() if isinstance(result, dict) else result:
            yield from tensors_of(part)


def _usual_axis(tensor: Tensor) -> int:
    return -1 if tensor.ndim == 3 else 1


# ---- features -----------------------------------------------------------------------------------------------------


def pooled(tensor: Tensor, channels: int, pooling: str) -> Tensor:
    """One row of float32 for each picture, float32 (n, dim), of a layer's output (n, ...).

    "mean", "max" and "gem" (the mean of cubes, its root) run over all places of a map or all tokens; "grid" gives the
    means of 2 x 2 cells, "none" all numbers. What has no places stays as it is.
    """
    if tensor.ndim == 2 or pooling == "none":
        return tensor.flatten(1).float()
    places = tensor.movedim(channels, -1) if channels != -1 else tensor
    if pooling == "grid":
        if places.ndim != 4:
            raise ValueError(
                f'pool="grid" needs maps of height and width, got an output of shape {tuple(tensor.shape)}'
            )
        return functional.adaptive_avg_pool2d(places.movedim(-1, 1).float(), GRID).flatten(1)
    rows = places.flatten(1, -2)
    if pooling == "max":
        return rows.amax(1).float()
    if pooling == "gem":
        return rows.float().clamp(min=1e-6).pow(GEM_POWER).mean(1).pow(1 / GEM_POWER)
    if rows.dtype == torch.float32:
        return rows.mean(1)
    step = max(1, _BLOCK // max(1, rows[0].numel()))  # torch widens all of a half-precision map before it adds up
    return torch.cat([part.mean(1, dtype=torch.float32) for part in rows.split(step)])


def dim_of(point: Point, pooling: str) -> int:
    """Features that a point gives."""
    if len(point.shape) == 1 or pooling == "none":
        return math.prod(point.shape)
    channels = point.shape[point.channels - 1 if point.channels > 0 else -1]
    return channels * (GRID * GRID if pooling == "grid" else 1)


class _Enough(Exception):
    """All points are taken: the rest of the network need not run."""


class Tapped(nn.Module):
    """A network that answers with the pooled features of some points, float32 (n, dim), in the order of the points.

    Inside `with`, hooks are on the network and it is in eval mode; afterwards it is as it was. Other threads wait.
    """

    def __init__(self, module: nn.Module, points: Sequence[Point], pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in POOLING:
            raise ValueError(f"pool must be one of {', '.join(POOLING)}, got {pooling!r}")
        self.module, self.points, self.pooling = module, list(points), pooling
        self.dim = sum(dim_of(point, pooling) for point in points)
        self.compiled = False  # a compiled network has no way out before its end
        self._taken: dict[int, Tensor] = {}
        self._calls: Counter[tuple[str, bool]] = Counter()
        self._functions = [(point.function, i) for i, point in enumerate(self.points) if point.function >= 0]
        self._inside: Any = None

    def __enter__(self) -> Tapped:
        parts = dict(self.module.named_modules())
        places: dict[tuple[str, bool], dict[int, int]] = {}
        for i, point in enumerate(self.points):
            if point.function < 0:
                places.setdefault((point.module, point.given), {})[point.call] = i
        with ExitStack() as stack:
            stack.enter_context(in_mode(self.module, training=False))
            for (name, given), wanted in places.items():
                if given:
                    hook = self._given(name, wanted)
                    handle = parts[name].register_forward_pre_hook(hook, with_kwargs=True)
                else:
                    handle = parts[name].register_forward_hook(self._returned(name, wanted))
                stack.callback(handle.remove)
            self._inside = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._inside.close()

    def _given(self, name: str, wanted: dict[int, int]) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, named: dict[str, Any]) -> None:
            self._take(wanted.get(self._calls[name, True]), _first(args, named))
            self._calls[name, True] += 1

        return hook

    def _returned(self, name: str, wanted: dict[int, int]) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, result: Any) -> None:
            self._take(wanted.get(self._calls[name, False]), result)
            self._calls[name, False] += 1

        return hook

    def _see(self, number: int, name: str, first: Any, version: int, result: Any) -> None:
        for function, i in self._functions:
            if function == number:
                self._take(i, first if self.points[i].given else result)

    def _take(self, i: int | None, tensor: Tensor) -> None:
        if i is None:
            return
        self._taken[i] = pooled(tensor, self.points[i].channels, self.pooling)
        if len(self._taken) == len(self.points) and not self.compiled:
            raise _Enough

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network as far as it has to."""
        self._taken.clear()
        self._calls.clear()
        try:
            if self._functions:
                with _Watch(self._see):
                    self.module(x)
            else:
                self.module(x)
        except _Enough:
            pass
        if len(self._taken) < len(self.points):
            absent = next(point.name for i, point in enumerate(self.points) if i not in self._taken)
            raise ValueError(f"the network did not reach {absent} this time: its course depends on what it is given")
        rows = torch.cat([self._taken[i] for i in range(len(self.points))], dim=1)
        self._taken.clear()
        return rows


# ---- pictures through a network -----------------------------------------------------------------------------------

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ERRORS = ("strict", "skip")
COMBINING = ("mean", "stack")

_SAVE_SECONDS = 30.0  # between two records of how far a run has come
_FORMAT = 1

ProgressOption = bool | Callable[[int, int], None] | None


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
        choose_device(self.device)

    @property
    def place(self) -> torch.device:
        """The device, chosen where none was named."""
        return choose_device(self.device)


class Batch(NamedTuple):
    """Features of some pictures: their numbers, float32 (n, dim), those that could not be read, and the next number."""

    numbers: list[int]
    rows: np.ndarray
    broken: list[tuple[int, str]]
    stop: int


class Features(NamedTuple):
    """Features of pictures: a row for each that could be read, float32 (n, dim), and why others could not."""

    keys: list[str]
    matrix: np.ndarray
    broken: dict[str, str]


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
        self, pictures: Pictures, work: str | os.PathLike[str] | None = None, progress: ProgressOption = None
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
        made = _Kept(Path(work), self, pictures) if work is not None else _Scratch(len(pictures), self.dim)
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


class _Scratch:
    """Features that go with the process: in memory, or in a file without a name when they are many."""

    def __init__(self, n: int, dim: int) -> None:
        self.rows = scratch_array(n * dim, np.float32).reshape(n, dim)
        self.n = self.stop = 0
        self.broken: list[tuple[int, str]] = []

    def __enter__(self) -> _Scratch:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def add(self, batch: Batch) -> None:
        self.rows[self.n : self.n + len(batch.rows)] = batch.rows
        self.n += len(batch.rows)
        self.stop = batch.stop
        self.broken += batch.broken

    def save(self) -> None:
        pass  # there is nothing to come back to

    def finish(self) -> np.ndarray:
        return self.rows[: self.n]


class _Kept:
    """Features in a folder: features.f32, rows one after the other, and progress.json, how many of them count."""

    def __init__(self, folder: Path, extractor: Extractor, pictures: Pictures) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.record, self.dim = folder / "features.f32", folder / "progress.json", extractor.dim
        self.fingerprint, self.n, self.stop = extractor.fingerprint(pictures), 0, 0
        self.broken: list[tuple[int, str]] = []
        if self.record.exists():
            self._resume()
        self.stream = open(self.path, "r+b" if self.path.exists() else "w+b")  # noqa: SIM115
        self.stream.truncate(self.n * self.dim * 4)
        self.stream.seek(0, os.SEEK_END)
        self.saved = time.monotonic()

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stream.close()

    def _resume(self) -> None:
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            was, self.n, self.stop = found["fingerprint"], int(found["rows"]), int(found["stop"])
            self.broken = [(int(i), str(why)) for i, why in found["broken"]]
            if found["format"] != _FORMAT:
                raise FormatError(f"{self.record}: expected format {_FORMAT}, got {found['format']!r}")
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FormatError(f"{self.record}: expected the record of an extraction, got {error!r}") from None
        changed = [
            f"{name} was {was.get(name)!r}, is {value!r}"
            for name, value in self.fingerprint.items()
            if was.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{self.record.parent}: has the features of another run: {'; '.join(changed)}. Name another folder, or "
                "remove this one"
            )
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self.n * self.dim * 4:
            raise FormatError(f"{self.path}: expected {self.n * self.dim * 4:,} bytes at least, got {size:,}")

    def add(self, batch: Batch) -> None:
        self.stream.write(np.ascontiguousarray(batch.rows).data)
        self.n += len(batch.rows)
        self.stop = batch.stop
        self.broken += batch.broken
        if time.monotonic() - self.saved >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        self.stream.flush()
        sync(self.path)
        with replacing(self.record) as stream:
            found = {"format": _FORMAT, "rows": self.n, "stop": self.stop, "broken": self.broken}
            stream.write(json.dumps(found | {"fingerprint": self.fingerprint}, indent=1).encode())
        self.saved = time.monotonic()

    def finish(self) -> np.ndarray:
        self.save()
        if self.n == 0:
            return np.empty((0, self.dim), np.float32)
        return np.memmap(self.path, np.float32, "r", shape=(self.n, self.dim))


@contextmanager
def reporting(progress: ProgressOption, total: int, first: int = 0) -> Iterator[Callable[[int], None]]:
    """What to do with the number of pictures done: a callable gets it, a terminal shows a bar, a log (True) lines."""
    terminal = hasattr(sys.stderr, "isatty") and sys.stderr.isatty()
    if callable(progress):
        yield lambda done: progress(done, total)
    elif progress is False or (progress is None and not terminal):
        yield lambda done: None
    elif not terminal:
        began = last = time.monotonic()

        def line(done: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 10 or done >= total:
                rate = (done - first) / max(now - began, 1e-9)
                print(f"{done:,} of {total:,} images  {rate:,.1f} images/s", file=sys.stderr, flush=True)
                last = now

        yield line
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task, began = bar.add_task("images", total=total, completed=first, rate=""), time.monotonic()

            def show(done: int) -> None:
                rate = (done - first) / max(time.monotonic() - began, 1e-9)
                bar.update(task, completed=done, rate=f"{rate:,.1f} images/s")

            yield show
