"""Progress of a run of images through a network."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ImageProgress = bool | Callable[[int, int], None] | None  # a callable gets (images done, images in all)


@contextmanager
def reporting(progress: ImageProgress, total: int, first: int = 0) -> Iterator[Callable[[int], None]]:
    """Gives a function that reports the number of images done: to a callable, or as a bar or lines of a log on stderr.

    A terminal shows a bar unless progress is False. If stderr is no terminal, True prints a line every ten seconds.
    """
    terminal = hasattr(sys.stderr, "isatty") and sys.stderr.isatty()
    if callable(progress):
        yield lambda done: progress(done, total)
    elif progress is False or (progress is None and not terminal):
        yield lambda done: None
    elif not terminal:
        began = last = time.monotonic()

        def line(done: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 10 or done >= total:
                rate = (done - first) / max(now - began, 1e-9)
                print(f"{done:,} of {total:,} images  {rate:,.1f} images/s", file=sys.stderr, flush=True)
                last = now

        yield line
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task, began = bar.add_task("images", total=total, completed=first, rate=""), time.monotonic()

            def show(done: int) -> None:
                rate = (done - first) / max(time.monotonic() - began, 1e-9)
                bar.update(task, completed=done, rate=f"{rate:,.1f} images/s")

            yield show
