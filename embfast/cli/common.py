"""What the commands share: errors as one line, options made of settings, reading, training, reports."""

import functools
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embfast.documents.doc2vec import Doc2Vec
from embfast.errors import TrainingError
from embfast.files import formats
from embfast.graphs.line import LINE
from embfast.graphs.node2vec import Node2Vec
from embfast.multimodal.model import Multimodal
from embfast.text.sources import find_files
from embfast.training.estimator import Estimator
from embfast.training.settings import check_place
from embfast.words.glove import GloVe
from embfast.words.word2vec import Word2Vec

if TYPE_CHECKING:
    from embfast.text.corpus import Corpus
    from embfast.vectors.vectors import Vectors

app = typer.Typer(
    name="embfast",
    help="Embeddings, trained near the speed of the hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# ---- commands and their options -----------------------------------------------------------------------------------


_typed: ContextVar[frozenset[str]] = ContextVar("typed", default=frozenset())


def typed(*names: str) -> list[str]:
    """Which of these options of the command stand on its command line."""
    return [name for name in names if name in _typed.get()]


def command(
    name: str, under: typer.Typer = app, **options: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command, of the program or a group, whose expected errors are one red line on stderr.

    The exit code is then 2, or 130 after Ctrl-C. A parameter of the function that is a model stands for the model's
    settings, and one that is a dataclass for its fields: the function gets it made of what was given.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        parts = {p.name: _options_of(p) for p in inspect.signature(function).parameters.values()}
        grouped = {p.name: p.annotation for p in inspect.signature(function).parameters.values() if _is_group(p)}

        @functools.wraps(function)
        def run(context: typer.Context, **values: Any) -> None:
            _typed.set(frozenset(n for n in values if context.get_parameter_source(n).name == "COMMANDLINE"))
            try:
                for group, kind in grouped.items():
                    values[group] = kind(**{option.name: values.pop(option.name) for option in parts[group]})
                function(**values)
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

        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        flat = [context, *(option for part in parts.values() for option in part)]
        run.__signature__ = inspect.Signature(flat)
        run.__annotations__ = {option.name: option.annotation for option in flat}
        run.__doc__ = (function.__doc__ or "").replace("[", r"\[")  # embfast[images] is no markup
        return under.command(name, **options)(run)

    return register


def _is_group(parameter: inspect.Parameter) -> bool:
    kind = parameter.annotation
    return isinstance(kind, type) and (issubclass(kind, Estimator) or is_dataclass(kind))


def _options_of(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """The options that a parameter of a command stands for."""
    kind = parameter.annotation
    if not _is_group(parameter):
        return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    if is_dataclass(kind):
        own_first = sorted(fields(kind), key=lambda field: field.name not in kind.__annotations__)
        return [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=field.type,
            )
            for field in own_first
        ]
    help_of, panel = settings_help(kind), f"{kind.__name__} settings"
    return [
        setting.replace(
            kind=inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[setting.annotation, typer.Option(help=help_of.get(name), rich_help_panel=panel)],
        )
        for name, setting in kind.settings().items()
    ]


def settings_help(model: type) -> dict[str, str]:
    """What the "Settings:" section of a class's docstring says of each setting."""
    section = re.search(r"^Settings:\n(.*?)\n(?=\S)", inspect.getdoc(model) or "", re.DOTALL | re.MULTILINE)
    entries = re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", section.group(1) if section else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for names, text in entries for name in names.split(", ")}


OutputFile = Annotated[Path | None, typer.Option("--output", "-o", help="Write the vectors here.")]
VectorsFile = Annotated[Path, typer.Argument(help="Vectors: .bin, .txt, .vec, .npz, .safetensors, or a saved model.")]
FileFormat = Annotated[
    str | None, typer.Option("--format", help="bin, text, glove, npz or safetensors; by the extension if not given.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]

Corpora = Annotated[list[Path], typer.Argument(help="Text files (plain, gz, bz2, xz, zst), a directory of them.")]
MinCount = Annotated[int, typer.Option(help="Leave out words with fewer occurrences.")]
MaxVocab = Annotated[int | None, typer.Option(help="Keep at most this many words, the most frequent.")]
BadText = Annotated[str, typer.Option(help="Words that are not UTF-8: strict (an error), replace or skip.")]
Column = Annotated[str | None, typer.Option(help="The files are Parquet; read this column, a document a row.")]
Cache = Annotated[Path | None, typer.Option(help="Keep the encoded corpus in this directory.")]

# ---- reading ------------------------------------------------------------------------------------------------------


@contextmanager
def reading(label: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr for a callback of (done, in all); None when stderr is no terminal."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def read_corpus(sources: list[Path], column: str | None, cache: Path | None, quiet: bool, **options: Any) -> "Corpus":
    """Text files, a directory that Corpus.save wrote, or a column of Parquet files."""
    from embfast.text.corpus import Corpus

    if is_saved_corpus(sources):
        of_text = {
            "column": column,
            "cache": cache,
            **{n: options.get(n) for n in ("max_vocab", "max_sentence", "vocab")},
        }
        wrong = [name for name, value in of_text.items() if value is not None] + typed("min_count", "errors")
        if wrong:
            raise ValueError(f"{sources[0]}: was read from text already, which {', '.join(wrong)} cannot change")
        return Corpus.load(sources[0])
    with reading("reading", quiet) as progress:
        if column is not None:
            if cache is not None:
                raise ValueError("--cache keeps texts; it cannot be used together with --column")
            return Corpus.from_parquet(sources, column, progress=progress, **options)
        return Corpus.from_file(sources, cache=cache, progress=progress, **options)


def is_saved_corpus(sources: list[Path]) -> bool:
    """Whether this is one directory that Corpus.save wrote."""
    return len(sources) == 1 and (sources[0] / "corpus.json").is_file()


def read_vectors(path: Path, format: str | None = None, **options: Any) -> "Vectors":
    """Vectors of any format, or those of a saved model or checkpoint."""
    from embfast.training.model_file import model_class
    from embfast.vectors.vectors import Vectors

    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    models = {model.__name__: model for model in (Word2Vec, Doc2Vec, GloVe, Node2Vec, LINE, Multimodal)}
    if format is None and path.suffix == ".safetensors" and (name := model_class(path)) in models:
        vectors, limit = models[name].load(path).vectors_, options.pop("limit", None)
        given = [
            option
            for option, usual in (("errors", "strict"), ("encoding", "utf-8"))
            if options.get(option, usual) != usual
        ]
        if given:
            raise ValueError(f"{path}: {', '.join(given)} are of files of vectors; this is a model")
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be 0 or more rows, got {limit}")
        return vectors if limit is None else Vectors(vectors.keys[:limit], vectors.matrix[:limit])
    return Vectors.load(path, format, **options)


# ---- training -----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Run:
    """Options of a command that trains: checkpoints, and how much it says."""

    checkpoint: Annotated[Path | None, typer.Option(help="Keep the state of the run here.")] = None
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between two checkpoints.")] = 10.0
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint, if it is there.")] = False
    json_output: Json = False
    quiet: Quiet = False

    def check(self, model: Estimator, *files: Path | None) -> None:
        """Fails now, and not after hours of training: files that cannot be written, settings that do not fit."""
        self.files = (*files, self.checkpoint)
        for path in self.files:
            if path is not None:
                check_place(path)
        check_apart(self.files)
        if self.resume and self.checkpoint is None:
            raise ValueError("--resume needs --checkpoint FILE, the file to continue from")
        model._check()

    def check_inputs(self, *read: Path | None) -> None:
        """Fails now where a file that is read would be written over, too."""
        check_apart(self.files, read)

    def fit(self, model: Estimator, data: Any, **options: Any) -> float:
        """Trains a model and returns the seconds; Ctrl-C says how to go on."""
        if self.resume and not self.quiet and not self.checkpoint.exists():
            say(f"{self.checkpoint} is not there yet: training from the start")
        started = time.perf_counter()
        try:
            model.fit(
                data,
                checkpoint=self.checkpoint,
                checkpoint_minutes=self.checkpoint_minutes,
                resume=self.resume,
                progress=False if self.quiet else None,
                **options,
            )
        except KeyboardInterrupt:
            if self.checkpoint is None:
                raise KeyboardInterrupt("; nothing was kept (--checkpoint FILE would have)") from None
            raise KeyboardInterrupt(f"; continue with --checkpoint {self.checkpoint} --resume") from None
        return time.perf_counter() - started

    def say(self, text: str, style: str = "") -> None:
        """One line to stderr, unless --quiet."""
        if not self.quiet:
            say(text, style)

    def report(self, result: dict[str, Any], summary: list[str], *files: Path | None) -> None:
        """The result as JSON on stdout, or the lines of a summary and the files written on stderr."""
        report(self.json_output, self.quiet, result, summary, *files)


@dataclass(kw_only=True)
class VectorsRun(Run):
    """Options of a command that trains vectors."""

    output: OutputFile = None
    format: FileFormat = None
    save_model: Annotated[Path | None, typer.Option(help="Write the model with all its weights here.")] = None

    def check(self, model: Estimator, *files: Path | None, **wanted: Path | None) -> None:
        """As of any run; one of output, model and the files wanted, named as their options, must be asked for."""
        names = ["-o FILE", "--save-model FILE", *(f"--{name.replace('_', '-')} FILE" for name in wanted)]
        if all(path is None for path in (self.output, self.save_model, *wanted.values())):
            raise ValueError(f"nothing to write: pass {', '.join(names[:-1])} or {names[-1]}")
        if self.output is not None:
            formats.format_of(self.output, self.format)
        super().check(model, self.output, self.save_model, *files, *wanted.values())

    def check_keys(self, keys: Iterable[str]) -> None:
        """Fails now, and not after hours of training, where the output cannot hold these keys."""
        if self.output is not None:
            formats.check_keys(keys, formats.format_of(self.output, self.format))

    def save(self, model: Estimator) -> None:
        """Writes model and vectors where that was asked for; the model first, which can hold any word."""
        if self.save_model is not None:
            model.save(self.save_model)
        if self.output is not None:
            model.vectors_.save(self.output, self.format)

    def report(self, result: dict[str, Any], summary: list[str], *files: Path | None) -> None:
        """As of any run, and the names of output and model too."""
        names = {"output": self.output, "model": self.save_model}
        result |= {name: None if path is None else str(path) for name, path in names.items()}
        super().report(result, summary, self.output, self.save_model, *files)


# ---- saying and writing -------------------------------------------------------------------------------------------


def say(text: str, style: str = "") -> None:
    """One line to stderr, in colour on a terminal; stdout is for results."""
    if sys.stderr is None:
        return
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(text, style=style or None, markup=False)


@contextmanager
def warnings_said() -> Iterator[None]:
    """Warnings of what stands inside become yellow lines."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        say(str(warning.message), "yellow")


def report(json_output: bool, quiet: bool, result: dict[str, Any], summary: list[str], *files: Path | None) -> None:
    """The result as JSON on stdout, or the lines of a summary and the files written on stderr."""
    if json_output:
        print(json.dumps(result))
    elif not quiet:
        for line in (*summary, *(f"wrote {path}" for path in files if path is not None)):
            say(line)


def losses(model: Estimator) -> str:
    """The mean loss of each epoch, as a summary ends."""
    return f"loss by epoch {' '.join(f'{loss:.4f}' for loss in model.loss_)}"


def check_apart(written: Iterable[Path | None], read: Iterable[Path | None] = ()) -> None:
    """ValueError where one file would be written twice, or over what is read, be it a file of a directory."""
    written = [path for path in written if path is not None]
    inputs: set[str] = set()
    if any(map(os.path.exists, written)):  # listing a large directory takes time
        inputs = {os.path.realpath(file) for path in read if path is not None for file in _files_of(path)}
    taken: set[str] = set()
    for path in written:
        if (place := os.path.realpath(path)) == os.path.realpath(os.devnull):
            continue
        if place in inputs:
            raise ValueError(f"{path}: would be written over what is read")
        if place in taken:
            raise ValueError(f"{path}: would be written twice")
        taken.add(place)


def _files_of(path: Path) -> list[Path]:
    """The file itself, or the files of a directory."""
    if not os.path.isdir(path):
        return [path]
    try:
        return find_files(path)
    except ValueError:  # there are none
        return []


def table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table()
    for i, column in enumerate(columns):
        drawn.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console = Console(soft_wrap=True, highlight=False)
    console.print(title, style="bold", markup=False)
    console.print(drawn, soft_wrap=False)


def ask(prompt: str, answer: Callable[[list[str]], None]) -> None:
    """Answers line after line until the end of the input; what goes wrong with one line is said and passed over."""
    if sys.stdin is None:
        return
    terminal = sys.stdin.isatty() and sys.stderr is not None
    while True:
        try:
            line = input(prompt) if terminal else next(sys.stdin)
        except (EOFError, StopIteration):
            if terminal:
                print()
            return
        if not line.split():
            continue
        try:
            answer(line.split())
        except (KeyError, ValueError) as error:
            say(str(error.args[0]), "red")
