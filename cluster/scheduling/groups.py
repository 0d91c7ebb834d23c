"""Groups of episodes: leased by number, played on the pool, put together as they were leased."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.config.run_config import RunConfig
from cluster.fleet.pool import RolloutPool
from cluster.scheduling.player import Affinity, Player
from cluster.scheduling.task_stream import TaskStream
from envs.errors import first_cause
from envs.seeds import stable_hash
from envs.tasks import Task
from learner.batch import read_episodes
from learner.config import LearnerConfig
from learner.objective.selection import varies
from rollout.episode import Lease
from rollout.store.ledger import Ledger
from rollout.store.ledger_state import DropReason, State
from rollout.store.run_directory import RunDirectory


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

    def teaches(self, config: LearnerConfig) -> bool:
        """Whether what the learner compares differs: without, no advantage is other than zero."""
        return varies(read_episodes(pa.Table.from_batches([self.batch])), config)


class GroupPlayer:
    """Leases and plays groups; the group of a number has the same task and seeds in every run."""

    def __init__(
        self, pool: RolloutPool, stream: TaskStream, run: RunDirectory, config: RunConfig
    ) -> None:
        self._player = Player(pool, run, config.rollouts, config.episode)
        self._stream = stream
        self._run = run
        self._seed = config.run.seed
        self._group_size = config.rollouts.group_size

    def task(self, number: int) -> Task:
        """Return the task of group `number`."""
        return self._stream[number]

    def lease(self, number: int) -> list[Lease]:
        """Schedule group `number` in the ledger."""
        run, group, task = self._run.run.run, group_name(number), self._stream[number]
        leases = [
            Lease(
                run,
                f"{group}-{i:02d}",
                group,
                task.id,
                i,
                0,
                stable_hash(self._seed, group, task.id, i),
            )
            for i in range(self._group_size)
        ]
        self._run.ledger.lease(leases)
        return leases

    async def play(
        self, leases: Sequence[Lease], task: Task, stored: Sequence[pa.RecordBatch] = ()
    ) -> Group | None:
        """Play the leases of one group; the episodes come in the order of their samples.

        Returns None, its episodes dropped, for a group that the world left fewer than two of.
        """
        near = Affinity()
        try:
            async with asyncio.TaskGroup() as group:
                playing = [
                    group.create_task(self._player.play(lease, task, near)) for lease in leases
                ]
        except BaseExceptionGroup as errors:
            raise first_cause(errors) from None
        played = [episode.result() for episode in playing]
        batches = [*stored, *(batch for batch in played if batch is not None)]
        if sum(batch.num_rows for batch in batches) < 2:
            episodes = [episode for batch in batches for episode in batch["episode"].to_pylist()]
            drop(self._run.ledger, episodes, DropReason.INFRA_FAILED)
            return None
        return Group(leases[0].group, by_sample(batches))


def group_name(number: int) -> str:
    """Return the name of training group `number`."""
    return f"g{number:06d}"


def by_sample(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the episodes of one group as one batch, by sample index."""
    batch = pa.concat_batches(batches)
    order = np.argsort(batch["sample_index"].to_numpy(), kind="stable")
    return batch if (np.diff(order) == 1).all() else batch.take(pa.array(order))


def drop(
    ledger: Ledger, episodes: Sequence[str], reason: DropReason, step: int | None = None
) -> None:
    """End episodes untrained, `step` being that whose learner left them out; those that were
    dropped before a resume stay as they are.
    """
    left = [episode for episode in episodes if ledger.entries[episode].state is not State.DROPPED]
    if left:
        ledger.drop(left, reason, step)


def abandon(ledger: Ledger) -> None:
    """End what no step will consume: open leases as cancelled, finished groups as surplus."""
    drop(ledger, [lease.episode for lease in ledger.open_leases()], DropReason.CANCELLED)
    surplus = [episode for group in ledger.ready_groups() for episode in group.episodes]
    drop(ledger, surplus, DropReason.SURPLUS)
