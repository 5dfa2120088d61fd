"""The one door to compiled code: nothing else imports embfast._cpu, or embfast.device.cuda with its kernels."""

import math
import mmap
import numbers
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

try:
    from embfast import _cpu
except ImportError as error:
    raise ImportError(
        f"embfast's compiled module did not load ({error}). Install the package with a C++ compiler at hand: "
        "`pip install .` in a checkout, or `pip install embfast`."
    ) from error

# Text to ids (csrc/text/text.h): used by embfast.text.corpus; sources turns its faults into errors with file and line.
TextEncoder = _cpu.TextEncoder
# Decimal text to float32 and back (csrc/text/decimals.h): used by embfast.files.formats.
parse_lines = _cpu.parse_lines
format_lines = _cpu.format_lines

NoiseTable = _cpu.NoiseTable
HuffmanTree = _cpu.HuffmanTree
MAX_CENTERS = _cpu.max_centers
isa = _cpu.isa
# Training on sequences of ids (csrc/sequences): used by embfast.training.sequences.
SEQUENCE_JOB = _cpu.sequence_job  # the settings, struct SequenceJob of csrc/sequences/job.h
train_sequences = _cpu.train_sequences
infer_documents = _cpu.infer_documents
CooccurrenceCounter = _cpu.CooccurrenceCounter
ENTRY = _cpu.entry  # entry of a co-occurrence matrix: int32 row, int32 column, float32 value
group_entries = _cpu.group_entries
random_order = _cpu.random_order
train_entries = _cpu.train_entries
GLOVE_JOB = _cpu.glove_job  # settings of train_entries and device_entries: struct GloveJob of csrc/glove/job.h
EdgeReader = _cpu.EdgeReader
csr = _cpu.csr
asymmetric_entry = _cpu.asymmetric_entry
# Rows of -1, 0 and 1 in bit planes (csrc/ternary/ternary.h): used by embfast.files.ternary.
ternary_levels = _cpu.ternary_levels
ternary_pack = _cpu.ternary_pack
ternary_unpack = _cpu.ternary_unpack
ternary_nonzeros = _cpu.ternary_nonzeros
ternary_top = _cpu.ternary_top
# Tiles of similarities (csrc/ranking/ranking.h): used by embfast.multimodal.ranking.
order_scores = _cpu.order_scores
add_order_gradients = _cpu.add_order_gradients
hinges = _cpu.hinges
hardest = _cpu.hardest
fma_peak = _cpu.fma_peak
read_bandwidth = _cpu.read_bandwidth


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def padded(dim: int) -> int:
    """Columns of a weight table for vectors of size dim: the next multiple of 16 floats, the widest SIMD register."""
    return -(-dim // 16) * 16


def weight_table(n: int, dim: int) -> np.ndarray:
    """Zeros, float32 (n, padded(dim)), on huge pages where the system has them; kernels change them in place.

    The vectors are table[:, :dim]. The columns after dim hold zeros, and training keeps them zero.
    """
    return _zeros((n, padded(dim)), np.float32)


def bit_planes(n: int, dim: int) -> np.ndarray:
    """Zeros, uint64 (n, 2, words), for n rows of dim levels in the layout of csrc/ternary; words is a multiple of 8."""
    return _zeros((n, 2, -(-dim // 512) * 8), np.uint64)


def _zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Page-aligned zeros, on huge pages where the system has them."""
    size = math.prod(shape)
    memory = mmap.mmap(-1, max(size * np.dtype(dtype).itemsize, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, size).reshape(shape)


def sequence_job(**settings: Any) -> np.ndarray:
    """A record of settings for train_sequences, SEQUENCE_JOB (1,), filled by name; other fields get their defaults.

    The default is skip-gram with the words of a window, batches of one center, and negatives shared within a batch.

    Raises:
        TypeError, ValueError: a value is not a number, or does not fit its field.
    """
    job = np.zeros(1, SEQUENCE_JOB)
    for name, value in {**_DEFAULTS, **settings}.items():
        whole = np.issubdtype(SEQUENCE_JOB[name], np.integer)
        if not isinstance(value, numbers.Integral if whole else numbers.Real):
            raise TypeError(f"{name}: expected a {'whole ' * whole}number, got {value!r}")
        try:
            job[name] = value
        except OverflowError:
            raise ValueError(f"{name}: expected a number that fits {SEQUENCE_JOB[name]}, got {value!r}") from None
    return job


_DEFAULTS = {
    "words": True,
    "mean": True,
    "shared": True,
    "centers": 1,
    "scale": 1.0,
    "tag_weight": 1,
    "tokens_total": 1,
}


def device(name: str) -> tuple[Any, str]:
    """The Device of device/cuda.py that a setting names, None for the CPU; and its name with the reason for the choice.

    Raises:
        ImportError, ValueError: the device is not available; the message says what to install.
    """
    if name == "cpu":
        return None, "cpu"
    from embfast.device.cuda import choose

    return choose(name)


def device_sequences(device: Any, job: np.ndarray, tables: Mapping[str, np.ndarray | None], **arrays: Any) -> Any:
    """A session that trains tables on a device on sequences: device.sequences.Sequences."""
    from embfast.device.sequences import Sequences

    return Sequences(device, job, tables, **arrays)


def describe_devices() -> list[tuple[str, str]]:
    """Devices besides the CPU, or what is missing to use one: rows of name and text."""
    from embfast.device.cuda import describe

    return describe()


def device_entries(
    device: Any,
    job: np.ndarray,
    tables: dict[str, np.ndarray],
    entries: np.ndarray,
    parts: np.ndarray,
    runs: np.ndarray,
) -> Any:
    """A session that trains GloVe's tables on a device on runs of entries: device.entries.Entries."""
    from embfast.device.entries import Entries

    return Entries(device, job, tables, entries, parts, runs)


def device_walks(device: Any, arrays: dict[str, np.ndarray | None], settings: dict[str, Any]) -> Any:
    """A graph on a device, from which walks are drawn: device.walks.DeviceWalks."""
    from embfast.device.walks import DeviceWalks

    return DeviceWalks(device, arrays, settings)


def device_packer(device: Any, low: np.ndarray, high: np.ndarray) -> Any:
    """Packs ternary rows on a device: device.ternary.Packer."""
    from embfast.device.ternary import Packer

    return Packer(device, low, high)


def device_ranking_loss(device: Any, images: Any, captions: Any, **settings: Any) -> tuple[float, Any, Any]:
    """A ranking loss of rows on a device, and its gradients: device.ranking.ranking_loss."""
    from embfast.device.ranking import ranking_loss

    return ranking_loss(device, images, captions, **settings)
