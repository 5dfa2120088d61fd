"""Plots of vectors: coordinates, labels, formats, and missing libraries."""

import json
import re
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose
from test_cli import fails, run

from embfast.vectors.plot import _apart, cluster, plot, project
from embfast.vectors.vectors import Vectors

REASON = "{} is not installed: pip install embfast[plot]"
pytest.importorskip("sklearn", reason=REASON.format("scikit-learn"))
image = pytest.importorskip("matplotlib.image", reason=REASON.format("matplotlib"))


@pytest.fixture
def topics():
    """60 keys around two directions: a0..a29 around one, b0..b29 around the other."""
    random = np.random.default_rng(0)
    centers = np.repeat(np.eye(2, 20), 30, axis=0)
    rows = (centers + 0.1 * random.normal(size=(60, 20))) * random.uniform(0.5, 2, size=(60, 1))
    return Vectors([f"{'ab'[i // 30]}{i % 30}" for i in range(60)], rows.astype(np.float32))


def test_pca_is_the_projection_on_the_first_two_axes(topics):
    units = topics.matrix / np.linalg.norm(topics.matrix, axis=1, keepdims=True)
    centered = units - units.mean(axis=0)
    _, _, axes = np.linalg.svd(centered.astype(np.float64), full_matrices=False)
    found = project(topics.matrix, "pca")
    assert_allclose(np.abs(found), np.abs(centered @ axes[:2].T), atol=1e-5)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_rows_of_one_direction_are_one_point(method):
    rows = np.outer(np.arange(1, 11), [0.1, 0.7, 0.3]).astype(np.float32)
    assert_allclose(project(rows, method), np.zeros((10, 2)), atol=1e-6)


@pytest.mark.parametrize("method", ["pca", "tsne", "umap"])
def test_topics_stay_apart(topics, method):
    if method == "umap":
        pytest.importorskip("umap", reason="umap-learn is not installed: pip install umap-learn")
    places = project(topics.matrix, method, seed=3)
    assert places.shape == (60, 2)
    means = places[:30].mean(axis=0), places[30:].mean(axis=0)
    spreads = [np.linalg.norm(part - part.mean(axis=0), axis=1).mean() for part in (places[:30], places[30:])]
    assert np.linalg.norm(means[0] - means[1]) > 2 * max(spreads)
    assert_allclose(project(topics.matrix, method, seed=3), places)


def test_the_first_keys_or_the_given_ones_are_drawn(topics, tmp_path):
    places = plot(topics, tmp_path / "first.svg", n=5)
    assert list(places) == ["a0", "a1", "a2", "a3", "a4"]
    labels = (tmp_path / "first.svg").read_text()  # matplotlib writes each text as a comment next to its outline
    assert [f"<!-- {key} -->" in labels for key in ("a0", "a4", "a5", "b0")] == [True, True, False, False]
    assert list(plot(topics, tmp_path / "given.svg", ["b7", "a1", "b2", "a1"])) == ["b7", "a1", "b2"]
    assert "<!-- b7 -->" in (tmp_path / "given.svg").read_text()


def test_clusters_are_topics_and_have_different_colours(topics, tmp_path):
    found = cluster(topics.matrix, 2, seed=1)
    assert len(set(found[:30])) == len(set(found[30:])) == 1
    assert found[0] != found[30]
    plot(topics, tmp_path / "plain.svg")
    plot(topics, tmp_path / "two.svg", clusters=2)
    colours = [set(re.findall(r"fill: (#\w+)", (tmp_path / name).read_text())) for name in ("plain.svg", "two.svg")]
    assert [len(found - {"#ffffff"}) for found in colours] == [1, 2]
    assert "<!-- 30: a0, a1, a2, … -->" in (tmp_path / "two.svg").read_text()
    for wrong in (61, -1):
        with pytest.raises(ValueError, match="clusters must be from 1 to the 60 vectors"):
            plot(topics, tmp_path / "no.svg", clusters=wrong)


def test_of_many_keys_the_first_ones_get_labels_that_do_not_overlap(tmp_path):
    rows = np.random.default_rng(2).normal(size=(1500, 2)).astype(np.float32)
    vectors = Vectors([f"_key{i}" for i in range(1500)], rows)
    places = plot(vectors, tmp_path / "many.svg", n=1500, clusters=25)
    drawn = set(re.findall(r"<!-- (_key\d+) -->", (tmp_path / "many.svg").read_text()))
    assert "_key0" in drawn
    assert 50 < len(drawn) < 1400
    assert len(places) == 1500
    apart = _apart(vectors.keys, np.array(list(places.values())), 1000.0)
    corners = np.array(list(places.values()))[apart]
    corners = (corners - np.min(list(places.values()), 0)) / np.ptp(list(places.values()), axis=0) * 1000
    across, up = np.abs(corners[:, None] - corners[None]).transpose(2, 0, 1)
    assert ((across >= 4.5 * len("_key0") + 4) | (up >= 9) | np.eye(len(apart), dtype=bool)).all()


def test_a_png_shows_something_and_is_the_same_each_time(topics, tmp_path):
    for name in ("one.png", "two.png"):
        plot(topics, tmp_path / name)
    pixels = image.imread(tmp_path / "one.png")
    assert pixels.shape[0] > 500
    assert pixels[..., :3].min() < 0.2 < 0.9 < np.median(pixels[..., :3])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_labels_are_plain_text(tmp_path):
    keys = ["$5", "$x^$", "\\frac", "a_b", "{"]
    vectors = Vectors(keys, np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32))
    assert list(plot(vectors, tmp_path / "v.pdf")) == keys
    assert (tmp_path / "v.pdf").read_bytes().startswith(b"%PDF")
    vectors = Vectors(["日本", "語", "a"], np.eye(3, dtype=np.float32))
    with pytest.warns(UserWarning, match="3 characters are not in matplotlib's font"):
        plot(vectors, tmp_path / "v.png")


def test_a_failed_plot_says_why_and_writes_nothing(topics, tmp_path):
    with pytest.raises(ValueError, match=r"v\.xyz: expected a picture's extension, one of .*png"):
        plot(topics, tmp_path / "v.xyz")
    with pytest.raises(KeyError, match="'prince' is not among"):
        plot(topics, tmp_path / "v.png", ["a0", "a1", "prince"])
    for few in ({"n": 2}, {"n": -1}, {"keys": ["a0", "a0", "a1"]}, {"keys": []}):
        with pytest.raises(ValueError, match="at least 3 vectors of size 2 or more, got"):
            plot(topics, tmp_path / "v.png", **few)
    with pytest.raises(ValueError, match="at least 4 vectors"):
        plot(topics, tmp_path / "v.png", n=3, method="umap")
    with pytest.raises(ValueError, match="got 3 of size 1"):
        plot(Vectors(["a", "b", "c"], np.ones((3, 1), np.float32)), tmp_path / "v.png")
    with pytest.raises(ValueError, match="method must be one of pca, tsne, umap, got 'mds'"):
        plot(topics, tmp_path / "v.png", method="mds")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "method", "advice"),
    [
        ("matplotlib.figure", "pca", r"pip install embfast\[plot\]"),
        ("sklearn.manifold", "tsne", r"pip install embfast\[plot\]"),
        ("umap", "umap", "pip install umap-learn"),
    ],
)
def test_a_missing_library_is_named(topics, tmp_path, monkeypatch, module, method, advice):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=advice):
        plot(topics, tmp_path / "v.png", method=method)


def test_the_command_draws(topics, tmp_path):
    topics.save(tmp_path / "v.bin")
    result = run("plot", tmp_path / "v.bin", "-o", tmp_path / "v.png", "--top", 10)
    assert (tmp_path / "v.png").read_bytes().startswith(b"\x89PNG")
    assert "10 words" in result.stderr
    assert result.stdout == ""
    shown = json.loads(run("plot", tmp_path / "v.bin", "a1", "b1", "b2", "-o", tmp_path / "v.svg", "--json").stdout)
    assert list(shown["places"]) == ["a1", "b1", "b2"]
    assert len(shown["places"]["a1"]) == 2
    assert "'c' is not among" in fails("plot", tmp_path / "v.bin", "c", "a1", "b1", "-o", tmp_path / "v.svg")
    assert "extension" in fails("plot", tmp_path / "v.bin", "-o", tmp_path / "v.xyz")
