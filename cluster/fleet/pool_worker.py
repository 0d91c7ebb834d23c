"""One worker of a pool: its state, and the pool's connection to it."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from cluster.config.fleet_config import DEFAULT_GROUP
from cluster.fleet.health.kept_store import KeptStore
from cluster.fleet.health.losses import LossKind, WorkerLost
from cluster.fleet.loop_lag import LoopLag
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.episode import Lease, Outcome
from rollout.kept_turns import KeptTurns, SealedPart, TurnsNotKept
from rollout.weights.manifest import WeightManifest


class WorkerState(StrEnum):
    STARTING = "starting"
    STALE = "stale"
    HEALTHY = "healthy"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What an episode on a worker is waiting for."""

    episode: str
    what: str
    """In words that continue the name of the worker: `waits for tool server node/0.12`."""
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """What a worker says of itself when it is asked whether it is well."""

    node: str
    """Id of its node."""
    pid: int = 0
    oldest: Activity | None = None
    """What has lasted longest of all that its episodes do now."""
    turns: Sequence[SealedPart] = ()
    """Turns that its episodes have finished since the last report."""
    warnings: Sequence[str] = ()
    """What its process warned of since the last report."""


class WorkerClient(Protocol):
    """The pool's connection to one rollout worker. A call that raises ends the worker."""

    async def start(self) -> None: ...

    async def run_episode(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        """Run one episode and return it as a batch of one row. Raises WorkerLost."""
        ...

    async def load_weights(self, manifest: WeightManifest) -> None: ...

    async def ping(self) -> WorkerReport | None:
        """Return once the worker answers; the first answer comes once it has a place to run.

        Raises WorkerLost, EngineError soon after the worker or its engine has died or is frozen.
        """
        ...

    def kill(self) -> None: ...


@runtime_checkable
class ContinuingClient(WorkerClient, Protocol):
    """A client whose worker can go on from the finished turns of another one."""

    async def continue_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, kept: KeptTurns
    ) -> pa.RecordBatch:
        """As `run_episode`, from `kept`. Raises TurnsNotKept where that is not possible."""
        ...


@runtime_checkable
class SurvivingClient(WorkerClient, Protocol):
    """A client whose worker may have served an earlier driver of the run."""

    @property
    def has_survived(self) -> bool:
        """Whether it has: its engine then holds weights that this driver does not know."""
        ...

    async def settle(self) -> list[pa.RecordBatch]:
        """End the episodes of the driver before; return, once, those that have finished without
        it, each as a batch of one row.
        """
        ...


async def run_on(
    client: WorkerClient, lease: Lease, task: Task, config: EpisodeConfig, kept: KeptTurns | None
) -> pa.RecordBatch:
    """Run an episode through `client`, from `kept` if there is something and the client can."""
    if kept is None:
        return await client.run_episode(lease, task, config)
    if not isinstance(client, ContinuingClient):
        raise TurnsNotKept("its new worker cannot go on from the turns of another one")
    return await client.continue_episode(lease, task, config, kept)


Spawn = Callable[[str], WorkerClient]
UNKNOWN_VERSION = -1
"""Version of an engine whose weights an earlier driver has pushed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGroup:
    """Workers of one kind, which a pool starts and counts together."""

    spawn: Spawn
    episodes_per_worker: int


@dataclass(slots=True)
class Worker:
    """The worker that fills a slot of the pool."""

    name: str
    client: WorkerClient
    group: str = DEFAULT_GROUP
    capacity: int = 1
    """Episodes that it may run at once."""
    state: WorkerState = WorkerState.STARTING
    since: float = field(default_factory=time.monotonic)
    """When it entered its state, on the monotonic clock."""
    version: int = 0
    """Policy version that its engine holds."""
    running: int = 0
    """Episodes assigned to it now."""
    leases: dict[str, float] = field(default_factory=dict)
    """When each of its episodes was assigned, on the monotonic clock."""
    report: WorkerReport | None = None
    """Its last answer to a health check."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a worker that drains has ended its last episode."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the worker must end, because it failed or because the pool shrank."""
    drain_s: float = 0.0
    """How long a worker that drains may take."""
    failure: str = ""
    kind: LossKind = LossKind.DIED

    def __post_init__(self) -> None:
        if isinstance(self.client, SurvivingClient) and self.client.has_survived:
            self.version = UNKNOWN_VERSION

    @property
    def node(self) -> str:
        """Id of its node; empty until it has one."""
        return self.report.node if self.report is not None else ""


class Outcomes:
    """How the episodes ended that workers returned."""

    def __init__(self) -> None:
        self.counted = 0
        """Those that have a reward."""
        self.failed_in_a_row = 0
        """Those since that were ended by failures which are not the policy's."""
        self.last_error = ""

    def note(self, row: pa.RecordBatch) -> None:
        """Note an episode (one row)."""
        if Outcome(row["outcome"][0].as_py()).counts:
            self.counted, self.failed_in_a_row = self.counted + 1, 0
        else:
            self.failed_in_a_row += 1
            self.last_error = str(row["error"][0].as_py())


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTiming:
    """Intervals and deadlines of the supervision, in seconds."""

    ping_every_s: float = 2.0
    backoff_s: float = 1.0
    """Wait before a lost worker is replaced; it doubles with every failed start in a row."""
    start_timeout_s: float = 600.0
    load_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks workers at intervals whether they are well."""

    lag: LoopLag
    every_s: float
    timeout_s: float
    """Deadline of one answer."""
    kept: KeptStore

    async def until(self, end: asyncio.Event, worker: Worker) -> None:
        """Ask `worker` until `end` is set. Raises WorkerLost, EngineError."""
        while not end.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self.every_s):
                    await end.wait()
                return
            try:
                async with self.lag.deadline(self.timeout_s):
                    await self.ask(worker)
            except TimeoutError:
                reason = f"{worker.name}: no answer for {self.timeout_s:g} s"
                raise WorkerLost(reason, LossKind.UNRESPONSIVE) from None

    async def ask(self, worker: Worker) -> None:
        """Ask once, and keep the turns that the worker reports."""
        report = await worker.client.ping()
        if report is not None:
            self.kept.add(report.turns)
            worker.report = replace(report, turns=())

    async def during(self, worker: Worker, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`; it is cancelled once `worker` must end, or is not well. Raises why it is not,
        and what `work` raises.
        """
        asking = asyncio.create_task(self.until(worker.stopping, worker))
        working = asyncio.create_task(work)
        try:
            await asyncio.wait({working, asking}, return_when=asyncio.FIRST_COMPLETED)
            (working if working.done() else asking).result()
        finally:
            for task in (working, asking):
                task.cancel()
            await asyncio.gather(working, asking, return_exceptions=True)
