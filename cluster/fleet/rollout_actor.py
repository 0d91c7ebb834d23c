"""The Ray actor of one rollout worker, and the client through which the pool sees it."""

import os
from collections.abc import Awaitable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from cluster.fleet.engine_plan import EnginePlan
from cluster.fleet.pool import WorkerLost
from cluster.fleet.rollout_worker import RolloutWorker, WorkerSpec
from cluster.fleet.tool_fleet import ToolAccess
from cluster.fleet.weight_relay import WeightRelays, place_here
from envs.errors import TrialrunError, WeightSyncError
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.engines.vllm_environment import engine_environment
from rollout.episode import Lease
from rollout.episode_schema import from_wire, to_wire
from rollout.weights.manifest import Place, WeightManifest

Answer = TypeVar("Answer")
MAX_CALLS = 4096
"""Calls that one actor serves at once; above any sensible `rollouts.episodes_per_worker`."""


@dataclass(frozen=True, slots=True)
class Share:
    """What Ray reserves for one worker."""

    cpus: float
    gpus: float


class RolloutActor:
    """Shell of one RolloutWorker with a vLLM engine; its methods share one event loop."""

    def __init__(self, name: str, spec: WorkerSpec, plan: EnginePlan, access: ToolAccess) -> None:
        make_engine = resolve_name(plan.factory)
        tools = access.tools_for(name, spec.tools)
        self._worker = RolloutWorker(
            name, spec, tools, lambda template: make_engine(template, plan)
        )

    async def start(self, shm_dir: str) -> tuple[int, Place]:
        """Start all of it; returns the process id, and where the engine finds weights."""
        await self._worker.start()
        return os.getpid(), place_here(shm_dir)

    async def run(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.Buffer:
        """Play one episode; the batch goes as one buffer, which Ray moves without pickling."""
        return to_wire(await self._worker.run(lease, task, config))

    async def load(self, manifest: WeightManifest) -> None:
        await self._worker.load(manifest)

    async def ping(self) -> None: ...

    async def close(self) -> None:
        await self._worker.close()


class RayWorker:
    """WorkerClient of one RolloutActor."""

    def __init__(
        self,
        name: str,
        spec: WorkerSpec,
        plan: EnginePlan,
        access: ToolAccess,
        share: Share,
        relays: WeightRelays,
    ) -> None:
        remote: Any = ray.remote(RolloutActor)
        self._actor: Any = remote.options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_concurrency=MAX_CALLS,
            runtime_env={
                "env_vars": engine_environment(gpu=plan.gpu, deterministic=plan.deterministic)
            },
        ).remote(name, spec, plan, access)
        self._name = name
        self._relays = relays
        self._place: Place | None = None
        self.pid = 0

    async def start(self) -> None:
        started = self._actor.start.remote(self._relays.shm_dir)
        self.pid, self._place = await self._answer(started)

    async def run(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        return from_wire(await self._answer(self._actor.run.remote(lease, task, config)))

    async def load(self, manifest: WeightManifest) -> None:
        assert self._place is not None, "start comes first"
        there = await self._relays.at(self._place, manifest)
        try:
            await self._answer(self._actor.load.remote(there))
        except WeightSyncError:
            self._relays.forget(self._place)
            raise

    async def ping(self) -> None:
        await self._answer(self._actor.ping.remote())

    async def close(self) -> None:
        await self._answer(self._actor.close.remote())

    def kill(self) -> None:
        ray.kill(self._actor)

    async def _answer(self, ref: Awaitable[Answer]) -> Answer:
        try:
            return await ref
        except RayTaskError as error:
            if isinstance(error.cause, TrialrunError):
                raise error.cause from None
            raise WorkerLost(f"{self._name}: {error.cause!r}") from error
        except RayError as error:
            raise WorkerLost(f"{self._name} died: {str(error).splitlines()[0]}") from error
