"""Where pictures come from, and how one is made ready for a network: decoded, turned upright, scaled, cropped.

A folder, a list of files, tar shards as webdataset has them, arrays, and data sets of torch or Hugging Face: each gives
keys and pictures by number, so that any part of it can be read again.
"""

from __future__ import annotations

import io
import math
import operator
import os
import re
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from embfast.errors import FormatError

try:
    from PIL import Image, ImageOps
except ImportError:
    raise ImportError("pictures need Pillow: pip install embfast[images]") from None

EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".jp2", ".avif", ".tga", ".ico"),
}
VIEWS = {"one": 1, "flip": 2, "rotations": 4, "ten": 10}  # pictures that are made of one

_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "pixel_values", "x")
_RESAMPLING = {"nearest": 0, "bilinear": 2, "bicubic": 3, "lanczos": 1}
_LARGEST = 1 << 15  # pixels along a scaled side: what a picture of one pixel by a million would pass


# ---- one picture --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes the square that a network reads.

    Settings:
        size: pixels of each side of the square.
        resize: pixels that the shorter side is scaled to before the middle is cut out; 0 squashes the whole picture
            into the square, whatever its shape.
        mean, std: of red, green and blue, where white is 1; the network reads (value - mean) / std.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos", each smoothed when a picture shrinks.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("size", "resize"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if self.size < 1 or (self.resize and self.resize < self.size):
            raise ValueError(f"resize must be 0 or at least size, got {self.resize} and {self.size}")
        if self.interpolation not in _RESAMPLING:
            raise ValueError(f"interpolation must be one of {', '.join(_RESAMPLING)}, got {self.interpolation!r}")
        if (
            len(self.mean) != 3
            or len(self.std) != 3
            or min(self.std) <= 0
            or not all(map(math.isfinite, self.mean + self.std))
        ):
            raise ValueError(f"mean and std are three numbers, std above 0; got {self.mean} and {self.std}")

    def __call__(self, image: Image.Image, views: str = "one") -> np.ndarray:
        """The picture as uint8 (views, size, size, 3).

        views: "one" the middle; "flip" it and its mirror image; "rotations" it in four quarter turns; "ten" the middle,
        four corners, and the mirror images of all five.
        """
        if views not in VIEWS:
            raise ValueError(f"views must be one of {', '.join(VIEWS)}, got {views!r}")
        size, how = self.size, Image.Resampling(_RESAMPLING[self.interpolation])
        if self.resize and image.format == "JPEG":
            image.draft("RGB", (2 * self.resize, 2 * self.resize))  # never decoded to less than twice the scaled side
        image = upright_rgb(image)
        if self.resize:
            short = min(image.size)
            width, height = (side * self.resize // short for side in image.size)
            if max(width, height) > _LARGEST:
                raise ValueError(f"a picture of {image.width} x {image.height} is too narrow to scale to {self.resize}")
            image = image.resize((width, height), how)
        else:
            width = height = size
            image = image.resize((size, size), how)
        pixels = np.asarray(image)
        left, top = round((width - size) / 2), round((height - size) / 2)
        corners = [(top, left)]
        if views == "ten":
            corners += [(0, 0), (0, width - size), (height - size, 0), (height - size, width - size)]
        made = [pixels[y : y + size, x : x + size] for y, x in corners]
        if views == "rotations":
            made = [np.rot90(made[0], turns) for turns in range(4)]
        elif views != "one":
            made += [square[:, ::-1] for square in made]
        return np.stack(made)


def upright_rgb(image: Image.Image) -> Image.Image:
    """The whole picture in 8-bit RGB: turned as its EXIF says, what shows through it on white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        highest = values.max(initial=0.0)
        if image.mode == "F" and highest <= 1:
            values = 255 * values
        elif image.mode.startswith("I;16") or highest > 255:
            values = values / 257
        image = Image.fromarray(np.clip(np.nan_to_num(values) + 0.5, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def of_array(array: np.ndarray) -> Image.Image | np.ndarray:
    """A picture from integers (height, width) or (height, width, 1, 3 or 4), uint8 or uint16.

    Floats (channels, height, width) are taken for a picture that is ready for the network and come back as float32.
    """
    if array.dtype.kind == "f":
        if array.ndim != 3:
            raise ValueError(f"expected floats of shape (channels, height, width), got {array.shape}")
        return np.ascontiguousarray(array, dtype=np.float32)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ValueError(f"expected pixels (height, width) or (height, width, 1, 3 or 4), got {array.shape}")
    if array.dtype == np.uint16 and array.ndim == 3:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected pixels of uint8 or uint16, or floats ready for the network, got {array.dtype}")
    return Image.fromarray(array)


# ---- many pictures ------------------------------------------------------------------------------------------------


class Pictures(ABC):
    """Keys, and pictures by number. Files are opened when they are read, so that any process may read any of them."""

    def __init__(self, keys: list[str]) -> None:
        if not keys:
            raise ValueError("expected at least one picture, got none")
        if len(set(keys)) < len(keys):
            again = Counter(keys).most_common(1)[0][0]
            raise ValueError(f"pictures must have different names: {again!r} is there more than once")
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def read(self, i: int) -> Image.Image | np.ndarray:
        """Picture i, or floats (channels, height, width) that are ready for the network."""

    @abstractmethod
    def checksum(self) -> int:
        """Tells these pictures from others that are called alike."""

    def read_ready(self, i: int, preparation: Preparation, views: str = "one") -> np.ndarray:
        """Picture i made ready: uint8 (views, size, size, 3), or float32 (1, channels, height, width) as it came.

        Raises:
            FormatError: it cannot be read; says which and why.
        """
        try:
            found = self.read(i)
            if not isinstance(found, np.ndarray):
                with found:
                    return preparation(found, views)
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:  # Pillow's plugins raise whatever they stumble on
            reason = str(error) or type(error).__name__
            raise FormatError(f"{self.place(i)}: expected a picture: {reason}") from None
        if views != "one":
            raise ValueError(
                f"views={views!r} are made of pictures; {self.place(i)} came as floats, ready for the network"
            )
        return found[None]

    def place(self, i: int) -> str:
        """What to call picture i in an error."""
        return self.keys[i]


class FilePictures(Pictures):
    """Files; keys are the paths as given, if not told otherwise."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]], keys: list[str] | None = None) -> None:
        self.paths = [os.fspath(path) for path in paths]
        super().__init__(list(self.paths) if keys is None else keys)

    def read(self, i: int) -> Image.Image:
        return Image.open(self.paths[i])

    def checksum(self) -> int:
        """Of the sizes of the files, and of when they were last written."""
        return _of_stamps(self.paths)

    def place(self, i: int) -> str:
        return self.paths[i]


class TarPictures(Pictures):
    """Pictures in uncompressed tar files; keys are the members' names, after the tar's own where there are several."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self.members: list[tuple[str, int, int]] = []
        keys = []
        for path in map(os.fspath, paths):
            try:
                with tarfile.open(path, "r:") as archive:
                    for member in archive:
                        if member.isfile() and _is_picture(member.name):
                            self.members.append((path, member.offset_data, member.size))
                            keys.append(member.name if len(paths) == 1 else f"{Path(path).stem}/{member.name}")
            except tarfile.TarError as error:
                raise FormatError(f"{path}: expected an uncompressed tar of pictures: {error}") from None
        if not keys:
            raise ValueError(f"{', '.join(map(os.fspath, paths))}: no pictures in there")
        super().__init__(keys)

    def read(self, i: int) -> Image.Image:
        path, begin, size = self.members[i]
        with open(path, "rb") as stream:
            stream.seek(begin)
            return Image.open(io.BytesIO(stream.read(size)))

    def checksum(self) -> int:
        """Of the sizes of the files, of when they were last written, and of where pictures lie in them."""
        return zlib.crc32(
            repr(self.members).encode("utf-8", "surrogatepass"), _of_stamps(dict.fromkeys(m[0] for m in self.members))
        )


class ArrayPictures(Pictures):
    """An array of pictures along its first axis, or a list of arrays and Pillow's images; keys are "0", "1", ..."""

    def __init__(self, arrays: Sequence[Any] | np.ndarray) -> None:
        super().__init__([str(i) for i in range(len(arrays))])
        self.arrays = arrays

    def read(self, i: int) -> Image.Image | np.ndarray:
        return _picture(self.arrays[i])

    def checksum(self) -> int:
        """Of all pixels."""
        crc = 0
        for item in self.arrays:
            crc = _of_item(item, crc)
        return crc


class DatasetPictures(Pictures):
    """A data set with len() and [i]: an item is a picture, a tuple that begins with one, or a dict that holds one."""

    def __init__(self, dataset: Any, column: str | None = None) -> None:
        super().__init__([str(i) for i in range(len(dataset))])
        self.dataset, self.column = dataset, column

    def read(self, i: int) -> Image.Image | np.ndarray:
        return _picture(self._item(i))

    def checksum(self) -> int:
        """Of the pixels of 16 pictures, spread evenly: all might take as long as the network does."""
        crc = 0
        for i in np.unique(np.linspace(0, len(self) - 1, 16).astype(int)).tolist():
            try:
                crc = _of_item(self._item(i), crc)
            except (KeyboardInterrupt, MemoryError):
                raise
            except Exception as error:  # read says more of it
                crc = zlib.crc32(type(error).__name__.encode(), crc)
        return crc

    def _item(self, i: int) -> Any:
        item = self.dataset[i]
        if isinstance(item, dict):
            column = self.column or next((name for name in _COLUMNS if name in item), None)
            if column not in item:
                raise ValueError(f"has {', '.join(map(repr, item))}; name the one to read as column=")
            item = item[column]
        elif isinstance(item, tuple | list):
            item = item[0]
        return item


def open_pictures(images: Any, column: str | None = None) -> Pictures:
    """Pictures of whatever holds some.

    Settings:
        images: a folder (searched to any depth, in order of the names), a file, a .txt of paths, a .tar, or several of
            these ("shards-{0000..0011}.tar"); an integer array (n, height, width[, channels]); a float array (n,
            channels, height, width), ready for the network; a tensor (n, channels, height, width); a list of arrays or
            Pillow's images; a data set with len() and [i].
        column: of a data set whose items are dicts, the one with the picture.

    Raises:
        FileNotFoundError: no such folder or tar.
        ValueError: there is nothing in it.
        TypeError: it is something else.
    """
    if isinstance(images, Pictures):
        return images
    if isinstance(images, str | os.PathLike):
        return _of_path(os.fspath(images))
    if isinstance(images, np.ndarray) or hasattr(images, "detach"):
        if images.ndim < 3:
            raise ValueError(f"expected an array (n, height, width[, channels]), got {tuple(images.shape)}")
        return ArrayPictures(images)
    if isinstance(images, list | tuple):
        if images and all(isinstance(item, str | os.PathLike) for item in images):
            paths = [path for item in images for path in _expanded(os.fspath(item))]
            tars = [path for path in paths if path.lower().endswith(".tar")]
            if tars and len(tars) < len(paths):
                other = next(path for path in paths if path not in tars)
                raise ValueError(f"tars cannot be joined with other files, as {tars[0]} with {other}")
            return TarPictures(paths) if tars else _of_paths(paths)
        return ArrayPictures(images)
    if hasattr(images, "__len__") and hasattr(images, "__getitem__"):
        return DatasetPictures(images, column)
    raise TypeError(
        f"expected a folder, files, an array or a data set with len() and [i], got {type(images).__name__}; "
        "what can only be read once has no place to resume from"
    )


def _of_path(path: str) -> Pictures:
    expanded = _expanded(path)
    if expanded != [path]:
        return open_pictures(expanded)
    found = Path(path)
    if found.is_dir():
        paths = sorted(p for p in found.rglob("*") if _is_picture(p.name) and p.is_file())
        if not paths:
            raise ValueError(f"{path}: no pictures in there; known by their extensions: {' '.join(sorted(EXTENSIONS))}")
        return FilePictures(paths, [p.relative_to(found).as_posix() for p in paths])
    if not found.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if found.suffix.lower() == ".tar":
        return TarPictures([path])
    if found.suffix.lower() == ".txt":
        try:
            text = found.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: expected a list of paths in UTF-8: {error}") from None
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line]
        return FilePictures([found.parent / line for line in lines], lines)
    return FilePictures([path])


def _of_paths(given: list[str]) -> FilePictures:
    """Files, and those in folders and lists, under the names that lead to them."""
    paths, keys = [], []
    for path in given:
        if os.path.isdir(path) or path.lower().endswith(".txt"):
            found = _of_path(path)
            paths += found.paths
            keys += [Path(path, key).as_posix() for key in found.keys] if os.path.isdir(path) else found.keys
        else:
            paths.append(path)
            keys.append(path)
    return FilePictures(paths, keys)


def _expanded(path: str) -> list[str]:
    """The names that a pattern of shards stands for; a file that is called so is one name."""
    return [path] if os.path.exists(path) else list(_braces(path))


def _braces(path: str) -> Iterator[str]:
    """shards-{00..11}.tar as twelve names."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if match is None:
        yield path
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _braces(f"{path[: match.start()]}{number:0{len(first)}}{path[match.end() :]}")


def _is_picture(name: str) -> bool:
    base = name.rpartition("/")[2]
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in EXTENSIONS


def _picture(item: Any) -> Image.Image | np.ndarray:
    if isinstance(item, Image.Image):
        return item.copy()  # its reader closes what it is given
    if isinstance(item, str | os.PathLike):
        return Image.open(item)
    if isinstance(item, bytes):
        return Image.open(io.BytesIO(item))
    if isinstance(item, dict) and item.get("bytes") is not None:  # Hugging Face's Image(decode=False)
        return Image.open(io.BytesIO(item["bytes"]))
    if isinstance(item, dict) and item.get("path"):
        return Image.open(item["path"])
    if hasattr(item, "detach"):  # a tensor: bytes lie as (channels, height, width) there
        item = item.detach().cpu()
        array = (item.float() if item.is_floating_point() else item).numpy()  # numpy has no bfloat16
        return of_array(array if array.dtype.kind == "f" or array.ndim == 2 else array.transpose(1, 2, 0))
    return of_array(np.asarray(item))


def _of_stamps(paths: Iterable[str], crc: int = 0) -> int:
    for path in paths:
        try:
            found = os.stat(path)
            stamp = f"{found.st_size} {found.st_mtime_ns}"
        except OSError:
            stamp = "absent"
        crc = zlib.crc32(stamp.encode(), crc)
    return crc


def _of_item(item: Any, crc: int) -> int:
    """Goes on with a checksum by something that _picture takes."""
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path")
    if isinstance(item, str | os.PathLike):
        return _of_stamps([os.fspath(item)], crc)
    if isinstance(item, bytes):
        return zlib.crc32(item, crc)
    pixels = np.ascontiguousarray(item.detach().cpu().numpy() if hasattr(item, "detach") else np.asarray(item))
    return zlib.crc32(
        pixels.data.cast("B") if pixels.size else b"", zlib.crc32(f"{pixels.dtype} {pixels.shape}".encode(), crc)
    )


# ---- for drawing --------------------------------------------------------------------------------------------------


def thumbnail_of(pictures: Pictures, i: int, side: int) -> np.ndarray:
    """Picture i, upright, its longer side of so many pixels: uint8 (height, width, 3).

    Raises:
        FormatError: it cannot be read, or holds floats that were made for a network.
    """
    try:
        with pictures.read(i) as found:
            return np.asarray(ImageOps.contain(upright_rgb(found), (side, side)))
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise FormatError(f"{pictures.place(i)}: expected a picture: {error or type(error).__name__}") from None


def encoder_of(path: str | os.PathLike[str]) -> Callable[[np.ndarray, BinaryIO], None]:
    """What writes uint8 (height, width, 3) in the format of a path's extension. ValueError when Pillow has none."""
    extension = Path(path).suffix.lower()
    format = Image.registered_extensions().get(extension)
    if format is None or format not in Image.SAVE:
        raise ValueError(f"{os.fspath(path)}: expected a picture's extension, say .png, .jpg or .webp")
    return lambda pixels, stream: Image.fromarray(pixels).save(stream, format)
