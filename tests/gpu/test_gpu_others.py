"""On a real CUDA device: GloVe against the CPU, walks and ternary rows id by id and bit by bit, ranking losses.

python -m pytest tests/gpu -s
"""

import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from embfast import LINE, CooccurrenceMatrix, Corpus, GloVe, Graph, kernels
from embfast.files.ternary import TernaryMatrix, thresholds

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cuda():
    try:
        return kernels.device("cuda")[0]
    except (ImportError, ValueError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def matrix():
    rng = np.random.default_rng(0)
    lines = [[f"w{x}" for x in rng.zipf(1.2, 40) % 3000] for _ in range(20_000)]
    return CooccurrenceMatrix.from_corpus(Corpus.from_sentences(lines, min_count=1), window=5)


@pytest.mark.parametrize("dim", [1, 15, 100, 127, 300, 1024])
def test_glove_learns_as_on_the_cpu(dim, matrix, cuda):
    settings = {"dim": dim, "epochs": 3, "x_max": 10, "seed": 3}
    begin = time.perf_counter()
    device = GloVe(**settings, device="cuda").fit(matrix, progress=False)
    print(f"dim={dim}: {3 * len(matrix) / (time.perf_counter() - begin) / 1e6:.1f} M entries/s with copies, on {cuda}")
    assert_allclose(device.loss_, GloVe(**settings).fit(matrix, progress=False).loss_, rtol=0.15)


@pytest.mark.parametrize("order", ["1", "2", "both"])
def test_edges_learn_as_on_the_cpu(order, cuda):
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 2_000, (2, 40_000))
    alike = (a % 2 == b % 2) | (rng.random(len(a)) < 0.05)
    graph = Graph.from_edges(a[alike], b[alike], duplicates="first")
    settings = {"order": order, "dim": 64, "epochs": 5}
    model = LINE(**settings, device="cuda").fit(graph, progress=False)
    assert_allclose(model.loss_, LINE(**settings).fit(graph, progress=False).loss_, rtol=0.05)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (0.25, 4), (4, 0.25)])
def test_walks_are_those_of_the_cpu(p, q, weighted, cuda):
    walks = pytest.importorskip("embfast.graphs.walks")
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 20_000, (2, 200_000))
    graph = Graph.from_edges(a, b, rng.uniform(0.1, 2, 200_000) if weighted else None, duplicates="first")
    there = walks.Walks(graph, p=p, q=q, seed=5)
    here = there.read(0, 0, len(there.starts))
    there.to_device(cuda)
    begin = time.perf_counter()
    ids, offsets = there.read(0, 0, len(there.starts))
    print(
        f"p={p} q={q} weighted={weighted}: {len(ids) / (time.perf_counter() - begin) / 1e6:.0f} M steps/s with copies"
    )
    assert_array_equal(offsets, here[1])
    assert_array_equal(ids, here[0])


def test_ternary_rows_have_the_bits_of_the_cpu(cuda):
    features = np.random.default_rng(2).standard_normal((3000, 1234)).astype(np.float32)
    low, high = thresholds(features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64))
    expected = TernaryMatrix.from_features(features, low, high).planes
    assert_array_equal(TernaryMatrix.from_features(features, low, high, device="cuda").planes, expected)
    on_device = cuda.cupy.asarray(features)
    assert_array_equal(TernaryMatrix.from_features(on_device, low, high, device="cuda").planes, expected)


@pytest.mark.parametrize("mode", ["sum", "max", "semihard"])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "order"])
def test_ranking_losses_are_those_of_torch(mode, similarity, cuda):
    torch = pytest.importorskip("torch")
    from embfast.multimodal.ranking import ranking_loss

    rng = np.random.default_rng(3)
    sides = [rng.standard_normal((300, 100)).astype(np.float32) / 10 for _ in range(2)]
    settings = {"mode": mode, "similarity": similarity, "margin": 0.3}
    loss, *gradients = kernels.device_ranking_loss(cuda, *map(cuda.cupy.asarray, sides), **settings)
    tensors = [torch.tensor(side, dtype=torch.float64, requires_grad=True) for side in sides]
    slow = ranking_loss(*tensors, **settings)
    slow.backward()
    assert loss == pytest.approx(slow.item(), rel=1e-4)
    for found, tensor in zip(gradients, tensors, strict=True):
        assert_allclose(found.get(), tensor.grad.numpy(), atol=1e-4)
