"""One scheduled episode, from the workers to the run directory, retried after infrastructure
failures.
"""

from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from cluster.config.run_config import RolloutsSection
from cluster.fleet.health.losses import LossKind
from cluster.fleet.pool import RolloutPool, WorkerLost
from envs.errors import InfraError
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.episode import Lease, Outcome
from rollout.kept_turns import KeptTurns, TurnsNotKept
from rollout.store.ledger_state import DropReason, ReLeaseReason
from rollout.store.run_directory import RunDirectory

MAX_LOSSES = 20
"""Lost workers after which an episode is taken for the cause of their loss."""

_LOSSES_KEPT = 3
"""Lost workers after which an episode starts anew: its turns may be what ends them."""

_REASONS = {
    Outcome.INFRA_FAILED: DropReason.INFRA_FAILED,
    Outcome.DEADLINE: DropReason.DEADLINE,
    Outcome.PROMPT_TOO_LONG: DropReason.PROMPT_TOO_LONG,
}


@dataclass(slots=True)
class Affinity:
    """The worker that the episodes of a group prefer: its prefix cache holds their prompt."""

    worker: str = ""


class EpisodeWorkers(Protocol):
    """What runs episodes: a RolloutPool, or a teacher in this process."""

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        """Return the episode (one row) and its worker. Raises WorkerLost, EngineError."""
        ...


class Dispatcher:
    """Sends scheduled episodes to workers and records their outcomes."""

    def __init__(
        self,
        workers: EpisodeWorkers,
        run: RunDirectory,
        section: RolloutsSection,
        episode: EpisodeConfig,
    ) -> None:
        self._workers = workers
        self._run = run
        self._section = section
        self._episode = episode

    async def run_episode(self, lease: Lease, task: Task, near: Affinity) -> pa.RecordBatch | None:
        """Return the stored episode (one row) that counts; None after too many infrastructure
        failures, or if the task's prompt has no room.

        Every attempt that ended is stored. The loss of a worker does not use up an attempt. Raises
        InfraError after MAX_LOSSES lost workers, StoreError where it cannot be stored.
        """
        ledger = self._run.ledger
        losses, failures = 0, 0
        kept: KeptTurns | None = None
        while True:
            try:
                batch, near.worker = await self._played(lease, task, near.worker, kept)
            except WorkerLost as error:
                drained = error.kind is LossKind.DRAINED
                losses += not drained
                if losses > MAX_LOSSES:
                    raise InfraError(
                        f"episode {lease.episode} lost {losses} workers: {error}"
                    ) from error
                kept = error.kept if losses <= _LOSSES_KEPT and _replayable(task) else None
                lease = ledger.re_lease(
                    lease.episode,
                    f"worker lost: {error}"[:200],
                    ReLeaseReason.DRAINED if drained else ReLeaseReason.WORKER_LOST,
                    len(kept.turns) if kept is not None else 0,
                )
                continue
            except TurnsNotKept as error:
                kept, why = None, str(error)[:200]
                lease = ledger.re_lease(lease.episode, why, ReLeaseReason.NOT_REPLAYED)
                continue
            kept = None
            await self._run.store(batch)
            outcome = Outcome(batch["outcome"][0].as_py())
            if outcome.counts:
                ledger.finish(lease)
                return batch
            failures += 1
            hopeless = outcome is Outcome.PROMPT_TOO_LONG  # it would have the same prompt again
            if hopeless or failures >= self._section.max_attempts:
                ledger.drop([lease.episode], _REASONS.get(outcome, DropReason.CANCELLED))
                return None
            lease = ledger.re_lease(lease.episode, outcome.value, ReLeaseReason.FAILED)

    async def _played(
        self, lease: Lease, task: Task, prefer: str, kept: KeptTurns | None
    ) -> tuple[pa.RecordBatch, str]:
        if kept is None:
            return await self._workers.run_episode(lease, task, self._episode, prefer)
        workers = self._workers
        assert isinstance(workers, RolloutPool), "only a pool loses workers and keeps turns"
        return await workers.run_episode(lease, task, self._episode, prefer, kept)


def _replayable(task: Task) -> bool:
    """Whether the state of a task's tools can be made again: other systems see every call twice."""
    return task.tool_set.root.sandboxed
