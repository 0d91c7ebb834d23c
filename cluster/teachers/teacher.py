"""Teachers in this process: a scripted policy, turns that somebody wrote, or a chat endpoint, with
the same runner and the same sandboxed tools as the policy that is trained on their episodes.
"""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from cluster.fleet.balanced_tools import LocalTools
from cluster.lifecycle.inputs import RunInputs, with_recording
from cluster.lifecycle.opening import Resume, check_run
from cluster.progress import QUIET, Progress
from cluster.scheduling.collection import Collection, CollectionSize
from cluster.scheduling.dispatcher import Dispatcher, EpisodeWorkers
from cluster.scheduling.task_sources import collection_tasks
from envs.errors import ConfigError, TeacherError
from envs.messages import Reply
from envs.services.router import ToolRouter
from envs.tasks import Task
from envs.tools import ToolService
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig, ToolFormatName
from rollout.engines.openai_client import ChatClient
from rollout.engines.openai_config import EndpointConfig
from rollout.engines.openai_engine import OpenAIEngine, TeacherTask
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.engines.student_format import StudentFormat
from rollout.engines.written_turns import Turns, reply_of
from rollout.episode import ANSWER_PART, Lease, is_correct
from rollout.episode_schema import to_batch
from rollout.language import format_of
from rollout.runner import EpisodeRunner, Identity
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader

_NAME = "teacher"


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """The correct episodes of a teacher, and how many episodes it ran."""

    table: pa.Table
    episodes: int


@dataclass(frozen=True, slots=True)
class TeacherHost:
    """What a teacher in this process runs its episodes with."""

    tools: ToolService
    template: ChatTemplate
    max_model_len: int
    tool_format: ToolFormatName = "auto"

    @property
    def student(self) -> StudentFormat:
        """How the model that learns from the episodes writes its turns."""
        return StudentFormat(self.template, format_of(self.template, self.tool_format))

    def identity(self, source: str) -> Identity:
        """Return the identity that episodes of `source` record."""
        return Identity(
            worker=_NAME,
            source=source,
            max_model_len=self.max_model_len,
            tool_format=self.tool_format,
        )


@asynccontextmanager
async def open_host(inputs: RunInputs, run: Path) -> AsyncIterator[TeacherHost]:
    """Start what serves tools of every kind, supervised by this process, and stop it at the end.

    With `tools.record`, calls and answers are recorded in the run directory `run`.
    """
    config = with_recording(inputs.config, run)
    template = ChatTemplate.load(inputs.model, config.model)
    servers = LocalTools(_NAME, config.tools)
    tools = ToolRouter(servers, config.tools, os.environ)
    await servers.start()
    try:
        model = config.model
        yield TeacherHost(tools, template, model.max_model_len, model.tool_format)
    finally:
        await tools.close()


class ScriptedTeacher:
    """The scripted teacher; `trial_calls` derives the budget of an episode from its seed."""

    def __init__(
        self, host: TeacherHost, reply: Reply, trial_calls: Callable[[int, int], int]
    ) -> None:
        engine = ScriptedEngine(reply, host.template, host.student)
        self._runner = EpisodeRunner(engine, host.tools, host.template, host.identity(_NAME))
        self._trial_calls = trial_calls

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        calls = self._trial_calls(lease.seed, config.trial.calls)
        trial = config.trial.model_copy(update={"calls": calls})
        episode = await self._runner.run_episode(
            lease, task, config.model_copy(update={"trial": trial})
        )
        return to_batch([episode]), prefer


class WrittenTeacher:
    """Turns that somebody wrote, by the id of their task. An episode that goes on after them is
    `infra_failed`: nothing of the policy's was wrong.
    """

    def __init__(self, host: TeacherHost, turns: Mapping[str, Turns]) -> None:
        self._host = host
        self._turns = turns

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        host, turns = self._host, self._turns[task.id]

        def ended() -> str:
            raise TeacherError(
                f"the turns that were written for task {task.id} have ended, and the "
                "episode has not: let the last one give the <answer>, and in a mode with trials an "
                "earlier one the <experience>"
            )

        engine = ScriptedEngine(reply_of(turns, ended), host.template, host.student)
        runner = EpisodeRunner(engine, host.tools, host.template, host.identity("turns"))
        return to_batch([await runner.run_episode(lease, task, config)]), prefer


class EndpointTeacher:
    """A chat endpoint; episodes record their requests and tokens under `teacher_*` in `extra`."""

    def __init__(self, host: TeacherHost, client: ChatClient, config: EndpointConfig) -> None:
        self._host = host
        self._client = client
        self._config = config

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        host = self._host
        part = TeacherTask(task, config, host.tool_format)
        engine = OpenAIEngine(self._client, self._config, host.template, part)
        await engine.start()
        identity = host.identity(self._config.model)
        runner = EpisodeRunner(engine, host.tools, host.template, identity)
        episode = await runner.run_episode(lease, task, self._patient(config))
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


def scripted_teacher(inputs: RunInputs, host: TeacherHost) -> EpisodeWorkers:
    """Return the environment's own teacher. Raises ConfigError where it has none."""
    teacher = inputs.environment.teacher(inputs.config.episode.mode)
    return ScriptedTeacher(host, teacher.reply, teacher.trial_calls)


def check_teacher(inputs: RunInputs) -> None:
    """Raise ConfigError where the environment has no scripted teacher for the recipe's mode."""
    inputs.environment.teacher(inputs.config.episode.mode)


class _CorrectEpisodes:
    """Workers that cache each episode's latest correct attempt, so that none is read back;
    `stored` are those of an earlier process.
    """

    def __init__(self, workers: EpisodeWorkers, stored: Mapping[str, pa.RecordBatch]) -> None:
        self._workers = workers
        self._correct = dict(stored)

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        batch, worker = await self._workers.run_episode(lease, task, config, prefer)
        self._correct.pop(lease.episode, None)
        if _is_correct(batch):
            self._correct[lease.episode] = batch
        return batch, worker

    @property
    def batches(self) -> list[pa.RecordBatch]:
        """The correct episodes, ordered by id."""
        return [self._correct[name] for name in sorted(self._correct)]


async def run_teacher(inputs: RunInputs, path: Path, progress: Progress = QUIET) -> Demonstrations:
    """Run `teacher.episodes` scripted episodes in the recipe's mode into the run directory `path`,
    and return the correct ones.

    Episodes that it holds already are not run again. Raises ConfigError where the environment has
    no teacher or no episode is correct.
    """
    config = inputs.config
    section = config.teacher
    check_teacher(inputs)
    opening = check_run(RunKind.TEACHER, path, config, Resume.IF_PRESENT)
    size = CollectionSize(
        tasks=section.episodes, samples=1, seed=config.run.seed, concurrency=section.concurrency
    )
    async with open_host(inputs, path) as host:
        with opening.open(progress) as run:
            workers = _CorrectEpisodes(scripted_teacher(inputs, host), _stored_in(run))
            dispatcher = Dispatcher(workers, run, config.rollouts, config.episode)
            tasks = collection_tasks(config, inputs.environment)
            await Collection(run, tasks, dispatcher, size).run_all(progress)
    if not workers.batches:
        raise ConfigError(
            f"none of {section.episodes} teacher episodes is correct; "
            f"look at them: trialrun episodes {path}"
        )
    return Demonstrations(pa.Table.from_batches(workers.batches), section.episodes)


def _stored_in(run: RunDirectory) -> dict[str, pa.RecordBatch]:
    """Return the correct episodes among the last attempts that are stored, by id."""
    reader = RunReader(run.path)
    stored = ((row.episode, reader.batch([row])) for row in reader.last_attempts())
    return {episode: batch for episode, batch in stored if _is_correct(batch)}


def _is_correct(batch: pa.RecordBatch) -> bool:
    return is_correct(dict(batch["reward_parts"][0].as_py()).get(ANSWER_PART, 0.0))
