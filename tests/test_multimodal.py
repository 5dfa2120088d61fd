"""Images and captions in one space: towers, training, search, files; several processes."""

import base64
import json
import math
import os
import signal
import subprocess
import sys
import threading
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from embfast import cli, towers  # noqa: E402
from embfast.captions import Captions, Linked, encode  # noqa: E402
from embfast.doc2vec import Doc2Vec  # noqa: E402
from embfast.errors import FormatError, TrainingError  # noqa: E402
from embfast.gallery import write_page  # noqa: E402
from embfast.multimodal import Examples, Multimodal  # noqa: E402
from embfast.ternary import TernaryMatrix  # noqa: E402
from embfast.vectors import Vectors  # noqa: E402

COLOURS, THINGS = ("red", "blue", "green", "black", "white"), ("dog", "cat", "boat", "tree", "car", "ball")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def world(noise=0.05, seed=0):
    """30 images, a vector of what is on each, and four captions of each that say it; the last six are "dev"."""
    rng = np.random.default_rng(seed)
    keys, rows, pairs = [], [], []
    parts = rng.normal(size=(len(COLOURS) + len(THINGS), 20)).astype(np.float32)
    order = rng.permutation(len(COLOURS) * len(THINGS)).tolist()
    for n, i in enumerate(order):
        c, t = divmod(i, len(THINGS))
        key = f"{COLOURS[c]}-{THINGS[t]}.jpg"
        keys.append(key)
        rows.append(parts[c] + parts[len(COLOURS) + t] + noise * rng.normal(size=20))
        split = "train" if n < 24 else "dev"
        for text in ("A {} {} .", "there is one {} {} here", "{} {}", "Look at the very {} {} over there !"):
            pairs.append((key, text.format(COLOURS[c], THINGS[t]), split))
    return Vectors(keys, np.array(rows, np.float32)), Captions.from_pairs(pairs)


SMALL = {"dim": 16, "word_dim": 12, "batch": 16, "lr": 0.01, "epochs": 3}


def weights(model):
    return {name: t.detach().cpu().numpy().copy() for name, t in model.towers_.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# ---- towers -------------------------------------------------------------------------------------------------------


def texts_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return rng.integers(0, 30, offsets[-1]).astype(np.int32), offsets


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", towers.POOLINGS)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_packed_texts_give_what_one_text_alone_gives(cell, pooling, bidirectional):
    """Read by torch's cell word for word, without packing, and pooled by hand."""
    torch.manual_seed(0)
    tower = towers.SequenceTower(30, 5, 7, cell, pooling, bidirectional).eval()
    ids, offsets = texts_of([3, 1, 9, 3, 5])
    rows = np.array([4, 2, 0, 1, 3])
    found = tower(towers.pack(ids, offsets, rows))
    for row, i in zip(found, rows.tolist(), strict=True):
        words = tower.words(torch.from_numpy(ids[offsets[i] : offsets[i + 1]].astype(np.int64)))
        states = tower.cell(words)[0]
        forward, backward = states[:, :7], states[:, 7:]
        last = (forward[-1] + backward[0]) / 2 if bidirectional else forward[-1]
        every = (forward + backward) / 2 if bidirectional else forward
        expected = {"last": last, "max": every.amax(0), "mean": every.mean(0)}[pooling]
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)


def test_pack_takes_words_step_by_step():
    packed = towers.pack(np.arange(10, dtype=np.int32), np.array([0, 2, 2 + 5, 10]), np.array([0, 1, 2, 1]))
    assert packed.ids.tolist() == [2, 2, 7, 0, 3, 3, 8, 1, 4, 4, 9, 5, 5, 6, 6]
    assert packed.batch_sizes.tolist() == [4, 4, 3, 2, 2]
    assert packed.texts.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1]
    assert packed.place.tolist() == [3, 0, 2, 1]


def test_mean_and_word2visualvec_read_every_word():
    torch.manual_seed(0)
    ids, offsets = texts_of([4, 1, 2])
    mean = towers.MeanTower(30, 5, 3).eval()
    packed = towers.pack(ids, offsets, np.arange(3))
    for i, row in enumerate(mean(packed)):
        words = mean.words(torch.from_numpy(ids[offsets[i] : offsets[i + 1]].astype(np.int64))).mean(0)
        torch.testing.assert_close(row, mean.map(words))
    tower = towers.Word2VisualVecTower(30, 5, 3, hidden=8, state=4).eval()
    for i, row in enumerate(tower(packed)):
        words = torch.from_numpy(ids[offsets[i] : offsets[i + 1]].astype(np.int64))
        vectors = tower.words(words)
        read = torch.cat([tower.cell(vectors)[1][0], vectors.mean(0)])
        hidden = torch.relu(tower.read(read) + tower.bag(words).sum(0))
        torch.testing.assert_close(row, tower.out(hidden))


def test_vector_tower_is_affine_and_takes_int8():
    torch.manual_seed(0)
    tower = towers.VectorTower(6, 3)
    rows = torch.randint(-1, 2, (4, 6), dtype=torch.int8)
    torch.testing.assert_close(tower(rows), rows.float() @ tower.layers[0].weight.T + tower.layers[0].bias)
    deep = towers.VectorTower(6, 3, hidden=5)
    first, second = deep.layers
    torch.testing.assert_close(deep(rows), second(torch.relu(first(rows.float()))))


def test_into_space_normalises_and_takes_absolute_values_for_order():
    rows = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    torch.testing.assert_close(towers.into_space(rows, False), torch.tensor([[0.6, -0.8], [0.0, 0.0]]))
    torch.testing.assert_close(towers.into_space(rows, True), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "max", "warmup": 2},
        {"loss": "semihard", "text": "lstm", "pooling": "max", "bidirectional": True},
        {"loss": "topk", "k": 3, "text": "mean", "distinct_images": True},
        {"loss": "infonce", "text": "mean", "hidden": 24, "dropout": 0.1},
        {"similarity": "order"},
        {"loss": "mse", "text": "word2visualvec", "hidden": 32},
        {"precision": "bfloat16", "optimizer": "AdamW", "weight_decay": 1e-4},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "sum",
)
def test_learns_to_find_held_out_images(settings):
    """Six images that it has not met, of colours and things that it has: chance finds one caption in six."""
    images, captions = world()
    model = Multimodal(**{**SMALL, "epochs": 25, **settings}).fit(images, captions)
    found = model.evaluate(images, captions.part("dev"))
    assert found.images.r1 > 0.6, found
    assert found.captions.r1 > 0.6, found
    assert len(model.loss_) == 25
    assert model.loss_[-1] < model.loss_[0] or settings.get("warmup")
    assert max(one.recall_sum for one in model.validation_) == pytest.approx(found.recall_sum)


def test_one_thread_gives_the_same_bits_and_another_seed_others():
    images, captions = world()
    first = Multimodal(**SMALL, dropout=0.2).fit(images, captions)
    torch.rand(3)  # what others draw makes no difference, nor does fit to them
    before = torch.random.get_rng_state()
    again = Multimodal(**SMALL, dropout=0.2).fit(images, captions)
    assert (torch.random.get_rng_state() == before).all()
    assert_same(weights(first), weights(again))
    assert first.loss_ == again.loss_
    other = Multimodal(**SMALL, dropout=0.2, seed=1).fit(images, captions)
    assert other.loss_ != first.loss_


class _Stop(Exception):
    pass


@pytest.mark.parametrize("settings", [{}, {"optimizer": "rmsprop", "loss": "max"}], ids=["adam", "rmsprop-max"])
def test_a_resumed_run_has_the_bits_of_one_without_a_break(tmp_path, settings):
    """Stopped in the middle of the second epoch, behind the first validation, with dropout."""
    images, captions = world()
    settings = {**SMALL, "dropout": 0.3, "lr_drop": 2, **settings}
    whole = Multimodal(**settings).fit(images, captions)
    path = tmp_path / "checkpoint.safetensors"

    def stop(status):
        if status.done > 0.5:
            raise _Stop

    with pytest.raises(_Stop):
        Multimodal(**settings).fit(images, captions, checkpoint=path, checkpoint_minutes=0, progress=stop)
    half = Multimodal.load(path)
    assert 0 < half._progress.epoch < 3
    assert half._progress.block > 0
    torch.rand(3)
    resumed = Multimodal(**settings).fit(images, captions, checkpoint=path, resume=True)
    assert_same(weights(resumed), weights(whole))
    assert resumed.loss_ == whole.loss_
    assert resumed.validation_ == whole.validation_
    np.testing.assert_array_equal(resumed.vectors_.matrix, whole.vectors_.matrix)
    again = Multimodal(**settings).fit(images, captions, checkpoint=path, resume=True)  # it is at its end
    assert_same(weights(again), weights(whole))


def test_resume_refuses_other_settings_and_other_data(tmp_path):
    images, captions = world()
    path = tmp_path / "checkpoint.safetensors"
    Multimodal(**SMALL).fit(images, captions, checkpoint=path)
    with pytest.raises(ValueError, match=r"lr was 0\.01, is 0\.02"):
        Multimodal(**{**SMALL, "lr": 0.02}).fit(images, captions, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match=r"vectors_crc"):
        Multimodal(**SMALL).fit(Vectors(images.keys, images.matrix + 1), captions, checkpoint=path, resume=True)


def test_ctrl_c_saves_and_keeps_what_was_learned(tmp_path):
    images, captions = world()
    path = tmp_path / "checkpoint.safetensors"
    model = Multimodal(**{**SMALL, "epochs": 1000})

    def press(status):
        if status.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(KeyboardInterrupt):
        model.fit(images, captions, checkpoint=path, progress=press)
    assert Multimodal.load(path)._progress.epoch == 1
    assert len(model.vectors_) == len(images)


def test_the_best_epoch_is_kept(monkeypatch):
    """Scores are given: the second epoch is the best, and two more do not better it."""
    images, captions = world()
    given = iter([100, 300, 200, 250, 400])
    monkeypatch.setattr(Multimodal, "_evaluate", lambda self, data: SimpleNamespace(recall_sum=next(given)))
    model = Multimodal(**{**SMALL, "epochs": 9, "patience": 2}).fit(images, captions)
    assert [one.recall_sum for one in model.validation_] == [100, 300, 200, 250]
    two = Multimodal(**{**SMALL, "epochs": 2}).fit(images, captions.part("train"))
    assert_same(weights(model), weights(two))


def test_early_stopping_ends_a_run():
    images, captions = world()
    model = Multimodal(**{**SMALL, "epochs": 200, "lr": 0.05, "patience": 2}).fit(images, captions)
    sums = [one.recall_sum for one in model.validation_]
    assert len(sums) < 200
    assert max(sums) == max(sums[:-2]) >= max(sums[-2:])
    assert model.evaluate(images, captions.part("dev")).recall_sum == pytest.approx(max(sums))


def test_learning_rate_drops_after_its_epoch():
    images, captions = world()
    seen = {}
    Multimodal(**{**SMALL, "lr_drop": 2}).fit(images, captions, progress=lambda s: seen.setdefault(s.epoch, s.lr))
    assert seen == {1: 0.01, 2: 0.01, 3: 0.001}


def test_sum_warms_up_for_max():
    """Epochs of warm-up have the bits of a run of sum."""
    images, captions = world()
    warm = Multimodal(**{**SMALL, "loss": "max", "warmup": 2}).fit(images, captions)
    plain = Multimodal(**SMALL).fit(images, captions)
    assert warm.loss_[:2] == plain.loss_[:2]
    assert warm.loss_[2] < plain.loss_[2]


def test_says_when_vectors_collapse():
    """All images alike: the best that the hardest negative can do is one point for all."""
    images, captions = world()
    same = Vectors(images.keys, np.ones_like(images.matrix))
    with pytest.warns(RuntimeWarning, match="collapsed into one point; more epochs of warmup"):
        Multimodal(**{**SMALL, "epochs": 12, "loss": "max", "warmup": 0}).fit(same, captions.part("train"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Multimodal(**{**SMALL, "epochs": 12, "loss": "max"}).fit(images, captions.part("train"))


def test_gradients_are_clipped():
    """With SGD a step is lr times the gradient, whose length over all weights is at most clip."""
    images, captions = world()
    settings = {**SMALL, "epochs": 1, "optimizer": "sgd", "lr": 1.0, "clip": 0.5, "batch": 200, "bucketed": False}
    model = Multimodal(**settings)
    model.fit(images, captions.part("train"))
    moved = weights(model)
    model._make_towers()
    length = math.sqrt(sum(float(np.square(moved[n] - w, dtype=np.float64).sum()) for n, w in weights(model).items()))
    assert length == pytest.approx(0.5, rel=1e-4)


def test_a_diverging_run_is_an_error():
    images, captions = world()
    settings = {**SMALL, "optimizer": "sgd", "lr": 100.0, "clip": 0, "loss": "mse", "text": "mean", "hidden": 8}
    with pytest.raises(TrainingError, match=r"the loss became|stopped being finite"):
        Multimodal(**{**settings, "epochs": 50}).fit(images, captions.part("train"))


def test_batches_hold_each_caption_once_and_like_lengths():
    images, captions = world()
    captions = captions.part("train")
    model = Multimodal(batch=10)
    model.words_ = ["<end>", "<unk>"]
    data = Examples(images, captions, {}, "error", model._read)
    plan = model._plan(data, 0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(captions)))
    assert {len(batch) for batch in plan} == {9, 10}
    lengths = data.sides["captions"].lengths
    spread = [int(lengths[batch].max() - lengths[batch].min()) for batch in plan]
    loose = Multimodal(batch=10, bucketed=False)._plan(data, 0)
    assert sum(spread) < sum(int(lengths[batch].max() - lengths[batch].min()) for batch in loose) / 2
    again, other = model._plan(data, 0), model._plan(data, 1)
    assert all((a == b).all() for a, b in zip(plan, again, strict=True))
    assert any((a != b).any() for a, b in zip(plan, other, strict=True))
    assert [len(a) for a in plan] == [len(b) for b in other]


def test_distinct_images_never_share_a_batch():
    images, captions = world()
    uneven = Captions.joined([captions, Captions.from_pairs([(images.keys[0], "one more", captions.splits[0])])])
    model = Multimodal(batch=10, distinct_images=True)
    model.words_ = ["<end>", "<unk>"]
    data = Examples(images, uneven, {}, "error", model._read)
    plan = model._plan(data, 3)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(uneven)))
    for batch in plan:
        assert len(set(uneven.owners[batch].tolist())) == len(batch)


def test_captions_of_one_image_are_no_negatives():
    """One image alone, many captions: there is nothing to push apart."""
    images, captions = world()
    one = captions.of_images([images.keys[0]])
    model = Multimodal(**SMALL).fit(images, one)
    assert model.loss_ == [0.0, 0.0, 0.0]


# ---- several processes --------------------------------------------------------------------------------------------

WORKER = """
import sys
import numpy as np, torch, torch.distributed as dist
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from test_multimodal import Multimodal, weights, world
torch.set_num_threads(1)
rank, output, settings = int(sys.argv[2]), sys.argv[3], eval(sys.argv[5])
dist.init_process_group("gloo", init_method="file://" + sys.argv[4], rank=rank, world_size=2)
images, captions = world()
model = Multimodal(**settings).fit(images, captions.part("train"))
np.savez(f"{output}-{rank}.npz", loss=model.loss_, **weights(model))
dist.destroy_process_group()
"""


def test_two_processes_do_what_one_does(tmp_path):
    """Batches halved, negatives gathered, gradients added up: the same loss and, but for rounding, the same weights."""
    root = Path(__file__).parents[1]
    settings = {**SMALL, "epochs": 2, "loss": "max", "warmup": 1, "batch": 16}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

    def start(rank):
        words = [sys.executable, "-W", "ignore", "-c", WORKER, str(root), str(rank), str(tmp_path / "out")]
        return subprocess.Popen([*words, str(tmp_path / "meet"), repr(settings)], env=environment)

    running = [start(rank) for rank in range(2)]
    images, captions = world()
    model = Multimodal(**settings).fit(images, captions.part("train"))
    alone = {"loss": np.array(model.loss_), **weights(model)}
    assert [process.wait(timeout=240) for process in running] == [0, 0]
    first, second = (dict(np.load(tmp_path / f"out-{rank}.npz")) for rank in range(2))
    np.testing.assert_allclose(first["loss"], alone["loss"], rtol=1e-4)
    for name in alone:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], alone[name], rtol=2e-2, atol=2e-3, err_msg=name)


# ---- other modalities ---------------------------------------------------------------------------------------------


def test_rows_in_the_place_of_captions():
    """As in SPEECH-COCO: the second modality is vectors, several for each image."""
    images, captions = world()
    rng = np.random.default_rng(5)
    turn = rng.normal(size=(20, 30)).astype(np.float32)
    rows, owners = [], []
    for key in images.keys:
        for _ in range(3):
            rows.append(images[key] @ turn + 0.1 * rng.normal(size=30))
            owners.append(key)
    spoken = Vectors([f"s{i}" for i in range(len(rows))], np.array(rows, np.float32))
    splits = dict(zip(captions.images, captions.splits, strict=True))
    linked = Linked(spoken, owners, splits)
    model = Multimodal(**{**SMALL, "epochs": 15}).fit(images, linked)
    assert model.evaluate(images, linked.part("dev")).images.r1 > 0.8
    assert model.embed_other("captions", spoken).matrix.shape == (90, 16)
    with pytest.raises(ValueError, match="reads no text"):
        model.search_images("a red dog")
    with pytest.raises(ValueError, match="no captions to search among"):
        model.search_captions(images.keys[0])


def test_three_modalities_meet_in_one_space():
    images, captions = world()
    turn = np.random.default_rng(5).normal(size=(20, 9)).astype(np.float32)
    sounds = Vectors([f"s{i}" for i in range(len(images))], images.matrix @ turn)
    linked = Linked(sounds, images.keys)
    model = Multimodal(**{**SMALL, "epochs": 20}).fit(images, captions, others={"sounds": linked})
    heard = model.embed_other("sounds", sounds)
    assert np.mean(model.vectors_.nearest(heard.matrix, k=1)[0][:, 0] == np.arange(30)) > 0.8
    words = model.embed_captions(["a red dog", "a blue boat"])
    found = heard.nearest(words, k=1)[0][:, 0]
    assert [images.keys[i] for i in found] == ["red-dog.jpg", "blue-boat.jpg"]


def test_doc2vec_reads_the_captions():
    images, captions = world()
    document = Doc2Vec(mode="dbow", dim=16, min_count=1, epochs=40, sample=0, threads=1)
    document.fit([text.lower().split() for text in captions.texts])
    with pytest.raises(ValueError, match="go together"):
        Multimodal(text="doc2vec").fit(images, captions)
    model = Multimodal(**{**SMALL, "text": "doc2vec", "epochs": 15}).fit(images, captions, document_model=document)
    assert model.evaluate(images, captions.part("train")).images.r5 > 0.5


def test_ternary_rows_are_dequantised_on_the_fly():
    images, captions = world()
    signs = np.sign(images.matrix).astype(np.int8)
    narrow = Multimodal(**SMALL).fit(Vectors(images.keys, TernaryMatrix.from_rows(signs)), captions)
    wide = Multimodal(**SMALL).fit(Vectors(images.keys, signs.astype(np.float32)), captions)
    assert_same(weights(narrow), weights(wide))


def test_word_vectors_come_in_and_may_stay_as_they_are():
    images, captions = world()
    given = Vectors(["dog", "cat", "nothing"], np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32))
    model = Multimodal(**SMALL, tune_words=False).fit(images, captions, word_vectors=given)
    table = weights(model)["captions.words.weight"]
    for word in ("dog", "cat"):
        np.testing.assert_array_equal(table[model.words_.index(word)], given[word])
    tuned = Multimodal(**SMALL).fit(images, captions, word_vectors=given)
    assert (weights(tuned)["captions.words.weight"][tuned.words_.index("dog")] != given["dog"]).any()
    with pytest.raises(ValueError, match="know none of the words"):
        Multimodal(**SMALL).fit(images, captions, word_vectors=Vectors(["Dog"], np.ones((1, 12), np.float32)))
    document = Doc2Vec(mode="dbow", dim=4, min_count=1).fit([text.lower().split() for text in captions.texts])
    with pytest.raises(ValueError, match="has no word vectors"):
        Multimodal(**SMALL, text="doc2vec").fit(images, captions, word_vectors=given, document_model=document)


# ---- use ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    images, captions = world()
    return Multimodal(**{**SMALL, "epochs": 25}).fit(images, captions), images, captions


def test_search_goes_both_ways(trained):
    model, images, _ = trained
    assert model.search_images("a green boat", k=1)[0][0] == "green-boat.jpg"
    best = model.search_captions("white-tree.jpg", k=2)
    assert all("white tree" in text for text, _ in best)
    assert best[0][1] >= best[1][1]
    by_vector = model.search_captions(images["white-tree.jpg"], k=2)
    assert [text for text, _ in by_vector] == [text for text, _ in best]
    few = Captions.from_pairs([("x", "a white tree"), ("x", "a red ball")])
    assert model.search_captions("white-tree.jpg", captions=few)[0][0] == "a white tree"
    assert model.search_images("dog", k=0) == []
    with pytest.raises(KeyError, match="nobody"):
        model.search_captions("nobody.jpg")


def test_search_by_an_index(trained):
    pytest.importorskip("usearch")
    model, _, _ = trained
    index = model.vectors_.build_index()
    exact, found = model.search_images("a black cat", k=3), model.search_images("a black cat", k=3, index=index)
    assert [key for key, _ in found] == [key for key, _ in exact]


def test_regularities_exchange_a_word(trained):
    model, _, _ = trained
    right = 0
    for old, new in (("red", "blue"), ("green", "black"), ("white", "red"), ("blue", "white")):
        found = model.regularity(f"{old}-dog.jpg", minus=old, plus=new, k=2)
        assert f"{old}-dog.jpg" not in [key for key, _ in found]
        right += f"{new}-dog.jpg" in [key for key, _ in found]
    assert right >= 3


def test_order_search_ranks_as_its_evaluation_does():
    images, captions = world()
    model = Multimodal(**{**SMALL, "similarity": "order", "epochs": 15}).fit(images, captions)
    query = model.embed_captions("a green boat")[0]
    expected = [-float(np.square(np.maximum(query - row, 0)).sum()) for row in model.vectors_.matrix]
    found = model.search_images("a green boat", k=30)
    np.testing.assert_allclose([score for _, score in found], sorted(expected, reverse=True), rtol=1e-5, atol=1e-7)
    assert found[0][0] == model.vectors_.keys[int(np.argmax(expected))]
    image = model.vectors_["red-dog.jpg"]
    best = model.search_captions("red-dog.jpg", k=1)[0]
    assert best[1] == pytest.approx(-float(np.square(np.maximum(model.embed_captions(best[0])[0] - image, 0)).sum()))


def test_texts_of_any_kind(trained):
    """Unknown words, none at all, and a thousand: <unk>, <end> alone, and the first max_words."""
    model, _, _ = trained
    rows = model.embed_captions(["zebra giraffe", "", "!!! ...", "red dog " * 500, "<end>"])
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(rows[1], rows[2], rtol=1e-6)
    np.testing.assert_allclose(rows[3], model.embed_captions("red dog " * 50)[0], rtol=1e-5, atol=1e-6)
    ids, offsets = encode(["zebra dog", "", "red " * 1000], {"dog": 2, "red": 3}, 100)
    assert ids[:4].tolist() == [1, 2, 0, 0]
    assert np.diff(offsets).tolist() == [3, 1, 101]
    np.testing.assert_allclose(model.embed_captions("zebra")[0], model.embed_captions("giraffe")[0], rtol=1e-6)


def test_a_caption_is_alike_in_any_company(trained):
    model, _, captions = trained
    together = model.embed_captions(captions)
    assert together.shape == (len(captions), 16)
    for i in (0, 7, 50):
        np.testing.assert_allclose(together[i], model.embed_captions(captions.texts[i])[0], rtol=1e-5, atol=1e-6)


def test_index_takes_other_images(trained, tmp_path):
    model, images, _ = trained
    model.save(tmp_path / "model.safetensors")
    other = Multimodal.load(tmp_path / "model.safetensors")
    other.index(Vectors(["new"], images["red-dog.jpg"][None]))
    assert other.search_images("a red dog")[0][0] == "new"
    assert len(other.vectors_) == 1


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["gru", "doc2vec"])
def test_load_gives_back_what_save_wrote(tmp_path, text):
    images, captions = world()
    document = None
    if text == "doc2vec":
        document = Doc2Vec(mode="dbow", dim=8, min_count=1, epochs=3, threads=1)
        document.fit([caption.lower().split() for caption in captions.texts])
    settings = {**SMALL, "text": text}
    model = Multimodal(**settings).fit(images, captions, document_model=document)
    model.search_captions("red-dog.jpg")
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = Multimodal.load(path)
    assert loaded.get_params() == model.get_params()
    assert_same(weights(loaded), weights(model))
    assert (loaded.words_, loaded.loss_, loaded.validation_) == (model.words_, model.loss_, model.validation_)
    assert loaded.search_images("red dog") == model.search_images("red dog")
    assert loaded.search_captions("red-dog.jpg") == model.search_captions("red-dog.jpg")
    model.partial_fit(images, captions)
    loaded.partial_fit(images, captions)
    assert_same(weights(loaded), weights(model))
    assert len(loaded.loss_) == 6


def test_the_file_is_plain_safetensors(trained, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    model, _, _ = trained
    model.save(tmp_path / "model.safetensors")
    arrays = safetensors.load_file(tmp_path / "model.safetensors")
    for name, expected in weights(model).items():
        np.testing.assert_array_equal(arrays[f"tower.{name}"], expected)


def test_a_damaged_file_is_a_format_error(trained, tmp_path):
    model, _, _ = trained
    path = tmp_path / "model.safetensors"
    model.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(FormatError, match="cut short"):
        Multimodal.load(path)
    path.write_bytes(whole.replace(b'"stale"', b'"stAle"'))
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        Multimodal.load(path)


def test_partial_fit_wants_the_same_towers(trained, tmp_path):
    model, images, captions = trained
    model.save(tmp_path / "model.safetensors")
    model = Multimodal.load(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="dimensions"):
        model.partial_fit(Vectors(images.keys, images.matrix[:, :5]), captions)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"text": "gru", "bidirectional": True, "pooling": "max", "similarity": "order"},
        {"text": "lstm", "bidirectional": True, "hidden": 5},
        {"text": "lstm", "pooling": "mean"},
        {"text": "mean", "hidden": 7},
        {"text": "word2visualvec", "loss": "mse", "hidden": 9},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "gru",
)
def test_onnx_files_give_the_same_vectors(tmp_path, settings):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    images, captions = world()
    model = Multimodal(**{**SMALL, "epochs": 1, **settings}).fit(images, captions)
    model.save_onnx(tmp_path / "texts.onnx")
    session = runtime.InferenceSession(tmp_path / "texts.onnx")
    words = {word: i for i, word in enumerate(json.loads(session.get_modelmeta().custom_metadata_map["words"]))}
    for texts in (["a red dog", "", "there is one zebra here over there"], ["blue"]):
        ids, offsets = encode(texts, words, model.max_words)
        lengths = np.diff(offsets).astype(np.int32)
        table = np.full((lengths.max() + 2, len(texts)), 1, np.int64)
        for i, (lo, hi) in enumerate(pairwise(offsets.tolist())):
            table[: hi - lo, i] = ids[lo:hi]
        found = session.run(["vectors"], {"ids": table, "lengths": lengths})[0]
        np.testing.assert_allclose(found, model.embed_captions(texts), rtol=1e-4, atol=1e-6)
    if model.loss == "mse":
        with pytest.raises(ValueError, match="no tower 'images'"):
            model.save_onnx(tmp_path / "images.onnx", "images")
        return
    model.save_onnx(tmp_path / "images.onnx", "images")
    session = runtime.InferenceSession(tmp_path / "images.onnx")
    found = session.run(["vectors"], {"rows": images.matrix})[0]
    np.testing.assert_allclose(found, model.vectors_.matrix, rtol=1e-4, atol=1e-6)


# ---- a page of results --------------------------------------------------------------------------------------------


def test_a_page_shows_results_with_their_pictures(tmp_path):
    folder = tmp_path / "all pictures"
    folder.mkdir()
    (folder / "a&b.webp").write_bytes(b"picture one")
    (folder / "c.jpg").write_bytes(b"picture two")
    found = {"<script>dogs</script>": [("a&b", 0.5), ("c.jpg", 0.25)]}
    page = tmp_path / "page.html"
    write_page(page, found, {"c.jpg": [("a <b>dog</b>", 0.75)]}, folder=folder)
    text = page.read_text()
    assert "&lt;script&gt;dogs&lt;/script&gt;" in text
    assert "<script" not in text
    assert "a &lt;b&gt;dog" in text
    assert f"data:image/webp;base64,{base64.b64encode(b'picture one').decode()}" in text
    assert text.count("data:image/jpeg;base64,") == 2
    assert text.count("<img") == 3
    assert 'alt="a&amp;b"' in text
    write_page(page, found, folder=folder, embed=False)
    assert 'src="all%20pictures/a%26b.webp"' in page.read_text()
    write_page(page, found)
    assert "<img" not in page.read_text()
    with pytest.raises(FileNotFoundError, match="no such image"):
        write_page(page, {"x": [("nobody.jpg", 1.0)]}, folder=folder)
    with pytest.raises(ValueError, match="leads out of"):
        write_page(page, {"x": [("../page.html", 1.0)]}, folder=folder)


# ---- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dim": 0}, "dim must be a whole number from 1"),
        ({"text": "cnn"}, "text must be one of 'gru'"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"optimizer": "adamm"}, "optimizer: expected one of torch.optim"),
        ({"optimizer": "lbfgs"}, "optimizer: expected one of torch.optim"),
        ({"margin": -1.0}, "margin must be"),
        ({"batch": 1}, "batch must be a whole number from 2"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"loss": "infonce", "similarity": "order"}, "infonce"),
        ({"bidirectional": 1}, "bidirectional must be True or False"),
        ({"lr": 0}, "lr must be"),
        ({"device": "abacus"}, "device: "),
    ],
)
def test_settings_are_checked(settings, says):
    images, captions = world()
    with pytest.raises(ValueError, match=says):
        Multimodal(**{**SMALL, **settings}).fit(images, captions)


def test_an_unknown_image_is_an_error_or_is_skipped():
    images, captions = world()
    few = Vectors(images.keys[1:], images.matrix[1:])
    with pytest.raises(ValueError, match=r"1 images with captions have no vector, the first '.*\.jpg'"):
        Multimodal(**SMALL).fit(few, captions.part("train"))
    model = Multimodal(**SMALL).fit(few, captions.part("train"), missing="skip")
    assert model.counts_[0] == 4 * 24  # vocabulary is taken of all texts that came
    with pytest.raises(ValueError, match="no image of any of those images"):
        Multimodal(**SMALL).fit(Vectors(["other"], np.ones((1, 20), np.float32)), captions, missing="skip")


def test_an_image_without_captions_is_only_a_candidate():
    images, captions = world()
    lonely = Captions([*captions.images, "lonely.jpg"], captions.owners, captions.texts, [*captions.splits, "dev"])
    more = Vectors([*images.keys, "lonely.jpg"], np.concatenate([images.matrix, images.matrix[:1]]))
    model = Multimodal(**SMALL).fit(more, lonely)
    found = model.evaluate(more, lonely.part("dev"))
    assert (found.captions.queries, found.images.queries) == (6, 24)
    unseen = Multimodal(**SMALL).fit(images, lonely)  # without a vector it is left out
    assert unseen.evaluate(images, lonely.part("dev")).captions.queries == 6


def test_a_vector_that_is_not_finite_is_named():
    images, captions = world()
    broken = images.matrix.copy()
    broken[3, 5] = np.nan
    with pytest.raises(ValueError, match=f"images: the vector of '{images.keys[3]}' has a number that is not finite"):
        Multimodal(**SMALL).fit(Vectors(images.keys, broken), captions)


def test_other_mistakes():
    images, captions = world()
    with pytest.raises(TypeError, match="expected Captions or Linked rows, got list"):
        Multimodal().fit(images, ["a dog"])
    with pytest.raises(ValueError, match="not trained yet"):
        Multimodal().search_images("a dog")
    with pytest.raises(ValueError, match="resume=True needs checkpoint="):
        Multimodal().fit(images, captions, resume=True)
    sounds = Linked(Vectors(["s"], np.ones((1, 3), np.float32)), [images.keys[0]])
    with pytest.raises(ValueError, match="has no row of image"):
        Multimodal(**SMALL).fit(images, captions, others={"sounds": sounds})
    model = Multimodal(**SMALL).fit(images, captions)
    with pytest.raises(ValueError, match="expected vectors of 20 numbers, as in fit, got 3"):
        model.embed_images(np.ones((2, 3), np.float32))


def test_settings_are_json_and_clone(tmp_path):
    sklearn = pytest.importorskip("sklearn.base")
    model = Multimodal(dim=3, margin=0.1)
    assert sklearn.clone(model).get_params() == model.get_params()
    assert json.loads(json.dumps(model.get_params())) == model.get_params()


# ---- the program --------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Images as vectors, captions as lines, the last six images "test" and those before them "dev"."""
    images, captions = world()
    images.save(tmp_path / "images.npz")
    split = dict(zip(images.keys, ["train"] * 20 + ["dev"] * 4 + ["test"] * 6, strict=True))
    lines = [
        f"{captions.images[i]}\t{text}\t{split[captions.images[i]]}\n"
        for i, text in zip(captions.owners, captions.texts, strict=True)
    ]
    (tmp_path / "captions.tsv").write_text("".join(lines))
    return tmp_path


def program(*arguments, code=0):
    result = CliRunner().invoke(cli.app, ["multimodal", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_program_trains_searches_and_evaluates(files):
    small = ["--dim", "16", "--word-dim", "12", "--batch", "16", "--lr", "0.01", "--epochs", "20"]
    model = files / "model.safetensors"
    trained = program("train", files / "images.npz", files / "captions.tsv", "-o", model, *small, "--json")
    result = json.loads(trained.stdout)
    assert len(result["loss"]) == len(result["validation"]) == 20
    assert result["test"]["images"]["queries"] == 24
    assert result["test"]["images"]["r1"] > 0.6
    evaluated = program("evaluate", model, files / "images.npz", files / "captions.tsv", "--part", "test", "--json")
    assert json.loads(evaluated.stdout) == result["test"]
    assert "median" in program("evaluate", model, files / "images.npz", files / "captions.tsv").stdout

    found = json.loads(program("search", model, "a green boat", "--image", "red-dog.jpg", "-k", "3", "--json").stdout)
    assert "green-boat.jpg" in [key for key, _ in found["images"]["a green boat"]]
    assert "red dog" in found["captions"]["red-dog.jpg"][0][0]
    folder = files / "pictures"
    folder.mkdir()
    for key in Multimodal.load(model).vectors_.keys:
        (folder / key).write_bytes(b"picture")
    program("search", model, "a green boat", "--html", files / "page.html", "--folder", folder, "--link", "-k", "2")
    assert 'src="pictures/' in (files / "page.html").read_text()
    asked = CliRunner().invoke(cli.app, ["multimodal", "search", str(model)], input="a green boat\n\n")
    assert "green-boat.jpg" in asked.stdout
    neighbours = CliRunner().invoke(cli.app, ["neighbors", str(model), "red-dog.jpg", "--json"])
    assert len(json.loads(neighbours.stdout)["red-dog.jpg"]) == 10


def test_the_program_resumes_and_says_what_is_wrong(files):
    small = ["--dim", "8", "--word-dim", "6", "--batch", "16", "--epochs", "2"]
    where = [files / "images.npz", files / "captions.tsv", "-o", files / "model.safetensors"]
    program("train", *where, *small, "--checkpoint", files / "run.safetensors")
    again = program("train", *where, *small, "--checkpoint", files / "run.safetensors", "--resume")
    assert "best epoch" in again.stderr
    assert "R@10" in again.stdout
    for arguments, says in (
        (["train", *where, "--split", "train"], "expected NAME=FILE"),
        (["train", *where, "--loss", "hinge"], "loss must be one of"),
        (["train", *where, "--resume"], "--resume needs --checkpoint"),
        (["train", files / "images.npz", files / "nobody.tsv", "-o", files / "m"], "nobody.tsv: No such file"),
        (["search", files / "images.npz", "dog"], "images.npz"),
        (["search", files / "model.safetensors", "--image", "nobody"], "'nobody' is not among"),
        (["search", files / "model.safetensors", "--html", files / "x.html"], "--html needs texts"),
    ):
        failed = program(*arguments, code=2)
        assert says in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
