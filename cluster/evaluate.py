"""Evaluation: every task a number of times on the pool, each episode recorded, one summary."""

import asyncio
import time
from collections.abc import Sequence

from cluster.config import RunConfig
from cluster.environments import make_environment
from cluster.player import Affinity, Player
from cluster.pool import RolloutPool
from envs.errors import ConfigError
from envs.seeds import stable_hash
from envs.tasks import Task, TaskCollection
from rollout.episode import Episode, Lease
from rollout.episode_schema import from_batch
from rollout.evaluation import EvalSummary, summarise
from rollout.ledger_state import DropReason
from rollout.run_directory import RunDirectory
from rollout.run_reader import RunReader


def eval_tasks(config: RunConfig) -> Sequence[Task]:
    """Return the tasks that `[eval]` names. Raises ConfigError where the environment has no such
    set.
    """
    section = config.eval
    environment = make_environment(config.env)
    if section.split == "all":
        if not isinstance(environment, TaskCollection):
            raise ConfigError(
                f"eval.split = 'all' needs a file of tasks; "
                f"{environment.name} makes them: name a split"
            )
        tasks = environment.all_tasks()
        return tasks[: section.tasks] if section.tasks else tasks
    seed = stable_hash(config.run.seed, "eval", section.seed)
    return environment.tasks(section.split, seed, section.tasks or None)


async def evaluate(
    config: RunConfig, pool: RolloutPool, run: RunDirectory, tasks: Sequence[Task]
) -> EvalSummary:
    """Play `eval.samples` episodes of every task on the pool; all are stored in `run`, none is
    trained on.
    """
    episode = config.episode.model_copy(update={"temperature": config.eval.temperature})
    player = Player(pool, run, config.rollouts, episode)
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(_play_task(config, player, run, task))
    seconds = time.monotonic() - began
    run.sync()
    return summarise(_stored(run), wall_s=seconds)


async def _play_task(config: RunConfig, player: Player, run: RunDirectory, task: Task) -> None:
    leases = [
        Lease(
            run.run.run,
            f"{task.id}-{i:02d}",
            task.id,
            task.id,
            i,
            0,
            stable_hash(config.run.seed, "eval", task.id, i),
        )
        for i in range(config.eval.samples)
    ]
    run.ledger.lease(leases)
    near = Affinity()
    batches = await asyncio.gather(*(player.play(lease, task, near) for lease in leases))
    played = [
        lease.episode for lease, batch in zip(leases, batches, strict=True) if batch is not None
    ]
    if played:
        run.ledger.drop(played, DropReason.EVALUATED)


def _stored(run: RunDirectory) -> list[Episode]:
    """Return every episode of `run` as its last attempt left it."""
    reader = RunReader(run.path)
    last = {row.episode: row for row in sorted(reader.episodes(), key=lambda row: row.attempt)}
    return from_batch(reader.batch(list(last.values())))
