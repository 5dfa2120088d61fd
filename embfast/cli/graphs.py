"""Node vectors: embfast node2vec and line."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embfast.cli.common import VectorsRun, command, losses, reading
from embfast.errors import FormatError
from embfast.graphs.line import LINE
from embfast.graphs.node2vec import Node2Vec
from embfast.text import sources

if TYPE_CHECKING:
    from embfast.graphs.graph import Graph


@dataclass(kw_only=True)
class Edges:
    """Options for reading a graph."""

    edges: Annotated[
        Path,
        typer.Argument(
            help=r"Graph: lines `node node \[weight]` (plain, gz, bz2, xz, zst), Matrix Market, scipy .npz, .parquet "
            "with columns source, target (and weight), or a saved Graph."
        ),
    ]
    weighted: Annotated[
        bool | None, typer.Option(help="Require weights, or ignore them. Default: use them if the file has them.")
    ] = None
    directed: Annotated[
        bool | None, typer.Option(help="Edges have a direction. Default: they have none, unless a matrix declares it.")
    ] = None
    duplicates: Annotated[str, typer.Option(help="Repeated edges: sum, first or reject.")] = "sum"
    save_graph: Annotated[Path | None, typer.Option(help="File for the graph, .safetensors.")] = None

    def read(self, quiet: bool) -> "Graph":
        """Reads an edge list, a matrix, columns of a Parquet file, or a file written by Graph.save."""
        from embfast.graphs.graph import Graph

        if self.edges.suffix == ".safetensors":
            if self.weighted is not None or self.directed is not None or self.duplicates != "sum":
                raise ValueError(f"{self.edges}: --weighted, --directed and --duplicates cannot change a saved graph")
            return Graph.load(self.edges)
        if self.edges.suffix == ".parquet":
            weight = "weight" if self.weighted or (self.weighted is None and _has_weights(self.edges)) else None
            return Graph.from_parquet(
                self.edges, weight=weight, directed=bool(self.directed), duplicates=self.duplicates
            )
        with reading("reading", quiet) as progress:
            return Graph.from_file(
                self.edges,
                weighted=self.weighted,
                directed=self.directed,
                duplicates=self.duplicates,
                progress=progress,
            )


def _has_weights(path: Path) -> bool:
    """Whether the file has a column weight. False if it is not Parquet: the reader then reports the error."""
    import pyarrow
    from pyarrow.parquet import read_schema

    try:
        return "weight" in read_schema(sources.find_files(path)[0]).names
    except (pyarrow.ArrowInvalid, pyarrow.ArrowIOError, OSError):
        return False


def train_nodes(
    model: Node2Vec | LINE, edges: Edges, run: VectorsRun, types: Path | None = None, **options: Any
) -> None:
    """Reads a graph, trains on it, and writes the requested files."""
    run.check(model, edges.save_graph)
    run.check_inputs(edges.edges, types)
    if types is not None:
        options["types"] = read_types(types)
    started = time.perf_counter()
    graph = edges.read(run.quiet)
    read_s = time.perf_counter() - started
    run.say(f"{graph!r} in {read_s:.1f} s")
    run.check_keys(graph.names)
    if edges.save_graph is not None:
        graph.save(edges.save_graph)
    seconds = run.fit(model, graph, **options)
    run.save(model)
    result = {
        "nodes": len(graph),
        "edges": graph.n_edges,
        "self_loops": graph.n_self_loops,
        "directed": graph.directed,
        "weighted": graph.weights is not None,
        "loss": model.loss_,
        "read_s": read_s,
        "train_s": seconds,
        "settings": model.get_params(),
    }
    run.report(result, [f"trained in {seconds:.1f} s; {losses(model)}"], edges.save_graph)


@command("node2vec")
def node2vec(
    model: Node2Vec,
    edges: Edges,
    run: VectorsRun,
    types: Annotated[
        Path | None, typer.Option(help="File with one line `node type` per node, for --metapath; plain or compressed.")
    ] = None,
) -> None:
    """Train node vectors on random walks: node2vec, or DeepWalk with --hs --negatives 0."""
    if (types is None) != (model.metapath is None):
        raise ValueError("--metapath and --types FILE must be given together")
    train_nodes(model, edges, run, types)


def read_types(path: Path) -> dict[str, str]:
    """Reads lines `node type`."""
    from embfast.evaluate.graphs import read_labels

    found = read_labels(path)
    for node, names in found.items():
        if len(names) != 1:
            raise FormatError(f"{path}: expected one type for node {node!r}, got {names}")
    return {node: names[0] for node, names in found.items()}


@command("line")
def line(model: LINE, edges: Edges, run: VectorsRun) -> None:
    """Train node vectors on single edges: LINE of first, second or both orders."""
    train_nodes(model, edges, run)
