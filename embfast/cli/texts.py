"""Preparing text: embfast phrases and vocab."""

import json
from pathlib import Path
from typing import Annotated

import typer

from embfast.cli.common import (
    BadText,
    Column,
    Corpora,
    Json,
    MaxVocab,
    MinCount,
    Quiet,
    check_apart,
    command,
    read_corpus,
    say,
)
from embfast.training.settings import check_place


@command("phrases")
def phrases(
    corpus: Corpora,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the joined text, one document per line.")],
    pair_count: Annotated[int, typer.Option("--min-count", help="Pairs with fewer occurrences are not joined.")] = 5,
    threshold: Annotated[float, typer.Option(help="Threshold score; pairs above it are joined.")] = 100.0,
    scoring: Annotated[str, typer.Option(help="Score of a pair: default (word2phrase) or npmi.")] = "default",
    delimiter: Annotated[str, typer.Option(help="Text between the words of a phrase.")] = "_",
    connectors: Annotated[
        bool, typer.Option("--connectors", help="Allow of, the, and ... inside a phrase, as in bank_of_america.")
    ] = False,
    passes: Annotated[
        int,
        typer.Option(
            help="Number of passes, for longer phrases. With the default score each further pass halves the threshold."
        ),
    ] = 1,
    errors: BadText = "strict",
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Join words that belong together, new york -> new_york, as word2phrase does."""
    from embfast.files.durable import replacing
    from embfast.text.phrases import ENGLISH_CONNECTORS, Phrases
    from embfast.text.vocabulary import check_words

    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}")
    check_place(output)
    check_apart([output], corpus)
    text = read_corpus(corpus, None, None, quiet, min_count=1, errors=errors)
    check_words(text.words, output)
    found: dict[str, float] = {}
    for number in range(passes):
        limit = threshold / 2**number if scoring == "default" else threshold
        pairs = Phrases(pair_count, limit, scoring, delimiter, ENGLISH_CONNECTORS if connectors else frozenset())
        text = pairs.fit_transform(text)
        found |= {delimiter.join(words): score for words, score in pairs.phrases_.items()}
    with replacing(output) as stream:
        for document in text:
            stream.write(" ".join(document).encode() + b"\n")
    if json_output:
        print(json.dumps({"phrases": len(found), "tokens": text.n_tokens, "output": str(output)}))
    elif not quiet:
        say(f"{len(found):,} phrases; wrote {text.n_tokens:,} tokens to {output}")


@command("vocab")
def vocab(
    corpus: Corpora,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for the lines `word count`, in the format of word2vec.c.")
    ],
    min_count: MinCount = 5,
    max_vocab: MaxVocab = None,
    errors: BadText = "strict",
    column: Column = None,
    quiet: Quiet = False,
) -> None:
    """Count the words of a text."""
    check_place(output)
    check_apart([output], corpus)
    text = read_corpus(corpus, column, None, quiet, min_count=min_count, max_vocab=max_vocab, errors=errors)
    text.save_vocab(output)
    if not quiet:
        say(f"{len(text.words):,} words, {text.n_tokens:,} tokens; wrote {output}")
