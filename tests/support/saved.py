"""What a saved file holds, as other readers of safetensors see it."""

import json
import tempfile
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import load_file, save_file


def tensors(model):
    """All tensors that `save` writes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save(path)
        return load_file(path)


def progress(model):
    """Where the runs of a model stand, as its file says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save(path)
        return progress_of(path)


def tensors_of(path):
    """The tensors of a model file, by name."""
    return load_file(path)


def progress_of(path):
    """Where the run stood that wrote a model file: before, epoch, block, loss, examples, losses."""
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["progress"])


def change(path, name, values):
    """Writes a model file again with another tensor in the place of one."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    save_file({**load_file(path), name: values}, path, metadata)
