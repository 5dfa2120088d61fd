"""LINE: node vectors learned from sampled edges."""

import zlib
from typing import Any

import numpy as np

from embfast import kernels
from embfast.files.durable import FilePath
from embfast.files.tensors import TensorFile
from embfast.graphs.graph import Graph, check_graph
from embfast.training.estimator import Estimator, FitRun
from embfast.training.progress import ProgressOption
from embfast.training.sampling import NegativeSharing
from embfast.training.sequences import BUFFER, Outputs, Part, SequenceTrainer, Slice, Windows
from embfast.training.settings import (
    check_float,
    check_int,
    check_machine,
    check_sequence_settings,
    learning_rates,
    too_wide_for_devices,
)
from embfast.training.tables import NODE_REACH, initial_weights
from embfast.vectors.vectors import Vectors


class LINE(Estimator):
    """Node vectors learned from edges, by first-order proximity (neighbours) or second-order (shared neighbours).

    >>> graph = Graph.from_edges([0, 1, 2, 3], [1, 2, 0, 0], names=["a", "b", "c", "d"])
    >>> LINE(order="2", dim=8).fit(graph).vectors_.matrix.shape
    (4, 8)

    Edges are sampled in proportion to their weights. The vector of an edge's source predicts its target, against
    negative samples. In the first order a node has one vector; in the second order it has one as a source and one as a
    target, and vectors_ holds the former.

    Settings:
        order: "1", "2", or "both": both are trained separately, normalised to length 1 and concatenated, as in the
            paper.
        dim: Vector size of each order; with "both", vectors_ have 2 * dim numbers.
        negatives: Negative samples per edge, drawn in proportion to counts_ ** ns_exponent.
        epochs: Passes, each sampling as many edges as the graph has entries (two per undirected edge). On BlogCatalog,
            10 epochs at lr=0.1, 20 at 0.05 and 100 at 0.025 reach a Macro-F1 of about 21, 23 and 24.
        ns_exponent: Exponent of the counts in the noise distribution: 0.75 in the paper; 0 draws all nodes equally
            often.
        lr: Initial learning rate; it decreases linearly to min_lr.
        min_lr: Final learning rate. Default: lr / 10,000.
        threads: Number of threads. Default: all cores; long runs also try half as many and keep whichever is faster.
        seed: Seed of the first weights and of every random draw, 0 to 2**64 - 1. With one thread, the same seed gives
            the same bits.
        device: Where to train: "cpu", "cuda", "cuda:1", or "auto" (CUDA where a device is usable, otherwise the CPU;
            the choice is printed). CUDA needs CuPy and dim <= 1,024.
    Learned:
        vectors_: Vectors, float32 (len(words_), dim or 2 * dim); row i belongs to node words_[i]. Nodes without an edge
            keep their small random initial vector.
        words_: Names of all nodes, those of the largest degree first.
        counts_: Expected number of times that each node is the target of an edge in an epoch, int64: its degree, or in
            proportion to the weights of its incoming edges.
        loss_: Mean loss of each epoch in nats per edge.
        device_: The device used and, with device="auto", why.

    Memory: the graph; 12 bytes per entry for sampling edges; 4 * dim * nodes bytes for the first order and twice as
    much for the second, with dim rounded up to a multiple of 16; with "both", the vectors once more; and about 20 MB.
    Source: Tang et al. 2015, arXiv:1503.03578.
    """

    def __init__(
        self,
        order: str = "both",
        dim: int = 128,
        negatives: int = 5,
        epochs: int = 20,
        ns_exponent: float = 0.75,
        lr: float = 0.05,
        min_lr: float | None = None,
        threads: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.order = order
        self.dim = dim
        self.negatives = negatives
        self.epochs = epochs
        self.ns_exponent = ns_exponent
        self.lr = lr
        self.min_lr = min_lr
        self.threads = threads
        self.seed = seed
        self.device = device

    def fit(
        self,
        graph: Graph,
        y: Any = None,
        *,
        checkpoint: FilePath | None = None,
        checkpoint_minutes: float = 10.0,
        resume: bool = False,
        progress: ProgressOption = None,
    ) -> "LINE":
        """Trains from scratch, or continues from a checkpoint, and returns self.

        Args:
            y: Ignored; present for scikit-learn's pipelines.
            checkpoint, checkpoint_minutes, resume, progress: As in Word2Vec.fit.

        Raises:
            TypeError: graph is not a Graph.
            ValueError: A setting is invalid, the graph has no edge between two nodes, it is directed and the first
                order is requested, or the checkpoint belongs to another graph or other settings.
            FormatError: The checkpoint is damaged.
            TrainingError: The loss became infinite or NaN; most often lr is too high.
            KeyboardInterrupt: Ctrl-C was pressed; the model holds what it has learned so far.
        """
        run = self._begin(checkpoint, checkpoint_minutes, resume, progress)
        check_graph(graph)
        if graph.directed and "1" in self._orders():
            raise ValueError('the first order needs undirected edges: use order="2" for this graph')
        into = np.bincount(graph.neighbours, _drawn_weights(graph)[1], len(graph))
        entries = len(graph.neighbours)
        counts = np.where(into > 0, np.maximum(np.round(into * (entries / into.sum())), 1), 0).astype(np.int64)
        by_count = np.argsort(-counts, kind="stable")
        if not self._resumed(run, graph.fingerprint()):
            self._tables = {name: kernels.weight_table(len(graph), self.dim) for name in self._names()}
            for order in self._orders():
                initial_weights(self._tables[f"w_in_{order}"], self.dim, _seed(self.seed, order), reach=NODE_REACH)
            names = list(graph.names)
            self.words_, self.counts_ = [names[i] for i in by_count], counts[by_count]
        rows = np.empty(len(graph), np.int32)
        rows[by_count] = np.arange(len(graph), dtype=np.int32)
        return self._train(_Edges(graph, rows), run)

    def _check(self) -> None:
        if str(self.order) not in ("1", "2", "both"):
            raise ValueError(f'order must be "1", "2" or "both", got {self.order!r}')
        check_sequence_settings(self)
        check_int("negatives", self.negatives, 1, 1000)
        check_int("epochs", self.epochs, 1, 1_000_000)
        check_float("lr", self.lr, 0, 100, above=True)
        if self.min_lr is not None:
            check_float("min_lr", self.min_lr, 0, self.lr)
        check_machine(self.threads, self.seed, self.device, self._cpu_only())

    def _cpu_only(self) -> str | None:
        """The setting that no device supports, or None."""
        return too_wide_for_devices(self.dim)

    def _orders(self) -> tuple[str, ...]:
        return ("1", "2") if self.order == "both" else (str(self.order),)

    def _names(self) -> list[str]:
        return [f"w_in_{order}" for order in self._orders()] + ["w_out_2"] * ("2" in self._orders())

    def _train(self, edges: "_Edges", run: FitRun) -> "LINE":
        rates = learning_rates(self.lr, self.min_lr)
        sharing = NegativeSharing(True, 1, self.negatives, 1.0)
        outputs = Outputs(self.counts_, self.negatives, self.ns_exponent, sharing)
        parts = [
            Part(self._order_tables(order), Windows.of(self, window=1, words=False), outputs, rates, seed)
            for order, seed in ((order, _seed(self.seed, order)) for order in self._orders())
        ]
        trainer = SequenceTrainer(self, parts, run)
        self.device_ = trainer.device_name
        n_buffers = -(-len(edges) // BUFFER)
        cuts = np.minimum(np.arange(n_buffers + 1) * BUFFER, len(edges))

        def draw(number: int) -> list[Slice]:
            n = int(cuts[number % n_buffers + 1] - cuts[number % n_buffers])
            return [edges.draw(n, _seed(self.seed, "edges " + order), number) for order in self._orders()]

        trainer.run_drawn(draw, cuts, unit="edges")
        return self

    def _order_tables(self, order: str) -> dict[str, np.ndarray]:
        """The source of an edge is the tag of a document that holds one word, the target."""
        w_in = self._tables[f"w_in_{order}"]
        return {"w_docs": w_in, "w_out": w_in if order == "1" else self._tables["w_out_2"]}

    def _show(self) -> None:
        """Sets vectors_ and loss_ from the current weights."""
        tables = [self._tables[f"w_in_{order}"][:, : self.dim] for order in self._orders()]
        if len(tables) > 1:
            units = [t / np.maximum(np.linalg.norm(t, axis=1, keepdims=True), np.float32(1e-30)) for t in tables]
            tables = [np.hstack(units)]
        self.vectors_ = Vectors(self.words_, tables[0])
        self.loss_ = list(self._progress.losses)

    def _check_learned(self) -> None:
        if set(self._names()) != set(self._tables) or self.vectors_.dim != self.dim * len(self._orders()):
            raise ValueError(
                f"order and dim cannot change once trained: the vectors have {self.vectors_.dim} numbers, "
                f"which does not match order={self.order!r} and dim={self.dim}; train anew with fit"
            )

    def _tensors(self) -> dict[str, np.ndarray]:
        return {name: table[:, : self.dim] for name, table in self._tables.items()}

    def _restore(self, file: TensorFile) -> None:
        self._check()
        self._tables = {name: file.read_table(name, len(self.words_), self.dim) for name in self._names()}
        self._show()


class _Edges:
    """Samples edges of a graph in proportion to their weights. rows: int32, the row of each node."""

    def __init__(self, graph: Graph, rows: np.ndarray) -> None:
        self._graph, self._rows = graph, rows
        self._sources, weights = _drawn_weights(graph)
        self._table = kernels.NoiseTable(weights)

    def __len__(self) -> int:
        return len(self._sources)

    def draw(self, n: int, seed: int, number: int) -> Slice:
        """n edges of this seed and number: one document each, whose tag is the source and whose word is the target."""
        drawn = self._table.sample(n, seed, number)
        each = np.arange(n + 1, dtype=np.int64)
        sources, targets = self._rows[self._sources[drawn]], self._rows[self._graph.neighbours[drawn]]
        return Slice.whole(targets, each, each, sources)


def _drawn_weights(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Source of each entry, int32, and its sampling weight, float64: 0 for self loops, which have no effect."""
    sources = np.repeat(np.arange(len(graph), dtype=np.int32), graph.degrees)
    weights = np.ones(len(graph.neighbours)) if graph.weights is None else graph.weights.astype(np.float64)
    weights[sources == graph.neighbours] = 0
    if not weights.any():
        raise ValueError("the graph has no edge between two nodes")
    return sources, weights


def _seed(seed: int, purpose: str) -> int:
    """Different seeds for the two orders and for their edges."""
    return (seed + (zlib.crc32(purpose.encode()) << 32)) % 2**64
