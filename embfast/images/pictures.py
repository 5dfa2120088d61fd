"""Sources of images, and their preparation for a network: decoding, EXIF rotation, resizing and cropping.

A source is a folder, a list of files, tar shards like webdataset's, an array, or a data set of torch or Hugging Face.
Each gives keys, and images by number, so that a run can resume anywhere.
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
from embfast.files.durable import FilePath

try:
    from PIL import Image, ImageOps
except ImportError:
    raise ImportError("images need Pillow: pip install embfast[images]") from None

EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".jp2", ".avif", ".tga", ".ico"),
}
VIEWS = {"one": 1, "flip": 2, "rotations": 4, "ten": 10}  # number of views made of one image

_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "pixel_values", "x")
_RESAMPLING = {"nearest": 0, "bilinear": 2, "bicubic": 3, "lanczos": 1}
_LARGEST = 1 << 15  # pixels along a resized side: limits images such as 1 x 1,000,000 pixels


# ---- one image ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preparation:
    """Resizing, cropping and standardisation: how an image becomes the square input of a network.

    Settings:
        size: Side of the square, in pixels.
        resize: Length of the shorter side after resizing, before the center crop, in pixels. 0 resizes the whole image
            to the square without keeping its aspect ratio.
        mean, std: Mean and standard deviation of red, green and blue, where white is 1. The network's input is
            (value - mean) / std.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos", with antialiasing when an image shrinks.
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
            raise ValueError(f"mean and std must be three numbers, std above 0; got {self.mean} and {self.std}")

    def __call__(self, image: Image.Image, views: str = "one") -> np.ndarray:
        """The image as uint8 (views, size, size, 3).

        views: "one": the center crop. "flip": the center crop and its mirror image. "rotations": the center crop in
        four quarter turns. "ten": the center and four corner crops, and the mirror images of all five.
        """
        if views not in VIEWS:
            raise ValueError(f"views must be one of {', '.join(VIEWS)}, got {views!r}")
        size, how = self.size, Image.Resampling(_RESAMPLING[self.interpolation])
        if self.resize and image.format == "JPEG":
            # Decodes at a lower resolution, which is faster, but to no less than twice the resized side.
            image.draft("RGB", (2 * self.resize, 2 * self.resize))
        image = upright_rgb(image)
        if self.resize:
            short = min(image.size)
            width, height = (side * self.resize // short for side in image.size)
            if max(width, height) > _LARGEST:
                shape = f"{image.width} x {image.height} pixels"
                raise ValueError(f"an image of {shape} is too narrow to resize to {self.resize}")
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
    """Converts an image to 8-bit RGB: rotated as its EXIF says, on white where transparent, 16 bits scaled to 8."""
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
    """An image from uint8 or uint16 of shape (height, width) or (height, width, 1, 3 or 4).

    Floats of shape (channels, height, width) are an image that is ready for the network; they are returned as float32.
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


# ---- many images --------------------------------------------------------------------------------------------------


class Pictures(ABC):
    """Keys, and images by number. Files are opened only when read, so that any process can read any image."""

    def __init__(self, keys: list[str]) -> None:
        if not keys:
            raise ValueError("expected at least one image, got none")
        if len(set(keys)) < len(keys):
            again = Counter(keys).most_common(1)[0][0]
            raise ValueError(f"images must have unique names: {again!r} occurs more than once")
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def read(self, i: int) -> Image.Image | np.ndarray:
        """Image i, or floats (channels, height, width) that are ready for the network."""

    @abstractmethod
    def checksum(self) -> int:
        """A checksum that distinguishes these images from others with the same names."""

    def read_ready(self, i: int, preparation: Preparation, views: str = "one") -> np.ndarray:
        """Image i, prepared: uint8 (views, size, size, 3); or unchanged floats, float32 (1, channels, height, width).

        Raises:
            FormatError: the image cannot be read; the message names it and the reason.
        """
        try:
            found = self.read(i)
            if not isinstance(found, np.ndarray):
                with found:
                    return preparation(found, views)
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:  # Pillow's plugins may raise any exception
            reason = str(error) or type(error).__name__
            raise FormatError(f"{self.place(i)}: expected an image: {reason}") from None
        if views != "one":
            raise ValueError(
                f"views={views!r} needs pixels, but {self.place(i)} is given as floats, ready for the network"
            )
        return found[None]

    def place(self, i: int) -> str:
        """The name of image i in error messages."""
        return self.keys[i]


class FilePictures(Pictures):
    """Image files. Keys default to the paths as given."""

    def __init__(self, paths: Sequence[FilePath], keys: list[str] | None = None) -> None:
        self.paths = [os.fspath(path) for path in paths]
        super().__init__(list(self.paths) if keys is None else keys)

    def read(self, i: int) -> Image.Image:
        return Image.open(self.paths[i])

    def checksum(self) -> int:
        """CRC-32 of the sizes and modification times of the files."""
        return _of_stamps(self.paths)

    def place(self, i: int) -> str:
        return self.paths[i]


class TarPictures(Pictures):
    """Images in uncompressed tar files. Keys are member names, prefixed by the name of the tar if there are several."""

    def __init__(self, paths: Sequence[FilePath]) -> None:
        self.members: list[tuple[str, int, int]] = []
        keys = []
        for path in [os.fspath(path) for path in paths]:
            try:
                with tarfile.open(path, "r:") as archive:
                    for member in archive:
                        if member.isfile() and _is_picture(member.name):
                            self.members.append((path, member.offset_data, member.size))
                            keys.append(member.name if len(paths) == 1 else f"{Path(path).stem}/{member.name}")
            except tarfile.TarError as error:
                raise FormatError(f"{path}: expected an uncompressed tar of images: {error}") from None
        if not keys:
            raise ValueError(f"{', '.join(os.fspath(path) for path in paths)}: contains no images")
        super().__init__(keys)

    def read(self, i: int) -> Image.Image:
        path, begin, size = self.members[i]
        with open(path, "rb") as stream:
            stream.seek(begin)
            return Image.open(io.BytesIO(stream.read(size)))

    def checksum(self) -> int:
        """CRC-32 of sizes and modification times of the tars, and of the positions of the images in them."""
        return zlib.crc32(
            repr(self.members).encode("utf-8", "surrogatepass"), _of_stamps(dict.fromkeys(m[0] for m in self.members))
        )


class ArrayPictures(Pictures):
    """An array of images along its first axis, or a list of arrays and Pillow images. Keys are "0", "1", ..."""

    def __init__(self, arrays: Sequence[Any] | np.ndarray) -> None:
        super().__init__([str(i) for i in range(len(arrays))])
        self.arrays = arrays

    def read(self, i: int) -> Image.Image | np.ndarray:
        return _picture(self.arrays[i])

    def checksum(self) -> int:
        """CRC-32 of all pixels."""
        crc = 0
        for item in self.arrays:
            crc = _of_item(item, crc)
        return crc


class DatasetPictures(Pictures):
    """A data set with len() and [i]. An item is an image, a tuple that begins with one, or a dict that holds one."""

    def __init__(self, dataset: Any, column: str | None = None) -> None:
        super().__init__([str(i) for i in range(len(dataset))])
        self.dataset, self.column = dataset, column

    def read(self, i: int) -> Image.Image | np.ndarray:
        return _picture(self._item(i))

    def checksum(self) -> int:
        """CRC-32 of the pixels of 16 evenly spaced images; reading all could take as long as the network."""
        crc = 0
        for i in np.unique(np.linspace(0, len(self) - 1, 16).astype(int)).tolist():
            try:
                crc = _of_item(self._item(i), crc)
            except (KeyboardInterrupt, MemoryError):
                raise
            except Exception as error:  # read reports it
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
    """Opens images from any supported source.

    Settings:
        images: A folder (searched recursively, sorted by name), a file, a .txt of paths, a .tar, or several of these
            ("shards-{0000..0011}.tar"); an integer array (n, height, width[, channels]); a float array (n, channels,
            height, width), ready for the network; a tensor (n, channels, height, width); a list of arrays or Pillow
            images; a data set with len() and [i].
        column: Key of the image in the items of a data set, if these are dicts.

    Raises:
        FileNotFoundError: the folder or file does not exist.
        ValueError: the source contains no images.
        TypeError: the type of the source is not supported.
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
        "an iterator can only be read once, so no run could resume"
    )


def _of_path(path: str) -> Pictures:
    expanded = _expanded(path)
    if expanded != [path]:
        return open_pictures(expanded)
    found = Path(path)
    if found.is_dir():
        paths = sorted(p for p in found.rglob("*") if _is_picture(p.name) and p.is_file())
        if not paths:
            raise ValueError(f"{path}: no images with these extensions: {' '.join(sorted(EXTENSIONS))}")
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
    """Files, and those in folders and lists. Keys begin with the given folder."""
    paths, keys = [], []
    for path in given:
        if os.path.isdir(path) or path.lower().endswith(".txt"):
            found = _of_path(path)
            assert isinstance(found, FilePictures)  # of a folder or a list
            paths += found.paths
            keys += [Path(path, key).as_posix() for key in found.keys] if os.path.isdir(path) else found.keys
        else:
            paths.append(path)
            keys.append(path)
    return FilePictures(paths, keys)


def _expanded(path: str) -> list[str]:
    """Expands a pattern of shards, unless a file has exactly this name."""
    return [path] if os.path.exists(path) else list(_braces(path))


def _braces(path: str) -> Iterator[str]:
    """Expands shards-{00..11}.tar to twelve names."""
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
        return item.copy()  # the reader closes it
    if isinstance(item, str | os.PathLike):
        return Image.open(item)
    if isinstance(item, bytes):
        return Image.open(io.BytesIO(item))
    if isinstance(item, dict) and item.get("bytes") is not None:  # Hugging Face's Image(decode=False)
        return Image.open(io.BytesIO(item["bytes"]))
    if isinstance(item, dict) and item.get("path"):
        return Image.open(item["path"])
    if hasattr(item, "detach"):  # a tensor, whose pixels have shape (channels, height, width)
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
    """Updates a checksum by an item that _picture accepts."""
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


# ---- drawing ------------------------------------------------------------------------------------------------------


def thumbnail_of(pictures: Pictures, i: int, side: int) -> np.ndarray:
    """Image i, upright, with a longer side of `side` pixels: uint8 (height, width, 3).

    Raises:
        FormatError: the image cannot be read, or is floats that are ready for a network.
    """
    try:
        found = pictures.read(i)
        if isinstance(found, np.ndarray):
            raise TypeError("got floats that are ready for a network")
        with found:
            return np.asarray(ImageOps.contain(upright_rgb(found), (side, side)))
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise FormatError(f"{pictures.place(i)}: expected an image: {error or type(error).__name__}") from None


def encoder_of(path: FilePath) -> Callable[[np.ndarray, BinaryIO], None]:
    """A function that writes uint8 (height, width, 3) in the format of the path's extension, or ValueError."""
    extension = Path(path).suffix.lower()
    format = Image.registered_extensions().get(extension)
    if format is None or format not in Image.SAVE:
        raise ValueError(f"{os.fspath(path)}: expected an image extension such as .png, .jpg or .webp")
    return lambda pixels, stream: Image.fromarray(pixels).save(stream, format)
