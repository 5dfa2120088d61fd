"""Random walks on a Graph, compiled by Numba: uniform, weighted, node2vec's, metapaths, with restarts, or your own.

Sources: node2vec (Grover and Leskovec 2016, arXiv:1607.00653), its rejection sampling (KnightKing, Yang et al. 2019),
node2vec+ (Liu, Hirn and Krishnan 2023, arXiv:2109.08031), metapath2vec (Dong, Chawla and Swami 2017), alias tables
(Walker 1977; Vose 1991).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from embfast import kernels
from embfast.graphs.graph import Graph
from embfast.training.settings import check_float, check_int

try:
    from numba import njit
    from numba.extending import is_jitted
except ImportError:
    raise ImportError("random walks need numba: pip install embfast[graph]") from None

__all__ = ["Walks", "next_draw"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WALK = np.uint64(16)  # Purpose::walk of csrc/core/random.h
_TRIES = 24  # bits of a draw's number that count the tries of one step
_RESTART = np.uint64((1 << _TRIES) - 1)  # the try whose draw says whether a step goes back to the start
_LAST_TRY = 1 << 16
_TOGETHER = 512  # walks that take turns, so that the memory works on all of them at once
_LOW = np.uint64(0xFFFFFFFF)
_TO_UNIT = 2.0**-32

Transition = Callable[..., int]


class Walks:
    """All walks of a setting on one graph, any of them at any time: walk k of epoch e is always the same.

    >>> walks = Walks(Graph.from_edges([0, 1, 2], [1, 2, 0]), length=5, per_node=2, seed=1)
    >>> len(walks)
    6
    >>> ids, offsets = walks.read(epoch=0, first=0, last=6)
    >>> ids.shape, offsets.tolist()
    ((30,), [0, 5, 10, 15, 20, 25, 30])

    Every node with an edge of its own starts per_node walks an epoch, in a new random order each time; isolated nodes
    start none. A walk ends after `length` nodes, or in a node that no edge leaves. Draws are functions of (seed,
    repetition, node, step, try): no number of threads changes them.

    Args:
        p, q: node2vec's return and in-out parameters, 1e-6 to 1e6. From v, reached from t, an edge to x has its weight
            times 1/p when x is t, 1 when t has an edge to x, and 1/q otherwise.
        restart: probability, at each step, of going back to the first node.
        plus: node2vec+: an edge of t to x counts in the measure of its weight; of weighted graphs only.
        gamma: node2vec+: edges weigh much that reach the mean of a node's weights plus gamma standard deviations.
        transition: a function compiled with numba.njit that takes the place of p and q:
            transition(offsets, neighbours, weights, start, previous, current, step, draw) returns the next node, or -1
            to end the walk. previous is -1 in the first step; weights is None in a graph without; draw is a random
            uint64 of this step, and next_draw(draw) makes another of it.
        types: int (nodes,), 0 or more: of each node its type.
        metapath: types that the nodes of a walk must have, over and over, as (0, 1, 2, 1, 0): the last is the first
            again. Walks start in nodes of the first type, draw among neighbours of the next type alone, by weight, and
            end where there are none.

    Exact: a candidate is drawn by weight and accepted by its bias; what 1/p has above all other biases is drawn apart.
    A step that refuses as many candidates as the node has edges, and 16, is drawn from the enumerated probabilities.
    Whether a candidate is a neighbour of the node before is read from a table of bits; where they leave it open, the
    sorted row is searched.
    Memory: 8 bytes a node; for p or q other than 1 the bits, 2 bytes an entry of neighbours; 8 an entry for the alias
    tables of a weighted graph; with a metapath a copy of the graph, and 8 bytes for each node and type; and no table of
    pairs.
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
        if transition is not None and not is_jitted(transition):
            raise TypeError(f"transition: expected a function compiled with numba.njit, got {transition!r}")
        if plus and graph.weights is None:
            raise ValueError("plus=True needs a graph with weights; this one has none")
        self.graph, self.length, self.per_node, self.seed = graph, length, per_node, seed
        self.p, self.q, self.restart, self.plus, self.transition = float(p), float(q), float(restart), plus, transition
        # The rows that steps of the first order are drawn from: the graph's, or one of each type for each node.
        self._offsets, self._neighbours, weights = graph.offsets, graph.neighbours, graph.weights
        self._pattern = np.zeros(1, np.int64)
        self._n_types = 1
        degrees = graph.degrees
        if metapath is not None:
            types, self._pattern = self._check_metapath(types, metapath, plus)
            self._n_types = int(types.max()) + 1
            self._offsets, self._neighbours, weights = _by_type(
                graph.offsets, graph.neighbours, graph.weights, types, self._n_types
            )
            second = self._pattern[1 % len(self._pattern)]
            degrees = np.diff(self._offsets).reshape(len(graph), -1)[:, second] * (types == self._pattern[0])
        self.metapath = metapath
        self.starts = np.flatnonzero(degrees).astype(np.int32)
        if not len(self.starts):
            raise ValueError("the graph has no edge to walk on" if metapath is None else
                             "no edge leads from the first type of the metapath to the second")  # fmt: skip
        self.label = np.arange(len(graph), dtype=np.int32)  # the number that stands for a node in what `read` returns
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int32))
        self._on_device: Any = None
        self._alias = self._strengths = self._thresholds = self._members = None
        if weights is not None and transition is None:
            self._alias = _alias_tables(self._offsets, weights)
        if transition is None and not self.first_order:
            self._members = np.zeros(len(graph.neighbours) // 4 + 1, np.uint64)  # by numpy: on huge pages
            _set_members(graph.offsets, graph.neighbours, self._members)
            if graph.weights is not None:
                self._strengths = _strengths(graph.offsets, graph.weights)
            if plus:
                self._thresholds = _noise_thresholds(graph.offsets, graph.weights, float(gamma))

    def _check_metapath(self, types: Any, metapath: Sequence[int], plus: bool) -> tuple[np.ndarray, np.ndarray]:
        """int64 types of nodes and the pattern that repeats."""
        if types is None:
            raise ValueError("a metapath needs the types of the nodes")
        types, path = np.asarray(types), np.asarray(metapath)
        if types.shape != (len(self.graph),) or types.dtype.kind not in "iu" or types.min() < 0:
            raise ValueError(f"expected a type, 0 or more, of each of {len(self.graph)} nodes, got {types.dtype} "
                             f"{types.shape}")  # fmt: skip
        if path.ndim != 1 or len(path) < 2 or path.dtype.kind not in "iu" or path[0] != path[-1]:
            raise ValueError(f"expected a metapath of types whose last is the first again, got {list(metapath)}")
        if path.min() < 0 or path.max() > types.max():
            raise ValueError(f"expected a metapath of types from 0 to {types.max()}, got {list(metapath)}")
        if not (self.p == self.q == 1) or plus or self.restart or self.transition is not None:
            raise ValueError("a metapath goes without p, q, plus, restart and transition")
        return types.astype(np.int64), path[:-1].astype(np.int64)

    def __len__(self) -> int:
        """Walks in an epoch."""
        return self.per_node * len(self.starts)

    @property
    def first_order(self) -> bool:
        """Whether a step depends on nothing but the node that it leaves."""
        return self.p == self.q == 1 and self.transition is None

    @property
    def reversible(self) -> bool:
        """Whether visits tend to the degree, or the sum of the weights, of each node in its component."""
        return self.first_order and self.metapath is None and self.restart == 0 and not self.graph.directed

    def components(self) -> np.ndarray:
        """int32 (nodes,): the lowest node of each node's component, which no walk leaves; not of directed graphs."""
        return _components(self.graph.offsets, self.graph.neighbours)

    def read(self, epoch: int, first: int, last: int, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Walks first..last of an epoch: labels, int32 (n,), and offsets, int64 (last - first + 1,), as in a Corpus.

        Raises:
            ValueError: there are not as many in an epoch, or no threads.
        """
        if not 0 <= first <= last <= len(self) or epoch < 0:
            raise ValueError(
                f"expected walks of 0 to {len(self):,} of an epoch from 0, got {first} to {last} of {epoch}"
            )
        check_int("threads", threads, 1, 4096)
        if self._on_device is not None:
            return self._read_from_device(epoch, first, last)
        rows = np.empty((last - first, self.length), np.int32)
        lengths = np.empty(last - first, np.int64)
        begin = first
        while begin < last:
            repetition = begin // len(self.starts)
            end = min(last, (repetition + 1) * len(self.starts))
            self._walk(epoch * self.per_node + repetition, begin - repetition * len(self.starts), rows, lengths,
                       begin - first, end - first, threads)  # fmt: skip
            begin = end
        offsets = np.zeros(last - first + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        flat = rows.reshape(-1)
        return (flat if offsets[-1] == len(flat) else _packed(flat, offsets, self.length)), offsets

    def to_device(self, device: Any) -> None:
        """From now on `read` draws on that device, a device.Device, the very same walks; labels are as they are now.

        Memory there: the graph, 8 bytes a node and 4 an edge, 4 more with weights, and the tables of this class.

        Raises:
            ValueError: a transition of the user's own runs on the CPU alone.
            MemoryError: the graph does not fit.
        """
        if self.transition is not None:
            raise ValueError("a transition of your own runs on the CPU: device='cpu'")
        graph, first = self.graph, self.first_order
        arrays = {
            "offsets": self._offsets if first else graph.offsets,
            "neighbours": self._neighbours if first else graph.neighbours,
            "weights": None if first else graph.weights,
            "alias": self._alias,
            "strengths": self._strengths,
            "thresholds": self._thresholds,
            "members": self._members,
            "pattern": self._pattern,
            "label": self.label,
        }
        settings = {
            "seed": self.seed,
            "inverse_p": 1 / self.p,
            "inverse_q": 1 / self.q,
            "restart": self.restart,
            "n_nodes": len(graph),
            "length": self.length,
            "returns": not graph.directed,
            "n_types": self._n_types,
            "n_pattern": len(self._pattern),
        }
        self._on_device = kernels.device_walks(device, arrays, settings)

    def _read_from_device(self, epoch: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        kernel, n, parts = "walk_first_order" if self.first_order else "walk_second_order", len(self.starts), []
        while first < last:
            repetition, place = divmod(first, n)
            end = min(n, place + last - first)
            number = epoch * self.per_node + repetition
            parts.append(self._on_device.read(kernel, number, self._starts(number, place, end)))
            first += end - place
        offsets = np.concatenate([[0], *(lengths for _, lengths in parts)]).cumsum()
        return np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in parts)]), offsets

    def _starts(self, repetition: int, first: int, last: int) -> np.ndarray:
        """Places first..last of the order in which a repetition starts its walks."""
        if self._order[0] != repetition:
            self._order = (repetition, self.starts[kernels.random_order(len(self.starts), self.seed, repetition)])
        return self._order[1][first:last]

    def _walk(
        self, repetition: int, place: int, rows: np.ndarray, lengths: np.ndarray, begin: int, end: int, threads: int
    ) -> None:
        """Fills rows begin..end with the walks of a repetition, from that place of its order on."""
        starts = self._starts(repetition, place, place + end - begin)
        key = np.uint64(_stream(np.uint64(self.seed), np.uint64(repetition)))  # numba gives a Python int
        graph = self.graph

        def piece(lo: int, hi: int) -> None:
            shared = (starts[lo:hi], key, self.label, rows[begin + lo : begin + hi], lengths[begin + lo : begin + hi])
            if self.transition is not None:
                _custom(graph.offsets, graph.neighbours, graph.weights, self.transition, self.restart, *shared)
            elif self.first_order:
                _first_order(
                    self._offsets,
                    self._neighbours,
                    self._alias,
                    self._n_types,
                    self._pattern,
                    self.restart,
                    *shared,
                )
            else:
                _second_order(
                    graph.offsets,
                    graph.neighbours,
                    graph.weights,
                    self._alias,
                    self._strengths,
                    self._thresholds,
                    self._members,
                    not graph.directed,
                    1 / self.p,
                    1 / self.q,
                    self.restart,
                    *shared,
                )

        n = end - begin
        cuts = [n * i // threads for i in range(threads + 1)]
        if threads == 1 or n < 2 * _TOGETHER * threads:
            piece(0, n)
            return
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(piece, lo, hi) for lo, hi in pairwise(cuts)]:
                done.result()


# ---- draws --------------------------------------------------------------------------------------------------------
# The functions of csrc/core/random.h; embfast.reference has them too.


@njit(inline="always")
def _mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(inline="always")
def _at(key: Any, i: Any) -> Any:
    return _mix(key + (np.uint64(i) + np.uint64(1)) * _GOLDEN)


@njit(cache=True)
def _stream(seed: Any, repetition: Any) -> Any:
    """The key of the draws of a repetition's walks."""
    return _mix(_mix(_mix(seed + _GOLDEN) + repetition) + _WALK)


@njit(inline="always")
def _low_unit(draw: Any) -> Any:
    """The low 32 bits, which the place of a candidate does not depend on, as a number in [0, 1)."""
    return np.float64(draw & _LOW) * _TO_UNIT


@njit(inline="always")
def _unit(draw: Any) -> Any:
    return np.float64(draw >> np.uint64(11)) * 2.0**-53


@njit
def next_draw(draw: Any) -> Any:
    """Another random uint64, for transition functions that need more than one."""
    return _mix(np.uint64(draw) + _GOLDEN)


# ---- steps --------------------------------------------------------------------------------------------------------
# Many walks take turns: one try of each, then the next try of each. Each pass over them does one thing, so that
# arithmetic becomes vector instructions, and the processor has as many reads from memory under way as it can.


@njit(inline="always")
def _find(neighbours: Any, begin: Any, n: Any, x: Any) -> Any:
    """Where x stands among n > 0 sorted neighbours from begin on, or -1."""
    while n > 1:
        half = n >> 1
        begin = begin + half if neighbours[begin + half - 1] < x else begin
        n -= half
    return begin if neighbours[begin] == x else -1


@njit(inline="always")
def _own_words(begin: Any, degree: Any) -> Any:
    """The first word of the table of members that belongs to this row alone, and how many there are."""
    first = (begin + np.int64(3)) >> 2
    return first, ((begin + degree) >> 2) - first


@njit(inline="always")
def _member_word(begin: Any, degree: Any, n_nodes: Any, x: Any) -> Any:
    """The word, of the table of members, and the bits in it that are set if x is in the row that begins there.

    The words lie along the rows, 64 bits to four entries. In a row with as many bits of its own as there are nodes each
    node has one; in others three by a hash, so that few nodes that are no neighbours find all three set.
    """
    first, n_own = _own_words(begin, degree)
    low = np.int64(begin) >> 2
    span = ((begin + degree + np.int64(3)) >> 2) - low
    hashed = np.uint64(x) * _GOLDEN
    three = _bit(hashed >> np.uint64(14)) | _bit(hashed >> np.uint64(20)) | _bit(hashed >> np.uint64(26))
    place = np.uint64(low) + (((hashed >> np.uint64(32)) * np.uint64(span)) >> np.uint64(32))
    each = n_own * 64 >= n_nodes
    return np.uint64(first) + (np.uint64(x) >> np.uint64(6)) if each else place, _bit(np.uint64(x)) if each else three


@njit(inline="always")
def _bit(i: Any) -> Any:
    return np.uint64(1) << (i & np.uint64(63))


@njit(nogil=True, cache=True)
def _set_members(offsets: Any, neighbours: Any, words: Any) -> None:
    """Fills the table of members, uint64 (entries / 4, rounded up), from zeros."""
    n_nodes = len(offsets) - 1
    for row in range(n_nodes):
        begin, degree = offsets[row], offsets[row + 1] - offsets[row]
        for i in range(begin, begin + degree):
            word, bits = _member_word(begin, degree, n_nodes, neighbours[i])
            words[word] |= bits


@njit(nogil=True, cache=True)
def _find_each(neighbours: Any, begins: Any, sizes: Any, xs: Any, n: Any, places: Any) -> None:
    """_find of many, step by step, so that the memory works on all of them at once; begins and sizes are used up."""
    more = True
    while more:
        more = False
        for i in range(n):
            half = sizes[i] >> 1
            before = np.uint64(begins[i] + half - (half > 0))
            begins[i] = begins[i] + half if neighbours[before] < xs[i] else begins[i]
            sizes[i] -= half
            more |= sizes[i] > 1
    for i in range(n):
        places[i] = begins[i] if neighbours[np.uint64(begins[i])] == xs[i] else -1


@njit(nogil=True, cache=True)
def _draw(keys: Any, numbers: Any, n: Any, draws: Any) -> None:
    for i in range(n):
        draws[i] = _at(keys[i], numbers[i])


@njit(nogil=True, cache=True)
def _draw_cells(draws: Any, begins: Any, degrees: Any, n: Any, places: Any) -> None:
    for i in range(n):
        places[i] = np.uint64(begins[i]) + (((draws[i] >> np.uint64(32)) * np.uint64(degrees[i])) >> np.uint64(32))


@njit(nogil=True, cache=True)
def _draw_neighbours(
    neighbours: Any, alias: Any, draws: Any, begins: Any, degrees: Any, n: Any, places: Any, drawn: Any
) -> None:
    """The neighbour that each draws by weight, and its place."""
    _draw_cells(draws, begins, degrees, n, places)
    if alias is not None:
        for i in range(n):
            coin = np.uint32(_mix(draws[i]) & _LOW)
            cell = places[i]
            own = coin < alias[cell, 0]
            places[i] = cell if own else np.uint64(begins[i]) + np.uint64(alias[cell, 1])
    for i in range(n):
        drawn[i] = neighbours[places[i]]


@njit(nogil=True, cache=True)
def _first_order(
    offsets: Any,
    neighbours: Any,
    alias: Any,
    n_types: Any,
    pattern: Any,
    restart: Any,
    starts: Any,
    key: Any,
    label: Any,
    rows: Any,
    lengths: Any,
) -> None:
    """Node v has n_types rows, and the step s is drawn from that of type pattern[s % len(pattern)]."""
    length = rows.shape[1]
    flat = rows.reshape(-1)
    at, row = np.empty(_TOGETHER, np.int32), np.empty(_TOGETHER, np.uint64)
    keys, numbers = np.empty(_TOGETHER, np.uint64), np.empty(_TOGETHER, np.uint64)
    draws, places = np.empty(_TOGETHER, np.uint64), np.empty(_TOGETHER, np.uint64)
    begins, degrees = np.empty(_TOGETHER, np.int64), np.empty(_TOGETHER, np.int64)
    for first in range(0, len(starts), _TOGETHER):
        n = min(_TOGETHER, len(starts) - first)
        for i in range(n):
            at[i] = starts[first + i]
            row[i] = np.uint64(first + i)
            keys[i] = _at(key, at[i])
            flat[(first + i) * length] = at[i]
            lengths[first + i] = length
        for step in range(1, length):
            number = np.uint64(step) << np.uint64(_TRIES)
            type_ = np.uint64(pattern[step % len(pattern)])
            for i in range(n):
                source = np.uint64(at[i]) * np.uint64(n_types) + type_
                begins[i] = offsets[source]
                degrees[i] = offsets[source + np.uint64(1)] - begins[i]
            alive = 0
            for i in range(n):
                alive += degrees[i] > 0
            if alive < n:
                i = 0
                while i < n:
                    if degrees[i] > 0:
                        i += 1
                        continue
                    lengths[row[i]] = step
                    n -= 1
                    at[i], row[i], keys[i] = at[n], row[n], keys[n]
                    begins[i], degrees[i] = begins[n], degrees[n]
            for i in range(n):
                numbers[i] = number
            _draw(keys, numbers, n, draws)
            _draw_neighbours(neighbours, alias, draws, begins, degrees, n, places, at)
            if restart > 0:
                for i in range(n):
                    if _unit(_at(keys[i], number | _RESTART)) < restart:
                        at[i] = starts[row[i]]
            for i in range(n):
                flat[row[i] * np.uint64(length) + np.uint64(step)] = at[i]
        for i in range(first, min(first + _TOGETHER, len(starts))):
            _put_labels(rows, i, lengths[i], label)


@njit(nogil=True, cache=True)
def _put_labels(rows: Any, row: Any, length: Any, label: Any) -> None:
    for j in range(length):
        rows[row, j] = label[rows[row, j]]


@njit(inline="always")
def _bias(weights: Any, thresholds: Any, found: Any, place: Any, x: Any, current: Any, inverse_q: Any) -> Any:
    """What multiplies the weight of the edge at `place`, which leads from current to a node x other than previous.

    found: the place of x in the row of previous, or -1.
    """
    if thresholds is None:
        return 1.0 if found >= 0 else inverse_q
    weight = np.float64(weights[found]) if found >= 0 else 0.0
    if found >= 0 and weight >= thresholds[x]:
        return 1.0
    if weights[place] < thresholds[current]:
        return min(1.0, inverse_q)
    return inverse_q + (1.0 - inverse_q) * (weight / thresholds[x] if found >= 0 else 0.0)


@njit(nogil=True, cache=True)
def _enumerated(
    offsets: Any,
    neighbours: Any,
    weights: Any,
    thresholds: Any,
    previous: Any,
    current: Any,
    inverse_p: Any,
    inverse_q: Any,
    draw: Any,
) -> Any:
    """The place of an edge of current, drawn from the probabilities of all."""
    total, target = 0.0, 0.0
    back, n_back = offsets[previous], offsets[previous + 1] - offsets[previous]
    place = offsets[current]
    for again in range(2):
        target = _unit(draw) * total
        total = 0.0
        for place in range(offsets[current], offsets[current + 1]):
            x = neighbours[place]
            if x == previous:
                bias = inverse_p
            else:
                found = _find(neighbours, back, n_back, x)
                bias = _bias(weights, thresholds, found, place, x, current, inverse_q)
            if weights is not None:
                bias *= np.float64(weights[place])
            total += bias
            if again and target < total:
                return place
    return place


@njit(nogil=True, cache=True)
def _second_order(
    offsets: Any,
    neighbours: Any,
    weights: Any,
    alias: Any,
    strengths: Any,
    thresholds: Any,
    members: Any,
    returns: Any,
    inverse_p: Any,
    inverse_q: Any,
    restart: Any,
    starts: Any,
    key: Any,
    label: Any,
    rows: Any,
    lengths: Any,
) -> None:
    length, n_nodes = rows.shape[1], len(offsets) - 1
    flat = rows.reshape(-1)
    least, most = min(1.0, inverse_q), max(1.0, inverse_q)
    excess = max(0.0, inverse_p - most)
    # Of each walk: its row, its key, the number of its next draw (step and try), where it is and where it was (-1 in
    # the first step), the rows of both in the graph, the mass of all edges from here, and how much of the return's mass
    # is beyond the envelope of all other edges.
    row, keys, numbers = np.empty(_TOGETHER, np.uint64), np.empty(_TOGETHER, np.uint64), np.empty(_TOGETHER, np.uint64)
    current, previous = np.empty(_TOGETHER, np.int32), np.empty(_TOGETHER, np.int32)
    begins, degrees = np.empty(_TOGETHER, np.int64), np.empty(_TOGETHER, np.int64)
    back_begins, back_degrees = np.empty(_TOGETHER, np.int64), np.empty(_TOGETHER, np.int64)
    mass, extra = np.empty(_TOGETHER), np.empty(_TOGETHER)
    # Of each try: its draw, the candidate and its place, the height that decides and the one it must stay below.
    draws, places, drawn = np.empty(_TOGETHER, np.uint64), np.empty(_TOGETHER, np.uint64), np.empty(_TOGETHER, np.int32)
    words, bits = np.empty(_TOGETHER, np.uint64), np.empty(_TOGETHER, np.uint64)
    height, limit = np.empty(_TOGETHER), np.empty(_TOGETHER)
    is_member, moved = np.empty(_TOGETHER, np.bool_), np.empty(_TOGETHER, np.bool_)
    # Candidates that the bits leave open, those to look for in the row of previous, and where they are in it.
    unsure, perhaps = np.empty(_TOGETHER, np.int64), np.empty(_TOGETHER, np.int64)
    find_begins, find_sizes = np.empty(_TOGETHER, np.int64), np.empty(_TOGETHER, np.int64)
    find_xs, found_places = np.empty(_TOGETHER, np.int32), np.empty(_TOGETHER, np.int64)
    places_back = np.empty(_TOGETHER, np.int64)
    one, step_bits, try_mask = np.uint64(1), np.uint64(_TRIES), _RESTART
    n, begun = 0, 0
    while n or begun < len(starts):
        while n < _TOGETHER and begun < len(starts):
            v = starts[begun]
            row[n], keys[n], numbers[n] = np.uint64(begun), _at(key, v), one << step_bits
            current[n], previous[n] = v, -1
            back_begins[n], back_degrees[n], extra[n] = 0, 0, 0.0
            rows[begun, 0] = v
            n += 1
            begun += 1
        for i in range(n):
            v = np.uint64(current[i])
            begins[i] = offsets[v]
            degrees[i] = offsets[v + one] - begins[i]
        if restart > 0:
            for i in range(n):
                while (
                    degrees[i] > 0
                    and not numbers[i] & try_mask
                    and numbers[i] >> step_bits < np.uint64(length)
                    and _unit(_at(keys[i], numbers[i] | _RESTART)) < restart
                ):
                    v = starts[row[i]]
                    flat[row[i] * np.uint64(length) + (numbers[i] >> step_bits)] = v
                    numbers[i] += one << step_bits
                    current[i], previous[i] = v, -1
                    back_begins[i], back_degrees[i], extra[i] = 0, 0, 0.0
                    begins[i], degrees[i] = offsets[v], offsets[v + 1] - offsets[v]
        i = 0
        while i < n:
            step = numbers[i] >> step_bits
            if step < np.uint64(length) and degrees[i] > 0:
                i += 1
                continue
            lengths[row[i]] = step
            _put_labels(rows, row[i], step, label)
            n -= 1
            row[i], keys[i], numbers[i] = row[n], keys[n], numbers[n]
            current[i], previous[i], begins[i], degrees[i] = current[n], previous[n], begins[n], degrees[n]
            back_begins[i], back_degrees[i], extra[i] = back_begins[n], back_degrees[n], extra[n]

        _draw(keys, numbers, n, draws)
        _draw_neighbours(neighbours, alias, draws, begins, degrees, n, places, drawn)
        if strengths is None:
            for i in range(n):
                mass[i] = np.float64(degrees[i])
        else:
            for i in range(n):
                mass[i] = strengths[np.uint64(current[i])]
        for i in range(n):
            envelope = mass[i] * most
            found = _low_unit(draws[i]) * (envelope + extra[i])
            height[i] = found / mass[i] if found < envelope else -1.0  # beyond the envelope: a return
        for i in range(n):
            drawn[i] = previous[i] if height[i] < 0 else drawn[i]
        # Below `least` all are taken: their word is the first one, which is in the cache.
        for i in range(n):
            word, bits[i] = _member_word(back_begins[i], back_degrees[i], n_nodes, drawn[i])
            words[i] = word if height[i] >= least else np.uint64(0)
        for i in range(n):
            is_member[i] = members[words[i]] & bits[i] == bits[i]
        for i in range(n):
            bias = 1.0 if is_member[i] else inverse_q
            bias = inverse_p if drawn[i] == previous[i] else bias
            limit[i] = np.inf if previous[i] < 0 else bias
        # Set bits say "perhaps" in rows with fewer bits than nodes; node2vec+ needs the weight of the edge too.
        n_unsure, n_perhaps = 0, 0
        for i in range(n):
            _, n_own = _own_words(back_begins[i], back_degrees[i])
            undecided = (height[i] >= least) & (drawn[i] != previous[i]) & (previous[i] >= 0)
            if thresholds is None:
                undecided &= is_member[i] & (n_own * 64 < n_nodes)
            unsure[np.uint64(n_unsure)] = i
            n_unsure += undecided
        for j in range(n_unsure):
            i = unsure[j]
            places_back[i] = -1
            perhaps[np.uint64(n_perhaps)] = i
            n_perhaps += is_member[i]
        for j in range(n_perhaps):
            i = perhaps[j]
            find_begins[j], find_sizes[j], find_xs[j] = back_begins[i], back_degrees[i], drawn[i]
        _find_each(neighbours, find_begins, find_sizes, find_xs, n_perhaps, found_places)
        for j in range(n_perhaps):
            places_back[perhaps[j]] = found_places[j]
        for j in range(n_unsure):
            i = unsure[j]
            limit[i] = _bias(weights, thresholds, places_back[i], places[i], drawn[i], current[i], inverse_q)

        for i in range(n):
            accepted = height[i] < limit[i]
            step, tried = numbers[i] >> step_bits, numbers[i] & try_mask
            last = tried + one >= np.uint64(min(degrees[i] + 16, _LAST_TRY))
            if last & (not accepted):
                place = _enumerated(offsets, neighbours, weights, thresholds, previous[i], current[i], inverse_p,
                                    inverse_q, _at(keys[i], numbers[i] + one))  # fmt: skip
                places[i] = np.uint64(place)
                drawn[i] = neighbours[place]
                accepted = True
            x = drawn[i]
            flat[row[i] * np.uint64(length) + step] = x  # a candidate that is refused is written over
            numbers[i] = (step + one) << step_bits if accepted else numbers[i] + one
            back_begins[i] = begins[i] if accepted else back_begins[i]
            back_degrees[i] = degrees[i] if accepted else back_degrees[i]
            previous[i] = current[i] if accepted else previous[i]
            current[i] = x if accepted else current[i]
            moved[i] = accepted
        # The return must be an edge to have mass: it is where edges are not directed, of the weight of the one walked.
        if excess > 0 and returns:
            if weights is None:
                for i in range(n):
                    extra[i] = excess if moved[i] else extra[i]
            else:
                for i in range(n):
                    walked = excess * np.float64(weights[places[i]])
                    extra[i] = walked if moved[i] & (height[i] >= 0) else extra[i]  # below 0: back over the same edge
        elif excess > 0:
            for i in range(n):
                if not moved[i]:
                    continue
                v = np.uint64(current[i])
                back = np.int64(-1)
                if offsets[v + one] > offsets[v]:
                    back = _find(neighbours, offsets[v], offsets[v + one] - offsets[v], previous[i])
                if back < 0:
                    extra[i] = 0.0
                else:
                    extra[i] = excess if weights is None else excess * np.float64(weights[back])


@njit(nogil=True)
def _custom(
    offsets: Any,
    neighbours: Any,
    weights: Any,
    transition: Any,
    restart: Any,
    starts: Any,
    key: Any,
    label: Any,
    rows: Any,
    lengths: Any,
) -> None:
    length = rows.shape[1]
    n_nodes = len(offsets) - 1
    for row in range(len(starts)):
        start = starts[row]
        previous, current = np.int32(-1), start
        walk = _at(key, start)
        rows[row, 0] = label[start]
        lengths[row] = length
        for step in range(1, length):
            number = np.uint64(step) << np.uint64(_TRIES)
            if restart > 0 and _unit(_at(walk, number | _RESTART)) < restart:
                x, previous = start, np.int32(-1)
            else:
                x = np.int64(
                    transition(offsets, neighbours, weights, start, previous, current, step, _at(walk, number))
                )
                previous = current
            if x >= n_nodes or x < -1:
                raise ValueError("transition returned a number that is neither a node nor -1")
            if x < 0:
                lengths[row] = step
                break
            current = np.int32(x)
            rows[row, step] = label[current]


@njit(nogil=True, cache=True)
def _packed(rows: Any, offsets: Any, length: Any) -> Any:
    """Walks of several lengths one behind the other."""
    flat = np.empty(offsets[-1], np.int32)
    for i in range(len(offsets) - 1):
        for j in range(offsets[i + 1] - offsets[i]):
            flat[offsets[i] + j] = rows[i * length + j]
    return flat


# ---- tables -------------------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _alias_tables(offsets: Any, weights: Any) -> Any:
    """uint32 (edges, 2): of each cell of a row the threshold and, counted from the row's begin, the alias."""
    table = np.empty((len(weights), 2), np.uint32)
    for row in range(len(offsets) - 1):
        begin, end = offsets[row], offsets[row + 1]
        n = end - begin
        total = 0.0
        for i in range(begin, end):
            total += np.float64(weights[i])
        mass = np.empty(n)
        small, large = np.empty(n, np.int64), np.empty(n, np.int64)
        n_small, n_large = 0, 0
        for i in range(n):
            mass[i] = np.float64(weights[begin + i]) / total * n
            table[begin + i, 0] = np.uint32(0xFFFFFFFF)
            table[begin + i, 1] = np.uint32(i)
            if mass[i] < 1.0:
                small[n_small] = i
                n_small += 1
            else:
                large[n_large] = i
                n_large += 1
        while n_small and n_large:
            n_small -= 1
            poor, rich = small[n_small], large[n_large - 1]
            table[begin + poor, 0] = np.uint32(mass[poor] * 2.0**32)
            table[begin + poor, 1] = np.uint32(rich)
            mass[rich] -= 1.0 - mass[poor]
            if mass[rich] < 1.0:
                n_large -= 1
                small[n_small] = rich
                n_small += 1
    return table


@njit(nogil=True, cache=True)
def _strengths(offsets: Any, weights: Any) -> Any:
    """float64 (nodes,): the sum of each row."""
    sums = np.zeros(len(offsets) - 1)
    for row in range(len(sums)):
        for i in range(offsets[row], offsets[row + 1]):
            sums[row] += np.float64(weights[i])
    return sums


@njit(nogil=True, cache=True)
def _components(offsets: Any, neighbours: Any) -> Any:
    """int32 (nodes,): the lowest node of each node's component, of a graph that is not directed."""
    root = np.arange(len(offsets) - 1, dtype=np.int32)
    for row in range(len(root)):
        for i in range(offsets[row], offsets[row + 1]):
            if neighbours[i] >= row:
                break  # neighbours rise; the edge comes again in the other row
            a, b = root[row], neighbours[i]
            while root[a] != a:
                root[a] = root[root[a]]
                a = root[a]
            while root[b] != b:
                root[b] = root[root[b]]
                b = root[b]
            root[max(a, b)] = min(a, b)
    for row in range(len(root)):
        root[row] = root[root[row]]
    return root


@njit(nogil=True, cache=True)
def _noise_thresholds(offsets: Any, weights: Any, gamma: Any) -> Any:
    """float64 (nodes,): mean + gamma * standard deviation of each row's weights, 0 or more."""
    found = np.zeros(len(offsets) - 1)
    for row in range(len(found)):
        begin, end = offsets[row], offsets[row + 1]
        if end == begin:
            continue
        mean = 0.0
        for i in range(begin, end):
            mean += np.float64(weights[i])
        mean /= end - begin
        variance = 0.0
        for i in range(begin, end):
            variance += (np.float64(weights[i]) - mean) ** 2
        found[row] = max(0.0, mean + gamma * np.sqrt(variance / (end - begin)))
    return found


@njit(nogil=True, cache=True)
def _by_type(offsets: Any, neighbours: Any, weights: Any, types: Any, n_types: Any) -> Any:
    """Offsets, neighbours and weights of rows that each hold the neighbours of one type: n_types rows for each node."""
    n_nodes = len(offsets) - 1
    begins = np.zeros(n_nodes * n_types + 1, np.int64)
    for row in range(n_nodes):
        for i in range(offsets[row], offsets[row + 1]):
            begins[row * n_types + types[neighbours[i]] + 1] += 1
    for i in range(1, len(begins)):
        begins[i] += begins[i - 1]
    sorted_neighbours = np.empty_like(neighbours)
    sorted_weights: Any = None if weights is None else np.empty_like(weights)
    next_place = begins[:-1].copy()
    for row in range(n_nodes):
        for i in range(offsets[row], offsets[row + 1]):
            group = row * n_types + types[neighbours[i]]
            sorted_neighbours[next_place[group]] = neighbours[i]
            if weights is not None:
                sorted_weights[next_place[group]] = weights[i]
            next_place[group] += 1
    return begins, sorted_neighbours, sorted_weights
