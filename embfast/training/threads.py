"""Chooses the number of threads during a run."""

from collections.abc import Generator

from embfast import kernels

cores = kernels.cores
_TURNS = 3  # trials per number of threads, each a quarter of a slice long
_REST = 64  # slices until the next trials; doubled each time
_SLUMP = 0.7  # _TURNS slices in a row below this fraction of the best rate start new trials at once


class ThreadTuner:
    """Chooses the number of threads for the next slice: the number asked for or, by default, whatever is fastest.

    Hogwild threads update shared rows without locks. Without a shared cache, cache-line traffic can make two threads
    slower than one. Without a given number, a run tries all cores against half of them, a few times in turn, and halves
    the number as long as that is 5 % faster, or otherwise doubles it likewise. It tries again later, at growing
    intervals, and as soon as the speed has dropped by a third.

    Attributes:
        most: maximum number of threads.
        now: number of threads for the next slice.
        trying: whether the next slice is a short trial.
    """

    _choice: Generator[None, float, None] | None

    def __init__(self, asked: int | None) -> None:
        self.most = asked or cores()
        self.keep_all()
        if asked is None and self.most > 1:
            self._choice = self._choose()
            next(self._choice)

    def keep_all(self) -> None:
        """Keeps the maximum and stops trying."""
        self.now, self.trying, self._choice = self.most, False, None

    def tell(self, rate: float) -> None:
        """Receives the words per second of a slice trained by `now` threads, and chooses the next number."""
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
        """Whether the best trial with `other` threads beats the best with n by 5 %."""
        best = {n: 0.0, other: 0.0}
        for _ in range(_TURNS):
            for self.now in best:
                self.trying = True
                best[self.now] = max(best[self.now], (yield))
        return best[other] > 1.05 * best[n]
