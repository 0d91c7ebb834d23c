"""What the end-to-end tests share: a small recipe, a model that was taught a little, and a pool."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.fleet.open_pool import open_pool
from cluster.fleet.pool import RolloutPool
from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.inputs import RunInputs, resolve_inputs
from cluster.lifecycle.opening import Resume, open_run
from cluster.progress import QUIET
from cluster.teachers.teacher import run_teacher
from cluster.training.job import Job, open_job_on
from cluster.training.sft import train_sft
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind

T = TypeVar("T")

_FOLDER = Path(__file__).parent
_OPEN = ExitStack()
"""Ray and the pool, which all tests of this folder share."""

LESSONS = (
    "engine.kv_cache_mib=64",
    # one tool of a hundred and sixty, truly described: in seconds of lessons a model learns to
    # call it now and then, and rewards differ by how often, and by whether that was well formed
    "env.catalog.tools=1",
    "env.catalog.recurrent=1.0",
    "env.catalog.quirks={none=1.0}",
    "env.catalog.docs={true=1.0}",
    "teacher.episodes=400",
    "sft.epochs=3",
    "sft.checkpoint_every=5",
    "episode.trial_call_cost=0.02",
    "eval.split=train",
)
_TRAINING = ("rollouts.groups_per_step=4", "rollouts.group_size=4", "run.deterministic=true")
_POOL = ("rollouts.workers=1", "rollouts.episodes_per_worker=5")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Close the pool and Ray after the last test of this folder, not at the end of the process:
    tests elsewhere start a Ray of their own.
    """
    if nextitem is None or _FOLDER not in nextitem.path.parents:
        _OPEN.close()


@dataclass(frozen=True, slots=True)
class Lessons:
    """A taught model, and the recipe with which tests go on from it, while Ray runs."""

    folder: Path
    base: Path
    taught: Path

    def config(self, name: str, *overrides: str) -> RunConfig:
        """Return the recipe of a run called `name` that starts from the taught model."""
        places = (f"run.name={name}", f"model.path={self.taught}")
        return recipe(self.folder, *_TRAINING, *places, *overrides)


def recipe(folder: Path, *overrides: str) -> RunConfig:
    """Return the catalog recipe at the size of a test."""
    places = (f"run.dir={folder}", f"run.models_dir={folder / 'models'}")
    return load_config("catalog", [*places, *LESSONS, *overrides])


@pytest.fixture(scope="session")
def e2e_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all end-to-end runs; `models` in it has the tiny model, which is made once."""
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def lessons(e2e_folder: Path) -> Lessons:
    folder = e2e_folder
    config = recipe(folder)
    _OPEN.enter_context(ray_session(config))
    inputs = resolve_inputs(config)
    taught = asyncio.run(_teach(inputs, folder / "taught"))
    return Lessons(folder, inputs.model, taught)


async def _teach(inputs: RunInputs, path: Path) -> Path:
    config = inputs.config
    with open_run(RunKind.SFT, path, config, Resume.NO, QUIET) as run:
        data = await run_teacher(inputs, run.layout.teacher)
        await train_sft(config, inputs.model, data.table, run, QUIET)
        return run.layout.model


class SharedPool:
    """One pool of vLLM workers for all jobs of this folder, with an event loop in a thread.

    The loop never stops, so the pool's supervision goes on between tests.
    """

    def __init__(self, inputs: RunInputs, folder: Path) -> None:
        self._inputs = inputs
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._open = open_pool(inputs.config, inputs.model, folder)
        self.pool: RolloutPool = self.run(self._open.__aenter__())

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 600.0) -> T:
        """Run `work` on the pool's event loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def inputs(self, config: RunConfig) -> RunInputs:
        """Return the inputs of a job with another recipe on the same model and environment."""
        return replace(self._inputs, config=config)

    @asynccontextmanager
    async def job(self, config: RunConfig, run: RunDirectory, workers: int) -> AsyncIterator[Job]:
        """Open the training job of `run` on `workers` healthy workers."""
        self.pool.resize(workers)
        await self.pool.wait_healthy(workers)
        async with open_job_on(self.pool, self.inputs(config), run) as job:
            yield job

    def close(self) -> None:
        self.run(self._open.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def shared_pool(lessons: Lessons) -> SharedPool:
    """Workers that sample from the taught model; every job pushes its weights before it begins."""
    config = lessons.config("pool", *_POOL)
    pool = SharedPool(resolve_inputs(config), lessons.folder)
    _OPEN.callback(pool.close)
    return pool
