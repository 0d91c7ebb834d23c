"""What the commands do once their configuration stands; imports the whole stack, so the CLI loads
it late.
"""

import asyncio
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TypeVar

from cluster.config import RunConfig
from cluster.evaluate import eval_tasks, play, reopened, still_to_play
from cluster.imitate import imitate, open_sft
from cluster.job import find_model, new_run, open_pool, open_run, recorded_in
from cluster.lessons import lessons, parse_source
from cluster.progress import Progress
from cluster.ray_session import ray_session
from cluster.teach import teach, teacher_folder
from cluster.train import train
from envs.errors import TrialrunError, first_cause
from envs.tasks import Task
from envs.tools import JsonObject
from learner.config import check_adapters
from rollout.run_directory import RunDirectory
from rollout.run_layout import RunLayout
from rollout.template import ChatTemplate

Result = TypeVar("Result")


def run_train(config: RunConfig, *, resume: bool) -> JsonObject:
    """Train, or go on training; returns where the policy is."""
    config.check_trainable()
    progress = Progress()
    with open_run(config, progress, resume=resume) as run, ray_session(config):
        exported = run_async(train(config, run, progress))
    return {"run_dir": str(config.path), "model": str(exported), "steps": config.run.steps}


def run_sft(config: RunConfig, sources: Sequence[str], *, resume: bool) -> JsonObject:
    """Imitate what run directories (`DIR` or `DIR=WEIGHT`) hold, or the environment's scripted
    teacher where there are none; `resume` goes on with an SFT that was stopped.
    """
    progress = Progress()
    check_adapters(config.model.lora, config.sft)
    model = find_model(config)
    chosen = [parse_source(source) for source in sources]
    template = ChatTemplate.load(model)
    with open_sft(config, config.path, resume=resume) as run:
        if chosen:
            table = lessons(chosen, template, config.run.seed)
        else:
            progress.say(f"playing {config.teacher.episodes} teacher episodes")
            lesson = run_async(teach(config, model, teacher_folder(run.path)))
            table = lesson.table
            progress.say(f"{table.num_rows} of {lesson.played} succeeded")
        with ray_session(config):
            metrics = run_async(imitate(config, model, table, run, progress))
    return {
        "model": str(run.layout.model),
        "episodes": table.num_rows,
        "steps": len(metrics),
        "first_loss": metrics[0]["loss"],
        "last_loss": metrics[-1]["loss"],
    }


def run_eval(config: RunConfig, path: Path | None) -> Path:
    """Evaluate the recipe's model on the recipe's tasks and return the run directory.

    It is `path`, where an evaluation that is not complete goes on, or else a new one.
    """
    progress = Progress()
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
            with ray_session(config):
                run_async(_play_on_a_pool(config, model, run, tasks))
    return path


async def _play_on_a_pool(
    config: RunConfig, model: Path, run: RunDirectory, tasks: Sequence[Task]
) -> None:
    async with open_pool(recorded_in(config, run.path), model) as pool:
        await pool.wait_healthy(config.rollouts.workers)
        await play(config, pool, run, tasks)


def run_async(main: Coroutine[None, None, Result]) -> Result:
    """Run `main` to its end; SIGTERM cancels it as Ctrl-C does, so that everything is closed."""

    async def cancellable() -> Result:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    try:
        return asyncio.run(cancellable())
    except BaseExceptionGroup as errors:
        raise first_cause(errors) from errors
    except asyncio.CancelledError:
        raise TrialrunError(
            "stopped by SIGTERM; what was finished is kept: the same command goes on "
            "(train, sft and collect with --resume, eval with --run)"
        ) from None


def next_free(folder: Path, name: str) -> Path:
    """Return `folder/name-NNN` with the first number that is not taken."""
    number = 1
    while (path := folder / f"{name}-{number:03d}").exists():
        number += 1
    return path
