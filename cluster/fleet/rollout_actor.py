"""The Ray actor of one rollout worker, and the client through which the pool sees it."""

import asyncio
import os
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray

from cluster.fleet.health.heartbeat import NoAnswer, Patience, await_answer
from cluster.fleet.health.kept_warnings import KeptWarnings, say_for
from cluster.fleet.health.losses import WorkerLost
from cluster.fleet.health.node_guard import NodeGuards
from cluster.fleet.health.stacks import write_stacks_on_request
from cluster.fleet.health.vitals import Vital
from cluster.fleet.placement.worker_place import WorkerPlace
from cluster.fleet.pool_worker import WorkerReport
from cluster.fleet.ray_errors import RemoteCall, answer_of
from cluster.fleet.rollout_worker import RolloutWorker, WorkerSpec
from cluster.fleet.survivors.absence import DriverAbsence
from cluster.fleet.survivors.held_episodes import Attempt, HeldEpisodes, attempt_of
from cluster.fleet.survivors.lasting import ENDS_WITH_DRIVER, Lasting, Survivor
from cluster.fleet.tool_fleet import ToolAccess
from cluster.fleet.weight_relay import WeightRelays, place_here
from envs.errors import WeightSyncError
from envs.late_imports import import_late
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.engines.vllm_environment import engine_environment
from rollout.episode import Lease
from rollout.episode_schema import from_wire, to_wire
from rollout.kept_turns import KeptTurns
from rollout.weights.manifest import Place, WeightManifest

Answer = TypeVar("Answer")
MAX_CALLS = 4096
"""Calls that one actor serves at once; more than any sensible `rollouts.episodes_per_worker`."""


class RolloutActor:
    """Ray actor around a RolloutWorker; all calls share one event loop."""

    def __init__(self, name: str, spec: WorkerSpec, access: ToolAccess, keep_s: float) -> None:
        """`keep_s` is how long it lasts without a driver; 0 where Ray ends it with its driver."""
        write_stacks_on_request()
        self._warnings = KeptWarnings()
        tools = access.tools_for(name, spec.tools)
        self._worker = RolloutWorker(name, spec, tools, import_late(spec.engine_factory))
        self._starting: asyncio.Task[None] | None = None
        self._absence = DriverAbsence(keep_s) if keep_s else None
        self._episodes = HeldEpisodes() if keep_s else None

    async def start(self, shm_dir: str) -> Place:
        """Start the worker, or wait until it has started; return the place of its weight files."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._worker.start())
        await asyncio.shield(self._starting)
        return place_here(shm_dir)

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, kept: KeptTurns | None
    ) -> pa.Buffer:
        """Run one episode; return its batch as one buffer, which Ray moves without pickling."""
        work = self._run(lease, task, config, kept)
        return await (work if self._episodes is None else self._episodes.run(lease, work))

    async def _run(
        self, lease: Lease, task: Task, config: EpisodeConfig, kept: KeptTurns | None
    ) -> pa.Buffer:
        return to_wire(await self._worker.run_episode(lease, task, config, kept))

    async def load_weights(self, manifest: WeightManifest) -> None:
        await self._worker.load_weights(manifest)

    async def ping(self, arrived: Sequence[Attempt] = ()) -> WorkerReport:
        """Say where the worker runs and what it does; the driver has the episodes `arrived`.

        Raises EngineError for a lost engine.
        """
        if self._absence is not None:
            self._absence.heard()
        if self._episodes is not None:
            self._episodes.confirm(arrived)
        self._worker.check()
        node = ray.get_runtime_context().get_node_id()
        turns = self._worker.take_turns()
        return WorkerReport(
            node=node,
            pid=os.getpid(),
            oldest=self._worker.oldest,
            turns=turns,
            warnings=self._warnings.take(),
        )

    async def settle(self) -> list[pa.Buffer]:
        """End the episodes of a driver that is gone; return those that have finished since."""
        return await self._episodes.settle() if self._episodes is not None else []

    async def close(self) -> None:
        await self._worker.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLinks:
    """What a worker's client needs to reach it and to know that it lives."""

    access: ToolAccess
    relays: WeightRelays
    guards: NodeGuards
    patience: Patience
    lasts: Lasting = ENDS_WITH_DRIVER


class RayWorker:
    """WorkerClient of one RolloutActor."""

    def __init__(
        self,
        name: str,
        spec: WorkerSpec,
        place: WorkerPlace,
        links: WorkerLinks,
        survivor: Survivor | None = None,
    ) -> None:
        """With a `survivor`, which was made from the same parts, it is that actor."""
        self.has_survived = survivor is not None
        self._actor: Any = (
            survivor.actor if survivor is not None else _spawn(name, spec, place, links)
        )
        self._name = name
        self._links = links
        self._place: Place | None = None
        self._report: WorkerReport | None = None
        self._given_up: WorkerLost | None = None
        """Why the worker was ended from here."""
        self._first_look: asyncio.Task[Any] | None = None
        self._arrived: list[Attempt] = []
        """Episodes that arrived since the last health check."""

    @property
    def pid(self) -> int:
        """Its process; 0 until it has one."""
        return self._report.pid if self._report is not None else 0

    async def start(self) -> None:
        self._place = await self._answer(self._actor.start.remote(self._links.relays.shm_dir))

    async def run_episode(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        return await self._run(lease, task, config, None)

    async def continue_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, kept: KeptTurns
    ) -> pa.RecordBatch:
        return await self._run(lease, task, config, kept)

    async def _run(
        self, lease: Lease, task: Task, config: EpisodeConfig, kept: KeptTurns | None
    ) -> pa.RecordBatch:
        try:
            row = await self._answer(self._actor.run_episode.remote(lease, task, config, kept))
        except WorkerLost as error:
            raise self._given_up or error from error
        self._arrived.append(attempt_of(lease))
        return from_wire(row)

    async def settle(self) -> list[pa.RecordBatch]:
        """See SurvivingClient."""
        return [from_wire(row) for row in await self._answer(self._actor.settle.remote())]

    async def load_weights(self, manifest: WeightManifest) -> None:
        assert self._place is not None, "start comes first"
        there = await self._links.relays.at(self._place, manifest)
        try:
            await self._answer(self._actor.load_weights.remote(there))
        except WeightSyncError:
            self._links.relays.forget(self._place)
            raise

    async def ping(self) -> WorkerReport:
        """See WorkerClient. A worker that is frozen is ended, because Ray cannot end it."""
        arrived, self._arrived = self._arrived, []
        question, known = self._answer(self._actor.ping.remote(arrived)), self._report
        if known is None:
            found = self._report = await question
            say_for(self._name, found.warnings)
            looking = self._links.guards.look(found.node, [found.pid])
            self._first_look = asyncio.create_task(looking)
            return found

        async def look() -> Vital | None:
            vitals = await self._links.guards.look(known.node, [known.pid])
            return vitals[0] if vitals is not None else None

        try:
            found = self._report = await await_answer(question, look, self._links.patience)
        except NoAnswer as error:
            # Noted first: the episodes that fail when the process ends then say why it had to.
            self._given_up = WorkerLost(f"{self._name}: {error}", error.kind)
            await self._links.guards.end(known.node, known.pid)
            raise self._given_up from error
        say_for(self._name, found.warnings)
        return found

    async def close(self) -> None:
        await self._answer(self._actor.close.remote())

    def kill(self) -> None:
        ray.kill(self._actor)

    async def _answer(self, pending: Awaitable[Answer]) -> Answer:
        return await answer_of(pending, RemoteCall(name=self._name, failure=WorkerLost))


def _spawn(name: str, spec: WorkerSpec, place: WorkerPlace, links: WorkerLinks) -> Any:
    remote: Any = ray.remote(RolloutActor)
    variables = engine_environment(
        gpu=spec.engine.device == "cuda", deterministic=spec.engine.deterministic
    )
    return remote.options(
        **place.options(),
        **links.lasts.options(),
        max_concurrency=MAX_CALLS,
        runtime_env={"env_vars": variables},
    ).remote(name, spec, links.access, links.lasts.keep_s)
