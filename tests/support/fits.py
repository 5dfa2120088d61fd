"""Small fits of every model in every mode, and checksums of all they learn; run as a script, those of one section.

EMBFAST_ISA=avx2 python tests/support/fits.py out.json kernels    what trains on one instruction set
python tests/support/fits.py out.json host                        or networks, shim, ptx
python tests/support/fits.py --record                             all that this machine has, into tests/fits.json

Only public names of embfast are used, so that the file holds while the code behind them moves. Longer than 500 lines,
since it is one list: the fits of all models.
"""

import ctypes
import hashlib
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zlib
from functools import cache
from itertools import cycle, product
from pathlib import Path

import numpy as np

import embfast

TESTS = Path(__file__).parents[1]
RECORDED = TESTS / "fits.json"
RECORD = "python tests/support/fits.py --record"
ISAS = ("baseline", "avx2", "avx512", "avx512popcnt", "avx512bf16")
SECTIONS = (*ISAS, "host", "networks", "shim", "ptx")

FITS = {}  # by section and name: functions without arguments, which return values by name


def fit(section, name, function):
    """Adds a fit to a section."""
    named = FITS.setdefault(section, {})
    assert name not in named, f"{section}: {name} is there twice"
    named[name] = function


def chosen(name, **choices):
    """One of each, at random but the same for a name, so that no two settings change in step."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return {setting: of[int(rng.integers(len(of)))] for setting, of in choices.items()}


# ---- checksums ----------------------------------------------------------------------------------------------------


def checksum(values):
    """Of values by name: arrays, numbers, and lists of numbers or str."""
    digest = hashlib.sha256()
    for name, value in sorted(values.items()):
        array = np.asarray(value)
        if array.dtype.kind == "U":
            array = np.frombuffer("\0".join(array.ravel().tolist()).encode(), np.uint8)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite numbers, of which some rounding can be seen")
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def learned(model, **more):
    """All tensors of a model's file, so that output weights count too, its losses, and other values."""
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save(path)
        tensors = load_file(path)
    assert tensors
    return {**{f"tensor {name}": array for name, array in tensors.items()}, "loss": model.loss_, **more}


# ---- texts and graphs ---------------------------------------------------------------------------------------------


@cache
def sentences(n=60, words=50, longest=40, seed=0):
    """Lists of words, the first of which are the most frequent."""
    rng = np.random.Generator(np.random.PCG64(seed))
    made = []
    for _ in range(n):
        draws = rng.integers(0, words, (2, int(rng.integers(1, longest))))
        made.append([f"w{draw}" for draw in (draws[0] * draws[1] // words).tolist()])
    return made


@cache
def corpus(**how):
    return embfast.Corpus.from_sentences(sentences(**how), min_count=1)


@cache
def graph(kind="plain", nodes=40, edges=160):
    """Directed, weighted, both or neither, as its kind says; the last node has no edge."""
    rng = np.random.Generator(np.random.PCG64(7))
    sources, targets = rng.integers(0, nodes - 1, (2, edges))
    sources = sources * targets // nodes  # some nodes have many edges
    weights = rng.integers(1, 9, edges) / 4 if "weighted" in kind else None
    return embfast.Graph.from_edges(sources, targets, weights, n_nodes=nodes, directed="directed" in kind)


@cache
def named_edges(first, last):
    """A graph whose nodes are known by name, for models that go on with another one."""
    rng = np.random.Generator(np.random.PCG64(last))
    ends = rng.integers(first, last, (2, 5 * (last - first)))
    return embfast.Graph.from_edges(*(np.array([f"n{i}" for i in side]) for side in ends.tolist()))


# ---- Word2Vec -----------------------------------------------------------------------------------------------------

OUTPUTS = {
    "ns": {},
    "hs": {"hs": True, "negatives": 0},
    "both": {"hs": True},
}
WINDOWS = {"skip-gram": {}, "cbow mean": {"cbow": True}, "cbow sum": {"cbow": True, "cbow_mean": False}}
WORDS = {"epochs": 2, "threads": 1, "lr": 0.05}


def words(**settings):
    return lambda: learned(embfast.Word2Vec(**{**WORDS, **settings}).fit(corpus()))


def more_words(seed, n_words, **settings):
    """fit, then partial_fit of another text, with other words if there are more of them."""

    def run():
        model = embfast.Word2Vec(**{**WORDS, "dim": 20, "sample": 0.01, **settings}).fit(corpus())
        return learned(model.partial_fit(corpus(seed=seed, words=n_words, n=30)))

    return run


def word_fits():
    choices = {
        "dim": (7, 16, 20, 100, 300),
        "sample": (0, 0.01, 1e-3),
        "window": (5, 2, 8, 1),
        "ns_exponent": (0.75, 0.0, 1.0),
        "negatives": (5, 7, 3, 8, 1, 10, 12),
    }
    for (window, how), (output, outputs), shared, shrink in product(
        WINDOWS.items(), OUTPUTS.items(), (True, False), (True, False)
    ):
        name = f"Word2Vec {window}, {output}, {'shared' if shared else 'own'}, {'shrinking' if shrink else 'full'}"
        settings = chosen(name, **choices) | how | outputs | {"negatives_shared": shared, "shrink_windows": shrink}
        fit("kernels", name, words(**settings))
    for window, how in WINDOWS.items():
        for wide in (16, 51):
            fit("kernels", f"Word2Vec {window}, window {wide}", words(dim=20, window=wide, sample=0.01, **how))
        fit("kernels", f"Word2Vec {window}, min_lr", words(dim=20, min_lr=0.02, sample=0, **how))
        fit("kernels", f"Word2Vec {window}, seed", words(dim=20, seed=2**64 - 3, sample=0.01, **how))
        for output, outputs in OUTPUTS.items():
            name = f"Word2Vec {window}, {output}, partial_fit"
            fit("kernels", f"{name} of known words", more_words(1, 40, **how, **outputs))
            fit("kernels", f"{name} of new words", more_words(2, 70, **how, **outputs))
        fit("kernels", f"Word2Vec {window}, several blocks", lambda how=how: learned(
            embfast.Word2Vec(dim=8, epochs=1, negatives=3, window=3, threads=1, **how).fit(
                corpus(n=600, words=300, longest=60)
            )
        ))  # fmt: skip
    fit("kernels", "Word2Vec default rates", words(dim=20, lr=None))
    fit("kernels", "Word2Vec cbow default rates", words(dim=20, lr=None, cbow=True))
    fit("kernels", "Word2Vec transform", lambda: {
        "means": embfast.Word2Vec(dim=20, **WORDS).fit(corpus()).transform(corpus(seed=2, words=70, n=30))
    })  # fmt: skip


# ---- Doc2Vec ------------------------------------------------------------------------------------------------------

DOCUMENTS = {
    "dm mean": {"mode": "dm"},
    "dm sum": {"mode": "dm", "dm": "sum"},
    "dm concat": {"mode": "dm", "dm": "concat"},
    "dbow": {"mode": "dbow"},
    "dbow words": {"mode": "dbow", "dbow_words": True},
    "both": {"mode": "both"},
    "both concat words": {"mode": "both", "dm": "concat", "dbow_words": True},
}


def tags_of(kind, first=0, n=60):
    """One tag for each document; two for each; or some, none for every third."""
    if kind == "one":
        return [f"d{d}" for d in range(first, first + n)]
    if kind == "two":
        return [[f"d{d}", f"group {d % 4}"] for d in range(first, first + n)]
    return [[f"d{d}", f"group {d % 4}", f"other {d % 5}"][: d % 3] for d in range(first, first + n)]


def documents(tags="one", more=None, **settings):
    """A fit and vectors of new documents; more: documents of partial_fit, by their first number and how many words."""

    def run():
        model = embfast.Doc2Vec(**{"epochs": 2, "threads": 1, "min_count": 1, "window": 3, **settings})
        model.fit(corpus(), tags=tags_of(tags))
        stacked = settings.get("dm") == "concat" and tags != "one"  # where nothing can be inferred
        inferred = () if stacked else model.infer(corpus(seed=3, n=10))
        if more is not None:
            first, n_words = more
            given = embfast.Corpus.from_sentences(sentences(n=20, words=n_words, seed=4), min_count=1)
            model.partial_fit(given, tags=tags_of(tags, first, 20))
        later = () if stacked else model.infer(corpus(seed=5, n=5), epochs=3)
        return learned(model, inferred=inferred, inferred_later=later)

    return run


def document_fits():
    choices = {
        "dim": (7, 16, 20, 100),
        "sample": (0, 0.01, 1e-3),
        "ns_exponent": (0.75, 0.0, 1.0),
        "negatives": (5, 7, 3, 8, 1),
        "tag_weight": (4, 1),
        "shrink_windows": (True, False),
    }
    for (mode, how), (output, outputs), shared in product(DOCUMENTS.items(), OUTPUTS.items(), (True, False)):
        name = f"Doc2Vec {mode}, {output}, {'shared' if shared else 'own'}"
        # Concatenation needs as many tags for each document.
        tags = chosen(name + ", tags", tags=("one", "two") if "concat" in mode else ("one", "two", "some"))["tags"]
        settings = chosen(name, **choices) | how | outputs | {"negatives_shared": shared}
        fit("kernels", name, documents(tags, **settings))
    for mode, how in DOCUMENTS.items():
        tags = "one" if "concat" in mode else "some"
        common = {"dim": 12, "sample": 0.01, **how}
        fit("kernels", f"Doc2Vec {mode}, partial_fit of known tags", documents(tags, (30, 40), **common))
        fit("kernels", f"Doc2Vec {mode}, partial_fit of new tags and words", documents(tags, (50, 70), **common))
        fit("kernels", f"Doc2Vec {mode}, hs, partial_fit", documents(tags, (50, 70), hs=True, negatives=0, **common))
    fit("kernels", "Doc2Vec wide window", documents("two", dim=12, mode="both", dbow_words=True, window=60, sample=0))
    fit("kernels", "Doc2Vec rates", documents(dim=12, mode="both", lr=0.04, min_lr=0.01, ns_exponent=0.0, seed=9))
    fit("kernels", "Doc2Vec several blocks", lambda: learned(
        embfast.Doc2Vec(dim=8, epochs=1, mode="both", window=2, negatives=2, threads=1).fit(
            corpus(n=600, words=300, longest=60)
        )
    ))  # fmt: skip


# ---- graphs -------------------------------------------------------------------------------------------------------

WALKS = {"walk_length": 12, "walks_per_node": 3, "window": 4, "epochs": 2, "dim": 20, "threads": 1}


def nodes(kind="plain", types=None, **settings):
    return lambda: learned(embfast.Node2Vec(**{**WALKS, **settings}).fit(graph(kind), types=types))


def more_nodes(**settings):
    def run():
        model = embfast.Node2Vec(**{**WALKS, **settings}).fit(named_edges(0, 30))
        model.partial_fit(named_edges(10, 25))
        return learned(model.partial_fit(named_edges(20, 45)))

    return run


def node_fits():
    cases = {
        "default": {},
        "dim 7": {"dim": 7},
        "dim 100": {"dim": 100, "epochs": 1},
        "DeepWalk": {"hs": True, "negatives": 0},
        "ns and hs": {"hs": True},
        "p < q": {"p": 0.25, "q": 4},
        "p > q": {"p": 4, "q": 0.5},
        "restart": {"restart": 0.2},
        "restart, p, q": {"restart": 0.1, "p": 0.5, "q": 2},
        "weighted": {"kind": "weighted"},
        "weighted, p, q": {"kind": "weighted", "p": 0.25, "q": 4},
        "plus": {"kind": "weighted", "plus": True, "p": 2, "q": 0.5},
        "plus, gamma": {"kind": "weighted", "plus": True, "gamma": 0.5, "p": 0.5, "q": 2},
        "directed": {"kind": "directed"},
        "directed weighted, p, q": {"kind": "directed weighted", "p": 0.5, "q": 2},
        "sample": {"sample": 0.02},
        "own negatives": {"negatives_shared": False},
        "own negatives, hs": {"negatives_shared": False, "hs": True},
        "negatives 1": {"negatives": 1},
        "negatives 3": {"negatives": 3},
        "negatives 7": {"negatives": 7},
        "negatives 8": {"negatives": 8},
        "window 1": {"window": 1},
        "window 16": {"window": 16, "walk_length": 30, "walks_per_node": 1},
        "window 51": {"window": 51, "walk_length": 60, "walks_per_node": 1, "epochs": 1},
        "full windows": {"shrink_windows": False},
        "rates": {"lr": 0.04, "min_lr": 0.01, "ns_exponent": 0.5, "seed": 2**63 + 1},
        "metapath": {"metapath": "even,odd,even", "types": ["even", "odd"] * 20},
        "metapath, weighted": {"kind": "weighted", "metapath": "a,b,c,b,a", "types": [*"abcab"] * 8},
    }
    for name, settings in cases.items():
        fit("kernels", f"Node2Vec {name}", nodes(**settings))
    fit("kernels", "Node2Vec partial_fit", more_nodes())
    fit("kernels", "Node2Vec partial_fit, hs", more_nodes(hs=True, negatives=0))
    fit("kernels", "Node2Vec partial_fit, p, q", more_nodes(p=0.5, q=2, negatives=7))


def line(kind="plain", **settings):
    how = {"dim": 20, "epochs": 3, "threads": 1, **settings}
    return lambda: learned(made := embfast.LINE(**how).fit(graph(kind)), vectors=made.vectors_.matrix)


def many_edges():
    rng = np.random.Generator(np.random.PCG64(1))
    return embfast.Graph.from_edges(*rng.integers(0, 2000, (2, 300_000)))


def line_fits():
    choices = {"dim": (7, 16, 20, 100), "negatives": (5, 1, 3, 7, 8), "ns_exponent": (0.75, 0.0, 1.0)}
    for kind, order in product(("plain", "weighted"), ("1", "2", "both")):
        name = f"LINE order {order}, {kind}"
        fit("kernels", name, line(kind, order=order, **chosen(name, **choices)))
    fit("kernels", "LINE directed", line("directed", order="2"))
    fit("kernels", "LINE directed weighted", line("directed weighted", order="2", negatives=3))
    fit("kernels", "LINE rates", line(lr=0.1, min_lr=0.02, seed=2**64 - 1))
    fit("kernels", "LINE dim 300", line(dim=300, epochs=1))
    # More edges than are drawn at once, and below more walks than are.
    fit("kernels", "LINE several buffers", lambda: learned(
        embfast.LINE(order="2", dim=4, epochs=2, negatives=1, threads=1).fit(many_edges())
    ))  # fmt: skip
    many = {"walk_length": 100, "walks_per_node": 140, "window": 1, "negatives": 1, "dim": 4, "epochs": 1}
    fit("kernels", "Node2Vec several buffers", nodes(**many))


# ---- GloVe --------------------------------------------------------------------------------------------------------

GLOVE = {"dim": 20, "window": 6, "epochs": 2, "threads": 1}


def glove(**settings):
    def run():
        model = embfast.GloVe(**{**GLOVE, **settings}).fit(corpus())
        return learned(model, vectors=model.vectors_.matrix)

    return run


def more_glove(n_words, **settings):
    def run():
        model = embfast.GloVe(**{**GLOVE, **settings}).fit(corpus())
        model.partial_fit(corpus(seed=2, words=n_words, n=30))
        return learned(model, vectors=model.vectors_.matrix, means=model.transform(corpus(seed=3, n=10)))

    return run


def glove_fits():
    cases = {
        "default": {},
        "asymmetric": {"symmetric": False},
        "by count": {"distance_weighting": False},
        "asymmetric by count": {"symmetric": False, "distance_weighting": False},
        "x_max": {"x_max": 3.0},
        "alpha": {"alpha": 0.5, "x_max": 10.0},
        "alpha 1": {"alpha": 1.0, "lr": 0.02},
        "input": {"vectors": "input", "dim": 7},
        "both": {"vectors": "both", "dim": 15},
        "dim 16": {"dim": 16},
        "dim 100": {"dim": 100},
        "dim 300": {"dim": 300, "epochs": 1},
        "full shuffle": {"shuffle": "full"},
        "full shuffle, asymmetric": {"shuffle": "full", "symmetric": False, "dim": 31},
        "seed": {"seed": 2**64 - 5, "lr": 0.1},
    }
    for name, settings in cases.items():
        fit("kernels", f"GloVe {name}", glove(**settings))
    for shuffle in ("tiles", "full"):
        fit("kernels", f"GloVe {shuffle}, partial_fit of known words", more_glove(40, shuffle=shuffle))
        fit("kernels", f"GloVe {shuffle}, partial_fit of new words", more_glove(70, shuffle=shuffle))
        fit("kernels", f"GloVe {shuffle}, several tiles and blocks", lambda shuffle=shuffle: learned(
            embfast.GloVe(dim=7, window=15, epochs=1, threads=1, shuffle=shuffle).fit(
                corpus(n=600, words=400, longest=60)
            )
        ))  # fmt: skip


# ---- what no instruction set touches ------------------------------------------------------------------------------


def entries(**settings):
    def run():
        matrix = embfast.CooccurrenceMatrix.from_corpus(corpus(), threads=1, **settings)
        sparse = matrix.ppmi()
        return {
            "rows": matrix.rows,
            "columns": matrix.columns,
            "values": matrix.values,
            "words": matrix.words,
            "counts": matrix.counts,
            "ppmi": sparse.data,
            "ppmi places": sparse.indices,
        }

    return run


NAMES = ("ids", "offsets")


def walk(kind="plain", types=None, **settings):
    def run():
        from embfast.graphs.walks import Walks

        walks = Walks(graph(kind), length=15, per_node=3, seed=5, types=types, **settings)
        spans = [walks.read(0, 0, len(walks)), walks.read(2, 7, 50)]
        return {f"{name} {i}": array for i, span in enumerate(spans) for name, array in zip(NAMES, span, strict=True)}

    return run


def custom_walks():
    """A transition of one's own: as readily to any neighbour, but never past a node of few edges."""
    from numba import njit

    from embfast.graphs.walks import next_draw

    @njit
    def transition(offsets, neighbours, weights, start, previous, current, step, draw):
        degree = offsets[current + 1] - offsets[current]
        if degree < 2:
            return -1
        return neighbours[offsets[current] + int(next_draw(draw) % np.uint64(degree))]

    return learned(embfast.Node2Vec(**WALKS).fit(graph(), transition=transition))


def contents(of):
    return {"ids": of.ids, "offsets": of.offsets, "counts": of.counts, "words": of.words}


def phrases(again=False, **settings):
    def run():
        joined, found = corpus(n=200, words=30), {}
        for i in range(1 + again):
            made = embfast.Phrases(min_count=2, **settings).fit(joined)
            assert made.phrases_
            joined = made.transform(joined)
            found |= {f"phrases {i}": [" ".join(key) for key in made.phrases_]}
            found |= {f"scores {i}": list(made.phrases_.values())}
        return {**found, **contents(joined)}

    return run


@cache
def vectors(n=200, dim=24, seed=0):
    """Rows of whole numbers, of which some are equal."""
    rows = np.random.Generator(np.random.PCG64(seed)).integers(-9, 10, (n, dim)).astype(np.float32)
    rows[n // 2] = rows[n // 3]
    return embfast.Vectors([f"w{i}" for i in range(n)], rows)


def neighbours():
    """Searches; their scores rounded, as another BLAS adds in another order."""
    made = vectors()
    found = [made.most_similar("w3", k=10), made.most_similar(["w1", "w2"], k=5), made.analogy("w1", "w2", "w5", k=4)]
    return {
        "keys": [key for rows in found for key, _ in rows],
        "scores": np.round([score for rows in found for _, score in rows], 5),
        "norms": made.norms,
    }


@cache
def ternary(n=70, dim=600, seed=0):
    rows = np.random.Generator(np.random.PCG64(seed)).integers(-1, 2, (n, dim)).astype(np.int8)
    rows[n // 3] = 0
    return embfast.TernaryMatrix.from_rows(rows)


def ternary_search():
    ids, cosines = ternary().top(ternary(n=9, seed=1), 12, excluded=np.array([1, 5]), threads=1)
    return {"ids": ids, "cosines": cosines, "nonzeros": ternary().nonzeros, "planes": ternary().planes}


def features_and_thresholds(n=9, dim=70):
    rng = np.random.Generator(np.random.PCG64(dim))
    features = (rng.integers(-999, 1000, (n, dim)) / 256).astype(np.float32)
    low, high = (np.full(dim, bound, np.float32) for bound in (-0.5, 0.75))
    low[::7], high[::5] = features[0, ::7], features[1, ::5].clip(0.75)
    return features, low.clip(None, 0), high


def split_edges():
    split = embfast.evaluate.split_edges(graph("plain"), share=0.3, seed=4)
    values = {"neighbours": split.graph.neighbours, "offsets": split.graph.offsets}
    pairs = [*split.removed, *split.absent]
    keyed = embfast.Vectors(graph().names, vectors(n=40, dim=6).matrix)
    values["edges"] = [f"{a} {b}" for a, b in pairs]
    for operator in ("hadamard", "average", "l1", "l2"):
        values[operator] = embfast.evaluate.edge_vectors(keyed, pairs, operator)
    return values


def retrieval(similarity):
    def run():
        owners = np.arange(60) % 20
        found = embfast.evaluate.retrieval(
            vectors(n=20, dim=8).matrix, vectors(n=60, dim=8, seed=1).matrix, owners, similarity=similarity
        )
        return {"text": json.dumps(found.as_dict(), sort_keys=True)}

    return run


def host_fits():
    for window, symmetric, weighting in product((2, 15), (True, False), (True, False)):
        name = f"CooccurrenceMatrix window {window}, {'both sides' if symmetric else 'one side'}, "
        settings = {"window": window, "symmetric": symmetric, "distance_weighting": weighting}
        fit("host", name + ("distances" if weighting else "counts"), entries(**settings))
    second = {"p": 0.25, "q": 4}
    types = np.arange(40) % 2
    cases = {
        "first order": {},
        "second order": second,
        "restart": {"restart": 0.2},
        "second order, restart": {"restart": 0.2, **second},
        "weighted": {"kind": "weighted"},
        "weighted, second order": {"kind": "weighted", **second},
        "plus": {"kind": "weighted", "plus": True, "gamma": 0.25, **second},
        "directed": {"kind": "directed", "p": 1e-3, "q": 1e3},
        "directed weighted": {"kind": "directed weighted", "p": 4, "q": 0.25},
        "metapath": {"types": types, "metapath": [0, 1, 0]},
        "metapath, weighted": {"kind": "weighted", "types": types, "metapath": [0, 1, 0]},
    }
    for name, settings in cases.items():
        fit("host", f"Walks {name}", walk(**settings))
    fit("host", "Node2Vec with a transition of one's own", custom_walks)
    fit("host", "Corpus", lambda: contents(corpus(n=200, words=80)))
    fit("host", "Corpus with fewer words", lambda: contents(corpus(n=200, words=80).with_words(["w3", "w0", "new"])))
    fit("host", "Phrases", phrases(threshold=2.0))
    fit("host", "Phrases, npmi", phrases(threshold=0.1, scoring="npmi"))
    fit("host", "Phrases with connectors", phrases(threshold=1.5, connectors=["w0", "w1"], delimiter="+"))
    fit("host", "Phrases twice", phrases(threshold=1.0, again=True))
    fit("host", "Vectors search", neighbours)
    fit("host", "split_edges and edge_vectors", split_edges)
    for similarity in ("cosine", "dot", "order"):
        fit("host", f"retrieval, {similarity}", retrieval(similarity))
    fit("kernels", "TernaryMatrix search", ternary_search)
    fit("kernels", "TernaryMatrix of features", lambda: {
        "planes": embfast.TernaryMatrix.from_features(*features_and_thresholds()).planes
    })  # fmt: skip


# ---- torch --------------------------------------------------------------------------------------------------------


@cache
def network():
    """Two convolutions and two linear layers, with weights of whole numbers over a power of two."""
    import torch
    from torch import nn

    made = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 7, 3, stride=2),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(7, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    rng = np.random.Generator(np.random.PCG64(3))
    with torch.no_grad():
        for parameter in made.parameters():
            numbers = rng.integers(-64, 65, tuple(parameter.shape)) / 128
            parameter.copy_(torch.from_numpy(numbers.astype(np.float32)))
    return made.eval()


@cache
def pictures(n=12, side=16, seed=0):
    coarse = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)


PREPARED = {"size": 16, "resize": 16}


def full_network(**settings):
    def run():
        made = embfast.FullNetworkEmbedding(network(), preparation=PREPARED, device="cpu", **settings)
        made.fit(pictures())
        return learned(made, planes=made.embed(pictures(seed=1)).matrix.planes, rows=made.transform(pictures(seed=1)))

    return run


def layer(**settings):
    def run():
        made = embfast.LayerEmbedding(network(), preparation=PREPARED, device="cpu", **settings).fit(pictures())
        tensors = learned(made) if settings.get("reduce") else {}
        return {**tensors, "rows": made.transform(pictures(seed=1))}

    return run


@cache
def world():
    """Images of a colour and a thing, each with three captions that say it; the last four are to validate on."""
    colours, things = ("red", "blue", "green", "black"), ("dog", "cat", "boat", "tree")
    rng = np.random.Generator(np.random.PCG64(11))
    parts = (rng.integers(-64, 65, (8, 12)) / 32).astype(np.float32)
    keys, rows, told = [], [], []
    for number in rng.permutation(16).tolist():
        c, t = divmod(number, 4)
        keys.append(f"{colours[c]}-{things[t]}.jpg")
        rows.append(parts[c] + parts[4 + t])
        split = "train" if len(keys) <= 12 else "dev"
        for text in ("A {} {} .", "there is one {} {} here", "Look at the very {} {} over there !"):
            told.append((keys[-1], text.format(colours[c], things[t]), split))
    return embfast.Vectors(keys, np.array(rows)), embfast.Captions.from_pairs(told)


def multimodal(more=False, others=False, given=None, **settings):
    """A fit; then partial_fit, with a third modality, word vectors or a document model."""

    def run():
        images, captions = world()
        how = {"dim": 10, "word_dim": 8, "batch": 12, "lr": 0.01, "epochs": 2, "device": "cpu", **settings}
        data = {}
        if others:
            data["others"] = {"sound": embfast.Linked(vectors(n=32, dim=5), [*images.keys, *images.keys])}
        if given == "words":
            data["word_vectors"] = embfast.Vectors(["dog", "red", "tree"], vectors(n=3, dim=9).matrix)
        if given == "documents":
            texts = [text.lower().split() for text in captions.texts]
            data["document_model"] = embfast.Doc2Vec(dim=8, epochs=2, min_count=1, sample=0, threads=1).fit(texts)
        model = embfast.Multimodal(**how).fit(images, captions, **data)
        if more:
            model.partial_fit(images, captions)
        scores = [one.recall_sum for one in model.validation_]
        return learned(model, vectors=model.vectors_.matrix, scores=scores)

    return run


def network_fits():
    cases = {
        "default": {},
        "before": {"at": "before", "pool": "max"},
        "convolutions": {"layers": "convs", "at": "output", "lower": -1.0, "upper": 0.5},
        "batches": {"batch": 5, "pool": "gem"},
    }
    for name, settings in cases.items():
        fit("networks", f"FullNetworkEmbedding {name}", full_network(**settings))
    cases = {
        "default": {},
        "power, views": {"layer": 0, "power": 0.5, "views": "flip"},
        "stacked": {"layer": [0, 1], "l2": False, "views": "rotations", "combine": "stack"},
        "reduced": {"layer": 1, "reduce": 3, "whiten": True},
    }
    for name, settings in cases.items():
        fit("networks", f"LayerEmbedding {name}", layer(**settings))
    towers = cycle(("mean", "gru", "lstm"))
    for loss, similarity in product(("sum", "max", "semihard", "topk", "infonce"), ("cosine", "order")):
        if (loss, similarity) == ("infonce", "order"):  # which there is not
            continue
        settings = {"loss": loss, "similarity": similarity, "text": next(towers), "warmup": 0}
        fit("networks", f"Multimodal {loss}, {similarity}", multimodal(**settings))
    cases = {
        "warmup": {"loss": "max", "text": "mean"},
        "mse": {"loss": "mse", "text": "word2visualvec", "hidden": 9, "optimizer": "rmsprop", "dim": 12},
        "bidirectional": {"text": "lstm", "bidirectional": True, "pooling": "max", "dropout": 0.2},
        "pooling mean": {"pooling": "mean", "tune_words": False, "weight_decay": 1e-3, "optimizer": "AdamW"},
        "hidden": {"text": "mean", "hidden": 9, "distinct_images": True, "k": 2, "loss": "topk", "seed": 5},
        "bfloat16": {"text": "mean", "precision": "bfloat16", "lr_drop": 1, "clip": 0.5, "margin": 0.4},
        "partial_fit": {"text": "mean", "more": True, "bucketed": False, "patience": 5},
        "three modalities": {"text": "mean", "others": True},
        "word vectors": {"text": "mean", "given": "words"},
        "documents": {"text": "doc2vec", "given": "documents"},
    }
    for name, settings in cases.items():
        fit("networks", f"Multimodal {name}", multimodal(**settings))


# ---- device kernels on the CPU ------------------------------------------------------------------------------------


TEXT, NEW_TEXT, COUNTED = {"n": 30}, {"n": 6}, {"n": 20, "words": 20}


def device_words(text=TEXT, **settings):
    how = {"dim": 12, "window": 3, "epochs": 1, "sample": 0.01, "seed": 4, "device": "cuda", **settings}
    return lambda: learned(embfast.Word2Vec(**how).fit(corpus(**text)))


def device_documents(text=TEXT, new=NEW_TEXT, **settings):
    def run():
        how = {"dim": 12, "window": 3, "epochs": 1, "sample": 0.01, "device": "cuda", **settings}
        model = embfast.Doc2Vec(**how).fit(corpus(**text), tags=tags_of("two", n=text["n"]))
        return learned(model, inferred=model.infer(corpus(seed=3, **new), epochs=2))

    return run


def device_nodes(kind="plain", nodes=40, **settings):
    how = {"dim": 8, "walk_length": 8, "walks_per_node": 1, "window": 2, "device": "cuda", "threads": 1, **settings}
    return lambda: learned(embfast.Node2Vec(**how).fit(graph(kind, nodes, 4 * nodes)))


def device_glove(text=COUNTED, **settings):
    how = {"dim": 12, "window": 4, "epochs": 1, "threads": 1, "device": "cuda", **settings}
    return lambda: learned(embfast.GloVe(**how).fit(corpus(**text)))


def device_rows():
    return {"planes": embfast.TernaryMatrix.from_features(*features_and_thresholds(), device="cuda").planes}


def shim_fits():
    cases = {
        "skip-gram": {},
        "skip-gram, hs": {"hs": True, "negatives": 0},
        "skip-gram, both": {"hs": True},
        "cbow": {"cbow": True},
        "cbow sum": {"cbow": True, "cbow_mean": False},
        "cbow, hs": {"cbow": True, "hs": True, "negatives": 0},
        "full windows": {"shrink_windows": False, "negatives": 3, "sample": 0, "ns_exponent": 0.0},
        "wide rows": {"dim": 130, "window": 2},
        "cbow, wide rows": {"dim": 130, "window": 2, "cbow": True},
    }
    for name, settings in cases.items():
        fit("shim", f"Word2Vec {name}", device_words(**settings))
    cases = {
        "dm": {"mode": "dm"},
        "dm sum": {"mode": "dm", "dm": "sum", "tag_weight": 1},
        "dbow": {"mode": "dbow", "ns_exponent": 0.0},
        "dbow words": {"mode": "dbow", "dbow_words": True},
        "both": {"mode": "both", "negatives": 3, "lr": 0.06, "min_lr": 0.01},
        "hs": {"mode": "dm", "hs": True, "negatives": 0},
    }
    for name, settings in cases.items():
        fit("shim", f"Doc2Vec {name}", device_documents(min_count=1, **settings))
    cases = {
        "first order": {},
        "first order, weighted": {"kind": "weighted", "hs": True, "negatives": 0},
        "second order": {"p": 0.25, "q": 4, "ns_exponent": 0.0, "min_lr": 0.01},
        "second order, weighted": {"kind": "weighted", "p": 4, "q": 0.25, "restart": 0.2},
        "plus": {"kind": "weighted", "p": 0.5, "q": 2, "plus": True},
    }
    for name, settings in cases.items():
        fit("shim", f"Node2Vec {name}", device_nodes(**settings))
    for name, settings in {"default": {}, "wide rows": {"dim": 140}, "x_max": {"x_max": 3.0, "alpha": 0.5}}.items():
        fit("shim", f"GloVe {name}", device_glove(**settings))
    fit("shim", "TernaryMatrix of features", device_rows)


def ptx_fits():
    tiny = {"text": {"n": 4, "words": 8, "longest": 9}, "dim": 5, "negatives": 2, "window": 2}
    tiny |= {"sample": 0.3, "lr": 0.5}
    fit("ptx", "Word2Vec skip-gram", device_words(**tiny))
    fit("ptx", "Word2Vec cbow", device_words(**tiny, cbow=True))
    fit("ptx", "Word2Vec hs", device_words(**tiny | {"negatives": 0}, hs=True))
    tiny |= {"new": {"n": 2, "words": 8, "longest": 9}, "min_count": 1}
    for mode in ("dm mean", "dbow", "dbow words"):
        fit("ptx", f"Doc2Vec {mode}", device_documents(**tiny, **DOCUMENTS[mode]))
    fit("ptx", "GloVe", device_glove({"n": 6, "words": 12}, dim=7))
    nodes = {"walk_length": 4, "nodes": 8, "window": 1, "dim": 4, "negatives": 1, "lr": 0.5}
    fit("ptx", "Node2Vec first order", device_nodes(**nodes))
    fit("ptx", "Node2Vec second order", device_nodes(**nodes, kind="weighted", p=0.25, q=4))
    fit("ptx", "TernaryMatrix of features", device_rows)


def place_stand_in(section):
    """Gives embfast a CuPy whose kernels run on the CPU: all as C++, or those that are there as PTX as that."""
    sys.path.insert(0, str(TESTS / "support"))  # what a script beside the tests finds
    shim, standin = importlib.import_module("shim"), importlib.import_module("standin")
    sys.modules["cupy"] = standin
    library = shim.Shim(shim.build())
    library.schedule("forward")
    if section == "ptx":
        library = PtxLibrary(library, compiled(shim.SOURCES), importlib.import_module("ptx"))

    class Places:
        build = staticmethod(shim.build)
        Shim = staticmethod(lambda path: library)

    standin.shim = Places
    return library


# Kernels whose blocks may be single warps, so that ptx can run them; the others stay in the shim.
IN_PTX = {
    "glove": ["train_runs_warp"],
    "walks": ["walk_first_order", "walk_second_order"],
    "ternary": ["ternary_pack"],
    "sequences": [
        "keep_tokens",
        "document_seeds",
        "document_rows",
        "skip_gram_warp",
        "cbow_warp",
        "skip_gram_documents_warp",
        "cbow_documents_warp",
    ],
}


def compiled(sources):
    """PTX by kernel, kept in build/ptx by the compiler and the content of the sources."""
    nvcc = find_nvcc()
    made = {}
    for source, names in IN_PTX.items():
        file = next(sources.glob(f"*/{source}.cu"))
        texts = [path.read_text() for path in (file, *sorted(sources.glob("*/*.h")))]
        key = hashlib.sha256(repr((nvcc_version(), texts)).encode()).hexdigest()[:16]
        path = TESTS.parent / "build" / "ptx" / f"{source}-{key}.ptx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            work = path.with_suffix(f".{os.getpid()}")
            command = [nvcc, "-std=c++17", f"-I{sources}", "-ptx", "-arch=compute_90", "-o", work, file]
            subprocess.run([str(part) for part in command], check=True, capture_output=True)
            work.rename(path)
        made |= dict.fromkeys(names, path.read_text())
    return made


class PtxLibrary:
    """Launches kernels as standin wants it."""

    def __init__(self, others, sources, ptx):
        self.others, self.ptx = others, ptx
        self.kernels = {name: ptx.Kernel(source, name) for name, source in sources.items()}
        self.arguments = others.arguments

    def check_used(self):
        idle = [name for name, kernel in self.kernels.items() if not kernel.run]
        assert not idle, f"no fit launched {idle}"

    def launch(self, name, grid, block, values, shared=0):
        if name not in self.kernels:
            self.others.launch(name, grid, block, values, shared)
            return
        # Work is dealt out by strides of the grid: one warp does all of it.
        self.ptx.launch(self.kernels[name], AllMemory(), 1, values, shared)


class AllMemory:
    """Any address of the process, for kernels that are given pointers to what they do not name."""

    def find(self, addresses, size, text):
        low, high = int(addresses.min()), int(addresses.max())
        held = np.ctypeslib.as_array((ctypes.c_uint8 * (high + size - low)).from_address(low))
        return held, (addresses - np.uint64(low)).astype(np.int64)


# ---- what the bits depend on beside embfast -----------------------------------------------------------------------


def find_nvcc():
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def first_line(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def nvcc_version():
    return subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout


def compilers():
    """How the compilers of the package's modules name themselves in them."""
    found = set()
    for path in Path(embfast.__file__).parent.rglob("*.so"):
        data = path.read_bytes()
        for mark in (b"GCC: (", b"clang version "):
            start = data.find(mark)
            while start >= 0:
                found.add(data[start : data.index(b"\0", start)].decode(errors="replace"))
                start = data.find(mark, start + 1)
    return sorted(found)


def numpy_values():
    """Results of what the models compute with numpy and the C library, whose last bits other processors change."""
    x = np.arange(1, 4097) / 512
    rng = np.random.Generator(np.random.PCG64(0))
    rows = (rng.integers(-99, 100, (64, 48)) / 64).astype(np.float32)
    philox = np.random.Generator(np.random.Philox(5))
    return {
        "exp": np.exp(-x),
        "log": np.log(x),
        "power": np.power(x, 0.75),
        "root": np.sqrt(x),
        "float32 power": np.abs(rows) ** np.float32(0.75),
        "float32 log": np.log(np.abs(rows) + 1),
        "float32 exp2": np.exp2(rows),
        "float32 log2": np.log2(np.abs(rows) + 1),
        "Philox": philox.random(1000),
        "Philox float32": philox.random(1000, np.float32),
        "normal": rng.standard_normal(1000),
        "permutation": rng.permutation(1000),
        "matmul": rows @ rows.T,
        "matvec": rows @ rows[0],
        "norms": np.linalg.norm(np.hstack([rows, rows]), axis=1),
        "mean": rows.mean(axis=1),
        "C": [f(value) for f in (math.exp, math.log, math.sqrt, math.log1p) for value in x[:200].tolist()],
        "C power": [value**0.75 for value in x.tolist()],
    }


def c_values():
    """The C library's functions of float32, which device kernels call when they run on the CPU."""
    library, values = ctypes.CDLL(None), []
    for name in ("expf", "logf"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float
        values += [function(i / 64) for i in range(1, 1000)]
    return {"C": values}


def torch_values():
    """The same of torch, and of the decomposition that reduced image vectors come from."""
    import scipy.linalg
    import torch
    from torch.nn import functional

    rng = np.random.Generator(np.random.PCG64(1))
    numbers = (rng.integers(-99, 100, (64, 48)) / 64).astype(np.float32)
    rows, maps = torch.from_numpy(numbers), torch.from_numpy(numbers).view(4, 3, 16, 16)
    torch.manual_seed(0)
    values = {
        "matmul": rows @ rows.T,
        "conv": functional.conv2d(maps, rows.view(-1)[:405].view(15, 3, 3, 3), padding=1),
        "linear": functional.linear(rows[:12, :10], rows[:9, :10], rows[0, :9]),
        "bfloat16": (rows[:12].bfloat16() @ rows[:9].bfloat16().T).float(),
        "exp": rows.exp(),
        "tanh": rows.tanh(),
        "sigmoid": rows.sigmoid(),
        "softmax": rows.log_softmax(1),
        "norm": rows.norm(dim=1),
        "random": torch.rand(100),
        "normal": torch.randn(100),
    }
    singular = scipy.linalg.svd(numbers[:12, :7], full_matrices=False)
    return {**{name: value.numpy() for name, value in values.items()}, "svd": np.concatenate(singular, axis=None)}


def probe(section):
    """What must be the same as when a section was recorded, for its bits to be."""
    found = {"compilers": ", ".join(compilers()), "numpy": checksum(numpy_values())}
    if section == "networks":
        import torch

        found |= {"torch": torch.__version__, "torch values": checksum(torch_values()), "isa": level()}
        found["torch isa"] = torch.backends.cpu.get_cpu_capability()
    if section in ("shim", "ptx"):
        found["g++"] = first_line("g++", "--version").removeprefix("g++ ")
        found["C"] = checksum(c_values())
    if section == "ptx":
        found["nvcc"] = " ".join(nvcc_version().splitlines()[-2:])
    return "; ".join(f"{name} {value}" for name, value in found.items())


def level():
    """The instruction set of this process."""
    from embfast import kernels

    return kernels.isa()


# ---- the script ---------------------------------------------------------------------------------------------------

for add in (word_fits, document_fits, node_fits, line_fits, glove_fits, host_fits, network_fits, shim_fits, ptx_fits):
    add()


def solve(section):
    """Checksums of a section's fits, in this process."""
    warnings.simplefilter("error")
    if os.environ.get("EMBFAST_ISA", level()) != level():  # which this machine lacks
        return {"isa": level(), "probe": "", "checksums": {}}
    library = place_stand_in(section) if section in ("shim", "ptx") else None
    if section == "networks":
        import torch

        torch.set_num_threads(1)
    found = {"isa": level(), "probe": probe(section)}
    found["checksums"] = {name: checksum(function()) for name, function in FITS[section].items()}
    if section == "ptx":
        library.check_used()
    return found


def run(section):
    """solve in a process of its own, which chooses its instruction set once and uses one thread."""
    package = Path(embfast.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("EMBFAST_ISA", None)
    if section in ISAS:
        environment["EMBFAST_ISA"] = section
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.json"
        command = [sys.executable, __file__, path, "kernels" if section in ISAS else section]
        done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{section}: {done.stderr}")
        return json.loads(path.read_text())


def record():
    """Writes the checksums of all that this machine can run to tests/fits.json; those of others stay."""
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {"probes": {}}
    for section in SECTIONS:
        if section == "ptx" and find_nvcc() is None:
            print("ptx: there is no nvcc")
            continue
        solved = run(section)
        if section in ISAS and solved["isa"] != section:
            print(f"{section}: this machine has {solved['isa']} at most")
            continue
        recorded["probes"].setdefault(solved["probe"], {})[section] = solved["checksums"]
        print(f"{section}: {len(solved['checksums'])} fits")
    RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


def main():
    if sys.argv[1:] == ["--record"]:
        record()
        return
    path, section = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "kernels"
    Path(path).write_text(json.dumps(solve(section), indent=1))


if __name__ == "__main__":
    main()
