"""What several tests share: real data, the original tools, and small vectors."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embfast
from embfast.vectors.vectors import Vectors

# A script that starts the tests in the background has them ignore Ctrl-C, which some of them press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data():
    """Finds a file of real data, below $EMBFAST_DATA or ../shared/data beside the checkout, or skips the test."""
    root = Path(os.environ.get("EMBFAST_DATA", Path(__file__).parents[2] / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"no {name} in {root}; set EMBFAST_DATA")
        return root / name

    return find


@pytest.fixture(scope="session")
def original():
    """Finds a program of the original word2vec on the PATH, or skips the test."""

    def find(program: str) -> str:
        path = shutil.which(program)
        if path is None:
            pytest.skip(f"{program} is not on the PATH; PyPI word2vec installs it")
        return path

    return find


@pytest.fixture(scope="session")
def solve_on(tmp_path_factory):
    """Runs a script beside the tests on an instruction set, which a process chooses once; gives the arrays it saved."""

    def solve(isa: str, script: str) -> dict[str, np.ndarray]:
        path = tmp_path_factory.mktemp("solved") / "solved.npz"
        environment = {**os.environ, "EMBFAST_ISA": isa, "PYTHONPATH": str(Path(embfast.__file__).parents[1])}
        command = [sys.executable, Path(__file__).parent / "support" / script, path]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stderr
        with np.load(path) as arrays:
            if str(arrays["isa"]) != isa:
                pytest.skip(f"this machine has {arrays['isa']} at most")
            return dict(arrays)

    return solve


@pytest.fixture
def make_vectors():
    """Random Vectors of n keys w0, w1, ... and dim numbers."""

    def make(n: int, dim: int, seed: int = 0) -> Vectors:
        rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
        return Vectors([f"w{i}" for i in range(n)], rows)

    return make
