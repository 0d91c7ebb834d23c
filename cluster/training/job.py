"""A running training job: run directory, learner, pool and rollouts, opened and closed together."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from cluster.config.run_config import RunConfig
from cluster.fleet.learner_group import LearnerGroup
from cluster.fleet.open_pool import open_pool
from cluster.fleet.pool import RolloutPool
from cluster.fleet.survivors.taking_over import finished_meanwhile
from cluster.lifecycle.inputs import RunInputs
from cluster.lifecycle.retention import checkpoint_path, newest_checkpoint
from cluster.lifecycle.trust import signing_of
from cluster.scheduling.groups import Group, GroupSource, drop
from cluster.scheduling.rollouts import Rollouts
from cluster.scheduling.rounds import Rounds
from cluster.scheduling.task_sources import training_tasks
from cluster.sinks.choosing import open_sinks
from cluster.sinks.sink import NO_SINKS, Sinks
from learner.report import StepReport
from rollout.episode import Outcome
from rollout.store.ledger_state import DropReason
from rollout.store.run_directory import RunDirectory

logger = logging.getLogger("trialrun")

_SLOW_DISK_S = 5.0
"""A step's writes take milliseconds; from here on the log says that they take long."""


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that the training loop uses."""

    config: RunConfig
    run: RunDirectory
    pool: RolloutPool
    rollouts: GroupSource
    learner: LearnerGroup
    resumed_from: Path | None
    """Checkpoint that the run resumes from; None starts from the recipe's model."""
    sinks: Sinks = NO_SINKS
    """Where metrics go beside the run directory."""

    @property
    def steps_done(self) -> int:
        """Steps count from 1; step s makes policy version s."""
        return int(self.resumed_from.name) if self.resumed_from else 0

    async def start(self) -> None:
        """Bring learner and pool to the weights that the run continues from; start rollouts."""
        if self.resumed_from is not None:
            await self.learner.load_checkpoint(self.resumed_from)
        if self.resumed_from is not None or self.pool.holds_pushed_weights:
            await self.pool.load_weights(await self.learner.publish_weights(self.steps_done))
        self.rollouts.start(self.steps_done)

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of `step`."""
        return checkpoint_path(self.run.layout.checkpoints, step)

    async def record_step(self, step: int, groups: Sequence[Group], report: StepReport) -> None:
        """Record the outcome of every episode of `step`; it is on the disk when this returns, and
        the checkpoint of the step comes after it. Raises StoreError, DeadlineError.
        """
        dropped = {episode: DropReason(reason) for episode, reason in report.dropped}
        for reason in sorted(set(dropped.values())):
            drop(self.run.ledger, [e for e in dropped if dropped[e] is reason], reason, step)
        given = [episode for group in groups for episode in group.episodes]
        self.run.ledger.train(step, [episode for episode in given if episode not in dropped])
        if report.annotations is not None:
            self.run.annotate(step, report.annotations)
        began = time.monotonic()
        await self.run.synced()
        if (took_s := time.monotonic() - began) > _SLOW_DISK_S:
            logger.warning(
                "step %d: the disk of %s took %.0f s to write what was queued: it is slow",
                step,
                self.run.path,
                took_s,
            )
        self.run.ledger.archive_settled()


async def accept_finished(run: RunDirectory, rows: Sequence[pa.RecordBatch]) -> None:
    """Store the episodes (one row each) that workers finished while the run had no driver; those
    that the ledger waits for no longer are left out. Raises StoreError.
    """
    accepted = 0
    for row in rows:
        entry = run.ledger.entries.get(row["episode"][0].as_py())
        if entry is None:
            continue
        lease = replace(entry.lease, attempt=row["attempt"][0].as_py())
        if run.ledger.accepts(lease):
            await run.store(row)
            if Outcome(row["outcome"][0].as_py()).counts:
                run.ledger.finish(lease)
                accepted += 1
    await run.synced()  # what restores finished groups reads them from the files
    if accepted:
        logger.warning("%d episodes were finished while the run had no driver", accepted)


def table_of(groups: Sequence[Group]) -> pa.Table:
    """Return the episodes of all groups as one table."""
    return pa.Table.from_batches([group.batch for group in groups])


@asynccontextmanager
async def open_job(inputs: RunInputs, run: RunDirectory) -> AsyncIterator[Job]:
    """Start everything that the training of `run` needs."""
    async with (
        open_pool(inputs.config, inputs.model, run.path) as pool,
        open_job_on(pool, inputs, run) as job,
    ):
        yield job


@asynccontextmanager
async def open_job_on(
    pool: RolloutPool, inputs: RunInputs, run: RunDirectory
) -> AsyncIterator[Job]:
    """Start what the training of `run` needs beside `pool`, which may have served another job.

    The pool's engines must have been started with the recipe's `[model]` and `[engine]`.
    """
    config = inputs.config
    tasks = training_tasks(config, inputs.environment)
    checkpoint = newest_checkpoint(run.layout.checkpoints)
    learner = LearnerGroup(config, str(inputs.model), signing=signing_of(run.layout))
    try:
        await learner.check_folder(run.path)
        await asyncio.gather(learner.start(), pool.wait_healthy())
        await accept_finished(run, await finished_meanwhile(pool.workers))
        source = Rounds if config.run.deterministic else Rollouts
        rollouts = source(pool, tasks, run, config)
        try:
            with open_sinks(config, run.layout) as sinks:
                yield Job(config, run, pool, rollouts, learner, checkpoint, sinks)
        finally:
            await rollouts.close()
    finally:
        pool.forget_weights()
        await learner.close()
