"""Random walks on a graph larger than the caches: speed, peak memory, and how much the memory explains of the speed.

python -m bench.walks                                       1 M nodes and 20 M edges; some minutes
python -m bench.walks --nodes 100000 --small 2000

Graphs grow by preferential attachment (Barabasi and Albert 1999), so degrees follow a power law; node numbers are
shuffled. The same walks run on a small graph that the second-level cache holds and on the large one, in turns, one
thread, steps per CPU second as `Walks.read` gives them. Beside them run the bare reads of the same walks, all addresses
known before: for each try a neighbour and a word of the table of bits, for each step the offsets of a row and
the label of a node. What these
take longer on the large graph is the part of the difference that the memory explains. Peak memory is that of a process
that opens a saved graph and walks, less what it held before it opened the graph; names of nodes are a part of it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from rich import box
from rich.console import Console
from rich.table import Table

from bench.machine import machine_and_commit, write_json
from bench.node2vec import SETTINGS
from bench.word2vec import say
from embfast import reference
from embfast.graph import Graph
from embfast.walks import _TOGETHER, Walks, _member_word, next_draw

MEMORY = """
import json, resource, sys
from embfast.graph import Graph
from embfast.walks import Walks
def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
path, p, q, n = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
Walks(Graph.from_edges([0, 1, 2], [1, 2, 0]), p=p, q=q).read(0, 0, 3)
before = now()
graph = Graph.load(path)
loaded = now() - before
walks = Walks(graph, p=p, q=q)
walks.read(0, 0, n)
peak = next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) - before
csr = graph.offsets.nbytes + graph.neighbours.nbytes
print(json.dumps({"peak": peak, "csr": csr, "names": loaded - csr}))
"""


@njit
def attach(n_nodes: Any, per_node: Any, draw: Any) -> Any:
    """Sources and targets: each new node draws the ends of per_node edges from the ends of all edges so far."""
    sources, targets = np.empty(n_nodes * per_node, np.int32), np.empty(n_nodes * per_node, np.int32)
    n = 0
    for v in range(per_node, n_nodes):
        for i in range(per_node):
            draw = next_draw(draw)
            k = np.int64((draw >> np.uint64(11)) % np.uint64(2 * n + per_node))
            x = np.int32(k - 2 * n) if k >= 2 * n else sources[k >> 1] if k & 1 else targets[k >> 1]
            sources[n + i], targets[n + i] = v, x if x != v else i
        n += per_node
    return sources[:n], targets[:n]


def power_law(n_nodes: int, per_node: int) -> Graph:
    """A graph of n_nodes, of about per_node times as many edges."""
    place = np.random.default_rng(0).permutation(n_nodes).astype(np.int32)
    sources, targets = attach(n_nodes, per_node, np.uint64(1))
    return Graph.from_edges(place[sources], place[targets], n_nodes=n_nodes, duplicates="first")


def tries_of(graph: Graph, rows: np.ndarray, p: float, q: float) -> float:
    """Mean number of candidates for a step, from the enumerated probabilities at some places of walks."""
    if p == q == 1:
        return 1.0
    most, excess, found = max(1, 1 / q), max(0.0, 1 / p - max(1, 1 / q)), []
    for previous, current in rows[:: max(1, len(rows) // 300), 40:42]:
        row = graph.neighbours[graph.offsets[current] : graph.offsets[current + 1]]
        bias = np.array([reference.bias(graph, previous, current, x, p, q) for x in row])
        found.append((len(row) * most + excess) / bias.sum())
    return float(np.mean(found))


@njit
def addresses(offsets: Any, neighbours: Any, rows: Any, tries: Any, together: Any, draw: Any) -> Any:
    """Places in neighbours, words of the table of bits and nodes that walks read, many walks by turns."""
    n, length = rows.shape
    places, words = np.empty(np.int64(n * length * (tries + 1)), np.int64), np.empty(0, np.int64)
    words, nodes = np.empty_like(places), np.empty(n * length, np.int64)
    n_tries, n_steps = 0, 0
    for first in range(0, n, together):
        for step in range(1, length - 1):
            for i in range(first, min(n, first + together)):
                previous, current = rows[i, step - 1], rows[i, step]
                begin, degree = offsets[current], offsets[current + 1] - offsets[current]
                back, n_back = offsets[previous], offsets[previous + 1] - offsets[previous]
                nodes[n_steps] = current
                n_steps += 1
                while n_tries < len(places):
                    draw = next_draw(draw)
                    place = begin + np.int64((draw >> np.uint64(11)) % np.uint64(degree))
                    places[n_tries] = place
                    words[n_tries] = np.int64(_member_word(back, n_back, len(offsets) - 1, neighbours[place])[0])
                    n_tries += 1
                    draw = next_draw(draw)
                    if np.float64(draw >> np.uint64(11)) * 2.0**-53 * tries < 1:
                        break
    return places[:n_tries], words[:n_tries], nodes[:n_steps]


@njit(nogil=True)
def read(table: Any, places: Any, together: Any) -> Any:
    """Reads table at places, many before any is used."""
    some, total = np.empty(together, np.int64), np.int64(0)
    for first in range(0, len(places) - together, together):
        for i in range(together):
            some[i] = table[np.uint64(places[np.uint64(first + i)])]
        total += some[0] + some[together - 1]
    return total


def cpu_seconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def bare_reads(graph: Graph, walks: Walks, rows: np.ndarray, tries: float) -> float:
    """CPU seconds a step of the reads of walks alone."""
    places, words, nodes = addresses(graph.offsets, graph.neighbours, rows, tries, _TOGETHER, np.uint64(7))
    tables = [(graph.neighbours, places), (graph.offsets, nodes), (walks.label, nodes)]
    if walks._members is not None:
        tables.append((walks._members, words))
    for table, _ in tables:
        read(table, np.zeros(2 * _TOGETHER, np.int64), _TOGETHER)  # compiled
    return sum(cpu_seconds(lambda t=table, at=at: read(t, at, _TOGETHER)) for table, at in tables) / len(nodes)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Speed and explained share by setting."""
    small, large = power_law(options.small, options.per_node), power_law(options.nodes, options.per_node)
    say(f"{small!r}, {large!r}")
    result: dict[str, Any] = {"edges": large.n_edges, "settings": {}}
    for p, q in SETTINGS:
        seconds: dict[str, list[float]] = {"small": [], "large": []}
        reads: dict[str, list[float]] = {"small": [], "large": []}
        tries = {}
        both = {}
        for name, graph in (("small", small), ("large", large)):
            walks = Walks(graph, p=p, q=q)
            n = min(options.walks, len(walks))
            rows = walks.read(0, 0, n)[0].reshape(n, walks.length)
            tries[name] = tries_of(graph, rows, p, q)
            both[name] = (graph, walks, rows)
        for _ in range(options.repeats):
            for name, (graph, walks, rows) in both.items():
                steps = len(rows) * (walks.length - 1)
                seconds[name].append(cpu_seconds(lambda w=walks, r=rows: w.read(0, 0, len(r))) / steps)
                reads[name].append(bare_reads(graph, walks, rows, tries[name]))
        walk, bare = ({name: float(np.median(found)) for name, found in of.items()} for of in (seconds, reads))
        explained = (bare["large"] - bare["small"]) / (walk["large"] - walk["small"])
        result["settings"][f"p={p:g} q={q:g}"] = entry = {
            "ns_per_step": {name: 1e9 * found for name, found in walk.items()},
            "ns_of_reads": {name: 1e9 * found for name, found in bare.items()},
            "tries": tries,
            "explained": explained,
        }
        say(f"p={p:g} q={q:g}: {json.dumps(entry)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.safetensors"
        large.save(path)
        del small, large, both
        for p, q in SETTINGS[:2]:
            arguments = [str(path), str(p), str(q), str(options.walks)]
            done = subprocess.run(
                [sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=True
            )
            result["settings"][f"p={p:g} q={q:g}"]["memory"] = json.loads(done.stdout)
    return result


def show(result: dict[str, Any]) -> None:
    table = Table(box=box.SIMPLE)
    for i, column in enumerate(("p, q", "in the cache, M steps/s", "large, M steps/s", "tries a step", "explained",
                                "peak MB", "of the CSR")):  # fmt: skip
        table.add_column(column, justify="right" if i else "left")
    for name, entry in result["settings"].items():
        memory = entry.get("memory")
        table.add_row(
            name,
            *(f"{1e3 / entry['ns_per_step'][kind]:.1f}" for kind in ("small", "large")),
            f"{entry['tries']['large']:.2f}",
            f"{100 * entry['explained']:.0f} %",
            *([f"{memory['peak'] / 1e6:.0f}", f"{memory['peak'] / memory['csr']:.2f}"] if memory else ["", ""]),
        )
    Console().print(table)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=5_000, help="nodes of the graph that the cache holds")
    parser.add_argument("--per-node", type=int, default=20, help="edges that a new node brings")
    parser.add_argument("--walks", type=int, default=40_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write all figures here, as JSON")
    options = parser.parse_args(argv)
    machine = machine_and_commit()
    say(json.dumps(machine))
    result = measure(options)
    show(result)
    if options.output:
        write_json(options.output, {"result": result, "machine": machine})


if __name__ == "__main__":
    main()
