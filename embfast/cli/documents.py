"""Document vectors: embfast doc2vec."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from embfast.cli.common import (
    BadText,
    Cache,
    Column,
    MaxVocab,
    VectorsRun,
    command,
    is_saved_corpus,
    losses,
    read_corpus,
    reading,
    warnings_said,
)
from embfast.documents.doc2vec import Doc2Vec
from embfast.files import formats


@command("doc2vec")
def doc2vec(
    model: Doc2Vec,
    documents: Annotated[
        list[Path], typer.Argument(help="Text files, plain or compressed, with one document per line.")
    ],
    run: VectorsRun,
    tags: Annotated[
        str | None,
        typer.Option(help='"first": each line holds tags, a tab and the text. With --column: the column of tags.'),
    ] = None,
    infer: Annotated[
        Path | None, typer.Option(help="Saved model that infers the documents instead of training; its settings apply.")
    ] = None,
    save_words: Annotated[Path | None, typer.Option(help="File for the word vectors.")] = None,
    max_vocab: MaxVocab = None,
    errors: BadText = "strict",
    column: Column = None,
    cache: Cache = None,
) -> None:
    """Train document vectors (PV-DM or PV-DBOW), or infer vectors of new documents with --infer MODEL.

    Without --tags, documents are numbered from 0.
    """
    from embfast.documents.tagged import read_tagged
    from embfast.vectors.vectors import Vectors

    if save_words is not None and model.mode == "dbow" and not model.dbow_words:
        raise ValueError("PV-DBOW trains no word vectors: --save-words requires --dbow-words or another --mode")
    run.check(model, save_words=save_words)
    if save_words is not None:
        formats.format_of(save_words)
    if tags is not None and column is None and tags != "first":
        raise ValueError(f'--tags: expected "first" for text, or a column (with --column) for Parquet, got {tags!r}')
    if tags is not None and cache is not None:
        raise ValueError("--cache works for text without tags only; it cannot be combined with --tags")
    if infer is not None and (run.output is None or run.save_model or save_words or run.checkpoint):
        raise ValueError("--infer requires -o FILE and writes no other file")
    run.check_inputs(*documents, infer)
    options: dict[str, Any] = {"errors": errors, "threads": model.threads}
    if infer is None:
        options |= {"min_count": model.min_count, "max_vocab": max_vocab}
    else:
        loaded = Doc2Vec.load(infer)
        loaded.threads, loaded.device = model.threads, model.device
        if not is_saved_corpus(documents):
            options["vocab"] = loaded.words_
    started = time.perf_counter()
    if tags is None:
        text, named = read_corpus(documents, column, cache, run.quiet, **options), None
    else:
        with reading("reading", run.quiet) as progress:
            text, named = read_tagged(documents, column, tags if column else None, progress=progress, **options)
    read_s = time.perf_counter() - started
    run.say(f"{text.n_tokens:,} tokens, {len(text.words):,} words, {len(text):,} documents in {read_s:.1f} s")
    run.check_keys(named.keys if named is not None else [])

    result: dict[str, Any] = {"documents": len(text), "tokens": text.n_tokens, "words": len(text.words)}
    result["read_s"] = read_s
    if infer is not None:
        started = time.perf_counter()
        keys = [str(i) for i in range(len(text))]
        if named is not None:
            if (named.offsets[1:] - named.offsets[:-1] != 1).any() or len(named.keys) != len(text):
                raise ValueError("--infer writes one vector per document: expected one distinct tag for each")
            keys = named.keys
        with warnings_said():
            rows = loaded.infer(text)
        assert run.output is not None  # checked above
        Vectors(keys, rows).save(run.output, run.format)
        seconds = time.perf_counter() - started
        result["infer_s"] = seconds
        summary = f"inferred in {seconds:.1f} s, {len(text) / seconds:,.0f} documents/s"
    else:
        seconds = run.fit(model, text, tags=named)
        run.save(model)
        if save_words is not None:
            assert model.word_vectors_ is not None  # checked above
            model.word_vectors_.save(save_words)
        result |= {"loss": model.loss_, "train_s": seconds, "settings": model.get_params()}
        rate = model.epochs * text.n_tokens / seconds
        summary = f"trained in {seconds:.1f} s, {rate:,.0f} words/s; {losses(model)}"
    run.report(result, [summary], save_words)
