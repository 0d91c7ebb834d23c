"""The Ray actor of one rollout worker, and the client through which the pool sees it."""

import os
from collections.abc import Awaitable
from typing import Any, TypeVar

import pyarrow as pa
import ray

from cluster.config.run_config import ClusterSection
from cluster.fleet.health.kept_warnings import KeptWarnings, say_for
from cluster.fleet.pool import WorkerLost
from cluster.fleet.ray_errors import RemoteCall, answer_of
from cluster.fleet.rollout_worker import RolloutWorker, WorkerSpec
from cluster.fleet.tool_fleet import ToolAccess
from cluster.fleet.weight_relay import WeightRelays, place_here
from envs.errors import WeightSyncError
from envs.late_imports import import_late
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.engines.vllm_environment import engine_environment
from rollout.episode import Lease
from rollout.episode_schema import from_wire, to_wire
from rollout.weights.manifest import Place, WeightManifest

Answer = TypeVar("Answer")
MAX_CALLS = 4096
"""Calls that one actor serves at once; more than any sensible `rollouts.episodes_per_worker`."""


class RolloutActor:
    """Ray actor around a RolloutWorker; all calls share one event loop."""

    def __init__(self, name: str, spec: WorkerSpec, access: ToolAccess) -> None:
        self._warnings = KeptWarnings()
        tools = access.tools_for(name, spec.tools)
        self._worker = RolloutWorker(name, spec, tools, import_late(spec.engine_factory))

    async def start(self, shm_dir: str) -> tuple[int, Place]:
        """Start the worker; return its process id and the place of its weight files."""
        await self._worker.start()
        return os.getpid(), place_here(shm_dir)

    async def run_episode(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.Buffer:
        """Run one episode; return its batch as one buffer, which Ray moves without pickling."""
        return to_wire(await self._worker.run_episode(lease, task, config))

    async def load_weights(self, manifest: WeightManifest) -> None:
        await self._worker.load_weights(manifest)

    async def ping(self) -> list[str]:
        """Return what this process warned of since the last call."""
        return self._warnings.take()

    async def close(self) -> None:
        await self._worker.close()


class RayWorker:
    """WorkerClient of one RolloutActor."""

    def __init__(
        self,
        name: str,
        spec: WorkerSpec,
        section: ClusterSection,
        access: ToolAccess,
        relays: WeightRelays,
    ) -> None:
        remote: Any = ray.remote(RolloutActor)
        variables = engine_environment(
            gpu=spec.engine.device == "cuda", deterministic=spec.engine.deterministic
        )
        self._actor: Any = remote.options(
            num_cpus=section.cpus_per_worker,
            num_gpus=section.gpus_per_worker,
            max_concurrency=MAX_CALLS,
            runtime_env={"env_vars": variables},
        ).remote(name, spec, access)
        self._name = name
        self._relays = relays
        self._place: Place | None = None
        self.pid = 0

    async def start(self) -> None:
        started = self._actor.start.remote(self._relays.shm_dir)
        self.pid, self._place = await self._answer(started)

    async def run_episode(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        return from_wire(await self._answer(self._actor.run_episode.remote(lease, task, config)))

    async def load_weights(self, manifest: WeightManifest) -> None:
        assert self._place is not None, "start comes first"
        there = await self._relays.at(self._place, manifest)
        try:
            await self._answer(self._actor.load_weights.remote(there))
        except WeightSyncError:
            self._relays.forget(self._place)
            raise

    async def ping(self) -> None:
        say_for(self._name, await self._answer(self._actor.ping.remote()))

    async def close(self) -> None:
        await self._answer(self._actor.close.remote())

    def kill(self) -> None:
        ray.kill(self._actor)

    async def _answer(self, pending: Awaitable[Answer]) -> Answer:
        return await answer_of(pending, RemoteCall(name=self._name, failure=WorkerLost))
