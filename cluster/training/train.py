"""The training loop: collect, step, checkpoint, push."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cluster.config.fleet_config import DEFAULT_GROUP
from cluster.config.run_config import RunConfig
from cluster.fleet.open_pool import open_pool
from cluster.fleet.placement.demand import demand_of, missing_resources, room_for_workers
from cluster.fleet.placement.worker_place import workers_wanted
from cluster.fleet.pool import RolloutPool
from cluster.fleet.ray_session import ray_session
from cluster.fleet.survivors.lasting import lasting_key
from cluster.jobs.directories import RUN_DIRECTORY_IS
from cluster.lifecycle.inputs import RunInputs, resolve_inputs
from cluster.lifecycle.model_checks import check_serving, check_training
from cluster.lifecycle.opening import Resume, prepare_run
from cluster.lifecycle.retention import keep_newest, newest_checkpoint
from cluster.lifecycle.stored_config import stored_config
from cluster.progress import Progress
from cluster.running import free_memory, run_async
from cluster.scheduling.groups import Group
from cluster.scheduling.played import PlayedGroup
from cluster.scheduling.prompt_check import check_some_prompts
from cluster.scheduling.task_sources import training_tasks
from cluster.scheduling.tool_check import say_of_tools, training_sample
from cluster.sinks.choosing import check_sinks
from cluster.training.activity import Part
from cluster.training.control import Controls, controlled
from cluster.training.job import Job, open_job_on, table_of
from cluster.training.learner_restarts import unless_lost, with_restarts
from cluster.training.observing import Observer, observed
from cluster.training.requested_checkpoints import RequestedCheckpoints
from cluster.training.step_metrics import (
    mismatch_by_staleness,
    played_metrics,
    staleness_metrics,
)
from envs.tools import JsonObject
from learner.outputs.digest import push_metrics
from learner.report import StepReport
from rollout.evaluation.lost_attempts import lost_attempts
from rollout.store.control import scaled_to
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_reader import RunReader


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


async def train(inputs: RunInputs, run: RunDirectory, progress: Progress) -> Path:
    """Train as the recipe describes and export the policy; returns its Hugging Face folder."""
    on_cluster = bool(os.environ.get("RAY_ADDRESS", "").strip())  # else Ray ends with this command
    key = lasting_key(run.path, run.info.created_at) if on_cluster else ""
    async with open_pool(inputs.config, inputs.model, run.path, key=key) as pool:
        return await train_on(pool, inputs, run, progress)


async def train_on(
    pool: RolloutPool, inputs: RunInputs, run: RunDirectory, progress: Progress
) -> Path:
    """Train on the workers of `pool`; a lost learner starts anew beside them."""
    checkpoints = run.layout.checkpoints
    started = False

    async def attempt() -> Path:
        nonlocal started
        if started:
            run.sync()
            newest = newest_checkpoint(checkpoints)
            run.recover(int(newest.name) if newest else 0)
        started = True
        async with open_job_on(pool, inputs, run) as job:
            return await unless_lost(_train_and_export(job, progress), job.learner)

    restarts = inputs.config.cluster.learner_restarts
    return await with_restarts(attempt, lambda: newest_checkpoint(checkpoints), restarts, progress)


async def _train_and_export(job: Job, progress: Progress) -> Path:
    await train_steps(job, progress)
    progress.phase("exporting the model")
    await job.learner.export_model(job.run.layout.model)
    return job.run.layout.model


async def train_steps(job: Job, progress: Progress) -> None:
    """Run the remaining steps; rollouts of the next groups continue while the learner works."""
    async with observed(job, progress) as observer:
        await job.start()
        steps = range(job.steps_done + 1, job.config.run.steps + 1)
        progress.phase(f"RL: {len(steps)} steps of {job.config.rollouts.groups_per_step} groups")
        requested = RequestedCheckpoints(partial(_save, job, observer), job.steps_done)
        room = partial(room_for_workers, job.config)
        async with controlled(Controls(job.run, job.pool, room, requested), progress):
            for step in progress.track(steps):
                await _step(job, step, progress, observer, requested)
        job.pool.places.resume()  # others may use the pool after this job
    await job.rollouts.close()
    job.rollouts.abandon()


async def _step(
    job: Job,
    step: int,
    progress: Progress,
    observer: Observer,
    requested: RequestedCheckpoints,
) -> None:
    watch, activity = Stopwatch(), observer.activity
    activity.enter(Part.COLLECT, step)
    groups_per_step = job.config.rollouts.groups_per_step
    groups = await requested.while_waiting(step, job.rollouts.collect(groups_per_step))
    watch.lap("collect_s")
    if skipped := job.rollouts.take_skipped():
        progress.say(f"step {step}: {skipped}")
    saves = _saves_checkpoint(job, step)
    activity.enter(Part.LEARN, step)
    report = await job.learner.rl_step(
        table_of(groups), digest_weights=saves or job.config.run.deterministic
    )
    activity.enter(Part.RECORD, step)
    await job.record_step(step, groups, report)
    row = await step_row(job, step, groups, report)
    if saves:
        job.run.record_metrics(
            step, row
        )  # who resumes from the checkpoint does not repeat the step
        activity.enter(Part.CHECKPOINT, step)
        await _checkpoint(job, step)
        requested.note(step)
    watch.lap("learn_s")
    activity.enter(Part.PUBLISH, step)
    manifest = await job.learner.publish_weights(step)
    activity.enter(Part.PUSH, step)
    await job.rollouts.push_weights(manifest)
    watch.lap("push_s")
    metrics = row | push_metrics(manifest) | watch.laps
    metrics["stalled_s"] = observer.stalls.take_stalled_s()
    metrics["step_s"] = sum(watch.laps.values())
    metrics["sampled_tokens_per_s"] = metrics["sampled_tokens"] / metrics["step_s"]
    await asyncio.to_thread(free_memory)
    job.run.record_metrics(step, metrics)
    job.sinks.record(step, metrics)
    progress.step(step, job.config.run.steps, metrics)


def _saves_checkpoint(job: Job, step: int) -> bool:
    section = job.config.run
    return step % section.checkpoint_every == 0 or step == section.steps


async def _checkpoint(job: Job, step: int) -> None:
    await job.learner.save_checkpoint(job.checkpoint(step), step)
    keep_newest(job.run.layout.checkpoints, job.config.run.keep_checkpoints)


async def _save(job: Job, observer: Observer, step: int) -> None:
    """Take the checkpoint of `step` while the groups of the next one are awaited."""
    observer.activity.enter(Part.CHECKPOINT, step)
    await _checkpoint(job, step)
    observer.activity.enter(Part.COLLECT, step + 1)


async def step_row(
    job: Job, step: int, groups: Sequence[Group], report: StepReport
) -> dict[str, float]:
    """Return the metrics of one step: of the learner, the episodes, the pool and the driver."""
    left, lag = job.rollouts.take_left(step), job.pool.lag.take()
    # In a thread: with thousands of long episodes this takes seconds.
    measured = await asyncio.to_thread(_measured, step, groups, left, report)
    return {
        **measured,
        "workers": float(sum(worker.state == "healthy" for worker in job.pool.workers)),
        "worker_losses": float(job.pool.losses),
        "loop_lag_p50_s": lag.p50_s,
        "loop_lag_p99_s": lag.p99_s,
        "loop_lag_max_s": lag.max_s,
    }


def _measured(
    step: int, groups: Sequence[Group], left: Sequence[PlayedGroup], report: StepReport
) -> dict[str, float]:
    table = table_of(groups)
    taken = [group.played() for group in groups]
    return {
        **report.metrics,
        **played_metrics([*taken, *left]),
        **staleness_metrics(step, table),
        **mismatch_by_staleness(step, table, report.annotations),
    }


def warn_of_long_prompts(inputs: RunInputs, progress: Progress) -> None:
    """Say which training tasks have no room. Raises ConfigError if that is all of them."""
    tasks = training_tasks(inputs.config, inputs.environment)
    if warning := check_some_prompts(inputs, tasks):
        progress.say(warning)


def run_train(
    config: RunConfig, *, resume: bool, requeue: bool = False, trusted: bool = False
) -> JsonObject:
    """Train, or resume training; returns where the policy is. `trusted` as for `check_run`."""
    config.check_trainable()
    check_sinks(config)
    progress = Progress()
    progress.phase("preparing model and tasks")
    wanted = Resume.flag(resume=resume, requeue=requeue)
    opening = prepare_run(RunKind.TRAIN, config.path, config, wanted, progress, trusted=trusted)
    if opening.resumes and _is_complete(config):
        progress.say(f"all {config.run.steps} steps are done")
        return _result(config)
    inputs = resolve_inputs(config)
    check_serving(config, inputs.model)
    if note := check_training(config, config.learner, inputs.model):
        progress.say(note)
    warn_of_long_prompts(inputs, progress)
    say_of_tools(config, training_sample(config, inputs.environment), progress)
    progress.phase(f"starting Ray; {RUN_DIRECTORY_IS}{config.path.absolute()}")
    workers = _remembered_workers(config) if opening.resumes else workers_wanted(config)
    with (
        ray_session(config),
        opening.open(progress) as run,
        progress.logged(run.layout.log),
    ):
        run.layout.health.unlink(missing_ok=True)  # an earlier process wrote it
        inputs = _with_workers(inputs, workers, progress)
        if note := missing_resources(demand_of(config, workers)):
            progress.say(note)
        progress.phase(f"starting the learner and {sum(workers.values())} vLLM workers")
        run_async(train(inputs, run, progress))
        attempts = ((row.task, row.outcome) for row in RunReader(run.path).episodes())
        for note in lost_attempts(attempts).notes():
            progress.say(note)
    return _result(config)


def _remembered_workers(config: RunConfig) -> dict[str, int]:
    """Return the number of workers of each group of a resumed run: what `trialrun scale` set last,
    unless the recipe has another number than the run had.
    """
    layout, now = RunLayout(config.path), workers_wanted(config)
    before, scaled = workers_wanted(stored_config(layout.config_toml)), scaled_to(layout)
    kept = {
        group: scaled[group]
        for group, workers in now.items()
        if before.get(group) == workers and group in scaled
    }
    return now | kept


def _with_workers(inputs: RunInputs, workers: Mapping[str, int], progress: Progress) -> RunInputs:
    rollouts, recipe = inputs.config.rollouts, workers_wanted(inputs.config)
    other = {group: count for group, count in workers.items() if count != recipe[group]}
    if not other:
        return inputs
    for group, count in other.items():
        where = "" if group == DEFAULT_GROUP else f" of group {group}"
        progress.say(f"{count} workers{where}, as `trialrun scale` set (recipe: {recipe[group]})")
    groups = {
        name: group.model_copy(update={"workers": workers[name]})
        for name, group in rollouts.groups.items()
    }
    update = {"workers": workers[DEFAULT_GROUP], "groups": groups}
    config = inputs.config.model_copy(update={"rollouts": rollouts.model_copy(update=update)})
    return replace(inputs, config=config)


def _is_complete(config: RunConfig) -> bool:
    """Whether the run has made all its steps and exported its model."""
    layout = RunLayout(config.path)
    newest = newest_checkpoint(layout.checkpoints)
    done = int(newest.name) if newest else 0
    return layout.model.exists() and done >= config.run.steps


def _result(config: RunConfig) -> JsonObject:
    layout = RunLayout(config.path.absolute())
    return {
        "run_dir": str(layout.root),
        "model": str(layout.model),
        "steps": config.run.steps,
    }
