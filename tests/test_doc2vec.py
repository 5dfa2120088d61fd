"""Doc2Vec: every mode learns, inference depends on the document alone, the same bits again, resume, growth, tags."""

import copy
import json
import pickle
import signal
import warnings
from itertools import pairwise

import numpy as np
import pytest
import saved
from numpy.testing import assert_array_equal
from typer.testing import CliRunner

import embfast.training.blocks
from bench import doc2vec as bench_doc2vec
from embfast import cli, kernels
from embfast.documents.doc2vec import Doc2Vec
from embfast.documents.tagged import read_tagged
from embfast.errors import FormatError, TrainingError
from embfast.text.corpus import Corpus
from embfast.text.tags import Tags
from embfast.vectors.vectors import Vectors

MODES = {
    "dm": {},
    "dm-sum": {"dm": "sum"},
    "dm-concat": {"dm": "concat"},
    "dm-heavy": {"tag_weight": 4},
    "dm-sum-heavy": {"dm": "sum", "tag_weight": 4},
    "dm-hs": {"hs": True, "negatives": 0},
    "dm-own": {"negatives_shared": False},
    "dbow": {"mode": "dbow"},
    "dbow-words": {"mode": "dbow", "dbow_words": True},
    "dbow-hs": {"mode": "dbow", "hs": True, "negatives": 0},
    "dbow-both": {"mode": "dbow", "hs": True},
    "both": {"mode": "both"},
}


def reviews(n=300, seed=0):
    """Documents of 40 words: 25 of one of two topics, the rest common; and their topics."""
    random = np.random.default_rng(seed)
    topics = random.integers(2, size=n)
    documents = []
    for topic in topics:
        own = [f"{'ab'[topic]}{i}" for i in random.integers(20, size=25)]
        words = own + [f"c{i}" for i in random.integers(5, size=15)]
        documents.append([words[i] for i in random.permutation(40)])
    return documents, topics


@pytest.fixture(scope="module")
def documents():
    return reviews()[0]


@pytest.fixture(scope="module")
def corpus(documents):
    return Corpus.from_sentences(documents)


@pytest.fixture(scope="module")
def factbook(data):
    return Corpus.from_file(data("text-extra/factbook.txt.zst"))


def small(**settings):
    settings = {"sample": 0, "lr": 0.1, "threads": 1, "tag_weight": 1, **settings}
    return Doc2Vec(**{"dim": 12, "window": 1, "epochs": 20, **settings})


def purity(vectors, near, topics, of):
    """The share of queries whose nearest row is of their own topic."""
    ids = vectors.nearest(near, k=1)[0][:, 0]
    return np.mean(topics[ids] == of)


def same_weights(a, b):
    assert a.words_ == b.words_
    assert a.vectors_.keys == b.vectors_.keys
    ours, theirs = saved.tensors(a), saved.tensors(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_array_equal(ours[name], theirs[name], err_msg=name)


# ---- learning and inference ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_topics_and_infers_new_documents(corpus, mode):
    topics = reviews()[1]
    model = small(**MODES[mode]).fit(corpus)
    new, of = reviews(100, seed=7)
    assert purity(model.vectors_, model.vectors_.matrix.copy(), topics, topics) == 1  # each is its own nearest
    assert purity(model.vectors_, model.infer(new), topics, of) > 0.95
    assert len(model.loss_) == 20
    assert model.vectors_.dim == (24 if mode == "both" else 12)
    assert model.vectors_.keys == [str(i) for i in range(300)]
    if mode in ("dbow", "dbow-hs", "dbow-both"):
        assert model.word_vectors_ is None
    else:
        assert model.word_vectors_.dim == 12
    if model.word_vectors_ is not None and model.tag_weight == 1:  # words leave the topic to a tag that weighs more
        near = model.word_vectors_.most_similar("a1", k=5, exclude=[f"c{i}" for i in range(5)])
        assert sum(word[0] == "a" for word, _ in near) >= 4
    for table in model._tables.values():
        assert not table.reshape(len(table), -1, 16)[:, :, 12:].any()


@pytest.mark.parametrize("mode", ["dm", "dbow", "both"])
def test_training_documents_are_inferred_nearest_to_themselves(factbook, mode):
    model = Doc2Vec(mode=mode, dim=64, epochs=10, threads=1).fit(factbook)
    found = model.vectors_.nearest(model.infer(factbook), k=1)[0][:, 0]
    assert np.mean(found == np.arange(len(factbook))) >= 0.9


def test_documents_near_a_word_are_about_it(corpus):
    model = small().fit(corpus)
    topics = reviews()[1]
    near = [int(tag) for tag, _ in model.vectors_.most_similar(model.word_vectors_["a1"], k=10)]
    assert np.mean(topics[near] == 0) > 0.9


@pytest.mark.parametrize("mode", MODES)
def test_inference_depends_on_the_words_and_the_seed_alone(corpus, mode, monkeypatch):
    new = [*reviews(30, seed=7)[0], ["a1"], ["unknown", "a2", "b1"]]
    model = small(epochs=2, **MODES[mode]).fit(corpus)
    weights = saved.tensors(model)
    expected = model.infer(new)
    model.threads = 2
    assert_array_equal(model.infer(new), expected)
    order = np.random.default_rng(0).permutation(len(new))[:20]
    assert_array_equal(model.infer([new[i] for i in order]), expected[order])
    assert_array_equal(model.infer(iter(new)), expected)
    assert_array_equal(model.infer([["a2", "b1"]]), expected[-1:])
    assert_array_equal(model.transform(Corpus.from_sentences(new)), expected)
    monkeypatch.setattr(embfast.documents.inference, "_WORK", 16 * 60)  # a call every few documents
    assert_array_equal(model.infer(new), expected)
    for name, tensor in saved.tensors(model).items():
        assert_array_equal(tensor, weights[name])
    assert not np.array_equal(model.infer(new, epochs=3), expected)
    model.set_params(seed=5)
    assert not np.array_equal(model.infer(new), expected)


def test_an_inferred_row_is_the_mean_of_the_second_half_of_its_epochs(corpus, monkeypatch):
    found, infer = [], kernels.infer_documents
    monkeypatch.setattr(kernels, "infer_documents", lambda *a: (found.append(a[3]), infer(*a))[1])
    model = small().fit(corpus)
    for epochs in (1, 2, 3, 20):
        model.infer([["a1", "b1"]], epochs=epochs)
    assert found == [1, 1, 1, 10]


def test_a_tag_counts_as_several_words_of_the_window(documents, corpus):
    """As one that stands several times at its document; concatenation has one place for it."""
    alike = {}
    for weight in (1, 3):
        for kind in ("dm", "dm-sum", "dm-concat", "dbow"):
            model = small(**MODES[kind], tag_weight=weight, epochs=2).fit(corpus)
            alike.setdefault(kind, []).append((model.vectors_.matrix, model.infer(corpus)))
    for kind, ((trained, inferred), (heavy, heavily)) in alike.items():
        same = kind in ("dm-concat", "dbow")
        assert np.array_equal(trained, heavy) == np.array_equal(inferred, heavily) == same
    n = len(documents)
    thrice = Tags([str(i) for i in range(n)], np.arange(n + 1) * 3, np.repeat(np.arange(n, dtype=np.int32), 3))
    model = small(tag_weight=1, epochs=2).fit(corpus, tags=thrice)
    assert_array_equal(model.vectors_.matrix, alike["dm"][1][0])


def test_empty_and_unknown_documents_are_zeros_and_one_warning(corpus):
    model = small(epochs=1).fit(corpus)
    with pytest.warns(UserWarning, match="2 of 3 documents have no known word") as caught:
        vectors = model.infer([[], ["a1"], ["unknown", "words"]])
    assert len(caught) == 1
    assert vectors.any(axis=1).tolist() == [False, True, False]
    with pytest.warns(UserWarning, match="1 of 1 documents"):
        assert not model.transform(Corpus.from_sentences([["nothing"]])).any()
    assert model.infer([]).shape == (0, 12)


def test_fit_transform_infers(documents):
    model = small(epochs=2)
    assert_array_equal(model.fit_transform(documents), model.infer(documents))


# ---- the same bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_one_thread_and_seed_give_the_same_bits_also_from_a_file(corpus, tmp_path, mode):
    first, second = (small(epochs=1, **MODES[mode]).fit(corpus) for _ in range(2))
    same_weights(first, second)
    first.save(tmp_path / "model.safetensors")
    loaded = Doc2Vec.load(tmp_path / "model.safetensors")
    same_weights(first, loaded)
    assert loaded.get_params() == first.get_params()
    assert loaded.loss_ == first.loss_
    new = reviews(5, seed=7)[0]
    assert_array_equal(loaded.infer(new), first.infer(new))
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert_array_equal(other.infer(new), first.infer(new))
    same_weights(first.partial_fit(corpus, tags=["x"] * 300), loaded.partial_fit(corpus, tags=["x"] * 300))
    assert not np.array_equal(
        small(epochs=1, seed=1, **MODES[mode]).fit(corpus).vectors_.matrix[0], second.vectors_["0"]
    )


@pytest.mark.parametrize("mode", ["dm", "dm-concat", "dbow", "both"])
def test_a_stopped_run_resumes_to_the_same_bits(corpus, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(embfast.training.blocks, "_SLICE_WORK", 0)  # a block is a slice
    settings = {"epochs": 2, **MODES[mode]}
    straight = small(**settings).fit(corpus)
    path = tmp_path / "checkpoint.safetensors"
    for stop_after in (1, 3, 4):  # in the first epoch, at its end, in the second
        path.unlink(missing_ok=True)
        slices = []

        def stop(status, slices=slices, stop_after=stop_after):
            slices.append(status)
            if len(slices) == stop_after:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            small(**settings).fit(corpus, checkpoint=path, progress=stop)
        resumed = small(**settings).fit(corpus, checkpoint=path, resume=True)
        same_weights(straight, resumed)
        assert resumed.loss_ == straight.loss_
    with pytest.raises(ValueError, match="another corpus: tags was"):
        small(**settings).fit(corpus, tags=[f"t{i}" for i in range(300)], checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="other settings: dim was 12, is 13"):
        small(**settings | {"dim": 13}).fit(corpus, checkpoint=path, resume=True)


# ---- tags and growth ----------------------------------------------------------------------------------------------


def test_a_tag_learns_from_all_its_documents(documents):
    topics = reviews()[1]
    tags = [[f"d{i}", "ab"[topic]] for i, topic in enumerate(topics)]
    for mode in ("dm", "dm-concat", "dbow", "both"):
        model = small(**MODES[mode]).fit(documents, tags=tags)
        assert set(model.vectors_.keys) == {"a", "b", *(f"d{i}" for i in range(300))}
        named = small(**MODES[mode]).fit(documents, tags=["ab"[topic] for topic in topics])
        assert len(named.vectors_) == 2
        found = named.vectors_.nearest(named.infer(reviews(50, seed=7)[0]), k=1)[0][:, 0]
        assert np.mean(np.array(named.vectors_.keys)[found] == np.array(list("ab"))[reviews(50, seed=7)[1]]) > 0.95


@pytest.mark.parametrize("mode", MODES)
def test_partial_fit_adds_documents_and_words(documents, mode):
    old = [[word for word in document if word != "a3"] for document in documents[:200]]
    model = small(min_count=1, **MODES[mode]).fit(old)
    rows = model.vectors_.matrix.copy()
    model.partial_fit(documents[200:])
    assert model.vectors_.keys == [str(i) for i in range(300)]
    assert_array_equal(model.vectors_.matrix[:200], rows)
    assert "a3" in model.words_
    assert (np.diff(model.counts_) <= 0).all()
    assert model.counts_.sum() == sum(map(len, old)) + sum(map(len, documents[200:]))
    assert len(model.loss_) == 40
    topics = reviews()[1][200:]
    new, of = reviews(100, seed=7)
    fresh = Vectors(model.vectors_.keys[200:], model.vectors_.matrix[200:])  # the words moved on, the old rows did not
    assert purity(fresh, model.infer(new), topics, of) > 0.95
    model.partial_fit(documents[:10], tags=["0"] * 10)
    assert len(model.vectors_) == 300
    assert not np.array_equal(model.vectors_["0"], rows[0])


def test_partial_fit_keeps_to_its_settings(documents):
    model = small(epochs=1, mode="dbow").fit(documents)
    for changed in ({"mode": "dm"}, {"dim": 20}, {"hs": True}, {"dbow_words": True}, {"dim": 11}):
        settings = model.get_params()
        model.set_params(**changed)
        with pytest.raises(ValueError, match="must stay"):
            model.partial_fit(documents)
        model.set_params(**settings)
    assert len(Doc2Vec(epochs=1).partial_fit(documents).vectors_) == 300


def test_tags_that_do_not_fit(documents, corpus):
    with pytest.raises(ValueError, match="tags: expected tags of 300 documents, got tags of 2"):
        small().fit(corpus, tags=["a", "b"])
    with pytest.raises(TypeError, match="tags: expected a str or a list of str for document 1, got 5"):
        small().fit(corpus, tags=["a", 5])
    with pytest.raises(TypeError, match=r"tags: expected tags of type str for document 0, got \[1\]"):
        small().fit(corpus, tags=[[1]])
    with pytest.raises(TypeError, match="got one 'abc'"):
        small().fit(corpus, tags="abc")
    with pytest.raises(ValueError, match="same number of tags for each document, at least one; got 1 to 2"):
        small(dm="concat").fit(corpus, tags=[["a", "b"], *["c"] * 299])
    model = small(dm="concat", epochs=1, window=1).fit(corpus, tags=[["a", "b"]] * 300)
    with pytest.raises(ValueError, match="trained with 2 tags a document"):
        model.infer(documents)
    with pytest.raises(ValueError, match="expected 2 tags a document"):
        model.partial_fit(documents)
    assert small(epochs=1).fit(corpus, tags=[[], *["a"] * 299]).vectors_.keys == ["a"]
    assert Tags.of([["x", "x", "y"]], 1).ids.tolist() == [0, 1]


def test_tagged_lines_are_read(tmp_path):
    path = tmp_path / "docs.tsv"
    path.write_text("x y\ta b a\nz\tb c\n\tno tags\nz\t")
    corpus, tags = read_tagged(path, min_count=1)
    assert list(corpus) == [["a", "b", "a"], ["b", "c"], ["no", "tags"], []]
    assert tags.keys == ["x", "y", "z"]
    assert tags.offsets.tolist() == [0, 2, 3, 3, 4]
    assert tags.ids.tolist() == [0, 1, 2, 2]
    both, twice = read_tagged([path, path], min_count=1)
    assert len(both) == len(twice) == 8
    assert twice.keys == tags.keys
    pruned, again = read_tagged(path, min_count=1, max_distinct=4)  # reads twice
    assert again.ids.tolist() == tags.ids.tolist()
    assert len(pruned) == 4
    path.write_text(" x  y \ta\n \tb\n")
    assert read_tagged(path, min_count=1)[1].offsets.tolist() == [0, 2, 2]
    path.write_text("x\ta\nno tab\n")
    with pytest.raises(FormatError, match=r"docs.tsv:2: expected tags, a tab and a text, got no tab in b'no tab'"):
        read_tagged(path, min_count=1)
    path.write_bytes(b"x\ta\n\xff\ta\n")
    with pytest.raises(FormatError, match=r"docs.tsv:2: expected tags in UTF-8"):
        read_tagged(path, min_count=1)
    path.write_bytes(b"x\ta\ny\tb\xff\n")
    with pytest.raises(FormatError, match=r"docs.tsv:2: bytes that are not UTF-8"):
        read_tagged(path, min_count=1)
    with pytest.raises(ValueError, match="go together"):
        read_tagged(path, column="text")


def test_long_tagged_lines_keep_their_tags(tmp_path):
    path = tmp_path / "docs.tsv"
    path.write_text("".join(f"t{i}\t" + f"w{i} " * 60_000 + "\n" for i in range(20)))  # lines and chunks cross
    corpus, tags = read_tagged(path)
    assert tags.keys == [f"t{i}" for i in range(20)]
    assert [document[0] for document in corpus] == [f"w{i}" for i in range(20)]
    assert np.diff(corpus.offsets).tolist() == [60_000] * 20


@pytest.mark.parametrize("column", ["one", "several", "number"])
def test_tagged_parquet_is_read(tmp_path, column):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tags = {"one": ["x y", None, "z"], "several": [["x y", None, "", "z"], [], None], "number": [7, 8, 7]}
    table = pyarrow.table({**tags, "text": ["a b", "b", "c c"]})
    parquet.write_table(table, tmp_path / "docs.parquet")
    corpus, found = read_tagged(tmp_path / "docs.parquet", "text", column, min_count=1)
    assert list(corpus) == [["a", "b"], ["b"], ["c", "c"]]
    expected = {"one": [["x y"], [], ["z"]], "several": [["x y", "z"], [], []], "number": [["7"], ["8"], ["7"]]}[column]
    ends = found.offsets.tolist()
    assert [[found.keys[i] for i in found.ids[a:b]] for a, b in pairwise(ends)] == expected
    with pytest.raises(KeyError, match="no column 'absent'"):
        read_tagged(tmp_path / "docs.parquet", "text", "absent")


def test_tags_of_bytes_are_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["a"], "tags": [[b"x"]]}), tmp_path / "docs.parquet")
    with pytest.raises(TypeError, match=r"column 'tags' holds list<.*binary>; expected tags as strings or numbers"):
        read_tagged(tmp_path / "docs.parquet", "text", "tags", min_count=1)


# ---- settings and bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "pv"}, "mode must be one of 'dm', 'dbow', 'both', got 'pv'"),
        ({"dm": "max"}, "dm must be one of 'mean', 'sum', 'concat'"),
        ({"dim": 0}, "dim must be"),
        ({"window": 0}, "window must be"),
        ({"negatives": -1}, "negatives must be"),
        ({"negatives": 0}, "leave nothing to learn from"),
        ({"tag_weight": 0}, "tag_weight must be"),
        ({"tag_weight": 101}, "tag_weight must be"),
        ({"hs": 1}, "hs must be True or False"),
        ({"dbow_words": "yes"}, "dbow_words must be True or False"),
        ({"sample": -1.0}, "sample must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"lr": 0.0}, "lr must be"),
        ({"min_lr": 1.0}, "min_lr must be"),
        ({"min_count": -1}, "min_count must be"),
        ({"threads": 0}, "threads must be"),
        ({"seed": -1}, "seed must be"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(corpus, changed, message):
    with pytest.raises(ValueError, match=message):
        Doc2Vec(**changed).fit(corpus)


def test_documents_that_cannot_be_trained_on_or_inferred(documents, corpus, tmp_path):
    with pytest.raises(TypeError, match="expected lists of tokens, got one str"):
        Doc2Vec().fit("a b c")
    with pytest.raises(TypeError, match="sentence 0: expected a list of str, got one str"):
        Doc2Vec().fit(["a b c"])
    with pytest.raises(ValueError, match="min_count=5"):
        Doc2Vec().fit([["a", "b"]])
    with pytest.raises(ValueError, match="at least 2 distinct words"):
        Doc2Vec(min_count=1).fit([["a", "a"]])
    with pytest.raises(ValueError, match="not trained yet"):
        Doc2Vec().infer([["a"]])
    with pytest.raises(ValueError, match="needs checkpoint="):
        Doc2Vec().fit(corpus, resume=True)
    with pytest.raises(TrainingError, match="lower lr"):
        Doc2Vec(dim=10, lr=100.0, min_lr=100.0, epochs=20, dm="sum", threads=1).fit(corpus)
    model = small(epochs=1).fit(corpus)
    with pytest.raises(TypeError, match="expected lists of tokens, got one str"):
        model.infer("a b")
    with pytest.raises(TypeError, match="sentence 1: expected a list of str, got one str"):
        model.infer([["a"], "b"])
    with pytest.raises(ValueError, match="epochs must be"):
        model.infer(documents, epochs=0)
    path = tmp_path / "model.safetensors"
    model.save(path)
    damaged = path.read_bytes().replace(b"tags_offsets", b"tags_0ffsets")
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match="expected a tensor tags_offsets"):
        Doc2Vec.load(path)
    with pytest.raises(FormatError, match="expected a Word2Vec, got a Doc2Vec"):
        embfast.Word2Vec.load(path)


@pytest.mark.parametrize("mode", MODES)
def test_sharing_keeps_the_weight_of_the_negatives(mode):
    for negatives in range(60):
        settings = {"negatives": negatives, **MODES[mode]}
        for part in Doc2Vec(**settings)._layouts():
            share = part.sharing
            assert 1 <= share.centers <= kernels.MAX_CENTERS
            assert share.drawn * share.scale == pytest.approx(settings["negatives"])
            assert share.centers == 1 or share.drawn / share.centers >= 2
            if settings.get("hs") or not settings.get("negatives_shared", True):
                assert (share.centers, share.drawn) == (1, settings["negatives"])


def test_scikit_learn_clones_fits_and_pipes(documents, tmp_path):
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.utils.validation import check_is_fitted

    topics = reviews()[1]
    pipe = make_pipeline(small(mode="both"), LogisticRegression())
    pipe = clone(pipe).fit(documents, topics)
    check_is_fitted(pipe[0])
    new, of = reviews(100, seed=7)
    assert pipe.score(new, of) > 0.95
    assert pipe.set_params(doc2vec__dim=8).fit(documents, topics)[0].vectors_.dim == 16
    assert cross_val_score(make_pipeline(small(epochs=3), LogisticRegression()), documents, topics, cv=3).mean() > 0.9
    Corpus.from_sentences(documents).save(tmp_path / "corpus")
    mapped = clone(pipe).fit(Corpus.load(tmp_path / "corpus"), topics)  # ids stay on disk
    assert_array_equal(mapped[0].transform(new), clone(pipe).fit(documents, topics)[0].transform(new))
    assert mapped.score(Corpus.from_sentences(new), of) > 0.95
    assert repr(Doc2Vec(mode="both", dm="sum")) == "Doc2Vec(mode='both', dm='sum')"


# ---- the command line and the benchmark ---------------------------------------------------------------------------


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, ["doc2vec", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_command_trains_and_infers(documents, tmp_path):
    plain, tagged = tmp_path / "docs.txt", tmp_path / "docs.tsv"
    lines = [" ".join(document) for document in documents]
    plain.write_text("\n".join(lines) + "\n")
    tagged.write_text("".join(f"t{i}\t{line}\n" for i, line in enumerate(lines)))
    flags = ["--dim", 12, "--epochs", 2, "--sample", 0, "--threads", 1, "--lr", 0.1, "--window", 1, "--tag-weight", 1]
    model = tmp_path / "model.safetensors"
    shown = json.loads(run(plain, "-o", tmp_path / "docs.npz", "--save-model", model, *flags, "--json").stdout)
    expected = small(epochs=2, min_count=5).fit(documents)
    assert shown["settings"] == expected.get_params()
    assert shown["documents"] == 300
    assert_array_equal(Vectors.load(tmp_path / "docs.npz").matrix, expected.vectors_.matrix)
    assert cli.read_vectors(model).keys == expected.vectors_.keys

    run(tagged, "--tags", "first", "-o", tmp_path / "tagged.npz", "--save-words", tmp_path / "words.npz", *flags)
    found = Vectors.load(tmp_path / "tagged.npz")
    assert found.keys == [f"t{i}" for i in range(300)]
    assert_array_equal(found.matrix, expected.vectors_.matrix)
    assert_array_equal(Vectors.load(tmp_path / "words.npz").matrix, expected.word_vectors_.matrix)

    tagged.write_text("n1\ta1 a2 a3\nn2\tnothing known\n")
    result = run(tagged, "--tags", "first", "--infer", model, "-o", tmp_path / "new.npz")
    assert "1 of 2 documents have no known word" in result.stderr
    found = Vectors.load(tmp_path / "new.npz")
    assert found.keys == ["n1", "n2"]
    assert_array_equal(found.matrix[0], expected.infer([["a1", "a2", "a3"]])[0])

    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"name": [f"t{i}" for i in range(300)], "text": lines}
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), tmp_path / "docs.parquet")
    run(tmp_path / "docs.parquet", "--column", "text", "--tags", "name", "-o", tmp_path / "columns.npz", *flags)
    assert Vectors.load(tmp_path / "columns.npz").keys == columns["name"]
    assert_array_equal(Vectors.load(tmp_path / "columns.npz").matrix, expected.vectors_.matrix)

    checkpoint = tmp_path / "checkpoint.safetensors"
    for _ in range(2):
        run(plain, "-o", tmp_path / "again.npz", "--checkpoint", checkpoint, "--resume", *flags)
    assert_array_equal(Vectors.load(tmp_path / "again.npz").matrix, expected.vectors_.matrix)


def test_the_command_says_what_is_wrong(tmp_path):
    path = tmp_path / "docs.txt"
    path.write_text("a b\n" * 10)
    output = tmp_path / "docs.npz"
    for arguments, message in (
        ([path], "nothing to write"),
        ([path, "-o", output, "--tags", "last"], '--tags: expected "first"'),
        ([path, "-o", output, "--tags", "first"], "docs.txt:1: expected tags, a tab and a text"),
        ([path, "-o", output, "--mode", "pv"], "mode must be one of"),
        ([path, "-o", output, "--infer", tmp_path / "none.safetensors"], "No such file"),
        ([path, "-o", output, "--tags", "first", "--cache", tmp_path / "c"], "--cache works for text without tags"),
        (
            [path, "-o", output, "--infer", path, "--save-model", path],
            "--infer requires -o FILE and writes no other file",
        ),
        ([path, "-o", output, "--resume"], "--resume needs --checkpoint"),
        ([path, "-o", output, "--mode", "dbow", "--save-words", output], "PV-DBOW trains no word vectors"),
    ):
        assert message in run(*arguments, code=2).stderr


def test_every_setting_is_a_flag_with_its_words():
    (command,) = [c for c in cli.typer.main.get_command(cli.app).commands.values() if c.name == "doc2vec"]
    options = {p.name: p for p in command.params}
    for name, setting in Doc2Vec.settings().items():
        assert options[name].default == setting.default, name
        assert options[name].help, f"{name} has no entry under Settings in the docstring"


def test_the_benchmark_measures_speed_and_accuracy(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    import lzma

    (tmp_path / "imdb").mkdir()
    for name, seed in (("train", 0), ("test", 1)):
        documents, topics = reviews(60, seed)
        rows = (
            f"{('neg', 'pos')[t]}\t5\t{i}\t{' '.join(d)}\n"
            for i, (d, t) in enumerate(zip(documents, topics, strict=True))
        )
        with lzma.open(tmp_path / "imdb" / f"imdb.{name}.tsv.xz", "wt") as file:
            file.writelines(rows)
    monkeypatch.setattr(bench_doc2vec, "DATA", tmp_path)
    path = tmp_path / "out.json"
    options = ["--documents", "60", "--inferred", "10", "--dim", "8", "--epochs", "30", "--programs", "embfast"]
    bench_doc2vec.main(
        [*options, "--repeats", "1", "--turns", "2", "--threads", "2", "--seeds", "1", "--json", str(path)]
    )
    result = json.loads(path.read_text())
    assert [row["mode"] for row in result["rows"]] == ["dbow", "dm", "dm-concat", "both"]
    for row in result["rows"]:
        assert row["mode"] == "dm-concat" or row["accuracy"][0] > 0.8
        assert row["mode"] == "both" or row["words_per_cpu_s"] > 0
        assert row["times_words_per_cpu_s"] is None
    scaling = result["runs"]["scaling"]
    assert [(row["mode"], row["threads"]) for row in scaling[:3]] == [("dbow", 1), ("dbow", 2), ("dm", 1)]
    assert all(len(row["wall_s"]) == 2 and row["times_one"] == 1 for row in scaling if row["threads"] == 1)
    assert "documents/CPU s" in capsys.readouterr().out
    options += ["--quality", "--modes", "dbow", "--seeds", "1", "--json", str(path)]
    n_test = result["runs"]["quality"][0]["inferred"]
    inferred = {"--transductive": 1, "--validate=20": 20, "--reinfer": n_test, "--bigrams": n_test}
    for option, n in inferred.items():
        bench_doc2vec.main([*options, option])
        (row,) = json.loads(path.read_text())["runs"]["quality"]
        assert row["accuracy"] > 0.8
        assert row["inferred"] == n
        assert (row["tokens"] > result["runs"]["quality"][0]["tokens"]) == (option in ("--transductive", "--bigrams"))
    with pytest.raises(SystemExit):
        bench_doc2vec.main([*options, "--transductive", "--reinfer"])


def test_documents_without_tags_do_not_take_those_of_others(documents):
    model = small(epochs=1).fit(documents[:3], tags=["3", "x", "4"]).partial_fit(documents[3:6])
    assert model.vectors_.keys == ["3", "x", "4", "5", "6", "7"]


def test_inference_and_files_keep_to_the_settings_of_training(documents, tmp_path):
    model = small(epochs=1).fit(documents)
    for changed in ({"dim": 8}, {"mode": "dbow"}, {"hs": True, "negatives": 0}):
        settings = model.get_params()
        model.set_params(**changed)
        for use in (lambda: model.infer(documents[:2]), lambda: model.save(tmp_path / "model.safetensors")):
            with pytest.raises(ValueError, match="must stay"):
                use()
        model.set_params(**settings)
    assert not list(tmp_path.iterdir())


def test_documents_without_any_tag_are_refused():
    with pytest.raises(ValueError, match="none of the 4 documents has a tag"):
        Doc2Vec(dim=4, min_count=1).fit([["a", "b"]] * 4, tags=[[]] * 4)


def test_the_program_infers_on_its_own_device_and_of_saved_corpora(tmp_path, monkeypatch):
    documents = [[f"w{i % 7}", f"w{i % 5}", "the"] for i in range(60)]
    model = Doc2Vec(dim=4, min_count=1, epochs=1, threads=1).fit(documents)
    model.set_params(device="cuda").save(tmp_path / "m.safetensors")
    Corpus.from_sentences(documents).save(tmp_path / "corpus")
    out = tmp_path / "o.npz"
    given = [tmp_path / "corpus", "--infer", tmp_path / "m.safetensors", "-o", out, "--device", "cpu"]
    result = CliRunner().invoke(cli.app, ["doc2vec", *map(str, given)])
    assert result.exit_code == 0, result.output
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(Vectors.load(out).matrix, model.set_params(device="cpu").infer(documents))
