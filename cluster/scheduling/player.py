"""One leased episode, from the pool to the run directory, tried again when the world fails it."""

from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from cluster.config.run_config import RolloutsSection
from cluster.fleet.pool import WorkerLost
from envs.errors import InfraError
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.episode import Lease, Outcome
from rollout.store.ledger_state import DropReason
from rollout.store.run_directory import RunDirectory

MAX_LOSSES = 20
"""Workers that one episode may outlive before it is taken for what kills them."""

_REASONS = {Outcome.INFRA_FAILED: DropReason.INFRA_FAILED, Outcome.DEADLINE: DropReason.DEADLINE}


@dataclass(slots=True)
class Affinity:
    """The worker that a group's episodes share, for the sake of its prefix cache."""

    worker: str = ""


class Actors(Protocol):
    """Who plays episodes: a RolloutPool, or a teacher in this process."""

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        """Return the episode (one row) and who played it. Raises WorkerLost, EngineError."""
        ...


class Player:
    """Plays leases and records what became of them."""

    def __init__(
        self, pool: Actors, run: RunDirectory, section: RolloutsSection, episode: EpisodeConfig
    ) -> None:
        self._pool = pool
        self._run = run
        self._section = section
        self._episode = episode

    async def play(self, lease: Lease, task: Task, near: Affinity) -> pa.RecordBatch | None:
        """Return the stored episode (one row) that counts; None when the world failed it too often.

        Every attempt that ended is stored. A lost worker is no attempt of the episode's own.
        """
        ledger = self._run.ledger
        losses, failures = 0, 0
        while True:
            try:
                batch, near.worker = await self._pool.run_episode(
                    lease, task, self._episode, near.worker
                )
            except WorkerLost as error:
                losses += 1
                if losses > MAX_LOSSES:
                    raise InfraError(
                        f"episode {lease.episode} lost {losses} workers: {error}"
                    ) from error
                lease = ledger.re_lease(lease.episode, f"worker lost: {error}"[:200])
                continue
            self._run.append(batch)
            outcome = Outcome(batch["outcome"][0].as_py())
            if outcome.counts:
                ledger.finish(lease)
                return batch
            failures += 1
            if failures >= self._section.max_attempts:
                ledger.drop([lease.episode], _REASONS.get(outcome, DropReason.CANCELLED))
                return None
            lease = ledger.re_lease(lease.episode, outcome.value)
