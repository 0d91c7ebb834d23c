"""Training groups as they finish: run on the pool, bounded in staleness, recorded as they end."""

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from itertools import count as count_up

import pyarrow as pa

from cluster.config.run_config import RunConfig
from cluster.fleet.pool import RolloutPool
from cluster.scheduling.drops import GroupDrops
from cluster.scheduling.groups import Group, GroupDispatcher, LostGroup, abandon, drop
from cluster.scheduling.played import LeftGroups, PlayedGroup, stored_left
from cluster.scheduling.schedule import ScheduledGroup
from cluster.scheduling.task_sources import TaskSource
from envs.errors import InfraError
from rollout.store.ledger_state import DropReason, LedgerState, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_reader import RunReader
from rollout.weights.manifest import WeightManifest

_PER_TURN = 8
"""Groups that `collect` looks at in one turn of the event loop: a step may have hundreds, and to
compare the rewards of one takes a millisecond.
"""


class Rollouts:
    """Keeps the pool busy and hands out groups.

    A group may start while fewer than (version + 1 + max_staleness) * groups_per_step groups were
    started, dropped ones not counted. So no more are in flight than the next 1 + max_staleness
    steps consume, and groups that arrive in the order in which they started are never too old;
    max_staleness = 0 is strictly on-policy, because a step waits for everything in flight. Above 0
    other groups may overtake one: `collect` drops a group that arrives too old as stale, and starts
    another in its place. A group that a resumed run trains again at its step is exempt.
    """

    def __init__(
        self, pool: RolloutPool, tasks: TaskSource, run: RunDirectory, config: RunConfig
    ) -> None:
        self._pool = pool
        self._groups = GroupDispatcher(pool, tasks, run, config)
        self._run = run
        self._section = config.rollouts
        self._learner = config.learner
        self._max_tokens = config.model.max_model_len
        section = config.rollouts
        limit = section.max_refills + section.max_drops_per_group * section.groups_per_step
        self._drops = GroupDrops(limit)
        self._left = LeftGroups()
        self._version = 0
        self._running: set[asyncio.Task[None]] = set()
        """Groups in flight, and the admission while it lasts."""
        self._failure: BaseException | None = None
        """What ended one of them."""
        self._admission: asyncio.Task[None] | None = None
        self._ready: deque[Group] = deque()
        self._started = 0
        self._next_number = 0
        self._arrived = asyncio.Event()
        self._restore()

    @property
    def in_flight(self) -> int:
        """Groups that were started and have not arrived."""
        return len(self._running)

    async def collect(self, count: int) -> list[Group]:
        """Return `count` groups fresh enough for the next step, replacing useless ones within the
        bounds. Raises ConfigError or InfraError if too many are dropped.
        """
        groups: list[Group] = []
        # A resumed step has used up the refills that it had made before.
        refills = self._left.count(self._version + 1, DropReason.ZERO_VARIANCE)
        for looked_at in count_up(1):
            if len(groups) == count:
                break
            if looked_at % _PER_TURN == 0:
                await asyncio.sleep(0)
            group = await self._next_group()
            if group.planned_step is not None:
                groups.append(group)
            elif group.oldest_version < 0:
                self._drop(group, DropReason.NO_POLICY_TOKENS)
            elif self._version - group.oldest_version > self._section.max_staleness:
                self._drop(group, DropReason.STALE)
            elif refills < self._section.max_refills and not self._has_signal(group):
                refills += 1
                self._drop(group, DropReason.ZERO_VARIANCE)
            else:
                groups.append(group)
        self._drops.end_step()
        return groups

    def take_left(self, step: int) -> list[PlayedGroup]:
        """Return, once, the groups that were played for `step` and that `collect` did not take."""
        return self._left.take(step)

    async def push_weights(self, manifest: WeightManifest) -> None:
        """Push weights to the pool and admit the groups that the new version allows."""
        await self._pool.load_weights(manifest)
        self._version = manifest.version
        self._admit()

    def start(self, version: int) -> None:
        """Start rollouts with policy `version`, first those that were in flight at a kill."""
        self._resume_open_leases()
        self._version = version
        if self._run.ledger.groups:
            reader = RunReader(self._run.path)
            self._left = LeftGroups(stored_left(reader, self._run.ledger, version))
        self._started += version * self._section.groups_per_step
        self._admit()

    async def close(self) -> None:
        """Cancel what is in flight; its leases stay open in the ledger for a resumed run, or end as
        cancelled.
        """
        in_flight = list(self._running)
        for running in in_flight:
            running.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)

    def abandon(self) -> None:
        """End what no step will consume: open leases as cancelled, finished groups as surplus."""
        abandon(self._run.ledger)

    def take_skipped(self) -> str:
        """Return a line about tasks that were skipped since the last call; empty if none were."""
        return self._drops.take_skipped()

    # Admission

    def _admit(self) -> None:
        if self._admission is None or self._admission.done():
            self._admission = self._run_beside(self._launch_allowed())

    async def _launch_allowed(self) -> None:
        """Launch one group per turn of the event loop, which would stand still if a new version
        started thousands of episodes at once.
        """
        while self._started < self._allowed():
            await self._pool.places.admitted()
            number = self._next_number
            self._next_number += 1
            self._launch(self._groups.schedule.schedule(number))
            await asyncio.sleep(0)

    def _allowed(self) -> int:
        return (self._version + 1 + self._section.max_staleness) * self._section.groups_per_step

    def _launch(self, scheduled: ScheduledGroup, stored: Sequence[pa.RecordBatch] = ()) -> None:
        self._started += 1
        self._run_beside(self._run_group(scheduled, stored))

    def _run_beside(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` as a task whose error `collect` raises."""
        running = asyncio.create_task(work)
        self._running.add(running)
        running.add_done_callback(self._ended)
        return running

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        if not running.cancelled():
            self._failure = self._failure or running.exception()
        self._arrived.set()

    def _has_signal(self, group: Group) -> bool:
        return group.has_signal(self._learner, self._max_tokens)

    def _drop(self, group: Group, reason: DropReason) -> None:
        step = self._version + 1
        drop(self._run.ledger, group.episodes, reason, collected_for=step)
        self._left.add(step, group.played(reason))
        self._drops.add(reason, group.task)
        self._replace_one()

    def _replace_one(self) -> None:
        self._started -= 1
        self._admit()

    async def _next_group(self) -> Group:
        while self._failure is not None or not self._ready:
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            if not self._running:
                raise InfraError(
                    "nothing is in flight and no group is ready: the admission bound is exhausted"
                )
            await self._arrived.wait()
        return self._ready.popleft()

    async def _run_group(self, scheduled: ScheduledGroup, stored: Sequence[pa.RecordBatch]) -> None:
        group = await self._groups.run_group(scheduled, stored)
        if isinstance(group, LostGroup):
            self._drops.add(group.reason, group.task, self._groups.error_of(group))
            self._replace_one()
        else:
            self._ready.append(group)
        self._arrived.set()

    # Resume

    def _restore(self) -> None:
        """Take finished groups of an earlier process as ready, and number new ones after its."""
        ledger = self._run.ledger
        if not ledger.groups:
            return
        self._next_number = self._groups.schedule.next_number
        reader = RunReader(self._run.path)
        for ready in ledger.ready_groups():
            self._ready.append(Group(ready.group, reader.group(ready.group), ready.planned_step))
            self._started += 1

    def _resume_open_leases(self) -> None:
        """Launch again what was in flight at a kill; finished samples of its groups count."""
        ledger, reader = self._run.ledger, RunReader(self._run.path)
        for scheduled in self._groups.schedule.resume():
            self._launch(scheduled, _finished(reader, ledger, scheduled.name))


def _finished(reader: RunReader, ledger: LedgerState, group: str) -> list[pa.RecordBatch]:
    states = [ledger.entries[episode].state for episode in ledger.groups[group]]
    return [reader.group(group)] if State.FINISHED in states else []
