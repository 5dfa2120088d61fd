"""Features of images: batches, precision, views, unreadable images, and runs that are stopped, killed and resumed."""

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

from networks import ResNet, Tangled, extractor, features, photographs, plain, seeded, vgg16
from torch import nn

from embfast.errors import FormatError
from embfast.images.pictures import Preparation, open_pictures

# ---- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_input_has_the_dtype_of_the_weights(dtype, precision):
    wide = features(plain(), photographs(3), "all", precision=precision)
    assert_allclose(features(plain().to(dtype), photographs(3), "all", precision=precision), wide, rtol=0.05, atol=0.05)


def test_a_network_is_unchanged_afterwards():
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
    """The published code forgot eval(), so features changed between runs and with the other images of a batch."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 5, 1))
    network.train()
    pictures = photographs(6)
    together = features(network, pictures)
    assert_array_equal(features(network, pictures), together)
    assert_allclose(features(network, pictures[2:3]), together[2:3], atol=1e-5)


def test_3d_convolutions():
    class Volumes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv3d(1, 4, 3)

        def forward(self, x):
            return self.layer(x[:, None]).relu()

    assert features(seeded(Volumes), photographs(2)).shape == (2, 4)


@pytest.mark.parametrize("network", [Tangled, lambda: ResNet((1, 1), 8, 5), lambda: vgg16(1 / 16, 32, 5)])
def test_an_image_has_the_same_features_in_any_batch(network):
    network, pictures = seeded(network), photographs(67, 32)
    preparation = Preparation(32, 32)
    one = features(network, pictures, batch=1, preparation=preparation)
    many = features(network, pictures, batch=64, preparation=preparation)
    assert one.shape == many.shape
    assert_allclose(one, many, atol=2e-5)


def test_images_are_standardised_by_the_preparation():
    preparation = Preparation(16, 16, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    network, pictures = plain(), photographs(3)
    ready = (pictures / 255 - preparation.mean) / preparation.std
    expected = features(network, np.float32(ready).transpose(0, 3, 1, 2))
    assert_allclose(features(network, pictures, preparation=preparation), expected, atol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(precision):
    network, pictures = plain(), photographs(6)
    full, half = features(network, pictures), features(network, pictures, precision=precision)
    assert half.dtype == np.float32
    assert_allclose(half, full, atol=0.05 * np.abs(full).max())
    assert not np.array_equal(half, full)


def test_views_are_averaged_or_concatenated():
    network, pictures = plain(), photographs(5)
    mirrored = np.ascontiguousarray(pictures[:, :, ::-1])
    both = features(network, pictures), features(network, mirrored)
    assert_allclose(features(network, pictures, views="flip", batch=4), (both[0] + both[1]) / 2, atol=1e-5)
    stacked = features(network, pictures, views="flip", combine="stack", batch=4)
    assert_allclose(stacked, np.concatenate(both, axis=1), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_give_the_same_features(tmp_path):
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


def test_a_broken_image_stops_the_run_or_is_left_out(folder_with_a_broken_one):
    pictures = open_pictures(folder_with_a_broken_one)
    with pytest.raises(FormatError, match=r"2\.png: expected an image"):
        extractor(plain(), pictures).features(pictures)
    found = extractor(plain(), pictures, errors="skip", batch=2).features(pictures)
    assert found.keys == ["0.png", "1.png", "3.png", "4.png"]
    assert list(found.broken) == ["2.png"]
    assert_allclose(found.matrix, features(plain(), photographs(5))[[0, 1, 3, 4]], atol=1e-6)


def test_floats_of_different_shapes_are_reported():
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
def test_invalid_settings_of_runs(options, match):
    with pytest.raises(ValueError, match=match):
        features(plain(), photographs(2), **options)


def test_the_random_state_of_torch_is_unchanged():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    features(plain(), photographs(3))
    assert torch.equal(torch.rand(4), expected)


def test_threads_share_a_network():
    network = plain().train()
    pictures = photographs(6)
    expected = features(network, pictures)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: features(network, pictures, batch=2), range(12)):
            assert_allclose(found, expected, atol=1e-5)
    assert all(part.training for part in network.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_floats_have_no_views():
    ready = np.random.default_rng(0).random((4, 3, 16, 16), np.float32)
    with pytest.raises(ValueError, match="views='flip' needs pixels, but 0 is given as floats"):
        features(plain(), ready, views="flip", combine="stack")


# ---- stopping and resuming ----------------------------------------------------------------------------------------


def test_a_stopped_run_resumes(tmp_path):
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
    again = extractor(network, pictures).features(pictures, tmp_path, lambda *_: pytest.fail("the run is finished"))
    assert_array_equal(again.matrix, found.matrix)


KILLED = """
import sys, time, numpy as np, torch
sys.path.insert(0, {tests!r})
from networks import photographs, plain
from embfast.images import features
from embfast.images.backbones import Backbone
from embfast.images.extract import Extractor, Run
from embfast.images.pictures import Preparation, open_pictures
features.SAVE_SECONDS = 0.0
pictures = open_pictures(photographs(40))
print("ready", flush=True)
backbone = Backbone(plain(), "test", Preparation(16, 16))
Extractor(backbone, pictures, run=Run(batch=2)).features(pictures, {work!r}, lambda done, _: time.sleep(0.2))
"""


def test_a_killed_run_resumes_from_its_last_save(tmp_path):
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
        stream.write(b"half a row")  # written after the last save
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
