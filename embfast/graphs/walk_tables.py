"""Numba kernels that make the tables of random walks: alias tables, sums of weights, thresholds, rows by type.

Sources: alias tables (Walker 1977; Vose 1991), node2vec+'s thresholds (Liu, Hirn and Krishnan 2023, arXiv:2109.08031).
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def alias_tables(offsets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """uint32 (entries, 2): each cell's threshold, and its alias relative to the beginning of the row."""
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
def strengths(offsets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 (nodes,): the sum of each row's weights."""
    sums = np.zeros(len(offsets) - 1)
    for row in range(len(sums)):
        for i in range(offsets[row], offsets[row + 1]):
            sums[row] += np.float64(weights[i])
    return sums


@njit(nogil=True, cache=True)
def components(offsets: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """int32 (nodes,): the lowest node in each node's component; for undirected graphs only."""
    root = np.arange(len(offsets) - 1, dtype=np.int32)
    for row in range(len(root)):
        for i in range(offsets[row], offsets[row + 1]):
            if neighbours[i] >= row:
                break  # neighbours ascend; the other row has this edge too
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
def noise_thresholds(offsets: np.ndarray, weights: np.ndarray, gamma: float) -> np.ndarray:
    """float64 (nodes,): max(0, mean + gamma * standard deviation) of each row's weights."""
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
def rows_by_type(
    offsets: np.ndarray, neighbours: np.ndarray, weights: np.ndarray | None, types: np.ndarray, n_types: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Offsets, neighbours and weights with n_types rows per node, each of which holds the neighbours of one type."""
    n_nodes = len(offsets) - 1
    begins = np.zeros(n_nodes * n_types + 1, np.int64)
    for row in range(n_nodes):
        for i in range(offsets[row], offsets[row + 1]):
            begins[row * n_types + types[neighbours[i]] + 1] += 1
    for i in range(1, len(begins)):
        begins[i] += begins[i - 1]
    sorted_neighbours = np.empty_like(neighbours)
    sorted_weights = None if weights is None else np.empty_like(weights)
    next_place = begins[:-1].copy()
    for row in range(n_nodes):
        for i in range(offsets[row], offsets[row + 1]):
            group = row * n_types + types[neighbours[i]]
            sorted_neighbours[next_place[group]] = neighbours[i]
            if weights is not None:
                sorted_weights[next_place[group]] = weights[i]
            next_place[group] += 1
    return begins, sorted_neighbours, sorted_weights
