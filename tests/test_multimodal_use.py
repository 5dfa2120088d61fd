"""A trained Multimodal: search, files, ONNX, a page of results, the commands."""

import base64
import json
import os
from itertools import pairwise

import numpy as np
import pytest
from multimodal_problems import SMALL, assert_same, weights, world
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from embfast import cli
from embfast.documents.doc2vec import Doc2Vec
from embfast.errors import FormatError
from embfast.multimodal.captions import Captions, encode
from embfast.multimodal.gallery import write_page
from embfast.multimodal.model import Multimodal
from embfast.vectors.vectors import Vectors


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def test_any_text_can_be_embedded(trained):
    """Unknown words are <unk>, an empty text is <end>, and a long text is truncated to max_words."""
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


def test_the_embedding_of_a_caption_does_not_depend_on_the_other_captions(trained):
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


def test_partial_fit_needs_vectors_of_the_same_size(trained, tmp_path):
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


# ---- commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Files of image vectors and captions; the last six images are "test", the four before them "dev"."""
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


def test_commands_train_search_and_evaluate(files):
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


def test_commands_resume_and_report_errors(files):
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


def test_a_page_finds_pictures_in_folders_without_their_extension(tmp_path):
    (tmp_path / "images" / "cats").mkdir(parents=True)
    for name in ("cats/1.png", "cats/1.jpg", "2.png"):
        (tmp_path / "images" / name).write_bytes(b"x")
    write_page(tmp_path / "page.html", {"q": [("cats/1", 0.5), ("2", 0.4)]}, folder=tmp_path / "images", embed=False)
    page = (tmp_path / "page.html").read_text()
    assert "images/cats/1.jpg" in page
    assert "images/2.png" in page
    with pytest.raises(FileNotFoundError, match="no such image"):
        write_page(tmp_path / "page.html", {"q": [("dogs/1", 0.5)]}, folder=tmp_path / "images")


def test_commands_do_not_overwrite_their_input(files):
    (files / "test.txt").write_text("x\n")
    where = ["train", files / "images.npz", files / "captions.tsv"]
    said = program(*where, "--split", f"test={files / 'test.txt'}", "-o", files / "test.txt", code=2).stderr
    assert "would overwrite an input" in said
    small = ["--dim", "8", "--word-dim", "8", "--batch", "16", "--epochs", "1"]
    model = files / "m.safetensors"
    program(*where, "-o", model, *small)
    before = model.read_bytes()
    assert "would overwrite an input" in program("search", model, "red", "--html", model, code=2).stderr
    assert model.read_bytes() == before


def test_pages_show_pictures_that_are_links(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "0.png").write_bytes(b"picture")
    folder = tmp_path / "folder"
    folder.mkdir()
    os.symlink(tmp_path / "kept" / "0.png", folder / "a.png")
    write_page(tmp_path / "p.html", {"x": [("a.png", 1.0)]}, folder=folder)
    assert base64.b64encode(b"picture").decode() in (tmp_path / "p.html").read_text()
    for key in ("../kept/0.png", str(tmp_path / "kept" / "0.png")):
        with pytest.raises(ValueError, match="leads out of"):
            write_page(tmp_path / "p.html", {"x": [(key, 1.0)]}, folder=folder)
