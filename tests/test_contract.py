"""What holds for every model, and where one differs: the entries and the table of reasons are in support/models.py.

Longer than 500 lines, since it is one contract.
"""

import copy
import inspect
import pickle
import signal

import models
import numpy as np
import pytest
import saved
import typer
from models import DIFFERS, ENTRIES, same

import embfast
from embfast import kernels
from embfast.cli.common import settings_help

pytest.importorskip("numba")
pytest.importorskip("safetensors")

NEEDS = {**dict.fromkeys(models.IMAGES, ("torch", "PIL", "sklearn")), "Multimodal": ("torch",)}


@pytest.fixture
def entry(request):
    for module in NEEDS.get(request.param, ()):
        pytest.importorskip(module)
    if "torch" in NEEDS.get(request.param, ()):
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield ENTRIES[request.param]
        torch.set_num_threads(threads)
    else:
        yield ENTRIES[request.param]


def each_model(*points):
    """Parametrises a test over the models; it is skipped, with the reason, where one of its points does not apply."""
    marked = []
    for name in ENTRIES:
        reason = next((DIFFERS[name, point] for point in points if (name, point) in DIFFERS), None)
        marks = pytest.mark.skip(reason=f"{name}, {points[0]}: {reason}") if reason else ()
        marked.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("entry", marked, indirect=True)


def each_setting():
    return pytest.mark.parametrize(
        ("entry", "setting"),
        [
            pytest.param(name, setting, id=f"{name}-{setting}")
            for name, entry in ENTRIES.items()
            for setting in entry.changed
        ],
        indirect=["entry"],
    )


@pytest.fixture(autouse=True)
def short_slices(monkeypatch):
    """A block is a slice, so that small data have many."""
    monkeypatch.setattr(embfast.training.blocks, "_SLICE_WORK", 0)


_learned = {}


def learned(entry, **settings):
    """The bits of a fit, which are kept for the next test that wants them."""
    key = entry.name, repr(settings)
    if key not in _learned:
        model = entry.make(**settings)
        _learned[key] = entry.bits(entry.fit(model, progress=False) if takes_progress(entry) else entry.fit(model))
    return _learned[key]


def takes_progress(entry):
    return (entry.name, "progress") not in DIFFERS


def fitted(entry, **settings):
    return entry.fit(entry.make(**settings))


# ---- no setting is ignored ----------------------------------------------------------------------------------------


@each_setting()
def test_a_changed_setting_changes_what_is_learned(entry, setting):
    for case in entry.changed[setting]:
        base = learned(entry, **case.beside)
        assert same(base, learned(entry, **{**case.beside, setting: case.value})), f"{setting} is ignored: {case}"


@each_model()
def test_every_setting_has_a_changed_value_or_the_reason_why_not(entry):
    names = set(inspect.signature(entry.kind).parameters)
    assert names == entry.changed.keys() | entry.unchanged.keys()
    assert not entry.changed.keys() & entry.unchanged.keys()


# ---- the same bits, and others ------------------------------------------------------------------------------------


@each_model()
def test_one_thread_gives_the_same_bits_every_time(entry):
    assert not same(entry.bits(fitted(entry)), learned(entry))


@each_model("seed")
def test_another_seed_changes_every_table_and_the_loss(entry):
    base, other = learned(entry), learned(entry, seed=4)
    floats = {name for name, array in base.items() if array.dtype.kind == "f" and "optimizer" not in name}
    assert floats <= set(same(base, other))


STILL = 1e-30  # a learning rate that moves no number of a row


@pytest.mark.parametrize("entry", [*models.SEQUENCES, "GloVe"], indirect=True)
def test_first_rows_are_those_of_the_seed_and_no_two_are_alike(entry):
    """Of the first fit, and of what partial_fit brings."""
    dim, found = entry.fast["dim"], []
    for seed in (3, 4):
        still = {"lr": STILL, "min_lr": 0.0} if "min_lr" in entry.changed else {"lr": STILL}
        model = fitted(entry, seed=seed, **still)
        if (entry.name, "partial_fit") not in DIFFERS:
            model.partial_fit(**entry.more())
        tables = {name: table for name, table in saved.tensors(model).items() if "w_" in name}
        first = {name: table[:, :dim] for name, table in tables.items() if np.abs(table[:, :dim]).max() > 1e-6}
        assert first
        found.append({name: {row.tobytes() for row in rows} for name, rows in first.items()})
        for name, rows in first.items():
            assert len(found[-1][name]) == len(rows), name
    for name, rows in found[0].items():
        assert not rows & found[1][name], name


@pytest.mark.parametrize("entry", ["Multimodal"], indirect=True)
def test_first_weights_of_towers_are_those_of_the_seed(entry):
    one, other = (saved.tensors(fitted(entry, seed=seed, lr=STILL, optimizer="sgd")) for seed in (3, 4))
    towers = {name for name, table in one.items() if name.startswith("tower.") and np.abs(table).max() > 1e-6}
    assert len(towers) > 4
    for name in towers:
        assert not np.array_equal(one[name], other[name]), name


# ---- what kernels are told ----------------------------------------------------------------------------------------


def spied(monkeypatch, owner, name, told):
    """Keeps the arguments of each call of a function, which is called all the same."""
    whole = getattr(owner, name)

    def spy(*args, **named):
        told.append((args, named))
        return whole(*args, **named)

    monkeypatch.setattr(owner, name, spy)


def told_of_training(entry, monkeypatch, **settings):
    """A fitted model, and the job, the arrays and the threads of each call of its kernel."""
    jobs = []
    whole = kernels.train_sequences

    def keep(job, arrays, first, last, threads):
        jobs.append((job.copy().reshape(-1)[0], dict(arrays), threads))
        return whole(job, arrays, first, last, threads)

    monkeypatch.setattr(kernels, "train_sequences", keep)
    model = fitted(entry, **settings)
    assert jobs
    return model, jobs


FIELDS = {  # of the job, and the setting that each must hold
    "dim": "dim",
    "window": "window",
    "shrink": "shrink_windows",
    "cbow": "cbow",
    "mean": "cbow_mean",
    "lr_first": "lr",
    "lr_last": "min_lr",
}
TOLD = [  # settings beside the fast ones: flags in both positions, so that none can stand for another one
    ("Word2Vec", {"cbow": True, "cbow_mean": False, "shrink_windows": True}),
    ("Word2Vec", {"cbow": False, "cbow_mean": True, "shrink_windows": False}),
    ("Doc2Vec", {"mode": "dm", "dm": "mean", "shrink_windows": False}),
    ("Doc2Vec", {"mode": "dm", "dm": "sum", "shrink_windows": True}),
    ("Doc2Vec", {"mode": "dbow", "shrink_windows": False}),
    ("Doc2Vec", {"mode": "dbow", "shrink_windows": True}),
    ("Node2Vec", {"shrink_windows": False}),
    ("Node2Vec", {"shrink_windows": True}),
    ("LINE", {"order": "1"}),
    ("LINE", {"order": "2"}),
]


@pytest.mark.parametrize(("entry", "settings"), TOLD, indirect=["entry"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernel_of_sequences_is_told_each_setting_by_its_name(entry, settings, threads, monkeypatch):
    """Two settings that are swapped, or one that is dropped, show here even where both change the bits."""
    model, jobs = told_of_training(entry, monkeypatch, threads=threads, **settings)
    for job, arrays, used in jobs:
        for field, setting in FIELDS.items():
            if hasattr(model, setting):
                told, kind = job[field], type(job[field])  # the rates are float32
                assert told == kind(getattr(model, setting)), setting
        assert used == threads
        assert float(job["drawn"] * job["scale"]) == pytest.approx(model.negatives)
        assert job["tokens_before"] * model.epochs == job["epoch"] * job["tokens_total"], "the rate goes on falling"
        if entry.name in ("Word2Vec", "Node2Vec"):  # the others have two parts, and seeds made of theirs
            assert job["seed"] == model.seed
        if settings.get("mode") == "dm":
            assert job["cbow"]
            assert job["mean"] == (model.dm == "mean")
            assert len(arrays["tags"]) == model.tag_weight * len(models.some_tags(300)) * 2


@pytest.mark.parametrize("entry", models.SEQUENCES, indirect=True)
def test_negatives_are_drawn_anew_in_every_epoch(entry, monkeypatch):
    _, jobs = told_of_training(entry, monkeypatch, epochs=3)
    tables = {id(arrays["w_out"]) for _, arrays, _ in jobs}
    for table in tables:
        pools = {int(job["epoch"]): arrays["noise"] for job, arrays, _ in jobs if id(arrays["w_out"]) == table}
        assert len(pools) == 3
        assert len({pool.tobytes() for pool in pools.values()}) == 3


@pytest.mark.parametrize("entry", ["Node2Vec", "LINE"], indirect=True)
def test_walks_and_edges_are_drawn_anew_in_every_epoch(entry, monkeypatch):
    """And in every partial_fit: numbers of epochs go on."""
    model, jobs = told_of_training(entry, monkeypatch, epochs=3)
    if (entry.name, "partial_fit") not in DIFFERS:
        model.partial_fit(**entry.data())
    drawn = [arrays["ids"].tobytes() for _, arrays, _ in jobs]
    assert len(drawn) == 6  # of LINE the two orders
    assert len(set(drawn)) == 6


@pytest.mark.parametrize("entry", ["GloVe"], indirect=True)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernels_of_glove_are_told_each_setting_by_its_name(entry, threads, monkeypatch):
    counted, jobs, train = [], [], kernels.train_entries
    grouped = []
    spied(monkeypatch, kernels, "group_entries", grouped)
    spied(monkeypatch, embfast.CooccurrenceMatrix, "from_corpus", counted)

    def spy(job, **named):
        jobs.append((job.copy(), named))
        return train(job, **named)

    monkeypatch.setattr(kernels, "train_entries", spy)
    model = fitted(entry, threads=threads, symmetric=False)
    (_, asked), *rest = counted
    assert not rest
    for name in ("window", "symmetric", "distance_weighting", "memory_gb", "threads"):
        assert asked[name] == getattr(model, name)
    assert [named["seed"] for _, named in grouped] == [model.seed]
    assert [job["epoch"] for job, _ in jobs] == [0, 1]
    for job, named in jobs:
        for name in ("x_max", "alpha", "lr", "seed"):
            assert job[name] == job.dtype[name].type(getattr(model, name)), name
        assert named["threads"] == model.threads


@pytest.mark.parametrize("entry", ["Node2Vec"], indirect=True)
def test_walks_are_told_each_setting_by_its_name(entry, monkeypatch):
    from embfast.graphs import walks

    made = []
    spied(monkeypatch, walks, "Walks", made)
    model = fitted(entry, plus=True)
    (_, named), *rest = made
    assert not rest
    expected = {"length": model.walk_length, "per_node": model.walks_per_node}
    for name in ("p", "q", "restart", "plus", "gamma", "seed"):
        expected[name] = getattr(model, name)
    assert {name: named[name] for name in expected} == expected


@pytest.mark.parametrize("entry", models.IMAGES, indirect=True)
def test_networks_are_run_as_each_setting_says(entry, monkeypatch):
    from embfast.images import embeddings, estimator

    runs = []
    spied(monkeypatch, estimator, "Extractor", runs)
    settings = {"batch": 3, "precision": "bfloat16", "workers": 1, "errors": "skip", "compile": True}
    if entry.name == "LayerEmbedding":
        settings |= {"views": "flip", "combine": "stack"}
    model = entry.make(**settings)
    with monkeypatch.context() as patched:
        patched.setattr(estimator.ImageEmbedding, "_features", lambda *a: (_ for _ in ()).throw(StopAsyncIteration))
        patched.setattr(embeddings, "_watched", lambda *a: (_ for _ in ()).throw(StopAsyncIteration))
        with pytest.raises(StopAsyncIteration):
            entry.fit(model)
    (run,) = [given for given in runs[0][0] if isinstance(given, estimator.Run)]
    for name, value in {**settings, "device": "cpu"}.items():
        assert getattr(run, name) == value, name


@pytest.mark.parametrize("entry", ["Multimodal"], indirect=True)
def test_batches_and_draws_of_towers_are_those_of_the_seed_and_the_epoch(entry, monkeypatch):
    import torch

    from embfast.multimodal.examples import Examples

    beside, dropout = [], []
    whole, seeded = Examples.beside, torch.manual_seed
    monkeypatch.setattr(Examples, "beside", lambda *a: (beside.append(str(a[2].bit_generator.state)), whole(*a))[1])
    monkeypatch.setattr(torch, "manual_seed", lambda seed: (dropout.append(seed), seeded(seed))[1])
    for seed in (3, 4):
        planned = []
        with monkeypatch.context() as patched:
            spied(patched, Examples, "plan", planned)
            model = fitted(entry, seed=seed)
            model.partial_fit(**entry.data())
        assert [args[1] for args, _ in planned] == [0, 1, 2, 3]
        for _, named in planned:
            for name in ("seed", "batch", "bucketed", "distinct_images"):
                assert named[name] == getattr(model, name)
    assert len(set(beside)) == len(beside)
    assert len(set(dropout)) == len(dropout)


# ---- runs that are stopped ----------------------------------------------------------------------------------------


def stop_by_signal():
    signal.raise_signal(signal.SIGINT)


def stop_by_raising():
    raise KeyboardInterrupt


@each_model("resume")
@pytest.mark.parametrize("stop", [stop_by_signal, stop_by_raising])
@pytest.mark.parametrize("at", [0.2, 0.6])
def test_a_stopped_and_resumed_run_has_the_bits_of_an_uninterrupted_one(entry, stop, at, tmp_path):
    path = tmp_path / "run.safetensors"

    def press(status):
        if status.done > at:
            stop()

    options = {"checkpoint": path, "checkpoint_minutes": 0.0}
    model = entry.make(epochs=3)
    with pytest.raises(KeyboardInterrupt):
        entry.fit(model, progress=press, **options)
    assert len(model.loss_) < 3
    resumed = entry.make(epochs=3)
    if path.exists():  # raised before the first checkpoint, it is not there
        state = saved.progress_of(path)
        assert state["epoch"] + state["block"] > 0
        told = []
        entry.fit(resumed, progress=told.append, resume=True, **options)
        assert told[0].done > at / 2
    else:
        assert stop is stop_by_raising
        entry.fit(resumed, resume=True, **options)
    assert not same(entry.bits(resumed), learned(entry, epochs=3))
    kept = {name.removeprefix("tensor ") for name in same(entry.bits(entry.kind.load(path)), learned(entry, epochs=3))}
    assert all(name.startswith(entry.late) for name in kept), kept


@each_model("resume")
def test_a_run_goes_on_with_its_own_settings_and_data_alone(entry, tmp_path):
    path = tmp_path / "run.safetensors"
    made = None
    for setting, cases in entry.changed.items():
        case = cases[-1]
        if made != case.beside:
            entry.fit(entry.make(**case.beside), checkpoint=path)
            made = case.beside
        model = entry.make(**{**case.beside, setting: case.value})
        with pytest.raises(ValueError, match=f"cannot resume with other settings: .*{setting} was"):
            entry.fit(model, checkpoint=path, resume=True)
    entry.fit(entry.make(), checkpoint=path)
    with pytest.raises(ValueError, match="cannot resume with another corpus"):
        entry.fit(entry.make(), entry.other(), checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="resume=True needs checkpoint="):
        entry.fit(entry.make(), resume=True)


# ---- files and copies ---------------------------------------------------------------------------------------------


def loaded(model, tmp_path, **options):
    model.save(tmp_path / "model.safetensors")
    return type(model).load(tmp_path / "model.safetensors", **options)


def reloaded(entry, model, tmp_path):
    return loaded(model, tmp_path, **({"backbone": model.backbone} if entry.name in models.IMAGES else {}))


@each_model("save")
def test_save_and_load_keep_settings_and_bits(entry, tmp_path):
    model = fitted(entry)
    again = reloaded(entry, model, tmp_path)
    assert again.get_params().keys() == model.get_params().keys()
    assert {n: v for n, v in again.get_params().items() if n != "preparation"} == {
        n: v for n, v in model.get_params().items() if n != "preparation"
    }
    assert again.words_ == model.words_
    assert not same(entry.bits(again), learned(entry))


@each_model("save")
def test_load_refuses_other_files(entry, tmp_path):
    (tmp_path / "text").write_text("not a model at all, only some text")
    with pytest.raises(embfast.errors.FormatError, match="safetensors"):
        entry.kind.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        entry.kind.load(tmp_path / "none")
    with pytest.raises(ValueError, match="not trained yet"):
        entry.make().save(tmp_path / "model")


COPIES = {"pickle": lambda model: pickle.loads(pickle.dumps(model)), "deepcopy": copy.deepcopy}


@each_model()
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_the_same_model(entry, how):
    assert not same(entry.bits(COPIES[how](fitted(entry))), learned(entry))


@each_model("partial_fit")
def test_a_copied_or_loaded_model_continues_with_the_same_bits(entry, tmp_path):
    model = fitted(entry)
    others = [*(copied(model) for copied in COPIES.values()), reloaded(entry, model, tmp_path)]
    kept = copy.deepcopy(model)
    expected = entry.bits(model.partial_fit(**entry.more()))
    assert same(expected, learned(entry))
    assert len(model.loss_) == 4
    for other in others:
        assert not same(entry.bits(other.partial_fit(**entry.more())), expected)
    assert not same(entry.bits(kept), learned(entry)), "a copy shares no weights"


@each_model("partial_fit")
def test_partial_fit_of_an_untrained_model_is_fit(entry):
    assert not same(entry.bits(entry.make().partial_fit(**entry.data())), learned(entry))


@each_model("partial_fit", "goes on")
def test_partial_fits_of_the_same_data_are_more_epochs(entry):
    """At a constant learning rate: walks, orders and negatives of partial_fit are those of the next epoch."""
    model = fitted(entry, **entry.constant, epochs=1)
    model.partial_fit(**entry.data()).partial_fit(**entry.data()).set_params(epochs=3)
    whole = learned(entry, **entry.constant, epochs=3)
    assert set(same(entry.bits(model), whole)) <= {"tensor counts"}


# ---- an estimator of scikit-learn ---------------------------------------------------------------------------------


@each_model("estimator")
def test_a_constructor_stores_its_settings_and_does_nothing_else(entry):
    values = {name: object() for name in entry.kind.settings()}
    model = entry.kind(**values)
    assert vars(model) == values
    assert model.get_params() == values
    other = {name: object() for name in values}
    assert model.set_params(**other) is model
    assert vars(model) == other
    with pytest.raises(ValueError, match="no setting 'warmth'"):
        model.set_params(warmth=3)
    assert vars(model) == other


@each_model("estimator")
def test_clone_keeps_settings_and_nothing_learned(entry):
    base = pytest.importorskip("sklearn.base")
    model = fitted(entry)
    made = base.clone(model)
    assert type(made) is type(model)
    assert repr(made.get_params()).replace("\n", "") == repr(model.get_params()).replace("\n", "")
    assert vars(made).keys() == model.get_params().keys()


@each_model("estimator")
def test_repr_shows_what_differs_from_the_defaults(entry):
    assert repr(entry.kind()) == f"{entry.name}()"
    for name, parameter in entry.kind.settings().items():
        value = 987_654 if parameter.default != 987_654 else 0
        assert repr(entry.kind(**{name: value})) == f"{entry.name}({name}={value})"
        assert repr(entry.kind(**{name: parameter.default})) == f"{entry.name}()"


@each_model()
def test_every_setting_has_a_line_in_the_docstring(entry):
    names = inspect.signature(entry.kind).parameters
    assert settings_help(entry.kind).keys() == set(names)
    assert all(len(line) > 5 for line in settings_help(entry.kind).values())


@each_model()
def test_every_setting_is_a_flag_of_the_command(entry):
    command = typer.main.get_command(embfast.cli.common.app)
    for name in entry.command:
        command = command.commands[name]
    options = {option: parameter for parameter in command.params for option in parameter.opts}
    for name in inspect.signature(entry.kind).parameters:
        flag = f"--{name.replace('_', '-')}"
        assert (flag in options) != (name in entry.no_flag), f"{flag}: {entry.no_flag.get(name)}"
        if flag in options:
            assert options[flag].help


# ---- a refused fit ------------------------------------------------------------------------------------------------


def wrong_values(name, default):
    """Values that no model takes for a setting of this kind."""
    if name in ("backbone", "weights", "preparation", "layers", "layer", "connectors"):
        return {"backbone": ["no such network"], "weights": ["/no/such/file.pth"], "preparation": [{"size": 0}],
                "layers": ["no such layer"], "layer": ["no such layer"], "connectors": ["one str"]}[name]  # fmt: skip
    if name == "device":
        return ["tpu", "cuda:99"]
    if isinstance(default, bool):
        return ["yes", 2]
    if isinstance(default, int):
        return [-1, 1.5, "x", True]
    if isinstance(default, float):
        return [float("nan"), "x", -1e9]
    if isinstance(default, str):
        return ["two words"]
    return [-1, "x"]


def looks(model):
    """What a user sees of a trained model."""
    found = {}
    for name, value in vars(model).items():
        if name.endswith("_") and not name.startswith("_"):
            found[name] = repr(value) if not hasattr(value, "matrix") else (value.keys, value.matrix.tobytes())
    return found


@each_model()
def test_a_refused_fit_leaves_a_trained_model_as_it_was(entry, tmp_path):
    model = fitted(entry)
    before, seen = entry.bits(model), looks(model)
    learned_by = {name: value for name, value in vars(model).items() if name.endswith("_")}

    def refused(data=None, kinds=(ValueError, TypeError, ImportError, FileNotFoundError), **options):
        with pytest.raises(kinds):
            entry.fit(model, data, **options)

    for name, parameter in inspect.signature(entry.kind).parameters.items():
        kept = getattr(model, name)
        for value in (v for v in wrong_values(name, parameter.default) if v not in entry.takes.get(name, ())):
            setattr(model, name, value)
            refused()
        setattr(model, name, kept)
        assert looks(model) == seen, name
    refused(entry.wrong_data())
    refused(entry.little_data())
    if (entry.name, "resume") not in DIFFERS:
        entry.fit(entry.make(), entry.other(), checkpoint=tmp_path / "other.safetensors")
        refused(checkpoint=tmp_path / "other.safetensors", resume=True)
        refused(resume=True)
        refused(checkpoint=tmp_path / "none" / "file")
        refused(checkpoint=tmp_path / "file", checkpoint_minutes=-1)
        (tmp_path / "text").write_text("not a model at all")
        refused(checkpoint=tmp_path / "text", resume=True)
    assert looks(model) == seen
    assert all(getattr(model, name) is value for name, value in learned_by.items())
    assert not same(entry.bits(model), before)


# ---- settings that all have in common -----------------------------------------------------------------------------


@each_model("threads")
@pytest.mark.parametrize("threads", [0, -1, 5000, 1.5, True, "two"])
def test_threads_are_a_number_of_1_to_4096(entry, threads):
    with pytest.raises(ValueError, match="threads must be a whole number from 1 to 4,096"):
        fitted(entry, threads=threads)


@each_model("threads")
def test_several_threads_learn(entry):
    assert np.isfinite(fitted(entry, threads=2).loss_).all()


@each_model("seed")
@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True, None])
def test_a_seed_is_a_number_of_64_bits(entry, seed):
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 18,446,744,073,709,551,615"):
        fitted(entry, seed=seed)


@each_model("seed")
def test_numbers_of_numpy_are_settings_too(entry, tmp_path):
    model = fitted(entry, seed=np.uint64(3), dim=np.int64(entry.fast["dim"]), lr=np.float64(entry.fast["lr"]))
    assert not same(entry.bits(model), learned(entry))
    assert type(model.seed) is int
    assert type(model.lr) is float


@each_model("device")
def test_a_device_that_is_not_there_is_an_error_that_says_so(entry):
    """ "cuda:99" is there on no machine."""
    with pytest.raises((ValueError, ImportError), match=r"CUDA|CuPy"):
        fitted(entry, device="cuda:99")
    with pytest.raises(ValueError, match="device"):
        fitted(entry, device="tpu")
    assert not same(entry.bits(fitted(entry, device="cpu")), learned(entry))


@each_model("device", "auto")
def test_auto_takes_the_cpu_where_no_device_is_usable(entry, capsys, monkeypatch):
    by_torch, why = entry.name in NEEDS, "no driver"
    monkeypatch.setattr("embfast.device.cuda.find", lambda number=0: (_ for _ in ()).throw(ValueError(why)))
    if by_torch:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        why = "torch sees no CUDA device here"
    model = entry.make(device="auto")
    entry.fit(model, progress=False)
    assert capsys.readouterr() == ("", "")
    if not by_torch:
        assert model.device_ == f"cpu, since {why}"
    assert not same(entry.bits(model), learned(entry))
    entry.fit(model)
    assert set(capsys.readouterr().err.splitlines()) == {f'device="auto": cpu, since {why}'}  # images: fit and embed


@each_model("progress")
def test_progress_is_silent_a_log_or_a_callable(entry, capsys):
    for silent in (False, None):  # None: this is no terminal
        entry.fit(entry.make(), progress=silent)
        assert capsys.readouterr() == ("", "")
    told = []
    entry.fit(entry.make(), progress=lambda *status: told.append(status))
    assert capsys.readouterr() == ("", "")
    assert told
    entry.fit(entry.make(), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") >= 1


# ---- the entries themselves ---------------------------------------------------------------------------------------


def test_every_model_has_an_entry():
    from embfast.training.estimator import Estimator

    public = {name for name in embfast.__all__ if isinstance(getattr(embfast, name), type)}
    assert {name for name in public if issubclass(getattr(embfast, name), Estimator)} | {"Phrases"} == set(ENTRIES)


def test_models_differ_with_a_reason():
    for (name, point), reason in DIFFERS.items():
        assert name in ENTRIES
        assert point in models.POINTS
        assert len(reason) > 4
    told = {name for name in ENTRIES if (name, "told") not in DIFFERS}
    assert told == {*models.SEQUENCES, "GloVe", *models.IMAGES}, "the tests of what kernels are told"
