"""The training loop: collect, step, checkpoint, push."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from cluster.config import RunConfig
from cluster.job import Job, open_job, table_of
from cluster.progress import Progress
from cluster.retention import keep_newest
from cluster.rollouts import Group
from learner.report import StepReport


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds that one step spent waiting for episodes, learning, and pushing weights."""

    collect_s: float
    learn_s: float
    push_s: float


async def train(config: RunConfig, progress: Progress, *, resume: bool = False) -> Path:
    """Train as the recipe says and export the policy; returns its Hugging Face folder.

    Episodes of the next step are played while the learner works, within `rollouts.max_staleness`.
    """
    config.check_trainable()
    async with open_job(config, resume=resume) as job:
        for step in range(job.first_step, config.run.steps + 1):
            began = time.monotonic()
            groups = await job.rollouts.collect(config.rollouts.groups_per_step)
            collected = time.monotonic()
            report = await job.learner.step(table_of(groups))
            job.trained(step, groups, report)
            await _checkpoint(job, step)
            learnt = time.monotonic()
            await job.rollouts.load(await job.learner.publish(step))
            clock = Clock(collected - began, learnt - collected, time.monotonic() - learnt)
            metrics = step_row(job, step, groups, report, clock)
            job.run.record_metrics(step, metrics)
            progress.step(step, config.run.steps, metrics)
        await job.rollouts.close()
        job.rollouts.abandon()
        exported = config.path / "model"
        await job.learner.export(exported)
        return exported


async def _checkpoint(job: Job, step: int) -> None:
    section = job.config.run
    if step % section.checkpoint_every == 0 or step == section.steps:
        await job.learner.save(job.checkpoint(step), step)
        keep_newest(job.run.layout.checkpoints, section.keep_checkpoints)


def step_row(
    job: Job, step: int, groups: Sequence[Group], report: StepReport, clock: Clock
) -> dict[str, float]:
    """Return the metrics of one step: the learner's, and what the episodes and the pool say."""
    table = table_of(groups)
    staleness = np.maximum(step - 1 - table["oldest_version"].to_numpy(), 0)
    answers = pc.map_lookup(table["reward_parts"], "answer", "first").to_numpy()
    trials = pc.map_lookup(table["extra"], "trial_calls", "first").to_numpy()
    return {
        **report.metrics,
        "answer_mean": float(np.mean(answers)),
        "trial_calls": float(np.mean(trials)),
        "episodes": float(table.num_rows),
        "staleness_mean": float(staleness.mean()),
        "staleness_max": float(staleness.max()),
        "workers": float(sum(worker.state == "healthy" for worker in job.pool.workers)),
        "worker_losses": float(job.pool.losses),
        "collect_s": clock.collect_s,
        "learn_s": clock.learn_s,
        "push_s": clock.push_s,
    }
