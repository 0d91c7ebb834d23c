"""Pools of two workers that outlive their driver."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cluster.config.run_config import load_config
from cluster.fleet.open_pool import open_pool
from cluster.fleet.pool import RolloutPool
from cluster.lifecycle.inputs import find_model
from tests.cluster.fleet.survivors.waiting_engine import FACTORY


@asynccontextmanager
async def pool_of(folder: Path, key: str, *overrides: str) -> AsyncIterator[RolloutPool]:
    places = (f"run.models_dir={folder / 'models'}", "cluster.shm_dir=/dev/shm")
    sizes = ("rollouts.workers=2",)
    config = load_config("catalog", [*places, *sizes, *overrides])
    async with open_pool(config, find_model(config), folder, FACTORY, key) as pool:
        yield pool


def pids_of(pool: RolloutPool) -> list[int]:
    """Return the processes of the workers, sorted."""
    return sorted(worker.report.pid for worker in pool.workers if worker.report)
