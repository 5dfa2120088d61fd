"""Counts co-occurrences in bounded memory, in chunks of tokens whose sums are merged through a temporary file."""

import os
import tempfile
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from embfast import kernels
from embfast.text.corpus import Corpus
from embfast.training.blocks import forget_read

_BUFFER = 64 << 20  # bytes of counted entries between two writes
_SMALLEST_CHUNK = 1 << 16  # tokens; with fewer, runs consist mostly of row headers


class CountingPlan(NamedTuple):
    """Settings of a count that stays within its memory."""

    window: int
    symmetric: bool
    distance_weighting: bool
    threads: int
    buffer_bytes: int
    chunk: int  # tokens


def plan_counting(
    corpus: Corpus, *, window: int, symmetric: bool, distance_weighting: bool, threads: int, memory_gb: float
) -> CountingPlan:
    """Chooses the size of the buffer and of the chunks.

    Raises:
        ValueError: memory_gb is too small for the vocabulary and threads.
    """
    n_tokens, n_words = corpus.n_tokens, len(corpus.words)
    memory = int(memory_gb * 1e9)
    counter = kernels.CooccurrenceCounter
    fixed = counter.bytes_of_words(n_words) + threads * counter.bytes_per_thread(n_words)
    buffer = max(min(_BUFFER, memory // 8), 16 * (n_words + 1))
    least = fixed + 16 * (n_words + 1) + min(n_tokens, _SMALLEST_CHUNK) * counter.bytes_per_token
    chunk = (memory - fixed - buffer) // counter.bytes_per_token
    if memory < least:
        raise ValueError(
            f"memory_gb={memory_gb:g} is too small to count {n_words:,} words on {threads} thread(s): expected at "
            f"least {least / 1e9:.3f}"
        )
    chunk = max(1, min(max(chunk, _SMALLEST_CHUNK), n_tokens, 2**32 - 1))
    return CountingPlan(window, symmetric, distance_weighting, threads, buffer, chunk)


def count_pairs(
    corpus: Corpus,
    plan: CountingPlan,
    stream: BinaryIO,
    *,
    begin: int = 0,
    directory: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes the sorted entries of a corpus to a file from byte `begin` on and returns their number.

    Several chunks pass through an unnamed temporary file in `directory`.
    """
    n_tokens, n_words = len(corpus.ids), len(corpus.words)
    chunks = [(lo, min(lo + plan.chunk, n_tokens)) for lo in range(0, n_tokens, plan.chunk)]
    rounds = len(chunks) + (len(chunks) > 1)
    done = 0

    def rows(step: Callable[[int], int]) -> None:
        nonlocal done
        first = 0
        while first < n_words:
            first = step(first)
            if progress:
                progress(done + first, rounds * n_words)
        done += n_words

    with tempfile.TemporaryFile(dir=directory) as spill:
        try:
            counter = kernels.CooccurrenceCounter(
                corpus.ids,
                corpus.offsets,
                n_words=n_words,
                window=plan.window,
                symmetric=plan.symmetric,
                distance_weighting=plan.distance_weighting,
                threads=plan.threads,
                buffer_bytes=plan.buffer_bytes,
                spill_fd=spill.fileno(),
                out_fd=stream.fileno(),
                out_begin=begin,
            )
            for lo, hi in chunks:
                counter.start(lo, hi, len(chunks) == 1)
                rows(counter.count)
                forget_read(corpus.ids, lo, hi)
            if len(chunks) > 1:
                rows(counter.merge)
        except OSError as error:
            where = directory or tempfile.gettempdir()
            why = os.strerror(error.errno or 0)
            raise OSError(error.errno, f"cannot write co-occurrences in {where}: {why}") from None
    return counter.n_entries
