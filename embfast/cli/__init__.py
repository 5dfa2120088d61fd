"""The command line: embfast word2vec, doc2vec, glove, node2vec, line, images, multimodal, neighbors, ..."""

from importlib import import_module
from typing import Annotated

import typer

from embfast import __version__
from embfast.cli.common import app, read_vectors

_ROOMS = ("words", "documents", "graphs", "images", "multimodal", "texts", "machine", "vectors")  # the order of --help
for room in _ROOMS:
    import_module(f"embfast.cli.{room}")

from embfast.cli.words import from_word2vec_c  # noqa: E402

__all__ = ["app", "from_word2vec_c", "main", "read_vectors"]


def main() -> None:
    """The entry point of the `embfast` program."""
    app(prog_name="embfast")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"embfast {__version__}")
        raise typer.Exit
