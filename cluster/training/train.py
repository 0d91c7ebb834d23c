"""The training loop: collect, step, checkpoint, push."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.config.run_config import RunConfig
from cluster.fleet.ray_session import ray_session, room_for_workers
from cluster.lifecycle.opening import open_run
from cluster.lifecycle.retention import keep_newest
from cluster.progress import Progress
from cluster.running import run_async
from cluster.scheduling.groups import Group
from cluster.training.control import Controls, controlled
from cluster.training.job import Job, open_job, table_of
from envs.tools import JsonObject
from learner.report import StepReport
from rollout.store.run_directory import RunDirectory


class Stopwatch:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap."""
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now


async def train(config: RunConfig, run: RunDirectory, progress: Progress) -> Path:
    """Train as the recipe says and export the policy; returns its Hugging Face folder."""
    async with open_job(config, run) as job:
        await reinforce(job, progress)
        await job.learner.export_model(run.layout.model)
        return run.layout.model


async def reinforce(job: Job, progress: Progress) -> None:
    """Run the remaining steps; the next groups are played while the learner works on these."""
    await job.begin()
    controls = Controls(job.run, job.pool, lambda: room_for_workers(job.config.cluster))
    async with controlled(controls, progress):
        for step in progress.track(range(job.steps_done + 1, job.config.run.steps + 1)):
            await _step(job, step, progress)
    await job.rollouts.close()
    job.rollouts.abandon()


async def _step(job: Job, step: int, progress: Progress) -> None:
    watch = Stopwatch()
    groups = await job.rollouts.collect(job.config.rollouts.groups_per_step)
    watch.lap("collect_s")
    report = await job.learner.rl_step(table_of(groups))
    job.trained(step, groups, report)
    await _checkpoint(job, step)
    watch.lap("learn_s")
    await job.rollouts.load(await job.learner.publish_weights(step))
    watch.lap("push_s")
    metrics = step_row(job, step, groups, report) | watch.laps
    job.run.record_metrics(step, metrics)
    progress.step(step, job.config.run.steps, metrics)


async def _checkpoint(job: Job, step: int) -> None:
    section = job.config.run
    if step % section.checkpoint_every == 0 or step == section.steps:
        await job.learner.save_checkpoint(job.checkpoint(step), step)
        keep_newest(job.run.layout.checkpoints, section.keep_checkpoints)


def step_row(job: Job, step: int, groups: Sequence[Group], report: StepReport) -> dict[str, float]:
    """Return the metrics of one step: the learner's, and what the episodes and the pool say."""
    table = table_of(groups)
    staleness = np.maximum(step - 1 - table["oldest_version"].to_numpy(), 0)
    return {
        **report.metrics,
        "answer_mean": _mean_of(table["reward_parts"], "answer"),
        "trial_calls": _mean_of(table["extra"], "trial_calls"),
        "episodes": float(table.num_rows),
        "staleness_mean": float(staleness.mean()),
        "staleness_max": float(staleness.max()),
        "workers": float(sum(worker.state == "healthy" for worker in job.pool.workers)),
        "worker_losses": float(job.pool.losses),
    }


def _mean_of(maps: pa.ChunkedArray, key: str) -> float:
    """Return the mean of `key` over rows of string-to-number maps."""
    return float(np.mean([dict(row)[key] for row in maps.to_pylist()]))


def run_train(config: RunConfig, *, resume: bool) -> JsonObject:
    """Train, or go on training; returns where the policy is."""
    config.check_trainable()
    progress = Progress()
    with open_run(config, progress, resume=resume) as run, ray_session(config):
        exported = run_async(train(config, run, progress))
    return {"run_dir": str(config.path), "model": str(exported), "steps": config.run.steps}
