"""The GloVe kernels of csrc/glove/glove.cu, run on the CPU by the shim and compared with the reference."""

import sys
from dataclasses import replace
from itertools import cycle, pairwise

import numpy as np
import pytest
import saved
import shim
import standin
from entry_problems import TABLES, EntryProblem, changed
from numpy.testing import assert_allclose, assert_array_equal

from embfast import CooccurrenceMatrix, Corpus, GloVe, kernels, reference
from embfast.device import entries as device_glove
from embfast.device.cuda import Device
from embfast.device.entries import run_shape
from embfast.words import glove
from embfast.words.glove import make_runs


@pytest.fixture(scope="module")
def library():
    return shim.Shim(shim.build())


def device_problems():
    """Problems by name: rows narrower than, as wide as and wider than a warp, varying settings, and special cases."""
    extras = cycle(
        [
            {},
            {"x_max": 100.0, "alpha": 1.0},
            {"alpha": 0.0, "seed": 2},
            {"spread": 4.0, "lr": 0.1},
            {"words": 3, "n": 9},
            {"x_max": 1e-3, "epoch": 0},
            {"seed": 2**63 + 5, "lr": 0.2, "words": 30},
        ]
    )
    found = {f"dim{dim}": EntryProblem(dim=dim, **next(extras)) for dim in (1, 3, 4, 15, 16, 100, 127, 128, 200, 300)}
    found["dim1024"] = EntryProblem(dim=1024, n=20)
    plain = EntryProblem(dim=20, words=40, n=300)
    found["long-runs"] = replace(plain, words=12, n=144)
    found["clipped"] = replace(plain, spread=2e4, lr=1e-3, n=60)
    found["smallest-values"] = replace(plain, x_max=1e-30, n=60)
    found["largest-values"] = replace(plain, x_max=1e30, n=60)
    return found


PROBLEMS = device_problems()


def run_arguments(problem, dtype=np.float32, longest=64):
    """Arguments for reference.train_entries: entries sorted by row, and groups that are runs of one row."""
    arguments = problem.arguments(dtype)
    entries = arguments["entries"] = arguments["entries"][np.argsort(arguments["entries"]["row"], kind="stable")]
    edges = np.flatnonzero(np.diff(entries["row"], prepend=-1, append=-1))
    arguments["groups"] = np.append(
        np.concatenate([np.arange(begin, end, longest) for begin, end in pairwise(edges)]),
        len(entries),
    )
    n = len(arguments["groups"]) - 1
    arguments["order"] = np.random.default_rng(problem.seed % 2**32).permutation(n).astype(np.int32)
    arguments["job"]["last"] = n
    return arguments


def run_job(arguments, loss, longest=64, first_entry=0):
    """Returns the job for a launch, its launch configuration, and the arrays that it points to."""
    pitch = arguments["w_in"].shape[1] // 4
    arrays = {name: arguments[name] for name in (*TABLES, "entries", "order")}
    arrays |= {"groups": arguments["groups"].astype(np.int64), "loss": loss}
    arrays["entries"] = np.ascontiguousarray(arrays["entries"][first_entry:])
    pointers = {name: array.ctypes.data for name, array in arrays.items()}
    job = changed(arguments["job"], **pointers, first_entry=first_entry, pitch=pitch, longest=longest)
    return job[()], run_shape(pitch, longest), arrays


def solve(library, problem, grid=1, longest=64, threads=None):
    """Solves a problem with a kernel. Returns loss and tables by name. Runs one team unless threads is given."""
    arguments, loss = run_arguments(problem, longest=longest), np.zeros(1)
    job, shape, _ = run_job(arguments, loss, longest)
    threads = threads or (shape.threads if shape.runs == 1 else 32)
    library.launch(shape.kernel, grid, threads, [job], shape.shared)
    return {"loss": loss, **{name: arguments[name] for name in TABLES}}


def expected(problem, longest=64):
    arguments = run_arguments(problem, np.float64, longest)
    loss, _ = reference.train_entries(**arguments)
    return {"loss": np.array([loss]), **{name: arguments[name] for name in TABLES}}


def assert_same(fast, slow, problem):
    assert_allclose(fast["loss"], slow["loss"], rtol=1e-5)
    for name in TABLES:
        rows = fast[name][:, : problem.dim + 1]
        assert_allclose(rows, slow[name][:, : problem.dim + 1], rtol=2e-5, atol=2e-5, err_msg=name)
        assert_array_equal(fast[name][:, problem.dim + 1 :], slow[name][:, problem.dim + 1 :], f"{name}: padding moved")


@pytest.mark.parametrize("name", PROBLEMS)
def test_kernels_match_the_reference_of_the_cpu_in_any_order_of_threads(name, library):
    problem = PROBLEMS[name]
    slow = expected(problem)
    before = run_arguments(problem)
    assert all(np.abs(slow[table] - before[table]).max() > 1e-4 for table in TABLES)
    results = []
    for policy in shim.SCHEDULES:
        library.schedule(policy, seed=len(name))
        results.append(solve(library, problem))
        assert_same(results[-1], slow, problem)
    for other in results[1:]:
        for part, values in other.items():
            assert_array_equal(values, results[0][part], part)


@pytest.mark.parametrize("longest", [1, 33, 1024])
def test_runs_of_any_length(longest, library):
    problem = EntryProblem(dim=20, words=60, n=2_000)
    assert (np.diff(run_arguments(problem, longest=1024)["groups"]) > 32).any()
    library.schedule()
    assert_same(solve(library, problem, longest=longest), expected(problem, longest), problem)


@pytest.mark.parametrize("dim", [20, 200])
def test_teams_that_run_at_once_see_the_same_entries(dim, library):
    """A different order of additions gives nearly the same loss and rows."""
    problem = EntryProblem(dim=dim, words=200, n=1_000, lr=0.01)
    library.schedule()
    alone = solve(library, problem)
    for seed in range(3):
        library.schedule("random", seed, resident=3)
        together = solve(library, problem, grid=3, threads=None if dim == 200 else 128)
        assert_allclose(together["loss"], alone["loss"], rtol=0.3)
        for name in ("sums_in", "sums_out"):
            assert (together[name] >= 1 - 1e-6).all()
        for name in ("w_in", "w_out"):
            moved = np.abs(alone[name] - run_arguments(problem)[name]).max()
            assert np.abs(together[name] - alone[name]).max() < 0.5 * moved, name


def test_a_slice_of_the_entries_gives_the_same_bits(library):
    """Draws are indexed over the whole matrix, regardless of where the slice begins."""
    problem = EntryProblem(dim=20, words=20, n=200)
    library.schedule()
    whole, parts = run_arguments(problem), run_arguments(problem)
    for arguments in (whole, parts):
        arguments["order"] = np.arange(len(arguments["order"]), dtype=np.int32)
    losses = np.zeros((2, 1))
    job, shape, _ = run_job(whole, losses[0])
    library.launch(shape.kernel, 1, 32, [job], shape.shared)
    n = len(whole["order"])
    middle = n // 2
    for first, last, skipped in ((0, middle, 0), (middle, n, int(whole["groups"][middle]))):
        part = parts | {"job": changed(parts["job"], first=first, last=last)}
        job, shape, _arrays = run_job(part, losses[1], first_entry=skipped)
        library.launch(shape.kernel, 1, 32, [job], shape.shared)
    for name in TABLES:
        assert_array_equal(parts[name], whole[name], name)
    assert_allclose(*losses, rtol=1e-12)


def test_a_repeated_column_sees_the_previous_step(library):
    problem = EntryProblem(dim=20, words=4, n=16)
    fast, slow = run_arguments(problem), run_arguments(problem, np.float64)
    for arguments in (fast, slow):
        arguments["entries"]["column"] = 2
    loss = np.zeros(1)
    job, shape, _ = run_job(fast, loss)
    library.launch(shape.kernel, 1, 32, [job], shape.shared)
    assert_allclose(loss[0], reference.train_entries(**slow)[0], rtol=1e-5)
    assert_allclose(fast["w_out"], slow["w_out"], rtol=1e-5, atol=1e-5)


def test_bytes_per_entry_are_those_of_the_model(library):
    """The row of a column and its sums are read and updated once per entry, those of the run's row once per run."""
    problem = EntryProblem(dim=127, words=100, n=10_000)
    library.schedule()
    arguments = run_arguments(problem)
    job, shape, _ = run_job(arguments, np.zeros(1))
    library.counters()
    library.launch(shape.kernel, 1, 32, [job], shape.shared)
    counted, rows = library.counters(), 2 * 512
    runs = len(arguments["order"]) / len(arguments["entries"])
    assert counted["bytes_read"] / len(arguments["entries"]) == pytest.approx(rows * (1 + runs))
    assert counted["bytes_added"] / len(arguments["entries"]) == pytest.approx(rows * (1 + runs), rel=1e-3)


# ---- host code, with a stand-in for CuPy -----------------------------------------------------------------------------


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", standin)
    monkeypatch.setattr(Device, "built", lambda self: "fatbin")
    return standin


@pytest.fixture(scope="module")
def matrix():
    rng = np.random.default_rng(0)
    lines = [[f"w{x}" for x in rng.zipf(1.3, rng.integers(2, 40)) % 80] for _ in range(120)]
    return CooccurrenceMatrix.from_corpus(Corpus.from_sentences(lines, min_count=1), window=5)


def fitted_by_the_reference(model, matrix):
    """Loss of each epoch and tables of a fit, one run at a time."""
    n = len(matrix.words)
    entries, parts, runs = make_runs(matrix, np.arange(n, dtype=np.int32), n, model.seed)
    tables = {name: table.astype(np.float64) for name, table in model._fresh(n, 0).items()}
    losses = []
    for epoch in range(model.epochs):
        turns = reference.random_order(len(parts) - 1, model.seed, epoch)
        orders = [reference.random_order(parts[p + 1] - parts[p], model.seed, epoch * len(turns) + p) for p in turns]
        order = np.concatenate([parts[p] + o for p, o in zip(turns, orders, strict=True)])
        job = {**model.get_params(), "epoch": epoch, "first": 0, "last": len(order)}
        loss, trained = reference.train_entries(job, **tables, entries=entries, groups=runs, order=order)
        losses.append(loss / trained)
    return losses, tables


@pytest.mark.parametrize("parts", ["whole", "streamed"])
@pytest.mark.parametrize("dim", [6, 130])
def test_a_fit_is_that_of_the_reference(dim, parts, cupy, matrix, monkeypatch):
    """Covers uploads, launches and downloads. Runs are trained one at a time, which makes the results comparable."""
    monkeypatch.setattr(device_glove, "RUNS_BEFORE", 1 << 40)
    monkeypatch.setattr(glove, "_BLOCK", 500)
    monkeypatch.setattr(glove, "_DEVICE_SLICE", 1_500)
    if parts == "streamed":
        monkeypatch.setattr(glove, "_DEVICE_PART", 700)
        monkeypatch.setattr(standin, "FREE", [4 * len(matrix.words) * kernels.padded(dim + 1) * 4 + 60_000])
    model = GloVe(dim=dim, epochs=2, x_max=10, seed=3, device="cuda").fit(matrix, progress=False)
    assert model.device_ == "cuda:0 (Stand-in)"
    losses, tables = fitted_by_the_reference(model, matrix)
    assert_allclose(model.loss_, losses, rtol=1e-4)
    tensors = saved.tensors(model)
    for name, table in tables.items():
        assert_allclose(tensors[name], table[:, : dim + 1], rtol=1e-3, atol=1e-4, err_msg=name)


def test_many_runs_at_once_learn_as_the_cpu_does(cupy, matrix):
    settings = {"dim": 16, "epochs": 8, "x_max": 10, "seed": 3}
    cpu, device = GloVe(**settings, threads=1).fit(matrix), GloVe(**settings, device="cuda").fit(matrix)
    assert device.loss_[-1] < 0.75 * device.loss_[0]
    assert_allclose(device.loss_, cpu.loss_, rtol=0.15)


def test_no_more_runs_at_once_than_have_been_trained_before_and_words_allow(cupy, matrix, monkeypatch):
    monkeypatch.setattr(standin.driver, "occupancyMaxActiveBlocksPerMultiprocessor", lambda *arguments: 50)
    monkeypatch.setattr(device_glove, "RUNS_BEFORE", 3)
    launched = []
    call = standin.RawKernel.__call__

    def note(self, grid, block, args, **options):
        job = args[0][0]
        launched.append((int(job["last"] - job["first"]), grid[0] * block[0] // 32))
        call(self, grid, block, args, **options)

    monkeypatch.setattr(standin.RawKernel, "__call__", note)
    GloVe(dim=6, epochs=2, device="cuda").fit(matrix, progress=False)
    n, before = len(matrix.words), 0
    most = n // device_glove.WORDS_EACH
    for runs, teams in launched:
        assert teams <= max(1, min(before // device_glove.RUNS_BEFORE, most))
        before += runs
    assert before == 2 * (len(make_runs(matrix, np.arange(n, dtype=np.int32), n, 0)[2]) - 1)
    assert most - 4 < max(teams for _, teams in launched) <= most


def test_runs_are_of_one_row_and_hold_every_entry_once(matrix, monkeypatch):
    monkeypatch.setattr(glove, "_DEVICE_PART", 400)
    monkeypatch.setattr(glove, "_RUN", 7)
    n = len(matrix.words)
    place = np.random.default_rng(1).permutation(n).astype(np.int32)
    entries, parts, runs = make_runs(matrix, place, n, 5)
    assert parts[-1] == len(runs) - 1
    assert len(parts) - 1 == -(-len(matrix) // 400)
    assert (np.diff(runs) >= 1).all()
    assert np.diff(runs).max() == 7
    for begin, end in pairwise(runs):
        assert len(set(entries["row"][begin:end].tolist())) == 1
    moved = np.array(matrix.entries)
    moved["row"], moved["column"] = place[moved["row"]], place[moved["column"]]
    assert_array_equal(np.sort(entries), np.sort(moved))


def test_tables_that_do_not_fit_are_counted(cupy, matrix, monkeypatch):
    monkeypatch.setattr(standin, "FREE", [50_000])
    with pytest.raises(MemoryError, match=r"four tables of \d+ x 112 x 4 B = 0\.\d+ GB.*device='cpu'"):
        GloVe(dim=100, device="cuda").fit(matrix)


def test_rows_that_are_too_long(cupy, matrix):
    with pytest.raises(ValueError, match=r"dim=1,025 \(above 1,024\) runs on the CPU only"):
        GloVe(dim=1025, device="cuda").fit(matrix)
    assert GloVe(dim=1025, device="auto", epochs=1).fit(matrix, progress=False).device_.startswith("cpu")


def test_a_checkpoint_of_the_device_goes_on_on_the_cpu(cupy, matrix, tmp_path):
    path = tmp_path / "glove.safetensors"

    def stop(status):
        if status.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GloVe(dim=6, epochs=3, device="cuda").fit(matrix, checkpoint=path, progress=stop)
    model = GloVe(dim=6, epochs=3).fit(matrix, checkpoint=path, resume=True, progress=False)
    assert len(model.loss_) == 3
    assert model.loss_[2] < model.loss_[0]
    assert model.device_ == "cpu"


def test_the_job_is_laid_out_as_in_the_source(library):
    assert library.arguments("train_runs_warp") == [kernels.GLOVE_JOB.itemsize]
    assert shim.fields("glove/job.h", "GloveJob") == list(kernels.GLOVE_JOB.names)
