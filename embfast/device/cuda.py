"""CUDA devices through CuPy: finding them, loading kernels, occupancy.

Only embfast.kernels imports this module, and only if a device is requested. CuPy itself is imported when a device is
looked up, so that its absence can be reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1] / "cuda"  # kernels from the build: sources, fat binaries, built.json
OLDEST = (7, 5)  # compute capability
CELL = 16  # bytes per float4
MOST_DIM = 1024  # eight warps with four elements per thread
PLAIN_SHARED = 48 << 10  # bytes of shared memory available without opting in

INSTALL = (
    'pip install "embfast[cuda13]" for CUDA 13 drivers (580 or newer), or "embfast[cuda12]" for CUDA 12 drivers; '
    '`embfast doctor` shows what this machine has, and device="cpu" needs none of it'
)

LANES = 32


def find(number: int = 0) -> Device:
    """Returns a CUDA device of this machine.

    Raises:
        ImportError: CuPy is missing or does not load.
        ValueError: The driver is missing, the device does not exist, or it is too old.
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
        raise ValueError(f"CUDA device {number} does not exist: the driver lists {n}; {INSTALL}")
    return Device(cupy, number)


def choose(name: str) -> tuple[Device | None, str]:
    """Returns the device for "cpu", "cuda", "cuda:1" or "auto" (None for the CPU), and its description.

    "auto" picks the first device if it is usable, otherwise the CPU; the description then includes the reason.

    Raises:
        ImportError, ValueError: As `find`, except for "auto".
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
    """A CUDA device: its properties and its kernels."""

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
        """Context in which CuPy allocates and launches on this device."""
        with self.cupy.cuda.Device(self.number):
            yield

    def free(self) -> int:
        """Free memory in bytes."""
        with self.current():
            return int(self.cupy.cuda.runtime.memGetInfo()[0])

    def built(self) -> str:
        """Returns "fatbin" if the packaged kernels run on this device, "nvrtc" if they are compiled at first use.

        A driver runs binaries of its own CUDA version and of older ones.
        """
        path = HOME / "built.json"
        if not path.exists():
            return "nvrtc"
        toolkit = json.loads(path.read_text())["toolkit"]
        return "fatbin" if self.cupy.cuda.runtime.driverGetVersion() >= 1000 * toolkit[0] + 10 * toolkit[1] else "nvrtc"

    def kernel(self, source: str, name: str) -> Any:
        """Loads a kernel of csrc/*/{source}.cu. CuPy caches the output of NVRTC on disk."""
        if source not in self._modules:
            if self.built() == "fatbin":
                module = self.cupy.RawModule(path=str(HOME / f"{source}.fatbin"))
            else:
                path = HOME / f"{source}.cu"
                if not path.exists():
                    raise ValueError(f"{path} is missing: reinstall embfast")
                module = self.cupy.RawModule(code=path.read_text(), options=("-std=c++17", f"-I{HOME}"))
            self._modules[source] = module
        return self._modules[source].get_function(name)

    def blocks(self, kernel: Any, threads: int, shared: int) -> int:
        """Number of blocks of a kernel that run concurrently, at least one per multiprocessor."""
        if shared > PLAIN_SHARED:
            kernel.max_dynamic_shared_size_bytes = shared
        occupancy = self.cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
        return self.processors * max(1, int(occupancy(kernel.kernel.ptr, threads, shared)))


def describe() -> list[tuple[str, str]]:
    """Rows (name, text) about devices for `embfast doctor`."""
    rows = []
    path = HOME / "built.json"
    if path.exists():
        built = json.loads(path.read_text())
        architectures = ", ".join(f"sm_{architecture}" for architecture in built["architectures"])
        text = f"compiled by nvcc {built['toolkit'][0]}.{built['toolkit'][1]} for {architectures}"
    else:
        text = "sources, compiled by CuPy at first use (NVRTC)" if (HOME / "sequences.cu").exists() else "missing"
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
