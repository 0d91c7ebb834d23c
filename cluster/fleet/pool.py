"""An elastic pool of rollout workers that survives the loss of any of them.

A worker is STARTING, then STALE while it loads the newest weights, then HEALTHY. It ends as
DRAINING (the pool shrank) or DEAD (it failed), and a DEAD one is replaced in its slot. Only HEALTHY
workers, whose engines hold the newest weights, are given episodes.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress

import pyarrow as pa

from cluster.config.fleet_config import DEFAULT_GROUP
from cluster.config.run_config import RolloutsSection
from cluster.fleet.free_slots import FreeSlots
from cluster.fleet.health.kept_store import KeptStore
from cluster.fleet.health.losses import LossKind, WorkerLost, kind_of
from cluster.fleet.health.quarantine import Quarantine
from cluster.fleet.loop_lag import LoopLag
from cluster.fleet.pool_worker import (
    Asking,
    Outcomes,
    PoolGroup,
    PoolTiming,
    Spawn,
    Worker,
    WorkerState,
    run_on,
)
from cluster.fleet.supervision import RestartPolicy, Supervision
from envs.errors import DeadlineError, EngineError, InfraError, TrialrunError, WeightSyncError
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.episode import Lease
from rollout.kept_turns import KeptTurns
from rollout.weights.manifest import WeightManifest

logger = logging.getLogger("trialrun")
_LAST_REPORT_S = 2.0
Slot = tuple[str, int]  # its group, and its number there


class RolloutPool:
    """Runs episodes on healthy workers and keeps the target number of workers running."""

    def __init__(
        self,
        spawn: Spawn,
        section: RolloutsSection,
        timing: PoolTiming,
        *,
        groups: Mapping[str, PoolGroup] | None = None,
        quarantine: Quarantine | None = None,
        usable: Callable[[], Sequence[Set[str]]] = tuple,
    ) -> None:
        """`spawn` makes the workers of the default group; `groups` are those beside it.

        `usable` returns for each group the nodes that could run one of its workers.
        """
        default = PoolGroup(spawn=spawn, episodes_per_worker=section.episodes_per_worker)
        self._groups = {DEFAULT_GROUP: default, **(groups or {})}
        self._section = section
        self._timing = timing
        self._supervision = Supervision(RestartPolicy(backoff_s=timing.backoff_s))
        self._slots: dict[Slot, asyncio.Task[None]] = {}
        """The task that supervises each wanted slot; a dismissed slot leaves at once."""
        self._workers: dict[Slot, Worker] = {}
        self._manifest: WeightManifest | None = None
        self.places: FreeSlots[Worker] = FreeSlots()
        self._changed = asyncio.Condition()
        """Notified when a worker comes, goes or is lost; not when an episode ends."""
        self.lag = LoopLag()
        """How late the loop is that talks to the workers."""
        self._kept = KeptStore(section.kept_turns_mib << 20)
        self._asking = Asking(self.lag, timing.ping_every_s, section.ping_timeout_s, self._kept)
        self.quarantine = quarantine or Quarantine()
        self._usable = usable
        self._leaving: set[asyncio.Task[None]] = set()
        """Tasks of dismissed slots, which may still drain."""
        self._spawned = 0
        self.outcomes = Outcomes()

    @property
    def workers(self) -> list[Worker]:
        """The workers of all slots, as they are now."""
        return [self._workers[slot] for slot in sorted(self._workers)]

    @property
    def desired(self) -> int:
        """Target number of workers, over all groups."""
        return len(self._slots)

    @property
    def groups(self) -> dict[str, int]:
        """Target number of workers of each group."""
        return {name: sum(slot[0] == name for slot in self._slots) for name in self._groups}

    @property
    def losses(self) -> int:
        """Workers lost so far; those that drained are not counted."""
        return self._supervision.losses

    @property
    def holds_pushed_weights(self) -> bool:
        """Whether an engine holds other weights than those of the model that it started from."""
        return any(worker.version != 0 for worker in self.workers)

    def resize(self, desired: int, group: str = DEFAULT_GROUP, *, abort: bool = False) -> None:
        """Set the target number of workers of a group: surplus ones drain, missing ones start.

        With `abort` surplus workers end at once, and their episodes run on others.
        """
        self.lag.start()
        for number in range(desired):
            slot = (group, number)
            if slot not in self._slots:
                self._supervision.add(slot)
                name = f"slot-{group}-{number}"
                self._slots[slot] = asyncio.create_task(self._supervise(slot), name=name)
        patience_s = self._section.drain_timeout_s or self._section.episode_timeout_s
        drain_s = 0.0 if abort else patience_s
        for slot in [slot for slot in self._slots if slot[0] == group and slot[1] >= desired]:
            self._dismiss(slot, drain_s)

    def _dismiss(self, slot: Slot, drain_s: float) -> None:
        task, worker = self._slots.pop(slot), self._workers.get(slot)
        self._supervision.remove(slot)
        # The slot no longer counts, but close() must still be able to end a worker that drains.
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        if worker is not None and worker.state in (WorkerState.HEALTHY, WorkerState.STALE):
            # DRAINING before the event: _watch reads the state to tell a drain from a failure.
            self._enter(worker, WorkerState.DRAINING)
            worker.drain_s = drain_s
            worker.stopping.set()
        else:
            task.cancel()  # it runs no episode yet

    async def wait_healthy(self, count: int = 1) -> None:
        """Wait until `count` workers are healthy.

        Raises DeadlineError, or InfraError with the reasons if that many can no longer start.
        """

        def holds() -> bool:
            return [worker.state for worker in self.workers].count(WorkerState.HEALTHY) >= count

        await self._until(holds, f"{count} healthy rollout workers", count)

    async def run_episode(
        self,
        lease: Lease,
        task: Task,
        config: EpisodeConfig,
        prefer: str = "",
        kept: KeptTurns | None = None,
    ) -> tuple[pa.RecordBatch, str]:
        """Run an episode on a healthy worker; return it with the worker's name.

        The worker called `prefer` is taken if it has room. It goes on from `kept`, if given. Raises
        WorkerLost if the worker died or missed the deadline, TurnsNotKept.
        """
        worker = await self._acquire(prefer)
        # a policy that calls slow tools must not be able to have its worker replaced
        limit_s = self._section.episode_timeout_s + config.trial.seconds + config.execution.seconds
        worker.leases[lease.episode] = time.monotonic()
        try:
            async with self.lag.deadline(limit_s):
                batch = await run_on(worker.client, lease, task, config, kept)
            self._kept.forget(lease.episode)
            self.outcomes.note(batch)
            return batch, worker.name
        except TimeoutError:
            reason = f"{worker.name} overran {limit_s:g} s on {lease.episode}"
            self._fail(worker, reason, LossKind.OVERRAN)
            raise WorkerLost(reason, LossKind.OVERRAN, self._kept.take(lease)) from None
        except (WorkerLost, EngineError) as error:
            self._fail(worker, str(error), kind_of(error, was_healthy=True))
            left = self._kept.take(lease)
            raise WorkerLost(worker.failure or str(error), worker.kind, left) from error
        finally:
            worker.leases.pop(lease.episode, None)
            self.places.leave(worker)
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

    async def _supervise(self, slot: Slot) -> None:
        # A slot that was dismissed and added again has a new task; the old one must not touch it.
        while self._slots.get(slot) is asyncio.current_task():
            worker = self._spawn(slot[0])
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
            logger.warning(
                "%s lost after %.0f s (%s): %s", worker.name, lived_s, worker.kind, worker.failure
            )
            self._note_loss(worker)
            if causes := self._supervision.hopeless(1):
                self.places.fail(_no_start(causes))
            await self._notify()
            await asyncio.sleep(decision.wait_s)

    def _spawn(self, group: str) -> Worker:
        made = self._groups[group]
        self._spawned += 1
        name = f"worker-{self._spawned}"
        return Worker(name, made.spawn(name), group, made.episodes_per_worker)

    def _note_loss(self, worker: Worker) -> None:
        usable = self._usable()
        found = self.quarantine.lost(worker.node, worker.kind, worker.failure, usable)
        if found is not None:
            logger.warning("%s; new workers start elsewhere", found.describe(time.monotonic()))

    async def _live(self, slot: Slot, worker: Worker) -> bool:
        """Bring `worker` up and watch it until it ends; return whether it was healthy before."""
        was_healthy = False
        try:
            await self._bring_up(worker)
            was_healthy = True
            self._supervision.serving(slot)
            await self._watch(worker)
        except Exception as error:  # a fault of one worker must not end the supervision
            if not worker.failure:
                named = isinstance(error, TrialrunError)
                worker.failure = str(error) if named else f"{type(error).__name__}: {error}"
                worker.kind = kind_of(error, was_healthy=was_healthy)
        return was_healthy

    async def _bring_up(self, worker: Worker) -> None:
        # until Ray has a place for it: waiting for one is no failure
        await self._asking.ask(worker)
        await self._asking.during(worker, self._start(worker))
        if not worker.stopping.is_set():  # else the pool shrank meanwhile
            self._enter(worker, WorkerState.HEALTHY)
        await self._notify()

    async def _start(self, worker: Worker) -> None:
        async with self.lag.deadline(self._timing.start_timeout_s):
            await worker.client.start()
        self._enter(worker, WorkerState.STALE)
        # A loop, because another push may arrive while this worker loads the one before.
        while self._manifest is not None and worker.version < self._manifest.version:
            await self._load(worker)

    async def _watch(self, worker: Worker) -> None:
        """Ping `worker` until it must end. Raises WorkerLost unless it drained."""
        await self._asking.until(worker.stopping, worker)
        if worker.state is WorkerState.DRAINING:
            await self._drain(worker)
            return
        raise WorkerLost(worker.failure, worker.kind)

    async def _drain(self, worker: Worker) -> None:
        """Let the worker's episodes end, for as long as it may take; others run what is left."""
        if worker.running == 0:
            return
        with suppress(TimeoutError):
            async with self.lag.deadline(worker.drain_s):
                await self._asking.until(worker.idle, worker)
        if worker.running:
            with suppress(Exception):  # its finished turns are worth a moment
                async with asyncio.timeout(_LAST_REPORT_S):
                    await self._asking.ask(worker)
            worker.kind = LossKind.DRAINED
            worker.failure = (
                f"{worker.name} was to end, and {worker.running} of its episodes were not "
                f"finished within {worker.drain_s:g} s"
            )
            logger.warning("%s: others run them", worker.failure)

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
            reason = f"did not load the weights: {str(error) or 'deadline'}"
            self._fail(worker, reason, LossKind.WEIGHTS)
        else:
            # It may have failed, or started to drain, while it loaded.
            if not worker.stopping.is_set():
                self._enter(worker, WorkerState.HEALTHY)

    # Waiting for workers

    async def _acquire(self, prefer: str) -> Worker:
        """Take a place on a healthy worker. Raises DeadlineError, InfraError."""
        worker = self.places.take(prefer)
        if worker is not None:
            return worker
        if causes := self._supervision.hopeless(1):
            raise _no_start(causes)
        try:
            async with self.places.deadline(self._section.pool_timeout_s):
                worker = await self.places.wait()
                # It may have failed, or begun to load weights, since it was given to this caller.
                while worker.state is not WorkerState.HEALTHY:
                    self.places.leave(worker)
                    worker = await self.places.wait(first=True)
                return worker
        except TimeoutError:
            raise self._none_in_time("a healthy rollout worker") from None

    def _enter(self, worker: Worker, state: WorkerState) -> None:
        """Enter `state`; only a healthy worker has places for episodes."""
        if state is not worker.state:
            worker.state, worker.since = state, time.monotonic()
        if state is WorkerState.HEALTHY:
            self.places.open(worker)
        else:
            self.places.close(worker)

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
        found = ", ".join(f"{worker.name} {worker.state}" for worker in self.workers)
        waited = f"waited {self._section.pool_timeout_s:g} s for {what}"
        return DeadlineError(f"{waited}; found {found or 'no workers'}")

    def _fail(self, worker: Worker, reason: str, kind: LossKind) -> None:
        # Only the first failure counts: all its episodes fail together, and later errors are
        # consequences. The slot's task, woken by the event, kills and replaces the worker.
        if not worker.stopping.is_set():
            worker.failure, worker.kind = reason, kind
            self._enter(worker, WorkerState.DEAD)
            worker.stopping.set()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _no_start(causes: Sequence[str]) -> InfraError:
    return InfraError(f"no rollout worker starts: {'; '.join(causes)}")
