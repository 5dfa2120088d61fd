"""Layers of a network: how a trace finds them, how settings select them, and how they are tapped and pooled."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("PIL", reason="Pillow is not installed: pip install embfast[images]")
torch = pytest.importorskip("torch", reason="torch is not installed: pip install embfast[images]")

from networks import (
    ResNet,
    Tangled,
    extractor,
    features,
    photographs,
    plain,
    seeded,
    total,
    traced,
    traced_without_numbers,
    vgg16,
)
from torch import nn

from embfast.images.backbones import EfficientNetLite0
from embfast.images.pictures import Preparation
from embfast.images.pooling import POOLING, Tapped, dim_of, pooled
from embfast.images.trace import AT

# ---- layers -------------------------------------------------------------------------------------------------------


torch = pytest.importorskip("torch", reason="torch is not installed: pip install embfast[images]")


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
    # A term of a sum is taken before the addition, although the addition changes the same tensor in place.
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
    """A layer on maps with channels last, as in Swin."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x):
        return x + nn.functional.gelu(self.linear(self.norm(x)))


class Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_a_sum_has_the_channel_axis_of_its_terms():
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


def test_without_a_classifier_penultimate_is_the_output():
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
def test_a_classifier_is_found_among_several_outputs(give):
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


def test_numpy_integers_select_layers():
    found = traced(plain())
    assert found.select(np.arange(2)) == found.select([0, 1]) == found.select([np.int64(0), np.int32(1)])


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
    """The maps of a Tangled network: layer name to (output, before, after)."""
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
            assert_allclose(tapped(x), expected, atol=1e-6)  # call counts are reset


def test_layers_are_selected_by_name_pattern_and_number():
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
    assert chosen([2, 0, "0"]) == ["1", "8"]  # without repetition, in the order of the network
    assert chosen("9") == ["9"]  # the classifier too, if it is named
    assert chosen("5") == ["5"]
    assert chosen("[02]") == ["1", "4"]


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ("what", "no layer 'what': the network has 0, 2, 7, 9, and modules by their names"),
        (3, "no layer 3: the network has 3, 0 to 2"),
        (-4, "no layer -4: the network has 3"),
        ([], "at least one layer"),
    ],
)
def test_layers_that_do_not_exist(layers, match):
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


def test_tokens_have_channels_last():
    """A linear layer applied to every position, as in transformers, is pooled over all axes but the last."""

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


def test_the_network_stops_at_the_last_point():
    network, reached = plain(), []
    network[7].register_forward_pre_hook(lambda *_: reached.append(7))
    found = traced(network)
    reached.clear()
    with torch.no_grad(), Tapped(network, found.select(0)) as tapped:
        assert tapped(torch.zeros(1, 3, 16, 16)).shape == (1, 5)
    assert not reached


def test_a_network_whose_control_flow_depends_on_its_input():
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


def test_no_activation_map_outlives_its_layer():
    """Of ten maps of 1 MB each, at most two are alive at a time."""
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


class Head(nn.Module):
    """A classifier that pools its input map before its linear function."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 5))

    def forward(self, maps):
        return nn.functional.linear(maps.mean((2, 3)), self.weight)


class Flat(nn.Linear):
    """A linear layer that flattens its input."""

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
def test_penultimate_is_the_input_of_the_linear_function(named):
    network = seeded(Headed, Head(), named)
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad(), Tapped(network, traced(network).select("penultimate")) as tapped:
        assert_allclose(tapped(x), network.maps(x).relu().mean((2, 3)), atol=1e-6)
    network = seeded(Headed, Flat(5 * 14 * 14, 10))
    with torch.no_grad(), Tapped(network, traced(network).select("penultimate"), "none") as tapped:
        assert_allclose(tapped(x), network.maps(x).relu().flatten(1), atol=1e-6)


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
    """40,000 values around 1 per map: their sum in bfloat16 would stop at 256."""
    maps = torch.randn(5, 3, 200, 200).add(1).bfloat16()
    assert_allclose(pooled(maps, 1, "mean"), maps.double().mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize("pool", POOLING)
def test_dim_of_is_the_dimension_of_pooled(pool):
    pictures = photographs(2)
    made = extractor(plain(), pictures, pool=pool)
    assert features(plain(), pictures, pool=pool).shape == (2, made.dim)
    assert made.columns[-1][1] == made.dim
