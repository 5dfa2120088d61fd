"""Tags of documents: the keys for which document vectors are trained."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from itertools import count, islice

import numpy as np


class Tags:
    """The tags of each document. A tag may belong to several documents; a document may have several tags or none.

    >>> tags = Tags.of(["x", ["y", "x"]], 2)
    >>> tags.keys, tags.offsets.tolist(), tags.ids.tolist()
    (['x', 'y'], [0, 1, 3], [0, 1, 0])

    Attributes:
        keys: list of str, the distinct tags in order of first occurrence.
        ids: int32, indices into keys; document d has ids[offsets[d]:offsets[d + 1]], without repetitions.
        offsets: int64 (documents + 1,).

    Memory: 8 bytes per document, 4 per tag of a document, and about 150 per distinct tag.
    """

    def __init__(self, keys: list[str], offsets: np.ndarray, ids: np.ndarray) -> None:
        self.keys, self.offsets, self.ids = keys, offsets, ids

    @classmethod
    def of(
        cls, given: Tags | Iterable[str] | Iterable[Iterable[str]] | None, n: int, taken: Collection[str] = ()
    ) -> Tags:
        """Tags of n documents from Tags (returned as they are), or from a str or a list of str for each document.

        None numbers the documents: tags are "0", "1", ..., starting at len(taken) and skipping tags in `taken`.

        Raises:
            ValueError: the number of documents is not n.
            TypeError: a tag is not a str.
        """
        if given is None:
            numbers = np.arange(n + 1, dtype=np.int64)
            known, free = set(taken), map(str, count(len(taken)))
            keys = list(islice((key for key in free if key not in known), n))
            return cls(keys, numbers, numbers[:n].astype(np.int32))
        if not isinstance(given, Tags):
            if isinstance(given, str | bytes):
                raise TypeError(f"tags: expected a str or a list of str for each document, got one {given!r}")
            builder = TagsBuilder()
            for number, own in enumerate(given):
                own = [own] if isinstance(own, str) else own
                if isinstance(own, bytes) or not isinstance(own, Iterable):
                    raise TypeError(f"tags: expected a str or a list of str for document {number}, got {own!r}")
                own = list(own)
                if not all(isinstance(tag, str) for tag in own):
                    raise TypeError(f"tags: expected tags of type str for document {number}, got {own!r}")
                builder.add(own)
            given = builder.tags()
        if len(given) != n:
            raise ValueError(f"tags: expected tags of {n:,} documents, got tags of {len(given):,}")
        return given

    def repeated(self, times: int) -> Tags:
        """The tags with every entry of a document repeated `times` times in a row."""
        return self if times == 1 else Tags(self.keys, self.offsets * times, np.repeat(self.ids, times))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Tags({len(self):,} documents, {len(self.keys):,} tags)"


class TagsBuilder:
    """Collects tags document by document."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.ids, self.ends = array("i"), array("q", [0])

    def add(self, tags: Iterable[str]) -> None:
        """Adds the tags of the next document."""
        index = self.index
        self.ids.extend(dict.fromkeys(index.setdefault(tag, len(index)) for tag in tags))
        self.ends.append(len(self.ids))

    def tags(self) -> Tags:
        return Tags(list(self.index), np.array(self.ends, np.int64), np.array(self.ids, np.int32))
