"""Transfer studies: splits, classifiers, layers, neighbours, and fine-tuning."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("PIL", reason="Pillow is not installed: pip install embfast[images]")
torch = pytest.importorskip("torch", reason="torch is not installed: pip install embfast[images]")
pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install embfast[images]")

from networks import SMALL, ResNet, Tangled, photographs, plain, seeded, vgg16
from sklearn.svm import LinearSVC
from torch import nn

from embfast.images import transfer
from embfast.images.extract import Run
from embfast.images.fine_tuning import Transferred, fine_tune, predict
from embfast.images.transfer import (
    Score,
    classify,
    few_shot_splits,
    nearest_neighbours,
    retrieval_by_labels,
    scores,
    sweep_dims,
    sweep_layers,
)


def clouds(n, dim, classes=3, spread=1.0, seed=0):
    """Rows scattered around one center per class, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centers = np.random.default_rng(99).normal(size=(classes, dim)) * 3 / math.sqrt(dim)
    return centers[labels] + spread * random.normal(size=(n, dim)) / math.sqrt(dim), labels


# ---- splits and scores --------------------------------------------------------------------------------------------


def test_splits_are_disjoint_with_equal_counts_of_each_class():
    labels = np.array(list("aabbbbbccccccc") * 3)
    found = list(few_shot_splits(labels, 2, seeds=range(4)))
    for train, test in found:
        assert not set(train) & set(test)
        assert len(train) + len(test) == len(labels)
        assert_array_equal(np.unique(labels[train], return_counts=True)[1], [2, 2, 2])
    assert len({tuple(train) for train, _ in found}) == 4
    assert_array_equal(next(few_shot_splits(labels, 2, [3]))[0], found[3][0])
    train, test = next(few_shot_splits(labels, 2, [0], test_per_class=4))
    assert_array_equal(np.unique(labels[test], return_counts=True)[1], [4, 4, 4])
    with pytest.raises(ValueError, match="class 'a': expected 6 images to train on and 1 to test on, got 6"):
        next(few_shot_splits(labels, 6))
    with pytest.raises(ValueError, match="at least 2 classes"):
        next(few_shot_splits(["a", "a"], 1))


def test_intervals_follow_students_t():
    score = Score((0.5, 0.6, 0.7, 0.6))
    assert_allclose(score.mean, 0.6)
    assert_allclose(score.interval, 3.182446 * np.std(score.values, ddof=1) / 2, rtol=1e-6)  # t table, 3 degrees
    assert str(Score((0.25,))) == "0.250 ± inf (1)"


# ---- classifiers --------------------------------------------------------------------------------------------------


def test_rotating_wide_rows_does_not_change_the_classifier():
    """LinearSVC decides the same on the rotated rows as on all 300 dimensions of 40 rows."""
    train, labels = clouds(40, 300)
    test, _ = clouds(200, 300, seed=1)
    rows, others = transfer._rotated(train, test)
    assert rows.shape[1] <= 40
    assert_allclose(rows @ rows.T, train @ train.T, atol=1e-9)
    assert_allclose(others @ rows.T, test @ train.T, atol=1e-9)
    wide, narrow = (LinearSVC(tol=1e-8, max_iter=100_000) for _ in range(2))
    expected = wide.fit(train, labels).decision_function(test)
    assert_allclose(narrow.fit(rows, labels).decision_function(others), expected, atol=1e-3)


@pytest.mark.parametrize("classifier", ["svm", "logistic"])
@pytest.mark.parametrize("C", [1.0, None])
def test_separable_classes_are_separated(classifier, C):
    train, labels = clouds(60, 30)
    test, answers = clouds(300, 30, seed=1)
    assert classify(train, labels, test, answers, classifier=classifier, C=C) >= 0.95
    shuffled = np.random.default_rng(0).permutation(labels)
    assert classify(train, shuffled, test, answers, classifier=classifier, C=C) <= 0.65


def test_scaling_uses_the_statistics_of_train():
    train, labels = clouds(40, 20)
    scaled, test = transfer._scaled(train, train[:5] + 100, "standard")
    assert_allclose(scaled.mean(0), 0, atol=1e-9)
    assert_allclose(scaled.std(0), 1)
    assert_allclose(test, (train[:5] + 100 - train.mean(0)) / train.std(0))
    constant = np.concatenate([train, np.full((40, 1), 3.7)], axis=1)
    assert (transfer._scaled(constant, constant + 1, "standard")[1][:, -1] == 0).all()
    units, _ = transfer._scaled(np.vstack([train, 0 * train[:1]]), train, "l2")
    assert_allclose(np.linalg.norm(units, axis=1), [1] * 40 + [0])
    with pytest.raises(ValueError, match="got 'svm' and 'minmax'"):
        classify(train, labels, train, labels, scaling="minmax")


def test_scores_on_splits():
    rows, labels = clouds(60, 20)
    found = scores(rows, labels, few_shot_splits(labels, 5, range(3)), scaling="none")
    expected = [
        classify(rows[a], labels[a], rows[b], labels[b], scaling="none")
        for a, b in few_shot_splits(labels, 5, range(3))
    ]
    assert found.values == tuple(expected)


def test_dimensions():
    train, labels = clouds(60, 30)
    test, answers = clouds(200, 30, seed=1)
    found = sweep_dims(train, labels, test, answers, [1, 2, 20])
    assert list(found) == [1, 2, 20]
    assert found[1] < found[2] <= 1
    assert found[2] >= 0.9  # three centers span a plane
    with pytest.raises(ValueError, match="dims must be from 1 to 30"):
        sweep_dims(train, labels, test, answers, [31])


def test_every_layer_is_scored_in_one_pass(tmp_path):
    network, pictures = plain(), photographs(40, classes=2)
    labels, ran = np.arange(40) % 2, []
    handle = network[0].register_forward_hook(lambda module, args, result: ran.append(len(args[0])))
    options = {"splits": few_shot_splits(labels, 10, range(2)), "run": Run(batch=10)}
    table = sweep_layers(pictures, labels, network, preparation=SMALL, **options)
    handle.remove()
    assert sum(ran) == 40 + 1  # plus one image to find the layers
    assert [(row.layer, row.dim) for row in table] == [("1", 5), ("4", 7), ("8", 6)]
    assert table[0].accuracy.mean >= 0.9  # the first layer sees tints
    with pytest.raises(ValueError, match="a label for each of 40 images, got 39"):
        sweep_layers(pictures, labels[1:], network, preparation=SMALL)


# ---- neighbours ---------------------------------------------------------------------------------------------------


def average_precision_by_hand(rows, labels, i, distance):
    order = sorted((j for j in range(len(rows)) if j != i), key=lambda j: (distance(rows[i], rows[j]), j))
    hits, found = 0, []
    for rank, j in enumerate(order, 1):
        if labels[j] == labels[i]:
            hits += 1
            found.append(hits / rank)
    return np.mean(found)


@pytest.mark.parametrize("block", [1 << 22, 50])
def test_mean_average_precision(block, monkeypatch):
    monkeypatch.setattr(transfer, "_CHUNK", block)
    rows, labels = clouds(25, 6, spread=3.0)
    labels[7] = 9  # the only row with its label
    distances = {
        "euclidean": lambda a, b: np.linalg.norm(a - b),
        "manhattan": lambda a, b: np.abs(a - b).sum(),
        "cosine": lambda a, b: 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b),
    }
    found = retrieval_by_labels(rows, labels, distances)
    for metric, distance in distances.items():
        each = [average_precision_by_hand(rows, labels, i, distance) for i in range(25) if i != 7]
        assert_allclose(found[metric], np.mean(each), rtol=1e-12)
    two = retrieval_by_labels(rows, labels, ["euclidean"], queries=[3, 7])["euclidean"]
    assert_allclose(two, average_precision_by_hand(rows, labels, 3, distances["euclidean"]))
    with pytest.raises(ValueError, match="no query has another row with its label"):
        retrieval_by_labels(rows, labels, queries=[7])


def test_ternary_rows_are_searched_too():
    rows = np.array([[1, 0, -1], [1, 0, -1], [-1, 1, 0], [-1, 1, 0]], np.int8)
    assert retrieval_by_labels(rows, [0, 0, 1, 1], ["cosine", "hamming"]) == {"cosine": 1.0, "hamming": 1.0}


def test_nearest_neighbours():
    train, labels = clouds(60, 20)
    test, answers = clouds(100, 20, seed=1)
    assert nearest_neighbours(train, labels, test, answers) >= 0.9
    assert nearest_neighbours(train, labels, train, labels, k=1, metric="euclidean") == 1
    with pytest.raises(ValueError, match="k must be a whole number from 1 to 60"):
        nearest_neighbours(train, labels, test, answers, k=61)


# ---- fine-tuning --------------------------------------------------------------------------------------------------


def learning(network):
    return [name for name, parameter in network.module.named_parameters() if parameter.requires_grad]


def test_first_layers_are_kept_and_the_others_reinitialised():
    network = plain()
    for n, kept in ((0, []), (1, ["0"]), (2, ["0", "2", "3"]), (3, ["0", "2", "3", "7"])):
        moved = Transferred(network, n, classes=4, example=(3, 16, 16), seed=5)
        for name, value in network.state_dict().items():
            if name.startswith("9"):
                continue
            same = np.array_equal(moved.module.state_dict()[name], value)
            assert same == (name.split(".")[0] in kept or name.endswith("num_batches_tracked")), (n, name)
        assert moved.module[9].out_features == 4
        assert {name.split(".")[0] for name in learning(moved)} == {"0", "2", "3", "7", "9"} - set(kept)
        free = Transferred(network, n, classes=4, frozen=False, example=(3, 16, 16))
        assert len(learning(free)) == len(list(network.parameters()))
    again = [
        Transferred(network, 1, classes=4, example=(3, 16, 16), seed=s).module[2].weight.detach() for s in (1, 1, 2)
    ]
    assert_array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])
    with pytest.raises(ValueError, match="n must be a whole number from 0 to 4"):
        Transferred(network, 5, example=(3, 16, 16))


@pytest.mark.parametrize(
    ("make", "n", "frozen"),
    [
        (lambda: ResNet((1, 1), 8, 5), 2, ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1"]),
        (lambda: vgg16(1 / 16, 32, 5), 2, ["0.0", "0.2"]),
        (Tangled, 2, ["first", "twice", "norm"]),
    ],
)
def test_layers_are_counted_in_the_order_of_the_network(make, n, frozen):
    moved = Transferred(seeded(make), n, classes=3, example=(3, 32, 32))
    assert [name for name in moved.frozen if list(dict(moved.module.named_modules())[name].parameters())] == frozen


def test_frozen_layers_and_their_running_means_do_not_change():
    network = plain()
    moved = Transferred(network, 2, classes=2, example=(3, 16, 16))
    pictures, labels = photographs(24, classes=2), np.arange(24) % 2
    losses = fine_tune(moved, pictures, labels, preparation=SMALL, epochs=2, batch=8)
    assert len(losses) == 2
    assert not moved.module[3].training
    assert moved.module[7].training
    for name, value in network.state_dict().items():
        if name.split(".")[0] in ("0", "2", "3"):
            assert_array_equal(moved.module.state_dict()[name], value, err_msg=name)
    free = Transferred(network, 2, classes=2, frozen=False, example=(3, 16, 16))
    fine_tune(free, pictures, labels, preparation=SMALL, epochs=1, batch=8)
    assert not np.array_equal(free.module[3].running_mean, network[3].running_mean)
    assert not np.array_equal(free.module[0].weight.detach(), network[0].weight.detach())


@pytest.mark.parametrize("n", [2, 3, 4])
def test_attention_is_kept_as_a_whole(n):
    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.head(self.block(self.patches(x).flatten(2).mT).mean(1))

    network = seeded(Vision)
    for name, weights in network.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(weights)  # so that reinitialised biases differ
    moved = Transferred(network, n, example=(3, 16, 16), seed=9)
    learning = {name for name, weights in moved.module.named_parameters() if weights.requires_grad}
    assert not any("self_attn" in name for name in learning)
    for name, weights in moved.module.named_parameters():
        if name not in learning:
            assert_array_equal(weights.detach(), network.state_dict()[name].detach())
    if n == 4:
        assert not learning
        pixels = torch.zeros(2, 3, 16, 16)
        assert_array_equal(moved.eval()(pixels).detach(), network.eval()(pixels).detach())


def test_constant_features_can_be_classified():
    rows, labels = np.zeros((24, 50)), np.arange(24) % 3
    assert classify(rows[:12], labels[:12], rows[12:], labels[12:]) == pytest.approx(1 / 3)


def test_fine_tuning_learns():
    moved = Transferred(plain(), 1, classes=3, frozen=False, example=(3, 16, 16))
    train, labels = photographs(60, classes=3), np.arange(60) % 3
    losses = fine_tune(moved, train, labels, preparation=SMALL, epochs=12, lr=0.05, batch=16)
    assert losses[-1] < 0.5 * losses[0]
    answers = predict(moved, photographs(30, seed=7, classes=3), preparation=SMALL, batch=7)
    assert np.mean(answers == np.arange(30) % 3) >= 0.8
    twin = Transferred(plain(), 1, classes=3, frozen=False, example=(3, 16, 16))
    assert fine_tune(twin, train, labels, preparation=SMALL, epochs=12, lr=0.05, batch=16) == losses


@pytest.mark.parametrize(
    ("labels", "options", "match"),
    [
        ([0, 1, 2, 5], {}, "labels must be from 0 to 2, got 0 to 5"),
        ([0, 1], {}, "expected a label for each of 4 images"),
        ([0, 1, 2, 0], {"lr": 0}, "lr must be a number above 0"),
        ([0, 1, 2, 0], {"lr": 900.0, "epochs": 30}, "the loss became .* lower lr, which is 900"),
    ],
)
def test_invalid_fine_tuning(labels, options, match):
    with pytest.raises(ValueError, match=match):
        fine_tune(plain(), photographs(4), labels, preparation=SMALL, **options)


def test_a_frozen_network_has_nothing_to_learn():
    frozen = Transferred(plain(), 4, example=(3, 16, 16))
    with pytest.raises(ValueError, match="every layer is frozen"):
        fine_tune(frozen, photographs(4), [0, 1, 2, 0], preparation=SMALL)
    ends = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    with pytest.raises(ValueError, match="ends in a linear layer, got one that ends in 0"):
        Transferred(ends, 0, classes=2, example=(3, 4, 4))


def test_fine_tuning_restores_the_mode_of_each_submodule(monkeypatch):
    network = plain().eval()
    network[0].train()
    before = [part.training for part in network.modules()]
    fine_tune(network, photographs(4), [0, 1, 0, 1], preparation=SMALL, epochs=1)
    assert [part.training for part in network.modules()] == before
    with pytest.raises(ValueError, match="labels must be"):
        fine_tune(network, photographs(4), [0, 1, 0, 99], preparation=SMALL, epochs=1)
    assert [part.training for part in network.modules()] == before
    with pytest.raises(TypeError, match="expected integers, got float64"):
        fine_tune(network, photographs(4), [0.0, 1.7, 0.0, 1.0], preparation=SMALL)
    with pytest.raises(ValueError, match="batch"):
        fine_tune(network, photographs(4), [0, 1, 0, 1], preparation=SMALL, batch=0)


class Two(torch.nn.Module):
    """A network with a second output beside its logits."""

    def __init__(self):
        super().__init__()
        self.network = plain()

    def forward(self, x):
        logits = self.network(x)
        return logits, logits.sum(1)


@pytest.mark.parametrize("make", [lambda: plain().double(), Two], ids=["float64", "two heads"])
def test_networks_with_another_dtype_or_two_outputs(make):
    network, pictures, labels = make(), photographs(6), [0, 1, 2, 0, 1, 2]
    before = torch.get_rng_state()
    assert len(fine_tune(network, pictures, labels, preparation=SMALL, epochs=1)) == 1
    assert predict(network, pictures, preparation=SMALL).shape == (6,)
    assert torch.equal(torch.get_rng_state(), before)
    if not isinstance(network, Two):
        assert Transferred(network, 1, classes=5, example=(3, 16, 16)).module[-1].weight.dtype == torch.float64


def test_invalid_scores():
    rows, labels = np.eye(6), np.arange(6) % 2
    with pytest.raises(ValueError, match="C must be a number above 0"):
        classify(rows, labels, rows, labels, C=0)
    with pytest.raises(ValueError, match="at least one split, got none"):
        scores(rows, labels, iter([]))


def test_threads_can_share_a_network():
    """No thread ends eval mode while another one still predicts."""
    network, pictures, seen = plain().train(), photographs(12), []
    network.register_forward_hook(lambda *_: time.sleep(0.002) or seen.append(network.training))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: predict(network, pictures, preparation=SMALL, batch=3), range(12)))
    assert len(seen) == 48
    assert not any(seen)
    assert all(part.training for part in network.modules())
