"""State of a training run, and how it is shown: a bar on a terminal, lines in a log, or a callback."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class Progress:
    """State of a training run, as a checkpoint stores it.

    Attributes:
        before: epochs of earlier calls of fit and partial_fit; random draws continue from there.
        epoch, block: finished epochs of this call, and finished blocks of the current epoch.
        loss, examples: sums over the current epoch.
        losses: mean loss of each finished epoch, over all calls.
    """

    before: int = 0
    epoch: int = 0
    block: int = 0
    loss: float = 0.0
    examples: int = 0
    losses: list[float] = field(default_factory=list)


class Status(NamedTuple):
    """What a progress callable receives after each slice. `loss` is the mean per example in the current epoch."""

    epoch: int  # from 1
    epochs: int
    done: float  # fraction of the whole run, 0..1
    words_per_s: float  # or what `unit` says: nodes, edges, entries of a co-occurrence matrix
    lr: float
    loss: float
    seconds_left: float
    unit: str = "words"
    threads: int | None = None  # None: the maximum

    @property
    def speed(self) -> str:
        """Words per second, and the number of threads if it is below the maximum."""
        return f"{self.words_per_s:,.0f} {self.unit}/s" + (
            f" ({self.threads} thread{'s' * (self.threads > 1)})" if self.threads else ""
        )

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}/{self.epochs}  {100 * self.done:5.1f} %  {self.speed}  "
            f"lr {self.lr:.5f}  loss {self.loss:.4f}  {self.seconds_left:,.0f} s left"
        )


ProgressOption = bool | Callable[[Status], None] | None


@contextmanager
def reporter(progress: ProgressOption) -> Iterator[Callable[[Status], None]]:
    """What to do with a Status: a callable gets it, a terminal shows a bar, a log (True) some lines."""
    terminal = hasattr(sys.stderr, "isatty") and sys.stderr.isatty()
    if callable(progress):
        yield progress
    elif progress is False or (progress is None and not terminal):
        yield lambda status: None
    elif not terminal:
        yield _Log()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("epoch {task.fields[at]}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(stderr=True), transient=False) as bar:
            task = bar.add_task("training", total=1.0, at="1", rate="")

            def show(status: Status) -> None:
                bar.update(
                    task,
                    completed=status.done,
                    at=f"{status.epoch}/{status.epochs}",
                    rate=f"{status.speed}  lr {status.lr:.5f}  loss {status.loss:.4f}",
                )

            yield show


class _Log:
    """One line to stderr every ten seconds, and at the end."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, status: Status) -> None:
        now = time.monotonic()
        if now - self.last >= 10 or status.done >= 1:
            print(status, file=sys.stderr, flush=True)
            self.last = now
