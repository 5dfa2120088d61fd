"""Training on windows of sequences as a device does it: csrc/sequences/sequences.cu."""

from itertools import pairwise

import numpy as np

from embfast.reference.draws import Purpose, Stream, below
from embfast.reference.sequences import (
    Model,
    document_row,
    document_seed,
    edges,
    linear_decay,
    logistic_step,
    subsample,
)


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
    """What the kernels of sequences.cu do, their blocks one after the other. Returns loss, examples, kept tokens.

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
