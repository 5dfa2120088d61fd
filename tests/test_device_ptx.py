"""PTX of the kernels for GloVe, walks and ternary rows, for the oldest and a new architecture, interpreted on numpy."""

import shutil
import subprocess

import numpy as np
import ptx
import pytest
import shim
from entry_problems import EntryProblem
from numpy.testing import assert_array_equal
from test_device_glove import assert_same, expected, run_arguments, run_job
from test_device_ternary import NONE, TernaryMatrix, problem, rows_of

from embfast import kernels

SOURCES = {
    "glove": ["train_runs_warp"],
    "walks": ["walk_first_order", "walk_second_order"],
    "ternary": ["ternary_pack", "ternary_levels", "ternary_nonzeros", "ternary_dots"],
}
ARCHITECTURES = [75, 90]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles a source to PTX once and returns its kernels by name."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    made = {}

    def compile(source, architecture):
        if (source, architecture) not in made:
            out = tmp_path_factory.mktemp("ptx") / f"{source}.ptx"
            command = [nvcc, "-std=c++17", f"-I{shim.SOURCES}", "-ptx", f"-arch=compute_{architecture}", "-o", out,
                       shim.source(f"{source}.cu")]  # fmt: skip
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            made[source, architecture] = {name: ptx.Kernel(out.read_text(), name) for name in SOURCES[source]}
        return made[source, architecture]

    return compile


def launch(kernel, grid, arrays, arguments, shared=0):
    """Launches a kernel. arrays: The arrays that the job points to. arguments: As for shim.launch."""
    memory, values = ptx.Memory(), []
    for array in arrays:
        if array is not None and array.size:
            memory.add(array)
    for argument in arguments:
        values.append(np.uint64(memory.add(argument)) if isinstance(argument, np.ndarray) else argument)
    ptx.launch(kernel, memory, grid, values, shared)


def assert_covered(kernel, share):
    assert len(kernel.run) > share * len(kernel.instructions), f"{len(kernel.run)} of {len(kernel.instructions)}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_runs_of_entries(architecture, compiled):
    kernel = compiled("glove", architecture)["train_runs_warp"]
    for one in (EntryProblem(dim=20, words=8, n=50), EntryProblem(dim=127, words=6, n=12)):
        arguments, loss = run_arguments(one), np.zeros(1)
        job, shape, arrays = run_job(arguments, loss)
        launch(kernel, 1, arrays.values(), [job], shape.shared)
        tables = {name: arguments[name] for name in ("w_in", "w_out", "sums_in", "sums_out")}
        assert_same({"loss": loss, **tables}, expected(one), one)
    assert_covered(kernel, 0.8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_walks(architecture, compiled):
    pytest.importorskip("numba")
    from test_device_walks import Walks, graph_named, walk_job

    made = compiled("walks", architecture)
    for kind, p, q, restart, plus in (
        ("plain", 1, 1, 0.2, False),
        ("weighted", 0.25, 4, 0.2, False),
        ("directed weighted", 4, 0.25, 0, True),
        ("directed", 1e-3, 1e3, 0, False),
        ("wide weighted", 1e3, 1e-3, 0, True),
    ):
        walks = Walks(graph_named(kind), length=12, per_node=1, p=p, q=q, restart=restart, plus=plus, seed=3)
        last = min(len(walks), 40)
        name, job, arrays = walk_job(walks, 0, 0, last)
        launch(made[name], 1, arrays.values(), [job])
        ids, offsets = walks.read(0, 0, last)
        assert_array_equal(arrays["lengths"], np.diff(offsets))
        for walk, length in enumerate(arrays["lengths"]):
            assert_array_equal(arrays["steps"][:length, walk], ids[offsets[walk] : offsets[walk + 1]])
    assert_covered(made["walk_second_order"], 0.7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ternary_rows(architecture, compiled):
    made = compiled("ternary", architecture)
    features, low, high = problem(3, 70)
    features[~np.isfinite(features)] = 0
    expected_planes = kernels.bit_planes(3, 70)
    assert kernels.ternary_pack(features, low, high, expected_planes) == -1
    planes, unordered, sizes = np.full_like(expected_planes, 0xDEAD), np.array([NONE], np.uint64), [np.int64(3)]
    sizes += [np.int64(70), np.int64(8)]
    launch(made["ternary_pack"], 1, [], [features, low, high, *sizes, planes, unordered])
    assert_array_equal(planes, np.asarray(expected_planes))
    assert unordered[0] == NONE
    rows, queries = TernaryMatrix.from_rows(rows_of(6, 70, 1)), TernaryMatrix.from_rows(rows_of(5, 70, 2))
    dots = np.zeros((5, 6), np.int32)
    launch(made["ternary_dots"], 1, [],
           [np.array(queries.planes), np.int64(5), np.array(rows.planes), np.int64(6), np.int64(8), dots])  # fmt: skip
    assert_array_equal(dots, queries[:].astype(np.int32) @ rows[:].astype(np.int32).T)
    counts = np.zeros(6, np.int32)
    launch(made["ternary_nonzeros"], 1, [], [np.array(rows.planes), np.int64(6), np.int64(8), counts])
    assert_array_equal(counts, rows.nonzeros)
