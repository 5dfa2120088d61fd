"""Multimodal: training, several processes, other modalities, invalid arguments."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from multimodal_problems import SMALL, assert_same, weights, world

torch = pytest.importorskip("torch")

from embfast.documents.doc2vec import Doc2Vec
from embfast.errors import TrainingError
from embfast.files.tensors import TensorFile
from embfast.files.ternary import TernaryMatrix
from embfast.multimodal import search
from embfast.multimodal.captions import Captions, Linked, encode
from embfast.multimodal.examples import Examples, Words
from embfast.multimodal.model import Multimodal
from embfast.vectors.vectors import Vectors


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    """Retrieves six unseen combinations of colours and things; chance finds one in six."""
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
    torch.rand(3)  # fit neither reads nor changes the state of torch's global generator
    before = torch.random.get_rng_state()
    again = Multimodal(**SMALL, dropout=0.2).fit(images, captions)
    assert (torch.random.get_rng_state() == before).all()
    assert_same(weights(first), weights(again))
    assert first.loss_ == again.loss_
    other = Multimodal(**SMALL, dropout=0.2, seed=1).fit(images, captions)
    assert other.loss_ != first.loss_


def test_every_bit_of_the_seed_counts():
    """torch's generator on the CPU reads 32 bits of a seed."""
    images, captions = world()
    settings = {**SMALL, "epochs": 1, "lr": 1e-30, "optimizer": "sgd"}  # the first weights, unchanged
    first = [weights(Multimodal(**settings, seed=seed).fit(images, captions)) for seed in (0, 2**32, 2**63, 2**64 - 2)]
    tables = {found["captions.words.weight"].tobytes() for found in first}
    assert len(tables) == len(first)


def test_threads_are_set_while_fitting_and_restored(tmp_path):
    images, captions = world()
    seen = set()
    model = Multimodal(**SMALL, threads=2).fit(images, captions, progress=lambda s: seen.add(torch.get_num_threads()))
    assert seen == {2}
    assert torch.get_num_threads() == 1
    model.set_params(threads=None)
    model.partial_fit(images, captions, progress=lambda s: seen.add(torch.get_num_threads()))
    assert seen == {1, 2}
    run = stopped(tmp_path / "c.safetensors")
    Multimodal(**SMALL, threads=2).fit(images, captions, **run)  # threads may differ from the checkpoint's
    assert torch.get_num_threads() == 1


class _Stop(Exception):
    pass


@pytest.mark.parametrize("settings", [{}, {"optimizer": "rmsprop", "loss": "max"}], ids=["adam", "rmsprop-max"])
def test_a_resumed_run_has_the_bits_of_one_without_a_break(tmp_path, settings):
    """The run stops in the middle of the second epoch, after the first validation, with dropout."""
    images, captions = world()
    settings = {**SMALL, "dropout": 0.3, "lr_drop": 2, **settings}
    whole = Multimodal(**settings).fit(images, captions)
    path = tmp_path / "checkpoint.safetensors"

    def stop(status):
        if status.done > 0.5:
            raise _Stop

    with pytest.raises(_Stop):
        Multimodal(**settings).fit(images, captions, checkpoint=path, checkpoint_minutes=0, progress=stop)
    with TensorFile(path) as file:
        progress = file.json("progress")
    assert 0 < progress["epoch"] < 3
    assert progress["block"] > 0
    torch.rand(3)
    resumed = Multimodal(**settings).fit(images, captions, checkpoint=path, resume=True)
    assert_same(weights(resumed), weights(whole))
    assert resumed.loss_ == whole.loss_
    assert resumed.validation_ == whole.validation_
    np.testing.assert_array_equal(resumed.vectors_.matrix, whole.vectors_.matrix)
    again = Multimodal(**settings).fit(images, captions, checkpoint=path, resume=True)  # the run is complete
    assert_same(weights(again), weights(whole))


def test_resume_refuses_other_settings_and_other_data(tmp_path):
    images, captions = world()
    path = tmp_path / "checkpoint.safetensors"
    Multimodal(**SMALL).fit(images, captions, checkpoint=path)
    with pytest.raises(ValueError, match=r"lr was 0\.01, is 0\.02"):
        Multimodal(**{**SMALL, "lr": 0.02}).fit(images, captions, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="images_crc was"):
        Multimodal(**SMALL).fit(Vectors(images.keys, images.matrix + 1), captions, checkpoint=path, resume=True)


def stopped(path, **given):
    """Writes the checkpoint of a run stopped halfway; returns the arguments that resume it."""

    def stop(status):
        if status.done > 0.4:
            raise _Stop

    with pytest.raises(_Stop):
        Multimodal(**SMALL).fit(*world(), **given, checkpoint=path, checkpoint_minutes=0, progress=stop)
    return {"checkpoint": path, "resume": True}


def sounds(images, dim, seed=0):
    """A second modality: one random row per image."""
    rows = np.random.default_rng(seed).normal(size=(len(images), dim)).astype(np.float32)
    return Linked(Vectors([f"{key}.wav" for key in images.keys], rows), list(images.keys))


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ((5, 0), None, "sounds_crc was|kinds"),
        ((5, 0), (5, 1), "sounds_crc was"),
        ((5, 0), (7, 0), "sounds_crc was"),
        (None, (5, 0), "sounds_crc was None"),
    ],
    ids=["left out", "other rows", "other dim", "new"],
)
def test_resume_refuses_other_modalities(tmp_path, before, after, says):
    images, captions = world()
    given = [{} if how is None else {"others": {"sounds": sounds(images, *how)}} for how in (before, after)]
    run = stopped(tmp_path / "c.safetensors", **given[0])
    Multimodal(**SMALL).fit(images, captions, **given[0], **run)  # the same data resume
    run = stopped(tmp_path / "c.safetensors", **given[0])
    with pytest.raises(ValueError, match=r"other settings|another corpus|checkpoint") as refused:
        Multimodal(**SMALL).fit(images, captions, **given[1], **run)
    if after is not None:
        assert re.search(says, str(refused.value))


def test_resume_refuses_other_word_vectors(tmp_path):
    images, captions = world()
    words = sorted({word for text in captions.texts for word in text.split()})
    run = stopped(tmp_path / "c.safetensors")
    vectors = Vectors(words, np.eye(len(words), 12, dtype=np.float32))
    with pytest.raises(ValueError, match="word_vectors_crc was None"):
        Multimodal(**SMALL).fit(images, captions, word_vectors=vectors, **run)


def test_a_refused_fit_keeps_what_was_learned():
    images, captions = world()
    model = Multimodal(**SMALL).fit(images, captions)
    words, before = list(model.words_), weights(model)
    with pytest.raises(ValueError, match="have no vector"):
        model.fit(images, Captions.from_pairs([(images.keys[0], "x"), ("nowhere", "y")]))
    assert model.words_ == words
    assert_same(weights(model), before)
    assert model.search_images("red", k=1)


def test_a_model_trained_on_cuda_loads_without_cuda(tmp_path, monkeypatch):
    """torch.device settings become strings; a model trained on CUDA loads without CUDA."""
    images, captions = world()
    model = Multimodal(**SMALL, device=torch.device("cpu")).fit(images, captions, checkpoint=tmp_path / "c.safetensors")
    assert model.device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model.set_params(device=torch.device("cuda")).save(tmp_path / "m.safetensors")
    loaded = Multimodal.load(tmp_path / "m.safetensors")
    assert loaded.device == "cuda"
    assert loaded.search_images("red") == model.search_images("red")
    with pytest.raises(ValueError, match="no CUDA device here"):
        loaded.partial_fit(images, captions)
    loaded.set_params(device="cpu").partial_fit(images, captions)
    assert loaded.device_ == "cpu"
    assert len(loaded.loss_) == 6


def test_auto_takes_the_cpu_without_cuda_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    images, captions = world()
    model = Multimodal(**SMALL, device="auto").fit(images, captions)
    assert capsys.readouterr().err.startswith('device="auto": cpu')
    assert_same(weights(model), weights(Multimodal(**SMALL).fit(images, captions)))
    model.save(tmp_path / "m.safetensors")
    assert Multimodal.load(tmp_path / "m.safetensors").device == "auto"
    Multimodal(**SMALL, device="auto").fit(images, captions, progress=False)
    assert capsys.readouterr().err == ""


def test_a_checkpoint_holds_no_images_to_search(tmp_path):
    stopped(tmp_path / "c.safetensors")
    model = Multimodal.load(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"no images to search: add some with index\(images\)"):
        model.search_images("red")
    assert model.index(world()[0]).search_images("red", k=2)


def test_inputs_of_the_wrong_type_are_named_in_the_error():
    images, captions = world()
    model = Multimodal(**SMALL).fit(images, captions)
    with pytest.raises(TypeError, match="images: expected Vectors or an array, got Tensor"):
        model.embed_images(torch.eye(6))
    with pytest.raises(TypeError, match="type str, got None"):
        model.embed_captions(["red", None])
    texts = ["a red one", "a green one"]
    assert {text for text, _ in model.search_captions(images.keys[0], captions=texts)} == set(texts)


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
    assert len(Multimodal.load(path).loss_) == 1
    assert len(model.vectors_) == len(images)


def test_the_best_epoch_is_kept(monkeypatch):
    """With preset scores the second epoch is the best, and two more do not improve on it."""
    images, captions = world()
    given = iter([100, 300, 200, 250, 400])
    monkeypatch.setattr(search, "retrieval", lambda *arrays: SimpleNamespace(recall_sum=next(given)))
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
    """Warm-up epochs have the bits of a run with loss="sum"."""
    images, captions = world()
    warm = Multimodal(**{**SMALL, "loss": "max", "warmup": 2}).fit(images, captions)
    plain = Multimodal(**SMALL).fit(images, captions)
    assert warm.loss_[:2] == plain.loss_[:2]
    assert warm.loss_[2] < plain.loss_[2]


def test_warns_when_embeddings_collapse():
    """With equal images, the loss of the hardest negative is smallest if all embeddings coincide."""
    images, captions = world()
    same = Vectors(images.keys, np.ones_like(images.matrix))
    with pytest.warns(RuntimeWarning, match="collapsed into one point; more epochs of warmup"):
        Multimodal(**{**SMALL, "epochs": 12, "loss": "max", "warmup": 0}).fit(same, captions.part("train"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Multimodal(**{**SMALL, "epochs": 12, "loss": "max"}).fit(images, captions.part("train"))


def test_gradients_are_clipped():
    """An SGD step is lr times the gradient, whose norm over all weights is at most clip."""
    images, captions = world()
    settings = {**SMALL, "epochs": 1, "optimizer": "sgd", "lr": 1.0, "clip": 0.5, "batch": 200, "bucketed": False}
    moved = weights(Multimodal(**settings).fit(images, captions.part("train")))
    first = weights(Multimodal(**{**settings, "lr": 1e-30}).fit(images, captions.part("train")))
    length = math.sqrt(sum(float(np.square(moved[n] - w, dtype=np.float64).sum()) for n, w in first.items()))
    assert length == pytest.approx(0.5, rel=1e-4)


def test_a_diverging_run_is_an_error():
    images, captions = world()
    settings = {**SMALL, "optimizer": "sgd", "lr": 100.0, "clip": 0, "loss": "mse", "text": "mean", "hidden": 8}
    with pytest.raises(TrainingError, match=r"the loss became|stopped being finite"):
        Multimodal(**{**settings, "epochs": 50}).fit(images, captions.part("train"))


def word_ids(texts):
    """Texts encoded as Multimodal does it, with an empty vocabulary."""
    return Words(*encode(texts, {}, 100))


def test_batches_hold_each_caption_once_and_like_lengths():
    images, captions = world()
    captions = captions.part("train")
    data = Examples(images, captions, {}, "error", word_ids)
    settings = {"seed": 0, "batch": 10, "bucketed": True, "distinct_images": False}
    plan = data.plan(0, **settings)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(captions)))
    assert {len(batch) for batch in plan} == {9, 10}
    lengths = data.sides["captions"].lengths
    spread = [int(lengths[batch].max() - lengths[batch].min()) for batch in plan]
    loose = data.plan(0, **{**settings, "bucketed": False})
    assert sum(spread) < sum(int(lengths[batch].max() - lengths[batch].min()) for batch in loose) / 2
    again, other = data.plan(0, **settings), data.plan(1, **settings)
    assert all((a == b).all() for a, b in zip(plan, again, strict=True))
    assert any((a != b).any() for a, b in zip(plan, other, strict=True))
    assert [len(a) for a in plan] == [len(b) for b in other]


def test_distinct_images_never_share_a_batch():
    images, captions = world()
    uneven = Captions.joined([captions, Captions.from_pairs([(images.keys[0], "one more", captions.splits[0])])])
    data = Examples(images, uneven, {}, "error", word_ids)
    plan = data.plan(3, seed=0, batch=10, bucketed=True, distinct_images=True)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(uneven)))
    for batch in plan:
        assert len(set(uneven.owners[batch].tolist())) == len(batch)


def test_captions_of_one_image_are_no_negatives():
    """One image with several captions yields no negatives to train on."""
    images, captions = world()
    with pytest.raises(ValueError, match="at least two images, to tell them apart"):
        Multimodal(**SMALL).fit(images, captions.of_images([images.keys[0]]))


def test_images_of_other_splits_are_not_trained_on():
    """Without a split "train", images in no split are trained on, and those of "dev" still validate."""
    images, captions = world()
    renamed = Captions(captions.images, captions.owners, captions.texts, ["test"] * 6 + [""] * 18 + ["dev"] * 6)
    model = Multimodal(**SMALL).fit(images, renamed)
    assert len(model.validation_) == SMALL["epochs"]
    assert model.counts_[2:].sum() == sum(
        len(text.split()) - text.count("!") - text.count(".")
        for text in Captions(captions.images, captions.owners, captions.texts, renamed.splits).part("").texts
    )
    renamed.splits = ["test"] * 12 + ["held out"] * 18
    with pytest.raises(ValueError, match="no image is in the split 'train'; splits are 'held out', 'test'"):
        Multimodal(**SMALL).fit(images, renamed)


def test_missing_skip_works_in_fit_and_evaluate():
    images, captions = world()
    known = Vectors(images.keys[1:-1], images.matrix[1:-1])  # one image of "train" and one of "dev" lack a vector
    with pytest.raises(ValueError, match='missing="skip" drops'):
        Multimodal(**SMALL).fit(known, captions)
    model = Multimodal(**SMALL).fit(known, captions, missing="skip")
    assert model.validation_[0].captions.queries == 5
    assert model.evaluate(known, captions.part("dev"), missing="skip").captions.queries == 5


def test_settings_may_be_numpy_scalars(tmp_path):
    images, captions = world()
    plain_settings = {**SMALL, "loss": "topk", "k": 3, "hidden": 0, "seed": 5}
    settings = {name: np.int64(v) if isinstance(v, int) else v for name, v in plain_settings.items()}
    model = Multimodal(**settings).fit(images, captions)
    assert_same(weights(model), weights(Multimodal(**plain_settings).fit(images, captions)))
    model.save(tmp_path / "model.safetensors")
    assert Multimodal.load(tmp_path / "model.safetensors").k == 3


@pytest.mark.parametrize("changed", [{"dim": 8}, {"hidden": 9}, {"pooling": "mean"}, {"loss": "mse"}], ids=str)
def test_settings_that_shape_a_trained_model_stay(tmp_path, changed):
    images, captions = world()
    model = Multimodal(**SMALL).fit(images, captions).set_params(**changed)
    name = next(iter(changed))
    with pytest.raises(ValueError, match=f"{name} must stay"):
        model.partial_fit(images, captions)
    with pytest.raises(ValueError, match=f"{name} must stay"):
        model.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


# ---- several processes --------------------------------------------------------------------------------------------

WORKER = """
import sys
import numpy as np, torch, torch.distributed as dist
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/support"]
from multimodal_problems import weights, world
from embfast.multimodal.model import Multimodal
torch.set_num_threads(1)
rank, output, settings = int(sys.argv[2]), sys.argv[3], eval(sys.argv[5])
dist.init_process_group("gloo", init_method="file://" + sys.argv[4], rank=rank, world_size=2)
images, captions = world()
model = Multimodal(**settings).fit(images, captions.part("train"))
np.savez(f"{output}-{rank}.npz", loss=model.loss_, **weights(model))
dist.destroy_process_group()
"""


def test_two_processes_give_the_weights_of_one(tmp_path):
    """With halved batches, gathered negatives and summed gradients, loss and weights agree up to rounding."""
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


def test_linked_rows_replace_captions():
    """As in SPEECH-COCO, the second modality is vectors, several per image."""
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
    with pytest.raises(ValueError, match="no captions to search"):
        model.search_captions(images.keys[0])


def test_three_modalities_share_one_space():
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
    with pytest.raises(ValueError, match="need each other"):
        Multimodal(text="doc2vec").fit(images, captions)
    model = Multimodal(**{**SMALL, "text": "doc2vec", "epochs": 15}).fit(images, captions, document_model=document)
    assert model.evaluate(images, captions.part("train")).images.r5 > 0.5


def test_ternary_rows_are_dequantised_on_the_fly():
    images, captions = world()
    signs = np.sign(images.matrix).astype(np.int8)
    narrow = Multimodal(**SMALL).fit(Vectors(images.keys, TernaryMatrix.from_rows(signs)), captions)
    wide = Multimodal(**SMALL).fit(Vectors(images.keys, signs.astype(np.float32)), captions)
    assert_same(weights(narrow), weights(wide))


def test_word_vectors_initialise_the_tower_and_may_stay_frozen():
    images, captions = world()
    given = Vectors(["dog", "cat", "nothing"], np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32))
    model = Multimodal(**SMALL, tune_words=False).fit(images, captions, word_vectors=given)
    table = weights(model)["captions.words.weight"]
    for word in ("dog", "cat"):
        np.testing.assert_array_equal(table[model.words_.index(word)], given[word])
    tuned = Multimodal(**SMALL).fit(images, captions, word_vectors=given)
    assert (weights(tuned)["captions.words.weight"][tuned.words_.index("dog")] != given["dog"]).any()
    with pytest.raises(ValueError, match="contain no word of the captions"):
        Multimodal(**SMALL).fit(images, captions, word_vectors=Vectors(["Dog"], np.ones((1, 12), np.float32)))
    document = Doc2Vec(mode="dbow", dim=4, min_count=1).fit([text.lower().split() for text in captions.texts])
    with pytest.raises(ValueError, match="has no word vectors"):
        Multimodal(**SMALL, text="doc2vec").fit(images, captions, word_vectors=given, document_model=document)


# ---- invalid arguments --------------------------------------------------------------------------------------------


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
        ({"device": "abacus"}, "device must be"),
        ({"device": None}, "device must be"),
        ({"device": "cuda"}, "no CUDA device here"),
        ({"threads": 0}, "threads must be a whole number from 1"),
    ],
)
def test_settings_are_checked(settings, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    images, captions = world()
    with pytest.raises(ValueError, match=says):
        Multimodal(**{**SMALL, **settings}).fit(images, captions)


def test_a_caption_of_an_unknown_image_is_an_error_or_skipped():
    images, captions = world()
    few = Vectors(images.keys[1:], images.matrix[1:])
    with pytest.raises(ValueError, match=r"1 images with captions have no vector, the first '.*\.jpg'"):
        Multimodal(**SMALL).fit(few, captions.part("train"))
    model = Multimodal(**SMALL).fit(few, captions.part("train"), missing="skip")
    assert model.counts_[0] == 4 * 24  # the vocabulary comes from all training captions
    with pytest.raises(ValueError, match="no image has any of these keys"):
        Multimodal(**SMALL).fit(Vectors(["other"], np.ones((1, 20), np.float32)), captions, missing="skip")


def test_an_image_without_captions_is_only_a_candidate():
    images, captions = world()
    lonely = Captions([*captions.images, "lonely.jpg"], captions.owners, captions.texts, [*captions.splits, "dev"])
    more = Vectors([*images.keys, "lonely.jpg"], np.concatenate([images.matrix, images.matrix[:1]]))
    model = Multimodal(**SMALL).fit(more, lonely)
    found = model.evaluate(more, lonely.part("dev"))
    assert (found.captions.queries, found.images.queries) == (6, 24)
    unseen = Multimodal(**SMALL).fit(images, lonely)  # an image without captions and vector is ignored
    assert unseen.evaluate(images, lonely.part("dev")).captions.queries == 6


def test_a_vector_that_is_not_finite_is_named():
    images, captions = world()
    broken = images.matrix.copy()
    broken[3, 5] = np.nan
    with pytest.raises(ValueError, match=f"images: the vector of '{images.keys[3]}' is not finite"):
        Multimodal(**SMALL).fit(Vectors(images.keys, broken), captions)


def test_other_invalid_arguments():
    images, captions = world()
    with pytest.raises(TypeError, match="expected Captions or Linked rows, got list"):
        Multimodal().fit(images, ["a dog"])
    with pytest.raises(ValueError, match="not trained yet"):
        Multimodal().search_images("a dog")
    with pytest.raises(ValueError, match="resume=True needs checkpoint="):
        Multimodal().fit(images, captions, resume=True)
    sounds = Linked(Vectors(["s"], np.ones((1, 3), np.float32)), [images.keys[0]])
    with pytest.raises(ValueError, match="has no row for image"):
        Multimodal(**SMALL).fit(images, captions, others={"sounds": sounds})
    model = Multimodal(**SMALL).fit(images, captions)
    with pytest.raises(ValueError, match="expected vectors of size 20, as in fit, got 3"):
        model.embed_images(np.ones((2, 3), np.float32))


def test_settings_are_json_and_clone(tmp_path):
    sklearn = pytest.importorskip("sklearn.base")
    model = Multimodal(dim=3, margin=0.1)
    assert sklearn.clone(model).get_params() == model.get_params()
    assert json.loads(json.dumps(model.get_params())) == model.get_params()
