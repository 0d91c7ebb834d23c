"""Notices that nothing moves any more, and names what the job waits for.

Nothing moves if no episode that counts ends while the loop waits for groups, or if another part of
a step takes longer than `run.stall_after_s`. One line then names the culprit; it is repeated after
twice the time, four times, and so on, until something moves.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cluster.fleet.pool_worker import Outcomes, Worker, WorkerState
from cluster.training.activity import Activity, Part

_WORKERS_SHOWN = 4
FAILURES = 32
"""Failed episodes in a row from which on a line says so; again after four times as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a stalled loop may wait for."""

    workers: Callable[[], Sequence[Worker]]
    outcomes: Outcomes
    in_flight: Callable[[], int]
    """Groups that were started and have not arrived."""
    learner: Callable[[], Awaitable[str]]
    """Returns in words what the ranks of the learner do."""
    quarantined: Callable[[], Sequence[str]] = tuple
    paused: Callable[[], bool] = lambda: False
    """Whether no episode may start, on request: to wait for one is then no stall."""


class StallWatch:
    """Keeps account of what moved last."""

    def __init__(
        self,
        activity: Activity,
        around: Surroundings,
        after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`after_s` of 0 turns the watch off."""
        self._activity, self._around = activity, around
        self._after_s, self._clock = after_s, clock
        self._counted = 0
        self._failures_said = 0
        self._moved_at = clock()
        self._said = 0
        """Lines about the present stall."""
        self._stalled_s = 0.0
        self.culprit = ""
        """What the job waits for; empty while it moves."""

    def take_stalled_s(self) -> float:
        """Return for how long nothing moved since the last call, beyond what is allowed."""
        taken, self._stalled_s = self._stalled_s, 0.0
        return taken

    @property
    def failing(self) -> str:
        """Return what ends every episode; empty while episodes come back that count."""
        outcomes = self._around.outcomes
        if outcomes.failed_in_a_row < FAILURES:
            return ""
        return (
            f"the last {outcomes.failed_in_a_row} episodes all failed, none of them through the "
            f"policy, so that nothing can be trained; the last: {outcomes.last_error}"
        )

    async def look(self) -> str:
        """Return a line to print, empty if there is nothing to say. Call it every second or so."""
        failed = self._around.outcomes.failed_in_a_row
        if failed < FAILURES:
            self._failures_said = 0
        elif failed >= FAILURES * 4**self._failures_said:
            self._failures_said += 1
            return f"warning: {self.failing}"
        return await self._look_for_stall()

    async def _look_for_stall(self) -> str:
        now = self._clock()
        moved_at = self._last_move(now)
        if moved_at > self._moved_at:
            stood_s, self._moved_at = now - self._moved_at, moved_at
            was, self._said, self.culprit = self._said, 0, ""
            return f"something moves again after {stood_s:.0f} s" if was else ""
        stood_s = now - self._moved_at
        if not self._after_s or stood_s < self._after_s:
            return ""
        self.culprit = await self._name_culprit(now)
        self._stalled_s = max(self._stalled_s, stood_s - self._after_s)
        if stood_s < self._after_s * 2**self._said:
            return ""
        self._said += 1
        return f"warning: stalled: nothing has moved for {stood_s:.0f} s. {self.culprit}"

    def _last_move(self, now: float) -> float:
        moves = [self._moved_at, self._activity.since]
        if (counted := self._around.outcomes.counted) != self._counted:
            self._counted = counted
            if self._activity.part is Part.COLLECT:
                moves.append(now)
        if self._activity.part in (Part.COLLECT, Part.PUSH):
            moves += [now] * self._around.paused()
            healthy = [w for w in self._around.workers() if w.state is WorkerState.HEALTHY]
            moves += [worker.since for worker in healthy]
        return max(moves)

    async def _name_culprit(self, now: float) -> str:
        part, since = self._activity.part, now - self._activity.since
        does = f"The job {self._activity.describe()}, for {since:.0f} s now"
        if part.of_learner:
            return f"{does}. {await self._around.learner()}"
        if part is Part.RECORD:
            return f"{does}: is its file system full, slow or gone?"
        if part is Part.PUSH:
            loading = [w for w in self._around.workers() if w.state is WorkerState.STALE]
            return f"{does}. {_shown(loading, now) or 'No worker is loading.'}"
        return f"{does}. {self._of_rollouts(now)}"

    def _of_rollouts(self, now: float) -> str:
        workers = self._around.workers()
        healthy = [worker for worker in workers if worker.state is WorkerState.HEALTHY]
        if self.failing:
            return f"{self.failing[0].upper()}{self.failing[1:]}."
        if not healthy:
            closed = " ".join(f"{line}." for line in self._around.quarantined())
            return f"No worker is healthy: {_shown(workers, now) or 'there is none.'} {closed}"
        busy = [worker for worker in workers if worker.leases]
        if not busy:
            flight = self._around.in_flight()
            return (
                f"{len(healthy)} healthy workers have nothing to do, and {flight} groups are in "
                "flight: no new prompts come (env, its task stream or file)"
                if not flight
                else f"{len(healthy)} healthy workers have nothing to do, though {flight} groups "
                "are in flight: the scheduler waits for the run directory or for free places"
            )
        worker = min(busy, key=lambda found: min(found.leases.values()))
        episode, since = min(worker.leases.items(), key=lambda lease: lease[1])
        text = (
            f"The oldest of {sum(len(w.leases) for w in busy)} running episodes is {episode}, on "
            f"{worker.name} ({worker.state}, node {worker.node or '?'}) for {now - since:.0f} s"
        )
        oldest = worker.report.oldest if worker.report is not None else None
        if oldest is None:
            return f"{text}."
        return f"{text}. There {oldest.episode} waits for {oldest.what}, for {oldest.for_s:.0f} s."


def _shown(workers: Sequence[Worker], now: float) -> str:
    """Return names, states and ages of `workers`, the one that waits longest first."""
    ordered = sorted(workers, key=lambda worker: worker.since)
    named = [_one(worker, now) for worker in ordered[:_WORKERS_SHOWN]]
    more = len(ordered) - len(named)
    return ", ".join(named) + (f" and {more} more." if more else ".") if named else ""


def _one(worker: Worker, now: float) -> str:
    place = f"on node {worker.node}" if worker.node else "which has no place yet"
    why = f", after: {worker.failure}" if worker.failure else ""
    return f"{worker.name} ({place}) has been {worker.state} for {now - worker.since:.0f} s{why}"
