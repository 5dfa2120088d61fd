"""The device kernels of sequences, run on the CPU by the shim and compared with the reference under every schedule."""

import re
from dataclasses import replace
from itertools import cycle, product

import numpy as np
import pytest
import shim
from numpy.testing import assert_allclose, assert_array_equal
from problems import Problem, job_and_arrays, train

from embfast import kernels, reference
from embfast.device import sequences
from embfast.device.sequences import ADDRESSES, ALIAS_CELL, TALLY, sequence_shape

SHARED_MOST = 227 << 10
MODELS = {
    "sg": {},
    "cbow-mean": {"cbow": True},
    "cbow-sum": {"cbow": True, "mean": False},
    "dbow": {"predict": False, "tags": 1},
    "dbow-tags": {"predict": False, "tags": 3},
    "dbow-words": {"tags": 3},
    "dm-mean": {"cbow": True, "tags": 3},
    "dm-sum": {"cbow": True, "mean": False, "tags": 1},
    "dm-mean-weight3": {"cbow": True, "tags": 3, "tag_weight": 3},
    "dm-sum-weight3": {"cbow": True, "mean": False, "tags": 1, "tag_weight": 3},
}


@pytest.fixture(scope="module")
def library():
    return shim.Shim(shim.build())


def device_problems():
    """Problems by name: every model, output and vector size; windows and other settings in rotation."""
    windows = cycle([1, 2, 5, 12, 3])
    drawn = cycle([5, 1, 13, 35, 4])
    words = cycle([500, 3, 60, 2])
    extras = cycle(
        [
            {},
            {"subsampled": True},
            {"shrink": False},
            {"score": 16.0, "lr": 0.002},
            {"seed": 2**63 + 5},
            {"shrink": False, "subsampled": True},
            {"seed": 3},
        ]
    )
    found = {}
    for (kind, how), output in product(MODELS.items(), ("ns", "hs", "both")):
        for dim in (1, 7, 100, 128) if output == "ns" else (20,):
            found[f"{kind}-{output}-dim{dim}"] = Problem(
                dim=dim,
                words=next(words),
                tokens=40,
                window=next(windows),
                drawn=next(drawn) if output != "hs" else 0,
                sampling=output != "hs",
                hs=output != "ns",
                **{"lr": 0.02, **next(extras), **how},
            )
        other = found[f"{kind}-{output}-dim{100 if output == 'ns' else 20}"]
        found[f"{kind}-{output}-dim200"] = replace(other, dim=200, tokens=20)
    found["sg-dim1024"] = Problem(dim=1024, words=30, tokens=8, drawn=2)
    found["sg-long-paths"] = Problem(dim=20, hs=True, words=3000, drawn=30, tokens=12, lr=0.02)
    found["dm-long-document"] = Problem(dim=20, words=300, tokens=120, cbow=True, tags=3, lr=0.02)
    found["no-negatives"] = Problem(drawn=0)
    # With few words that get many changes, or with long rows, steps of this size amplify rounding errors.
    return {
        name: replace(p, lr=p.lr / 10, score=1.0, drawn=min(p.drawn, 5), tokens=20) if p.words < 12 else p
        for name, p in found.items()
    }


PROBLEMS = device_problems()


def device_arguments(problem, dtype=np.float32):
    """Arguments of reference.device_train_sequences."""
    arguments = replace(problem, tag_weight=1).arguments(dtype) | {"tag_weight": problem.tag_weight}
    arguments["pieces"] = arguments.pop("blocks")
    counts = np.sort(np.random.default_rng(problem.seed % 2**32).integers(1, 1000, problem.words))[::-1]
    arguments["noise"] = reference.NoiseTable(counts**0.75)
    for name in ("first_block", "last_block", "shared", "centers", "scale", "threads", "concat"):
        arguments.pop(name, None)
    return arguments


def device_job(arguments, tally, grid=1, shared_most=SHARED_MOST):
    """The job of a launch, its shape, and the arrays that the job points to."""
    table = next(arguments[name] for name in ("w_in", "w_docs") if arguments.get(name) is not None)
    n_tokens, n_pieces = len(arguments["ids"]), len(arguments["pieces"]) - 1
    noise, tree = arguments["noise"], arguments["tree"]
    cells = np.empty(len(noise), ALIAS_CELL)
    cells["threshold"], cells["alias"] = noise.thresholds, noise.aliases
    tag_offsets = arguments.get("tag_offsets")
    documents = arguments.get("w_docs") is not None
    most_tags = 0 if not documents else int(np.diff(tag_offsets).max()) if tag_offsets is not None else 1
    words = bool(arguments.get("words", True))
    shape = sequence_shape(
        table.shape[1] // 4,
        arguments["window"],
        most_tags,
        cbow=arguments["cbow"] or not words,
        documents=documents,
        shared_most=shared_most,
    )
    arrays = {
        **{name: arguments.get(name) for name in ("w_in", "w_out", "w_nodes", "w_docs", "ids", "offsets", "pieces")},
        **{name: arguments.get(name) for name in ("keep", "tag_offsets", "tags", "seeds")},
        "noise": cells,
        "kept": np.full(n_tokens, 2**31 - 1, np.int32),
        "kept_document": np.full(n_tokens, 2**31 - 1, np.int32) if documents else None,
        "n_kept": np.full(n_pieces, -(2**31), np.int32),
        "rings": np.full(shape.ring * grid // 4, np.nan, np.float32) if shape.ring else None,
        "tally": tally,
        **({} if tree is None else {"path_offsets": tree.offsets, "path_nodes": tree.nodes, "path_codes": tree.codes}),
    }
    settings = {name: arguments[name] for name in kernels.SEQUENCE_JOB.names if name in arguments}
    job = sequences.device_job(kernels.sequence_job(**settings | {"words": words}))
    for name, array in arrays.items():
        job[name] = 0 if array is None else array.ctypes.data
    job["n_documents"], job["n_pieces"] = len(arguments["offsets"]) - 1, n_pieces
    job["n_words"], job["pitch"], job["most_tags"] = len(noise), table.shape[1] // 4, most_tags
    return job[0], shape, arrays


def device_solve(library, problem, grid=1, shared_most=SHARED_MOST, **changed):
    """Solves a problem with the kernels. Returns the tally and the tables, by name."""
    arguments = {**device_arguments(problem), **changed}
    tally = np.zeros(1, TALLY)
    job, shape, arrays = device_job(arguments, tally, grid, shared_most)
    library.launch("keep_tokens", 2, 64, [job])
    library.launch(shape.kernel, grid, shape.threads, [job], shape.shared)
    tables = {name: arrays[name] for name in ("w_in", "w_out", "w_nodes", "w_docs") if arrays[name] is not None}
    return {"tally": np.array(tally[0].tolist()), **tables}


def device_expected(problem, grid=1, **changed):
    arguments = {**device_arguments(problem, np.float64), **changed}
    tally = reference.device_train_sequences(*job_and_arrays(arguments), blocks=grid)
    names = ("w_in", "w_out", "w_nodes", "w_docs")
    return {"tally": np.array(tally), **{name: arguments[name] for name in names if arguments.get(name) is not None}}


def assert_same(fast, slow, problem):
    assert fast.keys() == slow.keys()
    assert_allclose(fast["tally"][0], slow["tally"][0], rtol=1e-5)
    assert_array_equal(fast["tally"][1:], slow["tally"][1:], "examples, kept")
    for name in fast.keys() - {"tally"}:
        # The relative tolerance covers float32 rounding in rows that have grown large.
        assert_allclose(fast[name], slow[name], rtol=1e-6, atol=1e-6, err_msg=name)
        assert not fast[name][:, problem.dim :].any(), f"{name}: padding changed"


@pytest.mark.parametrize("name", PROBLEMS)
def test_kernels_match_the_reference_in_any_order_of_threads(name, library):
    problem = PROBLEMS[name]
    slow = device_expected(problem)
    assert any(np.abs(slow[table] - before).max() > 1e-4
               for table, before in device_arguments(problem).items() if table in slow)  # fmt: skip
    results = []
    for policy in shim.SCHEDULES:
        library.schedule(policy, seed=len(name))
        results.append(device_solve(library, problem))
        assert_same(results[-1], slow, problem)
    for other in results[1:]:
        for part, values in other.items():
            assert_array_equal(values, results[0][part], part)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dim", [20, 200])
def test_a_ring_in_global_memory_gives_the_same_bits(kind, dim, library):
    """A window too wide for shared memory: the same operations in another memory."""
    problem = Problem(dim=dim, words=60, window=4, tokens=30, **MODELS[kind])
    library.schedule()
    near = device_solve(library, problem, grid=2)
    far = device_solve(library, problem, grid=2, shared_most=2048)
    for part, values in near.items():
        assert_allclose(far[part], values, rtol=1e-6, atol=1e-7 if part != "tally" else 0)
    assert_same(far, device_expected(problem, grid=2), problem)


def test_shapes_of_launches():
    shape = {"cbow": False, "documents": False, "shared_most": 48 << 10}
    assert sequence_shape(32, 5, 0, **shape) == ("skip_gram_warp", 32, 2 * 11 * 512, 0)
    assert sequence_shape(4, 5, 0, **shape) == ("skip_gram_warp", 32, 2 * 11 * 64, 0)
    assert sequence_shape(33, 5, 0, **shape) == ("skip_gram_warps", 64, 2 * 11 * 528 + 64, 0)
    assert sequence_shape(256, 5, 0, **shape) == ("skip_gram_wide", 256, 256, 2 * 11 * 4096)
    assert sequence_shape(32, 24, 0, **shape | {"cbow": True}) == ("cbow_wide", 32, 32, 2 * 49 * 512)
    assert sequence_shape(32, 5, 2, **shape | {"documents": True}).shared == 2 * 13 * 512


@pytest.mark.parametrize("kind", MODELS)
def test_simultaneous_blocks_see_the_same_examples(kind, library):
    """The order of additions differs: the same draws, and nearly the same rows."""
    problem = Problem(dim=20, words=60, tokens=80, window=3, lr=0.01, **MODELS[kind])
    library.schedule()
    alone = device_solve(library, problem, grid=3)
    assert_same(alone, device_expected(problem, grid=3), problem)
    for seed in range(3):
        library.schedule("random", seed, resident=3)
        together = device_solve(library, problem, grid=3)
        assert_array_equal(together["tally"][1:], alone["tally"][1:])
        assert_allclose(together["tally"][0], alone["tally"][0], rtol=0.02)
        for part in alone.keys() - {"tally"}:
            moved = np.abs(alone[part] - device_arguments(problem)[part]).max()
            assert np.abs(together[part] - alone[part]).max() < 0.25 * moved, part


@pytest.mark.parametrize("kind", MODELS)
def test_small_steps_are_those_of_the_cpu(kind):
    """Compared with reference.train_sequences, and so with calculus: at a small lr the order of steps is immaterial."""
    problem = Problem(dim=6, words=40, tokens=24, window=3, lr=1e-6, **MODELS[kind])
    edges = np.array([0, 24], np.int64)
    device, cpu = device_arguments(problem, np.float64), problem.arguments(np.float64)
    device["pieces"] = cpu["blocks"] = edges
    cpu["last_block"] = 1
    need, place = 24 * problem.drawn, int(reference.below(reference.Stream(1, 3, reference.Purpose.PLACE)(0), 5000))
    assert place + need <= 5000
    cpu["noise"] = np.zeros(5000, np.int64)
    cpu["noise"][place : place + need] = device["noise"].sample(need, 1, 3)
    before = {name: cpu[name].copy() for name in ("w_in", "w_out", "w_docs") if cpu.get(name) is not None}
    tally = reference.device_train_sequences(*job_and_arrays(device))
    assert_allclose(tally, train(reference, cpu), rtol=1e-5)
    for name, table in before.items():
        largest = np.abs(cpu[name] - table).max()
        assert largest > 1e-7
        assert_allclose(device[name] - table, cpu[name] - table, atol=1e-3 * largest, err_msg=name)


@pytest.mark.parametrize("output", ["ns", "hs"])
@pytest.mark.parametrize("kind", ["dbow", "dm-mean", "dm-sum", "dm-mean-weight3"])
@pytest.mark.parametrize("subsampled", [False, True])
def test_inference_matches_the_reference(kind, output, subsampled, library):
    how = {**MODELS[kind], "tags": 1}
    problem = Problem(dim=20, words=40, tokens=80, window=3, subsampled=subsampled, hs=output == "hs",
                      sampling=output == "ns", **how)  # fmt: skip
    epochs, n = 3, len(problem.offsets()) - 1

    def arguments(dtype):
        found = device_arguments(problem, dtype)
        for name in ("pieces", "tag_offsets", "tags", "words", "epoch", "tokens_before", "tokens_total"):
            found.pop(name)
        found["w_docs"] = found["w_docs"][:n]
        return found

    slow, fast = arguments(np.float64), arguments(np.float32)
    expected = reference.device_infer_documents(*job_and_arrays(slow | {"dim": problem.dim}), epochs=epochs)
    library.schedule("reverse")
    before = {name: fast[name].copy() for name in ("w_in", "w_out", "w_nodes") if fast[name] is not None}
    seeds, tally = np.zeros(n, np.uint64), np.zeros(1, TALLY)
    rows, offsets = fast["w_docs"], fast["offsets"]
    one = [fast["ids"], offsets, np.int64(0), np.int64(n), np.uint64(problem.seed), seeds]
    library.launch("document_seeds", 1, 64, one)
    columns = np.int32(rows.shape[1])
    library.launch("document_rows", 2, 64, [seeds, offsets, np.int64(n), np.int32(problem.dim), columns, rows])
    for epoch in range(epochs):
        one = {**fast, "pieces": offsets, "seeds": seeds, "epoch": epoch, "words": fast["cbow"], "frozen": True}
        one |= {"tokens_before": epoch, "tokens_total": epochs}
        job, shape, arrays = device_job(one, tally)
        library.launch("keep_tokens", 1, 32, [job])
        library.launch(shape.kernel, 2, shape.threads, [job], shape.shared)
        assert arrays["w_docs"] is rows
    assert_allclose(tally[0].tolist(), expected, rtol=1e-5)
    assert_allclose(rows, slow["w_docs"], rtol=1e-6, atol=1e-6)
    for name, table in before.items():
        assert_array_equal(fast[name], table, name)


def test_bytes_per_word_are_those_of_the_model(library):
    """An input row and the output rows of a word and its negatives: each read once and added once, and little more."""
    problem = Problem(dim=128, words=500, tokens=200, window=5, drawn=5)
    library.schedule()
    arguments = device_arguments(problem)
    arguments["offsets"], arguments["pieces"] = np.array([0, 200]), np.array([0, 200])
    job, shape, _ = device_job(arguments, np.zeros(1, TALLY))
    library.launch("keep_tokens", 1, 32, [job])
    library.counters()
    library.launch(shape.kernel, 1, shape.threads, [job], shape.shared)
    counted = library.counters()
    rows = (1 + 1 + 5) * 512
    assert 0.97 * rows < counted["bytes_read"] / 200 <= rows  # a negative that equals the center is not read
    assert 0.97 * rows < counted["bytes_added"] / 200 <= rows + 1
    assert rows < 3600


def test_every_kernel_of_the_sources_can_be_launched(library):
    sources = {path.name: path.read_text() for path in shim.SOURCES.glob("*/*.cu")}
    found = re.findall(
        r"__global__ void\s+(?:__launch_bounds__\([\d, ]+\)\s+)?(model##)?(\w+)\(", "".join(sources.values())
    )
    names = {model + name for prefix, name in found for model in (("skip_gram", "cbow") if prefix else ("",))}
    assert {"keep_tokens", "cbow_documents_wide"} < names
    for name in names:
        assert library.arguments(name)


def test_the_job_is_laid_out_as_in_the_source(library):
    assert library.arguments("skip_gram_warp") == [sequences.device_job(kernels.sequence_job()).nbytes]
    assert shim.fields("job.h", "SequenceJob") == list(kernels.SEQUENCE_JOB.names)
    assert shim.fields("sequences.cu", "DeviceJob : SequenceJob") == [name for name, _ in ADDRESSES]
