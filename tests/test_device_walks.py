"""The walk kernels of walks.cu, run on the CPU by the shim, make the same walks as embfast.graphs.walks."""

import sys
from itertools import pairwise

import numpy as np
import pytest
import shim
import standin
from numpy.testing import assert_array_equal

from embfast import Graph, reference
from embfast.device import cuda as device
from embfast.device.walks import WALK_JOB

pytest.importorskip("numba")

from numba import njit
from test_walks import KINDS, SETTINGS, deviation, small_graph, wide_graph

from embfast.graphs.walks import Walks


@pytest.fixture(scope="module")
def library():
    return shim.Shim(shim.build())


class ShimWalks:
    """Reads walks from the kernels; replaces Walks in tests that only read."""

    def __init__(self, library, walks, *, threads=128, grid=2, p=None, q=None):
        self.library, self.walks, self.threads, self.grid = library, walks, threads, grid
        self.p, self.q = p or walks.p, q or walks.q

    def __len__(self):
        return len(self.walks)

    def read(self, epoch, first, last):
        parts, n = [], len(self.walks.starts)
        for repetition in range(first // n, -(-last // n)):
            begin, end = max(first - repetition * n, 0), min(last - repetition * n, n)
            parts.append(self.repetition(epoch * self.walks.per_node + repetition, begin, end))
        lengths = np.concatenate([np.diff(offsets) for _, offsets in parts])
        return np.concatenate([ids for ids, _ in parts]), np.cumsum([0, *lengths])

    def repetition(self, repetition, begin, end):
        walks = self.walks
        name, job, arrays = walk_job(walks, repetition, begin, end, p=self.p, q=self.q)
        steps, lengths, length = arrays["steps"], arrays["lengths"], walks.length
        self.library.launch(name, self.grid, self.threads, [job])
        offsets = np.cumsum([0, *lengths]).astype(np.int64)
        ids = np.full(offsets[-1], -9, np.int32)
        grid = (-(-len(lengths) // 32), -(-length // 32))
        arguments = [steps, offsets, walks.label, np.int64(len(lengths)), np.int32(length), ids]
        self.library.launch("pack_walks", grid, (32, 8), arguments, 32 * 33 * 4)
        return ids, offsets


def walk_job(walks, repetition, begin, end, p=None, q=None):
    """The kernel that draws walks begin..end of a repetition, its job, and the arrays that it points to."""
    starts = np.ascontiguousarray(walks.start_nodes(repetition, begin, end))
    name, arrays, settings = walks.device_job()
    del arrays["label"]
    arrays |= {
        "starts": starts,
        "steps": np.full((walks.length, len(starts)), -7, np.int32),
        "lengths": np.full(len(starts), -1, np.int32),
    }
    job = np.zeros((), WALK_JOB)
    for field, array in arrays.items():
        job[field] = 0 if array is None else array.ctypes.data
    for field, value in settings.items():
        job[field] = value
    job["repetition"], job["n_walks"] = repetition, len(starts)
    job["inverse_p"], job["inverse_q"] = 1 / (p or walks.p), 1 / (q or walks.q)
    return name, job[()], arrays


def graph_named(kind):
    if kind.startswith("wide"):
        return wide_graph("weighted" in kind)
    return small_graph(kind)


@pytest.mark.parametrize("kind", [*KINDS, "wide", "wide weighted"])
@pytest.mark.parametrize(("p", "q"), SETTINGS)
def test_walks_are_those_of_the_cpu(kind, p, q, library):
    graph = graph_named(kind)
    n = 0
    for (restart, plus), policy in zip(((0, False), (0.2, False), (0, True)), shim.SCHEDULES, strict=True):
        if plus and graph.weights is None:
            continue
        walks = Walks(graph, length=40, per_node=3, p=p, q=q, restart=restart, plus=plus, gamma=0.25, seed=2**63 + 7)
        walks.label[:] = np.arange(len(graph))[::-1]
        library.schedule(policy, seed=1, resident=2)
        first, last = len(walks.starts) // 2, len(walks) - 3  # from the middle of a repetition to that of another
        ids, offsets = ShimWalks(library, walks, threads=64).read(1, first, last)
        expected, expected_offsets = walks.read(1, first, last)
        assert_array_equal(offsets, expected_offsets)
        assert_array_equal(ids, expected)
        n += len(ids)
    assert n > 1000


def test_walks_of_the_first_order_by_types(library):
    graph = small_graph("weighted")
    types = np.arange(18) % 2
    walks = Walks(graph, length=20, per_node=4, types=types, metapath=[0, 1, 0], seed=5)
    library.schedule()
    ids, offsets = ShimWalks(library, walks).read(0, 0, len(walks))
    for mine, theirs in zip((ids, offsets), walks.read(0, 0, len(walks)), strict=True):
        assert_array_equal(mine, theirs)
    assert set(types[ids[offsets[:-1]]]) == {0}
    assert set(types[ids[offsets[:-1] + 1]]) == {1}


def test_walks_are_those_of_the_reference(library):
    """The plain reference itself, not only the compiled kernels that are tested against it."""
    for kind, (p, q) in (("weighted", (0.25, 4)), ("directed", (1e-3, 1e3)), ("directed weighted", (4, 0.25))):
        graph = small_graph(kind)
        walks = Walks(graph, length=12, per_node=1, p=p, q=q, seed=9)
        ids, offsets = ShimWalks(library, walks).read(0, 0, len(walks))
        for begin, end in pairwise(offsets):
            walk = reference.random_walk(graph, ids[begin], 0, length=12, p=p, q=q, seed=9)
            assert ids[begin:end].tolist() == walk


def test_a_step_that_rejects_all_is_drawn_from_the_enumerated_probabilities(library):
    """In a star: from the center, whose other neighbours have almost no probability compared to the return."""
    leaves = np.arange(1, 400)
    graph = Graph.from_edges(np.zeros_like(leaves), leaves)
    walks = Walks(graph, length=10, per_node=1, p=1e6, q=1e6, seed=4)
    assert_array_equal(ShimWalks(library, walks).read(0, 0, 30)[0], walks.read(0, 0, 30)[0])
    walks = Walks(graph, length=10, per_node=1, p=1e6, q=1e-6, seed=4)
    assert_array_equal(ShimWalks(library, walks).read(0, 0, 30)[0], walks.read(0, 0, 30)[0])


@pytest.mark.parametrize("kind", ["plain", "weighted", "directed weighted"])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (0.25, 4), (4, 0.25)])
def test_transitions_have_the_probabilities_of_node2vec(kind, p, q, library):
    graph = small_graph(kind)
    library.schedule()
    walks = ShimWalks(library, Walks(graph, length=30, per_node=400, p=p, q=q, seed=3), grid=1)
    value, impossible = deviation(graph, walks, p, q)
    assert impossible == 0
    assert 1e-4 < value < 1 - 1e-6


def test_swapped_p_and_q_are_seen(library):
    graph = small_graph("weighted")
    walks = Walks(graph, length=30, per_node=400, p=0.25, q=4, seed=3)
    swapped = ShimWalks(library, walks, p=4, q=0.25, grid=1)
    assert deviation(graph, swapped, 0.25, 4)[0] < 1e-9
    assert not np.array_equal(swapped.read(0, 0, 50)[0], walks.read(0, 0, 50)[0])


# ---- the host side, on a stand-in for CuPy --------------------------------------------------------------------------


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", standin)
    monkeypatch.setattr(device.Device, "built", lambda self: "fatbin")
    return standin


@pytest.mark.parametrize("kind", [*KINDS, "wide"])
@pytest.mark.parametrize(("p", "q", "restart"), [(1, 1, 0), (1, 1, 0.2), (0.25, 4, 0), (4, 0.25, 0.2)])
def test_walks_read_from_a_device_are_those_of_the_cpu(kind, p, q, restart, cupy):
    graph = graph_named(kind)
    walks = Walks(graph, length=35, per_node=3, p=p, q=q, restart=restart, seed=11)
    walks.label[:] = np.random.default_rng(0).permutation(len(graph))
    n = len(walks.starts)
    spans = [(0, 0, len(walks)), (2, n // 2, n + 3), (1, 5, 5)]
    expected = [walks.read(*span) for span in spans]
    walks.to_device(device.find())
    for span, (ids, offsets) in zip(spans, expected, strict=True):
        found, found_offsets = walks.read(*span)
        assert found.dtype == np.int32
        assert_array_equal(found_offsets, offsets)
        assert_array_equal(found, ids)


def test_walks_that_a_device_refuses(cupy, monkeypatch):
    graph = small_graph("weighted")
    with pytest.raises(ValueError, match="on the CPU: device='cpu'"):
        Walks(graph, transition=njit(lambda *arguments: -1)).to_device(device.find())
    monkeypatch.setattr(standin, "FREE", [500])
    with pytest.raises(MemoryError, match=r"walks on this graph need .* neighbours .* device='cpu'"):
        Walks(graph, p=2).to_device(device.find())


def test_the_job_is_laid_out_as_in_the_source(library):
    assert library.arguments("walk_second_order") == [WALK_JOB.itemsize]
    assert shim.fields("walks.cu", "WalkJob") == list(WALK_JOB.names)
