"""Word vectors: skip-gram and CBOW, by negative sampling, hierarchical softmax, or both."""

from typing import Any

import numpy as np

from embfast import kernels
from embfast.files.durable import FilePath
from embfast.files.tensors import TensorFile
from embfast.text.corpus import Corpus, by_count
from embfast.training.blocks import (
    BLOCK,
    CHAPTER,
    DEVICE_SLICE,
    blocks_per_slice,
    forget_read,
    make_blocks,
    make_pieces,
)
from embfast.training.estimator import FitRun, WindowModel, check_corpus
from embfast.training.loop import choose_device
from embfast.training.progress import ProgressOption
from embfast.training.sampling import NoisePool, keep_thresholds, noise_weights, sharing
from embfast.training.settings import check_flag, check_float, check_int, check_machine, check_outputs
from embfast.training.tables import document_means, grown_vocabulary
from embfast.training.threads import Threads


class Word2Vec(WindowModel):
    """Word vectors by skip-gram or CBOW, the model of word2vec.c.

    >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]] * 10)
    >>> model = Word2Vec(dim=8, epochs=2, sample=0).fit(corpus)
    >>> model.vectors_.matrix.shape
    (3, 8)
    >>> model
    Word2Vec(dim=8, sample=0, epochs=2)

    Settings:
        dim: numbers per vector, 1 or more; multiples of 16 waste nothing.
        window: tokens on each side, 1 to 1,000; windows do not leave a document.
        negatives: words drawn against each pair, in proportion to count ** ns_exponent; 0 for none.
        hs: hierarchical softmax, over a Huffman tree of the words; beside negative sampling or, at negatives=0, alone.
        cbow: predict a word from its window (CBOW) instead of the window from the word (skip-gram).
        cbow_mean: CBOW takes the mean of the window; otherwise the sum.
        sample: words with a larger share of the text are thinned out, as in word2vec.c; 0 for none.
        ns_exponent: 0.75 in word2vec.c; 0 draws all words alike.
        shrink_windows: each window draws its width from 1..window; otherwise all are full.
        epochs: passes over the corpus.
        lr: step on the first pair, falling linearly to min_lr; by default 0.025 for skip-gram, 0.05 for CBOW.
        min_lr: step on the last pair; lr / 10,000 by default.
        negatives_shared: neighbouring windows share their drawn words: three times faster for skip-gram, and better on
            analogies and relatedness (README, `sharing`); otherwise each pair draws its own, as in word2vec.c.
        threads: by default all cores, or as many of them as a longer run finds to pay (training.Threads). One gives the
            same bits every time; more differ in the last digits.
        seed: 0 to 2**64 - 1, of first weights and all draws.
        device: "cpu"; "cuda" or "cuda:1", which needs CuPy and dim <= 1,024; or "auto", such a device where there is
            one. There each window draws for itself, texts are cut into pieces of about 1,024 tokens, and additions meet
            in any order, so that runs differ in the last digits.
    Learned:
        vectors_: Vectors, float32 (len(words_), dim), a view on the input weights; row i belongs to word i.
        words_, counts_: the vocabulary, and int64 occurrences in all that was trained on.
        loss_: mean loss of each epoch, nats per (center, context) pair of skip-gram, per center of CBOW: the objective
            of the examples trained on, measured just before each step.
        device_: what it was trained on, and with device="auto" why.

    Memory: 4 * dim * words bytes for each of input, output (negatives > 0) and node (hs) weights, dim rounded up to a
    multiple of 16, and about 10 MB, with hs 2 MB for each thread; a mapped corpus is read in slices and given back.
    Sources: Mikolov et al. 2013, arXiv:1301.3781 and arXiv:1310.4546; sharing after Ji et al. 2016, arXiv:1604.04661.
    """

    def __init__(
        self,
        dim: int = 100,
        window: int = 5,
        negatives: int = 5,
        hs: bool = False,
        cbow: bool = False,
        cbow_mean: bool = True,
        sample: float = 1e-3,
        ns_exponent: float = 0.75,
        shrink_windows: bool = True,
        epochs: int = 5,
        lr: float | None = None,
        min_lr: float | None = None,
        negatives_shared: bool = True,
        threads: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.dim = dim
        self.window = window
        self.negatives = negatives
        self.hs = hs
        self.cbow = cbow
        self.cbow_mean = cbow_mean
        self.sample = sample
        self.ns_exponent = ns_exponent
        self.shrink_windows = shrink_windows
        self.epochs = epochs
        self.lr = lr
        self.min_lr = min_lr
        self.negatives_shared = negatives_shared
        self.threads = threads
        self.seed = seed
        self.device = device

    def fit(
        self,
        corpus: Corpus,
        y: Any = None,
        *,
        checkpoint: FilePath | None = None,
        checkpoint_minutes: float = 10.0,
        resume: bool = False,
        progress: ProgressOption = None,
    ) -> "Word2Vec":
        """Trains from scratch, or from a checkpoint, and returns self.

        Args:
            y: not looked at; scikit-learn's pipelines pass it.
            checkpoint: a file for the state of the run, written every checkpoint_minutes, on Ctrl-C and at the end, in
                place of the one before. `load` reads it too.
            resume: continue from the checkpoint; from the start if the file is not there yet. On one thread the result
                has the bits of a run that was never interrupted.
            progress: None shows a bar on a terminal, True also writes lines to a log, False nothing; a callable gets a
                training.Status after each slice.

        Raises:
            ValueError: a setting makes no sense, the corpus has fewer than two distinct words, or the checkpoint is of
                another corpus or of other settings.
            TypeError: corpus is not a Corpus.
            FormatError: the checkpoint is damaged.
            TrainingError: the loss stopped being finite, most often since lr is too high.
            KeyboardInterrupt: Ctrl-C; the model holds what was learned so far.
        """
        run = self._begin(checkpoint, checkpoint_minutes, resume, progress)
        check_corpus(corpus)
        if self.hs:
            corpus = by_count(corpus)
        if not self._resumed(run, corpus.fingerprint()):
            self._first_tables(len(corpus.words))
            self._tree_counts = np.array(corpus.counts) if self.hs else None
            self.words_, self.counts_ = list(corpus.words), np.array(corpus.counts)
        return self._train(corpus, run)

    def partial_fit(self, corpus: Corpus, y: Any = None, *, progress: ProgressOption = None) -> "Word2Vec":
        """Continues with another corpus: `epochs` passes over it, lr falling from its start again. Returns self.

        Words not met before get new rows, counts add up, and the sampling of words follows the new counts. When there
        are new words, words_ is sorted by count anew, and rows move with their words. With hierarchical softmax new
        words change the tree, and the weights of its nodes start at zero; the word vectors stay, and the nodes catch up
        early in the pass. Without new words order and tree stay as they are. Untrained, it does what fit does.

        The settings dim, hs and whether negatives > 0 must be those of the first fit; the others may have changed.
        Memory while the vocabulary grows: the old weights and the new ones together.
        """
        if not hasattr(self, "vectors_"):
            return self.fit(corpus, progress=progress)
        self._check_continued()
        check_corpus(corpus)
        corpus = self._grow(corpus)
        self._continue()
        return self._train(corpus, FitRun(progress=progress))

    def transform(self, corpus: Corpus) -> np.ndarray:
        """The mean vector of the known words of each document, float32 (len(corpus), dim); zeros where none is known.

        >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]] * 10)
        >>> Word2Vec(dim=8, sample=0).fit_transform(corpus).shape
        (20, 8)
        """
        self._check_fitted()
        return document_means(self.vectors_.matrix, self.words_, corpus)

    def fit_transform(self, corpus: Corpus, y: Any = None) -> np.ndarray:
        """fit, then transform."""
        return self.fit(corpus).transform(corpus)

    def _check(self) -> None:
        check_int("dim", self.dim, 1, 100_000)
        check_int("window", self.window, 1, 1000)
        check_outputs(self.negatives, self.hs)
        for name in ("cbow", "cbow_mean", "shrink_windows", "negatives_shared"):
            check_flag(name, getattr(self, name))
        check_float("sample", self.sample, 0, 1)
        check_float("ns_exponent", self.ns_exponent, -10, 10)
        check_int("epochs", self.epochs, 1, 2**31 - 1)
        if self.lr is not None:
            check_float("lr", self.lr, 0, 100, above=True)
        if self.min_lr is not None:
            check_float("min_lr", self.min_lr, 0, self._rates()[0])
        check_machine(self.threads, self.seed, self.device, self._of_cpu())

    def _of_cpu(self) -> str | None:
        """What in the settings a device does not have."""
        if not self.cbow and not self.negatives_shared:
            return "negatives_shared=False, draws for each pair,"
        return f"dim={self.dim:,}, above 1,024," if self.dim > 1024 else None

    def _rates(self) -> tuple[float, float]:
        """First and last learning rate."""
        first = self.lr if self.lr is not None else 0.05 if self.cbow else 0.025
        return float(first), float(self.min_lr if self.min_lr is not None else first / 10_000)

    def _grow(self, corpus: Corpus) -> Corpus:
        """Takes the words and counts of a corpus into the model; returns it with the model's words."""
        n_old = len(self.words_)
        self.words_, self.counts_, row = grown_vocabulary(self.words_, self.counts_, corpus.words, corpus.counts)
        self._grow_tables(row)
        if self.hs and len(row) > n_old:
            self._tree_counts = self.counts_.copy()
        return corpus if corpus.words == self.words_ else corpus.with_words(self.words_)

    def _train(self, corpus: Corpus, run: FitRun) -> "Word2Vec":
        state, n_tokens = self._progress, corpus.n_tokens
        threads = Threads(self.threads)
        lr, min_lr = self._rates()
        share = sharing(self.cbow, self.hs, self.negatives, self.negatives_shared, self.window)
        blocks = make_blocks(corpus.offsets)
        keep = keep_thresholds(self.counts_, self.sample)
        device, self.device_ = choose_device(self.device, run.progress, self._of_cpu())
        noise = None
        if self.negatives and device is None:
            at_once = share.drawn * (1 if share.shared or self.cbow else 2 * self.window)
            needed = min(n_tokens, CHAPTER * BLOCK) * at_once // share.centers
            noise = NoisePool(noise_weights(self.counts_, self.ns_exponent), at_once, needed, self.seed)
        tree = kernels.HuffmanTree(np.maximum(self._tree_counts, 1)) if self.hs else None
        w_in, w_out, w_nodes = (self._tables.get(name) for name in ("w_in", "w_out", "w_nodes"))
        on_device = None
        if device is not None:
            on_device = kernels.device_sequences(
                device,
                self._tables,
                dim=self.dim,
                keep=keep,
                noise=kernels.NoiseTable(noise_weights(self.counts_, self.ns_exponent)) if self.negatives else None,
                tree=tree,
                window=self.window,
                shrink=bool(self.shrink_windows),
                cbow=bool(self.cbow),
                mean=bool(self.cbow_mean),
                drawn=self.negatives,
                seed=self.seed,
                lr_first=lr,
                lr_last=min_lr,
            )
            pieces = make_pieces(corpus.offsets, blocks)

        def step_on_device(epoch: int, first: int, last: int) -> tuple[float, int, int]:
            begin, end = np.searchsorted(pieces, blocks[[first, last]])
            return on_device.train(
                corpus.ids,
                corpus.offsets,
                pieces[begin : end + 1],
                epoch=state.before + epoch,
                tokens_before=epoch * n_tokens,
                tokens_total=self.epochs * n_tokens,
            )

        def step(epoch: int, first: int, last: int) -> tuple[float, int, int]:
            return kernels.train_sequences(
                w_in,
                w_out,
                w_nodes,
                corpus.ids,
                corpus.offsets,
                blocks,
                first,
                last,
                keep,
                noise and noise(state.before + epoch, first),
                tree,
                window=self.window,
                shrink=bool(self.shrink_windows),
                cbow=bool(self.cbow),
                mean=bool(self.cbow_mean),
                shared=share.shared,
                centers=share.centers,
                drawn=share.drawn,
                scale=share.scale,
                seed=self.seed,
                epoch=state.before + epoch,
                lr_first=lr,
                lr_last=min_lr,
                tokens_before=epoch * n_tokens,
                tokens_total=self.epochs * n_tokens,
                dim=self.dim,
                threads=threads.now,
            )

        slower = 1 if share.shared and not self.hs else 4
        of_cpu = max(1, blocks_per_slice(self.dim, self.window, threads.most) // slower)
        self._run(
            run,
            step if device is None else step_on_device,
            blocks,
            lr=lr,
            min_lr=min_lr,
            per_slice=of_cpu if device is None else DEVICE_SLICE,
            threads=threads if device is None else None,
            after_slice=lambda begin, end: forget_read(corpus.ids, begin, end),
            sessions=[] if device is None else [on_device],
        )
        return self

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = super()._tensors()
        return tensors if self._tree_counts is None else {**tensors, "tree_counts": self._tree_counts}

    def _restore(self, file: TensorFile) -> None:
        super()._restore(file)
        self._tree_counts = file.read("tree_counts", "I64", (len(self.words_),)) if self.hs else None
