"""Training groups: run on the pool, and assembled in the order of their samples."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa

from cluster.config.run_config import RunConfig
from cluster.fleet.pool import RolloutPool
from cluster.scheduling.dispatcher import Affinity, Dispatcher
from cluster.scheduling.played import PlayedGroup, played_group
from cluster.scheduling.schedule import GroupPlan, Schedule, ScheduledGroup
from cluster.scheduling.task_sources import TaskSource
from envs.errors import first_cause
from learner.batch import EpisodeBatch, read_episodes
from learner.config import LearnerConfig
from learner.objective.selection import varies
from rollout.episode import RolloutKind
from rollout.store.ledger import Ledger
from rollout.store.ledger_state import DropReason, LedgerState, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_reader import RunReader
from rollout.weights.manifest import WeightManifest


@dataclass(frozen=True)  # without slots, which leave no room for what is computed once
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
        """Oldest policy version of any sampled token; -1 if none was sampled."""
        versions = self.batch["oldest_version"].to_numpy()
        return int(min(versions[versions >= 0], default=-1))

    @property
    def task(self) -> str:
        """Id of the task."""
        return str(self.batch["task"][0].as_py())

    def has_signal(self, config: LearnerConfig, max_tokens: int | None = None) -> bool:
        """Whether the rewards that the learner compares differ; if not, every advantage is zero.

        `max_tokens` is the longest episode that the learner takes.
        """
        return varies(self._columns, config, max_tokens)

    def played(self, reason: DropReason | None = None) -> PlayedGroup:
        """Return what the group says about the policy; `reason` is why a step did not take it."""
        return played_group(self.name, self.batch, self._columns.credit, reason)

    @cached_property
    def _columns(self) -> EpisodeBatch:
        return read_episodes(pa.Table.from_batches([self.batch]))


@dataclass(frozen=True, slots=True)
class LostGroup:
    """A group of which fewer than two episodes count; its episodes are dropped already."""

    task: str
    reason: DropReason
    """Why most of its episodes do not count."""
    episode: str
    """One of those."""


class GroupSource(Protocol):
    """What the training loop takes its groups from: `Rollouts`, or `Rounds` where a run must be
    reproducible.
    """

    @property
    def in_flight(self) -> int:
        """Groups (or rounds of them) that were started and have not arrived."""
        ...

    def start(self, version: int) -> None:
        """Start rollouts with policy `version`, first those that a killed run left open."""
        ...

    async def collect(self, count: int) -> list[Group]:
        """Return the `count` groups of the next step."""
        ...

    def take_left(self, step: int) -> list[PlayedGroup]:
        """Return, once, the groups that were played for `step` and that `collect` did not take."""
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

    def take_skipped(self) -> str:
        """Return a line about tasks that were skipped since the last call; empty if none were."""
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
    ) -> Group | LostGroup:
        """Run the leases of one group; the episodes come in the order of their samples.

        Drops the remaining episodes of a group of which fewer than two count.
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
            lost = lost_group(self._run.ledger, scheduled.name)
            episodes = [episode for batch in batches for episode in batch["episode"].to_pylist()]
            drop(self._run.ledger, episodes, lost.reason)
            return lost
        return Group(scheduled.name, by_sample(batches))

    def error_of(self, lost: LostGroup) -> str:
        """Return what went wrong with the episode that `lost` names."""
        return RunReader(self._run.path).episode(lost.episode).error if lost.episode else ""


def lost_group(ledger: LedgerState, group: str) -> LostGroup:
    """Return why a group of which fewer than two episodes count was lost."""
    entries = [ledger.entries[episode] for episode in ledger.groups[group]]
    dropped = [entry for entry in entries if entry.reason is not None]
    reasons = Counter(entry.reason for entry in dropped)
    reason = reasons.most_common(1)[0][0] if reasons else None
    episode = next((e.lease.episode for e in dropped if e.reason is reason), "")
    return LostGroup(entries[0].lease.task, reason or DropReason.INFRA_FAILED, episode)


def by_sample(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the episodes of one group as one batch, by sample index."""
    batch = pa.concat_batches(batches)
    order = np.argsort(batch["sample_index"].to_numpy(), kind="stable")
    return batch if (np.diff(order) == 1).all() else batch.take(pa.array(order))


def drop(
    ledger: Ledger,
    episodes: Sequence[str],
    reason: DropReason,
    step: int | None = None,
    collected_for: int | None = None,
) -> None:
    """End episodes untrained; `step` is the step whose learner left them out, `collected_for` the
    one that played their group and did not take it. Episodes that were dropped before a resume stay
    as they are.
    """
    remaining = [name for name in episodes if ledger.entries[name].state is not State.DROPPED]
    if remaining:
        ledger.drop(remaining, reason, step, collected_for)


def abandon(ledger: Ledger) -> None:
    """End what no step will consume: open leases as cancelled, finished groups as surplus."""
    drop(ledger, [lease.episode for lease in ledger.open_leases()], DropReason.CANCELLED)
    surplus = [episode for group in ledger.ready_groups() for episode in group.episodes]
    drop(ledger, surplus, DropReason.SURPLUS)
