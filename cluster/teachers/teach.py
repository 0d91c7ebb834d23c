"""Teachers in this process: a scripted policy or a chat endpoint plays through the same runner,
against the same sandboxed tools, as the policy that learns from it.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from cluster.config.environments import make_environment, teacher_of
from cluster.config.run_config import RunConfig
from cluster.fleet.balanced_tools import LocalTools
from cluster.lifecycle.opening import new_run, recorded_in
from cluster.progress import Progress
from cluster.scheduling.collection import Collection, Extent
from cluster.scheduling.player import Actors, Player
from cluster.scheduling.task_stream import TaskStream
from cluster.teachers.selection_file import last_attempts
from envs.errors import ConfigError
from envs.messages import Reply
from envs.seeds import stable_hash
from envs.tasks import Task
from envs.tools import ToolService
from rollout.config import EpisodeConfig
from rollout.engines.openai_client import ChatClient
from rollout.engines.openai_config import EndpointConfig
from rollout.engines.openai_engine import OpenAIEngine, Part
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Lease
from rollout.episode_schema import to_batch
from rollout.evaluation.teacher_filter import ANSWER_PART
from rollout.runner import EpisodeRunner, Identity
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunLayout
from rollout.store.run_reader import RunReader
from rollout.template import ChatTemplate

_NAME = "teacher"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a teacher played: the successes, and how many episodes it took."""

    table: pa.Table
    played: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a teacher in this process plays."""

    tools: ToolService
    template: ChatTemplate
    max_model_len: int

    def identity(self, source: str) -> Identity:
        """Return who episodes of `source` say they were played by."""
        return Identity(_NAME, source, self.max_model_len)


@asynccontextmanager
async def open_stage(config: RunConfig, model: Path, run_path: Path) -> AsyncIterator[Stage]:
    """Start tool servers in this process's care, and end them."""
    template = ChatTemplate.load(model)
    tools = LocalTools(_NAME, recorded_in(config, run_path).tools)
    await tools.start()
    try:
        yield Stage(tools, template, config.model.max_model_len)
    finally:
        await tools.close()


class ScriptedActors:
    """The scripted teacher; `trial_calls` draws the budget of an episode from its seed."""

    def __init__(self, stage: Stage, reply: Reply, trial_calls: Callable[[int, int], int]) -> None:
        engine = ScriptedEngine(reply, stage.template)
        self._runner = EpisodeRunner(engine, stage.tools, stage.template, stage.identity(_NAME))
        self._trial_calls = trial_calls

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        calls = self._trial_calls(lease.seed, config.trial.calls)
        trial = config.trial.model_copy(update={"calls": calls})
        episode = await self._runner.run(lease, task, config.model_copy(update={"trial": trial}))
        return to_batch([episode]), prefer


class EndpointActors:
    """A chat endpoint; episodes record what they took under `teacher_*` in `extra`."""

    def __init__(self, stage: Stage, client: ChatClient, config: EndpointConfig) -> None:
        self._stage = stage
        self._client = client
        self._config = config

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        stage = self._stage
        engine = OpenAIEngine(self._client, self._config, stage.template, Part(task, config))
        await engine.start()
        identity = stage.identity(self._config.model)
        runner = EpisodeRunner(engine, stage.tools, stage.template, identity)
        episode = await runner.run(lease, task, self._patient(config))
        took = {
            "teacher_requests": float(engine.spent.requests),
            "teacher_prompt_tokens": float(engine.spent.prompt_tokens),
            "teacher_completion_tokens": float(engine.spent.completion_tokens),
        }
        return to_batch([replace(episode, extra={**episode.extra, **took})]), prefer

    def _patient(self, config: EpisodeConfig) -> EpisodeConfig:
        """Return `config` with time for the endpoint's own deadline in every turn."""
        turn_s = self._config.deadline_s
        budgets = {
            name: budget.model_copy(update={"seconds": budget.seconds + budget.turns * turn_s})
            for name, budget in (("trial", config.trial), ("execution", config.execution))
        }
        return config.model_copy(update=budgets)


def scripted_actors(config: RunConfig, stage: Stage) -> Actors:
    """Return the environment's own teacher. Raises ConfigError where it has none."""
    reply, trial_calls = teacher_of(config.env, config.episode.mode)
    return ScriptedActors(stage, reply, trial_calls)


def teaching_stream(config: RunConfig) -> TaskStream:
    """Return the tasks that teachers play: the training tools, other draws than the policy's."""
    environment = make_environment(config.env)
    return TaskStream(environment, "train", stable_hash(config.run.seed, _NAME))


class _Remembering:
    """Actors that keep the right episodes as played last, so that they need not be read back;
    `right` are those of an earlier process.
    """

    def __init__(self, actors: Actors, right: Mapping[str, pa.RecordBatch]) -> None:
        self._actors = actors
        self._right = dict(right)

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        batch, worker = await self._actors.run_episode(lease, task, config, prefer)
        self._right.pop(lease.episode, None)
        if _is_right(batch):
            self._right[lease.episode] = batch
        return batch, worker

    @property
    def right(self) -> list[pa.RecordBatch]:
        """The episodes whose answer was right, ordered by id."""
        return [self._right[name] for name in sorted(self._right)]


def teacher_folder(run: Path) -> Path:
    """Return where in the run directory of an SFT its teacher plays."""
    return run / _NAME


async def teach(config: RunConfig, model: Path, run_path: Path) -> Lesson:
    """Play `teacher.episodes` scripted episodes in the recipe's mode, and return the successes.

    What the run at `run_path` has already is not played again. Raises ConfigError where the
    environment has no teacher or nothing succeeded.
    """
    section = config.teacher
    teacher_of(config.env, config.episode.mode)
    extent = Extent(section.episodes, 1, config.run.seed, section.concurrency)
    async with open_stage(config, model, run_path) as stage:
        with _opened(config, run_path) as run:
            actors = _Remembering(scripted_actors(config, stage), _right_in(run))
            player = Player(actors, run, config.rollouts, config.episode)
            collection = Collection(run, teaching_stream(config), player, extent)
            await collection.play_all(Progress(quiet=True))
    right = actors.right
    if not right:
        raise ConfigError(
            f"none of {section.episodes} teacher episodes succeeded; "
            f"look at them: trialrun episodes {run_path}"
        )
    return Lesson(pa.Table.from_batches(right), section.episodes)


def _opened(config: RunConfig, path: Path) -> RunDirectory:
    if not RunLayout(path).run_json.exists():
        return new_run(path, config)
    run = RunDirectory.open(path)
    run.recover(-1)
    return run


def _right_in(run: RunDirectory) -> dict[str, pa.RecordBatch]:
    """Return the right episodes among the last attempts that are stored, by id."""
    reader = RunReader(run.path)
    stored = ((row.episode, reader.batch([row])) for row in last_attempts(reader))
    return {episode: batch for episode, batch in stored if _is_right(batch)}


def _is_right(batch: pa.RecordBatch) -> bool:
    return dict(batch["reward_parts"][0].as_py()).get(ANSWER_PART, 0.0) >= 1
