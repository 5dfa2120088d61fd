"""Compares Node2Vec with PecanPy, fastnode2vec and node2vec: reading, walking, training and quality of the vectors.

python -m bench.node2vec                                    every installed program; an hour
python -m bench.node2vec --no-train                         reading and walking only; minutes
python -m bench.node2vec --pythons ../rivals/bin/python     rivals installed in another environment

Graphs come from $EMBFAST_DATA/graphs, by default ../shared/data/graphs next to the checkout. Programs alternate
(A B A B); each run is a separate process on one thread. Peak memory covers the whole process.

Reading is CPU seconds from a plain-text edge list to the program's graph. Edge weights, if used, are random, uniform in
0.1..2, and identical for all programs.

Walking is steps per CPU second of walks of 80 nodes, after compilation: `Walks.read` for embfast, fastnode2vec's walks
without mapping ids back to names, and PecanPy's `simulate_walks`, which returns names. node2vec builds tables for all
pairs of adjacent edges, which count as reading where walks are timed; it gets 8 GB of memory and fails if they need
more.

Training covers everything from the graph in memory to the vectors, with 10 walks of 80 nodes per node, dim 128, window
10, one epoch, p = q = 0.25 and p = q = 1. CPU seconds exclude the first compilation. fastnode2vec gets no seed, because
it would reset its generator to that seed for every batch of walks. Vectors are evaluated with
evaluate.node_classification, half of the nodes labelled, 10 splits.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bench.glove import last_line
from bench.glove import run as run_command
from bench.machine import machine_and_commit, write_json
from bench.word2vec import DATA, say, spread
from embfast import evaluate
from embfast.graphs.graph import Graph
from embfast.vectors.vectors import Vectors

SETTINGS = ((1.0, 1.0), (0.25, 4.0), (4.0, 0.25), (1.0, 0.5))
TRAINED = ((0.25, 0.25), (1.0, 1.0))

# Arguments of each script: edge list, 1 if it is weighted, task ("walk" or "train"), p, q, number of walks, output file
# for the vectors, seed. Each prints seconds and steps as JSON.
BEGIN = """
import json, sys, time
import numpy as np
path, weighted, what, p, q, n, output, seed = sys.argv[1:]
weighted, p, q, n, seed = weighted == "1", float(p), float(q), int(n), int(seed)
clock = time.process_time
begin = clock()
"""
END = """
print(json.dumps({"load_s": loaded, "work_s": work, "steps": steps}))
"""
OURS = (
    BEGIN
    + """
from embfast.graphs.graph import Graph
from embfast.graphs.node2vec import Node2Vec
from embfast.graphs.walks import Walks
begin = clock()
graph = Graph.from_file(path)
loaded = clock() - begin
steps = 0
if what == "walk":
    walks = Walks(graph, p=p, q=q, seed=seed)
    walks.read(0, 0, 100)
    begin = clock()
    ids, offsets = walks.read(0, 0, n)
    work, steps = clock() - begin, len(ids) - n
else:
    settings = dict(p=p, q=q, threads=1, seed=seed)
    Node2Vec(**settings, walks_per_node=1, walk_length=2).fit(graph, progress=False)
    begin = clock()
    model = Node2Vec(**settings).fit(graph, progress=False)
    work = clock() - begin
    model.vectors_.save(output)
"""
    + END
)
FASTNODE2VEC = (
    BEGIN
    + """
from fastnode2vec import Graph, Node2Vec
from fastnode2vec.graph import _random_walk, _random_walk_weighted
def edges():
    with open(path) as file:
        for line in file:
            a, b, *w = line.split()
            yield (a, b, float(w[0])) if weighted else (a, b)
begin = clock()
graph = Graph(edges(), directed=False, weighted=weighted, verbose=False)
loaded = clock() - begin
steps = 0
if what == "walk":
    tables = (graph.indptr, graph.indices) + ((graph.data,) if weighted else ())
    walk = _random_walk_weighted if weighted else _random_walk
    walk(*tables, 80, p, q, 0)
    starts = np.random.default_rng(seed).integers(0, len(graph.node_names), n)
    begin = clock()
    for start in starts:
        steps += len(walk(*tables, 80, p, q, start)) - 1
    work = clock() - begin
else:
    model = Node2Vec(graph, dim=128, walk_length=80, window=10, p=p, q=q, workers=1)
    model.generate_random_walk(0)
    begin = clock()
    model.train(epochs=10, verbose=False)
    work = clock() - begin
    model.wv.save_word2vec_format(output, binary=True)
"""
    + END
)
PECANPY = (
    BEGIN
    + """
from gensim.models import Word2Vec
from pecanpy import pecanpy
kind = pecanpy.FirstOrderUnweighted if p == q == 1 and not weighted else pecanpy.SparseOTF
graph = kind(p=p, q=q, workers=1, verbose=False, random_state=seed)
begin = clock()
graph.read_edg(path, weighted=weighted, directed=False)
loaded = clock() - begin
graph.preprocess_transition_probs()
graph.simulate_walks(1, 2)
nodes = graph.num_nodes
if what == "walk":
    repetitions = max(1, n // nodes)
    begin = clock()
    walks = graph.simulate_walks(repetitions, 80)
    work = clock() - begin
    steps = sum(len(walk) - 1 for walk in walks)
else:
    steps = 0
    begin = clock()
    walks = graph.simulate_walks(10, 80)
    model = Word2Vec(walks, vector_size=128, window=10, sg=1, min_count=0, workers=1, epochs=1, seed=seed)
    work = clock() - begin
    model.wv.save_word2vec_format(output, binary=True)
"""
    + END
)
NODE2VEC = (
    BEGIN
    + """
import resource
import networkx
from node2vec import Node2Vec
resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
draw, Node2Vec._generate_walks = Node2Vec._generate_walks, lambda self: []
begin = clock()
read = networkx.read_weighted_edgelist if weighted else networkx.read_edgelist
graph = read(path, delimiter="\\t")
loaded = clock() - begin
steps = 0
repetitions = max(1, n // len(graph)) if what == "walk" else 10
begin = clock()
model = Node2Vec(graph, dimensions=128, walk_length=80, num_walks=repetitions, p=p, q=q, workers=1, quiet=True,
                 seed=seed)
work = clock() - begin
begin = clock()
model.walks = draw(model)
if what == "walk":
    loaded, work = loaded + work, clock() - begin
    steps = sum(len(walk) - 1 for walk in model.walks)
else:
    vectors = model.fit(window=10, min_count=0, epochs=1, workers=1, seed=seed).wv
    work += clock() - begin
    vectors.save_word2vec_format(output, binary=True)
"""
    + END
)
RIVALS = {"fastnode2vec": FASTNODE2VEC, "pecanpy": PECANPY, "node2vec": NODE2VEC}


def installed(pythons: list[str]) -> dict[str, tuple[str, str]]:
    """Script and interpreter of embfast and of each rival that one of the interpreters can import."""
    found = {"embfast": (OURS, sys.executable)}
    for name, program in RIVALS.items():
        for python in pythons:
            if not subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode:
                found[name] = (program, python)
                break
    return found


def run(program: tuple[str, str], arguments: list[str], printed: Path) -> dict[str, Any]:
    """Runs a program and returns its printed figures and peak memory. Raises RuntimeError if it fails."""
    code, python = program
    usage = run_command([python, "-c", code, *arguments], printed)
    return {**last_line(printed), "rss_mb": usage["rss_mb"]}


def write_edges(graph: Graph, weighted: bool, path: Path) -> None:
    """Writes the tab-separated edge list that all programs read, without self-loops, which some programs reject."""
    rows = np.repeat(np.arange(len(graph)), graph.degrees)
    once = rows < graph.neighbours
    weights = np.random.default_rng(0).uniform(0.1, 2, int(once.sum()))
    with open(path, "w") as file:
        for a, b, w in zip(rows[once].tolist(), graph.neighbours[once].tolist(), weights.tolist(), strict=True):
            file.write(f"{graph.names[a]}\t{graph.names[b]}" + (f"\t{w:.4f}\n" if weighted else "\n"))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Runs all tasks and returns the measurements by task and program."""
    source = DATA / "graphs" / f"{options.graph}.edges.tsv.zst"
    labels = DATA / "graphs" / f"{options.graph}.labels.tsv.zst"
    graph = Graph.from_file(source, weighted=False)
    programs = installed([sys.executable, *options.pythons])
    programs = {name: program for name, program in programs.items() if name in options.programs}
    say(f"{graph!r}; {', '.join(programs)}")
    n_walks = options.walks or 2 * len(graph)
    tasks = [("walk", weighted, p, q) for weighted in (False, True) for p, q in SETTINGS if options.walk]
    tasks += [("train", False, p, q) for p, q in TRAINED if options.train]
    runs: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for weighted in (False, True):
        write_edges(graph, weighted, folder / f"edges{int(weighted)}.tsv")
    failed = set()
    for repeat in range(options.repeats):
        for what, weighted, p, q in tasks:
            task = f"{what}{' weighted' if weighted else ''} p={p:g} q={q:g}"
            for name, program in programs.items():
                if (task, name) in failed:
                    continue
                output = folder / "vectors.bin"
                path = str(folder / f"edges{int(weighted)}.tsv")
                arguments = [path, str(int(weighted)), what, str(p), str(q), str(n_walks), str(output), str(repeat)]
                try:
                    found = run(program, arguments, folder / "printed")
                except RuntimeError as error:
                    say(f"{task}: {name} failed: {error}")
                    failed.add((task, name))
                    continue
                if what == "train":
                    vectors = Vectors.load(output)
                    score = evaluate.node_classification(vectors, labels, splits=options.splits)[0]
                    found |= {"macro": score.macro, "micro": score.micro}
                runs[task][name].append(found)
                say(f"{task}: {name}: {json.dumps(found)}")
    return runs


def summarise(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Median, minimum and maximum for each task and program."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for task, programs in runs.items():
        for name, found in programs.items():
            entry: dict[str, Any] = {"load_s": spread([r["load_s"] for r in found])}
            entry["rss_mb"] = spread([r["rss_mb"] for r in found])
            if found[0]["steps"]:
                entry["steps_per_s"] = spread([r["steps"] / max(r["work_s"], 1e-9) for r in found])
            else:
                entry["train_s"] = spread([r["work_s"] for r in found])
                entry |= {name: float(np.mean([r[name] for r in found])) for name in ("macro", "micro")}
            result.setdefault(task, {})[name] = entry
    return result


def show(result: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Prints the medians, one row per task and program."""
    table = Table(box=box.SIMPLE)
    for i, column in enumerate(("task", "program", "read s", "M steps/s", "train s", "MB", "Macro-F1", "Micro-F1")):
        table.add_column(column, justify="right" if i > 1 else "left")
    for task, programs in result.items():
        for name, entry in programs.items():
            steps = f"{entry['steps_per_s']['median'] / 1e6:.2f}" if "steps_per_s" in entry else ""
            train = f"{entry['train_s']['median']:.1f}" if "train_s" in entry else ""
            scores = [f"{entry[kind]:.4f}" if kind in entry else "" for kind in ("macro", "micro")]
            table.add_row(task, name, f"{entry['load_s']['median']:.2f}", steps, train,
                          f"{entry['rss_mb']['median']:.0f}", *scores)  # fmt: skip
    Console().print(table)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", default="blogcatalog", help="Name of a labelled graph.")
    parser.add_argument("--repeats", type=int, default=3, help="Number of runs per task and program.")
    parser.add_argument(
        "--walks", type=int, default=0, help="Number of walks to time. Default: twice the number of nodes."
    )
    parser.add_argument("--splits", type=int, default=10, help="Number of splits in the evaluation.")
    parser.add_argument("--programs", nargs="*", default=["embfast", *RIVALS], help="Programs to run.")
    parser.add_argument("--walk", action=argparse.BooleanOptionalAction, default=True, help="Time walks.")
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=True, help="Time training.")
    parser.add_argument("--pythons", nargs="*", default=[], help="Additional Python interpreters to search for rivals.")
    parser.add_argument("--output", type=Path, help="JSON file for all results.")
    options = parser.parse_args(argv)
    machine = machine_and_commit()
    say(json.dumps(machine))
    with tempfile.TemporaryDirectory() as folder:
        runs = measure(options, Path(folder))
    result = summarise(runs)
    show(result)
    if options.output:
        write_json(options.output, {"graph": options.graph, "result": result, "runs": runs, "machine": machine})


if __name__ == "__main__":
    main()
