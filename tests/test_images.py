"""FullNetworkEmbedding and LayerEmbedding: the algorithm, fitting, devices, files, and the command line."""

import json
import pickle

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("PIL", reason="Pillow is not installed: pip install embfast[images]")
torch = pytest.importorskip("torch", reason="torch is not installed: pip install embfast[images]")
pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install embfast[images]")

from networks import SMALL, ResNet, Tangled, photographs, plain, seeded, vgg16
from PIL import Image
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from test_cli import fails, run
from torch import nn

from embfast import reference
from embfast.errors import FormatError
from embfast.files.ternary import TernaryMatrix
from embfast.images import embeddings, estimator
from embfast.images.backbones import Backbone
from embfast.images.embeddings import FullNetworkEmbedding, LayerEmbedding
from embfast.images.map import plot_images
from embfast.images.pictures import Preparation
from embfast.vectors.vectors import Vectors

BOTH = pytest.mark.parametrize("kind", [FullNetworkEmbedding, LayerEmbedding])


def fne(network=None, **options):
    return FullNetworkEmbedding(network or plain(), preparation=SMALL, **options)


def one_layer(network=None, **options):
    return LayerEmbedding(network or plain(), preparation=SMALL, **options)


def maps_in_numpy(network, pictures):
    """The activations of the two convolutions and the hidden linear layer of plain(), in float64 without torch."""
    values = {name: value.numpy().astype(np.float64) for name, value in network.state_dict().items()}
    x = ((pictures / 255 - SMALL.mean) / SMALL.std).transpose(0, 3, 1, 2)

    def convolved(x, name, stride):
        windows = sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
        return np.einsum("ncyxij,ocij->noyx", windows, values[f"{name}.weight"]) + values[f"{name}.bias"][:, None, None]

    first = np.maximum(convolved(np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)]), "0", 1), 0)
    y = convolved(first, "2", 2)
    mean, var = (values[f"3.running_{which}"][:, None, None] for which in ("mean", "var"))
    y = (y - mean) / np.sqrt(var + 1e-5) * values["3.weight"][:, None, None] + values["3.bias"][:, None, None]
    second = np.maximum(y, 0)
    hidden = np.maximum(second.mean((2, 3)) @ values["7.weight"].T + values["7.bias"], 0)
    return [first, second, hidden]


# ---- Full-Network Embedding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lower", "upper"), [(-0.25, 0.15), (-1.0, 0.5)])
def test_the_embedding_equals_the_reference(lower, upper):
    network, train, test = plain(), photographs(30), photographs(20, seed=1)
    expected = reference.full_network_embedding(
        maps_in_numpy(network, train), maps_in_numpy(network, test), lower, upper
    )
    found = fne(network, lower=lower, upper=upper).fit(train).transform(test)
    assert found.dtype == np.int8
    assert found.shape == expected.shape == (20, 18)
    assert {-1, 0, 1} == set(np.unique(expected))
    assert np.mean(found != expected) <= 0.01  # float32 and float64 round differently at a threshold


def test_thresholds_are_strict_and_deviations_divide_by_n():
    """Features 0 and 2 have mean 1 and standard deviation 1 (ddof 0), so that they standardise to exactly -1 and 1."""
    ready = np.zeros((2, 1, 1, 1), np.float32)
    ready[1] = 2
    network = nn.Sequential(nn.Conv2d(1, 1, 1))
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    for lower, upper, expected in ((-1, 1, [0, 0]), (-0.999, 0.999, [-1, 1])):
        embedding = FullNetworkEmbedding(network, lower=lower, upper=upper).fit(ready)
        assert embedding.mean_.tolist() == [1]
        assert embedding.sd_.tolist() == [1]
        assert embedding.transform(ready)[:, 0].tolist() == expected


def test_constant_features_are_0_and_nothing_is_nan():
    """The published code divides by a standard deviation of 0; the NaN then became 1 for every image."""
    network = plain()
    with torch.no_grad():
        network[0].weight[2], network[0].bias[2] = 0, 0.7  # channel 2 is 0.7 everywhere
        network[0].bias[3] = -1e4  # ReLU keeps channel 3 at 0
    train = photographs(9)
    embedding = fne(network)
    levels = embedding.fit_transform(train)
    assert (embedding.sd_[[2, 3]] == 0).all()
    assert (levels[:, [2, 3]] == 0).all()
    assert (embedding.transform(photographs(5, seed=3))[:, [2, 3]] == 0).all()
    with pytest.raises(ValueError, match="at least two images"):
        fne(network).fit(train[:1])
    assert np.isfinite(embedding.mean_).all()


def test_a_folder_of_features_of_other_images_is_refused(tmp_path):
    """Only the pixels differ, not the number and names of the images."""
    train, test = photographs(5), photographs(5, seed=1)
    embedding = fne().fit(train, work=tmp_path / "work")
    assert_array_equal(embedding.transform(train, work=tmp_path / "work"), embedding.transform(train))
    with pytest.raises(ValueError, match="features of another run: contents was"):
        embedding.transform(test, work=tmp_path / "work")
    with pytest.raises(ValueError, match="contents was"):
        embedding.transform(list(test), work=tmp_path / "work")


@BOTH
def test_an_image_with_nan_features_is_named(kind):
    floats = np.random.default_rng(0).normal(size=(9, 3, 16, 16)).astype(np.float32)
    embedding = kind(plain(), preparation=SMALL, batch=4)
    embedding.fit(floats)
    floats[6, 1, 2, 3] = np.nan
    with pytest.raises(FormatError, match=r"^6: expected finite features"):
        embedding.transform(floats)
    assert len(embedding.set_params(errors="skip").transform(floats)) == 8
    assert list(embedding.broken_) == ["6"]


@BOTH
def test_settings_of_numpy_and_torch_are_saved(kind, tmp_path):
    preparation = Preparation(np.int64(16), 16, mean=np.full(3, 0.5), std=np.full(3, 0.25))
    wanted = {"layers" if kind is FullNetworkEmbedding else "layer": np.arange(2)}
    embedding = kind(plain(), preparation=preparation, device=torch.device("cpu"), **wanted)
    rows = embedding.fit_transform(photographs(5))
    assert [name for name, *_ in embedding.layers_] == ["1", "4"]
    embedding.save(tmp_path / "model.safetensors")
    again = kind.load(tmp_path / "model.safetensors", backbone=plain())
    assert_array_equal(again.transform(photographs(5)), rows)


@BOTH
@pytest.mark.parametrize(
    ("device", "match"),
    [
        ("cuda", "device='cuda', but torch sees no CUDA device here"),
        ("foo", 'device must be "cpu", "cuda", "cuda:1" and so on, or "auto", got \'foo\''),
        (None, 'device must be "cpu", .* got None'),
    ],
)
def test_devices_that_are_missing_or_unknown(kind, device, match, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=match):
        kind(plain(), preparation=SMALL, device=device).fit(photographs(3))


@BOTH
def test_auto_prints_its_device_once_per_run(kind, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    embedding = kind(plain(), preparation=SMALL, device="auto")
    for call in (embedding.fit, embedding.transform, embedding.embed, embedding.fit_transform, embedding.fit_embed):
        call(photographs(3))
        assert capsys.readouterr().err == 'device="auto": cpu, since torch sees no CUDA device here\n'
        call(photographs(3), progress=False)
        assert capsys.readouterr().err == ""


@BOTH
def test_a_model_saved_with_a_gpu_loads_without_one(kind, tmp_path, monkeypatch):
    embedding = kind(plain(), preparation=SMALL)
    rows = embedding.fit_transform(photographs(3))
    embedding.set_params(device=torch.device("cuda")).save(tmp_path / "m.safetensors")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = kind.load(tmp_path / "m.safetensors", backbone=plain())
    assert loaded.device == "cuda"
    with pytest.raises(ValueError, match="torch sees no CUDA device here"):
        loaded.transform(photographs(3))
    assert_array_equal(loaded.set_params(device="auto").transform(photographs(3), progress=False), rows)


def test_reduce_needs_a_fit(tmp_path):
    embedding = one_layer().fit(photographs(5)).set_params(reduce=2)
    for use in (lambda: embedding.transform(photographs(2)), lambda: embedding.save(tmp_path / "m.safetensors")):
        with pytest.raises(ValueError, match="fitted with reduce=0, but reduce is now 2"):
            use()


def test_transform_learns_nothing():
    """A row does not depend on the other images of the call, and only fit sets the statistics."""
    train, test = photographs(20), photographs(12, seed=1)
    embedding = fne().fit(train)
    before = embedding.mean_.copy(), embedding.sd_.copy()
    together = embedding.transform(test)
    for rows in (test[:1], 255 - test, test):
        embedding.transform(rows)
        embedding.embed(rows)
    assert_array_equal(embedding.mean_, before[0])
    assert_array_equal(embedding.sd_, before[1])
    assert_array_equal(np.concatenate([embedding.transform(test[i : i + 1]) for i in range(12)]), together)
    other = fne().fit(test)
    assert not np.array_equal(other.transform(test), together)


def test_reduction_is_learned_by_fit_alone():
    train, test = photographs(30), photographs(12, seed=1)
    embedding = one_layer(reduce=3, whiten=True).fit(train)
    together, components = embedding.transform(test), embedding.components_.copy()
    assert_allclose(np.concatenate([embedding.transform(test[i : i + 1]) for i in range(12)]), together, atol=1e-4)
    assert_array_equal(embedding.components_, components)


@pytest.mark.parametrize("make", [Tangled, lambda: ResNet((1, 1), 8, 5), lambda: vgg16(1 / 16, 32, 5)])
def test_the_batch_size_does_not_matter(make):
    pictures = photographs(70, 32)
    options = {"preparation": Preparation(32, 32), "layers": "all"}
    network = seeded(make)
    alone = FullNetworkEmbedding(network, batch=1, **options).fit_transform(pictures)
    many = FullNetworkEmbedding(network, batch=64, **options).fit_transform(pictures)
    assert np.mean(alone != many) <= 0.005  # rounding decides at a threshold


@pytest.mark.parametrize("way", ["fit_transform", "work", "fit", "embed", "fit_embed"])
def test_all_methods_agree(way, tmp_path):
    train = photographs(11)
    expected = fne().fit_transform(train)
    if way == "work":
        embedding = fne().fit(train, work=tmp_path / "work")
        found = embedding.transform(train, work=tmp_path / "work")
        assert_array_equal(embedding.embed(train, work=tmp_path / "work").matrix[:], found)
    elif way == "fit":
        found = fne(batch=4).fit(train).transform(train)
    elif way == "embed":
        found = fne(batch=3).fit(train).embed(train).matrix[:]
    elif way == "fit_embed":
        found = fne().fit_embed(train).matrix[:]
    else:
        found = fne(batch=5).fit_transform(train)
    assert np.mean(found != expected) <= 0.005  # other batches round differently


def test_vectors_are_keyed_by_path_searched_and_saved(tmp_path):
    for i, pixels in enumerate(photographs(8)):
        (tmp_path / "in" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / str(i % 2) / f"{i}.png")
    vectors = fne().fit_embed(tmp_path / "in")
    assert vectors.keys[:2] == ["0/0.png", "0/2.png"]
    assert isinstance(vectors.matrix, TernaryMatrix)
    levels = vectors.matrix[:].astype(np.float64)
    cosines = levels @ levels[0] / np.linalg.norm(levels, axis=1) / np.linalg.norm(levels[0])
    _, score = vectors.most_similar("0/0.png", k=1)[0]
    assert_allclose(score, np.sort(cosines)[-2], atol=1e-5)
    vectors.save(tmp_path / "fne.npz")
    back = Vectors.load(tmp_path / "fne.npz", mmap=True)
    assert back.keys == vectors.keys
    assert_array_equal(back.matrix[:], vectors.matrix[:])


# ---- one layer ----------------------------------------------------------------------------------------------------


def test_a_layer_equals_numpy():
    network, pictures = plain(), photographs(7)
    first, second, hidden = maps_in_numpy(network, pictures)
    for layer, pool, expected in (
        ("penultimate", "mean", hidden),
        ("2", "mean", second.mean((2, 3))),
        (1, "max", second.max((2, 3))),
        (0, "none", first.reshape(7, -1)),
        ([0, "penultimate"], "mean", np.concatenate([first.mean((2, 3)), hidden], 1)),
    ):
        found = one_layer(network, layer=layer, pool=pool, l2=False).fit_transform(pictures)
        assert_allclose(found, expected, atol=1e-4)
        units = one_layer(network, layer=layer, pool=pool).fit_transform(pictures)
        assert_allclose(units, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4)


def test_power_keeps_the_sign():
    pictures = photographs(7)
    raw = one_layer(layer=1, at="before", l2=False).fit_transform(pictures)
    assert (raw < 0).any()
    found = one_layer(layer=1, at="before", l2=False, power=0.5).fit_transform(pictures)
    assert_allclose(found, np.sign(raw) * np.sqrt(np.abs(raw)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("numbers", [1 << 22, 60])  # one chunk, and many of 5 x reduce rows
def test_reduction_is_pca(numbers, monkeypatch):
    for module in (embeddings, estimator):
        monkeypatch.setattr(module, "CHUNK", numbers)
    pictures = photographs(43)
    raw = one_layer(layer=1, l2=False).fit_transform(pictures)
    for whiten in (False, True):
        expected = PCA(2, whiten=whiten, svd_solver="full").fit_transform(raw)
        found = one_layer(layer=1, l2=False, reduce=2, whiten=whiten).fit_transform(pictures)
        assert_allclose(np.abs(found), np.abs(expected), atol=0.02 * np.abs(expected).max())


def test_views_and_their_shapes():
    pictures = photographs(4, 24)
    preparation = Preparation(16, 20)
    for views, n in (("one", 1), ("flip", 2), ("rotations", 4), ("ten", 10)):
        options = {"preparation": preparation, "views": views, "l2": False}
        averaged = LayerEmbedding(plain(), **options).fit_transform(pictures)
        stacked = LayerEmbedding(plain(), combine="stack", **options).fit_transform(pictures)
        assert stacked.shape == (4, 6 * n)
        assert_allclose(stacked.reshape(4, n, 6).mean(1), averaged, atol=1e-5)


# ---- scikit-learn and files --------------------------------------------------------------------------------------


@BOTH
def test_it_is_a_transformer(kind):
    embedding = kind(plain(), preparation=SMALL, batch=7)
    again = clone(embedding)
    assert again.get_params()["batch"] == 7
    assert again.backbone is not embedding.backbone
    train, labels = photographs(30, classes=3), np.arange(30) % 3
    pipeline = make_pipeline(embedding, LinearSVC()).fit(train, labels)
    assert pipeline.score(photographs(30, seed=5, classes=3), labels) >= 0.8
    assert pickle.loads(pickle.dumps(pipeline)).predict(train[:2]).shape == (2,)
    with pytest.raises(ValueError, match="has no setting 'window'"):
        embedding.set_params(window=3)


@BOTH
def test_an_unfitted_model_is_refused(kind):
    embedding = kind(plain(), preparation=SMALL)
    for call in (embedding.transform, embedding.embed):
        with pytest.raises(ValueError, match=f"this {kind.__name__} is not trained yet: call fit first"):
            call(photographs(2))
    with pytest.raises(ValueError, match="not trained yet"):
        embedding.save("nowhere")


def test_a_failed_fit_changes_nothing():
    embedding = fne()
    with pytest.raises(ValueError, match="upper must be a number from"):
        embedding.set_params(lower=0.5).fit(photographs(3))
    assert not embedding.__sklearn_is_fitted__()
    with pytest.raises(FormatError):
        embedding.set_params(lower=-0.25).fit([photographs(1)[0], np.zeros((3, 3), np.int64)])
    assert not embedding.__sklearn_is_fitted__()


@pytest.mark.parametrize(
    "embedding",
    [fne(lower=-0.5), one_layer(reduce=3, whiten=True, layer=[0, 1]), one_layer(views="flip", combine="stack")],
    ids=["fne", "reduced", "views"],
)
def test_saved_and_loaded(embedding, tmp_path):
    train, test = photographs(20), photographs(5, seed=2)
    expected = embedding.fit(train).transform(test)
    embedding.save(tmp_path / "m.safetensors")
    loaded = type(embedding).load(tmp_path / "m.safetensors", backbone=plain())
    assert_array_equal(loaded.transform(test), expected)
    assert loaded.layers_ == embedding.layers_
    without = type(embedding).load(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"load\(path, backbone=\.\.\.\)"):
        without.transform(test)
    with pytest.raises(ValueError, match="the same network with other weights"):
        type(embedding).load(tmp_path / "m.safetensors", backbone=plain(seed=1)).transform(test)
    with pytest.raises(ValueError, match="was fitted to"):
        loaded.set_params(backbone=seeded(Tangled)).transform(test)
    other = LayerEmbedding if type(embedding) is FullNetworkEmbedding else FullNetworkEmbedding
    with pytest.raises(FormatError, match=f"expected a {other.__name__}, got a {type(embedding).__name__}"):
        other.load(tmp_path / "m.safetensors")


def test_broken_images_are_left_out_and_named(tmp_path):
    for i, pixels in enumerate(photographs(6)):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(FormatError, match=r"3\.png"):
        fne().fit(tmp_path)
    embedding = fne(errors="skip").fit(tmp_path)
    assert list(embedding.broken_) == ["3.png"]
    assert embedding.n_images_ == 5
    assert embedding.embed(tmp_path).keys == [f"{i}.png" for i in (0, 1, 2, 4, 5)]
    assert embedding.transform(tmp_path).shape == (5, 18)
    assert one_layer(errors="skip").fit_embed(tmp_path).keys == [f"{i}.png" for i in (0, 1, 2, 4, 5)]
    with pytest.raises(ValueError, match="at least one image that can be read"):
        one_layer(errors="skip", reduce=1).fit([tmp_path / "3.png"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"power": 0}, "power must be a number above 0"),
        ({"whiten": True}, "whiten needs reduce"),
        ({"reduce": 99}, "reduce must be at most 4 with 4 images of 6 features, got 99"),
        ({"l2": 1}, "l2 must be True or False"),
        ({"layer": "nowhere"}, "no layer 'nowhere'"),
    ],
)
def test_invalid_settings(options, match):
    with pytest.raises(ValueError, match=match):
        one_layer(**options).fit(photographs(4))


# ---- maps, and the command line -----------------------------------------------------------------------------------


def test_thumbnails_are_drawn_at_the_positions_of_their_vectors(tmp_path):
    tints = photographs(30, classes=3)
    vectors = Vectors([str(i) for i in range(30)], tints.reshape(30, -1).astype(np.float32))
    path = tmp_path / "map.png"
    places = plot_images(vectors, tints, path, method="pca", width=400, thumbnail=20)
    assert len(places) == 30
    with Image.open(path) as drawn:
        sheet = np.asarray(drawn).astype(int)
    assert sheet.shape == (400, 400, 3)
    places = np.array(list(places.values()))
    low, high = places.min(0), places.max(0)
    for corner in np.argmax(places[:, 0]), np.argmin(places[:, 1]):  # at an edge, where few thumbnails overlap
        left, top = ((places[corner] - low) / (high - low) * 380).round().astype(int)
        patch = sheet[380 - top : 400 - top, left : left + 20].mean((0, 1))
        assert np.argmax(patch) == corner % 3
    with pytest.raises(KeyError, match="'x' is not among the 30 images"):
        plot_images(Vectors(["x"], np.ones((1, 2), np.float32)), tints, path)
    with pytest.raises(ValueError, match=r"map\.doc: expected an image extension"):
        plot_images(vectors, tints, tmp_path / "map.doc")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Eight images, and plain() instead of efficientnet_lite0."""
    (tmp_path / "in").mkdir()
    for i, pixels in enumerate(photographs(8)):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    monkeypatch.setattr(
        estimator, "load_backbone", lambda name, weights, preparation: Backbone(plain(), name, preparation or SMALL)
    )
    return tmp_path / "in"


def test_the_command_line_writes_vectors(folder, tmp_path):
    out = tmp_path / "out.npz"
    result = json.loads(run("images", folder, "-o", out, "--json").stdout)
    assert (result["images"], result["dim"], result["broken"]) == (8, 6, {})
    expected = one_layer().fit_transform(photographs(8))
    assert_allclose(Vectors.load(out).matrix, expected, atol=1e-5)
    run("images", folder, "-o", out, "--layer", "0", "--layer", "-1", "--no-l2", "--views", "flip", "-q")
    assert Vectors.load(out).dim == 11
    said = run("images", folder, "--fne", "-o", out, "--save-model", tmp_path / "m.safetensors").stderr
    assert "8 images, 18 numbers each" in said
    assert isinstance(Vectors.load(out).matrix, TernaryMatrix)
    run("images", folder / "3.png", "--model", tmp_path / "m.safetensors", "-o", tmp_path / "one.npz")
    one = Vectors.load(tmp_path / "one.npz")
    assert_array_equal(one.matrix[0], Vectors.load(out)["3.png"])


def test_the_command_line_keeps_features_and_draws(folder, tmp_path):
    for _ in range(2):
        run("images", folder, "--fne", "--work", tmp_path / "work", "-o", tmp_path / "a.npz", "-q")
    assert (tmp_path / "work" / "features.f32").stat().st_size == 8 * 18 * 4
    run("images", folder, "--picture", tmp_path / "map.png", "--size", "14", "-q")
    with Image.open(tmp_path / "map.png") as sheet:
        assert sheet.size == (2000, 2000)


def test_the_command_line_reports_errors(folder, tmp_path):
    out = tmp_path / "out.npz"
    assert "nothing to write" in fails("images", folder)
    assert "nowhere: no such file or folder" in fails("images", "nowhere", "-o", out)
    assert "no layer 'x'" in fails("images", folder, "-o", out, "--layer", "x")
    assert "cannot tell the format" in fails("images", folder, "-o", tmp_path / "out.what")
    Vectors(["a"], np.ones((1, 2), np.float32)).save(tmp_path / "v.safetensors")
    assert "expected a model that --save-model wrote" in fails(
        "images", folder, "-o", out, "--model", tmp_path / "v.safetensors"
    )
    (folder / "5.png").write_bytes(b"")
    assert "5.png: expected an image" in fails("images", folder, "-o", out)
    assert "left out: " in run("images", folder, "-o", out, "--errors", "skip").stderr
    assert len(Vectors.load(out)) == 7


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"pool": "max"}, "pool"),
        ({"preparation": Preparation(16, 16, mean=(0.0, 0.0, 0.0))}, "preparation"),
    ],
)
@BOTH
def test_changed_settings_of_features_need_a_fit(kind, changed, says, tmp_path):
    embedding = kind(plain(), preparation=SMALL).fit(photographs(8))
    embedding.save(tmp_path / "m.safetensors")
    for fitted in (embedding, kind.load(tmp_path / "m.safetensors", backbone=embedding.backbone)):
        fitted.transform(photographs(2))
        fitted.set_params(**changed)
        with pytest.raises(ValueError, match=f"with other {says};"):
            fitted.transform(photographs(2))
    embedding.fit(photographs(8)).transform(photographs(2))


def test_repr_shows_arrays():
    assert "layer=array([0, 1])" in repr(LayerEmbedding(layer=np.array([0, 1])))


def test_the_command_line_refuses_options_without_effect(folder, tmp_path):
    out, model = tmp_path / "out.npz", tmp_path / "m.safetensors"
    run("images", folder, "--fne", "-o", out, "--save-model", model)
    said = fails("images", folder, "--fne", "-o", out, "--reduce", "2", "--whiten", "--no-l2")
    assert "--l2, --reduce, --whiten cannot be used with --fne" in said
    assert "--lower cannot be used with layers, only with --fne" in fails("images", folder, "-o", out, "--lower", "-3")
    assert "--at, --fne cannot be used with --model" in fails(
        "images", folder, "-o", out, "--model", model, "--fne", "--at", "after"
    )


def test_the_command_line_does_not_overwrite_its_inputs(folder, tmp_path):
    model = tmp_path / "m.safetensors"
    run("images", folder, "--fne", "--save-model", model)
    before = model.read_bytes()
    assert "would overwrite an input" in fails("images", folder, "--model", model, "-o", model)
    assert "would overwrite an input" in fails("images", folder, "--weights", model, "-o", model)
    assert model.read_bytes() == before
