"""Pooling of activations to one row per image, taken while the network runs.

The features of a layer are taken as soon as its output exists, so that no activation map outlives its layer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from embfast.images.trace import Point, Watch, first_argument, in_mode

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError:
    raise ImportError("networks need torch: pip install embfast[images]") from None


POOLING = ("mean", "max", "gem", "grid", "none")
GEM_POWER = 3.0  # Radenovic et al. 2018, arXiv:1711.02512
GRID = 2  # cells along each side of pool="grid"
_CHUNK = 1 << 18  # half-precision numbers converted at once: they and their float32 copy fit into the cache


def pooled(tensor: Tensor, channels: int, pooling: str) -> Tensor:
    """Pools a layer's output (n, ...) to one row per image, float32 (n, dim).

    "mean", "max" and "gem" (generalised mean: the cube root of the mean of cubes) pool over all positions of a map or
    all tokens. "grid" gives the means of 2 x 2 cells, "none" all values. An output without positions is unchanged.
    """
    if tensor.ndim == 2 or pooling == "none":
        return tensor.flatten(1).float()
    places = tensor.movedim(channels, -1) if channels != -1 else tensor
    if pooling == "grid":
        if places.ndim != 4:
            raise ValueError(
                f'pool="grid" needs maps with height and width, got an output of shape {tuple(tensor.shape)}'
            )
        return functional.adaptive_avg_pool2d(places.movedim(-1, 1).float(), GRID).flatten(1)
    rows = places.flatten(1, -2)
    if pooling == "max":
        return rows.amax(1).float()
    if pooling == "gem":
        return rows.float().clamp(min=1e-6).pow(GEM_POWER).mean(1).pow(1 / GEM_POWER)
    if rows.dtype == torch.float32:
        return rows.mean(1)
    step = max(1, _CHUNK // max(1, rows[0].numel()))  # torch would convert the whole map to float32 first
    return torch.cat([part.mean(1, dtype=torch.float32) for part in rows.split(step)])


def dim_of(point: Point, pooling: str) -> int:
    """Number of features of a point."""
    if len(point.shape) == 1 or pooling == "none":
        return math.prod(point.shape)
    channels = point.shape[point.channels - 1 if point.channels > 0 else -1]
    return channels * (GRID * GRID if pooling == "grid" else 1)


class _Enough(Exception):
    """Raised when all points are taken: the rest of the network need not run."""


class Tapped(nn.Module):
    """A network that returns the pooled features of chosen points, float32 (n, dim), in the order of the points.

    Use it in a `with` block: hooks are registered, the network is in eval mode, and other threads wait. Afterwards the
    network is as before.
    """

    def __init__(self, module: nn.Module, points: Sequence[Point], pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in POOLING:
            raise ValueError(f"pool must be one of {', '.join(POOLING)}, got {pooling!r}")
        self.module, self.points, self.pooling = module, list(points), pooling
        self.dim = sum(dim_of(point, pooling) for point in points)
        self.compiled = False  # a compiled network cannot stop early
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
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._take(wanted.get(self._calls[name, True]), first_argument(args, named))
            self._calls[name, True] += 1

        return hook

    def _returned(self, name: str, wanted: dict[int, int]) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], result: Any) -> None:
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
        """Runs the network up to the last point."""
        self._taken.clear()
        self._calls.clear()
        try:
            if self._functions:
                with Watch(self._see):
                    self.module(x)
            else:
                self.module(x)
        except _Enough:
            pass
        if len(self._taken) < len(self.points):
            absent = next(point.name for i, point in enumerate(self.points) if i not in self._taken)
            raise ValueError(f"the network did not reach {absent} this time: its control flow depends on the input")
        rows = torch.cat([self._taken[i] for i in range(len(self.points))], dim=1)
        self._taken.clear()
        return rows
