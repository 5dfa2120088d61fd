"""Texts: a read-only list of strings stored as UTF-8 bytes and offsets, which can be memory-mapped."""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

_CHUNK_TEXTS = 1 << 14


def joined(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets, int64 (n + 1,), and the joined bytes, uint8; text i is bytes offsets[i] to offsets[i + 1]."""
    offsets = np.zeros(len(texts) + 1, np.dtype("<i8"))
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return offsets, np.frombuffer(b"".join(texts), np.uint8)


class Texts(Sequence[str]):
    """Strings stored one after the other in UTF-8: uint8 bytes and int64 offsets (n + 1,).

    >>> texts = Texts.of(["a", "bc"])
    >>> texts[1], list(texts), texts == ["a", "bc"]
    ('bc', ['a', 'bc'], True)
    """

    def __init__(self, offsets: np.ndarray, utf8: np.ndarray) -> None:
        self.offsets, self.utf8 = np.asarray(offsets), np.asarray(utf8)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Stores an iterable of strings; TypeError for any other item. Lone surrogates become question marks."""
        stream, ends = io.BytesIO(), [0]
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"texts are strings, got {text!r} ({type(text).__name__})")
            ends.append(ends[-1] + stream.write(text.encode("utf-8", "replace")))
        return cls(np.array(ends, np.int64), np.frombuffer(stream.getvalue(), np.uint8))

    @classmethod
    def of_lines(cls, lines: bytes) -> "Texts":
        """Stores lines of UTF-8, each of which must end with a newline."""
        numbers = np.frombuffer(lines, np.uint8)
        is_end = numbers == ord("\n")
        ends = np.flatnonzero(is_end)
        offsets = np.zeros(len(ends) + 1, np.int64)
        offsets[1:] = ends - np.arange(len(ends))
        return cls(offsets, numbers[~is_end])

    @classmethod
    def joined(cls, parts: "list[Texts]") -> "Texts":
        """Concatenates several Texts."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts] or [np.empty(0, np.int64)])
        utf8 = np.concatenate([part.utf8 for part in parts] or [np.empty(0, np.uint8)])
        return cls(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), utf8)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self.utf8[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for lo in range(0, len(self), _CHUNK_TEXTS):
            ends = (self.offsets[lo : lo + _CHUNK_TEXTS + 1] - self.offsets[lo]).tolist()
            utf8 = self.utf8[self.offsets[lo] : self.offsets[lo] + ends[-1]].tobytes()
            yield from [utf8[begin:end].decode() for begin, end in pairwise(ends)]

    def __eq__(self, other: object) -> bool:  # without __hash__: unhashable, like a list
        if not isinstance(other, list | Texts):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Texts({len(self):,}: {', '.join(map(repr, self[:3]))}{', ...' if len(self) > 3 else ''})"

    def take(self, rows: np.ndarray) -> "Texts":
        """The texts with these row numbers, copied."""
        offsets, utf8 = joined([self.utf8[self.offsets[i] : self.offsets[i + 1]].tobytes() for i in rows.tolist()])
        return Texts(offsets, utf8)
