"""Captions of images, read from the files of published data sets; their vocabulary; rows of Vectors linked to images.

Sources: Flickr8k (Hodosh et al. 2013), Karpathy's dataset_*.json (Karpathy & Fei-Fei 2015), COCO captions (Chen et al.
2015); words and their ids as in Kiros et al. 2014, where every caption ends with an end token.
"""

import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from embfast.errors import FormatError
from embfast.files.durable import FilePath
from embfast.files.texts import Texts
from embfast.text.sources import plain_chunks

END, UNKNOWN = "<end>", "<unk>"
SPECIAL = (END, UNKNOWN)  # ids 0 and 1 of every vocabulary

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SPLITS = {"restval": "train", "val": "dev", "valid": "dev", "validation": "dev"}


def tokenize(text: str) -> list[str]:
    """Splits a text into lower-cased words: letters and digits, with inner apostrophes and hyphens.

    Punctuation is dropped.

    >>> tokenize("A tri-colored dog's toy , running .")
    ['a', 'tri-colored', "dog's", 'toy', 'running']
    """
    return _WORD.findall(text.lower())


class Captions:
    """Texts that describe images: any number per image, including none.

    >>> captions = Captions.from_pairs([("a.jpg", "A dog runs ."), ("a.jpg", "A brown dog"), ("b.jpg", "Two cats")])
    >>> captions
    Captions(3 captions of 2 images)
    >>> captions.texts[1], captions.images[captions.owners[1]]
    ('A brown dog', 'a.jpg')

    Attributes:
        images: list of distinct image keys.
        owners: int32 (captions,), the index in `images` of each caption's image.
        texts: the captions; stored in UTF-8, one after the other, and decoded on access.
        splits: the split of each image, or "" if the file names none.

    Memory: the bytes of the texts, 12 bytes per caption and about 150 per image key. A JSON file is in memory as a
    whole while it is parsed; other files are read in chunks.
    """

    def __init__(
        self, images: Iterable[str], owners: Any, texts: "Iterable[str] | Texts", splits: Iterable[str] | None = None
    ) -> None:
        self.images = list(images)
        self.owners = np.ascontiguousarray(owners, np.int32)
        self.texts = texts if isinstance(texts, Texts) else Texts.of(texts)
        self.splits = [""] * len(self.images) if splits is None else list(splits)
        if len(set(self.images)) != len(self.images):
            twice = next(key for key, n in Counter(self.images).items() if n > 1)
            raise ValueError(f"image keys must be distinct: {twice!r} occurs twice")
        if self.owners.shape != (len(self.texts),):
            raise ValueError(f"expected one owner for each of {len(self.texts)} captions, got {self.owners.shape}")
        if len(self.owners) and not 0 <= int(self.owners.min()) <= int(self.owners.max()) < len(self.images):
            raise ValueError(f"owners must be indices into a list of {len(self.images)} images")
        if len(self.splits) != len(self.images):
            raise ValueError(f"expected one split for each of {len(self.images)} images, got {len(self.splits)}")

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        named = sorted({split for split in self.splits if split})
        found = f"; {', '.join(named)}" if named else ""
        return f"Captions({len(self)} captions of {len(self.images)} images{found})"

    @property
    def counts(self) -> np.ndarray:
        """Number of captions of each image, int64 (images,)."""
        return np.bincount(self.owners, minlength=len(self.images))

    def part(self, split: str) -> "Captions":
        """Selects the images of one split and their captions.

        Raises:
            ValueError: no image is in this split.
        """
        chosen = np.array([name == split for name in self.splits], bool)
        return self._taken(chosen, f"is in the split {split!r}; splits are", self.splits)

    def of_images(self, keys: Iterable[str]) -> "Captions":
        """Selects the images with these keys and their captions; unknown keys are ignored.

        Raises:
            ValueError: none of the keys is known.
        """
        wanted = set(keys)
        chosen = np.array([key in wanted for key in self.images], bool)
        return self._taken(chosen, "has any of these keys; keys are", self.images)

    def _taken(self, chosen: np.ndarray, what: str, among: list[str]) -> "Captions":
        if not chosen.any():
            found = sorted(set(among))
            more = " ..." if len(found) > 6 else ""
            raise ValueError(f"no image {what} {', '.join(map(repr, found[:6]))}{more}")
        place = np.cumsum(chosen) - 1
        kept = np.flatnonzero(chosen[self.owners]) if len(self.owners) else np.empty(0, np.int64)
        rows = np.flatnonzero(chosen).tolist()
        return Captions(
            [self.images[i] for i in rows],
            place[self.owners[kept]],
            self.texts.take(kept),
            [self.splits[i] for i in rows],
        )

    def checksum(self) -> int:
        """CRC-32 of images, owners and texts."""
        crc = zlib.crc32("\0".join(self.images).encode("utf-8", "surrogatepass"))
        return zlib.crc32(self.owners.data, zlib.crc32(self.texts.utf8.data, zlib.crc32(self.texts.offsets.data, crc)))

    # ---- reading --------------------------------------------------------------------------------------------------

    @classmethod
    def from_pairs(cls, pairs: Iterable[Sequence[str]]) -> "Captions":
        """Builds Captions from (image, text) or (image, text, split).

        All captions of an image must name the same split.
        """
        return _collect(pairs, "pair")

    @classmethod
    def from_file(
        cls, path: FilePath, *, splits: Mapping[str, FilePath] | None = None, stem: bool = False, split: str = ""
    ) -> "Captions":
        """Reads a file of captions; the extension and the contents determine its format.

        - JSON: Karpathy's dataset_*.json ("restval" counts as train), or COCO's captions_*.json. A COCO file is one
          split: pass split="train".
        - Flickr8k.token.txt: lines of image#number, a tab and a caption; pass splits={"train":
          "Flickr_8k.trainImages.txt", ...}, files with one image per line.
        - Tab-separated lines, plain or compressed: image, caption; image, caption, split; or image, split, number,
          caption. A first line that begins with "image" and a tab names the columns, which must include caption.
        - Parquet with columns image, caption and, optionally, split.

        Splits are named "train", "dev" and "test"; "val" becomes "dev".

        Args:
            splits: for each split, the file that lists its images. Images in no list keep the split in the captions
                file.
            stem: drop directory and extension from image keys: "images/a.jpg" becomes "a".
            split: the split of images for which the file names none.

        Raises:
            FormatError: the file holds no image, or a line or an entry is malformed; the message says where.
            ValueError: an image is in two splits, or a list names no image of the file.
        """
        name = os.fspath(path)
        if name.endswith(".json"):
            captions = _from_json(path)
        elif name.endswith(".parquet"):
            captions = _collect(_parquet_pairs(path), f"{name}: row")
        else:
            captions = _collect(_line_pairs(path), f"{name}: caption")
        if not captions.images:
            raise FormatError(f"{name}: expected captions of images, got none")
        if stem:
            captions = _stemmed(captions, name)
        if splits:
            captions = _with_splits(captions, splits, stem)
        captions.splits = [_SPLITS.get(one, one) or split for one in captions.splits]
        return captions

    @classmethod
    def joined(cls, parts: Iterable["Captions"]) -> "Captions":
        """Joins several sets, such as COCO's two files. An image in several of them must be in the same split."""
        parts = list(parts)
        place: dict[str, int] = {}
        splits: list[str] = []
        owners = []
        for part in parts:
            rows = np.array([place.setdefault(key, len(place)) for key in part.images], np.int32)
            for row, key, split in zip(rows.tolist(), part.images, part.splits, strict=True):
                if row == len(splits):
                    splits.append(split)
                elif splits[row] != split:
                    raise ValueError(f"image {key!r} is in the splits {splits[row]!r} and {split!r}")
            owners.append(rows[part.owners])
        return cls(
            place, np.concatenate([*owners, np.empty(0, np.int32)]), Texts.joined([p.texts for p in parts]), splits
        )


class Linked:
    """Rows of Vectors that belong to images and replace captions: spoken captions, sketches, other views.

    >>> from embfast.vectors.vectors import Vectors
    >>> spoken = Vectors(["s1", "s2", "s3"], np.eye(3, dtype=np.float32))
    >>> Linked(spoken, ["a.jpg", "a.jpg", "b.jpg"])
    Linked(3 rows of dim 3, of 2 images)

    Args:
        vectors: any Vectors.
        owners: the key of each row's image.
        splits: the split of images, by key. Images without an entry are in no split.
    """

    def __init__(self, vectors: Any, owners: Iterable[str], splits: Mapping[str, str] | None = None) -> None:
        owners = list(owners)
        if len(owners) != len(vectors):
            raise ValueError(f"expected one image for each of {len(vectors)} rows, got {len(owners)}")
        self.vectors = vectors
        place: dict[str, int] = {}
        self.owners = np.array([place.setdefault(key, len(place)) for key in owners], np.int32)
        self.images = list(place)
        self.splits = [(splits or {}).get(key, "") for key in self.images]
        self.rows = np.arange(len(owners))

    def __len__(self) -> int:
        return len(self.owners)

    def __repr__(self) -> str:
        return f"Linked({len(self)} rows of dim {self.vectors.dim}, of {len(self.images)} images)"

    def part(self, split: str) -> "Linked":
        """Selects the images of one split and their rows."""
        return self.of_images(key for key, name in zip(self.images, self.splits, strict=True) if name == split)

    def of_images(self, keys: Iterable[str]) -> "Linked":
        """Selects the images with these keys and their rows; unknown keys are ignored."""
        wanted = set(keys)
        chosen = np.array([key in wanted for key in self.images], bool)
        if not chosen.any():
            raise ValueError("no row belongs to any of these images")
        part = object.__new__(Linked)
        kept = np.flatnonzero(chosen[self.owners])
        part.vectors, part.rows = self.vectors, self.rows[kept]
        part.owners = (np.cumsum(chosen) - 1)[self.owners[kept]].astype(np.int32)
        part.images = [key for key in self.images if key in wanted]
        part.splits = [name for key, name in zip(self.images, self.splits, strict=True) if key in wanted]
        return part

    def checksum(self) -> int:
        """CRC-32 of owners and image keys."""
        return zlib.crc32(self.owners.data, zlib.crc32("\0".join(self.images).encode("utf-8", "surrogatepass")))


# ---- words --------------------------------------------------------------------------------------------------------


def vocabulary(texts: Iterable[str], min_count: int) -> tuple[list[str], np.ndarray]:
    """Returns <end>, <unk> and the words that occur at least min_count times, most frequent first; and the counts.

    The count of <end> is the number of texts, that of <unk> the number of occurrences of rarer words.
    """
    counts: Counter[str] = Counter()
    n = 0
    for n, text in enumerate(texts, 1):  # noqa: B007
        counts.update(tokenize(text))
    kept = sorted(((word, c) for word, c in counts.items() if c >= min_count), key=lambda pair: (-pair[1], pair[0]))
    unknown = counts.total() - sum(c for _, c in kept)
    return [*SPECIAL, *(word for word, _ in kept)], np.array([n, unknown, *(c for _, c in kept)], np.int64)


def encode(texts: Iterable[str], words: Mapping[str, int], max_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Encodes texts as word ids, int32, with the offsets of the texts, int64 (n + 1,).

    Each text is truncated to max_words words and ends with <end>; unknown words become <unk>. An empty text is <end>
    alone.

    >>> encode(["a dog ran", ""], {"<end>": 0, "<unk>": 1, "a": 2, "dog": 3}, 50)[0].tolist()
    [2, 3, 1, 0, 0]
    """
    ids: list[np.ndarray] = []
    ends = [0]
    for text in texts:
        row = [words.get(word, 1) for word in tokenize(text)[:max_words]]
        row.append(0)
        ids.append(np.array(row, np.int32))
        ends.append(ends[-1] + len(row))
    return np.concatenate([*ids, np.empty(0, np.int32)]), np.array(ends, np.int64)


# ---- files --------------------------------------------------------------------------------------------------------


def _collect(rows: Iterable[Sequence[str | None]], what: str) -> Captions:
    """Builds Captions from rows (image, text) or (image, text, split); text None is an image without a caption."""
    place: dict[str, int] = {}
    splits: list[str] = []
    owners: list[int] = []

    def texts() -> Iterator[str]:
        for number, row in enumerate(rows, 1):
            if isinstance(row, str) or not 2 <= len(row) <= 3:
                raise ValueError(f"{what} {number}: expected an image, a caption and optionally a split, got {row!r}")
            image, text, *rest = row
            split = (rest[0] or "") if rest else ""
            if not isinstance(image, str) or not image:
                raise ValueError(f"{what} {number}: expected the key of an image, got {image!r}")
            at = place.setdefault(image, len(place))
            if at == len(splits):
                splits.append(split)
            elif splits[at] != split:
                raise ValueError(f"{what} {number}: image {image!r} is in the splits {splits[at]!r} and {split!r}")
            if text is not None:
                owners.append(at)
                yield text

    encoded = Texts.of(texts())
    return Captions(place, np.array(owners, np.int32), encoded, splits)


def _lines(path: FilePath) -> Iterator[str]:
    """Yields the lines of a text file, plain or compressed, reading it in chunks."""
    rest, number = b"", 0
    try:
        for chunk in plain_chunks(path, None):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                number += 1
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
        number += 1
        if rest:
            yield rest.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
    except UnicodeDecodeError as error:
        raise FormatError(f"{os.fspath(path)}:{number}: expected UTF-8, got {error.object[:80]!r}") from None


def _line_pairs(path: FilePath) -> Iterator[tuple[str, str, str]]:
    columns: list[int] | None = None
    for number, line in enumerate(_lines(path), 1):
        fields = line.split("\t")
        if number == 1 and fields[0] == "image":
            if "caption" not in fields:
                raise FormatError(f"{path}:1: expected a column caption besides image, got {', '.join(fields[1:])}")
            columns = [fields.index("image"), fields.index("caption")]
            columns += [fields.index("split")] if "split" in fields else []
            width = len(fields)
            continue
        if not line.strip():
            continue
        if columns is not None:
            if len(fields) != width:
                raise FormatError(f"{path}:{number}: expected {width} columns as line 1 has, got {len(fields)}")
            row = [fields[i] for i in columns]
        elif len(fields) == 4 and fields[2].isdigit():
            row = [fields[0], fields[3], fields[1]]
        elif len(fields) in (2, 3):
            row = fields
            if len(fields) == 2 and (numbered := re.fullmatch(r"(.+)#\d+", fields[0])):
                row = [numbered.group(1), fields[1]]
        else:
            raise FormatError(
                f"{path}:{number}: expected the tab-separated columns image, caption (and optionally split), or image, "
                f"split, number, caption, got {len(fields)} columns: {line[:80]!r}"
            )
        if not row[0]:
            raise FormatError(f"{path}:{number}: expected the key of an image, got an empty column")
        yield (row[0], row[1], row[2] if len(row) == 3 else "")


def _parquet_pairs(path: FilePath) -> Iterator[tuple[str, str, str]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install embfast[parquet]") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in ("image", "caption", "split") if name in names]
            if columns[:2] != ["image", "caption"]:
                raise FormatError(f"{path}: expected columns image and caption, got {', '.join(names)}")
            first = 0
            for batch in file.iter_batches(columns=columns):
                for row in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                    first += 1
                    if not all(isinstance(value, str) for value in row[:2]):
                        raise FormatError(f"{path}: row {first}: expected two strings, got {row!r}")
                    yield (row[0], row[1], row[2] if len(row) == 3 else "")
    except ArrowInvalid as error:
        raise FormatError(f"{path}: expected a Parquet file: {error}") from None


def _from_json(path: FilePath) -> Captions:
    """Reads Karpathy's format, with sentences inside images, or COCO's, with a separate list of annotations."""
    try:
        with open(path, "rb") as stream:
            data = json.load(stream)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path}: expected JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise FormatError(f"{path}: expected an object with a list \"images\", as in Karpathy's format or COCO's")
    rows = _coco_rows(data, path) if "annotations" in data else _karpathy_rows(data, path)
    return _collect(rows, f"{path}: caption")


def _karpathy_rows(data: dict[str, Any], path: FilePath) -> Iterator[tuple[str, str | None, str]]:
    for number, image in enumerate(data["images"]):
        try:
            key, split, sentences = image["filename"], image.get("split", ""), image["sentences"]
            texts = [s["raw"] if "raw" in s else " ".join(s["tokens"]) for s in sentences]
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path}: images[{number}]: expected filename and sentences: {error!r}") from None
        for what, value in (("filename", key), ("split", split), *(("sentence", text) for text in texts)):
            _expect_text(path, f"images[{number}]", what, value)
        split = _SPLITS.get(split, split)
        yield from ((key, text, split) for text in texts or [None])


def _coco_rows(data: dict[str, Any], path: FilePath) -> Iterator[tuple[str, str | None, str]]:
    names: dict[Any, str] = {}
    for number, image in enumerate(data["images"]):
        try:
            names[image["id"]] = image["file_name"]
        except (KeyError, TypeError) as error:
            raise FormatError(f"{path}: images[{number}]: expected id and file_name: {error!r}") from None
        _expect_text(path, f"images[{number}]", "file_name", image["file_name"])
    for name in names.values():  # first, to keep the order of the images and those without captions
        yield (name, None, "")
    for number, annotation in enumerate(data["annotations"]):
        try:
            image, text = annotation["image_id"], annotation["caption"]
            of = names.get(image)
        except (KeyError, TypeError) as error:
            raise FormatError(f"{path}: annotations[{number}]: expected image_id and caption: {error!r}") from None
        if of is None:
            raise FormatError(f"{path}: annotations[{number}]: image_id {image!r} is not in the list of images")
        _expect_text(path, f"annotations[{number}]", "caption", text)
        yield (of, text, "")


def _expect_text(path: FilePath, place: str, what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise FormatError(f"{path}: {place}: {what}: expected a string, got {value!r}")


def _stem(key: str) -> str:
    return os.path.splitext(key.rsplit("/", 1)[-1])[0]


def _stemmed(captions: Captions, name: str) -> Captions:
    stems = [_stem(key) for key in captions.images]
    if len(set(stems)) != len(stems):
        twice = next(key for key, n in Counter(stems).items() if n > 1)
        raise FormatError(f"{name}: without directory and extension, several images have the key {twice!r}")
    return Captions(stems, captions.owners, captions.texts, captions.splits)


def _with_splits(captions: Captions, files: Mapping[str, FilePath], stem: bool) -> Captions:
    found = dict.fromkeys(captions.images, "")
    for name, path in files.items():
        listed = 0
        for number, line in enumerate(_lines(path), 1):
            key = _stem(line.strip()) if stem else line.strip()
            if not key:
                continue
            if found.get(key, "") not in ("", name):
                raise ValueError(f"{path}:{number}: image {key!r} is in the splits {found[key]!r} and {name!r}")
            if key in found:
                found[key] = name
                listed += 1
        if not listed:
            raise ValueError(
                f"{path}: lists none of the {len(found)} images that have captions; compare the names in both files"
            )
    splits = [new or old for new, old in zip(found.values(), captions.splits, strict=True)]
    return Captions(captions.images, captions.owners, captions.texts, splits)
