"""The training loop of all models: epochs of slices, progress, checkpoints, Ctrl-C; and the choice of a device."""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from embfast import kernels
from embfast.errors import TrainingError
from embfast.training.blocks import CHAPTER
from embfast.training.progress import Progress, ProgressOption, Status, reporter
from embfast.training.threads import ThreadTuner

_LEAST_SLICES = 32  # shorter runs keep all threads: there is no time to try fewer


def choose_device(name: str, progress: "ProgressOption", cpu_only: str | None = None) -> tuple[Any, str]:
    """The device that a setting names (None for the CPU) and a text that says which it is and why.

    cpu_only: the setting that no device supports, or None; "auto" then picks the CPU. With "auto" a line on stderr says
    what was chosen, unless progress is False.
    """
    if name != "auto":
        return kernels.device(name)
    device, text = kernels.device(name) if cpu_only is None else (None, f"cpu, since {cpu_only} runs on the CPU only")
    if progress is not False:
        print(f'device="auto": {text}', file=sys.stderr, flush=True)
    return device, text


# ---- the loop -----------------------------------------------------------------------------------------------------


def train(
    step: Callable[[int, int, int], tuple[float, int, int]],
    blocks: np.ndarray,
    state: Progress,
    *,
    epochs: int,
    per_slice: int,
    lr: float,
    min_lr: float,
    threads: ThreadTuner | None = None,
    after_slice: Callable[[int, int], None] | None = None,
    unit: str = "words",
    save: Callable[[], None] | None = None,
    save_minutes: float = 10.0,
    progress: ProgressOption = None,
    lr_of: Callable[[int], float] | None = None,
    after_epoch: Callable[[], bool] | None = None,
) -> None:
    """Runs the remaining epochs of a model from `state`, slice by slice, and keeps `state` up to date.

    Args:
        step: step(epoch, first, last) trains on blocks first..last; returns summed loss, examples and kept tokens.
        blocks: int64 (blocks + 1,), edges of the blocks in tokens.
        per_slice: blocks of a slice.
        threads: receives the speed of every slice and chooses the threads of the next one.
        after_slice: called with the first and last token of each slice.
        save: writes a checkpoint: every save_minutes, at the end, and on Ctrl-C, after the slice has finished. A second
            Ctrl-C kills the process.
        lr_of: lr_of(epoch) is the learning rate, unless it falls linearly from lr to min_lr.
        after_epoch: called after each epoch; returning True ends the run.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the checkpoint is written.
        TrainingError: the loss is infinite or NaN, or there is no example to train on.
    """
    n_blocks, n_tokens = len(blocks) - 1, int(blocks[-1] - blocks[0])
    started = saved = time.monotonic()
    trained = 0
    if threads and epochs * n_blocks < _LEAST_SLICES * per_slice:
        threads.keep_all()
    with first_interrupt() as interrupted, reporter(progress) as report:
        while state.epoch < epochs:
            while state.block < n_blocks:
                first = state.block
                size = max(per_slice // 4, 1) if threads and threads.trying else per_slice
                last = min(first + size, (first // CHAPTER + 1) * CHAPTER, n_blocks)
                before = time.monotonic()
                loss, examples, _ = step(state.epoch, first, last)
                begin, end = int(blocks[first]), int(blocks[last])
                if threads:
                    threads.tell((end - begin) / max(time.monotonic() - before, 1e-9))
                done = (state.epoch * n_tokens + end) / (epochs * n_tokens)
                lr_now = lr_of(state.epoch) if lr_of else lr + (min_lr - lr) * done
                state.loss += loss
                state.examples += examples
                _check_finite(state, epochs, lr_now, lr)
                state.block = last
                if after_slice:
                    after_slice(begin, end)
                trained += end - begin
                rate = trained / max(time.monotonic() - started, 1e-9)
                left = (1 - done) * epochs * n_tokens / rate
                chosen = threads.now if threads and threads.now < threads.most else None
                mean = state.loss / max(state.examples, 1)
                report(Status(state.epoch + 1, epochs, done, rate, lr_now, mean, left, unit, chosen))
                stopped = interrupted()
                if save and (stopped or time.monotonic() - saved >= 60 * save_minutes):
                    save()
                    saved = time.monotonic()
                if stopped:
                    raise KeyboardInterrupt
            _end_epoch(state)
            if after_epoch and after_epoch():
                break
        if save:
            save()


def _check_finite(state: Progress, epochs: int, lr_now: float, lr: float) -> None:
    if not math.isfinite(state.loss):
        raise TrainingError(
            f"the loss became {state.loss} in epoch {state.epoch + 1} of {epochs}, at lr {lr_now:.4g}: "
            f"lower lr (its first value is {lr:g}; halve it or use the default)"
        )


def _end_epoch(state: Progress) -> None:
    """Appends the mean loss of the epoch and moves on to the next one."""
    if not state.examples:
        raise TrainingError(
            "no window has two words to train on: every document is one word long, or subsampling dropped all "
            "words (raise sample, or disable it with sample=0)"
        )
    state.losses.append(state.loss / state.examples)
    state.epoch += 1
    state.block, state.loss, state.examples = 0, 0.0, 0


@contextmanager
def first_interrupt() -> Iterator[Callable[[], bool]]:
    """Within the context the first Ctrl-C requests a clean stop; a second one kills the process."""
    pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    mine = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if mine:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        if mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)
