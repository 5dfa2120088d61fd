"""Training on a CUDA device through CuPy: tables and slices of the corpus there, launches of csrc/*.cu.

Only embfast.kernels imports this module, and only when a device is asked for. CuPy itself is imported when a device is
looked for, so that its absence is an answer and not a crash.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1] / "cuda"  # kernels as the build left them: sources, fat binaries, built.json
OLDEST = (7, 5)  # compute capability
CELL = 16  # bytes of a float4
MOST_DIM = 1024  # numbers of a row: eight warps of four numbers a thread
PLAIN_SHARED = 48 << 10  # bytes of shared memory that every device gives without being asked

INSTALL = (
    'pip install "embfast[cuda13]" for drivers of CUDA 13 (580 or newer), or "embfast[cuda12]" for those of CUDA 12; '
    '`embfast doctor` says what this machine has, and device="cpu" needs none of it'
)

LANES = 32


# ---- devices ------------------------------------------------------------------------------------------------------


def find(number: int = 0) -> Device:
    """A device of this machine.

    Raises:
        ImportError: CuPy is missing, or does not load.
        ValueError: there is no driver, no such device, or it is too old.
    """
    try:
        import cupy
    except ImportError as error:
        raise ImportError(f'device="cuda" needs CuPy, which did not load ({error}): {INSTALL}') from error
    try:
        n = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ValueError(f"CuPy {cupy.__version__} finds no CUDA driver ({error}): {INSTALL}") from error
    if not 0 <= number < n:
        raise ValueError(f"there is no CUDA device {number}: the driver lists {n}; {INSTALL}")
    return Device(cupy, number)


def choose(name: str) -> tuple[Device | None, str]:
    """The device that a setting names, None for the CPU, and why: "cpu", "cuda", "cuda:1" or "auto".

    "auto" takes the first device where there is one, and otherwise the CPU.

    Raises:
        ImportError, ValueError: as find, save with "auto".
    """
    if name == "cpu":
        return None, "cpu"
    try:
        device = find(int(name.partition(":")[2] or 0))
    except (ImportError, ValueError) as error:
        if name != "auto":
            raise
        return None, f"cpu, since {error}"
    return device, str(device)


class Device:
    """One CUDA device: what it is, and its kernels."""

    def __init__(self, cupy: Any, number: int) -> None:
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        self.cupy, self.number = cupy, number
        self.name = properties["name"].decode()
        self.capability = (int(properties["major"]), int(properties["minor"]))
        self.processors = int(properties["multiProcessorCount"])
        self.shared_most = int(properties["sharedMemPerBlockOptin"])
        self.properties = properties
        if self.capability < OLDEST:
            raise ValueError(
                f"{self.name} has compute capability {self.capability[0]}.{self.capability[1]}; "
                f"kernels are compiled for {OLDEST[0]}.{OLDEST[1]} and newer"
            )
        self._modules: dict[str, Any] = {}

    def __str__(self) -> str:
        return f"cuda:{self.number} ({self.name})"

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside, CuPy allocates and launches on this device."""
        with self.cupy.cuda.Device(self.number):
            yield

    def free(self) -> int:
        """Bytes that are not taken."""
        with self.current():
            return int(self.cupy.cuda.runtime.memGetInfo()[0])

    def built(self) -> str:
        """Says "fatbin" where the kernels in the package run here, and "nvrtc" where they are compiled at first use.

        A driver runs the binaries of its own CUDA version and of older ones.
        """
        path = HOME / "built.json"
        if not path.exists():
            return "nvrtc"
        toolkit = json.loads(path.read_text())["toolkit"]
        return "fatbin" if self.cupy.cuda.runtime.driverGetVersion() >= 1000 * toolkit[0] + 10 * toolkit[1] else "nvrtc"

    def kernel(self, source: str, name: str) -> Any:
        """A kernel of csrc/{source}.cu. CuPy keeps what NVRTC compiles in its cache on disk."""
        if source not in self._modules:
            if self.built() == "fatbin":
                module = self.cupy.RawModule(path=str(HOME / f"{source}.fatbin"))
            else:
                path = HOME / f"{source}.cu"
                if not path.exists():
                    raise ValueError(f"{path} is missing: install embfast anew")
                module = self.cupy.RawModule(code=path.read_text(), options=("-std=c++17", f"-I{HOME}"))
            self._modules[source] = module
        return self._modules[source].get_function(name)

    def blocks(self, kernel: Any, threads: int, shared: int) -> int:
        """Blocks of a kernel that run at the same time, at least one for each multiprocessor."""
        if shared > PLAIN_SHARED:
            kernel.max_dynamic_shared_size_bytes = shared
        occupancy = self.cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
        return self.processors * max(1, int(occupancy(kernel.kernel.ptr, threads, shared)))


def describe() -> list[tuple[str, str]]:
    """What `embfast doctor` says of devices: rows of name and text."""
    rows = []
    path = HOME / "built.json"
    if path.exists():
        built = json.loads(path.read_text())
        architectures = ", ".join(f"sm_{architecture}" for architecture in built["architectures"])
        text = f"compiled by nvcc {built['toolkit'][0]}.{built['toolkit'][1]} for {architectures}"
    else:
        text = "sources, which CuPy compiles at first use (NVRTC)" if (HOME / "sequences.cu").exists() else "missing"
    rows.append(("device kernels", text))
    try:
        first = find()
    except (ImportError, ValueError) as error:
        return [*rows, ("CUDA device", str(error))]
    cupy = first.cupy
    driver = cupy.cuda.runtime.driverGetVersion()
    rows += [("CuPy", cupy.__version__), ("CUDA driver", f"CUDA {driver // 1000}.{driver % 1000 // 10}")]
    for number in range(cupy.cuda.runtime.getDeviceCount()):
        try:
            device = find(number)
        except ValueError as error:
            rows.append((f"cuda:{number}", str(error)))
            continue
        how = {"fatbin": "runs the compiled kernels", "nvrtc": "compiles kernels at first use"}[device.built()]
        rows.append(
            (
                str(device),
                f"compute capability {device.capability[0]}.{device.capability[1]}, "
                f"{device.processors} multiprocessors, "
                f"{device.free() / 1e9:.3g} of {device.properties['totalGlobalMem'] / 1e9:.3g} GB free; {how}",
            )
        )
    return rows


# ---- sequences ----------------------------------------------------------------------------------------------------
