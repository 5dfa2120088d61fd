"""Reads and edits saved model files with the safetensors library alone."""

import json
import tempfile
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import load_file, save_file


def tensors(model):
    """Saves the model and returns all tensors in the file, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save(path)
        return load_file(path)


def progress(model):
    """Saves the model and returns the training progress recorded in the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save(path)
        return progress_of(path)


def tensors_of(path):
    """Returns the tensors of a model file, by name."""
    return load_file(path)


def progress_of(path):
    """Returns the training progress recorded in a model file: before, epoch, block, loss, examples, losses."""
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["progress"])


def change(path, name, values):
    """Rewrites a model file with one tensor added or replaced."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    save_file({**load_file(path), name: values}, path, metadata)
