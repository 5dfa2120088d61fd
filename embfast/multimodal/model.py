"""Images and captions in one space: towers trained by a ranking loss, and search from either side.

Sources: Kiros et al. 2014, arXiv:1411.2539; Vendrov et al. 2016, arXiv:1511.06361; Faghri et al. 2018,
arXiv:1707.05612; Vilalta et al. 2017 (full-network embeddings in such a pipeline); Dong et al. 2016, arXiv:1604.06838.
"""

import json
import math
import warnings
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from embfast.errors import FormatError, TrainingError
from embfast.evaluate.retrieval import Ranking, Retrieval, retrieval, similarities
from embfast.files.durable import FilePath
from embfast.files.tensors import TensorFile, word_tensors
from embfast.files.texts import Texts
from embfast.multimodal.captions import SPECIAL, Captions, Linked, encode, tokenize, vocabulary
from embfast.multimodal.examples import (
    CAPTIONS,
    IMAGES,
    Examples,
    Rows,
    Words,
    check_finite,
    some_rows_checksum,
    training_and_validation,
)
from embfast.training.estimator import Estimator, FitRun
from embfast.training.loop import train
from embfast.training.model_file import inner_model, inner_tensors, write_model
from embfast.training.progress import Progress, ProgressOption
from embfast.training.settings import check_flag, check_float, check_int, plain
from embfast.vectors.vectors import Vectors

if TYPE_CHECKING:
    import torch

    from embfast.documents.doc2vec import Doc2Vec

LOSSES = ("sum", "max", "semihard", "topk", "infonce", "mse")

_AT_ONCE = 512  # items embedded at once
_CHOOSING = ("max", "semihard", "topk")  # losses that may collapse: sum warms up for them
_ALIKE = 0.98  # mean cosine of a batch's captions above which they have collapsed
_STATE = {"kinds", "n_in", "word_dim", "best_score", "stale", "validation", "optimizer"}
_JUDGED = 20  # batches that this takes


class Multimodal(Estimator):
    """A space for images and their captions, or any other vectors of the same things.

    >>> images = Vectors(["a", "b"], np.eye(2, dtype=np.float32))
    >>> captions = Captions.from_pairs([("a", "a dog"), ("a", "one dog"), ("b", "two cats"), ("b", "cats")])
    >>> model = Multimodal(dim=8, word_dim=8, epochs=60, batch=4, lr=0.02).fit(images, captions)
    >>> model.search_images("dog", k=1)[0][0], model.search_captions("b", k=1)[0][0]
    ('a', 'two cats')

    Word2VisualVec is Multimodal(text="word2visualvec", loss="mse", optimizer="rmsprop", lr=1e-4, dropout=0.2).

    Settings:
        dim: numbers of the joint space; with loss="mse" it is that of the images.
        text: the tower of captions: "gru" or "lstm" over word vectors, "mean" of word vectors, "doc2vec" (a trained
            Doc2Vec infers, an affine map follows), or "word2visualvec" (GRU, mean and bag of words, and an MLP).
        pooling: of a GRU or LSTM: the "last" state, or "max" or "mean" over all.
        bidirectional: a GRU or LSTM that also reads backwards; the two states are averaged.
        word_dim: numbers of a word vector; word_vectors of fit decide, where they are given.
        tune_words: train the word vectors too.
        hidden: ReLUs between input and output of the image tower (and of "mean"); 0 for an affine map.
        dropout: share of a tower's inputs left out in training.
        loss: "sum" of all hinges, "max" (the hardest negative), "semihard", "topk" (the k hardest), "infonce", or
            "mse": no ranking, texts predict image vectors, which stay as they are.
        similarity: "cosine", or "order": rows are absolute values, an image lies above its captions.
        margin: of the hinges; by default 0.2, and 0.05 for order.
        k: hardest negatives of "topk".
        temperature: of "infonce".
        warmup: epochs of "sum" before "max", "semihard" or "topk", which alone may collapse in the beginning.
        epochs: passes over the captions, at most.
        batch: captions of a step.
        bucketed: captions of like length share a batch; the recurrent towers then run in fewer, fuller steps.
        distinct_images: no image twice in a batch. Otherwise captions of one image are not negatives of each other.
        optimizer: the name of an optimiser of torch.optim, in any case; fused where torch can.
        lr: its step.
        lr_drop: epochs after which lr is divided by 10; None for never.
        weight_decay: of the optimiser.
        clip: longest gradient of all weights together; 0 for no limit.
        patience: stop after so many epochs without a better validation; None for never.
        precision: "float32", or "bfloat16" for the products of the towers (weights and loss stay float32).
        min_count: rarer words of the captions are <unk>.
        max_words: longer captions are cut there.
        device: "cpu", "cuda", ...; by default CUDA where there is some.
        seed: 0 to 2**64 - 1, of first weights, order and dropout.
    Learned:
        vectors_: Vectors of all images given to fit, float32 (images, dim), at length 1 (but for loss="mse").
        words_, counts_: words of the captions, <end> and <unk> first, and how often they occur.
        loss_: mean loss of each epoch, per caption, of all pairs of modalities.
        validation_: Retrieval of each epoch (see evaluate), where there are captions to validate on. The weights are
            those of the epoch with the highest recall_sum.

    One thread on the CPU gives the same bits every time (torch.set_num_threads). Under torch.distributed (torchrun; the
    process group initialised) each process takes its share of every batch and all see all negatives.
    Memory: 16 bytes a weight (with Adam), 4 more when validating, two copies of a batch's rows, and vectors_. Image
    vectors may be mapped, and int8 or ternary: rows become float32 a batch at a time.
    """

    validation_: list[Retrieval]

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
        device: str | None = None,
        seed: int = 0,
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
        self.device = device
        self.seed = seed

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
            captions: Captions, or Linked rows of a second kind. Where images are in splits, those of "train" train, or
                else those that are in none; those of "dev" validate, if validation is not given.
            others: more modalities by name, each Linked to images; all pairs of modalities are trained. In each step
                stands, beside a caption, a row drawn from those of its image.
            validation: captions to choose the best epoch by.
            word_vectors: first word vectors, for the words they know; their dim is word_dim.
            document_model: the trained Doc2Vec of text="doc2vec"; it is kept in the model.
            missing: "error", or "skip" captions of images that have no vector.
            checkpoint, checkpoint_minutes, resume: a file for the state of the run, written by the clock, on Ctrl-C and
                at the end; a resumed run on one thread of the CPU ends with the same bits.
            progress: as in Word2Vec.fit.

        Raises:
            ValueError: a setting makes no sense, images have no vector or one that is not finite, there are fewer than
                two images to tell apart, or the checkpoint is of other data or settings.
            TrainingError: the loss stopped being finite.
            KeyboardInterrupt: Ctrl-C; the model holds what was learned so far.
        """
        run = self._begin(checkpoint, checkpoint_minutes, resume, progress)
        training, held_out = training_and_validation(captions, validation)
        if (self.text == "doc2vec") != (document_model is not None):
            raise ValueError('text="doc2vec" and document_model= go together: a trained Doc2Vec reads the captions')
        check_finite(images, np.arange(len(images)), IMAGES)  # all, since vectors_ will be of all
        with self._unless_refused():
            self._kinds = {IMAGES: "rows", CAPTIONS: "texts" if isinstance(captions, Captions) else "rows"}
            self._kinds |= dict.fromkeys(others or {}, "rows")
            if self._kinds[CAPTIONS] == "texts":
                self.words_, self.counts_ = vocabulary(training.texts, self.min_count)
            else:
                self.words_, self.counts_ = list(SPECIAL), np.zeros(2, np.int64)
            for name in ("vectors_", "loss_"):  # of an earlier fit
                self.__dict__.pop(name, None)
            self.document_model_, self._text_rows = document_model, None
            data = self._examples(images, training, others or {}, missing)
            fingerprint = data.fingerprint()
            self._n_in = {name: side.dim for name, side in data.sides.items()}
            self._word_dim = word_vectors.dim if word_vectors is not None else self.word_dim
            self._start()
            if word_vectors is not None:
                self._place_words(word_vectors)
                fingerprint["word_vectors_crc"] = some_rows_checksum(word_vectors, np.arange(len(word_vectors)))
            if document_model is not None:
                read = document_model.word_vectors_ if document_model.mode != "dbow" else document_model.vectors_
                fingerprint["document_model_crc"] = some_rows_checksum(read, np.arange(len(read)))
            self._resumed(run, fingerprint)
            self._texts = captions.texts if isinstance(captions, Captions) else Texts.of([])
            examples = self._held_out(images, held_out, missing)
        return self._train(data, examples, run)

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
        """Continues with other or the same data: `epochs` passes over it, with the state of the optimiser.

        Words stay those of the first fit. vectors_ are those of these images.
        """
        if not hasattr(self, "vectors_"):
            return self.fit(images, captions, others=others, validation=validation, missing=missing, progress=progress)
        from embfast.device.torch import choose_device

        self._ready()
        choose_device(self.device)
        self._check_learned()
        training, validation = training_and_validation(captions, validation)
        check_finite(images, np.arange(len(images)), IMAGES)
        data = self._examples(images, training, others or {}, missing)
        found = {name: side.dim for name, side in data.sides.items()}
        if found != self._n_in:
            raise ValueError(f"expected modalities of dimensions {self._n_in}, as in the first fit, got {found}")
        self._continue()
        self._best, self._best_score, self._stale = None, -math.inf, 0
        self._texts = captions.texts if isinstance(captions, Captions) else Texts.of([])
        return self._train(data, self._held_out(images, validation, missing), FitRun(progress=progress))

    def _examples(
        self, images: Any, captions: Captions | Linked, others: Mapping[str, Linked], missing: str
    ) -> Examples:
        """What is trained on."""
        data = Examples(images, captions, others, missing, self._read)
        if len(data.image_rows) < 2:
            raise ValueError("expected captions of at least two images, to tell them apart, got those of one")
        return data

    def _held_out(self, images: Any, captions: Captions | Linked | None, missing: str) -> Examples | None:
        """What the best epoch is chosen by."""
        return None if captions is None else Examples(images, captions, {}, missing, self._read)

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
            ("seed", 0, 2**64 - 1),
        ):
            check_int(name, getattr(self, name), lowest, highest)
        for name in ("lr_drop", "patience"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1, 2**31 - 1)
        for name in ("bidirectional", "tune_words", "bucketed", "distinct_images"):
            check_flag(name, getattr(self, name))
        check_float("dropout", self.dropout, 0, 0.99)
        check_float("lr", self.lr, 0, 100, above=True)
        check_float("weight_decay", self.weight_decay, 0, 100)
        check_float("clip", self.clip, 0, math.inf)
        check_float("temperature", self.temperature, 0, 1000, above=True)
        if self.margin is not None:
            check_float("margin", self.margin, 0, 1000)
        if self.loss == "infonce" and self.similarity == "order":
            raise ValueError('loss="infonce" takes similarity="cosine"')

    # ---- towers ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Fresh towers and optimiser."""
        self._progress = Progress()
        self._best: dict[str, Any] | None = None
        self._best_score, self._stale = -math.inf, 0
        self.validation_ = []
        self._make_towers()
        self._make_optimizer()

    def _make_towers(self, or_cpu: bool = False) -> None:
        try:
            import torch
        except ImportError as error:
            raise ImportError("Multimodal needs torch: pip install embfast[multimodal]") from error
        from embfast.device.torch import choose_device
        from embfast.multimodal import towers

        self._device = choose_device(self.device, or_cpu)
        self._built = self._shaping()
        dim = int(self._n_in[IMAGES] if self.loss == "mse" else self.dim)
        hidden, word_dim = int(self.hidden), int(self._word_dim)
        n_words, made = len(self.words_), {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.seed) % 2**63)
            for name, kind in self._kinds.items():
                if name == IMAGES and self.loss == "mse":
                    made[name] = towers.IdentityTower()
                elif kind == "rows" or self.text == "doc2vec":
                    made[name] = towers.VectorTower(self._n_in[name], dim, hidden, self.dropout)
                elif self.text == "mean":
                    made[name] = towers.MeanTower(n_words, word_dim, dim, hidden, self.dropout)
                elif self.text == "word2visualvec":
                    made[name] = towers.Word2VisualVecTower(
                        n_words, word_dim, dim, hidden or 2048, int(self.dim), self.dropout
                    )
                else:
                    made[name] = towers.SequenceTower(
                        n_words, word_dim, dim, self.text, self.pooling, self.bidirectional, self.dropout
                    )
        if not self.tune_words and hasattr(made[CAPTIONS], "words"):
            made[CAPTIONS].words.weight.requires_grad_(False)
        self.towers_ = torch.nn.ModuleDict(made).to(self._device)

    def _shaping(self) -> dict[str, Any]:
        """The settings that the towers were made by."""
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
        import torch

        if not hasattr(self.towers_[CAPTIONS], "words"):
            raise ValueError(f"word_vectors: text={self.text!r} has no word vectors")
        table = self.towers_[CAPTIONS].words.weight
        known = [i for i, word in enumerate(self.words_) if word in vectors]
        if not known:
            raise ValueError("word_vectors know none of the words of the captions; are they lower-cased?")
        with torch.no_grad():
            table[known] = torch.from_numpy(vectors[[self.words_[i] for i in known]]).to(table)

    def _take(self, saved: "Multimodal") -> None:
        """Continues where a checkpoint stands, on this model's device."""
        self.towers_.load_state_dict(saved.towers_.state_dict())
        self._optimizer.load_state_dict(saved._optimizer.state_dict())
        for name in ("_progress", "_best", "_best_score", "_stale", "validation_"):
            setattr(self, name, getattr(saved, name))

    def _mode(self, epoch: int) -> str:
        """The loss of an epoch: sum in the warm-up of those that choose negatives."""
        return "sum" if self.loss in _CHOOSING and self._progress.before + epoch < self.warmup else self.loss

    def _plan(self, data: Examples, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch."""
        return data.plan(
            epoch,
            seed=self.seed,
            batch=self.batch,
            bucketed=self.bucketed,
            distinct_images=self.distinct_images,
        )

    def _lr(self, epoch: int) -> float:
        return self.lr / 10 if self.lr_drop is not None and epoch >= self.lr_drop else self.lr

    def _train(self, data: Examples, held_out: Examples | None, run: FitRun) -> "Multimodal":
        import torch

        from embfast.device.torch import world

        state = self._progress
        rank, size = world()
        plan: list[np.ndarray] = []
        planned = -1
        alike: deque[float] = deque(maxlen=50)

        def step(epoch: int, first: int, last: int) -> tuple[float, int, int]:
            nonlocal plan, planned
            if epoch != planned:
                plan, planned = self._plan(data, state.before + epoch), epoch
            for group in self._optimizer.param_groups:
                group["lr"] = self._lr(epoch)
            loss, n = 0.0, 0
            for number in range(first, last):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(zlib.crc32(f"{self.seed} {state.before + epoch} {number} {rank}".encode()))
                    found = self._step(data, plan[number], epoch, number, rank, size)
                loss, n = loss + found[0], n + len(plan[number])
                if self._mode(epoch) in _CHOOSING:
                    alike.append(found[1])
            return loss, n, n

        def after_epoch() -> bool:
            mean = sum(alike) / max(1, len(alike))
            if len(alike) >= _JUDGED and mean > _ALIKE:
                warnings.warn(
                    f"epoch {state.epoch}: the captions of a batch have a mean cosine of {mean:.3f}: they have "
                    "collapsed into one point; more epochs of warmup, or a lower lr, help",
                    RuntimeWarning,
                    stacklevel=4,
                )
            if held_out is None:
                return False
            found = self._evaluate(held_out)
            self.validation_.append(found)
            if found.recall_sum > self._best_score:
                self._best_score, self._stale = found.recall_sum, 0
                self._best = {name: t.detach().cpu().clone() for name, t in self.towers_.state_dict().items()}
            else:
                self._stale += 1
            return self._stopped()

        def save() -> None:
            write_model(run.checkpoint, self)

        edges = np.cumsum([0, *map(len, self._plan(data, state.before))]).astype(np.int64)
        try:
            if not self._stopped():
                train(
                    step,
                    edges,
                    state,
                    epochs=self.epochs,
                    per_slice=1 if len(edges) < 50 else 5,
                    lr=self.lr,
                    min_lr=self.lr,
                    lr_of=self._lr,
                    after_epoch=after_epoch,
                    unit="captions",
                    save=save if rank == 0 and run.checkpoint is not None else None,
                    save_minutes=run.minutes,
                    progress=run.progress if rank == 0 else False,
                )
            if self._best is not None:
                self.towers_.load_state_dict(self._best)
        finally:
            self.loss_ = list(state.losses)
            self._show(data)
        return self

    def _stopped(self) -> bool:
        return self.patience is not None and self._stale >= self.patience

    def _step(
        self, data: Examples, items: np.ndarray, epoch: int, number: int, rank: int, size: int
    ) -> tuple[float, float]:
        """One step on some captions; returns the summed loss of the whole batch, and how alike its captions are."""
        import torch

        from embfast.device.torch import add_up

        if size > 1:  # as many for each process; up to size - 1 captions of a batch go without
            each = len(items) // size
            items = items[: each * size]
        part = slice(rank * len(items) // size, (rank + 1) * len(items) // size)
        draws = np.random.default_rng([self.seed, self._progress.before + epoch, number, 1])
        chosen = data.beside(items, draws)
        self.towers_.train()
        self._optimizer.zero_grad(set_to_none=True)
        rows = {name: self._rows(data, name, which[part]) for name, which in chosen.items()}
        for name, found in rows.items():
            if not bool(found.isfinite().all()):
                raise TrainingError(
                    f"the vectors of {name} stopped being finite in epoch {epoch + 1} of {self.epochs}: lower lr "
                    f"(it is {self._lr(epoch):g}), or clip (it is {self.clip:g}; 0 is no limit)"
                )
        groups = torch.from_numpy(data.owners[items].astype(np.int64)).to(self._device)
        loss = self._loss(rows, groups, self._mode(epoch), rank, size)
        loss.backward()
        weights = [p for p in self.towers_.parameters() if p.grad is not None]
        if size > 1:
            add_up(weights)
        if self.clip:
            torch.nn.utils.clip_grad_norm_(weights, self.clip)
        self._optimizer.step()
        with torch.no_grad():
            captions = torch.nn.functional.normalize(rows[CAPTIONS], dim=1)
            n = max(len(captions), 2)
            alike = (float(captions.sum(0).square().sum()) - n) / (n * (n - 1))
        total = loss.detach()
        if size > 1:
            torch.distributed.all_reduce(total)
        return float(total), alike

    def _rows(self, data: Examples, name: str, items: np.ndarray) -> "torch.Tensor":
        """Items of a modality in the joint space; each row that is there several times is computed once."""
        import torch

        side = data.sides[name]
        unique, inverse = np.unique(side.rows[items], return_inverse=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            rows = self.towers_[name](side.take(unique, self._device))
        return self._into_space(rows)[torch.from_numpy(inverse).to(self._device)]

    def _into_space(self, rows: "torch.Tensor") -> "torch.Tensor":
        from embfast.multimodal.towers import into_space

        return rows.float() if self.loss == "mse" else into_space(rows, self.similarity == "order")

    def _loss(
        self, rows: "dict[str, torch.Tensor]", groups: "torch.Tensor", mode: str, rank: int, size: int
    ) -> "torch.Tensor":
        import torch

        from embfast.device.torch import gathered
        from embfast.multimodal.ranking import info_nce, ranking_loss

        if mode == "mse":
            target = rows[IMAGES]
            return sum((row - target).square().mean(1).sum() for name, row in rows.items() if name != IMAGES)
        margin = self.margin if self.margin is not None else 0.05 if self.similarity == "order" else 0.2
        # Rows come at length 1, so the dot product is the cosine, and its gradient has been through the norm already.
        options: dict[str, Any] = {"similarity": "order" if self.similarity == "order" else "dot", "groups": groups}
        if mode == "infonce":
            loss = info_nce
            options["temperature"] = self.temperature
        else:
            loss = ranking_loss
            options |= {"mode": mode, "margin": margin, "k": self.k if mode == "topk" else None}
        total = torch.zeros((), device=groups.device)
        names = list(rows)
        everyone = {name: gathered(rows[name]) for name in names} if size > 1 else rows
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                if size == 1:
                    total = total + loss(rows[a], rows[b], **options)
                else:
                    offset = rank * len(rows[a])
                    total = total + loss(rows[a], everyone[b], direction="images", offset=offset, **options)
                    total = total + loss(everyone[a], rows[b], direction="captions", offset=offset, **options)
        return total

    # ---- use ------------------------------------------------------------------------------------------------------

    def embed_images(self, images: Any, keys: Iterable[str] | None = None) -> Vectors:
        """Vectors of images in the joint space, of all or of some keys; images as in fit, or an array (n, dim_in)."""
        self._check_fitted()
        return self._embed_side(IMAGES, images, keys)

    def embed_other(self, name: str, vectors: Any) -> Vectors:
        """Vectors of the rows of another modality, by its name in fit ("captions" where these were Linked)."""
        self._check_fitted()
        if name not in self._kinds or self._kinds[name] == "texts":
            raise ValueError(f"no modality of rows is called {name!r}; there are {', '.join(self._kinds)}")
        return self._embed_side(name, vectors, None)

    def _embed_side(self, name: str, vectors: Any, keys: Iterable[str] | None) -> Vectors:
        if isinstance(vectors, np.ndarray):
            vectors = np.atleast_2d(vectors)
            vectors = Vectors([str(i) for i in range(len(vectors))], vectors)
        if not isinstance(vectors, Vectors):
            raise TypeError(f"{name}: expected Vectors or an array, got {type(vectors).__name__}")
        keys = list(vectors.keys) if keys is None else list(keys)
        rows = np.fromiter((vectors.index_of(key) for key in keys), np.int64, len(keys))
        side = Rows(vectors, rows)
        check_finite(vectors, rows, name)
        if side.dim != self._n_in[name]:
            raise ValueError(f"{name}: expected vectors of {self._n_in[name]} numbers, as in fit, got {side.dim}")
        return Vectors(keys, self._embed(name, side))

    def embed_captions(self, texts: "str | Iterable[str] | Captions") -> np.ndarray:
        """Texts in the joint space, float32 (texts, dim). A word that is not in words_ is <unk>; "" is <end> alone."""
        self._check_fitted()
        if self._kinds[CAPTIONS] != "texts":
            raise ValueError("this model was trained on rows, not on captions: it reads no text; see embed_other")
        texts = texts.texts if isinstance(texts, Captions) else [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, Texts):
            texts = list(texts)
            wrong = next((text for text in texts if not isinstance(text, str)), None)
            if wrong is not None or None in texts:
                raise TypeError(f"expected texts of type str, got {wrong!r}")
        return self._embed(CAPTIONS, self._read(texts))

    def _read(self, texts: Iterable[str]) -> Words | Rows:
        """Texts as the tower of captions takes them."""
        if self.text == "doc2vec":
            rows = self.document_model_.infer([tokenize(text) for text in texts])
            return Rows(Vectors([str(i) for i in range(len(rows))], rows), np.arange(len(rows)))
        index = {word: i for i, word in enumerate(self.words_)}
        return Words(*encode(texts, index, self.max_words))

    def _embed(self, name: str, side: Words | Rows) -> np.ndarray:
        import torch

        dim = self._n_in[IMAGES] if self.loss == "mse" else self.dim
        result = np.empty((len(side.rows), dim), np.float32)
        order = np.argsort(side.lengths, kind="stable") if side.lengths is not None else np.arange(len(side.rows))
        self.towers_.eval()
        with torch.inference_mode():
            for lo in range(0, len(order), _AT_ONCE):
                items = order[lo : lo + _AT_ONCE]
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    rows = self.towers_[name](side.take(side.rows[items], self._device))
                result[items] = self._into_space(rows).cpu().numpy()
        return result

    def evaluate(
        self, images: Any, captions: Captions | Linked, folds: int = 1, *, missing: str = "error"
    ) -> Retrieval:
        """Retrieval of captions and of the images that they belong to; missing as in fit."""
        self._check_fitted()
        return self._evaluate(Examples(images, captions, {}, missing, self._read), folds)

    def _evaluate(self, data: Examples, folds: int = 1) -> Retrieval:
        sides = data.sides
        images = self._embed(IMAGES, Rows(data.images, data.image_rows))
        captions = self._embed(CAPTIONS, sides[CAPTIONS])
        return retrieval(images, captions, data.owners, self.similarity, folds)

    def search_images(self, text: "str | np.ndarray", k: int = 10, *, index: Any = None) -> list[tuple[str, float]]:
        """The k images of vectors_ nearest to a text (or a vector of the space): their keys and scores, best first.

        index: one of vectors_.build_index(), to search approximately by cosine.
        """
        self._check_fitted()
        query = self.embed_captions(text)[0] if isinstance(text, str) else np.asarray(text, np.float32)
        return self._nearest(self.vectors_, query, k, as_captions=True, index=index)

    def search_captions(
        self, image: "str | np.ndarray", k: int = 10, *, captions: Captions | Iterable[str] | None = None
    ) -> list[tuple[str, float]]:
        """The k captions nearest to an image: its key in vectors_, or a vector that the image tower takes.

        captions: those to search among; by default those given to fit, all splits, embedded at the first call.
        """
        self._check_fitted()
        query = self.vectors_[image] if isinstance(image, str) else self.embed_images(np.asarray(image)).matrix[0]
        if captions is not None:
            texts = captions.texts if isinstance(captions, Captions) else list(captions)
            rows = self.embed_captions(texts)
        else:
            if not len(self._texts):
                raise ValueError("this model holds no captions to search among: pass captions=")
            if self._text_rows is None:
                self._text_rows = self.embed_captions(self._texts)
            texts, rows = self._texts, self._text_rows
        found = self._nearest(Vectors([str(i) for i in range(len(rows))], rows), query, k, as_captions=False)
        return [(texts[int(i)], score) for i, score in found]

    def regularity(self, image: str, minus: str, plus: str, k: int = 10) -> list[tuple[str, float]]:
        """Image - word + word (Kiros et al. 2014): the k other images nearest to it, by cosine."""
        self._check_fitted()
        words = self.embed_captions([plus, minus])
        return self.vectors_.most_similar([image, words[0]], [words[1]], k=k)

    def _nearest(
        self, gallery: Vectors, query: np.ndarray, k: int, *, as_captions: bool, index: Any = None
    ) -> list[tuple[str, float]]:
        """as_captions: the query is a caption and the gallery holds images, or the other way round."""
        check_int("k", k, 0, 2**62)
        if not len(gallery):
            raise ValueError("this model holds no images to search among: index(images) puts them in")
        if self.similarity != "order" or index is not None:
            return gallery.most_similar(query, k=k, index=index)
        if as_captions:
            scores = similarities(gallery.matrix, query[None], "order")[:, 0]
        else:
            scores = similarities(query[None], gallery.matrix, "order")[0]
        best = np.argsort(-scores, kind="stable")[:k]
        return [(gallery.keys[i], float(scores[i])) for i in best]

    def index(self, images: Any, keys: Iterable[str] | None = None) -> "Multimodal":
        """Puts other images in the place of vectors_, to be searched among. Returns self."""
        self.vectors_ = self.embed_images(images, keys)
        return self

    def save_onnx(self, path: FilePath, side: str = CAPTIONS) -> None:
        """Writes a tower, up to the joint space, for ONNX runtimes.

        side="captions": inputs ids, int64 (longest, n), a text a column with anything behind its end, and lengths,
        int32 (n,). captions.encode makes ids of texts; words_ are in the metadata of the file, as a JSON list. Any
        other side: input rows, float32 (n, numbers of its vectors). Output: vectors, float32 (n, dim).

        Raises:
            ImportError: onnx is not installed.
            ValueError: no such modality, or one that has no tower of its own: images with loss="mse".
        """
        from embfast.multimodal import onnx

        self._check_fitted()
        if side not in self._kinds or (side == IMAGES and self.loss == "mse"):
            raise ValueError(f"no tower {side!r} to write; modalities are {', '.join(self._kinds)}")
        dim = self._n_in[IMAGES] if self.loss == "mse" else self.dim
        tower, absolute = self.towers_[side], self.similarity == "order"
        metadata = {"settings": json.dumps(plain(self.get_params()))}
        if type(tower).__name__ == "VectorTower":
            onnx.write_rows(path, tower, self._n_in[side], dim, self.loss != "mse", absolute, metadata)
        else:
            metadata |= {"words": json.dumps(self.words_), "max_words": str(self.max_words)}
            onnx.write_texts(path, tower, dim, self.loss != "mse", absolute, metadata)

    # ---- files ----------------------------------------------------------------------------------------------------

    def _show(self, data: Examples) -> None:
        """vectors_ and the captions to search among, from the weights as they are now."""
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
            raise FormatError(
                f"{file.path}: expected {', '.join(sorted(missing))} in the state of a Multimodal, got none"
            )
        self._kinds, self._n_in, self._word_dim = state["kinds"], state["n_in"], state["word_dim"]
        self.document_model_ = None
        if "doc2vec" in state:
            self.document_model_ = inner_model("doc2vec", file, "Doc2Vec", state["doc2vec"])
        self._make_towers(or_cpu=True)
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
        dim = self._n_in[IMAGES] if self.loss == "mse" else self.dim
        self._texts, self._text_rows = Texts.of([]), None
        self.vectors_ = Vectors([], np.empty((0, dim), np.float32))
        if "images" in file:
            keys = file.read_words("images")
            self.vectors_ = Vectors(keys, file.read("images", "F32", (len(keys), dim)))
        if "texts_utf8" in file:
            self._texts = Texts(file.read("texts_offsets", "I64"), file.read("texts_utf8", "U8"))
        if "captions" in file:
            self._text_rows = file.read("captions", "F32", (len(self._texts), dim))
