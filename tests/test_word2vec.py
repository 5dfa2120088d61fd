"""Word2Vec: the same bits again, resume and growth, every mode learns, settings and scikit-learn."""

import copy
import pickle
import signal
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
import saved
from numpy.testing import assert_allclose, assert_array_equal

import embfast.training.blocks
from embfast import kernels
from embfast.errors import TrainingError
from embfast.text.corpus import Corpus
from embfast.training.sampling import keep_thresholds, negative_sharing, noise_weights
from embfast.words.word2vec import Word2Vec

MODES = [
    pytest.param({"cbow": cbow, "hs": hs, "negatives": negatives, "negatives_shared": shared}, id=name)
    for cbow, model in ((False, "skip-gram"), (True, "cbow"))
    for hs, negatives, output in ((False, 5, "ns"), (True, 0, "hs"), (True, 5, "both"))
    for shared in (True, False)
    for name in [f"{model}-{output}-{'shared' if shared else 'own'}"]
]


def topics(n=1_500, seed=0):
    """Sentences of 12 words, each on one of two topics of 20 words, with words of neither in between."""
    random = np.random.default_rng(seed)
    sentences = []
    for _ in range(n):
        topic = "ab"[random.integers(2)]
        own = [f"{topic}{i}" for i in random.integers(20, size=8)]
        common = [f"c{i}" for i in random.integers(5, size=4)]
        sentences.append([(own + common)[i] for i in random.permutation(12)])
    return sentences


@pytest.fixture(scope="module")
def corpus():
    return Corpus.from_sentences(topics())


@pytest.fixture
def short_slices(monkeypatch):
    """A block is a slice, so that small corpora have many."""
    monkeypatch.setattr(embfast.training.blocks, "_SLICE_WORK", 0)


def same_weights(a, b):
    assert a.words_ == b.words_
    ours, theirs = saved.tensors(a), saved.tensors(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_array_equal(ours[name], theirs[name], err_msg=name)


def topic_share(vectors):
    """The share of neighbours, 5 of each topic word among the topic words, that are of its own topic."""
    words = [word for word in vectors.keys if word[0] in "ab"]
    found = [vectors.most_similar(word, k=5, exclude=[k for k in vectors.keys if k[0] == "c"]) for word in words]
    return np.mean([near[0] == word[0] for word, rows in zip(words, found, strict=True) for near, _ in rows])


# ---- learning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_the_topics(corpus, mode):
    model = Word2Vec(dim=20, epochs=12, sample=0, lr=0.05, threads=1, **mode).fit(corpus)
    assert topic_share(model.vectors_) > 0.9
    assert len(model.loss_) == 12
    untrained = Word2Vec(dim=20, epochs=1, sample=0, lr=1e-9, threads=1, **mode).fit(corpus)
    assert topic_share(untrained.vectors_) < 0.7
    assert model.loss_[0] < 0.95 * untrained.loss_[0]
    assert not model._tables["w_in"][:, 20:].any()


def test_the_sum_of_cbow_learns_too(corpus):
    model = Word2Vec(dim=20, epochs=12, sample=0, cbow=True, cbow_mean=False, threads=1).fit(corpus)
    assert topic_share(model.vectors_) > 0.85


def test_two_threads_learn(corpus):
    model = Word2Vec(dim=20, epochs=12, sample=0, lr=0.05, threads=2).fit(corpus)
    assert topic_share(model.vectors_) > 0.9


def test_the_first_loss_is_that_of_a_coin_for_each_output(corpus):
    """Before anything is learned every score is about 0, so each of the 1 + negatives outputs costs log 2."""
    model = Word2Vec(dim=20, epochs=1, sample=0, lr=1e-9, threads=1, negatives=5, negatives_shared=False).fit(corpus)
    own_word_drawn = (noise_weights(corpus.counts, 0.75) / noise_weights(corpus.counts, 0.75).sum()).max()
    assert (1 + 5 * (1 - own_word_drawn)) * np.log(2) <= model.loss_[0] <= 6 * np.log(2)


@pytest.fixture(scope="module")
def factbook(data):
    return Corpus.from_file(data("text-extra/factbook.txt.zst"))


@pytest.mark.parametrize("cbow", [False, True])
def test_real_text_teaches_countries(factbook, cbow):
    model = Word2Vec(dim=64, epochs=4, cbow=cbow, threads=1).fit(factbook)
    assert all(a > b for a, b in zip(model.loss_, model.loss_[1:], strict=False))
    countries = {"italy", "spain", "germany", "belgium", "netherlands", "denmark", "uk", "portugal", "austria", "japan"}
    near = {word for word, _ in model.vectors_.most_similar("france", k=10)}
    assert len(near & countries) >= 3, near


# ---- the same bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_one_thread_and_seed_give_the_same_bits(corpus, mode):
    settings = {"dim": 10, "epochs": 1, "threads": 1, **mode}
    first, second = Word2Vec(**settings).fit(corpus), Word2Vec(**settings).fit(corpus)
    same_weights(first, second)
    assert first.loss_ == second.loss_
    other = Word2Vec(**settings, seed=1).fit(corpus)
    assert not np.array_equal(first.vectors_.matrix, other.vectors_.matrix)


def test_slices_do_not_change_the_bits(corpus, monkeypatch):
    whole = Word2Vec(dim=10, epochs=2, threads=1).fit(corpus)
    monkeypatch.setattr(embfast.training.blocks, "_SLICE_WORK", 0)
    told = []
    sliced = Word2Vec(dim=10, epochs=2, threads=1).fit(corpus, progress=told.append)
    assert len(told) >= 8
    same_weights(whole, sliced)
    assert_allclose(whole.loss_, sliced.loss_, rtol=1e-6)


@pytest.mark.parametrize("mode", [{}, {"cbow": True}, {"hs": True}, {"negatives_shared": False}], ids=str)
def test_a_run_stopped_at_any_slice_resumes_to_the_same_bits(corpus, tmp_path, short_slices, mode):
    settings = {"dim": 10, "epochs": 2, "threads": 1, **mode}
    straight = Word2Vec(**settings).fit(corpus)
    path = tmp_path / "checkpoint.safetensors"
    for stop_after in (1, 4, 5, 7):  # in the first epoch, at its end, in the second
        path.unlink(missing_ok=True)
        slices = []

        def stop(status, slices=slices, stop_after=stop_after):
            slices.append(status)
            if len(slices) == stop_after:
                signal.raise_signal(signal.SIGINT)

        stopped = Word2Vec(**settings)
        with pytest.raises(KeyboardInterrupt):
            stopped.fit(corpus, checkpoint=path, progress=stop)
        assert len(slices) == stop_after
        same_weights(stopped, Word2Vec.load(path))
        resumed = Word2Vec(**settings).fit(corpus, checkpoint=path, resume=True)
        same_weights(straight, resumed)
        assert resumed.loss_ == straight.loss_


def test_resuming_what_is_finished_or_not_begun(corpus, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    first = Word2Vec(dim=10, epochs=1, threads=1).fit(corpus, checkpoint=path, resume=True)
    told = []
    again = Word2Vec(dim=10, epochs=1, threads=1).fit(corpus, checkpoint=path, resume=True, progress=told.append)
    assert not told
    same_weights(first, again)


def test_resuming_something_else_is_refused(corpus, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    Word2Vec(dim=10, epochs=1).fit(corpus, checkpoint=path)
    with pytest.raises(ValueError, match=r"checkpoint.*other settings: window was 5, is 3; epochs was 1, is 2"):
        Word2Vec(dim=10, epochs=2, window=3).fit(corpus, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match=r"another corpus: documents was 1500, is 1490"):
        Word2Vec(dim=10, epochs=1).fit(Corpus.from_sentences(topics()[:-10]), checkpoint=path, resume=True)
    shuffled = Corpus.from_sentences(topics()[::-1])
    with pytest.raises(ValueError, match="another corpus: crc"):
        Word2Vec(dim=10, epochs=1).fit(shuffled, checkpoint=path, resume=True)
    with pytest.raises(TypeError, match=r"expected a path of type str or Path, got b'.*'"):
        Word2Vec(dim=10, epochs=1).fit(corpus, checkpoint=bytes(path))
    with pytest.raises(ValueError, match="needs checkpoint="):
        Word2Vec().fit(corpus, resume=True)
    Word2Vec(dim=10, epochs=1, threads=1).fit(corpus, checkpoint=path, resume=True)  # threads may differ


TRAIN = """
import sys
import numpy as np
import embfast.training.blocks
from embfast.text.corpus import Corpus
from embfast.words.word2vec import Word2Vec
embfast.training.blocks._SLICE_WORK = 0
corpus = Corpus.load(sys.argv[1])
def tell(status):
    print(status.done, flush=True)
model = Word2Vec(dim=100, epochs=160, threads=1, negatives_shared=False, sample=0)
model.fit(corpus, checkpoint=sys.argv[2], checkpoint_minutes=0.1 / 60, resume=True, progress=tell)
"""


def test_kill_9_loses_at_most_the_interval(corpus, tmp_path):
    corpus.save(tmp_path / "corpus")
    path = tmp_path / "checkpoint.safetensors"
    arguments = [sys.executable, "-c", TRAIN, str(tmp_path / "corpus"), str(path)]
    times = []
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:  # the share done, and when it was told
            times.append((time.monotonic(), float(line)))
            if path.exists() and times[-1][0] - times[0][0] > 0.5:
                process.kill()
                break
        times += [(time.monotonic(), float(line)) for line in process.stdout]
    assert process.returncode == -signal.SIGKILL
    assert 0 < times[-1][1] < 1

    state = saved.progress_of(path)
    kept = (state["epoch"] + state["block"] / (len(embfast.training.blocks.make_blocks(corpus.offsets)) - 1)) / 160
    lost = [moment for moment, done in times if done > kept + 0.01]
    assert not lost or times[-1][0] - lost[0] < 1.0, "more than the interval of 0.1 s and the noise of a busy machine"

    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert float(done[0]) > kept
    assert float(done[-1]) == 1
    straight = Word2Vec(dim=100, epochs=160, threads=1, negatives_shared=False, sample=0).fit(corpus)
    same_weights(straight, Word2Vec.load(path))


# ---- growth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_partial_fit_learns_new_words_beside_the_old(mode):
    old = [[word for word in s if word not in ("a3", "b7")] for s in topics()]
    settings = {"dim": 20, "epochs": 10, "sample": 0, "lr": 0.05, "threads": 1, **mode}
    model = Word2Vec(**settings).fit(Corpus.from_sentences(old))
    assert "a3" not in model.vectors_
    counts = dict(zip(model.words_, model.counts_.tolist(), strict=True))
    more = Corpus.from_sentences(topics(seed=1))
    model.partial_fit(more)
    assert set(model.words_) == {*counts, "a3", "b7"}
    added = dict(zip(more.words, more.counts.tolist(), strict=True))
    assert dict(zip(model.words_, model.counts_.tolist(), strict=True)) == {
        word: counts.get(word, 0) + added[word] for word in added
    }
    assert (np.diff(model.counts_) <= 0).all()
    assert len(model.loss_) == 20
    assert topic_share(model.vectors_) > 0.9
    assert {near[0] for near, _ in model.vectors_.most_similar("a3", k=3)} <= {"a", "c"}


def test_rows_move_with_their_words_when_the_vocabulary_grows(corpus):
    model = Word2Vec(dim=12, epochs=1, threads=1, hs=True).fit(corpus)
    before = saved.tensors(model)
    place = {word: i for i, word in enumerate(model.words_)}
    model.set_params(lr=1e-30, epochs=1)  # a step that no number of a row is moved by
    model.partial_fit(Corpus.from_sentences([["new"] * 5_000 + ["a1"]]))
    assert model.words_[0] == "new"
    after = saved.tensors(model)
    for name in ("w_in", "w_out"):
        rows = [place[word] for word in model.words_ if word != "new"]
        assert_allclose(after[name][1:], before[name][rows], rtol=0, atol=1e-20)
    fresh = kernels.weight_table(len(model.words_), 12)
    embfast.training.tables.initial_weights(fresh, 12, seed=0)
    assert_array_equal(after["w_in"][0], fresh[len(place), :12])
    assert np.abs(after["w_out"][0]).max() < 1e-20
    assert np.abs(after["w_nodes"]).max() < 1e-20
    assert np.abs(before["w_nodes"]).max() > 1e-3


def test_partial_fit_without_new_words_goes_on_with_fresh_draws(corpus):
    model = Word2Vec(dim=10, epochs=1, threads=1, hs=True).fit(corpus)
    words, nodes = list(model.words_), saved.tensors(model)["w_nodes"]
    model.partial_fit(Corpus.from_sentences(topics(200, seed=2)))
    assert model.words_ == words
    assert (saved.tensors(model)["w_nodes"] != 0).any()
    assert not np.array_equal(saved.tensors(model)["w_nodes"], nodes)
    assert saved.progress(model)["before"] == 1
    first = Word2Vec(dim=10, epochs=1, threads=1).partial_fit(corpus)  # untrained: as fit
    same_weights(first, Word2Vec(dim=10, epochs=1, threads=1).fit(corpus))


@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy], ids=["pickle", "copy"])
def test_a_copied_or_saved_model_continues_with_the_same_bits(corpus, tmp_path, copied):
    model = Word2Vec(dim=10, epochs=1, threads=1, hs=True).fit(corpus)
    model.save(tmp_path / "model.safetensors")
    others = [copied(model), Word2Vec.load(tmp_path / "model.safetensors")]
    more = Corpus.from_sentences(topics(100, seed=3))
    model.partial_fit(more)
    for other in others:
        other.partial_fit(more)
        same_weights(model, other)
        assert other.loss_ == model.loss_
        assert_array_equal(other.vectors_.matrix, model.vectors_.matrix)


def test_a_shallow_copy_that_learns_new_words_leaves_the_first_model_whole(corpus, tmp_path):
    model = Word2Vec(dim=10, epochs=1, hs=True).fit(corpus)
    copy.copy(model).partial_fit(Corpus.from_sentences([["new", "words"]] * 9))
    tensors = saved.tensors(model)
    rows = {name: len(tensors[name]) for name in ("w_in", "w_out", "w_nodes")}
    assert rows == {"w_in": len(model.words_), "w_out": len(model.words_), "w_nodes": len(model.words_) - 1}
    model.save(tmp_path / "model.safetensors")
    assert Word2Vec.load(tmp_path / "model.safetensors").words_ == model.words_


def test_partial_fit_refuses_another_shape(corpus):
    model = Word2Vec(dim=10, epochs=1).fit(corpus)
    with pytest.raises(ValueError, match="dim must stay 10"):
        copy.copy(model).set_params(dim=11).partial_fit(corpus)
    with pytest.raises(ValueError, match="hs cannot be switched on"):
        copy.copy(model).set_params(hs=True).partial_fit(corpus)
    with pytest.raises(ValueError, match=r"negatives cannot be switched off"):
        copy.copy(model).set_params(negatives=0, hs=True).partial_fit(corpus)


# ---- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("dim", v) for v in (0, -1, 100.5, True, "100", None, 10**6)],
        *[("window", v) for v in (0, 1001, 2.0)],
        *[("negatives", v) for v in (-1, 1001, None)],
        *[(name, v) for name in ("hs", "cbow", "cbow_mean", "shrink_windows", "negatives_shared") for v in ("yes", 1)],
        *[("sample", v) for v in (-1e-3, 1.5, "1e-3", float("nan"), None)],
        *[("ns_exponent", v) for v in (float("nan"), 11)],
        *[("epochs", v) for v in (0, 1.5)],
        *[("lr", v) for v in (0, -0.1, float("nan"), float("inf"))],
        *[("min_lr", v) for v in (-0.1, 0.5)],
        *[("threads", v) for v in (0, 1.5)],
        *[("seed", v) for v in (-1, 2**64, 0.5, None)],
    ],
)
def test_a_setting_without_sense_is_named_with_value_and_range(corpus, name, value):
    model = Word2Vec(**{name: value})  # the constructor only stores
    with pytest.raises(ValueError, match=rf"^{name} must be .*(from|above|True or False).*") as caught:
        model.fit(corpus)
    assert repr(value) in str(caught.value)


def test_every_setting_reaches_the_kernel(corpus, monkeypatch):
    calls = []

    def record(job, arrays, first_block, last_block, threads):
        settings = dict(zip(job.dtype.names, job[0].tolist(), strict=True))
        calls.append((arrays, settings, (first_block, last_block, threads)))
        return 1.0, 1, 1

    monkeypatch.setattr(kernels, "train_sequences", record)
    model = Word2Vec(
        dim=9, window=3, negatives=5, hs=True, cbow=True, cbow_mean=False, shrink_windows=False, epochs=2, lr=0.5,
        min_lr=0.25, threads=3, seed=11,
    ).fit(corpus)  # fmt: skip
    expected = {
        "window": 3, "shrink": False, "cbow": True, "mean": False, "words": True, "concat": False, "frozen": False,
        "shared": True, "centers": 1, "drawn": 5, "scale": 1.0, "tag_weight": 1, "n_words": 0, "seed": 11,
        "lr_first": 0.5, "lr_last": 0.25, "tokens_total": 36_000, "dim": 9,
    }  # fmt: skip
    for epoch, (arrays, settings, call) in enumerate(calls):
        assert settings == {**expected, "epoch": epoch, "tokens_before": epoch * 18_000}
        assert call == (0, len(arrays["blocks"]) - 1, 3)
        assert np.shares_memory(arrays["w_in"], model.vectors_.matrix)
        assert {"w_out", "w_nodes", "tree", "noise"} <= arrays.keys()
        assert_array_equal(arrays["keep"], keep_thresholds(corpus.counts, 1e-3))
    assert len(calls) == 2
    model.partial_fit(corpus)
    assert [settings["epoch"] for _, settings, _ in calls] == [0, 1, 2, 3]
    assert [settings["tokens_before"] for _, settings, _ in calls] == [0, 18_000, 0, 18_000]

    calls.clear()
    Word2Vec(epochs=1, sample=0).fit(corpus)
    arrays, settings, call = calls[0]
    chosen = {name: settings[name] for name in ("window", "shrink", "cbow", "mean", "shared", "centers", "drawn")}
    assert chosen == {
        "window": 5, "shrink": True, "cbow": False, "mean": True, "shared": True, "centers": 2, "drawn": 5
    }  # fmt: skip
    assert (settings["lr_first"], settings["lr_last"]) == (np.float32(0.025), np.float32(0.025 / 10_000))
    assert (arrays.get("w_nodes"), arrays["keep"], arrays["tree"]) == (None, None, None)
    assert call[2] == embfast.training.threads.cores()
    calls.clear()
    Word2Vec(epochs=1, cbow=True, negatives=10, threads=1).fit(corpus)
    assert calls[0][1]["lr_first"] == np.float32(0.05)
    assert (calls[0][1]["centers"], calls[0][1]["drawn"]) == (2, 12)
    assert calls[0][1]["scale"] == np.float32(10 / 12)


def test_numpy_numbers_are_numbers(corpus):
    model = Word2Vec(dim=np.int64(8), sample=np.float32(0), cbow=np.bool_(True), epochs=1, seed=np.uint64(3), threads=1)
    plain = Word2Vec(dim=8, sample=0, cbow=True, epochs=1, seed=3, threads=1)
    same_weights(model.fit(corpus), plain.fit(corpus))
    assert model.loss_ == plain.loss_


def test_what_cannot_be_trained_on():
    with pytest.raises(ValueError, match=r"negatives=0 and hs=False"):
        Word2Vec(negatives=0).fit(Corpus.from_sentences([["a", "b"]]))
    with pytest.raises(ValueError, match="at least 2 distinct words to train on, got 1"):
        Word2Vec().fit(Corpus.from_sentences([["a", "a"]]))
    with pytest.raises(TypeError, match=r"expected a Corpus, got list.*from_sentences"):
        Word2Vec().fit([["a", "b"]])
    with pytest.raises(TrainingError, match="no window has two words"):
        Word2Vec().fit(Corpus.from_sentences([["a"], ["b"]] * 10))
    with pytest.raises(ValueError, match="not trained yet"):
        Word2Vec().transform(Corpus.from_sentences([["a", "b"]]))


def test_a_rate_far_too_high_says_so(corpus):
    with pytest.raises(TrainingError, match=r"epoch \d+ of 20, at lr .*lower lr"):
        Word2Vec(dim=10, lr=100.0, min_lr=100.0, epochs=20, cbow=True, cbow_mean=False, threads=1).fit(corpus)


def test_words_that_do_not_occur_or_stand_in_any_order(corpus):
    """A fixed vocabulary need not be sorted, and its words need not occur; the tree of hs wants both."""
    shuffled = corpus.with_words(["never", *corpus.words[::-1], "neither"])
    for settings in ({"hs": True}, {"hs": False}, {"hs": False, "ns_exponent": -1.0}):
        model = Word2Vec(dim=20, epochs=12, sample=0, lr=0.05, threads=1, **settings).fit(shuffled)
        assert topic_share(model.vectors_) > 0.9
        assert set(model.words_) == set(shuffled.words)
        tensors = saved.tensors(model)
        if "w_out" in tensors:
            assert not tensors["w_out"][model.words_.index("never")].any()


@pytest.mark.parametrize("window", [1, 5, 16, 51, 1000])
@pytest.mark.parametrize("cbow", [False, True])
def test_sharing_keeps_the_weight_of_the_negatives(cbow, window):
    for hs in (False, True):
        for shared in (False, True):
            for negatives in range(0, 60):
                s = negative_sharing(cbow, hs, negatives, shared, window)
                assert 1 <= s.centers <= kernels.MAX_CENTERS
                assert s.drawn * s.scale == pytest.approx(negatives)
                assert s.centers == 1 or s.drawn / s.centers >= 2.5
                of_nodes = negative_sharing(cbow, hs, negatives, shared, window, nodes=True)
                assert of_nodes.drawn * of_nodes.scale == pytest.approx(negatives)
                assert of_nodes == s or (of_nodes.centers == 2 and of_nodes.drawn / 2 >= 2)
                if hs or not shared or (window > 15 and not cbow):
                    assert (s.centers, s.drawn) == (1, negatives)
                assert s.shared == (shared and (cbow or window <= 50))


@pytest.mark.parametrize("mode", [{}, {"hs": True, "negatives": 0}, {"cbow": True}], ids=str)
def test_wide_windows_do_not_diverge(factbook, mode):
    """Batches of whole windows did: a loss of -1e31 at window=100, NaN at 1000."""
    small = factbook.with_words(factbook.words[:100])
    model = Word2Vec(dim=16, epochs=1, window=100, threads=1, **mode).fit(small)
    assert 0 < model.loss_[0] < 7
    assert np.isfinite(model.vectors_.matrix).all()


def test_keep_thresholds_are_word2vec_c_s_formula():
    counts = np.array([900_000, 99_000, 900, 100], np.int64)
    kept = (keep_thresholds(counts, 1e-3).astype(np.float64) + 1) / 2**32
    share = counts / 1e6
    expected = np.minimum(1, (np.sqrt(share / 1e-3) + 1) * 1e-3 / share)
    assert_allclose(kept, expected, rtol=1e-8)
    assert kept[3] == 1
    assert keep_thresholds(counts, 0) is None


def test_noise_weights_are_powers_of_counts():
    counts = np.array([16, 81, 0, 1], np.int64)
    weights = noise_weights(counts, 0.75)
    assert_allclose(weights / weights[3], [8, 27, 0, 1])
    assert_allclose(noise_weights(counts, 0.0), [1, 1, 0, 1])
    assert np.isfinite(noise_weights(np.array([10**15, 1], np.int64), -10.0)).all()


# ---- scikit-learn -------------------------------------------------------------------------------------------------


def test_settings_can_be_read_set_and_shown():
    model = Word2Vec(dim=50, cbow=True)
    assert model.get_params()["dim"] == 50
    assert list(model.get_params()) == list(Word2Vec.settings())
    assert repr(model) == "Word2Vec(dim=50, cbow=True)"
    assert model.set_params(dim=7) is model
    assert model.dim == 7
    with pytest.raises(ValueError, match="no setting 'size'; it has 'dim'"):
        model.set_params(size=3)


def test_scikit_learn_clones_fits_and_pipes(corpus):
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.utils.validation import check_is_fitted

    model = Word2Vec(dim=16, epochs=5, sample=0, lr=0.05, threads=1).fit(corpus)
    copied = clone(model)
    assert copied.get_params() == model.get_params()
    assert not hasattr(copied, "vectors_")
    check_is_fitted(model)
    label = np.array([any(word[0] == "a" for word in sentence) for sentence in topics()])
    pipe = clone(make_pipeline(copied, LogisticRegression()))
    pipe.fit(corpus, label)
    other = Corpus.from_sentences(topics(300, seed=9))
    truth = np.array([any(word[0] == "a" for word in sentence) for sentence in topics(300, seed=9)])
    assert (pipe.predict(other) == truth).mean() > 0.95
    pipe.set_params(word2vec__dim=8).fit(corpus, label)
    assert pipe[0].vectors_.dim == 8
    assert "Word2Vec" in repr(pipe)


def test_transform_is_the_mean_of_known_words(corpus, monkeypatch):
    model = Word2Vec(dim=6, epochs=1, threads=1).fit(corpus)
    documents = [["a1", "b2", "unknown", "a1"], [], ["unknown"], ["c0"], ["a1"] * 40 + ["b3"]]
    expected = np.zeros((5, 6))
    for i, document in enumerate(documents):
        known = [model.vectors_[word] for word in document if word in model.vectors_]
        if known:
            expected[i] = np.mean(known, axis=0)
    other = Corpus.from_sentences(documents)
    means = model.transform(other)
    assert means.dtype == np.float32
    assert_allclose(means, expected, atol=1e-6)
    monkeypatch.setattr(embfast.training.tables, "_CELLS", 4)  # chunks that end inside documents
    assert_allclose(model.transform(other), expected, atol=1e-6)


@pytest.mark.parametrize(
    "narrow",
    [{"epochs": np.int16(5)}, {"dim": np.uint8(100)}, {"negatives": np.int16(5)}, {"window": np.uint8(100)}],
    ids=str,
)
def test_numbers_of_numpy_do_not_overflow(corpus, narrow):
    settings = {"threads": 1, "epochs": 1, "dim": 8, "lr": 0.01} | narrow
    model = Word2Vec(**settings).fit(corpus)
    plain = Word2Vec(**{name: v.item() if isinstance(v, np.generic) else v for name, v in settings.items()}).fit(corpus)
    assert_array_equal(model.vectors_.matrix, plain.vectors_.matrix)
    assert model.loss_ == plain.loss_


def test_a_fit_that_cannot_begin_leaves_the_model_as_it_was(corpus, tmp_path):
    other = Corpus.from_sentences([["z", "y", "x"]] * 9)
    model = Word2Vec(dim=8, epochs=1, threads=1).fit(corpus)
    words, rows = list(model.words_), model.transform(corpus)
    (tmp_path / "directory").mkdir()
    for fit in (
        lambda: model.set_params(device="cuda:99").fit(other),
        lambda: model.set_params(device="cuda:99").partial_fit(other),
        lambda: model.set_params(device="cpu").fit(other, checkpoint=tmp_path / "nowhere" / "x"),
        lambda: model.fit(other, checkpoint=tmp_path / "directory"),
    ):
        with pytest.raises((ImportError, ValueError, OSError)):
            fit()
        assert model.words_ == words
        assert_array_equal(model.transform(corpus), rows)


def test_fractions_are_settings(tmp_path):
    corpus = Corpus.from_sentences([["a", "b", "c"]] * 40)
    settings = {"dim": 4, "epochs": 1, "threads": 1}
    model = Word2Vec(lr=Fraction(1, 40), sample=Fraction(1, 10), **settings)
    model.fit(corpus, checkpoint=tmp_path / "c.safetensors")
    twin = Word2Vec(lr=1 / 40, sample=1 / 10, **settings).fit(corpus)
    np.testing.assert_array_equal(model.vectors_.matrix, twin.vectors_.matrix)
