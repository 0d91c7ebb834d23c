"""Rollout workers without Ray or vLLM: canned episodes, and workers that die when told to."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import pyarrow as pa
import pytest

from cluster.config.run_config import RolloutsSection
from cluster.fleet.pool import PoolTiming, RolloutPool, WorkerLost
from cluster.fleet.pool_worker import WorkerReport
from envs.errors import WeightSyncError
from envs.tasks import Environment, Score, Split, Task
from envs.tools import ToolSet
from rollout.config import EpisodeConfig
from rollout.engine import VersionSpan
from rollout.episode import Episode, Lease, Outcome, Phase, RolloutKind, Sampling, Timings
from rollout.episode_schema import to_batch
from rollout.weights.manifest import WeightLayout, WeightManifest


@dataclass(frozen=True, slots=True)
class AlwaysRight:
    def score(self, answer: str) -> Score:
        return Score(1.0)


class Numbered(Environment):
    """Endless environment whose tasks are numbered."""

    @property
    def name(self) -> str:
        return "catalog"

    @property
    def endless(self) -> bool:
        return True

    def tasks(self, split: Split, seed: int, count: int | None) -> list[Task]:
        empty = ToolSet(tools=(), sources=(), functions=())
        return [
            Task(f"{split}-{seed}-{i}", "catalog", split, "?", empty, AlwaysRight())
            for i in range(count or 8)
        ]


def leases_of(task: Task, count: int, number: int = 0) -> list[Lease]:
    """Return the leases of training group `number`, which has `count` episodes of `task`."""
    group = f"g{number:06d}"
    return [
        Lease(
            run="unit",
            episode=f"{group}-{index:02d}",
            kind=RolloutKind.TRAIN,
            group=group,
            group_number=number,
            task=task.id,
            sample_index=index,
            attempt=0,
            seed=index,
        )
        for index in range(count)
    ]


def canned(lease: Lease, task: Task, version: int, worker: str) -> Episode:
    """An answered episode of two tokens sampled with `version`; odd samples are right."""
    return Episode(
        lease=lease,
        environment=task.environment,
        split=task.split,
        mode="trial",
        outcome=Outcome.ANSWERED,
        error="",
        reward=float(lease.sample_index % 2),
        reward_parts={"answer": float(lease.sample_index % 2)},
        answer="",
        question=task.question,
        tags={},
        token_ids_T=(1, 2, 3),
        phases_T=(Phase.PROMPT, Phase.TRIAL, Phase.EXECUTION),
        logprobs_T=(float("nan"), -1.0, -1.0),
        spans=(VersionSpan(1, version),),
        turns=(),
        messages=(),
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=lease.seed),
        timings=Timings(started_at=0.0, wall_s=0.0, queue_s=0.0, generate_s=0.0, tool_s=0.0),
        source="policy",
        worker=worker,
        tool_server="",
        isolation="",
        extra={"trial_calls": 0.0},
    )


Play = Callable[[Lease, Task, int, str], Episode]


TIMING = PoolTiming(ping_every_s=0.01, backoff_s=0.01, start_timeout_s=5, load_timeout_s=1)


@dataclass
class FakeWorker:
    """WorkerClient in this process; `gate` holds episodes back, `dead` makes every call fail."""

    name: str
    fleet: "Fleet"
    version: int = 0
    dead: asyncio.Event = field(default_factory=asyncio.Event)
    killed: bool = False
    refuse_loads: int = 0
    node: str = "node-1"

    async def start(self) -> None:
        await self.fleet.starting.wait()
        if self.fleet.start_error is not None:
            raise self.fleet.start_error

    async def run_episode(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        self.fleet.started.append((self.name, lease))
        version = self.version
        for _ in range(self.fleet.delays.randrange(self.fleet.delay + 1)):
            await asyncio.sleep(0)
        gate = asyncio.create_task(self.fleet.gates.get(lease.group, self.fleet.gate).wait())
        death = asyncio.create_task(self.dead.wait())
        try:
            await asyncio.wait((gate, death), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gate.cancel()
            death.cancel()
        if self.dead.is_set():
            raise WorkerLost(f"{self.name} died")
        return to_batch([self.fleet.play(lease, task, version, self.name)])

    async def load_weights(self, manifest: WeightManifest) -> None:
        if self.refuse_loads:
            self.refuse_loads -= 1
            raise WeightSyncError("checksum")
        self.version = manifest.version

    async def ping(self) -> WorkerReport:
        if self.dead.is_set():
            raise WorkerLost(f"{self.name} died")
        return WorkerReport(node=self.node)

    def kill(self) -> None:
        self.killed = True


@dataclass
class Fleet:
    """Every worker that a pool spawned."""

    play: Play = canned
    start_error: Exception | None = None
    workers: list[FakeWorker] = field(default_factory=list)
    started: list[tuple[str, Lease]] = field(default_factory=list)
    starting: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    """Groups with a gate of their own."""
    delay: int = 0
    """Turns of the event loop that an episode takes at most."""
    delays: Random = field(default_factory=Random)

    def spawn(self, name: str) -> FakeWorker:
        worker = FakeWorker(name, self)
        self.workers.append(worker)
        return worker

    def pool(self, **section: float) -> RolloutPool:
        return RolloutPool(self.spawn, RolloutsSection.model_validate(section), TIMING)


@pytest.fixture
async def fleet() -> Fleet:
    made = Fleet()
    made.starting.set()
    made.gate.set()
    return made


@pytest.fixture
async def fleet_of() -> Callable[[int], Fleet]:
    """Fleets whose episodes take long and short, by a seed."""

    def make(seed: int) -> Fleet:
        made = Fleet(delay=40, delays=Random(seed))
        made.starting.set()
        made.gate.set()
        return made

    return make


def manifest(version: int) -> WeightManifest:
    return WeightManifest(
        version=version, layout=WeightLayout(()), transport="shm", path="", checksum=""
    )


@pytest.fixture
def manifest_of() -> Callable[[int], WeightManifest]:
    return manifest


@pytest.fixture
def numbered() -> Numbered:
    return Numbered()


@pytest.fixture
def failing_first() -> Play:
    """The first attempt of every second sample fails on the world's account."""

    def play(lease: Lease, task: Task, version: int, worker: str) -> Episode:
        episode = canned(lease, task, version, worker)
        if lease.sample_index % 2 and lease.attempt == 0:
            return replace(
                episode,
                outcome=Outcome.INFRA_FAILED,
                reward=None,
                reward_parts={},
                error="no server",
            )
        return episode

    return play
