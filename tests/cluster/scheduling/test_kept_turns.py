"""What becomes of an episode whose worker is lost: its turns are kept where they can be."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.config.run_config import RolloutsSection
from cluster.fleet.health.kept_store import KeptStore
from cluster.fleet.health.losses import LossKind, WorkerLost
from cluster.fleet.pool import RolloutPool
from cluster.fleet.pool_worker import WorkerReport
from cluster.scheduling.dispatcher import Affinity, Dispatcher
from envs.endpoints import HttpEndpoint
from envs.tasks import Task
from envs.tools import ToolSet
from rollout.config import EpisodeConfig
from rollout.episode import Lease, Phase, Turn
from rollout.kept_turns import KeptTurns, Mark, SealedPart, TurnsNotKept, TurnsPart
from rollout.store.journal import read_objects
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from tests.cluster.conftest import TIMING, FakeWorker, Fleet, leases_of


def part(episode: str, attempt: int, turn: int, size: int = 3) -> SealedPart:
    """One turn of `size` tokens, the one with number `turn`."""
    start = turn * size
    made = Turn(
        phase=Phase.TRIAL,
        start=start,
        end=start + size,
        text="x" * size,
        finish_reason="stop",
        policy_error="",
    )
    return TurnsPart(
        episode=episode,
        attempt=attempt,
        before=Mark(tokens=start, turns=turn),
        after=Mark(tokens=start + size, turns=turn + 1),
        token_ids=np.zeros(size, np.int32),
        phases=np.zeros(size, np.int8),
        logprobs=np.zeros(size, np.float32),
        spans=(),
        turns=(made,),
        messages=(),
    ).sealed()


@dataclass
class Continuing(FakeWorker):
    """Reports a turn of each of its episodes with every ping."""

    kept: list[KeptTurns] = field(default_factory=list)
    refuses: bool = False
    playing: dict[str, tuple[int, int]] = field(default_factory=dict)

    async def run_episode(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        self.playing[lease.episode] = (lease.attempt, 0)
        return await FakeWorker.run_episode(self, lease, task, config)

    async def continue_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, kept: KeptTurns
    ) -> pa.RecordBatch:
        self.kept.append(kept)
        if self.refuses:
            raise TurnsNotKept("replayed tools differ: search answered 'a', before it was 'b'")
        return await FakeWorker.run_episode(self, lease, task, config)

    async def ping(self) -> WorkerReport:
        report = await FakeWorker.ping(self)
        turns = []
        for episode, (attempt, turn) in self.playing.items():
            turns.append(part(episode, attempt, turn))
            self.playing[episode] = (attempt, turn + 1)
        return replace(report, turns=turns)


@dataclass
class Stage:
    fleet: Fleet
    pool: RolloutPool
    dispatcher: Dispatcher
    run: RunDirectory

    async def reports(self, count: int) -> None:
        """Wait until the first worker has reported `count` turns of its episode."""
        worker: Any = self.fleet.workers[0]
        async with asyncio.timeout(5):
            while sum(turn for _, turn in worker.playing.values()) < count:
                await asyncio.sleep(0.005)

    @property
    def re_leases(self) -> list[tuple[Any, Any, Any]]:
        rows = read_objects(self.run.layout.ledger)
        return [
            (row["attempt"], row["reason"], row["kept_turns"])
            for row in rows
            if row["event"] == "re_leased"
        ]


@pytest.fixture
async def stage(fleet: Fleet, tmp_path: Path) -> Any:
    def spawn(name: str) -> Continuing:
        worker = Continuing(name, fleet)
        fleet.workers.append(worker)
        return worker

    section = RolloutsSection(drain_timeout_s=0.05)
    pool = RolloutPool(spawn, section, TIMING)
    info = RunInfo(run="unit", seed=0, created_at=0.0)
    with RunDirectory.create(tmp_path / "run", "", info) as run:
        pool.resize(1)
        await pool.wait_healthy()
        fleet.gate.clear()
        yield Stage(fleet, pool, Dispatcher(pool, run, section, EpisodeConfig()), run)
        await pool.close()


def sandboxed(task: Task) -> Task:
    assert task.tool_set.root.sandboxed
    return task


def remote(task: Task) -> Task:
    endpoint = HttpEndpoint(base_url="http://127.0.0.1:1", operations=(), allowed_hosts=())
    return replace(task, tool_set=ToolSet(tools=(), endpoint=endpoint))


async def lost_and_played(stage: Stage, task: Task, lose: Callable[[], None]) -> pa.RecordBatch:
    """Play an episode whose first worker is lost by `lose` after three turns."""
    leases = leases_of(task, 1)
    stage.run.ledger.lease(leases)
    playing = asyncio.create_task(stage.dispatcher.run_episode(leases[0], task, Affinity()))
    await stage.reports(3)
    lose()
    stage.fleet.gate.set()
    batch = await playing
    assert batch is not None
    return batch


async def test_a_lost_workers_turns_go_on_elsewhere(stage: Stage, numbered: Any) -> None:
    task = sandboxed(numbered.tasks("train", 0, 1)[0])
    first = stage.fleet.workers[0]
    await lost_and_played(stage, task, first.dead.set)
    (found,) = [kept for worker in stage.fleet.workers for kept in worker.kept]  # type: ignore[attr-defined]
    assert len(found.turns) >= 3 and found.attempt == 0
    assert stage.re_leases == [(1, "worker_lost", len(found.turns))]
    assert stage.pool._kept.nbytes == 0, "nothing is kept of an episode that has ended"


async def test_tools_of_other_systems_are_not_called_again(stage: Stage, numbered: Any) -> None:
    task = remote(numbered.tasks("train", 0, 1)[0])
    first = stage.fleet.workers[0]
    await lost_and_played(stage, task, first.dead.set)
    assert all(worker.kept == [] for worker in stage.fleet.workers)  # type: ignore[attr-defined]
    assert stage.re_leases == [(1, "worker_lost", 0)]


async def test_turns_that_cannot_be_replayed_start_anew_and_the_ledger_says_so(
    stage: Stage, numbered: Any
) -> None:
    task = sandboxed(numbered.tasks("train", 0, 1)[0])

    def lose() -> None:
        stage.fleet.workers[0].dead.set()
        spawn = stage.pool._groups["default"].spawn

        def refusing(name: str) -> Any:
            worker: Any = spawn(name)
            worker.refuses = True
            return worker

        default = replace(stage.pool._groups["default"], spawn=refusing)
        stage.pool._groups["default"] = default

    batch = await lost_and_played(stage, task, lose)
    assert batch["attempt"].to_pylist() == [2]
    (first, again) = stage.re_leases
    assert first[:2] == (1, "worker_lost") and first[2] >= 3
    assert again == (2, "not_replayed", 0)
    rows = [row for row in read_objects(stage.run.layout.ledger) if row["event"] == "re_leased"]
    assert "search answered" in str(rows[1]["why"])


async def test_a_worker_that_is_drained_in_vain_reports_its_last_turns(
    stage: Stage, numbered: Any
) -> None:
    task = sandboxed(numbered.tasks("train", 0, 1)[0])
    first: Any = stage.fleet.workers[0]
    leases = leases_of(task, 1)
    stage.run.ledger.lease(leases)
    playing = asyncio.create_task(stage.dispatcher.run_episode(leases[0], task, Affinity()))
    await stage.reports(2)
    stage.pool.resize(0)
    async with asyncio.timeout(5):
        while not first.killed:
            await asyncio.sleep(0.005)
    reported = first.playing[leases[0].episode][1]
    first.dead.set()
    stage.pool.resize(1)
    stage.fleet.gate.set()
    assert await playing is not None
    assert stage.re_leases == [(1, "drained", reported)]
    assert stage.pool.losses == 0


def test_the_store_of_turns_has_a_bound_and_knows_attempts(numbered: Any) -> None:
    (lease,) = leases_of(numbered.tasks("train", 0, 1)[0], 1)
    name = lease.episode
    store = KeptStore(3 * len(part(name, 0, 0).content) + 9)
    store.add([part(name, 0, 0), part(name, 0, 1)])
    assert store.take(replace(lease, attempt=1)) is None, "of another attempt"
    store.add([part(name, 0, 0), part("other", 0, 0), part(name, 0, 1)])
    store.add([part(name, 0, 2)])
    assert store.take(lease) is None and store.nbytes == len(part("other", 0, 0).content), (
        "beyond the bound"
    )
    store.add([part(name, 0, 1)])
    assert store.take(lease) is None, "a part is missing before it"
    store.add([part(name, 0, 0), part(name, 1, 0)])
    kept = store.take(replace(lease, attempt=1))
    assert kept is not None and len(kept.turns) == 1
    store.forget("other")
    assert store.nbytes == 0
    off = KeptStore(0)
    off.add([part(name, 0, 0)])
    assert off.take(lease) is None


def test_a_loss_says_its_kind_and_its_turns() -> None:
    lost = WorkerLost("gone", LossKind.FROZEN, KeptTurns(3))
    assert (str(lost), lost.kind, lost.kept and lost.kept.attempt) == ("gone", LossKind.FROZEN, 3)
