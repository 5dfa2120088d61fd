"""Documents with tags, read from files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from embfast.files.durable import FilePath
from embfast.text import sources
from embfast.text.corpus import Corpus, encode_source, read_options
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
    """Reads documents with their tags: the Corpus and the Tags of its documents.

    Text files, also compressed, hold a document a line: its tags, with spaces between, a tab, and the text. Of Parquet
    files `column` is the text, as in Corpus.from_parquet, and tag_column holds the tags, whole: strings, lists of
    strings, or numbers, which become strings; a null or an empty one is no tag. The other options are those of
    Corpus.from_file.

    Raises:
        FileNotFoundError, KeyError, TypeError, ImportError, ValueError: as Corpus.from_file and from_parquet.
        FormatError: a line without a tab, or tags that are not UTF-8: file and line are named.
    """
    if (column is None) != (tag_column is None):
        raise ValueError("column and tag_column go together: both name columns of Parquet files")
    given = read_options(min_count, max_vocab, keep, vocab, None, threads, errors, max_distinct)
    if column is None:
        source: Any = sources.TaggedFiles(sources.find_files(path), progress)
    else:
        source = sources.Parquet(sources.find_files(path), column, progress, tag_column)
    corpus = encode_source(source, given)
    return corpus, source.builder.tags()
