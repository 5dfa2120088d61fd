"""Training of Multimodal: the steps of an epoch, their loss, and the choice of the best epoch.

Sources: Kiros et al. 2014, arXiv:1411.2539; Faghri et al. 2018, arXiv:1707.05612 (hardest negatives, and their
collapse); Dong et al. 2016, arXiv:1604.06838 (regression on image vectors).
"""

import warnings
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embfast.device.torch import add_up, gathered, world
from embfast.errors import TrainingError
from embfast.multimodal.examples import CAPTIONS, IMAGES, Examples
from embfast.multimodal.ranking import info_nce, ranking_loss
from embfast.training.estimator import FitRun
from embfast.training.loop import train
from embfast.training.model_file import write_model

_CHOOSING = ("max", "semihard", "topk")  # losses that may collapse: "sum" warms up for them
_COLLAPSED = 0.98  # mean cosine between the captions of a batch
_BATCHES_TO_JUDGE = 20  # at least, before a warning


class Trainer:
    """One call of fit or partial_fit. The weights, the optimiser and the state of the run belong to the model."""

    def __init__(self, model: Any, data: Examples, held_out: Examples | None) -> None:
        self.model, self.data, self.held_out = model, data, held_out
        self.rank, self.size = world()
        self._cosines: deque[float] = deque(maxlen=50)  # mean cosine between the captions of recent batches
        self._batches: list[np.ndarray] = []
        self._planned = -1  # the epoch that _batches belongs to

    def run(self, run: FitRun) -> None:
        """Trains until the last epoch or until `patience` is exhausted, then restores the weights of the best epoch."""
        model, state = self.model, self.model._progress
        edges = np.cumsum([0, *map(len, self._plan(0))]).astype(np.int64)
        checkpoint = run.checkpoint if self.rank == 0 else None
        with torch_threads(model.threads):
            try:
                if not self._exhausted():
                    train(
                        self.step,
                        edges,
                        state,
                        epochs=model.epochs,
                        per_slice=1 if len(edges) < 50 else 5,
                        lr=model.lr,
                        min_lr=model.lr,
                        lr_of=self._lr,
                        after_epoch=self.after_epoch,
                        unit="captions",
                        save=None if checkpoint is None else lambda: write_model(checkpoint, model),
                        save_minutes=run.minutes,
                        progress=run.progress if self.rank == 0 else False,
                    )
                if model._best is not None:
                    model.towers_.load_state_dict(model._best)
            finally:
                model.loss_ = list(state.losses)
                model._show_images(self.data)

    def step(self, epoch: int, first: int, last: int) -> tuple[float, int, int]:
        """Trains on batches first..last of an epoch; returns the summed loss and, twice, the number of captions."""
        model, before = self.model, self.model._progress.before
        batches = self._plan(epoch)
        for group in model._optimizer.param_groups:
            group["lr"] = self._lr(epoch)
        loss, n = 0.0, 0
        for number in range(first, last):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(f"{model.seed} {before + epoch} {number} {self.rank}".encode()))
                batch_loss, cosine = self._train_batch(batches[number], epoch, number)
            loss, n = loss + batch_loss, n + len(batches[number])
            if self._mode(epoch) in _CHOOSING:
                self._cosines.append(cosine)
        return loss, n, n

    def after_epoch(self) -> bool:
        """Validates; returns True to stop early."""
        model = self.model
        self._warn_of_collapse()
        if self.held_out is None:
            return False
        found = model._evaluate(self.held_out)
        model.validation_.append(found)
        if found.recall_sum > model._best_score:
            model._best_score, model._stale = found.recall_sum, 0
            model._best = {name: t.detach().cpu().clone() for name, t in model.towers_.state_dict().items()}
        else:
            model._stale += 1
        return self._exhausted()

    def _exhausted(self) -> bool:
        return self.model.patience is not None and self.model._stale >= self.model.patience

    def _warn_of_collapse(self) -> None:
        mean = sum(self._cosines) / max(1, len(self._cosines))
        if len(self._cosines) >= _BATCHES_TO_JUDGE and mean > _COLLAPSED:
            warnings.warn(
                f"epoch {self.model._progress.epoch}: the captions of a batch have a mean cosine of {mean:.3f}: the "
                "embeddings have collapsed into one point; more epochs of warmup, or a lower lr, help",
                RuntimeWarning,
                stacklevel=7,  # the caller of fit
            )

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch of this call."""
        if epoch != self._planned:
            model = self.model
            self._batches, self._planned = (
                self.data.plan(
                    model._progress.before + epoch,
                    seed=model.seed,
                    batch=model.batch,
                    bucketed=model.bucketed,
                    distinct_images=model.distinct_images,
                ),
                epoch,
            )
        return self._batches

    def _mode(self, epoch: int) -> str:
        """The loss of an epoch: "sum" during the warm-up of losses that choose their negatives."""
        model = self.model
        return "sum" if model.loss in _CHOOSING and model._progress.before + epoch < model.warmup else model.loss

    def _lr(self, epoch: int) -> float:
        model = self.model
        return model.lr / 10 if model.lr_drop is not None and epoch >= model.lr_drop else model.lr

    # ---- one batch ------------------------------------------------------------------------------------------------

    def _train_batch(self, items: np.ndarray, epoch: int, number: int) -> tuple[float, float]:
        """One optimiser step; returns the loss summed over the batch and the mean cosine between its captions."""
        model = self.model
        if self.size > 1:  # equal parts for all processes; up to size - 1 captions of a batch are dropped
            items = items[: len(items) // self.size * self.size]
        part = slice(self.rank * len(items) // self.size, (self.rank + 1) * len(items) // self.size)
        draws = np.random.default_rng([model.seed, model._progress.before + epoch, number, 1])
        chosen = self.data.beside(items, draws)
        model.towers_.train()
        model._optimizer.zero_grad(set_to_none=True)
        rows = {name: self._rows(name, which[part]) for name, which in chosen.items()}
        for name, found in rows.items():
            if not bool(found.isfinite().all()):
                raise TrainingError(
                    f"the vectors of {name} stopped being finite in epoch {epoch + 1} of {model.epochs}: lower lr "
                    f"(it is {self._lr(epoch):g}), or clip (it is {model.clip:g}; 0 disables clipping)"
                )
        groups = torch.from_numpy(self.data.owners[items].astype(np.int64)).to(model._device)
        loss = self._loss(rows, groups, self._mode(epoch))
        loss.backward()
        weights = [p for p in model.towers_.parameters() if p.grad is not None]
        if self.size > 1:
            add_up(weights)
        if model.clip:
            torch.nn.utils.clip_grad_norm_(weights, model.clip)
        model._optimizer.step()
        total = loss.detach()
        if self.size > 1:
            torch.distributed.all_reduce(total)
        return float(total), _mean_cosine(rows[CAPTIONS])

    def _rows(self, name: str, items: np.ndarray) -> Tensor:
        """Items of a modality in the joint space; a row that occurs several times is computed once."""
        side = self.data.sides[name]
        unique, inverse = np.unique(side.rows[items], return_inverse=True)
        return self.model._project(name, side, unique)[torch.from_numpy(inverse).to(self.model._device)]

    def _loss(self, rows: dict[str, Tensor], groups: Tensor, mode: str) -> Tensor:
        """The loss summed over all pairs of modalities; over several processes, this process's part of it."""
        if mode == "mse":
            target = rows[IMAGES]
            return sum((row - target).square().mean(1).sum() for name, row in rows.items() if name != IMAGES)
        loss, options = self._ranking(mode)
        options["groups"] = groups
        total = torch.zeros((), device=groups.device)
        names = list(rows)
        everyone = {name: gathered(rows[name]) for name in names} if self.size > 1 else rows
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                if self.size == 1:
                    total = total + loss(rows[a], rows[b], **options)
                else:
                    offset = self.rank * len(rows[a])
                    total = total + loss(rows[a], everyone[b], direction="images", offset=offset, **options)
                    total = total + loss(everyone[a], rows[b], direction="captions", offset=offset, **options)
        return total

    def _ranking(self, mode: str) -> tuple[Any, dict[str, Any]]:
        """The ranking loss of a mode and its arguments."""
        model = self.model
        order = model.similarity == "order"
        # Rows are normalised, so the dot product is the cosine, and its gradient has passed through the norm already.
        options: dict[str, Any] = {"similarity": "order" if order else "dot"}
        if mode == "infonce":
            return info_nce, options | {"temperature": model.temperature}
        margin = model.margin if model.margin is not None else 0.05 if order else 0.2
        return ranking_loss, options | {"mode": mode, "margin": margin, "k": model.k if mode == "topk" else None}


@torch.no_grad()
def _mean_cosine(rows: Tensor) -> float:
    """The mean cosine between different rows."""
    rows = torch.nn.functional.normalize(rows, dim=1)
    n = max(len(rows), 2)
    return (float(rows.sum(0).square().sum()) - n) / (n * (n - 1))


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Sets torch's number of threads inside the block; None leaves it unchanged."""
    if threads is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
