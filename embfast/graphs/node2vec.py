"""Node2Vec: node2vec, DeepWalk and metapath2vec, skip-gram on random walks that are drawn during training."""

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embfast.files.durable import FilePath
from embfast.graphs.graph import Graph, check_graph
from embfast.training.estimator import FitRun, WindowModel
from embfast.training.progress import ProgressOption
from embfast.training.sampling import negative_sharing
from embfast.training.sequences import BUFFER, Outputs, Part, SequenceTrainer, Slice, Windows
from embfast.training.settings import (
    check_flag,
    check_float,
    check_int,
    check_machine,
    check_outputs,
    check_sequence_settings,
    learning_rates,
    too_wide_for_devices,
)
from embfast.training.tables import NODE_REACH, grown_vocabulary
from embfast.training.threads import cores

if TYPE_CHECKING:
    from embfast.graphs.walks import Walks

Types = Mapping[str, str] | Sequence[str]

SAMPLE = 1 << 24  # maximum number of walk nodes in which visits are counted


class Node2Vec(WindowModel):
    """Node vectors trained with skip-gram on random walks, which are never stored on disk.

    >>> graph = Graph.from_edges([0, 1, 2, 3], [1, 2, 0, 0], names=["a", "b", "c", "d"])
    >>> model = Node2Vec(dim=8, walk_length=10, window=2).fit(graph)
    >>> model.words_[0], model.vectors_.matrix.shape
    ('a', (4, 8))
    >>> model
    Node2Vec(walk_length=10, dim=8, window=2)

    DeepWalk is Node2Vec(hs=True, negatives=0): hierarchical softmax on uniform walks. metapath2vec is Node2Vec with a
    metapath.

    Settings:
        p: Return parameter: returning to the previous node has weight 1 / p, relative to a common neighbour; 1e-6 to
            1e6.
        q: In-out parameter: moving away from the previous node has weight 1 / q, relative to a common neighbour; 1e-6
            to 1e6.
        walk_length: Nodes per walk; a walk ends earlier at a node without outgoing edges.
        walks_per_node: Walks that start at each node, in each epoch.
        dim: Vector size. Rows are padded to a multiple of 16; other sizes cost as much as the next multiple.
        window: Maximum distance between a center and its context nodes in a walk, 1 to 1,000.
        negatives: Negative samples per pair, drawn in proportion to visits ** ns_exponent. 0 disables negative
            sampling.
        hs: Train with hierarchical softmax, in addition to negative sampling or, with negatives=0, instead of it.
        sample: Subsampling threshold: visits to nodes that make up more than this fraction of all visits are randomly
            dropped, as word2vec.c does with frequent words. 0 disables it.
        epochs: Passes over the nodes, each with new walks: 2 epochs of 10 walks per node are 20 walks, each seen once.
        restart: Probability that a step returns to the first node of the walk.
        plus: Use node2vec+, which also considers the weights of edges to common neighbours; for weighted graphs.
        gamma: node2vec+: an edge is strong if its weight is at least the mean of the node's weights plus gamma standard
            deviations.
        metapath: Node types that walks follow cyclically, separated by commas, the first again at the end, as in
            "author,paper,venue,paper,author" (metapath2vec). Not combined with p, q, restart and plus.
        ns_exponent: Exponent of the visits in the noise distribution: 0.75 in word2vec.c; 0 draws all nodes equally
            often.
        shrink_windows: Draw the width of each window from 1..window; False uses full windows.
        lr: Initial learning rate; it decreases linearly to min_lr. For one epoch the best value is 0.045 on BlogCatalog
            (Macro-F1 23.7; 23.4 at 0.025) and 0.0125 on PPI (18.9; 17.9 at 0.025, 17.5 at 0.045); the default lies
            between them.
        min_lr: Final learning rate. Default: lr / 10,000.
        negatives_shared: Share negative samples among neighbouring windows, as in Word2Vec; False draws them for each
            pair.
        threads: Number of threads. Default: all cores; long runs also try half as many and keep whichever is faster.
            The walks do not depend on it.
        seed: Seed of the first weights, the walks and every random draw, 0 to 2**64 - 1. With one thread, the same seed
            gives the same bits.
        device: Where to train: "cpu", "cuda", "cuda:1", or "auto" (CUDA where a device is usable, otherwise the CPU;
            the choice is printed). The same walks are drawn there, but on the CPU if the graph does not fit or a
            transition function is given.
    Learned:
        vectors_: Vectors, float32 (len(words_), dim), a view of the input weights; row i belongs to node words_[i].
            Nodes that no walk reaches keep their small random initial vector.
        words_: Names of all nodes, the most visited first.
        counts_: int64 visits per epoch, which weigh the negatives. For p = q = 1 without restart in an undirected graph
            they are exact: in proportion to the degree (or the sum of weights) within each component, which visits tend
            to. Otherwise they are estimated from a first sample of walks: one walk per node, or 16.8 M nodes of them.
        loss_: Mean loss of each epoch in nats per (center, context) pair.
        device_: The device used and, with device="auto", why.

    Memory: the graph; 8 bytes more per entry if it has weights; 4 * dim * nodes bytes for each of the input, output
    (negatives > 0) and inner node (hs) weights, with dim rounded up to a multiple of 16; and about 20 MB. No table
    grows with pairs of edges, and walks are kept in two buffers of 2 MB.
    Sources: Grover and Leskovec 2016, arXiv:1607.00653; Perozzi et al. 2014, arXiv:1403.6652; metapaths: Dong, Chawla
    and Swami 2017.
    """

    _reach = NODE_REACH

    def __init__(
        self,
        p: float = 1.0,
        q: float = 1.0,
        walk_length: int = 80,
        walks_per_node: int = 10,
        dim: int = 128,
        window: int = 10,
        negatives: int = 5,
        hs: bool = False,
        sample: float = 0.0,
        epochs: int = 1,
        restart: float = 0.0,
        plus: bool = False,
        gamma: float = 0.0,
        metapath: str | None = None,
        ns_exponent: float = 0.75,
        shrink_windows: bool = True,
        lr: float = 0.025,
        min_lr: float | None = None,
        negatives_shared: bool = True,
        threads: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.p = p
        self.q = q
        self.walk_length = walk_length
        self.walks_per_node = walks_per_node
        self.dim = dim
        self.window = window
        self.negatives = negatives
        self.hs = hs
        self.sample = sample
        self.epochs = epochs
        self.restart = restart
        self.plus = plus
        self.gamma = gamma
        self.metapath = metapath
        self.ns_exponent = ns_exponent
        self.shrink_windows = shrink_windows
        self.lr = lr
        self.min_lr = min_lr
        self.negatives_shared = negatives_shared
        self.threads = threads
        self.seed = seed
        self.device = device

    def fit(
        self,
        graph: Graph,
        y: Any = None,
        *,
        transition: Any = None,
        types: Types | None = None,
        checkpoint: FilePath | None = None,
        checkpoint_minutes: float = 10.0,
        resume: bool = False,
        progress: ProgressOption = None,
    ) -> "Node2Vec":
        """Trains from scratch, or continues from a checkpoint, and returns self.

        Args:
            y: Ignored; present for scikit-learn's pipelines.
            transition: A Numba function that replaces p and q; see graphs.walks.Walks.
            types: For a metapath, the type of each node: by name, or in the order of graph.names.
            checkpoint, checkpoint_minutes, resume, progress: As in Word2Vec.fit. A resumed run needs the same
                transition again.

        Raises:
            ImportError: Numba is missing.
            TypeError: graph is not a Graph.
            ValueError: A setting is invalid, the graph has no edge, or the checkpoint belongs to another graph or other
                settings.
            FormatError: The checkpoint is damaged.
            TrainingError: The loss became infinite or NaN; most often lr is too high.
            KeyboardInterrupt: Ctrl-C was pressed; the model holds what it has learned so far.
        """
        run = self._begin(checkpoint, checkpoint_minutes, resume, progress)
        check_graph(graph)
        walks = self._walks(graph, transition, types)
        graph_print = graph.fingerprint() | ({} if self.metapath is None else {"types": _checksum(graph, types)})
        threads = self.threads or cores()
        if self._resumed(run, graph_print):
            index = {name: i for i, name in enumerate(graph.names)}
            order = np.array([index[name] for name in self.words_], np.int64)
        else:
            visits = _visits(walks, threads)
            order = np.argsort(-visits, kind="stable")
            names = list(graph.names)
            self.words_, self.counts_ = [names[i] for i in order], visits[order]
            self._first_tables(len(graph))
        walks.label[order] = np.arange(len(order), dtype=np.int32)
        return self._train(walks, threads, run)

    def partial_fit(
        self,
        graph: Graph,
        y: Any = None,
        *,
        transition: Any = None,
        types: Types | None = None,
        progress: ProgressOption = None,
    ) -> "Node2Vec":
        """Continues training on a graph: `epochs` of walks, with lr starting from its first value. Returns self.

        Nodes are identified by name. New nodes get rows, visits add up, and words_ is then sorted by visits again; with
        hierarchical softmax, new nodes change the tree, and the inner node weights restart at zero. Nodes that are not
        in this graph stay as they are. Without new nodes the order stays, and with hierarchical softmax counts_ too. A
        lower lr than in the first fit moves known nodes less. On an untrained model this is fit.

        dim, hs and whether negatives > 0 must be those of the first fit. Memory while tables grow: the old weights and
        the new ones together.
        """
        if not hasattr(self, "vectors_"):
            return self.fit(graph, transition=transition, types=types, progress=progress)
        self._check_continued()
        check_graph(graph)
        walks = self._walks(graph, transition, types)
        threads = self.threads or cores()
        walks.label[:] = self._grow(graph.names, _visits(walks, threads))
        self._continue()
        return self._train(walks, threads, FitRun(progress=progress))

    def _grow(self, names: Sequence[str], visits: np.ndarray) -> np.ndarray:
        """Adds the nodes of a graph and their visits to the model; returns the row of each node."""
        n_old = len(self.words_)
        words, counts, row = grown_vocabulary(self.words_, self.counts_, names, visits)
        self._grow_tables(row)
        if len(words) > n_old or not self.hs:  # the tree was built from counts_
            self.counts_ = counts
        self.words_ = words
        index = {name: i for i, name in enumerate(words)}
        return np.array([index[name] for name in names], np.int64)

    def _check(self) -> None:
        check_float("p", self.p, 1e-6, 1e6)
        check_float("q", self.q, 1e-6, 1e6)
        check_int("walk_length", self.walk_length, 2, 100_000)
        check_int("walks_per_node", self.walks_per_node, 1, 1_000_000)
        check_sequence_settings(self)
        check_outputs(self.negatives, self.hs)
        check_flag("plus", self.plus)
        check_int("epochs", self.epochs, 1, 1_000_000)
        check_float("restart", self.restart, 0, 1)
        check_float("gamma", self.gamma, -100, 100)
        if self.metapath is not None:
            path = self.metapath.split(",") if isinstance(self.metapath, str) else []
            if len(path) < 2 or path[0] != path[-1] or "" in path:
                raise ValueError(
                    "metapath must be node types separated by commas, the first again at the end, as in "
                    f"'author,paper,author', got {self.metapath!r}"
                )
        check_float("lr", self.lr, 0, 100, above=True)
        if self.min_lr is not None:
            check_float("min_lr", self.min_lr, 0, self.lr)
        check_machine(self.threads, self.seed, self.device, self._cpu_only())

    def _cpu_only(self) -> str | None:
        """The setting that no device supports, or None."""
        if not self.negatives_shared:
            return "negatives_shared=False"
        return too_wide_for_devices(self.dim)

    def _walks(self, graph: Graph, transition: Any, types: Types | None) -> "Walks":
        from embfast.graphs.walks import Walks

        path, type_of = None, None
        if types is not None and self.metapath is None:
            raise ValueError("types are used with a metapath only: set metapath, as in 'author,paper,author'")
        if self.metapath is not None:
            given = _types(graph, types)
            number = {name: i for i, name in enumerate(dict.fromkeys(given))}
            for name in self.metapath.split(","):
                if name not in number:
                    raise ValueError(f"metapath: no node has the type {name!r}; there are {', '.join(number)}")
            type_of = np.array([number[name] for name in given])
            path = [number[name] for name in self.metapath.split(",")]
        return Walks(
            graph,
            length=self.walk_length,
            per_node=self.walks_per_node,
            p=self.p,
            q=self.q,
            restart=self.restart,
            plus=bool(self.plus),
            gamma=self.gamma,
            transition=transition,
            types=type_of,
            metapath=path,
            seed=self.seed,
        )

    def _train(self, walks: "Walks", threads: int, run: FitRun) -> "Node2Vec":
        rates = learning_rates(self.lr, self.min_lr)
        sharing = negative_sharing(False, self.hs, self.negatives, self.negatives_shared, self.window, nodes=True)
        outputs = Outputs(self.counts_, self.negatives, self.ns_exponent, sharing, self.counts_ if self.hs else None)
        windows = Windows.of(self, shrink=self.shrink_windows)
        trainer = SequenceTrainer(self, [Part(self._tables, windows, outputs, rates, self.seed)], run)
        self.device_ = trainer.device_name
        if trainer.device is not None and walks.transition is None:
            try:
                walks.to_device(trainer.device)
            except MemoryError as error:  # the graph is larger than the tables: they may still fit
                self.device_ += f"; walks on the CPU, since {error}"
        in_buffer = max(1, BUFFER // self.walk_length)
        n_buffers = -(-len(walks) // in_buffer)
        first = np.minimum(np.arange(n_buffers + 1) * in_buffer, len(walks))  # walk of each buffer

        def draw(number: int) -> list[Slice]:
            epoch, buffer = divmod(number, n_buffers)
            return [Slice.whole(*walks.read(epoch, int(first[buffer]), int(first[buffer + 1]), threads))]

        # The learning rate counts nodes as if no walk ended early.
        trainer.run_drawn(draw, first * self.walk_length, unit="nodes", threads=threads)
        return self


def _types(graph: Graph, types: Types | None) -> list[str]:
    """Type of each node, in the order of graph.names."""
    if types is None:
        raise ValueError("a metapath needs types=, the type of each node")
    if isinstance(types, Mapping):
        missing = next((name for name in graph.names if name not in types), None)
        if missing is not None:
            raise ValueError(f"types: node {missing!r} has no type")
        return [str(types[name]) for name in graph.names]
    if not isinstance(types, Sequence | np.ndarray):
        raise TypeError(f"types: expected a list or a dict with the types of all nodes, got {type(types).__name__}")
    if len(types) != len(graph):
        raise ValueError(f"types: expected one for each of {len(graph)} nodes, got {len(types)}")
    return [str(name) for name in types]


def _checksum(graph: Graph, types: Types | None) -> int:
    return zlib.crc32("\0".join(_types(graph, types)).encode("utf-8", "surrogatepass"))


def _visits(walks: "Walks", threads: int) -> np.ndarray:
    """Visits to each node in an epoch, int64 (nodes,); 0 only for nodes that no sampled walk reached."""
    graph, expected = walks.graph, len(walks) * walks.length
    if walks.reversible:
        share = strengths(graph).astype(np.float64)
        part = walks.components()
        begun, total = np.bincount(part[walks.starts], minlength=len(graph)), np.bincount(part, share, len(graph))
        share *= np.divide(begun, total, out=np.zeros(len(graph)), where=total > 0)[part]
    else:
        share = np.zeros(len(graph), np.int64)
        n = min(len(walks.starts), max(1, SAMPLE // walks.length))
        step = max(1, BUFFER // walks.length)
        for first in range(0, n, step):
            ids, _ = walks.read(0, first, min(first + step, n), threads)
            share += np.bincount(ids, minlength=len(share))
        expected = int(share.sum()) * len(walks) // n  # less than length per walk if walks end early
        share[walks.starts] = np.maximum(
            share[walks.starts], 1
        )  # each starts a walk, though perhaps not in this sample
    visits = np.round(share * (expected / share.sum())).astype(np.int64)
    return np.where(share > 0, np.maximum(visits, 1), 0)


def strengths(graph: Graph) -> np.ndarray:
    """Degree of each node, int64 (nodes,), or the sum of its weights, float64."""
    if graph.weights is None:
        return graph.degrees
    sums = np.zeros(len(graph))
    full = np.flatnonzero(graph.degrees)
    sums[full] = np.add.reduceat(graph.weights, graph.offsets[full], dtype=np.float64)
    return sums
