"""Co-occurrences: counting against a dictionary, files, SciPy and Stanford's format."""

import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from test_word2vec import topic_share

import embfast
import embfast.words.counting
from embfast import kernels, reference
from embfast.errors import FormatError
from embfast.text.corpus import Corpus
from embfast.words.cooccurrence import STANFORD, CooccurrenceMatrix
from embfast.words.counting import CountingPlan, count_pairs, plan_counting
from embfast.words.glove import GloVe


def topics(n=1_500, seed=0):
    """Sentences of 12 words. 4 of 5 topic words are from the sentence's topic; some words have no topic.

    GloVe learns from observed pairs only, so words of different topics must sometimes co-occur.
    """
    random = np.random.default_rng(seed)
    own = np.array(["ab", "ba"])[random.integers(2, size=n)]
    letters = random.choice(3, (n, 12), p=[0.64, 0.16, 0.2])
    numbers = random.integers(20, size=(n, 12))
    return [
        [f"{(both + 'c')[k]}{i if k < 2 else i % 5}" for k, i in zip(*row, strict=True)]
        for both, *row in zip(own, letters.tolist(), numbers.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def corpus():
    return Corpus.from_sentences(topics())


@pytest.fixture(scope="module")
def matrix(corpus):
    return CooccurrenceMatrix.from_corpus(corpus, window=4)


# ---- counting -----------------------------------------------------------------------------------------------------


def counted(ids, offsets, n_words, chunk=None, threads=1, buffer=None, **how):
    """The entries that count_pairs writes, 24 bytes into a file."""
    text = SimpleNamespace(ids=np.array(ids, np.int32), offsets=np.array(offsets, np.int64), words=range(n_words))
    plan = CountingPlan(
        **how, threads=threads, buffer_bytes=buffer or 16 * (n_words + 1), chunk=chunk or max(1, len(ids))
    )
    with tempfile.TemporaryFile() as stream:
        n = count_pairs(text, plan, stream, begin=24)
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
    """Rows with many columns, which cover both ways of sorting, and windows of 1,000 tokens."""
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
    """With 2^24 + 1 pairs, float32 counting by ones would stop at 2^24."""
    n = 2**13 + 1
    entries = counted(np.zeros(n, np.int32), [0, n], 1, window=4096, symmetric=False, distance_weighting=False)
    assert entries.tolist() == [(0, 0, np.float32(4096 * (n - 4096) + 4096 * 4095 // 2))]


def test_ids_out_of_range_are_refused():
    for ids in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="ids: expected 0 <= id < n_words"):
            counted(ids, [0, 2], 3, window=2, symmetric=True, distance_weighting=True)
    with pytest.raises(ValueError, match="offsets: expected to rise from 0"):
        counted([0, 1], [0, 1], 3, window=2, symmetric=True, distance_weighting=True)
    with pytest.raises(ValueError, match="offsets: entry 2 does not ascend"):
        counted([0, 1], [0, 2, 1, 2], 3, window=2, symmetric=True, distance_weighting=True)


def test_memory_is_planned_and_too_small_a_limit_is_refused(corpus, monkeypatch):
    for n_words, threads, memory in ((70_000, 1, 0.5), (1_000_000, 8, 2.0), (45, 2, 0.001)):
        text = SimpleNamespace(n_tokens=10**9, words=range(n_words))
        plan = plan_counting(text, window=5, symmetric=True, distance_weighting=True, threads=threads, memory_gb=memory)
        counter = kernels.CooccurrenceCounter
        used = plan.buffer_bytes + plan.chunk * counter.bytes_per_token + counter.bytes_of_words(n_words)
        assert used + threads * counter.bytes_per_thread(n_words) <= memory * 1e9
        assert used > 0.5 * memory * 1e9
    with pytest.raises(ValueError, match=r"memory_gb=0.0001 is too small to count 45 words .* at least 0\.00"):
        CooccurrenceMatrix.from_corpus(corpus, memory_gb=1e-4)
    monkeypatch.setattr(embfast.words.counting, "_SMALLEST_CHUNK", 1)
    told = []
    little = CooccurrenceMatrix.from_corpus(corpus, memory_gb=2e-5, threads=1, progress=lambda *at: told.append(at))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 45 * 2, "several chunks and a merge"
    assert little.entries.tobytes() == CooccurrenceMatrix.from_corpus(corpus, threads=2).entries.tobytes()


FULL_DISK = """
import os, resource, sys
import numpy as np
from embfast.words import cooccurrence, counting
from embfast.text.corpus import Corpus
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
counting._SMALLEST_CHUNK = 1
ids = np.random.default_rng(0).integers(0, 500, 20_000).astype(np.int32)
corpus = Corpus([f"w{i}" for i in range(500)], np.bincount(ids, minlength=500), ids, np.array([0, 20_000]))
try:
    cooccurrence.CooccurrenceMatrix.from_corpus(corpus, memory_gb=float(sys.argv[2]), threads=1, path=sys.argv[1])
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
    loaded.save(tmp_path / "saved")  # overwrites the file that it is mapped from
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
    with pytest.raises(ValueError, match="no two words co-occur"):
        GloVe().fit(empty)


def test_truncated_and_other_files_are_refused(matrix, corpus, tmp_path):
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
def test_invalid_entries_are_named(matrix, tmp_path, fields, message):
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
        with pytest.raises(ValueError, match=r"entry [78]: expected entries sorted by row and column"):
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
    pairs = CooccurrenceMatrix.from_corpus(Corpus.from_sentences([["a", "b"], ["c"], ["d"]]), window=1)
    with pytest.raises(ValueError, match="dim must be at most 2, the numerical rank of the PPMI matrix, got 3"):
        pairs.svd(dim=3)


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


def test_invalid_stanford_files_are_refused(matrix, tmp_path):
    path, vocab = tmp_path / "cooccurrence.bin", tmp_path / "vocab.txt"
    matrix.to_stanford(path, vocab)
    good = np.fromfile(path, STANFORD)
    path.write_bytes(good.tobytes()[:-3])
    with pytest.raises(FormatError, match=r"cooccurrence.bin: expected records of 16 bytes.*truncated"):
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
    with pytest.raises(FormatError, match="expected entries sorted by row and column"):
        CooccurrenceMatrix.from_stanford(path, vocab)
    vocab.write_text("</s> 3\n" + vocab.read_text())
    with pytest.raises(FormatError, match=r"vocab.txt: contains </s>"):
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
def test_invalid_counting_settings_are_refused(corpus, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        CooccurrenceMatrix.from_corpus(corpus, **{name: value})


def test_memory_is_given_back(tmp_path):
    """Peak memory of counting into a file stays far below the size of the entries."""
    script = """
import resource, sys
import numpy as np
from embfast.text.corpus import Corpus
from embfast.words.cooccurrence import CooccurrenceMatrix
ids = np.random.default_rng(0).integers(0, 3_000, 1_500_000).astype(np.int32)
corpus = Corpus([f"w{i}" for i in range(3_000)], np.bincount(ids, minlength=3_000), ids, np.array([0, len(ids)]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
matrix = CooccurrenceMatrix.from_corpus(corpus, window=8, memory_gb=0.01, threads=1, path=sys.argv[1])
print(len(matrix), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("sanitizers need additional memory")
    environment = {**os.environ, "PYTHONPATH": str(Path(embfast.__file__).parents[1])}
    arguments = [sys.executable, "-c", script, str(tmp_path / "matrix")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    n, used = map(int, done.stdout.split())
    assert n * 12 > 60e6
    assert used < 0.01e9 + 6e6


def test_a_mapped_corpus_and_matrix_may_be_copied(tmp_path):
    import copy
    import pickle

    corpus = Corpus.from_sentences([["a", "b", "c", "a"], ["b", "d"]] * 50, min_count=1)
    corpus.save(tmp_path / "corpus")
    for mapped in (
        pickle.loads(pickle.dumps(Corpus.load(tmp_path / "corpus"))),
        copy.deepcopy(Corpus.load(tmp_path / "corpus")),
    ):
        matrix = pickle.loads(pickle.dumps(CooccurrenceMatrix.from_corpus(mapped)))
        assert len(matrix.ppmi().matrix if hasattr(matrix.ppmi(), "matrix") else matrix.words) == 4
        assert len(GloVe(dim=2, epochs=1, threads=1).fit(matrix).vectors_) == 4


def test_duplicate_words_are_refused():
    with pytest.raises(ValueError, match="'x' is listed more than once"):
        CooccurrenceMatrix(["x", "x"], np.ones(2), np.zeros(1, kernels.ENTRY))
