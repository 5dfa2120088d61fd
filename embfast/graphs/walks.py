"""Random walks on a Graph: uniform, weighted, node2vec's, metapaths, with restarts, or with your own transitions.

Sources: node2vec (Grover and Leskovec 2016, arXiv:1607.00653), node2vec+ (Liu, Hirn and Krishnan 2023,
arXiv:2109.08031), metapath2vec (Dong, Chawla and Swami 2017). The steps are in walk_kernels.py, their tables in
walk_tables.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from embfast import kernels
from embfast.graphs import walk_kernels, walk_tables
from embfast.graphs.graph import Graph
from embfast.graphs.walk_kernels import GROUP, Job, WalkTables, next_draw
from embfast.training.settings import check_float, check_int

__all__ = ["Walks", "next_draw"]

Transition = Callable[..., int]


class Walks:
    """All walks on a graph with the given settings, readable in any order: walk k of epoch e is always the same.

    >>> walks = Walks(Graph.from_edges([0, 1, 2], [1, 2, 0]), length=5, per_node=2, seed=1)
    >>> len(walks)
    6
    >>> ids, offsets = walks.read(epoch=0, first=0, last=6)
    >>> ids.shape, offsets.tolist()
    ((30,), [0, 5, 10, 15, 20, 25, 30])

    Every node with an outgoing edge starts per_node walks per epoch, in a new random order for each repetition;
    isolated nodes start none. A walk ends after `length` nodes, or in a node without outgoing edges. Random numbers are
    functions of (seed, repetition, node, step, try), so the number of threads does not change the walks.

    Args:
        length: Number of nodes per walk.
        per_node: Number of walks per node and epoch.
        p, q: node2vec's return and in-out parameters, 1e-6 to 1e6. For a walk that came to v from t, the weight of the
            edge to x is multiplied by 1/p if x is t, by 1 if t has an edge to x, and by 1/q otherwise.
        restart: Probability of returning to the start node, at each step.
        plus: Use node2vec+, which counts an edge from t to x by its weight. Requires a weighted graph.
        gamma: node2vec+'s threshold: an edge is strong if its weight reaches the mean of a node's weights plus gamma
            standard deviations.
        transition: Function compiled with numba.njit that replaces p and q:
            transition(offsets, neighbours, weights, start, previous, current, step, draw) returns the next node, or -1
            to end the walk. previous is -1 in the first step; weights is None for an unweighted graph; draw is a random
            uint64 for this step, and next_draw(draw) derives another from it.
        types: Type of each node: int (nodes,), 0 or more.
        metapath: Types that the nodes of a walk must have, repeated: in (0, 1, 2, 1, 0) the last type is the first
            again. Walks start in nodes of the first type, draw by weight among neighbours of the next type, and end
            where there are none.
        seed: Seed of every random draw, 0 to 2**64 - 1.

    The walks are exact: a candidate is drawn by weight and accepted by its bias. If 1/p is the largest bias, its excess
    is sampled separately. After degree(v) + 16 rejections the exact distribution is enumerated, so the cost of a step
    is bounded for any p and q. A table of bits tells whether the previous node has an edge to the candidate; where the
    bits leave it open, the sorted row is searched.

    Memory: 8 bytes per node. Other than p = q = 1: 2 bytes per entry of neighbours for the bits. Weighted graphs:
    8 bytes per entry for the alias tables. With a metapath: a copy of the graph, and 8 bytes per node and type. There
    is no table of pairs of edges.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        length: int = 80,
        per_node: int = 10,
        p: float = 1.0,
        q: float = 1.0,
        restart: float = 0.0,
        plus: bool = False,
        gamma: float = 0.0,
        transition: Transition | None = None,
        types: np.ndarray | None = None,
        metapath: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        check_int("length", length, 1, 2**31 - 1)
        check_int("per_node", per_node, 1, 2**31 - 1)
        check_int("seed", seed, 0, 2**64 - 1)
        for name, value, lowest, highest in (
            ("p", p, 1e-6, 1e6),
            ("q", q, 1e-6, 1e6),
            ("restart", restart, 0, 1),
            ("gamma", gamma, -100, 100),
        ):
            check_float(name, value, lowest, highest)
        _check_transition(transition)
        if plus and graph.weights is None:
            raise ValueError("plus=True needs a graph with weights; this one has none")
        self.graph, self.length, self.per_node, self.seed = graph, length, per_node, seed
        self.p, self.q, self.restart, self.plus, self.transition = float(p), float(q), float(restart), plus, transition
        self.metapath = metapath
        if metapath is None:
            self._tables = self._make_tables(float(gamma))
            degrees = graph.degrees
        else:
            types, pattern = self._check_metapath(types, metapath)
            self._tables = self._metapath_tables(types, pattern)
            second = pattern[1 % len(pattern)]
            degrees = np.diff(self._tables.offsets).reshape(len(graph), -1)[:, second] * (types == pattern[0])
        self.starts = np.flatnonzero(degrees).astype(np.int32)
        if not len(self.starts):
            raise ValueError("the graph has no edge to walk on" if metapath is None else
                             "no edge leads from the first type of the metapath to the second")  # fmt: skip
        self.label = np.arange(len(graph), dtype=np.int32)  # the number that `read` returns for each node
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int32))
        self._on_device: Any = None

    def _check_metapath(self, types: Any, metapath: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """int64 node types, and the pattern that repeats."""
        if types is None:
            raise ValueError("a metapath requires the types of the nodes")
        types, path = np.asarray(types), np.asarray(metapath)
        if types.shape != (len(self.graph),) or types.dtype.kind not in "iu" or types.min() < 0:
            raise ValueError(f"types: expected {len(self.graph)} integers, 0 or more, one per node, got {types.dtype} "
                             f"{types.shape}")  # fmt: skip
        if path.ndim != 1 or len(path) < 2 or path.dtype.kind not in "iu" or path[0] != path[-1]:
            raise ValueError(f"metapath: expected types that end with the first type, got {list(metapath)}")
        if path.min() < 0 or path.max() > types.max():
            raise ValueError(f"metapath: expected types from 0 to {types.max()}, got {list(metapath)}")
        if not (self.p == self.q == 1) or self.plus or self.restart or self.transition is not None:
            raise ValueError("metapath cannot be combined with p, q, plus, restart or transition")
        return types.astype(np.int64), path[:-1].astype(np.int64)

    def _make_tables(self, gamma: float) -> WalkTables:
        """The graph's rows, and what steps need beside them."""
        graph = self.graph
        offsets, neighbours, weights = graph.offsets, graph.neighbours, graph.weights
        alias = strengths = thresholds = members = None
        if weights is not None and self.transition is None:
            alias = walk_tables.alias_tables(offsets, weights)
        if self.transition is None and not self.first_order:
            members = np.zeros(len(neighbours) // 4 + 1, np.uint64)  # allocated by numpy: on huge pages
            walk_kernels.set_members(offsets, neighbours, members)
            if weights is not None:
                strengths = walk_tables.strengths(offsets, weights)
            if self.plus:
                thresholds = walk_tables.noise_thresholds(offsets, weights, gamma)
        return WalkTables(
            offsets=offsets, neighbours=neighbours, weights=None if self.first_order else weights, alias=alias,
            strengths=strengths, thresholds=thresholds, members=members, pattern=np.zeros(1, np.int64), n_types=1,
            returns=not graph.directed, inverse_p=1 / self.p, inverse_q=1 / self.q, restart=self.restart,
        )  # fmt: skip

    def _metapath_tables(self, types: np.ndarray, pattern: np.ndarray) -> WalkTables:
        """A row for each node and type."""
        graph, n_types = self.graph, int(types.max()) + 1
        offsets, neighbours, weights = walk_tables.rows_by_type(
            graph.offsets, graph.neighbours, graph.weights, types, n_types
        )
        return WalkTables(
            offsets=offsets, neighbours=neighbours, weights=None,
            alias=None if weights is None else walk_tables.alias_tables(offsets, weights),
            strengths=None, thresholds=None, members=None, pattern=pattern, n_types=n_types,
            returns=not graph.directed, inverse_p=1.0, inverse_q=1.0, restart=0.0,
        )  # fmt: skip

    def __len__(self) -> int:
        """Number of walks per epoch."""
        return self.per_node * len(self.starts)

    @property
    def first_order(self) -> bool:
        """Whether a step depends on the current node alone."""
        return self.p == self.q == 1 and self.transition is None

    @property
    def reversible(self) -> bool:
        """Whether visits tend to each node's degree, or sum of weights, within its component."""
        return self.first_order and self.metapath is None and self.restart == 0 and not self.graph.directed

    def components(self) -> np.ndarray:
        """int32 (nodes,): the lowest node in each node's component, which no walk leaves; undirected graphs only."""
        return walk_tables.components(self.graph.offsets, self.graph.neighbours)

    def read(self, epoch: int, first: int, last: int, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Walks first..last of an epoch: labels, int32 (n,), and offsets, int64 (last - first + 1,), as in a Corpus.

        Raises:
            ValueError: the epoch has fewer walks, or threads is below 1.
        """
        if not 0 <= first <= last <= len(self) or epoch < 0:
            raise ValueError(
                f"expected walks from 0 to {len(self):,} and epoch 0 or more, got {first} to {last} of epoch {epoch}"
            )
        check_int("threads", threads, 1, 4096)
        if self._on_device is not None:
            return self._read_from_device(epoch, first, last)
        rows = np.empty((last - first, self.length), np.int32)
        lengths = np.empty(last - first, np.int64)
        begin = first
        while begin < last:
            repetition, place = divmod(begin, len(self.starts))
            end = min(last, (repetition + 1) * len(self.starts))
            part = slice(begin - first, end - first)
            self._walk(epoch * self.per_node + repetition, place, rows[part], lengths[part], threads)
            begin = end
        offsets = np.zeros(last - first + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        flat = rows.reshape(-1)
        return (flat if offsets[-1] == len(flat) else walk_kernels.pack(flat, offsets, self.length)), offsets

    def to_device(self, device: Any) -> None:
        """Makes `read` draw the same walks on a device.Device from now on, with the labels as they are now.

        Device memory: the graph, 8 bytes per node and 4 per entry of neighbours (8 with weights), and the tables of
        this class.

        Raises:
            ValueError: a user's own transition runs on the CPU only.
            MemoryError: the graph does not fit.
        """
        if self.transition is not None:
            raise ValueError("transition functions run on the CPU: device='cpu'")
        _, arrays, settings = self.device_job()
        self._on_device = kernels.device_walks(device, arrays, settings)

    def device_job(self) -> tuple[str, dict[str, np.ndarray | None], dict[str, Any]]:
        """Name of the kernel in walks.cu that draws these walks, its arrays, and the numbers of its WalkJob."""
        tables = self._tables._asdict()
        arrays = {name: tables.pop(name) for name in (
            "offsets", "neighbours", "weights", "alias", "strengths", "thresholds", "members", "pattern",
        )}  # fmt: skip
        settings = {
            **tables,
            "seed": self.seed,
            "n_nodes": len(self.graph),
            "length": self.length,
            "n_pattern": len(self._tables.pattern),
        }
        kernel = "walk_first_order" if self.first_order else "walk_second_order"
        return kernel, {**arrays, "label": self.label}, settings

    def _read_from_device(self, epoch: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        kernel, n, parts = "walk_first_order" if self.first_order else "walk_second_order", len(self.starts), []
        while first < last:
            repetition, place = divmod(first, n)
            end = min(n, place + last - first)
            number = epoch * self.per_node + repetition
            parts.append(self._on_device.read(kernel, number, self.start_nodes(number, place, end)))
            first += end - place
        offsets = np.concatenate([[0], *(lengths for _, lengths in parts)]).cumsum()
        return np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in parts)]), offsets

    def start_nodes(self, repetition: int, first: int, last: int) -> np.ndarray:
        """int32 (last - first,): start nodes of walks first..last in a repetition, of which an epoch has per_node."""
        if self._order[0] != repetition:
            self._order = (repetition, self.starts[kernels.random_order(len(self.starts), self.seed, repetition)])
        return self._order[1][first:last]

    def _walk(self, repetition: int, place: int, rows: np.ndarray, lengths: np.ndarray, threads: int) -> None:
        """Fills rows, (n, length), and lengths, (n,), with n walks of a repetition, from walk `place` on."""
        n = len(rows)
        starts = self.start_nodes(repetition, place, place + n)
        key = np.uint64(
            walk_kernels.stream_key(np.uint64(self.seed), np.uint64(repetition))
        )  # numba gives a Python int

        def piece(lo: int, hi: int) -> None:
            job = Job(starts[lo:hi], key, self.label, rows[lo:hi], lengths[lo:hi])
            if self.transition is not None:
                walk_kernels.walk_custom(self._tables, self.transition, job)
            elif self.first_order:
                walk_kernels.walk_first_order(self._tables, job)
            else:
                walk_kernels.walk_second_order(self._tables, job)

        cuts = [n * i // threads for i in range(threads + 1)]
        if threads == 1 or n < 2 * GROUP * threads:
            piece(0, n)
            return
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(piece, lo, hi) for lo, hi in pairwise(cuts)]:
                done.result()


def _check_transition(transition: Any) -> None:
    from numba.extending import is_jitted

    if transition is not None and not is_jitted(transition):
        raise TypeError(f"transition: expected a function compiled with numba.njit, got {transition!r}")
