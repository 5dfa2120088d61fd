"""On a real CUDA device: numbers against the reference, quality against the CPU, and words per second, printed.

python -m pytest tests/gpu -s
"""

import time

import numpy as np
import pytest
from numpy.testing import assert_allclose

from embfast import Corpus, Doc2Vec, Word2Vec, kernels, reference

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cuda():
    try:
        return kernels.device("cuda")[0]
    except (ImportError, ValueError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def corpus():
    """Two halves of a vocabulary that never stand in one sentence."""
    rng = np.random.default_rng(0)
    lines = [[f"{half}{x}" for x in rng.zipf(1.3, 40) % 200] for half in "ab" for _ in range(2000)]
    return Corpus.from_sentences(lines, min_count=1)


@pytest.mark.parametrize("cbow", [False, True])
@pytest.mark.parametrize("hs", [False, True])
@pytest.mark.parametrize("dim", [1, 100, 128, 300, 1024])
def test_one_block_does_what_the_reference_says(dim, cbow, hs, cuda):
    rng = np.random.default_rng(dim)
    n, ids, ends = 60, rng.integers(0, 60, 200).astype(np.int32), np.array([0, 200], np.int64)
    counts = np.arange(60, 0, -1, dtype=np.int64)
    names = ("w_in", "w_out", "w_nodes") if hs else ("w_in", "w_out")
    tables = {name: kernels.weight_table(n - (name == "w_nodes"), dim) for name in names}
    for table in tables.values():
        table[:, :dim] = rng.normal(scale=dim**-0.25, size=(len(table), dim))
    slow = {name: table.astype(np.float64) for name, table in tables.items()}
    job = kernels.sequence_job(
        dim=dim, window=3, shrink=True, cbow=cbow, drawn=5, seed=3, lr_first=0.01, lr_last=0.01, tokens_total=200
    )
    tree = kernels.HuffmanTree(counts) if hs else None
    made = kernels.device_sequences(cuda, job, tables, noise=kernels.NoiseTable(counts**0.75), tree=tree)
    tally = made.train(ids, ends, ends, epoch=2, tokens_before=0)
    made.fetch()
    job["epoch"] = 2
    arrays = {**slow, "ids": ids, "offsets": ends, "pieces": ends, "noise": reference.NoiseTable(counts**0.75)}
    expected = reference.device_train_sequences(job, arrays | {"tree": reference.HuffmanTree(counts) if hs else None})
    assert tally[1:] == expected[1:]
    assert_allclose(tally[0], expected[0], rtol=1e-4)
    for name, table in tables.items():
        assert_allclose(table, slow[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("how", [{}, {"cbow": True}, {"hs": True, "negatives": 0}], ids=str)
def test_words_are_as_good_as_those_of_the_cpu(how, cuda, corpus):
    def mixed(model):
        """Share of nearest neighbours from the other half."""
        keys = model.words_[:100]
        return np.mean([near[0] != key[0] for key in keys for near, _ in model.vectors_.most_similar(key, k=5)])

    settings = {"dim": 64, "epochs": 5, "sample": 0, **how}
    started = time.perf_counter()
    on_device = Word2Vec(**settings, device="cuda").fit(corpus)
    rate = 5 * corpus.n_tokens / (time.perf_counter() - started)
    print(f"\n{cuda}: {rate:,.0f} words/s with start and copies ({settings})")
    on_cpu = Word2Vec(**settings).fit(corpus)
    assert_allclose(on_device.loss_[-1], on_cpu.loss_[-1], rtol=0.05)
    assert mixed(on_device) <= mixed(on_cpu) + 0.02


def test_documents_are_as_good_as_those_of_the_cpu(cuda, corpus):
    for mode in ("dm", "dbow"):
        model = Doc2Vec(mode=mode, dim=32, epochs=5, device="cuda").fit(corpus)
        rows = model.infer(corpus)
        halves = np.stack([rows[:2000].mean(axis=0), rows[2000:].mean(axis=0)])
        right = ((rows @ (halves[0] - halves[1]) > 0) == (np.arange(4000) < 2000)).mean()
        assert right > 0.95
