"""A rollout worker: one engine, a connection to tool servers, and episodes on both. No Ray."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cluster.fleet.balanced_tools import BalancedTools
from cluster.fleet.health.engine_watch import EngineWatch
from cluster.fleet.pool_worker import Activity
from envs.config import ToolServerConfig
from envs.errors import MissingError
from envs.services.router import ToolRouter
from envs.tasks import Task
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engine import Engine, WatchedEngine
from rollout.engines.engine_spec import EngineSpec
from rollout.episode import Lease
from rollout.episode_schema import to_batch
from rollout.kept_turns import KeptTurns, SealedPart
from rollout.runner import EpisodeRunner, Identity
from rollout.weights.manifest import WeightManifest

VLLM = "cluster.fleet.vllm_factory:make_engine"
"""Factory of vLLM engines, by name: only the worker's own process imports vLLM, which takes
seconds.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What every rollout worker of a run is made from."""

    engine: EngineSpec
    tools: ToolServerConfig
    keep_turns: bool = True
    """Whether finished turns are reported."""
    engine_factory: str = VLLM
    """`module:function` of a MakeEngine."""


MakeEngine = Callable[[ChatTemplate, EngineSpec], Engine]


class RolloutWorker:
    """Runs any number of episodes at once, on one event loop."""

    def __init__(
        self, name: str, spec: WorkerSpec, tools: BalancedTools, make_engine: MakeEngine
    ) -> None:
        self._name = name
        self._spec = spec
        self._tools = tools
        self._make_engine = make_engine
        self._services: ToolRouter | None = None
        self._engine: Engine | None = None
        self._runner: EpisodeRunner | None = None
        self._watch: EngineWatch | None = None

    async def start(self) -> None:
        """Start tools and engine.

        Raises MissingError, InfraError, IsolationError, TemplateError.
        """
        spec = self._spec.engine
        _check_model(Path(spec.model_path))
        template = await asyncio.to_thread(ChatTemplate.load, Path(spec.model_path), spec.model)
        await self._tools.start()
        self._engine = self._make_engine(template, spec)
        await self._engine.start()
        if isinstance(self._engine, WatchedEngine):
            self._watch = EngineWatch(self._engine)
            await self._watch.start()
        identity = Identity(
            worker=self._name,
            max_model_len=spec.model.max_model_len,
            tool_format=spec.model.tool_format,
        )
        self._services = ToolRouter(self._tools, self._spec.tools, os.environ)
        self._runner = EpisodeRunner(self._engine, self._services, template, identity)

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, kept: KeptTurns | None = None
    ) -> pa.RecordBatch:
        """Run one episode, from the turns of another worker if there are any; return one row in
        EPISODE_SCHEMA.

        Raises EngineError if this worker must be replaced, TurnsNotKept.
        """
        assert self._runner is not None, "start comes first"
        return to_batch([await self._runner.run_episode(lease, task, config, kept)])

    def take_turns(self) -> list[SealedPart]:
        """Return what the turns that finished since the last call have added to their episodes."""
        if self._runner is None or not self._spec.keep_turns:
            return []
        return [part.sealed() for part in self._runner.take_turns()]

    async def load_weights(self, manifest: WeightManifest) -> None:
        """Load new weights. Raises WeightSyncError, EngineError."""
        assert self._engine is not None, "start comes first"
        await self._engine.load_weights(manifest)

    def check(self) -> None:
        """Raise EngineError if the engine's processes have died or are frozen."""
        if self._watch is not None:
            self._watch.check()

    @property
    def oldest(self) -> Activity | None:
        """What has lasted longest of all that the episodes do now."""
        doing = self._runner.doing if self._runner is not None else []
        if not doing:
            return None
        oldest = min(doing, key=lambda found: found.since)
        for_s = time.monotonic() - oldest.since
        return Activity(episode=oldest.episode, what=oldest.what, for_s=for_s)

    async def close(self) -> None:
        if self._watch is not None:
            await self._watch.close()
        if self._engine is not None:
            await self._engine.close()
        await (self._services or self._tools).close()


def _check_model(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise MissingError(
            f"expected the model {folder} on node {socket.gethostname()}, found none: every node "
            "needs it at the same path; put it there, or choose shared folders for model.path and "
            "run.models_dir"
        )
