"""Doc2Vec: document vectors by PV-DM and PV-DBOW, and inference for new documents."""

import warnings
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from embfast import kernels
from embfast.documents.inference import Inference
from embfast.documents.layouts import Layout
from embfast.files.durable import FilePath
from embfast.files.tensors import TensorFile, word_tensors
from embfast.text.corpus import Corpus, by_count
from embfast.text.tags import Tags
from embfast.training.estimator import Estimator, FitRun, check_corpus
from embfast.training.loop import choose_device
from embfast.training.progress import ProgressOption
from embfast.training.sampling import NegativeSharing, keep_thresholds, negative_sharing
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
from embfast.training.tables import for_kernels, grown_vocabulary
from embfast.training.threads import cores
from embfast.vectors.vectors import Vectors

Documents = Corpus | Iterable[Iterable[str]]


class Doc2Vec(Estimator):
    """Document vectors by PV-DM or PV-DBOW, learned for training documents and inferred for new ones.

    >>> documents = [["a", "b", "a"], ["b", "c"], ["c", "c", "d"]] * 10
    >>> model = Doc2Vec(mode="dbow", dim=8, epochs=2).fit(documents, tags=[str(i % 3) for i in range(30)])
    >>> model.vectors_
    Vectors(3 keys, dim=8)
    >>> model.infer([["a", "b"], ["c", "d", "unknown"]]).shape
    (2, 8)

    Settings:
        mode: "dm": the document and the words of a window together predict the center (PV-DM); "dbow": the document
            alone predicts each of its words (PV-DBOW); "both": both models side by side, with vectors of size 2 * dim.
        dim: Vector size, of each model with mode="both". Rows are padded to a multiple of 16; other sizes cost as much
            as the next multiple.
        window: Maximum distance between a center and its context words, 1 to 1,000 tokens. Windows do not cross
            documents.
        negatives: Negative samples per center, drawn in proportion to count ** ns_exponent. 0 disables negative
            sampling.
        hs: Train with hierarchical softmax over a Huffman tree of the words, in addition to negative sampling or, with
            negatives=0, instead of it.
        dm: How PV-DM combines document and window: "mean", "sum", or "concat" (end to end; windows are always full).
            With "concat", output rows have (tags + 2 * window) * dim numbers, and all documents need the same number of
            tags.
        tag_weight: Weight of a tag in PV-DM with mean or sum: it counts as this many words of the window, 1 to 100. 1
            in Le & Mikolov and in gensim. A larger weight improves documents and hurts words: on 8,333 held-out IMDB
            reviews, 85.9 % instead of 83.3 %; WordSim353 of the word vectors, 0.36 instead of 0.40 (dim=100, 20 epochs,
            lr=0.025).
        dbow_words: PV-DBOW also trains word vectors, by skip-gram in the same pass.
        sample: Subsampling threshold t (Mikolov et al. 2013, eq. 5): occurrences of words more frequent than t are
            randomly dropped, with the keep probability of word2vec.c. 0 disables it.
        ns_exponent: Exponent of the counts in the noise distribution: 0.75 in word2vec.c; 0 draws all words equally
            often.
        shrink_windows: Draw the width of each window from 1..window; False uses full windows.
        min_count: Minimum count of a word, when documents are given as lists of tokens; a Corpus already has its
            vocabulary.
        epochs: Passes over the documents, and over each new document during inference.
        lr: Initial learning rate; it decreases linearly to min_lr. Default: 0.05 for PV-DM with mean or sum, 0.025 for
            PV-DM with concatenation and for PV-DBOW.
        min_lr: Final learning rate. Default: lr / 10,000.
        negatives_shared: Neighbouring windows share their negative samples; False draws them for each window. Words of
            PV-DBOW without dbow_words always have their own.
        threads: Number of threads. Default: all cores; long runs also try half as many and keep whichever is faster.
            Inference uses all cores, and its bits do not depend on the number.
        seed: Seed of the first weights and of every random draw, 0 to 2**64 - 1. With one thread, the same seed gives
            the same bits.
        device: Where to train and infer: "cpu", "cuda", "cuda:1", or "auto" (CUDA where a device is usable, otherwise
            the CPU; the choice is printed). CUDA needs CuPy and dim <= 1,024, and does not support dm="concat".
    Learned:
        vectors_: Vectors of the documents, keyed by tag: float32 (tags, dim); with mode="both" (tags, 2 * dim), PV-DM
            first. vectors_.most_similar(word_vectors_["good"]) finds documents near a word.
        word_vectors_: Vectors of the words (those of PV-DM with mode="both"); None if PV-DBOW trains no words.
        words_, counts_: The vocabulary, and the int64 occurrences of each word in everything trained on.
        loss_: Mean loss of each epoch in nats: per word and tag for PV-DBOW (and per pair of words with dbow_words),
            per word for PV-DM, over both models with mode="both".
        device_: The device used and, with device="auto", why.

    Memory: 4 * dim * (tags + 2 * words) bytes for each model, and 4 * dim * words more with hs, with dim rounded up to
    a multiple of 16 (output rows are longer with dm="concat"); about 150 bytes per tag for its name; 12 bytes per
    document for its tags, plus 8 + 4 * tag_weight while PV-DM trains. mode="both" holds the document rows twice.
    Sources: Le & Mikolov 2014, arXiv:1405.4053; shared negatives as in Ji et al. 2016, arXiv:1604.04661; inferred rows
    are averaged after Polyak & Juditsky 1992, doi:10.1137/0330046.
    """

    def __init__(
        self,
        mode: str = "dm",
        dim: int = 100,
        window: int = 5,
        negatives: int = 5,
        hs: bool = False,
        dm: str = "mean",
        tag_weight: int = 4,
        dbow_words: bool = False,
        sample: float = 1e-3,
        ns_exponent: float = 0.75,
        shrink_windows: bool = True,
        min_count: int = 5,
        epochs: int = 10,
        lr: float | None = None,
        min_lr: float | None = None,
        negatives_shared: bool = True,
        threads: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.mode = mode
        self.dim = dim
        self.window = window
        self.negatives = negatives
        self.hs = hs
        self.dm = dm
        self.tag_weight = tag_weight
        self.dbow_words = dbow_words
        self.sample = sample
        self.ns_exponent = ns_exponent
        self.shrink_windows = shrink_windows
        self.min_count = min_count
        self.epochs = epochs
        self.lr = lr
        self.min_lr = min_lr
        self.negatives_shared = negatives_shared
        self.threads = threads
        self.seed = seed
        self.device = device

    # ---- training -------------------------------------------------------------------------------------------------

    def fit(
        self,
        documents: Documents,
        y: Any = None,
        *,
        tags: "Tags | Iterable[str] | Iterable[Iterable[str]] | None" = None,
        checkpoint: FilePath | None = None,
        checkpoint_minutes: float = 10.0,
        resume: bool = False,
        progress: ProgressOption = None,
    ) -> "Doc2Vec":
        """Trains from scratch, or continues from a checkpoint, and returns self.

        Args:
            documents: A Corpus, or an iterable of lists of tokens.
            y: Ignored; present for scikit-learn's pipelines.
            tags: For each document a tag, a list of tags, or what `read_tagged` returned. Default: "0", "1", ... A tag
                of several documents learns from all of them.
            checkpoint: File for the state of the run. It replaces the previous checkpoint every checkpoint_minutes, on
                Ctrl-C and at the end. `load` reads it too.
            resume: Continue from the checkpoint; start from scratch if the file does not exist yet. With one thread the
                result has the bits of an uninterrupted run.
            progress: None shows a bar on a terminal; True also writes lines to a log; False shows nothing; a callable
                receives a training.progress.Status after each slice.

        Raises:
            ValueError: A setting is invalid, there are fewer than two distinct words, the number of tags differs from
                the number of documents, or the checkpoint belongs to other documents, tags or settings.
            TypeError: documents are not lists of tokens, or tags are not strings.
            FormatError: The checkpoint is damaged.
            TrainingError: The loss became infinite or NaN; most often lr is too high.
            KeyboardInterrupt: Ctrl-C was pressed; the model holds what it has learned so far.
        """
        run = self._begin(checkpoint, checkpoint_minutes, resume, progress)
        if not isinstance(documents, Corpus):
            documents = Corpus.from_sentences(documents, min_count=self.min_count)
        check_corpus(documents)
        corpus = by_count(documents) if self.hs else documents
        tags = Tags.of(tags, len(corpus))
        if not len(tags.keys):
            raise ValueError(f"none of the {len(corpus)} documents has a tag: there is no vector to learn")
        concat_tags = self._concat_tags(tags)
        if not self._resumed(run, corpus.fingerprint() | {"tags": _checksum(tags)}):
            self._concat = concat_tags
            self._tree_counts = np.array(corpus.counts) if self.hs else None
            self._tables: dict[str, np.ndarray] = {}
            for layout in self._layouts():
                self._tables |= layout.first_tables(len(corpus.words), len(tags.keys))
            self.words_, self.counts_, self._keys = list(corpus.words), np.array(corpus.counts), list(tags.keys)
        return self._train(corpus, tags, run)

    def partial_fit(
        self,
        documents: Documents,
        y: Any = None,
        *,
        tags: "Tags | Iterable[str] | Iterable[Iterable[str]] | None" = None,
        progress: ProgressOption = None,
    ) -> "Doc2Vec":
        """Continues training on more documents: `epochs` passes, with lr starting from its first value. Returns self.

        New tags get new rows after the existing ones, and known tags learn on. By default tags count on from the number
        of rows, skipping tags that exist. New words get rows too, counts add up, and words_ is then sorted by count
        again; with hierarchical softmax, new words change the tree, and the node weights restart at zero. Rows of
        documents that are not given stay as they are, while words and outputs change. On an untrained model this is
        fit.

        mode, dim, dm, dbow_words, hs, whether negatives > 0, and window with dm="concat" must be those of the first
        fit.
        Memory while tables grow: the old weights and the new ones together.
        """
        if not hasattr(self, "vectors_"):
            return self.fit(documents, tags=tags, progress=progress)
        self._ready()
        if not isinstance(documents, Corpus):
            documents = Corpus.from_sentences(documents, min_count=self.min_count, keep=self.words_)
        check_corpus(documents)
        tags = Tags.of(tags, len(documents), taken=self._keys)
        if self._concat_tags(tags) != self._concat:
            raise ValueError(f"expected {self._concat} tags a document, as in the first fit; dm={self.dm!r}")
        self._check_learned()
        corpus = self._grow(documents)
        tags = self._grow_documents(tags)
        self._continue()
        return self._train(corpus, tags, FitRun(progress=progress))

    def _check_learned(self) -> None:
        expected = {
            f"{layout.name}_{name}": columns
            for layout in self._layouts()
            for name, (_, columns) in layout.shapes(len(self.words_), len(self._keys)).items()
        }
        found = {name: table.shape[1] for name, table in self._tables.items()}
        if expected != found or self.vectors_.dim != self.dim * len(self._layouts()):
            raise ValueError(
                "mode, dim, dm, dbow_words, hs and whether negatives > 0 must stay as in the first fit, and window "
                f'with dm="concat": vectors of {self.vectors_.dim} and tables {_listed(found)} are there, the settings '
                f"want {self.dim * len(self._layouts())} and {_listed(expected)}; train anew"
            )

    def _check(self) -> None:
        for name, value, known in (
            ("mode", self.mode, ("dm", "dbow", "both")),
            ("dm", self.dm, ("mean", "sum", "concat")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
        check_machine(self.threads, self.seed, self.device, self._cpu_only())
        check_sequence_settings(self)
        check_outputs(self.negatives, self.hs)
        check_int("tag_weight", self.tag_weight, 1, 100)
        check_flag("dbow_words", self.dbow_words)
        check_int("min_count", self.min_count, 0, 2**62)
        check_int("epochs", self.epochs, 1, 2**31 - 1)
        if self.lr is not None:
            check_float("lr", self.lr, 0, 100, above=True)
        if self.min_lr is not None:
            check_float("min_lr", self.min_lr, 0, min(self._rates(layout)[0] for layout in self._layouts()))

    def _layouts(self) -> list[Layout]:
        """The models to train, and how their batches share negatives.

        In PV-DBOW each word has its own negatives: with four words that share eight, training and inference are twice
        as fast, but accuracy on the IMDB reviews is 87.65 % instead of 87.78 % (dim=100, 20 epochs, six seeds).
        """
        layouts = []
        outputs = bool(self.negatives), bool(self.hs)
        if self.mode != "dbow":
            concat = self.dm == "concat"
            pieces = getattr(self, "_concat", 0) + 2 * self.window if concat else 1
            sharing = negative_sharing(True, self.hs, self.negatives, self.negatives_shared, self.window)
            weight = 1 if concat else self.tag_weight
            layouts.append(Layout("dm", True, True, concat, weight, self.seed, sharing, self.dim, pieces, *outputs))
        if self.mode != "dm":
            words, seed = self.dbow_words, (self.seed + 1) % 2**64
            sharing = NegativeSharing(True, 1, self.negatives, 1.0)
            if words and self.negatives_shared:
                sharing = negative_sharing(False, self.hs, self.negatives, True, min(self.window, 50))
            layouts.append(Layout("dbow", False, words, False, 1, seed, sharing, self.dim, 1, *outputs))
        return layouts

    def _concat_tags(self, tags: Tags) -> int:
        """Number of tags per document if PV-DM concatenates them, otherwise 0."""
        if self.dm != "concat" or self.mode == "dbow":
            return 0
        numbers = np.diff(tags.offsets)
        if numbers.min() != numbers.max() or numbers[0] == 0:
            raise ValueError(
                'dm="concat" needs the same number of tags for each document, at least one; '
                f"got {numbers.min()} to {numbers.max()}"
            )
        return int(numbers[0])

    def _grow(self, corpus: Corpus) -> Corpus:
        """Adds the words and counts of a corpus to the model; returns the corpus encoded with the model's words."""
        self._tables = {name: for_kernels(table) for name, table in self._tables.items()}
        n_old = len(self.words_)
        self.words_, self.counts_, row = grown_vocabulary(self.words_, self.counts_, corpus.words, corpus.counts)
        if len(row) == n_old:
            return corpus if corpus.words == self.words_ else corpus.with_words(self.words_)
        for layout in self._layouts():
            self._tables |= layout.with_words(self._tables, row, n_old)
        if self.hs:
            self._tree_counts = self.counts_.copy()
        return corpus.with_words(self.words_)

    def _grow_documents(self, tags: Tags) -> Tags:
        """Adds rows for new tags; returns the tags with the model's row numbers."""
        index = {key: i for i, key in enumerate(self._keys)}
        rows = np.array([index.setdefault(key, len(index)) for key in tags.keys], np.int32)
        for layout in self._layouts():
            self._tables |= layout.with_tags(self._tables, len(index))
        self._keys = list(index)
        return Tags(self._keys, tags.offsets, rows[tags.ids])

    def _train(self, corpus: Corpus, tags: Tags, run: FitRun) -> "Doc2Vec":
        trainer = SequenceTrainer(self, [self._part(layout, tags) for layout in self._layouts()], run)
        self.device_ = trainer.device_name
        trainer.run(corpus)
        return self

    def _part(self, layout: Layout, tags: Tags | None) -> Part:
        """The part to train; tags=None: for inference, which brings its own document rows."""
        tables = {name: self._tables.get(f"{layout.name}_{name}") for name in ("w_in", "w_out", "w_nodes", "w_docs")}
        if tags is None:
            del tables["w_docs"]
        windows = Windows.of(
            self,
            window=self.window if layout.words else 1,
            shrink=self.shrink_windows and layout.words and not layout.concat,
            cbow=layout.cbow,
            mean=self.dm == "mean",
            words=layout.words if tags is not None else layout.cbow,
            concat=layout.concat,
            tag_weight=layout.tag_weight,
        )
        outputs = Outputs(self.counts_, self.negatives, self.ns_exponent, layout.sharing, self._tree_counts)
        return Part(tables, windows, outputs, self._rates(layout), layout.seed, tags)

    def _rates(self, layout: Layout) -> tuple[float, float]:
        """First and last learning rates."""
        first = self.lr if self.lr is not None else 0.05 if layout.cbow and not layout.concat else 0.025
        return learning_rates(first, self.min_lr)

    def _cpu_only(self) -> str | None:
        """The setting that no device supports, or None."""
        if self.mode != "dbow" and self.dm == "concat":
            return 'dm="concat"'
        return too_wide_for_devices(self.dim)

    # ---- inference ------------------------------------------------------------------------------------------------

    def infer(self, documents: Documents, *, epochs: int | None = None) -> np.ndarray:
        """Infers vectors of new documents: float32 (documents, dim), or (documents, 2 * dim) with mode="both".

        Words and outputs are frozen, and each document fits its own row, in all threads. A vector depends only on the
        document's words, the settings and the seed, not on the other documents, its position or the threads. Unknown
        words are dropped. A document without a known word gets zeros, and one warning counts such documents.

        A vector is the mean of its row after each of the last half of the epochs, because single steps fluctuate: on
        25,000 held-out reviews in three folds (PV-DBOW, dim=100), 88.78 % instead of 88.63 %.

        Rows of vectors_ were learned while words and outputs also moved, so a classifier trained on them needs strong
        regularisation (5,000 held-out IMDB training reviews: 89.7 % at C=0.001 and 89.3 % at 0.1; after 10 epochs of
        training and 20 of inference, 88.3 % and 81.7 %). Trained on inferred rows of the same documents, as
        `fit_transform` returns them, it hardly depends on C (89.6 % and 89.5 %).

        Args:
            documents: A Corpus, or an iterable of lists of tokens.
            epochs: Passes over each document. Default: those of training. More is not better: on the same reviews
                (PV-DBOW, dim=200, 20 epochs of training), 10 and 20 gave 89.6 and 89.7 %, 50 gave 89.3 %.

        Memory: the result, and a copy of the ids.

        Raises:
            ValueError: The model is not trained, it was trained with another mode, dim or output than is set now, or
                dm="concat" was trained with several tags per document.
        """
        self._check_fitted()
        self._ready()
        self._check_learned()
        epochs = self.epochs if epochs is None else epochs
        check_int("epochs", epochs, 1, 2**31 - 1)
        averaged = max(1, epochs // 2)
        if self._concat > 1:
            raise ValueError(
                f'a new document has one row, and dm="concat" was trained with {self._concat} tags a document; '
                "train with one"
            )
        corpus, n = self._encoded(documents)
        self._tables = {name: for_kernels(table) for name, table in self._tables.items()}
        device, _ = choose_device(self.device, False, self._cpu_only())
        keep = keep_thresholds(self.counts_, self.sample)
        parts = [self._part(layout, None) for layout in self._layouts()]
        result = np.empty((n, self.dim * len(parts)), np.float32)
        for k, part in enumerate(parts):
            inference = Inference(part, self.dim, keep, device, self.threads or cores())
            inference.run(corpus, epochs, averaged, result[:, k * self.dim : (k + 1) * self.dim])
        empty = int(np.count_nonzero(np.diff(corpus.offsets[: n + 1]) == 0))
        if empty:
            warnings.warn(f"{empty:,} of {n:,} documents have no known word; their vectors are zeros", stacklevel=2)
        return result

    def transform(self, documents: Documents) -> np.ndarray:
        """Infers vectors of documents, also of those trained on, as if they were new: see infer."""
        return self.infer(documents)

    def fit_transform(self, documents: Documents, y: Any = None) -> np.ndarray:
        """Calls fit, then transform: inferred rows, as a classifier gets for new documents, not those of vectors_."""
        if not isinstance(documents, Corpus):
            documents = Corpus.from_sentences(documents, min_count=self.min_count)
        return self.fit(documents).transform(documents)

    def _encoded(self, documents: Documents) -> tuple[Corpus, int]:
        """Documents encoded with words_, and their number; for lists of tokens, one more document follows."""
        if isinstance(documents, Corpus):
            return documents if documents.words == self.words_ else documents.with_words(self.words_), len(documents)
        if isinstance(documents, str | bytes):
            raise TypeError(f"expected lists of tokens, got one {type(documents).__name__}")

        def and_one_more() -> Any:  # an encoder refuses input without any known word, which is valid here
            yield from documents
            yield self.words_[:1]

        corpus = Corpus.from_sentences(and_one_more(), vocab=self.words_)
        return corpus, len(corpus) - 1

    # ---- what is learned ------------------------------------------------------------------------------------------

    def _show(self) -> None:
        """Sets vectors_, word_vectors_ and loss_ from the current weights."""
        layouts = self._layouts()
        rows = [self._tables[f"{layout.name}_w_docs"][:, : self.dim] for layout in layouts]
        self.vectors_ = Vectors(self._keys, rows[0] if len(rows) == 1 else np.hstack(rows))
        self.word_vectors_ = None
        if layouts[0].words:
            w_in = self._tables[f"{layouts[0].name}_w_in"]
            self.word_vectors_ = Vectors(self.words_, w_in[: len(self.words_), : self.dim])
        self.loss_ = list(self._progress.losses)

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = {**word_tensors(self._keys, "tags"), "concat_tags": np.array([self._concat], np.int64)}
        for layout in self._layouts():
            for name in layout.shapes(1, 1):
                table = self._tables[f"{layout.name}_{name}"]
                if table.shape[1] == kernels.padded(self.dim):
                    table = table[:, : self.dim]
                else:
                    table = table.reshape(len(table), layout.pieces, -1)[:, :, : self.dim]
                tensors[f"{layout.name}_{name}"] = table
        return tensors if self._tree_counts is None else {**tensors, "tree_counts": self._tree_counts}

    def _restore(self, file: TensorFile) -> None:
        self._check()
        self._keys = file.read_words("tags")
        self._concat = int(file.read("concat_tags", "I64", (1,))[0])
        n = len(self.words_)
        self._tables = {
            f"{layout.name}_{name}": file.read_table(
                f"{layout.name}_{name}", rows, self.dim, columns // kernels.padded(self.dim)
            )
            for layout in self._layouts()
            for name, (rows, columns) in layout.shapes(n, len(self._keys)).items()
        }
        self._tree_counts = file.read("tree_counts", "I64", (n,)) if self.hs else None
        self._show()


def _checksum(tags: Tags) -> int:
    crc = zlib.crc32("\0".join(tags.keys).encode("utf-8", "surrogatepass"))
    return zlib.crc32(tags.ids.data, zlib.crc32(tags.offsets.data, crc))


def _listed(columns: dict[str, int]) -> str:
    return ", ".join(f"{name} ({n} columns)" for name, n in sorted(columns.items()))
