"""Reference for co-occurrence counting and GloVe: csrc/cooccurrence/cooccurrence.h and csrc/glove/glove.h."""

from itertools import pairwise

import numpy as np

from embfast.reference.draws import Purpose, Stream, below, random_order


def count_pairs(ids, offsets, *, window, symmetric, distance_weighting):
    """Reference for CooccurrenceCounter, one pair at a time. Returns a dictionary from (row, column) to the sum.

    symmetric: Count pairs in both directions. Otherwise the row is the earlier word.
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


def group_entries(entries, place, *, n_rows, tile, n_groups, seed):
    """Sorts entries into tiles of tile x tile words, or random groups if tile is 0. Returns group edges and entries.

    Entries of a tile are shuffled, so any part of a tile is a random sample of it.
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
    """Weight of an entry. Source: Pennington, Socher, Manning 2014, eq. 9."""
    return min(1.0, (x / x_max) ** alpha)


def entry_step(w, c, w_sums, c_sums, x, *, x_max, alpha, lr):
    """One AdaGrad step on entry_weight(x) * (w . c + b + b~ - log x)^2 / 2, in place. Returns the loss before the step.

    The last element of each vector is its bias. Each component of a gradient is clipped to -100..100; the components of
    the vectors, but not the bias, are multiplied by lr. Each is divided by the root of its sum of squares so far.
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


def train_entries(job, w_in, w_out, sums_in, sums_out, entries, groups, order, threads=1):
    """Reference for kernels.train_entries, one entry at a time. Returns the summed loss and the number of entries.

    job: kernels.GLOVE_JOB or a dict with dim, x_max, alpha, lr, seed, epoch, first and last. The tables are
    (words, dim + 1 or more), and column dim is the bias. Group g is entries[groups[g]:groups[g + 1]]. Groups
    order[first:last] are trained in turn; each is reshuffled in every epoch.
    """
    loss, n, dim = 0.0, 0, int(job["dim"])
    x_max, alpha, lr = (float(job[name]) for name in ("x_max", "alpha", "lr"))
    for group in order[int(job["first"]) : int(job["last"])]:
        begin, end = int(groups[group]), int(groups[group + 1])
        for i in random_order(end - begin, job["seed"], job["epoch"], Purpose.SHUFFLE, begin):
            row, column, x = entries[begin + i]
            rows = w_in[row, : dim + 1], w_out[column, : dim + 1], sums_in[row, : dim + 1], sums_out[column, : dim + 1]
            loss += entry_step(*rows, float(x), x_max=x_max, alpha=alpha, lr=lr)
        n += end - begin
    return float(loss), n
