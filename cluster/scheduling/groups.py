"""Training groups: run on the pool, and assembled in the order of their samples."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from cluster.config.run_config import RunConfig
from cluster.fleet.pool import RolloutPool
from cluster.scheduling.dispatcher import Affinity, Dispatcher
from cluster.scheduling.schedule import GroupPlan, Schedule, ScheduledGroup
from cluster.scheduling.task_sources import TaskSource
from envs.errors import first_cause
from learner.batch import read_episodes
from learner.config import LearnerConfig
from learner.objective.selection import varies
from rollout.episode import RolloutKind
from rollout.store.ledger import Ledger
from rollout.store.ledger_state import DropReason, State
from rollout.store.run_directory import RunDirectory
from rollout.weights.manifest import WeightManifest


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one task that count, ready to be trained on."""

    name: str
    batch: pa.RecordBatch
    planned_step: int | None = None
    """Set when a resumed run trains the group again at the step that trained it before."""

    @property
    def rewards(self) -> np.ndarray:
        """Shape (episodes,), float32."""
        return self.batch["reward"].to_numpy(zero_copy_only=False)

    @property
    def episodes(self) -> list[str]:
        return self.batch["episode"].to_pylist()

    @property
    def oldest_version(self) -> int:
        """Oldest policy version of any sampled token."""
        return int(self.batch["oldest_version"].to_numpy().min())

    def has_signal(self, config: LearnerConfig) -> bool:
        """Whether the rewards that the learner compares differ; if not, every advantage is zero."""
        return varies(read_episodes(pa.Table.from_batches([self.batch])), config)


class GroupSource(Protocol):
    """What the training loop takes its groups from: `Rollouts`, or `Rounds` where a run must be
    reproducible.
    """

    def start(self, version: int) -> None:
        """Start rollouts with policy `version`, first those that a killed run left open."""
        ...

    async def collect(self, count: int) -> list[Group]:
        """Return the `count` groups of the next step."""
        ...

    async def push_weights(self, manifest: WeightManifest) -> None:
        """Push weights to the pool, and start the groups that the new version admits."""
        ...

    async def close(self) -> None:
        """Cancel what is in flight; its leases stay open in the ledger for a resumed run."""
        ...

    def abandon(self) -> None:
        """End what no step will consume: open leases as cancelled, finished groups as surplus."""
        ...


class GroupDispatcher:
    """Schedules training groups by number and runs them on the pool."""

    def __init__(
        self, pool: RolloutPool, tasks: TaskSource, run: RunDirectory, config: RunConfig
    ) -> None:
        self._dispatcher = Dispatcher(pool, run, config.rollouts, config.episode)
        self._run = run
        self.schedule = Schedule(
            run,
            tasks,
            GroupPlan(
                kind=RolloutKind.TRAIN,
                seed=config.run.seed,
                samples=config.rollouts.group_size,
            ),
        )

    async def run_group(
        self, scheduled: ScheduledGroup, stored: Sequence[pa.RecordBatch] = ()
    ) -> Group | None:
        """Run the leases of one group; the episodes come in the order of their samples.

        Returns None, and drops its episodes, for a group of which infrastructure failures left
        fewer than two.
        """
        near = Affinity()
        try:
            async with asyncio.TaskGroup() as group:
                running = [
                    group.create_task(self._dispatcher.run_episode(lease, scheduled.task, near))
                    for lease in scheduled.leases
                ]
        except BaseExceptionGroup as errors:
            raise first_cause(errors) from None
        ran = [episode.result() for episode in running]
        batches = [*stored, *(batch for batch in ran if batch is not None)]
        if sum(batch.num_rows for batch in batches) < 2:
            episodes = [episode for batch in batches for episode in batch["episode"].to_pylist()]
            drop(self._run.ledger, episodes, DropReason.INFRA_FAILED)
            return None
        return Group(scheduled.name, by_sample(batches))


def by_sample(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the episodes of one group as one batch, by sample index."""
    batch = pa.concat_batches(batches)
    order = np.argsort(batch["sample_index"].to_numpy(), kind="stable")
    return batch if (np.diff(order) == 1).all() else batch.take(pa.array(order))


def drop(
    ledger: Ledger, episodes: Sequence[str], reason: DropReason, step: int | None = None
) -> None:
    """End episodes untrained; `step` is the step whose learner left them out. Episodes that were
    dropped before a resume stay as they are.
    """
    remaining = [name for name in episodes if ledger.entries[name].state is not State.DROPPED]
    if remaining:
        ledger.drop(remaining, reason, step)


def abandon(ledger: Ledger) -> None:
    """End what no step will consume: open leases as cancelled, finished groups as surplus."""
    drop(ledger, [lease.episode for lease in ledger.open_leases()], DropReason.CANCELLED)
    surplus = [episode for group in ledger.ready_groups() for episode in group.episodes]
    drop(ledger, surplus, DropReason.SURPLUS)
