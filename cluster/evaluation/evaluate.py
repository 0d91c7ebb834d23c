"""Evaluation: every task a number of times on the pool, each episode recorded, one report.

An evaluation that was killed goes on in its run directory: what is stored is not played again.
"""

import asyncio
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from cluster.config.environments import make_environment
from cluster.config.run_config import RunConfig, load_config
from cluster.evaluation.eval_tables import evaluation_markdown
from cluster.fleet.open_pool import open_pool
from cluster.fleet.pool import RolloutPool
from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.opening import find_model, new_run, next_free, recorded_in
from cluster.lifecycle.resume_check import check_same
from cluster.progress import QUIET, Counter, Progress
from cluster.running import run_async
from cluster.scheduling.player import Affinity, Player
from envs.errors import ConfigError
from envs.seeds import stable_hash
from envs.tasks import Task
from envs.tools import JsonObject
from rollout.episode import Lease
from rollout.evaluation.reader import read_rows
from rollout.evaluation.report import EvalReport, check_tags, evaluation_report
from rollout.evaluation.summary import EvalSummary
from rollout.store.journal import replace_file
from rollout.store.ledger_state import DropReason, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunLayout, existing_run
from rollout.store.run_reader import RunReader

_NO_CHECKPOINT = -1
_SAME = ("model", "env", "tools", "episode", "eval", "run.seed")
"""What must be as before where an evaluation goes on."""
_SETTING = {
    "model": ("model", "path"),
    "environment": ("env", "name"),
    "perturbation": ("env", "perturbation"),
    "mode": ("episode", "mode"),
    "split": ("eval", "split"),
    "samples": ("eval", "samples"),
    "temperature": ("eval", "temperature"),
    "seed": ("run", "seed"),
}
"""What a report says of the recipe, and where it stands there."""


def eval_tasks(config: RunConfig) -> Sequence[Task]:
    """Return the tasks that `[eval]` names. Raises ConfigError where the environment has no such
    set, or where none of them carries a tag of `eval.by`.
    """
    tasks = _drawn(config)
    check_tags([task.tags for task in tasks], config.eval.by)
    return tasks


def _drawn(config: RunConfig) -> Sequence[Task]:
    section = config.eval
    environment = make_environment(config.env)
    if section.split == "all":
        if environment.endless:
            raise ConfigError(
                f"eval.split = 'all' needs a file of tasks; "
                f"{environment.name} makes them: name a split"
            )
        tasks = environment.all_tasks()
        return tasks[: section.tasks] if section.tasks else tasks
    seed = stable_hash(config.run.seed, "eval", section.seed)
    return environment.tasks(section.split, seed, section.tasks or None)


async def evaluate(
    config: RunConfig,
    pool: RolloutPool,
    run: RunDirectory,
    tasks: Sequence[Task],
    progress: Progress = QUIET,
) -> EvalSummary:
    """Play `eval.samples` episodes of every task on the pool and report on them in `run`.

    Episodes that `run` holds already are not played again; none is trained on.
    """
    await play(config, pool, run, tasks, progress)
    return report_on(run.path).summary


async def play(
    config: RunConfig,
    pool: RolloutPool,
    run: RunDirectory,
    tasks: Sequence[Task],
    progress: Progress = QUIET,
) -> None:
    """Play and store what `run` does not hold yet; a group of one task runs on one worker."""
    episode = config.episode.model_copy(update={"temperature": config.eval.temperature})
    player = Player(pool, run, config.rollouts, episode)
    _end_finished(run, list(run.ledger.entries))
    total, left = len(tasks) * config.eval.samples, still_to_play(config, run, tasks)
    missing = _leased(config, run, tasks)
    with progress.counter(total, "episodes", total - left) as counter:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                if leases := missing.get(task.id):
                    group.create_task(_play_task(player, run, task, leases, counter))
    run.sync()


def still_to_play(config: RunConfig, run: RunDirectory, tasks: Sequence[Task]) -> int:
    """Return how many episodes of the evaluation have not ended in `run`."""
    ended = sum(entry.state is not State.LEASED for entry in run.ledger.entries.values())
    return len(tasks) * config.eval.samples - ended


def reopened(path: Path, config: RunConfig, tasks: Sequence[Task]) -> RunDirectory:
    """Open the evaluation at `path` to go on with it.

    Raises MissingError where there is none, StoreError where another process writes it, and
    ConfigError where it is not of these tasks with these settings.
    """
    layout = existing_run(path)
    before = load_config(str(layout.config_toml))
    what, instead = f"the evaluation in {path}", "name another folder"
    check_same(what, before, config, _SAME, but=("eval.by",), instead=instead)
    run = RunDirectory.open(path)
    foreign = run.ledger.groups.keys() - {task.id for task in tasks}
    if foreign:
        run.close()
        raise ConfigError(
            f"{path} holds episodes that are not of this evaluation ({min(foreign)}, ...): "
            "name another folder"
        )
    run.recover(_NO_CHECKPOINT)
    return run


def report_on(path: Path) -> EvalReport:
    """Report on the episodes at `path`, and leave the report there as JSON and as Markdown.

    The recipe in the run is only quoted: one that this version would refuse is no hindrance.
    """
    reader = RunReader(path)
    recipe = tomllib.loads(reader.config_toml)
    report = evaluation_report(read_rows(path), recipe.get("eval", {}).get("by", ()))
    setting = _setting(recipe)
    content: JsonObject = {**report.to_json(), **setting, "run_dir": str(path)}
    layout = reader.layout
    replace_file(layout.eval_json, json.dumps(content, indent=1, allow_nan=False).encode())
    markdown = evaluation_markdown(report, path.resolve().name, setting)
    replace_file(layout.eval_markdown, markdown.encode())
    return report


def _setting(recipe: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Return what a reader of the figures asks first; what the recipe does not say is left out."""
    return {
        name: recipe[section][key]
        for name, (section, key) in _SETTING.items()
        if key in recipe.get(section, {})
    }


def _leased(
    config: RunConfig, run: RunDirectory, tasks: Sequence[Task]
) -> Mapping[str, list[Lease]]:
    """Return what is to be played, by task: leases that a kill left open, and new ones."""
    missing: dict[str, list[Lease]] = {}
    for lease in run.ledger.open_leases():
        again = run.ledger.re_lease(lease.episode, "the evaluation goes on")
        missing.setdefault(lease.task, []).append(again)
    for task in tasks:
        if task.id not in run.ledger.groups:
            missing[task.id] = _leases(config, run, task)
            run.ledger.lease(missing[task.id])
    return missing


def _leases(config: RunConfig, run: RunDirectory, task: Task) -> list[Lease]:
    seeds = [stable_hash(config.run.seed, "eval", task.id, i) for i in range(config.eval.samples)]
    return [
        Lease(run.run.run, f"{task.id}-{i:02d}", task.id, task.id, i, 0, seed)
        for i, seed in enumerate(seeds)
    ]


async def _play_task(
    player: Player, run: RunDirectory, task: Task, leases: Sequence[Lease], counter: Counter
) -> None:
    near = Affinity()

    async def play_one(lease: Lease) -> None:
        await player.play(lease, task, near)
        counter.advance()

    await asyncio.gather(*map(play_one, leases))
    _end_finished(run, run.ledger.groups[task.id])


def _end_finished(run: RunDirectory, episodes: Sequence[str]) -> None:
    entries = run.ledger.entries
    finished = [episode for episode in episodes if entries[episode].state is State.FINISHED]
    if finished:
        run.ledger.drop(finished, DropReason.EVALUATED)


def run_eval(config: RunConfig, path: Path | None) -> Path:
    """Evaluate the recipe's model on the recipe's tasks and return the run directory.

    It is `path`, where an evaluation that is not complete goes on, or else a new one.
    """
    progress = Progress()
    progress.phase("preparing model and tasks")
    tasks = eval_tasks(config)
    model = find_model(config)
    if path is None:
        path = next_free(Path(config.run.dir), f"{config.run.name}-{config.episode.mode}")
    begun = RunLayout(path).run_json.exists()
    run = reopened(path, config, tasks) if begun else new_run(path, config)
    with run:
        missing = still_to_play(config, run, tasks)
        progress.say(
            f"{len(tasks)} tasks x {config.eval.samples} in mode {config.episode.mode}, "
            f"{missing} episodes to play"
        )
        progress.say(f"after a stop, go on with: --run {path}")
        if missing:
            progress.phase("starting Ray")
            with ray_session(config):
                run_async(_play_on_a_pool(config, model, run, tasks, progress))
    return path


async def _play_on_a_pool(
    config: RunConfig, model: Path, run: RunDirectory, tasks: Sequence[Task], progress: Progress
) -> None:
    progress.phase(f"starting {config.rollouts.workers} vLLM workers")
    async with open_pool(recorded_in(config, run.path), model) as pool:
        await pool.wait_healthy(config.rollouts.workers)
        progress.phase("evaluating")
        await play(config, pool, run, tasks, progress)
