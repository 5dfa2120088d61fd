"""What training of all models is made of: first weights, blocks of tokens, drawn words, and the loop over them.

Source: first weights and learning rate as in word2vec.c (Mikolov et al. 2013).
"""

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

_LEAST_SLICES = 32  # of a run that looks for its number of threads


# ---- weights and blocks -------------------------------------------------------------------------------------------


def choose_device(name: str, progress: "ProgressOption", cpu_only: str | None = None) -> tuple[Any, str]:
    """kernels.device; with "auto" a line on stderr says what was taken, unless progress is False.

    cpu_only: what in the settings is of the CPU alone, which then is what "auto" takes.
    """
    if name != "auto":
        return kernels.device(name)
    device, text = kernels.device(name) if cpu_only is None else (None, f"cpu, since {cpu_only} is of the CPU alone")
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
    """Runs the epochs of a model from where `state` stands, and keeps state up to date.

    step(epoch, first, last) trains on those blocks and returns summed loss, examples and kept tokens; `threads`, which
    it reads, is told how fast that was. after_slice is told the tokens first..last that it read. `save` writes a
    checkpoint: every save_minutes, at the end, and on Ctrl-C, which lets the slice finish first; a second Ctrl-C kills
    the process. lr_of(epoch) is the learning rate where it does not fall linearly from lr to min_lr; after_epoch looks
    at the model, and ends the run when it returns True.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the checkpoint is written.
        TrainingError: the loss is not finite, or there is no example to train on.
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
                if not math.isfinite(state.loss):
                    raise TrainingError(
                        f"the loss became {state.loss} in epoch {state.epoch + 1} of {epochs}, at lr {lr_now:.4g}: "
                        f"lower lr (it starts at {lr:g}; halve it, or leave it to the default)"
                    )
                state.block = last
                if after_slice:
                    after_slice(begin, end)
                trained += end - begin
                now = time.monotonic()
                rate = trained / max(now - started, 1e-9)
                mean = state.loss / max(state.examples, 1)
                left = (1 - done) * epochs * n_tokens / rate
                chosen = threads.now if threads and threads.now < threads.most else None
                report(Status(state.epoch + 1, epochs, done, rate, lr_now, mean, left, unit, chosen))
                if interrupted():
                    if save:
                        save()
                    raise KeyboardInterrupt
                if save and now - saved >= 60 * save_minutes:
                    save()
                    saved = time.monotonic()
            if not state.examples:
                raise TrainingError(
                    "no window with two words to train on: every document is one word long, or subsampling left "
                    "nothing over (raise sample, or switch it off with sample=0)"
                )
            state.losses.append(state.loss / state.examples)
            state.epoch += 1
            state.block, state.loss, state.examples = 0, 0.0, 0
            if after_epoch and after_epoch():
                break
        if save:
            save()


@contextmanager
def first_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C is only noted; the next one has the system's meaning and ends the process."""
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
