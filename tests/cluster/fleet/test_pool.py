import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cluster.fleet.pool import RolloutPool, WorkerLost, WorkerState
from envs.errors import DeadlineError, InfraError
from envs.tasks import Task
from rollout.config import EpisodeConfig, PhaseBudget
from rollout.episode import Lease, RolloutKind
from rollout.weights.manifest import WeightManifest

ManifestOf = Callable[[int], WeightManifest]
LEASE = Lease(
    run="run",
    episode="e0",
    kind=RolloutKind.TRAIN,
    group="g0",
    group_number=0,
    task="t",
    sample_index=0,
    attempt=0,
    seed=1,
)


@pytest.fixture
def task(numbered: Any) -> Task:
    return numbered.tasks("train", 0, 1)[0]


async def test_leases_go_to_the_least_loaded_or_the_preferred(fleet: Any, task: Task) -> None:
    pool = fleet.pool(episodes_per_worker=2)
    pool.resize(2)
    await pool.wait_healthy(2)
    fleet.gate.clear()
    running = [
        asyncio.create_task(pool.run_episode(LEASE, task, EpisodeConfig(), "worker-2"))
        for _ in range(3)
    ]
    while len(fleet.started) < 3:
        await asyncio.sleep(0)
    assert sorted(name for name, _ in fleet.started) == ["worker-1", "worker-2", "worker-2"]
    fleet.gate.set()
    await asyncio.gather(*running)
    await pool.close()
    assert all(worker.killed for worker in fleet.workers)


async def test_a_dead_worker_is_replaced_and_catches_up_before_it_serves(
    fleet: Any, task: Task, manifest_of: ManifestOf
) -> None:
    pool = fleet.pool()
    pool.resize(1)
    await pool.wait_healthy()
    await pool.load_weights(manifest_of(7))
    fleet.gate.clear()
    running = asyncio.create_task(pool.run_episode(LEASE, task, EpisodeConfig()))
    while not fleet.started:
        await asyncio.sleep(0)
    fleet.workers[0].dead.set()
    with pytest.raises(WorkerLost, match="worker-1 died"):
        await running
    fleet.gate.set()
    batch, name = await pool.run_episode(LEASE, task, EpisodeConfig())
    assert name == "worker-2"
    assert batch["oldest_version"].to_pylist() == [7]
    assert pool.losses == 1
    await pool.close()


async def test_a_worker_that_dies_idle_is_noticed_by_its_ping(fleet: Any) -> None:
    pool = fleet.pool()
    pool.resize(1)
    await pool.wait_healthy()
    fleet.workers[0].dead.set()
    while len(fleet.workers) < 2:
        await asyncio.sleep(0.005)
    await pool.wait_healthy()
    await pool.close()


async def test_a_torn_push_is_tried_again_and_then_costs_the_worker(
    fleet: Any, manifest_of: ManifestOf
) -> None:
    pool = fleet.pool()
    pool.resize(2)
    await pool.wait_healthy(2)
    fleet.workers[0].refuse_loads = 1
    fleet.workers[1].refuse_loads = 2
    await pool.load_weights(manifest_of(1))
    assert fleet.workers[0].version == 1
    await pool.wait_healthy(2)
    assert [worker.version for worker in pool.workers] == [1, 1]
    assert {worker.name for worker in pool.workers} == {"worker-1", "worker-3"}
    await pool.close()


async def test_an_episode_over_its_deadline_costs_the_worker(fleet: Any, task: Task) -> None:
    pool = fleet.pool(episode_timeout_s=0.05)
    pool.resize(1)
    await pool.wait_healthy()
    fleet.gate.clear()
    phase = PhaseBudget(seconds=0.01)
    config = EpisodeConfig(trial=phase, execution=phase)
    with pytest.raises(WorkerLost, match=r"overran 0\.07 s"):
        await pool.run_episode(LEASE, task, config)
    await pool.close()


async def test_a_pool_that_cannot_start_says_why(fleet: Any) -> None:
    fleet.start_error = InfraError("no such model")
    pool = fleet.pool()
    pool.resize(1)
    with pytest.raises(InfraError, match="no rollout worker starts: no such model"):
        await pool.wait_healthy()
    await pool.close()


async def test_a_slot_that_does_not_start_is_no_end_for_the_others(fleet: Any, task: Task) -> None:
    pool = fleet.pool(pool_timeout_s=5.0)
    pool.resize(1)
    await pool.wait_healthy()
    fleet.start_error = InfraError("no such GPU")
    pool.resize(2)
    with pytest.raises(InfraError, match="no rollout worker starts: no such GPU"):
        await pool.wait_healthy(2)
    _, name = await pool.run_episode(LEASE, task, EpisodeConfig())
    assert name == "worker-1"
    fleet.start_error = None
    while len(pool.workers) < 2 or pool.workers[1].state is not WorkerState.HEALTHY:
        await asyncio.sleep(0.005)
    await pool.wait_healthy(2)
    fleet.start_error = InfraError("no such GPU")
    for worker in fleet.workers:
        worker.dead.set()
    while any(worker.state is WorkerState.HEALTHY for worker in pool.workers):
        await asyncio.sleep(0.005)
    with pytest.raises(InfraError, match="no rollout worker starts: no such GPU"):
        await pool.wait_healthy()
    await pool.close()


async def test_a_surplus_worker_that_starts_is_not_waited_for(fleet: Any) -> None:
    pool = fleet.pool()
    pool.resize(1)
    await pool.wait_healthy()
    fleet.starting.clear()
    pool.resize(2)
    while len(fleet.workers) < 2:
        await asyncio.sleep(0)
    assert pool.desired == 2
    pool.resize(1)
    while not fleet.workers[1].killed:
        await asyncio.sleep(0)
    assert [worker.name for worker in pool.workers] == ["worker-1"]
    fleet.starting.set()
    pool.resize(2)
    await pool.wait_healthy(2)
    assert [worker.name for worker in pool.workers] == ["worker-1", "worker-3"]
    assert pool.losses == 0
    await pool.close()
    assert all(worker.killed for worker in fleet.workers)


async def shrunk_at_work(fleet: Any, task: Task) -> tuple[RolloutPool, asyncio.Task[Any]]:
    """Return a pool that shrank while its second worker plays the episode of the task."""
    pool = fleet.pool()
    pool.resize(2)
    await pool.wait_healthy(2)
    fleet.gate.clear()
    running = asyncio.create_task(pool.run_episode(LEASE, task, EpisodeConfig(), "worker-2"))
    while not fleet.started:
        await asyncio.sleep(0)
    pool.resize(1)
    await asyncio.sleep(0)
    return pool, running


async def test_who_drains_when_the_pool_closes_is_ended_too(fleet: Any, task: Task) -> None:
    pool, running = await shrunk_at_work(fleet, task)
    await pool.close()
    assert all(worker.killed for worker in fleet.workers)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_waiting_for_a_worker_has_a_deadline(fleet: Any, task: Task) -> None:
    pool = fleet.pool(pool_timeout_s=0.05)
    with pytest.raises(DeadlineError, match="healthy rollout worker; found no workers"):
        await pool.run_episode(LEASE, task, EpisodeConfig())


async def test_shrinking_drains_and_growing_adds(fleet: Any, task: Task) -> None:
    pool, running = await shrunk_at_work(fleet, task)
    await asyncio.sleep(0.05)
    assert not fleet.workers[1].killed, "it finishes what it was given"
    fleet.gate.set()
    assert (await running)[1] == "worker-2"
    while not fleet.workers[1].killed:
        await asyncio.sleep(0.005)
    pool.resize(3)
    await pool.wait_healthy(3)
    healthy = [worker.name for worker in pool.workers if worker.state is WorkerState.HEALTHY]
    assert healthy == ["worker-1", "worker-3", "worker-4"]
    await pool.close()
