"""GloVe: kernel against reference, reference against calculus, counting against a dictionary, files, the model."""

import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from entry_problems import TABLES, EntryProblem, every_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from test_word2vec import topic_share

import embfast
import embfast.glove
from embfast import kernels, reference
from embfast.corpus import Corpus
from embfast.errors import FormatError, TrainingError
from embfast.glove import STANFORD, CooccurrenceMatrix, GloVe, count_pairs
from embfast.reference import Purpose

PROBLEMS = every_problem()


def topics(n=1_500, seed=0):
    """Sentences of 12 words of two topics of 20 words, 4 of 5 words of the sentence's own topic, some of neither.

    GloVe learns from pairs that occur, so words of different topics must meet at times.
    """
    random = np.random.default_rng(seed)
    own = np.array(["ab", "ba"])[random.integers(2, size=n)]
    letters = random.choice(3, (n, 12), p=[0.64, 0.16, 0.2])
    numbers = random.integers(20, size=(n, 12))
    return [
        [f"{(both + 'c')[k]}{i if k < 2 else i % 5}" for k, i in zip(*row, strict=True)]
        for both, *row in zip(own, letters.tolist(), numbers.tolist(), strict=True)
    ]


# ---- training: kernel and reference -------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["baseline", "avx2", "avx512"])
def solved(request, solve_on):
    """What the kernel makes of every problem on one instruction set, which a process chooses once."""
    return solve_on(request.param, "entry_problems.py")


@cache
def expected(name):
    return PROBLEMS[name].solve(reference, np.float64)


@pytest.mark.parametrize("name", PROBLEMS)
def test_kernel_matches_reference(name, solved):
    for part, slow in expected(name).items():
        fast = solved[f"{name}/{part}"]
        if part == "tally":
            assert_allclose(fast[0], slow[0], rtol=1e-4)
            assert fast[1] == slow[1] > 0
        else:
            assert_allclose(fast, slow, rtol=1e-4, atol=3e-6 * max(1, np.abs(slow).max()), err_msg=part)
            assert (fast[:, PROBLEMS[name].dim + 1 :] == (part.startswith("sums"))).all(), f"{part}: padding moved"


def test_problems_move_far_and_clip():
    """Or steps too small to see, and a gradient without a limit, would pass."""
    for name in ("dim100-tile4", "dim1-tile0", "many-in-a-tile"):
        before, after = PROBLEMS[name].arguments(np.float64), expected(name)
        assert np.abs(after["w_in"] - before["w_in"]).max() > 0.05, name
    grown = expected("clipped")["sums_in"] - PROBLEMS["clipped"].arguments(np.float64)["sums_in"]
    lr, dim = PROBLEMS["clipped"].lr, PROBLEMS["clipped"].dim
    at_limit = np.isclose(grown[:, :dim] / (100 * lr) ** 2, np.rint(grown[:, :dim] / (100 * lr) ** 2), atol=1e-6)
    assert (at_limit & (grown[:, :dim] > 0)).mean() > 0.5


def slope(f, x, h=1e-5):
    gradient = np.zeros_like(x)
    for i in range(len(x)):
        middle = x[i]
        x[i] = middle + h
        above = f()
        x[i] = middle - h
        gradient[i] = (above - f()) / (2 * h)
        x[i] = middle
    return gradient


@pytest.mark.parametrize("x", [0.3, 10.0, 500.0])
def test_entry_step_follows_the_gradient_of_the_papers_loss(x):
    rng = np.random.default_rng(0)
    w, c = rng.standard_normal((2, 6))
    sums = rng.random((2, 6)) + 1

    def loss():  # eq. 8 of the paper, one entry of it, halved as in glove.c
        weight = (x / 10.0) ** 0.75 if x < 10.0 else 1.0
        return 0.5 * weight * (w[:5] @ c[:5] + w[5] + c[5] - np.log(x)) ** 2

    stated = loss()
    gradients = slope(loss, w), slope(loss, c)
    moved, moved_sums = [w.copy(), c.copy()], sums.copy()
    assert reference.entry_step(*moved, *moved_sums, x, x_max=10.0, alpha=0.75, lr=0.05) == pytest.approx(stated)
    rate = np.array([0.05] * 5 + [1.0])
    for before, after, gradient, old, new in zip((w, c), moved, gradients, sums, moved_sums, strict=True):
        assert_allclose(after - before, -rate * gradient / np.sqrt(old), rtol=1e-6, atol=1e-9)
        assert_allclose(new - old, (rate * gradient) ** 2, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tile", [0, 1, 3, 128])
def test_groups_match_the_reference(tile):
    problem = EntryProblem(words=50, n=2_000)
    entries, place = problem.entries(), np.random.default_rng(3).permutation(70)[:50].astype(np.int32)
    n_groups = (-(-70 // tile)) ** 2 if tile else 7
    groups, grouped = np.full(n_groups + 1, -1), np.zeros(len(entries), kernels.ENTRY)
    options = {"n_rows": 70, "tile": tile, "n_groups": n_groups, "seed": 5}
    assert kernels.group_entries(entries, place, groups=groups, grouped=grouped, **options) == -1
    slow_groups, slow = reference.group_entries(entries, place, **options)
    assert_array_equal(groups, slow_groups)
    assert_array_equal(grouped, slow)
    for g in range(n_groups):
        part = grouped[groups[g] : groups[g + 1]]
        if tile:
            assert len(set(part["row"] // tile)) <= 1
            assert len(set(part["column"] // tile)) <= 1
        else:
            assert abs(len(part) - 2_000 / 7) < 80


def test_orders_match_the_reference_and_differ_by_epoch():
    for n in (0, 1, 2, 1_000):
        order = kernels.random_order(n, 7, 2)
        assert_array_equal(order, reference.random_order(n, 7, 2))
        assert_array_equal(np.sort(order), np.arange(n))
    assert not np.array_equal(kernels.random_order(1_000, 7, 2), kernels.random_order(1_000, 7, 3))
    shuffled = [
        reference.random_order(100, 1, epoch, Purpose.SHUFFLE, first) for epoch, first in ((0, 0), (1, 0), (0, 9))
    ]
    assert len({tuple(order) for order in shuffled}) == 3


def test_orders_are_uniform():
    places = np.array([kernels.random_order(4, seed, 0) for seed in range(24_000)])
    _, counts = np.unique(places @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    assert abs(counts - 1_000).max() < 160


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_groups_without_common_rows_give_the_same_bits_on_any_threads(threads):
    problem = EntryProblem(dim=17, words=64, n=4_096, tile=8)
    arguments = problem.arguments()
    alone = arguments["entries"]["row"] // 8 == arguments["entries"]["column"] // 8
    entries = arguments["entries"][alone]
    edges = np.searchsorted(entries["row"] // 8, np.arange(9))
    arguments |= {"entries": entries, "groups": edges, "order": np.arange(8, dtype=np.int32)[::-1].copy(), "last": 8}
    tally = kernels.train_entries(**arguments)
    aligned = {name: kernels.weight_table(64, 18) for name in TABLES}
    for name in TABLES:
        aligned[name][:] = problem.arguments()[name]
    again = kernels.train_entries(**{**arguments, **aligned, "threads": threads})
    assert again[1] == tally[1] == len(entries)
    assert again[0] == pytest.approx(tally[0], rel=1e-12)
    for name in TABLES:
        assert_array_equal(aligned[name], arguments[name])


def test_slices_of_the_order_add_up():
    whole, parts = EntryProblem().arguments(), EntryProblem().arguments()
    loss, n = kernels.train_entries(**whole)
    tallies = [kernels.train_entries(**{**parts, "first": a, "last": b}) for a, b in ((0, 2), (2, 2), (2, 9))]
    assert sum(t[1] for t in tallies) == n
    assert sum(t[0] for t in tallies) == pytest.approx(loss)
    for name in TABLES:
        assert_array_equal(whole[name], parts[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_in": np.zeros((12, 16), np.float64)}, "w_in: expected a writable C-contiguous float32"),
        ({"w_out": kernels.weight_table(12, 30)}, "w_out: expected 16 columns"),
        ({"sums_in": kernels.weight_table(11, 9)}, "as many rows of each"),
        ({"dim": 0}, "dim: expected 1 or more"),
        ({"dim": 16}, "dim: expected 1 or more, below the columns"),
        ({"first": 3, "last": 2}, "first <= last"),
        ({"last": 10}, "first <= last <= 9"),
        ({"order": np.full(9, 9, np.int32)}, "order: expected groups that there are"),
        ({"groups": np.array([0, 5, 4, *[80] * 7])}, "groups: entry . does not ascend"),
        ({"groups": np.array([0, *[81] * 9])}, "groups: entry . does not ascend"),
        ({"groups": np.zeros(10, np.int32)}, "groups: expected an aligned"),
        ({"entries": np.zeros(80, np.float32)}, "entries: expected"),
        ({"entries": np.full(80, 12, kernels.ENTRY)}, "entries: expected 0 <= id < 12"),
        ({"entries": np.full(80, -1, kernels.ENTRY)}, "entries: expected 0 <= id < 12"),
        ({"threads": 0}, "threads: expected"),
    ],
)
def test_arguments_that_would_break_memory_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        kernels.train_entries(**{**EntryProblem().arguments(), **change})


# ---- counting -----------------------------------------------------------------------------------------------------


def counted(ids, offsets, n_words, chunk=None, threads=1, buffer=None, **how):
    """The entries that count_pairs writes, after a few other bytes."""
    ids, offsets = np.array(ids, np.int32), np.array(offsets, np.int64)
    with tempfile.TemporaryFile() as stream:
        n = count_pairs(
            ids,
            offsets,
            n_words,
            threads=threads,
            buffer=buffer or 16 * (n_words + 1),
            chunk=chunk or max(1, len(ids)),
            stream=stream,
            begin=24,
            **how,
        )
        stream.seek(24)
        data = stream.read()
    assert len(data) == 12 * n
    return np.frombuffer(data, kernels.ENTRY)


@st.composite
def texts(draw):
    n_words = draw(st.integers(1, 9))
    documents = draw(st.lists(st.lists(st.integers(0, n_words - 1), max_size=25), min_size=1, max_size=6))
    return [i for d in documents for i in d], np.cumsum([0, *map(len, documents)]), n_words


@settings(max_examples=150, deadline=None)
@given(
    text=texts(),
    window=st.integers(1, 9),
    symmetric=st.booleans(),
    distance_weighting=st.booleans(),
    chunk=st.integers(1, 60),
    threads=st.integers(1, 3),
    room=st.integers(0, 400),
)
def test_counting_matches_a_dictionary(text, window, symmetric, distance_weighting, chunk, threads, room):
    ids, offsets, n_words = text
    how = {"window": window, "symmetric": symmetric, "distance_weighting": distance_weighting}
    whole = counted(ids, offsets, n_words, **how)
    sums = reference.count_pairs(ids, offsets, **how)
    assert [(e["row"], e["column"]) for e in whole] == sorted(sums)
    assert_allclose(whole["value"], [sums[place] for place in sorted(sums)], rtol=1e-6)
    buffer = 16 * (n_words + 1) + room
    spilled = counted(ids, offsets, n_words, chunk=chunk, threads=threads, buffer=buffer, **how)
    assert spilled.tobytes() == whole.tobytes()


@pytest.mark.parametrize("distance_weighting", [True, False])
def test_wide_windows_and_many_columns(distance_weighting):
    """Rows of many columns, so that both ways of sorting them are met, over windows of 1,000 tokens."""
    rng = np.random.default_rng(1)
    ids = np.minimum(rng.zipf(1.3, 6_000), 2_000).astype(np.int32) - 1
    offsets = np.array([0, 0, 2_500, 2_501, 5_500, 6_000])
    how = {"window": 1_000, "symmetric": False, "distance_weighting": distance_weighting}
    dense = np.zeros((2_000, 2_000))
    for begin, end in pairwise(offsets):
        part = ids[begin:end]
        for d in range(1, 1_001):
            np.add.at(dense, (part[:-d], part[d:]), 1 / d if distance_weighting else 1)
    entries = counted(ids, offsets, 2_000, **how)
    assert_array_equal(entries["row"] * 2_000 + entries["column"], np.flatnonzero(dense))
    assert_allclose(entries["value"], dense[dense > 0], rtol=1e-6)
    both = counted(ids, offsets, 2_000, chunk=1_700, threads=2, **{**how, "symmetric": True})
    assert_array_equal(both["row"] * 2_000 + both["column"], np.flatnonzero(dense + dense.T))
    assert_allclose(both["value"], (dense + dense.T)[dense + dense.T > 0], rtol=1e-6)


def test_sums_stay_exact_where_float32_would_stop():
    """2^24 + 1 pairs: float32 counting by ones stays at 2^24."""
    n = 2**13 + 1
    entries = counted(np.zeros(n, np.int32), [0, n], 1, window=4096, symmetric=False, distance_weighting=False)
    assert entries.tolist() == [(0, 0, np.float32(4096 * (n - 4096) + 4096 * 4095 // 2))]


def test_ids_that_are_no_words_are_refused():
    for ids in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="ids: expected 0 <= id < n_words"):
            counted(ids, [0, 2], 3, window=2, symmetric=True, distance_weighting=True)
    with pytest.raises(ValueError, match="offsets: expected them to run from 0"):
        counted([0, 1], [0, 1], 3, window=2, symmetric=True, distance_weighting=True)
    with pytest.raises(ValueError, match="offsets: entry 2 does not ascend"):
        counted([0, 1], [0, 2, 1, 2], 3, window=2, symmetric=True, distance_weighting=True)


def test_memory_is_planned_and_too_little_is_refused(corpus, monkeypatch):
    for n_words, threads, memory in ((70_000, 1, 0.5), (1_000_000, 8, 2.0), (45, 2, 0.001)):
        buffer, chunk = embfast.glove._plan(10**9, n_words, threads, memory)
        counter = kernels.CooccurrenceCounter
        used = buffer + chunk * counter.bytes_per_token + counter.bytes_of_words(n_words)
        assert used + threads * counter.bytes_per_thread(n_words) <= memory * 1e9
        assert used > 0.5 * memory * 1e9
    with pytest.raises(ValueError, match=r"memory_gb=0.0001 is too little to count 45 words .* at least 0\.00"):
        CooccurrenceMatrix.from_corpus(corpus, memory_gb=1e-4)
    monkeypatch.setattr(embfast.glove, "_SMALLEST_CHUNK", 1)
    told = []
    little = CooccurrenceMatrix.from_corpus(corpus, memory_gb=2e-5, threads=1, progress=lambda *at: told.append(at))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 45 * 2, "several chunks and a merge"
    assert little.entries.tobytes() == CooccurrenceMatrix.from_corpus(corpus, threads=2).entries.tobytes()


FULL_DISK = """
import os, resource, sys
import numpy as np
import embfast.glove
from embfast.corpus import Corpus
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
embfast.glove._SMALLEST_CHUNK = 1
ids = np.random.default_rng(0).integers(0, 500, 20_000).astype(np.int32)
corpus = Corpus([f"w{i}" for i in range(500)], np.bincount(ids, minlength=500), ids, np.array([0, 20_000]))
try:
    embfast.glove.CooccurrenceMatrix.from_corpus(corpus, memory_gb=float(sys.argv[2]), threads=1, path=sys.argv[1])
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("memory_gb", ["0.0001", "1"], ids=["spilling", "writing"])
def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path, memory_gb):
    (tmp_path / "matrix").write_text("the old one")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(embfast.__file__).parents[1])}
    arguments = [sys.executable, "-c", FULL_DISK, str(tmp_path / "matrix"), memory_gb]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"cannot write co-occurrences in {tmp_path}: File too large" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["matrix"]
    assert (tmp_path / "matrix").read_text() == "the old one"


# ---- the matrix and its files -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    return Corpus.from_sentences(topics())


@pytest.fixture(scope="module")
def matrix(corpus):
    return CooccurrenceMatrix.from_corpus(corpus, window=4)


def same_matrix(a, b, counts=True):
    assert a.words == b.words
    if counts:
        assert_array_equal(a.counts, b.counts)
    assert a.entries.tobytes() == b.entries.tobytes()


def test_a_matrix_holds_what_was_counted(corpus, matrix):
    sums = reference.count_pairs(corpus.ids, corpus.offsets, window=4, symmetric=True, distance_weighting=True)
    assert len(matrix) == len(sums)
    assert_allclose(matrix.values, [sums[place] for place in sorted(sums)], rtol=1e-6)
    assert [*zip(matrix.rows.tolist(), matrix.columns.tolist(), strict=True)] == sorted(sums)
    assert (matrix.rows.dtype, matrix.values.dtype) == (np.int32, np.float32)
    assert repr(matrix) == f"CooccurrenceMatrix(45 words, {len(sums):,} entries)"
    assert matrix.settings == {"window": 4, "symmetric": True, "distance_weighting": True}


def test_save_and_load(corpus, matrix, tmp_path):
    matrix.save(tmp_path / "saved")
    loaded = CooccurrenceMatrix.load(tmp_path / "saved")
    same_matrix(loaded, matrix)
    assert loaded.settings == matrix.settings
    kept = CooccurrenceMatrix.from_corpus(corpus, window=4, path=tmp_path / "kept")
    same_matrix(kept, matrix)
    assert (tmp_path / "kept").read_bytes() == (tmp_path / "saved").read_bytes()
    loaded.save(tmp_path / "saved")  # over the file that it is mapped from
    same_matrix(CooccurrenceMatrix.load(tmp_path / "saved"), matrix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "saved"]


def test_a_saved_matrix_is_a_safetensors_file(matrix, tmp_path):
    from safetensors.numpy import load_file

    matrix.save(tmp_path / "matrix.safetensors")
    tensors = load_file(tmp_path / "matrix.safetensors")
    assert tensors["entries"].tobytes() == matrix.entries.tobytes()
    assert_array_equal(tensors["counts"], matrix.counts)


def test_a_corpus_without_pairs_makes_an_empty_matrix(tmp_path):
    lonely = Corpus.from_sentences([["a"], ["b"]] * 3)
    empty = CooccurrenceMatrix.from_corpus(lonely, path=tmp_path / "empty")
    assert (len(empty), empty.words) == (0, ["a", "b"])
    assert empty.to_scipy().nnz == 0
    assert empty.ppmi().nnz == 0
    with pytest.raises(ValueError, match="no two words stand together"):
        GloVe().fit(empty)


def test_files_that_are_cut_or_something_else(matrix, corpus, tmp_path):
    path = tmp_path / "matrix"
    matrix.save(path)
    whole = path.read_bytes()
    for length in (0, 5, 5_000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"matrix: (byte [08]: )?expected"):
            CooccurrenceMatrix.load(path)
    path.write_bytes(whole.replace(b'"version": "1"', b'"version": "2"'))
    with pytest.raises(FormatError, match="expected version 1 or older, got 2; update embfast"):
        CooccurrenceMatrix.load(path)
    GloVe(dim=3, epochs=1).fit(matrix).save(path)
    with pytest.raises(FormatError, match="expected a saved CooccurrenceMatrix"):
        CooccurrenceMatrix.load(path)
    with pytest.raises(FileNotFoundError):
        CooccurrenceMatrix.load(tmp_path / "none")


def changed(matrix, i, **fields):
    entries = np.array(matrix.entries)
    for name, value in fields.items():
        entries[name][i] = value
    return CooccurrenceMatrix(matrix.words, matrix.counts, entries)


BAD_ENTRIES = pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": np.nan}, "entry 7: expected a positive number at 0, 7, got nan"),
        ({"value": np.inf}, "got inf"),
        ({"value": 0}, "got 0.0"),
        ({"value": -1}, r"got -1.0"),
        ({"value": 1e-40}, "entry 7: expected a positive number"),
        ({"row": -1}, "entry 7: expected ids from 0 to 44, got -1 and 7"),
        ({"column": 45}, "entry 7: expected ids from 0 to 44, got 0 and 45"),
    ],
)


@BAD_ENTRIES
def test_entries_that_cannot_be_are_named(matrix, tmp_path, fields, message):
    bad = changed(matrix, 7, **fields)
    for use in (GloVe(dim=3).fit, CooccurrenceMatrix.ppmi, lambda m: m.to_stanford(tmp_path / "out")):
        with pytest.raises(ValueError, match=message):
            use(bad)
    bad.save(tmp_path / "bad")
    with pytest.raises(ValueError, match=f"bad: .*{message}"):
        GloVe(dim=3).fit(CooccurrenceMatrix.load(tmp_path / "bad"))
    assert not (tmp_path / "out").exists()


def test_entries_out_of_order_are_named(matrix):
    for other in (6, 8):
        twice = changed(matrix, 7, column=matrix.columns[other])
        with pytest.raises(ValueError, match=r"entry [78]: expected a row and column after those before"):
            twice.ppmi()
    with pytest.raises(ValueError, match="expected entries of"):
        CooccurrenceMatrix(["a"], np.ones(1), np.zeros((2, 3)))


def test_scipy_and_back(matrix):
    sparse = matrix.to_scipy()
    dense = np.zeros((45, 45), np.float32)
    dense[matrix.rows, matrix.columns] = matrix.values
    assert_array_equal(sparse.toarray(), dense)
    for form in (sparse, sparse.tocsc(), sparse.tolil()):
        same_matrix(CooccurrenceMatrix.from_scipy(form, matrix.words, matrix.counts), matrix)
    back = CooccurrenceMatrix.from_scipy(sparse, matrix.words)
    assert_array_equal(back.counts, np.rint(dense.astype(np.float64).sum(axis=1)))
    twice = np.concatenate([matrix.rows, matrix.rows]), np.concatenate([matrix.columns, matrix.columns])
    from scipy.sparse import coo_array, csr_array

    doubled = coo_array((np.concatenate([matrix.values, matrix.values]), twice), shape=(45, 45))
    assert_array_equal(CooccurrenceMatrix.from_scipy(doubled, matrix.words).values, 2 * matrix.values)
    with pytest.raises(ValueError, match=r"shape \(45, 45\).*got \(2, 2\)"):
        CooccurrenceMatrix.from_scipy(csr_array((2, 2)), matrix.words)
    for value in (-1.0, 0.0, np.nan, 1e300):
        with pytest.raises(ValueError, match="entry 1: expected a positive number at 1, 0"):
            CooccurrenceMatrix.from_scipy(csr_array(([1.0, value], [0, 0], [0, 1, 2]), shape=(2, 2)), ["a", "b"])


@pytest.mark.parametrize(("shift", "smoothing"), [(1.0, 1.0), (1.2, 0.75), (0.5, 0.0)])
def test_ppmi_is_levys_formula(matrix, shift, smoothing):
    x = matrix.to_scipy().toarray().astype(np.float64)
    p_row = x.sum(axis=1) / x.sum()
    p_column = x.sum(axis=0) ** smoothing / (x.sum(axis=0) ** smoothing).sum()
    with np.errstate(divide="ignore"):
        pmi = np.log(x / x.sum() / p_row[:, None] / p_column) - np.log(shift)
    assert_allclose(matrix.ppmi(shift, smoothing).toarray(), np.maximum(pmi, 0), atol=1e-6)
    assert (np.maximum(pmi, 0) > 0).any()


def test_svd_is_that_of_the_whole_matrix(matrix):
    vectors = matrix.svd(dim=5, shift=1.5, power=0.25)
    u, s, _ = np.linalg.svd(matrix.ppmi(1.5).toarray().astype(np.float64))
    expected = u[:, :5] * s[:5] ** 0.25
    sign = np.sign((expected * vectors.matrix).sum(axis=0))
    assert_allclose(vectors.matrix, expected * sign, atol=1e-4)
    assert vectors.keys == matrix.words
    assert (vectors.matrix[np.abs(vectors.matrix).argmax(axis=0), np.arange(5)] > 0).all()
    assert_array_equal(vectors.matrix, matrix.svd(dim=5, shift=1.5, power=0.25).matrix)
    assert topic_share(matrix.svd(dim=4)) > 0.9
    with pytest.raises(ValueError, match="dim must be below the number of words, 45, got 45"):
        matrix.svd(dim=45)
    with pytest.raises(ValueError, match=r"above log\(1e\+08\)"):
        matrix.svd(dim=5, shift=1e8)


def test_stanfords_files_and_back(matrix, tmp_path):
    path, vocab = tmp_path / "cooccurrence.bin", tmp_path / "vocab.txt"
    matrix.to_stanford(path, vocab)
    records = np.fromfile(path, np.dtype([("word1", "<i4"), ("word2", "<i4"), ("val", "<f8")]))
    assert_array_equal(records["word1"], matrix.rows + 1)
    assert_array_equal(records["word2"], matrix.columns + 1)
    assert_array_equal(records["val"], matrix.values.astype(np.float64))
    assert vocab.read_text().splitlines()[0] == f"{matrix.words[0]} {matrix.counts[0]}"
    same_matrix(CooccurrenceMatrix.from_stanford(path, vocab), matrix)
    odd = CooccurrenceMatrix(["a b", "c"], np.ones(2), np.array([], kernels.ENTRY))
    with pytest.raises(ValueError, match="'a b' cannot be written to a vocabulary file"):
        odd.to_stanford(tmp_path / "new.bin", tmp_path / "new.txt")


def test_stanfords_files_that_cannot_be(matrix, tmp_path):
    path, vocab = tmp_path / "cooccurrence.bin", tmp_path / "vocab.txt"
    matrix.to_stanford(path, vocab)
    good = np.fromfile(path, STANFORD)
    path.write_bytes(good.tobytes()[:-3])
    with pytest.raises(FormatError, match=r"cooccurrence.bin: expected records of 16 bytes.*cut short"):
        CooccurrenceMatrix.from_stanford(path, vocab)
    for field, value, message in (
        ("row", 0, "expected ids from 1 to 45, got 0 and 4"),
        ("column", 46, "expected ids from 1 to 45, got 1 and 46"),
        ("value", 0.0, "expected a positive number at 1, 4, got 0.0"),
        ("value", -2.0, ".* got -2.0"),
        ("value", np.nan, ".* got nan"),
        ("value", 1e300, ".* got inf"),
    ):
        bad = good.copy()
        bad[field][3] = value
        bad.tofile(path)
        with pytest.raises(FormatError, match=f"cooccurrence.bin: entry 3: {message}"):
            CooccurrenceMatrix.from_stanford(path, vocab)
    np.random.default_rng(0).permutation(good).tofile(path)
    with pytest.raises(FormatError, match="expected a row and column after those before"):
        CooccurrenceMatrix.from_stanford(path, vocab)
    vocab.write_text("</s> 3\n" + vocab.read_text())
    with pytest.raises(FormatError, match=r"vocab.txt: holds </s>"):
        CooccurrenceMatrix.from_stanford(path, vocab)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("window", v) for v in (0, 1001, 2.0)],
        *[(name, 1) for name in ("symmetric", "distance_weighting")],
        *[("memory_gb", v) for v in (0, -1, float("nan"), None)],
        ("threads", 0),
    ],
)
def test_counting_without_sense_is_refused(corpus, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        CooccurrenceMatrix.from_corpus(corpus, **{name: value})


# ---- the model ----------------------------------------------------------------------------------------------------

QUICK = {"dim": 10, "epochs": 3, "x_max": 10.0, "threads": 1}


@pytest.fixture
def small_blocks(monkeypatch):
    """Tiles of 8 words in parts of 20 entries, random groups of 32, and short slices: many in a small matrix."""
    monkeypatch.setattr(embfast.glove, "_TILE", 8)
    monkeypatch.setattr(embfast.glove, "_PART", 20)
    monkeypatch.setattr(embfast.glove, "_GROUP", 32)
    monkeypatch.setattr(embfast.glove, "_BLOCK", 150)
    monkeypatch.setattr(embfast.glove, "_SLICE_WORK", 0)


def same_weights(a, b):
    assert a.words_ == b.words_
    for name in TABLES:
        assert_array_equal(a._tables[name], b._tables[name], err_msg=name)


@pytest.mark.parametrize("shuffle", ["tiles", "full"])
@pytest.mark.parametrize("threads", [1, 2])
def test_both_shuffles_learn_the_topics(matrix, small_blocks, shuffle, threads):
    model = GloVe(dim=5, epochs=60, shuffle=shuffle, threads=threads).fit(matrix)
    assert topic_share(model.vectors_) > 0.9
    assert len(model.loss_) == 60
    assert model.loss_[-1] < 0.2 * model.loss_[0]


def test_left_sides_alone_learn_too(corpus):
    how = {"window": 4, "symmetric": False, "distance_weighting": False}
    model = GloVe(dim=5, epochs=60, threads=1, **how).fit(corpus)
    assert topic_share(model.vectors_) > 0.9


def test_the_first_loss_is_the_papers():
    """Before anything is learned every product and bias is about 0: the cost is the mean of f(x) log(x)^2 / 2."""
    entries = np.zeros(40, kernels.ENTRY)
    entries["row"], entries["column"] = np.arange(40), np.arange(40)[::-1]  # no word twice on one side
    entries["value"] = np.exp(np.linspace(-3, 3, 40))
    alone = CooccurrenceMatrix([f"w{i}" for i in range(40)], np.ones(40), entries)
    x = entries["value"].astype(np.float64)
    expected = np.mean(0.5 * np.minimum(1, (x / 3.0) ** 0.75) * np.log(x) ** 2)
    assert GloVe(dim=200, epochs=1, x_max=3.0).fit(alone).loss_[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("shuffle", ["tiles", "full"])
def test_one_thread_and_seed_give_the_same_bits(matrix, small_blocks, shuffle):
    first, second = (GloVe(**QUICK, shuffle=shuffle).fit(matrix) for _ in range(2))
    same_weights(first, second)
    assert first.loss_ == second.loss_
    other = GloVe(**QUICK, shuffle=shuffle, seed=1).fit(matrix)
    assert not np.array_equal(first.vectors_.matrix, other.vectors_.matrix)


def test_a_corpus_and_its_matrix_give_the_same_bits(corpus, matrix):
    same_weights(GloVe(**QUICK, window=4).fit(corpus), GloVe(**QUICK).fit(matrix))


@pytest.mark.parametrize("shuffle", ["tiles", "full"])
def test_slices_do_not_change_the_bits(matrix, monkeypatch, small_blocks, shuffle):
    told = []
    sliced = GloVe(**QUICK, shuffle=shuffle).fit(matrix, progress=told.append)
    assert len(told) == 3 * -(-len(matrix) // 150)
    assert [status.done for status in told] == sorted(status.done for status in told)
    assert str(told[-1]).startswith("epoch 3/3  100.0 %")
    assert "entries/s" in str(told[-1])
    monkeypatch.setattr(embfast.glove, "_BLOCK", 1 << 16)
    whole = GloVe(**QUICK, shuffle=shuffle).fit(matrix)
    same_weights(whole, sliced)
    assert_allclose(whole.loss_, sliced.loss_, rtol=1e-12)


@pytest.mark.parametrize("shuffle", ["tiles", "full"])
def test_a_run_stopped_at_any_slice_resumes_to_the_same_bits(matrix, tmp_path, small_blocks, shuffle):
    straight = GloVe(**QUICK, shuffle=shuffle).fit(matrix)
    n_slices = -(-len(matrix) // 150)
    path = tmp_path / "checkpoint.safetensors"
    for stop_after in (1, n_slices - 1, n_slices, n_slices + 2):
        path.unlink(missing_ok=True)
        slices = []

        def stop(status, slices=slices, stop_after=stop_after):
            slices.append(status)
            if len(slices) == stop_after:
                signal.raise_signal(signal.SIGINT)

        stopped = GloVe(**QUICK, shuffle=shuffle)
        with pytest.raises(KeyboardInterrupt):
            stopped.fit(matrix, checkpoint=path, progress=stop)
        assert len(slices) == stop_after
        same_weights(stopped, GloVe.load(path))
        resumed = GloVe(**QUICK, shuffle=shuffle, memory_gb=1.0).fit(matrix, checkpoint=path, resume=True)
        same_weights(straight, resumed)
        assert resumed.loss_ == straight.loss_


def test_resuming_something_else_is_refused(matrix, corpus, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    GloVe(**QUICK).fit(matrix, checkpoint=path)
    with pytest.raises(ValueError, match=r"other settings: shuffle was 'tiles', is 'full'"):
        GloVe(**QUICK, shuffle="full").fit(matrix, checkpoint=path, resume=True)
    other = CooccurrenceMatrix.from_corpus(corpus, window=3)
    with pytest.raises(ValueError, match=r"another corpus: .*crc was"):
        GloVe(**QUICK).fit(other, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="needs checkpoint="):
        GloVe().fit(matrix, resume=True)


def test_save_and_load_keep_all_that_partial_fit_needs(matrix, tmp_path):
    model = GloVe(**QUICK).fit(matrix)
    model.save(tmp_path / "model.safetensors")
    loaded = GloVe.load(tmp_path / "model.safetensors")
    same_weights(model, loaded)
    assert_array_equal(model.vectors_.matrix, loaded.vectors_.matrix)
    assert loaded.get_params() == model.get_params()
    model.partial_fit(matrix)
    loaded.partial_fit(matrix)
    same_weights(model, loaded)
    assert len(loaded.loss_) == 6
    assert loaded.loss_[3] < loaded.loss_[2]


def test_a_file_with_bad_sums_is_refused(matrix, tmp_path):
    model = GloVe(**QUICK).fit(matrix)
    model._tables["sums_in"][3, 2] = 0
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=r"model.safetensors: expected sums_in to be positive"):
        GloVe.load(tmp_path / "model.safetensors")


def test_partial_fit_learns_new_words_beside_the_old():
    old = [[word for word in s if word not in ("a3", "b7")] for s in topics()]
    how = {"dim": 5, "epochs": 60, "window": 4, "threads": 1}
    model = GloVe(**how).fit(Corpus.from_sentences(old))
    assert "a3" not in model.vectors_
    counts = dict(zip(model.words_, model.counts_.tolist(), strict=True))
    kept = {word: model._tables["sums_out"][i].copy() for i, word in enumerate(model.words_)}
    more = Corpus.from_sentences(topics(seed=1))
    model.partial_fit(more)
    assert set(model.words_) == {*counts, "a3", "b7"}
    added = dict(zip(more.words, more.counts.tolist(), strict=True))
    assert dict(zip(model.words_, model.counts_.tolist(), strict=True)) == {
        word: counts.get(word, 0) + added[word] for word in added
    }
    assert (np.diff(model.counts_) <= 0).all()
    for word, sums in kept.items():
        assert (model._tables["sums_out"][model.words_.index(word)] >= sums).all(), "sums of squares only grow"
    assert topic_share(model.vectors_) > 0.9
    assert {near[0] for near, _ in model.vectors_.most_similar("a3", k=3)} <= {"a", "c"}
    with pytest.raises(ValueError, match="dim must stay 5 in partial_fit, got 6"):
        model.set_params(dim=6).partial_fit(more)


def test_rows_move_with_their_words_when_the_vocabulary_grows(matrix, corpus):
    model = GloVe(**QUICK).fit(matrix)
    before = {name: table.copy() for name, table in model._tables.items()}
    place = {word: i for i, word in enumerate(model.words_)}
    grown = CooccurrenceMatrix.from_corpus(Corpus.from_sentences([["new"] * 5_000 + ["a1"]]))
    model._grow(grown)
    assert model.words_[0] == "new"
    rows = [place[word] for word in model.words_[1:]]
    for name in TABLES:
        assert_array_equal(model._tables[name][1:], before[name][rows])
    assert (model._tables["sums_in"][0] == 1).all()
    assert 0 < np.abs(model._tables["w_in"][0, :10]).max() <= 0.05
    assert not model._tables["w_in"][0, 10:].any()


@pytest.mark.parametrize("vectors", ["sum", "input", "both"])
def test_the_vectors_that_come_out(matrix, corpus, vectors):
    model = GloVe(**QUICK, vectors=vectors).fit(matrix)
    w_in, w_out = (model._tables[name][:, :10] for name in ("w_in", "w_out"))
    expected = {"sum": w_in + w_out, "input": w_in, "both": np.concatenate([w_in, w_out], axis=1)}[vectors]
    assert_array_equal(model.vectors_.matrix, expected)
    assert model.transform(corpus).shape == (len(corpus), expected.shape[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("dim", v) for v in (0, 100.5, True, None)],
        *[("window", v) for v in (0, 1001)],
        *[(name, v) for name in ("symmetric", "distance_weighting") for v in ("yes", 1)],
        *[("epochs", v) for v in (0, 1.5)],
        *[("x_max", v) for v in (0, -1.0, float("nan"), float("inf"))],
        *[("alpha", v) for v in (-0.1, float("nan"), 11)],
        *[("lr", v) for v in (0, float("nan"), 101)],
        *[("vectors", v) for v in ("mean", None)],
        *[("shuffle", v) for v in ("none", True)],
        *[("memory_gb", v) for v in (0, "2")],
        *[("threads", v) for v in (0, 1.5)],
        *[("seed", v) for v in (-1, 2**64)],
    ],
)
def test_a_setting_without_sense_is_named_with_value_and_range(matrix, name, value):
    model = GloVe(**{name: value})  # the constructor only stores
    with pytest.raises(ValueError, match=rf"^{name} must be .*(from|above|True or False|one of).*") as caught:
        model.fit(matrix)
    assert repr(value) in str(caught.value)


def test_every_setting_reaches_the_kernel(matrix, corpus, monkeypatch):
    calls = []

    def record(*arrays, **options):
        calls.append((arrays, options))
        return 1.0, len(matrix)

    monkeypatch.setattr(kernels, "train_entries", record)
    model = GloVe(dim=9, epochs=2, x_max=3.0, alpha=0.5, lr=0.125, threads=3, seed=11).fit(matrix)
    for epoch, (arrays, options) in enumerate(calls):
        assert options == {"x_max": 3.0, "alpha": 0.5, "lr": 0.125, "seed": 11, "epoch": epoch, "threads": 3}
        for table, name in zip(arrays[:4], TABLES, strict=True):
            assert table is model._tables[name]
        assert arrays[4] == 9
        assert_array_equal(arrays[7], kernels.random_order(2, 11, epoch))  # a tile in two parts
    model.partial_fit(matrix)
    assert [options["epoch"] for _, options in calls] == [0, 1, 2, 3]
    counts = []

    def count(corpus, **options):
        counts.append(options)
        return matrix

    monkeypatch.setattr(CooccurrenceMatrix, "from_corpus", count)
    GloVe(window=3, symmetric=False, distance_weighting=False, memory_gb=0.25, threads=5, epochs=1).fit(corpus)
    assert counts == [{"window": 3, "symmetric": False, "distance_weighting": False, "memory_gb": 0.25, "threads": 5}]


def test_tiles_grow_with_the_vocabulary(monkeypatch):
    """10^6 words are 61 million tiles of 128; the index of those that there are is bounded."""
    monkeypatch.setattr(embfast.glove, "_MOST_TILES", 9)
    entries = np.array([(0, 999, 1.0), (999, 0, 2.0)], kernels.ENTRY)
    words = [f"w{i}" for i in range(1000)]
    sparse = CooccurrenceMatrix(words, np.ones(1000), entries)
    groups, _ = embfast.glove.group(sparse, np.arange(1000, dtype=np.int32), 1000, "tiles", 0)
    assert_array_equal(groups, [0, 1, 2])
    assert np.isfinite(GloVe(dim=3, epochs=1).fit(sparse).vectors_.matrix).all()


def test_parts_of_tiles_hold_every_entry_once(matrix, small_blocks):
    groups, entries = embfast.glove.group(matrix, np.arange(45, dtype=np.int32), 45, "tiles", 0)
    assert (groups[0], groups[-1]) == (0, len(matrix))
    assert 0 < np.diff(groups).min() <= np.diff(groups).max() == 20
    for begin, end in pairwise(groups):
        tile = entries[begin:end]["row"] // 8 * 6 + entries[begin:end]["column"] // 8
        assert len(set(tile)) == 1
    assert_array_equal(np.sort(entries, order=("row", "column")), matrix.entries)
    first = entries[groups[0] : groups[1]]
    assert len(set(first["row"])) > 4, "a part is no row-major stretch of its tile"


def test_what_cannot_be_trained_on(corpus):
    with pytest.raises(TypeError, match="expected a Corpus or a CooccurrenceMatrix, got list"):
        GloVe().fit([["a", "b"]])
    with pytest.raises(ValueError, match="at least 2 distinct words to train on, got 1"):
        GloVe().fit(Corpus.from_sentences([["a", "a"]]))
    with pytest.raises(ValueError, match="no two words stand together"):
        GloVe().fit(Corpus.from_sentences([["a"], ["b"]] * 10))
    with pytest.raises(ValueError, match="not trained yet"):
        GloVe().transform(corpus)
    with pytest.raises(TypeError, match="expected a Corpus, got list"):
        GloVe(dim=2, epochs=1).fit(corpus).transform([["a"]])


def test_a_loss_that_is_not_finite_says_so(matrix):
    model = GloVe(**QUICK).fit(matrix)
    model._tables["w_in"][:] = model._tables["w_out"][:] = 3e38
    with pytest.raises(TrainingError, match=r"epoch 1 of 3, at lr 0.05: lower lr"):
        model.partial_fit(matrix)


def test_scikit_learn_clones_fits_and_pipes(corpus):
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    label = np.array([sum(word[0] == "a" for word in s) > sum(word[0] == "b" for word in s) for s in topics()])
    pipe = clone(make_pipeline(GloVe(dim=6, epochs=40, threads=1), LogisticRegression()))
    pipe.fit(corpus, label)
    assert (pipe.predict(corpus) == label).mean() > 0.9
    assert pipe.set_params(glove__dim=8)[0].dim == 8


def test_real_text_teaches_countries(data):
    factbook = Corpus.from_file(data("text-extra/factbook.txt.zst"))
    model = GloVe(dim=32, epochs=8, x_max=10.0, window=10, threads=1).fit(factbook)
    assert all(a > b for a, b in zip(model.loss_, model.loss_[1:], strict=False))
    countries = {"italy", "spain", "germany", "belgium", "netherlands", "denmark", "uk", "portugal", "austria", "japan"}
    near = {word for word, _ in model.vectors_.most_similar("france", k=10)}
    assert len(near & countries) >= 3, near


def test_memory_is_given_back(tmp_path):
    """Counting into a file and training from it: peak memory is far below what the entries take."""
    script = """
import resource, sys
import numpy as np
from embfast.corpus import Corpus
from embfast.glove import CooccurrenceMatrix
ids = np.random.default_rng(0).integers(0, 3_000, 1_500_000).astype(np.int32)
corpus = Corpus([f"w{i}" for i in range(3_000)], np.bincount(ids, minlength=3_000), ids, np.array([0, len(ids)]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
matrix = CooccurrenceMatrix.from_corpus(corpus, window=8, memory_gb=0.01, threads=1, path=sys.argv[1])
print(len(matrix), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("the sanitizers take memory of their own")
    environment = {**os.environ, "PYTHONPATH": str(Path(embfast.__file__).parents[1])}
    arguments = [sys.executable, "-c", script, str(tmp_path / "matrix")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    n, used = map(int, done.stdout.split())
    assert n * 12 > 60e6
    assert used < 0.01e9 + 6e6
