"""The training kernels compared with the reference, the reference with calculus, and errors for invalid arguments."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from problems import DOCUMENTS, WINDOWS, Problem, every_problem, train

import embfast
from embfast import kernels, reference

PROBLEMS = every_problem()


@pytest.fixture(scope="session", params=["baseline", "avx2", "avx512", "avx512bf16"])
def solved(request, solve_on):
    """Every problem, solved by the kernel on one instruction set: in a new process, since a process chooses once."""
    return solve_on(request.param, "problems.py")


def test_an_unknown_instruction_set_is_an_error():
    done = subprocess.run(
        [sys.executable, "-c", "from embfast import kernels; kernels.isa()"],
        env={**os.environ, "EMBFAST_ISA": "avx3", "PYTHONPATH": str(Path(embfast.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "EMBFAST_ISA: expected baseline, avx2, avx512, avx512popcnt or avx512bf16, got avx3" in done.stderr


@cache
def expected(name):
    return PROBLEMS[name].solve(reference, np.float64)


@cache
def expected_inferred(name):
    return PROBLEMS[name].infer(reference, np.float64)


@pytest.mark.parametrize("name", PROBLEMS)
def test_kernel_matches_reference(name, solved):
    assert_like_reference(PROBLEMS[name], expected(name), solved, name)


@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if problem.tags == 1])
def test_inference_matches_reference(name, solved):
    assert_like_reference(PROBLEMS[name], expected_inferred(name), solved, f"{name}/inferred")


def assert_like_reference(problem, expected, solved, name):
    """Equal up to float32 rounding; with factors rounded to bfloat16, up to 1.5 % of the change of the rows."""
    rounded = str(solved["isa"]) == "avx512bf16"
    before = {} if name.endswith("/inferred") else problem.arguments(np.float64)  # inferred rows start near 0
    for part, slow in expected.items():
        fast = solved[f"{name}/{part}"]
        if part == "tally":
            assert_allclose(fast[0], slow[0], rtol=4e-3 if rounded else 1e-4)
            assert_array_equal(fast[1:], slow[1:], "examples, kept")
        else:
            if rounded:
                moved = slow - before.get(part, 0.0)
                assert np.linalg.norm(fast - slow) < 0.015 * np.linalg.norm(moved) + 1e-4, part
                assert_allclose(fast, slow, rtol=0, atol=0.02 * np.abs(moved).max() + 1e-4, err_msg=part)
            else:
                assert_allclose(fast, slow, rtol=1e-4, atol=1e-6, err_msg=part)
            parts = fast.reshape(len(fast), -1, kernels.padded(problem.dim))
            assert not parts[:, :, problem.dim :].any(), f"{part}: padding changed"


def test_problems_saturate():
    """Otherwise a sigmoid clipped at 6, 8 or 80 would pass unnoticed."""
    for name, largest in {"sg-saturated-centers2": 30, "cbow-sum-saturated-centers2": 30, "far-saturated": 300}.items():
        arguments = PROBLEMS[name].arguments(np.float64)
        assert np.abs(arguments["w_in"] @ arguments["w_out"].T).max() > largest


def slope(f, x, h=1e-5):
    """Central differences of f at x. Changes x in place and restores it."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        middle = x[i]
        x[i] = middle + h
        above = f()
        x[i] = middle - h
        gradient[i] = (above - f()) / (2 * h)
        x[i] = middle
    return gradient


def test_logistic_step_follows_the_gradient_of_its_loss():
    rng = np.random.default_rng(0)
    x, y = 2 * rng.standard_normal((3, 5)), 2 * rng.standard_normal((4, 5))
    weight, label = rng.integers(0, 3, (3, 4)) * 0.7, rng.random((3, 4)).round()
    dx, dy, _ = reference.logistic_step(x, y, weight, label, lr=1.0)
    for move, values in ((dx, x), (dy, y)):
        gradient = slope(lambda: reference.logistic_step(x, y, weight, label, lr=0.0)[2], values)
        assert_allclose(move, -gradient, rtol=1e-6, atol=1e-8)


def output_loss(model, hidden, word, drawn):
    """-log p for a word and -log(1 - p) for a negative, as the papers state it."""

    def softplus(x):
        return np.log1p(np.exp(-abs(x))) + max(x, 0.0)

    loss = 0.0
    if model.w_nodes is not None:
        for j in range(model.tree.offsets[word], model.tree.offsets[word + 1]):
            score = hidden @ model.w_nodes[model.tree.nodes[j]]
            loss += softplus(score if model.tree.codes[j] else -score)
    if model.w_out is not None:
        loss += softplus(-hidden @ model.w_out[word])
        loss += sum(model.scale * softplus(hidden @ model.w_out[k]) for k in drawn if k != word)
    return loss


def stated_loss(model, batch, kind, mean):
    """The loss of a batch as a sum over pairs."""

    def output(hidden, word, drawn):
        return output_loss(model, hidden, word, drawn)

    total = 0.0
    for center in range(batch.first, batch.last):
        word = batch.sentence[center]
        near = [p for p in range(len(batch.sentence)) if p != center and abs(p - center) <= batch.radius]
        rows = [model.w_in[batch.sentence[p]] for p in near]
        if kind == "sg":
            total += sum(output(row, word, batch.drawn) for row in rows)
        elif kind == "pairs":
            total += sum(output(row, word, drawn) for row, drawn in zip(rows, batch.drawn, strict=True))
        elif rows:
            total += output(sum(rows) / (len(rows) if mean else 1), word, batch.drawn)
    return total


@pytest.mark.parametrize("output", ["ns", "hs", "both"])
@pytest.mark.parametrize("centers", [1, 3])
@pytest.mark.parametrize("kind", WINDOWS)
def test_a_batch_follows_the_gradient_of_its_stated_loss(kind, centers, output):
    """The change of CBOW's inputs has a factor, count for the mean and 1 / count for the sum, as in word2vec.c."""
    if centers > 1 and (output != "ns" or kind == "pairs"):
        pytest.skip("paths and pairs have one center")
    rng = np.random.default_rng(5)
    words, dim, radius = 5, 3, 2
    w_in, w_out, w_nodes = (rng.standard_normal((n, dim)) for n in (words, words, words - 1))
    # Words repeat in the window. One center or three in the middle, each with 2 * radius context words.
    sentence = np.array([0, 1, 2, 3, 1, 0, 2, 4, 4])
    drawn = np.array([2, 2, 0, 4])  # one negative occurs twice, some are centers
    if kind == "pairs":
        sentence, radius, drawn = (
            np.array([0, 1]),
            1,
            drawn[None, :],
        )  # one pair, since each pair changes what the next one reads
    first = 0 if kind == "pairs" else 3
    model = reference.Model(
        w_in,
        None if output == "hs" else w_out,
        None if output == "ns" else w_nodes,
        reference.HuffmanTree(np.array([9, 5, 5, 2, 1])),
        scale=0.6,
        lr=1.0,
    )
    batch = reference.Batch(sentence, first, first + centers, radius, drawn)
    mean = kind == "cbow-mean"
    tables = [t for t in (w_in, model.w_out, model.w_nodes) if t is not None]
    slopes = [slope(lambda: stated_loss(model, batch, kind, mean), t) for t in tables]
    before, stated = [t.copy() for t in tables], stated_loss(model, batch, kind, mean)
    if kind == "sg":
        loss, examples = reference.skip_gram_batch(model, batch)
    elif kind == "pairs":
        loss, examples = reference.skip_gram_pairs(model, batch)
    else:
        loss, examples = reference.cbow_batch(model, batch, mean)
    assert_allclose(loss, stated, rtol=1e-12)
    assert examples == {"sg": 2 * radius * centers, "pairs": 1}.get(kind, centers)
    factors = {"cbow-mean": 2 * radius, "cbow-sum": 1 / (2 * radius)}
    for i, (table, old, gradient) in enumerate(zip(tables, before, slopes, strict=True)):
        factor = factors.get(kind, 1.0) if i == 0 else 1.0
        assert np.abs(gradient).max() > 0.01
        assert_allclose(table - old, -factor * gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("output", ["ns", "hs", "both"])
@pytest.mark.parametrize("centers", [1, 3])
@pytest.mark.parametrize("kind", [*DOCUMENTS, "dm-mean-twice", "dm-sum-twice"])
def test_a_batch_with_tags_follows_the_gradient_of_its_stated_loss(kind, centers, output, frozen):
    """Le & Mikolov 2014: tags belong to every window. The change of CBOW's inputs has the factors of word2vec.c."""
    if centers > 1 and output != "ns":
        pytest.skip("paths have one center")
    rng = np.random.default_rng(6)
    words, dim, radius, concat = 5, 3, 2, kind == "dm-concat"
    sentence, drawn, tags = np.array([0, 1, 2, 3, 1, 0, 2]), np.array([2, 2, 0, 4]), np.array([3, 1])
    if kind.endswith("twice"):
        kind, tags = kind.removesuffix("-twice"), np.array([3, 1, 3])
    wide = (len(tags) + 2 * radius) * dim if concat else dim
    w_in, w_docs = rng.standard_normal((words + concat, dim)), rng.standard_normal((4, dim))
    w_out, w_nodes = rng.standard_normal((words, wide)), rng.standard_normal((words - 1, wide))
    model = reference.Model(
        w_in,
        None if output == "hs" else w_out,
        None if output == "ns" else w_nodes,
        reference.HuffmanTree(np.array([9, 5, 5, 2, 1])),
        scale=0.6,
        lr=1.0,
        w_docs=w_docs,
        frozen=frozen,
    )
    first = 2 if concat or centers == 3 else 3  # with concat, a window may pass the end
    batch = reference.Batch(sentence, first, first + centers, radius, drawn, tags)

    def stated():
        total = 0.0
        for center in range(batch.first, batch.last):
            near = [p for p in range(center - radius, center + radius + 1) if p != center]
            inside = [p for p in near if 0 <= p < len(sentence)]
            rows = [w_docs[tag] for tag in tags]
            if concat:
                rows += [w_in[sentence[p]] if p in inside else w_in[words] for p in near]
                hidden = [np.concatenate(rows)]
            elif kind == "dbow":
                hidden = rows
            else:
                rows += [w_in[sentence[p]] for p in inside]
                hidden = rows if kind == "dbow-words" else [sum(rows) / (len(rows) if kind == "dm-mean" else 1)]
            total += sum(output_loss(model, h, sentence[center], drawn) for h in hidden)
        return total

    tables = {"w_docs": w_docs, "w_in": w_in, "w_out": model.w_out, "w_nodes": model.w_nodes}
    tables = {name: table for name, table in tables.items() if table is not None}
    slopes = {name: slope(stated, table) for name, table in tables.items()}
    before, loss_before = {name: table.copy() for name, table in tables.items()}, stated()
    if concat:
        loss, examples = reference.concat_batch(model, batch)
    elif kind.startswith("dm"):
        loss, examples = reference.cbow_batch(model, batch, kind == "dm-mean")
    else:
        loss, examples = reference.skip_gram_batch(model, batch, kind == "dbow-words")
    assert_allclose(loss, loss_before, rtol=1e-12)
    assert examples == centers * {"dbow": 2, "dbow-words": 6}.get(kind, 1)
    for name, table in tables.items():
        if frozen and name != "w_docs":
            assert_array_equal(table, before[name])
            continue
        rows = len(tags) + 2 * radius
        factor = {"dm-mean": rows, "dm-sum": 1 / rows}.get(kind, 1.0) if name in ("w_docs", "w_in") else 1.0
        assert kind == "dbow" or np.abs(slopes[name]).max() > 0.01
        assert_allclose(table - before[name], -factor * slopes[name], rtol=1e-6, atol=1e-8)


LONG = {kind: Problem(dim=20, words=300, tokens=3000, window=5, **how) for kind, how in WINDOWS.items()}
LONG["hs"] = replace(LONG["sg"], hs=True)
LONG["centers"] = replace(LONG["sg"], centers=4, drawn=8, subsampled=True)


def blocks_of(size, tokens):
    return np.append(np.arange(0, tokens, size), tokens)


def trained(problem, **changed):
    arguments = {**problem.arguments(), "blocks": blocks_of(100, problem.tokens), "last_block": 30, **changed}
    tally = train(kernels, arguments)
    return tally, {name: arguments[name] for name in ("w_in", "w_out", "w_nodes") if arguments[name] is not None}


@pytest.mark.parametrize("kind", LONG)
def test_one_thread_and_a_seed_give_the_same_bits(kind):
    tally, tables = trained(LONG[kind])
    again, tables_again = trained(LONG[kind])
    assert tally == again
    for name, table in tables.items():
        assert table.tobytes() == tables_again[name].tobytes()
    for changed in ({"seed": 2}, {"epoch": 4}):
        _, others = trained(LONG[kind], **changed)
        assert not np.array_equal(tables["w_in"], others["w_in"])


@pytest.mark.parametrize("kind", LONG)
def test_slices_of_an_epoch_give_the_bits_of_one_call(kind):
    tally, tables = trained(LONG[kind])
    parts, sliced = trained(LONG[kind], last_block=3)
    for first, last in ((3, 3), (3, 17), (17, 30)):
        part, _ = trained(LONG[kind], first_block=first, last_block=last, **sliced)
        parts = tuple(np.add(parts, part))
    assert parts[1:] == tally[1:]
    assert_allclose(parts[0], tally[0], rtol=1e-12)
    for name, table in tables.items():
        assert table.tobytes() == sliced[name].tobytes()


@pytest.mark.parametrize("kind", LONG)
def test_columns_after_dim_change_nothing(kind):
    problem = replace(LONG[kind], dim=6)
    tally, tables = trained(problem)
    whole, padded = trained(problem, dim=16)
    assert tally == whole
    for name, table in tables.items():
        assert table.tobytes() == padded[name].tobytes()
    if kernels.isa() in ("baseline", "avx2"):  # registers have at most 8 floats
        for table in tables.values():
            table[:, 8:] = np.nan
        assert np.isfinite(trained(problem, **tables)[0][0])


@pytest.mark.parametrize("kind", LONG)
def test_threads_see_the_same_examples(kind):
    problem = replace(LONG[kind], lr=0.01)  # few words: at a higher rate, 50 simultaneous threads would change the loss
    tally, _ = trained(problem)
    for threads in (2, 50):  # 50: more threads than blocks
        several, _ = trained(problem, threads=threads)
        assert several[1:] == tally[1:]
        assert_allclose(several[0], tally[0], rtol=0.03)


@pytest.mark.parametrize("kind", ["hs", "hs and tags"])
def test_threads_merge_their_copies_of_nodes(kind):
    """One block: only one of two threads works, on copies of the nodes near the root. Only the last digits differ."""
    problem = replace(LONG["hs"], tags=0 if kind == "hs" else 2)
    # A short block: bfloat16 factors are rounded to 8 bits, so differences in the last digits would grow.
    blocks = {"blocks": blocks_of(300, problem.tokens), "last_block": 1}
    tally, tables = trained(problem, **blocks)
    again, others = trained(problem, **blocks, threads=2)
    assert again[1:] == tally[1:]
    assert_allclose(again[0], tally[0], rtol=1e-5)
    for name, table in tables.items():
        assert_allclose(others[name], table, atol=1e-5)


def test_threads_merge_their_copies_often_enough():
    """If eight threads each took many steps from the same nodes before merging, their sum would overshoot."""
    problem = replace(LONG["hs"], tokens=80_000, lr=0.1, sampling=False, drawn=0)
    blocks = {"blocks": blocks_of(5000, problem.tokens), "last_block": 16}
    losses = []
    for threads in (1, 8):
        _, tables = trained(problem, **blocks, threads=threads)
        losses.append(trained(problem, **blocks, **tables, epoch=4)[0][0])
    assert losses[1] < 1.001 * losses[0]  # at most 1.0002; 1.0015 to 1.0035 if they merge only at the end of a block


def test_an_empty_run_changes_nothing():
    problem = Problem(tokens=0)
    before = problem.arguments()
    for blocks in ([0], [0, 0], []):
        arguments = {**problem.arguments(), "blocks": np.array(blocks, np.int64), "last_block": max(len(blocks) - 1, 0)}
        assert train(kernels, arguments) == (0.0, 0, 0)
        assert_array_equal(arguments["w_in"], before["w_in"])


def misaligned(a):
    memory = np.zeros(a.nbytes + 64 + 4, np.uint8)
    start = -memory.ctypes.data % 64 + (4 if a.dtype == np.float32 else 1)
    view = memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    view[:] = a
    return view


def read_only(a):
    a = a[:]
    a.flags.writeable = False
    return a


WRONG = {
    "dtype": lambda a: a.astype(np.float64 if a.dtype == np.float32 else np.int16),
    "byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "rank": lambda a: a[None],
    "no rank": lambda a: a.reshape(-1)[0:1].reshape(()),
    "stride": lambda a: np.repeat(a, 2, axis=0)[::2],
    "alignment": misaligned,
}
WRONG_WEIGHTS = {
    "read-only": read_only,
    "columns": lambda a: a[:, :8].copy(),
    "width of a row": lambda a: a[:, :8],
    "transposed": lambda a: np.asfortranarray(np.hstack([a, a])),
}


@pytest.mark.parametrize("wrong", [*WRONG, *WRONG_WEIGHTS])
@pytest.mark.parametrize("name", ["w_in", "w_out", "w_nodes", "ids", "offsets", "blocks", "keep", "noise"])
def test_an_invalid_array_is_refused_by_name(name, wrong):
    arguments = Problem(hs=True, subsampled=True).arguments()
    if wrong in WRONG_WEIGHTS and not name.startswith("w_"):
        pytest.skip("only for weights")
    arguments[name] = {**WRONG, **WRONG_WEIGHTS}[wrong](arguments[name])
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        train(kernels, arguments)


def test_the_arguments_of_the_test_above_are_valid_before_the_change():
    assert train(kernels, Problem(hs=True, subsampled=True).arguments())[1] > 0


BAD = {
    "ids: negative": ("ids", {"ids": lambda a: np.where(np.arange(80) == 50, -1, a).astype(np.int32)}),
    "ids: too large": ("ids", {"ids": lambda a: np.where(np.arange(80) == 79, 12, a).astype(np.int32)}),
    "blocks: descend": ("blocks", {"blocks": [0, 40, 30, 80]}),
    "blocks: negative": ("blocks", {"blocks": [-1, 40, 80]}),
    "blocks: past the ids": ("blocks", {"blocks": [0, 40, 81]}),
    "blocks: far past the ids": ("blocks", {"blocks": [0, 2**62]}),
    "first_block: negative": ("blocks", {"first_block": -1}),
    "last_block: too large": ("blocks", {"last_block": 5}),
    "last_block: before the first": ("blocks", {"first_block": 3, "last_block": 2}),
    "offsets: none": ("offsets", {"offsets": []}),
    "keep: short": ("keep", {"keep": lambda a: np.zeros(11, np.uint32)}),
    "w_out: rows": ("w_out", {"w_out": lambda a: kernels.weight_table(11, 8)}),
    "w_out: columns": ("w_out", {"w_out": lambda a: kernels.weight_table(12, 20)}),
    "w_nodes: rows": ("w_nodes", {"w_nodes": lambda a: kernels.weight_table(10, 8), "tree": "tree"}),
    "w_nodes: columns": ("w_nodes", {"w_nodes": lambda a: kernels.weight_table(11, 20), "tree": "tree"}),
    "w_nodes: no tree": ("w_nodes", {"w_nodes": lambda a: kernels.weight_table(11, 8)}),
    "w_nodes: centers": ("centers", {"w_nodes": lambda a: kernels.weight_table(11, 8), "tree": "tree", "centers": 2}),
    "tree: other words": (
        "tree",
        {"w_nodes": lambda a: kernels.weight_table(11, 8), "tree": lambda a: kernels.HuffmanTree(np.arange(13, 0, -1))},
    ),
    "w_in: missing": ("w_in", {"w_in": lambda a: None}),
    "w_out: missing": ("w_out", {"w_out": lambda a: None}),
    "w_out and w_nodes: missing": ("w_out or w_nodes is required", {"w_out": lambda a: None, "drawn": 0}),
    "noise: missing": ("noise", {"noise": lambda a: None}),
    "noise: too large": ("noise", {"noise": lambda a: np.where(np.arange(997) == 996, 12, a).astype(np.int32)}),
    "noise: negative": ("noise", {"noise": lambda a: np.where(np.arange(997) == 0, -1, a).astype(np.int32)}),
    "noise: less than a batch takes": ("noise: expected 5", {"noise": lambda a: a[:4].copy()}),
    "noise: less than a window takes": ("noise: expected 20", {"noise": lambda a: a[:19].copy(), "shared": False}),
    "centers: 0": ("centers", {"centers": 0}),
    "centers: too many": ("centers", {"centers": kernels.MAX_CENTERS + 1}),
    "centers: per-pair negatives": ("centers", {"centers": 2, "shared": False}),
    "drawn: negative": ("drawn", {"drawn": -1}),
    "drawn: overflows": ("drawn", {"drawn": 2**31 - 1}),
    "window: 0": ("window", {"window": 0}),
    "window: overflows": ("window", {"window": 2**31 - 1}),
    "dim: 0": ("dim: expected 1..16", {"dim": 0}),
    "dim: too large": ("dim: expected 1..16", {"dim": 17}),
    "threads: 0": ("threads", {"threads": 0}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_value_is_refused_by_name(case):
    named, changed = BAD[case]
    arguments = Problem().arguments()
    for name, value in changed.items():
        if callable(value):
            value = value(arguments[name])
        elif isinstance(value, list):
            value = np.array(value, np.int64)
            arguments["last_block"] = max(len(value) - 1, 1) if name == "blocks" else 4
        elif value == "tree":
            value = kernels.HuffmanTree(np.arange(12, 0, -1))
        arguments[name] = value
    before = arguments["w_in"] if arguments["w_in"] is None else arguments["w_in"].copy()
    with pytest.raises(ValueError, match=named):
        train(kernels, arguments)
    assert_array_equal(arguments["w_in"], before)


BAD_DOCUMENTS = {
    "tags: too large": ("tags: expected 0 <= id < 18", {"tags": lambda a: np.where(a == a[0], 18, a).astype(np.int32)}),
    "tags: negative": ("tags: expected 0 <= id", {"tags": lambda a: np.where(a == a[0], -1, a).astype(np.int32)}),
    "tags: missing": ("tag_offsets and tags", {"tags": lambda a: None}),
    "tags: short": ("tag_offsets: expected to ascend from 0 to", {"tags": lambda a: a[:-1].copy()}),
    "tag_offsets: missing": ("tag_offsets and tags", {"tag_offsets": lambda a: None}),
    "tag_offsets: short": ("tag_offsets: expected 10 entries", {"tag_offsets": lambda a: a[:-1].copy()}),
    "tag_offsets: descend": ("tag_offsets: expected to ascend", {"tag_offsets": lambda a: a[::-1].copy()}),
    "w_docs: columns": ("w_docs: expected 16 columns", {"w_docs": lambda a: kernels.weight_table(18, 20)}),
    "w_in: missing": ("w_in is required", {"w_in": lambda a: None}),
    "per-pair negatives": ("w_docs requires shared negatives", {"shared": False}),
    "concat: skip-gram": ("concat requires cbow", {"concat": True, "shrink": False}),
    "concat: shrinking": ("concat requires cbow and shrink = False", {"concat": True, "cbow": True}),
    "concat: columns": ("w_out: expected 80 columns", {"concat": True, "cbow": True, "shrink": False}),
    "concat: other tags": (
        "tags: concat requires the same number for every document, got 0 to 2",
        {
            "concat": True,
            "cbow": True,
            "shrink": False,
            "tag_offsets": lambda a: np.array([0, 0, 2, *a[3:]], np.int64),
        },
    ),
}


@pytest.mark.parametrize("case", BAD_DOCUMENTS)
def test_bad_documents_are_refused_by_name(case):
    named, changed = BAD_DOCUMENTS[case]
    arguments = Problem(tags=1).arguments()
    for name, value in changed.items():
        arguments[name] = value(arguments[name]) if callable(value) else value
    before = arguments["w_docs"].copy()
    with pytest.raises(ValueError, match=named):
        train(kernels, arguments)
    if arguments["w_docs"].shape == before.shape:
        assert_array_equal(arguments["w_docs"], before)


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        ("offsets: expected to ascend from 0 to 80", {"offsets": np.array([0, 0, 1, 3, 2, 20, 60, 60, 80, 80])}),
        ("offsets: expected to ascend from 0 to 80", {"offsets": np.array([0, 0, 1, 3, 3, 20, 60, 60, 80, 81])}),
        ("offsets: expected 10 entries", {"offsets": np.array([0, 80])}),
        ("ids: expected 0 <= id < 12", {"ids": np.full(80, 12, np.int32)}),
        ("w_docs", {"w_docs": None}),
        ("dim: expected 1..16", {"dim": 17}),
        ("dim: expected 1..16", {"dim": 0}),
        ("epochs", {"epochs": 0}),
        ("averaged: expected 1..3", {"averaged": 0}),
        ("averaged: expected 1..3", {"averaged": 4}),
        ("tag_weight: expected 1..2", {"tag_weight": 0}),
        ("tag_weight > 1 requires cbow without concat", {"tag_weight": 2}),
        ("threads", {"threads": 0}),
    ],
    ids=str,
)
def test_bad_arguments_of_inference_are_refused_by_name(named, changed):
    with pytest.raises(ValueError, match=named):
        Problem(tags=1, predict=False).infer(kernels, **changed)


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_inference_depends_on_the_document_alone(kind):
    """Threads, order and other documents do not change a bit of the result, and only the new rows change."""
    problem = Problem(
        dim=20, words=300, tokens=900, window=5, tags=1, drawn=8, centers=4, noise=5000, **DOCUMENTS[kind]
    )
    before = problem.arguments()
    whole = problem.infer(kernels)
    for name in ("w_in", "w_out"):
        if before[name] is not None:
            assert_array_equal(whole[name], before[name])
    assert_array_equal(whole["w_docs"], problem.infer(kernels, threads=2)["w_docs"])
    offsets, ids = problem.offsets(), before["ids"]
    order = np.random.default_rng(1).permutation(len(offsets) - 1)[:7]
    documents = [ids[offsets[d] : offsets[d + 1]] for d in order]
    changed = {
        "ids": np.concatenate(documents),
        "offsets": np.cumsum([0, *map(len, documents)]).astype(np.int64),
        "w_docs": kernels.weight_table(7, 20),
        "threads": 2,
    }
    assert_array_equal(problem.infer(kernels, **changed)["w_docs"], whole["w_docs"][order])
    empty = np.diff(offsets) == 0
    assert not whole["w_docs"][empty].any()
    assert whole["w_docs"][~empty].any(axis=1).all()
    other = problem.infer(kernels, seed=2)["w_docs"]
    assert (other != whole["w_docs"])[~empty].any(axis=1).all()


@pytest.mark.parametrize(
    "changed",
    [
        {"ids": [0, 1]},
        {"window": 2.5},
        {"window": "5"},
        {"lr_first": "0.1"},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused(changed):
    with pytest.raises(TypeError, match=next(iter(changed))):
        train(kernels, {**Problem().arguments(), **changed})


@pytest.mark.parametrize("changed", [{"seed": -1}, {"seed": 2**64}, {"window": 2**31}], ids=str)
def test_a_value_that_does_not_fit_is_refused(changed):
    with pytest.raises(ValueError, match=f"{next(iter(changed))}: expected a number that fits"):
        train(kernels, {**Problem().arguments(), **changed})


def test_an_unexpected_array_is_refused():
    with pytest.raises(ValueError, match="unexpected array: w_inn"):
        train(kernels, {**Problem().arguments(), "w_inn": np.zeros(3)})


@pytest.mark.parametrize("offsets", [[0, 10**9], [-5, -3], [5, 3], [0, 2**62, -(2**62), 80], [100, 200]])
def test_invalid_offsets_do_not_crash(offsets):
    arguments = {**Problem(subsampled=True).arguments(), "offsets": np.array(offsets, np.int64)}
    assert train(kernels, arguments)[2] <= 80


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS, which only Linux enforces")
def test_threads_that_do_not_start_leave_their_work_to_the_others():
    script = (
        "import resource\n"
        "from embfast import kernels\n"
        "from problems import Problem, train\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"  # 4096 stacks of 8 MB do not fit
        "arguments = {**Problem().arguments(), 'threads': 4096}\n"
        "print(train(kernels, arguments)[2])\n"
    )
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("AddressSanitizer needs more address space than that")
    root = Path(embfast.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent / "support")])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "80\n"
