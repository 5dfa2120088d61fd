"""Training on windows of sequences, and inference of documents: the reference for csrc/sequences/sequences.h."""

import heapq
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from embfast.reference.draws import GOLDEN, Purpose, Stream, below, mix64


def linear_decay(first, last, progress):
    """The learning rate, which falls linearly from first to last as progress goes from 0 to 1."""
    return first + (last - first) * progress


class HuffmanTree:
    """Huffman paths (1952) of words with positive counts in descending order: the tree of hierarchical softmax.

    The path from the root to word i is nodes[offsets[i]:offsets[i + 1]]. Inner nodes are 0..n-2 and n-2 is the root;
    codes give the next child. Each step joins the two lightest vertices. Ties are resolved as in word2vec.c: an inner
    node goes before a word, an older node before a newer one, a rarer word before a more frequent one.
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

    x (inputs, dim), y (outputs, dim), weight and label (inputs, outputs). Returns the changes of x and of y, both
    computed from the values before the step, and the loss in nats.
    Source: Mikolov et al. 2013, arXiv:1310.4546, eq. 4; as one matrix product, Ji et al. 2016, arXiv:1604.04661.
    """
    score = x @ y.T
    probability = np.exp(-np.logaddexp(0.0, -score))
    step = lr * weight * (label - probability)
    loss = weight * (label * np.logaddexp(0.0, -score) + (1.0 - label) * np.logaddexp(0.0, score))
    return step @ y, step.T @ x, loss.sum()


@dataclass
class Model:
    """The tables in training: w_out for negative sampling, w_nodes and tree for hierarchical softmax, or both."""

    w_in: np.ndarray | None
    w_out: np.ndarray | None
    w_nodes: np.ndarray | None
    tree: HuffmanTree | None
    scale: float  # weight of a negative
    lr: float
    w_docs: np.ndarray | None = None  # one row per tag
    frozen: bool = False  # only w_docs is trained

    def step(self, x, centers, drawn, share):
        """Trains the rows x with the path of the first center, the centers (label 1) and the negatives (label 0).

        share (inputs, centers): how often each row counts for each center. A negative that equals the center has
        weight 0. Changes the output tables; returns the change of x and the loss.
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
        # add.at, not +=: a word may occur twice among the outputs, and both changes count.
        if self.w_nodes is not None:
            np.add.at(self.w_nodes, nodes, dy[: len(nodes)])
        if self.w_out is not None:
            np.add.at(self.w_out, words, dy[len(nodes) :])
        return dx, loss


@dataclass
class Batch:
    """Neighbouring centers of one sentence, with one radius and one set of negatives."""

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
        """float (positions, centers): 1 where the position is in the center's window and not the center itself."""
        distance = np.abs(np.arange(len(self.sentence))[:, None] - np.arange(self.first, self.last)[None, :])
        return ((distance > 0) & (distance <= self.radius)).astype(float)


def skip_gram_batch(model, batch, words=True):
    """Each word of a window predicts its center; all pairs of the batch are one step. Returns the loss and the pairs.

    Sources: Mikolov et al. 2013, arXiv:1301.3781; the pairs of a window share their negatives as in Ji et al. 2016,
    arXiv:1604.04661, and here all pairs of the batch do. A word that occurs twice gets both changes. Tags predict every
    center (PV-DBOW, Le & Mikolov 2014, arXiv:1405.4053); with words=False, only tags predict.
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
    """As word2vec.c: one pair after the other, each with its own negatives. batch.drawn is (pairs, drawn)."""
    total, positions = 0.0, np.flatnonzero(batch.near)
    for position, drawn in zip(positions, batch.drawn, strict=True):
        context = batch.sentence[position]
        dx, loss = model.step(model.w_in[[context]], batch.centers, drawn, np.ones((1, 1)))
        model.w_in[context] += dx[0]
        total += loss
    return total, len(positions)


def cbow_batch(model, batch, mean):
    """The words of a window jointly predict its center. Returns the loss and the number of centers with a window.

    Source: Mikolov et al. 2013, arXiv:1301.3781. With the mean, each word changes by the whole error of the mean, which
    is its gradient times the number of words (as in word2vec.c); with the sum, by its gradient divided by that number.
    Tags are further members of every window (PV-DM, Le & Mikolov 2014, arXiv:1405.4053). A repeated tag counts as
    several members.
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
    """PV-DM with concatenation: a hidden row is the tags, then the words of the full window; output rows are as wide.

    The last row of w_in replaces words beyond the ends of the sentence. Returns the loss and the number of centers.
    Sources: Le & Mikolov 2014, arXiv:1405.4053; the missing word as in gensim.
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
    """The sentences of ids[begin:end], cut at the offsets. A token is kept if its 32-bit draw is <= keep[id]."""
    sentences = []
    for start, stop in pairwise(edges(offsets, begin, end)):
        tokens = ids[start:stop]
        if keep is not None:
            tokens = tokens[draw(np.arange(start, stop)) >> np.uint64(32) <= keep[tokens]]
        sentences.append(tokens)
    return sentences


def edges(offsets, begin, end):
    """Starts of the sentences within the tokens begin..end, and the end of the last one."""
    return [begin, *(int(o) for o in offsets if begin < o < end), min(end, int(offsets[-1]))]


ARRAYS = (
    *("w_in", "w_out", "w_nodes", "w_docs"),
    *("ids", "offsets", "blocks", "pieces"),
    *("keep", "noise", "tree", "tag_offsets", "tags", "seeds"),
)


def read_job(job, arrays):
    """Settings of a record (kernels.SEQUENCE_JOB) and arrays of a call, as attributes; missing arrays are None."""
    assert arrays.keys() <= set(ARRAYS), arrays.keys() - set(ARRAYS)
    settings = dict(zip(job.dtype.names, job.reshape(-1)[0].tolist(), strict=True))
    settings["words"] = settings["words"] or settings["cbow"]
    return SimpleNamespace(**settings), SimpleNamespace(**{name: arrays.get(name) for name in ARRAYS})


def draw_radius(job, widths, place):
    """The radius of the batch at a place in the corpus, in kept tokens."""
    return 1 + int(below(widths(place), job.window)) if job.shrink else job.window


def train_sequences(job, arrays, first_block, last_block, threads=1):
    """As kernels.train_sequences, one batch at a time. Returns (loss in nats, examples, kept tokens).

    job: a record of settings, see csrc/sequences/job.h.
        window: radius of the windows; with shrink each batch draws its radius from 1..window, at the index (first token
            of the block) + (kept tokens of the block before the batch).
        centers: centers per batch. drawn: negatives per batch, or per pair if not shared; each has the weight scale.
        words: if False, only tags predict (skip-gram); w_in may be None.
        concat: hidden rows of CBOW are tags and words concatenated; w_in has one more row, w_out and w_nodes are wider.
        frozen: only w_docs is trained.
    arrays: by name.
        w_in, w_out (words, dim), w_nodes (words - 1, dim): changed in place; w_out or w_nodes may be None. Columns
            after dim hold zeros and keep them.
        ids: words; document d is ids[offsets[d]:offsets[d + 1]], block b is ids[blocks[b]:blocks[b + 1]]. Windows do
            not cross an edge of either. The learning rate is that of the block's first token.
        noise: the pool of negatives. Each block starts reading at a random place; a set that would pass the end of the
            pool is read from its start.
        w_docs (tags, dim): document d has the rows tags[tag_offsets[d]:tag_offsets[d + 1]], which belong to each of its
            windows.
    """
    job, given = read_job(job, arrays)
    total, examples, kept = 0.0, 0, 0
    per_pair = not (job.shared or job.cbow)
    widths, places = Stream(job.seed, job.epoch, Purpose.WINDOW), Stream(job.seed, job.epoch, Purpose.PLACE)
    for begin, end in pairwise(given.blocks[first_block : last_block + 1]):
        progress = (job.tokens_before + begin) / max(job.tokens_total, 1)
        lr = linear_decay(job.lr_first, job.lr_last, progress)
        model = Model(given.w_in, given.w_out, given.w_nodes, given.tree, job.scale, lr, given.w_docs, job.frozen)
        at = int(begin)
        place = int(below(places(at), len(given.noise))) if job.drawn > 0 else 0
        documents = np.searchsorted(given.offsets, edges(given.offsets, begin, end)[:-1], "right") - 1
        draw = Stream(job.seed, job.epoch, Purpose.SUBSAMPLE)
        sentences = subsample(given.ids, given.offsets, begin, end, given.keep, draw)
        for document, sentence in zip(documents, sentences, strict=True):
            for first in range(0, len(sentence), job.centers):
                last = min(first + job.centers, len(sentence))
                batch = Batch(sentence, first, last, draw_radius(job, widths, at + first), np.empty(0, int))
                if given.w_docs is not None:
                    batch.tags = given.tags[given.tag_offsets[document] : given.tag_offsets[document + 1]]
                sets = int(batch.near.sum()) if per_pair else 1
                if job.drawn > 0:
                    if place + sets * job.drawn > len(given.noise):
                        place = 0
                    batch.drawn = given.noise[place : place + sets * job.drawn]
                    place += sets * job.drawn
                if per_pair:
                    batch.drawn = batch.drawn.reshape(sets, job.drawn)
                    loss, n = skip_gram_pairs(model, batch)
                elif job.concat:
                    loss, n = concat_batch(model, batch)
                elif job.cbow:
                    loss, n = cbow_batch(model, batch, job.mean)
                else:
                    loss, n = skip_gram_batch(model, batch, job.words)
                total += loss
                examples += n
            at += len(sentence)
            kept += len(sentence)
    return float(total), examples, kept


@np.errstate(over="ignore")
def document_seed(ids, seed):
    """The seed of a document that is trained as a separate corpus."""
    own = np.uint64(seed)
    for word in ids:
        own = mix64(own + GOLDEN + np.uint64(word))
    return own


def document_row(seed, dim):
    """The initial row of a new document, float64 (dim,): uniform in (-0.5, 0.5) / dim."""
    return ((Stream(seed, 0, Purpose.WEIGHTS)(np.arange(dim)) >> np.uint64(40)) * 2.0**-24 - 0.5) / dim


def infer_documents(job, arrays, epochs, averaged=1, threads=1):
    """As kernels.infer_documents: fits row d of w_docs to document d, ids[offsets[d]:offsets[d + 1]].

    Each document is trained as a separate corpus, with all other rows frozen, starting from values uniform in
    (-0.5, 0.5) / dim. The result is the mean of its row after each of the last `averaged` epochs. With CBOW the row
    counts as tag_weight words of the window. The document's seed is derived from its ids and seed; nothing else has an
    influence. A document without tokens gets zeros. job and arrays are those of train_sequences. Returns (loss in nats,
    examples, kept tokens).
    """
    tally, tag_weight, dim = np.zeros(3), int(job["tag_weight"][0]), int(job["dim"][0])
    offsets = arrays["offsets"]
    for row, begin, end in zip(arrays["w_docs"], offsets[:-1], offsets[1:], strict=True):
        row[:] = 0
        document = arrays["ids"][begin:end]
        if len(document) == 0:
            continue
        one = job.copy()
        one["seed"] = document_seed(document, job["seed"][0])
        one["frozen"] = one["shared"] = True
        one["words"] = one["cbow"]
        one["tokens_total"] = epochs * len(document)
        row[:dim] = document_row(one["seed"][0], dim)
        ends, after = np.array([0, len(document)], np.int64), []
        alone = {"ids": document, "offsets": ends, "blocks": ends, "w_docs": row[None]}
        alone |= {"tag_offsets": np.array([0, tag_weight]), "tags": np.zeros(tag_weight, int)}
        for epoch in range(epochs):
            one["epoch"], one["tokens_before"] = epoch, epoch * len(document)
            tally += train_sequences(one, {**arrays, **alone}, 0, 1)
            after.append(row.copy())
        row[:] = np.mean(after[-averaged:], axis=0)
    return float(tally[0]), int(tally[1]), int(tally[2])
