"""torch's devices, and rows and gradients shared by the processes of torch.distributed."""

import os
import sys
from typing import Any

import torch
from torch import distributed

from embfast.device.names import check_device


def torch_device(name: str | torch.device, or_cpu: bool = False, progress: Any = None) -> torch.device:
    """The torch device that the setting `device` names: "cpu", "cuda", "cuda:1", or "auto".

    "auto" takes CUDA where torch can use a device, otherwise the CPU; a line on stderr says which, unless progress is
    False. Under torchrun, "cuda" and "auto" mean the device numbered LOCAL_RANK, so that each process has another one.

    or_cpu: return the CPU instead of raising an error if the CUDA device is missing, to load models trained on one.

    Raises:
        ValueError: name is no device, or torch does not see the CUDA device.
    """
    name = str(name) if isinstance(name, torch.device) else name
    check_device(name)
    if name == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda" if name == "auto" else name)
    if device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    missing = _why_missing(device)
    if name == "auto":
        missing = missing or _why_unusable(device)
        if progress is not False:
            found = f"cpu, since {missing}" if missing else f"{device}, {torch.cuda.get_device_name(device)}"
            print(f'device="auto": {found}', file=sys.stderr, flush=True)
        return torch.device("cpu") if missing else device
    if missing and or_cpu:
        return torch.device("cpu")
    if missing:
        raise ValueError(f"device={name!r}, but {missing}")
    return device


def _why_missing(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    if (device.index or 0) >= torch.cuda.device_count():
        return f"torch sees only {torch.cuda.device_count()} CUDA devices, numbered from 0"
    return None


def _why_unusable(device: torch.device) -> str | None:
    """Runs one kernel, which fails, for example, on a GPU that this build of torch has no code for."""
    try:
        torch.zeros(1, device=device).add_(1).item()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        return f"{device} fails: {str(error).splitlines()[0]}"
    return None


def world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) if torch.distributed is not running."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gathered(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in the order of their ranks. Backward sums the gradients of all processes."""

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
    """Sums the gradients of all processes in place, with one all-reduce."""
    flat = torch.cat([weight.grad.flatten() for weight in weights])
    distributed.all_reduce(flat)
    for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.grad.copy_(part.view_as(weight))
