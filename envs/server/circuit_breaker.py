"""A circuit breaker: who fails often is left alone for a while, then tried once."""

from collections.abc import Callable
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Opens after `failures` in a row; after `pause_s` it lets one trial through.

    The trial's success closes it, its failure opens it again; a trial that ends in neither is
    followed by another after `pause_s`. `clock` gives seconds.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._limit = failures
        self._pause_s = pause_s
        self._clock = clock
        self._failures = 0
        self._trial_at = 0.0

    @property
    def state(self) -> BreakerState:
        if self._failures < self._limit:
            return "closed"
        return "open" if self._clock() < self._trial_at else "half-open"

    def admit(self) -> bool:
        """Whether a request may go out now; in `half-open`, this takes the trial."""
        if self._failures < self._limit:
            return True
        now = self._clock()
        if now < self._trial_at:
            return False
        self._trial_at = now + self._pause_s
        return True

    def succeeded(self) -> None:
        """Note an answer, whatever it said."""
        self._failures = 0

    def failed(self) -> None:
        """Note that there was no answer."""
        self._failures += 1
        if self._failures >= self._limit:
            self._trial_at = self._clock() + self._pause_s
