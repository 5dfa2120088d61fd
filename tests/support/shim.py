"""Runs the device kernels on the CPU: compiles csrc/*/*.cu against tests/cuda/shim.h and launches kernels by name.

Needs g++ on x86-64. Libraries are cached in build/shim by a hash of sources and options.
"""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CUDA = ROOT / "tests" / "cuda"
SOURCES = ROOT / "csrc"
SCHEDULES = {"forward": 0, "reverse": 1, "random": 2}
COUNTERS = ("bytes_read", "bytes_written", "bytes_added", "additions", "collectives", "switches")


SANITIZERS = {
    None: ([], []),
    "address": (["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], None),
    # The scheduler must not be instrumented, so it is compiled without -fsanitize=thread.
    "thread": (["-fsanitize=thread"], ["-DSHIM_THREAD_SANITIZER"]),
}


def build(name="plain", *, sanitizer=None, options=("-O1",), changes=None, kernels=None):
    """Builds a library unless it is cached, and returns its path.

    changes: Dictionary from a file in csrc to (text, replacement), applied to a copy. kernels: Replacement for
    tests/cuda/kernels.cpp.
    """
    if platform.machine() not in ("x86_64", "AMD64") or shutil.which("g++") is None:
        pytest.skip("the CUDA shim needs g++ on x86-64")
    files = {
        path: path.read_text() for path in sorted([*CUDA.glob("*"), *SOURCES.glob("*/*.cu"), *SOURCES.glob("*/*.h")])
    }
    if kernels is not None:
        files[CUDA / "kernels.cpp"] = kernels
    for file, (text, other) in (changes or {}).items():
        assert files[source(file)].count(text) == 1, f"{file}: expected {text!r} exactly once"
        files[source(file)] = files[source(file)].replace(text, other)
    flags = ["-std=c++20", "-fPIC", "-g1", "-DEMBFAST_SHIM", "-Wall", "-Wextra", "-Werror", *options]
    watched, scheduler = SANITIZERS[sanitizer]
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    key = repr((compiler, flags, watched, scheduler, [(path.name, text) for path, text in files.items()]))
    folder = ROOT / "build" / "shim" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    library = folder / "shim.so"
    if library.exists():
        return library
    work = folder.with_name(f"{folder.name}.{os.getpid()}")
    for path, text in files.items():
        copy = work / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    cuda = work / "tests" / "cuda"
    include = [f"-I{cuda}", f"-I{work / 'csrc'}"]
    for part, own in (("kernels", watched), ("shim", watched if scheduler is None else scheduler)):
        run(["g++", *flags, *own, *include, "-c", cuda / f"{part}.cpp", "-o", work / f"{part}.o"], work)
    run(["g++", "-shared", *flags, *watched, work / "kernels.o", work / "shim.o", "-o", work / "shim.so"], work)
    try:
        work.rename(folder)
    except OSError:  # another process has built the same library
        shutil.rmtree(work)
    return library


def run_sanitized(sanitizer, script):
    """Runs a Python script, which may import from tests, in a process with a sanitizer loaded."""
    names = {"address": ("libasan", "libubsan"), "thread": ("libtsan",)}[sanitizer]
    paths = [
        subprocess.run(["g++", f"-print-file-name={n}.so"], capture_output=True, text=True).stdout.strip()
        for n in (*names, "libstdc++")
    ]
    settings = {
        "LD_PRELOAD": " ".join(os.path.realpath(path) for path in paths),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "exitcode=66:suppress_equal_addresses=0",
    }
    return subprocess.run([sys.executable, "-c", script], env=environment() | settings, capture_output=True, text=True)


def environment():
    """Environment for a process that imports from tests."""
    return {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]),
    }


def run(command, folder):
    done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def source(name):
    """Path of a file in csrc, by its name or, if several rooms have such a file, by room/name."""
    (path,) = SOURCES.rglob(name)
    return path


def fields(file, struct):
    """Names of the fields of a struct in csrc."""
    body = re.search(rf"struct {struct} {{(.*?)\n}};", source(file).read_text(), re.DOTALL)[1]
    lines = [line.partition("//")[0] for line in body.splitlines()]
    return re.findall(r"[*\s](\w+)(?=[,;])", "\n".join(line for line in lines if "(" not in line))


ONE_AT_A_TIME = threading.Lock()  # a library has a single scheduler


class ShimError(RuntimeError):
    """A fault found by the shim in a launch."""


class Shim:
    """A library of kernels for the CPU."""

    def __init__(self, library):
        self._library = ctypes.CDLL(str(library))
        self._library.shim_message.restype = ctypes.c_char_p

    def schedule(self, policy="forward", seed=1, resident=1):
        """Sets the order in which threads run. resident: Number of concurrent blocks."""
        self._library.shim_schedule(SCHEDULES[policy], ctypes.c_uint64(seed), resident)

    def counters(self):
        """Counts of memory accesses and synchronisation since the last call."""
        values = np.zeros(len(COUNTERS), np.uint64)
        self._library.shim_counters(values.ctypes.data_as(ctypes.c_void_p), 1)
        return dict(zip(COUNTERS, map(int, values), strict=True))

    def arguments(self, name):
        """Size in bytes of each argument of a kernel."""
        sizes = np.zeros(64, np.uint64)
        n = self._library.shim_arguments(name.encode(), sizes.ctypes.data_as(ctypes.c_void_p), 64)
        if n < 0:
            raise ShimError(f"no kernel is named {name}")
        return [int(size) for size in sizes[:n]]

    def launch(self, name, grid, block, arguments, shared=0):
        """Launches a kernel. grid and block are numbers or tuples.

        Arguments are arrays (passed by address), None (a null pointer) or numpy scalars (passed by value; structured
        scalars too).
        """
        values = [np.uint64(0) if a is None else np.uint64(a.ctypes.data) if isinstance(a, np.ndarray) else a
                  for a in arguments]  # fmt: skip
        sizes = self.arguments(name)
        if [value.nbytes for value in values] != sizes:
            raise ShimError(f"{name}: takes arguments of {sizes} bytes, got {[value.nbytes for value in values]}")
        cells = [np.array(value) for value in values]
        pointers = (ctypes.c_void_p * max(len(cells), 1))(*(cell.ctypes.data for cell in cells))
        three = [(ctypes.c_uint * 3)(*((n if isinstance(n, tuple) else (n,)) + (1, 1))[:3]) for n in (grid, block)]
        with ONE_AT_A_TIME:
            if self._library.shim_launch(name.encode(), *three, ctypes.c_uint64(shared), pointers):
                raise ShimError(self._library.shim_message().decode())
