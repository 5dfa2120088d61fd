"""Random walks on a Graph, compiled by Numba: uniform, weighted, node2vec's, node2vec+'s, with restarts, or your own.

Sources: node2vec (Grover and Leskovec 2016, arXiv:1607.00653), its rejection sampling (KnightKing, Yang et al. 2019),
node2vec+ (Liu, Hirn and Krishnan 2023, arXiv:2109.08031), alias tables (Walker 1977; Vose 1991).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from embfast import kernels
from embfast.graph import Graph

try:
    from numba import njit
except ImportError:
    raise ImportError("random walks need numba: pip install embfast[graph]") from None

__all__ = ["Walks", "next_draw"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WALK = np.uint64(16)  # Purpose::walk of csrc/random.h
_TRIES = 24  # bits of a draw's number that count the tries of one step
_RESTART = np.uint64((1 << _TRIES) - 1)  # the try whose draw says whether a step goes back to the start
_LAST_TRY = 1 << 16
_TOGETHER = 64  # walks that take a step one after the other, so that the memory works on all of them at once
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

    Exact: a candidate is drawn by weight and accepted by its bias; what 1/p has above all other biases is drawn apart.
    A step that refuses as many candidates as the node has edges, and 16, is drawn from the enumerated probabilities.
    Memory: 8 bytes a node, 8 an entry of neighbours for the alias tables of a weighted graph, and no table of pairs.
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
        seed: int = 0,
    ) -> None:
        if plus and graph.weights is None:
            raise ValueError("plus=True needs a graph with weights; this one has none")
        self.graph, self.length, self.per_node, self.seed = graph, length, per_node, seed
        self.p, self.q, self.restart, self.plus, self.transition = float(p), float(q), float(restart), plus, transition
        self.starts = np.flatnonzero(np.diff(graph.offsets)).astype(np.int32)
        if not len(self.starts):
            raise ValueError("the graph has no edge to walk on")
        self.label = np.arange(len(graph), dtype=np.int32)  # the number that stands for a node in what `read` returns
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int32))
        self._alias = self._strengths = self._thresholds = None
        if graph.weights is not None and transition is None:
            self._alias = _alias_tables(graph.offsets, graph.weights)
            self._strengths = _strengths(graph.offsets, graph.weights)
            if plus:
                self._thresholds = _noise_thresholds(graph.offsets, graph.weights, float(gamma))

    def __len__(self) -> int:
        """Walks in an epoch."""
        return self.per_node * len(self.starts)

    @property
    def first_order(self) -> bool:
        """Whether a step depends on nothing but the node that it leaves."""
        return self.p == self.q == 1 and self.transition is None

    def read(self, epoch: int, first: int, last: int, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Walks first..last of an epoch: labels, int32 (n,), and offsets, int64 (last - first + 1,), as in a Corpus."""
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

    def _walk(
        self, repetition: int, place: int, rows: np.ndarray, lengths: np.ndarray, begin: int, end: int, threads: int
    ) -> None:
        """Fills rows begin..end with the walks of a repetition, from that place of its order on."""
        if self._order[0] != repetition:
            self._order = (repetition, self.starts[kernels.random_order(len(self.starts), self.seed, repetition)])
        starts = self._order[1][place : place + end - begin]
        key = np.uint64(_stream(np.uint64(self.seed), np.uint64(repetition)))  # numba gives a Python int
        graph = self.graph

        def piece(lo: int, hi: int) -> None:
            shared = (starts[lo:hi], key, self.label, rows[begin + lo : begin + hi], lengths[begin + lo : begin + hi])
            if self.transition is not None:
                _custom(graph.offsets, graph.neighbours, graph.weights, self.transition, self.restart, *shared)
            elif self.first_order:
                _first_order(graph.offsets, graph.neighbours, self._alias, self.restart, *shared)
            else:
                _second_order(
                    graph.offsets,
                    graph.neighbours,
                    graph.weights,
                    self._alias,
                    self._strengths,
                    self._thresholds,
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
# The functions of csrc/random.h; reference.py has them too.


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
def _below(draw: Any, n: Any) -> Any:
    return np.int64(((draw >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@njit(inline="always")
def _low_unit(draw: Any) -> Any:
    """The low 32 bits, which _below does not look at, as a number in [0, 1)."""
    return np.float64(draw & np.uint64(0xFFFFFFFF)) * _TO_UNIT


@njit(inline="always")
def _unit(draw: Any) -> Any:
    return np.float64(draw >> np.uint64(11)) * 2.0**-53


@njit
def next_draw(draw: Any) -> Any:
    """Another random uint64, for transition functions that need more than one."""
    return _mix(np.uint64(draw) + _GOLDEN)


# ---- steps --------------------------------------------------------------------------------------------------------


@njit(inline="always")
def _find(neighbours: Any, begin: Any, n: Any, x: Any) -> Any:
    """Where x stands among n > 0 sorted neighbours from begin on, or -1."""
    while n > 1:
        half = n >> 1
        begin = begin + half if neighbours[begin + half - 1] < x else begin
        n -= half
    return begin if neighbours[begin] == x else -1


@njit(inline="always")
def _candidate(alias: Any, begin: Any, n: Any, draw: Any) -> Any:
    """The place of a neighbour, drawn by weight."""
    cell = begin + _below(draw, n)
    if alias is not None and np.uint32(_mix(draw) & np.uint64(0xFFFFFFFF)) >= np.uint32(alias[cell, 0]):
        cell = begin + alias[cell, 1]
    return cell


@njit(nogil=True, cache=True)
def _first_order(
    offsets: Any, neighbours: Any, alias: Any, restart: Any, starts: Any, key: Any, label: Any, rows: Any, lengths: Any
) -> None:
    length = rows.shape[1]
    at = np.empty(_TOGETHER, np.int32)
    keys = np.empty(_TOGETHER, np.uint64)
    for first in range(0, len(starts), _TOGETHER):
        n = min(_TOGETHER, len(starts) - first)
        for i in range(n):
            at[i] = starts[first + i]
            keys[i] = _at(key, at[i])
            rows[first + i, 0] = label[at[i]]
            lengths[first + i] = length
        for step in range(1, length):
            number = np.uint64(step) << np.uint64(_TRIES)
            for i in range(n):
                v = at[i]
                if v < 0:
                    continue
                begin = offsets[v]
                degree = offsets[v + 1] - begin
                if degree == 0:
                    lengths[first + i] = step
                    at[i] = -1
                    continue
                if restart > 0 and _unit(_at(keys[i], number | _RESTART)) < restart:
                    x = starts[first + i]
                else:
                    x = neighbours[_candidate(alias, begin, degree, _at(keys[i], number))]
                at[i] = x
                rows[first + i, step] = label[x]


@njit(inline="always")
def _bias(
    offsets: Any,
    neighbours: Any,
    weights: Any,
    thresholds: Any,
    previous: Any,
    current: Any,
    place: Any,
    inverse_q: Any,
) -> Any:
    """What multiplies the weight of the edge at `place`, which leads from current to a node other than previous."""
    x = neighbours[place]
    begin = offsets[previous]
    found = _find(neighbours, begin, offsets[previous + 1] - begin, x)
    if thresholds is None:
        return 1.0 if found >= 0 else inverse_q
    weight = np.float64(weights[found]) if found >= 0 else 0.0
    if found >= 0 and weight >= thresholds[x]:
        return 1.0
    if weights[place] < thresholds[current]:
        return min(1.0, inverse_q)
    return inverse_q + (1.0 - inverse_q) * (weight / thresholds[x] if found >= 0 else 0.0)


@njit(nogil=True, cache=True)
def _second_order(
    offsets: Any,
    neighbours: Any,
    weights: Any,
    alias: Any,
    strengths: Any,
    thresholds: Any,
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
    length = rows.shape[1]
    least, most = min(1.0, inverse_q), max(1.0, inverse_q)
    excess = max(0.0, inverse_p - most)
    for row in range(len(starts)):
        start = starts[row]
        previous, current = np.int32(-1), start
        walk = _at(key, start)
        rows[row, 0] = label[start]
        lengths[row] = length
        for step in range(1, length):
            begin = offsets[current]
            degree = offsets[current + 1] - begin
            if degree == 0:
                lengths[row] = step
                break
            number = np.uint64(step) << np.uint64(_TRIES)
            if restart > 0 and _unit(_at(walk, number | _RESTART)) < restart:
                previous, current = np.int32(-1), start
                rows[row, step] = label[start]
                continue
            if previous < 0:
                x = neighbours[_candidate(alias, begin, degree, _at(walk, number))]
                previous, current = current, x
                rows[row, step] = label[x]
                continue
            mass = np.float64(degree)
            if strengths is not None:
                mass = strengths[current]
            extra = excess  # mass of the return beyond the envelope of all other edges
            if excess > 0 and (weights is not None or not returns):
                back = _find(neighbours, begin, degree, previous)
                if back < 0:
                    extra = 0.0
                elif weights is not None:
                    extra = excess * np.float64(weights[back])
            envelope = mass * most
            tries = min(degree + 16, _LAST_TRY)
            x = np.int32(-1)
            for k in range(tries):
                draw = _at(walk, number | np.uint64(k))
                height = _low_unit(draw) * (envelope + extra)
                if height >= envelope:
                    x = previous
                    break
                place = _candidate(alias, begin, degree, draw)
                y = neighbours[place]
                height /= mass
                if y == previous:
                    accepted = height < inverse_p
                elif height < least:
                    accepted = True
                else:
                    accepted = height < _bias(
                        offsets, neighbours, weights, thresholds, previous, current, place, inverse_q
                    )
                if accepted:
                    x = y
                    break
            if x < 0:
                total = 0.0
                target = 0.0
                for again in range(2):
                    if again:
                        target = _unit(_at(walk, number | np.uint64(tries))) * total
                    total = 0.0
                    for place in range(begin, begin + degree):
                        if neighbours[place] == previous:
                            bias = inverse_p
                        else:
                            bias = _bias(offsets, neighbours, weights, thresholds, previous, current, place, inverse_q)
                        if weights is not None:
                            bias *= np.float64(weights[place])
                        total += bias
                        if again and target < total:
                            x = neighbours[place]
                            break
            previous, current = current, x
            rows[row, step] = label[x]


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
