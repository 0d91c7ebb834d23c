"""Episodes replayed: recorded tokens and recorded tool answers through the real runner."""

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.config.run_config import RunConfig
from cluster.lifecycle.inputs import RunInputs, resolve_inputs
from cluster.lifecycle.stored_config import stored_config
from cluster.lifecycle.trust import check_harmless, owns_recipe
from cluster.replay.recorded_world import RecordedScore, recorded_world
from cluster.scheduling.schedule import task_of
from cluster.scheduling.task_sources import TaskSource, task_source
from envs.errors import EngineError, MissingError, StoreError
from envs.gateway.gateway_host import InProcessTools
from envs.server.replay_host import ReplayHost
from envs.server.traffic import RecordedSession, TrafficReader
from envs.services.replayed import ReplayedTools
from envs.tasks import Task
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.file.scorers import worlds_of
from envs.tools import JsonObject, ToolService
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engines.recorded_engine import RecordedEngine
from rollout.episode import Episode, RolloutKind
from rollout.episode_difference import EpisodeDifference, first_difference
from rollout.episode_schema import from_batch, to_batch
from rollout.phase_tools import attempt_id
from rollout.runner import EpisodeRunner, Identity
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader
from rollout.store.segments import EpisodeRow

_AT_ONCE = 64
_PER_SERVER = 1_024
"""Episodes that are held in memory, and replayed by one server."""
_CLOCK_S = 0.01
"""Tolerance of the two clocks, for traffic whose sessions carry no episode."""
_RESUME_S = 1.0
"""A run that is killed and resumed runs its open attempts again, under the same ids. It takes
longer than this to resume, so sessions opened earlier than this before the episode's start are not
its own.
"""


@dataclass(frozen=True, slots=True)
class Replay:
    """Result of replaying one episode; `difference` None is equality."""

    episode: str
    difference: EpisodeDifference | None


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """Results of a run's episodes; those lost to infrastructure failures are `left_out`."""

    replays: Sequence[Replay]
    left_out: int

    @property
    def different(self) -> list[Replay]:
        """Episodes that differ from the record."""
        return [replay for replay in self.replays if replay.difference is not None]

    def to_json(self) -> JsonObject:
        """Return the counts, and the first difference where there is one."""
        counts: JsonObject = {
            "episodes": len(self.replays),
            "equal": len(self.replays) - len(self.different),
            "different": len(self.different),
            "left_out": self.left_out,
        }
        for replay in self.different[:1]:
            assert replay.difference is not None
            counts |= {
                "episode": replay.episode,
                "where": replay.difference.where,
                "recorded": replay.difference.recorded,
                "replayed": replay.difference.replayed,
            }
        return counts


async def replay_run(
    run: Path, episode: str | None, traffic: Path | None = None, *, trusted: bool = False
) -> ReplayReport:
    """Replay the newest attempt of one episode, or of all, without model and tools.

    `traffic` is the record, where it is not in the run directory. Raises MissingError without a
    record, without such an episode, or where the model's tokenizer is gone; StoreError where the
    recipe no longer gives the episode's task; ConfigError where the run is of somebody else, not
    `trusted`, and its recipe imports modules or leads out of the run directory.
    """
    reader = RunReader(run)
    recipe = _config_path(reader)
    config = stored_config(recipe)
    if not trusted and not owns_recipe(reader.layout, recipe, config):
        used = ("env", "model", "run.models_dir", *(() if traffic else ("tools.record_dir",)))
        check_harmless(reader.layout, config, only=used, plays=False)
    record = TrafficReader(_traffic_folder(reader, config, traffic))
    replays: list[Replay] = []
    left_out = 0
    try:
        rows = _newest_attempts(reader, episode)
        inputs = await asyncio.to_thread(resolve_inputs, config, recorded_world(record, config))
        for start in range(0, len(rows), _PER_SERVER):
            episodes = from_batch(reader.batch(rows[start : start + _PER_SERVER]))
            counting = [ran for ran in episodes if ran.outcome.counts]
            left_out += len(episodes) - len(counting)
            with tempfile.TemporaryDirectory(prefix="trialrun-replay-") as folder:
                record.copy(sessions_of(record, counting), Path(folder))
                async with _replaying_tools(Path(folder)) as tools:
                    replayer = _Replayer(inputs, reader.kind, tools)
                    replays += await asyncio.gather(*map(replayer.replay, counting))
    finally:
        record.close()
    return ReplayReport(replays, left_out)


class _Replayer:
    """Replays episodes, a bounded number concurrently."""

    def __init__(self, inputs: RunInputs, kind: RunKind, tools: ToolService) -> None:
        self._config = inputs.config
        self._template = ChatTemplate.load(inputs.model, inputs.config.model)
        self._scripted = kind is RunKind.TEACHER or (
            kind is RunKind.COLLECT and inputs.config.collect.source == "scripted"
        )
        self._environment = inputs.environment
        self._tools = tools
        self._tasks = _TaskFinder(inputs)
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def replay(self, recorded: Episode) -> Replay:
        lease = recorded.lease
        task = self._tasks.find(recorded)
        identity = Identity(
            worker=recorded.worker,
            source=recorded.source,
            max_model_len=self._config.model.max_model_len,
            tool_format=self._config.model.tool_format,
        )
        engine = RecordedEngine(recorded)
        runner = EpisodeRunner(engine, self._tools, self._template, identity)
        async with self._room:
            try:
                replayed = await runner.run_episode(lease, task, self._episode_config(recorded))
            except EngineError as error:
                ended = f"ended as {recorded.outcome.value}"
                where = f"after turn {len(recorded.turns)}"
                return Replay(
                    lease.episode,
                    EpisodeDifference(where=where, recorded=ended, replayed=str(error)),
                )
        stored = from_batch(to_batch([replayed]))[0]  # numbers as narrow as the recorded ones
        return Replay(lease.episode, first_difference(recorded, stored))

    def _episode_config(self, recorded: Episode) -> EpisodeConfig:
        """Return the recipe's section, with the budget that a scripted teacher sampled."""
        config = self._config.episode
        if not self._scripted:
            return config
        teacher = self._environment.teacher(config.mode)
        calls = teacher.trial_calls(recorded.lease.seed, config.trial.calls)
        return config.model_copy(update={"trial": config.trial.model_copy(update={"calls": calls})})


class _TaskFinder:
    """Finds the tasks of recorded episodes, from the recipe alone."""

    def __init__(self, inputs: RunInputs) -> None:
        self._inputs = inputs
        self._sources: dict[RolloutKind, TaskSource] = {}

    def find(self, episode: Episode) -> Task:
        """Return the episode's task. Raises StoreError where the recipe now gives another."""
        lease = episode.lease
        try:
            task = task_of(lease, self._source(lease.kind))
        except LookupError:
            task = None
        if task is None or task.id != lease.task or not _asks(task, episode.question):
            raise StoreError(
                f"episode {lease.episode}: expected task {lease.task} from the run's recipe, found "
                f"{task.id if task else 'none'}: the environment or its file has changed since"
            )
        if self._has_own_code:
            task = replace(task, scorer=RecordedScore(episode))
        return replace(task, question=episode.question)

    @property
    def _has_own_code(self) -> bool:
        """Whether scorers run code outside of the sandbox, which a replay does not."""
        env = self._inputs.config.env
        return isinstance(env, FileEnvConfig) and env.trusted_scorers

    def _source(self, kind: RolloutKind) -> TaskSource:
        if kind not in self._sources:
            inputs = self._inputs
            self._sources[kind] = task_source(kind, inputs.config, inputs.environment)
        return self._sources[kind]


def _asks(task: Task, question: str) -> bool:
    """Whether `question` is that of a task, to which the world of the task may have added."""
    whole = not worlds_of(task.tool_set.root)
    return task.question == question if whole else question.startswith(task.question)


@asynccontextmanager
async def _replaying_tools(folder: Path) -> AsyncIterator[ToolService]:
    """Tools that answer from the record in `folder`, in this process: a server takes no tool sets
    with endpoints.
    """
    host = ReplayHost(folder)
    await host.start()
    try:
        tools = ReplayedTools(InProcessTools(host))
        try:
            yield tools
        finally:
            await tools.close()
    finally:
        await host.stop()


def _config_path(reader: RunReader) -> Path:
    path = reader.layout.config_toml
    if not path.exists():
        raise MissingError(f"expected config.toml, found none in {reader.layout.root}")
    return path


def _traffic_folder(reader: RunReader, config: RunConfig, given: Path | None) -> Path:
    if given is not None:
        return given
    if config.tools.record_dir:
        return Path(config.tools.record_dir)
    return reader.layout.tool_traffic


def _newest_attempts(reader: RunReader, prefix: str | None) -> list[EpisodeRow]:
    """Return the newest attempt of one episode, or of each. Raises MissingError."""
    rows = reader.last_attempts()
    if prefix is not None:
        episode = reader.episode(prefix).lease.episode
        return [row for row in rows if row.episode == episode]
    if not rows:
        raise MissingError(f"expected episodes, found none in {reader.layout.root}")
    return rows


def sessions_of(record: TrafficReader, episodes: Sequence[Episode]) -> list[RecordedSession]:
    """Return the sessions of these attempts, in the order in which they were opened."""
    by_episode: dict[str, list[RecordedSession]] = defaultdict(list)
    by_seed: dict[int, list[RecordedSession]] = defaultdict(list)
    for session in record.sessions:
        if session.episode:
            by_episode[session.episode].append(session)
        else:
            by_seed[session.seed].append(session)
    chosen: list[RecordedSession] = []
    for episode in episodes:
        own = by_episode[attempt_id(episode.lease.episode, episode.lease.attempt)]
        if own:
            start = episode.timings.started_at - _RESUME_S
            chosen += [session for session in own if session.opened_at >= start] or own
        else:
            chosen += _sessions_by_time(by_seed[episode.lease.seed], episode)
    return chosen


def _sessions_by_time(sessions: list[RecordedSession], episode: Episode) -> list[RecordedSession]:
    """Return those of the sessions with the episode's seed that were opened while it ran.

    For traffic whose sessions carry no episode: all attempts of an episode have the same seed.
    """
    start = episode.timings.started_at - _CLOCK_S
    end = episode.timings.started_at + episode.timings.wall_s + _CLOCK_S
    return [session for session in sessions if start <= session.opened_at <= end] or sessions
