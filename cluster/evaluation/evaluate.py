"""Evaluation: every task a number of times on the pool, each episode recorded, one report.

A killed evaluation is resumed in its run directory: stored episodes are not run again.
"""

import asyncio
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from cluster.config.run_config import RunConfig
from cluster.evaluation.report_files import report_on
from cluster.fleet.open_pool import open_pool
from cluster.fleet.placement.worker_place import workers_wanted
from cluster.fleet.pool import RolloutPool
from cluster.fleet.ray_session import ray_session
from cluster.jobs.directories import RUN_DIRECTORY_IS
from cluster.lifecycle.inputs import RunInputs, resolve_inputs
from cluster.lifecycle.mirroring import check_and_restore
from cluster.lifecycle.model_checks import check_serving
from cluster.lifecycle.opening import Opening, Resume, check_run, next_free
from cluster.progress import QUIET, Counter, Progress
from cluster.running import run_async
from cluster.scheduling.dispatcher import Affinity, Dispatcher
from cluster.scheduling.prompt_check import tasks_with_room
from cluster.scheduling.schedule import GroupPlan, Schedule, ScheduledGroup
from cluster.scheduling.task_sources import eval_tasks
from cluster.scheduling.tool_check import say_of_tools
from envs.errors import ConfigError
from envs.tasks import Task
from rollout.episode import Lease, RolloutKind
from rollout.evaluation.summary import EvalSummary
from rollout.store.ledger_state import DropReason, LedgerState, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader


async def evaluate(
    config: RunConfig,
    pool: RolloutPool,
    run: RunDirectory,
    tasks: Sequence[Task],
    progress: Progress = QUIET,
) -> EvalSummary:
    """Run `eval.samples` episodes of every task on the pool and report on them in `run`.

    Episodes that `run` holds already are not run again; none is trained on.
    """
    await run_episodes(config, pool, run, tasks, progress)
    return report_on(run.path).summary


async def run_episodes(
    config: RunConfig,
    pool: RolloutPool,
    run: RunDirectory,
    tasks: Sequence[Task],
    progress: Progress = QUIET,
) -> None:
    """Run and store the episodes that `run` lacks; those of one task share a worker."""
    episode = config.episode.model_copy(update={"temperature": config.eval.temperature})
    dispatcher = Dispatcher(pool, run, config.rollouts, episode)
    _end_finished(run, list(run.ledger.entries))
    plan = GroupPlan(kind=RolloutKind.EVAL, seed=config.run.seed, samples=config.eval.samples)
    schedule = Schedule(run, tasks, plan)
    unscheduled = [n for n in range(len(tasks)) if not schedule.is_scheduled(n)]
    total, missing = len(tasks) * plan.samples, missing_episodes(config, run.ledger, tasks)
    with progress.counter(total, "episodes", total - missing) as counter:
        async with asyncio.TaskGroup() as group:
            for scheduled in chain(schedule.resume(), map(schedule.schedule, unscheduled)):
                group.create_task(_run_group(dispatcher, run, scheduled, counter))
                await asyncio.sleep(0)  # or the loop stands still for thousands of episodes
    await run.synced()


def missing_episodes(config: RunConfig, ledger: LedgerState, tasks: Sequence[Task]) -> int:
    """Return how many episodes of the evaluation have not ended."""
    ended = sum(entry.state is not State.LEASED for entry in ledger.entries.values())
    return len(tasks) * config.eval.samples - ended


def check_evaluation(
    config: RunConfig, path: Path, tasks: Sequence[Task], *, trusted: bool = False
) -> Opening:
    """Check that an evaluation of `tasks` may start, or be resumed, at `path`; writes nothing.

    Raises as `check_run` does, and ConfigError where the run holds episodes of other tasks.
    """
    opening = check_run(RunKind.EVAL, path, config, Resume.IF_PRESENT, trusted=trusted)
    if opening.resumes:
        foreign = RunReader(path).ledger().groups.keys() - {task.id for task in tasks}
        if foreign:
            raise ConfigError(
                f"{path} holds episodes that are not of this evaluation ({min(foreign)}, ...): "
                "name another folder"
            )
    return opening


async def _run_group(
    dispatcher: Dispatcher, run: RunDirectory, scheduled: ScheduledGroup, counter: Counter
) -> None:
    near = Affinity()

    async def run_one(lease: Lease) -> None:
        await dispatcher.run_episode(lease, scheduled.task, near)
        counter.advance()

    await asyncio.gather(*map(run_one, scheduled.leases))
    _end_finished(run, run.ledger.groups[scheduled.name])


def _end_finished(run: RunDirectory, episodes: Sequence[str]) -> None:
    entries = run.ledger.entries
    finished = [episode for episode in episodes if entries[episode].state is State.FINISHED]
    if finished:
        run.ledger.drop(finished, DropReason.EVALUATED)


def run_eval(config: RunConfig, path: Path | None, *, trusted: bool = False) -> Path:
    """Evaluate the recipe's model on the recipe's tasks and return the run directory.

    It is `path`, where an incomplete evaluation is resumed, or else a new one.
    """
    progress = Progress()
    progress.phase("preparing model and tasks")
    new = path is None
    if path is None:
        path = next_free(Path(config.run.dir), f"{config.run.name}-{config.episode.mode}")
    inputs = resolve_inputs(config)
    check_serving(config, inputs.model)
    tasks = eval_tasks(config, inputs.environment)
    tasks, warning = tasks_with_room(inputs, tasks)
    if warning:
        progress.say(warning)
    check_and_restore(config, path, progress, new=new)
    opening = check_evaluation(config, path, tasks, trusted=trusted)
    ledger = RunReader(path).ledger() if opening.resumes else LedgerState()
    missing = missing_episodes(config, ledger, tasks)
    progress.say(
        f"{len(tasks)} tasks x {config.eval.samples} in mode {config.episode.mode}, "
        f"{missing} episodes to run"
    )
    if not missing:
        with opening.open(progress) as run:
            report_on(run.path)
        return path
    say_of_tools(config, tasks, progress)
    progress.say(f"if interrupted, resume with: --run {path}")
    progress.phase(f"starting Ray; {RUN_DIRECTORY_IS}{path.absolute()}")
    with (
        ray_session(config),
        opening.open(progress) as run,
        progress.logged(run.layout.log),
    ):
        run_async(_run_on_a_pool(inputs, run, tasks, progress))
        report_on(run.path)  # before it is closed, so that a mirror gets it
    return path


async def _run_on_a_pool(
    inputs: RunInputs, run: RunDirectory, tasks: Sequence[Task], progress: Progress
) -> None:
    progress.phase(f"starting {sum(workers_wanted(inputs.config).values())} vLLM workers")
    async with open_pool(inputs.config, inputs.model, run.path) as pool:
        await pool.wait_healthy(pool.desired)
        progress.phase("evaluating")
        await run_episodes(inputs.config, pool, run, tasks, progress)
