"""What several tests share: real data, the original tools, and small vectors."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from embfast.vectors import Vectors

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


@pytest.fixture
def make_vectors():
    """Random Vectors of n keys w0, w1, ... and dim numbers."""

    def make(n: int, dim: int, seed: int = 0) -> Vectors:
        rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
        return Vectors([f"w{i}" for i in range(n)], rows)

    return make
