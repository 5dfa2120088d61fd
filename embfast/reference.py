"""Every kernel in plain numpy, with the names and arguments of embfast.kernels: the specification, never a fallback.

Whatever the kernels draw, it draws too; weights may be float64, so that it can be held to calculus.
"""

import heapq
import re
from dataclasses import dataclass, field
from enum import IntEnum
from fractions import Fraction
from itertools import pairwise

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Purpose(IntEnum):
    """What a stream of draws is for: no two purposes share a draw."""

    SUBSAMPLE = 1
    WINDOW = 2
    NEGATIVE = 3
    WEIGHTS = 4
    SHUFFLE = 5
    GROUP = 6
    ORDER = 7
    PLACE = 8
    WALK = 16


@np.errstate(over="ignore")
def mix64(z):
    """The output function of SplitMix64 (Steele, Lea, Flood 2014): a bijection of uint64, one value or an array.

    >>> hex(mix64(GOLDEN))  # the generator's first number from seed 0
    '0xe220a8397b1dcdaf'
    """
    z = np.asarray(z, np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Stream:
    """SplitMix64 read at an index: draw i is a function of (seed, epoch, purpose, i) and of nothing else."""

    @np.errstate(over="ignore")
    def __init__(self, seed, epoch, purpose):
        self.key = mix64(mix64(mix64(np.uint64(seed) + GOLDEN) + np.uint64(epoch)) + np.uint64(purpose))

    @np.errstate(over="ignore")
    def __call__(self, i):
        return mix64(self.key + (np.asarray(i, np.uint64) + np.uint64(1)) * GOLDEN)


def below(draw, n):
    """A whole number in 0..n-1 from the high 32 bits of a draw."""
    return ((draw >> np.uint64(32)) * np.uint64(n) >> np.uint64(32)).astype(np.int64)


def linear_decay(first, last, progress):
    """The learning rate falls linearly from first to last as progress goes from 0 to 1."""
    return first + (last - first) * progress


class NoiseTable:
    """An alias table: draws word i with probability weights[i] / sum(weights).

    Each cell holds its own word below a threshold of 32 bits and one other word, its alias, from there on.
    Source: Walker 1977; built in linear time as in Vose 1991, from the back of both lists.
    """

    def __init__(self, weights):
        n = len(weights)
        mass = weights / np.cumsum(weights)[-1] * n  # cumsum adds in order, sum does not
        small = [i for i in range(n) if mass[i] < 1.0]
        large = [i for i in range(n) if mass[i] >= 1.0]
        self.thresholds = np.full(n, 2**32 - 1, np.uint32)
        self.aliases = np.arange(n, dtype=np.int32)
        while small and large:
            poor, rich = small.pop(), large[-1]
            self.thresholds[poor] = int(mass[poor] * 2**32)
            self.aliases[poor] = rich
            mass[rich] -= 1.0 - mass[poor]
            if mass[rich] < 1.0:
                small.append(large.pop())

    def __len__(self):
        return len(self.thresholds)

    def sample(self, n, seed, epoch, first=0):
        """Draws first, first + 1, ... of this seed and epoch, (n,), as train_sequences wants them."""
        return alias_draw(self, Stream(seed, epoch, Purpose.NEGATIVE)(np.arange(first, first + n)))


def alias_draw(table, draw):
    """The word that a draw picks: its high half chooses the cell, its low half the word or the alias."""
    cell = below(draw, len(table.thresholds))
    low = draw & np.uint64(0xFFFFFFFF)
    return np.where(low < table.thresholds[cell], cell, table.aliases[cell])


class HuffmanTree:
    """Huffman paths (1952) of words whose counts are positive and descend: the tree of hierarchical softmax.

    Word i is reached from the root by nodes[offsets[i]:offsets[i + 1]], inner nodes 0..n-2 of which n-2 is the root,
    and codes say which child is next. The two lightest join: of equal ones an inner node goes before a word, an older
    node before a younger, a rarer word before a more frequent, as in word2vec.c.
    """

    def __init__(self, counts):
        n = len(counts)
        heap = [(int(count), 1, -word, word) for word, count in enumerate(counts)]
        heapq.heapify(heap)
        parent, code = {}, {}
        for made in range(n, 2 * n - 1):
            first, second = heapq.heappop(heap), heapq.heappop(heap)
            for child, bit in ((first[-1], 0), (second[-1], 1)):
                parent[child], code[child] = made, bit
            heapq.heappush(heap, (first[0] + second[0], 0, made, made))
        offsets, nodes, codes = [0], [], []
        for word in range(n):
            path, vertex = [], word
            while vertex in parent:
                path.append((parent[vertex] - n, code[vertex]))
                vertex = parent[vertex]
            nodes += [node for node, _ in reversed(path)]
            codes += [bit for _, bit in reversed(path)]
            offsets.append(len(nodes))
        self.offsets = np.array(offsets, np.int64)
        self.nodes = np.array(nodes, np.int32)
        self.codes = np.array(codes, np.uint8)

    def __len__(self):
        return len(self.offsets) - 1


def logistic_step(x, y, weight, label, lr):
    """One step of gradient descent on sum(weight * -log p), where p = sigmoid(x @ y.T) should equal label.

    x (inputs, dim), y (outputs, dim), weight and label (inputs, outputs). Returns the moves of x and of y, both taken
    from the values before the step, and the loss in nats.
    Source: Mikolov et al. 2013, arXiv:1310.4546, eq. 4; as one matrix product, Ji et al. 2016, arXiv:1604.04661.
    """
    score = x @ y.T
    probability = np.exp(-np.logaddexp(0.0, -score))
    step = lr * weight * (label - probability)
    loss = weight * (label * np.logaddexp(0.0, -score) + (1.0 - label) * np.logaddexp(0.0, score))
    return step @ y, step.T @ x, loss.sum()


@dataclass
class Model:
    """The tables that a batch moves. w_out serves negative sampling, w_nodes and tree hierarchical softmax, or both."""

    w_in: np.ndarray | None
    w_out: np.ndarray | None
    w_nodes: np.ndarray | None
    tree: HuffmanTree | None
    scale: float  # weight of a drawn negative
    lr: float
    w_docs: np.ndarray | None = None  # a row for each tag
    frozen: bool = False  # only w_docs moves

    def step(self, x, centers, drawn, share):
        """Shows the rows x to the path of the first center, to the centers (label 1) and to drawn words (label 0).

        share (inputs, centers) says how often each row counts for each center. A negative that is the center itself
        counts for nothing. Moves the output tables; returns the move of x and the loss.
        """
        nodes, codes, words = np.empty(0, int), np.empty(0, int), np.empty(0, int)
        if self.w_nodes is not None:
            path = slice(self.tree.offsets[centers[0]], self.tree.offsets[centers[0] + 1])
            nodes, codes = self.tree.nodes[path], self.tree.codes[path]
        weight, label = [np.ones((len(centers), len(nodes)))], [1.0 - codes]
        if self.w_out is not None:
            words = np.concatenate([centers, drawn])
            weight += [np.eye(len(centers)), self.scale * (drawn[None, :] != centers[:, None])]
            label += [np.ones(len(centers)), np.zeros(len(drawn))]
        y = np.concatenate([t[i] for t, i in ((self.w_nodes, nodes), (self.w_out, words)) if t is not None])
        dx, dy, loss = logistic_step(x, y, share @ np.hstack(weight), np.concatenate(label), self.lr)
        if self.frozen:
            return dx, loss
        # add.at, not +=: the same word may stand twice among the outputs, and both moves count.
        if self.w_nodes is not None:
            np.add.at(self.w_nodes, nodes, dy[: len(nodes)])
        if self.w_out is not None:
            np.add.at(self.w_out, words, dy[len(nodes) :])
        return dx, loss


@dataclass
class Batch:
    """Neighbouring centers of one sentence, with one half-window and one set of draws."""

    sentence: np.ndarray  # kept words
    first: int  # the centers are sentence[first:last]
    last: int
    radius: int
    drawn: np.ndarray
    tags: np.ndarray = field(default_factory=lambda: np.empty(0, int))  # rows of w_docs in the window of every center

    @property
    def centers(self):
        return self.sentence[self.first : self.last]

    @property
    def near(self):
        """(positions, centers): 1 where the position is in the center's window and is not the center itself."""
        distance = np.abs(np.arange(len(self.sentence))[:, None] - np.arange(self.first, self.last)[None, :])
        return ((distance > 0) & (distance <= self.radius)).astype(float)


def skip_gram_batch(model, batch, words=True):
    """Each word near a center predicts it; all pairs of the batch are one step. Returns the loss and the pairs.

    Source: Mikolov et al. 2013, arXiv:1301.3781; the window shares its negatives as in Ji et al. 2016,
    arXiv:1604.04661, and here the neighbouring centers do too. A word that stands twice gets both moves. Tags predict
    every center: PV-DBOW of Le & Mikolov 2014, arXiv:1405.4053, where words=False leaves it to them alone.
    """
    n_tags = len(batch.tags)
    near = np.ones((n_tags, len(batch.centers)))
    x = np.empty((0, 0)) if model.w_docs is None else model.w_docs[batch.tags]
    if words:
        near = np.concatenate([near, batch.near])
        x = np.concatenate([x, model.w_in[batch.sentence]]) if n_tags else model.w_in[batch.sentence]
    if not near.any():
        return 0.0, 0
    dx, loss = model.step(x, batch.centers, batch.drawn, near)
    if n_tags:
        model.w_docs[batch.tags] += dx[:n_tags]
    if words and not model.frozen:
        np.add.at(model.w_in, batch.sentence, dx[n_tags:])
    return loss, int(near.sum())


def skip_gram_pairs(model, batch):
    """As word2vec.c: pair after pair, each with its own draws. batch.drawn is (pairs, drawn)."""
    total, positions = 0.0, np.flatnonzero(batch.near)
    for position, drawn in zip(positions, batch.drawn, strict=True):
        context = batch.sentence[position]
        dx, loss = model.step(model.w_in[[context]], batch.centers, drawn, np.ones((1, 1)))
        model.w_in[context] += dx[0]
        total += loss
    return total, len(positions)


def cbow_batch(model, batch, mean):
    """The words near a center predict it together. Returns the loss and the number of centers that have any.

    Source: Mikolov et al. 2013, arXiv:1301.3781. With the mean, each word moves by the whole error of the mean, which
    is its gradient times the number of words (as word2vec.c); with the sum, by its gradient over that number. Tags are
    further members of every window: PV-DM of Le & Mikolov 2014, arXiv:1405.4053. One that stands several times counts
    as several members.
    """
    near, n_tags = batch.near, len(batch.tags)
    count = near.sum(axis=0) + n_tags
    with_context = count > 0
    near, count = near[:, with_context], count[with_context]
    if len(count) == 0:
        return 0.0, 0
    hidden = near.T @ model.w_in[batch.sentence]
    if n_tags:
        hidden += model.w_docs[batch.tags].sum(axis=0)
    if mean:
        hidden /= count[:, None]
    share = np.eye(len(batch.centers))[with_context]
    delta, loss = model.step(hidden, batch.centers, batch.drawn, share)
    if not mean:
        delta /= count[:, None]
    if n_tags:
        np.add.at(model.w_docs, batch.tags, delta.sum(axis=0))
    if not model.frozen:
        np.add.at(model.w_in, batch.sentence, near @ delta)
    return loss, len(count)


def concat_batch(model, batch):
    """PV-DM with concatenation: tags, then the words of the full window, end to end; outputs are as wide.

    The last row of w_in stands where a window passes the end of its sentence. Returns the loss and the centers.
    Source: Le & Mikolov 2014, arXiv:1405.4053; the missing word as in gensim.
    """
    steps = [step for step in range(-batch.radius, batch.radius + 1) if step != 0]
    places = np.arange(batch.first, batch.last)[:, None] + steps
    outside = (places < 0) | (places >= len(batch.sentence))
    words = np.where(outside, len(model.w_in) - 1, batch.sentence[np.where(outside, 0, places)])
    tags = np.tile(batch.tags, (len(places), 1))
    parts = np.concatenate([model.w_docs[tags], model.w_in[words]], axis=1)
    hidden = parts.reshape(len(parts), -1)
    delta, loss = model.step(hidden, batch.centers, batch.drawn, np.eye(len(batch.centers)))
    delta = delta.reshape(parts.shape)
    np.add.at(model.w_docs, tags, delta[:, : len(batch.tags)])
    if not model.frozen:
        np.add.at(model.w_in, words, delta[:, len(batch.tags) :])
    return loss, len(places)


def subsample(ids, offsets, begin, end, keep, draw):
    """The sentences of ids[begin:end], cut at the offsets: each token stays when its 32-bit draw is <= keep[id]."""
    sentences = []
    for start, stop in pairwise(edges(offsets, begin, end)):
        tokens = ids[start:stop]
        if keep is not None:
            tokens = tokens[draw(np.arange(start, stop)) >> np.uint64(32) <= keep[tokens]]
        sentences.append(tokens)
    return sentences


def edges(offsets, begin, end):
    """Where the sentences of the tokens begin..end start, and the end of the last."""
    return [begin, *(int(o) for o in offsets if begin < o < end), min(end, int(offsets[-1]))]


def train_sequences(
    w_in,
    w_out,
    w_nodes,
    ids,
    offsets,
    blocks,
    first_block,
    last_block,
    keep=None,
    noise=None,
    tree=None,
    w_docs=None,
    tag_offsets=None,
    tags=None,
    *,
    window,
    shrink,
    cbow,
    words=True,
    mean,
    concat=False,
    shared,
    centers,
    drawn,
    scale,
    seed,
    epoch,
    lr_first,
    lr_last,
    tokens_before,
    tokens_total,
    threads=1,
    frozen=False,
):
    """What kernels.train_sequences does, one batch at a time. Returns (loss in nats, examples, kept tokens).

    w_in, w_out (words, dim), w_nodes (words - 1, dim): moved in place; w_out or w_nodes may be None.
    ids: words; document d is ids[offsets[d]:offsets[d + 1]], block b is ids[blocks[b]:blocks[b + 1]]. No window
        crosses an edge of either, and the learning rate is that of the block's first token.
    window: words on each side; with shrink each batch draws its own width from 1..window.
    centers: neighbours that share a batch. drawn: negatives of a batch, or of a pair when not shared, each weighing
        scale. Widths are indexed by the block's first token plus the kept tokens before the batch.
    noise: words drawn ahead. Each block reads on from a place that it draws; what would pass the end of noise begins at
        its start.
    w_docs (tags, dim): document d has the rows tags[tag_offsets[d]:tag_offsets[d + 1]], which are in each of its
        windows. words=False: with skip-gram, they alone; w_in may be None.
    concat: CBOW's hidden rows are tags and words end to end; w_in has one row more, w_out and w_nodes are wider.
    frozen: only w_docs moves.
    """
    total, examples, kept = 0.0, 0, 0
    per_pair = not (shared or cbow)
    widths, places = Stream(seed, epoch, Purpose.WINDOW), Stream(seed, epoch, Purpose.PLACE)
    for begin, end in zip(blocks[first_block:last_block], blocks[first_block + 1 : last_block + 1], strict=True):
        lr = linear_decay(lr_first, lr_last, (tokens_before + begin) / max(tokens_total, 1))
        model = Model(w_in, w_out, w_nodes, tree, scale, lr, w_docs, frozen)
        at = int(begin)
        place = int(below(places(at), len(noise))) if drawn > 0 else 0
        documents = np.searchsorted(offsets, edges(offsets, begin, end)[:-1], "right") - 1
        sentences = subsample(ids, offsets, begin, end, keep, Stream(seed, epoch, Purpose.SUBSAMPLE))
        for document, sentence in zip(documents, sentences, strict=True):
            for first in range(0, len(sentence), centers):
                last = min(first + centers, len(sentence))
                radius = 1 + int(below(widths(at + first), window)) if shrink else window
                batch = Batch(sentence, first, last, radius, np.empty(0, int))
                if w_docs is not None:
                    batch.tags = tags[tag_offsets[document] : tag_offsets[document + 1]]
                sets = int(batch.near.sum()) if per_pair else 1
                if drawn > 0:
                    if place + sets * drawn > len(noise):
                        place = 0
                    batch.drawn = noise[place : place + sets * drawn]
                    place += sets * drawn
                if per_pair:
                    batch.drawn = batch.drawn.reshape(sets, drawn)
                    loss, n = skip_gram_pairs(model, batch)
                elif concat:
                    loss, n = concat_batch(model, batch)
                elif cbow:
                    loss, n = cbow_batch(model, batch, mean)
                else:
                    loss, n = skip_gram_batch(model, batch, words)
                total += loss
                examples += n
            at += len(sentence)
            kept += len(sentence)
    return float(total), examples, kept


@np.errstate(over="ignore")
def document_seed(ids, seed):
    """The seed of a document that is a corpus of its own."""
    own = np.uint64(seed)
    for word in ids:
        own = mix64(own + GOLDEN + np.uint64(word))
    return own


def document_row(seed, dim):
    """Where the row of a new document begins, float64 (dim,): uniform in (-0.5, 0.5) / dim."""
    return ((Stream(seed, 0, Purpose.WEIGHTS)(np.arange(dim)) >> np.uint64(40)) * 2.0**-24 - 0.5) / dim


def infer_documents(
    w_docs,
    dim,
    w_in,
    w_out,
    w_nodes,
    ids,
    offsets,
    keep=None,
    noise=None,
    tree=None,
    *,
    cbow,
    epochs,
    averaged=1,
    tag_weight=1,
    seed,
    **settings,
):
    """What kernels.infer_documents does: fits row d of w_docs to document d, ids[offsets[d]:offsets[d + 1]].

    Each document is a corpus of its own, trained for so many epochs with all else frozen, from numbers uniform in
    (-0.5, 0.5) / dim; its row becomes the mean of those after each of the last `averaged` epochs. With CBOW it counts
    as tag_weight words of the window. Its seed is made of its ids and of seed: nothing else has an influence. One
    without tokens gets zeros. settings are those of train_sequences. Returns (loss in nats, examples, kept tokens).
    """
    tally = np.zeros(3)
    for row, begin, end in zip(w_docs, offsets[:-1], offsets[1:], strict=True):
        row[:] = 0
        document = ids[begin:end]
        if len(document) == 0:
            continue
        own = document_seed(document, seed)
        row[:dim] = document_row(own, dim)
        ends, after = np.array([0, len(document)], np.int64), []
        for epoch in range(epochs):
            tally += train_sequences(
                w_in,
                w_out,
                w_nodes,
                document,
                ends,
                ends,
                0,
                1,
                keep,
                noise,
                tree,
                row[None],
                np.array([0, tag_weight]),
                np.zeros(tag_weight, int),
                cbow=cbow,
                words=cbow,
                shared=True,
                seed=own,
                epoch=epoch,
                tokens_before=epoch * len(document),
                tokens_total=epochs * len(document),
                frozen=True,
                **settings,
            )
            after.append(row.copy())
        row[:] = np.mean(after[-averaged:], axis=0)
    return float(tally[0]), int(tally[1]), int(tally[2])


# ---- devices ------------------------------------------------------------------------------------------------------


class DeviceWindow:
    """The rows that a block of threads holds of a sentence: copies, and what they were when they came.

    Slots are positions of the sentence, or ("tag", i). What has changed goes back to the table with give.
    """

    def __init__(self):
        self.rows, self.before, self.home = {}, {}, {}

    def take(self, slot, table, i):
        self.rows[slot], self.before[slot], self.home[slot] = table[i].copy(), table[i].copy(), (table, i)

    def give(self, slot, frozen=False):
        table, i = self.home.pop(slot)
        change = self.rows.pop(slot) - self.before.pop(slot)
        if not frozen:
            table[i] += change


def device_outputs(model, center, drawn):
    """The outputs of a center in order, (table, row, label): path, center, negatives; None where one is the center."""
    outputs = []
    if model.w_nodes is not None:
        path = slice(model.tree.offsets[center], model.tree.offsets[center + 1])
        pairs = zip(model.tree.nodes[path], model.tree.codes[path], strict=True)
        outputs += [(model.w_nodes, node, 1.0 - code) for node, code in pairs]
    if model.w_out is not None:
        outputs += [(model.w_out, center, 1.0)]
        outputs += [None if word == center else (model.w_out, word, 0.0) for word in drawn]
    return outputs


def device_skip_gram(model, rows, center, drawn):
    """Each of rows, a list of arrays changed in place, predicts the center: one output after the other, four rows at a
    time. An output row is read while the one before it is at work, 32 to a chunk. Returns the loss."""
    total, outputs = 0.0, device_outputs(model, center, drawn)
    for chunk in range(0, len(outputs), 32):
        part = outputs[chunk : chunk + 32]
        ahead = None if part[0] is None else part[0][0][part[0][1]].copy()
        for here, following in zip(part, [*part[1:], None], strict=True):
            y = ahead
            ahead = None if following is None else following[0][following[1]].copy()
            if here is None:
                continue
            table, i, label = here
            y_before = y.copy()
            for k in range(0, len(rows), 4):
                four = np.stack(rows[k : k + 4])
                dx, dy, loss = logistic_step(four, y[None], 1.0, label, model.lr)
                for row, move in zip(rows[k : k + 4], dx, strict=True):
                    row += move
                if not model.frozen:
                    y = y + dy[0]
                total += loss
            if not model.frozen:
                table[i] += y - y_before
    return total


def device_predict(model, hidden, center, drawn):
    """A row against the outputs of a center, four at a time, 32 to a chunk. Returns its move and the loss."""
    total, delta, outputs = 0.0, np.zeros_like(hidden), device_outputs(model, center, drawn)
    for chunk in range(0, len(outputs), 32):
        part = outputs[chunk : chunk + 32]
        for t in range(0, len(part), 4):
            four = [output for output in part[t : t + 4] if output is not None]
            if not four:
                continue
            y = np.stack([table[i] for table, i, _ in four])
            label = np.array([label for _, _, label in four])
            dx, dy, loss = logistic_step(hidden[None], y, 1.0, label, model.lr)
            delta += dx[0]
            total += loss
            if not model.frozen:
                for (table, i, _), move in zip(four, dy, strict=True):
                    table[i] += move
    return delta, total


def device_train_sequences(
    w_in,
    w_out,
    w_nodes,
    ids,
    offsets,
    pieces,
    keep=None,
    noise=None,
    tree=None,
    w_docs=None,
    tag_offsets=None,
    tags=None,
    seeds=None,
    *,
    window,
    shrink,
    cbow,
    words=True,
    mean,
    drawn,
    seed,
    epoch,
    lr_first,
    lr_last,
    tokens_before,
    tokens_total,
    frozen=False,
    tag_weight=1,
    blocks=1,
):
    """What the kernels of csrc/sequences.cu do, their blocks one after the other. Returns loss, examples, kept tokens.

    The arguments are those of train_sequences, save that a piece is what a block there is, that each center is alone
    with its own width and draws, and that noise is the alias table: center number p of the corpus draws the words
    p * drawn onwards. blocks: those of the grid; block b takes the pieces b, b + blocks, ... tags=None: document d has
    the tag d. seeds: one for each piece, which then is a corpus of its own. tag_weight: with CBOW a tag counts as so
    many words of the window.
    """
    total, examples, kept = 0.0, 0, 0
    n_pieces = len(pieces) - 1
    for piece in [p for b in range(blocks) for p in range(b, n_pieces, blocks)]:
        begin, end = int(pieces[piece]), int(pieces[piece + 1])
        own, origin = (seed, 0) if seeds is None else (seeds[piece], begin)
        place = begin - origin
        lr = linear_decay(lr_first, lr_last, (tokens_before + place) / tokens_total)
        model = Model(w_in, w_out, w_nodes, tree, 1.0, lr, w_docs, frozen)
        widths, draws = Stream(own, epoch, Purpose.WINDOW), Stream(own, epoch, Purpose.SUBSAMPLE)
        documents = np.searchsorted(offsets, edges(offsets, begin, end)[:-1], "right") - 1
        sentences = subsample(ids, offsets, begin, end, keep, lambda p, o=origin, draws=draws: draws(p - o))
        for document, sentence in zip(documents, sentences, strict=True):
            if len(sentence) == 0:
                continue
            ring, mine = DeviceWindow(), []
            if w_docs is not None:
                mine = [document] if tags is None else list(tags[tag_offsets[document] : tag_offsets[document + 1]])
            for i, tag in enumerate(mine):
                ring.take(("tag", i), w_docs, tag)
            for p in range(min(window, len(sentence)) if words else 0):
                ring.take(p, w_in, sentence[p])
            for c, center in enumerate(sentence):
                if words and c + window < len(sentence):
                    ring.take(c + window, w_in, sentence[c + window])
                radius = 1 + int(below(widths(place + c), window)) if shrink else window
                near = [p for p in range(c - radius, c + radius + 1) if p != c and 0 <= p < len(sentence)]
                rows = [ring.rows["tag", i] for i in range(len(mine))] + [ring.rows[p] for p in near if words]
                negatives = noise.sample(drawn, own, epoch, (place + c) * drawn) if w_out is not None else []
                if rows and cbow:
                    counts = np.array([tag_weight] * len(mine) + [1.0] * (len(rows) - len(mine)))
                    share = 1.0 / counts.sum()
                    hidden = counts @ np.array(rows) * (share if mean else 1.0)
                    delta, loss = device_predict(model, hidden, center, negatives)
                    for row, count in zip(rows, counts, strict=True):
                        row += count * delta * (1.0 if mean else share)
                    total, examples = total + loss, examples + 1
                elif rows and not words:
                    for row in rows:
                        delta, loss = device_predict(model, row, center, negatives)
                        row += delta
                        total, examples = total + loss, examples + 1
                elif rows:
                    total += device_skip_gram(model, rows, center, negatives)
                    examples += len(rows)
                if words and c >= window:
                    ring.give(c - window, frozen)
                if c % 16 == 15:
                    for i, tag in enumerate(mine):
                        ring.give(("tag", i))
                        ring.take(("tag", i), w_docs, tag)
            for slot in list(ring.rows):
                ring.give(slot, frozen and not isinstance(slot, tuple))
            place += len(sentence)
            kept += len(sentence)
    return float(total), examples, kept


def device_infer_documents(w_docs, dim, w_in, w_out, w_nodes, ids, offsets, keep=None, noise=None, tree=None, *,
                           cbow, epochs, averaged=1, seed, **settings):  # fmt: skip
    """infer_documents as the device kernels do it."""
    seeds = [document_seed(ids[begin:end], seed) for begin, end in pairwise(offsets)]
    for row, own, n in zip(w_docs, seeds, np.diff(offsets), strict=True):
        row[:] = 0
        row[:dim] = document_row(own, dim) if n else 0
    tally, after = np.zeros(3), []
    for epoch in range(epochs):
        tally += device_train_sequences(
            w_in, w_out, w_nodes, ids, offsets, offsets, keep, noise, tree, w_docs, seeds=seeds, cbow=cbow, words=cbow,
            seed=seed, epoch=epoch, tokens_before=epoch, tokens_total=epochs, frozen=True, **settings,
        )  # fmt: skip
        after.append(w_docs.copy())
    w_docs[:] = np.mean(after[-averaged:], axis=0)
    return float(tally[0]), int(tally[1]), int(tally[2])


# ---- decimals -----------------------------------------------------------------------------------------------------

_DECIMAL = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def nearest_float32(token):
    """The float32 nearest to a decimal in bytes, of two that are as near the even one; None where that is no number,
    overflows, or becomes 0 though it is not.

    >>> nearest_float32(b"+1e-1")
    np.float32(0.1)
    """
    if not _DECIMAL.fullmatch(token):
        return None
    with np.errstate(over="ignore", under="ignore"):
        near = np.float32(float(token))  # rounded twice: at most one step away
    if not np.isfinite(near) or (near == 0 and re.search(rb"[1-9]", re.split(rb"[eE]", token)[0])):
        return None
    exact = Fraction(token.decode())
    with np.errstate(over="ignore", under="ignore"):
        steps = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    steps = [step for step in steps if np.isfinite(step)]
    found = min(steps, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1))
    return np.copysign(found, np.float32(-1 if token.startswith(b"-") else 1))


def parse_lines(text, dim, threads):
    """What kernels.parse_lines does, one number at a time."""
    bounds, row, plain, values = [], [], [], []
    begin = 0
    for line in re.findall(rb"[^\n]*\n", text):
        stop = len(line) - 1
        key, *tokens = line.split() or [b""]
        fits = stop >= 2 * dim
        numbers = [nearest_float32(token) for token in tokens] if fits and len(tokens) == dim else []
        plain.append(len(numbers) == dim and None not in numbers)
        row.append(len(values) if fits else -1)
        if fits:
            values.append(numbers if plain[-1] else [np.nan] * dim)
        first = line.index(key) if plain[-1] else 0
        bounds.append((begin + first, begin + (first + len(key) if plain[-1] else stop)))
        begin += len(line)
    return (
        np.array(bounds, np.int64).reshape(-1, 2),
        np.array(row, np.int64),
        np.array(plain, bool),
        np.array(values, np.float32).reshape(-1, dim),
    )


def format_lines(keys, rows, separator, threads):
    """What kernels.format_lines does: of the spellings that read back to the same float32, the shortest, then the
    nearest; without an exponent where that is no longer."""

    def shortest(x):
        if x == 0:
            return "-0" if np.signbit(x) else "0"
        fixed = str(int(x)) if abs(x) >= 2**24 else np.format_float_positional(x, trim="-")  # large ones are exact
        mantissa, exponent = np.format_float_scientific(x, trim="-", exp_digits=2).split("e")
        scientific = f"{mantissa}e{exponent}"
        return fixed if len(fixed) <= len(scientific) else scientific

    lines = [[shortest(x) for x in row] for row in rows]
    if keys is not None:
        lines = [[key.decode(), *line] for key, line in zip(keys, lines, strict=True)]
    return "".join(separator.join(line) + "\n" for line in lines).encode()


def count_pairs(ids, offsets, *, window, symmetric, distance_weighting):
    """What a CooccurrenceCounter counts, pair by pair: a dictionary from (row, column) to the sum.

    Symmetric, each pair counts in both directions; otherwise in one, the row being the word that comes first.
    """
    sums = {}
    for begin, end in pairwise(offsets):
        for later in range(begin, end):
            for earlier in range(max(begin, later - window), later):
                weight = 1.0 / (later - earlier) if distance_weighting else 1.0
                pair = (int(ids[earlier]), int(ids[later]))
                for place in [pair, pair[::-1]] if symmetric else [pair]:
                    sums[place] = sums.get(place, 0.0) + weight
    return sums


def random_order(n, seed, epoch, purpose=Purpose.ORDER, first=0):
    """A random order of 0..n-1 by Fisher and Yates, inside out: step i takes draw first + i."""
    order = np.zeros(n, np.int64)
    for i, draw in enumerate(Stream(seed, epoch, purpose)(first + np.arange(n))):
        j = below(draw, i + 1)
        order[i] = order[j]
        order[j] = i
    return order


def group_entries(entries, place, *, n_rows, tile, n_groups, seed):
    """Where each group begins, and entries by group: tiles of tile x tile words, or random groups if tile is 0.

    Entries stand in random order in a tile, so that any part of them is a random one.
    """
    moved = entries.copy()
    moved["row"], moved["column"] = place[entries["row"]], place[entries["column"]]
    if tile:
        group = moved["row"] // tile * -(-n_rows // tile) + moved["column"] // tile
    else:
        group = below(Stream(seed, 0, Purpose.GROUP)(np.arange(len(entries))), n_groups)
    groups = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=n_groups))])
    grouped = moved[np.argsort(group, kind="stable")]
    if tile:
        for begin, end in pairwise(groups):
            grouped[begin:end] = grouped[begin:end][random_order(end - begin, seed, 0, Purpose.GROUP, begin)]
    return groups, grouped


def entry_weight(x, x_max, alpha):
    """How much an entry counts. Source: Pennington, Socher, Manning 2014, eq. 9."""
    return min(1.0, (x / x_max) ** alpha)


def entry_step(w, c, w_sums, c_sums, x, *, x_max, alpha, lr):
    """One step of AdaGrad on entry_weight(x) * (w . c + b + b~ - log x)^2 / 2, in place; returns that loss.

    The last number of each vector is its bias. A gradient is held in -100..100 by component and multiplied by lr, but
    that of a bias is not; it moves its number over the root of the sum of the squares before it.
    Source: Pennington, Socher, Manning 2014, and their glove.c.
    """
    difference = w[:-1] @ c[:-1] + w[-1] + c[-1] - np.log(x)
    gradient = entry_weight(x, x_max, alpha) * difference
    rates = np.append(np.full(len(w) - 1, lr), 1.0)
    w_step = np.clip(gradient * np.append(c[:-1], 1.0), -100, 100) * rates
    c_step = np.clip(gradient * np.append(w[:-1], 1.0), -100, 100) * rates
    for vector, sums, step in ((w, w_sums, w_step), (c, c_sums, c_step)):
        vector -= step / np.sqrt(sums)
        sums += step**2
    return 0.5 * gradient * difference


def train_entries(
    w_in,
    w_out,
    sums_in,
    sums_out,
    dim,
    entries,
    groups,
    order,
    first,
    last,
    *,
    x_max,
    alpha,
    lr,
    seed,
    epoch,
    threads=1,
):
    """What kernels.train_entries does, one entry at a time. Returns the summed loss and the number of entries.

    w_in, w_out and their sums of squares (words, dim + 1 or more): column dim is the bias. Group g is
    entries[groups[g]:groups[g + 1]]; groups order[first:last] are trained in turn, each shuffled anew for the epoch.
    """
    loss, n = 0.0, 0
    for group in order[first:last]:
        begin, end = int(groups[group]), int(groups[group + 1])
        for i in random_order(end - begin, seed, epoch, Purpose.SHUFFLE, begin):
            row, column, x = entries[begin + i]
            rows = w_in[row, : dim + 1], w_out[column, : dim + 1], sums_in[row, : dim + 1], sums_out[column, : dim + 1]
            loss += entry_step(*rows, float(x), x_max=x_max, alpha=alpha, lr=lr)
        n += end - begin
    return float(loss), n


def bias(graph, previous, current, x, p, q, thresholds=None):
    """What multiplies the weight of the edge from current to x for a walk that came from previous.

    node2vec's (Grover and Leskovec 2016); with thresholds of the nodes, node2vec+'s (Liu, Hirn and Krishnan 2023).
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
    """The weight of the edge from a to b; 0 without one."""
    row = slice(graph.offsets[a], graph.offsets[a + 1])
    place = np.flatnonzero(graph.neighbours[row] == b)
    if not len(place):
        return 0.0
    return 1.0 if graph.weights is None else float(graph.weights[row][place[0]])


def noise_thresholds(graph, gamma):
    """node2vec+: mean + gamma * standard deviation of each node's weights, 0 or more."""
    rows = [graph.weights[a:b].astype(np.float64) for a, b in pairwise(graph.offsets)]
    return np.array([max(0.0, row.mean() + gamma * row.std()) if len(row) else 0.0 for row in rows])


def transition_probabilities(graph, previous, current, p, q, thresholds=None):
    """float64 (degree,): of each neighbour of current, by enumeration; previous = -1 in the first step of a walk."""
    row = slice(graph.offsets[current], graph.offsets[current + 1])
    mass = np.ones(row.stop - row.start) if graph.weights is None else graph.weights[row].astype(np.float64)
    if previous >= 0:
        mass = mass * [bias(graph, previous, current, x, p, q, thresholds) for x in graph.neighbours[row]]
    return mass / mass.sum()


def random_walk(graph, start, repetition, *, length, p=1.0, q=1.0, restart=0.0, thresholds=None, types=None,
                metapath=None, seed=0):  # fmt: skip
    """The walk of a node in a repetition, as walks.Walks has it: a list of nodes."""
    stream = Stream(seed, repetition, Purpose.WALK)
    walk = Stream.__new__(Stream)
    walk.key = stream(start)
    least, most = min(1.0, 1.0 / q), max(1.0, 1.0 / q)
    excess = max(0.0, 1.0 / p - most)
    first_order = p == q == 1
    nodes, previous = [start], -1

    def candidate(draw):
        cell = int(below(draw, degree))
        if weights is None:
            return cell
        table = NoiseTable(weights.astype(np.float64))
        coin = int(mix64(draw)) & 0xFFFFFFFF
        return cell if coin < table.thresholds[cell] else int(table.aliases[cell])

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
            nodes.append(int(neighbours[candidate(walk(number))]))
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
            x = int(neighbours[candidate(draw)])
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


# ---- images: embfast/images.py ------------------------------------------------------------------------------------


def full_network_embedding(
    train: list[np.ndarray], test: list[np.ndarray], lower: float = -0.25, upper: float = 0.15
) -> np.ndarray:
    """What FullNetworkEmbedding makes of test, int8 (n, dim), when fitted to train; layers as (n, channels[, h, w])."""
    fitted, asked = (
        np.concatenate([m.reshape(*m.shape[:2], -1).mean(axis=2) for m in maps], 1) for maps in (train, test)
    )
    mean, sd = fitted.mean(axis=0), fitted.std(axis=0)
    out = np.zeros(asked.shape, np.int8)
    for row, features in zip(out, asked, strict=True):
        for d in np.flatnonzero(sd):
            z = (features[d] - mean[d]) / sd[d]
            row[d] = 1 if z > upper else -1 if z < lower else 0
    return out


# ---- ternary rows: csrc/ternary.h ---------------------------------------------------------------------------------


def ternary_levels(features, low, high, levels):
    """What kernels.ternary_levels does: fills int8 levels (n, dim); the first row with a NaN, where it stops, or -1."""
    for i, row in enumerate(features):
        if np.isnan(row).any():
            return i
        levels[i] = np.where(row > high, 1, np.where(row < low, -1, 0))
    return -1


def ternary_pack(features, low, high, planes):
    """What kernels.ternary_pack does: fills planes, uint64 (n, 2, words)."""
    levels = np.zeros((len(features), planes.shape[2] * 64), np.int8)
    bad = ternary_levels(features, low, high, levels[:, : features.shape[1]])
    done = len(features) if bad < 0 else bad
    for plane, level in enumerate((1, -1)):
        planes[:done, plane] = np.packbits(levels[:done] == level, axis=1, bitorder="little").view(np.uint64)
    return bad


def ternary_unpack(planes, levels):
    """What kernels.ternary_unpack does: fills levels, int8 (n, dim)."""
    bits = np.unpackbits(planes.view(np.uint8), axis=2, count=levels.shape[1], bitorder="little").astype(np.int8)
    levels[:] = bits[:, 0] - bits[:, 1]


def ternary_nonzeros(planes, nonzeros):
    """What kernels.ternary_nonzeros does: fills nonzeros, int32 (n,)."""
    levels = np.zeros((len(planes), planes.shape[2] * 64), np.int8)
    ternary_unpack(planes, levels)
    nonzeros[:] = np.count_nonzero(levels, axis=1)


def ternary_top(queries, planes, nonzeros, *, excluded, own, first, ids, keys, threads):
    """What kernels.ternary_top does: takes ids and keys, the k best rows so far, further by the rows of planes."""
    rows, asked = (np.zeros((len(p), p.shape[2] * 64), np.int8) for p in (planes, queries))
    ternary_unpack(planes, rows)
    ternary_unpack(queries, asked)
    numbers = first + np.arange(len(rows))
    for q, query in enumerate(asked):
        dots = (rows.astype(np.int64) @ query.astype(np.int64)).astype(np.float64)
        key = dots * np.abs(dots) / np.maximum(nonzeros, 1)
        allowed = np.ones(len(rows), bool) if excluded is None else excluded == 0
        if own is not None:
            allowed &= numbers != own[q]
        all_ids = np.concatenate([ids[q], numbers[allowed]])
        all_keys = np.concatenate([keys[q], key[allowed]])
        order = np.lexsort((all_ids, -all_keys))[: len(ids[q])]
        ids[q], keys[q] = all_ids[order], all_keys[order]


def similarity(image, caption, kind):
    """Of one image and one caption."""
    if kind == "order":
        return -float(np.sum(np.maximum(0, caption - image) ** 2))
    if kind == "cosine":
        norms = np.sqrt(image @ image) * np.sqrt(caption @ caption)
        return float(image @ caption / norms) if norms else 0.0
    return float(image @ caption)


def order_scores(images, captions, scores, *, threads=1):
    """What kernels.order_scores does, one pair at a time. Fills scores (images, captions)."""
    for i, image in enumerate(images):
        for j, caption in enumerate(captions):
            scores[i, j] = similarity(image, caption, "order")


def add_order_gradients(images, captions, weights, to_images, to_captions, *, threads=1):
    """What kernels.add_order_gradients does: adds the gradient of the sum of weights * scores. None for a side: not."""
    for i, image in enumerate(images):
        for j, caption in enumerate(captions):
            move = 2 * weights[i, j] * np.maximum(0, caption - image)
            if to_images is not None:
                to_images[i] += move
            if to_captions is not None:
                to_captions[j] -= move


def hinges(scores, row_bounds, column_bounds, row_active, column_active):
    """What kernels.hinges does: the sum of max(0, score + bound) over rows' and columns' bounds, None for none.

    Each score becomes the number of its terms above 0, which are also added up by row and by column.
    """
    loss = 0.0
    for i, j in np.ndindex(scores.shape):
        score, scores[i, j] = scores[i, j], 0
        for bounds, active, k in ((row_bounds, row_active, i), (column_bounds, column_active, j)):
            if bounds is not None and score + bounds[k] > 0:
                loss += float(score + bounds[k])
                scores[i, j] += 1
                active[k] += 1
    return loss


def hardest(scores, axis, below, first, best, found):
    """What kernels.hardest does: takes each row's largest score (axis 1: column's) into best and found.

    found is its place + first; the first of equals stays. With below, only scores less than below of the row count.
    """
    for i, row in enumerate(scores.T if axis else scores):
        for j, score in enumerate(row):
            if score > best[i] and (below is None or score < below[i]):
                best[i], found[i] = score, first + j


def rankings(images, captions, kind, groups=None, direction="both", offset=0):
    """Of each image, then of each caption: the similarity of its pair, and those of its negatives in order."""
    for side in ("images", "captions"):
        if direction not in ("both", side):
            continue
        queries, others = (images, captions) if side == "images" else (captions, images)
        for i, query in enumerate(queries):
            own = offset + i
            pairs = [(query, other) if side == "images" else (other, query) for other in others]
            scores = [similarity(image, caption, kind) for image, caption in pairs]
            negatives = [
                score
                for j, score in enumerate(scores)
                if j != own and (groups is None or groups[j] != groups[own])
            ]  # fmt: skip
            yield scores[own], negatives


def ranking_loss(images, captions, *, mode, similarity, margin, k=None, groups=None, direction="both", offset=0):
    """What embfast.ranking.ranking_loss returns."""
    loss = 0.0
    for paired, negatives in rankings(images, captions, similarity, groups, direction, offset):
        hardest = sorted(negatives, reverse=True)
        if mode == "semihard":
            hardest = [score for score in hardest if score < paired]
        count = {"sum": len(hardest), "topk": k}.get(mode, 1)
        loss += sum(max(0.0, margin + score - paired) for score in hardest[:count])
    return loss


def info_nce(images, captions, *, temperature, similarity, groups=None, direction="both", offset=0):
    """What embfast.ranking.info_nce returns."""
    loss = 0.0
    for paired, negatives in rankings(images, captions, similarity, groups, direction, offset):
        loss += np.logaddexp.reduce(np.array([paired, *negatives]) / temperature) - paired / temperature
    return loss
