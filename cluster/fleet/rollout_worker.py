"""A rollout worker: one engine, its way to the tools, and the episodes that run on them. No Ray."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cluster.fleet.balanced_tools import BalancedTools
from envs.config import ToolServerConfig
from envs.services.router import ToolRouter
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.engine import Engine
from rollout.episode import Lease
from rollout.episode_schema import to_batch
from rollout.runner import EpisodeRunner, Identity
from rollout.template import ChatTemplate
from rollout.weights.manifest import WeightManifest


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every rollout worker of a run is made from; `model_path` is a Hugging Face folder."""

    model_path: str
    max_model_len: int
    tools: ToolServerConfig


class RolloutWorker:
    """Runs leased episodes, any number at once, on one event loop."""

    def __init__(
        self,
        name: str,
        spec: WorkerSpec,
        tools: BalancedTools,
        make_engine: Callable[[ChatTemplate], Engine],
    ) -> None:
        self._name = name
        self._spec = spec
        self._tools = tools
        self._make_engine = make_engine
        self._services: ToolRouter | None = None
        self._engine: Engine | None = None
        self._runner: EpisodeRunner | None = None

    async def start(self) -> None:
        """Start tools and engine. Raises InfraError, IsolationError, TemplateError."""
        template = await asyncio.to_thread(ChatTemplate.load, Path(self._spec.model_path))
        await self._tools.start()
        self._engine = self._make_engine(template)
        await self._engine.start()
        identity = Identity(worker=self._name, max_model_len=self._spec.max_model_len)
        self._services = ToolRouter(self._tools, self._spec.tools, os.environ)
        self._runner = EpisodeRunner(self._engine, self._services, template, identity)

    async def run(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        """Play one episode; one row in EPISODE_SCHEMA. Raises EngineError when this worker is
        broken.
        """
        assert self._runner is not None, "start comes first"
        return to_batch([await self._runner.run_episode(lease, task, config)])

    async def load(self, manifest: WeightManifest) -> None:
        """Take new weights. Raises WeightSyncError, EngineError."""
        assert self._engine is not None, "start comes first"
        await self._engine.load(manifest)

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()
        await (self._services or self._tools).close()
