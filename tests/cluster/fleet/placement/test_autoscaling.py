"""A cluster whose autoscaler really starts nodes for the workers of a pool, and ends idle ones.

Ray's own provider for tests starts raylets on this machine instead of virtual machines.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from cluster.config.run_config import load_config
from cluster.fleet.open_pool import open_pool
from cluster.fleet.pool import RolloutPool
from cluster.lifecycle.inputs import find_model
from tests.chaos.stage import RAY, free_ports, kill_below
from tests.cluster.fleet.health.still_engine import FACTORY
from tests.waiting import expect_within

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        "TRIALRUN_LONG_TESTS" not in os.environ, reason="a minute; TRIALRUN_LONG_TESTS=1"
    ),
]
HEAD = "ray.head.default"


def autoscaling() -> dict[str, Any]:
    """Return Ray's configuration of a cluster that grows by nodes of two CPUs."""
    kinds: dict[str, Any] = {
        HEAD: {"resources": {}, "node_config": {}, "max_workers": 0},
        "small": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    return {
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 10.0,
        "provider": {"type": "fake_multinode", "head_node_id": FAKE_HEAD_NODE_ID},
        "available_node_types": kinds,
        "head_node_type": HEAD,
        "auth": {},
        "file_mounts": {},
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "initialization_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@pytest.fixture(scope="module", autouse=True)
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A head without CPUs, with an autoscaler."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "cluster.json").write_text(json.dumps(autoscaling()))
    (port,) = free_ports(1)
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch,
        pytest.MonkeyPatch.context() as patch,
        (folder / "out").open("wb") as out,
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_FAKE_CLUSTER", "1")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # this process may have a token of its own
        patch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        subprocess.run(
            [
                *(RAY, "start", "--head", f"--port={port}", "--num-cpus=0"),
                *(f"--temp-dir={scratch}", "--include-dashboard=false"),
                *("--object-store-memory=100000000", "--disable-usage-stats"),
                f"--autoscaling-config={folder / 'cluster.json'}",
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=120,
        )
        try:
            address = f"127.0.0.1:{port}"
            ray.init(address=address, log_to_driver=False)
            patch.setenv("RAY_ADDRESS", address)
            yield
        finally:
            ray.shutdown()
            kill_below(Path(scratch))


@asynccontextmanager
async def pool_of(folder: Path, workers: int) -> AsyncIterator[RolloutPool]:
    places = (f"run.models_dir={folder / 'models'}", "cluster.shm_dir=/dev/shm")
    config = load_config("catalog", [*places, f"rollouts.workers={workers}"])
    async with open_pool(config, find_model(config), folder, FACTORY) as pool:
        yield pool


def nodes_with_room() -> int:
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


async def settles(holds: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(expect_within, 150, holds, what)


async def test_nodes_come_for_workers_and_go_with_them(tmp_path: Path) -> None:
    assert nodes_with_room() == 0
    async with pool_of(tmp_path, 3) as pool:
        await pool.wait_healthy(3)
        assert nodes_with_room() == 2
        assert len({worker.node for worker in pool.workers}) == 2
        pool.resize(1)
        await settles(lambda: nodes_with_room() == 1, "the node without a worker leaves")
        assert [worker.node for worker in pool.workers] != [""]
        pool.resize(3)
        await pool.wait_healthy(3)
        assert pool.losses == 0, "waiting for a node is no failed start"
    await settles(lambda: nodes_with_room() == 0, "all nodes leave after the pool")
