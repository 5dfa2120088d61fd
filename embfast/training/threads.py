"""How many threads take the next slice of a run."""

from collections.abc import Generator

from embfast import kernels

cores = kernels.cores
_TURNS = 3  # of each number that is tried, a quarter of a slice long
_REST = 64  # slices until numbers are tried again; then twice as many, and so on
_SLUMP = 0.7  # of the best rate since then: slices below it, as many as _TURNS, have them tried again at once


class ThreadTuner:
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
