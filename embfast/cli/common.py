"""Shared by the commands: one-line errors, options made from settings, reading, training, reports."""

import functools
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    help="Trains embeddings near the speed of the hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# ---- commands and their options -----------------------------------------------------------------------------------


_typed: ContextVar[frozenset[str]] = ContextVar("typed", default=frozenset())


def typed(*names: str) -> list[str]:
    """Those of these options that were given on the command line."""
    return [name for name in names if name in _typed.get()]


def command(
    name: str, under: typer.Typer = app, **options: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command of the program, or of a group, and reports its expected errors as one red line on stderr.

    The exit code is then 2, or 130 after Ctrl-C. A parameter whose type is a model becomes one option per setting,
    and a parameter whose type is a dataclass one option per field; the function receives the object built from them.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        parts = {p.name: _options_of(p) for p in inspect.signature(function).parameters.values()}
        grouped = {p.name: p.annotation for p in inspect.signature(function).parameters.values() if _is_group(p)}

        @functools.wraps(function)
        def run(context: typer.Context, **values: Any) -> None:
            _typed.set(
                frozenset(n for n in values if getattr(context.get_parameter_source(n), "name", "") == "COMMANDLINE")
            )
            try:
                for group, kind in grouped.items():
                    values[group] = kind(**{option.name: values.pop(option.name) for option in parts[group]})
                function(**values)
            except KeyboardInterrupt as stop:
                say(f"interrupted{stop}", "red")
                raise typer.Exit(130) from None
            except BrokenPipeError:  # the reader of our output (head, say) has closed it: typer exits silently
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
        run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]  # inspect.signature reads it
        run.__annotations__ = {option.name: option.annotation for option in flat}
        run.__doc__ = (function.__doc__ or "").replace("[", r"\[")  # embfast[images] is not markup
        return under.command(name, **options)(run)

    return register


def _is_group(parameter: inspect.Parameter) -> bool:
    kind = parameter.annotation
    return isinstance(kind, type) and (issubclass(kind, Estimator) or is_dataclass(kind))


def _options_of(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """The options that a parameter of a command expands to."""
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
    """Help texts by setting, read from the "Settings:" section of a class's docstring."""
    section = re.search(r"^Settings:\n(.*?)\n(?=\S)", inspect.getdoc(model) or "", re.DOTALL | re.MULTILINE)
    entries = re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", section.group(1) if section else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for names, text in entries for name in names.split(", ")}


OutputFile = Annotated[Path | None, typer.Option("--output", "-o", help="File for the vectors.")]
VectorsFile = Annotated[Path, typer.Argument(help="Vectors (.bin, .txt, .vec, .npz, .safetensors), or a saved model.")]
FileFormat = Annotated[
    str | None,
    typer.Option("--format", help="Format: bin, text, glove, npz, safetensors. Default: by the extension."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no summary.")]

Corpora = Annotated[list[Path], typer.Argument(help="Text files (plain, gz, bz2, xz, zst), or a directory of them.")]
MinCount = Annotated[int, typer.Option(help="Words with fewer occurrences are dropped.")]
MaxVocab = Annotated[int | None, typer.Option(help="Largest vocabulary; only the most frequent words are kept.")]
BadText = Annotated[str, typer.Option(help="Words that are not valid UTF-8: strict (an error), replace or skip.")]
Column = Annotated[str | None, typer.Option(help="Column of Parquet files to read, one document per row.")]
Cache = Annotated[Path | None, typer.Option(help="Directory that keeps the encoded corpus for the next run.")]

# ---- reading ------------------------------------------------------------------------------------------------------


@contextmanager
def reading(label: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Shows a bar on stderr and yields its callback (done, total); yields None if stderr is not a terminal."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def read_corpus(sources: list[Path], column: str | None, cache: Path | None, quiet: bool, **options: Any) -> "Corpus":
    """Reads text files, a directory written by Corpus.save, or a column of Parquet files."""
    from embfast.text.corpus import Corpus

    if is_saved_corpus(sources):
        of_text = {
            "column": column,
            "cache": cache,
            **{n: options.get(n) for n in ("max_vocab", "max_sentence", "vocab")},
        }
        wrong = [name for name, value in of_text.items() if value is not None] + typed("min_count", "errors")
        if wrong:
            raise ValueError(f"{sources[0]}: the corpus is already encoded; {', '.join(wrong)} cannot change it")
        return Corpus.load(sources[0])
    with reading("reading", quiet) as progress:
        if column is not None:
            if cache is not None:
                raise ValueError("--cache works for text files only; it cannot be combined with --column")
            return Corpus.from_parquet(sources, column, progress=progress, **options)
        return Corpus.from_file(sources, cache=cache, progress=progress, **options)


def is_saved_corpus(sources: list[Path]) -> bool:
    """Whether the sources are a single directory written by Corpus.save."""
    return len(sources) == 1 and (sources[0] / "corpus.json").is_file()


def read_vectors(path: Path, format: str | None = None, **options: Any) -> "Vectors":
    """Reads vectors of any format, or those of a saved model or checkpoint."""
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
            raise ValueError(f"{path}: {', '.join(given)} apply to files of vectors; this file is a model")
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be at least 0, got {limit}")
        return vectors if limit is None else Vectors(vectors.keys[:limit], vectors.matrix[:limit])
    return Vectors.load(path, format, **options)


# ---- training -----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Run:
    """Options of a command that trains: checkpoints and the amount of output."""

    checkpoint: Annotated[Path | None, typer.Option(help="File for the state of the run, to resume from.")] = None
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 10.0
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint if the file exists.")] = False
    json_output: Json = False
    quiet: Quiet = False

    def check(self, model: Estimator, *files: Path | None) -> None:
        """Validates settings and output files before training, instead of failing hours later."""
        self.files = (*files, self.checkpoint)
        for path in self.files:
            if path is not None:
                check_place(path)
        check_apart(self.files)
        if self.resume and self.checkpoint is None:
            raise ValueError("--resume needs --checkpoint FILE, the file to continue from")
        model._check()

    def check_inputs(self, *read: Path | None) -> None:
        """Raises an error if an output would overwrite an input."""
        check_apart(self.files, read)

    def fit(self, model: Estimator, data: Any, **options: Any) -> float:
        """Trains a model and returns the seconds it took. Ctrl-C reports how to resume."""
        if self.resume and not self.quiet and self.checkpoint is not None and not self.checkpoint.exists():
            say(f"{self.checkpoint} does not exist yet: training from scratch")
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
                raise KeyboardInterrupt("; nothing was saved (--checkpoint FILE keeps the state of a run)") from None
            raise KeyboardInterrupt(f"; resume with --checkpoint {self.checkpoint} --resume") from None
        return time.perf_counter() - started

    def say(self, text: str, style: str = "") -> None:
        """Prints one line on stderr, unless --quiet is given."""
        if not self.quiet:
            say(text, style)

    def report(self, result: dict[str, Any], summary: list[str], *files: Path | None) -> None:
        """Prints the result as JSON on stdout, or a summary and the written files on stderr."""
        report(self.json_output, self.quiet, result, summary, *files)


@dataclass(kw_only=True)
class VectorsRun(Run):
    """Options of a command that trains vectors."""

    output: OutputFile = None
    format: FileFormat = None
    save_model: Annotated[Path | None, typer.Option(help="File for the model with all its weights.")] = None

    def check(self, model: Estimator, *files: Path | None, **wanted: Path | None) -> None:
        """Like Run.check; also requires an output, a model, or one of the `wanted` files, named as their options."""
        names = ["-o FILE", "--save-model FILE", *(f"--{name.replace('_', '-')} FILE" for name in wanted)]
        if all(path is None for path in (self.output, self.save_model, *wanted.values())):
            raise ValueError(f"nothing to write: pass {', '.join(names[:-1])} or {names[-1]}")
        if self.output is not None:
            formats.format_of(self.output, self.format)
        super().check(model, self.output, self.save_model, *files, *wanted.values())

    def check_keys(self, keys: Iterable[str]) -> None:
        """Raises an error before training if the output format cannot hold these keys."""
        if self.output is not None:
            formats.check_keys(keys, formats.format_of(self.output, self.format))

    def save(self, model: Estimator) -> None:
        """Writes the requested model and vectors; the model first, since its format can hold any word."""
        if self.save_model is not None:
            model.save(self.save_model)
        if self.output is not None:
            model.vectors_.save(self.output, self.format)

    def report(self, result: dict[str, Any], summary: list[str], *files: Path | None) -> None:
        """Like Run.report, with the names of output and model."""
        names = {"output": self.output, "model": self.save_model}
        result |= {name: None if path is None else str(path) for name, path in names.items()}
        super().report(result, summary, self.output, self.save_model, *files)


# ---- output -------------------------------------------------------------------------------------------------------


def say(text: str, style: str = "") -> None:
    """Prints one line on stderr, in colour on a terminal; stdout is for results."""
    if sys.stderr is None:
        return
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(text, style=style or None, markup=False)


@contextmanager
def warnings_said() -> Iterator[None]:
    """Prints warnings raised inside the context as yellow lines."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        say(str(warning.message), "yellow")


def report(json_output: bool, quiet: bool, result: dict[str, Any], summary: list[str], *files: Path | None) -> None:
    """Prints the result as JSON on stdout, or a summary and the written files on stderr."""
    if json_output:
        print(json.dumps(result))
    elif not quiet:
        for line in (*summary, *(f"wrote {path}" for path in files if path is not None)):
            say(line)


def losses(model: Estimator) -> str:
    """The mean loss of each epoch, for the end of a summary."""
    return f"loss by epoch {' '.join(f'{loss:.4f}' for loss in model.loss_)}"


def check_apart(written: Iterable[Path | None], read: Iterable[Path | None] = ()) -> None:
    """Raises ValueError if a file would be written twice, or overwrite an input or a file of an input directory."""
    outputs = [path for path in written if path is not None]
    inputs: set[str] = set()
    if any(map(os.path.exists, outputs)):  # listing a large directory takes time
        inputs = {os.path.realpath(file) for path in read if path is not None for file in _files_of(path)}
    taken: set[str] = set()
    for path in outputs:
        if (place := os.path.realpath(path)) == os.path.realpath(os.devnull):
            continue
        if place in inputs:
            raise ValueError(f"{path}: would overwrite an input")
        if place in taken:
            raise ValueError(f"{path}: would be written twice")
        taken.add(place)


def _files_of(path: Path) -> list[Path]:
    """The file itself, or the files in a directory."""
    if not os.path.isdir(path):
        return [path]
    try:
        return find_files(path)
    except ValueError:  # the directory has none
        return []


def table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Prints a table on stdout."""
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
    """Answers one input line after the other until the input ends; reports errors and continues."""
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
