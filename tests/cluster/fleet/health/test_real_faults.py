"""Real workers on two real nodes: placed by label, frozen, killed, and kept off a bad node."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _internal_kv_get

from cluster.config.run_config import load_config
from cluster.fleet.health.losses import LossKind
from cluster.fleet.health.vitals import Sign, descendants, vital_of
from cluster.fleet.open_pool import open_pool
from cluster.fleet.pool import RolloutPool, Worker, WorkerLost, WorkerState
from cluster.lifecycle.inputs import find_model
from envs.tasks import Task
from rollout.config import EpisodeConfig
from tests.cluster.conftest import leases_of
from tests.cluster.fleet.health.still_engine import FACTORY

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(300)]

LIMIT_S = 10.0
"""Within which a fault must be noticed."""
STORE_BYTES = 100 * 2**20


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[dict[str, str]]:
    """A cluster of two nodes with labels, the driver's without room; ids by zone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        shape = {"object_store_memory": STORE_BYTES}
        first = {"num_cpus": 2, "include_dashboard": False, "labels": {"zone": "a"}, **shape}
        cluster = Cluster(initialize_head=True, head_node_args=first)
        try:
            second: dict[str, Any] = {"labels": {"zone": "b"}, "resources": {"far": 2}, **shape}
            cluster.add_node(num_cpus=2, **second)
            ray.init(address=cluster.address, log_to_driver=False)
            cluster.wait_for_nodes()
            patch.setenv("RAY_ADDRESS", str(cluster.address))
            yield {node["Labels"]["zone"]: node["NodeID"] for node in ray.nodes()}
        finally:
            ray.shutdown()
            cluster.shutdown()


@asynccontextmanager
async def pool_of(folder: Path, *overrides: str) -> AsyncIterator[RolloutPool]:
    """A pool whose engines answer nothing, and do so in a process of their own."""
    places = (f"run.models_dir={folder / 'models'}", "cluster.shm_dir=/dev/shm")
    config = load_config("catalog", [*places, *overrides])
    async with open_pool(config, find_model(config), folder, FACTORY) as pool:
        yield pool


async def until(holds: Callable[[], bool], limit_s: float = 60.0) -> float:
    """Wait until `holds`; return how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.05)
    return time.monotonic() - began


def core_of(worker: Worker) -> int:
    assert worker.report is not None
    (core,) = [
        pid
        for pid in descendants(worker.report.pid)
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep")
    ]
    return core


def asked() -> list[dict[str, float]]:
    """Return the nodes that the cluster's autoscaler has been asked for."""
    return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "[]")


def is_lost(worker: Worker) -> Callable[[], bool]:
    return lambda: worker.state is WorkerState.DEAD


@pytest.fixture
def task(numbered: Any) -> Task:
    return numbered.tasks("train", 0, 1)[0]


async def test_workers_are_placed_by_group_and_kept_off_a_bad_node(
    nodes: dict[str, str], tmp_path: Path, task: Task
) -> None:
    groups = (
        "rollouts.groups.near={labels={zone='a'}}",
        "rollouts.groups.far={resources={far=1},labels={zone='!a'}}",
        "rollouts.workers=0",
        "cluster.quarantine_losses=1",
    )
    async with pool_of(tmp_path, *groups) as pool:
        await pool.wait_healthy(2)
        far, near = pool.workers
        assert (far.group, far.node) == ("far", nodes["b"])
        assert (near.group, near.node) == ("near", nodes["a"])
        await until(lambda: bool(asked()))
        assert sorted(asked(), key=len) == [{"CPU": 1.0}, {"CPU": 1.0, "far": 1.0}]

        episode = asyncio.create_task(
            pool.run_episode(leases_of(task, 1)[0], task, EpisodeConfig(), near.name)
        )
        await until(lambda: near.running == 1)
        os.kill(near.report.pid if near.report else 0, signal.SIGSTOP)
        assert await until(is_lost(near)) < LIMIT_S
        with pytest.raises(WorkerLost, match="is stopped") as lost:
            await episode
        assert lost.value.kind is near.kind is LossKind.FROZEN
        assert pool.quarantine.nodes == [], "it is the only node for its group"
        await until(lambda: len(pool.workers) == 2 and pool.workers[1] is not near)

        core = core_of(far)
        os.kill(core, signal.SIGSTOP)
        assert await until(is_lost(far)) < LIMIT_S
        assert far.kind is LossKind.ENGINE and f"process {core} of the engine" in far.failure
        await until(lambda: vital_of(core).sign is Sign.GONE)
    assert asked() == []


@pytest.mark.skipif(
    not os.environ.get("TRIALRUN_LONG_TESTS"), reason="half a minute; TRIALRUN_LONG_TESTS=1"
)
async def test_a_node_that_lost_a_worker_gets_no_new_one(
    nodes: dict[str, str], tmp_path: Path
) -> None:
    recipe = ("rollouts.workers=1", "cluster.quarantine_losses=1")
    async with pool_of(tmp_path, *recipe) as pool:
        await pool.wait_healthy()
        first = pool.workers[0]
        os.kill(core_of(first), signal.SIGKILL)
        assert await until(is_lost(first)) < LIMIT_S
        await until(lambda: pool.workers[0].state is WorkerState.HEALTHY)
        assert first.node in nodes.values()
        assert {pool.workers[0].node, first.node} == set(nodes.values())
        assert [found.node for found in pool.quarantine.nodes] == [first.node]
        assert first.kind is LossKind.ENGINE

        second = pool.workers[0]
        os.kill(second.report.pid if second.report else 0, signal.SIGKILL)
        assert await until(is_lost(second)) < LIMIT_S
        assert second.kind is LossKind.DIED
        assert len(pool.quarantine.nodes) == 1, "the last node stays"
