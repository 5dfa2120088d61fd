"""Node vectors: node2vec, DeepWalk and metapath2vec, skip-gram on random walks that are drawn while it trains."""

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
from embfast.training.settings import check_flag, check_float, check_int, check_machine, check_outputs
from embfast.training.tables import NODE_REACH, grown_vocabulary
from embfast.training.threads import cores

if TYPE_CHECKING:
    from embfast.graphs.walks import Walks

Types = Mapping[str, str] | Sequence[str]

SAMPLE = 1 << 24  # nodes of walks at most that visits are counted in


class Node2Vec(WindowModel):
    """Vectors of a graph's nodes: skip-gram on random walks, which never lie on disk.

    >>> graph = Graph.from_edges([0, 1, 2, 3], [1, 2, 0, 0], names=["a", "b", "c", "d"])
    >>> model = Node2Vec(dim=8, walk_length=10, window=2).fit(graph)
    >>> model.words_[0], model.vectors_.matrix.shape
    ('a', (4, 8))
    >>> model
    Node2Vec(walk_length=10, dim=8, window=2)

    DeepWalk is Node2Vec(hs=True, negatives=0): hierarchical softmax on uniform walks. metapath2vec is Node2Vec with a
    metapath.

    Settings:
        p: a walk goes back the way it came 1 / p as readily as to a common neighbour; 1e-6 to 1e6.
        q: a walk goes to nodes away from the last one 1 / q as readily as to a common neighbour; 1e-6 to 1e6.
        walk_length: nodes of a walk; it ends before in a node that no edge leaves.
        walks_per_node: walks that start in each node, in each epoch.
        dim: numbers per vector; multiples of 16 waste nothing.
        window: nodes on each side in a walk, 1 to 1,000.
        negatives: nodes drawn against each pair, in proportion to visits ** ns_exponent; 0 for none.
        hs: hierarchical softmax, beside negative sampling or, at negatives=0, alone.
        sample: visits to nodes that make up more than this share of all are passed over at random, as word2vec.c does
            with frequent words; 0 keeps all.
        epochs: each draws walks of its own: 2 epochs of 10 walks per node are 20 walks, each seen once.
        restart: probability, at each step, that a walk goes on from its first node.
        plus: node2vec+, which looks at the weights of edges to common neighbours too; of weighted graphs only.
        gamma: of plus: an edge is strong from the mean of a node's weights plus gamma standard deviations on.
        metapath: types that the nodes of a walk must have, over and over, with commas between and the first again at
            the end, as "author,paper,venue,paper,author" (metapath2vec); without p, q, restart and plus.
        ns_exponent: 0.75 in word2vec.c; 0 draws all nodes alike.
        shrink_windows: each window draws its width from 1..window; otherwise all are full.
        lr: step on the first pair, falling linearly to min_lr. An epoch of BlogCatalog prefers 0.045 (Macro-F1 23.7;
            at 0.025 23.4), one of PPI 0.0125 (18.9; at 0.025 17.9, at 0.045 17.5): the default lies between.
        min_lr: step on the last pair; lr / 10,000 by default.
        negatives_shared: neighbouring windows share their drawn nodes, as in Word2Vec; otherwise each pair has its own.
        threads: Number of threads. Default: all cores; long runs also try half as many and keep whichever is faster.
        seed: Seed of the first weights and of every random draw, 0 to 2**64 - 1. With one thread, the same seed gives
            the same bits.
        device: as in Word2Vec; the same walks are drawn there, but on the CPU where the graph does not fit, or with a
            transition of your own.
    Learned:
        vectors_: Vectors, float32 (len(words_), dim), a view on the input weights; row i belongs to node words_[i].
            Nodes that no walk can come to keep their small random first vector.
        words_: names of all nodes, the most visited first.
        counts_: int64 visits in an epoch, which weigh the drawn nodes. Exact, the degree (the sum of weights) in due
            proportion, for p = q = 1 without restart in a graph that is not directed: there visits tend to it, in each
            component. Otherwise estimated from a first sample of walks, a walk a node or 16.8 M nodes of them.
        loss_: mean loss of each epoch, nats per (center, context) pair.
        device_: what it was trained on, and with device="auto" why.

    Memory: the graph; 8 bytes an entry more if it has weights; 4 * dim * nodes bytes for each of input, output
    (negatives > 0) and inner node (hs) weights, dim rounded up to a multiple of 16; and about 20 MB. No table grows
    with pairs of edges, and walks are kept in two buffers of 2 MB.
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
        """Trains from scratch, or from a checkpoint, and returns self.

        Args:
            y: not looked at; scikit-learn's pipelines pass it.
            transition: a numba function that takes the place of p and q; see walks.Walks.
            types: for a metapath: of each node its type, by name, or in the order of graph.names.
            checkpoint, checkpoint_minutes, resume, progress: as in Word2Vec.fit. A run to be resumed must be given the
                same transition again.

        Raises:
            ImportError: numba is missing.
            TypeError: graph is not a Graph.
            ValueError: a setting makes no sense, the graph has no edge, or the checkpoint is of another graph or of
                other settings.
            FormatError: the checkpoint is damaged.
            TrainingError: the loss stopped being finite, most often since lr is too high.
            KeyboardInterrupt: Ctrl-C; the model holds what was learned so far.
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
        """Continues on a graph: `epochs` of walks on it, lr falling from its start again. Returns self.

        Nodes are known by name. New ones get rows, visits add up, and words_ is then sorted by visits anew; with
        hierarchical softmax new nodes change the tree, and the weights of its inner nodes start at zero. Nodes that
        are not in this graph stay as they are. Without new nodes the order stays, and with hierarchical softmax counts_
        too. A lower lr than that of the first fit moves known nodes less. Untrained, it does what fit does.

        The settings dim, hs and whether negatives > 0 must be those of the first fit. Memory while tables grow: the old
        weights and the new ones together.
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
        """Takes the nodes of a graph and the visits to them into the model; returns the row of each."""
        n_old = len(self.words_)
        words, counts, row = grown_vocabulary(self.words_, self.counts_, names, visits)
        self._grow_tables(row)
        if len(words) > n_old or not self.hs:  # the tree is one of counts_
            self.counts_ = counts
        self.words_ = words
        index = {name: i for i, name in enumerate(words)}
        return np.array([index[name] for name in names], np.int64)

    def _check(self) -> None:
        check_float("p", self.p, 1e-6, 1e6)
        check_float("q", self.q, 1e-6, 1e6)
        check_int("walk_length", self.walk_length, 2, 100_000)
        check_int("walks_per_node", self.walks_per_node, 1, 1_000_000)
        check_int("dim", self.dim, 1, 100_000)
        check_int("window", self.window, 1, 1000)
        check_outputs(self.negatives, self.hs)
        for name in ("plus", "shrink_windows", "negatives_shared"):
            check_flag(name, getattr(self, name))
        check_float("sample", self.sample, 0, 1)
        check_int("epochs", self.epochs, 1, 1_000_000)
        check_float("restart", self.restart, 0, 1)
        check_float("gamma", self.gamma, -100, 100)
        if self.metapath is not None:
            path = self.metapath.split(",") if isinstance(self.metapath, str) else []
            if len(path) < 2 or path[0] != path[-1] or "" in path:
                raise ValueError(
                    "metapath must be types with commas between and the first again at the end, as "
                    f"'author,paper,author', got {self.metapath!r}"
                )
        check_float("ns_exponent", self.ns_exponent, -10, 10)
        check_float("lr", self.lr, 0, 100, above=True)
        if self.min_lr is not None:
            check_float("min_lr", self.min_lr, 0, self.lr)
        check_machine(self.threads, self.seed, self.device, self._cpu_only())

    def _cpu_only(self) -> str | None:
        """What in the settings a device does not have."""
        if not self.negatives_shared:
            return "negatives_shared=False, draws for each pair,"
        return f"dim={self.dim:,}, above 1,024," if self.dim > 1024 else None

    def _walks(self, graph: Graph, transition: Any, types: Types | None) -> "Walks":
        from embfast.graphs.walks import Walks

        path, type_of = None, None
        if types is not None and self.metapath is None:
            raise ValueError("types are for a metapath: set metapath, as 'author,paper,author'")
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
        rates = float(self.lr), float(self.min_lr if self.min_lr is not None else self.lr / 10_000)
        sharing = negative_sharing(False, self.hs, self.negatives, self.negatives_shared, self.window, nodes=True)
        outputs = Outputs(self.counts_, self.negatives, self.ns_exponent, sharing, self.counts_ if self.hs else None)
        trainer = SequenceTrainer(
            [Part(self._tables, Windows(self.window, shrink=self.shrink_windows), outputs, rates, self.seed)],
            dim=self.dim,
            counts=self.counts_,
            sample=self.sample,
            epochs=self.epochs,
            threads=self.threads,
            device=self.device,
            cpu_only=self._cpu_only(),
            progress=run.progress,
        )
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
        trainer.run_drawn(self, draw, first * self.walk_length, run, unit="nodes", threads=threads)
        return self


def _types(graph: Graph, types: Types | None) -> list[str]:
    """The type of each node, in the order of graph.names."""
    if types is None:
        raise ValueError("a metapath needs types=, of each node its type")
    if isinstance(types, Mapping):
        missing = next((name for name in graph.names if name not in types), None)
        if missing is not None:
            raise ValueError(f"types: node {missing!r} has none")
        return [str(types[name]) for name in graph.names]
    if not isinstance(types, Sequence | np.ndarray):
        raise TypeError(f"types: expected those of all nodes in a list or a dict, got {type(types).__name__}")
    if len(types) != len(graph):
        raise ValueError(f"expected a type of each of {len(graph)} nodes, got {len(types)}")
    return [str(name) for name in types]


def _checksum(graph: Graph, types: Types | None) -> int:
    return zlib.crc32("\0".join(_types(graph, types)).encode("utf-8", "surrogatepass"))


def _visits(walks: "Walks", threads: int) -> np.ndarray:
    """int64 (nodes,): visits to each node in an epoch, 0 only where no walk was seen to come."""
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
        expected = int(share.sum()) * len(walks) // n  # fewer than length of each, where walks end early
        share[walks.starts] = np.maximum(share[walks.starts], 1)  # each starts a walk, if not of this sample
    visits = np.round(share * (expected / share.sum())).astype(np.int64)
    return np.where(share > 0, np.maximum(visits, 1), 0)


def strengths(graph: Graph) -> np.ndarray:
    """The degree of each node, int64 (nodes,), or the sum of its weights, float64."""
    if graph.weights is None:
        return graph.degrees
    sums = np.zeros(len(graph))
    full = np.flatnonzero(graph.degrees)
    sums[full] = np.add.reduceat(graph.weights, graph.offsets[full], dtype=np.float64)
    return sums
