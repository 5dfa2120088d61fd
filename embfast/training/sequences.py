"""The trainer that all models of sequences share: Word2Vec, Doc2Vec, Node2Vec and LINE, on the CPU and on a device.

A model says which rows meet (Windows), what predicts them (Outputs) and with which tables (Part). The trainer cuts the
sequences, draws negatives, calls the kernel slice by slice, and shows, saves and resumes the run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from embfast import kernels
from embfast.text.corpus import Corpus
from embfast.text.tags import Tags
from embfast.training.blocks import (
    BLOCK,
    CHAPTER,
    DEVICE_SLICE,
    blocks_per_slice,
    forget_read,
    make_blocks,
    make_pieces,
)
from embfast.training.estimator import Estimator, FitRun
from embfast.training.loop import choose_device
from embfast.training.sampling import NegativePool, NegativeSharing, keep_thresholds, noise_weights
from embfast.training.threads import ThreadTuner

BUFFER = 1 << 19  # tokens of a buffer: one is trained on while the next one is drawn

Tally = tuple[float, int, int]  # summed loss (nats), examples, kept tokens


class Windows(NamedTuple):
    """Which input rows meet which output rows: the fields of csrc/sequences/job.h with these names."""

    window: int
    shrink: bool = False
    cbow: bool = False
    mean: bool = True
    words: bool = True
    concat: bool = False
    tag_weight: int = 1

    @classmethod
    def of(cls, model: Estimator, **given: Any) -> "Windows":
        """Fields as given; the others from the model's settings of the same name, where it has them."""
        named = {name: getattr(model, name) for name in cls._fields if name not in given and hasattr(model, name)}
        return cls(**named, **given)


class Outputs(NamedTuple):
    """How a center is predicted: negative sampling, hierarchical softmax, or both.

    counts: int64 (words,); negatives are drawn in proportion to count ** exponent. tree_counts: int64 (words,),
    descending, for the Huffman tree; None without hierarchical softmax.
    """

    counts: np.ndarray
    negatives: int
    exponent: float
    sharing: NegativeSharing
    tree_counts: np.ndarray | None = None

    def noise_table(self) -> Any:
        """Alias table of the noise distribution; None without negative sampling."""
        return kernels.NoiseTable(noise_weights(self.counts, self.exponent)) if self.negatives else None

    def tree(self) -> Any:
        """The Huffman tree; None without hierarchical softmax."""
        return None if self.tree_counts is None else kernels.HuffmanTree(np.maximum(self.tree_counts, 1))


class Part(NamedTuple):
    """One set of tables with its windows, outputs and draws. Doc2Vec and LINE may train two side by side.

    tables: float32, by name: w_in, w_out, w_nodes, w_docs; missing ones are absent or None.
    rates: first and last learning rates.
    tags: tags of the documents, whose rows are in w_docs.
    """

    tables: Mapping[str, np.ndarray | None]
    windows: Windows
    outputs: Outputs
    rates: tuple[float, float]
    seed: int
    tags: Tags | None = None

    def job(self, dim: int, *, on_device: bool = False) -> np.ndarray:
        """Settings as the kernels read them; on a device every center has its own negatives."""
        sharing = NegativeSharing(True, 1, self.outputs.negatives, 1.0) if on_device else self.outputs.sharing
        return kernels.sequence_job(
            dim=dim,
            seed=self.seed,
            lr_first=self.rates[0],
            lr_last=self.rates[1],
            **self.windows._asdict(),
            **sharing._asdict(),
        )

    def negatives_at_once(self) -> int:
        """Number of negatives that a batch reads from the pool in one piece."""
        sharing, windows = self.outputs.sharing, self.windows
        return sharing.drawn * (1 if sharing.shared or windows.cbow else 2 * windows.window)


class Slice(NamedTuple):
    """Blocks first..last of sequences of ids, with their own tags where these differ from slice to slice."""

    ids: np.ndarray
    offsets: np.ndarray
    blocks: np.ndarray
    first: int
    last: int
    tag_offsets: np.ndarray | None = None
    tags: np.ndarray | None = None

    @classmethod
    def whole(cls, ids: np.ndarray, offsets: np.ndarray, *tags: np.ndarray) -> "Slice":
        """All of the sequences, cut into blocks."""
        blocks = make_blocks(offsets)
        return cls(ids, offsets, blocks, 0, len(blocks) - 1, *tags)


class CpuSession:
    """Trains a part on the CPU."""

    def __init__(self, part: Part, dim: int, keep: np.ndarray | None, needed: int, tokens_total: int) -> None:
        """needed: number of tokens that read their negatives from one pool."""
        self._job = part.job(dim)
        self._job["tokens_total"] = tokens_total
        self._arrays = {**part.tables, "keep": keep, "tree": part.outputs.tree()}
        if part.tags is not None:
            repeated = part.tags.repeated(part.windows.tag_weight)
            self._arrays |= {"tag_offsets": repeated.offsets, "tags": repeated.ids}
        self._pool = None
        if part.outputs.negatives:
            at_once = part.negatives_at_once()
            weights = noise_weights(part.outputs.counts, part.outputs.exponent)
            self._pool = NegativePool(weights, at_once, needed * at_once // part.outputs.sharing.centers, part.seed)

    def train(self, given: Slice, *, epoch: int, block: int, tokens_before: int, threads: int) -> Tally:
        """Trains on a slice. epoch numbers the random draws; block, the slice's first, selects the pool."""
        self._job["epoch"], self._job["tokens_before"] = epoch, tokens_before
        arrays = {**self._arrays, "ids": given.ids, "offsets": given.offsets, "blocks": given.blocks}
        if given.tags is not None:
            arrays |= {"tag_offsets": given.tag_offsets, "tags": given.tags}
        if self._pool is not None:
            arrays["noise"] = self._pool(epoch, block)
        return kernels.train_sequences(self._job, arrays, given.first, given.last, threads)

    def fetch(self) -> None:
        """Does nothing: the tables are trained in place."""


class DeviceSession:
    """Trains a part on a device."""

    def __init__(self, device: Any, part: Part, dim: int, keep: np.ndarray | None, tokens_total: int) -> None:
        job = part.job(dim, on_device=True)
        job["tokens_total"] = tokens_total
        self._session = kernels.device_sequences(
            device,
            job,
            part.tables,
            keep=keep,
            noise=part.outputs.noise_table(),
            tree=part.outputs.tree(),
            tag_offsets=None if part.tags is None else part.tags.offsets,
            tags=None if part.tags is None else part.tags.ids,
        )
        self._cut: tuple[Any, Any] = (None, None)  # blocks, and the pieces made of them

    def train(self, given: Slice, *, epoch: int, block: int, tokens_before: int, threads: int) -> Tally:
        """As CpuSession.train; a device draws its own negatives and uses its own threads."""
        if self._cut[0] is not given.blocks:
            self._cut = given.blocks, make_pieces(given.offsets, given.blocks)
        pieces = self._cut[1]
        begin, end = np.searchsorted(pieces, given.blocks[[given.first, given.last]])
        cut = pieces[begin : end + 1]
        tags = {"tag_offsets": given.tag_offsets, "tags": given.tags}
        return self._session.train(given.ids, given.offsets, cut, epoch=epoch, tokens_before=tokens_before, **tags)

    def fetch(self) -> None:
        """Copies the tables back from the device."""
        self._session.fetch()


class SequenceTrainer:
    """Trains the parts of a model on a corpus, or on sequences that are drawn during training.

    model: its settings dim, epochs, threads, device and, if it has one, sample, and its counts_ are read.
    parts: trained on every slice, one after the other. run: the arguments of fit.

    Attributes:
        device: the device, None for the CPU. device_name: which it is, and why.
    """

    def __init__(self, model: Estimator, parts: Sequence[Part], run: FitRun) -> None:
        self._model, self._parts, self._fit_run = model, parts, run
        self._dim, self._epochs = model.dim, model.epochs
        self._keep = keep_thresholds(model.counts_, getattr(model, "sample", 0))
        self._tuner = ThreadTuner(model.threads)
        self.device, self.device_name = choose_device(model.device, run.progress, model._cpu_only())

    def run(self, corpus: Corpus) -> None:
        """Trains on a corpus, epoch by epoch."""
        blocks, n_tokens, state = make_blocks(corpus.offsets), corpus.n_tokens, self._model._progress
        sessions = self._sessions(min(n_tokens, CHAPTER * BLOCK), self._epochs * n_tokens)

        def step(epoch: int, first: int, last: int) -> Tally:
            given = Slice(corpus.ids, corpus.offsets, blocks, first, last)
            return self._step(sessions, [given] * len(sessions), state.before + epoch, first, epoch * n_tokens)

        windows = self._parts[0].windows
        slow = any(not part.outputs.sharing.shared or part.outputs.tree_counts is not None for part in self._parts)
        per_slice = max(1, blocks_per_slice(self._dim, windows.window, self._tuner.most) // (4 if slow else 1))
        self._run(
            step,
            blocks,
            sessions,
            per_slice=per_slice if self.device is None else DEVICE_SLICE,
            after_slice=lambda begin, end: forget_read(corpus.ids, begin, end),
        )

    def run_drawn(
        self, draw: Callable[[int], Sequence[Slice]], edges: np.ndarray, *, unit: str, threads: int | None = None
    ) -> None:
        """Trains on buffers of sequences; the next buffer is drawn while one is in training.

        draw(number): the slices of a buffer, one for each part; numbers count the buffers of all epochs.
        edges: int64 (buffers + 1,), the tokens before each buffer of an epoch, as the learning rate counts them.
        threads: 1 draws in the same thread. Default: the threads of training.
        """
        n, per_epoch, state = len(edges) - 1, int(edges[-1]), self._model._progress
        sessions = self._sessions(BUFFER, self._epochs * per_epoch)
        begin, end = (state.before + state.epoch) * n + state.block, (state.before + self._epochs) * n
        with drawn_ahead(draw, begin, end, threads or self._tuner.most) as next_buffer:

            def step(epoch: int, first: int, last: int) -> Tally:
                number = (state.before + epoch) * n + first
                before = epoch * per_epoch + int(edges[first])
                return self._step(sessions, next_buffer(number), number, 0, before)

            self._run(step, edges, sessions, unit=unit)

    def _sessions(self, needed: int, tokens_total: int) -> list[CpuSession | DeviceSession]:
        if self.device is None:
            return [CpuSession(part, self._dim, self._keep, needed, tokens_total) for part in self._parts]
        return [DeviceSession(self.device, part, self._dim, self._keep, tokens_total) for part in self._parts]

    def _step(
        self, sessions: Sequence[Any], slices: Sequence[Slice], epoch: int, block: int, tokens_before: int
    ) -> Tally:
        tally = np.zeros(3)
        for session, given in zip(sessions, slices, strict=True):
            tally += session.train(
                given, epoch=epoch, block=block, tokens_before=tokens_before, threads=self._tuner.now
            )
        return float(tally[0]), int(tally[1]), int(tally[2])

    def _run(self, step: Any, blocks: np.ndarray, sessions: Sequence[Any], **options: Any) -> None:
        lr, min_lr = self._parts[0].rates
        tuner = self._tuner if self.device is None else None
        how = {"lr": lr, "min_lr": min_lr, "threads": tuner, "sessions": sessions, **options}
        self._model._run(self._fit_run, step, blocks, **how)


@contextmanager
def drawn_ahead(draw: Callable[[int], Any], first: int, last: int, threads: int) -> Iterator[Callable[[int], Any]]:
    """Yields a function like draw, to be called with first, first + 1, ... in order, that draws one number ahead.

    With one thread it is draw itself, and nothing runs in parallel.
    """
    if threads == 1:
        yield draw
        return
    with ThreadPoolExecutor(1) as pool:
        pending: dict[int, Future[Any]] = {}

        def start(number: int) -> None:
            if number < last:
                pending[number] = pool.submit(draw, number)

        start(first)

        def take(number: int) -> Any:
            drawn = pending.pop(number).result()
            start(number + 1)
            return drawn

        yield take
