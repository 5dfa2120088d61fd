"""Captions read from the files of data sets, and their vocabulary."""

import gzip
import json

import numpy as np
import pytest

from embfast.errors import FormatError
from embfast.multimodal.captions import Captions, Linked, Texts, encode, tokenize, vocabulary
from embfast.vectors.vectors import Vectors

KARPATHY = {
    "dataset": "flickr8k",
    "images": [
        {
            "filename": "b.jpg",
            "split": "train",
            "imgid": 0,
            "sentids": [0, 1],
            "sentences": [
                {"tokens": ["a", "dog"], "raw": "A dog .", "imgid": 0, "sentid": 0},
                {"tokens": ["one", "dog"], "imgid": 0, "sentid": 1},
            ],
        },
        {"filename": "a.jpg", "split": "restval", "imgid": 1, "sentences": [{"raw": "Ein Hündchen", "tokens": []}]},
        {"filename": "c.jpg", "split": "val", "imgid": 2, "sentences": []},
        {"filename": "d.jpg", "split": "test", "imgid": 3, "sentences": [{"raw": "", "tokens": []}]},
    ],
}
COCO = {
    "info": {},
    "images": [{"id": 7, "file_name": "x.jpg"}, {"id": 3, "file_name": "y.jpg"}, {"id": 4, "file_name": "z.jpg"}],
    "annotations": [
        {"image_id": 3, "id": 1, "caption": "Two cats"},
        {"image_id": 7, "id": 2, "caption": "A man"},
        {"image_id": 3, "id": 9, "caption": "Cats sleeping"},
    ],
}


def rows(captions):
    """(image, text, split) of every caption, in order."""
    return [
        (captions.images[i], text, captions.splits[i])
        for i, text in zip(captions.owners.tolist(), captions.texts, strict=True)
    ]


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_karpathys_json(tmp_path):
    captions = Captions.from_file(written(tmp_path / "dataset.json", KARPATHY))
    assert captions.images == ["b.jpg", "a.jpg", "c.jpg", "d.jpg"]
    assert captions.splits == ["train", "train", "dev", "test"]
    assert [row[:2] for row in rows(captions)] == [
        ("b.jpg", "A dog ."),
        ("b.jpg", "one dog"),
        ("a.jpg", "Ein Hündchen"),
        ("d.jpg", ""),
    ]
    assert captions.counts.tolist() == [2, 1, 0, 1]
    train = captions.part("train")
    assert rows(train) == rows(captions)[:3]
    assert repr(captions.part("dev")) == "Captions(0 captions of 1 images; dev)"


def test_coco_json_is_one_split_each(tmp_path):
    train = Captions.from_file(written(tmp_path / "captions_train2014.json", COCO), split="train")
    assert rows(train) == [
        ("y.jpg", "Two cats", "train"),
        ("x.jpg", "A man", "train"),
        ("y.jpg", "Cats sleeping", "train"),
    ]
    assert train.images == ["x.jpg", "y.jpg", "z.jpg"]
    other = Captions.from_pairs([("q.jpg", "A hat", "dev")])
    both = Captions.joined([train, other])
    assert rows(both) == [*rows(train), ("q.jpg", "A hat", "dev")]
    with pytest.raises(ValueError, match=r"'q\.jpg' is in the splits 'dev' and 'train'"):
        Captions.joined([both, Captions.from_pairs([("q.jpg", "A hat", "train")])])


def test_flickr8k_text_and_its_splits(tmp_path):
    path = written(
        tmp_path / "Flickr8k.token.txt",
        "1_a.jpg#0\tA child .\n1_a.jpg#1\tA girl\n2_b.jpg.1#0\tlost\n3_c.jpg#0\tA dog\n",
    )
    train = written(tmp_path / "Flickr_8k.trainImages.txt", "1_a.jpg\n\n9_z.jpg\n")
    test = written(tmp_path / "Flickr_8k.testImages.txt", "3_c.jpg\n")
    captions = Captions.from_file(path, splits={"train": train, "test": test})
    assert rows(captions) == [
        ("1_a.jpg", "A child .", "train"),
        ("1_a.jpg", "A girl", "train"),
        ("2_b.jpg.1", "lost", ""),
        ("3_c.jpg", "A dog", "test"),
    ]
    assert Captions.from_file(path, splits={"train": train}, stem=True).images == ["1_a", "2_b.jpg", "3_c"]
    with pytest.raises(ValueError, match=r"testImages.txt:2: image '1_a\.jpg' is in the splits 'train' and 'test'"):
        Captions.from_file(path, splits={"train": train, "test": written(test, "3_c.jpg\n1_a.jpg\n")})
    with pytest.raises(ValueError, match="lists none of the 3 images"):
        Captions.from_file(path, splits={"train": written(train, "1_a\n")})


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg\tA dog\nb.jpg\tTwo cats\nb.jpg\tCats\n",
        "a.jpg\tA dog\ttrain\nb.jpg\tTwo cats\tval\r\nb.jpg\tCats\tval\n",
        "a.jpg\ttrain\t0\tA dog\nb.jpg\tval\t0\tTwo cats\nb.jpg\tval\t1\tCats",
        "image\tsplit\tcaption\na.jpg\ttrain\tA dog\nb.jpg\tval\tTwo cats\nb.jpg\tval\tCats\n",
        "image\tcaption\na.jpg\tA dog\nb.jpg\tTwo cats\n\nb.jpg\tCats\n",
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_tab_separated_lines(tmp_path, text, zipped):
    path = tmp_path / ("captions.tsv.gz" if zipped else "captions.tsv")
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    captions = Captions.from_file(path)
    splits = ("train", "dev") if "val" in text else ("", "")
    assert rows(captions) == [
        ("a.jpg", "A dog", splits[0]),
        ("b.jpg", "Two cats", splits[1]),
        ("b.jpg", "Cats", splits[1]),
    ]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"n": [1, 2], "caption": ["A dog", "Cats"], "image": ["a", "b"], "split": ["train", None]})
    parquet.write_table(table, tmp_path / "captions.parquet")
    assert rows(Captions.from_file(tmp_path / "captions.parquet")) == [("a", "A dog", "train"), ("b", "Cats", "")]
    parquet.write_table(table.drop_columns("image"), tmp_path / "captions.parquet")
    with pytest.raises(FormatError, match="expected columns image and caption, got n, caption, split"):
        Captions.from_file(tmp_path / "captions.parquet")
    parquet.write_table(pyarrow.table({"image": ["a"], "caption": [None]}), tmp_path / "captions.parquet")
    with pytest.raises(FormatError, match="row 1: expected two strings"):
        Captions.from_file(tmp_path / "captions.parquet")
    written(tmp_path / "captions.parquet", "no")
    with pytest.raises(FormatError, match="expected a Parquet file"):
        Captions.from_file(tmp_path / "captions.parquet")


def test_flickr8k_as_it_is(data):
    captions = Captions.from_file(data("flickr8k/captions.tsv.zst"))
    assert {name: len(captions.part(name).images) for name in ("train", "dev", "test")} == {
        "train": 6000,
        "dev": 1000,
        "test": 1000,
    }
    assert len(captions.part("test")) == 5000
    words, counts = vocabulary(captions.part("train").texts, 5)
    assert 2000 < len(words) < 4000
    assert counts[0] == 30_000


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.tsv", "a.jpg\tA dog\nb.jpg\n", r"c\.tsv:2: expected the tab-separated columns image, caption"),
        ("c.tsv", "a\tb\tc\td\n", r"c\.tsv:1: expected .* got 4 columns"),
        ("c.tsv", "\tA dog\n", r"c\.tsv:1: expected the key of an image"),
        ("c.tsv", "image\tcaption\na\tb\tc\n", r"c\.tsv:2: expected 2 columns as line 1 has, got 3"),
        ("c.tsv", "", r"c\.tsv: expected captions of images, got none"),
        ("c.json", "{", r"c\.json: expected JSON"),
        ("c.json", "[]", r'expected an object with a list "images"'),
        ("c.json", {"images": [{"split": "train"}]}, r"images\[0\]: expected filename and sentences"),
        ("c.json", {"images": [], "annotations": []}, "expected captions of images, got none"),
        ("c.json", {**COCO, "annotations": [{"image_id": 5, "caption": "?"}]}, r"annotations\[0\]: image_id 5"),
        ("c.json", {**COCO, "annotations": [{"caption": "?"}]}, r"annotations\[0\]: expected image_id and caption"),
        (
            "c.json",
            {**COCO, "annotations": [{"image_id": [5], "caption": "?"}]},
            r"annotations\[0\]: expected image_id",
        ),
        ("c.json", {**COCO, "annotations": [{"image_id": 3, "caption": 7}]}, r"annotations\[0\]: caption: .*got 7"),
        (
            "c.json",
            {**COCO, "images": [{"id": 3, "file_name": 5}]},
            r"images\[0\]: file_name: expected a string, got 5",
        ),
        ("c.json", {"images": [{"filename": 1, "sentences": []}]}, r"images\[0\]: filename: expected a string, got 1"),
        (
            "c.json",
            {"images": [{"filename": "a", "sentences": [{"raw": None}]}]},
            r"images\[0\]: sentence: expected a string, got None",
        ),
        ("c.json", {**COCO, "images": [{"id": 3}]}, r"images\[0\]: expected id and file_name"),
    ],
)
def test_errors_in_files_name_the_line_or_entry(tmp_path, name, content, says):
    with pytest.raises(FormatError, match=says):
        Captions.from_file(written(tmp_path / name, content))


def test_invalid_utf8_and_split_errors_name_the_line(tmp_path):
    (tmp_path / "c.tsv").write_bytes(b"a.jpg\tA dog\nb.jpg\tA \xff dog\n")
    with pytest.raises(FormatError, match=r"c\.tsv:2: expected UTF-8"):
        Captions.from_file(tmp_path / "c.tsv")
    with pytest.raises(ValueError, match=r"caption 2: image 'a' is in the splits 'train' and 'dev'"):
        Captions.from_file(written(tmp_path / "d.tsv", "a\tA dog\ttrain\na\tA cat\tdev\n"))
    with pytest.raises(FormatError, match="several images have the key 'a'"):
        Captions.from_file(written(tmp_path / "d.tsv", "a.jpg\tA dog\na.png\tA cat\n"), stem=True)


def test_parts_keep_texts_with_their_images():
    pairs = [(f"i{n % 7}", f"text {n} é", f"s{n % 7 % 3}") for n in range(40)]
    captions = Captions.from_pairs(pairs)
    assert rows(captions.part("s1")) == [pair for pair in pairs if pair[2] == "s1"]
    assert rows(captions.of_images(["i4", "nobody", "i0"])) == [pair for pair in pairs if pair[0] in ("i0", "i4")]
    assert captions.texts[-1] == "text 39 é"
    assert captions.texts[3:5] == ["text 3 é", "text 4 é"]
    with pytest.raises(ValueError, match=r"no image is in the split 'dev'; splits are 's0', 's1', 's2'"):
        captions.part("dev")
    with pytest.raises(IndexError):
        captions.texts[40]
    assert captions.checksum() != captions.part("s1").checksum()


def test_inconsistent_arguments_are_errors():
    with pytest.raises(ValueError, match="'a' occurs twice"):
        Captions(["a", "a"], [], [])
    with pytest.raises(ValueError, match="expected one owner for each of 2 captions"):
        Captions(["a"], [0], ["x", "y"])
    with pytest.raises(ValueError, match="indices into a list of 1 images"):
        Captions(["a"], [1], ["x"])
    with pytest.raises(ValueError, match="expected one split for each of 1 images"):
        Captions(["a"], [0], ["x"], [])
    with pytest.raises(TypeError, match="texts are strings, got 3"):
        Texts.of(["a", 3])
    with pytest.raises(ValueError, match="pair 1: expected an image, a caption"):
        Captions.from_pairs(["ab"])
    with pytest.raises(ValueError, match="expected one image for each of 1 rows, got 2"):
        Linked(Vectors(["s"], np.ones((1, 2), np.float32)), ["a", "b"])


def test_linked_rows_follow_their_images():
    vectors = Vectors([f"s{i}" for i in range(6)], np.eye(6, dtype=np.float32))
    linked = Linked(vectors, ["b", "a", "b", "c", "a", "c"], {"b": "train", "c": "train", "a": "dev"})
    train = linked.part("train")
    assert train.images == ["b", "c"]
    assert train.rows.tolist() == [0, 2, 3, 5]
    assert train.owners.tolist() == [0, 0, 1, 1]
    assert linked.of_images(["c", "x"]).rows.tolist() == [3, 5]
    with pytest.raises(ValueError, match="no row belongs to any"):
        linked.of_images(["x"])


def test_words_of_texts():
    assert tokenize("It's 2 T-shirts, über_all -- really?") == ["it's", "2", "t-shirts", "über", "all", "really"]
    assert tokenize("... !") == []
    words, counts = vocabulary(["a dog", "A cat a", "b dog"], 2)
    assert words == ["<end>", "<unk>", "a", "dog"]
    assert counts.tolist() == [3, 2, 3, 2]
    ids, offsets = encode(["a dog barks", "", "a a a a"], {"a": 2, "dog": 3}, 3)
    assert ids.tolist() == [2, 3, 1, 0, 0, 2, 2, 2, 0]
    assert offsets.tolist() == [0, 4, 5, 9]
    assert (ids.dtype, offsets.dtype) == (np.int32, np.int64)


def test_the_first_line_of_a_table(tmp_path):
    """A byte order mark is skipped, and a header must name a column of captions."""
    (tmp_path / "a.tsv").write_text("image\tsplit\tcaption\na.jpg\ttrain\ta dog\n", encoding="utf-8-sig")
    assert Captions.from_file(tmp_path / "a.tsv").images == ["a.jpg"]
    (tmp_path / "b.tsv").write_text("image\ttext\na.jpg\ta dog\n")
    with pytest.raises(FormatError, match=r"b\.tsv:1: expected a column caption besides image, got text"):
        Captions.from_file(tmp_path / "b.tsv")


def test_an_image_that_a_split_lists_twice_is_listed(tmp_path):
    path = written(tmp_path / "c.tsv", "a\tone\nb\ttwo\n")
    lists = {"train": written(tmp_path / "train.txt", "a\na\n"), "test": written(tmp_path / "test.txt", "b\n")}
    assert Captions.from_file(path, splits=lists).splits == ["train", "test"]
