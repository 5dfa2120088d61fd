"""GloVe: kernel against reference, reference against calculus, and the model."""

import copy
import signal
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import saved
from entry_problems import TABLES, EntryProblem, changed, every_problem
from numpy.testing import assert_allclose, assert_array_equal
from test_cooccurrence import topics
from test_word2vec import topic_share

import embfast
import embfast.words.glove
from embfast import kernels, reference
from embfast.errors import FormatError, TrainingError
from embfast.reference import Purpose
from embfast.text.corpus import Corpus
from embfast.words.cooccurrence import CooccurrenceMatrix
from embfast.words.glove import GloVe

PROBLEMS = every_problem()


@pytest.fixture(scope="module")
def corpus():
    return Corpus.from_sentences(topics())


@pytest.fixture(scope="module")
def matrix(corpus):
    return CooccurrenceMatrix.from_corpus(corpus, window=4)


# ---- training: kernel and reference -------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["baseline", "avx2", "avx512"])
def solved(request, solve_on):
    """Solutions of all problems on one instruction set, which a process chooses once."""
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
    """Otherwise steps too small to see, and unclipped gradients, would pass."""
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

    def loss():  # one entry of eq. 8 in the paper, halved as in glove.c
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
    arguments |= {"entries": entries, "groups": edges, "order": np.arange(8, dtype=np.int32)[::-1].copy()}
    arguments["job"]["last"] = 8
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
    tallies = [
        kernels.train_entries(**{**parts, "job": changed(parts["job"], first=a, last=b)})
        for a, b in ((0, 2), (2, 2), (2, 9))
    ]
    assert sum(t[1] for t in tallies) == n
    assert sum(t[0] for t in tallies) == pytest.approx(loss)
    for name in TABLES:
        assert_array_equal(whole[name], parts[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_in": np.zeros((12, 16), np.float64)}, "w_in: expected a writable C-contiguous float32"),
        ({"w_out": kernels.weight_table(12, 30)}, "w_out: expected 16 columns"),
        ({"sums_in": kernels.weight_table(11, 9)}, "sums_in: expected 12 rows, as w_in has"),
        ({"job": np.zeros(1, kernels.GLOVE_JOB)}, "job: expected a record of kernels.GLOVE_JOB"),
        ({"order": np.full(9, 9, np.int32)}, "order: expected 0 <= group < 9"),
        ({"groups": np.array([0, 5, 4, *[80] * 7])}, "groups: entry . does not ascend"),
        ({"groups": np.array([0, *[81] * 9])}, "groups: entry . does not ascend"),
        ({"groups": np.zeros(10, np.int32)}, "groups: expected an aligned"),
        ({"entries": np.zeros(80, np.float32)}, "entries: expected"),
        ({"entries": np.full(80, 12, kernels.ENTRY)}, "entries: expected 0 <= id < 12"),
        ({"entries": np.full(80, -1, kernels.ENTRY)}, "entries: expected 0 <= id < 12"),
        ({"threads": 0}, "threads: expected"),
    ],
)
def test_arrays_that_would_break_memory_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        kernels.train_entries(**{**EntryProblem().arguments(), **change})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim: expected at least 1 and less than the number of columns"),
        ({"dim": 16}, "dim: expected at least 1 and less than the number of columns"),
        ({"first": 3, "last": 2}, "first <= last"),
        ({"last": 10}, "first <= last <= 9"),
    ],
)
def test_settings_that_would_break_memory_are_refused(settings, message):
    arguments = EntryProblem().arguments()
    job = changed(arguments.pop("job"), **settings)
    with pytest.raises(ValueError, match=message):
        kernels.train_entries(job, **arguments)


# ---- the model ----------------------------------------------------------------------------------------------------

QUICK = {"dim": 10, "epochs": 3, "x_max": 10.0, "threads": 1}


@pytest.fixture
def small_blocks(monkeypatch):
    """Small tiles, parts, random groups and slices, so that a small matrix has many of each."""
    monkeypatch.setattr(embfast.words.glove, "_TILE", 8)
    monkeypatch.setattr(embfast.words.glove, "_PART", 20)
    monkeypatch.setattr(embfast.words.glove, "_GROUP", 32)
    monkeypatch.setattr(embfast.words.glove, "_BLOCK", 150)
    monkeypatch.setattr(embfast.words.glove, "_SLICE_WORK", 0)


def same_weights(a, b):
    assert a.words_ == b.words_
    first, second = saved.tensors(a), saved.tensors(b)
    for name in TABLES:
        assert_array_equal(first[name], second[name], err_msg=name)


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
    """Before training all products and biases are about 0, and the cost is the mean of f(x) log(x)^2 / 2."""
    entries = np.zeros(40, kernels.ENTRY)
    entries["row"], entries["column"] = np.arange(40), np.arange(40)[::-1]  # no word is repeated on one side
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
    monkeypatch.setattr(embfast.words.glove, "_BLOCK", 1 << 16)
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
    model.save(tmp_path / "model.safetensors")
    sums = saved.tensors(model)["sums_in"]
    sums[3, 2] = 0
    saved.change(tmp_path / "model.safetensors", "sums_in", sums)
    with pytest.raises(FormatError, match=r"model.safetensors: expected sums_in to be positive"):
        GloVe.load(tmp_path / "model.safetensors")


def test_a_shallow_copy_that_learns_new_words_leaves_the_first_model_whole():
    model = GloVe(dim=5, epochs=1).fit(Corpus.from_sentences(topics()))
    copy.copy(model).partial_fit(Corpus.from_sentences([["new", "words"]] * 9))
    tensors = saved.tensors(model)
    assert {len(tensors[name]) for name in TABLES} == {len(model.words_)}


def test_partial_fit_learns_new_words_beside_the_old():
    old = [[word for word in s if word not in ("a3", "b7")] for s in topics()]
    how = {"dim": 5, "epochs": 60, "window": 4, "threads": 1}
    model = GloVe(**how).fit(Corpus.from_sentences(old))
    assert "a3" not in model.vectors_
    counts = dict(zip(model.words_, model.counts_.tolist(), strict=True))
    kept = dict(zip(model.words_, saved.tensors(model)["sums_out"], strict=True))
    more = Corpus.from_sentences(topics(seed=1))
    model.partial_fit(more)
    assert set(model.words_) == {*counts, "a3", "b7"}
    added = dict(zip(more.words, more.counts.tolist(), strict=True))
    assert dict(zip(model.words_, model.counts_.tolist(), strict=True)) == {
        word: counts.get(word, 0) + added[word] for word in added
    }
    assert (np.diff(model.counts_) <= 0).all()
    now = saved.tensors(model)["sums_out"]
    for word, sums in kept.items():
        assert (now[model.words_.index(word)] >= sums).all(), "sums of squares never decrease"
    assert topic_share(model.vectors_) > 0.9
    assert {near[0] for near, _ in model.vectors_.most_similar("a3", k=3)} <= {"a", "c"}
    with pytest.raises(ValueError, match="dim must stay 5 once trained, got 6"):
        model.set_params(dim=6).partial_fit(more)


def test_rows_move_with_their_words_when_the_vocabulary_grows(matrix, corpus):
    model = GloVe(**QUICK).fit(matrix)
    before = saved.tensors(model)
    place = {word: i for i, word in enumerate(model.words_)}
    grown = CooccurrenceMatrix.from_corpus(Corpus.from_sentences([["new"] * 5_000 + ["a1"]]))
    model._grow(grown)
    assert model.words_[0] == "new"
    rows = [place[word] for word in model.words_[1:]]
    tensors = saved.tensors(model)
    for name in TABLES:
        assert_array_equal(tensors[name][1:], before[name][rows])
    assert (tensors["sums_in"][0] == 1).all()
    assert 0 < np.abs(tensors["w_in"][0, :10]).max() <= 0.05
    assert not tensors["w_in"][0, 10:].any()


@pytest.mark.parametrize("vectors", ["sum", "input", "both"])
def test_the_vectors_that_come_out(matrix, corpus, vectors):
    model = GloVe(**QUICK, vectors=vectors).fit(matrix)
    w_in, w_out = (saved.tensors(model)[name][:, :10] for name in ("w_in", "w_out"))
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
def test_an_invalid_setting_is_named_with_value_and_range(matrix, name, value):
    model = GloVe(**{name: value})  # the constructor only stores
    with pytest.raises(ValueError, match=rf"^{name} must be .*(from|above|True or False|one of).*") as caught:
        model.fit(matrix)
    assert repr(value) in str(caught.value)


def test_every_setting_reaches_the_kernel(matrix, corpus, monkeypatch):
    calls = []

    def record(job, *, threads, **arrays):
        calls.append(({name: job[name].item() for name in job.dtype.names}, threads, arrays))
        return 1.0, len(matrix)

    monkeypatch.setattr(kernels, "train_entries", record)
    model = GloVe(dim=9, epochs=2, x_max=3.0, alpha=0.5, lr=0.125, threads=3, seed=11).fit(matrix)
    expected = {"dim": 9, "x_max": 3.0, "alpha": 0.5, "lr": 0.125, "seed": 11, "first": 0, "last": 2}
    for epoch, (job, threads, arrays) in enumerate(calls):
        assert {name: value for name, value in job.items() if value} == {
            name: value for name, value in {**expected, "epoch": epoch}.items() if value
        }
        assert threads == 3
        for name in TABLES:
            assert_array_equal(arrays[name][:, :10], saved.tensors(model)[name][:, :10])
        assert_array_equal(arrays["order"], kernels.random_order(2, 11, epoch))  # a tile in two parts
    model.partial_fit(matrix)
    assert [job["epoch"] for job, _, _ in calls] == [0, 1, 2, 3]
    counts = []

    def count(corpus, **options):
        counts.append(options)
        return matrix

    monkeypatch.setattr(CooccurrenceMatrix, "from_corpus", count)
    GloVe(window=3, symmetric=False, distance_weighting=False, memory_gb=0.25, threads=5, epochs=1).fit(corpus)
    assert counts == [{"window": 3, "symmetric": False, "distance_weighting": False, "memory_gb": 0.25, "threads": 5}]


def test_tiles_grow_with_the_vocabulary(monkeypatch):
    """10^6 words have 61 million tiles of 128 x 128; the index of tiles is bounded."""
    monkeypatch.setattr(embfast.words.glove, "_MOST_TILES", 9)
    entries = np.array([(0, 999, 1.0), (999, 0, 2.0)], kernels.ENTRY)
    words = [f"w{i}" for i in range(1000)]
    sparse = CooccurrenceMatrix(words, np.ones(1000), entries)
    groups, _ = embfast.words.glove.group(sparse, np.arange(1000, dtype=np.int32), 1000, "tiles", 0)
    assert_array_equal(groups, [0, 1, 2])
    assert np.isfinite(GloVe(dim=3, epochs=1).fit(sparse).vectors_.matrix).all()


def test_parts_of_tiles_hold_every_entry_once(matrix, small_blocks):
    groups, entries = embfast.words.glove.group(matrix, np.arange(45, dtype=np.int32), 45, "tiles", 0)
    assert (groups[0], groups[-1]) == (0, len(matrix))
    assert 0 < np.diff(groups).min() <= np.diff(groups).max() == 20
    for begin, end in pairwise(groups):
        tile = entries[begin:end]["row"] // 8 * 6 + entries[begin:end]["column"] // 8
        assert len(set(tile)) == 1
    assert_array_equal(np.sort(entries, order=("row", "column")), matrix.entries)
    first = entries[groups[0] : groups[1]]
    assert len(set(first["row"])) > 4, "a part is not a row-major range of its tile"


def test_what_cannot_be_trained_on(corpus):
    with pytest.raises(TypeError, match="expected a Corpus or a CooccurrenceMatrix, got list"):
        GloVe().fit([["a", "b"]])
    with pytest.raises(ValueError, match="at least 2 distinct words to train on, got 1"):
        GloVe().fit(Corpus.from_sentences([["a", "a"]]))
    with pytest.raises(ValueError, match="no two words co-occur"):
        GloVe().fit(Corpus.from_sentences([["a"], ["b"]] * 10))
    with pytest.raises(ValueError, match="not trained yet"):
        GloVe().transform(corpus)
    with pytest.raises(TypeError, match="expected a Corpus, got list"):
        GloVe(dim=2, epochs=1).fit(corpus).transform([["a"]])


def test_a_loss_that_is_not_finite_says_so(matrix, tmp_path):
    GloVe(**QUICK).fit(matrix).save(tmp_path / "model.safetensors")
    for name in ("w_in", "w_out"):
        rows = saved.tensors_of(tmp_path / "model.safetensors")[name]
        saved.change(tmp_path / "model.safetensors", name, np.full_like(rows, 3e38))
    model = GloVe.load(tmp_path / "model.safetensors")
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
