"""Groups in rounds, for runs that must come out the same: nothing depends on what arrives first.

Round s is what step s trains. All its episodes are sampled with version s - 1 - max_staleness, 0
where that is negative: weights are pushed only between rounds, when no episode is in flight. Within
a round episodes run at once, in any order, on any worker.
"""

import asyncio
from collections.abc import Sequence

import pyarrow as pa

from cluster.config.run_config import RunConfig
from cluster.fleet.pool import RolloutPool
from cluster.scheduling.groups import Group, GroupPlayer, abandon, drop, group_name
from cluster.scheduling.task_stream import TaskStream
from envs.errors import InfraError, first_cause
from rollout.store.ledger_state import DropReason, Entry, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_reader import EpisodeFilter, RunReader
from rollout.weights.manifest import WeightManifest

_BY_THE_WORLD = {DropReason.INFRA_FAILED, DropReason.DEADLINE, DropReason.CANCELLED}


class Rounds:
    """Plays rounds and hands them out whole; what `Rollouts` is for other runs.

    A round begins with `groups_per_step` groups. Those without variance, and those that the world
    ruined, are replaced once all of them are there, by number, and so on: which groups a step gets
    follows from their rewards alone. A round has a range of group numbers of its own, so that what
    one round replaces changes nothing in another.
    """

    def __init__(
        self, pool: RolloutPool, stream: TaskStream, run: RunDirectory, config: RunConfig
    ) -> None:
        self._pool = pool
        self._groups = GroupPlayer(pool, stream, run, config)
        self._run = run
        self._section = config.rollouts
        self._learner = config.learner
        self._steps = config.run.steps
        self._reader = RunReader(run.path)
        self._version = 0
        self._admitted = 0
        self._consumed = 0
        self._playing: dict[int, asyncio.Task[list[Group]]] = {}

    def start(self, version: int) -> None:
        """Begin to play, the pool's policy being `version`; what was recorded is not played again.

        A resumed run finds the policies of rounds that began before its checkpoint gone: without
        staleness there are none, else what is left of up to `max_staleness` rounds comes from
        `version`.
        """
        self._version = self._consumed = self._admitted = version
        self._admit()

    async def collect(self, count: int) -> list[Group]:
        """Return the `count` groups of the next step."""
        self._consumed += 1
        groups = await self._playing[self._consumed]
        del self._playing[self._consumed]
        if len(groups) != count:
            raise InfraError(
                f"expected {count} groups in round {self._consumed}, found {len(groups)}"
            )
        return groups

    async def load(self, manifest: WeightManifest) -> None:
        """Wait for the rounds in flight, push weights, and begin the round that they allow."""
        await asyncio.gather(*self._playing.values())
        await self._pool.load_weights(manifest)
        self._version = manifest.version
        self._admit()

    async def close(self) -> None:
        """Cancel what is in flight; its leases stay open in the ledger for a resumed run."""
        for playing in self._playing.values():
            playing.cancel()
        await asyncio.gather(*self._playing.values(), return_exceptions=True)

    def abandon(self) -> None:
        """End what no step will consume: open leases as cancelled, finished groups as surplus."""
        abandon(self._run.ledger)

    def _admit(self) -> None:
        last = min(self._version + 1 + self._section.max_staleness, self._steps)
        for step in range(self._admitted + 1, last + 1):
            self._playing[step] = asyncio.create_task(self._play_round(step), name=f"round-{step}")
            self._admitted = step

    # One round

    async def _play_round(self, step: int) -> list[Group]:
        size, refills = self._section.groups_per_step, self._section.max_refills
        stride = 2 * size + refills
        numbers = iter(range((step - 1) * stride, step * stride))
        groups: list[Group] = []
        while len(groups) < size:
            wave = [number for _, number in zip(range(size - len(groups)), numbers, strict=False)]
            if not wave:
                raise InfraError(
                    f"the world ruined more than {size} groups of round {step}: see the ledger for "
                    "why, then resume"
                )
            for group in await self._settle_all(wave):
                if group is None:
                    continue
                if not group.teaches(self._learner) and refills > 0:
                    refills -= 1
                    drop(self._run.ledger, group.episodes, DropReason.ZERO_VARIANCE)
                    continue
                groups.append(group)
        return groups

    async def _settle_all(self, numbers: Sequence[int]) -> list[Group | None]:
        try:
            async with asyncio.TaskGroup() as wave:
                settling = [wave.create_task(self._settle(number)) for number in numbers]
        except BaseExceptionGroup as errors:
            raise first_cause(errors) from None
        return [group.result() for group in settling]

    async def _settle(self, number: int) -> Group | None:
        """Return group `number`: from the store as far as it is there, the rest played."""
        ledger, name = self._run.ledger, group_name(number)
        if name not in ledger.groups:
            return await self._groups.play(self._groups.lease(number), self._groups.task(number))
        entries = [ledger.entries[episode] for episode in ledger.groups[name]]
        stored = self._stored(name, entries)
        missing = [entry.lease.episode for entry in entries if entry.state is State.LEASED]
        if missing:
            again = [ledger.re_lease(episode, "the run was resumed") for episode in missing]
            return await self._groups.play(again, self._groups.task(number), stored)
        if sum(batch.num_rows for batch in stored) < 2:
            return None
        return Group(name, pa.concat_batches(stored))

    def _stored(self, name: str, entries: Sequence[Entry]) -> list[pa.RecordBatch]:
        """Return the episodes that counted, dropped ones included: their rewards did matter."""
        wanted = {
            (entry.lease.episode, entry.lease.attempt)
            for entry in entries
            if entry.state is not State.LEASED and entry.reason not in _BY_THE_WORLD
        }
        rows = [
            row
            for row in self._reader.episodes(EpisodeFilter(group=name))
            if (row.episode, row.attempt) in wanted
        ]
        rows.sort(key=lambda row: row.sample_index)
        return [self._reader.batch(rows)] if rows else []
