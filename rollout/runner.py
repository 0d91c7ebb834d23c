"""The episode runner: trial, experience, execution, answer."""

from envs.tasks import Task
from envs.tools import ToolService
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engine import Engine
from rollout.episode import Episode, Lease
from rollout.identity import Doing, Identity
from rollout.in_progress import Assignment, EpisodeInProgress
from rollout.kept_turns import KeptTurns, TurnsPart
from rollout.language import format_of

__all__ = ["EpisodeRunner", "Identity"]


class EpisodeRunner:
    """Runs any number of concurrent episodes on one event loop, one engine and one tool service."""

    def __init__(
        self, engine: Engine, tools: ToolService, template: ChatTemplate, identity: Identity
    ) -> None:
        self._engine = engine
        self._tools = tools
        self._template = template
        self._identity = identity
        self._format = format_of(template, identity.tool_format)
        self._running: set[EpisodeInProgress] = set()

    @property
    def doing(self) -> list[Doing]:
        """What each episode in progress waits for now."""
        return [run.doing for run in self._running]

    def take_turns(self) -> list[TurnsPart]:
        """Return what the turns that finished since the last call have added to their episodes."""
        parts = (run.take_turns() for run in self._running)
        return [part for part in parts if part is not None]

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, kept: KeptTurns | None = None
    ) -> Episode:
        """Run one episode to its end; most failures become an outcome of the episode.

        With `kept` it goes on from the turns of an earlier attempt, and raises TurnsNotKept where
        its tools cannot be brought to the state that they had.

        Raises EngineError, because then the worker is broken and the episode has to be assigned to
        another one. Cancellation of the calling asyncio task is passed on, too.
        """
        run = EpisodeInProgress(
            self._engine,
            self._tools,
            self._template,
            self._identity,
            Assignment(lease, task, config, self._format, kept),
        )
        self._running.add(run)
        try:
            return await run.run_to_end()
        finally:
            self._running.discard(run)
