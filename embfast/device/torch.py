"""Training by several processes, those of torch.distributed: rows and gradients that they share."""

import os
from typing import Any

import torch
from torch import distributed


def world() -> tuple[int, int]:
    """This process's number, and how many there are, where torch.distributed runs."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def torch_device(name: str | None, or_cpu: bool = False) -> torch.device:
    """The device of a name, by default CUDA where there is one; of several processes each takes its own.

    or_cpu: the CPU in place of a CUDA device that is not there, for models that were trained on one.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        if or_cpu:
            return torch.device("cpu")
        raise ValueError(f"device={name!r}, but torch sees no CUDA device here")
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def gathered(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in order of their numbers; gradients come back from all of them."""

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
            parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
            distributed.all_gather(parts, rows.contiguous())
            return torch.cat(parts)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            gradient = gradient.contiguous()
            distributed.all_reduce(gradient)
            return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]

    return Gather.apply(rows)


def add_up(weights: list[torch.Tensor]) -> None:
    """Adds up the gradients of all processes, in one message."""
    flat = torch.cat([weight.grad.flatten() for weight in weights])
    distributed.all_reduce(flat)
    for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.grad.copy_(part.view_as(weight))
