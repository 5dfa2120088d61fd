"""Random draws, alias tables and Huffman trees: equal in C++ and numpy, and with the right distributions."""

import heapq
from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from problems import Problem, train
from scipy import stats

from embfast import kernels, reference
from embfast.reference import Purpose, Stream, below
from embfast.training.blocks import CHAPTER
from embfast.training.sampling import NegativePool

COUNTS = np.array([100_000, 40_000, 9_000, 9_000, 800, 75, 6, 5, 5, 1])


def is_plausible(observed, expected):
    """Whether chi-square has p > 1e-6. Seeds are fixed: a test that passes once always passes."""
    return stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-6


def test_splitmix64_gives_its_published_numbers():
    golden, seed = int(reference.GOLDEN), 1234567
    drawn = [int(reference.mix64((seed + i * golden) % 2**64)) for i in range(1, 4)]
    assert drawn == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("purpose", Purpose)
def test_draws_are_uniform_and_neighbours_independent(purpose):
    draw = Stream(3, 1, purpose)(np.arange(200_000))
    high, low = below(draw, 16), (draw & np.uint64(15)).astype(int)
    for first, second in ((high[:-1], high[1:]), (high, low), (low[:-1], low[1:]), (high[:-5], high[5:])):
        assert is_plausible(np.bincount(16 * first + second, minlength=256), np.ones(256))


def test_streams_do_not_share_draws():
    streams = [Stream(*key) for key in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2), (2**64 - 1, 2**64 - 1, 4))]
    drawn = np.concatenate([s(np.arange(10_000)) for s in streams])
    assert len(np.unique(drawn)) == len(drawn)
    high = [below(s(np.arange(100_000)), 16) for s in streams]
    for other in high[1:]:
        assert is_plausible(np.bincount(16 * high[0] + other, minlength=256), np.ones(256))


@pytest.mark.parametrize("n", [1, 2, 3, 12, 1000, 2**31, 2**32 - 1])
def test_below_stays_below(n):
    edges = np.array([0, 2**32 - 1, 2**32, 2**63, 2**64 - 1], np.uint64)
    assert_array_equal(below(edges, n), [0, 0, n >> 32 if n > 2**31 else 0, n // 2, n - 1])


@pytest.mark.parametrize(
    "weights",
    [
        COUNTS**0.75,
        np.ones(7),
        np.array([5.0]),
        np.array([0.0, 1.0, 0.0, 1e-300]),
        np.array([1e-308, 3e-308]),
        np.array([1e299, 1.0, 3e298]),
        1.0 / np.arange(1, 3000),
        np.random.default_rng(0).random(1000),
    ],
    ids=["words", "even", "one", "zeros", "tiny", "huge", "zipf", "random"],
)
def test_noise_table_matches_reference_and_its_weights(weights):
    table, slow = kernels.NoiseTable(weights), reference.NoiseTable(weights)
    assert len(table) == len(slow) == len(weights)
    assert_array_equal(table.thresholds, slow.thresholds)
    assert_array_equal(table.aliases, slow.aliases)
    # The probability of each word according to the table.
    own = table.thresholds / 2.0**32
    held = own + np.bincount(table.aliases, weights=1.0 - own, minlength=len(own))
    assert_allclose(held / len(own), weights / weights.sum(), rtol=0, atol=2.0**-31)


def test_negatives_are_sampled_by_count_to_the_power_of_three_quarters():
    drawn = kernels.NoiseTable(COUNTS**0.75).sample(1_000_000, 7, 2)
    assert is_plausible(np.bincount(drawn, minlength=10), COUNTS**0.75)
    assert_array_equal(drawn, reference.NoiseTable(COUNTS**0.75).sample(1_000_000, 7, 2))
    later = kernels.NoiseTable(COUNTS**0.75).sample(1_000, 7, 2, 500)
    assert_array_equal(later, drawn[500:1_500])


def test_each_chapter_and_epoch_has_a_new_pool_of_negatives():
    pool = NegativePool(COUNTS**0.75, at_once=5, needed=100_000, seed=3)
    first = pool(0, 0).copy()
    assert len(first) == 100_000
    assert_array_equal(pool(0, CHAPTER - 1), first)
    second = pool(0, CHAPTER).copy()
    for other in (second, pool(1, 0), pool(1, CHAPTER)):
        assert len(other) == len(first)
        assert (other != first).any()
    assert_array_equal(kernels.NoiseTable(COUNTS**0.75).sample(200_000, 3, 0), np.concatenate([first, second]))
    assert_array_equal(pool(0, 0), first)
    assert len(NegativePool(COUNTS**0.75, at_once=2**22, needed=1, seed=3)(0, 0)) >= 2**22


@pytest.mark.parametrize("mode", ["shared", "pairs", "cbow"])
def test_kernel_draws_negatives_by_count_to_the_power_of_three_quarters(mode):
    """At a tiny rate, each draw changes its zero row by lr / 2 * the input, so the changes count the draws."""
    n, lr, value, drawn, tokens = len(COUNTS), 2.0**-30, 2.0**-10, 5, 40_000
    noise = kernels.NoiseTable(COUNTS**0.75).sample(drawn * tokens + 37, 1, 0)
    arguments = Problem(words=n + 2).arguments()
    weights = kernels.weight_table(n + 2, 1)
    weights[:, 0] = value
    arguments |= {
        "w_in": weights,
        "w_out": kernels.weight_table(n + 2, 1),
        "ids": np.tile(np.array([n, n + 1], np.int32), tokens // 2),  # centers that are never negatives
        "offsets": np.arange(0, tokens + 1, 2),
        "blocks": np.array([0, tokens]),
        "last_block": 1,
        "noise": noise,
        "window": 1,
        "cbow": mode == "cbow",
        "shared": mode == "shared",
        "drawn": drawn,
        "lr_first": lr,
        "lr_last": lr,
    }
    _, examples, _ = train(kernels, arguments)
    counted = np.rint(arguments["w_out"][:n, 0] / (-lr / 2 * value)).astype(int)
    assert examples == tokens
    assert counted.sum() == drawn * tokens
    assert is_plausible(counted, COUNTS**0.75)
    place = below(Stream(arguments["seed"], arguments["epoch"], Purpose.PLACE)(0), len(noise))
    sets = (len(noise) - place) // drawn  # until the rest of the pool is too short for a set
    used = np.concatenate([noise[place : place + drawn * sets], noise[: drawn * (tokens - sets)]])
    assert_array_equal(counted, np.bincount(used, minlength=n))


@pytest.mark.parametrize("sample", [1e-2, 1e-3, 1e-5])
def test_subsampling_keeps_words_at_the_rate_of_word2vec_c(sample):
    """word2vec.c keeps a word of frequency f with probability (sqrt(f / sample) + 1) * sample / f."""
    frequency = np.array([0.3, 0.2, 0.1, 0.05, 0.01, 1e-3, 1e-4])
    rate = np.minimum((np.sqrt(frequency / sample) + 1) * sample / frequency, 1.0)
    keep = np.minimum(rate * 2**32, 2**32 - 1).astype(np.uint32)
    each = 50_000
    ids = np.tile(np.arange(7, dtype=np.int32), each)
    whole = np.array([0, len(ids)])
    seed, epoch = 11, 5
    kept = np.concatenate(reference.subsample(ids, whole, 0, len(ids), keep, Stream(seed, epoch, Purpose.SUBSAMPLE)))
    counted = np.bincount(kept, minlength=7)
    assert_array_equal(counted[rate == 1.0], each)
    some = rate < 1.0
    deviation = (counted - each * rate)[some] ** 2 / (each * rate * (1 - rate))[some]
    assert stats.chi2.sf(deviation.sum(), some.sum()) > 1e-6
    # The kernel keeps the same tokens, counted for each word separately.
    for word in range(7):
        alone = np.flatnonzero(ids == word)
        hits = Stream(seed, epoch, Purpose.SUBSAMPLE)(alone) >> np.uint64(32) <= keep[word]
        assert hits.sum() == counted[word]
    arguments = Problem(words=7).arguments()
    arguments |= {"ids": ids, "offsets": whole, "blocks": whole, "last_block": 1, "keep": keep, "lr_first": 0.0}
    arguments |= {"seed": seed, "epoch": epoch, "lr_last": 0.0}
    assert train(kernels, arguments)[2] == counted.sum()


@pytest.mark.parametrize("above", [0, 1])
def test_a_token_is_kept_if_its_draw_equals_the_threshold(above):
    arguments = Problem(words=80).arguments()
    draws = Stream(arguments["seed"], arguments["epoch"], Purpose.SUBSAMPLE)(np.arange(80)) >> np.uint64(32)
    arguments |= {"ids": np.arange(80, dtype=np.int32), "keep": (draws - np.uint64(above)).astype(np.uint32)}
    assert train(kernels, arguments)[2] == (0 if above else 80)


@pytest.mark.parametrize("window", [2, 3, 5, 12])
def test_radii_are_uniform_over_1_to_window(window):
    n = 100_000
    width = 1 + below(Stream(2, 9, Purpose.WINDOW)(np.arange(n)), window)
    assert width.min() == 1
    assert is_plausible(np.bincount(width, minlength=window + 1)[1:], np.ones(window))
    arguments = Problem(words=2).arguments()
    whole = np.array([0, n])
    arguments |= {"ids": np.arange(n, dtype=np.int32) % 2, "offsets": whole, "blocks": whole, "last_block": 1}
    arguments |= {"window": window, "seed": 2, "epoch": 9, "drawn": 0, "lr_first": 0.0, "lr_last": 0.0}
    at = np.arange(n)
    pairs = np.minimum(width, at).sum() + np.minimum(width, n - 1 - at).sum()
    assert train(kernels, arguments)[1] == pairs


@pytest.mark.parametrize(
    "weights",
    [[], [0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [1.0, np.inf], [1e301]],
    ids=str,
)
def test_weights_that_define_no_distribution_are_refused(weights):
    with pytest.raises(ValueError, match=r"^weights: "):
        kernels.NoiseTable(np.array(weights))


def vocabularies():
    rng = np.random.default_rng(1)
    yield from ([1, 1], [5, 1], [1, 1, 1], [2, 1, 1], [3, 2, 1, 1, 1], [1] * 8, [1] * 100, [7] * 33 + [3] * 20)
    yield 2 ** np.arange(40)[::-1]  # the deepest tree
    fibonacci = [1, 1]
    while len(fibonacci) < 60:
        fibonacci.append(sum(fibonacci[-2:]))
    yield fibonacci[::-1]
    for n in (2, 3, 10, 500):
        for largest in (3, 1000):
            yield np.sort(rng.integers(1, largest, n))[::-1]


VOCABULARIES = [np.array(counts, np.int64) for counts in vocabularies()]
each_vocabulary = pytest.mark.parametrize("counts", VOCABULARIES, ids=range(len(VOCABULARIES)))


def paths(tree):
    return [
        (list(tree.nodes[begin:end]), list(tree.codes[begin:end]))
        for begin, end in zip(tree.offsets[:-1], tree.offsets[1:], strict=True)
    ]


def two_queues(counts):
    """Paths by the rule of word2vec.c, on arrays. Words from the rarest up compete with nodes in order of creation; a
    word goes first only if it is strictly lighter than the oldest free node; the second of the two gets code 1."""
    n = len(counts)
    weight, parent, bit = [*counts, *[2**62] * (n - 1)], [None] * (2 * n - 1), [0] * (2 * n - 1)
    word, node = n - 1, n
    for made in range(n, 2 * n - 1):
        picked = []
        for _ in range(2):
            if word >= 0 and weight[word] < weight[node]:
                picked.append(word)
                word -= 1
            else:
                picked.append(node)
                node += 1
        weight[made] = weight[picked[0]] + weight[picked[1]]
        parent[picked[0]] = parent[picked[1]] = made
        bit[picked[1]] = 1
    found = []
    for word in range(n):
        nodes, codes, vertex = [], [], word
        while parent[vertex] is not None:
            nodes.insert(0, parent[vertex] - n)
            codes.insert(0, bit[vertex])
            vertex = parent[vertex]
        found.append((nodes, codes))
    return found


@each_vocabulary
def test_huffman_paths_are_those_of_word2vec_c(counts):
    tree, slow = kernels.HuffmanTree(counts), reference.HuffmanTree(counts)
    assert len(tree) == len(slow) == len(counts)
    for part in ("offsets", "nodes", "codes"):
        assert_array_equal(getattr(tree, part), getattr(slow, part))
    assert paths(tree) == two_queues(counts.tolist())


@each_vocabulary
def test_huffman_codes_are_optimal_and_prefix_free(counts):
    tree = kernels.HuffmanTree(counts)
    heap = counts.tolist()
    heapq.heapify(heap)
    least = 0
    while len(heap) > 1:  # the cost of a tree is the sum of the weights of its inner nodes
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        least += joined
        heapq.heappush(heap, joined)
    assert (np.diff(tree.offsets) * counts).sum() == least
    codes = sorted("".join(map(str, code)) for _, code in paths(tree))
    assert all(not b.startswith(a) for a, b in pairwise(codes))
    # Every path starts at the root, and equal prefixes lead to the same node.
    node_after = {}
    for nodes, code in paths(tree):
        assert nodes[0] == len(counts) - 2
        for depth, node in enumerate(nodes):
            assert node_after.setdefault(tuple(code[:depth]), node) == node
    assert len(set(node_after.values())) == len(node_after) == len(counts) - 1


@pytest.mark.parametrize("counts", [[], [5], [1, 2], [3, 0], [3, -1], [2**62, 2**62]], ids=str)
def test_counts_that_define_no_tree_are_refused(counts):
    with pytest.raises(ValueError, match=r"^counts: "):
        kernels.HuffmanTree(np.array(counts, np.int64))


@pytest.mark.parametrize("made", [kernels.NoiseTable, kernels.HuffmanTree])
@pytest.mark.parametrize("values", [np.ones(3, np.float32), np.ones((3, 1)), np.ones(6)[::2], np.ones(3, np.int32)])
def test_tables_refuse_arrays_of_other_types(made, values):
    with pytest.raises(ValueError, match=r"^(weights|counts): expected"):
        made(values)
