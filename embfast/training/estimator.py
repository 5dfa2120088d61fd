"""Base classes of all models: settings, checkpointed and resumed runs, save and load.

Source: the estimator contract of scikit-learn.
"""

import inspect
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from embfast import kernels
from embfast.errors import FormatError
from embfast.files.durable import FilePath
from embfast.files.tensors import TensorFile
from embfast.text.corpus import check_is_corpus
from embfast.training.loop import choose_device, train
from embfast.training.model_file import FORMAT, VERSION, write_model
from embfast.training.progress import Progress, ProgressOption
from embfast.training.settings import check_float, check_place, is_changed, plain, plain_scalar
from embfast.training.tables import for_kernels, initial_weights
from embfast.training.threads import ThreadTuner
from embfast.vectors.vectors import Vectors

_Model = TypeVar("_Model", bound="Estimator")


class Estimator(ABC):
    """Base class of models: scikit-learn can clone them, set their parameters and use them in a Pipeline.

    scikit-learn itself is not required. The constructor stores the settings and does nothing else; fit validates them.
    A trained model has words_, counts_, vectors_ and loss_. Subclasses define in _tensors and _restore what their file
    contains besides the vocabulary.
    """

    words_: list[str]
    counts_: np.ndarray
    vectors_: Vectors
    loss_: list[float]
    _progress: Progress
    _fingerprint: dict[str, Any] | None

    # What most models also have, used here if they do.
    dim: int
    epochs: int
    seed: int
    threads: int | None
    device: Any
    fit: Callable[..., "Estimator"]
    _cpu_only: Callable[[], str | None]
    _show: Callable[[], None]

    @classmethod
    def settings(cls) -> dict[str, inspect.Parameter]:
        """Parameters of the constructor: names, defaults and types of the settings."""
        parameters = inspect.signature(cls.__init__).parameters
        return {name: parameter for name, parameter in parameters.items() if name != "self"}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name."""
        return {name: getattr(self, name) for name in self.settings()}

    def set_params(self: _Model, **params: Any) -> _Model:
        """Changes settings, effective from the next fit, and returns self.

        If the weights of a trained model no longer match its settings, save and partial_fit raise an error.

        Raises:
            ValueError: The model has no such setting.
        """
        for name in params:
            if name not in self.settings():
                raise ValueError(
                    f"{type(self).__name__} has no setting {name!r}; it has {', '.join(map(repr, self.settings()))}"
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, parameter in self.settings().items()
            if is_changed(getattr(self, name), parameter.default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "vectors_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=[]),
            input_tags=InputTags(two_d_array=False),
        )

    def _check_fitted(self) -> None:
        if not hasattr(self, "vectors_"):
            raise ValueError(f"this {type(self).__name__} is not trained yet: call fit first")

    def _check_learned(self) -> None:  # noqa: B027 - some models have no such setting
        """Raises ValueError if a setting that determines the shape of the weights has changed since."""

    @abstractmethod
    def _check(self) -> None:
        """Raises ValueError if a setting is invalid."""

    # ---- runs -----------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        """Normalises settings (NumPy scalars to Python numbers, torch devices to strings) and validates them, including
        that the device exists, before anything is modified.
        """
        for name in self.settings():
            setattr(self, name, plain_scalar(getattr(self, name)))
        self._check()
        if hasattr(self, "_cpu_only"):
            choose_device(self.device, False, self._cpu_only())

    def _begin(self, checkpoint: FilePath | None, minutes: float, resume: bool, progress: ProgressOption) -> "FitRun":
        """Validates the settings and the arguments of fit, and returns the latter."""
        self._ready()
        check_float("checkpoint_minutes", minutes, 0, math.inf)
        if resume and checkpoint is None:
            raise ValueError("resume=True needs checkpoint=, the file to continue from")
        if checkpoint is not None:
            check_place(checkpoint)
        return FitRun(checkpoint, minutes, resume, progress)

    @contextmanager
    def _unless_refused(self) -> Iterator[None]:
        """Restores what an earlier fit has learned if the block raises."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def _resumed(self, run: "FitRun", data: dict[str, int]) -> bool:
        """Restores the checkpoint if there is one to continue from. data: fingerprint of the training data."""
        if not run.resume or run.checkpoint is None or not os.path.exists(run.checkpoint):
            self._progress, self._fingerprint = Progress(), data
            return False
        saved = type(self).load(run.checkpoint)
        check_resumable(run.checkpoint, saved, self, data)
        self._take(saved)
        self._fingerprint = data
        return True

    def _take(self: _Model, saved: _Model) -> None:
        """Copies what another model has learned; the settings stay."""
        vars(self).update({name: value for name, value in vars(saved).items() if name not in self.settings()})

    def _continue(self) -> None:
        """Starts a run that continues with other data: draws and losses go on."""
        before = self._progress
        self._progress = Progress(before=before.before + before.epoch, losses=list(before.losses))
        self._fingerprint = None

    def _run(
        self,
        run: "FitRun",
        step: Callable[[int, int, int], tuple[float, int, int]],
        blocks: np.ndarray,
        *,
        lr: float,
        min_lr: float,
        per_slice: int = 1,
        threads: ThreadTuner | None = None,
        after_slice: Callable[[int, int], None] | None = None,
        unit: str = "words",
        sessions: Iterable[Any] = (),
    ) -> None:
        """Runs training.loop.train, then _show, also after an error or Ctrl-C.

        sessions: their weights are fetched before the model is saved or shown.
        """

        def fetch() -> None:
            for session in sessions:
                session.fetch()

        def save(path: FilePath) -> None:
            fetch()
            write_model(path, self)

        try:
            train(
                step,
                blocks,
                self._progress,
                epochs=self.epochs,
                per_slice=per_slice,
                lr=lr,
                min_lr=min_lr,
                threads=threads,
                after_slice=after_slice,
                unit=unit,
                save=None if run.checkpoint is None else partial(save, run.checkpoint),
                save_minutes=run.minutes,
                progress=run.progress,
            )
        finally:
            fetch()
            self._show()

    # ---- files ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _tensors(self) -> dict[str, np.ndarray]:
        """What a file contains besides words and counts: float32 tables without padding, int64 vectors."""

    @abstractmethod
    def _restore(self, file: TensorFile) -> None:
        """Restores from a file what _tensors returned; words_, counts_ and settings are already set."""

    def save(self, path: FilePath) -> None:
        """Writes settings, vocabulary, all weights and progress to one safetensors file, for load and partial_fit.

        The old file stays until the new one is on disk. Weights are written in chunks, without a copy.

        Raises:
            ValueError: The model is not trained, or a setting that determines the shape of the weights has changed.
        """
        self._check_fitted()
        self._check_learned()
        write_model(path, self)

    @classmethod
    def load(cls: type[_Model], path: FilePath) -> _Model:
        """Reads a file written by save, or a checkpoint.

        Raises:
            FileNotFoundError: The file does not exist.
            FormatError: The file is truncated or damaged, or it contains another class, a newer version, or settings
                that this version does not know.
        """
        with TensorFile(path) as file:
            if file.metadata.get("format") != FORMAT:
                raise FormatError(
                    f"{path}: expected a saved {cls.__name__}, got a safetensors file of something else; "
                    "Vectors.load reads vectors"
                )
            version = file.json("version")
            if not isinstance(version, int) or version > VERSION:
                raise FormatError(f"{path}: expected version {VERSION} or older, got {version}; update embfast")
            if file.metadata.get("class") != cls.__name__:
                raise FormatError(f"{path}: expected a {cls.__name__}, got a {file.metadata.get('class')}")
            settings = file.json("settings")
            for name in settings:
                if name not in cls.settings():
                    raise FormatError(f"{path}: {cls.__name__} has no setting {name!r}; a newer embfast may know it")
            model = cls(**settings)
            model.words_ = file.read_words()
            model.counts_ = file.read("counts", "I64", (len(model.words_),))
            try:
                model._progress = Progress(**file.json("progress"))
            except TypeError as error:
                raise FormatError(f"{path}: expected the progress of a training run: {error}") from None
            model._fingerprint = file.json("fingerprint")
            model.loss_ = list(model._progress.losses)
            try:
                model._restore(file)
            except ValueError as error:
                if isinstance(error, FormatError):
                    raise
                raise FormatError(f"{path}: {error}") from None
        return model


class FitRun(NamedTuple):
    """Arguments of a call of fit: checkpoint and progress."""

    checkpoint: FilePath | None = None
    minutes: float = 10.0
    resume: bool = False
    progress: ProgressOption = None


class WindowModel(Estimator):
    """Base of Word2Vec and Node2Vec: each word has a row in w_in, in w_out (negatives > 0) and in w_nodes (hs)."""

    negatives: int
    hs: bool
    _tables: dict[str, np.ndarray]
    _reach = 0.5  # initial weights are uniform in (-_reach, _reach) / dim

    def _rows(self, n_words: int) -> dict[str, int]:
        """Number of rows of each table, according to the settings."""
        rows = {"w_in": n_words, "w_out": n_words if self.negatives else 0, "w_nodes": n_words - 1 if self.hs else 0}
        return {name: n for name, n in rows.items() if n}

    def _first_tables(self, n_words: int) -> None:
        self._tables = {name: kernels.weight_table(n, self.dim) for name, n in self._rows(n_words).items()}
        initial_weights(self._tables["w_in"], self.dim, self.seed, reach=self._reach)

    def _check_continued(self) -> None:
        """Validates the settings; those that determine the tables must be those of the first fit."""
        self._ready()
        self._check_learned()

    def _check_learned(self) -> None:
        if self.vectors_.dim != self.dim:
            raise ValueError(f"dim must stay {self.vectors_.dim} once trained, got {self.dim}; train anew with fit")
        for name, setting in (("w_out", "negatives"), ("w_nodes", "hs")):
            value = getattr(self, setting)
            if bool(value) != (name in self._tables):
                raise ValueError(
                    f"{setting} cannot be switched {'on' if value else 'off'} once trained: "
                    f"{setting}={value!r}; train anew with fit"
                )

    def _grow_tables(self, row: np.ndarray) -> None:
        """Moves known word i to row[i], and initialises the rows of new words; new words reset w_nodes to zero."""
        n_old, n_new = len(self._tables["w_in"]), len(row) - len(self._tables["w_in"])
        if not n_new:
            self._tables = {name: for_kernels(table) for name, table in self._tables.items()}
            return
        tables = {}  # a new dict: copy.copy shares the old one
        for name, n in self._rows(len(row)).items():
            tables[name] = table = kernels.weight_table(n, self.dim)
            if name != "w_nodes":
                table[row[:n_old]] = self._tables[name]
            if name == "w_in":
                fresh = kernels.weight_table(n_new, self.dim)
                initial_weights(fresh, self.dim, self.seed, n_old, self._reach)
                table[row[n_old:]] = fresh
        self._tables = tables

    def _show(self) -> None:
        """Sets vectors_ and loss_ from the current weights."""
        self.vectors_ = Vectors(self.words_, self._tables["w_in"][:, : self.dim])
        self.loss_ = list(self._progress.losses)

    def _tensors(self) -> dict[str, np.ndarray]:
        return {name: table[:, : self.dim] for name, table in self._tables.items()}

    def _restore(self, file: TensorFile) -> None:
        self._check()
        rows = self._rows(len(self.words_))
        self._tables = {name: file.read_table(name, n, self.dim) for name, n in rows.items()}
        self._show()


# ---- checks -------------------------------------------------------------------------------------------------------


def check_corpus(corpus: Any) -> None:
    """Raises TypeError unless it is a Corpus, and ValueError if it has fewer than two distinct words or tokens."""
    check_is_corpus(corpus)
    if len(corpus.words) < 2:
        raise ValueError(f"need at least 2 distinct words to train on, got {len(corpus.words)}")
    if corpus.n_tokens < 2:
        raise ValueError(f"need at least 2 tokens to train on, got {corpus.n_tokens}")


# ---- model files --------------------------------------------------------------------------------------------------


def check_resumable(path: FilePath, saved: Estimator, model: Estimator, corpus: dict[str, int]) -> None:
    """Raises ValueError if a checkpoint has other settings (except threads, memory_gb, device) or other data."""
    before, now = saved.get_params(), plain(model.get_params())
    free = ("threads", "memory_gb", "device")
    changed = [f"{n} was {before[n]!r}, is {now[n]!r}" for n in now if n not in free and before[n] != now[n]]
    if changed:
        raise ValueError(f"{path}: cannot resume with other settings: {'; '.join(changed)}")
    if saved._fingerprint != corpus:
        was = saved._fingerprint or {}
        changed = [
            f"{name} was {was.get(name)}, is {value}" for name, value in corpus.items() if was.get(name) != value
        ]
        raise ValueError(f"{path}: cannot resume with another corpus: {'; '.join(changed)}")
