"""Groups in rounds, for reproducible runs: nothing depends on the order of arrival.

Round s is what step s trains. All its episodes are sampled with version s - 1 - max_staleness, 0
where that is negative: weights are pushed only between rounds, when no episode is in flight. Within
a round episodes run concurrently, in any order, on any worker.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from cluster.config.run_config import RunConfig
from cluster.fleet.pool import RolloutPool
from cluster.scheduling.drops import GroupDrops, skipped_tasks
from cluster.scheduling.groups import (
    Group,
    GroupDispatcher,
    LostGroup,
    abandon,
    drop,
    lost_group,
)
from cluster.scheduling.played import LeftGroups, PlayedGroup
from cluster.scheduling.task_sources import TaskSource
from envs.errors import InfraError, first_cause
from rollout.store.ledger_state import DropReason, Entry, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_reader import EpisodeFilter, RunReader
from rollout.weights.manifest import WeightManifest

_NOT_COUNTED = {
    DropReason.INFRA_FAILED,
    DropReason.DEADLINE,
    DropReason.CANCELLED,
    DropReason.PROMPT_TOO_LONG,
}


class Rounds:
    """Runs rounds and hands out complete ones; reproducible runs have it in place of `Rollouts`.

    A round starts with `groups_per_step` groups. Once all of them have arrived, groups without
    variance and groups lost to infrastructure failures are replaced by the next numbers, and so on:
    which groups a step gets depends on their rewards alone. Every round has its own range of group
    numbers, so what one round replaces changes nothing in another.
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
        self._skipped: Counter[str] = Counter()
        self._left = LeftGroups()
        self._steps = config.run.steps
        self._reader = RunReader(run.path)
        self._version = 0
        self._admitted = 0
        self._consumed = 0
        self._running: dict[int, asyncio.Task[list[Group]]] = {}

    @property
    def in_flight(self) -> int:
        """Rounds that were started and have not been collected."""
        return len(self._running)

    def start(self, version: int) -> None:
        """Start rollouts with policy `version`; episodes that are stored are not run again.

        A resumed run lacks the policies of rounds that started before its checkpoint. Without
        staleness there are no such rounds; with it, the missing episodes of up to `max_staleness`
        rounds are sampled with `version`.
        """
        self._version = self._consumed = self._admitted = version
        self._admit()

    async def collect(self, count: int) -> list[Group]:
        """Return the `count` groups of the next step."""
        self._consumed += 1
        groups = await self._running[self._consumed]
        del self._running[self._consumed]
        if len(groups) != count:
            raise InfraError(
                f"expected {count} groups in round {self._consumed}, found {len(groups)}"
            )
        return groups

    def take_left(self, step: int) -> list[PlayedGroup]:
        """Return, once, the groups that were played for `step` and that `collect` did not take."""
        return self._left.take(step)

    async def push_weights(self, manifest: WeightManifest) -> None:
        """Wait for the rounds in flight, push weights, and start the round that they admit."""
        await asyncio.gather(*self._running.values())
        await self._pool.load_weights(manifest)
        self._version = manifest.version
        self._admit()

    async def close(self) -> None:
        """Cancel what is in flight; its leases stay open in the ledger for a resumed run."""
        for running in self._running.values():
            running.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def abandon(self) -> None:
        """End what no step will consume: open leases as cancelled, finished groups as surplus."""
        abandon(self._run.ledger)

    def take_skipped(self) -> str:
        """Return a line about tasks that were skipped since the last call; empty if none were."""
        line, self._skipped = skipped_tasks(self._skipped), Counter()
        return line

    def _admit(self) -> None:
        last = min(self._version + 1 + self._section.max_staleness, self._steps)
        for step in range(self._admitted + 1, last + 1):
            self._running[step] = asyncio.create_task(self._run_round(step), name=f"round-{step}")
            self._admitted = step

    # One round

    async def _run_round(self, step: int) -> list[Group]:
        size, refills = self._section.groups_per_step, self._section.max_refills
        stride = 2 * size + refills
        numbers = iter(range((step - 1) * stride, step * stride))
        drops = GroupDrops(stride)  # the numbers run out before that
        groups: list[Group] = []
        while len(groups) < size:
            wave = [number for _, number in zip(range(size - len(groups)), numbers, strict=False)]
            if not wave:
                raise drops.error(f"failures ended more than {size} groups of round {step}")
            for group in await self._settle_all(wave):
                if isinstance(group, LostGroup):
                    drops.add(group.reason, group.task, self._groups.error_of(group))
                    self._note_skipped(group)
                elif refills > 0 and not group.has_signal(self._learner, self._max_tokens):
                    refills -= 1
                    drops.add(DropReason.ZERO_VARIANCE, group.task)
                    self._leave(group, step)
                else:
                    groups.append(group)
        return groups

    def _leave(self, group: Group, step: int) -> None:
        reason = DropReason.ZERO_VARIANCE
        drop(self._run.ledger, group.episodes, reason, collected_for=step)
        self._left.add(step, group.played(reason))

    def _note_skipped(self, lost: LostGroup) -> None:
        if lost.reason is DropReason.PROMPT_TOO_LONG:
            self._skipped[lost.task] += 1

    async def _settle_all(self, numbers: Sequence[int]) -> list[Group | LostGroup]:
        try:
            async with asyncio.TaskGroup() as wave:
                settling: list[asyncio.Task[Group | LostGroup]] = []
                for number in numbers:
                    await self._pool.places.admitted()
                    settling.append(wave.create_task(self._settle(number)))
                    await asyncio.sleep(0)  # or the loop stands still for thousands of episodes
        except BaseExceptionGroup as errors:
            raise first_cause(errors) from None
        return [group.result() for group in settling]

    async def _settle(self, number: int) -> Group | LostGroup:
        """Return group `number`: stored episodes where there are some, the others run now."""
        ledger, schedule = self._run.ledger, self._groups.schedule
        if not schedule.is_scheduled(number):
            return await self._groups.run_group(schedule.schedule(number))
        name = schedule.name(number)
        stored = self._stored(name, [ledger.entries[episode] for episode in ledger.groups[name]])
        if (scheduled := schedule.resume_group(name)) is not None:
            return await self._groups.run_group(scheduled, stored)
        if sum(batch.num_rows for batch in stored) < 2:
            return lost_group(ledger, name)
        return Group(name, pa.concat_batches(stored))

    def _stored(self, name: str, entries: Sequence[Entry]) -> list[pa.RecordBatch]:
        """Return the episodes that counted, dropped ones included: their rewards did matter."""
        wanted = {
            (entry.lease.episode, entry.lease.attempt)
            for entry in entries
            if entry.state is not State.LEASED and entry.reason not in _NOT_COUNTED
        }
        rows = [
            row
            for row in self._reader.episodes(EpisodeFilter(group=name))
            if (row.episode, row.attempt) in wanted
        ]
        rows.sort(key=lambda row: row.sample_index)
        return [self._reader.batch(rows)] if rows else []
