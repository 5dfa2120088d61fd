"""Model files: settings, vocabulary, weights and progress in one safetensors file."""

import json
from dataclasses import asdict
from importlib import import_module
from typing import Any

import numpy as np

from embfast.errors import FormatError
from embfast.files.durable import FilePath, replacing
from embfast.files.tensors import TensorFile, word_tensors, write_tensors
from embfast.training.progress import Progress
from embfast.training.settings import plain

FORMAT, VERSION = "embfast model", 1


def write_model(path: FilePath, model: Any) -> None:
    """Writes a model, trained or in training, to a safetensors file, replacing an old one when complete."""
    metadata = {
        "format": FORMAT,
        "version": json.dumps(VERSION),
        "class": type(model).__name__,
        "settings": json.dumps(plain(model.get_params())),
        "progress": json.dumps(asdict(model._progress)),
        "fingerprint": json.dumps(model._fingerprint),
    }
    with replacing(path) as stream:
        write_tensors(stream, _all_tensors(model), metadata)


def _all_tensors(model: Any) -> dict[str, np.ndarray]:
    return {**word_tensors(model.words_), "counts": model.counts_, **model._tensors()}


def inner_tensors(name: str, model: Any) -> dict[str, np.ndarray]:
    """Tensors of a trained model, prefixed with a name, for the file of another model that contains it."""
    return {f"{name}.{tensor}": array for tensor, array in _all_tensors(model).items()}


def inner_model(name: str, file: TensorFile, kind: str, settings: dict[str, Any]) -> Any:
    """Restores a model of class `kind` that the file of another model contains under a name."""
    inside = _Inside(name, file)
    model = getattr(import_module("embfast"), kind)(**settings)
    model.words_ = inside.read_words()
    model.counts_ = inside.read("counts", "I64", (len(model.words_),))
    model._progress, model._fingerprint, model.loss_ = Progress(), None, []
    model._restore(inside)
    return model


class _Inside:
    """View of a file: the tensors whose names start with a prefix and a dot."""

    def __init__(self, name: str, file: TensorFile) -> None:
        self._name, self._file = name, file

    def __getattr__(self, method: str) -> Any:
        read = getattr(self._file, method)
        return lambda tensor="words", *rest, **named: read(f"{self._name}.{tensor}", *rest, **named)


def model_class(path: FilePath) -> str | None:
    """Class name of the model in a file written by write_model; None for other files."""
    try:
        with TensorFile(path) as file:
            return file.metadata.get("class") if file.metadata.get("format") == FORMAT else None
    except (FormatError, OSError):
        return None
