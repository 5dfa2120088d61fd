"""One entry per model: fast settings, data, a changed value of each setting, and exceptions to the contract.

The contract (tests/test_contract.py) and the mutation tests (tests/mutants.py) are generated from these entries. The
file exceeds 500 lines because it is one table.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import fits
import numpy as np
import saved

import embfast

# ---- where models differ ------------------------------------------------------------------------------------------

IMAGES = ("FullNetworkEmbedding", "LayerEmbedding")
SEQUENCES = ("Word2Vec", "Doc2Vec", "Node2Vec", "LINE")  # these share training.sequences
POINTS = {
    "seed": "another seed gives different bits",
    "resume": "a run stopped by Ctrl-C and resumed gives the same bits as an uninterrupted run",
    "save": "save and load preserve the model",
    "partial_fit": "partial_fit continues training",
    "goes on": "partial_fit on the same data equals one more epoch",
    "estimator": "get_params, set_params, clone and repr work",
    "threads": "threads is a setting",
    "device": "device is a setting",
    "auto": 'device="auto" selects the CPU if no CUDA device is usable',
    "progress": "progress is an argument of fit",
    "told": "kernels receive each setting by name",
}
DIFFERS = {
    **{
        (name, point): reason
        for name in IMAGES
        for point, reason in {
            "seed": "nothing is drawn",
            "resume": "no epochs: a stopped run continues from the features in work=",
            "partial_fit": "statistics are computed from one set of images",
            "goes on": "no epochs",
            "threads": "set with torch.set_num_threads",
        }.items()
    },
    ("Phrases", "seed"): "nothing is drawn",
    ("Phrases", "resume"): "one pass",
    ("Phrases", "save"): "phrases_ is a dict; models are pickled instead",
    ("Phrases", "partial_fit"): "one pass",
    ("Phrases", "goes on"): "one pass",
    ("Phrases", "estimator"): "a text preprocessing step with fit and transform only",
    ("Phrases", "threads"): "single-threaded numpy",
    ("Phrases", "device"): "runs in numpy",
    ("Phrases", "auto"): "runs in numpy",
    ("Phrases", "progress"): "one pass that takes seconds",
    ("Phrases", "told"): "runs in numpy, without a kernel",
    ("LINE", "partial_fit"): "edges are sampled from a single graph",
    ("LINE", "goes on"): "edges are sampled from a single graph",
    ("Multimodal", "told"): "the towers are torch modules; shapes and bits depend on each setting",
}

SPEED = "affects only speed: one thread is reproducible bit for bit, several threads differ in the last digits"
MACHINE = (
    "selects the hardware: only the CPU is available without a CUDA device (tests/test_device.py tests the others)"
)

# ---- entries ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A changed value of a setting, combined with other settings."""

    value: Any
    beside: dict[str, Any] = field(default_factory=dict)


def case(value, **beside):
    return Case(value, beside)


@dataclass(frozen=True)
class Entry:
    """A model with everything that the contract needs.

    fast: Non-default settings for a fit that takes milliseconds.
    data: Arguments of fit.
    more: Arguments of a partial_fit with new data.
    other: Arguments of a fit on different data.
    changed: Cases per setting whose bits differ from those of `fast`.
    unchanged: Per setting, the reason why its value does not affect the bits.
    command: Subcommand of the CLI.
    no_flag: Per setting, the reason why the subcommand has no such flag.
    wrong_data, little_data: Arguments of fit with a wrong type, and with too little data to train on.
    seen: Additional results to compare, besides the tensors in the file and loss_.
    takes: Per setting, values that look invalid but are accepted.
    late: Prefixes of tensor names that checkpoints omit because they are computed at the end of a run.
    constant: Settings with a constant learning rate, so that partial_fit can be compared with one more epoch.
    tests: Test files of the model.
    """

    name: str
    fast: dict[str, Any]
    data: Callable[[], dict[str, Any]]
    other: Callable[[], dict[str, Any]]
    changed: dict[str, list[Case]]
    unchanged: dict[str, str]
    command: tuple[str, ...]
    wrong_data: Callable[[], dict[str, Any]]
    little_data: Callable[[], dict[str, Any]]
    more: Callable[[], dict[str, Any]] | None = None
    no_flag: dict[str, str] = field(default_factory=dict)
    seen: Callable[[Any], dict[str, Any]] = lambda model: {}
    constant: dict[str, Any] = field(default_factory=dict)
    takes: dict[str, tuple] = field(default_factory=dict)
    late: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()

    @property
    def kind(self):
        return getattr(embfast, self.name)

    def make(self, **settings):
        return self.kind(**{**self.fast, **settings})

    def fit(self, model, data=None, **options):
        return model.fit(**(data or self.given(model)), **options)

    def given(self, model):
        """Data, and further arguments of fit that the model's settings require."""
        return self.data()

    def bits(self, model):
        """All learned values of the model, by name."""
        found = {}
        if (self.name, "save") not in DIFFERS:
            found |= {f"tensor {name}": array for name, array in saved.tensors(model).items()}
            found["loss"] = np.array(model.loss_)
        if hasattr(model, "vectors_"):
            found["vectors"] = model.vectors_.matrix
        return found | self.seen(model)


def same(a, b):
    """Names of the values that differ between two results of `Entry.bits`."""
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if name not in a
        or name not in b
        or a[name].dtype != b[name].dtype
        or a[name].shape != b[name].shape
        or not np.array_equal(a[name].view(np.uint8), b[name].view(np.uint8))
    ]


def text(values):
    return np.frombuffer(repr(values).encode(), np.uint8)


# ---- texts --------------------------------------------------------------------------------------------------------

TEXT = {"n": 300, "words": 40}  # two blocks of tokens
LITTLE = [["alone"]]


@cache
def corpus(**how):
    return fits.corpus(**{**TEXT, **how})


def some_tags(n, first=0):
    return [[f"d{d}", f"group {d % 4}"] for d in range(first, first + n)]


COMMON = {"dim": 7, "epochs": 2, "threads": 1, "seed": 3}
WORDS = Entry(
    "Word2Vec",
    fast={**COMMON, "window": 3, "negatives": 6, "sample": 0.02, "ns_exponent": 0.6, "lr": 0.06, "min_lr": 0.01},
    data=lambda: {"corpus": corpus()},
    more=lambda: {"corpus": corpus(seed=2, words=60, n=40)},
    other=lambda: {"corpus": corpus(seed=1)},
    changed={
        "dim": [case(9)],
        "window": [case(2), case(2, cbow=True)],
        "negatives": [case(4), case(4, cbow=True), case(0, hs=True)],
        "hs": [case(True), case(True, cbow=True)],
        "cbow": [case(True)],
        "cbow_mean": [case(False, cbow=True)],
        "sample": [case(0.2), case(0)],
        "ns_exponent": [case(0.2), case(0.2, cbow=True)],
        "shrink_windows": [case(False), case(False, cbow=True), case(False, hs=True, negatives=0)],
        "epochs": [case(3)],
        "lr": [case(0.05), case(None), case(None, cbow=True)],
        "min_lr": [case(0.02), case(None)],
        "negatives_shared": [case(False), case(False, cbow=True)],
        "seed": [case(4), case(2**64 - 1)],
    },
    unchanged={"threads": SPEED, "device": MACHINE},
    command=("word2vec",),
    wrong_data=lambda: {"corpus": [["a", "b"]]},
    little_data=lambda: {"corpus": embfast.Corpus.from_sentences(LITTLE)},
    constant={"lr": 0.03, "min_lr": 0.03},
    tests=("tests/test_word2vec.py",),
)
DOCUMENTS = Entry(
    "Doc2Vec",
    fast={**WORDS.fast, "mode": "both", "window": 2, "tag_weight": 3, "dbow_words": True, "min_count": 4},
    data=lambda: {"documents": fits.sentences(**TEXT), "tags": some_tags(300)},
    more=lambda: {"documents": fits.sentences(n=40, words=60, seed=4), "tags": some_tags(40, 280)},
    other=lambda: {"documents": fits.sentences(**TEXT, seed=1), "tags": some_tags(300)},
    changed={
        "mode": [case("dm"), case("dbow")],
        "dim": [case(9)],
        "window": [case(3, mode="dm"), case(3, mode="dbow"), case(3, mode="dm", dm="concat")],
        "negatives": [case(4, mode="dm"), case(4, mode="dbow"), case(4, mode="dbow", dbow_words=False)],
        "hs": [case(True, mode="dm"), case(True, mode="dbow")],
        "dm": [case("sum"), case("concat")],
        "tag_weight": [case(2)],
        "dbow_words": [case(False), case(False, mode="dbow")],
        "sample": [case(0.2, mode="dm"), case(0.2, mode="dbow")],
        "ns_exponent": [case(0.2, mode="dm"), case(0.2, mode="dbow")],
        "shrink_windows": [case(False, mode="dm"), case(False, mode="dbow")],
        "min_count": [case(9)],
        "epochs": [case(3)],
        "lr": [case(0.05, mode="dm"), case(0.05, mode="dbow"), case(None, mode="dm"), case(None, mode="dbow")],
        "min_lr": [case(0.02, mode="dm"), case(None, mode="dbow")],
        "negatives_shared": [case(False, mode="dm"), case(False, mode="dbow")],
        "seed": [case(4, mode="dm"), case(2**64 - 1, mode="dbow")],
    },
    unchanged=WORDS.unchanged,
    command=("doc2vec",),
    wrong_data=lambda: {"documents": "a b"},
    little_data=lambda: {"documents": LITTLE},
    seen=lambda model: {"inferred": model.infer(corpus(seed=3, n=10))} if model.dm != "concat" else {},
    constant={"lr": 0.03, "min_lr": 0.03},
    tests=("tests/test_doc2vec.py",),
)
GLOVE = Entry(
    "GloVe",
    fast={**COMMON, "window": 3, "x_max": 5.0, "alpha": 0.5, "lr": 0.04, "memory_gb": 1.0},
    data=lambda: {"data": corpus()},
    more=lambda: {"data": corpus(seed=2, words=60, n=40)},
    other=lambda: {"data": corpus(seed=1)},
    changed={
        "dim": [case(9)],
        "window": [case(2)],
        "symmetric": [case(False)],
        "distance_weighting": [case(False)],
        "epochs": [case(3)],
        "x_max": [case(9.0)],
        "alpha": [case(0.9)],
        "lr": [case(0.03)],
        "vectors": [case("input"), case("both")],
        "shuffle": [case("full")],
        "seed": [case(4), case(2**64 - 1)],
    },
    unchanged={**WORDS.unchanged, "memory_gb": "limits the memory used for counting; counts are unaffected"},
    command=("glove",),
    wrong_data=lambda: {"data": [["a", "b"]]},
    little_data=lambda: {"data": embfast.Corpus.from_sentences(LITTLE)},
    tests=("tests/test_glove.py",),
)

# ---- graphs -------------------------------------------------------------------------------------------------------

TYPES = {f"n{i}": ("even", "odd")[i % 2] for i in range(60)}


@cache
def graph(first=0, last=40):
    """A dense weighted graph with nodes n0, n1, ..."""
    rng = np.random.Generator(np.random.PCG64(last))
    ends = rng.integers(first, last, (2, 6 * (last - first)))
    return embfast.Graph.from_edges(
        *(np.array([f"n{i}" for i in side]) for side in ends.tolist()), rng.integers(1, 9, ends.shape[1]) / 4
    )


class Nodes(Entry):
    def given(self, model):
        return {**self.data(), "types": TYPES} if getattr(model, "metapath", None) else self.data()


META = {"p": 1, "q": 1, "restart": 0.0}
NODES = Nodes(
    "Node2Vec",
    fast={**WORDS.fast, "p": 0.5, "q": 3.0, "walk_length": 12, "walks_per_node": 2, "sample": 0.005, "restart": 0.1,
          "gamma": 0.3},
    data=lambda: {"graph": graph()},
    more=lambda: {"graph": graph(25, 50)},
    other=lambda: {"graph": graph(0, 41)},
    changed={
        "p": [case(0.25), case(0.25, restart=0.0), case(0.25, plus=True)],
        "q": [case(2.0), case(2.0, restart=0.0), case(2.0, plus=True)],
        "walk_length": [case(13)],
        "walks_per_node": [case(3)],
        "dim": [case(9)],
        "window": [case(2)],
        "negatives": [case(4), case(0, hs=True)],
        "hs": [case(True)],
        "sample": [case(0.002), case(0)],
        "epochs": [case(3)],
        "restart": [case(0.2)],
        "plus": [case(True)],
        "gamma": [case(1.0, plus=True)],
        "metapath": [case("even,odd,even", **META), case("odd,even,odd", **META)],
        "ns_exponent": [case(0.2)],
        "shrink_windows": [case(False), case(False, hs=True, negatives=0)],
        "lr": [case(0.05)],
        "min_lr": [case(0.02), case(None)],
        "negatives_shared": [case(False)],
        "seed": [case(4), case(2**64 - 1)],
    },
    unchanged=WORDS.unchanged,
    command=("node2vec",),
    wrong_data=lambda: {"graph": [("a", "b")]},
    little_data=lambda: {"graph": embfast.Graph(["a", "b", "c"], np.zeros(4, np.int64), np.empty(0, np.int32))},
    constant={"lr": 0.03, "min_lr": 0.03},
    tests=("tests/test_node2vec.py",),
)  # fmt: skip
EDGES = Entry(
    "LINE",
    fast={**COMMON, "negatives": 3, "ns_exponent": 0.6, "lr": 0.06, "min_lr": 0.01},
    data=NODES.data,
    other=NODES.other,
    changed={
        "order": [case("1"), case("2")],
        "dim": [case(9)],
        "negatives": [case(4, order="1"), case(4, order="2")],
        "epochs": [case(3)],
        "ns_exponent": [case(0.2, order="1"), case(0.2, order="2")],
        "lr": [case(0.05, order="1"), case(0.05, order="2")],
        "min_lr": [case(0.02, order="1"), case(None, order="2")],
        "seed": [case(4, order="1"), case(2**64 - 1, order="2")],
    },
    unchanged={"threads": SPEED, "device": MACHINE},
    command=("line",),
    wrong_data=NODES.wrong_data,
    little_data=NODES.little_data,
    tests=("tests/test_line.py",),
)

# ---- images, and images with captions -----------------------------------------------------------------------------


def network():
    """Copies the network, because weights= are loaded into the given module."""
    return copy.deepcopy(fits.network())


@cache
def second_network():
    import torch

    made = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(1 / 16)
    return made.eval()


@cache
def second_weights():
    """Path of a file with different weights for fits.network()."""
    from safetensors.torch import save_file

    path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    save_file({name: (tensor / 2).contiguous() for name, tensor in fits.network().state_dict().items()}, path)
    return path


class Pictures(Entry):
    """An entry that creates its network and weight file lazily, because they require torch."""

    def make(self, **settings):
        made = {"backbone": network, **self.fast, **settings}
        return self.kind(**{name: value() if callable(value) else value for name, value in made.items()})


IMAGE_COMMAND = {
    "layers": "--layer, repeated for each layer",
    "preparation": "--size; everything else follows the network's training",
}
IMAGES_ALIKE = {
    "batch": "the features of an image do not depend on other images, except for rounding",
    "device": MACHINE,
    "workers": "number of reader processes; images are the same",
    "compile": "torch.compile changes only rounding",
    "errors": "affects only unreadable images (tests/test_images.py)",
}
NETWORK_CHANGED = {
    "backbone": [case(second_network)],
    "weights": [case(second_weights)],
    "preparation": [case({"size": 16, "resize": 16, "mean": (0.4, 0.4, 0.4)})],
    "at": [case("before")],
    "pool": [case("max")],
    "precision": [case("bfloat16")],
}
NETWORK_FAST = {"preparation": fits.PREPARED, "device": "cpu", "batch": 5, "at": "after", "errors": "skip"}
NETWORK_DATA = {
    "data": lambda: {"images": fits.pictures()},
    "other": lambda: {"images": fits.pictures(seed=1)},
    "wrong_data": lambda: {"images": 5},
    "little_data": lambda: {"images": np.empty((0, 16, 16, 3), np.uint8)},
    "command": ("images",),
    "no_flag": IMAGE_COMMAND,
    "unchanged": IMAGES_ALIKE,
    "tests": ("tests/test_images.py",),
}
ALL_LAYERS = Pictures(
    "FullNetworkEmbedding",
    fast={**NETWORK_FAST, "lower": -0.4, "upper": 0.3},
    changed={
        **NETWORK_CHANGED,
        "layers": [case("convs"), case([0])],
        "lower": [case(-1.0)],
        "upper": [case(0.7)],
    },
    seen=lambda model: {
        "rows": model.transform(fits.pictures(seed=2)),
        "planes": model.embed(fits.pictures(seed=2)).matrix.planes,
    },
    **NETWORK_DATA,
)
LAYER = Pictures(
    "LayerEmbedding",
    fast={**NETWORK_FAST, "layer": 1, "power": 0.8, "l2": False, "reduce": 3},
    changed={
        **NETWORK_CHANGED,
        "layer": [case(0), case([0, 1]), case("penultimate")],
        "views": [case("flip"), case("rotations")],
        "combine": [case("stack", views="flip")],
        "power": [case(0.5), case(0.5, reduce=0)],
        "l2": [case(True), case(True, reduce=0)],
        "reduce": [case(2), case(0)],
        "whiten": [case(True)],
    },
    seen=lambda model: {"rows": model.transform(fits.pictures(seed=2))},
    **NETWORK_DATA,
)


@cache
def one_image():
    images, _ = fits.world()
    return {"images": images, "captions": embfast.Captions.from_pairs([(images.keys[0], "a dog")])}


@cache
def captions(validated):
    """Captions with or without a validation split; without one, fit keeps the weights of the last epoch."""
    images, told = fits.world()
    return {"images": images, "captions": told if validated else told.part("train")}


class Spaces(Entry):
    def given(self, model):
        if model.text == "doc2vec":
            return {**self.data(), "document_model": document_model()}
        return captions(True) if model.patience is not None else self.data()


@cache
def document_model():
    texts = [text.lower().split() for text in fits.world()[1].texts]
    return embfast.Doc2Vec(dim=8, epochs=2, min_count=1, sample=0, threads=1).fit(texts)


SPACES = Spaces(
    "Multimodal",
    fast={"dim": 10, "word_dim": 6, "batch": 12, "lr": 0.02, "epochs": 2, "device": "cpu", "text": "gru", "warmup": 0,
          "dropout": 0.1, "seed": 3, "weight_decay": 0.01, "clip": 0.5, "hidden": 5, "loss": "sum", "margin": 0.4,
          "max_words": 9},
    data=lambda: captions(False),
    more=lambda: captions(True),
    other=lambda: {**captions(False), "images": embfast.Vectors(fits.world()[0].keys, 2 * fits.world()[0].matrix)},
    changed={
        "dim": [case(9)],
        "text": [case("lstm"), case("mean"), case("word2visualvec"), case("doc2vec")],
        "pooling": [case("max"), case("mean", text="lstm")],
        "bidirectional": [case(True)],
        "word_dim": [case(7)],
        "tune_words": [case(False)],
        "hidden": [case(6), case(0)],
        "dropout": [case(0.3), case(0.0), case(0.3, text="doc2vec")],
        "loss": [case(loss) for loss in ("max", "semihard", "topk", "infonce", "mse")],
        "similarity": [case("order")],
        "margin": [case(0.3), case(None), case(None, similarity="order")],
        "k": [case(2, loss="topk")],
        "temperature": [case(0.2, loss="infonce")],
        "warmup": [case(1, loss="max")],
        "epochs": [case(3)],
        "batch": [case(9)],
        "bucketed": [case(False)],
        "distinct_images": [case(True)],
        "optimizer": [case("rmsprop")],
        "lr": [case(0.03)],
        "lr_drop": [case(1)],
        "weight_decay": [case(0.3, optimizer="adamw")],
        "clip": [case(0.1), case(0)],
        "patience": [case(1, epochs=12)],
        "precision": [case("bfloat16")],
        "min_count": [case(14)],
        "max_words": [case(3)],
        "seed": [case(4), case(2**64 - 1)],
    },
    unchanged={"device": MACHINE, "threads": SPEED},
    command=("multimodal", "train"),
    wrong_data=lambda: {**captions(False), "captions": ["a dog"]},
    little_data=lambda: one_image(),
    late=("images", "texts", "vectors"),
    tests=("tests/test_multimodal.py",),
)  # fmt: skip

# ---- phrases ------------------------------------------------------------------------------------------------------

PHRASES = Entry(
    "Phrases",
    fast={"min_count": 2, "threshold": 1.5, "delimiter": "+", "connectors": ("w0", "w1")},
    data=lambda: {"corpus": corpus()},
    other=lambda: {"corpus": corpus(seed=1)},
    changed={
        "min_count": [case(4)],
        "threshold": [case(3.0)],
        "scoring": [case("npmi", threshold=0.05)],
        "delimiter": [case("-")],
        "connectors": [case(("w0",)), case(())],
    },
    unchanged={},
    command=("phrases",),
    wrong_data=lambda: {"corpus": [["a", "b"]]},
    little_data=lambda: {"corpus": None},
    seen=lambda model: {"phrases": text(model.phrases_), "joined": text(list(model.transform(corpus(seed=2, n=30))))},
    takes={"min_count": (1.5, True)},
    tests=("tests/test_phrases.py",),
)

ENTRIES = {entry.name: entry for entry in (WORDS, DOCUMENTS, GLOVE, NODES, EDGES, ALL_LAYERS, LAYER, SPACES, PHRASES)}
assert all(name in ENTRIES and point in POINTS for name, point in DIFFERS)
