"""The elastic pool of rollout workers: one supervised slot each, none waits for a dead one.

STARTING → STALE → HEALTHY → DRAINING or DEAD → STARTING. Only a HEALTHY worker, whose engine holds
the
pool's current weights, gets leases.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import pyarrow as pa

from cluster.config.run_config import RolloutsSection
from envs.errors import DeadlineError, EngineError, InfraError, TrialrunError, WeightSyncError
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.episode import Lease
from rollout.weights.manifest import WeightManifest

logger = logging.getLogger("trialrun")

MAX_START_FAILURES = 3
"""Failed starts in a row, of one slot, after which nobody waits for it: the fault is not a passing
one. It goes on being started, for the day when a node comes back.
"""


class WorkerLost(InfraError):
    """The worker that ran a lease is gone; the lease goes to another."""


class WorkerState(StrEnum):
    STARTING = "starting"
    STALE = "stale"
    HEALTHY = "healthy"
    DRAINING = "draining"
    DEAD = "dead"


class WorkerClient(Protocol):
    """A rollout worker as the pool sees it; a call that raises is the worker's end."""

    async def start(self) -> None: ...

    async def run(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        """Play one episode; returns a batch of one row. Raises WorkerLost."""
        ...

    async def load(self, manifest: WeightManifest) -> None: ...

    async def ping(self) -> None: ...

    def kill(self) -> None: ...


@dataclass(slots=True)
class Worker:
    """One slot of the pool and who fills it now."""

    name: str
    client: WorkerClient
    state: WorkerState = WorkerState.STARTING
    version: int = 0
    running: int = 0
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    failure: str = ""


@dataclass(frozen=True, slots=True)
class PoolTiming:
    """Seconds between pings and before a slot starts again after its n-th failure in a row."""

    ping_every_s: float = 5.0
    backoff_s: float = 1.0
    start_timeout_s: float = 600.0
    load_timeout_s: float = 120.0


class RolloutPool:
    """Runs leases on healthy workers and keeps as many of them as desired."""

    def __init__(
        self, spawn: Callable[[str], WorkerClient], section: RolloutsSection, timing: PoolTiming
    ) -> None:
        self._spawn = spawn
        self._section = section
        self._timing = timing
        self._slots: dict[int, asyncio.Task[None]] = {}
        self._workers: dict[int, Worker] = {}
        self._manifest: WeightManifest | None = None
        self._changed = asyncio.Condition()
        self._leaving: set[asyncio.Task[None]] = set()
        self._given_up: dict[int, str] = {}
        """Slots that nobody waits for, and why they do not start."""
        self._spawned = 0
        self.losses = 0

    @property
    def workers(self) -> list[Worker]:
        """The workers of all slots, as they are now."""
        return [self._workers[slot] for slot in sorted(self._workers)]

    @property
    def desired(self) -> int:
        """The number of workers that is asked for."""
        return len(self._slots)

    def resize(self, desired: int) -> None:
        """Set the desired number of workers; surplus ones drain, missing ones start."""
        for slot in range(desired):
            if slot not in self._slots:
                self._slots[slot] = asyncio.create_task(self._tend(slot), name=f"slot-{slot}")
        for slot in [slot for slot in self._slots if slot >= desired]:
            self._dismiss(slot)

    def _dismiss(self, slot: int) -> None:
        task, worker = self._slots.pop(slot), self._workers.get(slot)
        self._given_up.pop(slot, None)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        if worker is not None and worker.state in (WorkerState.HEALTHY, WorkerState.STALE):
            worker.state = WorkerState.DRAINING
            worker.failed.set()
        else:
            task.cancel()

    async def wait_healthy(self, count: int = 1) -> None:
        """Wait until `count` workers are healthy. Raises DeadlineError, or what keeps them from
        starting.
        """
        await self._until(
            lambda: self._healthy_count() >= count, f"{count} healthy rollout workers", count
        )

    async def run(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        """Run `lease` on a healthy worker, `prefer` if it has room; returns the episode and the
        worker's name.

        Raises WorkerLost when the worker died or overran the deadline.
        """
        worker = await self._acquire(prefer)
        worker.running += 1
        try:
            async with asyncio.timeout(self._section.episode_timeout_s):
                return await worker.client.run(lease, task, config), worker.name
        except TimeoutError:
            reason = (
                f"{worker.name} overran {self._section.episode_timeout_s:g} s on {lease.episode}"
            )
            self._fail(worker, reason)
            raise WorkerLost(reason) from None
        except (WorkerLost, EngineError) as error:
            self._fail(worker, str(error))
            raise WorkerLost(str(error)) from error
        finally:
            worker.running -= 1
            await self._notify()

    async def load(self, manifest: WeightManifest) -> None:
        """Push weights to every healthy worker; one that misses them is replaced, and the rest go
        on.
        """
        self._manifest = manifest
        healthy = [worker for worker in self.workers if worker.state is WorkerState.HEALTHY]
        async with asyncio.TaskGroup() as group:
            for worker in healthy:
                worker.state = WorkerState.STALE
                group.create_task(self._load_or_fail(worker))
        await self._notify()

    async def close(self) -> None:
        """End all workers."""
        slots = [*self._slots.values(), *self._leaving]
        self._slots.clear()
        for slot in slots:
            slot.cancel()
        await asyncio.gather(*slots, return_exceptions=True)

    # One slot: spawn, start, catch up, watch, and again

    async def _tend(self, slot: int) -> None:
        failures = 0
        while self._slots.get(slot) is asyncio.current_task():
            self._spawned += 1
            name = f"worker-{self._spawned}"
            worker = Worker(name, self._spawn(name))
            self._workers[slot] = worker
            began = time.monotonic()
            try:
                await self._bring_up(worker)
                failures = 0
                self._given_up.pop(slot, None)
                await self._watch(worker)
            except TrialrunError as error:
                worker.failure = str(error)
            except Exception as error:
                worker.failure = f"{type(error).__name__}: {error}"
            finally:
                healthy = worker.state in (WorkerState.HEALTHY, WorkerState.DRAINING)
                worker.state = WorkerState.DEAD
                worker.client.kill()
                if self._slots.get(slot) is None and self._workers.get(slot) is worker:
                    del self._workers[slot]
            if self._slots.get(slot) is not asyncio.current_task():
                break
            self.losses += 1
            failures += not healthy
            logger.warning(
                "%s lost after %.0f s: %s", name, time.monotonic() - began, worker.failure
            )
            if failures >= MAX_START_FAILURES:
                self._given_up[slot] = worker.failure
            await self._notify()
            await asyncio.sleep(min(self._timing.backoff_s * 2**failures, 30.0))

    async def _bring_up(self, worker: Worker) -> None:
        async with asyncio.timeout(self._timing.start_timeout_s):
            await worker.client.start()
        while self._manifest is not None and worker.version < self._manifest.version:
            await self._take(worker)
        worker.state = WorkerState.HEALTHY
        await self._notify()

    async def _watch(self, worker: Worker) -> None:
        while not worker.failed.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timing.ping_every_s):
                    await worker.failed.wait()
                break
            async with asyncio.timeout(self._section.ping_timeout_s):
                await worker.client.ping()
        if worker.state is WorkerState.DRAINING:
            await self._drain(worker)
            return
        raise WorkerLost(worker.failure)

    async def _drain(self, worker: Worker) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._section.episode_timeout_s):
                async with self._changed:
                    await self._changed.wait_for(lambda: worker.running == 0)

    async def _take(self, worker: Worker, retries: int = 1) -> None:
        """Let `worker` load the newest weights. Raises InfraError or TimeoutError."""
        manifest = self._manifest
        assert manifest is not None
        worker.state = WorkerState.STALE
        try:
            async with asyncio.timeout(self._timing.load_timeout_s):
                await worker.client.load(manifest)
        except WeightSyncError:
            if not retries:
                raise
            await self._take(worker, retries - 1)
        else:
            worker.version = manifest.version

    async def _load_or_fail(self, worker: Worker) -> None:
        try:
            await self._take(worker)
        except (TimeoutError, InfraError) as error:
            self._fail(worker, f"took no weights: {str(error) or 'deadline'}")
        else:
            if not worker.failed.is_set():
                worker.state = WorkerState.HEALTHY

    # Waiting

    async def _acquire(self, prefer: str) -> Worker:
        await self._until(lambda: self._free() != [], "a healthy rollout worker", 1)
        free = self._free()
        return next(
            (worker for worker in free if worker.name == prefer),
            min(free, key=lambda worker: worker.running),
        )

    def _free(self) -> list[Worker]:
        room = self._section.episodes_per_worker
        return [
            worker
            for worker in self.workers
            if worker.state is WorkerState.HEALTHY and worker.running < room
        ]

    def _healthy_count(self) -> int:
        return sum(worker.state is WorkerState.HEALTHY for worker in self.workers)

    async def _until(self, holds: Callable[[], bool], what: str, needed: int) -> None:
        """Wait until `holds`, which takes `needed` workers.

        Raises DeadlineError, and InfraError where too few of them are left that may still start.
        """

        def is_hopeless() -> bool:
            return bool(self._given_up) and len(self._slots) - len(self._given_up) < needed

        try:
            async with asyncio.timeout(self._section.pool_timeout_s), self._changed:
                await self._changed.wait_for(lambda: holds() or is_hopeless())
                if not holds():
                    causes = "; ".join(sorted(set(self._given_up.values())))
                    raise InfraError(f"no rollout worker starts: {causes}")
        except TimeoutError:
            states = ", ".join(f"{worker.name} {worker.state}" for worker in self.workers)
            raise DeadlineError(
                f"waited {self._section.pool_timeout_s:g} s for {what}; "
                f"found {states or 'no workers'}"
            ) from None

    def _fail(self, worker: Worker, reason: str) -> None:
        if not worker.failed.is_set():
            worker.failure = reason
            if worker.state is not WorkerState.DRAINING:
                worker.state = WorkerState.DEAD
            worker.failed.set()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
