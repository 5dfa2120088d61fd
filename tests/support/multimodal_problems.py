"""A small data set of images and captions for the tests of Multimodal."""

import numpy as np

from embfast.multimodal.captions import Captions
from embfast.vectors.vectors import Vectors

COLOURS, THINGS = ("red", "blue", "green", "black", "white"), ("dog", "cat", "boat", "tree", "car", "ball")


def world(noise=0.05, seed=0):
    """30 images of coloured things: a vector and four captions each; the last six are "dev"."""
    rng = np.random.default_rng(seed)
    keys, rows, pairs = [], [], []
    parts = rng.normal(size=(len(COLOURS) + len(THINGS), 20)).astype(np.float32)
    order = rng.permutation(len(COLOURS) * len(THINGS)).tolist()
    for n, i in enumerate(order):
        c, t = divmod(i, len(THINGS))
        key = f"{COLOURS[c]}-{THINGS[t]}.jpg"
        keys.append(key)
        rows.append(parts[c] + parts[len(COLOURS) + t] + noise * rng.normal(size=20))
        split = "train" if n < 24 else "dev"
        for text in ("A {} {} .", "there is one {} {} here", "{} {}", "Look at the very {} {} over there !"):
            pairs.append((key, text.format(COLOURS[c], THINGS[t]), split))
    return Vectors(keys, np.array(rows, np.float32)), Captions.from_pairs(pairs)


SMALL = {"dim": 16, "word_dim": 12, "batch": 16, "lr": 0.01, "epochs": 3}


def weights(model):
    return {name: t.detach().cpu().numpy().copy() for name, t in model.towers_.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
