"""Checks of settings, and their conversion to plain Python values."""

import numbers
import os
import tempfile
from typing import Any

import numpy as np

from embfast.device.names import check_device
from embfast.files.durable import FilePath, descriptor_of


def check_int(name: str, value: Any, lowest: int, highest: int) -> None:
    """Raises ValueError unless value is an integer in lowest..highest."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not lowest <= value <= highest:
        raise ValueError(f"{name} must be a whole number from {lowest:,} to {highest:,}, got {value!r}")


def check_float(name: str, value: Any, lowest: float, highest: float, *, above: bool = False) -> None:
    """Raises ValueError unless value is a number in lowest..highest; above=True excludes lowest itself."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not lowest <= value <= highest or (above and value == lowest):
        low = f"above {lowest:g}" if above else f"from {lowest:g}"
        raise ValueError(f"{name} must be a number {low} to {highest:g}, got {value!r}")


def check_place(path: FilePath) -> None:
    """Raises now, rather than after hours of training, if a file cannot be written to path."""
    name = os.fspath(path)
    if isinstance(name, bytes):
        raise TypeError(f"expected a path of type str or Path, got {name!r}")
    if descriptor_of(name) is not None:
        return
    if os.path.isdir(name):
        raise IsADirectoryError(f"{name}: is a directory; expected the name of a file")
    if os.path.exists(name) and not os.path.isfile(name):
        return  # a pipe, or standard output
    parent = os.path.dirname(os.path.realpath(name))
    if not os.path.isdir(parent):
        raise FileNotFoundError(f"{name}: there is no directory {parent}")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise PermissionError(f"{name}: no file can be written in {parent}: {error.strerror}") from None


def check_flag(name: str, value: Any) -> None:
    """Raises ValueError unless value is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_outputs(negatives: Any, hs: Any) -> None:
    """Raises ValueError unless negative sampling, hierarchical softmax or both are enabled."""
    check_int("negatives", negatives, 0, 1000)
    check_flag("hs", hs)
    if negatives == 0 and not hs:
        raise ValueError("negatives=0 and hs=False leave nothing to learn from: set negatives >= 1 or hs=True")


def check_sequence_settings(model: Any) -> None:
    """Checks the settings that the models of sequences share, each where the model has it."""
    for name, highest in (("dim", 100_000), ("window", 1000)):
        if hasattr(model, name):
            check_int(name, getattr(model, name), 1, highest)
    for name in ("shrink_windows", "negatives_shared"):
        if hasattr(model, name):
            check_flag(name, getattr(model, name))
    for name, lowest, highest in (("sample", 0, 1), ("ns_exponent", -10, 10)):
        if hasattr(model, name):
            check_float(name, getattr(model, name), lowest, highest)


def learning_rates(first: float, last: float | None) -> tuple[float, float]:
    """First and last learning rates; the default of the last one is first / 10,000, as in word2vec.c."""
    return float(first), float(first / 10_000 if last is None else last)


def too_wide_for_devices(dim: int) -> str | None:
    """Names dim if it is larger than the rows of device kernels, up to 1,024 numbers; None otherwise."""
    return f"dim={dim:,} (above 1,024)" if dim > 1024 else None


def check_machine(threads: Any, seed: Any, device: Any = "cpu", cpu_only: str | None = None) -> None:
    """Raises ValueError unless threads, seed and device are valid, and the device supports the settings.

    cpu_only: the setting that no device supports, or None.
    """
    if threads is not None:
        check_int("threads", threads, 1, 4096)
    check_int("seed", seed, 0, 2**64 - 1)
    check_device(device)
    if cpu_only and device not in ("cpu", "auto"):
        raise ValueError(f"{cpu_only} runs on the CPU only; use device='cpu'")


def plain(value: Any) -> Any:
    """Converts settings to what JSON keeps: NumPy scalars to Python numbers; arrays, tuples and ranges to lists."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | range | np.ndarray):
        return [plain(part) for part in value]
    return plain_scalar(value)


def is_changed(value: Any, default: Any) -> bool:
    return value is not default and (isinstance(value, np.ndarray) or value != default)


def plain_scalar(value: Any) -> Any:
    """Converts numbers (NumPy's too) to int or float and torch devices to their names; returns the rest unchanged."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, bool | int | float):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    is_device = type(value).__module__ == "torch" and type(value).__name__ == "device"
    return str(value) if is_device else value
