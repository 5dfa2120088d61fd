"""Layers of a network, found by running it on one black image while its functions and modules are watched.

A layer has up to three points where features can be taken: its own output, the input of its non-linearity, and the
output of the non-linearity.
"""

from __future__ import annotations

import fnmatch
import numbers
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

try:
    import torch
    from torch import Tensor, nn
    from torch.overrides import TorchFunctionMode
except ImportError:
    raise ImportError("networks need torch: pip install embfast[images]") from None


AT = ("after", "before", "output")
_CONVOLUTIONS = {f"conv{transposed}{d}d" for d in (1, 2, 3) for transposed in ("", "_transpose")}
_NORMS = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}
_ACTIVATIONS = {
    *("relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "softsign", "threshold", "logsigmoid", "hardshrink"),
    *("softshrink", "tanhshrink", "glu"),
}
_HEADS = {"sigmoid", "logsigmoid", "hardsigmoid", "tanh", "softsign"}  # non-linearities that a classifier may end in
_SAME = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "contiguous"}
_WATCHED = _CONVOLUTIONS | _NORMS | _ACTIVATIONS | {"linear"}


class Point(NamedTuple):
    """One tensor of a forward pass: the output or the input of a module, or of a function that a module calls.

    name: Name of the module, or such as "module:relu" for a function that the module calls; "#2" marks the second call.
    """

    name: str
    module: str  # name of the module whose hook sees the tensor
    call: int  # number of the call of this module, from 0
    function: int  # if at least 0: number of the call among all watched functions; the module's hook is not used
    given: bool  # the first argument, not the output
    channels: int  # axis of the channels: 1 for maps, -1 for tokens
    shape: tuple[int, ...]  # for one image


@dataclass
class Layer:
    """A convolution or linear layer, its output, and the input and output of the non-linearity that follows it.

    If no normalisation follows, "before" is "output". If no non-linearity follows directly, as for the last convolution
    of a bottleneck, whose output is added to another tensor, "after" is "before".
    """

    kind: str  # "conv" or "linear"
    output: Point
    normalised: Point | None = None
    activated: Point | None = None
    classifies: bool = False  # its output is the output of the network
    rectified: bool = False  # a non-linearity of inner layers follows, such as ReLU

    @property
    def name(self) -> str:
        """Name of the module; "#2" marks its second call."""
        return self.output.name

    def at(self, place: str) -> Point:
        """The point "after" or "before" the non-linearity, or at the layer's own "output"."""
        before = self.normalised or self.output
        return {"output": self.output, "before": before, "after": self.activated or before}[place]


@dataclass
class Trace:
    """Layers and points of a network, in the order in which it computes them."""

    layers: list[Layer] = field(default_factory=list)
    points: dict[str, Point] = field(default_factory=dict)
    penultimate: Point | None = None  # input of the classifier; without a classifier, output of the network

    def select(self, layers: str | int | Sequence[str | int] = "all", at: str = "after") -> list[Point]:
        """Points of the chosen layers, without repetition, in the order of the network.

        Settings:
            layers: "all" convolutions and linear layers except the classifier; "convs"; "linears"; "penultimate"; names
                of layers or of any module, with * and ?; layer numbers, negative from the end; or a list of these.
            at: "after" the non-linearity, "before" it, or the layer's own "output".

        Raises:
            ValueError: a layer does not exist; the message lists the layers.
        """
        if at not in AT:
            raise ValueError(f"at must be one of {', '.join(AT)}, got {at!r}")
        chosen: dict[Point, None] = {}
        hidden = [layer for layer in self.layers if not layer.classifies]
        for wanted in [layers] if isinstance(layers, str | int | numbers.Integral) else layers:
            if isinstance(wanted, int | numbers.Integral) and not isinstance(wanted, bool):
                if not -len(hidden) <= wanted < len(hidden):
                    raise ValueError(f"no layer {wanted}: the network has {len(hidden)}, 0 to {len(hidden) - 1}")
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
                raise ValueError(f"no layer {wanted!r}: the network has {shown}, and modules by their names")
            chosen.update(dict.fromkeys(found))
        if not chosen:
            raise ValueError("expected at least one layer, got none")
        order = {point: i for i, point in enumerate(self.points.values())}
        return sorted(chosen, key=lambda point: order.get(point, len(order)))


class Watch(TorchFunctionMode):
    """Calls see(number, name, first argument, its version, result) after every call of a watched function.

    In-place operations raise the version of a tensor, which tells the input from the output.
    """

    def __init__(self, see: Callable[[int, str, Any, int, Any], None]) -> None:
        super().__init__()
        self.see, self.number = see, 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls the function and reports the call."""
        name = getattr(function, "__name__", "").rstrip("_")
        if name not in _WATCHED and name not in _SAME:
            return function(*args, **(kwargs or {}))
        first = first_argument(args, kwargs or {})
        version = _version(first)
        result = function(*args, **(kwargs or {}))
        self.see(self.number if name in _WATCHED else -1, name, first, version, result)
        self.number += name in _WATCHED
        return result


def first_argument(args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """First argument of a function or a module."""
    return args[0] if args else named.get("input")


def _version(tensor: Any) -> int:
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0


_LOCKS: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_LOCKS_LOCK = RLock()


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Sets all submodules to train or eval mode, and afterwards restores the mode of each.

    Threads that share a network take turns: a lock per network is held throughout.
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
    """Finds the layers of a network by running it on one image, float (1, channels, height, width).

    Layers are recognised by the functions they call (conv2d, linear, batch_norm, relu, ...), whether or not these are
    called through modules. A module that is called twice counts as two layers. torch's own attention is one function:
    the linear layers inside it are not seen.

    Raises:
        ValueError: the network calls no convolution and no linear layer.
    """
    tracer = _Tracer()
    with in_mode(module, training=False), ExitStack() as hooks:
        for name, part in module.named_modules():
            if name:
                hooks.callback(part.register_forward_pre_hook(tracer.enter(name), with_kwargs=True).remove)
                hooks.callback(part.register_forward_hook(tracer.leave).remove)
        with torch.no_grad(), Watch(tracer.see):
            result = module(example)
    if not tracer.layers:
        raise ValueError(f"{type(module).__name__} calls no convolution and no linear layer, so it has no features")
    return tracer.finish(result)


class _Tracer:
    """Combines the function calls that Watch reports with the module calls that hooks report."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.order: list[Point] = []
        self._inputs: list[Point] = []  # input of each layer
        self._given: list[tuple[int, int]] = []  # (id, version) of the input of each layer's function
        self._stages: dict[tuple[int, int], tuple[Layer, str]] = {}  # (id, version) of a tensor to its layer and role
        self._channels: dict[tuple[int, int], int] = {}
        self._functions: dict[tuple[int, int], tuple[int, Layer | None, str]] = {}  # that a module may return
        self._stack: list[tuple[str, int, tuple[int, int]]] = []  # running modules: name, call, input
        self._calls: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._held: list[Any] = []  # keeps tensors alive, so that no id is reused
        self._last: tuple[int, int] | None = None  # tensor of the last point

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
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            first = first_argument(args, named)
            self._held.append(first)
            self._stack.append((name, self._calls[name], (id(first), _version(first))))
            self._calls[name] += 1

        return hook

    def leave(self, _: nn.Module, args: tuple[Any, ...], result: Any) -> None:
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
            if self._given[i] == given:  # the function got the module's input unchanged
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
        """The channel axis of a tensor: as recorded, or that of the last point of the same shape."""
        if key not in self._channels and tensor.ndim == 4:
            for point in reversed(self.order):
                if point.shape == tuple(tensor.shape[1:]):
                    return point.channels
        return self._channels.get(key, _usual_axis(tensor))


def tensors_of(result: Any) -> Iterator[Tensor]:
    """The tensors of a network's output, which may be nested in tuples, lists and dicts."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list | dict):
        for part in result.values() if isinstance(result, dict) else result:
            yield from tensors_of(part)


def _usual_axis(tensor: Tensor) -> int:
    return -1 if tensor.ndim == 3 else 1
