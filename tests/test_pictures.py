"""Sources and preparation of images: formats, modes, EXIF, views, and broken files."""

import io
import tarfile

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install embfast[images]")

from embfast.errors import FormatError
from embfast.images.pictures import Preparation, encoder_of, open_pictures, thumbnail_of, upright_rgb

SQUARE = Preparation(4, 0, interpolation="nearest")
RED, WHITE = [255, 0, 0], [255, 255, 255]


def solid(mode, color, size=(6, 6)):
    return Image.new(mode, size, color)


def saved(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def test_a_list_of_paths(tmp_path):
    """Paths may be absolute or relative to the list. Keys are its lines, without a byte order mark."""
    here = saved(solid("RGB", "red"), tmp_path / "lists" / "a.png")
    there = saved(solid("RGB", "white"), tmp_path / "elsewhere" / "b.png")
    (tmp_path / "lists" / "all.txt").write_text(f"a.png\n\n{there}\n", encoding="utf-8-sig")
    found = open_pictures(tmp_path / "lists" / "all.txt")
    assert found.keys == ["a.png", str(there)]
    assert [found.read_ready(i, SQUARE)[0, 0, 0].tolist() for i in (0, 1)] == [RED, WHITE]
    before = found.checksum()
    assert before == open_pictures([here, there]).checksum()
    saved(solid("RGB", "red", (9, 9)), here)
    assert found.checksum() != before


@pytest.mark.parametrize("wrong", [{"mean": (np.nan, 0, 0)}, {"std": (1, np.inf, 1)}, {"std": (1, 0, 1)}], ids=str)
def test_invalid_mean_or_std(wrong):
    with pytest.raises(ValueError, match="mean and std"):
        Preparation(**wrong)


def test_checksums_distinguish_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
    changed = pixels.copy()
    changed[19, 5, 5, 2] ^= 1
    kinds = [
        lambda p: p,
        list,
        lambda p: [Image.fromarray(one) for one in p],
        lambda p: type("Data", (), {"__len__": lambda _: len(p), "__getitem__": lambda _, i: (p[i], i)})(),
        lambda p: type(
            "Data", (), {"__len__": lambda _: len(p), "__getitem__": lambda _, i: {"image": p[i].tobytes()}}
        )(),
    ]
    for make in kinds:
        first, again, other = (open_pictures(make(p)).checksum() for p in (pixels, pixels.copy(), changed))
        assert first == again != other


# ---- one image ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (solid("L", 100), [100] * 3),
        (solid("1", 1), WHITE),
        (solid("RGB", (1, 2, 3)), [1, 2, 3]),
        (solid("RGBA", (255, 0, 0, 255)), RED),
        (solid("RGBA", (0, 0, 0, 0)), WHITE),  # the colour of transparent pixels does not count
        (solid("LA", (0, 0)), WHITE),
        (solid("P", 0), [0, 0, 0]),
        (solid("CMYK", (0, 255, 255, 0)), RED),
        (solid("I;16", 0xFFFF), WHITE),
        (solid("I;16", 257 * 100), [100] * 3),
        (solid("I", 65535), WHITE),
        (solid("I", 90), [90] * 3),
        (solid("F", 0.4), [102] * 3),
        (solid("F", 200.0), [200] * 3),
        (solid("YCbCr", (255, 128, 128)), WHITE),
    ],
    ids=lambda value: value.mode if hasattr(value, "mode") else "",
)
def test_every_mode_becomes_rgb(image, expected):
    assert_array_equal(SQUARE(image), np.broadcast_to(np.uint8(expected), (1, 4, 4, 3)))


def test_a_16_bit_png_is_read_in_full(tmp_path):
    values = np.array([[0, 257 * 50], [257 * 128, 65535]], np.uint16)
    path = saved(Image.fromarray(values), tmp_path / "deep.png")
    with Image.open(path) as image:
        assert_array_equal(np.asarray(upright_rgb(image))[:, :, 0], [[0, 50], [128, 255]])


def test_a_palette_with_a_transparent_colour_is_put_on_white(tmp_path):
    image = solid("P", 0)
    image.putpalette([10, 20, 30])
    path = saved(image, tmp_path / "clear.png", transparency=0)
    with Image.open(path) as image:
        assert_array_equal(np.asarray(upright_rgb(image))[0, 0], WHITE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotates_an_image_upright(tmp_path, orientation):
    """Whatever the orientation, the left half of the upright image is red."""
    back = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    back |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, :6] = RED
    image = Image.fromarray(pixels)
    if orientation > 1:
        image = image.transpose(Image.Transpose[back[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(image, tmp_path / "turned.png", exif=exif)
    with Image.open(path) as found:
        assert_array_equal(np.asarray(upright_rgb(found)), pixels)


def test_the_shorter_side_is_resized_and_the_center_cropped():
    """The middle third of a wide image is white, the rest black."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    made = Preparation(8, 10, interpolation="nearest")(Image.fromarray(pixels))
    assert made.shape == (1, 8, 8, 3)
    assert (made == 255).all()
    squashed = Preparation(9, 0, interpolation="nearest")(Image.fromarray(pixels))[0, 4, :, 0]
    assert_array_equal(squashed, [0] * 3 + [255] * 3 + [0] * 3)


def test_resizing_is_antialiased():
    """An image of alternating columns shrinks to grey, not to the columns that sampling hits."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2] = 255
    made = Preparation(8, 8)(Image.fromarray(pixels))
    assert_allclose(made, 127.5, atol=6)


def test_an_image_of_one_pixel():
    assert_array_equal(Preparation(4, 5)(solid("RGB", (9, 8, 7), (1, 1))), np.full((1, 4, 4, 3), [9, 8, 7]))


def test_a_very_narrow_image_is_refused():
    with pytest.raises(ValueError, match="100000 x 1 pixels is too narrow"):
        Preparation(224, 256)(solid("L", 0, (100_000, 1)))


def test_views():
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    image, make = Image.fromarray(pixels), Preparation(4, 6, interpolation="nearest")
    middle = pixels[1:5, 2:6]
    assert_array_equal(make(image, "one"), middle[None])
    assert_array_equal(make(image, "flip"), [middle, middle[:, ::-1]])
    assert_array_equal(make(image, "rotations"), [np.rot90(middle, turns) for turns in range(4)])
    corners = [middle, pixels[:4, :4], pixels[:4, 4:], pixels[2:, :4], pixels[2:, 4:]]
    assert_array_equal(make(image, "ten"), [*corners, *(corner[:, ::-1] for corner in corners)])
    with pytest.raises(ValueError, match="views must be one of one, flip, rotations, ten, got 'many'"):
        make(image, "many")


def test_decoding_a_large_jpeg_at_a_smaller_scale_changes_little(tmp_path):
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((1600, 1600), 2)
    path = saved(coarse, tmp_path / "large.jpg", quality=95)
    with Image.open(path) as image:
        fast = Preparation(64, 64)(image)
        assert max(image.size) < 1600
    with Image.open(path) as image:
        full = Preparation(64, 64)(image.convert("RGB"))
    assert_allclose(fast.astype(int), full, atol=4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 0}, "resize must be 0 or at least size"),
        ({"size": 10, "resize": 9}, "got 9 and 10"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest"),
        ({"std": (1, 1, 0)}, "std above 0"),
    ],
)
def test_invalid_preparations(options, match):
    with pytest.raises(ValueError, match=match):
        Preparation(**options)


# ---- sources ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["b/2.png", "a/1.png", "b/deep/3.JPG"]):
        saved(solid("RGB", (50 * i, 0, 0)), tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    (tmp_path / "pictures" / "._1.png").write_bytes(b"left by a Mac")
    return tmp_path / "pictures"


def test_a_folder(folder):
    pictures = open_pictures(folder)
    assert pictures.keys == ["a/1.png", "b/2.png", "b/deep/3.JPG"]
    assert_array_equal(pictures.read_ready(0, SQUARE)[0, 0, 0], [50, 0, 0])


def test_files_and_a_list_of_files(folder, tmp_path):
    paths = [folder / "b/2.png", folder / "a/1.png"]
    assert open_pictures(paths).keys == [str(path) for path in paths]
    assert open_pictures(str(paths[0])).keys == [str(paths[0])]
    listed = folder / "list.txt"
    listed.write_text("b/2.png\n\na/1.png\n")
    assert open_pictures(listed).keys == ["b/2.png", "a/1.png"]


def write_tar(path, names, mode="w"):
    with tarfile.open(path, mode) as archive:
        for i, name in enumerate(names):
            stream = io.BytesIO()
            if name.endswith(".png"):
                solid("RGB", (10 * i, 0, 0)).save(stream, "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(stream.getvalue())
            archive.addfile(member, io.BytesIO(stream.getvalue()))


def test_tar_shards(tmp_path):
    write_tar(tmp_path / "s-00.tar", ["x.png", "x.cls", "y.png"])
    write_tar(tmp_path / "s-01.tar", ["x.png"])
    one = open_pictures(tmp_path / "s-00.tar")
    assert one.keys == ["x.png", "y.png"]
    assert_array_equal(one.read_ready(1, SQUARE)[0, 0, 0], [20, 0, 0])
    both = open_pictures(f"{tmp_path}/s-{{00..01}}.tar")
    assert both.keys == ["s-00/x.png", "s-00/y.png", "s-01/x.png"]
    write_tar(tmp_path / "packed.tar", ["x.png"], "w:gz")
    with pytest.raises(FormatError, match=r"packed\.tar: expected an uncompressed tar"):
        open_pictures(tmp_path / "packed.tar")


def test_arrays():
    grey = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    assert_array_equal(open_pictures(grey).read_ready(1, SQUARE)[0, :, :, 2], grey[1])
    color = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    assert_array_equal(open_pictures(color).read_ready(1, SQUARE)[0], color[1])
    deep = color.astype(np.uint16) * 257
    assert_array_equal(open_pictures(deep).read_ready(1, SQUARE)[0], color[1])
    ready = np.ones((2, 3, 5, 5))
    found = open_pictures(ready).read_ready(0, SQUARE)
    assert found.dtype == np.float32
    assert found.shape == (1, 3, 5, 5)
    assert open_pictures([color[0], Image.fromarray(color[1])]).keys == ["0", "1"]
    assert_array_equal(open_pictures([color[0], Image.fromarray(color[1])]).read_ready(1, SQUARE)[0], color[1])


def test_tensors_have_channels_first():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install embfast[images]")
    color = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    tensor = torch.from_numpy(color.transpose(0, 3, 1, 2).copy())
    assert_array_equal(open_pictures(tensor).read_ready(1, SQUARE)[0], color[1])


def test_data_sets():
    image = solid("RGB", (7, 8, 9))
    stream = io.BytesIO()
    image.save(stream, "PNG")

    class Dataset:
        def __init__(self, item):
            self.item = item

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return self.item

    columns = {"label": 0, "image": image}
    for item in (image, (image, 4), columns, {"img": {"bytes": stream.getvalue(), "path": None}}):
        pictures = open_pictures(Dataset(item))
        assert pictures.keys == ["0", "1", "2"]
        for _ in range(2):  # images that the data set keeps are not closed
            assert_array_equal(pictures.read_ready(2, SQUARE)[0, 0, 0], [7, 8, 9])
    assert_array_equal(open_pictures(Dataset({"mine": image}), "mine").read_ready(0, SQUARE)[0, 0, 0], [7, 8, 9])
    with pytest.raises(FormatError, match="0: expected an image: has 'mine', 'label'; name the one to read"):
        open_pictures(Dataset({"mine": image, "label": 0})).read_ready(0, SQUARE)


def test_a_broken_image_is_named(folder):
    whole = (folder / "a/1.png").read_bytes()
    (folder / "a/cut.png").write_bytes(whole[:40])
    (folder / "a/empty.png").write_bytes(b"")
    (folder / "a/text.png").write_text("hello")
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(stream, "JPEG")
    (folder / "a/half.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    pictures = open_pictures(folder)
    broken = [key for key in pictures.keys if key.split("/")[-1] in ("cut.png", "empty.png", "text.png", "half.jpg")]
    assert len(broken) == 4
    for key in broken:
        with pytest.raises(FormatError, match=rf"{key}: expected an image: "):
            pictures.read_ready(pictures.keys.index(key), SQUARE)
    missing = open_pictures([folder / "gone.png"])
    with pytest.raises(FormatError, match=r"gone\.png: expected an image: .*No such file"):
        missing.read_ready(0, SQUARE)


@pytest.mark.parametrize(
    ("images", "error", "match"),
    [
        ("nowhere", FileNotFoundError, "nowhere: no such file or folder"),
        ([], ValueError, "at least one image, got none"),
        (np.zeros((4, 4), np.uint8), ValueError, r"expected an array \(n, height, width\[, channels\]\), got \(4, 4\)"),
        (iter([]), TypeError, "expected a folder, files, an array or a data set"),
        (["a.png", "a.png"], ValueError, "'a.png' occurs more than once"),
    ],
)
def test_invalid_sources(images, error, match):
    with pytest.raises(error, match=match):
        open_pictures(images)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"no images with these extensions: \.avif"):
        open_pictures(tmp_path)


@pytest.mark.parametrize("array", [np.zeros((2, 4, 4), np.int64), np.zeros((2, 4, 4, 2), np.uint8)])
def test_arrays_that_are_no_images(array):
    with pytest.raises(FormatError, match="0: expected an image: expected pixels"):
        open_pictures(array).read_ready(0, SQUARE)


def test_thumbnails_keep_their_aspect_ratio(folder):
    wide = open_pictures([Image.new("RGB", (40, 20), "red")])
    assert thumbnail_of(wide, 0, 10).shape == (5, 10, 3)
    with pytest.raises(ValueError, match=r"x\.what: expected an image extension"):
        encoder_of("x.what")


def test_folders_lists_and_files_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/one.png", "a/deep/two.png", "b/one.png", "c.png"):
        saved(solid("RGB", "red"), tmp_path / name)
    (tmp_path / "more.txt").write_text("b/one.png\n")
    found = open_pictures(["a", "c.png", "more.txt"])
    assert found.keys == ["a/deep/two.png", "a/one.png", "c.png", "b/one.png"]
    assert all(found.read_ready(i, SQUARE)[0, 0, 0].tolist() == RED for i in range(4))
    assert open_pictures(["a/", "b"]).keys == ["a/deep/two.png", "a/one.png", "b/one.png"]


def test_patterns_of_shards_are_expanded_everywhere(tmp_path):
    for name in ("s-0", "s-1", "u-0"):
        write_tar(tmp_path / f"{name}.tar", ["x.png"])
    assert open_pictures(f"{tmp_path}/s-{{0..0}}.tar").keys == ["x.png"]
    assert len(open_pictures([f"{tmp_path}/s-{{0..1}}.tar", tmp_path / "u-0.tar"])) == 3
    solid("RGB", (1, 2, 3)).save(tmp_path / "p{0..1}.png")  # a file with exactly this name
    assert len(open_pictures(tmp_path / "p{0..1}.png")) == 1
    with pytest.raises(ValueError, match=r"tars cannot be joined with other files, as .*s-0\.tar with .*p\.png"):
        open_pictures([tmp_path / "s-0.tar", tmp_path / "p.png"])


def test_a_list_of_paths_must_be_utf8(tmp_path):
    (tmp_path / "list.txt").write_bytes("é.png".encode("latin-1"))
    with pytest.raises(FormatError, match=r"list\.txt: expected a list of paths in UTF-8"):
        open_pictures(tmp_path / "list.txt")


def test_bfloat16_tensors_are_read():
    torch = pytest.importorskip("torch")
    ready = torch.rand(2, 3, 6, 6).bfloat16()
    assert_array_equal(open_pictures(ready).read_ready(1, SQUARE)[0], ready[1].float().numpy())
