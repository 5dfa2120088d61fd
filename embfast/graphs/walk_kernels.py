"""Numba kernels of random walks: the random numbers, the table of members, and the steps of first and second order.

Walks take turns: a group makes one try each, then the next try each. Every pass over the group does one thing, so that
arithmetic becomes vector instructions and the processor has many reads from memory in flight.

Sources: node2vec (Grover and Leskovec 2016, arXiv:1607.00653), its rejection sampling (KnightKing, Yang et al. 2019),
node2vec+ (Liu, Hirn and Krishnan 2023, arXiv:2109.08031), alias tables (Walker 1977; Vose 1991).

Over 500 lines: Numba checks a cached function against the date of its own file alone, so functions that call each
other stand in one file. Numba also drops branches on a table that is None only if the table is an argument: functions
that branch on one take it as an argument beside WalkTables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

try:
    from numba import njit
except ImportError:
    raise ImportError("random walks need numba: pip install embfast[graph]") from None

GROUP = 512  # walks that take turns

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WALK = np.uint64(16)  # Purpose::walk of csrc/core/random.h
_TRY_BITS = np.uint64(24)  # low bits of a draw's number, which count the tries of one step
_RESTART = np.uint64((1 << 24) - 1)  # the try whose draw decides about a restart; also the mask of the tries
_LAST_TRY = 1 << 16
_LOW = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)

# For functions that only kernels call. _nrt=False: such a function allocates nothing and counts no references; counting
# those of the arrays in Group and Tries made second-order walks 5 % slower, and reads of 16 walks 2.5 times slower.
# forceinline=True makes node2vec+ 8 % slower.
_step = njit(_nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


class WalkTables(NamedTuple):
    """The rows that steps are drawn from, their tables, and the settings; named as in struct WalkJob of walks.cu."""

    offsets: np.ndarray  # int64 (rows + 1,)
    neighbours: np.ndarray  # int32 (entries,)
    weights: np.ndarray | None  # float32 (entries,); None: all 1, or only the alias table is needed
    alias: np.ndarray | None  # uint32 (entries, 2): threshold, and alias relative to the beginning of its row
    strengths: np.ndarray | None  # float64 (nodes,): sum of each node's weights
    thresholds: np.ndarray | None  # float64 (nodes,): node2vec+
    members: np.ndarray | None  # uint64: see member_word
    pattern: np.ndarray  # int64: the metapath's types; step s uses pattern[s % len(pattern)]
    n_types: int  # rows per node
    returns: bool  # whether each edge also leads back
    inverse_p: float
    inverse_q: float
    restart: float


class Job(NamedTuple):
    """Walks to draw in one call."""

    starts: np.ndarray  # int32 (walks,): start nodes
    key: np.uint64  # key of the repetition's random numbers
    label: np.ndarray  # int32 (nodes,): the number written for each node
    rows: np.ndarray  # int32 (walks, length), written
    lengths: np.ndarray  # int64 (walks,), written


class Group(NamedTuple):
    """State of the walks that take turns: entry i of each array belongs to the same walk."""

    row: np.ndarray  # uint64: row of the job
    keys: np.ndarray  # uint64: key of the walk's random numbers
    numbers: np.ndarray  # uint64: number of the next draw, step << 24 | try
    current: np.ndarray  # int32: node
    previous: np.ndarray  # int32: node before it; -1 in the first step
    begins: np.ndarray  # int64: where the row of current begins
    degrees: np.ndarray  # int64: its length
    back_begins: np.ndarray  # int64: where the row of previous begins
    back_degrees: np.ndarray  # int64: its length
    extra: np.ndarray  # float64: mass of the return above the envelope of all other edges


class Tries(NamedTuple):
    """The current try of each walk of a group."""

    draws: np.ndarray  # uint64
    places: np.ndarray  # uint64: entry of the candidate in neighbours
    drawn: np.ndarray  # int32: candidate node
    height: np.ndarray  # float64: accepted if below limit; -1: a return drawn from the mass `extra`
    limit: np.ndarray  # float64
    mass: np.ndarray  # float64: sum of the weights of current
    words: np.ndarray  # uint64: word in the table of members
    bits: np.ndarray  # uint64: bits to test in it
    is_member: np.ndarray  # bool: all of them are set
    moved: np.ndarray  # bool: the try was accepted


class Search(NamedTuple):
    """Working space for candidates that the table of members does not decide."""

    unsure: np.ndarray  # int64: walks whose limit the bits do not decide
    perhaps: np.ndarray  # int64: those of them to search the row of previous for
    begins: np.ndarray  # int64: the part of the row that is searched
    sizes: np.ndarray  # int64
    xs: np.ndarray  # int32: the node to find
    found: np.ndarray  # int64: its entry, or -1
    places_back: np.ndarray  # int64: the result by walk: entry of the candidate in the row of previous, or -1


# ---- random numbers -------------------------------------------------------------------------------------------------
# The functions of csrc/core/random.h; embfast.reference has them too.


@njit(inline="always")
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(inline="always")
def _at(key: np.uint64, i: np.uint64) -> np.uint64:
    return _mix(key + (np.uint64(i) + np.uint64(1)) * _GOLDEN)


@njit(cache=True)
def stream_key(seed: np.uint64, repetition: np.uint64) -> np.uint64:
    """The key of the random numbers of a repetition's walks."""
    return _mix(_mix(_mix(seed + _GOLDEN) + repetition) + _WALK)


@njit(inline="always")
def _low_unit(draw: np.uint64) -> float:
    """The low 32 bits, on which the candidate's place does not depend, as a number in [0, 1)."""
    return np.float64(draw & _LOW) * 2.0**-32


@njit(inline="always")
def _unit(draw: np.uint64) -> float:
    return np.float64(draw >> np.uint64(11)) * 2.0**-53


@njit
def next_draw(draw: np.uint64) -> np.uint64:
    """Another random uint64, for transition functions that need more than one."""
    return _mix(np.uint64(draw) + _GOLDEN)


# ---- members of a row -----------------------------------------------------------------------------------------------


@njit(inline="always")
def own_words(begin: int, degree: int) -> tuple[int, int]:
    """The first word in the table of members that belongs to this row alone, and the number of such words."""
    first = (begin + np.int64(3)) >> 2
    return first, ((begin + degree) >> 2) - first


@njit(inline="always")
def member_word(begin: int, degree: int, n_nodes: int, x: int) -> tuple[np.uint64, np.uint64]:
    """The word of the table of members, and the bits in it, that are set if x is in the row that begins there.

    The words lie along the rows, 64 bits for four entries. A row that has at least n_nodes bits for itself uses one
    bit per node. Other rows use three hashed bits per node, so that few nodes outside the row find all three set.
    """
    first, n_own = own_words(begin, degree)
    low = np.int64(begin) >> 2
    span = ((begin + degree + np.int64(3)) >> 2) - low
    hashed = np.uint64(x) * _GOLDEN
    three = _bit(hashed >> np.uint64(14)) | _bit(hashed >> np.uint64(20)) | _bit(hashed >> np.uint64(26))
    place = np.uint64(low) + (((hashed >> np.uint64(32)) * np.uint64(span)) >> np.uint64(32))
    each = n_own * 64 >= n_nodes
    return np.uint64(first) + (np.uint64(x) >> np.uint64(6)) if each else place, _bit(np.uint64(x)) if each else three


@njit(inline="always")
def _bit(i: np.uint64) -> np.uint64:
    return np.uint64(1) << (i & np.uint64(63))


@njit(nogil=True, cache=True)
def set_members(offsets: np.ndarray, neighbours: np.ndarray, words: np.ndarray) -> None:
    """Fills the table of members, uint64 (entries // 4 + 1,), which starts as zeros."""
    n_nodes = len(offsets) - 1
    for row in range(n_nodes):
        begin, degree = offsets[row], offsets[row + 1] - offsets[row]
        for i in range(begin, begin + degree):
            word, bits = member_word(begin, degree, n_nodes, neighbours[i])
            words[word] |= bits


@njit(inline="always")
def _find(neighbours: np.ndarray, begin: int, n: int, x: int) -> int:
    """The place of x among n > 0 sorted neighbours from begin on, or -1."""
    while n > 1:
        half = n >> 1
        begin = begin + half if neighbours[begin + half - 1] < x else begin
        n -= half
    return begin if neighbours[begin] == x else -1


@_step
def _find_each(
    neighbours: np.ndarray, begins: np.ndarray, sizes: np.ndarray, xs: np.ndarray, n: int, places: np.ndarray
) -> None:
    """_find for many, all halved together, so that their reads overlap; begins and sizes are overwritten."""
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


# ---- candidates -----------------------------------------------------------------------------------------------------


@_step
def _draw(keys: np.ndarray, numbers: np.ndarray, n: int, draws: np.ndarray) -> None:
    for i in range(n):
        draws[i] = _at(keys[i], numbers[i])


@_step
def _draw_cells(draws: np.ndarray, begins: np.ndarray, degrees: np.ndarray, n: int, places: np.ndarray) -> None:
    for i in range(n):
        places[i] = np.uint64(begins[i]) + (((draws[i] >> np.uint64(32)) * np.uint64(degrees[i])) >> np.uint64(32))


@_step
def _draw_neighbours(
    neighbours: np.ndarray,
    alias: np.ndarray | None,
    draws: np.ndarray,
    begins: np.ndarray,
    degrees: np.ndarray,
    n: int,
    places: np.ndarray,
    drawn: np.ndarray,
) -> None:
    """Draws a neighbour for each walk, by weight, and its place."""
    _draw_cells(draws, begins, degrees, n, places)
    if alias is not None:
        for i in range(n):
            coin = np.uint32(_mix(draws[i]) & _LOW)
            cell = places[i]
            own = coin < alias[cell, 0]
            places[i] = cell if own else np.uint64(begins[i]) + np.uint64(alias[cell, 1])
    for i in range(n):
        drawn[i] = neighbours[places[i]]


@_step
def _put_labels(rows: np.ndarray, row: int, length: int, label: np.ndarray) -> None:
    for j in range(length):
        rows[row, j] = label[rows[row, j]]


# ---- first order ----------------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def walk_first_order(tables: WalkTables, job: Job) -> None:
    """Walks whose steps depend on the current node alone. Node v has n_types rows; step s is drawn from the row for
    type pattern[s % len(pattern)]."""
    offsets, pattern, n_types, restart = tables.offsets, tables.pattern, tables.n_types, tables.restart
    neighbours, alias = tables.neighbours, tables.alias
    starts, key, rows, lengths = job.starts, job.key, job.rows, job.lengths
    length = rows.shape[1]
    flat = rows.reshape(-1)
    at, row = np.empty(GROUP, np.int32), np.empty(GROUP, np.uint64)
    keys, numbers = np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64)
    draws, places = np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64)
    begins, degrees = np.empty(GROUP, np.int64), np.empty(GROUP, np.int64)
    for first in range(0, len(starts), GROUP):
        n = min(GROUP, len(starts) - first)
        for i in range(n):
            at[i] = starts[first + i]
            row[i] = np.uint64(first + i)
            keys[i] = _at(key, at[i])
            flat[(first + i) * length] = at[i]
            lengths[first + i] = length
        for step in range(1, length):
            number = np.uint64(step) << _TRY_BITS
            type_ = np.uint64(pattern[step % len(pattern)])
            for i in range(n):
                source = np.uint64(at[i]) * np.uint64(n_types) + type_
                begins[i] = offsets[source]
                degrees[i] = offsets[source + _ONE] - begins[i]
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
        for i in range(first, min(first + GROUP, len(starts))):
            _put_labels(rows, i, lengths[i], job.label)


# ---- second order ---------------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def walk_second_order(tables: WalkTables, job: Job) -> None:
    """node2vec's and node2vec+'s walks, by rejection."""
    group, tries, search = _new_group(), _new_tries(), _new_search()
    n, begun = 0, 0
    while n or begun < len(job.starts):
        n, begun = _begin_walks(tables.offsets, job, group, n, begun)
        if tables.restart > 0:
            _restart_walks(tables, job, group, n)
        n = _end_walks(job, group, n)
        _draw_candidates(tables, group, tries, n)
        _set_limits(tables, group, tries, n)
        _search_unsure(tables, tables.weights, tables.thresholds, group, tries, search, n)
        _take_steps(tables, job, group, tries, n)
        _set_return_mass(tables, tables.weights, group, tries, n)


@njit(inline="always")
def _new_group() -> Group:
    return Group(
        np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64),
        np.empty(GROUP, np.int32), np.empty(GROUP, np.int32),
        np.empty(GROUP, np.int64), np.empty(GROUP, np.int64), np.empty(GROUP, np.int64), np.empty(GROUP, np.int64),
        np.empty(GROUP, np.float64),
    )  # fmt: skip


@njit(inline="always")
def _new_tries() -> Tries:
    return Tries(
        np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64), np.empty(GROUP, np.int32),
        np.empty(GROUP, np.float64), np.empty(GROUP, np.float64), np.empty(GROUP, np.float64),
        np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64), np.empty(GROUP, np.bool_), np.empty(GROUP, np.bool_),
    )  # fmt: skip


@njit(inline="always")
def _new_search() -> Search:
    return Search(
        np.empty(GROUP, np.int64), np.empty(GROUP, np.int64), np.empty(GROUP, np.int64), np.empty(GROUP, np.int64),
        np.empty(GROUP, np.int32), np.empty(GROUP, np.int64), np.empty(GROUP, np.int64),
    )  # fmt: skip


@_step
def _begin_walks(offsets: np.ndarray, job: Job, group: Group, n: int, begun: int) -> tuple[int, int]:
    """Fills the group with walks not begun yet and looks up each walk's row of neighbours."""
    starts, rows = job.starts, job.rows
    current, begins, degrees = group.current, group.begins, group.degrees
    while n < GROUP and begun < len(starts):
        v = starts[begun]
        group.row[n], group.keys[n], group.numbers[n] = np.uint64(begun), _at(job.key, v), _ONE << _TRY_BITS
        current[n], group.previous[n] = v, -1
        group.back_begins[n], group.back_degrees[n], group.extra[n] = 0, 0, 0.0
        rows[begun, 0] = v
        n += 1
        begun += 1
    for i in range(n):
        v = np.uint64(current[i])
        begins[i] = offsets[v]
        degrees[i] = offsets[v + _ONE] - begins[i]
    return n, begun


@_step
def _restart_walks(tables: WalkTables, job: Job, group: Group, n: int) -> None:
    """Takes walks back to their start with probability `restart` per step; several times in a row if so drawn."""
    offsets, restart, starts, rows = tables.offsets, tables.restart, job.starts, job.rows
    row, keys, numbers, degrees = group.row, group.keys, group.numbers, group.degrees
    length = np.uint64(rows.shape[1])
    for i in range(n):
        while (
            degrees[i] > 0
            and not numbers[i] & _RESTART
            and numbers[i] >> _TRY_BITS < length
            and _unit(_at(keys[i], numbers[i] | _RESTART)) < restart
        ):
            v = starts[row[i]]
            rows[row[i], numbers[i] >> _TRY_BITS] = v
            numbers[i] += _ONE << _TRY_BITS
            group.current[i], group.previous[i] = v, -1
            group.back_begins[i], group.back_degrees[i], group.extra[i] = 0, 0, 0.0
            group.begins[i], degrees[i] = offsets[v], offsets[v + 1] - offsets[v]


@_step
def _end_walks(job: Job, group: Group, n: int) -> int:
    """Removes walks that are complete or stand in a dead end; returns the size of the group."""
    row, keys, numbers, degrees = group.row, group.keys, group.numbers, group.degrees
    current, previous, begins = group.current, group.previous, group.begins
    back_begins, back_degrees, extra = group.back_begins, group.back_degrees, group.extra
    length = np.uint64(job.rows.shape[1])
    i = 0
    while i < n:
        step = numbers[i] >> _TRY_BITS
        if step < length and degrees[i] > 0:
            i += 1
            continue
        job.lengths[row[i]] = step
        _put_labels(job.rows, row[i], step, job.label)
        n -= 1
        row[i], keys[i], numbers[i] = row[n], keys[n], numbers[n]
        current[i], previous[i], begins[i], degrees[i] = current[n], previous[n], begins[n], degrees[n]
        back_begins[i], back_degrees[i], extra[i] = back_begins[n], back_degrees[n], extra[n]
    return n


@_step
def _sum_weights(
    strengths: np.ndarray | None, current: np.ndarray, degrees: np.ndarray, n: int, mass: np.ndarray
) -> None:
    if strengths is None:
        for i in range(n):
            mass[i] = np.float64(degrees[i])
    else:
        for i in range(n):
            mass[i] = strengths[np.uint64(current[i])]


@_step
def _draw_candidates(tables: WalkTables, group: Group, tries: Tries, n: int) -> None:
    """Draws a candidate by weight for each walk, and the height that decides whether it is accepted.

    The heights are uniform under the envelope, max(1, 1/q) for every edge. If 1/p is larger, its excess is sampled
    separately: a draw beyond the envelope is a return, of height -1.
    """
    previous, extra = group.previous, group.extra
    draws, drawn, mass, height = tries.draws, tries.drawn, tries.mass, tries.height
    most = max(1.0, tables.inverse_q)
    _draw(group.keys, group.numbers, n, draws)
    _draw_neighbours(tables.neighbours, tables.alias, draws, group.begins, group.degrees, n, tries.places, drawn)
    _sum_weights(tables.strengths, group.current, group.degrees, n, mass)
    for i in range(n):
        envelope = mass[i] * most
        found = _low_unit(draws[i]) * (envelope + extra[i])
        height[i] = found / mass[i] if found < envelope else -1.0
    for i in range(n):
        drawn[i] = previous[i] if height[i] < 0 else drawn[i]


@_step
def _set_limits(tables: WalkTables, group: Group, tries: Tries, n: int) -> None:
    """The bias of each candidate: infinite in the first step, 1/p for the node before, 1 for its neighbours, 1/q."""
    members, n_nodes = tables.members, len(tables.offsets) - 1
    inverse_p, inverse_q = tables.inverse_p, tables.inverse_q
    least = min(1.0, inverse_q)
    previous, back_begins, back_degrees = group.previous, group.back_begins, group.back_degrees
    drawn, height, limit = tries.drawn, tries.height, tries.limit
    words, bits, is_member = tries.words, tries.bits, tries.is_member
    # Candidates below `least` are always accepted: they read the first word, which is in the cache.
    for i in range(n):
        word, bits[i] = member_word(back_begins[i], back_degrees[i], n_nodes, drawn[i])
        words[i] = word if height[i] >= least else np.uint64(0)
    for i in range(n):
        is_member[i] = members[words[i]] & bits[i] == bits[i]
    for i in range(n):
        bias = 1.0 if is_member[i] else inverse_q
        bias = inverse_p if drawn[i] == previous[i] else bias
        limit[i] = np.inf if previous[i] < 0 else bias


@_step
def _search_unsure(
    tables: WalkTables,
    weights: np.ndarray | None,
    thresholds: np.ndarray | None,
    group: Group,
    tries: Tries,
    search: Search,
    n: int,
) -> None:
    """The bias of candidates that the bits do not decide: set bits mean "perhaps" in rows with fewer bits than nodes,
    and node2vec+ needs the weight of the edge."""
    n_nodes, inverse_q = len(tables.offsets) - 1, tables.inverse_q
    least = min(1.0, inverse_q)
    current, previous = group.current, group.previous
    back_begins, back_degrees = group.back_begins, group.back_degrees
    drawn, places, height, limit, is_member = tries.drawn, tries.places, tries.height, tries.limit, tries.is_member
    unsure, perhaps, places_back = search.unsure, search.perhaps, search.places_back
    begins, sizes, xs, found = search.begins, search.sizes, search.xs, search.found
    n_unsure, n_perhaps = 0, 0
    for i in range(n):
        _, n_own = own_words(back_begins[i], back_degrees[i])
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
        begins[j], sizes[j], xs[j] = back_begins[i], back_degrees[i], drawn[i]
    _find_each(tables.neighbours, begins, sizes, xs, n_perhaps, found)
    for j in range(n_perhaps):
        places_back[perhaps[j]] = found[j]
    for j in range(n_unsure):
        i = unsure[j]
        limit[i] = _bias(weights, thresholds, inverse_q, places_back[i], places[i], drawn[i], current[i])


@_step
def _take_steps(tables: WalkTables, job: Job, group: Group, tries: Tries, n: int) -> None:
    """Moves walks whose candidate is accepted. After degree + 16 rejections the exact distribution is enumerated, so
    the cost of a step is bounded for any p and q."""
    neighbours, rows = tables.neighbours, job.rows
    row, keys, numbers, current, previous = group.row, group.keys, group.numbers, group.current, group.previous
    begins, degrees, back_begins, back_degrees = group.begins, group.degrees, group.back_begins, group.back_degrees
    places, drawn, height, limit, moved = tries.places, tries.drawn, tries.height, tries.limit, tries.moved
    for i in range(n):
        accepted = height[i] < limit[i]
        step, tried = numbers[i] >> _TRY_BITS, numbers[i] & _RESTART
        last = tried + _ONE >= np.uint64(min(degrees[i] + 16, _LAST_TRY))
        if last & (not accepted):
            place = _enumerated(tables, tables.weights, tables.thresholds, previous[i], current[i],
                                _at(keys[i], numbers[i] + _ONE))  # fmt: skip
            places[i] = np.uint64(place)
            drawn[i] = neighbours[place]
            accepted = True
        x = drawn[i]
        rows[row[i], step] = x  # a rejected candidate is overwritten later
        numbers[i] = (step + _ONE) << _TRY_BITS if accepted else numbers[i] + _ONE
        back_begins[i] = begins[i] if accepted else back_begins[i]
        back_degrees[i] = degrees[i] if accepted else back_degrees[i]
        previous[i] = current[i] if accepted else previous[i]
        current[i] = x if accepted else current[i]
        moved[i] = accepted


@_step
def _set_return_mass(tables: WalkTables, weights: np.ndarray | None, group: Group, tries: Tries, n: int) -> None:
    """The mass of the return above the envelope, for walks that moved: 0 unless an edge leads back."""
    offsets, neighbours = tables.offsets, tables.neighbours
    current, previous, extra = group.current, group.previous, group.extra
    places, height, moved = tries.places, tries.height, tries.moved
    excess = max(0.0, tables.inverse_p - max(1.0, tables.inverse_q))
    if excess <= 0:
        return
    if tables.returns:  # over the edge just walked, which has the same weight in both directions
        if weights is None:
            for i in range(n):
                extra[i] = excess if moved[i] else extra[i]
        else:
            for i in range(n):
                walked = excess * np.float64(weights[places[i]])
                extra[i] = walked if moved[i] & (height[i] >= 0) else extra[i]  # below 0: back over the same edge
        return
    for i in range(n):
        if not moved[i]:
            continue
        v = np.uint64(current[i])
        back = np.int64(-1)
        if offsets[v + _ONE] > offsets[v]:
            back = _find(neighbours, offsets[v], offsets[v + _ONE] - offsets[v], previous[i])
        if back < 0:
            extra[i] = 0.0
        else:
            extra[i] = excess if weights is None else excess * np.float64(weights[back])


@njit(inline="always")
def _bias(
    weights: np.ndarray | None,
    thresholds: np.ndarray | None,
    inverse_q: float,
    found: int,
    place: int,
    x: int,
    current: int,
) -> float:
    """The factor on the weight of the edge at `place`, which leads from current to a node x other than previous.

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


@_step
def _enumerated(
    tables: WalkTables,
    weights: np.ndarray | None,
    thresholds: np.ndarray | None,
    previous: int,
    current: int,
    draw: np.uint64,
) -> int:
    """The place of an edge of current, drawn from the enumerated probabilities."""
    offsets, neighbours = tables.offsets, tables.neighbours
    total, target = 0.0, 0.0
    back, n_back = offsets[previous], offsets[previous + 1] - offsets[previous]
    place = offsets[current]
    for again in range(2):
        target = _unit(draw) * total
        total = 0.0
        for place in range(offsets[current], offsets[current + 1]):
            x = neighbours[place]
            if x == previous:
                bias = tables.inverse_p
            else:
                found = _find(neighbours, back, n_back, x)
                bias = _bias(weights, thresholds, tables.inverse_q, found, place, x, current)
            if weights is not None:
                bias *= np.float64(weights[place])
            total += bias
            if again and target < total:
                return place
    return place


# ---- the user's own transitions -------------------------------------------------------------------------------------


@njit(nogil=True)
def walk_custom(tables: WalkTables, transition: Callable[..., int], job: Job) -> None:
    """Walks whose steps a function of the user chooses."""
    offsets, neighbours, weights, restart = tables.offsets, tables.neighbours, tables.weights, tables.restart
    starts, rows, label, lengths = job.starts, job.rows, job.label, job.lengths
    length = rows.shape[1]
    n_nodes = len(offsets) - 1
    for row in range(len(starts)):
        start = starts[row]
        previous, current = np.int32(-1), start
        walk = _at(job.key, start)
        rows[row, 0] = label[start]
        lengths[row] = length
        for step in range(1, length):
            number = np.uint64(step) << _TRY_BITS
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
def pack(rows: np.ndarray, offsets: np.ndarray, length: int) -> np.ndarray:
    """Walks of different lengths without the gaps between them: int32 (offsets[-1],) from int32 (walks * length,)."""
    flat = np.empty(offsets[-1], np.int32)
    for i in range(len(offsets) - 1):
        for j in range(offsets[i + 1] - offsets[i]):
            flat[offsets[i] + j] = rows[i * length + j]
    return flat
