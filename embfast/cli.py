"""The command line: embfast word2vec, doc2vec, glove, node2vec, line, images, multimodal, neighbors, ..."""

import functools
import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from embfast import __version__
from embfast.doc2vec import Doc2Vec
from embfast.errors import FormatError, TrainingError
from embfast.glove import CooccurrenceMatrix, GloVe
from embfast.line import LINE
from embfast.multimodal import Multimodal
from embfast.node2vec import Node2Vec
from embfast.word2vec import Word2Vec

if TYPE_CHECKING:
    from embfast.captions import Captions
    from embfast.corpus import Corpus
    from embfast.graph import Graph
    from embfast.vectors import Vectors

app = typer.Typer(
    name="embfast",
    help="Embeddings, trained near the speed of the hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
multimodal = typer.Typer(help="Images and captions in one space: train, search, evaluate.", no_args_is_help=True)
app.add_typer(multimodal, name="multimodal")


def main() -> None:
    """The entry point of the `embfast` program."""
    app(prog_name="embfast")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"embfast {__version__}")
        raise typer.Exit


# ---- what commands share ------------------------------------------------------------------------------------------


def say(text: str, style: str = "") -> None:
    """One line to stderr, in colour on a terminal; stdout is for results."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(text, style=style or None, markup=False)


def command(
    name: str, under: typer.Typer = app, **options: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command, of the program or a group, whose expected errors are one red line on stderr.

    The exit code is then 2, or 130 after Ctrl-C.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **given: Any) -> None:
            try:
                function(*args, **given)
            except KeyboardInterrupt as stop:
                say(f"interrupted{stop}", "red")
                raise typer.Exit(130) from None
            except BrokenPipeError:  # the reader of our output, head say, has gone: typer leaves without a word
                raise
            except KeyError as error:
                say(str(error.args[0]), "red")
                raise typer.Exit(2) from None
            except OSError as error:
                text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
                say(text, "red")
                raise typer.Exit(2) from None
            except (ValueError, TypeError, TrainingError, ImportError, MemoryError) as error:
                say(str(error) or type(error).__name__, "red")
                raise typer.Exit(2) from None

        return under.command(name, **options)(run)

    return register


def takes_settings(model: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Puts the settings of a model, with the words of its docstring, in place of a function's first parameter.

    The function then gets the model made of them: so options and settings cannot drift apart.
    """
    help_of = settings_help(model)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[1:]
        settings = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=setting.default,
                annotation=Annotated[
                    setting.annotation,
                    typer.Option(help=help_of.get(name), rich_help_panel=f"{model.__name__} settings"),
                ],
            )
            for name, setting in model.settings().items()
        ]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + settings

        def run(**given: Any) -> None:
            made = model(**{setting.name: given.pop(setting.name) for setting in settings})
            function(made, **given)

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = inspect.Signature(parameters)
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def settings_help(model: type) -> dict[str, str]:
    """What the "Settings:" section of a class's docstring says of each setting."""
    section = re.search(r"^Settings:\n(.*?)\n(?=\S)", inspect.getdoc(model) or "", re.DOTALL | re.MULTILINE)
    entries = re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", section.group(1) if section else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for names, text in entries for name in names.split(", ")}


@contextmanager
def reading(label: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr for a callback of (done, in all); None when stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def read_corpus(sources: list[Path], column: str | None, cache: Path | None, quiet: bool, **options: Any) -> "Corpus":
    """Text files, a directory that Corpus.save wrote, or a column of Parquet files."""
    from embfast.corpus import Corpus

    if len(sources) == 1 and (sources[0] / "corpus.json").is_file():
        return Corpus.load(sources[0])
    with reading("reading", quiet) as progress:
        if column is not None:
            if cache is not None:
                raise ValueError("--cache keeps texts; it cannot be used together with --column")
            return Corpus.from_parquet(sources, column, progress=progress, **options)
        return Corpus.from_file(sources, cache=cache, progress=progress, **options)


def vocabulary_options(read_vocab: Path | None, min_count: int, max_vocab: int | None) -> dict[str, Any]:
    """Which words a Corpus takes: those of a vocabulary file, or of the text."""
    from embfast.corpus import read_vocab as read_words

    if read_vocab is None:
        return {"min_count": min_count, "max_vocab": max_vocab}
    words, counts = read_words(read_vocab)
    return {"vocab": [word for word, n in zip(words, counts.tolist(), strict=True) if n >= min_count][:max_vocab]}


def fit(
    model: Word2Vec | GloVe | Node2Vec | LINE | Multimodal,
    data: Any,
    checkpoint: Path | None,
    checkpoint_minutes: float,
    resume: bool,
    quiet: bool,
    **options: Any,
) -> float:
    """Trains a model and returns the seconds; Ctrl-C says how to go on."""
    if resume and not quiet and not checkpoint.exists():
        say(f"{checkpoint} is not there yet: training from the start")
    started = time.perf_counter()
    try:
        model.fit(
            data,
            checkpoint=checkpoint,
            checkpoint_minutes=checkpoint_minutes,
            resume=resume,
            progress=False if quiet else None,
            **options,
        )
    except KeyboardInterrupt:
        if checkpoint is None:
            raise KeyboardInterrupt("; nothing was kept (--checkpoint FILE would have)") from None
        raise KeyboardInterrupt(f"; continue with --checkpoint {checkpoint} --resume") from None
    return time.perf_counter() - started


def read_vectors(path: Path, format: str | None = None, **options: Any) -> "Vectors":
    """Vectors of any format, or those of a saved model or checkpoint."""
    from embfast.training import model_class
    from embfast.vectors import Vectors

    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    models = {model.__name__: model for model in (Word2Vec, Doc2Vec, GloVe, Node2Vec, LINE, Multimodal)}
    if format is None and path.suffix == ".safetensors" and (name := model_class(path)) in models:
        return models[name].load(path).vectors_
    return Vectors.load(path, format, **options)


def check_writable(path: Path) -> None:
    """Fails now, and not after hours of training, if a file cannot be written there."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory; expected the name of a file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no directory {path.absolute().parent}")


Corpora = Annotated[list[Path], typer.Argument(help="Text files (plain, gz, bz2, xz, zst), a directory of them.")]
VectorsFile = Annotated[Path, typer.Argument(help="Vectors: .bin, .txt, .vec, .npz, .safetensors, or a saved model.")]
FileFormat = Annotated[
    str | None, typer.Option("--format", help="bin, text, glove, npz or safetensors; by the extension if not given.")
]
MinCount = Annotated[int, typer.Option(help="Leave out words with fewer occurrences.")]
MaxVocab = Annotated[int | None, typer.Option(help="Keep at most this many words, the most frequent.")]
BadText = Annotated[str, typer.Option(help="Words that are not UTF-8: strict (an error), replace or skip.")]
Column = Annotated[str | None, typer.Option(help="The files are Parquet; read this column, a document a row.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Restrict = Annotated[int | None, typer.Option(help="Use only the first so many keys, the most frequent.")]


# ---- training -----------------------------------------------------------------------------------------------------

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
    """A word2vec.c command line in our flags, with its defaults; anything without its flags comes back unchanged.

    Threads are limited to the cores there are. Our own flags may stand beside the old ones.

    >>> from_word2vec_c(["-train", "a.txt", "-output", "a.bin", "-cbow", "0", "-size", "50"])[:5]
    ['a.txt', '--output', 'a.bin', '--dim', '50']
    """
    if not any(argument in _C_FLAGS for argument in arguments):
        return arguments
    given = {"-cbow": "1", "-binary": "0", "-threads": "12"}
    corpus, rest = [], []
    words = iter(arguments)
    for word in words:
        if word not in _C_FLAGS:
            rest.append(word)
            continue
        value = next(words, None)
        if value is None:
            raise typer.BadParameter(f"{word}: a value is missing, as in word2vec.c")
        given[word] = value
    translated = []
    for flag in _C_FLAGS:  # one order, whatever the order given
        if flag not in given:
            continue
        value, ours = given[flag], _C_FLAGS[flag]
        if flag in ("-cbow", "-hs", "-binary", "-debug", "-threads", "-classes") and not value.lstrip("-").isdigit():
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
            from embfast.training import cores

            translated += [ours, str(max(1, min(int(value), cores())))]
        elif flag == "-classes":
            translated += [ours, value] if int(value) else []
        else:
            translated += [ours, value]
    if "--max-sentence" not in rest:
        translated += ["--max-sentence", "1000"]
    return [*corpus, *translated, *rest]


class _Word2VecCommand(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, from_word2vec_c(args))


@command("word2vec", cls=_Word2VecCommand)
@takes_settings(Word2Vec)
def word2vec(
    model: Word2Vec,
    corpus: Corpora,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the vectors here.")] = None,
    format: FileFormat = None,
    save_model: Annotated[Path | None, typer.Option(help="Write all weights here, to continue with later.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Keep the state of the run here.")] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between two checkpoints.")] = 10.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint, if it is there.")] = False,
    min_count: MinCount = 5,
    max_vocab: MaxVocab = None,
    max_sentence: Annotated[int | None, typer.Option(help="Cut lines into documents of so many words.")] = None,
    errors: BadText = "strict",
    column: Column = None,
    cache: Annotated[Path | None, typer.Option(help="Keep the encoded corpus in this directory.")] = None,
    save_vocab: Annotated[Path | None, typer.Option(help="Write the vocabulary as word2vec.c does.")] = None,
    read_vocab: Annotated[Path | None, typer.Option(help="Take the words from such a file.")] = None,
    classes: Annotated[int, typer.Option(help="Write `word class` lines of so many k-means classes instead.")] = 0,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train word vectors on text: skip-gram or CBOW.

    The flags of word2vec.c work too, with its defaults: embfast word2vec -train text -output vectors.bin -size 200
    -binary 1 ...
    """
    from embfast import formats

    if output is None and save_model is None and save_vocab is None:
        raise ValueError("nothing to write: pass -o FILE, --save-model FILE or --save-vocab FILE")
    for path in (output, save_model, checkpoint, save_vocab):
        if path is not None:
            check_writable(path)
    if classes < 0:
        raise ValueError(f"classes must be 0 or more, got {classes}")
    if output is not None and not classes:
        format = formats.format_of(output, format)
    if classes:
        _k_means()
    if resume and checkpoint is None:
        raise ValueError("--resume needs --checkpoint FILE, the file to continue from")
    model._check()

    options: dict[str, Any] = {"max_sentence": max_sentence, "errors": errors, "threads": model.threads}
    options.update(vocabulary_options(read_vocab, min_count, max_vocab))
    started = time.perf_counter()
    text = read_corpus(corpus, column, cache, quiet, **options)
    read_s = time.perf_counter() - started
    if not quiet:
        say(f"{text.n_tokens:,} tokens, {len(text.words):,} words, {len(text):,} documents in {read_s:.1f} s")
    if save_vocab is not None:
        text.save_vocab(save_vocab)
        if output is None and save_model is None:
            return
    seconds = fit(model, text, checkpoint, checkpoint_minutes, resume, quiet)
    if output is not None:
        if classes:
            write_classes(output, model.vectors_, classes, model.seed)
        else:
            model.vectors_.save(output, format)
    if save_model is not None:
        model.save(save_model)

    rate = model.epochs * text.n_tokens / seconds
    result = {
        "documents": len(text),
        "tokens": text.n_tokens,
        "words": len(text.words),
        "loss": model.loss_,
        "read_s": read_s,
        "train_s": seconds,
        "output": None if output is None else str(output),
        "model": None if save_model is None else str(save_model),
        "settings": model.get_params(),
    }
    if json_output:
        print(json.dumps(result))
    elif not quiet:
        losses = " ".join(f"{loss:.4f}" for loss in model.loss_)
        say(f"trained in {seconds:.1f} s, {rate:,.0f} words/s; loss by epoch {losses}")
        for path in (output, save_model):
            if path is not None:
                say(f"wrote {path}")


@command("doc2vec")
@takes_settings(Doc2Vec)
def doc2vec(
    model: Doc2Vec,
    documents: Annotated[list[Path], typer.Argument(help="Text files, plain or compressed; a document a line.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the document vectors here.")] = None,
    tags: Annotated[
        str | None,
        typer.Option(help='"first": lines are tags, a tab and the text; with --column, the column of the tags.'),
    ] = None,
    infer: Annotated[
        Path | None, typer.Option(help="Infer the documents with this saved model (its settings hold), not train.")
    ] = None,
    format: FileFormat = None,
    save_model: Annotated[Path | None, typer.Option(help="Write all weights here, to infer and continue with.")] = None,
    save_words: Annotated[Path | None, typer.Option(help="Write the word vectors here.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Keep the state of the run here.")] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between two checkpoints.")] = 10.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint, if it is there.")] = False,
    max_vocab: MaxVocab = None,
    errors: BadText = "strict",
    column: Column = None,
    cache: Annotated[Path | None, typer.Option(help="Keep the encoded corpus in this directory.")] = None,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train document vectors, PV-DM or PV-DBOW, or infer those of new documents with --infer MODEL.

    Documents without --tags are numbered from 0.
    """
    import warnings

    from embfast import formats
    from embfast.corpus import read_tagged
    from embfast.vectors import Vectors

    if output is None and save_model is None and save_words is None:
        raise ValueError("nothing to write: pass -o FILE, --save-model FILE or --save-words FILE")
    for path in (output, save_model, save_words, checkpoint):
        if path is not None:
            check_writable(path)
    if output is not None:
        format = formats.format_of(output, format)
    if resume and checkpoint is None:
        raise ValueError("--resume needs --checkpoint FILE, the file to continue from")
    if tags is not None and column is None and tags != "first":
        raise ValueError(f'--tags: expected "first" for text, or --column too for Parquet, got {tags!r}')
    if tags is not None and cache is not None:
        raise ValueError("--cache keeps texts without tags; it cannot be used together with --tags")
    if infer is not None and (output is None or any(path is not None for path in (save_model, save_words, checkpoint))):
        raise ValueError("--infer needs -o FILE, and writes nothing else")
    model._check()
    if save_words is not None and model.mode == "dbow" and not model.dbow_words:
        raise ValueError("PV-DBOW trains no words: --save-words needs --dbow-words, or another --mode")
    options: dict[str, Any] = {"errors": errors, "threads": model.threads}
    if infer is None:
        options |= {"min_count": model.min_count, "max_vocab": max_vocab}
    else:
        loaded = Doc2Vec.load(infer)
        loaded.threads = model.threads
        options["vocab"] = loaded.words_
    started = time.perf_counter()
    if tags is None:
        text, named = read_corpus(documents, column, cache, quiet, **options), None
    else:
        with reading("reading", quiet) as progress:
            text, named = read_tagged(documents, column, tags if column else None, progress=progress, **options)
    read_s = time.perf_counter() - started
    if not quiet:
        say(f"{text.n_tokens:,} tokens, {len(text.words):,} words, {len(text):,} documents in {read_s:.1f} s")

    started = time.perf_counter()
    result: dict[str, Any] = {"documents": len(text), "tokens": text.n_tokens, "words": len(text.words)}
    if infer is not None:
        keys = [str(i) for i in range(len(text))]
        if named is not None:
            if (named.offsets[1:] - named.offsets[:-1] != 1).any() or len(named.keys) != len(text):
                raise ValueError("--infer writes a vector for each document: expected one tag each, all different")
            keys = named.keys
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows = loaded.infer(text)
        for warning in caught:
            say(str(warning.message), "yellow")
        Vectors(keys, rows).save(output, format)
        seconds = time.perf_counter() - started
        summary = f"inferred in {seconds:.1f} s, {len(text) / seconds:,.0f} documents/s"
        result |= {"infer_s": seconds}
    else:
        if resume and not quiet and not checkpoint.exists():
            say(f"{checkpoint} is not there yet: training from the start")
        try:
            model.fit(
                text,
                tags=named,
                checkpoint=checkpoint,
                checkpoint_minutes=checkpoint_minutes,
                resume=resume,
                progress=False if quiet else None,
            )
        except KeyboardInterrupt:
            if checkpoint is None:
                raise KeyboardInterrupt("; nothing was kept (--checkpoint FILE would have)") from None
            raise KeyboardInterrupt(f"; continue with --checkpoint {checkpoint} --resume") from None
        seconds = time.perf_counter() - started
        if output is not None:
            model.vectors_.save(output, format)
        if save_model is not None:
            model.save(save_model)
        if save_words is not None:
            model.word_vectors_.save(save_words)
        losses = " ".join(f"{loss:.4f}" for loss in model.loss_)
        rate = model.epochs * text.n_tokens / seconds
        summary = f"trained in {seconds:.1f} s, {rate:,.0f} words/s; loss by epoch {losses}"
        result |= {"loss": model.loss_, "train_s": seconds, "settings": model.get_params()}
    result |= {"read_s": read_s, "output": None if output is None else str(output)}
    if json_output:
        print(json.dumps(result))
    elif not quiet:
        say(summary)
        for path in (output, save_model, save_words):
            if path is not None:
                say(f"wrote {path}")


def _k_means() -> Any:
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise ImportError("classes need scikit-learn: pip install scikit-learn") from None
    return MiniBatchKMeans


def write_classes(path: Path, vectors: "Vectors", classes: int, seed: int) -> None:
    """Writes `word class` lines, classes 0..classes - 1 by k-means over the unit vectors, as word2vec.c -classes."""
    import numpy as np

    from embfast.formats import replacing

    if classes > len(vectors):
        raise ValueError(f"expected at most {len(vectors)} classes, one per word, got {classes}")
    units = vectors.matrix / np.maximum(vectors.norms, np.float32(1e-30))[:, None]
    means = _k_means()(n_clusters=classes, random_state=seed % 2**32, batch_size=max(4096, 4 * classes), n_init=3)
    labels = means.fit_predict(units).tolist()
    with replacing(path) as stream:
        for word, label in zip(vectors.keys, labels, strict=True):
            stream.write(f"{word} {label}\n".encode())


@command("glove")
@takes_settings(GloVe)
def glove(
    model: GloVe,
    corpus: Annotated[
        list[Path] | None, typer.Argument(help="Text files (plain, gz, bz2, xz, zst), a directory of them.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the vectors here.")] = None,
    format: FileFormat = None,
    keep_matrix: Annotated[Path | None, typer.Option(help="Keep the co-occurrences in this file.")] = None,
    matrix: Annotated[
        Path | None,
        typer.Option(
            help="Take the co-occurrences from here and not from text: a file of --keep-matrix, or, with --read-vocab, "
            "cooccurrence.bin of Stanford's cooccur."
        ),
    ] = None,
    save_model: Annotated[Path | None, typer.Option(help="Write all weights here, to continue with later.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Keep the state of the run here.")] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between two checkpoints.")] = 10.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint, if it is there.")] = False,
    min_count: MinCount = 5,
    max_vocab: MaxVocab = None,
    max_sentence: Annotated[int | None, typer.Option(help="Cut lines into documents of so many words.")] = None,
    errors: BadText = "strict",
    column: Column = None,
    cache: Annotated[Path | None, typer.Option(help="Keep the encoded corpus in this directory.")] = None,
    save_vocab: Annotated[Path | None, typer.Option(help="Write the vocabulary as word2vec.c does.")] = None,
    read_vocab: Annotated[Path | None, typer.Option(help="Take the words from such a file.")] = None,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train word vectors on the co-occurrences of words in text: GloVe."""
    from embfast import formats

    if output is None and save_model is None and keep_matrix is None:
        raise ValueError("nothing to write: pass -o FILE, --save-model FILE or --keep-matrix FILE")
    if (not corpus) == (matrix is None):
        raise ValueError("expected either text to count or --matrix FILE that holds the counts")
    if matrix is not None and (keep_matrix or save_vocab):
        raise ValueError("--keep-matrix and --save-vocab are of text; --matrix is counted already")
    for path in (output, keep_matrix, save_model, checkpoint, save_vocab):
        if path is not None:
            check_writable(path)
    if output is not None:
        format = formats.format_of(output, format)
    if resume and checkpoint is None:
        raise ValueError("--resume needs --checkpoint FILE, the file to continue from")
    model._check()

    started = time.perf_counter()
    if matrix is None:
        options = {"max_sentence": max_sentence, "errors": errors, "threads": model.threads}
        options.update(vocabulary_options(read_vocab, min_count, max_vocab))
        text = read_corpus(corpus, column, cache, quiet, **options)
        if not quiet:
            say(f"{text.n_tokens:,} tokens, {len(text.words):,} words, {len(text):,} documents")
        if save_vocab is not None:
            text.save_vocab(save_vocab)
        with reading("counting", quiet) as progress:
            counted = CooccurrenceMatrix.from_corpus(
                text,
                window=model.window,
                symmetric=model.symmetric,
                distance_weighting=model.distance_weighting,
                memory_gb=model.memory_gb,
                threads=model.threads,
                path=keep_matrix,
                progress=progress,
            )
    elif read_vocab is not None:
        counted = CooccurrenceMatrix.from_stanford(matrix, read_vocab)
    else:
        counted = CooccurrenceMatrix.load(matrix)
    count_s = time.perf_counter() - started
    if not quiet:
        say(f"{len(counted):,} entries, {len(counted.words):,} words in {count_s:.1f} s")
    result: dict[str, Any] = {
        "words": len(counted.words),
        "entries": len(counted),
        "count_s": count_s,
        "matrix": None if keep_matrix is None else str(keep_matrix),
        "settings": model.get_params(),
    }
    if output is not None or save_model is not None:
        seconds = fit(model, counted, checkpoint, checkpoint_minutes, resume, quiet)
        if output is not None:
            model.vectors_.save(output, format)
        if save_model is not None:
            model.save(save_model)
        result |= {
            "loss": model.loss_,
            "train_s": seconds,
            "output": None if output is None else str(output),
            "model": None if save_model is None else str(save_model),
        }
        if not quiet and not json_output:
            losses = " ".join(f"{loss:.4f}" for loss in model.loss_)
            rate = model.epochs * len(counted) / seconds
            say(f"trained in {seconds:.1f} s, {rate:,.0f} entries/s; loss by epoch {losses}")
    if json_output:
        print(json.dumps(result))
    elif not quiet:
        for path in (keep_matrix, output, save_model):
            if path is not None:
                say(f"wrote {path}")


def read_graph(path: Path, quiet: bool, **options: Any) -> "Graph":
    """An edge list, a matrix, columns of a Parquet file, or what Graph.save wrote."""
    from embfast.graph import Graph

    if path.suffix == ".safetensors":
        return Graph.load(path)
    if path.suffix == ".parquet":
        weight = "weight" if options["weighted"] else None
        return Graph.from_parquet(
            path, weight=weight, directed=bool(options["directed"]), duplicates=options["duplicates"]
        )
    with reading("reading", quiet) as progress:
        return Graph.from_file(path, progress=progress, **options)


Edges = Annotated[
    Path,
    typer.Argument(
        help="Lines `node node [weight]` (plain, gz, bz2, xz, zst), Matrix Market, scipy .npz, .parquet with the "
        "columns source, target (and weight), or a saved Graph."
    ),
]
Weighted = Annotated[
    bool | None, typer.Option(help="Insist on weights, or pass over them; by default as the file has them.")
]
Directed = Annotated[
    bool | None, typer.Option(help="Edges lead one way only; by default not, unless a matrix says so.")
]
Duplicates = Annotated[str, typer.Option(help="Edges listed again: sum, first or reject.")]


def train_nodes(
    model: Node2Vec | LINE,
    edges: Path,
    output: Path | None,
    format: str | None,
    weighted: bool | None,
    directed: bool | None,
    duplicates: str,
    save_graph: Path | None,
    save_model: Path | None,
    checkpoint: Path | None,
    checkpoint_minutes: float,
    resume: bool,
    json_output: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Reads a graph, trains on it, and writes what was asked for."""
    from embfast import formats

    if output is None and save_model is None:
        raise ValueError("nothing to write: pass -o FILE or --save-model FILE")
    for path in (output, save_graph, save_model, checkpoint):
        if path is not None:
            check_writable(path)
    if output is not None:
        format = formats.format_of(output, format)
    if resume and checkpoint is None:
        raise ValueError("--resume needs --checkpoint FILE, the file to continue from")
    model._check()

    started = time.perf_counter()
    graph = read_graph(edges, quiet, weighted=weighted, directed=directed, duplicates=duplicates)
    read_s = time.perf_counter() - started
    if not quiet:
        say(f"{graph!r} in {read_s:.1f} s")
    if save_graph is not None:
        graph.save(save_graph)
    seconds = fit(model, graph, checkpoint, checkpoint_minutes, resume, quiet, **options)
    if output is not None:
        model.vectors_.save(output, format)
    if save_model is not None:
        model.save(save_model)
    result = {
        "nodes": len(graph),
        "edges": graph.n_edges,
        "self_loops": graph.n_self_loops,
        "directed": graph.directed,
        "weighted": graph.weights is not None,
        "loss": model.loss_,
        "read_s": read_s,
        "train_s": seconds,
        "output": None if output is None else str(output),
        "model": None if save_model is None else str(save_model),
        "settings": model.get_params(),
    }
    if json_output:
        print(json.dumps(result))
    elif not quiet:
        say(f"trained in {seconds:.1f} s; loss by epoch {' '.join(f'{loss:.4f}' for loss in model.loss_)}")
        for path in (save_graph, output, save_model):
            if path is not None:
                say(f"wrote {path}")


@command("node2vec")
@takes_settings(Node2Vec)
def node2vec(
    model: Node2Vec,
    edges: Edges,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the vectors here.")] = None,
    format: FileFormat = None,
    weighted: Weighted = None,
    directed: Directed = None,
    duplicates: Duplicates = "sum",
    types: Annotated[
        Path | None, typer.Option(help="For --metapath: lines `node type`, of every node; plain or compressed.")
    ] = None,
    save_graph: Annotated[Path | None, typer.Option(help="Keep the graph in this file, .safetensors.")] = None,
    save_model: Annotated[Path | None, typer.Option(help="Write all weights here.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Keep the state of the run here.")] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between two checkpoints.")] = 10.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint, if it is there.")] = False,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train vectors of a graph's nodes on random walks: node2vec, or DeepWalk with --hs --negatives 0."""
    if (types is None) != (model.metapath is None):
        raise ValueError("--metapath and --types FILE go together")
    train_nodes(
        model, edges, output, format, weighted, directed, duplicates, save_graph, save_model, checkpoint,
        checkpoint_minutes, resume, json_output, quiet, types=None if types is None else read_types(types),
    )  # fmt: skip


def read_types(path: Path) -> dict[str, str]:
    """Lines `node type`."""
    from embfast.evaluate import read_labels

    found = read_labels(path)
    for node, names in found.items():
        if len(names) != 1:
            raise FormatError(f"{path}: expected one type of node {node!r}, got {names}")
    return {node: names[0] for node, names in found.items()}


@command("line")
@takes_settings(LINE)
def line(
    model: LINE,
    edges: Edges,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the vectors here.")] = None,
    format: FileFormat = None,
    weighted: Weighted = None,
    directed: Directed = None,
    duplicates: Duplicates = "sum",
    save_graph: Annotated[Path | None, typer.Option(help="Keep the graph in this file, .safetensors.")] = None,
    save_model: Annotated[Path | None, typer.Option(help="Write all weights here.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Keep the state of the run here.")] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between two checkpoints.")] = 10.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint, if it is there.")] = False,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train vectors of a graph's nodes on its edges alone: LINE of first, second or both orders."""
    train_nodes(
        model, edges, output, format, weighted, directed, duplicates, save_graph, save_model, checkpoint,
        checkpoint_minutes, resume, json_output, quiet,
    )  # fmt: skip


@command("images")
def images(
    pictures: Annotated[
        list[str], typer.Argument(help="A folder, image files, a .txt of paths, or .tar shards (s-{000..011}.tar).")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the vectors: .npz, .bin, ...")] = None,
    fne: Annotated[bool, typer.Option("--fne", help="All layers, as -1, 0 and 1: Full-Network Embedding.")] = False,
    layer: Annotated[
        list[str] | None, typer.Option(help="A layer by name or number; several are put one after the other.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="efficientnet_lite0, or a name that torchvision or timm knows.")
    ] = "efficientnet_lite0",
    weights: Annotated[Path | None, typer.Option(help="Weights of the backbone: .safetensors or .pth.")] = None,
    at: Annotated[str, typer.Option(help="after or before the non-linearity, or the layer's own output.")] = "after",
    pool: Annotated[str, typer.Option(help="mean, max, gem, grid or none.")] = "mean",
    views: Annotated[str, typer.Option(help="one, flip, rotations or ten; not with --fne.")] = "one",
    combine: Annotated[str, typer.Option(help="mean or stack: what is done with the views.")] = "mean",
    l2: Annotated[bool, typer.Option(help="Vectors of length 1; not with --fne.")] = True,
    power: Annotated[float, typer.Option(help="sign(x) |x|^power; not with --fne.")] = 1.0,
    reduce: Annotated[int, typer.Option(help="Numbers that PCA leaves; 0 for none of it; not with --fne.")] = 0,
    whiten: Annotated[bool, typer.Option("--whiten", help="PCA whitens.")] = False,
    lower: Annotated[float, typer.Option(help="With --fne: -1 below it, in standard deviations.")] = -0.25,
    upper: Annotated[float, typer.Option(help="With --fne: 1 above it.")] = 0.15,
    size: Annotated[
        int | None, typer.Option(help="Pixels of the square; as the network was trained if not given.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at once.")] = 32,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; CUDA where there is one.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    errors: Annotated[str, typer.Option(help="Images that cannot be read: strict (an error) or skip.")] = "strict",
    model: Annotated[
        Path | None, typer.Option(help="Use this saved model, fitted to other images; its settings hold.")
    ] = None,
    save_model: Annotated[
        Path | None, typer.Option(help="Write what was learned of these images, for --model.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Keep features in this folder; the same command again goes on from there.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw thumbnails by t-SNE to this .png.")] = None,
    format: FileFormat = None,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Vectors of images: a layer of a pretrained network, or all of them with --fne; needs embfast\\[images].

    Keys are paths below the folder. Statistics (--fne, --reduce) are those of the images given, or of --model.
    """
    from dataclasses import replace

    from embfast import formats
    from embfast.images import FullNetworkEmbedding, ImageEmbedding, LayerEmbedding
    from embfast.pictures import open_pictures
    from embfast.training import model_class

    if output is None and save_model is None and picture is None:
        raise ValueError("nothing to write: pass -o FILE, --save-model FILE or --picture FILE")
    for path in (output, save_model, picture):
        if path is not None:
            check_writable(path)
    if output is not None:
        format = formats.format_of(output, format)
    layers = [int(name) if name.lstrip("-").isdigit() else name for name in layer or []]
    kinds = {kind.__name__: kind for kind in (FullNetworkEmbedding, LayerEmbedding)}
    running = {
        "batch": batch,
        "precision": precision,
        "device": device,
        "workers": workers,
        "compile": compile,
        "errors": errors,
    }
    made: ImageEmbedding
    if model is not None:
        if not model.exists():
            raise FileNotFoundError(f"{model}: no such file")
        name = model_class(model)
        if name not in kinds:
            raise ValueError(f"{model}: expected a model that --save-model wrote, got {name or 'something else'}")
        made = kinds[name].load(model).set_params(**running)
    else:
        network = {"backbone": backbone, "weights": None if weights is None else str(weights), "at": at, "pool": pool}
        if fne:
            made = FullNetworkEmbedding(**network, layers=layers or "all", lower=lower, upper=upper, **running)
        else:
            made = LayerEmbedding(
                **network,
                layer=layers or "penultimate",
                views=views,
                combine=combine,
                l2=l2,
                power=power,
                reduce=reduce,
                whiten=whiten,
                **running,
            )
        if size is not None:
            made.preparation = replace(made.network().preparation, size=size, resize=round(size * 256 / 224))
    found = open_pictures(pictures if len(pictures) > 1 else pictures[0])
    started = time.perf_counter()
    options = {"work": work, "progress": False if quiet else None}
    try:
        vectors = made.embed(found, **options) if model is not None else made.fit_embed(found, **options)
    except KeyboardInterrupt:
        kept = "nothing was kept (--work FOLDER would have)" if work is None else "the same command goes on from here"
        raise KeyboardInterrupt(f"; {kept}") from None
    seconds = time.perf_counter() - started
    if output is not None:
        vectors.save(output, format)
    if save_model is not None:
        made.save(save_model)
    if picture is not None:
        from embfast.plot import plot_images

        plot_images(vectors, found, picture)
    result = {
        "images": len(vectors),
        "dim": vectors.dim,
        "broken": made.broken_,
        "seconds": seconds,
        "output": None if output is None else str(output),
        "model": None if save_model is None else str(save_model),
    }
    if json_output:
        print(json.dumps(result))
    elif not quiet:
        for why in made.broken_.values():
            say(f"left out: {why}", "yellow")
        say(f"{len(vectors):,} images, {vectors.dim:,} numbers each, in {seconds:.1f} s")
        for path in (output, save_model, picture):
            if path is not None:
                say(f"wrote {path}")


ImageVectors = Annotated[Path, typer.Argument(help="Vectors of the images, keyed by image: any format.")]
CaptionsFile = Annotated[
    Path,
    typer.Argument(help="Captions: Karpathy's or COCO's JSON, Flickr8k.token.txt, tab-separated lines, or Parquet."),
]
Splits = Annotated[
    list[str] | None,
    typer.Option("--split", help="NAME=FILE: the images of a split, one a line, as Flickr8k has them."),
]
Stem = Annotated[bool, typer.Option("--stem", help="Images of captions without directory and extension.")]


def read_captions(path: Path, splits: list[str] | None, stem: bool) -> "Captions":
    """A file of captions, and the files that say which images are in which split."""
    from embfast.captions import Captions

    files = {}
    for given in splits or ():
        name, equals, file = given.partition("=")
        if not equals:
            raise ValueError(f"--split: expected NAME=FILE, as train=trainImages.txt, got {given!r}")
        files[name] = file
    return Captions.from_file(path, splits=files, stem=stem)


@command("train", under=multimodal)
@takes_settings(Multimodal)
def multimodal_train(
    model: Multimodal,
    images: ImageVectors,
    captions: CaptionsFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the model here.")],
    splits: Splits = None,
    stem: Stem = False,
    missing: Annotated[str, typer.Option(help="Captions of images without a vector: error, or skip.")] = "error",
    words: Annotated[Path | None, typer.Option(help="Vectors that the words begin with.")] = None,
    document_model: Annotated[Path | None, typer.Option(help="The saved Doc2Vec of --text doc2vec.")] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="Write the towers to images.onnx and captions.onnx in here.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Keep the state of the run here.")] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between two checkpoints.")] = 10.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint, if it is there.")] = False,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train images and captions into one space.

    Images of the split "train" are trained on (without splits, all), those of "dev" choose the best epoch, and those of
    "test" are ranked in the end.
    """
    for path in (output, checkpoint):
        if path is not None:
            check_writable(path)
    if onnx is not None and not onnx.is_dir():
        raise FileNotFoundError(f"{onnx}: no such directory")
    if resume and checkpoint is None:
        raise ValueError("--resume needs --checkpoint FILE, the file to continue from")
    model._check()
    vectors = read_vectors(images)
    read = read_captions(captions, splits, stem)
    if not quiet:
        say(f"{len(read):,} captions of {len(read.images):,} images; {len(vectors):,} vectors of {vectors.dim} numbers")
    more = {
        "missing": missing,
        "word_vectors": None if words is None else read_vectors(words),
        "document_model": None if document_model is None else Doc2Vec.load(document_model),
    }
    seconds = fit(model, vectors, checkpoint, checkpoint_minutes, resume, quiet, captions=read, **more)
    model.save(output)
    if onnx is not None:
        for side in ("captions",) if model.loss == "mse" else ("images", "captions"):
            model.save_onnx(onnx / f"{side}.onnx", side)
    tested = None
    if "test" in read.splits:
        test = read.part("test")
        tested = model.evaluate(vectors, test.of_images(vectors.keys) if missing == "skip" else test)
    if json_output:
        result = {
            "captions": len(read),
            "words": len(model.words_),
            "loss": model.loss_,
            "validation": [one.as_dict() for one in model.validation_],
            "test": None if tested is None else tested.as_dict(),
            "train_s": seconds,
            "output": str(output),
            "settings": model.get_params(),
        }
        print(json.dumps(result))
    elif not quiet:
        losses = " ".join(f"{loss:.4f}" for loss in model.loss_)
        say(f"trained in {seconds:.1f} s; loss by epoch {losses}")
        if model.validation_:
            best = max(model.validation_, key=lambda one: one.recall_sum)
            say(f"best epoch {model.validation_.index(best) + 1}, recall sum {best.recall_sum:.1f}")
        say(f"wrote {output}")
        if tested is not None:
            _show_retrieval(tested)


@command("search", under=multimodal)
def multimodal_search(
    model: Annotated[Path, typer.Argument(help="A model that `multimodal train` wrote.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to find images for; without any, asks.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="Find captions for this image, by its key.")] = None,
    k: Annotated[int, typer.Option("-k", help="Results for each.")] = 10,
    vectors: Annotated[Path | None, typer.Option(help="Search these images, in place of the model's own.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the results to this page, with pictures.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the pictures are, for --html.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Link to the pictures, not copy them into the page.")] = False,
    json_output: Json = False,
) -> None:
    """Find images for texts, and captions for images."""
    from embfast.gallery import write_page

    if html is not None:
        check_writable(html)
    loaded = Multimodal.load(model)
    if vectors is not None:
        loaded.index(read_vectors(vectors))
    if not texts and not image:
        if html is not None:
            raise ValueError("--html needs texts, or --image, to show results of")
        _ask(
            "a text (Ctrl-D ends): ",
            lambda words: _show_found(" ".join(words), loaded.search_images(" ".join(words), k)),
        )
        return
    found = {text: loaded.search_images(text, k) for text in texts or ()}
    captions = {key: loaded.search_captions(key, k) for key in image or ()}
    if html is not None:
        write_page(html, found, captions, folder=folder, embed=not link)
    if json_output:
        print(json.dumps({"images": found, "captions": captions, "html": None if html is None else str(html)}))
    elif html is not None:
        say(f"wrote {html}")
    else:
        for asked, rows in (*found.items(), *captions.items()):
            _show_found(asked, rows)


def _show_found(asked: str, rows: list[tuple[str, float]]) -> None:
    _table(asked, ("found", "score"), [(key, f"{score:.4f}") for key, score in rows])


@command("evaluate", under=multimodal)
def multimodal_evaluate(
    model: Annotated[Path, typer.Argument(help="A model that `multimodal train` wrote.")],
    images: ImageVectors,
    captions: CaptionsFile,
    part: Annotated[str | None, typer.Option(help="The split to rank; all images if not given.")] = None,
    folds: Annotated[int, typer.Option(help="Mean of so many equal parts: 5 of COCO's 5,000 test images.")] = 1,
    splits: Splits = None,
    stem: Stem = False,
    json_output: Json = False,
) -> None:
    """Rank captions for images and images for captions: recall, median and mean rank, mAP."""
    read = read_captions(captions, splits, stem)
    if part is not None:
        read = read.part(part)
    found = Multimodal.load(model).evaluate(read_vectors(images), read, folds)
    if json_output:
        print(json.dumps(found.as_dict()))
    else:
        _show_retrieval(found)


def _show_retrieval(found: Any) -> None:
    rows = [
        (
            name,
            *(f"{100 * share:.1f}" for share in (side.r1, side.r5, side.r10)),
            f"{side.median:g}",
            f"{side.mean:.1f}",
            f"{100 * side.map:.1f}",
            f"{side.queries}",
        )
        for name, side in (("captions of an image", found.captions), ("image of a caption", found.images))
    ]
    _table(
        "right answers among the first, and ranks", ("", "R@1", "R@5", "R@10", "median", "mean", "mAP", "queries"), rows
    )


@command("phrases")
def phrases(
    corpus: Corpora,
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the joined text here, a document a line.")],
    min_count: Annotated[int, typer.Option(help="Pairs with fewer occurrences form no phrase.")] = 5,
    threshold: Annotated[float, typer.Option(help="Pairs with a higher score are joined.")] = 100.0,
    scoring: Annotated[str, typer.Option(help="default (word2phrase) or npmi.")] = "default",
    delimiter: Annotated[str, typer.Option(help="Written between the words of a phrase.")] = "_",
    connectors: Annotated[
        bool, typer.Option("--connectors", help="Let of, the, and ... stand inside a phrase, as in bank_of_america.")
    ] = False,
    passes: Annotated[int, typer.Option(help="Each pass may make longer phrases; it halves the threshold.")] = 1,
    errors: BadText = "strict",
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Join words that belong together, new york -> new_york, as word2phrase does."""
    from embfast.formats import replacing
    from embfast.phrases import ENGLISH_CONNECTORS, Phrases

    if passes < 1:
        raise ValueError(f"passes must be 1 or more, got {passes}")
    check_writable(output)
    text = read_corpus(corpus, None, None, quiet, min_count=1, errors=errors)
    found: dict[str, float] = {}
    for number in range(passes):
        limit = threshold / 2**number if scoring == "default" else threshold
        pairs = Phrases(min_count, limit, scoring, delimiter, ENGLISH_CONNECTORS if connectors else frozenset())
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
    output: Annotated[Path, typer.Option("--output", "-o", help="Write `word count` lines here, as word2vec.c does.")],
    min_count: MinCount = 5,
    max_vocab: MaxVocab = None,
    errors: BadText = "strict",
    column: Column = None,
    quiet: Quiet = False,
) -> None:
    """Count the words of a text."""
    check_writable(output)
    text = read_corpus(corpus, column, None, quiet, min_count=min_count, max_vocab=max_vocab, errors=errors)
    text.save_vocab(output)
    if not quiet:
        say(f"{len(text.words):,} words, {text.n_tokens:,} tokens; wrote {output}")


# ---- this machine -------------------------------------------------------------------------------------------------

_EXTRAS = {  # what an optional package is for, and the extra that installs it
    "numba": ("random walks", "graph"),
    "torch": ("images and captions", "multimodal"),
    "pillow": ("images", "images"),
    "onnx": ("networks of captions in files of ONNX", "onnx"),
    "pyarrow": ("Parquet", "parquet"),
    "usearch": ("approximate search", "index"),
    "scipy": ("scipy's matrices, SVD", "scipy"),
    "matplotlib": ("pictures", "plot"),
}


@command("doctor")
def doctor(json_output: Json = False) -> None:
    """Say what this machine can run: versions, instruction set, CUDA devices, and what to install for the rest."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import numpy as np

    from embfast import kernels

    rows = [
        (
            "embfast",
            f"{__version__}, Python {platform.python_version()}, numpy {np.__version__}, {platform.platform()}",
        ),
        ("CPU kernels", f"{kernels.isa()}, {kernels.cores()} cores"),
        *kernels.describe_devices(),
    ]
    for package, (purpose, extra) in _EXTRAS.items():
        try:
            rows.append((package, f"{version(package)}, for {purpose}"))
        except PackageNotFoundError:
            rows.append((package, f'missing; for {purpose}: pip install "embfast[{extra}]"'))
    if json_output:
        print(json.dumps(dict(rows)))
        return
    for name, text in rows:
        print(f"{name:<20} {text}")


# ---- asking vectors -----------------------------------------------------------------------------------------------


@command("neighbors")
def neighbors(
    vectors: VectorsFile,
    words: Annotated[list[str] | None, typer.Argument(help="Words to ask for; without any, asks for them.")] = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours per word.")] = 10,
    restrict: Restrict = None,
    format: FileFormat = None,
    json_output: Json = False,
) -> None:
    """The nearest neighbours of words, by cosine."""
    loaded = read_vectors(vectors, format)

    def answer(asked: list[str]) -> None:
        found = {word: loaded.most_similar(word, k=k, restrict=restrict) for word in asked}
        if json_output:
            print(json.dumps(found), flush=True)
        else:
            for word, rows in found.items():
                _table(f"neighbours of {word}", ("word", "cosine"), [(key, f"{score:.4f}") for key, score in rows])

    if words:
        answer(words)
    else:
        _ask("words (Ctrl-D ends): ", answer)


@command("analogy")
def analogy(
    vectors: VectorsFile,
    words: Annotated[list[str] | None, typer.Argument(help="A B C: A is to B as C is to ? Without any, asks.")] = None,
    k: Annotated[int, typer.Option("-k", help="Answers.")] = 5,
    restrict: Restrict = None,
    method: Annotated[str, typer.Option(help="add (3CosAdd) or mul (3CosMul).")] = "add",
    format: FileFormat = None,
    json_output: Json = False,
) -> None:
    """Answer "man is to king as woman is to ?": embfast analogy vectors.bin man king woman."""
    if words and len(words) != 3:
        raise ValueError(f"expected three words, as in man king woman, got {len(words)}")
    loaded = read_vectors(vectors, format)

    def answer(asked: list[str]) -> None:
        if len(asked) != 3:
            raise ValueError(f"expected three words, as in man king woman, got {len(asked)}")
        a, b, c = asked
        rows = loaded.most_similar([b, c], [a], k=k, restrict=restrict, method=method)
        if json_output:
            print(json.dumps(rows), flush=True)
        else:
            _table(f"{a} is to {b} as {c} is to", ("word", "score"), [(key, f"{score:.4f}") for key, score in rows])

    if words:
        answer(words)
    else:
        _ask("three words (Ctrl-D ends): ", answer)


def _ask(prompt: str, answer: Callable[[list[str]], None]) -> None:
    """Answers line after line until the end of the input; what goes wrong with one line is said and passed over."""
    terminal = sys.stdin.isatty()
    while True:
        try:
            line = input(prompt if terminal else "")
        except EOFError:
            if terminal:
                print()
            return
        if not line.split():
            continue
        try:
            answer(line.split())
        except (KeyError, ValueError) as error:
            say(str(error.args[0]), "red")


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(soft_wrap=True, highlight=False)
    console.print(title, style="bold", markup=False)
    console.print(table, soft_wrap=False)


@command("plot")
def plot(
    vectors: VectorsFile,
    words: Annotated[list[str] | None, typer.Argument(help="Words to draw; without any, the most frequent.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture: .png, .svg, .pdf.")] = Path("words.png"),
    top: Annotated[int, typer.Option(help="How many of the most frequent words.")] = 200,
    method: Annotated[str, typer.Option(help="pca, tsne, or umap (if umap-learn is installed).")] = "pca",
    clusters: Annotated[int, typer.Option(help="Colour so many clusters, found by k-means.")] = 0,
    seed: Annotated[int, typer.Option(help="Of tsne, umap and clusters.")] = 0,
    format: FileFormat = None,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw words on a plane, similar ones near each other; needs embfast\\[plot]."""
    import warnings

    from embfast.plot import plot as draw

    check_writable(output)
    loaded = read_vectors(vectors, format)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        places = draw(loaded, output, words or None, n=top, method=method, seed=seed, clusters=clusters)
    for warning in caught:
        say(str(warning.message), "yellow")
    if json_output:
        print(json.dumps({"output": str(output), "places": places}))
    elif not quiet:
        say(f"drew {len(places):,} words; wrote {output}")


@command("evaluate")
def evaluate(
    vectors: VectorsFile,
    files: Annotated[
        list[Path], typer.Argument(help="questions-words.txt, or word pairs with judgements (WordSim353, SimLex, MEN).")
    ],
    restrict: Annotated[int, typer.Option(help="Analogies among the first so many keys; 0 for all.")] = 30_000,
    method: Annotated[str, typer.Option(help="Analogies by add (3CosAdd) or mul (3CosMul).")] = "add",
    format: FileFormat = None,
    json_output: Json = False,
) -> None:
    """Score vectors on analogies and on word similarities; what a file holds is told by its first line."""
    from embfast import evaluate as scores

    kinds = {path: _has_sections(path) for path in files}
    loaded = read_vectors(vectors, format)
    results = {
        path: scores.analogies(loaded, path, restrict=restrict, method=method)
        if has_sections
        else scores.similarity(loaded, path)
        for path, has_sections in kinds.items()
    }
    if json_output:
        kind = {True: "analogies", False: "similarity"}
        print(json.dumps({str(path): {"kind": kind[kinds[path]], **r.as_dict()} for path, r in results.items()}))
        return
    for path, result in results.items():
        if kinds[path]:
            sections = [*result.sections, result.semantic, result.syntactic, result.total]
            rows = [
                (s.name, f"{100 * s.accuracy:.2f} %" if s.total else "-", f"{s.correct}", f"{s.total}", f"{s.skipped}")
                for s in sections
            ]
            _table(path.name, ("section", "accuracy", "correct", "asked", "skipped"), rows)
    pairs = [
        (path.name, f"{r.spearman:.4f}", f"{r.pearson:.4f}", f"{r.pairs}", f"{100 * r.oov:.1f} %")
        for path, r in results.items()
        if not kinds[path]
    ]
    if pairs:
        _table("similarity", ("file", "Spearman", "Pearson", "pairs", "unknown"), pairs)


def _has_sections(path: Path) -> bool:
    """Whether the first line of a file that is not blank begins with ":", as analogy files do."""
    with open(path, "rb") as stream:
        first = next((line.strip() for line in stream if line.strip()), b"")
    if not first:
        raise ValueError(f"{path}: expected questions or word pairs, got an empty file")
    return first.startswith(b":")


@command("convert")
def convert(
    source: VectorsFile,
    target: Annotated[Path, typer.Argument(help="Where to write; the extension says the format.")],
    from_format: Annotated[
        str | None, typer.Option(help="Format of the source, if its extension does not say.")
    ] = None,
    format: FileFormat = None,
    limit: Annotated[int | None, typer.Option(help="The first so many rows only.")] = None,
    errors: Annotated[str, typer.Option(help="Faulty rows: strict (an error), replace or skip.")] = "strict",
    encoding: Annotated[str, typer.Option(help="Of the keys in the source.")] = "utf-8",
    quiet: Quiet = False,
) -> None:
    """Write vectors in another format."""
    import warnings

    from embfast import formats

    formats.format_of(target, format)
    check_writable(target)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vectors = read_vectors(source, from_format, limit=limit, errors=errors, encoding=encoding)
    for warning in caught:
        say(str(warning.message), "yellow")
    vectors.save(target, format)
    if not quiet:
        say(f"wrote {len(vectors):,} vectors of {vectors.dim} numbers to {target}")


if __name__ == "__main__":
    main()
