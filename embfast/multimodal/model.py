"""Images and captions in one space: towers trained by a ranking loss, and search in both directions.

Sources: Kiros et al. 2014, arXiv:1411.2539; Vendrov et al. 2016, arXiv:1511.06361; Faghri et al. 2018,
arXiv:1707.05612; Vilalta et al. 2017 (full-network embeddings in such a pipeline); Dong et al. 2016, arXiv:1604.06838.
"""

import json
import math
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from embfast.errors import FormatError
from embfast.evaluate.retrieval import Ranking, Retrieval
from embfast.files.durable import FilePath
from embfast.files.tensors import TensorFile, word_tensors
from embfast.files.texts import Texts
from embfast.multimodal.captions import SPECIAL, Captions, Linked, vocabulary
from embfast.multimodal.examples import (
    CAPTIONS,
    IMAGES,
    Examples,
    Rows,
    check_finite,
    checksums,
    training_and_validation,
)
from embfast.multimodal.search import JointSpace
from embfast.training.estimator import FitRun
from embfast.training.model_file import inner_model, inner_tensors
from embfast.training.progress import Progress, ProgressOption
from embfast.training.settings import check_flag, check_float, check_int, check_machine
from embfast.vectors.vectors import Vectors

if TYPE_CHECKING:
    import torch

    from embfast.documents.doc2vec import Doc2Vec

LOSSES = ("sum", "max", "semihard", "topk", "infonce", "mse")

_STATE = {"kinds", "n_in", "word_dim", "best_score", "stale", "validation", "optimizer"}


class Multimodal(JointSpace):
    """A joint space for images and their captions, or for any other vectors that describe the same objects.

    >>> images = Vectors(["a", "b"], np.eye(2, dtype=np.float32))
    >>> captions = Captions.from_pairs([("a", "a dog"), ("a", "one dog"), ("b", "two cats"), ("b", "cats")])
    >>> model = Multimodal(dim=8, word_dim=8, epochs=60, batch=4, lr=0.02).fit(images, captions)
    >>> model.search_images("dog", k=1)[0][0], model.search_captions("b", k=1)[0][0]
    ('a', 'two cats')

    Word2VisualVec is Multimodal(text="word2visualvec", loss="mse", optimizer="rmsprop", lr=1e-4, dropout=0.2).

    Settings:
        dim: Size of the joint space. With loss="mse" the joint space is that of the image vectors.
        text: Caption tower: "gru" or "lstm" over word vectors; "mean" of the word vectors; "doc2vec", an affine map of
            vectors inferred by a trained Doc2Vec; or "word2visualvec", an MLP over the last state of a GRU, the mean
            word vector and the bag of words.
        pooling: Pooling of GRU or LSTM states: "last", "max" or "mean".
        bidirectional: Run the GRU or LSTM in both directions and average the two states.
        word_dim: Size of the word vectors. fit(word_vectors=...) overrides it.
        tune_words: Train the word vectors too.
        hidden: Size of the hidden ReLU layer of the image tower and of text="mean"; 0 for an affine map.
        dropout: Dropout probability of the tower inputs during training.
        loss: "sum" of the hinges over all negatives; "max", the hinge of the hardest negative; "semihard"; "topk", the
            hinges of the k hardest; "infonce"; or "mse", regression of the image vectors, which stay unchanged, from
            the captions, without ranking.
        similarity: "cosine", or "order" (order embeddings: absolute values, an image above its captions).
        margin: Margin of the hinges. Default: 0.2, or 0.05 with similarity="order".
        k: Number of hardest negatives of loss="topk".
        temperature: Temperature of loss="infonce".
        warmup: Number of epochs with loss "sum" before "max", "semihard" or "topk", which may collapse without it.
        epochs: Number of passes over the captions; patience may end training earlier.
        batch: Number of captions per step.
        bucketed: Group captions of similar length into batches, so that recurrent towers run fewer, fuller steps.
        distinct_images: Never put two captions of one image into a batch. Otherwise such captions share batches but
            are not negatives of each other.
        optimizer: Name of an optimiser in torch.optim, in upper or lower case. Its fused form is used if torch has one.
        lr: Learning rate.
        lr_drop: Number of epochs after which lr is divided by 10. Default: never.
        weight_decay: Weight decay of the optimiser.
        clip: Maximum norm of the gradient of all weights together; 0 disables clipping.
        patience: Stop after this many epochs without a better validation score. Default: never.
        precision: "float32", or "bfloat16" for the matrix products of the towers; weights and loss stay float32.
        min_count: Words of the captions that occur less often become <unk>.
        max_words: Captions are truncated to this many words.
        threads: Number of threads of torch while fitting. Default: unchanged, which is usually all cores.
        seed: Seed of the first weights and of every random draw, 0 to 2**64 - 1. With one thread, the same seed gives
            the same bits.
        device: Where to train: "cpu", "cuda", "cuda:1", or "auto" (CUDA where a device is usable, otherwise the CPU;
            the choice is printed).
    Learned:
        vectors_: Vectors of all images given to fit, float32 (images, dim), of norm 1 except with loss="mse".
        words_, counts_: vocabulary of the captions, <end> and <unk> first, and the number of occurrences.
        loss_: mean loss of each epoch per caption, summed over all pairs of modalities.
        validation_: Retrieval of each epoch (see evaluate), if captions are held out for validation. The weights are
            those of the epoch with the highest recall_sum.
        device_: the device that holds the weights, such as "cpu" or "cuda:0".

    Under torch.distributed (torchrun, with an initialised process group) each process computes its part of every batch,
    and every process sees all negatives.
    Memory: 16 bytes per weight (with Adam), 4 more when validating, two copies of the rows of a batch, and vectors_.
    Image vectors may be memory-mapped, and int8 or ternary: rows are converted to float32 batch by batch.
    """

    validation_: list[Retrieval]
    _best: dict[str, Any] | None

    def __init__(
        self,
        dim: int = 1024,
        text: str = "gru",
        pooling: str = "last",
        bidirectional: bool = False,
        word_dim: int = 300,
        tune_words: bool = True,
        hidden: int = 0,
        dropout: float = 0.0,
        loss: str = "sum",
        similarity: str = "cosine",
        margin: float | None = None,
        k: int = 5,
        temperature: float = 0.07,
        warmup: int = 1,
        epochs: int = 15,
        batch: int = 128,
        bucketed: bool = True,
        distinct_images: bool = False,
        optimizer: str = "adam",
        lr: float = 2e-4,
        lr_drop: int | None = None,
        weight_decay: float = 0.0,
        clip: float = 2.0,
        patience: int | None = None,
        precision: str = "float32",
        min_count: int = 1,
        max_words: int = 100,
        threads: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.dim = dim
        self.text = text
        self.pooling = pooling
        self.bidirectional = bidirectional
        self.word_dim = word_dim
        self.tune_words = tune_words
        self.hidden = hidden
        self.dropout = dropout
        self.loss = loss
        self.similarity = similarity
        self.margin = margin
        self.k = k
        self.temperature = temperature
        self.warmup = warmup
        self.epochs = epochs
        self.batch = batch
        self.bucketed = bucketed
        self.distinct_images = distinct_images
        self.optimizer = optimizer
        self.lr = lr
        self.lr_drop = lr_drop
        self.weight_decay = weight_decay
        self.clip = clip
        self.patience = patience
        self.precision = precision
        self.min_count = min_count
        self.max_words = max_words
        self.threads = threads
        self.seed = seed
        self.device = device

    # ---- training -------------------------------------------------------------------------------------------------

    def fit(
        self,
        images: Any,
        captions: Captions | Linked,
        *,
        others: Mapping[str, Linked] | None = None,
        validation: Captions | Linked | None = None,
        word_vectors: Vectors | None = None,
        document_model: "Doc2Vec | None" = None,
        missing: str = "error",
        checkpoint: FilePath | None = None,
        checkpoint_minutes: float = 10.0,
        resume: bool = False,
        progress: ProgressOption = None,
    ) -> "Multimodal":
        """Trains from scratch, or from a checkpoint, and returns self.

        Args:
            images: Vectors, float32, int8 or ternary, keyed by image.
            captions: Captions, or Linked rows of a second modality. If images have splits, the split "train" is trained
                on (or else the images without a split), and "dev" is the default of `validation`.
            others: further modalities by name, each Linked to images. All pairs of modalities are trained; in each step
                every caption is joined by one row drawn from the rows of its image.
            validation: captions that choose the best epoch.
            word_vectors: initial word vectors for the words they contain; their size replaces word_dim.
            document_model: the trained Doc2Vec of text="doc2vec"; the model keeps it.
            missing: "error", or "skip" to drop captions of images that have no vector.
            checkpoint: file for the state of the run, replaced every checkpoint_minutes, on Ctrl-C and at the end.
                `load` reads it too; it holds no images to search.
            resume: continue from the checkpoint, or from the start if the file does not exist yet. With one thread the
                result has the bits of an uninterrupted run.
            progress: None shows a bar on a terminal, True also writes lines to a log, False shows nothing; a callable
                receives a training.Status after each slice.

        Raises:
            ValueError: a setting is invalid, an image has no vector or one that is not finite, there are fewer than two
                images to tell apart, or the checkpoint belongs to other data or settings.
            TypeError: images are no Vectors, or captions neither Captions nor Linked.
            FormatError: the checkpoint is damaged.
            TrainingError: the loss stopped being finite.
            KeyboardInterrupt: Ctrl-C; the model holds what was learned so far.
        """
        run = self._begin(checkpoint, checkpoint_minutes, resume, progress)
        training, held_out = training_and_validation(captions, validation)
        if (self.text == "doc2vec") != (document_model is not None):
            raise ValueError('text="doc2vec" and document_model= need each other: a trained Doc2Vec reads the captions')
        check_finite(images, np.arange(len(images)), IMAGES)  # all of them, since all are embedded at the end
        with self._unless_refused():
            self._set_modalities(training, others or {}, document_model)
            data = self._examples(images, training, others or {}, missing)
            self._n_in = {name: side.dim for name, side in data.sides.items()}
            self._word_dim = word_vectors.dim if word_vectors is not None else self.word_dim
            self._start(progress)
            if word_vectors is not None:
                self._place_words(word_vectors)
            self._resumed(run, data.fingerprint() | checksums(word_vectors, document_model))
            self._texts = captions.texts if isinstance(captions, Captions) else Texts.of([])
            validated = self._held_out(images, held_out, missing)
        return self._train(data, validated, run)

    def partial_fit(
        self,
        images: Any,
        captions: Captions | Linked,
        *,
        validation: Captions | Linked | None = None,
        others: Mapping[str, Linked] | None = None,
        missing: str = "error",
        progress: ProgressOption = None,
    ) -> "Multimodal":
        """Continues on the same or other data: `epochs` passes over it, with the state of the optimiser. Returns self.

        The vocabulary stays that of the first fit; vectors_ are replaced by those of these images. An untrained model
        does what fit does.
        """
        if not hasattr(self, "vectors_"):
            return self.fit(images, captions, others=others, validation=validation, missing=missing, progress=progress)
        self._ready()
        device = self._find_device(progress)
        self._check_learned()
        training, validation = training_and_validation(captions, validation)
        check_finite(images, np.arange(len(images)), IMAGES)
        data = self._examples(images, training, others or {}, missing)
        found = {name: side.dim for name, side in data.sides.items()}
        if found != self._n_in:
            raise ValueError(f"expected modalities of dimensions {self._n_in}, as in the first fit, got {found}")
        held_out = self._held_out(images, validation, missing)
        self._move(device)
        self._continue()
        self._best, self._best_score, self._stale = None, -math.inf, 0
        self._texts = captions.texts if isinstance(captions, Captions) else Texts.of([])
        return self._train(data, held_out, FitRun(progress=progress))

    def _set_modalities(
        self, training: Captions | Linked, others: Mapping[str, Linked], document_model: "Doc2Vec | None"
    ) -> None:
        """Sets modalities and vocabulary, and drops what an earlier fit has learned."""
        self._kinds = {IMAGES: "rows", CAPTIONS: "texts" if isinstance(training, Captions) else "rows"}
        self._kinds |= dict.fromkeys(others, "rows")
        if isinstance(training, Captions):
            self.words_, self.counts_ = vocabulary(training.texts, self.min_count)
        else:
            self.words_, self.counts_ = list(SPECIAL), np.zeros(2, np.int64)
        for name in ("vectors_", "loss_"):
            self.__dict__.pop(name, None)
        self.document_model_, self._text_rows = document_model, None

    def _examples(
        self, images: Any, captions: Captions | Linked, others: Mapping[str, Linked], missing: str
    ) -> Examples:
        """The training data."""
        data = Examples(images, captions, others, missing, self._read)
        if len(data.image_rows) < 2:
            raise ValueError("expected captions of at least two images, to tell them apart, got those of one")
        return data

    def _held_out(self, images: Any, captions: Captions | Linked | None, missing: str) -> Examples | None:
        """The validation data."""
        return None if captions is None else Examples(images, captions, {}, missing, self._read)

    def _train(self, data: Examples, held_out: Examples | None, run: FitRun) -> "Multimodal":
        from embfast.multimodal.trainer import Trainer

        Trainer(self, data, held_out).run(run)
        return self

    def _check(self) -> None:
        for name, known in (
            ("text", ("gru", "lstm", "mean", "doc2vec", "word2visualvec")),
            ("pooling", ("last", "max", "mean")),
            ("loss", LOSSES),
            ("similarity", ("cosine", "order")),
            ("precision", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")
        for name, lowest, highest in (
            ("dim", 1, 100_000),
            ("word_dim", 1, 100_000),
            ("hidden", 0, 1_000_000),
            ("k", 1, 1_000_000),
            ("warmup", 0, 2**31 - 1),
            ("epochs", 1, 2**31 - 1),
            ("batch", 2, 1_000_000),
            ("min_count", 0, 2**62),
            ("max_words", 1, 1_000_000),
        ):
            check_int(name, getattr(self, name), lowest, highest)
        for name in ("lr_drop", "patience"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1, 2**31 - 1)
        for name in ("bidirectional", "tune_words", "bucketed", "distinct_images"):
            check_flag(name, getattr(self, name))
        check_machine(self.threads, self.seed, self.device)
        check_float("dropout", self.dropout, 0, 0.99)
        check_float("lr", self.lr, 0, 100, above=True)
        check_float("weight_decay", self.weight_decay, 0, 100)
        check_float("clip", self.clip, 0, math.inf)
        check_float("temperature", self.temperature, 0, 1000, above=True)
        if self.margin is not None:
            check_float("margin", self.margin, 0, 1000)
        if self.loss == "infonce" and self.similarity == "order":
            raise ValueError('loss="infonce" needs similarity="cosine"')

    # ---- towers ---------------------------------------------------------------------------------------------------

    def _start(self, progress: ProgressOption) -> None:
        """Initialises the towers, the optimiser and the state of the run."""
        self._progress = Progress()
        self._best = None
        self._best_score, self._stale = -math.inf, 0
        self.validation_ = []
        self._make_towers(self._find_device(progress))
        self._make_optimizer()

    def _find_device(self, progress: ProgressOption, or_cpu: bool = False) -> "torch.device":
        try:
            from embfast.device.torch import torch_device
        except ImportError as error:
            raise ImportError("Multimodal needs torch: pip install embfast[multimodal]") from error
        return torch_device(self.device, or_cpu, progress)

    def _make_towers(self, device: "torch.device") -> None:
        import torch

        self._device, self._built = device, self._shaping()
        with torch.random.fork_rng(devices=[]):
            # torch's generator on the CPU reads only the low 32 bits of a seed.
            torch.manual_seed(self.seed if self.seed < 2**32 else zlib.crc32(f"{self.seed}".encode()))
            made = {name: self._make_tower(name) for name in self._kinds}
        if not self.tune_words and hasattr(made[CAPTIONS], "words"):
            made[CAPTIONS].words.weight.requires_grad_(False)
        self.towers_ = torch.nn.ModuleDict(made).to(device)

    def _make_tower(self, name: str) -> "torch.nn.Module":
        from embfast.multimodal import towers

        if name == IMAGES and self.loss == "mse":
            return towers.IdentityTower()
        if self._kinds[name] == "rows" or self.text == "doc2vec":
            return towers.VectorTower(self._n_in[name], self._space_dim, self.hidden, self.dropout)
        return towers.text_tower(len(self.words_), self._word_dim, self._space_dim, self.get_params())

    def _move(self, device: "torch.device") -> None:
        """Moves weights and optimiser state to another device."""
        if device != self._device:
            self.towers_.to(device)
            self._optimizer.load_state_dict(self._optimizer.state_dict())  # moves it to the device of the weights
            self._device = device

    def _shaping(self) -> dict[str, Any]:
        """The settings that determine the shape of the towers."""
        return {name: getattr(self, name) for name in ("dim", "hidden", "text", "pooling", "bidirectional")} | {
            "loss": "mse" if self.loss == "mse" else "a ranking"
        }

    def _check_learned(self) -> None:
        for name, now in self._shaping().items():
            if now != self._built[name]:
                raise ValueError(
                    f"{name} must stay {self._built[name]!r} once trained, got {now!r}; train anew with fit"
                )

    def _make_optimizer(self) -> None:
        from embfast.multimodal.towers import make_optimizer

        weights = [p for p in self.towers_.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(self.optimizer, weights, self.lr, self.weight_decay)

    def _place_words(self, vectors: Vectors) -> None:
        from embfast.multimodal.towers import place_words

        place_words(self.towers_[CAPTIONS], self.words_, vectors)

    # ---- files ----------------------------------------------------------------------------------------------------

    def _take(self, saved: "Multimodal") -> None:
        """Takes the state of a checkpoint, on this model's device."""
        self.towers_.load_state_dict(saved.towers_.state_dict())
        self._optimizer.load_state_dict(saved._optimizer.state_dict())
        for name in ("_progress", "_best", "_best_score", "_stale", "validation_"):
            setattr(self, name, getattr(saved, name))

    def _show_images(self, data: Examples) -> None:
        """Sets vectors_ by the current weights; embeddings of captions are computed when a search needs them."""
        every = data.images
        self.vectors_ = Vectors(list(every.keys), self._embed(IMAGES, Rows(every, np.arange(len(every)))))
        self._text_rows = None

    def _tensors(self) -> dict[str, np.ndarray]:
        from embfast.multimodal.towers import optimizer_state

        tensors = {f"tower.{name}": t.detach().cpu().numpy() for name, t in self.towers_.state_dict().items()}
        if self._best is not None:
            tensors |= {f"best.{name}": t.numpy() for name, t in self._best.items()}
        optimizer, arrays = optimizer_state(self._optimizer)
        tensors |= {f"optimizer.{name}": array for name, array in arrays.items()}
        if hasattr(self, "vectors_"):
            tensors |= {**word_tensors(self.vectors_.keys, "images"), "images": self.vectors_.matrix}
            tensors |= {"texts_utf8": self._texts.utf8, "texts_offsets": self._texts.offsets}
            if self._text_rows is not None:
                tensors["captions"] = self._text_rows
        state = {
            "kinds": self._kinds,
            "n_in": self._n_in,
            "word_dim": int(self._word_dim),
            "best_score": None if self._best is None else self._best_score,
            "stale": self._stale,
            "validation": [found.as_dict() for found in self.validation_],
            "optimizer": optimizer,
        }
        if self.document_model_ is not None:
            tensors |= inner_tensors("doc2vec", self.document_model_)
            state["doc2vec"] = self.document_model_.get_params()
        tensors["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        return tensors

    def _restore(self, file: TensorFile) -> None:
        import torch

        from embfast.multimodal.towers import restore_optimizer

        self._check()
        state = json.loads(file.read("state", "U8").tobytes())
        missing = _STATE - state.keys() if isinstance(state, dict) else _STATE
        if missing:
            raise FormatError(f"{file.path}: the state of a Multimodal lacks {', '.join(sorted(missing))}")
        self._kinds, self._n_in, self._word_dim = state["kinds"], state["n_in"], state["word_dim"]
        self.document_model_ = None
        if "doc2vec" in state:
            self.document_model_ = inner_model("doc2vec", file, "Doc2Vec", state["doc2vec"])
        self._make_towers(self._find_device(False, or_cpu=True))
        shapes = {name: tuple(t.shape) for name, t in self.towers_.state_dict().items()}

        def weights(prefix: str) -> dict[str, Any]:
            return {n: torch.from_numpy(file.read(f"{prefix}.{n}", "F32", shape)) for n, shape in shapes.items()}

        self.towers_.load_state_dict(weights("tower"))
        self._make_optimizer()
        restore_optimizer(
            self._optimizer,
            state["optimizer"],
            lambda name, shape: file.read(f"optimizer.{name}", "F32", shape),
        )
        self._best, self._best_score, self._stale = None, -math.inf, state["stale"]
        if state["best_score"] is not None:
            self._best, self._best_score = weights("best"), state["best_score"]
        self.validation_ = [
            Retrieval(*(Ranking(**found[side]) for side in (CAPTIONS, IMAGES))) for found in state["validation"]
        ]
        dim = self._space_dim
        self._texts, self._text_rows = Texts.of([]), None
        self.vectors_ = Vectors([], np.empty((0, dim), np.float32))
        if "images" in file:
            keys = file.read_words("images")
            self.vectors_ = Vectors(keys, file.read("images", "F32", (len(keys), dim)))
        if "texts_utf8" in file:
            self._texts = Texts(file.read("texts_offsets", "I64"), file.read("texts_utf8", "U8"))
        if "captions" in file:
            self._text_rows = file.read("captions", "F32", (len(self._texts), dim))
