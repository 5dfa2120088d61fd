"""Towers: packed texts, pooling, inputs."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from embfast.multimodal import towers


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def texts_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return rng.integers(0, 30, offsets[-1]).astype(np.int32), offsets


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "max", "mean"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_packed_text_gives_the_vector_of_the_text_alone(cell, pooling, bidirectional):
    """Packed results equal those of torch's cell on one unpacked text, pooled by hand."""
    torch.manual_seed(0)
    tower = towers.SequenceTower(30, 5, 7, cell, pooling, bidirectional).eval()
    ids, offsets = texts_of([3, 1, 9, 3, 5])
    rows = np.array([4, 2, 0, 1, 3])
    found = tower(towers.pack(ids, offsets, rows))
    for row, i in zip(found, rows.tolist(), strict=True):
        words = tower.words(torch.from_numpy(ids[offsets[i] : offsets[i + 1]].astype(np.int64)))
        states = tower.cell(words)[0]
        forward, backward = states[:, :7], states[:, 7:]
        last = (forward[-1] + backward[0]) / 2 if bidirectional else forward[-1]
        every = (forward + backward) / 2 if bidirectional else forward
        expected = {"last": last, "max": every.amax(0), "mean": every.mean(0)}[pooling]
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)


def test_pack_takes_words_step_by_step():
    packed = towers.pack(np.arange(10, dtype=np.int32), np.array([0, 2, 2 + 5, 10]), np.array([0, 1, 2, 1]))
    assert packed.ids.tolist() == [2, 2, 7, 0, 3, 3, 8, 1, 4, 4, 9, 5, 5, 6, 6]
    assert packed.batch_sizes.tolist() == [4, 4, 3, 2, 2]
    assert packed.texts.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1]
    assert packed.place.tolist() == [3, 0, 2, 1]


def test_mean_and_word2visualvec_read_every_word():
    torch.manual_seed(0)
    ids, offsets = texts_of([4, 1, 2])
    mean = towers.MeanTower(30, 5, 3).eval()
    packed = towers.pack(ids, offsets, np.arange(3))
    for i, row in enumerate(mean(packed)):
        words = mean.words(torch.from_numpy(ids[offsets[i] : offsets[i + 1]].astype(np.int64))).mean(0)
        torch.testing.assert_close(row, mean.map(words))
    tower = towers.Word2VisualVecTower(30, 5, 3, hidden=8, state=4).eval()
    for i, row in enumerate(tower(packed)):
        words = torch.from_numpy(ids[offsets[i] : offsets[i + 1]].astype(np.int64))
        vectors = tower.words(words)
        read = torch.cat([tower.cell(vectors)[1][0], vectors.mean(0)])
        hidden = torch.relu(tower.read(read) + tower.bag(words).sum(0))
        torch.testing.assert_close(row, tower.out(hidden))


def test_vector_tower_is_affine_and_takes_int8():
    torch.manual_seed(0)
    tower = towers.VectorTower(6, 3)
    rows = torch.randint(-1, 2, (4, 6), dtype=torch.int8)
    torch.testing.assert_close(tower(rows), rows.float() @ tower.layers[0].weight.T + tower.layers[0].bias)
    deep = towers.VectorTower(6, 3, hidden=5)
    first, second = deep.layers
    torch.testing.assert_close(deep(rows), second(torch.relu(first(rows.float()))))


def test_into_space_normalises_and_takes_absolute_values_for_order():
    rows = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    torch.testing.assert_close(towers.into_space(rows, False), torch.tensor([[0.6, -0.8], [0.0, 0.0]]))
    torch.testing.assert_close(towers.into_space(rows, True), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
