"""Word vectors: embfast word2vec, which also takes the flags of word2vec.c, and embfast glove."""

import re
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from embfast.cli.common import (
    BadText,
    Cache,
    Column,
    Corpora,
    MaxVocab,
    MinCount,
    VectorsRun,
    command,
    is_saved_corpus,
    losses,
    read_corpus,
    reading,
    typed,
)
from embfast.words.cooccurrence import CooccurrenceMatrix
from embfast.words.glove import GloVe
from embfast.words.word2vec import Word2Vec

if TYPE_CHECKING:
    from embfast.text.corpus import Corpus
    from embfast.vectors.vectors import Vectors


@dataclass(kw_only=True)
class Text:
    """Options for reading text: the vocabulary, and what is saved of it."""

    min_count: MinCount = 5
    max_vocab: MaxVocab = None
    max_sentence: Annotated[int | None, typer.Option(help="Longest document, in words; longer lines are cut.")] = None
    errors: BadText = "strict"
    column: Column = None
    cache: Cache = None
    save_vocab: Annotated[Path | None, typer.Option(help="File for the vocabulary, in the format of word2vec.c.")] = (
        None
    )
    read_vocab: Annotated[
        Path | None, typer.Option(help="Vocabulary file to take the words from, instead of the text.")
    ] = None

    def read(self, sources: list[Path], threads: int | None, run: VectorsRun) -> "Corpus":
        """Reads the text, and writes its vocabulary if requested."""
        started = time.perf_counter()
        options: dict[str, Any] = {"max_sentence": self.max_sentence, "errors": self.errors, "threads": threads}
        text = read_corpus(sources, self.column, self.cache, run.quiet, **options, **self._vocabulary())
        seconds = time.perf_counter() - started
        run.say(f"{text.n_tokens:,} tokens, {len(text.words):,} words, {len(text):,} documents in {seconds:.1f} s")
        if self.save_vocab is not None:
            text.save_vocab(self.save_vocab)
        return text

    def _vocabulary(self) -> dict[str, Any]:
        """Arguments of Corpus that select the words: from a vocabulary file, or by count."""
        from embfast.text.vocabulary import read_vocab

        if self.read_vocab is None:
            return {"min_count": self.min_count, "max_vocab": self.max_vocab}
        words, counts = read_vocab(self.read_vocab)
        if self.max_vocab is not None and self.max_vocab < 1:
            raise ValueError(f"max_vocab must be positive, got {self.max_vocab}")
        known = [word for word, n in zip(words, counts.tolist(), strict=True) if n >= self.min_count]
        return {"vocab": known[: self.max_vocab]}


# ---- word2vec -----------------------------------------------------------------------------------------------------

_C_FLAGS = {
    "-train": "corpus",
    "-output": "--output",
    "-size": "--dim",
    "-window": "--window",
    "-sample": "--sample",
    "-hs": "--hs",
    "-negative": "--negatives",
    "-threads": "--threads",
    "-iter": "--epochs",
    "-min-count": "--min-count",
    "-alpha": "--lr",
    "-classes": "--classes",
    "-debug": "--quiet",
    "-binary": "--format",
    "-save-vocab": "--save-vocab",
    "-read-vocab": "--read-vocab",
    "-cbow": "--cbow",
}


def from_word2vec_c(arguments: list[str]) -> list[str]:
    """Translates a word2vec.c command line into our flags, with its defaults; returns other command lines unchanged.

    Threads are limited to the number of cores. Our own flags may be mixed with the old ones. The default of -binary
    applies only to -output, unless its extension is .npz or .safetensors. Sentences are cut at 1,000 words only when
    reading text, not a saved corpus.

    >>> from_word2vec_c(["-train", "a.txt", "-output", "a.bin", "-cbow", "0", "-size", "50"])[:5]
    ['a.txt', '--output', 'a.bin', '--dim', '50']
    """
    if not any(argument in _C_FLAGS for argument in arguments):
        return arguments
    given = {"-cbow": "1", "-threads": "12"}
    corpus, rest = [], []
    words = iter(arguments)
    for word in words:
        if word not in _C_FLAGS:
            rest.append(word)
            continue
        value = next(words, None)
        if value is None:
            raise typer.BadParameter(f"{word}: expected a value, as in word2vec.c")
        given[word] = value
    if "-output" in given and Path(given["-output"]).suffix not in (".npz", ".safetensors"):
        given.setdefault("-binary", "0")
    translated = []
    for flag in _C_FLAGS:  # a fixed order, whatever the order given
        if flag not in given:
            continue
        value, ours = given[flag], _C_FLAGS[flag]
        if flag in ("-cbow", "-hs", "-binary", "-debug", "-threads", "-classes") and not re.fullmatch(
            r"-?[0-9]+", value
        ):
            raise typer.BadParameter(f"{flag}: expected a whole number, got {value!r}")
        if flag == "-train":
            corpus.append(value)
        elif flag in ("-cbow", "-hs"):
            translated.append(ours if int(value) else f"--no-{ours[2:]}")
        elif flag == "-binary":
            if "--format" not in rest:
                translated += [ours, "bin" if int(value) else "text"]
        elif flag == "-debug":
            translated += [] if int(value) else [ours]
        elif flag == "-threads":
            from embfast.training.threads import cores

            translated += [ours, str(max(1, min(int(value), cores())))]
        elif flag == "-classes":
            translated += [ours, value] if int(value) else []
        else:
            translated += [ours, value]
    of_text = not any(is_saved_corpus([Path(word)]) for word in [*corpus, *rest])
    if of_text and "--max-sentence" not in rest:
        translated += ["--max-sentence", "1000"]
    return [*corpus, *translated, *rest]


class _Word2VecCommand(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, from_word2vec_c(args))


@command("word2vec", cls=_Word2VecCommand)
def word2vec(
    model: Word2Vec,
    corpus: Corpora,
    run: VectorsRun,
    text: Text,
    classes: Annotated[
        int,
        typer.Option(help="Number of k-means classes to write as lines `word class`; 0 writes vectors."),
    ] = 0,
) -> None:
    """Train word vectors on text: skip-gram or CBOW.

    Also takes the flags of word2vec.c, with its defaults: embfast word2vec -train text -output vectors.bin -size 200
    -binary 1 ...
    """
    if classes < 0:
        raise ValueError(f"classes must be at least 0, got {classes}")
    if classes:
        if run.output is None:
            raise ValueError("--classes requires -o FILE, the file for the classes")
        _k_means()
        run.format = "text"  # lines `word class`, whatever the extension
    run.check(model, save_vocab=text.save_vocab)
    run.check_inputs(*corpus, text.read_vocab)

    started = time.perf_counter()
    read = text.read(corpus, model.threads, run)
    read_s = time.perf_counter() - started
    result: dict[str, Any] = {"documents": len(read), "tokens": read.n_tokens, "words": len(read.words)}
    result["read_s"] = read_s
    if run.output is None and run.save_model is None:
        run.report(result, [], text.save_vocab)
        return
    if classes > len(read.words):
        raise ValueError(f"expected at most {len(read.words)} classes, one per word, got {classes}")
    run.check_keys(read.words)
    seconds = run.fit(model, read)
    if classes:
        assert run.output is not None  # checked above
        write_classes(run.output, model.vectors_, classes, model.seed)
        if run.save_model is not None:
            model.save(run.save_model)
    else:
        run.save(model)
    result |= {"loss": model.loss_, "train_s": seconds, "settings": model.get_params()}
    rate = model.epochs * read.n_tokens / seconds
    run.report(result, [f"trained in {seconds:.1f} s, {rate:,.0f} words/s; {losses(model)}"])


def _k_means() -> Any:
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise ImportError("--classes requires scikit-learn: pip install scikit-learn") from None
    return MiniBatchKMeans


def write_classes(path: Path, vectors: "Vectors", classes: int, seed: int) -> None:
    """Writes lines `word class`, as word2vec.c -classes does: k-means over the unit vectors, classes from 0."""
    import numpy as np

    from embfast.files.durable import replacing

    if classes > len(vectors):
        raise ValueError(f"expected at most {len(vectors)} classes, one per word, got {classes}")
    units = vectors.matrix / np.maximum(vectors.norms, np.float32(1e-30))[:, None]
    means = _k_means()(n_clusters=classes, random_state=seed % 2**32, batch_size=max(4096, 4 * classes), n_init=3)
    labels = means.fit_predict(units).tolist()
    with replacing(path) as stream:
        for word, label in zip(vectors.keys, labels, strict=True):
            stream.write(f"{word} {label}\n".encode())


# ---- glove --------------------------------------------------------------------------------------------------------


_COUNTING = ("window", "symmetric", "distance_weighting")  # settings that a matrix was counted with


@command("glove")
def glove(
    model: GloVe,
    run: VectorsRun,
    text: Text,
    corpus: Annotated[
        list[Path] | None, typer.Argument(help="Text files (plain, gz, bz2, xz, zst), or a directory of them.")
    ] = None,
    keep_matrix: Annotated[Path | None, typer.Option(help="File for the co-occurrence matrix.")] = None,
    matrix: Annotated[
        Path | None,
        typer.Option(
            help="Co-occurrence matrix to train on instead of text: a file written by --keep-matrix, or with "
            "--read-vocab the cooccurrence.bin written by Stanford's cooccur."
        ),
    ] = None,
) -> None:
    """Train word vectors on the co-occurrences of words in text: GloVe."""
    run.check(model, text.save_vocab, keep_matrix=keep_matrix)
    if (not corpus) == (matrix is None):
        raise ValueError("expected either text to count or --matrix FILE with the counts")
    of_text = [option.name for option in fields(Text) if option.name != "read_vocab"]
    if matrix is not None and (wrong := typed(*_COUNTING, "memory_gb", "keep_matrix", *of_text)):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise ValueError(f"{names}: only for counting text; --matrix has been counted already")
    run.check_inputs(*(corpus or ()), text.read_vocab, matrix)

    started = time.perf_counter()
    if matrix is None:
        read = text.read(corpus or [], model.threads, run)
        with reading("counting", run.quiet) as progress:
            counted = CooccurrenceMatrix.from_corpus(
                read,
                window=model.window,
                symmetric=model.symmetric,
                distance_weighting=model.distance_weighting,
                memory_gb=model.memory_gb,
                threads=model.threads,
                path=keep_matrix,
                progress=progress,
            )
    elif text.read_vocab is not None:
        counted = CooccurrenceMatrix.from_stanford(matrix, text.read_vocab)
    else:
        counted = CooccurrenceMatrix.load(matrix)
    count_s = time.perf_counter() - started
    run.check_keys(counted.words)
    run.say(f"{len(counted):,} entries, {len(counted.words):,} words in {count_s:.1f} s")
    result: dict[str, Any] = {
        "words": len(counted.words),
        "entries": len(counted),
        "count_s": count_s,
        "matrix": None if keep_matrix is None else str(keep_matrix),
        "settings": model.get_params() | {name: counted.settings.get(name) for name in _COUNTING},
    }
    summary = []
    if run.output is not None or run.save_model is not None:
        seconds = run.fit(model, counted)
        run.save(model)
        result |= {"loss": model.loss_, "train_s": seconds}
        rate = model.epochs * len(counted) / seconds
        summary = [f"trained in {seconds:.1f} s, {rate:,.0f} entries/s; {losses(model)}"]
    run.report(result, summary, keep_matrix)
