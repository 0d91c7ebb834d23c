"""What the end-to-end tests share: a recipe small enough, and a model that was taught a little."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.inputs import RunInputs, resolve_inputs
from cluster.lifecycle.opening import Resume, open_run
from cluster.progress import Progress
from cluster.teachers.teacher import run_teacher
from cluster.training.sft import train_sft
from rollout.store.run_layout import RunKind

_RECIPE = (
    "rollouts.groups_per_step=4",
    "rollouts.group_size=4",
    "engine.kv_cache_mib=64",
    # one tool of a hundred and sixty, truly described: in seconds of lessons a model learns to
    # call it now and then, and rewards differ by how often, and by whether that was well formed
    "env.catalog.tools=1",
    "env.catalog.recurrent=1.0",
    "env.catalog.quirks={none=1.0}",
    "env.catalog.docs={true=1.0}",
    "teacher.episodes=400",
    "sft.epochs=5",
    "episode.trial_call_cost=0.02",
    "eval.split=train",
)


@dataclass(frozen=True, slots=True)
class Lessons:
    """A taught model, and the recipe with which tests go on from it, while Ray runs."""

    folder: Path
    base: Path
    taught: Path

    def config(self, name: str, *overrides: str) -> RunConfig:
        """Return the recipe of a run called `name` that starts from the taught model."""
        return recipe(self.folder, f"run.name={name}", f"model.path={self.taught}", *overrides)


def recipe(folder: Path, *overrides: str) -> RunConfig:
    """Return the catalog recipe at the size of a test."""
    places = (f"run.dir={folder}", f"run.models_dir={folder / 'models'}")
    return load_config("catalog", [*places, *_RECIPE, *overrides])


@pytest.fixture(scope="session")
def e2e_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all end-to-end runs; `models` in it has the tiny model, which is made once."""
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def lessons(e2e_folder: Path) -> Iterator[Lessons]:
    folder = e2e_folder
    config = recipe(folder)
    with ray_session(config):
        inputs = resolve_inputs(config)
        taught = asyncio.run(_teach(inputs, folder / "taught"))
        yield Lessons(folder, inputs.model, taught)


async def _teach(inputs: RunInputs, path: Path) -> Path:
    config, quiet = inputs.config, Progress(quiet=True)
    with open_run(RunKind.SFT, path, config, Resume.NO, quiet) as run:
        data = await run_teacher(inputs, run.layout.teacher)
        await train_sft(config, inputs.model, data.table, run, quiet)
        return run.layout.model
