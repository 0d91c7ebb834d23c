"""Teacher episodes: a scripted policy plays through the same runner, against the same sandboxed
tools.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cluster.config import RunConfig
from cluster.environments import make_environment, teacher_of
from cluster.job import new_run, recorded_in
from cluster.routed_tools import LocalTools
from cluster.task_stream import TaskStream
from envs.errors import ConfigError
from envs.seeds import stable_hash
from rollout.episode import Episode, Lease
from rollout.episode_schema import to_batch
from rollout.ledger_state import DropReason
from rollout.run_directory import RunDirectory
from rollout.runner import EpisodeRunner, Identity
from rollout.scripted_engine import ScriptedEngine
from rollout.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a teacher played: the successes, and how many episodes it took."""

    table: pa.Table
    played: int


async def teach(config: RunConfig, model: Path, run_path: Path) -> Lesson:
    """Play `teacher.episodes` episodes in the recipe's mode, record them, and return the successes.

    Raises ConfigError where the environment has no teacher or nothing succeeded.
    """
    reply, trial_calls = teacher_of(config.env, config.episode.mode)
    template = ChatTemplate.load(model)
    tools = LocalTools("teacher", recorded_in(config, run_path).tools)
    await tools.start()
    try:
        identity = Identity("teacher", "teacher", config.model.max_model_len)
        runner = EpisodeRunner(ScriptedEngine(reply, template), tools, template, identity)
        stream = TaskStream(
            make_environment(config.env), "train", stable_hash(config.run.seed, "teacher")
        )
        with new_run(run_path, config) as run:
            classroom = _Classroom(config, runner, stream, run)
            episodes = await classroom.play_all(trial_calls)
    finally:
        await tools.close()
    kept = [episode for episode in episodes if episode.reward_parts.get("answer", 0.0) >= 1.0]
    if not kept:
        raise ConfigError(
            f"none of {len(episodes)} teacher episodes succeeded; "
            f"look at them: trialrun episodes {run_path}"
        )
    return Lesson(pa.Table.from_batches([to_batch(kept)]), len(episodes))


class _Classroom:
    """Plays teacher episodes a bounded number at a time."""

    def __init__(
        self, config: RunConfig, runner: EpisodeRunner, stream: TaskStream, run: RunDirectory
    ) -> None:
        self._config = config
        self._runner = runner
        self._stream = stream
        self._run = run
        self._room = asyncio.Semaphore(config.teacher.concurrency)

    async def play_all(self, trial_calls: Callable[[int, int], int]) -> Sequence[Episode]:
        async with asyncio.TaskGroup() as group:
            played = [
                group.create_task(self._play(index, trial_calls))
                for index in range(self._config.teacher.episodes)
            ]
        return [episode.result() for episode in played]

    async def _play(self, index: int, trial_calls: Callable[[int, int], int]) -> Episode:
        async with self._room:
            task, config = self._stream[index], self._config.episode
            group = f"t{index:06d}"
            seed = stable_hash(self._config.run.seed, "teacher", group, task.id)
            lease = Lease(self._run.run.run, f"{group}-00", group, task.id, 0, 0, seed)
            budget = config.trial.model_copy(
                update={"calls": trial_calls(seed, config.trial.calls)}
            )
            self._run.ledger.lease([lease])
            episode = await self._runner.run(
                lease, task, config.model_copy(update={"trial": budget})
            )
            self._run.append(to_batch([episode]))
            reason = DropReason.EVALUATED if episode.outcome.counts else DropReason.INFRA_FAILED
            if episode.outcome.counts:
                self._run.ledger.finish(lease)
            self._run.ledger.drop([lease.episode], reason)
            return episode
