"""Reading documents with tags from text files and Parquet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from embfast.files.durable import FilePath
from embfast.text import sources
from embfast.text.corpus import Corpus
from embfast.text.encoding import encode, read_options
from embfast.text.sources import ReadProgress
from embfast.text.tags import Tags


def read_tagged(
    path: FilePath | Iterable[FilePath],
    column: str | None = None,
    tag_column: str | None = None,
    *,
    min_count: int = 5,
    max_vocab: int | None = None,
    keep: Iterable[str] | None = None,
    vocab: Iterable[str] | FilePath | None = None,
    threads: int | None = None,
    errors: str = "strict",
    max_distinct: int = 2**27,
    progress: ReadProgress | None = None,
) -> tuple[Corpus, Tags]:
    """Reads documents and their tags; returns the Corpus and its Tags.

    Text files, plain or compressed, hold one document per line: tags separated by spaces, a tab, and the text. In
    Parquet files `column` is the text, as in Corpus.from_parquet. `tag_column` holds whole tags: strings, lists of
    strings, or numbers, which are converted to strings; nulls and empty strings are no tags. The other options are
    those of Corpus.from_file.

    Raises:
        FileNotFoundError, KeyError, TypeError, ImportError, ValueError: as Corpus.from_file and from_parquet.
        FormatError: a line has no tab, or its tags are not UTF-8; the message names file and line.
    """
    if (column is None) != (tag_column is None):
        raise ValueError("column and tag_column go together: both name columns of Parquet files")
    options = read_options(min_count, max_vocab, keep, vocab, None, threads, errors, max_distinct)
    if column is None:
        source: Any = sources.TaggedFiles(sources.find_files(path), progress)
    else:
        source = sources.Parquet(sources.find_files(path), column, progress, tag_column)
    corpus = Corpus(*encode(source, options))
    return corpus, source.builder.tags()
