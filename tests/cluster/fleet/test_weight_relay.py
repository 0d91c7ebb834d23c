"""Weights for workers on another node than the learner: two Ray nodes on this machine."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from cluster.config.run_config import load_config
from cluster.fleet import weight_relay
from cluster.fleet.health.heartbeat import Patience
from cluster.fleet.health.node_guard import NodeGuards
from cluster.fleet.placement.worker_place import WorkerPlace
from cluster.fleet.pool import PoolTiming, RolloutPool, WorkerState
from cluster.fleet.rollout_actor import RayWorker, WorkerLinks
from cluster.fleet.rollout_worker import WorkerSpec
from cluster.fleet.tool_fleet import ToolAccess
from cluster.fleet.weight_relay import WeightRelays, place_here
from cluster.lifecycle.inputs import find_model
from envs.errors import WeightSyncError
from learner.outputs.publish import SharedMemoryPublisher
from rollout.engines.engine_spec import EngineSpec
from rollout.weights.manifest import Place, WeightLayout, WeightManifest, checksum
from tests.cluster.fleet.far_engine import FACTORY, FOLDER

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

LAYOUT = WeightLayout.of([("a", "float32", (700_000,), 2_800_000), ("b", "bfloat16", (9,), 18)])
STORE_BYTES = 100 * 2**20


@pytest.fixture(scope="module", autouse=True)
def far_node() -> Iterator[str]:
    """A cluster whose first node, the driver's, has no CPU for workers; the id of the second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setattr(weight_relay, "PART_BYTES", 2**20)  # three parts
        first = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=first)
        try:
            node = cluster.add_node(num_cpus=4, object_store_memory=STORE_BYTES)
            ray.init(address=cluster.address, log_to_driver=False)
            cluster.wait_for_nodes()
            yield node.node_id
        finally:
            ray.shutdown()
            cluster.shutdown()


class Publisher:
    """The learner's end, on the driver's node, with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.place = place_here(str(folder))
        self._publisher = SharedMemoryPublisher(folder, LAYOUT)

    def publish(self, version: int) -> WeightManifest:
        generator = torch.Generator().manual_seed(version)
        named = [(s.name, torch.randn(s.shape, generator=generator)) for s in LAYOUT.slots]
        manifest = self._publisher.publish(version, named)
        return replace(manifest, place=self.place)


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "near")


@pytest.fixture
def far(far_node: str, tmp_path: Path) -> Place:
    (tmp_path / FOLDER).mkdir()
    return Place.of(str(tmp_path / FOLDER), far_node)


@pytest.fixture
async def relays(far: Place, tmp_path: Path) -> AsyncIterator[WeightRelays]:
    del far
    relays = WeightRelays(str(tmp_path / FOLDER), 60.0)
    yield relays
    await relays.close()


def copies_in(folder: Path) -> list[Path]:
    """Return the files of weights on the other node."""
    return [path for path in (folder / FOLDER).rglob("*") if path.is_file()]


def is_whole(manifest: WeightManifest) -> bool:
    return checksum(memoryview(Path(manifest.path).read_bytes())) == manifest.checksum


def kill_actors() -> None:
    running = psutil.process_iter(["cmdline"])
    killed = [p for p in running if "RelayActor" in " ".join((p.info["cmdline"] or [])[:1])]
    assert len(killed) == 2, "one on each node"
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(killed, 10)
    assert alive == []


async def test_a_version_gets_to_another_node_once(
    publisher: Publisher, relays: WeightRelays, far: Place, tmp_path: Path
) -> None:
    first = publisher.publish(1)
    found = await asyncio.gather(*(relays.at(far, first) for _ in range(3)))
    assert found[0] == found[1] == found[2] == replace(first, path=found[0].path, place=far)
    assert Path(found[0].path).parent.parent == tmp_path / FOLDER
    assert is_whole(found[0])
    second = await relays.at(far, publisher.publish(2))
    assert second.path != found[0].path
    assert is_whole(second) and is_whole(found[0]), "the last but one is still there"
    third = await relays.at(far, publisher.publish(3))
    assert third.path == found[0].path
    assert is_whole(third) and is_whole(second) and not is_whole(found[0])
    assert len(copies_in(tmp_path)) == 2
    await relays.close()
    assert copies_in(tmp_path) == []


async def test_where_the_publishers_files_are_seen_nothing_is_copied(
    publisher: Publisher, relays: WeightRelays, tmp_path: Path
) -> None:
    manifest = publisher.publish(1)
    beside = replace(publisher.place, node="another container with the same folder")
    assert await relays.at(beside, manifest) is manifest
    assert copies_in(tmp_path) == []


async def test_a_killed_actor_is_replaced(
    publisher: Publisher, relays: WeightRelays, far: Place
) -> None:
    await relays.at(far, publisher.publish(1))
    kill_actors()
    assert is_whole(await relays.at(far, publisher.publish(2)))


async def test_what_does_not_get_there_is_told_and_tried_again(
    publisher: Publisher, relays: WeightRelays, far: Place
) -> None:
    manifest = publisher.publish(1)
    lost = replace(manifest, path=f"{manifest.path}-lost")
    with pytest.raises(
        WeightSyncError, match=r"version 1 was not copied to node \w+: could not read"
    ):
        await relays.at(far, lost)
    shutil.copy(manifest.path, lost.path)
    assert is_whole(await relays.at(far, lost)), "what failed is read again"
    with pytest.raises(WeightSyncError, match=r"another node than the learner.*'cuda_ipc'"):
        await relays.at(far, replace(manifest, transport="cuda_ipc"))
    assert is_whole(await relays.at(far, manifest))


async def test_a_full_folder_is_named(publisher: Publisher, far: Place) -> None:
    relays = WeightRelays("/proc", 60.0)
    try:
        with pytest.raises(WeightSyncError, match=r"was not copied to node.*folder /proc/"):
            await relays.at(far, publisher.publish(1))
    finally:
        await relays.close()


async def test_workers_on_another_node_load_every_version_and_a_lost_copy_again(
    publisher: Publisher, relays: WeightRelays, tmp_path: Path
) -> None:
    config = load_config("demo", [f"run.models_dir={tmp_path / 'models'}"])
    model = str(find_model(config))
    engine = EngineSpec(model_path=model, model=config.model, engine=config.engine, seed=0)
    spec = WorkerSpec(engine=engine, tools=config.tools, engine_factory=FACTORY)

    def spawn(name: str) -> RayWorker:
        place = WorkerPlace(cpus=1.0, gpus=0.0)
        links = WorkerLinks(
            access=ToolAccess({}), relays=relays, guards=NodeGuards(), patience=Patience()
        )
        return RayWorker(name, spec, place, links)

    pool = RolloutPool(spawn, config.rollouts, PoolTiming(load_timeout_s=60.0))
    try:
        pool.resize(1)
        await pool.load_weights(publisher.publish(1))  # before there is a worker: it catches up
        await pool.wait_healthy()
        await pool.load_weights(publisher.publish(2))
        assert [worker.version for worker in pool.workers] == [2]
        kill_actors()
        for file in copies_in(tmp_path):  # as the next run on that node does
            file.unlink()
        pool.resize(2)
        await pool.wait_healthy(2)
        await pool.load_weights(publisher.publish(3))
        assert [worker.version for worker in pool.workers] == [3, 3]
        assert {worker.state for worker in pool.workers} == {WorkerState.HEALTHY}
        assert pool.losses == 0
    finally:
        await pool.close()
