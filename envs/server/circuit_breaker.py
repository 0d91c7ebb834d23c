"""A circuit breaker: stops calling a failing server for a while, then probes it once."""

from collections.abc import Callable
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Opens after `failures` failures in a row; after `pause_s` seconds it admits one probe.

    The probe's success closes the breaker, its failure opens it again. If the probe ends in neither
    (for example, it is cancelled), another one is admitted after `pause_s`. `clock` returns
    seconds.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._limit = failures
        self._pause_s = pause_s
        self._clock = clock
        self._failures = 0
        self._probe_at = 0.0

    @property
    def state(self) -> BreakerState:
        if self._failures < self._limit:
            return "closed"
        return "open" if self._clock() < self._probe_at else "half-open"

    def admit(self) -> bool:
        """Return whether a request may be sent now; if `half-open`, that request is the probe."""
        if self._failures < self._limit:
            return True
        now = self._clock()
        if now < self._probe_at:
            return False
        self._probe_at = now + self._pause_s
        return True

    def succeeded(self) -> None:
        """Record that the server answered, even if with an error."""
        self._failures = 0

    def failed(self) -> None:
        """Record that the server did not answer."""
        self._failures += 1
        if self._failures >= self._limit:
            self._probe_at = self._clock() + self._pause_s
