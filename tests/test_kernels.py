"""The training kernels: against the reference, the reference against calculus, and at the edges of their arguments."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import embfast
import numpy as np
import pytest
from embfast import kernels, reference
from numpy.testing import assert_allclose, assert_array_equal
from problems import WINDOWS, Problem, every_problem

PROBLEMS = every_problem()


@pytest.fixture(scope="session", params=["baseline", "avx2", "avx512"])
def solved(request, tmp_path_factory):
    """What the kernel makes of every problem on one instruction set, which a process chooses once."""
    path = tmp_path_factory.mktemp("solved") / f"{request.param}.npz"
    root = str(Path(embfast.__file__).parents[1])
    environment = {**os.environ, "EMBFAST_ISA": request.param, "PYTHONPATH": root}
    script = Path(__file__).parent / "problems.py"
    done = subprocess.run(
        [sys.executable, script, path], env=environment, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stderr
    with np.load(path) as arrays:
        if str(arrays["isa"]) != request.param:
            pytest.skip(f"this machine has {arrays['isa']} at most")
        return dict(arrays)


@cache
def expected(name):
    return PROBLEMS[name].solve(reference, np.float64)


@pytest.mark.parametrize("name", PROBLEMS)
def test_kernel_matches_reference(name, solved):
    for part, slow in expected(name).items():
        fast = solved[f"{name}/{part}"]
        if part == "tally":
            assert_allclose(fast[0], slow[0], rtol=1e-4)
            assert_array_equal(fast[1:], slow[1:], "examples, kept")
        else:
            assert_allclose(fast, slow, rtol=1e-4, atol=1e-6, err_msg=part)
            assert not fast[:, PROBLEMS[name].dim :].any(), f"{part}: padding moved"
