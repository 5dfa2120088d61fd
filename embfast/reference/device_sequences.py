"""Training on windows of sequences in the order of a device: the reference for csrc/sequences/sequences.cu."""

from itertools import pairwise

import numpy as np

from embfast.reference.draws import Purpose, Stream
from embfast.reference.sequences import (
    Model,
    document_row,
    document_seed,
    draw_radius,
    edges,
    linear_decay,
    logistic_step,
    read_job,
    subsample,
)


class DeviceWindow:
    """Copies of the rows of a sentence that a thread block holds, and their values when they were read.

    Slots are positions in the sentence, or ("tag", i). give adds the change of a row to its table.
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
    """Path, center and negatives as a list of (table, row, label); None for a negative that equals the center."""
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
    time. Outputs come in chunks of 32, and each is read while the one before it is processed. Returns the loss."""
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
    """Trains the outputs of a center with one hidden row, four at a time, in chunks of 32. Returns the change of the
    hidden row and the loss."""
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


def device_train_sequences(job, arrays, blocks=1):
    """As the kernels of sequences.cu, one thread block after the other. Returns loss, examples, kept tokens.

    Settings and arrays are those of train_sequences, with these differences:
        pieces: replace blocks; each center is trained alone, with its own radius and negatives.
        noise: the alias table; center number p of the corpus takes the draws p * drawn onwards.
        tags: None: document d has the tag d.
        seeds: one per piece, which is then trained as a separate corpus.
        tag_weight: with CBOW a tag counts as this many words of the window.
    blocks: thread blocks of the grid; block b takes the pieces b, b + blocks, ...
    """
    job, given = read_job(job, arrays)
    total, examples, kept = 0.0, 0, 0
    n_pieces, window, words = len(given.pieces) - 1, job.window, job.words
    for piece in [p for b in range(blocks) for p in range(b, n_pieces, blocks)]:
        begin, end = int(given.pieces[piece]), int(given.pieces[piece + 1])
        own, origin = (job.seed, 0) if given.seeds is None else (given.seeds[piece], begin)
        place = begin - origin
        lr = linear_decay(job.lr_first, job.lr_last, (job.tokens_before + place) / job.tokens_total)
        model = Model(given.w_in, given.w_out, given.w_nodes, given.tree, 1.0, lr, given.w_docs, job.frozen)
        widths, draws = Stream(own, job.epoch, Purpose.WINDOW), Stream(own, job.epoch, Purpose.SUBSAMPLE)
        documents = np.searchsorted(given.offsets, edges(given.offsets, begin, end)[:-1], "right") - 1
        keep = lambda p, o=origin, draws=draws: draws(p - o)  # noqa: E731
        sentences = subsample(given.ids, given.offsets, begin, end, given.keep, keep)
        for document, sentence in zip(documents, sentences, strict=True):
            if len(sentence) == 0:
                continue
            ring, mine = DeviceWindow(), []
            if given.w_docs is not None:
                first, last = (0, 0) if given.tags is None else given.tag_offsets[document : document + 2]
                mine = [document] if given.tags is None else list(given.tags[first:last])
            for i, tag in enumerate(mine):
                ring.take(("tag", i), given.w_docs, tag)
            for p in range(min(window, len(sentence)) if words else 0):
                ring.take(p, given.w_in, sentence[p])
            for c, center in enumerate(sentence):
                if words and c + window < len(sentence):
                    ring.take(c + window, given.w_in, sentence[c + window])
                radius = draw_radius(job, widths, place + c)
                near = [p for p in range(c - radius, c + radius + 1) if p != c and 0 <= p < len(sentence)]
                rows = [ring.rows["tag", i] for i in range(len(mine))] + [ring.rows[p] for p in near if words]
                drawn = (
                    []
                    if given.w_out is None
                    else given.noise.sample(job.drawn, own, job.epoch, (place + c) * job.drawn)
                )
                loss, n = device_center(model, job, rows, len(mine), center, drawn) if rows else (0.0, 0)
                total, examples = total + loss, examples + n
                if words and c >= window:
                    ring.give(c - window, job.frozen)
                if c % 16 == 15:
                    for i, tag in enumerate(mine):
                        ring.give(("tag", i))
                        ring.take(("tag", i), given.w_docs, tag)
            for slot in list(ring.rows):
                ring.give(slot, job.frozen and not isinstance(slot, tuple))
            place += len(sentence)
            kept += len(sentence)
    return float(total), examples, kept


def device_center(model, job, rows, n_tags, center, drawn):
    """Trains on one center. rows: the rows of its window, tags first, changed in place. Returns loss and examples."""
    if job.cbow:
        counts = np.array([job.tag_weight] * n_tags + [1.0] * (len(rows) - n_tags))
        share = 1.0 / counts.sum()
        hidden = counts @ np.array(rows) * (share if job.mean else 1.0)
        delta, loss = device_predict(model, hidden, center, drawn)
        for row, count in zip(rows, counts, strict=True):
            row += count * delta * (1.0 if job.mean else share)
        return loss, 1
    if job.words:
        return device_skip_gram(model, rows, center, drawn), len(rows)
    total = 0.0
    for row in rows:
        delta, loss = device_predict(model, row, center, drawn)
        row += delta
        total += loss
    return total, len(rows)


def device_infer_documents(job, arrays, epochs, averaged=1):
    """As infer_documents, in the order of the device kernels."""
    one, w_docs, offsets, dim = job.copy(), arrays["w_docs"], arrays["offsets"], job["dim"].item()
    seeds = [document_seed(arrays["ids"][begin:end], job["seed"].item()) for begin, end in pairwise(offsets)]
    for row, own, n in zip(w_docs, seeds, np.diff(offsets), strict=True):
        row[:] = 0
        row[:dim] = document_row(own, dim) if n else 0
    tally, after = np.zeros(3), []
    one["frozen"], one["words"], one["tokens_total"] = True, one["cbow"], epochs
    for epoch in range(epochs):
        one["epoch"] = one["tokens_before"] = epoch
        tally += device_train_sequences(one, {**arrays, "pieces": offsets, "seeds": seeds})
        after.append(w_docs.copy())
    w_docs[:] = np.mean(after[-averaged:], axis=0)
    return float(tally[0]), int(tally[1]), int(tally[2])
