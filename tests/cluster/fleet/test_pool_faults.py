"""What a pool does with workers that are aborted, drained, of several kinds, or on bad nodes."""

import asyncio
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from cluster.config.run_config import RolloutsSection
from cluster.fleet.health.heartbeat import TURN_S, Patience
from cluster.fleet.health.losses import LossKind
from cluster.fleet.health.quarantine import Quarantine, QuarantinePolicy
from cluster.fleet.pool import PoolTiming, RolloutPool, WorkerLost, WorkerState
from cluster.fleet.pool_worker import Outcomes, PoolGroup
from envs.errors import EngineError
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.episode import Lease, Outcome
from rollout.episode_schema import to_batch
from tests.cluster.conftest import TIMING, canned, leases_of


@pytest.fixture
def task(numbered: Any) -> Task:
    return numbered.tasks("train", 0, 1)[0]


def running(
    pool: RolloutPool, task: Task, count: int, prefer: str = ""
) -> "list[asyncio.Task[Any]]":
    leases = leases_of(task, count)
    return [
        asyncio.create_task(pool.run_episode(lease, task, EpisodeConfig(), prefer))
        for lease in leases
    ]


async def until_started(fleet: Any, count: int) -> None:
    async with asyncio.timeout(5):
        while len(fleet.started) < count:
            await asyncio.sleep(0)


async def test_aborted_workers_end_at_once_and_say_so(fleet: Any, task: Task) -> None:
    pool = fleet.pool(episodes_per_worker=4)
    pool.resize(2)
    await pool.wait_healthy(2)
    fleet.gate.clear()
    episodes = running(pool, task, 2, "worker-2")
    await until_started(fleet, 2)
    pool.resize(1, abort=True)
    async with asyncio.timeout(5):
        while not fleet.workers[1].killed:
            await asyncio.sleep(0)
    fleet.workers[1].dead.set()  # as the end of its process does
    failed = await asyncio.gather(*episodes, return_exceptions=True)
    assert all(isinstance(e, WorkerLost) and e.kind is LossKind.DRAINED for e in failed)
    assert "worker-2 was to end, and 2 of its episodes were not finished" in str(failed[0])
    assert (pool.losses, pool.desired) == (0, 1)
    fleet.gate.set()
    assert (await pool.run_episode(leases_of(task, 1)[0], task, EpisodeConfig()))[1] == "worker-1"
    await pool.close()


async def test_a_worker_that_drains_has_a_deadline(fleet: Any, task: Task) -> None:
    pool = fleet.pool(drain_timeout_s=0.1)
    pool.resize(2)
    await pool.wait_healthy(2)
    fleet.gate.clear()
    (episode,) = running(pool, task, 1, "worker-2")
    await until_started(fleet, 1)
    pool.resize(1)
    await asyncio.sleep(0.05)
    assert not fleet.workers[1].killed, "it still has time"
    async with asyncio.timeout(5):
        while not fleet.workers[1].killed:
            await asyncio.sleep(0.005)
    fleet.workers[1].dead.set()
    with pytest.raises(WorkerLost, match=r"not finished within 0\.1 s"):
        await episode
    await pool.close()


async def test_a_worker_that_dies_while_it_drains_is_not_waited_for(fleet: Any, task: Task) -> None:
    pool = fleet.pool()
    pool.resize(2)
    await pool.wait_healthy(2)
    fleet.gate.clear()
    (episode,) = running(pool, task, 1, "worker-2")
    await until_started(fleet, 1)
    pool.resize(1)
    fleet.workers[1].dead.set()
    async with asyncio.timeout(5):
        with pytest.raises(WorkerLost):
            await episode
        while not fleet.workers[1].killed:
            await asyncio.sleep(0.005)
    await pool.close()


async def test_groups_have_workers_and_places_of_their_own(fleet: Any, task: Task) -> None:
    pool = RolloutPool(
        lambda name: fleet.spawn(f"{name}-small"),
        RolloutsSection(episodes_per_worker=1),
        TIMING,
        groups={"big": PoolGroup(spawn=lambda n: fleet.spawn(f"{n}-big"), episodes_per_worker=3)},
    )
    pool.resize(1)
    pool.resize(2, "big")
    await pool.wait_healthy(3)
    assert pool.groups == {"default": 1, "big": 2} and pool.desired == 3
    assert sorted(worker.name[9:] for worker in fleet.workers) == ["big", "big", "small"]
    fleet.gate.clear()
    episodes = running(pool, task, 7)
    await until_started(fleet, 7)
    assert sorted(worker.running for worker in pool.workers) == [1, 3, 3]
    fleet.gate.set()
    await asyncio.gather(*episodes)
    pool.resize(0, "big")
    async with asyncio.timeout(5):
        while sum(worker.killed for worker in fleet.workers) < 2:
            await asyncio.sleep(0.005)
    assert [worker.group for worker in pool.workers] == ["default"]
    assert pool.groups == {"default": 1, "big": 0}
    await pool.close()


async def test_a_node_that_loses_workers_often_gets_no_new_ones(
    fleet: Any, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    quarantine = Quarantine(QuarantinePolicy(losses=2))
    nodes = {"bad", "good"}

    def spawn(name: str) -> Any:
        closed = {found.node for found in quarantine.nodes}
        worker = fleet.spawn(name)
        worker.node = min(nodes - closed)  # "bad" comes first
        return worker

    pool = RolloutPool(
        spawn,
        RolloutsSection(),
        TIMING,
        quarantine=quarantine,
        usable=lambda: [nodes],
    )
    pool.resize(1)
    for count in (1, 2):
        await pool.wait_healthy()
        assert pool.workers[0].node == "bad"
        pool.workers[0].client.dead.set()  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            while len(fleet.workers) == count:
                await asyncio.sleep(0.005)
    await pool.wait_healthy()
    assert pool.workers[0].node == "good"
    assert "node bad is in quarantine" in caplog.text and "start elsewhere" in caplog.text
    assert "it lost 2 workers (died, died" in quarantine.describe()[0]
    await pool.close()


async def test_a_worker_that_freezes_while_it_starts_is_replaced(fleet: Any) -> None:
    pool = fleet.pool()
    fleet.starting.clear()
    pool.resize(1)
    async with asyncio.timeout(5):
        while not fleet.workers or pool.workers[0].node == "":
            await asyncio.sleep(0.005)
        fleet.workers[0].dead.set()
        while len(fleet.workers) < 2:
            await asyncio.sleep(0.005)
    fleet.starting.set()
    await pool.wait_healthy()
    assert pool.workers[0].name == "worker-2" and pool.losses == 1
    await pool.close()


async def test_an_engine_that_its_worker_finds_lost_costs_the_worker(fleet: Any) -> None:
    pool = fleet.pool()
    pool.resize(1)
    await pool.wait_healthy()
    lost = pool.workers[0]

    async def ping() -> None:
        raise EngineError("process 12 of the engine is stopped (SIGSTOP)")

    fleet.workers[0].ping = ping
    async with asyncio.timeout(5):
        while len(fleet.workers) < 2:
            await asyncio.sleep(0.005)
    assert (lost.state, lost.kind) == (WorkerState.DEAD, LossKind.ENGINE)
    assert "process 12" in lost.failure
    await pool.close()


async def test_a_ping_without_an_answer_has_a_deadline(fleet: Any) -> None:
    pool = fleet.pool(ping_timeout_s=0.05)
    pool.resize(1)
    await pool.wait_healthy()
    lost = pool.workers[0]
    fleet.workers[0].ping = asyncio.Event().wait
    async with asyncio.timeout(5):
        while len(fleet.workers) < 2:
            await asyncio.sleep(0.005)
    assert lost.kind is LossKind.UNRESPONSIVE and "no answer for 0.05 s" in lost.failure
    await pool.close()


def test_failed_episodes_are_counted_until_one_counts(task: Task) -> None:
    def row(lease: Lease, outcome: Outcome, error: str = "") -> pa.RecordBatch:
        ended: dict[str, Any] = {"outcome": outcome, "error": error}
        if not outcome.counts:
            ended |= {"reward": None, "reward_parts": {}}
        return to_batch([replace(canned(lease, task, 0, "w"), **ended)])

    (lease,) = leases_of(task, 1)
    outcomes = Outcomes()
    for _ in range(3):
        outcomes.note(row(lease, Outcome.INFRA_FAILED, "no server"))
    assert (outcomes.counted, outcomes.failed_in_a_row) == (0, 3)
    assert outcomes.last_error == "no server"
    outcomes.note(row(lease, Outcome.TRUNCATED))
    assert (outcomes.counted, outcomes.failed_in_a_row) == (1, 0)


def test_the_interval_of_pings_leaves_time_to_look_within_ten_seconds() -> None:
    patience, every_s = Patience(), PoolTiming().ping_every_s
    assert every_s + patience.answer_s + patience.still_s + 2 * TURN_S < 10
    assert every_s + patience.unseen_s < 10
