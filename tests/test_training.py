"""Blocks, first weights, the loop, model files: what every model shares."""

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import saved
from numpy.testing import assert_allclose, assert_array_equal

from embfast import kernels
from embfast.errors import FormatError, TrainingError
from embfast.files import tensors
from embfast.text.corpus import Corpus
from embfast.training import blocks as blocks_module
from embfast.training import loop as training
from embfast.training import model_file
from embfast.training import threads as threads_module
from embfast.training.blocks import make_blocks
from embfast.training.progress import Progress, Status
from embfast.training.tables import initial_weights
from embfast.training.threads import ThreadTuner
from embfast.words.word2vec import Word2Vec


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


# ---- blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [1, 30, 900, 5_000, 40_000])
def test_blocks_cover_the_tokens_and_end_with_documents_where_they_can(longest):
    offsets = offsets_of(np.random.default_rng(longest).integers(0, longest + 1, size=2_000_000 // (longest + 1)))
    blocks = make_blocks(offsets)
    assert blocks.dtype == np.int64
    assert blocks[0] == 0
    assert blocks[-1] == offsets[-1]
    sizes = np.diff(blocks)
    assert sizes.min() > 0
    assert sizes.max() <= blocks_module.BLOCK + 2 * blocks_module.SNAP
    ends = np.isin(blocks, offsets)
    for cut in blocks[~ends]:  # a cut inside a document, only where no edge was near
        assert np.abs(offsets - cut).min() > blocks_module.SNAP
    if longest <= blocks_module.SNAP:
        assert ends.all()


def test_blocks_of_mapped_offsets_equal_those_in_memory(tmp_path):
    offsets = offsets_of(np.full(5_000, 17))
    np.save(tmp_path / "offsets.npy", offsets)
    assert_array_equal(make_blocks(np.load(tmp_path / "offsets.npy", mmap_mode="r")), make_blocks(offsets))


def test_blocks_of_little_text():
    assert make_blocks(np.array([0, 1], np.int64)).tolist() == [0, 1]
    assert make_blocks(np.array([0, 4096], np.int64)).tolist() == [0, 4096]
    assert make_blocks(np.array([0, 0, 5000, 5000], np.int64)).tolist() == [0, 5000]


def test_slices_grow_with_threads_and_shrink_with_dim():
    assert blocks_module.blocks_per_slice(100, 5, 2) >= 2 * blocks_module.blocks_per_slice(100, 5, 1)
    assert blocks_module.blocks_per_slice(300, 5, 1) < blocks_module.blocks_per_slice(100, 5, 1)
    assert blocks_module.blocks_per_slice(100_000, 1000, 1) == 1


# ---- first weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 7, 16, 100])
def test_a_row_depends_on_seed_and_number_alone(dim):
    table, grown = kernels.weight_table(5_000, dim), kernels.weight_table(2_000, dim)
    initial_weights(table, dim, seed=3)
    initial_weights(grown, dim, seed=3, first=3_000)
    assert_array_equal(table[3_000:], grown)
    assert not table[:, dim:].any()


def test_first_weights_are_uniform_and_change_with_the_seed():
    dim = 48
    table, other = kernels.weight_table(10_000, dim), kernels.weight_table(10_000, dim)
    initial_weights(table, dim, seed=0)
    initial_weights(other, dim, seed=2**64 - 1)
    scaled = table[:, :dim].astype(np.float64) * dim
    assert abs(scaled).max() <= 0.5
    counts = np.histogram(scaled, bins=20, range=(-0.5, 0.5))[0]
    expected = scaled.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 45.3  # chi-square with 19 degrees of freedom, p = 0.0006
    wide = kernels.weight_table(10_000, dim)
    initial_weights(wide, dim, seed=0, reach=3.0)
    assert_allclose(wide[:, :dim] * dim, 6.0 * scaled, atol=1e-6)
    assert abs(np.corrcoef(scaled.ravel(), other[:, :dim].ravel())[0, 1]) < 0.01
    assert len(np.unique(table[:, 0])) > 9_900


# ---- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_ids_already_read_leave_memory_and_read_the_same_again(tmp_path):
    ids = np.arange(8_000_000, dtype=np.int32)
    np.save(tmp_path / "ids.npy", ids)
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")

    def resident():
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    total = int(mapped.sum(dtype=np.int64))
    before = resident()
    blocks_module.forget_read(mapped, 1_000, 7_999_000)
    assert before - resident() > 25e6  # of 32 MB
    assert int(mapped.sum(dtype=np.int64)) == total
    blocks_module.forget_read(mapped, 5, 6)  # less than a page
    blocks_module.forget_read(ids, 0, len(ids))  # not mapped


def test_private_changes_of_a_mapped_array_are_kept(tmp_path):
    np.save(tmp_path / "ids.npy", np.zeros(100_000, np.int32))
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="c")
    mapped[:] = 7
    blocks_module.forget_read(mapped, 0, len(mapped))
    assert (mapped == 7).all()


# ---- the loop -----------------------------------------------------------------------------------------------------


def run(step, state=None, blocks=10, **options):
    settings = {"epochs": 2, "per_slice": 3, "lr": 0.1, "min_lr": 0.0, "after_slice": lambda begin, end: None}
    state = state or Progress()
    training.train(step, np.arange(blocks + 1, dtype=np.int64) * 10, state, **{**settings, **options})
    return state


def test_the_loop_visits_every_block_once_an_epoch_and_averages_the_loss():
    seen, told, forgotten = [], [], []

    def step(epoch, first, last):
        seen.append((epoch, first, last))
        return float(last - first) * (epoch + 1), 2 * (last - first), 0

    state = run(step, progress=told.append, after_slice=lambda *edges: forgotten.append(edges))
    assert seen == [(e, *edges) for e in (0, 1) for edges in ((0, 3), (3, 6), (6, 9), (9, 10))]
    assert state == Progress(epoch=2, losses=[0.5, 1.0])
    assert forgotten[:4] == [(0, 30), (30, 60), (60, 90), (90, 100)]
    assert all(isinstance(status, Status) for status in told)
    assert [round(status.done, 3) for status in told] == [0.15, 0.3, 0.45, 0.5, 0.65, 0.8, 0.95, 1.0]
    assert told[0].lr == pytest.approx(0.085)
    assert told[-1].lr == 0
    assert (told[-1].loss, told[-1].epoch, told[-1].epochs, told[-1].seconds_left) == (1.0, 2, 2, 0)


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many cores, whose clock runs as a step says that works at a rate for each number of threads."""

    def make(cores, rates, slices):
        now, taken = [0.0], []
        monkeypatch.setattr(threads_module, "cores", lambda: cores)
        monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
        threads = ThreadTuner(None)

        def step(epoch, first, last):
            n = threads.now
            taken.append((epoch, first, last, n))
            now[0] += (last - first) * 10 / rates(n, len(taken))
            return 1.0, 1, 1

        run(step, epochs=1, per_slice=4, blocks=4 * slices, threads=threads)
        assert [edges[1] for edges in taken] == [0, *(edges[2] for edges in taken[:-1])]  # each block once, in order
        assert taken[-1][2] == 4 * slices
        return taken

    return make


@pytest.mark.parametrize(
    ("cores", "best"), [(2, 1), (2, 2), (8, 8), (8, 4), (8, 1), (6, 3), (5, 5), (96, 24)]
)  # fmt: skip
def test_a_run_takes_as_many_threads_as_pay(machine, cores, best):
    taken = machine(cores, lambda n, _: 100 * min(n, best) * (best / n) ** 0.5, 60)
    assert taken[0][3] == cores
    assert {n for *_, n in taken[24:]} == {best}
    assert sum(last - first for _, first, last, n in taken if n != best) < 0.1 * 240


def test_progress_tells_where_not_all_threads_are_taken():
    status = Status(1, 5, 0.1, 12345.6, 0.025, 2.5, 9.0)
    assert "12,346 words/s  lr" in str(status)
    assert "12,346 words/s (1 thread)  lr" in str(status._replace(threads=1))
    assert status._replace(threads=3, unit="entries").speed == "12,346 entries/s (3 threads)"


def test_slices_that_are_disturbed_do_not_decide(machine):
    taken = machine(4, lambda n, i: 100 * n / (1 if i % 3 == 0 else 5), 60)
    assert {n for *_, n in taken[12:]} == {4}


def test_a_gain_that_may_be_noise_does_not_decide(machine):
    assert {n for *_, n in machine(4, lambda n, _: 104 if n == 2 else 100, 60)[12:]} == {4}


def test_the_number_of_threads_follows_the_machine(machine):
    """First two threads are in each other's way, then no more."""
    taken = machine(2, lambda n, i: 100 / n if i < 40 else 100 * n, 400)
    numbers = [n for *_, n in taken]
    assert {*numbers[12:60]} == {1}
    assert {*numbers[120:200]} == {2}


def test_numbers_are_tried_again_as_soon_as_a_run_slows_down(machine):
    """Long after the start, when it would not look for a while, two threads get in each other's way."""
    taken = machine(2, lambda n, i: 100 * n if i < 250 else 100 / n, 500)
    assert {n for *_, n in taken[220:252]} == {2}
    assert {n for *_, n in taken[262:300]} == {1}


def test_a_machine_that_slows_down_as_a_whole_is_asked_once(machine):
    taken = machine(2, lambda n, i: 100 * n if i < 30 else 20 * n, 120)
    assert [n for *_, n in taken[30:]].count(1) == 2 * threads_module._TURNS
    assert {n for *_, n in taken[45:90]} == {2}


def test_short_runs_and_numbers_that_were_asked_for_are_left_alone(machine):
    assert {n for *_, n in machine(2, lambda n, _: 100 / n, 31)} == {2}
    threads = ThreadTuner(2)
    for _ in range(100):
        threads.tell(1.0)
        assert (threads.now, threads.trying) == (2, False)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_it_is_saved(loss):
    saves = []
    with pytest.raises(TrainingError, match=r"epoch 2 of 2, at lr 0\.035.*lower lr"):
        run(lambda epoch, first, last: (loss if epoch else 1.0, 1, 0), save=lambda: saves.append(1))
    assert not saves


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(TrainingError, match="no window has two words"):
        run(lambda epoch, first, last: (0.0, 0, 0))


def test_checkpoints_come_by_the_clock_and_at_the_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    saves = []

    def step(epoch, first, last):
        now[0] += 25.0
        return 1.0, 1, 0

    state = Progress()
    run(step, state, save=lambda: saves.append((state.epoch, state.block)), save_minutes=1)
    assert saves == [(0, 9), (1, 6), (2, 0)]  # after 75 and 150 of 200 s, and the end


def test_ctrl_c_finishes_the_slice_saves_and_stops():
    saves, state = [], Progress()

    def step(epoch, first, last):
        if (epoch, first) == (1, 3):
            signal.raise_signal(signal.SIGINT)
        return 1.0, 1, 0

    with pytest.raises(KeyboardInterrupt):
        run(step, state, save=lambda: saves.append((state.epoch, state.block)))
    assert saves == [(1, 6)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rest = []
    run(lambda *at: rest.append(at) or (1.0, 1, 0), state)
    assert rest == [(1, 6, 9), (1, 9, 10)]
    assert state.losses == [1.0, 1.0]


def test_a_second_ctrl_c_kills(tmp_path):
    code = """
import signal, numpy as np
from embfast.training.loop import train
from embfast.training.progress import Progress
def step(epoch, first, last):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
train(step, np.array([0, 9]), Progress(), epochs=1, per_slice=1, lr=1.0, min_lr=0.0, after_slice=lambda a, b: None)
"""
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == -signal.SIGINT


def test_the_loop_runs_outside_the_main_thread():
    states = []
    thread = threading.Thread(target=lambda: states.append(run(lambda epoch, first, last: (1.0, 1, 0))))
    thread.start()
    thread.join()
    assert states[0].epoch == 2


def test_progress_is_quiet_in_pipes_and_writes_lines_when_told(capsys):
    run(lambda epoch, first, last: (1.0, 1, 0))
    assert capsys.readouterr().err == ""
    run(lambda epoch, first, last: (1.0, 1, 0), progress=True)
    assert "epoch 2/2  100.0 %" in capsys.readouterr().err


# ---- model files --------------------------------------------------------------------------------------------------


@pytest.fixture
def model():
    corpus = Corpus.from_sentences([["käse", "brot", "käse"], ["New York", "brot"]] * 20)
    return Word2Vec(dim=5, epochs=2, sample=0, hs=True, threads=1, seed=np.uint64(2**63)).fit(corpus)


def test_a_model_comes_back_whole(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    again = Word2Vec.load(path)
    assert again.get_params() == model.get_params()
    assert again.words_ == model.words_
    assert_array_equal(again.counts_, model.counts_)
    assert again.loss_ == model.loss_
    assert_array_equal(again.vectors_.matrix, model.vectors_.matrix)
    again_holds = saved.tensors(again)
    for name, tensor in saved.tensors(model).items():
        assert_array_equal(again_holds[name], tensor, err_msg=name)
    assert os.listdir(tmp_path) == [path.name]


def test_other_readers_of_safetensors_can_open_it(model, tmp_path):
    from safetensors.numpy import load_file

    model.save(tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["w_in"].shape == (3, 5)
    assert_array_equal(tensors["w_in"], model.vectors_.matrix)
    assert_array_equal(tensors["counts"], model.counts_)


def test_a_file_cut_short_anywhere_is_an_error_that_names_it(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    whole = path.read_bytes()
    for size in {0, 1, 7, 8, 100, *range(0, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"model\.safetensors.*(cut short|expected)"):
            Word2Vec.load(path)


def edited(path, change):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def change_settings(header, **changes):
    metadata = header["__metadata__"]
    metadata["settings"] = json.dumps({**json.loads(metadata["settings"]), **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update({"class": "Doc2Vec"}), "expected a Word2Vec, got a Doc2Vec"),
        (lambda h: h["__metadata__"].update(version="99"), "version 1 or older, got 99; update embfast"),
        (lambda h: h["__metadata__"].update(format="other"), "safetensors file of something else"),
        (lambda h: h.pop("__metadata__"), "safetensors file of something else"),
        (lambda h: h["__metadata__"].pop("settings"), "'settings' in the metadata"),
        (lambda h: change_settings(h, warmth=3), "no setting 'warmth'"),
        (lambda h: change_settings(h, dim=6), r"w_in to be F32 with \(3, 6\), got F32 \(3, 5\)"),
        (lambda h: change_settings(h, window=0), "window must be"),
        (lambda h: h["__metadata__"].update(progress='{"epok": 1}'), "progress"),
        (lambda h: h.pop("counts"), "expected a tensor counts"),
        (lambda h: h["w_out"].update(shape=[5, 3]), r"w_out .*\(5, 3\)"),
        (lambda h: h["words_utf8"].update(data_offsets=[0, 3], shape=[3]), "words_offsets"),
    ],
)
def test_a_file_that_is_not_ours_says_why(model, tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    model.save(path)
    edited(path, change)
    with pytest.raises(FormatError, match=message) as caught:
        Word2Vec.load(path)
    assert str(path) in str(caught.value)


def test_a_failed_write_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    model.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(tensors, "row_blocks", lambda array: (_ for _ in ()).throw(OSError(28, "no space left")))
    with pytest.raises(OSError, match="no space left"):
        model.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(FileNotFoundError):
        Word2Vec.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("not a model at all, only some text")
    with pytest.raises(FormatError, match="safetensors"):
        Word2Vec.load(tmp_path / "text")
    assert model_file.model_class(tmp_path / "text") is None
    with pytest.raises(ValueError, match="not trained yet"):
        Word2Vec().save(tmp_path / "model.safetensors")
