"""More and fewer rollout workers while a job trains, asked for from another process."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig
from cluster.lifecycle.opening import Resume, open_run
from cluster.progress import QUIET
from cluster.training.train import train_steps
from rollout.store.journal import read_objects
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader
from tests.e2e.conftest import Lessons, SharedPool

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SCALE = [sys.executable, "-c", "from cluster.cli.main import main; main()", "scale"]


def workers_of(run: Path) -> float:
    """Return how many workers the newest step had."""
    rows = RunReader(run).metrics()
    return rows[-1].values["workers"] if rows else 0.0


def has_played(run: Path, worker: str) -> bool:
    reader = RunReader(run)
    rows = reader.episodes()
    return bool(rows) and worker in reader.batch(rows)["worker"].to_pylist()


async def scaled_up_and_down(shared_pool: SharedPool, config: RunConfig) -> None:
    with open_run(RunKind.TRAIN, config.path, config, Resume.NO, QUIET) as run:

        async def train() -> None:
            async with shared_pool.job(config, run, workers=1) as job:
                await train_steps(job, QUIET)

        training = asyncio.create_task(train())

        async def until(holds: Callable[[], bool]) -> None:
            async with asyncio.timeout(240):
                while not holds():
                    if training.done():
                        training.result()
                    await asyncio.sleep(0.2)

        async def scale(workers: int) -> None:
            asked = [*SCALE, str(run.path), str(workers)]
            await asyncio.to_thread(subprocess.run, asked, cwd=ROOT, check=True, timeout=120)
            await until(lambda: workers_of(run.path) == workers)

        try:
            await until(lambda: workers_of(run.path) == 1)
            await scale(2)
            await until(lambda: has_played(run.path, shared_pool.pool.workers[1].name))
            await scale(1)
        finally:
            training.cancel()
            await asyncio.gather(training, return_exceptions=True)


def test_a_job_at_work_gets_more_and_fewer_workers(
    lessons: Lessons, shared_pool: SharedPool
) -> None:
    quick = ("rollouts.groups_per_step=1", "rollouts.group_size=2", "rollouts.max_refills=0")
    config = lessons.config("scaled", *quick, "run.deterministic=false", "run.steps=10000")
    shared_pool.run(scaled_up_and_down(shared_pool, config))
    control = read_objects(RunReader(config.path).layout.control)
    assert [(row["request"], row["refused"]) for row in control] == [
        ({"kind": "scale", "workers": 2}, ""),
        ({"kind": "scale", "workers": 1}, ""),
    ]
