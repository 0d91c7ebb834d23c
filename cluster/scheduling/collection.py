"""Demonstrations as they are collected: tasks x samples into a run directory, resumable."""

import asyncio
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.progress import Counter, Progress
from cluster.scheduling.dispatcher import Affinity, Dispatcher
from cluster.scheduling.drops import skipped_tasks
from cluster.scheduling.schedule import GroupPlan, Schedule
from cluster.scheduling.task_sources import TaskSource
from envs.errors import ConfigError, EngineError, InfraError, first_cause
from envs.tasks import Task
from rollout.episode import Lease, RolloutKind
from rollout.store.ledger_state import DropReason, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_reader import RunReader

_GIVE_UP = 8
"""Episodes lost to infrastructure failures in a row after which the collection stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionSize:
    """How much is collected; group i is the task with number i."""

    tasks: int
    samples: int
    """Episodes per task."""
    seed: int
    """The run's seed."""
    concurrency: int
    """Episodes run at once."""

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return self.tasks * self.samples


class Collection:
    """Runs the episodes that the run directory lacks; stores every finished one at once."""

    def __init__(
        self,
        run: RunDirectory,
        tasks: TaskSource,
        dispatcher: Dispatcher,
        size: CollectionSize,
        affordable: Callable[[], bool] = lambda: True,
    ) -> None:
        """`affordable` returns whether the budget allows another episode."""
        self._run = run
        self._dispatcher = dispatcher
        self._size = size
        self._affordable = affordable
        plan = GroupPlan(kind=RolloutKind.COLLECT, seed=size.seed, samples=size.samples)
        self._schedule = Schedule(run, tasks, plan)
        self._affinities: dict[str, Affinity] = {}
        self._failed_in_a_row = 0
        self._skipped: Counts[str] = Counts()
        self._done = 0

    async def run_all(self, progress: Progress) -> None:
        """Run until nothing is missing or no further episode is affordable; leases then stay open.

        Raises EngineError where the engine is broken, and InfraError where too many episodes in a
        row failed, and ConfigError where no task's prompt has room.
        """
        self._settle()
        todo = self._todo()
        with progress.counter(self._size.episodes, "episodes", self._done) as counter:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._size.concurrency):
                        group.create_task(self._work(todo, counter))
            except BaseExceptionGroup as errors:
                raise first_cause(errors) from None
        await self._run.synced()
        if self._skipped:
            progress.say(skipped_tasks(self._skipped))
        if self._skipped.total() == self._done > 0:
            raise ConfigError(f"no episode could start: {skipped_tasks(self._skipped)}")

    def _settle(self) -> None:
        """End episodes that a kill left finished but not marked as collected."""
        entries = self._run.ledger.entries
        finished = [name for name, entry in entries.items() if entry.state is State.FINISHED]
        if finished:
            self._run.ledger.drop(finished, DropReason.COLLECTED)
        self._done = sum(entry.state is State.DROPPED for entry in entries.values())

    def _todo(self) -> Iterator[tuple[Lease, Task]]:
        """Yield what a killed run left open, then group by group as each is scheduled."""
        for scheduled in self._schedule.resume():
            for lease in scheduled.leases:
                yield lease, scheduled.task
        for number in range(self._size.tasks):
            if not self._schedule.is_scheduled(number):
                scheduled = self._schedule.schedule(number)
                for lease in scheduled.leases:
                    yield lease, scheduled.task

    async def _work(self, todo: Iterator[tuple[Lease, Task]], counter: Counter) -> None:
        while self._affordable() and (work := next(todo, None)) is not None:
            lease, task = work
            near = self._affinities.setdefault(lease.group, Affinity())
            try:
                batch = await self._dispatcher.run_episode(lease, task, near)
            except EngineError:
                if self._affordable():
                    raise
                return
            self._done += 1
            self._note(lease, failed=batch is None)
            counter.advance()

    def _note(self, lease: Lease, *, failed: bool) -> None:
        if not failed:
            self._failed_in_a_row = 0
            self._run.ledger.drop([lease.episode], DropReason.COLLECTED)
            return
        if self._run.ledger.entries[lease.episode].reason is DropReason.PROMPT_TOO_LONG:
            self._skipped[lease.task] += 1
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _GIVE_UP:
            error = RunReader(self._run.path).episode(lease.episode).error
            raise InfraError(
                f"{self._failed_in_a_row} episodes in a row failed, the last: {error}. "
                "Finished episodes are stored; resume with --resume"
            )
