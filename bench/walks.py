"""Random walks on a graph larger than the caches: speed, peak memory, and how much memory access explains of the speed.

python -m bench.walks                                       1 M nodes and 20 M edges; some minutes
python -m bench.walks --nodes 100000 --small 2000

Graphs grow by preferential attachment (Barabasi and Albert 1999), so degrees follow a power law; node numbers are
shuffled. The same walks run alternately on a small graph that fits in the second-level cache and on the large one, on
one thread; speed is steps per CPU second of `Walks.read`. The benchmark also times the bare memory reads of such walks:
all addresses are recorded in advance and read again in the same order, by the same number of walks that take turns;
each read waits for the previous one of its walk, and nothing is drawn, compared or written. Each try reads the two
offsets of the row, a neighbour, a word of the table of members if the draw leaves the candidate open, and the
neighbours that a search visits if the word does; each node at the end reads its label. The time that these reads take
longer on the large graph is the part of the difference that memory access explains. Peak memory is measured in a
process that opens a saved graph and walks, minus the memory it held before opening; node names are part of it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from rich import box
from rich.console import Console
from rich.table import Table

from bench.machine import machine_and_commit, write_json
from bench.node2vec import SETTINGS
from bench.word2vec import say
from embfast.graphs.graph import Graph
from embfast.graphs.walk_kernels import GROUP, member_word, own_words
from embfast.graphs.walks import Walks, next_draw

OFFSETS, NEIGHBOURS, MEMBERS, LABELS = range(4)  # the array that a phase of a turn reads

MEMORY = """
import json, resource, sys
from embfast.graphs.graph import Graph
from embfast.graphs.walks import Walks
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
    """Sources and targets: each new node draws per_node neighbours from the ends of all edges so far."""
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
    """A graph with n_nodes nodes and about n_nodes * per_node edges."""
    place = np.random.default_rng(0).permutation(n_nodes).astype(np.int32)
    sources, targets = attach(n_nodes, per_node, np.uint64(1))
    return Graph.from_edges(place[sources], place[targets], n_nodes=n_nodes, duplicates="first")


class Tables(NamedTuple):
    """The arrays that walks read; members is empty if p = q = 1."""

    offsets: np.ndarray
    neighbours: np.ndarray
    members: np.ndarray
    inverse_p: float
    inverse_q: float


class Trace(NamedTuple):
    """All reads of walks that take turns, in order."""

    addresses: np.ndarray  # uint32
    slots: np.ndarray  # uint16: walk within the group, for each address
    begins: np.ndarray  # int64: first address of each phase of a turn, and the end
    kinds: np.ndarray  # int64: OFFSETS, NEIGHBOURS, MEMBERS or LABELS, for each phase


@njit
def _with_room(array: Any, n: Any) -> Any:
    """The array, or a longer copy with room for n numbers."""
    if n <= len(array):
        return array
    longer = np.empty(2 * n, array.dtype)
    for i in range(len(array)):
        longer[i] = array[i]
    return longer


@njit
def trace(tables: Tables, starts: Any, length: Any, together: Any, draw: Any) -> Any:
    """The Trace of walks from `starts`, `together` of them taking turns. One loop, as it follows walk_second_order."""
    offsets, neighbours, members = tables.offsets, tables.neighbours, tables.members
    inverse_p, inverse_q = tables.inverse_p, tables.inverse_q
    n_nodes = len(offsets) - 1
    least, most = min(1.0, inverse_q), max(1.0, inverse_q)
    excess = max(0.0, inverse_p - most)
    addresses, slots, n = np.empty(1 << 20, np.uint32), np.empty(1 << 20, np.uint16), 0
    begins, kinds, n_phases = np.empty(1 << 20, np.int64), np.empty(1 << 20, np.int64), 0
    current, previous = np.empty(together, np.int64), np.empty(together, np.int64)
    steps, rows = np.empty(together, np.int64), np.empty((together, length), np.int64)
    x, height = np.empty(together, np.int64), np.empty(together)
    looks, lows, sizes = np.empty(together, np.int64), np.empty(together, np.int64), np.empty(together, np.int64)
    found = np.empty(together, np.bool_)
    active, begun = 0, 0
    while active or begun < len(starts):
        while active < together and begun < len(starts):
            current[active], previous[active], steps[active] = starts[begun], -1, 1
            rows[active, 0] = starts[begun]
            active += 1
            begun += 1
        room = n + together * (3 + 32 + length)  # a search visits at most 32 places of a row
        addresses, slots = _with_room(addresses, room), _with_room(slots, room)
        room = n_phases + 3 + 33 + together
        begins, kinds = _with_room(begins, room), _with_room(kinds, room)
        begins[n_phases], kinds[n_phases] = n, OFFSETS
        n_phases += 1
        for i in range(active):
            addresses[n], slots[n] = current[i], i
            n += 1
        begins[n_phases], kinds[n_phases] = n, NEIGHBOURS
        n_phases += 1
        for i in range(active):
            begin, degree = offsets[current[i]], offsets[current[i] + 1] - offsets[current[i]]
            draw = next_draw(draw)
            place = begin + np.int64((draw >> np.uint64(11)) % np.uint64(degree))
            addresses[n], slots[n] = place, i
            n += 1
            draw = next_draw(draw)
            mass = most * degree
            height[i] = np.float64(draw >> np.uint64(11)) * 2.0**-53 * (mass + (excess if previous[i] >= 0 else 0.0))
            x[i] = neighbours[place] if height[i] < mass else previous[i]
            height[i] = height[i] / degree if height[i] < mass else -1.0
        n_looks = 0
        if len(members):
            begins[n_phases], kinds[n_phases] = n, MEMBERS
            n_phases += 1
            for i in range(active):
                found[i] = False
                if previous[i] < 0 or height[i] < least:
                    continue
                back, n_back = offsets[previous[i]], offsets[previous[i] + 1] - offsets[previous[i]]
                word, bits = member_word(back, n_back, n_nodes, np.int32(x[i]))
                addresses[n], slots[n] = np.int64(word), i
                n += 1
                found[i] = members[word] & bits == bits
                if found[i] and x[i] != previous[i] and own_words(back, n_back)[1] * 64 < n_nodes:
                    looks[n_looks], lows[n_looks], sizes[n_looks] = i, back, n_back
                    n_looks += 1
        left = n_looks
        while left:
            begins[n_phases], kinds[n_phases] = n, NEIGHBOURS
            n_phases += 1
            left = 0
            for j in range(n_looks):
                if sizes[j] == 0:
                    continue
                half = sizes[j] >> 1
                place = lows[j] + half - (half > 0)
                addresses[n], slots[n] = place, looks[j]
                n += 1
                if sizes[j] == 1:
                    found[looks[j]] = neighbours[place] == x[looks[j]]
                    sizes[j] = 0
                    continue
                lows[j] += half if neighbours[place] < x[looks[j]] else 0
                sizes[j] -= half
                left += 1
        for i in range(active):
            if previous[i] >= 0 and len(members):
                bias = inverse_p if x[i] == previous[i] else 1.0 if found[i] else inverse_q
                if height[i] >= max(bias, least if x[i] != previous[i] else 0.0):
                    continue
            previous[i], current[i] = current[i], x[i]
            rows[i, steps[i]] = x[i]
            steps[i] += 1
        i = 0
        while i < active:
            if steps[i] < length:
                i += 1
                continue
            begins[n_phases], kinds[n_phases] = n, LABELS
            n_phases += 1
            for j in range(length):
                addresses[n], slots[n] = rows[i, j], together + j
                n += 1
            active -= 1
            current[i], previous[i], steps[i] = current[active], previous[active], steps[active]
            for j in range(length):
                rows[i, j] = rows[active, j]
    begins[n_phases] = n
    return Trace(addresses[:n], slots[:n], begins[: n_phases + 1], kinds[:n_phases])


@njit(nogil=True)
def replay(tables: Tables, label: Any, reads: Trace, values: Any, nothing: Any) -> None:
    """Reads the arrays as walks do: each read waits for the previous one of its walk. `nothing` is 0, which the
    compiler does not know.
    """
    offsets, neighbours, members = tables.offsets, tables.neighbours, tables.members
    addresses, slots, begins, kinds = reads.addresses, reads.slots, reads.begins, reads.kinds
    for phase in range(len(kinds)):
        first, last, kind = np.uint64(begins[phase]), np.uint64(begins[phase + 1]), kinds[phase]
        if kind == OFFSETS:
            for i in range(first, last):
                slot = np.uint64(slots[i])
                at = np.uint64(addresses[i]) + np.uint64(values[slot] & nothing)
                values[slot] = offsets[at] ^ offsets[at + np.uint64(1)]
        elif kind == NEIGHBOURS:
            for i in range(first, last):
                slot = np.uint64(slots[i])
                values[slot] = neighbours[np.uint64(addresses[i]) + np.uint64(values[slot] & nothing)]
        elif kind == LABELS:
            for i in range(first, last):
                slot = np.uint64(slots[i])
                values[slot] = label[np.uint64(addresses[i]) + np.uint64(values[slot] & nothing)]
        else:
            for i in range(first, last):
                slot = np.uint64(slots[i])
                values[slot] = np.int64(members[np.uint64(addresses[i]) + np.uint64(values[slot] & nothing)])


def cpu_seconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


class Reads:
    """The memory reads of some walks, to be repeated without the walks."""

    def __init__(self, walks: Walks, n: int) -> None:
        _, arrays, settings = walks.device_job()
        members = np.empty(0, np.uint64) if arrays["members"] is None else arrays["members"]
        tables = Tables(arrays["offsets"], arrays["neighbours"], members, settings["inverse_p"], settings["inverse_q"])
        starts = np.resize(walks.start_nodes(0, 0, n), n)
        self.trace = trace(tables, starts, walks.length, GROUP, np.uint64(7))
        self.steps = n * (walks.length - 1)
        self.tries = float(np.diff(self.trace.begins)[self.trace.kinds == OFFSETS].sum() / self.steps)
        values = np.zeros(GROUP + walks.length, np.int64)
        self._arguments = (tables, walks.label, self.trace, values, np.int64(0))

    def seconds(self) -> float:
        """CPU seconds per step."""
        return cpu_seconds(lambda: replay(*self._arguments)) / self.steps


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Speed, and the explained part of the difference, for each setting."""
    small, large = power_law(options.small, options.per_node), power_law(options.nodes, options.per_node)
    say(f"{small!r}, {large!r}")
    result: dict[str, Any] = {"edges": large.n_edges, "settings": {}}
    for p, q in SETTINGS:
        both = {name: Walks(graph, p=p, q=q) for name, graph in (("small", small), ("large", large))}
        n = min(options.walks, *(len(walks) for walks in both.values()))
        reads = {name: Reads(walks, min(n, options.traced)) for name, walks in both.items()}
        seconds: dict[str, list[float]] = {"small": [], "large": []}
        bare: dict[str, list[float]] = {"small": [], "large": []}
        for name, walks in both.items():
            walks.read(0, 0, GROUP)
            reads[name].seconds()
        for _ in range(options.repeats):
            for name, walks in both.items():
                steps = n * (walks.length - 1)
                seconds[name].append(cpu_seconds(lambda w=walks, n=n: w.read(0, 0, n)) / steps)
                bare[name].append(reads[name].seconds())
        walk, read = ({name: float(np.median(found)) for name, found in of.items()} for of in (seconds, bare))
        result["settings"][f"p={p:g} q={q:g}"] = entry = {
            "ns_per_step": {name: 1e9 * found for name, found in walk.items()},
            "ns_of_reads": {name: 1e9 * found for name, found in read.items()},
            "tries": {name: found.tries for name, found in reads.items()},
            "explained": (read["large"] - read["small"]) / (walk["large"] - walk["small"]),
        }
        say(f"p={p:g} q={q:g}: {json.dumps(entry)}")
        del both, reads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.safetensors"
        large.save(path)
        del small, large
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
    parser.add_argument("--small", type=int, default=5_000, help="number of nodes of the graph that fits in the cache")
    parser.add_argument("--per-node", type=int, default=20, help="number of edges that each new node adds")
    parser.add_argument("--walks", type=int, default=40_000)
    parser.add_argument("--traced", type=int, default=10_000, help="number of walks whose reads are repeated")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args(argv)
    machine = machine_and_commit()
    say(json.dumps(machine))
    result = measure(options)
    show(result)
    if options.output:
        write_json(options.output, {"result": result, "machine": machine})


if __name__ == "__main__":
    main()
