"""What training of all models is made of: first weights, blocks of tokens, drawn words, and the loop over them.

Source: first weights and learning rate as in word2vec.c (Mikolov et al. 2013).
"""

import math
import mmap
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from embfast import kernels
from embfast.corpus import Corpus
from embfast.errors import TrainingError

BLOCK = 4096  # tokens that one thread takes at a time
SNAP = 1024  # a block ends with a document when one ends this near
DEVICE_SLICE = 4096  # blocks of one call of a device: about 16.8 M tokens, a tenth of a second or so
CHAPTER = 4096  # blocks, about 16.8 M tokens, that take their negatives from one pool of draws

cores = kernels.cores

_SLICE_WORK = 150_000  # blocks x padded dim x window of one kernel call and thread: about a quarter of a second
_LEAST_SLICES = 32  # of a run that looks for its number of threads
_TURNS = 3  # of each number that is tried, a quarter of a slice long
_REST = 64  # slices until numbers are tried again; then twice as many, and so on
_SLUMP = 0.7  # of the best rate since then: slices below it, as many as _TURNS, have them tried again at once
_CELLS = 1 << 18  # numbers per step of the numpy loops over tables: 1 MB


# ---- weights and blocks -------------------------------------------------------------------------------------------


def initial_weights(table: np.ndarray, dim: int, seed: int, first: int = 0, reach: float = 0.5) -> None:
    """Fills a padded table with first input weights, uniform in (-reach, reach) / dim, in place; word2vec.c's have 0.5.

    Row i is row first + i of the model: it depends on seed, dim and that number alone, so that a vocabulary can grow.
    """
    width = table.shape[1]
    philox = np.random.Philox(key=seed)
    philox.advance(first * width // 8)  # one step of Philox-4x64 makes 8 float32
    generator = np.random.Generator(philox)
    step = max(1, _CELLS // width)
    for lo in range(0, len(table), step):
        rows = table[lo : lo + step]
        generator.random(dtype=np.float32, out=rows)
        rows -= np.float32(0.5)
        rows *= np.float32(2 * reach)
        rows /= np.float32(dim)
        rows[:, dim:] = 0


def make_blocks(offsets: np.ndarray, block: int = BLOCK, snap: int = SNAP) -> np.ndarray:
    """Edges of blocks of about 4,096 tokens, int64 (n_blocks + 1,); or of `block`, snapped within `snap`.

    An edge is moved to the nearest end of a document within 1,024 tokens. Where there is none the block ends inside a
    document, and windows do not cross that cut: of a document much longer than a block, one token in about 400 sees a
    window that is cut short at window=5. Memory: 50 bytes a block; mapped offsets are searched where they lie.
    """
    first, last = int(offsets[0]), int(offsets[-1])
    targets = np.arange(first + block, last, block, dtype=np.int64)
    after = np.searchsorted(offsets, targets)
    before, behind = offsets[after - 1], offsets[after]
    nearest = np.where(targets - before <= behind - targets, before, behind)
    cuts = np.where(np.abs(nearest - targets) <= snap, nearest, targets)
    return np.unique(np.concatenate([[first], cuts, [last]]).astype(np.int64))


def make_pieces(offsets: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Edges of what one block of threads of a device takes, int64: blocks cut into about 1,024 tokens each.

    There the device has work for thousands at a time. Windows are cut short beside one token in 100 of a long document,
    as those of word2vec.c are, which cuts at 1,000 words.
    """
    return np.unique(np.concatenate([make_blocks(offsets, BLOCK // 4, SNAP // 4), blocks]))


def choose_device(name: str, progress: "ProgressOption", of_cpu: str | None = None) -> tuple[Any, str]:
    """kernels.device; with "auto" a line on stderr says what was taken, unless progress is False.

    of_cpu: what in the settings is of the CPU alone, which then is what "auto" takes.
    """
    if name != "auto":
        return kernels.device(name)
    device, text = kernels.device(name) if of_cpu is None else (None, f"cpu, since {of_cpu} is of the CPU alone")
    if progress is not False:
        print(f'device="auto": {text}', file=sys.stderr, flush=True)
    return device, text


def blocks_per_slice(dim: int, window: int, threads: int) -> int:
    """Blocks of one kernel call: about a quarter of a second of work, and the same number on any machine."""
    return max(1, threads * _SLICE_WORK // (kernels.padded(dim) * window))


class NoisePool:
    """Words drawn ahead as negatives, int32: one pool for each chapter of each epoch, whatever the number of threads.

    Reading words in order costs the kernels a tenth of drawing them one by one from an alias table, which lies all over
    the cache. A pool holds 2^16 to 2^21 draws (at most 8 MB), about as many as the chapter asks for; a chapter that
    asks for more reads some of them again, beside other words: each block begins at a place of its own. at_once is what
    a batch takes in one piece, needed what a chapter takes.
    """

    def __init__(self, weights: np.ndarray, at_once: int, needed: int, seed: int) -> None:
        self._table = kernels.NoiseTable(weights)
        self._size = max(min(max(needed, 1 << 16), 1 << 21), at_once)
        self._seed, self._key = seed, (-1, -1)
        self._words = np.empty(0, np.int32)

    def __call__(self, epoch: int, block: int) -> np.ndarray:
        key = (epoch, block // CHAPTER)
        if key != self._key:
            self._words = self._table.sample(self._size, self._seed, epoch, key[1] * self._size)
            self._key = key
        return self._words


class Sharing(NamedTuple):
    """How the kernel groups centers and draws negatives for them."""

    shared: bool
    centers: int
    drawn: int
    scale: float


def sharing(cbow: bool, hs: bool, negatives: int, negatives_shared: bool, window: int, nodes: bool = False) -> Sharing:
    """How many neighbouring centers share how many drawn words; the one place that decides it.

    Sharing among centers saves arithmetic as long as enough words are drawn for each: skip-gram wants 2.5 (with 2,
    SimLex falls by a point; walks over nodes are content), CBOW 3 (with 2.5, the analogies do). A drawn word weighs
    negatives / drawn, so the objective stays that of `negatives` words. Hierarchical softmax has a path of its own for
    each center and takes them one by one.

    A batch of skip-gram moves its output rows once, by the sum over all its pairs. In wide windows that step grows too
    long: above 15 tokens a center goes alone, and above 50 each pair has its own draws, since the loss diverges near
    100 (4 M tokens of Wikipedia, dim=100, one seed: analogies 5.1 % with two centers and 5.7 % with one at 20).
    """
    shared = negatives_shared and (cbow or window <= 50)
    if not negatives:
        return Sharing(shared, 1, 0, 1.0)
    centers, drawn = 1, negatives
    if shared and not hs:
        if cbow and negatives >= 5:
            centers, drawn = 2, -(-6 * negatives // 5)
        elif not cbow and negatives >= 5 and window <= 15:
            centers = 2
            drawn = -(-4 * negatives // 5) if nodes else negatives
    return Sharing(shared, centers, drawn, negatives / drawn)


def keep_thresholds(counts: np.ndarray, sample: float) -> np.ndarray | None:
    """uint32 (words,): a token is kept when its 32-bit draw is at most this; None keeps all.

    word2vec.c keeps a word that is a share f of the text with probability (sqrt(f / sample) + 1) * sample / f, which is
    1 or more for rare words.
    """
    if sample == 0:
        return None
    share = np.maximum(counts, 1) / counts.sum()
    kept = np.minimum((np.sqrt(share / sample) + 1) * sample / share, 1.0)
    return np.clip(np.round(kept * 2.0**32) - 1, 0, 2**32 - 1).astype(np.uint32)


def noise_weights(counts: np.ndarray, exponent: float) -> np.ndarray:
    """float64 (words,): count ** exponent over the largest; words that do not occur are not drawn."""
    logs = exponent * np.log(np.maximum(counts, 1))
    return np.where(counts > 0, np.exp(logs - logs[counts > 0].max()), 0.0)


def by_count(corpus: Corpus) -> Corpus:
    """The corpus itself, or one whose words are sorted by count, as a Huffman tree wants them."""
    if (np.diff(corpus.counts) <= 0).all():
        return corpus
    return corpus.with_words([corpus.words[i] for i in np.argsort(-corpus.counts, kind="stable")])


def grown_vocabulary(
    words: list[str], counts: np.ndarray, more: list[str], more_counts: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Known words and more of them: all words and their counts, and the place of each, of those known and the new ones.

    They are sorted by count when there are new ones; otherwise the order stays.
    """
    index = {word: i for i, word in enumerate(words)}
    place = np.array([index.setdefault(word, len(index)) for word in more], np.int64)
    total = np.append(counts, np.zeros(len(index) - len(words), np.int64))
    total[place] += more_counts
    if len(index) == len(words):
        return words, total, np.arange(len(words))
    order, known = np.argsort(-total, kind="stable"), list(index)
    row = np.empty(len(order), np.int64)
    row[order] = np.arange(len(order))
    return [known[i] for i in order], total[order], row


def for_kernels(table: np.ndarray) -> np.ndarray:
    """The table, or an aligned and writable copy if it went through pickle or copy."""
    if table.ctypes.data % 64 == 0 and table.flags.c_contiguous and table.flags.writeable:
        return table
    copied = kernels.weight_table(len(table), table.shape[1])
    copied[:] = table
    return copied


def forget_read(ids: np.ndarray, begin: int, end: int) -> None:
    """Gives back the memory of ids[begin:end] where they are mapped from a file; the kernel can read them again."""
    memory = getattr(ids, "_mmap", None)  # of a copy, or one that was pickled, there is none
    if memory is None or ids.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = ids.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    lo = -(-(start + begin * ids.itemsize) // mmap.PAGESIZE) * mmap.PAGESIZE
    hi = (start + end * ids.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
    if hi > lo:
        memory.madvise(mmap.MADV_DONTNEED, lo, hi - lo)


def fingerprint(corpus: Corpus) -> dict[str, int]:
    """What tells a corpus from another: sizes, and a checksum of words, counts and the first ids and offsets."""
    crc = zlib.crc32("\0".join(corpus.words).encode("utf-8", "surrogatepass"))
    for array in (corpus.counts, corpus.offsets[: 1 << 16], corpus.ids[: 1 << 16]):
        crc = zlib.crc32(np.ascontiguousarray(array), crc)
    return {"words": len(corpus.words), "documents": len(corpus), "tokens": corpus.n_tokens, "crc": crc}


def document_means(matrix: np.ndarray, words: list[str], corpus: Corpus) -> np.ndarray:
    """The mean vector of each document, float32 (len(corpus), dim); zeros where no word is known.

    words: those of the rows of matrix.

    Raises:
        TypeError: it is no Corpus.
    """
    if not isinstance(corpus, Corpus):
        raise TypeError(f"expected a Corpus, got {type(corpus).__name__}; see Corpus.from_sentences")
    index = {word: i for i, word in enumerate(words)}
    rows = np.array([index.get(word, -1) for word in corpus.words], np.int64)
    sums = np.zeros((len(corpus), matrix.shape[1]), np.float32)
    known = np.zeros(len(corpus), np.int64)
    step = max(1, 4 * _CELLS // matrix.shape[1])
    for lo in range(0, corpus.n_tokens, step):
        row = rows[corpus.ids[lo : lo + step]]
        place = np.flatnonzero(row >= 0)
        if not len(place):
            continue
        document = np.searchsorted(corpus.offsets, lo + place, "right") - 1
        starts = np.flatnonzero(np.diff(document, prepend=-1))
        sums[document[starts]] += np.add.reduceat(matrix[row[place]], starts, axis=0)
        known[document[starts]] += np.diff(starts, append=len(place))
    sums /= np.maximum(known, 1)[:, None].astype(np.float32)
    return sums


# ---- the loop -----------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """Where a training run stands; a checkpoint holds it.

    Attributes:
        before: epochs of earlier calls of fit and partial_fit; random draws continue from there.
        epoch, block: epochs done in this call, and blocks done in the running one.
        loss, examples: sums of the running epoch.
        losses: mean loss of each epoch, of all calls.
    """

    before: int = 0
    epoch: int = 0
    block: int = 0
    loss: float = 0.0
    examples: int = 0
    losses: list[float] = field(default_factory=list)


class Threads:
    """How many threads take the next slice: as many as were asked for or, by default, as many of all cores as pay.

    Threads share the weights without locks. Where cores have no cache in common the rows travel between them, and more
    threads may train fewer words. A run that was given no number tries all cores against half of them, a few times in
    turn, and halves them as long as that is faster by a twentieth, or else doubles them likewise. It looks again later,
    less and less often, and when the words per second have fallen by a third.

    Attributes:
        most: threads that there may be.
        now: those of the next slice.
        trying: the next slice is to be short.
    """

    def __init__(self, asked: int | None) -> None:
        self.most = asked or cores()
        self.keep_all()
        if asked is None and self.most > 1:
            self._choice = self._choose()
            next(self._choice)

    def keep_all(self) -> None:
        """Tries no more."""
        self.now, self.trying, self._choice = self.most, False, None

    def tell(self, rate: float) -> None:
        """Takes the words per second of a slice that `now` threads trained, and chooses for the next one."""
        if self._choice:
            self._choice.send(rate)

    def _choose(self) -> Generator[None, float, None]:
        n, rest = self.most, _REST
        while True:
            before = n
            while n > 1 and (yield from self._faster(n // 2, n)):
                n //= 2
            while before == n < self.most and (yield from self._faster(min(2 * n, self.most), n)):
                n = before = min(2 * n, self.most)
            self.now, self.trying = n, False
            best, slow = 0.0, 0
            for _ in range(rest):
                rate = yield
                best = max(best, rate)
                slow = slow + 1 if rate < _SLUMP * best else 0
                if slow == _TURNS:
                    rest = _REST
                    break
            else:
                rest *= 2

    def _faster(self, other: int, n: int) -> Generator[None, float, bool]:
        """Whether the best slice of the other number beats the best of n."""
        best = {n: 0.0, other: 0.0}
        for _ in range(_TURNS):
            for self.now in best:
                self.trying = True
                best[self.now] = max(best[self.now], (yield))
        return best[other] > 1.05 * best[n]


class Status(NamedTuple):
    """What a progress callable is told after each slice. `loss` is the mean of the running epoch per example."""

    epoch: int  # from 1
    epochs: int
    done: float  # share of the whole run, 0..1
    words_per_s: float  # or entries of a co-occurrence matrix, as unit says
    lr: float
    loss: float
    seconds_left: float
    unit: str = "words"
    threads: int | None = None  # where the run took fewer than there may be

    @property
    def speed(self) -> str:
        """Words per second, and the threads where there are fewer than there may be."""
        return f"{self.words_per_s:,.0f} {self.unit}/s" + (
            f" ({self.threads} thread{'s' * (self.threads > 1)})" if self.threads else ""
        )

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}/{self.epochs}  {100 * self.done:5.1f} %  {self.speed}  "
            f"lr {self.lr:.5f}  loss {self.loss:.4f}  {self.seconds_left:,.0f} s left"
        )


ProgressOption = bool | Callable[[Status], None] | None


def train(
    step: Callable[[int, int, int], tuple[float, int, int]],
    blocks: np.ndarray,
    state: Progress,
    *,
    epochs: int,
    per_slice: int,
    lr: float,
    min_lr: float,
    threads: Threads | None = None,
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
    with first_interrupt() as interrupted, _reporter(progress) as report:
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


@contextmanager
def _reporter(progress: ProgressOption) -> Iterator[Callable[[Status], None]]:
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
