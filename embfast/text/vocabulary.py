"""Vocabulary files of word2vec.c (-save-vocab): a word and its count on each line, `</s>` and the newlines first."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from embfast.errors import FormatError
from embfast.files.durable import FilePath, replacing


def check_words(words: Iterable[str], path: FilePath) -> None:
    """Raises ValueError for a word that a text or a vocabulary file cannot hold: empty, or with white space."""
    for word in words:
        if not word or any(c in word for c in " \t\n\r"):
            raise ValueError(f"{os.fspath(path)}: cannot hold {word!r}, which is empty or holds white space")


def write_vocab(path: FilePath, words: list[str], counts: np.ndarray, n_newlines: int) -> None:
    """Writes words and counts in their order, after a line `</s> n_newlines`.

    Raises:
        ValueError: a word is empty or contains a space, a tab or a line break.
    """
    check_words(words, path)
    lines = [f"</s> {n_newlines}"]
    lines += (f"{word} {count}" for word, count in zip(words, counts.tolist(), strict=True))
    with replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode("utf-8"))


def read_vocab(path: FilePath) -> tuple[list[str], np.ndarray]:
    """Reads words and int64 counts, without `</s>`.

    Raises:
        FormatError: a line is not a word and a count, or repeats a word.
    """
    path = Path(path)
    words: list[str] = []
    counts: list[int] = []
    seen: dict[str, int] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, 1):
        fields = line.rstrip(b"\r").split(b" ")
        if len(fields) != 2 or not fields[0] or not fields[1].isdigit():
            raise FormatError(f"{path}:{number}: expected a word, a space and a count, got {line[:80]!r}")
        try:
            word = fields[0].decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{path}:{number}: expected UTF-8, got {fields[0][:80]!r}") from None
        count = int(fields[1])
        if count > np.iinfo(np.int64).max:
            raise FormatError(f"{path}:{number}: expected a count below 2**63, got {count}")
        if word in seen:
            raise FormatError(f"{path}:{number}: {word!r} is already on line {seen[word]}")
        seen[word] = number
        if word != "</s>":
            words.append(word)
            counts.append(count)
    return words, np.array(counts, np.int64)
