"""Training data of Multimodal: images, their captions and rows of other modalities, in batches.

Source: Kiros et al. 2014, arXiv:1411.2539 (batches of captions of similar length).
"""

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from embfast.multimodal.captions import Captions, Linked
from embfast.vectors.vectors import Vectors

if TYPE_CHECKING:
    import torch

IMAGES, CAPTIONS = "images", "captions"

_POOL = 20  # batches per pool; captions are sorted by length within a pool


class Rows:
    """Items that are rows of Vectors: item i is row rows[i]. The tower converts int8 and ternary rows to float32."""

    lengths = None

    def __init__(self, vectors: Any, rows: np.ndarray) -> None:
        self.vectors, self.rows, self.dim = vectors, np.asarray(rows, np.int64), int(vectors.dim)

    def take(self, rows: np.ndarray, device: "torch.device") -> "torch.Tensor":
        import torch

        return torch.from_numpy(np.ascontiguousarray(self.vectors.matrix[rows])).to(device)


def check_finite(vectors: Any, rows: np.ndarray, name: str) -> None:
    """TypeError unless vectors are Vectors, ValueError unless these rows are finite. Reads chunks of 4 MB."""
    if not isinstance(vectors, Vectors):
        raise TypeError(f"{name}: expected Vectors, got {type(vectors).__name__}")
    step = max(1, (1 << 20) // max(1, vectors.dim))
    for lo in range(0, len(rows), step):
        part = vectors.matrix[rows[lo : lo + step]]
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            row = rows[lo + int(np.flatnonzero(~np.isfinite(part).all(1))[0])]
            raise ValueError(f"{name}: the vector of {vectors.keys[row]!r} is not finite")


def some_rows_checksum(vectors: Any, rows: np.ndarray) -> int:
    """CRC-32 of the first 256 of these rows, in matrix order."""
    return zlib.crc32(np.ascontiguousarray(vectors.matrix[np.unique(rows)[:256]]).data, vectors.dim)


def checksums(word_vectors: Vectors | None, document_model: Any) -> dict[str, int]:
    """Checksums of initial word vectors and of a document model, by name; none for None."""
    found = {}
    if word_vectors is not None:
        found["word_vectors_crc"] = some_rows_checksum(word_vectors, np.arange(len(word_vectors)))
    if document_model is not None:
        read = document_model.word_vectors_ if document_model.mode != "dbow" else document_model.vectors_
        found["document_model_crc"] = some_rows_checksum(read, np.arange(len(read)))
    return found


class Words:
    """Items that are texts encoded as word ids."""

    dim = 0

    def __init__(self, ids: np.ndarray, offsets: np.ndarray) -> None:
        self.ids, self.offsets, self.lengths = ids, offsets, np.diff(offsets)
        self.rows = np.arange(len(self.lengths))

    def take(self, rows: np.ndarray, device: "torch.device") -> Any:
        from embfast.multimodal.towers import pack

        return pack(self.ids, self.offsets, rows).to(device)


class Examples:
    """The items of each modality. Captions are the examples; every other modality supplies an item for each."""

    def __init__(
        self,
        images: Any,
        captions: Captions | Linked,
        others: Mapping[str, Linked],
        missing: str,
        read: Callable[[Iterable[str]], "Rows | Words"],
    ) -> None:
        """missing: "error", or "skip" to drop captions of images without a vector. read: encodes texts for a tower."""
        if missing not in ("error", "skip"):
            raise ValueError(f"missing must be 'error' or 'skip', got {missing!r}")
        self.images = images
        captions = _known(images, captions, missing)
        if not len(captions):
            raise ValueError("expected captions of the images, got none")
        self.owners = captions.owners
        self.image_rows = np.fromiter((images.index_of(key) for key in captions.images), np.int64, len(captions.images))
        self.sides: dict[str, Rows | Words] = {IMAGES: Rows(images, self.image_rows[self.owners])}
        if isinstance(captions, Captions):
            self.sides[CAPTIONS] = read(captions.texts)
        else:
            self.sides[CAPTIONS] = Rows(captions.vectors, captions.rows)
            check_finite(captions.vectors, captions.rows, CAPTIONS)
        self.by_image: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, linked in others.items():
            if name in (IMAGES, CAPTIONS) or not isinstance(linked, Linked):
                raise ValueError(
                    f"others: expected Linked rows under names other than {IMAGES!r} and {CAPTIONS!r}, "
                    f"got {name!r}: {linked!r}"
                )
            self._add(name, linked, captions.images)
        self._captions = captions
        self._given = {IMAGES: Rows(images, self.image_rows)}
        self._given |= {name: side for name, side in self.sides.items() if name in others and isinstance(side, Rows)}
        if not isinstance(captions, Captions):
            self._given[CAPTIONS] = Rows(captions.vectors, captions.rows)

    def _add(self, name: str, linked: Linked, images: list[str]) -> None:
        """Adds a modality, its rows sorted by image."""
        place = {key: i for i, key in enumerate(linked.images)}
        for key in images:
            if key not in place:
                raise ValueError(f"others: {name!r} has no row for image {key!r}")
        order = np.argsort(linked.owners, kind="stable")
        wanted = np.array([place[key] for key in images])
        first, last = (np.searchsorted(linked.owners[order], wanted, side) for side in ("left", "right"))
        self.sides[name] = Rows(linked.vectors, linked.rows[order])
        check_finite(linked.vectors, linked.rows, name)
        self.by_image[name] = first, last

    def fingerprint(self) -> dict[str, int]:
        """Identifies these data: sizes, and checksums of captions and of some vectors of each modality."""
        found = {"images": len(self.image_rows), "captions": len(self.owners), "crc": self._captions.checksum()}
        for name, rows in self._given.items():
            found[f"{name}_crc"] = zlib.crc32(rows.rows.data, some_rows_checksum(rows.vectors, rows.rows))
        return found

    def plan(self, epoch: int, *, seed: int, batch: int, bucketed: bool, distinct_images: bool) -> list[np.ndarray]:
        """Returns the batches of an epoch, each an int64 array of caption numbers, as determined by seed and epoch.

        Batch sizes within a pool differ by at most one, and batch i has the same size in every epoch.
        """
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(self.owners))
        rounds = [order]
        if distinct_images:  # round r holds the r-th caption of each image
            by_image = order[np.argsort(self.owners[order], kind="stable")]
            first = np.searchsorted(self.owners[by_image], np.arange(len(self.image_rows)))
            nth = np.arange(len(order)) - first[self.owners[by_image]]
            number = np.empty(len(order), np.int64)
            number[by_image] = nth
            rounds = [order[number[order] == r] for r in range(int(nth.max()) + 1)]
        lengths = self.sides[CAPTIONS].lengths
        batches: list[np.ndarray] = []
        for one in rounds:
            pools = np.array_split(one, max(1, round(len(one) / (_POOL * batch))))
            for pool in pools:
                if bucketed and lengths is not None:
                    pool = pool[np.argsort(lengths[pool], kind="stable")]
                parts = np.array_split(pool, max(1, math.ceil(len(pool) / batch)))
                sizes = [len(part) for part in parts]
                shuffled = rng.permutation(len(parts))
                # Larger parts come first, so that batch edges are equal in all epochs.
                shuffled = shuffled[np.argsort([-sizes[i] for i in shuffled], kind="stable")]
                batches += [parts[i] for i in shuffled]
        return batches

    def beside(self, items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws the item of each modality that joins each of these captions."""
        chosen = {IMAGES: items, CAPTIONS: items}
        for name, (first, last) in self.by_image.items():
            image = self.owners[items]
            chosen[name] = first[image] + (rng.random(len(items)) * (last - first)[image]).astype(np.int64)
        return chosen


def training_and_validation(captions: Any, validation: Any) -> tuple[Any, Any]:
    """The captions to train on and those to validate with, by the names of their splits."""
    if not isinstance(captions, Captions | Linked) or not isinstance(validation, Captions | Linked | None):
        captions = validation if isinstance(captions, Captions | Linked) else captions
        raise TypeError(f"expected Captions or Linked rows, got {type(captions).__name__}; see Captions.from_file")
    splits = set(captions.splits)
    if validation is None and "dev" in splits:
        validation = captions.part("dev")
    for name in ("train", ""):
        if name in splits:
            return (captions.part(name) if len(splits) > 1 else captions), validation
    raise ValueError(f"no image is in the split 'train'; splits are {', '.join(map(repr, sorted(splits)))}")


def _known(images: Any, captions: Any, missing: str) -> Any:
    """The captions of images that have vectors. Images with neither a caption nor a vector are dropped silently."""
    used = np.bincount(captions.owners, minlength=len(captions.images)) > 0
    unknown = [key for key, has in zip(captions.images, used.tolist(), strict=True) if key not in images and has]
    if unknown and missing == "error":
        raise ValueError(
            f"{len(unknown):,} images with captions have no vector, the first {unknown[0]!r} (vectors have keys like "
            f'{next(iter(images.keys), None)!r}); missing="skip" drops their captions'
        )
    if any(key not in images for key in captions.images):
        captions = captions.of_images(key for key in captions.images if key in images)
    return captions
