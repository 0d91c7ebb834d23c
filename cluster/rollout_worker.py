"""A rollout worker: one engine, one tool server, and the episodes that run on them. No Ray."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from envs.config import ToolServerConfig
from envs.tasks import Task
from envs.tool_client import ToolClient
from envs.tool_process import ToolServerProcess
from envs.tools import SessionPurpose, ToolSession, ToolSet
from rollout.config import EpisodeConfig
from rollout.engine import Engine
from rollout.episode import Lease
from rollout.episode_schema import to_batch
from rollout.runner import EpisodeRunner, Identity
from rollout.template import ChatTemplate
from rollout.weights import WeightManifest


class LocalTools:
    """ToolService on a tool server of this process's own, started again when it dies."""

    def __init__(self, config: ToolServerConfig) -> None:
        self._config = config
        self._process: ToolServerProcess | None = None
        self._client: ToolClient | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Start the server. Raises ToolServerError, IsolationError."""
        await self._live_client()

    async def open(self, tool_set: ToolSet, seed: int, purpose: SessionPurpose) -> ToolSession:
        return await (await self._live_client()).open(tool_set, seed, purpose)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.stop)

    async def _live_client(self) -> ToolClient:
        async with self._starting:
            if self._client is None or self._process is None or not self._process.alive:
                await self._restart()
        assert self._client is not None
        return self._client

    async def _restart(self) -> None:
        if self._client is not None and self._process is not None:
            await self._client.close()
            await asyncio.to_thread(self._process.stop)
        self._process = ToolServerProcess(self._config)
        await asyncio.to_thread(self._process.start)
        self._client = ToolClient(self._process.address, self._config)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every rollout worker of a run is made from; `model_path` is a Hugging Face folder."""

    model_path: str
    max_model_len: int
    tools: ToolServerConfig


class RolloutWorker:
    """Runs leased episodes, any number at once, on one event loop."""

    def __init__(
        self, name: str, spec: WorkerSpec, make_engine: Callable[[ChatTemplate], Engine]
    ) -> None:
        self._name = name
        self._spec = spec
        self._make_engine = make_engine
        self._tools: LocalTools | None = None
        self._engine: Engine | None = None
        self._runner: EpisodeRunner | None = None

    async def start(self) -> None:
        """Start tool server and engine. Raises InfraError, IsolationError, TemplateError."""
        template = await asyncio.to_thread(ChatTemplate.load, Path(self._spec.model_path))
        self._tools = LocalTools(self._spec.tools)
        await self._tools.start()
        self._engine = self._make_engine(template)
        await self._engine.start()
        identity = Identity(self._name, max_model_len=self._spec.max_model_len)
        self._runner = EpisodeRunner(self._engine, self._tools, template, identity)

    async def run(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        """Play one episode; one row in EPISODE_SCHEMA. Raises EngineError when this worker is
        broken.
        """
        assert self._runner is not None, "start comes first"
        return to_batch([await self._runner.run(lease, task, config)])

    async def load(self, manifest: WeightManifest) -> None:
        """Take new weights. Raises WeightSyncError, EngineError."""
        assert self._engine is not None, "start comes first"
        await self._engine.load(manifest)

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()
        if self._tools is not None:
            await self._tools.close()
