"""A driver is killed; its workers and tool servers go on, and the next driver takes them over."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.fleet.survivors.absence import DriverAbsence
from cluster.fleet.survivors.lasting import survivors_of
from cluster.fleet.survivors.taking_over import finished_meanwhile
from rollout.episode import Outcome
from tests.cluster.fleet.survivors.pools import pids_of, pool_of
from tests.cluster.fleet.survivors.waiting_engine import GATE
from tests.waiting import expect_within, lives

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(300)]
KEY = "run-of-this-test"


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster that outlives drivers; this process is one of its drivers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv(GATE, str(tmp_path_factory.mktemp("gate") / "open"))
        shape = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args=shape)
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            patch.setenv("RAY_ADDRESS", str(cluster.address))
            yield
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def killed(tmp_path: Path) -> list[psutil.Process]:
    """Kill a driver while two episodes run; return the processes of its two workers."""
    Path(os.environ[GATE]).unlink(missing_ok=True)
    pids = tmp_path / "pids"
    command = [sys.executable, "-m", "tests.cluster.fleet.survivors.driver", str(tmp_path), KEY]
    driver = subprocess.Popen(command)
    try:
        expect_within(120, lambda: pids.exists() or driver.poll() is not None, "its workers")
    finally:
        driver.kill()
        driver.wait()
    return [psutil.Process(int(pid)) for pid in pids.read_text().split()]


async def all_gone(processes: list[psutil.Process]) -> None:
    gone = "the workers end"
    await asyncio.to_thread(expect_within, 30, lambda: not any(map(lives, processes)), gone)


async def test_workers_and_what_they_finished_are_taken_over(
    tmp_path: Path, killed: list[psutil.Process]
) -> None:
    Path(os.environ[GATE]).touch()
    await asyncio.sleep(3.0)  # the episodes end, and nobody asks for them
    async with pool_of(tmp_path, KEY) as pool:
        await pool.wait_healthy(2)
        assert pids_of(pool) == [process.pid for process in killed]
        assert pool.holds_pushed_weights, "this driver does not know what their engines hold"
        rows = await finished_meanwhile(pool.workers)
        assert len(rows) == 1, "of the two episodes one had finished; the other one is ended"
        assert Outcome(rows[0]["outcome"][0].as_py()).counts
        assert await finished_meanwhile(pool.workers) == []
    await all_gone(killed)
    assert survivors_of(KEY) == []


async def test_only_workers_of_the_same_run_and_recipe_are_taken(
    tmp_path: Path, killed: list[psutil.Process]
) -> None:
    small = "cluster.cpus_per_worker=0.5"
    async with pool_of(tmp_path, "another-run", small) as pool:
        await pool.wait_healthy(2)
        assert not set(pids_of(pool)) & {process.pid for process in killed}
    assert all(map(lives, killed)), "they belong to another run"
    async with pool_of(tmp_path, KEY, small) as pool:
        await pool.wait_healthy(2)
        assert not set(pids_of(pool)) & {process.pid for process in killed}
        await all_gone(killed)


@ray.remote(num_cpus=0)
class Listening:
    def __init__(self, limit_s: float) -> None:
        self._absence = DriverAbsence(limit_s)

    def hear(self) -> int:
        self._absence.heard()
        return os.getpid()


def test_an_actor_without_a_driver_ends_but_not_one_that_was_frozen() -> None:
    actor: Any = Listening.options(lifetime="detached", name="listening").remote(2.0)
    process = psutil.Process(ray.get(actor.hear.remote()))
    for _ in range(6):
        time.sleep(0.5)
        ray.get(actor.hear.remote())
    process.suspend()
    time.sleep(3.0)
    process.resume()
    assert ray.get(actor.hear.remote()) == process.pid, "it could hear nobody"
    expect_within(15, lambda: not lives(process), "it ends")
