"""Random walks on a graph: the specification of embfast/graphs/walk_kernels.py and csrc/graph/walks.cu."""

from itertools import pairwise

import numpy as np

from embfast.reference.draws import NoiseTable, Purpose, Stream, below, mix64


def bias(graph, previous, current, x, p, q, thresholds=None):
    """The factor on the weight of the edge from current to x for a walk that came from previous.

    node2vec's bias (Grover and Leskovec 2016), or with the nodes' thresholds node2vec+'s (Liu, Hirn and Krishnan 2023).
    """
    if x == previous:
        return 1.0 / p
    common = edge_weight(graph, previous, x)
    if thresholds is None:
        return 1.0 if common > 0 else 1.0 / q
    if common > 0 and common >= thresholds[x]:
        return 1.0
    if edge_weight(graph, current, x) < thresholds[current]:
        return min(1.0, 1.0 / q)
    return 1.0 / q + (1.0 - 1.0 / q) * (common / thresholds[x] if common > 0 else 0.0)


def edge_weight(graph, a, b):
    """The weight of the edge from a to b; 0 if there is none."""
    row = slice(graph.offsets[a], graph.offsets[a + 1])
    place = np.flatnonzero(graph.neighbours[row] == b)
    if not len(place):
        return 0.0
    return 1.0 if graph.weights is None else float(graph.weights[row][place[0]])


def noise_thresholds(graph, gamma):
    """node2vec+: max(0, mean + gamma * standard deviation) of each node's weights."""
    rows = [graph.weights[a:b].astype(np.float64) for a, b in pairwise(graph.offsets)]
    return np.array([max(0.0, row.mean() + gamma * row.std()) if len(row) else 0.0 for row in rows])


def transition_probabilities(graph, previous, current, p, q, thresholds=None):
    """float64 (degree,): the probability of each neighbour of current; previous = -1 in the first step of a walk."""
    row = slice(graph.offsets[current], graph.offsets[current + 1])
    mass = np.ones(row.stop - row.start) if graph.weights is None else graph.weights[row].astype(np.float64)
    if previous >= 0:
        mass = mass * [bias(graph, previous, current, x, p, q, thresholds) for x in graph.neighbours[row]]
    return mass / mass.sum()


def candidate(draw, degree, weights):
    """The place in a row that a draw picks, by weight."""
    cell = int(below(draw, degree))
    if weights is None:
        return cell
    table = NoiseTable(weights.astype(np.float64))
    coin = int(mix64(draw)) & 0xFFFFFFFF
    return cell if coin < table.thresholds[cell] else int(table.aliases[cell])


def random_walk(graph, start, repetition, *, length, p=1.0, q=1.0, restart=0.0, thresholds=None, types=None,
                metapath=None, seed=0):  # fmt: skip
    """The walk that graphs.walks.Walks starts from a node in a repetition: a list of nodes."""
    stream = Stream(seed, repetition, Purpose.WALK)
    walk = Stream.__new__(Stream)
    walk.key = stream(start)
    least, most = min(1.0, 1.0 / q), max(1.0, 1.0 / q)
    excess = max(0.0, 1.0 / p - most)
    first_order = p == q == 1
    nodes, previous = [start], -1
    for step in range(1, length):
        current = nodes[-1]
        row = slice(graph.offsets[current], graph.offsets[current + 1])
        neighbours = graph.neighbours[row]
        weights = None if graph.weights is None else graph.weights[row]
        if metapath is not None:
            allowed = types[neighbours] == metapath[step % (len(metapath) - 1)]
            neighbours, weights = neighbours[allowed], None if weights is None else weights[allowed]
        degree = len(neighbours)
        if degree == 0:
            break
        number = step << 24
        if restart > 0 and int(walk(number | 0xFFFFFF)) >> 11 < restart * 2.0**53:
            previous = -1
            nodes.append(start)
            continue
        if previous < 0 or first_order:
            previous = current
            nodes.append(int(neighbours[candidate(walk(number), degree, weights)]))
            continue
        mass = np.ones(degree) if graph.weights is None else graph.weights[row].astype(np.float64)
        total = float(np.cumsum(mass)[-1])
        extra = excess * edge_weight(graph, current, previous)
        tries = min(degree + 16, 1 << 16)
        chosen = None
        for k in range(tries):
            draw = walk(number | k)
            height = (int(draw) & 0xFFFFFFFF) * 2.0**-32 * (total * most + extra)
            if height >= total * most:
                chosen = previous
                break
            x = int(neighbours[candidate(draw, degree, weights)])
            height /= total
            if x == previous:
                accepted = height < 1.0 / p
            else:
                accepted = height < least or height < bias(graph, previous, current, x, p, q, thresholds)
            if accepted:
                chosen = x
                break
        if chosen is None:
            weighed = np.cumsum([m * bias(graph, previous, current, x, p, q, thresholds)
                                 for m, x in zip(mass, neighbours, strict=True)])  # fmt: skip
            target = (int(walk(number | tries)) >> 11) * 2.0**-53 * weighed[-1]
            chosen = int(neighbours[np.searchsorted(weighed, target, "right")])
        previous = current
        nodes.append(chosen)
    return nodes
