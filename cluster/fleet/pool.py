"""An elastic pool of rollout workers that survives the loss of any of them.

A worker is STARTING, then STALE while it loads the newest weights, then HEALTHY. It ends as
DRAINING (the pool shrank) or DEAD (it failed), and a DEAD one is replaced in its slot. Only HEALTHY
workers, whose engines hold the newest weights, are given episodes.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import pyarrow as pa

from cluster.config.run_config import RolloutsSection
from cluster.fleet.free_slots import FreeSlots
from cluster.fleet.loop_lag import LoopLag
from cluster.fleet.supervision import RestartPolicy, Supervision
from envs.errors import DeadlineError, EngineError, InfraError, TrialrunError, WeightSyncError
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.episode import Lease
from rollout.weights.manifest import WeightManifest

logger = logging.getLogger("trialrun")


class WorkerLost(InfraError):
    """The worker that ran an episode is gone; the episode is to be run by another one."""


class WorkerState(StrEnum):
    STARTING = "starting"
    STALE = "stale"
    HEALTHY = "healthy"
    DRAINING = "draining"
    DEAD = "dead"


class WorkerClient(Protocol):
    """The pool's connection to one rollout worker. A call that raises ends the worker."""

    async def start(self) -> None: ...

    async def run_episode(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        """Run one episode and return it as a batch of one row. Raises WorkerLost."""
        ...

    async def load_weights(self, manifest: WeightManifest) -> None: ...

    async def ping(self) -> None: ...

    def kill(self) -> None: ...


@dataclass(slots=True)
class Worker:
    """The worker that fills a slot of the pool."""

    name: str
    client: WorkerClient
    state: WorkerState = WorkerState.STARTING
    version: int = 0
    """Policy version that its engine holds."""
    running: int = 0
    """Episodes assigned to it now."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a worker that drains has ended its last episode."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the worker must end, because it failed or because the pool shrank."""
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTiming:
    """Intervals and deadlines of the supervision, in seconds."""

    ping_every_s: float = 5.0
    backoff_s: float = 1.0
    """Wait before a lost worker is replaced; it doubles with every failed start in a row."""
    start_timeout_s: float = 600.0
    load_timeout_s: float = 120.0


class RolloutPool:
    """Runs episodes on healthy workers and keeps the target number of workers running."""

    def __init__(
        self, spawn: Callable[[str], WorkerClient], section: RolloutsSection, timing: PoolTiming
    ) -> None:
        self._spawn = spawn
        self._section = section
        self._timing = timing
        self._supervision = Supervision(RestartPolicy(backoff_s=timing.backoff_s))
        self._slots: dict[int, asyncio.Task[None]] = {}
        """The task that supervises each wanted slot; a dismissed slot leaves at once."""
        self._workers: dict[int, Worker] = {}
        self._manifest: WeightManifest | None = None
        self._free: FreeSlots[Worker] = FreeSlots(section.episodes_per_worker)
        self._changed = asyncio.Condition()
        """Notified when a worker comes, goes or is lost; not when an episode ends."""
        self.lag = LoopLag()
        """How late the loop is that talks to the workers."""
        self._leaving: set[asyncio.Task[None]] = set()
        """Tasks of dismissed slots, which may still drain."""
        self._spawned = 0

    @property
    def workers(self) -> list[Worker]:
        """The workers of all slots, as they are now."""
        return [self._workers[slot] for slot in sorted(self._workers)]

    @property
    def desired(self) -> int:
        """Target number of workers."""
        return len(self._slots)

    @property
    def losses(self) -> int:
        """Workers lost so far; those that drained are not counted."""
        return self._supervision.losses

    @property
    def holds_pushed_weights(self) -> bool:
        """Whether an engine holds other weights than those of the model that it started from."""
        return any(worker.version > 0 for worker in self.workers)

    def resize(self, desired: int) -> None:
        """Set the target number of workers: surplus ones drain, missing ones start."""
        self.lag.start()
        for slot in range(desired):
            if slot not in self._slots:
                self._supervision.add(slot)
                self._slots[slot] = asyncio.create_task(self._supervise(slot), name=f"slot-{slot}")
        for slot in [slot for slot in self._slots if slot >= desired]:
            self._dismiss(slot)

    def _dismiss(self, slot: int) -> None:
        task, worker = self._slots.pop(slot), self._workers.get(slot)
        self._supervision.remove(slot)
        # The slot no longer counts, but close() must still be able to end a worker that drains.
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        if worker is not None and worker.state in (WorkerState.HEALTHY, WorkerState.STALE):
            # DRAINING before the event: _watch reads the state to tell a drain from a failure.
            self._enter(worker, WorkerState.DRAINING)
            worker.stopping.set()
        else:
            task.cancel()  # it runs no episode yet

    async def wait_healthy(self, count: int = 1) -> None:
        """Wait until `count` workers are healthy.

        Raises DeadlineError, or InfraError with the reasons if that many can no longer start.
        """
        await self._until(
            lambda: self._healthy_count() >= count, f"{count} healthy rollout workers", count
        )

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        """Run an episode on a healthy worker; return it with the worker's name.

        The worker called `prefer` is taken if it has room. Raises WorkerLost if the worker died or
        missed the deadline.
        """
        worker = await self._acquire(prefer)
        try:
            async with self.lag.deadline(self._section.episode_timeout_s):
                return await worker.client.run_episode(lease, task, config), worker.name
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
            self._free.leave(worker)
            if worker.state is WorkerState.DRAINING and worker.running == 0:
                worker.idle.set()

    async def load_weights(self, manifest: WeightManifest) -> None:
        """Push weights to every healthy worker; one that cannot load them is replaced."""
        # Set first: a worker that is starting reads it and loads these weights by itself.
        self._manifest = manifest
        healthy = [worker for worker in self.workers if worker.state is WorkerState.HEALTHY]
        async with asyncio.TaskGroup() as group:
            for worker in healthy:
                self._enter(worker, WorkerState.STALE)  # no new episodes under the old weights
                group.create_task(self._load_or_fail(worker))
        await self._notify()

    def forget_weights(self) -> None:
        """Let workers start without a load, because what was pushed last is no longer there."""
        self._manifest = None

    async def close(self) -> None:
        """End all workers."""
        self.lag.close()
        slots = [*self._slots.values(), *self._leaving]
        self._slots.clear()
        for slot in slots:
            slot.cancel()
        await asyncio.gather(*slots, return_exceptions=True)

    # Supervision of one slot: spawn, start, load the newest weights, watch; then again

    async def _supervise(self, slot: int) -> None:
        # A slot that was dismissed and added again has a new task; the old one must not touch it.
        while self._slots.get(slot) is asyncio.current_task():
            self._spawned += 1
            name = f"worker-{self._spawned}"
            worker = Worker(name, self._spawn(name))
            self._workers[slot] = worker
            started_at = time.monotonic()
            try:
                was_healthy = await self._live(slot, worker)
            finally:  # cancelled or not
                self._enter(worker, WorkerState.DEAD)
                worker.client.kill()
                if self._slots.get(slot) is None and self._workers.get(slot) is worker:
                    del self._workers[slot]
            if self._slots.get(slot) is not asyncio.current_task():
                break
            decision = self._supervision.lost(slot, worker.failure, stable=was_healthy)
            lived_s = time.monotonic() - started_at
            logger.warning("%s lost after %.0f s: %s", name, lived_s, worker.failure)
            if causes := self._supervision.hopeless(1):
                self._free.fail(_no_start(causes))
            await self._notify()
            await asyncio.sleep(decision.wait_s)

    async def _live(self, slot: int, worker: Worker) -> bool:
        """Bring `worker` up and watch it until it ends; return whether it was healthy before."""
        was_healthy = False
        try:
            await self._bring_up(worker)
            was_healthy = True
            self._supervision.serving(slot)
            await self._watch(worker)
        except TrialrunError as error:
            worker.failure = str(error)
        except Exception as error:  # a fault of one worker must not end the supervision
            worker.failure = f"{type(error).__name__}: {error}"
        return was_healthy

    async def _bring_up(self, worker: Worker) -> None:
        await worker.client.ping()  # until Ray has a place for it: waiting for one is no failure
        async with self.lag.deadline(self._timing.start_timeout_s):
            await worker.client.start()
        self._enter(worker, WorkerState.STALE)
        # A loop, because another push may arrive while this worker loads the one before.
        while self._manifest is not None and worker.version < self._manifest.version:
            await self._load(worker)
        if not worker.stopping.is_set():  # else the pool shrank meanwhile
            self._enter(worker, WorkerState.HEALTHY)
        await self._notify()

    async def _watch(self, worker: Worker) -> None:
        """Ping `worker` until it must end. Raises WorkerLost unless it drained."""
        while not worker.stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timing.ping_every_s):
                    await worker.stopping.wait()
                break
            async with self.lag.deadline(self._section.ping_timeout_s):
                await worker.client.ping()
        if worker.state is WorkerState.DRAINING:
            await self._drain(worker)
            return
        raise WorkerLost(worker.failure)

    async def _drain(self, worker: Worker) -> None:
        """Let the worker's episodes end; their own deadline bounds the wait."""
        if worker.running == 0:
            return
        with suppress(TimeoutError):
            async with self.lag.deadline(self._section.episode_timeout_s):
                await worker.idle.wait()

    async def _load(self, worker: Worker, retries: int = 1) -> None:
        """Let `worker` load the newest weights. Raises InfraError or TimeoutError."""
        manifest = self._manifest
        assert manifest is not None
        try:
            async with self.lag.deadline(self._timing.load_timeout_s):
                await worker.client.load_weights(manifest)
        except WeightSyncError:
            # The copy on the worker's node may have been damaged or removed; a retry copies again.
            if not retries:
                raise
            await self._load(worker, retries - 1)
        else:
            worker.version = manifest.version

    async def _load_or_fail(self, worker: Worker) -> None:
        try:
            await self._load(worker)
        except (TimeoutError, InfraError) as error:
            self._fail(worker, f"did not load the weights: {str(error) or 'deadline'}")
        else:
            # It may have failed, or started to drain, while it loaded.
            if not worker.stopping.is_set():
                self._enter(worker, WorkerState.HEALTHY)

    # Waiting for workers

    async def _acquire(self, prefer: str) -> Worker:
        """Take a place on a healthy worker. Raises DeadlineError, InfraError."""
        worker = self._free.take(prefer)
        if worker is not None:
            return worker
        if causes := self._supervision.hopeless(1):
            raise _no_start(causes)
        try:
            async with asyncio.timeout(self._section.pool_timeout_s):
                worker = await self._free.wait()
                # It may have failed, or begun to load weights, since it was given to this caller.
                while worker.state is not WorkerState.HEALTHY:
                    self._free.leave(worker)
                    worker = await self._free.wait(first=True)
                return worker
        except TimeoutError:
            raise self._none_in_time("a healthy rollout worker") from None

    def _enter(self, worker: Worker, state: WorkerState) -> None:
        """Change the state of `worker`; only a healthy one has places for episodes."""
        worker.state = state
        if state is WorkerState.HEALTHY:
            self._free.open(worker)
        else:
            self._free.close(worker)

    def _healthy_count(self) -> int:
        return sum(worker.state is WorkerState.HEALTHY for worker in self._workers.values())

    async def _until(self, holds: Callable[[], bool], what: str, needed: int) -> None:
        """Wait until `holds`, which takes `needed` workers.

        Raises DeadlineError, and InfraError if fewer than `needed` can still start.
        """
        try:
            async with asyncio.timeout(self._section.pool_timeout_s), self._changed:
                await self._changed.wait_for(
                    lambda: holds() or bool(self._supervision.hopeless(needed))
                )
                if not holds():
                    raise _no_start(self._supervision.hopeless(needed))
        except TimeoutError:
            raise self._none_in_time(what) from None

    def _none_in_time(self, what: str) -> DeadlineError:
        states = ", ".join(f"{worker.name} {worker.state}" for worker in self.workers)
        return DeadlineError(
            f"waited {self._section.pool_timeout_s:g} s for {what}; found {states or 'no workers'}"
        )

    def _fail(self, worker: Worker, reason: str) -> None:
        # Only the first failure counts: all its episodes fail together, and later errors are
        # consequences. The slot's task, woken by the event, kills and replaces the worker.
        if not worker.stopping.is_set():
            worker.failure = reason
            self._enter(worker, WorkerState.DEAD)
            worker.stopping.set()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _no_start(causes: Sequence[str]) -> InfraError:
    return InfraError(f"no rollout worker starts: {'; '.join(causes)}")
