"""Word2Vec: skip-gram and CBOW, with negative sampling, hierarchical softmax, or both."""

from typing import Any

import numpy as np

from embfast.files.durable import FilePath
from embfast.files.tensors import TensorFile
from embfast.text.corpus import Corpus, by_count
from embfast.training.estimator import FitRun, WindowModel, check_corpus
from embfast.training.progress import ProgressOption
from embfast.training.sampling import negative_sharing
from embfast.training.sequences import Outputs, Part, SequenceTrainer, Windows
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
from embfast.training.tables import document_means, grown_vocabulary


class Word2Vec(WindowModel):
    """Word vectors trained with skip-gram or CBOW, as in word2vec.c.

    >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]] * 10)
    >>> model = Word2Vec(dim=8, epochs=2, sample=0).fit(corpus)
    >>> model.vectors_.matrix.shape
    (3, 8)
    >>> model
    Word2Vec(dim=8, sample=0, epochs=2)

    Settings:
        dim: Vector size. Rows are padded to a multiple of 16; other sizes cost as much as the next multiple.
        window: Maximum distance between a center and its context words, 1 to 1,000 tokens. Windows do not cross
            documents.
        negatives: Negative samples per pair, drawn in proportion to count ** ns_exponent. 0 disables negative sampling.
        hs: Train with hierarchical softmax over a Huffman tree of the words, in addition to negative sampling or, with
            negatives=0, instead of it.
        cbow: Predict a word from its window (CBOW) instead of the window from the word (skip-gram).
        cbow_mean: CBOW averages the vectors of the window; False sums them.
        sample: Subsampling threshold t (Mikolov et al. 2013, eq. 5): occurrences of words more frequent than t are
            randomly dropped, with the keep probability of word2vec.c. 0 disables it.
        ns_exponent: Exponent of the counts in the noise distribution: 0.75 in word2vec.c; 0 draws all words equally
            often.
        shrink_windows: Draw the width of each window from 1..window, as word2vec.c does; False uses full windows.
        epochs: Passes over the corpus.
        lr: Initial learning rate; it decreases linearly to min_lr. Default: 0.025 for skip-gram, 0.05 for CBOW.
        min_lr: Final learning rate. Default: lr / 10,000.
        negatives_shared: Share negative samples among neighbouring windows, which is three times faster for skip-gram
            and better on analogies and relatedness (docs/internals.md); False draws them for each pair, as word2vec.c
            does.
        threads: Number of threads. Default: all cores; long runs also try half as many and keep whichever is faster.
        seed: Seed of the first weights and of every random draw, 0 to 2**64 - 1. With one thread, the same seed gives
            the same bits.
        device: Where to train: "cpu", "cuda", "cuda:1", or "auto" (CUDA where a device is usable, otherwise the CPU;
            the choice is printed). CUDA needs CuPy and dim <= 1,024. On a device every center has its own negative
            samples, documents are cut into pieces of about 1,024 tokens, and additions happen in any order, so runs
            differ in the last digits.
    Learned:
        vectors_: Vectors, float32 (len(words_), dim), a view of the input weights; row i belongs to words_[i].
        words_, counts_: The vocabulary, and the int64 occurrences of each word in everything trained on.
        loss_: Mean loss of each epoch in nats, per (center, context) pair for skip-gram and per center for CBOW. It is
            the objective of the examples trained on, measured just before each step.
        device_: The device used and, with device="auto", why.

    Memory: 4 * dim * words bytes for each of the input, output (negatives > 0) and node (hs) weights, with dim rounded
    up to a multiple of 16, plus about 10 MB, and 2 MB per thread with hs. A mapped corpus is read slice by slice, and
    its pages are released after each slice.
    Sources: Mikolov et al. 2013, arXiv:1301.3781 and arXiv:1310.4546; shared negatives: Ji et al. 2016,
    arXiv:1604.04661.
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
        """Trains from scratch, or continues from a checkpoint, and returns self.

        Args:
            y: Ignored; present for scikit-learn's pipelines.
            checkpoint: File for the state of the run. It replaces the previous checkpoint every checkpoint_minutes, on
                Ctrl-C and at the end. `load` reads it too.
            resume: Continue from the checkpoint; start from scratch if the file does not exist yet. With one thread the
                result has the bits of an uninterrupted run.
            progress: None shows a bar on a terminal; True also writes lines to a log; False shows nothing; a callable
                receives a training.progress.Status after each slice.

        Raises:
            ValueError: A setting is invalid, the corpus has fewer than two distinct words, or the checkpoint belongs to
                another corpus or other settings.
            TypeError: corpus is not a Corpus.
            FormatError: The checkpoint is damaged.
            TrainingError: The loss became infinite or NaN; most often lr is too high.
            KeyboardInterrupt: Ctrl-C was pressed; the model holds what it has learned so far.
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
        """Continues training on another corpus: `epochs` passes, with lr starting from its first value. Returns self.

        New words get new rows, counts add up, and subsampling and negative sampling follow the new counts. If there are
        new words, words_ is sorted by count again, and rows move with their words. With hierarchical softmax, new words
        change the tree: the node weights restart at zero and catch up early in the pass, while the word vectors stay.
        Without new words, order and tree stay as they are. On an untrained model this is fit.

        dim, hs and whether negatives > 0 must be those of the first fit; other settings may have changed.
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
        """Averages the vectors of each document's known words: float32 (len(corpus), dim), zeros where none is known.

        >>> corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]] * 10)
        >>> Word2Vec(dim=8, sample=0).fit_transform(corpus).shape
        (20, 8)
        """
        self._check_fitted()
        return document_means(np.asarray(self.vectors_.matrix), self.words_, corpus)

    def fit_transform(self, corpus: Corpus, y: Any = None) -> np.ndarray:
        """Calls fit, then transform."""
        return self.fit(corpus).transform(corpus)

    def _check(self) -> None:
        check_sequence_settings(self)
        check_outputs(self.negatives, self.hs)
        for name in ("cbow", "cbow_mean"):
            check_flag(name, getattr(self, name))
        check_int("epochs", self.epochs, 1, 2**31 - 1)
        if self.lr is not None:
            check_float("lr", self.lr, 0, 100, above=True)
        if self.min_lr is not None:
            check_float("min_lr", self.min_lr, 0, self._rates()[0])
        check_machine(self.threads, self.seed, self.device, self._cpu_only())

    def _cpu_only(self) -> str | None:
        """The setting that no device supports, or None."""
        if not self.cbow and not self.negatives_shared:
            return "negatives_shared=False with skip-gram"
        return too_wide_for_devices(self.dim)

    def _rates(self) -> tuple[float, float]:
        """First and last learning rates."""
        first = self.lr if self.lr is not None else 0.05 if self.cbow else 0.025
        return learning_rates(first, self.min_lr)

    def _grow(self, corpus: Corpus) -> Corpus:
        """Adds the words and counts of a corpus to the model; returns the corpus encoded with the model's words."""
        n_old = len(self.words_)
        self.words_, self.counts_, row = grown_vocabulary(self.words_, self.counts_, corpus.words, corpus.counts)
        self._grow_tables(row)
        if self.hs and len(row) > n_old:
            self._tree_counts = self.counts_.copy()
        return corpus if corpus.words == self.words_ else corpus.with_words(self.words_)

    def _train(self, corpus: Corpus, run: FitRun) -> "Word2Vec":
        sharing = negative_sharing(self.cbow, self.hs, self.negatives, self.negatives_shared, self.window)
        windows = Windows.of(self, shrink=self.shrink_windows, mean=self.cbow_mean)
        outputs = Outputs(self.counts_, self.negatives, self.ns_exponent, sharing, self._tree_counts)
        trainer = SequenceTrainer(self, [Part(self._tables, windows, outputs, self._rates(), self.seed)], run)
        self.device_ = trainer.device_name
        trainer.run(corpus)
        return self

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = super()._tensors()
        return tensors if self._tree_counts is None else {**tensors, "tree_counts": self._tree_counts}

    def _restore(self, file: TensorFile) -> None:
        super()._restore(file)
        self._tree_counts = file.read("tree_counts", "I64", (len(self.words_),)) if self.hs else None
