"""What an injector sees of a run, and where it can hit it: the states of `faults.py`, observed."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cluster.fleet.pool import RolloutPool, Worker, WorkerState
from tests.chaos.faults import Fault, Target
from tests.chaos.processes import (
    Processes,
    children,
    command_of,
    engine_of,
    fork_server_of,
    sessions_on,
    tool_server_of,
)
from tests.waiting import lives

_LOOK_AGAIN_S = 0.25
_LEARNER_DOES = {
    "learning": ".rl_step",
    "saving a checkpoint": ".save_checkpoint",
    "publishing weights": ".publish_weights",
}


@dataclass(frozen=True, slots=True)
class Aim:
    """A process in the wanted state."""

    process: psutil.Process
    victim: str
    """Its name in the log of the run, or its process id."""
    saw: str
    slot: int = -1
    worker: Worker | None = None


@dataclass(slots=True)
class Scene:
    """The pool of a driver, from a thread of its own process, and the processes of its Ray."""

    pool: RolloutPool
    processes: Processes
    run: Path
    ranks: int
    """Number of learner ranks."""
    _looked_at: float = 0.0
    _ranks: list[psutil.Process] = field(default_factory=list)

    def aim(self, fault: Fault, but: Sequence[Worker] = ()) -> Aim | None:
        """Return what `fault` can hit now, None if nothing is in its state.

        Workers in `but` are left alone: another fault of theirs is not over.
        """
        match fault.target:
            case Target.WORKER | Target.ENGINE:
                aims = self._workers(fault)
                return next((aim for aim in aims if aim.worker not in but), None)
            case Target.TOOL_SERVER | Target.FORK_SERVER:
                aims = self._servers(fault)
                return next((aim for aim in aims if aim.worker not in but), None)
            case Target.LEARNER:
                return self._rank(fault.state)
            case Target.RAYLET:
                return self._raylet()
            case Target.DRIVER | Target.DISK:
                return self._driver(fault.state)

    @property
    def steps(self) -> int:
        """How often the run has recorded a step; one that is made again counts again."""
        return len(self._recorded())

    @property
    def step(self) -> int:
        """The step that was recorded last."""
        recorded = self._recorded()
        return int(json.loads(recorded[-1])["step"]) if recorded else 0

    def _recorded(self) -> list[bytes]:
        path = self.run / "metrics" / "metrics.jsonl"
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []

    @property
    def log(self) -> str:
        path = self.run / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def healthy(self) -> int:
        return sum(worker.state is WorkerState.HEALTHY for worker in self.pool.workers)

    # One kind of target each

    def _workers(self, fault: Fault) -> Iterator[Aim]:
        for slot, worker in enumerate(self.pool.workers):
            if not _is(worker, fault.state):
                continue
            process = self._process_of(worker)
            if process is None:
                continue
            saw = f"{worker.name} {worker.state}, {worker.running} episodes"
            aim = Aim(process, worker.name, saw, slot, worker)
            if fault.target is Target.WORKER:
                yield aim
            elif (engine := engine_of(process)) is not None:
                yield Aim(engine, worker.name, f"{saw}: {command_of(engine)[:40]}", slot, worker)

    def _servers(self, fault: Fault) -> Iterator[Aim]:
        for slot, worker in enumerate(self.pool.workers):
            process = self._process_of(worker) if worker.state is WorkerState.HEALTHY else None
            server = None if process is None else tool_server_of(process)
            if server is None:
                continue
            sessions = -1 if fault.state == "any" else sessions_on(server)
            if fault.state != "any" and (sessions > 0) != (fault.state == "serving"):
                continue
            victim, saw = server, f"{worker.name}, {sessions} sessions"
            if fault.target is Target.FORK_SERVER:
                forker = fork_server_of(server)
                if forker is None:
                    continue
                victim = forker
            yield Aim(victim, f"{worker.name}, server {server.pid}", saw, slot, worker)

    def _rank(self, state: str) -> Aim | None:
        fresh = len(self._ranks) == self.ranks and all(map(lives, self._ranks))
        if not fresh and time.monotonic() - self._looked_at > _LOOK_AGAIN_S:
            self._ranks, self._looked_at = self.processes.ranks(), time.monotonic()
        for number, rank in enumerate(reversed(self._ranks)):
            does = command_of(rank)
            wanted = _LEARNER_DOES.get(state)
            fits = does.endswith("LearnerActor") if wanted is None else wanted in does
            if (fits or state == "any") and self.steps:
                return Aim(rank, f"rank process {number}", does)
        return None

    def _raylet(self) -> Aim | None:
        for raylet in reversed(self.processes.raylets()):
            workers = children(raylet, "ray::RolloutActor")
            if workers and self.healthy == self.pool.desired:
                return Aim(raylet, f"raylet {raylet.pid}", f"{len(workers)} rollout workers on it")
        return None

    def _driver(self, state: str) -> Aim | None:
        me = psutil.Process(os.getpid())
        if state == "loading weights":
            if not any(worker.state is WorkerState.STALE for worker in self.pool.workers):
                return None
            return Aim(me, "driver", "a worker is stale: it loads weights")
        if state in ("collecting", "writing"):
            rank = self._rank("idle")
            busy = [worker.running for worker in self.pool.workers]
            return (
                Aim(me, "driver", f"{busy} episodes, learner idle") if rank and any(busy) else None
            )
        rank = self._rank(state)
        return Aim(me, "driver", rank.saw) if rank else None

    def _process_of(self, worker: Worker) -> psutil.Process | None:
        """Return the actor's process; one that starts is the only one that nobody knows."""
        client: Any = worker.client
        with suppress(psutil.NoSuchProcess):
            if client.pid:
                return psutil.Process(client.pid)
            known = {other.client.pid for other in self.pool.workers}  # type: ignore[attr-defined]
            unknown = [p for p in self.processes.workers() if p.pid not in known]
            starting = [w for w in self.pool.workers if w.state is WorkerState.STARTING]
            if len(unknown) == len(starting) == 1:
                return unknown[0]
        return None


def _is(worker: Worker, state: str) -> bool:
    match state:
        case "idle":
            return worker.state is WorkerState.HEALTHY and not worker.running
        case "generating":
            return worker.state is WorkerState.HEALTHY and worker.running > 0
        case "loading weights":
            return worker.state is WorkerState.STALE
        case "starting":
            return worker.state is WorkerState.STARTING
    raise ValueError(f"no state of a worker: {state}")


def replaced(scene: Scene, aim: Aim) -> Callable[[], bool]:
    """Return a test of whether the pool knows that the worker of `aim` is lost."""
    worker = aim.worker
    assert worker is not None

    def is_replaced() -> bool:
        gone = all(other is not worker for other in scene.pool.workers)
        return gone or worker.state is WorkerState.DEAD or worker.stopping.is_set()

    return is_replaced
