"""How late the event loop is, and deadlines that leave out the time in which it stood still.

A loop that stands still for longer than a deadline finds, when it goes on, both the answer that
came meanwhile and the deadline that passed meanwhile. `LoopLag.deadline` then takes the answer: who
answered in time is not to blame for a caller that did not listen.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

TICK_S = 0.02
"""Seconds between two looks at the clock."""
STALL_S = 0.1
"""Lateness from which the loop counts as standing still: shorter ones delay no answer for long."""
STOOD_STILL_S = 5.0
"""Lateness that the log names: nothing in this program should take so long, so the process was
stopped, or the machine overloaded.
"""
_PER_S = 10_000
"""Lateness is counted in tenths of a millisecond."""

logger = logging.getLogger("trialrun")


@dataclass(frozen=True, slots=True, kw_only=True)
class LagSummary:
    """How late the loop was, in seconds, over the moments since the last summary."""

    p50_s: float
    p99_s: float
    max_s: float


class LagCounts:
    """Counts how late ticks were.

    A standstill of 5 s counts for every tick that it delayed, with what was left of it then. So a
    percentile is over moments in time: how long an answer that arrives at a random one would wait.
    """

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()

    def note(self, late_s: float) -> int:
        """Count a tick that was `late_s` late, and those that it delayed; return how many."""
        missed = int(late_s / TICK_S)
        for tick in range(missed + 1):
            self._seen[int((late_s - tick * TICK_S) * _PER_S)] += 1
        return missed

    def take(self) -> LagSummary:
        """Return a summary of what was counted since the last call; NaN if nothing was."""
        seen, self._seen = self._seen, Counter()
        return LagSummary(
            p50_s=_quantile(seen, 0.5), p99_s=_quantile(seen, 0.99), max_s=_quantile(seen, 1.0)
        )


class LoopLag:
    """Measures by how much timers of the running event loop fire late."""

    def __init__(self) -> None:
        self._counts = LagCounts()
        self._timer: asyncio.TimerHandle | None = None
        self._stalled_s = 0.0
        """Time in which the loop stood still, since the start."""

    def start(self) -> None:
        """Measure the running loop from now on; a second call changes nothing."""
        if self._timer is None:
            self._tick_at(asyncio.get_running_loop().time() + TICK_S)

    def close(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take(self) -> LagSummary:
        """Return a summary of what was measured since the last call; NaN if nothing was."""
        return self._counts.take()

    @asynccontextmanager
    async def deadline(self, seconds: float) -> AsyncIterator[None]:
        """Raise TimeoutError where the block takes longer than `seconds`, not counting the time in
        which the loop stood still.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as timeout:
            counted_s = self._stalled_s

            def passed(due: float) -> None:
                nonlocal timer, counted_s
                now = loop.time()
                # The tick of a standstill that has just ended may come after this call.
                missed_s = max(self._stalled_s - counted_s, now - due)
                counted_s = self._stalled_s
                if missed_s >= STALL_S:
                    timer = loop.call_at(now + missed_s, passed, now + missed_s)
                else:
                    timeout.reschedule(now)

            timer = loop.call_at(loop.time() + seconds, passed, loop.time() + seconds)
            try:
                yield
            finally:
                timer.cancel()

    def _tick_at(self, due: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(due, self._tick, due)

    def _tick(self, due: float) -> None:
        late_s = max(asyncio.get_running_loop().time() - due, 0.0)
        if late_s >= STALL_S:
            self._stalled_s += late_s
        if late_s >= STOOD_STILL_S:
            logger.warning(
                "this process stood still for %.0f s: it was stopped, or the machine is overloaded",
                late_s,
            )
        missed = self._counts.note(late_s)
        self._tick_at(due + (missed + 1) * TICK_S)


def _quantile(seen: Counter[int], share: float) -> float:
    """Return the smallest lateness in seconds that `share` of all moments did not exceed."""
    missing = share * seen.total()
    for late, count in sorted(seen.items()):
        missing -= count
        if missing <= 1e-9:
            return late / _PER_S
    return float("nan")
